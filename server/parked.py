"""A session that waits to be resumed, as bytes: the adapter's memory as JSON, then the engine's state as it is."""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass
from typing import Any

from asr.engine import SessionConfig
from asr.errors import StateError

_HEADER = struct.Struct("<4sI")  # magic, bytes of JSON
_MAGIC = b"PS01"


@dataclass(frozen=True)
class Parked:
    """``adapter``: what :meth:`Adapter.save` gave; ``samples``: of the client's rate, taken in; ``state``: that of
    the engine session, empty for one that is finished and whose last messages have not arrived."""

    adapter: dict[str, Any]
    samples: int
    state: bytes

    @property
    def config(self) -> SessionConfig:
        """With which the engine session is opened again; its options are in the state."""
        return SessionConfig(**self.adapter["config"])


def pack(parked: Parked) -> bytes:
    """Serialise; :func:`unpack` is the inverse."""
    meta = json.dumps({"adapter": parked.adapter, "samples": parked.samples}, separators=(",", ":")).encode()
    return _HEADER.pack(_MAGIC, len(meta)) + meta + parked.state


def unpack(data: bytes) -> Parked:
    """Raises StateError for bytes that are none."""
    try:
        magic, size = _HEADER.unpack_from(data)
        if magic != _MAGIC:
            raise ValueError
        meta = json.loads(data[_HEADER.size : _HEADER.size + size])
        parked = Parked(dict(meta["adapter"]), int(meta["samples"]), data[_HEADER.size + size :])
        assert parked.config is not None
        return parked
    except (struct.error, ValueError, KeyError, TypeError):
        raise StateError("the parked session is broken: start a new one") from None


def store_key(owner: str, session: str, secret: str) -> str:
    """Where a session lies in the store: a wrong secret, or another owner, finds nothing and takes nothing away."""
    return hashlib.sha256(json.dumps([owner, session, secret]).encode()).hexdigest()
