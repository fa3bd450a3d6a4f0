"""benchmarks/recurrence.py: networks of equal size, and gradients against finite differences."""

from __future__ import annotations

import dataclasses
from types import ModuleType

import numpy as np
import pytest
import torch
from benchmark_scripts import load_script

from asr.model import AcousticModel, ModelConfig, RecurrentLayer

BASE = ModelConfig({"phones": 7}, mels=8, channels=2, hidden=32, layers=2, lookahead=(0, 2), dropout=0.0)


@pytest.fixture(scope="module")
def recurrence() -> ModuleType:
    return load_script("recurrence")


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn", "bidirectional"])
def test_unrolled_networks_of_equal_size_are_the_networks(cell: str, recurrence: ModuleType) -> None:
    target = recurrence.parameters(BASE)
    shape = recurrence.equal_shape(cell, BASE, target)
    for other in (shape.hidden - 2, shape.hidden + 2):
        size = recurrence.parameters(dataclasses.replace(shape, hidden=other))
        assert abs(recurrence.parameters(shape) - target) <= abs(size - target)
    if cell == "lstm":
        assert shape == BASE
    torch.manual_seed(0)
    model = AcousticModel(shape).eval()
    frames = torch.randn(3, 60, 8)
    log_probs, states = recurrence.unrolled(model, frames)
    out, _, _ = model(frames, torch.tensor([60, 60, 60]))
    np.testing.assert_allclose(log_probs.detach().numpy(), out["phones"].detach().numpy(), atol=1e-5)
    assert len(states) == 2
    assert len(states[0]) == (30 if cell in ("gru", "rnn") else 60)


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_gradients_by_a_state_are_finite_differences(
    cell: str, recurrence: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A state of the top layer is moved a little, and the loss with it: through all later steps, and not earlier."""
    shape = recurrence.equal_shape(cell, BASE, 3000)
    torch.manual_seed(1)
    model = AcousticModel(shape).eval().double()
    frames = torch.randn(1, 40, 8, dtype=torch.float64)
    log_probs, states = recurrence.unrolled(model, frames)
    step, unit, k = 17, 3, 4
    (gradient,) = torch.autograd.grad(-log_probs[0, step, unit], [states[1][step - k]])
    layer = model.recurrent[1]
    assert isinstance(layer, RecurrentLayer)

    def loss(move: torch.Tensor) -> float:
        """The loss when ``move`` is added to the state h of the layer after one step."""

        def steps(rnn: torch.nn.Module, z: torch.Tensor, *_: object) -> tuple[torch.Tensor, list[torch.Tensor]]:
            h = c = z.new_zeros(1, 1, shape.hidden)
            out = []
            for t in range(z.shape[1]):
                if shape.cell == "lstm":
                    _, (h, c) = rnn(z[:, t : t + 1], (h, c))
                else:
                    _, h = rnn(z[:, t : t + 1], h)
                if rnn is layer.rnn and t == step - k:
                    h = h + move
                out.append(h[0])
            return torch.stack(out, 1), []

        monkeypatch.setattr(recurrence, "_steps", steps)
        with torch.no_grad():
            return float(-recurrence.unrolled(model, frames)[0][0, step, unit])

    for seed in range(3):
        direction = torch.randn(shape.hidden, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        difference = (loss(3e-3 * direction) - loss(-3e-3 * direction)) / 6e-3  # the heads compute in float32
        assert difference == pytest.approx(float((gradient[0] * direction).sum()), rel=2e-3, abs=1e-4)
