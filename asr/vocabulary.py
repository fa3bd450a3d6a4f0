"""Output units of the network and how text becomes units: characters, BPE pieces or phones, behind one interface.

Unit 0 is always the CTC blank. ``encode`` never gives the blank.
"""

from __future__ import annotations

import collections
import itertools
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from asr.errors import LexiconError, ModelError, UsageError

BLANK = 0
BLANK_NAME = "<blank>"
CHARACTERS = (*"abcdefghijklmnopqrstuvwxyz", "'", " ")
WORD_START = "_"  # marks a BPE piece that begins a word


class Pronouncer(Protocol):
    """What turns a word into pronunciations: :class:`asr.lexicon.Lexicon` does."""

    def pronounce(self, word: str) -> tuple[tuple[str, ...], ...]:
        """All pronunciations of ``word``, most usual first; raises LexiconError when there is none."""


class Vocabulary(ABC):
    """The units of one CTC head. ``units[i]`` is the name of output ``i``; ``units[0]`` is the blank."""

    kind: str

    def __init__(self, units: Sequence[str]) -> None:
        if not all(isinstance(unit, str) for unit in units):
            raise ModelError("units must be strings: the units file is corrupt")
        if len(set(units)) != len(units):
            raise ModelError("units repeat: the units file is corrupt")
        if not units or units[0] != BLANK_NAME:
            raise ModelError(f"the first unit must be {BLANK_NAME}: the units file is corrupt")
        self.units = tuple(units)
        self.index = {unit: i for i, unit in enumerate(self.units)}

    def __len__(self) -> int:
        return len(self.units)

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Unit ids of normalised ``text``. Raises UsageError or LexiconError for text outside the units."""

    @abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """Readable form of unit ids (blanks are skipped)."""

    def to_dict(self) -> dict[str, Any]:
        """A form for JSON; :func:`load_vocabulary` reads it."""
        return {"kind": self.kind, "units": list(self.units)}

    def save(self, path: Path) -> None:
        """Write the units as JSON."""
        path.write_text(json.dumps(self.to_dict(), ensure_ascii=False) + "\n", encoding="utf-8")


class CharacterVocabulary(Vocabulary):
    """Letters, apostrophe and space."""

    kind = "characters"

    def __init__(self, units: Sequence[str] | None = None) -> None:
        super().__init__((BLANK_NAME, *CHARACTERS) if units is None else units)

    def encode(self, text: str) -> list[int]:
        """Ids of the characters of ``text``."""
        try:
            return [self.index[c] for c in text]
        except KeyError as error:
            raise UsageError(f"character {error.args[0]!r} is not among the units: normalise the text first") from None

    def decode(self, ids: Iterable[int]) -> str:
        """Text with single spaces."""
        return " ".join("".join(self.units[i] for i in ids if i != BLANK).split())


class PhoneVocabulary(Vocabulary):
    """Phones; words become phones by a pronunciation lexicon."""

    kind = "phones"

    def __init__(self, units: Sequence[str], lexicon: Pronouncer | None = None) -> None:
        super().__init__(units)
        self.lexicon = lexicon

    @classmethod
    def of(cls, phones: Sequence[str], lexicon: Pronouncer | None = None) -> PhoneVocabulary:
        """A vocabulary of the blank and ``phones``."""
        return cls((BLANK_NAME, *phones), lexicon)

    def encode(self, text: str, numbers: Sequence[int] = ()) -> list[int]:
        """Ids of the pronunciation of every word that ``numbers`` names, counted from 0; of the first if none does."""
        if self.lexicon is None:
            raise UsageError("a phone vocabulary needs a lexicon to encode text")
        said = itertools.zip_longest(text.split(), numbers, fillvalue=0)
        return [i for word, n in said for i in self.encode_phones(self.lexicon.pronounce(str(word))[int(n)])]

    def encode_phones(self, phones: Iterable[str]) -> list[int]:
        """Ids of phone names."""
        try:
            return [self.index[p] for p in phones]
        except KeyError as error:
            raise LexiconError(f"phone {error.args[0]!r} is not among the units of this model") from None

    def decode(self, ids: Iterable[int]) -> str:
        """Phone names separated by spaces."""
        return " ".join(self.units[i] for i in ids if i != BLANK)


class BpeVocabulary(Vocabulary):
    """Byte-pair pieces of words (Sennrich et al. 2016): ``merges`` in the order they were learned.

    A piece that begins a word starts with ``_``, so text is the pieces joined with ``_`` read as a space.
    """

    kind = "bpe"

    def __init__(self, units: Sequence[str], merges: Sequence[tuple[str, str]]) -> None:
        super().__init__(units)
        self.merges = tuple((a, b) for a, b in merges)
        self._rank = {pair: i for i, pair in enumerate(self.merges)}
        self._cache: dict[str, tuple[int, ...]] = {}

    @classmethod
    def train(cls, texts: Iterable[str], size: int) -> BpeVocabulary:
        """Learn pieces from normalised texts until there are ``size`` units, blank included."""
        base = [BLANK_NAME, *CHARACTERS[:-1], *(WORD_START + c for c in CHARACTERS[:-1])]
        if size < len(base):
            raise UsageError(f"a BPE vocabulary needs at least {len(base)} units, got {size}")
        counts = collections.Counter(word for text in texts for word in text.split())
        words = {word: _letters(word) for word in counts}
        units, merges = dict.fromkeys(base), []
        while len(units) < size:
            pairs: collections.Counter[tuple[str, str]] = collections.Counter()
            for word, pieces in words.items():
                for pair in itertools.pairwise(pieces):
                    pairs[pair] += counts[word]
            if not pairs:
                break
            best = min(pairs, key=lambda p: (-pairs[p], p))
            merges.append(best)
            units[best[0] + best[1]] = None  # two merges may give one piece
            for word, pieces in words.items():
                if len(pieces) > 1:
                    words[word] = _merge(pieces, best)
        return cls(tuple(units), merges)

    def encode(self, text: str) -> list[int]:
        """Ids of the pieces of every word."""
        return [i for word in text.split() for i in self._encode_word(word)]

    def decode(self, ids: Iterable[int]) -> str:
        """Text with single spaces."""
        return " ".join("".join(self.units[i] for i in ids if i != BLANK).replace(WORD_START, " ").split())

    def to_dict(self) -> dict[str, Any]:
        """Units and merges."""
        return {**super().to_dict(), "merges": [list(m) for m in self.merges]}

    def _encode_word(self, word: str) -> tuple[int, ...]:
        if word not in self._cache:
            pieces = _letters(word)
            while len(pieces) > 1:
                pair = min(itertools.pairwise(pieces), key=lambda p: self._rank.get(p, len(self._rank)))
                if pair not in self._rank:
                    break
                pieces = _merge(pieces, pair)
            try:
                self._cache[word] = tuple(self.index[p] for p in pieces)
            except KeyError as error:
                raise UsageError(f"{error.args[0]!r} is not among the units: normalise the text first") from None
        return self._cache[word]


def _letters(word: str) -> list[str]:
    return [WORD_START + word[0], *word[1:]]


def _merge(pieces: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    i = 0
    while i < len(pieces):
        if i + 1 < len(pieces) and (pieces[i], pieces[i + 1]) == pair:
            merged.append(pieces[i] + pieces[i + 1])
            i += 2
        else:
            merged.append(pieces[i])
            i += 1
    return merged


def vocabulary_from_dict(values: dict[str, Any], lexicon: Pronouncer | None = None) -> Vocabulary:
    """The inverse of ``to_dict``. Raises ModelError for an unknown kind, KeyError when a part is missing."""
    kind = values.get("kind")
    if kind == CharacterVocabulary.kind:
        return CharacterVocabulary(values["units"])
    if kind == PhoneVocabulary.kind:
        return PhoneVocabulary(values["units"], lexicon)
    if kind == BpeVocabulary.kind:
        return BpeVocabulary(values["units"], [tuple(m) for m in values["merges"]])
    raise ModelError(f"units of an unknown kind {kind!r}: characters, phones and bpe are known")


def load_vocabulary(path: Path, lexicon: Pronouncer | None = None) -> Vocabulary:
    """Read what ``save`` wrote. Raises ModelError when the file is missing or corrupt."""
    try:
        return vocabulary_from_dict(json.loads(path.read_text(encoding="utf-8")), lexicon)
    except OSError as error:
        raise ModelError(f"cannot read the units {path}: {error.strerror}") from None
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"the units file {path} is corrupt ({error!r}): restore it") from None
