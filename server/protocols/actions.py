"""What a protocol adapter wants done. Adapters are pure: they take messages, events and times, and return these."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from asr.engine import SessionConfig


@dataclass(frozen=True)
class Open:
    """Open an engine session; answered by :meth:`Adapter.opened` or :meth:`Adapter.refused`."""

    config: SessionConfig


@dataclass(frozen=True)
class Resume:
    """Take the parked session out of the store and open an engine session with its state; answered by
    :meth:`Adapter.resumed` or :meth:`Adapter.refused`."""

    session: str
    secret: str = field(repr=False)


@dataclass(frozen=True)
class Feed:
    """Audio for the engine."""

    data: bytes


@dataclass(frozen=True)
class Configure:
    """Change options of the engine session (keys as :meth:`asr.engine.EngineSession.configure` takes them)."""

    changes: dict[str, Any]


@dataclass(frozen=True)
class Flush:
    """Finals of a copy, the stream goes on."""

    id: str = ""


@dataclass(frozen=True)
class Cut:
    """Close the open segment for good."""

    id: str = ""


@dataclass(frozen=True)
class Finish:
    """No more audio."""


@dataclass(frozen=True)
class Send:
    """One text message to the client. ``seq``: its number, where its protocol has them (0: none)."""

    text: str
    seq: int = 0


@dataclass(frozen=True)
class Close:
    """Close the connection after all that is to be sent. ``error``: a code of the error table, "" when all is well."""

    code: int
    reason: str
    error: str = ""


@dataclass(frozen=True)
class Note:
    """Something for the log, never speech: ``values`` are numbers and names."""

    kind: str
    values: dict[str, Any]


Action = Open | Resume | Feed | Configure | Flush | Cut | Finish | Send | Close | Note
