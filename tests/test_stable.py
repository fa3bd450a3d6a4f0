"""Stable means stable: what is said to stay is never taken back, whatever is heard."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
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
from asr.decoding.search_state import HISTORY, NAME, SearchState
from asr.results import Partial, Result
from asr.stream_state import StreamState

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
    st.sampled_from([1.0, 0.95, 0.6]),
)
def test_stable_words_never_change(
    kind: str,
    seed: int,
    spread: float,
    levels: int,
    size: int,
    with_lm: bool,
    recombine: bool,
    with_hot: bool,
    commit: float,
) -> None:
    """Over random emissions, across commits: the first ``stable`` words stay, more become stable, and every end begins
    with them."""
    search = searched(kind, with_lm, recombine, beam=12, tokens=3, threshold=8.0, blank_skip=0.9, commit=commit)
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


Texts = list[tuple[int, ...]]


def texts(state: SearchState) -> Texts:
    """What every hypothesis has said."""
    names = [word for word, _, _ in state.committed]
    history = state.history
    return [
        (*names, *(int(history.data[e, NAME]) for e in history.chain(int(entry)))) for entry in state.ints[:, HISTORY]
    ]


def shared(said: Texts) -> int:
    """How many of the first words all have."""
    return next(n for n in range(min(map(len, said)), -1, -1) if len({text[:n] for text in said}) == 1)


def agreed(search: BeamSearch, state: SearchState, commit: float) -> tuple[int, Texts]:
    """How many words should be agreed upon, and the hypotheses that should live on: one word after the other."""
    totals, said, count = search.totals(state), texts(state), state.agreed
    best = said[int(totals.argmax())]
    living = [(text, float(np.exp(total - totals.max()))) for text, total in zip(said, totals, strict=True)]
    while count < len(best):
        with_it = [one for one in living if one[0][: count + 1] == best[: count + 1]]
        if sum(weight for _, weight in with_it) < commit * sum(weight for _, weight in living):
            break
        living, count = with_it, count + 1
    return count, [text for text, _ in living]


@settings(deadline=None, max_examples=12)
@given(st.integers(0, 10_000), st.sampled_from([1.0, 0.97, 0.8, 0.6]), st.sampled_from([2.0, 4.0]))
def test_words_are_stable_once_enough_of_the_probability_has_them(seed: int, commit: float, spread: float) -> None:
    """Step by step, beside a search that waits for all hypotheses."""
    search = searched("phones", True, True, beam=20, threshold=9.0, commit=commit)
    patient = searched("phones", True, True, beam=20, threshold=9.0)
    state = search.begin()
    for emissions in random_emissions(seed, 60, 4, spread)[:, None]:
        waiting = patient.step(emissions, state.clone())
        assert waiting.agreed == shared(texts(waiting))
        expected = agreed(search, waiting, commit)
        search.step(emissions, state)
        assert (search.stable(state), texts(state)) == expected
    assert search.stable(state) > 5 or commit == 1.0


def test_words_are_stable_the_earlier_the_less_is_asked_for() -> None:
    emissions, when = random_emissions(5, 80, 4, 3.0), []
    for commit in (1.0, 0.95, 0.7):
        search = searched("phones", True, True, beam=30, threshold=9.0, commit=commit)
        state, sooner = search.begin(), 0
        for step in emissions[:, None]:
            sooner += search.stable(search.step(step, state))
        when.append(sooner)
    assert when[0] < when[1] < when[2]


@settings(deadline=None, max_examples=8)
@given(st.integers(0, 10_000), st.sampled_from(sorted(KINDS)), st.integers(1, 9), st.sampled_from([0, 2]))
def test_what_is_agreed_depends_neither_on_pieces_nor_on_company(seed: int, kind: str, size: int, levels: int) -> None:
    search = searched(kind, True, True, beam=12, tokens=3, threshold=8.0, blank_skip=0.9, commit=0.8)
    emissions = [random_emissions(seed + i, 30 + 9 * i, len(search.vocabulary), 3.0, levels) for i in range(4)]
    alone = [search.step(e, search.begin()) for e in emissions]
    together = [search.begin() for _ in emissions]
    for start in range(0, 70, size):
        search.step_many([(e[start : start + size], s) for e, s in zip(emissions, together, strict=True)])
    for a, b in zip(alone, together, strict=True):
        assert a.agreed == b.agreed and texts(a) == texts(b)
        assert [h.text for h in search.end_nbest(a, 5)] == [h.text for h in search.end_nbest(b, 5)]


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


@pytest.mark.parametrize("options", [{}, {"hotwords": [("see", 4.0)]}, {"alternatives": 3}])
def test_a_stream_that_commits_early_never_takes_back_stable_text(
    tiny: Recognizer, tiny_path: Path, options: dict[str, Any]
) -> None:
    """And has more of it than one that waits for all hypotheses; parked and resumed on the way, it says the same."""
    config, audio = tiny.folder.config.search, babble(9, seed=3)
    said: list[list[Result]] = []
    for commit, parked in ((1.0, False), (0.8, False), (0.8, True)):
        recognizer = Recognizer.load(tiny_path, search=replace(config, commit=commit))
        stream, results = recognizer.stream(**options), []
        for start in range(0, len(audio), 1600):
            results += stream.feed(audio[start : start + 1600])
            if parked:
                stream = recognizer.stream(state=StreamState.from_bytes(stream.state.to_bytes()))
        said.append(results + stream.finish())
    patient, early, moved = (check_results(results) for results in said)
    assert early > patient and moved >= early
    finals = [[r for r in results if isinstance(r, Segment)] for results in said]
    assert finals[1] == finals[2]


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
