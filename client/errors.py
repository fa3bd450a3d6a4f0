"""What can go wrong between a client and a server, as exceptions. Codes are those of :data:`asr.errors.ERRORS`."""

from __future__ import annotations

from asr.errors import ERRORS, AsrError


class ClientError(AsrError):
    """Base of what the clients raise. ``code``: a row of the error table."""

    def __init__(self, message: str, code: str = "error") -> None:
        super().__init__(message)
        self.code = code if code in ERRORS else "error"


class ConnectError(ClientError):
    """No connection can be made: wrong address, nobody listens, no TLS, not a recogniser."""


class ConnectionLost(ClientError):
    """A session's connection broke and could not be made again in time. ``lost_seconds``: audio of the session that no
    final result covers."""

    def __init__(self, message: str, lost_seconds: float = 0.0) -> None:
        super().__init__(message)
        self.lost_seconds = lost_seconds


class ServerError(ClientError):
    """The server ended the session with an error."""


class AuthError(ServerError):
    """The token is missing or wrong."""


class FullError(ServerError):
    """The server has no room. ``retry_after``: seconds after which it asks to be tried again, if it says so."""

    retry_after: float | None = None


class LimitError(ServerError):
    """A limit of the server is reached: length of a session, of a message, silence, unread results."""


class RequestError(ServerError):
    """The server does not accept an option, an encoding or a message."""


_KINDS: dict[str, type[ServerError]] = {
    "auth": AuthError,
    "full": FullError,
    **dict.fromkeys(("limit", "idle", "unread", "too_large"), LimitError),
    **dict.fromkeys(("usage", "config", "audio", "encoding", "json", "message"), RequestError),
}
_BY_CLOSE_CODE = {1001: "draining", 1003: "encoding", 1007: "json", 1009: "too_large", 1012: "draining", 1013: "full"}

AGAIN = frozenset({"draining", "full", "store", "unread"})
"""Codes after which the same session is worth another try."""
ANEW = frozenset({"resume", "engine", "error", "state", "limit", "idle"})
"""Codes after which a new session is."""


def server_error(code: str, message: str) -> ServerError:
    """The exception for an ``error`` message of the server."""
    return _KINDS.get(code, ServerError)(message or ERRORS.get(code, ERRORS["error"]).text, code)


def closed_error(close_code: int | None, reason: str) -> ServerError | None:
    """The exception for a close frame that came without an ``error`` message before it; None: the connection dropped.
    The server's reasons begin with the code of the error table."""
    if close_code is None or close_code == 1006:
        return None
    code, _, message = reason.partition(": ")
    if code not in ERRORS:
        code, message = _BY_CLOSE_CODE.get(close_code, "error"), reason
    return server_error(code, message)
