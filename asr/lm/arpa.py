"""ARPA files: the plain-text exchange format of back-off n-gram models."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np

from asr.lm.model import NEVER, NgramModel
from asr.lm.text import READ_ERRORS, SPECIAL, cannot_read, cannot_write, open_bytes, open_text

_COUNT = re.compile(rb"ngram\s+(\d+)\s*=\s*(\d+)")
_UNK_SPELLINGS = (b"<unk>", b"<UNK>")


def write_arpa(model: NgramModel, path: str | Path) -> None:
    """Write ``model`` as an ARPA file, compressed if the name ends in .gz, .bz2 or .xz; six decimals.

    n-grams that are no context have no back-off weight. Raises :class:`LanguageModelError` when it cannot be written.
    """
    try:
        with open_text(path, "wt") as file:
            file.write("\\data\\\n")
            file.writelines(f"ngram {n}={count}\n" for n, count in enumerate(model.counts, start=1))
            texts = list(model.words)
            for n in range(1, model.order + 1):
                if n > 1:  # each text is its prefix's text and a word
                    prefixes, lasts = model.prefixes(n).tolist(), model.last_words(n).tolist()
                    texts = [f"{texts[i]} {model.words[j]}" for i, j in zip(prefixes, lasts, strict=True)]
                file.write(f"\n\\{n}-grams:\n")
                file.write(_section(model, n, texts))
            file.write("\n\\end\\\n")
    except OSError as error:
        raise cannot_write(path, error) from None


def _section(model: NgramModel, order: int, texts: list[str]) -> str:
    values = model.log_probs[order - 1].tolist()
    if order == model.order:
        return "".join([f"{value:.6f}\t{text}\n" for value, text in zip(values, texts, strict=True)])
    backoffs = model.backoffs[order - 1]
    listed = model.is_context(order) | (backoffs != 0.0)
    weights = [f"\t{weight:.6f}" if has else "" for weight, has in zip(backoffs.tolist(), listed.tolist(), strict=True)]
    return "".join([f"{v:.6f}\t{t}{w}\n" for v, t, w in zip(values, texts, weights, strict=True)])


class ArpaSize:
    """Bytes of an ARPA file that is not compressed, for :func:`asr.lm.prune`; at most a byte a context too many."""

    def per_ngram(self, model: NgramModel) -> list[np.ndarray]:
        """Bytes of each n-gram, per order from 2 up: (count,) int64; those of its back-off weight left out."""
        return _line_bytes(model)[1:]

    def counter(self, model: NgramModel) -> Callable[[Sequence[np.ndarray]], int]:
        """Gives the bytes of the file with only the marked n-grams (one boolean array per order from 2 up)."""
        words, *lines = _line_bytes(model)
        prefixes = [model.prefixes(n) for n in range(2, model.order + 1)]

        def size(kept: Sequence[np.ndarray]) -> int:
            total = 100 + 40 * model.order + int(words.sum())  # headers and words
            for line, prefix, mark in zip(lines, prefixes, kept, strict=True):
                contexts = int(np.count_nonzero(np.bincount(prefix[mark])))
                total += int(line[mark].sum()) + 10 * contexts  # a tab, and no weight is as low as -10
            return total

        return size


def _line_bytes(model: NgramModel) -> list[np.ndarray]:
    """Of each n-gram's line, per order: the bytes of probability, tab, words with spaces between them and line end."""
    words = np.array([len(word.encode()) for word in model.words])
    lengths = [words]
    for n in range(2, model.order + 1):
        lengths.append(lengths[-1][model.prefixes(n)] + 1 + words[model.last_words(n)])
    widths = [np.where(log_probs > -9.9999995, 9, 10) for log_probs in model.log_probs]
    return [width + length + 2 for width, length in zip(widths, lengths, strict=True)]


def read_arpa(path: str | Path) -> NgramModel:
    """Read an ARPA file (.gz, .bz2 and .xz are decompressed). ``<unk>`` is added where the file has none.

    Raises :class:`LanguageModelError`, naming the line, for a file that is not well formed: counts that do not fit,
    fields that are missing or no numbers, positive log probabilities, words that are no unigrams, an n-gram without
    its first words or listed twice, no ``<s>`` or ``</s>``.
    """
    try:
        with open_bytes(path) as file:
            lines = file.read().splitlines()
    except READ_ERRORS as error:
        raise cannot_read(path, error) from None
    return _Reader(path, lines).read()


class _Reader:
    """Reads the lines of an ARPA file; ``at`` is the index of the next line."""

    def __init__(self, path: str | Path, lines: list[bytes]) -> None:
        self.path, self.lines, self.at = path, lines, 0

    def read(self) -> NgramModel:
        counts = self._read_counts()
        first, rows, log_probs, weights = self._read_section(1, counts[0], has_backoff=len(counts) > 1)
        words, ids = self._read_vocabulary(rows, first)
        size = len(words)
        place = np.array([ids[row[1]] for row in rows], dtype=np.int64)
        keys, probs, backoffs = [np.arange(size, dtype=np.int64)], [np.full(size, NEVER, np.float32)], []
        probs[0][place] = log_probs
        backoffs.append(np.zeros(size, dtype=np.float32))
        backoffs[0][place] = weights
        for n in range(2, len(counts) + 1):
            first, rows, log_probs, weights = self._read_section(n, counts[n - 1], has_backoff=n < len(counts))
            grams = self._ids(rows, ids, n, first)
            place = grams[:, 0]
            for k in range(1, n - 1):
                place = self._places(keys[k], place * size + grams[:, k], rows, first)
            key = place * size + grams[:, -1]
            by_key = np.argsort(key, kind="stable")
            twice = np.flatnonzero(np.diff(key[by_key]) == 0)
            if len(twice):
                which = int(by_key[twice[0] + 1])
                self._fail(f"the n-gram '{_show(rows[which], n)}' is listed twice", first + which)
            keys.append(key[by_key])
            probs.append(log_probs[by_key])
            backoffs.append(weights[by_key])
        self._expect(b"\\end\\")
        return NgramModel(words, tuple(keys), tuple(probs), tuple(backoffs[:-1]))

    def _read_counts(self) -> list[int]:
        while self.at < len(self.lines) and self.lines[self.at].strip() != b"\\data\\":
            self.at += 1
        if self.at == len(self.lines):
            self._fail("this is not an ARPA file: it has no \\data\\ line", 0)
        self.at += 1
        counts: list[int] = []
        while self.at < len(self.lines) and not self.lines[self.at].startswith(b"\\"):
            line = self.lines[self.at].strip()
            match = _COUNT.fullmatch(line)
            if line and (not match or int(match[1]) != len(counts) + 1):
                self._fail(f"expected 'ngram {len(counts) + 1}=' and a number, not '{_text(line)}'", self.at)
            if match:
                counts.append(int(match[2]))
            self.at += 1
        if not counts:
            self._fail("\\data\\ announces no n-grams", self.at - 1)
        return counts

    def _expect(self, header: bytes) -> None:
        while self.at < len(self.lines) and not self.lines[self.at].strip():
            self.at += 1
        if self.at == len(self.lines):
            self._fail(f"the file ends where {_text(header)} should stand", self.at - 1)
        if self.lines[self.at].strip() != header:
            self._fail(f"expected {_text(header)}, not '{_text(self.lines[self.at])}'", self.at)
        self.at += 1

    def _read_section(
        self, order: int, count: int, has_backoff: bool
    ) -> tuple[int, list[list[bytes]], np.ndarray, np.ndarray]:
        """Index of the first line, its fields and those after it, log probabilities, back-off weights."""
        self._expect(b"\\%d-grams:" % order)
        while count and self.at < len(self.lines) and not self.lines[self.at].strip():
            self.at += 1
        first, self.at = self.at, self.at + count
        rows = [line.split() for line in self.lines[first : self.at]]
        widths = set(map(len, rows))
        plain, full = order + 1, order + 1 + has_backoff
        if len(rows) < count or not widths <= {plain, full}:
            self._explain_fields(rows, order, count, {plain, full}, first)
        try:
            log_probs = np.array([float(row[0]) for row in rows], dtype=np.float64)
            weights = np.array([float(row[full - 1]) if len(row) > plain else 0.0 for row in rows], dtype=np.float64)
        except ValueError:
            self._explain_numbers(rows, order, first)
        bad = np.flatnonzero(np.isnan(log_probs) | (log_probs > 0.0) | ~np.isfinite(weights))
        if len(bad):
            which = int(bad[0])
            self._fail("a log probability must be at most 0 and a back-off weight finite", first + which)
        return first, rows, np.maximum(log_probs, NEVER).astype(np.float32), weights.astype(np.float32)

    def _explain_fields(
        self, rows: list[list[bytes]], order: int, count: int, widths: set[int], first: int
    ) -> NoReturn:
        for which, row in enumerate(rows):
            if len(row) not in widths:
                if not row or row[0].startswith(b"\\"):
                    self._fail(f"only {which} of the {count} {order}-grams announced", first + which)
                self._fail(f"expected a log probability and {order} words, not {len(row)} fields", first + which)
        self._fail(f"the file ends after {len(rows)} of {count} {order}-grams", len(self.lines) - 1)

    def _explain_numbers(self, rows: list[list[bytes]], order: int, first: int) -> NoReturn:
        for which, row in enumerate(rows):
            for field in (row[0], *row[order + 1 :]):
                try:
                    float(field)
                except ValueError:
                    self._fail(f"'{_text(field)}' is not a number", first + which)
        raise AssertionError("all fields are numbers")

    def _read_vocabulary(self, rows: list[list[bytes]], first: int) -> tuple[tuple[str, ...], dict[bytes, int]]:
        special = [word.encode() for word in SPECIAL]
        ids = {word: i for i, word in enumerate(special)}
        seen: set[bytes] = set()
        for which, (_, word, *_) in enumerate(rows):
            name = special[0] if word in _UNK_SPELLINGS else word
            if name in seen:
                self._fail(f"the word '{_text(word)}' is listed twice", first + which)
            seen.add(name)
            ids.setdefault(name, len(ids))
        for mark in special[1:]:
            if mark not in seen:
                self._fail(f"the unigrams lack {_text(mark)}", first)
        words = tuple(_text(word) for word in ids)
        ids[_UNK_SPELLINGS[1]] = ids[special[0]]
        if len(set(words)) != len(words):
            self._fail("some words are not in UTF-8 and cannot be told apart", first)
        return words, ids

    def _ids(self, rows: list[list[bytes]], ids: dict[bytes, int], order: int, first: int) -> np.ndarray:
        try:
            flat = [ids[word] for row in rows for word in row[1 : order + 1]]
        except KeyError:
            for which, row in enumerate(rows):
                for word in row[1 : order + 1]:
                    if word not in ids:
                        self._fail(f"the word '{_text(word)}' is not among the unigrams", first + which)
        return np.array(flat, dtype=np.int64).reshape(-1, order)

    def _places(self, keys: np.ndarray, wanted: np.ndarray, rows: list[list[bytes]], first: int) -> np.ndarray:
        place = np.searchsorted(keys, wanted)
        known = place < len(keys)
        known[known] = keys[place[known]] == wanted[known]
        if not known.all():
            which = int(np.flatnonzero(~known)[0])
            self._fail(f"the first words of '{_show(rows[which])}' are not listed as an n-gram", first + which)
        return place

    def _fail(self, what: str, index: int) -> NoReturn:
        raise cannot_read(self.path, f"line {index + 1}: {what}")


def _text(data: bytes) -> str:
    return data.decode("utf-8", errors="replace").strip()


def _show(row: list[bytes], order: int | None = None) -> str:
    return _text(b" ".join(row[1 : None if order is None else order + 1]))
