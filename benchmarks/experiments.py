"""Short training runs of equal budget: what units, objective, body and augmentation are worth.

    OMP_NUM_THREADS=1 python benchmarks/experiments.py --out runs/experiments --seconds 1200 --words en --limit 100 \\
        --data train.tsv --dev dev-*.tsv --set noise=noise.tsv rooms=rir.tsv [--cells units "no warp"] [--device cuda]
    python benchmarks/experiments.py --out runs/experiments --table

A cell is a set of changes to a base configuration; `benchmarks/experiments.toml` has them, `--file` names another. Each
is trained for `--seconds` of training time (or for `--steps`), with the same schedule in parts of the budget: warm-up
over a twentieth, peak until 40 %, cosine decay to the end. On a CPU one process with one thread trains, so that cells
may run side by side on a machine of several cores.

Then it is measured on the first `--limit` utterances of each dev table: greedy unit errors of every head (these on
whole tables); the words of the best path of the head that spells (where there is one); and the words of the lexicon
search with the language model of `--words`. A young model's search wants other weights than a trained one's, and each
cell's wants its own: `--prior-weights` and `--lm-weights` are tried on the first `--tune` utterances of each table, and
the best pair counts.

One JSON line per cell goes to `results.jsonl` in `--out`. A cell that is there, with the same settings, budget and
data, is not run again, so an interrupted series goes on by the same command; other runs may write to the same file.
`--table` prints the tables for docs/experiments.md from it.
"""

from __future__ import annotations

import argparse
import bisect
import dataclasses
import datetime
import hashlib
import itertools
import json
import math
import shlex
import sys
import time
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from asr.checkpoint import find_model
from asr.config import from_dict, to_dict
from asr.decoding.endpoint import Endpointer
from asr.decoding.greedy import best_path
from asr.decoding.hypothesis import Emissions
from asr.errors import AsrError, ConfigError, UsageError
from asr.inference import PRECISION
from asr.model import AcousticModel
from asr.recognizer import Recognizer
from asr.training import metrics
from asr.training.evaluate import emissions_of, load_utterances
from asr.training.export import export
from asr.training.manifest import read_corpora
from asr.training.recipe import absolute, config_of, merged, read_change
from asr.training.run import evaluate, model_from, prepare
from asr.training.train import Trainer, model_config, own_device
from asr.training.train_config import TrainConfig
from asr.training.tune import SearchFactory, Table, cut_segments, measure
from asr.vocabulary import PhoneVocabulary

sys.path.insert(0, str(Path(__file__).parent))
from variants import applied

CELLS = Path(__file__).with_suffix(".toml")
RESULTS = "results.jsonl"
WARMUP, DECAY = 0.05, 0.4  # parts of the budget: end of the warm-up, beginning of the decay
WIDTHS = 16  # widths are multiples of it: the inference form wants that; it does not read variants
SAY_EVERY_S = 60.0
PRIOR_BATCHES = 5


@dataclass(frozen=True)
class Cell:
    """A run. ``values``: changes to the base; ``crf_from``: part of the budget from which on the share ``crf`` holds;
    ``equal_size``: the width is chosen so that the network has the parameters of the base; ``tables``: names of further
    training tables, as ``--tables`` gives them; ``variant``: another body (benchmarks/variants.py)."""

    name: str
    group: str = ""
    note: str = ""
    crf_from: float = 0.0
    equal_size: bool = False
    tables: tuple[str, ...] = ()
    variant: str = ""
    values: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class Budget:
    """What every cell may use: seconds of training, or steps."""

    seconds: float = 0.0
    steps: int = 0

    def __str__(self) -> str:
        return f"{self.steps} steps" if self.steps else f"{self.seconds:g} s"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the cells that are not there yet and print the tables."""
    args = _arguments(argv)
    torch.set_num_threads(args.threads)
    results = args.out / RESULTS
    if not args.table:
        args.out.mkdir(parents=True, exist_ok=True)
        base, cells = read_cells(args.file, args.set)
        for cell in chosen(cells, args.cells):
            unknown = sorted(set(cell.values) - {f.name for f in dataclasses.fields(TrainConfig)})
            if unknown:
                print(f"{cell.name}: left out, the trainer knows no '{unknown[0]}'", flush=True)
                continue
            missing = [name for name in cell.tables if name not in args.tables]
            if missing:
                print(f"{cell.name}: left out, it needs --tables {missing[0]}=TABLE", flush=True)
                continue
            settings = settings_of(base, cell)
            key = digest(settings, cell, args)
            if any(r["key"] == key for r in read_results(results)):
                print(f"{cell.name}: is there already", flush=True)
                continue
            with applied(cell.variant):
                result = {"key": key, **run_cell(cell, settings, args)}
            append(results, result)
    print(tables(read_results(results)))
    return 0


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--table", action="store_true", help="only print the tables of what is there")
    parser.add_argument("--file", type=Path, default=CELLS, help="base and cells (TOML)")
    parser.add_argument("--cells", nargs="+", default=[], metavar="NAME", help="cells or groups (default: all)")
    parser.add_argument("--data", nargs="+", default=[])
    parser.add_argument("--dev", nargs="+", default=[])
    parser.add_argument("--tables", nargs="+", default=[], metavar="NAME=TABLE", help="training tables of some cells")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--seconds", type=float, default=1200.0, help="training time of each cell (1200)")
    budget.add_argument("--steps", type=int, default=0, help="training steps of each cell instead")
    parser.add_argument("--words", default="en", help="model whose lexicon and language model make words (en)")
    parser.add_argument("--limit", type=int, default=100, help="utterances of each dev table for words (100)")
    parser.add_argument("--tune", type=int, default=40, help="of these, for the weights of the search (40)")
    parser.add_argument("--prior-weights", nargs="+", type=float, default=[0.3, 0.6])
    parser.add_argument("--lm-weights", nargs="+", type=float, default=[1.0, 1.5])
    parser.add_argument("--beam", type=int, default=100, help="hypotheses of the search (100)")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="changes to the base, before the cells'"
    )
    parser.add_argument("--init", default="", metavar="MODEL", help="model whose weights every cell begins with")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    args.command = shlex.join(["python", "benchmarks/experiments.py", *(sys.argv[1:] if argv is None else argv)])
    if not all("=" in table for table in args.tables):
        parser.error("--tables: give NAME=TABLE")
    args.tables = dict(table.split("=", 1) for table in args.tables)
    args.budget = Budget(steps=args.steps) if args.steps else Budget(seconds=args.seconds)
    if not args.table and not (args.data and args.dev):
        parser.error("--data and --dev are needed unless --table is given")
    if args.steps < 0 or args.seconds <= 0 or min(args.limit, args.tune, args.beam, args.threads) < 1:
        parser.error("budget, --limit, --tune, --beam and --threads must be positive")
    return args


# -- cells -------------------------------------------------------------------------------------------------------------


def read_cells(path: Path, changes: Sequence[str] = ()) -> tuple[dict[str, Any], list[Cell]]:
    """The base configuration, with ``changes`` (KEY=VALUE), and the cells of a file. Raises ConfigError."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
        base = values["base"]
        own = {f.name for f in dataclasses.fields(Cell)} - {"values"}
        cells = [
            from_dict(
                Cell,
                {k: v for k, v in c.items() if k in own} | {"values": {k: v for k, v in c.items() if k not in own}},
            )
            for c in values["cells"]
        ]
    except (OSError, tomllib.TOMLDecodeError, KeyError, AttributeError, TypeError) as error:
        raise ConfigError(f"{path}: not a file of cells ({error}): it needs [base] and [[cells]] with names") from None
    names = [cell.name for cell in cells]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise ConfigError(f"{path}: two cells are named '{twice}'")
    absolute(base, path.parent)
    for change in changes:
        base = merged(base, read_change(change, [])[1])
    return base, cells


def chosen(cells: Sequence[Cell], names: Sequence[str]) -> list[Cell]:
    """The cells of these names and groups, all if none is named. Raises UsageError for a name that is neither."""
    known = {c.name for c in cells} | {c.group for c in cells}
    wrong = next((name for name in names if name not in known), None)
    if wrong is not None:
        raise UsageError(f"there is no cell or group '{wrong}': choose from {', '.join(sorted(known))}")
    return [c for c in cells if not names or c.name in names or c.group in names]


def settings_of(base: dict[str, Any], cell: Cell) -> TrainConfig:
    """The configuration of a cell."""
    config = config_of(merged(base, cell.values))
    if not cell.equal_size:
        return config
    wanted = size(config_of(base), 0)
    between = WIDTHS // 2 if cell.variant else WIDTHS
    widths = range(between, 4096, between)
    with applied(cell.variant):
        above = min(len(widths) - 1, bisect.bisect_left(widths, wanted, key=lambda width: size(config, width)))
        hidden = min(widths[max(0, above - 1) : above + 1], key=lambda width: abs(size(config, width) - wanted))
    return dataclasses.replace(config, model={**config.model, "hidden": hidden})


def size(config: TrainConfig, hidden: int) -> int:
    """Parameters of the network without heads' differences: each head counts forty units; ``hidden``: 0: its own."""
    shape = model_config(config, {name: 40 for name in config.heads})
    shape = dataclasses.replace(shape, hidden=hidden or shape.hidden, intermediate=0)
    with torch.device("meta"):
        return AcousticModel(shape, initial=False).parameter_count


def tables_of(cell: Cell, args: argparse.Namespace) -> list[str]:
    """What a cell is trained on."""
    return [*args.data, *(args.tables[name] for name in cell.tables)]


def digest(config: TrainConfig, cell: Cell, args: argparse.Namespace) -> str:
    """What makes a run another run."""
    given = {**to_dict(config), "cache": "", "crf_from": cell.crf_from, "variant": cell.variant}
    measured = [args.words, args.limit, args.tune, args.beam]
    data = tables_of(cell, args)
    rest = [str(args.budget), data, args.dev, *measured, args.device, args.prior_weights, args.lm_weights]
    text = json.dumps([given, *rest, *([args.init] if args.init else [])], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# -- one run -----------------------------------------------------------------------------------------------------------


class BudgetTrainer(Trainer):
    """A trainer whose schedule is a function of the part of the budget that is used."""

    budget: Budget
    crf_from: float = 0.0
    began: float = 0.0

    @property
    def used(self) -> float:
        """Part of the budget that is used, 0 to 1."""
        return self.step / self.budget.steps if self.budget.steps else self.spent / self.budget.seconds

    @property
    def spent(self) -> float:
        """Seconds of training, on a CPU of its own work: another process beside it costs nothing."""
        return time.process_time() - self.began if self.device.type == "cpu" else self.seconds

    def learning_rate(self) -> float:
        """Warm-up, peak, cosine decay as the module says."""
        c = self.config.optimizer
        if self.used < WARMUP:
            return c.peak_rate * max(self.used / WARMUP, 0.01)
        decayed = min(1.0, max(0.0, (self.used - DECAY) / (1 - DECAY)))
        return c.final_rate + (c.peak_rate - c.final_rate) * 0.5 * (1 + math.cos(math.pi * decayed))

    def train(self) -> None:
        """Steps until the budget is used."""
        config, denominator = self.config, self.denominator
        said = time.monotonic()
        self.began = time.process_time()
        try:
            while self.used < 1:
                late = self.used >= self.crf_from
                self.config = config if late else dataclasses.replace(config, crf=0.0)
                self.denominator = denominator if late else None
                scalars = self.train_step()
                if time.monotonic() - said > SAY_EVERY_S:
                    said = time.monotonic()
                    print(f"  {self.used:4.0%}, step {self.step}, loss {scalars['loss']:.3f}", flush=True)
        finally:
            self.config, self.denominator = config, denominator
            self.batches.close()


def run_cell(cell: Cell, settings: TrainConfig, args: argparse.Namespace) -> dict[str, Any]:
    """Train a cell and measure it; its folder keeps the model."""
    folder = args.out / cell.name.replace(" ", "-").replace(",", "")
    folder.mkdir(parents=True, exist_ok=True)
    if not settings.cache:
        settings = dataclasses.replace(settings, cache=str((args.out / "cache").resolve()))
    device = own_device(args.device)
    prepared = prepare(settings, tables_of(cell, args), args.dev, folder)
    model = model_from(settings, prepared.data, find_model(args.init) if args.init else None)
    print(f"{cell.name}: {model.parameter_count / 1e6:.2f} million parameters, {args.budget}", flush=True)
    trainer = BudgetTrainer(settings, model, prepared.data, prepared.maker, folder, device)
    trainer.budget, trainer.crf_from = args.budget, cell.crf_from
    trainer.train()
    spent = trainer.spent
    began = time.monotonic()
    export(trainer, prepared.lexicon, folder / "model", find_model(args.words), PRIOR_BATCHES)
    shape = trainer.model.config
    result = {
        "name": cell.name,
        "group": cell.group,
        "note": cell.note,
        "changes": cell.values,
        "budget": str(args.budget),
        "init": args.init,
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else f"cpu, {args.threads} thread(s)",
        "parameters": model.parameter_count,
        "latency_ms": None if shape.bidirectional else shape.algorithmic_latency_ms,
        "steps": trainer.step,
        "skipped": trainer.skipped,
        "audio_h": round(trainer.audio_s / 3600, 2),
        "train_s": round(spent, 1),
        "units": evaluate(trainer, prepared.dev),
        **words(folder / "model", args, device, "fp32" if cell.variant else PRECISION),
        "command": args.command,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M"),
    }
    result["measure_s"] = round(time.monotonic() - began, 1)
    print(f"  {json.dumps({k: result[k] for k in ('steps', 'audio_h', 'units', 'greedy', 'words')})}", flush=True)
    return result


def words(model: Path, args: argparse.Namespace, device: str, precision: str) -> dict[str, Any]:
    """Word error rates by table: of the best path of the head that spells, and of the tuned search."""
    recognizer = Recognizer.load(model, device=device, precision=precision)
    heard = [hear(recognizer, name, us[: args.limit]) for name, us in read_corpora(args.dev).items()]
    searches = SearchFactory(recognizer)
    held_out = [first(table, args.tune) for table, _ in heard]
    grid = [
        dataclasses.replace(recognizer.folder.config.search, prior_weight=prior, lm_weight=weight, beam=args.beam)
        for prior, weight in itertools.product(args.prior_weights, args.lm_weights)
    ]
    best = grid[0]
    if len(grid) > 1:
        best = min((measure(searches(config), held_out) for config in grid), key=lambda trial: trial.mean).config
    trial = measure(searches(best), [table for table, _ in heard])
    return {
        "greedy": {t.name: rate(t.references, texts) for t, texts in heard if texts is not None},
        "words": dict(zip((t.name for t, _ in heard), trial.rates, strict=True)),
        "search": {name: getattr(best, name) for name in ("prior_weight", "lm_weight", "word_score", "beam")},
    }


def hear(recognizer: Recognizer, name: str, utterances: Sequence[Any]) -> tuple[Table, list[list[str]] | None]:
    """The emissions of a table's utterances as the search hears them, and the words of the best path where a head
    spells."""
    spelling = next((h for h, v in recognizer.vocabularies.items() if not isinstance(v, PhoneVocabulary)), None)
    endpointer = Endpointer(recognizer.folder.config.endpoint)
    audio = load_utterances(utterances)
    segments: list[tuple[Emissions, ...]] = [()] * len(audio)
    texts: list[list[str]] = [[] for _ in audio]
    for i, emissions in emissions_of(recognizer, audio):
        segments[i] = tuple(cut_segments(endpointer, emissions[recognizer.head]))
        if spelling:
            path = best_path(torch.from_numpy(emissions[spelling]))
            texts[i] = recognizer.vocabularies[spelling].decode(path).split()
    references = tuple(tuple(u.text.split()) for u in utterances)
    seconds = sum(map(len, audio)) / recognizer.sample_rate
    return Table(name, tuple(segments), references, seconds), texts if spelling else None


def first(table: Table, count: int) -> Table:
    """The first utterances of a table (``seconds`` stays that of all)."""
    return dataclasses.replace(table, segments=table.segments[:count], references=table.references[:count])


def rate(references: Sequence[Sequence[str]], texts: Sequence[Sequence[str]]) -> float:
    """Word error rate."""
    errors = sum(metrics.edit_distance(list(r), list(t)) for r, t in zip(references, texts, strict=True))
    return errors / max(1, sum(map(len, references)))


# -- results -----------------------------------------------------------------------------------------------------------


def read_results(path: Path) -> list[dict[str, Any]]:
    """The lines of a results file; one that was cut short is left out."""
    results = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            results.append(json.loads(line))
        except ValueError:
            continue
    return results


def append(path: Path, result: dict[str, Any]) -> None:
    """Add a line, also behind one that was cut short."""
    whole = not path.is_file() or path.read_bytes()[-1:] in (b"", b"\n")
    with path.open("a", encoding="utf-8") as file:
        file.write(("" if whole else "\n") + json.dumps(result) + "\n")


def tables(results: Iterable[dict[str, Any]]) -> str:
    """Markdown: a table per budget, device and first weights; the base first, then by group; then the commands."""
    latest = {((r["budget"], r["device"], r.get("init", "")), r["name"]): r for r in results}
    pieces = []
    for kind in dict.fromkeys(kind for kind, _ in latest):
        rows = [r for (other, _), r in latest.items() if other == kind]
        title = f"{kind[0]} per cell on {kind[1]}{f', from the weights of {kind[2]}' if kind[2] else ''}"
        pieces.append(f"{title}; WER in %, greedy / with the language model:\n\n{table(rows)}")
        pieces.append(_commands(rows))
    return "\n\n".join(pieces) or "no results yet"


def table(rows: list[dict[str, Any]]) -> str:
    """One table; groups in the order in which they were run, "base" before all."""
    groups = list(dict.fromkeys(r["group"] for r in sorted(rows, key=lambda r: r["group"] != "base")))
    corpora = list(dict.fromkeys(name for r in rows for name in r["words"]))
    head = ["group", "cell", "parameters", "latency, ms", "steps", "audio, h", "time, s", *corpora, "mean with LM"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for r in sorted(rows, key=lambda r: groups.index(r["group"])):
        latency = "cannot stream" if r["latency_ms"] is None else str(r["latency_ms"])
        known = [r["words"][name] for name in corpora if name in r["words"]]
        row = [
            *(r["group"], r["name"], f"{r['parameters'] / 1e6:.2f} M", latency),
            *(str(r["steps"]), f"{r['audio_h']:.1f}", f"{r['train_s']:.0f}"),
            *(f"{_percent(r['greedy'].get(name))} / {_percent(r['words'].get(name))}" for name in corpora),
            _percent(sum(known) / len(known)) if len(known) == len(corpora) else "–",
        ]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines)


def _commands(rows: Sequence[dict[str, Any]]) -> str:
    commands = dict.fromkeys((r["command"], r["date"][:10]) for r in rows)
    return "\n".join(f"Run on {date}:\n\n```sh\n{command}\n```" for command, date in commands)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except AsrError as error:
        sys.exit(f"experiments: {error}")
