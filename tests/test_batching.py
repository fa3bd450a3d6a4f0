"""asr.batching: a stream's numbers do not depend on who shares its step, or when."""

import random
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import babble, log_mel, tiny_config, tiny_network
from torch import Tensor

from asr import batching
from asr.model import AcousticModel, State

CLOSE = {"atol": 2e-4, "rtol": 1e-4}


@pytest.fixture(scope="module")
def models() -> dict[str, AcousticModel]:
    return {cell: tiny_network(tiny_config(cell=cell)) for cell in ("lstm", "gru", "rnn")}


def alone(model: AcousticModel, frames: Tensor) -> Tensor:
    out, state = model.step(frames[None], model.begin())
    return torch.cat([out["phones"], model.end(state)["phones"]], dim=1)[0]


@settings(deadline=None, max_examples=8)
@given(st.integers(0, 10_000), st.sampled_from(["lstm", "gru", "rnn"]))
def test_streams_that_come_and_go_give_what_each_gives_alone(
    models: dict[str, AcousticModel], seed: int, cell: str
) -> None:
    model, rng = models[cell], random.Random(seed)
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


def test_rows_of_one_phase_share_a_step(models: dict[str, AcousticModel], monkeypatch: pytest.MonkeyPatch) -> None:
    model, sizes = models["lstm"], []
    step = AcousticModel.step

    def counted(self: AcousticModel, frames: Tensor, state: State, head: str) -> object:
        sizes.append(tuple(frames.shape[:2]))
        return step(self, frames, state, head)

    monkeypatch.setattr(AcousticModel, "step", counted)
    rows = [(torch.zeros(n, 16), model.begin()) for n in (10, 10, 7, 10, 0)]
    results = batching.advance(model, rows, "phones")
    assert sorted(sizes) == [(1, 7), (3, 10)]
    assert [len(emissions) for emissions, _ in results] == [0, 0, 0, 0, 0]  # still in the look-ahead
    _, silent = results[-1]
    assert silent is rows[-1][1]
    assert batching.advance(model, [], "phones") == [] and batching.end(model, [], "phones") == []


def test_kernels_are_chosen_for_the_step_alone_and_nothing_is_printed(models: dict[str, AcousticModel]) -> None:
    before = torch.backends.mkldnn.enabled
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ((_, state),) = batching.advance(models["lstm"], [(torch.zeros(4, 16), models["lstm"].begin())], "phones")
        batching.end(models["lstm"], [state], "phones")
    assert torch.backends.mkldnn.enabled == before
