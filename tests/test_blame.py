"""benchmarks/blame.py: stretches of wrong words, sums over paths, and who is to blame for what."""

from __future__ import annotations

import itertools
from types import ModuleType

import numpy as np
import pytest
from benchmark_scripts import load_script

from asr.recognizer import Recognizer
from asr.training.tune import SearchFactory
from asr.vocabulary import BLANK


@pytest.fixture(scope="module")
def blame() -> ModuleType:
    return load_script("blame")


def test_stretches_put_the_text_right(blame: ModuleType) -> None:
    rng = np.random.default_rng(1)
    for _ in range(300):
        reference, heard = (list("abcd"[i] for i in rng.integers(0, 4, rng.integers(0, 9))) for _ in range(2))
        found = list(blame.stretches(reference, heard))
        mended = list(heard)
        for stretch in reversed(found):
            mended[stretch.first : stretch.last] = stretch.right
        assert mended == reference
        assert sum(s.errors for s in found) == blame.metrics.edit_distance(reference, heard)
        assert all(a.last < b.first for a, b in itertools.pairwise(found))  # words between them are right


def collapsed(path: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(unit for unit, _ in itertools.groupby(path) if unit != BLANK)


def test_all_paths_are_summed(blame: ModuleType) -> None:
    rng = np.random.default_rng(2)
    for steps in (1, 3, 5):
        emissions = np.log(rng.dirichlet(np.ones(3), steps))
        for spelled in ([], [[[1]]], [[[1], [2]], [[2], [1, 2]]], [[[1]], [[1]]]):
            texts = {tuple(itertools.chain(*way)) for way in itertools.product(*spelled)}
            paths = (p for p in itertools.product(range(3), repeat=steps) if collapsed(p) in texts)
            total = sum(np.exp(sum(emissions[t, u] for t, u in enumerate(p))) for p in paths)
            assert np.exp(blame.all_paths(emissions, spelled)) == pytest.approx(total)


def test_a_spelling_costs_what_it_costs(blame: ModuleType) -> None:
    emissions = np.log(np.random.default_rng(3).dirichlet(np.ones(3), 5))
    one, two = blame.all_paths(emissions, [[[1]], [[2]]]), blame.all_paths(emissions, [[[1]], [[1, 2]]])
    both = blame.all_paths(emissions, [[[1]], [[2], [1, 2]]], [[0.5], [0.25, 2.0]])
    assert both == pytest.approx(np.logaddexp(one - 0.75, two - 2.5))
    assert blame.all_paths(emissions[:1], [[[1]]], [[0.5]]) == pytest.approx(emissions[0, 1] - 0.5)


def test_errors_are_owed_to_what_is_against_the_right_words(blame: ModuleType) -> None:
    recognizer = Recognizer.load("en")
    parts = SearchFactory(recognizer)
    judge = blame.Judge(parts, parts(recognizer.folder.config.search))

    def heard_as(said: str) -> np.ndarray:
        """A network that is sure of these phones."""
        phones = said.split()
        emissions = np.full((2 * len(phones) + 1, len(judge.spelling)), -14.0, dtype=np.float32)
        emissions[::2, BLANK] = emissions[np.arange(len(phones)) * 2 + 1, judge.spelling.encode_phones(phones)] = -1e-4
        return emissions

    two_boys = heard_as("DH AH B OY Z")
    stretch = blame.Stretch(1, 2, ("boys",), 1)
    assert judge.owed(two_boys, ("the", "zebra"), stretch) == "the search"
    assert judge.owed(heard_as("DH AH T OY Z"), ("the", "toys"), stretch) == "the network"
    assert judge.owed(two_boys, ("the", "boys"), blame.Stretch(1, 2, ("qqzzx",), 1)) == "unknown words"
    rare = blame.Stretch(1, 2, ("son",), 1)  # sounds the same
    assert judge.owed(heard_as("DH AH S AH N"), ("the", "sun"), rare) == "the language models"
    assert judge.owed(two_boys, ("the", "boys"), blame.Stretch(1, 2, ("quay",), 1)) == "both"
