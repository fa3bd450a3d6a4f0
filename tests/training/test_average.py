"""Means of models' weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_model import babble, tiny_folder

from asr import Recognizer
from asr.checkpoint import find_model
from asr.training.average import main


@pytest.fixture
def two(tmp_path: Path) -> list[str]:
    return [str(tiny_folder(tmp_path / str(seed), seed=seed)) for seed in (1, 2)]


def test_the_mean_of_two_models_is_a_model(two: list[str], tmp_path: Path) -> None:
    out = tmp_path / "mean"
    assert main([*two, "--weights", "1", "3", "--out", str(out)]) == 0
    first, second, mean = (find_model(path).load_network().state_dict() for path in (*two, str(out)))
    for name, value in mean.items():
        expected = 0.25 * first[name].float() + 0.75 * second[name].float()
        np.testing.assert_allclose(value.float(), expected, rtol=1e-3, atol=1e-3, err_msg=name)  # fp16
        assert torch.isfinite(value).all()
    assert Recognizer.load(out).transcribe(babble(1.0), sample_rate=16_000).duration == pytest.approx(1.0, abs=0.01)


def test_it_loses_nothing(two: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*two, "--weights", "1", "1", "--out", two[0]]) == 1
    assert "exists" in capsys.readouterr().err


@pytest.mark.parametrize("weights", [["1"], ["2", "-1"], ["0", "0"]])
def test_weights_that_do_not_fit(
    weights: list[str], two: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*two, "--weights", *weights, "--out", str(tmp_path / "x")]) == 1
    assert "weight for each" in capsys.readouterr().err


def test_models_of_another_shape(two: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wide = str(tiny_folder(tmp_path / "wide", seed=3, hidden=48))
    assert main([two[0], wide, "--weights", "1", "1", "--out", str(tmp_path / "x")]) == 1
    assert "another shape" in capsys.readouterr().err
