"""The acoustic model: a causal convolutional front end, recurrent layers, look-ahead layers and CTC heads.

Log-mel frames (20 ms) go in, log-probabilities of units per step (40 ms) come out. Every part carries its memory in an
explicit :class:`State`; offline is *defined* as ``begin`` + one ``step`` with everything + ``end``. The parallel
:meth:`AcousticModel.forward` over padded batches exists for training and gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from asr.errors import ModelError, StateError
from asr.model_config import FRAMES_PER_STEP, STEP_MS, ModelConfig
from asr.running_mean import RunningMean, width

__all__ = [
    "FRAMES_PER_STEP",
    "FRONT_END_HISTORY",
    "KERNEL",
    "STEP_MS",
    "AcousticModel",
    "FrontEnd",
    "LockedDropout",
    "LookAhead",
    "ModelConfig",
    "RecurrentLayer",
    "State",
    "fewer_taps",
]

KERNEL = 3  # of both convolutions, in time and frequency
# Frames before a step's own two that its output depends on: conv 1 looks back 2, conv 2 (stride 2) one frame more.
FRONT_END_HISTORY = 2 * (KERNEL - 1) + 1 - FRAMES_PER_STEP


@dataclass
class State:
    """Everything the network remembers of ``batch`` streams that are in the same phase.

    ``context``: (batch, FRONT_END_HISTORY, mels) last normalised frames. ``pending``: (batch, 0 or 1, mels) a frame
    waiting for its step to fill. ``hidden`` and ``cell``: (layers, batch, hidden); ``cell`` has no elements unless the
    model is an LSTM. ``waiting``: per look-ahead layer (batch, up to its future steps, hidden) outputs that wait for
    their future. ``heard``: (batch, mels + 1) what the running mean is made of (:mod:`asr.running_mean`); (batch, 0)
    for a model without one. Rows of one State always have equal shapes; states of different :attr:`phase` cannot be
    stacked.
    """

    context: Tensor
    pending: Tensor
    hidden: Tensor
    cell: Tensor
    waiting: tuple[Tensor, ...]
    heard: Tensor

    def __len__(self) -> int:
        return int(self.context.shape[0])

    @property
    def phase(self) -> tuple[int, ...]:
        """States with equal phase can share a batch: pending frames and fill of the look-ahead layers."""
        return (int(self.pending.shape[1]), *(int(w.shape[1]) for w in self.waiting))

    @property
    def nbytes(self) -> int:
        """Size of all tensors in bytes."""
        return sum(t.numel() * t.element_size() for t in self._tensors().values())

    def clone(self) -> State:
        """A copy that shares nothing."""
        return self._map(torch.clone)

    def to(self, device: str | torch.device) -> State:
        """The state on another device."""
        return self._map(lambda t: t.to(device))

    @staticmethod
    def stack(states: list[State]) -> State:
        """Join the rows of states of one phase. Raises StateError when phases differ."""
        if not states:
            raise StateError("there is no state to stack")
        if len({s.phase for s in states}) != 1:
            raise StateError("states of different phase cannot share a batch: group them by State.phase")
        return State(
            torch.cat([s.context for s in states]),
            torch.cat([s.pending for s in states]),
            torch.cat([s.hidden for s in states], dim=1),
            torch.cat([s.cell for s in states], dim=1),
            tuple(torch.cat(parts) for parts in zip(*(s.waiting for s in states), strict=True)),
            torch.cat([s.heard for s in states]),
        )

    def rows(self, start: int, stop: int) -> State:
        """A copy of rows ``start`` to ``stop``."""
        return State(
            self.context[start:stop].clone(),
            self.pending[start:stop].clone(),
            self.hidden[:, start:stop].clone(),
            self.cell[:, start:stop].clone(),
            tuple(w[start:stop].clone() for w in self.waiting),
            self.heard[start:stop].clone(),
        )

    def split(self) -> list[State]:
        """One state per row."""

        def parts(tensor: Tensor, dim: int = 0) -> list[Tensor]:
            return [part.clone(memory_format=torch.contiguous_format) for part in tensor.split(1, dim)]

        context, pending, hidden, cell = map(parts, (self.context, self.pending, self.hidden, self.cell), (0, 0, 1, 1))
        waiting, heard = [parts(w) for w in self.waiting], parts(self.heard)
        return [
            State(context[i], pending[i], hidden[i], cell[i], tuple(w[i] for w in waiting), heard[i])
            for i in range(len(self))
        ]

    def to_bytes(self) -> bytes:
        """Serialise (safetensors); :meth:`from_bytes` is the inverse, on any machine."""
        from safetensors.torch import save

        tensors = {k: t.detach().cpu().contiguous() for k, t in self._tensors().items()}
        return save(tensors, {"format": "asr-state-1"})

    @staticmethod
    def from_bytes(data: bytes) -> State:
        """Read what :meth:`to_bytes` wrote. Raises StateError for anything else.

        Whether the state fits a model is for :meth:`AcousticModel.check_state` to say.
        """
        from safetensors.torch import load

        try:
            tensors = load(data)
            count = sum(name.startswith("waiting.") for name in tensors)
            return State(
                tensors["context"],
                tensors["pending"],
                tensors["hidden"],
                tensors["cell"],
                tuple(tensors[f"waiting.{i}"] for i in range(count)),
                tensors.get("heard", tensors["context"].new_zeros(len(tensors["context"]), 0)),
            )
        except Exception as error:  # safetensors raises its own class, KeyError comes from a foreign file
            raise StateError(f"not a serialised state of a network ({_one_line(error)})") from None

    def _tensors(self) -> dict[str, Tensor]:
        named = {"context": self.context, "pending": self.pending, "hidden": self.hidden, "cell": self.cell}
        named |= {f"waiting.{i}": w for i, w in enumerate(self.waiting)}
        return {**named, "heard": self.heard} if tuple(self.heard.shape[1:]) != (0,) else named

    def _map(self, function: Callable[[Tensor], Tensor]) -> State:
        return State(
            function(self.context),
            function(self.pending),
            function(self.hidden),
            function(self.cell),
            tuple(function(w) for w in self.waiting),
            function(self.heard),
        )


class FrontEnd(nn.Module):
    """Normalisation, global and by a running mean where there is one, and two convolutions (3x3; strides 1 and 2 in
    time, 2 in frequency), causal in time."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(config.mels))
        self.register_buffer("deviation", torch.ones(config.mels))
        first = max(1, config.channels // 2)
        self.conv1 = nn.Conv2d(1, first, KERNEL, (1, 2), (0, 1))
        self.conv2 = nn.Conv2d(first, config.channels, KERNEL, (FRAMES_PER_STEP, 2), (0, 1))
        self.project = nn.Linear(config.channels * config.mels // 4, config.hidden)
        self.norm = nn.LayerNorm(config.hidden)
        self.running = RunningMean.of(config)

    def normalize(self, frames: Tensor) -> Tensor:
        """(batch, frames, mels) to zero mean and unit variance by the stored global statistics."""
        return (frames - self.mean) / self.deviation

    def forward(self, frames: Tensor) -> Tensor:
        """Normalised (batch, FRONT_END_HISTORY + 2 n, mels) to (batch, n, hidden)."""
        x = F.relu(self.conv1(frames[:, None]))
        x = F.relu(self.conv2(x))
        x = self.project(x.transpose(1, 2).flatten(2))
        return self.norm(x)


class LockedDropout(nn.Module):
    """Dropout whose mask stays the same over the steps of a row (Gal and Ghahramani 2016); cheap to draw."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        """``x``: (batch, steps, channels)."""
        if not self.training or self.probability == 0:
            return x
        keep = 1 - self.probability
        return x * (torch.rand(x.shape[0], 1, x.shape[2], device=x.device) < keep).to(x.dtype).div_(keep)


LstmPass = Callable[[nn.LSTM, Tensor, Tensor, Tensor], tuple[Tensor, tuple[Tensor, Tensor]]]


class RecurrentLayer(nn.Module):
    """``x + dropout(rnn(norm(x)))``. ``training_pass``: what an LSTM is trained with in place of torch's own pass."""

    training_pass: LstmPass | None = None

    def __init__(self, config: ModelConfig, initial: bool = True) -> None:
        super().__init__()
        kinds: dict[str, Any] = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}
        size = config.hidden // 2 if config.bidirectional else config.hidden
        self.norm = nn.LayerNorm(config.hidden)
        self.rnn = kinds[config.cell](config.hidden, size, batch_first=True, bidirectional=config.bidirectional)
        self.dropout = LockedDropout(config.dropout)
        if not initial:
            return
        for name, parameter in self.rnn.named_parameters():
            if "weight_hh" in name:
                for gate in parameter.data.chunk(parameter.shape[0] // size):
                    nn.init.orthogonal_(gate)
            elif "weight_ih" in name:
                nn.init.xavier_uniform_(parameter)
            else:
                nn.init.zeros_(parameter)
                if config.cell == "lstm" and "bias_ih" in name:  # forget gate open at first (Jozefowicz et al. 2015)
                    parameter.data[size : 2 * size] = 1.0

    def forward(self, x: Tensor, hidden: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """``x``: (batch, n, hidden); ``hidden``: the pair (h, c) of (batch, hidden), c without elements unless LSTM."""
        h, c = hidden
        if self.training and self.training_pass and isinstance(self.rnn, nn.LSTM):
            y, (h, c) = self.training_pass(self.rnn, self.norm(x), h, c)
            return x + self.dropout(y), (h, c)
        if isinstance(self.rnn, nn.LSTM):
            y, (h, c) = self.rnn(self.norm(x), (h[None].contiguous(), c[None].contiguous()))
            c = c[0]
        else:
            y, h = self.rnn(self.norm(x), h[None].contiguous())
        return x + self.dropout(y), (h[0], c)

    def forward_both_ways(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Bidirectional pass over right-padded rows: the second direction reads every row from its own end."""
        steps = torch.arange(x.shape[1], device=x.device)
        back = torch.where(steps < lengths[:, None], lengths[:, None] - 1 - steps, steps)[..., None]
        back = back.expand(-1, -1, x.shape[2])
        z = self.norm(x)
        zeros = z.new_zeros(1, x.shape[0], self.rnn.hidden_size)
        halves = []
        for direction, suffix in ((z, ""), (z.gather(1, back), "_reverse")):
            names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
            weights = [getattr(self.rnn, name + suffix) for name in names]
            args = (weights, True, 1, 0.0, self.training, False, True)
            halves.append(_one_way(self.rnn.mode)(direction, zeros, *args))
        y = torch.cat([halves[0], halves[1].gather(1, back[..., : halves[1].shape[2]])], dim=2)
        return x + self.dropout(y)


def _one_way(mode: str) -> Callable[..., Tensor]:
    """A recurrent pass in one direction from the initial state zero: (x, zeros, weights, ...) to outputs."""
    if mode == "LSTM":
        return lambda x, zeros, *args: torch.lstm(x, (zeros, zeros), *args)[0]
    kernel = {"GRU": torch.gru, "RNN_TANH": torch.rnn_tanh}[mode]
    return lambda x, zeros, *args: kernel(x, zeros, *args)[0]


class LookAhead(nn.Module):
    """A residual time convolution over a step and some of its future (row convolution of Deep Speech 2, full matrix).

    ``x_t + dropout(relu(W [norm(x_t), norm(x_{t+s}), ..., norm(x_{t+future})]))``; beyond the end there are zeros.
    """

    def __init__(self, config: ModelConfig, future: int) -> None:
        super().__init__()
        self.future = future
        self.stride = config.lookahead_stride
        self.norm = nn.LayerNorm(config.hidden)
        self.linear: nn.Module = nn.Linear(config.hidden * (future // self.stride + 1), config.hidden)
        self.dropout = LockedDropout(config.dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None, future: int | None = None) -> Tensor:
        """All of ``x`` (batch, n, hidden) with zeros after it; ``mask`` (batch, n, 1) is 0 beyond a row's end;
        ``future``: steps to look ahead, if fewer than could be."""
        z = self.norm(x)
        if mask is not None:
            z = z * mask.to(z.dtype)
        if future is None or future == self.future:
            return self._combine(x, F.pad(z, (0, 0, 0, self.future)))
        taps = _taps(F.pad(z, (0, 0, 0, future)), x.shape[1], future, self.stride)
        assert isinstance(self.linear, nn.Linear)
        y = F.linear(taps, self.linear.weight[:, : taps.shape[2]], self.linear.bias)
        return x + self.dropout(F.relu(y))

    def step(self, x: Tensor, waiting: Tensor) -> tuple[Tensor, Tensor]:
        """The outputs whose future is known now, and what still waits."""
        x = torch.cat([waiting, x], dim=1)
        ready = max(0, x.shape[1] - self.future)
        if ready == 0:
            return x[:, :0], x
        return self._combine(x[:, :ready], self.norm(x)), x[:, ready:].clone()  # a view would keep all of x alive

    def _combine(self, x: Tensor, z: Tensor) -> Tensor:
        return x + self.dropout(F.relu(self.linear(_taps(z, x.shape[1], self.future, self.stride))))


def _taps(z: Tensor, count: int, future: int, stride: int) -> Tensor:
    """Of each of ``count`` steps the ones that it sees, beside one another: (batch, count, taps x hidden)."""
    return torch.cat([z[:, o : o + count] for o in range(0, future + 1, stride)], dim=2)


def fewer_taps(weights: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Weights of a network of the widest look-ahead as those of one of ``config``, whose look-ahead may be less."""
    fitted = dict(weights)
    for i in config.lookahead_layers:
        name = f"look_ahead.{i}.linear.weight"
        if name in weights:
            fitted[name] = weights[name][:, : config.hidden * (config.lookahead[i] // config.lookahead_stride + 1)]
    return fitted


class AcousticModel(nn.Module):
    """Log-mel frames to log-probabilities of units; see the module's text."""

    packed_parameters = 0  # of an inference form: those that are no tensors any more (asr.inference)

    def __init__(self, config: ModelConfig, initial: bool = True) -> None:
        """``initial``: whether good initial weights are drawn; they cost time that loaded weights do not need."""
        super().__init__()
        self.config = config
        self.front_end = FrontEnd(config)
        self.recurrent = nn.ModuleList(RecurrentLayer(config, initial) for _ in range(config.layers))
        self.look_ahead = nn.ModuleDict(
            {str(i): LookAhead(config, config.lookahead[i]) for i in config.lookahead_layers}
        )
        self.norm = nn.LayerNorm(config.hidden)
        self.heads = nn.ModuleDict({name: nn.Linear(config.hidden, units) for name, units in config.heads.items()})
        self.intermediate: nn.Module | None = None
        if config.intermediate:
            first = next(iter(config.heads.values()))
            self.intermediate = nn.Sequential(nn.LayerNorm(config.hidden), nn.Linear(config.hidden, first))

    # -- streaming ---------------------------------------------------------------------------------------------------

    def begin(self, batch: int = 1) -> State:
        """State of ``batch`` streams before their first frame. Raises ModelError for a bidirectional model."""
        self._must_stream()
        c = self.config
        new = self.front_end.mean.new_zeros
        return State(
            context=new(batch, FRONT_END_HISTORY, c.mels),
            pending=new(batch, 0, c.mels),
            hidden=new(c.layers, batch, c.hidden),
            cell=new(c.layers, batch, c.hidden if c.has_cell_state else 0),
            waiting=tuple(new(batch, 0, c.hidden) for _ in self.look_ahead),
            heard=new(batch, width(c)),
        )

    def check_state(self, state: State) -> None:
        """Raise StateError unless ``state`` can be one of this model; for states that come from outside."""
        c = self.config
        futures = [ahead.future for ahead in self.look_ahead.values() if isinstance(ahead, LookAhead)]
        if len(state.waiting) != len(futures):
            raise StateError(f"the state has {len(state.waiting)} look-ahead layers, this model has {len(futures)}")
        rows = state.context.shape[0] if state.context.dim() else 0
        shapes = {
            "context": (rows, FRONT_END_HISTORY, c.mels),
            "pending": (rows, FRAMES_PER_STEP - 1, c.mels),
            "hidden": (c.layers, rows, c.hidden),
            "cell": (c.layers, rows, c.hidden if c.has_cell_state else 0),
            "heard": (rows, width(c)),
        }
        shapes.update({f"waiting.{i}": (rows, future, c.hidden) for i, future in enumerate(futures)})
        fills = ("pending", *(f"waiting.{i}" for i in range(len(futures))))  # these hold that many steps or fewer
        dtype = self.front_end.mean.dtype
        for name, tensor in {**state._tensors(), "heard": state.heard}.items():
            here, there = shapes[name], tuple(tensor.shape)
            if name in fills and len(there) == 3:
                here = (here[0], min(here[1], there[1]), here[2])
            if there != here:
                raise StateError(f"the state is of another model: its {name} has shape {there}, here it is {here}")
            if tensor.dtype != dtype or not bool(torch.isfinite(tensor).all()):
                raise StateError(f"the state is broken: its {name} does not hold finite numbers of type {dtype}")
        if bool((state.heard[:, -1:] < 0).any()):
            raise StateError("the state is broken: it has heard fewer frames than none")

    def step(self, frames: Tensor, state: State, head: str | None = None) -> tuple[dict[str, Tensor], State]:
        """``frames``: (batch, any, mels) log-mel. Returns log-probabilities per head, or of ``head`` alone, and the new
        state."""
        x, state = self.step_hidden(frames, state)
        return self.emit(x, head), state

    def end(self, state: State, head: str | None = None) -> dict[str, Tensor]:
        """What comes out when nothing follows: a started step is filled and look-ahead layers see zeros."""
        return self.emit(self.end_hidden(state), head)

    def step_hidden(self, frames: Tensor, state: State) -> tuple[Tensor, State]:
        """As :meth:`step`, before the heads: (batch, steps, hidden)."""
        self._must_stream()
        if frames.dim() != 3 or frames.shape[0] != len(state) or frames.shape[2] != self.config.mels:
            raise StateError(f"expected ({len(state)}, frames, {self.config.mels}) log-mel, got {tuple(frames.shape)}")
        frames, heard = self.front_end.normalize(frames), state.heard
        if self.front_end.running:
            frames, heard = self.front_end.running.batch(frames, heard)
        x, state = self._advance(frames, state, final=False)
        state.heard = heard
        return x, state

    def end_hidden(self, state: State) -> Tensor:
        """As :meth:`end`, before the heads."""
        self._must_stream()
        missing = -state.pending.shape[1] % FRAMES_PER_STEP
        return self._advance(state.pending.new_zeros(len(state), missing, self.config.mels), state, final=True)[0]

    def emit(self, x: Tensor, head: str | None = None) -> dict[str, Tensor]:
        """Log-probabilities of every head, or of ``head`` alone, for (batch, steps, hidden)."""
        z = self.norm(x)
        wanted = self.heads if head is None else (head,)
        return {name: F.log_softmax(self.heads[name](z).float(), dim=-1) for name in wanted}

    def _advance(self, frames: Tensor, state: State, final: bool) -> tuple[Tensor, State]:
        batch = len(state)
        joined = torch.cat([state.context, state.pending, frames], dim=1)
        steps = (joined.shape[1] - FRONT_END_HISTORY) // FRAMES_PER_STEP
        used = steps * FRAMES_PER_STEP
        if steps:
            x = self.front_end(joined[:, : FRONT_END_HISTORY + used])
        else:
            x = joined.new_zeros(batch, 0, self.config.hidden)
        context = joined[:, used : used + FRONT_END_HISTORY].clone()  # views would keep all of the chunk alive
        pending = joined[:, used + FRONT_END_HISTORY :].clone()
        hidden, cell, waiting = list(state.hidden), list(state.cell), []
        held = iter(state.waiting)
        for i, layer in enumerate(self.recurrent):
            if x.shape[1]:
                x, (hidden[i], cell[i]) = layer(x, (state.hidden[i], state.cell[i]))
            if str(i) in self.look_ahead:
                ahead = self.look_ahead[str(i)]
                assert isinstance(ahead, LookAhead)
                if final:
                    x, rest = ahead(torch.cat([next(held), x], dim=1)), x[:, :0]
                else:
                    x, rest = ahead.step(x, next(held))
                waiting.append(rest)
        return x, State(context, pending, torch.stack(hidden), torch.stack(cell), tuple(waiting), state.heard)

    def _must_stream(self) -> None:
        if self.config.bidirectional:
            raise ModelError(
                "a bidirectional model needs the whole recording and cannot stream: it is for offline "
                "comparison alone; train with bidirectional = false"
            )

    # -- training and offline comparison -----------------------------------------------------------------------------

    def forward(
        self,
        frames: Tensor,
        lengths: Tensor,
        carry: tuple[Tensor, ...] | None = None,
        lookahead: Sequence[int] | None = None,
    ) -> tuple[dict[str, Tensor], Tensor, tuple[Tensor, ...]]:
        """Padded rows in parallel.

        ``frames``: (batch, time, mels) log-mel; ``lengths``: (batch,) frames of each row; ``carry``: (h, c), each
        (layers, batch, hidden), the recurrent state to start from, and, for a model with a running mean, if it is not
        to begin anew, (1, batch, mels + 1) of what it has heard; ``lookahead``: as in the configuration, if less than
        there. Returns log-probabilities per head (batch, steps, units) (and ``intermediate`` while training), steps of
        each row, and the same of the end: h and c after the last padded step, what was heard after the row's own.
        """
        x = self.front_end.normalize(frames)
        time = torch.arange(x.shape[1], device=x.device)
        real = (time < lengths[:, None])[..., None]
        x, heard = self._less_running_mean(x * real, lengths, carry[2:] if carry else ())
        if heard:
            x = x * real
        x = F.pad(x, (0, 0, FRONT_END_HISTORY, -x.shape[1] % FRAMES_PER_STEP))
        x = self.front_end(x)
        steps = (lengths + FRAMES_PER_STEP - 1) // FRAMES_PER_STEP
        mask = (torch.arange(x.shape[1], device=x.device) < steps[:, None])[..., None]
        if carry is None:
            zeros = x.new_zeros(self.config.layers, x.shape[0], self.config.hidden)
            carry = zeros, zeros
        hidden, cell, middle = [], [], None
        for i, layer in enumerate(self.recurrent):
            if self.config.bidirectional:
                assert isinstance(layer, RecurrentLayer)
                x = layer.forward_both_ways(x, steps)
                h = c = carry[0][i]
            else:
                x, (h, c) = layer(x, (carry[0][i].to(x.dtype), carry[1][i].to(x.dtype)))
            hidden.append(h)
            cell.append(c)
            if str(i) in self.look_ahead:
                x = self.look_ahead[str(i)](x, mask, None if lookahead is None else lookahead[i])
            if i + 1 == self.config.intermediate:
                middle = x
        out = self.emit(x)
        if self.training and self.intermediate is not None and middle is not None:
            out["intermediate"] = F.log_softmax(self.intermediate(middle).float(), dim=-1)
        return out, steps, (torch.stack(hidden), torch.stack(cell), *heard)

    def _less_running_mean(
        self, x: Tensor, lengths: Tensor, heard: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Normalised frames (batch, time, mels), zeros beyond ``lengths``, as the convolutions get them, and what was
        heard at the end of each row; no such thing for a model without a running mean."""
        running = self.front_end.running
        if running is None:
            return x, ()
        before = heard[0][0] if heard else x.new_zeros(len(x), width(self.config))
        return running.parallel(x, before), (running.after(x, lengths, before)[None],)

    @property
    def parameter_count(self) -> int:
        """Trainable parameters."""
        return self.packed_parameters + sum(p.numel() for p in self.parameters())


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
