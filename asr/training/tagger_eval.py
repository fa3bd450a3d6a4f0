"""How well a tagger restores case and punctuation of held-out text: ``asr readable eval``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from asr.errors import UsageError
from asr.readable.tagger import Tag, Tagger
from asr.readable.words import CAPITAL, CASES, ENDS, LOWER, MARKS, NONE
from asr.training.tagger import divide, draw_cuts
from asr.training.tagger_text import ANY, Labelled, label, read

LINES = 200_000  # of a held-out part at most: plenty for the words that are measured


@dataclass(frozen=True)
class Score:
    """Of one mark or case: how many there are, how many were found, and how many of these are right."""

    actual: int
    found: int
    right: int

    @property
    def precision(self) -> float:
        """Right among found."""
        return self.right / self.found if self.found else 0.0

    @property
    def recall(self) -> float:
        """Right among actual."""
        return self.right / self.actual if self.actual else 0.0

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        both = self.actual + self.found
        return 2 * self.right / both if both else 0.0


@dataclass(frozen=True)
class Report:
    """``marks`` by mark, with ``end`` for any end of a sentence; ``cases`` by case, over words whose case is known;
    ``case_accuracy`` over these words, and that of the trivial rule (``i`` and its forms in upper case, else lower)."""

    words: int
    marks: dict[str, Score]
    cases: dict[str, Score]
    case_accuracy: float
    trivial_accuracy: float


def tag_in_segments(tagger: Tagger, words: Sequence[str], segments: NDArray[np.int32]) -> list[Tag]:
    """The tags of a text that comes in segments: (n,) number of each word's."""
    edges = [0, *(np.flatnonzero(np.diff(segments)) + 1).tolist(), len(words)]
    state, tags = tagger.begin(), []
    for begin, end in pairwise(edges):
        some, state = tagger.step(words[begin:end], state)
        rest, state = tagger.flush(state)
        tags += some + rest
    return tags


def score(text: Labelled, tags: Sequence[Tag]) -> Report:
    """Compare tags with what was written."""
    marks, found_marks = np.array(text.marks), np.array([tag.mark for tag in tags])
    known = np.array(text.cases) != ANY
    cases, found_cases = np.array(text.cases)[known], np.array([tag.case for tag in tags])[known]
    pronoun = [CAPITAL if word.split("'")[0] == "i" else LOWER for word in text.words]
    by_mark = {mark: _score(marks == i, found_marks == i) for i, mark in enumerate(MARKS) if i != NONE}
    by_mark["end"] = _score(np.isin(marks, ENDS), np.isin(found_marks, ENDS))
    return Report(
        len(text),
        by_mark,
        {case: _score(cases == i, found_cases == i) for i, case in enumerate(CASES)},
        float((cases == found_cases).mean()),
        float((cases == np.array(pronoun)[known]).mean()),
    )


def _score(actual: NDArray[np.bool_], found: NDArray[np.bool_]) -> Score:
    return Score(int(actual.sum()), int(found.sum()), int((actual & found).sum()))


def held_out(text: str, words: int) -> Labelled:
    """The first words of a text's held-out part. Raises UsageError when there are none."""
    part = label(islice(divide(read(text), test=True), LINES))
    if not len(part):
        raise UsageError(f"{text} holds no cased and punctuated lines to measure on: give more of it")
    n = min(len(part), words)
    return Labelled(part.words[:n], part.cases[:n], part.marks[:n])


def main(tagger: str, texts: Sequence[str], words: int) -> int:
    """Print the figures of each text, as it runs and cut into segments."""
    model = _load(tagger)
    print(f"{'':<34} {'words':>7}  {'comma':>5} {'stop':>5} {'?':>5} {'!':>5} {'end':>5}  {'capital':>7}  case (rule)")
    for text in texts:
        part = held_out(text, words)
        cuts = draw_cuts(np.array(part.marks, dtype=np.int64), np.random.default_rng(0))
        for how, segments in (("running", np.zeros_like(cuts)), ("segments", cuts)):
            report = score(part, tag_in_segments(model, part.words, segments))
            marks = " ".join(f"{100 * report.marks[mark].f1:5.1f}" for mark in (*MARKS[1:], "end"))
            case = f"{report.case_accuracy:.2%} ({report.trivial_accuracy:.2%})"
            capital = f"{100 * report.cases['capital'].f1:7.1f}"
            print(f"{f'{Path(text).name} {how}':<34} {report.words:>7}  {marks}  {capital}  {case}", flush=True)
    return 0


def _load(tagger: str) -> Tagger:
    if Path(tagger).is_file():
        return Tagger.load(Path(tagger))
    from asr.checkpoint import find_model
    from asr.readable import Formatter

    return Formatter.load(find_model(tagger)).tagger
