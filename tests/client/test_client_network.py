"""A network that breaks: the transcript is complete, or the loss is reported in seconds."""
# ruff: noqa: SIM117  (servers and networks are opened first, then what is tested)

import asyncio
import contextlib
import itertools
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from network import Network, network
from serving import RATE, chunks, engine_of, offline, run, serving, speech
from test_client_stream import text

from asr.results import Partial, Segment
from client import ConnectionLost, Notice, RequestError, Stream, connect
from client.settings import Timeouts

QUICK = Timeouts(open=2.0, ping=0.3, pong=0.6, retry=20.0, close=0.5, done=10.0)
LIMIT = 120.0  # seconds that a test may take on a machine with much else to do
SPEED = 4.0  # times real time at which the tests speak


async def talk(stream: Stream, pcm: bytes, after: Callable[[float], Awaitable[None]] | None = None) -> list[Any]:
    """Speak ``pcm`` in 20 ms blocks, call ``after`` with the seconds that were spoken, return all results."""

    async def send() -> None:
        for n, chunk in enumerate(chunks(pcm, RATE // 50 * 2)):
            await stream.send(chunk)
            if after is not None:
                await after((n + 1) * 0.02)
            await asyncio.sleep(0.02 / SPEED)
        await stream.eof()

    sending = asyncio.create_task(send())
    found: list[Any] = []
    try:
        async for result in stream:
            found.append(result)
        await sending
    finally:
        sending.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await sending
    return found


def kinds(found: list[Any]) -> list[str]:
    return [r.kind for r in found if isinstance(r, Notice)]


def at(seconds: float, do: Callable[[], Awaitable[Any]]) -> Callable[[float], Awaitable[None]]:
    """Do it beside the speaker, once so much was spoken."""
    tasks: list[asyncio.Task[Any]] = []

    async def after(spoken: float) -> None:
        if spoken >= seconds and not tasks:
            tasks.append(asyncio.ensure_future(do()))  # type: ignore[arg-type]

    return after


def check_order(found: list[Any], duration: float) -> None:
    """Segments are numbered and timed as if nothing had happened."""
    finals = [r for r in found if isinstance(r, Segment)]
    assert [s.index for s in finals] == list(range(len(finals)))
    words = [w for s in finals for w in s.words]
    for a, b in itertools.pairwise(words):
        assert a.end <= b.start + 0.2  # a new session hears the end of the word before it
    assert all(0 <= w.start < w.end <= duration + 1e-6 for w in words)


@pytest.mark.parametrize("seconds", [0.0, 1.0, pytest.param(5.0, marks=pytest.mark.slow)])
def test_a_cut_network_loses_no_word_and_doubles_none(tiny_path: Path, tiny: Any, seconds: float) -> None:
    pcm = speech(9, seed=21)

    async def main() -> None:
        async with serving(tiny_path) as server, network(server.port) as net:
            async with connect(f"127.0.0.1:{net.port}", timeouts=QUICK) as stream:
                found = await talk(stream, pcm, at(4.0, lambda: net.cut(seconds)))
                assert text(found) == offline(tiny, pcm)
                assert kinds(found)[0] == "disconnected" and kinds(found)[-1] == "resumed"
                assert stream.reconnects == 1 and stream.lost_seconds == 0 and net.connections >= 2
                check_order(found, 9.0)

    run(main, LIMIT)


@pytest.mark.slow
def test_forty_seconds_without_a_network(tiny_path: Path, tiny: Any) -> None:
    pcm = speech(30, seed=22)

    async def main() -> None:
        async with serving(tiny_path) as server, network(server.port) as net:
            patient = Timeouts(open=2.0, ping=0.3, pong=0.6, retry=60.0, close=0.5)
            async with connect(f"127.0.0.1:{net.port}", timeouts=patient) as stream:
                found = await talk(stream, pcm, at(10.0, lambda: net.cut(40.0)))
                assert text(found) == offline(tiny, pcm)
                assert kinds(found)[-1] == "resumed" and stream.lost_seconds == 0

    run(main, 2 * LIMIT)


def test_a_network_that_breaks_again_and_again(tiny_path: Path, tiny: Any) -> None:
    pcm = speech(8, seed=23)

    async def main() -> None:
        async with serving(tiny_path) as server, network(server.port) as net:
            breaks = 0

            async def after(spoken: float) -> None:
                nonlocal breaks
                if spoken >= 1.0 * (breaks + 1):
                    breaks += 1
                    await net.cut(0.0)

            async with connect(f"127.0.0.1:{net.port}", timeouts=QUICK) as stream:
                found = await talk(stream, pcm, after)
                assert text(found) == offline(tiny, pcm)
                assert breaks == 8 and stream.reconnects >= 4 and stream.lost_seconds == 0

    run(main, LIMIT)


def test_a_break_while_the_last_results_are_awaited(tiny_path: Path, tiny: Any) -> None:
    pcm = speech(20, seed=24)

    async def main() -> None:
        async with serving(tiny_path) as server, network(server.port) as net:
            async with connect(f"127.0.0.1:{net.port}", timeouts=QUICK) as stream:
                await stream.send(pcm)
                await stream.eof()
                await asyncio.sleep(0.1)
                await net.cut(0.2)
                found = [r async for r in stream]
                assert text(found) == offline(tiny, pcm) and stream.done is not None

    run(main, LIMIT)


def test_questions_are_answered_across_a_break(tiny_path: Path, tiny: Any) -> None:
    pcm = speech(3, seed=25)

    async def main() -> None:
        async with serving(tiny_path) as server, network(server.port) as net:
            async with connect(f"127.0.0.1:{net.port}", timeouts=QUICK) as stream:
                await stream.send(pcm)
                await net.cut()
                flushing = asyncio.create_task(stream.flush())
                changing = asyncio.create_task(stream.configure(lm=False))
                await asyncio.sleep(0.3)
                await net.open()
                segments = await flushing
                assert (await changing)["lm"] == "none"
                closed = [s.text for s in stream.transcript().segments]
                assert " ".join([*closed, *(s.text for s in segments)]) == offline(tiny, pcm)

    run(main, LIMIT)


def test_a_slow_network_delays_and_loses_nothing(tiny_path: Path, tiny: Any) -> None:
    pcm = speech(4, seed=26)

    async def main() -> None:
        async with serving(tiny_path) as server, network(server.port) as net:
            net.rate = 40_000.0  # little more than the audio's own
            async with connect(f"127.0.0.1:{net.port}") as stream:
                found = await talk(stream, pcm)
                assert text(found) == offline(tiny, pcm) and stream.reconnects == 0

    run(main, LIMIT)


def test_a_half_open_connection_is_noticed(tiny_path: Path, tiny: Any) -> None:
    """Nothing is told, and the server still believes in the old connection: a new session hears the rest."""
    pcm = speech(9, seed=27)

    async def main() -> None:
        async with serving(tiny_path, ping_seconds=60.0) as server, network(server.port) as net:

            async def hang() -> None:
                net.hanging = True

            async with connect(f"127.0.0.1:{net.port}", timeouts=QUICK) as stream:
                found = await talk(stream, pcm, at(4.0, hang))
                assert stream.reconnects == 1 and stream.lost_seconds == 0 and stream.done is not None
                check_order(found, 9.0)
                check_restart(tiny, found, pcm)

    run(main, LIMIT)


def check_restart(tiny: Any, found: list[Any], pcm: bytes) -> None:
    """Until the restart, all but the open segment of what one session hears; from there on, what a session hears that
    begins where the last final result ended."""
    notices = [n for n, r in enumerate(found) if isinstance(r, Notice) and r.kind == "restarted"]
    assert len(notices) == 1
    before, begin, after = text(found[: notices[0]]), found[notices[0]].at, text(found[notices[0] :])
    assert offline(tiny, pcm).startswith(before)
    assert after == offline(tiny, pcm[round(begin * RATE) * 2 :])
    last = max((r.end for r in found[: notices[0]] if isinstance(r, Segment)), default=0.0)
    partials = [r.start for r in found[: notices[0]] if isinstance(r, Partial) and r.start >= last]
    assert begin <= last + 0.2 or begin < min(partials, default=begin), (begin, last, partials)


@pytest.mark.parametrize("kept", [True, False])
def test_a_server_that_is_started_again(tiny_path: Path, tiny: Any, kept: bool) -> None:
    """With a store that outlives it the session is resumed; without one, a new session hears the open segment again."""
    pcm = speech(9, seed=28)

    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack:
            engine = await stack.enter_async_context(engine_of(tiny_path))
            store = Shared() if kept else None
            first = await stack.enter_async_context(serving(tiny_path, engine=engine, store=store))
            net = await stack.enter_async_context(network(first.port))

            async def restart() -> None:
                await first.drain(0.0)
                await first.close()
                second = await stack.enter_async_context(serving(tiny_path, engine=engine, store=store))
                net.target = second.port

            async with connect(f"127.0.0.1:{net.port}", timeouts=QUICK) as stream:
                found = await talk(stream, pcm, at(4.0, restart))
                assert stream.lost_seconds == 0 and stream.done is not None
                check_order(found, 9.0)
                if kept:
                    assert kinds(found)[-1] == "resumed" and text(found) == offline(tiny, pcm)
                else:
                    assert kinds(found)[-1] == "restarted"
                    check_restart(tiny, found, pcm)

    run(main, LIMIT)


class Shared:
    """A store that outlives servers, as Redis does."""

    shared = True

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}

    async def put(self, key: str, value: bytes, ttl_s: float) -> None:
        self.values[key] = value

    async def take(self, key: str) -> bytes | None:
        return self.values.pop(key, None)

    async def ping(self) -> None:
        pass

    async def close(self) -> None:
        pass


def test_what_is_lost_is_reported_in_seconds(tiny_path: Path) -> None:
    """Live sound that cannot wait, a buffer of one second, three seconds without a network, and the session gone."""
    pcm = speech(30, seed=29)  # enough for a slow machine to be back before its end

    async def main() -> None:
        async with serving(tiny_path, resume_seconds=0.5) as server, network(server.port) as net:
            live = {"buffer_seconds": 1.0, "when_full": "drop", "timeouts": QUICK}
            async with connect(f"127.0.0.1:{net.port}", **live) as stream:  # type: ignore[arg-type]
                found = await talk(stream, pcm, at(2.0, lambda: net.cut(2.0)))
                lost = [r for r in found if isinstance(r, Notice) and r.kind == "lost"]
                assert sum(n.seconds for n in lost) == pytest.approx(stream.lost_seconds)
                assert 4.0 < stream.lost_seconds < 29.0  # 2 s at four times real time or more, less the buffer
                assert 0 <= lost[0].at <= 4.0
                assert stream.done is not None and "restarted" in kinds(found)
                check_order(found, 30.0)
                # the clock goes on: what was said at the end is found at the end
                assert max(r.end for r in found if isinstance(r, Segment)) > 27.0

    run(main, LIMIT)


def test_a_gap_in_a_resumed_session_is_silence_of_the_same_length(tiny_path: Path) -> None:
    pcm = speech(11, seed=30)

    async def main() -> None:
        async with serving(tiny_path) as server, network(server.port) as net:
            live = {"buffer_seconds": 1.0, "when_full": "drop", "timeouts": QUICK}
            async with connect(f"127.0.0.1:{net.port}", **live) as stream:  # type: ignore[arg-type]
                found = await talk(stream, pcm, at(2.0, lambda: net.cut(1.5)))
                assert "resumed" in kinds(found) and "restarted" not in kinds(found)
                assert 2.0 < stream.lost_seconds < 12.0
                assert stream.done is not None
                assert stream.done.audio_seconds == pytest.approx(11.0)
                check_order(found, 11.0)

    run(main, LIMIT)


def test_a_buffer_that_waits_is_bounded_and_loses_nothing(tiny_path: Path, tiny: Any) -> None:
    pcm = speech(12, seed=31)

    async def main() -> None:
        async with serving(tiny_path) as server, network(server.port) as net:
            async with connect(f"127.0.0.1:{net.port}", buffer_seconds=2.0, timeouts=QUICK) as stream:
                most = 0

                async def after(spoken: float) -> None:
                    nonlocal most
                    most = max(most, len(stream._up._data))

                cutting = asyncio.create_task(asyncio.sleep(0.8))
                cutting.add_done_callback(lambda _: tasks.append(asyncio.create_task(net.cut(1.0))))
                tasks: list[Any] = []
                found = await talk(stream, pcm, after)
                assert text(found) == offline(tiny, pcm) and stream.lost_seconds == 0
                assert most <= 2.0 * RATE * 2

    run(main, LIMIT)


def test_a_network_that_does_not_come_back(tiny_path: Path) -> None:
    pcm = speech(4, seed=32)

    async def main() -> None:
        async with serving(tiny_path) as server, network(server.port) as net:
            brief = Timeouts(open=0.5, ping=0.3, pong=0.6, retry=1.0, close=0.3)
            async with connect(f"127.0.0.1:{net.port}", timeouts=brief) as stream:
                found: list[Any] = []
                with pytest.raises(ConnectionLost, match=r"\d s of audio have no text") as info:
                    sending = asyncio.create_task(talk(stream, pcm * 3, at(3.0, net.cut)))
                    await sending
                assert info.value.lost_seconds > 0.5
                assert stream.lost_seconds == pytest.approx(info.value.lost_seconds)
                assert not found

    run(main, LIMIT)


def test_a_token_that_is_withdrawn_ends_the_stream(tiny_path: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("one\ntwo\n")

    async def main() -> None:
        async with serving(tiny_path, tokens=str(tokens)) as server, network(server.port) as net:
            async with connect(f"127.0.0.1:{net.port}", token="one", timeouts=QUICK) as stream:
                tokens.write_text("two\n")
                server.reload()
                await net.cut(0.0)
                with pytest.raises(Exception, match="token") as info:
                    async for _ in stream:
                        pass
                assert info.value.code == "auth"  # type: ignore[attr-defined]

    run(main, LIMIT)


def test_without_reconnecting_the_break_is_told_at_once(tiny_path: Path) -> None:
    async def main() -> None:
        async with serving(tiny_path) as server, network(server.port) as net:
            async with connect(f"127.0.0.1:{net.port}", reconnect=False, timeouts=QUICK) as stream:
                await stream.send(speech(1))
                await net.cut()
                with pytest.raises(ConnectionLost):
                    async for _ in stream:
                        pass

    run(main, LIMIT)


def test_an_engine_that_fails_costs_no_words(tiny_path: Path, tiny: Any) -> None:
    """The worker's sessions are gone: a new one hears the open segment again."""
    pcm = speech(8, seed=33)

    async def main() -> None:
        async with engine_of(tiny_path) as engine, serving(tiny_path, engine=engine) as server:

            async def fail() -> None:
                from asr.engine import Failed

                for link in engine._links:
                    for session in list(link.sessions.values()):
                        session._take(Failed("engine", "the worker that held this session ended"))

            async with connect(f"127.0.0.1:{server.port}", timeouts=QUICK) as stream:
                found = await talk(stream, pcm, at(4.0, fail))
                assert stream.lost_seconds == 0
                check_restart(tiny, found, pcm)
                check_order(found, 8.0)

    run(main, LIMIT)


def test_audio_on_which_every_session_fails_is_not_tried_for_ever() -> None:
    from websockets.asyncio.server import serve as serve_sockets

    sessions = 0
    ready = '{"type":"ready","session":"s","secret":null,"config":{},"limits":{},"model":{}}'

    async def fail(connection: Any) -> None:
        nonlocal sessions
        sessions += 1
        await connection.recv()
        await connection.send(ready)
        await connection.recv()
        await connection.send('{"type":"error","code":"engine","message":"gone"}')
        await connection.close(1011, "engine: gone")

    async def main() -> None:
        async with serve_sockets(fail, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            async with connect(f"127.0.0.1:{port}", timeouts=QUICK) as stream:
                await stream.send(speech(2))
                with pytest.raises(Exception, match="gone") as info:
                    async for _ in stream:
                        pass
                assert not isinstance(info.value, RequestError)
                assert stream.lost_seconds == pytest.approx(2.0)

    run(main, LIMIT)
    assert 3 <= sessions <= 10


def test_the_proxy_itself_changes_nothing(tiny_path: Path, tiny: Any) -> None:
    pcm = speech(3, seed=34)

    async def main() -> None:
        async with serving(tiny_path) as server, network(server.port) as net:
            assert isinstance(net, Network)
            async with connect(f"127.0.0.1:{net.port}") as stream:
                assert text(await talk(stream, pcm)) == offline(tiny, pcm)

    run(main, LIMIT)


@pytest.mark.slow
def test_real_words_when_sessions_are_lost(clips: dict[Path, str]) -> None:
    """The shipped model, three sentences, and in the middle of each the session is gone: the words are those that one
    session hears, up to a word at a seam."""
    import numpy as np

    from asr import Recognizer
    from asr.audio import load_audio
    from asr.engine import Failed
    from asr.training.metrics import edit_distance

    pause = np.zeros(round(1.6 * RATE), np.float32)
    audio = np.concatenate([part for clip in clips for part in (load_audio(clip), pause)])
    pcm = np.rint(audio * 32767).astype("<i2").tobytes()
    recognizer = Recognizer.load("en", threads=1)
    expected = offline(recognizer, pcm).split()

    async def main() -> None:
        async with engine_of(Path("en")) as engine, serving(Path("en"), engine=engine) as server:
            breaks = [2.5, 8.0, 13.0]

            async def after(spoken: float) -> None:
                if breaks and spoken >= breaks[0]:
                    breaks.pop(0)
                    for link in engine._links:
                        for session in list(link.sessions.values()):
                            session._take(Failed("engine", "the worker that held this session ended"))

            async with connect(f"127.0.0.1:{server.port}", timeouts=QUICK) as stream:
                found = await talk(stream, pcm, after)
                assert not breaks and kinds(found).count("restarted") == 3 and stream.lost_seconds == 0
                seam = max(n for n, r in enumerate(found) if isinstance(r, Notice) and r.kind == "restarted")
                whole = offline(recognizer, pcm[round(found[seam].at * RATE) * 2 :])
                assert text(found[seam:]) == whole
                got = text(found).split()
                assert edit_distance(expected, got) <= 3, (" ".join(got), " ".join(expected))
                check_order(found, len(pcm) / 2 / RATE)

    run(main, 2 * LIMIT)
