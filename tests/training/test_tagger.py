"""Training of the tagger: what is learnt of a text, the network against the tagger in use, and the commands."""

import lzma
from pathlib import Path

import numpy as np
import pytest
import torch

from asr.cli import main
from asr.errors import LanguageModelError, UsageError
from asr.readable import Formatter
from asr.readable.tagger import Tagger, TaggerConfig
from asr.readable.words import CAPITAL, COMMA, EXCLAMATION, LOWER, MIXED, NONE, QUESTION, STOP, UPPER, Words
from asr.training.tagger import (
    BLOCK,
    Network,
    Trainer,
    TrainOptions,
    divide,
    draw_cuts,
    encode,
    make_words,
    train,
)
from asr.training.tagger_eval import Score, score, tag_in_segments
from asr.training.tagger_text import ANY, label

SMALL = TaggerConfig(embedding=16, hidden=32, merged=24, ahead=3, buckets=64)
SENTENCES = (
    "The cat saw Tom, and he ran.",
    "Does the cat see Tom?",
    "A dog is at NASA, I think.",
    "Where is the dog?",
    "My friend McDonald has a dog.",
    "Stop the cat!",
)


def lines(count: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [SENTENCES[i] for i in rng.integers(0, len(SENTENCES), count)]


def test_words_cases_and_marks_of_a_text() -> None:
    text = label(['"Well," said Mr. McDonald, "where is NASA\'s dog?"', "I don't know!"])
    assert " ".join(text.words) == "well said mister mcdonald where is nasa's dog i don't know"
    assert text.marks == [COMMA, NONE, NONE, COMMA, NONE, NONE, NONE, QUESTION, NONE, NONE, EXCLAMATION]
    known = [ANY, LOWER, CAPITAL, MIXED, LOWER, LOWER, UPPER, LOWER, ANY, LOWER, LOWER]
    assert text.cases == known
    assert list(text.forms.values()) == ["McDonald"]


@pytest.mark.parametrize(
    ("line", "words", "marks"),
    [
        ("Yes -- no; maybe.", "yes no maybe", [COMMA, COMMA, STOP]),
        ("A well-known man.", "a well known man", [NONE, NONE, NONE, STOP]),
        ("In 2021 it rained.", "in twenty twenty one it rained", [NONE, NONE, NONE, NONE, NONE, STOP]),
        ("Wait... what?", "wait what", [COMMA, QUESTION]),
        ("Wait... What?", "wait what", [STOP, QUESTION]),
        ("In the U.S. it is.", "in the u s it is", [NONE, NONE, NONE, NONE, NONE, STOP]),
        ("He left the U.S.", "he left the u s", [NONE, NONE, NONE, NONE, STOP]),
        ("No.", "no", [STOP]),
    ],
)
def test_punctuation(line: str, words: str, marks: list[int]) -> None:
    text = label([line])
    assert " ".join(text.words) == words
    assert text.marks == marks


def test_lines_without_case_or_marks_are_left_out() -> None:
    text = label(["He ran.", "no end here", "THE SHOUTED TITLE OF IT.", "It costs $5.", "She ran."])
    assert text.words == ["he", "ran", "she", "ran"]
    assert text.starts == [0, 2]
    assert text.cases == [ANY, LOWER, ANY, LOWER]


def test_held_out_blocks_are_apart_from_the_rest() -> None:
    text = [(i, str(i)) for i in range(1, 100 * BLOCK + 1)]
    test = {line for line in divide(text, test=True) if line}
    rest = {line for line in divide(text, test=False) if line}
    part = {line for line in divide(text, test=False, share=0.3) if line}
    assert test
    assert not test & rest
    assert test | rest == {line for _, line in text}
    some = {line for line in divide(text[BLOCK + 7 :], test=True) if line}
    assert some == {line for line in test if int(line) > BLOCK + 7}  # the same lines, when a part of the file is read
    assert part < rest
    assert 0.1 < len(part) / len(rest) < 0.5


def test_vocabulary_and_forms() -> None:
    words = make_words([label(lines(200))], 5, 16)
    assert len(words.vocabulary) == 5
    assert "the" in words.vocabulary
    assert words.forms == {"mcdonald": "McDonald"}


def test_network_and_tagger_give_the_same_numbers() -> None:
    torch.manual_seed(3)
    text = label(lines(12))
    words = make_words([text], 50, SMALL.buckets)
    network = Network(SMALL, len(words.vocabulary))
    data = encode(text, words)
    segments = draw_cuts(data.marks, np.random.default_rng(1))
    assert segments[-1] > 0
    padded = np.concatenate([segments, np.full(SMALL.ahead, -1)])
    with torch.no_grad():
        x = network.embed(torch.from_numpy(data.features.astype(np.int64))[:, None])
        h, _ = network.lstm(x)
        after = torch.zeros(SMALL.ahead, 1, 1)
        x, h = (torch.cat([v, after.expand(-1, 1, v.shape[2])]) for v in (x, h))
        logits = network.judge(x, h, torch.from_numpy(padded)[:, None])[:, 0]
    tags = tag_in_segments(network.tagger(words), text.words, segments)
    cases, marks = (part.log_softmax(-1).numpy() for part in logits.split([4, 5], -1))
    assert np.allclose(cases, [tag.cases for tag in tags], atol=1e-4)
    assert np.allclose(marks, [tag.marks for tag in tags], atol=1e-4)


def test_a_tagger_learns_a_small_language(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("\n".join(lines(6000)))
    options = TrainOptions(stems=100, rows=8, window=24, rate=0.02)
    train([str(tmp_path / "text.txt")], tmp_path / "t.safetensors", SMALL, options)
    tagger = Tagger.load(tmp_path / "t.safetensors")
    text = label(lines(100, seed=9))
    report = score(text, tagger.tag(text.words))
    assert report.case_accuracy > 0.99 > report.trivial_accuracy
    assert all(report.marks[mark].f1 > 0.97 for mark in (",", ".", "?", "end"))
    assert Formatter(tagger).text("does the cat see tom my friend mcdonald has a dog") == (
        "Does the cat see Tom? My friend McDonald has a dog."
    )


def test_training_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    text = label(lines(500))
    words = make_words([text], 50, SMALL.buckets)
    data, options = encode(text, words), TrainOptions(rows=4, window=16, checkpoint_s=1e9)
    whole = Trainer(SMALL, options, words, data, tmp_path / "t.safetensors")
    whole.steps = 5
    whole.run()
    again = Trainer(SMALL, options, words, data, tmp_path / "t.safetensors")
    again.steps = 8
    again.resume()
    assert again.step == 5
    assert torch.equal(again.network.head.weight, whole.network.head.weight)
    again.run()
    assert again.step == 8
    assert not torch.equal(again.network.head.weight, whole.network.head.weight)


def test_short_and_missing_texts_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("He ran.\n")
    with pytest.raises(UsageError, match="too few"):
        train([str(tmp_path / "text.txt")], tmp_path / "t.safetensors", SMALL)
    with pytest.raises(LanguageModelError, match="cannot read"):
        train([str(tmp_path / "none.txt")], tmp_path / "t.safetensors", SMALL)


def test_scores() -> None:
    assert Score(0, 0, 0).f1 == 0
    found = Score(actual=4, found=2, right=1)
    assert (found.precision, found.recall) == (0.5, 0.25)
    assert found.f1 == pytest.approx(1 / 3)


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with lzma.open(tmp_path / "text.txt.xz", "wt") as file:
        file.write("\n".join(lines(40 * BLOCK)))
    text, out = str(tmp_path / "text.txt.xz"), tmp_path / "t.safetensors"
    sizes = ["--hidden", "16", "--ahead", "2", "--stems", "50", "--shares", "0.3", "--passes", "0.2"]
    assert main(["readable", "train", text, "-o", str(out), *sizes]) == 0
    assert Tagger.load(out).config.ahead == 2
    assert Tagger.load(out).words == Words.of(list(Tagger.load(out).words.vocabulary), ["McDonald"], 2048)
    assert main(["readable", "eval", text, "--tagger", str(out), "--words", "300"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 3
    assert rows[1].startswith("text.txt.xz running")
    assert " 300 " in rows[1]
