"""Open-vocabulary search, against the sum over all alignments."""

import dataclasses
import itertools
import math
import shutil
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from tiny_model import babble

from asr import Recognizer, lm
from asr.checkpoint import LANGUAGE_MODEL, LEXICON, read_config, update_config
from asr.decoding.greedy import GreedySearch
from asr.decoding.hypothesis import Emissions
from asr.decoding.prefix_search import PrefixSearch
from asr.decoding.search_config import SearchConfig
from asr.decoding.search_state import CONTEXT, HISTORY, NAME, UNIT, SearchState
from asr.errors import ModelError, StateError
from asr.lexicon import Lexicon
from asr.lm.model import NgramModel
from asr.stream_state import StreamState
from asr.vocabulary import BpeVocabulary, CharacterVocabulary, PhoneVocabulary, Vocabulary

LETTERS = CharacterVocabulary(["<blank>", "a", "b", " "])
PIECES = BpeVocabulary(["<blank>", "_a", "a", "b", "_ab"], [])
WIDE = SearchConfig(beam=10_000, tokens=99, threshold=1e9, lm_weight=1.3, word_score=0.4, blank_skip=1.0)
SENTENCES = ("a ab b", "ab ab a", "b a ba", "ba ab b a", "a ba")


@pytest.fixture(scope="module")
def model() -> NgramModel:
    return lm.estimate(SENTENCES, order=3, vocabulary=("a", "b", "ab", "ba"))


def random_emissions(rng: np.random.Generator, steps: int, units: int, peaky: float = 2.0) -> Emissions:
    logits = rng.normal(0, peaky, (steps, units))
    return (logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)).astype(np.float32)


def language(model: NgramModel, text: str) -> float:
    """log10 probability; an unknown word costs what the rarest known one does."""
    state, total = model.begin(), 0.0
    rare = float(np.delete(model.log_probs[0], [1, 2]).min())
    for word in text.split():
        log_prob, state = model.step(state, word)
        total += log_prob + (0.0 if word in model.word_ids else rare - float(model.log_probs[0][0]))
    return total + model.step(state, "</s>")[0]


def texts_of_all_alignments(
    emissions: Emissions, vocabulary: Vocabulary, model: NgramModel | None, config: SearchConfig
) -> dict[str, float]:
    """The score of every text: the sum over all paths that spell it."""
    sums: dict[str, float] = defaultdict(lambda: -math.inf)
    for path in itertools.product(range(len(vocabulary)), repeat=len(emissions)):
        text = vocabulary.decode(unit for unit, _ in itertools.groupby(path))
        sums[text] = np.logaddexp(sums[text], sum(emissions[t, u] for t, u in enumerate(path)))
    for text in sums:
        sums[text] += config.word_score * len(text.split())
        sums[text] += config.lm_weight * language(model, text) if model else 0.0
    return sums


@pytest.mark.parametrize("vocabulary", [LETTERS, PIECES], ids=["characters", "bpe"])
@pytest.mark.parametrize("with_model", [True, False])
def test_equals_the_sum_over_all_alignments(vocabulary: Vocabulary, with_model: bool, model: NgramModel) -> None:
    search = PrefixSearch(vocabulary, model if with_model else None, WIDE, recombine=False)
    rng = np.random.default_rng(1)
    for steps in (1, 3, 6):
        emissions = random_emissions(rng, steps, len(vocabulary))
        expected = texts_of_all_alignments(emissions, vocabulary, model if with_model else None, WIDE)
        found = search.end_nbest(search.step(emissions, search.begin()), 10_000)
        assert {h.text: h.score for h in found} == pytest.approx(dict(expected), abs=1e-4)
        assert [h.score for h in found] == sorted((h.score for h in found), reverse=True)


def test_the_language_model_and_priors_can_be_left_out(model: NgramModel) -> None:
    emissions = random_emissions(np.random.default_rng(2), 6, len(LETTERS))
    search = PrefixSearch(LETTERS, model, WIDE, recombine=False)
    found = search.end_nbest(search.step(emissions, search.begin(lm_scale=0.0)), 50)
    expected = texts_of_all_alignments(emissions, LETTERS, None, WIDE)
    assert {h.text: h.score for h in found} == pytest.approx({h.text: expected[h.text] for h in found}, abs=1e-4)
    log_priors = np.log(np.array([0.5, 0.3, 0.1, 0.1], dtype=np.float32))
    config = SearchConfig(beam=10_000, tokens=99, threshold=1e9, lm_weight=1.0, prior_weight=0.7, blank_skip=1.0)
    search = PrefixSearch(LETTERS, model, config, log_priors, recombine=False)
    expected = texts_of_all_alignments(emissions - 0.7 * log_priors, LETTERS, model, config)
    best = search.end(search.step(emissions, search.begin()))
    assert best.text == max(expected, key=lambda text: expected[text])
    assert best.score == pytest.approx(expected[best.text], abs=1e-4)


@pytest.mark.parametrize("vocabulary", [LETTERS, PIECES], ids=["characters", "bpe"])
def test_recombination_keeps_a_best_text(vocabulary: Vocabulary, model: NgramModel) -> None:
    rng = np.random.default_rng(3)
    kept, count = 0, 15
    config = dataclasses.replace(WIDE, beam=1000, threshold=40.0)
    for _ in range(count):
        emissions = random_emissions(rng, 10, len(vocabulary), peaky=3.0)
        every, best = (PrefixSearch(vocabulary, model, config, recombine=r) for r in (False, True))
        scores = {h.text: h.score for h in every.end_nbest(every.step(emissions, every.begin()), 1000)}
        text = best.end(best.step(emissions, best.begin())).text
        assert scores[text] > max(scores.values()) - 1.0  # its other spelling may have given way
        kept += scores[text] == max(scores.values())
    assert kept >= count - 2


def speech(rng: np.random.Generator, vocabulary: Vocabulary, steps: int) -> Emissions:
    """Emissions as of a network: mostly surely blank, units in between."""
    emissions = random_emissions(rng, steps, len(vocabulary), peaky=1.5)
    quiet = rng.random(steps) < 0.6
    emissions[quiet, 0] += 12.0
    return (emissions - np.logaddexp.reduce(emissions, axis=1, keepdims=True)).astype(np.float32)


def ends(search: PrefixSearch, state: SearchState) -> list[tuple[object, float]]:
    return [(h.words, pytest.approx(h.score, abs=1e-6)) for h in search.end_nbest(state, 3)]


@pytest.mark.parametrize("vocabulary", [LETTERS, PIECES], ids=["characters", "bpe"])
def test_streaming_equals_offline_alone_and_in_company(vocabulary: Vocabulary, model: NgramModel) -> None:
    search = PrefixSearch(vocabulary, model, SearchConfig(beam=12, threshold=15.0, lm_weight=0.8))
    rng = np.random.default_rng(4)
    pieces = [speech(rng, vocabulary, steps) for steps in (400, 150, 1, 0, 330)]
    alone = [search.step(e, search.begin()) for e in pieces]
    together = [search.begin() for _ in pieces]
    search.step_many(list(zip(pieces, together, strict=True)))
    cut = [search.begin() for _ in pieces]
    for at in range(0, 400, 7):
        search.step_many([(e[at : at + 7], s) for e, s in zip(pieces, cut, strict=True)])
    assert sum(len(search.end(s).words) for s in alone) > 30
    for a, b, c in zip(alone, together, cut, strict=True):
        assert ends(search, a) == ends(search, b) == ends(search, c)
        assert search.best(a).words == search.best(b).words == search.best(c).words
        assert search.stable(a) == search.stable(b) == search.stable(c)


@pytest.mark.parametrize("vocabulary", [LETTERS, PIECES], ids=["characters", "bpe"])
def test_stable_words_stay_times_are_in_order_and_memory_is_bounded(vocabulary: Vocabulary, model: NgramModel) -> None:
    search = PrefixSearch(vocabulary, model, SearchConfig(beam=8, threshold=12.0, lm_weight=0.8, blank_skip=0.999))
    rng = np.random.default_rng(5)
    state, held, most = search.begin(), [], 0
    for _ in range(60):
        search.step(speech(rng, vocabulary, 25), state)
        words = [w.text for w in search.best(state).words]
        stable = search.stable(state)
        assert words[: len(held)] == held  # what was stable is
        assert stable >= len(held)
        held = words[:stable]
        most = max(most, state.history.size)
    final = search.end(state).words
    assert [w.text for w in final][: len(held)] == held and len(held) > 50
    assert all(0 <= w.first <= w.last < state.steps for w in final)
    assert all(a.last < b.first for a, b in itertools.pairwise(final))
    assert most < 3000


def test_streams_of_which_some_hypotheses_come_late_share_a_frame(model: NgramModel) -> None:
    search = PrefixSearch(LETTERS, model, SearchConfig(beam=50, tokens=3, lm_weight=0.8))
    rng = np.random.default_rng(8)
    busy, quiet = random_emissions(rng, 30, len(LETTERS)), np.full((30, len(LETTERS)), -60.0, dtype=np.float32)
    quiet[:, 0] = -0.01  # nothing but what was said before: no new hypotheses in the last row
    states = [search.begin(), search.begin()]
    search.step_many([(busy, states[0]), (quiet, states[1])])
    assert ends(search, states[0]) == ends(search, search.step(busy, search.begin()))
    assert search.end(states[1]).words == ()


def test_a_state_can_be_copied_and_saved(model: NgramModel) -> None:
    search = PrefixSearch(LETTERS, model, SearchConfig(beam=12, lm_weight=0.8))
    rng = np.random.default_rng(6)
    first, second = speech(rng, LETTERS, 180), speech(rng, LETTERS, 90)
    state = search.step(first, search.begin())
    copy, saved = state.clone(), SearchState.from_bytes(state.to_bytes())
    search.check_state(saved, None)
    before = search.end(state)
    expected = search.end(search.step(second, state))
    assert search.end(copy) == before
    assert search.end(search.step(second, copy)) == expected == search.end(search.step(second, saved))


@pytest.mark.parametrize("column, value", [(UNIT, 0), (UNIT, 4), (CONTEXT, 10**6), (HISTORY, 10**6)])
def test_states_that_do_not_fit_are_refused(column: int, value: int, model: NgramModel) -> None:
    search = PrefixSearch(LETTERS, model, SearchConfig(beam=12))
    state = search.step(speech(np.random.default_rng(7), LETTERS, 50), search.begin())
    search.check_state(state, None)
    broken = state.clone()
    broken.ints = state.ints.copy()
    broken.ints[0, column] = value
    with pytest.raises(StateError, match="does not fit"):
        search.check_state(broken, None)
    state.history.data[0, NAME] = 0
    with pytest.raises(StateError, match="does not fit"):
        search.check_state(state, None)


def spoken(vocabulary: Vocabulary, text: str, sure: float = 0.9) -> Emissions:
    """Emissions of a clear voice."""
    rows = []
    for unit in vocabulary.encode(text):
        for best in (unit, 0):
            row = np.full(len(vocabulary), (1 - sure) / (len(vocabulary) - 1))
            row[best] = sure
            rows.append(np.log(row))
    return np.array(rows, dtype=np.float32)


def test_any_word_can_be_said_and_known_ones_are_preferred() -> None:
    letters = CharacterVocabulary()
    model = lm.estimate(["the cat sat", "the dog sat", "a cat sat down"] * 3, order=2)
    search = PrefixSearch(letters, model, SearchConfig(lm_weight=0.5))
    said = search.end(search.step(spoken(letters, "the zyx sat"), search.begin()))
    assert said.text == "the zyx sat"
    assert said.words[1].first == 8 and said.words[1].last == 12
    unclear = spoken(letters, "the cat sat")
    unclear[8, letters.index["k"]] = unclear[8, letters.index["c"]] + 0.2
    assert search.end(search.step(unclear, search.begin())).text == "the cat sat"
    assert search.end(search.step(unclear, search.begin(lm_scale=0.0))).text == "the kat sat"


def test_an_end_is_final_where_the_model_expects_one() -> None:
    letters = CharacterVocabulary()
    model = lm.estimate(["the cat sat", "the dog sat"] * 3, order=2)
    search = PrefixSearch(letters, model, SearchConfig(lm_weight=0.5))
    finals = {t: search.looks_final(search.step(spoken(letters, t), search.begin())) for t in ("the cat sat", "the")}
    assert finals == {"the cat sat": True, "the": False}
    assert not search.looks_final(search.begin())
    assert search.end(search.begin()).words == ()


def test_phones_spell_no_words() -> None:
    with pytest.raises(ModelError, match="spell no words"):
        PrefixSearch(PhoneVocabulary.of(["AH"]))


def test_the_recogniser_uses_it_for_letters_without_a_lexicon(tiny_path: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(tiny_path, tmp_path / "open"))
    Lexicon({}).save(path / LEXICON)
    assert (path / LANGUAGE_MODEL).exists()
    update_config(path, read_config(path))
    assert isinstance(Recognizer.load(path).search, GreedySearch)  # phones
    update_config(path, dataclasses.replace(read_config(path), head="characters"))
    recognizer, audio = Recognizer.load(path), babble(6, seed=1)
    assert isinstance(recognizer.search, PrefixSearch)
    stream = recognizer.stream()
    expected = stream.feed(audio) + stream.finish()
    stream = recognizer.stream(partials=False)
    results = stream.feed(audio[:30_000])
    stream = recognizer.stream(partials=False, state=StreamState.from_bytes(stream.state.to_bytes()))
    results += stream.feed(audio[30_000:]) + stream.finish()
    texts = [r.text for r in results if hasattr(r, "reason")]
    assert texts == [r.text for r in expected if hasattr(r, "reason")] and "".join(texts)
