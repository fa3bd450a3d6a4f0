"""``/v1/listen``: the live protocol of Deepgram (docs/protocol.md)."""

from __future__ import annotations

from server.protocols.common import Adapter, Context


class DeepgramAdapter(Adapter):
    """One connection; ``query``: that of the request, raw."""

    protocol = "deepgram"

    def __init__(self, context: Context, query: str) -> None:
        super().__init__(context)
