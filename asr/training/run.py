"""`asr train`: everything around the :class:`~asr.training.train.Trainer`: data, lexicon, reports, export."""

from __future__ import annotations

import csv
import json
import logging
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from asr.checkpoint import G2P, LANGUAGE_MODEL, LEXICON, FolderConfig, ModelFolder, find_model, save_folder
from asr.errors import ManifestError, UsageError
from asr.g2p import train_g2p
from asr.lexicon import PHONES, Lexicon, build_lexicon
from asr.model import AcousticModel
from asr.training.batches import NO_AUGMENT, Batch, BatchMaker, BatchPlan, TrainingSet
from asr.training.cache import PLAIN, Shard, build, load_rooms
from asr.training.manifest import Utterance, read_manifest
from asr.training.train import (
    CHECKPOINT,
    TrainConfig,
    Trainer,
    greedy_errors,
    initialise_processes,
    model_config,
    read_config,
)
from asr.vocabulary import BpeVocabulary, CharacterVocabulary, PhoneVocabulary, Vocabulary

log = logging.getLogger("asr.train")


def main(
    config: Path,
    data: Sequence[str],
    dev: Sequence[str],
    out: Path,
    resume: bool = False,
    init: str | None = None,
    device: str = "cpu",
) -> int:
    """Train a model and write it to ``out/model``. Returns 0, or 130 when it was stopped early (resumable)."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    settings = read_config(config)
    rank, world = initialise_processes()
    if world > 1 and device == "cpu":
        torch.set_num_threads(1)
    if (out / CHECKPOINT).exists() and not resume:
        raise UsageError(f"{out} holds a run already: give --resume to go on with it, or another --out")
    if resume and not (out / CHECKPOINT).exists():
        raise UsageError(f"{out} holds no checkpoint to resume from: leave --resume away")
    out.mkdir(parents=True, exist_ok=True)
    start = find_model(init) if init else None
    training = [u for d in data for u in read_manifest(d)]
    testing = {Path(d).stem: read_manifest(d) for d in dev}
    lexicon = _lexicon(settings, training, start, out, rank)
    heads = _heads(settings, training, lexicon, start)
    cache = Path(settings.cache) if settings.cache else out / "cache"
    views = Views(settings, cache, rank, world)
    train_set = TrainingSet(views.of(training, augmented=True), heads)
    noises = views.of(read_sounds(Path(settings.noise)), augmented=False) if settings.noise else []
    dev_batches = _dev_batches(settings, testing, views, heads) if rank == 0 else {}
    model = _model(settings, heads, train_set, start)
    maker = BatchMaker(train_set, settings.augment, noises)
    trainer = Trainer(settings, model, train_set, maker, out, _own_device(device, rank), rank, world)
    if resume:
        trainer.load(out / CHECKPOINT)
    if rank == 0:
        log.info(
            "%.2f million parameters, %d utterances (%d too short for their text), %d sounds, step %d of %d",
            model.parameter_count / 1e6,
            len(train_set),
            train_set.too_short,
            len(maker.noises),
            trainer.step,
            settings.optimizer.steps,
        )
    stopped = _stop_on_signal(world)
    with Reporter(out, rank, settings.optimizer.steps) as report:
        trainer.run(report, lambda t: _evaluate(t, dev_batches) if dev_batches else {}, stopped)
    if rank == 0:
        export(trainer, lexicon, out / "model", start)
        plot_curves(out)
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()
    return 0 if trainer.step >= settings.optimizer.steps else 130


def read_sounds(path: Path) -> list[Utterance]:
    """Sounds without speech from a table with columns audio, start_s, duration_s; every tenth is held out for tests."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
        sounds = [
            Utterance(r.get("id") or str(i), path.parent / r["audio"], float(r["start_s"]), float(r["duration_s"]), "")
            for i, r in enumerate(rows)
        ]
    except (OSError, KeyError, ValueError) as error:
        raise ManifestError(f"cannot read the table of noises {path}: {error!r}") from None
    return [s for i, s in enumerate(sounds) if i % 10]


class Views:
    """Cached features; rank 0 computes what is missing, the other processes wait for it."""

    def __init__(self, config: TrainConfig, folder: Path, rank: int, world: int) -> None:
        self.config = config
        self.folder = folder
        self.rank = rank
        self.world = world

    def of(self, utterances: Sequence[Utterance], augmented: bool, alone: bool = False) -> list[Shard]:
        """Shards of ``utterances``; a collective call of all processes unless ``alone``."""
        config = self.config
        views = config.views if augmented else PLAIN
        rooms = load_rooms(Path(config.rooms)) if config.rooms and augmented else []
        shards: list[Shard] = []
        if self.rank == 0:
            shards = list(build(utterances, self.folder, config.features, views, rooms, processes=self.world))
        if self.world > 1 and not alone:
            dist.barrier()
        return shards or list(build(utterances, self.folder, config.features, views, rooms))


def _lexicon(
    config: TrainConfig, training: Sequence[Utterance], start: ModelFolder | None, out: Path, rank: int
) -> Lexicon | None:
    if "phones" not in config.heads:
        return start.load_lexicon() if start else None
    if not config.lexicon:
        return (start or find_model("en")).load_lexicon()
    path = Path(config.lexicon)
    if path.suffix == ".lex":
        return Lexicon.load(path)
    known = Lexicon.from_cmudict(path)
    log.info("training the grapheme-to-phoneme model on %d words", len(known))
    g2p = train_g2p([(word, phones) for word, variants in known.items() for phones in variants])
    words = {w: None for u in training for w in u.text.split()}
    if config.words:
        words.update((w, None) for w in Path(config.words).read_text(encoding="utf-8").split())
    lexicon = build_lexicon(words, known, g2p)
    if rank == 0:
        g2p.save(out / G2P)
    return lexicon.with_g2p(g2p)


def _heads(
    config: TrainConfig, training: Sequence[Utterance], lexicon: Lexicon | None, start: ModelFolder | None
) -> dict[str, Vocabulary]:
    if start:
        known = start.load_vocabularies(lexicon)
        missing = [h for h in config.heads if h not in known]
        if missing:
            raise UsageError(f"the model given by --init has no head '{missing[0]}': it has {', '.join(known)}")
        return {name: known[name] for name in config.heads}
    makers: dict[str, Callable[[], Vocabulary]] = {
        "phones": lambda: PhoneVocabulary.of(PHONES, lexicon),
        "characters": CharacterVocabulary,
        "bpe": lambda: BpeVocabulary.train((u.text for u in training), config.bpe_size),
    }
    return {name: makers[name]() for name in config.heads}


def _model(
    config: TrainConfig, heads: dict[str, Vocabulary], data: TrainingSet, start: ModelFolder | None
) -> AcousticModel:
    torch.manual_seed(config.seed)
    shape = model_config(config, {name: len(v) for name, v in heads.items()})
    model = AcousticModel(shape)
    if start is None:
        mean, deviation = data.statistics
        model.front_end.mean.copy_(torch.from_numpy(mean))
        model.front_end.deviation.copy_(torch.from_numpy(deviation))
        return model
    if start.config.features != config.features:
        raise UsageError("the model given by --init has other features: leave the [features] table away")
    known = start.load_network().state_dict()
    wanted = model.state_dict()
    fitting = {k: v for k, v in known.items() if k in wanted and wanted[k].shape == v.shape}
    lost = [k for k in wanted if k not in fitting and not k.startswith("intermediate")]
    if lost:
        raise UsageError(
            f"the model given by --init has another shape ({lost[0]}): copy its 'model' table from "
            f"{start.path / 'config.json'}"
        )
    model.load_state_dict({**wanted, **fitting})
    return model


def _dev_batches(
    config: TrainConfig, testing: dict[str, list[Utterance]], views: Views, heads: dict[str, Vocabulary]
) -> dict[str, list[Batch]]:
    batches = {}
    for name, utterances in testing.items():
        data = TrainingSet(views.of(utterances, augmented=False, alone=True), heads)
        plan = BatchPlan(data, NO_AUGMENT, config.batch_seconds, config.seed, 0, shuffle=False)
        maker = BatchMaker(data, NO_AUGMENT)
        batches[name] = [maker.make(plan.rows(i), np.random.default_rng(0)) for i in range(len(plan))]
    return batches


def _evaluate(trainer: Trainer, dev: dict[str, list[Batch]]) -> dict[str, float]:
    return {
        f"{name}/{key}": value
        for name, batches in dev.items()
        for key, value in greedy_errors(trainer, batches).items()
    }


def _own_device(device: str, rank: int) -> str:
    if device != "cuda":
        return device
    torch.cuda.set_device(rank % torch.cuda.device_count())
    return f"cuda:{torch.cuda.current_device()}"


def _stop_on_signal(world: int) -> Callable[[], bool]:
    """A function that says whether any process has been told to stop (SIGINT, SIGTERM)."""
    told = [0.0]

    def note(*_: Any) -> None:
        told[0] = 1.0

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, note)

    def stop() -> bool:
        if world == 1:
            return bool(told[0])
        flag = torch.tensor(told)
        if torch.cuda.is_available():
            flag = flag.cuda()
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return bool(flag.item())

    return stop


def estimate_log_priors(trainer: Trainer, batches: int = 20) -> dict[str, Tensor]:
    """Log of the mean posterior of every unit over some training batches without augmentation, per head."""
    plan = BatchPlan(trainer.data, NO_AUGMENT, trainer.config.batch_seconds, trainer.config.seed, 0)
    maker = BatchMaker(trainer.data, NO_AUGMENT)
    trainer.model.eval()
    sums: dict[str, Tensor] = {}
    with torch.no_grad():
        for i in range(min(batches, len(plan))):
            batch = maker.make(plan.rows(i), np.random.default_rng(i))
            out, steps, _ = trainer.model(batch.frames.to(trainer.device), batch.lengths.to(trainer.device))
            for name, log_probs in out.items():
                inside = torch.arange(log_probs.shape[1], device=trainer.device) < steps[:, None].to(trainer.device)
                total = log_probs.exp()[inside].double().sum(0).cpu()
                sums[name] = sums[name] + total if name in sums else total
    return {name: (total / total.sum()).clamp_min(1e-8).log().float() for name, total in sums.items()}


def export(trainer: Trainer, lexicon: Lexicon | None, folder: Path, start: ModelFolder | None = None) -> None:
    """Write the averaged weights as a model folder."""
    trainer.model.load_state_dict(trainer.average)
    priors = estimate_log_priors(trainer)
    folder.mkdir(parents=True, exist_ok=True)
    (lexicon or Lexicon({})).save(folder / LEXICON)
    files: dict[str, Path] = {}
    if start and start.language_model:
        files[LANGUAGE_MODEL] = start.language_model
    if lexicon is not None and lexicon.g2p is not None:
        lexicon.g2p.save(folder / G2P)
    weights = {k: v for k, v in trainer.model.state_dict().items() if not k.startswith("intermediate")}
    heads = trainer.config.heads
    config = FolderConfig(
        model=trainer.model.config,
        features=trainer.config.features,
        head=heads[0],
        name=start.name if start else folder.name,
    )
    save_folder(folder, config, weights, trainer.data.heads, priors, files)


class Reporter:
    """Scalars of a run: TensorBoard, ``metrics.jsonl``, a progress bar on a terminal, a log line now and then."""

    def __init__(self, out: Path, rank: int, steps: int) -> None:
        self.out = out
        self.rank = rank
        self.steps = steps
        self.logged = 0.0
        self.board: Any = None
        self.bar: Any = None

    def __enter__(self) -> Reporter:
        if self.rank:
            return self
        self.file = (self.out / "metrics.jsonl").open("a", encoding="utf-8")
        try:
            from torch.utils.tensorboard.writer import SummaryWriter

            self.board = SummaryWriter(str(self.out / "tensorboard"))  # type: ignore[no-untyped-call]
        except ImportError:
            log.warning("no TensorBoard scalars: install the training extra (pip install 'asr[train]')")
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import Progress

            self.bar = Progress(console=Console(stderr=True))
            self.task = self.bar.add_task("training", total=self.steps)
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.rank:
            return
        self.file.close()
        if self.board:
            self.board.close()
        if self.bar:
            self.bar.stop()

    def __call__(self, step: int, scalars: dict[str, float]) -> None:
        """Report the scalars of a step."""
        if self.rank or not scalars:
            return
        self.file.write(json.dumps({"step": step, **scalars}) + "\n")
        self.file.flush()
        if self.board:
            for name, value in scalars.items():
                self.board.add_scalar(name, value, step)
        if self.bar:
            self.bar.update(self.task, completed=step, description=f"loss {scalars.get('loss', float('nan')):.3f}")
        if time.monotonic() - self.logged > 30 or "loss" not in scalars:
            self.logged = time.monotonic()
            log.info("step %d/%d %s", step, self.steps, " ".join(f"{k}={v:.4g}" for k, v in scalars.items()))


def plot_curves(out: Path) -> Path | None:
    """Loss and dev error of a run as ``curves.png``; None without matplotlib or without steps."""
    try:
        import matplotlib
    except ImportError:
        log.warning("no plot of the curves: install the training extra (pip install 'asr[train]')")
        return None
    matplotlib.use("agg")
    from matplotlib import pyplot

    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = [r for r in rows if "loss" in r]
    tests = [r for r in rows if any("/" in k for k in r)]
    if not losses:
        return None
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4), constrained_layout=True)
    for name in [k for k in losses[0] if k in ("loss", "phones", "characters", "bpe", "intermediate")]:
        values = np.array([r.get(name, np.nan) for r in losses])
        width = max(1, len(values) // 100)
        smooth = np.convolve(values, np.ones(width) / width, mode="valid")
        left.plot([r["step"] for r in losses][width - 1 :], smooth, label=name)
    left.set(xlabel="step", ylabel="CTC loss, nats per unit", yscale="log")
    left.legend()
    for name in sorted({k for r in tests for k in r if "/" in k}):
        points = [(r["step"], 100 * r[name]) for r in tests if name in r]
        right.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name.removesuffix("_error"))
    right.set(xlabel="step", ylabel="greedy unit error, %")
    if tests:
        right.legend(fontsize=7)
    figure.savefig(out / "curves.png", dpi=110)
    pyplot.close(figure)
    return out / "curves.png"
