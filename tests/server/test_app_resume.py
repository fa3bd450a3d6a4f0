"""Resuming after a drop over real sockets: nothing lost, nothing twice, and only by its owner, once, in time."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from redis_server import running_redis
from serving import chunks, dial, eventually, finals, offline, rest, run, serving, speech, stream, until, url

PCM = speech(5, seed=12)
Messages = list[dict[str, Any]]


async def dropped(
    server: Any, token: str = "", seconds: float = 2.5, **start: Any
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A session whose connection is cut in mid-word: its ``ready`` and the messages that came before."""
    connection = await dial(url(server), token)
    await connection.send(json.dumps({"type": "start", **start}))
    ready = await until(connection, "ready")
    reading = asyncio.create_task(rest(connection))
    for chunk in chunks(PCM[: int(seconds * 32000)]):
        await connection.send(chunk)
    session = next(s for s in server.sessions if s.id == ready["session"])
    await eventually(lambda: session._audio_s > seconds - 0.11)
    connection.transport.abort()
    messages = await reading
    await eventually(lambda: not server.sessions)
    return ready, messages


async def resumed(
    server: Any, ready: dict[str, Any], token: str = "", **other: Any
) -> tuple[list[dict[str, Any]], int | None]:
    """What the session that goes on says to the rest of the audio, and its close code."""
    async with dial(url(server), token) as connection:
        ask = {"type": "start", "session": ready["session"], "secret": ready["secret"], **other}
        await connection.send(json.dumps(ask))
        first = json.loads(await connection.recv())
        if first["type"] == "error":
            await rest(connection)
            return [first], connection.close_code
        assert first["type"] == "ready" and first["resumed"] is True
        reading = asyncio.create_task(rest(connection))
        for chunk in chunks(PCM[first["audio_samples"] * 2 :]):
            await connection.send(chunk)
        await connection.send('{"type":"eof"}')
        messages = [first, *await reading]
    return messages, connection.close_code


def last_seq(messages: list[dict[str, Any]]) -> int:
    return max((m["seq"] for m in messages if "seq" in m), default=0)


def test_a_session_goes_on_where_it_was(tiny_path: Path, tiny: Any) -> None:
    expected = offline(tiny, PCM)

    async def main() -> None:
        async with serving(tiny_path) as server:
            ready, before = await dropped(server)
            after, code = await resumed(server, ready, last_seq=last_seq(before))
            assert code == 1000 and after[0]["session"] == ready["session"]
            assert finals(before + after) == expected

    run(main)


@pytest.mark.parametrize("wrong", ["secret", "session", "both", "empty"])
def test_a_wrong_secret_opens_nothing_and_harms_nothing(tiny_path: Path, tiny: Any, wrong: str) -> None:
    async def main() -> None:
        async with serving(tiny_path) as server:
            ready, before = await dropped(server)
            forged = dict(ready)
            if wrong in ("secret", "both"):
                forged["secret"] = "x" + ready["secret"][1:]
            if wrong in ("session", "both"):
                forged["session"] = "0" * 32
            if wrong == "empty":
                forged["secret"] = "a"
            said, code = await resumed(server, forged)
            assert (said[0]["code"], code) == ("resume", 1008)
            after, code = await resumed(server, ready, last_seq=last_seq(before))  # its owner still can
            assert code == 1000 and finals(before + after) == offline(tiny, PCM)

    run(main)


def test_refusals_do_not_say_which(tiny_path: Path) -> None:
    async def main() -> None:
        async with serving(tiny_path, resume_seconds=0.4) as server:
            ready, _ = await dropped(server)
            said = [
                await resumed(server, {**ready, "secret": "b" * 43}),
                await resumed(server, {**ready, "session": "c" * 32}),
            ]
            await asyncio.sleep(0.5)
            said.append(await resumed(server, ready))  # expired
            said.append(await resumed(server, ready))
            assert len({json.dumps(messages) for messages, _ in said}) == 1

    run(main)


def test_of_two_that_resume_at_once_one_goes_on(tiny_path: Path, tiny: Any) -> None:
    async def main() -> None:
        async with serving(tiny_path) as server:
            ready, before = await dropped(server)
            pair = await asyncio.gather(*(resumed(server, ready, last_seq=last_seq(before)) for _ in range(2)))
            assert sorted(code or 0 for _, code in pair) == [1000, 1008]
            winner = next(messages for messages, code in pair if code == 1000)
            assert finals(before + winner) == offline(tiny, PCM)

    run(main)


def test_a_session_that_is_served_or_finished_cannot_be_resumed(tiny_path: Path) -> None:
    async def main() -> None:
        async with serving(tiny_path) as server:
            async with dial(url(server)) as connection:
                await connection.send('{"type":"start"}')
                ready = await until(connection, "ready")
                assert (await resumed(server, ready))[1] == 1008
                await connection.send('{"type":"eof"}')
                assert (await rest(connection))[-1]["type"] == "done"
            assert (await resumed(server, ready))[1] == 1008

    run(main)


def test_another_token_cannot_take_a_session_over(tiny_path: Path, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("alpha\nbeta\n")

    async def main() -> None:
        async with serving(tiny_path, tokens=str(tmp_path / "tokens")) as server:
            ready, before = await dropped(server, "alpha")
            assert (await resumed(server, ready, "beta"))[1] == 1008
            assert (await resumed(server, ready, "alpha", last_seq=last_seq(before)))[1] == 1000

    run(main)


def test_a_session_goes_on_in_another_server_through_redis(tiny_path: Path, tiny: Any) -> None:
    async def main(address: str) -> None:
        options = {"session_store": address}
        async with serving(tiny_path, **options) as second:
            async with serving(tiny_path, **options) as first:
                ready, before = await dropped(first)
            after, code = await resumed(second, ready, last_seq=last_seq(before))  # the first is gone
            assert code == 1000 and finals(before + after) == offline(tiny, PCM)
            assert (await resumed(second, ready))[1] == 1008

    with running_redis() as address:
        run(lambda: main(address))


def test_a_store_that_is_away_costs_the_resume_and_nothing_else(tiny_path: Path, tiny: Any) -> None:
    async def main() -> None:
        with running_redis() as address:
            pass  # and gone
        async with serving(tiny_path, session_store=address) as server:
            ready, _ = await dropped(server)
            said, code = await resumed(server, ready)
            assert said[0]["code"] in ("store", "resume") and code in (1008, 1011)
            assert finals(await stream(url(server), PCM)) == offline(tiny, PCM)

    run(main)


def test_redis_holds_no_secret_and_forgets(tiny_path: Path) -> None:
    async def main(address: str) -> None:
        from redis.asyncio import Redis

        async with serving(tiny_path, session_store=address, resume_seconds=30.0) as server:
            ready, _ = await dropped(server)
            redis = Redis.from_url(address)
            (key,) = await redis.keys("*")
            value = await redis.get(key)
            assert ready["secret"].encode() not in key + value
            assert 0 < await redis.pttl(key) <= 30_000
            assert len(value) < 1_000_000
            await redis.aclose()

    with running_redis() as address:
        run(lambda: main(address))
