"""What searches over arrays of hypotheses have in common: the hypotheses of all streams take every frame together.

A search gives :meth:`Lockstep.frame`, one frame for the hypotheses of several streams; here is how streams come
together and part, how surely blank steps are passed over, and how a stream's memory stays bounded.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from asr.decoding.hypothesis import Emissions
from asr.decoding.search_config import SearchConfig
from asr.decoding.search_state import ENDS, HISTORY, IN_BLANK, IN_UNIT, ROW, SearchState
from asr.model_config import STEP_MS
from asr.vocabulary import BLANK

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Hashes = NDArray[np.uint64]

COMMIT_EVERY = 16  # frames
COMMIT_STEPS = 4000 // STEP_MS  # what was said this long ago is committed


@dataclass
class Beams:
    """The hypotheses of several streams, grouped by row and best first. ``ints``: (n, 9), ``scores``: (n, 3),
    ``hashes``: (n,), as in a :class:`SearchState`; ``starts``: (rows,) where each row begins."""

    ints: NDArray[np.int32]
    scores: Floats
    hashes: Hashes
    starts: Ints


class Lockstep(ABC):
    """``step / step_many`` over the emissions of one head. ``shift``: (units,) what is subtracted from emissions."""

    def __init__(self, config: SearchConfig, shift: Floats) -> None:
        self.config, self._shift = config, shift

    @abstractmethod
    def frame(
        self,
        beams: Beams,
        states: list[SearchState],
        emissions: Floats,
        now: NDArray[np.int32],
        skipped: NDArray[np.bool_],
    ) -> Beams:
        """One frame. ``states``: of the rows (and of rows that have ended, behind them); ``emissions``: (rows, units);
        ``now``: (rows,) step of each; ``skipped``: (rows,) whether blanks were passed over just before it."""

    def step(self, emissions: Emissions, state: SearchState) -> SearchState:
        """Advance by ``emissions`` (steps, units) log-probabilities; the state given is used up."""
        self.step_many([(emissions, state)])
        return state

    def step_many(self, pieces: Sequence[tuple[Emissions, SearchState]]) -> None:
        """Advance several streams together; their states are changed in place. A stream's result does not depend on
        the others."""
        moved = [piece for emissions, state in pieces if len(emissions) and (piece := self._take(emissions, state))]
        if moved:
            self._advance(sorted(moved, key=lambda piece: -len(piece.frames)))  # what ends early leaves at the end

    def _take(self, emissions: Emissions, state: SearchState) -> _Piece | None:
        """The frames that move hypotheses, if any; the others, surely blank, only shift their mass."""
        first = state.steps
        state.keep(emissions)
        sure = np.exp(emissions[:, BLANK]) > self.config.blank_skip
        kept = (~sure).nonzero()[0]
        shifted = emissions - self._shift
        state.offset += float(shifted[sure, BLANK].sum())
        if not len(kept):
            state.skipped = True
            return None
        before = np.diff(kept, prepend=kept[0]) > 1
        before[0] = state.skipped or kept[0] > 0
        state.skipped = bool(kept[-1] < len(emissions) - 1)
        return _Piece(state, shifted[kept].astype(np.float64), first + kept, before)

    def _advance(self, pieces: Sequence[_Piece]) -> None:
        """All frames of all pieces, longest piece first: the k-th frame of each in the k-th round."""
        states = [piece.state for piece in pieces]
        sizes = np.array([len(s.ints) for s in states])
        beams = Beams(
            np.concatenate([s.ints for s in states]),
            np.concatenate([s.scores for s in states]),
            np.concatenate([s.hashes for s in states]),
            np.cumsum(sizes) - sizes,
        )
        beams.ints[:, ROW] = np.repeat(np.arange(len(states)), sizes)
        for k in range(len(pieces[0].frames)):
            active = [piece for piece in pieces if len(piece.frames) > k]
            if len(active) < len(beams.starts):
                beams = _retire(beams, states, len(active))
            emissions = np.stack([piece.frames[k] for piece in active])
            now = np.array([piece.steps[k] for piece in active], dtype=np.int32)
            skipped = np.array([piece.skipped[k] for piece in active])
            beams = self.frame(beams, states, emissions, now, skipped)
            for r in range(len(active)):
                states[r].frames += 1
                if states[r].frames % COMMIT_EVERY == 0:
                    beams = _commit(beams, states[r], r, int(now[r]))
        _retire(beams, states, 0)

    @staticmethod
    def totals(state: SearchState) -> Floats:
        """(hypotheses,) score of all alignments of each, without the state's offset."""
        return np.logaddexp(state.scores[:, IN_BLANK], state.scores[:, IN_UNIT])


@dataclass
class _Piece:
    """Of one stream: ``frames`` (n, units), the ``steps`` (n,) they stand for, and whether blanks were ``skipped`` (n,)
    before each."""

    state: SearchState
    frames: Floats
    steps: Ints
    skipped: NDArray[np.bool_]


def _retire(beams: Beams, states: list[SearchState], active: int) -> Beams:
    """Hand their hypotheses to the states of the rows from ``active`` on; what remains."""
    stops = [*beams.starts[1:].tolist(), len(beams.ints)]
    for r in range(active, len(stops)):
        piece = slice(int(beams.starts[r]), stops[r])
        state = states[r]
        state.ints = beams.ints[piece].copy()
        state.ints[:, ROW] = 0
        state.scores, state.hashes = beams.scores[piece].copy(), beams.hashes[piece].copy()
    stop = int(beams.starts[active]) if active < len(beams.starts) else len(beams.ints)
    return Beams(beams.ints[:stop], beams.scores[:stop], beams.hashes[:stop], beams.starts[:active])


def _commit(beams: Beams, state: SearchState, r: int, now: int) -> Beams:
    """What the best hypothesis of row ``r`` said long ago becomes final: those that disagree end."""
    starts = beams.starts
    begin, stop = int(starts[r]), int(starts[r + 1]) if r + 1 < len(starts) else len(beams.ints)
    history, entries = state.history, beams.ints[begin:stop, HISTORY]
    if not history.size:
        return beams
    chain = history.chain(int(entries[0]))
    old = [entry for entry in chain if history.data[entry, ENDS] < now - COMMIT_STEPS]
    keep = np.ones(len(entries), dtype=bool)
    if old:
        there = history.at_depth(entries, len(old) - 1)
        keep = (there >= 0) & (history.hashes[there] == history.hashes[old[-1]])
        state.committed.extend(tuple(row) for row in history.data[old, 1 : ENDS + 1].tolist())
    state.history, renamed = history.compact(entries[keep], len(old) - 1)
    survivors = np.ones(len(beams.ints), dtype=bool)
    survivors[begin:stop] = keep
    ints = beams.ints[survivors]
    ints[begin : begin + len(renamed), HISTORY] = renamed
    starts = starts - np.where(np.arange(len(starts)) > r, int((~keep).sum()), 0)
    return Beams(ints, beams.scores[survivors], beams.hashes[survivors], starts)
