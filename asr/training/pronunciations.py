"""Which of a word's pronunciations was said, found by a trained network: what it is then taught to hear.

A lexicon gives "the" two pronunciations and "read" two that mean different things; to train on the first one always is
to train on errors. Here every word gets the one on the likeliest path of CTC through all of them (forced alignment with
pronunciation variants, as Kaldi's training does in each of its passes).
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from asr.checkpoint import ModelFolder
from asr.decoding.compiled import compiled
from asr.features import FeatureConfig
from asr.training.batches import TrainingSet
from asr.training.cache import write_whole
from asr.training.word_places import aligned_emissions
from asr.vocabulary import BLANK, PhoneVocabulary

log = logging.getLogger("asr.train")
Ints = NDArray[np.int64]
Units = tuple[int, ...]


def heard_pronunciations(
    folder: ModelFolder, data: TrainingSet, head: str, features: FeatureConfig, cache: Path
) -> list[Ints]:
    """Of every utterance of ``data`` and each of its words the number of the pronunciation that was said, among those
    of the vocabulary of ``head``; empty where the network's phones do not fit it.

    What was found is kept in ``cache``. Raises UsageError for a network without phones or with other features.
    """
    units = data.heads[head]
    assert isinstance(units, PhoneVocabulary) and units.lexicon is not None
    variants = [_variants(units, text) for text in data.texts]
    lengths = [data.length(u, 0) for u in range(len(data))]
    known = repr((folder.fingerprint, data.ids, data.texts, lengths, variants))
    path = cache / f"said-{hashlib.sha256(known.encode()).hexdigest()[:16]}.npz"
    if not path.is_file():
        log.info("looking for the pronunciations of %d utterances", len(data))
        found = dict(_find(folder, data, features, lengths, variants))
        said = [found.get(u, np.zeros(0, dtype=np.int64)) for u in range(len(data))]
        cache.mkdir(parents=True, exist_ok=True)
        joined, ends = np.concatenate([*said, np.zeros(0, dtype=np.int64)]), np.cumsum([len(s) for s in said])
        write_whole(path, lambda temporary: np.savez(temporary, said=joined, ends=ends))
    with np.load(path) as stored:
        return np.split(stored["said"], stored["ends"][:-1])


def _variants(units: PhoneVocabulary, text: str) -> list[list[Units]]:
    assert units.lexicon is not None
    return [[tuple(units.encode_phones(p)) for p in units.lexicon.pronounce(word)] for word in text.split()]


def _find(
    folder: ModelFolder,
    data: TrainingSet,
    features: FeatureConfig,
    lengths: Sequence[int],
    variants: Sequence[list[list[Units]]],
) -> Iterator[tuple[int, Ints]]:
    for u, log_probs in aligned_emissions(folder, data, features, lengths):
        yield u, choose(log_probs.float().numpy(), variants[u])


def choose(log_probs: NDArray[np.float32], words: Sequence[Sequence[Units]]) -> Ints:
    """Of each word the number of the pronunciation that lies on the likeliest path of CTC: (words,); empty where no
    path fits.

    ``log_probs``: (steps, units); ``words``: the pronunciations of each, as units.
    """
    if not words:
        return np.zeros(0, dtype=np.int64)
    emitted: list[int] = []
    owner, number = [], []  # word and pronunciation of each unit
    first: list[int] = []  # where in ``before`` the units stand that it may come after
    before: list[int] = []
    ends: list[int] = []  # the last units of the word before
    for w, pronunciations in enumerate(words):
        last = []
        for p, units in enumerate(pronunciations):
            for k, unit in enumerate(units):
                first.append(len(before))
                before += ends if k == 0 else [len(emitted) - 1]
                emitted.append(unit)
                owner.append(w)
                number.append(p)
            last.append(len(emitted) - 1)
        ends = last
    first.append(len(before))
    starts = [n for n, w in enumerate(owner) if w == 0 and first[n] == first[n + 1]]
    path = _best_path(np.ascontiguousarray(log_probs), *map(_array, (emitted, first, before, starts, ends)))
    if not len(path):
        return np.zeros(0, dtype=np.int64)
    said = np.zeros(len(words), dtype=np.int64)
    said[np.asarray(owner)[path]] = np.asarray(number)[path]
    return said


def _array(numbers: Sequence[int]) -> Ints:
    return np.asarray(numbers, dtype=np.int64)


@compiled
def _best_path(
    log_probs: NDArray[np.float32], emitted: Ints, first: Ints, before: Ints, starts: Ints, ends: Ints
) -> Ints:
    """Viterbi: the units of the graph on the best path, in order; none where no path fits.

    State 0 is the blank before all units, state 1 + 2 n unit n, state 2 + 2 n the blank after it.
    """
    steps, count = len(log_probs), len(emitted)
    none = -np.inf
    score = np.full(1 + 2 * count, none)
    after = np.empty_like(score)
    back = np.zeros((steps, 1 + 2 * count), dtype=np.int32)
    score[0] = log_probs[0, BLANK]
    for n in starts:
        score[1 + 2 * n] = log_probs[0, emitted[n]]
    is_start = np.zeros(count, dtype=np.bool_)
    for n in starts:
        is_start[n] = True
    for t in range(1, steps):
        blank = log_probs[t, BLANK]
        after[0] = score[0] + blank
        for n in range(count):
            here = 1 + 2 * n
            best, came = score[here], here
            if is_start[n] and score[0] > best:
                best, came = score[0], 0
            for i in range(first[n], first[n + 1]):
                m = before[i]
                if score[2 + 2 * m] > best:
                    best, came = score[2 + 2 * m], 2 + 2 * m
                if emitted[m] != emitted[n] and score[1 + 2 * m] > best:
                    best, came = score[1 + 2 * m], 1 + 2 * m
            after[here], back[t, here] = best + log_probs[t, emitted[n]], came
            best, came = score[here + 1], here + 1
            if score[here] > best:
                best, came = score[here], here
            after[here + 1], back[t, here + 1] = best + blank, came
        score, after = after, score
    best, state = none, 0
    for n in ends:
        for here in (1 + 2 * n, 2 + 2 * n):
            if score[here] > best:
                best, state = score[here], here
    path = np.empty(count, dtype=np.int64)
    length = 0
    if best == none:
        return path[:0]
    previous = -1
    for t in range(steps - 1, -1, -1):
        unit = (state - 1) // 2 if state else -1
        if unit >= 0 and unit != previous:
            path[length] = unit
            length += 1
            previous = unit
        if t:
            state = back[t, state]
    return path[:length][::-1]
