"""asr.training.made_sounds: computed sounds without speech, as frames that a batch can take."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr.features import FeatureConfig
from asr.training.batches import NO_AUGMENT, BatchMaker, TrainingSet
from asr.training.made_sounds import MAKERS, made_sounds

TIME = np.arange(16000 * 2) / 16000


@given(st.sampled_from(sorted(set(MAKERS), key=lambda m: m.__name__)), st.integers(0, 1000))
def test_every_sound_is_finite_and_audible(maker, seed: int) -> None:  # type: ignore[no-untyped-def]
    sound = maker(np.random.default_rng(seed), TIME)
    assert sound.shape == TIME.shape and np.isfinite(sound).all() and np.abs(sound).max() > 0


def test_a_hum_is_a_hum() -> None:
    hum = MAKERS[0](np.random.default_rng(4), TIME)
    spectrum = np.abs(np.fft.rfft(hum * np.hanning(len(hum)))) ** 2
    assert spectrum[: 130 * 30 * 2 + 10].sum() > 0.999 * spectrum.sum()
    assert np.sort(spectrum)[-200:].sum() > 0.98 * spectrum.sum()  # lines, not a band


def test_they_are_the_same_every_time_and_stand_one_after_another() -> None:
    config = FeatureConfig(mels=16)
    shard, again = made_sounds(config, 7, 1.0), made_sounds(config, 7, 1.0)
    assert np.array_equal(shard.frames, again.frames) and len(shard.index) == 7
    assert not np.array_equal(shard.frames, made_sounds(config, 7, 1.0, seed=1).frames)
    assert shard.frames.shape == (7 * 50, 16) and shard.frames.dtype == np.float16
    assert np.array_equal(shard.index[:, 2], 50 * np.arange(7)) and (shard.index[:, 3] == 50).all()
    levels = shard.frames.astype(np.float32).reshape(7, 50, 16).mean(axis=(1, 2))
    assert np.ptp(levels) > 1  # some are loud, some are soft
    assert made_sounds(config, 0).frames.shape == (0, 16)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_empty_rows_are_sounds_or_crowds(data: TrainingSet, share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    augment = dataclasses.replace(NO_AUGMENT, empty=1.0, empty_babble=share)
    maker = BatchMaker(data, augment, [made_sounds(FeatureConfig(mels=len(data.mean)), 6, 2.0)])
    voices: list[tuple[int, int]] = []
    babble = maker._babble

    def counted(count: int, rng: np.random.Generator, fewest: int = 3, most: int = 7):  # type: ignore[no-untyped-def]
        voices.append((fewest, most))
        return babble(count, rng, fewest, most)

    monkeypatch.setattr(maker, "_babble", counted)
    batch = maker.make([[(0, 0)], [(1, 0)]], np.random.default_rng(0))
    assert batch.texts[2:] == ("", "") and int(batch.target_lengths["characters"][2:].sum()) == 0
    assert voices == ([(6, 12)] * 2 if share else [])
