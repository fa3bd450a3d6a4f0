"""Batches: every utterance once, right targets, changes within bounds, everything a function of its place."""

from __future__ import annotations

import collections
import dataclasses

import numpy as np
import pytest
import torch
from training_data import MELS, random_shard

from asr.errors import ConfigError, LexiconError, ManifestError, UsageError
from asr.training.batch_source import BatchSource, Place
from asr.training.batches import (
    FRAMES_PER_SECOND,
    NO_AUGMENT,
    AugmentConfig,
    BatchMaker,
    BatchPlan,
    TrainingSet,
    add_power,
    random_filter,
    warp_frequency,
)
from asr.training.cache import Shard
from asr.training.train_config import TrainConfig
from asr.vocabulary import CharacterVocabulary, PhoneVocabulary

JOINING = dataclasses.replace(NO_AUGMENT, join=0.6)


class Letters:
    """Pronounces a word as its letters."""

    def pronounce(self, word: str) -> tuple[tuple[str, ...], ...]:
        if word == "x":
            raise LexiconError("x cannot be pronounced")
        return (tuple(word.upper()),)


@pytest.fixture(scope="module")
def large() -> TrainingSet:
    """A hundred utterances of two shards and three views, with two heads."""
    shards = [random_shard(["ab", "bad cab", "egg"] * 20, 1, 3), random_shard(["face"] * 40, 2, 3, 100, 300)]
    letters = PhoneVocabulary.of(list("ABCDEFGHIJKLMNOPQRSTUVWXYZ"), Letters())
    return TrainingSet(shards, {"characters": CharacterVocabulary(), "phones": letters})


def utterances(plan: BatchPlan, slots: int) -> list[int]:
    return [u for n in range(len(plan)) for slot in range(slots) for row in plan.rows(n, slot) for u, _ in row]


# -- the plan ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("slots", [1, 2, 3, 8])
@pytest.mark.parametrize("augment", [NO_AUGMENT, JOINING], ids=["alone", "joined"])
@pytest.mark.parametrize("fewest_rows", [1, 7])
def test_every_utterance_once_per_epoch_and_none_in_two_slots(
    large: TrainingSet, slots: int, augment: AugmentConfig, fewest_rows: int
) -> None:
    orders = set()
    for epoch in range(4):
        plan = BatchPlan(large, augment, 30.0, 1, epoch, slots, fewest_rows=fewest_rows)
        order = utterances(plan, slots)
        assert sorted(order) == list(range(len(large)))
        orders.add(tuple(order))
    assert len(orders) == 4  # another order in every epoch


def test_corpora_come_as_often_as_they_are_weighted() -> None:
    shards = [random_shard(["ab"] * 50, 1, 2, corpus="read"), random_shard(["bad"] * 50, 2, 2, corpus="spoken")]
    data = TrainingSet(shards, {"characters": CharacterVocabulary()})
    data.balance({})
    assert sorted(utterances(BatchPlan(data, JOINING, 30.0, 1, 0), 1)) == list(range(100))
    data.balance({"read": 0.25, "spoken": 1.5})
    times = [collections.Counter(utterances(BatchPlan(data, JOINING, 30.0, 1, epoch), 1)) for epoch in range(40)]
    assert all(t[u] <= 1 for t in times for u in range(50))
    assert all(1 <= t[u] <= 2 for t in times for u in range(50, 100))
    assert sum(t[u] for t in times for u in range(50)) == pytest.approx(0.25 * 50 * 40, rel=0.15)
    assert sum(t[u] for t in times for u in range(50, 100)) == pytest.approx(1.5 * 50 * 40, rel=0.05)
    assert len({tuple(sorted(t.items())) for t in times}) == 40
    plain = BatchPlan(data, NO_AUGMENT, 30.0, 1, 0, shuffle=False)
    assert sorted(utterances(plain, 1)) == list(range(100))  # what is measured is not weighted
    data.balance({"read": 0.0})
    assert sorted(utterances(BatchPlan(data, NO_AUGMENT, 30.0, 1, 0), 1)) == list(range(50, 100))
    with pytest.raises(UsageError, match="'telephone', which no utterance is of; there are read, spoken"):
        data.balance({"telephone": 2.0})
    with pytest.raises(UsageError, match="leaves no utterance"):
        data.balance({"read": 0.0, "spoken": 0.0})


def test_batches_hold_their_size(large: TrainingSet) -> None:
    plan = BatchPlan(large, JOINING, 20.0, 1, 0)
    for n in range(len(plan)):
        lengths = [sum(large.length(*part) for part in row) for row in plan.rows(n)]
        assert max(lengths) * len(lengths) <= 20 * FRAMES_PER_SECOND
    few = BatchPlan(large, NO_AUGMENT, 2.0, 1, 0, fewest_rows=5)
    assert all(len(few.rows(n)) == 5 for n in range(len(few)))


def test_joined_rows_hold_several_utterances_up_to_the_longest(large: TrainingSet) -> None:
    augment = dataclasses.replace(JOINING, join=1.0, join_longest_s=9.0)
    rows = [row for step in BatchPlan(large, augment, 60.0, 1, 0).steps for batch in step for row in batch]
    counts = collections.Counter(map(len, rows))
    assert max(counts) <= 5
    assert sum(n for size, n in counts.items() if size > 1) > len(rows) / 2
    assert all(sum(large.length(*p) for p in row) <= 9 * FRAMES_PER_SECOND for row in rows if len(row) > 1)


def test_without_shuffling_rows_are_plain_and_sorted_by_length(large: TrainingSet) -> None:
    plan = BatchPlan(large, NO_AUGMENT, 30.0, 1, 0, shuffle=False)
    rows = [row for step in plan.steps for row in step[0]]
    assert all(view == 0 for row in rows for _, view in row)
    lengths = [large.length(*row[0]) for row in rows]
    assert lengths == sorted(lengths)


def test_too_few_rows_for_the_slots_leave_no_step(data: TrainingSet) -> None:
    assert len(BatchPlan(data, NO_AUGMENT, 30.0, 1, 0, slots=17)) == 0
    assert len(BatchPlan(data, NO_AUGMENT, 30.0, 1, 0, slots=16)) == 1


# -- what a batch holds ------------------------------------------------------------------------------------------------
def test_plain_batches_are_padded_frames_with_their_targets(large: TrainingSet) -> None:
    rows = [[(3, 1)], [(70, 2)], [(1, 0)]]
    batch = BatchMaker(large, NO_AUGMENT).make(rows, np.random.default_rng(0))
    assert batch.frames.dtype == torch.float32
    assert batch.frames.shape == (3, int(batch.lengths.max()), MELS)
    for i, ((u, view),) in enumerate(rows):
        expected = large.frames(u, view)
        assert batch.lengths[i] == len(expected)
        np.testing.assert_array_equal(batch.frames[i, : len(expected)].numpy(), expected)
        assert not batch.frames[i, len(expected) :].any()
        assert batch.ids[i] == large.ids[u]
        assert batch.texts[i] == large.texts[u]
    for name, vocabulary in large.heads.items():
        parts = batch.targets[name].split(batch.target_lengths[name].tolist())
        assert [p.tolist() for p in parts] == [vocabulary.encode(t) for t in batch.texts]


def test_joined_rows_have_a_space_between_characters_and_none_between_phones(large: TrainingSet) -> None:
    batch = BatchMaker(large, NO_AUGMENT).make([[(1, 0), (0, 0), (60, 0)]], np.random.default_rng(0))
    characters, phones = large.heads["characters"], large.heads["phones"]
    assert batch.texts == ("bad cab ab face",)
    assert batch.targets["characters"].tolist() == characters.encode("bad cab ab face")
    assert phones.decode(batch.targets["phones"].tolist()) == "B A D C A B A B F A C E"
    pieces = [large.frames(u, 0) for u in (1, 0, 60)]
    gaps = int(batch.lengths[0]) - sum(map(len, pieces))
    assert 2 * 5 <= gaps <= 2 * 52  # between the pieces 0.1 to 1 s each
    found = batch.frames[0].numpy()
    np.testing.assert_array_equal(found[: len(pieces[0])], pieces[0])
    np.testing.assert_array_equal(found[-len(pieces[2]) :], pieces[2])


def test_an_empty_text_joined_to_another_leaves_a_space_that_decoding_drops(data: TrainingSet) -> None:
    empty = data.texts.index("")
    batch = BatchMaker(data, NO_AUGMENT).make([[(empty, 0)], [(empty, 0), (0, 0)]], np.random.default_rng(0))
    assert batch.target_lengths["characters"].tolist() == [0, 3]
    assert data.heads["characters"].decode(batch.targets["characters"].tolist()) == "ab"


def test_rows_of_noise_have_an_empty_target(large: TrainingSet, noises: list[Shard]) -> None:
    maker = BatchMaker(large, dataclasses.replace(NO_AUGMENT, empty=1.0), noises)
    batch = maker.make([[(0, 0)], [(1, 0)]], np.random.default_rng(0))
    assert len(batch.lengths) == 4
    assert batch.texts[2:] == ("", "")
    assert batch.target_lengths["phones"].tolist()[2:] == [0, 0]
    assert int(batch.target_lengths["phones"].sum()) == len(batch.targets["phones"])
    assert batch.lengths[2:].tolist() == [int(batch.lengths[:2].max())] * 2
    assert torch.isfinite(batch.frames).all()
    assert len(BatchMaker(large, maker.augment).make([[(0, 0)]], np.random.default_rng(0)).lengths) == 1  # no sounds


# -- changes -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("snr_db", [-5.0, 0.0, 12.0, 30.0])
def test_add_power_reaches_the_ratio(snr_db: float) -> None:
    rng = np.random.default_rng(1)
    frames = rng.normal(-2, 3, (200, 20)).astype(np.float32)
    noise = rng.normal(4, 1, (200, 20)).astype(np.float32)
    mixed = add_power(frames, noise, snr_db)
    assert mixed.dtype == np.float32
    signal, total = np.exp(frames.astype(np.float64)), np.exp(mixed.astype(np.float64))
    added = total - signal
    assert 10 * np.log10(signal.mean() / added.mean()) == pytest.approx(snr_db, abs=0.05)
    loud = added > 1e-3 * signal  # elsewhere the difference is lost in float32
    shape = (added / np.exp(noise.astype(np.float64)))[loud]
    assert shape.std() / shape.mean() < 0.01  # it is the noise, at one level


def test_masks_stay_within_their_bounds(large: TrainingSet) -> None:
    augment = dataclasses.replace(
        NO_AUGMENT, frequency_masks=1, frequency_mask_bands=3, time_masks=1, time_mask_fraction=0.1
    )
    maker = BatchMaker(large, augment)
    widths = set()
    for seed in range(60):
        batch = maker.make([[(80, 0)]], np.random.default_rng(seed))
        changed = batch.frames[0].numpy() != large.frames(80, 0)
        mean = np.broadcast_to(large.mean, changed.shape)
        np.testing.assert_array_equal(batch.frames[0].numpy()[changed], mean[changed])
        bands, steps = changed.all(0), changed.all(1)
        assert bands.sum() <= 3
        assert steps.sum() <= min(0.1 * len(steps), FRAMES_PER_SECOND / 2)
        for hit in (bands, steps):
            at = np.flatnonzero(hit)
            assert len(at) == 0 or at[-1] - at[0] + 1 == len(at)  # one run
        widths.add((int(bands.sum()), int(steps.sum())))
    assert len(widths) > 20


def test_wide_masks_of_few_bands_are_no_error(data: TrainingSet) -> None:
    maker = BatchMaker(data, dataclasses.replace(NO_AUGMENT, frequency_masks=2, frequency_mask_bands=80))
    for seed in range(10):
        maker.make([[(0, 0)]], np.random.default_rng(seed))


def test_warping_stretches_the_mel_axis() -> None:
    frames = np.arange(40, dtype=np.float32)[None].repeat(3, 0)
    np.testing.assert_allclose(warp_frequency(frames, 1.0), frames)
    for factor in (0.9, 1.1):
        expected = np.minimum(np.arange(40) * factor, 39)
        np.testing.assert_allclose(warp_frequency(frames, factor)[1], expected, rtol=1e-5)


def test_volume_moves_all_frames_alike(large: TrainingSet) -> None:
    maker = BatchMaker(large, dataclasses.replace(NO_AUGMENT, volume_db=(-20.0, 10.0)))
    shifts = []
    for seed in range(30):
        batch = maker.make([[(0, 0)]], np.random.default_rng(seed))
        shift = batch.frames[0].numpy() - large.frames(0, 0)
        assert np.ptp(shift) < 1e-4
        shifts.append(float(shift.mean()) * 10 / np.log(10))
    assert -20 <= min(shifts) < -15
    assert 5 < max(shifts) <= 10


def test_a_random_filter_lifts_and_lowers_bands_alike_over_time(large: TrainingSet) -> None:
    rng = np.random.default_rng(3)
    curves = np.stack([random_filter(80, 6.0, rng) for _ in range(300)]) * np.float32(10 / np.log(10))
    assert curves.shape == (300, 80) and curves.dtype == np.float32
    assert 5.0 < curves.max() <= 6.0 and -6.0 <= curves.min() < -5.0
    bends = (np.abs(np.diff(curves, 2)) > 1e-3).sum(1)
    assert bends.min() >= 1 and bends.max() == 4  # straight lines between three to six bands
    for few in (2, 3, 5):
        assert random_filter(few, 6.0, rng).shape == (few,)
    maker = BatchMaker(large, dataclasses.replace(NO_AUGMENT, filter=1.0))
    added = maker.make([[(0, 0)]], np.random.default_rng(1)).frames[0].numpy() - large.frames(0, 0)
    np.testing.assert_allclose(added, added[:1].repeat(len(added), 0), atol=1e-4)
    assert 0.1 < np.abs(added).max() <= 6.0 * np.log(10) / 10 + 1e-4


def test_padding_is_quiet_and_bounded(large: TrainingSet) -> None:
    maker = BatchMaker(large, dataclasses.replace(NO_AUGMENT, padding=1.0, padding_longest_s=0.5))
    plain = large.frames(80, 0)
    batch = maker.make([[(80, 0)]], np.random.default_rng(0))
    added = int(batch.lengths[0]) - len(plain)
    assert 2 * 6 <= added <= 2 * 26
    start = next(i for i in range(added + 1) if np.array_equal(batch.frames[0, i : i + len(plain)].numpy(), plain))
    head = batch.frames[0, :start].numpy()
    assert 5 < start < added
    assert head.mean() < np.percentile(plain, 12)


def test_all_changes_together_are_a_function_of_the_generator(large: TrainingSet, noises: list[Shard]) -> None:
    augment = AugmentConfig(noise=0.5, babble=0.5, warp=0.5, padding=0.5, empty=0.3, join=0.5)
    maker = BatchMaker(large, augment, noises)
    rows = BatchPlan(large, augment, 60.0, 1, 0).rows(0)
    first, same, other = (maker.make(rows, np.random.default_rng(seed)) for seed in (4, 4, 5))
    assert torch.equal(first.frames, same.frames)
    assert torch.isfinite(first.frames).all()
    assert first.frames.shape != other.frames.shape or not torch.equal(first.frames, other.frames)


def test_impossible_augmentation_is_refused() -> None:
    for changes in (
        {"noise": 1.5},
        {"snr_db": (5.0, 1.0)},
        {"volume_db": (5.0, 1.0)},
        {"filter": 1.5},
        {"filter_db": -1.0},
        {"warp_most": 0.6},
        {"time_mask_fraction": 0.9},
        {"time_masks": -1},
        {"padding_longest_s": 0.01},
        {"join_longest_s": 0.0},
    ):
        with pytest.raises(ConfigError, match=f"augment.*{next(iter(changes))}|masks"):
            AugmentConfig(**changes)  # type: ignore[arg-type]


# -- the data ----------------------------------------------------------------------------------------------------------
def test_statistics_are_those_of_all_frames(large: TrainingSet) -> None:
    frames = np.concatenate([np.asarray(s.frames, np.float64) for s in large.shards])
    mean, deviation = large.statistics
    np.testing.assert_allclose(mean, frames.mean(0), rtol=1e-5)
    np.testing.assert_allclose(deviation, frames.std(0), rtol=1e-4)


def test_utterances_too_short_for_their_text_are_left_out() -> None:
    # 40 frames are 20 steps; "aaaa aaaa aaaa" needs 14 and a blank between equal ones: 23.
    shard = random_shard(["a" * 20, "ab" * 10, "aaaa aaaa aaaa"], shortest=40, longest=41)
    data = TrainingSet([shard], {"characters": CharacterVocabulary()})
    assert data.texts == ["ab" * 10]
    assert data.ids == ["u1"]
    assert data.too_short == 2
    np.testing.assert_array_equal(data.frames(0, 0), shard.frames[40:80].astype(np.float32))


def test_text_outside_the_units_names_the_utterance() -> None:
    with pytest.raises(ManifestError, match=r"utterance u1 of x.wav: character '1' is not among the units"):
        TrainingSet([random_shard(["a", "1"])], {"characters": CharacterVocabulary()})
    with pytest.raises(ManifestError, match=r"utterance u0 of x\.wav: x cannot be pronounced"):
        TrainingSet([random_shard(["x"])], {"phones": PhoneVocabulary.of(["A"], Letters())})


# -- batches by their place --------------------------------------------------------------------------------------------
@pytest.fixture
def sources(large: TrainingSet, noises: list[Shard]) -> dict[int, BatchSource]:
    """Sources of slots 2 and 3 of 4 that make 0, 1, 3 and 40 batches ahead."""
    config = TrainConfig(batch_seconds=20.0)
    maker = BatchMaker(large, config.augment, noises)
    return {ahead: BatchSource(config, large, maker, range(2, 4), 4, ahead) for ahead in (0, 1, 3, 40)}


def test_batches_made_ahead_are_those_made_when_asked_for(sources: dict[int, BatchSource]) -> None:
    steps = [len(sources[0].plan(e)) for e in range(3)]
    places = [Place(e, n, slot) for e in range(2) for n in range(steps[e]) for slot in (2, 3)]
    assert len(places) > 8
    for place in places:
        expected = sources[0].get(place)
        for ahead in (1, 3, 40):
            got = sources[ahead].get(place)
            assert torch.equal(got.frames, expected.frames)
            assert got.ids == expected.ids
    for ahead in (1, 3, 40):
        assert len(sources[ahead]._made) == ahead
        sources[ahead].close()
        assert not sources[ahead]._made
        assert torch.equal(sources[ahead].get(places[0]).frames, sources[0].get(places[0]).frames)  # starts again
        sources[ahead].close()


def test_a_batch_depends_on_seed_epoch_step_and_slot(sources: dict[int, BatchSource], large: TrainingSet) -> None:
    source = sources[0]
    places = [Place(0, 0, 2), Place(0, 0, 3), Place(0, 1, 2), Place(1, 0, 2)]
    frames = [source.get(place).frames.numpy().tobytes() for place in places]
    assert frames == [source.get(place).frames.numpy().tobytes() for place in places]
    assert len(set(frames)) == 4
    other = dataclasses.replace(source.config, seed=2)
    again = BatchSource(other, large, source.maker, range(2, 4), 4).get(places[0])
    assert again.frames.numpy().tobytes() != frames[0]
    rows = [source.plan(0).rows(0, slot) for slot in range(4)]
    assert len({u for batch in rows for row in batch for u, _ in row}) == sum(len(row) for b in rows for row in b)


def test_an_error_in_a_thread_is_an_error_of_the_batch(sources: dict[int, BatchSource]) -> None:
    sources[3].maker.make = None  # type: ignore[method-assign, assignment]
    with pytest.raises(TypeError):
        sources[3].get(Place(0, 0, 2))
    sources[3].close()
