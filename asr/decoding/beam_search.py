"""CTC prefix beam search over a lexicon tree with a word n-gram model, for many streams at once.

A hypothesis is a place in the tree behind a sequence of whole words. It sums the probability of all alignments that
lead there, those that end in blank and those that end in its last unit apart (Graves 2008; Hannun et al. 2014). When a
unit completes a word, the language model scores the word at once and the hypothesis goes on at the root; inside a word
it carries the best unigram score that is still possible below its node, as an expectation; where few words are left,
the best score of these in its context. Of hypotheses at the same
place with the same language model context, the future is the same: only the best one lives on. Everything advances in
lockstep: one compiled loop serves the hypotheses of all streams (the idea of NGPU-LM, Bataev et al. 2025, that a
language model held as arrays lets beams advance together; see :mod:`asr.decoding.kernels`).

Steps that are surely blank only move the mass of a hypothesis to where the last symbol is blank; they cost nothing.
Time and memory are bounded for ever: every now and then the words that lie some seconds back are committed, and
hypotheses that disagree with them end. Words are stable earlier, as soon as enough of the probability agrees on them:
see :meth:`Lockstep._agree`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from asr.decoding.guess import EXPECTED, next_word
from asr.decoding.hot_words import HotWord, HotWords, Overlay, stack
from asr.decoding.hypothesis import Emissions, Hypothesis, SoFar, TimedWord
from asr.decoding.kernels import (
    ENDED,
    NEVER,
    NEW_HOT,
    NEW_WORD,
    SOURCE,
    Stay,
    candidates,
    expand,
    said_then,
    written,
)
from asr.decoding.lattice import paths
from asr.decoding.lockstep import (
    FINAL,
    Beams,
    Floats,
    Ints,
    Lockstep,
    Piece,
    Rows,
    first_state,
    fits,
    record,
    remember,
    sum_texts,
    survivors,
    within,
)
from asr.decoding.rescorer import Asked, Rescorer
from asr.decoding.scorer import NoScorer, Scorer
from asr.decoding.search_config import SearchConfig
from asr.decoding.search_state import (
    CONTEXT,
    DEPTH,
    ENDS,
    HISTORY,
    HOT,
    LOOK,
    NAME,
    NODE,
    ROW,
    UNIT,
    SearchState,
    Text,
)
from asr.decoding.trie import ROOT, build
from asr.errors import LexiconError, StateError
from asr.inference import PRECISION
from asr.lexicon import Lexicon
from asr.lm.model import NgramModel
from asr.lm.recurrent import RecurrentModel
from asr.text import normalize
from asr.vocabulary import BLANK, PhoneVocabulary, Vocabulary

_SPACE = " "
_NO_SPACE = -1e3  # nats: what is not over at the end counts only where nothing is
_TIE = 2e-8  # per word id: of homophones that the language model does not tell apart, always the same one is better
FEW_WORDS = 4  # below a node, from which on the language model looks ahead at each of them in its context


@dataclass
class _Row(Rows):
    """With the streams' hot words, if any has some."""

    overlay: Overlay | None


class BeamSearch(Lockstep[_Row]):
    """``begin / step / best / end`` over the emissions of one head. Immutable; shared by all streams of a recogniser.

    ``log_priors``: (units,) log-probabilities of the units, or None. ``recombine``: of hypotheses with the same future,
    keep the best only. ``second``: a recurrent language model that gets a share of the weight, see
    :mod:`asr.decoding.rescorer`, in a ``precision``. Raises LexiconError for a lexicon without
    words, or with one that the units cannot spell.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        lexicon: Lexicon,
        language_model: NgramModel | None,
        config: SearchConfig | None = None,
        log_priors: Emissions | None = None,
        recombine: bool = True,
        second: RecurrentModel | None = None,
        precision: str = PRECISION,
    ) -> None:
        config = config or SearchConfig()
        shift = np.zeros(len(vocabulary)) if log_priors is None else config.prior_weight * log_priors
        super().__init__(config, shift, recombine, vocabulary.index.get(_SPACE, -1))
        self.vocabulary, self.lexicon = vocabulary, lexicon
        self.words: tuple[str, ...] = tuple(lexicon)
        if not self.words:
            raise LexiconError("the lexicon holds no words: nothing could be recognised")
        self._ids = {word: i for i, word in enumerate(self.words)}
        self.scorer = Scorer(language_model, self.words) if language_model else NoScorer(len(self.words))
        unigrams = self.scorer.unigrams()
        units, numbers, costs = self._spellings()
        self.trie = build(units, numbers, unigrams, costs)
        self._tree, self.log_unigrams = self.trie.arrays(), unigrams
        self._rescorer = None
        if second and language_model and config.second_share:
            self._rescorer = Rescorer(second, self._name, precision)

    def _spellings(self) -> tuple[NDArray[np.int32], NDArray[np.int32], Floats]:
        """Units and word of every entry of the lexicon, and what it costs to be said so."""
        if isinstance(self.vocabulary, PhoneVocabulary):
            units, words, costs = self.lexicon.spellings(self.vocabulary.index)
            return units, words, self.config.pronunciation_weight * costs
        spelled = [self._spell(word, self.lexicon)[0] for word in self.words]
        longest = max(map(len, spelled))
        units = np.array([[*s, *[-1] * (longest - len(s))] for s in spelled], dtype=np.int32)
        return units, np.arange(len(spelled), dtype=np.int32), np.zeros(len(spelled))

    def hot_words(
        self, phrases: Iterable[HotWord], lm_scale: float = 1.0, pronouncer: Lexicon | None = None
    ) -> HotWords:
        """Prepare a session's phrases for :meth:`begin`. ``pronouncer``: a lexicon that can say words it does not list
        (that of the search by default). Raises UsageError that names every unusable phrase."""
        lexicon = pronouncer or self.lexicon
        weight = self.config.lm_weight * lm_scale

        def score(ids: Ints) -> Floats:
            known = ids < len(self.words)
            return weight * np.where(known, self.log_unigrams[np.where(known, ids, 0)], self.scorer.rare)

        def price(word: str) -> list[float]:
            if not isinstance(self.vocabulary, PhoneVocabulary):
                return [0.0]
            return [self.config.pronunciation_weight * cost for cost in lexicon.costs(word)]

        return HotWords(phrases, self._ids, lambda word: self._spell(word, lexicon), score, normalize, price)

    def spell(self, word: str) -> list[list[int]]:
        """The unit ids of the pronunciations of a word of the lexicon."""
        return self._spell(word, self.lexicon)

    def _spell(self, word: str, lexicon: Lexicon) -> list[list[int]]:
        """The unit ids of a word's pronunciations."""
        if isinstance(self.vocabulary, PhoneVocabulary):
            return [self.vocabulary.encode_phones(p) for p in lexicon.pronounce(word)]
        return [[*self.vocabulary.encode(word), *([self._space] if self._space >= 0 else [])]]

    # -- one stream --------------------------------------------------------------------------------------------------

    def begin(
        self, hot: HotWords | None = None, lm_scale: float = 1.0, remember: bool = False, said: Text | None = None
    ) -> SearchState:
        """State of a new segment. ``hot``: the session's hot words; ``lm_scale`` multiplies the language model's weight
        (0: none); ``remember`` what recombination leaves behind, for :meth:`alternatives`; ``said``: see
        :meth:`said`."""
        ints, scores, hashes = first_state(self.scorer.begin)
        state = SearchState(ints, scores, hashes, hot=hot, lm_scale=lm_scale, remembers=remember and self._recombine)
        if self._rescorer:
            state.texts[state.root] = said or self._rescorer.begin()
        return state

    def said(self, state: SearchState, words: Sequence[str]) -> Text | None:
        """What a recurrent language model remembers for the next segment, when this one has these ``words``."""
        if not self._rescorer:
            return None
        ends = bool(words) and self.looks_final(state)
        return self._rescorer.said(state.texts[state.root], words[len(state.committed) :], ends)

    def stable(self, state: SearchState) -> int:
        """How many of the first words of :meth:`best` will not change any more: they are agreed upon."""
        return state.agreed

    def looks_final(self, state: SearchState) -> bool:
        """Whether the likeliest words could well be all: the language model finds an end here as likely as some."""
        top = state.ints[int(self.totals(state).argmax())]
        if top[NODE] != ROOT or (top[HISTORY] < 0 and not state.committed):
            return False
        end = np.array([self.scorer.end_of_sentence])
        return bool(self.scorer.score(top[None, CONTEXT], end)[0][0] >= FINAL)

    def check_state(self, state: SearchState, hot: HotWords | None) -> None:
        """Raise StateError unless ``state`` can be one of this search with the hot words ``hot``."""
        columns, history, words = state.ints.T, state.history, len(self.words)
        known = set(hot.unknown if hot else ())
        said = np.unique(np.concatenate([history.data[:, NAME], [w for w, _, _ in state.committed]]))
        right = [
            fits(state, len(self.vocabulary), self.scorer.contexts),
            within(columns[NODE], 0, len(self.trie) + (len(hot.tree) if hot else 0)),
            within(columns[HOT], 0, len(hot.given) if hot else 1),
            all(0 <= w < words or w in known for w in said.tolist()),
            self._rescorer.fits(state) if self._rescorer else not state.texts,
        ]
        if not all(right):
            raise StateError("the state is broken or of another model: its search does not fit this one")

    def so_far(self, state: SearchState, share: float) -> SoFar:
        """See :meth:`Lockstep.so_far`."""
        history, total = state.history, self.totals(state)
        weight = np.exp(total - total.max())
        chain = history.chain(int(state.ints[int(np.argmax(total)), HISTORY]))
        entries, count = state.ints[:, HISTORY], len(chain)
        while count > state.agreed - len(state.committed):  # these all have
            there = history.at_depth(entries, int(history.data[chain[count - 1], DEPTH]))
            agree = (there >= 0) & (history.hashes[there] == history.hashes[chain[count - 1]])
            if weight[agree].sum() >= share * weight.sum():
                break
            count -= 1
        words, guessed = self._timed(state, chain[:count]), None
        if count == len(chain) or count == len(chain) - 1:
            last = chain[count - 1] if count else -1
            guessed = next_word(self, state, weight, last, max(share, EXPECTED))
        if guessed is not None:
            words += (TimedWord(self._name(state, guessed[0]), *guessed[1:]),)
        return SoFar(words, len(words), self.stable(state))

    def end_nbest(self, state: SearchState, count: int) -> list[Hypothesis]:
        """The ``count`` likeliest different word sequences of the segment, best first (at least one)."""
        return self._end(state, count, False)

    def alternatives(self, state: SearchState, count: int) -> list[Hypothesis]:
        """See :meth:`Lockstep.alternatives`."""
        return self._end(state, count, state.remembers)

    def _end(self, state: SearchState, count: int, with_arcs: bool) -> list[Hypothesis]:
        if not state.steps:
            return [Hypothesis((), 0.0)]
        heard = state
        if self._space >= 0:
            state = self._with_space(heard)
        whole = (state.ints[:, NODE] == ROOT).nonzero()[0]
        if not len(whole):  # the beam holds nothing but parts of words: what came before them
            return [self.best(heard)]
        ints = state.ints[whole]
        log_prob, _ = self.scorer.score(
            ints[:, CONTEXT], np.full(len(whole), self.scorer.end_of_sentence, dtype=np.int64)
        )
        total = self.totals(state)[whole] + self.config.lm_weight * state.lm_scale * log_prob
        if state.hot:
            total -= state.hot.potential(ints[:, HOT])
        ranked = sum_texts(state.hashes[whole], total, ints[:, HISTORY], count)
        if with_arcs:
            return self._paths(state, ranked, count)
        return [Hypothesis(self._words(state, entry), score + state.offset) for score, entry in ranked]

    def _paths(self, state: SearchState, ranked: list[tuple[float, int]], count: int) -> list[Hypothesis]:
        """The likeliest texts of final hypotheses and of what recombination left behind."""
        state.settled()
        return [
            Hypothesis(self._named(state, [*state.committed, *words]), score + state.offset)
            for score, words in paths(state.history, state.arcs, ranked, count)
        ]

    def _with_space(self, state: SearchState) -> SearchState:
        """One more step, at which the last word may end."""
        silence = np.full((1, len(self.vocabulary)), NEVER)
        silence[0, [BLANK, self._space]] = [_NO_SPACE, 0.0]
        state = state.clone()
        self.advance([Piece(state, silence, [state.steps], [state.skipped])], agree=False)
        return state

    def _words(self, state: SearchState, entry: int) -> tuple[TimedWord, ...]:
        return self._timed(state, state.history.chain(entry))

    def _timed(self, state: SearchState, chain: list[int]) -> tuple[TimedWord, ...]:
        """What was committed and the words of a chain of the history."""
        return self._named(state, [*state.committed, *state.history.data[chain, NAME : ENDS + 1].tolist()])

    def _named(self, state: SearchState, said: Iterable[Sequence[int]]) -> tuple[TimedWord, ...]:
        """Words of (number, first step, last step)."""
        return tuple(TimedWord(self._name(state, w), first, last) for w, first, last in said)

    def _name(self, state: SearchState, word: int) -> str:
        if word < len(self.words):
            return self.words[word]
        assert state.hot is not None
        return state.hot.name(word)

    # -- one frame ---------------------------------------------------------------------------------------------------

    def about(self, states: list[SearchState]) -> _Row:
        """See :meth:`Lockstep.about`."""
        return _Row(states, self.weights(states), stack([s.hot for s in states], len(self.trie)))

    def frame(
        self, beams: Beams, about: _Row, emissions: Floats, now: NDArray[np.int32], skipped: NDArray[np.bool_]
    ) -> Beams:
        """See :meth:`Lockstep.frame`."""
        ints = beams.ints
        old = self._stay(beams, emissions, skipped, ints[:, NODE] == ROOT)
        likely = self._likely(emissions)
        on, on_scores, ends, ends_scores = expand(
            ints, beams.scores, old, likely, about.lm_weight, self._tree, self.scorer.grams, FEW_WORDS
        )
        if about.overlay:
            own = self._with_own(about.overlay, beams, old, likely, ends, ends_scores)
            on, on_scores = np.concatenate([on, own[0]]), np.concatenate([on_scores, own[1]])
            ends, ends_scores = own[2], own[3]
        source, word = ends[:, SOURCE].astype(np.int64), ends[:, NEW_WORD].astype(np.int64)
        row, log_prob = ints[:, ROW].take(source), ends_scores[:, 1]
        worth: Floats = ends_scores[:, 0] + about.lm_weight.take(row) * log_prob + self.config.word_score - _TIE * word
        if self._rescorer:
            worth += self._second(worth - old.least.take(row), row, source, word, log_prob, beams, about)
        if about.overlay:
            ends[:, NEW_HOT], gain = about.overlay.advance(row, ints[:, HOT].take(source), word)
            worth += gain
        which, row, scores, total, texts, *keys = candidates(
            ints, beams.scores, beams.hashes, old, on, on_scores, ends, worth
        )
        found = self._select(row, scores, total, (keys[0], keys[1]), beams, about.states)

        def described(some: Ints) -> NDArray[np.int32]:
            return written(some, which, ints, on, ends, now, self._space)

        if len(found.losers):
            remember(found, which[:, 0] == ENDED, described, total, texts, about.states)
        beams = survivors(found, described(found.chosen), scores, texts)
        record(beams, beams.hashes, about.states)
        return beams

    def _with_own(
        self, overlay: Overlay, beams: Beams, old: Stay, likely: Floats, ends: NDArray[np.int32], ends_scores: Floats
    ) -> tuple[NDArray[np.int32], Floats, NDArray[np.int32], Floats]:
        """What sessions' own trees add to what goes on, and all that ends with theirs, as :func:`expand` has it: their
        words are found in their own trees alone."""
        ints = beams.ints
        shared = ~overlay.owns(ints[:, ROW].take(ends[:, SOURCE]), ends[:, NEW_WORD].astype(np.int64))
        parent, child, unit = overlay.children(ints[:, NODE], ints[:, ROW])
        row = ints[:, ROW].take(parent)
        heard, least = likely[row, unit], old.least.take(row)
        before = np.where(unit == ints[:, UNIT].take(parent), old.in_blank.take(parent), old.total.take(parent))
        score = before + heard - beams.scores[:, LOOK].take(parent)
        look = overlay.looks(child, row)
        good = ((old.total.take(parent) + heard > least) & (score + look > least)).nonzero()[0]
        parent, child, unit, row = parent.take(good), child.take(good), unit.take(good), row.take(good)
        score, look = score.take(good), look.take(good)
        ended, word, cost, goes_on = overlay.completed(child, row)
        on = np.stack([parent, unit, child], axis=1)[goes_on].astype(np.int32)
        source = parent.take(ended)
        log_prob, context = self.scorer.score(ints[:, CONTEXT].take(source), word)
        own = np.stack([source, unit.take(ended), word, context, ints[:, HOT].take(source)], axis=1).astype(np.int32)
        return (
            on,
            np.stack([score + look, look], axis=1)[goes_on],
            np.concatenate([ends[shared], own]),
            np.concatenate([ends_scores[shared], np.stack([score.take(ended) - cost, log_prob], axis=1)]),
        )

    def _second(
        self,
        above: Floats,
        row: NDArray[np.int32],
        source: Ints,
        word: Ints,
        first: Floats,
        beams: Beams,
        about: _Row,
    ) -> Floats:
        """(words,) what the recurrent language model adds to the scores of hypotheses that complete a ``word``: 0 where
        these are not near the best one. ``above``: (words,) nats above what is cut off; ``first``: (words,) log10
        probability of the n-gram model."""
        assert self._rescorer
        added, weight = np.zeros(len(source)), about.lm_weight.take(row)
        near = ((above > self.config.threshold - self.config.second_margin) & (weight > 0)).nonzero()[0]
        if not len(near):
            return added
        hypothesis, word, share = source.take(near), word.take(near), self.config.second_share
        before = beams.hashes.take(hypothesis)
        of = (row.take(near), said_then(before, word), before, beams.ints[:, HISTORY].take(hypothesis), word)
        asked = [Asked(about.states[r], *rest) for r, *rest in zip(*(a.tolist() for a in of), strict=True)]
        ratio = 10.0 ** (self._rescorer.judge(asked, len(self.words)) - first.take(near))
        added[near] = weight.take(near) * np.log10(1 - share + share * ratio)
        return added

    def _commit(self, ints: NDArray[np.int32], state: SearchState, old: list[int]) -> NDArray[np.bool_]:
        """See :meth:`Lockstep._commit`. The recurrent language model forgets what no hypothesis has said any more."""
        if self._rescorer and old:
            self._rescorer.plant(state, old[-1], len(self.words))
        keep = super()._commit(ints, state, old)
        if self._rescorer:
            known = state.texts
            state.texts = {key: known[key] for key in (state.root, *state.history.hashes.tolist()) if key in known}
        return keep
