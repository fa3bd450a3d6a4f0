"""The word that is being spoken, before its last sound: what a partial result may show earlier.

A hypothesis in the middle of a word stands at a node of the lexicon tree. Where few words lie below it, the language
model says how likely each is, and a word's probability is that of the hypotheses that have said it plus its share of
those that are on the way to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from asr.decoding.search_state import BEGINS, CONTEXT, DEPTH, ENDS, FIRST, HISTORY, LAST, NAME, NODE, SearchState
from asr.decoding.trie import ROOT, ranges

if TYPE_CHECKING:
    from asr.decoding.beam_search import BeamSearch

EXPECTED = 0.65  # share of the probability from which on a word is shown before it is over
MOST_HYPOTHESES = 4  # in the middle of a word that are looked at, the likeliest
MOST_WORDS = 24  # below a node: of more, none is likely enough

Floats = NDArray[np.float64]


def next_word(
    search: BeamSearch, state: SearchState, weight: Floats, base: int, share: float
) -> tuple[int, int, int] | None:
    """The word that follows the entry ``base`` of the history (-1: its beginning), with its first and last step so far,
    if at least ``share`` of the hypotheses' ``weight`` (n,) has said it or will. None where no word is so likely."""
    history, entries = state.history, state.ints[:, HISTORY]
    depth = int(history.data[base, DEPTH]) if base >= 0 else -1
    there = history.at_depth(entries, depth + 1)
    if base >= 0:
        before = history.at_depth(entries, depth)
        agree = (before >= 0) & (history.hashes[before] == history.hashes[base])
    else:
        agree = np.ones(len(entries), dtype=bool)
    needed = share * weight.sum()
    if weight[agree].sum() < needed:
        return None
    mass: dict[int, float] = {}
    times: dict[int, tuple[float, int, int]] = {}  # of the likeliest hypothesis with the word
    said = (agree & (there >= 0)).nonzero()[0]
    spoken = history.data[there[said]][:, [NAME, BEGINS, ENDS]].tolist()
    for (word, first, last), one in zip(spoken, weight[said].tolist(), strict=True):
        mass[word] = mass.get(word, 0.0) + one
        if one > times.get(word, (0.0, 0, 0))[0]:
            times[word] = one, first, last
    _on_the_way(search, state, weight, agree & (there < 0), mass, times)
    if not mass:
        return None
    word = max(mass, key=mass.__getitem__)
    return (word, *times[word][1:]) if mass[word] >= needed else None


def _on_the_way(
    search: BeamSearch,
    state: SearchState,
    weight: Floats,
    agree: NDArray[np.bool_],
    mass: dict[int, float],
    times: dict[int, tuple[float, int, int]],
) -> None:
    """Add the shares of words below the nodes of hypotheses that are in the middle of one."""
    trie, node = search.trie, state.ints[:, NODE]
    inside = (agree & (node != ROOT) & (node < len(trie))).nonzero()[0]
    inside = inside[np.argsort(-weight[inside], kind="stable")[:MOST_HYPOTHESES]]
    inside = inside[trie.below[node[inside]] <= MOST_WORDS]
    if not len(inside):
        return
    count = trie.below[node[inside]]
    words = trie.entries[ranges(trie.first_below[node[inside]], count)]
    log_prob, _ = search.scorer.score(state.ints[inside, CONTEXT].repeat(count), words)
    starts = count.cumsum() - count
    scaled = search.config.lm_weight * state.lm_scale * log_prob
    scaled = np.exp(scaled - np.maximum.reduceat(scaled, starts).repeat(count))
    shares = (weight[inside] / np.add.reduceat(scaled, starts)).repeat(count) * scaled
    for word, one, who in zip(words.tolist(), shares.tolist(), inside.repeat(count).tolist(), strict=True):
        mass[word] = mass.get(word, 0.0) + one
        if one > times.get(word, (0.0, 0, 0))[0]:
            times[word] = one, int(state.ints[who, FIRST]), int(state.ints[who, LAST])
