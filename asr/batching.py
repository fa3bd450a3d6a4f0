"""Many streams, one network step, whatever their phases and however many frames each brings.

A stream's state is a free-standing :class:`asr.model.State`, or it lies in :class:`Slots`: tensors with a row for every
live stream, from which a step gathers and to which it scatters. Both give the same numbers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asr import ragged
from asr.errors import StateError
from asr.model import FRAMES_PER_STEP, FRONT_END_HISTORY, AcousticModel, LookAhead, State
from asr.ragged import Held
from asr.running_mean import width

_ROOM = FRONT_END_HISTORY + FRAMES_PER_STEP - 1  # frames that a stream holds at most


@dataclass(frozen=True, eq=False)
class Slot:
    """The state of one stream in :class:`Slots`. In a :class:`asr.stream_state.StreamState` it stands in the place of a
    :class:`asr.model.State`; copies and bytes of it are of a free-standing one."""

    slots: Slots
    number: int

    def __len__(self) -> int:
        return 1

    @property
    def phase(self) -> tuple[int, ...]:
        """As :attr:`asr.model.State.phase`."""
        s = self.slots
        return (int(s.pending[self.number]), *(int(w[self.number]) for w in s.waits))

    @property
    def nbytes(self) -> int:
        """Of the slot, whether full or not."""
        return self.slots.nbytes // self.slots.count

    def clone(self) -> State:
        """A free-standing copy."""
        return self.slots.read([self.number]).split()[0]

    def to(self, device: str | torch.device) -> State:
        """A free-standing copy on a device."""
        return self.clone().to(device)

    def to_bytes(self) -> bytes:
        """As :meth:`asr.model.State.to_bytes`."""
        return self.clone().to_bytes()


AnyState = State | Slot


class Slots:
    """Room for the states of ``count`` streams: ``hidden`` and ``cell`` (layers, count, hidden), ``frames`` (count,
    context and pending, mels), per look-ahead layer ``waiting`` (count, future, hidden), ``heard`` (count, mels + 1, or
    0 without a running mean). Made once, never grows."""

    def __init__(self, model: AcousticModel, count: int) -> None:
        c, new = model.config, model.front_end.mean.new_zeros
        futures = [a.future for a in model.look_ahead.values() if isinstance(a, LookAhead)]
        self.count = count
        self.frames = new(count, _ROOM, c.mels)
        self.hidden = new(c.layers, count, c.hidden)
        self.cell = new(c.layers, count, c.hidden if c.has_cell_state else 0)
        self.waiting = [new(count, future, c.hidden) for future in futures]
        self.heard = new(count, width(c))
        self.pending = np.zeros(count, dtype=np.int64)
        self.waits = [np.zeros(count, dtype=np.int64) for _ in futures]
        self._free = list(range(count))[::-1]
        self._before: tuple[list[int], Held] | None = None

    @property
    def free(self) -> int:
        """Slots that nobody holds."""
        return len(self._free)

    @property
    def nbytes(self) -> int:
        """Of all tensors."""
        tensors = [self.frames, self.hidden, self.cell, *self.waiting, self.heard]
        return sum(t.numel() * t.element_size() for t in tensors)

    def hold(self, state: AnyState) -> Slot:
        """Move a free-standing state into a slot. Raises StateError when none is free."""
        if not self._free:
            raise StateError(f"all {self.count} slots are taken")
        assert isinstance(state, State)
        slot = Slot(self, self._free.pop())
        with torch.inference_mode():
            self.write([slot.number], Held.join([state]))
        return slot

    def release(self, slot: AnyState) -> None:
        """Give a slot back; its state is forgotten."""
        assert isinstance(slot, Slot) and slot.slots is self and slot.number not in self._free
        self._free.append(slot.number)

    def read(self, numbers: Sequence[int]) -> Held:
        """A copy of some slots' states."""
        at = np.asarray(numbers)
        rows = torch.from_numpy(at).to(self.hidden.device)
        with torch.inference_mode():
            return Held(
                _gather(self.frames, at, self.pending[at] + FRONT_END_HISTORY),
                self.pending[at],
                self.hidden.index_select(1, rows),
                self.cell.index_select(1, rows),
                [(_gather(w, at, n[at]), n[at]) for w, n in zip(self.waiting, self.waits, strict=True)],
                self.heard.index_select(0, rows),
            )

    def write(self, numbers: Sequence[int], held: Held) -> None:
        """Put states into slots."""
        at = np.asarray(numbers)
        rows = torch.from_numpy(at).to(self.hidden.device)
        _scatter(self.frames, at, held.pending + FRONT_END_HISTORY, held.frames)
        self.pending[at] = held.pending
        self.hidden.index_copy_(1, rows, held.hidden)
        self.cell.index_copy_(1, rows, held.cell)
        for w, n, (kept, counts) in zip(self.waiting, self.waits, held.waiting, strict=True):
            _scatter(w, at, counts, kept)
            n[at] = counts
        self.heard.index_copy_(0, rows, held.heard)

    def advance(self, model: AcousticModel, numbers: Sequence[int], frames: list[Tensor], head: str) -> list[Tensor]:
        """A network step for some slots: of each, (steps, units) log-probabilities."""
        before = self.read(numbers)
        emissions, after = ragged.step(model, frames, before, head)
        self._before = list(numbers), before
        self.write(numbers, after)
        return emissions

    def undo(self) -> None:
        """Take the last :meth:`advance` back, where :meth:`settle` was not called since."""
        if self._before is not None:
            with torch.inference_mode():
                self.write(*self._before)
            self._before = None

    def settle(self) -> None:
        """Keep what was advanced: there is nothing to undo any more."""
        self._before = None


def advance(model: AcousticModel, rows: Sequence[tuple[Tensor, AnyState]], head: str) -> list[tuple[Tensor, AnyState]]:
    """One step for every row.

    ``rows``: pairs of log-mel frames (any, mels) and the state of one stream, free-standing or in slots. Returns, in
    order, log-probabilities of ``head`` (steps, units) and the new state (the same slot). A row's numbers do not depend
    on the others beyond rounding; with an inference form of the network (:mod:`asr.inference`), not at all.
    """
    out: dict[int, tuple[Tensor, AnyState]] = {}
    free: list[int] = []
    slots: dict[Slots, list[int]] = defaultdict(list)
    for i, (frames, state) in enumerate(rows):
        if not frames.shape[0]:  # less than a frame of audio came: nothing to compute
            out[i] = frames.new_zeros(0, model.config.heads[head]), state
        elif isinstance(state, Slot):
            slots[state.slots].append(i)
        else:
            free.append(i)
    with torch.inference_mode(), _kernels(model):
        for pool, members in slots.items():
            numbers = [state.number for i in members if isinstance(state := rows[i][1], Slot)]
            emissions = pool.advance(model, numbers, [rows[i][0] for i in members], head)
            out.update({i: (e, rows[i][1]) for i, e in zip(members, emissions, strict=True)})
        if free:
            states = [state for i in free if isinstance(state := rows[i][1], State)]
            advanced = _advance_free(model, [rows[i][0] for i in free], states, head)
            out.update(zip(free, advanced, strict=True))
    return [out[i] for i in range(len(rows))]


def _advance_free(
    model: AcousticModel, frames: list[Tensor], states: list[State], head: str
) -> list[tuple[Tensor, AnyState]]:
    if len({(f.shape[0], *s.phase) for f, s in zip(frames, states, strict=True)}) > 1:
        given, held = ragged.step(model, frames, Held.join(states), head)
        return list(zip(given, held.split(), strict=True))
    alone = len(states) == 1
    emissions, state = model.step(torch.stack(frames), states[0] if alone else State.stack(states), head)
    return list(zip(emissions[head], [state] if alone else state.split(), strict=True))


def end(model: AcousticModel, states: Sequence[AnyState], head: str) -> list[Tensor]:
    """What streams still give when nothing follows: for each, (steps, units) log-probabilities of ``head``."""
    alone = [state.clone() if isinstance(state, Slot) else state for state in states]
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for i, state in enumerate(alone):
        groups[state.phase].append(i)
    out: dict[int, Tensor] = {}
    with torch.inference_mode(), _kernels(model):
        for members in groups.values():
            emissions = model.end(State.stack([alone[i] for i in members]), head)[head]
            out.update(zip(members, emissions, strict=True))
    return [out[i] for i in range(len(states))]


def _cells(numbers: NDArray[np.int64], counts: NDArray[np.int64], room: int) -> Tensor:
    """Where the first ``counts`` rows of some slots lie, in a tensor of ``room`` rows a slot."""
    row, place = ragged.places(counts)
    return torch.from_numpy(numbers[row] * room + place)


def _gather(table: Tensor, numbers: NDArray[np.int64], counts: NDArray[np.int64]) -> Tensor:
    return table.flatten(0, 1).index_select(0, _cells(numbers, counts, table.shape[1]).to(table.device))


def _scatter(table: Tensor, numbers: NDArray[np.int64], counts: NDArray[np.int64], rows: Tensor) -> None:
    table.flatten(0, 1).index_copy_(0, _cells(numbers, counts, table.shape[1]).to(table.device), rows)


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
