"""The form of a network that recognises on a CPU: the same computation from weights of half the size.

A streaming step multiplies few rows with every weight of the network, so its time is that of reading the weights.
:func:`inference_form` puts products in place of linear layers, recurrent cells and convolutions that read the weights
in half precision, as a model folder holds them, so nothing is rounded that was not rounded there. Activations and sums
are float32: what a loaded model computes differs from its plain form by the order of sums alone.

The kernel is FBGEMM's. A row's result does not depend, to the bit, on the rows beside it, and neither does any other
operation of the form, so cutting and company change no bit of a stream's emissions. (That needs a hidden size that is
a multiple of 16; else some numbers come from another routine for the rest of a vector and differ by rounding.)

Integers of 8 bits are not here: only activations of 7 bits, too, make them faster, and those change probabilities.
`benchmarks/network.py` times their product.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from asr.errors import UsageError
from asr.model import KERNEL, AcousticModel, FrontEnd, LookAhead, RecurrentLayer

__all__ = ["PRECISION", "PRECISIONS", "Precision", "inference_form", "supports"]

Precision = Literal["fp32", "fp16"]
PRECISIONS: tuple[str, ...] = get_args(Precision)
PRECISION: Precision = "fp16"  # the default: faster, and no number changes by more than the order of sums does
_ENGINE = "fbgemm"


def inference_form(model: AcousticModel, precision: str) -> AcousticModel:
    """A network that computes what ``model`` does, for recognition on a CPU; it cannot be trained.

    Steps, states and their bytes are as those of ``model``. ``precision`` is one of :data:`PRECISIONS`; the result is
    ``model`` itself for fp32, where this machine has no such kernels, and for a model that cannot stream. Raises
    UsageError for another precision.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"there is no precision '{precision}': use one of {', '.join(PRECISIONS)}")
    if precision == "fp32" or model.config.bidirectional or not supports(precision, model.front_end.mean.device):
        return model
    tensors: tuple[Tensor, ...] = (*model.parameters(), *model.buffers())
    form = copy.deepcopy(model, {id(t): t for t in tensors})  # new modules around the same tensors
    form.front_end = _PackedFrontEnd(model.front_end)
    for i, layer in enumerate(model.recurrent):
        assert isinstance(layer, RecurrentLayer)
        form.recurrent[i] = _PackedRecurrent(layer)
    for ahead in form.look_ahead.values():
        assert isinstance(ahead, LookAhead)
        ahead.linear = _HalfProduct.of(ahead.linear)
    for name, head in model.heads.items():
        form.heads[name] = _HalfProduct.of(head)
    form.packed_parameters = model.parameter_count - sum(p.numel() for p in form.parameters())
    return form.eval().requires_grad_(False)


def supports(precision: str, device: torch.device | str = "cpu") -> bool:
    """Whether this machine's CPU and this build of torch have the kernels of ``precision``."""
    if precision == "fp32":
        return True
    if torch.device(device).type != "cpu" or _ENGINE not in torch.backends.quantized.supported_engines:
        return False
    weight = torch.linspace(-1.0, 1.0, 24 * 16).view(24, 16)
    x = torch.linspace(-1.0, 1.0, 3 * 16).view(3, 16)
    try:
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "will be removed": then it is not found here, and fp32 takes its place
            return bool(torch.allclose(_HalfProduct(weight)(x), x @ weight.T, atol=0.05))
    except (RuntimeError, AttributeError):
        return False


class _HalfProduct(nn.Module):
    """``x W^T + bias``: weights in half precision and packed; inputs, sums and outputs in single."""

    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("bias", bias)
        self.outputs = len(weight)
        self.packed: Any = torch.fbgemm_pack_gemm_matrix_fp16(weight.detach().float().contiguous())

    @classmethod
    def of(cls, linear: nn.Module) -> nn.Module:
        """In place of a linear layer."""
        assert isinstance(linear, nn.Linear)
        return cls(linear.weight, linear.bias)

    def rows(self, x: Tensor) -> Tensor:
        """(rows, inputs) to (rows, outputs), a tensor that nobody else holds."""
        if not len(x):  # the kernel refuses
            return x.new_zeros(0, self.outputs)
        y: Tensor = torch.fbgemm_linear_fp16_weight_fp32_activation(x, self.packed, self.bias)
        return y

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) to (..., outputs)."""
        return self.rows(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], self.outputs)


class _PackedFrontEnd(FrontEnd):
    """The convolutions as products with patches, channels last."""

    def __init__(self, plain: FrontEnd) -> None:
        nn.Module.__init__(self)
        self.register_buffer("mean", plain.mean)
        self.register_buffer("deviation", plain.deviation)
        self.products = nn.ModuleList(_HalfProduct(c.weight.flatten(1), c.bias) for c in (plain.conv1, plain.conv2))
        self.strides = [c.stride for c in (plain.conv1, plain.conv2)]
        weight, channels = plain.project.weight, plain.conv2.out_channels
        bands_first = weight.unflatten(1, (channels, -1)).transpose(1, 2).flatten(1)
        self.combine = _HalfProduct(bands_first, plain.project.bias)
        self.norm = plain.norm

    def forward(self, frames: Tensor) -> Tensor:
        """Normalised (batch, FRONT_END_HISTORY + 2 n, mels) to (batch, n, hidden)."""
        x = frames[..., None]
        for product, (time, band) in zip(self.products, self.strides, strict=True):
            patches = F.pad(x, (0, 0, 1, 1)).unfold(1, KERNEL, time).unfold(2, KERNEL, band)
            x = product(patches.flatten(3)).relu_()
        return self.norm(self.combine(x.flatten(2)))


class _PackedRecurrent(nn.Module):
    """As :class:`asr.model.RecurrentLayer`: ``x + rnn(norm(x))``.

    The product with the inputs is one for all steps of a chunk. An LSTM's gates lie in the order i, f, o, g: one
    sigmoid for three of them.
    """

    def __init__(self, layer: RecurrentLayer) -> None:
        super().__init__()
        self.norm = layer.norm
        rnn = layer.rnn
        self.hidden = rnn.hidden_size
        w, v, b, d = (getattr(rnn, f"{n}_l0").detach() for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        if isinstance(rnn, nn.GRU):
            late = torch.arange(len(b)) >= 2 * self.hidden  # of the candidate: the reset gate comes between the two
            self.of_input = _HalfProduct(w, torch.where(late, b, b + d))
            self.of_hidden = _HalfProduct(v, torch.where(late, d, torch.zeros_like(d)))
            self.advance = self._gru
            return
        order = torch.arange(len(w))
        if isinstance(rnn, nn.LSTM):
            i, f, g, o = order.chunk(4)
            order = torch.cat((i, f, o, g))
        self.of_input = _HalfProduct(w[order], (b + d)[order])
        self.of_hidden = _HalfProduct(v[order])
        self.advance = self._lstm if isinstance(rnn, nn.LSTM) else self._rnn

    def forward(self, x: Tensor, hidden: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """``x``: (batch, n, hidden), n at least 1; ``hidden``: (h, c) as of :class:`asr.model.RecurrentLayer`."""
        inputs = self.of_input(self.norm(x).transpose(0, 1))
        h, c = hidden
        out = []
        for one in inputs.unbind():
            h, c = self.advance(one, h, c)
            out.append(h)
        return x + torch.stack(out, 1), (h, c)

    def packed(self, x: Tensor, sizes: list[int], h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As :meth:`forward` for rows in packed order (:mod:`asr.ragged`): ``x`` (rows, hidden), of which ``sizes``
        rows belong to each step; ``h``, ``c``: (sizes[0], hidden)."""
        out = []
        for one in self.of_input(self.norm(x)).split(sizes):
            count = len(one)
            if count == len(h):
                h, c = self.advance(one, h, c)
                out.append(h)
            else:
                new, cell = self.advance(one, h[:count], c[:count])
                out.append(new)
                h, c = torch.cat([new, h[count:]]), torch.cat([cell, c[count:]])
        return x + torch.cat(out), h, c

    def _lstm(self, inputs: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        gates = self.of_hidden.rows(h).add_(inputs)
        i, f, o = gates[:, : 3 * self.hidden].sigmoid_().chunk(3, 1)
        c = torch.addcmul(f * c, i, gates[:, 3 * self.hidden :].tanh_())
        return torch.tanh(c).mul_(o), c

    def _gru(self, inputs: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        mine, size = self.of_hidden.rows(h), 2 * self.hidden
        r, z = mine[:, :size].add_(inputs[:, :size]).sigmoid_().chunk(2, 1)
        n = torch.addcmul(inputs[:, size:], r, mine[:, size:]).tanh_()
        return torch.lerp(n, h, z), c

    def _rnn(self, inputs: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        return self.of_hidden.rows(h).add_(inputs).tanh_(), c
