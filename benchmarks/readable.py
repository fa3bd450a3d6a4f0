"""What readable text costs: microseconds a word, and the time to load.

    OMP_NUM_THREADS=1 python benchmarks/readable.py [--model en | --tagger FILE] [--rounds 20]

Parts are timed in turn, in one process: the tagger alone, numbers alone, and whole segments of 25 words. Medians, and
the best in brackets. How good the text is: `asr readable eval`.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from asr.checkpoint import find_model
from asr.readable import Formatter
from asr.readable.numbers import digits
from asr.readable.tagger import Tagger
from asr.results import Segment, Word

TEXT = (
    "so the president of the united states came to london in nineteen eighty four and he said that it was one of the"
    " best places he had ever been to what do you think about that i asked him"
)
WORDS = 25


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="en")
    parser.add_argument("--tagger", type=Path)
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    began = time.perf_counter()
    formatter = Formatter(Tagger.load(args.tagger)) if args.tagger else Formatter.load(find_model(args.model))
    print(f"load: {1000 * (time.perf_counter() - began):.0f} ms (with the check of the model folder's files)")
    words = TEXT.split()[:WORDS]
    spoken = tuple(Word(word, 0.4 * i, 0.4 * i + 0.3) for i, word in enumerate(words))
    segment = Segment(" ".join(words), 0.0, spoken[-1].end, spoken)
    parts = {
        "tagger": lambda: formatter.tagger.tag(words),
        "numbers": lambda: digits(words),
        "segment": lambda: formatter.step(segment, formatter.begin()),
    }
    took: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(args.rounds):
        for name, part in parts.items():
            began = time.perf_counter()
            part()
            took[name].append((time.perf_counter() - began) / WORDS * 1e6)
    for name, times in took.items():
        print(f"{name:<8} {np.median(times):7.1f} us a word ({min(times):.1f})")
    print(formatter.text(TEXT))


if __name__ == "__main__":
    main()
