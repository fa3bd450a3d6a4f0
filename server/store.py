"""Where the state of dropped sessions waits for its client: in this process's memory or in Redis.

A value is a string of bytes that the store does not look into; nothing is ever unpickled. Keys are what the session
makes of its name and the hash of its secret, so who does not know both finds nothing. ``take`` gives a value to one
taker alone. A store that fails costs a resume and never a running session: it raises :class:`StoreError`.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Protocol

from asr.errors import AsrError, ConfigError
from server.config import mask

PREFIX = "asr:session:"
REDIS_SECONDS = 5.0  # the longest that one command may take
MOST_BYTES = 64_000_000  # of one session; the state of a usual one is some tens of kilobytes


class StoreError(AsrError):
    """The store cannot be reached or cannot hold the value."""

    code = "store"


class Store(Protocol):
    """What a session needs of a store."""

    shared: bool  # whether it outlives this process

    async def put(self, key: str, value: bytes, ttl_s: float) -> None:
        """Keep ``value`` for ``ttl_s`` seconds. :class:`StoreError` if that cannot be."""

    async def take(self, key: str) -> bytes | None:
        """The value, which is then gone; None if there is none (never was, taken, expired, made room)."""

    async def ping(self) -> None:
        """:class:`StoreError` unless it can be used."""

    async def close(self) -> None:
        """Let go of connections."""


class MemoryStore:
    """A bounded dictionary. When ``most_bytes`` are exceeded the oldest values go first."""

    shared = False

    def __init__(self, most_bytes: int = 256_000_000, clock: Callable[[], float] = time.monotonic) -> None:
        self.most_bytes, self._clock = most_bytes, clock
        self._items: OrderedDict[str, tuple[float, bytes]] = OrderedDict()  # key -> expires at, value
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._items)

    async def put(self, key: str, value: bytes, ttl_s: float) -> None:
        """As :class:`Store`; a value larger than the whole store is refused."""
        self._forget(key)
        if len(value) > self.most_bytes:
            raise StoreError(f"a session of {len(value)} bytes does not fit into a store of {self.most_bytes}")
        self._items[key] = (self._clock() + ttl_s, bytes(value))
        self.bytes += len(value)
        self._tidy()

    async def take(self, key: str) -> bytes | None:
        """As :class:`Store`."""
        expires, value = self._forget(key) or (0.0, b"")
        self._tidy()
        return value if expires > self._clock() else None

    async def ping(self) -> None:
        """As :class:`Store`: always there. What has expired goes."""
        self._tidy()

    async def close(self) -> None:
        """Forget everything."""
        self._items.clear()
        self.bytes = 0

    def _forget(self, key: str) -> tuple[float, bytes] | None:
        item = self._items.pop(key, None)
        self.bytes -= len(item[1]) if item else 0
        return item

    def _tidy(self) -> None:
        now = self._clock()
        for key in [key for key, (expires, _) in self._items.items() if expires <= now]:
            self._forget(key)
        while self.bytes > self.most_bytes:
            self._forget(next(iter(self._items)))


class RedisStore:
    """A Redis server, so that a session may go on in another process or on another machine.

    ``url``: redis://[:PASSWORD@]HOST:PORT/DB, or rediss:// for TLS. Needs Redis 6.2 (GETDEL) and the extra ``redis``.
    """

    shared = True

    def __init__(self, url: str, prefix: str = PREFIX, seconds: float = REDIS_SECONDS) -> None:
        try:
            from redis.asyncio import Redis
        except ImportError:
            raise ConfigError("sessions in Redis need its client: pip install 'asr[redis]'") from None
        self._name, self._prefix, self._seconds = mask(url), prefix, seconds
        try:
            self._redis = Redis.from_url(url, socket_timeout=seconds, socket_connect_timeout=seconds)
        except ValueError as error:
            raise ConfigError(f"session_store {self._name}: {error}") from None

    async def put(self, key: str, value: bytes, ttl_s: float) -> None:
        """As :class:`Store`."""
        if len(value) > MOST_BYTES:
            raise StoreError(f"a session of {len(value)} bytes is larger than {MOST_BYTES}")
        await self._do(self._redis.set(self._prefix + key, value, px=max(1, round(ttl_s * 1000))))

    async def take(self, key: str) -> bytes | None:
        """As :class:`Store`; one command, which Redis runs as a whole."""
        value: bytes | None = await self._do(self._redis.getdel(self._prefix + key))
        return value

    async def ping(self) -> None:
        """As :class:`Store`."""
        await self._do(self._redis.ping())

    async def close(self) -> None:
        """As :class:`Store`."""
        await self._redis.aclose()

    async def _do(self, command: Any) -> Any:
        from redis.exceptions import RedisError

        try:
            async with asyncio.timeout(self._seconds):
                return await command
        except (RedisError, OSError, TimeoutError) as error:
            text = " ".join(str(error).split()) or type(error).__name__
            raise StoreError(f"the session store {self._name} does not answer: {text}") from None


def make_store(url: str, most_bytes: int) -> MemoryStore | RedisStore:
    """The store that the option ``session_store`` names."""
    return MemoryStore(most_bytes) if url == "memory" else RedisStore(url)
