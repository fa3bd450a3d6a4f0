"""Adaptation to voice and room that streams: normalised log-mel frames minus a share of their running mean.

The mean is that of the frames heard so far, each band by itself. The global mean, which is 0 after normalisation,
counts as some seconds of audio that never fade, so a stream begins with the global statistics; frames fade with a time
constant, so a new voice replaces the old one. (Cepstral mean subtraction, Atal 1974, in its recursive form, Viikki and
Laurila 1998.) A loud frame counts more than a soft one, so that a voice is followed and the pauses around it hardly,
however long they last. What is remembered has one size: the sum of the frames and of what they count, both faded.
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
_LOUDEST = 3.0  # deviations above the mean, beyond which no frame counts more
_LEAST = 1e-3  # what all frames and the global mean count at least, together


def width(config: ModelConfig) -> int:
    """Numbers that a stream remembers: a sum for each band and the count; 0 without a running mean."""
    return config.mels + 1 if config.running_mean else 0


@dataclass(frozen=True)
class RunningMean:
    """``x_t - share * s_t / (n_t + prior)``, ``s_t = decay * s_{t-1} + w_t * x_t`` and ``n_t = decay * n_{t-1} + w_t``.

    ``share``: from 0 to 1. ``prior``: frames of average loudness that the global mean counts for. ``loudness``: what a
    frame counts, w, is exp(loudness * its mean over the bands); 0: all count 1. What was ``heard`` is (rows, mels + 1):
    s and n of the last frame, zeros at first.
    """

    share: float
    prior: float
    decay: float
    loudness: float = 0.0

    @staticmethod
    def of(config: ModelConfig) -> RunningMean | None:
        """None for a model without."""
        if not config.running_mean:
            return None
        frame_s = FRAME_MS / 1000
        decay = torch.tensor(math.exp(-frame_s / config.running_mean_memory_s)).item()  # the same in float32 and here
        return RunningMean(config.running_mean, config.running_mean_s / frame_s, decay, config.running_mean_loudness)

    def step(self, frames: Tensor, sizes: Sequence[int], heard: Tensor) -> tuple[Tensor, Tensor]:
        """``frames``: (rows, mels) in packed order, of which ``sizes`` belong to the first streams each time (the first
        frame of every stream, the second of those that have one, ...); ``heard``: of every stream. Returns the frames
        less their mean and what was heard now.

        One frame after the other, each by a product and a sum that are rounded as IEEE says: so no cutting of the audio
        and no company changes a bit.
        """
        sums = self._counted(frames)
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
        n = frames.shape[1]
        count = -(-n // _BLOCK)
        blocks = F.pad(self._counted(frames), (0, 0, 0, count * _BLOCK - n)).unflatten(1, (count, _BLOCK))
        within, fade = self.weights(_BLOCK, frames.device)
        with torch.autocast(frames.device.type, enabled=False):
            sums = torch.einsum("ij,bkjm->bkim", within, blocks)
            before = torch.cat([heard[:, None], sums[:, :-1, -1]], dim=1)  # what every block adds to the next ones
            carried = torch.einsum("kl,blm->bkm", self._powers(count, _BLOCK, frames.device).tril(), before)
            sums = (sums + fade[:, None] * carried[:, :, None]).flatten(1, 2)[:, :n]
            return self._less(frames, sums[..., :-1], sums[..., -1:])

    def chunk(self, frames: Tensor, heard: Tensor, within: Tensor, fade: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`batch`, by products with the :meth:`weights` of so many frames, for graphs of constant shape."""
        sums = within @ self._counted(frames) + fade[:, None] * heard[:, None]
        return self._less(frames, sums[..., :-1], sums[..., -1:]), sums[:, -1]

    def after(self, frames: Tensor, lengths: Tensor, heard: Tensor) -> Tensor:
        """What was heard at the end of every row of (rows, n, mels), of which ``lengths`` (rows,) frames stand for
        sound."""
        ago = lengths[:, None] - 1 - torch.arange(frames.shape[1], device=frames.device)
        weights = torch.where(ago >= 0, self.decay ** ago.clamp_min(0).float(), 0.0)
        with torch.autocast(frames.device.type, enabled=False):
            new = torch.einsum("bt,btm->bm", weights, self._counted(frames))
        return new + heard * self.decay ** lengths[:, None].float()

    def weights(self, n: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
        """Of ``n`` frames: the matrix (n, n) by which they become their faded sums, and (n,) by how much what came
        before them has faded."""
        fade = self.decay ** torch.arange(1, n + 1, dtype=torch.float64, device=device)
        return self._powers(n, 1, device).tril(), fade.float()

    def _counted(self, frames: Tensor) -> Tensor:
        """(..., mels) times what each frame counts, and that: (..., mels + 1)."""
        if not self.loudness:
            return F.pad(frames, (0, 1), value=1.0)
        counts = (frames.mean(-1, keepdim=True).clamp_max(_LOUDEST) * self.loudness).exp()
        return torch.cat([frames * counts, counts], dim=-1)

    def _less(self, frames: Tensor, sums: Tensor, counts: Tensor) -> Tensor:
        """Where nothing counts yet, nothing is taken off."""
        return frames - sums * (self.share / (counts + self.prior).clamp_min(_LEAST))

    def _powers(self, n: int, distance: int, device: torch.device | None) -> Tensor:
        """(n, n): how much ``distance`` times row less column frames fade."""
        place = torch.arange(n, dtype=torch.float64, device=device)
        return (self.decay ** (distance * (place[:, None] - place).clamp_min(0))).float()
