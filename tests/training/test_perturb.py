"""Changes of the waveform against direct computation."""

from __future__ import annotations

import numpy as np
import pytest

from asr.features import SAMPLE_RATE
from asr.training.perturb import (
    change_speed,
    limit_band,
    mulaw_codec,
    random_channel,
    reverberate,
    simulate_room,
)

RNG = np.random.default_rng(3)
NOISE = RNG.normal(0, 0.1, SAMPLE_RATE).astype(np.float32)


def tone(hz: float, seconds: float = 1.0) -> np.ndarray:
    time = np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    return (0.5 * np.sin(2 * np.pi * hz * time)).astype(np.float32)


def peak_hz(samples: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return float(np.argmax(spectrum) * SAMPLE_RATE / len(samples))


def rms(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64))))


@pytest.mark.parametrize("factor", [0.88, 0.9, 1.1, 1.137])
def test_speed_changes_length_and_pitch(factor: float) -> None:
    changed = change_speed(tone(1000), factor)
    assert abs(len(changed) - SAMPLE_RATE / factor) <= 1
    assert abs(peak_hz(changed) - 1000 * factor) < 2
    middle = slice(1000, -1000)
    assert rms(changed[middle]) == pytest.approx(rms(tone(1000)), rel=0.01)


def test_speed_one_is_the_same() -> None:
    assert change_speed(NOISE, 1.0) is NOISE


def test_room_is_a_convolution_that_keeps_length_level_and_alignment() -> None:
    samples = NOISE[:2000]
    response = np.zeros(300, np.float32)
    response[[40, 90, 299]] = [1.0, -0.4, 0.2]  # direct sound after 40 samples
    wet = reverberate(samples, response)
    direct = np.convolve(samples.astype(np.float64), response)[40 : 40 + len(samples)]
    direct *= rms(samples) / rms(direct)
    assert wet.dtype == np.float32
    assert len(wet) == len(samples)
    np.testing.assert_allclose(wet, direct, atol=1e-6)
    assert rms(wet) == pytest.approx(rms(samples), rel=1e-5)
    lags = np.correlate(wet, samples, "full")
    assert int(np.argmax(lags)) == len(samples) - 1  # the loudest path arrives when the dry sound does


def test_room_of_one_echo_less_impulse_changes_nothing() -> None:
    np.testing.assert_allclose(reverberate(NOISE, np.array([1.0], np.float32)), NOISE, atol=1e-6)
    assert not reverberate(np.zeros(100, np.float32), np.array([1.0, 0.5], np.float32)).any()


def test_simulated_rooms_begin_with_the_direct_sound_and_decay() -> None:
    for seed in range(20):
        room = simulate_room(np.random.default_rng(seed))
        assert 0.1 * SAMPLE_RATE - 1 <= len(room) <= 0.6 * SAMPLE_RATE
        assert room[0] == 1.0
        assert np.isfinite(room).all()
        tail = np.sum(room[1:] ** 2)
        assert 10**-1.5 * 0.99 <= tail <= 1.01  # 0 to 15 dB below the direct sound
        half = len(room) // 2
        assert np.sum(room[half:] ** 2) < 0.05 * tail
    assert not np.array_equal(simulate_room(np.random.default_rng(1)), simulate_room(np.random.default_rng(2)))


def test_band_limit_keeps_the_middle_and_takes_the_rest() -> None:
    low, high = 300.0, 3400.0
    for hz, gain in [(100, 0.0), (250, 0.0), (500, 1.0), (1000, 1.0), (3000, 1.0), (3700, 0.0), (6000, 0.0)]:
        limited = limit_band(tone(hz), low, high)
        assert len(limited) == SAMPLE_RATE
        assert rms(limited) == pytest.approx(gain * rms(tone(hz)), abs=2e-3)
    half = limit_band(tone(high), low, high)  # the edge itself stands in the middle of the slope
    assert rms(half) == pytest.approx(0.5 * rms(tone(high)), rel=0.02)


def test_mulaw_is_what_the_formula_says() -> None:
    samples = NOISE[:500]
    peak = float(np.abs(samples).max())
    for x, y in zip(samples.tolist(), mulaw_codec(samples).tolist(), strict=True):
        level = round(np.log(1 + 255 * abs(x / peak)) / np.log(256) * 127) / 127
        assert y == pytest.approx(np.sign(x) * (256**level - 1) / 255 * peak, abs=1e-6)
    error = mulaw_codec(tone(440)) - tone(440)
    assert 10 * np.log10(rms(tone(440)) ** 2 / rms(error) ** 2) > 30  # dB
    assert not mulaw_codec(np.zeros(10, np.float32)).any()


def test_a_random_channel_is_a_function_of_its_seed() -> None:
    responses = [simulate_room(np.random.default_rng(9))]
    outs = [random_channel(NOISE, np.random.default_rng(seed), responses) for seed in range(12)]
    again = [random_channel(NOISE, np.random.default_rng(seed), responses) for seed in range(12)]
    for out, same in zip(outs, again, strict=True):
        assert np.array_equal(out, same)
        assert out.dtype == np.float32
        assert len(out) == len(NOISE)
        assert np.isfinite(out).all()
    assert len({out.tobytes() for out in outs}) > 8
    assert any(np.array_equal(out, NOISE) for out in outs)  # some rows stay as they are
