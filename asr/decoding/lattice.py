"""What recombination would forget: the words that a hypothesis had when a better one took its place.

Of hypotheses with the same place, language model context and hot words the search keeps the best only. One that had
just completed a word and is left behind becomes an arc: whoever said what the better one had said could have said its
words instead, at the difference of the two scores; what follows is the same for both (the word lattice of Ortmanns, Ney
and Aubert 1997). The difference is that of the first such step or a better one after it; later alignments of either
text are not added.

Hypotheses that end because the others have agreed on a word (``SearchConfig.commit``) become arcs, too, where one that
lives on stands at the same place of the lexicon: what follows is then about the same for both, but for the language
model's context (:func:`left`).

At the end of a segment :func:`paths` lists the likeliest texts of the final hypotheses and their arcs. Bounded: arcs
are few per text and near the best hypothesis, and end where no hypothesis has their text any more or it is committed.
"""

from __future__ import annotations

import heapq
from itertools import count as counter

import numpy as np
from numpy.typing import NDArray

from asr.decoding.search_state import ENDS, HISTORY, HOT, NAME, NODE, UNIT, Arcs, Block, History, SearchState

NEAR = 10.0  # nats behind the best hypothesis of its stream: what is farther back is not remembered
MOST_ARCS = 6  # of one text
_MOST_PATHS = 20  # looked at for each that is wanted


def settle(history: History, arcs: Arcs, blocks: list[Block], living: NDArray[np.uint64] | None = None) -> Arcs:
    """``arcs`` with those of ``blocks``, whose words are written into ``history``; with ``living``, only those of these
    texts. Of arcs between the same two texts the best is kept, and of each text the :data:`MOST_ARCS` best: the same
    arcs, however the blocks come."""
    if living is not None:
        living = np.sort(living)
        arcs = arcs.take(_among(living, arcs.texts))
    if not blocks:
        return arcs
    words, behind = np.concatenate([b.words for b in blocks]), np.concatenate([b.behind for b in blocks])
    keys, begin = np.concatenate([b.keys for b in blocks]), history.size
    if living is not None:
        which = _among(living, keys[:, 0])
        words, keys, behind = words.take(which, axis=0), keys.take(which, axis=0), behind.take(which)
    history.append(words, keys[:, 1])
    texts = np.concatenate([arcs.texts, keys[:, 0]])
    entries = np.concatenate([arcs.entries, np.arange(begin, history.size, dtype=np.int32)])
    behind = np.concatenate([arcs.behind, behind])
    other = history.hashes.take(entries)
    order = np.lexsort((entries, -behind, other, texts))
    texts, other = texts.take(order), other.take(order)
    first = np.ones(len(order), dtype=bool)
    first[1:] = (texts[1:] != texts[:-1]) | (other[1:] != other[:-1])
    order = order[first]
    found = Arcs(texts[first], entries.take(order), behind.take(order))
    order = np.lexsort((found.entries, -found.behind, found.texts))
    found = found.take(order)
    rank = np.arange(len(order)) - found.texts.searchsorted(found.texts)
    return found.take((rank < MOST_ARCS).nonzero()[0])


def left(
    state: SearchState,
    ints: NDArray[np.int32],
    hashes: NDArray[np.uint64],
    behind: NDArray[np.float64],
    keep: NDArray[np.bool_],
) -> None:
    """Note the hypotheses of a stream that end while others live on, those of ``keep`` (n,). ``ints``: (n, 10), best
    first; ``hashes``: (n,) of their words; ``behind``: (n,) nats behind the best."""
    places = np.ascontiguousarray(ints[:, [NODE, UNIT, HOT]]).view([("", np.int32)] * 3).ravel()
    alive = keep.nonzero()[0]
    known, best = np.unique(places[alive], return_index=True)
    gone = (~keep & (ints[:, HISTORY] >= 0) & (behind < NEAR)).nonzero()[0]
    at = np.minimum(known.searchsorted(places[gone]), len(known) - 1)
    there = known[at] == places[gone]
    loser, winner = gone[there], alive[best[at[there]]]
    if len(loser):
        words = state.history.data[ints[loser, HISTORY], : ENDS + 1]
        behind = np.minimum(behind[winner] - behind[loser], 0.0)
        state.lost.append(Block(words, hashes[np.stack([winner, loser], axis=1)], behind))


def _among(living: NDArray[np.uint64], texts: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Places of the ``texts`` that stand in ``living``, sorted."""
    if not len(living):
        return np.zeros(0, dtype=np.int64)
    place = np.minimum(living.searchsorted(texts), len(living) - 1)
    return (living.take(place) == texts).nonzero()[0]


def paths(
    history: History, arcs: Arcs, finals: list[tuple[float, int]], count: int
) -> list[tuple[float, list[tuple[int, int, int]]]]:
    """The ``count`` likeliest different texts, best first: (score, words with first and last step). ``finals``: (score,
    entry of the history) of different texts, best first; the first of them stays the first."""
    instead: dict[int, list[tuple[float, int]]] = {}
    for text, entry, behind in zip(arcs.texts.tolist(), arcs.entries.tolist(), arcs.behind.tolist(), strict=True):
        instead.setdefault(text, []).append((behind, entry))
    number = counter()
    none: tuple[tuple[int, int, int], ...] = ()
    waiting = [(-score, next(number), entry, none) for score, entry in finals]
    heapq.heapify(waiting)
    found: dict[tuple[int, ...], tuple[float, list[tuple[int, int, int]]]] = {}
    for _ in range(_MOST_PATHS * count):
        if not waiting or len(found) == count:
            break
        cost, _, entry, tail = heapq.heappop(waiting)
        chain = history.chain(entry)
        words = _joined([(w, b, e) for w, b, e in history.data[chain, NAME : ENDS + 1].tolist()], tail)
        names = tuple(word for word, _, _ in words)
        if names in found or (not words and (entry >= 0 or tail)):
            continue
        found[names] = -cost, words
        for i, text in enumerate(history.hashes[chain].tolist()):
            rest = tuple(words[i + 1 :])
            for behind, other in instead.get(text, ()):
                heapq.heappush(waiting, (cost - behind, next(number), other, rest))
    return list(found.values())


def _joined(words: list[tuple[int, int, int]], tail: tuple[tuple[int, int, int], ...]) -> list[tuple[int, int, int]]:
    """Words and those after them, which may begin a little early; none where there is no room."""
    if words and tail:
        word, begins, ends = words[-1]
        ends = min(ends, tail[0][1] - 1)
        if ends < begins:
            return []
        words = [*words[:-1], (word, begins, ends)]
    return [*words, *tail]
