"""As much of sounddevice as the microphone client uses, with devices and sound that a test makes up."""

import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray


class PortAudioError(Exception):
    pass


def device(name: str, inputs: int = 1, rate: float = 48000.0) -> dict[str, Any]:
    return {"name": name, "hostapi": 0, "max_input_channels": inputs, "default_samplerate": rate}


class FakePortAudio:
    """``speak`` gives samples to the stream that is open, block by block, from a thread like PortAudio's own."""

    PortAudioError = PortAudioError

    def __init__(self, *devices: dict[str, Any], default: int = 0, opens: str = "") -> None:
        self.devices = list(devices)
        self.default = SimpleNamespace(device=(default, -1))
        self.opens = opens  # why a stream cannot be opened
        self.stream: FakeStream | None = None
        self.rates = (8000, 16000, 44100, 48000)

    def query_hostapis(self) -> list[dict[str, Any]]:
        return [{"name": "Fake"}]

    def query_devices(self) -> list[dict[str, Any]]:
        return self.devices

    def check_input_settings(self, samplerate: int, **settings: Any) -> None:
        if samplerate not in self.rates:
            raise PortAudioError("Invalid sample rate [PaErrorCode -9997]")

    def RawInputStream(self, **settings: Any) -> "FakeStream":
        if self.opens:
            raise PortAudioError(self.opens)
        self.stream = FakeStream(**settings)
        return self.stream


class FakeStream:
    def __init__(self, **settings: Any) -> None:
        self.settings = settings
        self.started = threading.Event()
        self.closed = False
        self.hangs = False  # abort never returns, as with some drivers when a device has gone

    def start(self) -> None:
        self.started.set()

    def abort(self) -> None:
        if self.hangs:
            threading.Event().wait(60)
        self.closed = True

    def close(self) -> None:
        self.closed = True

    def speak(self, samples: NDArray[Any], overflow: bool = False) -> None:
        """One after the other, as fast as they are taken."""
        size = self.settings["blocksize"]
        for at in range(0, len(samples), size):
            block = np.asarray(samples[at : at + size], "<i2").tobytes()
            status = SimpleNamespace(input_overflow=True) if overflow and at == 0 else None
            self.settings["callback"](memoryview(block), len(block) // 2, None, status)

    def vanish(self) -> None:
        self.settings["finished_callback"]()
