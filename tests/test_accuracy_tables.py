"""benchmarks/accuracy.py: tables from what `asr eval --out` writes, put into their places."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from benchmark_scripts import load_script

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def accuracy() -> ModuleType:
    return load_script("accuracy")


def measured(corpus: str, mode: str, rate: float) -> dict[str, Any]:
    word = {"rate": rate, "low": rate - 0.02, "high": rate + 0.03}
    greedy = {"phones": rate + 0.1, "characters": rate + 0.2}
    return {"corpus": corpus, "mode": mode, "word": word, "character": {"rate": rate / 2}, "greedy": greedy}


def report(folder: Path, *results: dict[str, Any]) -> Path:
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def test_tables_say_what_was_measured(accuracy: ModuleType, tmp_path: Path) -> None:
    both = [measured(c, m, r) for c, m, r in (("mine", "streaming", 0.1), ("mine", "offline", 0.0949))]
    full = report(
        tmp_path / "full", *both, measured("dev-clean", "streaming", 0.2), measured("dev-clean", "offline", 0.3)
    )
    low = report(tmp_path / "low", measured("dev-clean", "streaming", 0.222), measured("mine", "streaming", 0.111))
    rows = accuracy.corpora(accuracy.read(full)).splitlines()
    assert rows[2] == "| `mine` | 10.0 | 8.0 to 13.0 | 9.5 | 5.0 | 20.0 | 30.0 |"
    assert (
        rows[3] == "| `dev-clean` (part of LibriSpeech dev-clean) | 20.0 | 18.0 to 23.0 | 30.0 | 10.0 | 30.0 | 40.0 |"
    )
    assert len(rows) == 4 and {row.count("|") for row in rows} == {8}
    rows = accuracy.settings([accuracy.read(full), accuracy.read(low)], ["`a`=9 ms", "`b`, greedy=5 ms"]).splitlines()
    assert rows[0] == "|  | algorithmic latency | mine | dev-clean |"
    assert rows[2:] == ["| `a` | 9 ms | 10.0 | 20.0 |", "| `b`, greedy | 5 ms | 11.1 | 22.2 |"]


@pytest.mark.parametrize("name", ["README.md", "models/en/MODEL_CARD.md"])
def test_tables_have_their_places_in_the_documents(accuracy: ModuleType, name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    new = accuracy.replaced(text, {"corpora": "| first |", "settings": "| second |"})
    assert new.count("| first |") == new.count("| second |") == 1
    assert [line for line in text.splitlines() if not line.startswith("|")] == [
        line for line in new.splitlines() if not line.startswith("|")
    ]
    with pytest.raises(SystemExit, match="accuracy:corpora"):
        accuracy.replaced("nothing", {"corpora": ""})


def test_readme_and_model_card_have_the_same_tables(accuracy: ModuleType) -> None:
    found = []
    for name in ("README.md", "models/en/MODEL_CARD.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        found.append([part.partition("<!-- end -->")[0] for part in text.split("<!-- accuracy:")[1:]])
    assert len(found[0]) == 2 and found[0] == found[1]
