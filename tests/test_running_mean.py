"""asr.running_mean: every way to compute it against its definition; it takes a voice's or a room's colour away."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny_model import RUNNING_MEAN, babble, tiny_config, tiny_folder
from torch import Tensor

from asr import Recognizer
from asr.model_config import FRAME_MS
from asr.running_mean import RunningMean, width
from asr.stream_state import StreamState

MELS = 16
LONG = 700  # frames; many blocks of the parallel form, and no whole number of them


def running(**changes: Any) -> RunningMean:
    found = RunningMean.of(tiny_config(**{**RUNNING_MEAN, **changes}))
    assert found is not None
    return found


def by_definition(mean: RunningMean, frames: Tensor) -> NDArray[np.float64]:
    """(n, mels) less a share of the weighted mean of all frames so far, term by term."""
    x, out = frames.double().numpy(), []
    for t in range(len(x)):
        weights = np.array([mean.decay ** (t - i) for i in range(t + 1)])
        weights *= np.exp(mean.loudness * np.minimum(x[: t + 1].mean(1), 3.0))
        out.append(x[t] - mean.share * (weights[:, None] * x[: t + 1]).sum(0) / (weights.sum() + mean.prior))
    return np.array(out)


def sound(n: int = LONG, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, MELS, generator=generator) + torch.randn(MELS, generator=generator)


def nothing(rows: int = 1) -> Tensor:
    return torch.zeros(rows, MELS + 1)


# --- the numbers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"running_mean_loudness": 0.0},
        {"running_mean_loudness": 4.0},
        {"running_mean_memory_s": 30.0, "running_mean_s": 3.0},
        {"running_mean": 1.0, "running_mean_s": 0.0},
    ],
)
def test_all_forms_compute_the_definition(settings: dict[str, Any]) -> None:
    mean, frames = running(**settings), sound()
    expected = torch.from_numpy(by_definition(mean, frames)).float()
    stepped, heard = mean.batch(frames[None], nothing())
    assert (stepped[0] - expected).abs().max() < 1e-5
    assert (mean.parallel(frames[None], nothing())[0] - expected).abs().max() < 1e-5
    given, state = [], nothing()
    for chunk in frames.split(14):
        out, state = mean.chunk(chunk[None], state, *mean.weights(len(chunk)))
        given.append(out[0])
    assert (torch.cat(given) - expected).abs().max() < 1e-5
    for other in (state, mean.after(frames[None], torch.tensor([LONG]), nothing())):
        torch.testing.assert_close(other, heard, atol=1e-3, rtol=1e-5)


def test_settings_in_seconds() -> None:
    mean = running(running_mean=0.5, running_mean_s=3.0, running_mean_memory_s=30.0)
    assert (mean.share, mean.prior) == (0.5, 3000 / FRAME_MS)
    assert mean.decay ** (30_000 / FRAME_MS) == pytest.approx(np.exp(-1), rel=1e-4)
    assert RunningMean.of(tiny_config()) is None
    assert (width(tiny_config()), width(tiny_config(running_mean=0.1))) == (0, MELS + 1)


def test_no_cutting_and_no_company_changes_a_bit() -> None:
    mean, frames = running(), sound(97)
    whole, heard = mean.batch(frames[None], nothing())
    for size in (1, 2, 5, 31):
        parts, state = [], nothing()
        for chunk in frames.split(size):
            out, state = mean.batch(chunk[None], state)
            parts.append(out)
        assert torch.equal(torch.cat(parts, dim=1), whole) and torch.equal(state, heard)
    rows = torch.stack([sound(97, seed) for seed in range(7)])
    rows[3] = frames
    beside, states = mean.batch(rows, nothing(7))
    assert torch.equal(beside[3], whole[0]) and torch.equal(states[3:4], heard)


def test_parallel_rows_begin_with_what_they_have_heard() -> None:
    mean, frames = running(running_mean_memory_s=3.0), torch.stack([sound(300), sound(300, 2)])
    _, heard = mean.batch(frames[:, :110], nothing(2))
    expected, end = mean.batch(frames[:, 110:], heard)
    torch.testing.assert_close(mean.parallel(frames[:, 110:], heard), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(mean.after(frames[:, 110:], torch.tensor([190, 190]), heard), end, atol=1e-3, rtol=1e-5)
    _, early = mean.batch(frames[:1, 110:150], heard[:1])  # the first row ends early, the second has not begun
    after = mean.after(frames[:, 110:], torch.tensor([40, 0]), heard)
    torch.testing.assert_close(after, torch.cat([early, heard[1:]]), atol=1e-3, rtol=1e-5)


def test_the_sums_are_not_rounded_in_training() -> None:
    mean, frames = running(), sound(200)[None]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(mean.parallel(frames, nothing()), mean.parallel(frames, nothing()).float())
        inside = mean.parallel(frames, nothing()), mean.after(frames, torch.tensor([200]), nothing())
    assert torch.equal(inside[0], mean.parallel(frames, nothing()))
    assert torch.equal(inside[1], mean.after(frames, torch.tensor([200]), nothing()))


# --- what it is for -------------------------------------------------------------------------------------------------


def test_a_constant_colour_goes_and_a_new_one_replaces_it() -> None:
    mean = running(running_mean=1.0, running_mean_s=1.0, running_mean_memory_s=2.0)
    colour = torch.linspace(-2, 2, MELS)
    frames = torch.cat([colour.expand(500, MELS), -colour.expand(1000, MELS)])
    left = mean.batch(frames[None], nothing())[0][0].abs().amax(1)
    assert left[0] > 1.9 and left[499] < 2.0 * 0.4  # the global mean is a third of it: 1 s beside 2 s that never grow
    assert left[500] > 2.5 and left[-1] < 2.0 * 0.4


def test_an_hour_does_not_move_it() -> None:
    """The sums have a bound, so that late frames are as exact as early ones."""
    mean, frames = running(running_mean_memory_s=30.0, running_mean_loudness=0.0), sound(3000) + 3
    _, state = mean.batch(frames[None], nothing())
    late = state
    for _ in range(59):
        _, late = mean.batch(frames[None], late)
    first, second = (mean.batch(frames[None], s)[0] for s in (late, mean.batch(frames[None], late)[1]))
    assert (first - second).abs().max() < 1e-4
    assert 0.99 / (1 - mean.decay) < late[0, -1] < 1.01 / (1 - mean.decay)


# --- in a recogniser ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recognizer(tmp_path_factory: pytest.TempPathFactory) -> Recognizer:
    path = tiny_folder(tmp_path_factory.mktemp("models") / "running", **RUNNING_MEAN)
    return Recognizer.load(path, threads=1)


def test_text_does_not_depend_on_cuts_and_moves(recognizer: Recognizer) -> None:
    audio = babble(6.0)
    whole = recognizer.transcribe(audio, sample_rate=16000).text
    assert whole
    stream, texts = recognizer.stream(sample_rate=16000), []
    for start in range(0, len(audio), 4567):
        texts += stream.feed(audio[start : start + 4567])
        moved = StreamState.from_bytes(stream.state.to_bytes())
        stream = recognizer.stream(sample_rate=16000, state=moved)
    texts += stream.finish()
    assert " ".join(r.text for r in texts if type(r).__name__ == "Segment" and r.text) == whole


def test_it_changes_what_is_recognised(recognizer: Recognizer, tiny_path: Path) -> None:
    """The same weights without it: so the tests above are of something."""
    audio = babble(6.0)
    model = recognizer.model
    plain = Recognizer.load(tiny_path, threads=1).model
    assert {k: tuple(v.shape) for k, v in plain.state_dict().items()} == {
        k: tuple(v.shape) for k, v in model.state_dict().items()
    }
    frames = recognizer.features(torch.from_numpy(audio)[None])
    with torch.inference_mode():
        ours = model.front_end.running.batch(frames, frames.new_zeros(1, MELS + 1))[0]  # type: ignore[union-attr]
    assert (ours - frames).abs().max() > 0.5
