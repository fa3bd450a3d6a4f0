"""LibriSpeech and its language models from OpenSLR: fetched once, in parts if need be, and checked.

Panayotov et al. 2015, "LibriSpeech: an ASR corpus based on public domain audio books" (CC BY 4.0);
https://www.openslr.org/12 is the speech, https://www.openslr.org/11 what belongs to language models.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

from asr.errors import ManifestError

log = logging.getLogger("asr.train")
MIRROR = "https://www.openslr.org/resources"
_CHUNK = 1 << 20
_TRIES = 5  # without a byte between them
_WAIT_S = 5.0
_TIMEOUT_S = 60.0
_SAY_EVERY_S = 30.0
_SPARE = 1 << 30  # bytes that stay free on the disk
_UNPACKED = 1.05  # size of FLAC files by that of their archive


@dataclass(frozen=True)
class Resource:
    """A file at OpenSLR: number of its collection, name, size in bytes and SHA-256 ("": known by its size alone)."""

    collection: int
    name: str
    bytes: int
    sha256: str = ""

    @property
    def url(self) -> str:
        """Where it lies."""
        return f"{MIRROR}/{self.collection}/{self.name}"


# Checksums: torchaudio.datasets.librispeech; sizes: Kaldi's egs/librispeech (download_and_untar.sh, download_lm.sh).
PARTS = {
    part: Resource(12, f"{part}.tar.gz", size, digest)
    for part, size, digest in (
        ("dev-clean", 337926286, "76f87d090650617fca0cac8f88b9416e0ebf80350acb97b343a85fa903728ab3"),
        ("dev-other", 314305928, "12661c48e8c3fe1de2c1caa4c3e135193bfb1811584f11f569dd12645aa84365"),
        ("test-clean", 346663984, "39fde525e59672dc6d1551919b1478f724438a95aa55f874b576be21967e6c23"),
        ("test-other", 328757843, "d09c181bba5cf717b3dee7d4d592af11a3ee3a09e08ae025c5506f6ebe961c29"),
        ("train-clean-100", 6387309499, "d4ddd1d5a6ab303066f14971d768ee43278a5f2a0aa43dc716b0e64ecbbbf6e2"),
        ("train-clean-360", 23049477885, "146a56496217e96c14334a160df97fffedd6e0a04e66b9c5af0d40be3c792ecf"),
        ("train-other-500", 30593501606, "ddb22f27f96ec163645d53215559df6aa36515f26e01dd70798188350adcb6d2"),
    )
}
# gzip's own checksum guards the content, which reading the file checks.
TRIGRAM = Resource(11, "3-gram.pruned.1e-7.arpa.gz", 34094057)

Open = Callable[[urllib.request.Request], Any]


def data_folder() -> Path:
    """Where downloads go: ``ASR_DATA`` if set (`asr train --data-dir` sets it), else ``~/.cache/asr``."""
    return Path(os.environ.get("ASR_DATA") or Path.home() / ".cache" / "asr")


def librispeech(part: str, folder: Path, open_url: Open | None = None) -> Path:
    """The folder of a part of LibriSpeech below ``folder``, downloaded and unpacked when it is not there.

    Both go on where an interrupted call stopped; an archive is removed once it is unpacked. Raises ManifestError for an
    unknown part, a full disk, no network or a file that is not the published one.
    """
    if part not in PARTS:
        raise ManifestError(f"LibriSpeech has no part '{part}': choose one of {', '.join(PARTS)}")
    there = folder / "LibriSpeech" / part
    if there.is_dir():
        return there
    resource = PARTS[part]
    log.info("librispeech:%s is %.1f GB to download and as much again to unpack, in %s", part, _gb(resource), folder)
    _need(folder, int(resource.bytes * (1 + _UNPACKED)) - _fetched(resource, folder), f"librispeech:{part}")
    archive = fetch(resource, folder, open_url)
    log.info("unpacking %s", archive)
    unpacking = folder / f".{part}.unpacking"
    shutil.rmtree(unpacking, ignore_errors=True)
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(unpacking, filter="data")
        there.parent.mkdir(parents=True, exist_ok=True)
        (unpacking / "LibriSpeech" / part).rename(there)  # only now it counts as there
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ManifestError(f"cannot unpack {archive} ({error}): make room, or remove it to fetch it again") from None
    finally:
        shutil.rmtree(unpacking, ignore_errors=True)
    archive.unlink()
    return there


def fetch(resource: Resource, folder: Path, open_url: Open | None = None) -> Path:
    """The file in ``folder``, downloaded when it is not there; an interrupted download goes on.

    Raises ManifestError.
    """
    path = folder / resource.name
    if path.is_file() and path.stat().st_size == resource.bytes:
        return path
    part = folder / (resource.name + ".part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _need(folder, resource.bytes - _fetched(resource, folder), resource.name)
        _complete(resource, part, open_url or _open)
    except OSError as error:
        raise ManifestError(
            f"cannot fetch {resource.url} to {folder} ({' '.join(str(error).split())}): with a network, the same "
            "command goes on from there"
        ) from None
    with part.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest() if resource.sha256 else ""
    if part.stat().st_size != resource.bytes or digest != resource.sha256:
        part.unlink()
        raise ManifestError(f"{resource.url} is not the published file (its size or SHA-256 differs): try again later")
    part.replace(path)
    return path


def _complete(resource: Resource, part: Path, open_url: Open) -> None:
    """Append to ``part`` until nothing is missing; gives up when some tries in a row brought nothing."""
    tries, said = 0, time.monotonic()
    while (have := part.stat().st_size if part.exists() else 0) < resource.bytes:
        try:
            request = urllib.request.Request(resource.url, headers={"Range": f"bytes={have}-"} if have else {})
            with open_url(request) as answer, part.open("ab" if answer.status == 206 else "wb") as file:
                while chunk := answer.read(_CHUNK):
                    file.write(chunk)
                    tries = 0
                    if time.monotonic() - said > _SAY_EVERY_S:
                        said = time.monotonic()
                        log.info("%s: %.0f %%", resource.name, 100 * file.tell() / resource.bytes)
            if part.stat().st_size == have:
                raise ConnectionError("the server sent nothing")
        except (OSError, HTTPException) as error:
            tries += 1
            if tries >= _TRIES or isinstance(error, urllib.error.HTTPError):
                raise OSError(str(error) or type(error).__name__) from None
            time.sleep(_WAIT_S)


def _open(request: urllib.request.Request) -> Any:
    return urllib.request.urlopen(request, timeout=_TIMEOUT_S)


def _fetched(resource: Resource, folder: Path) -> int:
    """Bytes of it that are there."""
    paths = (folder / resource.name, folder / (resource.name + ".part"))
    return max(path.stat().st_size if path.is_file() else 0 for path in paths)


def _need(folder: Path, size: int, what: str) -> None:
    """Raise ManifestError unless the disk has room for ``size`` bytes."""
    disk = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(disk).free
    if size + _SPARE > free:
        raise ManifestError(
            f"{what} needs {(size + _SPARE) / 1e9:.1f} GB in {folder}, {free / 1e9:.1f} GB are free: make room, or "
            "give another --data-dir"
        )


def _gb(resource: Resource) -> float:
    return resource.bytes / 1e9
