"""Greedy CTC: the best unit of every step, repeats merged, blanks dropped (Graves et al. 2006, best path decoding)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from torch import Tensor

from asr.decoding.hot_words import HotWords
from asr.decoding.hypothesis import Emissions, Hypothesis, SoFar, TimedWord
from asr.decoding.search_state import SearchState
from asr.errors import StateError
from asr.vocabulary import BLANK, WORD_START, BpeVocabulary, CharacterVocabulary, Vocabulary

Run = tuple[int, int, int]  # a unit, its first and its last step


def best_path(emissions: Tensor) -> list[int]:
    """``emissions``: (steps, units). Unit ids of the best path."""
    decoder = GreedyDecoder()
    return [unit for unit, _, _ in decoder.step(emissions, decoder.begin()).units]


@dataclass
class GreedyState:
    """What greedy decoding remembers: last unit, steps seen, and per unit (id, first step, last step)."""

    last: int = BLANK
    steps: int = 0
    units: list[Run] = field(default_factory=list)


class GreedyDecoder:
    """Best path decoding in steps; ``begin / step`` as the beam searches have it."""

    def begin(self) -> GreedyState:
        """State before the first emission."""
        return GreedyState()

    def step(self, emissions: Tensor, state: GreedyState) -> GreedyState:
        """``emissions``: (steps, units) of one stream. Returns the state after them; the one given stays as it was."""
        last, units = state.last, list(state.units)
        for unit, first, stop in _runs(emissions.argmax(dim=-1).tolist()):
            if first == 0 and unit == last != BLANK:
                units[-1] = (unit, units[-1][1], state.steps + stop)
            elif unit != BLANK:
                units.append((unit, state.steps + first, state.steps + stop))
            last = unit
        return GreedyState(last, state.steps + len(emissions), units)


class GreedySearch:
    """Words without a lexicon, in the shape of :class:`asr.decoding.beam_search.BeamSearch`: for models that
    have none. Characters and BPE pieces spell words of any kind; of a head of phones every phone is a word."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary

    def begin(self, hot: HotWords | None = None, lm_scale: float = 1.0, remember: bool = False) -> SearchState:
        """State of a new segment; there is nothing that hot words or a language model could change."""
        return SearchState.empty()

    def step(self, emissions: Emissions, state: SearchState) -> SearchState:
        """Advance by ``emissions`` (steps, units) log-probabilities; the state given is used up."""
        self.step_many([(emissions, state)])
        return state

    def step_many(self, pieces: Sequence[tuple[Emissions, SearchState]]) -> None:
        """Advance several streams."""
        for emissions, state in pieces:
            if len(emissions):
                state.keep(emissions, forget=False)
                state.frames = state.steps

    def stable(self, state: SearchState) -> int:
        """How many of the first words will not change any more: all but the last."""
        return max(0, len(self.end(state).words) - 1)

    def so_far(self, state: SearchState, share: float) -> SoFar:
        """All words of the best path are likely, and all but the last are stable."""
        words = self.end(state).words
        return SoFar(words, len(words), max(0, len(words) - 1))

    def looks_final(self, state: SearchState) -> bool:
        """Without a language model nothing does."""
        return False

    def end_nbest(self, state: SearchState, count: int) -> list[Hypothesis]:
        """The best path has no alternatives."""
        return [self.end(state)]

    def alternatives(self, state: SearchState, count: int) -> list[Hypothesis]:
        """There are none."""
        return [self.end(state)]

    def check_state(self, state: SearchState, hot: HotWords | None) -> None:
        """Raise StateError unless ``state`` can be one of this search."""
        if any(e.shape[1] != len(self.vocabulary) for e in state.emissions):
            raise StateError(f"the state is of another model: this one has {len(self.vocabulary)} units")

    def best(self, state: SearchState) -> Hypothesis:
        """The words so far; the last may still be incomplete."""
        return self.end(state)

    def end(self, state: SearchState) -> Hypothesis:
        """The words of the segment."""
        emissions = state.array(len(self.vocabulary))
        words = []
        for runs in self._words(emissions):
            text = self.vocabulary.decode(unit for unit, _, _ in runs)
            if text:
                words.append(TimedWord(text, runs[0][1], runs[-1][2]))
        return Hypothesis(tuple(words), float(emissions.max(axis=1, initial=-np.inf).sum()))

    def _words(self, emissions: Emissions) -> Iterator[list[Run]]:
        """The runs of each word."""
        word: list[Run] = []
        for run in _runs(emissions.argmax(axis=1).tolist()):
            unit = self.vocabulary.units[run[0]]
            if run[0] == BLANK:
                continue
            if word and self._begins_word(unit):
                yield word
                word = []
            if unit != " ":
                word.append(run)
        if word:
            yield word

    def _begins_word(self, unit: str) -> bool:
        if isinstance(self.vocabulary, CharacterVocabulary):
            return unit == " "
        return not isinstance(self.vocabulary, BpeVocabulary) or unit.startswith(WORD_START)


def _runs(best: list[int]) -> list[Run]:
    """Runs of equal units, blanks included."""
    edges = [0, *(i for i in range(1, len(best)) if best[i] != best[i - 1]), len(best)] if best else []
    return [(best[start], start, stop - 1) for start, stop in pairwise(edges)]
