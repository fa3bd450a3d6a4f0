"""Readable text: the tagger's streaming, its file, and what the formatter makes of segments."""

import dataclasses
import json
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr import Recognizer
from asr.checkpoint import TAGGER, find_model, models_folder, read_config, update_config
from asr.errors import ConfigError, ModelError, StateError
from asr.readable import Formatter
from asr.readable.tagger import TABLES, Tag, Tagger, TaggerConfig, TaggerState
from asr.readable.words import (
    CAPITAL,
    CASES,
    COMMA,
    EXCLAMATION,
    LOWER,
    MARKS,
    MIXED,
    NONE,
    QUESTION,
    STOP,
    UPPER,
    Words,
    capital,
    split_clitic,
)
from asr.readable.writing import render_readable
from asr.results import Segment, Transcript, Word
from asr.writers import to_json

STEMS = ("the", "cat", "tom", "i", "see", "is", "a", "two")
CONFIG = TaggerConfig(embedding=6, hidden=8, merged=7, ahead=3, buckets=11)
SHIPPED = models_folder() / "en"
PLAIN = "the cat is tom's and i see a dog at twenty two past nine o'clock is it tom"
SAID = PLAIN.split()


def random_tagger(config: TaggerConfig = CONFIG, seed: int = 0) -> Tagger:
    rng = np.random.default_rng(seed)
    weights = {name: rng.normal(size=shape).astype(np.float16) for name, shape in config.shapes(len(STEMS)).items()}
    return Tagger(config, Words.of(STEMS, ["McDonald", "iPhone"], config.buckets), weights)


def same(a: list[Tag], b: list[Tag]) -> bool:
    return len(a) == len(b) and all(
        np.array_equal(x.cases, y.cases) and np.array_equal(x.marks, y.marks) for x, y in zip(a, b, strict=True)
    )


# --- words ----------------------------------------------------------------------------------------------------------


def test_clitics_and_features() -> None:
    words = Words.of(STEMS, (), 11)
    assert split_clitic("tom's") == ("tom", "'s")
    assert split_clitic("don't") == ("don't", "")
    stem, first, last, clitic = words.features("tom's")
    assert (stem, clitic) == (3, 1)
    assert words.features("tom") == (stem, first, last, 0)
    assert words.features("bottom")[0] == 0
    assert words.features("bottom")[2] == last  # the same last letters
    assert words.encode([]).shape == (0, 4)


@pytest.mark.parametrize(
    ("word", "case", "written"),
    [
        ("cat", LOWER, "cat"),
        ("cat", CAPITAL, "Cat"),
        ("nasa's", UPPER, "NASA's"),
        ("mcdonald's", MIXED, "McDonald's"),
        ("iphone", MIXED, "iPhone"),
        ("cat", MIXED, "Cat"),
        ("'twas", CAPITAL, "'Twas"),
    ],
)
def test_cases(word: str, case: int, written: str) -> None:
    assert Words.of(STEMS, ["McDonald", "iPhone"], 11).write(word, case) == written


def test_capital_of_nothing() -> None:
    assert capital("'") == "'"


# --- the tagger -----------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, len(SAID)), max_size=6))
def test_any_cutting_gives_the_same_tags(cuts: list[int]) -> None:
    tagger = random_tagger()
    edges = [0, *sorted(cuts), len(SAID)]
    state, tags = tagger.begin(), []
    for begin, end in pairwise(edges):
        some, state = tagger.step(SAID[begin:end], state)
        tags += some
        assert len(tags) == max(0, end - CONFIG.ahead)  # the delay is bounded
    assert same(tags + tagger.flush(state)[0], tagger.tag(SAID))


def test_a_step_leaves_its_state_alone() -> None:
    tagger = random_tagger()
    _, state = tagger.step(SAID[:5], tagger.begin())
    first = tagger.step(SAID[5:], state)[0]
    assert same(first, tagger.step(SAID[5:], state)[0])


def test_a_word_sees_its_future_only_up_to_a_flush() -> None:
    tagger = random_tagger()
    tags, state = tagger.step(SAID[:6], tagger.begin())
    rest, after = tagger.flush(state)
    assert same(tags + rest, tagger.tag(SAID[:6]))
    assert after.waiting == ()
    assert np.array_equal(after.h, state.h)  # but the text goes on
    assert not same(rest, tagger.tag(SAID)[len(tags) : 6])
    following = tagger.step(SAID[6:], after)[0]
    assert same(following, tagger.tag(SAID)[6 : 6 + len(following)])


def test_look_ahead_of_nothing() -> None:
    tagger = random_tagger(dataclasses.replace(CONFIG, ahead=0))
    tags, state = tagger.step(SAID, tagger.begin())
    assert len(tags) == len(SAID)
    assert tagger.flush(state)[0] == []


def test_tags_are_log_probabilities() -> None:
    tag = random_tagger().tag(["cat"])[0]
    assert np.exp(tag.cases).sum() == pytest.approx(1, abs=1e-5)
    assert np.exp(tag.marks).sum() == pytest.approx(1, abs=1e-5)
    assert tag.cases[tag.case] == tag.cases.max()
    assert tag.marks[tag.mark] == tag.marks.max()


def test_file_holds_the_whole_tagger(tmp_path: Path) -> None:
    tagger = random_tagger()
    size = tagger.save(tmp_path / "t.safetensors")
    assert size == (tmp_path / "t.safetensors").stat().st_size
    loaded = Tagger.load(tmp_path / "t.safetensors")
    assert loaded.config == tagger.config
    assert loaded.words == tagger.words
    for name, weights in tagger.weights.items():  # in half precision before; tables are rounded to 8 bits a row
        step = np.abs(weights).max(-1, keepdims=True) / 127 if name in TABLES else 0
        assert (np.abs(loaded.weights[name] - weights) <= 0.51 * step).all()
    loaded.save(tmp_path / "again.safetensors")
    assert same(Tagger.load(tmp_path / "again.safetensors").tag(SAID), loaded.tag(SAID))


def test_broken_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    with pytest.raises(ModelError, match="cannot be read"):
        Tagger.load(path)
    path.write_bytes(b"rubbish")
    with pytest.raises(ModelError, match="cannot be read"):
        Tagger.load(path)
    random_tagger().save(path)
    path.write_bytes(path.read_bytes().replace(b'"format":"1"', b'"format":"7"'))
    with pytest.raises(ModelError, match="format 1"):
        Tagger.load(path)


def test_impossible_taggers_are_refused() -> None:
    tagger = random_tagger()
    with pytest.raises(ModelError, match="do not fit"):
        Tagger(dataclasses.replace(CONFIG, hidden=9), tagger.words, tagger.weights)
    with pytest.raises(ModelError, match="NaN"):
        Tagger(CONFIG, tagger.words, {**tagger.weights, "merge.bias": np.full(7, np.nan)})
    with pytest.raises(ModelError, match="twice"):
        Words.of(["a", "a"], (), 3)
    with pytest.raises(ConfigError):
        TaggerConfig(hidden=0)


# --- the formatter --------------------------------------------------------------------------------------------------


class ScriptedTagger(Tagger):
    """Says of each word what two tables say: its case and the mark after it, with a given probability."""

    def __init__(self, cases: dict[str, int], marks: dict[str, int], sureness: float = 0.99) -> None:
        super().__init__(CONFIG, random_tagger().words, random_tagger().weights)
        self.case_of, self.mark_of, self.sureness = cases, marks, sureness

    def step(self, words: object, state: TaggerState) -> tuple[list[Tag], TaggerState]:
        return [self._say(word) for word in words], state  # type: ignore[attr-defined]

    def flush(self, state: TaggerState) -> tuple[list[Tag], TaggerState]:
        return [], state

    def _say(self, word: str) -> Tag:
        return Tag(
            self._sure(self.case_of.get(word, LOWER), len(CASES)), self._sure(self.mark_of.get(word, NONE), len(MARKS))
        )

    def _sure(self, index: int, size: int) -> np.ndarray:
        p = np.full(size, (1 - self.sureness) / (size - 1), dtype=np.float32)
        p[index] = self.sureness
        return np.log(p)


def scripted(cases: dict[str, int] | None = None, marks: dict[str, int] | None = None, sure: float = 0.99) -> Formatter:
    return Formatter(ScriptedTagger(cases or {}, marks or {}, sure))


def segment(text: str, start: float = 0.0, reason: str = "endpoint", index: int = 0) -> Segment:
    words = tuple(Word(w, start + i, start + i + 0.5, 0.5 + i / 100) for i, w in enumerate(text.split()))
    return Segment(text, start, start + len(words), words, index, 0.9, reason)


def test_sentences_run_on_over_segments() -> None:
    formatter = scripted({"tom": CAPITAL}, {"tom": QUESTION, "home": STOP})
    state, texts = formatter.begin(), []
    for text in ("where is", "my friend tom", "he went home", "today"):
        readable, state = formatter.step(segment(text), state)
        texts.append(readable.text)
    assert texts == ["Where is", "my friend Tom?", "He went home.", "Today"]


def test_a_recording_ends_in_a_mark_but_not_in_the_middle_of_a_sentence() -> None:
    assert scripted(sure=0.9).text("he went home") == "He went home."
    assert scripted(sure=0.99).text("he went to the") == "He went to the"
    assert scripted(marks={"home": COMMA}).text("he went home") == "He went home"
    assert scripted(marks={"home": EXCLAMATION}).text("he went home") == "He went home!"


def test_a_segment_that_was_cut_in_speech_ends_a_sentence_only_for_sure() -> None:
    for sure, text in ((0.7, "He went home"), (0.99, "He went home.")):
        formatter = scripted(marks={"home": STOP}, sure=sure)
        cut = formatter.step(segment("he went home", reason="max_length"), formatter.begin())[0]
        assert cut.text == text


def test_numbers_become_one_word_with_the_times_of_all() -> None:
    plain = segment("i am twenty six now", start=3.0)
    readable, _ = scripted({"i": CAPITAL}).step(plain, scripted().begin())
    assert readable.text == "I am 26 now"
    assert [(w.text, w.start, w.end) for w in readable.words][2] == ("26", 5.0, 6.5)
    assert readable.words[2].confidence == 0.52  # the lower one
    assert dataclasses.replace(readable, text=plain.text, words=plain.words) == plain  # nothing else is changed


def test_no_number_reaches_over_a_mark() -> None:
    formatter = scripted(marks={"twenty": COMMA, "six": STOP})
    assert formatter.text("he saw twenty six came") == "He saw 20, six. Came"


def test_marks_after_words_with_a_stop_of_their_own() -> None:
    assert scripted(marks={"m": STOP}).text("come at five p m then go home") == "Come at 5 p.m. Then go home"
    assert scripted(marks={"m": QUESTION}).text("is it five p m") == "Is it 5 p.m.?"


def test_letters_and_titles() -> None:
    formatter = scripted({"u": UPPER, "s": UPPER, "quilter": CAPITAL})
    assert formatter.text("the u s and mister quilter call a mister and") == "The US and Mr. Quilter call a mister and"


def test_numbers_at_the_start_of_a_sentence_are_left_alone() -> None:
    assert scripted().text("five thirty p m it is and") == "5:30 p.m. it is and"
    assert scripted({"iphone": MIXED}).text("iphone and") == "iPhone and"


def test_segments_without_word_times_and_without_words() -> None:
    formatter = scripted()
    assert formatter.step(Segment("twenty six", 1.0, 2.0), formatter.begin())[0].words == ()
    empty = Segment("", 1.0, 2.0)
    assert formatter.step(empty, formatter.begin())[0] == empty


def test_a_transcript_is_its_segments_one_by_one() -> None:
    formatter = Formatter(random_tagger(seed=3))
    parts = [segment(" ".join(SAID[i : i + 4]), float(i), "endpoint", i // 4) for i in range(0, len(SAID), 4)]
    state, steps = formatter.begin(), []
    for part in parts:
        readable, state = formatter.step(part, state)
        steps.append(readable)
    transcript = Transcript(tuple(parts), 20.0, "tiny", "x.wav", {"a": "b"})
    assert formatter.transcript(transcript) == dataclasses.replace(transcript, segments=tuple(steps))


@given(st.lists(st.sampled_from([*SAID, "five", "dollars", "mister", "p", "m", "hundred"]), min_size=1, max_size=12))
def test_words_keep_their_place(words: list[str]) -> None:
    formatter = Formatter(random_tagger(seed=5))
    plain = segment(" ".join(words))
    readable = formatter.step(plain, formatter.begin())[0]
    assert readable.text == " ".join(word.text for word in readable.words)
    starts, ends = [w.start for w in plain.words], [w.end for w in plain.words]
    assert readable.words[0].start == starts[0]
    assert readable.words[-1].end == ends[-1]
    for a, b in pairwise(readable.words):
        assert ends.index(a.end) + 1 == starts.index(b.start)  # every word stands in exactly one


def test_states_of_other_taggers_are_refused() -> None:
    other = Formatter(random_tagger(dataclasses.replace(CONFIG, hidden=5)))
    with pytest.raises(StateError, match="formatter"):
        scripted().step(segment("the cat"), other.begin())


# --- writing --------------------------------------------------------------------------------------------------------


def test_json_holds_both_and_ctm_is_plain() -> None:
    plain = Transcript((segment("i am twenty six", reason="eof"),), 5.0, "en", "x.wav")
    readable = scripted({"i": CAPITAL}, {"six": STOP}).transcript(plain)
    value = json.loads(render_readable(plain, readable, "json"))
    assert (value["text"], value["readable"]) == ("i am twenty six", "I am 26.")
    first = value["segments"][0]
    assert (first["text"], first["readable"]) == ("i am twenty six", "I am 26.")
    assert [w["text"] for w in first["words"]] == ["i", "am", "twenty", "six"]
    assert [(w["text"], w["start"], w["end"]) for w in first["readable_words"]][2] == ("26.", 2.0, 3.5)
    for key in ("readable", "readable_words"):
        first.pop(key)
    value.pop("readable")
    assert value == json.loads(to_json(plain))
    assert "twenty" in render_readable(plain, readable, "ctm")
    assert render_readable(plain, readable, "txt") == "I am 26.\n"
    assert "I am 26." in render_readable(plain, readable, "srt")
    assert "I am 26." in render_readable(plain, readable, "vtt")


# --- in a model folder ----------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tiny_path: Path, tmp_path: Path) -> Path:
    """The tiny model with a tagger of random weights."""
    path = tmp_path / "tiny"
    shutil.copytree(tiny_path, path)
    random_tagger(seed=2).save(path / TAGGER)
    update_config(path, read_config(path))
    return path


def test_a_model_folder_keeps_its_tagger(folder: Path) -> None:
    assert TAGGER in read_config(folder).files
    assert Formatter.load(find_model(folder)).tagger.words == random_tagger(seed=2).words


def test_a_model_without_a_tagger_says_so(tiny: Recognizer) -> None:
    with pytest.raises(ModelError, match="cannot write readable text"):
        tiny.readable(segment("the cat"))


def test_recognizers_make_results_readable(folder: Path) -> None:
    recognizer = Recognizer.load(folder, threads=1)
    plain = Transcript((segment("see twenty two", reason="eof"),), 3.0)
    readable = recognizer.readable(plain)
    assert readable.segments[0] == recognizer.readable(plain.segments[0])
    assert readable.words[-1].end == plain.words[-1].end


def test_the_command_line(folder: Path, clips: dict[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    from asr.cli import main

    clip = next(iter(clips))
    assert main(["transcribe", str(clip), "--model", str(folder), "--readable", "-f", "json", "--threads", "1"]) == 0
    value = json.loads(capsys.readouterr().out)
    formatter = Formatter.load(find_model(folder))
    plain = Transcript(
        tuple(
            Segment(s["text"], s["start"], s["end"], tuple(Word(**w) for w in s["words"]), reason=s["reason"])
            for s in value["segments"]
        ),
        value["duration"],
    )
    assert value["text"]
    assert value["readable"] == formatter.transcript(plain).text
    assert main(["transcribe", str(clip), "--model", str(folder), "--readable", "--threads", "1"]) == 0
    assert " ".join(capsys.readouterr().out.split()) == value["readable"]


def test_the_command_line_without_a_tagger(
    tiny_path: Path, clips: dict[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    from asr.cli import main

    assert main(["transcribe", str(next(iter(clips))), "--model", str(tiny_path), "--readable"]) == 5
    assert "cannot write readable text" in capsys.readouterr().err


# --- the shipped tagger ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped() -> Formatter:
    if not (SHIPPED / "config.json").is_file() or TAGGER not in read_config(SHIPPED).files:
        pytest.skip("models/en has no tagger here")
    return Formatter(Tagger.load(SHIPPED / TAGGER))


@pytest.mark.parametrize(
    ("said", "written"),
    [
        ("i live in london", "I live in London."),
        ("where do you live", "Where do you live?"),
        ("my name is tom and i work in new york", "My name is Tom and I work in New York."),
        ("she said that i'm late", "She said that I'm late."),
        (
            "thank you for joining us today it's great to have you",
            "Thank you for joining us today. It's great to have you.",
        ),
        ("it costs five dollars and ten cents", "It costs $5.10."),
    ],
)
def test_shipped_tagger_restores(shipped: Formatter, said: str, written: str) -> None:
    assert shipped.text(said).replace(",", "") == written.replace(",", "")  # commas are a matter of taste


def test_shipped_tagger_waits_for_the_end_of_a_sentence(shipped: Formatter) -> None:
    first, state = shipped.step(segment("we went to the"), shipped.begin())
    second, _ = shipped.step(segment("london bridge and then home", reason="eof"), state)
    assert first.text == "We went to the"
    assert second.text == "London Bridge and then home."
