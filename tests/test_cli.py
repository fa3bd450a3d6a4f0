"""The command line as a person meets it: statuses, one-line errors, speed of what needs no network."""

import json
import os
import subprocess
import sys
import time
import tomllib
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import asr
from asr.cli import main
from asr.errors import AsrError, ModelError
from asr.results import Segment, Transcript

ROOT = Path(__file__).resolve().parent.parent


def run(*arguments: str, cwd: Path | None = None, code: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *(["-c", code] if code else ["-m", "asr"]), *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "100"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)


class FakeRecognizer:
    loaded: list[tuple[str, str, int | None]]

    @classmethod
    def load(cls, name_or_dir: str = "en", device: str = "cpu", threads: int | None = None) -> "FakeRecognizer":
        cls.loaded.append((name_or_dir, device, threads))
        if name_or_dir == "missing":
            raise ModelError("no model 'missing': there is en")
        return cls()

    def transcribe_many(
        self, sources: list[Path], *, on_done: Callable[..., None], **_: Any
    ) -> list[Transcript | AsrError]:
        for index, source in enumerate(sources):
            text = source.read_text()
            if text == "interrupt":
                raise KeyboardInterrupt
            if text == "bug":
                raise ValueError("two\nlines")
            on_done(index, Transcript((Segment(text, 0.0, 1.0),), 1.0))
        return []


@pytest.fixture
def recognizer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> type[FakeRecognizer]:
    FakeRecognizer.loaded = []
    module = types.ModuleType("asr.recognizer")
    module.Recognizer = FakeRecognizer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "asr.recognizer", module)
    monkeypatch.chdir(tmp_path)
    return FakeRecognizer


# --- in this process ------------------------------------------------------------------------------------------------


def test_transcribe(recognizer: type[FakeRecognizer], capfd: pytest.CaptureFixture[str]) -> None:
    Path("a.wav").write_text("hello")
    assert main(["transcribe", "a.wav", "--model", "de", "--device", "cuda", "--threads", "2"]) == 0
    assert capfd.readouterr() == ("hello\n", "")
    assert recognizer.loaded == [("de", "cuda", 2)]
    assert main(["transcribe", "a.wav", "-o", "out", "-f", "txt, vtt,txt"]) == 0
    assert sorted(os.listdir("out")) == ["a.txt", "a.vtt"]
    assert main(["transcribe", "a.wav", "-o", "out"]) == 2
    assert main(["transcribe", "a.wav", "-o", "out", "--force"]) == 0


def test_an_error_is_one_line_and_its_status(
    recognizer: type[FakeRecognizer], capfd: pytest.CaptureFixture[str]
) -> None:
    Path("a.wav").write_text("hello")
    assert main(["transcribe", "a.wav", "--model", "missing"]) == 5
    assert capfd.readouterr() == ("", "asr: error: no model 'missing': there is en\n")


@pytest.mark.parametrize("debug_first", [True, False])
def test_debug_shows_the_traceback(
    debug_first: bool, recognizer: type[FakeRecognizer], capfd: pytest.CaptureFixture[str]
) -> None:
    Path("a.wav").write_text("hello")
    command = ["transcribe", "a.wav", "--model", "missing"]
    assert main(["--debug", *command] if debug_first else [*command, "--debug"]) == 5
    err = capfd.readouterr().err
    assert err.startswith("Traceback (most recent call last):")
    assert err.endswith("\nasr: error: no model 'missing': there is en\n")


def test_a_bug_is_one_line_too(recognizer: type[FakeRecognizer], capfd: pytest.CaptureFixture[str]) -> None:
    Path("a.wav").write_text("bug")
    assert main(["transcribe", "a.wav"]) == 1
    assert capfd.readouterr().err == "asr: error: internal error: ValueError: two lines (--debug shows where)\n"


def test_interrupt(recognizer: type[FakeRecognizer], capfd: pytest.CaptureFixture[str]) -> None:
    Path("a.wav").write_text("interrupt")
    assert main(["transcribe", "a.wav"]) == 130
    assert capfd.readouterr().err == "asr: interrupted\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND ('asr --help' shows how)"),
        (["transcribe"], "the following arguments are required: FILE ('asr transcribe --help' shows how)"),
        (["transcribe", "a", "--jobs", "0"], "must be a whole number of at least 1, not '0'"),
        (["transcribe", "a", "--channel", "x"], "must be a whole number of at least 0, not 'x'"),
        (["transcribe", "a", "-f", "doc"], "unknown format 'doc': choose from txt, json, srt, vtt, tsv, ctm"),
        (["transcribe", "a", "-f", ","], "standard output takes one format"),
        (["transcribe", "a", "--modl", "en"], "unrecognized arguments: --modl"),
        (["transcrib"], "invalid choice: 'transcrib' (choose from 'transcribe'"),
    ],
)
def test_wrong_arguments(arguments: list[str], message: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.startswith("asr: error: ") and err.count("\n") == 1 and message in err


def test_version(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capfd.readouterr().out == f"asr {asr.__version__}\n"
    assert asr.__version__ == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


# --- the other subcommands ------------------------------------------------------------------------------------------


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("The cat sat on the mat.\nThe dog ran to the cat.\nA cat ran.\n" * 5)
    Path("b.tsv").write_text("audio\ttext\n" + "x.wav\tthe dog sat\n" * 3)
    Path("c+d.txt").write_text("the mat\nan owl\n")


@pytest.mark.usefixtures("texts")
def test_lm_build_and_perplexity(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["lm", "build", "a.txt", "a.txt+b.tsv", "-o", "lm.bin", "--dev", "c+d.txt", "--weights", "1,3"]) == 0
    out, err = capfd.readouterr()
    lines = out.splitlines()
    assert lines[0].startswith(f"lm.bin: {Path('lm.bin').stat().st_size:,} bytes, 9 words, n-grams 12 + ")
    assert lines[1:3] == ["weight 0.250  a.txt", "weight 0.750  a.txt+b.tsv"]
    assert lines[3].startswith("perplexity ") and lines[3].endswith(", 50.00% of words unknown  c+d.txt")
    assert "reading a.txt" in err
    assert main(["lm", "perplexity", "lm.bin", "c+d.txt"]) == 0
    assert capfd.readouterr().out.splitlines() == lines[3:]
    assert main(["lm", "build", "a.txt", "-o", "small.arpa", "--order", "2", "--prune-ngrams", "3", "--quiet"]) == 0
    out, err = capfd.readouterr()
    assert err == "" and "before pruning: n-grams" in out
    assert "ngram 2=" in Path("small.arpa").read_text() and "ngram 3=" not in Path("small.arpa").read_text()


@pytest.mark.usefixtures("texts")
@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["build", "gone.txt", "-o", "x", "--quiet"], 8, "cannot read the text gone.txt: No such file or directory"),
        (["build", "a.txt", "-o", "x", "--weights", "1,-1"], 2, "must be numbers of at least 0"),
        (["build", "a.txt", "-o", "x", "--min-count", "1,0"], 2, "must be a whole number of at least 1, not '0'"),
        (["build", "a.txt"], 2, "the following arguments are required: -o/--out"),
        (["perplexity", "gone.bin", "a.txt"], 8, "gone.bin"),
        ([], 2, "the following arguments are required: COMMAND ('asr lm --help' shows how)"),
    ],
)
def test_lm_errors(arguments: list[str], status: int, message: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["lm", *arguments]) == status
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("asr: error: ") and message in err


def test_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("ASR_MODELS", str(tmp_path))
    config = {"model": {"heads": {"phones": 41}}, "features": {}, "head": "phones", "language": "de", "version": "7"}
    for name in ("good", "small"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    (tmp_path / "good" / "words.lm").write_bytes(bytes(2_500_000))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    (tmp_path / "no model").mkdir()
    assert main(["models"]) == 5
    out, err = capfd.readouterr()
    assert [line.split()[:5] for line in out.splitlines()[1:]] == [
        ["good", "de", "7", "2.5", "MB"], ["small", "de", "7", "0.0", "MB"]
    ]  # fmt: skip
    assert all(line.endswith(" ms") for line in out.splitlines()[1:])
    assert err.startswith(f"asr: error: {tmp_path / 'broken' / 'config.json'} is corrupt: ") and err.count("\n") == 1


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Calls of the functions behind ``asr train`` and ``asr eval``."""
    calls: list[dict[str, Any]] = []
    for name in ("run", "evaluate"):
        module = types.ModuleType(f"asr.training.{name}")
        module.main = lambda **options: calls.append(options)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return calls


def test_train(called: list[dict[str, Any]]) -> None:
    assert main(["train", "--config", "c.toml", "--data", "a.tsv", "b.tsv", "--dev", "d.tsv", "--data", "e.tsv"]) == 0
    needed = ["--config", "c", "--data", "a", "--dev", "d"]
    assert main(["train", *needed, "--out", "o", "--resume", "--init", "en", "--device", "cuda"]) == 0
    more = ["--set", "batch_seconds=60", "noise=n.tsv", "--data-dir", "d", "--lm", "words.arpa"]
    assert main(["train", "--recipe", "librispeech-100", *more]) == 0
    plain, full, recipe = called
    nothing = {"recipe": None, "changes": [], "data_dir": None, "language_model": None}
    assert plain == {
        "config": Path("c.toml"), "data": ["a.tsv", "b.tsv", "e.tsv"], "dev": ["d.tsv"], "out": Path("run"),
        "resume": False, "init": None, "device": "cpu", **nothing,
    }  # fmt: skip
    assert full == {
        "config": Path("c"), "data": ["a"], "dev": ["d"], "out": Path("o"),
        "resume": True, "init": "en", "device": "cuda", **nothing,
    }  # fmt: skip
    assert recipe == {
        "config": None, "recipe": "librispeech-100", "data": [], "dev": [], "out": Path("run"), "resume": False,
        "init": None, "device": "cpu", "changes": ["batch_seconds=60", "noise=n.tsv"], "data_dir": Path("d"),
        "language_model": Path("words.arpa"),
    }  # fmt: skip


def test_eval_is_streaming_and_offline_unless_one_is_named(called: list[dict[str, Any]]) -> None:
    for flags in ([], ["--streaming"], ["--offline"], ["--streaming", "--offline"]):
        assert main(["eval", "--data", "a.tsv", "b.tsv", "--limit", "5", *flags]) == 0
    assert [(call["streaming"], call["offline"]) for call in called] == [
        (True, True), (True, False), (False, True), (True, True)
    ]  # fmt: skip
    assert called[0]["model"] == "en" and called[0]["data"] == ["a.tsv", "b.tsv"] and called[0]["limit"] == 5


def test_errors_of_the_system_are_one_line(
    called: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def full(**_: Any) -> None:
        raise OSError(28, "No space left on device", "run/checkpoint.pt")

    monkeypatch.setattr(sys.modules["asr.training.run"], "main", full)
    assert main(["train", "--config", "c", "--data", "a", "--dev", "d"]) == 1
    assert capfd.readouterr().err == "asr: error: run/checkpoint.pt: No space left on device\n"


# --- as a process ---------------------------------------------------------------------------------------------------


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    run("--help")  # compiled files are written now
    times = []
    for _ in range(3):
        start = time.monotonic()
        result = run("--help")
        times.append(time.monotonic() - start)
    assert result.returncode == 0 and "transcribe" in result.stdout
    assert min(times) < 0.5, "0.1 s on an idle machine"


HEAVY = "{'torch', 'numpy', 'av', 'soxr', 'rich', 'flashlight', 'multiprocessing.context'}"


def test_importing_the_package_is_cheap() -> None:
    result = run(code=f"import sys, asr; asr.Transcript, dir(asr); print(sorted({HEAVY} & set(sys.modules)))")
    assert result.stdout == "[]\n" and result.stderr == ""
    assert {"Recognizer", "Stream"} <= set(dir(asr))
    with pytest.raises(AttributeError, match="module 'asr' has no attribute 'Recogniser'"):
        asr.Recogniser  # type: ignore[attr-defined]  # noqa: B018


def test_a_missing_file_fails_at_once(tmp_path: Path) -> None:
    code = "import sys; from asr.cli import main; s = main(sys.argv[1:]); print(s, 'torch' in sys.modules)"
    start = time.monotonic()
    result = run("transcribe", "nothere.wav", cwd=tmp_path, code=code)
    assert time.monotonic() - start < 1.0
    assert result.stdout == "3 False\n"
    assert result.stderr == "asr: error: nothere.wav: no such file: check the name\n"
    assert run("transcribe", "nothere.wav", cwd=tmp_path).returncode == 3


@pytest.mark.parametrize("command", ["transcribe", "models", "train", "eval", "lm", "lm build", "lm perplexity"])
def test_every_subcommand_has_help(command: str) -> None:
    result = run(*command.split(), "--help")
    assert result.returncode == 0 and result.stderr == ""
    assert f"asr {command}" in result.stdout and "--debug" in result.stdout


BROKEN_PIPE = """
import os, sys, types
from asr.cli import main
from test_cli import FakeRecognizer
FakeRecognizer.loaded = []
sys.modules["asr.recognizer"] = module = types.ModuleType("asr.recognizer")
module.Recognizer = FakeRecognizer
read, write = os.pipe()
os.close(read)
os.dup2(write, 1)
sys.exit(main(["transcribe", "a.wav"]))
"""


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_text("hello")
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r})\n{BROKEN_PIPE}"
    result = run(cwd=tmp_path, code=code)
    assert (result.returncode, result.stderr) == (141, "")
