"""One connection: the handshake, and what its failures mean."""

from __future__ import annotations

import asyncio
import contextlib
import ssl as tls
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidHandshake, InvalidMessage, InvalidStatus, InvalidURI

from asr.errors import AsrError
from client.errors import ConnectError, server_error
from client.settings import Settings

MAX_MESSAGE = 1 << 24  # bytes that a server may send at once


class Dropped(Exception):
    """The connection is gone, without a word of the server."""


async def dial(settings: Settings) -> ClientConnection:
    """A connection of which the handshake is done. Raises ConnectError, ServerError, Dropped or OSError."""
    s, t = settings, settings.timeouts
    headers = {"Authorization": f"Bearer {s.token}"} if s.token else {}
    secure: dict[str, Any] = {"ssl": s.ssl} if s.ssl is not None and s.address.startswith("wss:") else {}
    try:
        return await connect(
            s.address,
            additional_headers=headers,
            compression=None,  # audio does not shrink
            open_timeout=None,
            ping_interval=t.ping,
            ping_timeout=t.pong,
            close_timeout=t.close,
            max_size=MAX_MESSAGE,
            proxy=None if s.local or s.proxy is False else s.proxy,
            **secure,
        )
    except InvalidStatus as error:
        raise refusal(error, s.address) from None
    except tls.SSLError as error:
        reason = getattr(error, "verify_message", "") or error.reason or error
        raise ConnectError(f"no secure connection to {s.address}: {reason}") from None
    except (InvalidMessage, EOFError):
        raise Dropped from None
    except (InvalidURI, InvalidHandshake) as error:
        raise ConnectError(f"{s.address} does not speak WebSocket: {error}") from None


def refusal(error: InvalidStatus, address: str) -> AsrError:
    """A handshake that was answered with another status."""
    status, headers = error.response.status_code, error.response.headers
    if status == 401:
        return server_error("auth", "the server wants another token: give the right one")
    if status == 503:
        full = server_error("full", "the server has no room: try again later")
        with contextlib.suppress(ValueError, TypeError):
            full.retry_after = max(0.1, float(headers.get("Retry-After", "")))  # type: ignore[attr-defined]
        return full
    if status in (502, 504):
        return server_error("full", f"the proxy in front of the server answers with HTTP {status}: try again later")
    return ConnectError(f"{address} answers with HTTP {status}: check the address")


def unreachable(settings: Settings, error: Exception) -> ConnectError:
    """For a first connection that failed with ``error``."""
    if isinstance(error, TimeoutError):
        why = f"no answer within {settings.timeouts.open:g} s"
    elif isinstance(error, OSError):
        why = (error.strerror or str(error)).lower()
    else:
        why = "it closed the connection"
    return ConnectError(f"cannot connect to {settings.address}: {why}: check the address, and that the server runs")


async def hang_up(connection: ClientConnection, seconds: float) -> None:
    """Close, and do not wait for a network that is gone."""
    try:
        async with asyncio.timeout(seconds):
            await connection.close()
    except TimeoutError:
        pass
    finally:
        connection.transport.abort()
