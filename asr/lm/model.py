"""The back-off n-gram model: sorted arrays in the shape of a trie, and scoring with them.

All probabilities and back-off weights are base-10 logarithms, as in ARPA files and in KenLM.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from asr.errors import LanguageModelError
from asr.lm.packing import pieces
from asr.lm.text import BOS_ID, EOS, SPECIAL, UNK_ID, Corpus, encode

NEVER = -99.0  # log10 probability written for <s>, which is never predicted (the convention of ARPA files)

State = tuple[int, ...]
"""The last words as ids, oldest first: what the next probability depends on."""


@dataclass(frozen=True, eq=False)
class NgramModel:
    """A back-off model: ``p(w | h) = p of the n-gram (h, w)`` if it is listed, else ``backoff(h) * p(w | h')`` with
    ``h'`` = ``h`` without its oldest word.

    Words have ids; 0, 1, 2 are ``<unk>``, ``<s>``, ``</s>``. The n-grams of each order are sorted by their word ids
    and numbered by their place. An n-gram is stored as the number of its first n-1 words among the (n-1)-grams and
    its last word, packed in one integer: ``key = prefix * len(words) + word``. So the successors of a context stand
    together, and looking an n-gram up takes one binary search per order, for millions of them at once.

    words: the vocabulary.
    keys: per order, (count,) int64, strictly increasing; order 1 holds ``0 .. len(words)-1``.
    log_probs: per order, (count,) float32.
    backoffs: per order below the highest, (count,) float32; 0 where an n-gram is no context.
    context_shares: per order below the highest, (count,) float32, how often the n-gram occurs per token of the
        training text, or None when unknown (a model read from a file). Pruning weighs contexts by it.

    Every prefix of a listed n-gram is listed (checked by :meth:`check`).
    """

    words: tuple[str, ...]
    keys: tuple[np.ndarray, ...]
    log_probs: tuple[np.ndarray, ...]
    backoffs: tuple[np.ndarray, ...]
    context_shares: tuple[np.ndarray, ...] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.words[:3] != SPECIAL:
            raise LanguageModelError(f"the first three words of a language model must be {' '.join(SPECIAL)}")
        if not len(self.keys) == len(self.log_probs) == len(self.backoffs) + 1:
            raise LanguageModelError("a language model needs keys, probabilities and back-offs for each order")

    @property
    def order(self) -> int:
        """Length of the longest n-grams."""
        return len(self.keys)

    @property
    def counts(self) -> tuple[int, ...]:
        """Number of n-grams of each order."""
        return tuple(len(keys) for keys in self.keys)

    @cached_property
    def word_ids(self) -> dict[str, int]:
        """Word to id."""
        return {word: i for i, word in enumerate(self.words)}

    def prefixes(self, order: int) -> np.ndarray:
        """Of each n-gram of ``order`` >= 2: the number of its first n-1 words among the (n-1)-grams."""
        return self.keys[order - 1] // len(self.words)

    def last_words(self, order: int) -> np.ndarray:
        """Of each n-gram of ``order``: the id of its last word."""
        return self.keys[order - 1] % len(self.words)

    def is_context(self, order: int) -> np.ndarray:
        """Of each n-gram of ``order``: whether a longer one begins with it."""
        result = np.zeros(self.counts[order - 1], dtype=bool)
        longer = self.keys[order] if order < self.order else np.zeros(0, dtype=np.int64)
        for piece in pieces(len(longer)):
            result[longer[piece] // len(self.words)] = True
        return result

    @cached_property
    def suffixes(self) -> tuple[np.ndarray, ...]:
        """Per order n >= 2 (at index n-1): the number of each n-gram's last n-1 words among the (n-1)-grams, or -1."""
        result: list[np.ndarray] = [np.zeros(0, dtype=np.int64)]
        for n in range(2, self.order + 1):
            last = self.last_words(n)
            result.append(last if n == 2 else self.extend(n - 2, result[n - 2][self.prefixes(n)], last))
        return tuple(result)

    def extend(self, order: int, numbers: np.ndarray, words: np.ndarray) -> np.ndarray:
        """Numbers of the n-grams of ``order + 1`` that extend n-grams of ``order`` (given by number) by a word.

        -1 where the result is not listed or a number given is negative. Arrays of one shape, int64 out.
        """
        keys = self.keys[order]
        wanted = numbers.astype(np.int64) * len(self.words) + words
        if not len(keys):
            return np.full(wanted.shape, -1, dtype=np.int64)
        place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        return np.where((keys[place] == wanted) & (numbers >= 0), place, -1)

    def find(self, ngrams: np.ndarray) -> np.ndarray:
        """Numbers of n-grams given as word ids, (count, n) -> (count,); -1 where not listed."""
        found = ngrams[:, 0].astype(np.int64)
        for n in range(1, ngrams.shape[1]):
            found = self.extend(n, found, ngrams[:, n])
        return found

    def ngram_words(self, order: int) -> np.ndarray:
        """The word ids of all n-grams of ``order``: (count, order) int32."""
        columns = [self.last_words(order)]
        place = self.prefixes(order) if order > 1 else columns[0]
        for n in range(order - 1, 0, -1):
            columns.append(self.last_words(n)[place])
            place = self.prefixes(n)[place] if n > 1 else place
        return np.stack(columns[::-1], axis=1).astype(np.int32)

    def check(self) -> None:
        """Raise :class:`LanguageModelError` when the arrays contradict each other or hold impossible values."""
        for n in range(1, self.order + 1):
            keys, log_probs = self.keys[n - 1], self.log_probs[n - 1]
            if len(log_probs) != len(keys) or (n < self.order and len(self.backoffs[n - 1]) != len(keys)):
                raise LanguageModelError(f"the language model's arrays of order {n} differ in length")
            if not (keys[1:] > keys[:-1]).all():
                raise LanguageModelError(f"the language model's {n}-grams are not sorted or not distinct")
            bound = len(self.words) * (len(self.keys[n - 2]) if n > 1 else 1)
            if len(keys) and (keys[0] < 0 or keys[-1] >= bound):
                raise LanguageModelError(f"the language model has {n}-grams with unknown prefixes")
            finite = np.isfinite(log_probs).all() and (n == self.order or np.isfinite(self.backoffs[n - 1]).all())
            if not finite or (len(log_probs) and log_probs.max() > 1e-3):
                raise LanguageModelError(f"the language model's {n}-grams hold values that are no log probabilities")

    # scoring ---------------------------------------------------------------------------------------------------

    def token_log_probs(self, ids: np.ndarray) -> np.ndarray:
        """log10 probability of each token of a stream of ``<s> words </s>`` sentences given those before it.

        ids: (tokens,) as in :class:`Corpus`, over this model's words. Returns (tokens,) float64; NaN at each ``<s>``.
        """
        ids = ids.astype(np.int64)
        starts = np.flatnonzero(ids == BOS_ID)
        since_start = np.arange(len(ids))
        if len(starts):
            since_start -= starts[np.searchsorted(starts, since_start, side="right") - 1]
        result = self.log_probs[0][ids].astype(np.float64)
        found = ids  # numbers of the n-grams that start at each place, or -1
        for n in range(2, min(self.order, len(ids)) + 1):
            within = since_start[n - 1 :] >= n - 1  # the n-gram does not begin before its sentence
            context = np.where(within, found[:-1], -1)
            found = self.extend(n - 1, context, ids[n - 1 :])
            backed_off = result[n - 1 :] + np.where(context >= 0, self.backoffs[n - 2][context], 0.0)
            result[n - 1 :] = np.where(found >= 0, _take(self.log_probs[n - 1], found), backed_off)
        result[ids == BOS_ID] = np.nan
        return result

    def begin(self) -> State:
        """The state at the beginning of a sentence."""
        return (BOS_ID,)[: self.order - 1]

    def step(self, state: State, word: str | int) -> tuple[float, State]:
        """log10 probability of the next word (a word, or its id) and the state after it."""
        word_id = self.word_ids.get(word, UNK_ID) if isinstance(word, str) else word
        history = (*state, word_id)
        value = self._log_prob(history)
        return value, history[max(0, len(history) - self.order + 1) :]

    def logprob(self, word: str, context: Sequence[str] = ()) -> float:
        """log10 p(word | context); ``context`` is oldest first and may begin with ``<s>``.

        Unknown words are ``<unk>``."""
        ids = [self.word_ids.get(w, UNK_ID) for w in (*context, word)]
        return self._log_prob(tuple(ids[-self.order :]))

    def _log_prob(self, history: State) -> float:
        backoff = 0.0
        for first in range(len(history)):
            n = len(history) - first
            context = self._number(history[first:-1]) if n > 1 else 0
            if context < 0:
                continue
            place = self._number_after(n - 1, context, history[-1]) if n > 1 else history[-1]
            if place >= 0:
                return backoff + float(self.log_probs[n - 1][place])
            backoff += float(self.backoffs[n - 2][context])
        raise AssertionError("a unigram is always found")

    def _number(self, ngram: State) -> int:
        place = ngram[0]
        for n in range(1, len(ngram)):
            place = self._number_after(n, place, ngram[n])
            if place < 0:
                break
        return place

    def _number_after(self, order: int, number: int, word: int) -> int:
        keys = self.keys[order]
        wanted = number * len(self.words) + word
        place = int(np.searchsorted(keys, wanted))
        return place if place < len(keys) and keys[place] == wanted else -1

    def score(self, sentence: str | Sequence[str], *, begin: bool = True, end: bool = True) -> float:
        """log10 probability of a sentence, from ``<s>`` (when ``begin``) to ``</s>`` (when ``end``)."""
        words = sentence.split() if isinstance(sentence, str) else list(sentence)
        state: State = self.begin() if begin else ()
        total = 0.0
        for word in [*words, EOS] if end else words:
            value, state = self.step(state, word)
            total += value
        return total

    def perplexity(self, text: Corpus | Iterable[str | Sequence[str]]) -> float:
        """Perplexity per token of a text of sentences: its words and each sentence end; unknown words are left out.

        Raises :class:`LanguageModelError` for a text without tokens.
        """
        if isinstance(text, Corpus):
            corpus = text if text.words == self.words else text.with_vocabulary(self.words)
        else:
            corpus = encode(text, self.words)
        log_probs = self.token_log_probs(corpus.ids)
        counted = log_probs[(corpus.ids != UNK_ID) & (corpus.ids != BOS_ID)]
        if not len(counted):
            raise LanguageModelError("perplexity needs a text with at least one sentence")
        return float(10.0 ** -counted.mean())

    def sums(self, order: int) -> tuple[np.ndarray, np.ndarray]:
        """Of each context of ``order`` - 1 words: the summed probability of its listed successors, and of the same
        words in the context without its oldest word. Two (contexts,) float64 arrays."""
        n = order
        size = self.counts[n - 2]
        prefixes = self.prefixes(n)
        listed = np.bincount(prefixes, 10.0 ** self.log_probs[n - 1].astype(np.float64), minlength=size)
        lower = np.bincount(prefixes, 10.0 ** self.lower_log_probs(n), minlength=size)
        return listed, lower

    def lower_log_probs(self, order: int) -> np.ndarray:
        """Of each n-gram (h, w) of ``order`` >= 2: log10 p(w | h without its oldest word), (count,) float64."""
        suffix = self.suffixes[order - 1]
        if (suffix >= 0).all():
            return self.log_probs[order - 2][suffix].astype(np.float64)
        return self.log_probs_of(self.ngram_words(order)[:, 1:])

    def log_probs_of(self, ngrams: np.ndarray) -> np.ndarray:
        """log10 p of the last word of each row given the words before it, backing off: (count, n) ids -> (count,)."""
        value = self.log_probs[0][ngrams[:, -1]].astype(np.float64)
        for n in range(2, min(ngrams.shape[1], self.order) + 1):
            found, context = self.find(ngrams[:, -n:]), self.find(ngrams[:, -n:-1])
            backed_off = value + np.where(context >= 0, self.backoffs[n - 2][context], 0.0)
            value = np.where(found >= 0, _take(self.log_probs[n - 1], found), backed_off)
        return value


def _take(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Values at places; anything where a place is negative."""
    return values[places] if len(values) else np.zeros(places.shape, dtype=values.dtype)


def with_backoffs(model: NgramModel) -> NgramModel:
    """The model with back-off weights computed anew, so that every context sums to one.

    ``backoff(h) = (1 - sum of p(w | h)) / (1 - sum of p(w | h'))`` over the listed successors w of h.
    """
    backoffs: list[np.ndarray] = []
    current = NgramModel(model.words, model.keys[:1], model.log_probs[:1], ())
    for n in range(2, model.order + 1):
        current = NgramModel(model.words, model.keys[:n], model.log_probs[:n], (*backoffs, model.backoffs[n - 2]))
        listed, lower = current.sums(n)
        # Where nothing (or, by rounding, less) is left over, what remains is kept tiny instead of zero or negative.
        weight = np.maximum(1.0 - listed, 1e-9) / np.maximum(1.0 - lower, 1e-9)
        backoffs.append(np.where(model.is_context(n - 1), np.log10(weight), 0.0).astype(np.float32))
    return NgramModel(model.words, model.keys, model.log_probs, tuple(backoffs), model.context_shares)
