"""Pruning of n-gram models by relative entropy (A. Stolcke 1998, "Entropy-based pruning of backoff language models",
Proc. DARPA Broadcast News Transcription and Understanding Workshop)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from asr.errors import LanguageModelError
from asr.lm.compact import CompactSize
from asr.lm.complete import complete
from asr.lm.model import NgramModel, with_backoffs


class FileSize(Protocol):
    """How large a model is in a kind of file: CompactSize, KenlmSize or ArpaSize."""

    def per_ngram(self, model: NgramModel) -> Sequence[float | np.ndarray]:
        """Bytes of an n-gram of each order from 2 up, or (count,) bytes of each."""

    def counter(self, model: NgramModel) -> Callable[[Sequence[np.ndarray]], int]:
        """Gives the bytes, or a little more, of the file with only the marked n-grams (one boolean array per order
        from 2 up)."""


def prune(
    model: NgramModel,
    *,
    max_ngrams: int | None = None,
    max_bytes: int | None = None,
    threshold: float | None = None,
    file_size: FileSize | None = None,
) -> NgramModel:
    """The model without the n-grams whose loss changes it least; back-off weights are computed anew.

    Exactly one bound is given:
    max_ngrams: most n-grams above order one to keep (all words stay).
    max_bytes: size of the file that will be written, as ``file_size`` counts it (None: :class:`CompactSize`); an
        n-gram's loss is then divided by the room it takes, since the shorter n-grams take more.
    threshold: keep n-grams whose removal raises the relative perplexity by more than this (as SRILM's ``-prune``).

    What is kept is closed: with an n-gram stay its first n-1 and its last n-1 words. Contexts are weighed by how
    often they occur in the training text where the model knows it (``context_shares``), else by the model's own
    probability of them; the former is better for Kneser-Ney models, whose lower orders are no marginals (C. Chelba
    et al. 2010, "Study on interaction between entropy pruning and Kneser-Ney smoothing", Interspeech).

    Raises :class:`LanguageModelError` for bounds that cannot be met.
    """
    if sum(bound is not None for bound in (max_ngrams, max_bytes, threshold)) != 1:
        raise LanguageModelError("prune needs exactly one of max_ngrams, max_bytes and threshold")
    file_size = file_size or CompactSize()
    if model.order == 1:
        if max_bytes is not None:
            _check_words_fit(model, max_bytes, file_size)
        return model
    model = complete(model)
    values = removal_values(model)
    if max_bytes is not None:
        for value, cost in zip(values, file_size.per_ngram(model), strict=True):
            value /= cost
    values = _closed(model, values)
    if threshold is not None:
        limit = float(np.log1p(threshold))
    elif max_ngrams is not None:
        limit = _limit_for_count(values, max_ngrams)
    else:
        assert max_bytes is not None
        limit = _limit_for_bytes(model, values, max_bytes, file_size)
    return keep(model, [value > limit for value in values])


def removal_values(model: NgramModel) -> list[np.ndarray]:
    """Of each n-gram of order 2 and up: the rise of relative entropy (nats per token) when it alone is removed."""
    values: list[np.ndarray] = []
    shares = _context_probs(model)
    for n in range(2, model.order + 1):
        prefix = model.prefixes(n)
        lower = np.exp(np.log(10.0) * model.lower_log_probs(n))
        listed = np.exp(np.log(10.0) * model.log_probs[n - 1].astype(np.float64))
        size = model.counts[n - 2]
        left = np.maximum(1.0 - np.bincount(prefix, listed, minlength=size), 1e-9)
        left_lower = np.maximum(1.0 - np.bincount(prefix, lower, minlength=size), 1e-9)
        # Natural logs: of the context's weight before and after, and of the n-gram's new, backed-off probability.
        before = np.log(left / left_lower)[prefix]
        after = np.log((left[prefix] + listed) / (left_lower[prefix] + lower))
        change = listed * (np.log(lower) + after - np.log(listed)) + left[prefix] * (after - before)
        values.append(-shares[n - 2][prefix] * change)
    return values


def _closed(model: NgramModel, values: list[np.ndarray]) -> list[np.ndarray]:
    """Each value raised to the largest of the n-grams that need its n-gram as their first or last words."""
    for n in range(model.order, 2, -1):
        needed, by = values[n - 3], values[n - 2]
        np.maximum.at(needed, model.prefixes(n), by)
        suffix = model.suffixes[n - 1]
        np.maximum.at(needed, suffix[suffix >= 0], by[suffix >= 0])
    return values


def keep(model: NgramModel, kept: Sequence[np.ndarray]) -> NgramModel:
    """The model with only the marked n-grams (one boolean array per order from 2 up), back-off weights anew.

    The marks must keep the prefix of every n-gram that they keep.
    """
    size = len(model.words)
    keys, log_probs = [model.keys[0]], [model.log_probs[0]]
    backoffs = list(model.backoffs[:1])
    shares = None if model.context_shares is None else list(model.context_shares[:1])
    number = np.arange(size)
    order = max([n for n, mark in enumerate(kept, start=2) if mark.any()], default=min(2, model.order))
    for n in range(2, order + 1):
        mark = kept[n - 2]
        keys.append(number[model.prefixes(n)[mark]] * size + model.last_words(n)[mark])
        log_probs.append(model.log_probs[n - 1][mark])
        number = np.where(mark, np.cumsum(mark) - 1, -1)
        if n < order:
            backoffs.append(model.backoffs[n - 1][mark])
            if shares is not None and model.context_shares is not None:
                shares.append(model.context_shares[n - 1][mark])
    return with_backoffs(
        NgramModel(
            model.words, tuple(keys), tuple(log_probs), tuple(backoffs[: order - 1]), tuple(shares) if shares else None
        )
    )


def _context_probs(model: NgramModel) -> list[np.ndarray]:
    """Probability of each n-gram below the highest order as a context, per token."""
    if model.context_shares is not None:
        return [share.astype(np.float64) for share in model.context_shares]
    # By the chain rule, beginning with the unigram; <s> begins as many sentences as </s> ends.
    probs = [np.exp(np.log(10.0) * model.log_probs[0].astype(np.float64))]
    probs[0][1] = probs[0][2]
    for n in range(2, model.order):
        probs.append(probs[-1][model.prefixes(n)] * np.exp(np.log(10.0) * model.log_probs[n - 1].astype(np.float64)))
    return probs


def _limit_for_count(values: Sequence[np.ndarray], max_ngrams: int) -> float:
    if max_ngrams < 0:
        raise LanguageModelError(f"a language model cannot keep {max_ngrams} n-grams")
    everything = np.concatenate(values) if values else np.zeros(0)
    if len(everything) <= max_ngrams:
        return -np.inf
    place = len(everything) - max_ngrams - 1
    return float(np.partition(everything, place)[place])


def _limit_for_bytes(model: NgramModel, values: Sequence[np.ndarray], max_bytes: int, file_size: FileSize) -> float:
    count = file_size.counter(model)

    def size(limit: float) -> int:
        return count([value > limit for value in values])

    if size(-np.inf) <= max_bytes:
        return -np.inf
    _check_words_fit(model, max_bytes, file_size)
    everything = np.sort(np.concatenate(values))
    low, high = -1, len(everything) - 1  # places of the highest limit that is too low, and the lowest that is enough
    while high - low > 1:
        middle = (low + high) // 2
        if size(float(everything[middle])) > max_bytes:
            low = middle
        else:
            high = middle
    return float(everything[high])


def _check_words_fit(model: NgramModel, max_bytes: int, file_size: FileSize) -> None:
    smallest = file_size.counter(model)([np.zeros(count, dtype=bool) for count in model.counts[1:]])
    if smallest > max_bytes:
        raise LanguageModelError(
            f"the {model.counts[0]} words alone need {smallest} bytes, more than {max_bytes}: allow more or take fewer"
        )
