"""Plain HTTP on the port of the WebSockets, and refusals at the handshake."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from serving import dial, eventually, get, rest, run, serving, speech, until, url
from websockets.exceptions import InvalidStatus

from server.http import static_table
from server.metrics import Metrics, SessionMetrics


def test_health_and_models(tiny_path: Path) -> None:
    async def main() -> None:
        async with serving(tiny_path) as server:
            assert (await get(server.port, "/healthz"))[0] == 200
            status, headers, body = await get(server.port, "/readyz")
            assert status == 200 and headers["content-type"] == "application/json"
            state = {"ready": True, "reason": "", "sessions": 0, "max_sessions": 200, "lag_ms": 0}
            assert json.loads(body) == state
            models = json.loads((await get(server.port, "/v1/models"))[2])["models"]
            assert [m["name"] for m in models] == ["tiny"] and models[0]["words"] == 37
            status, headers, body = await get(server.port, "/metrics")
            assert status == 200 and headers["content-type"].startswith("text/plain") and b"asr_lag_seconds" in body
            status, headers, body = await get(server.port, "/healthz", "HEAD")
            assert (status, body, headers["content-length"]) == (200, b"", "6")
            status, _, body = await get(server.port, "/")
            assert status == 200 and body

    run(main)


@pytest.mark.parametrize(
    "target, status",
    [
        ("/nothing", 404),
        ("/v1/stream", 426),
        ("/static/../app.py", 404),
        ("/static/%2e%2e/app.py", 404),
        ("/../../etc/passwd", 404),
        ("//etc/passwd", 404),
        ("/static/", 404),
        ("/v1/models?x=%00", 200),
        ("http://other/healthz", 404),
        ("*", 404),
    ],
)
def test_no_path_is_a_file_name(tiny_path: Path, target: str, status: int) -> None:
    async def main() -> None:
        async with serving(tiny_path) as server:
            assert (await get(server.port, target))[0] == status

    run(main)


def test_other_methods_and_broken_requests_are_refused(tiny_path: Path) -> None:
    async def main() -> None:
        async with serving(tiny_path) as server:
            for method in ("POST", "PUT", "DELETE", "OPTIONS"):
                status, headers, _ = await get(server.port, "/healthz", method)
                assert status == 405 and headers["allow"] == "GET, HEAD"
            raws = (
                b"\0\xff\r\n\r\n",
                b"GET / HTTP/9\r\n\r\n",
                b"GET /" + b"a" * 20000 + b" HTTP/1.1\r\n\r\n",
                b"\r\n" * 9,
            )
            for raw in raws:
                assert (await get(server.port, "", raw=raw))[0] in (0, 400, 413, 414, 431)
            assert (await get(server.port, "/healthz"))[0] == 200

    run(main)


def test_files_of_the_page_come_from_a_table(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<html>")
    (tmp_path / "js").mkdir()
    (tmp_path / "js" / "app.js").write_text("1")
    (tmp_path / ".secret").write_text("s")
    (tmp_path / "link.txt").symlink_to("/etc/passwd")
    table = static_table(tmp_path)
    assert set(table) == {"/", "/static/index.html", "/static/js/app.js"}
    assert table["/"].type == "text/html; charset=utf-8" and table["/static/js/app.js"].type.startswith(
        "text/javascript"
    )
    assert "Content-Security-Policy" in table["/"].headers
    assert static_table(tmp_path / "none") == {}


def test_the_page_is_served_and_not_sent_twice(tiny_path: Path, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<html>page")

    async def main() -> None:
        async with serving(tiny_path) as server:
            server.gate.files = static_table(tmp_path)
            status, headers, body = await get(server.port, "/")
            assert (status, body) == (200, b"<html>page")
            status, _, body = await get(server.port, "/", If_None_Match=headers["etag"])
            assert (status, body) == (304, b"")
            async with dial(url(server, "/")) as connection:  # the same address by WebSocket is vosk's
                await connection.send('{"eof":1}')
                assert await rest(connection)

    run(main)


async def status_of(address: str, **options: Any) -> tuple[int, dict[str, str], dict[str, Any]]:
    """Of a handshake that is refused."""
    with pytest.raises(InvalidStatus) as refused:
        async with dial(address, **options):
            pass
    response = refused.value.response
    body = bytes(response.body or b"")
    return response.status_code, dict(response.headers), json.loads(body) if body.startswith(b"{") else {}


def test_unknown_paths_and_queries_are_refused(tiny_path: Path) -> None:
    async def main() -> None:
        async with serving(tiny_path) as server:
            assert (await status_of(url(server, "/v2/stream")))[0] == 404
            assert (await status_of(url(server, "/static/../v1/stream")))[0] == 404
            status, _, said = await status_of(url(server, "/v1/listen?encoding=opus&sample_rate=16000"))
            assert status == 400 and said["type"] == "error"
            assert server.seats.taken == 0

    run(main)


def test_tokens(tiny_path: Path, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("alpha\nbeta\n")

    async def main() -> None:
        async with serving(tiny_path, tokens=str(tmp_path / "tokens")) as server:
            for path in ("/v1/stream", "/vosk", "/v1/listen?encoding=linear16&sample_rate=16000"):
                for token in ("", "gamma", "alph", "alpha beta"):
                    status, headers, _ = await status_of(url(server, path), token=token)
                    assert (status, headers["www-authenticate"]) == (401, "Bearer")
                for options in ({"token": "alpha"}, {"subprotocols": ["token", "beta"]}):
                    async with dial(url(server, path), **options) as connection:
                        assert connection.subprotocol in (None, "token")
            assert (await get(server.port, "/healthz"))[0] == 200
            assert (await get(server.port, "/readyz"))[0] == 200
            for target in ("/metrics", "/v1/models"):
                assert (await get(server.port, target))[0] == 401
                assert (await get(server.port, target, Authorization="Bearer alpha"))[0] == 200
            (tmp_path / "tokens").write_text("gamma\n")
            server.reload()
            assert (await status_of(url(server), token="alpha"))[0] == 401
            async with dial(url(server), token="gamma"):
                pass
            (tmp_path / "tokens").write_text("")
            server.reload()  # a broken file: the old ones go on holding
            async with dial(url(server), token="gamma"):
                pass

    run(main)


def test_a_full_server_says_so_and_seats_come_back(tiny_path: Path) -> None:
    async def main() -> None:
        async with serving(tiny_path, max_sessions=2, retry_after_seconds=7) as server:
            async with dial(url(server)), dial(url(server, "/vosk")):
                status, headers, said = await status_of(url(server))
                assert (status, headers["retry-after"], said["code"], said["reason"]) == (503, "7", "full", "full")
            await eventually(lambda: not server.seats.taken)
            async with dial(url(server)):
                pass

    run(main)


def test_a_token_has_a_number_of_sessions(tiny_path: Path, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("alpha\nbeta\n")

    async def main() -> None:
        options = {"tokens": str(tmp_path / "tokens"), "sessions_per_token": 1}
        async with serving(tiny_path, **options) as server, dial(url(server), token="alpha"):
            status, _, said = await status_of(url(server), token="alpha")
            assert (status, said["reason"]) == (503, "token")
            async with dial(url(server), token="beta"):
                pass

    run(main)


def test_a_seat_is_not_lost_where_the_handshake_fails_after_it_was_given(tiny_path: Path) -> None:
    async def main() -> None:
        async with serving(tiny_path, max_sessions=1) as server:
            for _ in range(3):
                status, _, _ = await get(server.port, "/v1/stream", Upgrade="websocket", Connection="Upgrade")
                assert status == 400  # no key
                assert server.seats.taken == 0

    run(main)


def test_a_late_engine_refuses_new_sessions_and_warns_the_running(tiny_path: Path) -> None:
    async def main() -> None:
        async with serving(tiny_path, refuse_lag_ms=1000.0, lag_warning_ms=1000.0) as server:
            async with dial(url(server)) as running:
                await running.send('{"type":"start"}')
                await until(running, "ready")
                server.metrics.step(9000.0, live=False)  # audio of a file waits by back-pressure: no sign of anything
                await asyncio.sleep(1.2)
                assert not server.gate.not_ready()
                server.metrics.step(1500.0, live=True)
                warning = await until(running, "warning")
                assert (warning["code"], warning["lag_ms"]) == ("lagging", 1500)
                status, _, said = await status_of(url(server))
                assert (status, said["reason"]) == (503, "lagging")
                status, _, body = await get(server.port, "/readyz")
                assert status == 503 and json.loads(body)["reason"] == "lagging"
                await eventually(lambda: not server.gate.not_ready())
                await running.send(speech(1))
                await running.send('{"type":"eof"}')
                assert (await rest(running))[-1]["type"] == "done"
            async with dial(url(server)):
                pass

    run(main)


def test_which_sessions_are_live() -> None:
    now = [100.0]
    session = SessionMetrics(Metrics(), "x", clock=lambda: now[0])
    for _ in range(50):  # a microphone
        now[0] += 0.1
        session.audio(3200, 0.1)
        assert session.live
    now[0] += 60.0
    session.audio(320_000, 10.0)  # a file, after a pause
    assert not session.live
    now[0] += 8.9
    assert not session.live
    now[0] += 0.2
    assert session.live


def test_origins(tiny_path: Path) -> None:
    async def main() -> None:
        async with serving(tiny_path, origins="https://a.example, http://b.example:8080") as server:
            assert (await status_of(url(server), origin="https://evil.example"))[0] == 403
            for origin in ("https://a.example", "http://b.example:8080", None):
                async with dial(url(server), origin=origin):
                    pass

    run(main)
