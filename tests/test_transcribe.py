"""asr.transcribe, asr.inputs and asr.workers with a recogniser that reads its text from the file itself.

The first line of a "media file" is its transcript, ``error: ...`` fails, ``damaged: ...`` has lost its end,
``interrupt`` is a Ctrl-C while decoding.
"""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from asr import inputs
from asr.errors import AsrError, AudioError, ModelError, UsageError
from asr.inputs import find_inputs, output_stems
from asr.results import Segment, Transcript, Word
from asr.transcribe import Options, transcribe, write_files
from asr.workers import balance


class FakeRecognizer:
    """Decodes in an order that is not that of the files: those that fail or are short come first."""

    def __init__(self, log: list[Any]) -> None:
        self.log = log

    def transcribe_many(
        self,
        sources: Sequence[Path],
        *,
        on_done: Callable[[int, Transcript | AsrError], None] | None = None,
        on_progress: Callable[[int, float], None] | None = None,
        channel: int | None = None,
    ) -> list[Transcript | AsrError]:
        self.log.append((list(sources), channel))
        results: dict[int, Transcript | AsrError] = {}
        for index in sorted(range(len(sources)), key=lambda i: (sources[i].stat().st_size, i)):
            assert on_done and on_progress
            on_progress(index, 0.5)
            results[index] = self._one(sources[index])
            on_done(index, results[index])
        return [results[index] for index in range(len(sources))]

    @staticmethod
    def _one(path: Path) -> Transcript | AsrError:
        text = path.read_text().strip()
        if text == "interrupt":
            raise KeyboardInterrupt
        if text == "sleep":
            time.sleep(60)
        if text == "die":
            os._exit(7)
        if text == "bug":
            raise ValueError("no such unit")
        if text.startswith("error: "):
            return AudioError(f"{path}: {text[7:]}")
        metadata = {}
        if text.startswith("damaged: "):
            text, metadata = text[9:], {"warning": f"{path}: ends early: get a whole copy of the file"}
        lines = text.split("\n")
        segments = tuple(Segment(line, i, i + 1.0, (Word(line, i, i + 0.5),), i) for i, line in enumerate(lines))
        return Transcript(segments, float(len(segments)), "fake", "some source", metadata)


def load_in_worker(model: str, device: str, threads: int | None) -> FakeRecognizer:
    if model == "missing":
        raise ModelError("no model 'missing': there is en")
    return FakeRecognizer([])


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Keyboard(io.BytesIO):
    def isatty(self) -> bool:
        return True


class Run:
    """One call of transcribe: its status, what it printed, and what the recogniser was asked."""

    def __init__(
        self, *files: str | Path, stdin: bytes | Keyboard = b"", terminal: bool = False, **options: Any
    ) -> None:
        self.log: list[Any] = []
        self.status = -1
        stdout, stderr = io.StringIO(), Terminal() if terminal else io.StringIO()

        def load(model: str, device: str, threads: int | None) -> FakeRecognizer:
            self.log.append((model, device, threads))
            return FakeRecognizer(self.log)

        loader = load_in_worker if options.get("jobs", 1) > 1 else load
        piped = io.BytesIO(stdin) if isinstance(stdin, bytes) else stdin
        try:
            self.status = transcribe(Options(tuple(map(str, files)), **options), loader, piped, stdout, stderr)
        except KeyboardInterrupt:
            self.status = 130
        finally:
            self.out, self.err = stdout.getvalue(), stderr.getvalue()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def media(**texts: str) -> list[str]:
    """Files a.wav, b.wav ... with these transcripts; ``x__a`` stands for x/a.wav."""
    names = []
    for name, text in texts.items():
        path = Path(name.replace("__", "/") + ".wav")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        names.append(str(path))
    return names


def tree(root: str) -> dict[str, str]:
    return {str(p.relative_to(root)): p.read_text() for p in sorted(Path(root).rglob("*")) if p.is_file()}


# --- printing -------------------------------------------------------------------------------------------------------


def test_one_file_is_printed_as_its_text() -> None:
    run = Run(*media(a="hello\nworld"))
    assert (run.status, run.out, run.err) == (0, "hello\nworld\n", "")
    assert run.log == [("en", "cpu", None), ([Path("a.wav")], None)]


def test_several_files_are_printed_with_names_in_the_order_given() -> None:
    files = media(a="a long text\nin two segments", b="", c="short")
    run = Run(*files, model="de", device="cuda", threads=3, channel=1)
    assert run.status == 3
    assert run.out == "a.wav: a long text in two segments\nc.wav: short\n"
    assert run.err == "asr: error: b.wav: is empty (0 bytes): get a whole copy of the file\n"
    assert run.log == [("de", "cuda", 3), ([Path("a.wav"), Path("c.wav")], 1)]


def test_a_folder_of_one_file_is_printed_with_its_name() -> None:
    media(x__a="hello")
    assert Run("x").out == f"{Path('x/a.wav')}: hello\n"


def test_json_of_several_files_is_one_object_per_line() -> None:
    one, several = Run(*media(a="hello"), formats=("json",)), Run(*media(a="hello", b="x"), formats=("json",))
    assert one.out.count("\n") > 10 and json.loads(one.out)["source"] == "a.wav"
    assert [json.loads(line)["text"] for line in several.out.splitlines()] == ["hello", "x"]


def test_formats_that_cannot_be_joined_need_a_folder() -> None:
    files = media(a="hello", b="x")
    assert Run(files[0], formats=("srt",)).out.startswith("1\n00:00:00,000 --> ")
    assert Run(*files, formats=("ctm",)).out == "a 1 0.000 0.500 hello\nb 1 0.000 0.500 x\n"
    with pytest.raises(UsageError, match=r"srt of several files does not fit on standard output: give a folder \(-o\)"):
        Run(*files, formats=("srt",))


def test_standard_input() -> None:
    run = Run("-", *media(a="file"), stdin=b"piped")
    assert (run.status, run.out) == (0, "-: piped\na.wav: file\n")
    assert not run.log[-1][0][0].exists()  # the copy is gone
    assert Run("-", stdin=b"piped").out == "piped\n"
    assert Run("-", out_dir=Path("out"), stdin=b"piped").status == 0
    assert tree("out") == {"stdin.txt": "piped\n"}


def test_standard_input_that_is_empty_or_a_terminal() -> None:
    run = Run("-", *media(a="file"))
    assert (run.status, run.out) == (3, "a.wav: file\n")
    assert run.err == "asr: error: -: is empty (0 bytes): get a whole copy of the file\n"
    run = Run("-", stdin=Keyboard())
    assert run.status == 2 and run.log == []
    assert run.err == "asr: error: -: standard input is a terminal: pipe audio into it\n"


# --- failures -------------------------------------------------------------------------------------------------------


def test_a_file_that_fails_does_not_stop_the_others() -> None:
    run = Run(*media(a="error: has no sound stream", b="fine"))
    assert (run.status, run.out, run.err) == (3, "b.wav: fine\n", "asr: error: a.wav: has no sound stream\n")


def test_the_text_of_a_damaged_file_is_given_and_the_damage_reported() -> None:
    files = media(a="damaged: what is left", b="fine")
    for jobs in (1, 2):
        run = Run(*files, jobs=jobs)
        assert (run.status, run.out) == (3, "a.wav: what is left\nb.wav: fine\n")
        why = "ends early: get a whole copy of the file (what could be read is transcribed)"
        assert run.err == f"asr: error: a.wav: {why}\n"
    assert Run(*files, out_dir=Path("out")).status == 3
    assert tree("out") == {"a.txt": "what is left\n", "b.txt": "fine\n"}


def test_nothing_is_loaded_when_no_file_can_be_read(folder: Path) -> None:
    (folder / "empty").mkdir()
    (folder / "link.wav").symlink_to("gone.wav")
    run = Run("nothere.wav", "empty", "*.flac", "link.wav")
    assert (run.status, run.out, run.log) == (3, "", [])
    assert run.err.splitlines() == [
        "asr: error: nothere.wav: no such file: check the name",
        "asr: error: empty: has no media files in it: give another folder, or the files themselves",
        "asr: error: *.flac: no file matches: check the pattern",
        "asr: error: link.wav: is a link to a file that does not exist",
    ]


def test_a_file_without_permission(monkeypatch: pytest.MonkeyPatch) -> None:
    (name,) = media(a="x")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may read everything
    run = Run(name)
    assert (run.status, run.err) == (3, "asr: error: a.wav: may not be read: check its permissions\n")


def test_different_failures_give_status_one() -> None:
    files = media(a="hello", b="error: broken")
    Path("out").mkdir()
    Path("out/a.txt").write_text("old")
    run = Run(*files, out_dir=Path("out"))
    assert run.status == 1
    assert run.err.splitlines() == [
        f"asr: error: a.wav: {Path('out/a.txt')} exists: overwrite with --force",
        "asr: error: b.wav: broken",
    ]


def test_wrong_options() -> None:
    with pytest.raises(UsageError, match="nothing to transcribe"):
        Options(())
    with pytest.raises(UsageError, match="unknown format 'doc'"):
        Options(("a",), formats=("doc",))
    with pytest.raises(UsageError, match="standard output takes one format"):
        Options(("a",), formats=("txt", "json"))
    media(file="x")
    with pytest.raises(UsageError, match=r"file\.wav is not a folder"):
        Options(("a",), out_dir=Path("file.wav"))
    with pytest.raises(UsageError, match="cannot make the folder"):
        Run("file.wav", out_dir=Path("file.wav/out"))


# --- files ----------------------------------------------------------------------------------------------------------


def test_outputs_in_all_formats() -> None:
    run = Run(*media(a="hello", x__b="there"), out_dir=Path("new/out"), formats=("txt", "srt", "json"))
    assert (run.status, run.out, run.err) == (0, "", "")
    files = tree("new/out")
    assert sorted(files) == ["a.json", "a.srt", "a.txt", "b.json", "b.srt", "b.txt"]
    assert files["b.txt"] == "there\n"
    assert json.loads(files["b.json"])["source"] == str(Path("x/b.wav"))


def test_folders_are_kept_below_the_output_folder() -> None:
    media(talks__one="1", talks__sub__one="2", talks__sub__two="3", talks__hidden="4")
    Path("talks/.cache").mkdir()
    Path("talks/.cache/no.wav").write_text("no")
    Path("talks/notes.txt").write_text("no")
    os.rename("talks/hidden.wav", "talks/.hidden.wav")
    assert Run("talks", out_dir=Path("out")).status == 0
    assert tree("out") == {"one.txt": "1\n", "sub/one.txt": "2\n", "sub/two.txt": "3\n"}


def test_same_names_do_not_collide() -> None:
    files = media(x__a="xa", y__a="ya", y__b="yb", z__c="wav")
    os.link("z/c.wav", "z/c.mp3")
    run = Run(*files, "z/c.mp3", out_dir=Path("out"))
    assert run.status == 0
    assert sorted(tree("out")) == ["b.txt", "c.mp3.txt", "c.wav.txt", "x/a.txt", "y/a.txt"]
    assert (tree("out")["x/a.txt"], tree("out")["y/a.txt"]) == ("xa\n", "ya\n")
    assert run.err.splitlines()[0] == f"asr: note: x/a.wav: another file has the same name; writing {Path('out/x/a')}"
    assert len(run.err.splitlines()) == 4
    assert Run(*files, out_dir=Path("quiet"), quiet=True).err == ""


def test_existing_outputs_are_kept_without_force() -> None:
    files = media(a="new", b="new")
    Path("out").mkdir()
    Path("out/a.json").write_text("old")
    run = Run(*files, out_dir=Path("out"), formats=("txt", "json"))
    assert run.status == 2
    assert run.err == f"asr: error: a.wav: {Path('out/a.json')} exists: overwrite with --force\n"
    assert run.log[-1] == ([Path("b.wav")], None)  # it was not even decoded
    assert tree("out").keys() == {"a.json", "b.json", "b.txt"} and tree("out")["a.json"] == "old"
    again = Run(*files, out_dir=Path("out"), formats=("txt", "json"))
    assert again.status == 2 and again.log == []
    assert Run(*files, out_dir=Path("out"), formats=("txt",), force=True).status == 0
    assert tree("out")["a.txt"] == "new\n"


def test_an_output_that_cannot_be_written_fails_alone() -> None:
    files = media(a="one", b="two")
    Path("out/a.txt").mkdir(parents=True)
    run = Run(*files, out_dir=Path("out"), force=True)
    assert run.status == 1
    assert run.err.startswith(f"asr: error: a.wav: cannot write {Path('out/a.txt')}: ")
    assert tree("out") == {"b.txt": "two\n"}  # and nothing temporary is left


def test_files_are_whole_or_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.write_text

    def interrupted(self: Path, data: str, *args: Any, **kwargs: Any) -> int:
        if data == "second":
            real(self, "sec")
            raise KeyboardInterrupt
        return real(self, data, *args, **kwargs)

    monkeypatch.setattr(Path, "write_text", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_files({Path("a.txt"): "first", Path("a.srt"): "second"})
    assert tree(".") == {}


def test_interrupt_leaves_what_is_finished() -> None:
    files = media(a="a long text that comes last", b="interrupt", c="short")
    run = Run(*files, out_dir=Path("out"))
    assert (run.status, tree("out")) == (130, {"c.txt": "short\n"})
    assert Run(*files).out == "c.wav: short\n"


def test_odd_names(folder: Path) -> None:
    names = [b"caf\xe9.wav", "naïve [1]*.wav".encode(), b"-x.wav", b"two\nlines.wav"]
    for name in names:
        (folder / os.fsdecode(name)).write_text("x")
    run = Run(".", "naïve [1]*.wav", formats=("json",))
    assert run.status == 0
    sources = {json.loads(line)["source"] for line in run.out.splitlines()}
    assert sources == {"caf\ufffd.wav", "naïve [1]*.wav", "-x.wav", "two\nlines.wav"}


# --- progress -------------------------------------------------------------------------------------------------------


def test_bar_on_a_terminal_only() -> None:
    files = media(a="one", b="error: broken")
    shown = Run(*files, terminal=True)
    assert "2/2 files" in shown.err and "asr: error: b.wav: broken" in shown.err
    assert shown.out == "a.wav: one\n"
    quiet = Run(*files, terminal=True, quiet=True)
    assert quiet.err == "asr: error: b.wav: broken\n"


# --- finding files --------------------------------------------------------------------------------------------------


def find(*arguments: str) -> list[str]:
    found = find_inputs(arguments, lambda name, error: pytest.fail(f"{name}: {error}"))
    return [item.name for item in found]


def test_globs_folders_and_duplicates() -> None:
    media(b="", a="", x__c="", x__y__d="")
    Path("x/e.MP3").write_text("")
    assert find("*.wav") == ["a.wav", "b.wav"]
    assert find("b.wav", "*.wav", "./a.wav", "-", "-") == ["b.wav", "a.wav", "-"]
    assert find("x") == ["x/c.wav", "x/e.MP3", "x/y/d.wav"]
    assert find("x/*") == ["x/c.wav", "x/e.MP3", "x/y/d.wav"]
    assert find("**/*.wav") == ["a.wav", "b.wav", "x/c.wav", "x/y/d.wav"]
    assert find("x/**") == ["x/c.wav", "x/e.MP3", "x/y/d.wav"]
    assert find("[ab].wav") == ["a.wav", "b.wav"]


def test_output_stems_are_always_different(monkeypatch: pytest.MonkeyPatch) -> None:
    media(x__a="", y__a="", y__x__a="", s__stdin="")
    Path("x/a.mp3").write_text("")

    def stems(*arguments: str) -> list[str]:
        return [str(s) for s in output_stems(find_inputs(arguments, lambda *failed: None))]

    assert stems("x/a.wav") == ["a"]
    assert stems("x/a.wav", "x/a.mp3") == ["a.wav", "a.mp3"]
    assert stems("x/a.wav", "x/a.mp3", "y/a.wav") == ["x/a", "a.mp3", "y/a"]
    assert stems("x/a.wav", "y/x/a.wav") == [str(Path(*Path("x").resolve().parts[-2:], "a")), "y/x/a"]
    assert len(set(stems("x", "y"))) == 4
    assert stems("-", "s/stdin.wav") == ["stdin", "stdin.wav"]
    media(x__B="", y__b="")
    monkeypatch.setattr(inputs, "FOLD_CASE", True)
    assert stems("x/B.wav", "y/b.wav") == ["x/B", "y/b"]


# --- several processes ----------------------------------------------------------------------------------------------


def test_groups_are_balanced_and_complete() -> None:
    assert balance([5, 1, 1, 1, 1, 1], 2) == [[0], [1, 2, 3, 4, 5]]
    assert balance([1, 2], 5) == [[1], [0]]
    assert balance([0, 0, 0, 0], 2) == [[0, 2], [1, 3]]
    assert balance([], 3) == []


def test_jobs_give_the_same_result() -> None:
    files = media(a="a text\nof two", b="error: broken", c="c", d="dd")
    alone, shared = Run(*files), Run(*files, jobs=2)
    assert (shared.status, shared.out, shared.err) == (alone.status, alone.out, alone.err)
    assert Run(*files, jobs=2, out_dir=Path("out")).status == 3
    assert tree("out") == {"a.txt": "a text\nof two\n", "c.txt": "c\n", "d.txt": "dd\n"}


def test_a_worker_that_dies_is_reported_and_the_others_go_on() -> None:
    run = Run(*media(a="a long text of its own", b="die", c="x"), jobs=2)
    assert run.status == 1
    assert run.out.splitlines()[0] == "a.wav: a long text of its own"
    assert "asr: error: b.wav: its worker process ended unexpectedly (status 7): try fewer jobs" in run.err


def test_failures_of_all_workers_are_raised_here() -> None:
    files = media(a="one", b="two", c="bug")
    with pytest.raises(ModelError, match="no model 'missing'"):
        Run(*files, jobs=2, model="missing")
    with pytest.raises(RuntimeError, match="ValueError: no such unit"):
        Run(*files, jobs=3)
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


SCRIPT = """
import sys
from pathlib import Path
from test_transcribe import load_in_worker
from asr.transcribe import Options, transcribe
if __name__ == "__main__":
    try:
        transcribe(Options(("a.wav", "b.wav"), out_dir=Path("out"), jobs=int(sys.argv[1])), load_in_worker)
    except KeyboardInterrupt:
        sys.exit(130)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs process groups")
@pytest.mark.parametrize("jobs", [1, 2])
def test_ctrl_c_in_the_whole_process_group(jobs: int) -> None:
    media(a="x", b="sleep")
    Path("script.py").write_text(SCRIPT)
    here = Path(__file__).resolve().parent
    process = subprocess.Popen(
        [sys.executable, "script.py", str(jobs)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(here.parent), str(here)])},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell that starts tests in the background has them ignore SIGINT, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 20
    while not Path("out/a.txt").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=20)  # until the last process that holds standard error has ended
    assert (process.returncode, err) == (130, "")
    assert tree("out") == {"a.txt": "x\n"}
