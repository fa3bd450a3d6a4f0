"""Pronunciation lexicon: words and how they are said, in the 39 phones of ARPAbet without stress.

Listed words come from a file (CMUdict, or the compact form that :meth:`Lexicon.save` writes). A word that is not listed
is derived: by the regular endings of English from a listed word (``'s``, plural, ``-ly``, ``'ll``), letter by letter
(initials), or by a grapheme-to-phoneme model (:mod:`asr.g2p`), which also judges compounds of two listed words.
"""

from __future__ import annotations

import lzma
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from asr.errors import LexiconError
from asr.g2p import G2P, PHONES, Pronunciation

__all__ = ["PHONES", "Lexicon", "Pronunciation", "build_lexicon"]

_MAGIC = b"asr-lexicon 1\n"
_MAGIC_WITH_COSTS = b"asr-lexicon 2\n"  # a pronunciation may end in its cost, in tenths of a nat
_XZ_MAGIC = b"\xfd7zXZ\x00"
_CODE_OF = {phone: chr(65 + i) for i, phone in enumerate(PHONES)}  # one printable character a phone
_PHONE_OF = {code: phone for phone, code in _CODE_OF.items()}
_CODES = re.compile(rb"(?:[A-g]+[0-9]{0,2}(?: [A-g]+[0-9]{0,2})*\n)*")
_DIGITS = "0123456789"
_COSTS_PER_NAT, _HIGHEST_COST = 10, 99
_VARIANT = re.compile(r"(.+)\(\d+\)")
_STRESSED = re.compile(r"([A-Z]+)[0-2]")


class Lexicon:
    """Words with their pronunciations, likeliest first; immutable but for a bounded cache of derived words.

    A pronunciation may have a *cost*: by how many nats it is less likely than the likeliest of its word
    (:meth:`with_costs`). ``entries``: for each word its pronunciations, tuples of :data:`PHONES`. ``g2p`` pronounces
    the words that are not listed and not regular forms of listed ones; without it they are an error.
    """

    # Likelihoods relative to the model's best pronunciation: the second one is given too from NEARLY on; that of two
    # listed words joined is preferred from COMPOUND on (below it the model was right more often on held-out words).
    NEARLY = 0.6
    COMPOUND = 0.4
    _CACHE = 50_000

    def __init__(self, entries: Mapping[str, Iterable[Pronunciation]], g2p: G2P | None = None) -> None:
        self._codes: dict[str, str] = {}
        for word in sorted(entries):
            if not word or word.split() != [word]:
                raise LexiconError(f"{word!r} cannot be a word of a lexicon: it is empty or holds white space")
            codes = [_encode(word, phones) for phones in entries[word]]
            if not codes:
                raise LexiconError(f"the word {word!r} has no pronunciation: give at least one")
            self._codes[word] = " ".join(dict.fromkeys(codes))
        self._g2p = g2p
        self._derived: dict[str, tuple[Pronunciation, ...]] = {}

    @classmethod
    def _of(cls, codes: dict[str, str], g2p: G2P | None) -> Lexicon:
        lexicon = cls({}, g2p)
        lexicon._codes = codes
        return lexicon

    def __len__(self) -> int:
        return len(self._codes)

    def __contains__(self, word: object) -> bool:
        return word in self._codes

    def __iter__(self) -> Iterator[str]:
        """The listed words, sorted."""
        return iter(self._codes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Lexicon) and self._codes == other._codes

    __hash__ = None  # type: ignore[assignment]

    def __getitem__(self, word: str) -> tuple[Pronunciation, ...]:
        """The listed pronunciations of ``word``; KeyError if it is not listed."""
        return _decode(self._codes[word])

    def get(self, word: str) -> tuple[Pronunciation, ...]:
        """The listed pronunciations of ``word``; none if it is not listed."""
        code = self._codes.get(word)
        return () if code is None else _decode(code)

    @property
    def g2p(self) -> G2P | None:
        """The attached grapheme-to-phoneme model."""
        return self._g2p

    def with_g2p(self, g2p: G2P | None) -> Lexicon:
        """The same words with another grapheme-to-phoneme model, or none."""
        return Lexicon._of(self._codes, g2p)

    def items(self) -> Iterator[tuple[str, tuple[Pronunciation, ...]]]:
        """``(word, pronunciations)`` of every listed word, sorted."""
        return ((word, _decode(code)) for word, code in self._codes.items())

    def costs(self, word: str) -> tuple[float, ...]:
        """Of each pronunciation of a word by how many nats it is less likely than the likeliest; zeros where that is
        not known. Errors as in :meth:`pronounce`."""
        code = self._codes.get(word)
        return (0.0,) * len(self.pronounce(word)) if code is None else tuple(map(_cost, code.split(" ")))

    def with_costs(self, costs: Mapping[str, Iterable[float]]) -> Lexicon:
        """The same words, the pronunciations of those in ``costs`` (listed words; nats, one for each pronunciation, the
        least of them 0) likeliest first. Kept to a tenth of a nat, and to 9.9 at most. Raises LexiconError."""
        codes = dict(self._codes)
        for word, nats in costs.items():
            given = list(nats)
            said = [code.rstrip(_DIGITS) for code in codes.get(word, "").split()]
            if len(given) != len(said) or min(given, default=1.0) != 0:
                raise LexiconError(f"the costs of {word!r} must be {len(said)} numbers, the least of them 0: {given}")
            tenths = [min(_HIGHEST_COST, round(_COSTS_PER_NAT * cost)) for cost in given]
            order = sorted(range(len(said)), key=lambda i: tenths[i])
            codes[word] = " ".join(f"{said[i]}{tenths[i] or ''}" for i in order)
        return Lexicon._of(codes, self._g2p)

    def spellings(self, ids: Mapping[str, int]) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float64]]:
        """All listed pronunciations as arrays, in the order of the words: (entries, longest) unit ids padded with -1,
        the number of the word (entries,), and the costs (entries,) in nats. ``ids``: unit id of every phone;
        LexiconError where one is missing."""
        text = "\n".join(self._codes.values()) + "\n" * bool(self._codes)
        codes = np.frombuffer(text.encode("ascii"), dtype=np.uint8)
        table = np.full(256, -1, dtype=np.int32)
        for phone, code in _CODE_OF.items():
            table[ord(code)] = ids.get(phone, -1)
        digits = (codes >= ord("0")) & (codes <= ord("9"))
        costs = np.array([int(n) for n in re.findall(r"\d+", text)], dtype=np.float64) / _COSTS_PER_NAT
        last_digits = digits & ~np.append(digits[1:], False)
        owners = np.cumsum((codes == ord(" ")) | (codes == ord("\n")))[last_digits]
        codes = codes[~digits]
        between = (codes == ord(" ")) | (codes == ord("\n"))
        ends, phones = np.flatnonzero(between), codes[~between]
        given = table[phones]
        if (lacking := given < 0).any():
            phone = _PHONE_OF[chr(phones[lacking][0])]
            raise LexiconError(f"phone {phone!r} is not among the units of this model")
        lengths = np.diff(ends, prepend=-1) - 1
        inside = np.arange(lengths.max(initial=0)) < lengths[:, None]
        units = np.full(inside.shape, -1, dtype=np.int32)
        units[inside] = given
        words = np.concatenate([[0], np.cumsum(codes[ends] == ord("\n"))[:-1]]).astype(np.int32)[: len(ends)]
        of_all = np.zeros(len(ends))
        of_all[owners] = costs
        return units, words, of_all

    def pronounce(self, word: str) -> tuple[Pronunciation, ...]:
        """Pronunciations of ``word``, likeliest first: as listed; else derived from listed words; else by the model.

        Raises :class:`LexiconError` for a word with characters that cannot be pronounced, or when the word is unknown
        and no model is attached.
        """
        code = self._codes.get(word)
        if code is not None:
            return _decode(code)
        known = self._derived.get(word)
        if known is None:
            known = self._derive(word)
            if len(self._derived) >= self._CACHE:
                self._derived.clear()
            self._derived[word] = known
        return known

    def restrict(self, vocabulary: Iterable[str]) -> Lexicon:
        """The listed words that are in ``vocabulary`` too; words of it that are not listed are passed over."""
        wanted = set(vocabulary)
        return Lexicon._of({word: code for word, code in self._codes.items() if word in wanted}, self._g2p)

    def merge(self, other: Lexicon) -> Lexicon:
        """The words of both; a word of both has this lexicon's pronunciations first, then the other's new ones."""
        codes = dict(self._codes)
        for word, code in other._codes.items():
            mine = codes.get(word)
            codes[word] = code if mine is None else _both(mine, code)
        return Lexicon._of(dict(sorted(codes.items())), self._g2p if self._g2p is not None else other._g2p)

    # --- files -----------------------------------------------------------------------------------------------------

    @classmethod
    def from_cmudict(cls, path: str | os.PathLike[str], g2p: G2P | None = None) -> Lexicon:
        """Reads a dictionary in the form of CMUdict, plain or xz: ``word P1 H0 O N``, one pronunciation a line.

        ``word(2)`` is a variant of ``word``, ``#`` (as a field) starts a comment, as do ``;;;`` lines; stress digits
        are dropped, words made lower-case. Raises :class:`LexiconError` with the line number for a line without
        phones or with a phone that is not one of :data:`PHONES`.
        """
        data = _read(path)
        if data.startswith(_XZ_MAGIC):
            data = _decompress(data, path)
        codes: dict[str, dict[str, None]] = {}
        for number, line in enumerate(data.split(b"\n"), start=1):
            try:
                fields = line.decode("utf-8").split()
            except UnicodeDecodeError:
                raise LexiconError(f"{path}, line {number}: not UTF-8 text") from None
            comment = next((i for i, field in enumerate(fields) if field.startswith(("#", ";;;"))), len(fields))
            fields = fields[:comment]
            if not fields:
                continue
            if len(fields) == 1:
                raise LexiconError(f"{path}, line {number}: no phones after {fields[0]!r}")
            variant = _VARIANT.fullmatch(fields[0])
            word = (variant.group(1) if variant else fields[0]).lower()
            try:
                code = "".join([_CODE_OF.get(phone) or _CODE_OF[_unstressed(phone)] for phone in fields[1:]])
            except KeyError as error:
                raise LexiconError(
                    f"{path}, line {number}: {error.args[0]!r} is not a phone; use ARPAbet: {' '.join(PHONES)}"
                ) from None
            codes.setdefault(word, {})[code] = None
        if not codes:
            raise LexiconError(f"{path} holds no pronunciation")
        return cls._of({word: " ".join(codes[word]) for word in sorted(codes)}, g2p)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the listed words to a compact file (xz; about 6 bytes a word). The model is saved by itself."""
        text = "\n".join(self._codes) + "\n\n" + "".join(code + "\n" for code in self._codes.values())
        filters = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": 1 << 22, "lc": 4, "pb": 0}]
        with_costs = any(code[-1] in _DIGITS for codes in self._codes.values() for code in codes.split(" "))
        magic = _MAGIC_WITH_COSTS if with_costs else _MAGIC
        data = lzma.compress(magic + text.encode(), check=lzma.CHECK_CRC32, filters=filters)
        temporary = Path(f"{os.fspath(path)}.tmp")
        temporary.write_bytes(data)
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str], g2p: G2P | None = None) -> Lexicon:
        """Reads what :meth:`save` wrote. Raises :class:`LexiconError` if it is missing, damaged or another file."""
        data = _read(path)
        if not data.startswith(_XZ_MAGIC):
            raise LexiconError(f"{path} is not a compact lexicon; for a dictionary in text form use from_cmudict")
        data = _decompress(data, path)
        if not data.startswith((_MAGIC, _MAGIC_WITH_COSTS)):
            raise LexiconError(f"{path} is not a compact lexicon of this version")
        head, _, tail = data[len(_MAGIC) :].partition(b"\n\n")
        try:
            words, codes = head.decode().split("\n") if head else [], tail.decode().split("\n")[:-1]
        except UnicodeDecodeError:
            words, codes = [], [""]
        if len(words) != len(codes) or not _CODES.fullmatch(tail):
            raise LexiconError(f"{path} is damaged: its words and pronunciations do not fit together; fetch it again")
        return cls._of(dict(zip(words, codes, strict=True)), g2p)

    # --- words that are not listed -----------------------------------------------------------------------------------

    def _derive(self, word: str) -> tuple[Pronunciation, ...]:
        if len(word) > G2P.MAX_LETTERS:
            raise LexiconError(f"cannot pronounce {word[:20]!r}...: longer than {G2P.MAX_LETTERS} letters is no word")
        for rule in _INFLECTIONS:
            found = rule(self, word)
            if found:
                return tuple(dict.fromkeys(found))
        if word in _LETTER_NAMES or _INITIALS.fullmatch(word):
            return _spelled(word)
        if self._g2p is None:
            raise LexiconError(f"the word {word!r} is not in the lexicon and no grapheme-to-phoneme model is attached")
        best = self._g2p.nbest(word, 20)
        compounds = self._compounds(word)
        floor = best[0][1] * self.COMPOUND
        joined = [phones for phones, probability in best if phones in compounds and probability >= floor]
        if joined:
            return (joined[0],)
        return tuple(phones for phones, probability in best[:2] if probability >= best[0][1] * self.NEARLY)

    def _compounds(self, word: str) -> set[Pronunciation]:
        """What ``word`` sounds like as two listed words of three letters and more."""
        cuts = [(word[:i], word[i:]) for i in range(3, len(word) - 2)]
        return {a + b for left, right in cuts for a in self.get(left) for b in self.get(right)}


def build_lexicon(vocabulary: Iterable[str], cmudict: Lexicon, g2p: G2P | None) -> Lexicon:
    """A lexicon that lists every word of ``vocabulary``: as in ``cmudict``, else derived or by ``g2p``.

    The result has ``g2p`` attached, for words that come later. Errors as in :meth:`Lexicon.pronounce`.
    """
    source = cmudict.with_g2p(g2p)
    words = dict.fromkeys(vocabulary)
    derived = Lexicon({word: source.pronounce(word) for word in words if word not in source}, g2p)
    return source.restrict(words).merge(derived)


# --- regular forms ---------------------------------------------------------------------------------------------------
# Endings for which, on held-out words of CMUdict, the rule was right more often than the grapheme-to-phoneme model.
# (-ed, -ing, -er, compounds by themselves and most prefixes were not.)

_VOWELS = frozenset(("AA", "AE", "AH", "AO", "AW", "AY", "EH", "ER", "EY", "IH", "IY", "OW", "OY", "UH", "UW"))
_SIBILANTS = frozenset(("S", "Z", "SH", "ZH", "CH", "JH"))
_VOICELESS = frozenset(("P", "T", "K", "F", "TH"))
_INITIALS = re.compile("[b-df-hj-np-tv-xz]{2,5}")  # no vowel letter: 72 % of such words of CMUdict are spelled out
_LETTERS_SAID = (
    "a EY, b B IY, c S IY, d D IY, e IY, f EH F, g JH IY, h EY CH, i AY, j JH EY, k K EY, l EH L, m EH M, n EH N, "
    "o OW, p P IY, q K Y UW, r AA R, s EH S, t T IY, u Y UW, v V IY, w D AH B AH L Y UW, x EH K S, y W AY, z Z IY"
)
_LETTER_NAMES = {said[0]: tuple(said[1:]) for said in map(str.split, _LETTERS_SAID.split(", "))}


def _spelled(word: str) -> tuple[Pronunciation, ...]:
    """The names of the letters; of initials that may be a plural (``djs``, ``llms``) that too, first if it is long."""
    full = tuple(phone for letter in word for phone in _LETTER_NAMES[letter])
    if len(word) < 3 or not word.endswith("s") or word.endswith("ss"):
        return (full,)
    plural = _with_s(tuple(phone for letter in word[:-1] for phone in _LETTER_NAMES[letter]))
    return (plural, full) if len(word) > 3 else (full, plural)


def _with_s(phones: Pronunciation) -> Pronunciation:
    """Plural, possessive and third person: IH Z after a sibilant, S after a voiceless consonant, else Z."""
    if phones[-1] in _SIBILANTS:
        return (*phones, "IH", "Z")
    return (*phones, "S" if phones[-1] in _VOICELESS else "Z")


def _with_ly(phones: Pronunciation) -> Pronunciation:
    return (*phones, "IY") if phones[-1] == "L" else (*phones, "L", "IY")


def _possessive(lexicon: Lexicon, word: str) -> list[Pronunciation]:
    if word.endswith("'s") and len(word) > 2:
        return [_with_s(phones) for phones in lexicon.pronounce(word[:-2])]
    if word.endswith("s'") and len(word) > 2:
        return list(lexicon.pronounce(word[:-1]))
    return []


def _plural(lexicon: Lexicon, word: str) -> list[Pronunciation]:
    if len(word) < 4 or not word.endswith("s") or word.endswith(("ss", "us", "is", "'s")):
        return []
    found = [_with_s(phones) for phones in lexicon.get(word[:-1])]
    if not found and word.endswith("ies"):
        found = [_with_s(phones) for phones in lexicon.get(word[:-3] + "y")]
    if not found and word.endswith("es"):
        found = [_with_s(phones) for phones in lexicon.get(word[:-2]) if phones[-1] in _SIBILANTS]
    return found


def _adverb(lexicon: Lexicon, word: str) -> list[Pronunciation]:
    if len(word) < 6 or not word.endswith("ly"):
        return []
    base = lexicon.get(word[:-2]) or (lexicon.get(word[:-3] + "y") if word[-3] == "i" else ())
    return [_with_ly(phones) for phones in base]


def _quality(lexicon: Lexicon, word: str) -> list[Pronunciation]:
    if len(word) < 7 or not word.endswith("ness"):
        return []
    base = lexicon.get(word[:-4]) or (lexicon.get(word[:-5] + "y") if word[-5] == "i" else ())
    return [(*phones, "N", "AH", "S") for phones in base]


def _contraction(lexicon: Lexicon, word: str) -> list[Pronunciation]:
    stem, mark, tail = word.rpartition("'")
    if not stem or not mark:
        return []
    if tail == "t" and stem.endswith("n") and len(stem) > 2:
        return [(*phones, "AH", "N", "T") for phones in lexicon.pronounce(stem[:-1])]
    if tail not in _CLITICS:
        return []
    return [_with_clitic(phones, tail) for phones in lexicon.pronounce(stem)]


_CLITICS = {"d": "D", "ll": "L", "ve": "V", "m": "M", "re": "ER"}


def _with_clitic(phones: Pronunciation, tail: str) -> Pronunciation:
    """A reduced verb: a bare consonant after a vowel, with a schwa after a consonant (``'d``: after T and D alone)."""
    last = phones[-1]
    bare = tail == "re" or (last not in ("T", "D") if tail == "d" else last in _VOWELS and last != "ER")
    return (*phones, _CLITICS[tail]) if bare else (*phones, "AH", _CLITICS[tail])


_INFLECTIONS: tuple[Callable[[Lexicon, str], list[Pronunciation]], ...] = (
    _possessive,
    _contraction,
    _plural,
    _adverb,
    _quality,
)


# --- coding ----------------------------------------------------------------------------------------------------------


def _encode(word: str, phones: Pronunciation) -> str:
    try:
        code = "".join([_CODE_OF[phone] for phone in phones])
    except KeyError as error:
        raise LexiconError(
            f"{error.args[0]!r} in the pronunciation of {word!r} is not a phone; use: {' '.join(PHONES)}"
        ) from None
    if not code:
        raise LexiconError(f"the word {word!r} has an empty pronunciation")
    return code


def _decode(codes: str) -> tuple[Pronunciation, ...]:
    return tuple(tuple([_PHONE_OF[c] for c in code.rstrip(_DIGITS)]) for code in codes.split(" "))


def _cost(code: str) -> float:
    digits = code[len(code.rstrip(_DIGITS)) :]
    return int(digits) / _COSTS_PER_NAT if digits else 0.0


def _both(codes: str, others: str) -> str:
    """The first ones, and the others whose phones are not among them."""
    known = {code.rstrip(_DIGITS) for code in codes.split(" ")}
    return " ".join([codes, *(code for code in others.split(" ") if code.rstrip(_DIGITS) not in known)])


def _unstressed(phone: str) -> str:
    match = _STRESSED.fullmatch(phone)
    return match.group(1) if match and match.group(1) in _VOWELS else phone


def _read(path: str | os.PathLike[str]) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise LexiconError(f"cannot read the lexicon {path}: {error.strerror}") from None


def _decompress(data: bytes, path: str | os.PathLike[str]) -> bytes:
    try:
        return lzma.decompress(data)
    except (lzma.LZMAError, EOFError):
        raise LexiconError(f"the lexicon {path} is damaged or cut short: fetch it again") from None
