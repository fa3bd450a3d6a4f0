"""A small recurrent language model over pieces of words: what n-grams cannot say.

Pieces (byte pairs, :class:`asr.vocabulary.BpeVocabulary`) instead of words keep the tables small: a model of 3000
pieces and 448 units has 2.1 million weights, a byte each on disk. One LSTM; its output goes through a small matrix and
is compared with the same table that pieces are read from (tied embeddings: O. Press, L. Wolf 2017, "Using the output
embedding to improve language models", EACL).

Texts of one segment are alike, so they go through the network as a tree: each beginning once. In numpy; training is in
:mod:`asr.lm.recurrent_train`. The state after a text is carried to the next one: what was said before it counts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asr.config import from_dict, require, to_dict
from asr.errors import AsrError, LanguageModelError, ModelError
from asr.lm.text import cannot_read, cannot_write
from asr.vocabulary import BLANK, BpeVocabulary, vocabulary_from_dict

FORMAT = 1
BOUNDARY = BLANK  # the piece that no word has: between sentences
_KEY = "asr.recurrent"
_SCALE = ".scale"
_LOG10 = float(np.log(10.0))
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class RecurrentConfig:
    """``embedding``: length of a piece's vector. ``hidden``: units of the LSTM. ``normalised``: what the network says
    of a piece is the logarithm of its probability as it is, near enough, so that nobody has to sum over all pieces."""

    embedding: int = 256
    hidden: int = 448
    normalised: bool = False

    def __post_init__(self) -> None:
        for name in ("embedding", "hidden"):
            value = getattr(self, name)
            require(1 <= value <= 4096, f"{name} of a recurrent language model must be 1 to 4096, not {value}")

    def shapes(self, pieces: int) -> dict[str, tuple[int, ...]]:
        """Of all weights, for so many pieces."""
        gates = 4 * self.hidden
        return {
            "table": (pieces, self.embedding),
            "lstm.weight_ih_l0": (gates, self.embedding),
            "lstm.weight_hh_l0": (gates, self.hidden),
            "lstm.bias_ih_l0": (gates,),
            "lstm.bias_hh_l0": (gates,),
            "out.weight": (self.embedding, self.hidden),
            "out.bias": (self.embedding,),
            "bias": (pieces,),
        }


@dataclass(frozen=True)
class RecurrentState:
    """``h``, ``c``: (hidden,) of the LSTM, which has seen all pieces but ``last``."""

    h: Floats
    c: Floats
    last: int = BOUNDARY


class RecurrentModel:
    """Immutable. Raises ModelError for weights that do not fit ``config``."""

    def __init__(self, config: RecurrentConfig, pieces: BpeVocabulary, weights: Mapping[str, NDArray[Any]]) -> None:
        if {name: tuple(w.shape) for name, w in weights.items()} != config.shapes(len(pieces)):
            raise ModelError("the weights of the recurrent language model do not fit its configuration: build it anew")
        self.config, self.pieces = config, pieces
        self.weights: dict[str, Floats] = {name: np.asarray(w, dtype=np.float32) for name, w in weights.items()}
        if not all(np.isfinite(w).all() for w in self.weights.values()):
            raise ModelError("the weights of the recurrent language model hold NaN or infinity: build it anew")

    @cached_property
    def inputs(self) -> Floats:
        """(pieces, 4 hidden): what each piece adds to the gates, in the order i, f, o, g."""
        w = self.weights
        bias = w["lstm.bias_ih_l0"] + w["lstm.bias_hh_l0"]
        order = self._order()
        return np.asarray(w["table"] @ w["lstm.weight_ih_l0"][order].T + bias[order])

    @cached_property
    def gates(self) -> Floats:
        """(4 hidden, hidden): the recurrent weights in that order."""
        return self.weights["lstm.weight_hh_l0"][self._order()]

    def _order(self) -> NDArray[np.int64]:
        return np.concatenate([np.arange(self.config.hidden) + k * self.config.hidden for k in (0, 1, 3, 2)])

    def begin(self) -> RecurrentState:
        """Before the first text."""
        zeros = np.zeros(self.config.hidden, dtype=np.float32)
        return RecurrentState(zeros, zeros)

    def score(
        self, texts: Sequence[str], state: RecurrentState | None = None, end: bool = False
    ) -> NDArray[np.float64]:
        """log10 probability of each of ``texts`` (normalised words) after ``state``: (texts,). ``end``: and that a
        sentence ends there. Raises UsageError for letters that no piece has. Probabilities here are summed over all
        pieces, even where the model says that this is not needed."""
        state = state or self.begin()
        rows = [[*self.pieces.encode(text), *([BOUNDARY] if end else [])] for text in texts]
        total = np.zeros(len(rows))
        nodes = np.zeros(len(rows), dtype=np.int64)  # of each text, among those of its present depth
        h, c, given = state.h[None], state.c[None], np.array([state.last])
        outputs: list[Floats] = []
        asked: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]] = []
        for depth in range(max(map(len, rows), default=0)):
            live = np.array([i for i, row in enumerate(rows) if len(row) > depth])
            kept, nodes[live] = np.unique(nodes[live], return_inverse=True)
            h, c = self._lstm(given[kept], h[kept], c[kept])
            piece = np.array([rows[i][depth] for i in live])
            asked.append((live, nodes[live] + sum(len(output) for output in outputs), piece))
            outputs.append(h)
            branches, nodes[live] = np.unique(nodes[live] * len(self.pieces) + piece, return_inverse=True)
            h, c, given = h[branches // len(self.pieces)], c[branches // len(self.pieces)], branches % len(self.pieces)
        if outputs:
            logs = self._log_probs(np.concatenate(outputs))
            for live, node, piece in asked:
                total[live] += logs[node, piece]
        return total / _LOG10

    def piece_log_probs(self, ids: NDArray[np.integer]) -> NDArray[np.float64]:
        """Natural logarithms of the probability of each piece of a text given those before it: (pieces,)."""
        said, sums = self.piece_logits(ids)
        return said - sums

    def piece_logits(self, ids: NDArray[np.integer]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """What the network says of each piece of a text, and the logarithm of the sum over all pieces there; the first
        less the second is :meth:`piece_log_probs`. Both (pieces,)."""
        h, c, last, outputs = self.begin().h[None], self.begin().c[None], BOUNDARY, []
        for piece in ids.tolist():
            h, c = self._lstm(np.array([last]), h, c)
            outputs.append(h)
            last = piece
        if not outputs:
            return np.zeros(0), np.zeros(0)
        logits = self._logits(np.concatenate(outputs))
        return logits[np.arange(len(ids)), ids].astype(np.float64), log_sum(logits)

    def advance(self, text: str, state: RecurrentState, end: bool = False) -> RecurrentState:
        """The state after ``text``. ``end``: and the end of a sentence."""
        h, c, last = state.h[None], state.c[None], state.last
        for piece in [*self.pieces.encode(text), *([BOUNDARY] if end else [])]:
            h, c = self._lstm(np.array([last]), h, c)
            last = piece
        return RecurrentState(h[0], c[0], last)

    def _lstm(self, given: NDArray[np.int64], h: Floats, c: Floats) -> tuple[Floats, Floats]:
        size = self.config.hidden
        gates = self.inputs[given] + h @ self.gates.T
        i, f, o = (_sigmoid(gates[:, k * size : (k + 1) * size]) for k in range(3))
        c = f * c + i * np.tanh(gates[:, 3 * size :])
        return o * np.tanh(c), c

    def _log_probs(self, h: Floats) -> Floats:
        """(rows, pieces) natural logarithms."""
        logits = self._logits(h)
        return np.asarray(logits - log_sum(logits)[:, None], dtype=np.float32)

    def _logits(self, h: Floats) -> Floats:
        """(rows, pieces) what the network says, before it is normalised."""
        w = self.weights
        return np.asarray((h @ w["out.weight"].T + w["out.bias"]) @ w["table"].T + w["bias"])


def log_sum(logits: Floats) -> NDArray[np.float64]:
    """(rows,) logarithm of the sum of the exponentials of (rows, pieces)."""
    top = logits.max(axis=1)
    return np.asarray(top + np.log(np.exp(logits - top[:, None]).sum(axis=1, dtype=np.float64)))


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(0.5 * np.tanh(0.5 * x) + 0.5)


def save(model: RecurrentModel, path: str | Path) -> int:
    """Write the model, matrices in 8 bits with a scale for each row; returns its bytes. Raises LanguageModelError."""
    from safetensors.numpy import save as pack

    arrays: dict[str, NDArray[Any]] = {}
    for name, w in model.weights.items():
        if w.ndim == 2:
            scale = np.maximum(np.abs(w).max(axis=1, keepdims=True), 1e-12) / 127
            arrays[name], arrays[name + _SCALE] = np.round(w / scale).astype(np.int8), scale[:, 0].astype(np.float32)
        else:
            arrays[name] = w
    header = {"format": FORMAT, "config": to_dict(model.config), "pieces": model.pieces.to_dict()}
    data = pack(arrays, {_KEY: json.dumps(header)})
    try:
        Path(path).write_bytes(data)
    except OSError as error:
        raise cannot_write(path, error) from None
    return len(data)


def load(path: str | Path) -> RecurrentModel:
    """Read what :func:`save` wrote. Raises LanguageModelError where there is none or it is broken or another file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            header = json.loads((file.metadata() or {})[_KEY])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
        if header["format"] != FORMAT:
            raise cannot_read(path, f"it has format {header['format']}, not {FORMAT}: update the package")
        weights = {
            name: w * arrays[name + _SCALE][:, None] if name + _SCALE in arrays else w
            for name, w in arrays.items()
            if not name.endswith(_SCALE)
        }
        pieces = vocabulary_from_dict(header["pieces"])
        if not isinstance(pieces, BpeVocabulary):
            raise ModelError("its pieces are of another kind")
        return RecurrentModel(from_dict(RecurrentConfig, header["config"]), pieces, weights)
    except OSError as error:
        raise cannot_read(path, error) from None
    except LanguageModelError:
        raise
    except (SafetensorError, LookupError, TypeError, ValueError, AttributeError, AsrError) as error:
        raise cannot_read(
            path, f"it is no recurrent language model, or corrupt ({' '.join(str(error).split())})"
        ) from None
