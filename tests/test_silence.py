"""Silence is silent: what is no speech gives no text, streamed through the shipped model."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from asr import Recognizer, Segment
from asr.checkpoint import models_folder
from asr.recognizer import feed_many, finish_many
from asr.results import Result

RATE, SECONDS, CHUNK = 16000, 60, 1600
Audio = NDArray[np.float32]
TIME = np.arange(RATE * SECONDS) / RATE


def at_level(sound: NDArray[np.float64], decibels: float) -> Audio:
    """``sound`` at this RMS level, in dB of full scale; clipped as a converter would."""
    return np.clip(sound * 10 ** (decibels / 20) / np.sqrt(np.mean(sound**2)), -1, 1).astype(np.float32)


def white() -> NDArray[np.float64]:
    return np.random.default_rng(1).normal(size=len(TIME))


def pink() -> NDArray[np.float64]:
    spectrum = np.fft.rfft(white())
    return np.fft.irfft(spectrum / np.sqrt(np.maximum(np.arange(len(spectrum)), 20.0)), len(TIME))


def hum(hertz: float) -> NDArray[np.float64]:
    """A mains hum with its harmonics, those of odd number stronger."""
    parts = [(1.0 if k % 2 else 0.4) / k * np.sin(2 * np.pi * hertz * k * TIME + k) for k in range(1, 21)]
    return np.sum(parts, axis=0)


def chords() -> NDArray[np.float64]:
    """Four chords that change every second, each note with overtones and a struck string's decay."""
    roots = [(57, 60, 64), (53, 57, 60), (48, 52, 55), (55, 59, 62)]
    since, place, sound = TIME % 1.0, TIME.astype(int) % 4, np.zeros(len(TIME))
    for number, notes in enumerate(roots):
        for note in notes:
            hertz = 440 * 2 ** ((note - 69) / 12)
            sound += (place == number) * sum(np.sin(2 * np.pi * k * hertz * TIME) / k**1.5 for k in range(1, 6))
    return sound * np.exp(-2 * since)


def clicks() -> NDArray[np.float64]:
    """Two a second on an average, of some samples each."""
    rng = np.random.default_rng(2)
    sound = np.zeros(len(TIME) + 40)
    for start in rng.integers(0, len(TIME), 2 * SECONDS).tolist():
        sound[start : start + 40] += rng.uniform(0.2, 1.0) * rng.normal(size=40) * np.exp(-np.arange(40) / 8)
    return sound[:-40]


SOUNDS: dict[str, Callable[[], Audio]] = {
    "digital silence": lambda: np.zeros(len(TIME), np.float32),
    "very soft white noise": lambda: at_level(white(), -80),
    "soft white noise": lambda: at_level(white(), -60),
    "white noise": lambda: at_level(white(), -40),
    "loud white noise": lambda: at_level(white(), -15),
    "soft pink noise": lambda: at_level(pink(), -60),
    "pink noise": lambda: at_level(pink(), -30),
    "loud pink noise": lambda: at_level(pink(), -15),
    "hum of 50 Hz": lambda: at_level(hum(50), -30),
    "loud hum of 60 Hz": lambda: at_level(hum(60), -12),
    "chords": lambda: at_level(chords(), -25),
    "clicks": lambda: (0.5 * clicks() / np.abs(clicks()).max()).astype(np.float32),
}


@pytest.fixture(scope="module")
def english() -> Recognizer:
    if not (models_folder() / "en" / "config.json").is_file():
        pytest.skip("models/en is not there: train it, or get it with the repository")
    return Recognizer.load("en", threads=1)


@pytest.fixture(scope="module")
def sounds() -> dict[str, Audio]:
    return {name: make() for name, make in SOUNDS.items()}


@pytest.fixture(scope="module")
def heard(english: Recognizer, sounds: dict[str, Audio]) -> dict[str, str]:
    """The texts of all sounds, each a stream of its own in chunks of 100 ms; together, for the time that it takes."""
    streams = {name: english.stream(partials=False) for name in sounds}
    results: dict[str, list[Result]] = {name: [] for name in sounds}
    for start in range(0, len(TIME), CHUNK):
        pieces = [(streams[name], sound[start : start + CHUNK]) for name, sound in sounds.items()]
        for name, new in zip(sounds, feed_many(pieces), strict=True):
            results[name] += new
    for name, new in zip(sounds, finish_many(list(streams.values())), strict=True):
        results[name] += new
    return {name: " ".join(r.text for r in found if isinstance(r, Segment)) for name, found in results.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", SOUNDS)
def test_a_minute_without_speech_is_no_text(heard: dict[str, str], name: str) -> None:
    assert heard[name] == ""


@pytest.mark.slow
def test_the_sounds_are_what_they_are_called(sounds: dict[str, Audio]) -> None:
    for name, sound in sounds.items():
        assert sound.dtype == np.float32 and len(sound) == RATE * SECONDS and np.abs(sound).max() <= 1.0
        assert (np.abs(sound).max() > 0) == (name != "digital silence")
