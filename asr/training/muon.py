"""Muon: momentum whose direction is made orthogonal, for the matrices of the network.

Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; the scale that lets it share a learning
rate with AdamW is of Liu et al. 2025, "Muon is scalable for LLM training". A recurrent layer's weight is a stack of
matrices, one per gate; each is made orthogonal by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_RMS_OF_ADAM = 0.2


def orthogonal(matrices: Tensor, rounds: int = 5) -> Tensor:
    """The nearest matrices with all singular values about 1 (0.7 to 1.2), by a Newton-Schulz iteration in bf16.

    ``matrices``: (n, rows, columns); returns the same shape, float32.
    """
    a, b, c = _NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.transpose(1, 2) if tall else matrices
    x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)).bfloat16()
    for _ in range(rounds):
        square = x @ x.transpose(1, 2)
        x = a * x + torch.baddbmm(b * square, square, square, alpha=c) @ x
    return (x.transpose(1, 2) if tall else x).float()


class Muon(torch.optim.Optimizer):
    """Updates matrices (rows, columns). A group's ``gates``: how many matrices its parameters are stacks of.

    With ``lr`` as for AdamW, whose weight decay it has, too: the update has the root mean square that AdamW's has.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float = 1e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "gates": 1})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update from the gradients; ``closure`` is not supported."""
        if closure is not None:
            raise ValueError("Muon takes gradients that are there: call it without a closure")
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._update(p, p.grad, group)

    def _update(self, p: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[p]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(p)
        average = state["momentum"].lerp_(gradient, 1 - group["momentum"])
        direction = gradient.lerp(average, group["momentum"])  # Nesterov
        stack = direction.view(group["gates"], -1, p.shape[1])
        scale = _RMS_OF_ADAM * math.sqrt(max(stack.shape[1:]))
        p.mul_(1 - group["lr"] * group["weight_decay"])
        p.add_(orthogonal(stack).view_as(p), alpha=-group["lr"] * scale)


def matrices_of(model: nn.Module) -> list[dict[str, Any]]:
    """Groups of parameters for :class:`Muon`: all matrices between the convolutions and the heads."""
    gates = {"LSTM": 4, "GRU": 3}
    groups: dict[int, list[Tensor]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.RNNBase):
            weights = [p for p in module.parameters() if p.dim() == 2]
            groups.setdefault(gates.get(module.mode, 1), []).extend(weights)
        elif isinstance(module, nn.Linear) and not name.startswith(("heads.", "intermediate")):
            groups.setdefault(1, []).append(module.weight)
    return [{"params": params, "gates": count} for count, params in sorted(groups.items())]
