"""The examples of docs/clients.md run as they stand there."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving import chunks, speech
from test_client_commands import server  # noqa: F401  (a fixture)

from asr.audio.encoding import encode

ROOT = Path(__file__).parent.parent.parent
EXAMPLES = ROOT / "docs" / "examples"
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "clients.md").read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("code", BLOCKS)
def test_the_blocks_run(code: str, server: str, tiny: Any, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: F811
    pcm = speech(3, seed=11)
    exec(compile(code, "docs/clients.md", "exec"), {"SERVER": server, "pcm": pcm, "blocks": chunks(pcm)})
    assert capsys.readouterr().out


def test_the_blocks_are_there() -> None:
    assert len(BLOCKS) == 2


def run_example(name: str, *args: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(EXAMPLES / name), *args]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_phone_call_of_two_sides(server: str, tmp_path: Path) -> None:  # noqa: F811
    sides = [encode(np.frombuffer(speech(3, seed, 8000), "<i2") / 32768, "mulaw") for seed in (1, 2)]
    call = tmp_path / "call.ulaw"
    call.write_bytes(np.stack([np.frombuffer(side, np.uint8) for side in sides], axis=1).tobytes())
    out = run_example("phone_call.py", str(call), "--server", server, "--channels", "2")
    assert {line.split()[1] for line in out.splitlines()} == {"A", "B"}


@pytest.mark.slow
def test_voice_commands_from_a_file(clips: dict[Path, str]) -> None:
    """With the shipped model, which knows how its hot words are spoken; nobody says one here."""
    clip, said = next(item for item in clips.items() if item[0].name == "letter.wav")
    out = run_example("voice_commands.py", "--file", str(clip))
    assert "%" in out and "->" not in out and set(said.split()) & set(out.split())
