"""KenLM binary language models: KenLM's quantised, array-compressed trie, written and read with numpy.

KenLM (K. Heafield 2011, "KenLM: faster and smaller language model queries", WMT; binary format version 5) maps such a
file into memory and queries it as it lies, so a decoder starts without parsing anything, and the same file is small
enough to ship: about three bytes for an n-gram of the highest order and five for a shorter one. Layout, little-endian:

    header          magic and test values, order, model type, number of n-grams per order
    vocabulary      number of words, then their 64-bit hashes in ascending order; a word's id is its place + 1
    quantisation    per order from 2 up: table of log10 probabilities, and of back-offs below the highest order
    unigrams        probability, back-off, number of the first bigram; not quantised
    orders 2 .. N-1 an array of the high bits of successor numbers, then packed records:
                    word, back-off code, probability code, low bits of the number of the first longer n-gram
    order N         packed records: word, probability code
    words           the vocabulary as zero-terminated strings, ``<unk>`` first

The trie runs from the last word of an n-gram backwards: the parent of (a, b, c) is (b, c).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from asr.errors import LanguageModelError
from asr.lm.compact import is_compact
from asr.lm.complete import complete
from asr.lm.model import NgramModel
from asr.lm.quantise import quantise
from asr.lm.text import SPECIAL, UNK, cannot_read, cannot_write

_MAGIC = b"mmap lm http://kheafield.com/code format version 5\n\0\0"
_SANITY = _MAGIC.ljust(-(-len(_MAGIC) // 8) * 8, b"\0") + struct.pack("<fffIIIQ", 0.0, 1.0, -0.5, 1, 2**32 - 1, 0, 1)
_PARAMETERS = struct.Struct("<B3xfiB3xI")  # order, probing multiplier, model type, has words, search version
_QUANTISED_ARRAY_TRIE = 5
_SEARCH_VERSION = 1
_QUANTISATION_VERSION = 2
_POINTER_VERSION, _POINTER_BITS = 0, 64  # at most as many high bits of pointers in the array as pay off
_UNIGRAM = np.dtype([("log_prob", "<f4"), ("backoff", "<f4"), ("next", "<u8")])
_NO_SUCCESSORS, _NO_BACKOFF, _FIRST_BACKOFF = 0, 1, 2  # back-off codes: of no context; of a context, 0.0; first bin
_MAX_ORDER = 6
DEFAULT_BITS = (8, 8)
"""Bits for probabilities and for back-off weights."""


@dataclass(frozen=True)
class _Level:
    """Where the n-grams of one order lie. Offsets in bytes from the beginning of the file; widths in bits."""

    count: int
    pointers: int  # offset of the pointer part (of the records for the highest order)
    high: int  # number of entries of the array of high bits
    records: int
    word_bits: int
    value_bits: int
    low_bits: int
    end: int

    @property
    def record_bits(self) -> int:
        return self.word_bits + self.value_bits + self.low_bits


@dataclass(frozen=True)
class _Layout:
    """Where everything lies for given counts per order (words include ``<unk>``)."""

    vocabulary: int
    quantisation: int
    unigrams: int
    levels: tuple[_Level, ...]
    end: int

    @classmethod
    def of(cls, counts: Sequence[int], prob_bits: int, backoff_bits: int) -> _Layout:
        order = len(counts)
        vocabulary = -(-(len(_SANITY) + _PARAMETERS.size + 8 * order) // 8) * 8
        quantisation = vocabulary + 8 + 8 * counts[0]
        tables = (order - 2) * 4 * (2**prob_bits + 2**backoff_bits) + 4 * 2**prob_bits
        unigrams = quantisation + 8 + tables
        offset = unigrams + (counts[0] + 2) * _UNIGRAM.itemsize
        levels = []
        word_bits = int(counts[0]).bit_length()
        for n in range(2, order + 1):
            count = int(counts[n - 1])
            pointers, high, low_bits, value_bits = offset, 0, 0, prob_bits
            if n < order:
                low_bits, high = _pointer_split(count + 1, int(counts[n]))
                value_bits += backoff_bits
                offset += 8 * (1 + high) + 7
            records = offset
            offset += ((1 + count) * (word_bits + value_bits + low_bits) + 7) // 8 + 8
            levels.append(_Level(count, pointers, high, records, word_bits, value_bits, low_bits, offset))
        return cls(vocabulary, quantisation, unigrams, tuple(levels), offset)


def _pointer_split(entries: int, max_next: int) -> tuple[int, int]:
    """Low bits of a pointer kept in its record, and entries of the array for the high bits: the cheapest split."""
    required = max_next.bit_length()
    chop = min(
        range(min(required, _POINTER_BITS) + 1),
        key=lambda chop: (max_next >> (required - chop)) * 64 - entries * chop,
    )
    return required - chop, (max_next >> (required - chop)) + 1


def binary_size(counts: Sequence[int], words: Sequence[str], bits: tuple[int, int] = DEFAULT_BITS) -> int:
    """Bytes of the file that :func:`save_binary` writes for a model with these n-gram counts and words."""
    return _Layout.of(_two(counts), *bits).end + sum(len(word.encode()) + 1 for word in words)


def _two(counts: Sequence[int]) -> list[int]:
    """KenLM's trie has at least two orders."""
    return [*counts, 0] if len(counts) == 1 else list(counts)


@dataclass(frozen=True)
class KenlmSize:
    """Bytes of a KenLM binary, for :func:`asr.lm.prune`; exact."""

    bits: tuple[int, int] = DEFAULT_BITS

    def per_ngram(self, model: NgramModel) -> list[float]:
        """Bytes of an n-gram of each order from 2 up."""
        return [level.record_bits / 8 for level in _Layout.of(model.counts, *self.bits).levels]

    def counter(self, model: NgramModel) -> Callable[[Sequence[np.ndarray]], int]:
        """Gives the bytes of the file with only the marked n-grams (one boolean array per order from 2 up)."""
        fixed = binary_size(model.counts, model.words, self.bits) - _Layout.of(_two(model.counts), *self.bits).end

        def size(kept: Sequence[np.ndarray]) -> int:
            counts = [model.counts[0], *(int(np.count_nonzero(mark)) for mark in kept)]
            return fixed + _Layout.of(_two(counts), *self.bits).end

        return size


def save_binary(model: NgramModel, path: str | Path, bits: tuple[int, int] = DEFAULT_BITS) -> int:
    """Write the model as a KenLM binary (quantised trie); returns its size in bytes.

    bits: of each probability and of each back-off weight above order one, 2 to 16; the table of values is chosen for
    least squared error. n-grams whose last n-1 words are not listed get them added first (see :func:`complete`).
    """
    prob_bits, backoff_bits = bits
    if not (2 <= prob_bits <= 16 and 2 <= backoff_bits <= 16):
        raise LanguageModelError(f"a language model's values can be stored in 2 to 16 bits, not {bits}")
    if model.order > _MAX_ORDER:
        raise LanguageModelError(f"KenLM reads models up to order {_MAX_ORDER}, not {model.order}")
    trie = _Trie.of(complete(_at_least_bigrams(model)))
    layout = _Layout.of(trie.counts, *bits)
    file = bytearray(layout.end)
    _write_header(file, trie)
    struct.pack_into("<Q", file, layout.vocabulary, trie.counts[0] - 1)
    _view(file, layout.vocabulary + 8, "<u8", trie.counts[0] - 1)[:] = trie.hashes[1:]
    struct.pack_into("<BBB", file, layout.quantisation, _QUANTISATION_VERSION, *bits)

    unigrams = _view(file, layout.unigrams, _UNIGRAM, trie.counts[0] + 1)
    unigrams["log_prob"][:-1] = trie.log_probs[0]
    # Minus zero tells KenLM that nothing depends on the word as a context, so it may drop it from its states.
    unigrams["backoff"][:-1] = np.where(trie.is_context[0] | (trie.backoffs[0] != 0.0), trie.backoffs[0] + 0.0, -0.0)
    unigrams["next"] = trie.first_children(1)
    table = layout.quantisation + 8
    for n, level in enumerate(layout.levels, start=2):
        centres, codes = quantise(trie.log_probs[n - 1], 2**prob_bits - 1)
        _view(file, table, "<f4", 2**prob_bits)[:] = _padded([-np.inf], centres, 2**prob_bits)
        codes += np.uint64(1)  # code 0 would be "no probability of its own"
        table += 4 * 2**prob_bits
        if n < len(trie.counts):
            centres, backoff_codes = _quantise_backoffs(trie.backoffs[n - 1], trie.is_context[n - 1], backoff_bits)
            _view(file, table, "<f4", 2**backoff_bits)[:] = _padded([-0.0, 0.0], centres, 2**backoff_bits)
            table += 4 * 2**backoff_bits
            values = backoff_codes | (codes << np.uint64(backoff_bits))
            _write_middle(file, level, trie.words[n - 1], values, trie.first_children(n))
        else:
            records = trie.words[n - 1].astype(np.uint64) | (codes << np.uint64(level.word_bits))
            _pack(file, level.records, level.record_bits, records)
    strings = b"".join(word.encode() + b"\0" for word in trie.vocabulary)
    try:
        Path(path).write_bytes(bytes(file) + strings)
    except OSError as error:
        raise cannot_write(path, error) from None
    return len(file) + len(strings)


def open_kenlm(path: str | Path, words: Sequence[str]) -> Any:
    """The model as flashlight-text's ``KenLM``, which maps a binary into memory and parses an ARPA file (slowly).

    words: the decoder's words; ``words[i]`` gets index ``i`` (see flashlight's ``Dictionary``). Words that the model
        does not know count as ``<unk>``.

    Raises :class:`LanguageModelError` when KenLM cannot read the file.
    """
    from flashlight.lib.text.decoder.kenlm import KenLM
    from flashlight.lib.text.dictionary import Dictionary

    try:
        if is_binary(path):
            _open(path)  # what is wrong, in our words
        elif is_compact(path):
            raise cannot_read(path, "KenLM knows no compact files: 'asr lm convert' makes a .kenlm file of it")
    except OSError as error:
        raise cannot_read(path, error) from None
    dictionary = Dictionary()
    for word in words:
        dictionary.add_entry(word)
    try:
        return KenLM(str(path), dictionary)
    except RuntimeError as error:
        raise cannot_read(path, error) from None


def is_binary(path: str | Path) -> bool:
    """Whether the file begins like a KenLM binary of the version known here. Raises OSError."""
    with open(path, "rb") as file:
        return file.read(len(_SANITY)) == _SANITY


def load_binary(path: str | Path) -> NgramModel:
    """Read a KenLM binary of the kind that :func:`save_binary` writes (quantised, array-compressed trie with words).

    Raises :class:`LanguageModelError` when it cannot be read, is another kind of binary, or is cut short or corrupt.
    """
    file, counts, layout, bits = _open(path)
    vocabulary = _words(file, layout.end, counts[0], path)
    unigrams = _view(file, layout.unigrams, _UNIGRAM, counts[0] + 1)
    log_probs = [unigrams["log_prob"][:-1].copy()]
    backoffs = [unigrams["backoff"][:-1] + np.float32(0.0)]
    words: list[np.ndarray] = [np.arange(counts[0], dtype=np.int64)]
    parents: list[np.ndarray] = [np.zeros(0, dtype=np.int64)]
    first = unigrams["next"].astype(np.int64)
    table = layout.quantisation + 8
    prob_bits, backoff_bits = bits
    for n, level in enumerate(layout.levels, start=2):
        if first[0] != 0 or first[-1] != level.count or (np.diff(first) < 0).any():
            raise cannot_read(path, f"it is corrupt: its {n}-grams do not add up")
        records = _unpack(file, level.records, level.record_bits, level.count + 1)
        parents.append(np.repeat(np.arange(len(first) - 1), np.diff(first)))
        words.append((records[:-1] & ((1 << level.word_bits) - 1)).astype(np.int64))
        values = records[:-1] >> np.uint64(level.word_bits)
        prob_table = _view(file, table, "<f4", 2**prob_bits)
        table += 4 * 2**prob_bits
        if n < len(counts):
            backoff_table = _view(file, table, "<f4", 2**backoff_bits)
            table += 4 * 2**backoff_bits
            backoffs.append(backoff_table[(values & np.uint64(2**backoff_bits - 1)).astype(np.int64)] + np.float32(0.0))
            values = values >> np.uint64(backoff_bits)
            low = (records >> np.uint64(level.record_bits - level.low_bits)) if level.low_bits else records * 0
            low &= np.uint64((1 << level.low_bits) - 1)
            high = _view(file, -(-level.pointers // 8) * 8 + 8, "<u8", level.high)
            place = np.searchsorted(high, np.arange(level.count + 1), side="right") - 1
            first = (place << level.low_bits) + low.astype(np.int64)
        log_probs.append(prob_table[(values & np.uint64(2**prob_bits - 1)).astype(np.int64)])
        if words[-1].size and words[-1].max() >= counts[0]:
            raise cannot_read(path, f"it is corrupt: a {n}-gram holds an unknown word")
    return _forward(vocabulary, words, parents, log_probs, backoffs, path)


def read_words(path: str | Path) -> tuple[str, ...]:
    """The vocabulary of a KenLM binary with words, special words included, without reading its n-grams."""
    file, counts, layout, _ = _open(path)
    return _words(file, layout.end, counts[0], path)


def _open(path: str | Path) -> tuple[np.ndarray, list[int], _Layout, tuple[int, int]]:
    try:
        file = np.memmap(path, dtype=np.uint8, mode="r") if Path(path).stat().st_size else np.zeros(0, dtype=np.uint8)
    except OSError as error:
        raise cannot_read(path, error) from None
    start = len(_SANITY)
    if bytes(file[:start]) != _SANITY:
        raise cannot_read(path, "it is no KenLM binary of version 5")
    if len(file) < start + _PARAMETERS.size + 8 * _MAX_ORDER:
        raise cannot_read(path, "it is cut short")
    order, _, kind, has_words, version = _PARAMETERS.unpack(file[start : start + _PARAMETERS.size].tobytes())
    if kind != _QUANTISED_ARRAY_TRIE or version != _SEARCH_VERSION or not has_words or not 2 <= order <= _MAX_ORDER:
        raise cannot_read(
            path,
            "it is a KenLM binary of another kind: build it as a quantised trie with array-compressed pointers "
            "(build_binary -q 8 -b 8 -a 64 trie), or give the ARPA file",
        )
    counts = [int(c) for c in np.frombuffer(file[start + _PARAMETERS.size :][: 8 * order].tobytes(), dtype="<u8")]
    if max(counts) > len(file) * 8:
        raise cannot_read(path, "it is cut short or corrupt")
    head = _Layout.of([counts[0], *([0] * (order - 1))], *DEFAULT_BITS)
    if len(file) < head.quantisation + 3:
        raise cannot_read(path, "it is cut short")
    version, prob_bits, backoff_bits = (int(b) for b in file[head.quantisation : head.quantisation + 3])
    if version != _QUANTISATION_VERSION or not 1 <= prob_bits <= 25 or not 2 <= backoff_bits <= 25:
        raise cannot_read(path, "it is corrupt: impossible quantisation")
    layout = _Layout.of(counts, prob_bits, backoff_bits)
    if len(file) < layout.end:
        raise cannot_read(path, f"it is cut short: {len(file)} of {layout.end} bytes")
    return file, counts, layout, (prob_bits, backoff_bits)


def _words(file: np.ndarray, offset: int, count: int, path: str | Path) -> tuple[str, ...]:
    words = tuple(bytes(file[offset:]).decode("utf-8", errors="replace").split("\0")[:-1])
    if len(words) != count or words[0] != UNK:
        raise cannot_read(path, f"it is cut short or corrupt: {len(words)} of {count} words")
    return words


def _forward(
    vocabulary: tuple[str, ...],
    words: list[np.ndarray],
    parents: list[np.ndarray],
    log_probs: list[np.ndarray],
    backoffs: list[np.ndarray],
    path: str | Path,
) -> NgramModel:
    """The model from the reversed trie: n-grams sorted by their first words, special words first."""
    ids = {word: i for i, word in enumerate(vocabulary)}
    if not all(word in ids for word in SPECIAL):
        raise cannot_read(path, "it lacks <s> or </s>")
    by_new = np.array([ids[w] for w in SPECIAL] + [i for i, w in enumerate(vocabulary) if w not in SPECIAL])
    new_id = np.empty(len(vocabulary), dtype=np.int64)
    new_id[by_new] = np.arange(len(vocabulary))
    size = len(vocabulary)
    keys = [np.arange(size, dtype=np.int64)]
    probs, weights = [log_probs[0][by_new]], [backoffs[0][by_new]]
    # In the reversed trie a node adds the word before its parent's words; so its n-gram without the last word (its
    # prefix) is the parent's prefix with the same word before it. `number` maps reversed nodes to forward numbers.
    number = new_id
    prefix_node = np.zeros(0, dtype=np.int64)
    lasts = new_id
    reversed_keys: list[np.ndarray] = [keys[0]]
    for n in range(2, len(words) + 1):
        parent, word = parents[n - 1], words[n - 1]
        lasts = lasts[parent]
        if n == 2:
            prefix_node = word
        else:
            wanted = prefix_node[parent] * size + word
            place = np.searchsorted(reversed_keys[n - 2], wanted)
            place = np.minimum(place, max(0, len(reversed_keys[n - 2]) - 1))
            if len(wanted) and not (len(reversed_keys[n - 2]) and (reversed_keys[n - 2][place] == wanted).all()):
                raise cannot_read(path, f"it is corrupt: a {n}-gram lacks its context")
            prefix_node = place
        reversed_keys.append(parent * size + word)
        key = number[prefix_node] * size + lasts
        by_key = np.argsort(key)
        number = np.empty(len(key), dtype=np.int64)
        number[by_key] = np.arange(len(key))
        keys.append(key[by_key])
        probs.append(log_probs[n - 1][by_key])
        if n < len(words):
            weights.append(backoffs[n - 1][by_key])
    model = NgramModel(tuple(vocabulary[i] for i in by_new), tuple(keys), tuple(probs), tuple(weights))
    try:
        model.check()
    except LanguageModelError as error:
        raise cannot_read(path, f"it is corrupt: {error}") from None
    return model


def _at_least_bigrams(model: NgramModel) -> NgramModel:
    if model.order > 1:
        return model
    nothing = np.zeros(0, dtype=np.int64)
    backoffs = (np.zeros(model.counts[0], dtype=np.float32),)
    return NgramModel(model.words, (*model.keys, nothing), (*model.log_probs, nothing.astype(np.float32)), backoffs)


@dataclass(frozen=True)
class _Trie:
    """The model's n-grams as a trie from the last word backwards, in KenLM's order of word ids. Per order:

    words: id of each node's word (the first of its n-gram). parents: number of its node one order below.
    is_context: whether a longer n-gram begins with it, for orders below the highest.
    """

    vocabulary: tuple[str, ...]
    hashes: np.ndarray
    words: list[np.ndarray]
    parents: list[np.ndarray]
    log_probs: list[np.ndarray]
    backoffs: list[np.ndarray]
    is_context: list[np.ndarray]

    @property
    def counts(self) -> list[int]:
        return [len(words) for words in self.words]

    def first_children(self, order: int) -> np.ndarray:
        """Number of the first child of each node of ``order``, and at the end the number of children in all."""
        return np.searchsorted(self.parents[order], np.arange(self.counts[order - 1] + 1))

    @classmethod
    def of(cls, model: NgramModel) -> _Trie:
        hashes = murmur_hashes([word.encode() for word in model.words])
        by_hash = np.concatenate([[0], 1 + np.argsort(hashes[1:], kind="stable")])
        if (np.diff(hashes[by_hash[1:]].astype(object)) == 0).any():
            raise LanguageModelError("two words of the language model have the same hash")
        new_id = np.empty(len(by_hash), dtype=np.int64)
        new_id[by_hash] = np.arange(len(by_hash))
        size = len(by_hash)
        trie = cls(tuple(model.words[i] for i in by_hash), hashes[by_hash], [np.arange(size)], [new_id[:0]], [], [], [])
        trie.log_probs.append(model.log_probs[0][by_hash])
        number, firsts, order_of = new_id, new_id, by_hash
        for n in range(1, model.order + 1):
            if n > 1:
                firsts = firsts[model.prefixes(n)]
                keys = number[model.suffixes[n - 1]] * size + firsts
                order_of = np.argsort(keys)
                number = np.empty(len(keys), dtype=np.int64)
                number[order_of] = np.arange(len(keys))
                trie.words.append(keys[order_of] % size)
                trie.parents.append(keys[order_of] // size)
                trie.log_probs.append(model.log_probs[n - 1][order_of])
            if n < model.order:
                trie.backoffs.append(model.backoffs[n - 1][order_of])
                trie.is_context.append(model.is_context(n)[order_of])
        return trie


def murmur_hashes(words: Sequence[bytes]) -> np.ndarray:
    """MurmurHash64A (A. Appleby) with seed 0 of each word: (count,) uint64. KenLM knows words by it."""
    factor, shift = np.uint64(0xC6A4A7935BD1E995), np.uint64(47)
    lengths = np.array([len(word) for word in words])
    result = np.empty(len(words), dtype=np.uint64)
    for length in np.unique(lengths).tolist():
        which = np.flatnonzero(lengths == length).tolist()
        padded = -(-length // 8) * 8
        joined = b"".join(words[i].ljust(padded, b"\0") for i in which)
        blocks = np.frombuffer(joined, dtype="<u8").reshape(len(which), padded // 8)
        hashed = np.full(len(which), (length * int(factor)) % 2**64, dtype=np.uint64)
        for k in range(length // 8):
            block = blocks[:, k] * factor
            block ^= block >> shift
            hashed = (hashed ^ (block * factor)) * factor
        if length % 8:
            hashed = (hashed ^ blocks[:, -1]) * factor
        hashed = (hashed ^ (hashed >> shift)) * factor
        result[which] = hashed ^ (hashed >> shift)
    return result


def _padded(first: Sequence[float], centres: np.ndarray, length: int) -> np.ndarray:
    """``first``, the centres and the last of all once more as often as there is room."""
    values = np.concatenate([first, centres])
    return np.concatenate([values, np.repeat(values[-1:], length - len(values))])


def _quantise_backoffs(values: np.ndarray, is_context: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    stored = is_context | (values != 0.0)
    centres, codes = quantise(values[stored & (values != 0.0)], 2**bits - 2)
    result = np.where(stored, np.uint64(_NO_BACKOFF), np.uint64(_NO_SUCCESSORS))
    result[stored & (values != 0.0)] = codes + np.uint64(_FIRST_BACKOFF)
    return centres, result


def _write_header(file: bytearray, trie: _Trie) -> None:
    file[: len(_SANITY)] = _SANITY
    order = len(trie.counts)
    _PARAMETERS.pack_into(file, len(_SANITY), order, 1.5, _QUANTISED_ARRAY_TRIE, 1, _SEARCH_VERSION)
    struct.pack_into(f"<{order}Q", file, len(_SANITY) + _PARAMETERS.size, *trie.counts)


def _write_middle(file: bytearray, level: _Level, words: np.ndarray, values: np.ndarray, first: np.ndarray) -> None:
    """Records of an order below the highest. ``values``: back-off and probability codes; ``first``: (count + 1,)."""
    struct.pack_into("<BB", file, level.pointers, _POINTER_VERSION, _POINTER_BITS)
    # Entry k of the array: the first record whose pointer's high bits are at least k.
    high = np.searchsorted(first >> level.low_bits, np.arange(level.high))
    high[0] = 0
    _view(file, -(-level.pointers // 8) * 8 + 8, "<u8", level.high)[:] = high
    records = np.zeros(level.count + 1, dtype=np.uint64)
    records[:-1] = words.astype(np.uint64) | (values << np.uint64(level.word_bits))
    low = (first & ((1 << level.low_bits) - 1)).astype(np.uint64)
    records |= low << np.uint64(level.word_bits + level.value_bits)
    _pack(file, level.records, level.record_bits, records)


def _view(file: bytearray | np.ndarray, offset: int, dtype: str | np.dtype, count: int) -> np.ndarray:
    return np.ndarray((count,), dtype=dtype, buffer=file, offset=offset)


def _pack(file: bytearray, offset: int, bits: int, records: np.ndarray) -> None:
    """Write records of ``bits`` <= 57 bits one after the other, lowest bit first, into zeroed bytes."""
    records = records.astype(np.uint64)
    out = _view(file, offset, np.dtype("u1"), (len(records) * bits + 7) // 8 + 8)
    for phase in range(8):  # records of one phase begin at the same bit of a byte and do not overlap
        some = records[phase::8]
        begin = (np.arange(len(some), dtype=np.int64) * 8 + phase) * bits
        shifted = some << np.uint64((phase * bits) % 8)
        for k in range((bits + 7) // 8 + 1):
            out[(begin >> 3) + k] |= ((shifted >> np.uint64(8 * k)) & np.uint64(0xFF)).astype(np.uint8)


def _unpack(file: np.ndarray, offset: int, bits: int, count: int) -> np.ndarray:
    """``count`` records of ``bits`` bits as uint64."""
    if count * bits < 64:  # too short for the eight-byte reads below to stay within the level
        padded = np.zeros(24, dtype=np.uint8)
        part = file[offset : offset + 24]
        padded[: len(part)] = part
        file, offset = padded, 0
    length = (count * bits + 7) // 8
    every_byte = np.ndarray((length,), dtype="<u8", buffer=file, offset=offset, strides=(1,))
    begin = np.arange(count, dtype=np.int64) * bits
    return (every_byte[begin >> 3] >> (begin & 7).astype(np.uint64)) & np.uint64((1 << bits) - 1)
