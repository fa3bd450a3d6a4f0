"""Training: CTC on one or several heads, any number of processes (torchrun), exact resume.

Every random choice is a function of (seed, step, rank); together with the checkpoint that makes an interrupted and
resumed run give the weights of one that was not interrupted.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import time
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from asr.config import from_dict, require, to_dict
from asr.errors import ConfigError, UsageError
from asr.features import FeatureConfig
from asr.model import AcousticModel, ModelConfig
from asr.training.batches import AugmentConfig, Batch, BatchMaker, BatchPlan, TrainingSet
from asr.training.cache import ViewConfig

log = logging.getLogger("asr.train")
CHECKPOINT = "checkpoint.pt"


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with a schedule of warm-up, hold and decay (cosine to ``final_rate``), all in steps."""

    peak_rate: float = 1e-3
    final_rate: float = 1e-5
    warmup: int = 300
    hold: int = 2000
    decay: int = 2000
    weight_decay: float = 1e-2
    betas: tuple[float, float] = (0.9, 0.98)
    clip_norm: float = 2.0
    average: float = 0.998

    def __post_init__(self) -> None:
        require(self.peak_rate > 0 and self.final_rate >= 0, "optimizer: rates must be positive")
        require(min(self.warmup, self.hold, self.decay) >= 0 and self.steps > 0, "optimizer: needs at least one step")
        require(0 <= self.average < 1, f"optimizer.average must be 0 to 1, got {self.average}")
        require(self.clip_norm > 0, "optimizer.clip_norm must be positive")

    @property
    def steps(self) -> int:
        """Length of the whole run."""
        return self.warmup + self.hold + self.decay

    def rate(self, step: int) -> float:
        """Learning rate of step ``step`` (from 0)."""
        if step < self.warmup:
            return self.peak_rate * (step + 1) / self.warmup
        done = (step - self.warmup - self.hold) / max(1, self.decay)
        if done <= 0:
            return self.peak_rate
        return self.final_rate + (self.peak_rate - self.final_rate) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


@dataclass(frozen=True)
class TrainConfig:
    """A whole training run; read from TOML by :func:`read_config`.

    ``noise``: table of sounds without speech; ``rooms``: table of impulse responses; ``lexicon``: CMUdict or a .lex
    file (default: that of the model ``en``); ``words``: further words of the exported lexicon; ``cache``: folder of
    the features (default: in the run's folder). ``carry``: share of rows that start from the state others ended in.
    """

    model: dict[str, Any] = field(default_factory=dict)
    features: FeatureConfig = field(default_factory=FeatureConfig)
    views: ViewConfig = field(default_factory=ViewConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    heads: tuple[Literal["phones", "characters", "bpe"], ...] = ("phones", "characters")
    head_weights: tuple[float, ...] = (0.7, 0.3)
    intermediate_weight: float = 0.3
    bpe_size: int = 256
    batch_seconds: float = 400.0
    fewest_rows: int = 1
    accumulate: int = 1
    carry: float = 0.3
    seed: int = 1
    precision: Literal["bf16", "fp32"] = "bf16"
    noise: str = ""
    rooms: str = ""
    lexicon: str = ""
    words: str = ""
    cache: str = ""
    checkpoint_minutes: float = 5.0
    evaluate_minutes: float = 15.0

    def __post_init__(self) -> None:
        require(len(self.heads) > 0 and len(set(self.heads)) == len(self.heads), "heads: name at least one, none twice")
        require(len(self.head_weights) == len(self.heads), "head_weights needs one weight per head")
        require(self.batch_seconds >= 1, "batch_seconds must be at least 1")
        require(self.fewest_rows >= 1, "fewest_rows must be at least 1")
        require(self.accumulate >= 1, "accumulate must be at least 1")
        require(0 <= self.carry <= 1, "carry is a probability: 0 to 1")


def read_config(path: Path) -> TrainConfig:
    """Read a TOML configuration; relative paths in it are relative to its folder. Raises ConfigError."""
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
    try:
        config = from_dict(TrainConfig, values)
        model_config(config, {name: 2 for name in config.heads})  # so that a bad model table is found before any work
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    here: dict[str, Any] = {
        name: str((path.parent / value).resolve())
        for name in ("noise", "rooms", "lexicon", "words", "cache")
        if (value := getattr(config, name))
    }
    return dataclasses.replace(config, **here)


def model_config(config: TrainConfig, heads: dict[str, int]) -> ModelConfig:
    """The model table of a training configuration, with the sizes of its heads."""
    require("heads" not in config.model, "model.heads follows from 'heads': leave it out")
    return from_dict(ModelConfig, {**config.model, "heads": heads, "mels": config.features.mels}, "model")


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
        self.data = data
        self.maker = maker
        self.out = out
        self.rank = rank
        self.world = world
        decayed = [p for p in model.parameters() if p.dim() > 1]
        plain = [p for p in model.parameters() if p.dim() <= 1]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": config.optimizer.weight_decay},
                {"params": plain, "weight_decay": 0.0},
            ],
            lr=config.optimizer.peak_rate,
            betas=config.optimizer.betas,
        )
        self.average = {k: v.detach().clone() for k, v in model.state_dict().items()}
        self.step = 0
        self.epoch = 0
        self.position = 0  # steps done in this epoch
        self.skipped = 0
        self.audio_s = 0.0
        self.seconds = 0.0
        self.carried: tuple[Tensor, Tensor] | None = None
        self.history: list[dict[str, float]] = []
        self._plan: BatchPlan | None = None
        if world > 1:
            for tensor in model.state_dict().values():
                dist.broadcast(tensor, 0)

    # -- one step ----------------------------------------------------------------------------------------------------

    def plan(self) -> BatchPlan:
        """The batches of the running epoch."""
        if self._plan is None:
            self._plan = BatchPlan(
                self.data,
                self.config.augment,
                self.config.batch_seconds,
                self.config.seed,
                self.epoch,
                self.world * self.config.accumulate,
                fewest_rows=self.config.fewest_rows,
            )
            if len(self._plan) == 0:
                raise UsageError(
                    f"{len(self.data)} utterances do not fill a batch of {self.config.batch_seconds:g} s "
                    f"for each of {self.world} processes: lower batch_seconds or give more data"
                )
        return self._plan

    def train_step(self) -> dict[str, float]:
        """Forward, backward, update. Returns the scalars of the step."""
        began = time.monotonic()
        config = self.config
        plan = self.plan()
        torch.manual_seed(hash((config.seed, self.step, self.rank)) & 0x7FFFFFFF)
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        scalars: dict[str, float] = {}
        for part in range(config.accumulate):
            rng = np.random.default_rng([config.seed, self.epoch, self.position, self.rank, part])
            rows = plan.rows(self.position, self.rank * config.accumulate + part)
            batch = self.maker.make(rows, rng)
            losses = self.losses(batch, rng)
            total = self._weighted(losses)
            (total / config.accumulate).backward()  # type: ignore[no-untyped-call]
            self.audio_s += float(batch.lengths.sum()) * 0.02 * self.world
            for name, value in {**losses, "loss": total}.items():
                scalars[name] = scalars.get(name, 0.0) + float(value.detach()) / config.accumulate
        norm = self._average_gradients()
        rate = config.optimizer.rate(self.step)
        if math.isfinite(norm):
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.step()
            self._average_weights()
        else:
            self.skipped += 1
            self.carried = None
        self.step += 1
        self.position += 1
        if self.position >= len(plan):
            self.epoch, self.position, self._plan = self.epoch + 1, 0, None
        self.seconds += time.monotonic() - began
        return {
            **scalars,
            "gradient_norm": norm,
            "learning_rate": rate,
            "epoch": float(self.epoch),
            "skipped": float(self.skipped),
            "audio_h": self.audio_s / 3600,
            "hours": self.seconds / 3600,
            "step_s": time.monotonic() - began,
        }

    def losses(self, batch: Batch, rng: np.random.Generator | None = None) -> dict[str, Tensor]:
        """CTC loss per head, in nats per target unit."""
        carry = self._carry(len(batch.lengths), rng) if rng is not None else None
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            out, steps, state = self.model(batch.frames.to(self.device), batch.lengths.to(self.device), carry)
        if rng is not None and self.config.carry and not self.model.config.bidirectional:
            self.carried = state[0].detach().float(), state[1].detach().float()
        if "intermediate" in out:
            first = self.config.heads[0]
            batch.targets["intermediate"] = batch.targets[first]
            batch.target_lengths["intermediate"] = batch.target_lengths[first]
        losses = {}
        for name, log_probs in out.items():
            lengths = batch.target_lengths[name]
            loss = F.ctc_loss(
                log_probs.float().transpose(0, 1),
                batch.targets[name].to(self.device),
                steps.cpu(),
                lengths,
                reduction="sum",
                zero_infinity=True,
            )
            losses[name] = loss / max(1, int(lengths.sum()))
        return losses

    def _weighted(self, losses: dict[str, Tensor]) -> Tensor:
        weights: dict[str, float] = dict(zip(self.config.heads, self.config.head_weights, strict=True))
        weights["intermediate"] = self.config.intermediate_weight
        return torch.stack([losses[name] * weights[name] for name in losses]).sum()

    def _carry(self, rows: int, rng: np.random.Generator) -> tuple[Tensor, Tensor] | None:
        """Start a part of the rows from states that other rows ended in, as in a long stream."""
        if self.carried is None or not self.config.carry:
            return None
        h, c = self.carried
        chosen = torch.from_numpy(rng.integers(0, h.shape[1], rows)).to(h.device)
        keep = torch.from_numpy((rng.random(rows) < self.config.carry).astype(np.float32)).to(h.device)[:, None]
        return h[:, chosen] * keep, c[:, chosen] * keep

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
        decay = min(self.config.optimizer.average, (1 + self.step) / (10 + self.step))
        for name, value in self.model.state_dict().items():
            self.average[name].lerp_(value.detach(), 1 - decay)

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Write everything that a resumed run needs, atomically; collective over all processes."""
        carried: list[Any] = [self.carried]
        if self.world > 1:
            carried = [None] * self.world
            dist.all_gather_object(carried, self.carried)
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
                "step": self.step,
                "epoch": self.epoch,
                "position": self.position,
                "skipped": self.skipped,
                "audio_s": self.audio_s,
                "seconds": self.seconds,
                "carried": carried,
                "world": self.world,
                "history": self.history,
            },
            temporary,
        )
        temporary.replace(path)

    def load(self, path: Path) -> None:
        """Continue where a checkpoint stopped. Raises UsageError when it does not fit."""
        saved = torch.load(path, map_location=self.device, weights_only=True)
        shape = from_dict(ModelConfig, saved["model_config"])
        if dataclasses.replace(shape, dropout=self.model.config.dropout) != self.model.config:
            raise UsageError(f"{path} holds a model of another shape: use the configuration it was started with")
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.average = {k: v.clone() for k, v in saved["average"].items()}
        self.step, self.epoch, self.position = saved["step"], saved["epoch"], saved["position"]
        self.skipped, self.audio_s, self.seconds = saved["skipped"], saved["audio_s"], saved["seconds"]
        self.history = saved["history"]
        same_world = saved["world"] == self.world
        self.carried = saved["carried"][self.rank] if same_world else None
        if not same_world:
            log.warning(
                "resumed on %d processes instead of %d: batches differ from the first run's", self.world, saved["world"]
            )

    # -- the run -----------------------------------------------------------------------------------------------------

    def run(
        self,
        report: Callable[[int, dict[str, float]], None],
        evaluate: Callable[[Trainer], dict[str, float]] | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Train to the last step; ``report`` gets the scalars of every step, ``evaluate`` its results now and then."""
        config = self.config
        saved = evaluated = time.monotonic()
        while self.step < config.optimizer.steps and not stop():
            scalars = self.train_step()
            self.history.append({k: round(v, 5) for k, v in scalars.items()})
            report(self.step, scalars)
            now = torch.tensor([time.monotonic()], dtype=torch.float64)
            if self.world > 1:
                dist.broadcast(now, 0)  # one clock decides for all
            if float(now) - saved > config.checkpoint_minutes * 60:
                saved = float(now)
                self.save(self.out / CHECKPOINT)
            if evaluate is not None and float(now) - evaluated > config.evaluate_minutes * 60:
                evaluated = float(now)
                self._evaluate(report, evaluate)
        self.save(self.out / CHECKPOINT)
        if evaluate is not None:
            self._evaluate(report, evaluate)

    def _evaluate(
        self, report: Callable[[int, dict[str, float]], None], evaluate: Callable[[Trainer], dict[str, float]]
    ) -> None:
        if self.rank == 0:
            report(self.step, evaluate(self))


def initialise_processes() -> tuple[int, int]:
    """Rank and world size as torchrun set them; joins the process group when there are several."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    if world > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return rank, world


def greedy_errors(trainer: Trainer, batches: Sequence[Batch]) -> dict[str, float]:
    """Unit error rate of every head, best path, averaged weights; over ``batches``."""
    from asr.decoding.greedy import best_path
    from asr.training.metrics import edit_distance

    model = trainer.model
    kept = {k: v.clone() for k, v in model.state_dict().items()}
    model.load_state_dict(trainer.average)
    model.eval()
    errors: dict[str, int] = {name: 0 for name in trainer.data.heads}
    total: dict[str, int] = {name: 0 for name in trainer.data.heads}
    with (
        torch.no_grad(),
        torch.autocast(trainer.device.type, torch.bfloat16, enabled=trainer.config.precision == "bf16"),
    ):
        for batch in batches:
            out, steps, _ = model(batch.frames.to(trainer.device), batch.lengths.to(trainer.device))
            for name in trainer.data.heads:
                references = batch.targets[name].split(batch.target_lengths[name].tolist())
                for log_probs, count, reference in zip(out[name], steps.tolist(), references, strict=True):
                    errors[name] += edit_distance(reference.tolist(), best_path(log_probs[:count]))
                    total[name] += len(reference)
    model.load_state_dict(kept)
    return {f"{name}_error": errors[name] / max(1, total[name]) for name in errors}
