"""Which of a word's pronunciations was said, found by a trained network: what it is then taught to hear, and how likely
each is.

    python -m asr.training.pronunciations MODEL --data train.tsv more.tsv --out DIR

A lexicon gives "the" two pronunciations and "read" two that mean different things; to train on the first one always is
to train on errors. Here every word gets the one on the likeliest path of CTC through all of them (forced alignment with
pronunciation variants, as Kaldi's training does in each of its passes). Counted over training speech, they are the
costs of the lexicon's pronunciations, which the search takes off (Chen et al. 2015, "Pronunciation and silence
probability modeling for ASR": relative to a word's likeliest one, so that words with many are not punished).
"""

from __future__ import annotations

import argparse
import collections
import logging
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from asr.checkpoint import LEXICON, WEIGHTS, ModelFolder, copy_folder, find_model, read_config, update_config
from asr.decoding.compiled import compiled
from asr.features import FeatureConfig
from asr.lexicon import Lexicon
from asr.training.batches import TrainingSet
from asr.training.cache import build
from asr.training.manifest import Utterance, read_manifest
from asr.training.tool import run_tool
from asr.training.word_places import aligned_emissions, first_lengths, kept, phones_of
from asr.vocabulary import BLANK, PhoneVocabulary

log = logging.getLogger("asr.train")
Ints = NDArray[np.int64]
Units = tuple[int, ...]
Said = Mapping[str, Mapping[int, int]]
Counts = collections.Counter[int]
# A pronunciation is believed to be as likely as its rank says until it was heard about so many times.
_FIRST, _HEARD_BEFORE = 0.8, 5.0
_USUAL_S = 10.0  # of an utterance whose table does not say how long it is


def heard_pronunciations(
    folder: ModelFolder, data: TrainingSet, head: str, features: FeatureConfig, cache: Path
) -> list[Ints]:
    """Of every utterance of ``data`` and each of its words the number of the pronunciation that was said, among those
    of the vocabulary of ``head``; empty where the network's phones do not fit it.

    What was found is kept in ``cache``. Raises UsageError for a network without phones or with other features.
    """
    phones_of(folder, features)
    units = data.heads[head]
    assert isinstance(units, PhoneVocabulary) and units.lexicon is not None
    variants = [_variants(units, text) for text in data.texts]
    lengths = first_lengths(data)
    known = folder.fingerprint, data.ids, data.texts, lengths, variants
    return kept(cache, "pronunciations", known, len(data), lambda: _find(folder, data, lengths, variants))


def _variants(units: PhoneVocabulary, text: str) -> list[list[Units]]:
    assert units.lexicon is not None
    return [[tuple(units.encode_phones(p)) for p in units.lexicon.pronounce(word)] for word in text.split()]


def _find(
    folder: ModelFolder,
    data: TrainingSet,
    lengths: Sequence[int],
    variants: Sequence[list[list[Units]]],
) -> Iterator[tuple[int, Ints]]:
    for u, log_probs in aligned_emissions(folder, data, lengths):
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


# -- how likely each is ------------------------------------------------------------------------------------------------


def with_costs(model: str | Path, tables: Sequence[str], cache: Path, out: Path) -> Counts:
    """Write the model folder ``out``, which must not exist: ``model``, and in its lexicon what the pronunciations cost
    by how often they are heard in the speech of ``tables``. ``cache``: folder of the features. Returns how many words
    were said by their first, second, ... pronunciation.

    Raises UsageError for a model without phones, ModelError where ``out`` exists, ManifestError.
    """
    from safetensors.torch import load_file

    folder = find_model(model)
    lexicon, counts = count(folder, [u for table in tables for u in read_manifest(table)], cache)
    copy_folder(folder, out, load_file(folder.path / WEIGHTS))
    put_lexicon(out, lexicon)
    return counts


def count(folder: ModelFolder, utterances: Sequence[Utterance], cache: Path) -> tuple[Lexicon, Counts]:
    """The model's lexicon with the costs, and how many words were said by their first, second, ... pronunciation."""
    features, head = folder.config.features, folder.config.head
    units = phones_of(folder, features)
    lexicon = units.lexicon
    assert isinstance(lexicon, Lexicon)
    data = TrainingSet(list(build(utterances, cache, features)), {head: units})
    heard = heard_pronunciations(folder, data, head, features, cache)
    said: dict[str, Counts] = collections.defaultdict(collections.Counter)
    for text, numbers in zip(data.texts, heard, strict=True):
        for word, number in zip(text.split(), numbers.tolist(), strict=False):
            said[word][number] += 1
    costs = costs_of(said, {word: len(ways) for word, ways in lexicon.items()})
    return lexicon.with_costs(costs), sum(said.values(), collections.Counter())


def put_lexicon(folder: Path, lexicon: Lexicon) -> None:
    """Let it be that of a model folder."""
    lexicon.save(folder / LEXICON)
    update_config(folder, read_config(folder))


def sample(utterances: Sequence[Utterance], hours: float) -> list[Utterance]:
    """Every so many-th of them, about ``hours`` in all."""
    total = sum(u.duration_s or _USUAL_S for u in utterances) / 3600
    return list(utterances[:: max(1, round(total / hours))])


def costs_of(said: Said, ways: Mapping[str, int]) -> dict[str, list[float]]:
    """Of each word with several ``ways`` to be said: by how many nats each is less likely than the likeliest. ``said``:
    of each word how often each was heard, by its number."""
    costs = {}
    for word, count in ways.items():
        if count > 1:
            before = np.array([_FIRST, *[(1 - _FIRST) / (count - 1)] * (count - 1)])
            heard = np.array([said.get(word, {}).get(n, 0) for n in range(count)])
            likely = heard + _HEARD_BEFORE * before
            costs[word] = np.log(likely.max() / likely).tolist()
    return costs


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", help="model folder or name")
    parser.add_argument(
        "--data", nargs="+", required=True, metavar="TABLE", help="manifests (TSV), or librispeech:PART"
    )
    parser.add_argument("--cache", type=Path, help="folder that keeps the features (default: none)")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)

    def work() -> None:
        with tempfile.TemporaryDirectory() as temporary:
            counts = with_costs(args.model, args.data, args.cache or Path(temporary), args.out)
        print(f"{sum(counts.values())} words, {counts[0]} said as the lexicon's first pronunciation has it")

    return run_tool(work)


if __name__ == "__main__":
    sys.exit(main())
