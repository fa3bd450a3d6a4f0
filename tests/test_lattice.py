"""asr.decoding.lattice: alternatives that recombination would forget, at no change of what is best."""

import itertools
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save
from search_reference import model, phones, random_emissions, small
from tiny_model import babble

from asr import Recognizer, Segment
from asr.decoding.beam_search import BeamSearch
from asr.decoding.hot_words import HotWord, HotWords
from asr.decoding.lattice import MOST_ARCS, paths, settle
from asr.decoding.search_state import Arcs, Block, History, SearchState
from asr.stream_state import StreamState

PHRASES = [HotWord("team", 4.0), HotWord("it me", 3.0)]


@pytest.fixture(scope="module")
def search() -> BeamSearch:
    return small(phones(), model(order=3), True, beam=40, threshold=14.0, blank_skip=0.9)


def remembering(search: BeamSearch, hot: HotWords | None = None) -> SearchState:
    return search.begin(hot, remember=True)


# --- the parts ------------------------------------------------------------------------------------------------------


def test_paths_replace_what_was_said_before_a_text() -> None:
    """Words 0 1 2 were said; 3 could stand for 0, and 4 5 for 0 1, and 6 for 3 in turn."""
    history = History()
    history.append(
        np.array([(-1, 0, 0, 1), (0, 1, 2, 3), (1, 2, 4, 5), (-1, 3, 0, 1), (-1, 4, 0, 1), (4, 5, 1, 4), (-1, 6, 0, 0)],
                 dtype=np.int32),
        np.array([10, 11, 12, 13, 14, 15, 16], dtype=np.uint64),
    )  # fmt: skip
    arcs = Arcs(np.array([10, 11, 13], np.uint64), np.array([3, 5, 6], np.int32), np.array([-1.0, -4.0, -0.5]))
    found = paths(history, arcs, [(-5.0, 2)], 10)
    assert [(score, [w for w, _, _ in words]) for score, words in found] == [
        (-5.0, [0, 1, 2]), (-6.0, [3, 1, 2]), (-6.5, [6, 1, 2]), (-9.0, [4, 5, 2])
    ]  # fmt: skip
    assert found[3][1] == [(4, 0, 1), (5, 1, 3), (2, 4, 5)], "a word ends before the next one begins"
    assert paths(history, arcs, [(-5.0, 2)], 2) == found[:2]


def test_a_cycle_of_arcs_comes_to_an_end() -> None:
    """Only a forged state has one."""
    history = History()
    history.append(np.array([(-1, 0, 0, 0), (0, 1, 1, 1)], np.int32), np.array([1, 2], np.uint64))
    arcs = Arcs(np.array([1, 2], np.uint64), np.array([1, 0], np.int32), np.zeros(2))
    assert len(paths(history, arcs, [(0.0, 1)], 20)) <= 20


def test_arcs_are_the_same_however_they_come() -> None:
    rng = np.random.default_rng(1)
    blocks = []
    for _ in range(6):
        n = int(rng.integers(1, 40))
        words = np.stack([np.full(n, -1), rng.integers(0, 9, n), np.zeros(n), np.zeros(n)], axis=1).astype(np.int32)
        keys = rng.integers(0, 5, (n, 2)).astype(np.uint64)
        keys[:, 1] += np.uint64(100) + 20 * words[:, 1].astype(np.uint64)
        blocks.append(Block(words, keys, -rng.random(n)))
    whole, parts = History(), History()
    at_once = settle(whole, Arcs(), blocks)
    bit_by_bit = Arcs()
    for block in blocks:
        bit_by_bit = settle(parts, bit_by_bit, [block])
    for history, arcs in ((whole, at_once), (parts, bit_by_bit)):
        assert len(arcs) == 5 * MOST_ARCS
        texts = set(zip(arcs.texts.tolist(), history.hashes[arcs.entries].tolist(), strict=True))
        assert len(texts) == len(arcs)
    assert (at_once.texts == bit_by_bit.texts).all() and (at_once.behind == bit_by_bit.behind).all()
    assert (whole.hashes[at_once.entries] == parts.hashes[bit_by_bit.entries]).all()
    few = settle(History(), Arcs(), blocks, np.array([3], np.uint64))
    assert set(few.texts.tolist()) == {3} and (few.behind == at_once.behind[at_once.texts == 3]).all()


# --- beside a search that forgets nothing ---------------------------------------------------------------------------


def test_alternatives_are_those_of_a_search_without_recombination(search: BeamSearch) -> None:
    """Of the ten best texts most are found, with about their scores; without arcs far fewer."""
    every = small(phones(), model(order=3), False, beam=5000, threshold=40.0, blank_skip=0.9)
    found, forgotten, off = 0, 0, []
    for seed in range(10):
        emissions = random_emissions(seed, 18, 4, 3.0)
        exact = {h.text: h.score for h in every.end_nbest(every.step(emissions, every.begin()), 10)}
        ours = search.alternatives(search.step(emissions, remembering(search)), 10)
        theirs = search.alternatives(search.step(emissions, search.begin()), 10)
        found += sum(h.text in exact for h in ours)
        forgotten += sum(h.text in exact for h in theirs)
        off += [h.score - exact[h.text] for h in ours if h.text in exact]
    assert found >= 75 and forgotten <= 0.7 * found
    assert np.median(np.abs(off)) < 0.3 and max(off) < 1.0


@settings(deadline=None, max_examples=8)
@given(st.integers(0, 10_000), st.booleans())
def test_what_is_best_stays_the_same_in_every_bit(search: BeamSearch, seed: int, with_hot: bool) -> None:
    emissions = random_emissions(seed, 120, 4, 3.0)
    emissions[40:50, 0] = -0.01
    hot = search.hot_words(PHRASES) if with_hot else None
    ours, theirs = (search.step(emissions, search.begin(hot, remember=r)) for r in (True, False))
    assert search.end_nbest(ours, 10) == search.end_nbest(theirs, 10) == search.alternatives(theirs, 10)
    assert search.alternatives(ours, 10)[0] == search.end(theirs)
    assert search.best(ours) == search.best(theirs) and search.stable(ours) == search.stable(theirs)
    assert not theirs.lost and not len(theirs.arcs)
    assert (ours.scores == theirs.scores).all() and (ours.hashes == theirs.hashes).all()
    assert ours.committed == theirs.committed


@settings(deadline=None, max_examples=6)
@given(st.integers(0, 10_000), st.booleans())
def test_what_ends_by_agreement_is_remembered(seed: int, with_hot: bool) -> None:
    """The best result is the same with arcs and without; alternatives differ from it in words agreed upon, too."""
    search = small(phones(), model(order=3), True, beam=40, threshold=14.0, blank_skip=0.9, commit=0.8)
    emissions = random_emissions(seed, 60, 4, 3.0)
    hot = search.hot_words(PHRASES) if with_hot else None
    ours, theirs = (search.step(emissions, search.begin(hot, remember=r)) for r in (True, False))
    assert search.end_nbest(ours, 10) == search.end_nbest(theirs, 10)
    assert (ours.scores == theirs.scores).all() and (ours.hashes == theirs.hashes).all() and not theirs.lost
    found = search.alternatives(ours, 10)
    assert found[0] == search.end(theirs) and len({h.text for h in found}) == len(found) == 10
    scores = [h.score for h in found]
    assert scores == sorted(scores, reverse=True)
    stable = tuple(w.text for w in found[0].words[: search.stable(ours)])
    assert len(stable) > 5
    assert any(tuple(w.text for w in h.words[: len(stable)]) != stable for h in found)
    for hypothesis in found:
        assert all(a.last < b.first for a, b in zip(hypothesis.words, hypothesis.words[1:], strict=False))


# --- invariants -----------------------------------------------------------------------------------------------------


def test_streaming_equals_offline_alone_in_company_and_saved(search: BeamSearch) -> None:
    rng = random.Random(2)
    emissions = [random_emissions(i, n, 4, 3.0) for i, n in enumerate((130, 90, 1, 160))]
    for e in emissions:
        e[20:40, 0] = -0.01
    alone = [search.step(e, remembering(search)) for e in emissions]
    together = [remembering(search) for _ in emissions]
    search.step_many(list(zip(emissions, together, strict=True)))
    cut = [remembering(search) for _ in emissions]
    for i, e in enumerate(emissions):
        at = 0
        while at < len(e):
            n = rng.choice((1, 3, 10, 31))
            search.step(e[at : at + n], cut[i])
            at += n
            if rng.random() < 0.2:
                cut[i] = SearchState.from_bytes(cut[i].to_bytes())
            elif rng.random() < 0.2:
                search.alternatives(cut[i], 5)
    lists = [[search.alternatives(s, 10) for s in states] for states in (alone, together, cut)]
    assert lists[0] == lists[1] == lists[2]
    assert all(len(found) == 10 for found in lists[0][:2])


def test_alternatives_differ_and_their_words_are_in_order(search: BeamSearch) -> None:
    for seed in range(5):
        state = search.step(random_emissions(seed, 150, 4, 3.0), remembering(search))
        found = search.alternatives(state, 20)
        assert len({h.text for h in found}) == len(found) == 20
        assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)
        for h in found:
            assert all(0 <= w.first <= w.last < state.steps for w in h.words)
            assert all(a.last <= b.first for a, b in itertools.pairwise(h.words))


def test_memory_is_bounded(search: BeamSearch) -> None:
    state, most = remembering(search), []
    for seed in range(40):
        search.step(random_emissions(seed, 50, 4, 3.0), state)
        most.append((len(state.settled().arcs), state.history.size))
    arcs, entries = np.array(most).T
    assert arcs[20:].max() <= 1.5 * arcs[5:20].max() and entries[20:].max() <= 1.5 * entries[5:20].max()


@pytest.mark.parametrize(("name", "value"), [("arc_entries", 10**6), ("arc_entries", -1), ("arcs_behind", 1.0)])
def test_forged_arcs_are_refused(search: BeamSearch, name: str, value: float) -> None:
    arrays = load(search.step(random_emissions(1, 60, 4, 3.0), remembering(search)).to_bytes())
    assert len(arrays[name])
    arrays[name][0] = value
    with pytest.raises(ValueError, match="alternatives that cannot be"):
        SearchState.from_bytes(save(arrays))


def test_a_session_gets_as_many_as_it_asks_for(tiny: Recognizer) -> None:
    """And whoever asks for none gets the same words."""
    audio = babble(6, seed=3)
    plain, stream = tiny.stream(partials=False), tiny.stream(partials=False, alternatives=8)
    expected = plain.feed(audio) + plain.finish()
    begun = stream.feed(audio[:50_000])
    stream = tiny.stream(partials=False, state=StreamState.from_bytes(stream.state.to_bytes()))
    segments = [r for r in begun + stream.feed(audio[50_000:]) + stream.finish() if isinstance(r, Segment)]
    assert [replace(s, alternatives=()) for s in segments] == expected
    assert max(len(s.alternatives) for s in segments) == 8
    for s in segments:
        assert len({s.text, *(a.text for a in s.alternatives)}) == 1 + len(s.alternatives)
        for words in (s.words, *(a.words for a in s.alternatives)):
            assert all(a.end <= b.start for a, b in itertools.pairwise(words))
