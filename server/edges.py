"""What a session stands between: a connection, a store, a clock, and whoever watches. All are injected."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any, Protocol

from asr.engine import Event


class Dropped(Exception):
    """Raised by a :class:`Transport` when the connection is gone, with or without a closing handshake of the client."""


class Transport(Protocol):
    """One WebSocket connection, whatever carries it. Any call may raise :class:`Dropped`."""

    async def recv(self) -> str | bytes:
        """The next message whole: text as str, binary as bytes. Cancelling it loses no message."""

    async def send(self, message: str) -> None:
        """Returns when the message is in the hands of the network; waits while the client does not read."""

    async def close(self, code: int, reason: str) -> None:
        """Closing handshake. ``reason`` is at most 123 bytes of UTF-8."""


class Store(Protocol):
    """Where dropped sessions wait. Keys are opaque and hold no secret in clear. May raise AsrError (code "store")."""

    async def put(self, key: str, value: bytes, ttl_s: float) -> None:
        """Keep ``value`` for ``ttl_s`` seconds."""

    async def take(self, key: str) -> bytes | None:
        """Remove and return: of two takers at once, one gets it. None: never there, expired, or taken."""


class Observer:
    """What happens to sessions, for metrics and logs: does nothing here. Methods must not raise or block."""

    def opened(self, protocol: str, session: str, resumed: bool) -> None:
        """The engine has taken the session in."""

    def event(self, event: Event) -> None:
        """The engine said something."""

    def audio(self, n_bytes: int, seconds: float) -> None:
        """Audio came: bytes given to the engine, and how long they last."""

    def sent(self, n_bytes: int) -> None:
        """A message has left."""

    def error(self, code: str) -> None:
        """The session ends with a code of the error table."""

    def closed(self, code: int, reason: str) -> None:
        """The connection is gone: its close code (1006: it dropped)."""

    def parked(self, n_bytes: int) -> None:
        """The session waits in the store."""

    def note(self, kind: str, **values: Any) -> None:
        """Anything else worth a line in the log."""


class Clock(Protocol):
    """Time, injected. :class:`SystemClock` is the real one."""

    def now(self) -> float:
        """Monotonic seconds."""

    async def sleep(self, seconds: float) -> None:
        """As asyncio.sleep."""


class SystemClock:
    """The real one."""

    def now(self) -> float:
        """Monotonic seconds."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """As asyncio.sleep."""
        await asyncio.sleep(seconds)


@dataclass(frozen=True)
class Summary:
    """What became of a connection. ``error``: a code of the error table, "" for none; ``close_code``: 1006 where it
    dropped; ``parked``: it can be resumed."""

    session: str
    protocol: str
    error: str
    close_code: int
    audio_s: float
    segments: int
    words: int
    bytes_in: int
    resumed: bool
    parked: bool
    wall_s: float
