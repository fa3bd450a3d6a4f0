"""Units and text: characters, phones and BPE pieces behind one interface."""

from __future__ import annotations

import collections
import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.errors import LexiconError, ModelError, UsageError
from asr.vocabulary import (
    BLANK,
    BLANK_NAME,
    CHARACTERS,
    BpeVocabulary,
    CharacterVocabulary,
    PhoneVocabulary,
    Vocabulary,
    load_vocabulary,
    vocabulary_from_dict,
)

WORDS = st.text(alphabet=CHARACTERS[:-1], min_size=1, max_size=12)
TEXTS = st.lists(WORDS, max_size=6).map(" ".join)
CORPUS = ["the cat sat on the mat", "the cats sat there", "that hat", "at the end of the path", "it's the cat's hat"]
BPE = BpeVocabulary.train(CORPUS, 75)


class Words:
    """A lexicon of two words."""

    def pronounce(self, word: str) -> tuple[tuple[str, ...], ...]:
        known = {"a": (("AH",), ("EY",)), "cat": (("K", "AE", "T"),)}
        if word not in known:
            raise LexiconError(f"no {word}")
        return known[word]


PHONES = PhoneVocabulary.of(["AE", "AH", "EY", "K", "T"], Words())


@given(TEXTS)
@settings(max_examples=60, deadline=None)
def test_characters_and_pieces_give_the_text_back(text: str) -> None:
    for vocabulary in (CharacterVocabulary(), BPE):
        ids = vocabulary.encode(text)
        assert BLANK not in ids
        assert all(0 < i < len(vocabulary) for i in ids)
        assert vocabulary.decode(ids) == text
        assert vocabulary.decode([unit for i in ids for unit in (BLANK, i, BLANK)]) == text


def test_characters() -> None:
    vocabulary = CharacterVocabulary()
    assert len(vocabulary) == 29
    assert vocabulary.units[0] == BLANK_NAME
    assert vocabulary.encode("ab a") == [1, 2, 28, 1]
    assert vocabulary.decode([28, 1, 28, 28, 2, 28]) == "a b"
    with pytest.raises(UsageError, match="'é' is not among the units"):
        vocabulary.encode("café")


def test_phones_take_the_first_pronunciation() -> None:
    assert PHONES.encode("a cat") == [2, 4, 1, 5]
    assert PHONES.decode([2, 0, 4, 1, 5]) == "AH K AE T"
    assert PHONES.encode("") == []
    with pytest.raises(LexiconError):
        PHONES.encode("dog")
    with pytest.raises(LexiconError, match="'ZH' is not among the units"):
        PHONES.encode_phones(["K", "ZH"])
    with pytest.raises(UsageError, match="needs a lexicon"):
        PhoneVocabulary.of(["AE"]).encode("a")


def _merged(pieces: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    """``pieces`` with every ``pair`` joined, from the left."""
    out: list[str] = []
    for piece in pieces:
        if out and (out[-1], piece) == pair and not getattr(out[-1], "done", False):
            out[-1] = Joined(out[-1] + piece)
        else:
            out.append(piece)
    return tuple(str(p) for p in out)


class Joined(str):
    """A piece just made: it is not joined again in the same pass."""

    done = True


def test_bpe_learns_the_most_frequent_pairs_first() -> None:
    words = collections.Counter(w for text in CORPUS for w in text.split())
    split = {w: ("_" + w[0], *w[1:]) for w in words}
    for merge in BPE.merges:
        pairs: collections.Counter[tuple[str, str]] = collections.Counter()
        for word, pieces in split.items():
            for pair in itertools.pairwise(pieces):
                pairs[pair] += words[word]
        assert pairs[merge] == max(pairs.values())
        split = {w: _merged(p, merge) for w, p in split.items()}
    for word, pieces in split.items():
        assert BPE.encode(word) == [BPE.index[p] for p in pieces]
    assert len(BPE) == 75
    assert "_the" in BPE.index
    assert len(BPE.encode("the")) == 1


def test_bpe_of_little_text_has_fewer_units_than_asked() -> None:
    small = BpeVocabulary.train(["ab ab"], 500)
    assert small.merges == (("_a", "b"),)
    assert len(small) == 56
    with pytest.raises(UsageError, match="at least 55 units"):
        BpeVocabulary.train(CORPUS, 54)
    with pytest.raises(UsageError, match="not among the units"):
        small.encode("naïve")


@pytest.mark.parametrize("vocabulary", [CharacterVocabulary(), PHONES, BPE], ids=lambda v: v.kind)
def test_files(vocabulary: Vocabulary, tmp_path: Path) -> None:
    vocabulary.save(tmp_path / "units.json")
    again = load_vocabulary(tmp_path / "units.json", Words())
    assert type(again) is type(vocabulary)
    assert again.units == vocabulary.units
    assert again.encode("a cat") == vocabulary.encode("a cat")
    assert again.to_dict() == vocabulary.to_dict() == json.loads((tmp_path / "units.json").read_text())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "corrupt"),
        ("[1]", "corrupt"),
        ('{"kind": "runes", "units": []}', "unknown kind 'runes'"),
        ('{"kind": "phones"}', "corrupt"),
        ('{"kind": "characters", "units": []}', "first unit must be <blank>"),
        ('{"kind": "characters", "units": ["a", "b"]}', "first unit must be <blank>"),
        ('{"kind": "characters", "units": ["<blank>", "a", "a"]}', "repeat"),
        ('{"kind": "characters", "units": ["<blank>", 3]}', "must be strings"),
        ('{"kind": "bpe", "units": ["<blank>", "a"], "merges": [["a"]]}', "corrupt"),
    ],
)
def test_a_damaged_file_is_named_in_one_line(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "units.json"
    path.write_text(content)
    with pytest.raises(ModelError, match=message) as caught:
        load_vocabulary(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot read the units .*none\.json"):
        load_vocabulary(tmp_path / "none.json")


def test_from_dict_is_the_inverse_of_to_dict() -> None:
    assert vocabulary_from_dict(BPE.to_dict()).units == BPE.units
