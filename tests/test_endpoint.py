"""asr.decoding.endpoint: cuts are the same for any chunking, lie in quiet steps and lose no sound."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from asr.decoding.endpoint import OFF, QUIET, STILL, EndpointConfig, Endpointer
from asr.errors import ConfigError

CONFIG = EndpointConfig(
    pause_s=0.4, nothing_s=0.0, short_pause_s=0.12, long_s=1.2, longest_s=2.0
)  # 10, 3, 30, 50 steps
LEVELS = st.sampled_from([0.01, 0.4, 0.7, 0.95, 0.999])  # of the blank: sound, sound, quiet, still, still
RUNS = st.lists(st.tuples(LEVELS, st.integers(1, 25)), max_size=20)
Piece = tuple[int, int, str | None]  # first and last step in the stream, and why the segment closes


def emissions(blank: list[float]) -> NDArray[np.float32]:
    p = np.array(blank, np.float32).reshape(-1, 1)
    return np.log(np.concatenate([p, (1 - p) * 0.75, (1 - p) * 0.25], axis=1))


def spread(runs: list[tuple[float, int]]) -> list[float]:
    return [level for level, count in runs for _ in range(count)]


def pieces(blank: list[float], sizes: list[int]) -> list[list[int | str]]:
    """Segments as lists of their steps, and the reason at the end of those that were closed."""
    endpointer, whole = Endpointer(CONFIG), emissions(blank)
    state, start, i = endpointer.begin(), 0, 0
    segments: list[list[int | str]] = [[]]
    while start < len(whole):
        chunk, at = whole[start : start + sizes[i % len(sizes)]], 0
        while at < len(chunk):
            cut, state = endpointer.step(chunk[at:], state)
            assert cut.stop > 0, "every call gets on"
            segments[-1].extend(range(start + at + cut.start, start + at + cut.stop))
            at += cut.stop
            if cut.closes:
                assert cut.when == "always"
                segments[-1].append(cut.closes)
                segments.append([])
                state = endpointer.begin()
            else:
                assert at == len(chunk)
        start, i = start + len(chunk), i + 1
    return segments


@settings(deadline=None)
@given(RUNS, st.lists(st.integers(1, 40), min_size=1, max_size=4))
def test_cuts_are_the_same_for_any_chunking(runs: list[tuple[float, int]], sizes: list[int]) -> None:
    blank = spread(runs)
    assert pieces(blank, sizes) == pieces(blank, [max(1, len(blank))]) == pieces(blank, [1])


@settings(deadline=None)
@given(RUNS)
@example([(0.01, 200)])
@example([(0.01, 49), (0.7, 1), (0.01, 100)])
def test_pieces_cover_every_step_but_leading_stillness_once(runs: list[tuple[float, int]]) -> None:
    blank = spread(runs)
    segments = pieces(blank, [max(1, len(blank))])
    covered = [step for segment in segments for step in segment if isinstance(step, int)]
    assert covered == sorted(set(covered))
    skipped = set(range(len(blank))) - set(covered)
    assert all(blank[step] > STILL for step in skipped)
    begins = {segment[0] for segment in segments if segment}
    for step in range(len(blank)):  # stillness is left out before a segment's first sound, nowhere else
        if step in skipped:
            assert step + 1 == len(blank) or step + 1 in skipped or step + 1 in begins


@settings(deadline=None)
@given(RUNS)
@example([(0.01, 200)])
def test_cuts_stand_in_pauses_but_for_the_last_resort(runs: list[tuple[float, int]]) -> None:
    blank = spread(runs)
    for segment in pieces(blank, [max(1, len(blank))]):
        if not segment or not isinstance(segment[-1], str):
            continue
        reason, steps = segment[-1], [s for s in segment if isinstance(s, int)]
        quiet = 0
        while quiet < len(steps) and blank[steps[-1 - quiet]] > QUIET:
            quiet += 1
        if reason == "endpoint":
            assert quiet == 10 or (quiet >= 3 and len(steps) >= 30)
        else:
            assert reason == "max_length"
            assert (quiet >= 1 and len(steps) >= 50) or len(steps) == 75


def test_the_rules_one_by_one() -> None:
    assert pieces([0.99] * 100, [7]) == [[]]  # nothing but silence: nothing to search
    assert pieces([0.99] * 5 + [0.1] * 3 + [0.99] * 12, [4]) == [[*range(5, 18), "endpoint"], []]
    assert pieces([0.1] * 3 + [0.99] * 9 + [0.1] * 3, [4]) == [list(range(15))]  # the pause is too short yet
    assert pieces([0.1] * 30 + [0.99] * 4, [4]) == [[*range(33), "endpoint"], []]  # long: a short pause will do
    assert pieces([0.1] * 55 + [0.6] + [0.1] * 9, [4]) == [[*range(56), "max_length"], list(range(56, 65))]
    assert pieces([0.1] * 160, [9]) == [[*range(75), "max_length"], [*range(75, 150), "max_length"], [*range(150, 160)]]


def test_a_weak_first_sound_belongs_to_its_segment() -> None:
    assert pieces([0.99, 0.99, 0.7, 0.6, 0.1, 0.1], [3]) == [[2, 3, 4, 5]]


def test_the_default_pauses() -> None:
    config = EndpointConfig()
    assert config.short_pause_s < config.pause_s < config.long_s < config.longest_s


def rules(config: EndpointConfig, blank: list[float]) -> list[tuple[int, str | None, str]]:
    """(step, reason, condition) of every cut that is offered, none of which is taken."""
    endpointer, whole, at, found = Endpointer(config), emissions(blank), 0, []
    state = endpointer.begin()
    while at < len(whole):
        cut, state = endpointer.step(whole[at:], state)
        at += cut.stop
        if cut.closes:
            found.append((at, cut.closes, cut.when))
    return found


def test_conditions_are_asked_once_a_pause() -> None:
    config = EndpointConfig(pause_s=0.4, final_pause_s=0.2, nothing_s=0.8, short_pause_s=0.12, long_s=0, longest_s=0)
    blank = [0.1] * 5 + [0.99] * 24 + [0.1] + [0.99] * 6
    asked = rules(config, blank)
    assert asked[:2] == [(10, "endpoint", "final"), (15, "endpoint", "words")]
    assert all(a == (25 + i, "endpoint", "nothing") for i, a in enumerate(asked[2:-1]))
    assert asked[-1] == (35, "endpoint", "final")


def test_every_rule_can_be_switched_off() -> None:
    blank = ([0.1] * 40 + [0.99] * 300) * 3
    assert rules(OFF, blank) == []
    assert {when for _, _, when in rules(EndpointConfig(), blank)} == {"words", "nothing", "always"}
    assert not [r for _, r, _ in rules(EndpointConfig(longest_s=0), [0.1] * 3000) if r]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pause_s": 0.1, "final_pause_s": 0.2}, "final_pause_s must not exceed pause_s"),
        ({"short_pause_s": 0.0}, "long_s needs short_pause_s"),
        ({"longest_s": 10.0}, "long_s must not exceed longest_s"),
        ({"pause_s": -1.0}, "endpoint.pause_s must be 0"),
        ({"nothing_s": 1e9}, "endpoint.nothing_s must be 0"),
    ],
)
def test_impossible_rules(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EndpointConfig(**changes)
