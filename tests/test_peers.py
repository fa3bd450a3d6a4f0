"""benchmarks/peers.py: the same samples and the same scoring for every system, and times on a clock of our own."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from benchmark_scripts import load_script

from asr import Recognizer
from asr.audio import load_audio
from asr.errors import UsageError
from asr.training import metrics

CLIPS = Path(__file__).parent / "clips"


@pytest.fixture(scope="module")
def peers() -> ModuleType:
    return load_script("peers")


@pytest.fixture
def manifest(clips: dict[Path, str], tmp_path: Path) -> Path:
    """Of the test clips, their texts written in another way."""
    rows = [f"{path}\t{text.upper()}." for path, text in clips.items()]
    path = tmp_path / "clips.tsv"
    path.write_text("\n".join(["audio\ttext", *rows]) + "\n")
    return path


class Clock:
    """Stands still but for what a fake system adds."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def fake(peers: ModuleType, clock: Clock, costs: tuple[float, float, float], texts: list[str] | None = None) -> Any:
    """A system that takes ``costs`` seconds for (begin, a piece, finish), says ``texts`` in turn, keeps the pieces."""

    class Fake(peers.System):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            self.pieces: list[np.ndarray] = []
            self.texts = iter(texts or [])

        def begin(self) -> None:
            clock.now += costs[0]

        def feed(self, piece: np.ndarray) -> None:
            clock.now += costs[1]
            self.pieces.append(piece)

        def finish(self) -> str:
            clock.now += costs[2]
            return next(self.texts, "")

    return Fake()


def test_every_sample_comes_once_in_pieces_of_100_ms(peers: ModuleType) -> None:
    samples = np.arange(4000, dtype=np.int16)
    system = fake(peers, Clock(), (0, 0, 0), ["so"])
    assert system.transcribe(samples) == "so"
    assert [len(p) for p in system.pieces] == [1600, 1600, 800]
    assert np.array_equal(np.concatenate(system.pieces), samples)


@pytest.mark.parametrize(
    ("costs", "work", "wait"),
    [
        ((0.0, 0.02, 0.03), 0.09, 0.05),  # fast: the last piece and the end
        ((0.0, 0.20, 0.03), 0.63, 0.48),  # slow: 0.1 (first piece there) + 3 * 0.2 + 0.03, less 0.25 of audio
        ((0.5, 0.02, 0.00), 0.56, 0.31),  # late: all pieces wait for the beginning
    ],
)
def test_work_and_wait_against_arithmetic(
    costs: tuple[float, float, float], work: float, wait: float, peers: ModuleType
) -> None:
    clock = Clock()
    heard = peers.listen(fake(peers, clock, costs), np.zeros(4000, np.int16), "u", clock)
    assert heard.audio_s == 0.25
    assert heard.cpu_s == pytest.approx(work)
    assert heard.wait_s == pytest.approx(wait)


def test_samples_as_16_bit(peers: ModuleType) -> None:
    samples = np.array([0, 0.5, -1, 1, -2, 2], np.float32)
    assert peers.to_pcm(samples).tolist() == [0, 16384, -32768, 32767, -32768, 32767]


def test_a_random_sample_grows_with_the_limit_and_keeps_the_order(peers: ModuleType) -> None:
    everything = list(range(50))
    assert peers.choose(everything, None, 1) == everything
    assert peers.choose(everything, 5, None) == everything[:5]
    small, large = peers.choose(everything, 5, 1), peers.choose(everything, 20, 1)
    assert small == sorted(small) and len(set(small)) == 5 and small != everything[:5]
    assert set(small) < set(large)
    assert peers.choose(everything, 5, 1) == small != peers.choose(everything, 5, 2)


def test_rows_and_differences(peers: ModuleType, manifest: Path, clips: dict[Path, str], tmp_path: Path) -> None:
    texts = list(clips.values())
    right = fake(peers, Clock(), (0, 0, 0), [t.capitalize() + "!" for t in texts])
    wrong = fake(peers, Clock(), (0, 0, 0), [texts[0].replace("old", "new"), "", texts[2]])
    tables = peers.read_corpora([str(manifest)])
    results = list(peers.run(tables, {"right": right, "wrong": wrong}, out=tmp_path / "out", clock=Clock()))
    errors = 1 + len(texts[1].split())
    assert [(r.table, r.system, r.word.errors) for r in results] == [("clips", "right", 0), ("clips", "wrong", errors)]
    assert results[1].word == metrics.word_error_rate(texts, [texts[0].replace("old", "new"), "", texts[2]])
    assert all(np.array_equal(a, b) for a, b in zip(right.pieces, wrong.pieces, strict=True))
    total = sum(len(t.split()) for t in texts)
    line = peers.difference(results[1], results[0])
    assert line.startswith(f"clips: right minus wrong {-100 * errors / total:+.1f} points of WER (-100.0 to ")

    kept = list(peers.run(tables, {}, ["wrong", "right"], tmp_path / "out"))
    assert [r.edits for r in kept] == [results[1].edits, results[0].edits]
    assert str(kept[0]) == str(results[1])
    other = {"clips": tables["clips"][1:]}
    with pytest.raises(UsageError, match="other utterances of clips"):
        list(peers.run(other, {}, ["right"], tmp_path / "out"))
    with pytest.raises(UsageError, match="run that system once"):
        list(peers.run(tables, {}, ["third"], tmp_path / "out"))


def test_ours_says_what_the_recogniser_says(peers: ModuleType, tiny: Recognizer, tiny_path: Path) -> None:
    samples = peers.to_pcm(load_audio(CLIPS / "river.wav"))
    text = tiny.transcribe(samples, sample_rate=16_000).text
    assert text
    ours = peers.Ours(str(tiny_path))
    assert [ours.transcribe(samples) for _ in range(2)] == [text, text]


def test_pocketsphinx_hears_a_clip(peers: ModuleType, clips: dict[Path, str]) -> None:
    pytest.importorskip("pocketsphinx", reason="PocketSphinx is not installed: pip install -e '.[bench]'")
    system = peers.PocketSphinx("en")
    path = CLIPS / "letter.wav"
    heard = peers.listen(system, peers.to_pcm(load_audio(path)))
    assert metrics.edits(clips[path], peers.normalize(heard.text)).errors <= 2
    assert 0 < heard.wait_s < heard.cpu_s
    assert system.transcribe(np.zeros(1600, np.int16)) == ""


def test_a_package_that_is_missing_is_one_line(
    peers: ModuleType, manifest: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pocketsphinx", None)
    assert peers.main(["--tables", str(manifest), "--systems", "pocketsphinx"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == ("peers: pocketsphinx is not installed: run pip install pocketsphinx, or pip install -e '.[bench]'\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--systems", "sphinx"], "there is no system 'sphinx': choose among asr, pocketsphinx"),
        (["--limit", "0"], "--limit must be at least 1, got 0"),
        (["--kept", "asr", "--systems"], "--kept needs --out, the folder that an earlier run wrote"),
        (["--kept", "asr", "--out", "x"], "'asr' is named in --systems and in --kept: name it in one of them"),
    ],
)
def test_bad_arguments_are_one_line(
    arguments: list[str], message: str, peers: ModuleType, manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert peers.main(["--tables", str(manifest), *arguments]) == 2
    assert capsys.readouterr().err == f"peers: {message}\n"


def test_the_command_prints_a_table(
    peers: ModuleType, manifest: Path, tiny_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--tables", str(manifest), "--systems", "asr", "--model", str(tiny_path), "--limit", "1"]
    assert peers.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "\n".join(lines[:2]) == peers.HEADER
    assert lines[2].startswith("| clips | asr | 1 | ")
    assert len(lines[2].split("|")) == len(lines[0].split("|"))
    assert lines[-1] == f"asr: model {tiny_path}"
