"""Interpolated modified Kneser-Ney estimation (S. Chen, J. Goodman 1999, "An empirical study of smoothing techniques
for language modeling", Computer Speech and Language 13)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from asr.errors import LanguageModelError
from asr.lm.model import NEVER, NgramModel
from asr.lm.text import BOS_ID, UNK_ID, Corpus, encode

MAX_ORDER = 5
_FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)  # where counts of counts give none (tiny or artificial texts); as KenLM has it


@dataclass(frozen=True)
class _Counts:
    """The distinct n-grams of one order, sorted. ``keys`` as in :class:`NgramModel`, but over all n-grams of the text.

    raw: how often each occurs. adjusted: what estimation uses, for lower orders the number of distinct words before
    it. suffix: number of its last n-1 words among the (n-1)-grams.
    """

    keys: np.ndarray
    raw: np.ndarray
    adjusted: np.ndarray
    suffix: np.ndarray


def estimate(
    sentences: Corpus | Iterable[str | Sequence[str]],
    order: int = 3,
    vocabulary: Iterable[str] | None = None,
    min_count: Sequence[int] | None = None,
    progress: Callable[[str], None] | None = None,
) -> NgramModel:
    """A back-off model by interpolated modified Kneser-Ney smoothing with three discounts per order.

    sentences: a :class:`Corpus`, or sentences as strings of space-separated words or lists of words.
    order: 1 to 5.
    vocabulary: the words of the model; None takes every word of the text. A word outside it breaks the n-grams that
        hold it (they are not counted), so no probability is spent on ``<unk>`` but its share of the uniform part.
    min_count: per order, how often an n-gram must occur to be listed, not decreasing (``(1, 1, 2)`` leaves out
        trigrams seen once); the last number holds for the higher orders too. Left-out n-grams count for discounts and
        sums, and their probability goes to the back-off weights.

    Raises :class:`LanguageModelError` for an empty text or impossible options.
    """
    if not 1 <= order <= MAX_ORDER:
        raise LanguageModelError(f"the order of a language model must be 1 to {MAX_ORDER}, not {order}")
    minimum = _minimum_counts(min_count, order)
    if isinstance(sentences, Corpus):
        corpus = sentences if vocabulary is None else sentences.with_vocabulary(tuple(vocabulary))
    else:
        corpus = encode(sentences, vocabulary)
    if not len(corpus.ids) or (corpus.ids <= BOS_ID + 1).all():
        raise LanguageModelError("the text holds no words of the vocabulary: no language model can be estimated")
    counts = _count(corpus, order, progress)
    if progress:
        progress("probabilities")
    return _interpolate(corpus.words, counts, minimum)


def _minimum_counts(min_count: Sequence[int] | None, order: int) -> list[int]:
    values = [int(v) for v in (min_count or (1,))][:order]
    values += [values[-1]] * (order - len(values))
    values[0] = 1  # the vocabulary decides about words
    if any(v < 1 for v in values) or values != sorted(values):
        raise LanguageModelError(f"minimum counts must be at least 1 and not decrease with the order, not {values}")
    return values


def _count(corpus: Corpus, order: int, progress: Callable[[str], None] | None) -> list[_Counts]:
    ids, size = corpus.ids, len(corpus.words)
    started = np.where(ids == UNK_ID, np.int32(-1), ids)  # number of the n-gram that starts at each token, or -1
    can_follow = (ids != UNK_ID) & (ids != BOS_ID)
    raw = np.bincount(ids, minlength=size).astype(np.int64)
    raw[UNK_ID] = 0
    found = [_Counts(np.arange(size, dtype=np.int64), raw, raw, np.zeros(0, dtype=np.int64))]
    firsts = [np.arange(size)]  # the first word of each n-gram
    for n in range(2, order + 1):
        if progress:
            progress(f"counting {n}-grams")
        place = np.flatnonzero((started[: max(0, len(ids) - n + 1)] >= 0) & can_follow[n - 1 :])
        keys = started[place].astype(np.int64) * size + ids[place + n - 1]
        by_key = np.argsort(keys)
        keys = keys[by_key]
        new = np.empty(len(keys), dtype=bool)
        new[:1] = True
        np.not_equal(keys[1:], keys[:-1], out=new[1:])
        heads = np.flatnonzero(new)
        raw = np.diff(np.append(heads, len(keys)))
        suffix = started[place[by_key[heads]] + 1].astype(np.int64)
        keys = keys[heads]
        firsts.append(firsts[-1][keys // size])
        found[-1] = _adjusted(found[-1], suffix, firsts[-2], started, ids)
        found.append(_Counts(keys, raw, raw, suffix))
        if n < order:
            longer = np.full(len(ids), -1, dtype=np.int32)
            longer[place[by_key]] = np.cumsum(new, dtype=np.int32) - 1
            started = longer
    return found


def _adjusted(
    counts: _Counts, longer_suffix: np.ndarray, first: np.ndarray, started: np.ndarray, ids: np.ndarray
) -> _Counts:
    """Counts of a lower order: the number of distinct words before each n-gram; after ``<s>`` nothing stands before,
    so there the plain count is kept. A word outside the vocabulary counts as one more word before."""
    adjusted = np.bincount(longer_suffix, minlength=len(counts.keys))
    after_unknown = started[1:][ids[:-1] == UNK_ID]
    adjusted[np.unique(after_unknown[after_unknown >= 0])] += 1
    adjusted = np.where(first == BOS_ID, counts.raw, adjusted)
    return _Counts(counts.keys, counts.raw, adjusted, counts.suffix)


def discounts(adjusted: np.ndarray) -> tuple[float, float, float]:
    """The discounts of counts one, two, and three or more, from the counts of counts (Chen & Goodman, equation 26).

    Falls back to 0.5, 1, 1.5 where the counts of counts give no usable value.
    """
    n1, n2, n3, n4 = (int(np.count_nonzero(adjusted == k)) for k in (1, 2, 3, 4))
    if not (n1 and n2 and n3 and n4):
        return _FALLBACK_DISCOUNTS
    y = n1 / (n1 + 2 * n2)
    values = tuple(k - (k + 1) * y * more / less for k, less, more in ((1, n1, n2), (2, n2, n3), (3, n3, n4)))
    if not all(0.0 < value < k for k, value in enumerate(values, start=1)):
        return _FALLBACK_DISCOUNTS
    return values[0], values[1], values[2]


def _interpolate(words: tuple[str, ...], counts: list[_Counts], minimum: list[int]) -> NgramModel:
    size = len(words)
    tokens = max(1, int(counts[0].raw.sum()))
    probs = _unigrams(counts[0])
    probs[BOS_ID] = 0.0
    log_unigrams = np.full(size, NEVER, dtype=np.float32)
    np.log10(probs, out=log_unigrams, where=probs > 0, casting="same_kind")
    keys, log_probs, backoffs = [counts[0].keys], [log_unigrams], []
    shares = [(counts[0].raw / tokens).astype(np.float32)]
    renumbered = np.arange(size)  # number among the listed n-grams of this order, by number among all
    listed = np.ones(size, dtype=bool)
    for n in range(2, len(counts) + 1):
        level = counts[n - 1]
        keep = level.raw >= minimum[n - 1]
        prefix = level.keys // size
        discount = np.array([0.0, *discounts(level.adjusted)])[np.minimum(level.adjusted, 3)]
        total = np.bincount(prefix, level.adjusted, minlength=len(listed))
        freed = np.bincount(prefix, np.where(keep, discount, level.adjusted), minlength=len(listed))
        backoff = np.divide(freed, total, out=np.ones(len(listed)), where=total > 0)
        prefix, discount = prefix[keep], discount[keep]
        lower = probs[level.suffix[keep]]
        listed_probs = (level.adjusted[keep] - discount) / total[prefix] + backoff[prefix] * lower
        backoffs.append(np.log10(backoff[listed]).astype(np.float32))
        keys.append(renumbered[prefix] * size + level.keys[keep] % size)
        log_probs.append(np.log10(listed_probs).astype(np.float32))
        if n < len(counts):
            shares.append((level.raw[keep] / tokens).astype(np.float32))
            probs = np.zeros(len(keep))
            probs[keep] = listed_probs
        listed = keep
        renumbered = np.cumsum(keep) - 1
    return NgramModel(words, tuple(keys), tuple(log_probs), tuple(backoffs), tuple(shares[: len(counts) - 1]))


def _unigrams(counts: _Counts) -> np.ndarray:
    """Probabilities of all words, interpolated with the uniform distribution over all but ``<s>``."""
    adjusted = counts.adjusted.copy()
    adjusted[[UNK_ID, BOS_ID]] = 0
    discount = np.array([0.0, *discounts(adjusted)])[np.minimum(adjusted, 3)]
    total = adjusted.sum()
    uniform = float(discount.sum() / total)
    return (adjusted - discount) / total + uniform / (len(adjusted) - 1)
