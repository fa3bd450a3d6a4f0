"""``/v1/stream``: this project's own protocol (docs/protocol.md)."""

from __future__ import annotations

from server.protocols.common import Adapter


class StreamAdapter(Adapter):
    """One connection."""

    protocol = "stream"
