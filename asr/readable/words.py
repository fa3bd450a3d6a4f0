"""What the tagger knows of a word, and how a word is written in a case.

A word is its stem and its clitic (``tom's`` is ``tom`` and ``'s``): the stem's place in a vocabulary, its first and
last letters (hashed, so that words outside the vocabulary say something, too) and the clitic's number.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from asr.errors import ModelError

LOWER, CAPITAL, UPPER, MIXED = range(4)
CASES = ("lower", "capital", "upper", "mixed")
NONE, COMMA, STOP, QUESTION, EXCLAMATION = range(5)
MARKS = ("", ",", ".", "?", "!")
ENDS = (STOP, QUESTION, EXCLAMATION)  # marks that end a sentence

CLITICS = ("", "'s", "'ll", "'ve", "'re", "'d", "'m")
AFFIX = 3  # letters of a stem's beginning and end
FEATURES = 4  # of a word: stem, first letters, last letters, clitic
_CLITIC = re.compile(r"(.+)('(?:s|ll|ve|re|d|m))")
_NUMBER = {clitic: i for i, clitic in enumerate(CLITICS)}


def split_clitic(word: str) -> tuple[str, str]:
    """``word`` as stem and clitic; the clitic is empty for most."""
    match = _CLITIC.fullmatch(word)
    return (match[1], match[2]) if match else (word, "")


@dataclass(frozen=True)
class Words:
    """``vocabulary``: stems that have a place of their own, from 1 on (0: all others). ``forms``: how words of mixed
    case are written, by their lower-case form. ``buckets``: of first and of last letters."""

    vocabulary: Mapping[str, int]
    forms: Mapping[str, str]
    buckets: int

    @classmethod
    def of(cls, stems: Sequence[str], forms: Sequence[str], buckets: int) -> Words:
        """From the stems in order, and the written forms. Raises ModelError for a stem that stands twice."""
        vocabulary = {stem: i for i, stem in enumerate(stems, 1)}
        if len(vocabulary) < len(stems):
            raise ModelError("the tagger's vocabulary has a word twice: build it anew")
        return cls(vocabulary, {form.lower(): form for form in forms}, buckets)

    def features(self, word: str) -> tuple[int, int, int, int]:
        """Numbers of a word's stem, first letters, last letters and clitic."""
        stem, clitic = split_clitic(word)
        return (
            self.vocabulary.get(stem, 0),
            zlib.crc32(stem[:AFFIX].encode()) % self.buckets,
            zlib.crc32(stem[-AFFIX:].encode()) % self.buckets,
            _NUMBER[clitic],
        )

    def encode(self, words: Sequence[str]) -> NDArray[np.int64]:
        """(words, FEATURES) of :meth:`features`."""
        return np.array([self.features(word) for word in words], dtype=np.int64).reshape(len(words), FEATURES)

    def write(self, word: str, case: int) -> str:
        """A lower-case word in a case; MIXED is by the table of forms, CAPITAL where that lacks the word."""
        if case == LOWER:
            return word
        stem, clitic = split_clitic(word)
        if case == MIXED:
            form = self.forms.get(word) or self.forms.get(stem, "") + clitic * (stem in self.forms)
            return form or capital(word)
        return stem.upper() + clitic if case == UPPER else capital(word)


def capital(word: str) -> str:
    """With its first letter in upper case, also where that comes after an apostrophe ('twas)."""
    for i, letter in enumerate(word):
        if letter.isalpha():
            return word[:i] + letter.upper() + word[i + 1 :]
    return word
