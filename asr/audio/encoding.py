"""Bytes on the wire <-> float32 samples: ``pcm_s16le``, ``pcm_f32le``, ``mulaw``, ``alaw``, any number of channels.

The decoder takes bytes cut anywhere, also in the middle of a sample or between the channels of one instant. mu-law and
A-law are those of ITU-T G.711 (11/1988): 64 kbit/s of telephone lines, 14 and 13 bits of range, scaled to 16 bits.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from asr.errors import AudioError, StateError, UsageError

SAMPLE_BYTES = {"pcm_s16le": 2, "pcm_f32le": 4, "mulaw": 1, "alaw": 1}
ENCODINGS = tuple(SAMPLE_BYTES)
MAX_CHANNELS = 32

_HEADER = struct.Struct("<4sQ")  # magic, frames
_MAGIC = b"PC01"


@dataclass(frozen=True)
class SampleFormat:
    """What the bytes of a stream mean.

    ``encoding``: one of :data:`ENCODINGS`. ``channels``: interleaved channels. ``channel``: the one to take, counted
    from 0; None mixes all down with equal weights. Raises :class:`UsageError` for anything else.
    """

    encoding: str = "pcm_s16le"
    channels: int = 1
    channel: int | None = None

    def __post_init__(self) -> None:
        if self.encoding not in SAMPLE_BYTES:
            raise UsageError(f"unknown encoding '{self.encoding}': choose one of {', '.join(ENCODINGS)}")
        if not 1 <= self.channels <= MAX_CHANNELS:
            raise UsageError(f"{self.channels} channels are outside the range: choose 1 to {MAX_CHANNELS}")
        if self.channel is not None and not 0 <= self.channel < self.channels:
            last = self.channels - 1
            raise UsageError(f"no channel {self.channel}: choose 0 to {last}, or none to mix all channels down")

    @property
    def frame_bytes(self) -> int:
        """Bytes of one instant: a sample of every channel."""
        return SAMPLE_BYTES[self.encoding] * self.channels


@dataclass(frozen=True)
class DecoderState:
    """``leftover``: bytes of an instant that is not complete yet. ``frames``: instants decoded so far."""

    leftover: bytes = b""
    frames: int = 0

    @property
    def nbytes(self) -> int:
        """Size of the serialised state."""
        return _HEADER.size + len(self.leftover)

    def to_bytes(self) -> bytes:
        """Serialise; :meth:`from_bytes` is the inverse."""
        return _HEADER.pack(_MAGIC, self.frames) + self.leftover

    @staticmethod
    def from_bytes(data: bytes) -> DecoderState:
        """Read a serialised state. Raises :class:`StateError` if the bytes are none."""
        if len(data) < _HEADER.size or not data.startswith(_MAGIC):
            raise StateError("the saved state of the decoder is broken: begin the stream anew")
        return DecoderState(bytes(data[_HEADER.size :]), _HEADER.unpack_from(data)[1])


class SampleDecoder:
    """Decode the bytes of streams of one format. Immutable: one serves any number of streams."""

    def __init__(self, format: SampleFormat) -> None:
        self.format = format

    def begin(self) -> DecoderState:
        """The state of a stream of which nothing has come."""
        return DecoderState()

    def step(self, data: bytes | bytearray | memoryview, state: DecoderState) -> tuple[np.ndarray, DecoderState]:
        """Take any bytes; give all complete samples as (n,) float32 mono with full scale 1.0.

        Raises :class:`AudioError` for NaN or infinite samples, :class:`StateError` for a state of another format.
        """
        frames, state = self.step_channels(data, state)
        if self.format.channel is not None:
            return np.ascontiguousarray(frames[:, self.format.channel]), state
        return (frames[:, 0] if self.format.channels == 1 else frames.mean(axis=1, dtype=np.float32)), state

    def step_channels(
        self, data: bytes | bytearray | memoryview, state: DecoderState
    ) -> tuple[np.ndarray, DecoderState]:
        """As :meth:`step`, but all channels: (n, channels) float32."""
        size = self.format.frame_bytes
        if len(state.leftover) >= size:
            raise StateError("this state of a decoder is of another encoding: use its own")
        joined = state.leftover + bytes(data)
        whole = len(joined) // size * size
        frames = decode(joined[:whole], self.format.encoding).reshape(-1, self.format.channels)
        if self.format.encoding == "pcm_f32le" and not np.isfinite(frames).all():
            at = state.frames + int(np.flatnonzero(~np.isfinite(frames).all(axis=1))[0])
            raise AudioError(f"NaN or infinite sample at sample {at}: send finite samples, little-endian float32")
        return frames, DecoderState(joined[whole:], state.frames + frames.shape[0])

    def finish(self, state: DecoderState) -> int:
        """The number of bytes that are left over if the stream ends here: 0 unless it ends within a sample."""
        return len(state.leftover)


def decode(data: bytes, encoding: str) -> np.ndarray:
    """Whole samples -> (n,) float32, channels still interleaved. Nothing is checked but the encoding."""
    if encoding == "pcm_s16le":
        return np.frombuffer(data, "<i2").astype(np.float32) / np.float32(32768.0)
    if encoding == "pcm_f32le":
        return np.frombuffer(data, "<f4").astype(np.float32)
    if encoding in ("mulaw", "alaw"):
        return g711_table(encoding)[np.frombuffer(data, np.uint8)].astype(np.float32) / np.float32(32768.0)
    raise UsageError(f"unknown encoding '{encoding}': choose one of {', '.join(ENCODINGS)}")


def encode(samples: np.ndarray, encoding: str) -> bytes:
    """(n,) or (n, channels) float samples -> bytes, channels interleaved.

    Integer encodings round to the nearest 16-bit value and clip beyond full scale (1.0). Raises :class:`AudioError`
    for NaN or infinite samples.
    """
    samples = np.asarray(samples, np.float32)
    if not np.isfinite(samples).all():
        raise AudioError("NaN or infinite samples cannot be encoded: give finite samples")
    if encoding == "pcm_f32le":
        return samples.astype("<f4").tobytes()
    if encoding not in SAMPLE_BYTES:
        raise UsageError(f"unknown encoding '{encoding}': choose one of {', '.join(ENCODINGS)}")
    whole = np.clip(np.rint(samples * np.float32(32768.0)), -32768, 32767).astype(np.int16)
    if encoding == "pcm_s16le":
        return whole.astype("<i2").tobytes()
    return _g711_codes(encoding)[whole.astype(np.int32) + 32768].tobytes()


@lru_cache(maxsize=2)
def g711_table(encoding: str) -> np.ndarray:
    """(256,) int16: the output value of every code of "mulaw" or "alaw", at 16 bits (G.711, tables 1a to 2b).

    A code is a sign bit, three bits of segment and four bits of interval; the output is the middle of the interval.
    """
    code = np.arange(256)
    if encoding == "mulaw":
        code = code ^ 0xFF  # all bits are sent inverted
        segment, interval = (code >> 4) & 7, code & 15
        magnitude = (((interval << 3) + 132) << segment) - 132
        negative = code & 0x80 != 0
    else:
        code = code ^ 0x55  # even bits are sent inverted
        segment, interval = (code >> 4) & 7, code & 15
        middle = (interval << 4) + 8
        magnitude = np.where(segment == 0, middle, (middle + 256) << np.maximum(segment - 1, 0))
        negative = code & 0x80 == 0
    return np.where(negative, -magnitude, magnitude).astype(np.int16)


@lru_cache(maxsize=2)
def _g711_codes(encoding: str) -> np.ndarray:
    """(65536,) uint8: the code of every 16-bit value, from -32768 on, by the decision values of G.711."""
    value = np.arange(-32768, 32768)
    if encoding == "mulaw":
        magnitude = np.minimum(np.abs(value), 32635) + 132
        segment = np.floor(np.log2(magnitude)).astype(np.int64) - 7
        interval = (magnitude >> (segment + 3)) & 15
        code = (segment << 4 | interval | np.where(value < 0, 0x80, 0)) ^ 0xFF
    else:
        magnitude = np.where(value >= 0, value, -value - 1)  # zero belongs to the positive side alone
        segment = np.maximum(np.floor(np.log2(np.maximum(magnitude, 1))).astype(np.int64) - 7, 0)
        interval = (magnitude >> np.maximum(segment + 3, 4)) & 15
        code = (segment << 4 | interval | np.where(value >= 0, 0x80, 0)) ^ 0x55
    return code.astype(np.uint8)
