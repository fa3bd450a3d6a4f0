"""asr.inference: the form that recognises computes what the plain network does, to the bit alike in any cutting."""

import copy
import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tiny_model import KINDS, babble, log_mel, tiny_config, tiny_network
from torch import Tensor

from asr import batching
from asr.errors import UsageError
from asr.inference import PRECISIONS, _DynamicProduct, _IntegerProduct, _levels, inference_form, product, supports
from asr.int8 import LARGEST, dequantise, quantise
from asr.model import AcousticModel

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
    return {k: as_in_a_folder(tiny_network(tiny_config(**shape, hidden=32))) for k, shape in KINDS.items()}


@pytest.fixture(scope="module")
def forms(models: dict[str, AcousticModel]) -> dict[str, AcousticModel]:
    return {kind: inference_form(model, "fp16") for kind, model in models.items()}


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
@pytest.mark.parametrize("kind", KINDS)
def test_the_numbers_of_the_plain_network(
    models: dict[str, AcousticModel], forms: dict[str, AcousticModel], frames: Tensor, kind: str
) -> None:
    plain, form = models[kind], forms[kind]
    assert form is not plain and form.parameter_count == plain.parameter_count
    torch.testing.assert_close(emissions(form, frames, [5]), emissions(plain, frames, [5]), **CLOSE)
    rows, lengths = torch.stack([frames, frames.flip(0)]), torch.tensor([97, 60])
    (ours, steps, carry), (theirs, expected, expected_carry) = form(rows, lengths), plain(rows, lengths)
    assert steps.tolist() == expected.tolist()
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], **CLOSE)
    for mine, other in zip(carry, expected_carry, strict=True):
        torch.testing.assert_close(mine, other, **CLOSE)


@needs_half
@pytest.mark.parametrize("kind", KINDS)
def test_cutting_and_company_change_no_bit(forms: dict[str, AcousticModel], frames: Tensor, kind: str) -> None:
    form = forms[kind]
    whole = emissions(form, frames, [len(frames)])
    for sizes, company in (([1], 0), ([2], 0), ([5], 0), ([3, 11, 4], 0), ([5], 1), ([5], 6), ([40], 15)):
        assert torch.equal(emissions(form, frames, sizes, company), whole), (sizes, company)


@needs_half
@pytest.mark.parametrize("kind", ["lstm", "lstm, running mean"])
def test_states_pass_between_the_forms(
    models: dict[str, AcousticModel], forms: dict[str, AcousticModel], frames: Tensor, kind: str
) -> None:
    plain, form = models[kind], forms[kind]
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
    assert PRECISIONS == ("fp32", "fp16", "bf16", "int8", "w8a8")
    with pytest.raises(UsageError, match="there is no precision 'int3': use one of fp32, fp16, bf16, int8, w8a8"):
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


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_close_where_there_is_a_matrix_unit(models: dict[str, AcousticModel], kind: str) -> None:
    if not supports("bf16"):
        pytest.skip("this CPU has no matrix unit for bfloat16 (AMX)")
    plain = models[kind]
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


# --- integers of 8 bits ---------------------------------------------------------------------------------------------

needs_integers = pytest.mark.skipif(not supports("int8"), reason="this CPU or this torch has no product of integers")


@pytest.fixture(scope="module")
def rounded(models: dict[str, AcousticModel]) -> dict[str, tuple[AcousticModel, AcousticModel]]:
    """Of each kind the plain network with matrices rounded to 8 bits, and the form of 8 bits of the unrounded one."""
    made = {}
    for kind, model in models.items():
        plain = copy.deepcopy(model)
        for name, parameter in plain.named_parameters():
            if parameter.dim() == 2 and not name.startswith("heads."):
                parameter.data.copy_(dequantise(*quantise(parameter)))
        made[kind] = plain, inference_form(model, "int8")
    return made


def a_layer_and_its_inputs() -> tuple[torch.nn.Linear, Tensor]:
    """With a row of zeros, and rows of very large and very small numbers."""
    generator = torch.Generator().manual_seed(1)
    linear = torch.nn.Linear(70, 48)
    linear.weight.data, linear.bias.data = (torch.randn(*s, generator=generator) for s in ((48, 70), (48,)))
    x = torch.randn(9, 70, generator=generator)
    x[3], x[4], x[5] = 0.0, 1e4 * x[4], 1e-6 * x[5]
    return linear, x


@needs_integers
@pytest.mark.parametrize("levels", [127, 63])
def test_a_product_of_integers(levels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the same product in double precision; a row of zeros, and rows of very large and very small numbers."""
    monkeypatch.setattr("asr.inference._levels", lambda: levels)
    linear, x = a_layer_and_its_inputs()
    weight, bias = linear.weight.data, linear.bias.data
    given = _IntegerProduct.of(linear)(x)
    exact = x.double() @ dequantise(*quantise(weight)).double().T + bias.double()
    size = x.abs().amax(1, keepdim=True).double() + 1e-3  # what is lost is in proportion to a row's largest value
    assert ((given - exact).abs() / size).max() < 20 / levels**2
    assert torch.equal(given[3], bias)


@needs_integers
def test_a_product_of_bounded_inputs() -> None:
    """Right to half a step of each input, the same row in any company; the plain product for fp32."""
    generator = torch.Generator().manual_seed(4)
    weight = dequantise(*quantise(torch.randn(48, 32, generator=generator)))
    x, bias = torch.rand(7, 32, generator=generator) * 2 - 1, torch.randn(48, generator=generator)
    x[0], x[1] = 0.0, 1.0
    byte = product(weight, bias, "fp16", bounded=True)
    wanted = x @ weight.T + bias
    if _levels() != LARGEST:
        assert torch.allclose(byte.rows(x), wanted, atol=1e-2)
        return
    most = 0.5 / LARGEST * weight.abs().sum(1)
    assert ((byte.rows(x) - wanted).abs() <= most + 1e-4).all()
    assert not torch.allclose(byte.rows(x), wanted, atol=1e-4)  # inputs are rounded
    assert torch.allclose(byte.rows(x)[:2], wanted[:2], atol=1e-4)  # but not these
    assert all(torch.equal(byte.rows(x[i : i + 1])[0], byte.rows(x)[i]) for i in range(7))
    assert torch.allclose(product(weight, bias, "fp32", bounded=True).rows(x), wanted, atol=1e-5)


def test_weights_survive_being_rounded_twice() -> None:
    weight = torch.randn(40, 30, generator=torch.Generator().manual_seed(2)) * torch.logspace(-6, 3, 40)[:, None]
    weight[7] = 0.0
    integers, scales = quantise(weight)
    assert integers.dtype == torch.int8 and (dequantise(integers, scales) - weight).abs().max() <= scales.max() * 0.51
    again, _ = quantise(dequantise(integers, scales))
    assert torch.equal(again, integers) and not dequantise(integers, scales)[7].any()


@needs_integers
@pytest.mark.parametrize("kind", KINDS)
def test_integers_compute_what_rounded_weights_do(
    rounded: dict[str, tuple[AcousticModel, AcousticModel]], frames: Tensor, kind: str
) -> None:
    plain, form = rounded[kind]
    assert form.packed_parameters > 0 and form.parameter_count == plain.parameter_count
    ours, theirs = emissions(form, frames, [5]), emissions(plain, frames, [5])
    assert (ours.exp() - theirs.exp()).abs().max() < 5e-3  # the heads' random weights are large


@needs_integers
@pytest.mark.parametrize("kind", KINDS)
def test_with_integers_cutting_and_company_change_no_bit(
    rounded: dict[str, tuple[AcousticModel, AcousticModel]], frames: Tensor, kind: str
) -> None:
    form = rounded[kind][1]
    whole = emissions(form, frames, [len(frames)])
    for sizes, company in (([1], 0), ([2], 0), ([3, 11, 4], 0), ([5], 1), ([5], 6), ([40], 15)):
        assert torch.equal(emissions(form, frames, sizes, company), whole), (sizes, company)


needs_bytes = pytest.mark.skipif(not supports("w8a8"), reason="this CPU's products of 8 bits overflow, or it has none")


@needs_bytes
def test_a_product_of_rows_of_8_bits() -> None:
    """Against the same product in double precision, to half a step of each input; the same row in any company."""
    linear, x = a_layer_and_its_inputs()
    weight, bias = linear.weight.data, linear.bias.data
    made = _DynamicProduct.of(linear)
    read = dequantise(*quantise(weight)).double()
    most = 0.5 / LARGEST * x.abs().amax(1, keepdim=True).double() * read.abs().sum(1)
    apart = (made(x) - (x.double() @ read.T + bias.double())).abs()
    assert (apart <= most * 1.001 + 1e-5).all() and (apart > most * 1e-3)[[0, 4]].any()
    assert torch.equal(made(x)[3], bias)
    assert all(torch.equal(made(x[i : i + 1])[0], made(x)[i]) for i in range(9))


@needs_bytes
@pytest.mark.parametrize("kind", KINDS)
def test_networks_of_8_bits_hear_about_the_same(models: dict[str, AcousticModel], frames: Tensor, kind: str) -> None:
    """And the same to the bit in any chunks and company."""
    form = inference_form(models[kind], "w8a8")
    assert form.packed_parameters > 0 and form.parameter_count == models[kind].parameter_count
    whole = emissions(form, frames, [len(frames)])
    plain = emissions(models[kind], frames, [len(frames)])
    assert 0 < (whole.exp() - plain.exp()).abs().mean() < 0.02  # the heads' random weights are large
    for sizes, company in (([1], 0), ([2], 0), ([3, 11, 4], 0), ([5], 1), ([5], 6), ([40], 15)):
        assert torch.equal(emissions(form, frames, sizes, company), whole), (sizes, company)


@needs_half
@pytest.mark.parametrize("precision", ["int8", "w8a8"])
def test_without_a_product_of_integers_rounded_weights_are_read_in_half_precision(
    rounded: dict[str, tuple[AcousticModel, AcousticModel]],
    models: dict[str, AcousticModel],
    frames: Tensor,
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
) -> None:
    monkeypatch.setattr("asr.inference.supports", lambda precision, device: precision in ("fp16", "fp32"))
    form = inference_form(models["lstm"], precision)
    ours, theirs = emissions(form, frames, [5]), emissions(rounded["lstm"][0], frames, [5])
    assert (ours.exp() - theirs.exp()).abs().max() < 0.02  # rounded weights are none of half precision, quite
    assert (ours - emissions(models["lstm"], frames, [5])).abs().max() > 1e-3
