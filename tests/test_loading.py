"""benchmarks/loading.py: parts are measured without the parts in them, and their sum is the whole."""

from __future__ import annotations

import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from benchmark_scripts import load_script

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def loading() -> ModuleType:
    return load_script("loading")


def test_a_part_is_measured_without_the_parts_in_it(loading: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "process_time", lambda: clock[0])

    def takes(seconds: float, *inside: str) -> int:
        clock[0] += seconds
        for name in inside:
            getattr(parts, name)()
        return 7

    parts = SimpleNamespace(
        outer=lambda: takes(1.0, "middle", "leaf"), middle=lambda: takes(2.0, "leaf", "leaf"), leaf=lambda: takes(4.0)
    )
    found: dict[str, tuple[float, float]] = {}
    inner = [0.0]
    for name in ("outer", "middle", "leaf"):
        loading.measured(found, inner, name, parts, name)
    assert parts.outer() == 7
    assert {name: seconds for name, (seconds, _) in found.items()} == {"leaf": 12.0, "middle": 2.0, "outer": 1.0}
    assert inner == [15.0]


def test_the_table_has_medians_and_ratios_of_pairs(loading: ModuleType) -> None:
    runs = [[{"load": (old, 900.0)}, {"load": (new, 800.0)}] for old, new in ((2.0, 1.0), (8.0, 2.0), (3.0, 1.5))]
    assert loading.table(runs)[1].split() == ["load", "3.000", "900", "1.500", "800", "0.50"]
    assert loading.table([[run[1]] for run in runs])[1].split() == ["load", "1.500", "800"]


def test_the_parts_of_a_cold_start_are_all_of_it(loading: ModuleType, tiny_path: Path) -> None:
    found = loading.run(ROOT, str(tiny_path))
    parts = [name for name, _, _ in loading.PARTS if name != "recurrent language model"]  # the tiny model has none
    assert set(found) == {loading.OTHERS, loading.OWN, loading.REST, loading.TOTAL, *parts}
    assert sum(found[name][0] for name in (loading.REST, *parts)) == pytest.approx(found[loading.TOTAL][0])
    assert all(seconds >= 0 for seconds, _ in found.values())
    assert 0 < found[loading.OTHERS][1] <= found[loading.OWN][1] <= found[loading.TOTAL][1]
