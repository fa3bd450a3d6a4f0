"""Cached features: what lies on disk is what direct computation gives, and nothing stale is found."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from asr.errors import ManifestError
from asr.features import SAMPLE_RATE, FeatureConfig, LogMel
from asr.training import cache
from asr.training.cache import PLAIN, Shard, ViewConfig, build, cut, load_rooms
from asr.training.manifest import Utterance
from asr.training.perturb import change_speed

FEATURES = FeatureConfig(mels=8)
VIEWS = ViewConfig(speeds=(1.0, 0.9), channels=1)


@pytest.fixture
def utterances(tmp_path: Path) -> list[Utterance]:
    """Three utterances of two recordings, the second with dots in its name."""
    rng = np.random.default_rng(0)
    files = [tmp_path / "one.wav", tmp_path / "two.b.c.wav"]
    for file in files:
        soundfile.write(file, rng.normal(0, 0.1, 2 * SAMPLE_RATE), SAMPLE_RATE, subtype="FLOAT")
    return [
        Utterance("a", files[0], 0.0, 0.75, "a"),
        Utterance("b", files[1], 0.0, None, "b"),
        Utterance("c", files[0], 1.0, 0.5, "c"),
    ]


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the shards that are computed rather than found."""
    names: list[str] = []
    compute = cache._compute

    def note(job: cache._Job) -> None:
        names.append(job.stem.name)
        compute(job)

    monkeypatch.setattr(cache, "_compute", note)
    return names


def rows(shards: list[Shard]) -> dict[tuple[str, int], np.ndarray]:
    """Frames by (utterance id, view)."""
    return {
        (shard.utterances[number].id, view): np.array(shard.frames[first : first + count])
        for shard in shards
        for number, view, first, count in shard.index.tolist()
    }


def test_shards_are_what_direct_computation_gives(utterances: list[Utterance], tmp_path: Path) -> None:
    found = rows(list(build(utterances, tmp_path / "cache", FEATURES, VIEWS)))
    assert set(found) == {(name, view) for name in "abc" for view in range(3)}
    log_mel = LogMel(FEATURES)
    for utterance in utterances:
        samples, _ = soundfile.read(utterance.audio, dtype="float32")
        start = int(utterance.start_s * SAMPLE_RATE)
        stop = None if utterance.duration_s is None else start + int(utterance.duration_s * SAMPLE_RATE)
        for view, speed in enumerate(VIEWS.speeds):
            direct = log_mel(torch.from_numpy(change_speed(samples[start:stop], speed))[None])[0].numpy()
            assert found[utterance.id, view].dtype == np.float16
            np.testing.assert_allclose(found[utterance.id, view], direct, rtol=2e-3, atol=2e-3)
        changed = found[utterance.id, 2]
        assert 0.88 * len(direct) * 0.9 < len(changed) < len(direct) * 1.02
        assert np.isfinite(changed).all()


def test_order_is_that_of_the_recordings_and_shards_are_found_again(
    utterances: list[Utterance], tmp_path: Path, computed: list[str]
) -> None:
    first = list(build(utterances, tmp_path / "cache", FEATURES, VIEWS))
    assert [u.id for shard in first for u in shard.utterances] == ["a", "c", "b"]
    assert len(computed) == 1  # recordings of a few utterances share a shard
    second = list(build(utterances, tmp_path / "cache", FEATURES, VIEWS))
    assert len(computed) == 1
    for key, frames in rows(first).items():
        assert np.array_equal(frames, rows(second)[key])
    relabelled = [dataclasses.replace(u, text="other") for u in utterances]
    shard = next(build(relabelled, tmp_path / "cache", FEATURES, VIEWS))
    assert len(computed) == 1  # texts are no part of the features
    assert shard.utterances[0].text == "other"


@pytest.mark.parametrize(
    ("features", "views", "seen"),
    [
        (FeatureConfig(mels=12), VIEWS, 1),
        (FEATURES, dataclasses.replace(VIEWS, speeds=(1.0, 1.1)), 1),
        (FEATURES, dataclasses.replace(VIEWS, channels=2), 1),
        (FEATURES, dataclasses.replace(VIEWS, seed=2), 1),
        (FEATURES, VIEWS, 0),
    ],
)
def test_another_configuration_finds_no_stale_shard(
    features: FeatureConfig,
    views: ViewConfig,
    seen: int,
    utterances: list[Utterance],
    tmp_path: Path,
    computed: list[str],
) -> None:
    list(build(utterances[:1], tmp_path / "cache", FEATURES, VIEWS))
    (shard,) = build(utterances[:1], tmp_path / "cache", features, views)
    assert len(computed) == 1 + seen
    assert len(set(computed)) == 1 + seen
    assert shard.frames.shape[1] == features.mels
    assert len(shard.index) == views.count


def test_other_times_audio_or_rooms_find_no_stale_shard(
    utterances: list[Utterance], tmp_path: Path, computed: list[str]
) -> None:
    a = utterances[0]
    list(build([a], tmp_path / "cache", FEATURES, VIEWS))
    list(build([dataclasses.replace(a, duration_s=0.5)], tmp_path / "cache", FEATURES, VIEWS))
    room = tmp_path / "room.wav"
    soundfile.write(room, np.array([1.0, 0.5]), SAMPLE_RATE, subtype="FLOAT")
    list(build([a], tmp_path / "cache", FEATURES, VIEWS, [room]))
    soundfile.write(a.audio, np.zeros(SAMPLE_RATE), SAMPLE_RATE, subtype="FLOAT")
    list(build([a], tmp_path / "cache", FEATURES, VIEWS))
    assert len(set(computed)) == 4
    list(build([a], tmp_path / "cache", FEATURES, PLAIN))
    list(build([a], tmp_path / "cache", FEATURES, PLAIN, [room]))  # plain views hear no room
    assert len(computed) == 5


def test_an_interrupted_build_goes_on_where_it_stopped(
    utterances: list[Utterance], tmp_path: Path, computed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_FEW", 1)  # one shard per recording
    save = np.save

    def interrupted(path: Path, array: np.ndarray) -> None:
        if "two" in path.name:
            path.write_bytes(b"half a file")
            raise KeyboardInterrupt
        save(path, array)

    monkeypatch.setattr(np, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(build(utterances, tmp_path / "cache", FEATURES, PLAIN))
    assert len(computed) == 2
    assert len(list((tmp_path / "cache").iterdir())) == 2  # one whole shard of two files, nothing half-written
    monkeypatch.setattr(np, "save", save)
    shards = list(build(utterances, tmp_path / "cache", FEATURES, PLAIN))
    assert len(computed) == 3
    assert computed[1] == computed[2]
    assert set(rows(shards)) == {(name, 0) for name in "abc"}


def test_a_shard_with_a_file_missing_is_made_again_and_a_damaged_one_is_named(
    utterances: list[Utterance], tmp_path: Path, computed: list[str]
) -> None:
    folder = tmp_path / "cache"
    list(build(utterances, folder, FEATURES))
    (npy,) = folder.glob("*.npy")
    npy.unlink()
    list(build(utterances, folder, FEATURES))
    assert len(computed) == 2
    npy.write_bytes(b"no array")
    with pytest.raises(ManifestError, match=r"cached features .*\.npy are damaged .*: delete them"):
        list(build(utterances, folder, FEATURES))


def test_several_may_fill_one_folder_at_a_time(utterances: list[Utterance], tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    results: list[list[Shard]] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(list(build(utterances, folder, FEATURES, VIEWS)))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(list(folder.iterdir())) == 2
    for shards in results:
        for key, frames in rows(shards).items():
            assert np.array_equal(frames, rows(results[0])[key])


@pytest.mark.slow
def test_processes_give_what_one_gives(
    utterances: list[Utterance], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "_FEW", 1)
    alone = rows(list(build(utterances, tmp_path / "alone", FEATURES, VIEWS)))
    together = rows(list(build(utterances, tmp_path / "together", FEATURES, VIEWS, processes=2)))
    assert alone.keys() == together.keys()
    for key, frames in alone.items():
        assert np.array_equal(frames, together[key])


def test_small_recordings_share_shards() -> None:
    def group(name: str, count: int) -> cache.Group:
        path = Path(f"{name}.wav")
        return path, tuple(Utterance(f"{name}{i}", path, 0.0, None, "") for i in range(count))

    groups = [group("a", 3), group("b", 19), group("big", 20), *(group(f"s{i}", 1) for i in range(1000)), group("z", 9)]
    packs = cache._pack(groups)
    assert [g for pack in packs for g in pack] == groups  # in order, nothing lost
    assert [len(pack) for pack in packs] == [2, 1, 512, 489]


def test_times_beyond_the_end(utterances: list[Utterance], tmp_path: Path) -> None:
    late = dataclasses.replace(utterances[0], start_s=1.5, duration_s=0.7)
    with pytest.raises(
        ManifestError, match=r"a: 1.5 s \+ 0.7 s lies beyond the end of .*one\.wav \(2\.00 s\): correct"
    ):
        list(build([late], tmp_path / "cache", FEATURES))
    with pytest.raises(ManifestError, match="lies beyond the end"):
        cut(np.zeros(10, np.float32), dataclasses.replace(late, duration_s=None))
    with pytest.raises(ManifestError, match="shorter than one sample"):
        cut(np.zeros(10, np.float32), dataclasses.replace(late, start_s=0.0, duration_s=1e-6))
    rounded = dataclasses.replace(late, start_s=1.5, duration_s=0.55)  # tables round their times
    assert len(cut(np.zeros(2 * SAMPLE_RATE, np.float32), rounded)) == SAMPLE_RATE // 2


def test_audio_that_cannot_be_read(utterances: list[Utterance], tmp_path: Path) -> None:
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"this is no sound at all" * 10)
    with pytest.raises(ManifestError, match=r"bad\.wav") as caught:
        list(build([dataclasses.replace(utterances[0], audio=bad)], tmp_path / "cache", FEATURES))
    assert "\n" not in str(caught.value)
    with pytest.raises(ManifestError, match=r"cannot read .*none\.wav"):
        list(build([dataclasses.replace(utterances[0], audio=tmp_path / "none.wav")], tmp_path / "cache", FEATURES))


def test_rooms_are_those_of_a_short_decay(tmp_path: Path) -> None:
    table = tmp_path / "rooms.tsv"
    table.write_text("path\tt60_s\na.flac\t0.3\nb.flac\t1.5\nc.flac\t\nd.flac\t0.8\n")
    assert load_rooms(table) == [tmp_path / "a.flac", tmp_path / "d.flac"]
    table.write_text("path\tt60_s\na.flac\tlong\n")
    with pytest.raises(ManifestError, match="line 2: t60_s must be a number"):
        load_rooms(table)
    table.write_text("file\n")
    with pytest.raises(ManifestError, match="no column 'path' and 't60_s'"):
        load_rooms(table)
