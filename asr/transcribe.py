"""The batch file command: many media files to transcripts, on standard output or in a folder.

Files are found and checked and their outputs named before torch or a media library is imported, so that a wrong call
fails at once. Files fail one by one: each is reported in a line and the rest go on.
"""

from __future__ import annotations

import math
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, TextIO

from asr.errors import ERRORS, AsrError, AudioError, UsageError
from asr.inputs import STDIN, Fail, Input, check_readable, find_inputs, output_stems, printable
from asr.results import Transcript
from asr.workers import BatchRecognizer, OnProgress, transcribe_in_processes
from asr.writers import FORMATS, render, to_json

if TYPE_CHECKING:
    from rich.progress import Progress

    from asr.readable import Formatter

JOINABLE = ("txt", "json", "ctm")  # formats in which the transcripts of several files can follow each other
ENGINES = ("local", "ray")
PROBED = 500  # up to so many files are opened beforehand to learn their length, for the progress bar

Load = Callable[..., BatchRecognizer]


@dataclass(frozen=True)
class Options:
    """What to transcribe and how. ``files`` holds files, folders, glob patterns and ``-`` for standard input.

    Without ``out_dir`` transcripts go to standard output. ``threads`` is per process; None leaves the choice to the
    recogniser, and is 1 with several ``jobs``. ``channel`` counts from 0; None mixes all channels. ``language_model``:
    a file in place of the model's own. ``session``: options of all streams, see :func:`asr.options.from_arguments`.
    ``readable``: case, punctuation and digits in the text that is written. ``engine``: local, or ray for the cluster at
    ``ray_address``; ``jobs`` are then its actors (1: as many as its free CPUs hold).
    Raises :class:`UsageError` for values that make no sense.
    """

    files: tuple[str, ...]
    out_dir: Path | None = None
    formats: tuple[str, ...] = ("txt",)
    model: str = "en"
    device: str = "cpu"
    threads: int | None = None
    jobs: int = 1
    channel: int | None = None
    force: bool = False
    quiet: bool = False
    language_model: Path | None = None
    session: Mapping[str, Any] = field(default_factory=dict)
    readable: bool = False
    engine: str = "local"
    ray_address: str = "auto"

    def __post_init__(self) -> None:
        if not self.files:
            raise UsageError("nothing to transcribe: give media files, folders, or - for standard input")
        for name in self.formats:
            if name not in FORMATS:
                raise UsageError(f"unknown format '{name}': choose from {', '.join(FORMATS)}")
        if self.engine not in ENGINES:
            raise UsageError(f"unknown engine '{self.engine}': choose from {', '.join(ENGINES)}")
        if self.out_dir is None and len(self.formats) != 1:
            raise UsageError("standard output takes one format: give one, or a folder for the files (-o)")
        if self.out_dir is not None and self.out_dir.exists() and not self.out_dir.is_dir():
            raise UsageError(f"{self.out_dir} is not a folder: give a folder for the outputs (-o)")


def load_recognizer(
    model: str, device: str, threads: int | None, language_model: Path | None = None
) -> BatchRecognizer:
    """:meth:`asr.recognizer.Recognizer.load`, imported when called: it takes torch with it."""
    from asr.recognizer import Recognizer

    more: dict[str, Any] = {"language_model": language_model} if language_model else {}
    return Recognizer.load(model, device=device, threads=threads, **more)


def load_formatter(model: str) -> Formatter:
    """What makes a model's text readable. Raises ModelError where the model has no such part."""
    from asr.checkpoint import find_model
    from asr.readable import Formatter

    return Formatter.load(find_model(model))


def transcribe(
    options: Options,
    load: Load = load_recognizer,
    stdin: IO[bytes] | None = None,
    stdout: TextIO | None = None,
    stderr: TextIO | None = None,
) -> int:
    """Transcribe the files of ``options``; returns the exit status.

    It is 0 when all went well, otherwise the one in :data:`asr.errors.ERRORS` that all failed files share, or 1.
    ``load`` makes a recogniser from model, device, threads and, where one is given, a language model; with several jobs
    it must be picklable. Raises
    :class:`AsrError` for what concerns all files, such as a missing model; what is finished by then stays.
    """
    screen = _Screen(stdout or sys.stdout, stderr or sys.stderr, options.quiet)
    failures: list[AsrError] = []

    def fail(name: str, error: AsrError) -> None:
        failures.append(error)
        screen.error(f"{name}: {error}")

    inputs = find_inputs(options.files, fail)
    several = len(inputs) + len(failures) > 1 or any(os.path.isdir(name) for name in options.files)
    if several and options.out_dir is None and options.formats[0] not in JOINABLE:
        raise UsageError(f"{options.formats[0]} of several files does not fit on standard output: give a folder (-o)")
    formatter = load_formatter(options.model) if options.readable and inputs else None
    items = _plan(options, inputs, fail, screen)
    with tempfile.TemporaryDirectory(prefix="asr-") as folder:
        items = _spool(items, Path(folder), stdin, fail)
        if items:
            _make_folder(options.out_dir)
            _transcribe(options, items, load, _Sink(options, items, several, fail, screen, formatter), screen)
    statuses = {ERRORS[error.code].exit_status for error in failures}
    return statuses.pop() if len(statuses) == 1 else int(bool(statuses))


@dataclass(frozen=True)
class _Item:
    """A file to decode, and the files to write by format (none for standard output)."""

    source: Input
    outputs: dict[str, Path]


def _plan(options: Options, inputs: Sequence[Input], fail: Fail, screen: _Screen) -> list[_Item]:
    """What will be decoded. Everything that can be known to fail beforehand is reported."""
    items = []
    for source, stem in zip(inputs, output_stems(inputs), strict=True):
        folder = options.out_dir
        outputs = {} if folder is None else {f: folder / stem.with_name(f"{stem.name}.{f}") for f in options.formats}
        try:
            if not source.is_stdin:
                check_readable(source.path)
            if not options.force:
                _refuse_existing(outputs)
        except AsrError as error:
            fail(source.name, error)
            continue
        if folder is not None and stem != source.relative.with_name(source.relative.stem):
            screen.note(f"{source.name}: another file has the same name; writing {folder / stem}")
        items.append(_Item(source, outputs))
    return items


def _refuse_existing(outputs: dict[str, Path]) -> None:
    existing = [printable(str(path)) for path in outputs.values() if os.path.lexists(path)]
    if existing:
        raise UsageError(f"{' and '.join(existing)} {'exist' if existing[1:] else 'exists'}: overwrite with --force")


def _spool(items: list[_Item], folder: Path, stdin: IO[bytes] | None, fail: Fail) -> list[_Item]:
    """Copy standard input to a file in ``folder``: many formats cannot be read from a pipe, and workers have none."""
    result = []
    for item in items:
        if item.source.is_stdin:
            path = folder / "stdin"
            try:
                _copy(stdin or sys.stdin.buffer, path)
            except AsrError as error:
                fail(STDIN, error)
                continue
            item = replace(item, source=replace(item.source, path=path))
        result.append(item)
    return result


def _copy(stdin: IO[bytes], path: Path) -> None:
    if stdin.isatty():
        raise UsageError("standard input is a terminal: pipe audio into it")
    try:
        with path.open("wb") as file:
            shutil.copyfileobj(stdin, file)
    except OSError as error:
        raise AsrError(f"cannot copy standard input to a temporary file: {error.strerror or error}") from error
    check_readable(path)


def _make_folder(folder: Path | None) -> None:
    if folder is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot make the folder {folder}: {error.strerror or error}") from error
    if not os.access(folder, os.W_OK):
        raise UsageError(f"the folder {folder} may not be written to: check its permissions")


def _transcribe(
    options: Options,
    items: list[_Item],
    load: Load,
    sink: _Sink,
    screen: _Screen,
) -> None:
    sources = [item.source.path for item in items]
    more = {"language_model": options.language_model} if options.language_model else {}
    with screen.progress(sources) as on_progress, sink:

        def on_done(index: int, result: Transcript | AsrError) -> None:
            sink.done(index, result)
            on_progress(index, math.inf)

        if options.engine == "ray":
            from asr.ray_workers import transcribe_on_ray

            threads, actors = options.threads or 1, options.jobs if options.jobs > 1 else None
            loader = partial(load, options.model, options.device, threads, **more)
            session, cluster = options.session, options.ray_address
            transcribe_on_ray(loader, sources, on_done, on_progress, options.channel, session, cluster, actors, threads)
        elif min(options.jobs, len(sources)) > 1:
            loader = partial(load, options.model, options.device, options.threads or 1, **more)
            session = options.session
            transcribe_in_processes(loader, sources, options.jobs, on_done, on_progress, options.channel, session)
        else:
            recognizer = load(options.model, options.device, options.threads, **more)
            recognizer.transcribe_many(
                sources, on_done=on_done, on_progress=on_progress, channel=options.channel, **options.session
            )


class _Sink:
    """Takes results in any order. Files are written as soon as they are known, text is printed in the order given.

    As a context manager it prints, however the block ends, also what still waits for files before it.
    """

    def __init__(
        self,
        options: Options,
        items: list[_Item],
        several: bool,
        fail: Fail,
        screen: _Screen,
        formatter: Formatter | None = None,
    ) -> None:
        self._format, self._formatter = options.formats[0], formatter
        self._items, self._several, self._fail, self._screen = items, several, fail, screen
        self._texts: dict[int, str] = {}
        self._next = 0

    def __enter__(self) -> _Sink:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if not isinstance(error, BrokenPipeError):
            for index in sorted(self._texts):
                self._screen.text(self._texts.pop(index))

    def done(self, index: int, result: Transcript | AsrError) -> None:
        """Write or print the result of one item, or report why there is none; a damaged file has both."""
        item = self._items[index]
        text = ""
        if isinstance(result, AsrError):
            self._report(item, result)
        else:
            if "warning" in result.metadata:
                self._report(item, AudioError(f"{result.metadata['warning']} (what could be read is transcribed)"))
            result = replace(result, source=item.source.name)
            if item.outputs:
                try:
                    write_files({path: self._written(result, format) for format, path in item.outputs.items()})
                except OSError as error:
                    where = printable(" and ".join(map(str, item.outputs.values())))
                    self._fail(item.source.name, AsrError(f"cannot write {where}: {error.strerror or error}"))
            else:
                text = self._render(result)
        self._texts[index] = text
        while self._next in self._texts:
            self._screen.text(self._texts.pop(self._next))
            self._next += 1

    def _report(self, item: _Item, error: AsrError) -> None:
        """Report under the name that was given, which for standard input is not that of the file that was read."""
        self._fail(item.source.name, type(error)(str(error).removeprefix(f"{item.source.path}: ")))

    def _render(self, transcript: Transcript) -> str:
        if self._several and self._format == "txt":
            shown = self._formatter.transcript(transcript) if self._formatter else transcript
            return f"{shown.source}: {shown.text}".rstrip() + "\n"
        return self._written(transcript, self._format, None if self._several else 2)

    def _written(self, transcript: Transcript, format: str, indent: int | None = 2) -> str:
        if self._formatter:
            from asr.readable.writing import render_readable  # takes numpy with it

            return render_readable(transcript, self._formatter.transcript(transcript), format, indent)
        return to_json(transcript, indent) if format == "json" else render(transcript, format)


def write_files(texts: dict[Path, str]) -> None:
    """Write each text to its path, making folders as needed. No file is ever half-written, also when interrupted:
    all are written under temporary names beside their places first, then renamed. Raises :class:`OSError`."""
    temporary: dict[Path, Path] = {}
    try:
        for number, (path, text) in enumerate(texts.items()):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary[path] = path.with_name(f".asr-{os.getpid()}-{number}.tmp")
            temporary[path].write_text(text, encoding="utf-8", newline="\n")
        for path in texts:
            os.replace(temporary[path], path)
            del temporary[path]
    finally:
        for leftover in temporary.values():
            leftover.unlink(missing_ok=True)


class _Screen:
    """Standard output and error; with a progress bar on standard error while one is shown."""

    def __init__(self, stdout: TextIO, stderr: TextIO, quiet: bool) -> None:
        self._stdout, self._stderr, self._quiet = stdout, stderr, quiet
        self._bar: Progress | None = None

    def text(self, text: str) -> None:
        """Print a part of the result."""
        if not text:
            return
        if self._bar is not None and self._stdout.isatty():  # above the bar, on the same terminal
            self._bar.console.print(text, end="", markup=False, highlight=False, emoji=False, soft_wrap=True)
        else:
            self._stdout.write(text)
            self._stdout.flush()

    def error(self, message: str) -> None:
        """Print a line about something that went wrong."""
        self._line(f"asr: error: {message}")

    def note(self, message: str) -> None:
        """Print a line that is good to know; nothing if quiet."""
        if not self._quiet:
            self._line(f"asr: note: {message}")

    def _line(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)
        else:
            print(text, file=self._stderr, flush=True)

    @contextmanager
    def progress(self, sources: Sequence[Path]) -> Iterator[OnProgress]:
        """Show a bar if standard error is a terminal; yields what is told the seconds done (infinity: all) by index."""
        if self._quiet or not self._stderr.isatty():
            yield lambda index, seconds: None
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        weights = _durations(sources)
        shares = [0.0] * len(sources)
        done: set[int] = set()
        columns = (TextColumn("{task.description}"), BarColumn(None), TaskProgressColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(file=self._stderr), transient=True, expand=True) as bar:
            task = bar.add_task("loading the model", total=sum(weights))

            def on_progress(index: int, seconds: float) -> None:
                if seconds == math.inf:
                    done.add(index)
                share = min(seconds, weights[index])
                bar.update(task, advance=share - shares[index], description=f"{len(done)}/{len(weights)} files")
                shares[index] = share

            self._bar = bar
            try:
                yield on_progress
            finally:
                self._bar = None


def _durations(sources: Sequence[Path]) -> list[float]:
    """Seconds of each file; where they are not known, the mean of the others."""
    from asr.audio import probe

    known: list[float | None] = []
    for number, source in enumerate(sources):
        try:  # a pipe must not be opened: what is read of it is gone
            known.append(probe(source).duration_s if number < PROBED and source.is_file() else None)
        except AudioError:
            known.append(None)
    total = [seconds for seconds in known if seconds]
    mean = sum(total) / len(total) if total else 1.0
    return [seconds or mean for seconds in known]
