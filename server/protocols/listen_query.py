"""The query of ``/v1/listen``: Deepgram's parameters, as far as they have a meaning here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from asr.audio.encoding import MAX_CHANNELS
from asr.decoding.hot_words import DEFAULT_BOOST, MOST_BOOST, MOST_PHRASES
from asr.errors import UsageError
from asr.options import MOST_ALTERNATIVES
from server.protocols.common import MAX_DIGITS, WireError, check_rate, check_text

ENCODINGS = {"linear16": "pcm_s16le", "linear32": "pcm_f32le", "mulaw": "mulaw", "alaw": "alaw"}
TELEPHONE_RATE = 8000  # of mulaw and alaw, where no rate is given
SHORTEST_PAUSE_MS = 300  # a shorter one would end segments between words
SHORTEST_UTTERANCE_END_MS = 1000
_SILENT = ("language", "model", "version", "tag", "extra", "mip_opt_out", "no_delay")  # change nothing
_OFF = ("false", "", "0")
_MAX_WARNINGS = 50


@dataclass(frozen=True)
class ListenQuery:
    """What is asked for. ``encoding`` None: a WAV header comes first. ``hot_words``: phrases with their boosts."""

    encoding: str | None = None
    sample_rate: int = TELEPHONE_RATE
    channels: int = 1
    interim: bool = False
    speech_events: bool = False
    utterance_end_s: float | None = None
    options: tuple[tuple[str, Any], ...] = ()  # for the engine, without hot words
    hot_words: tuple[tuple[str, float], ...] = ()
    tags: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def partials(self) -> bool:
        """Whether the engine must say what is not final yet."""
        return self.interim or self.speech_events or self.utterance_end_s is not None


def read_query(query: str, model: str) -> ListenQuery:
    """``query``: raw; ``model``: the one that is served. Raises AsrError for values that make no sense; parameters that
    are not supported are warnings."""
    values = _values(query)
    one = {name: given[-1] for name, given in values.items()}
    warnings = _unsupported(one, model)
    options: dict[str, Any] = {}
    if "endpointing" in one and one["endpointing"] != "true":
        options["endpointing"] = _endpointing(one["endpointing"], warnings)
    if alternatives := _integer(one, "alternatives", 1, 1, MOST_ALTERNATIVES + 1) - 1:
        options["alternatives"] = alternatives
    encoding, rate = _format(one)
    return ListenQuery(
        encoding,
        rate,
        _integer(one, "channels", 1, 1, MAX_CHANNELS),
        _boolean(one, "interim_results"),
        _boolean(one, "vad_events"),
        _utterance_end(one, warnings),
        tuple(options.items()),
        _hot_words(values),
        tuple(values.get("tag", ())),
        tuple(warnings[:_MAX_WARNINGS]),
    )


def _values(query: str) -> dict[str, list[str]]:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=2 * MOST_PHRASES, errors="strict")
    except ValueError:
        raise UsageError("the query cannot be read: it is not UTF-8, or has too many parameters") from None
    values: dict[str, list[str]] = {}
    for name, value in pairs:
        check_text(name + value)
        values.setdefault(name, []).append(value)
    return values


_SUPPORTED = ("encoding", "sample_rate", "channels", "interim_results", "endpointing", "utterance_end_ms", "vad_events",
              "keywords", "keyterm", "alternatives", *_SILENT)  # fmt: skip


def _unsupported(one: dict[str, str], model: str) -> list[str]:
    found = [f"{name[:40]} is not supported" for name, v in one.items() if name not in _SUPPORTED and v not in _OFF]
    if one.get("model", model) != model:
        found.append(f"model {one['model'][:40]} is not served here: {model} is used")
    language = one.get("language", "en")
    if language.split("-")[0].lower() not in ("en", "multi"):
        found.append(f"language {language[:40]} is not served here: model {model} is used")
    return found


def _format(one: dict[str, str]) -> tuple[str | None, int]:
    if "encoding" not in one:
        return None, TELEPHONE_RATE
    if one["encoding"] not in ENCODINGS:
        raise WireError("encoding", f"unknown encoding '{one['encoding'][:40]}': choose one of {', '.join(ENCODINGS)}")
    encoding = ENCODINGS[one["encoding"]]
    if "sample_rate" not in one and encoding not in ("mulaw", "alaw"):
        raise UsageError("encoding needs sample_rate")
    return encoding, check_rate(_integer(one, "sample_rate", TELEPHONE_RATE, 1, 10**9))


def _integer(one: dict[str, str], name: str, default: int, least: int, most: int) -> int:
    text = one.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS) or not least <= int(text) <= most:
        raise UsageError(f"{name} must be {least} to {most}, not '{text[:40]}'")
    return int(text)


def _boolean(one: dict[str, str], name: str) -> bool:
    text = one.get(name, "false").lower()
    if text not in ("true", "false"):
        raise UsageError(f"{name} must be true or false, not '{text[:40]}'")
    return text == "true"


def _endpointing(text: str, warnings: list[str]) -> bool | dict[str, float]:
    if text == "false":
        return False
    asked = _integer({"endpointing": text}, "endpointing", 0, 0, 3_600_000)
    if asked < SHORTEST_PAUSE_MS:
        warnings.append(f"endpointing {asked} is taken as {SHORTEST_PAUSE_MS}")
    return {"pause_s": max(asked, SHORTEST_PAUSE_MS) / 1000, "final_pause_s": 0.0}


def _utterance_end(one: dict[str, str], warnings: list[str]) -> float | None:
    if one.get("utterance_end_ms", "false") == "false":
        return None
    asked = _integer(one, "utterance_end_ms", 0, 0, 3_600_000)
    if asked < SHORTEST_UTTERANCE_END_MS:
        warnings.append(f"utterance_end_ms {asked} is taken as {SHORTEST_UTTERANCE_END_MS}")
    return max(asked, SHORTEST_UTTERANCE_END_MS) / 1000


def _hot_words(values: dict[str, list[str]]) -> tuple[tuple[str, float], ...]:
    found = [(text, DEFAULT_BOOST) for text in values.get("keyterm", ()) if text.strip()]
    for keyword in values.get("keywords", ()):
        text, colon, strength = keyword.rpartition(":")
        try:
            found.append((text, boost_of(float(strength))) if colon else (keyword, DEFAULT_BOOST))
        except ValueError:
            raise UsageError(f"keywords is a word and a number, word:2, not '{keyword[:40]}'") from None
    return tuple((text, boost) for text, boost in found if text.strip())[:MOST_PHRASES]


def boost_of(strength: float) -> float:
    """Nats for Deepgram's intensifier: 1 is our default boost, each further one adds 2, negative ones suppress.

    The scale is ours: theirs is not published."""
    if not math.isfinite(strength):
        raise ValueError
    boost = DEFAULT_BOOST * strength if strength < 1 else DEFAULT_BOOST + 2 * (strength - 1)
    return max(-MOST_BOOST, min(MOST_BOOST, boost))
