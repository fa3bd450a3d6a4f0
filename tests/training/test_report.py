"""Reports of a run: what is not finite, what a crash left, what an interrupted run had reported too much."""

from __future__ import annotations

import json
from pathlib import Path

from asr.training.report import Reporter, plot_curves, read_metrics


def test_numbers_that_are_not_finite_are_null_and_leave_a_gap_in_the_curves(tmp_path: Path) -> None:
    with Reporter(tmp_path, 0, 3) as report:
        report(1, {"loss": 2.0, "phones": 2.0})
        report(2, {"loss": float("nan"), "phones": float("inf")})
        report(3, {"loss": 1.0, "phones": 1.0})
        report(3, {"dev/phones_error": 0.5})
        report(3, {})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line, parse_constant=lambda name: 1 / 0) for line in lines] == read_metrics(
        tmp_path / "metrics.jsonl"
    )
    assert json.loads(lines[1]) == {"step": 2, "loss": None, "phones": None}
    assert len(lines) == 4
    assert plot_curves(tmp_path) == tmp_path / "curves.png"


def test_going_on_drops_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    with Reporter(tmp_path, 0, 9) as report:
        for step in range(1, 6):
            report(step, {"loss": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    with Reporter(tmp_path, 0, 9, step=3) as report:
        report(4, {"loss": 40.0})
    assert [(r["step"], r["loss"]) for r in read_metrics(tmp_path / "metrics.jsonl")] == [
        (1, 1.0),
        (2, 2.0),
        (3, 3.0),
        (4, 40.0),
    ]


def test_other_ranks_say_nothing_and_no_steps_give_no_plot(tmp_path: Path) -> None:
    with Reporter(tmp_path, 1, 3) as report:
        report(1, {"loss": 2.0})
    assert not list(tmp_path.iterdir())
    assert plot_curves(tmp_path) is None
