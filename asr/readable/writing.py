"""Transcripts as files, in readable text."""

from __future__ import annotations

import json

from asr.results import Transcript
from asr.writers import render, to_json

PLAIN = ("ctm",)  # formats that are for scoring


def render_readable(plain: Transcript, readable: Transcript, format: str, indent: int | None = 2) -> str:
    """A transcript in one of :data:`asr.writers.FORMATS`: in its readable form, but JSON holds both (``text`` plain,
    ``readable`` beside it) and CTM, which is for scoring, the plain words. ``indent`` is that of JSON; None: one line.
    """
    if format in PLAIN:
        return render(plain, format)
    if format != "json":
        return render(readable, format)
    both, form = json.loads(to_json(plain, indent=None)), json.loads(to_json(readable, indent=None))
    both["segments"] = [
        _after(_after(segment, "text", readable=other["text"]), "words", readable_words=other["words"])
        for segment, other in zip(both["segments"], form["segments"], strict=True)
    ]
    value = _after(both, "text", readable=form["text"])
    return json.dumps(value, ensure_ascii=False, indent=indent, allow_nan=False) + "\n"


def _after(values: dict[str, object], key: str, **more: object) -> dict[str, object]:
    """With more keys behind one that is there."""
    result: dict[str, object] = {}
    for name, value in values.items():
        result[name] = value
        if name == key:
            result.update(more)
    return result
