"""asr.decoding.greedy against a plain loop."""

import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.decoding.greedy import GreedyDecoder, GreedySearch, best_path
from asr.decoding.hypothesis import Hypothesis, TimedWord
from asr.vocabulary import BpeVocabulary, CharacterVocabulary, PhoneVocabulary, Vocabulary

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


def words(vocabulary: Vocabulary, *units: str) -> tuple[TimedWord, ...]:
    """The words of a best path of these units (``-``: blank), fed one step at a time."""
    search = GreedySearch(vocabulary)
    state = search.begin()
    for unit in units:
        scores = torch.full((1, len(vocabulary)), 1e-3)
        scores[0, vocabulary.index.get(unit, 0)] = 0.9
        state = search.step(scores.log().numpy(), state)
    assert search.best(state) == search.end(state.clone())
    return search.end(state).words


def test_words_without_a_lexicon() -> None:
    letters = CharacterVocabulary()
    assert words(letters, *" --aa -bee-e ") == (TimedWord("a", 3, 4), TimedWord("bee", 7, 11))
    pieces = BpeVocabulary(["<blank>", "_a", "_b", "b", "e"], [])
    assert words(pieces, "_a", "-", "_b", "_b", "e", "-", "e") == (TimedWord("a", 0, 0), TimedWord("bee", 2, 6))
    phones = PhoneVocabulary.of(["AH", "B"])
    assert words(phones, "B", "AH", "AH") == (TimedWord("B", 0, 0), TimedWord("AH", 1, 2))
    search = GreedySearch(letters)
    assert search.end(search.begin()) == Hypothesis((), 0.0)
    assert words(letters, "-", " ", "-") == ()
