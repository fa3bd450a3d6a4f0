"""Changes of the waveform for training: speed, rooms, telephone band. Pure functions of (samples, random generator).

``samples``: (n,) float32 mono at 16 kHz, n > 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from asr.features import SAMPLE_RATE

Samples = NDArray[np.float32]


def change_speed(samples: Samples, factor: float) -> Samples:
    """Play ``factor`` times as fast; pitch moves with it (Ko et al. 2015, "Audio augmentation")."""
    if factor == 1.0:
        return samples
    import soxr

    return np.asarray(soxr.resample(samples, SAMPLE_RATE * factor, SAMPLE_RATE, quality="MQ"), dtype=np.float32)


def simulate_room(rng: np.random.Generator) -> Samples:
    """Impulse response of a random small room: direct sound, some early echoes and a decaying tail (Polack's model)."""
    t60 = rng.uniform(0.1, 0.6)
    time = np.arange(int(t60 * SAMPLE_RATE), dtype=np.float32) / SAMPLE_RATE
    tail = rng.standard_normal(len(time)).astype(np.float32) * np.exp(-6.908 * time / t60, dtype=np.float32)
    tail[: int(rng.uniform(0.002, 0.01) * SAMPLE_RATE)] = 0
    for _ in range(rng.integers(2, 7)):
        at = int(rng.uniform(0.001, 0.03) * SAMPLE_RATE)
        if at < len(tail):
            tail[at] += rng.choice([-1.0, 1.0]) * 3 * np.exp(-6.908 * at / SAMPLE_RATE / t60)
    direct_to_reverb_db = rng.uniform(0, 15)
    tail *= 10 ** (-direct_to_reverb_db / 20) / max(float(np.sqrt(np.sum(tail**2))), 1e-9)
    tail[0] += 1.0
    return tail


def reverberate(samples: Samples, response: Samples) -> Samples:
    """Convolve with an impulse response, aligned to its direct sound; length and level are kept."""
    size = 1 << (len(samples) + len(response) - 2).bit_length()
    wet = np.fft.irfft(np.fft.rfft(samples, size) * np.fft.rfft(response, size), size)
    direct = int(np.argmax(np.abs(response)))
    wet = wet[direct : direct + len(samples)]
    level = float(np.sqrt(np.mean(samples**2)) / max(float(np.sqrt(np.mean(wet**2))), 1e-9))
    return (wet * level).astype(np.float32)


def limit_band(samples: Samples, low_hz: float, high_hz: float) -> Samples:
    """Keep only ``low_hz`` to ``high_hz`` (soft edges of 10 %), as a telephone line does."""
    spectrum = np.fft.rfft(samples)
    hz = np.fft.rfftfreq(len(samples), 1 / SAMPLE_RATE)
    gain = np.clip((high_hz * 1.05 - hz) / (high_hz * 0.1), 0, 1) * np.clip((hz - low_hz * 0.9) / (low_hz * 0.2), 0, 1)
    return np.asarray(np.fft.irfft(spectrum * gain, len(samples)), dtype=np.float32)


def mulaw_codec(samples: Samples) -> Samples:
    """Through 8-bit mu-law and back (continuous form of ITU-T G.711)."""
    peak = max(float(np.max(np.abs(samples), initial=0.0)), 1e-9)
    x = samples / peak
    compressed = np.sign(x) * np.log1p(255 * np.abs(x)) / np.log(256)
    coded = np.round(compressed * 127) / 127
    return (np.sign(coded) * np.expm1(np.abs(coded) * np.log(256)) / 255 * peak).astype(np.float32)


def random_channel(samples: Samples, rng: np.random.Generator, responses: Sequence[Samples]) -> Samples:
    """A random room (measured or simulated) and, half the time, a narrow band with or without mu-law."""
    if rng.random() < 0.7:
        measured = len(responses) > 0 and rng.random() < 0.4
        samples = reverberate(samples, responses[int(rng.integers(len(responses)))] if measured else simulate_room(rng))
    if rng.random() < 0.5:
        samples = limit_band(samples, rng.uniform(80, 350), rng.uniform(3300, 6500))
        if rng.random() < 0.4:
            samples = mulaw_codec(samples)
    return samples
