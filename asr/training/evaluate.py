"""`asr eval`: error rates per corpus, streaming and offline side by side, and greedy unit error rates."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from numpy.typing import NDArray

from asr.audio import load_audio
from asr.decoding.greedy import best_path
from asr.decoding.hypothesis import Emissions
from asr.errors import AsrError
from asr.recognizer import Recognizer, feed_many
from asr.results import Result, Segment
from asr.training import metrics
from asr.training.cache import cut
from asr.training.manifest import Utterance, read_corpora

Samples = NDArray[np.float32]
STREAMS = 32  # utterances that are decoded together
CHUNK_MS = 100  # of a streaming evaluation
LONG_CHUNK_MS = 2000  # of an offline one, as files are read


@dataclass(frozen=True)
class CorpusResult:
    """One row of the table. ``mode``: streaming or offline; ``speed``: seconds of work per second of audio."""

    corpus: str
    mode: str
    utterances: int
    audio_s: float
    word: metrics.ErrorRate
    character: metrics.ErrorRate
    greedy: dict[str, float]
    speed: float


def main(
    model: str,
    data: Sequence[str],
    out: Path | None,
    streaming: bool,
    offline: bool,
    limit: int | None,
    device: str,
    file: TextIO | None = None,
    greedy: bool = False,
) -> int:
    """Evaluate a model on every manifest and print a table; with ``out`` also write results and aligned errors.
    ``greedy``: without lexicon and language model, the best letter of every step.

    A bidirectional model is evaluated offline only; asked for streaming alone it raises ModelError.
    """
    file = file or sys.stdout
    corpora = {name: utterances[:limit] for name, utterances in read_corpora(data).items()}
    recognizer = Recognizer.load(model, device=device, greedy=greedy)
    if recognizer.model.config.bidirectional and offline:
        streaming = False
    results: list[CorpusResult] = []
    print(
        f"{'corpus':<20} {'mode':<10} {'WER %':>6} {'95 % interval':>15} {'CER %':>6}  greedy unit error %", file=file
    )
    for name, utterances in corpora.items():
        audio = load_utterances(utterances)
        units = greedy_error_rates(recognizer, utterances, audio)
        for mode in [m for m, wanted in (("streaming", streaming), ("offline", offline)) if wanted]:
            began = time.perf_counter()
            if recognizer.model.config.bidirectional and mode == "offline":
                texts = decode_whole(recognizer, audio)
            else:
                texts = decode(recognizer, audio, CHUNK_MS if mode == "streaming" else LONG_CHUNK_MS)
            took = time.perf_counter() - began
            seconds = sum(len(a) for a in audio) / recognizer.sample_rate
            references = [u.text for u in utterances]
            speakers = ["" if u.speaker == "unknown" else u.speaker for u in utterances]  # "": one of its own
            result = CorpusResult(
                name,
                mode,
                len(utterances),
                seconds,
                metrics.word_error_rate(references, texts, speakers),
                metrics.character_error_rate(references, texts, speakers),
                units,
                took / max(seconds, 1e-9),
            )
            results.append(result)
            print(row(result), file=file, flush=True)
            if out:
                _write_errors(out / f"{name}-{mode}-errors.txt", utterances, texts)
    if out:
        out.mkdir(parents=True, exist_ok=True)
        values: list[dict[str, Any]] = [asdict(r) for r in results]
        (out / "results.json").write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    return 0


def row(result: CorpusResult) -> str:
    """One line of the table."""
    w = result.word
    greedy = ", ".join(f"{head} {100 * rate:.1f}" for head, rate in result.greedy.items())
    interval = f"{100 * w.low:.1f} to {100 * w.high:.1f}"
    return (
        f"{result.corpus:<20} {result.mode:<10} {100 * w.rate:>6.2f} {interval:>15} "
        f"{100 * result.character.rate:>6.2f}  {greedy}"
    )


def load_utterances(utterances: Sequence[Utterance]) -> list[Samples]:
    """The samples of every utterance at 16 kHz; a recording with many of them is decoded once."""
    path, samples = None, np.zeros(0, np.float32)
    pieces = []
    for u in utterances:
        if u.audio != path:  # manifests go through their recordings in order
            path, samples = u.audio, load_audio(u.audio)
        pieces.append(cut(samples, u).copy())
    return pieces


def decode(recognizer: Recognizer, audio: Sequence[Samples], chunk_ms: int, streams: int = STREAMS) -> list[str]:
    """The text of every utterance, as :func:`segments_of` hears it."""
    return [" ".join(s.text for s in heard) for heard in segments_of(recognizer, audio, chunk_ms, streams)]


def segments_of(
    recognizer: Recognizer, audio: Sequence[Samples], chunk_ms: int, streams: int = STREAMS
) -> list[list[Segment]]:
    """The segments of every utterance, each a stream of its own fed in chunks, ``streams`` of them in a step."""
    size = recognizer.sample_rate * chunk_ms // 1000
    segments: list[list[Segment]] = [[] for _ in audio]
    order = sorted(range(len(audio)), key=lambda i: len(audio[i]))
    for first in range(0, len(order), streams):
        members = order[first : first + streams]
        sessions = {i: recognizer.stream(partials=False) for i in members}
        heard: dict[int, list[Result]] = {i: [] for i in members}
        position = 0
        while active := [i for i in members if position < len(audio[i])]:
            new = feed_many([(sessions[i], audio[i][position : position + size]) for i in active])
            for i, results in zip(active, new, strict=True):
                heard[i].extend(results)
            position += size
        for i in members:
            heard[i].extend(sessions[i].finish())
            segments[i] = [r for r in heard[i] if isinstance(r, Segment)]
    return segments


def decode_whole(recognizer: Recognizer, audio: Sequence[Samples]) -> list[str]:
    """The text of every utterance from the network's parallel pass, without a stream: for bidirectional models."""
    texts = [""] * len(audio)
    for i, emissions in emissions_of(recognizer, audio):
        state = recognizer.search.step(emissions[recognizer.head], recognizer.search.begin())
        texts[i] = recognizer.search.end(state).text
    return texts


def greedy_error_rates(
    recognizer: Recognizer, utterances: Sequence[Utterance], audio: Sequence[Samples]
) -> dict[str, float]:
    """Unit error rate of the best path of every head; utterances whose text a head cannot spell are left out."""
    heads = recognizer.folder.load_vocabularies(recognizer.folder.load_lexicon())
    errors = dict.fromkeys(heads, 0)
    total = dict.fromkeys(heads, 0)
    for i, emissions in emissions_of(recognizer, audio):
        for name, vocabulary in heads.items():
            try:
                reference = vocabulary.encode(utterances[i].text)
            except AsrError:
                continue
            errors[name] += metrics.edit_distance(reference, best_path(torch.from_numpy(emissions[name])))
            total[name] += len(reference)
    return {name: errors[name] / max(1, total[name]) for name in heads}


def emissions_of(recognizer: Recognizer, audio: Sequence[Samples]) -> Iterator[tuple[int, dict[str, Emissions]]]:
    """(number, log-probabilities (steps, units) per head) of every utterance, in the order of their lengths."""
    device = recognizer.device
    for batch in _batches(audio, 16):
        frames = [recognizer.features(torch.from_numpy(audio[i])[None].to(device))[0] for i in batch]
        lengths = torch.tensor([len(f) for f in frames], device=device)
        with torch.inference_mode():
            out, steps, _ = recognizer.model(torch.nn.utils.rnn.pad_sequence(frames, True), lengths)
        for row, (i, count) in enumerate(zip(batch, steps.tolist(), strict=True)):
            yield i, {name: log_probs[row, :count].cpu().numpy() for name, log_probs in out.items()}


def _batches(audio: Sequence[Samples], size: int) -> Iterator[list[int]]:
    order = sorted(range(len(audio)), key=lambda i: len(audio[i]))
    yield from (order[i : i + size] for i in range(0, len(order), size))


def _write_errors(path: Path, utterances: Sequence[Utterance], texts: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        metrics.write_report(
            [metrics.Utterance(u.id, u.text, t, u.speaker) for u, t in zip(utterances, texts, strict=True)], file
        )
