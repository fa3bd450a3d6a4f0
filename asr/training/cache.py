"""Features of all training audio, computed once and kept on disk.

Every utterance is kept in several *views*: the plain speeds first, then views with a random speed, room and channel.
What can be done on log-mel frames (noise, volume, masks, warping, joining) is left to :mod:`asr.training.batches`, so
that a training process does nothing but train. One shard per recording and set of views; a shard that exists is not
made again, so an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asr.config import require, to_dict
from asr.errors import AsrError, ManifestError
from asr.features import SAMPLE_RATE, FeatureConfig
from asr.training.manifest import Utterance
from asr.training.perturb import Samples, change_speed, random_channel

Frames = NDArray[np.float16]


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
    """Frames of one recording: ``frames`` (total, mels) fp16 memory map; row ``i`` of ``index`` is
    (utterance number in the shard, view, first frame, frame count)."""

    frames: Frames
    index: NDArray[np.int64]
    utterances: tuple[Utterance, ...]


def build(
    utterances: Sequence[Utterance],
    folder: Path,
    features: FeatureConfig,
    views: ViewConfig = PLAIN,
    rooms: Sequence[Path] = (),
    processes: int = 1,
) -> Iterator[Shard]:
    """Shards of all utterances, one per recording, in a fixed order; missing ones are computed.

    ``rooms`` are impulse responses (any media file). Raises ManifestError when audio cannot be read.
    """
    groups: dict[Path, list[Utterance]] = defaultdict(list)
    for utterance in utterances:
        groups[utterance.audio].append(utterance)
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [
        (folder / _key(audio, group, features, views), audio, group, features, views, tuple(rooms))
        for audio, group in groups.items()
    ]
    missing = [job for job in jobs if not job[0].with_suffix(".json").is_file()]
    if processes > 1 and len(missing) > 1:
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            for _ in pool.map(_compute, missing):
                pass
    else:
        for job in missing:
            _compute(job)
    for job in jobs:
        yield _open(job[0], tuple(job[2]))


def load_rooms(table: Path, longest_t60: float = 0.8) -> list[Path]:
    """Impulse responses named by a table with columns path and t60_s, those with a short decay."""
    import csv

    try:
        with table.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
        return [table.parent / r["path"] for r in rows if r["t60_s"] and float(r["t60_s"]) <= longest_t60]
    except (OSError, KeyError, ValueError) as error:
        raise ManifestError(f"cannot read the table of rooms {table}: {error}") from None


def _key(audio: Path, group: Sequence[Utterance], features: FeatureConfig, views: ViewConfig) -> str:
    content = json.dumps(
        [
            str(audio),
            audio.stat().st_size,
            to_dict(features),
            to_dict(views),
            [(u.id, u.start_s, u.duration_s) for u in group],
        ]
    )
    return f"{audio.stem}-{hashlib.sha256(content.encode()).hexdigest()[:16]}"


def _open(stem: Path, utterances: tuple[Utterance, ...]) -> Shard:
    meta = json.loads(stem.with_suffix(".json").read_text(encoding="utf-8"))
    frames: Any = np.load(stem.with_suffix(".npy"), mmap_mode="r")
    return Shard(frames, np.asarray(meta["index"], dtype=np.int64).reshape(-1, 4), utterances)


def _compute(job: tuple[Path, Path, list[Utterance], FeatureConfig, ViewConfig, tuple[Path, ...]]) -> None:
    import torch

    from asr.audio import load_audio
    from asr.features import LogMel

    torch.set_num_threads(1)
    stem, audio, group, features, views, rooms = job
    try:
        samples = load_audio(audio)
        responses = [load_audio(room) for room in rooms] if views.channels else []
    except AsrError as error:
        raise ManifestError(f"{audio}: {error}") from None
    log_mel = LogMel(features)
    index, parts, position = [], [], 0
    for number, utterance in enumerate(group):
        piece = _cut(samples, utterance)
        for view, changed in enumerate(_views(piece, views, responses, f"{utterance.id}")):
            frames = log_mel(torch.from_numpy(changed)[None])[0].numpy().astype(np.float16)
            index.append([number, view, position, len(frames)])
            parts.append(frames)
            position += len(frames)
    temporary = stem.with_suffix(f".{os.getpid()}.tmp.npy")
    np.save(temporary, np.concatenate(parts))
    temporary.replace(stem.with_suffix(".npy"))
    temporary = stem.with_suffix(f".{os.getpid()}.tmp.json")
    temporary.write_text(json.dumps({"index": index}), encoding="utf-8")
    temporary.replace(stem.with_suffix(".json"))  # last: its presence says that the shard is whole


def _cut(samples: Samples, utterance: Utterance) -> Samples:
    start = round(utterance.start_s * SAMPLE_RATE)
    stop = len(samples) if utterance.duration_s is None else start + round(utterance.duration_s * SAMPLE_RATE)
    if start >= len(samples) or stop > len(samples) + SAMPLE_RATE // 10:
        raise ManifestError(
            f"{utterance.id}: {utterance.start_s} s + {utterance.duration_s} s lies beyond the end of "
            f"{utterance.audio} ({len(samples) / SAMPLE_RATE:.2f} s)"
        )
    return samples[start:stop]


def _views(samples: Samples, views: ViewConfig, responses: Sequence[Samples], name: str) -> Iterator[Samples]:
    for speed in views.speeds:
        yield change_speed(samples, speed)
    seed = int.from_bytes(hashlib.sha256(f"{views.seed}:{name}".encode()).digest()[:8], "little")
    rng = np.random.default_rng(seed)
    for _ in range(views.channels):
        yield random_channel(change_speed(samples, round(rng.uniform(0.88, 1.12), 3)), rng, responses)
