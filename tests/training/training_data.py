"""Data and settings small enough to train within a test."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from asr.cli import main
from asr.training.cache import Shard
from asr.training.manifest import Utterance

CLIPS = Path(__file__).resolve().parent.parent / "training_clips"
MELS = 8

# Settings under which the clips are learned by heart within some seconds: all tables, no augmentation.
BY_HEART: dict[str, Any] = {
    "batch_seconds": 30.0,
    "head_weights": [0.5, 0.5],
    "carry": 0.0,
    "precision": "fp32",
    "evaluate_minutes": 60.0,
    "workers": 1,
    "model": {"hidden": 64, "layers": 2, "channels": 8, "lookahead": [0, 2], "dropout": 0.0},
    "features": {"mels": 40},
    "views": {"speeds": [1.0], "channels": 0},
    "augment": {
        "noise": 0.0,
        "babble": 0.0,
        "volume_db": [0.0, 0.0],
        "warp": 0.0,
        "frequency_masks": 0,
        "time_masks": 0,
        "join": 0.0,
        "padding": 0.0,
        "empty": 0.0,
    },
    "optimizer": {"peak_rate": 5e-3, "warmup": 10, "hold": 100, "decay": 70, "weight_decay": 0.0, "average": 0.9},
}


@dataclass(frozen=True)
class Run:
    """A finished run of ``asr train``: its folder, configuration and manifest."""

    folder: Path
    config: Path
    manifest: Path


def toml(values: dict[str, Any]) -> str:
    """``values`` (two levels, plain scalars and lists) as TOML."""

    def show(value: Any) -> str:
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, (list, tuple)):
            return f"[{', '.join(map(show, value))}]"
        return f'"{value}"' if isinstance(value, (str, Path)) else repr(value)

    lines = [f"{key} = {show(value)}" for key, value in values.items() if not isinstance(value, dict)]
    for name, table in values.items():
        if isinstance(table, dict):
            lines += [f"[{name}]", *(f"{key} = {show(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


def random_shard(
    texts: list[str], seed: int = 0, views: int = 1, shortest: int = 40, longest: int = 80, corpus: str = ""
) -> Shard:
    """Random log-mel frames that pretend to be utterances of ``texts``."""
    rng = np.random.default_rng(seed)
    index, parts, position = [], [], 0
    for number in range(len(texts)):
        for view in range(views):
            frames = rng.normal(-3, 2, (int(rng.integers(shortest, longest)), MELS)).astype(np.float16)
            index.append([number, view, position, len(frames)])
            parts.append(frames)
            position += len(frames)
    said = Utterance("", Path("x.wav"), 0.0, None, "", corpus=corpus)
    utterances = tuple(dataclasses.replace(said, id=f"u{i}", text=text) for i, text in enumerate(texts))
    return Shard(np.concatenate(parts), np.array(index), utterances)


def train(config: Path, manifest: Path, out: Path, *more: str) -> int:
    """`asr train` on one table, which is its dev table, too."""
    return main(
        ["train", "--config", str(config), "--data", str(manifest), "--dev", str(manifest), "--out", str(out), *more]
    )
