"""The form of a network that recognises on a CPU: the same computation from weights of half the size.

A streaming step multiplies few rows with every weight of the network, so its time is that of reading the weights.
:func:`inference_form` puts products in place of linear layers, recurrent cells and convolutions that read the weights
in half precision, as a model folder holds them, so nothing is rounded that was not rounded there. Activations and sums
are float32: what a loaded model computes differs from its plain form by the order of sums alone.

The kernel is FBGEMM's. A row's result does not depend, to the bit, on the rows beside it, and neither does any other
operation of the form, so cutting and company change no bit of a stream's emissions. (That needs a hidden size that is
a multiple of 16; else some numbers come from another routine for the rest of a vector and differ by rounding.)

With bf16, products run on the CPU's matrix unit, where it has one: with many streams the network takes half the time.
Sums are still single, but inputs and outputs of products are rounded to 8 bits of precision, as they are in training.

With int8, matrices are integers of 8 bits with a scale for each row (:mod:`asr.int8`); convolutions and heads stay in
half precision. FBGEMM's product of integers wants integers on both sides. Each row of activations is scaled by its
largest value, cut into a high and a low part of 8 bits, and both parts are multiplied at once: that keeps 15 bits of
the activations, and what is lost is a tenth of what half precision loses in the weights. Sums of integers are exact, so
a row's result is the same to the bit in any company. On CPUs without VNNI, sums of products of 8 bits overflow in this
kernel; there the parts have 7 bits. A stream or a few are faster than in half precision, many are as fast
(`benchmarks/network.py`).

With w8a8, weights are those of int8 and activations have one part alone: each row is rounded to 8 bits of its largest
value. Half the products of int8, and the fastest form on CPUs with VNNI, above all for many streams.
"""

from __future__ import annotations

import copy
import warnings
from functools import cache
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from asr.errors import UsageError
from asr.int8 import LARGEST, dequantise, quantise
from asr.model import KERNEL, AcousticModel, FrontEnd, LookAhead, RecurrentLayer

__all__ = ["PRECISION", "PRECISIONS", "Precision", "inference_form", "supports"]

Precision = Literal["fp32", "fp16", "bf16", "int8", "w8a8"]
PRECISIONS: tuple[str, ...] = get_args(Precision)
PRECISION: Precision = "fp16"  # the default: faster, and no number changes by more than the order of sums does
_ENGINE = "fbgemm"


def inference_form(model: AcousticModel, precision: str) -> AcousticModel:
    """A network that computes what ``model`` does, for recognition on a CPU; it cannot be trained.

    Steps, states and their bytes are as those of ``model``. ``precision`` is one of :data:`PRECISIONS`; the result is
    ``model`` itself for fp32, where this machine has no such kernels, and for a model that cannot stream; where it has
    none for bf16, int8 or w8a8 but for fp16, the form of fp16 (for the last two of the same rounded weights). Raises
    UsageError for another precision.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"there is no precision '{precision}': use one of {', '.join(PRECISIONS)}")
    device, kind = model.front_end.mean.device, _KINDS.get(precision, _HalfProduct)
    if not supports(precision, device):
        precision, kind = "fp16", _RoundedProduct if precision in _ROUNDED else _HalfProduct
    if precision == "fp32" or model.config.bidirectional or not supports(precision, device):
        return model
    tensors: tuple[Tensor, ...] = (*model.parameters(), *model.buffers())
    form = copy.deepcopy(model, {id(t): t for t in tensors})  # new modules around the same tensors
    form.front_end = _PackedFrontEnd(model.front_end, kind)
    for i, layer in enumerate(model.recurrent):
        assert isinstance(layer, RecurrentLayer)
        form.recurrent[i] = PackedRecurrent(layer, kind)
    for ahead in form.look_ahead.values():
        assert isinstance(ahead, LookAhead)
        ahead.linear = kind.of(ahead.linear)
    for name, head in model.heads.items():
        form.heads[name] = kind.small.of(head)
    form.packed_parameters = model.parameter_count - sum(p.numel() for p in form.parameters())
    return form.eval().requires_grad_(False)


def supports(precision: str, device: torch.device | str = "cpu") -> bool:
    """Whether this machine's CPU and this build of torch have the kernels of ``precision``."""
    if precision == "fp32":
        return True
    if torch.device(device).type != "cpu" or (precision != "bf16" and not _has_fbgemm()):
        return False
    if precision == "bf16" and not _has_bf16():
        return False
    weight = torch.linspace(-1.0, 1.0, 24 * 16).view(24, 16)
    x = torch.linspace(-1.0, 1.0, 3 * 16).view(3, 16)
    try:
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "will be removed": then it is not found here, and fp32 takes its place
            right = torch.allclose(_KINDS[precision](weight)(x), x @ weight.T, atol=0.2)
            return bool(right and (precision != "w8a8" or _levels() == LARGEST))
    except (RuntimeError, AttributeError):
        return False


def _has_fbgemm() -> bool:
    return _ENGINE in torch.backends.quantized.supported_engines


def _has_bf16() -> bool:
    """Whether products of bfloat16 run on the matrix unit (AMX) of this CPU; without one they are no faster."""
    has: Any = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    return bool(torch.backends.mkldnn.is_available() and has())


class Product(nn.Module):
    """``x W^T + bias`` from packed weights; inputs and outputs in single precision."""

    bias: Tensor | None
    inputs = torch.float32  # what it reads; others are turned into it
    small: type[Product]  # the kind of products with few weights: convolutions and heads

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("bias", bias)
        self.outputs = len(weight)
        self.packed: Any = self._pack(weight.detach().float().contiguous())

    @classmethod
    def of(cls, linear: nn.Module) -> nn.Module:
        """In place of a linear layer."""
        assert isinstance(linear, nn.Linear)
        return cls(linear.weight, linear.bias)

    def rows(self, x: Tensor) -> Tensor:
        """(rows, inputs) to (rows, outputs), a tensor that nobody else holds."""
        if not len(x):  # the kernels refuse
            return torch.zeros(0, self.outputs, device=x.device)
        return self._multiply(x)

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) to (..., outputs)."""
        return self.rows(x.reshape(-1, x.shape[-1])).view(*x.shape[:-1], self.outputs)

    def _pack(self, weight: Tensor) -> Any:
        raise NotImplementedError

    def _multiply(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class _HalfProduct(Product):
    """Weights in half precision; sums in single (FBGEMM)."""

    def _pack(self, weight: Tensor) -> Any:
        return torch.fbgemm_pack_gemm_matrix_fp16(weight)

    def _multiply(self, x: Tensor) -> Tensor:
        y: Tensor = torch.fbgemm_linear_fp16_weight_fp32_activation(x, self.packed, self.bias)
        return y


class _BfloatProduct(Product):
    """Weights, inputs and outputs rounded to bfloat16, sums in single (oneDNN on AMX): for many rows several times as
    fast. Training rounds in the same places."""

    inputs = torch.bfloat16

    def _pack(self, weight: Tensor) -> Any:
        operators: Any = torch.ops.mkldnn
        return operators._reorder_linear_weight(weight.bfloat16(), _ROWS)

    def _multiply(self, x: Tensor) -> Tensor:
        operators: Any = torch.ops.mkldnn
        y: Tensor = operators._linear_pointwise(x.to(self.inputs), self.packed, None, "none", [], "").float()
        return y if self.bias is None else y.add_(self.bias)


class _RoundedProduct(_HalfProduct):
    """Weights rounded to 8 bits and read in half precision, where there is no product of integers."""

    def _pack(self, weight: Tensor) -> Any:
        return super()._pack(dequantise(*quantise(weight)))


class _IntegerProduct(Product):
    """Weights in 8 bits; inputs in two parts of 8 (or 7) bits with a scale for each row; sums of integers (FBGEMM)."""

    def _pack(self, weight: Tensor) -> Any:
        integers, scales = quantise(weight)
        self.levels = _levels()
        return _pack_integers(integers, scales)

    def _multiply(self, x: Tensor) -> Tensor:
        step = 1 / self.levels
        scale = _largest(x)
        x = x / scale
        low = torch.frac(x * self.levels)
        parts = torch.cat((torch.sub(x, low, alpha=step), low))
        high, low = _multiply_integers(parts, self.packed, self.levels).split(len(x))
        y = torch.add(high, low, alpha=step).mul_(scale)
        return y if self.bias is None else y.add_(self.bias)


class _DynamicProduct(_IntegerProduct):
    """Weights in 8 bits; each row of inputs rounded to 8 bits of its largest value; sums of integers (FBGEMM)."""

    def _multiply(self, x: Tensor) -> Tensor:
        scale = _largest(x)
        y = _multiply_integers(x / scale, self.packed, self.levels).mul_(scale)
        return y if self.bias is None else y.add_(self.bias)


class _ByteProduct(_IntegerProduct):
    """Weights in 8 bits; inputs, which lie between -1 and 1, rounded to 8 bits. For few rows the fastest."""

    def _multiply(self, x: Tensor) -> Tensor:
        y = _multiply_integers(x, self.packed, self.levels)
        return y if self.bias is None else y.add_(self.bias)


def _largest(x: Tensor) -> Tensor:
    """(rows, 1) the largest absolute value of each row; not a norm, which torch computes thirty times as slowly."""
    return x.abs().amax(1, keepdim=True).clamp_min_(_TINY)


def _pack_integers(integers: Tensor, scales: Tensor) -> Any:
    zeros = torch.zeros(len(integers), dtype=torch.long)
    weight = torch._make_per_channel_quantized_tensor(integers, scales.double(), zeros, 0)
    engine = torch.backends.quantized.engine
    torch.backends.quantized.engine = _ENGINE
    try:
        return torch.ops.quantized.linear_prepack(weight, None)
    finally:
        torch.backends.quantized.engine = engine


def _multiply_integers(x: Tensor, packed: Any, levels: int) -> Tensor:
    """``x``: (rows, inputs) from -1 to 1, rounded to multiples of 1 / levels."""
    operators: Any = torch.ops.quantized
    y: Tensor = operators.linear_with_input_q_dq_qweight_dq_output_fp32(x, 1 / levels, levels + 1, packed)
    return y


@cache
def _levels() -> int:
    """Positive values that a part of an activation can have: 127, or 63 where sums of two products of 8 bits overflow
    16 bits in the kernel (CPUs without VNNI)."""
    ones = torch.ones(1, 64)
    packed = _pack_integers(torch.full((16, 64), LARGEST, dtype=torch.int8), torch.ones(16))
    return LARGEST if bool((_multiply_integers(ones, packed, LARGEST) == 64 * LARGEST).all()) else LARGEST // 2


_TINY = 1e-30  # in place of the largest value of a row of zeros
_ROWS = 64  # for which oneDNN lays the weights out
_HalfProduct.small = _HalfProduct
_BfloatProduct.small = _BfloatProduct
_IntegerProduct.small = _HalfProduct  # of w8a8, too
_KINDS: dict[str, type[Product]] = {
    "fp16": _HalfProduct,
    "bf16": _BfloatProduct,
    "int8": _IntegerProduct,
    "w8a8": _DynamicProduct,
}
_ROUNDED = ("int8", "w8a8")  # of weights that are rounded to 8 bits


def product(weight: Tensor, bias: Tensor | None, precision: str, bounded: bool = False) -> Product:
    """``x W^T + bias`` in a precision, or where this machine has no kernels of that, as :func:`inference_form`.
    ``bounded``: inputs lie between -1 and 1, weights have been rounded to 8 bits, and 8 bits of the inputs are enough;
    then all but fp32 take these, where the machine has the kernel without its overflows."""
    if bounded and precision != "fp32" and supports("w8a8"):
        return _ByteProduct(weight, bias)
    for one in (precision, PRECISION) if precision != "fp32" else ():
        if supports(one):
            return _KINDS[one](weight, bias)
    return _PlainProduct(weight, bias)


class _PlainProduct(Product):
    """Single precision, by torch's own kernels: a row's last digits may depend on the rows beside it."""

    def _pack(self, weight: Tensor) -> Any:
        return weight

    def _multiply(self, x: Tensor) -> Tensor:
        return F.linear(x, self.packed, self.bias)


class _PackedFrontEnd(FrontEnd):
    """The convolutions as products with patches, channels last."""

    def __init__(self, plain: FrontEnd, kind: type[Product]) -> None:
        nn.Module.__init__(self)
        self.register_buffer("mean", plain.mean)
        self.register_buffer("deviation", plain.deviation)
        convolutions = (plain.conv1, plain.conv2)
        self.products = nn.ModuleList(kind.small(c.weight.permute(0, 2, 3, 1).flatten(1), c.bias) for c in convolutions)
        self.strides = [c.stride for c in convolutions]
        weight, channels = plain.project.weight, plain.conv2.out_channels
        self.inputs = kind.inputs
        bands_first = weight.unflatten(1, (channels, -1)).transpose(1, 2).flatten(1)
        self.combine = kind(bands_first, plain.project.bias)
        self.norm = plain.norm
        self.running = plain.running

    def forward(self, frames: Tensor) -> Tensor:
        """Normalised (batch, FRONT_END_HISTORY + 2 n, mels) to (batch, n, hidden)."""
        x = frames[..., None].to(self.inputs)
        for product, (time, band) in zip(self.products, self.strides, strict=True):
            patches = F.pad(x, (0, 0, 1, 1)).unfold(1, KERNEL, time).unfold(2, KERNEL, band)
            x = product(patches.permute(0, 1, 2, 4, 5, 3).flatten(3)).relu_()  # channels inmost: long runs to copy
        return self.norm(self.combine(x.flatten(2)))


class PackedRecurrent(nn.Module):
    """As :class:`asr.model.RecurrentLayer`: ``x + rnn(norm(x))``.

    The product with the inputs is one for all steps of a chunk. An LSTM's gates lie in the order i, f, o, g: one
    sigmoid for three of them.
    """

    def __init__(self, layer: RecurrentLayer, kind: type[Product]) -> None:
        super().__init__()
        self.norm = layer.norm
        rnn = layer.rnn
        self.hidden = rnn.hidden_size
        w, v, b, d = (getattr(rnn, f"{n}_l0").detach() for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        if isinstance(rnn, nn.GRU):
            late = torch.arange(len(b)) >= 2 * self.hidden  # of the candidate: the reset gate comes between the two
            self.of_input = kind(w, torch.where(late, b, b + d))
            self.of_hidden = kind(v, torch.where(late, d, torch.zeros_like(d)))
            self.advance = self._gru
            return
        order = torch.arange(len(w))
        if isinstance(rnn, nn.LSTM):
            i, f, g, o = order.chunk(4)
            order = torch.cat((i, f, o, g))
        self.of_input = kind(w[order], (b + d)[order])
        self.of_hidden = kind(v[order])
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
