"""Logs: one JSON object a line, on standard error. Nothing that a client said is in them unless asked for.

>>> log("session open", session="4f1c...", protocol="stream")
{"time": "2026-11-21T08:00:00.123Z", "level": "info", "event": "session open", "session": "4f1c...", ...}
"""

from __future__ import annotations

import json
import logging
import time
from typing import Any

NAME = "asr.server"
_logger = logging.getLogger(NAME)


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON: time (UTC), level, event, the process, and what the caller added."""

    def format(self, record: logging.LogRecord) -> str:
        """See the class."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        entry: dict[str, Any] = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            "process": record.process,
        }
        if record.name != NAME:
            entry["logger"] = record.name
        entry |= getattr(record, "fields", {})
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=True, default=str)


def log(event: str, level: int = logging.INFO, error: BaseException | None = None, /, **fields: Any) -> None:
    """Write ``event`` with ``fields``; ``error`` adds its traceback."""
    _logger.log(level, event, extra={"fields": fields}, exc_info=error)


def set_up(level: str) -> None:
    """Send the server's log, and warnings of the libraries under it, to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.captureWarnings(True)
    _logger.setLevel(level.upper())
    # Port scanners and clients that hang up are no errors of ours.
    logging.getLogger("websockets").setLevel(logging.CRITICAL)
