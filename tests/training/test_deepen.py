"""Deeper models that compute what shallower ones do."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from tiny_model import tiny_folder

from asr.checkpoint import Setting, find_model, read_config, update_config
from asr.training.deepen import main


@pytest.fixture
def shallow(tmp_path: Path) -> Path:
    """With a setting that looks ahead less."""
    folder = tiny_folder(tmp_path / "shallow")
    config = read_config(folder)
    short = tuple(0 for _ in config.model.lookahead)
    update_config(folder, dataclasses.replace(config, settings={"low": Setting(short)}))
    return folder


def test_a_deeper_model_says_the_same_and_can_learn_in_every_layer(shallow: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep"
    before = find_model(shallow)
    last = before.config.model.layers
    assert main([str(shallow), "--after", "1", str(last), "--out", str(out)]) == 0
    folder = find_model(out)
    shape = folder.config.model
    assert shape.layers == last + 2 and shape.lookahead[1] == shape.lookahead[-1] == 0
    assert [n for n in shape.lookahead if n] == [n for n in before.config.model.lookahead if n]
    assert len(folder.config.settings["low"].lookahead) == shape.layers
    old, new = before.load_network(), folder.load_network().requires_grad_(True)
    frames = torch.randn(2, 60, shape.mels)
    lengths = torch.tensor([60, 41])
    for short in (None, "low"):
        few = None if short is None else [0] * shape.layers
        one = old(frames, lengths, lookahead=few and few[:last])[0]
        two = new(frames, lengths, lookahead=few)[0]
        for head, log_probs in one.items():
            assert torch.equal(log_probs, two[head])
    torch.manual_seed(0)
    out_of_new = new(frames, lengths)[0][folder.config.head]
    (out_of_new * torch.randn_like(out_of_new)).sum().backward()
    for layer in (1, shape.layers - 1):  # the new ones: their candidate gates learn first
        gradient = new.recurrent[layer].get_parameter("rnn.weight_ih_l0").grad
        assert gradient is not None
        inputs, forget, candidate, output = (part.abs().sum() for part in gradient.chunk(4))
        assert candidate > 0 and inputs == forget == output == 0


@pytest.mark.parametrize("after", [["0"], ["9"], ["1", "1"]])
def test_layers_that_are_not_there(
    after: list[str], shallow: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(shallow), "--after", *after, "--out", str(tmp_path / "deep")]) == 1
    assert "give layers of the model" in capsys.readouterr().err
    assert not (tmp_path / "deep").exists()


def test_it_loses_nothing(shallow: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(shallow), "--after", "1", "--out", str(shallow)]) == 1
    assert "exists" in capsys.readouterr().err


def test_models_that_cannot_be_deepened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tiny_folder(tmp_path / "gru", cell="gru")
    assert main([str(folder), "--after", "1", "--out", str(tmp_path / "deep")]) == 1
    assert "needs an LSTM" in capsys.readouterr().err
