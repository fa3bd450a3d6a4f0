"""asr.training.metrics against the plain edit-distance matrix, and the bootstrap against what is known of it."""

import io
import math
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asr.errors import UsageError
from asr.training.metrics import (
    Edits,
    Utterance,
    align,
    character_error_rate,
    compare,
    count_edits,
    edit_distance,
    edits,
    error_rate,
    split_units,
    word_error_rate,
    write_report,
)


def plain_distance(reference: str, hypothesis: str) -> int:
    row = list(range(len(hypothesis) + 1))
    for i, r in enumerate(reference, 1):
        above = row
        row = [i]
        for j, h in enumerate(hypothesis, 1):
            row.append(min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (r != h)))
    return row[-1]


@given(st.text("ab", max_size=12) | st.text("abcdef", max_size=90), st.text("ab", max_size=12) | st.text("abcdef"))
def test_alignment_is_minimal_and_complete(reference: str, hypothesis: str) -> None:
    pairs = align(reference, hypothesis)
    assert "".join(r for r, _ in pairs if r is not None) == reference
    assert "".join(h for _, h in pairs if h is not None) == hypothesis
    assert (None, None) not in pairs
    found = count_edits(pairs)
    assert found.errors == edit_distance(reference, hypothesis) == plain_distance(reference, hypothesis)
    assert found.total == len(reference)
    assert found.deletions - found.insertions == len(reference) - len(hypothesis)


@given(st.lists(st.sampled_from(["a", "b", "cat"]), max_size=8), st.lists(st.sampled_from(["a", "b", "cat"])))
def test_words_are_units(reference: list[str], hypothesis: list[str]) -> None:
    letters = {"a": "a", "b": "b", "cat": "c"}
    distance = plain_distance("".join(letters[w] for w in reference), "".join(letters[w] for w in hypothesis))
    assert edits(" ".join(reference), "  ".join(hypothesis)).errors == distance


def test_kinds_of_edits() -> None:
    assert edits("the cat sat", "the cat sat") == Edits(0, 0, 0, 3)
    assert edits("the cat sat", "the cut sat") == Edits(1, 0, 0, 3)
    assert edits("the cat sat", "the sat") == Edits(0, 1, 0, 3)
    assert edits("the cat sat", "the old cat sat") == Edits(0, 0, 1, 3)
    assert edits("", "a b") == Edits(0, 0, 2, 0)
    assert edits("a b", "") == Edits(0, 2, 0, 2)
    assert edits("", "") == Edits(0, 0, 0, 0)
    assert edits("the cat", "thecat", "character") == Edits(0, 1, 0, 7)
    assert split_units("  the \n cat ", "character") == list("the cat")


def test_corpus_rate_is_over_all_units_not_a_mean_of_utterances() -> None:
    rate = word_error_rate(["a b c d", "e"], ["a b x", "e f"])
    assert (rate.errors, rate.total, rate.utterances) == (3, 5, 2)
    assert (rate.substitutions, rate.deletions, rate.insertions) == (1, 1, 1)
    assert rate.rate == pytest.approx(0.6)
    assert rate.low == pytest.approx(0.5) and rate.high == pytest.approx(1.0)
    assert str(rate) == "60.00% [50.00%, 100.00%] 3/5 (sub 1, del 1, ins 1)"
    assert character_error_rate(["ab cd"], ["ab c"]).rate == pytest.approx(0.2)


def test_empty_references_and_corpora() -> None:
    nothing = word_error_rate([], [])
    assert (nothing.rate, nothing.low, nothing.high, nothing.utterances) == (0.0, 0.0, 0.0, 0)
    assert word_error_rate([""], [""]).rate == 0.0
    heard = word_error_rate(["", ""], ["noise", ""])
    assert math.isinf(heard.rate) and (heard.low, heard.high) == (0.0, math.inf)


def test_interval_has_the_width_of_the_binomial_when_words_are_independent() -> None:
    random = np.random.default_rng(1)
    wrong = random.random(4000) < 0.3
    rate = error_rate([Edits(int(w), 0, 0, 1) for w in wrong])
    deviation = math.sqrt(rate.rate * (1 - rate.rate) / len(wrong))
    assert rate.low == pytest.approx(rate.rate - 1.96 * deviation, abs=0.25 * deviation)
    assert rate.high == pytest.approx(rate.rate + 1.96 * deviation, abs=0.25 * deviation)
    assert error_rate([Edits(int(w), 0, 0, 1) for w in wrong]) == rate  # the same seed, the same interval


def test_speakers_are_drawn_whole() -> None:
    # Ten consistent speakers with rates from 0 to 90 %: drawing utterances hides how much hangs on who was recorded.
    utterances = [Edits(speaker, 0, 0, 10) for speaker in range(10) for _ in range(50)]
    speakers = [f"s{speaker}" for speaker in range(10) for _ in range(50)]
    alone, together = error_rate(utterances), error_rate(utterances, speakers)
    assert alone.rate == together.rate == pytest.approx(0.45)
    expected = 1.96 * np.std(np.arange(10) / 10) / math.sqrt(10)
    assert together.high - together.low == pytest.approx(2 * expected, rel=0.1)
    assert alone.high - alone.low < 0.2 * (together.high - together.low)
    assert error_rate(utterances, [None] * 500) == alone == error_rate(utterances, [""] * 500)


def test_comparison_is_paired() -> None:
    random = np.random.default_rng(2)
    hard = random.integers(0, 10, 300)
    first = [Edits(int(h), 0, 0, 10) for h in hard]
    second = [Edits(max(0, int(h) - (i % 5 == 0)), 0, 0, 10) for i, h in enumerate(hard)]
    better = compare(first, second)
    assert better.low <= better.difference <= better.high < 0
    assert better.improvement == 1.0
    a, b = error_rate(first), error_rate(second)
    assert b.high > a.low  # the separate intervals overlap: only the paired one tells
    assert better.difference == pytest.approx(b.rate - a.rate)
    same = compare(first, first)
    assert (same.difference, same.low, same.high, same.improvement) == (0.0, 0.0, 0.0, 0.5)
    assert compare([], []).improvement == 0.5


def test_bad_arguments() -> None:
    with pytest.raises(UsageError, match="2 references but 1 hypotheses"):
        word_error_rate(["a", "b"], ["a"])
    with pytest.raises(UsageError, match="1 utterances but 2 speakers"):
        word_error_rate(["a"], ["a"], ["x", "y"])
    with pytest.raises(UsageError, match="not measured on the same utterances"):
        compare([Edits(0, 0, 0, 1)], [Edits(0, 0, 0, 2)])


def test_thousands_of_utterances_take_seconds() -> None:
    random = np.random.default_rng(3)
    words = np.array(["the", "of", "and", "house", "listened", "recogniser", "a"])
    references = [" ".join(words[random.integers(len(words), size=20)]) for _ in range(1000)]
    hypotheses = [" ".join(w for w in r.split() if random.random() > 0.2) for r in references]
    start = time.process_time()
    word_error_rate(references, hypotheses)
    character_error_rate(references, hypotheses)
    assert time.process_time() - start < 3.0


REPORT = """\
clip-1: 3/4 (sub 1, del 1, ins 1)
  REF: **** the CAT  SAT on
  HYP: WELL the CART *** on

clip-2: 0/1 (sub 0, del 0, ins 0)
  REF: yes
  HYP: yes

clip-3: 2/2 (sub 1, del 1, ins 0)
  REF: CAT  SAT
  HYP: CART ***

TOTAL 71.43% [0.00%, 83.33%] 5/7 (sub 2, del 2, ins 1), 1 of 3 utterances without an error

substitutions: 2, 1 different
      2  cat -> cart

deletions: 2, 1 different
      2  sat

insertions: 1, 1 different
      1  well
"""


def test_report() -> None:
    file = io.StringIO()
    write_report(
        [
            Utterance("clip-1", "the cat sat on", "well the cart on", "anna"),
            Utterance("clip-2", "yes", "yes", "ben"),
            Utterance("clip-3", "cat sat", "cart", "anna"),
        ],
        file,
    )
    assert file.getvalue() == REPORT


def test_report_of_nothing() -> None:
    file = io.StringIO()
    write_report([Utterance("silence", "", "")], file)
    assert file.getvalue().startswith("silence: 0/0 (sub 0, del 0, ins 0)\n  REF:\n  HYP:\n\nTOTAL 0.00% ")
