"""What is kept and sent again: any order of audio, results and breaks."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.audio.encoding import SampleFormat
from asr.results import Partial, Segment
from client.errors import closed_error, server_error
from client.settings import wire_options
from client.uplink import Uplink

RATE = 8000
FORMAT = SampleFormat("pcm_s16le")


def ramp(start: int, count: int) -> bytes:
    """Samples that say where they stand; never zero, which is silence."""
    return (np.arange(start, start + count) % 32000 + 1).astype("<i2").tobytes()


class FakeServer:
    """Takes messages in, says how far it is; may forget."""

    def __init__(self) -> None:
        self.audio = b""
        self.asked: list[str] = []

    def take(self, message: str | bytes) -> None:
        if isinstance(message, bytes):
            self.audio += message
        else:
            self.asked.append(json.loads(message)["type"])

    @property
    def samples(self) -> int:
        return len(self.audio) // 2


def sent_all(up: Uplink, server: FakeServer, most: int = 10_000) -> int:
    count = 0
    while count < most and (message := up.next()) is not None:
        server.take(message)
        answer(up, message)
        count += 1
    return count


def answer(up: Uplink, message: str | bytes) -> None:
    if isinstance(message, str) and '"config"' in message:
        up.configured()


steps = st.lists(
    st.one_of(
        st.tuples(st.just("audio"), st.integers(1, 9000)),
        st.tuples(st.just("send"), st.integers(1, 30)),
        st.tuples(st.just("resume"), st.integers(0, 5)),
        st.tuples(st.just("final"), st.floats(0, 1)),
        st.tuples(st.just("partial"), st.floats(0, 1)),
        st.tuples(st.just("flush"), st.just(0)),
    ),
    max_size=40,
)


@given(steps)
@settings(max_examples=150)
def test_a_session_that_is_resumed_hears_everything_once(plan: list[tuple[str, Any]]) -> None:
    """Messages under way are lost with a connection; what the server took in is not sent again."""
    up, server, given_samples = Uplink(FORMAT, RATE, 1e6), FakeServer(), 0
    up.opened()
    flushes = 0
    for kind, value in plan:
        if kind == "audio":
            data = ramp(given_samples, value)
            up.add(data[:3])  # cut in the middle of a sample
            up.add(data[3:])
            given_samples += value
        elif kind == "send":
            sent_all(up, server, value)
        elif kind == "resume":
            for _ in range(value):  # these leave, and never arrive
                up.next()
            up.resumed(server.samples)
        elif kind == "flush":
            flushes += 1
            up.control("flush", id=str(flushes))
        else:
            heard = server.samples / RATE
            if kind == "final":
                up.final(Segment("x", 0.0, value * heard))
            else:
                up.partial(Partial(0, value * heard / 2, value * heard, "x", ""))
        assert up.start <= min(up.settled, up.acked) <= up.cursor <= up.end
    up.control("eof")
    up.resumed(server.samples)
    sent_all(up, server)
    assert server.audio == ramp(0, given_samples)
    assert server.asked[-1] == "eof" and up.all_sent and up.lost == 0
    assert all(str(n) in {c.values["id"] for c in up.unanswered if c.kind == "flush"} for n in range(1, flushes + 1))


@given(st.lists(st.tuples(st.integers(100, 20000), st.integers(0, 60), st.booleans()), max_size=12))
@settings(max_examples=100)
def test_what_no_session_hears_is_counted(plan: list[tuple[int, int, bool]]) -> None:
    """A buffer of a second that gives up the oldest: heard and lost together are all."""
    up, given_samples = Uplink(FORMAT, RATE, 1.0), 0
    server = FakeServer()
    up.opened()
    for count, sends, forgets in plan:
        for at in range(0, count, 400):
            piece = min(400, count - at)
            up.add(ramp(given_samples, piece))
            given_samples += piece
            assert up.end - up.start <= RATE
        sent_all(up, server, sends)
        if forgets:
            server = FakeServer()
            up.opened()
    up.control("eof")
    sent_all(up, server)
    assert up.cursor == up.end == given_samples
    heard = np.frombuffer(server.audio, "<i2")
    assert up.base + len(heard) == given_samples  # the clock is right in spite of gaps
    expected = np.frombuffer(ramp(up.base, len(heard)), "<i2")
    wrong = np.flatnonzero(heard != expected)
    assert (heard[wrong] == 0).all()  # a gap is silence
    gaps = np.zeros(given_samples, bool)
    for first, last in up.gaps:
        assert not gaps[first:last].any()  # each once
        gaps[first:last] = True
    assert gaps[up.base :][wrong].all()
    assert up.lost == pytest.approx(gaps.sum() / RATE)


def test_silence_is_settled_and_speech_is_kept() -> None:
    """After a minute without a word a new session begins a few seconds back; an open segment is kept whole."""
    up, server = Uplink(FORMAT, RATE, 60.0), FakeServer()
    up.opened()
    for second in range(90):
        up.add(ramp(second * RATE, RATE))
        sent_all(up, server)
    assert up.end / RATE - 10 < up.settled / RATE < up.end / RATE - 2.9
    up.partial(Partial(0, 88.0, 89.5, "word", ""))
    up.add(ramp(90 * RATE, 20 * RATE))
    sent_all(up, server)
    assert up.settled / RATE <= 87.7 and up.start / RATE <= 87.7
    assert up.opened() == 0.0 and up.base / RATE <= 87.7 and up.lost == 0


def test_no_more_is_under_way_than_a_ping_can_wait_for() -> None:
    up = Uplink(FORMAT, RATE, 60.0)
    up.opened()
    up.add(ramp(0, 50 * RATE))
    sent = 0
    while (message := up.next()) is not None:
        sent += len(message) // 2 if isinstance(message, bytes) else 0
    assert sent == 10 * RATE
    up.configured()
    assert up.next() is not None


@pytest.mark.parametrize(("encoding", "silence"), [("mulaw", b"\xff"), ("alaw", b"\xd5"), ("pcm_f32le", bytes(4))])
def test_a_gap_is_silence_in_any_encoding(encoding: str, silence: bytes) -> None:
    up = Uplink(SampleFormat(encoding, 2), RATE, 1.0)
    up.opened()
    up.add(b"\x01\x02\x03\x04" * (2 * 4 * RATE))
    message = up.next()
    assert isinstance(message, bytes) and message == silence * (len(message) // len(silence))


def test_errors_are_typed() -> None:
    from client import errors

    for code, kind in (("auth", errors.AuthError), ("full", errors.FullError), ("idle", errors.LimitError),
                       ("encoding", errors.RequestError), ("engine", errors.ServerError)):  # fmt: skip
        error = server_error(code, "because")
        assert type(error) is kind and error.code == code and str(error) == "because"
    assert server_error("nonsense", "").code == "error"
    assert closed_error(1006, "") is None and closed_error(None, "") is None
    for close, reason, code in ((1013, "", "full"), (1008, "limit: too long", "limit"), (1001, "bye", "draining")):
        found = closed_error(close, reason)
        assert found is not None and found.code == code


def test_options_on_the_wire() -> None:
    assert wire_options() == {}
    value = wire_options(["a", ("b c", 3)], {"pause_s": 0.5}, False, 2)
    assert value == {"hotwords": [{"text": "a", "boost": 5.0}, {"text": "b c", "boost": 3}],
                     "endpointing": {"pause_s": 0.5}, "lm": "none", "alternatives": 2}  # fmt: skip
    assert wire_options(endpointing=False, lm=True) == {"endpointing": False, "lm": "default"}
