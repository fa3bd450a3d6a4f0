"""The live protocol of Deepgram, held against the types of its own package."""

import hashlib
import io
import json
import wave
from typing import Any

import pytest
from fake_engine import drive
from hypothesis import given, settings
from hypothesis import strategies as st
from wire import HOSTILE, adapter, audio, check_outcome, closes, messages, objects, talk

from asr.errors import AsrError
from server.protocols.actions import Feed, Note, Open
from server.protocols.listen_query import boost_of, read_query
from server.protocols.wav import read_header

PATH = "/v1/listen"
RAW = "encoding=linear16&sample_rate=16000"
CLOSE, FINALIZE, ALIVE = '{"type":"CloseStream"}', '{"type":"Finalize"}', '{"type":"KeepAlive"}'


def wav(data: bytes, rate: int = 16000, channels: int = 1) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as w:
        w.setnchannels(channels)
        w.setsampwidth(2)
        w.setframerate(rate)
        w.writeframes(data)
    return file.getvalue()


def test_a_whole_conversation() -> None:
    a = adapter(PATH, f"{RAW}&interim_results=true&vad_events=true&utterance_end_ms=1000&tag=t1")
    out = talk(a, *[audio(1)] * 4, FINALIZE, audio(2), CLOSE)
    said = messages(out)
    kinds = [(m["type"], m.get("is_final"), m.get("speech_final"), m.get("from_finalize")) for m in said]
    no, yes = False, True
    assert kinds == [
        ("SpeechStarted", None, None, None),
        ("Results", no, no, no),
        ("Results", no, no, no),
        ("Results", yes, yes, no),
        ("SpeechStarted", None, None, None),
        ("Results", no, no, no),
        ("Results", yes, yes, yes),
        ("SpeechStarted", None, None, None),
        ("Results", no, no, no),
        ("Results", no, no, no),
        ("Results", yes, yes, no),
        ("UtteranceEnd", None, None, None),
        ("Metadata", None, None, None),
    ]
    best = said[3]["channel"]["alternatives"][0]
    assert best["transcript"] == "alpha bravo charlie" and best["confidence"] == 0.9
    assert best["words"][0] == {"word": "alpha", "start": 0.1, "end": 0.9, "confidence": 0.95,
                                "punctuated_word": "alpha"}  # fmt: skip
    assert said[3]["start"] == 0.1 and said[3]["duration"] == 2.8 and said[3]["channel_index"] == [0, 1]
    meta = said[-1]
    assert meta["sha256"] == hashlib.sha256(audio(6)).hexdigest() and meta["duration"] == 6.0 and meta["tags"] == ["t1"]
    assert meta["request_id"] == "00112233-4455-6677-8899-aabbccddeeff" == said[3]["metadata"]["request_id"]
    assert closes(out)[0].code == 1000
    follows_the_sdk(said)


def follows_the_sdk(said: list[dict[str, Any]]) -> None:
    types = pytest.importorskip("deepgram.listen.v1.types", reason="deepgram-sdk is not installed (extra: dev)")
    models = {
        "Results": types.ListenV1Results,
        "SpeechStarted": types.ListenV1SpeechStarted,
        "UtteranceEnd": types.ListenV1UtteranceEnd,
        "Metadata": types.ListenV1Metadata,
        "Error": types.ListenV1Error,
        "ConfigureSuccess": types.ListenV1ConfigureSuccess,
        "ConfigureFailure": types.ListenV1ConfigureFailure,
    }
    for message in said:
        models[message["type"]].model_validate(message, strict=True)


def test_every_message_has_the_shape_of_the_sdk() -> None:
    said = messages(talk(adapter(PATH, f"{RAW}&interim_results=true"), audio(1),
                         '{"type":"Configure","keyterms":["x"]}',
                         '{"type":"Configure","keyterms":["§"]}', '{"type":"What"}', FINALIZE, FINALIZE,
                         '{"type":"Configure"}', CLOSE))  # fmt: skip
    assert [m["type"] for m in said] == ["Results", "ConfigureSuccess", "ConfigureFailure", "Error", "Results",
                                         "Results", "ConfigureSuccess", "Metadata"]  # fmt: skip
    assert said[5]["from_finalize"] is True and said[5]["channel"]["alternatives"][0]["transcript"] == ""
    follows_the_sdk(said)


def test_without_interim_results_only_finals_come() -> None:
    said = messages(talk(adapter(PATH, RAW), audio(2), CLOSE))
    assert [(m["type"], m.get("is_final")) for m in said] == [("Results", True), ("Metadata", None)]


def test_utterance_end_after_enough_quiet_comes_after_its_final() -> None:
    a = adapter(PATH, f"{RAW}&utterance_end_ms=1000&endpointing=false")
    said = messages(talk(a, audio(1), audio(0.95), ALIVE))
    assert [m["type"] for m in said] == ["Results", "UtteranceEnd"]
    assert said[0]["is_final"] and said[1]["last_word_end"] == 0.9


def test_the_old_form_of_close_stream() -> None:
    out = talk(adapter(PATH, RAW), audio(1), b"")
    assert messages(out)[-1]["type"] == "Metadata" and closes(out)[0].code == 1000
    assert messages(talk(adapter(PATH), b""))[-1]["duration"] == 0.0


@pytest.mark.parametrize("cut", [1, 3, 20, 44, 45, 1000])
def test_a_wav_header_is_read_however_it_is_split(cut: int) -> None:
    data = wav(audio(1, 8000) * 2, 8000, 2)
    a = adapter(PATH)
    actions = [x for i in range(0, len(data), cut) for x in a.binary(data[i : i + cut], 0.0)]
    opened = actions[0]
    assert isinstance(opened, Open)
    assert (opened.config.sample_rate, opened.config.channels, opened.config.encoding) == (8000, 2, "pcm_s16le")
    assert b"".join(x.data for x in actions if isinstance(x, Feed)) == audio(1, 8000) * 2


def test_wav_of_other_kinds() -> None:
    floats = b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0" + b"\3\0\1\0\x80\xbb\0\0\0\xee\2\0\4\0\x20\0" + b"data\xff\xff\xff\xff"
    header = read_header(floats)
    assert header is not None and (header.encoding, header.sample_rate, header.begin) == ("pcm_f32le", 48000, 44)


@pytest.mark.parametrize("data", [b"OggS" + b"\0" * 60, b"RIFF\0\0\0\0AVI " + b"\0" * 40, b"\0\0", b"x",
                                  b"RIFF\0\0\0\0WAVEdata\0\0\0\0", b"RIFF\0\0\0\0WAVELIST\xff\xff\xff\xff",
                                  wav(b"", 4000), wav(b"", 16000, 40)])  # fmt: skip
def test_what_is_no_wav(data: bytes) -> None:
    out = talk(adapter(PATH), data)
    assert closes(out)[0].code == 1008 and closes(out)[0].reason.startswith("DATA-0000")


def test_a_stream_that_ends_in_its_header() -> None:
    assert closes(talk(adapter(PATH), b"RIFF", CLOSE))[0].reason.startswith("DATA-0000")


@given(st.binary(max_size=80) | st.binary(max_size=60).map(lambda b: b"RIFF\0\0\0\0WAVEfmt " + b))
def test_any_bytes_for_a_header(data: bytes) -> None:
    a = adapter(PATH)
    check_outcome(a, talk(a, data))


def test_ten_seconds_of_silence() -> None:
    a = adapter(PATH, RAW)
    _, session = drive(a, a.begin(100.0))
    assert a.deadline() == 110.0
    drive(a, a.binary(audio(2), 105.0), session)
    drive(a, a.text(ALIVE, 112.0), session)
    assert a.tick(121.9) == [] and a.deadline() == 122.0
    out, _ = drive(a, a.tick(122.0), session)
    assert messages(out)[0]["channel"]["alternatives"][0]["transcript"] == "alpha bravo"
    assert closes(out)[0].code == 1011 and closes(out)[0].reason.startswith("NET-0001")
    assert a.deadline() is None


def test_keywords_become_hot_words_and_the_unspeakable_ones_warnings() -> None:
    a = adapter(PATH, f"{RAW}&keywords=kiwi:2&keywords=fig&keyterm=passion%20fruit&keyterm=%C2%A7")
    out = talk(a, CLOSE)
    assert a._hot_words == [  # type: ignore[attr-defined]
        {"text": "passion fruit", "boost": 5.0},
        {"text": "kiwi", "boost": 7.0},
        {"text": "fig", "boost": 5.0},
    ]
    assert any("§" in w for w in messages(out)[-1]["warnings"])
    assert [x.values for x in out if isinstance(x, Note)] == [{"count": 1}]


def test_the_scale_of_keywords() -> None:
    assert [boost_of(x) for x in (-10, -1, 0, 0.5, 1, 3, 100)] == [-20, -5, 0, 2.5, 5, 9, 20]


def test_what_is_not_supported_is_a_warning() -> None:
    query = (
        f"{RAW}&punctuate=true&smart_format=true&diarize=false&model=nova-3&language=fr&endpointing=10&callback=http"
    )
    warnings = messages(talk(adapter(PATH, query), CLOSE))[-1]["warnings"]
    for word in ("punctuate", "smart_format", "nova-3", "fr", "endpointing", "callback"):
        assert any(word in w for w in warnings)
    assert not any("diarize" in w for w in warnings)


def test_endpointing() -> None:
    assert dict(read_query(f"{RAW}&endpointing=500", "en").options)["endpointing"]["pause_s"] == 0.5
    assert dict(read_query(f"{RAW}&endpointing=10", "en").options)["endpointing"]["pause_s"] == 0.3
    assert dict(read_query(f"{RAW}&endpointing=false", "en").options) == {"endpointing": False}
    assert read_query(f"{RAW}&endpointing=true", "en").options == ()


@pytest.mark.parametrize(
    "query",
    ["encoding=opus&sample_rate=48000", "encoding=linear16", f"{RAW}0000", f"{RAW}&channels=0", f"{RAW}&channels=x",
     f"{RAW}&interim_results=yes", f"{RAW}&endpointing=soon", f"{RAW}&utterance_end_ms=-1", f"{RAW}&keywords=a:b",
     f"{RAW}&keywords=a:nan", "encoding=linear16&sample_rate=" + "9" * 5000, "a=%ff", "&".join(["a=1"] * 5000),
     f"{RAW}&alternatives=99"],
)  # fmt: skip
def test_queries_that_make_no_sense(query: str) -> None:
    with pytest.raises(AsrError) as caught:
        adapter(PATH, query)
    assert len(str(caught.value)) < 300 and "\n" not in str(caught.value)


@given(st.lists(st.tuples(st.sampled_from(("encoding", "sample_rate", "channels", "endpointing", "keywords", "keyterm",
                                           "utterance_end_ms", "alternatives", "model", "language")),
                          st.text(max_size=8) | st.sampled_from(("linear16", "8000", "1", "500", "a:2"))),
                max_size=6))  # fmt: skip
def test_any_query(pairs: list[tuple[str, str]]) -> None:
    from urllib.parse import quote

    query = "&".join(f"{name}={quote(value, errors='replace')}" for name, value in pairs)
    try:
        a = adapter(PATH, query)
    except AsrError:
        return
    check_outcome(a, talk(a, CLOSE))


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text(text: str) -> None:
    a = adapter(PATH, RAW)
    out = talk(a, audio(1), text)
    check_outcome(a, out)
    assert messages(out)[-1]["type"] == "Error"


KEYS = ("type", "keyterms", "features")
VALUES = ("KeepAlive", "Finalize", "CloseStream", "Configure", ["a"], ["§"], [1], {"a": True})
SOUND = (ALIVE, FINALIZE, CLOSE, '{"type":"Configure","keyterms":["x"]}')


@settings(max_examples=60)
@given(
    st.sampled_from(("", RAW, f"{RAW}&utterance_end_ms=1000&interim_results=true")),
    st.lists(objects(KEYS, VALUES) | st.sampled_from(SOUND) | st.sampled_from((audio(1), wav(audio(1)))) | st.binary(),
             max_size=9),
)  # fmt: skip
def test_any_order_of_anything(query: str, said: list[str | bytes]) -> None:
    a = adapter(PATH, query)
    check_outcome(a, talk(a, *said))


def test_the_query_is_json_safe() -> None:
    meta = messages(talk(adapter(PATH, f"{RAW}&tag=%22%0A"), CLOSE))[-1]
    assert json.loads(json.dumps(meta))["tags"] == ['"\n']
