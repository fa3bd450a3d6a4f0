"""Where the words of training utterances lie, found by a trained network: pieces of utterances can be trained on.

A recurrent network learns sentences by heart that it hears fifty times. Cut between two words, and joined with a piece
of another (``augment.join``), they are new each time (Lam et al. 2021, "On-the-fly aligned data augmentation for
sequence-to-sequence ASR").
"""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.utils.rnn import pad_sequence

from asr.checkpoint import ModelFolder
from asr.errors import AsrError, UsageError
from asr.features import FeatureConfig
from asr.model import FRAMES_PER_STEP
from asr.training.batches import TrainingSet
from asr.training.cache import write_whole
from asr.vocabulary import BLANK, PhoneVocabulary, Vocabulary

log = logging.getLogger("asr.train")
Cuts = NDArray[np.int64]
_ROWS = 16  # utterances of a batch
_SAY_EVERY = 4000  # utterances


def word_places(folder: ModelFolder, data: TrainingSet, features: FeatureConfig, cache: Path) -> list[Cuts]:
    """Of every utterance of ``data`` the frames of its first view at which it can be cut: its words' number and one,
    from 0 to its length; empty where the network's phones do not fit it.

    What was found is kept in ``cache``. Raises UsageError for a network without phones or with other features.
    """
    units, lengths = phones_of(folder, features), first_lengths(data)
    known = folder.fingerprint, data.ids, data.texts, lengths
    return kept(cache, "places", known, len(data), lambda: _find(folder, units, data, lengths))


def first_lengths(data: TrainingSet) -> list[int]:
    """Frames of the first view of every utterance."""
    return [data.length(u, 0) for u in range(len(data))]


def kept(
    folder: Path, name: str, known: tuple[object, ...], count: int, find: Callable[[], Iterable[tuple[int, Cuts]]]
) -> list[NDArray[np.int64]]:
    """Numbers of each of ``count`` utterances: those that a file in ``folder`` holds, or that ``find`` gives with the
    number of the utterance; then a file is written. ``known``: all that they depend on."""
    path = folder / f"{name}-{hashlib.sha256(repr(known).encode()).hexdigest()[:16]}.npz"
    if not path.is_file():
        log.info("looking for the %s of %d utterances", name, count)
        found = dict(find())
        numbers = [found.get(u, np.zeros(0, dtype=np.int64)) for u in range(count)]
        folder.mkdir(parents=True, exist_ok=True)
        joined, ends = np.concatenate([*numbers, np.zeros(0, dtype=np.int64)]), np.cumsum([len(n) for n in numbers])
        write_whole(path, lambda temporary: np.savez(temporary, found=joined, ends=ends))
    with np.load(path) as stored:
        return np.split(stored["found"], stored["ends"][:-1])


def _find(
    folder: ModelFolder, units: Vocabulary, data: TrainingSet, lengths: Sequence[int]
) -> Iterator[tuple[int, Cuts]]:
    for u, log_probs in aligned_emissions(folder, data, lengths):
        try:
            words = [units.encode(word) for word in data.texts[u].split()]
        except AsrError:
            continue
        cuts = places(log_probs, words)
        if len(cuts):
            yield u, np.minimum(cuts * FRAMES_PER_STEP, lengths[u])


def aligned_emissions(
    folder: ModelFolder, data: TrainingSet, lengths: Sequence[int]
) -> Iterator[tuple[int, torch.Tensor]]:
    """Every utterance and its log-probabilities (steps, phones), from the first view, of ``lengths`` frames; from short
    to long. ``folder``: of a network that :func:`phones_of` takes."""
    network, head = folder.load_network(), folder.config.head
    order = sorted(range(len(data)), key=lambda u: lengths[u])
    for first in range(0, len(order), _ROWS):
        some = order[first : first + _ROWS]
        frames = pad_sequence([torch.from_numpy(data.frames(u, 0)) for u in some], batch_first=True)
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            out, steps, _ = network(frames, torch.tensor([lengths[u] for u in some]))
        for u, log_probs, count in zip(some, out[head], steps.tolist(), strict=True):
            yield u, log_probs[:count]
        if first // _SAY_EVERY != (first + _ROWS) // _SAY_EVERY:
            log.info("aligned %d utterances", first + len(some))


def phones_of(folder: ModelFolder, features: FeatureConfig) -> PhoneVocabulary:
    """The units of a network that can align; raises UsageError for one without phones or with other features."""
    units = folder.load_vocabularies(folder.load_lexicon())[folder.config.head]
    if not isinstance(units, PhoneVocabulary):
        raise UsageError(f"{folder.path} has no phones: give an aligner whose search reads phones")
    if folder.config.features != features:
        raise UsageError(f"{folder.path} has other features than the network: an aligner must hear the same")
    return units


def places(log_probs: torch.Tensor, words: Sequence[Sequence[int]]) -> Cuts:
    """The steps at which to cut (words and one): in the middle between the last spike of a word and the first of the
    next, on the likeliest path of CTC. Empty where the words do not fit.

    ``log_probs``: (steps, units); ``words``: the units of each.
    """
    from torchaudio.functional import forced_align

    targets = [unit for word in words for unit in word]
    repeats = sum(a == b for a, b in itertools.pairwise(targets))
    if not targets or not all(words) or len(targets) + repeats > len(log_probs):
        return np.zeros(0, dtype=np.int64)
    path, _ = forced_align(log_probs.float()[None], torch.tensor([targets], dtype=torch.int32), blank=BLANK)
    labels = path[0].numpy()
    starts = np.flatnonzero((labels != BLANK) & (labels != np.concatenate([[BLANK], labels[:-1]])))
    ends = np.flatnonzero((labels != BLANK) & (labels != np.concatenate([labels[1:], [BLANK]])))
    last = np.cumsum([len(word) for word in words]) - 1
    between = (ends[last[:-1]] + 1 + starts[last[:-1] + 1]) // 2
    return np.concatenate([[0], between, [len(labels)]]).astype(np.int64)
