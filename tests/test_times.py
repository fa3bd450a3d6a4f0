"""Word times: in order, inside the audio, longer than nothing, whatever the shifts; benchmarks/times.py."""

import dataclasses
import shutil
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_recognizer import cut, streamed
from tiny_model import babble

from asr import Recognizer
from asr.checkpoint import read_config, update_config
from asr.decoding.confidence import TimesConfig, word_times
from asr.decoding.hypothesis import TimedWord
from asr.errors import ConfigError
from asr.lexicon import Lexicon
from asr.results import Partial

RATE = 16000
SHIFTS = [TimesConfig(-50.0, 25.0), TimesConfig(120.0, -200.0), TimesConfig(-400.0, 400.0)]


def in_order(times: list[tuple[float, float]], earliest: float, limit: float) -> bool:
    edges = [earliest, *(t for pair in times for t in pair), limit]
    return edges == sorted(edges)


def test_shifts_by_hand() -> None:
    words = [TimedWord("a", 0, 2), TimedWord("b", 4, 5), TimedWord("c", 20, 20)]
    assert word_times(words, 10, 0.0, 9.0, TimesConfig()) == [(0.4, 0.52), (0.56, 0.64), (1.2, 1.24)]
    shifted = word_times(words, 10, 0.37, 1.25, TimesConfig(-50.0, 25.0))
    assert shifted == [(0.37, 0.51), (0.51, 0.665), (1.15, 1.25)]


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(0, 5)), max_size=8),
    st.integers(0, 50),
    st.integers(0, 2000),
    st.integers(0, 3000),
    st.floats(-500, 500),
    st.floats(-500, 500),
)
def test_any_words_lie_between_their_limits(
    gaps: list[tuple[int, int]], origin: int, earliest: int, room: int, start: float, end: float
) -> None:
    words, at = [], 0
    for gap, length in gaps:
        words.append(TimedWord("w", at + gap, at + gap + length))
        at += gap + length
    limit = (earliest + room) / 1000
    times = word_times(words, origin, earliest / 1000, limit, TimesConfig(start, end))
    assert len(times) == len(words) and in_order(times, earliest / 1000, limit)
    if room >= 20 * len(words):
        assert all(b - a >= 0.0195 for a, b in times)


def test_a_state_that_lies_about_the_past_moves_no_word_out_of_the_audio() -> None:
    assert word_times([TimedWord("a", 0, 1)], 0, 99.0, 2.0, TimesConfig()) == [(2.0, 2.0)]


@pytest.fixture(scope="module", params=SHIFTS, ids=str)
def shifted(request: pytest.FixtureRequest, tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Recognizer:
    path = tmp_path_factory.mktemp("shifted") / "tiny"
    shutil.copytree(tiny_path, path)
    update_config(path, dataclasses.replace(read_config(path), times=request.param))
    return Recognizer.load(path, threads=1)


@settings(max_examples=8, deadline=None)
@given(st.lists(st.integers(150, 20_000), min_size=1, max_size=5), st.integers(0, 2), st.integers(8_000, 96_000))
def test_times_of_any_cutting(shifted: Recognizer, sizes: list[int], seed: int, length: int) -> None:
    """Across segments, too: the first word of one does not begin before the last word of the one before it ends."""
    audio = babble(6, seed)[:length]
    found = streamed(shifted, cut(audio, sizes))
    assert found == streamed(shifted, [audio])
    times = [(w.start, w.end) for s in found for w in s.words]
    assert in_order(times, 0.0, len(audio) / RATE)
    assert all(a < b for a, b in times)


def test_partials_lie_inside_the_audio(shifted: Recognizer) -> None:
    stream, audio, heard = shifted.stream(), babble(6, 1), 0
    for piece in cut(audio, [1600]):
        for result in stream.feed(piece):
            assert 0 <= result.start <= result.end <= stream.duration
            heard += isinstance(result, Partial)
    assert heard > 10


def test_a_segment_may_begin_before_its_first_spike(tiny: Recognizer, shifted: Recognizer) -> None:
    shift = shifted.folder.config.times.start_shift_ms
    plain, moved = (streamed(r, [babble(10, 1)]) for r in (tiny, shifted))
    assert [s.text for s in plain] == [s.text for s in moved] and len(plain) > 2
    changes = [round(1000 * (b.start - a.start)) for a, b in zip(plain, moved, strict=True)]
    assert all(c * (1 if shift > 0 else -1) >= 0 for c in changes[1:] if shift > -100)
    assert any(changes)


def test_impossible_shifts() -> None:
    with pytest.raises(ConfigError, match="start_shift_ms"):
        TimesConfig(start_shift_ms=-501.0)


def test_the_benchmark_finds_the_phones_of_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    sys.modules.pop("times", None)
    import times  # type: ignore[import-not-found]

    lexicon = Lexicon({"no": [("N", "OW")], "tea": [("T", "IY")], "eat": [("IY", "T"), ("IY", "T", "S")]})
    phones = [
        (p, i / 10, (i + 1) / 10) for i, p in enumerate(["N", "OW", "T", "IY", "IY", "D"])
    ]  # the last one differs
    assert times.words_of(["no", "tea", "eat"], phones, lexicon) == [
        ("no", 0.0, 0.2), ("tea", 0.2, 0.4), ("eat", 0.4, 0.6),
    ]  # fmt: skip
    assert times.first_steps([0, 3, 3, 0, 3, 4, 4]) == [1, 4, 5]
    truth = [("a", 0.0, 0.1), ("b", 0.1, 0.2), ("c", 0.2, 0.3)]
    assert times.pair(truth, [TimedWord("a", 0, 0), TimedWord("c", 5, 6)]) == [(0, 0.0, 0.1), (1, 0.2, 0.3)]
