"""asr.decoding.beam_search against sums over all alignments and all word sequences of a tiny lexicon, and against
itself: in company, in pieces, for ever."""

import itertools
import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from search_reference import (
    COSTS,
    EXACT,
    LETTER_TEXTS,
    LETTER_WORDS,
    TEXTS,
    WORDS,
    letters,
    lexicon,
    model,
    phones,
    pieces,
    random_emissions,
    reference,
    said,
    small,
    whole,
)
from tiny_model import PHONES as TINY_PHONES
from tiny_model import SENTENCES, babble, log_mel

import asr.decoding.lockstep as module
from asr import Recognizer, lm
from asr.decoding.beam_search import BeamSearch
from asr.decoding.hot_words import HotWord
from asr.decoding.hypothesis import Hypothesis
from asr.decoding.search_config import SearchConfig
from asr.decoding.search_state import KEPT_STEPS, SearchState
from asr.errors import LexiconError
from asr.lexicon import Lexicon
from asr.recognizer import Stream, _decode_many, _without_last_word
from asr.results import Segment
from asr.vocabulary import PhoneVocabulary, Vocabulary

KINDS: dict[str, Callable[[], Vocabulary]] = {"phones": phones, "characters": letters, "bpe": pieces}


def model_of(kind: str, order: int = 2) -> lm.NgramModel:
    return model(order=order) if kind == "phones" else model(LETTER_TEXTS, order, LETTER_WORDS)


@pytest.fixture(scope="module")
def narrow() -> BeamSearch:
    """The search as it is used: a beam that prunes, recombination, steps that are left out."""
    return small(phones(), model(), True, beam=12, tokens=3, threshold=8.0, blank_skip=0.9)


# --- exact on small cases -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", [0, 1, 2, 3, 4])
@settings(deadline=None, max_examples=5)
@given(st.integers(0, 10_000), st.integers(1, 5), st.sampled_from([0.5, 2.0, 5.0]))
def test_every_score_is_the_sum_over_all_alignments(
    kind: str, order: int, seed: int, steps: int, spread: float
) -> None:
    """All word sequences that can be heard, their scores, and which is the best; with and without language model."""
    language_model = model_of(kind, order) if order else None
    search = small(KINDS[kind](), language_model, costs=COSTS if kind == "phones" else None)
    emissions = random_emissions(seed, steps, len(search.vocabulary), spread)
    expected = reference(search, emissions, language_model)
    found = search.end_nbest(search.step(emissions, search.begin()), 10_000)
    assert {tuple(h.text.split()) for h in found} == set(expected)
    for hypothesis in found:
        assert hypothesis.score == pytest.approx(expected[tuple(hypothesis.text.split())], abs=1e-6)
    assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)


def test_the_cases_are_not_trivial() -> None:
    emissions = random_emissions(1, 5, 4)
    assert len(reference(small(), emissions, model())) > 50
    assert len(reference(small(letters()), emissions)) > 5


@settings(deadline=None, max_examples=6)
@given(st.integers(0, 10_000), st.sampled_from([0.0, 1.0]))
def test_priors_and_the_weight_of_the_language_model(seed: int, lm_scale: float) -> None:
    priors = np.log(np.array([0.7, 0.1, 0.15, 0.05], np.float32))
    search = small(phones(), model(), priors=priors, prior_weight=0.6)
    emissions = random_emissions(seed, 4, 4)
    expected = reference(search, emissions, model(), lm_scale)
    found = whole(search, emissions, lm_scale=lm_scale)
    assert expected[tuple(found.text.split())] == pytest.approx(max(expected.values()), abs=1e-6)
    assert found.score == pytest.approx(max(expected.values()), abs=1e-6)


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 10_000), st.sampled_from(sorted(KINDS)))
def test_recombination_only_ever_loses_mass(seed: int, kind: str) -> None:
    """Of hypotheses with the same future the better one lives on: no score rises, and the best is the same where it
    is far ahead."""
    search = small(KINDS[kind](), model_of(kind), True)
    emissions = random_emissions(seed, 5, len(search.vocabulary), 5.0)
    expected = reference(search, emissions, model_of(kind))
    found = whole(search, emissions)
    ranked = sorted(expected.values(), reverse=True)
    assert found.score <= expected[tuple(found.text.split())] + 1e-6
    if ranked[0] - ranked[1] > 2.0:
        assert expected[tuple(found.text.split())] == ranked[0]


@pytest.mark.parametrize("form", ["pruned", "quantised"])
def test_smaller_language_models(form: str, tmp_path: Any) -> None:
    """Exact with the model that it was given, and near to what the full one says."""
    full = model(order=3)
    if form == "pruned":
        given_model = lm.prune(full, max_ngrams=sum(full.counts[1:]) // 2)
        assert sum(given_model.counts[1:]) < sum(full.counts[1:])
    else:
        lm.save(full, tmp_path / "words.lm")
        given_model = lm.load(tmp_path / "words.lm")
    search, of_full = small(phones(), given_model), small(phones(), full)
    agree = 0
    for seed in range(6):
        emissions = random_emissions(seed, 5, 4)
        expected = reference(search, emissions, given_model)
        found = whole(search, emissions)
        assert expected[tuple(found.text.split())] == pytest.approx(max(expected.values()), abs=1e-6)
        agree += found.text == whole(of_full, emissions).text
    assert agree >= 4


# --- words ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "text"),
    [
        ("TI-MI", "tea me"),
        ("-T-I--M-I-", "tea me"),
        ("TTIIMMIIII", "tea me"),  # phones of several steps, also at the end of words
        ("TIM-MI", "team me"),  # the same phone on both sides of a word boundary
        ("TIM--MMII", "team me"),
        ("MIT-TI", "meat tea"),
        ("MI-TTI", "me tea"),
        ("I-I", "e e"),
        ("IIII", "e"),
        ("MT", "it"),
        ("MI-MI-MI", "me me me"),
        ("MIMIMI", "me me me"),
    ],
)
@pytest.mark.parametrize("skip", [0.9, 1.0])
def test_clear_speech(steps: str, text: str, skip: float) -> None:
    search = small(phones(), model(), True, lm_weight=0.2, blank_skip=skip)
    assert whole(search, said(steps)).text.replace("tee", "tea") == text


@pytest.mark.parametrize("steps", ["me-e me", "mme-ee  -mee", "me-e- - -me", " me-e me ", "me-e me-"])
def test_letters_have_the_space_between_words(steps: str) -> None:
    search = small(letters(), model_of("characters"), True, lm_weight=0.2)
    found = whole(search, said(steps, 0.97, "-em "))
    assert found.text == "mee me"
    firsts = [0, 5] if steps[0] == "m" else [1, 6]
    if len(steps) == 7:
        assert [w.first for w in found.words] == firsts


@pytest.mark.parametrize("steps", ["me", "me ", "me  ", "e-e me", "em"])
def test_words_of_letters_end_inside_the_segment(steps: str) -> None:
    """The last word ends although no space follows it; never after the last step."""
    search = small(letters(), None, True)
    found = whole(search, said(steps, 0.97, "-em "))
    assert found.words and all(0 <= w.first <= w.last < len(steps) for w in found.words)


def test_pieces_begin_words() -> None:
    search = small(pieces(), model_of("bpe"), True, lm_weight=0.2)
    units = "-uEeMm"  # _m, _e, e, _me, m
    assert whole(search, said("M-E", 0.97, units)).text == "me e"
    assert whole(search, said("M-eM", 0.97, units)).text == "mee me"
    assert whole(search, said("E-Emu", 0.97, units)).text == "e em m"


def test_a_last_phone_of_several_steps_costs_nothing() -> None:
    search = small(phones(), model())
    short, long = whole(search, said("TI-", 0.999)), whole(search, said("TIIII-", 0.999))
    assert (short.text, long.text) == ("tea", "tea")
    assert long.score == pytest.approx(short.score, abs=0.02)
    assert whole(search, said("TIIII", 0.999)).score == pytest.approx(short.score, abs=0.02)


def test_times_are_steps_of_the_phones(narrow: BeamSearch) -> None:
    (tea, me) = whole(narrow, said("--TTI---MI-")).words
    assert (tea.text, me.text) == ("tea", "me")
    assert 2 <= tea.first <= 3 and (tea.last, me.first, me.last) == (4, 8, 9)


def test_an_unfinished_word_is_left_out_until_it_is_one() -> None:
    words = lexicon({"tea": ["T IY"], "me": ["M IY"]})
    search = BeamSearch(phones(), words, None, SearchConfig(beam=100, word_score=0.1))
    state = search.begin()
    for steps, text in [("T", ""), ("I-", "tea"), ("M", "tea"), ("I-", "tea me"), ("T", "tea me")]:
        state = search.step(said(steps), state)
        assert search.best(state).text == text
        assert len(search.best(state).words) >= search.stable(state)


def test_words_of_many_homophones() -> None:
    """Six words stay at a place; the usual ones."""
    names = ["aye", "bye", "cue", "dew", "ewe", "fee", "gee", "hue"]
    texts = [name for i, name in enumerate(names) for _ in range(2**i)]
    same = lexicon({name: ["M IY"] for name in names})
    search = BeamSearch(phones(), same, model(texts, 1, names), SearchConfig(**EXACT))
    found = search.end_nbest(search.step(said("MI"), search.begin()), 8)
    assert [h.text for h in found if len(h.words) == 1] == ["hue", "gee", "fee", "ewe", "dew", "cue"]


def test_equal_scores_are_told_apart_by_their_letters() -> None:
    same = lexicon({name: ["M IY"] for name in ("dew", "cue", "bye", "ewe")})
    search = BeamSearch(phones(), same, None, SearchConfig(beam=100))
    assert [whole(search, said("MI--MI")).text for _ in range(3)] == ["bye bye"] * 3


def test_words_that_the_language_model_does_not_know_are_possible() -> None:
    search = BeamSearch(phones(), lexicon({**WORDS, "mitt": ["M IY T M"]}), model(), SearchConfig(**EXACT))
    assert whole(search, said("MITM", 0.9999)).text == "mitt"


def test_without_a_language_model_the_sound_decides() -> None:
    search = BeamSearch(
        phones(), lexicon({w: WORDS[w] for w in ("tea", "me", "e")}), None, SearchConfig(word_score=-1.0)
    )
    assert whole(search, said("TI-MI")).text == "tea me"


def test_nothing_gives_nothing(narrow: BeamSearch) -> None:
    empty = narrow.begin()
    assert narrow.best(empty) == narrow.end(empty) == Hypothesis((), 0.0)
    assert narrow.stable(empty) == 0 and not narrow.looks_final(empty)
    assert narrow.step(np.zeros((0, 4), np.float32), empty).steps == 0
    assert whole(narrow, said("-----")).words == ()


def test_what_cannot_be_searched() -> None:
    with pytest.raises(LexiconError, match="the lexicon holds no words"):
        BeamSearch(phones(), Lexicon({}), None)
    with pytest.raises(LexiconError, match="phone 'K' is not among the units of this model"):
        BeamSearch(phones(), lexicon({"key": ["K IY"]}), None)


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 10_000), st.sampled_from(sorted(KINDS)))
def test_a_narrow_beam_still_finds_words(seed: int, kind: str) -> None:
    search = small(KINDS[kind](), model_of(kind), True, beam=2, tokens=1, threshold=0.5)
    hypothesis = whole(search, random_emissions(seed, 40, len(search.vocabulary), 5.0))
    assert math.isfinite(hypothesis.score)
    firsts = [w.first for w in hypothesis.words]
    assert firsts == sorted(firsts) and all(0 <= w.first <= w.last <= 40 for w in hypothesis.words)


# --- in pieces and in company ---------------------------------------------------------------------------------------


def same(found: Hypothesis, expected: Hypothesis) -> bool:
    """Text and times exactly, scores but for rounding."""
    return found.words == expected.words and math.isclose(found.score, expected.score, abs_tol=1e-7)


def chunks(emissions: np.ndarray, sizes: list[int]) -> list[np.ndarray]:
    found, start = [], 0
    for size in itertools.cycle(sizes):
        if start >= len(emissions):
            return found
        found.append(emissions[start : start + size])
        start += size
    return found


def with_pauses(seed: int, steps: int, units: int, levels: int = 0) -> np.ndarray:
    """Random emissions with runs of sure blank in them."""
    emissions = random_emissions(seed, steps, units, 3.0, levels)
    rng = np.random.default_rng(seed)
    for start in rng.integers(0, steps, 4).tolist():
        emissions[start : start + int(rng.integers(1, 9)), 0] = -0.01
    return emissions


@settings(deadline=None, max_examples=15)
@given(
    st.integers(0, 10_000),
    st.lists(st.integers(0, 20), min_size=1, max_size=4).filter(any),
    st.sampled_from([0, 2, 3]),
    st.sampled_from(sorted(KINDS)),
)
@example(1, [1], 0, "phones")
@example(2, [3], 2, "characters")
def test_any_chunks_give_the_same(seed: int, sizes: list[int], levels: int, kind: str) -> None:
    """Also the scores, the alternatives, and what is said on the way; also where many hypotheses tie."""
    search = small(KINDS[kind](), model_of(kind), True, beam=12, tokens=3, threshold=8.0, blank_skip=0.9)
    emissions = with_pauses(seed, 60, len(search.vocabulary), levels)
    expected = search.end_nbest(search.step(emissions, search.begin()), 3)
    state, fed = search.begin(), 0
    for piece in chunks(emissions, sizes):
        state, fed = search.step(piece, state), fed + len(piece)
        if fed % 7 == 0:
            assert same(search.best(state), search.best(search.step(emissions[:fed], search.begin())))
    found = search.end_nbest(state, 3)
    assert len(found) == len(expected) and all(map(same, found, expected))
    np.testing.assert_array_equal(state.array(len(search.vocabulary)), emissions)


@settings(deadline=None, max_examples=12)
@given(st.integers(0, 10_000), st.sampled_from(sorted(KINDS)), st.sampled_from([0, 2]))
def test_batch_equals_alone(seed: int, kind: str, levels: int) -> None:
    """Streams of different lengths, hot words and language model weights that come and go: text, times and scores."""
    search = small(KINDS[kind](), model_of(kind, 3), True, beam=10, tokens=3, threshold=8.0, blank_skip=0.9)
    rng = random.Random(seed)
    word = "team" if kind == "phones" else "mee"
    hots = [None, search.hot_words([HotWord(word, 3.0)]), None, search.hot_words([HotWord(f"e {word}", 4.0)]), None]
    scales = [1.0, 1.0, 0.0, 1.0, 1.0]
    emissions = [with_pauses(seed + i, rng.randint(1, 60), len(search.vocabulary), levels) for i in range(5)]
    alone = [
        search.end_nbest(search.step(e, search.begin(h, s)), 4) for e, h, s in zip(emissions, hots, scales, strict=True)
    ]
    states = [search.begin(h, s) for h, s in zip(hots, scales, strict=True)]
    left = dict(enumerate(emissions))
    while left:
        members = rng.sample(sorted(left), rng.randint(1, len(left)))
        sizes = {i: rng.randint(0, 25) for i in members}
        search.step_many([(left[i][: sizes[i]], states[i]) for i in members])
        left = {i: e[sizes.get(i, 0) :] for i, e in left.items()}
        left = {i: e for i, e in left.items() if len(e)}
    for state, expected in zip(states, alone, strict=True):
        found = search.end_nbest(state, 4)
        assert len(found) == len(expected) and all(map(same, found, expected))


def test_a_clone_goes_on_as_the_original(narrow: BeamSearch) -> None:
    emissions = said("-TTI--MIIT--IT-", sure=0.6)
    state = narrow.step(emissions[:8], narrow.begin())
    copy = state.clone()
    first = narrow.end_nbest(narrow.step(emissions[8:], state), 4)
    assert narrow.end_nbest(narrow.step(emissions[8:], copy), 4) == first
    assert len({h.text for h in first}) == 4


def test_an_end_can_be_looked_at() -> None:
    """By any search, as often as one likes; it changes nothing."""
    for kind, steps, units, texts in [
        ("phones", ("TI-", "MI"), "-IMT", ("tea", "tea me")),
        ("characters", ("me", " em"), "-em ", ("me", "me em")),
    ]:
        search = small(KINDS[kind](), None, True)
        state = search.begin()
        for piece, text in zip(steps, texts, strict=True):
            state = search.step(said(piece, units=units), state)
            before = state.to_bytes()
            assert search.end(state).text == search.end(state).text == text
            assert state.to_bytes() == before


def test_emissions_that_change_later_do_not_matter(narrow: BeamSearch) -> None:
    emissions = said("TI-MI")
    state = narrow.step(emissions, narrow.begin())
    emissions[:] = 0
    assert narrow.end(state).text == "tea me" and (state.array(4) < 0).all()


def test_steps_that_are_surely_blank_may_be_left_out(tiny: Recognizer) -> None:
    emissions = tiny_emissions(tiny, babble(6, seed=5))
    assert (np.exp(emissions[:, 0]) > 0.999).mean() > 0.1
    texts = []
    for skip in (0.999, 1.0):
        config = SearchConfig(beam=100, tokens=9, threshold=30.0, lm_weight=0.5, blank_skip=skip)
        texts.append(whole(tiny_search(tiny, config), emissions))
    assert texts[0].words == texts[1].words and len(texts[0].words) > 10
    assert texts[0].score == pytest.approx(texts[1].score, abs=0.5)


def test_sentences_of_the_tiny_model_are_in_its_lexicon(tiny: Recognizer) -> None:
    assert {w for s in SENTENCES for w in s.split()} <= set(tiny.folder.load_lexicon())


def tiny_emissions(tiny: Recognizer, audio: Any) -> np.ndarray:
    emissions: np.ndarray = tiny.model.step(log_mel(audio), tiny.model.begin())[0]["phones"][0].numpy()
    return emissions


def tiny_search(tiny: Recognizer, config: SearchConfig) -> BeamSearch:
    folder = tiny.folder
    return BeamSearch(tiny.search.vocabulary, folder.load_lexicon(), folder.load_language_model(), config)


# --- cuts -----------------------------------------------------------------------------------------------------------


def heard(stream: Stream, emissions: np.ndarray, sizes: list[int]) -> list[Segment]:
    """Segments of emissions that come in pieces, as if a network had made them."""
    stream.state.samples_in = len(emissions) * 640
    results = []
    for piece in chunks(emissions, sizes):
        results += _decode_many(stream.recognizer, [stream], [torch.from_numpy(piece)])[0]
    return [r for r in results + stream._close("eof") if isinstance(r, Segment)]


def tiny_said(text: str, pause: int, held: int = 1) -> np.ndarray:
    """Clear emissions of the tiny model's words, ``|`` a pause of ``pause`` steps; phones of ``held`` steps."""
    spelled = {"me": "M IY", "see": "S IY", "no": "N OW", "team": "T IY M", "meat": "M IY T", "mast": "M AH S T"}
    units: list[int] = []
    for word in text.split():
        if word == "|":
            units += [0] * pause
        else:
            units += [u for p in spelled[word].split() for u in [TINY_PHONES.index(p) + 1] * held]
            units.append(0)
    p = np.full((len(units), len(TINY_PHONES) + 1), 0.002, np.float32)
    p[np.arange(len(units)), units] = 1 - 0.002 * len(TINY_PHONES)
    return np.log(p)


@pytest.mark.parametrize("sizes", [[1], [7], [10_000]])
@pytest.mark.parametrize("text", ["me me | me | me me", "team | me meat | team mast", "no | no no | no no no | no"])
@pytest.mark.parametrize("with_lm", [True, False])
def test_words_and_letters_that_repeat_across_a_cut_come_out_once_each(
    tiny: Recognizer, text: str, sizes: list[int], with_lm: bool
) -> None:
    """Also where a word is the beginning of another one, which is as likely until the segment ends."""
    found = heard(tiny.stream(lm=with_lm), tiny_said(text, 20), sizes)
    homophones = {"know": "no", "sea": "see", "meet": "meat"}
    assert len(found) == text.count("|") + 1
    assert [[homophones.get(w.text, w.text) for w in s.words] for s in found] == [p.split() for p in text.split("|")]
    times = [t for s in found for w in s.words for t in (w.start, w.end)]
    assert times == sorted(times)


@pytest.mark.parametrize("sizes", [[1], [9, 4], [10_000]])
def test_words_without_any_pause_are_cut_and_none_is_lost_or_doubled(tiny: Recognizer, sizes: list[int]) -> None:
    emissions = tiny_said("me me see team me no " * 20, 0, held=3)
    options = {"pause_s": 0.0, "short_pause_s": 0.2, "long_s": 1.5, "longest_s": 2.0}
    found = heard(tiny.stream(lm=False, endpointing=options), emissions, sizes)
    assert {s.reason for s in found} >= {"max_length"} and len(found) > 8
    text = " ".join(s.text for s in found).replace("know", "no").replace("sea", "see")
    assert text.split() == ["me", "me", "see", "team", "me", "no"] * 20


@pytest.mark.parametrize("sizes", [[400], [16_000, 37], [100_000]])
def test_finals_are_the_offline_texts_of_the_same_cuts(
    tiny: Recognizer, monkeypatch: pytest.MonkeyPatch, sizes: list[int]
) -> None:
    search, states = tiny.search, []
    assert isinstance(search, BeamSearch)
    begin = search.begin

    def noted(*args: Any) -> SearchState:
        states.append(begin(*args))
        return states[-1]

    stream = tiny.stream(partials=False)
    states.append(stream.state.search)
    monkeypatch.setattr(search, "begin", noted)
    audio = babble(16, seed=1)
    results = [r for piece in chunks(audio, sizes) for r in stream.feed(piece)] + stream.finish()
    monkeypatch.undo()
    found = [r for r in results if isinstance(r, Segment)]
    offline = []
    for state in states:
        alone = search.step(state.array(len(search.vocabulary)), search.begin())
        assert alone.steps == state.steps
        if words := search.end(alone).words:
            offline.append((search.end(alone), alone.steps, search.stable(alone), words))
    assert len(found) >= 4 and len(offline) == len(found)
    for segment, (hypothesis, steps, stable, _) in zip(found, offline, strict=True):
        if segment.reason == "max_length":
            hypothesis = _without_last_word(hypothesis, steps, stable)[0]
        assert segment.text == hypothesis.text


# --- for ever -------------------------------------------------------------------------------------------------------


def test_an_hour_without_a_cut_costs_the_same_to_the_end(narrow: BeamSearch) -> None:
    """Endpointing off: words are committed, so the history stays short; committed words are all that grows. Each minute
    begins with four seconds of sound."""
    steps, rounds = 1500, 60
    emissions = random_emissions(1, steps, 4, 3.0)
    emissions[100:] = np.log(np.float32([0.97, 0.01, 0.01, 0.01]))
    state = narrow.begin()
    entries, held = [], []
    for _ in range(rounds):
        for piece in chunks(emissions, [300]):
            state = narrow.step(piece, state)
            entries.append(state.history.size)
            held.append(state.nbytes - 12 * len(state.committed))
    assert state.steps == steps * rounds and len(state.committed) > 15 * rounds
    assert max(entries[len(entries) // 2 :]) <= 1.5 * max(entries[: len(entries) // 4])
    assert max(held) <= narrow.begin().nbytes + 4 * 4 * (2 * KEPT_STEPS + 64 * 300) + 200_000
    best = narrow.best(state)
    assert len(best.words) >= len(state.committed) and narrow.stable(state) >= len(state.committed)
    ends = [w.last for w in best.words]
    assert ends == sorted(ends) and ends[-1] > steps * (rounds - 1)


@settings(deadline=None, max_examples=3)
@given(st.integers(0, 1000))
def test_committing_changes_no_text(seed: int) -> None:
    """Hypotheses that disagree about words four seconds back are far behind in speech: with and without, the same."""
    clear = np.concatenate([said("TI-MI--MIT-IT-", 0.8), random_emissions(seed, 10, 4, 1.0)] * 20)
    search = small(phones(), model(), True, beam=50, threshold=12.0)
    texts = []
    for every in (module.COMMIT_EVERY, 10**9):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "COMMIT_EVERY", every)
            state = search.step(clear, search.begin())
            assert bool(state.committed) == (every < 10**9)
            texts.append(search.end(state).words)
    assert texts[0] == texts[1] and len(texts[0]) > 60


def test_texts_are_those_of_the_small_lexicon() -> None:
    assert {w for text in TEXTS for w in text.split()} <= set(WORDS)
    assert PhoneVocabulary.of(("IY", "M", "T")).units == phones().units
