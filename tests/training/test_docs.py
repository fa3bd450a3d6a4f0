"""docs/training.md names every key with its default, and the recipes are valid."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from asr.features import FeatureConfig
from asr.model import ModelConfig
from asr.training.batches import AugmentConfig
from asr.training.cache import ViewConfig
from asr.training.train_config import OptimizerConfig, TrainConfig, read_config

ROOT = Path(__file__).resolve().parents[2]
TABLES = {
    "": TrainConfig,
    "model": ModelConfig,
    "features": FeatureConfig,
    "views": ViewConfig,
    "augment": AugmentConfig,
    "optimizer": OptimizerConfig,
}
DERIVED = {"model.heads", "model.mels"}  # they follow from other keys


def defaults() -> dict[str, Any]:
    """Every key that a configuration may have, with its default as TOML and JSON write it."""
    found = {}
    for table, cls in TABLES.items():
        for field in dataclasses.fields(cls):
            name = f"{table}.{field.name}" if table else field.name
            if field.name not in TABLES and name not in DERIVED:
                found[name] = json.dumps(field.default)
    return found


def documented() -> dict[str, str]:
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z_0-9.]+)` \| `([^`]*)` \| \S.* \|$", text, re.MULTILINE)
    assert len(rows) == len(dict(rows)), "a key is documented twice"
    return dict(rows)


def test_every_key_is_documented_with_its_default() -> None:
    assert documented() == defaults()


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.toml")), ids=lambda p: p.stem)
def test_recipes_are_valid(path: Path) -> None:
    assert read_config(path).optimizer.steps > 0


def test_the_small_recipe_is_the_network_it_says() -> None:
    from asr.model import AcousticModel
    from asr.training.train_config import model_config

    config = read_config(ROOT / "recipes" / "small.toml")
    model = AcousticModel(model_config(config, {"phones": 40, "characters": 29}))
    first_line = (ROOT / "recipes" / "small.toml").read_text().splitlines()[0]
    assert f"{model.parameter_count / 1e6:.1f} million parameters" in first_line
    assert f"{model.config.algorithmic_latency_ms} ms of algorithmic latency" in first_line
