"""Hot words of the open-vocabulary search: exact beside the sum over all alignments, seen by nobody else."""

import dataclasses
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from search_reference import earned
from test_prefix_search import (
    LETTERS,
    PIECES,
    SENTENCES,
    WIDE,
    ends,
    random_emissions,
    speech,
    spoken,
    texts_of_all_alignments,
)
from tiny_model import babble

from asr import Recognizer, Segment, lm
from asr.checkpoint import LANGUAGE_MODEL, LEXICON, read_config, update_config
from asr.decoding.hot_words import HotWord, HotWords
from asr.decoding.prefix_search import PHRASE, PrefixSearch
from asr.decoding.search_config import SearchConfig
from asr.decoding.search_state import SearchState
from asr.errors import StateError, UsageError
from asr.lexicon import Lexicon
from asr.lm.model import NgramModel
from asr.stream_state import StreamState
from asr.vocabulary import CharacterVocabulary, Vocabulary

BOTH = pytest.mark.parametrize("vocabulary", [LETTERS, PIECES], ids=["characters", "bpe"])
CASES: list[dict[str, float]] = [
    {"ab": 4.0},
    {"aab": 5.0, "ab": -2.0},  # the first is outside the vocabulary
    {"a ab": 3.0, "ab": 1.0, "ab aa": 2.5},
    {"a a": 4.0, "a": 0.5},
]


@pytest.fixture(scope="module")
def model() -> NgramModel:
    return lm.estimate(SENTENCES, order=3, vocabulary=("a", "b", "ab", "ba"))


def hot_words(search: PrefixSearch, phrases: dict[str, float], lm_scale: float = 1.0) -> HotWords:
    return search.hot_words([HotWord(text, boost) for text, boost in phrases.items()], lm_scale)


@BOTH
@pytest.mark.parametrize("with_model", [True, False])
@pytest.mark.parametrize("phrases", CASES, ids=str)
def test_every_score_is_that_of_the_sound_the_language_model_and_the_boosts(
    vocabulary: Vocabulary, with_model: bool, phrases: dict[str, float], model: NgramModel
) -> None:
    """Of all texts, so that nothing beside a hot word is split, swallowed or scored otherwise."""
    used = model if with_model else None
    search = PrefixSearch(vocabulary, used, WIDE, recombine=False)
    emissions = random_emissions(np.random.default_rng(11), 6, len(vocabulary))
    expected = texts_of_all_alignments(emissions, vocabulary, used, WIDE)
    found = search.end_nbest(search.step(emissions, search.begin(hot_words(search, phrases))), 10_000)
    assert {h.text: h.score for h in found} == pytest.approx(
        {text: score + earned(text.split(), phrases) for text, score in expected.items()}, abs=1e-4
    )


@BOTH
def test_a_boost_of_nothing_changes_nothing(vocabulary: Vocabulary, model: NgramModel) -> None:
    """Text, times, scores and alternatives: equal in every bit."""
    search = PrefixSearch(vocabulary, model, SearchConfig(beam=20, threshold=15.0, lm_weight=0.8))
    emissions = speech(np.random.default_rng(12), vocabulary, 150)
    plain = search.end_nbest(search.step(emissions, search.begin()), 5)
    for phrases in ({"ab": 0.0, "aab a": 0.0}, {}):
        hot = hot_words(search, phrases)
        assert len(hot) == 0
        assert search.end_nbest(search.step(emissions, search.begin(hot)), 5) == plain


def test_words_that_nobody_knows_are_found_and_neighbours_stay() -> None:
    letters = CharacterVocabulary()
    known = lm.estimate(["the cat sat", "the dog sat", "a cat sat down"] * 3, order=2)
    search = PrefixSearch(letters, known, SearchConfig(lm_weight=0.5))
    unclear = spoken(letters, "the cat sat", 0.97)
    unclear[8, letters.index["k"]] = unclear[8, letters.index["c"]] - 1.0
    assert search.end(search.step(unclear, search.begin())).text == "the cat sat"
    for scale in (1.0, 0.0):
        state = search.begin(hot_words(search, {"kat": 3.0}, scale), scale)
        assert search.end(search.step(unclear, state)).text == "the kat sat"
    hot = hot_words(search, {"the kat": 3.0})
    assert search.end(search.step(unclear, search.begin(hot))).text == "the kat sat"
    hot = hot_words(search, {"kat down": 3.0})  # is not finished, so it earns nothing
    assert search.end(search.step(unclear, search.begin(hot))).text == "the cat sat"


def test_hot_words_survive_a_narrow_beam() -> None:
    """What they earn is seen from the first letter on, so that they are not lost before they are complete."""
    letters = CharacterVocabulary()
    search = PrefixSearch(letters, None, SearchConfig(beam=3, threshold=4.0))
    unclear = spoken(letters, "xylo phone", 0.9)
    for at, (said, meant) in enumerate(zip("xylo phone", "zilo phone", strict=True)):
        if said != meant:
            unclear[2 * at, letters.index[meant]] = unclear[2 * at, letters.index[said]] - 2.0
    assert search.end(search.step(unclear, search.begin())).text == "xylo phone"
    assert search.end(search.step(unclear, search.begin(hot_words(search, {"zilo": 8.0})))).text == "zilo phone"


@BOTH
def test_streaming_equals_offline_alone_and_in_company(vocabulary: Vocabulary, model: NgramModel) -> None:
    search = PrefixSearch(vocabulary, model, SearchConfig(beam=12, threshold=15.0, lm_weight=0.8))
    rng = np.random.default_rng(14)
    pieces = [speech(rng, vocabulary, steps) for steps in (300, 150, 1, 0, 220)]
    hots = [hot_words(search, CASES[0]), None, hot_words(search, CASES[1]), hot_words(search, CASES[2]),
            hot_words(search, CASES[3])]  # fmt: skip
    alone = [search.step(e, search.begin(h)) for e, h in zip(pieces, hots, strict=True)]
    together = [search.begin(h) for h in hots]
    search.step_many(list(zip(pieces, together, strict=True)))
    cut = [search.begin(h) for h in hots]
    for at in range(0, 300, 7):
        search.step_many([(e[at : at + 7], s) for e, s in zip(pieces, cut, strict=True)])
    for a, b, c in zip(alone, together, cut, strict=True):
        assert ends(search, a) == ends(search, b) == ends(search, c)
        assert search.best(a).words == search.best(b).words == search.best(c).words
    plain = search.step(pieces[0], search.begin())
    assert search.end(plain).words != search.end(alone[0]).words


def test_a_state_can_be_saved_and_belongs_to_its_hot_words(model: NgramModel) -> None:
    search = PrefixSearch(LETTERS, model, SearchConfig(beam=12, lm_weight=0.8))
    rng, hot = np.random.default_rng(16), hot_words(search, CASES[2])
    first, second = speech(rng, LETTERS, 180), speech(rng, LETTERS, 90)
    state = search.step(first, search.begin(hot))
    saved = SearchState.from_bytes(state.to_bytes())
    search.check_state(saved, hot)
    saved.hot = hot
    assert search.end(search.step(second, saved)) == search.end(search.step(second, state.clone()))
    state.ints[0, PHRASE] = len(hot.given)
    with pytest.raises(StateError, match="does not fit"):
        search.check_state(state, hot)
    state.ints[0, PHRASE] = 1
    with pytest.raises(StateError, match="does not fit"):
        search.check_state(state, None)


@pytest.mark.parametrize(
    ("text", "boost", "reason"),
    [
        ("", 1.0, "it is empty: give a word or a phrase"),
        ("東京", 1.0, "cannot be spelled in the units"),
        ("a#", 1.0, "cannot be spelled in the units of this model .#"),
        ("x a", 1.0, "'_?x' is not among the units"),
        ("a", math.nan, "its boost must be a number"),
    ],
)
@BOTH
def test_unusable_phrases_are_reported(vocabulary: Vocabulary, text: str, boost: float, reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as caught:
        PrefixSearch(vocabulary).hot_words([HotWord("ab", 1.0), HotWord(text, boost)])
    assert str(caught.value).startswith("unusable hot words: ") and "\n" not in str(caught.value)
    assert "'ab'" not in str(caught.value)


@pytest.fixture(scope="module")
def open_model(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Recognizer:
    """The tiny model without a lexicon, reading its letters."""
    path = Path(shutil.copytree(tiny_path, tmp_path_factory.mktemp("models") / "open"))
    Lexicon({}).save(path / LEXICON)
    assert (path / LANGUAGE_MODEL).exists()
    update_config(path, dataclasses.replace(read_config(path), head="characters"))
    return Recognizer.load(path, threads=1)


def test_a_change_in_mid_stream_holds_from_the_next_segment_on(open_model: Recognizer) -> None:
    def texts(results: list[Any]) -> list[str]:
        return [r.text for r in results if isinstance(r, Segment)]

    audio, n = babble(8, seed=4), 80_000
    plain, changed = (open_model.stream(partials=False, endpointing={"long_s": 2.0}) for _ in range(2))
    begun = [texts(s.feed(audio[:n])) for s in (plain, changed)]
    assert begun[0] == begun[1]
    rest = [texts(plain.feed(audio[n:]) + plain.finish())]
    changed.configure(hotwords=[(word, -15.0) for text in rest[0][1:] for word in text.split()])
    moved = open_model.stream(partials=False, state=StreamState.from_bytes(changed.state.to_bytes()))
    rest += [texts(s.feed(audio[n:]) + s.finish()) for s in (changed, moved)]
    assert rest[1] == rest[2]
    assert rest[0][0] == rest[1][0], "the segment that was open"
    assert rest[0][1:] != rest[1][1:]
    with pytest.raises(UsageError, match="unusable hot words: '東京'"):
        open_model.stream(hotwords=["東京"])
