"""The server: sessions on one port, in one process, with one engine."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from websockets.asyncio.server import Server as WebSocketServer
from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from asr.errors import AsrError, ConfigError, UsageError
from server.auth import SCHEMES, Tokens
from server.config import ServerConfig
from server.gate import Gate, Ticket
from server.http import static_table
from server.logs import log
from server.metrics import Metrics, SessionMetrics
from server.seats import Seats
from server.session import Session
from server.store import MemoryStore, RedisStore, make_store
from server.transport import ABNORMAL, Connection, WebSocketTransport, to_response

FRAMES = 8  # messages of one client that wait unread in the server
WATCH_SECONDS = 1.0
CLOSE_CODES = {1002: "message", 1007: "json", 1009: "too_large"}


class Server:
    """``server = Server(config, engine); await server.start(); ...; await server.drain(); await server.close()``.

    The engine is the caller's: it is neither started nor closed here. ``seats``: those shared with other processes.
    """

    def __init__(
        self,
        config: ServerConfig,
        engine: Any,
        *,
        store: MemoryStore | RedisStore | None = None,
        seats: Seats | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        """:class:`ConfigError` for a tokens file or certificate that cannot be used."""
        self.config, self.engine = config, engine
        self.store = store or make_store(config.session_store, config.store_bytes)
        self.metrics = metrics or Metrics()
        self.tokens = Tokens(Path(config.tokens) if config.tokens else None)
        self.seats = seats or Seats(config.max_sessions, config.sessions_per_token, config.slots)
        self.gate = Gate(config, engine, self.tokens, self.seats, self.metrics, static_table())
        self.sessions: dict[Session, SessionMetrics] = {}
        self._tls = tls_context(config)
        self._server: WebSocketServer | None = None
        self._watch: asyncio.Task[None] | None = None

    @property
    def port(self) -> int:
        """The port that it listens on."""
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def start(self, sock: socket.socket | None = None) -> None:
        """Listen on ``sock``, or where the configuration says. Raises UsageError where that cannot be."""
        where: dict[str, Any] = {"sock": sock} if sock else {"host": self.config.host, "port": self.config.port}
        limits = self.config.limits
        try:
            self._server = await serve(
                self._serve,
                **where,
                ssl=self._tls,
                process_request=self._request,
                process_response=self._response,
                select_subprotocol=select_subprotocol,
                create_connection=Connection,
                compression=None,  # audio does not shrink, and it would take 64 KiB a connection
                server_header="asr",
                open_timeout=limits.open_seconds,
                close_timeout=limits.close_seconds,
                ping_interval=self.config.ping_seconds,
                ping_timeout=self.config.ping_seconds,
                max_size=max(limits.max_frame_bytes, limits.max_text_bytes) + 1,  # one more: the adapter says it
                max_queue=FRAMES,
            )
        except OSError as error:
            place = f"{self.config.host}:{self.config.port}"
            raise UsageError(f"cannot listen on {place}: {error.strerror or error}") from None
        self._watch = asyncio.create_task(self._watch_engine())

    def reload(self) -> None:
        """Read the tokens file and the certificate again; what cannot be read leaves the old ones in place."""
        try:
            count = self.tokens.reload()
            if self._tls:
                load_certificate(self._tls, self.config)
            log("reloaded", tokens=count)
        except ConfigError as error:
            log("reload failed", logging.ERROR, message=str(error))

    async def drain(self, seconds: float | None = None) -> None:
        """Go down gently: not ready, no new sessions; running ones have ``seconds`` (``drain_seconds``) to finish; then
        they are closed with 1001, and put into the store first where it outlives this process."""
        self.gate.draining = True
        self.metrics.draining.set(1)
        seconds = self.config.drain_seconds if seconds is None else seconds
        log("draining", sessions=len(self.sessions), seconds=seconds)
        await self._empty(seconds)
        left = list(self.sessions)
        for session in left:
            await session.drain(park=self.store.shared)
        limits = self.config.limits
        await self._empty(limits.engine_seconds + limits.close_seconds if left else 0)
        log("drained", closed=len(left), left=len(self.sessions))

    async def _empty(self, seconds: float) -> None:
        """Wait until no session is left, at most ``seconds``."""
        end = time.monotonic() + seconds
        while (self.sessions or self.seats.taken) and time.monotonic() < end:
            await asyncio.sleep(0.02)

    async def close(self) -> None:
        """End at once: whoever is still connected is closed with 1001."""
        self.gate.draining = True
        if self._watch:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        if self._server:
            self._server.close()
            await self._server.wait_closed()
        await self.store.close()
        self.metrics.draining.set(0)

    # --- connections

    def _request(self, connection: ServerConnection, request: Request) -> Response | None:
        decision = self.gate.decide(request.method, request.path, request.headers)
        if isinstance(decision, Ticket):
            assert isinstance(connection, Connection)
            connection.ticket = decision
            return None
        if decision.status >= 400:
            path = request.path.partition("?")[0][:100]
            log("refused", logging.DEBUG, status=decision.status, path=path, client=_client(connection))
        return to_response(decision, head=request.method == "HEAD")

    def _response(self, connection: ServerConnection, request: Request, response: Response) -> None:
        """The library may still refuse what the gate let in, a handshake without a key, say."""
        if response.status_code != 101 and isinstance(connection, Connection) and connection.ticket:
            connection.ticket.release()

    async def _serve(self, connection: ServerConnection) -> None:
        assert isinstance(connection, Connection) and connection.ticket is not None
        ticket = connection.ticket
        ticket.served = True
        observer = SessionMetrics(self.metrics, str(connection.id)[:8], self.config.log_transcripts)
        transport = WebSocketTransport(connection, self.config.limits.close_seconds)
        session = Session(
            ticket.adapter,
            transport,
            self.engine,
            self.config.limits,
            store=self.store,
            observer=observer,
            owner=ticket.owner,
        )
        live = self.metrics.live.labels(ticket.adapter.protocol)
        self.sessions[session] = observer
        live.inc()
        log(
            "connected",
            **observer.names,
            protocol=ticket.adapter.protocol,
            owner=ticket.owner,
            client=_client(connection),
        )
        try:
            summary = await session.run()
            if not summary.error and summary.close_code == ABNORMAL and (code := CLOSE_CODES.get(transport.refused)):
                observer.error(code)
            facts = {name: _short(value) for name, value in vars(summary).items() if name != "protocol"}
            log("disconnected", **observer.names | facts)
        except Exception as error:  # a bug of ours: it ends this session and no other
            observer.error("error")
            log("internal error", logging.ERROR, error, **observer.names)
            await transport.close(1011, "error: internal error")
        finally:
            live.dec()
            self.sessions.pop(session, None)
            ticket.release()

    async def _watch_engine(self) -> None:
        """Once a second: the engine's load goes to the metrics, and to the clients if it is late."""
        while True:
            try:
                load = self.engine.load
                lag_ms = self.gate.lag_ms = self.metrics.worst_lag_ms()
                self.metrics.engine(load, lag_ms)
                self.seats.busy(bool(self.gate.not_ready()))
                if lag_ms > self.config.limits.lag_warning_ms:
                    for session, observer in list(self.sessions.items()):
                        if observer.live:
                            session.warn_lagging(lag_ms)
                if not self.store.shared:
                    await self.store.ping()
            except AsrError as error:
                log("watch", logging.WARNING, message=str(error))
            except Exception as error:
                log("watch", logging.ERROR, error)
            await asyncio.sleep(WATCH_SECONDS)


def select_subprotocol(connection: ServerConnection, offered: Sequence[Subprotocol]) -> Subprotocol | None:
    """The name in front of a token; never the token, and nothing where there is none."""
    return next((name for name in offered if name.lower() in SCHEMES), None)


def tls_context(config: ServerConfig) -> ssl.SSLContext | None:
    """For ``tls_cert`` and ``tls_key``: TLS 1.2 or later. None without them."""
    if not config.tls_cert:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    load_certificate(context, config)
    return context


def load_certificate(context: ssl.SSLContext, config: ServerConfig) -> None:
    """New connections get the certificate that lies in the files now. :class:`ConfigError` if it cannot be used."""
    try:
        context.load_cert_chain(config.tls_cert, config.tls_key, password=_no_password)
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise ConfigError(f"tls_cert {config.tls_cert} and tls_key {config.tls_key}: {reason}") from None


def _no_password() -> str:
    raise ValueError("the key is encrypted: give one without a password")


def _client(connection: ServerConnection) -> str:
    address = connection.remote_address
    return str(address[0]) if isinstance(address, tuple) else ""


def _short(value: Any) -> Any:
    return round(value, 3) if isinstance(value, float) else value
