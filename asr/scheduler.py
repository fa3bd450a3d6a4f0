"""Many live sessions on one recogniser: what is ready in any of them shares one network step and one search step.

Pure: commands go in, answers come out of :meth:`Scheduler.step`; sockets, processes and waiting are in
:mod:`asr.engine`. A session's calls take effect in their order; between sessions there is none. Whatever a step has to
work on is limited (:data:`MOST_S`), so that one session that sends a whole file at once delays the others by little.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asr.audio import SampleDecoder
from asr.audio.encoding import DecoderState, SampleFormat
from asr.batching import Slots
from asr.engine_events import (
    Answer,
    Configured,
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
from asr.errors import AsrError, StateError
from asr.recognizer import Recognizer, Stream, StreamState, feed_many, finish_many
from asr.results import Result, Segment

log = logging.getLogger("asr.engine")
MOST_S = 0.5  # seconds of audio that a session brings to a step at most
INTERNAL = "error"  # the row of the error table for what should never happen


@dataclass(frozen=True)
class Audio:
    """Bytes of a session; ``number`` counts its calls from 1; ``arrived``: time by the scheduler's clock."""

    data: bytes
    number: int
    arrived: float


@dataclass(frozen=True)
class Control:
    """A call of a session that is no audio: ``name`` is configure (``value``: the changes), flush or cut (an id), park,
    or finish (the time at which it came)."""

    name: str
    value: Any = None


@dataclass
class _Session:
    id: int
    stream: Stream
    decoder: SampleDecoder
    decoding: DecoderState = field(default_factory=DecoderState)
    waiting: deque[Audio | Control] = field(default_factory=deque)
    taken: int = 0
    processing_s: float = 0.0

    @property
    def sees_audio(self) -> bool:
        return bool(self.waiting) and isinstance(self.waiting[0], Audio)


@dataclass(frozen=True)
class _Piece:
    """What a session brings to a step. ``before``: its stream as the step finds it."""

    session: _Session
    samples: NDArray[np.float32]
    oldest: float
    before: StreamState


class Scheduler:
    """The sessions of one recogniser. Not for several threads.

    ``slots``: how many there can be. ``clock`` gives seconds; audio's time of arrival is by the same clock.
    """

    def __init__(self, recognizer: Recognizer, slots: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.recognizer = recognizer
        self.slots = Slots(recognizer.model, slots)
        self.clock = clock
        self.steps = 0
        self.busy_s = 0.0
        self._sessions: dict[int, _Session] = {}
        self._ready: dict[int, None] = {}  # sessions with something waiting, in order of arrival
        self._answers: list[Answer] = []

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def ready(self) -> bool:
        """Whether a step would do something."""
        return bool(self._ready)

    @property
    def all_ready(self) -> bool:
        """Whether waiting cannot make the next step's batch larger."""
        return len(self._ready) == len(self._sessions)

    def open(self, id: int, config: SessionConfig, state: bytes | None = None) -> None:
        """Begin a session, or go on with one from its serialised state; answered by Opened, or Failed with the code of
        the error."""
        try:
            if not self.slots.free:
                raise FullError(f"all {self.slots.count} slots are taken: try again later or another server")
            decoder = SampleDecoder(SampleFormat(config.encoding, config.channels, config.channel))
            kept = StreamState.from_bytes(state) if state is not None else None
            stream = self.recognizer.stream(config.sample_rate, config.partials, kept, **config.options)
        except AsrError as error:
            self._answers.append((id, Failed(error.code, str(error))))
            return
        except TypeError:
            self._answers.append((id, Failed("usage", _unknown_option(config.options))))
            return
        stream.state.network = self.slots.hold(stream.state.network)
        self._sessions[id] = _Session(id, stream, decoder)
        self._answers.append((id, Opened(stream.options.to_dict(), stream.state.samples_in)))

    def put(self, id: int, item: Audio | Control) -> None:
        """Queue a call. Of a session that is gone, it is passed over: the client has been told, or soon is."""
        if session := self._sessions.get(id):
            session.waiting.append(item)
            self._ready[id] = None

    def drop(self, id: int) -> None:
        """Forget a session at once."""
        if session := self._sessions.pop(id, None):
            self._ready.pop(id, None)
            self.slots.release(session.stream.state.network)

    def step(self) -> list[Answer]:
        """Advance every session that has something waiting; all answers since the last call, in order."""
        started = time.perf_counter()
        sessions = [self._sessions[id] for id in self._ready]
        self._each(sessions, self._controls)
        self._audio([s for s in self._alive(sessions) if s.sees_audio])
        self._each([s for s in self._alive(sessions) if not s.sees_audio], self._controls)
        self._finish([s for s in self._alive(sessions) if s.waiting and _is_finish(s.waiting[0])])
        for session in sessions:
            if not session.waiting or session.id not in self._sessions:
                self._ready.pop(session.id, None)
        self.steps += bool(sessions)
        self.busy_s += time.perf_counter() - started
        answers, self._answers = self._answers, []
        return answers

    def _alive(self, sessions: Iterable[_Session]) -> list[_Session]:
        """Those that have not ended within this step: nothing more is computed for the others."""
        return [s for s in sessions if s.id in self._sessions]

    # --- controls -----------------------------------------------------------------------------------------------------

    def _each(self, sessions: Iterable[_Session], work: Callable[[_Session], None]) -> None:
        """``work`` on each; one that fails ends alone."""
        for session in sessions:
            try:
                work(session)
            except Exception as error:
                self._fail(session, error)

    def _controls(self, session: _Session) -> None:
        """All calls at the head of the queue that are no audio and not the end."""
        while session.waiting and session.id in self._sessions:
            item = session.waiting[0]
            if isinstance(item, Audio) or _is_finish(item):
                return
            session.waiting.popleft()
            for event in _CONTROLS[item.name](session, item.value):
                self._answers.append((session.id, event))
            if item.name == "park":
                self.drop(session.id)

    def _finish(self, sessions: Sequence[_Session]) -> None:
        if not sessions:
            return
        before = [s.stream.checkpoint() for s in sessions]
        started = time.perf_counter()
        self.slots.settle()
        try:
            found = finish_many([s.stream for s in sessions])
        except Exception as error:
            self._alone(sessions, before, lambda one: self._finish([one]), error)
            return
        share = (time.perf_counter() - started) / len(sessions)
        for session, results in zip(sessions, found, strict=True):
            control = session.waiting.popleft()
            assert isinstance(control, Control)
            lag = max(0.0, 1000 * (self.clock() - control.value))
            stream = session.stream
            processing = session.processing_s + share
            segments = tuple(r for r in results if isinstance(r, Segment))
            done = Finished(segments, stream.state.samples_in, stream.duration, processing, lag)
            self._answers.append((session.id, done))
            self.drop(session.id)

    # --- audio --------------------------------------------------------------------------------------------------------

    def _audio(self, sessions: Sequence[_Session]) -> None:
        pieces: list[_Piece] = []
        for session in sessions:
            try:
                pieces.append(self._piece(session))
            except Exception as error:
                self._fail(session, error)
        self._feed(pieces)

    def _piece(self, session: _Session) -> _Piece:
        """The samples at the head of a session's queue, as many as a step may have of one session."""
        waiting, oldest = session.waiting, self.clock()
        format = session.decoder.format
        room = max(1, round(MOST_S * session.stream.sample_rate)) * format.frame_bytes
        data: list[bytes] = []
        while room > 0 and waiting and isinstance(item := waiting[0], Audio):
            oldest = min(oldest, item.arrived)
            if len(item.data) > room:
                waiting[0] = Audio(item.data[room:], item.number, item.arrived)
                data.append(item.data[:room])
                break
            waiting.popleft()
            data.append(item.data)
            session.taken, room = item.number, room - len(item.data)
        samples, session.decoding = session.decoder.step(b"".join(data), session.decoding)
        return _Piece(session, samples, oldest, session.stream.checkpoint())

    def _feed(self, pieces: Sequence[_Piece]) -> None:
        if not pieces:
            return
        started = time.perf_counter()
        self.slots.settle()
        try:
            found = feed_many([(p.session.stream, p.samples) for p in pieces])
        except Exception as error:
            of = {p.session.id: p for p in pieces}
            sessions, before = [p.session for p in pieces], [p.before for p in pieces]
            self._alone(
                sessions, before, lambda one: self._feed([replace(of[one.id], before=one.stream.checkpoint())]), error
            )
            return
        share, now = (time.perf_counter() - started) / len(pieces), self.clock()
        for piece, results in zip(pieces, found, strict=True):
            piece.session.processing_s += share
            self._answers.append((piece.session.id, _output(piece, results, now)))

    def _alone(
        self,
        sessions: Sequence[_Session],
        before: Sequence[StreamState],
        work: Callable[[_Session], None],
        error: Exception,
    ) -> None:
        """A step of several failed: take it back, and try it with each alone. Who fails alone ends."""
        self.slots.undo()
        for session, state in zip(sessions, before, strict=True):
            session.stream.roll_back(state)
        if len(sessions) == 1:
            self._fail(sessions[0], error)
            return
        log.warning("a step of %d sessions failed; each is tried alone: %r", len(sessions), error)
        for session in sessions:
            work(session)

    def _fail(self, session: _Session, error: Exception) -> None:
        if isinstance(error, AsrError):
            failed = Failed(error.code, str(error))
        else:
            log.error("session %d failed", session.id, exc_info=error)
            failed = Failed(INTERNAL, "internal error: the session cannot go on")
        self._answers.append((session.id, failed))
        self.drop(session.id)


def _is_finish(item: Audio | Control) -> bool:
    return isinstance(item, Control) and item.name == "finish"


def _output(piece: _Piece, results: Sequence[Result], now: float) -> Output:
    session = piece.session
    lag_ms = max(0.0, 1000 * (now - piece.oldest))
    return Output(tuple(results), session.taken, session.stream.state.samples_in, lag_ms)


def _configure(session: _Session, changes: dict[str, Any]) -> list[Event]:
    try:
        return [Configured(session.stream.configure(**changes).to_dict())]
    except TypeError:
        return [Rejected("usage", _unknown_option(changes))]
    except AsrError as error:
        return [Rejected(error.code, str(error))]


def _unknown_option(options: Iterable[str]) -> str:
    return f"unknown option in {sorted(options)}: use hotwords, endpointing, lm, alternatives"


def _flush(session: _Session, id: str) -> list[Event]:
    return [Flushed(id, _segments(session.stream.flush()), False)]


def _cut(session: _Session, id: str) -> list[Event]:
    return [Flushed(id, _segments(session.stream.cut()), True)]


def _park(session: _Session, _: Any) -> list[Event]:
    state = session.stream.state
    if state.finished:
        raise StateError("the session has ended: it cannot be parked")
    return [Parked(state.to_bytes(), state.samples_in)]


def _segments(results: Iterable[Result]) -> tuple[Segment, ...]:
    return tuple(r for r in results if isinstance(r, Segment))


_CONTROLS: dict[str, Callable[[_Session, Any], list[Event]]] = {
    "configure": _configure,
    "flush": _flush,
    "cut": _cut,
    "park": _park,
}
