"""Servers and the browser that looks at their pages: one engine and one browser for all tests: both start slowly."""

import asyncio
import contextlib
import wave
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from chromium import Browser, Page, browse
from numpy.typing import NDArray

from asr.engine import Engine
from server.app import Server
from server.config import load_config

SECONDS = 120.0  # no test takes longer


class Web:
    """Runs the coroutines of tests on one event loop. ``sound`` is what the microphone hears, again at each start."""

    def __init__(self, runner: asyncio.Runner, engine: Engine, browser: Browser) -> None:
        self._runner, self.engine, self.browser = runner, engine, browser

    def run(self, test: Callable[[], Awaitable[None]], seconds: float = SECONDS) -> None:
        """Run a test; it fails when it would hang."""

        async def limited() -> None:
            async with asyncio.timeout(seconds):
                await test()

        self._runner.run(limited())

    @contextlib.asynccontextmanager
    async def serving(self, **options: Any) -> AsyncIterator[Server]:
        """A server of its own for a test."""
        settings = {"port": 0, "close_seconds": 1.0, "resume_wait_seconds": 0.5, **options}
        server = Server(load_config(settings, {}), self.engine)
        await server.start()
        try:
            yield server
        finally:
            await server.close()

    @contextlib.asynccontextmanager
    async def looking(self, path: str = "", downloads: Path | None = None, **options: Any) -> AsyncIterator[Page]:
        """A server and its page at ``path``, open. What the page logs as an error fails the test, unless the test
        takes it away, and so does a request to another host."""
        async with self.serving(**options) as server, self.browser.page(downloads) as page:
            page.url = f"http://127.0.0.1:{server.port}/"
            await page.open(page.url + path)
            yield page
            assert page.errors == [], page.errors
            assert page.hosts == {f"127.0.0.1:{server.port}"}


class Relay:
    """A network between the page and the server, which may go dead without a word: ``dead`` swallows all bytes of the
    connections that there are."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._tasks: set[asyncio.Task[None]] = set()
        self._epoch = 0

    async def __aenter__(self) -> "Relay":
        self._server = await asyncio.start_server(self._join, "127.0.0.1", 0)
        self.port = int(self._server.sockets[0].getsockname()[1])
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def dead(self) -> None:
        self._epoch += 1

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._target)
        for source, sink in ((reader, back), (there, writer)):
            task = asyncio.create_task(self._pass(source, sink, self._epoch))
            self._tasks.add(task)

    async def _pass(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, epoch: int) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await source.read(65536):
                if epoch == self._epoch:
                    sink.write(data)
            if epoch == self._epoch:
                sink.close()


@contextlib.contextmanager
def houses(folder: Path, model: Path, sound: Path) -> Iterator[Web]:
    """The one of all tests."""
    with asyncio.Runner() as runner:
        stack = contextlib.AsyncExitStack()

        async def start() -> Web:
            engine = await Engine.start(str(model), in_thread=True, slots=8)
            stack.push_async_callback(engine.close)
            browser = await stack.enter_async_context(browse(folder / "profile", sound))
            return Web(runner, engine, browser)

        try:
            yield runner.run(start())
        finally:
            runner.run(stack.aclose())


def write_wav(path: Path, samples: NDArray[np.float32], rate: int) -> Path:
    """16-bit mono."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
    return path


def offline(recognizer: Any, pcm: bytes, rate: int) -> str:
    """What the recogniser hears in s16le ``pcm`` when it is given all at once."""
    samples = np.frombuffer(pcm, "<i2").astype(np.float32) / 32768
    return str(recognizer.transcribe(samples, sample_rate=rate).text)
