"""Other bodies of the network, for cells of experiments.py alone: what `models/en` has been chosen against.

While :func:`applied` lasts, networks are made with other parts; models that were saved then can be read only then, and
in single precision alone, since the inference form knows the shipped parts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import asr.model
import asr.model_config
import asr.training.batches
from asr.errors import UsageError
from asr.model import KERNEL, FrontEnd, LookAhead, ModelConfig, RecurrentLayer
from asr.running_mean import RunningMean

DROPPED = 0.2  # of the weights from step to step
CELLS_PER_OUTPUT = 2  # of a layer with a projection


class Stacked(FrontEnd):
    """The five frames that the convolutions see, side by side, into one product."""

    def __init__(self, config: ModelConfig) -> None:
        nn.Module.__init__(self)
        self.register_buffer("mean", torch.zeros(config.mels))
        self.register_buffer("deviation", torch.ones(config.mels))
        self.window = asr.model.FRONT_END_HISTORY + asr.model.FRAMES_PER_STEP
        self.project = nn.Linear(self.window * config.mels, config.hidden)
        self.norm = nn.LayerNorm(config.hidden)
        self.running = RunningMean.of(config)

    def forward(self, frames: Tensor) -> Tensor:
        """As the convolutions' front end."""
        windows = frames.unfold(1, self.window, asr.model.FRAMES_PER_STEP)
        return self.norm(self.project(windows.flatten(2)))


class PlainRecurrent(RecurrentLayer):
    """Without layer norm."""

    def __init__(self, config: ModelConfig, initial: bool = True) -> None:
        super().__init__(config, initial)
        self.norm = nn.Identity()


class PlainLookAhead(LookAhead):
    """Without layer norm."""

    def __init__(self, config: ModelConfig, future: int) -> None:
        super().__init__(config, future)
        self.norm = nn.Identity()


class WeightDropped(RecurrentLayer):
    """A part of the weights from step to step is zero for a whole batch (Merity et al. 2018)."""

    def forward(self, x: Tensor, hidden: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """As the shipped layer."""
        if not self.training:
            return super().forward(x, hidden)
        w, v, b, d = (getattr(self.rnn, f"{n}_l0") for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        state = tuple(s[None].contiguous() for s in hidden)
        weights = (w, F.dropout(v, DROPPED), b, d)
        y, h, c = torch.lstm(self.norm(x), state, weights, True, 1, 0.0, True, False, True)
        return x + self.dropout(y), (h[0], c[0])


class Projected(RecurrentLayer):
    """More cells than outputs (Sak et al. 2014)."""

    def __init__(self, config: ModelConfig, initial: bool = True) -> None:
        super().__init__(config, initial=False)
        cells = CELLS_PER_OUTPUT * config.hidden
        self.rnn = nn.LSTM(config.hidden, cells, batch_first=True, proj_size=config.hidden)
        for name, parameter in self.rnn.named_parameters() if initial else ():
            if parameter.dim() > 1:
                for gate in parameter.data.chunk(1 if "weight_hr" in name else 4):
                    nn.init.orthogonal_(gate) if "weight_hh" in name else nn.init.xavier_uniform_(gate)
            else:
                nn.init.zeros_(parameter)
                if "bias_ih" in name:
                    parameter.data[cells : 2 * cells] = 1.0

    def forward(self, x: Tensor, hidden: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """As the shipped layer; the network's zeros for a first state are widened."""
        h, c = hidden
        missing = self.rnn.hidden_size - c.shape[1]
        return super().forward(x, (h, F.pad(c, (0, missing))))


class Summarized(RecurrentLayer):
    """A layer that also hears a summary of the voice so far: the running mean of some learned features of its input
    (after Vesely et al. 2016, but as a stream can have it). The cell state holds their sum and count."""

    def __init__(self, config: ModelConfig, initial: bool = True) -> None:
        super().__init__(config, initial)
        self.features = nn.Linear(config.hidden, SUMMARY)
        self.summary = nn.Linear(SUMMARY, config.hidden, bias=False)
        nn.init.zeros_(self.summary.weight)  # at first, a plain layer

    def forward(self, x: Tensor, hidden: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """As the shipped layer; the network's zeros for a first state are widened."""
        h, c = hidden
        size = self.rnn.hidden_size
        c, before = c[:, :size], F.pad(c, (0, size + SUMMARY + 1 - c.shape[1]))[:, size:].float()
        z = self.norm(x)
        with torch.autocast(x.device.type, enabled=False):
            said = F.pad(torch.tanh(self.features(z.float())), (0, 1), value=1.0)
            heard = before[:, None] + said.cumsum(1)
            vector = self.summary(heard[..., :-1] / (heard[..., -1:] + SUMMARY_PRIOR))
        y, (h, c) = self.rnn(z + vector, (h[None].contiguous(), c[None].contiguous().to(h.dtype)))
        return x + self.dropout(y), (h[0], torch.cat([c[0], heard[:, -1].to(c.dtype)], dim=1))


class RunningStatistics(RunningMean):
    """Divides by the running deviation of each band, too; the global variance, 1, counts as much as the global mean."""

    def _counted(self, frames: Tensor) -> Tensor:
        counted = super()._counted(frames)
        return torch.cat([counted[..., :-1], counted[..., :-1] * frames, counted[..., -1:]], dim=-1)

    def _less(self, frames: Tensor, sums: Tensor, counts: Tensor) -> Tensor:
        firsts, squares = sums.chunk(2, dim=-1)
        count = (counts + self.prior).clamp_min(1e-3)
        mean = firsts / count
        variance = (squares + self.prior) / count - mean**2
        return (frames - mean * self.share) / variance.clamp_min(LEAST_VARIANCE).sqrt()

    @staticmethod
    def of(config: ModelConfig) -> RunningMean | None:
        """None for a model without."""
        plain = RunningMean.of(config)
        return None if plain is None else RunningStatistics(**dataclasses.asdict(plain))


def _twice_as_wide(config: ModelConfig) -> int:
    return 2 * config.mels + 1 if config.running_mean else 0


SUMMARY = 64  # features of the voice
SUMMARY_PRIOR = 25.0  # steps that nothing heard counts for
LEAST_VARIANCE = 0.1
LONGER = 3  # frames of a step
_BODIES: dict[str, dict[tuple[Any, str], Any]] = {
    "stacking": {(asr.model, "FrontEnd"): Stacked},
    "no layer norm": {(asr.model, "RecurrentLayer"): PlainRecurrent, (asr.model, "LookAhead"): PlainLookAhead},
    "weight drop": {(asr.model, "RecurrentLayer"): WeightDropped},
    "projection": {(asr.model, "RecurrentLayer"): Projected},
    "speaker vector": {(asr.model, "RecurrentLayer"): Summarized},
    "running variance": {(asr.model, "RunningMean"): RunningStatistics, (asr.model, "width"): _twice_as_wide},
    "steps of 60 ms": {
        (asr.model, "FRAMES_PER_STEP"): LONGER,
        (asr.model, "FRONT_END_HISTORY"): 2 * (KERNEL - 1) + 1 - LONGER,
        (asr.model_config, "STEP_MS"): LONGER * asr.model_config.FRAME_MS,
        (asr.training.batches, "FRAMES_PER_STEP"): LONGER,
    },
}


@contextmanager
def applied(variant: str) -> Iterator[None]:
    """Networks are of this kind as long as the context lasts; "" changes nothing. Raises UsageError for others."""
    if variant and variant not in _BODIES:
        raise UsageError(f"there is no variant '{variant}': choose from {', '.join(_BODIES)}")
    changes = _BODIES.get(variant, {})
    kept = {place: getattr(*place) for place in changes}
    try:
        for (module, name), value in changes.items():
            setattr(module, name, value)
        yield
    finally:
        for (module, name), value in kept.items():
            setattr(module, name, value)
