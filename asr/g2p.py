"""Grapheme-to-phoneme conversion with a joint-sequence n-gram model.

A word and its pronunciation are cut together into *graphones*, pairs of one or two letters with up to two phones
(``ph``:F, ``x``:K S, a silent ``e``). The cutting is learnt by expectation maximisation; a modified Kneser-Ney n-gram
model over the best cuttings then scores whole words, and a beam search over the graphones that spell a word finds its
most probable pronunciations.

Method: M. Bisani and H. Ney, "Joint-sequence models for grapheme-to-phoneme conversion", Speech Communication 50
(2008); the two steps (align, then count n-grams) as in J. Novak et al., "Phonetisaurus", Natural Language Engineering
22 (2016). Smoothing: S. Chen and J. Goodman (1998). Pruning: A. Stolcke (1998).
"""

from __future__ import annotations

import json
import lzma
import math
import os
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from asr.errors import LexiconError

PHONES: tuple[str, ...] = tuple(
    "AA AE AH AO AW AY B CH D DH EH ER EY F G HH IH IY JH K L M N NG OW OY P R S SH T TH UH UW V W Y Z ZH".split()  # noqa: SIM905
)
LETTERS = "abcdefghijklmnopqrstuvwxyz'"

Pronunciation = tuple[str, ...]
Graphone = tuple[str, Pronunciation]

_PHONE_ID = {phone: i for i, phone in enumerate(PHONES)}
_LETTER_ID = {letter: i for i, letter in enumerate(LETTERS)}
_NL, _NP = len(LETTERS), len(PHONES)
# Every graphone has one number. The four shapes (letters, phones) stand one after the other: (1,0) (1,1) (1,2) (2,1).
_AT_11 = _NL
_AT_12 = _AT_11 + _NL * _NP
_AT_21 = _AT_12 + _NL * _NP * _NP
_GRAPHONES = _AT_21 + _NL * _NL * _NP

BOS, EOS = 0, 1  # symbols of the n-gram model that stand before and after the graphones of a word

_Ints = NDArray[np.int64]
_Floats = NDArray[np.float64]


def graphone(number: int) -> Graphone:
    """Letters and phones of the graphone ``number`` of the aligner."""
    if number < _AT_11:
        return LETTERS[number], ()
    if number < _AT_12:
        letter, phone = divmod(number - _AT_11, _NP)
        return LETTERS[letter], (PHONES[phone],)
    if number < _AT_21:
        letter, phones = divmod(number - _AT_12, _NP * _NP)
        return LETTERS[letter], (PHONES[phones // _NP], PHONES[phones % _NP])
    letters, phone = divmod(number - _AT_21, _NP)
    return LETTERS[letters // _NL] + LETTERS[letters % _NL], (PHONES[phone],)


# --- alignment -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Batch:
    """Words of one shape: ``rows`` number the pairs; edge tables hold graphone numbers, (letters, phones, words)."""

    rows: _Ints
    edge_10: _Ints
    edge_11: _Ints
    edge_12: _Ints
    edge_21: _Ints

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.edge_11.shape[0], self.edge_11.shape[1], self.edge_11.shape[2]


def _batches(pairs: Sequence[tuple[str, Pronunciation]], size: int = 4096) -> list[_Batch]:
    groups: dict[tuple[int, int], list[int]] = {}
    for row, (word, phones) in enumerate(pairs):
        groups.setdefault((len(word), len(phones)), []).append(row)
    batches = []
    for (n_letters, n_phones), rows in sorted(groups.items()):
        if n_phones > 2 * n_letters or not n_phones:
            continue
        for at in range(0, len(rows), size):
            part = rows[at : at + size]
            letters = np.array([[_LETTER_ID[c] for c in pairs[r][0]] for r in part], dtype=np.int64).T
            phones_ = np.array([[_PHONE_ID[p] for p in pairs[r][1]] for r in part], dtype=np.int64).T
            one, two = letters[:, None], letters[:-1, None] * _NL + letters[1:, None]
            batches.append(
                _Batch(
                    np.array(part),
                    letters,
                    _AT_11 + one * _NP + phones_[None],
                    _AT_12 + one * _NP * _NP + (phones_[:-1] * _NP + phones_[1:])[None],
                    _AT_21 + two * _NP + phones_[None],
                )
            )
    return batches


def _expectation(batch: _Batch, theta: _Floats, counts: _Floats) -> float:
    """Adds the expected graphone counts of a batch to ``counts``; returns its log-likelihood (impossible words: none).

    Forward-backward over the lattice of positions (letters used, phones used); every edge uses a letter or two, so
    one row of the lattice follows from the two before it.
    """
    n_letters, n_phones, n_words = batch.shape
    p10, p11 = theta[batch.edge_10], theta[batch.edge_11]
    p12, p21 = theta[batch.edge_12], theta[batch.edge_21]
    alpha = np.zeros((n_letters + 1, n_phones + 1, n_words))
    beta = np.zeros_like(alpha)
    alpha[0, 0] = 1.0
    for i in range(1, n_letters + 1):
        row, before = alpha[i], alpha[i - 1]
        row += before * p10[i - 1]
        row[1:] += before[:-1] * p11[i - 1]
        row[2:] += before[:-2] * p12[i - 1]
        if i > 1:
            row[1:] += alpha[i - 2, :-1] * p21[i - 2]
    beta[n_letters, n_phones] = 1.0
    for i in range(n_letters - 1, -1, -1):
        row, after = beta[i], beta[i + 1]
        row += after * p10[i]
        row[:-1] += after[1:] * p11[i]
        row[:-2] += after[2:] * p12[i]
        if i + 1 < n_letters:
            row[:-1] += beta[i + 2, 1:] * p21[i]
    total = alpha[n_letters, n_phones].copy()
    possible = total > 0
    scale = np.where(possible, 1.0 / np.where(possible, total, 1.0), 0.0)
    alpha *= scale
    for edge, posterior in (
        (batch.edge_10, (alpha[:-1] * beta[1:]).sum(1) * p10),
        (batch.edge_11, alpha[:-1, :-1] * p11 * beta[1:, 1:]),
        (batch.edge_12, alpha[:-1, :-2] * p12 * beta[1:, 2:]),
        (batch.edge_21, alpha[:-2, :-1] * p21 * beta[2:, 1:]),
    ):
        counts += np.bincount(edge.ravel(), weights=posterior.ravel(), minlength=_GRAPHONES)
    return float(np.log(total[possible]).sum())


def _best_paths(batch: _Batch, theta: _Floats) -> list[tuple[int, list[int]]]:
    """``(row, graphone numbers)`` of the most probable alignment of every word of a batch that has one."""
    n_letters, n_phones, n_words = batch.shape
    p10, p11 = theta[batch.edge_10], theta[batch.edge_11]
    p12, p21 = theta[batch.edge_12], theta[batch.edge_21]
    best = np.zeros((n_letters + 1, n_phones + 1, n_words))
    choice = np.zeros(best.shape, dtype=np.int8)
    best[0, 0] = 1.0
    for i in range(1, n_letters + 1):
        scores = np.zeros((4, n_phones + 1, n_words))
        scores[0] = best[i - 1] * p10[i - 1]
        scores[1, 1:] = best[i - 1, :-1] * p11[i - 1]
        scores[2, 2:] = best[i - 1, :-2] * p12[i - 1]
        if i > 1:
            scores[3, 1:] = best[i - 2, :-1] * p21[i - 2]
        choice[i] = scores.argmax(0)
        best[i] = scores.max(0)
    paths = []
    for column, row in enumerate(batch.rows.tolist()):
        if best[n_letters, n_phones, column] <= 0:
            continue
        i, j, path = n_letters, n_phones, []
        while i:
            shape = choice[i, j, column]
            if shape == 0:
                i -= 1
                path.append(int(batch.edge_10[i, column]))
            elif shape == 1:
                i, j = i - 1, j - 1
                path.append(int(batch.edge_11[i, j, column]))
            elif shape == 2:
                i, j = i - 1, j - 2
                path.append(int(batch.edge_12[i, j, column]))
            else:
                i, j = i - 2, j - 1
                path.append(int(batch.edge_21[i, j, column]))
        paths.append((row, path[::-1]))
    return paths


def estimate_graphones(
    pairs: Sequence[tuple[str, Pronunciation]], iterations: int = 12, allowed: NDArray[np.bool_] | None = None
) -> tuple[_Floats, list[float]]:
    """Graphone probabilities by expectation maximisation, and the log-likelihood before each iteration.

    All graphones start equal (those of ``allowed``); the sum over all alignments of every pair is maximised. Pairs that
    no alignment can make (more than two phones a letter) are passed over.
    """
    theta = np.ones(_GRAPHONES) if allowed is None else allowed.astype(np.float64)
    theta /= theta.sum()
    batches, history = _batches(pairs), []
    for _ in range(iterations):
        counts = np.zeros(_GRAPHONES)
        history.append(sum(_expectation(batch, theta, counts) for batch in batches))
        if not counts.sum():
            raise LexiconError("no word of the list can be aligned with its pronunciation: give words with phones")
        theta = counts / counts.sum()
    return theta, history


def align(
    pairs: Sequence[tuple[str, Pronunciation]], iterations: int = 12, min_count: int = 1
) -> list[tuple[int, list[int]]]:
    """``(row, graphone numbers)`` for each pair that has an alignment, in the order of ``pairs``.

    Graphones used fewer than ``min_count`` times in the best alignments (foreign names, slips of the list) are taken
    away and the rest aligned again, so that the n-gram model need not carry them.
    """
    batches = _batches(pairs)
    theta, _ = estimate_graphones(pairs, iterations)
    paths = [path for batch in batches for path in _best_paths(batch, theta)]
    if min_count > 1:
        used = np.bincount([number for _, path in paths for number in path], minlength=_GRAPHONES)
        allowed = used >= min_count
        theta, _ = estimate_graphones(pairs, 3, allowed)
        paths = [path for batch in batches for path in _best_paths(batch, theta)]
    return sorted(paths)


# --- n-gram model over graphones -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Level:
    """The n-grams of one order, sorted by (history, symbol); ``history`` and ``suffix`` number n-grams one order below.

    ``count`` is how often an n-gram stands in the words, ``distinct`` in how many left contexts (Kneser-Ney's count).
    """

    history: _Ints
    symbol: _Ints
    suffix: _Ints
    count: _Ints
    distinct: _Ints


def _count_levels(words: Sequence[Sequence[int]], symbols: int, order: int) -> list[_Level]:
    """n-gram counts of all orders. ``words``: symbol numbers from 2; BOS and EOS are put around each."""
    text = np.array([s for word in words for s in (BOS, *word, EOS)], dtype=np.int64)
    lengths = np.array([len(word) + 2 for word in words], dtype=np.int64)
    place = np.arange(len(text)) - np.repeat(np.cumsum(lengths) - lengths, lengths)  # position inside its word
    at = np.zeros(len(text), dtype=np.int64)  # the n-gram of the last order that ends at each position
    levels: list[_Level] = []
    for n in range(1, order + 1):
        where = np.flatnonzero(place >= n - 1)
        history = at[where - 1] if n > 1 else np.zeros(len(where), dtype=np.int64)
        keys, first, inverse, count = np.unique(
            history * symbols + text[where], return_index=True, return_inverse=True, return_counts=True
        )
        suffix = at[where][first] if n > 1 else np.zeros(len(keys), dtype=np.int64)
        at = np.zeros(len(text), dtype=np.int64)
        at[where] = inverse
        levels.append(_Level(keys // symbols, keys % symbols, suffix, count, count.copy()))
    for below, above in pairwise(levels):
        extended = np.bincount(above.suffix, minlength=len(below.symbol))
        np.copyto(below.distinct, extended, where=extended > 0)  # n-grams at the start of a word keep their count
    return levels


def _discounts(counts: _Ints) -> _Floats:
    """Modified Kneser-Ney discounts of counts 0, 1, 2 and 3 or more (Chen and Goodman 1998, equation 26)."""
    n1, n2, n3, n4 = (int((counts == k).sum()) for k in (1, 2, 3, 4))
    if not (n1 and n2 and n3 and n4):
        return np.array([0.0, 0.5, 0.75, 0.9])  # too little text to estimate them
    y = n1 / (n1 + 2 * n2)
    raw = [0.0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3]
    return np.array([min(max(d, 0.05 * (k > 0)), k * 0.95) for k, d in enumerate(raw)])


def _smooth(levels: Sequence[_Level], symbols: int) -> tuple[list[_Floats], list[_Floats]]:
    """Interpolated probability of every n-gram and back-off weight of every history, one array an order.

    ``weights[n]`` belongs to the histories of length ``n`` (``weights[0]`` to the empty one).
    """
    probabilities: list[_Floats] = []
    weights: list[_Floats] = []
    lower = np.full(1, 1.0 / (symbols - 1))  # below unigrams: any symbol but BOS
    for n, level in enumerate(levels):
        histories = len(levels[n - 1].symbol) if n else 1
        counts = level.distinct.copy()
        if n == 0:
            counts[level.symbol == BOS] = 0  # never predicted
        discount = _discounts(counts)[np.minimum(counts, 3)]
        total = np.bincount(level.history, weights=counts, minlength=histories)
        taken = np.bincount(level.history, weights=discount, minlength=histories)
        weight = np.where(total > 0, taken / np.where(total > 0, total, 1.0), 1.0)
        probability = (counts - discount) / total[level.history] + weight[level.history] * lower[level.suffix]
        if n == 0:
            probability[level.symbol == BOS] = 0.0
        probabilities.append(probability)
        weights.append(weight)
        lower = probability
    return probabilities, weights


def _prune(
    levels: Sequence[_Level], probabilities: Sequence[_Floats], weights: Sequence[_Floats], max_ngrams: int
) -> list[NDArray[np.bool_]]:
    """Which n-grams to keep, one mask an order, so that at most ``max_ngrams`` (and all unigrams) are left.

    An n-gram costs what its removal alone would add to the relative entropy (Stolcke 1998), with the history's
    frequency in place of the product of Kneser-Ney probabilities, which is wrong for it. n-grams that a kept one needs
    (its history, its suffix) stay too.
    """
    costs = []
    for n in range(1, len(levels)):
        level, probability = levels[n], probabilities[n]
        lower, weight = probabilities[n - 1][level.suffix], weights[n]
        left_lower = 1.0 - np.bincount(level.history, weights=lower, minlength=len(weight))[level.history]
        left_lower = np.maximum(left_lower, 1e-9)
        old = weight[level.history]
        left = old * left_lower
        new = (left + probability) / (left_lower + lower)
        frequency = levels[n - 1].count[level.history] / len(levels[0].count)
        gain = probability * np.log(probability / (new * lower)) + left * np.log(old / new)
        costs.append(frequency * gain)

    def keep(threshold: float) -> list[NDArray[np.bool_]]:
        masks = [np.ones(len(levels[0].symbol), dtype=bool)]
        masks += [cost > threshold for cost in costs]
        for n in range(len(levels) - 1, 0, -1):
            masks[n - 1][levels[n].history[masks[n]]] = True
            masks[n - 1][levels[n].suffix[masks[n]]] = True
        return masks

    if not costs or sum(len(level.symbol) for level in levels) <= max_ngrams:
        return [np.ones(len(level.symbol), dtype=bool) for level in levels]
    low, high = -30.0, math.log(max(float(cost.max()) for cost in costs) + 1e-30)
    for _ in range(20):
        middle = (low + high) / 2
        if sum(int(m.sum()) for m in keep(math.exp(middle))) > max_ngrams:
            low = middle
        else:
            high = middle
    return keep(math.exp(high))


@dataclass(frozen=True)
class _Trie:
    """A back-off model as stored: node 0 is the empty n-gram, the others follow level by level in trie order.

    ``symbol`` of each node, its log probability in units of -1/:data:`_SCORE_UNIT`, its log back-off weight in units of
    1/:data:`_BACKOFF_UNIT` (0 without children) and its number of ``children``.
    """

    symbol: _Ints
    score: _Ints
    backoff: _Ints
    children: _Ints


_SCORE_UNIT, _BACKOFF_UNIT = 16, 16
_MAGIC = b"asr-g2p 1\n"


def _trie(levels: Sequence[_Level], probabilities: Sequence[_Floats], keep: Sequence[NDArray[np.bool_]]) -> _Trie:
    symbols, scores, backoffs, children = [np.zeros(1, np.int64)], [np.zeros(1)], [], []
    for n, level in enumerate(levels):
        kept, kept_histories = keep[n], keep[n - 1] if n else np.ones(1, dtype=bool)
        history = level.history[kept]
        histories = len(kept_histories)
        lower = probabilities[n - 1][level.suffix] if n else np.full(len(kept), 1.0 / len(kept))
        left = 1.0 - np.bincount(history, weights=probabilities[n][kept], minlength=histories)
        left_lower = 1.0 - np.bincount(history, weights=lower[kept], minlength=histories)
        weight = np.maximum(left, 1e-6) / np.maximum(left_lower, 1e-6)
        number = np.bincount(history, minlength=histories)
        backoffs.append(np.log(np.where(number > 0, weight, 1.0))[kept_histories])
        children.append(number[kept_histories])
        symbols.append(level.symbol[kept])
        scores.append(np.log(np.maximum(probabilities[n][kept], 1e-30)))
    backoffs.append(np.zeros(int(keep[-1].sum())))
    children.append(np.zeros(int(keep[-1].sum()), dtype=np.int64))
    score = np.rint(np.concatenate(scores) * -_SCORE_UNIT).astype(np.int64)
    backoff = np.rint(np.concatenate(backoffs) * _BACKOFF_UNIT).astype(np.int64)
    return _Trie(np.concatenate(symbols), np.clip(score, 0, 255), np.clip(backoff, -128, 127), np.concatenate(children))


class _Graph:
    """A :class:`_Trie` made ready for decoding; arrays that index like lists and take four bytes a number.

    Beside the fields of the trie: the children of node ``k`` are ``first[k]`` to ``first[k + 1]``; ``suffix`` is the
    n-gram without its first symbol; ``state`` the longest suffix of the n-gram (or itself) that has children, which is
    all that a decoder needs to remember of the past.
    """

    def __init__(self, trie: _Trie, symbols: int) -> None:
        nodes = len(trie.symbol)
        first = np.concatenate([[1], 1 + np.cumsum(trie.children)])
        parent = np.concatenate([[0], np.repeat(np.arange(nodes), trie.children)])
        key = parent * symbols + trie.symbol
        suffix = np.zeros(nodes, dtype=np.int64)
        state = np.zeros(nodes, dtype=np.int64)
        below, start, end = 0, 1, int(first[1])  # levels are the slices [below, start) and [start, end)
        while start < end:
            if below:
                wanted = suffix[parent[start:end]] * symbols + trie.symbol[start:end]
                found = below + np.searchsorted(key[below:start], wanted)
                if not np.array_equal(key[np.minimum(found, nodes - 1)], wanted):
                    raise LexiconError("the grapheme-to-phoneme model is corrupt: an n-gram lacks its suffix")
                suffix[start:end] = found
            here = np.arange(start, end)
            state[start:end] = np.where(trie.children[start:end] > 0, here, state[suffix[start:end]])
            below, start, end = start, end, int(first[end])
        self.symbol = _as_array("i", trie.symbol)
        self.score = _as_array("f", trie.score / -_SCORE_UNIT)
        self.backoff = _as_array("f", trie.backoff / _BACKOFF_UNIT)
        self.first = _as_array("i", first)
        self.suffix = _as_array("i", suffix)
        self.state = _as_array("i", state)


def _as_array(code: str, values: NDArray) -> array:
    return array(code, values.astype(np.int32 if code == "i" else np.float32).tobytes())


# --- the model -------------------------------------------------------------------------------------------------------


class G2P:
    """A trained model: :meth:`nbest` and :meth:`pronounce` turn a spelling into phones; :meth:`save`, :meth:`load`.

    Use does not change the model, except for a bounded cache.
    """

    MAX_LETTERS = 100  # spellings may come from strangers (hot words): bounds the work for one
    _BEAM, _MARGIN, _EXPANSIONS, _CACHE = 16, 7.0, 10, 20_000

    def __init__(self, graphones: Sequence[Graphone], trie: _Trie) -> None:
        self.graphones, self._trie = tuple(graphones), trie
        self._graph = _Graph(trie, len(self.graphones) + 2)
        # Graphones are sorted by their letters, so those of the same letters are one range of symbols.
        ranges: dict[str, tuple[int, int]] = {"": (EOS, EOS + 1)}
        for number, (letters, _) in enumerate(self.graphones, start=2):
            ranges[letters] = (ranges.get(letters, (number, 0))[0], number + 1)
        self._ranges = ranges
        # Inside, a pronunciation is a string of one character a phone: cheap to join and to hash.
        self._phones = ["", ""] + ["".join(chr(65 + _PHONE_ID[p]) for p in phones) for _, phones in self.graphones]
        self._cache: dict[tuple[int, str], list[tuple[float, int, str]]] = {}
        self._start = self._graph.state[1 + BOS]

    def nbest(self, word: str, count: int = 1) -> list[tuple[Pronunciation, float]]:
        """The ``count`` best pronunciations of ``word``, best first, each with its probability given the spelling.

        The probabilities are normalised over the hypotheses that survive the beam; ways to cut the word into
        graphones that give the same phones are added. Raises :class:`LexiconError` for a word with a character
        other than ``a-z`` and the apostrophe, of more than :data:`MAX_LETTERS`, or that has no sound at all.
        """
        if len(word) > self.MAX_LETTERS:
            raise LexiconError(f"cannot pronounce {word[:20]!r}...: longer than {self.MAX_LETTERS} letters is no word")
        for character in word:
            if character not in _LETTER_ID:
                raise LexiconError(
                    f"cannot pronounce {word!r}: {character!r} is not a letter a-z or an apostrophe; normalise the text"
                )
        ends = self._search(word)
        if not ends:
            raise LexiconError(f"cannot pronounce {word!r}: this spelling has no known sound; add it to the lexicon")
        best = sorted(ends.items(), key=lambda item: (-item[1], item[0]))
        top = best[0][1]
        total = sum(math.exp(score - top) for _, score in best)
        return [
            (tuple(PHONES[ord(code) - 65] for code in phones), math.exp(score - top) / total)
            for phones, score in best[:count]
        ]

    def pronounce(self, word: str) -> Pronunciation:
        """The most probable pronunciation of ``word``; errors as in :meth:`nbest`."""
        return self.nbest(word)[0][0]

    def _search(self, word: str) -> dict[str, float]:
        """Joint log probability of ``word`` with each pronunciation that the beam search finds."""
        # One beam for each number of letters used; hypotheses that agree in state and phones are one.
        beams: list[dict[tuple[int, str], float]] = [{} for _ in range(len(word) + 1)]
        beams[0][self._start, ""] = 0.0
        for i in range(len(word)):
            here = beams[i]
            if not here:
                continue
            hypotheses = sorted(here.items(), key=_by_score)[: self._BEAM]
            floor = hypotheses[0][1] - self._MARGIN
            for size in (1, 2):
                letters = word[i : i + size]
                if len(letters) < size or letters not in self._ranges:
                    continue
                ahead = beams[i + size]
                for (state, phones), score in hypotheses:
                    if score < floor:
                        break
                    for more, after, new in self._expand(state, letters):
                        key, total = (after, phones + new), score + more
                        ahead[key] = _add_logs(ahead[key], total) if key in ahead else total
            beams[i] = {}
        ends: dict[str, float] = {}
        for (state, phones), score in beams[-1].items():
            for more, _, _ in self._expand(state, ""):
                if phones:
                    total = score + more
                    ends[phones] = _add_logs(ends[phones], total) if phones in ends else total
        return ends

    def _expand(self, state: int, letters: str) -> list[tuple[float, int, str]]:
        """``(log probability, next state, phones)`` of the likeliest graphones with these letters after ``state``."""
        cached = self._cache.get((state, letters))
        if cached is not None:
            return cached
        graph, (low, high) = self._graph, self._ranges[letters]
        symbol, end = graph.symbol, graph.first[state + 1]
        at = bisect_left(symbol, low, graph.first[state], end)
        found, seen = [], set()
        while at < end and symbol[at] < high:
            phones = self._phones[symbol[at]]
            found.append((graph.score[at], graph.state[at], phones))
            seen.add(phones)
            at += 1
        if state:
            weight = graph.backoff[state]
            for score, after, phones in self._expand(graph.suffix[state], letters):
                if phones not in seen:
                    found.append((weight + score, after, phones))
        if len(found) > 1:
            found.sort(reverse=True)
            floor = found[0][0] - self._MARGIN
            found = [item for item in found[: self._EXPANSIONS] if item[0] >= floor]
        if len(self._cache) >= self._CACHE:
            self._cache.clear()
        self._cache[state, letters] = found
        return found

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the model to ``path`` (an xz stream: header line of JSON, then the trie column by column)."""
        trie = self._trie
        # Siblings are sorted: store steps, which are small. Columns of bytes compress best one after the other.
        step = np.diff(trie.symbol, prepend=0)
        starts = 1 + np.cumsum(trie.children) - trie.children
        starts = starts[trie.children > 0]
        step[starts] = trie.symbol[starts]
        head = json.dumps(
            {"graphones": [f"{g}:{'_'.join(p)}" for g, p in self.graphones], "nodes": len(trie.symbol)},
            separators=(",", ":"),
        )
        columns = (
            _byte_planes(step)
            + _byte_planes(trie.children)
            + trie.score.astype(np.uint8).tobytes()
            + trie.backoff[trie.children > 0].astype(np.int8).tobytes()
        )
        filters = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": 1 << 22, "lc": 0, "lp": 0, "pb": 0}]
        data = lzma.compress(_MAGIC + head.encode() + b"\n" + columns, check=lzma.CHECK_CRC32, filters=filters)
        temporary = Path(f"{os.fspath(path)}.tmp")
        temporary.write_bytes(data)
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> G2P:
        """The model that :meth:`save` wrote. Raises :class:`LexiconError` if it is missing, corrupt or another file."""
        try:
            data = lzma.decompress(Path(path).read_bytes())
        except OSError as error:
            raise LexiconError(f"cannot read the grapheme-to-phoneme model {path}: {error.strerror}") from None
        except (lzma.LZMAError, EOFError):
            raise LexiconError(f"{path} is not a grapheme-to-phoneme model or is damaged: fetch it again") from None
        if not data.startswith(_MAGIC):
            raise LexiconError(f"{path} is not a grapheme-to-phoneme model of this version")
        try:
            end = data.index(b"\n", len(_MAGIC))
            head = json.loads(data[len(_MAGIC) : end])
            nodes = int(head["nodes"])
            units = [unit.split(":") for unit in head["graphones"]]
            graphones = [(letters, tuple(phones.split("_")) if phones else ()) for letters, phones in units]
            at = end + 1
            step, at = _from_byte_planes(data, at, nodes)
            children, at = _from_byte_planes(data, at, nodes)
            score = np.frombuffer(data, np.uint8, nodes, at).astype(np.int64)
            inner = children > 0
            backoff = np.zeros(nodes, dtype=np.int64)
            backoff[inner] = np.frombuffer(data, np.int8, int(inner.sum()), at + nodes)
            if int(children.sum()) != nodes - 1:
                raise ValueError("children")
            # Undo the steps between siblings: running sum, less what it had reached before each first child.
            total = np.cumsum(step)
            starts = (1 + np.cumsum(children) - children)[inner]
            before = np.repeat(total[starts - 1], children[inner])
            symbol = total.copy()
            symbol[1:] -= before
            return cls(graphones, _Trie(symbol, score, backoff, children))
        except (ValueError, KeyError, TypeError, IndexError):
            raise LexiconError(f"{path} is damaged: its tables do not fit together; fetch it again") from None


def _by_score(item: tuple[tuple[int, str], float]) -> float:
    return -item[1]


def _add_logs(a: float, b: float) -> float:
    return a + math.log1p(math.exp(b - a)) if a >= b else b + math.log1p(math.exp(a - b))


def _byte_planes(values: _Ints) -> bytes:
    return (values & 255).astype(np.uint8).tobytes() + (values >> 8).astype(np.uint8).tobytes()


def _from_byte_planes(data: bytes, at: int, count: int) -> tuple[_Ints, int]:
    low = np.frombuffer(data, np.uint8, count, at).astype(np.int64)
    return low + (np.frombuffer(data, np.uint8, count, at + count).astype(np.int64) << 8), at + 2 * count


def train_g2p(
    pairs: Iterable[tuple[str, Pronunciation]],
    order: int = 7,
    iterations: int = 10,
    min_count: int = 5,
    max_ngrams: int = 500_000,
) -> G2P:
    """A :class:`G2P` from words with pronunciations (a word may come several times, with its variants).

    ``order``: length of the graphone n-grams; ``min_count``: graphones rarer than this are not used; ``max_ngrams``
    bounds the size of the model (two bytes each on disk). Words with other characters than ``a-z`` and the
    apostrophe are passed over. The result depends on the set of pairs alone, not on their order.

    Raises :class:`LexiconError` when nothing can be learnt: no word, or none that aligns.
    """
    unique = sorted({(word, phones) for word, phones in pairs if word and phones and _LETTER_ID.keys() >= set(word)})
    for word, phones in unique:
        for phone in phones:
            if phone not in _PHONE_ID:
                raise LexiconError(f"{phone!r} in the pronunciation of {word!r} is not a phone: use the 39 of ARPAbet")
    if not unique:
        raise LexiconError("a grapheme-to-phoneme model needs words with pronunciations: the list has none")
    paths = align(unique, iterations, min_count)
    used = sorted({number for _, path in paths for number in path}, key=graphone)
    symbol_of = {number: i for i, number in enumerate(used, start=2)}
    symbols = len(used) + 2
    levels = _count_levels([[symbol_of[n] for n in path] for _, path in paths], symbols, order)
    levels = [level for level in levels if len(level.symbol)]
    probabilities, weights = _smooth(levels, symbols)
    keep = _prune(levels, probabilities, weights, max_ngrams)
    return G2P([graphone(n) for n in used], _trie(levels, probabilities, keep))
