"""Numbers in words as digits: what is said and what is written, and what must stay as it is."""

import pytest

from asr.readable.numbers import digits

WRITTEN = [
    # years and decades
    ("twenty twenty six", "2026"),
    ("in nineteen eighty four", "in 1984"),
    ("in nineteen oh five", "in 1905"),
    ("two thousand and five", "2005"),
    ("two thousand twenty four", "2024"),
    ("nineteen hundred", "1900"),
    ("in ten sixty six", "in 1066"),
    ("the nineteen eighties", "the 1980s"),
    ("nineteen forty one to nineteen forty five", "1941 to 1945"),
    # counting
    ("twenty six apples and three dogs", "26 apples and three dogs"),
    ("one hundred and five", "105"),
    ("a hundred and one people", "101 people"),
    ("twelve thousand five hundred", "12,500"),
    ("three hundred million five hundred thousand", "300,500,000"),
    ("four million people", "4 million people"),
    ("two point five million people", "2.5 million people"),
    ("three point one four", "3.14"),
    ("eleven or twelve", "11 or 12"),
    ("twenty five twenty six", "25 26"),
    # ordinals and dates
    ("the twenty first century", "the 21st century"),
    ("the one hundred and fifth time", "the 105th time"),
    ("the twenty first of may", "the 21st of may"),
    ("the first of may", "the 1st of may"),
    ("on may first", "on may 1st"),
    ("june fifth twenty twenty", "june 5th 2020"),
    ("the twenty second of june", "the 22nd of june"),
    ("a twenty second delay", "a 20 second delay"),
    # times
    ("five thirty p m", "5:30 p.m."),
    ("at five thirty", "at 5:30"),
    ("five oh five pm", "5:05 p.m."),
    ("ten a m", "10 a.m."),
    ("seven o'clock", "7 o'clock"),
    ("at nineteen forty five", "at 19:45"),
    # money and percent
    ("five dollars and ten cents", "$5.10"),
    ("five dollars ten cents", "$5.10"),
    ("a hundred dollars", "$100"),
    ("a million dollars", "$1 million"),
    ("two point five million euros", "€2.5 million"),
    ("five percent", "5%"),
    ("sixty seven per cent", "67%"),
    ("a hundred percent", "100%"),
    # digits one by one, labels, units
    ("nine one one", "911"),
    ("call five five five oh one two three", "call 5550123"),
    ("one two three", "1 2 3"),
    ("chapter five", "chapter 5"),
    ("room four twelve", "room 412"),
    ("three kilometers", "3 kilometers"),
    ("twenty four seven", "24/7"),
]

KEPT = [
    "one of them",
    "no one",
    "number one",
    "a second",
    "wait a second",
    "first of all",
    "the second time",
    "that's a first",
    "one by one",
    "two and a half",
    "one third",
    "one tenth of it",
    "a twentieth of it",
    "a hundred people",
    "several hundred people",
    "thanks a million",
    "five thirty",
    "two twenty two",
    "nine eleven",
    "half past ten",
    "from nine to five",
    "i may first go",
    "page one of the book",
    "in the eighties",
    "i a m",
    "",
]


@pytest.mark.parametrize(("said", "written"), WRITTEN)
def test_numbers_are_written_in_digits(said: str, written: str) -> None:
    assert " ".join(word.text for word in digits(said.split())) == written


@pytest.mark.parametrize("said", KEPT)
def test_words_stay_words(said: str) -> None:
    words = said.split()
    result = digits(words)
    assert [word.text for word in result] == words
    assert not any(word.number for word in result)


@pytest.mark.parametrize("said", [said for said, _ in WRITTEN] + KEPT)
def test_written_words_cover_what_was_said(said: str) -> None:
    words = said.split()
    spans = [i for word in digits(words) for i in range(word.first, word.last + 1)]
    assert spans == list(range(len(words)))
