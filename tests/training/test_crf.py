"""The denominator of CTC-CRF against a sum over all paths, one by one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from asr.errors import ConfigError
from asr.training.crf import Denominator, unit_trigram
from asr.training.train import Trainer
from asr.training.train_config import TrainConfig

UNITS = 4
TEXTS = [[1, 2, 3], [1, 1, 2], [3, 2, 2, 1], [2]]


def path_weight(path: tuple[int, ...], trigram: torch.Tensor) -> float:
    """Probability of the units of a path: repeats merged, blanks left out."""
    units = [u for i, u in enumerate(path) if u and (i == 0 or path[i - 1] != u)]
    padded = [0, 0, *units]
    return math.prod(float(trigram[padded[i + 1], padded[i], padded[i + 2]]) for i in range(len(units)))


def all_paths(log_potentials: torch.Tensor, trigram: torch.Tensor) -> torch.Tensor:
    """log Z of one row (time, units), by the definition."""
    total = torch.zeros((), dtype=torch.float64)
    for path in itertools.product(range(log_potentials.shape[1]), repeat=len(log_potentials)):
        score = sum(log_potentials[t, u] for t, u in enumerate(path))
        total = total + torch.exp(torch.as_tensor(score, dtype=torch.float64)) * path_weight(path, trigram)
    return torch.log(total)


def test_trigram_is_a_distribution_over_units_and_prefers_what_it_saw() -> None:
    p = unit_trigram(TEXTS, UNITS)
    assert torch.allclose(p.sum(-1), torch.ones(UNITS, UNITS), atol=1e-6)
    assert float(p[..., 0].abs().max()) == 0
    assert float(p[..., 1:].min()) > 0, "unseen units must stay possible"
    assert p[2, 1, 3] > p[2, 1, 1], "1 2 3 was seen, 1 2 1 was not"


def test_trigram_by_hand() -> None:
    p = unit_trigram([[1, 2], [1, 3]], 4)
    unigram = np.array([0, 2 - 0.7, 1 - 0.7, 1 - 0.7]) / 4 + 3 * 0.7 / 4 * np.array([0, 1 / 3, 1 / 3, 1 / 3])
    bigram = (np.array([0, 0, 0.3, 0.3]) + 1.4 * unigram) / 2  # after 1
    trigram = (np.array([0, 0, 0.3, 0.3]) + 1.4 * bigram) / 2  # after start, 1
    assert p[1, 0].numpy() == pytest.approx(trigram, abs=1e-6)
    assert p[3, 2].numpy() == pytest.approx(unigram, abs=1e-6), "3 was never a context: the unigram"


@pytest.mark.parametrize("time", [1, 2, 5])
def test_log_z_and_gradient_equal_the_sum_over_all_paths(time: int) -> None:
    torch.manual_seed(time)
    trigram = unit_trigram(TEXTS, UNITS)
    x = (torch.randn(2, time, UNITS) * 2).requires_grad_()
    log_z = Denominator(trigram)(x, torch.tensor([time, time]))
    (log_z * torch.tensor([1.0, 0.5])).sum().backward()
    y = x.detach().clone().requires_grad_()
    expected = torch.stack([all_paths(row, trigram) for row in y])
    (expected * torch.tensor([1.0, 0.5])).sum().backward()
    assert torch.allclose(log_z.double(), expected, atol=1e-5)
    assert x.grad is not None and y.grad is not None
    assert torch.allclose(x.grad, y.grad, atol=1e-5)


def test_rows_do_not_depend_on_their_padding() -> None:
    torch.manual_seed(0)
    denominator = Denominator(unit_trigram(TEXTS, UNITS))
    x = torch.randn(3, 7, UNITS)
    lengths = torch.tensor([7, 3, 1])
    log_z, posteriors = denominator.forward_backward(x, lengths)
    for row, length in enumerate(lengths.tolist()):
        alone, own = denominator.forward_backward(x[row : row + 1, :length], torch.tensor([length]))
        assert torch.allclose(alone[0], log_z[row], atol=1e-5)
        assert torch.allclose(own[0], posteriors[row, :length], atol=1e-5)
        assert float(posteriors[row, length:].abs().sum()) == 0
        assert torch.allclose(own.sum(-1), torch.ones(1, length), atol=1e-5)


def test_long_rows_and_sure_outputs_stay_finite() -> None:
    torch.manual_seed(0)
    denominator = Denominator(unit_trigram(TEXTS, UNITS))
    x = torch.log_softmax(torch.randn(2, 2000, UNITS) * 60, -1)
    log_z, posteriors = denominator.forward_backward(x, torch.tensor([2000, 1500]))
    assert torch.isfinite(log_z).all() and torch.isfinite(posteriors).all()
    assert torch.allclose(posteriors[0].sum(-1), torch.ones(2000), atol=1e-4)


def test_prior_of_a_text_is_that_of_its_path() -> None:
    trigram = unit_trigram(TEXTS, UNITS)
    targets, lengths = torch.tensor([1, 2, 3, 2, 1]), torch.tensor([3, 0, 2])
    expected = math.log(path_weight((1, 2, 3), trigram)) + math.log(path_weight((2, 1), trigram))
    assert float(Denominator(trigram).log_prior(targets, lengths)) == pytest.approx(expected, abs=1e-5)


def test_all_texts_together_have_probability_one() -> None:
    """exp(-loss) is the probability of a text: summed over all texts that fit the steps it is 1."""
    torch.manual_seed(0)
    denominator = Denominator(unit_trigram(TEXTS, UNITS))
    time = 4
    x = torch.log_softmax(torch.randn(1, time, UNITS) * 3, -1)
    log_z = denominator(x, torch.tensor([time]))
    total = 0.0
    for count in range(time + 1):
        for text in itertools.product(range(1, UNITS), repeat=count):
            target, lengths = torch.tensor(text, dtype=torch.int64), torch.tensor([count])
            ctc = F.ctc_loss(x.transpose(0, 1), target[None], torch.tensor([time]), lengths, reduction="sum")
            total += math.exp(float(denominator.log_prior(target, lengths) - ctc - log_z))
    assert total == pytest.approx(1, abs=1e-4)


def test_a_trainer_of_ctc_crf_learns_and_its_loss_is_a_negative_log_probability(
    new_trainer: Callable[..., Trainer],
) -> None:
    trainer = new_trainer(
        crf=0.9, carry=0.0, model={"dropout": 0.0}, optimizer={"warmup": 2, "hold": 60, "peak_rate": 5e-3}
    )
    scalars = [trainer.train_step() for _ in range(60)]
    assert min(s["crf"] for s in scalars) > 0
    assert np.mean([s["crf"] for s in scalars[-5:]]) < 0.8 * np.mean([s["crf"] for s in scalars[:5]])
    last = scalars[-1]
    assert last["loss"] == pytest.approx(0.9 * last["crf"] + 0.1 * last["characters"], rel=1e-4)


def test_share_of_crf_is_a_share() -> None:
    with pytest.raises(ConfigError, match="crf is a share"):
        TrainConfig(crf=1.5)
