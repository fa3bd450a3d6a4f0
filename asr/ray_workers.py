"""Batch transcription on an existing Ray cluster (https://docs.ray.io): actors with a recogniser each share the files.

As in :mod:`asr.workers`, only this process writes and prints. Files are read where an actor runs, if the same path
leads to a file of the same size there (a shared file system); else their bytes are sent to it.
"""

from __future__ import annotations

import io
import os
import socket
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from asr.errors import AsrError, UsageError
from asr.results import Transcript
from asr.workers import Load, OnDone, OnProgress, balance

MOST_FILES = 16  # of a task: they share network steps
CONNECT_S = 5.0
TASKS_PER_ACTOR = 4  # at least, so that the last ones end at about the same time
_Group = list[tuple[int, str, int]]  # number, path and size of files


def transcribe_on_ray(
    load: Load,
    sources: Sequence[Path],
    on_done: OnDone,
    on_progress: OnProgress,
    channel: int | None = None,
    options: Mapping[str, Any] | None = None,
    address: str = "auto",
    actors: int | None = None,
    threads: int = 1,
) -> None:
    """Transcribe ``sources`` on the cluster at ``address``, in ``actors`` processes (None: as many as its free CPUs
    hold) of ``threads`` CPUs each; each calls ``load`` (picklable) once. ``options``: of all streams.

    Results are those of one machine. ``on_done`` and ``on_progress`` are called in this process. A file whose actor
    died twice gives an error as its result. Raises UsageError when Ray is not installed or no cluster answers, and what
    ``load`` raises.
    """
    ray = _connect(address)
    try:
        _run(ray, load, list(sources), on_done, on_progress, channel, dict(options or {}), actors, threads)
    finally:
        ray.shutdown()


def _connect(address: str) -> Any:
    try:
        import ray
    except ImportError:
        raise UsageError("transcribing on Ray needs the package: install asr[ray]") from None
    try:
        _check_reachable(address)
        ray.init(address=address, log_to_driver=False, configure_logging=False)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(
            f"no Ray cluster at '{address}' ({reason}): start one (ray start --head) or name it (--ray-address)"
        ) from None
    return ray


def _check_reachable(address: str) -> None:
    """Ray itself waits long for a cluster that is not there."""
    host, separator, port = address.rpartition(":")
    if separator and port.isdigit() and "://" not in address:
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()


def _run(
    ray: Any,
    load: Load,
    sources: list[Path],
    on_done: OnDone,
    on_progress: OnProgress,
    channel: int | None,
    options: dict[str, Any],
    actors: int | None,
    threads: int,
) -> None:
    sizes = [_size(source) for source in sources]
    count = actors or max(1, int(ray.available_resources().get("CPU", 1)) // threads)
    count = min(count, len(sources))
    tasks = balance(sizes, max(count * TASKS_PER_ACTOR, -(-len(sources) // MOST_FILES)))
    waiting: deque[_Group | int] = deque([(i, str(sources[i].resolve()), sizes[i]) for i in group] for group in tasks)
    kind = ray.remote(num_cpus=threads, max_restarts=1, max_task_retries=1)(_Actor)
    idle = [kind.remote(load, channel, options) for _ in range(count)]
    running: dict[Any, tuple[Any, list[int]]] = {}
    while waiting or running:
        while waiting and idle:
            actor, task = idle.pop(), waiting.popleft()
            if isinstance(task, int):
                data = _read(sources[task])
                if isinstance(data, AsrError):
                    on_done(task, data)
                    idle.append(actor)
                else:
                    running[actor.transcribe_bytes.remote(task, str(sources[task]), data)] = actor, [task]
            else:
                running[actor.transcribe.remote(task)] = actor, [number for number, _, _ in task]
        if not running:
            continue
        (done, *_), _ = ray.wait(list(running), num_returns=1)
        actor, numbers = running.pop(done)
        idle.append(actor)
        for number, result in _results(ray, done, numbers):
            if result is None:  # the actor does not see the file
                waiting.appendleft(number)
                continue
            if isinstance(result, Transcript):
                on_progress(number, result.duration)
            on_done(number, _as_asked(result, sources[number]))


def _as_asked(result: Transcript | AsrError, source: Path) -> Transcript | AsrError:
    """With the name that was given in the place of the whole path that an actor was told."""
    whole = str(source.resolve())
    if isinstance(result, AsrError):
        return type(result)(str(result).replace(whole, str(source)))
    metadata = {key: text.replace(whole, str(source)) for key, text in result.metadata.items()}
    return replace(result, source=str(source), metadata=metadata)


def _results(ray: Any, done: Any, numbers: Sequence[int]) -> list[tuple[int, Transcript | AsrError | None]]:
    try:
        found: list[tuple[int, Transcript | AsrError | None]] = ray.get(done)
        return found
    except ray.exceptions.RayActorError as error:
        message = f"its Ray actor died twice ({' '.join(str(error).split())[:120]}): see the cluster's logs"
        return [(number, AsrError(message)) for number in numbers]
    except ray.exceptions.RayTaskError as error:
        cause = getattr(error, "cause", None)
        raise cause if isinstance(cause, AsrError) else error from None


def _read(path: Path) -> bytes | AsrError:
    try:
        return path.read_bytes()
    except OSError as error:
        return AsrError(f"cannot be read: {error.strerror or error}")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


class _Actor:
    """Lives in a process of the cluster."""

    def __init__(self, load: Load, channel: int | None, options: dict[str, Any]) -> None:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        self._load = load
        self._channel = channel
        self._options = options
        self._recognizer: Any = None

    def ready(self) -> None:
        """Load the model; raises what that raises."""
        if self._recognizer is None:
            self._recognizer = self._load()

    def transcribe(self, group: _Group) -> list[tuple[int, Transcript | AsrError | None]]:
        """Results of files; None for those that are not here."""
        here = [entry for entry in group if _is_here(entry)]
        found: dict[int, Transcript | AsrError | None] = {number: None for number, _, _ in group}
        self._each([Path(path) for _, path, _ in here], [number for number, _, _ in here], found.__setitem__)
        return list(found.items())

    def transcribe_bytes(self, number: int, name: str, data: bytes) -> list[tuple[int, Transcript | AsrError | None]]:
        """The result of a file whose bytes were sent."""
        file = io.BytesIO(data)
        file.name = name
        found: dict[int, Transcript | AsrError | None] = {}
        self._each([file], [number], found.__setitem__)
        return list(found.items())

    def _each(
        self, sources: Sequence[Any], numbers: Sequence[int], done: Callable[[int, Transcript | AsrError], None]
    ) -> None:
        self.ready()
        self._recognizer.transcribe_many(
            sources,
            on_done=lambda i, result: done(numbers[i], result),
            on_progress=lambda *_: None,
            channel=self._channel,
            **self._options,
        )


def _is_here(entry: tuple[int, str, int]) -> bool:
    _, path, size = entry
    try:
        return Path(path).stat().st_size == size
    except OSError:
        return False
