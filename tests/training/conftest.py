"""Fixtures: data and models small enough to train within a test."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from training_data import BY_HEART, CLIPS, MELS, Run, random_shard, toml

from asr.config import from_dict
from asr.features import FeatureConfig
from asr.model import AcousticModel
from asr.training.batches import BatchMaker, TrainingSet
from asr.training.cache import Shard
from asr.training.train import Trainer, model_config
from asr.training.train_config import TrainConfig
from asr.vocabulary import CharacterVocabulary


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Faster for small networks, and the same rounding everywhere."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """One torch thread in every test."""
    with one_torch_thread():
        yield


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the folder of clips: train.tsv, words.dict (CMUdict form) and words.lex."""
    from asr.lexicon import Lexicon

    folder = tmp_path_factory.mktemp("clips")
    shutil.copytree(CLIPS, folder, dirs_exist_ok=True)
    Lexicon.from_cmudict(folder / "words.dict").save(folder / "words.lex")
    return folder


@pytest.fixture
def data() -> TrainingSet:
    """Sixteen utterances of two views."""
    texts = ["ab", "cab", "dad", "be a cab", "abba", "fed", "a bed", "cafe", "bad", "face", "ace", "deaf", "", "bead"]
    return TrainingSet([random_shard([*texts, "add", "egg"], views=2)], {"characters": CharacterVocabulary()})


@pytest.fixture
def noises() -> list[Shard]:
    """Two sounds."""
    return [random_shard(["", ""], seed=5, shortest=60, longest=200)]


@pytest.fixture
def new_trainer(data: TrainingSet, noises: list[Shard], tmp_path: Path) -> Callable[..., Trainer]:
    """Makes tiny trainers; keyword arguments are keys of the configuration (``model`` and ``optimizer``: dicts)."""

    def make(rank: int = 0, world: int = 1, **changes: Any) -> Trainer:
        values: dict[str, Any] = {
            "heads": ["characters"],
            "head_weights": [1.0],
            "batch_seconds": 8.0,
            "precision": "fp32",
            "features": {"mels": MELS},
            **changes,
            "model": {
                **{"hidden": 8, "layers": 2, "channels": 2, "lookahead": [0, 2], "dropout": 0.2},
                **changes.get("model", {}),
            },
            "optimizer": {**{"warmup": 3, "hold": 4, "decay": 5, "average": 0.9}, **changes.get("optimizer", {})},
        }
        config = from_dict(TrainConfig, values)
        torch.manual_seed(config.seed)
        model = AcousticModel(model_config(config, {"characters": len(data.heads["characters"])}))
        maker = BatchMaker(data, config.augment, noises)
        return Trainer(config, model, data, maker, tmp_path, rank=rank, world=world)

    return make


@pytest.fixture
def features() -> FeatureConfig:
    """A small front end."""
    return FeatureConfig(mels=MELS)


@pytest.fixture(scope="session")
def learned(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The clips learned by heart through the command line, with phones and characters."""
    from asr.cli import main

    folder = tmp_path_factory.mktemp("learned")
    run = Run(folder / "run", folder / "config.toml", clips / "train.tsv")
    run.config.write_text(toml({**BY_HEART, "lexicon": clips / "words.lex", "cache": clips / "cache"}))
    manifest = str(run.manifest)
    with one_torch_thread():
        status = main(
            ["train", "--config", str(run.config), "--data", manifest, "--dev", manifest, "--out", str(run.folder)]
        )
    assert status == 0
    return run
