"""A server on a real socket with the tiny model, and small clients of its three protocols."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
from tiny_model import babble
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from asr.engine import Engine
from server.app import Server
from server.config import ServerConfig, load_config

SECONDS = 60.0  # no test takes longer
RATE = 16000
CHUNK = RATE // 10 * 2  # bytes of 100 ms


def run(main: Callable[[], Coroutine[Any, Any, Any]], seconds: float = SECONDS) -> Any:
    """Run a test's coroutine; it fails when it would hang."""

    async def limited() -> Any:
        async with asyncio.timeout(seconds):
            return await main()

    return asyncio.run(limited())


def speech(seconds: float, seed: int = 0, rate: int = RATE) -> bytes:
    """Sound in which the tiny model hears words: s16le mono."""
    return (babble(seconds, seed, rate) * 32767).astype("<i2").tobytes()


def offline(recognizer: Any, pcm: bytes, rate: int = RATE, **options: Any) -> str:
    """What the recogniser hears in ``pcm`` when it is given all at once."""
    samples = np.frombuffer(pcm, "<i2").astype(np.float32) / 32768
    return str(recognizer.transcribe(samples, sample_rate=rate, **options).text)


def settings(**options: Any) -> ServerConfig:
    """A configuration for tests: any free port, short waits."""
    short = {"port": 0, "close_seconds": 1.0, "drain_seconds": 5.0, "resume_wait_seconds": 0.3}
    return load_config({**short, **options}, {})


@contextlib.asynccontextmanager
async def engine_of(model: Path, slots: int = 100) -> AsyncIterator[Engine]:
    """The real engine, in a thread of this process."""
    engine = await Engine.start(str(model), in_thread=True, slots=slots)
    try:
        yield engine
    finally:
        await engine.close()


@contextlib.asynccontextmanager
async def serving(model: Path, *, engine: Any = None, store: Any = None, **options: Any) -> AsyncIterator[Server]:
    """A server, with an engine of its own unless one is given."""
    async with contextlib.AsyncExitStack() as stack:
        engine = engine or await stack.enter_async_context(engine_of(model))
        server = Server(settings(**options), engine, store=store)
        await server.start()
        stack.push_async_callback(server.close)
        yield server


def url(server: Server | int, path: str = "/v1/stream", tls: bool = False) -> str:
    """Its address."""
    port = server if isinstance(server, int) else server.port
    return f"{'wss' if tls else 'ws'}://127.0.0.1:{port}{path}"


def dial(address: str, token: str = "", **options: Any) -> connect:
    """A connection of the websockets library, with a token where one is given."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return connect(address, additional_headers=headers, proxy=None, **{"compression": None, **options})


async def get(
    port: int, target: str, method: str = "GET", raw: bytes | None = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """A plain HTTP request: status, headers (lower case) and body of its answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    lines = [f"{method} {target} HTTP/1.1", "Host: test", *(f"{k.replace('_', '-')}: {v}" for k, v in headers.items())]
    writer.write(raw if raw is not None else ("\r\n".join(lines) + "\r\n\r\n").encode())
    answer = await reader.read()
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *rest = head.decode("latin-1").split("\r\n") if head else ["HTTP/1.1 0"]
    return int(first.split()[1]), {k.lower(): v for k, _, v in (line.partition(": ") for line in rest)}, body


def chunks(pcm: bytes, size: int = CHUNK) -> list[bytes]:
    """``pcm`` in pieces."""
    return [pcm[at : at + size] for at in range(0, len(pcm), size)]


async def rest(connection: ClientConnection) -> list[dict[str, Any]]:
    """All messages until the connection is closed, however it is."""
    found = []
    with contextlib.suppress(ConnectionClosed):
        while True:
            found.append(json.loads(await connection.recv()))
    return found


async def until(connection: ClientConnection, *kinds: str) -> dict[str, Any]:
    """The next message whose type is one of ``kinds``."""
    while True:
        message = json.loads(await connection.recv())
        if message["type"] in kinds:
            return dict(message)


def finals(messages: list[dict[str, Any]]) -> str:
    """The text of /v1/stream's final messages."""
    return " ".join(m["text"] for m in messages if m["type"] == "final" and m["text"])


async def stream(address: str, pcm: bytes, size: int = CHUNK, token: str = "", **start: Any) -> list[dict[str, Any]]:
    """All that /v1/stream says to ``pcm``, sent as fast as it is taken."""
    async with dial(address, token) as connection:
        await connection.send(json.dumps({"type": "start", **start}))
        reading = asyncio.create_task(rest(connection))
        for chunk in chunks(pcm, size):
            await connection.send(chunk)
        await connection.send('{"type": "eof"}')
        messages = await reading
        assert connection.close_code == 1000, (connection.close_code, connection.close_reason, messages[-1:])
        assert messages[0]["type"] == "ready" and messages[-1]["type"] == "done"
        return messages


async def vosk(address: str, pcm: bytes, size: int = CHUNK, **config: Any) -> list[dict[str, Any]]:
    """The sequence of vosk-server's own example clients: a frame, exactly one answer, ..., eof, the last answer."""
    found = []
    async with dial(address) as connection:
        await connection.send(json.dumps({"config": {"sample_rate": RATE, **config}}))
        for chunk in chunks(pcm, size):
            await connection.send(chunk)
            found.append(json.loads(await connection.recv()))
        await connection.send('{"eof" : 1}')
        found.append(json.loads(await connection.recv()))
        found += await rest(connection)
        assert connection.close_code == 1000
    return found


def vosk_text(messages: list[dict[str, Any]]) -> str:
    """The text of its results."""
    return " ".join(m["text"] for m in messages if m.get("text"))


async def listen(address: str, pcm: bytes, size: int = CHUNK) -> list[dict[str, Any]]:
    """All that /v1/listen says to ``pcm``."""
    async with dial(address) as connection:
        reading = asyncio.create_task(rest(connection))
        for chunk in chunks(pcm, size):
            await connection.send(chunk)
        await connection.send('{"type": "CloseStream"}')
        messages = await reading
        assert connection.close_code == 1000
    return messages


def listen_text(messages: list[dict[str, Any]]) -> str:
    """The text of its final Results."""
    texts = [
        m["channel"]["alternatives"][0]["transcript"] for m in messages if m["type"] == "Results" and m["is_final"]
    ]
    return " ".join(text for text in texts if text)


async def eventually(true: Callable[[], Any], seconds: float = 30.0) -> None:
    """Wait until ``true()`` holds; a test fails where it does not."""
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.01)
