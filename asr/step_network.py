"""The acoustic network as one pure function of tensors whose shapes never change, for other runtimes.

:class:`asr.model.AcousticModel` takes any number of frames: its state grows while a stream begins, and other code runs
when it ends. A graph that is written to a file has one shape and one way. Here a chunk is always ``steps`` steps, the
steps that wait for their future are always all there, and one more state, ``real``, says which steps of the past
stand for sound: all states are zeros before a stream begins, so none do; and the steps of a chunk beyond ``length`` do
not, so a stream ends. Recurrent layers stay in their first state until the first real step reaches them, and look-ahead
layers see zeros in place of what is not real, as in :meth:`AcousticModel.end`. The output ``valid`` says which steps
of the emissions stand for sound. Where it does, the emissions are those of the streaming network.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from asr.errors import UsageError
from asr.inference import PackedRecurrent, Product
from asr.model import FRAMES_PER_STEP, FRONT_END_HISTORY, AcousticModel, LookAhead, RecurrentLayer
from asr.running_mean import width

__all__ = ["StepNetwork", "TensorSpec"]

_WEIGHTS = ("within", "fade")  # buffers of the running mean


@dataclass(frozen=True)
class TensorSpec:
    """An input or output. ``shape``: sizes, with ``"batch"`` for the number of streams."""

    name: str
    type: str
    shape: tuple[int | str, ...]

    def zeros(self, batch: int) -> Tensor:
        """Of so many streams."""
        sizes = [batch if size == "batch" else int(size) for size in self.shape]
        return torch.zeros(sizes, dtype=getattr(torch, self.type))

    @property
    def batch_axis(self) -> int:
        """The axis of the streams."""
        return self.shape.index("batch")


class StepNetwork(nn.Module):
    """``steps`` steps of ``model`` in a chunk; ``heads`` are the ones whose emissions it gives.

    :meth:`forward` takes :attr:`inputs` and gives :attr:`outputs`, in their order.
    """

    places: Tensor

    def __init__(self, model: AcousticModel, steps: int, heads: tuple[str, ...]) -> None:
        """``model`` is a plain one. Raises UsageError for a head that it lacks or too few steps."""
        super().__init__()
        if steps < 1:
            raise UsageError("a chunk needs at least one step")
        for head in heads:
            if head not in model.heads:
                raise UsageError(f"the model has no head '{head}': use one of {', '.join(model.heads)}")
        self.model = model.eval()
        self.steps, self.heads = steps, heads
        self.delay = model.config.lookahead_steps
        self.register_buffer("places", torch.arange(steps * FRAMES_PER_STEP), persistent=False)
        if model.front_end.running:
            for name, weights in zip(_WEIGHTS, model.front_end.running.weights(len(self.places)), strict=True):
                self.register_buffer(name, weights, persistent=False)
        layers = [layer for layer in model.recurrent if isinstance(layer, RecurrentLayer)]
        self.recurrent = nn.ModuleList(_Recurrent(layer, _FloatProduct) for layer in layers)
        self.ahead = {int(i): a for i, a in model.look_ahead.items() if isinstance(a, LookAhead)}
        self.inputs = (
            TensorSpec("frames", "float32", ("batch", steps * FRAMES_PER_STEP, model.config.mels)),
            TensorSpec("length", "int64", ("batch",)),
            *self.states,
        )
        self.outputs = (
            *(TensorSpec(head, "float32", ("batch", steps, model.config.heads[head])) for head in heads),
            TensorSpec("valid", "bool", ("batch", steps)),
            *(TensorSpec(f"next_{s.name}", s.type, s.shape) for s in self.states),
        )

    @property
    def states(self) -> tuple[TensorSpec, ...]:
        """What is carried from chunk to chunk, zeros at first; each comes back under its name with ``next_`` before it.
        Tensors without elements are left out."""
        c = self.model.config
        shapes: dict[str, tuple[int | str, ...]] = {
            "context": ("batch", FRONT_END_HISTORY, c.mels),
            "real": ("batch", self.delay),
            "hidden": (c.layers, "batch", c.hidden),
            "cell": (c.layers, "batch", c.hidden if c.has_cell_state else 0),
            **{f"waiting_{i}": ("batch", ahead.future, c.hidden) for i, ahead in enumerate(self.ahead.values())},
            "heard": ("batch", width(c)),
        }
        return tuple(TensorSpec(name, "float32", shape) for name, shape in shapes.items() if 0 not in shape)

    def forward(self, frames: Tensor, length: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """``frames``: (batch, 2 steps, mels) log-mel; ``length``: (batch,) how many of them there are, less than all
        only where a stream ends; ``state``: :attr:`states`."""
        held = dict(zip((s.name for s in self.states), state, strict=True))
        here = (self.places < length[:, None]).to(frames.dtype)
        frames, heard = self._normalize(frames, here[..., None], held)
        sound = torch.cat([held["context"], frames], dim=1)
        now = here[:, ::FRAMES_PER_STEP]
        real = torch.cat([held["real"], now], dim=1) if self.delay else now
        x, after = self._layers(self.model.front_end(sound), real, held)
        after.update(heard)
        after["context"], after["real"] = sound[:, self.steps * FRAMES_PER_STEP :], real[:, self.steps :]
        z = self.model.norm(x)
        emissions = [F.log_softmax(self.model.heads[head](z), dim=-1) for head in self.heads]
        return *emissions, real[:, : self.steps].bool(), *(after[s.name] for s in self.states)

    def _normalize(self, frames: Tensor, here: Tensor, held: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Zeros where no frame is ``here``; frames are missing only at a stream's end, so what is heard after them
        does not matter."""
        frames, running = self.model.front_end.normalize(frames) * here, self.model.front_end.running
        if running is None:
            return frames, {}
        frames, heard = running.chunk(frames, held["heard"], *(getattr(self, name) for name in _WEIGHTS))
        return frames * here, {"heard": heard}

    def _layers(self, x: Tensor, real: Tensor, held: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """``real``: (batch, delay + steps), of which the last are those that come in."""
        hidden, cell, after, late, number = [], [], {}, 0, 0
        for i, layer in enumerate(self.recurrent):
            c = held["cell"][i] if "cell" in held else held["hidden"][i]  # other cells do not look at it
            mask = self._real(real, late, self.steps)
            x, h, c = _recur(layer, x, mask, held["hidden"][i], c)
            hidden.append(h)
            cell.append(c)
            if i in self.ahead:
                ahead, name = self.ahead[i], f"waiting_{number}"
                number += 1
                if name in held:
                    x = torch.cat([held[name], x], dim=1)
                    after[name] = x[:, self.steps :]
                z = ahead.norm(x) * self._real(real, late, x.shape[1])[..., None]
                x = ahead._combine(x[:, : self.steps], z)
                late += ahead.future
        return x, {**after, "hidden": torch.stack(hidden), "cell": torch.stack(cell)}

    def _real(self, real: Tensor, late: int, count: int) -> Tensor:
        """Of the last ``count`` steps where steps come ``late`` steps late."""
        end = self.delay + self.steps - late
        return real[:, end - count : end]


class _FloatProduct(Product):
    """Weights as they are."""

    packed: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__(weight, bias)
        del self.packed
        self.register_buffer("packed", weight.detach())

    def rows(self, x: Tensor) -> Tensor:
        return F.linear(x, self.packed, self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.rows(x)

    def _pack(self, weight: Tensor) -> Any:
        return weight


class _Recurrent(PackedRecurrent):
    """Writes into no part of a tensor, which would be a scatter in a graph, and takes parts by slices: a split becomes
    a sequence of tensors."""

    def _lstm(self, inputs: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        gates, size = self.of_hidden.rows(h) + inputs, self.hidden
        share, new = torch.sigmoid(gates[:, : 3 * size]), torch.tanh(gates[:, 3 * size :])
        c = share[:, size : 2 * size] * c + share[:, :size] * new
        return torch.tanh(c) * share[:, 2 * size :], c

    def _gru(self, inputs: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        mine, size = self.of_hidden.rows(h), 2 * self.hidden
        share = torch.sigmoid(mine[:, :size] + inputs[:, :size])
        n = torch.tanh(inputs[:, size:] + share[:, : self.hidden] * mine[:, size:])
        return torch.lerp(n, h, share[:, self.hidden :]), c


def _recur(layer: Any, x: Tensor, real: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A recurrent layer, whose state is zero after every step that is not ``real`` (batch, n)."""
    inputs, out = layer.of_input(layer.norm(x)), []
    for t in range(x.shape[1]):
        h, c = layer.advance(inputs[:, t], h, c)
        h, c = h * real[:, t, None], c * real[:, t, None]
        out.append(h)
    return x + torch.stack(out, dim=1), h, c
