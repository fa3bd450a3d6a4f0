"""Log-mel features: one implementation for streaming and offline use.

Framing is causal: frame ``t`` ends at sample ``(t + 1) * hop`` and looks back over one window, with zeros before the
first sample, so a frame is ready as soon as its 20 ms have been heard. Offline is *defined* as
``begin`` + one ``step`` with everything + ``end``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from asr.audio.resample import SAMPLE_RATE
from asr.errors import StateError
from asr.model_config import FRAME_MS, HOP, FeatureConfig

__all__ = ["FRAME_MS", "HOP", "SAMPLE_RATE", "FeatureConfig", "FeatureState", "LogMel"]


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

    def clone(self) -> FeatureState:
        """A copy that shares nothing."""
        return FeatureState(self.samples.clone())


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

    def step_many(
        self, samples: Sequence[Tensor], states: Sequence[FeatureState]
    ) -> tuple[list[Tensor], list[FeatureState]]:
        """As :meth:`step` for streams that bring different numbers of samples, in one computation: ``samples``: (n_i,)
        of each, ``states``: of one row each. Returns (frames_i, mels) of each, and the new states."""
        joined = [torch.cat([state.samples[0], x.to(state.samples)]) for x, state in zip(samples, states, strict=True)]
        counts = [(len(x) - self.config.history) // HOP for x in joined]
        windows = [x.unfold(0, self.config.window, HOP)[:n] for x, n in zip(joined, counts, strict=True) if n]
        if windows:
            given = self._log_mel(torch.cat(windows)).split(counts)
        else:
            given = (torch.zeros(0, self.config.mels, device=self.device),) * len(joined)
        left = [FeatureState(x[None, n * HOP :].clone()) for x, n in zip(joined, counts, strict=True)]
        return list(given), left

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
