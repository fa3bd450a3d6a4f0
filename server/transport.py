"""The edge: connections of the websockets library as the session's transport."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any

from websockets.asyncio.server import ServerConnection
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Response

from server.gate import Ticket
from server.http import Answer
from server.session import Dropped

ABNORMAL = 1006  # the connection dropped (RFC 6455, 7.1.5)


class Connection(ServerConnection):
    """A connection that holds its ticket, and gives its seat back if it is lost before a handler has it."""

    ticket: Ticket | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio."""
        super().connection_lost(exc)
        if self.ticket and not self.ticket.served:
            self.ticket.release()


class WebSocketTransport:
    """As :class:`server.session.Transport` wants it."""

    def __init__(self, connection: ServerConnection, close_seconds: float) -> None:
        self._connection, self._close_seconds = connection, close_seconds

    async def recv(self) -> str | bytes:
        """The next message. The library hands out whole messages and bounds their size."""
        try:
            return await self._connection.recv()
        except ConnectionClosed:
            raise Dropped from None

    async def send(self, message: str) -> None:
        """Waits while the client does not read and the buffers are full."""
        try:
            await self._connection.send(message)
        except ConnectionClosed:
            raise Dropped from None

    async def close(self, code: int, reason: str) -> None:
        """Closing handshake; a client that takes no part in it is cut off."""
        try:
            async with asyncio.timeout(self._close_seconds):
                await self._connection.close(code, reason)
        except (TimeoutError, ConnectionClosed):
            self._connection.transport.abort()

    @property
    def refused(self) -> int:
        """The code with which the library itself closed, for what the client sent: too large a message (1009), text
        that is not UTF-8 (1007), or frames against the standard (1002). 0: it did not."""
        sent = self._connection.protocol.close_sent
        rcvd = self._connection.protocol.close_rcvd
        return sent.code if sent and not rcvd and sent.code in (1002, 1007, 1009) else 0


def to_response(answer: Answer, head: bool = False) -> Response:
    """As the library sends it. ``head``: without the body (RFC 9110, 9.3.2)."""
    headers = Headers({"Content-Type": answer.type, "Content-Length": str(len(answer.body)), "Connection": "close"})
    for name, value in answer.headers.items():
        headers[name] = value
    status: Any = HTTPStatus(answer.status)
    return Response(answer.status, status.phrase, headers, b"" if head else answer.body)
