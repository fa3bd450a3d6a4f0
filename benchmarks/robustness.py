"""What a model does badly, in numbers: word error rates by noise, room, line, tempo, speaker, length, place in stream.

    OMP_NUM_THREADS=1 python benchmarks/robustness.py --data dev.tsv... --noise noise.tsv --out runs/robustness \\
        [--model en] [--greedy] [--limit 60] [--seed 1] [--conditions clean noise-10 ...] [--minutes 70] [--bin 10]

docs/robustness.md says how everything is made and counted. Every utterance is a stream of its own in chunks of 100 ms
with the endpointing, lexicon and language model of the model folder, as in `asr eval`; --greedy takes the best letters
instead. `--limit N` draws N utterances of each table by --seed (a larger N only adds some). The parts:

conditions  the utterances changed: --conditions, all by default; the random part of a change depends on --seed and the
            utterance alone
groups      the clean ones by speaking rate, speaker and length
stream      the same utterances (one bin of minutes) again and again in one stream of --minutes (0: none)

Markdown tables go to standard output, progress to standard error. --out keeps results.json and, of each table and
condition, what was heard: the same command goes on where it was stopped. One process, one thread.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import long_stream
import numpy as np
from conditions import CLEAN, CONDITIONS, Condition, Surroundings, changed, speaker_of
from peers import check_choice, choose
from robustness_tables import by_length, by_speaker, phones_per_second, rate, report, thirds, units

from asr.errors import ERRORS, AsrError, UsageError
from asr.recognizer import Recognizer
from asr.training import metrics
from asr.training.evaluate import CHUNK_MS, decode
from asr.training.manifest import Utterance, read_corpora
from asr.training.metrics import Edits
from asr.training.perturb import Samples

# --- hearing, and going on where it stopped -------------------------------------------------------------------------


class Kept:
    """What was heard, by name, in files of a folder; None keeps nothing. A file that was made otherwise than ``made``
    says is not used, but replaced."""

    def __init__(self, folder: Path | None, made: dict[str, Any]) -> None:
        self.folder, self.made = folder, made

    def get(self, name: str, how: dict[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What ``make`` gives, or gave when it was kept."""
        made = json.loads(json.dumps({**self.made, **how}))
        path = self.folder / f"{name}.json" if self.folder else None
        if path and path.is_file():
            try:
                there = json.loads(path.read_text(encoding="utf-8"))
            except ValueError:
                there = {}
            if there.get("made") == made:
                return dict(there["heard"])
        heard = make()
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".part")
            part.write_text(json.dumps({"made": made, "heard": heard}, indent=1) + "\n", encoding="utf-8")
            part.replace(path)
        return heard


def made_with(recognizer: Recognizer, greedy: bool, seed: int) -> dict[str, Any]:
    """What all that is heard depends on."""
    config = recognizer.folder.config
    return {
        "model": recognizer.folder.fingerprint,
        "settings": digest([repr(config.search), repr(config.endpoint)]),
        "greedy": greedy,
        "seed": seed,
    }


def digest(names: Iterable[str]) -> str:
    """Of a list of names."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Table:
    """The chosen utterances of one manifest."""

    name: str
    utterances: tuple[Utterance, ...]

    @property
    def speakers(self) -> list[str]:
        """As :func:`asr.training.metrics.error_rate` wants them: "" is one of its own."""
        return units([speaker_of(u) for u in self.utterances])

    def edits(self, texts: Sequence[str]) -> list[Edits]:
        """Of every utterance."""
        return [metrics.edits(u.text, t) for u, t in zip(self.utterances, texts, strict=True)]


# --- the parts ------------------------------------------------------------------------------------------------------


class Bench:
    """One model on some tables."""

    def __init__(self, recognizer: Recognizer, tables: Sequence[Table], around: Surroundings, kept: Kept, seed: int):
        self.recognizer, self.tables, self.around, self.kept, self.seed = recognizer, tables, around, kept, seed

    def audio(self, table: Table) -> list[Samples]:
        """The samples of a table."""
        return self.around.audio(table.utterances)

    def hear(self, table: Table, condition: Condition) -> list[str]:
        """The text of every utterance under a condition."""

        def make() -> dict[str, Any]:
            began = time.perf_counter()
            audio = changed(condition, table.utterances, self.audio(table), self.around, self.seed)
            texts = decode(self.recognizer, audio, CHUNK_MS)
            log(f"{table.name} {condition.name}: {time.perf_counter() - began:.0f} s")
            return {"ids": [u.id for u in table.utterances], "texts": texts}

        how: dict[str, Any] = {"what": condition.what, "ids": digest(u.id for u in table.utterances)}
        if condition.draw == "babble":
            how["voices"] = digest(u.id for utterances in self.around.tables.values() for u in utterances)
        if condition.draw == "noise" and self.around.noise:
            how["noise"] = digest([self.around.noise.read_text(encoding="utf-8")])
        return list(self.kept.get(f"{table.name}-{condition.name}", how, make)["texts"])

    def conditions(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """A row for every table and condition: its error rate, and what it adds to the clean one (paired)."""
        rows = []
        for table in self.tables:
            clean = table.edits(self.hear(table, CLEAN))
            for name in names:
                edits = table.edits(self.hear(table, CONDITIONS[name]))
                row = {"table": table.name, "condition": name, "what": CONDITIONS[name].what}
                row |= rate(edits, table.speakers)
                rows.append(row | {"minus_clean": asdict(metrics.compare(clean, edits, table.speakers))})
        return rows

    def groups(self) -> dict[str, list[dict[str, Any]]]:
        """The clean utterances by speaking rate, speaker and length."""
        lexicon = self.recognizer.folder.load_lexicon()
        found: dict[str, list[dict[str, Any]]] = {"rate": [], "speaker": [], "length": []}
        for table in self.tables:
            edits, audio = table.edits(self.hear(table, CLEAN)), self.audio(table)
            rates = [phones_per_second(u.text, x, lexicon) for u, x in zip(table.utterances, audio, strict=True)]
            parts = {
                "rate": thirds(rates),
                "speaker": by_speaker(table.speakers, edits),
                "length": by_length([len(x) / self.recognizer.sample_rate for x in audio]),
            }
            for kind, groups in parts.items():
                for name, members in groups:
                    some = [table.speakers[i] for i in members]
                    row = {"table": table.name, "group": name, **rate([edits[i] for i in members], some)}
                    found[kind].append(row)
        return found

    def stream(self, minutes: float, bin_minutes: float, pause_s: float) -> list[dict[str, Any]]:
        """A row for every bin of one long stream; the last one is of the same utterances in streams of their own."""
        rate_hz = self.recognizer.sample_rate
        durations = [[len(x) / rate_hz + pause_s for x in self.audio(table)] for table in self.tables]
        chosen = long_stream.fill(durations, 60 * bin_minutes, self.seed)
        utterances = tuple(self.tables[t].utterances[i] for t, i in chosen)
        table = Table("stream", utterances)
        count = max(2, math.ceil(60 * minutes / sum(durations[t][i] for t, i in chosen)))
        heard = self._stream_texts(table, chosen, count, pause_s)
        alone = table.edits(heard["alone"])
        first = table.edits(heard["rounds"][0]["texts"])
        rows = []
        for found in heard["rounds"]:
            edits = table.edits(found["texts"])
            row = {"minute": found["start_s"] / 60, "cpu_per_audio": found["cpu_s"] / found["audio_s"]}
            row |= rate(edits, table.speakers)
            row["minus_alone"] = asdict(metrics.compare(alone, edits, table.speakers))
            row["minus_first"] = asdict(metrics.compare(first, edits, table.speakers))
            rows.append(row | {"same": sum(a == b for a, b in zip(found["texts"], heard["alone"], strict=True))})
        return [*rows, {"minute": None, **rate(alone, table.speakers)}]

    def _stream_texts(self, table: Table, chosen: Sequence[tuple[int, int]], count: int, pause_s: float) -> Any:
        """The texts of ``count`` rounds in one stream, and of each utterance alone."""

        def make() -> dict[str, Any]:
            by_table = [self.audio(t) for t in self.tables]
            audio = [by_table[t][i] for t, i in chosen]
            orders = long_stream.orders(len(audio), count, self.seed)
            began = time.perf_counter()
            rounds = long_stream.play(
                self.recognizer, audio, orders, pause_s, CHUNK_MS,
                lambda n: log(f"stream, round {n + 1} of {count}: {time.perf_counter() - began:.0f} s"),
            )  # fmt: skip
            silence = np.zeros(round(pause_s * self.recognizer.sample_rate), np.float32)
            alone = decode(self.recognizer, [np.concatenate([x, silence]) for x in audio], CHUNK_MS)
            return {"rounds": [asdict(r) for r in rounds], "alone": alone}

        how = {"ids": digest(u.id for u in table.utterances), "rounds": count, "pause_s": pause_s}
        return self.kept.get("stream", how, make)


# --- the command ----------------------------------------------------------------------------------------------------


def log(line: str) -> None:
    """Progress."""
    print(line, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="en")
    parser.add_argument("--data", nargs="+", required=True, metavar="MANIFEST")
    parser.add_argument("--noise", type=Path, help="table of sounds; every tenth, which training leaves out, is used")
    parser.add_argument("--out", type=Path, help="folder for results.json and what was heard")
    parser.add_argument("--greedy", action="store_true", help="the best letter of every step, no search")
    parser.add_argument("--limit", type=int, metavar="N", help="utterances of each table")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--conditions", nargs="+", default=list(CONDITIONS), metavar="NAME", help=", ".join(CONDITIONS))
    parser.add_argument("--minutes", type=float, default=70, help="of the long stream; 0: none")
    parser.add_argument("--bin", type=float, default=10, help="minutes of a bin of it")
    parser.add_argument("--pause-s", type=float, default=1.5, help="between the utterances of the long stream")
    return parser


def _check(args: argparse.Namespace) -> None:
    check_choice("condition", args.conditions, CONDITIONS, args.limit)
    if args.seed < 0:
        raise UsageError(f"--seed must not be negative, got {args.seed}")
    if not (args.minutes >= 0 and args.bin > 0 and 0 <= args.pause_s <= 60):
        raise UsageError("--minutes must not be negative, --bin must be positive, --pause-s 0 to 60")
    if args.noise is None and any(CONDITIONS[name].draw == "noise" for name in args.conditions):
        raise UsageError("conditions with noise need --noise, a table of sounds: give it, or name --conditions")


def _benchmark(args: argparse.Namespace) -> dict[str, Any]:
    _check(args)
    everything = read_corpora(args.data)
    tables = [Table(t, tuple(choose(us, args.limit, args.seed))) for t, us in everything.items()]
    recognizer = Recognizer.load(args.model, threads=1, greedy=args.greedy)
    made = made_with(recognizer, args.greedy, args.seed)
    kept = Kept(args.out / "heard" if args.out else None, made)
    bench = Bench(recognizer, tables, Surroundings(everything, args.noise), kept, args.seed)
    results = {
        "made": {**made, "name": str(args.model), "limit": args.limit, "pause_s": args.pause_s},
        "conditions": bench.conditions(list(dict.fromkeys(args.conditions))),
        "groups": bench.groups(),
        "stream": bench.stream(args.minutes, args.bin, args.pause_s) if args.minutes else [],
    }
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return results


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit status is that of `asr` for the same error."""
    args = _parser().parse_args(argv)
    try:
        print(report(_benchmark(args)))
    except AsrError as error:
        print(f"robustness: {error}", file=sys.stderr)
        return ERRORS[error.code].exit_status
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
