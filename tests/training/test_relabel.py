"""Pseudo-labels."""

from __future__ import annotations

from pathlib import Path

import pytest
from training_data import Run

from asr.checkpoint import find_model
from asr.errors import ModelError
from asr.results import Segment, Word
from asr.training.manifest import read_manifest
from asr.training.relabel import judge, main

CLIPS = Path(__file__).resolve().parent.parent / "clips"
WRONG = "nobody has ever said anything of this kind"


def heard(text: str, confidence: float) -> list[Segment]:
    words = [Word(w, float(i), i + 1.0, confidence) for i, w in enumerate(text.split())]
    return [Segment(" ".join(w.text for w in part), 0.0, 1.0, tuple(part)) for part in (words[:2], words[2:])]


@pytest.mark.parametrize(
    ("text", "said", "confidence", "expected"),
    [
        ("the cat sat down", "the cat sat down", 0.1, ("published", "the cat sat down")),
        ("the cat sat down", "the hat sat down", 0.1, ("published", "the cat sat down")),  # three words of four
        ("the cat sat down", "the hat sat town", 0.9, ("heard", "the hat sat town")),
        ("the cat sat down", "the hat sat town", 0.6, ("", "")),
        ("the cat", "the cat and more words", 0.9, ("heard", "the cat and more words")),
        ("the cat", "", 0.9, ("", "")),
        ("", "", 0.9, ("published", "")),
    ],
)
def test_whose_text_counts(text: str, said: str, confidence: float, expected: tuple[str, str]) -> None:
    assert judge(text, heard(said, confidence), agreement=0.75, confidence=0.8) == expected


def test_a_table_gets_the_texts_that_are_heard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        find_model("en")
    except ModelError:
        pytest.skip("the shipped model is not there")
    clips = [u for u in read_manifest(CLIPS / "clips.tsv") if u.audio.name == "work.wav"]
    assert len(clips) == 1
    table = tmp_path / "weak.tsv"
    lines = ["audio\ttext\tspeaker", f"{clips[0].audio}\t{clips[0].text}\tone", f"{clips[0].audio}\t{WRONG}\ttwo"]
    table.write_text("\n".join(lines) + "\n")
    out = tmp_path / "new" / "table.tsv"
    assert main(["en", str(table), "--out", str(out), "--confidence", "0.3"]) == 0
    assert capsys.readouterr().out == "1 published, 1 heard, 0 left out\n"
    right, corrected = read_manifest(out)
    assert right.text == clips[0].text and right.speaker == "one"
    assert corrected.text != WRONG and len(set(corrected.text.split()) & set(right.text.split())) >= 3
    assert corrected.audio == right.audio == clips[0].audio.resolve()
    assert [line.rsplit("\t", 1)[1] for line in out.read_text().splitlines()] == ["label", "published", "heard"]
    assert main(["en", str(table), "--out", str(out)]) == 1  # it loses nothing
    assert "exists" in capsys.readouterr().err


def test_a_model_without_confidences(learned: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new.tsv"
    assert main([str(learned.folder / "model"), str(learned.manifest), "--out", str(out)]) == 1
    assert "calibrate it first" in capsys.readouterr().err and not out.exists()
