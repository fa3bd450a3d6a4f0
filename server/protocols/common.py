"""What the adapters share: their interface, JSON from strangers, and numbers on the wire."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, NoReturn

from asr.engine import Event, Failed, SessionConfig
from asr.errors import ERRORS, AsrError
from server.limits import Limits
from server.protocols.actions import Action, Close, Finish

MAX_DEPTH = 8  # levels of a message; ours have three
MAX_KEY = 64
MAX_DIGITS = 18  # of an integer
MAX_MESSAGE = 400  # characters of an error's text
MAX_REASON = 123  # bytes of a close frame's reason (RFC 6455, 5.5.1)
MIN_RATE, MAX_RATE = 8000, 48000
BETWEEN_WARNINGS_S = 5.0


class WireError(AsrError):
    """What a client did wrong, with its row of the error table."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Context:
    """What an adapter knows of its surroundings. ``model``: :class:`asr.engine.ModelInfo`; ``session`` and ``secret``:
    fresh random names; ``created``: the time of day in ISO 8601; ``resumable``: there is a store."""

    model: Any
    limits: Limits
    session: str
    secret: str = field(repr=False)
    created: str
    resumable: bool = True


class Adapter:
    """One connection's protocol. Times (``now``) are seconds of a clock that never goes back.

    A subclass writes :meth:`_text`, :meth:`_binary`, :meth:`_event`, :meth:`_failure` and, where it needs them, the
    other underscored methods. It may raise AsrError anywhere: that ends the session, results first.
    """

    protocol = ""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.session = context.session
        self.config = SessionConfig()
        self.phase = "new"  # opening, open, finishing, closed
        self._ending: tuple[str, str] | None = None  # code and message, once finished
        self._warned = -math.inf

    # What the session calls.

    def begin(self, now: float) -> list[Action]:
        """The connection stands."""
        return self._guarded(lambda: self._begin(now), now)

    def text(self, message: str, now: float) -> list[Action]:
        """A text message came."""
        if self.phase == "closed" or self._ending:
            return []
        if too_long(message, self.context.limits.max_text_bytes):
            return self.end("too_large", f"a text message may have {self.context.limits.max_text_bytes} bytes", now)
        return self._guarded(lambda: self._text(message, now), now)

    def binary(self, data: bytes, now: float) -> list[Action]:
        """A binary message came."""
        if self.phase == "closed" or self._ending:
            return []
        limit = self.context.limits.max_frame_bytes
        if len(data) > limit:
            return self.end("too_large", f"a message of {len(data)} bytes: {limit} are allowed, send smaller ones", now)
        return self._guarded(lambda: self._binary(data, now), now)

    def opened(self, options: dict[str, Any], samples: int, now: float) -> list[Action]:
        """The engine session is open: answer to Open. ``options`` as applied."""
        if self.phase == "closed":
            return []
        self.phase = "open" if self.phase == "opening" else self.phase
        actions = self._guarded(lambda: self._opened(options, samples, now), now)
        return actions + self._finish() if self._ending and self.phase == "open" else actions

    def resumed(self, saved: dict[str, Any], options: dict[str, Any], samples: int, now: float) -> list[Action]:
        """Answer to Resume: ``saved`` is what :meth:`save` gave; ``samples`` that have been taken in."""
        raise WireError("resume", "this protocol cannot resume")

    def refused(self, code: str, message: str, now: float) -> list[Action]:
        """The engine session could not be opened. Most adapters give up; some try again with less."""
        return self.fail(code, message)

    def event(self, event: Event, now: float) -> list[Action]:
        """The engine said something."""
        if self.phase == "closed":
            return []
        if isinstance(event, Failed):
            return self.fail(event.code, event.message)
        return self._guarded(lambda: self._event(event, now), now)

    def delivered(self, seq: int) -> None:
        """All messages up to :attr:`Send.seq` have left."""

    def waiting(self, now: float) -> None:
        """The next message of the client is awaited from now on (before, it could not send)."""

    def deadline(self) -> float | None:
        """When :meth:`tick` is due; None: never."""
        return None

    def tick(self, now: float) -> list[Action]:
        """The deadline has passed."""
        return []

    def warn(self, code: str, message: str, now: float, **values: Any) -> list[Action]:
        """Tell the client of something that is no error, where its protocol can."""
        return []

    def lagging(self, lag_ms: float, now: float) -> list[Action]:
        """Warn that results are late, now and then."""
        if now - self._warned < BETWEEN_WARNINGS_S or self.phase not in ("open", "finishing"):
            return []
        self._warned = now
        return self.warn("lagging", "the server is behind: results come late", now, lag_ms=round(lag_ms))

    def end(self, code: str, message: str, now: float) -> list[Action]:
        """End with an error, but first with all results of what was heard."""
        if self.phase == "closed" or self._ending:
            return []
        if self.phase == "new":
            return self.fail(code, message)
        self._ending = code, message
        return self._finish() if self.phase == "open" else []

    def fail(self, code: str, message: str) -> list[Action]:
        """End with an error at once."""
        if self.phase == "closed":
            return []
        code = code if code in ERRORS else "error"
        message = clip(message)
        return self._failure(code, message) + self._close(*self._farewell(code, message), code)

    @property
    def resumable(self) -> bool:
        """Whether it can be put away and taken up again now."""
        return False

    def save(self) -> dict[str, Any]:
        """Its memory as JSON values."""
        raise WireError("resume", "this protocol cannot resume")

    # What a subclass writes.

    def _begin(self, now: float) -> list[Action]:
        return []

    def _text(self, message: str, now: float) -> list[Action]:
        raise NotImplementedError

    def _binary(self, data: bytes, now: float) -> list[Action]:
        raise NotImplementedError

    def _opened(self, options: dict[str, Any], samples: int, now: float) -> list[Action]:
        return []

    def _event(self, event: Event, now: float) -> list[Action]:
        raise NotImplementedError

    def _failure(self, code: str, message: str) -> list[Action]:
        """The protocol's own message about an error, if it has one."""
        return []

    def _farewell(self, code: str, message: str) -> tuple[int, str]:
        """Close code and reason of an error."""
        return ERRORS[code].close_code, f"{code}: {message}"

    # What a subclass uses.

    def _finish(self) -> list[Action]:
        self.phase = "finishing"
        return [Finish()]

    def _close(self, code: int, reason: str, error: str = "") -> list[Action]:
        self.phase = "closed"
        return [Close(code, close_reason(reason), error)]

    def _end_of(self, last: list[Action]) -> list[Action]:
        """After the last results: the error for which the session ended, or ``last`` and a close in peace."""
        return self.fail(*self._ending) if self._ending else last + self._close(1000, "done")

    def _guarded(self, do: Callable[[], list[Action]], now: float) -> list[Action]:
        try:
            return do()
        except AsrError as error:
            return self.end(error.code, str(error), now)


def parse(message: str) -> dict[str, Any]:
    """A message of a stranger as a JSON object: bounded in depth, keys and numbers; no NaN, infinity, duplicate keys
    or lone surrogates. Raises WireError("json")."""
    try:
        value = json.loads(
            message,
            object_pairs_hook=_unique,
            parse_constant=_no_constant,
            parse_int=_integer,
            parse_float=_finite,
        )
    except json.JSONDecodeError as error:
        raise WireError("json", f"not JSON: {error.msg} at character {error.pos}") from None
    except RecursionError:
        raise WireError("json", f"more than {MAX_DEPTH} levels") from None
    if not isinstance(value, dict):
        raise WireError("json", 'a message is a JSON object: {"type": ...}')
    _check(value, 1)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise WireError("json", "a key stands twice in an object")
    if any(len(key) > MAX_KEY for key in found):
        raise WireError("json", f"a key has more than {MAX_KEY} characters")
    return found


def _no_constant(name: str) -> NoReturn:
    raise WireError("json", f"{name} is not JSON")


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise WireError("json", f"an integer has more than {MAX_DIGITS} digits")
    return int(digits)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise WireError("json", "a number is too large")
    return value


def _check(value: Any, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise WireError("json", f"more than {MAX_DEPTH} levels")
    if isinstance(value, str):
        check_text(value)
    elif isinstance(value, dict):
        for key, item in value.items():
            check_text(key)
            _check(item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            _check(item, depth + 1)


def check_text(text: str) -> None:
    """Raises WireError("json") for a lone surrogate, which no UTF-8 can hold."""
    if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
        raise WireError("json", "a string holds half a surrogate pair")


def dump(value: dict[str, Any]) -> str:
    """As compact JSON."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def nearest(name: str, known: Collection[str]) -> str:
    """The one of ``known`` that ``name`` resembles most."""
    return difflib.get_close_matches(name[:MAX_KEY], known, n=1, cutoff=0.0)[0]


def too_long(message: str, limit: int) -> bool:
    """Whether ``message`` has more than ``limit`` bytes of UTF-8."""
    if len(message) * 4 <= limit or message.isascii():
        return len(message) > limit
    return len(message.encode("utf-8", "replace")) > limit


def clip(message: str) -> str:
    """One line of bounded length."""
    line = " ".join(message.split())
    return line if len(line) <= MAX_MESSAGE else line[: MAX_MESSAGE - 3] + "..."


def close_reason(message: str) -> str:
    """As much of ``message`` as a close frame can carry."""
    data = message.encode("utf-8", "replace")
    return message if len(data) <= MAX_REASON else data[: MAX_REASON - 3].decode("utf-8", "ignore") + "..."


def seconds(value: float) -> float:
    """Seconds as they go over the wire: to the millisecond."""
    return round(float(value), 3)


def confidence(value: float | None) -> float | None:
    """To four digits."""
    return None if value is None else round(float(value), 4)


def check_rate(rate: int) -> int:
    """Raises WireError("audio") for sample rates that are not served."""
    if not MIN_RATE <= rate <= MAX_RATE:
        raise WireError("audio", f"sample_rate {rate} is outside the range: {MIN_RATE} to {MAX_RATE} Hz are heard")
    return rate


def named_in(message: str, phrases: Collection[str]) -> set[str]:
    """Those of ``phrases`` that an error of :class:`asr.decoding.hot_words.HotWords` calls unusable."""
    return {phrase for phrase in phrases if f"'{phrase}': " in message}
