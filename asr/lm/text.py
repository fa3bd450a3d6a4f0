"""Texts for language models: .txt, .gz, .bz2 or .xz, one sentence a line, as the recogniser's words and as word ids."""

from __future__ import annotations

import bz2
import gzip
import lzma
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TextIO, cast

import numpy as np

from asr.errors import LanguageModelError
from asr.text import normalize

UNK, BOS, EOS = "<unk>", "<s>", "</s>"
UNK_ID, BOS_ID, EOS_ID = 0, 1, 2
SPECIAL = (UNK, BOS, EOS)

_OPENERS: dict[str, Callable[..., object]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
READ_ERRORS = (OSError, EOFError, lzma.LZMAError, zlib.error)


def open_bytes(path: str | Path) -> BinaryIO:
    """A file to read, decompressed by the ending of its name (.gz, .bz2, .xz). Raises OSError."""
    return cast(BinaryIO, _OPENERS.get(Path(path).suffix, open)(path, "rb"))


def open_text(path: str | Path, mode: str = "rt") -> TextIO:
    """A UTF-8 text file, decompressed or compressed by the ending of its name (.gz, .bz2, .xz). Raises OSError."""
    opener = _OPENERS.get(Path(path).suffix, open)
    return cast(TextIO, opener(path, mode, encoding="utf-8", errors="replace"))


def read_lines(path: str | Path) -> Iterator[str]:
    """The lines of a text file, without their ends. Raises :class:`LanguageModelError` when it cannot be read."""
    try:
        with open_text(path) as file:
            for line in file:
                yield line.rstrip("\n")
    except READ_ERRORS as error:
        raise LanguageModelError(f"cannot read the text {path}: {reason(error)}") from None


def reason(error: Exception) -> str:
    """What went wrong, without the path that the caller names anyway."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def cannot_read(path: str | Path, why: Exception | str) -> LanguageModelError:
    """The error to raise for a language model file that cannot be read."""
    if isinstance(why, FileNotFoundError):
        return LanguageModelError(f"there is no language model {path}")
    text = why if isinstance(why, str) else " ".join(reason(why).split())
    return LanguageModelError(f"the language model {path} cannot be read: {text}")


def cannot_write(path: str | Path, why: Exception) -> LanguageModelError:
    """The error to raise for a language model file that cannot be written."""
    return LanguageModelError(f"the language model {path} cannot be written: {reason(why)}")


class Normalizer:
    """:func:`asr.text.normalize` for whole texts: the same result line by line, several times as fast.

    Outside numbers and money, what becomes of a word does not depend on its neighbours; so each distinct word is
    normalised once and remembered. A line with a digit anywhere goes to the full function.
    """

    def __init__(self) -> None:
        self._known: dict[str, str | None] = {}  # None: holds a digit

    def __call__(self, line: str) -> str:
        known = self._known
        words = line.split()
        try:
            parts = [known[word] for word in words]
        except KeyError:
            parts = [known[word] if word in known else self._learn(word) for word in words]
        if None in parts:
            return normalize(line)
        return " ".join(filter(None, parts))

    def _learn(self, word: str) -> str | None:
        digits = any(c.isdigit() for c in unicodedata.normalize("NFKD", word.lower()))
        result = None if digits else normalize(word)
        self._known[word] = result
        return result


@dataclass(frozen=True)
class Corpus:
    """A text as word ids. ``ids``: (tokens,) int32, each sentence as ``<s> words </s>``; ``words[i]`` is the word of
    id ``i``; the ids 0, 1, 2 are ``<unk>``, ``<s>``, ``</s>``."""

    ids: np.ndarray
    words: tuple[str, ...]

    @property
    def word_count(self) -> int:
        """Number of words, sentence marks not counted."""
        return int(np.count_nonzero((self.ids != BOS_ID) & (self.ids != EOS_ID)))

    def word_frequencies(self) -> np.ndarray:
        """Counts by word id: (len(words),) int64."""
        return np.bincount(self.ids, minlength=len(self.words))

    def with_vocabulary(self, words: Sequence[str]) -> Corpus:
        """The same text over ``words`` (special words are added in front); every other word becomes ``<unk>``."""
        new_words = with_special(words)
        new_id = {word: i for i, word in enumerate(new_words)}
        mapping = np.array([new_id.get(word, UNK_ID) for word in self.words], dtype=np.int32)
        return Corpus(mapping[self.ids], new_words)


def with_special(words: Iterable[str]) -> tuple[str, ...]:
    """``<unk>``, ``<s>``, ``</s>``, then the distinct words in the order given."""
    return tuple(dict.fromkeys((*SPECIAL, *words)))


class _GrowingIds(dict[str, int]):
    def __missing__(self, word: str) -> int:
        self[word] = len(self)
        return len(self) - 1


def encode(sentences: Iterable[str | Sequence[str]], vocabulary: Iterable[str] | None = None) -> Corpus:
    """Sentences (strings of space-separated words, or lists of words) as a :class:`Corpus`.

    Without a ``vocabulary`` every word gets an id in order of appearance; with one, other words become ``<unk>``.
    """
    ids: Mapping[str, int]
    if vocabulary is None:
        ids = _GrowingIds((word, i) for i, word in enumerate(SPECIAL))
        look_up = ids.__getitem__
    else:
        ids = {word: i for i, word in enumerate(with_special(vocabulary))}

        def look_up(word: str, get: Callable[[str, int], int] = ids.get) -> int:
            return get(word, UNK_ID)

    blocks: list[np.ndarray] = []
    block: list[int] = []
    for sentence in sentences:
        block.append(BOS_ID)
        block.extend(map(look_up, sentence.split() if isinstance(sentence, str) else sentence))
        block.append(EOS_ID)
        if len(block) > 1_000_000:
            blocks.append(np.array(block, dtype=np.int32))
            block.clear()
    blocks.append(np.array(block, dtype=np.int32))
    return Corpus(np.concatenate(blocks), tuple(ids))


def select_vocabulary(corpora: Sequence[Corpus], size: int, weights: Sequence[float] | None = None) -> tuple[str, ...]:
    """The ``size`` most frequent words over several texts, most frequent first, special words left out.

    A word counts by its relative frequency in each text, weighted by ``weights`` (equal when None), so that a small
    text has its say beside a large one. Ties are broken by the alphabet.
    """
    weights = weights or [1.0] * len(corpora)
    total: dict[str, float] = {}
    for corpus, weight in zip(corpora, weights, strict=True):
        share = corpus.word_frequencies() * (weight / max(1, corpus.word_count))
        for word, value in zip(corpus.words, share.tolist(), strict=True):
            total[word] = total.get(word, 0.0) + value
    ranked = sorted((-value, word) for word, value in total.items() if word not in SPECIAL and value > 0)
    return tuple(word for _, word in ranked[:size])
