"""Greedy CTC: the best unit of every step, repeats merged, blanks dropped (Graves et al. 2006, best path decoding)."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from asr.vocabulary import BLANK


def best_path(emissions: Tensor) -> list[int]:
    """``emissions``: (steps, units). Unit ids of the best path."""
    return [unit for unit, _, _ in _runs(emissions.argmax(dim=-1).tolist(), BLANK)[0]]


@dataclass
class GreedyState:
    """What greedy decoding remembers: last unit, steps seen, and per unit (id, first step, last step)."""

    last: int = BLANK
    steps: int = 0
    units: list[tuple[int, int, int]] = field(default_factory=list)


class GreedyDecoder:
    """Best path decoding in steps; ``begin / step`` as the beam searches have it."""

    def begin(self) -> GreedyState:
        """State before the first emission."""
        return GreedyState()

    def step(self, emissions: Tensor, state: GreedyState) -> GreedyState:
        """``emissions``: (steps, units) of one stream. Returns the state after them."""
        best = emissions.argmax(dim=-1).tolist()
        new, last = _runs(best, state.last)
        units = list(state.units)
        if best and best[0] == state.last != BLANK and units:
            stop = 0
            while stop < len(best) and best[stop] == state.last:
                stop += 1
            unit, first, _ = units[-1]
            units[-1] = (unit, first, state.steps + stop - 1)
        units.extend((unit, state.steps + first, state.steps + stop) for unit, first, stop in new)
        return GreedyState(last, state.steps + len(best), units)


def _runs(best: list[int], last: int) -> tuple[list[tuple[int, int, int]], int]:
    """New units (id, first step, last step) given the unit before, and the last unit."""
    runs: list[tuple[int, int, int]] = []
    for step, unit in enumerate(best):
        if unit != last:
            if unit != BLANK:
                runs.append((unit, step, step))
        elif unit != BLANK and runs and runs[-1][2] == step - 1:
            runs[-1] = (unit, runs[-1][1], step)
        last = unit
    return runs, last
