"""Seats: never more than there are, over processes and tokens, whoever dies."""

import multiprocessing
import random

import pytest

from server.seats import Seats, Table

ANN, BOB = "00000000000000a1", "00000000000000b2"


@pytest.fixture(params=[1, 3])
def table(request: pytest.FixtureRequest) -> Table:
    return Table(request.param, buckets=1 << 10, context=multiprocessing.get_context("spawn"))


def test_full_is_full(table: Table) -> None:
    seats = Seats(2, table=table)
    assert [seats.take("") for _ in range(3)] == [None, None, "full"]
    seats.give("")
    assert seats.take("") is None and seats.taken == 2


def test_a_token_has_its_own_limit(table: Table) -> None:
    seats = Seats(10, per_token=2, table=table)
    assert [seats.take(ANN) for _ in range(3)] == [None, None, "token"]
    assert seats.take(BOB) is None and seats.take("") is None
    seats.give(ANN)
    assert seats.take(ANN) is None and seats.all_taken == 4


def test_processes_count_together() -> None:
    table = Table(2, buckets=1 << 10, context=multiprocessing.get_context("spawn"))
    one, two = (Seats(3, per_token=2, own=2, table=table, row=row) for row in range(2))
    assert [one.take(ANN), one.take(BOB), one.take("")] == [None, None, "full"]  # no more in this process
    assert [two.take(ANN), two.take(ANN), two.take(BOB)] == [None, "full", "full"]
    assert (one.all_taken, two.taken) == (3, 1)
    table.clear(0)
    assert (two.all_taken, one.taken) == (1, 0) and two.take(ANN) is None


def test_a_tokens_sessions_count_over_processes() -> None:
    table = Table(2, buckets=1 << 10, context=multiprocessing.get_context("spawn"))
    one, two = (Seats(9, per_token=2, table=table, row=row) for row in range(2))
    assert [one.take(ANN), two.take(ANN), one.take(ANN), two.take(ANN)] == [None, None, "token", "token"]
    assert two.take(BOB) is None


def test_nothing_leaks_in_a_long_run() -> None:
    table, rng = Table(3, buckets=1 << 10, context=multiprocessing.get_context("spawn")), random.Random(1)
    seats = [Seats(20, per_token=6, own=9, table=table, row=row) for row in range(3)]
    held: list[tuple[int, str]] = []
    for _ in range(3000):
        row, token = rng.randrange(3), rng.choice(["", ANN, BOB])
        if held and rng.random() < 0.45:
            row, token = held.pop(rng.randrange(len(held)))
            seats[row].give(token)
        elif seats[row].take(token) is None:
            held.append((row, token))
        assert seats[0].all_taken == len(held) <= 20
        assert all(sum(t == token for _, t in held) <= 6 for token in (ANN, BOB))
        assert all(sum(r == row for r, _ in held) <= 9 for row in range(3))
    for row, token in held:
        seats[row].give(token)
    assert not any(table.values)


def test_a_process_says_that_it_is_busy() -> None:
    table = Table(2, buckets=8, context=multiprocessing.get_context("spawn"))
    seats = Seats(3, table=table, row=1)
    for state in (True, True, False, False, True):
        seats.busy(state)
        assert (table.busy(0), table.busy(1)) == (False, state)
