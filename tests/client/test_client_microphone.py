"""The microphone without one: a fake PortAudio, the tiny recogniser, real threads."""

import builtins
import io
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_portaudio import FakePortAudio, device
from tiny_model import babble

from asr import cli
from client import capture
from client.capture import Capture, DeviceError, choose, devices, load_portaudio
from client.hearing import Ended, Level, Local
from client.listen import listen
from client.view import Lines

RATE = 48000
WAIT_S = 60.0


def sound(seconds: float, seed: int = 3, rate: int = RATE) -> Any:
    return np.rint(babble(seconds, seed, rate) * 32767).astype(np.int16)


def opened(fake: FakePortAudio, **changes: Any) -> Capture:
    return Capture(fake, choose(fake, None), **changes)


def speak(fake: FakePortAudio, *parts: Any, then: Any = None) -> threading.Thread:
    """Once the microphone is open; ``then`` is called at the end."""

    def run() -> None:
        end = time.monotonic() + WAIT_S
        while fake.stream is None and time.monotonic() < end:
            time.sleep(0.005)
        assert fake.stream is not None and fake.stream.started.wait(WAIT_S)
        for part in parts:
            fake.stream.speak(part)
        if then is not None:
            then()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def lines() -> tuple[Lines, io.StringIO, io.StringIO]:
    out, err = io.StringIO(), io.StringIO()
    return Lines(out, err), out, err


def test_what_the_microphone_hears_is_what_the_recogniser_hears(tiny: Any) -> None:
    samples = sound(6)
    fake = FakePortAudio(device("Mic", rate=RATE))
    source = opened(fake)
    view, out, _ = lines()
    speak(fake, samples, then=source.stop)
    transcript, error = listen(source, Local(tiny, source.rate), view)
    expected = tiny.transcribe(samples, sample_rate=RATE)
    assert error is None and transcript.text == expected.text and transcript.segments == expected.segments
    assert out.getvalue().split() == expected.text.split()
    assert transcript.duration == pytest.approx(6.0) == source.captured
    assert fake.stream is not None and fake.stream.closed
    settings = fake.stream.settings
    assert (settings["samplerate"], settings["blocksize"], settings["channels"]) == (RATE, RATE // 50, 1)


def test_the_callback_never_waits(tiny: Any) -> None:
    """Nobody takes the blocks: they pile up to a bound, then are counted as lost, and the callback stays quick."""
    fake = FakePortAudio(device("Mic", rate=RATE))
    source = opened(fake)
    source.start()
    assert fake.stream is not None
    block = sound(0.02)
    slowest = 0.0
    for _ in range(capture.MOST_BLOCKS + 50):
        began = time.thread_time()
        fake.stream.speak(block)
        slowest = max(slowest, time.thread_time() - began)
    assert source.overflows == 50 and source.blocks.qsize() == capture.MOST_BLOCKS
    assert slowest < 0.01
    source.stop()


def test_overflows_are_counted_and_told(tiny: Any) -> None:
    fake = FakePortAudio(device("Mic", rate=16000))
    source = opened(fake)
    view, _, err = lines()

    def more() -> None:
        assert fake.stream is not None
        fake.stream.speak(sound(0.5, rate=16000), overflow=True)
        time.sleep(0.3)
        source.stop()

    speak(fake, sound(1, rate=16000), then=more)
    listen(source, Local(tiny, source.rate), view)
    view.close()
    assert source.overflows == 1 and "sound was lost 1 times" in err.getvalue()


@pytest.mark.parametrize("how", ["told", "silent"])
def test_a_microphone_that_goes_away(tiny: Any, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was heard is kept, and one line says what to do."""
    monkeypatch.setattr(capture, "SILENT_S", 1.0)
    samples = sound(3, rate=16000)
    fake = FakePortAudio(device("USB Mic", rate=16000))
    source = opened(fake)
    view, _, _ = lines()

    def leave() -> None:
        assert fake.stream is not None
        fake.stream.hangs = True
        if how == "told":
            fake.stream.vanish()

    speak(fake, samples, then=leave)
    transcript, error = listen(source, Local(tiny, source.rate), view)
    assert isinstance(error, DeviceError) and "'USB Mic' has gone: connect it" in str(error)
    assert transcript.text == tiny.transcribe(samples, sample_rate=16000).text


def test_the_time_can_be_limited(tiny: Any) -> None:
    fake = FakePortAudio(device("Mic", rate=16000))
    source = opened(fake)
    view, _, _ = lines()
    samples = sound(2, rate=16000)
    speak(fake, samples)
    transcript, error = listen(source, Local(tiny, source.rate), view, seconds=1.0)
    assert error is None and transcript.duration == pytest.approx(2.0)


def test_ctrl_c_finishes_the_last_words(tiny: Any) -> None:
    import os
    import signal

    samples = sound(3, rate=16000)
    fake = FakePortAudio(device("Mic", rate=16000))
    source = opened(fake)
    view, _, err = lines()
    before = signal.getsignal(signal.SIGINT)
    speak(fake, samples, then=lambda: os.kill(os.getpid(), signal.SIGINT))
    transcript, error = listen(source, Local(tiny, source.rate), view)
    assert error is None and transcript.text == tiny.transcribe(samples, sample_rate=16000).text
    assert "finishing the last words" in err.getvalue()
    assert signal.getsignal(signal.SIGINT) is before


def test_a_recogniser_that_fails_keeps_what_there_is() -> None:
    class Broken:
        duration = 1.0

        def feed(self, samples: Any) -> list[Any]:
            raise RuntimeError("broken")

    fake = FakePortAudio(device("Mic", rate=16000))
    source = opened(fake)
    view, _, _ = lines()
    hearer = Local.__new__(Local)
    hearer.rate, hearer.model, hearer._stream = 16000, "", Broken()
    speak(fake, sound(0.5, rate=16000))
    transcript, error = listen(source, hearer, view)
    assert isinstance(error, RuntimeError) and transcript.segments == ()


def test_levels_and_the_end_are_told(tiny: Any) -> None:
    import queue

    blocks: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    half = np.full(1600, 16384, np.int16)
    for block in (half.tobytes(), None):
        blocks.put(block)
    events = Local(tiny, 16000).start(blocks)
    found: list[Any] = []
    while not found or not isinstance(found[-1], Ended):
        found.append(events.get(timeout=WAIT_S))
    levels = [e for e in found if isinstance(e, Level)]
    assert [e.peak for e in levels] == [0.5] and levels[0].position == pytest.approx(0.1)
    assert found[-1] == Ended(None, pytest.approx(0.1))


# --- devices


def test_devices_are_chosen_by_number_name_or_by_the_system() -> None:
    fake = FakePortAudio(
        device("Speakers", 0), device("Built-in", 2), device("USB Mic"), device("USB Camera"), default=2
    )
    assert [d.number for d in devices(fake)] == [1, 2, 3]
    assert choose(fake, None).name == "USB Mic"
    assert choose(fake, "1").name == "Built-in" == choose(fake, "built").name
    assert choose(fake, "usb cam").number == 3
    for wrong, line in {
        "0": "no microphone '0'",
        "9": "no microphone '9'",
        "cello": "no microphone 'cello'",
        "usb": "several microphones are called 'usb': give the number of one: 2 (USB Mic), 3",
    }.items():
        with pytest.raises(DeviceError) as info:
            choose(fake, wrong)
        assert line in str(info.value)
    fake.default = type(fake.default)(device=(-1, -1))
    assert choose(fake, None).name == "Built-in"


def test_no_microphone_is_one_line_with_the_remedy_of_the_platform() -> None:
    with pytest.raises(DeviceError, match="there is no microphone: connect"):
        devices(FakePortAudio(device("Speakers", 0)))
    tables = [capture._INSTALL, capture._CONNECT]
    for platform, word in (("linux", "apt"), ("darwin", "brew"), ("win32", "pip"), ("freebsd14", "apt")):
        assert word in capture.remedy(tables[0], platform)
        assert "\n" not in capture.remedy(tables[1], platform)


@pytest.mark.parametrize(
    ("problem", "line"),
    [
        (OSError("PortAudio library not found"), "PortAudio is missing: install"),
        (ImportError("sounddevice"), "pip install sounddevice"),
    ],
)
def test_without_portaudio(problem: Exception, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def broken(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "sounddevice":
            raise problem
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", broken)
    with pytest.raises(DeviceError) as info:
        load_portaudio()
    assert line in str(info.value)


def test_a_device_that_cannot_be_opened() -> None:
    fake = FakePortAudio(device("Mic"), opens="Device unavailable [PaErrorCode -9985]")
    with pytest.raises(DeviceError, match=r"'Mic' cannot be opened: Device unavailable .*: connect"):
        opened(fake).start()


def test_rates_that_are_not_heard_are_replaced() -> None:
    assert opened(FakePortAudio(device("Mic", rate=44100.0))).rate == 44100
    assert opened(FakePortAudio(device("Studio", rate=192000.0))).rate == 48000
    fake = FakePortAudio(device("Studio", rate=192000.0))
    fake.rates = (192000,)  # type: ignore[assignment]
    with pytest.raises(DeviceError, match="192000 Hz only"):
        opened(fake)


# --- the command


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakePortAudio:
    made = FakePortAudio(device("Speakers", 0), device("USB Mic", rate=16000), default=1)
    monkeypatch.setitem(sys.modules, "sounddevice", made)
    return made


def test_the_command_lists_devices(fake: FakePortAudio, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["mic", "--list-devices"]) == 0
    assert capsys.readouterr().out == "*   1  USB Mic  (Fake, 1 channels, 16000 Hz)\n"


def test_the_command_prints_and_saves(
    fake: FakePortAudio, tiny: Any, tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = sound(4, rate=16000)
    speak(fake, samples)
    words = tmp_path / "words.txt"
    words.write_text("stone:3\n")
    args = ["mic", "--model", str(tiny_path), "--seconds", "1", "--hotwords", str(words), "-o"]
    assert cli.main([*args, str(tmp_path / "a.json")]) == 0
    expected = tiny.transcribe(samples, sample_rate=16000, hotwords=[("stone", 3.0)]).text
    captured = capsys.readouterr()
    assert captured.out.split() == expected.split()
    assert "listening to USB Mic" in captured.err
    saved = json.loads((tmp_path / "a.json").read_text())
    assert saved["text"] == expected and saved["duration"] == pytest.approx(4.0)
    assert cli.main([*args, str(tmp_path / "a.json")]) == 2  # it exists
    assert "--force" in capsys.readouterr().err


def test_the_command_saves_what_it_has_when_the_microphone_goes(
    fake: FakePortAudio, tiny: Any, tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = sound(3, rate=16000)
    speak(fake, samples, then=lambda: fake.stream and fake.stream.vanish())
    assert cli.main(["mic", "--model", str(tiny_path), "-o", str(tmp_path / "a.srt"), "--quiet"]) == 3
    captured = capsys.readouterr()
    assert captured.err.count("asr: error:") == 1 and "has gone" in captured.err
    assert captured.out.split() == tiny.transcribe(samples, sample_rate=16000).text.split()
    assert (tmp_path / "a.srt").read_text().startswith("1\n00:00:0")


@pytest.mark.parametrize(("args", "line"), [
    (["-o", "a.docx"], "unknown format '.docx'"),
    (["-o", "nowhere/a.srt"], "make it first"),
    (["--device", "cello"], "--list-devices"),
    (["--hotwords", "missing.txt"], "no file missing.txt"),
    (["--server", "ftp://x"], "no address of a server"),
    (["--server", "ws://127.0.0.1:9"], "cannot connect"),
    (["--server", "wss://127.0.0.1:9", "--ca", "missing.pem"], "missing.pem cannot be read"),
    (["--server", "ws://127.0.0.1:9", "--token-file", "missing"], "cannot read the token"),
    (["--model", "klingon"], "klingon"),
])  # fmt: skip
def test_the_command_explains_in_one_line(
    fake: FakePortAudio, args: list[str], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert cli.main(["mic", *args, "--quiet"]) > 0
    err = capsys.readouterr().err
    assert line in err and err.count("\n") == 1 and err.startswith("asr: error: ")
    assert fake.stream is None  # nothing was opened before all was checked
