"""One connection: a protocol adapter, an engine session and a transport, joined.

The adapter (pure) says what is to be done, the session does it: it reads, feeds the engine, writes, watches the limits,
and puts the session away when its connection drops. Sockets, clock, engine and store are given, so it runs in tests
without any of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from asr.engine import Event
from server.limits import Limits
from server.protocols import Adapter


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
    """What happens to sessions, for metrics and logs: does nothing; override what is wanted. Must not raise or block."""

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


class Session:
    """Attributes: ``id`` (of the session; a resumed one has that of its first connection), ``protocol`` ("stream",
    "vosk" or "deepgram"), ``owner``."""

    def __init__(
        self,
        adapter: Adapter,
        transport: Transport,
        engine: Any,
        limits: Limits,
        *,
        store: Store | None = None,
        observer: Observer | None = None,
        clock: Clock | None = None,
        owner: str = "",
    ) -> None:
        """``engine``: an :class:`asr.engine.Engine`. ``owner``: who the client is (a name of its token, not the token
        itself): only the same owner can resume. Without a ``store`` nothing is kept after a drop."""
        raise NotImplementedError

    async def run(self) -> Summary:
        """Serve the connection to its end. Raises nothing for what a client or the engine does; cancelled, it closes
        the engine session."""
        raise NotImplementedError

    def warn_lagging(self, lag_ms: float) -> None:
        """Tell the client, in its protocol, that the server is late (at most every five seconds)."""
        raise NotImplementedError

    async def drain(self, park: bool = True) -> None:
        """End it from outside, nothing lost: with ``park`` a session that can be resumed is put into the store, any
        other is finished and gets its last results; then close 1001. Returns at once; :meth:`run` ends soon."""
        raise NotImplementedError
