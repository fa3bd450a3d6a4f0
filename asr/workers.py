"""Batch transcription in several processes, each with a recogniser of its own and a share of the files.

The processes are spawned, so that they share no locks or threads with this one. Only this one writes and prints; each
worker sends what happens through a pipe. When the pipe breaks, the other side is gone: a worker then ends, and the
files of a worker that died are reported as failed.
"""

from __future__ import annotations

import multiprocessing
import signal
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, Protocol

from asr.errors import AsrError
from asr.results import Transcript

OnDone = Callable[[int, Transcript | AsrError], None]
OnProgress = Callable[[int, float], None]


class BatchRecognizer(Protocol):
    """The part of :class:`asr.recognizer.Recognizer` that batch transcription uses."""

    def transcribe_many(
        self,
        sources: Sequence[Any],
        *,
        on_done: OnDone | None = None,
        on_progress: OnProgress | None = None,
        channel: int | None = None,
        hotwords: Any = None,
        endpointing: Any = None,
        lm: bool | None = None,
        alternatives: int | None = None,
    ) -> list[Transcript | AsrError]:
        """Transcribe ``sources``; tell each by its index when it is done, and how many seconds of it are. The
        other options are those of :meth:`asr.recognizer.Stream.configure`, and left out where they are not given."""


Load = Callable[[], BatchRecognizer]


@dataclass
class _Worker:
    process: SpawnProcess
    connection: Connection
    left: set[int] = field(default_factory=set)  # indices without a result yet


def transcribe_in_processes(
    load: Load,
    sources: Sequence[Path],
    jobs: int,
    on_done: OnDone,
    on_progress: OnProgress,
    channel: int | None = None,
    options: Mapping[str, Any] | None = None,
) -> None:
    """Transcribe ``sources`` in ``jobs`` processes, each of which calls ``load`` (picklable) once. ``options``: of all
    their streams, as :meth:`asr.recognizer.Stream.configure` takes them.

    ``on_done`` and ``on_progress`` are called in this process. Raises what ``load`` raises; and :class:`RuntimeError`
    with its traceback for anything that is not an :class:`AsrError`. No process is left behind, however this ends.
    """
    workers: dict[Connection, _Worker] = {}
    try:
        for group in balance([_size(source) for source in sources], jobs):
            worker = _start(load, [(index, sources[index]) for index in group], channel, dict(options or {}))
            workers[worker.connection] = worker
        open_ends = set(workers)
        while open_ends:
            for end in wait(list(open_ends)):
                assert isinstance(end, Connection)
                if not _receive(workers[end], on_done, on_progress):
                    open_ends.remove(end)
    finally:
        for worker in workers.values():
            worker.process.terminate()
        for worker in workers.values():
            worker.process.join()
            worker.connection.close()


def balance(sizes: Sequence[int], groups: int) -> list[list[int]]:
    """Indices in at most ``groups`` groups of about the same total size, none empty: largest first to the emptiest."""
    totals = [(0, number) for number in range(min(groups, len(sizes)))]
    result: list[list[int]] = [[] for _ in totals]
    for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        total, number = min(totals, key=lambda entry: (entry[0], len(result[entry[1]]), entry[1]))
        totals[number] = (total + sizes[index], number)
        result[number].append(index)
    return [sorted(group) for group in result]


def _size(source: Path) -> int:
    try:
        return source.stat().st_size
    except OSError:
        return 0


def _start(load: Load, group: list[tuple[int, Path]], channel: int | None, options: dict[str, Any]) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(theirs, load, group, channel, options), daemon=True)
    with _interrupts_blocked():
        process.start()
    theirs.close()
    return _Worker(process, ours, {index for index, _ in group})


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """A process started here never sees Ctrl-C, not even while it imports: this one alone decides what it means."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # the first start would start it, and that unblocks the signal half-way
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _receive(worker: _Worker, on_done: OnDone, on_progress: OnProgress) -> bool:
    """Handle one message of a worker; False when it was the last."""
    try:
        kind, *values = worker.connection.recv()
    except (EOFError, OSError):
        worker.process.join()
        message = f"its worker process ended unexpectedly (status {worker.process.exitcode}): try fewer jobs"
        for index in sorted(worker.left):
            on_done(index, AsrError(message))
        return False
    if kind == "progress":
        on_progress(*values)
    elif kind == "done":
        worker.left.discard(values[0])
        on_done(*values)
    elif kind == "error":
        raise values[0]
    return bool(kind != "end")


def _work(
    connection: Connection, load: Load, group: list[tuple[int, Path]], channel: int | None, options: dict[str, Any]
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    indices = [index for index, _ in group]
    try:
        try:
            load().transcribe_many(
                [path for _, path in group],
                on_done=lambda i, result: connection.send(("done", indices[i], result)),
                on_progress=lambda i, seconds: connection.send(("progress", indices[i], seconds)),
                channel=channel,
                **options,
            )
            connection.send(("end",))
        except BrokenPipeError:
            raise
        except AsrError as error:
            connection.send(("error", error))
        except Exception:
            connection.send(("error", RuntimeError(f"in a worker process:\n{traceback.format_exc()}")))
    except BrokenPipeError:
        pass  # the process that wanted the results is gone
