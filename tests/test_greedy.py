"""asr.decoding.greedy against a plain loop."""

import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.decoding.greedy import GreedyDecoder, best_path

PATHS = st.lists(st.integers(0, 3), max_size=30)


def emissions(path: list[int]) -> torch.Tensor:
    """(steps, 4) log-probabilities whose best path is ``path``."""
    scores = torch.full((len(path), 4), 0.1)
    for step, unit in enumerate(path):
        scores[step, unit] = 0.7
    return scores.log()


def reference(path: list[int]) -> list[tuple[int, int, int]]:
    """Runs of equal units, blanks left out."""
    units, step = [], 0
    for unit, run in itertools.groupby(path):
        length = len(list(run))
        if unit:
            units.append((unit, step, step + length - 1))
        step += length
    return units


@settings(deadline=None)
@given(PATHS)
def test_best_path_is_runs_without_blanks(path: list[int]) -> None:
    assert best_path(emissions(path)) == [unit for unit, _, _ in reference(path)]


@settings(deadline=None)
@given(PATHS, st.lists(st.integers(0, 30), max_size=4))
def test_steps_give_what_the_whole_gives(path: list[int], cuts: list[int]) -> None:
    decoder, scores = GreedyDecoder(), emissions(path)
    state = decoder.begin()
    edges = [0, *sorted(min(c, len(path)) for c in cuts), len(path)]
    for start, stop in itertools.pairwise(edges):
        before = list(state.units)
        following = decoder.step(scores[start:stop], state)
        assert state.units == before  # the state that was given can be used again
        state = following
    assert state.units == reference(path)
    assert state.steps == len(path) and state.last == (path[-1] if path else 0)


def test_an_example() -> None:
    assert best_path(emissions([0, 1, 1, 0, 1, 2, 2, 0, 0, 3])) == [1, 1, 2, 3]
    assert best_path(torch.zeros(0, 4)) == []
