"""Wider models that compute about what narrower ones do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_model import tiny_folder

from asr.checkpoint import find_model
from asr.training.widen import main


@pytest.fixture
def narrow(tmp_path: Path) -> Path:
    return tiny_folder(tmp_path / "narrow")


def wider(narrow: Path, out: Path, hidden: int) -> Path:
    assert main([str(narrow), "--hidden", str(hidden), "--out", str(out)]) == 0
    return out


def test_twice_as_wide_it_says_the_same_and_its_doubled_units_part(narrow: Path, tmp_path: Path) -> None:
    before = find_model(narrow)
    size = before.config.model.hidden
    folder = find_model(wider(narrow, tmp_path / "wide", 2 * size))
    assert folder.config.model.hidden == 2 * size
    old, new = before.load_network(), folder.load_network().requires_grad_(True)
    frames, lengths = torch.randn(2, 60, before.config.model.mels), torch.tensor([60, 41])
    one, two = old(frames, lengths)[0], new(frames, lengths)[0]
    for head, log_probs in one.items():
        assert (log_probs - two[head]).abs().max() < 0.01 * log_probs.std()  # weights are of 16 bits
    torch.manual_seed(0)
    (two[folder.config.head] * torch.randn_like(two[folder.config.head])).sum().backward()
    gradient = new.front_end.project.weight.grad
    assert gradient is not None
    first, second = gradient[:size], gradient[size:]  # of each unit and its double, in some order
    nearest = torch.cdist(first, second).min(dim=1).values
    assert (nearest > 0.05 * first.norm(dim=1)).all()


def test_some_more_units_change_little(narrow: Path, tmp_path: Path) -> None:
    before = find_model(narrow)
    size = before.config.model.hidden
    folder = find_model(wider(narrow, tmp_path / "wide", size + size // 4))
    frames, lengths = torch.randn(2, 60, before.config.model.mels), torch.tensor([60, 60])
    one = before.load_network()(frames, lengths)[0][before.config.head]
    two = folder.load_network()(frames, lengths)[0][before.config.head]
    apart, random = (one - two).abs().mean(), (one - one.flip(1)).abs().mean()
    assert 0 < apart < random / 2


@pytest.mark.parametrize("factor", [0.5, 1, 2.5])
def test_sizes_that_cannot_be(factor: float, narrow: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hidden = round(factor * find_model(narrow).config.model.hidden)
    assert main([str(narrow), "--hidden", str(hidden), "--out", str(tmp_path / "wide")]) == 1
    assert "hidden units: give more, and at most" in capsys.readouterr().err
    assert not (tmp_path / "wide").exists()


def test_models_that_cannot_be_widened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny_folder(tmp_path / "gru", cell="gru")
    hidden = find_model(folder).config.model.hidden + 8
    assert main([str(folder), "--hidden", str(hidden), "--out", str(tmp_path / "wide")]) == 1
    assert "needs an LSTM" in capsys.readouterr().err
