"""Greedy CTC: the best unit of every step, repeats merged, blanks dropped (Graves et al. 2006, best path decoding)."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from asr.vocabulary import BLANK


def best_path(emissions: Tensor) -> list[int]:
    """``emissions``: (steps, units). Unit ids of the best path."""
    decoder = GreedyDecoder()
    return [unit for unit, _, _ in decoder.step(emissions, decoder.begin()).units]


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
        """``emissions``: (steps, units) of one stream. Returns the state after them; the one given stays as it was."""
        last, units = state.last, list(state.units)
        for step, unit in enumerate(emissions.argmax(dim=-1).tolist(), start=state.steps):
            if unit != BLANK:
                if unit == last:
                    units[-1] = (unit, units[-1][1], step)
                else:
                    units.append((unit, step, step))
            last = unit
        return GreedyState(last, state.steps + len(emissions), units)
