"""The engine as the server sees it: many live sessions on workers that own a recogniser each.

A worker is a process (or, for tests and small machines, a thread) in which a :class:`asr.batching.Scheduler` advances
all sessions together. The event loop only moves bytes: it never computes, and nothing that a session does blocks it.

The calls that an :class:`EngineSession` offers are ordered: audio, changes, flushes and the end take effect in the order
in which they were given. Its events come in that order, too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from asr.audio import ENCODINGS
from asr.errors import AsrError
from asr.results import Result, Segment


class EngineError(AsrError):
    """A worker ended or failed in a step; the sessions it held are gone."""

    code = "engine"


class FullError(AsrError):
    """All slots are taken."""

    code = "full"


@dataclass(frozen=True)
class SessionConfig:
    """What a session is opened with. ``channels`` are interleaved; ``channel`` (from 0) is heard, or their mean (None).
    The rest as in :meth:`asr.Recognizer.stream`; None: the model's own. Whoever opens the session checks them."""

    sample_rate: int = 16000
    encoding: str = "pcm_s16le"
    channels: int = 1
    channel: int | None = None
    partials: bool = True
    options: dict[str, Any] = field(default_factory=dict)  # hotwords, endpointing, lm, alternatives


@dataclass(frozen=True)
class Output:
    """Of a step: what is new (often nothing). ``taken``: number of the last call of :meth:`EngineSession.feed` that is
    wholly decoded; ``samples``: of the client's rate, taken in so far; ``lag_ms``: age of the oldest audio in it."""

    results: tuple[Result, ...]
    taken: int
    samples: int
    lag_ms: float


@dataclass(frozen=True)
class Configured:
    """Answer to :meth:`EngineSession.configure`: the options as they hold now (JSON values)."""

    options: dict[str, Any]


@dataclass(frozen=True)
class Rejected:
    """A :meth:`EngineSession.configure` that was refused; nothing is changed and the session goes on."""

    code: str
    message: str


@dataclass(frozen=True)
class Flushed:
    """Answer to :meth:`EngineSession.flush` (``cut`` False: a copy was finished, the open segment goes on) and
    :meth:`EngineSession.cut` (True: the segment was closed for good)."""

    id: str
    segments: tuple[Segment, ...]
    cut: bool


@dataclass(frozen=True)
class Finished:
    """Last of a session that ended with :meth:`EngineSession.finish`."""

    segments: tuple[Segment, ...]
    samples: int
    audio_s: float
    processing_s: float
    lag_ms: float


@dataclass(frozen=True)
class Failed:
    """Last of a session that cannot go on. ``code``: a row of :data:`asr.errors.ERRORS`."""

    code: str
    message: str


Event = Output | Configured | Rejected | Flushed | Finished | Failed

__all__ = ["ENCODINGS", "Configured", "EngineError", "Event", "Failed", "Finished", "Flushed", "FullError", "Output"]
