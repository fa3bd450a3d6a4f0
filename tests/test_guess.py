"""asr.decoding.guess: words that partial results show before their last sound."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from search_reference import model, phones, random_emissions, small

from asr import Recognizer
from asr.audio import load_audio
from asr.checkpoint import models_folder
from asr.decoding.beam_search import BeamSearch
from asr.decoding.guess import next_word
from asr.decoding.search_state import DEPTH, ENDS, HISTORY, NAME, NODE, SearchState
from asr.decoding.trie import ROOT


@pytest.fixture(scope="module")
def search() -> BeamSearch:
    return small(phones(), model(order=3), True, beam=40, threshold=14.0)


def obvious(search: BeamSearch, state: SearchState, weight: np.ndarray, base: int) -> dict[int, float]:
    """The probability of each word behind ``base``, one hypothesis after the other."""
    history, mass = state.history, {}

    def names(entry: int) -> tuple[int, ...]:
        return tuple(int(history.data[e, NAME]) for e in history.chain(entry))

    before = names(base) if base >= 0 else ()
    for row, one in zip(state.ints, weight, strict=True):
        words = names(int(row[HISTORY])) if row[HISTORY] >= 0 else ()
        if words[: len(before)] != before:
            continue
        if len(words) > len(before):
            mass[words[len(before)]] = mass.get(words[len(before)], 0.0) + one
        elif row[NODE] != ROOT:
            below = search.trie.entries[search.trie.first_below[row[NODE]] :][: search.trie.below[row[NODE]]]
            log_prob, _ = search.scorer.score(np.full(len(below), row[3]), below)
            shares = np.exp(search.config.lm_weight * log_prob)
            for word, part in zip(below.tolist(), (shares / shares.sum()).tolist(), strict=True):
                mass[word] = mass.get(word, 0.0) + one * part
    return mass


@given(st.integers(0, 10_000), st.integers(1, 40), st.sampled_from([2.0, 4.0, 8.0]))
def test_the_word_that_is_most_likely_to_come(search: BeamSearch, seed: int, steps: int, spread: float) -> None:
    import asr.decoding.guess as guess

    state = search.step(random_emissions(seed, steps, 4, spread), search.begin())
    total = search.totals(state)
    weight = np.exp(total - total.max())
    chain = state.history.chain(int(state.ints[int(np.argmax(total)), HISTORY]))
    most, guess.MOST_HYPOTHESES = guess.MOST_HYPOTHESES, 1000
    try:
        for base in [-1, *chain]:
            expected = obvious(search, state, weight, base)
            best = max(expected.values(), default=0.0) / weight.sum()
            found = next_word(search, state, weight, base, 0.3)
            assert (found is not None) == (best >= 0.3) or abs(best - 0.3) < 1e-9
            if found is not None:
                assert expected[found[0]] / weight.sum() == pytest.approx(best)
                assert 0 <= found[1] <= found[2] <= steps
                assert base < 0 or found[1] >= state.history.data[base, ENDS]
    finally:
        guess.MOST_HYPOTHESES = most
    assert state.history.size == 0 or int(state.history.data[:, DEPTH].max()) >= 0


def test_a_search_without_words_yet_goes_on_from_bytes(search: BeamSearch) -> None:
    """Its history has no entries at all."""
    emissions = random_emissions(1, 3, 4, 3.0)
    state = search.step(np.array([[0.0, -40.0, -40.0, -40.0]]), search.begin())
    moved = SearchState.from_bytes(state.to_bytes())
    assert moved.history.size == 0
    assert search.so_far(moved, 0.5) == search.so_far(state, 0.5)
    search.step(emissions, moved), search.step(emissions, state)
    assert search.so_far(moved, 0.5) == search.so_far(state, 0.5)


@pytest.mark.slow
def test_words_are_shown_earlier_and_the_final_text_is_the_same(
    clips: dict[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not (models_folder() / "en" / "config.json").is_file():
        pytest.skip("models/en is not there: train it, or get it with the repository")
    recognizer = Recognizer.load("en", threads=1)
    when: list[float] = []
    texts: list[str] = []
    for expected in (0.65, 2.0):  # 2.0: never
        monkeypatch.setattr("asr.decoding.beam_search.EXPECTED", expected)
        shown = 0.0
        for clip in clips:
            samples, stream = load_audio(clip), recognizer.stream()
            first: dict[int, float] = {}
            for start in range(0, len(samples), 640):
                for result in stream.feed(samples[start : start + 640]):
                    for place in range(len(result.text.split())):
                        first.setdefault(place, stream.duration)
            texts.append(" ".join(r.text for r in stream.finish()))
            shown += sum(first.values())
        when.append(shown)
    assert when[0] < when[1]
    assert texts[: len(clips)] == texts[len(clips) :]
