"""recognizer.js and its parts, in a real browser against a real server."""

import base64
import itertools
import json
import random

import pytest
from chromium import Page
from tiny_model import babble
from web_house import Relay, Web, offline

from asr import writers
from asr.results import Segment, Transcript, Word

RATE = 16000
COUNT = """
const samples = (n, from = 0) => Int16Array.from({ length: n }, (_, i) => from + i);
"""


def pcm(seconds: float, seed: int = 0) -> bytes:
    return (babble(seconds, seed) * 32767).astype("<i2").tobytes()


def javascript(audio: bytes) -> str:
    """An Int16Array ``audio``."""
    text = base64.b64encode(audio).decode()
    return f"const audio = new Int16Array(Uint8Array.from(atob('{text}'), (c) => c.charCodeAt(0)).buffer);"


def transcripts() -> list[Transcript]:
    """Of all shapes: long and short words, pauses of all lengths, signs, segments without word times, none at all."""
    draw = random.Random(3)
    found = [Transcript((), 0.0), Transcript((Segment("a b  c", 1.0, 1.0),), 1.0)]
    for _ in range(30):
        at, segments = 0.0, []
        for index in range(draw.randint(1, 4)):
            words = []
            for _ in range(draw.randint(1, 30)):
                start = round(at + draw.choice([0.0, 0.05, 0.3, 0.9, 1.5]), 3)
                at = round(start + draw.uniform(0.05, 0.9), 3)
                words.append(
                    Word(
                        draw.choice(["a", "I", "R&D", "<b>", "water", "naïve", "counterrevolutionaries", "𝔘𝔫𝔦"]),
                        start,
                        at,
                    )
                )
            text = " ".join(w.text for w in words)
            timed = tuple(words) if draw.random() < 0.8 else ()
            segments.append(Segment(text, words[0].start, at, timed, index))
        found.append(Transcript(tuple(segments), round(at + draw.choice([0.0, 0.4, 3.0]), 3)))
    return found


def as_messages(transcript: Transcript) -> dict[str, object]:
    """As the page holds it: finals of the protocol."""
    segments = [
        {"text": s.text, "start": s.start, "end": s.end,
         "words": [{"word": w.text, "start": w.start, "end": w.end} for w in s.words]}
        for s in transcript.segments
    ]  # fmt: skip
    return {"duration": transcript.duration, "segments": segments}


def test_subtitles_are_those_of_the_command_line(web: Web) -> None:
    async def test() -> None:
        async with web.looking() as page:
            given = transcripts()
            messages = json.dumps([as_messages(t) for t in given])
            script = f"return {messages}.map((t) => [asr.toTxt(t), asr.toSrt(t), asr.toVtt(t)]);"
            for transcript, found in zip(given, await page.module(script), strict=True):
                assert found == [writers.render(transcript, name) for name in ("txt", "srt", "vtt")]

    web.run(test)


def test_backlog_keeps_the_latest_samples_and_knows_where_they_are(web: Web) -> None:
    async def test() -> None:
        async with web.looking() as page:
            found = await page.module(
                COUNT
                + """
                const { Backlog } = await import("/static/backlog.js");
                const backlog = new Backlog(1000);
                const seen = [];
                for (let at = 0; at < 3000; at += 70) backlog.push(samples(70, at), at);
                seen.push([backlog.start, backlog.end]);
                for (const at of [backlog.start, 2100, 2500, backlog.end - 1]) {
                  seen.push([at, backlog.at(at)[0], backlog.at(at).length, backlog.timeOf(at)]);
                }
                seen.push([backlog.at(backlog.end).length, backlog.at(0).length, backlog.timeOf(0) === undefined]);
                backlog.forget(2500);
                seen.push([backlog.start]);
                return seen;"""
            )
            (start, end), *inside, outside, (kept,) = found
            assert end == 3010 and 930 <= end - start <= 1000
            for at, first, left, time in inside:
                assert first == at and time == at // 70 * 70 and left == 70 - at % 70
            assert outside == [0, 0, True]
            assert kept == 2500 // 70 * 70

    web.run(test)


def test_alignment_follows_losses_and_new_sessions(web: Web) -> None:
    async def test() -> None:
        async with web.looking() as page:
            found = await page.module(
                """
                const { Alignment } = await import("/static/backlog.js");
                const map = new Alignment();
                const seen = [[0, 5, 100].map((s) => map.toClient(s))];
                map.join(100, 150); // 50 samples are lost after the first 100
                seen.push([0, 99, 100, 101, 200].map((s) => map.toClient(s)));
                map.join(60, 60); // the server has forgotten what it had after 60
                seen.push([60, 61, 101].map((s) => map.toClient(s)));
                map.join(0, 1000); // a new session
                seen.push([0, 1].map((s) => map.toClient(s)));
                return seen;"""
            )
            assert found == [[0, 5, 100], [0, 99, 100, 151, 250], [60, 61, 101], [1000, 1001]]

    web.run(test)


async def stream(page: Page, audio: bytes, options: str = "{}", during: str = "") -> dict[str, object]:
    """Finals, done and other events of a stream that gets ``audio`` as fast as it is taken."""
    return await page.module(
        f"""
        {javascript(audio)}
        const stream = new asr.Stream({options});
        const seen = {{ finals: [], partials: 0, lost: [], states: [], errors: [], warnings: [], flushed: [] }};
        stream.on("final", (f) => seen.finals.push(f)).on("partial", () => seen.partials++)
          .on("lost", (l) => seen.lost.push(l)).on("state", (s) => seen.states.push(s.state))
          .on("error", (e) => seen.errors.push(e)).on("warning", (w) => seen.warnings.push(w.code));
        {during}
        await stream.sendAll(audio);
        return {{ ...seen, done: await stream.end() }};"""
    )


def text(seen: dict) -> str:  # type: ignore[type-arg]
    return " ".join(f["text"] for f in seen["finals"] if f["text"])


def test_stream_gives_the_recognisers_text(web: Web, tiny: object) -> None:
    async def test() -> None:
        async with web.looking() as page:
            audio = pcm(30)
            seen = await stream(page, audio)
            assert text(seen) == offline(tiny, audio, RATE) != ""
            assert seen["done"]["audio_samples"] == len(audio) // 2
            assert seen["partials"] and not seen["lost"] and not seen["errors"] and not seen["warnings"]
            assert seen["states"] == ["connecting", "open", "closed"]
            words = [w for f in seen["finals"] for w in f["words"]]
            assert all(a["end"] <= b["start"] + 0.001 for a, b in itertools.pairwise(words))

    web.run(test)


def test_flush_tells_the_words_so_far_and_changes_nothing(web: Web, tiny: object) -> None:
    async def test() -> None:
        async with web.looking() as page:
            audio = pcm(8, seed=4)
            seen = await page.module(
                f"""{javascript(audio)} const seen = {{ finals: [] }}; const stream = new asr.Stream();
                stream.on("final", (f) => seen.finals.push(f));
                await stream.sendAll(audio.subarray(0, 50000));
                seen.flushed = await stream.flush();
                await stream.sendAll(audio.subarray(50000));
                await stream.end();
                return seen;"""
            )
            assert seen["flushed"][-1]["text"] and seen["flushed"][-1]["reason"] == "flush"
            assert text(seen) == offline(tiny, audio, RATE)

    web.run(test)


def test_config_holds_from_the_next_segment_on(web: Web) -> None:
    async def test() -> None:
        async with web.looking() as page:
            during = "stream.config({ lm: 'none', hotwords: [{ text: 'stone', boost: 3 }] });"
            seen = await stream(page, pcm(5), during=during)
            assert not seen["errors"] and not seen["warnings"]
            assert json.loads(page.sent[0])["lm"] == "none"  # it was changed before there was a connection
            during = "stream.on('ready', () => stream.config({ hotwords: ['toe'] }));"
            seen = await stream(page, pcm(5), during=during)
            assert any([h["text"] for h in m["config"]["hotwords"]] == ["toe"] for m in page.of("configured"))

    web.run(test)


def test_a_refused_config_is_a_warning_and_the_stream_goes_on(web: Web, tiny: object) -> None:
    async def test() -> None:
        async with web.looking() as page:
            during = "stream.on('ready', () => stream.config({ endpointing: { pause_s: 1, final_pause_s: 2 } }));"
            audio = pcm(30)
            seen = await stream(page, audio, during=during)
            assert len(seen["warnings"]) == 1 and not seen["errors"]
            assert text(seen) == offline(tiny, audio, RATE)

    web.run(test)


@pytest.mark.parametrize("option, code", [("{ lm: 'nonsense' }", "config"), ("{ sampleRate: 96000 }", "audio")])
def test_options_that_cannot_be_end_the_stream_with_the_servers_words(web: Web, option: str, code: str) -> None:
    async def test() -> None:
        async with web.looking() as page:
            seen = await stream(page, pcm(1), option)
            assert [e["code"] for e in seen["errors"]] == [code] and seen["done"] is None
            assert seen["states"][-1] == "closed"

    web.run(test)


def test_a_token_that_a_browser_cannot_send(web: Web) -> None:
    async def test() -> None:
        async with web.looking() as page:
            seen = await stream(page, pcm(1), "{ token: 'a b=' }")
            assert seen["errors"] == [
                {"code": "auth", "message": "This token has characters that a browser cannot send."}
            ]

    web.run(test)


CUTTING = """
  const sockets = [];
  const Real = globalThis.WebSocket;
  globalThis.WebSocket = class extends Real { constructor(...a) { super(...a); sockets.push(this); } };
  const cut = () => sockets.at(-1).readyState === Real.OPEN && sockets.at(-1).close();
"""


def test_cut_connections_are_resumed_and_no_word_is_lost(web: Web, tiny: object) -> None:
    """In real time, so that there is always something on the way; the connection is cut five times."""

    async def test() -> None:
        async with web.looking() as page:
            audio = pcm(12, seed=2)
            seen = await page.module(
                f"""{javascript(audio)} {CUTTING}
                const seen = {{ finals: [], lost: [], resumed: 0 }};
                const stream = new asr.Stream().on("final", (f) => seen.finals.push(f))
                  .on("lost", (l) => seen.lost.push(l)).on("ready", (r) => (seen.resumed += r.resumed === true));
                for (let at = 0, frame = 0; at < audio.length; at += 320, frame++) {{
                  stream.send(audio.slice(at, at + 320));
                  if (frame % 110 === 100) cut();
                  await new Promise((resolve) => setTimeout(resolve, 15));
                }}
                seen.done = await stream.end();
                return seen;"""
            )
            assert seen["resumed"] >= 3 and not seen["lost"]
            assert text(seen) == offline(tiny, audio, RATE)
            assert seen["done"]["audio_samples"] == len(audio) // 2

    web.run(test)


def test_a_dead_network_is_noticed_and_no_word_is_lost(web: Web, tiny: object) -> None:
    """Half open: nobody closes anything, and nothing comes any more. The server may still believe in the
    session; then a new one gets again what has no final."""

    async def test() -> None:
        async with web.looking() as page, Relay(int(page.url.rstrip("/").rpartition(":")[2])) as relay:
            audio = pcm(6, seed=2)
            await page.module(
                f"""{javascript(audio)}
                const seen = globalThis.seen = {{ finals: [], lost: [], states: [] }};
                const url = "ws://127.0.0.1:{relay.port}/v1/stream";
                const stream = globalThis.stream = new asr.Stream({{ url, stallSeconds: 3 }});
                stream.on("final", (f) => seen.finals.push(f)).on("lost", (l) => seen.lost.push(l))
                  .on("state", (s) => seen.states.push(s.state));
                globalThis.give = async (from, to) => {{
                  for (let at = from; at < to; at += 320) {{
                    stream.send(audio.slice(at, at + 320));
                    await new Promise((resolve) => setTimeout(resolve, 5));
                  }}
                }};
                await give(0, 40000);"""
            )
            relay.dead()
            await page.run("give(40000, 96000)")
            await page.until("seen.states.includes('waiting')", 60)
            done = await page.run("stream.end()")
            seen = await page.run("seen")
            states = [state for state, _ in itertools.groupby(seen["states"])]
            assert states == ["connecting", "open", "waiting", "open", "closed"] and not seen["lost"]
            assert text(seen) == offline(tiny, audio, RATE)
            assert done is not None
            page.hosts.discard(f"127.0.0.1:{relay.port}")

    web.run(test)


def test_audio_beyond_the_buffer_is_lost_and_told_in_seconds(web: Web) -> None:
    """Five seconds are said while there is no connection, and two are kept: three are lost, and times go on right."""

    async def test() -> None:
        async with web.looking() as page:
            audio = pcm(12, seed=2)
            seen = await page.module(
                f"""{javascript(audio)} {CUTTING}
                const seen = {{ finals: [], lost: [] }};
                const stream = new asr.Stream({{ bufferSeconds: 2 }}).on("final", (f) => seen.finals.push(f))
                  .on("lost", (l) => seen.lost.push(l));
                const give = async (from, to) => {{
                  for (let at = from; at < to; at += 320) {{
                    stream.send(audio.slice(at, Math.min(to, at + 320)));
                    if (at % 3200 === 0) await stream.room();
                  }}
                }};
                await give(0, 4 * 16000);
                await new Promise((resolve) => setTimeout(resolve, 700)); // all of it is on its way
                cut();
                for (let at = 4 * 16000; at < 9 * 16000; at += 320) stream.send(audio.slice(at, at + 320));
                await stream.room();
                await give(9 * 16000, audio.length);
                seen.done = await stream.end();
                seen.duration = stream.duration;
                return seen;"""
            )
            assert len(seen["lost"]) == 1 and seen["lost"][0] == pytest.approx(
                {"seconds": 3, "from": 4, "to": 7}, abs=0.05
            )
            assert seen["done"]["audio_seconds"] == pytest.approx(9, abs=0.05)
            assert seen["duration"] == pytest.approx(12)
            words = [w for f in seen["finals"] for w in f["words"]]
            assert max(w["end"] for w in words) > 9.5  # on the client's clock

    web.run(test)


def test_a_file_that_is_sent_fast_does_not_outrun_the_server(web: Web) -> None:
    """What is unanswered stays below what can be sent again, however long the file."""

    async def test() -> None:
        async with web.looking() as page:
            most = await page.module(
                f"""{javascript(pcm(60, seed=8))} let most = 0;
                const stream = new asr.Stream();
                await stream.sendAll(audio, () => (most = Math.max(most, stream.waiting)));
                await stream.end();
                return most;"""
            )
            assert most <= 2.0
            sent = [len(f) if isinstance(f, bytes) else 0 for f in page.sent]
            assert sum(sent) == 60 * RATE * 2

    web.run(test)
