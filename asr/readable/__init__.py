"""Readable text: sentence case, punctuation and numbers in digits, for final segments as they come."""

from __future__ import annotations

from asr.readable.formatter import Formatter, FormatterState

__all__ = ["Formatter", "FormatterState"]
