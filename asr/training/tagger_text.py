"""Cased and punctuated text as what the tagger learns: words, their case, and the mark after them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from asr.lm.build import TextFile
from asr.lm.text import read_lines
from asr.readable.words import CAPITAL, COMMA, ENDS, EXCLAMATION, LOWER, MIXED, NONE, QUESTION, STOP, UPPER
from asr.text import normalize

ANY = -1  # the case of a word at the start of a sentence, which says nothing of the word
_ELLIPSIS = 9  # a stop where a capital follows, else a comma
_QUOTES = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "\ufeff": None})
_OPENERS = "\"'([{*_"
_CLOSERS = "\"')]}*_"
_TOKEN = re.compile(r"(.*?)([.,;:?!…\-–—\"')\]}*_]*)", re.DOTALL)
_PARTS = re.compile(r"[-–—/&+_]+")
_DASH = re.compile(r"--|[–—]")
_TITLES = {
    "mr",
    "mrs",
    "ms",
    "dr",
    "st",
    "prof",
    "gen",
    "col",
    "capt",
    "lt",
    "sgt",
    "rev",
    "hon",
    "gov",
    "sen",
    "messrs",
}
_ABBREVIATIONS = frozenset(_TITLES | {"jr", "sr", "vs", "vol", "fig", "etc", "inc", "ltd", "co", "corp"})
_INITIALS = re.compile(r"(?:[A-Za-z]\.)+[A-Za-z]?")
_SPOKEN = {"mr": "mister", "mrs": "missus"}  # as recognised words have them
_ENDED = re.compile(r"[.?!…;:,]['\")\]]*$|--?$")
_KEPT = re.compile(r"[^$£€<>{}\\|=~^#@]+")  # lines with other signs are read aloud in too many ways


@dataclass
class Labelled:
    """A text of ``words`` (lower case, as recognised), the case of each (ANY: unknown), the mark after it, and the
    positions at which a new piece of text begins that does not follow from the one before."""

    words: list[str] = field(default_factory=list)
    cases: list[int] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    forms: dict[int, str] = field(default_factory=dict)  # as written, of words in mixed case, by position
    starts: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.words)


@dataclass(frozen=True)
class _Token:
    words: tuple[str, ...]
    cases: tuple[int, ...]
    mark: int
    dash: bool  # between the first part and the second
    quoted: bool
    form: str
    short: bool = False  # a shortened word, whose full stop ends a sentence at the end of a line


def label(lines: Iterable[str]) -> Labelled:
    """The labelled text of ``lines``, a sentence or a clause each. Lines without case or punctuation are left out."""
    text, tokens, broken = Labelled(), _Tokens(), True
    for line in lines:
        line = line.translate(_QUOTES).strip()
        if not _usable(line):
            broken = True
            continue
        if broken:
            text.starts.append(len(text))
        _append(text, [tokens[token] for token in line.split()], broken)
        broken = False
    _resolve(text)
    return text


def read(spec: str) -> Iterator[tuple[int, str]]:
    """The lines of a text, ``PATH`` or ``PATH:FIRST-LAST``, with their numbers in the file (from 1). Raises
    LanguageModelError when it cannot be read."""
    file = TextFile.parse(spec)
    for number, line in enumerate(read_lines(file.path), 1):
        if file.last is not None and number > file.last:
            return
        if number >= file.first:
            yield number, line


def _usable(line: str) -> bool:
    """Whether a line has the look of written text: it ends in a mark, does not shout, and can be read aloud."""
    if not line or not _ENDED.search(line) or not _KEPT.fullmatch(line):
        return False
    words = [word for word in line.split() if len(word) > 1 and word[0].isalpha()]
    shouted = sum(word.isupper() for word in words)
    return shouted <= 1 or shouted <= 0.3 * len(words)


class _Tokens(dict[str, _Token]):
    """What becomes of a token, worked out once for each."""

    def __missing__(self, token: str) -> _Token:
        self[token] = result = _parse(token)
        return result


def _parse(token: str) -> _Token:
    core = token.lstrip(_OPENERS)
    quoted = core != token
    match = _TOKEN.fullmatch(core)
    assert match
    core, tail = match.groups()
    if tail.startswith("'") and core.endswith("s"):
        tail = tail[1:]
    mark = _mark(tail)
    whole = core + "." * tail.startswith(".")
    if _INITIALS.fullmatch(whole) and "." in whole and len(whole) > 1:
        letters = [c for c in core.lower() if c.isalpha()]
        case = UPPER if core[0].isupper() else LOWER
        mark = NONE if mark == STOP else mark
        return _Token(tuple(letters), tuple([case] * len(letters)), mark, False, quoted, "", len(letters) > 1)
    short = mark == STOP and core.lower() in _ABBREVIATIONS
    if short:
        mark = NONE
    words: list[str] = []
    cases: list[int] = []
    for part in _PARTS.split(core):
        spoken = normalize(part).split() if part else []
        spoken = [_SPOKEN.get(word, word) for word in spoken]
        cases += [_case(part)] if len(spoken) == 1 and not part[0].isdigit() else [LOWER] * len(spoken)
        words += spoken
    short_end = short and core.lower() not in _TITLES
    form = core if len(words) == 1 and cases[0] == MIXED else ""
    return _Token(
        tuple(words), tuple(cases), mark, bool(_DASH.search(core)) and len(words) == 2, quoted, form, short_end
    )


def _mark(tail: str) -> int:
    if "?" in tail:
        return QUESTION
    if "!" in tail:
        return EXCLAMATION
    if "..." in tail or "…" in tail:
        return _ELLIPSIS
    if "." in tail:
        return STOP
    return COMMA if any(c in tail for c in ",;:–—") or "--" in tail or tail == "-" else NONE


def _case(part: str) -> int:
    stem = re.sub(r"'(?:s|ll|ve|re|d|m|t)$", "", part)
    letters = [c for c in stem if c.isalpha()]
    if not letters or not any(c.isupper() for c in letters):
        return LOWER
    if all(c.isupper() for c in letters):
        return UPPER if len(letters) > 1 else CAPITAL
    return CAPITAL if letters[0].isupper() and not any(c.isupper() for c in letters[1:]) else MIXED


def _append(text: Labelled, tokens: list[_Token], broken: bool) -> None:
    for number, token in enumerate(tokens):
        first = number == 0
        if not token.words:  # a mark by itself belongs to the word before
            if token.mark != NONE and len(text) and not (first and broken) and text.marks[-1] == NONE:
                text.marks[-1] = token.mark
            continue
        if token.form:
            text.forms[len(text)] = token.form
        start = len(text)
        text.words += token.words
        text.cases += token.cases
        text.marks += [NONE] * (len(token.words) - 1) + [token.mark]
        if token.dash:
            text.marks[start] = COMMA
        if text.cases[start] == CAPITAL and ((first and broken) or (token.quoted and _after_mark(text, start))):
            text.cases[start] = ANY
    if tokens and tokens[-1].short and tokens[-1].words and text.marks[-1] == NONE:
        text.marks[-1] = STOP


def _after_mark(text: Labelled, at: int) -> bool:
    return at == 0 or text.marks[at - 1] != NONE


def _resolve(text: Labelled) -> None:
    """Ellipses become stops or commas; the case of a word that begins a sentence is unknown."""
    starts = set(text.starts)
    for i, mark in enumerate(text.marks):
        following = text.cases[i + 1] if i + 1 < len(text) else CAPITAL
        if mark == _ELLIPSIS:
            text.marks[i] = mark = STOP if following in (CAPITAL, ANY) or i + 1 in starts else COMMA
        if i + 1 in starts and mark in (NONE, COMMA):
            text.marks[i] = STOP
        if mark in ENDS and following == CAPITAL and i + 1 < len(text):
            text.cases[i + 1] = ANY
