"""Manifests: which audio says what.

A manifest is a TSV file with a header; columns ``audio`` and ``text`` are needed, ``start_s``, ``duration_s``,
``speaker``, ``corpus`` and ``id`` optional, others ignored. Audio paths are relative to the manifest's folder.
``librispeech:PART`` names a part of LibriSpeech instead (Panayotov et al. 2015), which is downloaded.
"""

from __future__ import annotations

import csv
import math
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from asr.errors import AsrError, ManifestError
from asr.text import normalize

LIBRISPEECH = "librispeech:"
PARTS = "train-clean-100, train-clean-360, train-other-500, dev-clean, dev-other, test-clean, test-other"


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
    if str(path).startswith(LIBRISPEECH):
        return _librispeech(str(path).removeprefix(LIBRISPEECH))
    path = Path(path)
    there: dict[Path, bool] = {}
    utterances = []
    for line, row in read_table(path, ("audio", "text")):
        utterance = _utterance(row, path, line)
        if utterance.audio not in there:
            there[utterance.audio] = utterance.audio.is_file()
        if not there[utterance.audio]:
            raise ManifestError(
                f"{path}, line {line}: audio file {row['audio']} does not exist: paths are relative to the manifest"
            )
        utterances.append(utterance)
    if not utterances:
        raise ManifestError(f"{path}: no utterances: the manifest has only its header")
    return utterances


def read_table(path: Path, needed: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, values by column) of every row of a TSV file with a header; empty lines are passed over.

    Raises :class:`ManifestError` when the file cannot be read, lacks a column of ``needed`` or has a ragged row.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            missing = [name for name in needed if name not in (rows.fieldnames or ())]
            if missing:
                names = " and ".join(f"'{name}'" for name in missing)
                raise ManifestError(f"{path}, line 1: no column {names}: the first line must name the columns")
            for row in rows:
                if None in row.values() or None in row:
                    raise ManifestError(
                        f"{path}, line {rows.line_num}: the number of columns differs from the header's "
                        f"({len(rows.fieldnames or ())}): separate them with one tab each"
                    )
                yield rows.line_num, row
    except OSError as error:
        raise ManifestError(f"cannot read the table {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path}: not UTF-8 text ({error.reason}): save it as UTF-8") from None
    except csv.Error as error:
        raise ManifestError(f"{path}: not a table of tab-separated columns ({error})") from None


def _utterance(row: dict[str, str], path: Path, line: int) -> Utterance:
    where = f"{path}, line {line}"
    try:
        start = float(row.get("start_s") or 0)
        duration = float(row["duration_s"]) if row.get("duration_s") else None
    except ValueError:
        raise ManifestError(f"{where}: start_s and duration_s must be numbers of seconds") from None
    if not math.isfinite(start) or start < 0 or (duration is not None and not (0 < duration < math.inf)):
        raise ManifestError(f"{where}: start_s must not be negative and duration_s must be positive")
    if not row["audio"]:
        raise ManifestError(f"{where}: no audio file is named")
    return Utterance(
        row.get("id") or f"{path.stem}-{line}",
        (path.parent / row["audio"]).resolve(),
        start,
        duration,
        _text(row["text"], where),
        row.get("speaker") or "",
        row.get("corpus") or path.stem,
    )


def _text(raw: str, where: str) -> str:
    try:
        foreign = next(_foreign_letters(raw), None)
        if foreign:
            raise ManifestError(
                f"{where}: character {foreign!r} is outside the units (a to z and '): spell the text in these letters"
            )
        return normalize(raw)
    except ManifestError:
        raise
    except AsrError as error:
        raise ManifestError(f"{where}: {error}") from None


def _foreign_letters(text: str) -> Iterator[str]:
    """Letters that :func:`normalize` would drop: a transcript without them would be wrong."""
    if not text.isascii():
        yield from (c for c in text if unicodedata.category(c) in ("Lu", "Ll", "Lt", "Lo") and not normalize(c))


def _librispeech(name: str) -> list[Utterance]:
    """A LibriSpeech part through torchaudio.datasets, downloaded when it is not in :func:`data_folder`."""
    from torchaudio.datasets import LIBRISPEECH as Dataset

    from asr.training.download import data_folder

    root = data_folder()
    where = f"{LIBRISPEECH}{name}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        data = Dataset(str(root), url=name, download=True)
    except ValueError:
        raise ManifestError(f"{where}: LibriSpeech has no such part: choose one of {PARTS}") from None
    except (OSError, RuntimeError) as error:
        raise ManifestError(
            f"{where} cannot be downloaded to {root} ({' '.join(str(error).split())}): "
            "a network is needed the first time"
        ) from None
    try:
        utterances = [
            Utterance(
                f"{speaker}-{chapter}-{number:04d}",
                root / "LibriSpeech" / relative,
                0.0,
                None,
                normalize(text),
                f"ls_{speaker}",
                name,
            )
            for relative, _, text, speaker, chapter, number in map(data.get_metadata, range(len(data)))
        ]
    except OSError as error:
        raise ManifestError(
            f"{where}: {error}: remove {root / 'LibriSpeech' / name}, so that it is fetched again"
        ) from None
    if not utterances:
        raise ManifestError(f"{where}: {root / 'LibriSpeech' / name} is empty: remove it, so that it is fetched again")
    return utterances


def read_corpora(manifests: Iterable[str]) -> dict[str, list[Utterance]]:
    """Utterances by corpus name: the manifest's name without ending, numbered where two are alike."""
    corpora: dict[str, list[Utterance]] = {}
    for manifest in manifests:
        name = stem = manifest.removeprefix(LIBRISPEECH) if manifest.startswith(LIBRISPEECH) else Path(manifest).stem
        count = 1
        while name in corpora:
            count += 1
            name = f"{stem}-{count}"
        corpora[name] = read_manifest(manifest)
    return corpora
