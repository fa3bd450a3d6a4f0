"""Adding the n-grams that others need, without changing any probability."""

from __future__ import annotations

import numpy as np

from asr.lm.model import NgramModel


def complete(model: NgramModel) -> NgramModel:
    """The model with the last n-1 words of every n-gram listed, too.

    An added n-gram gets the probability that the model gives it by backing off, so no probability changes. Models of
    this package are complete already; models pruned elsewhere may not be, and KenLM's trie and mixing need it.
    """
    if all((suffix >= 0).all() for suffix in model.suffixes[1:]):
        return model
    grams = [model.ngram_words(n) for n in range(1, model.order + 1)]
    for n in range(model.order, 2, -1):
        missing = grams[n - 1][:, 1:]
        grams[n - 2] = np.unique(np.concatenate([grams[n - 2], missing, grams[n - 1][:, :-1]]), axis=0)
    return from_ngrams(model, grams)


def from_ngrams(model: NgramModel, grams: list[np.ndarray]) -> NgramModel:
    """The model listed over other n-grams, closed under prefixes: (count, n) word ids per order, sorted and distinct.

    Values of n-grams that ``model`` lists are kept; others get the value it backs off to, and no back-off weight.
    """
    size = len(model.words)
    keys, log_probs, backoffs = [model.keys[0]], [model.log_probs[0]], list(model.backoffs[:1])
    shares = None if model.context_shares is None else list(model.context_shares[:1])
    for n in range(2, len(grams) + 1):
        place = grams[n - 1][:, 0].astype(np.int64)
        for k in range(1, n - 1):
            place = np.searchsorted(keys[k], place * size + grams[n - 1][:, k])
        keys.append(place * size + grams[n - 1][:, -1])
        old = model.find(grams[n - 1])
        log_probs.append(model.log_probs_of(grams[n - 1]).astype(np.float32))
        if n < len(grams):
            backoffs.append(np.where(old >= 0, model.backoffs[n - 1][old], np.float32(0.0)))
            if shares is not None and model.context_shares is not None:
                shares.append(np.where(old >= 0, model.context_shares[n - 1][old], np.float32(0.0)))
    return NgramModel(model.words, tuple(keys), tuple(log_probs), tuple(backoffs), tuple(shares) if shares else None)
