"""Hot words: phrases that a session expects, each with a boost, in and outside the vocabulary.

Phrases are matched as whole words by an automaton (Aho and Corasick 1975): every word of a phrase earns its part of the
boost when it is recognised, and gives it back when the phrase is not finished. The words of all phrases stand in a
small lexicon tree of the session's own, in which the boost is visible from a word's first unit on, so that pruning does
not end it; words that are not in the vocabulary get their pronunciations from the lexicon's rules or its
grapheme-to-phoneme model. Only whole words earn anything: what stands beside a phrase is scored as ever.
"""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from asr.decoding.trie import ROOT, Trie, build, ranges
from asr.errors import AsrError, UsageError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
MOST_PHRASES = 1000
MOST_BOOST = 20.0  # nats a word; more than that drowns the sound
DEFAULT_BOOST = 5.0
_WORD_BITS = 32


@dataclass(frozen=True)
class HotWord:
    """A phrase with its boost: nats added for each of its words when all of it is said (a negative one: taken away)."""

    text: str
    boost: float = DEFAULT_BOOST


Spell = Callable[[str], Sequence[Sequence[int]]]


class HotWords:
    """The phrases of one session, ready for the search. Immutable.

    ``words``: id of every word of the vocabulary; ``spell``: the unit ids of a word's pronunciations (raises an
    AsrError for a word that has none); ``score``: (ids) -> the weighted language model score of words without context,
    in nats; ``price``: what each pronunciation of a word costs, in nats. Of a phrase that is given twice the last boost
    holds; one of 0 is none. Raises UsageError that names every unusable phrase and what is wrong with it.

    ``ids``: of every word of the phrases; ``words``: these in order; ``worth``: (words,) what they score and earn where
    no phrase has begun, in nats.
    """

    def __init__(
        self,
        phrases: Iterable[HotWord],
        words: Mapping[str, int],
        spell: Spell,
        score: Callable[[Ints], Floats],
        normalize: Callable[[str], str],
        price: Callable[[str], Sequence[float]] | None = None,
    ) -> None:
        spelled: dict[str, Sequence[Sequence[int]]] = {}
        found: dict[tuple[str, ...], float] = {}
        unusable = []
        for phrase in phrases:
            try:
                text = _usable(phrase, normalize)
                for word in text.split():
                    if word not in spelled:
                        spelled[word] = spell(word)
            except AsrError as error:
                unusable.append(f"'{phrase.text}': {error}")
            else:
                found[tuple(text.split())] = phrase.boost
        found = {phrase: boost for phrase, boost in found.items() if boost}
        if len(found) > MOST_PHRASES:
            unusable.append(f"{len(found)} phrases are too many: give {MOST_PHRASES} at most")
        if unusable:
            raise UsageError("unusable hot words: " + "; ".join(unusable))
        self.phrases = tuple(HotWord(" ".join(p), b) for p, b in found.items())
        used = sorted({word for phrase in found for word in phrase})
        unknown = [word for word in used if word not in words]
        first = len(words) + 2  # one more than the last stands for the end of a sentence, two more for <unk>
        self._names = {first + i: word for i, word in enumerate(unknown)}
        ids = {word: words[word] if word in words else first + unknown.index(word) for word in used}
        self.ids: Mapping[str, int] = ids
        self.words = np.array(sorted(ids.values()), dtype=np.int64)
        self._automaton({tuple(ids[w] for w in phrase): boost for phrase, boost in found.items()})
        self.tree = self._tree(ids, spelled, score, price)

    def __len__(self) -> int:
        return len(self.phrases)

    @property
    def unknown(self) -> tuple[int, ...]:
        """The ids outside the vocabulary."""
        return tuple(self._names)

    def name(self, word: int) -> str:
        """The word of an id outside the vocabulary."""
        return self._names[word]

    def potential(self, states: NDArray[np.integer]) -> Floats:
        """What phrases that are not finished have been given so far (n,)."""
        return self.given[states]

    def _automaton(self, phrases: Mapping[tuple[int, ...], float]) -> None:
        edges: list[dict[int, int]] = [{}]
        given, banked = [0.0], [0.0]
        for phrase, boost in phrases.items():
            state = 0
            for count, word in enumerate(phrase, 1):
                if word not in edges[state]:
                    edges[state][word] = len(edges)
                    edges.append({})
                    given.append(0.0)
                    banked.append(0.0)
                state = edges[state][word]
                if count < len(phrase):
                    given[state] = boost * count if not given[state] else max(given[state], boost * count)
                else:
                    banked[state] = boost * count
        fail = [0] * len(edges)
        queue = list(edges[0].values())
        for state in queue:  # breadth first: what a state fails to is shorter, so it is done already
            for word, after in edges[state].items():
                back = fail[state]
                while back and word not in edges[back]:
                    back = fail[back]
                fail[after] = edges[back].get(word, 0)
                queue.append(after)
            banked[state] += banked[fail[state]]
            if not edges[state]:
                given[state] = given[fail[state]]  # nothing longer begins with it: what may go on is its suffix
        self.given, self.banked = np.array(given), np.array(banked)
        self.fail = np.array(fail, dtype=np.int64)
        place = {word: i for i, word in enumerate(self.words.tolist())}
        keys = sorted((state << _WORD_BITS | place[w], to) for state, out in enumerate(edges) for w, to in out.items())
        self.edge_keys = np.array([k for k, _ in keys], dtype=np.int64)
        self.edge_targets = np.array([t for _, t in keys], dtype=np.int64)

    def _tree(
        self,
        ids: Mapping[str, int],
        spelled: Mapping[str, Sequence[Sequence[int]]],
        score: Callable,
        price: Callable[[str], Sequence[float]] | None,
    ) -> Trie:
        entries = [
            (place, units, cost)
            for word, place in ids.items()
            for units, cost in zip(spelled[word], price(word) if price else [0.0] * len(spelled[word]), strict=True)
        ]
        longest = max((len(units) for _, units, _ in entries), default=0)
        units = np.array([[*u, *[-1] * (longest - len(u))] for _, u, _ in entries], dtype=np.int32)
        local = {place: i for i, place in enumerate(self.words.tolist())}
        at_first = np.zeros(len(self.words))  # what a word earns where no phrase has begun
        opens = self.edge_keys < 1 << _WORD_BITS
        targets = self.edge_targets[opens]
        at_first[self.edge_keys[opens]] = self.given[targets] + self.banked[targets]
        self.worth: Floats = score(self.words) + at_first
        words = np.array([local[place] for place, _, _ in entries], dtype=np.int32)
        costs = np.array([cost for _, _, cost in entries])
        tree = build(units.reshape(len(entries), longest), words, self.worth, costs)
        named = self.words[tree.words].astype(np.int32)
        return dataclasses.replace(tree, words=named, entries=self.words[tree.entries])


def _usable(phrase: HotWord, normalize: Callable[[str], str]) -> str:
    if not isinstance(phrase.text, str) or not phrase.text.strip():
        raise UsageError("it is empty: give a word or a phrase")
    boost = phrase.boost
    if isinstance(boost, bool) or not isinstance(boost, int | float) or not -MOST_BOOST <= boost <= MOST_BOOST:
        raise UsageError(f"its boost must be a number from {-MOST_BOOST:g} to {MOST_BOOST:g}, not {boost!r}")
    given = unicodedata.normalize("NFC", phrase.text)
    strange = sorted({c for c in given if not (_is_letter(c, normalize) or c.isspace() or c in "'’-.,&")})
    text = normalize(given)
    if strange or not text:
        raise UsageError(f"it cannot be spelled in the units of this model ({' '.join(strange) or phrase.text})")
    return text


def _is_letter(c: str, normalize: Callable[[str], str]) -> bool:
    """Whether a character leaves something in the text: letters of other scripts would be left out in silence."""
    return c.isalnum() and (c.isascii() or bool(normalize(c)))


class Overlay:
    """The hot words of several streams side by side; ``rows`` without any have an empty tree and automaton."""

    def __init__(self, hot: Sequence[HotWords | None], size: int) -> None:
        """``size``: nodes of the shared tree; a node n > 0 of a stream's own tree is ``size + n`` in its hypotheses."""
        zero = np.zeros(1, np.int32)
        none = np.zeros(1, np.int64)
        empty = Trie(zero - 1, zero, zero, zero, zero, zero[:0], np.zeros(0), np.zeros(1), none, none, none[:0])
        trees = [h.tree if h else empty for h in hot]
        self._nodes = _offsets([len(t) for t in trees])
        self._unit = np.concatenate([t.unit for t in trees])
        self._first_child = np.concatenate([t.first_child for t in trees])
        self._children = np.concatenate([t.children for t in trees])
        words = _offsets([len(t.words) for t in trees])
        self._first_word = np.concatenate([t.first_word + o for t, o in zip(trees, words, strict=True)])
        self._word_count = np.concatenate([t.word_count for t in trees])
        self._words = np.concatenate([t.words for t in trees]).astype(np.int64)
        self._costs = np.concatenate([t.costs for t in trees])
        self._ahead = np.concatenate([t.ahead for t in trees])
        self._size = size
        one, none = np.zeros(1), np.zeros(0, dtype=np.int64)
        self._states = _offsets([len(h.given) if h else 1 for h in hot])
        self._given = np.concatenate([h.given if h else one for h in hot])
        self._banked = np.concatenate([h.banked if h else one for h in hot])
        self._fail = np.concatenate(
            [(h.fail if h else np.zeros(1, np.int64)) + o for h, o in zip(hot, self._states, strict=True)]
        )
        vocabulary = _offsets([len(h.words) if h else 0 for h in hot])
        self._word_keys = np.concatenate([(r << _WORD_BITS) + h.words if h else none for r, h in enumerate(hot)])
        self._edge_keys = np.concatenate(
            [h.edge_keys + (s << _WORD_BITS) + v if h else none
             for h, s, v in zip(hot, self._states.tolist(), vocabulary.tolist(), strict=True)]
        )  # fmt: skip
        self._edge_targets = np.concatenate(
            [h.edge_targets + s if h else none for h, s in zip(hot, self._states, strict=True)]
        )

    def children(self, node: NDArray[np.int32], row: NDArray[np.int32]) -> tuple[Ints, Ints, NDArray[np.int32]]:
        """Ways on in the own trees: (hypothesis, node as hypotheses have it, unit)."""
        inside = np.flatnonzero((node == ROOT) | (node >= self._size))
        at = np.where(node[inside] == ROOT, 0, node[inside] - self._size) + self._nodes[row[inside]]
        count = self._children[at]
        parent = np.repeat(inside, count)
        local = ranges(self._first_child[at], count)
        return parent, local + self._size, self._unit[local + self._nodes[row[parent]]]

    def looks(self, child: Ints, row: NDArray[np.int32]) -> Floats:
        """What is expected below own nodes, in nats."""
        return self._ahead[self._place(child, row)]

    def completed(self, child: Ints, row: NDArray[np.int32]) -> tuple[Ints, Ints, Floats, NDArray[np.bool_]]:
        """Words that end at own nodes: (place in ``child``, word, what its pronunciation costs); and which of these
        nodes go on."""
        place = self._place(child, row)
        count = self._word_count[place]
        ended = np.repeat(np.arange(len(child)), count)
        words = ranges(self._first_word[place], count)
        return ended, self._words[words], self._costs[words], self._children[place] > 0

    def _place(self, child: Ints, row: NDArray[np.int32]) -> Ints:
        """Where own nodes stand in the arrays of all streams."""
        return child - self._size + self._nodes[row]

    def owns(self, row: NDArray[np.int32], word: Ints) -> NDArray[np.bool_]:
        """Whether words are hot words of their streams."""
        return self._find(self._word_keys, (row.astype(np.int64) << _WORD_BITS) + word) >= 0

    def advance(
        self, row: NDArray[np.int32], states: NDArray[np.int32], words: Ints
    ) -> tuple[NDArray[np.int32], Floats]:
        """The automata's next states, and what the words earn or lose."""
        offset = self._states[row]
        before = states + offset
        hot = self._find(self._word_keys, (row.astype(np.int64) << _WORD_BITS) + words)
        after, at = offset.copy(), before.copy()
        open_ = np.flatnonzero(hot >= 0)
        while len(open_):
            edge = self._find(self._edge_keys, (at[open_] << _WORD_BITS) + hot[open_])
            found = edge >= 0
            after[open_[found]] = self._edge_targets[edge[found]]
            open_ = open_[~found & (at[open_] != offset[open_])]
            at[open_] = self._fail[at[open_]]
        gain = self._given[after] - self._given[before] + self._banked[after]
        return (after - offset).astype(np.int32), gain

    @staticmethod
    def _find(keys: Ints, wanted: Ints) -> Ints:
        if not len(keys):
            return np.full(len(wanted), -1, dtype=np.int64)
        place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        return np.where(keys[place] == wanted, place, -1)


def stack(hot: Sequence[HotWords | None], size: int) -> Overlay | None:
    """What a batch of streams needs to know of their hot words; None where no stream has any."""
    return Overlay(hot, size) if any(hot) else None


def _offsets(lengths: Sequence[int]) -> Ints:
    return np.cumsum([0, *lengths[:-1]]).astype(np.int64)
