"""The trainer: exact resume, skipped steps, clipping, schedule, averaging, processes, every kind of cell."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from training_data import toml

from asr.config import to_dict
from asr.decoding.greedy import best_path
from asr.errors import AsrError, ConfigError, UsageError
from asr.training.batch_source import Place
from asr.training.batches import NO_AUGMENT, BatchMaker, BatchPlan, TrainingSet
from asr.training.train import (
    CHECKPOINT,
    Trainer,
    greedy_errors,
    initialise_processes,
    own_device,
    read_checkpoint,
    read_config,
)
from asr.training.train_config import OptimizerConfig
from asr.vocabulary import CharacterVocabulary

NewTrainer = Callable[..., Trainer]


def everything(trainer: Trainer) -> list[np.ndarray]:
    """All numbers that decide how a run goes on."""
    optimizer = trainer.optimizer.state_dict()["state"]
    tensors = [
        *trainer.model.state_dict().values(),
        *trainer.average.values(),
        *(value for state in optimizer.values() for value in state.values()),
        *(part for carried in trainer.carried if carried is not None for part in carried),
    ]
    counters = [trainer.step, trainer.epoch, trainer.position, trainer.skipped, trainer.audio_s]
    return [*(t.numpy() for t in tensors), np.array(counters)]


def assert_same(a: Trainer, b: Trainer) -> None:
    for x, y in zip(everything(a), everything(b), strict=True):
        np.testing.assert_array_equal(x, y)


# -- resume ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interrupt", [1, 3, 5, 7])
@pytest.mark.parametrize("ahead", [0, 3])
def test_an_interrupted_and_resumed_run_gives_the_same_weights(
    interrupt: int, ahead: int, new_trainer: NewTrainer, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"carry": 0.5, "prefetch": ahead}
    whole = new_trainer(**settings)
    for _ in range(9):
        whole.train_step()
    assert whole.epoch >= 2  # epochs end within the run, before and after the interruption
    first = new_trainer(**settings)
    for _ in range(interrupt):
        first.train_step()
    first.save(tmp_path / CHECKPOINT)
    second = new_trainer(**settings)
    second.load(tmp_path / CHECKPOINT)
    assert_same(first, second)
    for _ in range(9 - interrupt):
        second.train_step()
    assert_same(whole, second)
    assert any(carried is not None for carried in second.carried)
    for trainer in (whole, first, second):
        trainer.batches.close()


def test_a_resumed_run_is_exact_with_accumulation_and_an_intermediate_loss(
    new_trainer: NewTrainer, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"carry": 0.5, "accumulate": 2, "model": {"intermediate": 1}}
    whole, first, second = (new_trainer(**settings) for _ in range(3))
    scalars = [whole.train_step() for _ in range(4)]
    assert all("intermediate" in s for s in scalars)
    for _ in range(2):
        first.train_step()
    first.save(tmp_path / CHECKPOINT)
    second.load(tmp_path / CHECKPOINT)
    for _ in range(2):
        second.train_step()
    assert_same(whole, second)


def test_run_saves_now_and_then_and_at_its_end(new_trainer: NewTrainer, tmp_path: Path) -> None:
    trainer = new_trainer(checkpoint_minutes=1e-9, evaluate_minutes=1e-9)
    seen: list[tuple[int, dict[str, float]]] = []
    saved: list[int] = []

    def report(step: int, scalars: dict[str, float]) -> None:
        seen.append((step, scalars))
        if (tmp_path / CHECKPOINT).exists():
            saved.append(read_checkpoint(tmp_path / CHECKPOINT)["step"])

    assert trainer.run(report, lambda t: {"dev/x": float(t.step)})
    steps = trainer.config.optimizer.steps
    assert [step for step, s in seen if "loss" in s] == list(range(1, steps + 1))
    assert [s["dev/x"] for _, s in seen if "dev/x" in s] == [*range(1, steps + 1), steps]
    assert sorted(set(saved)) == list(range(1, steps + 1))
    saved_last = read_checkpoint(tmp_path / CHECKPOINT)
    assert saved_last["step"] == steps
    assert len(saved_last["history"]) == steps
    assert not list(tmp_path.glob("*.tmp"))


def test_a_stopped_run_leaves_its_last_step(new_trainer: NewTrainer, tmp_path: Path) -> None:
    trainer = new_trainer()
    assert not trainer.run(lambda *_: None, lambda t: pytest.fail("no time to evaluate"), lambda: trainer.step == 5)
    assert read_checkpoint(tmp_path / CHECKPOINT)["step"] == 5


def test_settings_of_the_optimizer_may_change_between_the_parts_of_a_run(
    new_trainer: NewTrainer, tmp_path: Path
) -> None:
    first = new_trainer()
    first.train_step()
    first.save(tmp_path / CHECKPOINT)
    second = new_trainer(optimizer={"weight_decay": 0.5, "decay": 50}, model={"dropout": 0.4})
    second.load(tmp_path / CHECKPOINT)
    assert [group["weight_decay"] for group in second.optimizer.param_groups] == [0.5, 0.0]
    assert second.step == 1


def test_a_checkpoint_that_does_not_fit_is_refused(new_trainer: NewTrainer, tmp_path: Path, data: TrainingSet) -> None:
    path = tmp_path / CHECKPOINT
    trainer = new_trainer()
    trainer.save(path)
    with pytest.raises(UsageError, match="model of another shape: use the configuration"):
        new_trainer(model={"hidden": 12}).load(path)
    data.heads["characters"] = CharacterVocabulary(["<blank>", *data.heads["characters"].units[:0:-1]])
    with pytest.raises(UsageError, match="model of other units"):
        trainer.load(path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UsageError, match=r"cannot resume from .*: it is damaged") as caught:
        trainer.load(path)
    assert "\n" not in str(caught.value)
    torch.save({"model": 1}, path)
    with pytest.raises(UsageError, match="it is not a checkpoint of a training run"):
        trainer.load(path)
    with pytest.raises(UsageError, match="No such file"):
        trainer.load(tmp_path / "none.pt")


def test_another_number_of_processes_goes_on_with_a_warning(
    new_trainer: NewTrainer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = new_trainer(carry=0.5)
    for _ in range(3):
        first.train_step()
    first.position = 3  # the last of its epoch; with two batches a step there are fewer
    first.save(tmp_path / CHECKPOINT)
    second = new_trainer(carry=0.5, accumulate=2)
    second.load(tmp_path / CHECKPOINT)
    assert "resumed with 2 batches per step instead of 1" in caplog.text
    assert second.carried == [None, None]
    assert second.position < len(second.plan())
    second.train_step()


# -- one step ----------------------------------------------------------------------------------------------------------


def test_a_step_that_is_not_finite_is_skipped_and_counted(
    new_trainer: NewTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = new_trainer(carry=0.5)
    trainer.train_step()
    before = everything(trainer)
    make = trainer.maker.make

    def broken(*args: Any) -> Any:
        batch = make(*args)
        batch.frames[0, 3] = float("nan")
        return batch

    monkeypatch.setattr(trainer.maker, "make", broken)
    scalars = trainer.train_step()
    assert math.isnan(scalars["gradient_norm"])
    assert scalars["skipped"] == 1
    assert trainer.carried == [None]
    for x, y in zip(before, everything(trainer), strict=False):  # weights, average, optimizer
        if x.dtype == np.float32 and x.shape == y.shape:
            np.testing.assert_array_equal(x, y)
    assert trainer.step == 2
    monkeypatch.undo()
    scalars = trainer.train_step()
    assert math.isfinite(scalars["gradient_norm"])
    assert scalars["skipped"] == 1
    assert all(torch.isfinite(v).all() for v in trainer.model.state_dict().values())


def test_gradients_are_clipped_by_their_common_norm(new_trainer: NewTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[float] = []
    for clip in (1e6, 0.01):
        trainer = new_trainer(optimizer={"clip_norm": clip})
        monkeypatch.setattr(trainer.optimizer, "step", lambda: None)
        reported = trainer.train_step()["gradient_norm"]
        gradients = [p.grad for p in trainer.model.parameters() if p.grad is not None]
        norms.append(math.sqrt(sum(float((g.double() ** 2).sum()) for g in gradients)))
        assert reported == pytest.approx(norms[0], rel=1e-4)  # the norm before clipping
    assert norms[1] == pytest.approx(0.01, rel=1e-3)


def test_schedule() -> None:
    config = OptimizerConfig(peak_rate=2.0, final_rate=0.5, warmup=4, hold=3, decay=4)
    assert config.steps == 11
    rates = [config.rate(step) for step in range(12)]
    assert rates[:8] == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0, 2.0, 2.0]
    cosine = [0.5 + 1.5 * 0.5 * (1 + math.cos(math.pi * i / 4)) for i in (1, 2, 3, 4)]
    assert rates[8:] == pytest.approx(cosine)
    assert OptimizerConfig(warmup=0, hold=0, decay=1).rate(0) == 1e-3


def test_the_rate_of_the_schedule_is_the_optimizers(new_trainer: NewTrainer) -> None:
    trainer = new_trainer()
    for step in range(6):
        scalars = trainer.train_step()
        assert scalars["learning_rate"] == trainer.config.optimizer.rate(step)
        assert {group["lr"] for group in trainer.optimizer.param_groups} == {scalars["learning_rate"]}
    assert [group["weight_decay"] for group in trainer.optimizer.param_groups] == [0.01, 0.0]
    assert all(p.dim() > 1 for p in trainer.optimizer.param_groups[0]["params"])
    assert all(p.dim() == 1 for p in trainer.optimizer.param_groups[1]["params"])


def test_averaged_weights(new_trainer: NewTrainer) -> None:
    trainer = new_trainer()
    expected = {k: v.double().clone() for k, v in trainer.model.state_dict().items()}
    for step in range(6):
        trainer.train_step()
        decay = min(0.9, (1 + step) / (10 + step))
        for name, value in trainer.model.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * value.double()
    for name, value in expected.items():
        np.testing.assert_allclose(trainer.average[name].numpy(), value.numpy(), atol=1e-6)
    kept = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    with pytest.raises(KeyError), trainer.averaged() as model:
        assert not model.training
        assert torch.equal(model.norm.weight, trainer.average["norm.weight"])
        raise KeyError
    assert all(torch.equal(v, trainer.model.state_dict()[k]) for k, v in kept.items())


def test_loss_is_ctc_in_nats_per_unit(new_trainer: NewTrainer, data: TrainingSet) -> None:
    trainer = new_trainer()
    trainer.model.eval()
    batch = BatchMaker(data, NO_AUGMENT).make([[(0, 0)], [(3, 0)]], np.random.default_rng(0))
    out, steps, _ = trainer.model(batch.frames, batch.lengths)
    total = 0.0
    targets = batch.targets["characters"].split(batch.target_lengths["characters"].tolist())
    for row in range(2):
        total += _ctc(out["characters"][row, : int(steps[row])].detach().double(), targets[row].tolist())
    expected = total / int(batch.target_lengths["characters"].sum())
    assert float(trainer.losses(batch)["characters"].detach()) == pytest.approx(expected, rel=1e-4)


def _ctc(log_probs: torch.Tensor, target: list[int]) -> float:
    """Minus the log of the sum over all paths, by the recursion over units with blanks between them."""
    states = [0]
    for unit in target:
        states += [unit, 0]
    alpha = {0: float(log_probs[0, 0]), 1: float(log_probs[0, states[1]])}
    for t in range(1, len(log_probs)):
        new = {}
        for s, unit in enumerate(states):
            skip = s >= 2 and unit != 0 and states[s - 2] != unit
            before = [alpha[p] for p in ((s, s - 1, s - 2) if skip else (s, s - 1)) if p in alpha]
            if before:
                new[s] = float(np.logaddexp.reduce(before)) + float(log_probs[t, unit])
        alpha = new
    return -float(np.logaddexp(alpha[len(states) - 1], alpha[len(states) - 2]))


def test_states_are_carried_into_a_share_of_the_rows(new_trainer: NewTrainer) -> None:
    trainer = new_trainer(carry=0.25)
    assert trainer._carry(0, 5) is None
    h, c = torch.randn(2, 7, 8) + 3, torch.randn(2, 7, 8) + 3
    trainer.carried = [(h, c)]
    carry = trainer._carry(0, 4000)
    assert carry is not None
    new = (carry[0] != 0).all(dim=(0, 2))
    assert 0.2 < new.float().mean() < 0.3
    for row in torch.nonzero(new)[:50, 0].tolist():
        (source,) = [i for i in range(7) if torch.equal(h[:, i], carry[0][:, row])]
        assert torch.equal(c[:, source], carry[1][:, row])  # h and c of the same row
    assert not carry[0][:, ~new].any()
    assert not carry[1][:, ~new].any()


def test_accumulated_batches_are_the_mean_of_their_gradients(
    new_trainer: NewTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"carry": 0.0, "model": {"dropout": 0.0}, "optimizer": {"clip_norm": 1e9}}
    trainer = new_trainer(accumulate=3, **settings)
    monkeypatch.setattr(trainer.optimizer, "step", lambda: None)
    trainer.train_step()
    expected: dict[str, torch.Tensor] = {}
    parts = new_trainer(accumulate=3, **settings)
    for slot in range(3):
        parts.model.zero_grad()
        batch = parts.batches.get(Place(0, 0, slot))
        parts.losses(batch)["characters"].backward()
        for name, p in parts.model.named_parameters():
            if p.grad is not None:
                expected[name] = expected.get(name, torch.zeros_like(p)) + p.grad / 3
    for name, p in trainer.model.named_parameters():
        np.testing.assert_allclose(p.grad.numpy(), expected[name].numpy(), rtol=1e-5, atol=1e-6)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "model",
    [
        {"cell": "lstm"},
        {"cell": "gru"},
        {"cell": "rnn"},
        {"bidirectional": True},
        {"cell": "gru", "bidirectional": True},
    ],
    ids=lambda m: "-".join(map(str, m.values())),
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_cell_learns(model: dict[str, Any], precision: str, new_trainer: NewTrainer) -> None:
    trainer = new_trainer(
        model={**model, "dropout": 0.0},
        precision=precision,
        carry=0.3,
        batch_seconds=60.0,
        augment={**to_dict(NO_AUGMENT)},
        optimizer={"peak_rate": 1e-2, "warmup": 3, "hold": 100},
    )
    losses = [trainer.train_step()["loss"] for _ in range(25)]
    assert all(map(math.isfinite, losses))
    assert losses[-1] < 0.75 * losses[0]
    assert trainer.skipped == 0
    assert (trainer.carried == [None]) == bool(model.get("bidirectional"))


def test_too_little_data_for_a_step(new_trainer: NewTrainer) -> None:
    with pytest.raises(UsageError, match="16 utterances are too few for 20 batches per step"):
        new_trainer(accumulate=20).train_step()


def test_greedy_errors_are_edits_of_the_averaged_model(new_trainer: NewTrainer, data: TrainingSet) -> None:
    trainer = new_trainer()
    for _ in range(3):
        trainer.train_step()
    plan = BatchPlan(data, NO_AUGMENT, 5.0, 1, 0, shuffle=False)
    batches = [BatchMaker(data, NO_AUGMENT).make(plan.rows(i), np.random.default_rng(0)) for i in range(len(plan))]
    rate = greedy_errors(trainer, batches)["characters_error"]
    errors = total = 0
    with trainer.averaged() as model, torch.no_grad():
        for u, target in enumerate(data.targets["characters"]):
            frames = torch.from_numpy(data.frames(u, 0))[None]
            out, _, _ = model(frames, torch.tensor([frames.shape[1]]))
            errors += _distance(target.tolist(), best_path(out["characters"][0]))
            total += len(target)
    assert rate == pytest.approx(errors / total)


def _distance(a: list[int], b: list[int]) -> int:
    """Edit distance, one row of the table after the other."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        above, row = row, [i]
        for j, y in enumerate(b, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (x != y)))
    return row[-1]


# -- configuration -----------------------------------------------------------------------------------------------------


def test_configuration_from_toml(tmp_path: Path) -> None:
    path = tmp_path / "some" / "c.toml"
    path.parent.mkdir()
    path.write_text(
        toml(
            {
                "heads": ["bpe"],
                "head_weights": [1],
                "noise": "noise.tsv",
                "lexicon": "/absolute/words.lex",
                "model": {"hidden": 8, "layers": 1, "lookahead": [2]},
                "optimizer": {"warmup": 7},
            }
        )
    )
    config = read_config(path)
    assert config.noise == str(path.parent / "noise.tsv")  # relative to the file
    assert config.lexicon == "/absolute/words.lex"
    assert config.rooms == ""
    assert config.optimizer.warmup == 7
    assert config.head_weights == (1.0,)
    assert json.dumps(to_dict(config))
    assert dataclasses.replace(config, seed=2).seed == 2


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("batch_second = 3", "unknown key 'batch_second': did you mean 'batch_seconds'?"),
        ("[optimiser]\nwarmup = 3", "unknown key 'optimiser': did you mean 'optimizer'?"),
        ("[optimizer]\nwarm_up = 3", "unknown key 'optimizer.warm_up': did you mean 'warmup'?"),
        ("[model]\nhiden = 3", "unknown key 'model.hiden': did you mean 'hidden'?"),
        ("[augment]\nnoise = 2.0", "augment.noise must be 0 to 1"),
        ("[views]\nspeeds = [3.0]", "views.speeds must be 0.5 to 2"),
        ("[model]\nheads = {a = 3}", "model.heads follows from 'heads': leave it out"),
        ("[model]\nmels = 40", "model.mels follows from 'features.mels'"),
        ("[model]\ncell = 'ltsm'", "did you mean 'lstm'?"),
        ("heads = ['phones', 'phones']", "name at least one, none twice"),
        ("heads = ['phone']", "did you mean 'phones'?"),
        ("heads = ['phones']", "head_weights needs one weight per head"),
        ("precision = 'fp16'", "choose one of bf16, fp32"),
        ("batch_seconds = 'many'", "'batch_seconds' must be of type float"),
        ("carry = 1.5", "carry is a probability"),
        ("accumulate = 0", "accumulate must be at least 1"),
        ("prefetch = -2", "prefetch must be"),
        ("[optimizer]\nbetas = [0.9, 1.0]", "optimizer.betas"),
        ("[optimizer]\nwarmup = 0\nhold = 0\ndecay = 0", "at least one step"),
        ("heads = [", "is not valid TOML"),
    ],
)
def test_a_wrong_configuration_is_named_in_one_line(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_config(path)
    assert says in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_configuration_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the configuration"):
        read_config(tmp_path / "none.toml")


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert own_device("cpu") == "cpu"
    with pytest.raises(UsageError, match="unknown device 'gpu'"):
        own_device("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert own_device("cuda") == "cuda:1"  # a GPU of its own for every process
    assert own_device("cuda:0") == "cuda:0"
    assert chosen == [1, 0]
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(AsrError, match="there are 2 GPUs, number 2 is not among them"):
        own_device("cuda")


def test_one_process_joins_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert initialise_processes() == (0, 1)
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize(("device", "backend"), [("cpu", "gloo"), ("cuda:1", "cpu:gloo,cuda:nccl")])
def test_processes_join_a_group(device: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    joined: list[str] = []

    def join(name: str, timeout: Any) -> None:
        # Imported later, it would keep the group for ever, and its threads would abort the process at exit.
        assert "torch.distributed.nn.functional" in sys.modules
        joined.append(name)

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(torch.distributed, "init_process_group", join)
    assert initialise_processes(device) == (1, 2)
    assert joined == [backend]


def test_ctc_reference_agrees_with_torch() -> None:
    torch.manual_seed(0)
    log_probs = torch.randn(9, 4, dtype=torch.float64).log_softmax(-1)
    expected = F.ctc_loss(
        log_probs[:, None], torch.tensor([[1, 1, 3]]), torch.tensor([9]), torch.tensor([3]), reduction="sum"
    )
    assert _ctc(log_probs, [1, 1, 3]) == pytest.approx(float(expected))


def test_consistency_trains_on_two_views_of_every_row(new_trainer: NewTrainer) -> None:
    plain, paired = new_trainer(carry=0.5), new_trainer(carry=0.5, consistency=0.2)
    place = Place(0, 0, 0)
    one, two = plain.batches.get(place), paired.batches.get(place)
    rows = len(two.lengths) // 2
    assert two.ids[:rows] == two.ids[rows:] and rows == len(one.lengths)
    assert not torch.equal(two.frames[:rows], two.frames[rows:])  # the masks differ
    for _ in range(2):
        scalars = paired.train_step()
    assert scalars["consistency"] > 0
    expected = scalars["characters"] + 0.2 * scalars["consistency"]
    assert scalars["loss"] == pytest.approx(expected, rel=1e-5)
    carry = paired._carry(0, 2 * rows)
    assert carry is not None
    for part in carry:
        assert torch.equal(part[:, :rows], part[:, rows:])  # both views go on from one state
