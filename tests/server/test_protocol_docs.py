"""docs/protocol.md says what is: its examples run, its tables are those of the code."""

import asyncio
import dataclasses
import re
import sys
import wave
from pathlib import Path

import pytest
from serving import offline, run, serving, speech, url

from asr import Recognizer
from asr.errors import ERRORS
from server.limits import Limits
from server.protocols import PATHS
from server.protocols.stream import MESSAGES, SHOWN_LIMITS
from server.protocols.stream_options import Start

TEXT = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")
EXAMPLES = {m[1]: m[0] for m in re.findall(r"```python\n(# example: (\w+)\n.*?)```", TEXT, re.S)}


def test_the_error_table() -> None:
    rows = [f"| `{r.code}` | {r.close_code} | {r.http_status} | {r.exit_status} | {r.text} |" for r in ERRORS.values()]
    assert "\n".join(rows) in TEXT
    assert len({r.exit_status for r in ERRORS.values()}) == len(ERRORS)


def test_every_name_is_explained() -> None:
    names = [*PATHS, *MESSAGES, *(f.name for f in dataclasses.fields(Start)), "ahead_seconds", "max_retained_bytes"]
    missing = [name for name in names if name not in TEXT]
    assert not missing
    assert set(SHOWN_LIMITS) <= {f.name for f in dataclasses.fields(Limits)}


@pytest.mark.parametrize("name", ["stream", "vosk", "listen"])
def test_the_examples_run(name: str, tiny_path: Path, tiny: Recognizer, tmp_path: Path) -> None:
    script, recording, data = tmp_path / "example.py", tmp_path / "recording.wav", speech(4)
    script.write_text(EXAMPLES[name], encoding="utf-8")
    with wave.open(str(recording), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(data)

    async def main() -> str:
        async with serving(tiny_path) as server:
            where = url(server, "")
            process = await asyncio.create_subprocess_exec(
                sys.executable, str(script), where, str(recording), stdout=asyncio.subprocess.PIPE
            )
            out, _ = await process.communicate()
            assert process.returncode == 0
            return out.decode()

    text = " ".join(run(main).split())
    if name == "listen":
        assert text  # it has a hot word of its own
    else:
        assert text == offline(tiny, data)
