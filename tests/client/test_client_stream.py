"""The asynchronous client against the real server: one truth, options, flush, errors."""

import asyncio
import itertools
import json
import ssl
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving import RATE, chunks, offline, run, serving, settings, speech, url
from websockets.asyncio.server import serve

from asr.errors import StateError, UsageError
from client import (
    AuthError,
    ClientError,
    ConnectError,
    FullError,
    Notice,
    Partial,
    RequestError,
    Segment,
    ServerError,
    connect,
)
from client.settings import Timeouts, address


async def transcribe(stream: Any, pcm: bytes, size: int = 3200) -> list[Any]:
    """Send all from one task, read in another."""

    async def send() -> None:
        for chunk in chunks(pcm, size):
            await stream.send(chunk)
        await stream.eof()

    sending = asyncio.create_task(send())
    found = [result async for result in stream]
    await sending
    return found


def text(results: list[Any]) -> str:
    return " ".join(r.text for r in results if isinstance(r, Segment) and r.text)


@pytest.mark.parametrize("size", [1, 641, 3200, 1 << 20])
def test_the_text_is_the_recognisers(tiny_path: Path, tiny: Any, size: int) -> None:
    pcm = speech({1: 0.5}.get(size, 7), seed=3)

    async def main() -> None:
        async with serving(tiny_path) as server, connect(url(server)) as stream:
            found = await transcribe(stream, pcm, size)
            assert text(found) == offline(tiny, pcm) == stream.transcript().text
            assert stream.done and stream.done.audio_seconds == pytest.approx(len(pcm) / 2 / RATE)
            assert stream.reconnects == 0 and stream.lost_seconds == 0
            finals = [r for r in found if isinstance(r, Segment)]
            assert [s.index for s in finals] == list(range(len(finals)))
            assert [w.text for s in finals for w in s.words] == text(found).split()

    run(main)


def test_results_are_those_of_the_recogniser_in_full(tiny_path: Path, tiny: Any) -> None:
    pcm = speech(4, seed=5)
    samples = np.frombuffer(pcm, "<i2").astype(np.float32) / 32768
    expected = tiny.transcribe(samples, sample_rate=RATE, alternatives=2)

    async def main() -> None:
        async with serving(tiny_path) as server, connect(url(server), alternatives=2) as stream:
            for part in np.array_split(samples, 7):
                await stream.send(part)
            transcript = await stream.finish()
            assert transcript.duration == expected.duration and transcript.model == "tiny"
            for got, want in zip(transcript.segments, expected.segments, strict=True):
                assert (got.text, got.index, got.reason) == (want.text, want.index, want.reason)
                assert got.start == pytest.approx(want.start, abs=1e-3)
                assert [a.text for a in got.alternatives] == [a.text for a in want.alternatives]

    run(main)


def test_partials_come_while_one_speaks_and_stable_text_grows(tiny_path: Path) -> None:
    async def main() -> None:
        async with serving(tiny_path) as server, connect(url(server)) as stream:
            shown: list[Partial] = []

            async def read() -> None:
                async for result in stream:
                    if isinstance(result, Partial):
                        shown.append(result)

            reading = asyncio.create_task(read())
            for chunk in chunks(speech(3, seed=2), 640):
                await stream.send(chunk)
                await asyncio.sleep(0.002)
            await stream.eof()
            await reading
            assert len(shown) > 3 and any(p.stable for p in shown)
            for a, b in itertools.pairwise(shown):
                assert a.segment != b.segment or b.stable.split()[: len(a.stable.split())] == a.stable.split()

    run(main)


def test_encodings_channels_and_rates(tiny_path: Path, tiny: Any) -> None:
    low = speech(3, seed=5, rate=8000)
    samples = np.frombuffer(low, "<i2").astype(np.float32) / 32768
    expected = offline(tiny, low, 8000)

    async def main() -> None:
        async with serving(tiny_path) as server:
            for options in ({"encoding": "pcm_f32le"}, {}, {"channels": 2, "channel": 1}):
                audio = np.stack([samples * 0, samples], axis=1) if "channels" in options else samples
                async with connect(url(server), sample_rate=8000, **options) as stream:
                    await stream.send(audio)
                    assert (await stream.finish()).text == expected

    run(main)


def test_flush_gives_what_was_said_and_the_stream_goes_on(tiny_path: Path, tiny: Any) -> None:
    pcm = speech(4, seed=7)
    half = len(pcm) // 4 * 2

    async def main() -> None:
        async with serving(tiny_path) as server, connect(url(server)) as stream:
            await stream.send(pcm[:half])
            first, again = await asyncio.gather(stream.flush(), stream.flush())
            assert [s.text for s in first] == [s.text for s in again]
            closed = " ".join(s.text for s in stream.transcript().segments)
            assert f"{closed} {' '.join(s.text for s in first)}".strip() == offline(tiny, pcm[:half])
            await stream.send(pcm[half:])
            assert (await stream.finish()).text == offline(tiny, pcm)
            with pytest.raises(StateError, match="ended"):
                await stream.send(pcm)

    run(main)


def test_options_are_applied_changed_and_refused(tiny_path: Path, tiny: Any) -> None:
    pcm = speech(5, seed=9)

    async def main() -> None:
        async with serving(tiny_path) as server:
            async with connect(url(server), hotwords=["stone"], endpointing={"pause_s": 0.4}, lm=False) as stream:
                assert stream.ready is not None
                applied = stream.ready.config
                assert applied["hotwords"] == [{"text": "stone", "boost": 5.0}] and applied["lm"] == "none"
                assert applied["endpointing"]["pause_s"] == 0.4
                changed = await stream.configure(hotwords=[("meet me", 3.0)], lm=True)
                assert changed["hotwords"] == [{"text": "meet me", "boost": 3.0}] and changed["lm"] == "default"
                with pytest.raises(RequestError, match="漢"):
                    await stream.configure(hotwords=["漢字"])
                assert (await stream.configure(alternatives=1))["hotwords"] == changed["hotwords"]
                with pytest.raises(UsageError):
                    await stream.configure(alternatives=100)
            options: dict[str, Any] = {"hotwords": ["stone", "tone"], "lm": False}
            async with connect(url(server), **options) as stream:
                assert text(await transcribe(stream, pcm)) == offline(tiny, pcm, **options)

    run(main)


def test_unread_partials_give_way_and_finals_stay(tiny_path: Path, tiny: Any) -> None:
    pcm = speech(8, seed=4)

    async def main() -> None:
        async with serving(tiny_path) as server, connect(url(server)) as stream:
            for chunk in chunks(pcm, 640):
                await stream.send(chunk)
            await stream.eof()
            while stream.done is None:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)
            found = [r async for r in stream]
            assert text(found) == offline(tiny, pcm)
            assert not any(isinstance(r, Partial) for r in found)

    run(main)


def test_tokens_and_full_servers(tiny_path: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("open-sesame\n")

    async def main() -> None:
        async with serving(tiny_path, tokens=str(tokens), max_sessions=1) as server:
            for wrong in ("", "open-barley"):
                with pytest.raises(AuthError, match="token"):
                    async with connect(url(server), token=wrong):
                        pass
            async with connect(url(server), token="open-sesame"):
                with pytest.raises(FullError, match="again") as info:
                    async with connect(url(server), token="open-sesame"):
                        pass
                assert info.value.code == "full" and (info.value.retry_after or 0) > 0

    run(main)


def test_an_unusable_hot_word_is_refused_by_name(tiny_path: Path) -> None:
    async def main() -> None:
        async with serving(tiny_path) as server:
            with pytest.raises(RequestError, match="漢"):
                async with connect(url(server), hotwords=["漢字"]):
                    pass

    run(main)


def test_tls(tiny_path: Path, tmp_path: Path, tiny: Any) -> None:
    pytest.importorskip("cryptography")
    from test_app_tls import certificate

    cert, key = certificate(tmp_path, "cert")
    pcm = speech(2, seed=1)

    async def main() -> None:
        async with serving(tiny_path, tls_cert=str(cert), tls_key=str(key)) as server:
            with pytest.raises(ConnectError, match="secure"):
                async with connect(url(server, tls=True)):
                    pass
            trust = ssl.create_default_context(cafile=str(cert))
            trust.check_hostname = False
            async with connect(url(server, tls=True), ssl=trust) as stream:
                assert text(await transcribe(stream, pcm)) == offline(tiny, pcm)

    run(main)


def test_addresses_that_are_none() -> None:
    async def main() -> None:
        quick = Timeouts(open=0.5)
        with pytest.raises(ConnectError, match=r"cannot connect .* check the address"):
            async with connect("ws://127.0.0.1:9", timeouts=quick):
                pass

        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(100)

        async def chatter(connection: Any) -> None:
            await connection.send("hello")
            await connection.wait_closed()

        async with await asyncio.start_server(silent, "127.0.0.1", 0) as deaf:
            port = deaf.sockets[0].getsockname()[1]
            with pytest.raises(ConnectError, match=r"no answer within 0\.5 s"):
                async with connect(f"127.0.0.1:{port}", timeouts=quick):
                    pass
            deaf.close()
        async with serve(chatter, "127.0.0.1", 0) as other:
            port = other.sockets[0].getsockname()[1]
            with pytest.raises(ClientError, match="does not speak this protocol"):
                async with connect(f"127.0.0.1:{port}", timeouts=quick):
                    pass

    run(main)
    for wrong in ("ftp://x", "ws://", "ws://a b", "ws://user:secret@host", "ws://host:0", "ws://host:99999", ""):
        with pytest.raises(UsageError):
            connect(wrong)
    assert address("host:8080") == "ws://host:8080/v1/stream"
    assert address("https://host/asr/v1/stream?x=1") == "wss://host/asr/v1/stream?x=1"


@pytest.mark.parametrize(
    "wrong",
    [{"sample_rate": 4000}, {"sample_rate": 16000.5}, {"encoding": "mp3"}, {"channels": 0}, {"channel": 1},
     {"when_full": "explode"}, {"buffer_seconds": 0}, {"token": "a\nb"}, {"alternatives": -1}, {"hotwords": "stone"}],
)  # fmt: skip
def test_settings_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(Exception) as info:
        connect("ws://localhost:1", **wrong)
    assert type(info.value).__module__.startswith(("asr.", "client.")) and "\n" not in str(info.value)


def test_a_stream_that_is_not_open(tiny_path: Path) -> None:
    async def main() -> None:
        stream = connect("ws://localhost:1")
        with pytest.raises(StateError, match="async with"):
            await stream.send(b"ab")
        async with serving(tiny_path) as server:
            stream = await connect(url(server))
            await stream.send(b"\0" * 3200)
            flushing = asyncio.create_task(stream.flush())
            await asyncio.sleep(0)
            await stream.close()
            with pytest.raises(StateError, match="closed"):
                await flushing
            with pytest.raises(StateError):
                await stream.send(b"ab")
            assert [r async for r in stream if not isinstance(r, Partial)] == []

    run(main)


def test_an_error_of_the_server_comes_after_the_results(tiny_path: Path) -> None:
    """A NaN in the audio ends the session for good; what was heard before is there."""
    good = np.frombuffer(speech(4, seed=3), "<i2").astype("<f4") / 32768

    async def main() -> None:
        async with serving(tiny_path) as server, connect(url(server), encoding="pcm_f32le") as stream:
            await stream.send(good.tobytes())
            await stream.flush()
            await stream.send(np.full(1600, np.nan, "<f4").tobytes())
            found = []
            with pytest.raises(RequestError, match="NaN") as info:
                async for result in stream:
                    found.append(result)
            assert info.value.code == "audio"
            with pytest.raises(ServerError):
                await stream.flush()
            assert any(isinstance(r, Notice) and r.kind == "lost" for r in found) == (stream.lost_seconds > 0)

    run(main)


def test_a_session_is_kept_alive(tiny_path: Path) -> None:
    async def main() -> None:
        async with serving(tiny_path, idle_seconds=0.9) as server, connect(url(server)) as stream:
            await asyncio.sleep(2.0)
            assert stream.reconnects == 0
            assert (await stream.finish()).text == ""

    run(main)


def test_the_wire_is_spoken_as_documented() -> None:
    """What the client sends, seen by a server that writes it down."""
    seen: list[Any] = []
    ready = {"type": "ready", "protocol": 1, "session": "s", "secret": None, "config": {}, "limits": {}, "model": {}}

    async def record(connection: Any) -> None:
        async for message in connection:
            seen.append(json.loads(message) if isinstance(message, str) else len(message))
            if isinstance(message, str) and '"start"' in message:
                await connection.send(json.dumps(ready))
            if isinstance(message, str) and '"eof"' in message:
                await connection.send(json.dumps({"type": "done", "audio_seconds": 1, "segments": 0,
                                                  "processing_seconds": 0}))  # fmt: skip

    async def main() -> None:
        async with serve(record, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            async with connect(f"127.0.0.1:{port}", sample_rate=8000, encoding="mulaw", partials=False) as stream:
                await stream.send(b"x" * 1000)
                await stream.finish()

    run(main)
    assert seen[0] == {"type": "start", "sample_rate": 8000, "encoding": "mulaw", "channels": 1, "partials": False,
                       "words": True}  # fmt: skip
    assert seen[1:] == [800, 200, {"type": "eof"}]


def test_the_settings_of_a_test_server_are_known() -> None:
    assert settings().limits.resume_wait_seconds == 0.3
