"""What a recogniser says: words, segments, partial results and whole transcripts.

All times are seconds from the start of the stream, derived from one integer sample counter.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Word:
    """One recognised word with its place in the stream (seconds) and, where known, a confidence from 0 to 1."""

    text: str
    start: float
    end: float
    confidence: float | None = None


@dataclass(frozen=True)
class Partial:
    """What has been heard of the current segment so far.

    ``stable`` is never retracted within its segment; ``unstable`` may still change. ``segment`` counts from 0.
    """

    segment: int
    start: float
    end: float
    stable: str
    unstable: str

    @property
    def text(self) -> str:
        """Stable and unstable text together."""
        return " ".join(part for part in (self.stable, self.unstable) if part)


@dataclass(frozen=True)
class Alternative:
    """Another text that a segment may have been, less likely than its own."""

    text: str
    words: tuple[Word, ...] = ()
    confidence: float | None = None


@dataclass(frozen=True)
class Segment:
    """A closed piece of a stream: its final text and words. ``reason`` says what closed it: endpoint, max_length,
    flush or eof. ``alternatives``: other texts, likeliest first, where they were asked for."""

    text: str
    start: float
    end: float
    words: tuple[Word, ...] = ()
    index: int = 0
    confidence: float | None = None
    reason: str = "eof"
    alternatives: tuple[Alternative, ...] = ()


@dataclass(frozen=True)
class Transcript:
    """All final segments of one recording. ``duration`` is the length of the audio in seconds."""

    segments: tuple[Segment, ...]
    duration: float
    model: str = ""
    source: str = ""
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The text of all segments, joined by spaces."""
        return " ".join(s.text for s in self.segments if s.text)

    @property
    def words(self) -> tuple[Word, ...]:
        """The words of all segments in order."""
        return tuple(w for s in self.segments for w in s.words)


Result = Partial | Segment
