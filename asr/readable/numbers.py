"""Numbers in words as digits: ``twenty twenty six`` as ``2026``, ``five thirty p m`` as ``5:30 p.m.``.

text2num finds the numbers and their values; what they are (a year, a time, an amount, a date, a row of digits) is
decided here, from their neighbours. Numbers below ten stay words where nothing says that they count or measure, as in
most style guides; so do ``one`` of ``no one``, ``a second`` and what can be read in two ways (``five thirty``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from text_to_num import find_numbers

LANGUAGE = "en"
SMALL = 10  # below, a number needs a reason to become digits
GROUPED = 10_000  # from here on with commas


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_MONTHS = _set("january february march april may june july august september october november december")
_VERBS = _set("may march")  # months only after one of
_BEFORE_MONTH = _set("on by until till since from of before after this last")
_BEFORE_TIME = _set("at by until till around about before after from")
_BEFORE_YEAR = _set("in since until till year of by before after from around")
_LABELS = _set(
    "number page chapter room version part step line flight highway route bus gate level grade section volume question"
    " table figure channel lesson platform exercise item act scene season episode unit terminal"
)
_UNITS = _set(
    "degrees kilometers kilometres meters metres centimeters centimetres millimeters millimetres kilograms kilos"
    " grams milligrams liters litres milliliters millilitres kilobytes megabytes gigabytes terabytes hertz kilohertz"
    " megahertz gigahertz watts kilowatts megawatts volts amps decibels pixels"
)
_TENS = ("twent", "thirt", "fort", "fift", "sixt", "sevent", "eight", "ninet")
_DECADES = {f"{name}ies": 10 * i for i, name in enumerate(_TENS, 2)}
_MONEY = {"dollar": "$", "dollars": "$", "euro": "€", "euros": "€"}
_LARGE = ("million", "billion", "trillion")
_SCALES = frozenset({"hundred", "thousand", *_LARGE})
_OH = frozenset({"oh", "o"})


@dataclass(frozen=True)
class Written:
    """The words ``first`` to ``last`` (inclusive) of a text, as one written word; ``number``: in digits."""

    text: str
    first: int
    last: int
    number: bool = False

    @property
    def closed(self) -> bool:
        """Whether it ends in a full stop of its own (p.m.)."""
        return self.number and self.text.endswith(".")


@dataclass(frozen=True)
class _Atom:
    """A word, or the words of one number. ``text``: as it will be written; ``done``: nothing more is to be decided."""

    first: int
    last: int
    said: str
    value: float | None = None
    ordinal: bool = False
    text: str = ""
    done: bool = False

    @property
    def cardinal(self) -> bool:
        return self.value is not None and not self.ordinal and not self.done

    @property
    def whole(self) -> int:
        """The value of a whole cardinal number that is still to be decided, else -1."""
        return int(self.value) if self.cardinal and self.value is not None and self.value == int(self.value) else -1


class _Spoken:
    """A word as text2num wants it."""

    def __init__(self, word: str) -> None:
        self._word = word

    def text(self) -> str:
        return self._word

    def text_lowercase(self) -> str:
        return self._word

    def nt_separated(self, previous: object) -> bool:
        return False

    def not_a_number_part(self) -> bool:
        return False


def digits(words: Sequence[str]) -> list[Written]:
    """The written words of a text of lower-case words, in order; together they cover it."""
    atoms = _atoms(words)
    for rule in _RULES:
        atoms = _apply(rule, atoms)
    result: list[Written] = []
    for atom in atoms:
        if atom.done:
            result.append(Written(atom.text, atom.first, atom.last, True))
        else:
            result += [Written(words[i], i, i) for i in range(atom.first, atom.last + 1)]
    return result


def _atoms(words: Sequence[str]) -> list[_Atom]:
    atoms: list[_Atom] = []
    at = 0
    for found in find_numbers([_Spoken(word) for word in words], LANGUAGE, 0):
        atoms += [_Atom(i, i, words[i]) for i in range(at, found.start)]
        said = " ".join(words[found.start : found.end])
        atoms.append(_Atom(found.start, found.end - 1, said, found.value, found.is_ordinal, found.text))
        at = found.end
    atoms += [_Atom(i, i, words[i]) for i in range(at, len(words))]
    return atoms


_Rule = Callable[[list[_Atom], int], "tuple[list[_Atom], int] | None"]
"""Of atoms and a place among them: what stands there instead, and how many atoms that replaces. None: as it is."""


def _apply(rule: _Rule, atoms: list[_Atom]) -> list[_Atom]:
    result: list[_Atom] = []
    rest = list(atoms)
    at = 0
    while at < len(rest):
        change = rule(rest, at)
        if change is None:
            result.append(rest[at])
            at += 1
        else:
            result += change[0]
            at += change[1]
    return result


def _said(atoms: list[_Atom], at: int) -> str:
    """The word at a place; empty outside the text and for numbers."""
    return atoms[at].said if 0 <= at < len(atoms) and atoms[at].value is None else ""


def _whole(atoms: list[_Atom], at: int) -> int:
    return atoms[at].whole if 0 <= at < len(atoms) else -1


def _joined(atoms: list[_Atom], at: int, count: int, text: str) -> tuple[list[_Atom], int]:
    first, last = atoms[at], atoms[at + count - 1]
    said = " ".join(atom.said for atom in atoms[at : at + count])
    return [_Atom(first.first, last.last, said, 0.0, text=text, done=True)], count


def _kept(atoms: list[_Atom], at: int, count: int) -> tuple[list[_Atom], int]:
    """Words that no later rule may change."""
    return [replace(atom, value=None) for atom in atoms[at : at + count]], count


def _round_hundreds(atoms: list[_Atom], at: int) -> tuple[list[_Atom], int] | None:
    """``a hundred``: its article is part of the number, where a number it is and not a manner of speaking."""
    if _said(atoms, at) != "a" or at + 1 == len(atoms) or atoms[at + 1].said.split()[0] not in _SCALES:
        return None
    number = atoms[at + 1]
    if number.value is None or number.ordinal:
        return None
    if number.said in _SCALES and not _measures(atoms, at + 2):
        return _kept(atoms, at, 2)
    return [replace(number, first=atoms[at].first)], 2


def _decimal_scale(atoms: list[_Atom], at: int) -> tuple[list[_Atom], int] | None:
    """``two point five million``."""
    atom = atoms[at]
    if not atom.cardinal or atom.whole >= 0 or at + 1 == len(atoms) or atoms[at + 1].said not in _LARGE:
        return None
    large = atoms[at + 1]
    value = (atom.value or 0.0) * (large.value or 0.0)
    said, text = f"{atom.said} {large.said}", f"{atom.text} {large.said}"
    return [_Atom(atom.first, large.last, said, value, text=text)], 2


def _clock_in_words(atoms: list[_Atom], at: int) -> tuple[list[_Atom], int] | None:
    """``ten to five``, ``half past ten``: as it is said."""
    hour, between = _whole(atoms, at + 2), _said(atoms, at + 1)
    if between in ("to", "past") and 1 <= hour <= 12 and not _minutes(atoms, at + 3)[0]:
        minutes = _said(atoms, at) in ("half", "quarter") or _whole(atoms, at) in (5, 10, 20, 25)
        return _kept(atoms, at, 3) if minutes and not _half_of_day(atoms, at + 3)[0] else None
    return None


def _measures(atoms: list[_Atom], at: int) -> bool:
    return _said(atoms, at) in _MONEY or _percent(atoms, at) > 0 or _said(atoms, at) in _UNITS


def _bare_scale(atoms: list[_Atom], at: int) -> tuple[list[_Atom], int] | None:
    """``several hundred``, ``few thousand``: no number is said."""
    atom = atoms[at]
    if atom.value is None or atom.said not in _SCALES or atom.first < atom.last or _measures(atoms, at + 1):
        return None
    return _kept(atoms, at, 1)


def _tens_of_seconds(atoms: list[_Atom], at: int) -> tuple[list[_Atom], int] | None:
    """``a thirty second break`` is not the 32nd one."""
    atom = atoms[at]
    parts = atom.said.split()
    if not atom.ordinal or atom.value is None or len(parts) != 2 or parts[1] != "second":
        return None
    before = _said(atoms, at - 1)
    if (
        before in ("the", "his", "her", "their", "our", "my")
        or _is_month(atoms, at - 1)
        or _said(atoms, at + 1) == "of"
    ):
        return None
    text = str(int(atom.value) - 2)
    number = _Atom(atom.first, atom.first, parts[0], float(text), text=text, done=True)
    return [number, _Atom(atom.last, atom.last, parts[1])], 1


def _is_month(atoms: list[_Atom], at: int) -> bool:
    word = _said(atoms, at)
    return word in _MONTHS and (word not in _VERBS or _said(atoms, at - 1) in _BEFORE_MONTH)


def _fraction(atoms: list[_Atom], at: int) -> tuple[list[_Atom], int] | None:
    """``one tenth``, ``a twentieth of``: parts stay words."""
    atom = atoms[at]
    following = atoms[at + 1] if at + 1 < len(atoms) else None
    if atom.whole > 0 and following and following.ordinal and following.said != "second":
        return None if _is_month(atoms, at - 1) or _said(atoms, at + 2) == "century" else _kept(atoms, at, 2)
    if atom.ordinal and _said(atoms, at - 1) in ("a", "an") and _said(atoms, at + 1) == "of":
        return _kept(atoms, at, 1)
    return None


def _time(atoms: list[_Atom], at: int) -> tuple[list[_Atom], int] | None:
    """``five thirty p m``, ``at five thirty``, ``seven o'clock``."""
    hour = _whole(atoms, at)
    if not 1 <= hour <= 24:
        return None
    minutes, count = _minutes(atoms, at + 1)
    half, more = _half_of_day(atoms, at + 1 + count)
    if half and hour <= 12:
        text = f"{hour}{minutes} {half}"
        return _joined(atoms, at, 1 + count + more, text)
    if minutes and _said(atoms, at - 1) in _BEFORE_TIME and _whole(atoms, at + 1 + count) < 0:
        year_like = hour >= 13 and _said(atoms, at - 1) in _BEFORE_YEAR and _said(atoms, at - 1) != "at"
        return None if year_like else _joined(atoms, at, 1 + count, f"{hour}{minutes}")
    if _said(atoms, at + 1) == "o'clock" and hour <= 12:
        return _joined(atoms, at, 1, str(hour))
    return None


def _minutes(atoms: list[_Atom], at: int) -> tuple[str, int]:
    """As they are written after the hour, and how many atoms say so."""
    value = _whole(atoms, at)
    if 10 <= value <= 59:
        return f":{value}", 1
    value = _whole(atoms, at + 1)
    return (f":0{value}", 2) if _said(atoms, at) in _OH and 1 <= value <= 9 else ("", 0)


def _half_of_day(atoms: list[_Atom], at: int) -> tuple[str, int]:
    one, two = _said(atoms, at), _said(atoms, at + 1)
    if one in ("a", "p") and two == "m":
        return f"{one}.m.", 2
    if one in ("am", "pm") and two != "i":
        return f"{one[0]}.m.", 1
    return "", 0


def _money(atoms: list[_Atom], at: int) -> tuple[list[_Atom], int] | None:
    """``five dollars and ten cents``, ``two point five million euros``."""
    sign = _MONEY.get(_said(atoms, at + 1))
    atom = atoms[at]
    if not sign or not atom.cardinal:
        return None
    after = at + 3 if _said(atoms, at + 2) == "and" else at + 2
    cents = _whole(atoms, after)
    if 1 <= cents <= 99 and _said(atoms, after + 1) in ("cent", "cents") and atom.whole >= 0:
        return _joined(atoms, at, after + 2 - at, f"{sign}{_figure(atom)}.{cents:02d}")
    return _joined(atoms, at, 2, f"{sign}{_figure(atom)}")


def _percentage(atoms: list[_Atom], at: int) -> tuple[list[_Atom], int] | None:
    count = _percent(atoms, at + 1)
    return _joined(atoms, at, 1 + count, f"{_figure(atoms[at])}%") if count and atoms[at].cardinal else None


def _percent(atoms: list[_Atom], at: int) -> int:
    """How many words say percent."""
    if _said(atoms, at) == "percent":
        return 1
    return 2 if (_said(atoms, at), _said(atoms, at + 1)) == ("per", "cent") else 0


def _digit_row(atoms: list[_Atom], at: int) -> tuple[list[_Atom], int] | None:
    """``nine one one``: three digits or more in a row are one number; but ``one two three`` is counting."""
    row: list[int] = []
    while at + len(row) < len(atoms):
        value = 0 if row and _said(atoms, at + len(row)) in _OH else _whole(atoms, at + len(row))
        if not 0 <= value <= 9:
            break
        row.append(value)
    if len(row) < 3 or _whole(atoms, at + len(row)) >= 0:
        return None
    if {b - a for a, b in pairwise(row)} in ({1}, {-1}):
        return [replace(atoms[at + i], text=str(value), done=True) for i, value in enumerate(row)], len(row)
    return _joined(atoms, at, len(row), "".join(map(str, row)))


def _idiom(atoms: list[_Atom], at: int) -> tuple[list[_Atom], int] | None:
    pair = _whole(atoms, at), _whole(atoms, at + 1)
    text = {(24, 7): "24/7", (50, 50): "50-50"}.get(pair)
    return _joined(atoms, at, 2, text) if text and _whole(atoms, at + 2) < 0 else None


def _year(atoms: list[_Atom], at: int) -> tuple[list[_Atom], int] | None:
    """``nineteen eighty four``, ``nineteen oh five``, ``twenty twenty six``, ``the nineteen eighties``."""
    century, rest = _whole(atoms, at), _whole(atoms, at + 1)
    if not (13 <= century <= 20 or (10 <= century <= 12 and _said(atoms, at - 1) in _BEFORE_YEAR)):
        return None
    if 10 <= rest <= 99 and _whole(atoms, at + 2) < 0:
        return _joined(atoms, at, 2, str(100 * century + rest))
    if _said(atoms, at + 1) in _OH and 1 <= _whole(atoms, at + 2) <= 9:
        return _joined(atoms, at, 3, str(100 * century + _whole(atoms, at + 2)))
    if _said(atoms, at + 1) in _DECADES and century >= 13:
        return _joined(atoms, at, 2, f"{100 * century + _DECADES[_said(atoms, at + 1)]}s")
    return None


def _date(atoms: list[_Atom], at: int) -> tuple[list[_Atom], int] | None:
    """``june fifth``, ``the first of may``: days become digits, however small."""
    atom = atoms[at]
    if atom.value is None or atom.done or atom.value != int(atom.value) or not 1 <= atom.value <= 31:
        return None
    of_month = atom.ordinal and _said(atoms, at + 1) == "of" and _said(atoms, at + 2) in _MONTHS
    after = _is_month(atoms, at - 1) and (atom.ordinal or _whole(atoms, at + 1) < 0)
    return _joined(atoms, at, 1, atom.text) if of_month or after else None


def _labelled(atoms: list[_Atom], at: int) -> tuple[list[_Atom], int] | None:
    """``chapter five``, ``three kilometers``; ``room four twelve``."""
    value, before = _whole(atoms, at), _said(atoms, at - 1)
    if before in _LABELS and value >= 0:
        rest = _whole(atoms, at + 1)
        if 1 <= value <= 9 and 10 <= rest <= 99 and _whole(atoms, at + 2) < 0:
            return _joined(atoms, at, 2, f"{value}{rest}")
        if value != 1 or (before != "number" and _said(atoms, at + 1) not in ("of", "is")):
            return _joined(atoms, at, 1, _figure(atoms[at])) if rest < 0 else None
    if atoms[at].cardinal and _said(atoms, at + 1) in _UNITS:
        return _joined(atoms, at, 1, _figure(atoms[at]))
    return None


def _plain(atoms: list[_Atom], at: int) -> tuple[list[_Atom], int] | None:
    """What is left: numbers of ten and more, and those with decimals; of two side by side neither where one is
    small, for such pairs mean too many things."""
    atom = atoms[at]
    if atom.value is None or atom.done:
        return None
    if atom.ordinal:
        return _joined(atoms, at, 1, atom.text) if atom.value >= SMALL else None
    run = 1
    while at + run < len(atoms) and atoms[at + run].cardinal:
        run += 1
    values = [atoms[at + i].value or 0.0 for i in range(run)]
    if run == 2 and min(values) < SMALL and all(v == int(v) for v in values):
        return _kept(atoms, at, 2)
    enough = run > 2 or atom.value >= SMALL or atom.value != int(atom.value)
    return _joined(atoms, at, 1, _figure(atom)) if enough else None


def _figure(atom: _Atom) -> str:
    """A cardinal number in digits: ``4 million``, ``12,500``, ``1984``, ``3.14``."""
    if any(atom.text.endswith(scale) for scale in _LARGE):
        return atom.text
    *front, last = atom.said.split()
    if last in _LARGE and front:
        found = list(find_numbers([_Spoken(word) for word in front], LANGUAGE, 0))
        if len(found) == 1 and found[0].end - found[0].start == len(front) and found[0].value < 1000:
            return f"{found[0].text} {last}"
    if atom.said in _LARGE:
        return f"1 {atom.said}"
    value = atom.value or 0.0
    return f"{int(value):,}" if value == int(value) and value >= GROUPED else atom.text


_RULES: tuple[_Rule, ...] = (
    _decimal_scale,
    _round_hundreds,
    _bare_scale,
    _clock_in_words,
    _tens_of_seconds,
    _time,
    _money,
    _percentage,
    _idiom,
    _date,
    _year,
    _labelled,
    _digit_row,
    _fraction,
    _plain,
)
