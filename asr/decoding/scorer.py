"""An n-gram model as the search asks it: many contexts and words at once, contexts as integers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from asr.decoding.kernels import Grams, chances, hashed
from asr.lm.model import NgramModel
from asr.lm.text import BOS_ID, EOS, UNK_ID

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


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
        # Of each n-gram from the second order on: the number of its first words and its last one, in one integer.
        higher = zip(model.keys[1:], self._offsets, strict=False)
        keys = np.concatenate([np.zeros(0, np.int64), *(k + before * self._size for k, before in higher)])
        bits = max(1, len(keys).bit_length() + 1)
        backoffs = np.concatenate(model.backoffs) if model.order > 1 else np.zeros(self._size, np.float32)
        continues = np.concatenate([_is_context(model, n) for n in range(1, model.order + 1)])
        self.grams = Grams(self._order, self._size, self.end_of_sentence, self.rare, self._ids,
                           np.concatenate(model.log_probs), backoffs, continues, keys, *hashed(keys, bits))  # fmt: skip

    @property
    def contexts(self) -> int:
        """Contexts are less than this."""
        return int(self._offsets[max(1, self._order - 1)])

    def unigrams(self) -> Floats:
        """(words,) log10 probability of every word without context."""
        return self.grams.log_probs[self._ids[: self.end_of_sentence]].astype(np.float64)

    def score(self, contexts: NDArray[np.integer], words: NDArray[np.integer]) -> tuple[Floats, Ints]:
        """``contexts``, ``words``: (n,). Returns log10 probabilities (n,) and the contexts that follow (n,)."""
        return chances(self.grams, np.ascontiguousarray(contexts, np.int64), np.ascontiguousarray(words, np.int64))


def _is_context(model: NgramModel, order: int) -> NDArray[np.bool_]:
    """Of each n-gram of ``order``: whether what follows depends on all of it. Files of other tools may back off from
    n-grams that nothing follows."""
    follows: NDArray[np.bool_] = model.is_context(order)
    return follows | (model.backoffs[order - 1] != 0) if order < model.order else follows


class NoScorer:
    """In place of a language model: every word costs nothing."""

    begin = 0
    contexts = 1
    rare = 0.0

    def __init__(self, words: int) -> None:
        self.end_of_sentence, none = words, np.zeros(0, np.int64)
        backoffs, continues = np.zeros(0, np.float32), np.zeros(0, np.bool_)
        self.grams = Grams(0, 0, words, self.rare, none, backoffs, backoffs, continues, none, *hashed(none, 1))

    def unigrams(self) -> Floats:
        """Zeros (words,)."""
        return np.zeros(self.end_of_sentence)

    def score(self, contexts: NDArray[np.integer], words: NDArray[np.integer]) -> tuple[Floats, Ints]:
        """Zeros (n,) twice."""
        return np.zeros(len(words)), np.zeros(len(words), dtype=np.int64)
