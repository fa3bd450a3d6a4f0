"""Any media file in chunks: what comes out against what went in, segments against the whole, and every bad input."""

from __future__ import annotations

import io
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from media_files import KINDS, make, sweep, write

from asr.audio import load_audio, probe, read_media, resampler
from asr.errors import AudioError, UsageError

SECONDS = 6.0
EXACT = ["a.wav", "stereo.flac", "flac.ogg", "flac.mka"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("media")
    for name in KINDS:
        make(path, name, SECONDS)
    return path


class Pipe(io.RawIOBase):
    """A file object that cannot seek, like standard input."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        return self._data.readinto(buffer)


def expected(name: str) -> np.ndarray:
    """The sweep at 16 kHz, mixed down."""
    _, _, channels = KINDS[name]
    return sweep(round(SECONDS * 16000), 16000, channels).mean(axis=0)


@pytest.mark.parametrize("name", KINDS)
def test_what_went_in_comes_out(folder: Path, name: str) -> None:
    """Right rate, right time (a shift of one sample would show), right level, the whole length."""
    got, want = load_audio(folder / name), expected(name)
    assert got.dtype == np.float32 and got.ndim == 1
    if name == "a.aac":  # raw AAC keeps no note of its encoder's delay of 1024 samples
        got = load_audio(folder / name, start_s=1024 / 44100)
    assert 0 <= got.size - want.size < 0.15 * 16000  # frames of the codec
    got, want = got[1600 : want.size - 1600], want[1600:-1600]
    if name in EXACT:
        np.testing.assert_allclose(got, want, atol=2e-4)
    # The encoders of AAC and Vorbis are crude; still no other shift may fit better.
    error = [np.mean((got[40:-40] - np.roll(want, shift)[40:-40]) ** 2) for shift in range(-20, 21)]
    assert np.argmin(error) == 20 and error[20] < 0.02 * np.mean(want**2)


@pytest.mark.parametrize("name", KINDS)
def test_probe(folder: Path, name: str) -> None:
    codec, rate, channels = KINDS[name]
    info = probe(folder / name)
    assert (info.sample_rate, info.channels) == (rate, channels)
    assert info.duration_s is not None and abs(info.duration_s - SECONDS) < (1.0 if name == "a.aac" else 0.2)
    assert info.codec == codec.removeprefix("lib").removesuffix("lame")


@pytest.mark.parametrize("name", KINDS)
def test_segment_is_the_slice_of_the_whole(folder: Path, name: str) -> None:
    whole = load_audio(folder / name)
    # Decoders that start in the middle converge to within rounding (Opus) or add other noise (AAC).
    tolerance = {"a.opus": 2e-5, "a.webm": 2e-5, "a.m4a": 2e-3, "a.mp4": 2e-3, "a.aac": 2e-3}.get(name, 1e-6)
    random = np.random.default_rng(0)
    for start_s in (0.0, 1e-5, *np.arange(0.1, SECONDS - 0.6, 0.4) + random.uniform(0, 0.1, 14)):
        duration_s = random.uniform(0.001, 0.5)
        first, last = round(start_s * 16000), round((start_s + duration_s) * 16000)
        part = load_audio(folder / name, start_s=start_s, duration_s=duration_s)
        assert part.size == max(1, last - first)
        np.testing.assert_allclose(part, whole[first:last], atol=tolerance, err_msg=str(start_s))


@pytest.mark.parametrize("name", ["a.wav", "stereo.flac", "a.mp3", "a.aac", "a.opus", "a.webm"])
def test_pipe_is_the_file(folder: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    whole = load_audio(folder / name)
    got = load_audio(io.BufferedReader(Pipe(data)))
    np.testing.assert_array_equal(got[: whole.size - 200], whole[:-200])  # the end of mp3 is trimmed by a seek
    part = load_audio(io.BufferedReader(Pipe(data)), start_s=3.3, duration_s=1.0)
    np.testing.assert_allclose(part, whole[52800:68800], atol=2e-3)
    np.testing.assert_array_equal(load_audio(io.BytesIO(data)), whole)


@pytest.mark.parametrize("size", [1, 160, 16000, 10**6])
def test_chunks(folder: Path, size: int) -> None:
    source = folder / "stereo.flac"
    chunks = list(read_media(source, start_s=5.5, chunk_samples=size))
    assert all(chunk.size == size for chunk in chunks[:-1]) and 0 < chunks[-1].size <= size
    np.testing.assert_array_equal(np.concatenate(chunks), load_audio(source, start_s=5.5))


def test_channels(folder: Path) -> None:
    left, right = (load_audio(folder / "stereo.flac", channel=c) for c in (0, 1))
    np.testing.assert_allclose(right, left / 2, atol=1e-4)
    np.testing.assert_allclose(load_audio(folder / "stereo.flac"), (left + right) / 2, atol=1e-6)
    for channel in (2, -1):
        with pytest.raises(AudioError, match="2 channels, counted from 0"):
            load_audio(folder / "stereo.flac", channel=channel)
    with pytest.raises(AudioError, match="no channel 1: it has 1 channel,"):
        load_audio(folder / "a.wav", channel=1)


def test_file_and_stream_give_the_same_bits(folder: Path) -> None:
    """One truth: a file is resampled as its samples are when a client sends them."""
    x, rate = soundfile.read(folder / "a.wav", dtype="float32")
    part = resampler(rate)
    y, state = part.step(x, part.begin())
    np.testing.assert_array_equal(load_audio(folder / "a.wav"), np.concatenate([y, part.finish(state)]))
    np.testing.assert_array_equal(load_audio(folder / "a.wav", sample_rate=8000), x)


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"])
@pytest.mark.parametrize("channels", [1, 2, 3])
def test_sample_types(tmp_path: Path, subtype: str, channels: int) -> None:
    x = sweep(4000, 16000, channels).T
    soundfile.write(tmp_path / "x.wav", x, 16000, subtype=subtype)
    exact, _ = soundfile.read(tmp_path / "x.wav", dtype="float32", always_2d=True)
    np.testing.assert_allclose(load_audio(tmp_path / "x.wav"), exact.mean(axis=1), atol=1e-7)
    np.testing.assert_allclose(load_audio(tmp_path / "x.wav", channel=channels - 1), exact[:, -1], atol=1e-7)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 32000, 96000, 192000])
def test_file_rates(tmp_path: Path, rate: int) -> None:
    """Files may have higher rates than streams; they are resampled down."""
    soundfile.write(tmp_path / "x.wav", sweep(rate, rate)[0], rate, subtype="FLOAT")
    got = load_audio(tmp_path / "x.wav")
    assert got.size == 16000
    np.testing.assert_allclose(got[1600:-1600], sweep(16000, 16000)[0][1600:-1600], atol=2e-4)


def test_left_out_silence_is_put_back(tmp_path: Path) -> None:
    """Packets left out of a WebM, as browsers do in silence, leave their time behind."""
    import av

    whole = make(tmp_path, "a.webm", 4.0)
    with av.open(str(whole)) as source, av.open(str(tmp_path / "gap.webm"), "w") as target:
        stream = source.streams.audio[0]
        copy = target.add_stream_from_template(stream)
        for packet in source.demux(stream):
            if packet.dts is not None and not 1000 <= packet.pts < 2000:
                packet.stream = copy
                target.mux(packet)
    got, want = load_audio(tmp_path / "gap.webm"), load_audio(whole)
    assert abs(got.size - want.size) < 320
    assert not got[16800:31500].any()
    np.testing.assert_allclose(got[36000:60000], want[36000:60000], atol=1e-3)
    part = load_audio(tmp_path / "gap.webm", start_s=2.5, duration_s=0.5)
    np.testing.assert_allclose(part, got[40000:48000], atol=1e-3)


def test_long_file_in_flat_memory(tmp_path: Path) -> None:
    """Ten minutes of stereo at 44.1 kHz (106 MB of samples) pass through some MB."""
    with soundfile.SoundFile(tmp_path / "long.flac", "w", 44100, 2) as file:
        block = sweep(441000, 44100, 2).T
        for _ in range(60):
            file.write(block)
    tracemalloc.start()
    samples = 0
    for chunk in read_media(tmp_path / "long.flac"):
        assert chunk.size <= 16000
        assert chunk.base is None or chunk.base.size < 64000  # holding a chunk holds no more than a few
        samples += chunk.size
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert samples == 600 * 16000
    assert peak < 8e6
    part = load_audio(tmp_path / "long.flac", start_s=595.0, duration_s=1.0)
    np.testing.assert_allclose(part, load_audio(tmp_path / "long.flac", start_s=5.0, duration_s=1.0), atol=1e-5)


# --- bad input -----------------------------------------------------------------------------------------------------


def fails(match: str, source: object, **options: object) -> None:
    with pytest.raises(AudioError, match=match) as caught:
        load_audio(source, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_missing_folder_empty(tmp_path: Path) -> None:
    fails("no such file", tmp_path / "none.wav")
    fails("is a folder", tmp_path)
    (tmp_path / "empty.wav").touch()
    fails("is empty", tmp_path / "empty.wav")
    fails("is empty", io.BytesIO(b""))
    fails("is empty", io.BufferedReader(Pipe(b"")))
    with pytest.raises(AudioError, match="no such file"):
        probe(tmp_path / "none.wav")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_not_permitted(tmp_path: Path) -> None:
    (tmp_path / "x.wav").write_bytes(b"RIFF")
    (tmp_path / "x.wav").chmod(0)
    fails("permissions", tmp_path / "x.wav")


def test_zero_samples(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "x.wav", np.zeros(0), 16000)
    fails("holds no sound", tmp_path / "x.wav")


@pytest.mark.parametrize("data", [b"hello\n" * 100, bytes(5000), np.random.default_rng(0).bytes(50000)])
def test_not_media(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.wav").write_bytes(data)
    for source in (tmp_path / "x.wav", io.BytesIO(data)):
        fails("not a media file|no sound|cannot be", source)
    fails("through a pipe|no sound|cannot be", io.BufferedReader(Pipe(data)))


def test_playlists_do_not_open_other_files(folder: Path, tmp_path: Path) -> None:
    other = folder / "a.wav"
    for name, text in {
        "x.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{other}\n#EXT-X-ENDLIST\n",
        "x.ffconcat": f"ffconcat version 1.0\nfile '{other}'\n",
    }.items():
        (tmp_path / name).write_text(text)
        fails("not a media file", tmp_path / name)
    fails("no such file", f"concat:{other}|{other}")
    fails("no such file", "http://127.0.0.1:9/a.wav")


def test_no_sound_stream(tmp_path: Path) -> None:
    import av

    with av.open(str(tmp_path / "x.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(5):
            container.mux(stream.encode(av.VideoFrame(64, 48, "yuv420p")))
        container.mux(stream.encode(None))
    fails("no sound stream", tmp_path / "x.mp4")


@pytest.mark.parametrize("name", ["a.wav", "stereo.flac", "flac.ogg", "a.mp3", "a.opus", "a.webm"])
def test_truncated_gives_what_is_there_and_says_so(folder: Path, tmp_path: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    cut = tmp_path / name
    cut.write_bytes(data[: len(data) * 2 // 3 + 11])
    whole, damage = load_audio(folder / name), []
    got = load_audio(cut, on_damage=damage.append)
    assert len(damage) == 1 and "is truncated" in damage[0] and str(cut) in damage[0]
    assert 2.0 < got.size / 16000 < 4.5
    np.testing.assert_allclose(got[: got.size - 1600], whole[: got.size - 1600], atol=1e-6)
    given = 0
    with pytest.raises(AudioError, match="is truncated"):  # after everything that is there
        for chunk in read_media(cut):
            given += chunk.size
    assert given == got.size
    load_audio(cut, start_s=1.0, duration_s=0.5)  # a segment that is whole
    load_audio(cut, start_s=1.0, duration_s=got.size / 16000 - 1.001)  # also just before the end
    fails("is truncated", cut, start_s=1.0, duration_s=4.9)
    damage.clear()
    load_audio(io.BytesIO(cut.read_bytes()), on_damage=damage.append)
    assert damage and "is truncated" in damage[0]


@pytest.mark.parametrize("name", KINDS)
def test_truncated_within_the_header(folder: Path, name: str) -> None:
    fails("header|no sound|whole copy", io.BytesIO((folder / name).read_bytes()[:40]))


@pytest.mark.parametrize("name", ["a.m4a", "a.mp4"])
def test_truncated_mp4(folder: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes((folder / name).read_bytes()[:20000])  # the index stands at the end
    fails("ends within its header", tmp_path / name)
    fails("through a pipe|as a file", io.BufferedReader(Pipe((folder / name).read_bytes())))


@pytest.mark.parametrize("name", ["stereo.flac", "a.opus", "a.m4a"])
def test_holes_are_reported_and_keep_the_clock(folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    middle = slice(len(data) // 3, len(data) // 2)
    data[middle] = bytes(middle.stop - middle.start)
    damage: list[str] = []
    got, whole = load_audio(io.BytesIO(bytes(data)), on_damage=damage.append), load_audio(folder / name)
    assert len(damage) == 1 and ("missing" in damage[0] or "cannot be decoded" in damage[0])
    assert got.size == whole.size
    np.testing.assert_allclose(got[-16000:], whole[-16000:], atol=2e-3)


@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=10, deadline=None)
@given(st.data())
def test_garbled_bytes_give_audio_or_an_audio_error(folder: Path, name: str, draw: st.DataObject) -> None:
    data = bytearray((folder / name).read_bytes()[:40000])
    for _ in range(draw.draw(st.integers(1, 8))):
        at = draw.draw(st.integers(0, min(len(data) - 9, draw.draw(st.sampled_from([200, 40000])))))
        data[at : at + 8] = draw.draw(st.binary(min_size=8, max_size=8))
    try:
        for chunk in read_media(io.BytesIO(bytes(data)), duration_s=2.0):
            assert np.isfinite(chunk).all()
    except AudioError as error:
        assert "\n" not in str(error)


def test_rates_outside_the_range(tmp_path: Path) -> None:
    for rate in (4000, 7999, 500000):
        soundfile.write(tmp_path / "x.wav", np.zeros(1000), rate)
        fails("outside the range", tmp_path / "x.wav")
    for rate in (4000, 96000):
        with pytest.raises(UsageError, match="choose 8000 to 48000"):
            load_audio(tmp_path / "x.wav", sample_rate=rate)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite(tmp_path: Path, bad: float) -> None:
    x = sweep(16000, 16000)[0]
    x[12000] = bad
    soundfile.write(tmp_path / "x.wav", x, 16000, subtype="FLOAT")
    fails(r"NaN or infinite samples at 0\.750 s", tmp_path / "x.wav")
    assert load_audio(tmp_path / "x.wav", duration_s=0.5).size == 8000


def test_segments_outside_the_file(folder: Path) -> None:
    for name in ("a.wav", "a.opus", "a.mp3"):
        fails("ends before 100 s", folder / name, start_s=100.0)
        fails("before the end of the segment", folder / name, start_s=5.0, duration_s=3.0)
        assert load_audio(folder / name, start_s=5.0, duration_s=1.1).size <= 17600  # rounding is forgiven
    starts = ({"start_s": -1.0}, {"start_s": np.nan})
    for bad in (*starts, {"duration_s": 0.0}, {"duration_s": -2.0}, {"chunk_samples": 0}):
        with pytest.raises(UsageError):
            list(read_media(folder / "a.wav", **bad))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="path or a binary file"):
        load_audio(12)  # type: ignore[arg-type]


def test_the_name_is_not_an_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Odd names are names; a folder can be left before the file is read."""
    monkeypatch.chdir(tmp_path)
    for name in ("pipe:0", "concat:x|y", "http:x.wav", "ä ö%20.wav", "-x.wav"):
        soundfile.write(name, np.full(1600, 0.25), 16000, format="WAV")
        np.testing.assert_allclose(load_audio(name), 0.25)
    assert write(tmp_path / "y.wav", sweep(800, 8000), 8000, "pcm_s16le").exists()
