"""Which of a word's pronunciations was said."""

from __future__ import annotations

import collections
import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Run
from numpy.typing import NDArray
from safetensors.torch import load_file
from training_data import random_shard

from asr.checkpoint import LEXICON, WEIGHTS, copy_folder, find_model, read_config, update_config
from asr.lexicon import Lexicon
from asr.training import run, train_config
from asr.training.batches import TrainingSet
from asr.training.manifest import Utterance, read_manifest
from asr.training.pronunciations import choose, costs_of, heard_pronunciations, main, sample
from asr.vocabulary import PhoneVocabulary

READ = Lexicon({"read": [("R", "IY", "D"), ("R", "EH", "D")], "the": [("DH", "AH"), ("DH", "IY")], "a": [("AH",)]})
UNITS = PhoneVocabulary.of(("AH", "D", "DH", "EH", "IY", "R"), READ)


def random_emissions(steps: int, seed: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    return torch.log_softmax(torch.from_numpy(rng.normal(size=(steps, 7)).astype(np.float32) * 2), -1).numpy()


def best_of_all(log_probs: NDArray[np.float32], words: list[list[tuple[int, ...]]]) -> tuple[float, list[int]]:
    """By trying all: the likeliest path of each choice."""
    from torchaudio.functional import forced_align

    best = -np.inf, [0]
    for numbers in itertools.product(*(range(len(w)) for w in words)):
        units = [u for w, n in zip(words, numbers, strict=True) for u in w[n]]
        if len(units) + sum(a == b for a, b in itertools.pairwise(units)) > len(log_probs):
            continue
        _, scores = forced_align(torch.from_numpy(log_probs)[None], torch.tensor([units], dtype=torch.int32))
        best = max(best, (float(scores.sum()), list(numbers)))
    return best


@pytest.mark.parametrize("seed", range(30))
def test_the_choice_is_that_of_the_likeliest_path(seed: int) -> None:
    words = [[tuple(UNITS.encode_phones(p)) for p in READ.pronounce(w)] for w in ("read", "the", "a", "the", "read")]
    log_probs = random_emissions(13 + seed, seed)  # at least twelve are needed, as two units repeat
    score, numbers = best_of_all(log_probs, words)
    assert np.isfinite(score)
    assert choose(log_probs, words).tolist() == numbers


def test_units_that_repeat_have_a_blank_between_them() -> None:
    words = [[(1, 1), (1, 2)]]
    log_probs = np.log(np.array([[0.1, 0.8, 0.1], [0.1, 0.8, 0.1]], dtype=np.float32))
    assert choose(log_probs, words).tolist() == [1]  # (1, 1) wants three steps
    longer = np.log(np.array([[0.1, 0.8, 0.1], [0.8, 0.1, 0.1], [0.1, 0.8, 0.1]], dtype=np.float32))
    assert choose(longer, words).tolist() == [0]


@pytest.mark.parametrize(("steps", "words"), [(9, []), (2, [[(1, 2, 3)]]), (3, [[(1, 1), (2, 2)], [(3,)]])])
def test_what_does_not_fit_has_no_choice(steps: int, words: list[list[tuple[int, ...]]]) -> None:
    assert len(choose(random_emissions(steps, 1), words)) == 0


# -- a training set ----------------------------------------------------------------------------------------------------


@pytest.fixture
def data() -> TrainingSet:
    shard = random_shard(["read the a the read", "a read", "the"], views=2, shortest=40, longest=60)
    return TrainingSet([shard], {"phones": UNITS})


def phones(data: TrainingSet, utterance: int, view: int = 0) -> str:
    return UNITS.decode(data.target("phones", utterance, view).tolist())


def test_targets_are_what_was_said(data: TrainingSet) -> None:
    before = phones(data, 2)
    data.pronounce("phones", [np.array([1, 0, 0, 1, 0]), np.array([0, 1]), np.zeros(0, dtype=np.int64)])
    assert phones(data, 0) == "R EH D DH AH AH DH IY R IY D"
    assert phones(data, 1) == "AH R EH D"
    assert phones(data, 2) == before == "DH AH"


def test_pieces_say_it_too(data: TrainingSet) -> None:
    data.pronounce("phones", [np.array([1, 0, 0, 1, 0]), np.array([0, 1]), np.array([1])])
    data.cut_at([np.linspace(0, data.length(0, 0), 6).astype(np.int64), *[np.zeros(0, dtype=np.int64)] * 2], 0.5)
    view = 2 * (100 + 1000 * 0 + 1_000_000 * 3)  # two words, from the fourth
    assert data.text(0, view) == "the read"
    assert phones(data, 0, view) == "DH IY R IY D"


def test_what_the_fastest_view_has_no_time_for_is_not_said() -> None:
    long = Lexicon({"a": [("AH",), ("AH", "D", "AH", "D", "AH", "D")]})
    units = PhoneVocabulary.of(("AH", "D"), long)
    data = TrainingSet([random_shard(["a", "a"], views=1, shortest=8, longest=10)], {"phones": units})
    data.pronounce("phones", [np.array([1]), np.array([0])])
    assert [len(data.target("phones", u, 0)) for u in range(2)] == [1, 1]


# -- a run -------------------------------------------------------------------------------------------------------------


def test_a_trained_network_hears_which_one_it_was(learned: Run, tmp_path: Path) -> None:
    """It has learned the first ones; a lexicon that has them second does not fool it."""
    settings = train_config.read_config(learned.config)
    prepared = run.prepare(settings, [str(learned.manifest)], [], learned.folder, saved={})
    data, folder = prepared.data, find_model(learned.folder / "model")
    words = sorted({word for text in data.texts for word in text.split()})
    wrong = {word: tuple(reversed(prepared.lexicon.pronounce(word)[0])) for word in words}
    swapped = Lexicon({w: dict.fromkeys([wrong[w], prepared.lexicon.pronounce(w)[0]]) for w in words})
    old = data.heads["phones"]
    assert isinstance(old, PhoneVocabulary)
    data.heads["phones"] = PhoneVocabulary(old.units, swapped)
    said = heard_pronunciations(folder, data, "phones", settings.features, tmp_path)
    assert [len(s) for s in said] == [len(text.split()) for text in data.texts]
    right = [
        swapped.pronounce(word)[n] == prepared.lexicon.pronounce(word)[0]
        for text, numbers in zip(data.texts, said, strict=True)
        for word, n in zip(text.split(), numbers.tolist(), strict=True)
    ]
    assert np.mean(right) > 0.9
    assert len(list(tmp_path.glob("pronunciations-*.npz"))) == 1
    again = heard_pronunciations(folder, data, "phones", settings.features, tmp_path)
    assert all(np.array_equal(one, two) for one, two in zip(said, again, strict=True))


def test_a_run_learns_what_was_heard(learned: Run, tmp_path: Path) -> None:
    settings = dataclasses.replace(
        train_config.read_config(learned.config), pronunciations="heard", aligner=str(learned.folder / "model")
    )
    data = run.prepare(settings, [str(learned.manifest)], [], tmp_path).data
    assert [len(s) for s in data.said["phones"]] == [len(text.split()) for text in data.texts]
    for u, text in enumerate(data.texts):
        units = data.heads["phones"]
        assert isinstance(units, PhoneVocabulary)
        assert data.target("phones", u, 0).tolist() == units.encode(text, data.said["phones"][u].tolist())


# -- how likely each is ------------------------------------------------------------------------------------------------


def test_costs_are_those_of_the_counts() -> None:
    ways = {"the": 2, "often": 3, "a": 1, "rare": 2}
    costs = costs_of({"the": {0: 95, 1: 5}, "often": {1: 50}}, ways)
    assert costs["the"] == pytest.approx([0.0, np.log(99 / 6)])
    assert costs["often"] == pytest.approx([np.log(50.5 / 4), 0.0, np.log(50.5 / 0.5)])
    assert costs["rare"] == pytest.approx([0.0, np.log(4)]) and "a" not in costs


def test_a_sample_has_about_so_many_hours() -> None:
    utterances = [Utterance(str(i), Path("a.wav"), 0.0, 36.0 if i % 2 else None, "") for i in range(200)]
    assert sample(utterances, 100) == utterances
    some = sample(utterances, 0.4)
    assert len(some) in (66, 67) and some[1] is utterances[3]
    assert sample(utterances[:1], 1e-4) == utterances[:1] and sample([], 1) == []


def test_a_model_gets_costs(learned: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = find_model(learned.folder / "model")
    lexicon = before.load_lexicon()
    said = collections.Counter(w for u in read_manifest(str(learned.manifest)) for w in u.text.split())
    word, count = said.most_common(1)[0]
    Lexicon({**dict(lexicon.items()), word: [("Z", "Z", "Z"), lexicon[word][0]]}).save(tmp_path / "two.lex")
    folder = tmp_path / "two"
    copy_folder(before, folder, load_file(before.path / WEIGHTS))
    (tmp_path / "two.lex").replace(folder / LEXICON)
    update_config(folder, read_config(folder))
    cache, out = tmp_path / "cache", tmp_path / "out"
    wanted = ["--data", str(learned.manifest), "--cache", str(cache), "--out", str(out)]
    assert main([str(folder), *wanted]) == 0
    assert "said as the lexicon's first pronunciation has it" in capsys.readouterr().out
    made = find_model(out).load_lexicon()
    costs = dict(zip(made[word], made.costs(word), strict=True))
    right = costs[lexicon[word][0]] - costs["Z", "Z", "Z"]  # the network has learned that the other one is not said
    assert count >= 2 and right == pytest.approx(np.log(4 / (1 + count)), abs=0.06)
    assert (out / WEIGHTS).read_bytes() == (before.path / WEIGHTS).read_bytes() and any(cache.iterdir())
    assert main([str(folder), *wanted]) == 1 and "exists" in capsys.readouterr().err
