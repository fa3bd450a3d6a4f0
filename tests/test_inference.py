"""asr.inference: the form that recognises computes what the plain network does, to the bit alike in any cutting."""

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tiny_model import babble, log_mel, tiny_config, tiny_network
from torch import Tensor

from asr import batching
from asr.errors import UsageError
from asr.inference import PRECISIONS, inference_form, supports
from asr.model import AcousticModel

CELLS = ("lstm", "gru", "rnn")
CLOSE = {"atol": 2e-4, "rtol": 1e-4}

needs_half = pytest.mark.skipif(not supports("fp16"), reason="this CPU or this torch has no half-precision kernels")


def as_in_a_folder(model: AcousticModel) -> AcousticModel:
    """Weights that half precision can hold."""
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            parameter.data.copy_(parameter.half().float())
    return model


@pytest.fixture(scope="module")
def models() -> dict[str, AcousticModel]:
    return {c: as_in_a_folder(tiny_network(tiny_config(cell=c, hidden=32))) for c in CELLS}


@pytest.fixture(scope="module")
def forms(models: dict[str, AcousticModel]) -> dict[str, AcousticModel]:
    return {cell: inference_form(model, "fp16") for cell, model in models.items()}


@pytest.fixture(scope="module")
def frames() -> Tensor:
    return log_mel(babble(2.0))[0, :97]


def emissions(model: AcousticModel, frames: Tensor, sizes: Sequence[int], company: int = 0) -> Tensor:
    """(steps, units) of a stream fed in chunks of ``sizes`` in turn, beside ``company`` other streams."""
    states, out, position, turn = [model.begin() for _ in range(company + 1)], [], 0, 0
    while position < len(frames):
        size = sizes[turn % len(sizes)]
        chunk = frames[position : position + size]
        rows = [(chunk + i, state) for i, state in enumerate(states)]
        advanced = batching.advance(model, rows, "phones")
        out.append(advanced[0][0])
        states = [state for _, state in advanced]
        position, turn = position + size, turn + 1
    return torch.cat([*out, batching.end(model, states, "phones")[0]])


@needs_half
@pytest.mark.parametrize("cell", CELLS)
def test_the_numbers_of_the_plain_network(
    models: dict[str, AcousticModel], forms: dict[str, AcousticModel], frames: Tensor, cell: str
) -> None:
    plain, form = models[cell], forms[cell]
    assert form is not plain and form.parameter_count == plain.parameter_count
    torch.testing.assert_close(emissions(form, frames, [5]), emissions(plain, frames, [5]), **CLOSE)
    rows, lengths = torch.stack([frames, frames.flip(0)]), torch.tensor([97, 60])
    (ours, steps, carry), (theirs, expected, other) = form(rows, lengths), plain(rows, lengths)
    assert steps.tolist() == expected.tolist()
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], **CLOSE)
    torch.testing.assert_close(carry[0], other[0], **CLOSE)


@needs_half
@pytest.mark.parametrize("cell", CELLS)
def test_cutting_and_company_change_no_bit(forms: dict[str, AcousticModel], frames: Tensor, cell: str) -> None:
    form = forms[cell]
    whole = emissions(form, frames, [len(frames)])
    for sizes, company in (([1], 0), ([2], 0), ([5], 0), ([3, 11, 4], 0), ([5], 1), ([5], 6), ([40], 15)):
        assert torch.equal(emissions(form, frames, sizes, company), whole), (sizes, company)


@needs_half
def test_states_pass_between_the_forms(
    models: dict[str, AcousticModel], forms: dict[str, AcousticModel], frames: Tensor
) -> None:
    plain, form = models["lstm"], forms["lstm"]
    _, ours = form.step(frames[None, :41], form.begin())
    _, theirs = plain.step(frames[None, :41], plain.begin())
    assert ours.phase == theirs.phase and ours.nbytes == theirs.nbytes
    plain.check_state(ours)
    form.check_state(theirs)
    after_ours, _ = plain.step(frames[None, 41:], ours)
    after_theirs, _ = form.step(frames[None, 41:], theirs)
    torch.testing.assert_close(after_ours["phones"], after_theirs["phones"], **CLOSE)


@needs_half
def test_the_plain_network_stays_as_it_was(frames: Tensor) -> None:
    model = as_in_a_folder(tiny_network(tiny_config()))
    names, before = set(model.state_dict()), emissions(model, frames, [5])
    inference_form(model, "fp16")
    assert set(model.state_dict()) == names and model.packed_parameters == 0
    assert torch.equal(emissions(model, frames, [5]), before)


@needs_half
def test_weights_that_half_precision_cannot_hold_are_rounded(frames: Tensor) -> None:
    model = tiny_network(tiny_config())
    difference = emissions(inference_form(model, "fp16"), frames, [5]) - emissions(model, frames, [5])
    assert 1e-5 < difference.abs().max() < 0.5  # the heads' random weights are large


@needs_half
def test_making_a_form_prints_nothing(models: dict[str, AcousticModel]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        form = inference_form(models["gru"], "fp16")
        form.step(torch.zeros(1, 4, 16), form.begin())


@needs_half
def test_the_shipped_model() -> None:
    """Its weights are in half precision: the form differs by the order of sums alone."""
    from asr.checkpoint import find_model, models_folder

    if not (models_folder() / "en" / "acoustic.safetensors").is_file():
        pytest.skip("the model 'en' is not here")
    plain = find_model("en").load_network()
    form = inference_form(plain, "fp16")
    frames = log_mel(babble(3.0), plain.config.mels)[0]
    ours, theirs = emissions(form, frames, [5]), emissions(plain, frames, [5])
    assert (ours - theirs).abs().max() < 1e-3
    assert torch.equal(emissions(form, frames, [5], company=3), ours)
    assert torch.equal(emissions(form, frames, [len(frames)]), ours)


def test_where_the_kernels_are_missing_the_plain_network_recognises(
    models: dict[str, AcousticModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models["lstm"]
    assert inference_form(model, "fp32") is model and supports("fp32")
    assert not supports("fp16", "cuda")
    with monkeypatch.context() as patch:
        patch.setattr(torch, "fbgemm_pack_gemm_matrix_fp16", _refuse)
        assert not supports("fp16") and inference_form(model, "fp16") is model
    monkeypatch.delattr(torch, "fbgemm_pack_gemm_matrix_fp16")
    assert not supports("fp16") and inference_form(model, "fp16") is model


def _refuse(*_: object) -> None:
    raise RuntimeError("FBGEMM is not supported on this CPU")


def test_a_model_that_cannot_stream_stays_plain() -> None:
    config = dataclasses.replace(tiny_config(lookahead=(0, 0, 0)), bidirectional=True)
    model = AcousticModel(config).eval()
    assert inference_form(model, "fp16") is model


def test_unknown_precisions_are_refused(models: dict[str, AcousticModel]) -> None:
    assert PRECISIONS == ("fp32", "fp16", "bf16")
    with pytest.raises(UsageError, match="there is no precision 'int3': use one of fp32, fp16, bf16"):
        inference_form(models["lstm"], "int3")


def test_recognisers_take_a_precision(tiny_path: Path) -> None:
    from asr import Recognizer

    audio = babble(3.0)
    plain, usual = Recognizer.load(tiny_path, precision="fp32"), Recognizer.load(tiny_path)
    assert plain.model.packed_parameters == 0
    assert (usual.model.packed_parameters > 0) == supports("fp16")
    texts = [r.transcribe(audio, sample_rate=16000).text for r in (plain, usual)]
    assert texts[0] and texts[0] == texts[1]
    with pytest.raises(UsageError, match="no precision 'fp8'"):
        Recognizer.load(tiny_path, precision="fp8")


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
def test_bfloat16_is_close_where_there_is_a_matrix_unit(models: dict[str, AcousticModel], cell: str) -> None:
    if not supports("bf16"):
        pytest.skip("this CPU has no matrix unit for bfloat16 (AMX)")
    plain = models[cell]
    form = inference_form(plain, "bf16")
    assert form is not plain and form.parameter_count == plain.parameter_count
    frames = log_mel(babble(1.0, seed=3))
    with torch.inference_mode():
        expected, _ = plain.step(frames, plain.begin())
        given, state = form.step(frames, form.begin())
    form.check_state(state)
    difference = (given["phones"].exp() - expected["phones"].exp()).abs()
    assert 0 < float(difference.mean()) < 0.01


def test_bfloat16_without_a_matrix_unit_is_half_precision(
    models: dict[str, AcousticModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asr.inference._has_bf16", lambda: False)
    if not supports("fp16"):
        pytest.skip("this machine has no half-precision kernels")
    frames = log_mel(babble(0.5, seed=3))
    forms = [inference_form(models["lstm"], p) for p in ("bf16", "fp16")]
    with torch.inference_mode():
        first, second = (form.step(frames, form.begin())[0]["phones"] for form in forms)
    assert torch.equal(first, second)
