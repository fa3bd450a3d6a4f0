"""A recurrent language model within the search: against its definition, in any company, cut anywhere, parked."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from search_reference import EXACT, TEXTS, WORDS, lexicon, model, phones, random_emissions
from tiny_model import babble, tiny_folder

from asr import Recognizer
from asr.checkpoint import RECURRENT, find_model, read_config, update_config
from asr.decoding.beam_search import BeamSearch
from asr.decoding.hot_words import HotWord
from asr.decoding.hypothesis import Hypothesis
from asr.decoding.rescorer import Asked
from asr.decoding.search_config import SearchConfig
from asr.decoding.search_state import SearchState
from asr.errors import LanguageModelError, StateError
from asr.inference import PRECISION, PRECISIONS, supports
from asr.lm import recurrent
from asr.lm.recurrent import RecurrentConfig, RecurrentModel
from asr.stream_state import StreamState
from asr.vocabulary import BpeVocabulary

SEARCH: dict[str, Any] = {"beam": 40, "lm_weight": 1.0, "second_share": 0.4, "second_margin": 6.0, "blank_skip": 1.0}
UNITS = len(phones())


def second_model(
    texts: Sequence[str] = TEXTS, hidden: int = 32, seed: int = 0, normalised: bool = False
) -> RecurrentModel:
    """With random weights: what it finds likely is arbitrary, but all it heard counts."""
    pieces = BpeVocabulary.train(texts, 60)
    config, rng = RecurrentConfig(16, hidden, normalised), np.random.default_rng(seed)
    weights = {name: rng.normal(0, 0.6, shape) for name, shape in config.shapes(len(pieces)).items()}
    return RecurrentModel(config, pieces, weights)


def search_with(
    second: RecurrentModel | None = None, recombine: bool = True, precision: str = PRECISION, **config: Any
) -> BeamSearch:
    settings, second = SearchConfig(**{**SEARCH, **config}), second or second_model()
    return BeamSearch(phones(), lexicon(), model(), settings, recombine=recombine, second=second, precision=precision)


def names(hypothesis: Hypothesis) -> tuple[str, ...]:
    return tuple(word.text for word in hypothesis.words)


def judged(search: BeamSearch, second: RecurrentModel, text: Sequence[str]) -> float:
    """What the second model adds to the score of a text, by the definition."""
    share, context, added = search.config.second_share, np.array([search.scorer.begin]), 0.0
    ids = [second.pieces.encode(" ".join(text[:n])) for n in range(len(text) + 1)]
    logits, sums = zip(*(second.piece_logits(np.array(one)) for one in ids), strict=True)
    before = [
        (a - (0 if second.config.normalised else b)).sum() / np.log(10) for a, b in zip(logits, sums, strict=True)
    ]
    for word, (a, b) in zip(text, pairwise(before), strict=True):
        first, context = search.scorer.score(context, np.array([search.words.index(word)]))
        added += float(np.log10((1 - share) * 10 ** first[0] + share * 10 ** (b - a)) - first[0])
    return search.config.lm_weight * added


@pytest.mark.parametrize("precision, close", [("fp32", 1e-4), (PRECISION, 0.15)])
@pytest.mark.parametrize("share, normalised", [(0.3, False), (1.0, False), (0.3, True)])
def test_scores_are_those_of_the_definition(share: float, normalised: bool, precision: str, close: float) -> None:
    second = second_model(normalised=normalised)
    settings = {**EXACT, "second_share": share, "second_margin": 2e3, "lm_weight": 0.9}
    plain = search_with(second, recombine=False, **{**settings, "second_share": 0.0})
    search = search_with(second, recombine=False, precision=precision, **settings)
    emissions = random_emissions(3, 5, UNITS)
    by_grams = {names(h): h.score for h in plain.end_nbest(plain.step(emissions, plain.begin()), 10_000)}
    found = search.end_nbest(search.step(emissions, search.begin()), 10_000)
    assert len(found) == len(by_grams) > 30
    for hypothesis in found:
        text = names(hypothesis)
        assert hypothesis.score == pytest.approx(by_grams[text] + judged(search, second, text), abs=close), text
    order = sorted(by_grams, key=lambda text: -by_grams[text])
    assert [names(h) for h in found] != order  # it matters


def test_words_far_behind_are_left_to_the_ngrams() -> None:
    emissions = random_emissions(5, 30, UNITS)
    plain, never = search_with(second_share=0.0), search_with(second_margin=1e-9, threshold=25.0)
    scores = [s.end(s.step(emissions, s.begin())).score for s in (plain, never)]
    some, most = search_with(second_margin=3.0), search_with(second_margin=25.0)
    assert never._rescorer and some._rescorer and most._rescorer
    counts = []
    for search in (never, some, most):
        state = search.step(emissions, search.begin())
        counts.append(len(state.texts))
    assert counts[0] < counts[1] < counts[2]
    assert scores[1] == pytest.approx(scores[0], abs=1.0)


@pytest.mark.parametrize("precision", [p for p in PRECISIONS if p != "fp32" and supports(p)])
def test_no_cut_and_no_company_changes_a_bit(precision: str) -> None:
    search, emissions = search_with(precision=precision), random_emissions(11, 90, UNITS)
    whole = search.step(emissions, search.begin())
    cut, rest = search.begin(), emissions
    others = [search.begin() for _ in range(6)]
    for size in (1, 2, 7, 20, 60):
        piece, rest = rest[:size], rest[size:]
        search.step_many(
            [(piece, cut), *((random_emissions(size + i, 1 + 3 * i, UNITS), o) for i, o in enumerate(others))]
        )
    assert np.array_equal(cut.scores, whole.scores) and np.array_equal(cut.ints, whole.ints)
    assert [h.score for h in search.end_nbest(cut, 9)] == [h.score for h in search.end_nbest(whole, 9)]


def test_a_parked_search_goes_on_to_the_bit() -> None:
    search, emissions = search_with(), random_emissions(12, 400, UNITS)
    state, moved = search.begin(), search.begin()
    for piece in np.split(emissions, 8):
        state, moved = search.step(piece, state), search.step(piece, moved)
        moved = SearchState.from_bytes(moved.to_bytes())
        assert len(moved.texts) == 1  # all else can be computed again
        search.check_state(moved, None)
        assert np.array_equal(state.scores, moved.scores)
    assert state.root == moved.root != 0
    assert search.end(state).score == search.end(moved).score


def test_what_is_remembered_does_not_grow() -> None:
    search, state, sizes = search_with(), search_with().begin(), []
    for seed in range(12):
        search.step(random_emissions(seed, 160, UNITS), state)
        sizes.append(len(state.texts))
    assert max(sizes[4:]) <= 2 * max(sizes[:4]) and state.nbytes < 2e6


def test_a_copy_goes_its_own_way() -> None:
    search, emissions = search_with(), random_emissions(13, 40, UNITS)
    state = search.step(emissions, search.begin())
    known = set(state.texts)
    search.step(random_emissions(14, 100, UNITS), state.clone())
    assert set(state.texts) == known


def test_states_of_other_searches_are_refused() -> None:
    with_it, without = search_with(), search_with(second_share=0.0)
    wider = search_with(second_model(hidden=48))
    state = with_it.step(random_emissions(1, 20, UNITS), with_it.begin())
    for other in (without, wider):
        with pytest.raises(StateError):
            other.check_state(state, None)
    with pytest.raises(StateError):
        with_it.check_state(without.step(random_emissions(1, 20, UNITS), without.begin()), None)
    data = state.to_bytes()
    unknown = SearchState.from_bytes(data)
    unknown.texts[unknown.root].last = 10_000
    with pytest.raises(StateError):
        with_it.check_state(unknown, None)
    broken = state.clone()
    broken.texts[broken.root].h[:] = float("nan")
    with pytest.raises(ValueError, match="no language model"):
        SearchState.from_bytes(broken.to_bytes())
    assert len(SearchState.from_bytes(data).texts) == 1


def test_without_weight_it_is_not_asked() -> None:
    search, emissions = search_with(), random_emissions(2, 40, UNITS)
    assert len(search.step(emissions, search.begin(lm_scale=0.0)).texts) == 1


def test_words_of_a_session_and_letters_that_no_piece_has() -> None:
    search = search_with()
    hot = search.hot_words(
        [HotWord("tea", 3.0), HotWord("motif", 8.0)], pronouncer=lexicon({**WORDS, "motif": ["M T IY"]})
    )
    state = search.step(random_emissions(8, 60, UNITS), search.begin(hot))
    assert all(np.isfinite(text.own) for text in state.texts.values())
    assert search._rescorer
    number = len(search.words) + 5
    rescorer = search._rescorer
    rescorer._name = lambda state, word: "çà"  # type: ignore[assignment]
    assert rescorer.judge([Asked(state, 1, state.root, -1, number)], len(search.words)) == [-6.0]
    assert state.texts[1].last == state.texts[state.root].last


def test_what_was_said_counts_in_the_next_segment() -> None:
    second, settings = second_model(), {**EXACT, "second_margin": 2e3, "second_share": 1.0, "lm_weight": 1.0}
    search = search_with(second, precision="fp32", **settings)
    state = search.step(random_emissions(3, 40, UNITS), search.begin())
    words = [word.text for word in search.end(state).words]
    assert len(words) > 3
    said = search.said(state, words)
    assert said and search._rescorer
    ends = search.looks_final(state)
    after = search.begin(said=said)
    number = search.words.index("meat")
    found = search._rescorer.judge([Asked(after, 1, after.root, -1, number)], len(search.words))[0]
    expected = second.score(["meat"], second.advance(" ".join(words), second.begin(), end=ends))[0]
    assert found == pytest.approx(expected, abs=2e-3)
    assert found != pytest.approx(second.score(["meat"])[0], abs=0.01)
    nothing = search.said(after, ())  # a segment without words changes nothing
    assert nothing and nothing.last == said.last and bool((nothing.h == said.h).all())


# --- in a recogniser ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tiny_folder(tmp_path_factory.mktemp("models") / "second")
    words = list(find_model(path).load_lexicon(with_g2p=False))
    pieces = BpeVocabulary.train(words, 70)
    shape, rng = RecurrentConfig(16, 32), np.random.default_rng(0)
    weights = {name: rng.normal(0, 0.6, size) for name, size in shape.shapes(len(pieces)).items()}
    recurrent.save(RecurrentModel(shape, pieces, weights), path / RECURRENT)
    config = read_config(path)
    update_config(path, replace(config, search=replace(config.search, second_share=0.5)))
    return path


def test_a_model_folder_may_have_one(folder: Path) -> None:
    with_it = Recognizer.load(folder, threads=1)
    assert isinstance(with_it.search, BeamSearch) and with_it.search._rescorer
    without = Recognizer.load(folder, threads=1, search=SearchConfig(beam=30))
    assert isinstance(without.search, BeamSearch) and without.search._rescorer is None
    audio = babble(6.0)
    stream, texts = with_it.stream(sample_rate=16000), []
    for start in range(0, len(audio), 4567):
        texts += stream.feed(audio[start : start + 4567])
        stream = with_it.stream(sample_rate=16000, state=StreamState.from_bytes(stream.state.to_bytes()))
    texts += stream.finish()
    assert with_it.transcribe(audio, sample_rate=16000).text == " ".join(
        t.text for t in texts if hasattr(t, "words") and t.text
    )


def test_another_recurrent_model_is_another_model(folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(folder, tmp_path / "other")
    (other / RECURRENT).unlink()
    update_config(other, read_config(other))
    assert find_model(other).fingerprint != find_model(folder).fingerprint
    assert find_model(other).load_recurrent() is None
    (other / RECURRENT).write_bytes(b"nothing")
    update_config(other, read_config(other))
    with pytest.raises(LanguageModelError, match="cannot be read"):
        Recognizer.load(other)
