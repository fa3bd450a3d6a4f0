"""The project's own protocol: what is said, and what is said back."""

import json
from typing import Any

import pytest
from fake_engine import FakeEngine, FakeSession, drive
from hypothesis import given, settings
from hypothesis import strategies as st
from wire import HOSTILE, SESSION, adapter, audio, check_outcome, closes, messages, objects, talk

from asr.engine import Failed, Output
from server.protocols.actions import Configure, Feed, Open, Resume, Send

PATH = "/v1/stream"
EOF = '{"type":"eof"}'


def start(**keys: Any) -> str:
    return json.dumps({"type": "start", **keys})


def test_a_whole_conversation() -> None:
    out = talk(adapter(PATH), start(words=True), audio(2), audio(2.5), '{"type":"keepalive"}', EOF)
    said = messages(out)
    assert [m["type"] for m in said] == ["ready", "partial", "partial", "final", "partial", "final", "done"]
    assert said[0]["session"] == SESSION and said[0]["secret"] == "s3cret" and said[0]["protocol"] == 1
    assert said[1] == {"type": "partial", "seq": 1, "segment": 0, "start": 0.1, "end": 0.9, "stable": "",
                       "unstable": "alpha", "lag_ms": 20}  # fmt: skip
    assert said[2]["stable"] + said[2]["unstable"] == "alpha bravo"
    assert said[3]["text"] == "alpha bravo charlie" and said[3]["reason"] == "endpoint"
    assert said[3]["words"][2] == {"word": "charlie", "start": 2.1, "end": 2.9, "confidence": 0.95}
    assert said[5]["segment"] == 1 and said[5]["reason"] == "eof"
    assert [m["seq"] for m in said[1:-1]] == [1, 2, 3, 4, 5]
    assert said[-1] == {"type": "done", "audio_seconds": 4.5, "audio_samples": 72000, "segments": 2,
                        "processing_seconds": 0.25}  # fmt: skip
    assert closes(out)[0].code == 1000


def test_audio_first_means_the_defaults() -> None:
    a = adapter(PATH)
    actions = a.binary(b"\0\0", 0.0)
    assert isinstance(actions[0], Open) and actions[1] == Feed(b"\0\0")
    c = actions[0].config
    assert (c.sample_rate, c.encoding, c.channels, c.partials) == (16000, "pcm_s16le", 1, True)


def test_ready_shows_what_was_applied() -> None:
    out = talk(adapter(PATH), start(sample_rate=8000, encoding="mulaw", channels=2, channel=1, partials=False,
                                    words=False, hotwords=["kubernetes", {"text": "etcd", "boost": 2}], lm="none",
                                    endpointing=False, alternatives=2))  # fmt: skip
    ready = messages(out)[0]
    assert ready["config"] == {
        "sample_rate": 8000, "encoding": "mulaw", "channels": 2, "channel": 1, "partials": False, "words": False,
        "alternatives": 2, "endpointing": False, "lm": "none",
        "hotwords": [{"text": "kubernetes", "boost": 5.0}, {"text": "etcd", "boost": 2}],
    }  # fmt: skip
    assert ready["limits"]["max_frame_bytes"] == 1 << 20 and ready["model"]["name"] == "en"


def test_words_and_alternatives_as_asked() -> None:
    off = messages(talk(adapter(PATH), start(words=False, alternatives=1), audio(1), EOF))
    final = next(m for m in off if m["type"] == "final")
    assert "words" not in final and final["alternatives"] == [{"text": "alpha 0", "confidence": 0.5}]
    on = messages(talk(adapter(PATH), start(), audio(1), EOF))
    assert "alternatives" not in next(m for m in on if m["type"] == "final")


def test_flush_answers_and_the_segment_goes_on() -> None:
    said = messages(talk(adapter(PATH), audio(1), '{"type":"flush","id":"x"}', audio(1), EOF))
    kinds = [(m["type"], m.get("text"), m.get("reason")) for m in said if m["type"] in ("final", "flushed")]
    assert kinds == [("final", "alpha", "flush"), ("flushed", None, None), ("final", "alpha bravo", "eof")]
    assert next(m for m in said if m["type"] == "flushed")["id"] == "x"
    assert said[-1]["segments"] == 1


def test_config_is_applied_and_told() -> None:
    said = messages(talk(adapter(PATH), '{"type":"config","hotwords":["mango"],"lm":"none"}', EOF))
    assert [m["type"] for m in said] == ["ready", "configured", "done"]
    assert said[1]["config"]["hotwords"] == [{"text": "mango", "boost": 5.0}] and said[1]["config"]["lm"] == "none"


def test_a_config_that_the_engine_refuses_changes_nothing() -> None:
    said = messages(talk(adapter(PATH), audio(1), '{"type":"config","hotwords":["§"]}', audio(1), EOF))
    warning = next(m for m in said if m["type"] == "warning")
    assert warning["code"] == "usage" and "§" in warning["message"]
    assert said[-1]["type"] == "done"


@pytest.mark.parametrize(
    ("message", "code", "close", "names"),
    [
        (start(sample_rat=8000), "config", 1008, "sample_rate"),
        (start(sample_rate="8000"), "config", 1008, "sample_rate"),
        (start(sample_rate=True), "config", 1008, "sample_rate"),
        (start(sample_rate=7999), "audio", 1003, "8000 to 48000"),
        (start(encoding="pcm_s16"), "encoding", 1003, "pcm_s16le"),
        (start(channels=0), "audio", 1003, "channels"),
        (start(channels=2, channel=2), "audio", 1003, "no channel 2"),
        (start(lm="big"), "config", 1008, "default"),
        (start(hotwords="x"), "usage", 1008, "list"),
        (start(hotwords=[{"txt": "x"}]), "usage", 1008, "text"),
        (start(hotwords=[{"text": "x", "boost": "5"}]), "usage", 1008, "number"),
        (start(hotwords=["§"]), "usage", 1008, "§"),
        (start(endpointing={"pause": 1}), "usage", 1008, "pause_s"),
        (start(endpointing={"pause_s": "1"}), "usage", 1008, "number"),
        (start(endpointing={"pause_s": -1}), "config", 1008, "pause_s"),
        (start(alternatives=21), "usage", 1008, "20"),
        (start(session="x"), "message", 1008, "secret"),
        (start(last_seq=3), "message", 1008, "session"),
        (json.dumps({"type": "config", "sample_rate": 8000}), "config", 1008, "sample_rate"),
        (json.dumps({"type": "strt"}), "message", 1008, "start"),
        (json.dumps({"type": "flush", "id": 3}), "message", 1008, "id"),
        (json.dumps({"type": "eof", "now": 1}), "message", 1008, "now"),
        ("{", "json", 1007, "character"),
        ("x" * 300_000, "too_large", 1009, "bytes"),
    ],
)
def test_errors_name_what_is_wrong(message: str, code: str, close: int, names: str) -> None:
    out = talk(adapter(PATH), message)
    last = messages(out)[-1]
    assert (last["type"], last["code"]) == ("error", code) and names in last["message"]
    assert closes(out)[0].code == close and closes(out)[0].error == code


def test_an_error_in_mid_stream_comes_after_the_results() -> None:
    said = messages(talk(adapter(PATH), audio(2), '{"type":"config","lmm":1}', audio(1)))
    assert [m["type"] for m in said[-2:]] == ["final", "error"]
    assert said[-2]["text"] == "alpha bravo"


def test_start_comes_once_and_first() -> None:
    assert messages(talk(adapter(PATH), start(), start()))[-1]["code"] == "message"
    assert messages(talk(adapter(PATH), audio(1), start()))[-1]["code"] == "message"


def test_a_large_frame_is_refused() -> None:
    out = talk(adapter(PATH, max_frame_bytes=100), b"\0" * 101)
    assert closes(out)[0].code == 1009


def test_audio_after_eof_is_told_of() -> None:
    a = adapter(PATH)
    _, session = drive(a, a.binary(b"\0\0", 0.0))
    assert a.text(EOF, 0.0) and session is not None
    assert messages(a.binary(b"\0\0", 0.0))[0]["code"] == "message"
    assert a.binary(b"\0\0", 0.0) == []


def test_a_failed_engine_is_an_error() -> None:
    a = adapter(PATH)
    drive(a, a.binary(audio(1), 0.0))
    out = a.event(Failed("engine", "a worker ended"), 0.0)
    assert messages(out)[0] == {"type": "error", "code": "engine", "message": "a worker ended"}
    assert closes(out)[0].code == 1011


def test_lagging_is_told_now_and_then() -> None:
    a = adapter(PATH)
    drive(a, a.binary(audio(0.1), 0.0))
    late = Output((), 1, 1600, 2300.0)
    assert messages(a.event(late, 10.0))[0]["lag_ms"] == 2300
    assert a.event(late, 12.0) == []
    assert messages(a.event(late, 15.1))[0]["code"] == "lagging"
    a.binary(audio(30), 16.0)
    assert a.event(late, 25.0) == [], "who sends a file at once is late by its own doing"


def test_resume_sends_again_what_has_not_come() -> None:
    a = adapter(PATH)
    _, session = drive(a, a.text(start(sample_rate=8000, partials=False), 0.0))
    more, session = drive(a, a.binary(audio(7, 8000), 0.0), session)
    finals = [s for s in more if isinstance(s, Send)]
    assert [s.seq for s in finals] == [1, 2]
    a.delivered(1)
    assert a.resumable
    saved = json.loads(json.dumps(a.save()))

    b = adapter(PATH)
    [resume] = b.text(start(session=SESSION, secret="s3cret"), 0.0)
    assert resume == Resume(SESSION, "s3cret")
    back = messages(b.resumed(saved, session.options, session.samples, 0.0))
    assert back[0]["resumed"] is True and back[0]["audio_samples"] == 56000 and back[0]["audio_position"] == 7.0
    assert back[0]["config"]["sample_rate"] == 8000
    assert [m["seq"] for m in back[1:]] == [2]

    c = adapter(PATH)
    c.text(start(session=SESSION, secret="s3cret", last_seq=0), 0.0)
    assert [m["seq"] for m in messages(c.resumed(saved, session.options, session.samples, 0.0))[1:]] == [1, 2]
    again, _ = drive(c, c.binary(audio(3, 8000), 0.0), session)
    assert [m["seq"] for m in messages(again)] == [3]


def test_resumed_options_that_differ_are_told() -> None:
    a = adapter(PATH)
    _, session = drive(a, a.text(start(), 0.0))
    b = adapter(PATH)
    b.text(start(session=SESSION, secret="s3cret", sample_rate=8000), 0.0)
    back = messages(b.resumed(a.save(), session.options, 0, 0.0))
    assert back[0]["config"]["sample_rate"] == 16000
    assert back[1]["type"] == "warning" and "sample_rate" in back[1]["message"]


def test_kept_finals_are_bounded_and_a_gap_is_told() -> None:
    a = adapter(PATH, max_retained_bytes=600)
    _, session = drive(a, a.text(start(partials=False), 0.0))
    for _ in range(20):
        out, session = drive(a, a.binary(audio(3), 0.0), session)
        a.delivered(out[-1].seq)
    saved = a.save()
    assert sum(len(text) for _, text in saved["kept"]) <= 600
    b = adapter(PATH)
    b.text(start(session=SESSION, secret="s3cret", last_seq=1), 0.0)
    back = messages(b.resumed(saved, session.options, session.samples, 0.0))
    assert back[-1]["code"] == "missed" and back[-1]["seq"] == saved["forgotten"]


def test_done_that_did_not_arrive_is_sent_again() -> None:
    a = adapter(PATH)
    _, session = drive(a, a.binary(audio(2), 0.0))
    drive(a, a.text(EOF, 0.0), session)
    assert a.phase == "closed" and a.resumable
    saved = a.save()
    a.delivered(100)
    assert not a.resumable
    b = adapter(PATH)
    b.text(start(session=SESSION, secret="s3cret"), 0.0)
    out = b.resumed(saved, {}, 32000, 0.0)
    assert [m["type"] for m in messages(out)] == ["ready", "final", "done"] and closes(out)[0].code == 1000


def test_a_server_without_a_store_resumes_nothing() -> None:
    from wire import context

    from server.protocols import adapter_for

    a = adapter_for(PATH, "", context(resumable=False))
    assert messages(talk(a, start()))[0]["secret"] is None
    b = adapter_for(PATH, "", context(resumable=False))
    assert messages(talk(b, start(session="a", secret="b")))[0]["code"] == "resume"


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text(text: str) -> None:
    a = adapter(PATH)
    out = talk(a, audio(1), text)
    check_outcome(a, out)
    assert messages(out)[-1]["type"] == "error"


KEYS = ("type", "sample_rate", "encoding", "channels", "channel", "partials", "words", "alternatives", "endpointing",
        "hotwords", "lm", "session", "secret", "last_seq", "id")  # fmt: skip
VALUES = ("start", "config", "flush", "keepalive", "eof", 16000, 8000, "pcm_s16le", "alaw", 1, 2, 0, True, False, None,
          "none", ["x"], [{"text": "x"}], {"pause_s": 1})  # fmt: skip
SOUND = (start(), EOF, '{"type":"flush"}', '{"type":"config","lm":"none"}', '{"type":"keepalive"}')


@settings(max_examples=60)
@given(
    st.lists(objects(KEYS, VALUES) | st.sampled_from(SOUND) | st.binary(max_size=9) | st.text(max_size=9), max_size=9)
)
def test_any_order_of_anything(said: list[str | bytes]) -> None:
    a = adapter(PATH)
    check_outcome(a, talk(a, *said))


@given(st.data())
def test_events_in_any_order_break_nothing(data: st.DataObject) -> None:
    """An adapter takes any event in any phase."""
    a = adapter(PATH)
    engine = FakeEngine()
    for _ in range(data.draw(st.integers(0, 6))):
        kind = data.draw(st.integers(0, 4))
        session = FakeSession(engine, a.config, None)
        if kind == 0:
            a.binary(audio(1), 0.0)
        elif kind == 1:
            a.opened(session.options, 0, 0.0)
        elif kind == 2:
            a.event(Output((), 1, 1, 0.0), 0.0)
        elif kind == 3:
            a.end("limit", "enough", 0.0)
        else:
            session.feed(audio(1))
            session.finish()
            a.event(session._events.get_nowait(), 0.0)  # type: ignore[arg-type]
    out = a.fail("error", "x")
    assert a.phase == "closed" and (not out or closes(out))


def test_changes_go_to_the_engine() -> None:
    a = adapter(PATH)
    drive(a, a.text(start(), 0.0))
    assert a.text('{"type":"config","endpointing":{"pause_s":1}}', 0.0) == [
        Configure({"endpointing": {"pause_s": 1.0}})
    ]
