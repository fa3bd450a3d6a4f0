"""What a search finds: words with their steps, and the score of the whole."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Emissions = NDArray[np.float32]
"""(steps, units) log-probabilities of one stream, 40 ms per step."""


@dataclass(frozen=True)
class TimedWord:
    """A word with its first and last step (inclusive), counted from the start of the segment."""

    text: str
    first: int
    last: int


@dataclass(frozen=True)
class SoFar:
    """What a search says before its segment ends: ``words``, how many of the first of them are ``likely`` enough to be
    shown, and how many are ``stable``: they are agreed upon (``SearchConfig.commit``), so they will not change."""

    words: tuple[TimedWord, ...]
    likely: int
    stable: int


@dataclass(frozen=True)
class Hypothesis:
    """A word sequence with its score: emissions in nats, plus the weighted language model and word scores."""

    words: tuple[TimedWord, ...]
    score: float

    @property
    def text(self) -> str:
        """The words joined by spaces."""
        return " ".join(w.text for w in self.words)
