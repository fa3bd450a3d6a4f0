"""``asr serve`` as it runs: real processes, real signals, several server processes on one port."""

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis_server import running_redis
from serving import chunks, dial, eventually, finals, get, offline, rest, run, speech, stream, until, url
from test_app_resume import last_seq
from websockets.exceptions import InvalidHandshake, InvalidMessage, InvalidStatus

pytestmark = pytest.mark.slow
START_SECONDS, END_SECONDS = 240.0, 240.0  # a machine that does other work, too
PCM = speech(4, seed=31)


class Served:
    """A running ``asr serve``: its log as it comes, and its port."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        command = [sys.executable, "-m", "asr", "serve", "--port", "0", *arguments]
        variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=variables)
        self.lines: list[dict[str, Any]] = []
        self.other: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            try:
                self.lines.append(json.loads(line))
            except json.JSONDecodeError:
                self.other.append(line)

    def events(self, name: str) -> list[dict[str, Any]]:
        return [line for line in list(self.lines) if line["event"] == name]

    def wait_for(self, name: str, count: int = 1) -> list[dict[str, Any]]:
        end = time.monotonic() + START_SECONDS
        while len(self.events(name)) < count:
            assert self.process.poll() is None, (self.lines, self.other)
            assert time.monotonic() < end, (self.lines, self.other)
            time.sleep(0.05)
        return self.events(name)

    @property
    def port(self) -> int:
        return next(
            int(line["port"]) for line in self.events("listening") + self.events("supervisor") if "port" in line
        )

    def end(self) -> int:
        try:
            return self.process.wait(END_SECONDS)
        finally:
            self.process.kill()


@contextlib.contextmanager
def served(model: Path, *arguments: str, processes: int = 1, **environment: str) -> Iterator[Served]:
    options = ["--model", str(model), "--drain-seconds", "5", "--workers", str(processes), *arguments]
    server = Served(*options, **environment)
    try:
        server.wait_for("listening", processes)
        yield server
    finally:
        if server.process.poll() is None:
            server.process.terminate()
            try:
                server.process.wait(END_SECONDS)
            except subprocess.TimeoutExpired:
                server.process.kill()
                raise


def children(pid: int) -> list[int]:
    """Processes that ``pid`` started, and theirs."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError):
            fields = status.read_text().rpartition(")")[2].split()
            if int(fields[1]) == pid and fields[0] != "Z":
                found.append(int(status.parent.name))
    return found + [deeper for child in found for deeper in children(child)]


def wait_until_gone(pids: list[int]) -> None:
    """They have ended, or do so within seconds."""
    end = time.monotonic() + 20
    while left := [pid for pid in pids if running(pid)]:
        assert time.monotonic() < end, left
        time.sleep(0.05)


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def sample(text: str, name: str) -> float:
    """The value of a metric (with its labels as written), 0 where there is none."""
    found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_sigterm_under_load_drains_and_leaves_nothing_behind(tiny_path: Path, tiny: Any) -> None:
    with served(tiny_path, "--drain-seconds", "60") as server:
        family = children(server.process.pid)
        assert family  # the engine

        async def one(n: int, ready: asyncio.Barrier) -> None:
            async with dial(url(server.port)) as connection:
                await connection.send('{"type":"start"}')
                await until(connection, "ready")
                reading = asyncio.create_task(rest(connection))
                pieces = chunks(PCM)
                for at, chunk in enumerate(pieces):
                    if at == 10:
                        await ready.wait()
                    await connection.send(chunk)
                    await asyncio.sleep(0.02)
                await connection.send('{"type":"eof"}')
                assert finals(await reading) == offline_text
                assert connection.close_code == 1000

        async def main() -> None:
            ready = asyncio.Barrier(11)
            running = [asyncio.create_task(one(n, ready)) for n in range(10)]
            await ready.wait()
            server.process.send_signal(signal.SIGTERM)
            await eventually(lambda: server.events("draining"))
            with pytest.raises(InvalidStatus) as refused:
                async with dial(url(server.port)):
                    pass
            assert refused.value.response.status_code == 503
            await asyncio.gather(*running)

        offline_text = offline(tiny, PCM)
        run(main)
        assert server.end() == 0
        assert not server.other and not any("traceback" in line for line in server.lines), (server.other, server.lines)
        wait_until_gone(family)


def test_a_second_signal_ends_at_once_and_no_text_is_in_the_log(tiny_path: Path) -> None:
    with served(tiny_path, "--session-store", "memory") as server:

        async def main() -> None:
            async with dial(url(server.port)) as connection:
                await connection.send('{"type":"start"}')
                await until(connection, "ready")
                for chunk in chunks(PCM):
                    await connection.send(chunk)
                await until(connection, "final")
                server.process.send_signal(signal.SIGINT)
                await eventually(lambda: server.events("draining"))
                server.process.send_signal(signal.SIGINT)
                await rest(connection)
                assert connection.close_code == 1001

        run(main)
        assert server.end() == 0
        config = server.events("configuration")[0]
        assert config["model"] == str(tiny_path) and config["drain_seconds"] == 5.0
        opened = server.events("session open")[0]
        done = server.events("disconnected")[0]
        assert opened["session"] == done["session"] and done["audio_s"] == 4.0 and done["words"] > 0
        assert not server.events("final") and not any("text" in line for line in server.lines)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, tiny_path: Path) -> Iterator[tuple[Served, Path]]:
    """Two server processes behind one port that share a Redis and a file of tokens."""
    tokens = tmp_path_factory.mktemp("pair") / "tokens"
    tokens.write_text("alpha\nbeta\n")
    options = ("--tokens", str(tokens), "--sessions-per-token", "3", "--max-sessions", "6", "--log-transcripts")
    with running_redis() as store, served(tiny_path, *options, "--session-store", store, processes=2) as server:
        yield server, tokens


def test_two_processes_share_sessions_limits_and_metrics(pair: tuple[Served, Path], tiny: Any) -> None:
    server, _ = pair

    async def metrics() -> str:
        status, _, body = await get(server.port, "/metrics", Authorization="Bearer beta")
        assert status == 200
        return body.decode()

    async def main() -> None:
        before = await metrics()
        async with contextlib.AsyncExitStack() as stack:
            held = [await stack.enter_async_context(dial(url(server.port), "alpha")) for _ in range(3)]
            for connection in held:
                await connection.send('{"type":"start"}')
                await until(connection, "ready")
            with pytest.raises(InvalidStatus) as refused:  # the fourth of this token, in whichever process
                await stack.enter_async_context(dial(url(server.port), "alpha"))
            assert b'"token"' in bytes(refused.value.response.body or b"")
            more = [await stack.enter_async_context(dial(url(server.port), "beta")) for _ in range(3)]
            with pytest.raises(InvalidStatus) as refused:
                await stack.enter_async_context(dial(url(server.port)))
            assert refused.value.response.status_code == 401
            during = await metrics()
            assert sample(during, 'asr_connections{protocol="stream"}') == 6
            assert len({line["process"] for line in server.events("connected")}) == 2  # spread over both
            for connection in held:
                await connection.send(PCM)
                await connection.send('{"type":"eof"}')
            texts = [finals(await rest(connection)) for connection in held]
            assert texts == [offline(tiny, PCM)] * 3
            del more
        after = await metrics()

        def grown(name: str) -> float:
            return sample(after, name) - sample(before, name)

        assert grown('asr_sessions_opened_total{protocol="stream"}') == 3
        assert grown("asr_audio_seconds_total") == pytest.approx(12.0)
        assert grown("asr_received_bytes_total") == 3 * len(PCM)
        assert grown("asr_words_total") == sum(len(text.split()) for text in texts)
        assert grown('asr_refusals_total{reason="token"}') == 1 and grown('asr_refusals_total{reason="auth"}') == 1
        assert sample(after, "asr_engine_workers") == 2

    run(main)
    assert any(line.get("text") for line in server.events("final"))  # asked for with --log-transcripts


async def dial_again(port: int) -> Any:
    """Until it answers: a connection may still go to the process that was just killed, and clients try again."""
    while True:
        try:
            return await dial(url(port), "alpha")
        except (InvalidHandshake, InvalidMessage, EOFError, OSError):
            await asyncio.sleep(0.1)


def test_a_process_that_dies_is_started_again_and_its_parked_sessions_go_on_elsewhere(
    pair: tuple[Served, Path], tiny: Any
) -> None:
    server, _ = pair
    processes = {line["process"] for line in server.events("listening")}

    async def main() -> None:
        connection = await dial(url(server.port), "alpha")
        await connection.send('{"type":"start"}')
        ready = await until(connection, "ready")
        for chunk in chunks(PCM)[:20]:
            await connection.send(chunk)
        await asyncio.sleep(1.0)
        reading = asyncio.create_task(rest(connection))
        connection.transport.abort()
        before = await reading
        await eventually(lambda: any(line.get("session") == ready["session"] for line in server.events("disconnected")))
        home = next(line["process"] for line in server.events("session open") if line["session"] == ready["session"])
        os.kill(home, signal.SIGKILL)
        async with await dial_again(server.port) as again:
            names = {name: ready[name] for name in ("session", "secret")}
            await again.send(json.dumps({"type": "start", **names, "last_seq": last_seq(before)}))
            first = await until(again, "ready", "error")
            assert first.get("resumed") is True, first
            for chunk in chunks(PCM[first["audio_samples"] * 2 :]):
                await again.send(chunk)
            await again.send('{"type":"eof"}')
            assert finals(before + await rest(again)) == offline(tiny, PCM)
        other = next(
            line["process"] for line in reversed(server.events("session open")) if line["session"] == ready["session"]
        )
        assert other != home
        await eventually(lambda: len(server.events("listening")) == 3, START_SECONDS)
        assert server.events("listening")[-1]["process"] not in processes
        assert finals(await stream(url(server.port), PCM, token="beta")) == offline(tiny, PCM)

    run(main, 120.0)


def test_sighup_reloads_the_tokens_of_all_processes(pair: tuple[Served, Path]) -> None:
    server, tokens = pair
    already = len(server.events("reloaded"))
    tokens.write_text("gamma\n")
    server.process.send_signal(signal.SIGHUP)
    server.wait_for("reloaded", already + 2)

    async def main() -> None:
        for _ in range(4):
            assert (await get(server.port, "/v1/models", Authorization="Bearer gamma"))[0] == 200
            assert (await get(server.port, "/v1/models", Authorization="Bearer alpha"))[0] == 401

    run(main)


def test_the_pair_drains_and_leaves_nothing_behind(pair: tuple[Served, Path]) -> None:
    server, _ = pair  # last of its tests
    family = children(server.process.pid)
    server.process.terminate()
    assert server.end() == 0
    assert len(server.events("drained")) >= 2
    assert not server.other, server.other
    wait_until_gone(family)


@pytest.mark.parametrize("processes", ["1", "2"])
def test_what_cannot_start_ends_with_one_line(tmp_path: Path, processes: str) -> None:
    server = Served("--model", str(tmp_path / "none"), "--workers", processes)
    assert server.end() == 5  # of the table: model
    errors = [line for line in server.other if line.startswith("asr: ")]
    assert len(errors) == 1 and "none" in errors[0] and "Traceback" not in "".join(server.other)


def test_a_port_that_is_taken_is_named(tiny_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = Served("--model", str(tiny_path), "--port", str(port), "--workers", "2")
        assert server.end() == 2
    assert any(f"cannot listen on 127.0.0.1:{port}" in line for line in server.other)
