"""The wire protocols, pure: messages, engine events and times in; actions out. No socket, clock or engine.

``adapter = adapter_for(path, query, context)``, then the :class:`server.session.Session` calls it.
"""

from __future__ import annotations

from server.protocols.common import Adapter, Context, WireError

PATHS = {"/v1/stream": "stream", "/": "vosk", "/vosk": "vosk", "/v1/listen": "deepgram"}

__all__ = ["PATHS", "Adapter", "Context", "WireError", "adapter_for"]


def adapter_for(path: str, query: str, context: Context) -> Adapter:
    """The adapter of a connection to ``path`` (without the query), with its raw ``query`` ("" for none).

    Raises AsrError: for unknown paths (code "message", HTTP 404 is due) and for a query that cannot be served (HTTP
    400 is due; its text is one line for the client).
    """
    from server.protocols.deepgram import DeepgramAdapter
    from server.protocols.stream import StreamAdapter
    from server.protocols.vosk import VoskAdapter

    if path not in PATHS:
        raise WireError("message", f"there is nothing at this path: use one of {', '.join(PATHS)}")
    kind = PATHS[path]
    if kind == "deepgram":
        return DeepgramAdapter(context, query)
    return StreamAdapter(context) if kind == "stream" else VoskAdapter(context)
