"""``/`` and ``/vosk``: the protocol of vosk-server (docs/protocol.md): exactly one reply for every frame of audio.

Source: alphacep/vosk-server, websocket/asr_server.py, and the shapes of vosk-api's recogniser.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from asr.engine import Event, Finished, Flushed, Output, SessionConfig
from asr.options import MOST_ALTERNATIVES
from asr.results import Alternative, Partial, Segment, Word
from server.protocols.actions import Action, Cut, Feed, Note, Open, Send
from server.protocols.common import Adapter, Context, WireError, check_rate, confidence, dump, named_in, parse, seconds

DEFAULT_RATE = 8000
UNKNOWN = "[unk]"  # in a phrase list: anything else may be said, which is always so here


class VoskAdapter(Adapter):
    """One connection. Frames wait in ``_frames``, by their number, until the engine has decoded them."""

    protocol = "vosk"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.config = SessionConfig(sample_rate=DEFAULT_RATE)
        self.words = True
        self.max_alternatives = 0
        self._phrases: list[str] = []
        self._fed = self._taken = 0
        self._frames: deque[int] = deque()
        self._closed: list[Segment] = []  # not yet told
        self._partial = ""

    # In.

    def _text(self, message: str, now: float) -> list[Action]:
        value = parse(message)
        if "config" in value:
            return self._configure(value["config"])
        if self.phase == "finishing":
            return []
        if value.get("eof"):
            if self.phase == "new":  # nothing was heard
                return [self._final([]), *self._close(1000, "done")]
            return self._finish()
        if value.get("reset"):
            return [Cut()] if self.phase != "new" else [self._final([])]
        raise WireError("message", 'send audio, {"config": {...}}, {"reset": 1} or {"eof": 1}')

    def _binary(self, data: bytes, now: float) -> list[Action]:
        if self.phase == "finishing":
            return [Note("audio_after_eof", {"bytes": len(data)})]
        if not data:
            self._frames.append(self._fed)
            return self._answer()
        self._fed += 1
        self._frames.append(self._fed)
        if self.phase != "new":
            return [Feed(data)]
        self.phase = "opening"
        return [Open(self._session_config()), Feed(data)]

    def _configure(self, keys: Any) -> list[Action]:
        if not isinstance(keys, dict):
            raise WireError("message", 'config is an object: {"config": {"sample_rate": 8000}}')
        if self.phase != "new":
            return [Note("late_config", {"keys": len(keys)})]
        model = keys.get("model")
        if model not in (None, "", self.context.model.name):
            raise WireError("usage", f"that model is not served here: leave it out, or say '{self.context.model.name}'")
        if keys.get("sample_rate") is not None:
            rate = check_rate(round(_number("sample_rate", keys["sample_rate"])))
            self.config = replace(self.config, sample_rate=rate)
        if keys.get("words") is not None:
            self.words = bool(keys["words"])
        if keys.get("max_alternatives") is not None:
            self.max_alternatives = round(min(max(_number("max_alternatives", keys["max_alternatives"]), 0), 1e6))
        phrases = keys.get("phrase_list") or []
        if not isinstance(phrases, list) or not all(isinstance(p, str) for p in phrases):
            raise WireError("config", "phrase_list is a list of strings")
        self._phrases = [p for p in phrases if p.strip() and p != UNKNOWN]
        return []

    def _session_config(self) -> SessionConfig:
        others = min(max(self.max_alternatives - 1, 0), MOST_ALTERNATIVES)
        options: dict[str, Any] = {"alternatives": others} if others else {}
        if self._phrases:
            options["hotwords"] = list(self._phrases)
        self.config = replace(self.config, options=options)
        return self.config

    def refused(self, code: str, message: str, now: float) -> list[Action]:
        """Phrases that cannot be heard are passed over, as vosk does."""
        if code != "usage" or not self._phrases or self.phase == "closed":
            return super().refused(code, message, now)
        bad = named_in(message, self._phrases) or set(self._phrases)
        ignored = [p for p in self._phrases if p in bad]
        self._phrases = [p for p in self._phrases if p not in bad]
        return [Note("phrases_ignored", {"count": len(ignored)}), Open(self._session_config())]

    # Out.

    def _event(self, event: Event, now: float) -> list[Action]:
        if isinstance(event, Output):
            self._taken = max(self._taken, event.taken)
            for result in event.results:
                self._hear(result)
            return self._answer()
        if isinstance(event, Flushed | Finished):
            if isinstance(event, Flushed) and not event.cut:
                return []
            self._taken = self._fed
            actions = self._answer()
            actions.append(self._final([*self._closed, *event.segments]))
            self._closed, self._partial = [], ""
            return actions + self._end_of([]) if isinstance(event, Finished) else actions
        return []

    def _hear(self, result: Partial | Segment) -> None:
        if isinstance(result, Segment):
            self._closed.append(result)
            self._partial = ""
        else:
            self._partial = result.text

    def _answer(self) -> list[Action]:
        """A reply for every frame that is decoded; the first one tells of the segments that are closed."""
        actions: list[Action] = []
        while self._frames and self._frames[0] <= self._taken:
            self._frames.popleft()
            actions.append(self._final(self._closed) if self._closed else Send(dump({"partial": self._partial})))
            self._closed = []
        return actions

    def _final(self, segments: Sequence[Segment]) -> Send:
        if not self.max_alternatives:
            return Send(dump(self._best(segments)))
        count = max((1 + len(s.alternatives) for s in segments), default=1)
        ranks = [[_rank(s, i) for s in segments] for i in range(min(count, self.max_alternatives))]
        return Send(dump({"alternatives": [self._alternative(rank) for rank in ranks]}))

    def _best(self, segments: Sequence[Segment]) -> dict[str, Any]:
        words = [{"conf": _certain(w.confidence), **_place(w)} for s in segments for w in s.words]
        text = " ".join(s.text for s in segments)
        return {"result": words, "text": text} if words and self.words else {"text": text}

    def _alternative(self, parts: Sequence[Segment | Alternative]) -> dict[str, Any]:
        words = [_place(w) for part in parts for w in part.words]
        value = {
            "text": " ".join(part.text for part in parts),
            "confidence": min((_certain(part.confidence) for part in parts), default=1.0),
        }
        return {**value, "result": words} if words and self.words else value


def _rank(segment: Segment, rank: int) -> Segment | Alternative:
    """The text of that rank, or the best one where there are fewer."""
    return segment.alternatives[rank - 1] if 0 < rank <= len(segment.alternatives) else segment


def _place(word: Word) -> dict[str, Any]:
    return {"end": seconds(word.end), "start": seconds(word.start), "word": word.text}


def _certain(value: float | None) -> float:
    """vosk always has a number; one of 1 stands for none."""
    rounded = confidence(value)
    return 1.0 if rounded is None else rounded


def _number(name: str, value: Any) -> float:
    """As vosk reads it: a number, or a string of one."""
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str) or len(str(value)) > 24:
            raise ValueError
        number = float(value)
        if not abs(number) < 1e9:
            raise ValueError
        return number
    except ValueError:
        raise WireError("config", f"{name} must be a number") from None
