"""``/v1/listen``: the live protocol of Deepgram (docs/protocol.md).

Source: the types of the deepgram-sdk package (listen/v1) and developers.deepgram.com/reference/streaming.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from asr.engine import Configured, Event, Finished, Flushed, Output, Rejected, SessionConfig
from asr.results import Alternative, Partial, Segment, Word
from server.protocols.actions import Action, Configure, Cut, Feed, Note, Open, Send
from server.protocols.common import (
    Adapter,
    Context,
    WireError,
    check_rate,
    clip,
    confidence,
    dump,
    named_in,
    nearest,
    parse,
    seconds,
)
from server.protocols.listen_query import MOST_PHRASES, read_query
from server.protocols.wav import read_header

SILENCE_S = 10.0  # without audio or KeepAlive: NET-0001
MESSAGES = ("KeepAlive", "Finalize", "CloseStream", "Configure")
CHANNEL = [0, 1]  # the first of one: several are heard as their mean
_FINALIZE, _UTTERANCE = "finalize", "utterance"  # whose cut it is


class DeepgramAdapter(Adapter):
    """One connection; ``query``: that of the request, raw. Raises AsrError for one that cannot be served."""

    protocol = "deepgram"

    def __init__(self, context: Context, query: str) -> None:
        super().__init__(context)
        self.query = read_query(query, context.model.name)
        self.warnings = list(self.query.warnings)
        self._hot_words = [{"text": text, "boost": boost} for text, boost in self.query.hot_words]
        self._keyterms: list[str] | None = None  # of a Configure that is not answered yet
        self._header = b""  # of a WAV file, as far as it has come
        self._heard = 0.0
        self._sha256 = hashlib.sha256()
        self._duration = 0.0
        self._segment = -1  # the last one that SpeechStarted told of
        self._open_words = False  # the open segment has words
        self._last_word: float | None = None  # its end, until UtteranceEnd has told of it
        self._last_final: float | None = None  # the same, of final words alone
        self._cutting = False

    # In.

    def _begin(self, now: float) -> list[Action]:
        self._heard = now
        if self.query.encoding is None:
            return []
        return self._open(self.query.encoding, self.query.sample_rate, self.query.channels)

    def _open(self, encoding: str, rate: int, channels: int) -> list[Action]:
        self.config = SessionConfig(rate, encoding, channels, None, self.query.partials)
        self.phase = "opening"
        return self._open_again()

    def _open_again(self) -> list[Action]:
        options = dict(self.query.options)
        if self._hot_words:
            options["hotwords"] = list(self._hot_words)
        c = self.config
        return [Open(SessionConfig(c.sample_rate, c.encoding, c.channels, c.channel, c.partials, options))]

    def refused(self, code: str, message: str, now: float) -> list[Action]:
        """Hot words that cannot be heard are passed over, with a warning."""
        if code != "usage" or not self._hot_words or self.phase == "closed":
            return super().refused(code, message, now)
        texts = [str(h["text"]) for h in self._hot_words]
        bad = named_in(message, texts) or set(texts)
        self._hot_words = [h for h in self._hot_words if h["text"] not in bad]
        self.warnings += [f"keyword '{clip(text)[:40]}' cannot be heard and is left out" for text in sorted(bad)]
        return [Note("phrases_ignored", {"count": len(bad)}), *self._open_again()]

    def _text(self, message: str, now: float) -> list[Action]:
        value = parse(message)
        kind = value.get("type")
        self._heard = now
        if kind not in MESSAGES:
            hint = f": did you mean '{nearest(kind, MESSAGES)}'?" if isinstance(kind, str) else ""
            return [_error("SchemaError", f"type must be one of {', '.join(MESSAGES)}{hint}")]
        if kind == "CloseStream":
            return self._close_stream(now)
        if self.phase == "finishing" or kind == "KeepAlive":
            return []
        if kind == "Configure":
            return self._configure(value.get("keyterms"))
        return [Cut(_FINALIZE)] if self.phase != "new" else [self._nothing()]

    def _configure(self, terms: Any) -> list[Action]:
        if terms is None:
            return [Send(dump({"type": "ConfigureSuccess", "request_id": self._request}))]
        if self._keyterms is not None:
            return [self._no("CONFIGURE_ALREADY_PENDING", "another Configure is not answered yet")]
        if not isinstance(terms, list) or not all(isinstance(t, str) for t in terms):
            return [_error("SchemaError", "keyterms is a list of strings")]
        if len(terms) > MOST_PHRASES:
            return [self._no("CONFIGURE_KEYTERM_LIMIT_EXCEEDED", f"{MOST_PHRASES} keyterms are allowed")]
        if self.phase == "new":
            return [self._no("CONFIGURE_INTERNAL_ERROR", "send the WAV header first")]
        self._keyterms = terms
        return [Configure({"hotwords": [t for t in terms if t.strip()]})]

    def _no(self, code: str, message: str) -> Send:
        value = {"type": "ConfigureFailure", "request_id": self._request, "code": code, "description": clip(message)}
        return Send(dump(value))

    def _binary(self, data: bytes, now: float) -> list[Action]:
        self._heard = now
        if not data:
            return self._close_stream(now)
        if self.phase == "finishing":
            return []
        self._sha256.update(data)
        if self.phase != "new":
            return [Feed(data)]
        self._header += data
        found = read_header(self._header)
        if found is None:
            return []
        rest, self._header = self._header[found.begin :], b""
        rate = check_rate(found.sample_rate)
        if not 1 <= found.channels <= 32:
            raise WireError("encoding", f"{found.channels} channels are not served: send 1 to 32")
        return [*self._open(found.encoding, rate, found.channels), *([Feed(rest)] if rest else [])]

    def _close_stream(self, now: float) -> list[Action]:
        if self.phase == "finishing":
            return []
        if self.phase == "new":
            if self._header:
                raise WireError("encoding", "the stream ended within the WAV header")
            return [self._metadata(), *self._close(1000, "done")]
        return self._finish()

    def waiting(self, now: float) -> None:
        """The ten seconds begin anew: before, the client could not send."""
        self._heard = max(self._heard, now)

    def deadline(self) -> float | None:
        """Ten seconds after the last message."""
        return self._heard + SILENCE_S if self.phase in ("new", "opening", "open") and not self._ending else None

    def tick(self, now: float) -> list[Action]:
        """The client has been silent for too long."""
        due = self.deadline()
        if due is None or now < due:
            return []
        return self.end("idle", f"no audio and no KeepAlive came for {SILENCE_S:.0f} seconds", now)

    # Out.

    def _event(self, event: Event, now: float) -> list[Action]:
        if isinstance(event, Output):
            actions = [a for r in event.results for a in self._result(r)]
            return actions + self._after(event.samples / self.config.sample_rate)
        if isinstance(event, Flushed):
            return self._flushed(event)
        if isinstance(event, Configured | Rejected):
            return self._configured(event)
        if isinstance(event, Finished):
            self._duration = event.samples / self.config.sample_rate
            actions = self._finals(event.segments) + self._utterance_end()
            return actions + self._end_of([self._metadata()])
        return []

    def _configured(self, event: Configured | Rejected) -> list[Action]:
        terms, self._keyterms = self._keyterms, None
        if isinstance(event, Rejected):
            return [self._no("CONFIGURE_INTERNAL_ERROR", event.message)]
        return [Send(dump({"type": "ConfigureSuccess", "request_id": self._request, "keyterms": terms or []}))]

    def _flushed(self, event: Flushed) -> list[Action]:
        if event.id == _UTTERANCE:
            self._cutting = False
            return self._finals(event.segments) + self._utterance_end()
        finals = self._finals(event.segments, from_finalize=True)
        self._open_words, self._last_word = False, self._last_final
        return finals or [self._nothing()]

    def _result(self, result: Partial | Segment) -> list[Action]:
        if isinstance(result, Segment):
            return self._finals([result])
        actions = self._started(result.segment, result.start) if result.text else []
        self._open_words = bool(result.text)
        self._last_word = result.end if result.text else self._last_final
        if self.query.interim:
            place = (result.start, result.end)
            actions.append(self._results([_alternative(result.text, None, ())], place, False, False, False))
        return actions

    def _started(self, segment: int, at: float) -> list[Action]:
        if segment <= self._segment or not self.query.speech_events:
            return []
        self._segment = segment
        return [Send(dump({"type": "SpeechStarted", "channel": CHANNEL, "timestamp": seconds(at)}))]

    def _finals(self, segments: Iterable[Segment], from_finalize: bool = False) -> list[Action]:
        actions: list[Action] = []
        for s in segments:
            self._open_words, self._last_word, self._last_final = False, s.end, s.end
            heard: list[Segment | Alternative] = [s, *s.alternatives]
            texts = [_alternative(t.text, t.confidence, t.words) for t in heard]
            actions += self._started(s.index, s.start)
            place = (s.start, s.end)
            actions.append(self._results(texts, place, True, s.reason != "max_length", from_finalize))
        return actions

    def _after(self, position: float) -> list[Action]:
        """Whether the last word lies back far enough, once ``position`` seconds are heard."""
        self._duration = position
        wait = self.query.utterance_end_s
        if wait is None or self._last_word is None or position - self._last_word < wait or self._cutting:
            return []
        if not self._open_words:
            return self._utterance_end()
        if self.phase != "open":
            return []
        self._cutting = True  # first the final result, then the end
        return [Cut(_UTTERANCE)]

    def _utterance_end(self) -> list[Action]:
        if self.query.utterance_end_s is None or self._last_word is None:
            return []
        value = {"type": "UtteranceEnd", "channel": CHANNEL, "last_word_end": seconds(self._last_word)}
        self._last_word = self._last_final = None
        return [Send(dump(value))]

    def _results(
        self,
        alternatives: Sequence[dict[str, Any]],
        place: tuple[float, float],
        final: bool,
        speech_final: bool,
        from_finalize: bool,
    ) -> Send:
        value = {
            "type": "Results",
            "channel_index": CHANNEL,
            "duration": seconds(place[1] - place[0]),
            "start": seconds(place[0]),
            "is_final": final,
            "speech_final": speech_final,
            "channel": {"alternatives": alternatives},
            "metadata": {"request_id": self._request, "model_info": self._model_info, "model_uuid": self._model},
            "from_finalize": from_finalize,
        }
        return Send(dump(value))

    def _nothing(self) -> Send:
        """Answer to a Finalize where no words are open."""
        place = (self._duration, self._duration)
        return self._results([_alternative("", None, ())], place, True, True, True)

    def _metadata(self) -> Send:
        value = {
            "type": "Metadata",
            "transaction_key": "deprecated",
            "request_id": self._request,
            "sha256": self._sha256.hexdigest(),
            "created": self.context.created,
            "duration": seconds(self._duration),
            "channels": 1,
            "models": [self._model],
            "model_info": {self._model: self._model_info},
            "warnings": self.warnings,
            "tags": list(self.query.tags),
        }
        return Send(dump(value))

    @property
    def _request(self) -> str:
        try:
            return str(uuid.UUID(self.session))
        except ValueError:
            return self.session

    @property
    def _model(self) -> str:
        return str(uuid.uuid5(uuid.NAMESPACE_OID, self.context.model.fingerprint))

    @property
    def _model_info(self) -> dict[str, str]:
        model = self.context.model
        return {"name": model.name, "version": model.fingerprint[:16], "arch": "lstm-ctc"}

    def warn(self, code: str, message: str, now: float, **values: Any) -> list[Action]:
        """Into the Metadata, once."""
        if message not in self.warnings:
            self.warnings.append(message)
        return []

    def _failure(self, code: str, message: str) -> list[Action]:
        return [_error(code, message)]

    def _farewell(self, code: str, message: str) -> tuple[int, str]:
        if code == "idle":
            return 1011, f"NET-0001: {message}"
        if code in ("audio", "encoding"):
            return 1008, f"DATA-0000: {message}"
        return super()._farewell(code, message)


def _error(variant: str, message: str) -> Send:
    return Send(dump({"type": "Error", "variant": variant, "description": clip(message), "message": clip(message)}))


def _alternative(text: str, sure: float | None, words: Iterable[Word]) -> dict[str, Any]:
    """Where there is no confidence, 0 (of interim results) as these messages need a number."""
    return {
        "transcript": text,
        "confidence": confidence(sure) or 0.0,
        "words": [
            {
                "word": w.text,
                "start": seconds(w.start),
                "end": seconds(w.end),
                "confidence": confidence(w.confidence) or 0.0,
                "punctuated_word": w.text,
            }
            for w in words
        ],
    }
