"""asr.decoding.confidence and asr calibrate: alignments, fits and figures against slow references; invariance."""

import dataclasses
import io
import itertools
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_recognizer import cut, segments, streamed, write_wav
from tiny_model import SENTENCES, babble

from asr import Recognizer
from asr.checkpoint import read_config, update_config
from asr.config import from_dict, to_dict
from asr.decoding.confidence import FEATURES, ConfidenceConfig, TimesConfig, align, log_odds, share, sigmoid
from asr.decoding.hypothesis import Hypothesis, TimedWord
from asr.errors import ConfigError, UsageError
from asr.training import calibrate
from asr.training.manifest import Utterance

WEIGHTS = dict.fromkeys(FEATURES, 0.1) | {"fit": 0.7, "worst": 0.3, "share": 0.4, "lm": 0.5}


@pytest.fixture(scope="module")
def judging(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Recognizer:
    """The tiny recogniser with confidences and shifts of times."""
    path = tmp_path_factory.mktemp("judging") / "tiny"
    shutil.copytree(tiny_path, path)
    config = ConfidenceConfig(WEIGHTS, 1.0, 3.0, 0.1, 0.9)
    times = TimesConfig(start_shift_ms=-50.0, end_shift_ms=30.0)
    update_config(path, dataclasses.replace(read_config(path), confidence=config, times=times))
    return Recognizer.load(path, threads=1)


# --- confidences of a stream ----------------------------------------------------------------------------------------


def test_every_word_and_segment_has_a_confidence(judging: Recognizer) -> None:
    found = streamed(judging, [babble(10, 1)])
    words = [w.confidence for s in found for w in s.words]
    assert len(words) > 20 and all(c is not None and 0 <= c <= 1 for c in words)
    assert len(set(words)) > 10
    assert all(s.confidence is not None and 0 <= s.confidence <= 1 for s in found)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(1, 20_000), min_size=1, max_size=5), st.integers(0, 2))
def test_any_cutting_gives_the_same_confidences(judging: Recognizer, sizes: list[int], seed: int) -> None:
    audio = babble(6, seed)
    sizes = [max(size, 150) for size in sizes]
    assert streamed(judging, cut(audio, sizes)) == streamed(judging, [audio])


def test_alternatives_and_hot_words_are_judged(judging: Recognizer) -> None:
    stream = judging.stream(alternatives=3, hotwords=["sea"])
    found = segments(stream.feed(babble(6, 2)) + stream.finish())
    others = [a for s in found for a in s.alternatives]
    assert others and all(0 <= a.confidence <= 1 for a in others if a.confidence is not None)
    assert all(w.confidence is not None for a in others for w in a.words)
    assert all(a.confidence is not None for a in others)


def test_without_coefficients_there_is_none(tiny: Recognizer) -> None:
    found = streamed(tiny, [babble(6, 1)])
    assert found and all(s.confidence is None and all(w.confidence is None for w in s.words) for s in found)


def test_words_that_are_forgotten_have_no_confidence(judging: Recognizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asr.decoding.confidence.KEPT_STEPS", 50)
    stream = judging.stream(endpointing=False)
    (found,) = segments(stream.feed(babble(6, 1, pauses=False)) + stream.finish())
    known = [w.confidence is not None for w in found.words]
    assert not known[0] and known[-1] and sorted(known) == known


# --- features against slow references -------------------------------------------------------------------------------


def slow_alignment(units: list[int], emissions: np.ndarray) -> tuple[float, float]:
    """Mean log-probability of the best path, and of its worst unit at its best step: all ways to place the units."""
    best: tuple[float, float] = (-math.inf, -math.inf)
    steps = len(emissions)
    for path in itertools.product({0, *units}, repeat=steps):
        runs = [u for u, _ in itertools.groupby(path)]
        if [u for u in runs if u] != units or not path[0] or not path[-1]:
            continue
        heard = [float(emissions[t, u]) for t, u in enumerate(path)]
        peaks, at = [], 0
        for unit, run in itertools.groupby(path):
            size = len(list(run))
            if unit:
                peaks.append(max(heard[at : at + size]))
            at += size
        best = max(best, (sum(heard) / steps, min(peaks)))
    return best


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=3), st.integers(1, 6), st.integers(0, 10**6))
def test_alignment(units: list[int], steps: int, seed: int) -> None:
    logits = 2 * np.random.default_rng(seed).normal(size=(steps + 2, 4))
    emissions = (logits - np.logaddexp.reduce(logits, axis=1)[:, None]).astype(np.float32)
    mean, worst = slow_alignment(units, emissions[1:-1])
    first, last = np.array([1, 0]), np.array([steps, 0])
    fit, least, count = align([[units, [3, 2, 1, 3, 2, 1, 3]], [[1]]], first, last, emissions)
    assert count[1] == 1 and fit[1] == least[1] == pytest.approx(emissions[0, 1], abs=1e-5)
    if math.isfinite(mean):
        assert (fit[0], least[0], count[0]) == (
            pytest.approx(mean, abs=1e-4),
            pytest.approx(worst, abs=1e-4),
            len(units),
        )
    else:  # more units than steps
        assert fit[0] == least[0] == -12.0


def test_the_better_pronunciation_counts() -> None:
    emissions = np.log(np.array([[0.1, 0.8, 0.1], [0.1, 0.2, 0.7]], dtype=np.float32))
    step = np.array([0]), np.array([1])
    both, _, units = align([[[1], [1, 2]]], *step, emissions)
    alone, _, _ = align([[[1, 2]]], *step, emissions)
    assert both[0] == alone[0] == pytest.approx(math.log(0.8 * 0.7) / 2, abs=1e-5) and units[0] == 2


def test_share_of_the_hypotheses() -> None:
    def said(*words: tuple[str, int]) -> tuple[TimedWord, ...]:
        return tuple(TimedWord(text, at, at + 2) for text, at in words)

    final = [
        Hypothesis(said(("no", 0), ("sea", 10)), 0.0),
        Hypothesis(said(("know", 0), ("sea", 11)), math.log(0.5) * 2),
        Hypothesis(said(("no", 90)), math.log(0.25) * 2),
    ]
    found = share(final[0].words, final, temperature=2.0)
    assert found == pytest.approx([1 / 1.75, 1.5 / 1.75])


def test_language_model_features(judging: Recognizer) -> None:
    """Batched over the words of a segment as if scored one after the other."""
    evidence, scorer = judging.confidence.evidence, judging.search.scorer  # type: ignore[union-attr]
    words = [TimedWord(w, i, i) for i, w in enumerate(["see", "me", "at", "sea"])]
    context, expected = np.array([scorer.begin]), []
    ids = [judging.search._ids[w.text] for w in words]  # type: ignore[union-attr]
    for word in [*ids, scorer.end_of_sentence]:
        log_prob, context = scorer.score(context, np.array([word]))
        expected.append(float(log_prob[0]))
    assert evidence._lm(words)[0] == pytest.approx(expected)


# --- fits and figures -----------------------------------------------------------------------------------------------


def test_logistic_regression_finds_the_weights_of_its_data() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20_000, 3)) * [1.0, 10.0, 0.1] + [0.0, 5.0, 1.0]
    y = (rng.random(len(x)) < sigmoid(x @ [1.0, -0.1, 5.0] - 4.0)).astype(np.float64)
    weights, bias = calibrate.logistic(x, y)
    assert weights == pytest.approx([1.0, -0.1, 5.0], rel=0.1) and bias == pytest.approx(-4.0, rel=0.1)
    p = sigmoid(x @ weights + bias)
    assert abs(float((p - y).mean())) < 1e-3  # the ridge does not touch the bias


def test_a_separable_problem_stays_finite() -> None:
    x = np.array([[-1.0], [-2.0], [1.0], [2.0]])
    weights, bias = calibrate.logistic(x, (x[:, 0] > 0).astype(np.float64))
    assert 0 < weights[0] < 100 and abs(bias) < 1


def test_figures_by_hand() -> None:
    p, right = np.array([0.9, 0.9, 0.2, 0.1]), np.array([1.0, 0.0, 1.0, 0.0])
    q = calibrate.quality(p, right)
    assert (q.words, q.right) == (4, 0.5)
    assert q.ece == pytest.approx((abs(0.9 + 0.9 - 1) + abs(0.2 - 1) + 0.1) / 4)
    assert q.auc == pytest.approx((0.5 + 1 + 0 + 1) / 4)
    loss = -(math.log(0.9) + math.log(0.1) + math.log(0.2) + math.log(0.9)) / 4
    assert q.nce == pytest.approx(1 - loss / math.log(2))
    assert calibrate.quality(np.full(4, 0.5), right).nce == pytest.approx(0.0)
    assert calibrate.auc(right, right) == 1.0 and calibrate.auc(p, np.ones(4)) == 0.5


@given(st.floats(1e-5, 1 - 1e-5))
def test_log_odds(p: float) -> None:
    assert sigmoid(log_odds(p)) == pytest.approx(p, rel=1e-6)


@given(st.lists(st.sampled_from(["", "unknown", "a", "b", "c"]), max_size=30))
def test_halves_share_no_speaker(names: list[str]) -> None:
    utterances = [Utterance(str(i), Path("x"), 0.0, None, "", name) for i, name in enumerate(names)]
    halves = calibrate.deal(utterances)
    for name in set(names) - {"", "unknown"}:
        assert len({h for h, n in zip(halves, names, strict=True) if n == name}) == 1
    assert set(halves) <= {0, 1} and abs(2 * sum(halves) - len(halves)) <= max(map(names.count, "abc"), default=0) + 1


def test_labels_run_through_the_segments_of_an_utterance() -> None:
    def final(*words: str) -> tuple[Hypothesis, ...]:
        return (Hypothesis(tuple(TimedWord(w, i, i) for i, w in enumerate(words)), 0.0),)

    nothing = np.zeros((0, 2), np.float32)
    found = calibrate.label(
        "t", 1, ["a", "b", "c", "d"], [(nothing, final("a", "x")), (nothing, final()), (nothing, final("c"))]
    )
    assert [e.right for e in found] == [(True, False), (), (True,)]


def test_calibrate_writes_what_the_recogniser_reads(tiny_path: Path, tmp_path: Path) -> None:
    model = tmp_path / "tiny"
    shutil.copytree(tiny_path, model)
    table = babble_table(Recognizer.load(model, threads=1), tmp_path, count=16)
    printed = io.StringIO()
    assert calibrate.main(str(model), [str(table)], out=tmp_path / "c.json", write=True, file=printed) == 0
    config = read_config(model).confidence
    assert config is not None
    assert to_dict(config) == json.loads((tmp_path / "c.json").read_text())["confidence"]
    assert "n-best share" in printed.getvalue() and "ECE" in printed.getvalue()
    found = streamed(Recognizer.load(model, threads=1), [babble(6, 99)])
    assert found and all(w.confidence is not None for s in found for w in s.words)


def babble_table(recognizer: Recognizer, folder: Path, count: int) -> Path:
    """Babble whose transcripts are what is recognised, with every third word replaced: some words are right."""
    rows = ["audio\ttext\tspeaker"]
    for i in range(count):
        audio = babble(6, 50 + i)
        said = " ".join(s.text for s in streamed(recognizer, [audio])).split()
        wrong = SENTENCES[i % len(SENTENCES)].split()[0]
        text = [wrong if k % 3 == 0 else w for k, w in enumerate(said)]
        write_wav(folder / f"{i}.wav", audio)
        rows.append(f"{i}.wav\t{' '.join(text)}\tspeaker {i % 4}")
    table = folder / "dev.tsv"
    table.write_text("\n".join(rows) + "\n")
    return table


def test_too_few_words_are_refused(tiny_path: Path, tiny: Recognizer, tmp_path: Path) -> None:
    table = babble_table(tiny, tmp_path, count=1)
    with pytest.raises(UsageError, match="too few words"):
        calibrate.main(str(tiny_path), [str(table)], file=io.StringIO())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"weights": {}}, "look at 'behind, fit"),
        ({"weights": WEIGHTS | {"fitt": 1.0}}, "look at 'fitt'"),
        ({"weights": WEIGHTS, "temperature": 0.0}, "temperature must be positive"),
        ({"weights": WEIGHTS, "bias": math.nan}, "finite"),
    ],
)
def test_impossible_coefficients(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict(ConfidenceConfig, values)
