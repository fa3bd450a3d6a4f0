"""Log-mel features: one implementation for streaming and offline use.

Framing is causal: frame ``t`` ends at sample ``(t + 1) * hop`` and looks back over one window, with zeros before the
first sample, so a frame is ready as soon as its 20 ms have been heard. Offline is *defined* as
``begin`` + one ``step`` with everything + ``end``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from asr.config import require
from asr.errors import StateError

FRAME_MS = 20
SAMPLE_RATE = 16_000
HOP = SAMPLE_RATE * FRAME_MS // 1000


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


@dataclass
class FeatureState:
    """What framing remembers: ``samples`` (batch, history + pending), pending < one hop; all rows alike."""

    samples: Tensor

    def __len__(self) -> int:
        return int(self.samples.shape[0])

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.samples.numel() * self.samples.element_size()

    @staticmethod
    def stack(states: list[FeatureState]) -> FeatureState:
        """Join rows of states that hold equally many pending samples; raises StateError otherwise."""
        if len({s.samples.shape[1] for s in states}) != 1:
            raise StateError("feature states with different numbers of pending samples cannot share a batch")
        return FeatureState(torch.cat([s.samples for s in states]))

    def rows(self, start: int, stop: int) -> FeatureState:
        """A copy of rows ``start`` to ``stop``."""
        return FeatureState(self.samples[start:stop].clone())


class LogMel:
    """Turns samples into log-mel frames (not normalised; the model holds global mean and deviation).

    The filter bank is torchaudio's (Slaney's mel scale, triangular, unit peak).
    """

    def __init__(self, config: FeatureConfig | None = None, device: str | torch.device = "cpu") -> None:
        self.config = config or FeatureConfig()
        self.device = torch.device(device)

    @cached_property
    def _window(self) -> Tensor:
        return torch.hann_window(self.config.window, periodic=False, device=self.device)

    @cached_property
    def _bank(self) -> Tensor:
        from torchaudio.functional import melscale_fbanks

        c = self.config
        bank = melscale_fbanks(self._fft_size // 2 + 1, c.low_hz, c.high_hz, c.mels, SAMPLE_RATE, None, "slaney")
        return bank.to(self.device)

    @cached_property
    def _fft_size(self) -> int:
        return 1 << (self.config.window - 1).bit_length()

    def begin(self, batch: int = 1) -> FeatureState:
        """State of ``batch`` streams before their first sample."""
        return FeatureState(torch.zeros(batch, self.config.history, device=self.device))

    def step(self, samples: Tensor, state: FeatureState) -> tuple[Tensor, FeatureState]:
        """``samples``: (batch, n) float32 at 16 kHz, any n. Returns (batch, frames, mels) and the new state."""
        if samples.dim() != 2 or samples.shape[0] != len(state):
            raise StateError(f"expected ({len(state)}, n) samples, got {tuple(samples.shape)}")
        joined = torch.cat([state.samples, samples.to(state.samples)], dim=1)
        frames = (joined.shape[1] - self.config.history) // HOP
        if frames == 0:
            return joined.new_zeros(joined.shape[0], 0, self.config.mels), FeatureState(joined)
        windows = joined.unfold(1, self.config.window, HOP)[:, :frames]
        features = self._log_mel(windows)
        return features, FeatureState(joined[:, frames * HOP :].clone())

    def end(self, state: FeatureState) -> tuple[Tensor, FeatureState]:
        """Flush: a started hop is completed with zeros. Returns (batch, 0 or 1, mels) and a fresh state."""
        pending = state.samples.shape[1] - self.config.history
        if pending == 0:
            return state.samples.new_zeros(len(state), 0, self.config.mels), self.begin(len(state))
        padding = state.samples.new_zeros(len(state), HOP - pending)
        features, _ = self.step(padding, state)
        return features, self.begin(len(state))

    def __call__(self, samples: Tensor) -> Tensor:
        """Offline: (batch, n) samples to (batch, ceil(n / 320), mels)."""
        head, state = self.step(samples, self.begin(samples.shape[0]))
        tail, _ = self.end(state)
        return torch.cat([head, tail], dim=1)

    def _log_mel(self, windows: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(windows * self._window, n=self._fft_size)
        power = spectrum.real.square() + spectrum.imag.square()
        return torch.log(power @ self._bank + self.config.floor)
