"""The server's numbers are those that its clients saw."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from serving import RATE, dial, eventually, get, listen, listen_text, run, serving, speech, stream, url, vosk, vosk_text
from test_app_hostile import ending

from server.logs import JsonFormatter


async def samples(port: int) -> dict[tuple[str, ...], float]:
    """All values by name and labels, as Prometheus reads them."""
    status, _, body = await get(port, "/metrics")
    assert status == 200
    families = list(text_string_to_metric_families(body.decode()))
    return {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}


def test_they_add_up(tiny_path: Path) -> None:
    pcms = [speech(seconds, seed=seconds) for seconds in (2, 3, 4, 5)]

    async def main() -> None:
        async with serving(tiny_path, max_sessions=3) as server:
            a = await stream(url(server), pcms[0])
            b = await stream(url(server), pcms[1], partials=False)
            c = await vosk(url(server, "/vosk"), pcms[2])
            d = await listen(url(server, f"/v1/listen?encoding=linear16&sample_rate={RATE}"), pcms[3])
            await ending(server, "junk")
            assert (await get(server.port, "/v1/nothing", Upgrade="websocket"))[0] == 404
            async with dial(url(server)), dial(url(server)), dial(url(server)):
                assert (await get(server.port, "/v1/stream", Upgrade="websocket"))[0] == 503
                live = await samples(server.port)
                assert live["asr_connections", "stream"] == 3
            await eventually(lambda: not server.sessions)
            found = await samples(server.port)

            assert [found["asr_sessions_opened_total", p] for p in ("stream", "vosk", "deepgram")] == [2, 1, 1]
            assert found["asr_audio_seconds_total",] == pytest.approx(14.0)
            assert found["asr_received_bytes_total",] == sum(map(len, pcms))
            words = [m["text"] for m in (*a, *b) if m["type"] == "final"] + [vosk_text(c), listen_text(d)]
            assert found["asr_words_total",] == len(" ".join(words).split())
            assert found["asr_finals_total",] >= a[-1]["segments"] + b[-1]["segments"] + 2
            assert found["asr_refusals_total", "path"] == 1 and found["asr_refusals_total", "full"] == 1
            assert found["asr_errors_total", "json"] == 1
            assert found["asr_connections_closed_total", "1000"] == 4
            assert found["asr_connections_closed_total", "1007"] == 1
            assert all(found["asr_connections", p] == 0 for p in ("stream", "vosk", "deepgram"))
            sent = sum(len(json.dumps(m, ensure_ascii=False, separators=(",", ":"))) for m in (*a, *b))
            assert found["asr_sent_bytes_total",] > sent
            assert found["asr_lag_seconds_count", "live"] + found["asr_lag_seconds_count", "ahead"] >= 4
            assert found["asr_engine_workers",] == 1 and found["asr_engine_slots",] == 100

    run(main)


def test_they_can_be_turned_off(tiny_path: Path) -> None:
    async def main() -> None:
        async with serving(tiny_path, metrics=False) as server:
            assert (await get(server.port, "/metrics"))[0] == 404

    run(main)


@pytest.mark.parametrize("asked", [False, True])
def test_logs_are_json_with_ids_and_hold_texts_only_where_asked_for(
    tiny_path: Path, caplog: pytest.LogCaptureFixture, asked: bool
) -> None:
    caplog.set_level(logging.INFO, "asr.server")
    said: list[dict[str, Any]] = []

    async def main() -> None:
        async with serving(tiny_path, log_transcripts=asked) as server:
            said.extend(await stream(url(server), speech(3, seed=2)))
            await eventually(lambda: not server.sessions)

    run(main)
    lines = [json.loads(JsonFormatter().format(record)) for record in caplog.records if record.name == "asr.server"]
    assert {"connected", "session open", "disconnected"} <= {line["event"] for line in lines}
    done = next(line for line in lines if line["event"] == "disconnected")
    assert done["session"] == said[0]["session"] and done["close_code"] == 1000 and done["audio_s"] == 3.0
    whole = json.dumps(lines)
    assert said[0]["secret"] not in whole
    texts = [message["text"] for message in said if message["type"] == "final"]
    assert texts and all((text in whole) is asked for text in texts)


def test_a_log_line_is_one_line_whatever_is_in_it() -> None:
    record = logging.LogRecord("asr.server", logging.INFO, "", 0, "event\nforged", None, None)
    record.fields = {"text": "a\nb\u2028\x1b[0m", "object": Path("/x")}
    line = JsonFormatter().format(record)
    assert line.isascii() and "\n" not in line and "\x1b" not in line and json.loads(line)["text"].startswith("a\nb")
