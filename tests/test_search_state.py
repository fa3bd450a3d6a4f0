"""asr.decoding.search_state: a search that goes on elsewhere, histories, and states that somebody has tampered with."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save
from search_reference import letters, model, phones, random_emissions, said, small

from asr.decoding.beam_search import BeamSearch
from asr.decoding.hot_words import HotWord, HotWords
from asr.decoding.search_state import BEGINS, DEPTH, ENDS, KEPT_STEPS, PREVIOUS, History, SearchState
from asr.errors import StateError

PHRASES = [HotWord("team", 4.0), HotWord("it me", 3.0)]


@pytest.fixture(scope="module")
def search() -> BeamSearch:
    return small(phones(), model(order=3), True, beam=15, threshold=9.0, blank_skip=0.9, commit=0.95)


@pytest.fixture(scope="module")
def hot(search: BeamSearch) -> HotWords:
    return search.hot_words(PHRASES)


# --- going on elsewhere ---------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 10_000), st.integers(0, 150), st.booleans(), st.sampled_from([0.0, 1.0]))
def test_a_search_goes_on_from_bytes(
    search: BeamSearch, hot: HotWords, seed: int, at: int, with_hot: bool, lm_scale: float
) -> None:
    """In mid-segment, behind the first commit, with hot words that are prepared anew."""
    emissions = random_emissions(seed, 160, 4, 3.0)
    emissions[40:50, 0] = -0.01
    state = search.step(emissions[:at], search.begin(hot if with_hot else None, lm_scale))
    data = state.to_bytes()
    moved = SearchState.from_bytes(data)
    moved.hot = search.hot_words(PHRASES) if with_hot else None
    search.check_state(moved, moved.hot)
    assert moved.to_bytes() == data
    assert search.best(moved) == search.best(state) and search.stable(moved) == search.stable(state)
    ends = [search.end_nbest(search.step(emissions[at:], s), 4) for s in (state, moved)]
    assert ends[0] == ends[1]


def test_letters_go_on_from_bytes() -> None:
    search = small(letters(), None, True)
    state = search.step(said("me-e", 0.9, "-em "), search.begin())
    moved = SearchState.from_bytes(state.to_bytes())
    ends = [search.end(search.step(said(" em", 0.9, "-em "), s)) for s in (state, moved)]
    assert ends[0] == ends[1] and ends[0].text == "mee em"


def test_a_clone_shares_nothing_that_changes(search: BeamSearch, hot: HotWords) -> None:
    state = search.step(random_emissions(1, 130, 4, 3.0), search.begin(hot))
    before, copy = state.to_bytes(), state.clone()
    search.step(random_emissions(2, 130, 4, 3.0), copy)
    assert state.to_bytes() == before != copy.to_bytes()
    assert len(copy.committed) > len(state.committed) > 0


def test_the_size_is_what_the_bytes_hold(search: BeamSearch) -> None:
    state = search.step(random_emissions(1, 300, 4, 3.0), search.begin())
    assert abs(len(state.to_bytes()) - state.nbytes) < 6000
    assert SearchState.from_bytes(SearchState.empty().to_bytes()).nbytes == SearchState.empty().nbytes


def test_emissions_are_kept_for_a_minute_at_least(search: BeamSearch) -> None:
    state, rng = SearchState.empty(), np.random.default_rng(1)
    everything = rng.normal(size=(5 * KEPT_STEPS, 4)).astype(np.float32)
    for start in range(0, len(everything), 50):
        state.keep(everything[start : start + 50])
        held = state.array(4)
        np.testing.assert_array_equal(held, everything[: start + 50][-len(held) :])
        assert min(start + 50, KEPT_STEPS) <= len(held) <= 2 * KEPT_STEPS + 65 * 50
    assert state.steps == len(everything)


# --- histories ------------------------------------------------------------------------------------------------------

Words = tuple[int, ...]


def grown(seed: int, size: int = 30) -> tuple[History, list[Words]]:
    """A random history, and the words behind every entry; the same words may stand there twice."""
    rng = np.random.default_rng(seed)
    history, words = History(), []
    for entry in range(size):
        before = int(rng.integers(-1, entry)) if entry else -1
        word = int(rng.integers(0, 2))
        words.append((*(words[before] if before >= 0 else ()), word))
        key = np.array([hash(words[-1]) & 0xFFFFFFFF], dtype=np.uint64)
        history.append(np.array([[before, word, entry, entry]], dtype=np.int32), key)
    return history, words


def spelled(history: History, entry: int) -> Words:
    return tuple(history.data[history.chain(entry), 1].tolist())


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.lists(st.integers(-1, 29), min_size=1, max_size=5))
def test_histories_are_trees_of_words(seed: int, entries: list[int]) -> None:
    history, words = grown(seed)
    assert all(spelled(history, e) == words[e] for e in range(30))
    assert (history.data[:, DEPTH] == [len(w) - 1 for w in words]).all()
    of = [words[e] if e >= 0 else () for e in entries]
    shared = next(n for n in range(99, -1, -1) if len({w[:n] for w in of}) == 1 and min(map(len, of)) >= n)
    common = history.common(np.array(entries, dtype=np.int32))
    assert (spelled(history, common) if common >= 0 else ()) == of[0][:shared]
    for depth in range(3):
        found = history.at_depth(np.array(entries, dtype=np.int32), depth)
        expected = [w[: depth + 1] if len(w) > depth else None for w in of]
        assert [spelled(history, e) if e >= 0 else None for e in found.tolist()] == expected


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.lists(st.integers(-1, 29), min_size=1, max_size=5), st.integers(-1, 2))
def test_compaction_keeps_what_is_needed(seed: int, entries: list[int], base: int) -> None:
    history, words = grown(seed)
    kept, renamed = history.compact(np.array(entries, dtype=np.int32), base)
    for entry, number in zip(entries, renamed.tolist(), strict=True):
        rest = (words[entry] if entry >= 0 else ())[base + 1 :]
        assert (spelled(kept, number) if number >= 0 else ()) == rest
    assert (kept.data[:, DEPTH] == [len(spelled(kept, e)) - 1 for e in range(kept.size)]).all()
    needed = {e for entry in entries if entry >= 0 for e in history.chain(entry) if history.data[e, DEPTH] > base}
    assert kept.size == len(needed)


# --- damage and forgery ---------------------------------------------------------------------------------------------

BYTES: dict[str, bytes] = {}


def mid_segment(search: BeamSearch, hot: HotWords) -> bytes:
    if not BYTES:
        emissions = np.concatenate([said("TI-MI-IT--") for _ in range(15)])
        state = search.step(emissions[:-3], search.begin(hot))
        assert state.committed and state.history.size
        BYTES["state"] = state.to_bytes()
    return BYTES["state"]


def works_or_is_refused(search: BeamSearch, hot: HotWords, data: bytes) -> bool:
    """Whether the state is taken; then it must work."""
    try:
        state = SearchState.from_bytes(data)
        search.check_state(state, hot)
    except (ValueError, StateError) as error:  # StreamState.from_bytes makes a StateError of a ValueError
        assert str(error)
        return False
    state.hot = hot
    search.stable(state), search.best(state), search.looks_final(state)
    search.end_nbest(state.clone(), 3)
    for seed in range(3):
        search.step(random_emissions(seed, 20, 4, 3.0), state)
        assert search.stable(state) <= len(search.best(state).words)
        state.to_bytes()
    return True


def test_a_word_that_ends_before_the_one_before_it_is_refused(search: BeamSearch, hot: HotWords) -> None:
    arrays = load(mid_segment(search, hot))
    history = arrays["history"].copy()
    number = int(np.flatnonzero(history[:, PREVIOUS] >= 0)[-1])
    history[number, [BEGINS, ENDS]] = 0
    assert history[history[number, PREVIOUS], ENDS] > 0
    assert not works_or_is_refused(search, hot, save({**arrays, "history": history}))


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_a_changed_number_is_refused_or_harmless(search: BeamSearch, hot: HotWords, data: st.DataObject) -> None:
    arrays = load(mid_segment(search, hot))
    name = data.draw(st.sampled_from(sorted(a for a in arrays if arrays[a].size)))
    array = arrays[name] = arrays[name].copy()
    place = data.draw(st.integers(0, array.size - 1))
    if array.dtype.kind == "f":
        values: Any = st.one_of(
            st.floats(width=32), st.sampled_from([0.0, 1.0, 1e300, -1e300, np.nan, np.inf, -np.inf])
        )
    else:
        info = np.iinfo(array.dtype)
        edges = [-2, -1, 0, 1, 2, 5, 14, 40, 200, info.max, info.min, info.max - 1]
        values = st.one_of(st.integers(int(info.min), int(info.max)), st.sampled_from(edges))
    with np.errstate(all="ignore"):
        array.flat[place] = data.draw(values)
        works_or_is_refused(search, hot, save(arrays))


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_changed_bytes_are_refused_or_harmless(search: BeamSearch, hot: HotWords, data: st.DataObject) -> None:
    good = mid_segment(search, hot)
    broken = bytearray(good)
    for _ in range(data.draw(st.integers(1, 3))):
        where = data.draw(st.one_of(st.integers(0, 900), st.integers(0, len(good) - 1)))
        broken[where] = data.draw(st.integers(0, 255))
    del broken[data.draw(st.integers(len(broken) - 30, len(broken))) :]
    with np.errstate(all="ignore"):
        works_or_is_refused(search, hot, bytes(broken))


def change(name: str, put: Callable[[Any], Any]) -> Callable[[dict[str, Any]], None]:
    def apply(arrays: dict[str, Any]) -> None:
        arrays[name] = put(arrays[name].copy())

    return apply


def set_at(place: Any, value: Any) -> Callable[[Any], Any]:
    def put(array: Any) -> Any:
        array[place] = value
        return array

    return put


FORGED: dict[str, Callable[[dict[str, Any]], None]] = {
    "no hypotheses": lambda a: a.update(ints=a["ints"][:0], scores=a["scores"][:0], hashes=a["hashes"][:0]),
    "fewer scores": change("scores", lambda x: x[:-1]),
    "other type": change("ints", lambda x: x.astype(np.int64)),
    "fewer columns": change("ints", lambda x: np.ascontiguousarray(x[:, :-1])),
    "an array less": lambda a: a.__delitem__("committed"),
    "not a number": change("scores", set_at((0, 0), np.nan)),
    "no score at all": change("scores", set_at((0, slice(0, 2)), -np.inf)),
    "infinite emissions": change("emissions", set_at((0, 0), np.inf)),
    "emissions of other units": change("emissions", lambda x: np.ascontiguousarray(x[:, :-1])),
    "a word before itself": change("history", set_at((0, PREVIOUS), 0)),
    "a word before the first": change("history", set_at((0, PREVIOUS), -2)),
    "a word far off": change("history", set_at((0, PREVIOUS), 10_000)),
    "a wrong depth": change("history", set_at((0, DEPTH), 7)),
    "an unknown word": change("history", set_at((0, 1), 10_000)),
    "an unknown committed word": change("committed", set_at((0, 0), 10_000)),
    "a committed word beyond the end": change("committed", set_at((0, 2), 10_000)),
    "a committed word that begins beyond the end": change("committed", set_at((0, 1), 10_000)),
    "fewer steps than none": change("counts", set_at(0, -1)),
    "more steps than there can be": change("counts", set_at(0, 2**40)),
    "more frames than steps": change("counts", set_at(1, 10_000)),
    "fewer words agreed upon than committed": change("counts", set_at(4, 0)),
    "more words agreed upon than there are": change("counts", set_at(4, 10_000)),
    "a strange language model weight": change("numbers", set_at(1, 0.5)),
    "an infinite offset": change("numbers", set_at(0, np.inf)),
    "an immense offset": change("numbers", set_at(0, -1e300)),
    "an immense score": change("scores", set_at((0, slice(0, 2)), -1e300)),
    "an immense expectation": change("scores", set_at((0, 2), 1e300)),
    **{
        f"column {column} is {value}": change("ints", set_at((0, column), value))
        for column, value in [(0, 1), (1, -1), (1, 10_000), (2, 0), (2, 4), (2, -2), (3, 10_000), (3, -1), (4, 99),
                              (4, -1), (5, 10_000), (5, -2), (6, -1), (6, 10_000), (7, 10_000), (8, 0), (9, 7),
                              (9, -2)]
    },
}  # fmt: skip


@pytest.mark.parametrize("name", FORGED)
def test_forged_states_are_refused(search: BeamSearch, hot: HotWords, name: str) -> None:
    arrays = load(mid_segment(search, hot))
    assert works_or_is_refused(search, hot, save(arrays))
    FORGED[name](arrays)
    assert not works_or_is_refused(search, hot, save(arrays))


def test_hot_words_that_are_gone(search: BeamSearch, hot: HotWords) -> None:
    """A state that stands in the tree of hot words is refused where there are none."""
    state = search.step(said("TIM-IT-T"), search.begin(hot))
    search.check_state(state, hot)
    with pytest.raises(StateError, match="its search does not fit this one"):
        search.check_state(state, None)
