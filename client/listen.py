"""The loop of the commands: sound goes to a hearer, results to a view, until one of them ends."""

from __future__ import annotations

import contextlib
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Protocol

from asr.errors import AsrError
from asr.results import Segment, Transcript
from client.hearing import Blocks, Ended, Event, Hearer
from client.view import View

TICK_S = 0.1


class Source(Protocol):
    """Where blocks come from: :class:`client.capture.Capture`, or a file."""

    blocks: Blocks

    @property
    def captured(self) -> float:
        """Seconds of sound that have come."""

    overflows: int

    def start(self) -> None:
        """Begin. Raises AsrError."""

    def check(self) -> None:
        """Raises AsrError when no more can come."""

    def stop(self) -> None:
        """End; the last of ``blocks`` is None. May be repeated."""


def listen(
    source: Source,
    hearer: Hearer,
    view: View,
    seconds: float | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[Transcript, BaseException | None]:
    """Run until the source ends, ``seconds`` are over, or Ctrl-C; then the last words are finished. A second Ctrl-C
    does not wait for them. Returns all finished segments, and what went wrong after they were heard.

    Raises AsrError where the source cannot start.
    """
    run = _Run(source, hearer, view)
    events = hearer.start(source.blocks)
    try:
        source.start()
    except BaseException:
        source.stop()
        raise
    end = None if seconds is None else clock() + seconds
    with contextlib.suppress(KeyboardInterrupt), _signals() as asked:
        while run.ended is None:
            run.step(events, stop=end is not None and clock() >= end)
            if asked and not run.stopping:
                run.stop("finishing the last words; Ctrl-C once more leaves at once")
    source.stop()
    return run.result()


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """The first Ctrl-C (or SIGTERM) is noted in the list, so that it interrupts nothing half done; a second one raises
    KeyboardInterrupt."""
    asked: list[int] = []

    def note(number: int, frame: object) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Run:
    def __init__(self, source: Source, hearer: Hearer, view: View) -> None:
        self.source, self.view = source, view
        self.model = getattr(hearer, "model", "")
        self.segments: list[Segment] = []
        self.ended: Ended | None = None
        self.stopping = False
        self.failed: BaseException | None = None

    def step(self, events: queue.Queue[Event], stop: bool) -> None:
        """Show what has come, and look after the source."""
        try:
            event = events.get(timeout=TICK_S)
            while True:
                if isinstance(event, Ended):
                    self.ended = event
                    return
                if isinstance(event, Segment):
                    self.segments.append(event)
                self.view.show(event)
                event = events.get_nowait()
        except queue.Empty:
            pass
        self.view.tick(self.source.captured, self.source.overflows)
        if stop and not self.stopping:
            self.stop()
        try:
            self.source.check()
        except AsrError as error:
            self.failed = error
            self.stop()

    def stop(self, message: str = "") -> None:
        """No more sound."""
        self.stopping = True
        self.source.stop()
        if message:
            self.view.say(message)

    def result(self) -> tuple[Transcript, BaseException | None]:
        seconds = self.ended.seconds if self.ended else self.source.captured
        error = self.failed or (self.ended.error if self.ended else None)
        return Transcript(tuple(self.segments), seconds, self.model), error
