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
