"""An engine that hears nothing: every second of audio is one word, every pause that a test asks for an endpoint.

It has the interface of :class:`asr.engine.Engine` and answers at once, in order, on the event loop. Bytes ``WORD`` in
the audio do not matter; its state is JSON.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from asr.audio.encoding import SampleFormat
from asr.engine import (
    Configured,
    EngineError,
    Event,
    Failed,
    Finished,
    Flushed,
    FullError,
    Output,
    Rejected,
    SessionConfig,
)
from asr.errors import StateError, UsageError
from asr.options import StreamOptions
from asr.results import Alternative, Partial, Segment, Word

WORDS = ("alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel", "india", "juliett")
UNSPEAKABLE = "§"
PER_SEGMENT = 3  # words; then comes an endpoint


@dataclass(frozen=True)
class FakeInfo:
    name: str = "en"
    fingerprint: str = "0123456789abcdef0123456789abcdef"
    sample_rate: int = 16000
    step_ms: int = 40
    latency_ms: int = 360
    words: int = 10
    hotwords: bool = True


class FakeEngine:
    """``slots`` sessions; ``stalled``: it takes audio and says nothing; ``broken``: steps fail."""

    def __init__(self, slots: int = 4, stalled: bool = False, lag_ms: float = 20.0) -> None:
        self.info, self.slots, self.stalled, self.lag_ms = FakeInfo(), slots, stalled, lag_ms
        self.sessions: list[FakeSession] = []
        self.opened = 0
        self.refuse: Exception | None = None

    async def open(self, config: SessionConfig, state: bytes | None = None) -> FakeSession:
        await asyncio.sleep(0)
        if self.refuse:
            raise self.refuse
        if len(self.sessions) >= self.slots:
            raise FullError("all places are taken: try again later")
        self.opened += 1
        session = FakeSession(self, config, state)
        self.sessions.append(session)
        return session


def _options(changes: dict[str, Any], now: StreamOptions) -> StreamOptions:
    options = now.change(**changes)
    if bad := [h.text for h in options.hotwords if UNSPEAKABLE in h.text]:
        raise UsageError("unusable hot words: " + "; ".join(f"'{text}': it cannot be spelled" for text in bad))
    return options


class FakeSession:
    def __init__(self, engine: FakeEngine, config: SessionConfig, state: bytes | None) -> None:
        self.engine, self.config, self.id = engine, config, engine.opened
        self._options = _options(config.options, StreamOptions())
        self._format = SampleFormat(config.encoding, config.channels, config.channel)
        self._rest = b""
        self._told = self._segment = self._begin = self._number = 0
        self.samples = 0
        if state is not None:
            try:
                value = json.loads(state)
                self.samples, self._told, self._segment, self._begin = value["place"]
                self._options = StreamOptions.from_dict(value["options"])
            except (ValueError, KeyError, TypeError):
                raise StateError("the state is broken") from None
        self._events: asyncio.Queue[Event | None] = asyncio.Queue()
        self.ended = False

    @property
    def options(self) -> dict[str, Any]:
        return self._options.to_dict()

    @property
    def ahead_s(self) -> float:
        return 100.0 if self.engine.stalled and self._number else 0.0

    async def room(self, most_s: float) -> None:
        while self.ahead_s >= most_s and not self.ended:
            await asyncio.sleep(0.01)

    def _words(self, begin: int, end: int) -> tuple[Word, ...]:
        return tuple(Word(WORDS[i % len(WORDS)], i + 0.1, i + 0.9, 0.95) for i in range(begin, end))

    def _close(self, end: int, reason: str, commit: bool = True) -> tuple[Segment, ...]:
        words = self._words(self._begin, end)
        if not words:
            return ()
        text = " ".join(w.text for w in words)
        others = tuple(Alternative(f"{text} {i}", words, 0.5 / (i + 1)) for i in range(self._options.alternatives))
        segment = Segment(text, words[0].start, words[-1].end, words, self._segment, 0.9, reason, others)
        if commit:
            self._segment, self._begin = self._segment + 1, end
        return (segment,)

    @property
    def _heard(self) -> int:
        return self.samples // self.config.sample_rate

    def feed(self, data: bytes) -> int:
        assert not self.ended
        self._number += 1
        if self.engine.stalled:
            return self._number
        self._rest += data
        whole = len(self._rest) // self._format.frame_bytes
        self.samples += whole
        self._rest = self._rest[whole * self._format.frame_bytes :]
        results: list[Partial | Segment] = []
        while self._told < self._heard:
            self._told += 1
            if self._told - self._begin >= PER_SEGMENT:
                results += self._close(self._told, "endpoint")
            elif self.config.partials:
                words = self._words(self._begin, self._told)
                stable = " ".join(w.text for w in words[:-1])
                results.append(Partial(self._segment, words[0].start, words[-1].end, stable, words[-1].text))
        self._say(Output(tuple(results), self._number, self.samples, self.engine.lag_ms))
        return self._number

    def configure(self, **changes: Any) -> None:
        try:
            self._options = _options(changes, self._options)
            self._say(Configured(self.options))
        except Exception as error:
            self._say(Rejected(getattr(error, "code", "error"), str(error)))

    def flush(self, id: str = "") -> None:
        self._say(Flushed(id, self._close(self._heard, "flush", commit=False), False))

    def cut(self, id: str = "") -> None:
        self._say(Flushed(id, self._close(self._heard, "flush"), True))

    def finish(self) -> None:
        seconds = self.samples / self.config.sample_rate
        self._say(Finished(self._close(self._heard, "eof"), self.samples, seconds, 0.25, self.engine.lag_ms))
        if not self.engine.stalled:
            self._end()

    async def park(self) -> bytes:
        await asyncio.sleep(0)
        if self.ended:
            raise EngineError("it is gone")
        place = [self.samples, self._told, self._segment, self._begin]
        self._end()
        return json.dumps({"place": place, "options": self.options}).encode()

    def fail(self, code: str = "engine", message: str = "a worker ended") -> None:
        self._say(Failed(code, message))
        self._end()

    def _say(self, event: Event) -> None:
        if not self.engine.stalled:
            self._events.put_nowait(event)

    def _end(self) -> None:
        self.ended = True
        self._events.put_nowait(None)
        if self in self.engine.sessions:
            self.engine.sessions.remove(self)

    async def get(self) -> Event:
        event = await self._events.get()
        if event is None:
            self._events.put_nowait(None)
            raise EOFError
        return event

    def pending(self) -> int:
        return self._events.qsize()

    def close(self) -> None:
        if not self.ended:
            self._end()


def drive(adapter: Any, actions: Sequence[Any], session: FakeSession | None = None) -> tuple[list[Any], Any]:
    """Do what an adapter wants with a fake session, without a :class:`server.session.Session`: what it sends and
    closes, and the session."""
    from server.protocols import actions as a

    out: list[Any] = []
    queue = list(actions)
    while queue:
        action = queue.pop(0)
        if isinstance(action, a.Open):
            try:
                session = FakeSession(FakeEngine(), action.config, None)
            except (UsageError, Exception) as error:
                queue[:0] = adapter.refused(getattr(error, "code", "error"), str(error), 0.0)
            else:
                queue[:0] = adapter.opened(session.options, 0, 0.0)
        elif isinstance(action, a.Send | a.Close | a.Note | a.Resume):
            out.append(action)
        elif session is not None and not session.ended:
            if isinstance(action, a.Feed):
                session.feed(action.data)
            elif isinstance(action, a.Configure):
                session.configure(**action.changes)
            elif isinstance(action, a.Flush):
                session.flush(action.id)
            elif isinstance(action, a.Cut):
                session.cut(action.id)
            elif isinstance(action, a.Finish):
                session.finish()
        while session is not None and session.pending() and (event := session._events.get_nowait()) is not None:
            queue += adapter.event(event, 0.0)
    return out, session
