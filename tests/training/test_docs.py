"""docs/training.md names every key with its default."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

from asr.features import FeatureConfig
from asr.model import ModelConfig
from asr.training.batches import AugmentConfig
from asr.training.cache import ViewConfig
from asr.training.train_config import OptimizerConfig, TrainConfig

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
                made = field.default_factory is not dataclasses.MISSING
                found[name] = json.dumps(field.default_factory() if made else field.default)
    return found


def documented() -> dict[str, str]:
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z_0-9.]+)` \| `([^`]*)` \| \S.* \|$", text, re.MULTILINE)
    assert len(rows) == len(dict(rows)), "a key is documented twice"
    return dict(rows)


def test_every_key_is_documented_with_its_default() -> None:
    assert documented() == defaults()
