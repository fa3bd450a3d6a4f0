"""Clients that are broken, slow or hostile: each gets a result or a typed error, and no other session notices."""

import asyncio
import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from serving import (
    RATE,
    chunks,
    dial,
    engine_of,
    eventually,
    finals,
    get,
    listen,
    listen_text,
    offline,
    rest,
    run,
    serving,
    settings,
    speech,
    stream,
    until,
    url,
    vosk,
)
from websockets.exceptions import ConnectionClosed

from server.app import Server

UPGRADE = (
    b"GET /v1/stream HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
CLIENT = """
    import asyncio, sys
    from websockets.asyncio.client import connect

    async def main():
        async with connect(sys.argv[1], proxy=None) as connection:
            await connection.send('{"type":"start"}')
            print(await connection.recv(), flush=True)
            while True:
                await connection.send(sys.stdin.buffer.read(3200))
                await asyncio.sleep(0.02)

    asyncio.run(main())
"""


def test_kill_9_of_a_client_in_mid_word_leaves_the_others_alone(tiny_path: Path, tiny: Any) -> None:
    pcm = speech(6, seed=1)

    async def main() -> None:
        async with serving(tiny_path, resume_seconds=30.0) as server:
            command = [sys.executable, "-c", textwrap.dedent(CLIENT), url(server)]
            doomed = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            assert doomed.stdin and doomed.stdout
            os.set_blocking(doomed.stdin.fileno(), False)
            with contextlib.suppress(BlockingIOError):
                doomed.stdin.write(speech(60, seed=9))
                doomed.stdin.flush()
            async with dial(url(server)) as other:
                await other.send('{"type":"start"}')
                half = chunks(pcm)[:30]
                for chunk in half:
                    await other.send(chunk)
                ready = json.loads(await asyncio.to_thread(doomed.stdout.readline))
                await eventually(lambda: len(server.sessions) == 2)
                session = next(s for s in server.sessions if s.id == ready["session"])
                await eventually(lambda: session._audio_s > 0.3)
                doomed.kill()
                doomed.wait(10)
                await eventually(lambda: len(server.sessions) == 1 and server.seats.taken == 1)
                assert len(server.store) == 1  # it can be resumed
                for chunk in chunks(pcm)[30:]:
                    await other.send(chunk)
                await other.send('{"type":"eof"}')
                assert finals(await rest(other)) == offline(tiny, pcm)
            assert server.engine.load.sessions == 0

    run(main)


def test_a_half_open_connection_is_found_by_pings(tiny_path: Path) -> None:
    async def main() -> None:
        async with serving(tiny_path, ping_seconds=0.3) as server:
            # A client that vanishes without a word: its socket is open, and nobody answers.
            sock = socket.create_connection(("127.0.0.1", server.port))
            sock.sendall(UPGRADE)
            await eventually(lambda: server.seats.taken == 1)
            await eventually(lambda: server.seats.taken == 0 and not server.sessions)
            sock.close()

    run(main)


def test_a_handshake_that_never_ends_is_cut(tiny_path: Path) -> None:
    async def main() -> None:
        async with serving(tiny_path, open_seconds=0.3) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(b"GET /v1/stream HTTP/1.1\r\nHost: x\r\n")
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
            writer.close()

    run(main)


def test_a_client_that_never_reads_is_closed_with_a_reason(tiny_path: Path, tiny: Any) -> None:
    pcm = speech(4, seed=7)

    async def main() -> None:
        async with engine_of(tiny_path) as engine:
            listener = socket.create_server(("127.0.0.1", 0))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # little waits in the system
            server = Server(settings(max_unread=20, send_seconds=1.0), engine)
            await server.start(listener)
            deaf = socket.socket()
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            deaf.settimeout(5)
            deaf.connect(("127.0.0.1", server.port))
            deaf.sendall(UPGRADE)
            await eventually(lambda: len(server.sessions) == 1)
            sound = masked(speech(60, seed=8)[:64000])
            deaf.setblocking(False)
            other = asyncio.create_task(stream(url(server), pcm))
            async with asyncio.timeout(40):  # it sends, and its many partial results are not read
                while server.sessions:
                    with contextlib.suppress(OSError):
                        await asyncio.get_running_loop().sock_sendall(deaf, sound)
                    await asyncio.sleep(0.01)
            assert finals(await other) == offline(tiny, pcm)
            assert 'asr_errors_total{code="unread"} 1.0' in server.metrics.text().decode()
            deaf.close()
            await server.close()

    run(main)


def masked(payload: bytes, text: bool = False) -> bytes:
    """One WebSocket frame of a client, masked with zeros (RFC 6455, 5.2)."""
    head = bytes([0x81 if text else 0x82])
    size = len(payload)
    length = (
        bytes([0x80 | size])
        if size < 126
        else b"\xfe" + size.to_bytes(2, "big")
        if size < 65536
        else b"\xff" + size.to_bytes(8, "big")
    )
    return head + length + bytes(4) + payload


async def ending(server: Any, *messages: str | bytes, path: str = "/v1/stream") -> tuple[int | None, list[Any]]:
    """The close code, and all messages, of a connection that says ``messages``."""
    async with dial(url(server, path)) as connection:
        with contextlib.suppress(ConnectionClosed):
            for message in messages:
                await connection.send(message)
        found = await rest(connection)
    return connection.close_code, found


@pytest.mark.parametrize(
    "message, code, close",
    [
        ("hello", "json", 1007),
        ("[]", "json", 1007),
        ('{"type":"start","sample_rate":NaN}', "json", 1007),
        ('{"type":"start","type":"start"}', "json", 1007),
        ("[" * 5000, "json", 1007),
        ('{"type":"dance"}', "message", 1008),
        ('{"type":"start","sample_rat":8000}', "config", 1008),
        ('{"type":"start","sample_rate":"8000"}', "config", 1008),
        ('{"type":"start","sample_rate":1}', "audio", 1003),
        ('{"type":"start","encoding":"opus"}', "encoding", 1003),
        ('{"type":"start","session":"../../etc/passwd","secret":"x"}', "resume", 1008),
        ('{"type":"start","hotwords":[{"text":"x","boost":1e999}]}', "json", 1007),
    ],
)
def test_bad_messages_get_a_typed_error_and_a_close_code(tiny_path: Path, message: str, code: str, close: int) -> None:
    async def main() -> None:
        async with serving(tiny_path) as server:
            closed, found = await ending(server, message)
            assert (found[-1]["type"], found[-1]["code"], closed) == ("error", code, close)
            assert "\n" not in found[-1]["message"]
            await eventually(lambda: not server.sessions)
            assert f'asr_errors_total{{code="{code}"}} 1.0' in server.metrics.text().decode()

    run(main)


@pytest.mark.parametrize("path", ["/v1/stream", "/vosk", f"/v1/listen?encoding=linear16&sample_rate={RATE}"])
def test_frames_that_are_too_large_close_with_1009(tiny_path: Path, path: str) -> None:
    async def main() -> None:
        async with serving(tiny_path, max_frame_bytes=10_000, max_text_bytes=10_000) as server:
            assert (await ending(server, bytes(10_001), path=path))[0] == 1009
            assert (await ending(server, bytes(1_000_000), path=path))[0] == 1009  # by the library, before it is read
            assert (await ending(server, '{"type":"' + "x" * 1_000_000 + '"}', path=path))[0] == 1009
            await eventually(lambda: not server.sessions)
            assert 'asr_errors_total{code="too_large"} 3.0' in server.metrics.text().decode()

    run(main)


def test_text_that_is_not_utf8_closes_with_1007(tiny_path: Path) -> None:
    async def main() -> None:
        async with serving(tiny_path) as server:
            async with dial(url(server)) as connection:
                await connection.send(b"\xff\xfe{}", text=True)
                await rest(connection)
                assert connection.close_code == 1007
            await eventually(lambda: not server.sessions)
            assert 'asr_errors_total{code="json"} 1.0' in server.metrics.text().decode()

    run(main)


@pytest.mark.parametrize(
    "model", ["../../etc/passwd", "/etc/passwd", "tiny/../..", "file:///etc/passwd", "\u0000", "en\n"]
)
def test_a_model_is_a_name_and_never_a_path(tiny_path: Path, tiny: Any, model: str) -> None:
    pcm = speech(2, seed=2)

    async def main() -> None:
        async with serving(tiny_path) as server:
            async with dial(url(server, "/vosk")) as connection:
                await connection.send(json.dumps({"config": {"model": model, "sample_rate": RATE}}))
                await connection.send(pcm[:3200])
                answers = await asyncio.gather(connection.recv(), return_exceptions=True)
            assert isinstance(answers[0], str | ConnectionClosed) and "root:" not in str(answers[0])
            query = f"/v1/listen?encoding=linear16&sample_rate={RATE}&model={quote(model)}"
            assert listen_text(await listen(url(server, query), pcm)) == offline(tiny, pcm)
            code, found = await ending(server, json.dumps({"type": "start", "model": model}))
            assert code == 1008 and found[-1]["code"] == "config"  # no such option

    run(main)


def test_text_where_audio_is_expected(tiny_path: Path) -> None:
    async def main() -> None:
        async with serving(tiny_path) as server:
            code, found = await ending(server, '{"type":"start"}', bytes(3200), "this is not audio")
            assert code == 1007 and found[-1]["type"] == "error"
            assert (await ending(server, bytes(3200), "this is not audio", path="/vosk"))[0] in (1007, 1008)
            listen_path = f"/v1/listen?encoding=linear16&sample_rate={RATE}"
            assert (await ending(server, bytes(3200), "this is not audio", path=listen_path))[0] in (1007, 1008, 1011)
            assert (await get(server.port, "/readyz"))[0] == 200

    run(main)


def test_noise_on_every_path_never_breaks_the_server(tiny_path: Path, tiny: Any) -> None:
    """Random frames of both kinds, valid and not, then a normal session."""
    rng = random.Random(11)
    words = [
        '{"type":',
        '"start"',
        "}",
        '{"eof":1}',
        '{"reset":1}',
        '{"type":"Finalize"}',
        "null",
        "\\u0000",
        "{",
        "[1,",
        '"',
    ]

    def message() -> str | bytes:
        if rng.random() < 0.5:
            return rng.randbytes(rng.choice([0, 1, 3, 640, 5000]))
        return "".join(rng.choices(words, k=rng.randrange(5)))

    async def main() -> None:
        paths = ["/v1/stream", "/vosk", "/", "/v1/listen", f"/v1/listen?encoding=linear16&sample_rate={RATE}"]
        async with serving(tiny_path) as server:
            for _ in range(8):
                batch = [
                    ending(
                        server,
                        *(message() for _ in range(6)),
                        '{"eof":1}',
                        '{"type":"eof"}',
                        '{"type":"CloseStream"}',
                        path=path,
                    )
                    for path in paths
                ]
                for code, _ in await asyncio.gather(*batch):
                    assert code in (1000, 1003, 1007, 1008, 1009, 1011), code
            pcm = speech(2, seed=3)
            assert finals(await stream(url(server), pcm)) == offline(tiny, pcm)
            await eventually(lambda: not server.sessions and not server.seats.taken)
            assert 'asr_errors_total{code="error"}' not in server.metrics.text().decode()  # no bug of ours

    run(main)


def test_a_session_that_says_nothing_is_ended(tiny_path: Path) -> None:
    async def main() -> None:
        async with serving(tiny_path, idle_seconds=0.3) as server:
            code, found = await ending(server, '{"type":"start"}')
            assert code == 1008 and found[-1]["code"] == "idle"
            code, found = await ending(server)
            assert code == 1008

    run(main)


def test_the_longest_session_gets_its_results(tiny_path: Path) -> None:
    pcm = speech(3, seed=8)

    async def main() -> None:
        async with serving(tiny_path, max_session_seconds=0.8) as server:
            async with dial(url(server)) as connection:
                await connection.send('{"type":"start","endpointing":false}')
                for chunk in chunks(pcm):
                    await connection.send(chunk)
                found = await rest(connection)
            assert connection.close_code == 1008 and found[-1]["code"] == "limit" and finals(found)

    run(main)


class Broken:
    """An engine whose worker fails in one session's step, and whose sessions raise on demand."""

    def __init__(self, engine: Any) -> None:
        self._engine, self.fail_open = engine, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def open(self, config: Any, state: bytes | None = None) -> Any:
        if self.fail_open:
            raise ZeroDivisionError("a bug")
        return await self._engine.open(config, state)


def test_a_bug_in_one_session_ends_that_one_alone(tiny_path: Path, tiny: Any) -> None:
    pcm = speech(4, seed=3)

    async def main() -> None:
        async with engine_of(tiny_path) as engine:
            broken = Broken(engine)
            async with serving(tiny_path, engine=broken) as server, dial(url(server)) as running:
                await running.send('{"type":"start"}')
                await until(running, "ready")
                broken.fail_open = True
                code, found = await ending(server, '{"type":"start"}')
                assert code == 1011 and "ZeroDivision" not in str(found)
                broken.fail_open = False
                for chunk in chunks(pcm):
                    await running.send(chunk)
                await running.send('{"type":"eof"}')
                assert finals(await rest(running)) == offline(tiny, pcm)

    run(main)


def test_vosk_answers_each_frame_once_even_the_smallest(tiny_path: Path) -> None:
    async def main() -> None:
        async with serving(tiny_path) as server:
            answers = await vosk(url(server, "/vosk"), speech(0.01, seed=1), 1)
            assert len(answers) == 320 + 1

    run(main)
