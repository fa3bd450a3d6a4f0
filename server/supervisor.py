"""Several server processes on one port.

The supervisor alone listens. It hands each new connection, by its file descriptor, to the process with the fewest
sessions; so a process is full only when all are, which neither a shared socket nor SO_REUSEPORT would give. It reads
nothing from the connections and never computes. A process that dies is started again, and while it is away the others
get what comes. Processes whose supervisor is gone drain and end.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import socket
import tempfile
import time
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from typing import Any

from asr.errors import ERRORS, AsrError, UsageError
from server.config import ServerConfig
from server.logs import log, set_up
from server.seats import Seats, Table

METRICS = "PROMETHEUS_MULTIPROC_DIR"
RECENT_SECONDS = 0.5  # so long until a connection that was handed over shows in the count of sessions
BACKOFF_SECONDS = (0.5, 30.0)
STEADY_SECONDS = 30.0  # who lived so long is started again without delay
BACKLOG = 1024


class HandedSocket(socket.socket):
    """Looks like a listening socket to asyncio; what it accepts was accepted by the supervisor and comes through it."""

    gone: Any = None  # called when the supervisor is

    def listen(self, backlog: int = 0) -> None:
        """The supervisor does that."""

    def accept(self) -> tuple[socket.socket, Any]:
        """The next connection; BlockingIOError if there is none."""
        try:
            data, handed, _, _ = socket.recv_fds(self, 1, 1)
        except ConnectionError:
            data, handed = b"", []
        if not data:
            asyncio.get_running_loop().remove_reader(self.fileno())
            self.gone()
        if not handed:
            raise BlockingIOError
        connection = socket.socket(fileno=handed[0])
        try:
            return connection, connection.getpeername()
        except OSError:  # it has hung up already
            return connection, None


@dataclass
class _Worker:
    row: int
    process: BaseProcess
    channel: socket.socket
    started: float
    ready: bool = False
    error: tuple[str, str] | None = None  # code and text with which it could not start
    handed: list[float] = field(default_factory=list)


class Supervisor:
    """``await Supervisor(config).run()`` serves until SIGTERM or SIGINT."""

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self._context = multiprocessing.get_context("spawn")
        self._table = Table(config.workers, context=self._context)
        self._workers: dict[int, _Worker] = {}
        self._delays: dict[int, float] = {}
        self._stopping = self._steady = False
        self._changed = asyncio.Event()
        self._error: AsrError | None = None
        self.port = 0

    async def run(self) -> None:
        """Raises AsrError if the port cannot be had or no process can start (a missing model, say)."""
        listeners = await self._listen()
        os.environ[METRICS] = folder = tempfile.mkdtemp(prefix="asr-metrics-")
        self._on_signals()
        accepting: list[asyncio.Task[None]] = []
        try:
            for row in range(self.config.workers):
                self._start(row)
            accepting = [asyncio.create_task(self._accept(listener)) for listener in listeners]
            log("supervisor", port=self.port, workers=self.config.workers, pid=os.getpid())
            while self._workers or not self._stopping:
                await self._changed.wait()
                self._changed.clear()
        finally:
            for task in accepting:
                task.cancel()
            await asyncio.gather(*accepting, return_exceptions=True)
            for listener in listeners:
                listener.close()
            await self._kill()
            os.environ.pop(METRICS, None)
            shutil.rmtree(folder, ignore_errors=True)
        if self._error:
            raise self._error

    async def _listen(self) -> list[socket.socket]:
        host, port, found = self.config.host or None, self.config.port, []
        try:
            loop = asyncio.get_running_loop()
            for family, _, _, _, address in await loop.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            ):
                address = (address[0], self.port or port, *address[2:])
                listener = socket.create_server(address, family=family, backlog=BACKLOG)
                listener.setblocking(False)
                found.append(listener)
                self.port = int(listener.getsockname()[1])
        except OSError as error:
            for listener in found:
                listener.close()
            raise UsageError(f"cannot listen on {host}:{port}: {error.strerror or error}") from None
        return found

    # --- processes

    def _start(self, row: int) -> None:
        if self._stopping:
            return
        ours, theirs = socket.socketpair()
        self._table.clear(row)
        process = self._context.Process(
            target=work, args=(self.config, row, self._table, theirs), name=f"asr-server-{row}"
        )
        process.start()
        theirs.close()
        ours.setblocking(False)
        worker = _Worker(row, process, ours, time.monotonic())
        self._workers[row] = worker
        loop = asyncio.get_running_loop()
        loop.add_reader(ours, self._hear, worker)
        loop.add_reader(process.sentinel, self._died, worker)

    def _hear(self, worker: _Worker) -> None:
        """It says once that it is ready, or why it cannot start."""
        try:
            data = worker.channel.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(worker.channel)
            return
        for line in data.splitlines():
            said = json.loads(line)
            if said.get("ready"):
                worker.ready = self._steady = True
                self._delays.pop(worker.row, None)
            else:
                worker.error = said["code"], said["message"]

    def _died(self, worker: _Worker) -> None:
        self._hear(worker)
        loop = asyncio.get_running_loop()
        loop.remove_reader(worker.channel)
        loop.remove_reader(worker.process.sentinel)
        worker.process.join()
        worker.channel.close()
        self._table.clear(worker.row)
        self._forget_metrics(worker.process.pid)
        del self._workers[worker.row]
        self._changed.set()
        if self._stopping:
            return
        log("server process ended", row=worker.row, status=worker.process.exitcode)
        if not self._steady and worker.error:
            self._error = _as_error(*worker.error)
            self.stop()
            return
        lived = time.monotonic() - worker.started
        least, most = BACKOFF_SECONDS
        delay = least if lived > STEADY_SECONDS else min(most, 2 * self._delays.get(worker.row, least / 2))
        self._delays[worker.row] = delay
        loop.call_later(delay, self._start, worker.row)

    def _forget_metrics(self, pid: int | None) -> None:
        """Its gauges; what it counted stays."""
        from prometheus_client import multiprocess

        with contextlib.suppress(OSError):
            multiprocess.mark_process_dead(pid)  # type: ignore[no-untyped-call]

    # --- connections

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError:  # no file descriptors left, or a client that is gone
                await asyncio.sleep(0.05)
                continue
            with connection:
                await self._hand(connection)

    async def _hand(self, connection: socket.socket) -> None:
        """Give ``connection`` to the best process; wait while there is none."""
        while True:
            for worker in sorted((w for w in self._workers.values() if w.ready), key=self._load):
                try:
                    socket.send_fds(worker.channel, [b"c"], [connection.fileno()])
                except OSError:  # it dies, or is stuck and its channel full
                    continue
                worker.handed.append(time.monotonic())
                return
            await asyncio.sleep(0.05)

    def _load(self, worker: _Worker) -> tuple[bool, int]:
        now = time.monotonic()
        worker.handed = [at for at in worker.handed if now - at < RECENT_SECONDS]
        return self._table.busy(worker.row), self._table.sessions(worker.row) + len(worker.handed)

    # --- the end

    def _on_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        loop.add_signal_handler(signal.SIGHUP, self._tell, signal.SIGHUP)

    def stop(self) -> None:
        """Let all processes drain; called again, they end at once. Until then they answer new clients with 503."""
        if not self._stopping:
            limits = self.config.limits
            most = self.config.drain_seconds + limits.engine_seconds + limits.close_seconds + 30.0
            asyncio.get_running_loop().call_later(most, self._tell, signal.SIGKILL)
        self._stopping = True
        self._tell(signal.SIGTERM)
        self._changed.set()

    def _tell(self, number: int) -> None:
        for worker in self._workers.values():
            if worker.process.pid and worker.process.is_alive():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker.process.pid, number)

    async def _kill(self) -> None:
        """Whoever is left, however this ends."""
        loop = asyncio.get_running_loop()
        for worker in self._workers.values():
            loop.remove_reader(worker.channel)
            loop.remove_reader(worker.process.sentinel)
            worker.process.kill()
            worker.channel.close()
        for worker in self._workers.values():
            await asyncio.to_thread(worker.process.join, 5.0)


def _as_error(code: str, message: str) -> AsrError:
    error = AsrError(message)
    error.code = code if code in ERRORS else "error"
    return error


def work(config: ServerConfig, row: int, table: Table, channel: socket.socket) -> None:
    """A server process: started by the supervisor, which speaks through ``channel``."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    set_up(config.log_level)
    handed = HandedSocket(fileno=channel.detach())
    handed.setblocking(False)
    try:
        asyncio.run(_work(config, row, table, handed))
    except AsrError as error:
        with contextlib.suppress(OSError):
            handed.send(json.dumps({"code": error.code, "message": str(error)[:1000]}).encode() + b"\n")
        raise SystemExit(ERRORS[error.code].exit_status) from None


async def _work(config: ServerConfig, row: int, table: Table, handed: HandedSocket) -> None:
    from server.process import run

    stop = asyncio.Event()
    handed.gone = stop.set
    seats = Seats(config.max_sessions, config.sessions_per_token, config.slots, table, row)

    def ready() -> None:
        handed.send(b'{"ready": true}\n')

    await run(config, sock=handed, seats=seats, ready=ready, stop=stop, interrupts=False)
