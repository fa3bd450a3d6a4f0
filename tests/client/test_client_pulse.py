"""``asr mic`` from end to end with a real PortAudio device: a null sink whose monitor is the microphone."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from pulse import missing, play, pulse

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing()), reason=missing() or "PulseAudio is there"),
]
ROOT = Path(__file__).parent.parent.parent


def test_a_clip_played_into_the_microphone(clips: dict[Path, str], tmp_path: Path) -> None:
    """The text is that of ``asr transcribe`` for the same file, and Ctrl-C ends it."""
    pytest.importorskip("sounddevice", reason="needs PortAudio", exc_type=OSError)
    clip, said = next(item for item in clips.items() if item[0].name == "letter.wav")
    command = [sys.executable, "-m", "asr"]
    whole = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "transcribe", str(clip), "--quiet"], cwd=ROOT, env=whole, capture_output=True, text=True, timeout=200
    )
    expected = done.stdout.split()
    with pulse(tmp_path) as environment:
        listed = subprocess.run(
            [*command, "mic", "--list-devices"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100
        )
        if "default" not in listed.stdout:
            pytest.skip("PortAudio has no way to PulseAudio here (needs libasound2-plugins)")
        out = tmp_path / "heard.txt"
        mic = subprocess.Popen(
            [*command, "mic", "--device", "default", "-o", str(out)],
            cwd=ROOT,
            env={**environment, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert mic.stderr is not None
            ready = threading.Thread(target=_until, args=(mic.stderr, "listening"), daemon=True)
            ready.start()
            ready.join(120)
            assert not ready.is_alive()
            time.sleep(1.0)
            play(environment, clip)
            time.sleep(2.5)
            mic.send_signal(2)
            stdout, stderr = mic.communicate(timeout=60)
        finally:
            if mic.poll() is None:
                mic.kill()
                mic.wait(10)
    assert mic.returncode == 0, stderr
    assert stdout.split() == expected == out.read_text().split(), (stdout, expected, said, stderr)


def _until(lines: object, word: str) -> None:
    for line in lines:  # type: ignore[attr-defined]
        if word in line:
            return
