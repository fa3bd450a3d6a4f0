"""Many streams, one network step: rows in the same phase that bring equally many frames share it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from asr.model import AcousticModel, State


def advance(model: AcousticModel, rows: Sequence[tuple[Tensor, State]], head: str) -> list[tuple[Tensor, State]]:
    """One step for every row.

    ``rows``: pairs of log-mel frames (any, mels) and the state of one stream. Returns, in order, log-probabilities of
    ``head`` (steps, units) and the new state. A row's numbers do not depend on the others beyond rounding.
    """
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for i, (frames, state) in enumerate(rows):
        groups[(frames.shape[0], *state.phase)].append(i)
    out: list[tuple[Tensor, State] | None] = [None] * len(rows)
    with torch.inference_mode(), _kernels():
        for members in groups.values():
            state = State.stack([rows[i][1] for i in members]) if len(members) > 1 else rows[members[0]][1]
            emissions, state = model.step(torch.stack([rows[i][0] for i in members]), state)
            states = state.split() if len(members) > 1 else [state]
            for i, emission, new in zip(members, emissions[head], states, strict=True):
                out[i] = (emission, new)
    return [row for row in out if row is not None]


def end(model: AcousticModel, state: State, head: str) -> Tensor:
    """What one stream still gives when nothing follows: (steps, units) log-probabilities of ``head``."""
    with torch.inference_mode(), _kernels():
        return model.end(state)[head][0]


def _kernels() -> AbstractContextManager[None]:
    """oneDNN's LSTM packs its weights anew at every call: for short steps torch's own is several times faster."""
    return torch.backends.mkldnn.flags(enabled=False)  # type: ignore[no-any-return, no-untyped-call]
