"""How soon words are stable, and what that costs in word errors: `search.commit`.

    OMP_NUM_THREADS=1 python benchmarks/commit.py [--model en] --data dev.tsv... [--limit 60] \\
        [--commit 1 0.999 0.99 0.97 0.95 0.9 0.8] [--keep emissions.npz]

The network runs once over every utterance; then the search alone is repeated with other values of `commit`, step by
step over the segments that the endpointer cuts. Prints, per value, the word error rate of each table and their mean; of
all tables together, median and 90th percentile of the lag from the end of a word (as the final result has it) to where
it is stable, by the clock of the audio, with the network's look-ahead in it, but without waiting for a chunk to be full
and without computing time (benchmarks/partials.py has both); and the median of the part of that which the search makes:
from the step of the word's last sound to the one at which the word is stable. What is not stable before its segment
ends is so there; where the recording ends, too, without the look-ahead. `cpu`: processor seconds of all this per second
of audio. `--keep`: a file for what the network says, which is read if it is there, so that other values take the search
alone (then `--limit` takes some of what the file has).
"""

import argparse
import copy
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from asr.decoding.confidence import word_times
from asr.decoding.endpoint import Endpointer
from asr.decoding.hypothesis import Emissions
from asr.model_config import STEP_MS
from asr.recognizer import Recognizer
from asr.training import metrics
from asr.training.evaluate import emissions_of, load_utterances
from asr.training.manifest import read_manifest
from asr.training.tune import cut_segments

TOGETHER = 40  # segments in a step of the search


@dataclass(frozen=True)
class Piece:
    """A segment of an utterance: its ``table``, ``utterance`` and ``number`` in it, (steps, units) ``emissions``, and
    whether the recording ends with it."""

    table: str
    utterance: int
    number: int
    emissions: Emissions
    last: bool


@dataclass
class Found:
    """What a search makes of a piece: ``words``, and the step at which each was ``stable``."""

    words: list
    stable: list[int]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="en")
    parser.add_argument("--data", nargs="+", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=60, help="utterances of each table")
    parser.add_argument("--commit", nargs="+", type=float, default=[1, 0.999, 0.99, 0.97, 0.95, 0.9, 0.8])
    parser.add_argument("--keep", type=Path, help="a file for the emissions")
    args = parser.parse_args()
    torch.set_num_threads(1)
    recognizer = Recognizer.load(args.model)
    kept = read(args.keep) if args.keep and args.keep.is_file() else None
    tables = {t.stem: kept[t.stem] if kept else heard(recognizer, t, args.limit) for t in args.data}
    if args.keep and not kept:
        write(args.keep, tables)
    tables = {name: some(utterances, args.limit) for name, utterances in tables.items()}
    pieces = list(cut(Endpointer(recognizer.folder.config.endpoint), tables))
    references = {name: [text.split() for text, _ in utterances] for name, utterances in tables.items()}
    seconds = sum(len(e) for utterances in tables.values() for _, e in utterances) * STEP_MS / 1000
    names = [table.stem for table in args.data]
    print(f"{'commit':>6} {' '.join(names)}  mean   lag in ms: median, 90 %   steps of the search: median   cpu")
    for commit in args.commit:
        search = copy.copy(recognizer.search)
        search.config = replace(search.config, commit=commit)
        began = time.process_time()
        found = recognise(search, pieces)
        took = time.process_time() - began
        rates = [100 * error_rate(name, pieces, found, references[name]) for name in names]
        lags = sorted(lag for piece, one in zip(pieces, found, strict=True) for lag in waits(recognizer, piece, one))
        steps = [at - w.last for one in found for at, w in zip(one.stable, one.words, strict=True)]
        columns = " ".join(f"{rate:{len(name)}.2f}" for rate, name in zip(rates, names, strict=True))
        median, most = statistics.median(lags), lags[int(0.9 * len(lags))]
        print(f"{commit:>6} {columns} {statistics.mean(rates):5.2f}   {median:.0f}, {most:.0f}   "
              f"{statistics.median(steps):.0f}   {took / seconds:.4f}", flush=True)  # fmt: skip


def heard(recognizer, table, limit):
    """(text, emissions) of utterances of a table."""
    utterances = some(read_manifest(table), limit)
    emissions = dict(emissions_of(recognizer, load_utterances(utterances)))
    return [(u.text, emissions[i][recognizer.head]) for i, u in enumerate(utterances)]


def write(path, tables):
    """What :func:`read` reads."""
    rows = ((name, i, *u) for name, utterances in tables.items() for i, u in enumerate(utterances))
    np.savez(path, **{f"{name}/{i}/{text}": emissions for name, i, text, emissions in rows})


def read(path):
    """(text, emissions) of the utterances of every table, as they were kept."""
    tables = {}
    with np.load(path) as file:
        for name in file.files:
            table, _, text = name.split("/", 2)
            tables.setdefault(table, []).append((text, file[name]))
    return tables


def some(values, limit):
    """At most ``limit`` of them, from all over."""
    return values[:: max(1, len(values) // limit)][:limit]


def cut(endpointer, tables):
    """The pieces of all utterances, the shortest first."""
    pieces = []
    for table, utterances in tables.items():
        for i, (_, emissions) in enumerate(utterances):
            for number, segment in enumerate(cut_segments(endpointer, emissions)):
                pieces.append(Piece(table, i, number, segment, bool((segment[-1] == emissions[-1]).all())))
    return sorted(pieces, key=lambda piece: len(piece.emissions))


def recognise(search, pieces):
    """What the search finds in each piece."""
    found = []
    for first in range(0, len(pieces), TOGETHER):
        batch = pieces[first : first + TOGETHER]
        states, stable = [search.begin() for _ in batch], [[] for _ in batch]
        for t in range(max(len(piece.emissions) for piece in batch)):
            active = [j for j, piece in enumerate(batch) if t < len(piece.emissions)]
            search.step_many([(batch[j].emissions[t : t + 1], states[j]) for j in active])
            for j in active:
                stable[j] += [t] * (search.stable(states[j]) - len(stable[j]))
        for piece, state, at in zip(batch, states, stable, strict=True):
            words = search.end(state).words
            found.append(Found(words, at + [len(piece.emissions) - 1] * (len(words) - len(at))))
    return found


def waits(recognizer, piece, found):
    """ms from the end of each word to where it is stable."""
    ahead = recognizer.algorithmic_latency_ms - STEP_MS
    until = len(piece.emissions) * STEP_MS
    times = word_times(found.words, 0, 0.0, until / 1000, recognizer.folder.config.times)
    for step, (_, end) in zip(found.stable, times, strict=True):
        known = (step + 1) * STEP_MS + ahead
        yield (min(known, until) if piece.last else known) - 1000 * end


def error_rate(table, pieces, found, references):
    """Word error rate of one table."""
    texts = [[] for _ in references]
    for piece, one in zip(pieces, found, strict=True):
        if piece.table == table:
            texts[piece.utterance].append((piece.number, [w.text for w in one.words]))
    joined = [[w for _, words in sorted(text) for w in words] for text in texts]
    errors = sum(metrics.edit_distance(r, w) for r, w in zip(references, joined, strict=True))
    return errors / max(1, sum(map(len, references)))


if __name__ == "__main__":
    main()
