"""Pseudo-labels: a table whose texts are weak, with what a model hears where it is surer than they are.

    python -m asr.training.relabel MODEL TABLE.tsv --out NEW.tsv [--agreement 0.7] [--confidence 0.8]

Every utterance is recognised. Where text and recognition agree, in a share of words of at least ``--agreement``, the
text stays; else, where the mean confidence of the words is at least ``--confidence``, what was heard takes its place;
else the utterance is left out. An agreement beyond 1 makes every text a pseudo-label, as in self-training (Kahn et al.
2020, "Self-training for end-to-end speech recognition"); a confidence beyond 1 only throws bad texts away.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from asr.errors import UsageError
from asr.recognizer import Recognizer
from asr.results import Segment
from asr.training.cache import write_whole
from asr.training.evaluate import LONG_CHUNK_MS, load_utterances, segments_of
from asr.training.manifest import Utterance, read_manifest
from asr.training.metrics import edit_distance
from asr.training.tool import run_tool

COLUMNS = ("id", "audio", "start_s", "duration_s", "speaker", "corpus", "text", "label")
KEPT, HEARD = "published", "heard"
_AT_ONCE = 256  # utterances whose samples are in memory


def relabel(model: str, table: str, out: Path, agreement: float = 0.7, confidence: float = 0.8) -> dict[str, int]:
    """Write the table ``out``; its column ``label`` says whose each text is. Returns how many utterances of each kind
    there are, those left out too.

    Raises UsageError where ``out`` is there or the model gives no confidences, ManifestError for a bad table.
    """
    if out.exists():
        raise UsageError(f"{out} exists already: give a table that is to be made")
    utterances = read_manifest(table)
    recognizer = Recognizer.load(model)
    if recognizer.folder.config.confidence is None:
        raise UsageError(f"{model} gives its words no confidence: calibrate it first (asr calibrate --write)")
    counts = {KEPT: 0, HEARD: 0, "left out": 0}
    rows = []
    for first in range(0, len(utterances), _AT_ONCE):
        some = utterances[first : first + _AT_ONCE]
        heard = segments_of(recognizer, load_utterances(some), LONG_CHUNK_MS)
        for utterance, segments in zip(some, heard, strict=True):
            label, text = judge(utterance.text, segments, agreement, confidence)
            counts[label or "left out"] += 1
            if label:
                rows.append(_row(utterance, text, label, out.parent))
    out.parent.mkdir(parents=True, exist_ok=True)
    lines = ["\t".join(row) + "\n" for row in (COLUMNS, *rows)]
    write_whole(out, lambda temporary: temporary.write_text("".join(lines), encoding="utf-8"))
    return counts


def judge(text: str, segments: Sequence[Segment], agreement: float, confidence: float) -> tuple[str, str]:
    """Whose text counts, and the text: :data:`KEPT`, :data:`HEARD` or neither ("")."""
    words = text.split()
    heard = [word for segment in segments for word in segment.words]
    texts = [word.text for word in heard]
    errors = edit_distance(words, texts)
    if 1 - errors / max(1, len(words), len(texts)) >= agreement:
        return KEPT, text
    if heard and np.mean([word.confidence or 0.0 for word in heard]) >= confidence:
        return HEARD, " ".join(texts)
    return "", ""


def _row(utterance: Utterance, text: str, label: str, folder: Path) -> list[str]:
    audio = os.path.relpath(utterance.audio, folder.resolve())
    duration = "" if utterance.duration_s is None else str(utterance.duration_s)
    u = utterance
    return [u.id, audio, str(u.start_s), duration, u.speaker, u.corpus, text, label]


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", help="model folder or name")
    parser.add_argument("table", metavar="TABLE", help="manifest (TSV), or librispeech:PART")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--agreement", type=float, default=0.7, help="share of words from which on a text stays (0.7)")
    parser.add_argument("--confidence", type=float, default=0.8, help="of what takes its place (0.8)")
    args = parser.parse_args(argv)

    def work() -> None:
        counts = relabel(args.model, args.table, args.out, args.agreement, args.confidence)
        print(", ".join(f"{count} {name}" for name, count in counts.items()))

    return run_tool(work)


if __name__ == "__main__":
    sys.exit(main())
