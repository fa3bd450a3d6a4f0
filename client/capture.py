"""Sound from a microphone, through PortAudio. The callback only enqueues."""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from client.errors import ClientError

BLOCK_MS = 20
MIN_RATE, MAX_RATE = 8000, 48000
FIRST_RATES = (48000, 44100, 16000)  # tried where a device's own rate is none that is heard
MOST_BLOCKS = 60 * 1000 // BLOCK_MS  # that may wait for the recogniser
SILENT_S = 3.0  # a device that gives no block for so long has gone

_INSTALL = {
    "linux": "install it: 'sudo apt install libportaudio2' (Debian, Ubuntu), 'sudo dnf install portaudio' (Fedora)",
    "darwin": "install it: 'brew install portaudio'",
    "win32": "install it with the package: 'pip install --force-reinstall sounddevice'",
}
_CONNECT = {
    "linux": "connect a microphone, and check with 'arecord -l' and 'pactl list short sources' that the system sees it",
    "darwin": "connect a microphone, and allow the terminal to use it: System Settings, Privacy & Security, Microphone",
    "win32": "connect a microphone, and allow apps to use it: Settings, Privacy & security, Microphone",
}


class DeviceError(ClientError):
    """No microphone, no PortAudio, or a device that cannot be used or has gone."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "audio")


@dataclass(frozen=True)
class Device:
    """An input as PortAudio sees it. ``rate`` in Hz is its own; ``default``: the system's choice."""

    number: int
    name: str
    host: str
    channels: int
    rate: float
    default: bool


def remedy(table: dict[str, str], platform: str = sys.platform) -> str:
    """The line for this platform."""
    return table.get(platform, table["linux"])


def load_portaudio() -> Any:
    """The module ``sounddevice``. Raises DeviceError where it, or PortAudio, is missing."""
    try:
        import sounddevice
    except ImportError:
        raise DeviceError("the package sounddevice is missing: 'pip install sounddevice'") from None
    except OSError:  # it looks for the library when it is imported
        raise DeviceError(f"PortAudio is missing: {remedy(_INSTALL)}") from None
    return sounddevice


def devices(portaudio: Any) -> list[Device]:
    """All inputs. Raises DeviceError where there is none."""
    try:
        hosts = [host["name"] for host in portaudio.query_hostapis()]
        default = portaudio.default.device[0]
        found = [
            Device(number, info["name"], hosts[info["hostapi"]], info["max_input_channels"],
                   info["default_samplerate"], number == default)
            for number, info in enumerate(portaudio.query_devices())
            if info["max_input_channels"] > 0
        ]  # fmt: skip
    except portaudio.PortAudioError as error:
        raise DeviceError(f"PortAudio does not work: {_line(error)}: {remedy(_CONNECT)}") from None
    if not found:
        raise DeviceError(f"there is no microphone: {remedy(_CONNECT)}")
    return found


def choose(portaudio: Any, wanted: str | None) -> Device:
    """The device of that number, or the only one with that text in its name; None: the system's choice. Raises
    DeviceError."""
    found = devices(portaudio)
    if wanted is None:
        return next((d for d in found if d.default), found[0])
    if wanted.strip().isdecimal():
        matches = [d for d in found if d.number == int(wanted)]
    else:
        matches = [d for d in found if wanted.casefold() in d.name.casefold()]
        exact = [d for d in matches if d.name.casefold() == wanted.casefold()]
        matches = exact[:1] or matches
    if not matches:
        raise DeviceError(f"there is no microphone '{wanted}': choose one of 'asr mic --list-devices'")
    if len(matches) > 1:
        names = ", ".join(f"{d.number} ({d.name})" for d in matches[:4])
        raise DeviceError(f"several microphones are called '{wanted}': give the number of one: {names}")
    return matches[0]


class Capture:
    """A microphone that is open from :meth:`start` to :meth:`stop`; ``blocks`` are bytes of pcm_s16le, mono, at
    ``rate`` Hz, and None at the end. ``overflows``: how often sound was lost since the start, by PortAudio's count and
    because nobody took the blocks; ``captured``: seconds that came."""

    def __init__(self, portaudio: Any, device: Device, clock: Callable[[], float] = time.monotonic) -> None:
        self.device = device
        self.rate = _rate_of(portaudio, device)
        self.blocks: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self.overflows = 0
        self._portaudio = portaudio
        self._clock = clock
        self._samples = 0
        self._last = clock()
        self._stopped = False
        self._gone = threading.Event()
        self._stream: Any = None

    @property
    def captured(self) -> float:
        """Seconds of sound."""
        return self._samples / self.rate

    def start(self) -> None:
        """Open the device. Raises DeviceError."""
        try:
            self._stream = self._portaudio.RawInputStream(
                samplerate=self.rate,
                blocksize=self.rate * BLOCK_MS // 1000,
                device=self.device.number,
                channels=1,
                dtype="int16",
                latency="low",
                callback=self._take,
                finished_callback=self._gone.set,
            )
            self._stream.start()
        except (self._portaudio.PortAudioError, ValueError) as error:
            line = f"the microphone '{self.device.name}' cannot be opened: {_line(error)}"
            raise DeviceError(f"{line}: {remedy(_CONNECT)}") from None
        self._last = self._clock()

    def _take(self, data: Any, frames: int, when: Any, status: Any) -> None:
        """Called by PortAudio's own thread: never waits."""
        self._last = self._clock()
        if status and status.input_overflow:
            self.overflows += 1
        if self.blocks.qsize() >= MOST_BLOCKS:
            self.overflows += 1
            return
        self._samples += frames
        self.blocks.put(bytes(data))

    def check(self) -> None:
        """Raises DeviceError when the device has gone."""
        if self._stopped or self._stream is None:
            return
        if self._gone.is_set() or self._clock() - self._last > SILENT_S:
            raise DeviceError(f"the microphone '{self.device.name}' has gone: connect it and start again")

    def stop(self) -> None:
        """Close the device; ``blocks`` end. May be repeated."""
        if self._stopped:
            return
        self._stopped = True
        if self._stream is not None:  # a device that has gone may block here for long
            closing = threading.Thread(target=self._close, name="asr microphone", daemon=True)
            closing.start()
            closing.join(2.0)
        self.blocks.put(None)

    def _close(self) -> None:
        try:
            self._stream.abort()
            self._stream.close()
        except Exception as error:  # nothing is to be done about it any more
            self._last_error = error


def _rate_of(portaudio: Any, device: Device) -> int:
    """The device's own rate where it can be heard, else the first that it takes."""
    own = round(device.rate)
    if MIN_RATE <= own <= MAX_RATE:
        return own
    for rate in FIRST_RATES:
        try:
            portaudio.check_input_settings(device=device.number, channels=1, dtype="int16", samplerate=rate)
            return rate
        except (portaudio.PortAudioError, ValueError):
            continue
    raise DeviceError(f"the microphone '{device.name}' gives {own} Hz only: {MIN_RATE} to {MAX_RATE} Hz are heard")


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".")
