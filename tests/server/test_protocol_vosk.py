"""The vosk protocol: one reply for each frame, and the shapes that its clients read."""

import json
from typing import Any

import pytest
from fake_engine import drive
from hypothesis import given, settings
from hypothesis import strategies as st
from wire import HOSTILE, adapter, audio, check_outcome, closes, messages, objects, talk

from asr.engine import Flushed, Output
from asr.results import Partial, Segment, Word
from server.protocols.actions import Note, Open

PATH = "/vosk"
EOF = '{"eof" : 1}'


def config(**keys: Any) -> str:
    return json.dumps({"config": keys})


def test_the_sequence_of_the_example_client() -> None:
    """websocket/test.py of vosk-server: a config, then frame and reply in turns, then eof and one reply."""
    a = adapter("/")
    replies = messages(talk(a, '{ "config" : { "sample_rate" : 16000 } }', *[audio(0.5)] * 8, EOF))
    assert len(replies) == 9
    assert replies[0] == {"partial": ""} and replies[1] == {"partial": "alpha"} == replies[2]
    assert replies[5] == {
        "result": [
            {"conf": 0.95, "end": 0.9, "start": 0.1, "word": "alpha"},
            {"conf": 0.95, "end": 1.9, "start": 1.1, "word": "bravo"},
            {"conf": 0.95, "end": 2.9, "start": 2.1, "word": "charlie"},
        ],
        "text": "alpha bravo charlie",
    }
    assert replies[6] == {"partial": ""}
    assert replies[-1]["text"] == "delta" and replies[-1]["result"][0]["start"] == 3.1


@pytest.mark.parametrize("eof", ['{"eof":1}', '{"eof" : 1}', ' { "eof"\n: 1 } ', '{"eof": true}'])
def test_eof_with_any_spacing(eof: str) -> None:
    a = adapter(PATH)
    out = talk(a, audio(1, 8000), eof)
    assert len(messages(out)) == 2 and messages(out)[1]["text"] == "alpha"
    assert closes(out)[0].code == 1000


def test_eof_without_audio() -> None:
    out = talk(adapter(PATH), EOF)
    assert messages(out) == [{"text": ""}] and closes(out)[0].code == 1000


def test_default_rate_is_8000() -> None:
    actions = adapter(PATH).binary(b"\0\0", 0.0)
    assert isinstance(actions[0], Open) and actions[0].config.sample_rate == 8000


@pytest.mark.parametrize("rate", [16000, 16000.0, "16000"])
def test_rates_as_vosk_reads_them(rate: Any) -> None:
    a = adapter(PATH)
    a.text(config(sample_rate=rate), 0.0)
    actions = a.binary(b"\0\0", 0.0)
    assert isinstance(actions[0], Open) and actions[0].config.sample_rate == 16000


def test_words_off() -> None:
    assert messages(talk(adapter(PATH), config(words=0), audio(1, 8000), EOF))[-1] == {"text": "alpha"}


def test_several_endpoints_in_one_frame_are_merged() -> None:
    replies = messages(talk(adapter(PATH), audio(7, 8000)))
    assert len(replies) == 1 and replies[0]["text"] == "alpha bravo charlie delta echo foxtrot"
    assert len(replies[0]["result"]) == 6


def test_reset_gives_one_final_and_stays() -> None:
    a = adapter(PATH)
    out = talk(a, audio(1, 8000), '{"reset":1}', audio(1, 8000), EOF)
    assert [m.get("text", m.get("partial")) for m in messages(out)] == ["alpha", "alpha", "bravo", "bravo"]
    assert messages(out)[1]["text"] == "alpha"
    assert messages(talk(adapter(PATH), '{"reset":1}')) == [{"text": ""}]


def test_alternatives() -> None:
    replies = messages(talk(adapter(PATH), config(max_alternatives=2), audio(1, 8000), audio(3, 8000), EOF))
    assert replies[0] == {"partial": "alpha"}
    assert [x["text"] for x in replies[1]["alternatives"]] == ["alpha bravo charlie", "alpha bravo charlie 0"]
    first = replies[1]["alternatives"][0]
    assert first["confidence"] == 0.9 and first["result"][0] == {"end": 0.9, "start": 0.1, "word": "alpha"}
    assert messages(talk(adapter(PATH), config(max_alternatives=2), EOF)) == [
        {"alternatives": [{"text": "", "confidence": 1.0}]}
    ]


def test_phrases_that_cannot_be_heard_are_passed_over_and_counted() -> None:
    a = adapter(PATH)
    actions = talk(a, config(phrase_list=["mango", "§", "[unk]"]), audio(1, 8000), EOF)
    assert [x.values for x in actions if isinstance(x, Note)] == [{"count": 1}]
    assert messages(actions)[-1]["text"] == "alpha"
    assert a.config.options["hotwords"] == ["mango"]


def test_frames_wait_until_they_are_decoded() -> None:
    a = adapter(PATH)
    drive(a, a.binary(b"\0", 0.0))
    a = adapter(PATH)
    a.binary(b"\0\0", 0.0)
    a.opened({}, 0, 0.0)
    a.binary(b"\0\0", 0.0)
    a.binary(b"", 0.0)
    segment = Segment("hi", 0.1, 0.2, (Word("hi", 0.1, 0.2),))
    assert a.event(Output((Partial(0, 0.0, 0.1, "", "h"),), 0, 1, 0.0), 0.0) == []
    assert messages(a.event(Output((segment,), 1, 1, 0.0), 0.0)) == [
        {"result": [{"conf": 1.0, "end": 0.2, "start": 0.1, "word": "hi"}], "text": "hi"}
    ]
    assert messages(a.event(Output((), 2, 1, 0.0), 0.0)) == [{"partial": ""}, {"partial": ""}]
    assert messages(a.binary(b"", 0.0)) == [{"partial": ""}]


def test_frames_that_were_not_answered_are_at_a_reset() -> None:
    a = adapter(PATH)
    a.binary(b"\0\0", 0.0)
    a.opened({}, 0, 0.0)
    assert messages(a.event(Flushed("", (), True), 0.0)) == [{"partial": ""}, {"text": ""}]


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (config(model="/etc/passwd"), "usage"),
        (config(model="../../models/en"), "usage"),
        (config(model=["en"]), "usage"),
        (config(sample_rate=4000), "audio"),
        (config(sample_rate="fast"), "config"),
        (config(sample_rate=True), "config"),
        (config(phrase_list="x"), "config"),
        (config(phrase_list=[1]), "config"),
        ('{"config": 5}', "message"),
        ('{"hello": 1}', "message"),
        ("hello", "json"),
    ],
)
def test_what_cannot_be_is_closed_with_a_reason(message: str, code: str) -> None:
    out = talk(adapter(PATH), message)
    assert messages(out) == [] and closes(out)[0].error == code


def test_own_model_and_unknown_keys_are_welcome() -> None:
    assert talk(adapter(PATH), config(model="en", colour="red")) == []


def test_late_config_changes_nothing() -> None:
    replies = messages(talk(adapter(PATH), audio(1, 8000), config(words=False), EOF))
    assert "result" in replies[-1]


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text(text: str) -> None:
    a = adapter(PATH)
    out = talk(a, audio(1, 8000), text)
    check_outcome(a, out)
    assert a.phase == "closed"


KEYS = ("config", "eof", "reset", "sample_rate", "words", "max_alternatives", "phrase_list", "model")
VALUES = (1, 0, {}, {"sample_rate": 16000}, {"words": False}, {"max_alternatives": 3}, {"phrase_list": ["a", "§"]})
SOUND = (config(sample_rate=16000), config(max_alternatives=2), '{"reset":1}', EOF)


@settings(max_examples=60)
@given(st.lists(objects(KEYS, VALUES) | st.sampled_from(SOUND) | st.binary(max_size=9), max_size=9))
def test_any_order_of_anything(said: list[str | bytes]) -> None:
    a = adapter(PATH)
    check_outcome(a, talk(a, *said))


@given(st.lists(st.integers(0, 40000), max_size=12), st.lists(st.integers(0, 11), max_size=3))
def test_one_reply_a_frame_whatever_its_size(sizes: list[int], resets: list[int]) -> None:
    said: list[str | bytes] = []
    for i, size in enumerate(sizes):
        said += [b"\0" * size] + (['{"reset":1}'] if i in resets else [])
    replies = messages(talk(adapter(PATH), *said, EOF))
    assert len(replies) == len(said) + 1
    words = [w for r in replies if "text" in r for w in r["text"].split()]
    assert len(words) == sum(sizes) // 16000
