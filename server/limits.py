"""What a client may ask of the server: every bound on a session, in one place."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from asr.config import require


def setting(default: Any, help: str) -> Any:
    """A field of a dataclass of settings, with the line that explains it."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Limits:
    """All are of one session; each has an error code (:data:`asr.errors.ERRORS`) with which it bites. Raises
    ConfigError for values that are not positive."""

    max_frame_bytes: int = setting(1 << 20, "largest message, bytes; a larger one closes with too_large")
    max_text_bytes: int = setting(1 << 18, "largest text message, bytes; a larger one closes with too_large")
    max_session_seconds: float = setting(14400.0, "longest session, seconds; then its finals are sent, and limit")
    idle_seconds: float = setting(60.0, "a session that sends nothing for so long ends with idle")
    open_seconds: float = setting(10.0, "wait so long for a place in the engine")
    ahead_seconds: float = setting(10.0, "audio that may wait to be decoded, seconds; then the client is slowed down")
    engine_seconds: float = setting(60.0, "an engine that says nothing for so long, though asked, has failed")
    max_unread: int = setting(1000, "messages that may wait for a client that does not read; then unread")
    send_seconds: float = setting(30.0, "a message that cannot be handed over for so long: unread")
    close_seconds: float = setting(10.0, "wait so long for the other side of a closing handshake")
    resume_seconds: float = setting(120.0, "a dropped session is kept for so long")
    resume_wait_seconds: float = setting(2.0, "a resume waits so long for its session to be put away")
    max_retained_bytes: int = setting(1 << 16, "final results kept to be sent again after a resume, bytes")
    lag_warning_ms: float = setting(2000.0, "the client is warned when results come later than this")

    def __post_init__(self) -> None:
        for f in fields(self):
            require(getattr(self, f.name) > 0, f"{f.name} is {getattr(self, f.name)}: choose more than 0")
