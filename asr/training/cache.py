"""Features of all training audio, computed once and kept on disk.

Every utterance is kept in several *views*: the plain speeds first, then views with a random speed, room and channel.
What can be done on log-mel frames (noise, volume, masks, warping, joining) is left to :mod:`asr.training.batches`, so
that a training process does nothing but train. One shard per recording and set of views (short recordings share one);
a shard that exists is not made again, so an interrupted run goes on where it stopped. The name of a shard is a digest
of everything its content depends on, so another configuration never finds it.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asr.config import require, to_dict
from asr.errors import AsrError, ManifestError
from asr.features import SAMPLE_RATE, FeatureConfig
from asr.training.manifest import Utterance, read_table
from asr.training.perturb import Samples, change_speed, random_channel

Frames = NDArray[np.float16]
Group = tuple[Path, tuple[Utterance, ...]]  # a recording and its utterances
# Recordings of fewer than _FEW utterances share shards of about _MANY: a corpus of single-utterance files would
# otherwise need more open files than a process may have.
_FEW = 20
_MANY = 512


@dataclass(frozen=True)
class ViewConfig:
    """Which views of an utterance are kept: one per speed, then ``channels`` with random speed, room and band."""

    speeds: tuple[float, ...] = (1.0, 0.9, 1.1)
    channels: int = 1
    seed: int = 1

    def __post_init__(self) -> None:
        require(len(self.speeds) > 0, "views.speeds needs at least one speed")
        require(all(0.5 <= s <= 2 for s in self.speeds), f"views.speeds must be 0.5 to 2, got {self.speeds}")
        require(0 <= self.channels <= 20, f"views.channels must be 0 to 20, got {self.channels}")

    @property
    def count(self) -> int:
        """Views per utterance."""
        return len(self.speeds) + self.channels


PLAIN = ViewConfig(speeds=(1.0,), channels=0)


@dataclass(frozen=True)
class Shard:
    """Frames of one or some recordings: ``frames`` (total, mels) fp16 memory map; row ``i`` of ``index`` is
    (utterance number in the shard, view, first frame, frame count)."""

    frames: Frames
    index: NDArray[np.int64]
    utterances: tuple[Utterance, ...]


@dataclass(frozen=True)
class _Job:
    """One shard to compute: ``groups`` pairs a recording with its utterances; ``stem`` is the path without ending."""

    stem: Path
    groups: tuple[Group, ...]
    features: FeatureConfig
    views: ViewConfig
    rooms: tuple[Path, ...]

    @property
    def index(self) -> Path:
        return self.stem.with_name(self.stem.name + ".json")

    @property
    def frames(self) -> Path:
        return self.stem.with_name(self.stem.name + ".npy")

    @property
    def utterances(self) -> tuple[Utterance, ...]:
        return tuple(u for _, group in self.groups for u in group)


def build(
    utterances: Sequence[Utterance],
    folder: Path,
    features: FeatureConfig,
    views: ViewConfig = PLAIN,
    rooms: Sequence[Path] = (),
    processes: int = 1,
) -> Iterator[Shard]:
    """Shards of all utterances in a fixed order; missing ones are computed, by ``processes`` processes.

    ``rooms`` are impulse responses (any media file). Several calls may fill one folder at the same time. Raises
    ManifestError when audio cannot be read.
    """
    groups: dict[Path, list[Utterance]] = defaultdict(list)
    for utterance in utterances:
        groups[utterance.audio].append(utterance)
    folder.mkdir(parents=True, exist_ok=True)
    rooms = tuple(rooms) if views.channels else ()
    packed = _pack([(audio, tuple(group)) for audio, group in groups.items()])
    jobs = [_Job(folder / _name(pack, features, views, rooms), pack, features, views, rooms) for pack in packed]
    missing = [job for job in jobs if not (job.index.is_file() and job.frames.is_file())]
    if processes > 1 and len(missing) > 1:
        context = get_context("spawn")  # a fork of a process that has used torch may hang
        with ProcessPoolExecutor(min(processes, len(missing)), context, _one_thread) as pool:
            for _ in pool.map(_compute, missing):
                pass
    else:
        for job in missing:
            _compute(job)
    for job in jobs:
        yield _open(job)


def load_rooms(table: Path, longest_t60: float = 0.8) -> list[Path]:
    """Impulse responses named by a table with columns path and t60_s, those with a short decay."""
    rooms = []
    for line, row in read_table(table, ("path", "t60_s")):
        try:
            if row["t60_s"] and float(row["t60_s"]) <= longest_t60:
                rooms.append(table.parent / row["path"])
        except ValueError:
            raise ManifestError(f"{table}, line {line}: t60_s must be a number of seconds") from None
    return rooms


def cut(samples: Samples, utterance: Utterance) -> Samples:
    """The part of a recording at 16 kHz that is the utterance. Raises ManifestError when it lies beyond the end."""
    start = round(utterance.start_s * SAMPLE_RATE)
    stop = len(samples) if utterance.duration_s is None else start + round(utterance.duration_s * SAMPLE_RATE)
    if start >= len(samples) or stop > len(samples) + SAMPLE_RATE // 10:
        end = "" if utterance.duration_s is None else f" + {utterance.duration_s:g} s"
        raise ManifestError(
            f"{utterance.id}: {utterance.start_s:g} s{end} lies beyond the end of {utterance.audio} "
            f"({len(samples) / SAMPLE_RATE:.2f} s): correct its times in the manifest"
        )
    if stop == start:
        raise ManifestError(f"{utterance.id} of {utterance.audio} is shorter than one sample: remove it")
    return samples[start:stop]


def _pack(groups: Sequence[Group]) -> list[tuple[Group, ...]]:
    """Recordings of one shard each, in order; those of a few utterances are put together with their neighbours."""
    packs: list[tuple[Group, ...]] = []
    small: list[Group] = []
    for group in groups:
        if len(group[1]) < _FEW and sum(len(g) for _, g in small) + len(group[1]) <= _MANY:
            small.append(group)
            continue
        if small:
            packs.append(tuple(small))
        small = []
        if len(group[1]) < _FEW:
            small.append(group)
        else:
            packs.append((group,))
    return [*packs, tuple(small)] if small else packs


def _name(groups: Sequence[Group], features: FeatureConfig, views: ViewConfig, rooms: Sequence[Path]) -> str:
    content = [
        to_dict(features),
        to_dict(views),
        [(str(room), _size(room)) for room in rooms],
        [(str(audio), _size(audio), [(u.id, u.start_s, u.duration_s) for u in group]) for audio, group in groups],
    ]
    return f"{groups[0][0].stem}-{hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]}"


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise ManifestError(f"cannot read {path}: {error.strerror}") from None


def _open(job: _Job) -> Shard:
    try:
        meta = json.loads(job.index.read_text(encoding="utf-8"))
        frames: Any = np.load(job.frames, mmap_mode="r")
        index = np.asarray(meta["index"], dtype=np.int64).reshape(-1, 4)
    except (ValueError, KeyError, TypeError) as error:
        raise ManifestError(f"the cached features {job.frames} are damaged ({error}): delete them") from None
    return Shard(frames, index, job.utterances)


def _compute(job: _Job) -> None:
    import torch

    from asr.audio import load_audio
    from asr.features import LogMel

    log_mel = LogMel(job.features)
    index, parts, position, number = [], [], 0, 0
    try:
        responses = _responses(job.rooms)
        for audio, group in job.groups:
            samples = load_audio(audio)
            for utterance in group:
                for view, changed in enumerate(_views(cut(samples, utterance), job.views, responses, utterance.id)):
                    frames = log_mel(torch.from_numpy(changed)[None])[0].numpy().astype(np.float16)
                    index.append([number, view, position, len(frames)])
                    parts.append(frames)
                    position += len(frames)
                number += 1
    except ManifestError:
        raise
    except AsrError as error:
        raise ManifestError(str(error)) from None
    write_whole(job.frames, lambda temporary: np.save(temporary, np.concatenate(parts)))
    # Last: the presence of both says that the shard is whole.
    write_whole(job.index, lambda temporary: temporary.write_text(json.dumps({"index": index}), encoding="utf-8"))


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file that is whole or absent, also when others write the same one."""
    temporary = path.with_name(f"{path.stem}.{uuid.uuid4().hex[:12]}.tmp{path.suffix}")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@lru_cache(maxsize=1)  # all shards of a build have the same rooms
def _responses(rooms: tuple[Path, ...]) -> list[Samples]:
    from asr.audio import load_audio

    return [load_audio(room) for room in rooms]


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _views(samples: Samples, views: ViewConfig, responses: Sequence[Samples], name: str) -> Iterator[Samples]:
    for speed in views.speeds:
        yield change_speed(samples, speed)
    seed = int.from_bytes(hashlib.sha256(f"{views.seed}:{name}".encode()).digest()[:8], "little")
    rng = np.random.default_rng(seed)
    for _ in range(views.channels):
        yield random_channel(change_speed(samples, round(rng.uniform(0.88, 1.12), 3)), rng, responses)
