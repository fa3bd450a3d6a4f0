"""The streaming resampler against direct evaluation of its filter, soxr, and pure tones."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.audio import Resampler, ResamplerState, resampler
from asr.audio.resample import PASS_BAND, STOP_DB
from asr.errors import AudioError, StateError

RATES = [8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000]
ODD_RATES = [8001, 17640, 44099]  # the filter has no common matrix: long periods


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, samples).astype(np.float32)


def tone(frequency: float, rate: int, seconds: float = 0.5) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * frequency * np.arange(round(rate * seconds)) / rate)).astype(np.float32)


def at_once(part: Resampler, x: np.ndarray) -> np.ndarray:
    y, state = part.step(x, part.begin())
    return np.concatenate([y, part.finish(state)])


def in_cuts(part: Resampler, x: np.ndarray, cuts: list[int]) -> np.ndarray:
    state, out, at = part.begin(), [], 0
    for size in [*cuts, x.size]:
        y, state = part.step(x[at : at + size], state)
        out.append(y)
        at += size
    return np.concatenate([*out, part.finish(state)])


def reference(x: np.ndarray, in_rate: int, out_rate: int) -> np.ndarray:
    """A plain loop over outputs in float64: the sum of the input times the windowed sinc at its distance."""
    nyquist = 0.5 * min(1.0, out_rate / in_rate)
    cutoff, half = nyquist * (1 + PASS_BAND) / 2, resampler(in_rate, out_rate).half
    beta, y = 0.1102 * (STOP_DB - 8.7), []
    for n in range(math.ceil(x.size * out_rate / in_rate)):
        t = n * in_rate / out_rate
        i = np.arange(math.floor(t) - half, math.floor(t) + half + 1)
        d = i - t
        window = np.i0(beta * np.sqrt(np.clip(1 - (d / half) ** 2, 0, None))) * (abs(d) <= half)
        taps = window * np.sinc(2 * cutoff * d)
        there = (i >= 0) & (i < x.size)
        y.append(np.sum(x[i[there]] * taps[there]) / taps.sum())
    return np.array(y)


@pytest.mark.parametrize("rate", [r for r in [*RATES, 8001, 17640] if r != 16000])
def test_direct_computation(rate: int) -> None:
    x = noise(rate // 20)
    np.testing.assert_allclose(at_once(resampler(rate), x), reference(x, rate, 16000), atol=3e-6)


def test_other_target_rates() -> None:
    x = noise(900)
    for rate in (8000, 22050, 48000):
        np.testing.assert_allclose(at_once(resampler(16000, rate), x), reference(x, 16000, rate), atol=3e-6)


def test_same_rate_is_untouched() -> None:
    x = noise(1000)
    assert (in_cuts(resampler(16000), x, [1, 0, 7, 400]) == x).all()


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([*RATES, 8001]), st.integers(0, 3000), st.lists(st.integers(0, 700), max_size=12))
def test_any_cut_gives_the_same_bits(rate: int, samples: int, cuts: list[int]) -> None:
    x, part = noise(samples, seed=samples), resampler(rate)
    whole = at_once(part, x)
    assert whole.size == math.ceil(samples * 16000 / rate)
    assert (in_cuts(part, x, cuts) == whole).all()


@pytest.mark.parametrize("rate", [8000, 44100, 8001])
def test_one_sample_at_a_time_and_latency(rate: int) -> None:
    part, x = resampler(rate), noise(700)
    whole, state, out = at_once(part, x), part.begin(), []
    for n in range(x.size):
        y, state = part.step(x[n : n + 1], state)
        out.append(y)
        # Everything whose time lies further back than the latency has been given; nothing that lies ahead has.
        behind_s = (n + 1) / rate - part.latency_s
        assert math.floor(behind_s * 16000 - 1e-6) <= state.given <= (n + 1) * 16000 / rate
    assert (np.concatenate([*out, part.finish(state)]) == whole).all()
    assert part.latency_s < 0.0095


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000, 8002])
def test_against_exact_interpolation_and_soxr(rate: int) -> None:
    """Periodic noise below 0.88 of the lower Nyquist frequency: its Fourier series is its exact value at any time."""
    n, m = rate, 16000
    spectrum = np.fft.rfft(noise(n))
    spectrum[round(0.88 * min(rate, 16000) / 2 * n / rate) :] = 0
    x = np.fft.irfft(spectrum, n).astype(np.float32)
    exact = np.fft.irfft(np.resize(np.append(spectrum, np.zeros(m)), m // 2 + 1), m) * m / n
    ours, theirs = at_once(resampler(rate), x), soxr.resample(x, rate, 16000, quality="VHQ")
    assert ours.size == theirs.size == m
    inner = slice(300, -300)  # the filter sees zeros, not the period, beyond the edges
    assert abs(ours - exact)[inner].max() < 5e-6
    assert abs(ours - theirs)[inner].max() < 3e-4


@pytest.mark.parametrize("rate", RATES + ODD_RATES)
def test_tone_keeps_amplitude_and_phase(rate: int) -> None:
    """A tone of 1 kHz comes out as the same tone sampled at 16 kHz: the delay of the filter is compensated."""
    y = at_once(resampler(rate), tone(1000, rate))
    error = y - tone(1000, 16000, 0.6)[: y.size]
    assert abs(error)[200:-200].max() < 1e-5


@pytest.mark.parametrize("rate", [22050, 24000, 32000, 44100, 48000])
def test_above_nyquist_is_suppressed(rate: int) -> None:
    for frequency in (8010, 9000, rate / 2 - 500):
        y = at_once(resampler(rate), tone(frequency, rate))[200:-200]
        assert 20 * np.log10(np.abs(y).max() / 0.5) < -90


@pytest.mark.parametrize("rate", [8000, 11025])
def test_images_are_suppressed(rate: int) -> None:
    """Upsampling leaves nothing above the Nyquist frequency of the input."""
    y = at_once(resampler(rate), tone(rate / 2 - 600, rate))[400:-400]
    spectrum = np.abs(np.fft.rfft(y * np.kaiser(y.size, 20)))
    beyond = spectrum[math.ceil(rate / 2 * y.size / 16000) :]
    assert 20 * np.log10(beyond.max() / spectrum.max()) < -90


def test_constant_stays_constant() -> None:
    for rate in (8000, 44100, 48000):
        y = at_once(resampler(rate), np.full(rate // 4, 0.25, np.float32))[400:-400]
        np.testing.assert_allclose(y, 0.25, atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([8000, 16000, 44100, 48000, 8001]), st.integers(0, 2500))
def test_state_through_bytes_and_look_at_the_end(rate: int, cut: int) -> None:
    x, part = noise(2500), Resampler(rate)
    head, state = part.step(x[:cut], part.begin())
    early_end = part.finish(state)  # a flush does not disturb the stream
    assert (np.concatenate([head, early_end]) == at_once(part, x[:cut])).all()
    data = state.to_bytes()
    assert len(data) == state.nbytes
    rest, state = Resampler(rate).step(x[cut:], ResamplerState.from_bytes(data))
    assert (np.concatenate([head, rest, part.finish(state)]) == at_once(part, x)).all()


def test_state_does_not_grow_and_does_not_share_memory() -> None:
    part = resampler(44100)
    state, sizes, chunk = part.begin(), [], noise(882)
    for _ in range(500):
        _, state = part.step(chunk, state)
        sizes.append(state.nbytes)
    assert max(sizes) < 6000
    before = state.tail.copy()
    chunk[:] = 0
    assert (state.tail == before).all()


def test_an_hour_later_the_clock_is_exact() -> None:
    """Counters are integers: far into a stream the phase is what it was at the start."""
    part, skip = resampler(44100), 44100 * 3600 * 24
    x = noise(4410)
    _, early = part.step(np.zeros(44100, np.float32), part.begin())  # a second of silence stands for a day of it
    shift = skip - 44100
    late = ResamplerState(44100, 16000, skip, early.given + shift // 441 * 160, early.start + shift, early.tail)
    y, state = part.step(x, late)
    y = np.concatenate([y, part.finish(state)])
    assert (y[16000 - early.given :] == at_once(part, x)).all()


def test_bad_input() -> None:
    for rate in (0, 7999, 48001, 96000, 16000.5, "16000"):
        with pytest.raises(AudioError, match="outside the range"):
            Resampler(rate)  # type: ignore[arg-type]
    part = resampler(8000)
    for bad in (np.nan, np.inf, -np.inf):
        x = noise(100)
        x[40] = bad
        with pytest.raises(AudioError, match=r"at 0\.005 s"):
            part.step(x, part.begin())
    with pytest.raises(StateError, match="44100 -> 16000"):
        part.step(noise(10), resampler(44100).begin())
    good = part.step(noise(100), part.begin())[1].to_bytes()
    for data in (b"", good[:-1], good[:-4], b"XXXX" + good[4:], good[:20]):
        with pytest.raises(StateError):
            ResamplerState.from_bytes(data)
    for count, start in ((10**15, 0), (0, 10**15), (-5, 0), (7, 3)):  # would ask for a petabyte of zeros
        with pytest.raises(StateError, match="broken"):
            part.step(noise(10), ResamplerState(8000, 16000, start, count, start, np.zeros(0, np.float32)))


@pytest.mark.slow
def test_speed() -> None:
    """20 ms at a time, 48 kHz: well below one percent of a core (loose, the machine may be busy)."""
    part, chunk = resampler(48000), noise(960)
    state = part.begin()
    start = time.process_time()
    for _ in range(250):
        _, state = part.step(chunk, state)
    assert (time.process_time() - start) / 5.0 < 0.02
