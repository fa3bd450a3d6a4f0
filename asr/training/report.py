"""What a training run tells: scalars in ``metrics.jsonl`` and TensorBoard, a progress bar or log lines, and curves."""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

log = logging.getLogger("asr.train")
METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"
CURVES = "curves.png"
_LOG_EVERY_S = 30
_LOSSES = ("loss", "phones", "characters", "bpe", "intermediate")
_NO_EXTRA = "install the training extra (pip install 'asr[train]')"


class Reporter:
    """Scalars of a run, to be used as a context; only rank 0 says anything.

    ``step`` is the step the run goes on from: what an interrupted run had reported after it is dropped.
    """

    def __init__(self, out: Path, rank: int, steps: int, step: int = 0) -> None:
        self.out = out
        self.rank = rank
        self.steps = steps
        self.step = step
        self.logged = -math.inf
        self.board: Any = None
        self.bar: Any = None

    def __enter__(self) -> Reporter:
        if self.rank:
            return self
        _drop_after(self.out / METRICS, self.step)
        self.file = (self.out / METRICS).open("a", encoding="utf-8")
        try:
            from torch.utils.tensorboard.writer import SummaryWriter

            self.board = SummaryWriter(str(self.out / TENSORBOARD), purge_step=self.step + 1)  # type: ignore[no-untyped-call]
        except ImportError:
            log.warning("no TensorBoard scalars: %s", _NO_EXTRA)
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import Progress

            self.bar = Progress(console=Console(stderr=True))
            self.task = self.bar.add_task("training", total=self.steps, completed=self.step)
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.rank:
            return
        self.file.close()
        if self.board:
            self.board.close()
        if self.bar:
            self.bar.stop()

    def __call__(self, step: int, scalars: dict[str, float]) -> None:
        """Report the scalars of a step (numbers that are not finite become null)."""
        if self.rank or not scalars:
            return
        finite = {name: value if math.isfinite(value) else None for name, value in scalars.items()}
        self.file.write(json.dumps({"step": step, **finite}) + "\n")
        self.file.flush()
        if self.board:
            for name, value in scalars.items():
                self.board.add_scalar(name, value, step)
        if self.bar:
            self.bar.update(self.task, completed=step, description=f"loss {scalars.get('loss', float('nan')):.3f}")
        if time.monotonic() - self.logged > _LOG_EVERY_S or "loss" not in scalars:
            self.logged = time.monotonic()
            log.info("step %d/%d %s", step, self.steps, " ".join(f"{k}={v:.4g}" for k, v in scalars.items()))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a ``metrics.jsonl``; one that a crash cut short ends it."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def _drop_after(path: Path, step: int) -> None:
    kept = [json.dumps(row) + "\n" for row in read_metrics(path) if row["step"] <= step]
    path.write_text("".join(kept), encoding="utf-8")


def plot_curves(out: Path) -> Path | None:
    """Loss and dev error of a run as ``curves.png``; None without matplotlib or without steps."""
    try:
        import matplotlib
    except ImportError:
        log.warning("no plot of the curves: %s", _NO_EXTRA)
        return None
    matplotlib.use("agg")
    from matplotlib import pyplot

    rows = read_metrics(out / METRICS)
    losses = [r for r in rows if "loss" in r]
    tests = [r for r in rows if any("/" in k for k in r)]
    if not losses:
        return None
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4), constrained_layout=True)
    for name in [k for k in losses[0] if k in _LOSSES]:
        values = np.array([r.get(name) for r in losses], dtype=np.float64)  # null becomes NaN, a gap in the line
        width = max(1, len(values) // 100)
        smooth = np.convolve(values, np.ones(width) / width, mode="valid")
        left.plot([r["step"] for r in losses][width - 1 :], smooth, label=name)
    left.set(xlabel="step", ylabel="CTC loss, nats per unit", yscale="log")
    left.legend()
    for name in sorted({k for r in tests for k in r if "/" in k}):
        points = [(r["step"], 100 * r[name]) for r in tests if r.get(name) is not None]
        right.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name.removesuffix("_error"))
    right.set(xlabel="step", ylabel="greedy unit error, %")
    if tests:
        right.legend(fontsize=7)
    figure.savefig(out / CURVES, dpi=110)
    pyplot.close(figure)
    return out / CURVES
