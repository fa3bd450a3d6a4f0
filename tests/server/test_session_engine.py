"""Sessions on the real engine with a tiny model: the text is that of the recogniser, whatever way the audio takes."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from house import EOF, RAW, FakeTransport, House, start, text_of, within
from tiny_model import babble

from asr import Recognizer
from asr.audio.encoding import decode, encode
from asr.engine import Engine

RATE = 16000


@asynccontextmanager
async def house(model: Path, **limits: Any) -> AsyncIterator[House]:
    engine = await Engine.start(str(model), slots=8, in_thread=True)
    try:
        yield House(engine, **limits)
    finally:
        await engine.close()


def sound(seconds: float, seed: int = 3, rate: int = RATE, encoding: str = "pcm_s16le") -> bytes:
    return encode(babble(seconds, seed, rate), encoding)


def heard(tiny: Recognizer, data: bytes, rate: int = RATE, encoding: str = "pcm_s16le") -> str:
    return tiny.transcribe(decode(data, encoding), rate).text


def pieces(data: bytes, sizes: Sequence[int]) -> Iterator[bytes]:
    at = number = 0
    while at < len(data):
        size = sizes[number % len(sizes)]
        yield data[at : at + size]
        at, number = at + size, number + 1


@pytest.mark.parametrize(
    ("rate", "encoding", "sizes"),
    [(16000, "pcm_s16le", (3200,)), (16000, "pcm_f32le", (1, 4097, 7)), (8000, "mulaw", (160,)),
     (44100, "pcm_s16le", (100000,)), (8000, "alaw", (3, 5000))],
)  # fmt: skip
def test_stream(tiny_path: Path, tiny: Recognizer, rate: int, encoding: str, sizes: tuple[int, ...]) -> None:
    data = sound(8, 3, rate, encoding)

    async def test() -> None:
        async with house(tiny_path) as h:
            t, _, run = h.connect()
            t.say(start(sample_rate=rate, encoding=encoding), *pieces(data, sizes), EOF)
            await run
            said = t.rest()
            expected = heard(tiny, data, rate, encoding)
            assert text_of(said) == expected and len(expected.split()) > 5
            numbers = [m["seq"] for m in said[1:] if "seq" in m]
            assert numbers == list(range(1, len(numbers) + 1))
            assert said[-1]["audio_seconds"] == 8.0
            stable_only_grows(said)

    within(60, test)


def stable_only_grows(said: list[dict[str, Any]]) -> None:
    stable: dict[int, str] = {}
    for m in said:
        if m["type"] == "partial":
            before = stable.get(m["segment"], "")
            assert m["stable"].startswith(before)
            stable[m["segment"]] = m["stable"]
        elif m["type"] == "final" and m["reason"] not in ("flush", "max_length"):
            assert m["text"].startswith(stable.get(m["segment"], ""))


def test_vosk_client_that_waits_for_every_reply(tiny_path: Path, tiny: Recognizer) -> None:
    """Also for frames of a byte, which hold no sample."""
    data = sound(6)

    async def test() -> None:
        async with house(tiny_path) as h:
            t, _, run = h.connect("/vosk")
            t.say('{"config":{"sample_rate":16000}}')
            texts = []
            for piece in pieces(data, (1, 1, 1, 6400, 320, 3, 20000)):
                t.say(piece)
                reply = await t.sent.get()
                assert t.sent.empty() and ("partial" in reply) != ("text" in reply)
                texts.append(reply.get("text", ""))
            t.say('{"eof" : 1}')
            texts.append((await t.sent.get())["text"])
            await run
            assert " ".join(filter(None, texts)) == heard(tiny, data) and t.closed == (1000, "done")

    within(60, test)


def test_deepgram(tiny_path: Path, tiny: Recognizer) -> None:
    data = sound(8)

    async def test() -> None:
        async with house(tiny_path) as h:
            t, _, run = h.connect("/v1/listen", f"{RAW}&interim_results=true&vad_events=true&utterance_end_ms=1000")
            t.say(*pieces(data, (3200,)), '{"type":"CloseStream"}')
            await run
            said = t.rest()
            finals = [m for m in said if m["type"] == "Results" and m["is_final"]]
            texts = [m["channel"]["alternatives"][0]["transcript"] for m in finals]
            assert " ".join(filter(None, texts)) == heard(tiny, data)
            assert said[-1]["duration"] == 8.0
            assert any(m["type"] == "SpeechStarted" for m in said)

    within(60, test)


@pytest.mark.parametrize("seed", range(4))
def test_drops_anywhere_lose_and_double_nothing(tiny_path: Path, tiny: Recognizer, seed: int) -> None:
    """The client keeps what it has sent and goes on from ``audio_samples``; every resume is at another place."""
    data, rng = sound(10, seed), np.random.default_rng(seed)

    async def test() -> None:
        async with house(tiny_path) as h:
            said: list[dict[str, Any]] = []
            keys: dict[str, Any] = {}
            position = 0
            for turn in range(4):
                t, _, run = h.connect()
                t.say(start(**keys))
                ready = await t.until("ready")
                position = 2 * ready.get("audio_samples", 0)
                said += t.rest()
                if turn == 3:
                    break
                piece = data[position : position + int(rng.integers(1, 80000))]
                t.say(*pieces(piece, (1001,)))
                if rng.random() < 0.5:
                    await asyncio.sleep(float(rng.uniform(0, 0.2)))
                t.drop()
                assert (await run).parked
                said += t.rest()
                last = max((m["seq"] for m in said if "seq" in m), default=0)
                keys = {"session": ready["session"], "secret": ready["secret"], "last_seq": last}
            t.say(data[position:], EOF)
            summary = await run
            said += t.rest()
            assert summary.resumed and text_of(said) == heard(tiny, data)
            numbers = [m["seq"] for m in said if m.get("type") == "final"]
            assert numbers == sorted(set(numbers))
            assert said[-1]["audio_samples"] == len(data) // 2

    within(60, test)


def test_flush_changes_nothing_after_it(tiny_path: Path, tiny: Recognizer) -> None:
    data = sound(6)

    async def test() -> None:
        async with house(tiny_path) as h:
            t, _, run = h.connect()
            t.say(start(), data[:70001], '{"type":"flush","id":"a"}')
            await t.until("flushed")
            t.say(data[70001:], '{"type":"flush","id":"b"}', EOF)
            await run
            assert text_of(t.rest()) in heard(tiny, data)
            assert h.witness.seen.count("Flushed") == 2

    within(60, test)


def test_reset_and_finalize_close_the_segment(tiny_path: Path) -> None:
    data = sound(3)

    async def test() -> None:
        async with house(tiny_path) as h:
            t, _, run = h.connect("/vosk")
            t.say('{"config":{"sample_rate":16000}}', data, '{"reset":1}', data, '{"eof":1}')
            await run
            assert len(t.rest()) == 4
            t, _, run = h.connect("/v1/listen", RAW)
            t.say(data, '{"type":"Finalize"}', '{"type":"Finalize"}', data, b"")
            await run
            finals = [m["from_finalize"] for m in t.rest() if m["type"] == "Results"]
            assert finals.count(True) >= 2 and finals[-1] is False

    within(60, test)


def test_options_reach_the_engine_and_unusable_ones_are_told(tiny_path: Path) -> None:
    async def test() -> None:
        async with house(tiny_path) as h:
            t, _, run = h.connect()
            t.say(start(hotwords=["stone", "猫"]))
            assert (await run).error == "usage" and "猫" in t.rest()[-1]["message"]
            t, _, run = h.connect()
            t.say(start(hotwords=["stone"], endpointing={"pause_s": 0.8}, lm="none", alternatives=2),
                  '{"type":"config","hotwords":["猫"]}', '{"type":"config","hotwords":[]}', EOF)  # fmt: skip
            assert (await run).error == ""
            said = t.rest()
            assert [m["type"] for m in said] == ["ready", "warning", "configured", "done"]
            config = said[0]["config"]
            assert config["hotwords"] == [{"text": "stone", "boost": 5.0}] and config["lm"] == "none"
            assert config["endpointing"]["pause_s"] == 0.8 and config["alternatives"] == 2
            assert said[2]["config"]["hotwords"] == []

    within(60, test)


def test_phrases_that_cannot_be_heard_are_left_out(tiny_path: Path) -> None:
    async def test() -> None:
        async with house(tiny_path) as h:
            t, _, run = h.connect("/vosk")
            t.say(json.dumps({"config": {"phrase_list": ["stone", "猫", "[unk]"]}}), sound(1), '{"eof":1}')
            assert (await run).error == ""
            assert ("phrases_ignored", {"count": 1}) in h.witness.seen
            t, _, run = h.connect("/v1/listen", f"{RAW}&keyterm=stone&keyterm=%E7%8C%AB")
            t.say(b"")
            await run
            assert any("猫" in w for w in t.rest()[-1]["warnings"])

    within(60, test)


def test_a_nan_sample_is_a_typed_error(tiny_path: Path) -> None:
    async def test() -> None:
        async with house(tiny_path) as h:
            t, _, run = h.connect()
            t.say(start(encoding="pcm_f32le"), np.full(1600, np.nan, "<f4").tobytes())
            assert (await run).error == "audio" and t.closed is not None and t.closed[0] == 1003

    within(60, test)


def test_company_changes_nothing(tiny_path: Path, tiny: Recognizer) -> None:
    """Eight at once on three protocols, one of which drops."""

    async def test() -> None:
        async with house(tiny_path) as h:
            talks: list[tuple[FakeTransport, Any, bytes]] = []
            for i in range(7):
                data = sound(4, i)
                t, _, run = h.connect()
                t.say(start(partials=i % 2 == 0), *pieces(data, (800 * (i + 1),)), EOF)
                talks.append((t, run, data))
            t, _, dropped = h.connect()
            t.say(sound(3, 9))
            t.drop()
            for t, run, data in talks:
                await run
                assert text_of(t.rest()) == heard(tiny, data)
            assert (await dropped).close_code == 1006 and h.engine.load.sessions == 0

    within(60, test)
