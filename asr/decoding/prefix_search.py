"""CTC prefix beam search over characters or BPE pieces: words of any spelling, scored by a word n-gram model.

A hypothesis is a text: whole words and a beginning of one more. It sums the probability of all alignments that say it
(Graves 2008; Hannun et al. 2014, "First-pass large vocabulary continuous speech recognition using bi-directional
recurrent DNNs"). Where a word ends, at a space or before a piece that begins the next, the language model scores it: a
word that it knows by its probability, any other by :attr:`asr.decoding.scorer.Scorer.rare`. Inside a word a hypothesis
carries the best unigram score that is still possible, as an expectation; beginnings that no known word has expect
``rare``. So nothing is cut off by a word's end that was not in sight before.

The beginning of a word is known by a hash of its letters (64 bits); known words and their beginnings stand in one
sorted table of such hashes, those of a session's hot words in one of its own: what these earn is expected from their
first letter on, and given when they end (:mod:`asr.decoding.hot_words`). The state is a :class:`SearchState` whose
history holds units instead of words, whose columns NODE and HOT hold the two halves of that hash, and FIRST the state
of the hot phrases. Several spellings of a word in pieces are summed as far as they agree in their last piece, and at
the end altogether.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from asr.decoding.hot_words import HotWord, HotWords, Overlay, Spell, stack
from asr.decoding.hypothesis import Emissions, Hypothesis, SoFar, TimedWord
from asr.decoding.kernels import MIX, NEVER
from asr.decoding.lockstep import (
    FINAL,
    Beams,
    Floats,
    Hashes,
    Ints,
    Lockstep,
    Rows,
    first_state,
    fits,
    record,
    sum_texts,
    survivors,
    within,
)
from asr.decoding.scorer import NoScorer, Scorer
from asr.decoding.search_config import SearchConfig
from asr.decoding.search_state import (
    CONTEXT,
    ENDS,
    FIRST,
    HISTORY,
    HOT,
    IN_BLANK,
    IN_UNIT,
    LAST,
    LOOK,
    NAME,
    NODE,
    ROW,
    UNIT,
    WORD,
    SearchState,
)
from asr.errors import ModelError, StateError
from asr.lm.model import NgramModel
from asr.text import normalize
from asr.vocabulary import BLANK, WORD_START, BpeVocabulary, CharacterVocabulary, Vocabulary

# Halves of the hash of a word's beginning; a unit that is not in the history yet; the state of the hot words.
LOW, HIGH, NEW, PHRASE = NODE, HOT, WORD, FIRST
_LETTER = np.uint64(0x2545F4914F6CDD1D)  # of a polynomial over the letters of a word


@dataclass
class _Row(Rows):
    """With the streams' hot words: of all together, and by row."""

    overlay: Overlay | None
    hot: list[tuple[int, LetterHotWords]]


class PrefixSearch(Lockstep[_Row]):
    """``begin / step / best / end`` over the emissions of one head, as :class:`asr.decoding.beam_search.BeamSearch`.
    Immutable; shared by all streams of a recogniser.

    ``log_priors``: (units,) log-probabilities of the units, or None. ``recombine``: of hypotheses with the same future,
    keep the best only. Raises ModelError for units that spell no words (phones).
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        language_model: NgramModel | None = None,
        config: SearchConfig | None = None,
        log_priors: Emissions | None = None,
        recombine: bool = True,
    ) -> None:
        config = config or SearchConfig()
        shift = np.zeros(len(vocabulary)) if log_priors is None else config.prior_weight * log_priors.astype(np.float64)
        if not isinstance(vocabulary, CharacterVocabulary | BpeVocabulary):
            raise ModelError(f"units of kind '{vocabulary.kind}' spell no words: use a lexicon, or characters or BPE")
        texts, self._ends = _texts(vocabulary)
        empty = [unit for unit, text in enumerate(texts) if self._ends[unit] and not text]
        super().__init__(config, shift, recombine, empty[0] if empty else -1)
        self.vocabulary = vocabulary
        words = language_model.words[3:] if language_model else ()
        self.scorer = Scorer(language_model, words) if language_model else NoScorer(0)
        self._unigrams = self.scorer.unigrams()
        self._ids = {word: i for i, word in enumerate(words)}
        self._prefixes = _Prefixes(words, self._unigrams)
        self._unknown = len(words) + 1  # to the scorer, a word that nobody knows
        self._letters, self._power = _hashes(texts), _LETTER ** np.array([len(t) for t in texts], dtype=np.uint64)

    def hot_words(self, phrases: Iterable[HotWord], lm_scale: float = 1.0) -> LetterHotWords:
        """Prepare a session's phrases for :meth:`begin`: any words that the units can spell. Raises UsageError that
        names every unusable phrase."""
        weight, words = self.config.lm_weight * lm_scale, self.scorer.end_of_sentence

        def score(ids: Ints) -> Floats:
            known = ids < words
            place = np.where(known, ids, 0)
            alone = self._unigrams.take(place) if words else np.zeros(len(ids))
            return weight * np.where(known, alone, self.scorer.rare)

        return LetterHotWords(phrases, self._ids, lambda word: [self.vocabulary.encode(word)], score, normalize)

    # -- one stream --------------------------------------------------------------------------------------------------

    def begin(self, hot: HotWords | None = None, lm_scale: float = 1.0, remember: bool = False) -> SearchState:
        """State of a new segment. ``hot``: the session's hot words, of :meth:`hot_words`; ``lm_scale`` multiplies the
        language model's weight (0: none); nothing is remembered of what recombination leaves behind."""
        ints, scores, hashes = first_state(self.scorer.begin)
        return SearchState(ints, scores, hashes, hot=hot, lm_scale=lm_scale)

    def stable(self, state: SearchState) -> int:
        """How many of the first words will not change any more: they are agreed upon, and what follows each."""
        units = self._units(state, int(state.ints[0, HISTORY])) if state.agreed else []
        return self._whole(units[: state.agreed])

    def so_far(self, state: SearchState, share: float) -> SoFar:
        """See :meth:`Lockstep.so_far`; all words are likely: an open vocabulary has too many spellings for shares of
        them to mean much."""
        units = self._units(state, int(state.ints[int(self.totals(state).argmax()), HISTORY]))
        words = self._timed(units)
        return SoFar(words, len(words), self._whole(units[: state.agreed]))

    def _whole(self, units: Sequence[tuple[int, int, int]]) -> int:
        """How many words ``units`` are, without one that may go on."""
        words = len(self._spelled(units))
        return words if units and units[-1][0] == self._space else max(0, words - 1)

    def looks_final(self, state: SearchState) -> bool:
        """Whether the likeliest words could well be all: they are known, and the language model finds an end here as
        likely as some."""
        top = state.ints[[int(self.totals(state).argmax())]]
        part = _join(top[:, LOW], top[:, HIGH])
        word = self._prefixes.word(self._prefixes.find(part))
        if (top[0, HISTORY] < 0 and not state.committed) or (part[0] and word[0] < 0):
            return False
        _, context, _, _ = self._complete(top.T, part, self.about([state]))
        return bool(self.scorer.score(context, np.array([self.scorer.end_of_sentence]))[0][0] >= FINAL)

    def check_state(self, state: SearchState, hot: HotWords | None) -> None:
        """Raise StateError unless ``state`` can be one of this search with the hot words ``hot``."""
        units = len(self.vocabulary)
        said = np.concatenate([state.history.data[:, NAME], [unit for unit, _, _ in state.committed]])
        phrases = within(state.ints[:, PHRASE], 0, len(hot.given) if hot else 1)
        if not phrases or not fits(state, units, self.scorer.contexts, LAST) or not within(said, BLANK + 1, units):
            raise StateError("the state is broken or of another model: its search does not fit this one")

    def end_nbest(self, state: SearchState, count: int) -> list[Hypothesis]:
        """The ``count`` likeliest different word sequences of the segment, best first (at least one)."""
        if not state.steps:
            return [Hypothesis((), 0.0)]
        part = _join(state.ints[:, LOW], state.ints[:, HIGH])
        log_prob, context, phrase, gain = self._complete(state.ints.T, part, self.about([state]))
        end = np.full(len(part), self.scorer.end_of_sentence, dtype=np.int64)
        log_prob += self.scorer.score(context, end)[0]
        total = self.totals(state) - state.scores[:, LOOK] + self.config.lm_weight * state.lm_scale * log_prob
        total += np.where(part > 0, self.config.word_score, 0.0)
        if state.hot:
            total += gain - state.hot.potential(phrase)
        text = np.where(part > 0, _with_word(state.hashes, part), state.hashes)
        ranked = sum_texts(text, total, state.ints[:, HISTORY], count)
        return [Hypothesis(self._words(state, entry), score + state.offset) for score, entry in ranked]

    def _units(self, state: SearchState, entry: int) -> list[tuple[int, int, int]]:
        """(unit, step, step) up to an entry of the history."""
        rows = state.history.data[state.history.chain(entry), NAME : ENDS + 1].tolist()
        return [*state.committed, *((unit, first, last) for unit, first, last in rows)]

    def _words(self, state: SearchState, entry: int) -> tuple[TimedWord, ...]:
        return self._timed(self._units(state, entry))

    def _timed(self, units: Sequence[tuple[int, int, int]]) -> tuple[TimedWord, ...]:
        """The words of (unit, step, step)."""
        spelled = self._spelled(units)
        return tuple(TimedWord(self.vocabulary.decode(u for u, _, _ in s), s[0][1], s[-1][2]) for s in spelled)

    def _spelled(self, units: Sequence[tuple[int, int, int]]) -> list[list[tuple[int, int, int]]]:
        """The units of each word."""
        words: list[list[tuple[int, int, int]]] = [[]]
        for unit in units:
            if self._ends[unit[0]]:
                words.append([])
            if unit[0] != self._space:
                words[-1].append(unit)
        return [word for word in words if word]

    # -- one frame ---------------------------------------------------------------------------------------------------

    def about(self, states: list[SearchState]) -> _Row:
        """See :meth:`Lockstep.about`."""
        hot = [(r, s.hot) for r, s in enumerate(states) if s.hot and isinstance(s.hot, LetterHotWords)]
        return _Row(states, self.weights(states), stack([s.hot for s in states], 0), hot)

    def frame(
        self, beams: Beams, about: _Row, emissions: Floats, now: NDArray[np.int32], skipped: NDArray[np.bool_]
    ) -> Beams:
        """See :meth:`Lockstep.frame`."""
        columns = np.ascontiguousarray(beams.ints.T)
        row, unit, part = columns[ROW], columns[UNIT], _join(columns[LOW], columns[HIGH])
        weight = about.lm_weight
        old = self._stay(beams, emissions, skipped, part == 0)
        total, look, stay, least = old.total, beams.scores[:, LOOK], old.stay, old.least.take(row)

        heard = self._likely(emissions).take(row, axis=0)
        if self._space >= 0:
            heard[part == 0, self._space] = NEVER  # stays
        parent, new_unit = (total[:, None] + heard > least[:, None]).nonzero()
        score = np.where(new_unit == unit.take(parent), old.in_blank.take(parent), total.take(parent))
        score += heard[parent, new_unit] - look.take(parent)
        completes = self._ends.take(new_unit) & (part.take(parent) > 0)
        log_prob, context, phrase, gain = self._completed(columns, part, parent[completes], about)
        word_score = weight.take(row) * log_prob + self.config.word_score + gain
        score[completes] += word_score.take(parent[completes])
        carried = np.where(self._ends.take(new_unit), np.uint64(0), part.take(parent))
        new_part = carried * self._power.take(new_unit) + self._letters.take(new_unit)
        new_look = self._expected(new_part, row.take(parent), about)
        stays, on = (stay > least).nonzero()[0], (score + new_look > least.take(parent)).nonzero()[0]

        source, n = np.concatenate([stays, parent.take(on)]), len(stays)
        merged, hashes = columns.take(source, axis=1), beams.hashes.take(source)
        fresh, done = merged[:, n:], completes.take(on)
        fresh[UNIT] = fresh[NEW] = new_unit.take(on)
        fresh[LAST] = now.take(fresh[ROW])
        fresh[PHRASE] = np.where(done, phrase.take(source[n:]), fresh[PHRASE])
        fresh[LOW], fresh[HIGH] = _split(new_part.take(on))
        fresh[CONTEXT] = np.where(done, context.take(source[n:]), fresh[CONTEXT])
        hashes[n:] = np.where(done, _with_word(hashes[n:], part.take(source[n:])), hashes[n:])
        scores = np.full((len(source), 3), NEVER)
        for column, stayed in ((IN_BLANK, old.stay_blank), (IN_UNIT, old.stay_unit), (LOOK, look)):
            scores[:n, column] = stayed.take(stays)
        scores[n:, IN_UNIT], scores[n:, LOOK] = (score + new_look).take(on), new_look.take(on)
        whole = np.concatenate([stay.take(stays), scores[n:, IN_UNIT]])
        place = np.concatenate([part.take(stays), new_part.take(on)]) * MIX[2]
        place += (merged[UNIT] + 1).astype(np.uint64) * MIX[1] + merged[ROW].astype(np.uint64) * MIX[3]
        future = place + merged[CONTEXT].astype(np.uint64) * MIX[0]
        future += merged[PHRASE].astype(np.uint64) * MIX[0] * MIX[1]
        found = self._select(merged[ROW], scores, whole, (hashes * MIX[0] + place, future), beams, about.states)
        beams = survivors(found, np.ascontiguousarray(merged.take(found.chosen, axis=1).T), scores, hashes)
        kept = _join(beams.ints[:, LOW], beams.ints[:, HIGH])
        record(beams, beams.hashes * MIX[0] + kept * MIX[2], about.states, LAST)
        return beams

    @staticmethod
    def _sessions(rows: NDArray[np.int32], about: _Row) -> Iterator[tuple[LetterHotWords, slice]]:
        """The hot words of streams, and where in ``rows``, which ascend, their hypotheses stand."""
        for r, hot in about.hot:
            begin, stop = rows.searchsorted([r, r + 1]).tolist()
            yield hot, slice(begin, stop)

    def _expected(self, part: Hashes, rows: NDArray[np.int32], about: _Row) -> Floats:
        """What the best word that begins so would have alone, in nats; 0 where none has begun."""
        place = self._prefixes.find(part)
        ahead = np.where(place >= 0, self._prefixes.ahead.take(np.maximum(place, 0)), self.scorer.rare)
        look: Floats = about.lm_weight.take(rows) * np.where(part > 0, ahead, 0.0)
        for hot, here in self._sessions(rows, about):
            place = hot.beginnings.find(part[here])
            own = np.where(place >= 0, hot.beginnings.ahead.take(np.maximum(place, 0)), NEVER)
            look[here] = np.maximum(look[here], own)
        return look

    def _completed(
        self, columns: NDArray[np.int32], part: Hashes, which: Ints, about: _Row
    ) -> tuple[Floats, Ints, Ints, Floats]:
        """As :meth:`_complete` for the hypotheses of ``which`` (some of them several times); the others get zeros."""
        wanted = np.zeros(len(part), dtype=bool)
        wanted[which] = True
        at = wanted.nonzero()[0]
        log_prob, gain = np.zeros(len(part)), np.zeros(len(part))
        context, phrase = np.zeros(len(part), dtype=np.int64), np.zeros(len(part), dtype=np.int64)
        found = self._complete(columns.take(at, axis=1), part.take(at), about)
        log_prob[at], context[at], phrase[at], gain[at] = found
        return log_prob, context, phrase, gain

    def _complete(
        self, columns: NDArray[np.int32], part: Hashes, about: _Row
    ) -> tuple[Floats, Ints, NDArray[np.integer], Floats]:
        """log10 probability of the words that the beginnings ``part`` of hypotheses (10, n) would be if they ended
        here, and the contexts after them; the hot words' states then, and what was earned. Where no word has begun,
        nothing changes."""
        rows, open_ = columns[ROW], part > 0
        word = self._prefixes.word(self._prefixes.find(part))
        word = np.where(word >= 0, word, self._unknown)
        log_prob, after = self.scorer.score(columns[CONTEXT], word)
        context = np.where(open_, after, columns[CONTEXT])
        phrase, gain = columns[PHRASE].astype(np.int64), np.zeros(len(part))
        if about.overlay:
            for hot, here in self._sessions(rows, about):
                own = hot.beginnings.word(hot.beginnings.find(part[here]))
                word[here] = np.where(own >= 0, hot.order.take(np.maximum(own, 0)), word[here])
            states, earned = about.overlay.advance(rows, columns[PHRASE], word)
            phrase, gain = np.where(open_, states, phrase), np.where(open_, earned, 0.0)
        return np.where(open_, log_prob, 0.0), context, phrase, gain


class LetterHotWords(HotWords):
    """The phrases of one session, for this search. ``beginnings``: of their words; ``order``: the ids of these."""

    def __init__(
        self,
        phrases: Iterable[HotWord],
        words: Mapping[str, int],
        spell: Spell,
        score: Callable[[Ints], Floats],
        normalize: Callable[[str], str],
    ) -> None:
        super().__init__(phrases, words, spell, score, normalize)
        texts = sorted(self.ids)
        self.order = np.array([self.ids[text] for text in texts], dtype=np.int64)
        self.beginnings = _Prefixes(texts, self.worth.take(self.words.searchsorted(self.order)))


class _Prefixes:
    """Words and their beginnings, by hash. ``scores``: (words,); ``ahead``: of each beginning, the best score of a word
    that begins so."""

    def __init__(self, words: Sequence[str], scores: Floats) -> None:
        letters = np.array(words, dtype=np.str_)
        longest = max(1, letters.itemsize // 4)
        codes = letters.view(np.uint32).reshape(len(words), longest) if len(words) else np.zeros((0, 1), np.uint32)
        part = np.zeros(len(words), dtype=np.uint64)
        keys, owners = [], []
        for column in codes.T:
            here = column.nonzero()[0]
            part[here] = part[here] * _LETTER + _letter(column[here])
            keys.append(part[here])
            owners.append(here)
        self._keys, place = np.unique(np.concatenate(keys), return_inverse=True)
        self.ahead = np.full(max(1, len(self._keys)), NEVER)
        np.maximum.at(self.ahead, place, scores[np.concatenate(owners)])
        self._words = np.full(max(1, len(self._keys)), -1, dtype=np.int64)
        self._words[self._keys.searchsorted(part)] = np.arange(len(words))

    def find(self, part: Hashes) -> Ints:
        """Places of beginnings, (n,); -1 for those that no word has."""
        if not len(self._keys):
            return np.full(len(part), -1, dtype=np.int64)
        place = np.minimum(self._keys.searchsorted(part), len(self._keys) - 1)
        return np.where(self._keys.take(place) == part, place, -1)

    def word(self, place: Ints) -> Ints:
        """The words that are complete at places (n,); -1 where none is."""
        return np.where(place >= 0, self._words.take(np.maximum(place, 0)), -1)


def _texts(vocabulary: Vocabulary) -> tuple[list[str], NDArray[np.bool_]]:
    """(units,) what each unit adds to a word, and whether it ends the word before."""
    names = ["", *vocabulary.units[1:]]
    if isinstance(vocabulary, CharacterVocabulary):
        return [name.strip() for name in names], np.array([name == " " for name in names])
    starts = np.array([name.startswith(WORD_START) for name in names])
    return [name.replace(WORD_START, "") for name in names], starts


def _letter(codes: NDArray[np.uint32]) -> Hashes:
    """Numbers of letters that have nothing to do with each other (the finaliser of splitmix64)."""
    x = codes.astype(np.uint64) * MIX[0]
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _hashes(texts: Sequence[str]) -> Hashes:
    """(n,) hashes of texts; 0 of the empty one."""
    found = np.zeros(len(texts), dtype=np.uint64)
    for i, text in enumerate(texts):
        for letter in _letter(np.array([ord(c) for c in text], dtype=np.uint32)):
            found[i : i + 1] = found[i : i + 1] * _LETTER + letter
    return found


def _with_word(hashes: Hashes, part: Hashes) -> Hashes:
    """Hashes of texts that one more word was added to."""
    return hashes * MIX[3] + (part ^ (part >> np.uint64(29))) * MIX[1]


def _join(low: NDArray[np.int32], high: NDArray[np.int32]) -> Hashes:
    bits = [half.astype(np.uint32).astype(np.uint64) for half in (low, high)]
    return bits[0] | (bits[1] << np.uint64(32))


def _split(part: Hashes) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    return part.astype(np.uint32).view(np.int32), (part >> np.uint64(32)).astype(np.uint32).view(np.int32)
