"""Any media file people have -> chunks of float32 mono at one rate, never whole in memory.

PyAV (the libraries of ffmpeg) demuxes and decodes; format conversion and mixing are numpy, resampling
is that of the streams (:mod:`asr.audio.resample`).

Time 0 is the first sound sample that a decoder gives when it decodes the file from its beginning (encoder delay, such
as the pre-skip of Ogg Opus, is already removed). Silence that a container leaves out (discontinuous transmission,
damaged packets) is put back, so that a sample's index is its time.

A segment (``start_s``, ``duration_s``) holds the same samples as the like slice of the whole file. Where time stamps
after a seek can be trusted (wav, flac, mp4, WebM, Ogg Opus) the reader seeks to a point well before the segment,
decodes, and drops by time stamp. Where only those of packets read from the beginning can be trusted (mp3, raw AAC,
pipes) the packets before the segment are skipped undecoded. In all others (avi, asf, ...) they are decoded.

Damage: a file that ends before its own header says or without its end mark, that has holes, or packets which cannot be
decoded, still gives all the audio that is there. After the last chunk the damage is reported: to ``on_damage`` if given
or else as :class:`AudioError`. A segment that is whole is given without complaint, whatever the rest of the file is.
What states no length (pipes, raw AAC, mp3 without an information frame) cannot be told from a shorter recording when it
is cut off.

Full scale is 1.0. Float files may exceed it and resampling may overshoot it slightly; nothing is clipped.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from asr.audio.resample import MAX_RATE, MIN_RATE, SAMPLE_RATE, Resampler, resampler
from asr.audio.truncation import cut_off
from asr.errors import AudioError, UsageError

if TYPE_CHECKING:  # PyAV takes a tenth of a second to import: only when a file is opened
    import av

Media = str | os.PathLike[str] | IO[bytes]

MIN_FILE_RATE, MAX_FILE_RATE = MIN_RATE, 384000  # above 48 kHz nothing is lost by resampling down

PREROLL_S = 1.0  # decoded before a segment and dropped: Opus wants 80 ms to converge, mp3 ten frames of reservoir
GAP_S = 0.05  # time stamps jump by more than this: sound is missing there; less is jitter and rounding
MAX_GAP_S = 600.0  # time stamps jump by more than this: the time stamps are broken
SHORT_S = 0.25  # a file that ends earlier than its header says by more than this is truncated

# Containers that may be opened. Not among them: playlists (hls, concat, dash), which name other files and addresses.
CONTAINERS = (
    "wav,w64,rf64,aiff,au,caf,flac,ogg,mp3,mp2,aac,latm,mov,mp4,m4a,3gp,matroska,webm,avi,asf,flv,mpeg,mpegts,amr,"
    "amrnb,amrwb,ape,wv,tta,ac3,eac3,dts,oma,voc,gsm,nut,tak,mpc,mpc8,dsf,rm,spdif,nsv,sox,nist"
)
PLAIN = {"wav", "w64", "aiff", "au", "caf"}  # seeking is exact if they hold PCM
# Matroska rounds time stamps to milliseconds. Frames stand on multiples of so many samples, which gives them back:
# 2.5 ms of Opus at 48 kHz (RFC 6716, section 2.1.4), half a frame of mp3, a frame of AAC. FLAC has its own block size.
FRAME_GRID = {"opus": 120, "mp3": 576, "aac": 1024}
MAX_ROUNDING_S = 0.0015  # of Matroska's time stamps: of the frame and of the origin
NO_HOLES = {"ogg", "flac"}  # others may leave out silence; in these a jump of time stamps is damage
STATES_LENGTH = {"wav", "w64", "aiff", "caf", "flac", "mov"}  # duration is a number in the header, no estimate


@dataclass(frozen=True)
class MediaInfo:
    """What a media file says of its first sound stream. ``duration_s`` is None where it is not stated."""

    duration_s: float | None
    sample_rate: int
    channels: int
    codec: str


def probe(source: Media) -> MediaInfo:
    """The length, rate, channels and codec of ``source``, from its headers. Raises :class:`AudioError`."""
    with _open(source) as sound:
        return MediaInfo(sound.duration_s, sound.rate, sound.channels, sound.codec)


def load_audio(
    source: Media,
    sample_rate: int = SAMPLE_RATE,
    channel: int | None = None,
    start_s: float = 0.0,
    duration_s: float | None = None,
    on_damage: Callable[[str], None] | None = None,
) -> np.ndarray:
    """All of ``source``, or a segment of it, as one array: (samples,) float32. See :func:`read_media`."""
    chunks = list(read_media(source, sample_rate, channel, start_s, duration_s, on_damage=on_damage))
    return np.concatenate(chunks)


def read_media(
    source: Media,
    sample_rate: int = SAMPLE_RATE,
    channel: int | None = None,
    start_s: float = 0.0,
    duration_s: float | None = None,
    chunk_samples: int = SAMPLE_RATE,
    on_damage: Callable[[str], None] | None = None,
) -> Iterator[np.ndarray]:
    """Decode ``source`` in chunks.

    ``source``: a path, or a binary file object, also one that cannot seek (standard input).
    ``sample_rate``: of the result, 8000 to 48000 Hz. ``channel``: counted from 0; None mixes all channels down.
    ``start_s``, ``duration_s``: a segment in seconds; sample n of the result is at time ``start_s + n / sample_rate``.
    ``on_damage``: called with one line if the file is damaged, after all its audio has been given.

    Yields (chunk_samples,) float32, the last one shorter; at least one sample in all.
    Raises :class:`AudioError` (at the first step for files that cannot be opened): missing, a folder, empty, not
    media, no sound stream, a rate outside 8 to 384 kHz, no such channel, NaN or infinite samples, a segment outside
    the file; and for damage, at the end, unless ``on_damage`` is given. Raises :class:`UsageError` for bad arguments.
    """
    if not MIN_RATE <= sample_rate <= MAX_RATE:
        raise UsageError(f"sample rate {sample_rate} Hz is outside the range: choose {MIN_RATE} to {MAX_RATE} Hz")
    if not (math.isfinite(start_s) and start_s >= 0.0):
        raise UsageError(f"start of a segment must be 0 s or later, not {start_s}")
    if duration_s is not None and not (math.isfinite(duration_s) and duration_s > 0.0):
        raise UsageError(f"duration of a segment must be more than 0 s, not {duration_s}")
    if chunk_samples < 1:
        raise UsageError(f"chunks must have one sample or more, not {chunk_samples}")
    first = round(start_s * sample_rate)
    last = None if duration_s is None else max(first + 1, round((start_s + duration_s) * sample_rate))
    with _open(source) as sound:
        yield from _rechunk(_segment(sound, sample_rate, channel, first, last), chunk_samples)
        if sound.damage:
            message = f"{sound.name}: {'; '.join(sound.damage)}: get a whole copy of the file"
            if on_damage is None:
                raise AudioError(message)
            on_damage(message)


# --- opening -----------------------------------------------------------------------------------------------------


@dataclass
class _Sound:
    """An open container and its sound stream. ``damage`` collects what was found wrong while reading."""

    name: str
    container: av.container.InputContainer
    stream: av.AudioStream
    source: str | IO[bytes]
    seekable: bool
    rate: int
    channels: int
    origin: int | None = None  # time stamp of time 0, in units of the stream's time base
    phase: int = 0  # samples in the first frame, where a part may have been skipped: where the grid of frames stands
    wanted: float = math.inf  # samples from here on are asked for by the resampling filter alone
    samples: int = 0  # decoded up to here
    damage: list[str] = field(default_factory=list)

    @property
    def format(self) -> str:
        """The short name of the container format."""
        return str(self.container.format.name).split(",")[0]

    @property
    def codec(self) -> str:
        """The name of the codec, whatever decodes it: "libopus" is "opus"."""
        return str(self.stream.codec_context.codec.canonical_name)

    @property
    def seeks_exactly(self) -> bool:
        """Whether time stamps after a seek are true. In Ogg they are wrong by some packets for all but Opus."""
        if not self.seekable:
            return False
        if self.format in PLAIN:
            return self.codec.startswith("pcm_")
        if self.format == "matroska":
            return self.codec == "flac" or self.codec in FRAME_GRID
        return self.format in ("flac", "mov") or (self.format == "ogg" and self.codec == "opus")

    @property
    def counts_exactly(self) -> bool:
        """Whether the time stamps of packets are true when all are read from the beginning."""
        if self.format in PLAIN:
            return self.codec.startswith("pcm_")
        return self.format in ("mp3", "aac", "flac", "mov", "ogg")

    @property
    def duration_s(self) -> float | None:
        """Seconds, as stated by the headers or estimated by the demuxer."""
        if self.stream.duration is not None and self.stream.time_base is not None:
            return float(self.stream.duration * self.stream.time_base)
        return None if self.container.duration is None else self.container.duration / 1e6

    @property
    def stated_samples(self) -> int | None:
        """The number of samples that the header promises; None where there is no promise."""
        alone = len(self.container.streams) == 1
        if self.seekable and (self.format in STATES_LENGTH or (self.format == "matroska" and alone)):
            return None if self.duration_s is None else round(self.duration_s * self.rate)
        return None


@contextmanager
def _open(source: Media) -> Iterator[_Sound]:
    """Open the best sound stream of ``source``; all that can be wrong becomes an :class:`AudioError`."""
    import av

    name, handle, seekable = _checked(source)
    options = {"protocol_whitelist": "file,pipe", "format_whitelist": CONTAINERS}
    try:
        container = av.open(handle, "r", options=options)
    except (av.FFmpegError, OSError, ValueError, UnicodeError) as error:
        raise AudioError(_why_not_media(name, error, seekable)) from error
    with container:
        try:
            stream = container.streams.best("audio")
        except av.FFmpegError:
            stream = None
        if not isinstance(stream, av.AudioStream):
            raise AudioError(f"{name}: has no sound stream: give a file with sound")
        context = stream.codec_context
        rate, channels = context.sample_rate or 0, context.channels or 0
        if not MIN_FILE_RATE <= rate <= MAX_FILE_RATE:
            range_text = f"{MIN_FILE_RATE} to {MAX_FILE_RATE} Hz"
            raise AudioError(f"{name}: sample rate {rate} Hz is outside the range {range_text}: resample the file")
        if channels < 1:
            raise AudioError(f"{name}: its sound stream cannot be decoded: convert the file to wav or flac")
        file = os.fspath(source) if isinstance(source, str | os.PathLike) else source
        yield _Sound(name, container, stream, file, seekable, rate, channels)


def _checked(source: Media) -> tuple[str, Any, bool]:
    """(name for messages, what av.open takes, whether it can seek) of a path or file object."""
    if not isinstance(source, str | os.PathLike):
        if not hasattr(source, "read"):
            raise UsageError(f"cannot read audio from {type(source).__name__}: give a path or a binary file object")
        name = getattr(source, "name", None)
        seekable = bool(source.seekable()) if hasattr(source, "seekable") else hasattr(source, "seek")
        name = name if isinstance(name, str) else "audio data"
        if seekable:
            if source.seek(0, os.SEEK_END) == 0:
                raise AudioError(f"{name}: is empty (0 bytes): get a whole copy of the file")
            source.seek(0)
        return name, source, seekable
    path = Path(source)
    if path.is_dir():
        raise AudioError(f"{path}: is a folder: give the files inside it")
    if not path.exists():
        raise AudioError(f"{path}: no such file: check the name")
    if not os.access(path, os.R_OK):
        raise AudioError(f"{path}: may not be read: check its permissions")
    if path.is_file() and path.stat().st_size == 0:
        raise AudioError(f"{path}: is empty (0 bytes): get a whole copy of the file")
    # The prefix keeps a file called "concat:..." or "http:..." from being taken for an address.
    return str(path), f"file:{path}", path.is_file()


def _why_not_media(name: str, error: Exception, seekable: bool) -> str:
    if isinstance(error, EOFError):
        return f"{name}: is empty or ends within its header: get a whole copy of the file"
    if isinstance(error, PermissionError):
        return f"{name}: may not be read: check its permissions"
    if not seekable:
        what = "is empty, ends within its header, or is not media that can be read through a pipe"
        return f"{name}: {what}: a pipe takes wav, flac, mp3, ogg and webm; give others as a file"
    return f"{name}: is not a media file that can be read, or ends within its header: convert it to wav or flac"


# --- decoding ----------------------------------------------------------------------------------------------------


def _segment(
    sound: _Sound, sample_rate: int, channel: int | None, first: int, last: int | None
) -> Iterator[np.ndarray]:
    """Output samples ``first`` to ``last`` (None: the end), both counted at ``sample_rate`` from time 0."""
    if channel is not None and not 0 <= channel < sound.channels:
        known = f"it has {sound.channels} channel{'s' if sound.channels > 1 else ''}, counted from 0"
        raise AudioError(f"{sound.name}: has no channel {channel}: {known}")
    rate = sound.rate
    converter = resampler(rate, sample_rate, MAX_FILE_RATE)
    margin = converter.half + 1
    # The first input sample must stand exactly on an output sample.
    begin = max(0, first * rate // sample_rate - margin) // converter.down * converter.down
    end = None
    if last is not None:
        sound.wanted = last * rate / sample_rate
        end = math.ceil(sound.wanted) + margin
    drop = first - begin // converter.down * converter.up
    left = None if last is None else last - first
    given = 0
    for block in _resampled(_mono(sound, channel, begin, end), converter):
        block, drop = block[drop:], max(0, drop - block.size)
        if left is not None:
            block = block[: left - given]
        if block.size:
            given += block.size
            yield block
    if left is None or given < left:
        _find_truncation(sound)
    if not given:
        if first:
            raise AudioError(f"{sound.name}: ends before {first / sample_rate:g} s: choose an earlier start")
        if not sound.seekable:
            raise AudioError(f"{sound.name}: gives no sound through a pipe: give it as a file")
        reason = f" and {'; '.join(sound.damage)}" if sound.damage else ""
        raise AudioError(f"{sound.name}: holds no sound (0 samples){reason}: get a whole copy of the file")
    if left is not None and left - given > SHORT_S * sample_rate and not sound.damage:
        sound.damage.append(f"ends {(left - given) / sample_rate:.2f} s before the end of the segment")


def _resampled(blocks: Iterator[np.ndarray], converter: Resampler) -> Iterator[np.ndarray]:
    """Mono blocks at the new rate, gathered to a third of a second: decoders give some milliseconds at a time."""
    state = converter.begin()
    for block in _rechunk(blocks, converter.in_rate // 3):
        y, state = converter.step(block, state)
        yield y
    yield converter.finish(state)


def _mono(sound: _Sound, channel: int | None, begin: int, end: int | None) -> Iterator[np.ndarray]:
    """Samples ``begin`` to ``end`` of the file at its own rate, mixed down, with left-out silence put back."""
    position: int | None = None  # of the next sample
    for stamp, samples in _decoded(sound, begin):
        if position is None:
            position = stamp
        gap = stamp - position
        if GAP_S * sound.rate < gap <= MAX_GAP_S * sound.rate:
            for start in range(0, gap, sound.rate):
                piece = np.zeros(min(sound.rate, gap - start), np.float32)
                yield from _cut(piece, position + start, begin, end)
            if sound.format in NO_HOLES and position >= begin:
                sound.damage.append(f"{gap / sound.rate:.2f} s are missing at {position / sound.rate:.2f} s")
            position += gap
        if end is not None and position >= end:
            return
        mono = samples.mean(axis=0) if channel is None else samples[min(channel, samples.shape[0] - 1)]
        if not np.isfinite(mono).all():
            at = (position + int(np.flatnonzero(~np.isfinite(mono))[0])) / sound.rate
            raise AudioError(f"{sound.name}: has NaN or infinite samples at {at:.3f} s: export the file again")
        yield from _cut(mono, position, begin, end)
        position += mono.size
        sound.samples = position


def _find_truncation(sound: _Sound) -> None:
    """Note it as damage if a file that has given its last sample should be longer."""
    stated = sound.stated_samples
    if stated is not None and stated - sound.samples > SHORT_S * sound.rate:
        is_s, should_s = sound.samples / sound.rate, stated / sound.rate
        sound.damage.append(f"is truncated: {is_s:.2f} s of the {should_s:.2f} s that its header states are there")
    elif sound.seekable:
        if isinstance(sound.source, str):
            with open(sound.source, "rb") as file:
                found = cut_off(file)
        else:
            found = cut_off(sound.source)
        if found:
            sound.damage.append(found)


def _cut(samples: np.ndarray, position: int, begin: int, end: int | None) -> Iterator[np.ndarray]:
    """The part of ``samples``, which start at ``position``, that lies within ``begin`` to ``end``."""
    stop = samples.size if end is None else end - position
    part = samples[max(0, begin - position) : max(0, stop)]
    if part.size:
        yield np.ascontiguousarray(part, dtype=np.float32)


def _decoded(sound: _Sound, begin: int) -> Iterator[tuple[int, np.ndarray]]:
    """(position of the first sample, (channels, samples) float32) of all frames, from some way before ``begin`` on."""
    early = begin - math.ceil(PREROLL_S * sound.rate)
    if early > 0 and sound.seeks_exactly:
        if next(_frames(sound, begin), None) is None:  # finds out the origin of time
            return
        if _seek(sound, early):
            frames = _frames(sound, begin, sought=True)
            head = next(frames, None)
            if head is not None and head[0] <= begin:
                yield head
                yield from frames
                return
        if not _seek(sound, 0):  # landed too late and cannot go back
            raise AudioError(f"{sound.name}: cannot be searched for a segment: convert it to flac")
        sound.damage.clear()
        yield from _frames(sound, begin, skip_until=early if sound.counts_exactly else 0)
    elif early > 0 and sound.counts_exactly:
        sound.origin = sound.stream.start_time
        yield from _frames(sound, begin, skip_until=early)
    else:
        yield from _frames(sound, begin)


def _seek(sound: _Sound, position: int) -> bool:
    import av

    stamp = (sound.origin or 0) + position / sound.rate / float(sound.stream.time_base or 1)
    try:
        sound.container.seek(math.floor(stamp), stream=sound.stream, backward=True)
    except (av.FFmpegError, OSError):
        return False
    return True


def _position(sound: _Sound, stamp: int) -> int:
    """The sample that a time stamp stands for."""
    if stamp == sound.origin:
        return 0  # off the grid where a part of the first frame is skipped
    position = (stamp - (sound.origin or 0)) * float(sound.stream.time_base or 1) * sound.rate
    grid = sound.phase if sound.codec == "flac" else FRAME_GRID.get(sound.codec, 0)
    if sound.format == "matroska" and grid:
        on_grid = round((position - sound.phase) / grid) * grid + sound.phase
        if abs(on_grid - position) <= MAX_ROUNDING_S * sound.rate:
            return on_grid
    return round(position)


def _frames(sound: _Sound, begin: int, skip_until: int = 0, sought: bool = False) -> Iterator[tuple[int, np.ndarray]]:
    """Decode on from where the container stands; packets that end before ``skip_until`` are not decoded.

    The first time stamp seen from the beginning on is time 0. Packets that cannot be decoded count as damage if they
    lie in the segment: just after a seek they are normal.
    """
    import av

    position = begin if sought else skip_until  # where a frame without time stamp is taken to be
    broken = 0
    try:
        for packet in sound.container.demux(sound.stream):
            if skip_until and packet.pts is not None:
                if sound.origin is None:
                    sound.origin = packet.pts
                if _position(sound, packet.pts + (packet.duration or 0)) <= skip_until:
                    continue
                skip_until = 0
            try:
                frames = packet.decode()
            except (av.InvalidDataError, av.PatchWelcomeError, av.BugError):
                broken += begin <= position < sound.wanted
                continue
            for frame in frames:
                if not frame.samples:
                    continue
                if frame.sample_rate != sound.rate:
                    change = f"{sound.rate} to {frame.sample_rate} Hz"
                    raise AudioError(f"{sound.name}: changes its sample rate ({change}): convert it to wav or flac")
                if frame.pts is not None:
                    if sound.origin is None:
                        sound.origin, sound.phase = frame.pts, frame.samples
                    position = _position(sound, frame.pts)
                early = max(0, -position)  # a decoder that was sent back to the beginning gives the pre-skip too
                if early < frame.samples:
                    yield position + early, _samples(sound, frame)[:, early:]
                position += frame.samples
    except (av.FFmpegError, OSError) as error:
        sound.damage.append(f"cannot be read on after {position / sound.rate:.2f} s ({_short(error)})")
    if broken:
        sound.damage.append(f"{broken} packet{'s' if broken > 1 else ''} cannot be decoded")


def _samples(sound: _Sound, frame: av.AudioFrame) -> np.ndarray:
    """(channels, samples) float32 with full scale 1.0 of one decoded frame."""
    try:
        data = frame.to_ndarray()
    except ValueError as error:
        kind = f"samples of type {frame.format.name} are not supported"
        raise AudioError(f"{sound.name}: {kind}: convert it to wav or flac") from error
    if not frame.format.is_planar:
        data = data.reshape(-1, data.size // frame.samples).T
    if data.dtype == np.uint8:
        return (data.astype(np.float32) - 128.0) / 128.0
    if data.dtype.kind == "i":
        return data.astype(np.float32) * np.float32(2.0 ** (1 - 8 * data.dtype.itemsize))
    return data.astype(np.float32, copy=False)


def _short(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error).splitlines()[0]


def _rechunk(blocks: Iterator[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """The same samples in chunks of ``size``, the last one shorter."""
    held: list[np.ndarray] = []
    count = 0
    for block in blocks:
        held.append(block)
        count += block.size
        if count >= size:
            whole = np.concatenate(held)
            for start in range(0, count - size + 1, size):
                yield whole[start : start + size]
            rest = whole[count - count % size :].copy()
            held, count = [rest], rest.size
    if count:
        yield np.concatenate(held)
