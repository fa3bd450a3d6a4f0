"""The engine as a server sees it: many live sessions on workers that own a recogniser each.

A worker is a process (or, for tests, a thread) in which a :class:`asr.scheduler.Scheduler` advances all its sessions
together. The event loop only moves bytes: it never computes, and nothing that a session does blocks it.

The calls that an :class:`EngineSession` offers are ordered: audio, changes, flushes and the end take effect in the
order in which they were given. Its events come in that order, too.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import pickle
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

from asr.audio.encoding import SAMPLE_BYTES
from asr.engine_events import (
    Configured,
    EngineError,
    Event,
    Failed,
    Finished,
    Flushed,
    FullError,
    Opened,
    Output,
    Parked,
    Rejected,
    SessionConfig,
)
from asr.engine_worker import LENGTH, Ready, Settings, Stats, Worker, start_worker
from asr.errors import AsrError, AudioError, ConfigError, ModelError, StateError, UsageError

__all__ = [
    "Configured",
    "Engine",
    "EngineError",
    "EngineLoad",
    "EngineSession",
    "Event",
    "Failed",
    "Finished",
    "Flushed",
    "FullError",
    "ModelInfo",
    "Output",
    "Rejected",
    "SessionConfig",
]

log = logging.getLogger("asr.engine")
START_S = 120.0  # for a worker to load its model
ANSWER_S = 60.0  # for a worker to answer an opening or a park; its longest step is far shorter
RESTART_S = 1.0  # between the end of a worker and the next try
_LAST = (Finished, Failed, Parked)
_KINDS: dict[str, type[AsrError]] = {
    e.code: e for e in (UsageError, ConfigError, AudioError, StateError, ModelError, FullError, EngineError)
}


@dataclass(frozen=True)
class ModelInfo:
    """What a client may know of the model. ``latency_ms``: algorithmic; ``words``: of the lexicon."""

    name: str
    fingerprint: str
    sample_rate: int
    step_ms: int
    latency_ms: int
    words: int
    hotwords: bool


@dataclass(frozen=True)
class EngineLoad:
    """How busy the engine is. ``lag_ms``: of the worst worker, within the last second; ``busy``: share of time in which
    the busiest computed; ``alive``: workers that run; ``restarts`` since the start."""

    sessions: int
    slots: int
    lag_ms: float
    steps: int
    busy: float
    alive: int
    restarts: int


class EngineSession:
    """One live stream in the engine; made by :meth:`Engine.open`. No method blocks; those that wait are ``async``."""

    def __init__(self, id: int, config: SessionConfig, link: _Link) -> None:
        self.id = id
        self.config = config
        self.options: dict[str, Any] = {}
        self.samples = 0
        self._link = link
        self._byte_rate = SAMPLE_BYTES.get(config.encoding, 1) * config.channels * config.sample_rate
        self._events: deque[Event] = deque()
        self._fed: deque[tuple[int, int]] = deque()  # number and size of what is not decoded yet
        self._ahead = 0
        self._numbers = itertools.count(1)
        self._changed = asyncio.Event()
        self._parked: Parked | None = None
        self.over = False

    def feed(self, data: bytes) -> int:
        """Take in audio bytes, any number, cut anywhere. Returns the number of the call, from 1."""
        number = next(self._numbers)
        if not self.over:
            self._fed.append((number, len(data)))
            self._ahead += len(data)
            self._link.send(("audio", self.id, bytes(data), number, time.monotonic()))
        return number

    @property
    def ahead_s(self) -> float:
        """Seconds of audio that were given and are not decoded yet."""
        return self._ahead / self._byte_rate

    async def room(self, most_s: float) -> None:
        """Wait until less than ``most_s`` seconds are ahead, or the session is over."""
        while self.ahead_s >= most_s and not self.over:
            await self._wait()

    def configure(self, **changes: Any) -> None:
        """Change hotwords, endpointing, lm or alternatives from the next segment on; answered by Configured or
        Rejected."""
        self._control("configure", changes)

    def flush(self, id: str = "") -> None:
        """Ask for what :meth:`finish` would give now; the stream goes on as if nothing had happened."""
        self._control("flush", id)

    def cut(self, id: str = "") -> None:
        """Close the open segment where the audio stands."""
        self._control("cut", id)

    def finish(self) -> None:
        """No more audio; answered by Finished, the last event."""
        self._control("finish", time.monotonic())

    async def park(self) -> bytes:
        """Decode what was fed, give the slot back and return the whole state, from which :meth:`Engine.open` goes on.
        A sample that has come in part is forgotten: ``samples`` says how many were taken in. Raises StateError when the
        session is over, EngineError when its worker is."""
        if self.over:
            raise StateError("the session is over: there is nothing to park")
        self._control("park", None)
        try:
            async with asyncio.timeout(ANSWER_S):
                while not self.over:
                    await self._wait()
        except TimeoutError:
            self.close()
            raise EngineError("the recogniser does not answer: the session is lost") from None
        if self._parked is None:
            failed = next((e for e in self._events if isinstance(e, Failed)), None)
            raise _error(failed) if failed else StateError("the session ended before it could be parked")
        return self._parked.state

    async def get(self) -> Event:
        """The next event. Raises EOFError after the last."""
        while not self._events:
            if self.over:
                raise EOFError("the session is over")
            await self._wait()
        return self._events.popleft()

    def pending(self) -> int:
        """Events that nobody has read yet."""
        return len(self._events)

    def close(self) -> None:
        """Forget the session and give its slot back; what is not read yet stays readable."""
        if not self.over:
            self._link.send(("drop", self.id))
            self._end()

    def _control(self, name: str, value: Any) -> None:
        if not self.over:
            self._link.send(("control", self.id, name, value))

    async def _wait(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def _take(self, event: Event) -> None:
        """An event of the worker."""
        if self.over:
            return
        if isinstance(event, Output):
            self.samples = event.samples
            while self._fed and self._fed[0][0] <= event.taken:
                self._ahead -= self._fed.popleft()[1]
        elif isinstance(event, Configured):
            self.options = event.options
        if isinstance(event, Parked):
            self._parked, self.samples = event, event.samples
        else:
            if isinstance(event, Finished):
                self.samples = event.samples
            self._events.append(event)
        if isinstance(event, _LAST):
            self._end()
        self._changed.set()

    def _end(self) -> None:
        self.over = True
        self._ahead = 0
        self._fed.clear()
        self._link.sessions.pop(self.id, None)
        self._changed.set()


class _Link:
    """The front's end of a worker: commands of one turn of the event loop go in one write, answers come in batches."""

    def __init__(self, settings: Settings, in_thread: bool) -> None:
        self.settings = settings
        self.in_thread = in_thread
        self.sessions: dict[int, EngineSession] = {}
        self.opening: dict[int, asyncio.Future[Opened]] = {}
        self.stats = Stats(0.0, 0, 0.0)
        self.ready: Ready | None = None
        self.alive = False
        self._worker: Worker | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._queue: list[tuple[Any, ...]] = []
        self._reading: asyncio.Task[None] | None = None

    async def start(self) -> Ready:
        """Start a worker and wait until it has loaded the model. Raises what it raises."""
        self._worker = start_worker(self.settings, self.in_thread)
        reader, self._writer = await asyncio.open_connection(sock=self._worker.socket)
        try:
            async with asyncio.timeout(START_S):
                first = await _receive(reader)
        except TimeoutError:
            await self.stop()
            raise EngineError(f"the model was not loaded within {START_S:.0f} s: see the log") from None
        except (EOFError, OSError):
            raise EngineError("the worker ended while it loaded the model: see its messages above") from None
        if isinstance(first, AsrError):
            await self.stop()
            raise first
        assert isinstance(first, Ready)
        self.ready, self.alive = first, True
        self._reading = asyncio.create_task(self._read(reader), name="engine answers")
        return first

    def send(self, command: tuple[Any, ...]) -> None:
        """Queue a command; the commands of this turn of the event loop leave together."""
        if not self._queue:
            asyncio.get_running_loop().call_soon(self._write)
        self._queue.append(command)

    def _write(self) -> None:
        commands, self._queue = self._queue, []
        if self._writer and not self._writer.is_closing():
            body = pickle.dumps(commands, pickle.HIGHEST_PROTOCOL)
            self._writer.write(LENGTH.pack(len(body)) + body)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while True:
                answers, self.stats = await _receive(reader)
                for id, event in answers:
                    self._answer(id, event)
        except (EOFError, OSError):
            self.alive = False
            self.stats = Stats(0.0, self.stats.steps, 0.0)
            for session in list(self.sessions.values()):
                session._take(Failed("engine", "the worker that held this session ended: start again"))
            for waiting in self.opening.values():
                if not waiting.done():
                    waiting.set_exception(EngineError("the worker ended: try again"))

    def _answer(self, id: int, event: Event) -> None:
        if (waiting := self.opening.pop(id, None)) is not None:
            if waiting.done():
                self.send(("drop", id))  # nobody waits for it any more
            elif isinstance(event, Opened):
                waiting.set_result(event)
            else:
                assert isinstance(event, Failed)
                waiting.set_exception(_error(event))
        elif session := self.sessions.get(id):
            session._take(event)

    async def ended(self) -> None:
        """Wait until the worker is gone."""
        if self._reading:
            await asyncio.wait([self._reading])

    async def stop(self) -> None:
        """End the worker; its sessions fail."""
        if self._writer:
            self._writer.close()
        if self._reading:
            await asyncio.wait([self._reading], timeout=5)
        if self._worker:
            await asyncio.to_thread(self._worker.stop)


class Engine:
    """The workers. Made by :meth:`start`, ended by :meth:`close`; belongs to one event loop."""

    def __init__(self, links: list[_Link]) -> None:
        self._links = links
        self._ids = itertools.count(1)
        self._restarts = 0
        self._closing = False
        self._keepers = [asyncio.create_task(self._keep(link), name="engine keeper") for link in links]
        ready = links[0].ready
        assert ready is not None
        self.info = ModelInfo(**ready.info)

    @classmethod
    async def start(
        cls,
        model: str = "en",
        *,
        workers: int = 1,
        slots: int = 200,
        wait_ms: float = 5.0,
        threads: int = 1,
        device: str = "cpu",
        precision: str | None = None,
        search: str = "beam",
        in_thread: bool = False,
    ) -> Engine:
        """Load ``model`` (a name or a folder) in ``workers`` processes of ``threads`` torch threads each.

        ``slots``: sessions that a worker holds at most; ``wait_ms``: how long a step waits for others to join it;
        ``precision``: see :func:`asr.inference.inference_form` (None: its default); ``search``: beam or greedy;
        ``in_thread``: one worker, a thread of this process. Raises what loading raises, UsageError for impossible
        values, EngineError when a worker ends before it is ready.
        """
        if workers < 1 or slots < 1 or threads < 1 or wait_ms < 0:
            raise UsageError("an engine needs at least one worker, slot and thread, and a wait of 0 ms or more")
        settings = Settings(str(model), slots, wait_ms / 1000, threads, device, precision, search)
        links = [_Link(settings, in_thread) for _ in range(1 if in_thread else workers)]
        started = await asyncio.gather(*(link.start() for link in links), return_exceptions=True)
        failed = [s for s in started if isinstance(s, BaseException)]
        if failed:
            await asyncio.gather(*(link.stop() for link in links if link.alive))
            raise failed[0]
        return cls(links)

    async def open(self, config: SessionConfig, state: bytes | None = None) -> EngineSession:
        """A new session, or one that goes on from what :meth:`EngineSession.park` gave.

        Raises FullError when no slot is free, EngineError when no worker runs, and UsageError, ConfigError, AudioError
        or StateError for what ``config`` or ``state`` cannot be.
        """
        alive = [link for link in self._links if link.alive]
        if self._closing or not alive:
            raise EngineError("no recogniser is running: try again later")
        link = min(alive, key=lambda at: len(at.sessions) + len(at.opening))
        id = next(self._ids)
        waiting: asyncio.Future[Opened] = asyncio.get_running_loop().create_future()
        link.opening[id] = waiting
        link.send(("open", id, config, state))
        try:
            async with asyncio.timeout(ANSWER_S):
                opened = await waiting
        except TimeoutError:
            raise EngineError("the recogniser does not answer: try again later") from None
        session = EngineSession(id, config, link)
        session.options, session.samples = opened.options, opened.samples
        link.sessions[id] = session
        return session

    @property
    def load(self) -> EngineLoad:
        """How busy the engine is."""
        links = self._links
        slots = sum(link.settings.slots for link in links if link.alive)
        return EngineLoad(
            sum(len(link.sessions) + len(link.opening) for link in links),
            slots,
            max(link.stats.lag_ms for link in links),
            sum(link.stats.steps for link in links),
            max(link.stats.busy for link in links),
            sum(link.alive for link in links),
            self._restarts,
        )

    async def close(self) -> None:
        """End the workers; sessions that are open fail."""
        self._closing = True
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*(link.stop() for link in self._links))

    async def _keep(self, link: _Link) -> None:
        """Start a worker anew when it has ended."""
        while True:
            await link.ended()
            if self._closing:
                return
            self._restarts += 1
            log.error("a recognition worker ended; its sessions are lost; starting it again")
            link.alive = False
            await link.stop()
            while True:
                await asyncio.sleep(RESTART_S)
                try:
                    await link.start()
                    break
                except (AsrError, OSError) as error:
                    log.error("the worker did not start: %s", error)


async def _receive(reader: asyncio.StreamReader) -> Any:
    """One message of a worker of ours; EOFError when there is none any more."""
    try:
        (size,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
        return pickle.loads(await reader.readexactly(size))
    except asyncio.IncompleteReadError:
        raise EOFError from None


def _error(failed: Failed) -> AsrError:
    kind = _KINDS.get(failed.code)
    if kind is None:
        error = AsrError(failed.message)
        error.code = failed.code
        return error
    return kind(failed.message)
