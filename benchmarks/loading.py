"""What a cold `Recognizer.load` costs, part by part: CPU time and memory, also beside an older revision of the code.

    python benchmarks/loading.py [--model en] [--runs 7] [--against REVISION]

Every run is a process of its own with one thread. Prints of each part the median of its CPU time (seconds that the
process computed, so that others steal none of it; they still empty its caches) and of the largest resident memory until
its end. With --against the code of a Git revision loads the same model, the two in turn, and ratios are medians over
the pairs; it must be a revision that can read the model folder. The first line are the imports of the packages that
this one stands on, which no revision changes.
"""

import argparse
import importlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent.parent
OTHERS, OWN, REST, TOTAL = "import numpy, torch, safetensors", "import asr", "all else", "load"
PARTS = (
    ("checksums of files", "asr.checkpoint", "ModelFolder.__init__"),
    ("network", "asr.checkpoint", "ModelFolder.load_network"),
    ("its inference form", "asr.recognizer", "inference_form"),
    ("lexicon", "asr.checkpoint", "ModelFolder.load_lexicon"),
    ("language model", "asr.checkpoint", "ModelFolder.load_language_model"),
    ("recurrent language model", "asr.checkpoint", "ModelFolder.load_recurrent"),
    ("its form for the search", "asr.decoding.beam_search", "Scorer"),
    ("spellings", "asr.lexicon", "Lexicon.spellings"),
    ("lexicon tree", "asr.decoding.beam_search", "build"),
)

Costs = dict[str, tuple[float, float]]
"""Of each part its seconds of CPU time and the peak of resident memory until its end in MiB."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="en")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--against", metavar="REVISION", help="also measure the code of this Git revision")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(costs(args.model)))
        return
    with tempfile.TemporaryDirectory() as folder:
        places = [HERE]
        if args.against:
            extract(args.against, Path(folder))
            places.insert(0, Path(folder))
        runs = [[run(place, args.model) for place in places] for _ in range(max(1, args.runs))]
    print("\n".join(table(runs)))


def extract(revision: str, folder: Path) -> None:
    """The package as it was in a revision."""
    done = subprocess.run(["git", "archive", revision, "asr"], cwd=HERE, capture_output=True)
    if done.returncode:
        sys.exit(f"there is no revision '{revision}' with a package: {done.stderr.decode().strip()}")
    with tarfile.open(fileobj=BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")


def run(place: Path, model: str) -> Costs:
    """The costs in a new process that takes the package from ``place``."""
    shipped = os.environ.get("ASR_MODELS") or str(HERE / "models")
    environment = {**os.environ, "PYTHONPATH": str(place), "ASR_MODELS": shipped, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).resolve()), "--child", "--model", model]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"the package in {place} could not load {model}: {done.stderr.strip().splitlines()[-1]}")
    found: Costs = {name: (seconds, peak) for name, (seconds, peak) in json.loads(done.stdout).items()}
    return found


def costs(model: str) -> Costs:
    """Measured here and now: what was imported before counts for nothing."""
    found: Costs = {}
    began = time.process_time()
    for package in ("numpy", "torch", "safetensors.numpy", "safetensors.torch"):
        importlib.import_module(package)
    found[OTHERS] = (time.process_time() - began, peak())
    began = time.process_time()
    recognizer = importlib.import_module("asr.recognizer")
    found[OWN] = (time.process_time() - began, peak())
    inner: list[float] = [0.0]  # of the parts that are being measured: what their own parts took
    for name, module, attribute in PARTS:
        measured(found, inner, name, importlib.import_module(module), attribute)
    began = time.process_time()
    recognizer.Recognizer.load(model)
    seconds = time.process_time() - began
    found[REST] = (seconds - inner[0], peak())
    found[TOTAL] = (seconds, peak())
    return found


def measured(found: Costs, inner: list[float], name: str, owner: Any, attribute: str) -> None:
    """Put a function in the place of another: the same, and what it costs without the parts in it goes to ``found``."""
    *path, last = attribute.split(".")
    for step in path:
        owner = getattr(owner, step)
    if not hasattr(owner, last):  # an older revision
        return
    plain: Callable[..., Any] = getattr(owner, last)

    def timed(*args: Any, **kwargs: Any) -> Any:
        inner.append(0.0)
        began = time.process_time()
        try:
            return plain(*args, **kwargs)
        finally:
            seconds = time.process_time() - began
            own = seconds - inner.pop()
            inner[-1] += seconds
            found[name] = (found.get(name, (0.0, 0.0))[0] + own, peak())

    setattr(owner, last, timed)


def peak() -> float:
    """The largest resident memory of this process until now, in MiB."""
    units = 1 << 20 if sys.platform == "darwin" else 1 << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / units


def table(runs: Sequence[Sequence[Costs]]) -> list[str]:
    """Lines of a table; of each run the costs of one revision, or of an older one and of this."""
    columns = [f"{'CPU s':>8}{'MiB':>8}"] * len(runs[0]) + ([f"{'ratio':>8}"] if len(runs[0]) == 2 else [])
    lines = [f"{'':34}" + "".join(columns)]
    names = dict.fromkeys(name for run in runs for found in run for name in found)
    for name in names:
        line = f"{name:34}"
        for i in range(len(runs[0])):
            seconds, memory = zip(*(run[i].get(name, (0.0, 0.0)) for run in runs), strict=True)
            line += f"{statistics.median(seconds):8.3f}{statistics.median(memory):8.0f}"
        if len(runs[0]) == 2:
            pairs = [(run[0].get(name, (0.0, 0.0))[0], run[1].get(name, (0.0, 0.0))[0]) for run in runs]
            ratios = [new / old for old, new in pairs if old > 0]
            line += f"{statistics.median(ratios):8.2f}" if ratios else ""
        lines.append(line)
    return lines


if __name__ == "__main__":
    main()
