"""The compiled pass of an LSTM against torch's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from asr.model import RecurrentLayer
from asr.training.compiled_lstm import compiled_lstm
from asr.training.train import Trainer

Results = tuple[list[Tensor], list[Tensor]]


def both(rows: int, steps: int, inputs: int, hidden: int, scale: float = 1.0) -> tuple[Results, Results]:
    """Outputs and gradients by torch in single precision, and by the compiled pass."""
    torch.manual_seed(rows)
    rnn = nn.LSTM(inputs, hidden, batch_first=True)
    x, h, c = torch.randn(rows, steps, inputs) * scale, torch.randn(rows, hidden).tanh(), torch.randn(rows, hidden)
    toward = [torch.randn(rows, steps, hidden), torch.randn(rows, hidden), torch.randn(rows, hidden)]

    def results(run: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, tuple[Tensor, Tensor]]]) -> Results:
        given = [t.clone().requires_grad_() for t in (x, h, c)]
        rnn.zero_grad()
        y, (h_n, c_n) = run(*given)
        out = [y, h_n.view(rows, hidden), c_n.view(rows, hidden)]
        torch.autograd.backward(out, toward)
        of_weights = [p.grad.clone() for p in rnn.parameters() if p.grad is not None]
        return [o.detach() for o in out], [*(g.grad for g in given if g.grad is not None), *of_weights]

    return results(lambda x, h, c: rnn(x, (h[None], c[None]))), results(lambda x, h, c: compiled_lstm(rnn, x, h, c))


@pytest.mark.parametrize(("rows", "steps", "inputs", "hidden"), [(1, 1, 4, 3), (3, 17, 16, 24), (36, 40, 33, 48)])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_outputs_and_gradients_are_those_of_torch(
    rows: int, steps: int, inputs: int, hidden: int, scale: float
) -> None:
    """But for 8 bits of precision; with gates that are wide open or shut, too."""
    (out, gradients), (our_out, our_gradients) = both(rows, steps, inputs, hidden, scale)
    assert len(gradients) == len(our_gradients) == 7
    for one, two in zip([*out, *gradients], [*our_out, *our_gradients], strict=True):
        assert one.shape == two.shape and two.dtype == torch.float32
        assert (one - two).norm() < (0.02 if scale == 1 else 0.1) * one.norm()


def test_it_is_the_same_every_time_and_in_pieces() -> None:
    torch.manual_seed(1)
    rnn = nn.LSTM(8, 12, batch_first=True)
    x, zeros = torch.randn(5, 30, 8), torch.zeros(5, 12)
    whole, (h, c) = compiled_lstm(rnn, x, zeros, zeros)
    again, _ = compiled_lstm(rnn, x, zeros, zeros)
    assert torch.equal(whole, again)
    first, state = compiled_lstm(rnn, x[:, :13], zeros, zeros)
    second, (h_2, c_2) = compiled_lstm(rnn, x[:, 13:], *state)
    assert torch.equal(torch.cat([first, second], 1), whole) and torch.equal(h, h_2) and torch.equal(c, c_2)


def test_what_is_not_finite_stays_so() -> None:
    """Steps with such gradients are skipped, so it must not be hidden."""
    rnn = nn.LSTM(4, 6, batch_first=True)
    x = torch.zeros(2, 5, 4)
    x[1, 2, 0] = float("nan")
    y, _ = compiled_lstm(rnn, x, torch.zeros(2, 6), torch.zeros(2, 6))
    assert y[0].isfinite().all() and y[1, :2].isfinite().all() and y[1, 2:].isnan().all()


def test_a_trainer_learns_the_same_with_it(new_trainer: Callable[..., Trainer]) -> None:
    plain, ours = new_trainer(precision="bf16"), new_trainer(precision="bf16", lstm="compiled")
    assert not any(layer.training_pass for layer in plain.model.recurrent)
    passes = [layer.training_pass for layer in ours.model.recurrent if isinstance(layer, RecurrentLayer)]
    assert passes and all(one is compiled_lstm for one in passes)
    losses = [[trainer.train_step()["loss"] for _ in range(3)] for trainer in (plain, ours)]
    assert losses[0] == pytest.approx(losses[1], rel=0.02) and losses[0] != losses[1]


def test_single_precision_and_other_cells_keep_torchs_pass(new_trainer: Callable[..., Trainer]) -> None:
    trainer = new_trainer(precision="fp32", lstm="compiled")
    assert not any(layer.training_pass for layer in trainer.model.recurrent)
    layer = RecurrentLayer(new_trainer(model={"cell": "gru"}).model.config)
    layer.training_pass = compiled_lstm
    hidden = layer.rnn.hidden_size
    state = torch.zeros(2, hidden), torch.zeros(2, hidden)
    assert layer(torch.randn(2, 3, hidden), state)[0].shape == (2, 3, hidden)
