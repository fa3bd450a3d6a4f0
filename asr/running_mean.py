"""Adaptation to voice and room that streams: normalised log-mel frames minus a share of their running mean.

The mean is that of the frames heard so far, each band by itself. The global mean, which is 0 after normalisation,
counts as some seconds of audio that never fade, so a stream begins with the global statistics; frames fade with a time
constant, so a new voice replaces the old one. (Cepstral mean subtraction, Atal 1974, in its recursive form, Viikki and
Laurila 1998.) What is remembered has one size: the sum of the frames and the number of them, both faded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from asr.model_config import FRAME_MS, ModelConfig

__all__ = ["RunningMean", "width"]

_BLOCK = 64  # frames whose sums are one product


def width(config: ModelConfig) -> int:
    """Numbers that a stream remembers: a sum for each band and the count; 0 without a running mean."""
    return config.mels + 1 if config.running_mean else 0


@dataclass(frozen=True)
class RunningMean:
    """``x_t - share * s_t / (n_t + prior)`` with ``s_t = decay * s_{t-1} + x_t`` and ``n_t = decay * n_{t-1} + 1``.

    ``share``: from 0 to 1. ``prior``: frames that the global mean counts for. What was ``heard`` is (rows, mels + 1):
    s and n of the last frame, zeros at first.
    """

    share: float
    prior: float
    decay: float

    @staticmethod
    def of(config: ModelConfig) -> RunningMean | None:
        """None for a model without."""
        if not config.running_mean:
            return None
        frame_s = FRAME_MS / 1000
        decay = torch.tensor(math.exp(-frame_s / config.running_mean_memory_s)).item()  # the same in float32 and here
        return RunningMean(config.running_mean, config.running_mean_s / frame_s, decay)

    def step(self, frames: Tensor, sizes: Sequence[int], heard: Tensor) -> tuple[Tensor, Tensor]:
        """``frames``: (rows, mels) in packed order, of which ``sizes`` belong to the first streams each time (the first
        frame of every stream, the second of those that have one, ...); ``heard``: of every stream. Returns the frames
        less their mean and what was heard now.

        One frame after the other, each by a product and a sum that are rounded as IEEE says: so no cutting of the audio
        and no company changes a bit.
        """
        sums = F.pad(frames, (0, 1), value=1.0)
        for one in sums.split(sizes):
            if len(one) == len(heard):
                heard = one.add_(heard * self.decay)
            else:
                heard = torch.cat([one.add_(heard[: len(one)] * self.decay), heard[len(one) :]])
        return self._less(frames, sums[:, :-1], sums[:, -1:]), heard.clone()

    def batch(self, frames: Tensor, heard: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`step` for (rows, n, mels)."""
        rows, n, mels = frames.shape
        packed, heard = self.step(frames.transpose(0, 1).reshape(n * rows, mels), [rows] * n, heard)
        return packed.view(n, rows, mels).transpose(0, 1), heard

    def parallel(self, frames: Tensor, heard: Tensor) -> Tensor:
        """The frames of :meth:`batch`, all at once, by sums in blocks (for training; the last digits may differ)."""
        rows, n, mels = frames.shape
        count = -(-n // _BLOCK)
        blocks = F.pad(frames, (0, 0, 0, count * _BLOCK - n)).view(rows, count, _BLOCK, mels)
        within, fade, frame_counts = self.weights(_BLOCK, frames.device)
        with torch.autocast(frames.device.type, enabled=False):
            sums = torch.einsum("ij,bkjm->bkim", within, blocks)
            before = torch.cat([heard[:, None, :-1], sums[:, :-1, -1]], dim=1)  # what every block adds to the next ones
            carried = torch.einsum("kl,blm->bkm", self._powers(count, _BLOCK, frames.device).tril(), before)
            sums = (sums + fade[:, None] * carried[:, :, None]).flatten(1, 2)[:, :n]
            fade, frame_counts = self._fade(n, frames.device)
            return self._less(frames, sums, (heard[:, -1:] * fade + frame_counts)[..., None])

    def chunk(
        self, frames: Tensor, heard: Tensor, within: Tensor, fade: Tensor, counts: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As :meth:`batch`, by products with the :meth:`weights` of so many frames, for graphs of constant shape."""
        sums = within @ frames + fade[:, None] * heard[:, None, :-1]
        counts = (heard[:, -1:] * fade + counts)[..., None]
        return self._less(frames, sums, counts), torch.cat([sums[:, -1], counts[:, -1]], dim=1)

    def after(self, frames: Tensor, lengths: Tensor, heard: Tensor) -> Tensor:
        """What was heard at the end of every row of (rows, n, mels), of which ``lengths`` (rows,) frames stand for
        sound."""
        ago = lengths[:, None] - 1 - torch.arange(frames.shape[1], device=frames.device)
        weights = torch.where(ago >= 0, self.decay ** ago.clamp_min(0).float(), 0.0)
        with torch.autocast(frames.device.type, enabled=False):
            sums = torch.einsum("bt,btm->bm", weights, frames)
        new = torch.cat([sums, weights.sum(1, keepdim=True)], dim=1)
        return new + heard * self.decay ** lengths[:, None].float()

    def weights(self, n: int, device: torch.device | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Of ``n`` frames: the matrix (n, n) by which they become their faded sums, (n,) by how much what came before
        them has faded, and (n,) their faded counts."""
        return self._powers(n, 1, device).tril(), *self._fade(n, device)

    def _less(self, frames: Tensor, sums: Tensor, counts: Tensor) -> Tensor:
        """No frame counts less than one."""
        return frames - sums * (self.share / (counts + self.prior).clamp_min(1.0))

    def _powers(self, n: int, distance: int, device: torch.device | None) -> Tensor:
        """(n, n): how much ``distance`` times row less column frames fade."""
        place = torch.arange(n, dtype=torch.float64, device=device)
        return (self.decay ** (distance * (place[:, None] - place).clamp_min(0))).float()

    def _fade(self, n: int, device: torch.device | None) -> tuple[Tensor, Tensor]:
        fade = self.decay ** torch.arange(1, n + 1, dtype=torch.float64, device=device)
        return fade.float(), ((1 - fade) / (1 - self.decay)).float()
