"""A server in small for the tests of sessions: connections without sockets, a store in a dict, any engine."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from fake_engine import FakeEngine
from wire import SESSION

from asr.engine import Event
from asr.errors import AsrError
from server.limits import Limits
from server.protocols import Context, adapter_for
from server.session import Dropped, Observer, Session, Summary

EOF = '{"type":"eof"}'
RAW = "encoding=linear16&sample_rate=16000"


class FakeTransport:
    """A connection: the test puts messages into it and reads what came out. ``stuck``: the client does not read."""

    def __init__(self) -> None:
        self.incoming: asyncio.Queue[str | bytes | None] = asyncio.Queue()
        self.sent: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.closed: tuple[int, str] | None = None
        self.stuck = False
        self.gone = asyncio.Event()

    def say(self, *messages: str | bytes) -> None:
        for message in messages:
            self.incoming.put_nowait(message)

    def drop(self) -> None:
        self.incoming.put_nowait(None)
        self.gone.set()

    async def recv(self) -> str | bytes:
        message = await self.incoming.get()
        if message is None:
            raise Dropped
        return message

    async def send(self, message: str) -> None:
        if self.stuck:
            await self.gone.wait()
        if self.gone.is_set():
            raise Dropped
        self.sent.put_nowait(json.loads(message))
        await asyncio.sleep(0)

    async def close(self, code: int, reason: str) -> None:
        if self.gone.is_set():
            raise Dropped
        self.closed = (code, reason)

    async def until(self, kind: str) -> dict[str, Any]:
        """The next message of that type; those before it are passed over."""
        while True:
            message = await self.sent.get()
            if message.get("type") == kind:
                return message

    def rest(self) -> list[dict[str, Any]]:
        return [self.sent.get_nowait() for _ in range(self.sent.qsize())]


class FakeStore:
    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.broken = False

    async def put(self, key: str, value: bytes, ttl_s: float) -> None:
        if self.broken:
            error = AsrError("the store is gone")
            error.code = "store"
            raise error
        self.values[key] = value

    async def take(self, key: str) -> bytes | None:
        await asyncio.sleep(0)
        return self.values.pop(key, None)


class Witness(Observer):
    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.bytes = 0

    def opened(self, protocol: str, session: str, resumed: bool) -> None:
        self.seen.append(("opened", protocol, session, resumed))

    def event(self, event: Event) -> None:
        self.seen.append(type(event).__name__)

    def audio(self, n_bytes: int, seconds: float) -> None:
        self.bytes += n_bytes

    def error(self, code: str) -> None:
        self.seen.append(("error", code))

    def closed(self, code: int, reason: str) -> None:
        self.seen.append(("closed", code))

    def note(self, kind: str, **values: Any) -> None:
        self.seen.append((kind, values))


class House:
    """A server in small: one engine, one store, any number of connections."""

    def __init__(self, engine: Any = None, **limits: Any) -> None:
        self.engine, self.store, self.witness = engine or FakeEngine(), FakeStore(), Witness()
        self.limits = Limits(**{"resume_wait_seconds": 0.3, "close_seconds": 2.0, **limits})
        self.count = 0

    def connect(
        self, path: str = "/v1/stream", query: str = "", owner: str = "", store: bool = True
    ) -> tuple[FakeTransport, Session, "asyncio.Task[Summary]"]:
        self.count += 1
        name = f"{int(SESSION, 16) + self.count:032x}"
        context = Context(self.engine.info, self.limits, name, f"secret {self.count}", "2026-11-21T08:00:00Z", store)
        transport = FakeTransport()
        kept = self.store if store else None
        session = Session(adapter_for(path, query, context), transport, self.engine, self.limits, store=kept,
                          observer=self.witness, owner=owner)  # fmt: skip
        return transport, session, asyncio.create_task(session.run())


def within(seconds: float, test: Callable[[], Awaitable[None]]) -> None:
    """Run a test; one that would hang fails."""

    async def limited() -> None:
        async with asyncio.timeout(seconds):
            await test()

    asyncio.run(limited())


def start(**keys: Any) -> str:
    return json.dumps({"type": "start", **keys})


def text_of(messages: list[dict[str, Any]]) -> str:
    return " ".join(m["text"] for m in messages if m.get("type") == "final" and m["reason"] != "flush")
