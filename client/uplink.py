"""What a client has to send, kept until it cannot be needed any more. Pure: no sockets, no clocks.

Positions are instants (a sample of every channel) from the client's first one; they go on when a session is resumed and
when a new one has to be begun. The server is known to have decoded everything up to ``acked``: results say so, and so
does the answer to an empty ``config``, which is slipped in now and then. Everything up to ``settled`` stands in final
results or was silent. Audio behind that is kept as long as there is room, so that a new session can hear the open
segment again when the old one is gone for good.
"""

from __future__ import annotations

import json
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from asr.audio.encoding import SampleFormat, encode
from asr.results import Partial, Segment

MESSAGE_S = 0.1  # longest message of audio
PROBE_S = 1.0  # of audio after which the server is asked how far it is
WINDOW_S = 10.0  # of audio that may be under way: with more, a ping would wait for its answer
UNHEARD_S = 3.0  # a word is in a partial result this long after it began, or is none
LONGEST_S = 40.0  # no segment lasts longer under any sensible endpointing
BEFORE_S = 1.0  # kept before the first word of an open segment: the network needs to hear the room
AFTER_S = 0.1  # after the last word of a closed one, where a pause follows


@dataclass
class Control:
    """A message between the audio. ``kind``: config, probe, flush or eof."""

    kind: str
    at: int
    values: dict[str, Any] = field(default_factory=dict)
    sent: bool = False

    def text(self) -> str:
        """On the wire."""
        kind = "config" if self.kind == "probe" else self.kind
        return json.dumps({"type": kind, **self.values}, ensure_ascii=False, separators=(",", ":"))


class Uplink:
    """``format`` and ``rate`` (Hz) of the audio; ``buffer_s``: seconds of it that are kept at most; ``partials``:
    whether the server sends partial results."""

    def __init__(self, format: SampleFormat, rate: int, buffer_s: float, partials: bool = True) -> None:
        self.format, self.rate, self.partials = format, rate, partials
        self.start = 0  # of what is kept
        self.acked = self.settled = self.cursor = self.base = 0
        self.gaps: list[tuple[int, int]] = []  # instants that no session will hear
        self.ended = False
        self._size = format.frame_bytes
        self._capacity = round(buffer_s * rate)
        self._data = bytearray()
        self._part = b""  # of an instant
        self._controls: deque[Control] = deque()  # in order; until they are answered
        self._probed = 0
        self._open: int | None = None  # where the open segment begins
        self._silence = encode(np.zeros((1, format.channels), np.float32), format.encoding)

    # What is to be sent.

    @property
    def end(self) -> int:
        """Behind the last instant that was given."""
        return self.start + len(self._data) // self._size

    @property
    def room(self) -> int:
        """Instants that may be added without a loss."""
        return self._capacity - (self.end - max(self.start, min(self.acked, self.end)))

    @property
    def unanswered(self) -> list[Control]:
        """Controls that wait for their answer."""
        return [c for c in self._controls if c.kind != "probe"]

    def seconds(self, instants: int) -> float:
        """Of audio."""
        return instants / self.rate

    def add(self, data: bytes | bytearray | memoryview) -> None:
        """Audio, cut anywhere. What finds no room pushes out the oldest, which is lost."""
        joined = self._part + bytes(data) if self._part else bytes(data)
        whole = len(joined) // self._size * self._size
        self._part = joined[whole:]
        self._data += joined[:whole]
        over = self.end - self.start - self._capacity
        if over > 0:
            self._drop(self.start + over)

    def control(self, kind: str, **values: Any) -> Control:
        """A message behind the audio that was given so far."""
        made = Control(kind, self.end, values)
        self._controls.append(made)
        self.ended = self.ended or kind == "eof"
        return made

    def next(self) -> str | bytes | None:
        """The next message to send; None where there is nothing, or too much is under way. Messages follow in the
        order in which they were given; a gap is sent as silence, so that times stay right."""
        due = next((c for c in self._controls if not c.sent), None)
        if due is not None and due.at <= self.cursor:
            due.sent = True
            return due.text()
        if self._waits_for_news():
            return self._probe()
        limit = self.end if due is None else min(due.at, self.end)
        most = min(limit, self.acked + self._instants(WINDOW_S), self.cursor + self._instants(MESSAGE_S))
        if most <= self.cursor:
            return None
        return self._take(most)

    def _take(self, stop: int) -> bytes:
        at = self.cursor
        if at < self.start:
            self.cursor = min(stop, self.start)
            return self._silence * (self.cursor - at)
        self.cursor = stop
        return bytes(self._data[(at - self.start) * self._size : (stop - self.start) * self._size])

    def _waits_for_news(self) -> bool:
        return self.cursor - max(self.acked, self._probed) >= self._instants(PROBE_S) and not self._eof_sent()

    @property
    def all_sent(self) -> bool:
        """Whether there is nothing more to send, ever."""
        return self.cursor >= self.end and self._eof_sent()

    def _eof_sent(self) -> bool:
        return any(c.kind == "eof" and c.sent for c in self._controls)

    def _probe(self) -> str:
        self._probed = self.cursor
        probe = Control("probe", self.cursor, sent=True)
        self._controls.insert(sum(c.sent for c in self._controls), probe)
        return probe.text()

    def _instants(self, seconds: float) -> int:
        return round(seconds * self.rate)

    # What the server says.

    def opened(self) -> float:
        """A new session: it begins where nothing is settled. Returns seconds of audio that cannot be sent again."""
        lost = self._gap(self.settled, self.start)
        self.base = self.cursor = max(self.settled, self.start)
        self.acked = self.settled = self._probed = self.base
        self._open = None
        self._again()
        return self.seconds(lost)

    def resumed(self, samples: int) -> None:
        """The session goes on behind ``samples`` of its own."""
        self.cursor = min(self.base + samples, self.end)
        self._probed = self.cursor
        self._ack(self.cursor, settle=False)  # results of some of it may be under way
        self._again()

    def _again(self) -> None:
        """What was not answered is sent once more, at its place or at once."""
        self._controls = deque(c for c in self._controls if c.kind != "probe")
        for control in self._controls:
            control.sent = False

    def partial(self, partial: Partial) -> None:
        """A partial result, on the client's clock."""
        self._open = self._instants(partial.start) if partial.text else None
        self._ack(self._instants(partial.end))

    def final(self, segment: Segment) -> None:
        """A final result, on the client's clock."""
        self._open = None
        after = AFTER_S if segment.reason == "endpoint" else 0.0
        self._settle(self._instants(segment.end + after))
        self._ack(self._instants(segment.end))

    def configured(self) -> Control | None:
        """The oldest ``config`` is answered: all audio before it is decoded. Returns it."""
        found = next((c for c in self._controls if c.sent and c.kind in ("config", "probe")), None)
        if found is not None:
            self._controls.remove(found)
            self._ack(found.at)
        return found

    def rejected(self) -> Control | None:
        """The oldest ``config`` was refused, if there is one that can be. Returns it."""
        found = next((c for c in self._controls if c.sent and c.kind in ("config", "probe")), None)
        if found is None or found.kind == "probe":
            return None
        self._controls.remove(found)
        return found

    def flushed(self, id: str) -> Control | None:
        """A flush is answered. Returns it."""
        found = next((c for c in self._controls if c.kind == "flush" and c.values["id"] == id), None)
        if found is not None:
            self._controls.remove(found)
        return found

    def done(self) -> None:
        """Everything has been answered."""
        self._settle(self.end)
        self._controls.clear()

    def give_up(self) -> float:
        """Nothing more will be sent. Returns seconds that no result covers."""
        return self.seconds(self._gap(self.settled, self.end))

    @property
    def lost(self) -> float:
        """Seconds of audio that no session heard, in all."""
        return self.seconds(sum(b - a for a, b in self.gaps))

    def _ack(self, position: int, settle: bool = True) -> None:
        self.acked = max(self.acked, min(position, self.cursor))
        if not settle:
            return
        if self._open is not None:
            self._settle(self._open - self._instants(BEFORE_S))
        else:
            self._settle(self.acked - self._instants(UNHEARD_S if self.partials else LONGEST_S))

    def _settle(self, position: int) -> None:
        self.settled = max(self.settled, min(position, self.cursor))
        done = min(self.settled, self.acked)
        if done - self.start > self.rate or done >= self.end:  # not for every result
            self._forget(done)

    def _forget(self, position: int) -> None:
        position = max(self.start, min(position, self.end))
        del self._data[: (position - self.start) * self._size]
        self.start = position

    def _drop(self, position: int) -> None:
        """Make room. What was decoded is only missed if the session is lost, what was not is a gap."""
        self._gap(max(self.acked, self.start), position)
        self._forget(position)

    def _gap(self, first: int, last: int) -> int:
        """Note that [first, last) is lost; returns how much of it is news."""
        news = [(first, last)] if first < last else []
        for a, b in self.gaps:
            news = [piece for x, y in news for piece in ((x, min(y, a)), (max(x, b), y)) if piece[0] < piece[1]]
        for x, y in news:
            if self.gaps and self.gaps[-1][1] == x:
                self.gaps[-1] = self.gaps[-1][0], y
            else:
                self.gaps.append((x, y))
        return sum(y - x for x, y in news)
