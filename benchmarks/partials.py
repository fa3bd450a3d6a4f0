"""How partial results behave: how often words are withdrawn, and how soon they appear and become stable.

    OMP_NUM_THREADS=1 python benchmarks/partials.py [--model en] --data dev.tsv... [--limit 60] [--chunk-ms 100]

Utterances are fed in chunks as from a microphone. Counted per word of the final results: words that a partial result
showed at some place and a later result did not (withdrawn); seconds from the word's end in the audio (as the final
result has it) to the first partial from which on it is shown for good, and to the one in which it is stable (both by
the clock of the audio that was fed: waiting for the chunk and the network's look-ahead are in it, computing time is
not, and is given beside). Every stable text is checked: it must never be withdrawn.
"""

import argparse
import statistics
import time
from itertools import pairwise
from pathlib import Path

import torch

from asr.recognizer import Recognizer
from asr.results import Partial, Segment
from asr.training.evaluate import load_utterances
from asr.training.manifest import read_manifest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="en")
    parser.add_argument("--data", nargs="+", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=60, help="utterances of each table")
    parser.add_argument("--chunk-ms", type=int, default=100)
    args = parser.parse_args()
    torch.set_num_threads(1)
    recognizer = Recognizer.load(args.model)
    print("table                withdrawn per word   seconds to appear: median, 90 %   to be stable: median, 90 %")
    for table in args.data:
        utterances = read_manifest(table)
        utterances = utterances[:: max(1, len(utterances) // args.limit)][: args.limit]
        total = Count()
        for samples in load_utterances(utterances):
            follow(recognizer, samples, args.chunk_ms, total)
        print(f"{table.stem:<20} {total.withdrawn / max(1, total.words):>18.3f}   {spread(total.appear):>31}   "
              f"{spread(total.stable):>27}   ({total.words} words, compute of a chunk: median "
              f"{1000 * statistics.median(total.compute):.1f} ms)", flush=True)  # fmt: skip


class Count:
    """What is counted over a table."""

    def __init__(self) -> None:
        self.words = self.withdrawn = 0
        self.appear: list[float] = []
        self.stable: list[float] = []
        self.compute: list[float] = []


def follow(recognizer, samples, chunk_ms, total):
    """Feed one utterance and count."""
    stream, size = recognizer.stream(), recognizer.sample_rate * chunk_ms // 1000
    shown: list[tuple[float, list[str], int]] = []  # (audio fed, words, how many are stable) of the open segment
    for at in [*range(0, len(samples), size), None]:
        began = time.perf_counter()
        results = stream.finish() if at is None else stream.feed(samples[at : at + size])
        total.compute.append(time.perf_counter() - began)
        for result in results:
            if isinstance(result, Partial):
                shown.append((stream.duration, result.text.split(), len(result.stable.split())))
            elif isinstance(result, Segment):
                shown.append((stream.duration, result.text.split(), len(result.words)))
                close(shown, result, total)
                shown = []


def close(shown, segment, total):
    """Count what became of the words of a segment."""
    final = segment.text.split()
    for (_, before, stable), (_, after, _) in pairwise(shown):
        total.withdrawn += sum(a != b for a, b in zip(before, [*after, *[""] * len(before)], strict=False))
        assert after[:stable] == before[:stable], f"stable text was withdrawn: {before[:stable]} by {after}"
    total.words += len(final)
    for i, word in enumerate(segment.words):
        first = len(shown) - 1
        while first and len(shown[first - 1][1]) > i and shown[first - 1][1][: i + 1] == final[: i + 1]:
            first -= 1
        fixed = next(k for k, (_, _, stable) in enumerate(shown) if stable > i)
        total.appear.append(shown[first][0] - word.end)
        total.stable.append(shown[fixed][0] - word.end)


def spread(values):
    """Median and 90th percentile."""
    return f"{statistics.median(values):.2f}, {sorted(values)[int(0.9 * len(values))]:.2f}" if values else "-"


if __name__ == "__main__":
    main()
