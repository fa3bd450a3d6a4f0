"""What a person sees, without a person."""

import io
from typing import Any

import pytest
from rich.console import Console

from asr.results import Partial, Segment
from client.hearing import Level
from client.messages import Notice
from client.view import MOST_LINES, Lines, Live, clock_of, meter_of, view_for


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def live(width: int = 60, **console: Any) -> tuple[Live, io.StringIO]:
    out = io.StringIO()
    time = iter(range(100000))
    settings: dict[str, Any] = {"force_terminal": True, "color_system": "standard", "legacy_windows": False, **console}
    return Live(Console(file=out, width=width, height=20, **settings), clock=lambda: float(next(time))), out


def shown(view: Live, width: int = 60) -> list[str]:
    """The part at the bottom, as plain rows."""
    out = io.StringIO()
    Console(file=out, width=width, height=20).print(view.render())
    return out.getvalue().rstrip("\n").split("\n")


def styles(view: Live) -> dict[str, str]:
    """Style of each piece of text."""
    text = view.render()
    return {text.plain[s.start : s.end]: str(s.style) for s in text.spans}


def test_stable_words_are_firm_and_unstable_ones_dim() -> None:
    view, _ = live()
    view.open()
    view.show(Partial(0, 0.0, 1.0, "the quick brown", "fox jum"))
    assert styles(view)["the quick brown"] == "bold" and styles(view)["fox jum"] == "dim"
    assert shown(view)[0] == "the quick brown fox jum"
    view.close()


def test_finished_segments_scroll_up_and_the_open_one_is_gone() -> None:
    view, out = live()
    view.open()
    view.show(Partial(0, 0.0, 1.0, "", "hello wor"))
    view.show(Segment("hello world", 0.0, 1.0))
    assert "hello world\n" in out.getvalue() and not shown(view)[0].startswith("hello")
    view.show(Partial(1, 2.0, 3.0, "left", "over"))
    view.close()
    assert out.getvalue().rstrip().endswith("left over")  # nothing finished it


def test_time_level_lag_and_trouble_are_shown() -> None:
    view, out = live()
    view.open()
    view.show(Level(1.0, 61.0))
    view.tick(62.0, 3)
    view.show(Partial(0, 60.0, 61.4, "word", ""))
    view.show(Notice("disconnected", "broken"))
    view.show(Notice("lost", "2.0 s of audio are lost", 2.0))
    status = shown(view)[-1]
    assert status == f"no connection  2 s lost  3 overflows  1:02  {'█' * 12}"  # no room for the lag
    view.show(Notice("resumed", "connected again"))
    assert "no connection" not in shown(view)[-1] and "lost" in shown(view)[-1]
    assert "2.0 s of audio are lost" in out.getvalue()
    view.close()
    assert "sound was lost 3 times" in out.getvalue()


@pytest.mark.parametrize("width", [1, 5, 12, 20, 40, 200])
def test_a_narrow_terminal_is_never_overrun(width: int) -> None:
    view, out = live(width)
    view.open()
    words = " ".join(f"word{n}" for n in range(100))
    view.show(Level(0.3, 5.0))
    view.show(Partial(0, 0.0, 4.0, words, "and an unstable end"))
    rows = shown(view, width)
    assert all(len(row) <= width for row in rows) and len(rows) <= MOST_LINES + 1
    end = "".join(rows if width == 1 else rows[:-1]).replace(" ", "")
    assert end and (words + " and an unstable end").replace(" ", "").endswith(end)
    view.show(Segment(words, 0.0, 4.0))
    view.close()
    assert "word99" in "".join(line.strip() for line in out.getvalue().split("\n"))


def test_no_colour_where_none_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    import re

    monkeypatch.setenv("NO_COLOR", "1")
    view, out = live()
    view.open()
    view.show(Level(0.5, 1.0))
    view.show(Partial(0, 0.0, 1.0, "firm", "dim"))
    view.show(Segment("firm", 0.0, 1.0))
    view.close()
    codes = {int(c) for group in re.findall(r"\x1b\[([\d;]*)m", out.getvalue()) for c in group.split(";") if c}
    assert codes <= {0, 1, 2, 3}  # bold, dim and italic are no colours
    monkeypatch.delenv("NO_COLOR")
    view, out = live()
    view.open()
    view.show(Level(0.5, 1.0))
    view.close()
    assert re.search(r"\x1b\[3[0-7]m", out.getvalue())


def test_the_screen_is_not_drawn_more_often_than_one_can_see() -> None:
    now = 0.0
    out = io.StringIO()
    view = Live(Console(file=out, width=60, force_terminal=True), clock=lambda: now)
    view.open()
    before = len(out.getvalue())
    for n in range(100):  # two seconds in blocks of 20 ms
        now = n * 0.02
        view.show(Level(0.1, now))
        view.tick(now, 0)
    assert (len(out.getvalue()) - before) / 60 < 30
    view.close()


def test_text_is_never_markup() -> None:
    view, out = live()
    view.open()
    view.show(Segment("[bold]not bold[/bold] :smile:", 0.0, 1.0))
    view.show(Partial(1, 1.0, 2.0, "[red]x", "[/nothing]"))
    assert shown(view)[0] == "[red]x [/nothing]"
    view.close()
    assert "[bold]not bold[/bold] :smile:" in out.getvalue()


def test_a_pipe_gets_finished_segments_alone() -> None:
    out, err = io.StringIO(), io.StringIO()
    view = view_for(out, err)
    assert isinstance(view, Lines)
    view.open()
    for event in (Partial(0, 0.0, 1.0, "", "hel"), Level(0.5, 1.0), Segment("hello", 0.0, 1.0), Segment("", 1.0, 2.0),
                  Notice("resumed", "connected again")):  # fmt: skip
        view.show(event)
    view.tick(3.0, 2)
    view.close()
    assert out.getvalue() == "hello\n"
    assert err.getvalue().splitlines() == ["asr: note: connected again",
                                           "asr: note: sound was lost 2 times: this machine is too busy"]  # fmt: skip


def test_which_view(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(view_for(Terminal(), io.StringIO()), Live)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(view_for(Terminal(), io.StringIO()), Lines)


def test_numbers() -> None:
    assert [clock_of(s) for s in (0, 59.9, 61, 3661)] == ["0:00", "0:59", "1:01", "1:01:01"]
    assert meter_of(0.0) == "·" * 12 and meter_of(1.0) == "█" * 12 == meter_of(2.0)
    assert meter_of(0.001) == "·" * 12 and meter_of(10 ** (-30 / 20)) == "█" * 6 + "·" * 6
    assert all(len(meter_of(p / 100)) == 12 for p in range(101))
