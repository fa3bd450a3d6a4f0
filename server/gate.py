"""The handshake: what a request gets before there is a WebSocket. Plain HTTP is answered, clients without a token, a
seat or a path are refused, all others get a ticket. Nothing is read from a client that is refused, so nothing is lost.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from asr.errors import ERRORS, AsrError
from server.auth import Tokens, find_token
from server.config import ServerConfig
from server.http import Answer, as_json, text, unchanged
from server.metrics import Metrics
from server.protocols import PATHS, Adapter, Context, adapter_for
from server.seats import Seats

OPEN_PATHS = ("/healthz", "/readyz")  # answered without a token
HINT = "A streaming speech recogniser listens here: connect by WebSocket to /v1/stream, / (vosk) or /v1/listen."


class Headers(Protocol):
    """Of a request; names in any case."""

    def get_all(self, key: str) -> list[str]:
        """All values of a header."""


@dataclass
class Ticket:
    """Admits one connection: its adapter, its owner's name and its seat, which :meth:`release` gives back once."""

    adapter: Adapter
    owner: str
    _give: Callable[[str], None] = field(repr=False)
    served: bool = False  # a handler has it now and will release it
    _held: bool = True

    def release(self) -> None:
        """Give the seat back. May be called again."""
        if self._held:
            self._held = False
            self._give(self.owner)


class Gate:
    """Decides about requests. ``draining`` is set when the server goes down, ``lag_ms`` (of live sessions, now) by
    whoever watches it."""

    def __init__(
        self,
        config: ServerConfig,
        engine: Any,
        tokens: Tokens,
        seats: Seats,
        metrics: Metrics,
        files: Mapping[str, Answer],
    ) -> None:
        self.config, self.engine, self.tokens, self.seats = config, engine, tokens, seats
        self.metrics, self.files = metrics, files
        self.draining, self.lag_ms = False, 0.0
        self._origins = {origin.strip().lower() for origin in config.origins.split(",") if origin.strip()}

    def decide(self, method: str, target: str, headers: Headers) -> Answer | Ticket:
        """What the request for ``target`` (path and query) gets."""
        path, _, query = target.partition("?")
        if method not in ("GET", "HEAD"):
            return self._refuse("method", text(405, "only GET is answered here", Allow="GET, HEAD"))
        if not _upgrades(headers):
            return self._plain(path, headers)
        return self._admit(path, query, headers)

    def not_ready(self) -> str:
        """Why no session can be opened now; "" if one can."""
        if self.draining:
            return "draining"
        if self.engine.load.alive < 1:
            return "engine"
        return "lagging" if self.lag_ms > self.config.refuse_lag_ms else ""

    # --- plain HTTP

    def _plain(self, path: str, headers: Headers) -> Answer:
        if path == "/healthz":
            alive = self.engine.load.alive
            return text(200, "alive") if alive or self.draining else text(503, "no engine worker is alive")
        if path == "/readyz":
            return self._ready()
        if path in self.files:
            return unchanged(self.files[path], ",".join(headers.get_all("If-None-Match")))
        if path == "/":
            return text(200, HINT)
        if path in ("/metrics", "/v1/models"):
            if self._owner(headers) is None:
                return self._no_token()
            return self._metrics() if path == "/metrics" else as_json(200, {"models": [self._model()]})
        if path in PATHS:
            return text(426, "this address speaks WebSocket", Upgrade="websocket")
        return text(404, "there is nothing at this address")

    def _ready(self) -> Answer:
        reason = self.not_ready()
        state = {
            "ready": not reason,
            "reason": reason,
            "sessions": self.seats.all_taken,
            "max_sessions": self.config.max_sessions,
            "lag_ms": round(self.lag_ms),
        }
        return as_json(503 if reason else 200, state)

    def _metrics(self) -> Answer:
        if not self.config.metrics:
            return text(404, "metrics are off")
        return Answer(200, self.metrics.content_type, self.metrics.text(), {"Cache-Control": "no-store"})

    def _model(self) -> dict[str, Any]:
        names = ("name", "fingerprint", "sample_rate", "step_ms", "latency_ms", "words", "hotwords")
        return {name: getattr(self.engine.info, name) for name in names}

    # --- sessions

    def _admit(self, path: str, query: str, headers: Headers) -> Answer | Ticket:
        if path not in PATHS:
            return self._refuse("path", text(404, f"there is nothing at this path: use one of {', '.join(PATHS)}"))
        origins = [origin.lower() for origin in headers.get_all("Origin")]
        if self._origins and any(origin not in self._origins for origin in origins):
            return self._refuse("origin", text(403, "pages of this origin may not connect"))
        owner = self._owner(headers)
        if owner is None:
            return self._no_token()
        if reason := self.not_ready():
            return self._busy(reason)
        try:
            adapter = adapter_for(path, query, self._context())
        except AsrError as error:
            status = ERRORS[error.code].http_status
            return self._refuse("query", as_json(status, {"type": "error", "code": error.code, "message": str(error)}))
        if refused := self.seats.take(owner):
            return self._busy(refused)
        return Ticket(adapter, owner, self.seats.give)

    def _context(self) -> Context:
        return Context(
            model=self.engine.info,
            limits=self.config.limits,
            session=secrets.token_hex(16),
            secret=secrets.token_urlsafe(32),
            created=datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        )

    def _owner(self, headers: Headers) -> str | None:
        return self.tokens.check(find_token(headers.get_all("Authorization"), offered(headers)))

    def _no_token(self) -> Answer:
        return self._refuse("auth", text(401, ERRORS["auth"].text, WWW_Authenticate="Bearer"))

    def _busy(self, reason: str) -> Answer:
        code = reason if reason in ERRORS else "full"
        if reason == "token":
            line = f"this token has its {self.config.sessions_per_token} sessions: end one, or try again later"
        else:
            line = ERRORS["draining" if reason == "draining" else "full"].text
        value = {"type": "error", "code": code, "reason": reason, "message": line}
        answer = as_json(503, value)
        retry = {"Retry-After": str(self.config.retry_after_seconds)}
        return self._refuse(reason, Answer(503, answer.type, answer.body, {**answer.headers, **retry}))

    def _refuse(self, reason: str, answer: Answer) -> Answer:
        self.metrics.refused.labels(reason).inc()
        return answer


def _upgrades(headers: Headers) -> bool:
    return any("websocket" in value.lower() for value in headers.get_all("Upgrade"))


def offered(headers: Headers) -> Sequence[str]:
    """The subprotocols that a request offers, in order."""
    values = ",".join(headers.get_all("Sec-WebSocket-Protocol"))
    return [name.strip() for name in values.split(",") if name.strip()]
