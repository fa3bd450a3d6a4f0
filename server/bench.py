"""`asr bench serve`: how many live streams a server holds.

Every stream plays real speech in real time. The vosk path answers every frame of audio once it is decoded, so that the
lag of each frame is measured from outside: from the moment in which its last sample was sent to that of its answer.
Texts are compared with those of the same audio offline, from the same model.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import re
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asr import Recognizer
from asr.audio import encode, load_audio
from asr.errors import AsrError, UsageError

RATE = 16000
PAUSE_S = 0.6  # between two clips of a stream
ANSWER_S = 60.0  # a server that is silent for so long has failed
START_S = 120.0


@dataclass(frozen=True)
class Load:
    """What a trial does. ``chunk_ms``: audio of a message; ``seconds``: that a stream speaks; ``limit_ms``: bound of
    the 95th percentile of lag; ``greedy``: texts to compare with are greedy, too; ``precision``: of these."""

    chunk_ms: int = 100
    seconds: float = 30.0
    limit_ms: float = 300.0
    model: str = "en"
    greedy: bool = False
    precision: str = "fp16"

    def __post_init__(self) -> None:
        if not 10 <= self.chunk_ms <= 1000 or self.seconds < 1 or self.limit_ms <= 0:
            raise UsageError("a load needs chunks of 10 to 1000 ms, a second or more of speech and a limit above 0 ms")


@dataclass
class Stream:
    """What became of one stream. ``lags_ms``: of its frames; ``finish_ms``: from ``eof`` to the last text."""

    text: str = ""
    lags_ms: list[float] = field(default_factory=list)
    finish_ms: float = 0.0
    late_ms: float = 0.0  # of the generator itself: its worst delay in sending
    failed: str = ""


@dataclass(frozen=True)
class Trial:
    """A row of the table. CPU in cores; memory in bytes a stream, idle; ``wer``: against the offline text."""

    streams: int
    lag_50: float
    lag_95: float
    lag_99: float
    finish_50: float
    finish_95: float
    cpu_engine: float
    cpu_server: float
    memory: float
    failed: int
    lost: int
    wer: float
    late: float

    @property
    def row(self) -> str:
        """As a line of the table."""
        memory = "-" if np.isnan(self.memory) else f"{self.memory / 1000:.0f}"
        cpu = "    -      -" if np.isnan(self.cpu_engine) else f"{self.cpu_engine:6.2f} {self.cpu_server:6.2f}"
        return (
            f"{self.streams:7d} {self.lag_50:7.0f} {self.lag_95:7.0f} {self.lag_99:7.0f} {self.finish_50:8.0f} "
            f"{self.finish_95:7.0f} {cpu} {memory:>9} {self.failed:6d} {self.lost:5d} "
            f"{100 * self.wer:6.2f} {self.late:6.0f}"
        )


HEAD = (
    "streams  lag ms: 50 %    95 %    99 %  final 50    95 %  CPU: engine server  kB/stream failed  lost  WER %  late"
)


def prepare(files: Sequence[Path], load: Load, log: Callable[[str], None]) -> list[tuple[bytes, str]]:
    """(PCM, offline text) of as many different streams as there are files: each begins with another one."""
    if not files:
        raise UsageError("no speech to send: give audio files")
    clips = [load_audio(path) for path in files]
    pause = np.zeros(int(PAUSE_S * RATE), np.float32)
    wanted, streams = int(load.seconds * RATE), []
    for first in range(len(clips)):
        pieces: list[NDArray[np.float32]] = []
        for clip in itertools.islice(itertools.cycle(clips), first, None):
            if pieces and sum(map(len, pieces)) >= wanted:
                break
            pieces += [clip, pause]
        streams.append(np.concatenate(pieces))
    log(f"{len(streams)} different streams of {min(map(len, streams)) / RATE:.0f} to "
        f"{max(map(len, streams)) / RATE:.0f} s; offline texts ...")  # fmt: skip
    recognizer = Recognizer.load(load.model, threads=1, precision=load.precision, greedy=load.greedy)
    data = [encode(s, "pcm_s16le") for s in streams]
    offline = recognizer.transcribe_many([np.frombuffer(d, "<i2") for d in data], sample_rate=RATE)
    found: list[tuple[bytes, str]] = []
    for pcm, transcript in zip(data, offline, strict=True):
        if isinstance(transcript, AsrError):
            raise transcript
        found.append((pcm, transcript.text))
    return found


async def run_trial(
    url: str, count: int, speech: Sequence[tuple[bytes, str]], load: Load, processes: Processes | None, token: str = ""
) -> Trial:
    """Open ``count`` streams, idle for a moment, then all of them speak, each from its own moment on."""
    from websockets.asyncio.client import connect

    headers = {"Authorization": f"Bearer {token}"} if token else {}
    before = processes.memory() if processes else float("nan")
    async with asyncio.TaskGroup() as group:
        opening = [
            group.create_task(
                _opened(connect, url.rstrip("/") + "/vosk", additional_headers=headers, compression=None, max_queue=64)
            )
            for _ in range(count)
        ]
    sockets = [task.result() for task in opening]
    try:
        await asyncio.sleep(0.5)
        memory = (processes.memory() - before) / count if processes else float("nan")
        rng = random.Random(count)
        cpu, began = processes.cpu() if processes else None, time.monotonic()
        streams = await asyncio.gather(
            *(_speak(ws, *speech[i % len(speech)][:1], load, rng.uniform(0, 1)) for i, ws in enumerate(sockets))
        )
        spent = time.monotonic() - began
        used = (
            [(b - a) / spent for a, b in zip(cpu, processes.cpu(), strict=True)] if processes and cpu else [np.nan] * 2
        )
    finally:
        await asyncio.gather(*(ws.close() for ws in sockets), return_exceptions=True)
    return _summary(count, streams, [speech[i % len(speech)][1] for i in range(count)], used, memory)


async def _opened(connect: Any, url: str, **options: Any) -> Any:
    async with asyncio.timeout(ANSWER_S):
        ws = await connect(url, **options)
        await ws.send(json.dumps({"config": {"sample_rate": RATE}}))
        return ws


async def _speak(ws: Any, pcm: bytes, load: Load, delay_s: float) -> Stream:
    """One stream in real time; answers are read while it goes on."""
    size = RATE * load.chunk_ms // 1000 * 2
    chunks = [pcm[i : i + size] for i in range(0, len(pcm), size)]
    sent: list[float] = []
    stream, loop = Stream(), asyncio.get_running_loop()

    async def listen() -> None:
        texts = []
        for number in range(len(chunks) + 1):
            async with asyncio.timeout(ANSWER_S + load.chunk_ms / 1000):
                answer = json.loads(await ws.recv())
            if number < len(chunks):
                stream.lags_ms.append(1000 * (loop.time() - sent[number]))
            if answer.get("text"):
                texts.append(answer["text"])
        stream.text = " ".join(texts)

    await asyncio.sleep(delay_s)
    listening = asyncio.create_task(listen())
    try:
        begin = loop.time()
        for number, chunk in enumerate(chunks):
            due = begin + (number + 1) * load.chunk_ms / 1000  # a chunk can be sent when its last sample was spoken
            if (wait := due - loop.time()) > 0:
                await asyncio.sleep(wait)
            stream.late_ms = max(stream.late_ms, 1000 * (loop.time() - due))
            sent.append(loop.time())
            await ws.send(chunk)
        ended = loop.time()
        await ws.send('{"eof" : 1}')
        await listening
        stream.finish_ms = 1000 * (loop.time() - ended)
    except Exception as error:  # what became of this stream is a result, too
        listening.cancel()
        stream.failed = f"{type(error).__name__}: {error}"
    return stream


def _summary(count: int, streams: Sequence[Stream], texts: Sequence[str], cpu: Sequence[float], memory: float) -> Trial:
    from asr.training.metrics import edits

    lags = np.concatenate([s.lags_ms for s in streams]) if any(s.lags_ms for s in streams) else np.array([np.inf])
    ends = [s.finish_ms for s in streams if not s.failed] or [np.inf]
    errors = lost = words = 0
    for stream, text in zip(streams, texts, strict=True):
        counts = edits(text, stream.text)
        errors, lost, words = errors + counts.errors, lost + counts.deletions, words + len(text.split())
    lag_50, lag_95, lag_99 = (float(np.percentile(lags, p)) for p in (50, 95, 99))
    end_50, end_95 = (float(np.percentile(ends, p)) for p in (50, 95))
    failed = sum(bool(s.failed) for s in streams)
    late = float(np.percentile([s.late_ms for s in streams], 50))
    wer = errors / max(words, 1)
    return Trial(count, lag_50, lag_95, lag_99, end_50, end_95, cpu[0], cpu[1], memory, failed, lost, wer, late)


async def largest(
    trial: Callable[[int], Any], load: Load, start: int, most: int, show: Callable[[Trial], None]
) -> list[Trial]:
    """Double the streams from ``start`` until the limit is passed, then halve the interval three times."""
    found: list[Trial] = []

    async def holds(count: int) -> bool:
        row = await trial(count)
        found.append(row)
        show(row)
        return bool(row.lag_95 < load.limit_ms and not row.failed)

    good, bad, count = 0, most + 1, min(start, most)
    while count < bad and await holds(count):
        good = count
        if good == most:
            break
        count = min(2 * count, most)
    else:
        bad = count
    for _ in range(3):
        if bad - good <= max(2, good // 20) or good == most:
            break
        middle = (good + bad) // 2
        if await holds(middle):
            good = middle
        else:
            bad = middle
    return sorted(found, key=lambda t: t.streams)


class Processes:
    """CPU time and memory of a server's processes on this machine, from /proc. The engine is the process among the
    server's descendants that has none below it and is no resource tracker."""

    def __init__(self, pid: int) -> None:
        self.server = pid
        self.engines = [p for p in _descendants(pid) if "spawn_main" in _command(p)]

    def cpu(self) -> tuple[float, float]:
        """Seconds that the engine's processes used, and all others of the server."""
        return sum(map(_cpu, self.engines)), _cpu(self.server)

    def memory(self) -> float:
        """Bytes of their own memory (PSS where the kernel tells it, else resident)."""
        return float(sum(map(_memory, [self.server, *self.engines])))

    def pin(self, engine: int, server: int) -> None:
        """Each on a core of its own."""
        for pid in self.engines:
            _pin(pid, engine)
        _pin(self.server, server)


def _pin(pid: int, core: int) -> None:
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), {core})


def _descendants(pid: int) -> list[int]:
    found: list[int] = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == pid:
            child = int(path.parent.name)
            found += [child, *_descendants(child)]
    return found


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _memory(pid: int) -> int:
    match = re.search(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return 1024 * int(match[1]) if match else 0


@asynccontextmanager
async def own_server(
    load: Load, sessions: int, cores: tuple[int, int] | None, options: Sequence[str]
) -> AsyncIterator[tuple[str, Processes]]:
    """A server of this machine for the time of a measurement: its address and processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "asr", "serve", "--port", str(port), "--model", load.model]
    command += ["--max-sessions", str(sessions), "--search", "greedy" if load.greedy else "beam"]
    command += ["--precision", load.precision, "--log-level", "warning", *options]
    process = await asyncio.create_subprocess_exec(*command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        await _ready(port, process)
        processes = Processes(process.pid)
        if cores:
            processes.pin(*cores)
        yield f"ws://127.0.0.1:{port}", processes
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), 60)
            except TimeoutError:
                process.kill()


async def _ready(port: int, process: asyncio.subprocess.Process) -> None:
    from urllib.request import urlopen

    def ask() -> bool:
        try:
            with urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    async with asyncio.timeout(START_S):
        while not await asyncio.to_thread(ask):
            if process.returncode is not None:
                raise UsageError(f"the server did not start (exit status {process.returncode}): see its messages above")
            await asyncio.sleep(0.2)


def plot(trials: Sequence[Trial], load: Load, path: Path) -> None:
    """Lag over streams as PNG. Raises UsageError without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        raise UsageError("a plot needs matplotlib: install asr[train]") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

    trials = sorted(trials, key=lambda trial: trial.streams)  # those of --streams come in any order
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    counts = [t.streams for t in trials]
    for name, values in (
        ("median", [t.lag_50 for t in trials]),
        ("95 %", [t.lag_95 for t in trials]),
        ("99 %", [t.lag_99 for t in trials]),
    ):
        axes.plot(counts, values, marker="o", label=name)
    axes.axhline(load.limit_ms, color="grey", linestyle="--", linewidth=1, label=f"limit of 95 %: {load.limit_ms:g} ms")
    axes.set(xlabel="live streams", ylabel="lag of a frame (ms)", yscale="log", title=f"chunks of {load.chunk_ms} ms")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


async def bench(args: Any) -> int:
    """`asr bench serve` with its parsed arguments."""
    load = Load(args.chunk_ms, args.seconds, args.limit_ms, args.model, args.search == "greedy", args.precision)
    say = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731
    speech = prepare(args.files or default_clips(), load, say)
    print(HEAD, flush=True)
    show = lambda trial: print(trial.row, flush=True)  # noqa: E731

    async def measure(url: str, processes: Processes | None) -> list[Trial]:
        one = lambda n: run_trial(url, n, speech, load, processes, args.token)  # noqa: E731
        if args.streams:
            rows = []
            for count in args.streams:
                rows.append(await one(count))
                show(rows[-1])
            return rows
        return await largest(one, load, args.first, args.most, show)

    if args.server:
        trials = await measure(args.server, None)
    else:
        most = max(args.streams) if args.streams else args.most
        cores = tuple(args.cores) if args.cores else None
        async with own_server(load, most, cores, args.serve_options or ()) as (url, processes):
            trials = await measure(url, processes)
    held = [t.streams for t in trials if t.lag_95 < load.limit_ms and not t.failed]
    print(f"most streams with a 95th percentile of lag under {load.limit_ms:.0f} ms: {max(held, default=0)}")
    if args.json:
        Path(args.json).write_text(json.dumps({"load": asdict(load), "trials": [asdict(t) for t in trials]}, indent=1))
    if args.plot:
        plot(trials, load, Path(args.plot))
    return 0 if all(t.lost == 0 and t.failed == 0 for t in trials if t.streams in held) else 1


def default_clips() -> list[Path]:
    """The clips that come with the repository."""
    folder = Path(__file__).resolve().parent.parent / "tests" / "clips"
    clips = sorted(folder.glob("*.wav"))
    if not clips:
        raise UsageError("the included clips are not here: give audio files")
    return clips
