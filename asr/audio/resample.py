"""Streaming resampling between any two rates of 8 to 48 kHz, with a state that can be copied, saved and resumed.

A windowed-sinc low-pass filter (Kaiser window; Oppenheim and Schafer, Discrete-Time Signal Processing, section 7.5)
evaluated at the rational ratio L/M of the rates (44100 -> 16000 is 160/441): linear phase, 100 dB down from the
Nyquist frequency of the lower rate on, flat up to 0.91 of it.

Why not soxr: a session must be copied (to look at its end without ending it), parked and
resumed on another machine, and soxr keeps its state inside a C object that can be neither copied nor saved. And soxr
gives its output in bursts, 40 ms late from 44.1 kHz and 115 ms late from 8 kHz when it is fed 20 ms at a time; this
filter is late by its half width, 4.4 and 8.9 ms. The files that :mod:`asr.audio.media` reads go through the same
filter, so that a recording gives the same samples as a file and as a stream. For signals in the pass
band the error against the exact (Fourier) interpolation is 2e-6 of full scale at most, where soxr's HQ has 2e-7 for
simple ratios and 2e-4 for 44.1 and 22.05 kHz. Cost: a thousandth of a core.

Output sample n is always at the time n / out_rate of the input: the delay of the filter is compensated.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from asr.errors import AudioError, StateError

SAMPLE_RATE = 16000
MIN_RATE, MAX_RATE = 8000, 48000  # of streams
PASS_BAND = 0.91  # of the Nyquist frequency of the lower rate
STOP_DB = 100.0
TILE = 160  # outputs that are computed together: 10 ms at 16 kHz
MAX_TILE = 640  # 11025 -> 16000 is 640/441; ratios with longer periods have no common filter matrix

_HEADER = struct.Struct("<4sIIQQQ")  # magic, rates, fed, given, index of the first sample of the tail
_MAGIC = b"RS01"


@dataclass(frozen=True)
class ResamplerState:
    """Where a stream stands: integer counters and the input that later outputs still need.

    ``fed``: input samples so far. ``given``: output samples so far. ``tail``: (n,) float32, the input from sample
    ``start`` to ``fed``. Its size is bounded by the filter and does not grow with the length of the stream.
    """

    in_rate: int
    out_rate: int
    fed: int
    given: int
    start: int
    tail: np.ndarray

    @property
    def nbytes(self) -> int:
        """Size of the serialised state."""
        return _HEADER.size + self.tail.nbytes

    def to_bytes(self) -> bytes:
        """Serialise; :meth:`from_bytes` is the inverse."""
        header = _HEADER.pack(_MAGIC, self.in_rate, self.out_rate, self.fed, self.given, self.start)
        return header + self.tail.astype("<f4").tobytes()

    @staticmethod
    def from_bytes(data: bytes) -> ResamplerState:
        """Read a serialised state. Raises :class:`StateError` if the bytes are none."""
        broken = StateError("the saved state of the resampler is broken: begin the stream anew")
        if len(data) < _HEADER.size or (len(data) - _HEADER.size) % 4:
            raise broken
        magic, in_rate, out_rate, fed, given, start = _HEADER.unpack_from(data)
        tail = np.frombuffer(data, "<f4", offset=_HEADER.size).astype(np.float32)
        if magic != _MAGIC or start + tail.size != fed or not np.isfinite(tail).all():
            raise broken
        return ResamplerState(in_rate, out_rate, fed, given, start, tail)


class Resampler:
    """Resample mono streams from ``in_rate`` to ``out_rate``. Immutable: one serves any number of streams.

    Each output is computed at a fixed place of a tile of fixed shape, with zeros for the input that has not come yet;
    so the samples of a stream do not depend on how it is cut, to the last bit.

    Raises :class:`AudioError` for rates outside ``MIN_RATE`` to ``max_rate`` Hz (files may have more than streams).
    """

    def __init__(self, in_rate: int, out_rate: int = SAMPLE_RATE, max_rate: int = MAX_RATE) -> None:
        for rate in (in_rate, out_rate):
            if not isinstance(rate, int | np.integer) or not MIN_RATE <= rate <= max_rate:
                range_text = f"{MIN_RATE} to {max_rate} Hz"
                raise AudioError(f"sample rate {rate} Hz is outside the range: send whole rates of {range_text}")
        self.in_rate, self.out_rate = int(in_rate), int(out_rate)
        common = math.gcd(self.in_rate, self.out_rate)
        self.up, self.down = self.out_rate // common, self.in_rate // common  # L and M
        self.half = 0 if self.up == self.down else _half_width(self.up, self.down)
        period = TILE if TILE % self.up == 0 else self.up  # outputs after which the phases of the filter repeat
        self._matrix: np.ndarray | None = None
        self._phases: np.ndarray | None = None
        self.tile = period if period <= MAX_TILE else TILE
        self.window = ((self.tile - 1) * self.down + self.up - 1) // self.up + 2 * self.half + 1
        if self.up == self.down:
            return
        if period <= MAX_TILE:
            self._matrix = _matrix(self.up, self.down, self.half, self.tile, self.window)
        else:
            self._phases = _phases(self.up, self.down, self.half)

    @property
    def latency_s(self) -> float:
        """Seconds of input behind an output's time that must have come before it is given."""
        return (self.half + 1) / self.in_rate if self.half else 0.0

    def begin(self) -> ResamplerState:
        """The state of a stream of which nothing has come."""
        return ResamplerState(self.in_rate, self.out_rate, 0, 0, 0, np.zeros(0, np.float32))

    def step(self, x: np.ndarray, state: ResamplerState) -> tuple[np.ndarray, ResamplerState]:
        """Take (n,) float samples at ``in_rate``; give all (m,) float32 outputs that are now complete.

        Raises :class:`AudioError` for NaN or infinite samples, :class:`StateError` for a state of other rates.
        """
        self._check(state)
        x = np.asarray(x, np.float32).reshape(-1)
        if not np.isfinite(x).all():
            at = (state.fed + int(np.flatnonzero(~np.isfinite(x))[0])) / self.in_rate
            raise AudioError(f"NaN or infinite sample at {at:.3f} s: send finite samples")
        fed = state.fed + x.size
        if self.up == self.down:
            return x, ResamplerState(self.in_rate, self.out_rate, fed, fed, fed, np.zeros(0, np.float32))
        held = np.concatenate([state.tail, x])
        ready, keep = self._counters(fed)
        y = self._outputs(held, state.start, state.given, ready)
        tail = held[keep - state.start :].copy()
        return y, ResamplerState(self.in_rate, self.out_rate, fed, ready, keep, tail)

    def finish(self, state: ResamplerState) -> np.ndarray:
        """The outputs that are still to come if the input ends here: all whose time lies within the input.

        The state is left as it was: a stream may look at its end and go on.
        """
        self._check(state)
        if self.up == self.down:
            return np.zeros(0, np.float32)
        total = _ceil_div(state.fed * self.up, self.down)
        return self._outputs(state.tail, state.start, state.given, total)

    def _check(self, state: ResamplerState) -> None:
        if (state.in_rate, state.out_rate) != (self.in_rate, self.out_rate):
            theirs, ours = f"{state.in_rate} -> {state.out_rate}", f"{self.in_rate} -> {self.out_rate}"
            raise StateError(f"this state of a resampler {theirs} Hz does not fit one of {ours} Hz: use its own")
        if (state.given, state.start) != self._counters(state.fed):
            raise StateError("the saved state of the resampler is broken: begin the stream anew")

    def _counters(self, fed: int) -> tuple[int, int]:
        """(outputs that are complete, first input sample still needed) after ``fed`` input samples."""
        if self.up == self.down:
            return fed, fed
        # Output n needs the input up to floor(n * down / up) + half.
        ready = max(0, _ceil_div((fed - self.half) * self.up, self.down))
        return ready, min(fed, max(0, self._tile_start(ready // self.tile)))

    def _tile_start(self, tile: int) -> int:
        """Index of the first input sample in the window of a tile; negative before the beginning."""
        return tile * self.tile * self.down // self.up - self.half

    def _outputs(self, held: np.ndarray, start: int, first: int, last: int) -> np.ndarray:
        """Outputs ``first`` to ``last`` from the input ``held``, whose first sample has the index ``start``."""
        if last <= first:
            return np.zeros(0, np.float32)
        tiles = range(first // self.tile, (last - 1) // self.tile + 1)
        begin, end = self._tile_start(tiles[0]), self._tile_start(tiles[-1]) + self.window
        left = max(0, start - begin)  # only before the beginning of the stream: the tail reaches back to the tile
        right = max(0, end - start - held.size)
        if left or right:
            held = np.concatenate([np.zeros(left, np.float32), held, np.zeros(right, np.float32)])
        origin = start - left
        parts = [self._tile(held[self._tile_start(t) - origin :][: self.window], t) for t in tiles]
        skip = first - tiles[0] * self.tile
        return np.concatenate(parts)[skip : skip + last - first]

    def _tile(self, window: np.ndarray, tile: int) -> np.ndarray:
        """(tile,) outputs from (window,) inputs; always the same shapes, so always the same rounding."""
        if self._matrix is not None:
            return window @ self._matrix
        assert self._phases is not None
        ticks = (tile * self.tile * self.down) % self.up + np.arange(self.tile) * self.down
        taps = np.lib.stride_tricks.sliding_window_view(window, 2 * self.half + 1)[ticks // self.up]
        return np.einsum("nk,nk->n", taps, self._phases[ticks % self.up])


@lru_cache(maxsize=16)
def resampler(in_rate: int, out_rate: int = SAMPLE_RATE, max_rate: int = MAX_RATE) -> Resampler:
    """A shared :class:`Resampler`: its filter is computed once per pair of rates."""
    return Resampler(in_rate, out_rate, max_rate)


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def _half_width(up: int, down: int) -> int:
    """Input samples on either side of an output: Kaiser's estimate for the transition band and ``STOP_DB``."""
    nyquist = 0.5 * min(1.0, up / down)  # of the lower rate, in cycles per input sample
    return math.ceil((STOP_DB - 7.95) / (14.36 * (1.0 - PASS_BAND) * nyquist) / 2.0)


def _kernel(t: np.ndarray, up: int, down: int, half: int) -> np.ndarray:
    """The filter at the distances ``t`` in input samples; float64."""
    nyquist = 0.5 * min(1.0, up / down)
    cutoff = nyquist * (1.0 + PASS_BAND) / 2.0  # the middle of the transition band
    beta = 0.1102 * (STOP_DB - 8.7)
    # The window from a fine table (error 1e-9): Bessel functions of millions of taps take seconds for odd ratios.
    grid = np.linspace(0.0, 1.0, 20001)
    table = np.i0(beta * np.sqrt(1.0 - grid**2)) / np.i0(beta)
    window = np.interp(np.abs(t) / half, grid, table, right=0.0)
    return 2.0 * cutoff * np.sinc(2.0 * cutoff * t) * window


def _phases(up: int, down: int, half: int) -> np.ndarray:
    """(up, 2 * half + 1) float32: the taps for an output that lies r / up behind an input sample, r from 0."""
    t = np.arange(-half, half + 1)[None, :] - np.arange(up)[:, None] / up
    taps = _kernel(t, up, down, half)
    return (taps / taps.sum(axis=1, keepdims=True)).astype(np.float32)  # a constant stays the same constant


def _matrix(up: int, down: int, half: int, tile: int, window: int) -> np.ndarray:
    """(window, tile) float32: the banded matrix that computes a tile of outputs from its window of inputs."""
    phases = _phases(up, down, half)
    matrix = np.zeros((window, tile), np.float32)
    for q in range(tile):
        first = q * down // up
        matrix[first : first + 2 * half + 1, q] = phases[q * down % up]
    return matrix
