"""``asr lm tune``: the coordinate search, and the whole of it on a tiny model."""

from __future__ import annotations

import io
import json
import shutil
import wave
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from tiny_model import babble

from asr import Recognizer
from asr.checkpoint import LANGUAGE_MODEL, find_model, update_config
from asr.cli import main as command
from asr.decoding.search_config import SearchConfig
from asr.training import tune
from asr.training.evaluate import CHUNK_MS, decode, load_utterances
from asr.training.manifest import read_manifest
from asr.training.tune import SearchFactory, Trial, measure, neighbours, read_tables, recognise

GOOD = SearchConfig(beam=30, tokens=9, threshold=20.0, lm_weight=0.6, word_score=-0.5)


def bowl(calls: list[SearchConfig]):
    """A word error rate with one lowest place, at lm_weight 1.9 and word_score -0.8."""

    def rate(config: SearchConfig) -> Trial:
        calls.append(config)
        value = (config.lm_weight - 1.9) ** 2 + 0.5 * (config.word_score + 0.8) ** 2 + 0.1 * config.lm_weight
        return Trial(config, (value, value + 0.2), 0.0)

    return rate


def test_coordinate_search_finds_the_lowest_place() -> None:
    calls: list[SearchConfig] = []
    start = SearchConfig(lm_weight=0.3)
    best = tune.tune(bowl(calls), start, tune.STEPS)
    assert best.config.lm_weight == pytest.approx(1.85, abs=0.1)
    assert best.config.word_score == pytest.approx(-0.8, abs=0.15)
    assert best.config.prior_weight == 0.0  # changes nothing: stays as it was
    assert replace(best.config, lm_weight=0.3, word_score=0.0) == start
    assert len(calls) == len(set(calls)) < 40  # nothing is measured twice
    assert best.mean == min(np.mean(bowl([])(c).rates) for c in calls)


def test_weights_stay_in_their_range_and_others_are_left_alone() -> None:
    calls: list[SearchConfig] = []

    def less_is_better(config: SearchConfig) -> Trial:
        calls.append(config)
        return Trial(config, (config.lm_weight + config.prior_weight,), 0.0)

    best = tune.tune(less_is_better, SearchConfig(lm_weight=0.5, prior_weight=0.5), {"lm_weight": 0.2})
    assert best.config.lm_weight == 0.0 and best.config.prior_weight == 0.5
    assert all(c.lm_weight >= 0 for c in calls)


def test_the_share_of_a_recurrent_model_is_a_share() -> None:
    def more_is_better(config: SearchConfig) -> Trial:
        return Trial(config, (1 - config.second_share,), 0.0)

    start = SearchConfig(second_share=0.7)
    assert tune.tune(more_is_better, start, {"second_share": 0.2}).config == replace(start, second_share=1.0)
    assert "second_share" in tune.STEPS


def test_beams_and_thresholds_around_a_setting() -> None:
    around = list(neighbours(SearchConfig(beam=100, threshold=10.0)))
    assert [c.beam for c in around] == [25, 50, 200, 100, 100, 100]
    assert [c.threshold for c in around] == [10.0, 10.0, 10.0, 6.0, 8.0, 12.5]
    assert next(neighbours(SearchConfig(beam=1))).beam == 1


@pytest.fixture(scope="module")
def tables(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two tables of babble; their texts are what the tiny model hears with other weights than its own."""
    folder = tmp_path_factory.mktemp("tables")
    recognizer = Recognizer.load(tiny_path)
    search = SearchFactory(recognizer)(GOOD)
    names = []
    for t in range(2):
        lines = ["audio\ttext"]
        for i in range(3):
            samples = babble(3.0 + i, seed=10 * t + i)
            with wave.open(str(folder / f"{t}-{i}.wav"), "wb") as file:
                file.setparams((1, 2, 16000, 0, "NONE", ""))
                file.writeframes((samples * 32767).astype("<i2").tobytes())
            lines.append(f"{t}-{i}.wav\ta")
        names.append(str(folder / f"dev{t}.tsv"))
        Path(names[-1]).write_text("\n".join(lines) + "\n")
        (table,) = read_tables(recognizer, names[-1:], None)
        texts = [" ".join(words) for words in recognise(search, table)]
        rows = [line.split("\t")[0] + "\t" + text for line, text in zip(lines[1:], texts, strict=True)]
        Path(names[-1]).write_text("\n".join([lines[0], *rows]) + "\n")
    return names


def test_tables_are_recognised_as_streams_are(tiny_path: Path, tables: list[str]) -> None:
    recognizer = Recognizer.load(tiny_path)
    recognizer.search = search = SearchFactory(recognizer)(recognizer.folder.config.search)
    for table, name in zip(read_tables(recognizer, tables, None), tables, strict=True):
        audio = load_utterances(read_manifest(name))
        assert table.seconds == pytest.approx(sum(map(len, audio)) / 16000)
        assert any(len(segments) > 1 for segments in table.segments)
        assert [" ".join(words) for words in recognise(search, table)] == decode(recognizer, audio, CHUNK_MS)


def test_the_setting_behind_the_texts_is_found_and_written(
    tiny_path: Path, tables: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_path, folder)
    config = find_model(folder).config
    update_config(folder, replace(config, search=replace(GOOD, lm_weight=2.2, word_score=0.7)))
    best_file = tmp_path / "best.json"
    arguments = ["lm", "tune", "--model", str(folder), "--dev", *tables, "-o", str(best_file), "--write"]
    assert command(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["lm_weight", "prior_weight", "word_score", "second_share", "beam", "threshold", "dev0",
                                "dev1", "mean", "search"]  # fmt: skip
    first, trials = lines[1].split(), [line.split() for line in lines[1:] if line.count(".") >= 4]
    assert first[:6] == ["2.2", "0", "0.7", "0", "30", "20"]
    found = json.loads(best_file.read_text())["search"]
    assert json.loads("\n".join(lines[lines.index("{") :])) == {"search": found}
    assert asdict(find_model(folder).config.search) == found
    assert {k: v for k, v in found.items() if k not in ("lm_weight", "word_score")} == {
        k: v for k, v in asdict(GOOD).items() if k not in ("lm_weight", "word_score")
    }
    best_rate = min(float(t[8]) for t in trials)
    assert best_rate < float(first[8]) / 2
    assert f"best: word error rate {best_rate:.2f} %" in lines


def test_limit_and_models_without_parts(tiny_path: Path, tables: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_path, folder)
    config = find_model(folder).config
    (folder / LANGUAGE_MODEL).unlink()
    update_config(folder, config)
    recognizer = Recognizer.load(folder)
    assert list(SearchFactory(recognizer).steps()) == ["word_score"]
    (table,) = read_tables(recognizer, tables[:1], 2)
    assert len(table.references) == len(table.segments) == 2
    before = (folder / "config.json").read_bytes()
    out = io.StringIO()
    assert tune.main(str(folder), tables[:1], limit=2, file=out) == 0
    assert (folder / "config.json").read_bytes() == before  # without --write
    (folder / "lexicon.lex").write_text("")
    update_config(folder, config)
    assert command(["lm", "tune", "--model", str(folder), "--dev", tables[0]]) == 5


def test_rates_count_all_words_of_a_table(tiny: Recognizer, tables: list[str]) -> None:
    (table,) = read_tables(tiny, tables[:1], None)
    search = SearchFactory(tiny)(GOOD)
    trial = measure(search, [table])
    assert trial.rates == (0.0,) and trial.speed > 0  # the texts are this search's own
    words = sum(map(len, table.references))
    wrong = replace(table, references=(("x", *table.references[0]), *table.references[1:]))
    assert measure(search, [wrong, table]).rates == (1 / (words + 1), 0.0)
    assert measure(search, [wrong, table]).mean == pytest.approx(0.5 / (words + 1))
