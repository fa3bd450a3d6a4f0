"""The command line as a person meets it: statuses, one-line errors, speed of what needs no network."""

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


@pytest.mark.parametrize("command", ["transcribe"])
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
