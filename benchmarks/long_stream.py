"""The same utterances early and late in one long stream, and each in a stream of its own; for `robustness.py`.

The stream is made of rounds, each of the same utterances in another order with a pause behind each. Its words go to
the utterances by their times.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from asr.recognizer import Recognizer
from asr.results import Segment
from asr.training.perturb import Samples


@dataclass(frozen=True)
class Round:
    """What was heard in one round: when it began in the stream, how long it is, processor seconds, and the text of
    every utterance (in the order of the utterances, not of the round)."""

    start_s: float
    audio_s: float
    cpu_s: float
    texts: tuple[str, ...]


def orders(count: int, rounds: int, seed: int) -> list[list[int]]:
    """An order of ``count`` utterances for every round: the first as they come, then random ones."""
    rng = np.random.default_rng(seed)
    return [list(range(count)), *(rng.permutation(count).tolist() for _ in range(rounds - 1))]


def fill(durations: Sequence[Sequence[float]], seconds: float, seed: int) -> list[tuple[int, int]]:
    """Utterances for a round of at most ``seconds``, or all where there are fewer, as (table, number), in order.

    ``durations``: of the utterances of every table, with their pauses. The tables give equally much sound each as far
    as they can; which utterances, ``seed`` decides.
    """
    rng = np.random.default_rng(seed)
    waiting = [rng.permutation(len(d)).tolist() for d in durations]
    used = [0.0] * len(durations)
    chosen: list[tuple[int, int]] = []
    while open_tables := [t for t, rest in enumerate(waiting) if rest]:
        table = min(open_tables, key=lambda t: used[t])
        number = waiting[table].pop()
        if chosen and sum(used) + durations[table][number] > seconds:
            break
        used[table] += durations[table][number]
        chosen.append((table, number))
    return sorted(chosen)


def play(
    recognizer: Recognizer,
    audio: Sequence[Samples],
    rounds: Sequence[Sequence[int]],
    pause_s: float,
    chunk_ms: int,
    on_round: Callable[[int], None] = lambda number: None,
) -> list[Round]:
    """Feed one stream with all rounds in chunks of ``chunk_ms``; a pause is digital silence.

    A word belongs to the utterance before whose pause's middle its own middle lies. ``on_round`` is called after each
    round with its number.
    """
    rate = recognizer.sample_rate
    stream, size, pause = recognizer.stream(partials=False), rate * chunk_ms // 1000, round(pause_s * rate)
    silence = np.zeros(pause, np.float32)
    places: list[tuple[int, int]] = []  # round, utterance
    ends: list[float] = []  # seconds in the stream up to which words are of that place
    segments: list[Segment] = []
    spans: list[tuple[float, float, float]] = []
    at = 0
    for number, order in enumerate(rounds):
        first, began = at, time.process_time()
        for i in order:
            at += len(audio[i]) + pause
            places.append((number, i))
            ends.append((at - pause / 2) / rate)
        samples = np.concatenate([part for i in order for part in (audio[i], silence)])
        for start in range(0, len(samples), size):
            segments += [r for r in stream.feed(samples[start : start + size]) if isinstance(r, Segment)]
        spans.append((first / rate, (at - first) / rate, time.process_time() - began))
        on_round(number)
    segments += [r for r in stream.finish() if isinstance(r, Segment)]
    texts: list[list[list[str]]] = [[[] for _ in audio] for _ in rounds]
    for word in (w for s in segments for w in s.words):
        number, i = places[min(bisect_right(ends, (word.start + word.end) / 2), len(places) - 1)]
        texts[number][i].append(word.text)
    return [Round(*span, tuple(map(" ".join, texts[n]))) for n, span in enumerate(spans)]
