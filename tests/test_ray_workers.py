"""asr.ray_workers: the same results from a Ray cluster, here one of this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_transcribe import Run, media

from asr import ray_workers
from asr.errors import AsrError, ModelError, UsageError
from asr.ray_workers import _Actor, transcribe_on_ray
from asr.results import Segment, Transcript

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A Ray cluster of its own; ends with the tests."""
    pytest.importorskip("ray", reason="Ray is not installed: install asr[ray]")
    command = [sys.executable, "-m", "ray.scripts.scripts"]
    port = 26379
    started = subprocess.run(
        [*command, "start", "--head", f"--port={port}", "--num-cpus=2", "--include-dashboard=false",
         "--object-store-memory=80000000", "--disable-usage-stats"],
        capture_output=True, text=True, timeout=120,
        env={**os.environ, "PYTHONPATH": f"{HERE}:{HERE.parent}"},
    )  # fmt: skip
    if started.returncode:
        pytest.skip(f"Ray does not start on this machine: {started.stderr.strip()[-200:]}")
    yield f"127.0.0.1:{port}"
    subprocess.run([*command, "stop", "--force"], capture_output=True, timeout=60)


@pytest.mark.slow
def test_a_cluster_gives_what_one_machine_does(cluster: str, capsys: pytest.CaptureFixture[str]) -> None:
    files = media(a="a text\nof two", b="error: broken", c="c", d="dd")
    alone = Run(*files)
    shared = Run(*files, engine="ray", ray_address=cluster, jobs=2)
    assert (shared.status, shared.out, shared.err) == (alone.status, alone.out, alone.err)
    with pytest.raises(ModelError, match="no model 'missing'"):
        Run(*files, engine="ray", ray_address=cluster, model="missing", jobs=2)
    died = Run(*media(a="a long text of its own", b="die", c="x"), engine="ray", ray_address=cluster, jobs=2)
    assert died.status == 1 and "b.wav: its Ray actor died twice" in died.err


@pytest.mark.slow
def test_files_that_actors_do_not_see_are_sent(cluster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [Path(name) for name in media(a="hello there", b="b", c="gone")]
    monkeypatch.setattr(ray_workers, "_size", lambda path: 10**6)  # no file there is that large
    files[2].unlink()
    results: dict[int, Transcript | AsrError] = {}
    transcribe_on_ray(_Loader(), files, results.__setitem__, lambda *_: None, address=cluster, actors=1)
    assert [r.text for r in (results[0], results[1]) if isinstance(r, Transcript)] == ["hello there", "b"]
    assert isinstance(results[2], AsrError) and "cannot be read" in str(results[2])


class _Reader:
    """A recogniser for actors: the text of a file is its transcript."""

    def transcribe_many(self, sources: Any, *, on_done: Any, on_progress: Any, channel: Any) -> None:
        for index, source in enumerate(sources):
            text = (source.read_text() if isinstance(source, Path) else source.read().decode()).strip()
            on_done(index, Transcript((Segment(text, 0.0, 1.0),), 1.0, source=getattr(source, "name", str(source))))


class _Loader:
    def __call__(self) -> Any:
        return _Reader()


def test_an_actor_takes_files_and_bytes() -> None:
    (name,) = media(a="some words")
    actor = _Actor(_Loader(), None, {})
    path = Path(name).resolve()
    ((number, found), (_, missing)) = actor.transcribe([(5, str(path), path.stat().st_size), (6, "/nowhere", 3)])
    assert number == 5 and isinstance(found, Transcript) and found.text == "some words" and missing is None


def test_no_cluster_is_said_with_its_remedy() -> None:
    pytest.importorskip("ray", reason="Ray is not installed: install asr[ray]")
    with pytest.raises(UsageError, match=r"no Ray cluster at '127\.0\.0\.1:1'"):
        transcribe_on_ray(_Loader(), [Path("a")], print, print, address="127.0.0.1:1")


def test_without_the_package_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"install asr\[ray\]"):
        transcribe_on_ray(_Loader(), [Path("a")], print, print)
