"""What the server says, as typed values. Times are shifted to the client's own clock: seconds from its first sample."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from asr.results import Alternative, Partial, Segment, Word
from client.errors import ClientError


@dataclass(frozen=True)
class Ready:
    """The session stands. ``config``: as applied by the server; ``secret``: None where it keeps no dropped sessions;
    ``samples``: of this session that it has taken in (0 for a new one)."""

    session: str
    secret: str | None = field(repr=False)
    resumed: bool
    samples: int
    config: Mapping[str, Any]
    limits: Mapping[str, Any]
    model: Mapping[str, Any]


@dataclass(frozen=True)
class Done:
    """The server's account of a session that ended in peace. Seconds are of the audio and of computing; where a new
    session had to be begun, it is that of the last one."""

    audio_seconds: float
    segments: int
    processing_seconds: float


@dataclass(frozen=True)
class Notice:
    """Something to know about the connection. ``kind``:

    - ``disconnected``: the connection broke, it is being made again; audio is kept meanwhile;
    - ``resumed``: the same session goes on, nothing is lost;
    - ``restarted``: a new session goes on from the last final result;
    - ``lost``: ``seconds`` of audio will have no text, from ``at`` on (seconds from the start);
    - ``lagging`` and other codes of the server's warnings.
    """

    kind: str
    message: str
    seconds: float = 0.0
    at: float = 0.0


def parse(text: str | bytes) -> dict[str, Any]:
    """A message of the server. Raises ClientError for what is none."""
    try:
        value = json.loads(text)
        if isinstance(text, str) and isinstance(value, dict) and isinstance(value.get("type"), str):
            return value
    except ValueError:
        pass
    raise ClientError("what listens there does not speak this protocol: check the address", "message")


def ready(message: Mapping[str, Any]) -> Ready:
    """Of a ``ready`` message."""
    return Ready(
        str(message["session"]),
        message.get("secret"),
        message.get("resumed") is True,
        int(message.get("audio_samples", 0)),
        message.get("config") or {},
        message.get("limits") or {},
        message.get("model") or {},
    )


def done(message: Mapping[str, Any]) -> Done:
    """Of a ``done`` message."""
    return Done(float(message["audio_seconds"]), int(message["segments"]), float(message["processing_seconds"]))


def partial(message: Mapping[str, Any], shift_s: float, first: int) -> Partial:
    """Of a ``partial`` message; ``first``: number of the session's first segment."""
    return Partial(
        int(message["segment"]) + first,
        message["start"] + shift_s,
        message["end"] + shift_s,
        message["stable"],
        message["unstable"].strip(),
    )


def final(message: Mapping[str, Any], shift_s: float, first: int) -> Segment:
    """Of a ``final`` message; ``first``: number of the session's first segment."""
    return Segment(
        message["text"],
        message["start"] + shift_s,
        message["end"] + shift_s,
        _words(message.get("words", ()), shift_s),
        int(message["segment"]) + first,
        message.get("confidence"),
        message["reason"],
        tuple(
            Alternative(a["text"], _words(a.get("words", ()), shift_s), a.get("confidence"))
            for a in message.get("alternatives", ())
        ),
    )


def _words(words: Sequence[Mapping[str, Any]], shift_s: float) -> tuple[Word, ...]:
    return tuple(Word(w["word"], w["start"] + shift_s, w["end"] + shift_s, w.get("confidence")) for w in words)


def dump(value: Mapping[str, Any]) -> str:
    """As compact JSON."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
