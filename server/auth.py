"""Who may connect: a file of tokens, compared in constant time.

Clients send a token as ``Authorization: Bearer TOKEN`` or ``Authorization: Token TOKEN``, or, where they cannot set
headers (browsers), as the pair of WebSocket subprotocols ``token, TOKEN`` or ``bearer, TOKEN``. Tokens are never taken
from the address, which proxies and browsers write down.
"""

from __future__ import annotations

import hashlib
import hmac
import itertools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from asr.errors import ConfigError

SCHEMES = ("token", "bearer")
LONGEST = 4096  # characters of a token
_COMMENT = re.compile(r"(?:^|\s)#")


class Tokens:
    """The tokens of a file. ``digests`` are their SHA-256, of equal length, which is what is compared."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.digests: tuple[bytes, ...] = ()
        self.reload()

    @property
    def needed(self) -> bool:
        """Whether a client must have one."""
        return self._path is not None

    def reload(self) -> int:
        """Read the file again and return how many tokens it holds; :class:`ConfigError` if it cannot be used: the
        tokens from before then go on holding."""
        if self._path is None:
            return 0
        try:
            lines = self._path.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise ConfigError(f"tokens: {self._path}: {error.strerror or error}") from None
        except UnicodeDecodeError:
            raise ConfigError(f"tokens: {self._path}: not UTF-8 text") from None
        tokens = [token for line in lines if (token := _COMMENT.split(line)[0].strip())]
        for token in tokens:
            if len(token) > LONGEST or len(token.split()) > 1 or not token.isascii():
                raise ConfigError(f"tokens: {self._path}: a token is one word of ASCII of at most {LONGEST} characters")
        if not tokens:
            raise ConfigError(f"tokens: {self._path} holds none: add one a line, or leave the option out")
        self.digests = tuple(dict.fromkeys(_digest(token) for token in tokens))
        return len(self.digests)

    def check(self, token: str | None) -> str | None:
        """A name for the owner of ``token`` that gives nothing away (16 hex digits; "" where no tokens are needed), or
        None if it is no good. All tokens are compared, whichever fits."""
        if self._path is None:
            return ""
        digest, found = _digest(token or ""), False
        for known in self.digests:
            found |= hmac.compare_digest(digest, known)
        return digest.hex()[:16] if found and token else None


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="surrogatepass")).digest()


def find_token(authorization: Iterable[str], subprotocols: Sequence[str]) -> str | None:
    """The token among the values of a request's Authorization headers and its subprotocols; None without one."""
    for value in authorization:
        scheme, _, token = value.strip().partition(" ")
        if scheme.lower() in SCHEMES and token.strip():
            return token.strip()
    for scheme, token in itertools.pairwise(subprotocols):
        if scheme.lower() in SCHEMES:
            return token
    return None
