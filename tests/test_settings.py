"""Settings of a model: the same weights with a shorter look-ahead, chosen as MODEL:SETTING."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from tiny_model import babble, tiny_folder

from asr import Recognizer, Segment, Transcript
from asr.checkpoint import Setting, find_model, read_config, update_config
from asr.decoding.search_config import SearchConfig
from asr.errors import ConfigError, ModelError, StateError
from asr.model_config import SAMPLE_RATE as RATE
from asr.model_config import STEP_MS

LOW, NONE = (2, 0, 0), (0, 0, 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tiny_folder(tmp_path_factory.mktemp("models") / "tiny")
    config = read_config(path)
    search = dataclasses.replace(config.search, lm_weight=0.75)
    settings = {"low": Setting(LOW, search=search), "now": Setting(NONE)}
    update_config(path, dataclasses.replace(config, settings=settings))
    return path


@pytest.mark.parametrize(("setting", "lookahead"), [("low", LOW), ("now", NONE)])
def test_a_setting_has_its_look_ahead_and_search(folder: Path, setting: str, lookahead: tuple[int, ...]) -> None:
    recognizer = Recognizer.load(f"{folder}:{setting}")
    assert recognizer.algorithmic_latency_ms == STEP_MS * (1 + sum(lookahead))
    assert recognizer.folder.name == f"tiny:{setting}"
    assert recognizer.folder.config.search.lm_weight == (0.75 if setting == "low" else 0.5)


@pytest.mark.parametrize("setting", ["low", "now"])
def test_streaming_equals_offline_and_company_changes_nothing(folder: Path, setting: str) -> None:
    recognizer = Recognizer.load(f"{folder}:{setting}")
    sounds = [babble(3, seed) for seed in range(4)]
    together = [t for t in recognizer.transcribe_many(sounds, sample_rate=RATE) if isinstance(t, Transcript)]
    for sound, transcript in zip(sounds, together, strict=True):
        stream = recognizer.stream(partials=False)
        results = [r for piece in np.array_split(sound, 37) for r in stream.feed(piece)] + stream.finish()
        streamed = " ".join(r.text for r in results if isinstance(r, Segment))
        assert streamed == transcript.text == recognizer.transcribe(sound, RATE).text
    assert any(t.text for t in together)


def test_a_setting_hears_otherwise_than_the_whole_look_ahead(folder: Path) -> None:
    sound = babble(6, 3)
    assert (
        Recognizer.load(f"{folder}:now").transcribe(sound, RATE).text
        != Recognizer.load(folder).transcribe(sound, RATE).text
    )


def test_a_state_belongs_to_one_setting(folder: Path) -> None:
    state = Recognizer.load(f"{folder}:low").stream().state
    with pytest.raises(StateError):
        Recognizer.load(folder).stream(state=state)


def test_unknown_settings_are_named(folder: Path) -> None:
    with pytest.raises(ModelError, match="tiny has no setting 'fast': it has low, now"):
        find_model(f"{folder}:fast")


def test_what_is_tuned_is_written_for_the_setting(folder: Path) -> None:
    before = read_config(folder)
    find_model(f"{folder}:now").update(search=SearchConfig(beam=7))
    after = read_config(folder)
    assert after.settings["now"].search == SearchConfig(beam=7)
    assert (after.search, after.settings["low"]) == (before.search, before.settings["low"])
    find_model(folder).update(search=dataclasses.replace(before.search, beam=31))
    assert read_config(folder).search.beam == 31
    assert read_config(folder).settings == after.settings


def test_a_setting_must_be_a_part_of_the_look_ahead(folder: Path) -> None:
    with pytest.raises(ConfigError, match="reaches beyond"):
        dataclasses.replace(read_config(folder), settings={"long": Setting((6, 0, 2))})
