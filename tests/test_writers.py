"""asr.writers: golden files, the rules of subtitle cues, and what odd transcripts become.

After a wanted change of a format: ``python tests/test_writers.py`` writes the golden files anew.
"""

import io
import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr.errors import UsageError
from asr.results import Segment, Transcript, Word
from asr.writers import FORMATS, CueOptions, cues, render, to_json, write

GOLDEN = Path(__file__).parent / "golden"


def segment(index: int, timed: list[tuple[str, float, float]], confidence: float | None = None) -> Segment:
    words = tuple(Word(text, start, end, confidence) for text, start, end in timed)
    text = " ".join(word.text for word in words)
    return Segment(text, words[0].start, words[-1].end, words, index, confidence, "endpoint")


def spoken(text: str, start: float, pauses: dict[int, float] | None = None) -> list[tuple[str, float, float]]:
    """Words of 60 ms a letter, 50 ms apart, with longer pauses before some of them (by index)."""
    words = []
    for index, word in enumerate(text.split()):
        start += (pauses or {}).get(index, 0.0)
        words.append((word, round(start, 3), round(start + 0.06 * len(word), 3)))
        start += 0.06 * len(word) + 0.05
    return words


LONG = (
    "it was the best of times it was the worst of times it was the age of wisdom it was the age of foolishness "
    "it was the epoch of belief it was the epoch of incredulity it was the season of light "
    "it was the season of darkness"
)
EXAMPLE = Transcript(
    segments=(
        segment(0, spoken("well yes", 0.32), 0.98765),
        segment(1, spoken(LONG, 2.0, {12: 0.3, 18: 0.4, 30: 0.7, 36: 1.5}), 0.75),
        Segment("", 40.0, 41.0, (), 2),
        Segment("tom & jerry <b>\tran -->  off", 3599.5, 3602.0, (), 3),
        segment(4, [("naïve", 3600 * 100 + 0.0004, 3600 * 100 + 0.9996)]),
    ),
    duration=3600 * 100 + 1.0,
    model="en",
    source="some folder/a talk.mp3",
    metadata={"device": "cpu"},
)
EMPTY = Transcript(segments=(), duration=0.5, model="en", source="silence.wav")


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("name", "transcript"), [("example", EXAMPLE), ("empty", EMPTY)])
def test_golden_files(name: str, transcript: Transcript, format: str) -> None:
    file = io.StringIO()
    write(transcript, format, file)
    assert file.getvalue() == (GOLDEN / f"{name}.{format}").read_bytes().decode("utf-8")


def test_unknown_format() -> None:
    with pytest.raises(UsageError, match="unknown format 'doc': choose from txt, json, srt, vtt, tsv, ctm"):
        render(EMPTY, "doc")


def test_json_holds_everything_on_one_line_if_wanted() -> None:
    line = to_json(EXAMPLE, indent=None)
    assert line.count("\n") == 1
    read = json.loads(line)
    assert read["text"] == EXAMPLE.text
    assert read["segments"][1]["words"][0] == {"text": "it", "start": 2.0, "end": 2.12, "confidence": 0.75}
    assert [s["reason"] for s in read["segments"]] == ["endpoint", "endpoint", "eof", "eof", "endpoint"]


word_texts = st.text("abcdefgh", min_size=1, max_size=12) | st.just("x" * 60)


@st.composite
def transcripts(draw: st.DrawFn) -> Transcript:
    at, segments = 0.0, []
    for index in range(draw(st.integers(0, 3))):
        words = []
        for text in draw(st.lists(word_texts, min_size=1, max_size=40)):
            at += draw(st.sampled_from([0.0, 0.04, 0.1, 0.6, 1.2, 5.0]))
            end = at + draw(st.sampled_from([0.04, 0.3, 0.5, 8.0]))
            words.append((text, at, end))
            at = end
        segments.append(segment(index, words))
    return Transcript(tuple(segments), at + draw(st.sampled_from([0.0, 0.3, 3.0])))


@given(transcripts())
def test_cues_obey_their_rules(transcript: Transcript) -> None:
    options = CueOptions()
    found = cues(transcript, options)
    assert " ".join(line for cue in found for line in cue.lines) == transcript.text
    words = list(transcript.words)
    ends = {round(s.words[-1].end * 1000) for s in transcript.segments}
    for cue, following in zip(found, [*found[1:], None], strict=False):
        inside = [words.pop(0) for _ in " ".join(cue.lines).split()]
        assert cue.start_ms == round(inside[0].start * 1000)
        assert cue.end_ms > cue.start_ms
        assert cue.end_ms >= round(inside[-1].end * 1000)
        assert cue.end_ms <= round(max(transcript.duration, inside[-1].end) * 1000)
        assert following is None or cue.end_ms <= following.start_ms
        assert not {round(w.end * 1000) for w in inside[:-1]} & ends  # no cue runs across the end of a segment
        if len(inside) > 1:
            assert len(cue.lines) <= options.max_lines
            assert inside[-1].end - inside[0].start <= options.max_duration_s
            assert all(b.start - a.end <= options.max_gap_s for a, b in pairwise(inside))
        assert all(len(line) <= options.max_line or " " not in line for line in cue.lines)


def test_cuts_stand_at_pauses_and_sizes_are_alike() -> None:
    text = " ".join(["seven"] * 20)  # 119 characters: at least two cues
    at_pause = cues(Transcript((segment(0, spoken(text, 0.0, {9: 0.4})),), 20.0))
    assert [sum(len(line.split()) for line in cue.lines) for cue in at_pause] == [9, 11]
    evenly = cues(Transcript((segment(0, spoken(text, 0.0)),), 20.0))
    assert [sum(len(line.split()) for line in cue.lines) for cue in evenly] == [10, 10]
    assert evenly[0].lines == ("seven seven seven seven seven",) * 2


def test_short_cues_stay_where_there_is_room() -> None:
    transcript = Transcript((segment(0, [("no", 1.0, 1.1)]), segment(1, [("yes", 1.5, 1.6)])), 1.9)
    assert [(cue.start_ms, cue.end_ms) for cue in cues(transcript)] == [(1000, 1500), (1500, 1900)]


def test_words_that_touch_after_rounding_do_not_overlap() -> None:
    timed = [("a" * 40, 0.0, 5.0004), ("b" * 40, 5.0004, 10.0)]
    first, second = cues(Transcript((segment(0, timed),), 10.0))
    assert first.end_ms == second.start_ms == 5000


def test_thousands_of_words_are_quick_to_cut() -> None:
    transcript = Transcript((segment(0, spoken(LONG * 40, 0.0)),), 1000.0)
    assert len(cues(transcript)) > 100


def test_ctm_has_no_field_with_a_space() -> None:
    transcript = Transcript((Segment("a b", 0.0, 1.0),), 1.0, source="", metadata={"channel": "2"})
    assert render(transcript, "ctm") == "- 2 0.000 0.250 a\n- 2 0.500 0.250 b\n"
    for line in render(EXAMPLE, "ctm").splitlines():
        assert re.fullmatch(r"a_talk 1 \d+\.\d{3} \d+\.\d{3} \S+( [01]\.\d{3})?", line)


if __name__ == "__main__":
    for name, transcript in (("example", EXAMPLE), ("empty", EMPTY)):
        for format in FORMATS:
            (GOLDEN / f"{name}.{format}").write_text(render(transcript, format), "utf-8", newline="\n")
