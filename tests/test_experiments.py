"""benchmarks/experiments.py: cells, their budget, a tiny series from training to table."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from benchmark_scripts import load_script

from asr.config import to_dict
from asr.errors import ConfigError, UsageError
from asr.lexicon import Lexicon
from asr.model import AcousticModel
from asr.model_config import ModelConfig
from asr.training.train import model_config

ROOT = Path(__file__).resolve().parents[1]
TINY = """
[base]
batch_seconds = 6.0
precision = "fp32"
workers = 1
carry = 0.0
lexicon = "words.lex"
features = {mels = 16}
views = {speeds = [1.0], channels = 0}
model = {hidden = 16, layers = 2, channels = 2, lookahead = [0, 2], dropout = 0.0}
augment = {join = 0.0}
[[cells]]
group = "base"
name = "base"
[[cells]]
group = "units"
name = "characters"
heads = ["characters"]
head_weights = [1.0]
[[cells]]
group = "objective"
name = "ctc, then crf"
crf = 0.9
crf_from = 0.5
[[cells]]
group = "objective"
name = "of tomorrow"
nothing_like_it = 0.2
[[cells]]
group = "data"
name = "twice as much"
tables = ["again"]
[[cells]]
group = "data"
name = "what is not here"
tables = ["elsewhere"]
[[cells]]
group = "teacher"
name = "both directions"
model = {bidirectional = true, lookahead = [0, 0]}
"""


@pytest.fixture(scope="module")
def experiments() -> ModuleType:
    return load_script("experiments")


@pytest.fixture
def speech(tmp_path: Path) -> Path:
    """A folder with clips, train.tsv, words.lex and the tiny cells."""
    folder = tmp_path / "speech"
    shutil.copytree(ROOT / "tests" / "training_clips", folder)
    Lexicon.from_cmudict(folder / "words.dict").save(folder / "words.lex")
    (folder / "cells.toml").write_text(TINY)
    return folder


# -- the cells of the repository ---------------------------------------------------------------------------------------


def test_every_cell_is_a_configuration_and_differs_from_the_base(experiments: ModuleType) -> None:
    base, cells = experiments.read_cells(experiments.CELLS)
    groups = {"base", "units", "objective", "optimiser", "body", "adaptation", "augmentation", "teacher", "data"}
    assert {cell.group for cell in cells} == groups
    plain = experiments.settings_of(base, cells[0])
    assert cells[0].name == "base" and not cells[0].values
    for cell in cells[1:]:
        if "consistency" not in cell.values or hasattr(plain, "consistency"):
            assert experiments.settings_of(base, cell) != plain or cell.tables or cell.variant, cell.name


def test_cells_of_the_body_have_equal_sizes_and_the_latency_they_say(experiments: ModuleType) -> None:
    base, cells = experiments.read_cells(experiments.CELLS)
    wanted = experiments.size(experiments.config_of(base), 0)
    equal = [cell for cell in cells if cell.equal_size]
    assert len(equal) == 9
    for cell in equal:
        config = experiments.settings_of(base, cell)
        with experiments.applied(cell.variant):
            assert experiments.size(config, 0) == pytest.approx(wanted, rel=0.05), cell.name
        assert config.model["hidden"] % (8 if cell.variant else 16) == 0
        if cell.name.startswith("look-ahead"):
            shape = model_config(config, {"phones": 40})
            assert cell.name == f"look-ahead {shape.lookahead_ms} ms"


VARIANTS = ["stacking", "no layer norm", "weight drop", "projection", "steps of 60 ms", "speaker vector"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_are_networks_of_another_kind_while_they_last(variant: str, experiments: ModuleType) -> None:
    frames, lengths = torch.randn(2, 36, 16), torch.tensor([36, 30])
    shape = {"heads": {"phones": 5}, "mels": 16, "hidden": 16, "layers": 2, "lookahead": (0, 2), "dropout": 0.0}

    def names_and_steps() -> tuple[dict[str, Any], int]:
        model = AcousticModel(ModelConfig(**shape))
        model.train()
        out, steps, carry = model(frames, lengths)
        again, _, _ = model(frames, lengths, carry)  # states fit
        again["phones"].sum().backward()
        assert all(p.grad is not None for p in model.parameters())
        streamed = (
            model.eval().step(frames[:, :30], model.begin(2))[0]["phones"].shape[1] if variant != "projection" else 0
        )
        assert out["phones"].shape[1] == int(steps[0]) and streamed <= int(steps[0])
        return {name: p.shape for name, p in model.named_parameters()}, int(steps[0])

    plain = names_and_steps()
    with experiments.applied(variant):
        other = names_and_steps()
    assert names_and_steps() == plain
    if variant == "steps of 60 ms":
        assert (plain[1], other[1]) == (18, 12)
    elif variant == "weight drop":
        assert other == plain
    else:
        assert other[0] != plain[0] and other[1] == plain[1]
    with pytest.raises(UsageError, match="there is no variant"), experiments.applied("nothing"):
        pass


@pytest.mark.parametrize("variant", ["speaker vector", "running variance"])
def test_variants_that_adapt_hear_a_voice_and_stream(variant: str, experiments: ModuleType) -> None:
    mean = 1.0 if variant == "running variance" else 0.0
    shape = {"heads": {"phones": 5}, "mels": 16, "hidden": 16, "layers": 2, "lookahead": (0, 2), "dropout": 0.0}
    frames, lengths = torch.randn(2, 160, 16), torch.tensor([160, 160])
    with experiments.applied(variant):
        model = AcousticModel(ModelConfig(**shape, running_mean=mean)).eval()
        for layer in model.recurrent if variant == "speaker vector" else ():
            torch.nn.init.normal_(layer.summary.weight)
        with torch.no_grad():
            whole, _, carry = model(frames, lengths)
            state, parts = model.begin(2), []
            for piece in frames.split([30, 1, 77, 52], dim=1):
                out, state = model.step(piece, state)
                parts.append(out["phones"])
            streamed = torch.cat([*parts, model.end(state)["phones"]], dim=1)
            torch.testing.assert_close(streamed, whole["phones"], atol=1e-4, rtol=1e-4)
            later, _, _ = model(frames, lengths, carry)
            other, _, _ = model(torch.cat([frames[:1] + 1, frames[1:]]), lengths)
    assert (later["phones"] - whole["phones"]).abs().max() > 1e-3  # what was heard before counts
    assert (other["phones"][0] - whole["phones"][0]).abs().max() > 1e-3
    torch.testing.assert_close(other["phones"][1], whole["phones"][1])
    if variant == "running variance":  # another gain of a band is forgotten; the mean alone would keep it
        running = model.front_end.running
        assert running is not None
        nothing = torch.zeros(2, 33)
        plain, loud = (
            running.parallel(f * 3, nothing)[:, -80:] for f in (frames.repeat(1, 40, 1), frames.repeat(1, 40, 1) * 2)
        )
        assert float(loud.std() / plain.std()) == pytest.approx(1.0, abs=0.1)


def test_weights_are_dropped_in_training_alone(experiments: ModuleType) -> None:
    with experiments.applied("weight drop"):
        model = AcousticModel(
            ModelConfig(heads={"phones": 5}, mels=16, hidden=16, layers=1, lookahead=(0,), dropout=0.0)
        )
    frames, lengths = torch.randn(1, 40, 16), torch.tensor([40])
    model.train()
    one, two = (model(frames, lengths)[0]["phones"] for _ in range(2))
    assert not torch.equal(one[:, 1:], two[:, 1:]) and torch.equal(one[:, :1], two[:, :1])  # the first step has no past
    model.eval()
    one, two = (model(frames, lengths)[0]["phones"] for _ in range(2))
    assert torch.equal(one, two)


def test_cells_are_chosen_by_name_and_group(experiments: ModuleType) -> None:
    cells = [experiments.Cell(name, group) for name, group in (("a", "x"), ("b", "x"), ("c", "y"))]
    assert [c.name for c in experiments.chosen(cells, [])] == ["a", "b", "c"]
    assert [c.name for c in experiments.chosen(cells, ["y", "a"])] == ["a", "c"]
    with pytest.raises(UsageError, match="there is no cell or group 'z': choose from a, b, c, x, y"):
        experiments.chosen(cells, ["z"])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[[cells]]\nname = 'a'", r"it needs \[base\] and \[\[cells\]\]"),
        ("[base]\n[[cells]]\ngroup = 'a'", "missing key 'name'"),
        ("[base]\n[[cells]]\nname = 'a'\n[[cells]]\nname = 'a'", "two cells are named 'a'"),
        ("[base\n", "not a file of cells"),
    ],
)
def test_wrong_files_are_refused(text: str, says: str, tmp_path: Path, experiments: ModuleType) -> None:
    (tmp_path / "cells.toml").write_text(text)
    with pytest.raises(ConfigError, match=says):
        experiments.read_cells(tmp_path / "cells.toml")


def test_a_run_is_another_with_another_setting_or_budget(experiments: ModuleType) -> None:
    base, cells = experiments.read_cells(experiments.CELLS)
    args = experiments._arguments(["--out", "o", "--data", "d", "--dev", "e", "--steps", "5", "--tables", "more=m"])
    longer = experiments._arguments(["--out", "o", "--data", "d", "--dev", "e", "--steps", "6"])
    config = experiments.settings_of(base, cells[0])
    keys = {
        experiments.digest(config, cells[0], args),
        experiments.digest(config, cells[0], longer),
        experiments.digest(dataclasses.replace(config, seed=2), cells[0], args),
        experiments.digest(config, dataclasses.replace(cells[0], crf_from=0.3), args),
        experiments.digest(config, dataclasses.replace(cells[0], tables=("more",)), args),
    }
    assert len(keys) == 5
    assert experiments.digest(dataclasses.replace(config, cache="x"), cells[0], args) in keys


# -- a series ----------------------------------------------------------------------------------------------------------


def test_a_tiny_series(
    experiments: ModuleType,
    speech: Path,
    tiny_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shares: list[tuple[str, float, bool]] = []
    sizes: dict[str, int] = {}
    step = experiments.BudgetTrainer.train_step

    def watched(self: Any) -> dict[str, float]:
        scalars = step(self)
        sizes[self.out.name] = len(self.data)
        shares.append((self.out.name, scalars["learning_rate"], "crf" in scalars))
        return dict(scalars)

    monkeypatch.setattr(experiments.BudgetTrainer, "train_step", watched)
    threads = torch.get_num_threads()
    manifest = str(speech / "train.tsv")
    command = ["--out", str(tmp_path / "out"), "--file", str(speech / "cells.toml"), "--steps", "4", "--limit", "3"]
    command += ["--tune", "2", "--data", manifest, "--dev", manifest, "--words", str(tiny_path), "--set", "seed=3"]
    command += ["--tables", f"again={manifest}"]
    try:
        assert experiments.main(command) == 0
        printed = capsys.readouterr().out
        results = experiments.read_results(tmp_path / "out" / "results.jsonl")
        names = ["base", "characters", "ctc, then crf", "twice as much", "both directions"]
        assert [r["name"] for r in results] == names
        assert "what is not here: left out, it needs --tables elsewhere=TABLE" in printed
        assert "of tomorrow: left out, the trainer knows no 'nothing_like_it'" in printed
        # Each had its budget, warm-up to decay; CTC-CRF came in the second half of its run.
        assert all((r["steps"], r["budget"], r["skipped"]) == (4, "4 steps", 0) for r in results)
        rates = [rate for name, rate, _ in shares if name == "base"]
        assert rates[0] < rates[1] == 1e-3 > rates[3] > 1e-5
        assert [crf for name, _, crf in shares if name == "ctc-then-crf"] == [False, False, True, True]
        assert sizes["twice-as-much"] == 2 * sizes["base"] > 0
        # Each was measured.
        for result in results:
            assert set(result["words"]) == set(result["greedy"]) == {"train"}
            assert result["words"]["train"] <= 1 and result["search"]["prior_weight"] in (0.3, 0.6)
        assert set(results[0]["units"]) == {"train/phones_error", "train/characters_error"}
        assert set(results[1]["units"]) == {"train/characters_error"}
        lines = [line for line in printed.splitlines() if line.startswith("| ")]
        assert [line.split(" | ")[1] for line in lines] == ["cell", *names]
        assert "train" in lines[0] and "benchmarks/experiments.py --out" in printed

        # What is there is not run again; what a crash cut short is.
        def never(*_: Any) -> dict[str, Any]:
            raise AssertionError("it ran again")

        run_cell = experiments.run_cell
        monkeypatch.setattr(experiments, "run_cell", never)
        assert experiments.main(command) == 0
        assert capsys.readouterr().out.count("is there already") == 5
        path = tmp_path / "out" / "results.jsonl"
        path.write_text("".join(path.read_text().splitlines(True)[:2]) + '{"key": "a')
        ran: list[str] = []

        def counted(cell: Any, *more: Any) -> dict[str, Any]:
            ran.append(cell.name)
            return dict(run_cell(cell, *more))

        monkeypatch.setattr(experiments, "run_cell", counted)
        assert experiments.main(command) == 0
        assert ran == names[2:]
        assert len(experiments.read_results(path)) == 5
    finally:
        torch.set_num_threads(threads)


def test_the_table_shows_what_is_not_known_as_a_dash(experiments: ModuleType) -> None:
    row = {
        "name": "phones", "group": "units", "budget": "9 s", "device": "cpu", "parameters": 4_200_000,
        "latency_ms": 360, "steps": 7, "audio_h": 1.25, "train_s": 9.4, "greedy": {}, "words": {"a": 0.5, "b": 0.25},
        "command": "x y", "date": "2026-01-02 03:04",
    }  # fmt: skip
    text = experiments.tables([{**row, "words": {"a": 1.0, "b": 1.0}}, row])
    assert "| units | phones | 4.20 M | 360 | 7 | 1.2 | 9 | – / 50.0 | – / 25.0 | 37.5 |" in text
    assert text.count("| units |") == 1  # the latest of two alike
    assert "Run on 2026-01-02:\n\n```sh\nx y\n```" in text
    assert experiments.tables([]) == "no results yet"
    assert json.loads(json.dumps(to_dict(experiments.Budget(seconds=3)))) == {"seconds": 3, "steps": 0}
