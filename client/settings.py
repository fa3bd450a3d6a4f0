"""How a client connects, what it sends, and how long it waits."""

from __future__ import annotations

import ssl as tls
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from asr.audio.encoding import SampleFormat
from asr.errors import UsageError
from asr.options import StreamOptions

PATH = "/v1/stream"
MIN_RATE, MAX_RATE = 8000, 48000
WHEN_FULL = ("wait", "drop")
_SCHEMES = {"ws": "ws", "wss": "wss", "http": "ws", "https": "wss"}
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Timeouts:
    """All in seconds. ``open``: for a connection and its ``ready``; ``answer``: for ``flush`` and ``configure``;
    ``send``: for a message to leave; ``ping``: between pings; ``pong``: for their answer, then the connection counts as
    broken; ``done``: for the last results after ``eof``, counted from the last message of the server; ``close``: for a
    closing handshake; ``retry``: for making a broken connection again; ``keepalive``: silence after which the server is
    told that the client is still there."""

    open: float = 10.0
    answer: float = 60.0
    send: float = 30.0
    ping: float = 5.0
    pong: float = 15.0
    done: float = 60.0
    close: float = 5.0
    retry: float = 120.0
    keepalive: float = 10.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise UsageError(f"the timeout '{name}' is {value}: choose more than 0 seconds")


@dataclass(frozen=True)
class Settings:
    """Of one stream; see :func:`client.connect`. Raises UsageError, ConfigError or AudioError for what cannot be."""

    url: str
    token: str = field(default="", repr=False)
    sample_rate: int = 16000
    encoding: str = "pcm_s16le"
    channels: int = 1
    channel: int | None = None
    partials: bool = True
    words: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)  # hotwords, endpointing, lm, alternatives: on the wire
    buffer_seconds: float = 60.0
    when_full: str = "wait"
    reconnect: bool = True
    timeouts: Timeouts = Timeouts()
    ssl: tls.SSLContext | None = None
    proxy: str | bool = True

    def __post_init__(self) -> None:
        address(self.url)
        self.format  # noqa: B018  (raises)
        if isinstance(self.sample_rate, bool) or not isinstance(self.sample_rate, int):
            raise UsageError(f"sample_rate must be a whole number of Hz, not {self.sample_rate!r}")
        if not MIN_RATE <= self.sample_rate <= MAX_RATE:
            raise UsageError(f"sample_rate {self.sample_rate} is outside the range: {MIN_RATE} to {MAX_RATE} Hz")
        if self.when_full not in WHEN_FULL:
            raise UsageError(f"when_full is '{self.when_full}': choose wait or drop")
        if not self.buffer_seconds >= 1:
            raise UsageError(f"buffer_seconds is {self.buffer_seconds}: choose 1 or more")
        if not self.token.isascii() or not self.token.isprintable():
            raise UsageError("the token has characters that no header can carry: check it")

    @property
    def format(self) -> SampleFormat:
        """Of the audio that is sent."""
        return SampleFormat(self.encoding, self.channels, self.channel)

    @property
    def address(self) -> str:
        """The whole WebSocket address."""
        return address(self.url)

    @property
    def local(self) -> bool:
        """Whether the server is on this machine: then no proxy is asked."""
        return urlsplit(self.address).hostname in _LOOPBACK

    def start(self) -> dict[str, Any]:
        """The ``start`` message of a new session, without its options."""
        names = ("sample_rate", "encoding", "channels", "partials", "words")
        value = {"type": "start", **{name: getattr(self, name) for name in names}}
        return value if self.channel is None else {**value, "channel": self.channel}


def address(url: str) -> str:
    """``url`` as a whole WebSocket address: ``host:8080`` and ``http://host`` are understood, the path is
    ``/v1/stream`` unless there is one. Raises UsageError."""
    text = url.strip() if "://" in url else f"ws://{url.strip()}"
    try:
        parts = urlsplit(text)
        scheme = _SCHEMES.get(parts.scheme, "")
        valid = bool(scheme and parts.hostname) and (parts.port is None or parts.port > 0) and not parts.fragment
    except ValueError:
        valid = False
    if not valid or any(c.isspace() for c in text):
        raise UsageError(f"'{url}' is no address of a server: write ws://HOST:PORT or wss://HOST")
    if parts.username or parts.password:
        raise UsageError("an address carries no password: give a token")
    path = PATH if parts.path in ("", "/") else parts.path
    return urlunsplit((scheme, parts.netloc, path, parts.query, ""))


def wire_options(
    hotwords: Any = None, endpointing: Any = None, lm: bool | None = None, alternatives: int | None = None
) -> dict[str, Any]:
    """Options as :meth:`asr.recognizer.Stream.configure` takes them, as JSON of the wire; those not given are left out.
    Raises UsageError or ConfigError as the recogniser would."""
    checked = StreamOptions().change(hotwords, endpointing, lm, alternatives)
    value: dict[str, Any] = {}
    if hotwords is not None:
        value["hotwords"] = [{"text": word.text, "boost": word.boost} for word in checked.hotwords]
    if endpointing is not None:
        plain = isinstance(endpointing, bool | Mapping)
        value["endpointing"] = (
            (endpointing if isinstance(endpointing, bool) else dict(endpointing)) if plain else vars(endpointing)
        )
    if lm is not None:
        value["lm"] = "default" if lm else "none"
    if alternatives is not None:
        value["alternatives"] = alternatives
    return value
