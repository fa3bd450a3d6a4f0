"""`asr bench serve`: a small load on a server of its own, and the arithmetic of the table."""

import argparse
import asyncio
import json
from pathlib import Path

import numpy as np
import pytest
from tiny_model import tiny_folder

from asr.audio import encode
from asr.errors import UsageError
from server import bench
from server.bench import Load, Stream, Trial, largest
from server.bench_options import add_arguments


def test_the_largest_load_is_found_by_doubling_and_halving() -> None:
    asked: list[int] = []

    async def trial(count: int) -> Trial:
        asked.append(count)
        lag = 100.0 if count <= 57 else 900.0
        return Trial(count, lag, lag, lag, 0, 0, 0, 0, 0, 0, 0, 0.0, 0)

    shown: list[Trial] = []
    rows = asyncio.run(largest(trial, Load(), 10, 400, shown.append))
    assert asked == [10, 20, 40, 80, 60, 50, 55] and [r.streams for r in rows] == sorted(asked)
    assert [t.streams for t in shown] == asked
    assert max(r.streams for r in rows if r.lag_95 < 300) == 55
    asked.clear()
    asyncio.run(largest(trial, Load(), 10, 30, shown.append))
    assert asked == [10, 20, 30]  # never above what is allowed


def test_a_summary_counts_what_was_lost() -> None:
    good = Stream("a b c d", [10.0] * 99 + [500.0], 20.0)
    bad = Stream("a c x", [10.0] * 100, 40.0)
    failed = Stream("", [], failed="gone")
    trial = bench._summary(3, [good, bad, failed], ["a b c d", "a b c d", "a b"], [0.5, 0.1], 1e5)
    assert (trial.failed, trial.lost) == (1, 3) and trial.wer == pytest.approx(4 / 10)
    assert (trial.lag_50, trial.lag_99, trial.finish_50) == (10.0, pytest.approx(10.0, abs=300), 30.0)
    assert len(trial.row.split()) == len(bench.HEAD.replace("lag ms: 50 %", "l").replace("95 %", "l").replace(
        "99 %", "l").replace("final 50", "f").replace("CPU: engine", "e").replace("WER %", "w").split())  # fmt: skip


def test_loads_that_make_no_sense_are_refused() -> None:
    for wrong in ({"chunk_ms": 5}, {"seconds": 0.1}, {"limit_ms": 0}):
        with pytest.raises(UsageError):
            Load(**wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no speech"):
        bench.prepare([], Load(), print)


@pytest.mark.slow
def test_a_small_load_on_a_server_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_folder(tmp_path / "tiny")
    rng = np.random.default_rng(1)
    import soundfile

    speech = tmp_path / "noise.wav"
    soundfile.write(speech, (0.2 * rng.normal(size=16000)).astype(np.float32), 16000)
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    out = tmp_path / "numbers.json"
    args = parser.parse_args(
        [str(speech), "--model", str(model), "--streams", "3", "--seconds", "1", "--json", str(out)]
    )

    async def run() -> int:
        async with asyncio.timeout(150):
            return await bench.bench(args)

    assert asyncio.run(run()) == 0
    (row,) = json.loads(out.read_text())["trials"]
    assert row["streams"] == 3 and row["failed"] == row["lost"] == 0 and row["wer"] == 0
    assert 0 < row["lag_50"] <= row["lag_95"] <= row["lag_99"] and row["cpu_engine"] > 0
    assert "most streams" in capsys.readouterr().out
    assert len(encode(np.zeros(2, np.float32), "pcm_s16le")) == 4
