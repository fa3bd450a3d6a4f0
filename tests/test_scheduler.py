"""asr.scheduler: sessions that share steps are as if each were alone; calls keep their order; who fails ends alone."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tiny_model import babble

from asr import Recognizer, Segment
from asr.engine_events import (
    Configured,
    Event,
    Failed,
    Finished,
    Flushed,
    Opened,
    Output,
    Parked,
    Rejected,
    SessionConfig,
)
from asr.errors import StateError
from asr.scheduler import MOST_S, Audio, Control, Scheduler


class Clock:
    """Seconds that pass when they are told to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


class Client:
    """A session of a scheduler, and everything that it was answered."""

    def __init__(self, scheduler: Scheduler, id: int, config: SessionConfig | None = None, state: bytes | None = None):
        self.scheduler, self.id = scheduler, id
        self.events: list[Event] = []
        self.fed = 0
        scheduler.open(id, config or SessionConfig(), state)

    def feed(self, data: bytes) -> None:
        self.fed += 1
        self.scheduler.put(self.id, Audio(data, self.fed, self.scheduler.clock()))

    def call(self, name: str, value: Any = None) -> None:
        self.scheduler.put(self.id, Control(name, value))

    def finish(self) -> None:
        self.call("finish", self.scheduler.clock())

    @property
    def segments(self) -> list[Segment]:
        """Of the stream itself: what a flush found belongs to a copy."""
        found: list[Segment] = []
        for event in self.events:
            if isinstance(event, Output):
                found += [r for r in event.results if isinstance(r, Segment)]
            elif isinstance(event, Finished) or (isinstance(event, Flushed) and event.cut):
                found += event.segments
        return found


def run(scheduler: Scheduler, clients: list[Client]) -> None:
    by_id = {c.id: c for c in clients}
    while scheduler.ready:
        deliver(scheduler, by_id)
    deliver(scheduler, by_id)


def deliver(scheduler: Scheduler, by_id: dict[int, Client]) -> None:
    for id, event in scheduler.step():
        by_id[id].events.append(event)


def pcm(samples: NDArray[np.float32]) -> bytes:
    return (np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes()


def expected(recognizer: Recognizer, data: bytes, rate: int = 16000, **options: Any) -> list[Segment]:
    stream = recognizer.stream(rate, **options)
    found = stream.feed(np.frombuffer(data, "<i2")) + stream.finish()
    return [r for r in found if isinstance(r, Segment)]


OPTIONS: list[dict[str, Any]] = [
    {},
    {"lm": False},
    {"endpointing": False},
    {"hotwords": [{"text": "tea oat", "boost": 4.0}], "alternatives": 2},
]


@settings(max_examples=12)
@given(st.integers(0, 10_000))
def test_sessions_of_all_kinds_are_as_each_alone(tiny: Recognizer, seed: int) -> None:
    rng = random.Random(seed)
    scheduler = Scheduler(tiny, 5)
    kinds = [(rng.choice([8000, 16000, 22050]), OPTIONS[i % len(OPTIONS)]) for i in range(5)]
    audio = [pcm(babble(rng.uniform(0.1, 2.5), seed=seed + i, rate=rate)) for i, (rate, _) in enumerate(kinds)]
    clients = [Client(scheduler, i, SessionConfig(rate, options=o)) for i, (rate, o) in enumerate(kinds)]
    at = [0] * 5
    while min(a - len(d) for a, d in zip(at, audio, strict=True)) < 0:
        for i in rng.sample(range(5), rng.randint(1, 5)):
            size = rng.choice([1, 3, 641, 3200, 9001])  # also in the middle of a sample
            if at[i] < len(audio[i]):
                clients[i].feed(audio[i][at[i] : at[i] + size])
                at[i] += size
        if rng.random() < 0.7:
            deliver(scheduler, dict(enumerate(clients)))
    for client in clients:
        client.finish()
    run(scheduler, clients)
    for client, data, (rate, options) in zip(clients, audio, kinds, strict=True):
        assert client.segments == expected(tiny, data, rate, **options)
        opened, *_, last = client.events
        assert isinstance(opened, Opened) and isinstance(last, Finished)
        assert last.samples == len(data) // 2 and last.audio_s == last.samples / rate and last.processing_s > 0
        assert opened.options["lm"] is options.get("lm", True)
    assert len(scheduler) == 0 and scheduler.slots.free == 5


def test_an_output_says_what_was_taken_and_how_old_it_was(tiny: Recognizer) -> None:
    clock = Clock()
    scheduler = Scheduler(tiny, 1, clock)
    client = Client(scheduler, 7)
    client.feed(bytes(100))
    clock.now += 0.2
    client.feed(bytes(101))
    clock.now += 0.1
    deliver(scheduler, {7: client})
    opened, output = client.events
    assert opened == Opened(opened.options, 0)  # type: ignore[union-attr]
    assert isinstance(output, Output) and output.taken == 2 and output.samples == 100
    assert output.lag_ms == pytest.approx(300)


def test_a_step_takes_so_much_of_a_session_and_the_others_go_on(tiny: Recognizer) -> None:
    scheduler = Scheduler(tiny, 2)
    file, live = Client(scheduler, 1), Client(scheduler, 2)
    data = pcm(babble(3, seed=1))
    file.feed(data)
    live.feed(data[:3200])
    clients = {1: file, 2: live}
    deliver(scheduler, clients)
    first, *_ = (e for e in file.events if isinstance(e, Output))
    assert first.samples == MOST_S * 16000 and first.taken == 0  # not wholly decoded yet
    assert [e.taken for e in live.events if isinstance(e, Output)] == [1]
    file.finish()
    run(scheduler, [file, live])
    assert file.segments == expected(tiny, data)
    assert [e.taken for e in file.events if isinstance(e, Output)] == [0] * 5 + [1]


def test_calls_keep_their_order(tiny: Recognizer) -> None:
    scheduler = Scheduler(tiny, 1)
    client = Client(scheduler, 1)
    data = pcm(babble(2, seed=5))
    client.feed(data[:20001])
    client.call("flush", "a")
    client.call("configure", {"lm": False})
    client.feed(data[20001:40000])
    client.call("configure", {"hotwords": ["no such word at all 77"]})
    client.call("cut", "b")
    client.feed(data[40000:])
    client.finish()
    run(scheduler, [client])
    kinds = [type(e).__name__ for e in client.events if not isinstance(e, Output)]
    assert kinds == ["Opened", "Flushed", "Configured", "Rejected", "Flushed", "Finished"]
    _, flushed, configured, rejected, cut, _ = (e for e in client.events if not isinstance(e, Output))
    assert isinstance(flushed, Flushed) and flushed.id == "a" and not flushed.cut
    assert isinstance(configured, Configured) and configured.options["lm"] is False
    assert isinstance(rejected, Rejected) and rejected.code == "usage" and "77" in rejected.message
    assert isinstance(cut, Flushed) and cut.id == "b" and cut.cut
    assert list(flushed.segments) == [
        s if s.reason != "eof" else type(s)(**{**vars(s), "reason": "flush"}) for s in expected(tiny, data[:20000])
    ]
    indices = [s.index for s in client.segments]
    assert indices == list(range(len(indices)))


def test_a_parked_session_goes_on_anywhere(tiny: Recognizer, tiny_path: Any) -> None:
    data = pcm(babble(2, seed=9, rate=8000))
    config = SessionConfig(8000, options={"hotwords": [("tea oat", 3.0)]})
    one = Scheduler(tiny, 1)
    first = Client(one, 1, config)
    first.feed(data[:9001])
    first.call("park")
    run(one, [first])
    parked = first.events[-1]
    assert isinstance(parked, Parked) and parked.samples == 4500 and len(one) == 0 and one.slots.free == 1
    other = Scheduler(Recognizer.load(tiny_path, threads=1), 1)
    second = Client(other, 5, SessionConfig(8000), parked.state)
    second.feed(data[9000:])
    second.finish()
    run(other, [second])
    assert first.segments + second.segments == expected(tiny, data, 8000, **config.options)
    assert second.events[0] == Opened(first.events[0].options, 4500)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("config", "state", "code"),
    [
        (SessionConfig(5), None, "audio"),
        (SessionConfig(encoding="mp3"), None, "usage"),
        (SessionConfig(channels=2, channel=2), None, "usage"),
        (SessionConfig(options={"hotword": ["a"]}), None, "usage"),
        (SessionConfig(options={"endpointing": {"long_pause": 1}}), None, "config"),
        (SessionConfig(options={"lm": 3}), None, "usage"),
        (SessionConfig(), b"asr-stream-4\nno", "state"),
    ],
)
def test_what_cannot_be_opened_takes_no_slot(
    tiny: Recognizer, config: SessionConfig, state: bytes | None, code: str
) -> None:
    scheduler = Scheduler(tiny, 1)
    client = Client(scheduler, 1, config, state)
    client.feed(b"12")
    run(scheduler, [client])
    (failed,) = client.events
    assert isinstance(failed, Failed) and failed.code == code and failed.message
    assert scheduler.slots.free == 1 and len(scheduler) == 0


def test_a_full_scheduler_refuses_and_a_dropped_session_makes_room(tiny: Recognizer) -> None:
    scheduler = Scheduler(tiny, 2)
    clients = [Client(scheduler, i) for i in range(3)]
    run(scheduler, clients)
    assert [type(c.events[0]).__name__ for c in clients] == ["Opened", "Opened", "Failed"]
    assert isinstance(failed := clients[2].events[0], Failed) and failed.code == "full"
    scheduler.drop(0)
    scheduler.drop(0)
    clients[0].feed(b"12")  # passed over
    clients.append(Client(scheduler, 4))
    run(scheduler, clients)
    assert isinstance(clients[3].events[0], Opened) and len(clients[0].events) == 1


@pytest.mark.parametrize("when", ["features", "network", "search", "end"])
def test_who_fails_in_a_step_ends_alone(tiny: Recognizer, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    """Whatever part of a step fails, before or after the states have moved."""
    scheduler = Scheduler(tiny, 3)
    clients = [Client(scheduler, i) for i in range(3)]
    audio = [pcm(babble(1.5, seed=i)) for i in range(3)]
    for client, data in zip(clients, audio, strict=True):
        client.feed(data[:16000])
    run(scheduler, clients)
    bad = scheduler._sessions[1].stream

    def failing(of: Any, name: str, names_bad: Any) -> None:
        before = getattr(of, name)

        def called(*args: Any, **kwargs: Any) -> Any:
            found = before(*args, **kwargs)  # after its work, so that there is something to undo
            if names_bad(*args, **kwargs):
                raise RuntimeError("out of order")
            return found

        monkeypatch.setattr(of, name, called)

    if when == "features":
        failing(type(bad), "_resampled", lambda stream, *_: stream is bad)
    elif when == "network":
        failing(scheduler.slots, "advance", lambda _, numbers, *__: bad.state.network.number in numbers)
    elif when == "search":
        failing(type(tiny.search), "step_many", lambda _, pieces: any(s is bad.state.search for _, s in pieces))
    else:
        failing(type(bad), "_close", lambda stream, *_: stream is bad)
    for client, data in zip(clients, audio, strict=True):
        client.feed(data[16000:])
        client.finish()
    run(scheduler, clients)
    failed = clients[1].events[-1]
    assert isinstance(failed, Failed) and failed.code == "error" and "order" not in failed.message
    assert sum(isinstance(e, (Failed, Finished)) for e in clients[1].events) == 1  # it ends once
    monkeypatch.undo()
    for i in (0, 2):
        assert clients[i].segments == expected(tiny, audio[i])
    assert scheduler.slots.free == 3


def test_samples_that_are_no_numbers_end_the_session_alone(tiny: Recognizer) -> None:
    scheduler = Scheduler(tiny, 2)
    config = SessionConfig(encoding="pcm_f32le")
    clients = [Client(scheduler, i, config) for i in range(2)]
    good = babble(1.0, seed=3)
    clients[0].feed(good.astype("<f4").tobytes())
    clients[1].feed(np.array([0.0, np.nan], "<f4").tobytes())
    clients[0].finish()
    run(scheduler, clients)
    failed = clients[1].events[-1]
    assert isinstance(failed, Failed) and failed.code == "audio" and "NaN" in failed.message
    stream = tiny.stream()
    found = stream.feed(good) + stream.finish()
    assert clients[0].segments == [r for r in found if isinstance(r, Segment)]


def test_states_in_slots_are_taken_up_by_streams_of_their_own(tiny: Recognizer) -> None:
    """A state whose network part lies in a slot serialises and clones as a free-standing one."""
    scheduler = Scheduler(tiny, 1)
    client = Client(scheduler, 1)
    data = pcm(babble(1, seed=2))
    client.feed(data[:10000])
    run(scheduler, [client])
    state = scheduler._sessions[1].stream.state
    copy = tiny.stream(state=state)
    rest = copy.feed(np.frombuffer(data[10000:], "<i2")) + copy.finish()
    client.feed(data[10000:])
    client.finish()
    run(scheduler, [client])
    assert client.segments[-1] == [r for r in rest if isinstance(r, Segment)][-1]
    with pytest.raises(StateError, match="taken"):
        scheduler.slots.hold(tiny.model.begin())
        scheduler.slots.hold(tiny.model.begin())


def test_who_fails_with_its_end_already_waiting_ends_once(tiny: Recognizer) -> None:
    """The end follows the samples that fail within one step, and is passed over."""
    scheduler = Scheduler(tiny, 1)
    client = Client(scheduler, 1, SessionConfig(encoding="pcm_f32le"))
    client.feed(np.array([0.0, np.nan], "<f4").tobytes())
    client.finish()
    run(scheduler, [client])
    assert [type(e).__name__ for e in client.events] == ["Opened", "Failed"]
    assert scheduler.slots.free == 1
