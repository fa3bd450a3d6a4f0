"""The sound of synthetic speech: is it what it should be, how it is shaped, and how it is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np

from asr.features import SAMPLE_RATE
from asr.lexicon import Lexicon, Pronunciation
from asr.training.perturb import Samples, change_speed

EDGE_S = 0.15  # silence that an utterance keeps at its ends
LEVEL, PEAK = 0.06, 0.9  # root mean square of an utterance, unless its peak would be higher
# Unstressed vowels and mergers that dictionaries write either way.
_ALIKE = {pair for a, b in (("AH", "IH"), ("ER", "AH"), ("AO", "AA")) for pair in ((a, b), (b, a))}


def agreement(text: str, phones: Pronunciation, lexicon: Lexicon) -> float:
    """1 - errors / phones of the best match of ``phones`` to any pronunciation of the words of ``text``.

    Levenshtein distance, where a word's row is the best over its pronunciations; vowels that dictionaries write either
    way count as the same.
    """
    row = list(range(len(phones) + 1))
    longest = 0
    for word in text.split():
        variants = lexicon[word]
        rows = [_extend(row, variant, phones) for variant in variants]
        row = [min(values) for values in zip(*rows, strict=True)]
        longest += len(variants[0])
    return 1.0 - row[-1] / max(1, longest)


def _extend(row: list[int], variant: Pronunciation, phones: Pronunciation) -> list[int]:
    for phone in variant:
        new = [row[0] + 1]
        for i, said in enumerate(phones):
            same = said == phone or (said, phone) in _ALIKE
            new.append(min(row[i] + (not same), row[i + 1] + 1, new[-1] + 1))
        row = new
    return row


def shape(samples: Samples, formants: float) -> Samples:
    """Move formants (and pitch and rate) by a factor, cut silence at the ends short, and set the level."""
    samples = trimmed(change_speed(samples, formants))
    level = float(np.sqrt(np.mean(samples**2)))
    peak = float(np.abs(samples).max())
    return (samples * min(LEVEL / max(level, 1e-9), PEAK / max(peak, 1e-9))).astype(np.float32)


def trimmed(samples: Samples) -> Samples:
    """``samples`` with 150 ms of silence (less than a hundredth of the peak) at each end, at most."""
    loud = np.flatnonzero(np.abs(samples) > 0.01 * float(np.abs(samples).max(initial=0.0)))
    if not len(loud):
        return samples[:0]
    edge = round(EDGE_S * SAMPLE_RATE)
    return samples[max(0, int(loud[0]) - edge) : int(loud[-1]) + edge]


class OpusWriter:
    """An Ogg Opus file, 16 kHz mono, written piece by piece."""

    def __init__(self, path: Path, bitrate: int) -> None:
        self._container: Any = av.open(str(path), "w", format="ogg")
        self._stream: Any = self._container.add_stream("libopus", rate=SAMPLE_RATE, layout="mono")
        self._stream.bit_rate = bitrate
        self._samples = 0

    def __enter__(self) -> OpusWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.mux(self._stream.encode(None))
        self._container.close()

    @property
    def seconds(self) -> float:
        """What was written so far."""
        return self._samples / SAMPLE_RATE

    def write(self, samples: Samples) -> float:
        """Append (n,) float32 samples; gives their duration in seconds."""
        whole = np.clip(np.round(samples * 32767), -32768, 32767).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(whole[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts = SAMPLE_RATE, self._samples
        self._container.mux(self._stream.encode(frame))
        self._samples += len(samples)
        return len(samples) / SAMPLE_RATE


__all__ = ["OpusWriter", "agreement", "shape", "trimmed"]
