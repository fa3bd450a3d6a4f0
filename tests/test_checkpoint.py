"""asr.checkpoint: a model folder is whole and fits together, or a line says which file is wrong."""

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_model import tiny_config, tiny_folder, tiny_network

from asr import Recognizer, lm
from asr.checkpoint import (
    CONFIG,
    G2P,
    LANGUAGE_MODEL,
    LEXICON,
    UNITS,
    WEIGHTS,
    ModelFolder,
    find_model,
    read_config,
    update_config,
)
from asr.errors import ModelError
from asr.lexicon import Lexicon
from asr.vocabulary import PhoneVocabulary


@pytest.fixture
def folder(tiny_path: Path, tmp_path: Path) -> Path:
    """A copy that may be broken."""
    return Path(shutil.copytree(tiny_path, tmp_path / "tiny"))


def change_config(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    values = json.loads((folder / CONFIG).read_text())
    change(values)
    (folder / CONFIG).write_text(json.dumps(values))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)
    update_config(folder, read_config(folder))


def why(folder: Path) -> str:
    """What loading it says; always a line."""
    with pytest.raises(ModelError) as caught:
        Recognizer.load(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- whole ----------------------------------------------------------------------------------------------------------


def test_weights_come_back_in_fp32_from_fp16(tiny_path: Path) -> None:
    folder, original = find_model(tiny_path), tiny_network(tiny_config())
    model = folder.load_network()
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    for name, tensor in original.state_dict().items():
        loaded = model.state_dict()[name]
        assert loaded.dtype == torch.float32
        torch.testing.assert_close(loaded, tensor.half().float() if "front_end.mean" not in name else tensor)
    tensors = load_file(tiny_path / WEIGHTS)
    exact = {name for name, tensor in tensors.items() if tensor.dtype == torch.float32}
    assert exact == {"front_end.mean", "front_end.deviation"}  # fp16 would move the features


def test_others_may_read_it_as_the_user_has_set(tmp_path: Path) -> None:
    from asr.checkpoint import save_int8

    path = tiny_folder(tmp_path / "new")
    save_int8(find_model(path), tmp_path / "copy")
    (tmp_path / "plain").write_bytes(b"")
    wanted = (tmp_path / "plain").stat().st_mode
    assert {(tmp_path / folder / WEIGHTS).stat().st_mode for folder in ("new", "copy")} == {wanted}


def test_parts_of_a_folder(tiny_path: Path) -> None:
    folder = find_model(str(tiny_path))
    assert folder.name == "tiny" and folder.config.head == "phones"
    assert {name: len(units) for name, units in folder.load_vocabularies().items()} == {"phones": 9, "characters": 29}
    assert folder.load_lexicon()["know"] == (("N", "OW"),)
    assert folder.language_model == tiny_path / LANGUAGE_MODEL
    assert folder.load_log_priors("phones") is None
    assert len(folder.fingerprint) == 16 and set(folder.fingerprint) <= set("0123456789abcdef")


def test_models_are_found_by_name_and_by_path(tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASR_MODELS", str(tiny_path.parent))
    monkeypatch.chdir(tmp_path)
    assert find_model("tiny").path == tiny_path
    with pytest.raises(ModelError, match="there is no model 'en': give a folder, or one of: tiny"):
        find_model("en")
    (tmp_path / "other").mkdir()
    with pytest.raises(ModelError, match=r"other is no model folder: it has no config\.json"):
        find_model("other")
    monkeypatch.setenv("ASR_MODELS", str(tmp_path / "none"))
    with pytest.raises(ModelError, match=r"one of: \(none shipped\)"):
        find_model("tiny")


def test_priors_are_stored_with_the_weights(folder: Path) -> None:
    change_weights(folder, lambda w: w.update({"log_priors.phones": torch.full((9,), 1 / 9).log()}))
    priors = ModelFolder(folder).load_log_priors("phones")
    assert priors is not None and priors.shape == (9,) and Recognizer.load(folder).search is not None
    change_weights(folder, lambda w: w.update({"log_priors.phones": torch.zeros(8)}))
    assert f"{WEIGHTS} does not fit {CONFIG}: (8,) priors of 'phones'" in why(folder)


def test_the_head_for_training_alone_is_not_needed(tmp_path: Path) -> None:
    path = tiny_folder(tmp_path / "deep", intermediate=2)
    assert any(name.startswith("intermediate.") for name in load_file(path / WEIGHTS))
    model = find_model(path).load_network()
    assert model.intermediate is None
    change_weights(path, lambda w: [w.pop(name) for name in list(w) if name.startswith("intermediate.")])
    assert find_model(path).load_network().config == model.config


def test_configuration_needs_no_torch(tiny_path: Path) -> None:
    code = (
        "import sys, asr, asr.cli\n"
        "from asr.checkpoint import read_config\n"
        "from pathlib import Path\n"
        "assert read_config(Path(sys.argv[1])).model.algorithmic_latency_ms == 280\n"
        "asr.cli.main(['models'])\n"
        "print(sorted(m for m in ('torch', 'torchaudio', 'flashlight', 'av') if m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tiny_path)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


# --- broken ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [WEIGHTS, UNITS, LEXICON, LANGUAGE_MODEL])
def test_a_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert why(folder) == f"the model folder lacks {name} ({folder / name}: No such file or directory)"


@pytest.mark.parametrize("name", [WEIGHTS, UNITS, LEXICON, LANGUAGE_MODEL])
def test_a_corrupt_byte(folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    assert why(folder).startswith(f"{folder / name} is corrupt or of another version")


@pytest.mark.parametrize("name", [WEIGHTS, UNITS, LEXICON])
def test_a_file_that_the_configuration_does_not_list(folder: Path, name: str) -> None:
    change_config(folder, lambda c: c["files"].pop(name))
    assert why(folder) == f"{folder / CONFIG} does not list {name}: the model folder is incomplete"


def test_only_files_of_the_folder_are_read(folder: Path) -> None:
    change_config(folder, lambda c: c["files"].update({"../secret": "0"}))
    assert "lists '../secret': only files of the folder itself are allowed" in why(folder)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda c: c["model"].update(hiden=24), "is invalid: unknown key 'model.hiden': did you mean 'hidden'?"),
        (lambda c: c.update(serch={}), "is invalid: unknown key 'serch': did you mean 'search'?"),
        (lambda c: c["model"].pop("heads"), "is invalid: missing key 'model.heads'"),
        (lambda c: c["model"].update(hidden="24"), "is invalid: 'model.hidden' must be of type int, got '24'"),
        (lambda c: c["model"].update(cell="lstn"), "(did you mean 'lstm'?)"),
        (lambda c: c["search"].update(beam=0), "is invalid: search.beam must be 1 to 10000, got 0"),
        (lambda c: c.update(format=2, novelty=1), "has format 2, this version reads 1: update the package"),
        (lambda c: c.update(head="letters"), "head 'letters' is none of phones, characters"),
        (lambda c: c["features"].update(mels=20), "features.mels is 20, but model.mels is 16"),
    ],
)
def test_a_wrong_configuration(folder: Path, change: Callable[[dict[str, Any]], Any], reason: str) -> None:
    change_config(folder, change)
    assert reason in why(folder) and str(folder) in why(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '"format"', "\xff"])
def test_a_configuration_that_is_none(folder: Path, text: str) -> None:
    (folder / CONFIG).write_bytes(text.encode("latin-1"))
    assert why(folder).startswith(f"{folder / CONFIG} is ")


@pytest.mark.parametrize("units", [{}, {"phones": {"kind": "phones", "units": ["<blank>", "AH"]}}, [], {"phones": 3}])
def test_units_that_do_not_fit(folder: Path, units: Any) -> None:
    (folder / UNITS).write_text(json.dumps(units))
    update_config(folder, read_config(folder))
    assert why(folder).startswith(f"{folder / UNITS} ")


def test_a_lexicon_of_other_phones(folder: Path) -> None:
    Lexicon({"zoo": [("Z", "UW")]}).save(folder / LEXICON)
    update_config(folder, read_config(folder))
    assert why(folder) == f"{folder / LEXICON} does not fit {UNITS}: phone 'Z' is not among the units of this model"


def test_files_of_another_kind(folder: Path) -> None:
    (folder / LEXICON).write_bytes(b"zoo Z UW\n")
    update_config(folder, read_config(folder))
    assert "is not a compact lexicon" in why(folder)
    (folder / WEIGHTS).write_bytes(b"PK\x03\x04 a pickle of torch")
    update_config(folder, read_config(folder))
    assert why(folder).startswith(f"{folder / WEIGHTS} cannot be read: ")


def test_a_pronunciation_model_is_read_when_words_are_added(folder: Path) -> None:
    (folder / G2P).write_bytes(b"nothing")
    update_config(folder, read_config(folder))
    assert Recognizer.load(folder).search is not None  # only listed words are asked for
    with pytest.raises(ModelError, match=str(folder)):
        ModelFolder(folder).load_lexicon()


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w.pop("norm.weight"),
        lambda w: w.update({"extra": torch.zeros(1)}),
        lambda w: w.update({"norm.weight": torch.zeros(25)}),
    ],
)
def test_weights_of_another_shape(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    change_weights(folder, change)
    assert why(folder).startswith(f"{folder / WEIGHTS} does not fit {CONFIG}: ")


def test_a_folder_without_a_language_model(folder: Path) -> None:
    (folder / LANGUAGE_MODEL).unlink()
    update_config(folder, read_config(folder))
    recognizer = Recognizer.load(folder)
    assert recognizer.folder.language_model is None


def test_saved_again_it_is_the_same(tiny_path: Path, tmp_path: Path) -> None:
    again = tiny_folder(tmp_path / "again")
    assert read_config(again) == read_config(tiny_path)
    config = dataclasses.replace(read_config(again), version="2")
    update_config(again, config)
    assert read_config(again) == config


def test_fixture_words_are_in_units_and_language_model(tiny_path: Path) -> None:
    folder = find_model(tiny_path)
    phones = folder.load_vocabularies()["phones"]
    assert isinstance(phones, PhoneVocabulary)
    words = set(lm.load(tiny_path / LANGUAGE_MODEL).words)
    for word, pronunciations in folder.load_lexicon().items():
        assert word in words and all(phones.encode_phones(p) for p in pronunciations)
