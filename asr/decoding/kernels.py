"""The inner loops of the searches, compiled (numba): a frame is some ten thousand small decisions per stream.

Each loop goes from stream to stream and, within one, in the order in which its hypotheses stand; so what a stream gets
depends on nothing but its own. Who calls them makes the arrays: contiguous, of the types given here, and with indices
that are in range, since compiled code does not look. The first use on a machine compiles them, which takes some
thirteen seconds; after that they are read from numba's cache.
"""

from __future__ import annotations

from math import exp, log1p
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from asr.decoding.compiled import compiled, inlined
from asr.decoding.search_state import (
    COLUMNS,
    CONTEXT,
    FIRST,
    HOT,
    IN_BLANK,
    IN_UNIT,
    LAST,
    LOOK,
    NODE,
    ROW,
    UNIT,
    WORD,
)
from asr.vocabulary import BLANK

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Numbers = NDArray[np.int32]
Hashes = NDArray[np.uint64]

NEVER = -np.inf
MIX = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93], dtype=np.uint64)
_MIX_0, _MIX_1, _MIX_2, _MIX_3 = MIX
_ONE = np.uint64(1)
ROOT = 0  # the node of the lexicon's tree before any word
_BUCKETS = 1024
# Columns of what goes on, and of what ends: the hypothesis it comes from, its unit, and a node or a word with the
# language model's context after it and the state of the hot words.
SOURCE, NEW_UNIT, NEW_NODE = range(3)
NEW_WORD, NEW_CONTEXT, NEW_HOT = range(2, 5)
STAYS, GOES_ON, ENDED = range(3)  # kinds of candidates
# Columns of a node of the lexicon's tree.
FIRST_CHILD, CHILDREN, FIRST_WORD, WORD_COUNT, FIRST_BELOW, BELOW = range(6)
_AT_ONCE = 256  # questions to the language model whose memory is fetched together


class Grams(NamedTuple):
    """An n-gram model, as :class:`asr.decoding.scorer.Scorer` makes it. ``order`` 0: none, every word costs nothing.
    ``size``: words of the model; ``ids``: (end + 2,) their numbers there by those of the search, up to its ``end`` of
    sentence and one for all that are unknown, which cost what is ``rare``. Then of all n-grams ``log_probs``,
    ``backoffs`` (shorter ones only) and whether what follows depends on all of it; ``keys``: of each from the second
    order on the number of its first words and its last one, in one integer; and the hash table of these: see
    :func:`hashed`."""

    order: int
    size: int
    end: int
    rare: float
    ids: Ints
    log_probs: NDArray[np.float32]
    backoffs: NDArray[np.float32]
    continues: NDArray[np.bool_]
    keys: Ints
    first: Numbers
    following: Numbers
    shift: np.uint64


class Tree(NamedTuple):
    """A :class:`asr.decoding.trie.Trie`: ``nodes`` (nodes, 6) by the columns below, which are wanted together, and the
    other arrays as there."""

    nodes: Numbers
    unit: Numbers
    ahead: Floats
    words: Numbers
    entries: Numbers
    costs: Floats


class Stay(NamedTuple):
    """Of every hypothesis (n,): its score ``in_blank`` before a frame (blanks that were skipped before it included) and
    its ``total``; then, if it says nothing new, ``stay_blank``, ``stay_unit`` and both together, ``stay``; and of every
    row (rows,) the ``least`` score with which a hypothesis lives on."""

    in_blank: Floats
    total: Floats
    stay_blank: Floats
    stay_unit: Floats
    stay: Floats
    least: Floats


class Selected(NamedTuple):
    """``chosen``: (m,) of the candidates, grouped by row and best first; ``starts``: (rows,) where each row begins;
    ``behind``: (m,) nats behind the best of its row; ``top``: (rows,) the score of that; ``losers``, ``winners``: (k,)
    candidates that gave way to others of the same future, if that was asked for."""

    chosen: Ints
    starts: Ints
    behind: Floats
    top: Floats
    losers: Ints
    winners: Ints


@inlined
def log_sum(a: float, b: float) -> float:
    """The logarithm of the sum of the exponentials."""
    if a < b:
        a, b = b, a
    return a if b == NEVER else a + log1p(exp(b - a))


def said_then(texts: Any, words: Any) -> Any:
    """Hashes of texts and another word each; of arrays (n,), and in kernels of one."""
    return texts * _MIX_0 + (np.uint64(words) + _ONE) * _MIX_1


_said_then = inlined(said_then)


# -- the language model ----------------------------------------------------------------------------------------------


def hashed(keys: Ints, bits: int) -> tuple[Numbers, Numbers, np.uint64]:
    """A hash table of distinct ``keys``, where one is found in one or two looks: ``first`` (2 ** bits,) holds the place
    of a key of each slot or -1, ``following`` (keys,) the place of the one after a key, or -1; and ``shift``, behind
    which the slot stands in the product of a key. numpy asks the system for large pages, which kernels do not."""
    first, following = np.full(1 << bits, -1, np.int32), np.empty(len(keys), np.int32)
    shift = np.uint64(64 - bits)
    _fill(keys, first, following, shift)
    return first, following, shift


@inlined
def _slot_of(key: int, shift: np.uint64) -> Any:
    """See :func:`hashed`."""
    return np.int64((np.uint64(key) * _MIX_0) >> shift)


@compiled
def _fill(keys: Ints, first: Numbers, following: Numbers, shift: np.uint64) -> None:
    """Write both arrays of :func:`hashed`."""
    for place in range(len(keys)):
        slot = _slot_of(keys[place], shift)
        following[place], first[slot] = first[slot], place


@inlined
def _suffix(
    context: int, count: int, size: int, keys: Ints, first: Numbers, following: Numbers, shift: np.uint64
) -> int:
    """The number of the last ``count`` words of a longer context; -1 where that is not listed."""
    number = -1
    for back in range(count, 0, -1):  # from the oldest of them to the newest
        rest = context
        for _ in range(back - 1):
            rest = keys[rest - size] // size
        word = keys[rest - size] % size if rest >= size else rest
        if number < 0:
            number = int(word)
            continue
        wanted = number * size + word
        place = first[_slot_of(wanted, shift)]
        while place >= 0 and keys[place] != wanted:
            place = following[place]
        if place < 0:
            return -1
        number = place + size
    return number


@compiled
def chances(grams: Grams, contexts: Ints, words: Ints) -> tuple[Floats, Ints]:
    """log10 probabilities (n,) of words in their contexts, and the contexts (n,) that follow.

    The model lies in memory that no cache holds. So every step is taken for many words before the next one, and the
    processor waits for all of them at once.
    """
    n, size = len(words), grams.size
    log_probs, after = np.zeros(n), np.zeros(n, np.int64)
    if grams.order == 0:
        return log_probs, after
    # Taken out of the tuple in a loop, an array would count its references each time.
    ids, keys, first, following, shift = grams.ids, grams.keys, grams.first, grams.following, grams.shift
    listed, backoffs, continues = grams.log_probs, grams.backoffs, grams.continues
    known, lengths = np.empty(_AT_ONCE, np.int64), np.empty(_AT_ONCE, np.int64)
    numbers, wanted = np.empty(_AT_ONCE, np.int64), np.empty(_AT_ONCE, np.int64)
    places, there = np.empty(_AT_ONCE, np.int64), np.empty(_AT_ONCE, np.int64)
    newest, who, open_ = np.empty(_AT_ONCE, np.int64), np.empty(_AT_ONCE, np.int64), np.empty(_AT_ONCE, np.int64)
    for begin in range(0, n, _AT_ONCE):
        count = min(_AT_ONCE, n - begin)
        for i in range(count):
            word = words[begin + i]
            known[i] = after[begin + i] = ids[min(word, grams.end + 1)]
            log_probs[begin + i] = grams.rare if word > grams.end else listed[known[i]]
            lengths[i], rest, newest[i] = 1, contexts[begin + i], -1
            while rest >= size:
                if newest[i] < 0:
                    newest[i] = keys[rest - size] % size
                rest = keys[rest - size] // size
                lengths[i] += 1
        # From the shortest context to the longest: back-off weights add up until the n-gram is listed.
        for length in range(1, grams.order):
            asked = 0  # of those that have a context of this length
            for i in range(count):
                number = -1
                if length == lengths[i]:
                    number = contexts[begin + i]
                elif length == 1:
                    number = newest[i]
                elif length < lengths[i]:
                    number = _suffix(contexts[begin + i], length, size, keys, first, following, shift)
                who[asked], numbers[asked] = i, number
                asked += number >= 0
            for k in range(asked):
                wanted[k] = numbers[k] * size + known[who[k]]
                places[k] = first[_slot_of(wanted[k], shift)]
            left = 0  # of those whose slots hold something that may be what is wanted
            for k in range(asked):
                log_probs[begin + who[k]] += backoffs[numbers[k]]
                open_[left] = k
                left += places[k] >= 0
            while left > 0:
                for q in range(left):
                    there[q] = keys[places[open_[q]]]
                still = 0
                for q in range(left):
                    k = open_[q]
                    if there[q] == wanted[k]:
                        ngram, i = places[k] + size, begin + who[k]
                        log_probs[i] = listed[ngram]
                        if continues[ngram]:
                            after[i] = ngram
                    else:
                        places[k] = following[places[k]]
                        open_[still] = k
                        still += places[k] >= 0
                left = still
    return log_probs, after


# -- one frame -------------------------------------------------------------------------------------------------------


@compiled
def stay(
    ints: Numbers,
    scores: Floats,
    rows: int,
    emissions: Floats,
    skipped: NDArray[np.bool_],
    between: NDArray[np.bool_],
    space: int,
    threshold: float,
) -> Stay:
    """Blank, a repeated unit, and blanks that were ``skipped`` (rows,) before. ``emissions``: (rows, units);
    ``between``: (n,) whether a hypothesis stands between words, where a ``space`` is as good as blank."""
    n = len(ints)
    in_blank, total, both = np.empty(n), np.empty(n), np.empty(n)
    stay_blank, stay_unit, least = np.empty(n), np.empty(n), np.full(rows, NEVER)
    for i in range(n):
        row, unit = ints[i, ROW], ints[i, UNIT]
        blank, in_unit = scores[i, IN_BLANK], scores[i, IN_UNIT]
        total[i] = log_sum(blank, in_unit)
        if skipped[row]:
            blank, in_unit = total[i], NEVER
        in_blank[i] = blank
        stay_blank[i], stay_unit[i] = total[i] + emissions[row, BLANK], in_unit + emissions[row, unit]
        if space >= 0 and between[i]:
            stay_blank[i] = log_sum(stay_blank[i], total[i] + emissions[row, space])
            if unit == space:
                stay_unit[i] = NEVER
        both[i] = log_sum(stay_blank[i], stay_unit[i])
        least[row] = max(least[row], both[i])
    for row in range(rows):
        least[row] -= threshold
    return Stay(in_blank, total, stay_blank, stay_unit, both, least)


@compiled
def _longer(rows: NDArray[Any], more: int) -> NDArray[Any]:
    """Twice the room, and some more."""
    longer = np.empty((2 * len(rows) + more, rows.shape[1]), rows.dtype)
    longer[: len(rows)] = rows
    return longer


@compiled
def expand(
    ints: Numbers,
    scores: Floats,
    old: Stay,
    likely: Floats,
    weight: Floats,
    tree: Tree,
    grams: Grams,
    few_words: int,
) -> tuple[Numbers, Floats, Numbers, Floats]:
    """Every way on that is good enough. ``likely``: (rows, units) emissions of the units to try, -inf for others;
    ``weight``: (rows,) of the language model; ``few_words``: below nodes with no more, each is looked at in its
    context.

    Returns what goes on within a word, (n, 3) by SOURCE, NEW_UNIT and NEW_NODE, with its score and the part of it that
    is expected, (n, 2); and what completes a word, (m, 5), NEW_HOT as before, with its score without the word's and the
    word's log10 probability, (m, 2).
    """
    # Taken out of their tuples in a loop, arrays would count their references each time.
    nodes, units, total, in_blank, least = tree.nodes, tree.unit, old.total, old.in_blank, old.least
    room, n, asked = max(64, 2 * len(ints)), 0, 0
    ways, before = np.empty((room, 3), np.int32), np.empty((room, 2))
    best = np.full(len(likely), NEVER)
    for row in range(len(likely)):
        best[row] = likely[row].max()
    for i in range(len(ints)):
        row, node, unit, needed = ints[i, ROW], ints[i, NODE], ints[i, UNIT], least[ints[i, ROW]]
        if node >= len(nodes) or not total[i] + best[row] > needed:
            continue  # in a tree of the session's own, or too far behind for any unit
        first, count = nodes[node, FIRST_CHILD], nodes[node, CHILDREN]
        if n + count > len(ways):
            ways, before = _longer(ways, count), _longer(before, count)
        for child in range(first, first + count):
            new_unit = units[child]
            heard = likely[row, new_unit]
            if not total[i] + heard > needed:
                continue
            ways[n, SOURCE], ways[n, NEW_UNIT], ways[n, NEW_NODE] = i, new_unit, child
            before[n, 0] = (in_blank[i] if new_unit == unit else total[i]) + heard - scores[i, LOOK]
            asked += nodes[child, BELOW] if nodes[child, BELOW] <= few_words else 0
            n += 1
    begins, log_probs, after = _look_ahead(ways, before, n, asked, ints, weight, tree, grams, few_words)
    goes_on, ending = 0, 0
    for k in range(n):  # those that are good enough move to the front
        if before[k, 0] + before[k, 1] > least[ints[ways[k, SOURCE], ROW]]:
            ending += nodes[ways[k, NEW_NODE], WORD_COUNT]
            _move(ways, before, k, goes_on)
            begins[goes_on] = begins[k]
            goes_on += 1
    ends, ends_scores = np.empty((ending, 5), np.int32), np.empty((ending, 2))
    contexts, words, which = np.empty(ending, np.int64), np.empty(ending, np.int64), np.empty(ending, np.int64)
    at_nodes, entries, costs = tree.words, tree.entries, tree.costs
    n, m, goes_on, asked = goes_on, 0, 0, 0
    for k in range(n):
        i, child = ways[k, SOURCE], ways[k, NEW_NODE]
        first, below = nodes[child, FIRST_WORD], nodes[child, FIRST_BELOW]
        for at in range(first, first + nodes[child, WORD_COUNT]):
            word = at_nodes[at]
            ends[m, SOURCE], ends[m, NEW_UNIT], ends[m, NEW_WORD] = i, ways[k, NEW_UNIT], word
            ends[m, NEW_HOT], ends_scores[m, 0] = ints[i, HOT], before[k, 0] - costs[at]
            if begins[k] >= 0:  # it has been looked at
                place = begins[k]
                while entries[below + place - begins[k]] != word:
                    place += 1
                ends[m, NEW_CONTEXT], ends_scores[m, 1] = after[place], log_probs[place]
            else:
                contexts[asked], words[asked], which[asked] = ints[i, CONTEXT], word, m
                asked += 1
            m += 1
        if nodes[child, CHILDREN] > 0:
            _move(ways, before, k, goes_on)
            before[goes_on, 0] += before[goes_on, 1]
            goes_on += 1
    log_probs, after = chances(grams, contexts[:asked], words[:asked])
    for k in range(asked):
        ends[which[k], NEW_CONTEXT], ends_scores[which[k], 1] = after[k], log_probs[k]
    return ways[:goes_on].copy(), before[:goes_on].copy(), ends, ends_scores


@inlined
def _move(ways: Numbers, before: Floats, k: int, to: int) -> None:
    """Copy a row of both."""
    ways[to, SOURCE], ways[to, NEW_UNIT], ways[to, NEW_NODE] = ways[k, SOURCE], ways[k, NEW_UNIT], ways[k, NEW_NODE]
    before[to, 0], before[to, 1] = before[k, 0], before[k, 1]


@compiled
def _look_ahead(
    ways: Numbers,
    before: Floats,
    n: int,
    asked: int,
    ints: Numbers,
    weight: Floats,
    tree: Tree,
    grams: Grams,
    few_words: int,
) -> tuple[Ints, Floats, Ints]:
    """Write into the second column of ``before`` what is expected below the nodes of the first ``n`` ``ways``, in nats.
    ``asked``: how many words there are below those with few. Returns where each of these ``ways`` begins among all that
    was asked (-1: not asked), and what was found there: see :func:`chances`."""
    nodes, entries, alone = tree.nodes, tree.entries, tree.ahead
    contexts, words, m = np.empty(asked, np.int64), np.empty(asked, np.int64), 0
    begins = np.full(n, -1, np.int64)
    for k in range(n):
        child = ways[k, NEW_NODE]
        first, count = nodes[child, FIRST_BELOW], nodes[child, BELOW]
        if count <= few_words:
            begins[k] = m
            for at in range(first, first + count):
                contexts[m], words[m] = ints[ways[k, SOURCE], CONTEXT], entries[at]
                m += 1
    log_probs, after = chances(grams, contexts, words)
    for k in range(n):
        child = ways[k, NEW_NODE]
        ahead = alone[child]
        if begins[k] >= 0:
            ahead = NEVER
            for at in range(begins[k], begins[k] + nodes[child, BELOW]):
                ahead = max(ahead, log_probs[at])
        before[k, 1] = weight[ints[ways[k, SOURCE], ROW]] * ahead
    return begins, log_probs, after


@compiled
def candidates(
    ints: Numbers,
    scores: Floats,
    hashes: Hashes,
    old: Stay,
    on: Numbers,
    on_scores: Floats,
    ends: Numbers,
    worth: Floats,
) -> tuple[Numbers, Numbers, Floats, Floats, Hashes, Hashes, Hashes]:
    """What stays, goes on and has completed a word with a score (``worth``) that is good enough, one after the other.

    Returns which they are, (n, 2): STAYS, GOES_ON or ENDED and the place there; (n,) rows; (n, 3) scores, (n,) of all
    alignments; and (n,) hashes: of their texts, of what they are, and of their future.
    """
    most = len(ints) + len(on) + len(ends)
    which, row, out, total = (
        np.empty((most, 2), np.int32),
        np.empty(most, np.int32),
        np.empty((most, 3)),
        np.empty(most),
    )
    texts, keys, futures = np.empty(most, np.uint64), np.empty(most, np.uint64), np.empty(most, np.uint64)
    stays, stay_blank, stay_unit, least = old.stay, old.stay_blank, old.stay_unit, old.least
    n = 0
    for kind in (STAYS, GOES_ON, ENDED):
        for k in range(len(ints) if kind == STAYS else len(on) if kind == GOES_ON else len(ends)):
            i = k if kind == STAYS else on[k, SOURCE] if kind == GOES_ON else ends[k, SOURCE]
            r = ints[i, ROW]
            score = stays[k] if kind == STAYS else on_scores[k, 0] if kind == GOES_ON else worth[k]
            if not score > least[r]:
                continue
            text, node, unit, context, hot = hashes[i], ints[i, NODE], ints[i, UNIT], ints[i, CONTEXT], ints[i, HOT]
            out[n, IN_BLANK], out[n, IN_UNIT], out[n, LOOK] = NEVER, score, 0.0
            if kind == STAYS:
                out[n, IN_BLANK], out[n, IN_UNIT], out[n, LOOK] = stay_blank[k], stay_unit[k], scores[k, LOOK]
            elif kind == GOES_ON:
                out[n, LOOK], node, unit = on_scores[k, 1], on[k, NEW_NODE], on[k, NEW_UNIT]
            else:
                text = _said_then(text, ends[k, NEW_WORD])
                node, unit, context, hot = ROOT, ends[k, NEW_UNIT], ends[k, NEW_CONTEXT], ends[k, NEW_HOT]
            place = np.int64(-1 - unit) if node == ROOT else np.int64(node)
            at = np.uint64(place) * _MIX_2 + np.uint64(r) * _MIX_3
            which[n, 0], which[n, 1], row[n], total[n], texts[n] = kind, k, r, score, text
            keys[n] = text * _MIX_1 + at
            futures[n] = np.uint64(context) * _MIX_0 + np.uint64(hot) * _MIX_1 + at
            n += 1
    return which[:n], row[:n], out[:n], total[:n], texts[:n], keys[:n], futures[:n]


@compiled
def written(
    chosen: Ints, which: Numbers, ints: Numbers, on: Numbers, ends: Numbers, now: Numbers, space: int
) -> Numbers:
    """(m, 10) of the candidates ``chosen`` (m,) among ``which``: see :func:`candidates`. ``now``: (rows,) the step."""
    out = np.empty((len(chosen), COLUMNS), np.int32)
    for m in range(len(chosen)):
        kind, k = which[chosen[m]]
        i = k if kind == STAYS else on[k, SOURCE] if kind == GOES_ON else ends[k, SOURCE]
        for column in range(COLUMNS):
            out[m, column] = ints[i, column]
        if kind == STAYS:
            continue
        unit, step = on[k, NEW_UNIT] if kind == GOES_ON else ends[k, NEW_UNIT], now[ints[i, ROW]]
        if ints[i, NODE] == ROOT:
            out[m, FIRST] = step
        if unit != space:  # the space behind a word is no part of it
            out[m, LAST] = step
        out[m, UNIT] = unit
        if kind == GOES_ON:
            out[m, NODE] = on[k, NEW_NODE]
        else:
            out[m, NODE], out[m, WORD] = ROOT, ends[k, NEW_WORD]
            out[m, CONTEXT], out[m, HOT] = ends[k, NEW_CONTEXT], ends[k, NEW_HOT]
    return out


# -- what lives on ---------------------------------------------------------------------------------------------------


@compiled
def _by_row(row: Numbers, rows: int) -> tuple[Ints, Ints]:
    """Candidates in the order of their rows, and where each row begins and the last one ends, (rows + 1,)."""
    edges = np.zeros(rows + 1, np.int64)
    for r in row:
        edges[r + 1] += 1
    for r in range(rows):
        edges[r + 1] += edges[r]
    at, order = edges[:-1].copy(), np.empty(len(row), np.int64)
    for i in range(len(row)):
        order[at[row[i]]] = i
        at[row[i]] += 1
    return order, edges


@inlined
def _slot(table: Ints, keys: Hashes, candidate: int, begin: int) -> int:
    """Where in a hash table a candidate of the same key stands, or else the free place (less than ``begin``) for it."""
    mask = len(table) - 1
    slot = int(np.int64((keys[candidate] ^ (keys[candidate] >> np.uint64(32))) * _MIX_0 >> np.uint64(20))) & mask
    while table[slot] >= begin and keys[table[slot] - begin] != keys[candidate]:
        slot = (slot + 1) & mask
    return slot


@compiled
def select(
    row: Numbers,
    scores: Floats,
    total: Floats,
    keys: Hashes,
    futures: Hashes,
    rows: int,
    beam: int,
    threshold: float,
    recombine: bool,
    remember: bool,
) -> Selected:
    """Sum equal candidates, keep the best of those with the same future, and of each row the best ones.

    ``row``: (n,), of each row at least one; ``scores``: (n, 3) and ``total``: (n,) of all alignments, which are changed
    in place; ``keys``: (n,) of what a candidate is, and ``futures``: (n,) of its future; ``remember``: name those that
    give way to others of the same future.
    """
    n = len(row)
    order, edges = _by_row(row, rows)
    largest = 1
    for r in range(rows):
        largest = max(largest, edges[r + 1] - edges[r])
    slots = 1
    while slots < 2 * largest:
        slots *= 2
    # A slot holds a candidate and the number of its table: tables follow each other, and none needs to be emptied.
    table, turn = np.full(slots, -1, np.int64), 0
    heads, best, summed = np.empty(largest, np.int64), np.empty(n, np.int64), np.zeros((n, 2))
    several = np.zeros(n, np.bool_)
    chosen, behind = np.empty(min(n, beam * rows), np.int64), np.empty(min(n, beam * rows))
    starts, top = np.empty(rows, np.int64), np.full(rows, NEVER)
    losers, winners, lost = np.empty(n if remember else 0, np.int64), np.empty(n if remember else 0, np.int64), 0
    near, counts = np.empty(largest, np.int64), np.empty(_BUCKETS + 2, np.int64)
    m = 0
    for r in range(rows):
        alive = 0
        for k in range(edges[r], edges[r + 1]):  # equal ones: the sum stands at the best of them
            i = order[k]
            slot = _slot(table, keys, i, turn)
            if table[slot] < turn:
                table[slot], best[i] = turn + i, i
                summed[i, 0], summed[i, 1] = scores[i, IN_BLANK], scores[i, IN_UNIT]
                heads[alive] = i
                alive += 1
                continue
            head = table[slot] - turn
            several[head] = True
            summed[head, 0] = log_sum(summed[head, 0], scores[i, IN_BLANK])
            summed[head, 1] = log_sum(summed[head, 1], scores[i, IN_UNIT])
            if total[i] > total[best[head]]:
                best[head] = i
        turn += n
        for k in range(alive):
            head = heads[k]
            i = best[head]
            if several[head]:
                scores[i, IN_BLANK], scores[i, IN_UNIT] = summed[head, 0], summed[head, 1]
                total[i] = log_sum(summed[head, 0], summed[head, 1])
            heads[k] = i
        if recombine:
            for k in range(alive):
                slot = _slot(table, futures, heads[k], turn)
                if table[slot] < turn or total[heads[k]] > total[table[slot] - turn]:
                    table[slot] = turn + heads[k]
            left = 0
            for k in range(alive):
                winner = table[_slot(table, futures, heads[k], turn)] - turn
                if winner == heads[k]:
                    heads[left] = winner
                    left += 1
                elif remember:
                    losers[lost], winners[lost] = heads[k], winner
                    lost += 1
            alive = left
            turn += n
        for k in range(alive):
            top[r] = max(top[r], total[heads[k]])
        starts[r] = m
        m = _best_first(heads, alive, total, top[r], threshold, beam, near, counts, chosen, behind, m)
    return Selected(chosen[:m].copy(), starts, behind[:m].copy(), top, losers[:lost], winners[:lost])


@compiled
def _best_first(
    heads: Ints,
    alive: int,
    total: Floats,
    top: float,
    threshold: float,
    beam: int,
    near: Ints,
    counts: Ints,
    chosen: Ints,
    behind: Floats,
    m: int,
) -> int:
    """Write the best of a row, at most ``beam`` and none more than ``threshold`` behind the ``top``, from place ``m``
    on, in order; returns where they end. By buckets, then by insertion, since those of a bucket are few."""
    scale = _BUCKETS / max(threshold, 1e-9)
    counts[:] = 0
    for k in range(alive):
        back = top - total[heads[k]]
        if back <= threshold:
            counts[int(back * scale) + 1] += 1
    for bucket in range(_BUCKETS + 1):
        counts[bucket + 1] += counts[bucket]
    found = counts[_BUCKETS + 1]
    for k in range(alive):
        back = top - total[heads[k]]
        if back <= threshold:
            bucket = int(back * scale)
            near[counts[bucket]] = heads[k]
            counts[bucket] += 1
    for k in range(1, found):
        i, j = near[k], k
        while j > 0 and total[near[j - 1]] < total[i]:
            near[j] = near[j - 1]
            j -= 1
        near[j] = i
    for k in range(min(found, beam)):
        chosen[m], behind[m] = near[k], top - total[near[k]]
        m += 1
    return m
