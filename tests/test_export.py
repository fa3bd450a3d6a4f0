"""asr export: graphs with constant shapes that compute, step by step, what the streaming network does."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_model import RUNNING_MEAN, babble, log_mel, tiny_config, tiny_folder, tiny_network

from asr import export
from asr.checkpoint import find_model, models_folder
from asr.cli import main
from asr.errors import ModelError, UsageError
from asr.features import LogMel
from asr.model import AcousticModel
from asr.model_config import FeatureConfig
from asr.step_network import StepNetwork

ROOT = Path(__file__).resolve().parent.parent
CLIP = ROOT / "tests" / "clips" / "letter.wav"
FRAMES = 149  # of the clip; odd, so that its last step is half filled
CLOSE = {"atol": 1e-3, "rtol": 0.0}  # the heads' random weights are large


def needs_onnx() -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason="needs the extra 'export'")


def eager(network: StepNetwork) -> export.Run:
    """The network itself as what runs it."""

    def run(inputs: export.Arrays) -> export.Arrays:
        with torch.inference_mode():
            given = network(*(torch.from_numpy(inputs[spec.name]) for spec in network.inputs))
        for spec, tensor in zip(network.outputs, given, strict=True):
            assert str(tensor.dtype) == f"torch.{spec.type}"
            sizes = [n for n in spec.shape if n != "batch"]
            assert [n for i, n in enumerate(tensor.shape) if i != spec.batch_axis] == sizes
        return {spec.name: tensor.numpy() for spec, tensor in zip(network.outputs, given, strict=True)}

    return run


def description(network: StepNetwork) -> dict[str, Any]:
    """As much of it as :func:`export.stream` reads."""
    specs = [{"name": s.name, "shape": s.shape, "type": s.type} for s in network.inputs]
    return {
        "frames_per_chunk": 2 * network.steps,
        "steps_per_chunk": network.steps,
        "delay_steps": network.delay,
        "features": {"mels": network.model.config.mels},
        "units": dict.fromkeys(network.heads),
        "inputs": specs,
    }


def in_torch(model: AcousticModel, frames: torch.Tensor) -> torch.Tensor:
    """(steps, units) of a stream that comes in threes of frames."""
    state, parts = model.begin(), []
    with torch.inference_mode():
        for chunk in frames[None].split(3, dim=1):
            out, state = model.step(chunk, state, "phones")
            parts.append(out["phones"][0])
        return torch.cat([*parts, model.end(state, "phones")["phones"][0]])


# --- the network of constant shapes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"cell": "gru"},
        {"cell": "rnn"},
        {"lookahead": (0, 0, 0)},
        {"lookahead": (2, 2, 6), "lookahead_stride": 1},
        {"lookahead": (4, 0, 0), "widest_lookahead": (4, 0, 2)},
        RUNNING_MEAN,
        {**RUNNING_MEAN, "cell": "gru", "lookahead": (0, 0, 0)},
    ],
)
def test_what_is_valid_is_what_the_streaming_network_gives(shape: dict[str, Any]) -> None:
    """Streams of all kinds of lengths in one batch, in chunks shorter and longer than the look-ahead."""
    model = tiny_network(tiny_config(**shape))
    frames = log_mel(babble(2.0))[0]
    rows = [frames[:n] for n in (61, 1, 2, 32, 7, 0)]
    expected = [in_torch(model, row) for row in rows]
    for steps in (1, 3, 4, 11):
        network = StepNetwork(model, steps, ("phones",))
        given = export.stream(eager(network), description(network), [row.numpy() for row in rows])
        for ours, theirs in zip(given, expected, strict=True):
            torch.testing.assert_close(torch.from_numpy(ours["phones"]), theirs, **CLOSE)


def test_states_without_elements_are_left_out() -> None:
    def names(**shape: Any) -> list[str]:
        return [s.name for s in StepNetwork(tiny_network(tiny_config(**shape)), 1, ("phones",)).states]

    assert names() == ["context", "real", "hidden", "cell", "waiting_0", "waiting_1"]
    assert names(cell="gru", lookahead=(0, 0, 0)) == ["context", "hidden"]
    assert names(lookahead=(0, 0, 0), running_mean=0.5) == ["context", "hidden", "cell", "heard"]


def test_unknown_heads_and_empty_chunks_are_refused() -> None:
    model = tiny_network(tiny_config())
    with pytest.raises(UsageError, match="no head 'letters': use one of phones, characters"):
        StepNetwork(model, 2, ("letters",))
    with pytest.raises(UsageError, match="at least one step"):
        StepNetwork(model, 0, ("phones",))


# --- the files ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def onnx_file(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    needs_onnx()
    path = tmp_path_factory.mktemp("export") / "en.onnx"
    arguments = ["export", "--format", "onnx", "--model", str(tiny_path), "-o", str(path), "--steps", "3"]
    assert main([*arguments, "--heads", "characters,phones"]) == 0
    return path


def clip(tiny_path: Path) -> torch.Tensor:
    """(frames, mels) of a clip; an odd number."""
    from asr.audio import load_audio

    features = LogMel(find_model(tiny_path).config.features)
    return features(torch.from_numpy(load_audio(CLIP))[None])[0, :FRAMES]


def test_onnxruntime_over_a_clip(onnx_file: Path, tiny_path: Path) -> None:
    run, about = export.open_onnx(onnx_file)
    frames = clip(tiny_path)
    model = find_model(tiny_path).load_network()
    for row, theirs in zip(
        export.stream(run, about, [frames.numpy(), frames[100:130].numpy(), frames[7:].numpy()]),
        (in_torch(model, f) for f in (frames, frames[100:130], frames[7:])),
        strict=True,
    ):
        torch.testing.assert_close(torch.from_numpy(row["phones"]), theirs, **CLOSE)
    alone = export.stream(run, about, [frames.numpy()])[0]
    assert alone["phones"].shape == ((FRAMES + 1) // 2, 9) and alone["characters"].shape == ((FRAMES + 1) // 2, 29)


def test_the_graph_writes_into_no_tensor_and_holds_no_sequence(onnx_file: Path) -> None:
    import onnx

    nodes = {node.op_type for node in onnx.load(onnx_file).graph.node}
    assert {"Gemm", "Sigmoid", "Tanh"} <= nodes
    assert not {name for name in nodes if "Scatter" in name or "Sequence" in name}


def test_the_description(onnx_file: Path, tiny_path: Path) -> None:
    _, about = export.open_onnx(onnx_file)
    folder = find_model(tiny_path)
    assert about["fingerprint"] == folder.fingerprint and about["model"] == "tiny"
    assert (about["sample_rate"], about["samples_per_frame"], about["step_ms"]) == (16000, 320, 40)
    assert (about["frames_per_chunk"], about["steps_per_chunk"], about["delay_steps"]) == (6, 3, 6)
    assert FeatureConfig(**about["features"]) == folder.config.features
    assert list(about["units"]) == ["characters", "phones"] and about["units"]["phones"][:2] == ["<blank>", "AH"]
    assert about["states"] == [spec["name"] for spec in about["inputs"][2:]]
    assert about["inputs"][0] == {"name": "frames", "type": "float32", "shape": ["batch", 6, 16]}


def test_the_example_of_the_page(onnx_file: Path, tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from asr.audio import load_audio

    page = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"<!-- \w+ -->\n```python\n(.*?)```", page, re.DOTALL))
    monkeypatch.chdir(onnx_file.parent)
    names: dict[str, Any] = {}
    exec(code, names)
    samples = load_audio(CLIP)[: FRAMES * 320 - 100]
    frames = names["log_mel"](samples, names["about"]["features"])
    expected = clip(tiny_path).numpy()
    expected[-1] = LogMel(FeatureConfig(mels=16))(torch.from_numpy(samples)[None])[0, -1].numpy()
    np.testing.assert_allclose(frames, expected, atol=2e-3)
    model, letters = find_model(tiny_path).load_network(), names["about"]["units"]["characters"]
    with torch.inference_mode():
        out, state = model.step(torch.from_numpy(frames)[None], model.begin(), "characters")
        best = torch.cat([out["characters"], model.end(state, "characters")["characters"]], dim=1)[0].argmax(1).tolist()
    kept = [letters[b] for a, b in zip([0, *best], best, strict=False) if b not in (a, 0)]
    assert len(kept) > 5 and names["greedy"](frames) == "".join(kept)


def test_torch_export(tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "en.pt2"
    arguments = ["export", "--format", "torch", "--model", str(tiny_path), "-o", str(path), "--steps", "2"]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "80 ms a chunk, delay 240 ms, heads phones" in said
    assert float(re.search(r"differ by (\S+) at most", said)[1]) < export.TOLERANCE  # type: ignore[index]
    run, about = export.open_torch(path)
    frames = clip(tiny_path)[:99]
    (alone,) = export.stream(run, about, [frames.numpy()])
    expected = in_torch(find_model(tiny_path).load_network(), frames)
    torch.testing.assert_close(torch.from_numpy(alone["phones"]), expected, **CLOSE)


@pytest.mark.parametrize("form", ["onnx", "torch"])
def test_files_of_a_network_with_a_running_mean(form: str, tmp_path: Path) -> None:
    """Its command compares the file with the network; here in other chunks, and beside another stream."""
    if form == "onnx":
        needs_onnx()
    model, path = tiny_folder(tmp_path / "running", **RUNNING_MEAN), tmp_path / "file"
    assert main(["export", "--format", form, "--model", str(model), "-o", str(path), "--steps", "3"]) == 0
    run, about = {"onnx": export.open_onnx, "torch": export.open_torch}[form](path)
    assert about["inputs"][-1] == {"name": "heard", "type": "float32", "shape": ["batch", 17]}
    frames, network = clip(model), find_model(model).load_network()
    rows = [frames, frames[20:51]]
    for ours, row in zip(export.stream(run, about, [row.numpy() for row in rows]), rows, strict=True):
        torch.testing.assert_close(torch.from_numpy(ours["phones"]), in_torch(network, row), **CLOSE)


def test_a_file_that_differs_is_an_error(tiny_path: Path) -> None:
    folder = find_model(tiny_path)
    network = StepNetwork(folder.load_network(), 4, ("phones",))
    about = export.describe(folder, network)
    assert export.check(eager(network), about, folder) < export.TOLERANCE
    network.model.norm.weight.data.mul_(1.01)
    with pytest.raises(ModelError, match="does not compute what the network does: it differs by"):
        export.check(eager(network), about, folder)


def test_without_the_packages(tiny_path: Path, tmp_path: Path) -> None:
    """One line that names the extra, in a process that cannot import them."""
    code = "import sys; sys.modules['onnxruntime'] = None\nfrom asr.cli import main\nsys.exit(main(sys.argv[1:]))"
    arguments = ["export", "--format", "onnx", "--model", str(tiny_path), "-o", str(tmp_path / "x.onnx")]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 2 and not (tmp_path / "x.onnx").exists()
    assert re.fullmatch(
        r"asr: error: exporting to ONNX needs the package '\w+': pip install 'asr\[export\]'\n", done.stderr
    )


def test_a_folder_of_8_bits(tiny_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "small"
    assert main(["export", "--format", "int8", "--model", str(tiny_path), "-o", str(out)]) == 0
    assert "weights of 8 bits; use it as --model" in capsys.readouterr().out
    assert find_model(out).config.model == find_model(tiny_path).config.model
    assert main(["export", "--format", "int8", "--model", str(tiny_path), "-o", str(out)]) == 5
    assert "exists already" in capsys.readouterr().err


@pytest.mark.slow
def test_the_shipped_model(tmp_path: Path) -> None:
    """In onnxruntime over a clip, with its state carried from chunk to chunk."""
    from asr.audio import load_audio

    needs_onnx()
    if not (models_folder() / "en" / "acoustic.safetensors").is_file():
        pytest.skip("the model 'en' is not here")
    path, folder = tmp_path / "en.onnx", find_model("en")
    assert main(["export", "--format", "onnx", "--model", "en", "-o", str(path)]) == 0
    run, about = export.open_onnx(path)
    assert path.stat().st_size < 2.2 * (models_folder() / "en" / "acoustic.safetensors").stat().st_size
    assert json.dumps(about["log_priors"]) != "{}"
    frames = LogMel(folder.config.features)(torch.from_numpy(load_audio(CLIP))[None])[0]
    (ours,) = export.stream(run, about, [frames.numpy()])
    theirs = in_torch(folder.load_network(), frames)
    assert np.abs(ours["phones"] - theirs.numpy()).max() < export.TOLERANCE
