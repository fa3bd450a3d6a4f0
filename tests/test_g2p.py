"""Alignment, n-grams and decoding of the grapheme-to-phoneme model against brute force; files; learning."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter, defaultdict
from functools import cache

import numpy as np
import pytest

from asr import g2p
from asr.errors import LexiconError
from asr.g2p import BOS, EOS, G2P, PHONES, graphone, train_g2p

PAIRS = [
    ("cat", ("K", "AE", "T")),
    ("chat", ("CH", "AE", "T")),
    ("fix", ("F", "IH", "K", "S")),
    ("box", ("B", "AA", "K", "S")),
    ("bee", ("B", "IY")),
    ("cut", ("K", "AH", "T")),
    ("cute", ("K", "Y", "UW", "T")),
]


def cuttings(word, phones):
    """All ways to cut a pair into graphones of 1 letter with 0-2 phones or 2 letters with 1 phone."""
    if not word:
        return [[]] if not phones else []
    found = []
    for n_letters, n_phones in ((1, 0), (1, 1), (1, 2), (2, 1)):
        if len(word) >= n_letters and len(phones) >= n_phones:
            unit = (word[:n_letters], phones[:n_phones])
            found += [[unit, *rest] for rest in cuttings(word[n_letters:], phones[n_phones:])]
    return found


def regular_words(count, seed=0):
    """Words of a small regular orthography: context-dependent c, digraphs, silent final e that lengthens the vowel."""
    rng = random.Random(seed)
    onset = {"b": "B", "d": "D", "f": "F", "l": "L", "m": "M", "n": "N", "r": "R", "t": "T", "sh": "SH", "th": "TH"}
    short, long = dict(a="AE", e="EH", i="IH", o="AA", u="AH"), dict(a="EY", e="IY", i="AY", o="OW", u="UW")
    words = {}
    while len(words) < count:
        word, phones = "", []
        for _ in range(rng.choice((1, 2))):
            vowel = rng.choice("aeiou")
            letters = rng.choice([*onset, "c"])
            word += letters + vowel
            phones += [("S" if vowel in "ei" else "K") if letters == "c" else onset[letters], short[vowel]]
        last = rng.choice("bdfmnt")
        word, phones = word + last, [*phones, onset[last]]
        if rng.random() < 0.4:
            word += "e"
            phones[-2] = long[word[-3]]
        words[word] = tuple(phones)
    return list(words.items())


@pytest.fixture(scope="module")
def regular():
    return train_g2p(regular_words(600), order=5, min_count=1)


def number_of():
    return {graphone(n): n for n in range(g2p._GRAPHONES)}


def test_graphone_numbers_are_distinct_and_complete():
    assert len(number_of()) == g2p._GRAPHONES == 27 + 27 * 39 + 27 * 39 * 39 + 27 * 27 * 39
    assert len(PHONES) == len(set(PHONES)) == 39


@pytest.fixture(scope="module")
def theta():
    return np.random.default_rng(5).random(g2p._GRAPHONES)


def probability(cutting, theta, numbers):
    return math.prod(theta[numbers[unit]] for unit in cutting)


def test_expected_counts_equal_the_sum_over_all_alignments(theta):
    numbers = number_of()
    expected, log_likelihood = np.zeros(g2p._GRAPHONES), 0.0
    for word, phones in PAIRS:
        all_cuttings = cuttings(word, phones)
        assert len(all_cuttings) > 1
        total = sum(probability(cutting, theta, numbers) for cutting in all_cuttings)
        log_likelihood += math.log(total)
        for cutting in all_cuttings:
            for unit in cutting:
                expected[numbers[unit]] += probability(cutting, theta, numbers) / total
    counts = np.zeros(g2p._GRAPHONES)
    got = sum(g2p._expectation(batch, theta, counts) for batch in g2p._batches(PAIRS))
    assert got == pytest.approx(log_likelihood, rel=1e-10)
    np.testing.assert_allclose(counts, expected, atol=1e-10)


def test_best_path_is_the_most_probable_of_all_alignments(theta):
    numbers = number_of()
    paths = {row: path for batch in g2p._batches(PAIRS) for row, path in g2p._best_paths(batch, theta)}
    assert sorted(paths) == list(range(len(PAIRS)))
    for row, (word, phones) in enumerate(PAIRS):
        best = max(cuttings(word, phones), key=lambda cutting: probability(cutting, theta, numbers))
        assert [graphone(n) for n in paths[row]] == best


def test_likelihood_never_falls_and_probabilities_sum_to_one():
    theta, history = g2p.estimate_graphones(PAIRS, iterations=15)
    assert theta.sum() == pytest.approx(1.0)
    assert all(after >= before - 1e-9 for before, after in itertools.pairwise(history))
    assert history[-1] > history[0] + 5


def test_pairs_without_alignment_are_passed_over():
    pairs = [*PAIRS, ("w", ("D", "AH", "B", "AH", "L", "Y", "UW"))]
    assert [row for row, _ in g2p.align(pairs)] == list(range(len(PAIRS)))
    with pytest.raises(LexiconError, match="can be aligned"):
        train_g2p(pairs[-1:])


def test_rare_graphones_are_taken_away():
    pairs = [(word, phones) for word, phones in regular_words(200)] + [("bat", ("ZH", "AE", "T"))]
    used = Counter(unit for _, path in g2p.align(pairs, min_count=3) for unit in path)
    assert not any("ZH" in graphone(n)[1] for n in used)
    assert any("ZH" in graphone(n)[1] for _, path in g2p.align(pairs, min_count=1) for n in path)


# --- n-grams ---------------------------------------------------------------------------------------------------------

ORDER, SYMBOLS = 3, 7


def sequences():
    rng = random.Random(2)
    return [[rng.choice((2, 2, 3, 4, 5, 6)) for _ in range(rng.randint(1, 6))] for _ in range(60)]


@pytest.fixture(scope="module")
def smoothed():
    levels = g2p._count_levels(sequences(), SYMBOLS, ORDER)
    return levels, *g2p._smooth(levels, SYMBOLS)


def names(levels):
    """The n-gram of every row of every level, as tuples."""
    out = [[()]]
    for level in levels:
        pairs = zip(level.history, level.symbol, strict=True)
        out.append([(*out[-1][history], int(symbol)) for history, symbol in pairs])
    return out[1:]


def test_counts_and_kneser_ney_probabilities_equal_the_formulas(smoothed):
    levels, probabilities, _ = smoothed
    counts, left = Counter(), defaultdict(set)
    for word in sequences():
        text = (BOS, *word, EOS)
        for n in range(1, ORDER + 1):
            for at in range(len(text) - n + 1):
                gram = text[at : at + n]
                counts[gram] += 1
                if at and n < ORDER:
                    left[gram].add(text[at - 1])
    adjusted = {g: len(left[g]) if len(g) < ORDER and g[0] != BOS else c for g, c in counts.items() if g != (BOS,)}
    tables = {n: g2p._discounts(np.array([c for g, c in adjusted.items() if len(g) == n])) for n in range(1, ORDER + 1)}

    @cache
    def reference(gram):
        if not gram:
            return 1 / (SYMBOLS - 1)
        seen = [adjusted[(*gram[:-1], s)] for s in range(SYMBOLS) if (*gram[:-1], s) in adjusted]
        discount = tables[len(gram)]
        own = adjusted.get(gram, 0)
        kept = own - discount[min(own, 3)]
        return (kept + sum(discount[min(c, 3)] for c in seen) * reference(gram[1:])) / sum(seen)

    for n, grams in enumerate(names(levels)):
        for row, gram in enumerate(grams):
            assert levels[n].count[row] == counts[gram]
            if gram != (BOS,):
                assert probabilities[n][row] == pytest.approx(reference(gram), rel=1e-9)


def table(trie):
    """``{n-gram: (log probability, log back-off)}`` of a stored trie."""
    grams, out, at = [()], {}, 1
    for node, children in enumerate(trie.children.tolist()):
        out[grams[node]] = (-trie.score[node] / g2p._SCORE_UNIT, trie.backoff[node] / g2p._BACKOFF_UNIT)
        grams += [(*grams[node], int(s)) for s in trie.symbol[at : at + children]]
        at += children
    return out


def score(table, history, symbol):
    """Log probability by the definition of a back-off model."""
    if (*history, symbol) not in table:
        return table.get(history, (0.0, 0.0))[1] + score(table, history[1:], symbol)
    return table[(*history, symbol)][0]


@pytest.mark.parametrize("limit", [10_000, 60, 20])
def test_trie_sums_to_one_after_every_history_also_when_pruned(smoothed, limit):
    levels, probabilities, weights = smoothed
    keep = g2p._prune(levels, probabilities, weights, limit)
    model = table(g2p._trie(levels, probabilities, keep))
    assert len(model) - 1 <= limit
    assert (limit == 10_000) == (len(model) - 1 == sum(len(level.symbol) for level in levels))
    assert all(gram[:-1] in model and gram[1:] in model for gram in model if gram)
    for history in model:
        if EOS not in history:
            total = sum(math.exp(score(model, history, symbol)) for symbol in range(1, SYMBOLS))
            assert total == pytest.approx(1.0, abs=2 / g2p._SCORE_UNIT)  # scores are rounded to 1/16


def test_pruning_takes_what_costs_least(smoothed):
    levels, probabilities, weights = smoothed
    full, text = sum(len(level.symbol) for level in levels), sequences()

    def loss(limit):
        keep = g2p._prune(levels, probabilities, weights, limit)
        model = table(g2p._trie(levels, probabilities, keep))
        grams = [((BOS, *w, EOS)[max(0, i - 2) : i], (BOS, *w, EOS)[i]) for w in text for i in range(1, len(w) + 2)]
        return -sum(score(model, history, symbol) for history, symbol in grams) / len(grams)

    losses = [loss(limit) for limit in (full, full * 2 // 3, full // 3, SYMBOLS)]
    assert losses == sorted(losses)
    assert losses[1] - losses[0] < (losses[-1] - losses[0]) / 3


# --- decoding --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["cat", "ceme", "thuce", "shobe", "rathi"])
def test_nbest_equals_the_sum_over_all_cuttings(word, monkeypatch):
    for name, value in (("_BEAM", 100_000), ("_MARGIN", 1e9), ("_EXPANSIONS", 1000)):
        monkeypatch.setattr(G2P, name, value)
    model = train_g2p(regular_words(60), order=3, min_count=1)
    ngrams = table(model._trie)
    symbols = list(enumerate(model.graphones, start=2))
    totals = defaultdict(float)

    def walk(rest, history, phones, total):
        if not rest:
            totals[phones] += math.exp(total + score(ngrams, history, EOS))
        for symbol, (letters, new) in symbols:
            if rest.startswith(letters):
                more = score(ngrams, history, symbol)
                walk(rest[len(letters) :], (*history, symbol)[-2:], phones + new, total + more)

    walk(word, (BOS,), (), 0.0)
    totals.pop((), None)
    norm = sum(totals.values())
    found = dict(model.nbest(word, 10_000))
    assert found.keys() == totals.keys() and len(found) > 1
    for phones, p in found.items():
        assert p == pytest.approx(totals[phones] / norm, rel=1e-4)
    assert model.pronounce(word) == max(totals, key=totals.__getitem__)


def test_beam_finds_the_best_of_the_full_search(regular, monkeypatch):
    words = [word for word, _ in regular_words(60, seed=9)]
    quick = [regular.pronounce(word) for word in words]
    for name, value in (("_BEAM", 100_000), ("_MARGIN", 1e9), ("_EXPANSIONS", 1000)):
        monkeypatch.setattr(G2P, name, value)
    regular._cache.clear()
    assert quick == [regular.pronounce(word) for word in words]
    regular._cache.clear()


def test_learns_the_rules_of_a_regular_spelling(regular):
    known = dict(regular_words(600))
    fresh = {word: phones for word, phones in regular_words(1500, seed=1) if word not in known}
    assert len(fresh) > 300
    right = sum(regular.pronounce(word) == phones for word, phones in fresh.items())
    assert right / len(fresh) > 0.97
    seen = sum(regular.pronounce(word) == phones for word, phones in known.items())
    assert seen / len(known) > 0.98


def test_nbest_is_sorted_and_its_probabilities_sum_to_at_most_one(regular):
    best = regular.nbest("cadime", 5)
    assert [p for _, p in best] == sorted((p for _, p in best), reverse=True)
    assert 0 < sum(p for _, p in best) <= 1 + 1e-9
    assert len({phones for phones, _ in best}) == len(best)


# --- errors and files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["naïve", "two words", "b2b", "Cat", "", "a" * 101])
def test_words_that_cannot_be_pronounced(regular, word):
    with pytest.raises(LexiconError, match="cannot pronounce"):
        regular.pronounce(word)


def test_letters_never_seen_are_an_error_not_a_crash(regular):
    with pytest.raises(LexiconError, match="no known sound"):
        regular.pronounce("qqq")


def test_training_refuses_nothing_and_unknown_phones():
    with pytest.raises(LexiconError, match="has none"):
        train_g2p([("b-b", ("B",)), ("bé", ("B",)), ("b", ())])
    with pytest.raises(LexiconError, match="'AH0' in the pronunciation of 'a' is not a phone"):
        train_g2p([("a", ("AH0",))])


def test_file_round_trip_and_determinism(tmp_path, regular):
    one, two = tmp_path / "one", tmp_path / "two"
    regular.save(one)
    pairs = regular_words(600)
    random.Random(4).shuffle(pairs)
    train_g2p([*pairs, pairs[0]], order=5, min_count=1).save(two)
    assert one.read_bytes() == two.read_bytes()
    loaded = G2P.load(one)
    for word, _ in regular_words(50, seed=3):
        assert loaded.nbest(word, 5) == regular.nbest(word, 5)
    assert loaded.graphones == regular.graphones
    assert not list(tmp_path.glob("*.tmp"))


def test_damaged_files_are_one_line_errors(tmp_path, regular):
    path = tmp_path / "model"
    with pytest.raises(LexiconError, match="No such file"):
        G2P.load(path)
    regular.save(path)
    good = path.read_bytes()
    for bad in (good[:-40], good[: len(good) // 2], b"", b"hello", good[:200] + bytes([good[200] ^ 1]) + good[201:]):
        path.write_bytes(bad)
        with pytest.raises(LexiconError) as error:
            G2P.load(path)
        assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_files_of_other_contents_are_refused(tmp_path):
    import lzma

    path = tmp_path / "model"
    for payload, message in (
        (b"something else", "of this version"),
        (b"asr-g2p 1\n", "damaged"),
        (b'asr-g2p 1\n{"graphones":["a:AA"],"nodes":1000}\nshort', "damaged"),
        (b'asr-g2p 1\n{"graphones":["a:AA"],"nodes":0}\n', "damaged"),
        (b'asr-g2p 1\n{"graphones":["a:AA"],"nodes":2}\n' + bytes(12), "damaged"),
        (b"asr-g2p 1\n[]\n", "damaged"),
    ):
        path.write_bytes(lzma.compress(payload))
        with pytest.raises(LexiconError, match=message):
            G2P.load(path)
