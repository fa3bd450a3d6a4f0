"""``asr stream`` and the client without asyncio, against a server in another thread."""

import asyncio
import io
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from serving import RATE, offline, serving, speech

from asr import cli
from asr.audio.encoding import encode
from asr.errors import AsrError, StateError
from client import Segment
from client.sources import Playback, open_pipe, open_sound
from client.sync import connect


@pytest.fixture(scope="module")
def server(tiny_path: Path) -> Iterator[str]:
    """A server with a loop and a thread of its own: its address."""
    started: asyncio.Future[Any] = SimpleNamespace()  # type: ignore[assignment]
    up = threading.Event()

    async def main() -> None:
        async with serving(tiny_path) as made:
            started.port, started.loop, started.stop = made.port, asyncio.get_running_loop(), asyncio.Event()  # type: ignore[attr-defined]
            up.set()
            await started.stop.wait()  # type: ignore[attr-defined]

    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    assert up.wait(60)
    yield f"ws://127.0.0.1:{started.port}"  # type: ignore[attr-defined]
    started.loop.call_soon_threadsafe(started.stop.set)  # type: ignore[attr-defined]
    thread.join(20)


def wav(pcm: bytes, rate: int = RATE, tag: int = 1, bits: int = 16, channels: int = 1, extra: bytes = b"") -> bytes:
    """As arecord writes it into a pipe: the lengths mean nothing."""
    form = struct.pack("<HHIIHH", tag, channels, rate, rate * channels * bits // 8, channels * bits // 8, bits)
    return (b"RIFF" + struct.pack("<I", 0xFFFFFFFF) + b"WAVE" + extra + b"fmt " + struct.pack("<I", 16) + form
            + b"data" + struct.pack("<I", 0x80000000) + pcm)  # fmt: skip


def pipe(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BufferedReader(io.BytesIO(data))))  # type: ignore[arg-type]


# --- the client without asyncio


def test_sending_then_reading(server: str, tiny: Any) -> None:
    pcm = speech(4, seed=3)
    with connect(server) as stream:
        stream.send(pcm)
        assert stream.position == pytest.approx(4.0)
        stream.eof()
        segments = [r for r in stream if isinstance(r, Segment)]
        assert " ".join(s.text for s in segments) == offline(tiny, pcm) == stream.transcript().text
        assert stream.done is not None and stream.reconnects == 0 and stream.lost_seconds == 0


def test_flush_configure_finish(server: str, tiny: Any) -> None:
    pcm = speech(3, seed=4)
    with connect(server, hotwords=["stone"]) as stream:
        assert stream.ready is not None and stream.ready.model["name"] == "tiny"
        assert stream.configure(hotwords=[])["hotwords"] == []
        stream.send(pcm)
        last = stream.flush()
        assert " ".join([s.text for s in stream.transcript().segments] + [s.text for s in last]) == offline(tiny, pcm)
        assert stream.finish().text == offline(tiny, pcm)
        with pytest.raises(StateError):
            stream.send(pcm)
    with pytest.raises(StateError, match="open"):
        stream.flush()


def test_sending_and_reading_in_two_threads(server: str, tiny: Any) -> None:
    pcm = speech(4, seed=5)
    with connect(server) as stream:

        def send() -> None:
            for at in range(0, len(pcm), 640):
                stream.send(pcm[at : at + 640])
            stream.eof()

        thread = threading.Thread(target=send)
        thread.start()
        assert " ".join(r.text for r in stream if isinstance(r, Segment)) == offline(tiny, pcm)
        thread.join(20)


def test_closing_wakes_those_who_wait(server: str) -> None:
    with connect(server) as stream:
        found: list[Any] = []

        def read() -> None:
            try:
                found.extend(stream)
            except AsrError as error:
                found.append(error)

        thread = threading.Thread(target=read)
        thread.start()
    thread.join(20)
    assert not thread.is_alive() and not any(isinstance(r, Segment) for r in found)


def test_a_server_that_is_not_there() -> None:
    with pytest.raises(AsrError, match="cannot connect"), connect("ws://127.0.0.1:9"):
        pass


# --- asr stream


def test_a_file_gives_the_text_of_asr_transcribe(
    server: str, clips: dict[Path, str], tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = next(iter(clips))
    assert cli.main(["transcribe", str(file), "--model", str(tiny_path), "--quiet", "-f", "srt"]) == 0
    expected = capsys.readouterr().out
    out = tmp_path / "a.srt"
    assert cli.main(["stream", str(file), "--server", server, "-o", str(out)]) == 0
    assert out.read_text() == expected
    assert "saved in" in capsys.readouterr().err
    assert cli.main(["stream", str(file), "--server", server, "-o", str(out)]) == 2


def test_a_file_of_another_rate_is_sent_without_rounding(
    server: str, tiny: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soundfile = pytest.importorskip("soundfile", reason="needs the package soundfile")
    path = tmp_path / "a.flac"
    soundfile.write(path, np.frombuffer(speech(3, seed=6, rate=22050), "<i2"), 22050)
    assert cli.main(["stream", str(path), "--server", server]) == 0
    assert capsys.readouterr().out.split() == tiny.transcribe(path).text.split()


@pytest.mark.parametrize("form", ["raw", "wav", "list", "float", "mulaw"])
def test_pipes(
    server: str, tiny: Any, form: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pcm = speech(2, seed=7)
    samples = np.frombuffer(pcm, "<i2").astype(np.float32) / 32768
    info = b"LIST" + struct.pack("<I", 4) + b"INFO"
    data = {
        "raw": pcm,
        "wav": wav(pcm),
        "list": wav(pcm, extra=info),
        "float": wav(samples.astype("<f4").tobytes(), tag=3, bits=32),
        "mulaw": encode(samples, "mulaw"),
    }[form]
    pipe(data, monkeypatch)
    more = ["--encoding", "mulaw"] if form == "mulaw" else []
    assert cli.main(["stream", "-", "--server", server, *more]) == 0
    expected = offline(tiny, pcm)
    got = capsys.readouterr().out.split()
    assert got == expected.split() if form != "mulaw" else got


@pytest.mark.parametrize(("data", "line"), [
    (b"OggS" + bytes(100), "is a media file"),
    (b"RIFF\0\0\0\0AVI " + bytes(100), "is no sound"),
    (wav(b"", bits=8), "use 16 bits"),
    (wav(b"")[:30], "header on standard input is broken"),
])  # fmt: skip
def test_pipes_that_are_none(
    server: str, data: bytes, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe(data, monkeypatch)
    assert cli.main(["stream", "-", "--server", server]) == 3
    err = capsys.readouterr().err
    assert line in err and err.count("\n") == 1


def test_a_real_pipe_and_a_server_named_by_the_environment(server: str, tiny: Any) -> None:
    pcm = speech(2, seed=8)
    environment = {**os.environ, "ASR_SERVER": server, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "asr", "stream", "-"]
    done = subprocess.run(command, input=pcm, env=environment, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode().split() == offline(tiny, pcm).split()
    assert done.stderr == b""


def test_files_that_cannot_be_sent(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.wav").write_text("no sound")
    monkeypatch.delenv("ASR_SERVER", raising=False)
    cases: list[tuple[list[str], str]] = [
        (["missing.wav", "--server", server], "there is no file missing.wav"),
        ([str(tmp_path / "text.wav"), "--server", server], "text.wav"),
        (["missing.wav"], "which server?"),
        ([str(tmp_path / "text.wav"), "--rate", "8000", "--server", server], "says itself what it is"),
    ]
    for args, line in cases:
        assert cli.main(["stream", *args]) > 0
        err = capsys.readouterr().err
        assert line in err and err.count("\n") == 1


def test_real_time_takes_its_time() -> None:
    now = 0.0
    sound = open_pipe(io.BytesIO(b""), 16000, None, None)
    blocks = [bytes(640)] * 50
    source = Playback(type(sound)("x", 16000, "pcm_s16le", 1, iter(blocks), []), realtime=True, clock=lambda: now)
    waited = []
    source._stopped = SimpleNamespace(wait=lambda s: waited.append(s), is_set=lambda: False, set=lambda: None)  # type: ignore[assignment]
    got: list[bytes | None] = []

    def take() -> None:
        while (block := source.blocks.get()) is not None:
            got.append(block)

    taker = threading.Thread(target=take, daemon=True)
    taker.start()
    source._run()
    taker.join(10)
    assert len(got) == 50 and source.captured == pytest.approx(1.0)
    assert waited == pytest.approx([n * 0.02 for n in range(50)])


def test_raw_files(tmp_path: Path) -> None:
    path = tmp_path / "a.raw"
    path.write_bytes(bytes(range(200)))
    sound = open_sound(str(path), None, 8000, "mulaw", None, False)
    assert (sound.rate, sound.encoding, b"".join(sound.blocks)) == (8000, "mulaw", bytes(range(200)))
