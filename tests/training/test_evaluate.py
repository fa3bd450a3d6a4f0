"""``asr eval`` on the model that knows the clips by heart, and on one that cannot stream."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from training_data import Run

from asr import Recognizer
from asr.checkpoint import FolderConfig, find_model, save_folder
from asr.cli import main
from asr.errors import ManifestError, ModelError
from asr.model import AcousticModel, ModelConfig
from asr.training import evaluate
from asr.training.manifest import read_manifest


@pytest.fixture
def wrong_words(learned: Run) -> Path:
    """A manifest of the clips in which one word of the first is another one."""
    lines = learned.manifest.read_text().splitlines()
    lines[1] = lines[1].replace("cat", "dog")
    path = learned.manifest.parent / "wrong.tsv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_streaming_and_offline_side_by_side(
    learned: Run, wrong_words: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(learned.folder / "model")
    status = main(
        ["eval", "--model", model, "--data", str(learned.manifest), str(wrong_words), "--out", str(tmp_path / "out")]
    )
    assert status == 0
    table = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in table[1:]] == [
        ["train", "streaming", "0.00"],
        ["train", "offline", "0.00"],
        ["wrong", "streaming", "2.50"],
        ["wrong", "offline", "2.50"],
    ]
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert [(r["corpus"], r["mode"]) for r in results] == [
        (corpus, mode) for corpus in ("train", "wrong") for mode in ("streaming", "offline")
    ]
    first, wrong = results[0], results[2]
    assert first["utterances"] == 6
    assert first["audio_s"] == pytest.approx(12.79, abs=0.01)
    assert first["word"]["rate"] == first["character"]["rate"] == 0
    assert first["greedy"] == {"phones": 0.0, "characters": 0.0}
    assert wrong["word"]["errors"] == wrong["word"]["substitutions"] == 1
    assert wrong["word"]["total"] == 40
    assert wrong["word"]["rate"] == pytest.approx(1 / 40)
    assert wrong["word"]["low"] == 0
    assert wrong["word"]["high"] > 1 / 40
    assert wrong["character"]["errors"] == 3
    assert wrong["speed"] > 0
    errors = {mode: (tmp_path / f"out/wrong-{mode}-errors.txt").read_text() for mode in ("streaming", "offline")}
    assert errors["streaming"] == errors["offline"]  # one truth
    assert "REF: the DOG sat on a warm mat\n  HYP: the CAT sat on a warm mat" in errors["streaming"]
    assert "dog -> cat" in errors["streaming"]


def test_one_mode_and_a_few_utterances(learned: Run) -> None:
    file = io.StringIO()
    evaluate.main(str(learned.folder / "model"), [str(learned.manifest)], None, True, False, 2, "cpu", file)
    header, row = file.getvalue().splitlines()
    assert header.split()[:3] == ["corpus", "mode", "WER"]
    assert row.split()[:2] == ["train", "streaming"]


def test_greedy_rates_leave_out_what_a_head_cannot_spell(learned: Run) -> None:
    import dataclasses

    recognizer = Recognizer.load(learned.folder / "model")
    utterances = read_manifest(learned.manifest)[:2]
    audio = evaluate.load_utterances(utterances)
    unknown = dataclasses.replace(utterances[1], text="quixotic xylophone")
    rates = evaluate.greedy_error_rates(recognizer, [utterances[0], unknown], audio)
    assert rates["phones"] == 0  # the lexicon has no such words, and no model to guess them
    assert rates["characters"] > 0.3
    assert evaluate.greedy_error_rates(recognizer, [unknown], audio[1:])["phones"] == 0


def test_utterances_are_cut_from_their_recordings(learned: Run, tmp_path: Path) -> None:
    shutil.copy(learned.manifest.parent / "slt-0.flac", tmp_path)
    manifest = tmp_path / "cut.tsv"
    manifest.write_text("audio\tstart_s\tduration_s\ttext\nslt-0.flac\t0\t0.5\ta\nslt-0.flac\t0.5\t\tb\n")
    first, second = evaluate.load_utterances(read_manifest(manifest))
    (whole,) = evaluate.load_utterances(read_manifest(learned.manifest)[:1])
    np.testing.assert_array_equal(np.concatenate([first, second]), whole)
    manifest.write_text("audio\tstart_s\tduration_s\ttext\nslt-0.flac\t1\t5\ta\n")
    with pytest.raises(ManifestError, match="lies beyond the end"):
        evaluate.load_utterances(read_manifest(manifest))


@pytest.fixture(scope="module")
def both_ways(learned: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bidirectional model that has learned nothing."""
    source = find_model(learned.folder / "model")
    folder = tmp_path_factory.mktemp("both") / "model"
    folder.mkdir()
    shutil.copy(source.path / "lexicon.lex", folder)
    heads = source.config.model.heads
    config = ModelConfig(heads, mels=40, channels=2, hidden=8, layers=1, lookahead=(0,), bidirectional=True)
    torch.manual_seed(0)
    weights = AcousticModel(config).state_dict()
    save_folder(
        folder, FolderConfig(config, source.config.features, "phones"), weights, source.load_vocabularies(), {}, {}
    )
    return folder


def test_a_bidirectional_model_is_evaluated_offline_only(learned: Run, both_ways: Path) -> None:
    file = io.StringIO()
    evaluate.main(str(both_ways), [str(learned.manifest)], None, True, True, 2, "cpu", file)
    assert [line.split()[:2] for line in file.getvalue().splitlines()[1:]] == [["train", "offline"]]
    with pytest.raises(ModelError, match="cannot stream"):
        evaluate.main(str(both_ways), [str(learned.manifest)], None, True, False, 2, "cpu", io.StringIO())


def test_the_parallel_pass_says_what_the_streams_say(learned: Run) -> None:
    recognizer = Recognizer.load(learned.folder / "model")
    utterances = read_manifest(learned.manifest)
    audio = evaluate.load_utterances(utterances)
    assert evaluate.decode_whole(recognizer, audio) == evaluate.decode(recognizer, audio, 100)
