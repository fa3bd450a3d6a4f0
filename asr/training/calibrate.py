"""``asr calibrate``: fits the confidences of words and segments to held-out tables, and says how good they are.

The network and the search run once over every utterance. A word is right when the alignment of hypothesis and reference
pairs it with itself. Speakers are dealt into two halves; each half is judged by weights that were fitted on the other
one, so that every figure is of unseen speakers. What is written are the weights of both halves together.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from asr.decoding.beam_search import BeamSearch
from asr.decoding.confidence import (
    FEATURES,
    HYPOTHESES,
    KEPT_STEPS,
    ConfidenceConfig,
    Evidence,
    log_odds,
    share,
    sigmoid,
    speller,
    weights_of,
)
from asr.decoding.hypothesis import Emissions, Hypothesis
from asr.errors import ModelError, UsageError
from asr.recognizer import Recognizer
from asr.training import metrics
from asr.training.manifest import Utterance, read_corpora
from asr.training.tune import read_tables

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

TEMPERATURES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
BINS = 10
LEAST_WORDS = 200  # fewer right or wrong words than a tenth of this say nothing about rare events
_RIDGE = 1.0  # of the squared weights of standardised features, in words
_TOGETHER = 32  # segments in a step of the search


@dataclass(frozen=True)
class Example:
    """A recognised segment: ``emissions`` (steps, units), its final ``hypotheses``, which words of the best are
    ``right``, and where it comes from. ``half``: 0 or 1, by speaker."""

    table: str
    half: int
    emissions: Emissions
    hypotheses: tuple[Hypothesis, ...]
    right: tuple[bool, ...]


@dataclass(frozen=True)
class Quality:
    """How good probabilities are. ``words`` judged, ``right`` share of them; expected calibration error in
    :data:`BINS` bins of equal width (Guo et al. 2017), area under the ROC curve, normalised cross entropy (NIST:
    1 says all, 0 as much as the mean)."""

    words: int
    right: float
    ece: float
    auc: float
    nce: float


@dataclass(frozen=True)
class Words:
    """All words of some examples. ``features`` without "share" (n, features), ``shares`` (temperatures, n), ``right``
    (n,), ``segment`` (n,) the number of the example."""

    features: Floats
    shares: Floats
    right: Floats
    segment: NDArray[np.int64]

    def at(self, temperature: float) -> Floats:
        """The features with the shares of a temperature."""
        features = self.features.copy()
        features[:, FEATURES.index("share")] = np.clip(log_odds(self.shares[TEMPERATURES.index(temperature)]), -5, 5)
        return features


def main(
    model: str,
    dev: Sequence[str],
    limit: int | None = None,
    out: Path | None = None,
    write: bool = False,
    device: str = "cpu",
    file: TextIO | None = None,
) -> int:
    """Fit a model's confidences on every table of ``dev``, print how good they are on unseen speakers, and the
    weights as JSON.

    limit: only the first so many utterances of each table. out: a file for that JSON, too. write: put the weights into
    the model folder's ``config.json``.

    Raises ModelError for a model without a lexicon, UsageError for tables with too few words, and what reading the
    model and the tables raises.
    """
    file = file or sys.stdout
    recognizer = Recognizer.load(model, device=device)
    if not isinstance(recognizer.search, BeamSearch):
        raise ModelError(f"{recognizer.folder.path} has no lexicon: its words have no confidences to fit")
    evidence = Evidence(recognizer.search, speller(recognizer.search))
    found = list(examples(recognizer, recognizer.search, dev, limit))
    words = [collect(evidence, [e for e in found if e.half == half]) for half in (0, 1)]
    for part in words:
        if (
            min(part.right.sum(), len(part.right) - part.right.sum()) < LEAST_WORDS / 10
            or len(part.right) < LEAST_WORDS
        ):
            raise UsageError("the tables have too few words, right ones or wrong ones, to fit confidences: give more")
    for name, quality in judge(words):
        print(row(name, quality), file=file, flush=True)
    config = fit(join(words))
    text = json.dumps({"confidence": asdict(config)}, indent=1)
    print(text, file=file)
    if out:
        out.write_text(text + "\n", encoding="utf-8")
    if write:
        recognizer.folder.update(confidence=config)
    return 0


# --- examples -------------------------------------------------------------------------------------------------------


def examples(recognizer: Recognizer, search: BeamSearch, dev: Sequence[str], limit: int | None) -> Iterator[Example]:
    """The segments of all tables, recognised. Segments are cut as :func:`asr.training.tune.cut_segments` does."""
    corpora = read_corpora(dev)
    for table in read_tables(recognizer, dev, limit):
        utterances = corpora[table.name][:limit]
        halves = deal(utterances)
        pieces = [(i, e) for i, segments in enumerate(table.segments) for e in segments]
        final = hypotheses(search, [e for _, e in pieces])
        for i, utterance in enumerate(utterances):
            own = [(e, h) for (k, e), h in zip(pieces, final, strict=True) if k == i]
            yield from label(table.name, halves[i], utterance.text.split(), own)


def hypotheses(search: BeamSearch, segments: Sequence[Emissions]) -> list[tuple[Hypothesis, ...]]:
    """The final hypotheses of every segment."""
    final: list[tuple[Hypothesis, ...]] = []
    for first in range(0, len(segments), _TOGETHER):
        batch = segments[first : first + _TOGETHER]
        states = [search.begin() for _ in batch]
        search.step_many(list(zip(batch, states, strict=True)))
        final.extend(tuple(search.end_nbest(state, HYPOTHESES)) for state in states)
    return final


def label(
    table: str, half: int, reference: Sequence[str], segments: Sequence[tuple[Emissions, tuple[Hypothesis, ...]]]
) -> Iterator[Example]:
    """Examples of one utterance: its segments, whose words together are aligned with the reference."""
    said = [w.text for _, found in segments for w in found[0].words]
    pairs = metrics.align(list(reference), said)
    right = [r == h for r, h in pairs if h is not None]
    for emissions, found in segments:
        count = len(found[0].words)
        yield Example(table, half, emissions, found, tuple(right[:count]))
        del right[:count]


def deal(utterances: Sequence[Utterance]) -> list[int]:
    """Half (0 or 1) of every utterance: speakers stay together, the halves are about as large. An unknown speaker
    is one of his own."""
    names = [u.speaker if u.speaker not in ("", "unknown") else f"\0{i}" for i, u in enumerate(utterances)]
    sizes: dict[str, int] = {}
    for name in names:
        sizes[name] = sizes.get(name, 0) + 1
    half, held = {}, [0, 0]
    for name in sorted(sizes, key=lambda n: -sizes[n]):
        half[name] = int(held[1] < held[0])
        held[half[name]] += sizes[name]
    return [half[name] for name in names]


def collect(evidence: Evidence, found: Sequence[Example]) -> Words:
    """The features of all words of the best hypotheses."""
    features: list[Floats] = []
    shares: list[Floats] = []
    right: list[bool] = []
    segment: list[int] = []
    for k, e in enumerate(found):
        held, steps = e.emissions[-KEPT_STEPS:], len(e.emissions)
        best = e.hypotheses[0].words
        known = [w for w in best if w.first >= steps - len(held)]
        if not known:
            continue
        features.append(evidence.features(held, steps, best, np.full(len(known), 0.5)))
        shares.append(np.stack([share(known, e.hypotheses, t) for t in TEMPERATURES]))
        right.extend(e.right[len(best) - len(known) :])
        segment.extend([k] * len(known))
    if not features:
        return Words(np.zeros((0, len(FEATURES))), np.zeros((len(TEMPERATURES), 0)), np.zeros(0), np.zeros(0, np.int64))
    return Words(
        np.concatenate(features), np.concatenate(shares, axis=1), np.array(right, np.float64), np.array(segment)
    )


def join(parts: Sequence[Words]) -> Words:
    """The words of several parts."""
    offsets = np.cumsum([0, *(int(p.segment.max(initial=-1)) + 1 for p in parts[:-1])])
    return Words(
        np.concatenate([p.features for p in parts]),
        np.concatenate([p.shares for p in parts], axis=1),
        np.concatenate([p.right for p in parts]),
        np.concatenate([p.segment + o for p, o in zip(parts, offsets, strict=True)]),
    )


# --- fitting --------------------------------------------------------------------------------------------------------


def logistic(features: Floats, targets: Floats, weights: Floats | None = None) -> tuple[Floats, float]:
    """Logistic regression by Newton's method (iteratively reweighted least squares), with a little ridge on the
    standardised features. ``features`` (n, k), ``targets`` (n,) from 0 to 1, ``weights`` (n,) of the rows. Returns
    weights (k,) and bias of the features as they are."""
    mean, deviation = features.mean(axis=0), np.maximum(features.std(axis=0), 1e-9)
    x = np.concatenate([(features - mean) / deviation, np.ones((len(features), 1))], axis=1)
    rows = np.ones(len(x)) if weights is None else weights
    penalty = _RIDGE * np.append(np.ones(features.shape[1]), 1e-6)
    w = np.zeros(x.shape[1])
    for _ in range(50):
        p = sigmoid(x @ w)
        gradient = x.T @ (rows * (p - targets)) + penalty * w
        hessian = (x * (rows * p * (1 - p))[:, None]).T @ x + np.diag(penalty + 1e-9)
        step = np.linalg.solve(hessian, gradient)
        w -= step / max(1.0, float(np.abs(step).max()))
        if np.abs(step).max() < 1e-8:
            break
    return w[:-1] / deviation, float(w[-1] - (w[:-1] * mean / deviation).sum())


def fit(words: Words) -> ConfidenceConfig:
    """All numbers of a configuration: the temperature that makes the shares alone best, then the words' weights,
    then the segments'."""
    temperature = best_temperature(words)
    weights, bias = logistic(words.at(temperature), words.right)
    config = ConfidenceConfig(dict(weights_of(weights)), round(bias, 6), temperature)
    mean, right, count = by_segment(words.segment, predict(config, words), words.right)
    slope, bias = logistic(log_odds(mean)[:, None], right, count)
    return replace(config, segment_bias=round(bias, 6), segment_slope=round(float(slope[0]), 6))


def best_temperature(words: Words) -> float:
    """The temperature at which the shares of the hypotheses are the best probabilities by themselves."""
    losses = [cross_entropy(np.clip(s, 0.01, 0.99), words.right) for s in words.shares]
    return TEMPERATURES[int(np.argmin(losses))]


def predict(config: ConfidenceConfig, words: Words) -> Floats:
    """Confidences (n,) of words."""
    return sigmoid(words.at(config.temperature) @ [config.weights[name] for name in FEATURES] + config.bias)


def by_segment(segment: NDArray[np.int64], confidences: Floats, right: Floats) -> tuple[Floats, Floats, Floats]:
    """Per segment with words: mean confidence, share of right words, number of words."""
    count = np.bincount(segment)
    there = count > 0
    mean, share_right = np.bincount(segment, confidences), np.bincount(segment, right)
    return mean[there] / count[there], share_right[there] / count[there], count[there].astype(np.float64)


# --- judging --------------------------------------------------------------------------------------------------------


def judge(halves: Sequence[Words]) -> Iterator[tuple[str, Quality]]:
    """Every way to judge words, on each half with what was fitted on the other one."""
    ways: dict[str, list[Floats]] = {}
    segments: list[tuple[Floats, Floats, Floats]] = []
    for own, other in ((halves[0], halves[1]), (halves[1], halves[0])):
        config = fit(other)
        shares = own.shares[TEMPERATURES.index(config.temperature)]
        column = FEATURES.index("share")
        slope, bias = logistic(other.at(config.temperature)[:, [column]], other.right)
        ways.setdefault("n-best share", []).append(np.clip(shares, 0.01, 0.99))
        ways.setdefault("n-best share, fitted", []).append(
            sigmoid(own.at(config.temperature)[:, column] * slope[0] + bias)
        )
        confidences = predict(config, own)
        ways.setdefault("confidence", []).append(confidences)
        mean, right, count = by_segment(own.segment, confidences, own.right)
        segments.append((sigmoid(config.segment_bias + config.segment_slope * log_odds(mean)), right, count))
    right = np.concatenate([h.right for h in halves])
    for name, parts in ways.items():
        yield name, quality(np.concatenate(parts), right)
    p, shares, count = (np.concatenate(column) for column in zip(*segments, strict=True))
    yield "segment (share of right)", quality(p, shares, count)


def quality(p: Floats, right: Floats, weights: Floats | None = None) -> Quality:
    """How good probabilities ``p`` (n,) are. ``right`` (n,): 0 or 1, or the share of right ones among ``weights``
    (n,). The area under the curve is that of single ones, right against wrong."""
    weights = np.ones(len(p)) if weights is None else weights
    total = weights.sum()
    base = float((weights * right).sum() / total)
    most = cross_entropy(np.full(len(p), base), right, weights)
    nce = 1.0 - cross_entropy(p, right, weights) / most if most > 0 else 0.0
    return Quality(int(total), base, ece(p, right, weights), auc(p, right, weights), nce)


def cross_entropy(p: Floats, right: Floats, weights: Floats | None = None) -> float:
    """Mean nats per word."""
    p = np.clip(p, 1e-9, 1 - 1e-9)
    return float(np.average(-right * np.log(p) - (1 - right) * np.log(1 - p), weights=weights))


def ece(p: Floats, right: Floats, weights: Floats | None = None) -> float:
    """Expected calibration error: in bins of equal width, the mean distance of mean probability and share of right."""
    weights = np.ones(len(p)) if weights is None else weights
    bins = np.minimum((p * BINS).astype(np.int64), BINS - 1)
    return float(np.abs(np.bincount(bins, weights * (p - right), BINS)).sum() / weights.sum())


def auc(p: Floats, right: Floats, weights: Floats | None = None) -> float:
    """Probability that a right word has a greater ``p`` than a wrong one; ties count half. 0.5 where there are only
    right ones or only wrong ones."""
    weights = np.ones(len(p)) if weights is None else weights
    _, place = np.unique(p, return_inverse=True)
    good, bad = np.bincount(place, weights * right), np.bincount(place, weights * (1 - right))
    below = np.cumsum(bad) - bad
    pairs = good.sum() * bad.sum()
    return float((good * (below + bad / 2)).sum() / pairs) if pairs > 0 else 0.5


def row(name: str, q: Quality) -> str:
    """One line of the table."""
    return f"{name:<26} {q.words:>6} words, {q.right:.3f} right  ECE {q.ece:.3f}  AUC {q.auc:.3f}  NCE {q.nce:.3f}"
