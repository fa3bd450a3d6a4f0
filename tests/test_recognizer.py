"""asr.recognizer: the same audio gives the same text and times, however it comes and whoever comes with it."""

import dataclasses
import io
import math
import os
import random
import shutil
import subprocess
import sys
import time
import tracemalloc
import wave
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tiny_model import babble, tiny_folder

import asr
from asr import Recognizer, Segment, Transcript
from asr.checkpoint import LEXICON, models_folder, read_config, update_config
from asr.decoding.endpoint import Endpointer
from asr.decoding.hypothesis import Hypothesis, TimedWord
from asr.decoding.search_config import SearchConfig
from asr.decoding.search_state import HISTORY, NODE
from asr.errors import AsrError, AudioError, ModelError, StateError, UsageError
from asr.lexicon import Lexicon
from asr.model_config import HOP, STEP_MS
from asr.recognizer import StreamState, _without_last_word, as_samples, feed_many, finish_many
from asr.results import Partial, Result
from asr.transcribe import Options, transcribe

RATE = 16000
Audio = NDArray[np.float32]


def cut(audio: Audio, sizes: Iterable[int]) -> list[Audio]:
    """``audio`` in pieces of these sizes, over and over."""
    pieces, start, order = [], 0, list(sizes)
    while start < len(audio):
        size = order[len(pieces) % len(order)]
        pieces.append(audio[start : start + size])
        start += size
    return pieces


def segments(results: Iterable[Result]) -> list[Segment]:
    return [r for r in results if isinstance(r, Segment)]


def streamed(recognizer: Recognizer, pieces: Iterable[Audio], rate: int = RATE) -> list[Segment]:
    stream = recognizer.stream(rate)
    results = [r for piece in pieces for r in stream.feed(piece)]
    return segments(results + stream.finish())


def write_wav(path: Path, audio: Audio, rate: int = RATE, channels: int = 1) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((audio * 32767).astype("<i2").tobytes())
    return path


def read_wav(path: Path) -> NDArray[np.int16]:
    with wave.open(str(path), "rb") as file:
        return np.frombuffer(file.readframes(file.getnframes()), np.int16)


def check_times(found: Iterable[Segment], duration: float) -> None:
    """Words in order, inside the audio, in segments in order."""
    last = 0.0
    for number, segment in enumerate(found):
        assert segment.index == number
        assert (segment.start, segment.end) == (segment.words[0].start, segment.words[-1].end)
        assert segment.text == " ".join(w.text for w in segment.words)
        for word in segment.words:
            assert last <= word.start <= word.end <= duration
            last = word.end


@pytest.fixture(scope="module")
def whole(tiny: Recognizer) -> Callable[[int], list[Segment]]:
    """Segments of ten seconds of babble, fed at once."""
    known: dict[int, list[Segment]] = {}

    def offline(seed: int) -> list[Segment]:
        if seed not in known:
            known[seed] = streamed(tiny, [babble(10, seed)])
        return known[seed]

    return offline


# --- streaming equals offline ---------------------------------------------------------------------------------------


def test_the_babble_is_something_to_recognise(whole: Callable[[int], list[Segment]]) -> None:
    """What the tests below compare must not be empty or trivial."""
    found = [s for seed in range(3) for s in whole(seed)]
    assert len(found) > 8 and sum(len(s.words) for s in found) > 100
    assert {s.reason for s in found} >= {"endpoint", "max_length", "eof"}
    assert len({w.text for s in found for w in s.words}) > 15


@settings(deadline=None, max_examples=8)
@given(st.lists(st.integers(1, 30_000), min_size=1, max_size=4), st.integers(0, 2))
@example([HOP], 0)
@example([HOP - 1], 1)
@example([1600], 2)
def test_any_cutting_gives_the_same_segments(
    tiny: Recognizer, whole: Callable[[int], list[Segment]], sizes: list[int], seed: int
) -> None:
    if sum(sizes) / len(sizes) < 200:  # thousands of feeds: another test
        sizes = [s + 200 for s in sizes]
    assert streamed(tiny, cut(babble(10, seed), sizes)) == whole(seed)


def test_one_sample_at_a_time(tiny: Recognizer) -> None:
    audio = babble(0.5, seed=4, pauses=False)
    found = streamed(tiny, cut(audio, [1]))
    assert found == streamed(tiny, [audio]) and len(found[0].words) >= 3


@pytest.mark.parametrize("rate", [8000, 11025, 44100, 48000])
def test_any_cutting_at_other_rates(tiny: Recognizer, rate: int) -> None:
    audio = babble(4, seed=6, rate=rate)
    expected = streamed(tiny, [audio], rate)
    assert sum(len(s.words) for s in expected) > 10
    check_times(expected, 4.0)
    for sizes in ([rate // 50], [997, 1, 0, 5003]):
        assert streamed(tiny, cut(audio, sizes), rate) == expected
    assert list(tiny.transcribe(audio, rate).segments) == expected


def test_times_do_not_depend_on_the_rate(tiny: Recognizer) -> None:
    times = np.arange(3 * 48000) / 48000
    audio = (0.1 * np.sin(2 * np.pi * 700 * times) * (np.sin(7 * times) > 0)).astype(np.float32)
    ((a, *_), (b, *_)) = (streamed(tiny, [audio[:: 48000 // rate]], rate) for rate in (48000, 16000))
    assert abs(a.start - b.start) <= 0.04 and abs(a.end - b.end) <= 0.2


def test_times_are_in_order_and_inside_the_audio(whole: Callable[[int], list[Segment]]) -> None:
    for seed in range(3):
        check_times(whole(seed), 10.0)


@pytest.mark.parametrize("samples", [0, 1, HOP - 1, HOP, 2 * HOP + 1, 7777])
@pytest.mark.parametrize("rate", [RATE, 44100])
def test_every_step_of_the_audio_is_decoded(tiny: Recognizer, samples: int, rate: int) -> None:
    """The tail flush follows from the network's look-ahead: no step is left inside it."""
    stream = tiny.stream(rate)
    stream.feed(babble(1, rate=rate)[:samples])
    stream.finish()
    heard = -(-samples * RATE // rate)
    assert stream.state.steps == -(-heard // (HOP * STEP_MS // 20))


def test_what_follows_the_end_does_not_change_what_was_before(
    tiny: Recognizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Silence after the last sample changes nothing but the steps whose look-ahead it reaches."""
    emissions: list[NDArray[np.float32]] = []
    step = Endpointer.step

    def recorded(self: Endpointer, given: NDArray[np.float32], state: Any) -> Any:
        cut, following = step(self, given, state)
        emissions.append(given[: cut.stop])
        return cut, following

    monkeypatch.setattr(Endpointer, "step", recorded)
    audio = babble(2, seed=8, pauses=False)
    both = []
    for silence in (0, 3 * RATE):
        emissions.clear()
        streamed(tiny, [np.concatenate([audio, np.zeros(silence, np.float32)])])
        both.append(np.concatenate(emissions))
    reach = tiny.model.config.lookahead_steps
    assert len(both[0]) == 50
    np.testing.assert_allclose(both[0][: 50 - reach], both[1][: 50 - reach], atol=1e-3)
    assert (both[0][: 50 - reach].argmax(1) > 0).sum() > 20


def test_speech_without_pauses_is_cut_and_no_word_stands_twice_in_time(tiny: Recognizer) -> None:
    found = streamed(tiny, cut(babble(40, seed=9, pauses=False), [1600]))
    check_times(found, 40.0)
    assert [s.reason for s in found].count("max_length") >= 3
    starts = [w.start for s in found for w in s.words]
    assert max(np.diff(starts)) < 1.0  # and no gap at a cut
    assert all(s.end - s.start < 1.5 * 6.0 + 3.0 for s in found)


def test_the_word_under_a_cut_goes_to_the_next_segment() -> None:
    words = tuple(TimedWord(text, at, at + 5) for text, at in (("one", 3), ("two", 90), ("three", 130)))
    assert _without_last_word(Hypothesis(words, -1.0), 140, 0) == (Hypothesis(words[:2], -1.0), 130)
    assert _without_last_word(Hypothesis(words, -1.0), 300, 0) == (Hypothesis(words, -1.0), 300)
    assert _without_last_word(Hypothesis(words[:1], -1.0), 140, 0) == (Hypothesis(words[:1], -1.0), 140)
    assert _without_last_word(Hypothesis(words, -1.0), 140, 3) == (Hypothesis(words, -1.0), 140)  # it is stable
    assert _without_last_word(Hypothesis((), 0.0), 140, 0) == (Hypothesis((), 0.0), 140)


# --- company --------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=4)
@given(st.integers(0, 10_000))
def test_streams_that_come_and_go_in_one_batch(tiny: Recognizer, seed: int) -> None:
    rng = random.Random(seed)
    rates = [16000, 16000, 16000, 8000, 44100]
    audio = [babble(rng.uniform(0.5, 4), seed=i, rate=rate) for i, rate in enumerate(rates)]
    expected = [streamed(tiny, [x], rate) for x, rate in zip(audio, rates, strict=True)]
    streams = [tiny.stream(rate, partials=rng.random() < 0.5) for rate in rates]
    left = dict(enumerate(audio))
    found: dict[int, list[Result]] = {i: [] for i in left}
    while left:
        members = rng.sample(sorted(left), rng.randint(1, len(left)))
        sizes = {i: rng.choice([rates[i] // 50, rates[i] // 4, rng.randint(0, 9999)]) for i in members}
        for i, new in zip(members, feed_many([(streams[i], left[i][: sizes[i]]) for i in members]), strict=True):
            found[i] += new
            left[i] = left[i][sizes[i] :]
        ended = [i for i in members if not len(left[i])]
        for i, new in zip(ended, finish_many([streams[i] for i in ended]), strict=True):
            found[i] += new
            del left[i]
    assert [segments(found[i]) for i in range(len(rates))] == expected


def test_a_bad_chunk_leaves_the_other_streams_as_they_were(tiny: Recognizer) -> None:
    audio = babble(3, seed=2)
    good, bad = tiny.stream(), tiny.stream()
    results = good.feed(audio[:20000])
    for chunk in (np.full(100, np.nan, np.float32), np.zeros((2, 100)), np.zeros(100, np.int32)):
        before = good.state.to_bytes(), bad.state.to_bytes()
        with pytest.raises(AudioError):
            feed_many([(good, audio[20000:]), (bad, chunk)])
        assert (good.state.to_bytes(), bad.state.to_bytes()) == before
    bad.finish()
    with pytest.raises(StateError, match="the stream is finished: open a new one"):
        feed_many([(good, audio[20000:]), (bad, audio)])
    results += good.feed(audio[20000:]) + good.finish()
    assert segments(results) == streamed(tiny, [audio])


def test_streams_that_cannot_share_a_step(tiny: Recognizer, tiny_path: Path) -> None:
    other = Recognizer.load(tiny_path)
    stream, chunk = tiny.stream(), np.zeros(320, np.float32)
    with pytest.raises(UsageError, match="streams of different recognisers"):
        feed_many([(stream, chunk), (other.stream(), chunk)])
    with pytest.raises(UsageError, match="a stream can stand in a step once only"):
        feed_many([(stream, chunk), (stream, chunk)])
    assert feed_many([]) == [] and finish_many([]) == []


# --- results --------------------------------------------------------------------------------------------------------


def test_partials_lead_to_segments(tiny: Recognizer) -> None:
    stream, shown, index = tiny.stream(), ("", ""), 0
    for piece in [*cut(babble(10, seed=1), [800]), np.zeros(RATE, np.float32)]:
        results = stream.feed(piece)
        assert len([r for r in results if isinstance(r, Partial)]) <= 1
        for result in results:
            if isinstance(result, Segment):
                assert result.index == index
                assert result.text.split()[: len(shown[0].split())] == shown[0].split(), "stable text stays"
                shown, index = ("", ""), index + 1
            else:
                assert result.segment == index and (result.stable, result.unstable) != shown
                assert result.stable.split()[: len(shown[0].split())] == shown[0].split()
                assert 0 <= result.start <= result.end <= stream.duration
                shown = result.stable, result.unstable
    assert index > 2
    assert shown == ("", ""), "a segment that is closed, or an empty partial, takes the text away"


def test_no_partials_when_none_are_wanted(tiny: Recognizer) -> None:
    stream = tiny.stream(partials=False)
    assert all(isinstance(r, Segment) for piece in cut(babble(5), [800]) for r in stream.feed(piece))


def test_silence_is_silent(tiny: Recognizer) -> None:
    stream = tiny.stream()
    stream.feed(np.zeros(2 * RATE, np.float32))  # random weights make words of the step from nothing to silence
    results = [r for _ in range(20) for r in stream.feed(np.zeros(RATE, np.float32))] + stream.finish()
    assert segments(results) == [] and stream.state.search.steps == 0


@pytest.mark.parametrize("seconds", [0.3, 1.0, 4.3])
@pytest.mark.parametrize("rate", [RATE, 44100])
def test_flush_is_finish_that_changes_nothing(tiny: Recognizer, seconds: float, rate: int) -> None:
    audio = babble(5, seed=7, rate=rate)
    n = round(seconds * rate)
    stream = tiny.stream(rate)
    results = stream.feed(audio[:n])
    before = stream.state.to_bytes()
    flushed = stream.flush()
    assert stream.flush() == flushed and stream.state.to_bytes() == before
    assert {s.reason for s in segments(flushed)} <= {"flush", "endpoint", "max_length"}
    assert segments(results) + _as_at_eof(flushed) == streamed(tiny, [audio[:n]], rate)
    results += stream.feed(audio[n:]) + stream.finish()
    assert segments(results) == streamed(tiny, [audio], rate)


def _as_at_eof(flushed: list[Result]) -> list[Segment]:
    return [dataclasses.replace(s, reason="eof") if s.reason == "flush" else s for s in segments(flushed)]


@pytest.mark.parametrize("rate", [8000, 16000])
@pytest.mark.parametrize("seconds", [0.0, 0.013, 2.5])
def test_a_cut_closes_what_was_said_and_the_stream_goes_on(tiny: Recognizer, seconds: float, rate: int) -> None:
    audio = babble(5, seed=7, rate=rate)
    n = round(seconds * rate)
    before = streamed(tiny, [audio[:n]], rate)
    results: list[list[Segment]] = []
    for size in (rate // 10, rate):  # what comes after a cut does not depend on the size of chunks either
        stream = tiny.stream(rate)
        first = stream.feed(audio[:n])
        first += stream.cut()
        assert _as_at_eof(first) == before
        assert stream.cut() == []  # nothing came since
        state = StreamState.from_bytes(stream.state.to_bytes())
        rest: list[Result] = []
        for start in range(n, len(audio), size):
            rest += stream.feed(audio[start : start + size])
        rest += stream.finish()
        moved = tiny.stream(state=state)
        assert segments(moved.feed(audio[n:]) + moved.finish()) == segments(rest)
        results.append(segments(rest))
    assert results[0] == results[1]
    after = results[0]
    assert after and after[-1].end <= len(audio) / rate
    assert [s.index for s in after] == list(range(len(before), len(before) + len(after)))
    last = before[-1].end if before else 0.0
    for segment in after:
        assert segment.start >= last
        last = segment.end


def test_a_finished_stream_is_closed(tiny: Recognizer) -> None:
    stream = tiny.stream()
    stream.finish()
    for again in (lambda: stream.feed(np.zeros(1)), stream.finish, stream.flush, stream.cut):
        with pytest.raises(StateError, match="the stream is finished: open a new one"):
            again()


# --- states ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fresh(tiny_path: Path) -> Recognizer:
    """The same model in, as it were, another process."""
    return Recognizer.load(tiny_path)


@pytest.mark.parametrize("rate", [RATE, 44100])
@pytest.mark.parametrize("seconds", [0.0, 0.013, 1.1, 3.7, 7.777, 10.0])
def test_a_stream_goes_on_elsewhere_from_bytes(tiny: Recognizer, fresh: Recognizer, rate: int, seconds: float) -> None:
    audio = babble(10, seed=1, rate=rate)
    n = round(seconds * rate)
    stream = tiny.stream(rate)
    results = [r for piece in cut(audio[:n], [3333]) for r in stream.feed(piece)]
    data = stream.state.to_bytes()
    resumed = fresh.stream(state=StreamState.from_bytes(data))
    assert resumed.state.to_bytes() == data and resumed.sample_rate == rate
    results += [r for piece in cut(audio[n:], [3333]) for r in resumed.feed(piece)] + resumed.finish()
    assert segments(results) == streamed(tiny, [audio], rate)
    assert resumed.duration == 10.0


def test_a_state_is_not_used_up(tiny: Recognizer) -> None:
    audio = babble(4, seed=1)
    stream = tiny.stream()
    stream.feed(audio[:30000])
    state = StreamState.from_bytes(stream.state.to_bytes())
    ends = []
    for _ in range(2):
        copy = tiny.stream(state=state)
        ends.append(segments(copy.feed(audio[30000:]) + copy.finish()))
    assert ends[0] == ends[1] and state.to_bytes() == stream.state.to_bytes()
    copy = tiny.stream(state=copy.state)
    with pytest.raises(StateError, match="finished"):
        copy.feed(audio)


def test_states_are_measured_in_bytes(tiny: Recognizer) -> None:
    stream = tiny.stream(44100)
    stream.feed(babble(3, rate=44100))
    state = stream.state
    assert -20_000 < len(state.to_bytes()) - state.nbytes < 4000
    assert len(state.search.emissions) > 0


@settings(deadline=None, max_examples=30)
@given(st.binary(max_size=100), st.booleans())
def test_garbage_is_no_stream(data: bytes, magic: bool) -> None:
    with pytest.raises(StateError, match="not a serialised stream") as caught:
        StreamState.from_bytes(b"asr-stream-1\n" + data if magic else data)
    assert "\n" not in str(caught.value)


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_damage_is_refused_or_harmless(tiny: Recognizer, data: st.DataObject) -> None:
    """Any changed bytes: a StateError, or a stream that still works; never another exception."""
    good = _mid_stream(tiny).state.to_bytes()
    broken = bytearray(good)
    for _ in range(data.draw(st.integers(1, 3))):
        broken[data.draw(st.integers(0, min(len(good) - 1, 700)))] = data.draw(st.integers(0, 255))
    del broken[data.draw(st.integers(len(broken) - 50, len(broken))) :]
    try:
        stream = tiny.stream(state=StreamState.from_bytes(bytes(broken)))
        stream.feed(np.zeros(1000, np.float32))
        stream.flush()
    except (StateError, AudioError) as error:  # AudioError: a sample rate that there is not
        assert "\n" not in str(error)


_STREAMS: dict[int, Any] = {}


def _mid_stream(recognizer: Recognizer) -> Any:
    if id(recognizer) not in _STREAMS:
        stream = recognizer.stream(44100)
        stream.feed(babble(1.5, rate=44100))
        _STREAMS[id(recognizer)] = stream
    return _STREAMS[id(recognizer)]


def test_states_of_another_model_or_rate(tiny: Recognizer, tmp_path: Path) -> None:
    def state(change: Callable[[StreamState], Any]) -> StreamState:
        copy = StreamState.from_bytes(_mid_stream(tiny).state.to_bytes())
        change(copy)
        return copy

    with pytest.raises(StateError, match="the state is of a stream of 44100 Hz, not of 16000 Hz"):
        tiny.stream(16000, state=state(lambda s: None))
    wider, trained = (Recognizer.load(tiny_folder(tmp_path / str(n), seed=n, hidden=26)) for n in (3, 4))
    for other in (wider, trained):
        with pytest.raises(StateError, match="the state is of another model than 'tiny' as it is here"):
            tiny.stream(state=other.stream().state)
    with pytest.raises(StateError, match="the state is of another model than 'tiny'"):  # of the same shape
        wider.stream(state=trained.stream().state)
    alien = wider.stream()
    alien.state.model = tiny.folder.fingerprint  # a forged state
    with pytest.raises(StateError, match=r"its hidden has shape \(3, 1, 26\), here it is \(3, 1, 24\)"):
        tiny.stream(state=alien.state)
    changes: list[tuple[Callable[[StreamState], Any], str]] = [
        (lambda s: s.search.emissions.append(np.zeros((2, 5), np.float32)), "its search does not fit this one"),
        (lambda s: s.search.ints.__setitem__((0, NODE), 10_000), "its search does not fit this one"),
        (lambda s: s.search.ints.__setitem__((0, HISTORY), s.search.history.size), "its search does not fit this one"),
        (lambda s: setattr(s.features, "samples", s.features.samples[:, :100]), "does not hold the audio of one"),
        (lambda s: setattr(s.features, "samples", torch.zeros(1, 2000)), "does not hold the audio of one"),
        (lambda s: setattr(s, "network", tiny.model.begin(2)), "does not hold the audio of one"),
        (lambda s: setattr(s, "resampler", None), "lacks the resampler's"),
        (lambda s: setattr(s, "sample_rate", 48000), "does not fit one of 48000 -> 16000 Hz"),
    ]
    for change, reason in changes:
        with pytest.raises(StateError, match=reason):
            tiny.stream(state=state(change))


# --- files and arrays -----------------------------------------------------------------------------------------------


def test_one_truth(tiny: Recognizer, tiny_path: Path, tmp_path: Path) -> None:
    """A file through the command, the API, a stream, and among others in a batch."""
    audio = as_samples((babble(7, seed=3) * 32767).astype(np.int16)) * np.float32(32768 / 32767)
    path = write_wav(tmp_path / "a.wav", audio)
    integers = read_wav(path)
    expected = streamed(tiny, cut(integers, [1600]))
    result = tiny.transcribe(path)
    assert list(result.segments) == expected and len(result.words) > 20
    assert (result.duration, result.model, result.source) == (7.0, "tiny", str(path))
    assert tiny.transcribe(str(path)) == result
    with path.open("rb") as file:
        assert tiny.transcribe(file) == result
    assert tiny.transcribe(io.BytesIO(path.read_bytes())).segments == result.segments
    assert tiny.transcribe(integers, RATE).segments == result.segments
    assert tiny.transcribe(integers / 32768.0, RATE).segments == result.segments
    others = [babble(s, seed=s) for s in (1, 9)]
    batch = tiny.transcribe_many([others[0], path, others[1]], sample_rate=RATE)
    assert batch[1] == result
    out, err = io.StringIO(), io.StringIO()
    assert transcribe(Options((str(path),), model=str(tiny_path)), stdout=out, stderr=err) == 0
    assert (out.getvalue().split(), err.getvalue()) == (result.text.split(), "")


def test_a_channel_can_be_chosen(tiny: Recognizer, tmp_path: Path) -> None:
    left, right = babble(3, seed=1), babble(3, seed=2)
    path = write_wav(tmp_path / "stereo.wav", np.stack([left, right], axis=1).reshape(-1), channels=2)
    one, two = (tiny.transcribe(path, channel=c) for c in (0, 1))
    assert one.text and two.text and one.text != two.text


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_no_audio_is_no_text(tiny: Recognizer, rate: int) -> None:
    assert tiny.transcribe(np.zeros(0, np.float32), rate) == Transcript((), 0.0, "tiny")
    one = tiny.transcribe(np.zeros(1, np.float32), rate)
    assert one.duration == 1 / rate and one.text == tiny.transcribe(np.zeros(1, np.int16), rate).text


def test_arrays_of_every_kind(tiny: Recognizer) -> None:
    audio = babble(2, seed=1)
    expected = tiny.transcribe(audio, RATE)
    frozen = audio.copy()
    frozen.setflags(write=False)
    spread = np.repeat(audio, 2)[::2]
    for same in (frozen, spread, audio[::-1].copy()[::-1], audio.astype(np.float64)):
        assert tiny.transcribe(same, RATE) == expected
    with pytest.raises(UsageError, match="samples need their sample_rate"):
        tiny.transcribe(audio)
    for wrong, reason in [
        (np.stack([audio, audio]), r"one row of mono audio, got shape \(2, 32000\): mix the channels down"),
        (audio.astype(np.int32), "must be float in .* or int16, got int32"),
        (audio > 0, "got bool"),
        (np.where(np.arange(len(audio)) == 9, np.nan, audio), "hold NaN or infinity"),
        (np.where(np.arange(len(audio)) == 9, np.inf, audio), "hold NaN or infinity"),
    ]:
        with pytest.raises(AudioError, match=reason):
            tiny.transcribe(wrong, RATE)
    for rate in (7999, 48001, 0, -16000, 16000.5):
        with pytest.raises(AudioError, match="is outside the range"):
            tiny.transcribe(audio, rate)  # type: ignore[arg-type]


def test_a_bad_file_among_good_ones(tiny: Recognizer, tmp_path: Path) -> None:
    good = [write_wav(tmp_path / f"{i}.wav", babble(i + 1, seed=i)) for i in range(5)]
    (tmp_path / "text.wav").write_text("this is no audio at all")
    sources: list[Any] = [good[4], tmp_path / "text.wav", good[0], tmp_path / "missing.wav", np.zeros(9), good[2]]
    done: dict[int, Transcript | AsrError] = {}
    heard: dict[int, float] = {}
    results = tiny.transcribe_many(sources, batch_size=3, on_done=done.__setitem__, on_progress=heard.__setitem__)
    assert [done[i] for i in range(6)] == results
    assert [type(r) for r in results] == [Transcript, AudioError, Transcript, AudioError, UsageError, Transcript]
    for i in (0, 2, 5):
        assert results[i] == tiny.transcribe(sources[i])
    assert heard == {0: 5.0, 2: 1.0, 5: 3.0}
    assert list(done) != sorted(done)  # as each ends
    assert tiny.transcribe_many([]) == []
    with pytest.raises(AudioError, match="missing"):
        tiny.transcribe(tmp_path / "missing.wav")


def test_a_damaged_file_keeps_its_text_and_says_so(tiny: Recognizer, tiny_path: Path, tmp_path: Path) -> None:
    audio = babble(6, seed=3)
    path = write_wav(tmp_path / "cut.wav", audio)
    path.write_bytes(path.read_bytes()[: 44 + 2 * 4 * RATE])
    result = tiny.transcribe(path)
    assert result.duration == 4.0 and len(result.words) > 5
    assert "cut.wav" in result.metadata["warning"] and "\n" not in result.metadata["warning"]
    whole = tiny.transcribe(write_wav(tmp_path / "whole.wav", audio[: 4 * RATE]))
    assert result.segments == whole.segments and whole.metadata == {}
    out, err = io.StringIO(), io.StringIO()
    status = transcribe(Options((str(path),), model=str(tiny_path)), stdout=out, stderr=err)
    assert (status, out.getvalue().split()) == (3, result.text.split())
    assert err.getvalue().startswith(f"asr: error: {path}: ") and "what could be read is transcribed" in err.getvalue()


# --- loading --------------------------------------------------------------------------------------------------------


def test_loading(tiny: Recognizer, tiny_path: Path) -> None:
    assert tiny.sample_rate == RATE
    assert tiny.algorithmic_latency_ms == 280  # a step of 40 ms and a look-ahead of 4 and 2 steps
    with pytest.raises(ModelError, match="there is no model 'nothing'"):
        Recognizer.load("nothing")
    for device in ("gpu", "meta", "cuda:99", "cpu:x"):
        with pytest.raises(UsageError, match="device"):
            Recognizer.load(tiny_path, device=device)


def test_a_model_without_a_lexicon_gives_its_units(tiny_path: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(tiny_path, tmp_path / "greedy"))
    Lexicon({}).save(path / LEXICON)
    update_config(path, dataclasses.replace(read_config(path), head="characters"))
    recognizer, audio = Recognizer.load(path), babble(10, seed=1)
    found = streamed(recognizer, [audio])
    check_times(found, 10.0)
    assert sum(len(s.text) for s in found) > 20
    assert streamed(recognizer, cut(audio, [1600])) == found
    stream = recognizer.stream()
    results = stream.feed(audio[:40000])
    stream = recognizer.stream(state=StreamState.from_bytes(stream.state.to_bytes()))
    assert segments(results + stream.feed(audio[40000:]) + stream.finish()) == found


def test_importing_the_package_is_cheap() -> None:
    code = "import sys, asr; asr.Transcript; print('torch' in sys.modules, 'numpy' in sys.modules, dir(asr))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("False False") and "'Recognizer'" in done.stdout
    with pytest.raises(AttributeError, match="no attribute 'Recogniser'"):
        _ = asr.Recogniser


# --- an hour --------------------------------------------------------------------------------------------------------


def _resident() -> float:
    """Megabytes of memory of this process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6


@pytest.mark.slow
@pytest.mark.parametrize(("minutes", "pauses"), [(60, True), (10, False)])
def test_cost_is_constant_over_a_long_stream(tiny_path: Path, minutes: int, pauses: bool) -> None:
    """An hour of babble in chunks of a second, and ten minutes without any pause to cut in."""
    stream = Recognizer.load(tiny_path, search=SearchConfig(beam=5, tokens=5)).stream(partials=not pauses)
    chunks = cut(babble(60, seed=1, pauses=pauses), [RATE])
    seconds, sizes, traced, resident, found, last = [], [], [], [], 0, 0.0
    if not pauses:
        tracemalloc.start(1)  # it doubles the time
    for _ in range(minutes):
        began = time.process_time()
        for piece in chunks:
            for result in stream.feed(piece):
                if isinstance(result, Segment):
                    assert result.index == found and result.start >= last
                    found, last = found + 1, result.end
            sizes.append(stream.state.nbytes)
        seconds.append(time.process_time() - began)
        traced.append(tracemalloc.get_traced_memory()[0])
        resident.append(_resident() if sys.platform == "linux" else 0.0)
    tracemalloc.stop()
    tenth = minutes // 10
    assert minutes * 60 - 10 < last <= minutes * 60 and found > minutes * (3 if pauses else 5)
    assert stream.state.samples_in == minutes * 60 * RATE
    assert sum(seconds[-tenth:]) <= 1.5 * sum(seconds[:tenth])
    longest = 1.5 * stream.options.endpoint.longest_s * 1000 / STEP_MS  # steps of a segment
    assert max(sizes) < stream.recognizer.stream().state.nbytes + longest * 9 * 4 + 20_000
    assert traced[-1] - traced[0] < 2e5
    assert resident[-1] - resident[0] < 20


# --- the shipped model ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def english() -> Recognizer:
    if not (models_folder() / "en" / "config.json").is_file():
        pytest.skip("models/en is not there: train it, or get it with the repository")
    return Recognizer.load("en", threads=1)


def errors(reference: str, text: str) -> int:
    from asr.training.metrics import edit_distance

    return edit_distance(reference.split(), text.split())


def test_the_shipped_model_on_clips(english: Recognizer, clips: dict[Path, str]) -> None:
    """Synthesised voices are not what it was trained on: half of the words, and streaming equals offline."""
    wrong = 0
    for (path, text), result in zip(clips.items(), english.transcribe_many(clips), strict=True):
        assert isinstance(result, Transcript)
        wrong += errors(text, result.text)
        check_times(result.segments, result.duration)
        samples = read_wav(path)
        for size in (1600, 2477):
            assert streamed(english, cut(samples, [size])) == list(result.segments)
    assert wrong <= 0.5 * sum(len(text.split()) for text in clips.values())


def test_words_on_the_last_sample_of_a_clip_are_not_lost(english: Recognizer, clips: dict[Path, str]) -> None:
    for path in clips:
        samples = as_samples(read_wav(path))
        loud = np.flatnonzero(np.abs(samples) > 0.02)[-1]
        short = english.transcribe(samples[: loud + 1], RATE)
        padded = np.concatenate([samples[: loud + 1], np.zeros(3 * RATE, np.float32)])
        long = english.transcribe(padded, RATE)
        assert errors(long.text, short.text) <= 1
        assert len(short.words) >= len(long.words) - 1


def test_a_stream_of_the_shipped_model_moves(english: Recognizer, clips: dict[Path, str]) -> None:
    path = next(iter(clips))
    samples = read_wav(path)
    stream = english.stream()
    results = stream.feed(samples[:30011])
    moved = english.stream(state=StreamState.from_bytes(stream.state.to_bytes()))
    results += moved.feed(samples[30011:]) + moved.finish()
    assert segments(results) == streamed(english, [samples])
    assert math.isclose(moved.duration, len(samples) / RATE)
    silence = english.transcribe(np.zeros(10 * RATE, np.float32), RATE)
    assert silence.text == ""
