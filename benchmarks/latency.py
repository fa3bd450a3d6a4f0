"""From the end of a word in the audio to its appearance on the screen, in process and through a local server.

    OMP_NUM_THREADS=1 python benchmarks/latency.py [--model en] [--clips tests/clips] [--repeat 3] [--server] [--cpu]

Clips are fed as a microphone gives them, in blocks of 20 ms at their pace, through the parts of ``asr mic``: a source
whose thread only enqueues, the recogniser's (or, with --server, the sender's and listener's) thread, the loop and the
live view on a terminal of 80 columns that is a string. What counts is what the terminal has been sent: a word appears
when the screen, drawn, shows it at its place in its segment, and stays. Its end in the audio is that of the final
result (docs/times-and-confidences.md says how exact these are). Words of a text that a partial result never showed
appear with the final one.

First what is not the client's: the same by the clock of the audio alone, on a machine that takes no time to compute.

--server starts ``asr serve`` on this machine, in a process of its own. --cpu measures processor time instead: that of
all the process, less that of the calls of the recogniser; the rest is the client's own.
"""

import argparse
import asyncio
import io
import queue
import socket
import statistics
import threading
import time
from pathlib import Path

import numpy as np
from rich.console import Console

from asr.audio import load_audio
from asr.recognizer import Recognizer
from asr.results import Segment
from client.hearing import Local, Remote
from client.listen import listen
from client.view import Live

RATE = 16000
BLOCK = RATE // 50
PAUSE_S = 1.5  # of silence behind each clip, so that its last segment ends in an endpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="en")
    parser.add_argument("--clips", type=Path, default=Path(__file__).parent.parent / "tests" / "clips")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--server", action="store_true", help="through a server on this machine")
    parser.add_argument("--cpu", action="store_true", help="processor time of the client's own parts")
    args = parser.parse_args()
    files = sorted(args.clips.glob("*.wav"))
    silence = np.zeros(round(PAUSE_S * RATE), np.float32)
    audio = np.concatenate([part for file in files for part in (load_audio(file), silence)])
    samples = np.rint(audio * 32767).astype("<i2")
    if args.cpu:
        cpu(args.model, samples, args.repeat)
    elif args.server:
        asyncio.run(served(args.model, samples, args.repeat))
    else:
        recognizer = Recognizer.load(args.model, threads=1)
        report("by the clock of the audio alone", [by_audio(recognizer, samples)])
        report("in process", [follow(Local(recognizer, RATE), samples) for _ in range(args.repeat)])


class Pacer:
    """Blocks as from a device: a thread gives one every 20 ms of the clock, whatever happens to it."""

    overflows = 0

    def __init__(self, samples: np.ndarray) -> None:
        self.blocks: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self.samples, self.given = samples, 0
        self.began = 0.0

    @property
    def captured(self) -> float:
        return self.given / RATE

    def start(self) -> None:
        self.began = time.monotonic()
        threading.Thread(target=self._give, daemon=True).start()

    def _give(self) -> None:
        for at in range(0, len(self.samples), BLOCK):
            block = self.samples[at : at + BLOCK]
            time.sleep(max(0.0, self.began + (at + len(block)) / RATE - time.monotonic()))
            self.blocks.put(block.tobytes())
            self.given = at + len(block)
        self.blocks.put(None)

    def check(self) -> None:
        pass

    def stop(self) -> None:
        pass


class Watched(Live):
    """Writes down what stands on the screen, when it has been drawn. ``text`` of the open segment, by segment."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self.screens: list[tuple[float, int, list[str]]] = []  # time, segment, words

    def _refresh(self) -> None:
        before = self._shown_at
        super()._refresh()
        if self._shown_at != before and self._partial is not None:
            self.screens.append((time.monotonic(), self._partial.segment, self._partial.text.split()))

    def show(self, event: object) -> None:
        super().show(event)
        if isinstance(event, Segment):
            self.screens.append((time.monotonic(), event.index, event.text.split()))


def follow(hearer, samples: np.ndarray) -> list[float]:
    """Seconds from the end of each word to its appearance for good."""
    source = Pacer(samples)
    view = Watched(Console(file=io.StringIO(), width=80, height=24, force_terminal=True))
    view.open()
    transcript, error = listen(source, hearer, view)
    view.close()
    if error is not None:
        raise error
    return [late for segment in transcript.segments for late in delays(segment, view.screens, source.began)]


def delays(segment: Segment, screens: list[tuple[float, int, list[str]]], began: float) -> list[float]:
    """Of the words of one segment: the first of the screens from which on each stands at its place."""
    shown = [(at, words) for at, index, words in screens if index == segment.index]
    found = []
    for n, word in enumerate(segment.words):
        first = len(shown) - 1
        while first and shown[first - 1][1][n : n + 1] == [word.text]:
            first -= 1
        found.append(shown[first][0] - began - word.end)
    return found


def by_audio(recognizer, samples: np.ndarray) -> list[float]:
    """What look-ahead and search cost, on a machine that takes no time: the same for every run and machine."""
    stream = recognizer.stream(RATE)
    screens: list[tuple[float, int, list[str]]] = []
    segments = []
    for at in range(0, len(samples) + BLOCK, BLOCK):
        for result in stream.feed(samples[at : at + BLOCK]) if at < len(samples) else stream.finish():
            closed = isinstance(result, Segment)
            segments += [result] if closed else []
            screens.append((stream.duration, result.index if closed else result.segment, result.text.split()))
    return [late for segment in segments for late in delays(segment, screens, 0.0)]


def report(name: str, runs: list[list[float]]) -> None:
    late = sorted(1000 * one for run in runs for one in run)
    ninth = late[round(0.9 * (len(late) - 1))]
    medians = ", ".join(f"{1000 * statistics.median(run):.0f}" for run in runs)
    print(f"{name}: {len(late)} words, median {statistics.median(late):.0f} ms, 90 % within {ninth:.0f} ms"
          f" (medians of the runs: {medians})", flush=True)  # fmt: skip


async def served(model: str, samples: np.ndarray, repeat: int) -> None:
    """Through ``asr serve`` in another process."""
    import os
    import subprocess
    import sys

    from client.sync import connect

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "asr", "serve", "--host", "127.0.0.1", "--port", str(port), "--model", model]
    server = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    try:
        await until_ready(port)
        runs = []
        for _ in range(repeat + 1):  # the first one warms the server up
            stream = await asyncio.to_thread(connect(f"ws://127.0.0.1:{port}", when_full="drop").__enter__)
            runs.append(await asyncio.to_thread(follow, Remote(stream), samples))
        report("through a local server", runs[1:])
    finally:
        server.terminate()
        server.wait(30)


async def until_ready(port: int) -> None:
    async with asyncio.timeout(120):
        while True:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
                if b" 200 " in await reader.readline():
                    writer.close()
                    return
                writer.close()
            except OSError:
                pass
            await asyncio.sleep(0.2)


def cpu(model: str, samples: np.ndarray, repeat: int) -> None:
    """Processor time of the whole process in a live session, less what the recogniser's own calls take in it."""
    recognizer = Recognizer.load(model, threads=1)
    seconds = len(samples) / RATE
    shares = []
    for _ in range(repeat):
        hearer = Local(recognizer, RATE)
        hearer._stream = inner = Metered(hearer._stream)
        began = time.process_time()
        follow(hearer, samples)
        shares.append(((time.process_time() - began - inner.spent) / seconds, inner.spent / seconds))
    own, beside = min(shares)
    print(f"share of a core: the client's own {own:.3f}, the recogniser beside it {beside:.3f}"
          f" (best of {repeat}: {' '.join(f'{one:.3f}' for one, _ in shares)})")  # fmt: skip


class Metered:
    """A stream that adds up the processor seconds of its thread."""

    def __init__(self, stream) -> None:
        self.stream, self.spent = stream, 0.0

    @property
    def duration(self) -> float:
        return self.stream.duration

    def feed(self, samples: np.ndarray):
        began = time.thread_time()
        try:
            return self.stream.feed(samples)
        finally:
            self.spent += time.thread_time() - began

    def finish(self):
        return self.stream.finish()


if __name__ == "__main__":
    main()
