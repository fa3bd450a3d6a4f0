"""asr.features: streaming equals offline for any cutting, and both equal a plain computation frame by frame."""

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tiny_model import babble

from asr.errors import ConfigError, StateError
from asr.features import HOP, SAMPLE_RATE, FeatureConfig, FeatureState, LogMel


def cut(audio: NDArray[np.float32], sizes: list[int]) -> list[NDArray[np.float32]]:
    """``audio`` in pieces of these sizes, over and over."""
    pieces, start, i = [], 0, 0
    while start < len(audio):
        pieces.append(audio[start : start + sizes[i % len(sizes)]])
        start, i = start + sizes[i % len(sizes)], i + 1
    return pieces


def streamed(log_mel: LogMel, pieces: list[NDArray[np.float32]]) -> torch.Tensor:
    state, out = log_mel.begin(), []
    for piece in pieces:
        frames, state = log_mel.step(torch.from_numpy(piece)[None], state)
        out.append(frames)
    out.append(log_mel.end(state)[0])
    return torch.cat(out, dim=1)[0]


def mel(hz: float) -> float:
    """Slaney's scale: linear below 1 kHz (3 mel per 200 Hz), logarithmic above (27 mel per factor 6.4)."""
    return 3 * hz / 200 if hz < 1000 else 15 + 27 * math.log(hz / 1000) / math.log(6.4)


def reference(audio: NDArray[np.float32], config: FeatureConfig) -> NDArray[np.float64]:
    """Every frame by itself: the window that ends with its 20 ms, a Fourier sum, triangles on Slaney's scale."""
    size = 1 << (config.window - 1).bit_length()
    hz = np.arange(size // 2 + 1) * SAMPLE_RATE / size
    grid = np.linspace(mel(config.low_hz), mel(config.high_hz), config.mels + 2)
    corners = [200 * m / 3 if m < 15 else 1000 * 6.4 ** ((m - 15) / 27) for m in grid]
    frames = []
    for frame in range(-(-len(audio) // HOP)):
        stop = (frame + 1) * HOP
        window = [audio[i] if 0 <= i < len(audio) else 0.0 for i in range(stop - config.window, stop)]
        spectrum = np.fft.rfft(np.array(window, np.float64) * np.hanning(config.window), size)
        power = np.abs(spectrum) ** 2
        row = []
        for low, middle, high in zip(corners, corners[1:], corners[2:], strict=False):
            triangle = np.minimum((hz - low) / (middle - low), (high - hz) / (high - middle)).clip(0)
            row.append(math.log(float(power @ triangle) + config.floor))
        frames.append(row)
    return np.array(frames)


@pytest.mark.parametrize("config", [FeatureConfig(), FeatureConfig(mels=16, window_ms=20), FeatureConfig(window_ms=50)])
def test_features_equal_a_plain_computation(config: FeatureConfig) -> None:
    audio = babble(0.33)
    np.testing.assert_allclose(LogMel(config)(torch.from_numpy(audio)[None])[0], reference(audio, config), atol=2e-3)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 3000), st.lists(st.integers(0, 1500), min_size=1, max_size=5).filter(any))
@example(700, [1])
@example(3000, [HOP])
@example(3000, [HOP - 1])
@example(3000, [3000])
@example(0, [1])
def test_any_cutting_gives_the_same_features(length: int, sizes: list[int]) -> None:
    log_mel = LogMel()
    audio = babble(0.2, seed=3)[:length]
    whole = log_mel(torch.from_numpy(audio)[None])[0]
    assert whole.shape == (-(-len(audio) // HOP), 80)
    torch.testing.assert_close(streamed(log_mel, cut(audio, sizes)), whole, atol=1e-4, rtol=1e-5)


def test_a_frame_comes_with_its_last_sample_and_never_changes_after_it() -> None:
    log_mel = LogMel()
    audio = torch.from_numpy(babble(0.1))[None]
    none, state = log_mel.step(audio[:, : HOP - 1], log_mel.begin())
    one, _ = log_mel.step(audio[:, HOP - 1 : HOP], state)
    assert (none.shape[1], one.shape[1]) == (0, 1)
    changed = audio.clone()
    changed[:, 2 * HOP :] = 0.5
    assert torch.equal(log_mel(audio)[:, :2], log_mel(changed)[:, :2])
    assert not torch.equal(log_mel(audio)[:, 2], log_mel(changed)[:, 2])


def test_rows_share_a_step_when_they_wait_for_equally_many_samples() -> None:
    log_mel = LogMel(FeatureConfig(mels=16))
    audio = torch.from_numpy(np.stack([babble(0.1, seed=s) for s in range(3)]))
    _, first = log_mel.step(audio[:1, :100], log_mel.begin())
    _, others = log_mel.step(audio[1:, :100], log_mel.begin(2))
    state = FeatureState.stack([first, others])
    assert len(state) == 3 and state.nbytes == 4 * 3 * (log_mel.config.history + 100)
    frames, _ = log_mel.step(audio[:, 100:], state)
    torch.testing.assert_close(frames, log_mel(audio), atol=1e-4, rtol=1e-5)
    frames, _ = log_mel.step(audio[1:2, 100:], state.rows(1, 2))
    torch.testing.assert_close(frames, log_mel(audio[1:2]), atol=1e-4, rtol=1e-5)
    copy = state.clone()
    copy.samples.zero_()
    assert state.samples.any()
    with pytest.raises(StateError, match="different numbers of pending samples"):
        FeatureState.stack([first, log_mel.begin()])
    with pytest.raises(StateError, match=r"expected \(3, n\) samples, got \(1, 10\)"):
        log_mel.step(torch.zeros(1, 10), state)


def test_the_end_leaves_a_fresh_state() -> None:
    log_mel = LogMel()
    _, state = log_mel.step(torch.ones(1, 330), log_mel.begin())
    last, fresh = log_mel.end(state)
    assert last.shape == (1, 1, 80)
    assert torch.equal(fresh.samples, log_mel.begin().samples)
    assert log_mel.end(fresh)[0].shape == (1, 0, 80)


def test_silence_is_the_floor() -> None:
    frames = LogMel(FeatureConfig(floor=1e-3))(torch.zeros(1, 640))
    torch.testing.assert_close(frames, torch.full((1, 2, 80), math.log(1e-3)))


@pytest.mark.parametrize("changes", [{"mels": 4}, {"window_ms": 10}, {"low_hz": 9000.0}, {"floor": 0.0}])
def test_impossible_configurations(changes: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="features"):
        FeatureConfig(**changes)  # type: ignore[arg-type]


def test_streams_that_bring_different_numbers_of_samples_share_a_step() -> None:
    """Each gives and keeps what it does alone."""
    extract, rng = LogMel(FeatureConfig(mels=16)), np.random.default_rng(3)
    together = [extract.begin() for _ in range(5)]
    alone = [extract.begin() for _ in range(5)]
    for _ in range(6):
        sizes = rng.choice([0, 1, 319, 320, 321, 1600, 5000], 5)
        samples = [torch.from_numpy(rng.normal(size=n).astype(np.float32)) for n in sizes]
        frames, together = extract.step_many(samples, together)
        for i, x in enumerate(samples):
            expected, alone[i] = extract.step(x[None], alone[i])
            torch.testing.assert_close(frames[i], expected[0], atol=1e-5, rtol=1e-5)
            assert torch.equal(together[i].samples, alone[i].samples)
    nothing, _ = extract.step_many([torch.zeros(5)], [extract.begin()])
    assert nothing[0].shape == (0, 16)
