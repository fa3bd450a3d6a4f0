"""asr.int8 and a model folder with weights of 8 bits: half the bytes, loaded as any other."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_model import babble

from asr import Recognizer
from asr.checkpoint import WEIGHTS, find_model, read_config, save_int8, update_config
from asr.errors import ModelError
from asr.int8 import SCALE, dequantise, quantise, read_tensors


@pytest.fixture(scope="module")
def small(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "small"
    save_int8(find_model(tiny_path), path)
    return path


def test_its_matrices_are_integers_with_scales(tiny_path: Path, small: Path) -> None:
    tensors, whole = load_file(small / WEIGHTS), load_file(tiny_path / WEIGHTS)
    matrices = {n for n, t in whole.items() if t.dim() == 2 and not n.startswith("heads.")}
    assert {n for n, t in tensors.items() if t.dtype == torch.int8} == matrices and len(matrices) == 9
    assert set(tensors) == set(whole) | {name + SCALE for name in matrices}
    assert all(torch.equal(tensors[name], whole[name]) for name in set(whole) - matrices)


def test_it_is_loaded_with_rounded_weights(tiny_path: Path, small: Path) -> None:
    ours, theirs = (find_model(p).load_network().state_dict() for p in (small, tiny_path))
    assert set(ours) == set(theirs)
    for name, weight in theirs.items():
        if weight.dim() == 2 and not name.startswith("heads."):
            weight = dequantise(*quantise(weight))
        assert ours[name].dtype == torch.float32 and torch.equal(ours[name], weight), name


def test_it_recognises_and_is_a_model_of_its_own(tiny_path: Path, small: Path) -> None:
    audio = babble(3.0)
    texts = {p: Recognizer.load(small, precision=p).transcribe(audio, sample_rate=16000).text for p in ("fp32", "int8")}
    assert texts["fp32"] and texts["fp32"] == texts["int8"]
    assert find_model(small).fingerprint != find_model(tiny_path).fingerprint


def test_a_folder_that_exists_is_not_overwritten(small: Path) -> None:
    with pytest.raises(ModelError, match=r"small exists already: give a folder that is to be made"):
        save_int8(find_model(small), small)


def test_lost_scales(small: Path, tmp_path: Path) -> None:
    path = tmp_path / "broken"
    save_int8(find_model(small), path)
    tensors = load_file(path / WEIGHTS)
    del tensors["recurrent.0.rnn.weight_hh_l0" + SCALE]
    save_file(tensors, path / WEIGHTS)
    update_config(path, read_config(path))
    with pytest.raises(ModelError, match=r"recurrent\.0\.rnn\.weight_hh_l0 has 8 bits but no scale for each"):
        find_model(path).load_network()


def test_saved_again_it_is_the_same(small: Path, tmp_path: Path) -> None:
    save_int8(find_model(small), tmp_path / "again")
    first, second = (read_tensors(load_file(p / WEIGHTS)) for p in (small, tmp_path / "again"))
    assert all(torch.equal(second[name], tensor) for name, tensor in first.items())
