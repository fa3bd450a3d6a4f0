"""The lexicon as a prefix tree in flat arrays: what a search expands many hypotheses over at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asr.decoding.kernels import ROOT, Tree

Ints = NDArray[np.int32]
Floats = NDArray[np.float64]
MOST_HOMOPHONES = 6  # words that one node keeps, the likeliest ones


@dataclass(frozen=True, eq=False)
class Trie:
    """Nodes are numbered level by level from the root, 0; the children of a node stand together, sorted by unit.

    ``unit``: (nodes,) the unit that leads to a node. ``first_child``, ``children``: (nodes,) where its children begin
    and how many they are. ``first_word``, ``word_count``: (nodes,) where in ``words`` those that end at it
    stand, and in ``costs`` (nats) what it costs them to be said so.
    ``ahead``: (nodes,) the best score of a word at or below a node; 0 at the root. ``first_below``, ``below``: (nodes,)
    where in ``entries`` the words at or below a node stand, and how many they are.
    """

    unit: Ints
    first_child: Ints
    children: Ints
    first_word: Ints
    word_count: Ints
    words: Ints
    costs: Floats
    ahead: Floats
    first_below: NDArray[np.int64]
    below: NDArray[np.int64]
    entries: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.unit)

    def arrays(self) -> Tree:
        """For compiled loops."""
        columns = self.first_child, self.children, self.first_word, self.word_count, self.first_below, self.below
        nodes = np.stack(columns, axis=1).astype(np.int32)
        return Tree(nodes, self.unit, self.ahead, self.words, self.entries.astype(np.int32), self.costs)


def build(spellings: Ints, words: Ints, scores: Floats, costs: Floats | None = None) -> Trie:
    """The tree of ``spellings``: (entries, longest) units padded with -1, each of the word ``words`` (entries,), which
    it costs ``costs`` (entries,) nats to be said so; nothing where that is left away.

    ``scores``: (words,) by word id, what ``ahead`` and the choice among homophones go by. Entries of equal spelling
    and word count once; an entry without units is left out.
    """
    keep = spellings[:, 0] >= 0 if spellings.shape[1] else np.zeros(len(spellings), dtype=bool)
    spellings, words, costs = spellings[keep], words[keep], np.zeros(len(words)) if costs is None else costs
    costs = costs[keep]
    entry_scores = scores[words]
    # By spelling; the likeliest of equal ones first, and of a word's the cheapest.
    order = np.lexsort((costs, words, -entry_scores, *_sort_keys(spellings)))
    words, costs, entry_scores, count = words[order], costs[order], entry_scores[order], len(order)
    node_of = np.zeros(count, dtype=np.int64)  # node of the entry's prefix, in the end of all of it
    units, parents, total = [np.array([-1])], [np.array([-1])], 1
    begin_below, end_below = [np.zeros(1, dtype=np.int64)], [np.array([count])]
    alive = np.arange(count)  # entries that are so long
    changed = alive == 0  # whether each differs so far from the one before it
    for column in spellings.T:
        column = column.take(order.take(alive))
        changed[1:] |= column[1:] != column[:-1]
        inside = column >= 0
        alive, changed, column = alive[inside], changed[inside], column[inside]
        if not len(alive):
            break
        begins = np.flatnonzero(changed)
        begin_below.append(alive[begins])
        end_below.append(alive[np.append(begins[1:], len(alive)) - 1] + 1)
        units.append(column[begins])
        parents.append(node_of[begin_below[-1]])
        node_of[alive] = np.cumsum(changed) - 1 + total
        total += len(begins)
    unit, parent = np.concatenate(units), np.concatenate(parents)
    children = np.bincount(parent[1:], minlength=total)
    first_child = 1 + np.concatenate([[0], np.cumsum(children)[:-1]])
    first_word, word_count, kept = _words_at(node_of, words, total)
    ahead = np.full(total, -np.inf)
    np.maximum.at(ahead, node_of, entry_scores)
    for node in range(len(units) - 1, 0, -1):  # level by level from the leaves
        stop = sum(map(len, units[: node + 1]))
        level_nodes = np.arange(stop - len(units[node]), stop)
        np.maximum.at(ahead, parent[level_nodes], ahead[level_nodes])
    ahead[ROOT] = 0.0
    return Trie(
        unit.astype(np.int32),
        first_child.astype(np.int32),
        children.astype(np.int32),
        first_word.astype(np.int32),
        word_count.astype(np.int32),
        words[kept].astype(np.int32),
        costs[kept],
        ahead,
        np.concatenate(begin_below).astype(np.int64),
        (np.concatenate(end_below) - np.concatenate(begin_below)).astype(np.int64),
        words.astype(np.int64),
    )


def _sort_keys(spellings: Ints) -> list[NDArray[np.int64]]:
    """Numbers that sort as the spellings do, the least important first; each holds as many units as it can."""
    bits = int(spellings.max(initial=0) + 1).bit_length()
    keys = []
    for begin in range(0, spellings.shape[1], 63 // bits):
        key = np.zeros(len(spellings), dtype=np.int64)
        for column in spellings.T[begin : begin + 63 // bits]:
            key = (key << bits) + column + 1
        keys.append(key)
    return keys[::-1]


def ranges(first: NDArray[Any], count: NDArray[Any]) -> NDArray[np.int64]:
    """``first[i]``, ``first[i] + 1``, ..., ``count[i]`` of them, for one i after the other: (sum of counts,)."""
    stop = count.cumsum()
    found = (first - (stop - count)).repeat(count).astype(np.int64, copy=False)
    found += np.arange(len(found))
    return found


def _words_at(node: NDArray[np.int64], words: Ints, total: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.int64]]:
    """(first word, number of words) of every node, and which entries these are; entries come best first within a
    node."""
    kept = np.argsort(node, kind="stable")
    fresh = np.ones(len(node), dtype=bool)
    fresh[1:] = (node[kept[1:]] != node[kept[:-1]]) | (words[kept[1:]] != words[kept[:-1]])
    kept = kept[fresh]
    count = np.bincount(node[kept], minlength=total)
    rank = np.arange(len(kept)) - (np.cumsum(count) - count)[node[kept]]
    kept = kept[rank < MOST_HOMOPHONES]
    count = np.bincount(node[kept], minlength=total)
    return np.cumsum(count) - count, count, kept
