"""The lexicon: reading CMUdict, the compact file, regular forms, initials, and the model behind it."""

from __future__ import annotations

import lzma
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.errors import LexiconError
from asr.g2p import train_g2p
from asr.lexicon import PHONES, Lexicon, build_lexicon

CMUDICT = """\
;;; a comment of the older form
'bout B AW1 T
a AH0
a(2) EY1
aalborg AO1 L B AO0 R G # place, danish
bus B AH1 S
box B AA1 K S

cat K AE1 T
cats K AE1 T S
cat's K AE1 T S
dog D AO1 G
# a whole line
lady L EY1 D IY0
quick K W IH1 K
real R IY1 L
happy HH AE1 P IY0
fire F AY1 ER0
fire(2) F AY1 R
house HH AW1 S
read R EH1 D
read(2) R IY1 D
read(3) R EH0 D
should SH UH1 D
they DH EY1
it IH1 T
HELLO HH AH0 L OW1
"""


def phones(text):
    return tuple(text.split())


def shared_cmudict():
    for parent in Path(__file__).resolve().parents:
        path = parent / "shared" / "lexicon" / "cmudict.dict.xz"
        if path.exists():
            return path
    return None


class FixedModel:
    """Stands in for a G2P: the same answers for every word."""

    def __init__(self, *best):
        self.best, self.asked = best, []

    def nbest(self, word, count=1):
        self.asked.append(word)
        return list(self.best)[:count]


@pytest.fixture
def lexicon(tmp_path):
    path = tmp_path / "dict"
    path.write_text(CMUDICT)
    return Lexicon.from_cmudict(path)


def test_reads_words_variants_and_comments(lexicon):
    assert lexicon["a"] == (("AH",), ("EY",))
    assert lexicon["aalborg"] == (phones("AO L B AO R G"),)
    assert lexicon["read"] == (phones("R EH D"), phones("R IY D"))  # the third is the first without its stress
    assert lexicon["hello"] == (phones("HH AH L OW"),)
    assert "'bout" in lexicon and "a(2)" not in lexicon and "missing" not in lexicon
    assert len(lexicon) == 20 and list(lexicon) == sorted(lexicon)
    assert lexicon.get("missing") == ()
    with pytest.raises(KeyError):
        lexicon["missing"]


def test_reads_xz_the_same(lexicon, tmp_path):
    path = tmp_path / "dict.xz"
    path.write_bytes(lzma.compress(CMUDICT.encode()))
    assert Lexicon.from_cmudict(path) == lexicon


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"word", "line 2: no phones after 'word'"),
        (b"word # W ER D", "line 2: no phones after 'word'"),
        (b"word W ER1 DD", "line 2: 'DD' is not a phone"),
        (b"word W1 ER1 D", "line 2: 'W1' is not a phone"),  # only vowels carry stress
        (b"word W ER3 D", "line 2: 'ER3' is not a phone"),
        (b"word w er d", "line 2: 'w' is not a phone"),
        (b"w\xf6rd W ER D", "line 2: not UTF-8"),
    ],
)
def test_bad_lines_are_named(tmp_path, line, message):
    path = tmp_path / "dict"
    path.write_bytes(b"a AH\n" + line + b"\nb B IY\n")
    with pytest.raises(LexiconError) as error:
        Lexicon.from_cmudict(path)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_empty_and_missing_dictionaries(tmp_path):
    path = tmp_path / "dict"
    with pytest.raises(LexiconError, match="No such file"):
        Lexicon.from_cmudict(path)
    path.write_text("# nothing\n")
    with pytest.raises(LexiconError, match="holds no pronunciation"):
        Lexicon.from_cmudict(path)
    path.write_bytes(lzma.compress(CMUDICT.encode())[:-20])
    with pytest.raises(LexiconError, match="damaged or cut short"):
        Lexicon.from_cmudict(path)


@pytest.mark.parametrize("word", ["", "two words", "tab\t", "new\nline"])
def test_entries_must_be_words(word):
    with pytest.raises(LexiconError, match="cannot be a word"):
        Lexicon({word: [("AH",)]})


def test_entries_must_have_phones():
    with pytest.raises(LexiconError, match="no pronunciation"):
        Lexicon({"a": []})
    with pytest.raises(LexiconError, match="empty pronunciation"):
        Lexicon({"a": [()]})
    with pytest.raises(LexiconError, match="'ah' in the pronunciation of 'a' is not a phone"):
        Lexicon({"a": [("ah",)]})


# --- files -----------------------------------------------------------------------------------------------------------

pronunciations = st.lists(st.lists(st.sampled_from(PHONES), min_size=1, max_size=9).map(tuple), min_size=1, max_size=3)
words = st.text(st.characters(codec="utf-8", exclude_categories=("Z", "C")), min_size=1, max_size=9)


@settings(max_examples=60, deadline=None)
@given(entries=st.dictionaries(words, pronunciations, max_size=12))
def test_compact_file_round_trip(tmp_path_factory, entries):
    path = tmp_path_factory.mktemp("lexicon") / "words.lex"
    lexicon = Lexicon(entries)
    lexicon.save(path)
    assert Lexicon.load(path) == lexicon
    assert dict(lexicon.items()) == {w: tuple(dict.fromkeys(p)) for w, p in entries.items()}
    assert dict(Lexicon.load(path).items()) == dict(lexicon.items())


def test_file_does_not_depend_on_the_order_of_entries(tmp_path, lexicon):
    lexicon.save(tmp_path / "one")
    Lexicon(dict(reversed(list(lexicon.items())))).save(tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dict", "one", "two"]


def test_damaged_files(tmp_path, lexicon):
    path = tmp_path / "words.lex"
    with pytest.raises(LexiconError, match="No such file"):
        Lexicon.load(path)
    lexicon.save(path)
    good = path.read_bytes()
    magic = b"asr-lexicon 1\n"
    for bad, message in (
        (good[:-10], "damaged or cut short"),
        (good[:40] + bytes([good[40] ^ 4]) + good[41:], "damaged or cut short"),
        (CMUDICT.encode(), "from_cmudict"),
        (b"", "not a compact lexicon"),
        (lzma.compress(b"asr-lexicon 9\n"), "of this version"),
        (lzma.compress(magic + b"a\nb\n\nA\n"), "do not fit"),
        (lzma.compress(magic + b"a\n\n?\n"), "do not fit"),
        (lzma.compress(magic + b"a\n\n\n"), "do not fit"),
        (lzma.compress(magic + b"a\n\nA  B\n"), "do not fit"),
        (lzma.compress(magic + b"a\xff\n\nA\n"), "do not fit"),
    ):
        path.write_bytes(bad)
        with pytest.raises(LexiconError, match=message) as error:
            Lexicon.load(path)
        assert "\n" not in str(error.value)


# --- sets of words ---------------------------------------------------------------------------------------------------


def test_restrict(lexicon):
    small = lexicon.restrict(["cat", "dog", "unicorn"])
    assert list(small) == ["cat", "dog"] and small["dog"] == lexicon["dog"]
    assert len(lexicon) == 20


def test_merge_keeps_own_pronunciations_first(lexicon):
    other = Lexicon({"cat": [phones("K AA T"), phones("K AE T")], "ant": [phones("AE N T")]})
    merged = lexicon.merge(other)
    assert merged["cat"] == (phones("K AE T"), phones("K AA T"))
    assert merged["ant"] == other["ant"] and merged["dog"] == lexicon["dog"]
    assert list(merged) == sorted(merged) and "ant" not in lexicon
    assert other.merge(lexicon)["cat"] == (phones("K AA T"), phones("K AE T"))


# --- words that are not listed ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("dog's", ["D AO G Z"]),
        ("quick's", ["K W IH K S"]),
        ("bus's", ["B AH S IH Z"]),
        ("cats'", ["K AE T S"]),
        ("dogs'", ["D AO G Z"]),
        ("fires", ["F AY ER Z", "F AY R Z"]),
        ("buses", ["B AH S IH Z"]),
        ("boxes", ["B AA K S IH Z"]),
        ("houses", ["HH AW S IH Z"]),
        ("ladies", ["L EY D IY Z"]),
        ("lady's", ["L EY D IY Z"]),
        ("quickly", ["K W IH K L IY"]),
        ("really", ["R IY L IY"]),
        ("happily", ["HH AE P IY L IY"]),
        ("happiness", ["HH AE P IY N AH S"]),
        ("quickness", ["K W IH K N AH S"]),
        ("shouldn't", ["SH UH D AH N T"]),
        ("they'd", ["DH EY D"]),
        ("it'd", ["IH T AH D"]),
        ("they've", ["DH EY V"]),
        ("should've", ["SH UH D AH V"]),
        ("dog'll", ["D AO G AH L"]),
        ("they're", ["DH EY ER"]),
        ("dogs'd", ["D AO G Z D"]),
        ("shouldn't've", ["SH UH D AH N T AH V"]),
        ("b", ["B IY"]),
        ("w", ["D AH B AH L Y UW"]),
        ("bbc", ["B IY B IY S IY"]),
        ("djs", ["D IY JH EY EH S", "D IY JH EY Z"]),
        ("llms", ["EH L EH L EH M Z", "EH L EH L EH M EH S"]),
        ("css", ["S IY EH S EH S"]),
        ("bbc's", ["B IY B IY S IY Z"]),
    ],
)
def test_regular_forms_and_initials(lexicon, word, said):
    assert word not in lexicon
    assert lexicon.pronounce(word) == tuple(map(phones, said))


def test_listed_words_come_from_the_list(lexicon):
    model = FixedModel((("B",), 1.0))
    assert lexicon.with_g2p(model).pronounce("read") == lexicon["read"]
    assert model.asked == []


@pytest.mark.parametrize("word", ["unicorn", "unicorn'", "ss", "cat'x", "'", "''s", "", "glass", "ness", "s's's's's"])
def test_without_a_model_an_unknown_word_is_an_error_or_derived(lexicon, word):
    if word in ("ss", "s's's's's"):
        assert lexicon.pronounce(word)
        return
    with pytest.raises(LexiconError, match="not in the lexicon and no grapheme-to-phoneme model"):
        lexicon.pronounce(word)


def test_endless_words_are_refused_before_any_work(lexicon):
    with pytest.raises(LexiconError, match="no word"):
        lexicon.pronounce("cat" + "'s" * 50_000)


def test_model_gives_a_second_pronunciation_only_when_nearly_as_likely(lexicon):
    one, two = phones("Y UW N AH K AO R N"), phones("Y UW N IH K AO R N")
    for second, expected in ((0.35, (one, two)), (0.2, (one,))):
        assert lexicon.with_g2p(FixedModel((one, 0.5), (two, second))).pronounce("unicorn") == expected


def test_compound_is_preferred_when_the_model_finds_it_likely(lexicon):
    wrong, right = phones("D AO G AH K AE T"), phones("D AO G K AE T")
    for p, expected in ((0.3, right), (0.05, wrong)):
        assert lexicon.with_g2p(FixedModel((wrong, 0.6), (right, p))).pronounce("dogcat") == (expected,)


def test_derived_words_are_cached(lexicon):
    model = FixedModel((("B",), 1.0))
    attached = lexicon.with_g2p(model)
    assert attached.pronounce("unicorn") is attached.pronounce("unicorn")
    assert attached.pronounce("unicorn's") == (("B", "Z"),)
    assert model.asked == ["unicorn"]


# --- costs -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def priced(lexicon):
    return lexicon.with_costs({"a": (1.26, 0), "fire": (0, 25), "read": (0.31, 0)})


def test_costs_put_the_likeliest_first(lexicon, priced):
    assert lexicon["a"] == (("AH",), ("EY",)) and lexicon.costs("a") == (0, 0)
    assert priced["a"] == (("EY",), ("AH",)) and priced.costs("a") == (0, 1.3)
    assert priced.costs("fire") == (0, 9.9)  # the most that is kept
    assert priced["read"] == tuple(reversed(lexicon["read"])) and priced.costs("read") == (0, 0.3)
    assert priced.costs("cats") == (0,) and priced["cats"] == lexicon["cats"]
    assert priced.costs("lady's") == (0,)  # derived
    assert priced.pronounce("fires") == tuple((*p, "Z") for p in priced["fire"])
    assert dict(priced.items())["fire"] == lexicon["fire"]
    assert priced != lexicon and priced.with_costs({"a": (0, 0), "fire": (0, 0), "read": (0, 0)}) != lexicon
    assert lexicon.with_costs({"read": (0, 0)}) == lexicon


@pytest.mark.parametrize("costs", [(0,), (0, 1, 2), (1, 2), (-1, 0), ()])
def test_costs_must_fit(lexicon, costs):
    with pytest.raises(LexiconError, match="must be 2 numbers, the least of them 0"):
        lexicon.with_costs({"a": costs})
    with pytest.raises(LexiconError, match="must be 0 numbers"):
        lexicon.with_costs({"nothing": costs})


def test_costs_are_kept(priced, lexicon, tmp_path):
    priced.save(tmp_path / "costs.lex")
    again = Lexicon.load(tmp_path / "costs.lex")
    assert again == priced and again.costs("a") == (0, 1.3)
    assert priced.restrict(["fire"]).costs("fire") == (0, 9.9)
    assert build_lexicon(["fire", "fires", "a"], priced, None).costs("a") == (0, 1.3)
    merged = priced.merge(Lexicon({"a": [("AH",), ("AA",)], "new": [("N", "UW")]}))
    assert merged["a"] == (("EY",), ("AH",), ("AA",)) and merged.costs("a") == (0, 1.3, 0)


def test_spellings_have_costs(priced, lexicon):
    ids = {phone: i for i, phone in enumerate(PHONES)}
    units, words, costs = priced.spellings(ids)
    listed = [(w, said, cost) for w, ways in priced.items() for said, cost in zip(ways, priced.costs(w), strict=True)]
    names = list(priced)
    assert len(units) == len(words) == len(costs) == len(listed)
    for row, word, cost, (name, said, wanted) in zip(
        units.tolist(), words.tolist(), costs.tolist(), listed, strict=True
    ):
        assert names[word] == name and cost == wanted
        assert [u for u in row if u >= 0] == [ids[p] for p in said]
    assert sorted(costs)[-3:] == [0.3, 1.3, 9.9] and not lexicon.spellings(ids)[2].any()


def test_build_lists_every_word_of_the_vocabulary(lexicon):
    model = train_g2p([(w, p) for w, ps in lexicon.items() for p in ps], order=3, min_count=1)
    vocabulary = ["dog", "dogs", "bouse", "bbc", "fire", "dog"]
    built = build_lexicon(vocabulary, lexicon, model)
    assert list(built) == sorted(set(vocabulary))
    assert built["fire"] == lexicon["fire"] and built["dogs"] == (phones("D AO G Z"),)
    assert built["bouse"][0] == model.pronounce("bouse")
    assert built.g2p is model
    with pytest.raises(LexiconError, match="caf"):
        build_lexicon(["dog", "café"], lexicon, model)
    with pytest.raises(LexiconError, match="'bouse' is not in the lexicon"):
        build_lexicon(vocabulary, lexicon, None)


@pytest.mark.shared
def test_real_dictionary_and_held_out_words(tmp_path):
    path = shared_cmudict()
    if path is None:
        pytest.skip("the pronunciation dictionary (shared/lexicon) is not beside the repository")
    cmudict = Lexicon.from_cmudict(path)
    assert len(cmudict) > 120_000
    words = [word for word in cmudict if word.isalpha()]
    held_out, training = words[::200], [word for i, word in enumerate(words) if i % 200 and i % 4 == 1]
    model = train_g2p(((w, p) for w in training for p in cmudict[w]), order=6, iterations=6)
    lexicon = cmudict.restrict(training).with_g2p(model)
    wrong = sum(lexicon.pronounce(word)[0] not in cmudict[word] for word in held_out)
    assert wrong / len(held_out) < 0.38  # a quarter of the dictionary; all of it gives 0.25
    cmudict.restrict(words[::2]).save(tmp_path / "half.lex")
    assert (tmp_path / "half.lex").stat().st_size < 500_000
    start = time.perf_counter()
    assert len(Lexicon.load(tmp_path / "half.lex")) > 55_000
    assert time.perf_counter() - start < 1.0
