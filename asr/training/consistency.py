"""CR-CTC: the network shall say the same of two masked views of a row.

Yao et al. 2024, "CR-CTC: Consistency regularization on CTC for improved speech recognition". A batch holds every row
twice, under different masks: first all rows, then all rows again. To the mean of the two CTC losses comes, times a
weight (0.2 in the paper), half of the sum over steps of

    KL(stop(second) || first) + KL(stop(first) || second)

where ``stop`` lets no gradient through: each view learns from the other as from a teacher. The paper masks more in time
than plain CTC does (2.5 times as much), so that the views differ.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asr.training.batches import Batch

WEIGHT = 0.2
"""Of the consistency loss beside CTC, as in the paper."""

Mask = Callable[[NDArray[np.float32], np.random.Generator], NDArray[np.float32]]


def two_views(batch: Batch, mask: Mask, rng: np.random.Generator) -> Batch:
    """Every row of a batch that is *not* masked yet twice, each under its own mask: row ``i`` and row ``rows + i``.

    ``mask`` gives masked (frames, mels) for writable ones, as ``BatchMaker`` masks a row. The batch given stays as it
    is; padding stays zero.
    """
    frames = batch.frames.repeat(2, 1, 1)
    lengths = batch.lengths.repeat(2)
    for row, count in zip(frames, lengths.tolist(), strict=True):
        row[:count] = torch.from_numpy(mask(row[:count].numpy().copy(), rng))
    return Batch(
        frames,
        lengths,
        {name: units.repeat(2) for name, units in batch.targets.items()},
        {name: counts.repeat(2) for name, counts in batch.target_lengths.items()},
        batch.ids * 2,
        batch.texts * 2,
    )


def consistency_loss(log_probs: Tensor, steps: Tensor) -> Tensor:
    """The sum over all rows and steps of KL(stop(other view) || this view), in nats.

    ``log_probs``: (2 x rows, steps, units), as :func:`two_views` lays rows out; ``steps``: (2 x rows,), of each row;
    what lies beyond does not count. Divide it by what the CTC losses are divided by, a count over the rows of both
    views: that has the half of the paper's formula in it. Raises ValueError where rows are no pairs.
    """
    rows = len(log_probs) // 2
    if len(log_probs) % 2 or not bool((steps[:rows] == steps[rows:]).all()):
        raise ValueError("rows must be pairs of equal length: all first views, then all second views")
    other = torch.cat([log_probs[rows:], log_probs[:rows]]).detach()
    return divergence(other, log_probs, steps)


def divergence(of: Tensor, log_probs: Tensor, steps: Tensor) -> Tensor:
    """The sum over rows and steps of KL(of || log_probs), in nats; both (rows, steps, units), ``steps`` of each row."""
    wanted, mine = of.float(), log_probs.float()
    each = (wanted.exp() * (wanted - mine)).sum(-1)
    inside = torch.arange(mine.shape[1], device=mine.device) < steps.to(mine.device)[:, None]
    return torch.where(inside, each, 0.0).sum()
