"""Other recognisers on the same utterances as ours: word error rate, real-time factor, wait for the result.

    OMP_NUM_THREADS=1 python benchmarks/peers.py --tables dev-clean.tsv dev-commonvoice.tsv --limit 150 --seed 1 \\
        --systems pocketsphinx asr [--model en] [--out runs/peers]
    OMP_NUM_THREADS=1 python benchmarks/peers.py ... --systems asr --kept pocketsphinx --out runs/peers

A table is a manifest (`asr eval --help`). `--limit N` takes the first N utterances of each, with `--seed` a random N.
`--out` keeps what every system said, and with `--kept` a later run compares it without running that system again.

Every system gets the same 16-bit samples at 16 kHz, one utterance after another in pieces of 100 ms, and nothing else:
no list of words, no text of the domain, no partial results on the way. References and hypotheses go through the same
normalisation and the same scoring as in `asr eval` (bootstrap over speakers where they are known).

Times are processor time of all threads of this process, so that other load on the machine counts little; with one
thread the real-time factor is that of one core. The wait is the time from the last sample to the result if the pieces
came from a microphone: a system that is behind when the last one comes has to catch up first.

Another system is one more subclass of :class:`System` in :data:`SYSTEMS`.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import math
import random
import statistics
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from asr.errors import ERRORS, AsrError, UsageError
from asr.text import normalize
from asr.training import metrics
from asr.training.evaluate import load_utterances
from asr.training.manifest import Utterance, read_corpora, read_table

Pcm = NDArray[np.int16]
RATE = 16_000  # Hz
PIECE_MS = 100
PIECE = RATE * PIECE_MS // 1000
COLUMNS = ("id", "audio_s", "cpu_s", "wait_s", "text")  # of what --out keeps


class System(ABC):
    """A recogniser that has been loaded. It hears one utterance at a time; one that cannot stream keeps the pieces and
    does its work in :meth:`finish`. Making one raises UsageError, in one line, when its package is not installed."""

    @abstractmethod
    def begin(self) -> None:
        """A new utterance."""

    @abstractmethod
    def feed(self, piece: Pcm) -> None:
        """The next samples, (n,) int16 at 16 kHz."""

    @abstractmethod
    def finish(self) -> str:
        """The end of the utterance: its text, as the system writes it."""

    def transcribe(self, samples: Pcm) -> str:
        """The text of one utterance, (n,) int16 at 16 kHz."""
        return listen(self, samples).text


class Ours(System):
    """The recogniser of this repository."""

    def __init__(self, model: str) -> None:
        from asr.recognizer import Recognizer

        self.recognizer = Recognizer.load(model, threads=1)

    def begin(self) -> None:
        self.stream = self.recognizer.stream(RATE, partials=False)
        self.texts: list[str] = []

    def feed(self, piece: Pcm) -> None:
        self.texts.extend(result.text for result in self.stream.feed(piece))

    def finish(self) -> str:
        self.texts.extend(result.text for result in self.stream.finish())
        return " ".join(self.texts)


class PocketSphinx(System):
    """PocketSphinx 5 with the model, dictionary and language model of its package and all settings as they come.

    Its running cepstral mean goes on from one utterance to the next, as it does for its users.
    """

    def __init__(self, model: str) -> None:
        _need("pocketsphinx")
        from pocketsphinx import Decoder

        self.decoder = Decoder(loglevel="FATAL")

    def begin(self) -> None:
        self.decoder.start_utt()

    def feed(self, piece: Pcm) -> None:
        self.decoder.process_raw(piece.astype("<i2").tobytes())

    def finish(self) -> str:
        self.decoder.end_utt()
        hypothesis = self.decoder.hyp()
        return hypothesis.hypstr if hypothesis else ""


SYSTEMS: dict[str, Callable[[str], System]] = {"asr": Ours, "pocketsphinx": PocketSphinx}


def _need(package: str) -> None:
    try:
        __import__(package)
    except ImportError:
        raise UsageError(
            f"{package} is not installed: run pip install {package}, or pip install -e '.[bench]'"
        ) from None


@dataclass(frozen=True)
class Heard:
    """What a system made of one utterance of ``audio_s`` seconds: text, seconds of work, seconds of wait at the end."""

    id: str
    audio_s: float
    cpu_s: float
    wait_s: float
    text: str


def listen(system: System, samples: Pcm, id: str = "", clock: Callable[[], float] = time.process_time) -> Heard:
    """One utterance piece by piece. A piece is there when its last sample has been spoken, and is worked on as soon as
    those before it are done: that gives the wait without sleeping."""
    began = clock()
    system.begin()
    now = work = clock() - began
    for first in range(0, len(samples), PIECE):
        piece = samples[first : first + PIECE]
        began = clock()
        system.feed(piece)
        took = clock() - began
        work += took
        now = max(now, (first + len(piece)) / RATE) + took
    began = clock()
    text = system.finish()
    took = clock() - began
    audio_s = len(samples) / RATE
    return Heard(id, audio_s, work + took, now + took - audio_s, text)


def to_pcm(samples: NDArray[np.float32]) -> Pcm:
    """Float samples in [-1, 1] as int16; louder ones are clipped."""
    return np.clip(np.round(samples * np.float32(32768)), -32768, 32767).astype(np.int16)


def choose(utterances: Sequence[Utterance], limit: int | None, seed: int | None) -> list[Utterance]:
    """The first ``limit`` utterances, or with a ``seed`` that many random ones, in the order of the manifest. A larger
    limit with the same seed only adds utterances."""
    if limit is None or seed is None:
        return list(utterances[:limit])
    order = list(range(len(utterances)))
    random.Random(seed).shuffle(order)
    return [utterances[i] for i in sorted(order[:limit])]


@dataclass(frozen=True)
class Result:
    """One row of the table: a system on a table of utterances."""

    table: str
    system: str
    heard: tuple[Heard, ...]
    edits: tuple[metrics.Edits, ...]
    speakers: tuple[str, ...]

    @property
    def word(self) -> metrics.ErrorRate:
        """Word error rate with its interval."""
        return metrics.error_rate(self.edits, self.speakers)

    @property
    def real_time_factor(self) -> float:
        """Seconds of work per second of audio."""
        return sum(h.cpu_s for h in self.heard) / max(sum(h.audio_s for h in self.heard), 1e-9)

    def __str__(self) -> str:
        word, waits = self.word, sorted(1000 * h.wait_s for h in self.heard)
        return (
            f"| {self.table} | {self.system} | {word.utterances} | {100 * word.rate:.1f} | "
            f"{100 * word.low:.1f} to {100 * word.high:.1f} | {self.real_time_factor:.3f} | "
            f"{statistics.median(waits):.0f} | {waits[math.ceil(0.95 * len(waits)) - 1]:.0f} |"
        )


HEADER = (
    "| table | system | utterances | WER % | 95 % interval | real-time factor | "
    "median wait, ms | 95 % of waits within, ms |\n"
    "|---|---|---|---|---|---|---|---|"
)


def score(table: str, system: str, utterances: Sequence[Utterance], heard: Sequence[Heard]) -> Result:
    """The row of one system. Raises UsageError when ``heard`` is not of these utterances."""
    if [h.id for h in heard] != [u.id for u in utterances]:
        raise UsageError(f"what was kept of {system} is of other utterances of {table}: name it among --systems")
    edits = tuple(metrics.edits(u.text, normalize(h.text)) for u, h in zip(utterances, heard, strict=True))
    speakers = tuple("" if u.speaker == "unknown" else u.speaker for u in utterances)  # "": one of its own
    return Result(table, system, tuple(heard), edits, speakers)


def difference(first: Result, second: Result) -> str:
    """A line that compares two systems on the same utterances (paired bootstrap)."""
    c = metrics.compare(first.edits, second.edits, first.speakers)
    return (
        f"{first.table}: {second.system} minus {first.system} {100 * c.difference:+.1f} points of WER "
        f"({100 * c.low:+.1f} to {100 * c.high:+.1f})"
    )


def kept_path(out: Path, table: str, system: str) -> Path:
    """Where the results of a system on a table are kept."""
    return out / f"{table}-{system}.tsv"


def keep(path: Path, heard: Sequence[Heard]) -> None:
    """Write what a system said as a TSV file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = (f"{h.id}\t{h.audio_s:.4f}\t{h.cpu_s:.4f}\t{h.wait_s:.4f}\t{h.text}" for h in heard)
    path.write_text("\n".join(("\t".join(COLUMNS), *rows)) + "\n", encoding="utf-8")


def read_kept(path: Path) -> list[Heard]:
    """What :func:`keep` wrote. Raises UsageError when there is nothing."""
    if not path.is_file():
        raise UsageError(f"{path} does not exist: run that system once, with --systems and the same --out")
    rows = (row for _, row in read_table(path, COLUMNS))
    return [
        Heard(row["id"], float(row["audio_s"]), float(row["cpu_s"]), float(row["wait_s"]), row["text"]) for row in rows
    ]


def run(
    tables: dict[str, list[Utterance]],
    systems: dict[str, System],
    kept: Sequence[str] = (),
    out: Path | None = None,
    clock: Callable[[], float] = time.process_time,
) -> Iterator[Result]:
    """The rows, table by table: of the kept results first, then of the systems that are run."""
    for table, utterances in tables.items():
        for name in kept:
            yield score(table, name, utterances, read_kept(kept_path(out or Path(), table, name)))
        audio = [to_pcm(a) for a in load_utterances(utterances)] if systems else []
        for name, system in systems.items():
            heard = [listen(system, a, u.id, clock) for u, a in zip(utterances, audio, strict=True)]
            if out:
                keep(kept_path(out, table, name), heard)
            yield score(table, name, utterances, heard)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="+", required=True, metavar="MANIFEST")
    parser.add_argument("--systems", nargs="*", default=list(SYSTEMS), metavar="NAME", help=", ".join(SYSTEMS))
    parser.add_argument("--kept", nargs="*", default=[], metavar="NAME", help="systems whose results lie in --out")
    parser.add_argument("--model", default="en", help="of our recogniser")
    parser.add_argument("--limit", type=int, metavar="N", help="utterances per table")
    parser.add_argument("--seed", type=int, help="choose the N at random")
    parser.add_argument("--out", type=Path, help="folder for what the systems said")
    return parser


def check_choice(kind: str, names: Iterable[str], known: Iterable[str], limit: int | None) -> None:
    """Raise UsageError for a name of this kind that is not ``known``, or for a ``limit`` below 1."""
    known = tuple(known)
    for name in names:
        if name not in known:
            raise UsageError(f"there is no {kind} '{name}': choose among {', '.join(known)}")
    if limit is not None and limit < 1:
        raise UsageError(f"--limit must be at least 1, got {limit}")


def _check(args: argparse.Namespace) -> None:
    check_choice("system", args.systems, SYSTEMS, args.limit)
    if args.kept and args.out is None:
        raise UsageError("--kept needs --out, the folder that an earlier run wrote")
    both = set(args.kept) & set(args.systems)
    if both:
        raise UsageError(f"'{min(both)}' is named in --systems and in --kept: name it in one of them")


def _benchmark(args: argparse.Namespace) -> None:
    _check(args)
    tables = {t: choose(us, args.limit, args.seed) for t, us in read_corpora(args.tables).items()}
    systems: dict[str, System] = {name: SYSTEMS[name](args.model) for name in dict.fromkeys(args.systems)}
    print(HEADER)
    results: list[Result] = []
    for result in run(tables, systems, args.kept, args.out):
        results.append(result)
        print(result, flush=True)
    pairs = [(a, b) for a, b in combinations(results, 2) if a.table == b.table]
    if pairs:
        print("", *(difference(a, b) for a, b in pairs), sep="\n")
    print("", *(version(name, args.model) for name in systems), sep="\n")


def version(name: str, model: str) -> str:
    """A line that says what was run."""
    return f"asr: model {model}" if name == "asr" else f"{name} {importlib.metadata.version(name)}"


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit status is that of `asr` for the same error."""
    args = _parser().parse_args(argv)
    try:
        _benchmark(args)
    except AsrError as error:
        print(f"peers: {error}", file=sys.stderr)
        return ERRORS[error.code].exit_status
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
