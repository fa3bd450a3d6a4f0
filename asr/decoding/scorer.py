"""An n-gram model as the search asks it: many contexts and words at once, contexts as integers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from asr.lm.model import NgramModel
from asr.lm.text import BOS_ID, EOS, UNK_ID

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
_MIX = np.uint64(0x9E3779B97F4A7C15)


class Scorer:
    """``score(contexts, words)``. N-grams are numbered through the orders. A context is the longest n-gram (below the
    model's order) that is listed and can be continued, or else the last word."""

    def __init__(self, model: NgramModel, words: Sequence[str]) -> None:
        """``words``: what the ids given to :meth:`score` mean; those that the model lacks are ``<unk>`` to it."""
        self._order, self._size = model.order, len(model.words)
        ids = model.word_ids
        self._ids = np.array([ids.get(word, UNK_ID) for word in words] + [ids[EOS], UNK_ID], dtype=np.int64)
        self.end_of_sentence = len(words)
        """The word to score at the end of a text. Greater numbers are words that nobody knows: see :attr:`rare`."""
        unigrams = model.log_probs[0]
        self.rare = float(unigrams[3:].min(initial=unigrams[UNK_ID]))
        """What an unknown word costs (log10), before backing off to it: as much as the rarest known one, since
        ``<unk>`` stands for all unknown words together."""
        self.begin = BOS_ID
        """The context at the start of a text."""
        self._offsets = np.cumsum([0, *model.counts])
        self._log_probs = np.concatenate(model.log_probs)
        self._backoffs = np.concatenate(model.backoffs) if model.order > 1 else np.zeros(self._size, np.float32)
        self._continues = np.concatenate([_is_context(model, n) for n in range(1, model.order + 1)])
        self._keys = np.empty(int(self._offsets[-1]) - self._size, dtype=np.int64)
        """Of each n-gram from the second order on: the number of its first words and its last one, in one integer."""
        for keys, first, before in zip(model.keys[1:], self._offsets[1:], self._offsets, strict=False):
            begin = first - self._size
            np.add(keys, before * self._size, out=self._keys[begin : begin + len(keys)])
        self._table = _Table(self._keys)

    @property
    def contexts(self) -> int:
        """Contexts are less than this."""
        return int(self._offsets[max(1, self._order - 1)])

    def unigrams(self) -> Floats:
        """(words,) log10 probability of every word without context."""
        return self._log_probs[self._ids[: self.end_of_sentence]].astype(np.float64)

    def score(self, contexts: NDArray[np.integer], words: NDArray[np.integer]) -> tuple[Floats, Ints]:
        """``contexts``, ``words``: (n,). Returns log10 probabilities (n,) and the contexts that follow (n,)."""
        word = self._ids.take(np.minimum(words, self.end_of_sentence + 1))
        log_prob, following = self._log_probs.take(word).astype(np.float64), word
        log_prob[words > self.end_of_sentence] = self.rare
        chain = self._chain(contexts)
        wanted = [(number * self._size + word.take(who)) for who, number in chain]
        found = self._table.find(np.concatenate(wanted)) if wanted else np.zeros(0, dtype=np.int64)
        begin = 0
        # From the shortest context to the longest: back-off weights add up until the n-gram is listed.
        for who, number in chain:
            ngram = found[begin : begin + len(who)]
            begin += len(who)
            listed = ngram >= 0
            ngram = np.where(listed, ngram + self._size, 0)
            backed_off = log_prob.take(who) + self._backoffs.take(number)
            log_prob[who] = np.where(listed, self._log_probs.take(ngram), backed_off)
            on = (listed & self._continues.take(ngram)).nonzero()[0]
            following[who.take(on)] = ngram.take(on)
        return log_prob, following

    def _chain(self, contexts: NDArray[np.integer]) -> list[tuple[Ints, Ints]]:
        """For the last word, the last two words, ...: which contexts have them listed, and their numbers."""
        given = np.asarray(contexts, dtype=np.int64)
        if self._order == 1:
            return []
        last = given.copy()
        longer = (given >= self._size).nonzero()[0]
        key = self._keys.take(given.take(longer) - self._size) if len(longer) else longer
        last[longer] = key % self._size
        chain = [(np.arange(len(given)), last)]
        if self._order == 3:
            chain.append((longer, given.take(longer)))
        elif self._order > 3:
            chain.extend(self._suffixes(given, longer))
        return chain

    def _suffixes(self, given: Ints, longer: Ints) -> list[tuple[Ints, Ints]]:
        """Of contexts of several words: those of their last two, three, ... words that are listed."""
        numbers = np.full((self._order, len(given)), -1, dtype=np.int64)  # by how many words
        orders = self._offsets.searchsorted(given, side="right")
        for n in range(2, self._order):
            here = longer[orders[longer] == n]
            words, rest = [], given[here]
            for _ in range(n - 1):
                key = self._keys[rest - self._size]
                words.append(key % self._size)
                rest = key // self._size
            words.append(rest)  # the oldest one; the newest comes first
            for k in range(2, n):
                number = words[k - 1]
                for word in words[k - 2 :: -1]:
                    found = self._table.find(number * self._size + word)
                    number = np.where((found >= 0) & (number >= 0), found + self._size, -1)
                numbers[k, here] = number
            numbers[n, here] = given[here]
        return [((n >= 0).nonzero()[0], n[n >= 0]) for n in numbers[2:]]


def _is_context(model: NgramModel, order: int) -> NDArray[np.bool_]:
    """Of each n-gram of ``order``: whether what follows depends on all of it. Files of other tools may back off from
    n-grams that nothing follows."""
    follows: NDArray[np.bool_] = model.is_context(order)
    return follows | (model.backoffs[order - 1] != 0) if order < model.order else follows


class _Table:
    """Distinct keys by hash: found in one or two looks, where a binary search takes twenty.

    Keys of one slot are chained: ``_first`` (slots,) holds the place of one of them or -1, ``_next`` (keys,) the place
    of the one after a key, or -1. To build it takes a tenth of what sorting by slot takes.
    """

    _AT_ONCE = 1 << 13  # keys that are put in together: their slots are still in the processor's cache when read again

    def __init__(self, keys: Ints) -> None:
        bits = max(1, int(np.ceil(np.log2(max(1, len(keys))))) + 1)
        self._shift = np.uint64(64 - bits)
        self._keys = keys
        self._first = np.full(1 << bits, -1, dtype=np.int32)
        self._next = np.empty(len(keys), dtype=np.int32)
        for begin in range(0, len(keys), self._AT_ONCE):
            self._insert(begin, min(begin + self._AT_ONCE, len(keys)))

    def _insert(self, begin: int, end: int) -> None:
        """Each key becomes the first of its slot; of several at once with one slot, one does, the others try again."""
        slot, places = self._slot(self._keys[begin:end]), np.arange(begin, end, dtype=np.int32)
        while len(places):
            self._next[places] = self._first.take(slot)
            self._first[slot] = places
            again = (self._first.take(slot) != places).nonzero()[0]
            slot, places = slot.take(again), places.take(again)

    def _slot(self, keys: Ints) -> Ints:
        return (keys.view(np.uint64) * _MIX >> self._shift).view(np.int64)

    def find(self, wanted: Ints) -> Ints:
        """Places of keys (n,); -1 for those that are not there, and for negative ones."""
        found = np.full(len(wanted), -1, dtype=np.int64)
        place = self._first.take(self._slot(wanted))
        open_ = (place >= 0).nonzero()[0]
        place = place.take(open_)
        while len(open_):
            hit = self._keys.take(place) == wanted.take(open_)
            found[open_[hit]] = place[hit]
            place = self._next.take(place)
            on = (~hit & (place >= 0)).nonzero()[0]
            open_, place = open_.take(on), place.take(on)
        return found


class NoScorer:
    """In place of a language model: every word costs nothing."""

    begin = 0
    contexts = 1
    rare = 0.0

    def __init__(self, words: int) -> None:
        self.end_of_sentence = words

    def unigrams(self) -> Floats:
        """Zeros (words,)."""
        return np.zeros(self.end_of_sentence)

    def score(self, contexts: NDArray[np.integer], words: NDArray[np.integer]) -> tuple[Floats, Ints]:
        """Zeros (n,) twice."""
        return np.zeros(len(words)), np.zeros(len(words), dtype=np.int64)
