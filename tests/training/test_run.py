"""``asr train`` from configuration to model folder: learning, files, resuming, fine-tuning, processes, refusals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from training_data import BY_HEART, Run, toml, train

from asr.checkpoint import find_model
from asr.decoding.search_config import SearchConfig
from asr.training import run as training_run
from asr.training.evaluate import decode, greedy_error_rates, load_utterances
from asr.training.manifest import read_manifest
from asr.training.report import read_metrics
from asr.training.train import CHECKPOINT, Trainer, read_checkpoint

ROOT = Path(__file__).resolve().parents[2]


def write(path: Path, values: dict[str, Any]) -> Path:
    path.write_text(toml(values))
    return path


@pytest.fixture
def short(clips: Path, tmp_path: Path) -> dict[str, Any]:
    """A configuration of eight steps with every table and every kind of augmentation; three steps an epoch."""
    rng = np.random.default_rng(0)
    soundfile.write(clips / "noise.wav", rng.normal(0, 0.1, 80_000), 16_000)
    lines = ["audio\tstart_s\tduration_s", *(f"noise.wav\t{i / 10}\t1.5" for i in range(12))]
    (clips / "noise.tsv").write_text("\n".join(lines) + "\n")
    soundfile.write(clips / "room.wav", np.exp(-np.arange(2000) / 300) * rng.normal(0, 1, 2000) / 4, 16_000)
    (clips / "rooms.tsv").write_text("path\tt60_s\nroom.wav\t0.1\n")
    (clips / "extra.txt").write_text("mats cats\n")
    return {
        "batch_seconds": 6.0,
        "heads": ["phones", "characters"],
        "head_weights": [0.7, 0.3],
        "carry": 0.5,
        "precision": "fp32",
        "workers": 1,
        "noise": clips / "noise.tsv",
        "rooms": clips / "rooms.tsv",
        "lexicon": clips / "words.lex",
        "cache": clips / "cache",
        "features": {"mels": 16},
        "views": {"speeds": [1.0, 0.9], "channels": 1},
        "model": {"hidden": 8, "layers": 2, "channels": 2, "lookahead": [0, 2], "dropout": 0.2, "intermediate": 1},
        "augment": {"noise": 0.5, "babble": 0.3, "join": 0.0, "empty": 0.2},
        "optimizer": {"warmup": 2, "hold": 3, "decay": 3, "average": 0.9},
    }


# -- what comes of it --------------------------------------------------------------------------------------------------


def test_the_clips_are_learned_by_heart(learned: Run) -> None:
    rows = read_metrics(learned.folder / "metrics.jsonl")
    assert [r["step"] for r in rows if "loss" in r] == list(range(1, 181))
    assert rows[0]["loss"] > 2
    assert rows[-2]["loss"] < 0.02
    assert rows[-2]["skipped"] == 0
    assert rows[-1] == {"step": 180, "train/phones_error": 0.0, "train/characters_error": 0.0}


@pytest.mark.parametrize("chunk_ms", [20, 100, 2000])
def test_the_exported_model_says_the_sentences_while_streaming(learned: Run, chunk_ms: int) -> None:
    from asr import Recognizer

    recognizer = Recognizer.load(learned.folder / "model")
    assert recognizer.folder.language_model is None
    utterances = read_manifest(learned.manifest)
    audio = load_utterances(utterances)
    assert decode(recognizer, audio, chunk_ms) == [u.text for u in utterances]
    if chunk_ms == 100:
        assert greedy_error_rates(recognizer, utterances, audio) == {"phones": 0.0, "characters": 0.0}


def test_files_of_a_run(learned: Run) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = learned.folder
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    (events,) = (folder / "tensorboard").iterdir()
    board = EventAccumulator(str(events))
    board.Reload()
    assert {"loss", "phones", "characters", "learning_rate", "train/phones_error"} <= set(board.Tags()["scalars"])
    assert len(board.Scalars("loss")) == 180
    started = json.loads((folder / "run.json").read_text())
    assert started["data"] == [str(learned.manifest)]
    assert started["config"]["model"]["hidden"] == 64
    assert started["init"] is None
    assert read_checkpoint(folder / CHECKPOINT)["step"] == 180
    model = find_model(folder / "model")
    priors = model.load_log_priors("phones")
    assert priors is not None
    assert np.exp(priors).sum() == pytest.approx(1, abs=1e-4)
    assert priors.argmax() == 0  # most steps are blank
    weights = model.load_network().state_dict()
    average = read_checkpoint(folder / CHECKPOINT)["average"]
    for name, value in average.items():
        np.testing.assert_allclose(weights[name].numpy(), value.numpy(), rtol=1e-3, atol=1e-4)  # fp16


# -- going on and starting from ----------------------------------------------------------------------------------------


def test_a_run_is_not_overwritten(learned: Run, capsys: pytest.CaptureFixture[str]) -> None:
    before = (learned.folder / CHECKPOINT).read_bytes()
    assert train(learned.config, learned.manifest, learned.folder) == 2
    assert "holds a run already: give --resume to go on with it, or another --out" in capsys.readouterr().err
    assert (learned.folder / CHECKPOINT).read_bytes() == before


def test_nothing_to_resume(learned: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(learned.config, learned.manifest, tmp_path, "--resume") == 2
    assert "holds no checkpoint to resume from: leave --resume away" in capsys.readouterr().err


def test_sigint_leaves_a_run_that_goes_on_exactly(
    short: dict[str, Any], clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = clips / "train.tsv"
    config = write(tmp_path / "c.toml", short)
    assert train(config, manifest, tmp_path / "whole") == 0
    step = Trainer.train_step

    def interrupted(self: Trainer) -> dict[str, float]:
        if self.step == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self)

    monkeypatch.setattr(Trainer, "train_step", interrupted)
    before = signal.getsignal(signal.SIGINT)
    assert train(config, manifest, tmp_path / "parts") == 130
    assert signal.getsignal(signal.SIGINT) == before
    assert read_checkpoint(tmp_path / "parts" / CHECKPOINT)["step"] == 5  # the running step was finished
    assert (tmp_path / "parts/model/config.json").is_file()  # what has been learned so far
    monkeypatch.undo()
    with (tmp_path / "parts/metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "loss": 9.0}\n{"step": 7, "lo')  # as if killed after its last checkpoint
    assert train(config, manifest, tmp_path / "parts", "--resume") == 0
    whole, parts = (read_checkpoint(tmp_path / name / CHECKPOINT) for name in ("whole", "parts"))
    for part in ("model", "average"):
        for name, value in whole[part].items():
            assert torch.equal(value, parts[part][name]), name
    assert whole["step"] == parts["step"] == 8
    rows = [read_metrics(tmp_path / name / "metrics.jsonl") for name in ("whole", "parts")]
    assert [(r["step"], r["loss"]) for r in rows[0] if "loss" in r] == [
        (r["step"], r["loss"]) for r in rows[1] if "loss" in r
    ]


def test_a_finished_run_may_be_lengthened(short: dict[str, Any], clips: Path, tmp_path: Path) -> None:
    manifest = clips / "train.tsv"
    assert train(write(tmp_path / "c.toml", short), manifest, tmp_path / "run") == 0
    (tmp_path / "run/lexicon.lex").stat()
    assert train(tmp_path / "c.toml", manifest, tmp_path / "run", "--resume") == 0
    longer = {**short, "optimizer": {**short["optimizer"], "decay": 5}}
    assert train(write(tmp_path / "c.toml", longer), manifest, tmp_path / "run", "--resume") == 0
    assert read_checkpoint(tmp_path / "run" / CHECKPOINT)["step"] == 10


def test_fine_tuning_starts_from_the_model(learned: Run, clips: Path, tmp_path: Path) -> None:
    start = tmp_path / "start"
    model = find_model(learned.folder / "model")
    _copy_with_search(model.path, start, SearchConfig(beam=77))
    values = {k: v for k, v in BY_HEART.items() if k not in ("model", "features")}
    values |= {"optimizer": {"peak_rate": 1e-5, "warmup": 0, "hold": 2, "decay": 0, "average": 0.0}}
    values |= {"cache": clips / "cache", "model": {"dropout": 0.0}}
    config = write(tmp_path / "c.toml", values)
    assert train(config, learned.manifest, tmp_path / "run", "--init", str(start)) == 0
    assert read_metrics(tmp_path / "run/metrics.jsonl")[0]["loss"] < 0.02  # it knows the sentences already
    tuned = find_model(tmp_path / "run/model")
    assert tuned.config.search.beam == 77
    assert tuned.config.model == model.config.model
    assert list(tuned.load_lexicon()) == list(model.load_lexicon())
    old, new = model.load_network().state_dict(), tuned.load_network().state_dict()
    for name, value in old.items():
        np.testing.assert_allclose(new[name].numpy(), value.numpy(), atol=2e-3)
    # going on needs no --init: the run remembers it
    longer = write(tmp_path / "c.toml", {**values, "optimizer": {**values["optimizer"], "hold": 3}})
    assert train(longer, learned.manifest, tmp_path / "run", "--resume") == 0
    assert find_model(tmp_path / "run/model").config.search.beam == 77


def test_a_running_mean_can_be_added_to_a_model(learned: Run, clips: Path, tmp_path: Path) -> None:
    """It has no weights: the new network begins with all that the old one has."""
    values = {k: v for k, v in BY_HEART.items() if k not in ("model", "features")}
    values |= {"optimizer": {"peak_rate": 1e-6, "warmup": 0, "hold": 2, "decay": 0, "average": 0.0}}
    values |= {"cache": clips / "cache", "model": {"dropout": 0.0, "running_mean": 0.5, "running_mean_s": 2.0}}
    start, config = learned.folder / "model", write(tmp_path / "c.toml", values)
    assert train(config, learned.manifest, tmp_path / "run", "--init", str(start)) == 0
    tuned = find_model(tmp_path / "run/model")
    assert (tuned.config.model.running_mean, tuned.config.model.running_mean_s) == (0.5, 2.0)
    old, new = (m.load_network().state_dict() for m in (find_model(start), tuned))
    assert set(new) == set(old)
    for name, value in old.items():
        np.testing.assert_allclose(new[name].numpy(), value.numpy(), atol=2e-3)


def _copy_with_search(source: Path, target: Path, search: SearchConfig) -> None:
    import dataclasses
    import shutil

    from asr.checkpoint import update_config

    shutil.copytree(source, target)
    update_config(target, dataclasses.replace(find_model(source).config, search=search))


def test_a_deeper_network_goes_on_with_what_the_shallower_one_knows(learned: Run, tmp_path: Path) -> None:
    schedule = {"peak_rate": 1e-4, "warmup": 1, "hold": 2, "decay": 1}
    values = BY_HEART | {
        "cache": learned.manifest.parent / "cache",
        "deepen": [1],
        "model": BY_HEART["model"] | {"layers": 3, "lookahead": [0, 0, 2]},
        "optimizer": BY_HEART["optimizer"] | schedule,
    }
    config = write(tmp_path / "c.toml", values)
    out = tmp_path / "run"
    assert train(config, learned.manifest, out, "--init", str(learned.folder / "model")) == 0
    shape = find_model(out / "model").config.model
    assert (shape.layers, shape.lookahead) == (3, (0, 0, 2))
    last = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()][-1]
    assert last["train/phones_error"] < 0.1  # it does not begin anew
    assert json.loads((out / "run.json").read_text())["init"] == str(out / "deepened")
    checkpoint = out / "checkpoint.pt"
    longer = write(tmp_path / "longer.toml", values | {"optimizer": BY_HEART["optimizer"] | schedule | {"decay": 2}})
    began = (out / "deepened" / "acoustic.safetensors").stat().st_mtime_ns
    assert train(longer, learned.manifest, out, "--init", str(learned.folder / "model"), "--resume") == 0
    assert read_checkpoint(checkpoint)["step"] == 5
    assert (out / "deepened" / "acoustic.safetensors").stat().st_mtime_ns == began


def test_only_a_model_can_be_deepened(learned: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write(tmp_path / "c.toml", BY_HEART | {"deepen": [1]})
    assert train(config, learned.manifest, tmp_path / "run") == 2
    assert "give --init" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": {"hidden": 32}}, "has another shape: leave the [model] table of"),
        ({"features": {"mels": 80, "window_ms": 25}}, "has other features: leave the [features] table away"),
        ({"heads": ["bpe"], "head_weights": [1]}, "has no head 'bpe': it has phones, characters"),
    ],
)
def test_fine_tuning_of_another_shape_is_refused(
    changes: dict[str, Any], says: str, learned: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {k: v for k, v in BY_HEART.items() if k not in ("model", "features")} | changes
    config = write(tmp_path / "c.toml", values | {"cache": learned.manifest.parent / "cache"})
    assert train(config, learned.manifest, tmp_path / "run", "--init", str(learned.folder / "model")) in (2, 4)
    assert says in capsys.readouterr().err


# -- several processes -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_are_one_process_with_both_batches(short: dict[str, Any], clips: Path, tmp_path: Path) -> None:
    manifest = clips / "train.tsv"
    two = write(tmp_path / "two.toml", {**short, "batch_seconds": 3.0})
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "asr", "train"),
        *("--config", str(two), "--data", str(manifest), "--dev", str(manifest), "--out", str(tmp_path / "two")),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    one = write(tmp_path / "one.toml", {**short, "batch_seconds": 3.0, "accumulate": 2})
    assert train(one, manifest, tmp_path / "one") == 0
    a, b = (read_checkpoint(tmp_path / name / CHECKPOINT) for name in ("one", "two"))
    assert (a["step"], a["epoch"], a["position"]) == (b["step"], b["epoch"], b["position"]) == (8, 2, 2)
    assert b["world"] == 2
    for name, value in a["model"].items():
        np.testing.assert_allclose(value.numpy(), b["model"][name].numpy(), rtol=1e-3, atol=2e-4, err_msg=name)
    for (h, c), (h2, c2) in zip(a["carried"], b["carried"], strict=True):
        np.testing.assert_allclose(h.numpy(), h2.numpy(), atol=2e-3)
        np.testing.assert_allclose(c.numpy(), c2.numpy(), atol=2e-3)
    losses = [[r["loss"] for r in read_metrics(tmp_path / n / "metrics.jsonl") if "loss" in r] for n in ("one", "two")]
    assert len(losses[0]) == len(losses[1]) == 8
    assert find_model(tmp_path / "two/model").load_network()


# -- other ways to train -----------------------------------------------------------------------------------------------


def test_pieces_a_dictionary_and_a_bidirectional_gru(
    short: dict[str, Any], clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_run, "train_g2p", lambda pairs: None)  # it has tests of its own
    values = {
        **short,
        "heads": ["phones", "bpe"],
        "bpe_size": 60,
        "carry": 0.0,
        "lexicon": clips / "words.dict",
        "words": clips / "extra.txt",
        "model": {"hidden": 8, "layers": 1, "channels": 2, "lookahead": [0], "cell": "gru", "bidirectional": True},
        "optimizer": {"warmup": 1, "hold": 1, "decay": 0},
    }
    assert train(write(tmp_path / "c.toml", values), clips / "train.tsv", tmp_path / "run") == 0
    model = find_model(tmp_path / "run/model")
    words = list(model.load_lexicon())
    assert {"mats", "cats", "water"} <= set(words)
    assert len(model.load_vocabularies()["bpe"]) == 60
    assert model.config.model.bidirectional


def test_the_grapheme_to_phoneme_model_is_kept_with_the_run(
    short: dict[str, Any], clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from asr.g2p import train_g2p

    trained = []

    def small(pairs: list[tuple[str, tuple[str, ...]]]) -> Any:
        trained.append(len(pairs))
        return train_g2p(pairs, order=2, min_count=1)

    monkeypatch.setattr(training_run, "train_g2p", small)
    (clips / "extra.txt").write_text("rink\n")
    values = {**short, "lexicon": clips / "words.dict", "words": clips / "extra.txt"}
    values |= {"optimizer": {"warmup": 1, "hold": 0, "decay": 0}}
    config = write(tmp_path / "c.toml", values)
    for more in ([], ["--resume"]):
        assert train(config, clips / "train.tsv", tmp_path / "run", *more) == 0
    assert trained == [35]  # once
    lexicon = find_model(tmp_path / "run/model").load_lexicon()
    assert "rink" in lexicon
    assert lexicon.pronounce("dat")


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "status", "says"),
    [
        ("batch_secs = 3", 4, "c.toml: unknown key 'batch_secs': did you mean 'batch_seconds'?"),
        ("[model]\nlayer = 3", 4, "c.toml: unknown key 'model.layer': did you mean 'layers'?"),
        ("lexicon = 'none.dict'", 7, "none.dict"),
        ("lexicon = 'words.lex'\nnoise = 'none.tsv'", 6, "cannot read the table"),
        ("lexicon = 'words.lex'\ncorpora = {nobody = 2}", 2, "'nobody', which no utterance is of; there are train"),
        ("corpora = {train = -1}", 4, "corpora.train must be a number from 0, got -1.0"),
        ("lexicon = 'words.lex'\nrooms = 'bad.tsv'", 6, "bad.tsv, line 1: no column 'path' and 't60_s'"),
        (
            "lexicon = 'words.lex'\nnoise = 'bad.tsv'",
            6,
            "bad.tsv, line 1: no column 'audio' and 'start_s' and 'duration_s'",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    config: str, status: int, says: str, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "words.lex").write_bytes((clips / "words.lex").read_bytes())
    (tmp_path / "bad.tsv").write_text("a\tb\n")
    (tmp_path / "c.toml").write_text(f"workers = 1\ncache = '{clips / 'cache'}'\n{config}\n")
    assert train(tmp_path / "c.toml", clips / "train.tsv", tmp_path / "run") == status
    err = capsys.readouterr().err
    assert says in err
    assert "Traceback" not in err
    assert [line for line in err.splitlines() if line.startswith("asr: error: ")] == err.splitlines()[-1:]


def test_a_word_that_the_lexicon_lacks_names_the_utterance(
    short: dict[str, Any], clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (clips / "other.tsv").write_text("audio\ttext\nslt-0.flac\tquixotic mat\n")
    assert train(write(tmp_path / "c.toml", short), clips / "other.tsv", tmp_path / "run") == 6
    assert "utterance other-2 of" in capsys.readouterr().err
