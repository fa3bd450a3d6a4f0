"""The other route: flashlight-text's lexicon decoder in the shape of asr.decoding.beam_search, to measure against.

The search itself is flashlight-text's (Collobert et al. 2016, "Wav2Letter"; C++). This module gives it the shape of
the house: the state of a stream is explicit, copyable and serialisable. flashlight keeps its beams inside an object
that cannot be copied, so the state is what those beams are a function of: the emissions since the segment began. The
object is a cache of that, rebuilt by replay where it is missing; segments are bounded, so a replay is too.

flashlight expects words to end in a unit of their own, as letters have it in the space; phones and BPE pieces have
none. Two things follow. Its "silence" unit, at which a hypothesis between words may stay, is then an added column that
is never likely: between words there is the blank. And a word is complete at the first step of its last unit, so that a
last unit of several steps would cost the blank's score at the others; every spelling is therefore in the trie a second
time with a blank as its end, which has a column of its own, a little below the blank's, so that of two equal paths one
is the better. What remains is a last unit of several steps with the next word's first right behind it, which is scored
as if the blank stood at the others.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from asr.decoding.hypothesis import Emissions, Hypothesis, TimedWord
from asr.decoding.search_config import SearchConfig
from asr.errors import LexiconError
from asr.lexicon import Lexicon
from asr.lm import open_kenlm
from asr.vocabulary import BLANK, PhoneVocabulary, Vocabulary

_UNKNOWN = "<unk>"
_SPACE = " "
_NEVER = np.float32(-1e4)  # log-probability of what cannot be; finite, since flashlight adds scores
_TIE = 1e-4  # scores that differ by less are equal
_LESS = np.float32(1e-3)  # makes one of two equal paths the better one
_MOST_HOMOPHONES = 6  # flashlight keeps no more words at one node of its trie


@dataclass
class SearchState:
    """A stream's search: ``emissions`` (steps, units) since the segment began, as fed, and the beams over them."""

    emissions: list[Emissions] = field(default_factory=list)
    steps: int = 0
    beams: Any = None
    kept: list[int] = field(default_factory=list)  # step of each frame that the beams have seen
    surely_blank: bool = False

    def clone(self) -> SearchState:
        """A copy that shares no mutable part; its beams are rebuilt when needed."""
        return SearchState(list(self.emissions), self.steps)

    def array(self, units: int) -> Emissions:
        """All emissions as one array (steps, units)."""
        return np.concatenate(self.emissions) if self.emissions else np.zeros((0, units), np.float32)


class LexiconSearch:
    """``begin / step / best / end`` over emissions of one head. Immutable; shared by all streams of a recogniser.

    ``log_priors``: (units,) log-probabilities of the units, or None.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        lexicon: Lexicon,
        language_model: Path | None,
        config: SearchConfig | None = None,
        log_priors: Emissions | None = None,
        words: Iterable[str] | None = None,
    ) -> None:
        from flashlight.lib.text.decoder import CriterionType, LexiconDecoderOptions, SmearingMode, Trie, ZeroLM
        from flashlight.lib.text.dictionary import Dictionary

        self.vocabulary = vocabulary
        self.config = config = config or SearchConfig()
        names = tuple(words if words is not None else lexicon)
        if not names:
            raise LexiconError("the lexicon holds no words: nothing could be recognised")
        dictionary = Dictionary()
        for word in (*names, _UNKNOWN):
            dictionary.add_entry(word)
        self._unknown = dictionary.get_index(_UNKNOWN)
        self._words = names
        self._lm = open_kenlm(language_model, (*names, _UNKNOWN)) if language_model else ZeroLM()
        self._between = vocabulary.index.get(_SPACE, len(vocabulary))  # what stands between words
        self._ending = len(vocabulary) + 1  # the blank that ends a word
        trie = Trie(len(vocabulary) + 2, -1)
        start = self._lm.start(False)
        scores = [self._lm.score(start, index)[1] for index in range(len(names))]
        same: dict[tuple[int, ...], int] = {}
        for index in sorted(range(len(names)), key=lambda i: -scores[i]):  # of many homophones the usual ones stay
            for spelling in self._spellings(names[index], lexicon):
                count = same[spelling] = same.get(spelling, 0) + 1
                if count <= _MOST_HOMOPHONES:
                    for whole in self._ended(spelling):
                        trie.insert(whole, index, scores[index] - float(_LESS))
        trie.smear(SmearingMode.MAX)
        self._trie = trie
        self._options = LexiconDecoderOptions(
            config.beam,
            min(config.tokens, len(vocabulary)) + 1,  # the blank counts twice
            config.threshold,
            config.lm_weight,
            config.word_score,
            -float("inf"),
            0.0,
            False,
            CriterionType.CTC,
        )
        self._shift = (
            np.zeros(len(vocabulary), np.float32)
            if log_priors is None
            else (config.prior_weight * log_priors).astype(np.float32)
        )

    def _spellings(self, word: str, lexicon: Lexicon) -> list[tuple[int, ...]]:
        if isinstance(self.vocabulary, PhoneVocabulary):
            return [tuple(self.vocabulary.encode_phones(p)) for p in lexicon.pronounce(word)]
        return [tuple(self.vocabulary.encode(word))]

    def _ended(self, spelling: tuple[int, ...]) -> list[list[int]]:
        """The forms of a spelling in the trie; see the module's text."""
        if self._between < len(self.vocabulary):
            return [[*spelling, self._between]]
        if spelling[-1:] == spelling[-2:-1]:  # flashlight does not ask for a blank inside a double end
            return [[*spelling, self._ending]]
        return [list(spelling), [*spelling, self._ending]]

    def begin(self) -> SearchState:
        """State of a new segment."""
        return SearchState()

    def step(self, emissions: Emissions, state: SearchState) -> SearchState:
        """Advance by ``emissions`` (steps, units) log-probabilities; the state given is used up."""
        if state.beams is None:
            replay = state.array(len(self.vocabulary))
            state.beams = self._new_beams()
            state.steps, state.kept, state.surely_blank = 0, [], False
            self._feed(replay, state)
        if len(emissions):
            state.emissions.append(np.array(emissions, dtype=np.float32))
            self._feed(state.emissions[-1], state)
        return state

    def best(self, state: SearchState) -> Hypothesis:
        """The likeliest words so far; the last may still be incomplete and is then left out."""
        if state.steps == 0:
            return Hypothesis((), 0.0)
        state = self.step(np.zeros((0, len(self.vocabulary)), np.float32), state)
        return self._hypothesis(state.beams.get_best_hypothesis(0), state)

    def end(self, state: SearchState) -> Hypothesis:
        """The likeliest whole words of the segment with its end scored. The state's beams are used up."""
        return self.end_nbest(state, 1)[0]

    def end_nbest(self, state: SearchState, count: int) -> list[Hypothesis]:
        """The ``count`` likeliest different word sequences of the segment, best first (at least one)."""
        state = self.step(np.zeros((0, len(self.vocabulary)), np.float32), state)
        if not state.kept:
            return [Hypothesis((), 0.0)]
        silence = np.full((1, len(self.vocabulary)), _NEVER)  # one more step, at which the last word may end
        silence[0, [u for u in (BLANK, self._between) if u < len(self.vocabulary)]] = 0.0
        self._decode(silence, state)
        state.beams.decode_end()
        found: dict[str, Hypothesis] = {}
        last = 0.0
        for result in state.beams.get_all_final_hypothesis():  # best first; a text may come twice
            if len(found) >= count and result.score < last - _TIE:
                break
            hypothesis, last = self._hypothesis(result, state), result.score
            found.setdefault(hypothesis.text, hypothesis)
        state.beams = None
        # flashlight orders equal scores by addresses: homophones that the language model does not tell apart.
        ranked = sorted(found.values(), key=lambda h: (-round(h.score / _TIE), h.text))
        return ranked[:count] or [Hypothesis((), 0.0)]

    def _new_beams(self) -> Any:
        from flashlight.lib.text.decoder import LexiconDecoder

        beams = LexiconDecoder(self._options, self._trie, self._lm, self._between, BLANK, self._unknown, [], False)
        beams.decode_begin()
        return beams

    def _feed(self, emissions: Emissions, state: SearchState) -> None:
        kept = []
        sure = np.exp(emissions[:, BLANK]) > self.config.blank_skip
        for i, blank in enumerate(sure.tolist()):
            if not (blank and state.surely_blank):
                kept.append(i)
            state.surely_blank = blank
        if kept:
            self._decode(emissions[kept] - self._shift, state)
            state.kept.extend(state.steps + i for i in kept)
        state.steps += len(emissions)

    @staticmethod
    def _decode(scores: Emissions, state: SearchState) -> None:
        columns = np.full((len(scores), scores.shape[1] + 2), _NEVER)
        columns[:, :-2] = scores
        columns[:, -1] = scores[:, BLANK] - _LESS
        state.beams.decode_step(columns.ctypes.data, *columns.shape)

    def _hypothesis(self, result: Any, state: SearchState) -> Hypothesis:
        """Words with their steps. flashlight gives per frame (and one before the first, one after the end) the unit
        and, where a word was completed, the word."""
        words: list[TimedWord] = []
        first = last = None
        frames = len(state.kept)
        for position, (token, word) in enumerate(zip(result.tokens, result.words, strict=True)):
            frame = min(max(position - 1, 0), frames - 1)
            if 0 <= token < len(self.vocabulary) and token not in (BLANK, self._between):
                last = state.kept[frame]
                first = last if first is None else first
            if 0 <= word < len(self._words):
                at = state.kept[frame]
                words.append(TimedWord(self._words[word], at if first is None else first, at if last is None else last))
                first = last = None
        return Hypothesis(tuple(words), float(result.score))
