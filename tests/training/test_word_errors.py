"""Minimum word error training: its value and gradient against sums over all alignments, and within a run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from search_reference import ctc_sums, model, random_emissions, said, small
from training_data import BY_HEART, Run, toml, train

from asr.checkpoint import find_model
from asr.decoding.hypothesis import TimedWord
from asr.errors import ModelError
from asr.training.metrics import edit_distance
from asr.training.word_errors import ExpectedWordErrors, word_search
from asr.vocabulary import CharacterVocabulary, PhoneVocabulary

REFERENCE = "tea me"


def expected(texts: int = 5) -> ExpectedWordErrors:
    return ExpectedWordErrors(small(language_model=model()), texts)


def log_probs(seed: int, steps: int = 6) -> torch.Tensor:
    return torch.from_numpy(random_emissions(seed, steps, 4)).double()


@pytest.mark.parametrize("seed", [0, 2, 3])
def test_value_and_gradient_are_those_of_the_formula(seed: int) -> None:
    loss, emissions, steps = expected(), log_probs(seed), torch.tensor([6])
    (found,) = loss.alternatives(emissions[None], steps)
    units = loss.spell(emissions[None].float(), steps, [0] * len(found), found)
    errors = np.array([edit_distance(REFERENCE.split(), h.text.split()) for h in found])
    assert len(set(errors)) > 1
    acoustic = ctc_sums(emissions.numpy())
    rest = np.array([h.score - acoustic[tuple(u.tolist())] for h, u in zip(found, units, strict=True)])

    def value(changed: torch.Tensor) -> float:
        sums = ctc_sums(changed.numpy())
        scores = rest + np.array([sums[tuple(u.tolist())] for u in units])
        weights = np.exp(scores - scores.max())
        return float((weights / weights.sum()) @ errors)

    leaf = emissions[None].clone().requires_grad_()
    result = loss(leaf, steps, [REFERENCE])
    assert result.item() == pytest.approx(value(emissions), abs=1e-4)
    (gradient,) = torch.autograd.grad(result, leaf)
    # torch gives CTC's gradient by the inputs of a log-softmax; so it is compared in directions that keep rows normal.
    logits = emissions.clone().requires_grad_()
    (by_logits,) = torch.autograd.grad(loss(logits.log_softmax(-1)[None], steps, [REFERENCE]), logits)
    assert gradient.shape == leaf.shape
    for step, unit in ((0, 1), (2, 3), (4, 0), (5, 2)):
        around = []
        for size in (1e-4, -1e-4):
            moved = emissions.clone()
            moved[step, unit] += size
            around.append(value(moved.log_softmax(-1)))
        assert by_logits[step, unit].item() == pytest.approx((around[0] - around[1]) / 2e-4, abs=2e-4)


def test_against_the_gradient_there_are_fewer_errors() -> None:
    loss, steps = expected(8), torch.tensor([6, 6, 6])
    logits = torch.stack([log_probs(seed) for seed in (0, 2, 3)]).float().requires_grad_()
    references = [REFERENCE] * 3
    before = loss(logits.log_softmax(-1), steps, references)
    for _ in range(12):
        (gradient,) = torch.autograd.grad(loss(logits.log_softmax(-1), steps, references), logits)
        logits = (logits - 4.0 * gradient).detach().requires_grad_()
    assert loss(logits.log_softmax(-1), steps, references).item() < 0.8 * before.item()


def test_a_row_of_noise_counts_every_word() -> None:
    loss = expected(1)
    row = torch.from_numpy(said("T-I--M-I"))[None]
    (best,) = loss.alternatives(row, torch.tensor([8]))[0]
    assert loss(row, torch.tensor([8]), [""]).item() == len(best.words) > 0
    assert loss(row, torch.tensor([8]), [best.text]).item() == 0


def test_the_pronunciation_that_was_heard_is_the_target() -> None:
    loss, steps = expected(), torch.tensor([6])
    vocabulary = loss.search.vocabulary
    assert isinstance(vocabulary, PhoneVocabulary)
    for heard in ("IT", "MT"):
        emissions = torch.from_numpy(said(f"-{heard[0]}-{heard[1]}--"))[None]
        place = [TimedWord("it", 1, 3)]
        hypothesis = dataclasses.replace(loss.alternatives(emissions, steps)[0][0], words=tuple(place))
        (units,) = loss.spell(emissions, steps, [0], [hypothesis])
        names = ["IY" if letter == "I" else letter for letter in heard]
        assert units.tolist() == vocabulary.encode_phones(names)


def test_what_lies_far_back_has_alternatives_too() -> None:
    loss = ExpectedWordErrors(small(language_model=model(), recombine=True, beam=40, threshold=20.0), 12)
    row = np.concatenate([said("T-I---"), *[said("M-I-T---", 0.99999)] * 40])
    (found,) = loss.alternatives(torch.from_numpy(row)[None], torch.tensor([len(row)]))
    assert len({h.words[0].text for h in found}) > 1


def test_a_run_with_it(learned: Run, tmp_path: Path) -> None:
    trained = learned.folder / "model"
    values = {
        **BY_HEART,
        "lexicon": learned.manifest.parent / "words.lex",
        "cache": learned.manifest.parent / "cache",
        "word_errors": 2.0,
        "word_model": trained,
        "optimizer": {**BY_HEART["optimizer"], "peak_rate": 1e-4, "warmup": 1, "hold": 2, "decay": 1},
    }
    config = tmp_path / "config.toml"
    config.write_text(toml(values))
    assert train(config, learned.manifest, tmp_path / "run", "--init", str(trained)) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    rates = [line["word_errors"] for line in lines if "word_errors" in line]
    assert len(rates) == 4 and max(rates) < 0.2  # these clips are known by heart


def test_another_models_units(learned: Run) -> None:
    folder = find_model(str(learned.folder / "model"))
    with pytest.raises(ModelError, match="other units"):
        word_search(folder, "phones", CharacterVocabulary())
    with pytest.raises(ModelError, match="other units"):
        word_search(folder, "bpe", CharacterVocabulary())
