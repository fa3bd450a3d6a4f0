"""The header of a WAV file, read as it comes in.

Source: Multimedia Programming Interface and Data Specifications 1.0 (IBM and Microsoft, 1991); WAVEFORMATEXTENSIBLE.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from server.protocols.common import WireError

MAX_HEADER = 1 << 16
_EXTENSIBLE = 0xFFFE
_ENCODINGS = {(1, 16): "pcm_s16le", (3, 32): "pcm_f32le", (6, 8): "alaw", (7, 8): "mulaw"}


@dataclass(frozen=True)
class WavHeader:
    """``begin``: where the samples begin. What stands there about the length is not believed: live streams do not know
    theirs."""

    encoding: str
    sample_rate: int
    channels: int
    begin: int


def read_header(data: bytes) -> WavHeader | None:
    """From the first bytes of a file; None: more of them are needed. Raises WireError("encoding") for anything else."""
    if not any(magic.startswith(data[:4]) for magic in (b"RIFF", b"RF64")):
        raise WireError("encoding", "the audio does not begin with a WAV header: say encoding and sample_rate")
    if len(data) >= 12 and data[8:12] != b"WAVE":
        raise WireError("encoding", "the audio is a RIFF file, but no WAV: send WAV, or raw samples and their encoding")
    header, at = None, 12
    while at + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, at)
        at += 8
        if name == b"data":
            if header is None:
                raise WireError("encoding", "the WAV header has no format: send another file")
            return WavHeader(*header, at)
        if name == b"fmt " and at + min(size, 40) <= len(data):
            header = _format(data[at : at + size])
        at += size + size % 2
        if at > MAX_HEADER:
            break
    if at > MAX_HEADER or len(data) > MAX_HEADER:
        raise WireError("encoding", f"no samples in the first {MAX_HEADER} bytes of the WAV file")
    return None


def _format(chunk: bytes) -> tuple[str, int, int]:
    if len(chunk) < 16:
        raise WireError("encoding", "the format in the WAV header is broken")
    tag, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", chunk)
    if tag == _EXTENSIBLE and len(chunk) >= 26:
        tag = struct.unpack_from("<H", chunk, 24)[0]
    if (tag, bits) not in _ENCODINGS:
        raise WireError("encoding", f"WAV of format {tag} with {bits} bits is not served: send 16-bit PCM")
    return _ENCODINGS[tag, bits], rate, channels
