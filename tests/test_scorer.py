"""asr.decoding.scorer against an n-gram model held in two dictionaries."""

import dataclasses
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from search_reference import Dictionary

from asr import lm
from asr.decoding import scorer as scorer_module
from asr.decoding.kernels import hashed
from asr.decoding.scorer import NoScorer, Scorer
from asr.lm.model import NgramModel

WORDS = ("a", "b", "c", "d", "e", "f")
STRANGE = "nobody"  # in the lexicon, not in the language model


def texts(seed: int) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, [6, 5, 4, 3, 2, 1], k=rng.randint(1, 9))) for _ in range(40)]


def estimated(order: int, seed: int = 1) -> NgramModel:
    return lm.estimate(texts(seed), order=order, vocabulary=WORDS)


def compare(model: NgramModel, seed: int, sentences: int = 6) -> None:
    """Walk through random sentences, all at once; known words, unknown ones, hot words that nobody knows, the end."""
    names = [*WORDS, STRANGE]
    scorer, plain, rng = Scorer(model, names), Dictionary(model), random.Random(seed)
    contexts = np.full(sentences, scorer.begin)
    histories: list[tuple[str, ...]] = [("<s>",)] * sentences
    for _ in range(12):
        ids = [rng.randint(0, len(names) + 3) for _ in range(sentences)]
        spoken = [names[i] if i < len(names) else "</s>" if i == len(names) else "hot" for i in ids]
        known = [w if w in WORDS or w == "</s>" else "<unk>" for w in spoken]
        log_probs, contexts = scorer.score(contexts, np.array(ids))
        expected = [plain.logprob(w, h, hot=i > len(names)) for i, w, h in zip(ids, known, histories, strict=True)]
        assert log_probs == pytest.approx(expected, abs=1e-5)
        assert (contexts >= 0).all() and (contexts < scorer.contexts).all()
        histories = [(*h, w) for h, w in zip(histories, known, strict=True)]
        # a sentence is over after its end
        ended = np.array([w == "</s>" for w in known])
        contexts = np.where(ended, scorer.begin, contexts)
        histories = [("<s>",) if over else h for h, over in zip(histories, ended, strict=True)]


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
@settings(deadline=None, max_examples=8)
@given(st.integers(0, 10_000))
def test_scores_are_those_of_the_dictionary(order: int, seed: int) -> None:
    compare(estimated(order), seed)


@pytest.mark.parametrize("order", [2, 3, 4])
def test_pruned_models(order: int) -> None:
    full = estimated(order)
    pruned = lm.prune(full, max_ngrams=sum(full.counts[1:]) // 3)
    assert sum(pruned.counts[1:]) <= sum(full.counts[1:]) // 3
    for seed in range(8):
        compare(pruned, seed)


@pytest.mark.parametrize("name", ["words.lm", "words.arpa", "words.klm"])
def test_models_from_files(name: str, tmp_path: Path) -> None:
    """Quantised ones differ from the full one by less than a step of their tables."""
    full = estimated(3)
    lm.save(full, tmp_path / name)
    model = lm.load(tmp_path / name)
    for seed in range(4):
        compare(model, seed)
    mine, theirs = Scorer(full, WORDS), Scorer(model, WORDS)
    ids = np.arange(len(WORDS))
    contexts = mine.begin, theirs.begin
    for word in (0, 1, 0, 2):
        scores = [s.score(np.full(len(ids), c), ids)[0] for s, c in zip((mine, theirs), contexts, strict=True)]
        assert scores[0] == pytest.approx(scores[1], abs=0.02)
        contexts = tuple(
            int(s.score(np.array([c]), np.array([word]))[1][0]) for s, c in zip((mine, theirs), contexts, strict=True)
        )


@settings(deadline=None, max_examples=8)
@given(st.integers(0, 10_000))
def test_back_off_weights_of_ngrams_that_nothing_follows(seed: int) -> None:
    """Other tools may write such weights; what follows must pay them."""
    model, rng = estimated(3), np.random.default_rng(seed)
    backoffs = tuple(rng.normal(-0.3, 0.2, len(b)).astype(np.float32) for b in model.backoffs)
    compare(dataclasses.replace(model, backoffs=backoffs), seed)


def test_company_changes_nothing() -> None:
    model = estimated(3)
    scorer, rng = Scorer(model, WORDS), np.random.default_rng(1)
    contexts, words = rng.integers(0, scorer.contexts, 200), rng.integers(0, len(WORDS) + 3, 200)
    together = scorer.score(contexts, words)
    for i in range(0, 200, 7):
        alone = scorer.score(contexts[i : i + 1], words[i : i + 1])
        assert (alone[0][0], alone[1][0]) == (together[0][i], together[1][i])
    nothing = scorer.score(contexts[:0], words[:0])
    assert len(nothing[0]) == len(nothing[1]) == 0


@pytest.mark.parametrize("bits", [1, 3])
@pytest.mark.parametrize("order", [2, 4])
def test_ngrams_that_share_few_slots_are_all_found(order: int, bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorer_module, "hashed", lambda keys, _: hashed(keys, bits))
    compare(estimated(order), seed=bits)
    assert len(Scorer(estimated(order), WORDS).grams.first) == 2**bits


def test_unigrams_are_those_of_the_model() -> None:
    model = estimated(2)
    plain = Dictionary(model)
    assert Scorer(model, WORDS).unigrams() == pytest.approx([plain.log_probs[(w,)] for w in WORDS])
    assert Scorer(model, WORDS).rare == pytest.approx(min(plain.log_probs[(w,)] for w in (*WORDS, "<unk>")))


def test_without_a_model_everything_costs_nothing() -> None:
    scorer = NoScorer(3)
    log_probs, contexts = scorer.score(np.zeros(4, np.int64), np.array([0, 2, 3, 9]))
    assert log_probs.tolist() == [0.0] * 4 and contexts.tolist() == [0] * 4
    assert scorer.unigrams().tolist() == [0.0] * 3 and scorer.end_of_sentence == 3
