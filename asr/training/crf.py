"""CTC-CRF: sequence-discriminative training (lattice-free MMI) on the CTC topology.

Xiang and Ou 2019, "CRF-based single-stage acoustic modeling with CTC topology"; Hadian et al. 2018, "End-to-end speech
recognition using lattice-free MMI". The network's outputs are potentials of a conditional random field over all paths:

    loss = -log (sum over paths of the text) - log P(text) + log (sum over all paths, each times P of its units)

The numerator is CTC (``torch.nn.functional.ctc_loss``). The denominator is here: a trigram over units composed with the
CTC topology, summed by the forward-backward algorithm as batched matrix products, without a graph: a state is the last
two units and whether a blank followed them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

_DISCOUNT = 0.7
_TINY = 1e-30


def unit_trigram(sequences: Iterable[NDArray[np.int64] | Sequence[int]], units: int) -> Tensor:
    """Trigram over units by absolute discounting (Ney et al. 1994), from sequences of unit ids 1 to ``units`` - 1.

    Returns ``p[b, a, c]`` = P(c | a, b), a before b; unit 0 stands for "nothing yet". (units, units, units) float32;
    ``p[..., 0]`` is 0 and every row sums to 1. The end of a sequence is not modelled: it may end anywhere.
    """
    counts = np.zeros((units, units, units))
    for sequence in sequences:
        padded = np.concatenate([[0, 0], np.asarray(sequence, dtype=np.int64)])
        np.add.at(counts, (padded[1:-1], padded[:-2], padded[2:]), 1)
    bigrams = counts.sum(1)
    p = np.full(units, 1 / max(1, units - 1))
    p[0] = 0
    p = _discounted(bigrams.sum(0), p)
    p = _discounted(bigrams, np.broadcast_to(p, bigrams.shape))
    p = _discounted(counts, np.broadcast_to(p[:, None, :], counts.shape))
    return torch.from_numpy(p.astype(np.float32))


def _discounted(counts: NDArray[np.float64], lower: NDArray[np.float64]) -> NDArray[np.float64]:
    """Counts over the last axis, discounted, and the mass so won given to the ``lower`` order."""
    total = counts.sum(-1, keepdims=True)
    left = _DISCOUNT * (counts > 0).sum(-1, keepdims=True)
    mixed = (np.maximum(counts - _DISCOUNT, 0) + left * lower) / np.maximum(total, 1)
    return np.asarray(np.where(total > 0, mixed, lower))


class Denominator:
    """Log of the sum over all paths; ``trigram``: (units, units, units), as :func:`unit_trigram` gives it."""

    def __init__(self, trigram: Tensor) -> None:
        units = trigram.shape[0]
        if trigram.shape != (units, units, units):
            raise ValueError(f"a trigram is a cube, got {tuple(trigram.shape)}")
        self.forward_weights = trigram.contiguous()  # [b][a][c]
        self.backward_weights = trigram.transpose(1, 2).contiguous()  # [b][c][a]
        self.repeated = torch.diagonal(trigram, dim1=0, dim2=2).T.contiguous()  # [b][a]: the probability of b again

    def to(self, device: torch.device) -> Denominator:
        """Itself, with its weights on ``device``."""
        self.forward_weights = self.forward_weights.to(device)
        self.backward_weights = self.backward_weights.to(device)
        self.repeated = self.repeated.to(device)
        return self

    def __call__(self, log_potentials: Tensor, lengths: Tensor) -> Tensor:
        """``log_potentials``: (batch, time, units); ``lengths``: (batch,) steps. Returns log Z of each row (batch,)."""
        result: Tensor = _LogSum.apply(log_potentials, lengths, self)  # type: ignore[no-untyped-call]
        return result

    def log_prior(self, targets: Tensor, lengths: Tensor) -> Tensor:
        """Log-probability of texts by the trigram alone: ``targets`` of all rows one after another, their ``lengths``
        (batch,). Returns the sum over rows ()."""
        padded = torch.cat([F.pad(row, (2, 0)) for row in targets.split(lengths.tolist())]).to(self.repeated.device)
        chosen = self.forward_weights[padded[1:-1], padded[:-2], padded[2:]]
        return torch.log(chosen[padded[2:] > 0]).sum()  # what is left out begins the next row

    def _emit(self, log_potentials: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Potentials as (time, units, batch), scaled to at most 1 per step; the scales; which steps are inside.

        Steps beyond a row's length hold a blank of potential 1: they change no sum.
        """
        x = log_potentials.detach().float()
        inside = torch.arange(x.shape[1], device=x.device) < lengths.to(x.device)[:, None]
        scale = x.amax(-1) * inside
        potentials = torch.exp(x - x.amax(-1, keepdim=True)) * inside[..., None]
        potentials[..., 0] += (~inside).float()
        return potentials.permute(1, 2, 0).contiguous(), scale.sum(1), inside

    def forward_backward(self, log_potentials: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """log Z (batch,) and the posterior probability of every unit at every step (batch, time, units)."""
        potentials, log_z, inside = self._emit(log_potentials, lengths)
        time, units, batch = potentials.shape
        # [last unit][row][unit before it]; [0] of the pair: the last step was that unit, [1]: it was a blank.
        alphas = potentials.new_zeros(time, 2, units, batch, units)
        alpha = potentials.new_zeros(2, units, batch, units)
        alpha[1, 0, :, 0] = 1
        log_z = log_z.double()
        for t in range(time):
            alpha = self._onward(alpha, potentials[t], alphas[t])
            total = alpha.sum((0, 1, 3))
            alpha /= total[:, None]
            log_z += torch.log(total)
        beta = potentials.new_full((2, units, batch, units), 1.0)
        posteriors = potentials.new_zeros(time, units, batch)
        for t in range(time - 1, -1, -1):
            shares = (alphas[t] * beta).sum(3)  # (2, units, batch)
            posteriors[t] = shares[0]
            posteriors[t, 0] = shares[1].sum(0)
            if t:
                beta = self._back(beta, potentials[t])
                beta /= beta.amax((0, 1, 3)).clamp_min(_TINY)[:, None]
        posteriors /= posteriors.sum(1, keepdim=True).clamp_min(_TINY)
        return log_z.float(), posteriors.permute(2, 0, 1) * inside[..., None]

    def _onward(self, alpha: Tensor, potential: Tensor, out: Tensor) -> Tensor:
        label, both = alpha[0], alpha[0] + alpha[1]
        new = torch.bmm(both, self.forward_weights)  # [b][row][c]
        again = (label * self.repeated[:, None, :]).sum(2)  # [b][row]: a unit cannot follow itself without a blank
        torch.diagonal(new, dim1=0, dim2=2).sub_(again.T).clamp_min_(0)
        torch.add(label, new.transpose(0, 2), out=out[0])
        out[0] *= potential[..., None]
        torch.mul(both, potential[0][:, None], out=out[1])
        return out

    def _back(self, beta: Tensor, potential: Tensor) -> Tensor:
        stay = beta[0] * potential[..., None]
        blank = beta[1] * potential[0][:, None]
        entered = stay.transpose(0, 2)  # [b][row][c]: into unit c after b
        new = torch.bmm(entered, self.backward_weights)  # [b][row][a]
        again = torch.diagonal(entered, dim1=0, dim2=2).T[..., None] * self.repeated[:, None, :]
        after_blank = blank + new
        return torch.stack([(after_blank - again).clamp_min_(0) + stay, after_blank])


class _LogSum(torch.autograd.Function):
    """log Z; its gradient by a log-potential is the posterior probability of that unit at that step."""

    @staticmethod
    def forward(ctx: Any, log_potentials: Tensor, lengths: Tensor, denominator: Denominator) -> Tensor:
        log_z, posteriors = denominator.forward_backward(log_potentials, lengths)
        ctx.save_for_backward(posteriors)
        return log_z

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (posteriors,) = ctx.saved_tensors
        return posteriors * gradients[0][:, None, None], None, None
