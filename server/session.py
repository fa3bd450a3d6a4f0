"""One connection: a protocol adapter, an engine session and a transport, joined.

The adapter (pure) says what is to be done, the session does it: it reads, feeds the engine, writes, watches the limits,
and puts the session away when its connection drops. Sockets, clock, engine and store are given, so it runs in tests
without any of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import traceback
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from asr.audio.encoding import SampleFormat
from asr.engine import Configured, EngineError, Event, Finished, Flushed, FullError, Output, Rejected, SessionConfig
from asr.errors import ERRORS, AsrError
from server.edges import Clock, Dropped, Observer, Store, Summary, SystemClock, Transport
from server.limits import Limits
from server.parked import Parked, pack, store_key, unpack
from server.protocols import Adapter, WireError
from server.protocols.actions import Action, Close, Configure, Cut, Feed, Finish, Flush, Note, Open, Resume, Send

__all__ = ["Clock", "Dropped", "Observer", "Session", "Store", "Summary", "SystemClock", "Transport"]

ABNORMAL = 1006  # close code of a connection that dropped (RFC 6455, 7.4.1)
GOING_DOWN = "the server is going down: connect again"
LOOK_S = 0.5  # the limits are looked at so often, and when an adapter's deadline is due
WARNING_AHEAD_S = 30.0  # before the longest session ends
MOST_ASKED = 8  # flushes, changes and cuts that wait for the engine; a client that sends more of them is not read from
_WAITING_S = 0.5  # less audio than this may wait for more of it, and is no sign of a stalled engine


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
        self.adapter, self.transport, self.engine, self.limits = adapter, transport, engine, limits
        self.store, self.observer, self.clock = store, observer or Observer(), clock or SystemClock()
        self.owner, self.protocol = owner, adapter.protocol
        self._secret = adapter.context.secret
        self._session: Any = None  # asr.engine.EngineSession
        self._config = SessionConfig()
        self._state = b""  # of the engine session, once it is parked
        self._frame_bytes = 1.0  # bytes of a second
        self._out: deque[Send | Close] = deque()
        self._news = asyncio.Event()  # something is in _out
        self._empty = asyncio.Event()  # nothing is
        self._less = asyncio.Event()  # not much is
        self._over = asyncio.Event()
        self._end = ""  # closed, dropped, unread, drain
        self._reading = False  # it waits for the client, and not the client for it
        self._heard = self._spoke = self._began = self.clock.now()  # last: message, event of the engine
        self._asked = 0  # questions that the engine has not answered
        self._answered = asyncio.Event()  # one was
        self._told_of_limit = False
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._error, self._close_code, self._close_reason = "", ABNORMAL, ""
        self._audio_s, self._segments, self._words, self._bytes_in = 0.0, 0, 0, 0
        self._resumed = self._parked = self._parking = False

    @property
    def id(self) -> str:
        """Name of the session."""
        return self.adapter.session

    async def run(self) -> Summary:
        """Serve the connection to its end. Raises nothing for what a client or the engine does; cancelled, it closes
        the engine session."""
        self._heard = self._spoke = self._began = self.clock.now()
        self._empty.set()
        self._less.set()
        try:
            self._start("sender", self._send_all)
            self._start("reader", self._read_all)
            self._start("timer", self._watch)
            await self._over.wait()
            await self._stop("reader", "timer")
            if self._end != "closed":
                await self._put_away()
            if self._end == "unread":
                await self._stop("sender")
                await self._close(ERRORS["unread"].close_code, "unread: results are not read", "unread")
            elif self._end == "drain":
                await self._say_goodbye()
            elif self._out and isinstance(self._out[0], Close):  # the client was faster with its own
                self._error = self._out[0].error
        finally:
            if self._session is not None:
                self._session.close()
            await self._stop(*self._tasks)
        if self._error:
            self.observer.error(self._error)
        self.observer.closed(self._close_code, self._close_reason)
        return self._summary()

    def warn_lagging(self, lag_ms: float) -> None:
        """Tell the client, in its protocol, that the server is late (at most every five seconds)."""
        self._do(self.adapter.lagging(lag_ms, self.clock.now()))

    async def drain(self, park: bool = True) -> None:
        """End it from outside, nothing lost: with ``park`` a session that can be resumed is put into the store, any
        other is finished and gets its last results; then close 1001. Returns at once; :meth:`run` ends soon."""
        if park and self._can_park() and self.adapter.phase == "open":
            self._finish_with("drain")
        else:
            self._do(self.adapter.end("draining", GOING_DOWN, self.clock.now()))

    def _summary(self) -> Summary:
        return Summary(
            self.id,
            self.protocol,
            self._error,
            self._close_code,
            self._audio_s,
            self._segments,
            self._words,
            self._bytes_in,
            self._resumed,
            self._parked,
            self.clock.now() - self._began,
        )

    # Tasks.

    def _start(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        self._tasks[name] = asyncio.create_task(self._guard(name, work))

    async def _guard(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        """A task that ends with an error ends the session with it; a bug is told apart in the log."""
        try:
            await work()
        except Dropped:
            self._finish_with("dropped")
        except AsrError as error:
            self._do(self.adapter.fail(error.code, str(error)))
        except Exception as error:  # a bug: this session ends, no other one
            trace = traceback.format_exc(limit=-4)
            self.observer.note("crash", task=name, error=f"{type(error).__name__}: {error}", trace=trace)
            if name == "sender":
                self._finish_with("dropped")
            else:
                self._do(self.adapter.fail("error", "internal error"))

    async def _stop(self, *names: str) -> None:
        tasks = [self._tasks[name] for name in names if name in self._tasks]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=self.limits.close_seconds)

    def _finish_with(self, end: str) -> None:
        if not self._end:
            self._end = end
            self._over.set()

    # Client -> engine.

    async def _read_all(self) -> None:
        await self._perform(self.adapter.begin(self.clock.now()))
        while self.adapter.phase != "closed":
            if self._session is not None and self.adapter.phase == "open":
                await self._room()
            self._heard = self.clock.now()
            self.adapter.waiting(self._heard)
            self._reading = True
            message = await self.transport.recv()
            self._reading = False
            now = self._heard = self.clock.now()
            if isinstance(message, str):
                self._bytes_in += len(message)
                actions = self.adapter.text(message, now)
            else:
                self._bytes_in += len(message)
                actions = self.adapter.binary(bytes(message), now)
            await self._perform(actions)

    async def _room(self) -> None:
        """Back-pressure: nothing is read while much waits to be decoded or to be read by the client. A stalled engine
        is seen by the timer, a client that does not read by the sender."""
        await self._less.wait()
        await asyncio.sleep(0)  # where many messages lie ready: others first, and the results of this one
        if self._session.ahead_s >= self.limits.ahead_seconds:
            await self._session.room(self.limits.ahead_seconds)
        while self._asked >= MOST_ASKED:
            self._answered.clear()
            await self._answered.wait()

    async def _perform(self, actions: Sequence[Action]) -> None:
        """Do all, in order; only opening takes time."""
        for action in actions:
            if isinstance(action, Open):
                await self._perform(await self._open(action.config))
            elif isinstance(action, Resume):
                await self._perform(await self._resume(action))
            else:
                self._do([action])

    def _do(self, actions: Sequence[Action]) -> None:
        """All that takes no time."""
        for action in actions:
            if isinstance(action, Send | Close):
                self._post(action)
            elif isinstance(action, Note):
                self.observer.note(action.kind, **action.values)
            elif self._session is not None and not self._parking:
                self._ask(action)

    def _ask(self, action: Action) -> None:
        session = self._session
        if not self._asked and session.ahead_s < _WAITING_S:
            self._spoke = self.clock.now()  # an idle engine owes nothing before this
        if isinstance(action, Feed):
            session.feed(action.data)
            lasts = len(action.data) / self._frame_bytes
            self._audio_s += lasts
            self.observer.audio(len(action.data), lasts)
            return
        self._asked += 1
        if isinstance(action, Configure):
            session.configure(**action.changes)
        elif isinstance(action, Flush):
            session.flush(action.id)
        elif isinstance(action, Cut):
            session.cut(action.id)
        elif isinstance(action, Finish):
            session.finish()

    async def _open(self, config: SessionConfig) -> list[Action]:
        try:
            async with asyncio.timeout(self.limits.open_seconds):
                session = await self.engine.open(config)
        except TimeoutError:
            return self.adapter.refused("full", "no room: try again later", self.clock.now())
        except AsrError as error:
            return self.adapter.refused(error.code, str(error), self.clock.now())
        self._take_in(session, config)
        return self.adapter.opened(session.options, session.samples, self.clock.now())

    def _take_in(self, session: Any, config: SessionConfig) -> None:
        self._session, self._config, self._spoke = session, config, self.clock.now()
        self._frame_bytes = SampleFormat(config.encoding, config.channels).frame_bytes * config.sample_rate
        self.observer.opened(self.protocol, self.id, self._resumed)
        self._start("events", self._hear_all)

    # Engine -> client.

    async def _hear_all(self) -> None:
        while True:
            try:
                event = await self._session.get()
            except EOFError:
                break
            self._spoke = self.clock.now()
            self._count(event)
            self.observer.event(event)
            self._do(self.adapter.event(event, self._spoke))
        if not self._parking:
            self._do(self.adapter.fail("engine", "recognition ended: connect again"))

    def _count(self, event: Event) -> None:
        if isinstance(event, Configured | Rejected | Flushed | Finished):
            self._asked -= 1
            self._answered.set()
        segments: Sequence[Any] = ()
        if isinstance(event, Output):
            segments = [r for r in event.results if hasattr(r, "words")]
        elif isinstance(event, Finished) or (isinstance(event, Flushed) and event.cut):
            segments = event.segments
        self._segments += len(segments)
        self._words += sum(len(s.words) for s in segments)

    def _post(self, action: Send | Close) -> None:
        self._out.append(action)
        self._empty.clear()
        self._news.set()
        if len(self._out) > self.limits.max_unread // 2:
            self._less.clear()
        if len(self._out) > self.limits.max_unread:
            self._finish_with("unread")

    async def _send_all(self) -> None:
        while True:
            while self._out:
                action = self._out[0]
                if isinstance(action, Close):
                    await self._close(action.code, action.reason, action.error)
                    return self._finish_with("closed")
                try:
                    async with asyncio.timeout(self.limits.send_seconds):
                        await self.transport.send(action.text)
                except TimeoutError:
                    return self._finish_with("unread")
                self._out.popleft()
                self.adapter.delivered(action.seq)
                self.observer.sent(len(action.text.encode("utf-8", "replace")))
                if len(self._out) <= self.limits.max_unread // 2:
                    self._less.set()
            self._empty.set()
            self._news.clear()
            await self._news.wait()

    async def _close(self, code: int, reason: str, error: str) -> None:
        self._close_code, self._close_reason, self._error = code, reason, error
        with contextlib.suppress(TimeoutError, Dropped):
            async with asyncio.timeout(self.limits.close_seconds):
                await self.transport.close(code, reason)

    # Limits.

    async def _watch(self) -> None:
        while self.adapter.phase != "closed":
            now = self.clock.now()
            due = self.adapter.deadline()
            wait = LOOK_S if due is None or not self._reading else min(LOOK_S, due - now)
            await self.clock.sleep(max(0.01, wait))
            self._look(self.clock.now())

    def _look(self, now: float) -> None:
        limits, adapter = self.limits, self.adapter
        if self._reading and adapter.phase in ("new", "open"):
            due = adapter.deadline()
            if due is not None and now >= due:
                self._do(adapter.tick(now))
            if now - self._heard >= limits.idle_seconds:
                self._do(adapter.end("idle", f"nothing came for {limits.idle_seconds:g} seconds", now))
        left = limits.max_session_seconds - (now - self._began)
        if left <= 0:
            message = f"a session lasts {limits.max_session_seconds:g} seconds at most: open a new one"
            self._do(adapter.end("limit", message, now))
        elif left <= WARNING_AHEAD_S and not self._told_of_limit and limits.max_session_seconds > 2 * WARNING_AHEAD_S:
            self._told_of_limit = True
            self._do(adapter.warn("limit", f"the session ends in {left:.0f} seconds", now, seconds=round(left)))
        owes = self._session is not None and (self._asked > 0 or self._session.ahead_s >= _WAITING_S)
        if owes and now - self._spoke >= limits.engine_seconds:
            self._do(adapter.fail("engine", "recognition has stalled: connect again"))

    # Drop, park, resume.

    def _can_park(self) -> bool:
        return self.store is not None and self._session is not None and self.adapter.resumable

    async def _put_away(self) -> None:
        """Into the store, with all that the engine still says. A failure costs the resume and nothing else."""
        if not self._can_park():
            return
        try:
            async with asyncio.timeout(self.limits.engine_seconds):
                blob = await self._parked_session()
                if blob is not None and self.store is not None:
                    await self.store.put(self._key(), blob, self.limits.resume_seconds)
                    self._parked = True
                    self.observer.parked(len(blob))
        except (AsrError, TimeoutError, EOFError) as error:
            self.observer.note("not_parked", error=f"{type(error).__name__}: {error}")

    async def _say_goodbye(self) -> None:
        """The last of a drained session. If the store has failed, it goes on where it was, for its last results."""
        now = self.clock.now()
        if self._state and not self._parked:
            with contextlib.suppress(AsrError, TimeoutError):
                async with asyncio.timeout(self.limits.open_seconds):
                    self._session = await self.engine.open(self._config, self._state)
                self._parking = False
                self._start("events", self._hear_all)
                self._do(self.adapter.end("draining", GOING_DOWN, now))
        if not self._state or self._parked or self._parking:
            self._do(self.adapter.fail("draining", GOING_DOWN))
        await asyncio.wait([self._tasks["sender"]], timeout=self.limits.engine_seconds)

    async def _parked_session(self) -> bytes | None:
        session = self._session
        if self.adapter.phase == "open":
            self._parking = True
            self._state = await session.park()
        await asyncio.wait([self._tasks["events"]], timeout=self.limits.engine_seconds)
        if self._end == "drain":
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.limits.close_seconds):
                    await self._empty.wait()
        return pack(Parked(self.adapter.save(), session.samples, self._state)) if self.adapter.resumable else None

    def _key(self, session: str | None = None, secret: str | None = None) -> str:
        return store_key(self.owner, session or self.id, secret or self._secret)

    async def _resume(self, action: Resume) -> list[Action]:
        """Take it out of the store; if the engine has no room for it now, put it back."""
        key = self._key(action.session, action.secret)
        blob = await self._take(key)
        if blob is None or self.store is None:
            return self.adapter.refused("resume", "there is no such session: start a new one", self.clock.now())
        try:
            parked = unpack(blob)
            return await self._open_parked(parked, action)
        except (FullError, EngineError, TimeoutError, asyncio.CancelledError) as error:
            await self.store.put(key, blob, self.limits.resume_seconds)
            if isinstance(error, asyncio.CancelledError):
                raise
            self._session = None
            return self.adapter.refused("full", "no room: try again later", self.clock.now())
        except AsrError as error:
            return self.adapter.refused(error.code, str(error), self.clock.now())

    async def _open_parked(self, parked: Parked, action: Resume) -> list[Action]:
        config = parked.config
        self._resumed, self._secret = True, action.secret
        options: dict[str, Any] = {}
        samples = parked.samples
        if parked.state:
            async with asyncio.timeout(self.limits.open_seconds):
                session = await self.engine.open(config, parked.state)
            options, samples = session.options, session.samples
            self.adapter.session = action.session
            self._take_in(session, config)
        return self.adapter.resumed(parked.adapter, options, samples, self.clock.now())

    async def _take(self, key: str) -> bytes | None:
        """A client may be back before its session is put away: look again for a while."""
        if self.store is None:
            return None
        until = self.clock.now() + self.limits.resume_wait_seconds
        while True:
            try:
                async with asyncio.timeout(self.limits.open_seconds):
                    blob = await self.store.take(key)
            except TimeoutError:
                raise WireError("store", "the store of sessions does not answer: try again later") from None
            if blob is not None or self.clock.now() >= until:
                return blob
            await self.clock.sleep(0.1)
