"""Transcripts as files: plain text, JSON, SubRip and WebVTT subtitles, tab-separated segments, NIST CTM.

All of them are UTF-8 with ``\\n`` line ends; open files with ``newline="\\n"``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import TextIO

from asr.errors import UsageError
from asr.results import Alternative, Segment, Transcript, Word


@dataclass(frozen=True)
class CueOptions:
    """How words are cut into subtitle cues. Lengths in characters, times in seconds.

    The defaults are the usual ones of broadcasters: two lines of 42 characters, six seconds. A cue never runs across a
    pause longer than ``max_gap_s`` or a segment's end; a cue shorter than ``min_duration_s`` stays on the screen for
    as long where the next one leaves room.
    """

    max_line: int = 42
    max_lines: int = 2
    max_duration_s: float = 6.0
    max_gap_s: float = 1.0
    min_duration_s: float = 1.0


@dataclass(frozen=True)
class Cue:
    """One subtitle: integer milliseconds from the start of the recording, and lines of text."""

    start_ms: int
    end_ms: int
    lines: tuple[str, ...]


CUE_OPTIONS = CueOptions()
PAUSE_S = 0.5  # to cut at a pause of this length or more is worth one more cue


def write(transcript: Transcript, format: str, file: TextIO) -> None:
    """Write ``transcript`` to an open text file in one of :data:`FORMATS`. Raises :class:`UsageError` for others."""
    file.write(render(transcript, format))


def render(transcript: Transcript, format: str) -> str:
    """``transcript`` as the text of a file in one of :data:`FORMATS`. Raises :class:`UsageError` for others."""
    if format not in FORMATS:
        raise UsageError(f"unknown format '{format}': choose from {', '.join(FORMATS)}")
    return FORMATS[format](transcript)


def to_txt(transcript: Transcript) -> str:
    """One line per segment; segments without text are left out."""
    return "".join(f"{_line(s.text)}\n" for s in transcript.segments if _line(s.text))


def to_json(transcript: Transcript, indent: int | None = 2) -> str:
    """Everything that a transcript holds; times in seconds, rounded to milliseconds. ``indent=None`` gives one line."""
    value = {
        "source": transcript.source,
        "model": transcript.model,
        "duration": _seconds(transcript.duration),
        "text": transcript.text,
        "segments": [_segment_to_dict(segment) for segment in transcript.segments],
        "metadata": dict(transcript.metadata),
    }
    return json.dumps(value, ensure_ascii=False, indent=indent, allow_nan=False) + "\n"


def to_srt(transcript: Transcript) -> str:
    """SubRip subtitles."""
    return "".join(
        f"{number}\n{_clock(cue.start_ms, ',')} --> {_clock(cue.end_ms, ',')}\n{_joined(cue.lines)}\n\n"
        for number, cue in enumerate(cues(transcript), 1)
    )


def to_vtt(transcript: Transcript) -> str:
    """WebVTT subtitles (W3C), with ``&``, ``<`` and ``>`` escaped."""
    blocks = ["WEBVTT\n"]
    for cue in cues(transcript):
        text = _joined(cue.lines).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        blocks.append(f"\n{_clock(cue.start_ms, '.')} --> {_clock(cue.end_ms, '.')}\n{text}\n")
    return "".join(blocks)


def to_tsv(transcript: Transcript) -> str:
    """Columns start_s, end_s and text, with a header; one row per segment with text."""
    rows = [f"{s.start:.3f}\t{s.end:.3f}\t{_line(s.text)}\n" for s in transcript.segments if _line(s.text)]
    return "start_s\tend_s\ttext\n" + "".join(rows)


def to_ctm(transcript: Transcript) -> str:
    """NIST conversation time marks: recording, channel, start, duration, word and, where known, confidence."""
    name = "_".join(PurePath(transcript.source).stem.split()) or "-"
    channel = "_".join(transcript.metadata.get("channel", "").split()) or "1"
    rows = []
    for word in (w for segment in transcript.segments for w in _timed_words(segment)):
        row = f"{name} {channel} {word.start:.3f} {max(0.0, word.end - word.start):.3f} {word.text}"
        rows.append(row + (f" {word.confidence:.3f}\n" if word.confidence is not None else "\n"))
    return "".join(rows)


FORMATS: dict[str, Callable[[Transcript], str]] = {
    "txt": to_txt,
    "json": to_json,
    "srt": to_srt,
    "vtt": to_vtt,
    "tsv": to_tsv,
    "ctm": to_ctm,
}


def cues(transcript: Transcript, options: CueOptions = CUE_OPTIONS) -> list[Cue]:
    """Cut the words of a transcript into subtitle cues; they never overlap, and stand within the recording.

    Where a stretch of speech must be cut, the cuts are chosen together: few cues, of like length, at pauses. Words of
    segments without word times are spread over their segment in proportion to their length.
    """
    groups: list[list[Word]] = []
    for segment in transcript.segments:
        for stretch in _split_at_pauses(_timed_words(segment), options.max_gap_s):
            groups += _cut(stretch, options)
    result: list[Cue] = []
    for index, group in enumerate(groups):
        start = max(0, round(group[0].start * 1000))
        end = round(group[-1].end * 1000)
        last = index + 1 == len(groups)
        limit = round((transcript.duration if last else groups[index + 1][0].start) * 1000)
        lingering = max(end, min(start + round(options.min_duration_s * 1000), limit))
        end = max(start + 1, lingering if last else min(lingering, limit))
        result.append(Cue(start, end, _wrap([word.text for word in group], options)))
    return result


def _split_at_pauses(words: Sequence[Word], max_gap_s: float) -> list[list[Word]]:
    stretches: list[list[Word]] = []
    for word in words:
        if not stretches or word.start - stretches[-1][-1].end > max_gap_s:
            stretches.append([])
        stretches[-1].append(word)
    return stretches


def _cut(words: list[Word], options: CueOptions) -> list[list[Word]]:
    """Cut one stretch of speech by dynamic programming over the ends of cues; linear in the number of words."""
    best = [0.0] + [math.inf] * len(words)
    start_of = [0] * (len(words) + 1)
    for end in range(1, len(words) + 1):
        for start in range(end - 1, -1, -1):
            group = words[start:end]
            if start < end - 1 and not _fits(group, options):
                break
            cost = best[start] + _cost(group, options)
            if start > 0:
                cost -= min(1.0, max(0.0, words[start].start - words[start - 1].end) / PAUSE_S)
            if cost < best[end]:
                best[end], start_of[end] = cost, start
    groups = []
    end = len(words)
    while end > 0:
        groups.append(words[start_of[end] : end])
        end = start_of[end]
    return groups[::-1]


def _fits(group: list[Word], options: CueOptions) -> bool:
    if group[-1].end - group[0].start > options.max_duration_s:
        return False
    return len(_fill([word.text for word in group], options.max_line)) <= options.max_lines


def _cost(group: list[Word], options: CueOptions) -> float:
    """One for each cue, so that there are few; and the square of what is left empty, so that they are of like size."""
    space = options.max_line * options.max_lines
    length = min(space, sum(len(word.text) + 1 for word in group) - 1)
    duration = min(options.max_duration_s, group[-1].end - group[0].start)
    return 1.0 + (1.0 - max(length / space, duration / options.max_duration_s)) ** 2


def _wrap(words: list[str], options: CueOptions) -> tuple[str, ...]:
    """Lines of like length: the narrowest width that needs no more lines than the widest."""
    count = len(_fill(words, options.max_line))
    width = max(1, sum(len(word) + 1 for word in words) // count - 1)
    while len(_fill(words, width)) > count:
        width += 1
    return tuple(_fill(words, width))


def _fill(words: list[str], width: int) -> list[str]:
    lines: list[str] = []
    for word in words:
        if lines and len(lines[-1]) + 1 + len(word) <= width:
            lines[-1] += " " + word
        else:
            lines.append(word)
    return lines


def _timed_words(segment: Segment) -> list[Word]:
    if segment.words or not segment.text.split():
        return [Word(_line(w.text), w.start, w.end, w.confidence) for w in segment.words if _line(w.text)]
    texts = segment.text.split()
    per_character = max(0.0, segment.end - segment.start) / (len(_line(segment.text)) + 1)
    words, at = [], segment.start
    for text in texts:
        words.append(Word(text, at, at + per_character * len(text)))
        at += per_character * (len(text) + 1)
    return words


def _segment_to_dict(segment: Segment) -> dict[str, object]:
    return {
        "index": segment.index,
        "start": _seconds(segment.start),
        "end": _seconds(segment.end),
        "text": segment.text,
        "confidence": _confidence(segment.confidence),
        "reason": segment.reason,
        "words": [_word_to_dict(word) for word in segment.words],
        **({"alternatives": [_alternative(other) for other in segment.alternatives]} if segment.alternatives else {}),
    }


def _alternative(other: Alternative) -> dict[str, object]:
    return {
        "text": other.text,
        "confidence": _confidence(other.confidence),
        "words": [_word_to_dict(word) for word in other.words],
    }


def _word_to_dict(word: Word) -> dict[str, object]:
    return {
        "text": word.text,
        "start": _seconds(word.start),
        "end": _seconds(word.end),
        "confidence": _confidence(word.confidence),
    }


def _seconds(value: float) -> float:
    return round(float(value), 3)


def _confidence(value: float | None) -> float | None:
    return None if value is None else round(float(value), 4)


def _line(text: str) -> str:
    return " ".join(text.split())


def _joined(lines: Sequence[str]) -> str:
    return "\n".join(lines)


def _clock(ms: int, point: str) -> str:
    seconds, ms = divmod(ms, 1000)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{seconds:02d}{point}{ms:03d}"
