"""Sound from files and pipes for ``asr stream``."""

from __future__ import annotations

import os
import queue
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

from asr.audio.encoding import SampleFormat
from asr.errors import AsrError, AudioError, UsageError

SAMPLE_RATE = 16000
BLOCK_S = 0.1
REALTIME_BLOCK_S = 0.02
WAITING = 32  # blocks that may wait to be sent
READ = 1 << 16
MOST_HEADER = 1 << 16  # bytes before the sound of a WAV stream
_CONTAINERS = (b"OggS", b"fLaC", b"\x1aE\xdf\xa3", b"ID3", b"FORM", b"caff", b".snd")
_EXACT = ("pcm_s16le", "pcm_s16be", "pcm_u8", "pcm_s8", "pcm_mulaw", "pcm_alaw")


@dataclass(frozen=True)
class Sound:
    """What will be sent. ``blocks``: bytes of that format; ``name``: for messages; ``damage``: lines about a file that
    is not whole, filled while it is read."""

    name: str
    rate: int
    encoding: str
    channels: int
    blocks: Iterator[bytes]
    damage: list[str]

    @property
    def frame_bytes(self) -> int:
        """Of one instant."""
        return SampleFormat(self.encoding, self.channels).frame_bytes


def open_file(path: Path, block_s: float = BLOCK_S) -> Sound:
    """Any media file, at 16 kHz. Samples that 16 bits can hold are sent in 16 bits, others as they are. Raises
    AudioError."""
    from asr.audio import encode, probe, read_media

    info = probe(path)
    exact = info.codec in _EXACT and info.sample_rate == SAMPLE_RATE and info.channels == 1
    encoding = "pcm_s16le" if exact else "pcm_f32le"
    damage: list[str] = []
    chunks = read_media(path, SAMPLE_RATE, chunk_samples=round(block_s * SAMPLE_RATE), on_damage=damage.append)
    return Sound(str(path), SAMPLE_RATE, encoding, 1, (encode(chunk, encoding) for chunk in chunks), damage)


def open_pipe(pipe: BinaryIO, rate: int | None, encoding: str | None, channels: int | None) -> Sound:
    """Standard input: raw samples as told, or what a WAV header says where nothing is told (``arecord`` writes one).
    Raises AudioError for other containers and for WAV that cannot be sent as it is."""
    raw = Sound("standard input", rate or SAMPLE_RATE, encoding or "pcm_s16le", channels or 1, iter(()), [])
    if rate or encoding or channels:
        return replace(raw, blocks=_read(pipe, b""))
    head = _read_exactly(pipe, 4)
    if head in (b"RIFF", b"RF64"):
        return replace(_wav(pipe, head), name=raw.name)
    if head.startswith(_CONTAINERS):
        raise AudioError("standard input is a media file, not raw samples: give the file's name, or pipe it through"
                         " 'ffmpeg -i - -f s16le -ac 1 -ar 16000 -'")  # fmt: skip
    return replace(raw, blocks=_read(pipe, head))


def _read(pipe: BinaryIO, head: bytes) -> Iterator[bytes]:
    """Whatever there is, as soon as it is there."""
    if head:
        yield head
    read = pipe.read1 if isinstance(pipe, BufferedReader) else pipe.read
    while data := read(READ):
        yield data


def _read_exactly(pipe: BinaryIO, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := pipe.read(size - len(data))):
        data += more
    return data


def _wav(pipe: BinaryIO, head: bytes) -> Sound:
    """RIFF (Microsoft, 1991; RF64 is EBU Tech 3306): chunks up to ``data``; lengths of a pipe's data mean nothing."""
    if not _read_exactly(pipe, 8).endswith(b"WAVE"):
        raise AudioError("standard input is no sound: send raw samples or WAV")
    form: tuple[int, int, int, int] | None = None
    passed = 0
    while len(start := _read_exactly(pipe, 8)) == 8:
        name, size = start[:4], struct.unpack("<I", start[4:])[0]
        if name == b"data":
            if form is None:
                break
            encoding, rate, channels = _wav_format(form)
            return Sound("", rate, encoding, channels, _read(pipe, b""), [])
        passed += size
        if passed > MOST_HEADER:
            break
        body = _read_exactly(pipe, size + size % 2)
        if name == b"fmt " and len(body) >= 16:
            tag, channels, rate, _, _, bits = struct.unpack("<HHIIHH", body[:16])
            if tag == 0xFFFE and len(body) >= 26:  # extensible: the real one begins the sub-format
                tag = struct.unpack("<H", body[24:26])[0]
            form = tag, channels, rate, bits
    raise AudioError("the WAV header on standard input is broken: send raw samples with --rate and --encoding")


def _wav_format(form: tuple[int, int, int, int]) -> tuple[str, int, int]:
    tag, channels, rate, bits = form
    encoding = {(1, 16): "pcm_s16le", (3, 32): "pcm_f32le", (6, 8): "alaw", (7, 8): "mulaw"}.get((tag, bits))
    if encoding is None:
        raise AudioError(f"WAV of {bits} bits (format {tag}) cannot be streamed: use 16 bits, 'arecord -f S16_LE'")
    return encoding, rate, channels


class Playback:
    """A :class:`Sound` as a source of blocks: as fast as they are taken, or in real time."""

    def __init__(self, sound: Sound, realtime: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self.sound = sound
        self.blocks: queue.Queue[bytes | None] = queue.Queue(WAITING)
        self.overflows = 0
        self._realtime, self._clock = realtime, clock
        self._stopped = threading.Event()
        self._bytes = 0
        self._error: AsrError | None = None

    @property
    def captured(self) -> float:
        """Seconds that were read."""
        return self._bytes / self.sound.frame_bytes / self.sound.rate

    def start(self) -> None:
        """Begin to read."""
        threading.Thread(target=self._run, name="asr file", daemon=True).start()

    def check(self) -> None:
        """Raises what reading raised, once."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def stop(self) -> None:
        """No more is read; what was read is heard. May be repeated."""
        if not self._stopped.is_set():
            self._stopped.set()
            threading.Thread(target=self.blocks.put, args=(None,), name="asr file end", daemon=True).start()

    def _run(self) -> None:
        try:
            begin = self._clock()
            for block in self.sound.blocks:
                if self._realtime:
                    self._stopped.wait(max(0.0, begin + self.captured - self._clock()))
                if not self._put(block):
                    return
        except AsrError as error:
            self._error = error
        except OSError as error:
            self._error = AudioError(f"{self.sound.name} cannot be read: {error.strerror or error}")
        self.stop()

    def _put(self, block: bytes) -> bool:
        while not self._stopped.is_set():
            try:
                self.blocks.put(block, timeout=0.1)
                self._bytes += len(block)
                return True
            except queue.Full:
                continue
        return False


def open_sound(
    name: str, stdin: Any, rate: int | None, encoding: str | None, channels: int | None, realtime: bool
) -> Sound:
    """A file by its name, or ``-``. Raises AudioError, UsageError."""
    if name == "-":
        return open_pipe(stdin, rate, encoding, channels)
    raw = rate or encoding or channels
    if raw and encoding is None and Path(name).suffix.lower() not in (".raw", ".pcm"):
        raise UsageError(f"--rate and --channels are for raw samples: {name} says itself what it is")
    if raw or Path(name).suffix.lower() in (".raw", ".pcm"):
        try:
            pipe = open(name, "rb", buffering=READ)  # noqa: SIM115  (read by a thread to its end)
        except OSError as error:
            raise AudioError(f"{name} cannot be read: {error.strerror or error}") from None
        sound = Sound(name, rate or SAMPLE_RATE, encoding or "pcm_s16le", channels or 1, iter(()), [])
        size = sound.frame_bytes * round(sound.rate * (REALTIME_BLOCK_S if realtime else BLOCK_S))
        return replace(sound, blocks=iter(lambda: pipe.read(size), b""))
    if not os.path.exists(name):
        raise AudioError(f"there is no file {name}: check the name")
    return open_file(Path(name), REALTIME_BLOCK_S if realtime else BLOCK_S)
