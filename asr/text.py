"""Normalisation of transcripts and texts to the words that the recogniser speaks of.

Words are lower case ``a-z`` with inner apostrophes, separated by single spaces; numbers are written out as they are
read, titles as they are said. WER is measured on text in this form, so reference and hypothesis pass through the same
function.
"""

from __future__ import annotations

import re
import unicodedata

from asr.errors import UsageError

_KEEP_APOSTROPHE = frozenset({"'tis", "'twas", "'em", "'cause", "'til", "'bout", "'round"})
_QUOTES = str.maketrans({"’": "'", "‘": "'", "ʼ": "'", "`": "'", "´": "'"})
_TITLES = {"mr": "mister", "mrs": "missus", "dr": "doctor"}
_TITLE = re.compile(r"\b(?:" + "|".join(_TITLES) + r")\b(?!')")
_PLAIN = re.compile(r"[a-z' ]*")
_SYMBOLS = {"&": " and ", "%": " percent ", "@": " at ", "+": " plus ", "=": " equals "}
_SYMBOL = re.compile("[" + re.escape("".join(_SYMBOLS)) + "]")
_LETTERS = str.maketrans({"ß": "ss", "æ": "ae", "œ": "oe", "ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "ı": "i"})
_FRACTION = re.compile(r"(\d?)([½¼¾])")
_FRACTION_NAME = {"½": "half", "¼": "quarter", "¾": "three quarters"}
_APOSTROPHES = re.compile("''+")
_MONEY = re.compile(r"([$£€])\s?(\d[\d,]*(?:\.\d+)?)(\s(?:hundred|thousand|million|billion|trillion))?")
_MONEY_NAME = {"$": "dollar", "£": "pound", "€": "euro"}
_CENTS_NAME = {"dollar": ("cent", "cents"), "pound": ("penny", "pence"), "euro": ("cent", "cents")}
_ORDINAL = re.compile(r"\b(\d[\d,]*)(st|nd|rd|th)\b")
_DECADE = re.compile(r"\b(\d{2,4})'?s\b")
_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")
_SEPARATORS = re.compile(r"[^a-z' ]+")


def normalize(text: str) -> str:
    """``text`` as lower-case words of ``a-z`` and inner apostrophes; numbers, money, Mr, Mrs, Dr and some symbols
    written out.

    Raises :class:`UsageError` when the text holds digits and the ``train`` extra (num2words) is not installed.
    """
    text = text.translate(_QUOTES).lower()
    if not _PLAIN.fullmatch(text):
        text = _to_plain(text)
    text = _TITLE.sub(lambda m: _TITLES[m.group()], text)
    if "'" in text:
        text = _APOSTROPHES.sub("'", text)  # two of them are a quotation mark in plain-text books
        text = " ".join(_trim(word) for word in text.split())
    return " ".join(text.split())


def _trim(word: str) -> str:
    word = word.rstrip("'")
    return word if word in _KEEP_APOSTROPHE else word.lstrip("'")


def _to_plain(text: str) -> str:
    if not text.isascii():
        text = _FRACTION.sub(_say_fraction, text.translate(_LETTERS))
        text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c)).lower()
        text = text.translate(_QUOTES)  # compatibility forms may hide letters in upper case and quotation marks
    if any(c.isdigit() for c in text):
        text = _numbers_to_words(text)
    text = _SYMBOL.sub(lambda m: _SYMBOLS[m.group()], text)
    return _SEPARATORS.sub(" ", text)


def _numbers_to_words(text: str) -> str:
    text = _MONEY.sub(_say_money, text)
    text = _ORDINAL.sub(lambda m: " " + _say(m.group(1), "ordinal") + " ", text)
    text = _DECADE.sub(lambda m: " " + _plural(_say(m.group(1), "year")) + " ", text)
    return _NUMBER.sub(lambda m: " " + _say(m.group()) + " ", text)


def _say_money(m: re.Match[str]) -> str:
    name, amount, large = _MONEY_NAME[m.group(1)], m.group(2).rstrip(","), m.group(3) or ""
    whole, _, cents = amount.partition(".")
    if len(cents) != 2 or large:  # $1.5 and $1.25 million are read as numbers, $1.25 as two amounts
        return f" {_say(amount)}{large} {name if amount == '1' and not large else name + 's'} "
    said = []
    if whole.strip("0,") or not cents.strip("0"):
        said.append(f"{_say(whole)} {name if whole == '1' else name + 's'}")
    if cents.strip("0"):
        said.append(f"{_say(cents.lstrip('0'))} {_CENTS_NAME[name][cents != '01']}")
    return f" {' and '.join(said)} "


def _say_fraction(m: re.Match[str]) -> str:
    whole, name = m.group(1), _FRACTION_NAME[m.group(2)]
    article = "a " if name == "half" or name == "quarter" else ""
    return f"{whole} and {article}{name} " if whole else f" {name} "


def _plural(words: str) -> str:
    return words[:-1] + "ies" if words.endswith("y") else words + "s"


def _say(digits: str, form: str = "cardinal") -> str:
    try:
        from num2words import num2words
    except ImportError:
        raise UsageError("the text holds digits: install the training extra (pip install 'asr[train]')") from None
    plain = digits.replace(",", "").rstrip(".")
    whole, point, decimals = plain.partition(".")
    if point:  # digit by digit: a float would lose the last zero of 3.10
        return f"{_say(whole, 'number')} point {_digit_by_digit(decimals)}"
    if len(plain) > 12 or (form in ("cardinal", "number") and len(plain) > 1 and plain[0] == "0"):
        return _digit_by_digit(plain)
    if form == "cardinal" and re.fullmatch(r"1[1-9]\d\d|20[1-9]\d", plain) and "," not in digits:
        form = "year"  # a plain number of four digits is most often a year, and is read like one
    words = str(num2words(int(plain), to="cardinal" if form == "number" else form)).replace(" and ", " ")
    return " ".join(words.replace("-", " ").replace(",", " ").split())


def _digit_by_digit(digits: str) -> str:
    from num2words import num2words

    return " ".join(str(num2words(int(d))) for d in digits)
