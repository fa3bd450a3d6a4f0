"""Sounds without speech that can be computed: mains hum, tones, chords, coloured noise, clicks.

A recording of noises holds few of them, and a model that never met them hears words in them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from asr.features import SAMPLE_RATE, FeatureConfig, LogMel
from asr.training.cache import Shard

Signal = NDArray[np.float64]
_LEVELS_DB = (-45.0, -10.0)


def hum(rng: np.random.Generator, time: Signal) -> Signal:
    """Mains hum: 40 to 130 Hz with harmonics that fall by 0 to 12 dB an octave, odd ones often stronger."""
    hertz, slope, even = rng.choice([50.0, 60.0, rng.uniform(40, 130)]), rng.uniform(0, 2), rng.uniform(0.05, 1)
    parts = [
        (1.0 if k % 2 else even) * k**-slope * np.sin(2 * np.pi * hertz * k * time + rng.uniform(0, 6.28))
        for k in range(1, int(rng.integers(2, 30)))
    ]
    return np.sum(parts, axis=0) * (1 + rng.uniform(0, 0.3) * np.sin(2 * np.pi * rng.uniform(0.1, 3) * time))


def tone(rng: np.random.Generator, time: Signal) -> Signal:
    """A steady, gliding or interrupted tone, as of a beep or a dial."""
    start, end = np.exp(rng.uniform(np.log(100), np.log(5000), 2))
    hertz = start if rng.random() < 0.6 else np.geomspace(start, end, len(time))
    sound = np.sin(2 * np.pi * np.cumsum(np.broadcast_to(hertz, time.shape)) / SAMPLE_RATE)
    return sound if rng.random() < 0.5 else sound * (time % rng.uniform(0.2, 2) < rng.uniform(0.1, 1))


def chords(rng: np.random.Generator, time: Signal) -> Signal:
    """Chords of two to four notes with overtones that change up to four times a second and fade or stay."""
    length, fade, sound = rng.uniform(0.25, 2), rng.uniform(0, 4), np.zeros(len(time))
    place = (time / length).astype(int)
    for chord in range(int(place[-1]) + 1):
        here = place == chord
        for note in rng.integers(40, 80, rng.integers(2, 5)):
            hertz = 440 * 2 ** ((note - 69) / 12)
            sound[here] += sum(np.sin(2 * np.pi * k * hertz * time[here]) / k**1.5 for k in range(1, 6))
    return sound * np.exp(-fade * (time % length))


def coloured(rng: np.random.Generator, time: Signal) -> Signal:
    """White to brown noise, at times through a band."""
    spectrum = np.fft.rfft(rng.standard_normal(len(time)))
    hertz = np.fft.rfftfreq(len(time), 1 / SAMPLE_RATE)
    spectrum *= np.maximum(hertz, 20) ** -rng.uniform(0, 1)
    if rng.random() < 0.4:
        low = np.exp(rng.uniform(np.log(50), np.log(3000)))
        spectrum *= (hertz > low) & (hertz < low * rng.uniform(1.5, 6))
    return np.asarray(np.fft.irfft(spectrum, len(time)))


def clicks(rng: np.random.Generator, time: Signal) -> Signal:
    """Short bursts at random times, one to ten a second."""
    sound, length = np.zeros(len(time) + 400), int(rng.integers(5, 400))
    for start in rng.integers(0, len(time), int(rng.uniform(1, 10) * len(time) / SAMPLE_RATE)):
        sound[start : start + length] += rng.uniform(0.2, 1) * rng.normal(size=length) * np.exp(-np.arange(length) / 60)
    return sound[: len(time)]


MAKERS: Sequence[Callable[[np.random.Generator, Signal], Signal]] = (hum, hum, tone, chords, coloured, clicks)


def made_sounds(config: FeatureConfig, count: int, seconds: float = 12.0, seed: int = 0) -> Shard:
    """Log-mel frames of ``count`` sounds of ``seconds`` each, at random levels over a soft floor of noise."""
    rng = np.random.default_rng([seed, count])
    time, extract = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE, LogMel(config)
    frames: list[NDArray[np.float16]] = []
    index: list[tuple[int, int, int, int]] = []
    for number in range(count):
        sound = MAKERS[number % len(MAKERS)](rng, time)
        sound *= 10 ** (rng.uniform(*_LEVELS_DB) / 20) / max(float(np.sqrt(np.mean(sound**2))), 1e-9)
        sound += 10 ** (rng.uniform(-100, -55) / 20) * rng.standard_normal(len(time))
        made = extract(torch.from_numpy(np.clip(sound, -1, 1).astype(np.float32))[None])[0]
        index.append((number, 0, sum(len(f) for f in frames), len(made)))
        frames.append(made.numpy().astype(np.float16))
    return Shard(
        np.concatenate(frames) if frames else np.zeros((0, config.mels), np.float16),
        np.array(index, dtype=np.int64).reshape(-1, 4),
        (),
    )
