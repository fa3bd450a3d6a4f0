"""``asr export``: the acoustic network of a model folder as a file for other runtimes, checked after it is written.

ONNX (for onnxruntime and all that reads it) and torch.export (``.pt2``) hold :class:`asr.step_network.StepNetwork`, for
any number of streams at once, and in themselves a description of it in JSON (:func:`describe`). ``int8`` writes a model
folder of half the size for this package.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from asr.checkpoint import ModelFolder, find_model, save_int8
from asr.errors import ModelError, UsageError
from asr.features import FRAME_MS, HOP, SAMPLE_RATE, LogMel
from asr.model import FRAMES_PER_STEP, STEP_MS, AcousticModel
from asr.step_network import StepNetwork

__all__ = ["METADATA", "TOLERANCE", "check", "describe", "open_onnx", "open_torch", "write_onnx", "write_torch"]

FORMATS = ("onnx", "torch", "int8")
METADATA = "asr.json"  # the description's name in a file
OPSET = 18
TOLERANCE = 1e-3  # of log-probabilities; what is found is some 1e-5
CHECK_SECONDS = (2.5, 1.37)  # of the streams of the check: one ends before the other

Arrays = dict[str, NDArray[Any]]
Run = Callable[[Arrays], Arrays]
"""One chunk: inputs by name to outputs by name."""


def main(model: str, format: str, out: Path, steps: int, heads: Sequence[str]) -> int:
    """What the command does; the exit status."""
    folder = find_model(model)
    if format == "int8":
        save_int8(folder, out)
        size = sum(file.stat().st_size for file in out.iterdir())
        print(f"{out}: {size / 1e6:.1f} MB, weights of 8 bits; use it as --model {out}")
        return 0
    network = StepNetwork(folder.load_network(), steps, _heads(folder, heads))
    description = describe(folder, network)
    write, open_file = {"onnx": (write_onnx, open_onnx), "torch": (write_torch, open_torch)}[format]
    write(network, description, out)
    try:
        difference = check(*open_file(out), folder)
    except ModelError:
        out.unlink()
        raise
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB, {steps * STEP_MS} ms a chunk, delay {network.delay * STEP_MS} ms,"
          f" heads {', '.join(network.heads)}")  # fmt: skip
    print(f"checked step by step against torch: log-probabilities differ by {difference:.1e} at most")
    return 0


def _heads(folder: ModelFolder, names: Sequence[str]) -> tuple[str, ...]:
    if tuple(names) == ("all",):
        return tuple(folder.config.model.heads)
    return tuple(names) or (folder.config.head,)


def describe(folder: ModelFolder, network: StepNetwork) -> dict[str, Any]:
    """What a program needs to know of the file, ready for JSON: clocks, features, units, and every input and output."""
    vocabularies = folder.load_vocabularies()
    priors = {head: folder.load_log_priors(head) for head in network.heads}
    return {
        "format": 1,
        "model": folder.name,
        "language": folder.config.language,
        "version": folder.config.version,
        "fingerprint": folder.fingerprint,
        "sample_rate": SAMPLE_RATE,
        "samples_per_frame": HOP,
        "frame_ms": FRAME_MS,
        "step_ms": STEP_MS,
        "frames_per_chunk": network.steps * FRAMES_PER_STEP,
        "steps_per_chunk": network.steps,
        "delay_steps": network.delay,
        "features": dataclasses.asdict(folder.config.features),
        "units": {head: list(vocabularies[head].units) for head in network.heads},
        "log_priors": {head: p.tolist() for head, p in priors.items() if p is not None},
        "states": [state.name for state in network.states],
        "inputs": [dataclasses.asdict(spec) for spec in network.inputs],
        "outputs": [dataclasses.asdict(spec) for spec in network.outputs],
    }


# --- writing and reading --------------------------------------------------------------------------------------------


def write_torch(network: StepNetwork, description: dict[str, Any], path: Path) -> None:
    """A file for :func:`torch.export.load`; inputs and outputs are in the description's order."""
    torch.export.save(_exported(network), path, extra_files={METADATA: json.dumps(description)})


def open_torch(path: Path) -> tuple[Run, dict[str, Any]]:
    """What runs such a file, and its description."""
    files = {METADATA: ""}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a buffer that cannot be written to: nobody does
        module: Any = torch.export.load(path, extra_files=files).module()
    description = json.loads(files[METADATA])
    names = [[spec["name"] for spec in description[side]] for side in ("inputs", "outputs")]

    def run(inputs: Arrays) -> Arrays:
        with torch.inference_mode():
            given = module(*(torch.from_numpy(inputs[name]) for name in names[0]))
        return {name: tensor.numpy() for name, tensor in zip(names[1], given, strict=True)}

    return run, description


def write_onnx(network: StepNetwork, description: dict[str, Any], path: Path) -> None:
    """An ONNX file with the description among its metadata. Raises UsageError without the extra ``export``."""
    for name in ("onnx", "onnxscript", "onnxruntime"):  # all, before the work begins
        _need(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of parts of torch that this does not use
        program: Any = torch.onnx.export(
            _exported(network),
            dynamo=True,
            verbose=False,
            optimize=False,  # takes as long as all else, and onnxruntime does the same when it loads a file
            opset_version=OPSET,
            input_names=[spec.name for spec in network.inputs],
            output_names=[spec.name for spec in network.outputs],
        )
    program.model.metadata_props[METADATA] = json.dumps(description)
    program.save(str(path), external_data=False)


def open_onnx(path: Path) -> tuple[Run, dict[str, Any]]:
    """What runs such a file in onnxruntime on one core, and its description. Raises UsageError without the extra."""
    runtime = _need("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    description = json.loads(session.get_modelmeta().custom_metadata_map[METADATA])
    names = [output.name for output in session.get_outputs()]
    return lambda inputs: dict(zip(names, session.run(None, inputs), strict=True)), description


def _exported(network: StepNetwork) -> torch.export.ExportedProgram:
    """For any number of streams."""
    batch = torch.export.Dim("batch", min=1)
    axes = [{spec.batch_axis: batch} for spec in network.inputs]
    example = tuple(spec.zeros(2) for spec in network.inputs)
    with torch.no_grad():
        return torch.export.export(network, example, dynamic_shapes=(*axes[:2], tuple(axes[2:])), strict=False)


def _need(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UsageError(f"exporting to ONNX needs the package '{name}': pip install 'asr[export]'") from None


# --- checking -------------------------------------------------------------------------------------------------------


def check(run: Run, description: dict[str, Any], folder: ModelFolder) -> float:
    """The largest difference of log-probabilities between an exported file and the network in torch, each chunk by
    chunk over streams of different lengths in one batch. Raises ModelError where it is above :data:`TOLERANCE`."""
    model, heads = folder.load_network(), description["units"]
    features = LogMel(folder.config.features)
    frames = [features(_sound(seconds, i))[0] for i, seconds in enumerate(CHECK_SECONDS)]
    theirs = stream(run, description, [f.numpy() for f in frames])
    worst = 0.0
    for row, expected in zip(theirs, (_in_torch(model, f[None], heads) for f in frames), strict=True):
        for head in heads:
            if row[head].shape != expected[head].shape:
                raise ModelError(f"the exported file gives {len(row[head])} steps in place of {len(expected[head])}")
            worst = max(worst, float(np.abs(row[head] - expected[head]).max()))
    if not worst <= TOLERANCE:
        raise ModelError(f"the exported file does not compute what the network does: it differs by {worst:.1e}")
    return worst


def stream(run: Run, description: dict[str, Any], rows: Sequence[NDArray[np.float32]]) -> list[Arrays]:
    """Streams of (frames, mels) log-mel as one batch, chunk by chunk: of each the (steps, units) of every head. Only
    ``run`` needs more than numpy."""
    size, mels, delay = description["frames_per_chunk"], description["features"]["mels"], description["delay_steps"]
    flush = -(-delay // description["steps_per_chunk"])
    chunks = max(-(-len(row) // size) for row in rows) + flush
    sound = np.zeros((len(rows), chunks * size, mels), np.float32)
    for row, frames in zip(sound, rows, strict=True):
        row[: len(frames)] = frames
    states: Arrays = {}
    for spec in description["inputs"][2:]:
        states[spec["name"]] = np.zeros([len(rows) if n == "batch" else n for n in spec["shape"]], spec["type"])
    parts: list[list[Arrays]] = [[] for _ in rows]
    for i in range(chunks):
        length = np.array([min(max(len(row) - i * size, 0), size) for row in rows])
        out = run({"frames": sound[:, i * size : (i + 1) * size], "length": length, **states})
        states = {name: out[f"next_{name}"] for name in states}
        for row, part in enumerate(parts):
            part.append({head: out[head][row][out["valid"][row]] for head in description["units"]})
    return [{head: np.concatenate([p[head] for p in part]) for head in description["units"]} for part in parts]


def _in_torch(model: AcousticModel, frames: Tensor, heads: Sequence[str]) -> Arrays:
    with torch.inference_mode():
        state, parts = model.begin(), []
        for chunk in frames.split(FRAMES_PER_STEP, dim=1):
            emissions, state = model.step(chunk, state)
            parts.append(emissions)
        parts.append(model.end(state))
    return {head: torch.cat([p[head][0] for p in parts]).numpy() for head in heads}


def _sound(seconds: float, seed: int) -> Tensor:
    """(1, samples) of noise whose colour and level change ten times a second."""
    rng = np.random.default_rng(seed)
    parts = []
    for _ in range(round(10 * seconds)):
        noise, colour = rng.normal(size=SAMPLE_RATE // 10), rng.uniform(0, 0.95)
        for j in range(1, len(noise)):
            noise[j] += colour * noise[j - 1]
        parts.append(10 ** rng.uniform(-3, -1) * noise)
    return torch.from_numpy(np.concatenate(parts).astype(np.float32))[None]
