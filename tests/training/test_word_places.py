"""Pieces of utterances: where words lie, and what is trained on."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_model import tiny_folder
from training_data import BY_HEART, MELS, Run, random_shard, toml, train

from asr.checkpoint import find_model, read_config, update_config
from asr.errors import UsageError
from asr.features import FeatureConfig
from asr.training import run, train_config
from asr.training.batches import NO_AUGMENT, BatchMaker, BatchPlan, TrainingSet
from asr.training.word_places import places, word_places
from asr.vocabulary import CharacterVocabulary


def spikes(*units: int, sure: float = 0.97) -> torch.Tensor:
    """Emissions of five units that say these one after another."""
    probabilities = torch.full((len(units), 5), (1 - sure) / 4)
    probabilities[torch.arange(len(units)), torch.tensor(units)] = sure
    return probabilities.log()


def test_cuts_lie_in_the_middle_between_spikes() -> None:
    # Steps 0 to 11: the words [1, 2], [3], [3, 4].
    log_probs = spikes(0, 1, 1, 2, 0, 0, 3, 0, 0, 3, 4, 0)
    assert places(log_probs, [[1, 2], [3], [3, 4]]).tolist() == [0, 5, 8, 12]
    assert places(log_probs, [[1, 2, 3, 3, 4]]).tolist() == [0, 12]


@pytest.mark.parametrize("words", [[], [[1], []], [[1, 1, 1], [2]], [[1, 2, 3], [4, 1]]])
def test_what_does_not_fit_has_no_places(words: list[list[int]]) -> None:
    assert len(places(spikes(0, 1, 2, 0), words)) == 0


# -- pieces of a training set ------------------------------------------------------------------------------------------


@pytest.fixture
def data() -> TrainingSet:
    """Sentences of six words, each word a sixth of the frames: their places are known."""
    texts = ["a bad cab faced a bed", "be a dead cafe a ace", "ab"]
    data = TrainingSet([random_shard(texts, views=3, shortest=90, longest=130)], {"characters": CharacterVocabulary()})
    data.cut_at([np.linspace(0, data.length(u, 0), 7).astype(np.int64) for u in range(2)] + [np.array([0, 3])], 0.5)
    return data


def numbers(chance: int, size: int, place: int, view: int = 1) -> int:
    """A view's number that has these hidden in it."""
    return 3 * (chance + 1000 * size + 1_000_000 * place) + view


def test_a_piece_has_the_frames_and_units_of_its_words(data: TrainingSet) -> None:
    view = numbers(chance=100, size=400, place=3)  # three of six words, from the fourth
    assert data.text(0, view) == "faced a bed"
    assert data.target("characters", 0, view).tolist() == data.heads["characters"].encode("faced a bed")
    whole, piece = data.frames(0, 1), data.frames(0, view)
    scale = len(whole) / data.length(0, 0)
    first = round(int(data.cuts[0][3]) * scale)
    assert data.length(0, view) == len(piece) == len(whole) - first
    np.testing.assert_array_equal(piece, whole[first:])


def test_what_stays_whole(data: TrainingSet) -> None:
    for utterance, view in ((0, 0), (0, 1), (0, numbers(900, 400, 1)), (2, numbers(100, 400, 1))):
        assert data.text(utterance, view) == data.texts[utterance]
        assert data.length(utterance, view) == data.places[utterance][view % 3][2]


def test_units_that_find_no_steps_stay_in_their_utterance(data: TrainingSet) -> None:
    data.cuts[0] = np.array([0, 1, 2, 3, 4, 5, data.length(0, 0)])
    assert data.text(0, numbers(100, 0, 1)) == data.texts[0]  # two words in two frames


def test_a_half_of_the_views_is_cut_and_pieces_are_of_all_sizes(data: TrainingSet) -> None:
    rng = np.random.default_rng(1)
    lengths = [len(data.text(0, int(view)).split()) for view in rng.integers(0, 1 << 30, 2000)]
    assert 0.45 < np.mean([n < 6 for n in lengths]) < 0.55
    assert {n for n in lengths if n < 6} == {2, 3, 4, 5}


def test_a_batch_says_what_its_pieces_say(data: TrainingSet) -> None:
    heard = set()
    for epoch in range(30):
        plan = BatchPlan(data, NO_AUGMENT, 60.0, seed=1, epoch=epoch)
        for step in range(len(plan)):
            rows = plan.rows(step)
            batch = BatchMaker(data, NO_AUGMENT).make(rows, np.random.default_rng(0))
            assert batch.lengths.tolist() == [sum(data.length(*part) for part in row) for row in rows]
            units = batch.targets["characters"].split(batch.target_lengths["characters"].tolist())
            for text, said in zip(batch.texts, units, strict=True):
                assert said.tolist() == data.heads["characters"].encode(text)
            heard.update(batch.texts)
    assert set(data.texts) < heard and len(heard) > 12
    assert all(any(text in whole for whole in data.texts) for text in heard)


# -- a run -------------------------------------------------------------------------------------------------------------


def test_words_of_a_trained_network_lie_where_they_are_said(learned: Run, tmp_path: Path) -> None:
    settings = train_config.read_config(learned.config)
    data = run.prepare(settings, [str(learned.manifest)], [], learned.folder, saved={}).data
    folder = find_model(learned.folder / "model")
    cuts = word_places(folder, data, settings.features, tmp_path)
    assert [len(c) for c in cuts] == [len(text.split()) + 1 for text in data.texts]
    for utterance, c in enumerate(cuts):
        assert c[0] == 0 and c[-1] == data.length(utterance, 0) and (np.diff(c) > 0).all()
    assert len(list(tmp_path.glob("places-*.npz"))) == 1
    again = word_places(folder, data, settings.features, tmp_path)
    assert all(np.array_equal(one, two) for one, two in zip(cuts, again, strict=True))
    with pytest.raises(UsageError, match="must hear the same"):
        word_places(folder, data, FeatureConfig(mels=40, window_ms=25), tmp_path)


def test_an_aligner_without_phones(tmp_path: Path, data: TrainingSet) -> None:
    path = tiny_folder(tmp_path / "tiny")
    update_config(path, dataclasses.replace(read_config(path), head="characters"))
    with pytest.raises(UsageError, match="has no phones"):
        word_places(find_model(path), data, FeatureConfig(mels=MELS), tmp_path)


def test_a_run_with_pieces(learned: Run, tmp_path: Path) -> None:
    """What was learned by heart is heard in pieces, too."""
    schedule: dict[str, Any] = {"peak_rate": 1e-4, "warmup": 1, "hold": 3, "decay": 1}
    values = BY_HEART | {
        "cache": learned.manifest.parent / "cache",
        "aligner": learned.folder / "model",
        "augment": BY_HEART["augment"] | {"cut": 0.9, "join": 0.5},
        "optimizer": BY_HEART["optimizer"] | schedule,
    }
    config = tmp_path / "config.toml"
    config.write_text(toml(values))
    out = tmp_path / "run"
    assert train(config, learned.manifest, out, "--init", str(learned.folder / "model")) == 0
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    losses = [line["phones"] for line in lines if "phones" in line]
    assert len(losses) == 5 and max(losses) < 2.5  # a network that knows nothing has 3.7 a phone
