"""A worker of the engine: a process or thread that reads commands, steps its scheduler, and writes answers.

Commands and answers are pickled lists behind their length, over a socket pair that nobody else can reach.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import pickle
import select
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from asr.engine_events import Answer
from asr.errors import AsrError, UsageError

log = logging.getLogger("asr.engine")
LENGTH = struct.Struct("<I")
_SPAN_S = 1.0  # of the statistics
_IDLE = 1e-3  # a share of time that is none
_BUFFER = 1 << 20
SEARCHES = ("beam", "greedy")


@dataclass(frozen=True)
class Settings:
    """What a worker is started with; see :meth:`asr.engine.Engine.start`."""

    model: str
    slots: int
    wait_s: float
    threads: int
    device: str
    precision: str | None
    search: str


@dataclass(frozen=True)
class Ready:
    """First message of a worker that has loaded its model."""

    info: dict[str, Any]


@dataclass(frozen=True)
class Stats:
    """``lag_ms``: largest age of audio when it was decoded; ``busy``: share of time spent in steps; both of the last
    second. ``steps`` since the start."""

    lag_ms: float
    steps: int
    busy: float


class Worker:
    """A running worker and the socket to it."""

    def __init__(self, ours: socket.socket, process: Any, thread: threading.Thread | None) -> None:
        self.socket = ours
        self._process = process
        self._thread = thread

    @property
    def pid(self) -> int | None:
        """Of the process; None for a thread."""
        return self._process.pid if self._process else None

    def stop(self) -> None:
        """Wait for its end, which follows from the end of the socket; not for ever."""
        self.socket.close()
        if self._thread:
            self._thread.join(10)
        if self._process:
            self._process.join(5)
            if self._process.is_alive():
                self._process.kill()
                self._process.join(5)


def start_worker(settings: Settings, in_thread: bool) -> Worker:
    """Start a worker; it sends :class:`Ready`, or the :class:`AsrError` that loading raised."""
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            end.setsockopt(socket.SOL_SOCKET, option, _BUFFER)
    ours.setblocking(False)
    if in_thread:
        thread = threading.Thread(target=_serve, args=(theirs, settings), name="engine worker", daemon=True)
        thread.start()
        return Worker(ours, None, thread)
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_main, args=(theirs, settings), name="asr engine", daemon=True)
    process.start()
    theirs.close()
    return Worker(ours, process, None)


def _main(link: socket.socket, settings: Settings) -> None:
    """Of a worker process: its life is that of the socket, whatever signals its group gets."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.environ["OMP_NUM_THREADS"] = str(settings.threads)
    _serve(link, settings)


def _serve(link: socket.socket, settings: Settings) -> None:
    with link:
        try:
            scheduler = _load(settings)
        except AsrError as error:
            _send(link, error)
            return
        with contextlib.suppress(OSError, EOFError):
            _send(link, Ready(_info(scheduler.recognizer)))
            _loop(link, scheduler, settings.wait_s)


def _load(settings: Settings) -> Any:
    from asr.inference import PRECISION
    from asr.recognizer import Recognizer
    from asr.scheduler import Scheduler

    if settings.search not in SEARCHES:
        raise UsageError(f"there is no search '{settings.search}': use one of {', '.join(SEARCHES)}")
    recognizer = Recognizer.load(
        settings.model,
        settings.device,
        threads=settings.threads,
        precision=settings.precision or PRECISION,
        greedy=settings.search == "greedy",
    )
    return Scheduler(recognizer, settings.slots)


def _info(recognizer: Any) -> dict[str, Any]:
    from asr.decoding.beam_search import BeamSearch
    from asr.decoding.prefix_search import PrefixSearch
    from asr.model_config import STEP_MS

    search = recognizer.search
    return {
        "name": recognizer.folder.name,
        "fingerprint": recognizer.folder.fingerprint,
        "sample_rate": recognizer.sample_rate,
        "step_ms": STEP_MS,
        "latency_ms": recognizer.algorithmic_latency_ms,
        "words": len(search.words) if isinstance(search, BeamSearch) else 0,
        "hotwords": isinstance(search, (BeamSearch, PrefixSearch)),
    }


def _loop(link: socket.socket, scheduler: Any, wait_s: float) -> None:
    """Take commands as they come; step when something is ready, after a short wait for others to join."""
    from asr.engine_events import Finished, Output

    reader, statistics = _Reader(link), _Statistics(scheduler)
    while True:
        idle = None if statistics.quiet else _SPAN_S
        for command in reader.commands(0.0 if scheduler.ready else idle):
            _apply(scheduler, command)
        deadline = time.monotonic() + wait_s
        while scheduler.ready and not scheduler.all_ready and (left := deadline - time.monotonic()) > 0:
            for command in reader.commands(left):
                _apply(scheduler, command)
        answers: list[Answer] = scheduler.step()
        news = statistics.update(event.lag_ms for _, event in answers if isinstance(event, (Output, Finished)))
        if answers or news:
            _send(link, (answers, statistics.last))


class _Statistics:
    """Of the last whole second. They are sent with answers, and alone when they change without any."""

    def __init__(self, scheduler: Any) -> None:
        self.last = Stats(0.0, 0, 0.0)
        self._scheduler = scheduler
        self._began, self._busy, self._lag = time.monotonic(), 0.0, 0.0

    @property
    def quiet(self) -> bool:
        """Whether there is nothing that time alone would change."""
        return self.last.lag_ms == self.last.busy == self._lag == 0.0 and self._scheduler.busy_s == self._busy

    def update(self, lags_ms: Iterable[float]) -> bool:
        """Take note of the lags of a step; whether a second is over."""
        self._lag = max(self._lag, max(lags_ms, default=0.0))
        now, busy = time.monotonic(), self._scheduler.busy_s
        if now - self._began < _SPAN_S:
            return False
        before, share = self.last, (busy - self._busy) / (now - self._began)
        self.last = Stats(self._lag, self._scheduler.steps, share if share > _IDLE else 0.0)
        self._began, self._busy, self._lag = now, busy, 0.0
        return self.last != before


def _apply(scheduler: Any, command: tuple[Any, ...]) -> None:
    from asr.scheduler import Audio, Control

    kind, id, *values = command
    if kind == "audio":
        scheduler.put(id, Audio(*values))
    elif kind == "control":
        scheduler.put(id, Control(*values))
    elif kind == "open":
        scheduler.open(id, *values)
    elif kind == "drop":
        scheduler.drop(id)


class _Reader:
    """Commands of the front, as many as have come."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._held = bytearray()

    def commands(self, timeout: float | None) -> list[tuple[Any, ...]]:
        """Those that are there, after a wait of up to ``timeout`` s (None: until some come). Raises EOFError when the
        front is gone."""
        readable, _, _ = select.select([self._link], [], [], timeout)
        while readable:
            data = self._link.recv(_BUFFER)
            if not data:
                raise EOFError
            self._held += data
            readable, _, _ = select.select([self._link], [], [], 0)
        found: list[tuple[Any, ...]] = []
        while len(self._held) >= LENGTH.size:
            (size,) = LENGTH.unpack_from(self._held)
            stop = LENGTH.size + size
            if len(self._held) < stop:
                break
            found += pickle.loads(self._held[LENGTH.size : stop])
            del self._held[:stop]
        return found


def _send(link: socket.socket, message: Any) -> None:
    body = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    link.sendall(LENGTH.pack(len(body)) + body)
