"""Error rates of recognition: alignment, word and character error rate, bootstrap intervals, an error report.

Texts are compared as they are given: pass reference and hypothesis through :func:`asr.text.normalize` first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TextIO, TypeVar

import numpy as np
from numpy.typing import NDArray

from asr.errors import UsageError

T = TypeVar("T", bound=Hashable)
Unit = Literal["word", "character"]
Pair = tuple[T | None, T | None]

BOOTSTRAP_SAMPLES = 1000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Edits:
    """Edits that turn one reference into its hypothesis, and the length of the reference."""

    substitutions: int
    deletions: int
    insertions: int
    total: int

    @property
    def errors(self) -> int:
        """All edits together: the edit distance."""
        return self.substitutions + self.deletions + self.insertions


@dataclass(frozen=True)
class ErrorRate:
    """Corpus-level error rate: all errors over all reference units, with a 95 % bootstrap interval of the rate.

    ``rate``, ``low`` and ``high`` are fractions (0.25 is 25 %). An empty reference has rate 0, or infinity when the
    hypothesis is not empty.
    """

    errors: int
    total: int
    rate: float
    low: float
    high: float
    substitutions: int
    deletions: int
    insertions: int
    utterances: int

    def __str__(self) -> str:
        return (
            f"{self.rate:.2%} [{self.low:.2%}, {self.high:.2%}] {self.errors}/{self.total}"
            f" (sub {self.substitutions}, del {self.deletions}, ins {self.insertions})"
        )


def edit_distance(reference: Sequence[Hashable], hypothesis: Sequence[Hashable]) -> int:
    """The least number of substitutions, deletions and insertions that turn ``reference`` into ``hypothesis``."""
    if not hypothesis:
        return len(reference)
    up, down = _differences(reference, hypothesis)[-1]
    return len(hypothesis) + up.bit_count() - down.bit_count()


def _differences(reference: Sequence[Hashable], hypothesis: Sequence[Hashable]) -> list[tuple[int, int]]:
    """Where the columns of the edit-distance matrix rise and fall, one column per hypothesis unit.

    Bit i of the first number is set where the distance grows by 1 from reference row i to row i + 1, of the second
    where it falls by 1. The bit-parallel algorithm of Myers (1999) in the form of Hyyrö (2003): one step per column on
    integers of as many bits as the reference has units, some twenty times faster than the matrix in plain Python.
    """
    positions: dict[Hashable, int] = {}
    for i, unit in enumerate(reference):
        positions[unit] = positions.get(unit, 0) | 1 << i
    mask = (1 << len(reference)) - 1
    up, down = mask, 0
    columns: list[tuple[int, int]] = []
    for unit in hypothesis:
        match = positions.get(unit, 0)
        zero = (((match & up) + up) ^ up) | match | down  # bit i: the diagonal step to row i + 1 is free
        plus = down | ~(zero | up)
        minus = up & zero
        plus = plus << 1 | 1  # row 0 grows by 1 with every hypothesis unit
        minus <<= 1
        up = (minus | ~(zero | plus)) & mask
        down = plus & zero & mask
        columns.append((up, down))
    return columns


def align(reference: Sequence[T], hypothesis: Sequence[T]) -> list[Pair[T]]:
    """A minimal alignment as pairs (reference unit, hypothesis unit); ``None`` marks an insertion or a deletion.

    All edits cost 1.
    """
    columns = _differences(reference, hypothesis)
    pairs: list[Pair[T]] = []
    i, j = len(reference), len(hypothesis)
    while i and j:
        if columns[j - 1][0] >> (i - 1) & 1:
            i -= 1
            pairs.append((reference[i], None))
            continue
        j -= 1
        if j and columns[j - 1][1] >> (i - 1) & 1:
            pairs.append((None, hypothesis[j]))
        else:
            i -= 1
            pairs.append((reference[i], hypothesis[j]))
    pairs.extend((reference[k], None) for k in range(i - 1, -1, -1))
    pairs.extend((None, hypothesis[k]) for k in range(j - 1, -1, -1))
    pairs.reverse()
    return pairs


def count_edits(pairs: Iterable[Pair[Any]]) -> Edits:
    """The edits of one alignment."""
    substitutions = deletions = insertions = total = 0
    for reference, hypothesis in pairs:
        if reference is None:
            insertions += 1
            continue
        total += 1
        if hypothesis is None:
            deletions += 1
        elif reference != hypothesis:
            substitutions += 1
    return Edits(substitutions, deletions, insertions, total)


def split_units(text: str, unit: Unit = "word") -> list[str]:
    """``text`` as words, or as characters with one space between words (which counts as a character)."""
    words = text.split()
    return words if unit == "word" else list(" ".join(words))


def edits(reference: str, hypothesis: str, unit: Unit = "word") -> Edits:
    """The edits between two texts, counted in words or characters."""
    return count_edits(align(split_units(reference, unit), split_units(hypothesis, unit)))


def word_error_rate(
    references: Sequence[str], hypotheses: Sequence[str], speakers: Sequence[str | None] | None = None, **bootstrap: Any
) -> ErrorRate:
    """Corpus word error rate; see :func:`error_rate` for ``speakers`` and ``bootstrap`` (``samples``, ``seed``)."""
    return error_rate(_edits_of_all(references, hypotheses, "word"), speakers, **bootstrap)


def character_error_rate(
    references: Sequence[str], hypotheses: Sequence[str], speakers: Sequence[str | None] | None = None, **bootstrap: Any
) -> ErrorRate:
    """Corpus character error rate, spaces between words counted; arguments as in :func:`word_error_rate`."""
    return error_rate(_edits_of_all(references, hypotheses, "character"), speakers, **bootstrap)


def error_rate(
    utterances: Sequence[Edits],
    speakers: Sequence[str | None] | None = None,
    *,
    samples: int = BOOTSTRAP_SAMPLES,
    seed: int = 0,
) -> ErrorRate:
    """The error rate of a corpus from the edits of its utterances, with a bootstrap interval.

    Bisani & Ney, "Bootstrap estimates for confidence intervals in ASR performance evaluation" (ICASSP 2004): the
    utterances are drawn again with replacement ``samples`` times, and the interval lies between the 2.5 and 97.5
    percentiles of the rates of the draws. Where ``speakers`` are known (an entry that is ``None`` or empty stands for
    a speaker of its own), whole speakers are drawn, because errors of one speaker are not independent.

    Raises :class:`UsageError` when the lengths differ.
    """
    counts = np.array([(u.errors, u.total) for u in utterances], dtype=np.int64).reshape(-1, 2)
    errors, total = (int(n) for n in counts.sum(axis=0))
    drawn = _resample(_group(counts, speakers), samples, seed)
    low, high = _percentiles(_ratio(drawn[:, 0], drawn[:, 1])) if len(drawn) else (0.0, 0.0)
    return ErrorRate(
        errors=errors,
        total=total,
        rate=float(_ratio(np.array([errors]), np.array([total]))[0]),
        low=low,
        high=high,
        substitutions=sum(u.substitutions for u in utterances),
        deletions=sum(u.deletions for u in utterances),
        insertions=sum(u.insertions for u in utterances),
        utterances=len(utterances),
    )


@dataclass(frozen=True)
class Comparison:
    """Two systems on the same utterances: difference of rates (second minus first), its 95 % interval, and the
    probability that the second is better, the share of draws in which it makes fewer errors (ties count half)."""

    difference: float
    low: float
    high: float
    improvement: float


def compare(
    first: Sequence[Edits],
    second: Sequence[Edits],
    speakers: Sequence[str | None] | None = None,
    *,
    samples: int = BOOTSTRAP_SAMPLES,
    seed: int = 0,
) -> Comparison:
    """Whether ``second`` is better than ``first``, both measured on the same utterances in the same order.

    The paired bootstrap of Bisani & Ney (2004): both systems are measured on the same draws, so that what makes
    utterances hard for both cancels out. Raises :class:`UsageError` when the references differ in length.
    """
    if [u.total for u in first] != [u.total for u in second]:
        raise UsageError("the two systems were not measured on the same utterances in the same order")
    counts = np.array(
        [(a.errors, b.errors, a.total) for a, b in zip(first, second, strict=True)], dtype=np.int64
    ).reshape(-1, 3)
    drawn = _resample(_group(counts, speakers), samples, seed)
    sums = counts.sum(axis=0)
    change = drawn[:, 1] - drawn[:, 0]
    low, high = _percentiles(_ratio(change, drawn[:, 2])) if len(drawn) else (0.0, 0.0)
    improvement = float(np.mean((change < 0) + 0.5 * (change == 0))) if len(drawn) else 0.5
    return Comparison(float(_ratio(sums[1:2] - sums[:1], sums[2:])[0]), low, high, improvement)


def _edits_of_all(references: Sequence[str], hypotheses: Sequence[str], unit: Unit) -> list[Edits]:
    if len(references) != len(hypotheses):
        raise UsageError(f"there are {len(references)} references but {len(hypotheses)} hypotheses")
    return [edits(r, h, unit) for r, h in zip(references, hypotheses, strict=True)]


def _group(counts: NDArray[np.int64], speakers: Sequence[str | None] | None) -> NDArray[np.int64]:
    """Rows of utterances summed up by speaker."""
    if speakers is None:
        return counts
    if len(speakers) != len(counts):
        raise UsageError(f"there are {len(counts)} utterances but {len(speakers)} speakers")
    numbers: dict[object, int] = {}
    index = [numbers.setdefault(name or ("nobody", i), len(numbers)) for i, name in enumerate(speakers)]
    grouped = np.zeros((len(numbers), counts.shape[1]), dtype=np.int64)
    np.add.at(grouped, np.array(index, dtype=np.int64), counts)
    return grouped


def _resample(counts: NDArray[np.int64], samples: int, seed: int) -> NDArray[np.int64]:
    """Sums of ``samples`` draws of as many rows as there are, with replacement: (samples, columns)."""
    if not len(counts):
        return np.zeros((0, counts.shape[1]), dtype=np.int64)
    random = np.random.default_rng(seed)
    sums = [counts[random.integers(len(counts), size=len(counts))].sum(axis=0) for _ in range(samples)]
    return np.array(sums, dtype=np.int64).reshape(-1, counts.shape[1])


def _ratio(errors: NDArray[np.int64], total: NDArray[np.int64]) -> NDArray[np.float64]:
    empty = np.select([errors < 0, errors == 0], [-np.inf, 0.0], np.inf)
    return np.where(total > 0, errors / np.maximum(total, 1), empty)


def _percentiles(rates: NDArray[np.float64]) -> tuple[float, float]:
    tail = 50.0 * (1.0 - CONFIDENCE)
    # Not interpolated: an interpolation between two infinite rates is not a number.
    low, high = np.percentile(rates, [tail, 100.0 - tail], method="nearest")
    return float(low), float(high)


@dataclass(frozen=True)
class Utterance:
    """One utterance of an error report; texts are already normalised."""

    name: str
    reference: str
    hypothesis: str
    speaker: str | None = None


def write_report(utterances: Iterable[Utterance], file: TextIO, *, top: int = 30) -> None:
    """Write every utterance with its errors aligned in columns, then the most frequent confusions.

    Words that differ are in upper case, a missing one is a row of asterisks (the layout of NIST sclite). Utterances
    stand in the given order. Ends with the word error rate and up to ``top`` substitutions, deletions and insertions.
    """
    confusions: dict[str, Counter[str]] = {"substitutions": Counter(), "deletions": Counter(), "insertions": Counter()}
    counted: list[Edits] = []
    speakers: list[str | None] = []
    for utterance in utterances:
        pairs = align(utterance.reference.split(), utterance.hypothesis.split())
        counted.append(count_edits(pairs))
        speakers.append(utterance.speaker)
        _write_aligned(utterance.name, pairs, counted[-1], file)
        for reference, hypothesis in pairs:
            if reference is None:
                confusions["insertions"][str(hypothesis)] += 1
            elif hypothesis is None:
                confusions["deletions"][reference] += 1
            elif reference != hypothesis:
                confusions["substitutions"][f"{reference} -> {hypothesis}"] += 1
    total = error_rate(counted, speakers)
    whole = sum(1 for e in counted if e.errors == 0)
    file.write(f"TOTAL {total}, {whole} of {len(counted)} utterances without an error\n")
    for title, counter in confusions.items():
        _write_most_common(title, counter, top, file)


def _write_aligned(name: str, pairs: Sequence[Pair[str]], e: Edits, file: TextIO) -> None:
    columns = [_column(*pair) for pair in pairs]
    file.write(f"{name}: {e.errors}/{e.total} (sub {e.substitutions}, del {e.deletions}, ins {e.insertions})\n")
    for row, title in enumerate(("REF", "HYP")):
        file.write(f"  {title}: {' '.join(column[row] for column in columns)}".rstrip() + "\n")
    file.write("\n")


def _column(reference: str | None, hypothesis: str | None) -> tuple[str, str]:
    width = max(len(reference or ""), len(hypothesis or ""))
    mark: Callable[[str], str] = str if reference == hypothesis else str.upper
    upper, lower = (mark(word).ljust(width) if word is not None else "*" * width for word in (reference, hypothesis))
    return upper, lower


def _write_most_common(title: str, counter: Counter[str], top: int, file: TextIO) -> None:
    file.write(f"\n{title}: {counter.total()}, {len(counter)} different\n")
    for text, count in sorted(counter.items(), key=lambda item: (-item[1], item[0]))[:top]:
        file.write(f"{count:7d}  {text}\n")
