"""The package's own language model file: small, and read into arrays at once.

A safetensors container (https://github.com/huggingface/safetensors) with one entry of metadata, ``asr.ngram``: JSON
with the version, the number of words, the number of n-grams of each order, type and length of all arrays, and the
CRC-32 of their packed bytes (see :mod:`asr.lm.packing`). Arrays, for the orders n = 2 .. N:

    words               the vocabulary in UTF-8, a newline after each word
    1.log_probs         (words,) float32; 1.backoffs as well where N > 1
    n.words             last word of each n-gram: how far it is above that of the n-gram before it, where both begin
                        alike, else the word; uint16, or uint32 with more than 65536 words
    n.log_probs         place in the table: uint8, with more than 8 bits uint16; n.log_probs.table: float32
    n.backoffs          the same for n < N; place 0 is the weight 0.0
    n.children          for n < N: how many (n+1)-grams begin with the n-gram: uint8 or uint16, whichever makes the
                        smaller file; the highest number stands for the next entry of n.children.more: uint32

The n-grams of an order stand in the order of :class:`NgramModel`, sorted by their word ids, so those with the same
first words stand together and the number of children is all that is needed to find them.

Version 1, which is still read, holds the same arrays as they are, and in ``n.words`` the words.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from asr.errors import LanguageModelError
from asr.lm.model import NgramModel
from asr.lm.packing import Arrays, differences, most_bytes, pack, pieces, sums, unpack
from asr.lm.quantise import quantise
from asr.lm.text import cannot_read, cannot_write, reason

VERSION = 2
DEFAULT_BITS = 8
_KEY = "asr.ngram"
_LONGEST_HEADER = 100_000  # bytes; some 1500 are usual
_HEADER_BYTES = 800  # more than the container's header takes for the words
_ORDER_BYTES = 900  # more than it takes for an order
_CHANGE = 1.03  # how many more bytes quantised values may take after pruning
_MAX_ORDER = 9  # names of arrays are sorted as texts
_CONTEXTS_AT_ONCE = 1 << 12  # whose n-grams are made together


def save_compact(model: NgramModel, path: str | Path, bits: int = DEFAULT_BITS) -> int:
    """Write the model as a compact file; returns its size in bytes.

    bits: of each probability and each back-off weight above order one, 2 to 16; up to 8 take a byte, more take two.
    Words, n-grams and the values of single words are kept as they are, ``context_shares`` are left out.

    Raises :class:`LanguageModelError` for other ``bits``, an order above 9, or when the file cannot be written.
    """
    from safetensors.numpy import save

    if not 2 <= bits <= 16:
        raise LanguageModelError(f"a language model's values can be stored in 2 to 16 bits, not {bits}")
    if model.order > _MAX_ORDER:
        raise LanguageModelError(f"a compact language model has an order of at most {_MAX_ORDER}, not {model.order}")
    packed, spec = pack(_arrays(model, bits))
    header = {
        "version": VERSION,
        "words": len(model.words),
        "counts": list(model.counts),
        "arrays": spec,
        "crc32": _checksum(packed),
    }
    data = save(packed, {_KEY: json.dumps(header)})  # one entry: of several the order would change from run to run
    try:
        Path(path).write_bytes(data)
    except OSError as error:
        raise cannot_write(path, error) from None
    return len(data)


def _arrays(model: NgramModel, bits: int) -> Arrays:
    if any("\n" in word for word in model.words):
        raise LanguageModelError("a word of the language model has a line break in it: leave it out")
    arrays: Arrays = {"words": np.frombuffer("".join(w + "\n" for w in model.words).encode(), np.uint8)}
    code_type = np.uint8 if bits <= 8 else np.uint16
    for n in range(1, model.order + 1):
        if n == 1:
            arrays["1.log_probs"] = model.log_probs[0].astype(np.float32)
        else:
            steps = differences(model.last_words(n), _child_counts(model, n - 1))
            arrays[f"{n}.words"] = steps.astype(_word_type(len(model.words)))
            table, codes = quantise(model.log_probs[n - 1], 2**bits)
            arrays[f"{n}.log_probs"], arrays[f"{n}.log_probs.table"] = codes.astype(code_type), table
        if n == model.order:
            break
        if n == 1:
            arrays["1.backoffs"] = model.backoffs[0].astype(np.float32)
        else:
            table, codes = _quantise_backoffs(model.backoffs[n - 1], bits)
            arrays[f"{n}.backoffs"], arrays[f"{n}.backoffs.table"] = codes.astype(code_type), table
        arrays[f"{n}.children"], arrays[f"{n}.children.more"] = _pack_counts(_child_counts(model, n))
    return arrays


def _child_counts(model: NgramModel, order: int) -> np.ndarray:
    return np.bincount(model.prefixes(order + 1), minlength=model.counts[order - 1])


def _word_type(words: int) -> type[np.unsignedinteger[Any]]:
    return np.uint16 if words <= 2**16 else np.uint32


def _quantise_backoffs(values: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Table and places, with 0.0 exact: it is the weight of what is no context."""
    weights = values != 0.0
    table, some = quantise(values[weights], 2**bits - 1)
    codes = np.zeros(len(values), dtype=np.uint64)
    codes[weights] = some + np.uint64(1)
    return np.concatenate([np.zeros(1, np.float32), table]), codes


def _pack_counts(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    narrow = _packed_bytes(counts, np.uint8) <= _packed_bytes(counts, np.uint16)
    escape = np.iinfo(np.uint8 if narrow else np.uint16).max
    return np.minimum(counts, escape).astype(np.uint8 if narrow else np.uint16), counts[counts >= escape].astype("<u4")


def _packed_bytes(counts: np.ndarray, dtype: type[np.unsignedinteger[Any]]) -> int:
    return len(counts) * np.dtype(dtype).itemsize + 4 * int(np.count_nonzero(counts >= np.iinfo(dtype).max))


def _checksum(arrays: Mapping[str, np.ndarray]) -> int:
    value = 0
    for name in sorted(arrays):
        value = zlib.crc32(arrays[name].data.cast("B") if arrays[name].size else b"", value)
    return value


# reading -------------------------------------------------------------------------------------------------------------


def is_compact(path: str | Path) -> bool:
    """Whether the file begins like a compact language model, of this version or another. Raises OSError."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return length <= _LONGEST_HEADER and f'"{_KEY}"'.encode() in file.read(length)


def load_compact(path: str | Path) -> NgramModel:
    """Read a file that :func:`save_compact` wrote.

    Raises :class:`LanguageModelError` when there is none, or it is another kind of file, of another version, cut short
    or corrupt.
    """
    from safetensors import SafetensorError, safe_open

    try:
        if not is_compact(path):
            raise cannot_read(path, "it is no compact language model: 'asr lm convert' makes one of other kinds")
        with safe_open(path, framework="np") as file:
            header = json.loads(file.metadata()[_KEY])
            if header["version"] not in (1, VERSION):
                raise cannot_read(path, f"it has version {header['version']}, not {VERSION}: update the package")
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
        if _checksum(arrays) != header["crc32"]:
            raise cannot_read(path, "it is corrupt: its checksum is wrong")
        counts = [int(count) for count in header["counts"]]
        if header["version"] == 1:
            return _model(arrays.pop, int(header["words"]), counts, steps=False)
        spec = header["arrays"]
        return _model(lambda name: unpack(arrays.pop(name), *spec[name]), int(header["words"]), counts, steps=True)
    except OSError as error:
        raise cannot_read(path, error) from None
    except SafetensorError as error:
        raise cannot_read(path, f"it is cut short or corrupt ({reason(error)})") from None
    except (KeyError, TypeError, ValueError, IndexError, OverflowError, AttributeError) as error:
        raise cannot_read(path, f"it is corrupt ({reason(error)})") from None


def _model(array: Callable[[str], np.ndarray], size: int, counts: list[int], steps: bool) -> NgramModel:
    """``array``: gives each by its name; each is asked for once, and what is made of them is made in pieces, so that
    little memory is needed beside the model's own. ``steps``: whether the last words are given as :func:`differences`.
    Raises ValueError, TypeError, KeyError or IndexError where the arrays do not fit together."""
    words = tuple(array("words").tobytes().decode("utf-8").split("\n")[:-1])
    if not len(words) == size == counts[0]:
        raise ValueError(f"{len(words)} of {size} words")
    keys, log_probs, backoffs = [np.arange(size, dtype=np.int64)], [_unigrams(array, "1.log_probs", size)], []
    if len(counts) > 1:
        backoffs.append(_unigrams(array, "1.backoffs", size))
    for n, count in enumerate(counts[1:], start=2):
        children = _unpack_counts(array(f"{n - 1}.children"), array(f"{n - 1}.children.more"))
        last = array(f"{n}.words")
        if len(children) != counts[n - 2] or children.sum() != count or len(last) != count:
            raise ValueError(f"the numbers of its {n}-grams do not add up")
        keys.append(_keys(n, last, children, size, steps))
        log_probs.append(_values(array, f"{n}.log_probs"))
        if n < len(counts):
            backoffs.append(_values(array, f"{n}.backoffs"))
    try:
        model = NgramModel(words, tuple(keys), tuple(log_probs), tuple(backoffs))
        model.check()
    except LanguageModelError as error:
        raise ValueError(str(error)) from None
    if len(model.word_ids) != size:
        raise ValueError("it has some words twice")
    return model


def _unigrams(array: Callable[[str], np.ndarray], name: str, size: int) -> np.ndarray:
    values = array(name)
    if values.shape != (size,):
        raise ValueError(f"{name} is of {values.shape}, not of {size} words")
    return values


def _unpack_counts(packed: np.ndarray, more: np.ndarray) -> np.ndarray:
    counts = packed.astype(np.promote_types(packed.dtype, np.min_scalar_type(more.max(initial=0))))
    counts[packed == np.iinfo(packed.dtype).max] = more
    return counts


def _keys(order: int, last: np.ndarray, children: np.ndarray, size: int, steps: bool) -> np.ndarray:
    """The keys of :class:`NgramModel` of the n-grams with these last words, ``children`` of each context."""
    keys, done = np.empty(len(last), np.int64), 0
    for piece in pieces(len(children), _CONTEXTS_AT_ONCE):
        count = children[piece].astype(np.int64)
        here = slice(done, done := done + int(count.sum()))
        words = sums(last[here], count) if steps else last[here]
        if words.max(initial=0) >= size:
            raise ValueError(f"a {order}-gram holds an unknown word")
        keys[here] = (np.arange(piece.start, piece.stop) * size).repeat(count)
        keys[here] += words
    return keys


def _values(array: Callable[[str], np.ndarray], name: str) -> np.ndarray:
    """What the places stand for in their table."""
    table, places = array(f"{name}.table"), array(name)
    values = np.empty(len(places), table.dtype)
    for piece in pieces(len(places)):
        values[piece] = table[places[piece]]
    return values


# size ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CompactSize:
    """Bytes of a compact file, for :func:`asr.lm.prune`, or a little more: some per cent of what quantised values take,
    since pruning changes them, and some kilobytes."""

    bits: int = DEFAULT_BITS

    def per_ngram(self, model: NgramModel) -> list[float]:
        """Bytes of an n-gram of each order from 2 up, as measured on models of some millions."""
        code = self.bits / 8
        return [(1.5 + 1.4 * code if n < model.order else 1.7 + code) for n in range(2, model.order + 1)]

    def counter(self, model: NgramModel) -> Callable[[Sequence[np.ndarray]], int]:
        """Gives the bytes of the file with only the marked n-grams (one boolean array per order from 2 up)."""
        fixed = _HEADER_BYTES + _ORDER_BYTES * (model.order - 1) + sum(most_bytes(part) for part in _words_of(model))
        word_type, code_type = _word_type(len(model.words)), np.uint8 if self.bits <= 8 else np.uint16
        parts = []
        for n in range(2, model.order + 1):
            codes = [quantise(values[n - 1], 2**self.bits)[1].astype(code_type) for values in _quantised(model, n)]
            parts.append((model.prefixes(n), model.last_words(n), codes))

        def size(kept: Sequence[np.ndarray]) -> int:
            total, contexts, backoffs = fixed, np.ones(len(model.words), dtype=bool), np.zeros(0, dtype=code_type)
            for (prefix, last, codes), mark in zip(parts, kept, strict=True):
                children = np.bincount(prefix[mark], minlength=len(contexts))[contexts]
                total += sum(most_bytes(part) for part in _pack_counts(children))
                total += most_bytes(differences(last[mark], children).astype(word_type))
                values = most_bytes(codes[0][mark])
                if len(backoffs):
                    values += most_bytes(np.where(children > 0, backoffs, 0).astype(code_type))
                table = 4 * min(int(np.count_nonzero(mark)) + 1, 2**self.bits)
                total += int(_CHANGE * values) + len(codes) * table
                backoffs = codes[1][mark] if len(codes) > 1 else backoffs
                contexts = mark
            return total

        return size


def _quantised(model: NgramModel, order: int) -> list[tuple[np.ndarray, ...]]:
    return [model.log_probs, model.backoffs] if order < model.order else [model.log_probs]


def _words_of(model: NgramModel) -> list[np.ndarray]:
    text = "".join(word + "\n" for word in model.words).encode()
    return [np.frombuffer(text, np.uint8), model.log_probs[0], *model.backoffs[:1]]
