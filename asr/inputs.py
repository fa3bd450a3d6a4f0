"""From the arguments of a file command to media files that can be read, and names for what is made of them.

Only the file system is asked: nothing here imports a media library.
"""

from __future__ import annotations

import glob
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from asr.errors import AsrError, AudioError

STDIN = "-"
_SUFFIXES = (
    ".3gp .aac .ac3 .aif .aifc .aiff .amr .ape .au .avi .caf .flac .flv .m4a .m4b .m4v .mka .mkv .mov .mp2 .mp3 .mp4"
    " .mpeg .mpg .mts .oga .ogg .ogv .opus .rf64 .snd .ts .tta .w64 .wav .wave .webm .wma .wmv .wv"
)
MEDIA_SUFFIXES = frozenset(_SUFFIXES.split())
FOLD_CASE = sys.platform in ("win32", "darwin")  # names that differ in case alone are the same file there

Fail = Callable[[str, AsrError], None]


@dataclass(frozen=True)
class Input:
    """A media file to read. ``name`` is what the user calls it, ``relative`` its place below a folder of outputs."""

    name: str
    path: Path
    relative: PurePath

    @property
    def is_stdin(self) -> bool:
        """Whether this is standard input; ``path`` is ``-`` then."""
        return self.name == STDIN


def find_inputs(arguments: Iterable[str], fail: Fail) -> list[Input]:
    """The files that ``arguments`` mean, each once, in the given order.

    An argument is a file, a folder (all media files below it by their suffix, sorted, hidden ones left out), a glob
    pattern (``**`` for folders of any depth) or ``-``. What means no file is reported by ``fail``.
    """
    found: dict[str, Input] = {}
    for argument in arguments:
        any_found = False
        for item in _expand(argument):
            any_found = True
            found.setdefault(STDIN if item.is_stdin else os.path.abspath(item.path), item)
        if not any_found:
            fail(printable(argument), _why_nothing(argument))
    return list(found.values())


def check_readable(path: Path) -> None:
    """Raise :class:`AudioError` for a file that cannot be read or is empty; the message is without its name."""
    try:
        if not os.access(path, os.R_OK):
            raise AudioError("may not be read: check its permissions")
        if path.is_file() and path.stat().st_size == 0:
            raise AudioError("is empty (0 bytes): get a whole copy of the file")
    except OSError as error:
        raise AudioError(f"cannot be read: {error.strerror or error}") from error


def output_stems(inputs: Sequence[Input]) -> list[PurePath]:
    """For each input a relative path without format suffix, all different.

    Normally the name without its suffix, below the folders that were searched: ``a.wav`` gives ``a``. Inputs that would
    share one keep their suffix (``a.wav``, ``a.mp3``), and if that does not help, as many parent folders as it takes
    (``x/a``, ``y/a``).
    """
    steps = [0] * len(inputs)
    while True:
        stems = [_stem(item, step) for item, step in zip(inputs, steps, strict=True)]
        keys = [str(stem).casefold() if FOLD_CASE else str(stem) for stem in stems]
        counts = Counter(keys)
        shared = [i for i, key in enumerate(keys) if counts[key] > 1 and steps[i] <= 2 * len(inputs[i].path.parts)]
        if not shared:
            return stems
        for i in shared:
            steps[i] += 1


def printable(name: str) -> str:
    """``name`` with bytes that are not UTF-8 (file names may hold any) replaced, so that it can be written out."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _stem(item: Input, step: int) -> PurePath:
    """Names from short to long: a, a.wav, x/a, x/a.wav, ..."""
    if item.is_stdin:
        return item.relative
    parents, keep_suffix = divmod(step, 2)
    full = Path(os.path.abspath(item.path))
    parts = [part for part in full.parts if part != full.anchor]
    relative = PurePath(*parts[-(len(item.relative.parts) + parents) :]) if parents else item.relative
    return relative if keep_suffix else relative.with_name(relative.stem)


def _expand(argument: str) -> Iterator[Input]:
    if argument == STDIN:
        yield Input(STDIN, Path(STDIN), PurePath("stdin"))
    elif os.path.isdir(argument):
        yield from _search(Path(argument))
    elif os.path.exists(argument):
        yield _single(Path(argument))
    elif glob.has_magic(argument):
        for match in sorted(glob.glob(argument, recursive=True)):
            if not os.path.isdir(match):
                yield _single(Path(match))
            elif not argument.endswith("**"):  # that pattern has all the files in them already
                yield from _search(Path(match))


def _single(path: Path) -> Input:
    return Input(printable(str(path)), path, PurePath(path.name))


def _search(folder: Path) -> Iterator[Input]:
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in MEDIA_SUFFIXES:
                path = Path(parent, name)
                yield Input(printable(str(path)), path, path.relative_to(folder))


def _why_nothing(argument: str) -> AsrError:
    if os.path.isdir(argument):
        return AudioError("has no media files in it: give another folder, or the files themselves")
    if glob.has_magic(argument):
        return AudioError("no file matches: check the pattern")
    if os.path.lexists(argument):
        return AudioError("is a link to a file that does not exist")
    return AudioError("no such file: check the name")
