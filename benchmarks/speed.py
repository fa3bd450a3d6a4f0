"""Speed, memory and start-up of the recogniser on one core.

    OMP_NUM_THREADS=1 python benchmarks/speed.py [--model en] [--seconds 120] FILE...

Prints the real-time factor (seconds of work per second of audio) of streaming in 100 ms chunks, also part by part, and
of batch files (16 at a time); peak memory; wall clock of a cold `asr transcribe` of a ten-second clip. Without FILE the
clips of the tests are used, repeated. The figures are medians over the runs of one process; keep the machine quiet.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import wave
from pathlib import Path

import numpy as np

CLIPS = Path(__file__).resolve().parent.parent / "tests" / "clips"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--model", default="en")
    parser.add_argument("--seconds", type=float, default=120, help="audio per measurement")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()

    began = time.perf_counter()
    import torch

    from asr.audio import load_audio
    from asr.recognizer import Recognizer

    imported = time.perf_counter() - began
    torch.set_num_threads(1)
    began = time.perf_counter()
    recognizer = Recognizer.load(args.model)
    loaded = time.perf_counter() - began
    rate = recognizer.sample_rate
    files = args.files or sorted(CLIPS.glob("*.wav")) + sorted(CLIPS.glob("*.flac"))
    speech = np.concatenate([load_audio(f) for f in files])
    speech = np.resize(speech, int(args.seconds * rate))

    print(f"model {recognizer.folder.name}: {recognizer.model.parameter_count / 1e6:.2f} M parameters, "
          f"algorithmic latency {recognizer.algorithmic_latency_ms} ms")  # fmt: skip
    print(f"import {imported:.2f} s, load {loaded:.2f} s")
    for chunk_ms in (100, 20):
        times = [stream(recognizer, speech, rate * chunk_ms // 1000) for _ in range(args.repeats)]
        middle = statistics.median(t for t, _ in times)
        worst = statistics.median(w for _, w in times)
        print(f"streaming, {chunk_ms} ms chunks: {middle / args.seconds:.4f} of real time, "
              f"99 % of chunks within {1000 * worst:.1f} ms")  # fmt: skip
    for name, seconds in parts(recognizer, speech).items():
        print(f"  of which {name}: {seconds / args.seconds:.4f}")
    pieces = np.array_split(speech, 16)
    times = []
    for _ in range(args.repeats):
        began = time.perf_counter()
        recognizer.transcribe_many(pieces, sample_rate=rate)
        times.append(time.perf_counter() - began)
    print(f"16 files in one batch: {statistics.median(times) / args.seconds:.4f} of real time")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
    print(f"cold `asr transcribe` of a 10 s clip: {cold(args.model, speech[: 10 * rate], rate):.2f} s of wall clock")


def stream(recognizer, speech, size):
    """(seconds of work, 99th percentile of a chunk's) for one stream."""
    session = recognizer.stream()
    times = []
    for i in range(0, len(speech), size):
        began = time.perf_counter()
        session.feed(speech[i : i + size])
        times.append(time.perf_counter() - began)
    began = time.perf_counter()
    session.finish()
    times.append(time.perf_counter() - began)
    return sum(times), sorted(times)[int(0.99 * len(times))]


def parts(recognizer, speech):
    """Seconds of each part of a stream fed in 100 ms chunks."""
    from asr import batching
    from asr.recognizer import _decode_many, take_many

    session = recognizer.stream()
    times = {"features": 0.0, "network": 0.0, "search and results": 0.0}
    size = recognizer.sample_rate // 10
    for i in range(0, len(speech), size):
        a = time.perf_counter()
        frames = take_many([(session, speech[i : i + size])])[0]
        b = time.perf_counter()
        ((emissions, state),) = batching.advance(recognizer.model, [(frames, session.state.network)], recognizer.head)
        session.state.network = state
        c = time.perf_counter()
        _decode_many(recognizer, [session], [emissions])
        session._partial()
        d = time.perf_counter()
        for name, seconds in zip(times, (b - a, c - b, d - c), strict=True):
            times[name] += seconds
    return times


def cold(model, speech, rate):
    """Wall clock of the command in a process of its own, best of three."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.wav"
        with wave.open(str(path), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(rate)
            file.writeframes((speech * 32767).astype("<i2").tobytes())
        times = []
        for _ in range(3):
            began = time.perf_counter()
            subprocess.run([sys.executable, "-m", "asr", "transcribe", "--model", model, str(path)], check=True,
                           stdout=subprocess.DEVNULL)  # fmt: skip
            times.append(time.perf_counter() - began)
    return min(times)


if __name__ == "__main__":
    main()
