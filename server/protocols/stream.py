"""``/v1/stream``: this project's own protocol (docs/protocol.md)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

from asr.audio.encoding import SampleFormat
from asr.config import from_dict
from asr.engine import Configured, Event, Finished, Flushed, Output, Rejected, SessionConfig
from asr.results import Partial, Segment, Word
from server.protocols.actions import Action, Configure, Feed, Flush, Open, Resume, Send
from server.protocols.common import Adapter, Context, WireError, confidence, dump, nearest, parse, seconds
from server.protocols.stream_options import Change, Start, options_of, session_config

VERSION = 1
MESSAGES = ("start", "config", "flush", "keepalive", "eof")
HURRY_S = 0.5  # so much more audio than time: it comes from a file
MAX_NAME = 128  # characters of a flush's id, a session, a secret
SHOWN_LIMITS = ("max_frame_bytes", "max_text_bytes", "max_session_seconds", "idle_seconds", "ahead_seconds",
                "resume_seconds")  # fmt: skip
_FORMAT = ("sample_rate", "encoding", "channels", "channel", "partials")


class StreamAdapter(Adapter):
    """One connection. ``seq`` numbers partial and final results; finals are kept until they have surely arrived or
    there are too many of them, so that a resumed session can send them again."""

    protocol = "stream"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.words = True
        self.seq = 0
        self.segments = 0
        self.options: dict[str, Any] = {}
        self._secret = context.secret
        self._kept: deque[tuple[int, str]] = deque()
        self._kept_bytes = 0
        self._forgotten = 0  # seq of the last final that is not kept any more
        self._delivered = 0
        self._start = Start()
        self._done = ""
        self._told_of_late_audio = False
        self._fed_bytes = 0
        self._since = 0.0  # when the first could be fed

    # In.

    def _text(self, message: str, now: float) -> list[Action]:
        value = parse(message)
        kind = value.pop("type", None)
        if not isinstance(kind, str) or kind not in MESSAGES:
            hint = f": did you mean '{nearest(kind, MESSAGES)}'?" if isinstance(kind, str) else ""
            raise WireError("message", f"type must be one of {', '.join(MESSAGES)}{hint}")
        if self.phase == "finishing":
            return []
        if kind == "start":
            return self._begin_with(from_dict(Start, value))
        name = value.pop("id", "") if kind == "flush" else ""
        if not isinstance(name, str) or len(name) > MAX_NAME:
            raise WireError("message", f"id must be a string of {MAX_NAME} characters at most")
        changes = options_of(from_dict(Change, value)) if kind == "config" else {}
        if kind != "config" and value:
            raise WireError("message", f"'{kind}' has no key '{next(iter(value))}'")
        opening = self._open()
        if kind == "config":
            return [*opening, Configure(changes)]
        if kind == "flush":
            return [*opening, Flush(name)]
        return opening + self._finish() if kind == "eof" else opening

    def _binary(self, data: bytes, now: float) -> list[Action]:
        if self.phase == "finishing":
            if self._told_of_late_audio:
                return []
            self._told_of_late_audio = True
            return self.warn("message", "audio after eof is not heard", now)
        self._fed_bytes += len(data)
        return [*self._open(), Feed(data)] if data else self._open()

    def _open(self) -> list[Action]:
        if self.phase != "new":
            return []
        self.phase = "opening"
        return [Open(self.config)]

    def _begin_with(self, start: Start) -> list[Action]:
        if self.phase != "new":
            raise WireError("message", "start comes first, and once: send config to change options")
        if start.session is not None or start.secret is not None:
            return self._take_up(start)
        if start.last_seq is not None:
            raise WireError("message", "last_seq belongs to a session that is resumed: give session and secret")
        self.config = session_config(start)
        self.words = start.words is not False
        return self._open()

    def _take_up(self, start: Start) -> list[Action]:
        if not start.session or not start.secret or max(len(start.session), len(start.secret)) > MAX_NAME:
            raise WireError("message", "to resume, give the session and the secret of its ready message")
        if start.last_seq is not None and start.last_seq < 0:
            raise WireError("message", "last_seq is the seq of the last message that came: 0 or more")
        if not self.context.resumable:
            raise WireError("resume", "this server keeps no sessions: start a new one")
        self._start, self._secret, self.phase = start, start.secret, "opening"
        return [Resume(start.session, start.secret)]

    # Out.

    def _opened(self, options: dict[str, Any], samples: int, now: float) -> list[Action]:
        self.options, self._since = options, now
        return [self._ready()]

    def _ready(self, **more: Any) -> Send:
        limits, model, kept = self.context.limits, self.context.model, self.context.resumable
        return _send(
            type="ready",
            protocol=VERSION,
            session=self.session,
            secret=self._secret if kept else None,
            **more,
            config=self._applied(),
            limits={name: getattr(limits, name) for name in SHOWN_LIMITS if kept or name != "resume_seconds"},
            model={
                "name": model.name,
                "fingerprint": model.fingerprint,
                "sample_rate": model.sample_rate,
                "step_ms": model.step_ms,
                "latency_ms": model.latency_ms,
                "words": model.words,
                "hotwords": model.hotwords,
            },
        )

    def _applied(self) -> dict[str, Any]:
        """All options as they hold, in the form in which a client gives them."""
        endpoint = self.options.get("endpoint") or {}
        return {
            **{name: getattr(self.config, name) for name in _FORMAT},
            "words": self.words,
            "alternatives": self.options.get("alternatives", 0),
            "endpointing": endpoint if any(endpoint.values()) else False,
            "hotwords": self.options.get("hotwords", []),
            "lm": "default" if self.options.get("lm", True) else "none",
        }

    def _event(self, event: Event, now: float) -> list[Action]:
        if isinstance(event, Output):
            late = event.lag_ms > self.context.limits.lag_warning_ms and not self._hurries(now)
            results = [
                self._final(r) if isinstance(r, Segment) else self._partial(r, event.lag_ms) for r in event.results
            ]
            return results + (self.lagging(event.lag_ms, now) if late else [])
        if isinstance(event, Configured):
            self.options = event.options
            return [_send(type="configured", config=self._applied())]
        if isinstance(event, Rejected):
            return self.warn(event.code, event.message, now)
        if isinstance(event, Flushed):
            return [*self._finals(event.segments, "flush"), _send(type="flushed", id=event.id)]
        if isinstance(event, Finished):
            finals = self._finals(event.segments)
            return finals + self._end_of([self._done_message(event)])
        return []

    def _hurries(self, now: float) -> bool:
        """It sends faster than real time, a file say: then the delay is its own."""
        form = SampleFormat(self.config.encoding, self.config.channels)
        return self._fed_bytes / form.frame_bytes / self.config.sample_rate > now - self._since + HURRY_S

    def _done_message(self, event: Finished) -> Send:
        value = {
            "type": "done",
            "audio_seconds": seconds(event.samples / self.config.sample_rate),
            "audio_samples": event.samples,
            "segments": self.segments,
            "processing_seconds": seconds(event.processing_s),
        }
        self._done = dump(value)
        return Send(self._done, self.seq + 1)

    def _partial(self, partial: Partial, lag_ms: float) -> Action:
        self.seq += 1
        text = dump(
            {
                "type": "partial",
                "seq": self.seq,
                "segment": partial.segment,
                "start": seconds(partial.start),
                "end": seconds(partial.end),
                "stable": partial.stable,
                "unstable": partial.text[len(partial.stable) :],
                "lag_ms": round(lag_ms),
            }
        )
        return Send(text, self.seq)

    def _finals(self, segments: Iterable[Segment], reason: str = "") -> list[Action]:
        return [self._final(segment, reason) for segment in segments]

    def _final(self, segment: Segment, reason: str = "") -> Action:
        self.seq += 1
        self.segments += reason != "flush"
        value: dict[str, Any] = {
            "type": "final",
            "seq": self.seq,
            "segment": segment.index,
            "start": seconds(segment.start),
            "end": seconds(segment.end),
            "text": segment.text,
            "confidence": confidence(segment.confidence),
            "reason": reason or segment.reason,
        }
        if self.words:
            value["words"] = _words(segment.words)
        if self.options.get("alternatives"):
            value["alternatives"] = [self._alternative(a) for a in segment.alternatives]
        text = dump(value)
        self._keep(text)
        return Send(text, self.seq)

    def _alternative(self, alternative: Any) -> dict[str, Any]:
        value = {"text": alternative.text, "confidence": confidence(alternative.confidence)}
        return {**value, "words": _words(alternative.words)} if self.words else value

    def warn(self, code: str, message: str, now: float, **values: Any) -> list[Action]:
        """As a ``warning``."""
        return [_send(type="warning", code=code, message=message, **values)] if self.phase != "new" else []

    def _failure(self, code: str, message: str) -> list[Action]:
        return [_send(type="error", code=code, message=message)]

    # Resume.

    def _keep(self, text: str) -> None:
        self._kept.append((self.seq, text))
        self._kept_bytes += len(text)
        self._forget()

    def _forget(self) -> None:
        """Of what has left, the oldest finals beyond the limit; what has not left stays."""
        limit = self.context.limits.max_retained_bytes
        while self._kept_bytes > limit and self._kept and self._kept[0][0] <= self._delivered:
            self._forgotten, text = self._kept.popleft()
            self._kept_bytes -= len(text)

    def delivered(self, seq: int) -> None:
        """Note it."""
        self._delivered = max(self._delivered, seq)
        self._forget()

    @property
    def resumable(self) -> bool:
        """From ``ready`` on, until ``done`` has arrived."""
        live = self._delivered <= self.seq if self._done else self.phase in ("open", "finishing")
        return self.context.resumable and live and self._ending is None

    def save(self) -> dict[str, Any]:
        """All but the secret."""
        return {
            "config": {name: getattr(self.config, name) for name in _FORMAT},
            "options": self.options,
            "words": self.words,
            "seq": self.seq,
            "segments": self.segments,
            "delivered": self._delivered,
            "forgotten": self._forgotten,
            "kept": [list(item) for item in self._kept],
            "done": self._done,
        }

    def resumed(self, saved: dict[str, Any], options: dict[str, Any], samples: int, now: float) -> list[Action]:
        """Ready again, and what the client has not got."""
        start = self._start
        self.session = str(start.session)
        self.config = SessionConfig(**{name: saved["config"][name] for name in _FORMAT})
        self.words, self.seq, self.segments = saved["words"], saved["seq"], saved["segments"]
        self._delivered, self._forgotten, self._done = saved["delivered"], saved["forgotten"], saved["done"]
        self._kept = deque((int(seq), str(text)) for seq, text in saved["kept"])
        self._kept_bytes = sum(len(text) for _, text in self._kept)
        self.options = options or saved["options"]
        self.phase, self._since = "finishing" if self._done else "open", now
        position = seconds(samples / self.config.sample_rate)
        since = self._delivered if start.last_seq is None else start.last_seq
        actions: list[Action] = [
            self._ready(resumed=True, audio_samples=samples, audio_position=position, seq=self.seq)
        ]
        actions += [Send(text, seq) for seq, text in self._kept if seq > since]
        if since < self._forgotten:
            message = f"results up to seq {self._forgotten} are not kept any more"
            actions += self.warn("missed", message, now, seq=self._forgotten)
        actions += self._ignored(start, now)
        if self._done:
            return [*actions, Send(self._done, self.seq + 1), *self._close(1000, "done")]
        return actions + self._finish() if self._ending else actions

    def _ignored(self, start: Start, now: float) -> list[Action]:
        """A resumed session keeps its options: say so, where the client asks for others."""
        asked = {k: v for k, v in vars(start).items() if v is not None and k not in ("session", "secret", "last_seq")}
        applied = self._applied()
        # Hot words and endpointing may be given in a shorter form than they are shown: not compared.
        other = [k for k, v in asked.items() if k not in ("hotwords", "endpointing") and v != applied[k]]
        if not other:
            return []
        message = f"a resumed session keeps its options: {', '.join(other)} not changed"
        return self.warn("config", message, now)


def _send(**values: Any) -> Send:
    return Send(dump(values))


def _words(words: Iterable[Word]) -> list[dict[str, Any]]:
    return [
        {"word": w.text, "start": seconds(w.start), "end": seconds(w.end), "confidence": confidence(w.confidence)}
        for w in words
    ]
