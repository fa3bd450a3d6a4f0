"""How partial results behave: how often words are withdrawn, and how soon they appear and become stable.

    OMP_NUM_THREADS=1 python benchmarks/partials.py [--model en] --data dev.tsv... [--limit 60] [--chunk-ms 100] \\
        [--silence-s 1.5] [--ends-model en]

Utterances are fed in chunks as from a microphone, each in a stream of its own with silence behind it, so that its last
words wait as in a live stream for what comes. Counted over all words of the final results: words that a partial result
showed at some place and a later result did not (withdrawn). Counted over those words that are right (aligned with the
reference): the time from the word's end in the audio

- to the first result from which on all text up to the word is as in the end (it appears), and
- to the first one in which the word is stable,

by two clocks. The *audio* clock is of what was fed: waiting for the chunk and the network's look-ahead are in it, work
is not; it is the same on every machine. The *wall* clock adds the work of this machine: a chunk is worked on when its
last sample has been spoken and those before it are done.

A word ends where the final result says, which is made from the model's own spikes by the shifts of its folder
(docs/times-and-confidences.md says how exact that is). --ends-model takes the ends from another model's final results,
so that two models, or one whose shifts are not fitted yet, are measured by the same ends; words that the other one does
not get right do not count then. Every stable text is checked: it must never be withdrawn.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from asr.recognizer import Recognizer
from asr.results import Partial, Segment, Word
from asr.training.evaluate import load_utterances
from asr.training.manifest import read_manifest
from asr.training.metrics import align
from asr.training.perturb import Samples

HEADER = (
    "| table | words right | withdrawn per word | appears, audio clock | stable, audio clock | appears, wall clock | "
    "stable, wall clock | work of a chunk |\n|---|---|---|---|---|---|---|---|"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="en")
    parser.add_argument("--data", nargs="+", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=60, help="utterances of each table")
    parser.add_argument("--chunk-ms", type=int, default=100)
    parser.add_argument("--silence-s", type=float, default=1.5, help="behind each utterance")
    parser.add_argument("--ends-model", help="whose word ends are taken; by default the model's own")
    args = parser.parse_args()
    torch.set_num_threads(1)
    recognizer = Recognizer.load(args.model)
    other = Recognizer.load(args.ends_model) if args.ends_model else None
    print(f"ms from the end of a word, median and 90 %; chunks of {args.chunk_ms} ms, algorithmic latency of the "
          f"network {recognizer.algorithmic_latency_ms} ms\n\n{HEADER}")  # fmt: skip
    everything = Count()
    for table in args.data:
        utterances = read_manifest(table)
        utterances = utterances[:: max(1, len(utterances) // args.limit)][: args.limit]
        total = Count()
        for utterance, samples in zip(utterances, load_utterances(utterances), strict=True):
            padded = np.concatenate([samples, np.zeros(round(args.silence_s * recognizer.sample_rate), np.float32)])
            said = utterance.text.split()
            ends = None if other is None else right(said, other.transcribe(padded, other.sample_rate).words)
            total.add(said, follow(recognizer, padded, args.chunk_ms), ends)
        everything.join(total)
        print(total.row(table.stem), flush=True)
    print(everything.row("all"))


@dataclass(frozen=True)
class Shown:
    """One result of the open segment: seconds of audio fed, seconds on the wall clock, words, how many are stable."""

    audio_s: float
    wall_s: float
    words: list[str]
    stable: int


@dataclass(frozen=True)
class Followed:
    """One segment: its results in order, the final one last, with its words."""

    shown: list[Shown]
    words: tuple[Word, ...]


@dataclass
class Count:
    """What is counted. Lags are seconds: (to appear, to be stable) by the clock of the audio and by that of the wall.
    ``work``: seconds per chunk."""

    words: int = 0
    reference: int = 0
    withdrawn: int = 0
    audio: list[tuple[float, float]] = field(default_factory=list)
    wall: list[tuple[float, float]] = field(default_factory=list)
    work: list[float] = field(default_factory=list)

    def add(
        self, said: Sequence[str], heard: tuple[list[Followed], list[float]], ends: dict[int, Word] | None = None
    ) -> None:
        """One utterance: its reference, what was followed and the work of every chunk. ``ends``: by number in the
        reference the words whose ends count, in place of those of the final result."""
        segments, work = heard
        self.work += work
        self.reference += len(said)
        self.withdrawn += sum(withdrawn(s.shown) for s in segments)
        self.words += sum(len(s.words) for s in segments)
        places = [(s, n) for s in segments for n in range(len(s.words))]
        for number, at in matches(said, [s.words[n].text for s, n in places]):
            segment, n = places[at]
            word = segment.words[n] if ends is None else ends.get(number)
            if word is not None:
                first, fixed = appears(segment, n), stable(segment, n)
                self.audio.append((first.audio_s - word.end, fixed.audio_s - word.end))
                self.wall.append((first.wall_s - word.end, fixed.wall_s - word.end))

    def join(self, other: Count) -> None:
        """Add another one."""
        self.words += other.words
        self.reference += other.reference
        self.withdrawn += other.withdrawn
        self.audio += other.audio
        self.wall += other.wall
        self.work += other.work

    def row(self, name: str) -> str:
        """One line of the table."""
        lags = [spread([pair[i] for pair in pairs]) for pairs in (self.audio, self.wall) for i in (0, 1)]
        cells = [f"{len(self.audio)} of {self.reference}", f"{self.withdrawn / max(1, self.words):.3f}", *lags]
        return f"| {name} | {' | '.join(cells)} | {spread(self.work)} |"


def follow(
    recognizer: Recognizer, samples: Samples, chunk_ms: int, clock: Callable[[], float] = time.perf_counter
) -> tuple[list[Followed], list[float]]:
    """Feed one utterance; its segments, and the seconds of work of every chunk."""
    stream, size = recognizer.stream(), recognizer.sample_rate * chunk_ms // 1000
    segments: list[Followed] = []
    shown: list[Shown] = []
    work, done = [], 0.0
    for at in [*range(0, len(samples), size), None]:
        began = clock()
        results = stream.finish() if at is None else stream.feed(samples[at : at + size])
        work.append(clock() - began)
        done = max(done, stream.duration) + work[-1]
        for result in results:
            if isinstance(result, Partial):
                shown.append(Shown(stream.duration, done, result.text.split(), len(result.stable.split())))
            elif isinstance(result, Segment):
                shown.append(Shown(stream.duration, done, result.text.split(), len(result.words)))
                segments.append(Followed(shown, result.words))
                shown = []
    return segments, work


def withdrawn(shown: Sequence[Shown]) -> int:
    """Words that a result showed at some place and the following one did not. Stable ones must not be among them."""
    count = 0
    for before, after in pairwise(shown):
        rest = [*after.words, *[""] * len(before.words)]
        count += sum(a != b for a, b in zip(before.words, rest, strict=False))
        kept = before.words[: before.stable]
        assert after.words[: before.stable] == kept, f"stable text was withdrawn: {kept} by {after.words}"
    return count


def appears(segment: Followed, n: int) -> Shown:
    """The first result from which on all text up to word ``n`` is as in the end."""
    final = [w.text for w in segment.words[: n + 1]]
    first = len(segment.shown) - 1
    while first and segment.shown[first - 1].words[: n + 1] == final:
        first -= 1
    return segment.shown[first]


def stable(segment: Followed, n: int) -> Shown:
    """The first result in which word ``n`` is stable."""
    return next(s for s in segment.shown if s.stable > n)


def matches(said: Sequence[str], heard: Sequence[str]) -> list[tuple[int, int]]:
    """(number in the reference, number among the words heard) of the words that are right."""
    found, i, j = [], 0, 0
    for a, b in align(said, heard):
        if a is not None and a == b:
            found.append((i, j))
        i, j = i + (a is not None), j + (b is not None)
    return found


def right(said: Sequence[str], words: Sequence[Word]) -> dict[int, Word]:
    """The words that are right, by their number in the reference."""
    return {i: words[j] for i, j in matches(said, [w.text for w in words])}


def spread(seconds: Sequence[float]) -> str:
    """Median and 90th percentile in ms."""
    if not seconds:
        return "-"
    return f"{1000 * statistics.median(seconds):.0f}, {1000 * sorted(seconds)[int(0.9 * len(seconds))]:.0f}"


if __name__ == "__main__":
    main()
