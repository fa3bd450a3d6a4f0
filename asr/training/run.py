"""`asr train`: what stands around the :class:`~asr.training.train.Trainer`: data, lexicon, units, weights, export."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from asr.checkpoint import G2P, LEXICON, ModelFolder, find_model
from asr.config import to_dict
from asr.errors import ConfigError, ManifestError, UsageError
from asr.features import FeatureConfig
from asr.g2p import G2P as GraphemeToPhoneme
from asr.g2p import train_g2p
from asr.lexicon import PHONES, Lexicon, build_lexicon
from asr.model import AcousticModel
from asr.training.batches import NO_AUGMENT, Batch, BatchMaker, BatchPlan, TrainingSet
from asr.training.cache import PLAIN, Shard, build, load_rooms
from asr.training.deepen import deepen
from asr.training.download import data_folder, librispeech
from asr.training.export import PRIOR_BATCHES, export
from asr.training.finish import finish
from asr.training.made_sounds import made_sounds
from asr.training.manifest import LIBRISPEECH, Utterance, read_corpora, read_manifest, read_table
from asr.training.pronunciations import heard_pronunciations
from asr.training.recipe import Plan, after_another, find_recipe, read_plan, with_data_of
from asr.training.report import Reporter, plot_curves
from asr.training.train import (
    CHECKPOINT,
    TrainConfig,
    Trainer,
    greedy_errors,
    initialise_processes,
    model_config,
    own_device,
    read_checkpoint,
    wait_for_all,
)
from asr.training.word_places import word_places
from asr.vocabulary import BpeVocabulary, CharacterVocabulary, PhoneVocabulary, Vocabulary, vocabulary_from_dict

log = logging.getLogger("asr.train")
DEEPENED = "deepened"  # the model that the run starts from, with more layers
MODEL = "model"  # folder of the exported model within the run's
SETTINGS = "run.json"  # what the run was started with
DONE = "done.json"  # which stages are done, and whether the recipe is
FINISH = "finish"  # in that list: language model, search and measurement
STOPPED = 130  # exit status: 128 + SIGINT, as shells have it
_HELD_OUT = 10  # every tenth noise is left for tests


def main(
    config: Path | None,
    data: Sequence[str],
    dev: Sequence[str],
    out: Path,
    resume: bool = False,
    init: str | None = None,
    device: str = "cpu",
    recipe: str | None = None,
    changes: Sequence[str] = (),
    language_model: Path | None = None,
    data_dir: Path | None = None,
) -> int:
    """Train a model and write it to ``out/model``. Returns 0, or 130 when it was stopped early (resumable).

    ``config``: a file, or ``recipe``: the name of one of the package; ``changes`` to its settings (see
    :func:`~asr.training.recipe.read_plan`); ``data`` and ``dev``: manifests, ``language_model`` of the exported model:
    by default the recipe's; ``data_dir``: where downloads go.

    Under torchrun every process calls this. Raises errors of :mod:`asr.errors` for whatever the user gave wrong.
    """
    if (config is None) == (recipe is None):
        raise UsageError("give either --config FILE or --recipe NAME")
    plan = read_plan(config or find_recipe(recipe or ""), changes)
    data, dev, test = with_data_of(plan, data, dev)
    if data_dir is not None:
        os.environ["ASR_DATA"] = str(data_dir.resolve())
    device = own_device(device)
    rank, world = initialise_processes(device)
    logging.basicConfig(
        level=logging.WARNING if rank else logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S"
    )
    if world > 1 and device == "cpu":
        torch.set_num_threads(1)
    run = _Run(plan, data, dev, out, device, rank, world)
    run.check(resume)
    if rank == 0:
        for missing in plan.missing_tables:
            log.warning("%s was made with '%s': give yours by --set %s=FILE", plan.path.stem, missing, missing)
        for part in sorted({m.removeprefix(LIBRISPEECH) for m in (*data, *dev, *test) if m.startswith(LIBRISPEECH)}):
            librispeech(part, data_folder())
    wait_for_all(world)
    finished = run.train(resume, init)
    if finished and rank == 0 and (recipe is not None or language_model is not None) and FINISH not in run.done:
        finish(plan.recipe, out, out / MODEL, data, dev, test, language_model, device)
        run.mark(FINISH)
    wait_for_all(world)
    if world > 1:
        dist.destroy_process_group()
    return 0 if finished else STOPPED


class _Run:
    """The stages of a plan, one after another. A run of several has a folder for each and a list of what is done."""

    def __init__(
        self, plan: Plan, data: Sequence[str], dev: Sequence[str], out: Path, device: str, rank: int, world: int
    ) -> None:
        self.plan = plan
        self.data, self.dev, self.out = data, dev, out
        self.device, self.rank, self.world = device, rank, world
        self.done: list[str] = []

    @property
    def staged(self) -> bool:
        """Whether it has stages at all."""
        return self.plan.stages[0].name != ""

    def check(self, resume: bool) -> None:
        """Raise UsageError where ``out`` holds a run and none is to be resumed, or the other way round. Collective."""
        if self.staged:
            there = (self.out / DONE).exists()
            if there and not resume:
                raise UsageError(f"{self.out} holds a run already: give --resume to go on with it, or another --out")
            if resume and not there:
                raise UsageError(f"{self.out} holds no run in stages to resume: leave --resume away")
        if resume:
            self.done = _read_done(self.out)
        wait_for_all(self.world)  # nobody writes before all have looked

    def mark(self, *names: str) -> None:
        """Note that parts of the run are done."""
        self.done = [*self.done, *names]
        if self.rank == 0:
            temporary = self.out / (DONE + ".tmp")
            temporary.write_text(json.dumps({"done": self.done}) + "\n", encoding="utf-8")
            temporary.replace(self.out / DONE)

    def train(self, resume: bool, init: str | None) -> bool:
        """All stages that are not done; says whether the last one is now. Collective."""
        if not self.staged:
            return self._stage(self.plan.stages[0].config, self.out, resume, init)
        if self.rank == 0:
            self.out.mkdir(parents=True, exist_ok=True)
        wait_for_all(self.world)
        self.mark()
        before = init
        for number, stage in enumerate(self.plan.stages):
            folder = self.out / stage.name
            settings = after_another(stage.config) if number else stage.config
            if not settings.cache:
                settings = dataclasses.replace(settings, cache=str((self.out / "cache").resolve()))
            if stage.name not in self.done:
                log.info("stage %d of %d: %s", number + 1, len(self.plan.stages), stage.name)
                there = (folder / CHECKPOINT).exists()
                wait_for_all(self.world)
                if not self._stage(settings, folder, there, before):
                    return False
                self._publish(folder)
                self.mark(stage.name)
            before = str(folder / MODEL)
        return True

    def _publish(self, folder: Path) -> None:
        """What the stage has made is the run's model so far."""
        if self.rank == 0:
            new = self.out / (MODEL + ".new")
            shutil.rmtree(new, ignore_errors=True)
            shutil.copytree(folder / MODEL, new)
            shutil.rmtree(self.out / MODEL, ignore_errors=True)
            new.replace(self.out / MODEL)
        wait_for_all(self.world)

    def _stage(self, settings: TrainConfig, out: Path, resume: bool, init: str | None) -> bool:
        """Train to the last step of ``settings`` and export; says whether it came so far."""
        rank, world = self.rank, self.world
        saved, init = _check_folder(out, resume, init)
        if settings.deepen and not init:
            raise UsageError("deepen needs a model to put layers into: give --init")
        if settings.deepen:
            init = self._deepened(init or "", settings.deepen, out, resume)
        start = find_model(init) if init else None
        if start:
            settings = _like(settings, start)
        wait_for_all(world)  # nobody writes before all have looked
        if rank == 0:
            out.mkdir(parents=True, exist_ok=True)
            _write_settings(out, settings, self.data, self.dev, init, world)
        prepared = prepare(settings, self.data, self.dev, out, start, saved, rank, world)
        model = model_from(settings, prepared.data, start)
        trainer = Trainer(settings, model, prepared.data, prepared.maker, out, self.device, rank, world)
        if resume:
            trainer.load(out / CHECKPOINT)
        log.info(
            "%.2f million parameters, %d utterances (%d too short for their text), %d sounds, step %d of %d",
            model.parameter_count / 1e6,
            len(prepared.data),
            prepared.data.too_short,
            len(prepared.maker.noises),
            trainer.step,
            settings.optimizer.steps,
        )
        with stop_on_signal(world) as stop, Reporter(out, rank, settings.optimizer.steps, trainer.step) as report:
            finished = trainer.run(report, lambda t: evaluate(t, prepared.dev), stop)
        if rank == 0:
            if not finished:
                log.info("stopped at step %d; the same command with --resume goes on", trainer.step)
            export(trainer, prepared.lexicon, out / MODEL, start, PRIOR_BATCHES if finished else 2)
            plot_curves(out)
        wait_for_all(world)
        return finished

    def _deepened(self, init: str, after: Sequence[int], out: Path, resume: bool) -> str:
        """The deeper model that a stage starts from; a stage that is resumed has it already. Collective."""
        deeper = out / DEEPENED
        wait_for_all(self.world)  # nobody writes before all have looked
        if self.rank == 0 and not resume:
            new = out / (DEEPENED + ".new")
            shutil.rmtree(new, ignore_errors=True)
            deepen(init, after, new)
            shutil.rmtree(deeper, ignore_errors=True)
            new.replace(deeper)
        wait_for_all(self.world)
        return str(deeper)


def _read_done(out: Path) -> list[str]:
    try:
        return list(json.loads((out / DONE).read_text(encoding="utf-8"))["done"])
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"cannot resume from {out / DONE}: {error}; start again with another --out") from None


@dataclass(frozen=True)
class Prepared:
    """What is trained on and measured on: ``dev`` has the batches of every corpus (on rank 0 only)."""

    lexicon: Lexicon
    data: TrainingSet
    maker: BatchMaker
    dev: dict[str, list[Batch]]


def prepare(
    settings: TrainConfig,
    data: Sequence[str],
    dev: Sequence[str],
    out: Path,
    start: ModelFolder | None = None,
    saved: dict[str, Any] | None = None,
    rank: int = 0,
    world: int = 1,
) -> Prepared:
    """Read manifests, make lexicon, units and features (what ``out`` has of them already is taken); collective.

    ``start``: the model to fine-tune; ``saved``: the checkpoint to resume.
    """
    training = [u for d in data for u in read_manifest(d)]
    testing = read_corpora(dev)
    lexicon = _lexicon(settings, training, start, out, rank, world, resume=saved is not None)
    heads = _heads(settings, training, lexicon, start, saved)
    views = Views(settings, Path(settings.cache) if settings.cache else out / "cache", rank, world)
    train_set = TrainingSet(views.of(training, augmented=True), heads)
    train_set.balance(settings.corpora)
    if settings.pronunciations == "heard":
        views.listen(train_set)
    if settings.augment.cut:
        views.cut(train_set)
    noises = views.of(read_sounds(Path(settings.noise)), augmented=False) if settings.noise else []
    if settings.made_noises:
        noises.append(made_sounds(settings.features, settings.made_noises))
    dev_batches = _dev_batches(settings, testing, views, heads) if rank == 0 else {}
    return Prepared(lexicon, train_set, BatchMaker(train_set, settings.augment, noises), dev_batches)


def _check_folder(out: Path, resume: bool, init: str | None) -> tuple[dict[str, Any] | None, str | None]:
    """The checkpoint to resume, and the model that the run starts or was started from."""
    there = (out / CHECKPOINT).exists()
    if there and not resume:
        raise UsageError(f"{out} holds a run already: give --resume to go on with it, or another --out")
    if not resume:
        return None, init
    if not there:
        raise UsageError(f"{out} holds no checkpoint to resume from: leave --resume away")
    saved = read_checkpoint(out / CHECKPOINT)
    try:
        started = json.loads((out / SETTINGS).read_text(encoding="utf-8"))["init"]
    except (OSError, ValueError, KeyError, TypeError):
        started = None
    return saved, init or started


def _write_settings(
    out: Path, settings: TrainConfig, data: Sequence[str], dev: Sequence[str], init: str | None, world: int
) -> None:
    values = {
        "data": [str(d) for d in data],
        "dev": [str(d) for d in dev],
        "init": str(Path(init).resolve()) if init and Path(init).exists() else init,
        "processes": world,
        "config": to_dict(settings),
    }
    (out / SETTINGS).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def _like(settings: TrainConfig, start: ModelFolder) -> TrainConfig:
    """``settings`` with the shape and features of the model to start from, where they do not name their own."""
    if settings.features not in (FeatureConfig(), start.config.features):
        raise UsageError("the model given by --init has other features: leave the [features] table away")
    shape = {k: v for k, v in to_dict(start.config.model).items() if k not in ("heads", "mels")}
    settings = dataclasses.replace(settings, features=start.config.features, model={**shape, **settings.model})
    model_config(settings, {name: 2 for name in settings.heads})  # the two together must make sense
    return settings


def read_sounds(path: Path) -> list[Utterance]:
    """Sounds without speech from a table with columns audio, start_s, duration_s; every tenth is held out for tests."""
    sounds = []
    for line, row in read_table(path, ("audio", "start_s", "duration_s")):
        try:
            start, duration = float(row["start_s"]), float(row["duration_s"])
        except ValueError:
            raise ManifestError(f"{path}, line {line}: start_s and duration_s must be numbers of seconds") from None
        name = row.get("id") or f"{path.stem}-{line}"
        sounds.append(Utterance(name, path.parent / row["audio"], start, duration, ""))
    return [s for i, s in enumerate(sounds) if i % _HELD_OUT]


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
        workers = config.workers or _cores()
        if self.rank == 0:
            shards = list(build(utterances, self.folder, config.features, views, rooms, workers))
        if not alone:
            wait_for_all(self.world)
        if self.rank:
            shards = list(build(utterances, self.folder, config.features, views, rooms))
        return shards

    def cut(self, data: TrainingSet) -> None:
        """Find the words of all utterances, so that pieces of them can be taken; collective."""
        cuts = self._aligned(lambda aligner: word_places(aligner, data, self.config.features, self.folder))
        log.info("%d of %d utterances can be cut", sum(len(c) > 0 for c in cuts), len(cuts))
        data.cut_at(cuts, self.config.augment.cut)

    def listen(self, data: TrainingSet) -> None:
        """Find which pronunciations were said, and let the targets be these; collective."""
        for head, units in data.heads.items():
            if isinstance(units, PhoneVocabulary):
                find = partial(
                    heard_pronunciations, data=data, head=head, features=self.config.features, cache=self.folder
                )
                said = self._aligned(find)
                other, words = sum(int((s > 0).sum()) for s in said), sum(map(len, said))
                log.info("%d of %d words are not said as the lexicon's first pronunciation has it", other, words)
                data.pronounce(head, said)

    def _aligned(self, find: Callable[[ModelFolder], Sequence[NDArray[np.int64]]]) -> Sequence[NDArray[np.int64]]:
        """What rank 0 finds with the aligner and keeps, and the others read; collective."""
        aligner = find_model(self.config.aligner)
        if self.rank == 0:
            found = find(aligner)
        wait_for_all(self.world)
        return find(aligner) if self.rank else found


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _lexicon(
    config: TrainConfig,
    training: Sequence[Utterance],
    start: ModelFolder | None,
    out: Path,
    rank: int,
    world: int,
    resume: bool,
) -> Lexicon:
    """The words that the model will know. It is kept in the run's folder: made by rank 0, read by all, also later."""
    path, g2p = out / LEXICON, out / G2P
    if rank == 0 and not (resume and path.is_file()):
        lexicon = _new_lexicon(config, training, start)
        g2p.unlink(missing_ok=True)
        if lexicon.g2p is not None:
            lexicon.g2p.save(g2p)
        lexicon.save(path)
    wait_for_all(world)
    return Lexicon.load(path, GraphemeToPhoneme.load(g2p) if g2p.is_file() else None)


def _new_lexicon(config: TrainConfig, training: Sequence[Utterance], start: ModelFolder | None) -> Lexicon:
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
        try:
            words.update((w, None) for w in Path(config.words).read_text(encoding="utf-8").split())
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read the word list {config.words}: {error}") from None
    return build_lexicon(words, known, g2p)


def _heads(
    config: TrainConfig,
    training: Sequence[Utterance],
    lexicon: Lexicon,
    start: ModelFolder | None,
    saved: dict[str, Any] | None,
) -> dict[str, Vocabulary]:
    """The units of every head: of the checkpoint to resume, of the model to start from, or new ones."""
    known: dict[str, Vocabulary] = {}
    if saved:
        known = {name: vocabulary_from_dict(v, lexicon) for name, v in saved["vocabularies"].items()}
    elif start:
        known = start.load_vocabularies(lexicon)
    if known:
        missing = [h for h in config.heads if h not in known]
        if missing:
            source = "checkpoint" if saved else "model given by --init"
            raise UsageError(f"the {source} has no head '{missing[0]}': it has {', '.join(known)}")
        return {name: known[name] for name in config.heads}
    makers: dict[str, Callable[[], Vocabulary]] = {
        "phones": lambda: PhoneVocabulary.of(PHONES, lexicon),
        "characters": CharacterVocabulary,
        "bpe": lambda: BpeVocabulary.train((u.text for u in training), config.bpe_size),
    }
    return {name: makers[name]() for name in config.heads}


def new_model(config: TrainConfig, data: TrainingSet) -> AcousticModel:
    """A network with fresh weights and the mean and deviation of the data."""
    torch.manual_seed(config.seed)
    model = AcousticModel(model_config(config, {name: len(v) for name, v in data.heads.items()}))
    mean, deviation = data.statistics
    model.front_end.mean.copy_(torch.from_numpy(mean))
    model.front_end.deviation.copy_(torch.from_numpy(deviation))
    return model


def model_from(config: TrainConfig, data: TrainingSet, start: ModelFolder | None) -> AcousticModel:
    """New weights, or those of ``start`` (its heads that are not trained are dropped)."""
    model = new_model(config, data)
    if start is None:
        return model
    mean = [name for name in to_dict(model.config) if name.startswith("running_mean")]
    free = ("heads", "dropout", "intermediate", *mean)
    shape = dict.fromkeys(free)  # what may differ: the weights are the same
    if {**to_dict(model.config), **shape} != {**to_dict(start.config.model), **shape}:
        raise UsageError(f"the model given by --init has another shape: leave the [model] table of {start.name} away")
    wanted = model.state_dict()
    known = {k: v for k, v in start.load_network().state_dict().items() if k in wanted}
    model.load_state_dict({**wanted, **known})
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


def evaluate(trainer: Trainer, dev: dict[str, list[Batch]]) -> dict[str, float]:
    """Greedy unit error rates by ``corpus/head_error``."""
    return {
        f"{name}/{key}": value
        for name, batches in dev.items()
        for key, value in greedy_errors(trainer, batches).items()
    }


@contextmanager
def stop_on_signal(world: int) -> Iterator[Callable[[], bool]]:
    """Gives a function that says whether any process has been told to stop (SIGINT, SIGTERM), as long as it lasts.

    A second signal interrupts at once.
    """
    told = [0.0]

    def note(*_: Any) -> None:
        if told[0]:
            raise KeyboardInterrupt
        told[0] = 1.0

    def stop() -> bool:
        if world == 1:
            return bool(told[0])
        flag = torch.tensor(told)
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return bool(flag.item())

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


__all__ = ["MODEL", "SETTINGS", "Prepared", "evaluate", "main", "new_model", "prepare", "read_sounds", "stop_on_signal"]
