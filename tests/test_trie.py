"""asr.decoding.trie against nested dictionaries."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.decoding.trie import MOST_HOMOPHONES, ROOT, Trie, build

SPELLINGS = st.lists(st.tuples(st.lists(st.integers(1, 4), max_size=4), st.integers(0, 9)), max_size=40)


def built(entries: list[tuple[list[int], int]], scores: np.ndarray) -> Trie:
    longest = max((len(s) for s, _ in entries), default=0)
    units = np.array([[*s, *[-1] * (longest - len(s))] for s, _ in entries], dtype=np.int32)
    return build(units.reshape(len(entries), longest), np.array([w for _, w in entries], dtype=np.int32), scores)


def nested(entries: list[tuple[list[int], int]]) -> dict[Any, Any]:
    root: dict[Any, Any] = {"words": set()}
    for spelling, word in entries:
        node = root
        for unit in spelling:
            node = node.setdefault(unit, {"words": set()})
        if spelling:
            node["words"].add(word)
    return root


def below(node: dict[Any, Any]) -> set[int]:
    found = set(node["words"])
    for unit, child in node.items():
        found |= set() if unit == "words" else below(child)
    return found


def compare(trie: Trie, at: int, node: dict[Any, Any], scores: np.ndarray) -> int:
    """Check a node and all below it; how many they are."""
    children = range(int(trie.first_child[at]), int(trie.first_child[at] + trie.children[at]))
    units = sorted(u for u in node if u != "words")
    assert [int(trie.unit[c]) for c in children] == units
    start = int(trie.first_word[at])
    words = trie.words[start : start + int(trie.word_count[at])].tolist()
    assert words == sorted(node["words"], key=lambda w: (-scores[w], w))[:MOST_HOMOPHONES]
    if at != ROOT:
        assert trie.ahead[at] == max(scores[w] for w in below(node))
    return 1 + sum(compare(trie, c, node[u], scores) for c, u in zip(children, units, strict=True))


@settings(deadline=None, max_examples=60)
@given(SPELLINGS, st.lists(st.sampled_from([-3.0, -2.0, -1.5, 0.0]), min_size=10, max_size=10))
def test_it_is_the_tree_of_its_spellings(entries: list[tuple[list[int], int]], values: list[float]) -> None:
    scores = np.array(values)
    trie = built(entries, scores)
    assert compare(trie, ROOT, nested(entries), scores) == len(trie)
    assert trie.ahead[ROOT] == 0.0 and (trie.unit[1:] > 0).all()


@settings(deadline=None, max_examples=30)
@given(SPELLINGS, st.randoms())
def test_the_order_of_the_entries_does_not_matter(entries: list[tuple[list[int], int]], rng: Any) -> None:
    scores = -np.arange(10.0) % 3
    shuffled = list(entries)
    rng.shuffle(shuffled)
    one, other = built(entries, scores), built(shuffled, scores)
    for name in ("unit", "first_child", "children", "first_word", "word_count", "words", "ahead"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


def test_words_keep_what_they_cost() -> None:
    spellings = np.array([[1, 2], [1, -1], [1, 2], [1, 2], [2, -1]], dtype=np.int32)
    words, costs = np.array([0, 0, 1, 0, 2], dtype=np.int32), np.array([0.7, 0.1, 0.2, 0.4, 0.0])
    trie = build(spellings, words, np.array([-1.0, -0.5, -2.0]), costs)
    found = {}
    for node in range(len(trie)):
        at = slice(int(trie.first_word[node]), int(trie.first_word[node] + trie.word_count[node]))
        found[node] = list(zip(trie.words[at].tolist(), trie.costs[at].tolist(), strict=True))
    assert [f for f in found.values() if f] == [[(0, 0.1)], [(2, 0.0)], [(1, 0.2), (0, 0.4)]]
    assert not build(spellings, words, np.array([-1.0, -0.5, -2.0])).costs.any()


@pytest.mark.parametrize("entries", [[], [([], 1)], [([], 1), ([], 2)]])
def test_nothing_to_spell_is_a_root_alone(entries: list[tuple[list[int], int]]) -> None:
    trie = built(entries, np.zeros(3))
    assert len(trie) == 1 and trie.children[ROOT] == 0 and len(trie.words) == 0
