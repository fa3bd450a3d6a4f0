"""The exception tree and the one table of error codes.

Every error that a user can cause is an :class:`AsrError`: its text is one line that says what is wrong and what to do.
Anything else that escapes is a bug. The table at the end is shared by the command line, the server, the clients and
the documentation.
"""

from __future__ import annotations

from dataclasses import dataclass


class AsrError(Exception):
    """Base of all errors that this package raises on purpose. ``code`` is a row of :data:`ERRORS`."""

    code = "error"


class UsageError(AsrError):
    """A call or a command line that makes no sense as it stands."""

    code = "usage"


class AudioError(AsrError):
    """Audio that cannot be read: no sound, truncated, empty, not media, a bad sample rate, NaN samples."""

    code = "audio"


class ConfigError(AsrError):
    """An unknown or invalid key in a configuration."""

    code = "config"


class ModelError(AsrError):
    """A model folder with a missing, corrupt or mismatching file."""

    code = "model"


class ManifestError(AsrError):
    """A manifest with a missing file, bad times or text outside the units."""

    code = "manifest"


class LexiconError(AsrError):
    """A pronunciation lexicon that cannot be read, or a word that cannot be pronounced."""

    code = "lexicon"


class LanguageModelError(AsrError):
    """A language model file that cannot be read, or a text that none can be estimated from."""

    code = "lm"


class StateError(AsrError):
    """A stream or a state used against its contract: fed after the end, of another model, of a broken serialisation."""

    code = "state"


@dataclass(frozen=True)
class ErrorRow:
    """One row of the error table: process exit status, WebSocket close code (RFC 6455, 7.4) and, where a handshake is
    refused with it, HTTP status of an error code."""

    code: str
    exit_status: int
    close_code: int
    text: str
    http_status: int = 400


ERRORS: dict[str, ErrorRow] = {
    row.code: row
    for row in (
        ErrorRow("error", 1, 1011, "unspecified error"),
        ErrorRow("usage", 2, 1008, "the request makes no sense as it stands"),
        ErrorRow("audio", 3, 1003, "the audio cannot be read"),
        ErrorRow("config", 4, 1008, "an option is unknown or has an invalid value"),
        ErrorRow("model", 5, 1011, "the model folder is missing, corrupt or does not fit"),
        ErrorRow("manifest", 6, 1011, "the manifest is unusable"),
        ErrorRow("lexicon", 7, 1011, "the lexicon is unusable"),
        ErrorRow("lm", 8, 1011, "the language model is unusable"),
        ErrorRow("state", 9, 1008, "the stream or its state is used against its contract"),
        ErrorRow("engine", 10, 1011, "a recognition worker ended or failed; the session is lost"),
        ErrorRow("full", 11, 1013, "the server has no room: try again later", 503),
        ErrorRow("auth", 12, 1008, "the token is missing or wrong", 401),
        ErrorRow("limit", 13, 1008, "a limit of the server is reached"),
        ErrorRow("idle", 14, 1008, "nothing came for too long"),
        ErrorRow("unread", 15, 1008, "the client does not read its results"),
        ErrorRow("json", 16, 1007, "a text message is not sound JSON"),
        ErrorRow("message", 17, 1008, "not a message of this protocol, or not at this point"),
        ErrorRow("encoding", 18, 1003, "the encoding of the audio is not supported"),
        ErrorRow("too_large", 19, 1009, "a message is larger than allowed"),
        ErrorRow("resume", 20, 1008, "there is no such session to resume"),
        ErrorRow("draining", 21, 1001, "the server is going down: connect again", 503),
        ErrorRow("store", 22, 1011, "the store of dropped sessions cannot be reached"),
    )
}
