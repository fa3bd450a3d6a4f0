"""Batches for training: rows of about equal length, changed at random on log-mel frames.

Everything is a pure function of (seed, epoch, step, slot), so that a resumed run sees what the interrupted one would
have seen, and batches can be made ahead in any order. A *slot* is one of the batches that share an optimiser step:
processes times accumulation. Noise is added as power in the mel domain: the power of a sum of independent signals is
the sum of powers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asr.config import require
from asr.errors import AsrError, ManifestError, UsageError
from asr.features import FRAME_MS
from asr.model import FRAMES_PER_STEP
from asr.training.cache import Shard
from asr.vocabulary import PhoneVocabulary, Vocabulary

Frames = NDArray[np.float32]
FRAMES_PER_SECOND = 1000 // FRAME_MS
_GAP_LEAST_S = 0.1  # the shortest silence put before, between or after utterances
_TIME_MASK_MOST = FRAMES_PER_SECOND // 2  # frames
_CROWD = (6, 12)  # voices of babble in which nothing can be understood
_CUT_FROM = 4  # words; shorter utterances stay whole
_CUT_LEAST = 2  # words of a piece
_NOISE_LEAST = FRAMES_PER_SECOND // 2  # frames; a shorter sound repeated would be a tone


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes of log-mel rows. Probabilities are per row; SNR and volume in dB; lengths in seconds.

    ``docs/training.md`` says what each does.
    """

    noise: float = 0.3
    babble: float = 0.05
    snr_db: tuple[float, float] = (3.0, 30.0)
    volume_db: tuple[float, float] = (-15.0, 8.0)
    filter: float = 0.0
    filter_db: float = 6.0
    warp: float = 0.3
    warp_most: float = 0.1
    frequency_masks: int = 2
    frequency_mask_bands: int = 20
    time_masks: int = 6
    time_mask_fraction: float = 0.04
    cut: float = 0.0
    join: float = 0.15
    join_longest_s: float = 24.0
    padding: float = 0.3
    padding_longest_s: float = 1.0
    empty: float = 0.02
    empty_babble: float = 0.0

    def __post_init__(self) -> None:
        for name in ("noise", "babble", "filter", "warp", "cut", "join", "padding", "empty", "empty_babble"):
            require(0 <= getattr(self, name) <= 1, f"augment.{name} must be 0 to 1, got {getattr(self, name)}")
        require(self.snr_db[0] <= self.snr_db[1], "augment.snr_db must be ascending")
        require(self.volume_db[0] <= self.volume_db[1], "augment.volume_db must be ascending")
        require(self.filter_db >= 0, f"augment.filter_db must not be negative, got {self.filter_db}")
        require(0 <= self.warp_most < 0.5, "augment.warp_most must be 0 to 0.5")
        require(0 <= self.time_mask_fraction <= 0.5, "augment.time_mask_fraction must be 0 to 0.5")
        require(self.join_longest_s > 0, "augment.join_longest_s must be positive")
        require(self.padding_longest_s >= _GAP_LEAST_S, f"augment.padding_longest_s must be at least {_GAP_LEAST_S}")
        require(
            self.frequency_mask_bands >= 0 and self.time_masks >= 0 and self.frequency_masks >= 0,
            "augment: numbers of masks and bands must not be negative",
        )


NO_AUGMENT = AugmentConfig(
    noise=0, babble=0, volume_db=(0.0, 0.0), warp=0, frequency_masks=0, time_masks=0, join=0, padding=0, empty=0
)


@dataclass(frozen=True)
class Batch:
    """``frames`` (rows, time, mels) float32, zero beyond ``lengths`` (rows,) frames; per head the ``targets`` of all
    rows one after another and their ``target_lengths`` (rows,); ``ids`` and ``texts`` of each row (empty: noise)."""

    frames: Tensor
    lengths: Tensor
    targets: dict[str, Tensor]
    target_lengths: dict[str, Tensor]
    ids: tuple[str, ...]
    texts: tuple[str, ...]


class TrainingSet:
    """All utterances with their views and targets. ``statistics``: mean and deviation of the mel bands, each (mels,).

    Raises ManifestError when a text cannot be written in the units of a head.
    """

    def __init__(self, shards: Sequence[Shard], heads: dict[str, Vocabulary]) -> None:
        self.shards = list(shards)
        self.heads = heads
        self.texts: list[str] = []
        self.ids: list[str] = []
        self.corpora: list[str] = []
        self.targets: dict[str, list[NDArray[np.int64]]] = {name: [] for name in heads}
        self.places: list[list[tuple[int, int, int]]] = []  # per utterance and view: shard, first frame, frames
        for s, shard in enumerate(self.shards):
            base = len(self.places)
            for utterance in shard.utterances:
                self.texts.append(utterance.text)
                self.ids.append(utterance.id)
                self.corpora.append(utterance.corpus)
                self.places.append([])
                for name, vocabulary in heads.items():
                    try:
                        encoded = vocabulary.encode(utterance.text)
                    except AsrError as error:
                        raise ManifestError(f"utterance {utterance.id} of {utterance.audio}: {error}") from None
                    self.targets[name].append(np.asarray(encoded, dtype=np.int64))
            for number, _, start, count in shard.index.tolist():
                self.places[base + number].append((s, start, count))
        self.cuts: list[NDArray[np.int64]] = []
        self.cut_share = 0.0
        self.said: dict[str, Sequence[NDArray[np.int64]]] = {}
        self.often: NDArray[np.float64] | None = None
        self.too_short = self._drop_impossible()
        self.statistics = self._statistics()

    def __len__(self) -> int:
        return len(self.places)

    @property
    def mean(self) -> Frames:
        """Mean of every mel band."""
        return self.statistics[0]

    def balance(self, weights: Mapping[str, float]) -> None:
        """How many times in an epoch the utterances of a corpus come, on the mean; once where it is not named.

        Raises UsageError for a corpus that is not there, and when nothing would be left.
        """
        there = sorted(set(self.corpora))
        for name in weights:
            if name not in there:
                raise UsageError(f"corpora names '{name}', which no utterance is of; there are {', '.join(there)}")
        often = np.array([weights.get(corpus, 1.0) for corpus in self.corpora])
        if not often.any():
            raise UsageError("corpora leaves no utterance to train on: give one of them a weight over 0")
        self.often = often if weights else None

    def cut_at(self, cuts: Sequence[NDArray[np.int64]], share: float) -> None:
        """Let ``share`` of the large numbers of views stand for a piece of the utterance: some of its words. ``cuts``:
        as of :func:`asr.training.word_places.word_places`. Views numbered from 0 stay whole."""
        self.cuts, self.cut_share = list(cuts), share

    def pronounce(self, head: str, said: Sequence[NDArray[np.int64]]) -> None:
        """Let the words of utterances, and of their pieces, have these pronunciations, by their numbers, in the targets
        of ``head``; the first ones where there are no numbers, or where the view that is fastest leaves no time."""
        vocabulary = self.heads[head]
        assert isinstance(vocabulary, PhoneVocabulary)
        kept = []
        for u, numbers in enumerate(said):
            units = np.asarray(vocabulary.encode(self.texts[u], numbers.tolist()), dtype=np.int64)
            fits = _steps_needed(units) <= min(view[2] for view in self.places[u]) // FRAMES_PER_STEP
            kept.append(numbers if fits else numbers[:0])
            if fits:
                self.targets[head][u] = units
        self.said[head] = kept

    def frames(self, utterance: int, view: int) -> Frames:
        """A writable float32 copy of one view of an utterance, or of a piece of it."""
        shard, start, count = self._place(utterance, view)
        return np.array(self.shards[shard].frames[start : start + count], dtype=np.float32)

    def length(self, utterance: int, view: int) -> int:
        """Frames of one view of an utterance, or of a piece of it."""
        return self._place(utterance, view)[2]

    def text(self, utterance: int, view: int) -> str:
        """What is said in it."""
        words = self._words(utterance, view)
        return self.texts[utterance] if words is None else self._said(utterance, *words)

    def target(self, head: str, utterance: int, view: int) -> NDArray[np.int64]:
        """The units of what is said in it."""
        words = self._words(utterance, view)
        return self.targets[head][utterance] if words is None else self._units(head, utterance, *words)

    def _said(self, utterance: int, first: int, last: int) -> str:
        return " ".join(self.texts[utterance].split()[first:last])

    def _units(self, head: str, utterance: int, first: int, last: int) -> NDArray[np.int64]:
        text, vocabulary = self._said(utterance, first, last), self.heads[head]
        if head not in self.said:
            return np.asarray(vocabulary.encode(text), dtype=np.int64)
        assert isinstance(vocabulary, PhoneVocabulary)
        return np.asarray(vocabulary.encode(text, self.said[head][utterance][first:last].tolist()), dtype=np.int64)

    def _place(self, utterance: int, view: int) -> tuple[int, int, int]:
        views = self.places[utterance]
        shard, start, count = views[view % len(views)]
        words = self._words(utterance, view)
        if words is None:
            return shard, start, count
        first, last = self._frames_of(utterance, view, *words)
        return shard, start + first, last - first

    def _frames_of(self, utterance: int, view: int, first: int, last: int) -> tuple[int, int]:
        """Where a piece begins and ends in a view, which may be of another speed than the first one."""
        views = self.places[utterance]
        count = views[view % len(views)][2]
        begin, end = (round(int(self.cuts[utterance][word]) * count / views[0][2]) for word in (first, last))
        return begin, min(count, end)

    def _words(self, utterance: int, view: int) -> tuple[int, int] | None:
        """First word and the one after the last of a piece; None: all. The numbers are hidden in the view's."""
        if not self.cut_share or len(self.cuts[utterance]) <= _CUT_FROM:
            return None
        number = view // len(self.places[utterance])
        chance, size, place = number % 1000, number // 1000 % 1000, number // 1_000_000
        if not number or chance >= 1000 * self.cut_share:
            return None
        words = len(self.cuts[utterance]) - 1
        count = _CUT_LEAST + size * (words - _CUT_LEAST) // 1000
        first = place % (words - count + 1)
        begin, end = self._frames_of(utterance, view, first, first + count)
        targets = [self._units(head, utterance, first, first + count) for head in self.heads]
        fits = (end - begin) // FRAMES_PER_STEP >= max(map(_steps_needed, targets))
        return (first, first + count) if fits else None

    def _drop_impossible(self) -> int:
        """Leave out utterances whose units cannot fit their steps under CTC; returns how many."""
        keep = []
        for i, views in enumerate(self.places):
            steps = min(v[2] for v in views) // FRAMES_PER_STEP if views else 0
            needed = max((_steps_needed(t[i]) for t in self.targets.values()), default=0)
            if steps >= max(1, needed):
                keep.append(i)
        dropped = len(self.places) - len(keep)
        self.places = [self.places[i] for i in keep]
        self.texts = [self.texts[i] for i in keep]
        self.ids = [self.ids[i] for i in keep]
        self.corpora = [self.corpora[i] for i in keep]
        self.targets = {name: [t[i] for i in keep] for name, t in self.targets.items()}
        return dropped

    def _statistics(self) -> tuple[Frames, Frames]:
        total, squares, count = 0.0, 0.0, 0
        for shard in self.shards:
            sample = np.asarray(shard.frames[:: max(1, len(shard.frames) // 20_000)], dtype=np.float64)
            total, squares, count = total + sample.sum(0), squares + (sample**2).sum(0), count + len(sample)
        mean = total / max(count, 1)
        deviation = np.sqrt(np.maximum(squares / max(count, 1) - mean**2, 1e-4))
        return np.asarray(mean, dtype=np.float32), np.asarray(deviation, dtype=np.float32)


def _steps_needed(units: NDArray[np.int64]) -> int:
    """Under CTC: one for each unit, and a blank between two that are alike."""
    return len(units) + int(np.sum(units[1:] == units[:-1]))


class BatchPlan:
    """The batches of one epoch: ``rows(step, slot)`` lists rows, a row lists (utterance, view).

    Every utterance comes once in an epoch, or as often as :meth:`TrainingSet.balance` says: a fraction is the chance of
    one time more. (Where ``slots`` batches per step do not come out even, batches are divided;
    only when no batch has a second row to give away are some rows left out.)
    """

    def __init__(
        self,
        data: TrainingSet,
        augment: AugmentConfig,
        batch_seconds: float,
        seed: int,
        epoch: int,
        slots: int = 1,
        shuffle: bool = True,
        fewest_rows: int = 1,
    ) -> None:
        rng = np.random.default_rng([seed, epoch])
        chosen = np.arange(len(data))
        if shuffle and data.often is not None:
            chosen = np.repeat(chosen, np.floor(data.often + rng.random(len(data))).astype(np.int64))
        order = rng.permutation(len(chosen)) if shuffle else chosen
        views = rng.integers(0, 1 << 30, len(chosen)) if shuffle else np.zeros(len(chosen), dtype=np.int64)
        rows = _join_rows(data, [(int(chosen[i]), int(views[i])) for i in order], augment, rng)
        lengths = np.array([sum(data.length(*part) for part in row) for row in rows])
        jitter = rng.uniform(0.95, 1.05, len(rows)) if shuffle else np.ones(len(rows))
        by_length = np.argsort(lengths * jitter, kind="stable")
        batches = _pack(rows, lengths, by_length, int(batch_seconds * FRAMES_PER_SECOND), fewest_rows)
        # Neighbours in length go to the slots of one step, so that no process waits long for another.
        _divide(batches, slots)
        steps = [batches[i : i + slots] for i in range(0, len(batches) - slots + 1, slots)]
        if shuffle:
            steps = [steps[i] for i in rng.permutation(len(steps))]
        self.steps = steps

    def __len__(self) -> int:
        return len(self.steps)

    def rows(self, step: int, slot: int = 0) -> list[list[tuple[int, int]]]:
        """Rows of one batch."""
        return self.steps[step][slot]


def _divide(batches: list[list[list[tuple[int, int]]]], slots: int) -> None:
    """Halve the batches of most rows until their number is a multiple of ``slots``, where that is possible."""
    while len(batches) % slots:
        largest = max(range(len(batches)), key=lambda i: len(batches[i]))
        rows = batches[largest]
        if len(rows) < 2:
            return
        batches[largest : largest + 1] = [rows[: len(rows) // 2], rows[len(rows) // 2 :]]


def _join_rows(
    data: TrainingSet, singles: list[tuple[int, int]], augment: AugmentConfig, rng: np.random.Generator
) -> list[list[tuple[int, int]]]:
    longest = augment.join_longest_s * FRAMES_PER_SECOND
    rows: list[list[tuple[int, int]]] = []
    open_row: list[tuple[int, int]] = []
    wanted = 0
    for single in singles:
        if rng.random() >= augment.join:
            rows.append([single])
            continue
        if open_row and sum(data.length(*p) for p in open_row) + data.length(*single) > longest:
            rows.append(open_row)
            open_row = []
        if not open_row:
            wanted = int(rng.integers(2, 6))
        open_row.append(single)
        if len(open_row) >= wanted:
            rows.append(open_row)
            open_row = []
    return [*rows, open_row] if open_row else rows


def _pack(
    rows: list[list[tuple[int, int]]],
    lengths: NDArray[np.int64],
    order: NDArray[np.int64],
    most_frames: int,
    fewest: int,
) -> list[list[list[tuple[int, int]]]]:
    """Batches of up to ``most_frames`` with padding, or of ``fewest`` rows where these are longer: a recurrent step
    costs nearly the same for few rows as for many."""
    batches: list[list[list[tuple[int, int]]]] = []
    current: list[list[tuple[int, int]]] = []
    longest = 0
    for i in order:
        longest_with = max(longest, int(lengths[i]))
        if len(current) >= fewest and longest_with * (len(current) + 1) > most_frames:
            batches.append(current)
            current, longest_with = [], int(lengths[i])
        current.append(rows[i])
        longest = longest_with
    return [*batches, current] if current else batches


class BatchMaker:
    """Turns planned rows into a :class:`Batch`. ``noises`` are shards of sounds without speech."""

    def __init__(self, data: TrainingSet, augment: AugmentConfig, noises: Sequence[Shard] = ()) -> None:
        self.data = data
        self.augment = augment
        self.noises = [
            (s, start, count) for s in noises for _, _, start, count in s.index.tolist() if count > _NOISE_LEAST
        ]

    def make(self, rows: Sequence[Sequence[tuple[int, int]]], rng: np.random.Generator, mask: bool = True) -> Batch:
        """One batch of changed rows; ``mask``: with SpecAugment."""
        made = [self._row(row, rng, mask) for row in rows]
        if self.augment.empty and self.noises:
            longest = max(len(f) for f, _ in made)
            for _ in range(rng.binomial(len(rows), self.augment.empty)):
                crowd = rng.random() < self.augment.empty_babble
                frames = self._babble(longest, rng, *_CROWD) if crowd else self._noise(longest, rng)
                frames += np.float32(rng.uniform(-6, 2))
                made.append((self.mask(frames, rng) if mask else frames, []))
        lengths = torch.tensor([len(frames) for frames, _ in made])
        frames = np.zeros((len(made), int(lengths.max()), len(self.data.mean)), dtype=np.float32)
        for i, (piece, _) in enumerate(made):
            frames[i, : len(piece)] = piece
        targets, target_lengths = {}, {}
        for name in self.data.targets:
            joined = [self._joined_target(name, parts) for _, parts in made]
            target_lengths[name] = torch.tensor([len(t) for t in joined])
            targets[name] = torch.from_numpy(np.concatenate(joined)) if joined else torch.zeros(0, dtype=torch.int64)
        ids = tuple("+".join(self.data.ids[u] for u, _ in parts) for _, parts in made)
        texts = tuple(" ".join(self.data.text(*part) for part in parts) for _, parts in made)
        return Batch(torch.from_numpy(frames), lengths, targets, target_lengths, ids, texts)

    def _joined_target(self, name: str, parts: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
        between = self.data.heads[name].index.get(" ")  # characters need the space between joined utterances
        pieces: list[NDArray[np.int64]] = []
        for part in parts:
            if pieces and between is not None:
                pieces.append(np.array([between]))
            pieces.append(self.data.target(name, *part))
        return np.concatenate(pieces) if pieces else np.zeros(0, dtype=np.int64)

    def _row(
        self, row: Sequence[tuple[int, int]], rng: np.random.Generator, mask: bool
    ) -> tuple[Frames, list[tuple[int, int]]]:
        a = self.augment
        pieces: list[Frames] = []
        for part in row:
            frames = self.data.frames(*part)
            if rng.random() < a.warp:
                frames = warp_frequency(frames, rng.uniform(1 - a.warp_most, 1 + a.warp_most))
            if pieces:
                pieces.append(self._gap(frames, rng))
            pieces.append(frames)
        if rng.random() < a.padding:
            pieces.insert(0, self._gap(pieces[0], rng))
        if rng.random() < a.padding:
            pieces.append(self._gap(pieces[-1], rng))
        frames = np.concatenate(pieces) if len(pieces) > 1 else pieces[0]
        if a.filter and rng.random() < a.filter:
            frames += random_filter(frames.shape[1], a.filter_db, rng)
        if self.noises and rng.random() < a.noise:
            frames = add_power(frames, self._noise(len(frames), rng), rng.uniform(*a.snr_db))
        if rng.random() < a.babble:
            frames = add_power(frames, self._babble(len(frames), rng), rng.uniform(max(a.snr_db[0], 5), a.snr_db[1]))
        frames += np.float32(rng.uniform(*a.volume_db) * np.log(10) / 10)
        return self.mask(frames, rng) if mask else frames, list(row)

    def _gap(self, frames: Frames, rng: np.random.Generator) -> Frames:
        """Frames of silence that sound like the quietest parts of an utterance."""
        count = int(rng.uniform(_GAP_LEAST_S, self.augment.padding_longest_s) * FRAMES_PER_SECOND) + 1
        quiet = np.percentile(frames, 5, axis=0)
        return (quiet + 0.4 * rng.standard_normal((count, frames.shape[1]))).astype(np.float32)

    def _noise(self, count: int, rng: np.random.Generator) -> Frames:
        shard, start, available = self.noises[rng.integers(len(self.noises))]
        offset = int(rng.integers(0, max(1, available - count)))
        piece = np.array(shard.frames[start + offset : start + min(available, offset + count)], dtype=np.float32)
        return np.resize(piece, (count, piece.shape[1]))

    def _babble(self, count: int, rng: np.random.Generator, fewest: int = 3, most: int = 7) -> Frames:
        """Several other utterances at once."""
        mixed: Frames | None = None
        for _ in range(int(rng.integers(fewest, most + 1))):
            frames = self.data.frames(int(rng.integers(len(self.data))), 0)
            frames = np.resize(frames, (count, frames.shape[1]))
            frames = np.roll(frames, int(rng.integers(count)), axis=0)
            mixed = frames if mixed is None else np.logaddexp(mixed, frames)
        assert mixed is not None
        return mixed

    def mask(self, frames: Frames, rng: np.random.Generator) -> Frames:
        """SpecAugment (Park et al. 2019) with the mean as filling, in place."""
        a = self.augment
        bands = frames.shape[1]
        for _ in range(a.frequency_masks):
            width = int(rng.integers(0, min(a.frequency_mask_bands, bands) + 1))
            first = int(rng.integers(0, bands - width + 1))
            frames[:, first : first + width] = self.data.mean[first : first + width]
        most = int(len(frames) * a.time_mask_fraction)
        for _ in range(a.time_masks):
            width = int(rng.integers(0, min(most, _TIME_MASK_MOST) + 1))
            first = int(rng.integers(0, len(frames) - width + 1))
            frames[first : first + width] = self.data.mean
        return frames


def warp_frequency(frames: Frames, factor: float) -> Frames:
    """Stretch the mel axis by ``factor``, as another length of vocal tract does (Jaitly and Hinton 2013)."""
    bands = frames.shape[1]
    source = np.clip(np.arange(bands) * factor, 0, bands - 1)
    low = np.minimum(source.astype(np.int64), bands - 2)
    weight = (source - low).astype(np.float32)
    return frames[:, low] * (1 - weight) + frames[:, low + 1] * weight


def random_filter(bands: int, most_db: float, rng: np.random.Generator) -> Frames:
    """What a filter adds to the log power of the mel bands, (bands,): straight lines between three to six random bands,
    each at most ``most_db`` up or down, as another microphone does (linear FilterAugment, Nam et al. 2022)."""
    count = min(int(rng.integers(3, 7)), bands)
    inner = np.sort(rng.choice(np.arange(1, bands - 1), count - 2, replace=False))
    gains = rng.uniform(-most_db, most_db, count) * np.log(10) / 10
    return np.interp(np.arange(bands), [0, *inner, bands - 1], gains).astype(np.float32)


def add_power(frames: Frames, noise: Frames, snr_db: float) -> Frames:
    """``frames`` with ``noise`` (same shape, log power) at a signal-to-noise ratio of ``snr_db`` over the whole row."""
    signal = np.log(np.mean(np.exp(frames)))
    level = np.log(np.mean(np.exp(noise)))
    gain = np.float32(signal - level - snr_db * np.log(10) / 10)
    return np.logaddexp(frames, noise + gain).astype(np.float32)
