"""What searches over arrays of hypotheses have in common: the hypotheses of all streams take every frame together.

A search gives :meth:`Lockstep.frame`, one frame for the hypotheses of several streams; here is how streams come
together and part, how surely blank steps are passed over, how hypotheses are merged, ranked and cut off, and how a
stream's memory stays bounded.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from asr.decoding.hypothesis import Emissions, Hypothesis, SoFar, TimedWord
from asr.decoding.kernels import NEVER, Selected, Stay, select, stay
from asr.decoding.lattice import NEAR, left, settle
from asr.decoding.search_config import SearchConfig
from asr.decoding.search_state import (
    BEGINS,
    COLUMNS,
    CONTEXT,
    DEPTH,
    ENDS,
    FIRST,
    HEAD,
    HISTORY,
    IN_BLANK,
    IN_UNIT,
    LAST,
    LOOK,
    PREVIOUS,
    ROW,
    UNIT,
    WORD,
    Arcs,
    Block,
    History,
    SearchState,
)
from asr.model_config import STEP_MS
from asr.vocabulary import BLANK

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Hashes = NDArray[np.uint64]

FINAL = -1.0  # log10 probability of an end from which on words look complete
COMMIT_EVERY = 16  # frames
COMMIT_STEPS = 4000 // STEP_MS  # what was said this long ago is committed


@dataclass
class Beams:
    """The hypotheses of several streams, grouped by row and best first. ``ints``: (n, 10), ``scores``: (n, 3),
    ``hashes``: (n,), as in a :class:`SearchState`; ``starts``: (rows,) where each row begins; ``behind``: (n,) nats
    behind the best of its row, in beams that a frame has made."""

    ints: NDArray[np.int32]
    scores: Floats
    hashes: Hashes
    starts: Ints
    behind: Floats | None = None


@dataclass
class Rows:
    """What a frame needs to know of streams that advance together: ``states`` and ``lm_weight``, both (rows,)."""

    states: list[SearchState]
    lm_weight: Floats


@dataclass
class Piece:
    """Of one stream: ``frames`` (n, units), the ``steps`` (n,) they stand for, and whether blanks were ``skipped`` (n,)
    before each."""

    state: SearchState
    frames: Floats
    steps: list[int]
    skipped: list[bool]


About = TypeVar("About", bound=Rows)


class Lockstep(ABC, Generic[About]):
    """``step / step_many`` over the emissions of one head. ``shift``: (units,) what is subtracted from emissions;
    ``recombine``: of hypotheses with the same future, keep the best only; ``space``: the unit between words, or -1."""

    commit_steps = COMMIT_STEPS
    """How long what the best hypothesis says stays open at most."""

    def __init__(self, config: SearchConfig, shift: Emissions | Floats, recombine: bool, space: int) -> None:
        self.config, self._shift, self._recombine, self._space = config, shift, recombine, space
        self._tokens = min(config.tokens, len(shift) - 1)

    @abstractmethod
    def about(self, states: list[SearchState]) -> About:
        """What :meth:`frame` needs to know of streams that advance together."""

    @abstractmethod
    def frame(
        self, beams: Beams, about: About, emissions: Floats, now: NDArray[np.int32], skipped: NDArray[np.bool_]
    ) -> Beams:
        """One frame. ``about``: the rows (and behind them rows that have ended); ``emissions``: (rows, units); ``now``:
        (rows,) step of each; ``skipped``: (rows,) whether blanks were passed over just before it."""

    @abstractmethod
    def end_nbest(self, state: SearchState, count: int) -> list[Hypothesis]:
        """The ``count`` likeliest different word sequences of the segment, best first (at least one)."""

    def alternatives(self, state: SearchState, count: int) -> list[Hypothesis]:
        """As :meth:`end_nbest`, of more variety where the search keeps what recombination leaves behind: see
        :mod:`asr.decoding.lattice`. The best one is the same."""
        return self.end_nbest(state, count)

    @abstractmethod
    def _words(self, state: SearchState, entry: int) -> tuple[TimedWord, ...]:
        """What was said up to an entry of the history (-1: nothing that is not committed)."""

    @abstractmethod
    def begin(self) -> SearchState:
        """State of a new segment."""

    def warm_up(self) -> None:
        """Search through a step of nothing, so that what has to be compiled is compiled (or read) before somebody
        waits."""
        units = len(self._shift)
        self.end(self.step(np.full((1, units), -np.log(units), dtype=np.float32), self.begin()))

    # -- one stream --------------------------------------------------------------------------------------------------

    def step(self, emissions: Emissions, state: SearchState) -> SearchState:
        """Advance by ``emissions`` (steps, units) log-probabilities; the state given is used up."""
        self.step_many([(emissions, state)])
        return state

    def best(self, state: SearchState) -> Hypothesis:
        """The likeliest words so far. A word that is not complete is left out where a lexicon says so; without one the
        last word is what there is of it."""
        totals = self.totals(state)
        top = int(totals.argmax())
        return Hypothesis(self._words(state, int(state.ints[top, HISTORY])), float(totals[top]) + state.offset)

    @abstractmethod
    def so_far(self, state: SearchState, share: float) -> SoFar:
        """The words of :meth:`best`; "likely": at least ``share`` of the hypotheses' probability has them, too. One
        walk through the best history."""

    def end(self, state: SearchState) -> Hypothesis:
        """The likeliest words of the segment, all of them whole, with its end scored."""
        return self.end_nbest(state, 1)[0]

    @staticmethod
    def totals(state: SearchState) -> Floats:
        """(hypotheses,) score of all alignments of each, without the state's offset."""
        return np.logaddexp(state.scores[:, IN_BLANK], state.scores[:, IN_UNIT])

    def weights(self, states: Sequence[SearchState]) -> Floats:
        """(states,) weight of the language model."""
        return self.config.lm_weight * np.array([s.lm_scale for s in states])

    # -- many streams ------------------------------------------------------------------------------------------------

    def step_many(self, pieces: Sequence[tuple[Emissions, SearchState]]) -> None:
        """Advance several streams together; their states are changed in place. A stream's result does not depend on
        the others."""
        moved = [piece for emissions, state in pieces if len(emissions) and (piece := self._take(emissions, state))]
        if moved:
            self.advance(moved)

    def _take(self, emissions: Emissions, state: SearchState) -> Piece | None:
        """The frames that move hypotheses, if any; the others, surely blank, only shift their mass."""
        first = state.steps
        state.keep(emissions)
        sure = np.exp(emissions[:, BLANK]) > self.config.blank_skip
        kept = (~sure).nonzero()[0]
        shifted = emissions - self._shift
        state.offset += float(shifted[sure, BLANK].sum())
        if not len(kept):
            state.skipped = True
            return None
        before = np.empty(len(kept), dtype=bool)
        np.greater(kept[1:] - kept[:-1], 1, out=before[1:])
        before[0] = state.skipped or kept[0] > 0
        state.skipped = bool(kept[-1] < len(emissions) - 1)
        return Piece(state, shifted[kept].astype(np.float64), (first + kept).tolist(), before.tolist())

    def advance(self, pieces: Sequence[Piece], agree: bool = True) -> None:
        """All frames of all pieces (at least one): the k-th frame of each in the k-th round. ``agree``: whether words
        may be agreed upon."""
        pieces = sorted(pieces, key=lambda piece: -len(piece.frames))  # those that end early leave at the end
        states = [piece.state for piece in pieces]
        lengths = [len(piece.frames) for piece in pieces]
        beams, about = _gather(states), self.about(states)
        for k in range(lengths[0]):
            active = sum(length > k for length in lengths)
            if active < len(beams.starts):
                beams = _retire(beams, states, active)
            emissions = np.stack([piece.frames[k] for piece in pieces[:active]])
            now = np.array([piece.steps[k] for piece in pieces[:active]], dtype=np.int32)
            skipped = np.array([piece.skipped[k] for piece in pieces[:active]])
            beams = self.frame(beams, about, emissions, now, skipped)
            if agree:
                beams = self._agree(beams, states)
            beams = self._commit_some(beams, states[:active], now)
        _retire(beams, states, 0)

    def _agree(self, beams: Beams, states: Sequence[SearchState]) -> Beams:
        """The next words of every row that enough of its hypotheses share are agreed upon: those without them end.

        A word is looked at once the row's best hypothesis has said it. Against it count the hypotheses that are still
        within a word there, which may go on to a longer one, as well as those that have another word. The share is that
        of the softmax of the scores: on held-out speech (benchmarks/commit.py) neither a temperature, nor another
        weight for words that go on, nor a regression over such shares and the time since the word did better.
        """
        columns, starts = np.ascontiguousarray(beams.ints.T), beams.starts
        row, head = columns[ROW], columns[HEAD]
        said = head.take(starts)
        if (said < 0).all():
            return beams
        assert beams.behind is not None
        weight = self._weights(beams.behind)
        with_it = head == said.take(row)
        share = np.add.reduceat(np.where(with_it, weight, 0), starts)
        ready = ((said >= 0) & (share >= self.config.commit * np.add.reduceat(weight, starts))).nonzero()[0]
        if not len(ready):
            return beams
        keep, stops = np.ones(len(row), dtype=bool), [*starts[1:].tolist(), len(row)]
        ints = beams.ints
        for r in ready.tolist():
            piece = slice(int(starts[r]), stops[r])
            keep[piece], ints[piece, HEAD] = self._agreed(states[r], ints[piece], weight[piece])
            if states[r].remembers and not keep[piece].all():
                left(states[r], ints[piece], beams.hashes[piece], beams.behind[piece], keep[piece])
        return beams if keep.all() else _without(beams, keep)

    def _agreed(
        self, state: SearchState, ints: NDArray[np.int32], weight: Ints
    ) -> tuple[NDArray[np.bool_], NDArray[np.int32]]:
        """Of one row whose best hypothesis has a word to agree upon: which hypotheses live on, and column HEAD."""
        head, keep = ints[:, HEAD], np.ones(len(ints), dtype=bool)
        while head[0] >= 0:
            with_it = keep & (head == head[0])
            if weight[with_it].sum() < self.config.commit * weight[keep].sum():
                break
            keep = with_it
            state.agreed += 1
            head = state.heads(ints[:, HISTORY])
        return keep, head

    def _weights(self, behind: Floats) -> Ints:
        """(n,) what hypotheses count for, from how far they lie ``behind``. In integers: their sum must not depend on
        an order that the stream's company changes."""
        if self.config.commit == 1:
            return np.ones(len(behind), dtype=np.int64)
        return (np.exp(-behind) * 2.0**40).astype(np.int64)

    def _commit_some(self, beams: Beams, states: Sequence[SearchState], now: NDArray[np.int32]) -> Beams:
        """Another frame is over; streams that have seen enough of them commit what they said some time ago."""
        keep, stops = np.ones(len(beams.ints), dtype=bool), [*beams.starts[1:].tolist(), len(beams.ints)]
        for r, (state, begin, stop) in enumerate(zip(states, beams.starts.tolist(), stops, strict=True)):
            state.frames += 1
            if state.frames % COMMIT_EVERY == 0:
                ints = beams.ints[begin:stop]
                old = _sooner(state.history, int(ints[0, HISTORY]), int(now[r]) - self.commit_steps)
                keep[begin:stop] = self._commit(ints, state, old)
        return beams if keep.all() else _without(beams, keep)

    def _commit(self, ints: NDArray[np.int32], state: SearchState, old: list[int]) -> NDArray[np.bool_]:
        """See :func:`_commit`."""
        return _commit(ints, state, old)

    # -- parts of a frame --------------------------------------------------------------------------------------------

    def _stay(self, beams: Beams, emissions: Floats, skipped: NDArray[np.bool_], between: NDArray[np.bool_]) -> Stay:
        """See :func:`asr.decoding.kernels.stay`."""
        ints, rows, threshold = beams.ints, len(beams.starts), self.config.threshold
        return stay(ints, beams.scores, rows, emissions, skipped, between, self._space, threshold)

    def _likely(self, emissions: Floats) -> Floats:
        """(rows, units): the emissions of the best units of a step; those of the others, and of blank, are -inf."""
        likely = emissions.copy()
        likely[:, BLANK] = NEVER
        least = np.partition(likely, -self._tokens, axis=1)[:, -self._tokens, None]
        likely[likely < np.maximum(least, self.config.token_min_logp)] = NEVER
        return likely

    def _select(
        self,
        row: NDArray[np.int32],
        scores: Floats,
        total: Floats,
        keys: tuple[Hashes, Hashes],
        beams: Beams,
        states: list[SearchState],
    ) -> Selected:
        """See :func:`asr.decoding.kernels.select`. ``beams``: from which the candidates come; the best score of each
        row goes from all of its ``scores`` to its state's offset."""
        found = select(row, scores, total, *keys, len(beams.starts), self.config.beam, self.config.threshold,
                       self._recombine, any(state.remembers for state in states))  # fmt: skip
        for state, top in zip(states, found.top.tolist(), strict=False):
            state.offset += top
        return found


def survivors(found: Selected, ints: NDArray[np.int32], scores: Floats, hashes: Hashes) -> Beams:
    """The candidates that were chosen. ``ints``: (m, 10) of these; ``scores``, ``hashes``: of all candidates."""
    kept = scores.take(found.chosen, axis=0)
    kept[:, :LOOK] -= found.top.take(ints[:, ROW])[:, None]
    return Beams(ints, kept, hashes.take(found.chosen), found.starts, found.behind)


def first_state(context: int) -> tuple[NDArray[np.int32], Floats, Hashes]:
    """The one hypothesis of a new segment, as in a :class:`SearchState`: nothing is said, and the language model is in
    ``context``."""
    ints = np.zeros((1, COLUMNS), dtype=np.int32)
    ints[0, [UNIT, HISTORY, WORD, HEAD]] = -1
    ints[0, CONTEXT] = context
    return ints, np.array([[0.0, NEVER, 0.0]]), np.zeros(1, dtype=np.uint64)


def fits(state: SearchState, units: int, contexts: int, first: int = FIRST) -> bool:
    """Whether a state can be one of a search with so many units and language model contexts, as far as all searches
    have that in common. ``first``: the column of the present word's first step."""
    columns, history = state.ints.T, state.history
    before = history.data[:, PREVIOUS]
    right = [
        len(state.ints) > 0,
        within(columns[UNIT], -1, units) and not (columns[UNIT] == BLANK).any(),
        within(columns[CONTEXT], 0, contexts),
        within(columns[HISTORY], -1, history.size),
        bool((columns[WORD] == -1).all() and (columns[ROW] == 0).all()),
        bool((before < np.arange(history.size)).all() and (before >= -1).all()),
        bool((history.data[:, DEPTH] == np.where(before >= 0, history.data[before, DEPTH] + 1, 0)).all()),
        bool((history.data[:, BEGINS] <= history.data[:, ENDS]).all()),
        bool(((before < 0) | (history.data[before, ENDS] <= history.data[:, BEGINS])).all()),
        within(np.concatenate([*columns[[first, LAST]], *history.data[:, [BEGINS, ENDS]].T]), 0, state.steps + 1),
        all(e.shape[1] == units for e in state.emissions),
        sum(map(len, state.emissions)) <= state.steps,
    ]
    return all(right) and _agree_on(state)


def _agree_on(state: SearchState) -> bool:
    """Whether all hypotheses share the words that are agreed upon, and column HEAD is what follows these."""
    shared = state.history.common(state.ints[:, HISTORY])
    most = len(state.committed) + (int(state.history.data[shared, DEPTH]) + 1 if shared >= 0 else 0)
    if not len(state.committed) <= state.agreed <= most:
        return False
    return bool((state.heads(state.ints[:, HISTORY]) == state.ints[:, HEAD]).all())


def within(values: NDArray[np.integer], least: int, stop: int) -> bool:
    """Whether all values are at least ``least`` and below ``stop``."""
    return bool(((values >= least) & (values < stop)).all())


def sum_texts(keys: Hashes, totals: Floats, entries: NDArray[np.int32], count: int) -> list[tuple[float, int]]:
    """Of the ``count`` likeliest different texts, best first: the sum of their hypotheses' scores, and the history of
    the best of these. ``keys``: (n,) hashes of texts, ``totals``: (n,), ``entries``: (n,) of the history."""
    sums: dict[int, tuple[float, float, int]] = {}  # by text: best score, sum of scores, history of the best
    for key, score, entry in zip(keys.tolist(), totals.tolist(), entries.tolist(), strict=True):
        top, all_of_it, best = sums.get(key, (NEVER, NEVER, -1))
        sums[key] = (max(top, score), float(np.logaddexp(all_of_it, score)), entry if score > top else best)
    return [(score, entry) for _, score, entry in sorted(sums.values(), key=lambda s: -s[1])[:count]]


def record(beams: Beams, hashes: Hashes, states: Sequence[SearchState], first: int = FIRST) -> None:
    """Write what is new (column WORD) into the histories of the streams. ``hashes``: (n,) of all said with it;
    ``first``: the column of its first step."""
    count = np.add.reduceat((beams.ints[:, WORD] >= 0).astype(np.int64), beams.starts)
    stops = np.append(beams.starts[1:], len(beams.ints))
    for r in count.nonzero()[0].tolist():
        piece = slice(beams.starts[r], stops[r])
        states[r].history.record(beams.ints[piece], hashes[piece], int(count[r]), first)


def _gather(states: Sequence[SearchState]) -> Beams:
    """The hypotheses of several streams, one row each."""
    sizes = np.array([len(s.ints) for s in states])
    ints = np.concatenate([s.ints for s in states])
    ints[:, ROW] = np.repeat(np.arange(len(states)), sizes)
    scores, hashes = np.concatenate([s.scores for s in states]), np.concatenate([s.hashes for s in states])
    return Beams(ints, scores, hashes, np.cumsum(sizes) - sizes)


def _retire(beams: Beams, states: list[SearchState], active: int) -> Beams:
    """Hand their hypotheses to the states of the rows from ``active`` on; what remains."""
    stops = [*beams.starts[1:].tolist(), len(beams.ints)]
    for r in range(active, len(stops)):
        piece = slice(int(beams.starts[r]), stops[r])
        state = states[r]
        state.ints = beams.ints[piece].copy()
        state.ints[:, ROW] = 0
        state.scores, state.hashes = beams.scores[piece].copy(), beams.hashes[piece].copy()
    stop = int(beams.starts[active]) if active < len(beams.starts) else len(beams.ints)
    return Beams(beams.ints[:stop], beams.scores[:stop], beams.hashes[:stop], beams.starts[:active])


def _sooner(history: History, entry: int, step: int) -> list[int]:
    """The first words up to an entry of the history, those that end before a step."""
    return list(takewhile(lambda one: history.data[one, ENDS] < step, history.chain(entry)))


def _commit(ints: NDArray[np.int32], state: SearchState, old: list[int]) -> NDArray[np.bool_]:
    """The first words of the best of a stream's hypotheses ``ints`` (n, 10), entries ``old``, become final. Returns
    which live on (n,), since they agree; these know the history's new entries."""
    history, entries = state.history, ints[:, HISTORY]
    keep = np.ones(len(entries), dtype=bool)
    if not history.size:
        return keep
    if old:
        there = history.at_depth(entries, len(old) - 1)
        keep = (there >= 0) & (history.hashes[there] == history.hashes[old[-1]])
        state.committed.extend(tuple(row) for row in history.data[old, 1 : ENDS + 1].tolist())
    arcs = _living(state, entries[keep], old)
    alive = len(arcs.entries)
    state.history, renamed = history.compact(np.concatenate([arcs.entries, entries[keep]]), len(old) - 1)
    state.arcs, renamed = replace(arcs, entries=renamed[:alive]), renamed[alive:]
    state.agreed = max(state.agreed, len(state.committed))
    ints[keep, HISTORY], ints[keep, HEAD] = renamed, state.heads(renamed)
    return keep


def _without(beams: Beams, keep: NDArray[np.bool_]) -> Beams:
    """The hypotheses to ``keep`` (n,): some of each row."""
    sizes = np.add.reduceat(keep.astype(np.int64), beams.starts)
    return Beams(beams.ints[keep], beams.scores[keep], beams.hashes[keep], sizes.cumsum() - sizes)


def _living(state: SearchState, entries: NDArray[np.int32], old: Sequence[int]) -> Arcs:
    """The arcs that hypotheses with ``entries`` may still use once the words ``old`` are committed."""
    if not state.remembers:
        return state.arcs
    history = state.history
    texts = history.hashes[history.needed(entries, len(old) - 1)]
    arcs, state.lost = settle(history, state.arcs, state.lost, texts), []
    if not old:
        return arcs
    there = history.at_depth(arcs.entries, len(old) - 1)
    living = (there >= 0) & (history.hashes[there] == history.hashes[old[-1]])
    living &= history.data[arcs.entries, DEPTH] >= len(old)
    return arcs.take(living.nonzero()[0])


def remember(
    found: Selected,
    fresh: NDArray[np.bool_],
    described: Callable[[Ints], NDArray[np.int32]],
    total: Floats,
    hashes: Hashes,
    states: Sequence[SearchState],
) -> None:
    """Note candidates that gave way although they had just completed a word (``fresh``, (n,)) and that are near the
    best of their stream: see :mod:`asr.decoding.lattice`. ``described``: (k, 10) of candidates (k,); ``total``,
    ``hashes``: of all."""
    which = fresh.take(found.losers).nonzero()[0]
    loser, winner = found.losers.take(which), found.winners.take(which)
    ints = described(loser)
    near = (total.take(loser) > found.top.take(ints[:, ROW]) - NEAR).nonzero()[0]
    if not len(near):
        return
    loser, winner, ints = loser.take(near), winner.take(near), ints.take(near, axis=0)
    row, words = ints[:, ROW], ints[:, [HISTORY, WORD, FIRST, LAST]]
    keys = hashes.take(np.stack([winner, loser], axis=1))
    behind = total.take(loser) - total.take(winner)
    edges = [0, *((row[1:] != row[:-1]).nonzero()[0] + 1).tolist(), len(row)]
    for r, begin, stop in zip(row.take(edges[:-1]).tolist(), edges, edges[1:], strict=False):
        if states[r].remembers:
            states[r].lost.append(Block(words[begin:stop], keys[begin:stop], behind[begin:stop]))
