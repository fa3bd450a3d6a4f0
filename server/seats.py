"""Seats for live sessions: in all, per server process and per token, counted over all server processes.

The processes share one table without a lock: each writes its own row alone. Who wants a seat first writes that it has
one and then adds up the rows; if that is too many, it takes the entry back. So the limits are never exceeded (two that
come at the same moment for the last seat may both be refused), and a process that dies leaves no lock behind: its row
is cleared before its successor starts.
"""

from __future__ import annotations

import multiprocessing
from multiprocessing.context import SpawnContext
from typing import Any

BUCKETS = 1 << 18  # two of a hundred tokens share a bucket (and then a limit) in 2 of 100 installations
_SESSIONS, _BUSY, _HEAD = 0, 1, 2


class Table:
    """The counts: a row of ``int32`` per server process. It can be given to a spawned process."""

    def __init__(self, rows: int, buckets: int = BUCKETS, context: SpawnContext | None = None) -> None:
        self.rows, self.buckets = rows, buckets
        self.width = _HEAD + buckets
        self.values: Any = (context or multiprocessing).RawArray("i", rows * self.width) if rows > 1 else {}

    def get(self, row: int, column: int) -> int:
        """One count."""
        at = row * self.width + column
        return int(self.values.get(at, 0) if isinstance(self.values, dict) else self.values[at])

    def add(self, row: int, column: int, change: int) -> int:
        """Change one count of the caller's own row and return it."""
        at = row * self.width + column
        value = self.get(row, column) + change
        if isinstance(self.values, dict) and not value:
            self.values.pop(at, None)
        else:
            self.values[at] = value
        return value

    def total(self, column: int) -> int:
        """The sum over all processes."""
        return sum(self.get(row, column) for row in range(self.rows))

    def sessions(self, row: int) -> int:
        """Live sessions of one process."""
        return self.get(row, _SESSIONS)

    def busy(self, row: int) -> bool:
        """Whether that process said that it takes no sessions now."""
        return bool(self.get(row, _BUSY))

    def clear(self, row: int) -> None:
        """Forget a process that is gone."""
        if isinstance(self.values, dict):
            self.values.clear()
        else:
            self.values[row * self.width : (row + 1) * self.width] = [0] * self.width


class Seats:
    """The seats of one server process. ``most`` in all processes, ``own`` in this one, ``per_token`` (0: no limit)."""

    def __init__(self, most: int, per_token: int = 0, own: int = 0, table: Table | None = None, row: int = 0) -> None:
        self.most, self.per_token, self.own = most, per_token, own or most
        self._table, self._row = table or Table(1), row

    @property
    def taken(self) -> int:
        """Seats taken in this process."""
        return self._table.sessions(self._row)

    @property
    def all_taken(self) -> int:
        """Seats taken in all processes."""
        return self._table.total(_SESSIONS)

    def take(self, token: str) -> str | None:
        """Take a seat for the owner ``token`` (as :meth:`server.auth.Tokens.check` names it). Returns None, or why
        there is none: "full" or "token"."""
        bucket = self._bucket(token)
        mine = self._table.add(self._row, _SESSIONS, 1)
        if bucket:
            self._table.add(self._row, bucket, 1)
        if mine > self.own or self._table.total(_SESSIONS) > self.most:
            refused = "full"
        elif bucket and self._table.total(bucket) > self.per_token:
            refused = "token"
        else:
            return None
        self.give(token)
        return refused

    def give(self, token: str) -> None:
        """Give the seat back."""
        self._table.add(self._row, _SESSIONS, -1)
        if bucket := self._bucket(token):
            self._table.add(self._row, bucket, -1)

    def busy(self, state: bool) -> None:
        """Tell the others whether this process takes sessions now."""
        self._table.add(self._row, _BUSY, int(state) - self._table.get(self._row, _BUSY))

    def _bucket(self, token: str) -> int:
        return _HEAD + int(token, 16) % self._table.buckets if token and self.per_token else 0
