"""asr.decoding.hot_words: exact beside a search over everything, seen by nobody else, and never ignored."""

import itertools
import math
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from search_reference import (
    COSTS,
    LETTER_TEXTS,
    LETTER_WORDS,
    earned,
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
from tiny_model import babble

from asr import Recognizer, Segment
from asr.decoding.beam_search import BeamSearch
from asr.decoding.hot_words import MOST_BOOST, MOST_PHRASES, HotWord, HotWords, Overlay
from asr.decoding.search_config import SearchConfig
from asr.errors import LexiconError, UsageError
from asr.lexicon import Lexicon
from asr.stream_state import StreamState
from asr.text import normalize

OOV = {"mitt": ["M IY T T"], "tim": ["T M", "T IY M"]}  # tim sounds like timid and team
SAYS = lexicon(OOV)


class Says(Lexicon):
    """A lexicon that can say some words that it does not list."""

    listed: Lexicon

    def pronounce(self, word: str) -> Any:
        return SAYS.pronounce(word) if word in OOV else super().pronounce(word)

    def costs(self, word: str) -> Any:
        return self.listed.costs(word) if word in self.listed else super().costs(word)


def hot_words(search: BeamSearch, phrases: dict[str, float], lm_scale: float = 1.0) -> HotWords:
    says = Says({w: p for w, p in search.lexicon.items()})
    says.listed = search.lexicon
    return search.hot_words([HotWord(t, b) for t, b in phrases.items()], lm_scale, says)


# --- the automaton --------------------------------------------------------------------------------------------------

ABC = ("a", "b", "c")
PHRASES = st.dictionaries(
    st.lists(st.sampled_from(ABC), min_size=1, max_size=3).map(" ".join), st.floats(-5, 5).filter(bool), max_size=5
)


def prepared(phrases: dict[str, float]) -> HotWords:
    return HotWords(
        [HotWord(t, b) for t, b in phrases.items()],
        {w: i for i, w in enumerate(ABC)},
        lambda word: [[ord(word) - 96]],
        lambda ids: np.zeros(len(ids)),
        normalize,
    )


@settings(deadline=None, max_examples=50)
@given(st.lists(PHRASES, min_size=1, max_size=3), st.lists(st.integers(0, 4), max_size=8))
def test_phrases_earn_their_boosts_once_for_every_time_they_are_said(
    sessions: list[dict[str, float]], ids: list[int]
) -> None:
    """Several sessions side by side; words 3 and 4 are no hot words of anybody. What is not finished earns nothing."""
    hot = [prepared(p) for p in sessions] + [None]
    overlay, rows = Overlay(hot, 10), np.arange(len(hot), dtype=np.int32)
    states, totals = np.zeros(len(hot), np.int32), np.zeros(len(hot))
    for word in ids:
        states, gain = overlay.advance(rows, states, np.full(len(hot), word))
        totals += gain
    words = [(*ABC, "x", "y")[i] for i in ids]
    for row, phrases in enumerate([*sessions, {}]):
        left = hot[row].potential(states[row : row + 1])[0] if phrases else 0.0  # type: ignore[union-attr]
        assert totals[row] - left == pytest.approx(earned(words, phrases), abs=1e-9)


# --- exact ----------------------------------------------------------------------------------------------------------

CASES: list[dict[str, float]] = [
    {"team": 4.0},
    {"mitt": 6.0},
    {"tea me": 3.0, "me": 1.0, "me it": 2.5},
    {"tim": 5.0, "tim me": 3.0, "e": -2.0},
    {"tea tea": 4.0, "tea": 0.5},
    {"it": 2.0, "timid tim": 1.0},
]


@pytest.mark.parametrize("phrases", CASES)
@pytest.mark.parametrize("with_lm", [True, False])
@settings(deadline=None, max_examples=3)
@given(st.integers(0, 10_000))
def test_every_score_is_that_of_the_sound_the_language_model_and_the_boosts(
    phrases: dict[str, float], with_lm: bool, seed: int
) -> None:
    """Of all word sequences, by all pronunciations for what these cost, so nothing beside a hot word is swallowed,
    split or scored otherwise. Words outside the vocabulary cost as much as the rarest word, and are there where they
    are hot alone."""
    language_model = model() if with_lm else None
    search = small(phones(), language_model, costs=COSTS)
    unknown = {w for p in phrases for w in p.split()} - set(search.words)
    extra = {w: [tuple(phones().encode_phones(p)) for p in SAYS[w]] for w in unknown}
    emissions = random_emissions(seed, 5, 4)
    expected = reference(search, emissions, language_model, hot=phrases, extra=extra)
    state = search.step(emissions, search.begin(hot_words(search, phrases)))
    found = search.end_nbest(state, 10_000)
    assert {tuple(h.text.split()) for h in found} == set(expected)
    for hypothesis in found:
        assert hypothesis.score == pytest.approx(expected[tuple(hypothesis.text.split())], abs=1e-6)


@pytest.mark.parametrize("kind", ["characters", "bpe"])
def test_letters_and_pieces(kind: str) -> None:
    language_model = model(LETTER_TEXTS, 2, LETTER_WORDS)
    search = small(letters() if kind == "characters" else pieces(), language_model)
    phrases = {"me em": 3.0, "mem": 4.0}  # the second one is outside the vocabulary
    extra = {"mem": [tuple(search.vocabulary.encode("mem"))]}
    for seed in range(3):
        emissions = random_emissions(seed, 4, len(search.vocabulary))
        expected = reference(search, emissions, language_model, hot=phrases, extra=extra)
        state = search.step(emissions, search.begin(hot_words(search, phrases)))
        for hypothesis in search.end_nbest(state, 1000):
            assert hypothesis.score == pytest.approx(expected[tuple(hypothesis.text.split())], abs=1e-6)


def test_the_weight_of_the_language_model_of_a_session() -> None:
    search, emissions = small(phones(), model()), random_emissions(3, 4, 4)
    for scale in (0.0, 1.0):
        expected = reference(search, emissions, model(), scale, {"mitt": 4.0}, {"mitt": [(2, 1, 3, 3)]})
        found = whole(search, emissions, hot_words(search, {"mitt": 4.0}, scale), scale)
        assert found.score == pytest.approx(max(expected.values()), abs=1e-6)


# --- what they do ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[True, False], ids=["lm", "no lm"])
def search(request: pytest.FixtureRequest) -> BeamSearch:
    return small(phones(), model() if request.param else None, True, beam=60, tokens=3, threshold=15.0, lm_weight=0.5)


@pytest.mark.parametrize("steps", ["MIT-TI", "TI-MI-IT", "TIM-TIMI"])
def test_a_boost_of_nothing_changes_nothing(search: BeamSearch, steps: str) -> None:
    """Text, times, scores and alternatives: equal in every bit."""
    emissions = said(steps, 0.6)
    plain = search.end_nbest(search.step(emissions, search.begin()), 5)
    for phrases in ([HotWord("team", 0.0)], [HotWord("tea", 0), HotWord("mitt mitt", 0.0)], []):
        hot = search.hot_words(phrases, pronouncer=Says({w: p for w, p in search.lexicon.items()}))
        assert len(hot) == 0
        assert search.end_nbest(search.step(emissions, search.begin(hot)), 5) == plain


def test_a_phrase_that_nobody_says_changes_only_scores_of_itself(search: BeamSearch) -> None:
    emissions = said("MI-MI-MIT", 0.97)
    plain, hot = whole(search, emissions), whole(search, emissions, hot_words(search, {"timid tea": 2.0}))
    assert hot.words == plain.words and hot.score == pytest.approx(plain.score, abs=1e-9)


def test_a_boost_turns_what_sounds_alike(search: BeamSearch) -> None:
    emissions = said("TI-MI", 0.97)
    assert whole(search, emissions, hot_words(search, {"tea": 3.0})).text.startswith("tea")
    assert whole(search, emissions, hot_words(search, {"tee": 3.0})).text.startswith("tee")
    assert whole(search, emissions, hot_words(search, {"tee": -3.0})).text.startswith("tea")
    assert whole(search, said("MITT-T-"), hot_words(search, {"mitt": 3.0})).text == "mitt"


@pytest.mark.parametrize("with_lm", [True, False])
def test_neighbours_of_a_hot_word_stay(with_lm: bool) -> None:
    """With boosts up to where a word is still weaker than its sound; of words that cannot be heard as others."""
    words = {"meat": ["M IY T"], "me": ["M IY"], "e": ["IY"]}
    config = SearchConfig(beam=60, threshold=15.0, lm_weight=0.5, blank_skip=0.99)
    language_model = model(["me meat", "e me", "meat e"], 2, tuple(words)) if with_lm else None
    search = BeamSearch(phones(), lexicon(words), language_model, config)
    for boost in (1.0, 3.0, 5.0):
        for word, other in itertools.product(words, repeat=2):
            spelled = {"meat": "MIT-", "me": "MI-", "e": "I-"}
            steps = spelled[other] + spelled[word] + spelled[other]
            found = whole(search, said(steps, 0.9999), hot_words(search, {word: boost}))
            assert found.text == f"{other} {word} {other}"


def test_hot_words_survive_a_narrow_beam() -> None:
    """The boost is seen from the first unit on, so that the word is not lost before it is complete."""
    search = small(phones(), model(), True, beam=4, threshold=3.0)
    assert whole(search, said("MITT-T-", 0.6), hot_words(search, {"mitt": 8.0})).text == "mitt"


# --- unusable -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "boost", "reason"),
    [
        ("", 1.0, "it is empty: give a word or a phrase"),
        ("  \t", 1.0, "it is empty"),
        (None, 1.0, "it is empty"),
        (5, 1.0, "it is empty"),
        ("東京", 1.0, "cannot be spelled in the units"),
        ("me 東京", 1.0, "cannot be spelled in the units of this model"),
        ("Москва me", 1.0, "cannot be spelled"),
        ("me#", 1.0, "cannot be spelled in the units of this model .#"),
        ("me\x00", 1.0, "cannot be spelled"),
        ("...", 1.0, "cannot be spelled"),
        ("me", "3", "its boost must be a number from -20 to 20, not '3'"),
        ("me", None, "its boost must be a number"),
        ("me", True, "its boost must be a number"),
        ("me", math.nan, "its boost must be a number"),
        ("me", math.inf, "its boost must be a number"),
        ("me", MOST_BOOST + 1, "its boost must be a number"),
        ("xyzzy", 1.0, "the word 'xyzzy' is not in the lexicon and no grapheme-to-phoneme model"),
    ],
)
def test_unusable_phrases_are_reported(search: BeamSearch, text: Any, boost: Any, reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as caught:
        search.hot_words([HotWord("team", 1.0), HotWord(text, boost)])
    assert str(caught.value).startswith("unusable hot words: ") and "\n" not in str(caught.value)
    assert "'team'" not in str(caught.value)


def test_all_unusable_phrases_are_named_at_once(search: BeamSearch) -> None:
    with pytest.raises(UsageError) as caught:
        search.hot_words([HotWord("", 1.0), HotWord("me#", 1.0), HotWord("tea"), HotWord("me", math.nan)])
    assert str(caught.value).count("; ") == 2
    with pytest.raises(UsageError, match="1001 phrases are too many: give 1000 at most"):
        words = [w for n in (1, 2, 3, 4, 5) for w in map(" ".join, itertools.product(search.words, repeat=n))]
        search.hot_words([HotWord(w) for w in words[: MOST_PHRASES + 1]])


def test_characters_outside_the_units_of_letters_and_pieces() -> None:
    for vocabulary in (letters(), pieces()):
        with pytest.raises(UsageError, match=r"'_?x' is not among the units"):
            small(vocabulary).hot_words([HotWord("x me")])


def test_forms_of_writing_are_one_phrase(search: BeamSearch) -> None:
    for text in ("TEAM", " Team. ", "te\u0301am", "t\u00e9am", "team,"):
        assert search.hot_words([HotWord(text, 2.0)]).phrases == (HotWord("team", 2.0),)
    assert search.hot_words([HotWord("me", 2.0), HotWord("Me", 3.0)]).phrases == (HotWord("me", 3.0),)
    assert len(search.hot_words([HotWord("me", 2.0), HotWord("Me", 0.0)])) == 0


# --- sessions -------------------------------------------------------------------------------------------------------


def texts(results: Any) -> list[str]:
    return [r.text for r in results if isinstance(r, Segment)]


def test_they_can_change_in_mid_stream(tiny: Recognizer) -> None:
    """From the next segment on: what is open ends as it began, what follows is as if they had always been there."""
    audio = babble(12, seed=1)
    phrases = [("know", 9.0), ("oat", 8.0), ("zonk", 5.0)]
    changed, plain, always = tiny.stream(), tiny.stream(), tiny.stream(hotwords=phrases[:2])
    with pytest.raises(UsageError, match="'zonk'"):
        changed.configure(hotwords=phrases)
    assert changed.options.hotwords == ()
    n = 40_000
    results = changed.feed(audio[:n])
    assert texts(results) == texts(plain.feed(audio[:n])) and changed.state.search.steps > 0
    changed.configure(hotwords=phrases[:2])
    moved = tiny.stream(state=StreamState.from_bytes(changed.state.to_bytes()))
    rest = [texts(s.feed(audio[n:]) + s.finish()) for s in (changed, moved, plain)]
    whole_time = texts(always.feed(audio) + always.finish())
    assert rest[0] == rest[1]
    assert rest[0][0] == rest[2][0], "the segment that was open"
    assert rest[0][1:] != rest[2][1:]
    assert rest[0][-1] == whole_time[-1]


def test_boost_nothing_in_a_session(tiny: Recognizer) -> None:
    audio = babble(5, seed=2)
    plain, zero = tiny.stream(), tiny.stream(hotwords=[("know", 0.0), ("oat see", 0)])
    assert plain.feed(audio) + plain.finish() == zero.feed(audio) + zero.finish()


def test_a_lexicon_error_is_a_usage_error() -> None:
    """Whatever a word's spelling raises, the session hears which phrase it was."""

    def broken(word: str) -> Any:
        raise LexiconError(f"no {word}")

    with pytest.raises(UsageError, match="unusable hot words: 'a': no a; 'b': no b"):
        HotWords([HotWord("a"), HotWord("b")], {}, broken, lambda ids: np.zeros(len(ids)), normalize)


def test_random_hot_words_in_any_company() -> None:
    """Streams with different hot words in one step are as each alone; see also tests/test_beam_search.py."""
    search, rng = small(phones(), model(), True, beam=20, threshold=10.0), random.Random(1)
    hots = [None if i % 3 == 0 else hot_words(search, rng.choice(CASES)) for i in range(7)]
    emissions = [random_emissions(i, 25, 4, 3.0) for i in range(7)]
    alone = [whole(search, e, h) for e, h in zip(emissions, hots, strict=True)]
    states = [search.begin(h) for h in hots]
    search.step_many(list(zip(emissions, states, strict=True)))
    assert [search.end(s) for s in states] == alone
