"""Plain HTTP on the same port: the page, health, metrics and models. A fixed table of answers; no path is a file name.

Pure: a request's method, path and a few facts in, status, headers and body out.
"""

from __future__ import annotations

import hashlib
import json
import mimetypes
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STATIC = Path(__file__).parent / "static"
INDEX = "index.html"
LARGEST = 4_000_000  # bytes of a file of the page
_TYPES = {
    ".js": "text/javascript",
    ".mjs": "text/javascript",
    ".html": "text/html",
    ".css": "text/css",
    ".svg": "image/svg+xml",
    ".webmanifest": "application/manifest+json",
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self' ws: wss:; "
    "media-src 'self' blob:; worker-src 'self'; manifest-src 'self'; frame-ancestors 'none'; base-uri 'none'; "
    "form-action 'none'"
)
_MODULE = {"Access-Control-Allow-Origin": "*", "Cross-Origin-Resource-Policy": "cross-origin"}  # others may import it


@dataclass(frozen=True)
class Answer:
    """An HTTP response. ``headers`` beside Content-Type and Content-Length, which are of ``type`` and ``body``."""

    status: int
    type: str = "text/plain; charset=utf-8"
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


def text(status: int, line: str, **headers: str) -> Answer:
    """One line of plain text; ``headers`` with underscores for hyphens."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status, body=(line + "\n").encode(), headers={"Cache-Control": "no-store"} | named)


def as_json(status: int, value: Any) -> Answer:
    """A JSON document."""
    body = json.dumps(value, allow_nan=False).encode() + b"\n"
    return Answer(status, "application/json", body, {"Cache-Control": "no-store"})


def static_table(folder: Path = STATIC) -> dict[str, Answer]:
    """The files of ``folder`` by address: ``/static/NAME`` each, and ``/`` for index.html. Read once, at the start;
    hidden files, links and very large ones are left out."""
    table: dict[str, Answer] = {}
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        name = path.relative_to(folder).as_posix()
        hidden = any(part.startswith((".", "_")) for part in name.split("/"))
        if hidden or path.is_symlink() or not path.is_file() or path.stat().st_size > LARGEST:
            continue
        body = path.read_bytes()
        table[f"/static/{name}"] = Answer(200, _type(path), body, _file_headers(path, body))
    if index := table.get(f"/static/{INDEX}"):
        table["/"] = index
    return table


def _type(path: Path) -> str:
    kind = _TYPES.get(path.suffix.lower()) or mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return f"{kind}; charset=utf-8" if kind.startswith("text/") else kind


def _file_headers(path: Path, body: bytes) -> dict[str, str]:
    return {
        **(_MODULE if path.suffix == ".js" else {}),
        **({"Permissions-Policy": "microphone=(self)"} if path.suffix == ".html" else {}),
        "ETag": f'"{hashlib.sha256(body).hexdigest()[:32]}"',
        "Cache-Control": "no-cache",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Content-Security-Policy": _POLICY,
    }


def unchanged(answer: Answer, if_none_match: str) -> Answer:
    """``answer``, or 304 where the client has it already."""
    tag = answer.headers.get("ETag")
    if tag and tag in (part.strip().removeprefix("W/") for part in if_none_match.split(",")):
        return Answer(304, answer.type, b"", answer.headers)
    return answer
