"""Which sentences synthetic speech is made of: those that can be spoken, chosen for what the training tables lack.

Only sentences whose words the lexicon lists are taken: of any other word neither the engine nor we know how it is said.
A part of them is drawn at random, so that usual sentences stay usual; the others are chosen greedily, each for the
words and phone trigrams that were heard least so far. The gain of a sentence only falls while others are chosen, so a
heap with lazy updates finds the greedy choice (Minoux 1978, "Accelerated greedy algorithms").
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from asr.lexicon import Lexicon
from asr.lm.build import TextFile
from asr.lm.text import Normalizer

PHONE_S, SENTENCE_S = 0.08, 0.35  # length of speech: so much a phone, and so much besides
_MARKS = ",;:.?!"
_QUOTES = "\"'`)]}”’»"
_LETTERS = frozenset("bcdefghjklmnopqrstuvwxyz")  # alone they are initials, or what is left of a clitic
_FIXED = 10  # phones that a sentence costs besides its own, so that short ones have no advantage


@dataclass(frozen=True)
class Sentence:
    """``text``: normalised, the transcript. ``spoken``: the same words with punctuation, for the engine.

    ``phones``: number of phones, by the first pronunciations.
    """

    text: str
    spoken: str
    phones: int

    @property
    def seconds(self) -> float:
        """About how long it takes at the usual rate."""
        return SENTENCE_S + PHONE_S * self.phones


@dataclass(frozen=True)
class Limits:
    """Which sentences are taken: number of words, and seconds at the usual rate."""

    fewest_words: int = 4
    most_words: int = 35
    longest_s: float = 14.0


class _Lines(Normalizer):
    """Leaves lines as they are, so that :class:`TextFile` gives them with case and punctuation."""

    def __call__(self, line: str) -> str:
        return line.strip()


def draw_lines(sources: Sequence[Sequence[str]], count: int, rng: np.random.Generator) -> list[str]:
    """About ``count`` lines at random, the same number of every source (some files each) that has as many."""
    share = math.ceil(count / max(1, len(sources)))
    drawn = []
    for source in sources:
        lines = (line for spec in source for line in TextFile.parse(spec).sentences(_Lines()))
        drawn += _reservoir(lines, share, rng)
    return drawn


def _reservoir(lines: Iterable[str], count: int, rng: np.random.Generator) -> list[str]:
    """``count`` of ``lines`` at random, each as likely as any other, read once (Vitter 1985, algorithm R)."""
    kept: list[str] = []
    for block_start, block in _blocks(lines, 65536):
        places = (rng.random(len(block)) * (block_start + 1 + np.arange(len(block)))).astype(np.int64).tolist()
        for line, place in zip(block, places, strict=True):
            if len(kept) < count:
                kept.append(line)
            elif place < count:
                kept[place] = line
    return kept


def _blocks(lines: Iterable[str], size: int) -> Iterator[tuple[int, list[str]]]:
    start, block = 0, []
    for line in lines:
        block.append(line)
        if len(block) == size:
            yield start, block
            start, block = start + size, []
    yield start, block


def sentences(lines: Iterable[str], lexicon: Lexicon, limits: Limits) -> list[Sentence]:
    """Those of ``lines`` that can be spoken and are within ``limits``, each once."""
    normalizer = Normalizer()
    found: dict[str, Sentence] = {}
    for line in lines:
        sentence = _sentence(line, normalizer, lexicon, limits)
        if sentence is not None:
            found.setdefault(sentence.text, sentence)
    return list(found.values())


def _sentence(line: str, normalizer: Normalizer, lexicon: Lexicon, limits: Limits) -> Sentence | None:
    text = normalizer(line)
    words = text.split()
    if not limits.fewest_words <= len(words) <= limits.most_words:
        return None
    if not all(word in lexicon and word not in _LETTERS for word in words):
        return None
    phones = sum(len(lexicon[word][0]) for word in words)
    sentence = Sentence(text, _spoken(line, text, normalizer), phones)
    return sentence if sentence.seconds <= limits.longest_s else None


def _spoken(line: str, text: str, normalizer: Normalizer) -> str:
    """The words of ``text`` with the punctuation of ``line``, where one follows from the other word by word."""
    parts: list[str] = []
    for token in line.split():
        words, mark = normalizer(token), _mark(token)
        if words:
            parts.append(words)
        if mark and parts and parts[-1][-1] not in _MARKS:
            parts[-1] += mark
    spoken = " ".join(parts)
    if "".join(c for c in spoken if c not in _MARKS) != text:  # numbers are read with their neighbours
        spoken = text
    return spoken.rstrip(",;:") + ("" if spoken[-1] in ".?!" else ".")


def _mark(token: str) -> str:
    """The mark that ``token`` ends with; a dash is a comma, ellipses are one stop."""
    bare = token.rstrip(_QUOTES)
    if bare.endswith(("-", "–", "—")):
        return ","
    return bare[-1] if bare and bare[-1] in _MARKS else ""


@dataclass
class Coverage:
    """How often words and phone trigrams were heard: those of training tables, and of the sentences chosen so far."""

    lexicon: Lexicon
    heard: Counter[str] = field(default_factory=Counter)

    def add(self, text: str) -> None:
        """Count a transcript; words that the lexicon does not list count as words alone."""
        self.heard.update(self.items(text.split()))

    def items(self, words: Sequence[str]) -> list[str]:
        """The words, and the trigrams of phones within and across words (``A-B-C``), each as often as it is there."""
        phones = [phone for word in words for phone in next(iter(self.lexicon.get(word)), ())]
        return [*words, *map("-".join, zip(phones, phones[1:], phones[2:], strict=False))]

    def sizes(self) -> tuple[int, int]:
        """Number of distinct words and of distinct trigrams that were heard."""
        trigrams = sum("-" in item for item in self.heard)
        return len(self.heard) - trigrams, trigrams


def choose(
    pool: Sequence[Sentence], seconds: float, count: int | None, greedy: float, coverage: Coverage, seed: int
) -> list[Sentence]:
    """Sentences of about ``seconds`` (and ``count`` of them at most) from ``pool``, in random order.

    The share ``greedy`` of them is chosen for coverage, the others are drawn; ``coverage`` then has them all.
    """
    rng = np.random.default_rng(seed)
    order = [pool[i] for i in rng.permutation(len(pool))]
    count = len(order) if count is None else count
    drawn = _take(iter(order), seconds * (1 - greedy), round(count * (1 - greedy))) if greedy < 1 else []
    for sentence in drawn:
        coverage.add(sentence.text)
    rest = _greedily(order[len(drawn) :], coverage)
    chosen = [*drawn, *_take(rest, seconds - sum(s.seconds for s in drawn), count - len(drawn))] if greedy else drawn
    for sentence in chosen[len(drawn) :]:
        coverage.add(sentence.text)
    return [chosen[i] for i in rng.permutation(len(chosen))]


def _take(source: Iterator[Sentence], seconds: float, count: int) -> list[Sentence]:
    """Sentences from the front of ``source`` until there are ``seconds`` or ``count``."""
    taken: list[Sentence] = []
    while seconds > 0 and len(taken) < count and (sentence := next(source, None)) is not None:
        taken.append(sentence)
        seconds -= sentence.seconds
    return taken


def _greedily(pool: Sequence[Sentence], coverage: Coverage) -> Iterator[Sentence]:
    """``pool`` in the order of gain: sum of sqrt(frequency in the pool) / (1 + times heard) over items, per phone."""
    ids: dict[str, int] = {}
    found: list[NDArray[np.int64]] = []
    counts: Counter[int] = Counter()
    for sentence in pool:
        items = [ids.setdefault(item, len(ids)) for item in coverage.items(sentence.text.split())]
        counts.update(items)
        found.append(np.unique(np.array(items, dtype=np.int64)))
    worth = np.sqrt(np.array([counts[i] for i in range(len(ids))], dtype=np.float64))
    heard = np.array([coverage.heard[item] for item in ids], dtype=np.float64)

    def gain(i: int) -> float:
        return float((worth[found[i]] / (1 + heard[found[i]])).sum()) / (_FIXED + pool[i].phones)

    heap = [(-gain(i), i) for i in range(len(pool))]
    heapq.heapify(heap)
    while heap:
        _, i = heapq.heappop(heap)
        now = -gain(i)
        if heap and now > heap[0][0]:
            heapq.heappush(heap, (now, i))
            continue
        heard[found[i]] += 1
        yield pool[i]


__all__ = ["Coverage", "Limits", "Sentence", "choose", "draw_lines", "sentences"]
