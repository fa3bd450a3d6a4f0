"""Muon: orthogonal directions, gate by gate, with AdamW's size; within the trainer, resumable."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from asr.errors import UsageError
from asr.training.muon import Muon, matrices_of, orthogonal
from asr.training.train import CHECKPOINT, Trainer

NewTrainer = Callable[..., Trainer]
MUON = {"optimizer": {"method": "muon"}}


@pytest.mark.parametrize("shape", [(1, 12, 12), (4, 8, 20), (3, 30, 7)])
def test_singular_values_become_about_one(shape: tuple[int, int, int]) -> None:
    generator = torch.Generator().manual_seed(1)
    values = torch.linalg.svdvals(orthogonal(torch.randn(*shape, generator=generator) * 37))
    assert values.min() > 0.3 and values.max() < 1.4  # bf16, and the iteration does not aim at one exactly
    assert values.median() == pytest.approx(1, abs=0.25)


def test_the_direction_is_that_of_the_nearest_orthogonal_matrix() -> None:
    x = torch.randn(1, 10, 16, generator=torch.Generator().manual_seed(2))
    u, _, v = torch.linalg.svd(x[0], full_matrices=False)
    cosine = torch.nn.functional.cosine_similarity(orthogonal(x)[0].flatten(), (u @ v).flatten(), dim=0)
    assert cosine > 0.97


def test_each_gate_is_a_matrix_of_its_own() -> None:
    weight = torch.nn.Parameter(torch.zeros(4 * 6, 6))
    weight.grad = torch.randn(24, 6, generator=torch.Generator().manual_seed(3))
    weight.grad[:6] *= 1e3  # within one matrix, this gate would leave the others nothing
    Muon([{"params": [weight], "gates": 4}], lr=1.0).step()
    norms = weight.detach().view(4, -1).norm(dim=1)
    assert norms.max() / norms.min() < 1.3
    root_mean_square = weight.detach().square().mean().sqrt()
    assert root_mean_square == pytest.approx(0.2, rel=0.25)  # as an update of AdamW


def test_weight_decay_and_momentum() -> None:
    weight = torch.nn.Parameter(torch.ones(4, 4))
    weight.grad = torch.zeros(4, 4)
    optimizer = Muon([{"params": [weight]}], lr=0.1, weight_decay=0.5)
    optimizer.step()
    assert torch.allclose(weight.detach(), torch.full((4, 4), 0.95))
    weight.grad = torch.eye(4)
    optimizer.step()
    before = weight.detach().clone()
    weight.grad = torch.zeros(4, 4)
    optimizer.step()
    assert (before * 0.95 - weight.detach()).diagonal().min() > 0.01  # what was learned goes on without a gradient


def test_it_has_the_matrices_between_front_end_and_heads(new_trainer: NewTrainer) -> None:
    trainer = new_trainer(**MUON)
    assert trainer.muon is not None
    has = {id(p) for group in trainer.muon.param_groups for p in group["params"]}
    names = {name for name, p in trainer.model.named_parameters() if id(p) in has}
    recurrent = {f"recurrent.{i}.rnn.weight_{kind}_l0" for i in (0, 1) for kind in ("ih", "hh")}
    assert names == recurrent | {"front_end.project.weight", "look_ahead.1.linear.weight"}
    rest = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert not has & rest
    assert len(has) + len(rest) == len(list(trainer.model.parameters()))
    gates = {id(p): group["gates"] for group in matrices_of(trainer.model) for p in group["params"]}
    assert gates[id(trainer.model.recurrent[0].rnn.weight_hh_l0)] == 4  # type: ignore[union-attr, index]


def test_a_run_learns(new_trainer: NewTrainer) -> None:
    trainer = new_trainer(optimizer={"method": "muon", "peak_rate": 3e-3, "hold": 100})
    losses = [trainer.train_step()["loss"] for _ in range(60)]
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:10])


def test_a_resumed_run_is_exact(new_trainer: NewTrainer, tmp_path: Path) -> None:
    whole = new_trainer(**MUON)
    for _ in range(8):
        whole.train_step()
    first = new_trainer(**MUON)
    for _ in range(3):
        first.train_step()
    first.save(tmp_path / CHECKPOINT)
    second = new_trainer(**MUON)
    second.load(tmp_path / CHECKPOINT)
    for _ in range(5):
        second.train_step()
    for name, value in whole.model.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), second.model.state_dict()[name].numpy(), err_msg=name)


def test_another_optimizer_cannot_go_on(new_trainer: NewTrainer, tmp_path: Path) -> None:
    trainer = new_trainer()
    trainer.train_step()
    trainer.save(tmp_path / CHECKPOINT)
    with pytest.raises(UsageError, match=r"another optimizer\.method"):
        new_trainer(**MUON).load(tmp_path / CHECKPOINT)
