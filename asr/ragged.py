"""One network step for streams that bring different numbers of frames and stand in different phases.

Rows of all streams lie one after another in flat tensors; recurrent layers see them in packed order (first step of
every stream, second step of all that have one, ...; as torch's PackedSequence), so that a step of many streams costs as
many sequential products as its longest stream needs, however the chunks were cut. What a stream gives and keeps is what
:meth:`asr.model.AcousticModel.step` alone gives and keeps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from asr.errors import StateError
from asr.model import FRAMES_PER_STEP, FRONT_END_HISTORY, AcousticModel, LookAhead, RecurrentLayer, State
from asr.running_mean import RunningMean

Ints = NDArray[np.int64]
_WINDOW = FRONT_END_HISTORY + FRAMES_PER_STEP


@dataclass
class Held:
    """The states of n streams, flat. ``frames``: their contexts and pending frames one after another, normalised;
    ``pending``: (n,) how many of these are pending. ``hidden``, ``cell``: (layers, n, hidden). ``waiting``: per
    look-ahead layer the rows that wait, and (n,) how many of each stream. ``heard``: (n, mels + 1 or 0)."""

    frames: Tensor
    pending: Ints
    hidden: Tensor
    cell: Tensor
    waiting: list[tuple[Tensor, Ints]]
    heard: Tensor

    @staticmethod
    def join(states: list[State]) -> Held:
        """Of states of one row each."""
        parts = [t[0] for s in states for t in (s.context, s.pending)]
        layers = range(len(states[0].waiting))
        return Held(
            torch.cat(parts),
            np.array([s.pending.shape[1] for s in states]),
            torch.cat([s.hidden for s in states], dim=1),
            torch.cat([s.cell for s in states], dim=1),
            [
                (torch.cat([s.waiting[k][0] for s in states]), np.array([s.waiting[k].shape[1] for s in states]))
                for k in layers
            ],
            torch.cat([s.heard for s in states]),
        )

    def split(self) -> list[State]:
        """One state per stream, which share nothing."""
        frames = [f.clone()[None] for f in self.frames.split((self.pending + FRONT_END_HISTORY).tolist())]
        waiting = [[w.clone()[None] for w in rows.split(counts.tolist())] for rows, counts in self.waiting]
        contiguous = torch.contiguous_format
        return [
            State(
                f[:, :FRONT_END_HISTORY].clone(),
                f[:, FRONT_END_HISTORY:].clone(),
                self.hidden[:, i : i + 1].clone(memory_format=contiguous),
                self.cell[:, i : i + 1].clone(memory_format=contiguous),
                tuple(w[i] for w in waiting),
                self.heard[i : i + 1].clone(),
            )
            for i, f in enumerate(frames)
        ]


def step(model: AcousticModel, frames: list[Tensor], held: Held, head: str) -> tuple[list[Tensor], Held]:
    """``frames``: of each stream (any, mels) log-mel. Returns of each (steps, units) log-probabilities of ``head``, and
    what is held now. Raises StateError for frames of another width."""
    if any(f.dim() != 2 or f.shape[1] != model.config.mels for f in frames):
        raise StateError(f"expected (frames, {model.config.mels}) log-mel of every stream")
    new = np.array([len(f) for f in frames])
    fresh, heard = model.front_end.normalize(torch.cat(frames)), held.heard
    if model.front_end.running and len(fresh):
        fresh, heard = _less_mean(model.front_end.running, fresh, new, heard)
    table = torch.cat([held.frames, fresh])
    sequence, lengths = _join(held.pending + FRONT_END_HISTORY, new)
    counts = (lengths - FRONT_END_HISTORY) // FRAMES_PER_STEP
    begins = np.cumsum(lengths) - lengths
    order = _Packed(counts)
    windows = sequence[(begins[order.row] + FRAMES_PER_STEP * order.place)[:, None] + np.arange(_WINDOW)]
    left = lengths - FRAMES_PER_STEP * counts
    row, place = places(left)
    kept = _take(table, sequence[begins[row] + FRAMES_PER_STEP * counts[row] + place])
    if len(windows):
        x = model.front_end(_take(table, windows.ravel()).view(-1, _WINDOW, model.config.mels))[:, 0]
    else:
        x = table.new_zeros(0, model.config.hidden)
    hidden, cell, waiting = held.hidden.clone(), held.cell.clone(), []
    ahead = iter(held.waiting)
    for i, layer in enumerate(model.recurrent):
        if len(x):
            x = _recur(layer, x, order, hidden[i], cell[i])
        if str(i) in model.look_ahead:
            x, order, rest = _look_ahead(model.look_ahead[str(i)], x, order, *next(ahead))
            waiting.append(rest)
    emissions = model.emit(x, head)[head] if len(x) else x.new_zeros(0, model.config.heads[head])
    given = _take(emissions, order.stream_major()).split(order.counts.tolist())
    return list(given), Held(kept, left - FRONT_END_HISTORY, hidden, cell, waiting, heard)


class _Packed:
    """The order in which recurrent layers see rows. ``counts``: (n,) rows of each stream. ``row``, ``place``: of each
    row its stream and its number there. ``sizes``: how many streams have a first row, a second, ..."""

    def __init__(self, counts: Ints) -> None:
        self.counts = counts
        self.streams = np.argsort(-counts, kind="stable")
        longest = int(counts.max(initial=0))
        self.sizes = (counts > np.arange(longest)[:, None]).sum(axis=1)
        rank, self.place = places(self.sizes)[::-1]
        self.row = self.streams[rank]

    def stream_major(self) -> Ints:
        """Where the rows of the first stream lie, those of the second, ..."""
        begins = np.cumsum(self.sizes) - self.sizes
        rank = np.empty_like(self.streams)
        rank[self.streams] = np.arange(len(rank))
        row, place = places(self.counts)
        return np.asarray(begins[place] + rank[row])


def _less_mean(running: RunningMean, frames: Tensor, counts: Ints, heard: Tensor) -> tuple[Tensor, Tensor]:
    """``frames``: of each stream ``counts``, one stream after the other; ``heard``: (n, mels + 1)."""
    order = _Packed(counts)
    members = torch.from_numpy(order.streams[: order.sizes[0]]).to(frames.device)
    packed = _take(frames, (np.cumsum(counts) - counts)[order.row] + order.place)
    packed, now = running.step(packed, order.sizes.tolist(), heard.index_select(0, members))
    return _take(packed, order.stream_major()), heard.index_copy(0, members, now)


def _recur(layer: nn.Module, x: Tensor, order: _Packed, hidden: Tensor, cell: Tensor) -> Tensor:
    """``x`` (rows, hidden) through a recurrent layer; ``hidden`` and ``cell`` (n, hidden) are advanced in place."""
    members = torch.from_numpy(order.streams[: order.sizes[0]]).to(x.device)
    h, c = hidden.index_select(0, members), cell.index_select(0, members)
    if isinstance(layer, RecurrentLayer):
        y, h, c = _packed_sequence(layer, x, order, h, c)
    else:
        inference: Any = layer
        y, h, c = inference.packed(x, order.sizes.tolist(), h, c)
    hidden.index_copy_(0, members, h)
    cell.index_copy_(0, members, c)
    return y


def _packed_sequence(layer: RecurrentLayer, x: Tensor, order: _Packed, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
    packed = PackedSequence(layer.norm(x), torch.from_numpy(order.sizes))
    if isinstance(layer.rnn, nn.LSTM):
        y, (h, c) = layer.rnn(packed, (h[None], c[None]))
        return x + layer.dropout(y.data[None])[0], h[0], c[0]
    y, h = layer.rnn(packed, h[None])
    return x + layer.dropout(y.data[None])[0], h[0], c


def _look_ahead(
    ahead: nn.Module, x: Tensor, order: _Packed, waiting: Tensor, held: Ints
) -> tuple[Tensor, _Packed, tuple[Tensor, Ints]]:
    """The rows whose future is known now, their order, and what waits."""
    assert isinstance(ahead, LookAhead)
    sequence, lengths = _join(held, order.counts)
    fed = len(waiting)
    later = sequence >= fed
    sequence[later] = fed + order.stream_major()[sequence[later] - fed]
    table = torch.cat([waiting, x])
    ready = np.maximum(lengths - ahead.future, 0)
    begins = np.cumsum(lengths) - lengths
    row, place = places(lengths - ready)
    rest = _take(table, sequence[begins[row] + ready[row] + place]), lengths - ready
    order = _Packed(ready)
    if not len(order.row):
        return table[:0], order, rest
    first = begins[order.row] + order.place
    taps = sequence[first[:, None] + np.arange(0, ahead.future + 1, ahead.stride)]
    z = _take(ahead.norm(table), taps.ravel()).view(len(first), -1)
    return _take(table, taps[:, 0]) + ahead.dropout(torch.relu(ahead.linear(z))[None])[0], order, rest


def _join(first: Ints, second: Ints) -> tuple[Ints, Ints]:
    """Rows of every stream, of two flat tensors in which its rows stand together: indices into one behind the other,
    stream by stream, and how many rows each has."""
    lengths = first + second
    row, place = places(lengths)
    in_first, begins, more = first[row], np.cumsum(first) - first, first.sum() + np.cumsum(second) - second
    return np.where(place < in_first, begins[row] + place, more[row] + place - in_first), lengths


def places(counts: Ints) -> tuple[Ints, Ints]:
    """For ``counts`` (n,) items of every row, one row after the other: the row, and the item's number in it."""
    row = np.repeat(np.arange(len(counts)), counts)
    return row, np.arange(len(row)) - (np.cumsum(counts) - counts)[row]


def _take(table: Tensor, rows: Ints) -> Tensor:
    return table.index_select(0, torch.from_numpy(np.ascontiguousarray(rows)).to(table.device))
