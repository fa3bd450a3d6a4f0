"""From recognised words to readable text: sentence case, punctuation, numbers in digits; words keep their times.

Final segments go in one after the other, with a state between them: sentences run on from segment to segment, and one
that a segment's end interrupts gets no full stop for that alone. Within a segment every word sees ``ahead`` words of
its future; the last ones see what there is. A segment's text never changes afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from asr.checkpoint import TAGGER, ModelFolder
from asr.errors import ModelError, StateError
from asr.readable.numbers import Written, digits
from asr.readable.tagger import Tag, Tagger, TaggerState
from asr.readable.words import COMMA, ENDS, LOWER, MARKS, NONE, UPPER, capital
from asr.results import Segment, Transcript, Word

SURELY_OPEN = 0.95  # a recording ends in a mark unless it is as sure as this that the sentence goes on
FORCED = 0.8  # a segment that was cut in speech ends a sentence only when it is as sure as this
_TITLES = {"mister": "Mr.", "missus": "Mrs."}


@dataclass(frozen=True)
class FormatterState:
    """``tagger``: between two segments no word waits. ``begins``: whether the next word begins a sentence."""

    tagger: TaggerState
    begins: bool = True


@dataclass(frozen=True)
class _Piece:
    """A word as it will be written, without the mark after it: the words ``first`` to ``last`` of the segment.
    ``number``: it is in digits."""

    text: str
    first: int
    last: int
    mark: int
    number: bool = False


class Formatter:
    """Makes text readable. Immutable; any number of sessions share it, each with a state of its own."""

    def __init__(self, tagger: Tagger) -> None:
        self.tagger = tagger

    @classmethod
    def load(cls, folder: ModelFolder) -> Formatter:
        """The formatter of a model folder. Raises ModelError where it has none or its file is broken."""
        if TAGGER not in folder.config.files:
            raise ModelError(f"the model '{folder.name}' cannot write readable text: its folder has no {TAGGER}")
        return cls(Tagger.load(folder.path / TAGGER))

    def begin(self) -> FormatterState:
        """Before the first segment of a stream."""
        return FormatterState(self.tagger.begin())

    def step(self, segment: Segment, state: FormatterState) -> tuple[Segment, FormatterState]:
        """A final segment as readable text. Its words are the written ones: several that became one (``26``) span the
        times of all and have the lowest of their confidences. Everything else of the segment stays.

        Raises StateError for a state of another tagger.
        """
        if len(state.tagger.h) != self.tagger.config.hidden or state.tagger.waiting:
            raise StateError("the state is not one that a formatter of this model gave")
        plain = [word.text for word in segment.words] or segment.text.split()
        said = [word.lower() for word in plain]
        if not said:
            return segment, state
        tags, tagger = self.tagger.step(said, state.tagger)
        last, tagger = self.tagger.flush(tagger)
        tags += last
        marks = [tag.mark for tag in tags]
        marks[-1] = _last_mark(tags[-1], segment.reason)
        texts, spans, begins = _write(self.tagger, said, tags, marks, state.begins)
        words = tuple(_merge(segment.words[a : b + 1], t) for t, (a, b) in zip(texts, spans, strict=True))
        text = " ".join(texts)
        return replace(segment, text=text, words=words if segment.words else ()), FormatterState(tagger, begins)

    def transcript(self, transcript: Transcript) -> Transcript:
        """All segments of a recording as readable text."""
        state, segments = self.begin(), []
        for segment in transcript.segments:
            readable, state = self.step(segment, state)
            segments.append(readable)
        return replace(transcript, segments=tuple(segments))

    def text(self, words: str) -> str:
        """Plain words of a whole recording as readable text."""
        return self.step(Segment(words, 0.0, 0.0), self.begin())[0].text


def _last_mark(tag: Tag, reason: str) -> int:
    """The mark at a segment's end, where the future is not known, but why the segment ended is."""
    mark = tag.mark
    if reason == "eof":
        open_ended = float(np.exp(tag.marks[[NONE, COMMA]]).sum())
        if mark not in ENDS and open_ended < SURELY_OPEN:
            mark = int(max(ENDS, key=lambda end: tag.marks[end]))
        return NONE if mark == COMMA else mark
    if reason == "max_length" and mark in ENDS and float(np.exp(tag.marks[mark])) < FORCED:
        return NONE
    return mark


def _write(
    tagger: Tagger, said: Sequence[str], tags: Sequence[Tag], marks: Sequence[int], begins: bool
) -> tuple[list[str], list[tuple[int, int]], bool]:
    """Written words, the first and last word that each stands for, and whether a sentence begins after them."""
    texts, spans = [], []
    for piece in _join_letters(_pieces(tagger, said, tags, marks), tags):
        text = capital(piece.text) if begins and piece.text.islower() and not piece.number else piece.text
        begins = piece.mark in ENDS
        mark = MARKS[piece.mark]
        texts.append(text.removesuffix(".") + mark if mark == "." else text + mark)
        spans.append((piece.first, piece.last))
    return texts, spans, begins


def _pieces(tagger: Tagger, said: Sequence[str], tags: Sequence[Tag], marks: Sequence[int]) -> list[_Piece]:
    """Words in their case, numbers in digits; no number reaches across a mark."""
    pieces: list[_Piece] = []
    start = 0
    for end in range(len(said)):
        if marks[end] != NONE or end + 1 == len(said):
            for written in digits(said[start : end + 1]):
                pieces.append(_piece(tagger, written, start, said, tags, marks))
            start = end + 1
    return pieces


def _piece(
    tagger: Tagger, written: Written, start: int, said: Sequence[str], tags: Sequence[Tag], marks: Sequence[int]
) -> _Piece:
    first, last = start + written.first, start + written.last
    text = written.text
    if not written.number:
        case = tags[first].case
        following = tags[first + 1].case if first + 1 < len(said) else LOWER
        if text in _TITLES and following != LOWER and marks[first] == NONE:
            text = _TITLES[text]
        else:
            text = tagger.words.write(text, case)
    return _Piece(text, first, last, marks[last], written.number)


def _join_letters(pieces: Sequence[_Piece], tags: Sequence[Tag]) -> list[_Piece]:
    """Letters that are said one by one as one word: ``u s`` as ``US``."""
    joined: list[_Piece] = []
    for piece in pieces:
        before = joined[-1] if joined else None
        if before and before.mark == NONE and _spelled(before, tags) and _spelled(piece, tags):
            joined[-1] = _Piece(before.text + piece.text, before.first, piece.last, piece.mark)
        else:
            joined.append(piece)
    return joined


def _spelled(piece: _Piece, tags: Sequence[Tag]) -> bool:
    count = piece.last - piece.first + 1
    return (
        len(piece.text) == count
        and piece.text.isalpha()
        and all(tags[i].case == UPPER for i in range(piece.first, piece.last + 1))
    )


def _merge(words: Sequence[Word], text: str) -> Word:
    if not words:
        return Word(text, 0.0, 0.0)
    known = [word.confidence for word in words if word.confidence is not None]
    return Word(text, words[0].start, words[-1].end, min(known) if known else None)
