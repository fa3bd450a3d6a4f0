"""asr.text: what becomes of written text, and that the result is always in the recogniser's alphabet."""

import builtins
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.errors import UsageError
from asr.text import normalize

CASES = {
    "": "",
    "  \t\n ": "",
    "Hello,  World!": "hello world",
    "It’s 3 o'clock": "it's three o'clock",
    "don’t—stop": "don't stop",
    "rock 'n' roll": "rock n roll",
    "the dogs' bones": "the dogs bones",
    "'Tis the 'season'": "'tis the season",
    "''Yes,'' he said to 'em'": "yes he said to 'em",
    "A.B.C.": "a b c",
    "Mr. Fox and Mrs Fox; MR. and DR. No": "mister fox and missus fox mister and doctor no",
    "amr drs mrsa": "amr drs mrsa",
    "naïve café": "naive cafe",
    "Straße, Łódź, Æther, Ørsted": "strasse lodz aether orsted",
    "ﬁne ℃ ＡＢ": "fine c ab",
    "you & me @ 50% + 1 = ?": "you and me at fifty percent plus one equals",
    "привет": "",
    "21st 2nd 1,100th": "twenty first second one thousand one hundredth",
    "1990s, the 20s, the 1800's": "nineteen nineties the twenties the eighteen hundreds",
    "1905 1984 2005": "nineteen oh five nineteen eighty four two thousand five",
    "2010 1066": "twenty ten one thousand sixty six",
    "1,984": "one thousand nine hundred eighty four",
    "007": "zero zero seven",
    "3.10 or 0.5 or 1905.5": "three point one zero or zero point five or one thousand nine hundred five point five",
    "12345678901234": "one two three four five six seven eight nine zero one two three four",
    "10:30, 5-4, 1,": "ten thirty five four one",
    "3½ cups, ½ pint, 1¾ miles": "three and a half cups half pint one and three quarters miles",
    "$1 $2, £1.01 €0.50": "one dollar two dollars one pound and one penny fifty cents",
    "$1,000.25": "one thousand dollars and twenty five cents",
    "$1.00 $0.00": "one dollar zero dollars",
    "$1.5 million, £3 billion": "one point five million dollars three billion pounds",
    "１２ ٣ x²": "twelve three x two",
}


@pytest.mark.parametrize("text", CASES)
def test_cases(text: str) -> None:
    assert normalize(text) == CASES[text]


def test_plain_text_is_returned_as_it_is() -> None:
    assert normalize("the cat's mat isn't 'round here") == "the cat's mat isn't 'round here"


WORDS = re.compile(r"(?:[a-z']+(?: [a-z']+)*)?")
LIKELY = "aZß é'’`\"-.,:;$£€%&½²①0123456789ⅣℂK\u0301\u00a0\u2028sthnd"
written = st.text(st.sampled_from(LIKELY) | st.characters(), max_size=30)


@settings(max_examples=300, deadline=None)
@given(written)
def test_result_is_in_the_alphabet_and_stable(text: str) -> None:
    once = normalize(text)
    assert WORDS.fullmatch(once)
    assert not any(word.endswith("'") for word in once.split())
    assert normalize(once) == once


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(st.characters(blacklist_categories=("Nd", "No", "Nl")), max_size=8), max_size=4))
def test_without_digits_words_do_not_see_their_neighbours(words: list[str]) -> None:
    alone = " ".join(filter(None, (normalize(word) for word in words)))
    assert normalize(" ".join(words)) == alone


@pytest.mark.parametrize("text", ["9" * 5000, "9" * 5000 + "th", "1." + "1" * 5000, "$" + "7" * 5000, "0" * 50 + "s"])
def test_absurd_numbers_are_read_digit_by_digit(text: str) -> None:
    assert normalize(text)


def test_digits_without_num2words_are_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: object, **kwargs: object) -> object:
        if name == "num2words":
            raise ImportError(name)
        return real(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match=r"asr\[train\]"):
        normalize("number 9")
    assert normalize("number nine") == "number nine"
