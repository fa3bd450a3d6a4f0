"""Sessions from end to end with a fake engine and a fake connection: limits, back-pressure, drops, resumes, drains."""

import asyncio
from typing import Any

import pytest
from fake_engine import FakeEngine
from house import EOF, RAW, FakeTransport, House, start, text_of, within
from hypothesis import given, settings
from hypothesis import strategies as st
from wire import SESSION, audio

from asr.engine import EngineError, Event, Flushed, FullError
from asr.errors import AsrError
from server.parked import Parked, pack, store_key, unpack
from server.protocols import Context, adapter_for
from server.session import MOST_ASKED, Session


@pytest.mark.parametrize(
    ("path", "query", "end", "last"),
    [("/v1/stream", "", EOF, "done"), ("/", "", '{"eof" : 1}', None), ("/v1/listen", RAW, b"", "Metadata")],
)
def test_each_protocol_from_end_to_end(path: str, query: str, end: str | bytes, last: str | None) -> None:
    async def test() -> None:
        house = House()
        t, _, run = house.connect(path, query)
        t.say(audio(2), audio(2), end)
        summary = await run
        assert t.closed == (1000, "done") and t.rest()[-1].get("type") == last
        assert summary.error == "" and summary.close_code == 1000 and not summary.parked
        assert summary.segments >= 1 and summary.words >= 3 and summary.bytes_in >= 128000
        assert house.witness.bytes == 128000 and not house.engine.sessions and not house.store.values
        assert house.witness.seen[-1] == ("closed", 1000)

    within(10, test)


def test_a_drop_is_resumed_without_a_lost_or_doubled_word() -> None:
    async def test() -> None:
        house = House()
        t, first, run = house.connect()
        t.say(start(sample_rate=8000, partials=False), audio(4.5, 8000))
        ready = await t.until("ready")
        heard = [await t.until("final")]
        t.drop()
        assert (await run).parked and not house.engine.sessions
        t, second, run = house.connect()
        t.say(start(session=ready["session"], secret=ready["secret"], last_seq=heard[-1]["seq"]))
        back = await t.until("ready")
        assert back["resumed"] and back["audio_samples"] == 36000 and back["session"] == ready["session"]
        assert second.id == first.id
        t.say(audio(2.5, 8000), EOF)
        summary = await run
        heard += t.rest()
        assert text_of(heard) == "alpha bravo charlie delta echo foxtrot golf"
        assert summary.resumed and not house.store.values
        assert [m["seq"] for m in heard if m["type"] == "final"] == [1, 2, 3]

    within(10, test)


def test_results_that_did_not_leave_come_after_the_resume() -> None:
    async def test() -> None:
        house = House()
        t, _, run = house.connect()
        t.say(start(partials=False))
        ready = await t.until("ready")
        t.stuck = True
        t.say(audio(3), audio(3))
        while house.witness.bytes < 192000:
            await asyncio.sleep(0.01)
        t.drop()
        assert (await run).parked
        t, _, run = house.connect()
        t.say(start(session=ready["session"], secret=ready["secret"]), EOF)
        await run
        assert text_of(t.rest()) == "alpha bravo charlie delta echo foxtrot"

    within(10, test)


def test_a_drop_between_eof_and_done_can_be_resumed_once() -> None:
    async def test() -> None:
        house = House()
        t, _, run = house.connect()
        t.say(start())
        ready = await t.until("ready")
        t.stuck = True
        t.say(audio(2), EOF)
        await asyncio.sleep(0.1)
        t.drop()
        assert (await run).parked
        resume = start(session=ready["session"], secret=ready["secret"])
        t, _, run = house.connect()
        t.say(resume)
        await run
        assert [m["type"] for m in t.rest()] == ["ready", "final", "done"] and t.closed == (1000, "done")
        t, _, run = house.connect()
        t.say(resume)
        assert (await run).error == "resume"

    within(10, test)


def test_a_finished_session_is_not_kept() -> None:
    async def test() -> None:
        house = House()
        t, _, run = house.connect()
        t.say(audio(1), EOF)
        await t.until("done")
        t.drop()  # the client is faster with its closing handshake
        assert not (await run).parked and not house.store.values

    within(10, test)


@pytest.mark.parametrize("wrong", ["secret", "session", "owner"])
def test_a_foreign_session_is_refused_and_stays(wrong: str) -> None:
    async def test() -> None:
        house = House()
        t, _, run = house.connect(owner="me")
        t.say(start(), audio(1))
        ready = await t.until("ready")
        t.drop()
        await run
        keys = {"session": ready["session"], "secret": ready["secret"]}
        t, _, run = house.connect(owner="you" if wrong == "owner" else "me")
        t.say(start(**{**keys, **({wrong: "x"} if wrong != "owner" else {})}))
        assert (await run).error == "resume" and t.closed is not None and t.closed[0] == 1008
        t, _, run = house.connect(owner="me")
        t.say(start(**keys), EOF)
        await run
        assert text_of(t.rest()) == "alpha"

    within(10, test)


def test_a_session_that_is_served_cannot_be_taken_over() -> None:
    async def test() -> None:
        house = House()
        t, _, first = house.connect()
        t.say(start())
        ready = await t.until("ready")
        t2, _, second = house.connect()
        t2.say(start(session=ready["session"], secret=ready["secret"]))
        assert (await second).error == "resume"
        t.say(EOF)
        assert (await first).error == ""

    within(10, test)


def test_who_is_back_before_the_session_is_put_away_waits() -> None:
    async def test() -> None:
        house = House(resume_wait_seconds=2.0)
        t, _, first = house.connect()
        t.say(start())
        ready = await t.until("ready")
        t2, _, second = house.connect()
        t2.say(start(session=ready["session"], secret=ready["secret"]), EOF)
        await asyncio.sleep(0.15)
        t.drop()
        assert (await first).parked and (await second).error == ""

    within(10, test)


def test_of_two_who_resume_at_once_one_is_served() -> None:
    async def test() -> None:
        house = House()
        t, _, run = house.connect()
        t.say(start(), audio(1))
        ready = await t.until("ready")
        t.drop()
        await run
        runs = []
        for _ in range(2):
            t, _, run = house.connect()
            t.say(start(session=ready["session"], secret=ready["secret"]), EOF)
            runs.append(run)
        assert sorted(s.error for s in await asyncio.gather(*runs)) == ["", "resume"]

    within(10, test)


@pytest.mark.parametrize("error", [FullError("full"), EngineError("gone")])
def test_a_resume_without_room_puts_the_session_back(error: Exception) -> None:
    async def test() -> None:
        house = House()
        t, _, run = house.connect()
        t.say(start(), audio(1))
        ready = await t.until("ready")
        t.drop()
        await run
        house.engine.refuse = error
        resume = start(session=ready["session"], secret=ready["secret"])
        t, _, run = house.connect()
        t.say(resume)
        assert (await run).error == "full" and t.closed is not None and t.closed[0] == 1013
        house.engine.refuse = None
        t, _, run = house.connect()
        t.say(resume, EOF)
        await run
        assert text_of(t.rest()) == "alpha"

    within(10, test)


def test_a_broken_parked_session_is_a_typed_error() -> None:
    async def test() -> None:
        house = House()
        house.store.values[store_key("", "a", "b")] = b"rubbish"
        t, _, run = house.connect()
        t.say(start(session="a", secret="b"))
        assert (await run).error == "state"

    within(10, test)


def test_a_store_that_fails_costs_the_resume_alone() -> None:
    async def test() -> None:
        house = House()
        house.store.broken = True
        t, _, run = house.connect()
        t.say(start())
        await t.until("ready")
        t.drop()
        assert not (await run).parked and not house.engine.sessions

    within(10, test)


def test_a_full_engine() -> None:
    async def test() -> None:
        house = House(FakeEngine(slots=0))
        for path, query in (("/v1/stream", ""), ("/vosk", ""), ("/v1/listen", RAW)):
            t, _, run = house.connect(path, query)
            t.say(audio(0.1))
            assert (await run).error == "full" and t.closed is not None and t.closed[0] == 1013

    within(10, test)


def test_idle() -> None:
    async def test() -> None:
        house = House(idle_seconds=0.2)
        t, _, run = house.connect()
        t.say(audio(1))
        summary = await run
        assert summary.error == "idle" and text_of(t.rest()) == "alpha" and t.closed is not None
        assert t.closed[0] == 1008

    within(10, test)


def test_the_longest_session_gets_its_results() -> None:
    async def test() -> None:
        house = House(max_session_seconds=0.3)
        t, _, run = house.connect()
        t.say(audio(1))
        assert (await run).error == "limit" and text_of(t.rest()) == "alpha"

    within(10, test)


def test_the_ten_seconds_of_deepgram() -> None:
    """By a clock that is set by hand."""

    class Hand:
        time = 0.0

        def now(self) -> float:
            return self.time

        async def sleep(self, seconds: float) -> None:
            await asyncio.sleep(0.001)

    async def test() -> None:
        house, clock, t = House(), Hand(), FakeTransport()
        context = Context(house.engine.info, house.limits, SESSION, "s", "", True)
        session = Session(adapter_for("/v1/listen", RAW, context), t, house.engine, house.limits, clock=clock)
        run = asyncio.create_task(session.run())
        for _ in range(5):
            await asyncio.sleep(0.02)
            clock.time += 9.0
            t.say('{"type":"KeepAlive"}')
            await asyncio.sleep(0.02)
            assert not run.done()
        clock.time += 10.0
        await run
        assert t.closed is not None and t.closed[0] == 1011 and t.closed[1].startswith("NET-0001")

    within(10, test)


def test_a_client_that_does_not_read_is_not_read_from_and_can_resume() -> None:
    async def test() -> None:
        house = House(max_unread=20)
        t, _, run = house.connect()
        t.say(start())
        ready = await t.until("ready")
        t.stuck = True
        t.say(*[audio(1)] * 200)
        while house.witness.bytes < 10 * 32000:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert t.incoming.qsize() > 150, "it reads on, though nobody takes the results"
        t.drop()
        summary = await run
        assert summary.parked
        t, _, run = house.connect()
        t.say(start(session=ready["session"], secret=ready["secret"]), EOF)
        await run
        position = (await t.until("ready"))["audio_samples"] // 16000
        assert len(text_of(t.rest()).split()) == position

    within(10, test)


def test_sending_that_takes_too_long_is_unread() -> None:
    async def test() -> None:
        house = House(send_seconds=0.2)
        for path, query in (("/v1/stream", ""), ("/vosk", "")):
            t, _, run = house.connect(path, query)
            t.stuck = True
            t.say(audio(1))
            assert (await run).error == "unread" and t.closed is not None and t.closed[0] == 1008

    within(10, test)


def test_one_large_frame_of_many_results_is_not_too_many() -> None:
    async def test() -> None:
        house = House(max_unread=10)
        t, _, run = house.connect()
        t.stuck = True
        t.say(audio(30))
        assert (await run).error == "unread"

    within(10, test)


def test_back_pressure_when_the_engine_is_behind() -> None:
    async def test() -> None:
        house = House(FakeEngine(stalled=True), engine_seconds=1.0)
        t, _, run = house.connect()
        t.say(*[audio(1)] * 50)
        await asyncio.sleep(0.3)
        assert t.incoming.qsize() == 49, "after one frame nothing more is read"
        assert (await run).error == "engine", "and an engine that says nothing has failed"

    within(10, test)


def test_questions_that_the_engine_has_not_answered_hold_up_the_next() -> None:
    async def test() -> None:
        house = House()
        t, _, run = house.connect()
        t.say(audio(1))
        await asyncio.sleep(0.1)
        (session,) = house.engine.sessions
        asked: list[str] = []
        session.flush = asked.append  # type: ignore[method-assign]
        t.say(*['{"type": "flush", "id": "x"}'] * 20)
        await asyncio.sleep(0.3)
        assert len(asked) == MOST_ASKED and t.incoming.qsize() == 20 - MOST_ASKED
        for _ in range(20):  # each answer lets one more in
            session._say(Flushed("x", (), False))
            await asyncio.sleep(0.01)
        assert len(asked) == 20
        t.say(EOF)
        assert (await run).error == ""

    within(10, test)


def test_an_engine_that_fails_ends_the_session() -> None:
    async def test() -> None:
        house = House()
        for path, query in (("/v1/stream", ""), ("/vosk", ""), ("/v1/listen", RAW)):
            t, _, run = house.connect(path, query)
            t.say(audio(1))
            while not house.engine.sessions:
                await asyncio.sleep(0.01)
            house.engine.sessions[0].fail()
            assert (await run).error == "engine" and t.closed is not None and t.closed[0] == 1011

    within(10, test)


def test_a_bug_in_one_session_ends_that_one() -> None:
    async def test() -> None:
        house = House()
        t, session, run = house.connect()
        t.say(audio(1))
        while not house.engine.sessions:
            await asyncio.sleep(0.01)

        def bug(event: Event, now: float) -> Any:
            raise ZeroDivisionError("oh")

        session.adapter.event = bug  # type: ignore[method-assign]
        t.say(audio(1))
        assert (await run).error == "error" and t.closed is not None and t.closed[0] == 1011
        assert any(x[0] == "crash" for x in house.witness.seen if isinstance(x, tuple))
        assert not house.engine.sessions

    within(10, test)


def test_drain_parks_what_can_be_resumed() -> None:
    async def test() -> None:
        house = House()
        t, session, run = house.connect()
        t.say(start(), audio(2))
        ready = await t.until("ready")
        await t.until("partial")
        await session.drain()
        summary = await run
        assert summary.parked and t.closed is not None and t.closed[0] == 1001
        assert t.rest()[-1]["code"] == "draining"
        t, _, run = house.connect()
        t.say(start(session=ready["session"], secret=ready["secret"]), audio(1), EOF)
        await run
        assert text_of(t.rest()) == "alpha bravo charlie"

    within(10, test)


@pytest.mark.parametrize(("path", "query"), [("/v1/stream", ""), ("/vosk", ""), ("/v1/listen", RAW)])
def test_drain_without_parking_gives_the_last_results(path: str, query: str) -> None:
    async def test() -> None:
        house = House()
        t, session, run = house.connect(path, query)
        t.say(audio(2))
        while house.witness.bytes == 0:
            await asyncio.sleep(0.01)
        await session.drain(park=False)
        summary = await run
        assert summary.error == "draining" and t.closed is not None and t.closed[0] == 1001
        assert summary.words >= 1

    within(10, test)


def test_a_drain_whose_store_fails_gives_the_last_results() -> None:
    async def test() -> None:
        house = House()
        house.store.broken = True
        t, session, run = house.connect()
        t.say(start(), audio(2))
        await t.until("partial")
        await session.drain()
        summary = await run
        said = t.rest()
        assert not summary.parked and summary.error == "draining" and said[-1]["code"] == "draining"
        assert text_of(said) == "alpha bravo" and not house.engine.sessions

    within(10, test)


@settings(max_examples=60)
@given(st.data())
def test_any_client_ends_and_leaves_nothing(data: st.DataObject) -> None:
    """Whatever is said, on any path, and however the connection ends."""
    path = data.draw(st.sampled_from(("/v1/stream", "/vosk", "/v1/listen")))
    query = data.draw(st.sampled_from(("", RAW))) if path == "/v1/listen" else ""
    words = (EOF, '{"type":"start"}', '{"type":"flush"}', '{"eof":1}', '{"reset":1}', '{"config":{}}',
             '{"type":"Finalize"}', '{"type":"CloseStream"}', "{", audio(1), audio(4), b"", b"x",
             '{"type":"config","hotwords":["§"]}')  # fmt: skip
    said = data.draw(st.lists(st.sampled_from(words) | st.binary(max_size=5) | st.text(max_size=5), max_size=8))
    end = data.draw(st.sampled_from(("drop", "drain", "park")))

    async def test() -> None:
        house = House()
        t, session, run = house.connect(path, query)
        t.say(*said)
        for _ in range(data.draw(st.integers(0, 30))):
            await asyncio.sleep(0)
        if end == "drop":
            t.drop()
        else:
            await session.drain(park=end == "park")
        summary = await run
        assert not house.engine.sessions and not any(x[0] == "crash" for x in house.witness.seen)
        assert summary.parked == bool(house.store.values)
        assert t.closed or end == "drop"

    within(10, test)


def test_drain_before_anything_was_said() -> None:
    async def test() -> None:
        house = House()
        for path in ("/v1/stream", "/vosk", "/v1/listen"):
            _, session, run = house.connect(path)
            await asyncio.sleep(0)
            await session.drain()
            assert (await run).close_code == 1001

    within(10, test)


def test_a_cancelled_session_gives_its_place_back() -> None:
    async def test() -> None:
        house = House()
        t, _, run = house.connect()
        t.say(audio(1))
        while not house.engine.sessions:
            await asyncio.sleep(0.01)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        assert not house.engine.sessions

    within(10, test)


def test_warn_lagging_from_outside() -> None:
    async def test() -> None:
        house = House()
        t, session, run = house.connect()
        t.say(audio(0.1))
        await t.until("ready")
        session.warn_lagging(2500.0)
        session.warn_lagging(2500.0)
        t.say(EOF)
        await run
        assert [m["lag_ms"] for m in t.rest() if m["type"] == "warning"] == [2500]

    within(10, test)


def test_fifty_sessions_with_options_of_their_own() -> None:
    async def test() -> None:
        house = House(FakeEngine(slots=60))
        runs = []
        for i in range(50):
            rate = (8000, 16000, 44100)[i % 3]
            t, _, run = house.connect()
            t.say(start(sample_rate=rate, words=i % 2 == 0, hotwords=[f"word {i}"]), audio(1 + i % 7, rate), EOF)
            runs.append((i, t, run))
        for i, t, run in runs:
            await run
            said = t.rest()
            assert said[0]["config"]["hotwords"][0]["text"] == f"word {i}"
            assert len(text_of(said).split()) == 1 + i % 7 and said[-1]["audio_seconds"] == 1 + i % 7
            assert all(("words" in m) == (i % 2 == 0) for m in said if m["type"] == "final")

    within(20, test)


def test_parked_sessions_as_bytes() -> None:
    config = {"sample_rate": 8000, "encoding": "alaw", "channels": 1, "channel": None, "partials": True}
    parked = Parked({"config": config, "kept": []}, 5, b"\0\1")
    assert unpack(pack(parked)) == parked and unpack(pack(parked)).config.encoding == "alaw"
    for broken in (b"", b"PS01", pack(parked)[:20], b"XX" + pack(parked)[2:]):
        with pytest.raises(AsrError):
            unpack(broken)
    assert store_key("", "a", "bc") != store_key("", "ab", "c") and "bc" not in store_key("", "a", "bc")
