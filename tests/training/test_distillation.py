"""Learning from a teacher."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from training_data import BY_HEART, Run, toml, train

from asr.checkpoint import find_model
from asr.errors import ModelError
from asr.features import FeatureConfig
from asr.training.distillation import Teacher
from asr.vocabulary import CharacterVocabulary

CPU = torch.device("cpu")


@pytest.fixture
def teacher(learned: Run) -> Teacher:
    folder = find_model(learned.folder / "model")
    return Teacher([folder], "phones", folder.load_vocabularies()["phones"], folder.config.features, CPU)


def test_the_loss_is_the_divergence_of_real_steps(teacher: Teacher) -> None:
    torch.manual_seed(1)
    lengths = torch.tensor([40, 25])
    frames = torch.randn(2, 40, teacher.networks[0].config.mels)
    said, steps, _ = teacher.networks[0](frames, lengths)
    wanted = said["phones"]
    log_probs = torch.randn_like(wanted).log_softmax(-1)
    expected = sum(
        F.kl_div(log_probs[row, :count], wanted[row, :count], reduction="sum", log_target=True)
        for row, count in enumerate(steps.tolist())
    )
    assert steps.tolist() == [20, 13]
    torch.testing.assert_close(teacher(frames, lengths, log_probs, steps), expected)
    assert teacher(frames, lengths, wanted, steps).item() == pytest.approx(0, abs=1e-4)


def test_the_gradient_leads_to_what_the_teacher_says(teacher: Teacher) -> None:
    torch.manual_seed(2)
    lengths = torch.tensor([30])
    frames = torch.randn(1, 30, teacher.networks[0].config.mels)
    said, steps, _ = teacher.networks[0](frames, lengths)
    logits = torch.zeros_like(said["phones"]).requires_grad_()
    teacher(frames, lengths, logits.log_softmax(-1), steps).backward()
    assert logits.grad is not None
    uniform = 1 / logits.shape[-1]
    torch.testing.assert_close(-logits.grad, said["phones"].exp() - uniform, rtol=1e-4, atol=1e-5)
    assert all(p.grad is None for p in teacher.networks[0].parameters())


def test_several_teachers_are_one_that_says_their_mean(learned: Run, teacher: Teacher) -> None:
    folder = find_model(learned.folder / "model")
    both = Teacher([folder, folder], "phones", folder.load_vocabularies()["phones"], folder.config.features, CPU)
    frames, lengths = torch.randn(1, 30, teacher.networks[0].config.mels), torch.tensor([30])
    torch.testing.assert_close(both.said(frames, lengths), teacher.said(frames, lengths))
    with torch.no_grad():
        for parameter in both.networks[1].heads["phones"].parameters():
            parameter.mul_(-0.5)
    one, two = (network(frames, lengths)[0]["phones"] for network in both.networks)
    said = both.said(frames, lengths)
    torch.testing.assert_close(said.exp().sum(-1), torch.ones(1, 15))
    mean = (one.exp() * two.exp()).sqrt()
    torch.testing.assert_close(said.exp(), mean / mean.sum(-1, keepdim=True))


def test_a_teacher_of_other_units_or_features(learned: Run) -> None:
    folder = find_model(learned.folder / "model")
    own = folder.load_vocabularies()["phones"]
    with pytest.raises(ModelError, match="other units"):
        Teacher([folder], "phones", CharacterVocabulary(), folder.config.features, CPU)
    with pytest.raises(ModelError, match="other units"):
        Teacher([folder], "letters", own, folder.config.features, CPU)
    with pytest.raises(ModelError, match="must hear the same"):
        Teacher([folder], "phones", own, FeatureConfig(mels=40, window_ms=25), CPU)


def test_a_run_with_it(learned: Run, tmp_path: Path) -> None:
    """A fresh network comes nearer to its teacher."""
    trained = learned.folder / "model"
    values = {
        **BY_HEART,
        "lexicon": learned.manifest.parent / "words.lex",
        "cache": learned.manifest.parent / "cache",
        "distillation": 1.0,
        "teacher": trained,
        "optimizer": {**BY_HEART["optimizer"], "warmup": 1, "hold": 30, "decay": 5},
    }
    config = tmp_path / "config.toml"
    config.write_text(toml(values))
    out = tmp_path / "run"
    assert train(config, learned.manifest, out) == 0
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    away = [line["teacher"] for line in lines if "teacher" in line]
    assert len(away) == 36 and min(away) >= 0
    assert sum(away[-5:]) < 0.7 * sum(away[:5])
    first = next(line for line in lines if "teacher" in line)
    assert first["loss"] == pytest.approx(0.5 * first["phones"] + 0.5 * first["characters"] + 0.5 * first["teacher"])
