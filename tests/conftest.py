"""Shared fixtures: a recogniser small enough for every test, and the test clips of real size."""

import csv
import os
from pathlib import Path

import hypothesis
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: networks this small only wait for a second thread

# The same examples in every run, so that a test that failed fails again; `--hypothesis-profile=explore` draws others.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.register_profile("explore", deadline=None)
hypothesis.settings.load_profile("repeatable")

CLIPS = Path(__file__).parent / "clips"


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model folder on disk; copy it before changing it."""
    from tiny_model import tiny_folder

    return tiny_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tiny(tiny_path: Path):  # type: ignore[no-untyped-def]
    """The recogniser of that folder."""
    from asr import Recognizer

    return Recognizer.load(tiny_path, threads=1)


@pytest.fixture(scope="session")
def clips() -> dict[Path, str]:
    """Synthesised speech (16 kHz mono) and what is said."""
    with (CLIPS / "clips.tsv").open(encoding="utf-8", newline="") as file:
        return {CLIPS / row["audio"]: row["text"] for row in csv.DictReader(file, delimiter="\t")}
