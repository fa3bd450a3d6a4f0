"""Options of sessions from outside: arguments of the command line, of whole files, of worker processes; another
language model than the folder's."""

import io
import json
import re
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_model import LEXICON_TEXT, babble

from asr import Recognizer, Segment, lm
from asr.cli import main
from asr.decoding.endpoint import OFF
from asr.decoding.hot_words import HotWord
from asr.errors import ConfigError, LanguageModelError, StateError, UsageError
from asr.options import MOST_ALTERNATIVES, from_arguments
from asr.results import Alternative, Transcript, Word
from asr.transcribe import Options, transcribe
from asr.writers import to_json

RATE = 16000


def write_wav(path: Path, audio: np.ndarray) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes((np.clip(audio, -1, 1) * 32767).astype("<i2").tobytes())
    return path


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("speech")
    return [write_wav(folder / f"{seed}.wav", babble(5, seed=seed)) for seed in (2, 3)]


@pytest.fixture(scope="module")
def field_lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model of another field, as ARPA."""
    words = [entry.split()[0] for entry in LEXICON_TEXT.split(";")]
    path = tmp_path_factory.mktemp("lm") / "field.arpa"
    lm.save(lm.estimate(["oat oat toe", "toe oat oat", "own own toe"] * 3, order=2, vocabulary=words), path)
    return path


# --- arguments ------------------------------------------------------------------------------------------------------


def test_arguments_become_options(tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("# names\nmeet me\t3.5\n\n  know:2 \noat\n", encoding="utf-8")
    assert from_arguments() == {}
    assert from_arguments(["tea:-1.5", str(words), "see no"], "pause_s=0.5, long_s = 9", False, 3) == {
        "hotwords": (HotWord("tea", -1.5), HotWord("meet me", 3.5), HotWord("know", 2.0), HotWord("oat"),
                     HotWord("see no")),
        "endpointing": {"pause_s": 0.5, "long_s": 9.0},
        "lm": False,
        "alternatives": 3,
    }  # fmt: skip
    assert from_arguments(endpointing="OFF") == {"endpointing": False}
    assert from_arguments(endpointing="on") == {"endpointing": True}


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"hotwords": ["me:loud"]}, "hot word 'me:loud': 'loud' is no boost: write a number"),
        ({"hotwords": ["nowhere.txt"]}, "there is no file nowhere.txt with hot words: check the name"),
        ({"hotwords": ["no/where"]}, "there is no file no/where"),
        (
            {"endpointing": "pause=1"},
            "unknown endpointing 'pause': use off, on, or KEY=SECONDS",
        ),
        ({"endpointing": ""}, "unknown endpointing ''"),
        ({"endpointing": "pause_s"}, "endpointing 'pause_s': it has no value: write pause_s=SECONDS"),
        ({"endpointing": "pause_s=x"}, "endpointing 'pause_s': 'x' is no number"),
        ({"alternatives": MOST_ALTERNATIVES + 1}, "alternatives must be 0 to 20"),
    ],
)
def test_arguments_that_cannot_be(arguments: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as caught:
        from_arguments(**arguments)
    assert "\n" not in str(caught.value)


def test_a_file_of_hot_words_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match=r"cannot read the hot words in .*a\.txt: it is not UTF-8 text"):
        from_arguments([str(tmp_path / "a.txt")])
    (tmp_path / "b.txt").write_text("me\ntea\tx\n")
    with pytest.raises(UsageError, match=r"b\.txt, line 2: 'x' is no boost"):
        from_arguments([str(tmp_path / "b.txt")])


# --- files ----------------------------------------------------------------------------------------------------------

OPTIONS: list[dict[str, Any]] = [
    {"hotwords": [("key", -8.0), "oat see"]},
    {"lm": False},
    {"alternatives": 3},
    {"endpointing": False},
    {"endpointing": {"pause_s": 0.2}},
    {"hotwords": [("oat", -8)], "lm": False, "alternatives": 2, "endpointing": {"long_s": 1.0}},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_file_is_transcribed_as_a_stream_with_the_same_options(
    tiny: Recognizer, speech: list[Path], options: dict[str, Any]
) -> None:
    audio = babble(5, seed=2)
    stream = tiny.stream(partials=False, **options)
    expected = tuple(r for r in stream.feed(audio) + stream.finish() if isinstance(r, Segment))
    assert tiny.transcribe(audio, RATE, **options).segments == expected != tiny.transcribe(audio, RATE).segments
    company = tiny.transcribe_many([audio, babble(4, seed=9)], sample_rate=RATE, **options)
    assert company[0].segments == expected  # type: ignore[union-attr]


def test_unusable_options_are_refused_before_any_file_is_read(tiny: Recognizer) -> None:
    sources = iter([babble(1)])
    for options, error in [
        ({"hotwords": ["me#"]}, UsageError),
        ({"hotwords": "me"}, UsageError),
        ({"endpointing": {"pause_s": -1.0}}, ConfigError),
        ({"alternatives": 99}, UsageError),
    ]:
        with pytest.raises(error):
            tiny.transcribe_many(sources, sample_rate=RATE, **options)  # type: ignore[arg-type]
    assert next(sources, None) is not None


def test_hot_words_may_come_from_an_iterator(tiny: Recognizer) -> None:
    audio, words = babble(5, seed=2), [("know", 6.0), ("oat see", 5.0)]
    twice = tiny.transcribe_many([audio, audio], sample_rate=RATE, hotwords=iter(words))
    assert twice[0] == twice[1] == tiny.transcribe(audio, RATE, hotwords=words)


def test_endpointing_true_is_the_models_own(tiny: Recognizer) -> None:
    """Not the defaults of the class, from which the tiny model's differ."""
    stream = tiny.stream(endpointing=False)
    assert stream.options.endpoint == OFF
    assert stream.configure(endpointing=True).endpoint == tiny.folder.config.endpoint
    assert tiny.stream(endpointing=True).options == tiny.options


# --- the command ----------------------------------------------------------------------------------------------------


def command(capsys: pytest.CaptureFixture[str], model: Path, *arguments: str | Path) -> tuple[int, str, str]:
    status = main(["transcribe", "--quiet", "--threads", "1", "--model", str(model), *map(str, arguments)])
    return status, *capsys.readouterr()


def test_the_command_passes_them_on(
    tiny: Recognizer, tiny_path: Path, speech: list[Path], field_lm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = speech[0]
    given = ["--hotwords", "know:6", "--hotwords", "oat see", "--endpointing", "pause_s=0.2", "--alternatives", "2"]
    status, out, _ = command(capsys, tiny_path, path, "-f", "json", "--no-lm", *given)
    expected = tiny.transcribe(
        path, hotwords=[("know", 6.0), "oat see"], endpointing={"pause_s": 0.2}, alternatives=2, lm=False
    )
    assert status == 0 and out == to_json(expected)
    found = json.loads(out)["segments"]
    assert any(s["alternatives"] for s in found if "alternatives" in s)
    other = Recognizer.load(tiny_path, threads=1, language_model=field_lm)
    assert command(capsys, tiny_path, path, "--lm", field_lm)[1].split() == other.transcribe(path).text.split()


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--hotwords", "me#"], 2, "asr: error: unusable hot words: 'me#': it cannot be spelled"),
        (["--hotwords", "none.txt"], 2, "asr: error: there is no file none.txt"),
        (["--endpointing", "pause_s=-1"], 4, "asr: error: endpoint.pause_s must be 0"),
        (["--alternatives", "21"], 2, "asr: error: alternatives must be 0 to 20"),
        (["--lm", "none.lm"], 8, "asr: error: cannot read the language model none.lm: No such file"),
    ],
)
def test_the_command_refuses_in_one_line(
    tiny_path: Path, speech: list[Path], capsys: pytest.CaptureFixture[str], arguments: list[str], status: int,
    message: str,
) -> None:  # fmt: skip
    found, out, err = command(capsys, tiny_path, speech[0], *arguments)
    assert (found, out) == (status, "") and err.startswith(message) and err.count("\n") == 1


def test_worker_processes_get_them_too(tiny: Recognizer, tiny_path: Path, speech: list[Path], field_lm: Path) -> None:
    session = {"hotwords": (HotWord("know", 6.0),), "alternatives": 2, "endpointing": {"pause_s": 0.2}}
    one, two = io.StringIO(), io.StringIO()
    for jobs, out in ((1, one), (2, two)):
        options = Options(tuple(map(str, speech)), formats=("json",), model=str(tiny_path), threads=1, jobs=jobs,
                          quiet=True, language_model=field_lm, session=session)  # fmt: skip
        assert transcribe(options, stdout=out) == 0
    assert one.getvalue() == two.getvalue()
    other = Recognizer.load(tiny_path, threads=1, language_model=field_lm)
    texts = [json.loads(line)["text"] for line in two.getvalue().splitlines()]
    assert texts == [other.transcribe(path, **session).text for path in speech]  # type: ignore[arg-type]
    assert texts != [tiny.transcribe(path).text for path in speech]


def test_alternatives_stand_in_json_where_there_are_some() -> None:
    other = Alternative("eh", (Word("eh", 0.0, 0.5, 0.25),), 0.125)
    segments = (Segment("a", 0.0, 0.5, alternatives=(other,)), Segment("b", 0.5, 1.0, index=1))
    found = json.loads(to_json(Transcript(segments, 1.0)))["segments"]
    word = {"text": "eh", "start": 0.0, "end": 0.5, "confidence": 0.25}
    assert found[0]["alternatives"] == [{"text": "eh", "confidence": 0.125, "words": [word]}]
    assert "alternatives" not in found[1]


# --- another language model -----------------------------------------------------------------------------------------


def test_another_language_model(tiny: Recognizer, tiny_path: Path, field_lm: Path) -> None:
    """The folder stays what it is; states belong to the one or the other."""
    audio = babble(5, seed=3)
    before = {file.name: file.read_bytes() for file in tiny_path.iterdir()}
    other = Recognizer.load(tiny_path, threads=1, language_model=field_lm)
    assert other.transcribe(audio, RATE).text != tiny.transcribe(audio, RATE).text
    assert other.transcribe(audio, RATE, lm=False).text == tiny.transcribe(audio, RATE, lm=False).text
    assert {file.name: file.read_bytes() for file in tiny_path.iterdir()} == before
    stream = other.stream()
    stream.feed(audio)
    with pytest.raises(StateError, match="of another model"):
        tiny.stream(state=stream.state)
    again = Recognizer.load(tiny_path, threads=1, language_model=field_lm).stream(state=stream.state)
    assert again.finish() == stream.finish()


def test_the_folders_own_file_given_by_path_is_the_same_model(tiny: Recognizer, tiny_path: Path) -> None:
    same = Recognizer.load(tiny_path, threads=1, language_model=tiny_path / "words.lm")
    assert same.folder.fingerprint == tiny.folder.fingerprint


def test_a_language_model_that_is_none(tiny_path: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.lm").write_text("not a model")
    for name in ("broken.lm", "missing.lm"):
        with pytest.raises(LanguageModelError, match=re.escape(name)) as caught:
            Recognizer.load(tiny_path, language_model=tmp_path / name)
        assert "\n" not in str(caught.value)
