"""Stable means stable: what is said to stay is never taken back, whatever is heard."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from search_reference import LETTER_TEXTS, LETTER_WORDS, letters, model, phones, pieces, random_emissions, small
from tiny_model import babble

from asr import Recognizer, Segment
from asr.decoding.beam_search import BeamSearch
from asr.decoding.hot_words import HotWord
from asr.results import Partial, Result

KINDS = {"phones": phones, "characters": letters, "bpe": pieces}


def searched(kind: str, with_lm: bool, recombine: bool, **config: Any) -> BeamSearch:
    texts = (LETTER_TEXTS, 3, LETTER_WORDS) if kind != "phones" else ()
    return small(KINDS[kind](), model(*texts) if with_lm else None, recombine, **config)


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=10)
@given(
    st.integers(0, 10_000),
    st.sampled_from([1.0, 3.0, 8.0]),
    st.sampled_from([0, 2]),
    st.integers(1, 12),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_stable_words_never_change(
    kind: str, seed: int, spread: float, levels: int, size: int, with_lm: bool, recombine: bool, with_hot: bool
) -> None:
    """Over random emissions, across commits: the first ``stable`` words stay, more become stable, and every end begins
    with them."""
    search = searched(kind, with_lm, recombine, beam=12, tokens=3, threshold=8.0, blank_skip=0.9)
    hot = search.hot_words([HotWord("team" if kind == "phones" else "mee me", 4.0)]) if with_hot else None
    state, known = search.begin(hot), ()
    emissions = random_emissions(seed, 140, len(search.vocabulary), spread, levels)
    for start in range(0, len(emissions), size):
        state = search.step(emissions[start : start + size], state)
        words, stable = [w.text for w in search.best(state).words], search.stable(state)
        assert len(known) <= stable <= len(words)
        assert tuple(words[: len(known)]) == known
        known = tuple(words[:stable])
        for hypothesis in search.end_nbest(state, 3):
            assert tuple(w.text for w in hypothesis.words)[: len(known)] == known
    assert [w.text for w in search.end(state).words][: len(known)] == list(known)
    assert len(known) > 0 or spread == 1.0 or levels


def test_committed_words_keep_their_times() -> None:
    search = searched("phones", True, True, beam=12, threshold=8.0)
    state, before = search.begin(), ()
    emissions = random_emissions(3, 400, len(search.vocabulary), 3.0)
    for start in range(0, len(emissions), 10):
        state = search.step(emissions[start : start + 10], state)
        words = search.best(state).words
        assert words[: len(before)] == before
        before = words[: len(state.committed)]
    assert len(before) > 20 and search.end(state).words[: len(before)] == before


def check_results(results: Iterable[Result]) -> int:
    """Every text of a segment begins with what was stable in it before; how many stable words there were."""
    stable, segment, seen = "", 0, 0
    for result in results:
        if isinstance(result, Segment):
            assert (result.text + " ").startswith(stable + " " if stable else "")
            stable, segment = "", result.index + 1
        else:
            assert isinstance(result, Partial) and result.segment == segment
            assert (result.text + " ").startswith(stable + " " if stable else "")
            assert (result.stable + " ").startswith(stable + " " if stable else "")
            stable = result.stable
            seen += len(stable.split())
    return seen


@pytest.mark.parametrize("options", [{}, {"lm": False}, {"hotwords": [("see", 4.0)]}, {"endpointing": False}])
@pytest.mark.parametrize("seed", [1, 2])
def test_partials_of_a_stream_never_take_back_stable_text(tiny: Recognizer, options: dict[str, Any], seed: int) -> None:
    stream, audio = tiny.stream(**options), babble(9, seed=seed)
    results = [r for start in range(0, len(audio), 1600) for r in stream.feed(audio[start : start + 1600])]
    assert check_results(results + stream.finish()) > 20


def test_the_check_sees_what_is_taken_back() -> None:
    def said(stable: str, unstable: str) -> Partial:
        return Partial(0, 0.0, 1.0, stable, unstable)

    assert check_results([said("a", "b"), said("a b", "")]) == 3
    with pytest.raises(AssertionError):
        check_results([said("a", "b"), said("", "c")])
    with pytest.raises(AssertionError):
        check_results([said("a b", ""), said("a", "bc")])


def test_nothing_is_stable_at_the_start() -> None:
    search = searched("phones", True, True)
    assert search.stable(search.begin()) == 0
    assert search.stable(search.step(np.full((1, 4), np.log(0.25), np.float32), search.begin())) == 0
