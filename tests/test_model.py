"""asr.model: streaming, parallel and batched passes agree; the look-ahead is what the configuration says."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny_model import CELLS, KINDS, babble, log_mel, tiny_config, tiny_network
from torch import Tensor

from asr.errors import ConfigError, ModelError, StateError
from asr.model import FRONT_END_HISTORY, STEP_MS, AcousticModel, State, fewer_taps
from asr.model_config import FRAME_MS, FRAMES_PER_STEP, ModelConfig

CLOSE = {"atol": 2e-4, "rtol": 1e-4}


@pytest.fixture(scope="module")
def models() -> dict[str, AcousticModel]:
    return {kind: tiny_network(tiny_config(**shape)) for kind, shape in KINDS.items()}


@pytest.fixture(scope="module")
def frames() -> Tensor:
    return log_mel(babble(1.2, pauses=False))


def offline(model: AcousticModel, frames: Tensor) -> Tensor:
    """begin + one step + end."""
    out, state = model.step(frames, model.begin(len(frames)))
    return torch.cat([out["phones"], model.end(state)["phones"]], dim=1)


def chunks(frames: Tensor, sizes: list[int]) -> list[Tensor]:
    pieces, start, i = [], 0, 0
    while start < frames.shape[1]:
        pieces.append(frames[:, start : start + sizes[i % len(sizes)]])
        start, i = start + sizes[i % len(sizes)], i + 1
    return pieces


# --- streaming equals offline ---------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(
    st.integers(0, 60), st.lists(st.integers(0, 40), min_size=1, max_size=4).filter(any), st.sampled_from(list(KINDS))
)
@example(60, [1], "lstm")
@example(59, [2], "lstm")
@example(0, [1], "lstm")
@example(1, [1], "gru")
@example(59, [1], "lstm, running mean")
@example(60, [2, 7], "gru, running mean")
def test_any_cutting_gives_the_same_logits(
    models: dict[str, AcousticModel], frames: Tensor, length: int, sizes: list[int], kind: str
) -> None:
    model, frames = models[kind], frames[:, :length]
    state, out = model.begin(), []
    for piece in chunks(frames, sizes):
        emissions, state = model.step(piece, state)
        out.append(emissions["phones"])
    out.append(model.end(state)["phones"])
    streamed = torch.cat(out, dim=1)
    assert streamed.shape == (1, -(-length // FRAMES_PER_STEP), 9)
    torch.testing.assert_close(streamed, offline(model, frames), **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
def test_padded_batches_give_what_each_row_gives_alone(models: dict[str, AcousticModel], kind: str) -> None:
    model = models[kind]
    lengths = [60, 1, 37, 2, 59]
    batch = torch.full((len(lengths), 60, 16), 7.0)  # what stands in the padding must not matter
    rows = [log_mel(babble(1.2, seed=i))[:, :n] for i, n in enumerate(lengths)]
    for i, row in enumerate(rows):
        batch[i, : lengths[i]] = row
    out, steps, (hidden, cell_state, *_) = model(batch, torch.tensor(lengths))
    assert steps.tolist() == [30, 1, 19, 1, 30]
    assert hidden.shape == cell_state.shape == (3, 5, 24)
    for i, row in enumerate(rows):
        torch.testing.assert_close(out["phones"][i : i + 1, : steps[i]], offline(model, row), **CLOSE)
    assert set(out) == {"phones", "characters"}
    torch.testing.assert_close(out["phones"].exp().sum(-1), torch.ones(5, 30))


@pytest.mark.parametrize("kind", KINDS)
def test_forward_takes_and_gives_the_state(kind: str) -> None:
    model = tiny_network(tiny_config(**KINDS[kind], lookahead=(0, 0, 0)))  # so that no layer lags behind the first
    frames = log_mel(babble(1.2))
    padded = torch.cat([frames[:, :30], torch.full((1, 20, 16), 7.0)], dim=1)
    _, _, (hidden, cells, *heard) = model(frames[:, :30], torch.tensor([30]))
    _, state = model.step(frames[:, :30], model.begin())
    torch.testing.assert_close(hidden, state.hidden, **CLOSE)
    resumed = model.begin()
    resumed.hidden = hidden
    assert len(heard) == bool(model.config.running_mean)
    if heard:
        torch.testing.assert_close(heard[0][0], state.heard, **CLOSE)
        torch.testing.assert_close(model(padded, torch.tensor([30]))[2][2], heard[0], **CLOSE)
        resumed.heard = heard[0][0]
    if model.config.has_cell_state:
        torch.testing.assert_close(cells, state.cell, **CLOSE)
        resumed.cell = cells
    expected, _ = model.step(frames[:, 30:], resumed)
    carried, _, _ = model(frames[:, 30:], torch.tensor([30]), (hidden, cells, *heard))
    fresh, _, _ = model(frames[:, 30:], torch.tensor([30]))
    torch.testing.assert_close(carried["phones"], expected["phones"], **CLOSE)
    assert (carried["phones"] - fresh["phones"]).abs().max() > 0.1


def test_intermediate_head_speaks_only_in_training() -> None:
    model = AcousticModel(tiny_config(intermediate=2))
    frames, lengths = torch.zeros(1, 10, 16), torch.tensor([10])
    assert model.train()(frames, lengths)[0]["intermediate"].shape == (1, 5, 9)
    assert "intermediate" not in model.eval()(frames, lengths)[0]


def test_one_head_alone(models: dict[str, AcousticModel], frames: Tensor) -> None:
    model = models["lstm"]
    all_heads, state = model.step(frames[:, :30], model.begin())
    one, same = model.step(frames[:, :30], model.begin(), "characters")
    assert set(all_heads) == {"phones", "characters"} and set(one) == {"characters"}
    assert torch.equal(one["characters"], all_heads["characters"]) and same.to_bytes() == state.to_bytes()
    assert set(model.end(state, "phones")) == {"phones"}


def test_dropout_is_off_unless_training() -> None:
    model = AcousticModel(tiny_config(dropout=0.5))
    frames, lengths = torch.randn(2, 40, 16), torch.tensor([40, 40])
    one, two = (model.train()(frames, lengths)[0]["phones"] for _ in range(2))
    assert not torch.equal(one, two)
    one, two = (model.eval()(frames, lengths)[0]["phones"] for _ in range(2))
    assert torch.equal(one, two)


# --- look-ahead -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lookahead", [(0, 0, 0), (4, 0, 2), (2, 2, 2), (0, 0, 6)])
def test_the_look_ahead_is_as_long_as_the_configuration_says(lookahead: tuple[int, ...], frames: Tensor) -> None:
    model = tiny_network(tiny_config(lookahead=lookahead))
    before = offline(model, frames)
    for frame in (30, 31):
        later = frames.clone()
        later[:, frame:] += 3 * torch.randn(later[:, frame:].shape)
        changed = (offline(model, later) != before).any(dim=2)[0].nonzero()[0].item()
        assert changed == frame // FRAMES_PER_STEP - model.config.lookahead_steps
    assert model.config.lookahead_steps == sum(lookahead)


@pytest.mark.parametrize("lookahead", [(0, 0, 0), (4, 0, 2)])
def test_latency_as_observed_in_a_stream(lookahead: tuple[int, ...], frames: Tensor) -> None:
    model = tiny_network(tiny_config(lookahead=lookahead))
    state, given, waits = model.begin(), 0, []
    for heard in range(1, frames.shape[1] + 1):
        out, state = model.step(frames[:, heard - 1 : heard], state)
        for step in range(given, given + out["phones"].shape[1]):
            waits.append(heard * FRAME_MS - step * STEP_MS)  # since the first sample of the step
        given += out["phones"].shape[1]
    assert set(waits) == {model.config.algorithmic_latency_ms}


@pytest.mark.parametrize("short", [(4, 0, 2), (2, 0, 2), (2, 0, 0), (0, 0, 0)])
def test_fewer_taps_of_one_network(short: tuple[int, ...], frames: Tensor) -> None:
    """The taps that are left are the nearer ones; a network of fewer taps gives what the whole one gives with them."""
    whole = tiny_network(tiny_config(lookahead=(4, 0, 2)))
    part = AcousticModel(whole.config.with_lookahead(short)).eval()
    part.load_state_dict(fewer_taps(whole.state_dict(), part.config))
    assert part.config.algorithmic_latency_ms == STEP_MS * (1 + sum(short))
    expected = whole(frames, torch.tensor([frames.shape[1]]), None, short)[0]["phones"]
    assert torch.allclose(offline(part, frames), expected, atol=1e-5)
    if short != whole.config.lookahead:
        assert not torch.allclose(expected, offline(whole, frames), atol=1e-3)


def test_a_part_of_the_look_ahead_must_be_a_part() -> None:
    config = tiny_config(lookahead=(4, 0, 2))
    with pytest.raises(ConfigError, match="reaches beyond"):
        config.with_lookahead((4, 2, 2))
    with pytest.raises(ConfigError, match="multiples"):
        config.with_lookahead((3, 0, 2))
    assert config.with_lookahead((2, 0, 0)).with_lookahead((4, 0, 0)).lookahead == (4, 0, 0)


def test_how_far_the_front_end_looks_back() -> None:
    model = tiny_network(tiny_config())
    frames = torch.randn(1, FRONT_END_HISTORY + 2, 16)
    changed = frames.clone()
    changed[:, 0] += 1
    assert not torch.equal(model.front_end(frames), model.front_end(changed))
    assert model.front_end(frames).shape == (1, 1, 24)


# --- bidirectional --------------------------------------------------------------------------------------------------


def test_a_bidirectional_model_refuses_to_stream() -> None:
    model = tiny_network(tiny_config(bidirectional=True, lookahead=(0, 0, 0)))
    with pytest.raises(ModelError, match=r"needs the whole recording and cannot stream"):
        model.begin()
    state = tiny_network(tiny_config(lookahead=(0, 0, 0))).begin()
    with pytest.raises(ModelError, match="cannot stream"):
        model.step(torch.zeros(1, 2, 16), state)
    with pytest.raises(ModelError, match="cannot stream"):
        model.end(state)


@pytest.mark.parametrize("cell", CELLS)
def test_a_bidirectional_pass_does_not_depend_on_padding(cell: str) -> None:
    model = tiny_network(tiny_config(cell=cell, bidirectional=True))
    frames = log_mel(babble(1.2))
    alone, _, _ = model(frames[:, :37], torch.tensor([37]))
    padded = torch.cat([frames, frames])
    padded[0, 37:] = 5.0
    both, steps, _ = model(padded, torch.tensor([37, 60]))
    assert steps.tolist() == [19, 30]
    torch.testing.assert_close(both["phones"][:1, :19], alone["phones"], **CLOSE)
    first = frames.clone()
    first[:, -1] += 3
    assert not torch.equal(model(first, torch.tensor([60]))[0]["phones"][:, 0], both["phones"][1:, 0])  # all of it


# --- state ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_states_stack_and_split(models: dict[str, AcousticModel], kind: str) -> None:
    model = models[kind]
    rows = [log_mel(babble(0.8, seed=i))[:, :37] for i in range(3)]
    states = [model.step(row[:, :21], model.begin())[1] for row in rows]
    stacked = State.stack(states)
    assert len(stacked) == 3 and stacked.nbytes == sum(s.nbytes for s in states)
    out, after = model.step(torch.cat(rows)[:, 21:], stacked)
    for i, state in enumerate(after.split()):
        alone, expected = model.step(rows[i][:, 21:], states[i])
        torch.testing.assert_close(out["phones"][i : i + 1], alone["phones"], **CLOSE)
        torch.testing.assert_close(model.end(state)["phones"], model.end(expected)["phones"], **CLOSE)
    assert torch.equal(after.rows(1, 3).hidden, after.hidden[:, 1:3])


@pytest.mark.parametrize("kind", ["lstm", "lstm, running mean"])
def test_a_step_leaves_the_state_it_was_given_as_it_was(
    models: dict[str, AcousticModel], frames: Tensor, kind: str
) -> None:
    model = models[kind]
    _, state = model.step(frames[:, :21], model.begin())
    before = state.to_bytes()
    first, _ = model.step(frames[:, 21:40], state)
    model.end(state)
    assert state.to_bytes() == before
    second, _ = model.step(frames[:, 21:40], state)
    assert torch.equal(first["phones"], second["phones"])


@pytest.mark.parametrize("kind", ["lstm", "lstm, running mean"])
def test_clones_share_nothing(models: dict[str, AcousticModel], frames: Tensor, kind: str) -> None:
    _, state = models[kind].step(frames[:, :21], models[kind].begin())
    before = state.to_bytes()
    for copy in (state.clone(), state.rows(0, 1), state.split()[0], State.stack([state])):
        for tensor in (copy.context, copy.pending, copy.hidden, copy.cell, *copy.waiting, copy.heard):
            tensor.fill_(9.0)
    assert state.to_bytes() == before


@pytest.mark.parametrize(("kind", "heard"), [("lstm", 0), ("lstm, running mean", 16 + 1)])
def test_a_state_holds_no_more_than_it_says(models: dict[str, AcousticModel], kind: str, heard: int) -> None:
    """Views of a long chunk would keep all of it alive."""
    model = models[kind]
    _, state = model.step(torch.randn(1, 2001, 16), model.begin())
    tensors = (state.context, state.pending, state.hidden, state.cell, *state.waiting, state.heard)
    assert sum(t.untyped_storage().nbytes() for t in tensors) == state.nbytes
    assert state.nbytes == 4 * (16 * (FRONT_END_HISTORY + 1) + 2 * 3 * 24 + (4 + 2) * 24 + heard)
    _, longer = model.step(torch.randn(1, 20000, 16), state)
    assert longer.nbytes == state.nbytes


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("heard", [0, 1, 5, 21])
def test_states_survive_as_bytes(models: dict[str, AcousticModel], frames: Tensor, kind: str, heard: int) -> None:
    model = models[kind]
    _, state = model.step(frames[:, :heard], model.begin())
    copy = State.from_bytes(state.to_bytes())
    model.check_state(copy)
    assert copy.phase == state.phase and copy.to_bytes() == state.to_bytes()
    one, _ = model.step(frames[:, heard:], state)
    two, _ = model.step(frames[:, heard:], copy)
    assert torch.equal(one["phones"], two["phones"])


def test_states_of_different_phase_do_not_stack(models: dict[str, AcousticModel], frames: Tensor) -> None:
    model = models["lstm"]
    states = [model.step(frames[:, :n], model.begin())[1] for n in (0, 1, 2, 40, 42)]
    for i, state in enumerate(states[:4]):
        for other in states[i + 1 : 4]:
            with pytest.raises(StateError, match=r"different phase cannot share a batch: group them by State\.phase"):
                State.stack([state, other])
    assert len(State.stack(states[3:])) == 2  # look-ahead layers full, no frame waits: the same phase
    with pytest.raises(StateError, match="no state to stack"):
        State.stack([])


@given(st.binary(max_size=200))
@settings(deadline=None, max_examples=30)
def test_garbage_is_no_state(data: bytes) -> None:
    with pytest.raises(StateError, match="not a serialised state"):
        State.from_bytes(data)


def test_without_a_running_mean_states_have_the_bytes_they_had(models: dict[str, AcousticModel]) -> None:
    from safetensors.torch import load

    names = {"context", "pending", "hidden", "cell", "waiting.0", "waiting.1"}
    assert set(load(models["lstm"].begin().to_bytes())) == names
    assert set(load(models["lstm, running mean"].begin().to_bytes())) == names | {"heard"}


def test_damaged_bytes_are_no_state(models: dict[str, AcousticModel]) -> None:
    data = models["lstm"].begin().to_bytes()
    for broken in (data[:-1], data + b"x", data.replace(b"hidden", b"hiddem"), data.replace(b'"F32"', b'"F99"')):
        with pytest.raises(StateError, match="not a serialised state") as caught:
            State.from_bytes(broken)
        assert "\n" not in str(caught.value)


def test_states_of_other_models_are_refused(models: dict[str, AcousticModel]) -> None:
    model = models["lstm"]
    others = {
        "its hidden has shape": tiny_config(hidden=26),
        "its context has shape": tiny_config(mels=20),
        "its cell has shape": tiny_config(cell="gru"),
        "has 1 look-ahead layers, this model has 2": tiny_config(lookahead=(4, 0, 0)),
        "its heard has shape": tiny_config(running_mean=0.5),
    }
    for reason, config in others.items():
        with pytest.raises(StateError, match=reason):
            model.check_state(AcousticModel(config).begin())
    longer = AcousticModel(tiny_config(lookahead=(6, 0, 2)))
    with pytest.raises(StateError, match=r"its waiting\.0 has shape"):
        model.check_state(longer.step(torch.zeros(1, 40, 16), longer.begin())[1])
    state = model.begin()
    state.hidden[0, 0, 0] = float("nan")
    with pytest.raises(StateError, match="its hidden does not hold finite numbers"):
        model.check_state(state)
    running = models["lstm, running mean"]
    with pytest.raises(StateError, match=r"its heard has shape \(1, 0\), here it is \(1, 17\)"):
        running.check_state(State.from_bytes(model.begin().to_bytes()))
    state = running.begin()
    state.heard[0, -1] = -3.0
    with pytest.raises(StateError, match="heard fewer frames than none"):
        running.check_state(state)
    state.heard = torch.zeros(())
    with pytest.raises(StateError, match="its heard has shape"):
        running.check_state(State.from_bytes(state.to_bytes()))
    state = model.begin()
    state.context = torch.zeros(())
    with pytest.raises(StateError, match="its context has shape"):
        model.check_state(state)


def test_wrong_shapes_are_refused(models: dict[str, AcousticModel]) -> None:
    model = models["lstm"]
    for shape in ((2, 10, 16), (1, 10, 15), (10, 16)):
        with pytest.raises(StateError, match=r"expected \(1, frames, 16\) log-mel, got"):
            model.step(torch.zeros(shape), model.begin())


# --- configuration --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": {}}, "at least one head"),
        ({"heads": {"phones": 1}}, "at least two units"),
        ({"mels": 18}, "multiple of 4"),
        ({"layers": 0}, "1 to 12"),
        ({"layers": 4}, r"one entry per layer \(4\), got 3"),
        ({"hidden": 0}, "must be positive"),
        ({"lookahead": (3, 0, 0)}, "multiples of model.lookahead_stride"),
        ({"lookahead": (-2, 0, 0)}, "multiples of model.lookahead_stride"),
        ({"lookahead_stride": 0}, "at least 1"),
        ({"intermediate": 3}, "a layer below the last"),
        ({"dropout": 1.0}, "0 to 1"),
        ({"running_mean": 1.1}, "running_mean must be 0 to 1"),
        ({"running_mean": 0.5, "running_mean_s": -1.0}, "running_mean_s must be seconds, 0 or more"),
        ({"running_mean": 0.5, "running_mean_memory_s": 0.0}, "running_mean_memory_s must be 0.02 to 3600, got 0.0"),
        ({"bidirectional": True, "hidden": 25}, "must be even"),
    ],
)
def test_impossible_shapes(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_config(**changes)


def test_latency_is_derived() -> None:
    config = ModelConfig({"phones": 40}, layers=4, lookahead=(0, 4, 0, 4))
    assert (config.lookahead_steps, config.lookahead_ms, config.algorithmic_latency_ms) == (8, 320, 360)
