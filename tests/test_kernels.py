"""asr.decoding.kernels: selection against dictionaries, and that nothing is compiled while somebody waits."""

import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr import lm
from asr.decoding import kernels
from asr.decoding.beam_search import BeamSearch
from asr.decoding.hot_words import HotWord
from asr.decoding.prefix_search import PrefixSearch
from asr.decoding.search_config import SearchConfig
from asr.lexicon import Lexicon
from asr.vocabulary import CharacterVocabulary

WORDS = ["a", "ab", "abba", "b", "baa", "bab"]
COMPILED = [k for k in vars(kernels).values() if isinstance(k, numba.core.dispatcher.Dispatcher)]


def candidates(seed: int, rows: int, each: int) -> dict[str, Any]:
    """Some of them equal, some of the same future; equal ones have the same future."""
    rng = np.random.default_rng(seed)
    row = rng.permutation(np.arange(rows).repeat(each)).astype(np.int32)
    key = rng.integers(0, max(2, each // 2), len(row))
    scores = np.log(rng.random((len(row), 3)))
    scores[rng.random(len(row)) < 0.3, 0] = -np.inf
    mixed = lambda x: (x * 1000 + row).astype(np.uint64) * kernels.MIX[0]  # noqa: E731
    return {"row": row, "scores": scores, "total": np.logaddexp(scores[:, 0], scores[:, 1]),
            "keys": mixed(key), "futures": mixed(key // 2), "rows": rows}  # fmt: skip


def plain(c: dict[str, Any], beam: int, threshold: float, recombine: bool) -> list[list[tuple[int, float]]]:
    """Of each row the candidates that live on, best first, with their scores."""
    found = []
    for r in range(c["rows"]):
        equal: dict[int, list[int]] = {}
        for i in np.flatnonzero(c["row"] == r).tolist():
            equal.setdefault(int(c["keys"][i]), []).append(i)
        summed = {}
        for members in equal.values():
            best = max(members, key=lambda i: c["total"][i])
            summed[best] = math.log(sum(math.exp(c["total"][i]) for i in members))
        future: dict[int, int] = {}
        for i in summed:
            other = future.setdefault(int(c["futures"][i]) if recombine else i, i)
            if summed[i] > summed[other]:
                future[int(c["futures"][i])] = i
        ranked = sorted(future.values(), key=lambda i: -summed[i])
        top = summed[ranked[0]]
        found.append([(i, summed[i]) for i in ranked if summed[i] >= top - threshold][:beam])
    return found


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 10**6), st.integers(1, 4), st.sampled_from([1, 2, 9, 60]), st.sampled_from([1, 3, 100]),
    st.sampled_from([0.0, 0.5, 3.0, 50.0]), st.booleans(),
)  # fmt: skip
def test_selection(seed: int, rows: int, each: int, beam: int, threshold: float, recombine: bool) -> None:
    c = candidates(seed, rows, each)
    expected = plain(c, beam, threshold, recombine)
    total, scores = c["total"].copy(), c["scores"].copy()
    got = kernels.select(c["row"], scores, total, c["keys"], c["futures"], rows, beam, threshold, recombine, True)
    assert got.starts.tolist() == np.cumsum([0, *map(len, expected)])[:-1].tolist()
    assert got.chosen.tolist() == [i for row in expected for i, _ in row]
    assert total[got.chosen] == pytest.approx([score for row in expected for _, score in row])
    assert np.logaddexp(scores[:, 0], scores[:, 1])[got.chosen] == pytest.approx(total[got.chosen])
    assert got.top == pytest.approx([row[0][1] for row in expected])
    assert got.behind == pytest.approx([row[0][1] - score for row in expected for _, score in row])
    assert (c["futures"][got.losers] == c["futures"][got.winners]).all() and (got.losers != got.winners).all()
    assert (total[got.losers] <= total[got.winners]).all()
    assert bool(len(got.losers)) <= recombine


def test_a_row_depends_on_nothing_but_its_own() -> None:
    c = candidates(5, 3, 50)
    together = kernels.select(*(np.copy(c[k]) for k in ("row", "scores", "total", "keys", "futures")), 3, 10, 4.0,
                              True, False)  # fmt: skip
    edges = [*together.starts.tolist(), len(together.chosen)]
    for r in range(3):
        own = np.flatnonzero(c["row"] == r)
        one = kernels.select(np.zeros(len(own), np.int32), *(c[k][own] for k in ("scores", "total", "keys", "futures")),
                             1, 10, 4.0, True, False)  # fmt: skip
        assert own[one.chosen].tolist() == together.chosen[edges[r] : edges[r + 1]].tolist()
        assert one.behind.tolist() == together.behind[edges[r] : edges[r + 1]].tolist()
        assert not len(one.losers)


def searches() -> list[Callable[[], Any]]:
    vocabulary, config = CharacterVocabulary(), SearchConfig(beam=30)
    model = lm.estimate(["a baa", "b abba bab", "a b ab a"], order=3, vocabulary=WORDS)
    lexicon = Lexicon({word: [("AA", "B")] for word in WORDS})
    return [
        lambda: BeamSearch(vocabulary, lexicon, model, config),
        lambda: BeamSearch(vocabulary, lexicon, None, config, recombine=False),
        lambda: PrefixSearch(vocabulary, model, config),
    ]


@pytest.mark.parametrize("which", [0, 1, 2])
def test_after_a_warm_up_nothing_is_compiled_any_more(which: int) -> None:
    """Arrays of another type or layout would be compiled for in the middle of somebody's speech."""
    search = searches()[which]()
    search.warm_up()
    known = [len(kernel.signatures) for kernel in COMPILED]
    rng = np.random.default_rng(which)
    emissions = np.log(rng.dirichlet(np.full(len(search.vocabulary), 0.3), 40) + 1e-9).astype(np.float32)
    plain_state, remembers = search.begin(), search.begin(remember=True)
    hot = search.begin(hot=search.hot_words([HotWord("baa", 2.0), HotWord("bob bab", 1.0)]))
    for at in range(0, 40, 8):
        pieces = [(emissions[at : at + 8], s) for s in (plain_state, remembers, hot)]
        search.step_many(pieces)
        search.step(emissions[at : at + 1], plain_state)
        search.best(plain_state), search.so_far(remembers, 0.7)
    resumed = type(plain_state).from_bytes(plain_state.to_bytes())
    search.step(emissions, resumed)
    assert search.end(resumed).text and search.alternatives(remembers, 3)
    assert [len(kernel.signatures) for kernel in COMPILED] == known


def test_without_a_place_to_keep_what_was_compiled_it_works_nevertheless() -> None:
    code = """
import numba
real = numba.njit
def njit(*args, cache=False, **options):
    if cache:
        raise RuntimeError("cannot cache function: no locator available")
    return real(*args, **options)
numba.njit = njit
from asr.decoding.kernels import log_sum
print(round(log_sum(0.0, 0.0), 6))
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert out.stdout.split() == ["0.693147"]
