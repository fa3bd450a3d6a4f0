"""The asynchronous client: one stream, over as many connections as it takes."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import ssl as tls
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator
from types import TracebackType
from typing import Any

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from asr.errors import AsrError, StateError, UsageError
from asr.results import Partial, Segment, Transcript
from client import messages
from client.dial import Dropped, dial, hang_up, unreachable
from client.errors import (
    AGAIN,
    ANEW,
    ClientError,
    ConnectError,
    ConnectionLost,
    ServerError,
    closed_error,
    server_error,
)
from client.messages import Done, Notice, Ready
from client.settings import Settings, Timeouts, wire_options
from client.uplink import Uplink

MOST_UNREAD = 10_000  # final results and notices that wait to be read
PIECE_S = 0.5  # of audio that enters the buffer at once
FIRST_DELAY_S, MOST_DELAY_S = 0.2, 5.0  # between attempts to connect
MOST_RETRY_AFTER_S = 30.0
TOLD_S = 5.0  # of lost audio are told at once, less of it when the connection stands again
FRUITLESS = 5  # new sessions in a row that end before they have heard anything

Result = Partial | Segment | Notice


def connect(
    url: str,
    *,
    token: str = "",
    sample_rate: int = 16000,
    encoding: str = "pcm_s16le",
    channels: int = 1,
    channel: int | None = None,
    partials: bool = True,
    words: bool = True,
    hotwords: Any = None,
    endpointing: Any = None,
    lm: bool | None = None,
    alternatives: int | None = None,
    buffer_seconds: float = 60.0,
    when_full: str = "wait",
    reconnect: bool = True,
    timeouts: Timeouts | None = None,
    ssl: tls.SSLContext | None = None,
    proxy: str | bool = True,
) -> Stream:
    """A stream to the server at ``url`` (``ws://host:port``, ``wss://host``), for ``async with``, which connects.

    ``sample_rate`` (Hz, 8000 to 48000), ``encoding`` (pcm_s16le, pcm_f32le, mulaw, alaw), ``channels`` (interleaved),
    ``channel`` (the one to hear; None: their mean): of the audio that :meth:`Stream.send` will get. ``hotwords``,
    ``endpointing``, ``lm``, ``alternatives``: as :meth:`asr.Recognizer.stream` takes them. ``buffer_seconds``: audio
    kept until it cannot be needed again; when that much waits to be sent, ``when_full="wait"`` makes ``send`` wait, and
    "drop" gives up the oldest, for live sound that cannot wait; what is lost is counted. ``ssl``: for ``wss`` with a
    certificate of one's own.

    Raises UsageError, ConfigError or AudioError for settings that cannot be; entering the context raises ConnectError
    or ServerError (:class:`~client.errors.AuthError`, :class:`~client.errors.FullError`, ...).
    """
    options = wire_options(hotwords, endpointing, lm, alternatives)
    return Stream(
        Settings(
            url, token, sample_rate, encoding, channels, channel, partials, words, options, buffer_seconds, when_full,
            reconnect, timeouts or Timeouts(), ssl, proxy,
        )
    )  # fmt: skip


class Stream:
    """Made by :func:`connect`. Send audio from one task and iterate results in another, or first one, then the other.

    Attributes: ``ready`` (of the session that is served now), ``done`` (after the end), ``reconnects`` (connections
    made again), ``lag_ms`` (of the last partial result, as the server measures it).
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.ready: Ready | None = None
        self.done: Done | None = None
        self.reconnects = 0
        self.lag_ms = 0.0
        self._segments: list[Segment] = []
        self._up = Uplink(settings.format, settings.sample_rate, settings.buffer_seconds, settings.partials)
        self._options = dict(settings.options)
        self._first = 0  # number of the session's first segment
        self._seq = 0
        self._ids = itertools.count(1)
        self._results: deque[Result] = deque()
        self._unread = 0
        self._flushes: dict[str, tuple[asyncio.Future[tuple[Segment, ...]], dict[int, Segment]]] = {}
        self._changes: dict[int, asyncio.Future[dict[str, Any]]] = {}  # by the id of their control
        self._error: AsrError | None = None
        self._over = False
        self._wake = asyncio.Event()  # something may be sent
        self._news = asyncio.Event()  # something may be read, or there is room
        self._task: asyncio.Task[None] | None = None
        self._held: Segment | None = None  # final of a session that the server ended
        self._loss: Notice | None = None  # not told yet
        self._limit: asyncio.Timeout | None = None  # of the wait for the server's next message
        self._fruitless = 0
        self._furthest = 0  # that any session has decoded
        self._broken_at: float | None = None

    # --- life

    async def __aenter__(self) -> Stream:
        if self._task is not None:
            raise StateError("a stream is entered once: call connect() for another")
        self._task = asyncio.create_task(self._live(), name="asr client")
        try:
            while self.ready is None and not self._over:
                await self._wait()
        except asyncio.CancelledError:
            await self.close()
            raise
        if self.ready is None:
            await self.close()
            raise self._error or ConnectError("the server ended the session before it began: try again")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __await__(self) -> Generator[Any, None, Stream]:
        return self.__aenter__().__await__()

    async def close(self) -> None:
        """Leave at once; results that have not come yet are lost. The context does this at its end. May be repeated."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task], timeout=self.settings.timeouts.close + 1)
        self._end(self._error)

    # --- what a program does

    async def send(self, audio: Any) -> None:
        """Give bytes of the stream's encoding, cut anywhere, or a numpy array of samples: (n,) or (n, channels), float
        in [-1, 1] or int16.

        Waits while the buffer is full, unless the stream was made to drop. Raises StateError after :meth:`eof`, and
        the error with which the session ended.
        """
        data = _bytes_of(audio, self.settings.encoding)
        size = max(1, round(PIECE_S * self.settings.sample_rate)) * self.settings.format.frame_bytes
        for at in range(0, len(data), size):
            piece = data[at : at + size]
            self._check()
            if self.settings.when_full == "wait":
                await self._room(len(piece))
            before = self._up.lost
            self._up.add(piece)
            self._report_loss(self._up.lost - before, "the buffer is full")
            self._wake.set()

    async def _room(self, n_bytes: int) -> None:
        needed = n_bytes // self.settings.format.frame_bytes
        while self._up.room < needed:
            await self._wait()
            self._check()

    async def flush(self) -> tuple[Segment, ...]:
        """The text of all audio that was sent up to now and is not in a final result yet; the stream goes on as if
        nothing had happened, and will say it again. Raises ClientError when no answer comes in time."""
        self._check()
        id = f"f{next(self._ids)}"
        waiting: asyncio.Future[tuple[Segment, ...]] = asyncio.get_running_loop().create_future()
        self._flushes[id] = waiting, {}
        self._up.control("flush", id=id)
        self._wake.set()
        try:
            return await self._answer(waiting, "flush")
        finally:
            self._flushes.pop(id, None)

    async def configure(
        self, hotwords: Any = None, endpointing: Any = None, lm: bool | None = None, alternatives: int | None = None
    ) -> dict[str, Any]:
        """Change options from the next segment on; those not given stay. Returns all options as the server applies
        them. Raises UsageError or ConfigError for what cannot be, RequestError for what the server refuses."""
        self._check()
        changes = wire_options(hotwords, endpointing, lm, alternatives)
        waiting: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        control = self._up.control("config", **changes)
        self._changes[id(control)] = waiting
        self._wake.set()
        try:
            return await self._answer(waiting, "configure")
        finally:
            self._changes.pop(id(control), None)

    async def _answer(self, waiting: asyncio.Future[Any], what: str) -> Any:
        seconds = self.settings.timeouts.answer
        try:
            async with asyncio.timeout(seconds):
                return await waiting
        except TimeoutError:
            raise ClientError(f"no answer to {what} within {seconds:g} s: the server or the network is slow") from None

    async def eof(self) -> None:
        """No more audio: the last results follow, then iterating ends."""
        if not self._up.ended:
            self._check()
            self._up.control("eof")
            self._wake.set()

    def __aiter__(self) -> AsyncIterator[Result]:
        return self

    async def __anext__(self) -> Result:
        """The next partial or final result, or :class:`Notice` about the connection. A partial result that nobody has
        read gives way to a newer one. Raises the error with which the session ended, after all results."""
        while not self._results:
            if self._over:
                if self._error is not None:
                    raise self._error
                raise StopAsyncIteration
            await self._wait()
        result = self._results.popleft()
        self._unread -= not isinstance(result, Partial)
        return result

    async def finish(self) -> Transcript:
        """:meth:`eof`, then wait for the end: all final results of the stream, those that were read before, too."""
        await self.eof()
        async for _ in self:
            pass
        return self.transcript()

    def transcript(self, source: str = "") -> Transcript:
        """All final results so far."""
        model = str(self.ready.model.get("name", "")) if self.ready else ""
        return Transcript(tuple(self._segments), self._up.seconds(self._up.end), model, source)

    @property
    def lost_seconds(self) -> float:
        """Audio that has no text because the connection was broken for too long, in all."""
        return self._up.lost

    @property
    def position(self) -> float:
        """Seconds of audio that were given to :meth:`send`."""
        return self._up.seconds(self._up.end)

    @property
    def heard(self) -> float:
        """Seconds of audio that are known to be decoded."""
        return self._up.seconds(self._up.acked)

    @property
    def connected(self) -> bool:
        """Whether the connection stands, as far as is known."""
        return self.ready is not None and self._broken_at is None and not self._over

    # --- waiting

    async def _wait(self) -> None:
        self._news.clear()
        await self._news.wait()

    def _check(self) -> None:
        if self._error is not None:
            raise self._error
        if self._up.ended:
            raise StateError("the stream has ended: open a new one")
        if self._over or self._task is None:
            raise StateError("the stream is not open: use 'async with connect(...) as stream'")

    def _put(self, result: Result) -> None:
        if self._results and isinstance(self._results[-1], Partial) and isinstance(result, Partial | Segment):
            self._results.pop()  # it says more
        self._results.append(result)
        self._unread += not isinstance(result, Partial)
        self._news.set()
        if self._unread > MOST_UNREAD:
            raise ClientError(f"{MOST_UNREAD} results are not read: iterate over the stream", "unread")

    def _end(self, error: AsrError | None) -> None:
        self._error = self._error or error
        if not self._over:
            self._release()
        self._over = True
        futures: list[asyncio.Future[Any]] = [f for f, _ in self._flushes.values()]
        for waiting in [*futures, *self._changes.values()]:
            if not waiting.done():
                waiting.set_exception(self._error or StateError("the stream was closed before the answer came"))
                waiting.exception()  # it may have no reader any more
        self._news.set()

    def _report_loss(self, seconds: float, why: str) -> None:
        """What is lost bit by bit is told together; an empty ``why`` tells what is left."""
        if seconds > 0:
            at = self._up.seconds(self._up.gaps[-1][1]) - seconds
            before, at = (self._loss.seconds, self._loss.at) if self._loss else (0.0, at)
            self._loss = Notice("lost", f"{before + seconds:.1f} s of audio are lost: {why}", before + seconds, at)
        if self._loss is not None and (not why or self._loss.seconds >= TOLD_S):
            loss, self._loss = self._loss, None
            self._put(loss)

    # --- connections

    async def _live(self) -> None:
        """Connect until the session has ended one way or the other."""
        delays = _delays()
        try:
            while True:
                try:
                    await self._connection()
                    return self._end(None)
                except (Dropped, ServerError, ConnectError, OSError, TimeoutError) as error:
                    if self._broken_at is None:
                        delays = _delays()
                    wait = self._after(error, delays)
                await asyncio.sleep(wait)
        except AsrError as error:
            self._end(error)
        except asyncio.CancelledError:
            self._end(None)
            raise
        except Exception as error:
            self._end(ClientError(f"internal error of the client: {type(error).__name__}: {error}"))

    def _after(self, error: Exception, delays: Callable[[], float]) -> float:
        """Seconds to wait before the next attempt after ``error``. Raises where there shall be none."""
        anew = isinstance(error, ServerError) and error.code in ANEW
        again = not isinstance(error, ServerError) or error.code in AGAIN
        if self.ready is None or not self.settings.reconnect or not (anew or again):
            raise self._final_error(error)
        if anew:
            self._seq, self.ready = 0, _without_secret(self.ready)
            self._fruitless = 1 if self._up.acked > self._furthest else self._fruitless + 1
            self._furthest = max(self._furthest, self._up.acked)
            if self._fruitless > FRUITLESS:
                raise self._final_error(error)
        now = time.monotonic()
        if self._broken_at is None:
            self._broken_at = now
            self.reconnects += 1
            self._put(Notice("disconnected", "the connection is broken, it is being made again"))
        left = self._broken_at + self.settings.timeouts.retry - now
        if left <= 0:
            raise self._final_error(error)
        asked = getattr(error, "retry_after", None)
        if anew and self._fruitless <= 1:
            return 0.0
        return min(left, min(asked, MOST_RETRY_AFTER_S) if asked else delays())

    def _final_error(self, error: Exception) -> AsrError:
        """``error`` as what the program gets; what has no text is lost."""
        if self.ready is None:
            return error if isinstance(error, AsrError) else unreachable(self.settings, error)
        self._release()
        lost = self._up.give_up()
        self._report_loss(lost, "the connection is gone")
        self._report_loss(0, "")
        if isinstance(error, ServerError):
            return error
        why = f"{error}" if isinstance(error, ConnectError) else "the connection broke"
        return ConnectionLost(f"{why}; {lost:.1f} s of audio have no text: check the network and begin anew", lost)

    async def _connection(self) -> None:
        """One connection from handshake to end; returns after ``done``."""
        async with contextlib.AsyncExitStack() as stack:
            async with asyncio.timeout(self.settings.timeouts.open):
                connection = await dial(self.settings)
            stack.push_async_callback(hang_up, connection, self.settings.timeouts.close)
            async with asyncio.timeout(self.settings.timeouts.open):
                await self._begin(connection)
            try:
                await self._converse(connection)
            except Dropped:
                connection.transport.abort()
                raise

    async def _begin(self, connection: ClientConnection) -> None:
        """``start`` and its ``ready``."""
        old = self.ready
        resume = old is not None and old.secret is not None
        if resume and old is not None:
            start = {"type": "start", "session": old.session, "secret": old.secret, "last_seq": self._seq}
        else:
            start = {**self.settings.start(), **self._options}
        await self._send(connection, messages.dump(start))
        message = await self._receive(connection)
        if message["type"] != "ready":
            raise ClientError("what listens there does not speak this protocol: check the address", "message")
        ready = messages.ready(message)
        lost = 0.0
        if ready.resumed:
            self._up.resumed(ready.samples)
        else:
            if self._held is not None and self._up.seconds(self._up.start) > self._held.start:
                self._release()
            self._held = None
            lost = self._up.opened()
            self._first, self._seq = len(self._segments), 0
        if old is not None:
            kind = "resumed" if ready.resumed else "restarted"
            self._put(Notice(kind, _NEWS[kind], at=self._up.seconds(self._up.cursor)))
            self._report_loss(lost, "the server has forgotten the session")
            self._report_loss(0, "")
        self.ready, self._broken_at = ready, None
        for _, found in self._flushes.values():
            found.clear()
        self._news.set()

    async def _converse(self, connection: ClientConnection) -> None:
        """Send and hear until ``done``."""
        sending = asyncio.create_task(self._send_all(connection), name="asr client sender")
        hearing = asyncio.create_task(self._hear_all(connection), name="asr client receiver")
        try:
            await asyncio.wait([sending, hearing], return_when=asyncio.FIRST_COMPLETED)
            if not hearing.done():  # what the server said last tells more than a failed write
                await asyncio.wait([hearing], timeout=self.settings.timeouts.close)
            if hearing.done():
                return hearing.result()
            sending.result()
            raise Dropped
        finally:
            for task in (sending, hearing):
                task.cancel()
            await asyncio.gather(sending, hearing, return_exceptions=True)

    async def _send_all(self, connection: ClientConnection) -> None:
        while True:
            message = self._up.next()
            if message is not None:
                await self._send(connection, message)
                self._news.set()
                self._await_end()
                continue
            self._wake.clear()
            try:
                async with asyncio.timeout(self._keepalive()):
                    await self._wake.wait()
            except TimeoutError:
                await self._send(connection, '{"type":"keepalive"}')

    def _keepalive(self) -> float:
        idle = self.ready.limits.get("idle_seconds") if self.ready else None
        most = self.settings.timeouts.keepalive
        return min(most, idle / 3) if isinstance(idle, int | float) and idle > 0 else most

    async def _send(self, connection: ClientConnection, message: str | bytes) -> None:
        try:
            async with asyncio.timeout(self.settings.timeouts.send):
                await connection.send(message)
        except (ConnectionClosed, TimeoutError):
            raise Dropped from None

    async def _receive(self, connection: ClientConnection) -> dict[str, Any]:
        """The next message. Raises the server's error, where it is or follows from the close frame."""
        try:
            message = messages.parse(await connection.recv())
        except ConnectionClosed as closed:
            code = closed.rcvd.code if closed.rcvd else None
            raise closed_error(code, closed.rcvd.reason if closed.rcvd else "") or Dropped() from None
        if message["type"] == "error":
            raise server_error(str(message.get("code")), str(message.get("message", "")))
        return message

    async def _hear_all(self, connection: ClientConnection) -> None:
        while self.done is None:
            try:
                async with asyncio.timeout(None) as self._limit:
                    self._await_end()
                    message = await self._receive(connection)
            except TimeoutError:
                raise Dropped from None
            finally:
                self._limit = None
            try:
                self._hear(message)
            except (KeyError, TypeError, ValueError) as error:
                raise ClientError(f"a message of the server is not understood: {error!r}", "message") from None
            self._wake.set()

    def _await_end(self) -> None:
        """Once all is sent, the server may not be silent for long."""
        if self._up.all_sent and self._limit is not None and not self._limit.expired():
            self._limit.reschedule(asyncio.get_running_loop().time() + self.settings.timeouts.done)

    # --- messages of the server

    def _hear(self, message: dict[str, Any]) -> None:
        kind, seq = message["type"], int(message.get("seq", 0))
        if kind in ("partial", "final"):
            if seq <= self._seq:
                return  # it had come before the connection broke
            self._seq = seq
        shift = self._up.seconds(self._up.base)
        if kind == "partial":
            partial = messages.partial(message, shift, self._first)
            self.lag_ms = float(message.get("lag_ms", 0))
            self._up.partial(partial)
            self._put(partial)
        elif kind == "final":
            self._final(messages.final(message, shift, self._first))
        elif kind == "configured":
            self._configured(message)
        elif kind == "flushed":
            self._flushed(str(message["id"]))
        elif kind == "warning":
            self._warning(message)
        elif kind == "done":
            self._up.done()
            self._report_loss(0, "")
            self.done = messages.done(message)

    def _final(self, segment: Segment) -> None:
        if segment.reason == "flush":
            for _, found in self._flushes.values():
                found[segment.index] = segment
            return
        if segment.reason == "eof" and not self._up.ended:
            self._held = segment  # the server ended on its own: the next session hears this segment again, whole
        else:
            self._close_segment(segment)

    def _close_segment(self, segment: Segment) -> None:
        self._up.final(segment)
        self._segments.append(segment)
        self._put(segment)

    def _release(self) -> None:
        """A segment that nobody will hear again stays as it is."""
        held, self._held = self._held, None
        if held is not None:
            self._close_segment(held)

    def _configured(self, message: dict[str, Any]) -> None:
        control = self._up.configured()
        self._news.set()
        if control is not None and control.kind == "config":
            self._options |= control.values
            waiting = self._changes.get(id(control))
            if waiting is not None and not waiting.done():
                waiting.set_result(dict(message.get("config") or {}))

    def _flushed(self, id: str) -> None:
        self._up.flushed(id)
        waiting, found = self._flushes.get(id, (None, {}))
        for _, others in self._flushes.values():
            if others is not found:
                others.clear()  # they are answered by finals of their own
        if waiting is not None and not waiting.done():
            fresh = [index for index in sorted(found) if index >= len(self._segments)]  # the others are closed by now
            waiting.set_result(tuple(found[index] for index in fresh))

    def _warning(self, message: dict[str, Any]) -> None:
        code, text = str(message.get("code", "")), str(message.get("message", ""))
        if code in ("usage", "config") and (control := self._up.rejected()) is not None:
            waiting = self._changes.get(id(control))
            if waiting is not None and not waiting.done():
                waiting.set_exception(server_error(code, text))
                return
        self._put(Notice(code, text, float(message.get("seconds", 0.0))))


_NEWS = {
    "resumed": "connected again, nothing is lost",
    "restarted": "connected again, with a new session that goes on behind the last final result",
}


def _delays() -> Callable[[], float]:
    """Waits between attempts: doubled each time, and never the same for two clients."""
    count = itertools.count()
    return lambda: min(MOST_DELAY_S, FIRST_DELAY_S * 2.0 ** min(next(count), 10)) * random.uniform(0.7, 1.3)


def _without_secret(ready: Ready | None) -> Ready | None:
    return None if ready is None else Ready(ready.session, None, False, 0, ready.config, ready.limits, ready.model)


def _bytes_of(audio: Any, encoding: str) -> bytes:
    if isinstance(audio, bytes | bytearray | memoryview):
        return bytes(audio)
    import numpy as np

    from asr.audio.encoding import encode

    if not isinstance(audio, np.ndarray) or audio.ndim not in (1, 2):
        raise UsageError("send bytes, or a numpy array of samples: (n,) or (n, channels)")
    if audio.dtype == np.int16:
        return audio.astype("<i2").tobytes() if encoding == "pcm_s16le" else encode(audio / 32768.0, encoding)
    if not np.issubdtype(audio.dtype, np.floating):
        raise UsageError(f"samples must be float in [-1, 1] or int16, not {audio.dtype}")
    return encode(audio, encoding)
