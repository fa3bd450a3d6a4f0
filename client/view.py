"""What a person sees: a live view on a terminal, plain lines in a pipe. Pure: events in, text on a console out."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, Protocol, TextIO

from asr.results import Partial, Segment
from client.hearing import Event, Level
from client.messages import Notice

REFRESH_S = 0.03  # a word waits no longer for the screen
IDLE_REFRESH_S = 0.2  # level and clock alone
MOST_LINES = 4  # of the open segment; the rest of it has scrolled away
METER = 12  # characters
FLOOR_DB = -60.0
_BARS = " ▏▎▍▌▋▊▉█"


class View(Protocol):
    """Shows what comes. ``open`` and ``close`` stand around everything."""

    def open(self) -> None: ...

    def close(self) -> None: ...

    def show(self, event: Event) -> None:
        """Take an event in; it is on the screen at once or with the next tick."""

    def tick(self, captured: float, overflows: int) -> None:
        """Called several times a second: seconds of sound that have come, and how often some was lost."""

    def say(self, message: str) -> None:
        """A line for the person that is no result."""


class Lines:
    """Finished segments, a line each, to ``out``; all else to ``err``."""

    def __init__(self, out: TextIO, err: TextIO, quiet: bool = False) -> None:
        self._out, self._err, self._quiet = out, err, quiet
        self._overflows = 0

    def open(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Tell what was lost between microphone and recogniser."""
        if self._overflows:
            self.say(f"sound was lost {self._overflows} times: this machine is too busy")

    def show(self, event: Event) -> None:
        """See :class:`View`."""
        if isinstance(event, Segment):
            if event.text:
                self._out.write(f"{event.text}\n")
                self._out.flush()
        elif isinstance(event, Notice):
            self.say(event.message)

    def tick(self, captured: float, overflows: int) -> None:
        """See :class:`View`."""
        self._overflows = overflows

    def say(self, message: str) -> None:
        """See :class:`View`."""
        if not self._quiet:
            print(f"asr: note: {message}", file=self._err, flush=True)


class Live:
    """A terminal: finished segments scroll up; below them the open one, stable words firm and unstable ones dim, and a
    line with time, level, lag and what went wrong. ``console``: of rich. ``meter``: whether there is sound to show."""

    def __init__(self, console: Any, meter: bool = True, clock: Callable[[], float] = time.monotonic) -> None:
        self.console = console
        self._meter, self._clock = meter, clock
        self._live: Any = None
        self._partial: Partial | None = None
        self._peak = 0.0
        self._captured = 0.0
        self._lag: float | None = None
        self._overflows = 0
        self._state = ""  # of the connection
        self._lost = 0.0
        self._shown_at = -1.0
        self._news = True

    def open(self) -> None:
        """Take the bottom of the terminal."""
        from rich.live import Live as RichLive

        self._live = RichLive(
            self.render(), console=self.console, auto_refresh=False, transient=True, redirect_stdout=False,
            redirect_stderr=False,
        )  # fmt: skip
        self._live.start()

    def close(self) -> None:
        """Give it back; an open segment that nothing finished stays as it is."""
        if self._live is not None:
            self._live.stop()
            self._live = None
            if self._partial is not None and self._partial.text:
                self._print(self._partial.text)
            if self._overflows:
                self.say(f"sound was lost {self._overflows} times: this machine is too busy")

    def show(self, event: Event) -> None:
        """See :class:`View`."""
        if isinstance(event, Segment):
            self._partial, self._news = None, True
            if event.text:
                self._print(event.text)
        elif isinstance(event, Partial):
            before = self._partial.end if self._partial else 0.0
            if self._meter and event.text and event.end > before:  # of a file sent at full speed it says nothing
                self._lag = max(0.0, self._captured - event.end)
            self._partial, self._news = event, True
        elif isinstance(event, Level):
            self._peak = max(event.peak, 0.8 * self._peak)
            self._captured = max(self._captured, event.position)
        elif isinstance(event, Notice):
            self._notice(event)
        self._refresh()

    def _notice(self, notice: Notice) -> None:
        self._news = True
        if notice.kind == "disconnected":
            self._state = "no connection"
        elif notice.kind in ("resumed", "restarted"):
            self._state = ""
        elif notice.kind == "lost":
            self._lost += notice.seconds
            self.say(notice.message)
        else:
            self.say(notice.message)

    def tick(self, captured: float, overflows: int) -> None:
        """See :class:`View`."""
        self._captured = max(self._captured, captured)
        self._news = self._news or overflows != self._overflows
        self._overflows = overflows
        self._refresh()

    def say(self, message: str) -> None:
        """See :class:`View`."""
        self._print(message, style="italic")

    def _print(self, text: str, style: str | None = None) -> None:
        self.console.print(text, style=style, markup=False, highlight=False, emoji=False)

    def _refresh(self) -> None:
        """Draw, not more often than a person can see."""
        now = self._clock()
        if self._live is None or now - self._shown_at < (REFRESH_S if self._news else IDLE_REFRESH_S):
            return
        self._shown_at, self._news = now, False
        self._live.update(self.render(), refresh=True)

    def render(self) -> Any:
        """The part at the bottom."""
        from rich.text import Text

        width = max(1, self.console.width)
        words = Text()
        if self._partial is not None:
            stable, unstable = _tail(self._partial, width * MOST_LINES)
            words.append(stable, style="bold")
            if unstable:
                words.append(" " if stable else "")
                words.append(unstable, style="dim")
        rows = words.wrap(self.console, width, overflow="fold")[-MOST_LINES:] if words else []
        for row in rows:
            row.rstrip()
        return Text("\n", no_wrap=True, overflow="crop").join([*rows, self._status(width)])

    def _status(self, width: int) -> Any:
        from rich.text import Text

        parts = [Text(clock_of(self._captured), style="cyan")]
        if self._meter:
            parts.append(Text(meter_of(self._peak), style="green" if self._peak < 0.99 else "red"))
        if self._lag is not None:
            parts.append(Text(f"lag {self._lag:.1f} s", style="cyan"))
        if self._overflows:
            parts.insert(0, Text(f"{self._overflows} overflows", style="red"))
        if self._lost:
            parts.insert(0, Text(f"{self._lost:.0f} s lost", style="red"))
        if self._state:
            parts.insert(0, Text(self._state, style="red"))
        line = Text()
        for part in parts:  # what does not fit is left out, the least important first
            gap = 2 if line else 0
            if line.cell_len + gap + part.cell_len <= width:
                line.append(" " * gap).append_text(part)
        return line


def _tail(partial: Partial, most: int) -> tuple[str, str]:
    """The last ``most`` characters of a partial result, cut between words where there are any."""
    stable, unstable = partial.stable, partial.unstable
    over = len(stable) + len(unstable) + 1 - most
    if over <= 0:
        return stable, unstable
    if over >= len(stable):
        return "", unstable[-most:]
    cut = stable.find(" ", over)
    return stable[cut + 1 if cut >= 0 else over :], unstable


def clock_of(seconds: float) -> str:
    """m:ss or h:mm:ss."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def meter_of(peak: float) -> str:
    """A bar of :data:`METER` characters for a peak from 0 to 1, in decibels from -60."""
    from math import log10

    share = 0.0 if peak <= 0 else min(1.0, max(0.0, 1 - 20 * log10(peak) / FLOOR_DB))
    eighths = round(share * METER * 8)
    bar = "█" * (eighths // 8) + (_BARS[eighths % 8] if eighths % 8 else "")
    return bar.ljust(METER, "·")


def view_for(out: TextIO | None = None, err: TextIO | None = None, meter: bool = True, quiet: bool = False) -> View:
    """Live where ``out`` is a terminal that can move its cursor, lines elsewhere. Colours follow the terminal and
    NO_COLOR."""
    out, err = out or sys.stdout, err or sys.stderr
    if not out.isatty():
        return Lines(out, err, quiet)
    from rich.console import Console

    console = Console(file=out)
    if console.is_dumb_terminal or not console.is_terminal:
        return Lines(out, err, quiet)
    return Live(console, meter)
