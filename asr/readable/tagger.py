"""The tagger: a small recurrent network that says how each word is written and which mark follows it.

Words go through one LSTM; what is said of a word is read from its own features and from the LSTM's outputs at it and at
the ``ahead`` words after it, so a word waits for that many words, or until :meth:`Tagger.flush` says that nothing
follows yet. Flushing ends the wait alone: the LSTM goes on, and the next words continue the text.

In numpy, a word at a time, whatever the pieces in which words come: so any cutting gives the same numbers to the bit.
Training is in :mod:`asr.training.tagger`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asr.config import from_dict, require, to_dict
from asr.errors import ConfigError, ModelError
from asr.readable.words import CASES, CLITICS, MARKS, Words

FORMAT = "1"
TABLES = ("stem", "first", "last")  # most of the weights: 8 bits with a scale for each row
_SCALE = ".scale"
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class TaggerConfig:
    """``embedding``, ``hidden`` and ``merged``: sizes of a word's features, of the LSTM and of the layer above it.
    ``ahead``: words of the future that a word waits for. ``buckets``: of hashed first and last letters."""

    embedding: int = 64
    hidden: int = 256
    merged: int = 128
    ahead: int = 4
    buckets: int = 2048

    def __post_init__(self) -> None:
        for name, value in to_dict(self).items():
            require(value >= (0 if name == "ahead" else 1), f"{name} of the tagger must not be {value}")

    @property
    def context(self) -> int:
        """Inputs of the layer above the LSTM: the word, outputs at it and after it, which of those there are."""
        return self.embedding + (1 + self.ahead) * self.hidden + self.ahead

    def shapes(self, stems: int) -> dict[str, tuple[int, ...]]:
        """Of all weights, for so many stems."""
        gates = 4 * self.hidden
        return {
            "stem": (stems + 1, self.embedding),
            "first": (self.buckets, self.embedding),
            "last": (self.buckets, self.embedding),
            "clitic": (len(CLITICS), self.embedding),
            "lstm.weight_ih_l0": (gates, self.embedding),
            "lstm.weight_hh_l0": (gates, self.hidden),
            "lstm.bias_ih_l0": (gates,),
            "lstm.bias_hh_l0": (gates,),
            "merge.weight": (self.merged, self.context),
            "merge.bias": (self.merged,),
            "head.weight": (len(CASES) + len(MARKS), self.merged),
            "head.bias": (len(CASES) + len(MARKS),),
        }


@dataclass(frozen=True)
class Tag:
    """Of one word: log-probabilities of the cases (len(CASES),) and of the marks after it (len(MARKS),)."""

    cases: Floats
    marks: Floats

    @property
    def case(self) -> int:
        """The likeliest case."""
        return int(self.cases.argmax())

    @property
    def mark(self) -> int:
        """The likeliest mark."""
        return int(self.marks.argmax())


@dataclass(frozen=True)
class TaggerState:
    """``h``, ``c``: (hidden,) of the LSTM. ``waiting``: features and LSTM output of every word that waits for its
    future, ``ahead`` at most."""

    h: Floats
    c: Floats
    waiting: tuple[tuple[Floats, Floats], ...] = ()


class Tagger:
    """Immutable; any number of texts share it. Raises ModelError for weights that do not fit ``config``."""

    def __init__(self, config: TaggerConfig, words: Words, weights: Mapping[str, NDArray[Any]]) -> None:
        self.config, self.words = config, words
        shapes = config.shapes(len(words.vocabulary))
        if {name: tuple(w.shape) for name, w in weights.items()} != shapes:
            raise ModelError("the tagger's weights do not fit its configuration: build it anew")
        self.weights: dict[str, Floats] = {name: np.asarray(w, dtype=np.float32) for name, w in weights.items()}
        w = self.weights
        if not all(np.isfinite(x).all() for x in w.values()):
            raise ModelError("the tagger's weights hold NaN or infinity: build it anew")
        self._tables = tuple(w[name] for name in ("stem", "first", "last", "clitic"))
        order = np.concatenate([np.arange(config.hidden) + k * config.hidden for k in (0, 1, 3, 2)])  # i, f, o, g
        joined = np.concatenate([w["lstm.weight_ih_l0"], w["lstm.weight_hh_l0"]], axis=1)
        self._gates = np.ascontiguousarray(joined[order])
        self._gate_bias = (w["lstm.bias_ih_l0"] + w["lstm.bias_hh_l0"])[order]

    def begin(self) -> TaggerState:
        """Before the first word of a text."""
        zeros = np.zeros(self.config.hidden, dtype=np.float32)
        return TaggerState(zeros, zeros)

    def step(self, words: Sequence[str], state: TaggerState) -> tuple[list[Tag], TaggerState]:
        """Take in words (lower case, as recognised); the tags of those whose future is known by now, oldest first."""
        h, c, waiting = state.h, state.c, list(state.waiting)
        tags = []
        for word in words:
            x = self._features(word)
            h, c = self._lstm(x, h, c)
            waiting.append((x, h))
            if len(waiting) > self.config.ahead:
                tags.append(self._tag(waiting))
                waiting.pop(0)
        return tags, TaggerState(h, c, tuple(waiting))

    def flush(self, state: TaggerState) -> tuple[list[Tag], TaggerState]:
        """The tags of the words that still wait, from what is known; later words are taken to follow after a pause."""
        waiting = state.waiting
        return [self._tag(waiting[i:]) for i in range(len(waiting))], replace(state, waiting=())

    def tag(self, words: Sequence[str]) -> list[Tag]:
        """The tags of a whole text: begin, one step, flush."""
        tags, state = self.step(words, self.begin())
        return tags + self.flush(state)[0]

    def _features(self, word: str) -> Floats:
        stem, first, last, clitic = self.words.features(word)
        tables = self._tables
        total: Floats = tables[0][stem] + tables[1][first] + tables[2][last] + tables[3][clitic]
        return total

    def _lstm(self, x: Floats, h: Floats, c: Floats) -> tuple[Floats, Floats]:
        gates, size = self._gates @ np.concatenate((x, h)) + self._gate_bias, self.config.hidden
        i, f, o = (1 / (1 + np.exp(-gates[: 3 * size]))).reshape(3, size)
        c = f * c + i * np.tanh(gates[3 * size :])
        return o * np.tanh(c), c

    def _tag(self, waiting: Sequence[tuple[Floats, Floats]]) -> Tag:
        """Of the first of ``waiting``, seeing the others."""
        config, w = self.config, self.weights
        context = np.zeros(config.context, dtype=np.float32)
        context[: config.embedding] = waiting[0][0]
        at = config.embedding
        for _, h in waiting:
            context[at : at + config.hidden] = h
            at += config.hidden
        context[len(context) - config.ahead :][: len(waiting) - 1] = 1
        merged = np.maximum(w["merge.weight"] @ context + w["merge.bias"], 0)
        logits = w["head.weight"] @ merged + w["head.bias"]
        return Tag(_log_softmax(logits[: len(CASES)]), _log_softmax(logits[len(CASES) :]))

    def save(self, path: Path) -> int:
        """Write a file: tables in 8 bits, all else in half precision; its size in bytes."""
        from safetensors.numpy import save_file

        tensors: dict[str, NDArray[Any]] = {k: np.ascontiguousarray(w, np.float16) for k, w in self.weights.items()}
        for name in TABLES:
            tensors[name], tensors[name + _SCALE] = _to_bytes(self.weights[name])
        stems = sorted(self.words.vocabulary, key=self.words.vocabulary.__getitem__)
        tensors["stems"] = _text(stems)
        tensors["forms"] = _text(list(self.words.forms.values()))
        save_file(tensors, path, {"format": FORMAT, "config": json.dumps(to_dict(self.config))})
        return path.stat().st_size

    @classmethod
    def load(cls, path: Path) -> Tagger:
        """Read a file. Raises ModelError when it cannot be read or is broken."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy") as file:
                known = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
            if known.get("format") != FORMAT:
                raise ModelError(f"{path} is no tagger of format {FORMAT}: update the package or build it anew")
            for name in TABLES:
                tensors[name] = tensors.pop(name + _SCALE).astype(np.float32) * tensors[name]
            config = from_dict(TaggerConfig, json.loads(known["config"]))
            stems, forms = (tensors.pop(name).tobytes().decode().split() for name in ("stems", "forms"))
            return cls(config, Words.of(stems, forms, config.buckets), tensors)
        except (OSError, SafetensorError, ValueError, KeyError, ConfigError) as error:
            raise ModelError(f"the tagger {path} cannot be read: {' '.join(str(error).split())}") from None


def _to_bytes(table: Floats) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """(n, size) as integers from -127 to 127 and (n, 1) what they are to be multiplied with."""
    largest = np.abs(table).max(axis=1, keepdims=True)
    scale = np.maximum(largest / 127, 1e-4).astype(np.float16)
    return np.clip(np.rint(table / scale.astype(np.float32)), -127, 127).astype(np.int8), scale


def _text(lines: Sequence[str]) -> NDArray[np.uint8]:
    return np.frombuffer("\n".join(lines).encode() or b"\n", dtype=np.uint8)


def _log_softmax(x: Floats) -> Floats:
    shifted = x - x.max()
    result: Floats = shifted - np.log(np.exp(shifted).sum())
    return result
