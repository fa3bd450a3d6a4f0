"""Training: CTC on one or several heads, any number of processes (torchrun), exact resume.

Every random choice is a function of the seed and the place in the run (epoch, step, slot); together with the checkpoint
that makes an interrupted and resumed run give the weights of one that was not interrupted.
"""

from __future__ import annotations

import dataclasses
import datetime
import importlib
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from asr.checkpoint import find_model
from asr.config import from_dict, to_dict
from asr.errors import UsageError
from asr.features import FRAME_MS
from asr.model import AcousticModel, ModelConfig, RecurrentLayer
from asr.training.batch_source import BatchSource, Place
from asr.training.batches import Batch, BatchMaker, BatchPlan, TrainingSet
from asr.training.compiled_lstm import compiled_lstm
from asr.training.consistency import consistency_loss
from asr.training.crf import Denominator, unit_trigram
from asr.training.distillation import Teacher
from asr.training.muon import Muon, matrices_of
from asr.training.train_config import TrainConfig
from asr.training.train_config import model_config as model_config
from asr.training.train_config import read_config as read_config
from asr.training.word_errors import ExpectedWordErrors, word_search

log = logging.getLogger("asr.train")
CHECKPOINT = "checkpoint.pt"
_AHEAD_ON_GPU = 8  # batches; some hundred MB
# Rank 0 computes features and evaluates while the others wait in a collective, longer than the usual half hour.
_PATIENCE = datetime.timedelta(days=2)

Carried = tuple[Tensor, ...]


class Trainer:
    """One process of a training run. ``rank`` of ``world`` processes; gradients are averaged over them."""

    def __init__(
        self,
        config: TrainConfig,
        model: AcousticModel,
        data: TrainingSet,
        maker: BatchMaker,
        out: Path,
        device: str = "cpu",
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.config = config
        self.device = torch.device(device)
        self.model = model.to(self.device)
        if config.lstm == "compiled" and config.precision == "bf16" and self.device.type == "cpu":
            for layer in model.recurrent:
                assert isinstance(layer, RecurrentLayer)
                layer.training_pass = compiled_lstm
        self.data = data
        self.maker = maker
        self.out = out
        self.rank = rank
        self.world = world
        self.slots = range(rank * config.accumulate, (rank + 1) * config.accumulate)
        ahead = config.prefetch if config.prefetch >= 0 else _AHEAD_ON_GPU * (self.device.type == "cuda")
        self.batches = BatchSource(config, data, maker, self.slots, world * config.accumulate, ahead)
        matrices = matrices_of(model) if config.optimizer.method == "muon" else []
        others = {id(p) for group in matrices for p in group["params"]}
        decayed = [p for p in model.parameters() if p.dim() > 1 and id(p) not in others]
        plain = [p for p in model.parameters() if p.dim() <= 1]
        self.optimizer = torch.optim.AdamW([{"params": decayed}, {"params": plain}], lr=config.optimizer.peak_rate)
        self.muon = Muon(matrices, lr=config.optimizer.peak_rate) if matrices else None
        self._set_optimizer()
        self.average = {k: v.detach().clone() for k, v in model.state_dict().items()}
        self.denominator = _denominator(config, data, self.device)
        self.word_errors = _word_errors(config, data)
        self.teacher = _teacher(config, data, self.device)
        self.step = 0
        self.epoch = 0
        self.position = 0  # steps done in this epoch
        self.skipped = 0
        self.audio_s = 0.0
        self.seconds = 0.0
        self.carried: list[Carried | None] = [None] * config.accumulate  # per slot of this process
        self.history: list[dict[str, float]] = []
        if world > 1:
            for tensor in model.state_dict().values():
                dist.broadcast(tensor, 0)
            self.average = {k: v.detach().clone() for k, v in model.state_dict().items()}

    def _set_optimizer(self) -> None:
        settings = self.config.optimizer
        for group, weight_decay in zip(self.optimizer.param_groups, (settings.weight_decay, 0.0), strict=True):
            group["weight_decay"] = weight_decay
            group["betas"] = settings.betas
        for group in self.muon.param_groups if self.muon else ():
            group["weight_decay"] = settings.weight_decay

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """AdamW, and Muon where it has the matrices."""
        return [self.optimizer, *([self.muon] if self.muon else [])]

    # -- one step ----------------------------------------------------------------------------------------------------

    def plan(self) -> BatchPlan:
        """The batches of the running epoch."""
        return self.batches.plan(self.epoch)

    def train_step(self) -> dict[str, float]:
        """Forward, backward, update. Returns the scalars of the step."""
        began = time.monotonic()
        config = self.config
        self.model.train()
        self.model.zero_grad(set_to_none=True)
        scalars: dict[str, float] = {}
        for part, slot in enumerate(self.slots):
            batch = self.batches.get(Place(self.epoch, self.position, slot))
            torch.manual_seed(_seed(config.seed, self.step, slot))  # of dropout
            losses, state = self._losses(batch, self._carry(part, len(batch.lengths)), self._lookahead(slot))
            if config.carry and not self.model.config.bidirectional:
                self.carried[part] = tuple(t.detach().float() for t in state)
            total = self._weighted(losses)
            (total / config.accumulate).backward()  # type: ignore[no-untyped-call]
            self.audio_s += float(batch.lengths.sum()) * FRAME_MS / 1000 * self.world
            for name, value in {**losses, "loss": total}.items():
                scalars[name] = scalars.get(name, 0.0) + float(value.detach()) / config.accumulate
        norm = self._average_gradients()
        rate = self.learning_rate()
        if math.isfinite(norm):
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = rate
                optimizer.step()
            self._average_weights()
        else:
            self.skipped += 1
            self.carried = [None] * config.accumulate  # it may be what was not finite
        length = len(self.plan())
        self.step += 1
        self.position += 1
        if self.position >= length:
            self.epoch, self.position = self.epoch + 1, 0
        took = time.monotonic() - began
        self.seconds += took
        return {
            **scalars,
            "gradient_norm": norm,
            "learning_rate": rate,
            "epoch": float(self.epoch),
            "skipped": float(self.skipped),
            "audio_h": self.audio_s / 3600,
            "hours": self.seconds / 3600,
            "step_s": took,
        }

    def learning_rate(self) -> float:
        """The rate of the step to come."""
        return self.config.optimizer.rate(self.step)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """CTC loss per head, in nats per target unit; ``crf``: CTC-CRF loss of the first head."""
        return self._losses(batch, None, None)[0]

    def _losses(
        self, batch: Batch, carry: Carried | None, lookahead: Sequence[int] | None
    ) -> tuple[dict[str, Tensor], Carried]:
        frames, frame_counts = batch.frames.to(self.device), batch.lengths.to(self.device)
        with self.autocast():
            out, steps, state = self.model(frames, frame_counts, carry, lookahead)
        losses = {}
        first = self.config.heads[0]
        for name, log_probs in out.items():
            head = first if name == "intermediate" else name
            lengths = batch.target_lengths[head]
            loss = F.ctc_loss(
                log_probs.float().transpose(0, 1),
                batch.targets[head].to(self.device),
                steps.cpu(),
                lengths,
                reduction="sum",
                zero_infinity=True,
            )
            losses[name] = loss / max(1, int(lengths.sum()))
        lengths = batch.target_lengths[first]
        units = max(1, int(lengths.sum()))
        if self.denominator is not None:
            rest = self.denominator(out[first], steps).sum() - self.denominator.log_prior(batch.targets[first], lengths)
            losses["crf"] = losses[first] + rest / units
        if self.word_errors is not None:
            words = sum(len(text.split()) for text in batch.texts)
            losses["word_errors"] = self.word_errors(out[first], steps, batch.texts) / max(1, words)
        if self.teacher is not None:
            with self.autocast():
                losses["teacher"] = self.teacher(frames, frame_counts, out[first], steps) / units
        if self.config.consistency:
            losses["consistency"] = consistency_loss(out[first], steps) / units
        return losses, state

    def autocast(self) -> torch.autocast:
        """bf16 where the configuration says so (the loss is outside of it)."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")

    def _weighted(self, losses: dict[str, Tensor]) -> Tensor:
        weights: dict[str, float] = dict(zip(self.config.heads, self.config.head_weights, strict=True))
        weights["intermediate"] = self.config.intermediate_weight
        first = self.config.heads[0]
        weights["crf"] = weights[first] * self.config.crf
        weights["word_errors"] = self.config.word_errors
        weights["teacher"] = weights[first] * self.config.distillation
        weights["consistency"] = weights[first] * self.config.consistency
        weights[first] *= 1 - self.config.crf
        return torch.stack([losses[name] * weights[name] for name in losses]).sum()

    def _carry(self, part: int, rows: int) -> Carried | None:
        """Start a part of the rows from states that other rows ended in, as in a long stream."""
        carried = self.carried[part]
        if carried is None or not self.config.carry:
            return None
        rng = np.random.default_rng([self.config.seed, self.epoch, self.position, self.slots[part], 1])
        rows_before, device = carried[0].shape[1], carried[0].device
        views = 2 if self.config.consistency else 1  # both views of a row go on from the same state
        chosen = torch.from_numpy(rng.integers(0, rows_before, rows // views)).to(device).repeat(views)
        kept = (rng.random(rows // views) < self.config.carry).astype(np.float32)
        keep = torch.from_numpy(kept).to(device).repeat(views)[:, None]
        return tuple(t[:, chosen] * keep for t in carried)

    def _lookahead(self, slot: int) -> Sequence[int] | None:
        """One of the short ones, or None: all that the network has."""
        short = self.config.short_lookaheads
        if not short:
            return None
        rng = np.random.default_rng([self.config.seed, self.epoch, self.position, slot, 2])
        return short[int(rng.integers(len(short)))] if rng.random() < self.config.short_share else None

    def _average_gradients(self) -> float:
        """Mean over processes, clipped by norm; returns the norm before clipping (not finite: the step is skipped)."""
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        if self.world > 1:
            flat = torch.cat([g.flatten() for g in gradients])
            dist.all_reduce(flat)
            flat /= self.world
            for g, new in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
                g.copy_(new.view_as(g))
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optimizer.clip_norm)
        return float(norm)

    def _average_weights(self) -> None:
        """Exponential moving average, of a shorter memory in the first steps."""
        decay = min(self.config.optimizer.average, (1 + self.step) / (10 + self.step))
        for name, value in self.model.state_dict().items():
            self.average[name].lerp_(value.detach(), 1 - decay)

    @contextmanager
    def averaged(self) -> Iterator[AcousticModel]:
        """The model with the averaged weights, not in training mode, as long as the context lasts."""
        kept = {k: v.clone() for k, v in self.model.state_dict().items()}
        self.model.load_state_dict(self.average)
        self.model.eval()
        try:
            yield self.model
        finally:
            self.model.load_state_dict(kept)

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Write everything that a resumed run needs, atomically; collective over all processes."""
        carried: list[Any] = [None if c is None else tuple(t.cpu() for t in c) for c in self.carried]
        if self.world > 1:
            gathered: list[Any] = [None] * self.world
            dist.all_gather_object(gathered, carried)
            carried = [c for of_rank in gathered for c in of_rank]
        if self.rank:
            return
        temporary = path.with_suffix(".tmp")
        torch.save(
            {
                "config": to_dict(self.config),
                "model_config": to_dict(self.model.config),
                "vocabularies": {name: v.to_dict() for name, v in self.data.heads.items()},
                "model": self.model.state_dict(),
                "average": self.average,
                "optimizer": self.optimizer.state_dict(),
                "muon": self.muon.state_dict() if self.muon else None,
                "step": self.step,
                "epoch": self.epoch,
                "position": self.position,
                "skipped": self.skipped,
                "audio_s": self.audio_s,
                "seconds": self.seconds,
                "carried": carried,  # per slot
                "world": self.world,
                "history": self.history,
            },
            temporary,
        )
        temporary.replace(path)

    def load(self, path: Path) -> None:
        """Continue where a checkpoint stopped. Raises UsageError when it does not fit."""
        saved = read_checkpoint(path, self.device)
        shape = from_dict(ModelConfig, saved["model_config"])
        if dataclasses.replace(shape, dropout=self.model.config.dropout) != self.model.config:
            raise UsageError(f"{path} holds a model of another shape: use the configuration it was started with")
        if saved["vocabularies"] != {name: v.to_dict() for name, v in self.data.heads.items()}:
            raise UsageError(f"{path} holds a model of other units: use the configuration and data it was started with")
        self.model.load_state_dict(saved["model"])
        if bool(saved.get("muon")) != (self.muon is not None):
            raise UsageError(f"{path} was trained by another optimizer.method: keep the one it was started with")
        self.optimizer.load_state_dict(saved["optimizer"])
        if self.muon:
            self.muon.load_state_dict(saved["muon"])
        self._set_optimizer()  # these settings may be changed between the parts of a run
        self.average = {k: v.clone() for k, v in saved["average"].items()}
        self.step, self.epoch, self.position = saved["step"], saved["epoch"], saved["position"]
        self.skipped, self.audio_s, self.seconds = saved["skipped"], saved["audio_s"], saved["seconds"]
        self.history = list(saved["history"])
        self.carried = [None] * self.config.accumulate
        if len(saved["carried"]) == self.batches.all_slots:
            self.carried = [
                None if c is None else tuple(t.to(self.device) for t in c)
                for c in (saved["carried"][slot] for slot in self.slots)
            ]
        else:
            log.warning(
                "resumed with %d batches per step instead of %d: batches differ from the first run's",
                self.batches.all_slots,
                len(saved["carried"]),
            )
        if self.position >= len(self.plan()):  # other data or another number of batches
            self.epoch, self.position = self.epoch + 1, 0

    # -- the run -----------------------------------------------------------------------------------------------------

    def run(
        self,
        report: Callable[[int, dict[str, float]], None],
        evaluate: Callable[[Trainer], dict[str, float]] | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Train to the last step; ``report`` gets the scalars of every step, ``evaluate`` its results now and then.

        Returns False when ``stop`` ended it before the last step. Either way the last checkpoint is of the last step
        done. Collective: ``stop`` must say the same to all processes.
        """
        config = self.config
        saved = evaluated = time.monotonic()
        try:
            while self.step < config.optimizer.steps and not stop():
                scalars = self.train_step()
                self.history.append({k: round(v, 5) for k, v in scalars.items()})
                report(self.step, scalars)
                now = time.monotonic()
                save, test = self._agree(
                    now - saved > config.checkpoint_minutes * 60, now - evaluated > config.evaluate_minutes * 60
                )
                if save:
                    self.save(self.out / CHECKPOINT)
                    saved = time.monotonic()
                if test and evaluate is not None:
                    self._evaluate(report, evaluate)
                    evaluated = time.monotonic()
        finally:
            self.batches.close()
        self.save(self.out / CHECKPOINT)
        finished = self.step >= config.optimizer.steps
        if evaluate is not None and finished:
            self._evaluate(report, evaluate)
        return finished

    def _agree(self, *flags: bool) -> list[bool]:
        """What rank 0 decides: saving is collective, and clocks differ."""
        if self.world == 1:
            return list(flags)
        decided = torch.tensor(flags, dtype=torch.uint8)
        dist.broadcast(decided, 0)
        return [bool(flag) for flag in decided]

    def _evaluate(
        self, report: Callable[[int, dict[str, float]], None], evaluate: Callable[[Trainer], dict[str, float]]
    ) -> None:
        if self.rank == 0:
            report(self.step, evaluate(self))


def _denominator(config: TrainConfig, data: TrainingSet, device: torch.device) -> Denominator | None:
    """Over the units of the first head, from the texts that are trained on."""
    first = config.heads[0]
    if not config.crf:
        return None
    return Denominator(unit_trigram(data.targets[first], len(data.heads[first]))).to(device)


def _word_errors(config: TrainConfig, data: TrainingSet) -> ExpectedWordErrors | None:
    """Of the first head."""
    first = config.heads[0]
    if not config.word_errors:
        return None
    return ExpectedWordErrors(word_search(find_model(config.word_model), first, data.heads[first]))


def _teacher(config: TrainConfig, data: TrainingSet, device: torch.device) -> Teacher | None:
    """Of the first head."""
    first = config.heads[0]
    if not config.distillation:
        return None
    teachers = [find_model(name) for name in (config.teacher, *config.more_teachers)]
    return Teacher(teachers, first, data.heads[first], config.features, device)


def _seed(*numbers: int) -> int:
    """A seed for torch that is a function of the numbers, in every process and version of Python."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def read_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The content of a checkpoint. Raises UsageError when it is missing, damaged or of another format."""
    try:
        saved = torch.load(path, map_location=device, weights_only=True)
        if isinstance(saved, dict) and {"model", "average", "optimizer", "carried", "world", "history"} <= set(saved):
            return saved
        reason = "it is not a checkpoint of a training run"
    except OSError as error:
        reason = str(error.strerror)
    except Exception as error:  # what torch.load raises depends on how the file is damaged
        reason = f"it is damaged: {' '.join(str(error).split())[:80]}"
    raise UsageError(f"cannot resume from {path}: {reason}; start again with another --out")


def own_device(device: str) -> str:
    """The device of this process: one GPU each under torchrun. Raises UsageError when it is not there."""
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise UsageError(f"unknown device '{device}': use cpu or cuda") from None
    if kind != "cuda":
        return device
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    number = int(os.environ.get("LOCAL_RANK", "0")) if device == "cuda" else torch.device(device).index
    if number >= count:
        raise UsageError(f"there are {count} GPUs, number {number} is not among them: use --device cpu or fewer")
    torch.cuda.set_device(number)
    return f"cuda:{number}"


def initialise_processes(device: str = "cpu") -> tuple[int, int]:
    """Rank and world size as torchrun set them; joins the process group when there are several."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    if world > 1 and not dist.is_initialized():
        # This module keeps the group that it finds when it is imported, which the first optimiser does; such a group
        # is never destroyed, and its threads sometimes abort the process at its exit. So it must find none.
        importlib.import_module("torch.distributed.nn.functional")
        # Flags and states travel through gloo also where gradients travel through NCCL.
        backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
        dist.init_process_group(backend, timeout=_PATIENCE)
    return rank, world


def wait_for_all(world: int) -> None:
    """Return when every process has come here."""
    if world > 1:
        dist.all_reduce(torch.zeros(1))  # dist.barrier would take a GPU of its own choice


def greedy_errors(trainer: Trainer, batches: Sequence[Batch]) -> dict[str, float]:
    """Unit error rate of every head, best path, averaged weights; over ``batches``."""
    from asr.decoding.greedy import best_path
    from asr.training.metrics import edit_distance

    errors = dict.fromkeys(trainer.data.heads, 0)
    total = dict.fromkeys(trainer.data.heads, 0)
    with trainer.averaged() as model, torch.no_grad(), trainer.autocast():
        for batch in batches:
            out, steps, _ = model(batch.frames.to(trainer.device), batch.lengths.to(trainer.device))
            for name in trainer.data.heads:
                references = batch.targets[name].split(batch.target_lengths[name].tolist())
                for log_probs, count, reference in zip(out[name], steps.tolist(), references, strict=True):
                    errors[name] += edit_distance(reference.tolist(), best_path(log_probs[:count]))
                    total[name] += len(reference)
    return {f"{name}_error": errors[name] / max(1, total[name]) for name in errors}
