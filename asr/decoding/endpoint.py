"""Where a stream is cut into segments: in runs of blank, so that no word is lost or doubled at a cut.

A cut keeps the acoustic state and begins a new search. The rules (those of Kaldi and sherpa, in steps of the network)
look at emissions, and one of them at the hypothesis, step by step: so streaming and offline cut at the same steps. Only
speech without any pause is cut elsewhere; what then happens to the word under the cut is for
:class:`asr.recognizer.Stream` to say.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

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
    """Seconds; 0 switches a rule off. A segment is closed

    by ``pause_s`` of quiet after words; by ``final_pause_s``, shorter, when the words look complete; by ``nothing_s``
    of quiet when there was sound but no word (off: by ``pause_s``, too); by ``short_pause_s`` once it is ``long_s``
    old; and at the next quiet step once it is ``longest_s`` old (then also without one, half as much later).
    """

    pause_s: float = 1.2
    final_pause_s: float = 0.0
    nothing_s: float = 5.0
    short_pause_s: float = 0.28
    long_s: float = 15.0
    longest_s: float = 25.0

    def __post_init__(self) -> None:
        for f in fields(self):
            require(0 <= getattr(self, f.name) <= 3600, f"endpoint.{f.name} must be 0 (off) to 3600 seconds")
        require(
            not self.pause_s or self.final_pause_s <= self.pause_s, "endpoint: final_pause_s must not exceed pause_s"
        )
        require(not self.long_s or self.short_pause_s > 0, "endpoint: long_s needs short_pause_s")
        require(not (self.long_s and self.longest_s) or self.long_s <= self.longest_s,
                "endpoint: long_s must not exceed longest_s")  # fmt: skip


OFF = EndpointConfig(0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class EndpointState:
    """``age``: steps since the segment's first sound (0: nothing heard yet); ``quiet``: steps of quiet at its end."""

    age: int = 0
    quiet: int = 0


@dataclass(frozen=True)
class Cut:
    """Steps ``start`` to ``stop`` of a chunk belong to the open segment; ``closes``: why it ends there, if it does, and
    ``when`` on what condition: always, if its words look complete ("final"), if it has words ("words") or none
    ("nothing"). A cut whose condition does not hold is none."""

    start: int
    stop: int
    closes: str | None
    when: str = "always"


class Endpointer:
    """Divides emissions into pieces of segments; stillness before a segment's first sound belongs to none."""

    def __init__(self, config: EndpointConfig | None = None) -> None:
        self.config = config or EndpointConfig()

    def begin(self) -> EndpointState:
        """State at the start of a stream and after a cut."""
        return EndpointState()

    def step(self, emissions: NDArray[np.float32], state: EndpointState) -> tuple[Cut, EndpointState]:
        """``emissions``: (steps, units) log-probabilities. The piece up to where the open segment may close, or to the
        end, and the state there if it does not; the steps from ``Cut.stop`` on are for the next call."""
        age, quiet, start = state.age, state.quiet, 0
        blank = np.exp(emissions[:, BLANK])
        for i, (silent, still) in enumerate(zip((blank > QUIET).tolist(), (blank > STILL).tolist(), strict=True)):
            if age == 0 and still:
                start = i + 1
                continue
            age += 1
            quiet = quiet + 1 if silent else 0
            if found := self._rule(age, quiet):
                return Cut(start, i + 1, *found), EndpointState(age, quiet)
        return Cut(start, len(emissions), None), EndpointState(age, quiet)

    def _rule(self, age: int, quiet: int) -> tuple[str, str] | None:
        """(reason, condition) of the rule that a step fulfils."""
        c = self.config
        age_s = age * STEP_MS / 1000
        if c.longest_s and ((age_s >= c.longest_s and quiet) or age_s >= 1.5 * c.longest_s):
            return "max_length", "always"
        if not quiet:
            return None
        if c.long_s and age_s >= c.long_s and quiet >= _steps(c.short_pause_s):
            return "endpoint", "always"
        if c.nothing_s and quiet >= _steps(c.nothing_s):
            return "endpoint", "nothing"
        if c.pause_s and quiet == _steps(c.pause_s):
            return "endpoint", "words" if c.nothing_s > c.pause_s else "always"
        if c.final_pause_s and quiet == _steps(c.final_pause_s):
            return "endpoint", "final"
        return None


def _steps(seconds: float) -> int:
    """The first number of steps that lasts ``seconds``."""
    return max(1, -(-round(seconds * 1000) // STEP_MS))
