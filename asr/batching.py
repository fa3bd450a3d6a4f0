"""Many streams, one network step: rows in the same phase that bring equally many frames share it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from asr.model import AcousticModel, State


def advance(model: AcousticModel, rows: Sequence[tuple[Tensor, State]], head: str) -> list[tuple[Tensor, State]]:
    """One step for every row.

    ``rows``: pairs of log-mel frames (any, mels) and the state of one stream. Returns, in order, log-probabilities of
    ``head`` (steps, units) and the new state. A row's numbers do not depend on the others beyond rounding.
    """
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    out: dict[int, tuple[Tensor, State]] = {}
    for i, (frames, state) in enumerate(rows):
        if frames.shape[0]:
            groups[(frames.shape[0], *state.phase)].append(i)
        else:  # less than a frame of audio came: nothing to compute
            out[i] = frames.new_zeros(0, model.config.heads[head]), state
    with torch.inference_mode(), _kernels(model):
        for members in groups.values():
            alone = len(members) == 1
            state = rows[members[0]][1] if alone else State.stack([rows[i][1] for i in members])
            emissions, state = model.step(torch.stack([rows[i][0] for i in members]), state, head)
            states = [state] if alone else state.split()
            for i, emission, new in zip(members, emissions[head], states, strict=True):
                out[i] = emission, new
    return [out[i] for i in range(len(rows))]


def end(model: AcousticModel, states: Sequence[State], head: str) -> list[Tensor]:
    """What streams still give when nothing follows: for each, (steps, units) log-probabilities of ``head``."""
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for i, state in enumerate(states):
        groups[state.phase].append(i)
    out: dict[int, Tensor] = {}
    with torch.inference_mode(), _kernels(model):
        for members in groups.values():
            emissions = model.end(State.stack([states[i] for i in members]), head)[head]
            out.update(zip(members, emissions, strict=True))
    return [out[i] for i in range(len(states))]


@contextmanager
def _kernels(model: AcousticModel) -> Iterator[None]:
    """oneDNN's LSTM packs its weights anew at every call: for short steps torch's own is several times faster. An
    inference form has no LSTM of torch's, and oneDNN's convolutions are faster."""
    if model.packed_parameters:
        yield
        return
    flags: Any = torch.backends.mkldnn  # its own context manager warns on most machines, about flags not used here
    before, flags.enabled = flags.enabled, False
    try:
        yield
    finally:
        flags.enabled = before
