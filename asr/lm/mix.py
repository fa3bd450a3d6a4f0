"""Static linear interpolation of n-gram models into one, and its weights by expectation maximisation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from asr.errors import LanguageModelError
from asr.lm.complete import complete
from asr.lm.model import NEVER, NgramModel, with_backoffs
from asr.lm.text import BOS_ID, SPECIAL, UNK_ID, encode


def mix(models: Sequence[NgramModel], weights: Sequence[float]) -> NgramModel:
    """One back-off model over the union of the n-grams of ``models``: ``p(w | h) = sum of weight * p_model(w | h)``.

    Exact for every n-gram in the union (a model that does not list it backs off); elsewhere the mixture backs off,
    with weights computed anew so that each context sums to one (SRILM's ``ngram -mix-lm``; A. Stolcke 2002).
    The vocabulary is the union in order of appearance; a model gives a word it does not know its probability of
    ``<unk>`` divided by the number of such words.

    weights: not negative; scaled to sum to one. Raises :class:`LanguageModelError` when they do not fit.
    """
    shares = _checked(models, weights)
    if len(models) == 1:
        return models[0]
    words = tuple(dict.fromkeys(word for model in models for word in model.words))
    # Estimated models are complete; models from files may lack n-grams that others end with.
    aligned = [with_words(model if model.context_shares else complete(model), words) for model in models]
    order = max(model.order for model in aligned)
    size = len(words)

    keys = [np.arange(size, dtype=np.int64)]
    total = _to_probs(aligned[0].log_probs[0]) * shares[0]
    for model, share in zip(aligned[1:], shares[1:], strict=True):
        total += _to_probs(model.log_probs[0]) * share
    log_probs = [_to_logs(total)]
    logs = [model.log_probs[0] for model in aligned]  # per model: log10 p of each n-gram of the union, this order
    places = [np.arange(size, dtype=np.int64) for _ in aligned]  # per model: its n-gram's number in the union
    numbers = [np.arange(size, dtype=np.int64) for _ in aligned]  # per model: of each n-gram of the union, or -1
    suffix = np.zeros(0, dtype=np.int64)
    for n in range(2, order + 1):
        moved = [
            places[k][model.prefixes(n)] * size + model.last_words(n) if model.order >= n else np.zeros(0, np.int64)
            for k, model in enumerate(aligned)
        ]
        union = np.unique(np.concatenate(moved))
        prefix, last = union // size, union % size
        suffix = last if n == 2 else _look_up(keys[-1], suffix[prefix] * size + last)
        total = np.zeros(len(union))
        for k, model in enumerate(aligned):
            # What the model does not list backs off: weight of its context, times its value for the suffix.
            context = numbers[k][prefix]
            values = logs[k][suffix]
            if model.order >= n:
                values += np.where(context >= 0, model.backoffs[n - 2][context], np.float32(0.0))
            if model.order >= n:
                places[k] = np.searchsorted(union, moved[k])
                values[places[k]] = model.log_probs[n - 1]
            total += _to_probs(values) * shares[k]
            if n < order:
                logs[k] = values
                numbers[k] = np.full(len(union), -1, dtype=np.int64)
                if model.order >= n:
                    numbers[k][places[k]] = np.arange(len(places[k]))
        keys.append(union)
        log_probs.append(_to_logs(total))
    backoffs = tuple(np.zeros(len(level), dtype=np.float32) for level in keys[:-1])
    mixed = NgramModel(words, tuple(keys), tuple(log_probs), backoffs, _mixed_shares(aligned, shares, keys))
    return with_backoffs(mixed)


def _checked(models: Sequence[NgramModel], weights: Sequence[float]) -> list[float]:
    if not models or len(models) != len(weights):
        raise LanguageModelError(f"{len(models)} language models cannot be mixed with {len(weights)} weights")
    if not all(np.isfinite(w) and w >= 0 for w in weights) or sum(weights) <= 0:
        raise LanguageModelError(f"mixing weights must not be negative nor all zero, not {list(weights)}")
    return [float(w) / float(sum(weights)) for w in weights]


def _to_probs(logs: np.ndarray) -> np.ndarray:
    return np.asarray(10.0 ** logs.astype(np.float64))


def _to_logs(probs: np.ndarray) -> np.ndarray:
    return np.log10(np.maximum(probs, 10.0**NEVER)).astype(np.float32)


def _look_up(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Places of keys that are all present: every suffix of an n-gram of the union is in the union."""
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    if not (keys[place] == wanted).all():
        raise LanguageModelError("a model to mix lists an n-gram without its last words")
    return place


def _mixed_shares(
    models: Sequence[NgramModel], weights: Sequence[float], keys: Sequence[np.ndarray]
) -> tuple[np.ndarray, ...] | None:
    if any(model.context_shares is None for model in models):
        return None
    size = len(models[0].words)
    result = [np.zeros(len(level), dtype=np.float32) for level in keys[:-1]]
    for model, weight in zip(models, weights, strict=True):
        place = np.arange(size, dtype=np.int64)
        for n in range(1, model.order):
            if n > 1:
                place = np.searchsorted(keys[n - 1], place[model.prefixes(n)] * size + model.last_words(n))
            assert model.context_shares is not None
            result[n - 1][place] += np.float32(weight) * model.context_shares[n - 1]
    return tuple(result)


def with_words(model: NgramModel, words: Sequence[str]) -> NgramModel:
    """The same model over another vocabulary that holds all its words (special words first)."""
    words = tuple(words)
    if words == model.words:
        return model
    ids = {word: i for i, word in enumerate(words)}
    if words[: len(SPECIAL)] != SPECIAL or not all(word in ids for word in model.words):
        raise LanguageModelError("the vocabulary does not hold all words of the language model")
    new_id = np.array([ids[word] for word in model.words], dtype=np.int64)
    added = len(words) - len(model.words)
    unigrams = np.full(len(words), model.log_probs[0][UNK_ID] - np.log10(max(1, added + 1)), dtype=np.float32)
    unigrams[new_id] = model.log_probs[0]
    if added:
        unigrams[UNK_ID] = model.log_probs[0][UNK_ID] - np.log10(added + 1)
    keys, log_probs = [np.arange(len(words), dtype=np.int64)], [unigrams]
    backoffs: list[np.ndarray] = []
    shares: list[np.ndarray] = []
    places = new_id
    for n in range(1, model.order + 1):
        if n > 1:
            moved = places[model.prefixes(n)] * len(words) + new_id[model.last_words(n)]
            by_key = np.argsort(moved)
            places = np.empty(len(moved), dtype=np.int64)
            places[by_key] = np.arange(len(moved))
            keys.append(moved[by_key])
            log_probs.append(model.log_probs[n - 1][by_key])
        if n < model.order:
            backoffs.append(_scattered(model.backoffs[n - 1], places, len(keys[-1])))
            if model.context_shares is not None:
                shares.append(_scattered(model.context_shares[n - 1], places, len(keys[-1])))
    return NgramModel(
        words, tuple(keys), tuple(log_probs), tuple(backoffs), tuple(shares) if model.context_shares else None
    )


def _scattered(values: np.ndarray, places: np.ndarray, size: int) -> np.ndarray:
    result = np.zeros(size, dtype=np.float32)
    result[places] = values
    return result


def tune_weights(
    models: Sequence[NgramModel],
    texts: Sequence[Iterable[str | Sequence[str]]],
    *,
    steps: int = 200,
    tolerance: float = 1e-5,
) -> list[float]:
    """Mixing weights that make ``texts`` most likely, by expectation maximisation from equal weights.

    texts: one or several held-out texts (each an iterable of sentences); each counts the same, whatever its length.
    Words unknown to a model count as its ``<unk>``; words unknown to all are left out.
    Stops when no weight moves by more than ``tolerance``. Raises :class:`LanguageModelError` for empty texts.
    """
    columns: list[np.ndarray] = []
    token_weights: list[np.ndarray] = []
    words = tuple(dict.fromkeys(word for model in models for word in model.words))
    aligned = [with_words(model, words) for model in models]
    for text in texts:
        ids = encode(text, words).ids
        use = (ids != UNK_ID) & (ids != BOS_ID)
        if not use.any():
            raise LanguageModelError("a text to tune mixing weights on holds no known words")
        columns.append(_to_probs(np.stack([model.token_log_probs(ids)[use] for model in aligned])))
        token_weights.append(np.full(int(use.sum()), 1.0 / use.sum()))
    if not columns:
        raise LanguageModelError("tuning mixing weights needs at least one text")
    probs = np.concatenate(columns, axis=1)
    share = np.concatenate(token_weights) / len(columns)
    weights = np.full(len(models), 1.0 / len(models))
    for _ in range(steps):
        posterior = weights[:, None] * probs
        posterior /= posterior.sum(axis=0)
        new = posterior @ share
        done = np.abs(new - weights).max() < tolerance
        weights = new
        if done:
            break
    return [float(w) for w in weights]
