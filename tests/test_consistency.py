"""CR-CTC: two views of every row, and the divergence between what the network says of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from asr.training.batches import Batch
from asr.training.consistency import consistency_loss, two_views


def random_log_probs(rows: int, steps: int, units: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, steps, units, generator=generator, dtype=torch.float64).log_softmax(-1)


def test_it_is_the_sum_of_both_divergences_within_the_rows() -> None:
    log_probs, steps = random_log_probs(4, 5, 3), torch.tensor([5, 2, 5, 2])
    p = log_probs.exp().tolist()
    expected = 0.0
    for a, b, count in ((0, 2, 5), (1, 3, 2)):
        for t in range(count):
            for x, y in zip(p[a][t], p[b][t], strict=True):
                expected += x * math.log(x / y) + y * math.log(y / x)
    assert consistency_loss(log_probs, steps).item() == pytest.approx(expected, rel=1e-5)


def test_equal_views_agree() -> None:
    log_probs = random_log_probs(3, 4, 6).repeat(2, 1, 1).requires_grad_()
    loss = consistency_loss(log_probs, torch.tensor([4, 3, 2] * 2))
    (gradient,) = torch.autograd.grad(loss, log_probs)
    assert loss.item() == pytest.approx(0, abs=1e-6)
    # Through a softmax it is zero: the gradient by log-probabilities is minus the teacher's probabilities.
    logits = log_probs.detach().clone().requires_grad_()
    loss = consistency_loss(logits.log_softmax(-1), torch.tensor([4, 3, 2] * 2))
    assert torch.autograd.grad(loss, logits)[0].abs().max() < 1e-6
    assert gradient.abs().max() > 0.1


def test_the_other_view_is_a_teacher() -> None:
    """By the logits of one view the gradient is its probabilities minus the other's: none flows through the other."""
    logits = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
    loss = consistency_loss(logits.log_softmax(-1), torch.tensor([3, 3]))
    (gradient,) = torch.autograd.grad(loss, logits)
    p = logits.detach().softmax(-1)
    np.testing.assert_allclose(gradient[0].numpy(), (p[0] - p[1]).numpy(), atol=1e-6)
    np.testing.assert_allclose(gradient[1].numpy(), (p[1] - p[0]).numpy(), atol=1e-6)


def test_what_lies_beyond_a_row_counts_nothing() -> None:
    log_probs, steps = random_log_probs(2, 4, 3), torch.tensor([2, 2])
    within = consistency_loss(log_probs[:, :2], steps)
    log_probs[:, 2:] -= torch.tensor([0.0, 5.0, 9.0])
    log_probs.requires_grad_()
    loss = consistency_loss(log_probs, steps)
    assert loss.item() == within.item()
    (gradient,) = torch.autograd.grad(loss, log_probs)
    assert gradient[:, 2:].abs().max() == 0 < gradient[:, :2].abs().min()


@pytest.mark.parametrize("steps", [[3, 2], [3, 3, 3]])
def test_rows_that_are_no_pairs_are_refused(steps: list[int]) -> None:
    with pytest.raises(ValueError, match="pairs of equal length"):
        consistency_loss(random_log_probs(len(steps), 3, 4), torch.tensor(steps))


def test_two_views_have_their_own_masks_and_the_same_text() -> None:
    frames = torch.ones(2, 6, 3)
    frames[1, 4:] = 0
    batch = Batch(
        frames,
        torch.tensor([6, 4]),
        {"characters": torch.tensor([1, 2, 3])},
        {"characters": torch.tensor([2, 1])},
        ("a", "b"),
        ("ab", "c"),
    )

    def mask(row: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
        row[int(rng.integers(len(row)))] = rng.random()
        return row

    twice = two_views(batch, mask, np.random.default_rng(3))
    assert torch.equal(batch.frames, frames) and frames[0].min() == 1
    assert twice.lengths.tolist() == [6, 4, 6, 4]
    assert twice.targets["characters"].tolist() == [1, 2, 3, 1, 2, 3]
    assert twice.target_lengths["characters"].tolist() == [2, 1, 2, 1]
    assert twice.ids == ("a", "b", "a", "b") and twice.texts == ("ab", "c", "ab", "c")
    assert not torch.equal(twice.frames[0], twice.frames[2])
    assert ((twice.frames[0] != 1).any(-1).sum(), (twice.frames[2] != 1).any(-1).sum()) == (1, 1)
    assert twice.frames[[1, 3], 4:].abs().max() == 0


def test_training_with_it_brings_the_views_together() -> None:
    torch.manual_seed(0)
    frames = torch.randn(8, 10, 5)
    views = torch.cat([frames, frames + 0.5 * torch.randn(8, 10, 5)])
    steps = torch.full((16,), 10)
    network = torch.nn.Sequential(torch.nn.Linear(5, 16), torch.nn.Tanh(), torch.nn.Linear(16, 4))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    losses = []
    for _ in range(40):
        loss = consistency_loss(network(views).log_softmax(-1), steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
