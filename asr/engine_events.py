"""What goes between the engine's front and its workers: the configuration of a session, and the events of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

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
class Opened:
    """The session is there. ``options``: as they hold (JSON values); ``samples``: taken in, of the client's rate."""

    options: dict[str, Any]
    samples: int


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
class Parked:
    """Answer to a park: the whole state (see :class:`asr.stream_state.StreamState`); the slot is free."""

    state: bytes
    samples: int


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


Event = Opened | Output | Configured | Rejected | Flushed | Parked | Finished | Failed
Answer = tuple[int, Event]
"""An event and the session that it is for."""
