"""Where a stream is cut into segments: in runs of blank, so that no word is lost or doubled at a cut.

A cut keeps the acoustic state and begins a new search. The rules look at nothing but emissions, so streaming and
offline cut at the same steps. Only speech without any pause is cut elsewhere; what then happens to the word under the
cut is for :class:`asr.recognizer.Stream` to say.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from asr.config import require
from asr.model_config import STEP_MS
from asr.vocabulary import BLANK

QUIET = 0.5  # a step is quiet when the blank is likelier than this
# Quiet before a segment's first sound is skipped only where the blank is likelier than this: a weak first phone
# (blank 0.6, phone 0.4) belongs to the word that follows.
STILL = 0.9


@dataclass(frozen=True)
class EndpointConfig:
    """A segment is closed by ``pause_s`` of quiet after speech; by ``short_pause_s`` once it is ``long_s`` old; and at
    the next quiet step once it is ``longest_s`` old (then also without one, half as much later)."""

    pause_s: float = 1.2
    short_pause_s: float = 0.28
    long_s: float = 15.0
    longest_s: float = 25.0

    def __post_init__(self) -> None:
        require(0 < self.short_pause_s <= self.pause_s, "endpoint: need 0 < short_pause_s <= pause_s")
        require(0 < self.long_s <= self.longest_s, "endpoint: need 0 < long_s <= longest_s")


@dataclass(frozen=True)
class EndpointState:
    """``age``: steps since the segment's first sound (0: nothing heard yet); ``quiet``: steps of quiet at its end."""

    age: int = 0
    quiet: int = 0


@dataclass(frozen=True)
class Cut:
    """Steps ``start`` to ``stop`` of a chunk belong to the open segment; ``closes``: why it ends there, if it does."""

    start: int
    stop: int
    closes: str | None


class Endpointer:
    """Divides emissions into pieces of segments; stillness before a segment's first sound belongs to none."""

    def __init__(self, config: EndpointConfig | None = None) -> None:
        self.config = config or EndpointConfig()

    def begin(self) -> EndpointState:
        """State at the start of a stream."""
        return EndpointState()

    def step(self, emissions: NDArray[np.float32], state: EndpointState) -> tuple[Cut, EndpointState]:
        """``emissions``: (steps, units) log-probabilities. The piece up to where the open segment closes, or to the
        end, and the state there; the steps from ``Cut.stop`` on are for the next call."""
        age, quiet, start = state.age, state.quiet, 0
        blank = np.exp(emissions[:, BLANK])
        for i, (silent, still) in enumerate(zip((blank > QUIET).tolist(), (blank > STILL).tolist(), strict=True)):
            if age == 0 and still:
                start = i + 1
                continue
            age += 1
            quiet = quiet + 1 if silent else 0
            reason = self._reason(age, quiet)
            if reason:
                return Cut(start, i + 1, reason), EndpointState()
        return Cut(start, len(emissions), None), EndpointState(age, quiet)

    def _reason(self, age: int, quiet: int) -> str | None:
        c = self.config
        age_s, quiet_s = age * STEP_MS / 1000, quiet * STEP_MS / 1000
        if quiet_s >= c.pause_s or (age_s >= c.long_s and quiet_s >= c.short_pause_s):
            return "endpoint"
        if (age_s >= c.longest_s and quiet) or age_s >= 1.5 * c.longest_s:
            return "max_length"
        return None
