"""`asr train --recipe`: the recipes of the package, runs in stages, downloads, and what comes after training."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import json
import os
import re
import signal
import tarfile
import tomllib
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from asr import Recognizer, lm
from asr.checkpoint import find_model
from asr.cli import main
from asr.decoding.beam_search import BeamSearch
from asr.errors import ConfigError, LanguageModelError, ManifestError, UsageError
from asr.lexicon import Lexicon
from asr.model import AcousticModel
from asr.training import download, finish
from asr.training import run as training_run
from asr.training.download import PARTS, Resource, fetch, librispeech
from asr.training.manifest import read_manifest
from asr.training.recipe import Plan, Recipe, find_recipe, read_plan, recipes, with_data_of
from asr.training.report import read_metrics
from asr.training.train import CHECKPOINT, Trainer, model_config, read_checkpoint

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("librispeech-100", "librispeech-960", "small")


# -- the files ---------------------------------------------------------------------------------------------------------


def test_the_recipes_travel_with_the_package() -> None:
    assert tuple(recipes()) == NAMES
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = settings["tool"]["setuptools"]["package-data"]["asr"]
    files = {path.name for pattern in patterns for path in (ROOT / "asr").glob(pattern)}
    assert files == {f"{name}.toml" for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_says_what_it_needs_and_gives(name: str) -> None:
    plan = read_plan(find_recipe(name))
    recipe = plan.recipe
    assert all(text.startswith(("measured: ", "measured after", "estimate: ")) for text in (recipe.time, recipe.error))
    assert recipe.disk and recipe.language_model and recipe.tune
    shape = model_config(plan.stages[0].config, {"phones": 40, "characters": 29})
    with torch.device("meta"):
        size = AcousticModel(dataclasses.replace(shape, intermediate=0)).parameter_count / 1e6
    assert recipe.about == (
        f"{size:.1f} million parameters, {shape.algorithmic_latency_ms} ms of algorithmic latency, "
        "phones and characters"
    )
    assert plan.stages[0].config.crf == 0 < plan.stages[-1].config.crf  # CTC first
    shapes = [{k: v for k, v in stage.config.model.items() if k != "dropout"} for stage in plan.stages]
    assert all(shape == shapes[0] for shape in shapes), "a stage starts from the weights of the one before"
    for stage in plan.stages:
        assert not any(getattr(stage.config, path) for path in ("noise", "rooms", "lexicon", "words", "cache"))
    text = find_recipe(name).read_text(encoding="utf-8")
    assert "/work" not in text and "../" not in text
    assert f"--recipe {name}" in text.split("\n\n")[0]


def test_librispeech_recipes_bring_their_data_and_small_does_not() -> None:
    for name in ("librispeech-100", "librispeech-960"):
        data, dev, test = with_data_of(read_plan(find_recipe(name)), [], [])
        assert {m.removeprefix("librispeech:") for m in (*data, *dev, *test)} <= set(PARTS)
        assert "librispeech:test-clean" in test
    plan = read_plan(find_recipe("small"))
    with pytest.raises(UsageError, match="small names no data of its own: give --data and --dev"):
        with_data_of(plan, [], [])
    with pytest.raises(UsageError, match=r"give --dev$"):
        with_data_of(plan, ["a.tsv"], [])
    assert with_data_of(plan, ["a.tsv"], ["b.tsv"]) == (["a.tsv"], ["b.tsv"], ["b.tsv"])
    assert plan.missing_tables == ["noise", "rooms"]
    assert read_plan(find_recipe("small"), ["noise=n.tsv", "rooms=r.tsv"]).missing_tables == []


# -- stages and changes ------------------------------------------------------------------------------------------------


TWO = """
batch_seconds = 60
noise = "noise.tsv"
[model]
hidden = 16
layers = 1
lookahead = [0]
[[stages]]
name = "ctc"
[stages.optimizer]
hold = 5
[[stages]]
name = "crf"
crf = 0.9
[stages.model]
dropout = 0.5
"""


def plan_of(tmp_path: Path, text: str, *changes: str) -> Plan:
    path = tmp_path / "two.toml"
    path.write_text(text)
    return read_plan(path, changes)


def test_a_stage_is_the_configuration_with_changes(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, TWO)
    first, second = (stage.config for stage in plan.stages)
    assert [stage.name for stage in plan.stages] == ["ctc", "crf"]
    assert first.optimizer.hold == 5 and second.optimizer.hold == 2000
    assert first.model == {"hidden": 16, "layers": 1, "lookahead": [0]}
    assert second.model == {**first.model, "dropout": 0.5}
    assert first.noise == second.noise == str(tmp_path / "noise.tsv")
    assert plan.steps == first.optimizer.steps + second.optimizer.steps


def test_changes_are_of_all_stages_or_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plan = plan_of(tmp_path, TWO, "model.hidden=32", "crf:optimizer.peak_rate=3e-4", "noise=other/n.tsv", "seed=7")
    first, second = (stage.config for stage in plan.stages)
    assert first.model["hidden"] == second.model["hidden"] == 32
    assert (first.optimizer.peak_rate, second.optimizer.peak_rate) == (1e-3, 3e-4)
    assert first.seed == second.seed == 7
    assert first.noise == str(tmp_path / "other" / "n.tsv")


@pytest.mark.parametrize(
    ("text", "changes", "says"),
    [
        ("[[stages]]\nhold = 3", (), "stage 1 needs a name"),
        ("[[stages]]\nname = 'A b'", (), "needs a name of a to z"),
        ("[[stages]]\nname = 'model'", (), "no stage can be named 'model'"),
        ("[[stages]]\nname = 'a'\n[[stages]]\nname = 'a'", (), "two stages are named 'a'"),
        ("[stages]\nname = 'a'", (), r"write each as \[\[stages\]\]"),
        ("[[stages]]\nname = 'a'\nsede = 3", (), "stage 'a': unknown key 'sede': did you mean 'seed'"),
        ("[recipe]\ntime = '3 hours'", (), "recipe.time must begin with 'measured' or 'estimate'"),
        ("[recipe]\ntimes = 'measured'", (), "unknown key 'recipe.times': did you mean 'time'"),
        ("[recipe]\ntables = ['noises']", (), "recipe.tables: choose from noise, rooms"),
        (TWO, ("crff:seed=3",), "there is no stage 'crff': did you mean 'crf'"),
        (TWO, ("seed",), "'seed' is no change of a setting: write KEY=VALUE"),
        (TWO, ("model.hiden=3",), "unknown key 'model.hiden': did you mean 'hidden'"),
    ],
)
def test_wrong_recipes_are_refused_in_one_line(tmp_path: Path, text: str, changes: tuple[str, ...], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        plan_of(tmp_path, text, *changes)
    assert "\n" not in str(caught.value) and "two.toml" in str(caught.value)


def test_an_unknown_recipe_names_the_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--recipe", "big"]) == 2
    assert f"there is no recipe 'big': choose one of {', '.join(NAMES)}" in capsys.readouterr().err
    assert main(["train", "--recipe", "small", "--config", "x.toml"]) == 2
    assert main(["train", "--data", "x.tsv"]) == 2


# -- a run in stages ---------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """One torch thread in every test."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with clips, train.tsv, words.lex, a language model of their texts, and the features once made."""
    import shutil

    folder = tmp_path_factory.mktemp("speech")
    shutil.copytree(ROOT / "tests" / "training_clips", folder, dirs_exist_ok=True)
    Lexicon.from_cmudict(folder / "words.dict").save(folder / "words.lex")
    texts = [u.text for u in read_manifest(folder / "train.tsv")]
    lm.save(lm.estimate(texts, order=2), folder / "words.lm")
    return folder


def write_recipe(path: Path, speech: Path) -> Path:
    manifest = speech / "train.tsv"
    path.write_text(f"""
batch_seconds = 6.0
precision = "fp32"
workers = 1
lexicon = "{speech / "words.lex"}"
cache = "{speech / "cache"}"
heads = ["phones", "characters"]
head_weights = [0.7, 0.3]
[recipe]
data = ["{manifest}"]
dev = ["{manifest}"]
pronunciation_hours = 1
tune = 2
[features]
mels = 16
[views]
speeds = [1.0]
channels = 0
[model]
hidden = 8
layers = 2
channels = 2
lookahead = [0, 2]
[augment]
join = 0.0
[[stages]]
name = "ctc"
[stages.optimizer]
warmup = 1
hold = 2
decay = 2
average = 0.9
[[stages]]
name = "crf"
crf = 0.9
[stages.optimizer]
warmup = 1
hold = 1
decay = 2
average = 0.9
""")
    return path


def weights(path: Path) -> dict[str, Any]:
    return read_checkpoint(path / CHECKPOINT)["average"]


def test_both_stages_run_and_go_on_exactly(
    speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path / "r.toml", speech)
    monkeypatch.setattr(training_run, "find_recipe", lambda name: {"mine": recipe}[name])
    command = ["train", "--recipe", "mine", "--lm", str(speech / "words.lm")]
    assert main([*command, "--out", str(tmp_path / "whole")]) == 0
    whole = tmp_path / "whole"
    assert json.loads((whole / "done.json").read_text()) == {"done": ["ctc", "crf", "finish"]}
    assert "crf" not in read_metrics(whole / "ctc/metrics.jsonl")[0]
    assert "crf" in read_metrics(whole / "crf/metrics.jsonl")[0]
    assert json.loads((whole / "crf/run.json").read_text())["init"] == str(whole / "ctc" / "model")
    # The second begins with the first's weights (as fp16 has them), not with new ones.
    first, second = weights(whole / "ctc"), weights(whole / "crf")
    name = "recurrent.0.rnn.weight_hh_l0"
    assert (first[name] - second[name]).abs().max() < 0.05 < first[name].std()
    # The result is the last stage's model, with a language model whose words it knows, tuned and measured.
    model = find_model(whole / "model")
    np.testing.assert_allclose(model.load_network().state_dict()[name], second[name], atol=1e-3)
    language_model = model.load_language_model()
    assert language_model is not None and list(model.load_lexicon()) == sorted(language_model.words[3:])
    assert model.config.search == read_search(whole / "search.json")
    assert len(list((whole / "cache").glob("pronunciations-*.npz"))) == 1  # pronunciations were counted
    (result,) = json.loads((whole / "eval/results.json").read_text())
    assert (result["corpus"], result["mode"]) == ("train", "streaming")

    # Interrupted in the second stage, the same command with --resume gives the same weights.
    step = Trainer.train_step

    def interrupted(self: Trainer) -> dict[str, float]:
        if self.config.crf and self.step == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self)

    monkeypatch.setattr(Trainer, "train_step", interrupted)
    parts = tmp_path / "parts"
    assert main([*command, "--out", str(parts)]) == 130
    monkeypatch.setattr(Trainer, "train_step", step)
    assert json.loads((parts / "done.json").read_text()) == {"done": ["ctc"]}
    assert find_model(parts / "model").language_model is None  # of the first stage
    before = (parts / "ctc" / CHECKPOINT).stat().st_mtime_ns
    assert main([*command, "--out", str(parts)]) == 2
    assert "holds a run already: give --resume" in capsys.readouterr().err
    assert main([*command, "--out", str(parts), "--resume"]) == 0
    assert (parts / "ctc" / CHECKPOINT).stat().st_mtime_ns == before
    for key, value in weights(whole / "crf").items():
        assert torch.equal(value, weights(parts / "crf")[key]), key

    # A run that is done stays as it is.
    assert main([*command, "--out", str(parts), "--resume"]) == 0
    assert main([*command, "--out", str(tmp_path / "none"), "--resume"]) == 2
    assert "holds no run in stages to resume" in capsys.readouterr().err


def read_search(path: Path) -> Any:
    from asr.decoding.search_config import SearchConfig

    return SearchConfig(**json.loads(path.read_text())["search"])


# -- the language model ------------------------------------------------------------------------------------------------


def test_words_of_a_language_model_in_capitals_are_listed(tiny_path: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(tiny_path, folder)
    arpa = tmp_path / "capitals.arpa.gz"
    lm.save(lm.estimate(["me see no stone", "no key xyzzyx"], order=2), tmp_path / "small.arpa")
    text = (tmp_path / "small.arpa").read_text()
    for word in ("me", "see", "no", "stone", "key", "xyzzyx"):
        text = re.sub(rf"\b{word}\b", word.upper(), text)
    arpa.write_bytes(gzip.compress(text.encode()))
    finish.add_language_model(folder, arpa)
    model = find_model(folder)
    language_model = model.load_language_model()
    assert language_model is not None and "stone" in language_model.words and "STONE" not in language_model.words
    listed = list(model.load_lexicon())
    assert listed == ["key", "me", "no", "see", "stone"]  # the tiny model has nothing to pronounce others with
    known = find_model(tiny_path).load_lexicon()
    assert all(model.load_lexicon()[word] == known[word] for word in listed)


def test_language_models_that_do_not_fit_are_refused(tiny_path: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(tiny_path, folder)
    lm.save(lm.estimate(["eekao ookae"], order=1), tmp_path / "other.lm")
    with pytest.raises(LanguageModelError, match=r"no word of .*other.lm can be pronounced"):
        finish.add_language_model(folder, tmp_path / "other.lm")
    with pytest.raises(LanguageModelError, match="tells capitals from small letters"):
        finish.in_lower_case(
            dataclasses.replace(lm.estimate(["ab AB"], order=1), words=("<unk>", "<s>", "</s>", "a", "A"))
        )
    assert finish.language_model("") is None
    assert finish.language_model("en", tmp_path / "x.lm") == tmp_path / "x.lm"


def test_a_recurrent_model_comes_with_its_share(tiny_path: Path, tmp_path: Path) -> None:
    import shutil

    folder, theirs = tmp_path / "model", find_model("en")
    shutil.copytree(tiny_path, folder)
    before = find_model(folder)
    finish.add_recurrent(folder, "en")
    after = find_model(folder)
    expected = {"second_share": theirs.config.search.second_share, "second_margin": theirs.config.search.second_margin}
    assert 0 < expected["second_share"] < 1
    assert after.config.search == dataclasses.replace(before.config.search, **expected)
    assert after.fingerprint != before.fingerprint
    search = Recognizer.load(folder, threads=1).search
    assert isinstance(search, BeamSearch) and search._rescorer
    with pytest.raises(LanguageModelError, match="has no recurrent language model"):
        finish.add_recurrent(folder, str(tiny_path))
    with pytest.raises(ConfigError, match="needs recipe"):
        Recipe(recurrent="en")


# -- downloads ---------------------------------------------------------------------------------------------------------


class Answer(io.BytesIO):
    """An answer of a server that breaks after ``upto`` bytes."""

    def __init__(self, data: bytes, status: int, upto: int | None = None) -> None:
        super().__init__(data[:upto])
        self.status, self.broken = status, upto is not None and upto < len(data)

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        if not data and self.broken:
            raise ConnectionResetError("connection reset")
        return data


class Server:
    """Answers with ``data``, ``each`` bytes at most at a time; ``ranges``: whether it can begin in the middle."""

    def __init__(self, data: bytes, each: int | None = None, ranges: bool = True) -> None:
        self.data, self.each, self.ranges = data, each, ranges
        self.asked: list[str] = []

    def __call__(self, request: urllib.request.Request) -> Answer:
        wanted = request.get_header("Range") or ""
        self.asked.append(wanted)
        first = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and self.ranges else 0
        return Answer(self.data[first:], 206 if first else 200, self.each)


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_WAIT_S", 0.0)


def resource(data: bytes, name: str = "file.bin") -> Resource:
    return Resource(12, name, len(data), hashlib.sha256(data).hexdigest())


@pytest.mark.usefixtures("no_waiting")
def test_a_download_goes_on_where_it_broke(tmp_path: Path) -> None:
    data = np.random.default_rng(0).bytes(1000)
    server = Server(data, each=400)
    path = fetch(resource(data), tmp_path, server)
    assert path.read_bytes() == data
    assert server.asked == ["", "bytes=400-", "bytes=800-"]
    assert fetch(resource(data), tmp_path, server) == path and len(server.asked) == 3  # it is there
    assert [p.name for p in tmp_path.iterdir()] == ["file.bin"]


@pytest.mark.usefixtures("no_waiting")
def test_a_download_of_an_earlier_call_is_taken_up(tmp_path: Path) -> None:
    data = b"abcdefghij"
    (tmp_path / "file.bin.part").write_bytes(data[:4])
    whole = Server(data, ranges=False)  # this one begins anew
    assert fetch(resource(data), tmp_path, whole).read_bytes() == data
    assert whole.asked == ["bytes=4-"]


@pytest.mark.usefixtures("no_waiting")
def test_a_file_that_is_not_the_published_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="is not the published file"):
        fetch(resource(b"right"), tmp_path, Server(b"wrong"))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ManifestError, match="is not the published file"):
        fetch(dataclasses.replace(resource(b"abc"), sha256=""), tmp_path, Server(b"abcd"))


@pytest.mark.usefixtures("no_waiting")
def test_without_a_network_what_is_there_is_kept(tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(b"ab")

    def nobody(request: urllib.request.Request) -> Any:
        raise OSError("no route\nto host")

    with pytest.raises(
        ManifestError, match=r"cannot fetch .*12/file.bin .*no route to host.*goes on from there"
    ) as caught:
        fetch(resource(b"abc"), tmp_path, nobody)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "file.bin.part").read_bytes() == b"ab"


def test_too_small_a_disk_is_said_before_anything_is_fetched(tmp_path: Path) -> None:
    huge = Resource(12, "huge.bin", 1 << 60)
    with pytest.raises(ManifestError, match=r"huge.bin needs .* GB are free: make room, or give another --data-dir"):
        fetch(huge, tmp_path / "new", Server(b""))


def archive(part: str) -> bytes:
    """An archive as LibriSpeech's are."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, data in (
            (f"LibriSpeech/{part}/1272/128104/1272-128104.trans.txt", b"1272-128104-0000 MISTER QUILTER\n"),
            (f"LibriSpeech/{part}/1272/128104/1272-128104-0000.flac", b"fLaC"),
            ("LibriSpeech/README.TXT", b"about"),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@pytest.mark.usefixtures("no_waiting")
def test_a_part_is_fetched_unpacked_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = archive("dev-clean")
    monkeypatch.setitem(PARTS, "dev-clean", resource(data, "dev-clean.tar.gz"))
    monkeypatch.setenv("ASR_DATA", str(tmp_path))
    server = Server(data, each=200)
    folder = librispeech("dev-clean", tmp_path, server)
    assert folder == tmp_path / "LibriSpeech" / "dev-clean"
    (utterance,) = read_manifest("librispeech:dev-clean")
    assert utterance.text == "mister quilter" and utterance.audio.is_relative_to(folder)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["LibriSpeech"]  # no archive, nothing half done
    asked = len(server.asked)
    assert librispeech("dev-clean", tmp_path, server) == folder and len(server.asked) == asked
    with pytest.raises(ManifestError, match="LibriSpeech has no part 'dev': choose one of dev-clean"):
        librispeech("dev", tmp_path)


@pytest.mark.usefixtures("no_waiting")
def test_half_an_archive_leaves_no_part_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = archive("dev-clean")[:150]
    monkeypatch.setitem(PARTS, "dev-clean", resource(data, "dev-clean.tar.gz"))
    with pytest.raises(ManifestError, match=r"cannot unpack .*dev-clean.tar.gz"):
        librispeech("dev-clean", tmp_path, Server(data))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dev-clean.tar.gz"]
