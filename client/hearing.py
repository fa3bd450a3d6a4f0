"""What hears blocks of sound and says results: a recogniser in this process, or a server. Each runs in threads of its
own, takes blocks from one queue and puts events into another."""

from __future__ import annotations

import queue
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from asr.errors import AsrError
from asr.results import Partial, Segment
from client.messages import Notice

MOST_S = 1.0  # of sound that is taken in one step


class Blocks(Protocol):
    """A queue of sound; None is the end."""

    def get(self) -> bytes | None:
        """Wait for the next block."""

    def get_nowait(self) -> bytes | None:
        """Raises queue.Empty where there is none."""


@dataclass(frozen=True)
class Level:
    """Of the sound that was just taken in: its peak from 0 to 1. ``position``: seconds from the start."""

    peak: float
    position: float


@dataclass(frozen=True)
class Ended:
    """Last of all. ``error``: why, where something went wrong; ``seconds``: of sound that were taken in; ``lost``: of
    them, without text."""

    error: BaseException | None
    seconds: float
    lost: float = 0.0


Event = Partial | Segment | Notice | Level | Ended


class Hearer(Protocol):
    """Made with all that is slow to make done, so that a microphone can be opened next."""

    def start(self, blocks: Blocks) -> queue.Queue[Event]:
        """Hear ``blocks`` until None comes; what is heard comes out of the queue, Ended last."""


class Local:
    """A recogniser in this process. ``options``: of :meth:`asr.Recognizer.stream`; unusable ones raise at once."""

    def __init__(self, recognizer: Any, rate: int, options: Mapping[str, Any] | None = None) -> None:
        self.rate = rate
        self.model = recognizer.folder.name
        self._stream = recognizer.stream(rate, **(options or {}))
        warm = recognizer.stream(rate)  # the first steps of a process are slow
        warm.feed(np.zeros(rate, np.float32))
        warm.finish()

    def start(self, blocks: Blocks) -> queue.Queue[Event]:
        """See :class:`Hearer`."""
        events: queue.Queue[Event] = queue.Queue()
        threading.Thread(target=self._hear, args=(blocks, events), name="asr recogniser", daemon=True).start()
        return events

    def _hear(self, blocks: Blocks, events: queue.Queue[Event]) -> None:
        error: BaseException | None = None
        try:
            more = True
            while more:
                data, more = gather(blocks, round(MOST_S * self.rate) * 2)
                samples = np.frombuffer(data, "<i2")
                if len(samples):
                    for result in self._stream.feed(samples):
                        events.put(result)
                    events.put(Level(peak(samples), self._stream.duration))
            for result in self._stream.finish():
                events.put(result)
        except BaseException as failed:
            error = failed
        events.put(Ended(error, self._stream.duration))


class Remote:
    """A server. ``stream``: of :func:`client.sync.connect`, entered; it is closed after the last result."""

    def __init__(self, stream: Any) -> None:
        settings = stream.inner.settings
        self._most = round(MOST_S * settings.sample_rate) * settings.format.frame_bytes
        self._levels = settings.encoding == "pcm_s16le" and settings.channels == 1
        self.model = str(stream.ready.model.get("name", ""))
        self._stream = stream

    def start(self, blocks: Blocks) -> queue.Queue[Event]:
        """See :class:`Hearer`."""
        events: queue.Queue[Event] = queue.Queue()
        threading.Thread(target=self._speak, args=(blocks, events), name="asr sender", daemon=True).start()
        threading.Thread(target=self._listen, args=(events,), name="asr listener", daemon=True).start()
        return events

    def _speak(self, blocks: Blocks, events: queue.Queue[Event]) -> None:
        """An error of the stream is told by :meth:`_listen`; here it only ends the sending."""
        try:
            more = True
            while more:
                data, more = gather(blocks, self._most)
                if data:
                    self._stream.send(data)
                    whole = np.frombuffer(data[: len(data) // 2 * 2], "<i2") if self._levels else np.zeros(0, np.int16)
                    events.put(Level(peak(whole), self._stream.position))
            self._stream.eof()
        except AsrError:
            return

    def _listen(self, events: queue.Queue[Event]) -> None:
        error: BaseException | None = None
        try:
            for result in self._stream:
                events.put(result)
        except BaseException as failed:
            error = failed
        seconds, lost = self._stream.position, self._stream.lost_seconds
        self._stream.close()
        events.put(Ended(error, seconds, lost))


def gather(blocks: Blocks, most: int) -> tuple[bytes, bool]:
    """Wait for a block and take what is there besides, about ``most`` bytes at once. False: the end has come."""
    data: list[bytes] = []
    size = 0
    block = blocks.get()
    while block is not None:
        data.append(block)
        size += len(block)
        if size >= most:
            break
        try:
            block = blocks.get_nowait()
        except queue.Empty:
            break
    return b"".join(data), block is not None


def peak(samples: np.ndarray) -> float:
    """Largest magnitude, from 0 to 1, of int16 samples."""
    return max(int(samples.max()), -int(samples.min())) / 32768 if len(samples) else 0.0
