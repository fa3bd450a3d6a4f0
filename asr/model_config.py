"""Shapes and clocks of features and network, apart from both, so that reading a model's configuration needs no torch.

One clock: samples at 16 kHz, frames of 20 ms, steps of two frames; each is derived from the one before it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from asr.audio.resample import SAMPLE_RATE
from asr.config import require

FRAME_MS = 20
HOP = SAMPLE_RATE * FRAME_MS // 1000
FRAMES_PER_STEP = 2
STEP_MS = FRAME_MS * FRAMES_PER_STEP


@dataclass(frozen=True)
class FeatureConfig:
    """Log-mel front end. ``window_ms`` of signal are looked at every ``FRAME_MS``; ``floor`` is added to mel power."""

    mels: int = 80
    window_ms: int = 32
    low_hz: float = 20.0
    high_hz: float = 7800.0
    floor: float = 1e-6

    def __post_init__(self) -> None:
        require(8 <= self.mels <= 128, f"features.mels must be 8 to 128, got {self.mels}")
        require(FRAME_MS <= self.window_ms <= 64, f"features.window_ms must be {FRAME_MS} to 64, got {self.window_ms}")
        require(0 <= self.low_hz < self.high_hz <= SAMPLE_RATE / 2, "features: need 0 <= low_hz < high_hz <= 8000")
        require(self.floor > 0, "features.floor must be positive")

    @property
    def window(self) -> int:
        """Window length in samples."""
        return SAMPLE_RATE * self.window_ms // 1000

    @property
    def history(self) -> int:
        """Samples before a frame's own 20 ms that its window reaches back to."""
        return self.window - HOP


@dataclass(frozen=True)
class ModelConfig:
    """Shape of an :class:`AcousticModel`.

    ``heads`` maps a head's name to its number of units (blank included). ``lookahead`` has one entry per recurrent
    layer: how many future steps the look-ahead layer after it sees (0: none). ``lookahead_stride``: distance of its
    taps in steps. ``widest_lookahead``: what the look-ahead layers have weights for, where ``lookahead`` uses a part of
    them (the nearer taps, or the present step alone); empty: all is used. ``intermediate`` is the recurrent layer (from
    1) after which a training-only copy of the first head sits; 0 means none. ``running_mean``: share of the mean of the
    frames heard so far that is taken from every frame (:mod:`asr.running_mean`), ``running_mean_s``: seconds of audio
    that the global mean counts for in it, ``running_mean_memory_s``: seconds in which a frame's weight falls to 1/e,
    ``running_mean_loudness``: how much more a loud frame counts in it (0: all alike).
    """

    heads: dict[str, int]
    mels: int = 80
    channels: int = 32
    hidden: int = 448
    layers: int = 4
    cell: Literal["lstm", "gru", "rnn"] = "lstm"
    bidirectional: bool = False
    lookahead: tuple[int, ...] = (0, 4, 0, 4)
    lookahead_stride: int = 2
    widest_lookahead: tuple[int, ...] = ()
    intermediate: int = 0
    dropout: float = 0.2
    running_mean: float = 0.0
    running_mean_s: float = 3.0
    running_mean_memory_s: float = 30.0
    running_mean_loudness: float = 1.5

    def __post_init__(self) -> None:
        require(len(self.heads) > 0, "model.heads needs at least one head")
        require(all(n >= 2 for n in self.heads.values()), "model.heads: every head needs at least two units")
        require(self.mels % 4 == 0, f"model.mels must be a multiple of 4, got {self.mels}")
        require(1 <= self.layers <= 12, f"model.layers must be 1 to 12, got {self.layers}")
        require(self.hidden > 0 and self.channels > 0, "model.hidden and model.channels must be positive")
        require(
            len(self.lookahead) == self.layers,
            f"model.lookahead needs one entry per layer ({self.layers}), got {len(self.lookahead)}",
        )
        require(self.lookahead_stride >= 1, "model.lookahead_stride must be at least 1")
        require(
            all(n >= 0 and n % self.lookahead_stride == 0 for n in self.lookahead),
            f"model.lookahead entries must be multiples of model.lookahead_stride ({self.lookahead_stride})",
        )
        if self.widest_lookahead:
            self._check_part()
        require(0 <= self.intermediate < max(2, self.layers), "model.intermediate must be 0 or a layer below the last")
        require(0 <= self.dropout < 1, f"model.dropout must be 0 to 1, got {self.dropout}")
        require(0 <= self.running_mean <= 1, f"model.running_mean must be 0 to 1, got {self.running_mean}")
        require(0 <= self.running_mean_s < math.inf, "model.running_mean_s must be seconds, 0 or more")
        require(
            FRAME_MS / 1000 <= self.running_mean_memory_s <= 3600,
            f"model.running_mean_memory_s must be {FRAME_MS / 1000} to 3600, got {self.running_mean_memory_s}",
        )
        require(
            0 <= self.running_mean_loudness <= 10,
            f"model.running_mean_loudness must be 0 to 10, got {self.running_mean_loudness}",
        )
        require(not self.bidirectional or self.hidden % 2 == 0, "model.hidden must be even when bidirectional")

    def _check_part(self) -> None:
        widest = self.widest_lookahead
        require(len(widest) == self.layers, f"model.widest_lookahead needs one entry per layer ({self.layers})")
        require(all(n % self.lookahead_stride == 0 for n in widest), "model.widest_lookahead: multiples of the stride")
        require(
            all(n <= w for n, w in zip(self.lookahead, widest, strict=True)),
            f"model.lookahead {list(self.lookahead)} reaches beyond model.widest_lookahead {list(widest)}",
        )

    def with_lookahead(self, lookahead: Sequence[int]) -> ModelConfig:
        """The same weights with fewer taps of the look-ahead layers. Raises ConfigError where there are no such."""
        widest = self.widest_lookahead or self.lookahead
        return replace(self, lookahead=tuple(lookahead), widest_lookahead=widest)

    @property
    def lookahead_layers(self) -> tuple[int, ...]:
        """The recurrent layers that a look-ahead layer follows."""
        return tuple(i for i, n in enumerate(self.widest_lookahead or self.lookahead) if n)

    @property
    def lookahead_steps(self) -> int:
        """Future steps that an output depends on, over all layers."""
        return sum(self.lookahead)

    @property
    def lookahead_ms(self) -> int:
        """Future audio in ms beyond a step's own that its output depends on."""
        return self.lookahead_steps * STEP_MS

    @property
    def algorithmic_latency_ms(self) -> int:
        """Longest wait, in ms of audio, from a sample until the output of its step can be computed."""
        return STEP_MS + self.lookahead_ms

    @property
    def has_cell_state(self) -> bool:
        """Whether the recurrent cell carries a second state tensor."""
        return self.cell == "lstm"
