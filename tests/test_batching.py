"""asr.batching: a stream's numbers do not depend on who shares its step, or when."""

import random
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import KINDS, babble, log_mel, tiny_config, tiny_network
from torch import Tensor

from asr import batching
from asr.errors import StateError
from asr.inference import inference_form
from asr.model import AcousticModel, State

CLOSE = {"atol": 2e-4, "rtol": 1e-4}


@pytest.fixture(scope="module")
def models() -> dict[str, AcousticModel]:
    return {kind: tiny_network(tiny_config(**shape)) for kind, shape in KINDS.items()}


def alone(model: AcousticModel, frames: Tensor) -> Tensor:
    out, state = model.step(frames[None], model.begin())
    return torch.cat([out["phones"], model.end(state)["phones"]], dim=1)[0]


@settings(deadline=None, max_examples=16)
@given(st.integers(0, 10_000), st.sampled_from(list(KINDS)))
def test_streams_that_come_and_go_give_what_each_gives_alone(
    models: dict[str, AcousticModel], seed: int, kind: str
) -> None:
    model, rng = models[kind], random.Random(seed)
    waiting = [log_mel(babble(0.8, seed=i))[0, : rng.randint(0, 40)] for i in range(5)]
    frames = list(waiting)
    states = {i: model.begin() for i in range(5)}
    given: dict[int, list[Tensor]] = {i: [] for i in range(5)}
    while states:
        members = rng.sample(sorted(states), rng.randint(1, len(states)))
        size = rng.choice([1, 4, 11])  # some bring equally many frames, some do not
        rows, ended = [], []
        for i in members:
            n = min(len(waiting[i]), size if rng.random() < 0.7 else rng.randint(0, 9))
            rows.append((waiting[i][:n], states[i]))
            waiting[i] = waiting[i][n:]
            if not len(waiting[i]):
                ended.append(i)
        for i, (emissions, state) in zip(members, batching.advance(model, rows, "phones"), strict=True):
            given[i].append(emissions)
            states[i] = state
        for i, tail in zip(ended, batching.end(model, [states.pop(i) for i in ended], "phones"), strict=True):
            given[i].append(tail)
    for i, row in enumerate(frames):
        torch.testing.assert_close(torch.cat(given[i]), alone(model, row), **CLOSE)


@pytest.mark.parametrize("lengths", [(10, 10, 10), (10, 10, 7, 10, 0)])
def test_all_rows_share_a_step(
    models: dict[str, AcousticModel], monkeypatch: pytest.MonkeyPatch, lengths: tuple[int, ...]
) -> None:
    model, calls = models["lstm"], []
    forward = model.front_end.forward

    def counted(frames: Tensor) -> Tensor:
        calls.append(len(frames))
        return forward(frames)

    monkeypatch.setattr(model.front_end, "forward", counted)
    rows = [(torch.zeros(n, 16), model.begin()) for n in lengths]
    results = batching.advance(model, rows, "phones")
    assert len(calls) == 1
    assert [len(emissions) for emissions, _ in results] == [0] * len(lengths)  # still in the look-ahead
    _, silent = results[-1]
    assert (silent is rows[-1][1]) == (lengths[-1] == 0)
    assert batching.advance(model, [], "phones") == [] and batching.end(model, [], "phones") == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_ragged_step_gives_and_keeps_what_each_stream_does_alone(
    models: dict[str, AcousticModel], kind: str, precision: str
) -> None:
    """With an inference form, to the bit; in slots as free-standing."""
    model = inference_form(models[kind], precision)
    exact = model is not models[kind]
    rng, count = random.Random(5), 6
    pool = batching.Slots(model, count)
    slots = [pool.hold(model.begin()) for _ in range(count)]
    assert pool.free == 0
    free: list[batching.AnyState] = [model.begin() for _ in range(count)]
    alone = [model.begin() for _ in range(count)]
    for n in range(30):
        members = rng.sample(range(count), rng.randint(1, count))
        frames = [torch.randn(rng.choice([0, 1, 1, 2, 3, 5, 12]), 16) for _ in members]
        of_slots = batching.advance(model, [(f, slots[i]) for f, i in zip(frames, members, strict=True)], "phones")
        of_free = batching.advance(model, [(f, free[i]) for f, i in zip(frames, members, strict=True)], "phones")
        for i, f, (mine, _), (also, state) in zip(members, frames, of_slots, of_free, strict=True):
            with torch.inference_mode():
                expected, alone[i] = model.step(f[None], alone[i], "phones")
            free[i] = state
            bounds = {"atol": 0.0, "rtol": 0.0} if exact else CLOSE
            for numbers in (mine, also):
                torch.testing.assert_close(numbers, expected["phones"][0], **bounds)
            assert slots[i].phase == free[i].phase == alone[i].phase
            for other in (slots[i].clone(), free[i].clone()):
                for name, tensor in other._tensors().items():
                    torch.testing.assert_close(tensor, alone[i]._tensors()[name], **bounds)
        if n % 7 == 0:  # one leaves, and a newcomer gets its slot
            pool.release(slots[2])
            slots[2], free[2], alone[2] = pool.hold(model.begin()), model.begin(), model.begin()
    states = [batching.end(model, some, "phones") for some in (slots, free)]
    for a, b in zip(*states, strict=True):
        torch.testing.assert_close(a, b, **({"atol": 0.0, "rtol": 0.0} if exact else CLOSE))


@pytest.mark.parametrize("kind", ["lstm", "lstm, running mean"])
def test_a_step_in_slots_can_be_taken_back(models: dict[str, AcousticModel], kind: str) -> None:
    model = models[kind]
    pool = batching.Slots(model, 3)
    slots = [pool.hold(model.begin()) for _ in range(2)]
    batching.advance(model, [(torch.randn(7, 16), s) for s in slots], "phones")
    before = [s.to_bytes() for s in slots]
    batching.advance(model, [(torch.randn(4, 16), slots[0])], "phones")
    assert slots[0].to_bytes() != before[0]
    pool.undo()
    assert [s.to_bytes() for s in slots] == before
    batching.advance(model, [(torch.randn(4, 16), slots[0])], "phones")
    pool.settle()
    after = slots[0].to_bytes()
    pool.undo()  # there is nothing to undo
    assert slots[0].to_bytes() == after
    with pytest.raises(StateError, match="all 3 slots are taken"):
        for _ in range(2):
            pool.hold(model.begin())
    assert State.from_bytes(slots[0].to_bytes()).phase == slots[0].phase
    assert slots[0].nbytes * 3 == pool.nbytes


def test_kernels_are_chosen_for_the_step_alone_and_nothing_is_printed(models: dict[str, AcousticModel]) -> None:
    before = torch.backends.mkldnn.enabled
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ((_, state),) = batching.advance(models["lstm"], [(torch.zeros(4, 16), models["lstm"].begin())], "phones")
        batching.end(models["lstm"], [state], "phones")
    assert torch.backends.mkldnn.enabled == before
