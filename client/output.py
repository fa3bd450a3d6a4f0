"""The file that a transcript is saved in, checked before anything is heard."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from asr.errors import UsageError
from asr.results import Transcript
from asr.writers import FORMATS, render


@dataclass(frozen=True)
class Output:
    """``path`` with the format that its suffix names. Raises UsageError for another suffix, a folder that is not
    there, and a file that is, unless ``force``."""

    path: Path
    force: bool = False

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            known = ", ".join(f".{name}" for name in FORMATS)
            raise UsageError(f"{self.path}: unknown format '{self.path.suffix}': end the name in one of {known}")
        if not self.path.parent.is_dir():
            raise UsageError(f"{self.path}: there is no folder {self.path.parent}: make it first")
        if self.path.exists() and not self.force:
            raise UsageError(f"{self.path} exists: give another name, or --force to overwrite it")

    @property
    def format(self) -> str:
        """Of :data:`asr.writers.FORMATS`."""
        return self.path.suffix.lower().removeprefix(".")

    def save(self, transcript: Transcript, source: str = "") -> None:
        """Write it whole or not at all. Raises OSError."""
        text = render(replace(transcript, source=source or transcript.source), self.format)
        temporary = self.path.with_name(f".asr-{os.getpid()}.tmp")
        try:
            temporary.write_text(text, encoding="utf-8", newline="\n")
            os.replace(temporary, self.path)
        finally:
            temporary.unlink(missing_ok=True)
