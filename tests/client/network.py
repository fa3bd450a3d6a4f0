"""A network between client and server that a test can break: a TCP proxy in the test's event loop."""

import asyncio
import contextlib
from collections.abc import AsyncIterator


class Network:
    """``port`` is where clients connect. ``cut``: connections end, new ones are refused; ``hang``: bytes are swallowed
    and nothing is told (half-open); ``rate``: bytes a second in each direction."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self.rate: float | None = None
        self.hanging = False
        self.connections = 0
        self._server: asyncio.Server | None = None
        self._pairs: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def cut(self, seconds: float | None = None) -> None:
        """Everything breaks; with ``seconds``, the network is back after that."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for pair in list(self._pairs):
            for writer in pair:
                writer.transport.abort()
        self._pairs.clear()
        if seconds is not None:
            await asyncio.sleep(seconds)
            await self.open()

    async def close(self) -> None:
        await self.cut()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.connections += 1
        try:
            back, forth = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        pair = (writer, forth)
        self._pairs.add(pair)
        hung = self.hanging
        ways = [
            asyncio.create_task(self._pump(reader, forth, hung)),
            asyncio.create_task(self._pump(back, writer, hung)),
        ]
        with contextlib.suppress(asyncio.CancelledError):
            await self._carry(pair, ways)

    async def _carry(
        self, pair: tuple[asyncio.StreamWriter, asyncio.StreamWriter], ways: list["asyncio.Task[None]"]
    ) -> None:
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait(ways, timeout=0.2)  # the last words of a closing handshake
        finally:
            for way in ways:
                way.cancel()
            for end in pair:
                end.transport.abort()
            self._pairs.discard(pair)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, hung: bool) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(4096):
                if self.hanging and not hung:
                    while True:  # this connection never comes back
                        await asyncio.sleep(3600)
                if self.rate:
                    await asyncio.sleep(len(data) / self.rate)
                writer.write(data)
                await writer.drain()
            writer.write_eof()


@contextlib.asynccontextmanager
async def network(target: int) -> AsyncIterator[Network]:
    """In front of the server on port ``target``."""
    made = Network(target)
    await made.open()
    try:
        yield made
    finally:
        await made.close()
