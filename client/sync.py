"""The client without asyncio: the same stream, run by a thread of its own.

::

    from client import Segment
    from client.sync import connect

    with connect("ws://localhost:2700", sample_rate=16000) as stream:
        stream.send(pcm)
        stream.eof()
        for result in stream:
            if isinstance(result, Segment):
                print(result.text)

Sending and iterating may happen in different threads.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Coroutine, Iterator
from types import TracebackType
from typing import Any, TypeVar

from asr.errors import StateError
from asr.results import Segment, Transcript
from client import stream as asynchronous
from client.messages import Done, Ready
from client.stream import Result

T = TypeVar("T")


def connect(url: str, **settings: Any) -> Stream:
    """As :func:`client.connect`, for ``with``."""
    return Stream(asynchronous.connect(url, **settings))


class Stream:
    """As :class:`client.Stream`, with methods that block. The numbers of it that this class does not have are found
    in ``stream.inner``."""

    def __init__(self, inner: asynchronous.Stream) -> None:
        self.inner = inner
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Stream:
        if self._thread is not None:
            raise StateError("a stream is entered once: call connect() for another")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="asr client", daemon=True)
        self._thread.start()
        try:
            self._do(self.inner.__aenter__())
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _serve(self) -> None:
        assert self._loop is not None
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.close()

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        loop = self._loop
        if loop is None or self._thread is None or not self._thread.is_alive():
            work.close()
            raise StateError("the stream is not open: use 'with connect(...) as stream'")
        future = asyncio.run_coroutine_threadsafe(work, loop)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise StateError("the stream was closed") from None
        except BaseException:
            future.cancel()  # interrupted while it waited
            raise

    def close(self) -> None:
        """Leave at once. The context does this at its end. May be repeated."""
        if self._loop is None or self._thread is None or not self._thread.is_alive():
            return
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        if threading.current_thread() is not self._thread:
            self._thread.join(self.inner.settings.timeouts.close + 1)

    async def _close(self) -> None:
        await self.inner.close()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:  # calls of other threads that still wait
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def send(self, audio: Any) -> None:
        """See :meth:`client.Stream.send`."""
        self._do(self.inner.send(audio))

    def flush(self) -> tuple[Segment, ...]:
        """See :meth:`client.Stream.flush`."""
        return self._do(self.inner.flush())

    def configure(self, **options: Any) -> dict[str, Any]:
        """See :meth:`client.Stream.configure`."""
        return self._do(self.inner.configure(**options))

    def eof(self) -> None:
        """See :meth:`client.Stream.eof`."""
        self._do(self.inner.eof())

    def finish(self) -> Transcript:
        """See :meth:`client.Stream.finish`."""
        return self._do(self.inner.finish())

    def transcript(self, source: str = "") -> Transcript:
        """All final results so far."""
        return self.inner.transcript(source)

    def __iter__(self) -> Iterator[Result]:
        return self

    def __next__(self) -> Result:
        """See :meth:`client.Stream.__anext__`."""
        try:
            return self._do(self.inner.__anext__())
        except StopAsyncIteration:
            raise StopIteration from None

    @property
    def ready(self) -> Ready | None:
        """Of the session that is served now."""
        return self.inner.ready

    @property
    def done(self) -> Done | None:
        """The server's account, after the end."""
        return self.inner.done

    @property
    def lost_seconds(self) -> float:
        """Audio that has no text because the connection was broken for too long, in all."""
        return self.inner.lost_seconds

    @property
    def reconnects(self) -> int:
        """Connections that were made again."""
        return self.inner.reconnects

    @property
    def position(self) -> float:
        """Seconds of audio that were given to :meth:`send`."""
        return self.inner.position
