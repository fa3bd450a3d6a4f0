"""CTC prefix beam search over a lexicon tree with a word n-gram model, for many streams at once, in array operations.

A hypothesis is a place in the tree behind a sequence of whole words. It sums the probability of all alignments that
lead there, those that end in blank and those that end in its last unit apart (Graves 2008; Hannun et al. 2014). When a
unit completes a word, the language model scores the word at once and the hypothesis goes on at the root; inside a word
it carries the best unigram score that is still possible below its node, as an expectation. Of hypotheses at the same
place with the same language model context, the future is the same: only the best one lives on. Everything advances in
lockstep: one array operation serves the hypotheses of all streams (the idea of NGPU-LM, Bataev et al. 2025, that a
language model held as arrays lets beams advance together).

Steps that are surely blank only move the mass of a hypothesis to where the last symbol is blank; they cost nothing.
Time and memory are bounded for ever: every now and then the words that lie some seconds back are committed, and
hypotheses that disagree with them end.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from asr.decoding.hot_words import HotWord, HotWords, Overlay, stack
from asr.decoding.hypothesis import Emissions, Hypothesis, TimedWord
from asr.decoding.scorer import NoScorer, Scorer
from asr.decoding.search_config import SearchConfig
from asr.decoding.search_state import (
    BEGINS,
    COLUMNS,
    CONTEXT,
    DEPTH,
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
    PREVIOUS,
    ROW,
    UNIT,
    WORD,
    SearchState,
)
from asr.decoding.trie import ROOT, build
from asr.errors import LexiconError, StateError
from asr.lexicon import Lexicon
from asr.lm.model import NgramModel
from asr.model_config import STEP_MS
from asr.text import normalize
from asr.vocabulary import BLANK, PhoneVocabulary, Vocabulary

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Hashes = NDArray[np.uint64]

_SPACE = " "
_NEVER = -np.inf
_MOST_ROWS = 250  # streams that advance together: see _ranking
_NO_SPACE = -1e3  # nats: what is not over at the end counts only where nothing is
_TIE = 2e-8  # per word id: of homophones that the language model does not tell apart, always the same one is better
FEW_WORDS = 4  # below a node, from which on the language model looks ahead at each of them in its context
FINAL = -1.0  # log10 probability of an end from which on words look complete
COMMIT_EVERY = 16  # frames
COMMIT_STEPS = 4000 // STEP_MS  # words that ended this long ago are committed
_MIX = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93], dtype=np.uint64)


@dataclass
class _Beams:
    """The hypotheses of several streams, grouped by row and best first. ``starts``: (rows,) where each row begins."""

    ints: NDArray[np.int32]
    scores: Floats
    hashes: Hashes
    starts: Ints


@dataclass
class _Row:
    """What a step needs to know of each stream. All (rows,) but for ``overlay``."""

    states: list[SearchState]
    lm_weight: Floats
    overlay: Overlay | None


class BeamSearch:
    """``begin / step / best / end`` over the emissions of one head. Immutable; shared by all streams of a recogniser.

    ``log_priors``: (units,) log-probabilities of the units, or None. ``words``: those of the lexicon that can be
    recognised (all by default). Raises LexiconError when there is none, or one that the units cannot spell.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        lexicon: Lexicon,
        language_model: NgramModel | None,
        config: SearchConfig | None = None,
        log_priors: Emissions | None = None,
        recombine: bool = True,
    ) -> None:
        self.vocabulary, self.lexicon = vocabulary, lexicon
        self.config = config or SearchConfig()
        self.words: tuple[str, ...] = tuple(lexicon)
        if not self.words:
            raise LexiconError("the lexicon holds no words: nothing could be recognised")
        self._ids = {word: i for i, word in enumerate(self.words)}
        self._recombine = recombine
        self.scorer = Scorer(language_model, self.words) if language_model else NoScorer(len(self.words))
        self._space = vocabulary.index.get(_SPACE, -1)  # what stands between words, if anything
        unigrams = self.scorer.unigrams()
        self.trie = build(*self._spellings(), unigrams)
        self.log_unigrams = unigrams
        self._root_child = np.zeros(len(vocabulary), dtype=np.int64)
        below = np.arange(self.trie.first_child[ROOT], self.trie.first_child[ROOT] + self.trie.children[ROOT])
        self._root_child[self.trie.unit[below]] = below
        self._shift = np.zeros(len(vocabulary)) if log_priors is None else self.config.prior_weight * log_priors
        self._tokens = min(self.config.tokens, len(vocabulary) - 1)

    def _spellings(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        if isinstance(self.vocabulary, PhoneVocabulary):
            return self.lexicon.spellings(self.vocabulary.index)
        spelled = [self._spell(word, self.lexicon)[0] for word in self.words]
        longest = max(map(len, spelled))
        units = np.array([[*s, *[-1] * (longest - len(s))] for s in spelled], dtype=np.int32)
        return units, np.arange(len(spelled), dtype=np.int32)

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

        return HotWords(phrases, self._ids, lambda word: self._spell(word, lexicon), score, normalize)

    def _spell(self, word: str, lexicon: Lexicon) -> list[list[int]]:
        """The unit ids of a word's pronunciations."""
        if isinstance(self.vocabulary, PhoneVocabulary):
            return [self.vocabulary.encode_phones(p) for p in lexicon.pronounce(word)]
        return [[*self.vocabulary.encode(word), *([self._space] if self._space >= 0 else [])]]

    # -- one stream --------------------------------------------------------------------------------------------------

    def begin(self, hot: HotWords | None = None, lm_scale: float = 1.0) -> SearchState:
        """State of a new segment. ``hot``: the session's hot words; ``lm_scale`` multiplies the language model's weight
        (0: none)."""
        ints = np.zeros((1, COLUMNS), dtype=np.int32)
        ints[0, [UNIT, HISTORY, WORD]] = -1
        ints[0, CONTEXT] = self.scorer.begin
        scores = np.array([[0.0, _NEVER, 0.0]])
        return SearchState(ints, scores, np.zeros(1, dtype=np.uint64), hot=hot, lm_scale=lm_scale)

    def step(self, emissions: Emissions, state: SearchState) -> SearchState:
        """Advance by ``emissions`` (steps, units) log-probabilities; the state given is used up."""
        self.step_many([(emissions, state)])
        return state

    def best(self, state: SearchState) -> Hypothesis:
        """The likeliest words so far; a word that is not complete is left out."""
        top = int(np.argmax(np.logaddexp(state.scores[:, IN_BLANK], state.scores[:, IN_UNIT])))
        return Hypothesis(self._words(state, int(state.ints[top, HISTORY])), self._score(state, top))

    def stable(self, state: SearchState) -> int:
        """How many of the first words of :meth:`best` will not change any more: all hypotheses share them."""
        entry = state.history.common(state.ints[:, HISTORY])
        return len(state.committed) + (len(state.history.chain(entry)) if entry >= 0 else 0)

    def looks_final(self, state: SearchState) -> bool:
        """Whether the likeliest words could well be all: the language model finds an end here as likely as some."""
        total = np.logaddexp(state.scores[:, IN_BLANK], state.scores[:, IN_UNIT])
        top = state.ints[int(np.argmax(total))]
        if top[NODE] != ROOT or (top[HISTORY] < 0 and not state.committed):
            return False
        end = np.array([self.scorer.end_of_sentence])
        return bool(self.scorer.score(top[None, CONTEXT], end)[0][0] >= FINAL)

    def check_state(self, state: SearchState, hot: HotWords | None) -> None:
        """Raise StateError unless ``state`` can be one of this search with the hot words ``hot``."""
        columns, history = state.ints.T, state.history
        units, words = len(self.vocabulary), len(self.words)
        known = set(hot.unknown if hot else ())
        said = np.unique(np.concatenate([history.data[:, NAME], [w for w, _, _ in state.committed]]))
        entry = np.arange(history.size)
        before = history.data[:, PREVIOUS]
        right = [
            len(state.ints) > 0,
            _within(columns[NODE], 0, len(self.trie) + (len(hot.tree) if hot else 0)),
            _within(columns[UNIT], -1, units) and not (columns[UNIT] == BLANK).any(),
            _within(columns[CONTEXT], 0, self.scorer.contexts),
            _within(columns[HOT], 0, len(hot.given) if hot else 1),
            _within(columns[HISTORY], -1, history.size),
            bool((columns[WORD] == -1).all() and (columns[ROW] == 0).all()),
            all(0 <= w < words or w in known for w in said.tolist()),
            bool((before < entry).all() and (before >= -1).all()),
            bool((history.data[:, DEPTH] == np.where(before >= 0, history.data[before, DEPTH] + 1, 0)).all()),
            _within(np.concatenate([*columns[[FIRST, LAST]], *history.data[:, [BEGINS, ENDS]].T]), 0, state.steps + 1),
            all(e.shape[1] == units for e in state.emissions),
            sum(map(len, state.emissions)) <= state.steps,
        ]
        if not all(right):
            raise StateError("the state is broken or of another model: its search does not fit this one")

    def likely(self, state: SearchState, share: float) -> int:
        """How many of the first words of :meth:`best` at least ``share`` of the hypotheses' probability has, too."""
        history = state.history
        total = np.logaddexp(state.scores[:, IN_BLANK], state.scores[:, IN_UNIT])
        weight = np.exp(total - total.max())
        chain = history.chain(int(state.ints[int(np.argmax(total)), HISTORY]))
        entries, count = state.ints[:, HISTORY], len(chain)
        while count:
            there = history.at_depth(entries, int(history.data[chain[count - 1], DEPTH]))
            agree = (there >= 0) & (history.hashes[there] == history.hashes[chain[count - 1]])
            if weight[agree].sum() >= share * weight.sum():
                break
            count -= 1
        return len(state.committed) + count

    def end(self, state: SearchState) -> Hypothesis:
        """The likeliest whole words of the segment with its end scored."""
        return self.end_nbest(state, 1)[0]

    def end_nbest(self, state: SearchState, count: int) -> list[Hypothesis]:
        """The ``count`` likeliest different word sequences of the segment, best first (at least one)."""
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
        total = np.logaddexp(state.scores[whole, IN_BLANK], state.scores[whole, IN_UNIT])
        total += self.config.lm_weight * state.lm_scale * log_prob
        if state.hot:
            total -= state.hot.potential(ints[:, HOT])
        sums: dict[int, tuple[float, float, int]] = {}  # by words: best score, sum of scores, history of the best
        for key, score, entry in zip(state.hashes[whole].tolist(), total.tolist(), ints[:, HISTORY], strict=True):
            top, all_of_it, best = sums.get(key, (_NEVER, _NEVER, -1))
            sums[key] = (max(top, score), float(np.logaddexp(all_of_it, score)), int(entry) if score > top else best)
        ranked = sorted(sums.values(), key=lambda s: -s[1])[:count]
        return [Hypothesis(self._words(state, entry), score + state.offset) for _, score, entry in ranked]

    def _with_space(self, state: SearchState) -> SearchState:
        """One more step, at which the last word may end."""
        silence = np.full((1, len(self.vocabulary)), _NEVER)
        silence[0, [BLANK, self._space]] = [_NO_SPACE, 0.0]
        state = state.clone()
        self._advance_all([state], [silence], [[state.steps]], [[state.skipped]])
        return state

    def _words(self, state: SearchState, entry: int) -> tuple[TimedWord, ...]:
        chain = [tuple(row) for row in state.history.data[state.history.chain(entry), 1 : ENDS + 1].tolist()]
        return tuple(TimedWord(self._name(state, w), first, last) for w, first, last in (*state.committed, *chain))

    def _name(self, state: SearchState, word: int) -> str:
        if word < len(self.words):
            return self.words[word]
        assert state.hot is not None
        return state.hot.name(word)

    @staticmethod
    def _score(state: SearchState, at: int) -> float:
        return float(np.logaddexp(state.scores[at, IN_BLANK], state.scores[at, IN_UNIT])) + state.offset

    # -- many streams ------------------------------------------------------------------------------------------------

    def step_many(self, pieces: Sequence[tuple[Emissions, SearchState]]) -> None:
        """Advance several streams together; their states are changed in place. A stream's result does not depend on
        the others."""
        states: list[SearchState] = []
        frames: list[Floats] = []
        steps, collapse = [], []
        for emissions, state in pieces:
            if not len(emissions):
                continue
            before_this = state.steps
            state.keep(emissions)
            sure = np.exp(emissions[:, BLANK]) > self.config.blank_skip
            kept = (~sure).nonzero()[0]
            shifted = emissions - self._shift
            state.offset += float(shifted[sure, BLANK].sum())
            if len(kept):
                before = np.diff(kept, prepend=kept[0] if state.skipped else -1) > 1
                before[0] = state.skipped or kept[0] > 0
                states.append(state)
                frames.append(shifted[kept].astype(np.float64))
                steps.append((before_this + kept).tolist())
                collapse.append(before.tolist())
                state.skipped = bool(kept[-1] < len(emissions) - 1)
            else:
                state.skipped = True
        for i in range(0, len(states), _MOST_ROWS):
            piece = slice(i, i + _MOST_ROWS)
            self._advance_all(states[piece], frames[piece], steps[piece], collapse[piece])

    def _advance_all(
        self,
        states: list[SearchState],
        frames: list[Floats],
        steps: Sequence[Sequence[int]],
        collapse: Sequence[Sequence[bool]],
    ) -> None:
        """All frames of all states: the k-th frame of each in the k-th round."""
        order = sorted(range(len(states)), key=lambda i: -len(frames[i]))  # those that end early leave at the end
        rows = [states[i] for i in order]
        sizes = np.array([len(s.ints) for s in rows])
        beams = _Beams(
            np.concatenate([s.ints for s in rows]),
            np.concatenate([s.scores for s in rows]),
            np.concatenate([s.hashes for s in rows]),
            np.cumsum(sizes) - sizes,
        )
        beams.ints[:, ROW] = np.repeat(np.arange(len(rows)), sizes)
        weights = self.config.lm_weight * np.array([s.lm_scale for s in rows])
        about = _Row(rows, weights, stack([s.hot for s in rows], len(self.trie)))
        lengths = [len(frames[i]) for i in order]
        for k in range(lengths[0]):
            active = sum(length > k for length in lengths)
            if active < len(beams.starts):
                beams = self._retire(beams, rows, active)
            emissions = np.stack([frames[i][k] for i in order[:active]])
            now = np.array([steps[i][k] for i in order[:active]], dtype=np.int32)
            skipped = np.array([collapse[i][k] for i in order[:active]])
            beams = self._frame(beams, about, emissions, now, skipped)
            for r in range(active):
                rows[r].frames += 1
                if rows[r].frames % COMMIT_EVERY == 0:
                    beams = self._commit(beams, rows[r], r, int(now[r]))
        self._retire(beams, rows, 0)

    @staticmethod
    def _retire(beams: _Beams, rows: list[SearchState], active: int) -> _Beams:
        """Hand their hypotheses to the states of the rows from ``active`` on; what remains."""
        stops = [*beams.starts[1:].tolist(), len(beams.ints)]
        for r in range(active, len(stops)):
            piece = slice(int(beams.starts[r]), stops[r])
            state = rows[r]
            state.ints = beams.ints[piece].copy()
            state.ints[:, ROW] = 0
            state.scores, state.hashes = beams.scores[piece].copy(), beams.hashes[piece].copy()
        stop = int(beams.starts[active]) if active < len(beams.starts) else len(beams.ints)
        return _Beams(beams.ints[:stop], beams.scores[:stop], beams.hashes[:stop], beams.starts[:active])

    # -- one frame ---------------------------------------------------------------------------------------------------

    def _frame(
        self, beams: _Beams, about: _Row, emissions: Floats, now: NDArray[np.int32], skipped: NDArray[np.bool_]
    ) -> _Beams:
        """``emissions``: (rows, units); ``now``: (rows,) step of each; ``skipped``: whether blanks lie before it."""
        ints, units = beams.ints, emissions.shape[1]
        columns = np.ascontiguousarray(ints.T)
        row, node, unit = columns[ROW], columns[NODE], columns[UNIT]
        in_blank, in_unit, look = np.ascontiguousarray(beams.scores.T)
        total = np.logaddexp(in_blank, in_unit)
        if skipped.any():
            gone = skipped.take(row)
            in_blank, in_unit = np.where(gone, total, in_blank), np.where(gone, _NEVER, in_unit)
        flat, base = emissions.ravel(), row.astype(np.int64) * units
        stay_blank, stay_unit = total + flat.take(base), in_unit + flat[base + unit]
        if self._space >= 0:  # between words a space is as good as blank
            between = total + np.where(node == ROOT, flat.take(base + self._space), _NEVER)
            stay_blank = np.logaddexp(stay_blank, between)
            stay_unit = np.where((node == ROOT) & (unit == self._space), _NEVER, stay_unit)
        stay = np.logaddexp(stay_blank, stay_unit)
        floor = np.maximum.reduceat(stay, beams.starts) - self.config.threshold
        least = floor.take(row)

        likely = self._likely(emissions)
        parent, child, own, new_unit = self._children(node, row, about, likely)
        heard = likely.ravel().take(base.take(parent) + new_unit)
        keep = (total.take(parent) + heard > least.take(parent)).nonzero()[0]
        parent, child, new_unit, heard = parent.take(keep), child.take(keep), new_unit.take(keep), heard.take(keep)
        own = own.take(keep) if about.overlay else own
        repeated = new_unit == unit.take(parent)
        score = np.where(repeated, in_blank.take(parent), total.take(parent)) + heard - look.take(parent)
        new_look = self._looks(child, own, row, parent, columns[CONTEXT], about)
        keep = (score + new_look > least.take(parent)).nonzero()[0]
        parent, child, new_unit, score = parent.take(keep), child.take(keep), new_unit.take(keep), score.take(keep)
        new_look = new_look.take(keep)
        own = own.take(keep) if about.overlay else own

        ended, word, goes_on = self._completed(child, own, row, parent, about)
        source = parent.take(ended)
        log_prob, context = self.scorer.score(columns[CONTEXT].take(source), word)
        worth = score.take(ended) + about.lm_weight.take(row.take(source)) * log_prob
        worth += self.config.word_score - _TIE * word
        hot = columns[HOT].take(source)
        if about.overlay:
            hot, gain = about.overlay.advance(row.take(source), hot, word)
            worth += gain
        good = (worth > least.take(source)).nonzero()[0]
        stays, on = (stay > least).nonzero()[0], (goes_on).nonzero()[0]
        n_stay, n_on = len(stays), len(on)

        source_of = np.concatenate([stays, parent.take(on), source.take(good)])
        merged = np.take(columns, source_of, axis=1)
        hashes = beams.hashes.take(source_of)
        fresh = merged[:, n_stay:]
        here = now.take(fresh[ROW])
        np.copyto(fresh[FIRST], here, where=fresh[NODE] == ROOT)
        units_heard = np.concatenate([new_unit.take(on), new_unit.take(ended.take(good))])
        np.copyto(fresh[LAST], here, where=units_heard != self._space)  # the space behind a word is no part of it
        middle, ends = slice(n_stay, n_stay + n_on), slice(n_stay + n_on, None)
        merged[UNIT, n_stay:] = units_heard
        merged[NODE, middle], merged[NODE, ends] = child.take(on), ROOT
        word = word.take(good)
        merged[CONTEXT, ends], merged[HOT, ends], merged[WORD, ends] = context.take(good), hot.take(good), word
        scores = np.full((3, len(source_of)), _NEVER)
        scores[IN_BLANK, :n_stay], scores[IN_UNIT, :n_stay] = stay_blank.take(stays), stay_unit.take(stays)
        scores[IN_UNIT, middle], scores[IN_UNIT, ends] = (score + new_look).take(on), worth.take(good)
        scores[LOOK, :n_stay], scores[LOOK, middle], scores[LOOK, ends] = look.take(stays), new_look.take(on), 0.0
        total = np.concatenate([stay.take(stays), scores[IN_UNIT, n_stay:]])
        hashes[ends] = hashes[ends] * _MIX[0] + (word.astype(np.uint64) + np.uint64(1)) * _MIX[1]
        return self._prune(merged, scores, total, hashes, about.states)

    def _likely(self, emissions: Floats) -> Floats:
        """(rows, units): the emissions of the best units of a step; those of the others, and of blank, are -inf."""
        likely = emissions.copy()
        likely[:, BLANK] = _NEVER
        least = np.partition(likely, -self._tokens, axis=1)[:, -self._tokens, None]
        likely[likely < least] = _NEVER
        return likely

    def _children(
        self, node: NDArray[np.int32], row: NDArray[np.int32], about: _Row, likely: Floats
    ) -> tuple[Ints, Ints, NDArray[np.bool_], NDArray[np.int32]]:
        """Every way on: (hypothesis, node, whether the node is of a session's own tree, unit)."""
        trie, size = self.trie, len(self.trie)
        at_root = (node == ROOT).nonzero()[0]
        which, by_unit = np.nonzero((likely > _NEVER).take(row.take(at_root), axis=0) & (self._root_child > 0))
        inner = ((node > ROOT) & (node < size)).nonzero()[0]
        place = node.take(inner)
        count = trie.children.take(place)
        stop = count.cumsum()
        parent = np.concatenate([at_root.take(which), inner.repeat(count)])
        below = (trie.first_child.take(place) - (stop - count)).repeat(count)
        below += np.arange(len(below))
        child = np.concatenate([self._root_child.take(by_unit), below])
        unit, own = trie.unit.take(child), np.zeros(0, dtype=bool)
        if about.overlay:
            more, own_child, own_unit = about.overlay.children(node, row, size)
            own = np.arange(len(parent) + len(more)) >= len(parent)
            parent, child = np.concatenate([parent, more]), np.concatenate([child, own_child])
            unit = np.concatenate([unit, own_unit])
        return parent, child, own, unit

    def _looks(
        self,
        child: Ints,
        own: NDArray[np.bool_],
        row: NDArray[np.int32],
        parent: Ints,
        context: NDArray[np.int32],
        about: _Row,
    ) -> Floats:
        """What the language model expects of the words below nodes: where they are few, of each in its context."""
        rows = row.take(parent)
        shared = child if about.overlay is None else np.where(own, ROOT, child)
        ahead, count = self.trie.ahead.take(shared), self.trie.below.take(shared)
        if len(few := (count <= FEW_WORDS).nonzero()[0]):
            count = count.take(few)
            stop = count.cumsum()
            place = (self.trie.first_below.take(shared.take(few)) - (stop - count)).repeat(count)
            place += np.arange(len(place))
            contexts = context.take(parent.take(few)).repeat(count)
            log_prob, _ = self.scorer.score(contexts, self.trie.entries.take(place))
            ahead[few] = np.maximum.reduceat(log_prob, stop - count)
        look = about.lm_weight.take(rows) * ahead
        if about.overlay is None:
            return look
        return np.where(own, about.overlay.looks(child, own, rows, len(self.trie)), look)

    def _completed(
        self, child: Ints, own: NDArray[np.bool_], row: NDArray[np.int32], parent: Ints, about: _Row
    ) -> tuple[Ints, Ints, NDArray[np.bool_]]:
        """Words that end at the nodes: (place among them, word); and which nodes go on."""
        trie = self.trie
        shared = child if about.overlay is None else np.where(own, ROOT, child)
        with_words = (trie.word_count.take(shared)).nonzero()[0]
        at = shared.take(with_words)
        count = trie.word_count.take(at)
        ended = with_words.repeat(count)
        place: Ints = (trie.first_word.take(at) - (count.cumsum() - count)).repeat(count)
        place += np.arange(len(ended))
        word = trie.words.take(place).astype(np.int64)
        goes_on = trie.children.take(shared) > 0
        if about.overlay:
            rows = row.take(parent)
            free = ~about.overlay.owns(rows.take(ended), word)  # hot words are found by their own tree alone
            ended, word = ended[free], word[free]
            own_ended, own_word, own_on = about.overlay.completed(child, own, rows, len(trie))
            ended, word = np.concatenate([ended, own_ended]), np.concatenate([word, own_word])
            goes_on = np.where(own, own_on, goes_on)
        return ended, word, goes_on

    # -- merging and pruning -----------------------------------------------------------------------------------------

    def _prune(
        self, columns: NDArray[np.int32], scores: Floats, total: Floats, hashes: Hashes, states: list[SearchState]
    ) -> _Beams:
        """Sum equal hypotheses, keep the best of those with the same future, and of each row the best ones.

        ``columns``: (9, n), ``scores``: (3, n), ``total``: (n,) of all alignments.
        """
        place = np.where(columns[NODE] == ROOT, -1 - columns[UNIT], columns[NODE]).astype(np.int64).view(np.uint64)
        place = place * _MIX[2] + columns[ROW].astype(np.uint64) * _MIX[3]
        order, starts = _groups(hashes * _MIX[1] + place)
        alive = np.arange(len(total))
        if len(starts) < len(order):
            alive = _sum_groups(scores, total, order, starts)
        if self._recombine:
            future = columns[CONTEXT].astype(np.uint64) * _MIX[0] + columns[HOT].astype(np.uint64) * _MIX[1] + place
            order, starts = _groups(future.take(alive))
            if len(starts) < len(order):
                alive = alive.take(_best_of_groups(total.take(alive), order, starts))
        alive.sort()
        row, total = columns[ROW].take(alive), total.take(alive)
        top = np.full(len(states), _NEVER)
        np.maximum.at(top, row, total)
        behind = top.take(row) - total
        near = (behind <= self.config.threshold).nonzero()[0]
        near = near.take(self._ranking(row.take(near), behind.take(near)).argsort())
        row = row.take(near)
        rows = np.arange(int(row[-1]) + 1)
        starts = row.searchsorted(rows)
        near = near[np.arange(len(near)) - starts.take(row) < self.config.beam]
        alive = alive.take(near)
        ints = np.ascontiguousarray(columns.take(alive, axis=1).T)
        beams = _Beams(ints, np.ascontiguousarray(scores.take(alive, axis=1).T), hashes.take(alive), starts)
        row = ints[:, ROW]
        beams.starts = row.searchsorted(rows)
        beams.scores[:, :LOOK] -= top.take(row)[:, None]
        self._record(beams, top, states)
        return beams

    def _ranking(self, row: NDArray[np.int32], behind: Floats) -> Ints:
        """(n,) integers, all different, that sort by row, then by score, then by place. Quick to sort, and of equal
        hypotheses the same one is the better in any company."""
        close = (behind * ((2.0**33 - 1) / self.config.threshold)).astype(np.int64)
        return (row.astype(np.int64) << 55) | (close << 22) | np.arange(len(row))

    @staticmethod
    def _record(beams: _Beams, top: Floats, states: list[SearchState]) -> None:
        """Write completed words into the histories of their streams."""
        ints, starts = beams.ints, beams.starts
        for state, score in zip(states, top[: len(starts)].tolist(), strict=False):
            state.offset += score
        done = (ints[:, WORD] >= 0).nonzero()[0]
        if not len(done):
            return
        words = ints.take(done, axis=0)
        edges = words[:, ROW].searchsorted(np.arange(len(starts) + 1)).tolist()
        for r in range(len(starts)):
            if edges[r] == edges[r + 1]:
                continue
            piece = slice(edges[r], edges[r + 1])
            history = states[r].history
            size = history.size
            history.append(words[piece][:, [HISTORY, WORD, FIRST, LAST]], beams.hashes.take(done[piece]))
            ints[done[piece], HISTORY] = np.arange(size, history.size)
        ints[done, WORD] = -1

    @staticmethod
    def _commit(beams: _Beams, state: SearchState, r: int, now: int) -> _Beams:
        """Words of the best hypothesis that ended long ago become final: those that disagree end."""
        starts = beams.starts
        stop = int(starts[r + 1]) if r + 1 < len(starts) else len(beams.ints)
        piece = slice(int(starts[r]), stop)
        history, entries = state.history, beams.ints[piece, HISTORY]
        if not history.size:
            return beams
        chain = history.chain(int(entries[0]))
        old = [entry for entry in chain if history.data[entry, ENDS] < now - COMMIT_STEPS]
        keep = np.ones(len(entries), dtype=bool)
        if old:
            depth = len(old) - 1
            there = history.at_depth(entries, depth)
            keep = (there >= 0) & (history.hashes[there] == history.hashes[old[-1]])
            state.committed.extend(tuple(row) for row in history.data[old, 1 : ENDS + 1].tolist())
        state.history, renamed = history.compact(entries[keep], len(old) - 1)
        survivors = np.ones(len(beams.ints), dtype=bool)
        survivors[piece] = keep
        ints = beams.ints[survivors]
        ints[int(starts[r]) : int(starts[r]) + len(renamed), HISTORY] = renamed
        starts = starts - np.where(np.arange(len(starts)) > r, int((~keep).sum()), 0)
        return _Beams(ints, beams.scores[survivors], beams.hashes[survivors], starts)


def _within(values: NDArray[np.int32], least: int, stop: int) -> bool:
    return bool(((values >= least) & (values < stop)).all())


def _groups(keys: Hashes) -> tuple[Ints, Ints]:
    """An order in which equal keys stand together, and where each group begins in it."""
    order = keys.argsort()
    ordered = keys.take(order)
    fresh = np.ones(len(order), dtype=bool)
    np.not_equal(ordered[1:], ordered[:-1], out=fresh[1:])
    return order, fresh.nonzero()[0]


def _sizes(starts: Ints, stop: int) -> Ints:
    """Of groups that follow each other up to ``stop``."""
    sizes = np.empty_like(starts)
    np.subtract(starts[1:], starts[:-1], out=sizes[:-1])
    sizes[-1] = stop - starts[-1]
    return sizes


def _sum_groups(scores: Floats, total: Floats, order: Ints, starts: Ints) -> Ints:
    """Add up the scores of each group, in place, at its best member; those members."""
    sizes = _sizes(starts, len(order))
    several = (sizes > 1).nonzero()[0]
    alive = order.take(starts)
    members = order[np.repeat(sizes > 1, sizes)]
    sizes = sizes.take(several)
    members += np.repeat(np.arange(len(several)) << 32, sizes)
    members.sort()  # within each group: a sum must not depend on an order that the stream's company changes
    members &= (1 << 32) - 1
    begins = sizes.cumsum() - sizes
    best = members.take(_best_of_groups(total.take(members), np.arange(len(members)), begins))
    for column in (IN_BLANK, IN_UNIT):
        scores[column, best] = np.logaddexp.reduceat(scores[column].take(members), begins)
    total[best] = np.logaddexp(scores[IN_BLANK, best], scores[IN_UNIT, best])
    alive[several] = best
    return alive


def _best_of_groups(total: Floats, order: Ints, starts: Ints) -> Ints:
    """For each group the place of its best member (of equal ones the first in memory)."""
    sizes = _sizes(starts, len(order))
    grouped = total[order]
    best = np.maximum.reduceat(grouped, starts)
    is_best = grouped == np.repeat(best, sizes)
    group = np.repeat(np.arange(len(starts)), sizes)[is_best]
    place = np.full(len(starts), len(order), dtype=np.int64)
    np.minimum.at(place, group, order[is_best])
    return place
