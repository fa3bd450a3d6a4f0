"""The configuration of a training run: dataclasses read from TOML. ``docs/training.md`` has the table of all keys."""

from __future__ import annotations

import dataclasses
import math
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from asr.config import from_dict, require
from asr.errors import ConfigError
from asr.features import FeatureConfig
from asr.model import ModelConfig
from asr.training.batches import AugmentConfig
from asr.training.cache import ViewConfig


@dataclass(frozen=True)
class OptimizerConfig:
    """A schedule of warm-up, hold and decay (cosine to ``final_rate``), all in steps. ``method``: AdamW for all, or
    Muon (:mod:`asr.training.muon`) for the matrices between front end and heads."""

    method: Literal["adamw", "muon"] = "adamw"
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
        require(self.weight_decay >= 0, "optimizer.weight_decay must not be negative")
        require(all(0 <= b < 1 for b in self.betas), "optimizer.betas must be 0 to 1")
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

    ``model`` holds the keys of :class:`~asr.model.ModelConfig` but ``heads`` and ``mels``, which follow from ``heads``
    and ``features`` here. ``deepen``: layers of the model that the run starts from, counted from 1, behind which new
    ones are put at first (:mod:`asr.training.deepen`). ``head_weights`` of the losses; ``crf``: share of CTC-CRF in the
    loss of the first head (:mod:`asr.training.crf`), the rest is CTC; ``consistency``: weight of CR-CTC
    (:mod:`asr.training.consistency`), for which every row comes twice in a batch; ``distillation``: weight, in the loss
    of the first head, of what the model ``teacher``, or it and ``more_teachers``, say of every step
    (:mod:`asr.training.distillation`); ``word_errors``: weight of the expected word errors per word
    (:mod:`asr.training.word_errors`), with the lexicon and language model of ``word_model``; ``aligner``: the model
    that finds the words for ``augment.cut`` (:mod:`asr.training.word_places`) and, with ``pronunciations`` ``heard``,
    which of a word's pronunciations was said (:mod:`asr.training.pronunciations`; ``first``: the lexicon's first one
    always); ``batch_seconds``: audio per process and batch, padding included; ``fewest_rows`` of a batch, also when
    they are longer than that; ``accumulate``: batches per step and process.
    ``corpora``: how many times in an epoch the utterances of a corpus come (a manifest's column ``corpus``; 1 where it
    is not named). ``carry``: share of rows that start from the state others ended in. ``short_lookaheads``: further,
    shorter values of ``model.lookahead``; ``short_share`` of the batches are trained with one of them, so that the
    network can be used with any. ``noise``: table of sounds without speech; ``made_noises``: how many computed ones are
    added (:mod:`asr.training.made_sounds`); ``rooms``: table of impulse responses; ``lexicon``: CMUdict or a .lex file
    (default: that of the model ``en``); ``words``: further words of the exported lexicon; ``cache``: folder of the
    features (default: in the run's folder). ``lstm``: the pass of LSTM layers on a CPU in bf16, torch's own or the
    compiled one of :mod:`asr.training.compiled_lstm`. ``workers``: processes that compute features (0: one per core);
    ``prefetch``: batches made ahead by threads (-1: some on a GPU, none on a CPU, where the threads would take the
    cores from the training).
    """

    model: dict[str, Any] = field(default_factory=dict)
    features: FeatureConfig = field(default_factory=FeatureConfig)
    views: ViewConfig = field(default_factory=ViewConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    heads: tuple[Literal["phones", "characters", "bpe"], ...] = ("phones", "characters")
    head_weights: tuple[float, ...] = (0.7, 0.3)
    deepen: tuple[int, ...] = ()
    crf: float = 0.0
    consistency: float = 0.0
    distillation: float = 0.0
    teacher: str = "en"
    more_teachers: tuple[str, ...] = ()
    aligner: str = "en"
    pronunciations: Literal["first", "heard"] = "first"
    word_errors: float = 0.0
    word_model: str = "en"
    intermediate_weight: float = 0.3
    bpe_size: int = 256
    batch_seconds: float = 400.0
    fewest_rows: int = 1
    accumulate: int = 1
    corpora: dict[str, float] = field(default_factory=dict)
    carry: float = 0.3
    short_lookaheads: tuple[tuple[int, ...], ...] = ()
    short_share: float = 0.4
    seed: int = 1
    precision: Literal["bf16", "fp32"] = "bf16"
    lstm: Literal["torch", "compiled"] = "torch"
    noise: str = ""
    made_noises: int = 0
    rooms: str = ""
    lexicon: str = ""
    words: str = ""
    cache: str = ""
    workers: int = 0
    prefetch: int = -1
    checkpoint_minutes: float = 5.0
    evaluate_minutes: float = 15.0

    def __post_init__(self) -> None:
        require(len(self.heads) > 0 and len(set(self.heads)) == len(self.heads), "heads: name at least one, none twice")
        require(len(self.head_weights) == len(self.heads), "head_weights needs one weight per head")
        require(self.batch_seconds >= 1, "batch_seconds must be at least 1")
        require(self.fewest_rows >= 1, "fewest_rows must be at least 1")
        require(self.accumulate >= 1, "accumulate must be at least 1")
        require(0 <= self.short_share <= 1, "short_share is a probability: 0 to 1")
        require(0 <= self.carry <= 1, "carry is a probability: 0 to 1")
        require(all(w >= 0 for w in self.head_weights), "head_weights must not be negative")
        require(sum(self.head_weights) > 0, "head_weights: at least one must be positive")
        require(0 <= self.crf <= 1, f"crf is a share of the loss: 0 to 1, got {self.crf}")
        require(self.consistency >= 0, "consistency must not be negative")
        require(self.distillation >= 0, "distillation must not be negative")
        require(self.word_errors >= 0, "word_errors must not be negative")
        require(self.intermediate_weight >= 0, "intermediate_weight must not be negative")
        require(self.made_noises >= 0, "made_noises must not be negative")
        for name, often in self.corpora.items():
            require(0 <= often < math.inf, f"corpora.{name} must be a number from 0, got {often}")
        require(self.seed >= 0, "seed must not be negative")
        require(self.workers >= 0, "workers must not be negative (0: one per core)")
        require(self.prefetch >= -1, "prefetch must be a number of batches, or -1 (chosen by the device)")
        require(self.checkpoint_minutes > 0, "checkpoint_minutes must be positive")
        require(self.evaluate_minutes > 0, "evaluate_minutes must be positive")


def read_toml(path: Path) -> dict[str, Any]:
    """The content of a configuration file. Raises ConfigError."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None


def read_config(path: Path) -> TrainConfig:
    """Read a TOML configuration; relative paths in it are relative to its folder. Raises ConfigError."""
    values = read_toml(path)
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
    require("mels" not in config.model, "model.mels follows from 'features.mels': leave it out")
    shape = from_dict(ModelConfig, {**config.model, "heads": heads, "mels": config.features.mels}, "model")
    require(not shape.widest_lookahead, "model.widest_lookahead is for a trained model: give the widest as lookahead")
    for short in config.short_lookaheads:
        shape.with_lookahead(short)
    return shape
