"""Word times and confidences: what a segment's emissions and hypotheses say about the words that were found.

A word's confidence is the probability that it was said, by a logistic regression over a few numbers (:data:`FEATURES`):
how well its phones fit the emissions between its first and its last spike (the goodness of pronunciation of Witt and
Young 2000: the aligned phones against the best path), what the language model thinks of it, how long it is, and how
much of the probability of the final hypotheses says it at that time (Wessel et al. 2001, on a list instead of a graph).
``asr calibrate`` fits the weights. All of it is a function of what the segment holds when it closes; so it does not
depend on how the audio came.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import floor, isfinite
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from asr.config import require
from asr.decoding.hypothesis import Emissions, Hypothesis, TimedWord
from asr.model_config import STEP_MS
from asr.vocabulary import BLANK

if TYPE_CHECKING:
    from asr.decoding.beam_search import BeamSearch
    from asr.decoding.search_state import SearchState
    from asr.lexicon import Lexicon

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Spell = Callable[[str], Sequence[Sequence[int]]]

FEATURES = (
    "fit",  # mean log-probability of the word's phones, aligned, over its steps
    "behind",  # how much the best path through these steps is better, per step
    "worst",  # log-probability of the phone that fits worst, at its best step
    "share",  # log-odds of the share of the final hypotheses that say the word at that time
    "lm",  # log10 probability of the word after the two before it
    "next_lm",  # the same of the word after it
    "unigram",  # log10 probability of the word by itself
    "phones",  # logarithm of their number
    "pace",  # square of the logarithm of the steps per phone
    "segment_fit",  # means over the segment's words
    "segment_behind",
    "segment_lm",
    "stray",  # phones heard between this word and its neighbours that belong to no word
)
HYPOTHESES = 20
"""How many of the final hypotheses "share" looks at."""
KEPT_STEPS = 60_000 // STEP_MS
"""Words that begin farther back in their segment have no confidence: their emissions are forgotten."""
_LEAST = -12.0  # log-probability that stands for all smaller ones
_ODDS = 5.0  # log-odds beyond this are this
_NEAR = 4  # steps that the same word may lie elsewhere in another hypothesis
_GAP = 8  # steps beside a word that are looked at for stray phones
_VARIANTS = 3  # pronunciations of a word that are tried
_SHORTEST_MS = 20.0  # a word is at least this long where there is room


@dataclass(frozen=True)
class TimesConfig:
    """Where words begin and end, seen from their first and last spike, in ms: ``start_shift_ms`` is added to the start
    of the first spike's step, ``end_shift_ms`` to the end of the last one's. ``asr calibrate`` does not touch them:
    they come from speech whose times are known (benchmarks/times.py)."""

    start_shift_ms: float = 0.0
    end_shift_ms: float = 0.0

    def __post_init__(self) -> None:
        for name in ("start_shift_ms", "end_shift_ms"):
            require(abs(getattr(self, name)) <= 500, f"times.{name} must lie between -500 and 500")


@dataclass(frozen=True)
class ConfidenceConfig:
    """``weights`` of every feature and ``bias``: log-odds that a word is right. ``temperature``: what scores of
    hypotheses are divided by. A segment's confidence has the log-odds ``segment_bias + segment_slope * o``, where o are
    those of the mean confidence of its words."""

    weights: dict[str, float]
    bias: float = 0.0
    temperature: float = 4.0
    segment_bias: float = 0.0
    segment_slope: float = 1.0

    def __post_init__(self) -> None:
        odd = sorted(set(self.weights) ^ set(FEATURES))
        require(
            not odd, f"confidence.weights must name each feature once, look at '{', '.join(odd)}': run 'asr calibrate'"
        )
        numbers = (*self.weights.values(), self.bias, self.segment_bias, self.segment_slope)
        require(all(map(isfinite, numbers)), "confidence: weights must be finite")
        require(self.temperature > 0, "confidence.temperature must be positive")


# --- times ----------------------------------------------------------------------------------------------------------


def word_times(
    words: Sequence[TimedWord], origin: int, earliest: float, limit: float, times: TimesConfig
) -> list[tuple[float, float]]:
    """(start, end) of every word, in seconds. ``origin``: step of the stream at which the segment began; ``earliest``
    and ``limit``: seconds between which all must lie.

    In order, without overlap, and every word lasts longer than nothing, as far as there is room for it.
    """
    limit = floor(1000 * limit + 1e-6) / 1000  # times are whole milliseconds
    earliest = min(earliest, limit)
    least = min(_SHORTEST_MS / 1000, max(0.0, limit - earliest) / max(1, len(words)))
    starts: list[float] = []
    before = earliest
    for i, w in enumerate(words):
        at = ((origin + w.first) * STEP_MS + times.start_shift_ms) / 1000
        starts.append(max(min(at, limit - (len(words) - i) * least), before))
        before = starts[-1] + least
    ends = []
    for w, start, following in zip(words, starts, [*starts[1:], limit], strict=False):
        at = ((origin + w.last + 1) * STEP_MS + times.end_shift_ms) / 1000
        ends.append(max(start, min(max(at, start + least), following)))
    return [(round(s, 3), round(e, 3)) for s, e in zip(starts, ends, strict=True)]


# --- confidences ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judged:
    """Confidences of one hypothesis: per word (None: too far back), and of the whole (None where no word has one).
    By default: of one that nobody judged."""

    words: tuple[float | None, ...] = ()
    whole: float | None = None


class Confidence:
    """Confidences for the segments of one search. Immutable; shared by all streams."""

    def __init__(self, search: BeamSearch, config: ConfidenceConfig, spell: Spell) -> None:
        """``spell``: unit ids of a word's pronunciations, also of hot words that the lexicon does not list."""
        self.config = config
        self.evidence = Evidence(search, spell)
        self._units = len(search.vocabulary)
        self._weights = np.array([config.weights[name] for name in FEATURES])

    def judge(self, state: SearchState, judged: Sequence[Hypothesis], final: Sequence[Hypothesis]) -> list[Judged]:
        """Confidences of the hypotheses ``judged`` of a segment that ends with ``state``; ``final``: its final
        hypotheses, best first, :data:`HYPOTHESES` of them if there are as many."""
        held = state.array(self._units)[-KEPT_STEPS:]
        return [self._judge(held, state.steps, h.words, final[:HYPOTHESES]) for h in judged]

    def _judge(self, held: Emissions, steps: int, words: Sequence[TimedWord], final: Sequence[Hypothesis]) -> Judged:
        known = [w for w in words if w.first >= steps - len(held)]
        if not known:
            return Judged((None,) * len(words), None)
        shares = share(known, final, self.config.temperature)
        odds = self.evidence.features(held, steps, words, shares) @ self._weights + self.config.bias
        confidences = sigmoid(odds)
        whole = sigmoid(self.config.segment_bias + self.config.segment_slope * log_odds(confidences.mean()))
        rounded = [round(c, 3) for c in confidences.tolist()]
        return Judged((*[None] * (len(words) - len(known)), *rounded), round(float(whole), 3))


class Evidence:
    """What :data:`FEATURES` measure, for the words of one search."""

    def __init__(self, search: BeamSearch, spell: Spell) -> None:
        self._scorer, self._ids, self._spell = search.scorer, search._ids, spell
        self._unigrams = search.log_unigrams

    def features(self, held: Emissions, steps: int, words: Sequence[TimedWord], shares: Floats) -> Floats:
        """(n, features) of the n words that lie in ``held``, the last emissions of a segment of ``steps``; ``shares``:
        (n,) of :func:`share`."""
        offset = steps - len(held)
        known = [w for w in words if w.first >= offset]
        first, last = (np.array([getattr(w, name) - offset for w in known]) for name in ("first", "last"))
        fit, worst, phones = align([self._spell(w.text)[:_VARIANTS] for w in known], first, last, held)
        length = last - first + 1
        best = np.concatenate([[0.0], np.cumsum(held.max(axis=1), dtype=np.float64)])
        behind = (best[last + 1] - best[first]) / length - fit
        lm, unigram = self._lm(words)
        skip = len(words) - len(known)
        columns = {
            "fit": fit,
            "behind": behind,
            "worst": worst,
            "share": np.clip(log_odds(shares), -_ODDS, _ODDS),
            "lm": lm[skip:-1],
            "next_lm": lm[skip + 1 :],
            "unigram": unigram[skip:],
            "phones": np.log(phones),
            "pace": np.log(length / phones) ** 2,
            "segment_fit": np.full(len(known), fit.mean()),
            "segment_behind": np.full(len(known), behind.mean()),
            "segment_lm": np.full(len(known), lm[skip:-1].mean()),
            "stray": _stray(held, first, last),
        }
        return np.stack([columns[name] for name in FEATURES], axis=1)

    def _lm(self, words: Sequence[TimedWord]) -> tuple[Floats, Floats]:
        """log10 probabilities of all words after the two before them, and of the end; and of the words by themselves.
        All words at once; exact for models of up to three words."""
        end = self._scorer.end_of_sentence
        ids = np.array([self._ids.get(w.text, end + 1) for w in words] + [end], dtype=np.int64)
        context = np.full(len(ids), self._scorer.begin, dtype=np.int64)
        for back in (2, 1):
            _, after = self._scorer.score(context, np.roll(ids, back))
            context = np.where(np.arange(len(ids)) >= back, after, context)
        log_prob, _ = self._scorer.score(context, ids)
        known = ids[:-1] < end
        return log_prob, np.where(known, self._unigrams[np.where(known, ids[:-1], 0)], self._scorer.rare)


def speller(search: BeamSearch, more: Callable[[], Lexicon] | None = None) -> Spell:
    """Unit ids of the pronunciations of words of the search's lexicon. ``more``: gives a lexicon that knows how to say
    those that it does not list, such as hot words."""

    def spell(word: str) -> list[list[int]]:
        return search._spell(word, search.lexicon if more is None or word in search.lexicon else more())

    return spell


def share(words: Sequence[TimedWord], hypotheses: Sequence[Hypothesis], temperature: float) -> Floats:
    """(words,) which part of the probability of ``hypotheses`` (the softmax of their scores, divided by
    ``temperature``) has the same word at about the same time."""
    scores = np.array([h.score for h in hypotheses]) / temperature
    weights = np.exp(scores - scores.max())
    weights /= weights.sum()
    found = np.zeros(len(words))
    places: dict[str, list[int]] = {}
    for i, w in enumerate(words):
        places.setdefault(w.text, []).append(i)
    for weight, hypothesis in zip(weights.tolist(), hypotheses, strict=True):
        here = {
            i
            for w in hypothesis.words
            for i in places.get(w.text, ())
            if w.first <= words[i].last + _NEAR and w.last >= words[i].first - _NEAR
        }
        found[list(here)] += weight
    return np.clip(found, 0.0, 1.0)


def align(
    spelled: Sequence[Sequence[Sequence[int]]], first: Ints, last: Ints, emissions: Emissions
) -> tuple[Floats, Floats, Floats]:
    """The best CTC alignment of each word to its steps, its first unit on the first and its last on the last of them.

    ``spelled``: per word, unit ids of its pronunciations, the best of which counts; ``first``, ``last``: (words,) steps
    in ``emissions`` (steps, units). All words advance together. Returns, each (words,): mean log-probability over the
    steps; log-probability of the worst unit at its best step; number of units. No alignment (more units than steps): as
    if all units were very unlikely.
    """
    rows = [(i, units) for i, variants in enumerate(spelled) for units in variants]
    word = np.array([i for i, _ in rows])
    count = np.array([len(units) for _, units in rows])
    labels = np.full((len(rows), 2 * int(count.max()) - 1), BLANK)  # unit, blank, unit, ...: no blank at the edges
    for r, (_, units) in enumerate(rows):
        labels[r, : 2 * len(units) : 2] = units
    length = (last - first + 1)[word]
    heard, pointers, score = _viterbi(labels, first[word], length, emissions)
    final = 2 * count - 2
    score = score[np.arange(len(rows)), final] / length
    order = np.lexsort((-score, word))
    chosen = order[np.searchsorted(word[order], np.arange(len(spelled)))]  # the best pronunciation of each word
    peaks = _peaks(heard[:, chosen], pointers[:, chosen], final[chosen], length[chosen])
    number = count[chosen].astype(np.float64)
    there = np.arange(labels.shape[1])[None] <= final[chosen][:, None]
    there[:, 1::2] = False
    worst = np.where(there, peaks, 0.0).min(axis=1)
    return np.maximum(score[chosen], _LEAST), np.maximum(worst, _LEAST), number


def _viterbi(labels: Ints, first: Ints, length: Ints, emissions: Emissions) -> tuple[Floats, NDArray[np.int8], Floats]:
    """``labels``: (rows, states). Returns what each state hears (steps, rows, states), how many states back each came
    from, and the score of each state on the row's last step (rows, states)."""
    steps = int(length.max())
    at = np.minimum(first[:, None] + np.arange(steps), (first + length - 1)[:, None]).T
    heard = np.maximum(emissions[at[:, :, None], labels[None]], 4 * _LEAST).astype(np.float64)
    skips = np.zeros(labels.shape, dtype=bool)
    skips[:, 2::2] = labels[:, 2::2] != labels[:, :-2:2]
    no_skip = np.where(skips, 0.0, -np.inf)
    pointers = np.zeros(heard.shape, dtype=np.int8)
    score = np.full(labels.shape, -np.inf)
    score[:, 0] = heard[0, :, 0]
    ways = np.full((3, *labels.shape), -np.inf)
    for t in range(1, steps):
        ways[0] = score
        ways[1, :, 1:] = score[:, :-1]
        ways[2, :, 2:] = score[:, :-2]
        ways[2] += no_skip
        pointers[t] = ways.argmax(axis=0)
        score = np.where((t < length)[:, None], ways.max(axis=0) + heard[t], score)
    return heard, pointers, score


def _peaks(heard: Floats, pointers: NDArray[np.int8], state: Ints, length: Ints) -> Floats:
    """Walk all paths back from their last ``state`` (rows,) together: each state's greatest log-probability on its path
    (rows, states), -inf where it was never passed."""
    rows, state = np.arange(len(state)), state.copy()
    peaks = np.full(heard.shape[1:], -np.inf)
    for t in range(int(length.max()) - 1, -1, -1):
        on = rows[t < length]
        here = state[on]
        peaks[on, here] = np.maximum(peaks[on, here], heard[t, on, here])
        state[on] = np.maximum(here - pointers[t, on, here], 0)
    return peaks


def _stray(held: Emissions, first: Ints, last: Ints) -> Floats:
    """(words,) expected steps that are not blank beside each word and in no word."""
    loud = 1.0 - np.exp(held[:, BLANK].astype(np.float64))
    for a, b in zip(first.tolist(), last.tolist(), strict=True):
        loud[a : b + 2] = 0.0  # a unit may last a step longer than its spike
    total = np.concatenate([[0.0], np.cumsum(loud)])
    before = np.maximum(first - _GAP, np.concatenate([[0], last[:-1] + 1]))
    after = np.minimum(last + 1 + _GAP, np.concatenate([first[1:], [len(held)]]))
    return np.log1p(
        total[first] - total[np.minimum(before, first)] + total[np.maximum(after, last + 1)] - total[last + 1]
    )


def sigmoid(x: Floats | float) -> Floats:
    """Probability of log-odds."""
    return np.asarray(1.0 / (1.0 + np.exp(-np.clip(x, -30.0, 30.0))))


def log_odds(p: Floats | float) -> Floats:
    """The inverse of :func:`sigmoid`, with 0 and 1 drawn in a little."""
    p = np.clip(p, 1e-6, 1 - 1e-6)
    return np.asarray(np.log(p) - np.log1p(-p))


def weights_of(values: Floats) -> Mapping[str, float]:
    """Weights by name, to six digits."""
    return {name: float(f"{v:.6g}") for name, v in zip(FEATURES, values.tolist(), strict=True)}
