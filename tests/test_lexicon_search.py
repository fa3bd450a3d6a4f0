"""asr.decoding.lexicon_search against a search over all paths and all word sequences of a tiny lexicon."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tiny_model import SENTENCES, babble, log_mel

from asr import Recognizer, lm
from asr.decoding.lexicon_search import Hypothesis, LexiconSearch
from asr.decoding.search_config import SearchConfig
from asr.errors import LanguageModelError, LexiconError
from asr.lexicon import Lexicon
from asr.vocabulary import CharacterVocabulary, PhoneVocabulary

PHONES = ("IY", "M", "T")
WORDS = {"tea": ["T IY"], "me": ["M IY"], "meat": ["M IY T"], "team": ["T IY M"], "e": ["IY"], "it": ["IY T", "M T"]}
TEXTS = ("tea me", "it meat me", "me team e", "e it tea", "meat it", "tea")
EXACT = SearchConfig(beam=5000, tokens=4, threshold=1e3, lm_weight=0.9, word_score=0.3, blank_skip=1.0)


def lexicon(words: dict[str, list[str]] = WORDS) -> Lexicon:
    return Lexicon({word: [tuple(p.split()) for p in phones] for word, phones in words.items()})


@pytest.fixture(scope="module")
def lm_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lm") / "words.lm"
    lm.save(lm.estimate(TEXTS, order=2, vocabulary=tuple(WORDS)), path)
    return path


@pytest.fixture(scope="module")
def search(lm_path: Path) -> LexiconSearch:
    return LexiconSearch(PhoneVocabulary.of(PHONES), lexicon(), lm_path, EXACT)


def said(steps: str, sure: float = 0.97, units: str = "-ITM") -> NDArray[np.float32]:
    """Emissions in which each character names the likely unit of a step: ``-`` blank, I, M, T as the phones."""
    order = ["-", "I", "M", "T"] if units == "-ITM" else list(units)
    p = np.full((len(steps), len(order)), (1 - sure) / (len(order) - 1), np.float32)
    for step, unit in enumerate(steps):
        p[step, order.index(unit)] = sure
    return np.log(p)


def end(search: LexiconSearch, emissions: NDArray[np.float32]) -> Hypothesis:
    return search.end(search.step(emissions, search.begin()))


# --- the reference --------------------------------------------------------------------------------------------------


def best_scores(emissions: NDArray[np.float32]) -> dict[tuple[tuple[int, ...], frozenset[int]], float]:
    """The best of all paths through ``emissions``, for each sequence of phones and set of its phones that last several
    steps and have the next phone right behind them."""
    best: dict[tuple[tuple[int, ...], frozenset[int]], float] = {}
    for path in itertools.product(range(emissions.shape[1]), repeat=len(emissions)):
        runs = [(unit, len(list(run))) for unit, run in itertools.groupby(path)]
        phones = tuple(unit for unit, _ in runs if unit)
        tight, place = set(), -1
        for (unit, length), following in zip(runs, [*runs[1:], (0, 0)], strict=True):
            place += unit != 0
            if unit and following[0] and length > 1:
                tight.add(place)
        key = phones, frozenset(tight)
        score = float(sum(emissions[step, unit] for step, unit in enumerate(path)))
        best[key] = max(best.get(key, -math.inf), score)
    return best


def readings(phones: tuple[int, ...]) -> list[tuple[tuple[str, ...], frozenset[int]]]:
    """All word sequences that sound like this, with the places of their last phones."""
    found = [] if phones else [((), frozenset())]
    for word, pronunciations in WORDS.items():
        for text in pronunciations:
            spelled = tuple(PHONES.index(p) + 1 for p in text.split())
            if phones[: len(spelled)] == spelled:
                for words, ends in readings(phones[len(spelled) :]):
                    moved = frozenset(e + len(spelled) for e in ends)
                    found.append(((word, *words), moved | {len(spelled) - 1}))
    return found


def reference(emissions: NDArray[np.float32], path: Path) -> dict[str, float]:
    """The score of every word sequence: its best path, the language model and the word scores."""
    model = lm.load(path)
    scores: dict[str, float] = {}
    for (phones, tight), acoustic in best_scores(emissions).items():
        for words, ends in readings(phones):
            if tight & ends:  # the one thing that the trie does not hold
                continue
            total = acoustic + EXACT.lm_weight * model.score(list(words)) + EXACT.word_score * len(words)
            text = " ".join(words)
            scores[text] = max(scores.get(text, -math.inf), total)
    return scores


@settings(deadline=None, max_examples=12)
@given(st.integers(0, 10_000), st.integers(1, 6), st.sampled_from([0.5, 2.0, 5.0]))
def test_the_best_words_of_all(lm_path: Path, search: LexiconSearch, seed: int, steps: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, spread, (steps, 4))
    emissions = np.float32(logits - np.log(np.exp(logits).sum(1, keepdims=True)))
    expected = reference(emissions, lm_path)
    found = search.end_nbest(search.step(emissions, search.begin()), 3)
    ranked = sorted(expected.values(), reverse=True)
    assert [h.score for h in found] == pytest.approx(ranked[: len(found)], abs=0.01)
    for hypothesis in found:
        assert hypothesis.score == pytest.approx(expected[hypothesis.text], abs=0.01)


def test_priors_are_subtracted(lm_path: Path) -> None:
    priors = np.log(np.array([0.7, 0.1, 0.15, 0.05], np.float32))
    config = SearchConfig(beam=5000, tokens=4, threshold=1e3, lm_weight=0.9, word_score=0.3, prior_weight=0.6,
                          blank_skip=1.0)  # fmt: skip
    search = LexiconSearch(PhoneVocabulary.of(PHONES), lexicon(), lm_path, config, priors)
    emissions = said("T-I-M", sure=0.4)
    expected = reference(emissions - 0.6 * priors, lm_path)
    assert end(search, emissions).score == pytest.approx(max(expected.values()), abs=0.01)


# --- steps and states -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 5])
def test_steps_of_any_size_give_the_same(search: LexiconSearch, size: int) -> None:
    """Also the score: nothing outside the emissions may be read."""
    emissions = said("-TTI--MIIT--IT-", sure=0.6)
    state = search.begin()
    for start in range(0, len(emissions), size):
        state = search.step(emissions[start : start + size], state)
        assert search.best(state).text == search.best(search.step(emissions[: start + size], search.begin())).text
    assert search.end(state) == end(search, emissions)


def test_a_clone_goes_on_as_the_original(search: LexiconSearch) -> None:
    emissions = said("-TTI--MIIT--IT-", sure=0.6)
    state = search.step(emissions[:8], search.begin())
    copy = state.clone()
    assert copy.beams is None and search.best(copy) == search.best(state)
    copy = copy.clone()
    first = search.end_nbest(search.step(emissions[8:], state), 4)
    assert search.end_nbest(search.step(emissions[8:], copy), 4) == first
    assert len({h.text for h in first}) == 4 and first == sorted(first, key=lambda h: -h.score)


def test_an_end_can_be_looked_at_by_a_clone(search: LexiconSearch) -> None:
    emissions = said("TI-MI")
    state = search.step(emissions[:3], search.begin())
    assert search.end(state.clone()).text == "tea"
    assert search.end(search.step(emissions[3:], state)).text == "tea me"


def test_emissions_that_change_later_do_not_matter(search: LexiconSearch) -> None:
    emissions = said("TI-MI")
    state = search.step(emissions, search.begin())
    emissions[:] = 0
    assert search.end(state.clone()).text == "tea me"


def test_nothing_gives_nothing(search: LexiconSearch) -> None:
    empty = search.begin()
    assert search.best(empty) == search.end(empty) == Hypothesis((), 0.0)
    assert end(search, said("-----")).words == ()


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
    ],
)
def test_clear_speech(lm_path: Path, steps: str, text: str) -> None:
    config = SearchConfig(beam=500, tokens=4, threshold=100, lm_weight=0.2)
    search = LexiconSearch(PhoneVocabulary.of(PHONES), lexicon(), lm_path, config)
    assert end(search, said(steps)).text == text


def test_a_last_phone_of_several_steps_costs_nothing(search: LexiconSearch) -> None:
    short, long = end(search, said("TI-", 0.999)), end(search, said("TIIII-", 0.999))
    assert (short.text, long.text) == ("tea", "tea")
    assert long.score == pytest.approx(short.score, abs=0.01)
    assert end(search, said("TIIII", 0.999)).score == pytest.approx(short.score, abs=0.01)


def test_times_are_steps_of_the_phones(search: LexiconSearch) -> None:
    (tea, me) = end(search, said("--TTI---MI-")).words
    assert (tea.text, me.text) == ("tea", "me")
    assert 2 <= tea.first <= 3 and (tea.last, me.first, me.last) == (4, 8, 9)


def test_an_unfinished_word_is_left_out_until_it_is_one() -> None:
    words = lexicon({"tea": ["T IY"], "me": ["M IY"]})
    search = LexiconSearch(PhoneVocabulary.of(PHONES), words, None, SearchConfig(beam=100, word_score=0.1))
    state = search.begin()
    for steps, text in [("T", ""), ("I-", "tea"), ("M", "tea"), ("I-", "tea me"), ("T", "tea me")]:
        state = search.step(said(steps), state)
        assert search.best(state).text == text


def test_words_of_many_homophones(tmp_path: Path) -> None:
    """flashlight keeps six words at a place; the usual ones stay."""
    names = ["aye", "bye", "cue", "dew", "ewe", "fee", "gee", "hue"]
    texts = [name for i, name in enumerate(names) for _ in range(2**i)]
    lm.save(lm.estimate(texts, order=1, vocabulary=tuple(names)), tmp_path / "words.lm")
    same = lexicon({name: ["M IY"] for name in names})
    search = LexiconSearch(PhoneVocabulary.of(PHONES), same, tmp_path / "words.lm", EXACT)
    found = search.end_nbest(search.step(said("MI"), search.begin()), 8)
    assert [h.text for h in found if len(h.words) == 1][:6] == ["hue", "gee", "fee", "ewe", "dew", "cue"]


def test_letters_have_the_space_between_words(tmp_path: Path) -> None:
    words = ["see", "me", "seem", "e"]
    lm.save(lm.estimate(["see me", "me see", "seem e"], order=1, vocabulary=tuple(words)), tmp_path / "words.lm")
    vocabulary = CharacterVocabulary(("<blank>", "e", "m", "s", " "))
    search = LexiconSearch(vocabulary, lexicon({w: ["IY"] for w in words}), tmp_path / "words.lm", EXACT)
    for steps, text in {
        "se-e me": "see me",
        "se-em  e": "seem e",
        "sse-ee -mee": "see me",
        "see": None,
    }.items():
        found = end(search, said(steps, 0.97, "-ems "))
        assert text is None or found.text == text
    assert [(w.first, w.last) for w in end(search, said("se-e me", 0.97, "-ems ")).words] == [(0, 3), (5, 6)]


def test_steps_that_are_surely_blank_may_be_left_out(tiny: Recognizer) -> None:
    frames = log_mel(babble(6, seed=5))
    emissions = tiny.model.step(frames, tiny.model.begin())[0]["phones"][0].numpy()
    assert (np.exp(emissions[:, 0]) > 0.999).mean() > 0.1
    folder = tiny.folder
    texts = []
    for skip in (0.999, 1.0):
        config = SearchConfig(beam=100, tokens=9, threshold=30.0, lm_weight=0.5, blank_skip=skip)
        search = LexiconSearch(tiny.search.vocabulary, folder.load_lexicon(), folder.language_model, config)
        texts.append(end(search, emissions))
    assert texts[0].words == texts[1].words and len(texts[0].words) > 10
    assert texts[0].score == pytest.approx(texts[1].score, abs=0.5)


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 10_000))
def test_a_narrow_beam_still_finds_words(lm_path: Path, seed: int) -> None:
    config = SearchConfig(beam=2, tokens=1, threshold=0.5)
    search = LexiconSearch(PhoneVocabulary.of(PHONES), lexicon(), lm_path, config)
    emissions = torch.randn(40, 4, generator=torch.Generator().manual_seed(seed)).mul(5).log_softmax(1).numpy()
    hypothesis = end(search, emissions)
    assert math.isfinite(hypothesis.score)
    firsts = [w.first for w in hypothesis.words]
    assert firsts == sorted(firsts) and all(0 <= w.first <= w.last < 40 for w in hypothesis.words)


# --- errors ---------------------------------------------------------------------------------------------------------


def test_what_cannot_be_searched(tmp_path: Path, lm_path: Path) -> None:
    vocabulary = PhoneVocabulary.of(PHONES)
    with pytest.raises(LexiconError, match="the lexicon holds no words"):
        LexiconSearch(vocabulary, Lexicon({}), lm_path)
    with pytest.raises(LexiconError, match="phone 'K' is not among the units of this model"):
        LexiconSearch(vocabulary, lexicon({"key": ["K IY"]}), lm_path)
    with pytest.raises(LanguageModelError, match="there is no language model"):
        LexiconSearch(vocabulary, lexicon(), tmp_path / "none.lm")
    broken = tmp_path / "broken.lm"
    broken.write_bytes(lm_path.read_bytes()[:100])
    with pytest.raises(LanguageModelError, match="cannot be read") as caught:
        LexiconSearch(vocabulary, lexicon(), broken)
    assert "\n" not in str(caught.value)


def test_words_that_the_language_model_does_not_know_are_possible(lm_path: Path) -> None:
    search = LexiconSearch(PhoneVocabulary.of(PHONES), lexicon({**WORDS, "mitt": ["M IY T M"]}), lm_path, EXACT)
    assert end(search, said("MITM", 0.9999)).text == "mitt"


def test_without_a_language_model_the_sound_decides() -> None:
    search = LexiconSearch(PhoneVocabulary.of(PHONES), lexicon(), None, SearchConfig(beam=100, word_score=-1.0))
    assert end(search, said("TI-MI")).text == "tea me"


def test_equal_scores_are_told_apart_by_their_letters() -> None:
    """Not by addresses in memory, which differ from run to run and between a stream and its replay."""
    same = lexicon({name: ["M IY"] for name in ("dew", "cue", "bye", "ewe")})
    search = LexiconSearch(PhoneVocabulary.of(PHONES), same, None, SearchConfig(beam=100))
    assert [end(search, said("MI--MI")).text for _ in range(5)] == ["bye bye"] * 5


def test_sentences_of_the_tiny_model_are_in_its_lexicon(tiny: Recognizer) -> None:
    assert {w for s in SENTENCES for w in s.split()} <= set(tiny.folder.load_lexicon())
