"""Streaming speech recognition: audio in as it comes, words out.

The public face of the package::

    import asr

    recognizer = asr.Recognizer.load("en")
    print(recognizer.transcribe("speech.flac").text)

Importing this package is cheap: what needs torch is imported when it is first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from asr.errors import AsrError
from asr.results import Partial, Result, Segment, Transcript, Word

if TYPE_CHECKING:
    from asr.recognizer import Recognizer, Stream

__version__ = "0.1.0"

_LAZY = {"Recognizer": "asr.recognizer", "Stream": "asr.recognizer"}

__all__ = ["AsrError", "Partial", "Recognizer", "Result", "Segment", "Stream", "Transcript", "Word", "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'asr' has no attribute {name!r}")
    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
