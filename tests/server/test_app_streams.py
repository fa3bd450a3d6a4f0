"""Sessions over real sockets: the text of all three paths is the recogniser's own, whatever the company."""

import asyncio
import json
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving import (
    RATE,
    chunks,
    dial,
    finals,
    listen,
    listen_text,
    offline,
    rest,
    run,
    serving,
    speech,
    stream,
    until,
    url,
    vosk,
    vosk_text,
)  # fmt: skip


def pcm_to_mulaw(pcm: bytes) -> bytes:
    """G.711 mu-law, the plain way."""
    samples = np.frombuffer(pcm, "<i2").astype(np.int32)
    sign, level = (samples < 0) * 0x80, np.minimum(np.abs(samples), 32635) + 132
    exponent = np.floor(np.log2(level)).astype(np.int32) - 7
    return (~(sign | (exponent << 4) | ((level >> (exponent + 3)) & 15)) & 0xFF).astype(np.uint8).tobytes()


def test_the_text_of_all_three_paths_is_the_recognisers(tiny_path: Path, tiny: Any) -> None:
    pcm = speech(7, seed=3)
    expected = offline(tiny, pcm)
    assert len(expected.split()) > 10

    async def main() -> None:
        async with serving(tiny_path) as server:
            address = url(server, f"/v1/listen?encoding=linear16&sample_rate={RATE}")
            texts = [
                finals(await stream(url(server), pcm)),
                vosk_text(await vosk(url(server, "/"), pcm)),
                vosk_text(await vosk(url(server, "/vosk"), pcm)),
                listen_text(await listen(address, pcm)),
            ]
            assert texts == [expected] * 4

    run(main)


@pytest.mark.parametrize("size", [1, 2, 641, 3200, 1 << 20])
def test_any_cut_gives_the_same_text(tiny_path: Path, tiny: Any, size: int) -> None:
    pcm = speech({1: 0.4, 2: 0.8}.get(size, 5), seed=4)
    expected = offline(tiny, pcm)

    async def main() -> None:
        async with serving(tiny_path) as server:
            assert finals(await stream(url(server), pcm, size)) == expected

    run(main)


def test_rates_and_encodings(tiny_path: Path, tiny: Any) -> None:
    from asr.audio.encoding import SampleFormat

    low = speech(4, seed=5, rate=8000)
    as_float = (np.frombuffer(low, "<i2").astype("<f4") / 32768).tobytes()
    mulaw = pcm_to_mulaw(low)
    assert SampleFormat("mulaw", 1).frame_bytes == 1

    async def main() -> None:
        async with serving(tiny_path) as server:
            texts = [
                finals(await stream(url(server), low, sample_rate=8000)),
                finals(await stream(url(server), as_float, sample_rate=8000, encoding="pcm_f32le")),
                vosk_text(await vosk(url(server, "/"), low, sample_rate=8000)),
            ]
            assert texts == [offline(tiny, low, 8000)] * 3
            one = finals(await stream(url(server), mulaw, sample_rate=8000, encoding="mulaw"))
            other = listen_text(await listen(url(server, "/v1/listen?encoding=mulaw&sample_rate=8000"), mulaw))
            assert one == other and one

    run(main)


def test_fifty_sessions_with_options_of_their_own_do_not_disturb_each_other(tiny_path: Path, tiny: Any) -> None:
    rng = random.Random(5)
    plans: list[tuple[dict[str, Any], bytes, int]] = []
    for n in range(50):
        options: dict[str, Any] = {}
        if n % 2:
            options["hotwords"] = [{"text": rng.choice(["stone", "meet me", "oat", "tone"]), "boost": 6.0}]
        if n % 3 == 0:
            options["lm"] = "none"
        if n % 5 == 0:
            options["endpointing"] = False
        if n % 7 == 0:
            options["alternatives"] = 2
        plans.append((options, speech(0.8 + n % 4 / 4, seed=n), rng.choice([320, 641, 3200, 9600])))

    async def main() -> list[str]:
        async with serving(tiny_path) as server:
            return [
                finals(messages)
                for messages in await asyncio.gather(
                    *(stream(url(server), pcm, size, **options) for options, pcm, size in plans)
                )
            ]

    together = run(main, 120.0)
    for (options, pcm, _), text in zip(plans, together, strict=True):
        alone = {**options, "lm": options.get("lm") != "none"}
        alone["hotwords"] = [(w["text"], w["boost"]) for w in options.get("hotwords", ())]
        assert text == offline(tiny, pcm, **alone), options
    assert any(text != offline(tiny, pcm) for (_, pcm, _), text in zip(plans, together, strict=True))


def test_a_session_goes_on_in_silence_and_keeps_alive(tiny_path: Path) -> None:
    async def main() -> None:
        async with serving(tiny_path, idle_seconds=0.8, ping_seconds=0.2) as server, dial(url(server)) as connection:
            for _ in range(6):
                await connection.send('{"type":"keepalive"}')
                await asyncio.sleep(0.25)
            await connection.send('{"type":"eof"}')
            assert (await rest(connection))[-1]["type"] == "done"

    run(main)


def test_a_client_that_floods_is_slowed_and_loses_nothing(tiny_path: Path, tiny: Any) -> None:
    pcm = speech(15, seed=6)
    expected = offline(tiny, pcm)

    async def main() -> None:
        async with serving(tiny_path, ahead_seconds=1.0) as server:
            most = 0.0

            async def watch() -> None:
                nonlocal most
                while True:
                    for session in server.sessions:
                        if session._session is not None:
                            most = max(most, session._session.ahead_s)
                    await asyncio.sleep(0.001)

            watching = asyncio.create_task(watch())
            messages = await stream(url(server), pcm, 32000)
            watching.cancel()
            assert finals(messages) == expected
            assert most <= 1.0 + 1.0 + 1e-6  # the limit and one frame

    run(main)


def test_partials_come_while_the_client_speaks(tiny_path: Path) -> None:
    async def main() -> None:
        async with serving(tiny_path) as server, dial(url(server)) as connection:
            await connection.send('{"type":"start"}')
            await until(connection, "ready")
            for chunk in chunks(speech(3, seed=2)):
                await connection.send(chunk)
            began = time.monotonic()
            partial = await until(connection, "partial")
            assert partial["stable"] + partial["unstable"] and time.monotonic() - began < 10
            await connection.send(json.dumps({"type": "flush", "id": "now"}))
            assert (await until(connection, "flushed"))["id"] == "now"

    run(main)
