"""``/`` and ``/vosk``: the protocol of vosk-server (docs/protocol.md)."""

from __future__ import annotations

from server.protocols.common import Adapter


class VoskAdapter(Adapter):
    """One connection."""

    protocol = "vosk"
