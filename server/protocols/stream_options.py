"""Options of ``/v1/stream`` as a client gives them, checked, and as the engine takes them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from asr.audio.encoding import ENCODINGS, MAX_CHANNELS
from asr.decoding.endpoint import EndpointConfig
from asr.decoding.hot_words import MOST_PHRASES
from asr.engine import SessionConfig
from asr.errors import UsageError
from server.protocols.common import WireError, check_rate, nearest

_LM = {"default": True, "none": False}


@dataclass(frozen=True)
class Start:
    """Keys of ``start``; None: not given."""

    sample_rate: int | None = None
    encoding: str | None = None
    channels: int | None = None
    channel: int | None = None
    partials: bool | None = None
    words: bool | None = None
    alternatives: int | None = None
    endpointing: Any = None
    hotwords: Any = None
    lm: Literal["default", "none"] | None = None
    session: str | None = None
    secret: str | None = None
    last_seq: int | None = None


@dataclass(frozen=True)
class Change:
    """Keys of ``config``."""

    alternatives: int | None = None
    endpointing: Any = None
    hotwords: Any = None
    lm: Literal["default", "none"] | None = None


def session_config(start: Start) -> SessionConfig:
    """Checked; raises AsrError."""
    rate = check_rate(16000 if start.sample_rate is None else start.sample_rate)
    encoding = "pcm_s16le" if start.encoding is None else start.encoding
    if encoding not in ENCODINGS:
        hint = f"choose one of {', '.join(ENCODINGS)} (did you mean '{nearest(encoding, ENCODINGS)}'?)"
        raise WireError("encoding", f"unknown encoding '{encoding[:40]}': {hint}")
    channels = 1 if start.channels is None else start.channels
    if not 1 <= channels <= MAX_CHANNELS:
        raise WireError("audio", f"{channels} channels are outside the range: send 1 to {MAX_CHANNELS}")
    if start.channel is not None and not 0 <= start.channel < channels:
        raise WireError("audio", f"no channel {start.channel} among {channels}: they count from 0")
    return SessionConfig(rate, encoding, channels, start.channel, start.partials is not False, options_of(start))


def options_of(keys: Start | Change) -> dict[str, Any]:
    """Those that are given, as the engine takes them. Raises AsrError for wrong types and unknown keys."""
    options: dict[str, Any] = {}
    if keys.hotwords is not None:
        options["hotwords"] = _hot_words(keys.hotwords)
    if keys.endpointing is not None:
        options["endpointing"] = _endpointing(keys.endpointing)
    if keys.lm is not None:
        options["lm"] = _LM[keys.lm]
    if keys.alternatives is not None:
        options["alternatives"] = keys.alternatives
    return options


def _hot_words(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise UsageError('hotwords is a list: [{"text": "...", "boost": 5.0}]')
    if len(value) > MOST_PHRASES:
        raise UsageError(f"{len(value)} hot words are too many: give {MOST_PHRASES} at most")
    return [_hot_word(item) for item in value]


def _hot_word(value: Any) -> dict[str, Any]:
    value = {"text": value} if isinstance(value, str) else value
    if not isinstance(value, dict):
        raise UsageError('a hot word is a text or {"text": "...", "boost": 5.0}')
    for key in value:
        if key not in ("text", "boost"):
            raise UsageError(f"unknown key '{key}' in a hot word: did you mean '{nearest(key, ('text', 'boost'))}'?")
    if not isinstance(value.get("text"), str):
        raise UsageError("a hot word needs its text, a string")
    if "boost" in value and (isinstance(value["boost"], bool) or not isinstance(value["boost"], int | float)):
        raise UsageError("the boost of a hot word is a number")
    return value


def _endpointing(value: Any) -> bool | dict[str, float]:
    if isinstance(value, bool):
        return value
    known = [f.name for f in dataclasses.fields(EndpointConfig)]
    if not isinstance(value, dict):
        raise UsageError(f"endpointing is false, true or an object with some of {', '.join(known)}")
    for key, item in value.items():
        if key not in known:
            raise UsageError(f"unknown key 'endpointing.{key}': did you mean '{nearest(key, known)}'?")
        if isinstance(item, bool) or not isinstance(item, int | float):
            raise UsageError(f"endpointing.{key} is a number of seconds")
    return {key: float(item) for key, item in value.items()}
