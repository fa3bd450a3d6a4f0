"""One server process from start to end: engine, server, signals."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import signal
import socket
from collections.abc import Callable
from typing import Any

from server.app import Server
from server.config import ServerConfig
from server.logs import log
from server.seats import Seats

END_SECONDS = 10.0  # what must end at once has so long


async def start_engine(config: ServerConfig) -> Any:
    """The engine that ``config`` describes. Raises AsrError for a model or device that cannot be used."""
    from asr.engine import Engine

    return await Engine.start(
        config.model,
        workers=config.engine_workers,
        slots=config.engine_slots,
        wait_ms=config.wait_ms,
        threads=config.threads,
        device=config.device,
        precision=config.precision,
        search=config.search,
    )


async def run(
    config: ServerConfig,
    *,
    sock: socket.socket | None = None,
    seats: Seats | None = None,
    ready: Callable[[], None] = lambda: None,
    stop: asyncio.Event | None = None,
    interrupts: bool = True,
) -> None:
    """Serve until SIGTERM or SIGINT (or ``stop``), then drain; a second signal ends at once. SIGHUP reloads.

    ``sock``, ``seats``: of a supervisor; ``ready`` is called when sessions are taken. ``interrupts``: whether SIGINT
    counts (the terminal sends it to all processes, and a supervisor speaks for its own).
    """
    stop, now = stop or asyncio.Event(), asyncio.Event()
    _on_signals(stop, now, interrupts)
    more_files()
    engine = await start_engine(config)
    try:
        server = Server(config, engine, seats=seats)
        if server.store.shared:
            await server.store.ping()
        await server.start(sock)
        try:
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, server.reload)
            place: dict[str, Any] = (
                {} if sock else {"host": config.host, "port": server.port, "tls": bool(config.tls_cert)}
            )
            log("listening", **place, model=engine.info.name, fingerprint=engine.info.fingerprint)
            ready()
            await stop.wait()
            drain = asyncio.create_task(server.drain())
            await _first(drain, asyncio.create_task(now.wait()))
        finally:
            async with _limit("server"):
                await server.close()
    finally:
        async with _limit("engine"):
            await engine.close()
    log("ended")


def _on_signals(stop: asyncio.Event, now: asyncio.Event, interrupts: bool) -> None:
    loop = asyncio.get_running_loop()

    def end() -> None:
        (now if stop.is_set() else stop).set()

    loop.add_signal_handler(signal.SIGTERM, end)
    loop.add_signal_handler(signal.SIGINT, end if interrupts else lambda: None)


async def _first(*tasks: asyncio.Task[Any]) -> None:
    """Wait for one of ``tasks``, then drop the others."""
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def _limit(what: str) -> Any:
    try:
        async with asyncio.timeout(END_SECONDS):
            yield
    except TimeoutError:
        log("not ended in time", what=what)


def more_files() -> None:
    """A connection is an open file: allow as many as the system lets us."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
