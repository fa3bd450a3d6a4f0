"""Clients of ``/v1/stream``: a library, and the commands ``asr stream`` and ``asr mic``.

::

    from client import Segment, connect

    async with connect("ws://localhost:2700", sample_rate=16000) as stream:
        await stream.send(pcm)
        await stream.eof()
        async for result in stream:
            if isinstance(result, Segment):
                print(result.text)

The same without asyncio is :func:`client.sync.connect`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asr.results import Partial, Segment, Word
    from client.errors import (
        AuthError,
        ClientError,
        ConnectError,
        ConnectionLost,
        FullError,
        LimitError,
        RequestError,
        ServerError,
    )
    from client.messages import Done, Notice, Ready
    from client.settings import Settings
    from client.stream import Stream, connect

__all__ = [
    "AuthError",
    "ClientError",
    "ConnectError",
    "ConnectionLost",
    "Done",
    "FullError",
    "LimitError",
    "Notice",
    "Partial",
    "Ready",
    "RequestError",
    "Segment",
    "ServerError",
    "Settings",
    "Stream",
    "Word",
    "connect",
]

_HOMES = ("asr.results", "client.errors", "client.messages", "client.settings", "client.stream")


def __getattr__(name: str) -> Any:
    """The names above are imported when they are asked for: `asr --help` needs none of them."""
    if name in __all__:
        for home in _HOMES:
            if hasattr(module := importlib.import_module(home), name):
                return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
