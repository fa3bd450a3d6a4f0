"""The beam search beside the network and beside flashlight's decoder: time on one core for one and for many streams.

    OMP_NUM_THREADS=1 python benchmarks/search.py [--model en] [--streams 1 50] [--data dev.tsv] [--limit 50] \\
        [--flashlight]

Every stream is an utterance (of the manifest, or the clips of the tests, repeated), fed in 100 ms chunks. Prints, per
number of streams, processor seconds per second of audio of the network alone and of the search alone (with the
language model at the default width; partial results left out), the same of sessions that ask for alternatives, which
remember what recombination leaves behind, and of greedy decoding, and with `--flashlight` for flashlight-text's decoder
at the same settings. Then the time from the last sample of a stream to its final result.
Processor time of one thread: little disturbed by other jobs; the ratio of two columns even less.
"""

import argparse
import copy
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from asr import batching, lm
from asr.audio import load_audio
from asr.decoding.greedy import GreedyDecoder
from asr.recognizer import Recognizer, take_many
from asr.training.evaluate import load_utterances
from asr.training.manifest import read_manifest

CLIPS = Path(__file__).resolve().parent.parent / "tests" / "clips"
CHUNK_MS = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="en")
    parser.add_argument("--streams", nargs="+", type=int, default=[1, 50])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--limit", type=int, default=50, help="utterances")
    parser.add_argument("--flashlight", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    recognizer = Recognizer.load(args.model)
    audio = speech(args.data, args.limit)
    seconds = sum(map(len, audio)) / recognizer.sample_rate
    print(f"{len(audio)} utterances, {seconds:.0f} s, search {recognizer.search.config}")
    remembers = copy.copy(recognizer.search)
    remembers.begin = lambda: recognizer.search.begin(remember=True)
    routes = {"beam search": recognizer.search, "for alternatives": remembers, "greedy": Greedy()}
    if args.flashlight:
        routes["flashlight"] = flashlight(recognizer)
    for count in args.streams:
        network, emissions = run_network(recognizer, audio, count)
        line = [f"network {network / seconds:.4f}"]
        for name, search in routes.items():
            took, _ = run_search(search, emissions, count)
            line.append(f"{name} {took / seconds:.4f} (x {took / network:.2f})")
        print(f"{count} streams: " + ", ".join(line), flush=True)
    waits = [finalisation(recognizer, a) for a in audio]
    print(f"last sample to final result: median {1000 * statistics.median(waits):.0f} ms, "
          f"90 % within {1000 * sorted(waits)[int(0.9 * len(waits))]:.0f} ms")  # fmt: skip


def speech(data, limit):
    """Samples of the utterances at 16 kHz."""
    if data:
        utterances = read_manifest(data)
        return load_utterances(utterances[:: max(1, len(utterances) // limit)][:limit])
    clips = [load_audio(f) for f in sorted(CLIPS.glob("*.wav")) + sorted(CLIPS.glob("*.flac"))]
    return [clips[i % len(clips)] for i in range(limit)]


def run_network(recognizer, audio, count):
    """Processor seconds of features and network for all, ``count`` streams in a step; emissions per chunk of each."""
    size = recognizer.sample_rate * CHUNK_MS // 1000
    out = [[] for _ in audio]
    began = time.process_time()
    for first in range(0, len(audio), count):
        members = range(first, min(first + count, len(audio)))
        streams = {i: recognizer.stream(partials=False) for i in members}
        for at in range(0, max(len(audio[i]) for i in members), size):
            active = [i for i in members if at < len(audio[i])]
            rows = [(take_many([(streams[i], audio[i][at : at + size])])[0], streams[i].state.network) for i in active]
            for i, (emissions, state) in zip(active, batching.advance(recognizer.model, rows, recognizer.head),
                                             strict=True):  # fmt: skip
                streams[i].state.network = state
                out[i].append(emissions.numpy())
    return time.process_time() - began, out


def run_search(search, emissions, count):
    """Processor seconds of the search over them, and the texts."""
    texts = []
    began = time.process_time()
    for first in range(0, len(emissions), count):
        members = emissions[first : first + count]
        states = [search.begin() for _ in members]
        for k in range(max(map(len, members))):
            search.step_many([(m[k], s) for m, s in zip(members, states, strict=True) if k < len(m)])
        texts += [search.end(s).text for s in states]
    return time.process_time() - began, texts


def finalisation(recognizer, samples):
    """Wall clock from the last chunk to the last result, the network's look-ahead included."""
    stream, size = recognizer.stream(), recognizer.sample_rate * CHUNK_MS // 1000
    last = (len(samples) - 1) // size * size
    for at in range(0, last, size):
        stream.feed(samples[at : at + size])
    began = time.perf_counter()
    stream.feed(samples[last:])
    stream.finish()
    return time.perf_counter() - began


class Greedy:
    """Greedy decoding in the verbs of a search."""

    def begin(self):
        return [GreedyDecoder().begin()]

    def step_many(self, pieces):
        for emissions, state in pieces:
            state[0] = GreedyDecoder().step(torch.from_numpy(emissions), state[0])

    def end(self, state):
        return type("Hypothesis", (), {"text": str(len(state[0].units))})


def flashlight(recognizer):
    """flashlight's decoder with the settings, lexicon and language model of the model."""
    sys.path.insert(0, str(Path(__file__).parent))
    from flashlight_search import LexiconSearch

    folder = recognizer.folder
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "words.kenlm"
        lm.save(lm.load(folder.language_model), path)
        search = LexiconSearch(
            recognizer.vocabularies[recognizer.head], folder.load_lexicon(with_g2p=False), path,
            recognizer.search.config, folder.load_log_priors(recognizer.head),
        )  # fmt: skip
    search.step_many = lambda pieces: [search.step(np.asarray(e), s) for e, s in pieces if len(e)]
    return search


if __name__ == "__main__":
    main()
