"""Manifests: which audio says what.

A manifest is a TSV file with a header; columns ``audio`` and ``text`` are needed, ``start_s``, ``duration_s``,
``speaker``, ``corpus`` and ``id`` optional, others ignored. Audio paths are relative to the manifest's folder.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from asr.errors import AsrError, ManifestError
from asr.text import normalize


@dataclass(frozen=True)
class Utterance:
    """One labelled piece of audio; ``text`` is normalised. ``duration_s`` None means to the end of the file."""

    id: str
    audio: Path
    start_s: float
    duration_s: float | None
    text: str
    speaker: str = ""
    corpus: str = ""


def read_manifest(path: str | Path) -> list[Utterance]:
    """All utterances of a manifest. Raises :class:`ManifestError` naming file, line and remedy."""
    if str(path).startswith("librispeech:"):
        return _librispeech(str(path).removeprefix("librispeech:"))
    path = Path(path)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            missing = {"audio", "text"} - set(rows.fieldnames or ())
            if missing:
                names = " or ".join(sorted(missing))
                raise ManifestError(f"{path}: no column {names}: the first line must name the columns")
            utterances = [_utterance(row, path, n) for n, row in enumerate(rows, start=2)]
    except OSError as error:
        raise ManifestError(f"cannot read the manifest {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path}: not UTF-8 text ({error.reason}): save the manifest as UTF-8") from None
    if not utterances:
        raise ManifestError(f"{path}: no utterances: the manifest has only its header")
    for audio in dict.fromkeys(u.audio for u in utterances):
        if not audio.is_file():
            raise ManifestError(f"{path}: audio file {audio} does not exist: paths are relative to the manifest")
    return utterances


def _utterance(row: dict[str, str], path: Path, line: int) -> Utterance:
    where = f"{path}, line {line}"
    if None in row.values() or None in row:
        raise ManifestError(f"{where}: the number of columns differs from the header's")
    try:
        start = float(row.get("start_s") or 0)
        duration = float(row["duration_s"]) if row.get("duration_s") else None
    except ValueError:
        raise ManifestError(f"{where}: start_s and duration_s must be numbers of seconds") from None
    if not math.isfinite(start) or start < 0 or (duration is not None and not (0 < duration < math.inf)):
        raise ManifestError(f"{where}: start_s must not be negative and duration_s must be positive")
    try:
        text = normalize(row["text"])
    except AsrError as error:
        raise ManifestError(f"{where}: {error}") from None
    audio = (path.parent / row["audio"]).resolve()
    return Utterance(
        row.get("id") or f"{path.stem}-{line}",
        audio,
        start,
        duration,
        text,
        row.get("speaker") or "",
        row.get("corpus") or path.stem,
    )


def _librispeech(name: str) -> list[Utterance]:
    """A LibriSpeech part through torchaudio.datasets, downloaded to ``~/.cache/asr`` when it is not there."""
    from torchaudio.datasets import LIBRISPEECH

    root = Path.home() / ".cache" / "asr"
    root.mkdir(parents=True, exist_ok=True)
    try:
        data = LIBRISPEECH(str(root), url=name, download=True)
    except ValueError as error:
        raise ManifestError(f"librispeech:{name}: {error}") from None
    except (OSError, RuntimeError) as error:
        raise ManifestError(
            f"librispeech:{name} cannot be downloaded to {root} ({error}): a network is needed the first time"
        ) from None
    utterances = []
    for i in range(len(data)):
        relative, _, text, speaker, chapter, number = data.get_metadata(i)
        audio = root / "LibriSpeech" / relative if not (root / relative).exists() else root / relative
        utterances.append(
            Utterance(f"{speaker}-{chapter}-{number:04d}", audio, 0.0, None, normalize(text), f"ls_{speaker}", name)
        )
    return utterances


def duration_hours(utterances: Sequence[Utterance]) -> float:
    """Sum of the stated durations in hours (utterances without one count as nothing)."""
    return sum(u.duration_s or 0.0 for u in utterances) / 3600
