"""Going down gently, in one process: who is done in time, who is put away, and who comes too late."""

import asyncio
import json
from pathlib import Path
from typing import Any

from redis_server import running_redis
from serving import chunks, dial, eventually, finals, get, offline, rest, run, serving, speech, stream, until, url
from test_app_resume import last_seq
from websockets.exceptions import InvalidStatus

PCM = speech(3, seed=21)


async def opened(server: Any, path: str = "/v1/stream") -> Any:
    connection = await dial(url(server, path))
    if path == "/v1/stream":
        await connection.send('{"type":"start"}')
        await until(connection, "ready")
    for chunk in chunks(PCM):
        await connection.send(chunk)
    return connection


async def refused(server: Any) -> tuple[int, str]:
    try:
        async with dial(url(server)):
            return 101, ""
    except InvalidStatus as error:
        return error.response.status_code, str(json.loads(bytes(error.response.body or b""))["code"])


def test_running_sessions_finish_and_new_ones_are_refused(tiny_path: Path, tiny: Any) -> None:
    async def main() -> None:
        async with serving(tiny_path, drain_seconds=20.0) as server:
            connection = await opened(server)
            draining = asyncio.create_task(server.drain())
            await eventually(lambda: server.gate.draining)
            assert (await get(server.port, "/readyz"))[0] == 503
            assert (await get(server.port, "/healthz"))[0] == 200
            assert await refused(server) == (503, "draining")
            assert not draining.done()
            await connection.send('{"type":"eof"}')
            assert finals(await rest(connection)) == offline(tiny, PCM) and connection.close_code == 1000
            await draining

    run(main)


def test_who_is_not_done_in_time_gets_all_results_and_1001(tiny_path: Path, tiny: Any) -> None:
    async def main() -> None:
        async with serving(tiny_path, drain_seconds=0.2) as server:
            own, vosk = await opened(server), await opened(server, "/vosk")
            listen = await opened(server, "/v1/listen?encoding=linear16&sample_rate=16000")
            reading = [asyncio.create_task(rest(connection)) for connection in (own, vosk, listen)]
            await eventually(lambda: all(s._bytes_in >= len(PCM) for s in server.sessions))
            await server.drain()
            messages = await asyncio.gather(*reading)
            assert [c.close_code for c in (own, vosk, listen)] == [1001] * 3
            assert finals(messages[0]) == offline(tiny, PCM)  # nothing that was heard is lost
            assert not server.sessions and server.engine.load.sessions == 0

    run(main)


def test_with_a_store_outside_sessions_are_put_away_first(tiny_path: Path, tiny: Any) -> None:
    async def main(address: str) -> None:
        options = {"session_store": address, "drain_seconds": 0.2}
        async with serving(tiny_path, **options) as next_one:
            async with serving(tiny_path, **options) as server:
                connection = await dial(url(server))
                await connection.send('{"type":"start"}')
                ready = await until(connection, "ready")
                for chunk in chunks(PCM)[:17]:
                    await connection.send(chunk)
                reading = asyncio.create_task(rest(connection))
                await eventually(lambda: next(iter(server.sessions))._bytes_in >= 17 * 3200)
                await server.drain()
                before = await reading
                assert connection.close_code == 1001
            async with dial(url(next_one)) as connection:
                names = {name: ready[name] for name in ("session", "secret")}
                await connection.send(json.dumps({"type": "start", **names, "last_seq": last_seq(before)}))
                again = await until(connection, "ready", "error")
                assert again["type"] == "ready", again
                for chunk in chunks(PCM[again["audio_samples"] * 2 :]):
                    await connection.send(chunk)
                await connection.send('{"type":"eof"}')
                assert finals(before + await rest(connection)) == offline(tiny, PCM)

    with running_redis() as address:
        run(lambda: main(address))


def test_close_ends_at_once(tiny_path: Path) -> None:
    async def main() -> None:
        async with serving(tiny_path) as server:
            connection = await opened(server)
            async with asyncio.timeout(5):
                await server.close()
            await rest(connection)
            assert connection.close_code == 1001

    run(main)


def test_an_engine_that_ends_closes_its_sessions_and_the_server_is_not_ready(tiny_path: Path) -> None:
    async def main() -> None:
        async with serving(tiny_path) as server:
            connection = await opened(server)
            reading = asyncio.create_task(rest(connection))
            await server.engine.close()
            messages = await reading
            assert connection.close_code == 1011 and messages[-1]["code"] == "engine"
            await eventually(lambda: server.engine.load.alive == 0)
            assert (await get(server.port, "/readyz"))[0] == 503 and (await get(server.port, "/healthz"))[0] == 503
            assert (await refused(server))[0] == 503

    run(main)


def test_draining_an_empty_server_takes_no_time(tiny_path: Path) -> None:
    async def main() -> None:
        async with serving(tiny_path) as server:
            await stream(url(server), PCM)
            async with asyncio.timeout(2):
                await server.drain()

    run(main)
