"""The parts and tables of `robustness.py`: groups of utterances, and their error rates in Markdown."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import degrade
import numpy as np

from asr.errors import LexiconError
from asr.lexicon import Lexicon
from asr.training import metrics
from asr.training.metrics import Edits
from asr.training.perturb import Samples

LENGTHS_S = (3.0, 6.0, 12.0)  # bounds of the groups by length


# --- groups ---------------------------------------------------------------------------------------------------------


def drawn(speakers: Sequence[str]) -> str:
    """What the bootstrap draws."""
    known, alone = len({s for s in speakers if s}), sum(not s for s in speakers)
    parts = [f"{known} speaker{'s' * (known != 1)}"] if known else []
    return " and ".join([*parts, *([f"{alone} utterance{'s' * (alone != 1)}"] if alone else [])])


def units(speakers: Sequence[str]) -> list[str]:
    """What the bootstrap shall draw: speakers, or utterances where all are of one speaker."""
    return [""] * len(speakers) if len({*speakers}) == 1 else list(speakers)


def rate(edits: Sequence[Edits], speakers: Sequence[str]) -> dict[str, Any]:
    """Error rate with its interval, and what was drawn for it."""
    speakers = units(speakers)
    return {**asdict(metrics.error_rate(edits, speakers)), "drawn": drawn(speakers)}


def phones_per_second(text: str, samples: Samples, lexicon: Lexicon) -> float | None:
    """How fast is spoken: phones of the likeliest pronunciations, by the time in which speech is heard. None without
    any, or where a word has no pronunciation."""
    try:
        phones = sum(len(lexicon.pronounce(word)[0]) for word in text.split())
    except LexiconError:
        return None
    seconds = degrade.speech_seconds(samples)
    return phones / seconds if phones and seconds else None


def thirds(rates: Sequence[float | None]) -> list[tuple[str, list[int]]]:
    """The slowest, middle and fastest third, by name."""
    known = [(r, i) for i, r in enumerate(rates) if r is not None]
    parts = np.array_split(np.array([i for _, i in sorted(known)], dtype=int), 3)
    names = ("slow", "middle", "fast")
    return [
        (f"{name}: {rates[part[0]]:.1f} to {rates[part[-1]]:.1f} phones/s", part.tolist())
        for name, part in zip(names, parts, strict=True)
        if len(part)
    ]


def by_speaker(speakers: Sequence[str], edits: Sequence[Edits]) -> list[tuple[str, list[int]]]:
    """The utterances of the worst, median and best speaker by error rate; nothing of fewer than two speakers."""
    members: dict[str, list[int]] = defaultdict(list)
    for i, name in enumerate(speakers):
        if name:
            members[name].append(i)
    errors = {n: sum(edits[i].errors for i in m) / max(1, sum(edits[i].total for i in m)) for n, m in members.items()}
    order = sorted(members, key=lambda name: (-errors[name], name))
    if len(order) < 2:
        return []
    places = {"worst": 0, "median": len(order) // 2, "best": len(order) - 1}
    if len(order) == 2:
        del places["median"]
    return [(f"{place} of {len(order)}: {order[at]}", members[order[at]]) for place, at in places.items()]


def by_length(seconds: Sequence[float]) -> list[tuple[str, list[int]]]:
    """Groups of utterances up to each bound of :data:`LENGTHS_S`, and beyond the last; empty ones are left out."""
    bounds = [0.0, *LENGTHS_S, math.inf]
    groups = []
    for low, high in pairwise(bounds):
        members = [i for i, s in enumerate(seconds) if low <= s < high]
        name = f"{low:g} s and more" if high == math.inf else f"{low:g} to {high:g} s"
        if members:
            groups.append((name, members))
    return groups


# --- tables ---------------------------------------------------------------------------------------------------------


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def percent(row: dict[str, Any]) -> str:
    """WER with its interval."""
    return f"{100 * row['rate']:.1f} ({100 * row['low']:.1f} to {100 * row['high']:.1f})"


def points(difference: dict[str, float]) -> str:
    """A difference of WERs with its interval."""
    return f"{100 * difference['difference']:+.1f} ({100 * difference['low']:+.1f} to {100 * difference['high']:+.1f})"


def overview(rows: Sequence[dict[str, Any]]) -> str:
    """Conditions against tables: WER alone, and the median of what a condition adds."""
    tables = list(dict.fromkeys(r["table"] for r in rows))
    lines = []
    for name in dict.fromkeys(r["condition"] for r in rows):
        some = {r["table"]: r for r in rows if r["condition"] == name}
        added = statistics.median(r["minus_clean"]["difference"] for r in some.values())
        cells = [f"{100 * some[t]['rate']:.1f}" for t in tables]
        lines.append([name, next(iter(some.values()))["what"], *cells, f"{100 * added:+.1f}"])
    return markdown(["condition", "what", *(f"{t}, WER %" for t in tables), "median of what it adds"], lines)


def details(rows: Sequence[dict[str, Any]]) -> str:
    """Every table and condition with its intervals."""
    cells = ([r["table"], r["condition"], percent(r), points(r["minus_clean"]), _of(r)] for r in rows)
    return markdown(["table", "condition", "WER % (95 %)", "minus clean, points (95 %)", "words, drawn over"], cells)


def group_table(rows: Sequence[dict[str, Any]], title: str) -> str:
    """Groups of clean utterances."""
    cells = ([r["table"], r["group"], percent(r), str(r["utterances"]), _of(r)] for r in rows)
    return markdown(["table", title, "WER % (95 %)", "utterances", "words, drawn over"], cells)


def stream_table(rows: Sequence[dict[str, Any]]) -> str:
    """Bins of the long stream, and a line that says whether one of them differs."""
    *bins, alone = rows
    lines = [
        [f"{r['minute']:.0f}", percent(r), points(r["minus_alone"]), points(r["minus_first"]),
         f"{r['same']} of {r['utterances']}", f"{r['cpu_per_audio']:.4f}"]
        for r in bins
    ]  # fmt: skip
    lines.append(["streams of their own", percent(alone), "", "", "", ""])
    header = ["from minute", "WER % (95 %)", "minus their own, points (95 %)", "minus the first, points (95 %)",
              "same text as in their own", "processor s per s of audio"]  # fmt: skip
    differ = [f"{r['minute']:.0f}" for r in bins if not _within(r["minus_alone"])]
    verdict = f"in the bins from minute {', '.join(differ)}" if differ else "in no bin"
    return markdown(header, lines) + f"\nBeyond its interval the difference from their own streams is {verdict}.\n"


def _within(difference: dict[str, float]) -> bool:
    return difference["low"] <= 0 <= difference["high"]


def _of(row: dict[str, Any]) -> str:
    return f"{row['total']}, {row['drawn']}"


def report(results: dict[str, Any]) -> str:
    """All tables."""
    parts = ["### Conditions", overview(results["conditions"]), details(results["conditions"])]
    titles = {"rate": "Speaking rate", "speaker": "Speaker", "length": "Length of the utterance"}
    for kind, title in titles.items():
        if results["groups"][kind]:
            parts += [f"### {title}", group_table(results["groups"][kind], title.lower())]
    if results["stream"]:
        parts += ["### Place in a long stream", stream_table(results["stream"])]
    return "\n".join(parts)
