"""What the server counts, for Prometheus. With several server processes their numbers are added up: the library keeps
each process's in a file under ``PROMETHEUS_MULTIPROC_DIR``, which must be set before this module is first imported.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from asr.engine import Event, Failed, Finished, Flushed, Output
from asr.errors import ERRORS
from asr.results import Segment
from server.logs import log
from server.session import Observer

MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR"
LAG_BUCKETS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0)
REFUSALS = ("auth", "full", "token", "lagging", "draining", "engine", "path", "query", "method", "origin")
AHEAD_SECONDS = 1.0  # who sends so much more than can have been recorded since is no live client
PROTOCOLS = ("stream", "vosk", "deepgram")


Clock = Callable[[], float]


class Metrics:
    """All metrics of a server process. ``content_type`` is that of :meth:`text`."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.opened = self._counter("asr_sessions_opened", "Sessions that the engine took in", "protocol")
        self.resumed = self._counter("asr_sessions_resumed", "Of these, sessions that went on after a drop", "protocol")
        self.parked = self._counter("asr_sessions_parked", "Sessions put into the store")
        self.parked_bytes = self._counter("asr_sessions_parked_bytes", "Their size")
        self.closed = self._counter("asr_connections_closed", "Connections of sessions by close code", "code")
        self.live = self._gauge("asr_connections", "Connections of sessions now", "livesum", "protocol")
        self.audio = self._counter("asr_audio_seconds", "Audio given to the engine")
        self.received = self._counter("asr_received_bytes", "Audio received")
        self.sent = self._counter("asr_sent_bytes", "Messages sent")
        self.finals = self._counter("asr_finals", "Segments that were closed")
        self.words = self._counter("asr_words", "Words in them")
        self.refused = self._counter("asr_refusals", "Connections refused at the handshake", "reason")
        self.errors = self._counter("asr_errors", "Sessions that ended with an error", "code")
        self.lag = Histogram(
            "asr_lag_seconds",
            "Age of the oldest audio of a step, per session and step; pace: live, or ahead (files, by back-pressure)",
            ("pace",),
            buckets=LAG_BUCKETS,
            registry=self.registry,
        )
        self.busy = self._gauge("asr_engine_busy_ratio", "Share of the last second spent computing", "livemax")
        self.engine_lag = self._gauge("asr_engine_lag_seconds", "Worst lag of the last second", "livemax")
        self.alive = self._gauge("asr_engine_workers", "Engine workers alive", "livesum")
        self.slots = self._gauge("asr_engine_slots", "Sessions that the engines may hold", "livesum")
        self.taken = self._gauge("asr_engine_sessions", "Sessions that they hold", "livesum")
        self.restarts = self._counter("asr_engine_restarts", "Engine workers started again")
        self.steps = self._counter("asr_engine_steps", "Batched steps of the network")
        self.draining = self._gauge("asr_draining", "Server processes going down", "livesum")
        self.live_lag_ms = 0.0  # worst of live sessions since it was last asked for
        self._lags = {pace: self.lag.labels(pace) for pace in ("live", "ahead")}
        self._engine_steps = self._engine_restarts = 0
        for protocol in PROTOCOLS:
            self.live.labels(protocol)
        for reason in REFUSALS:
            self.refused.labels(reason)

    def _counter(self, name: str, help: str, *labels: str) -> Counter:
        return Counter(name, help, labels, registry=self.registry)

    def _gauge(self, name: str, help: str, mode: Any, *labels: str) -> Gauge:
        return Gauge(name, help, labels, registry=self.registry, multiprocess_mode=mode)

    def engine(self, load: Any, lag_ms: float) -> None:
        """Take over an :class:`asr.engine.EngineLoad`; called about once a second."""
        self.busy.set(load.busy)
        self.engine_lag.set(lag_ms / 1000)
        self.alive.set(load.alive)
        self.slots.set(load.slots)
        self.taken.set(load.sessions)
        self.steps.inc(max(0, load.steps - self._engine_steps))
        self.restarts.inc(max(0, load.restarts - self._engine_restarts))
        self._engine_steps, self._engine_restarts = load.steps, load.restarts

    def step(self, lag_ms: float, live: bool) -> None:
        """A session took part in a step of the network."""
        self._lags["live" if live else "ahead"].observe(lag_ms / 1000)
        if live:
            self.live_lag_ms = max(self.live_lag_ms, lag_ms)

    def worst_lag_ms(self) -> float:
        """Of live sessions since the last call. Audio that was sent faster than it lasts must wait, however fast the
        engine is, so that of files does not count."""
        worst, self.live_lag_ms = self.live_lag_ms, 0.0
        return worst

    def text(self) -> bytes:
        """All metrics, in Prometheus's text format; of all server processes."""
        if not os.environ.get(MULTIPROCESS):
            return generate_latest(self.registry)
        together = CollectorRegistry()
        multiprocess.MultiProcessCollector(together)  # type: ignore[no-untyped-call]
        return generate_latest(together)


class SessionMetrics(Observer):
    """What one session tells: into the metrics and, as lines with its id, into the log."""

    def __init__(
        self, metrics: Metrics, connection: str, transcripts: bool = False, clock: Clock = time.monotonic
    ) -> None:
        """``connection``: a name of the connection, which is in every line. ``transcripts``: whether texts are, too."""
        self._metrics, self._transcripts, self._clock = metrics, transcripts, clock
        self._heard_at, self._ahead_s = clock(), 0.0
        self.names: dict[str, Any] = {"connection": connection}

    def opened(self, protocol: str, session: str, resumed: bool) -> None:
        """See :class:`Observer`."""
        self.names["session"] = session
        self._metrics.opened.labels(protocol).inc()
        if resumed:
            self._metrics.resumed.labels(protocol).inc()
        log("session open", **self.names, protocol=protocol, resumed=resumed)

    @property
    def live(self) -> bool:
        """Whether its audio comes no faster than it lasts: from a microphone, not from a file."""
        return self._ahead() <= AHEAD_SECONDS

    def _ahead(self) -> float:
        """Seconds that a microphone would still need for the audio that is here already."""
        return max(0.0, self._ahead_s - (self._clock() - self._heard_at))

    def event(self, event: Event) -> None:
        """See :class:`Observer`. What a flush answers is of a copy: those segments are still open."""
        if isinstance(event, Output):
            self._metrics.step(event.lag_ms, self.live)
            self._segments(tuple(result for result in event.results if isinstance(result, Segment)))
        elif isinstance(event, Finished) or (isinstance(event, Flushed) and event.cut):
            self._segments(event.segments)
        elif isinstance(event, Failed):
            log("session failed", **self.names, code=event.code, message=event.message)

    def _segments(self, segments: tuple[Segment, ...]) -> None:
        self._metrics.finals.inc(len(segments))
        self._metrics.words.inc(sum(len(segment.text.split()) for segment in segments))
        if self._transcripts:
            for segment in segments:
                log("final", **self.names, segment=segment.index, text=segment.text)

    def audio(self, n_bytes: int, seconds: float) -> None:
        """See :class:`Observer`."""
        self._metrics.received.inc(n_bytes)
        self._metrics.audio.inc(seconds)
        self._ahead_s, self._heard_at = self._ahead() + seconds, self._clock()

    def sent(self, n_bytes: int) -> None:
        """See :class:`Observer`."""
        self._metrics.sent.inc(n_bytes)

    def error(self, code: str) -> None:
        """See :class:`Observer`."""
        self._metrics.errors.labels(code if code in ERRORS else "error").inc()

    def closed(self, code: int, reason: str) -> None:
        """See :class:`Observer`."""
        self._metrics.closed.labels(str(code)).inc()

    def parked(self, n_bytes: int) -> None:
        """See :class:`Observer`."""
        self._metrics.parked.inc()
        self._metrics.parked_bytes.inc(n_bytes)

    def note(self, kind: str, **values: Any) -> None:
        """See :class:`Observer`."""
        log("note", **self.names, kind=kind, **values)
