"""Encodings against direct computation: struct, the decision table of G.711, the decoders of ffmpeg."""

from __future__ import annotations

import io
import struct

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.audio import ENCODINGS, DecoderState, SampleDecoder, SampleFormat, decode, encode
from asr.audio.encoding import SAMPLE_BYTES
from asr.errors import AudioError, StateError, UsageError


def run(decoder: SampleDecoder, pieces: list[bytes]) -> tuple[np.ndarray, int]:
    state, out = decoder.begin(), []
    for piece in pieces:
        y, state = decoder.step(piece, state)
        out.append(y)
    return np.concatenate([*out, np.zeros(0, np.float32)]), decoder.finish(state)


def test_pcm_against_struct() -> None:
    whole = [0, 1, -1, 32767, -32768, 12345]
    np.testing.assert_array_equal(decode(struct.pack("<6h", *whole), "pcm_s16le"), np.array(whole) / 32768.0)
    real = [0.0, 1.0, -1.0, 0.3333333, 1e-30]
    np.testing.assert_array_equal(decode(struct.pack("<5f", *real), "pcm_f32le"), np.array(real, np.float32))


def mulaw_decision(value: int) -> int:
    """The code of a 16-bit value by a plain search through the intervals of G.711, table 2 (14 bits there)."""
    edges = [0, 1]  # decision values x_1, x_2, ...: steps of 2, 4, ... 256, each 16 times but the first: 15 and a half
    for segment in range(8):
        edges += [edges[-1] + (2 << segment) * k for k in range(1, 17 if segment else 16)]
    number = max(n for n, edge in enumerate(edges[:128]) if abs(value) >= 4 * edge)
    return (0x7F if value < 0 else 0xFF) - number


def test_mulaw_by_the_table() -> None:
    values = [*range(-32768, 32768, 97), *range(-140, 140), 32767]
    codes = np.frombuffer(encode(np.array(values) / 32768.0, "mulaw"), np.uint8)
    assert [mulaw_decision(v) for v in values] == codes.tolist()


def alaw_decision(value: int) -> int:
    """The code of a 16-bit value by G.711, table 1 (13 bits there): intervals of 2, 2, 4, ... 128, 16 of each."""
    edges = [0]
    for step in (2, 2, 4, 8, 16, 32, 64, 128):
        edges += [edges[-1] + step * k for k in range(1, 17)]
    size = value if value >= 0 else -value - 1
    number = max(n for n, edge in enumerate(edges[:128]) if size >= 8 * edge)
    return (number | (0x80 if value >= 0 else 0)) ^ 0x55


def test_alaw_by_the_table() -> None:
    values = [*range(-32768, 32768, 97), *range(-140, 140), 32767]
    codes = np.frombuffer(encode(np.array(values) / 32768.0, "alaw"), np.uint8)
    assert [alaw_decision(v) for v in values] == codes.tolist()


@pytest.mark.parametrize(("encoding", "tag"), [("mulaw", 7), ("alaw", 6)])
def test_g711_outputs_are_those_of_ffmpeg(encoding: str, tag: int) -> None:
    codes = bytes(range(256))
    layout = struct.pack("<HHIIHHH", tag, 1, 8000, 8000, 1, 8, 0)
    header = b"RIFF" + struct.pack("<I", 38 + 256) + b"WAVEfmt " + struct.pack("<I", 18) + layout
    with av.open(io.BytesIO(header + b"data" + struct.pack("<I", 256) + codes)) as container:
        theirs = np.concatenate([f.to_ndarray()[0] for f in container.decode(audio=0)])
    np.testing.assert_array_equal(decode(codes, encoding), theirs / 32768.0)


@pytest.mark.parametrize("encoding", ["mulaw", "alaw"])
def test_g711_round_trip(encoding: str) -> None:
    codes = np.arange(256, dtype=np.uint8)
    back = np.frombuffer(encode(decode(codes.tobytes(), encoding), encoding), np.uint8)
    same = codes == back
    assert codes[~same].tolist() == ([0x7F] if encoding == "mulaw" else [])  # the other zero of mu-law
    x = np.linspace(-1, 1, 5000)
    assert np.abs(decode(encode(x, encoding), encoding) - x).max() < 0.02


def test_encode_rounds_and_clips() -> None:
    x = np.array([0.0, 2.0, -2.0, 1.0, 0.4 / 32768, 0.6 / 32768, -0.6 / 32768])
    assert struct.unpack("<7h", encode(x, "pcm_s16le")) == (0, 32767, -32768, 32767, 0, 1, -1)
    stereo = np.array([[0.5, -0.5], [0.25, 0.0]])
    assert struct.unpack("<4f", encode(stereo, "pcm_f32le")) == (0.5, -0.5, 0.25, 0.0)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(ENCODINGS),
    st.integers(1, 3),
    st.integers(0, 40),
    st.lists(st.integers(0, 23), max_size=20),
    st.data(),
)
def test_any_cut(encoding: str, channels: int, frames: int, cuts: list[int], draw: st.DataObject) -> None:
    """Any bytes, any cut, also within samples: the same samples as all at once; the rest is told at the end."""
    x = np.random.default_rng(frames).uniform(-1, 1, (frames, channels))
    extra = draw.draw(st.integers(0, SAMPLE_BYTES[encoding] * channels - 1))
    data = encode(x, encoding) + b"\x01" * extra
    channel = draw.draw(st.sampled_from([None, *range(channels)]))
    decoder = SampleDecoder(SampleFormat(encoding, channels, channel))
    pieces, at = [], 0
    for size in cuts:
        pieces.append(data[at : at + size])
        at += size
    pieces.append(data[at:])
    whole, left = run(decoder, [data])
    assert left == extra
    split, left = run(decoder, pieces)
    assert left == extra
    assert (split == whole).all()
    kept = decode(encode(x, encoding), encoding).reshape(frames, channels)
    np.testing.assert_allclose(whole, kept.mean(axis=1) if channel is None else kept[:, channel], atol=1e-7)


def test_all_channels_and_other_buffers() -> None:
    x = np.random.default_rng(0).uniform(-1, 1, (50, 2)).astype(np.float32)
    decoder = SampleDecoder(SampleFormat("pcm_f32le", 2))
    frames, state = decoder.step_channels(memoryview(bytearray(encode(x, "pcm_f32le"))), decoder.begin())
    np.testing.assert_array_equal(frames, x)
    assert state == DecoderState(b"", 50)


def test_state_through_bytes() -> None:
    data = encode(np.linspace(-1, 1, 21), "pcm_f32le")
    decoder = SampleDecoder(SampleFormat("pcm_f32le"))
    head, state = decoder.step(data[:43], decoder.begin())
    assert decoder.finish(state) == 3
    saved = state.to_bytes()
    assert len(saved) == state.nbytes
    rest, state = decoder.step(data[43:], DecoderState.from_bytes(saved))
    assert (np.concatenate([head, rest]) == decode(data, "pcm_f32le")).all()
    assert state.frames == 21
    for broken in (b"", b"PC01", b"XXXX" + saved[4:]):
        with pytest.raises(StateError):
            DecoderState.from_bytes(broken)
    with pytest.raises(StateError, match="another encoding"):
        SampleDecoder(SampleFormat("pcm_s16le")).step(b"", DecoderState(b"abc", 0))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite(bad: float) -> None:
    decoder = SampleDecoder(SampleFormat("pcm_f32le", 2))
    x = np.zeros(20, np.float32)
    _, state = decoder.step(x.tobytes(), decoder.begin())
    x[7] = bad
    with pytest.raises(AudioError, match="at sample 13:"):
        decoder.step(x.tobytes(), state)
    with pytest.raises(AudioError):
        encode(x, "pcm_s16le")


def test_bad_format() -> None:
    channels = ({"channels": 0}, {"channels": 99}, {"channels": 2, "channel": 2}, {"channel": -1})
    for kwargs in ({"encoding": "mp3"}, *channels):
        with pytest.raises(UsageError, match="choose"):
            SampleFormat(**kwargs)  # type: ignore[arg-type]
    for call in (lambda: decode(b"", "mp3"), lambda: encode(np.zeros(1), "mp3")):
        with pytest.raises(UsageError, match="pcm_s16le"):
            call()
