"""Has a media file been cut off? Looks at the few places where wav, mp3 and Ogg say how long they should be.

Demuxers take such files as they come and call the shorter length the true one. Containers that state their duration
(flac, mp4, webm) need nothing of this.
"""

from __future__ import annotations

import os
import struct
from typing import IO

SLACK_BYTES = 4096  # so much may be missing without a word: padding, tags, rounding of writers
UNKNOWN_BYTES = 0x7FFF0000  # writers into pipes put sizes from here on for "unknown"
MAX_CHUNKS = 256
OGG_PAGE_BYTES = 27 + 255 + 255 * 255  # RFC 3533, section 6


def cut_off(file: IO[bytes]) -> str | None:
    """What shows that ``file`` (which can seek) has been cut off; None if nothing does. Its position is moved."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(12)
    if head[:4] == b"RIFF" and head[8:12] == b"WAVE":
        return _wav(file, size)
    if head[:4] == b"OggS":
        return _ogg(file, size)
    if head[:3] == b"ID3" or (len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0):
        return _mp3(file, size, head)
    return None


def _missing(stated: int, there: int) -> str | None:
    if stated - there <= SLACK_BYTES:
        return None
    return f"is truncated: {there} of the {stated} bytes that its header states are there"


def _wav(file: IO[bytes], size: int) -> str | None:
    """The size of the data chunk against the size of the file."""
    at = 12
    for _ in range(MAX_CHUNKS):
        file.seek(at)
        header = file.read(8)
        if len(header) < 8:
            return None
        name, stated = struct.unpack("<4sI", header)
        if name == b"data":
            return None if stated >= UNKNOWN_BYTES else _missing(stated, size - at - 8)
        at += 8 + stated + stated % 2
    return None


def _ogg(file: IO[bytes], size: int) -> str | None:
    """The last page must be whole and carry the mark of the end of a stream (RFC 3533)."""
    file.seek(max(0, size - OGG_PAGE_BYTES))
    tail = file.read()
    at = tail.rfind(b"OggS")
    if at >= 0 and len(tail) - at >= 27:
        ends = tail[at + 5] & 4 != 0
        table = tail[at + 27 : at + 27 + tail[at + 26]]
        if ends and at + 27 + tail[at + 26] + sum(table) <= len(tail):
            return None
    return "is truncated: it stops without an end mark"


def _mp3(file: IO[bytes], size: int, head: bytes) -> str | None:
    """The byte count in the information frame that LAME and Xing write first; files without one say nothing."""
    start = 0
    if head[:3] == b"ID3":
        a, b, c, d = head[6:10]
        start = 10 + (a << 21 | b << 14 | c << 7 | d) + (10 if head[5] & 0x10 else 0)
    file.seek(start)
    frame = file.read(256)
    at = max(frame.find(b"Xing"), frame.find(b"Info"))
    if at < 0 or len(frame) < at + 16:
        return None
    flags = int.from_bytes(frame[at + 4 : at + 8], "big")
    if not flags & 2:
        return None
    field = at + 8 + (4 if flags & 1 else 0)
    return _missing(int.from_bytes(frame[field : field + 4], "big"), size - start)
