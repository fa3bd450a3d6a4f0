"""asr.engine: sessions on workers in other processes and threads, seen from an event loop."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_scheduler import expected, pcm
from tiny_model import babble

from asr import Recognizer, Segment
from asr.engine import (
    Configured,
    Engine,
    EngineError,
    EngineSession,
    Failed,
    Finished,
    Flushed,
    FullError,
    Output,
    SessionConfig,
)
from asr.errors import AudioError, ModelError, StateError, UsageError

LIMIT_S = 120


def timely(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a coroutine test; one that would hang fails."""

    async def limited(*args: Any, **kwargs: Any) -> None:
        async with asyncio.timeout(LIMIT_S):
            await test(*args, **kwargs)

    def run(**kwargs: Any) -> None:
        asyncio.run(limited(**kwargs))

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    run.__signature__ = __import__("inspect").signature(test)  # type: ignore[attr-defined]
    return run


@asynccontextmanager
async def started(model: Path, **options: Any) -> AsyncIterator[Engine]:
    engine = await Engine.start(str(model), **{"slots": 8, "in_thread": True, **options})
    try:
        yield engine
    finally:
        await engine.close()


async def rest(session: EngineSession) -> tuple[list[Segment], Finished | Failed]:
    """Segments of what is still to come, and the last event."""
    segments: list[Segment] = []
    while True:
        event = await session.get()
        if isinstance(event, Output):
            segments += [r for r in event.results if isinstance(r, Segment)]
        elif isinstance(event, Finished):
            return segments + list(event.segments), event
        elif isinstance(event, Failed):
            return segments, event


@pytest.mark.parametrize("in_thread", [True, False])
@timely
async def test_sessions_at_once_give_what_each_gives_alone(tiny: Recognizer, tiny_path: Path, in_thread: bool) -> None:
    async def one(engine: Engine, i: int) -> None:
        data = pcm(babble(1.5, seed=i))
        options = {"lm": False} if i % 2 else {"hotwords": [("tea oat", 3.0)]}
        session = await engine.open(SessionConfig(options=options))
        assert session.options["lm"] is not bool(i % 2)
        for start in range(0, len(data), 2001 + i):
            session.feed(data[start : start + 2001 + i])
            await session.room(0.3)
            assert session.ahead_s < 0.3
        session.finish()
        segments, last = await rest(session)
        assert isinstance(last, Finished) and last.samples == session.samples == len(data) // 2
        assert segments == expected(tiny, data, **options)
        with pytest.raises(EOFError):
            await session.get()

    async with started(tiny_path, in_thread=in_thread, workers=2) as engine:
        assert engine.info.name == tiny_path.name and engine.info.words > 0 and engine.info.hotwords
        assert engine.load.alive == (1 if in_thread else 2) and engine.load.slots == 8 * engine.load.alive
        await asyncio.gather(*(one(engine, i) for i in range(6)))
        assert engine.load.sessions == 0


@timely
async def test_calls_are_answered_in_order(tiny_path: Path) -> None:
    async with started(tiny_path) as engine:
        session = await engine.open(SessionConfig())
        session.feed(pcm(babble(1, seed=1)))
        session.flush("x")
        session.configure(alternatives=3)
        session.cut("y")
        session.finish()
        kinds: list[Any] = []
        while not isinstance(kinds[-1] if kinds else None, Finished):
            kinds.append(await session.get())
        others = [e for e in kinds if not isinstance(e, Output)]
        assert [type(e) for e in others] == [Flushed, Configured, Flushed, Finished]
        assert [e.cut for e in others if isinstance(e, Flushed)] == [False, True]
        assert session.options["alternatives"] == 3
        assert session.feed(b"12") == 2 and session.ahead_s == 0  # it is over: nothing happens
        await session.room(0.0)
        session.close()


@timely
async def test_a_session_is_parked_and_goes_on_in_another_engine(tiny: Recognizer, tiny_path: Path) -> None:
    data = pcm(babble(2, seed=4))
    async with started(tiny_path) as one, started(tiny_path, in_thread=False) as other:
        session = await one.open(SessionConfig())
        session.feed(data[:20001])
        state = await session.park()
        assert session.samples == 10000 and session.over and one.load.sessions == 0
        with pytest.raises(StateError, match="nothing to park"):
            await session.park()
        before = []
        while session.pending():
            event = await session.get()
            assert isinstance(event, Output)
            before += [r for r in event.results if isinstance(r, Segment)]
        again = await other.open(SessionConfig(), state)
        assert again.samples == 10000
        again.feed(data[20000:])
        again.finish()
        segments, _ = await rest(again)
        assert before + segments == expected(tiny, data)


@timely
async def test_what_cannot_be_opened_is_said(tiny_path: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        await Engine.start(str(tmp_path / "none"), in_thread=True)
    with pytest.raises(ModelError):
        await Engine.start(str(tmp_path / "none"))
    with pytest.raises(UsageError, match="at least one worker"):
        await Engine.start(str(tiny_path), workers=0)
    with pytest.raises(UsageError, match="there is no search 'best'"):
        await Engine.start(str(tiny_path), in_thread=True, search="best")
    async with started(tiny_path, slots=1) as engine:
        with pytest.raises(AudioError, match="5 Hz"):
            await engine.open(SessionConfig(5))
        with pytest.raises(StateError):
            await engine.open(SessionConfig(), b"rubbish")
        first = await engine.open(SessionConfig())
        with pytest.raises(FullError):
            await engine.open(SessionConfig())
        first.close()
        first.close()
        second = await engine.open(SessionConfig())
        assert engine.load.sessions == 1
        second.close()


@timely
async def test_greedy_workers_spell(tiny_path: Path) -> None:
    greedy = Recognizer.load(tiny_path, threads=1, greedy=True)
    data = pcm(babble(1.5, seed=8))
    async with started(tiny_path, search="greedy") as engine:
        assert engine.info.words == 0 and not engine.info.hotwords
        session = await engine.open(SessionConfig())
        session.feed(data)
        session.finish()
        segments, _ = await rest(session)
    assert segments == expected(greedy, data) and segments


@timely
async def test_a_killed_worker_loses_its_sessions_and_no_others(tiny: Recognizer, tiny_path: Path) -> None:
    async with started(tiny_path, in_thread=False, workers=2) as engine:
        sessions = [await engine.open(SessionConfig()) for _ in range(2)]  # one on each
        data = pcm(babble(1, seed=6))
        for session in sessions:
            session.feed(data)
        victim = engine._links[0]
        held = next(s for s in sessions if s._link is victim)
        other = next(s for s in sessions if s._link is not victim)
        assert victim._worker and victim._worker.pid
        os.kill(victim._worker.pid, signal.SIGKILL)
        _, last = await rest(held)
        assert isinstance(last, Failed) and last.code == "engine"
        other.finish()
        segments, end = await rest(other)
        assert isinstance(end, Finished) and segments == expected(tiny, data)
        while engine.load.alive < 2:
            await asyncio.sleep(0.05)
        assert engine.load.restarts == 1
        new = [await engine.open(SessionConfig()) for _ in range(2)]
        assert {s._link for s in new} == set(engine._links)
        for session in new:
            session.feed(data)
            session.finish()
            assert (await rest(session))[0] == expected(tiny, data)


@timely
async def test_closing_the_engine_ends_sessions_with_a_reason(tiny_path: Path) -> None:
    engine = await Engine.start(str(tiny_path), slots=2, in_thread=True)
    session = await engine.open(SessionConfig())
    await engine.close()
    _, last = await rest(session)
    assert isinstance(last, Failed) and last.code == "engine"
    with pytest.raises(EngineError):
        await engine.open(SessionConfig())


@timely
async def test_the_event_loop_is_free_while_a_worker_computes(tiny_path: Path) -> None:
    """Ten minutes of audio at once, and the loop still turns every few milliseconds."""
    async with started(tiny_path, in_thread=False) as engine:
        session = await engine.open(SessionConfig(partials=False))
        data = np.zeros(16000 * 60, "<i2").tobytes()
        for _ in range(10):
            session.feed(data)
        session.finish()
        waits, loop = [], asyncio.get_running_loop()
        ending = asyncio.create_task(rest(session))
        while not ending.done():
            began = loop.time()
            await asyncio.sleep(0)
            waits.append(loop.time() - began)
        _, last = await ending
        assert isinstance(last, Finished) and last.samples == 600 * 16000
        assert sorted(waits)[int(0.999 * len(waits))] < 0.05
        assert engine.load.steps > 100


@timely
async def test_the_load_is_forgotten_when_nothing_comes(tiny_path: Path) -> None:
    async with started(tiny_path) as engine:
        session = await engine.open(SessionConfig())
        for _ in range(30):
            session.feed(pcm(babble(0.5, seed=1)))
            await asyncio.sleep(0.05)
        while engine.load.lag_ms == 0 or engine.load.busy == 0:
            await asyncio.sleep(0.05)
        while engine.load.lag_ms > 0 or engine.load.busy > 0:
            await asyncio.sleep(0.05)
        steps = engine.load.steps
        await asyncio.sleep(1.5)
        assert engine.load.steps <= steps + 1  # nothing runs that nobody asked for
        session.close()
