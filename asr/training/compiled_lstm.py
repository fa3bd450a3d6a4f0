"""An LSTM's pass for training on a CPU: products in bfloat16, and all between two of them in one compiled loop.

torch's own pass in bfloat16 (oneDNN) is as fast for a layer whose weights the core's cache holds, and slow beyond: its
backward pass of 560 units takes twice as long as this one (`benchmarks/training.py` says what it is on a machine). The
rounding is the same: inputs, outputs and gradients of products have 8 bits of precision, sums and cells are float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from asr.decoding.compiled import compiled, inlined

Halves = NDArray[np.uint16]  # bfloat16, as integers
Singles = NDArray[np.float32]

# tanh as a quotient of polynomials, to a few units of the last place (the constants are those of Eigen's).
_F = np.float32
_P13, _P11, _P9, _P7 = (
    _F(-2.76076847742355e-16),
    _F(2.00018790482477e-13),
    _F(-8.60467152213735e-11),
    _F(5.12229709e-08),
)
_P5, _P3, _P1 = _F(1.48572235717979e-05), _F(6.37261928875436e-04), _F(4.89352455891786e-03)
_Q6, _Q4, _Q2, _Q0 = (
    _F(1.19825839466702e-06),
    _F(1.18534705686654e-04),
    _F(2.268434632439e-03),
    _F(4.89352518554385e-03),
)
_MOST, _HALF, _ONE = _F(7.9053111), _F(0.5), _F(1)  # beyond the first, tanh is 1
_SHIFT, _UP, _LAST = np.uint32(16), np.uint32(0x7FFF), np.uint32(1)


@inlined
def _tanh(x: Any) -> Any:
    x = min(max(x, -_MOST), _MOST)
    s = x * x
    p = ((((((_P13 * s + _P11) * s + _P9) * s + _P7) * s + _P5) * s + _P3) * s + _P1) * x
    return p / (((_Q6 * s + _Q4) * s + _Q2) * s + _Q0)


@inlined
def _sigmoid(x: Any) -> Any:
    return _HALF + _HALF * _tanh(_HALF * x)


@inlined
def _rounded(bits: Any) -> Any:
    """A float32 as the nearest bfloat16, to even."""
    return np.uint16((bits + _UP + ((bits >> _SHIFT) & _LAST)) >> _SHIFT)


@inlined
def _read(halves: Any, bits: Any) -> None:
    """A row of bfloat16 as float32."""
    for j in range(len(bits)):
        bits[j] = np.uint32(halves[j]) << _SHIFT


@inlined
def _write(bits: Any, halves: Any) -> None:
    """A row of float32 as bfloat16."""
    for j in range(len(bits)):
        halves[j] = _rounded(bits[j])


@compiled
def _onward(gates: Halves, before: Singles, after: Singles, out: Halves) -> None:
    """One step of all rows. ``gates``: (rows, 4 hidden), in the order i, f, g, o, become what their functions make of
    them; ``before``, ``after``: (rows, hidden) cells; ``out``: (rows, hidden)."""
    rows, size = before.shape
    bits, said = np.empty(4 * size, np.uint32), np.empty(size, np.float32)
    value, said_bits = bits.view(np.float32), said.view(np.uint32)
    for row in range(rows):
        _read(gates[row], bits)
        for j in range(size):
            i, f = _sigmoid(value[j]), _sigmoid(value[size + j])
            g, o = _tanh(value[2 * size + j]), _sigmoid(value[3 * size + j])
            cell = f * before[row, j] + i * g
            after[row, j], said[j] = cell, o * _tanh(cell)
            value[j], value[size + j], value[2 * size + j], value[3 * size + j] = i, f, g, o
        _write(bits, gates[row])
        _write(said_bits, out[row])


@compiled
def _backward(
    gates: Halves, before: Singles, after: Singles, of_out: Singles, of_hidden: Halves, of_cell: Singles, given: Halves
) -> None:
    """Gradients of one step of all rows: from those of its output, of the hidden state and of the cell after it to
    those of what went into its gates, ``given`` (rows, 4 hidden), and of the cell before it, in place."""
    rows, size = before.shape
    bits, hidden_bits = np.empty(4 * size, np.uint32), np.empty(size, np.uint32)
    value, hidden = bits.view(np.float32), hidden_bits.view(np.float32)
    for row in range(rows):
        _read(gates[row], bits)
        _read(of_hidden[row], hidden_bits)
        for j in range(size):
            i, f, g, o = value[j], value[size + j], value[2 * size + j], value[3 * size + j]
            t, h = _tanh(after[row, j]), of_out[row, j] + hidden[j]
            c = of_cell[row, j] + h * o * (_ONE - t * t)
            value[j], value[size + j] = c * g * i * (_ONE - i), c * before[row, j] * f * (_ONE - f)
            value[2 * size + j], value[3 * size + j] = c * i * (_ONE - g * g), h * t * o * (_ONE - o)
            of_cell[row, j] = c * f
        _write(bits, given[row])


def _integers(tensor: Tensor) -> Halves:
    integers: Halves = tensor.view(torch.uint16).numpy()
    return integers


class _Pass(torch.autograd.Function):
    """Of (rows, steps, inputs), (rows, hidden) twice, and the weights, to outputs, hidden state and cell, float32."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, h: Tensor, c: Tensor, w_in: Tensor, w_hidden: Tensor, b_in: Tensor, b_hidden: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows, steps, size = x.shape[0], x.shape[1], w_hidden.shape[1]
        inputs = x.transpose(0, 1).bfloat16().reshape(steps * rows, -1)
        w_in, w_hidden = w_in.bfloat16(), w_hidden.bfloat16()
        gates = torch.addmm((b_in + b_hidden).bfloat16(), inputs, w_in.t()).view(steps, rows, 4 * size)
        cells, said = x.new_empty(steps + 1, rows, size), gates.new_empty(steps + 1, rows, size)
        cells[0], said[0] = c, h
        turned, of_gates, of_cells, of_said = w_hidden.t(), _integers(gates), cells.numpy(), _integers(said)
        for t in range(steps):
            torch.addmm(gates[t], said[t], turned, out=gates[t])
            _onward(of_gates[t], of_cells[t], of_cells[t + 1], of_said[t + 1])
        ctx.save_for_backward(inputs, w_in, w_hidden, gates, cells, said)
        return said[1:].transpose(0, 1).float(), said[steps].float(), cells[steps].clone()

    @staticmethod
    def backward(ctx: Any, of_y: Tensor, of_h: Tensor, of_c: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        inputs, w_in, w_hidden, gates, cells, said = ctx.saved_tensors
        steps, rows, width = gates.shape
        of_out = of_y.transpose(0, 1).float().contiguous()
        of_cell, of_hidden = of_c.float().clone(), of_h.bfloat16().contiguous().clone()
        given = torch.empty_like(gates)
        arrays = _integers(gates), cells.numpy(), of_out.numpy(), _integers(of_hidden), of_cell.numpy()
        of_gates, of_cells, of_outs, hidden, cell = arrays
        for t, into in reversed(list(enumerate(_integers(given)))):
            _backward(of_gates[t], of_cells[t], of_cells[t + 1], of_outs[t], hidden, cell, into)
            torch.mm(given[t], w_hidden, out=of_hidden)
        flat = given.view(steps * rows, width)
        turned = flat.t()
        of_x = torch.mm(flat, w_in).view(steps, rows, -1).transpose(0, 1).float()
        of_w_in, of_w_hidden = torch.mm(turned, inputs), torch.mm(turned, said[:-1].reshape(steps * rows, -1))
        of_bias = torch.mm(flat.new_ones(1, steps * rows), flat)[0].float()
        return of_x, of_hidden.float(), of_cell, of_w_in.float(), of_w_hidden.float(), of_bias, of_bias


def compiled_lstm(rnn: nn.LSTM, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """What a layer of ``rnn``, batch first and of one direction, makes of ``x`` (rows, steps, inputs) from the state
    ``h``, ``c`` (rows, hidden): outputs (rows, steps, hidden) and the state after the last step, float32. On a CPU."""
    weights = (getattr(rnn, f"{name}_l0") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    with torch.autocast("cpu", enabled=False):
        y, h, c = _Pass.apply(x.float(), h.float(), c.float(), *weights)  # type: ignore[no-untyped-call]
    return y, (h, c)
