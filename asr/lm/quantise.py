"""Quantisation: many values as places in a small table of centres."""

from __future__ import annotations

import numpy as np

_ROUNDS = 20  # of Lloyd's algorithm


def quantise(values: np.ndarray, bins: int) -> tuple[np.ndarray, np.ndarray]:
    """At most ``bins`` ascending centres (float32), and the nearest one's place per value (uint64).

    Where there are no more distinct values than bins, nothing is lost. Otherwise half of the centres start with equal
    shares of the values (M. Federico, N. Bertoldi 2006, "How many bits are needed to store probabilities for
    phrase-based translation?"), half at equal distances, so that no value is far from its centre; Lloyd's algorithm
    improves them.
    """
    if not len(values):
        return np.zeros(0, dtype=np.float32), np.zeros(0, dtype=np.uint64)
    ranked = np.sort(values)
    distinct = ranked[np.concatenate([[True], ranked[1:] != ranked[:-1]])]
    centres = distinct if len(distinct) <= bins else _centres(ranked.astype(np.float64), bins)
    centres = centres.astype(np.float32)
    return centres, np.searchsorted((centres[1:].astype(np.float64) + centres[:-1]) / 2, values).astype(np.uint64)


def _centres(ranked: np.ndarray, bins: int) -> np.ndarray:
    sums = np.concatenate([[0.0], np.cumsum(ranked)])
    shares = (bins + 1) // 2
    quantiles = ranked[(np.arange(shares) * 2 + 1) * len(ranked) // (2 * shares)]
    even = ranked[0] + (ranked[-1] - ranked[0]) * (np.arange(bins - shares) + 0.5) / max(1, bins - shares)
    centres = np.unique(np.concatenate([quantiles, even]))
    for _ in range(_ROUNDS):
        edges = np.searchsorted(ranked, (centres[1:] + centres[:-1]) / 2)
        edges = np.concatenate([[0], edges, [len(ranked)]])
        filled = np.diff(edges) > 0
        centres = (np.diff(sums[edges])[filled]) / np.diff(edges)[filled]
    return centres
