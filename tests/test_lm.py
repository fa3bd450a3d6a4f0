"""Estimation, mixing and pruning of n-gram models, against plain dictionaries and brute force."""

from __future__ import annotations

import math
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asr.errors import LanguageModelError
from asr.lm import NgramModel, encode, estimate, mix, prune, select_vocabulary, tune_weights
from asr.lm.estimate import discounts
from asr.lm.mix import with_words
from asr.lm.model import with_backoffs
from asr.lm.prune import keep, removal_values

WORDS = "abcdefghijkl"


def random_text(seed: int, sentences: int = 400, words: str = WORDS) -> list[str]:
    """Sentences of a Markov chain with skewed successors, so that counts of counts look like those of language."""
    rng = np.random.default_rng(seed)
    table = rng.dirichlet(np.full(len(words), 0.15), size=len(words))
    result = []
    for _ in range(sentences):
        state, sentence = int(rng.integers(len(words))), []
        for _ in range(int(rng.integers(1, 9))):
            sentence.append(words[state])
            state = int(rng.choice(len(words), p=table[state]))
        result.append(" ".join(sentence))
    return result


class ReferenceKneserNey:
    """Interpolated modified Kneser-Ney as in Chen & Goodman (1999), straight from the formulas, with dictionaries.

    A word outside the vocabulary breaks n-grams; left of an n-gram it counts as one more distinct word.
    """

    def __init__(self, sentences: list[str], order: int, vocabulary: list[str] | None, min_count: list[int]) -> None:
        known = set(vocabulary) if vocabulary is not None else {w for s in sentences for w in s.split()}
        self.predicted = [*sorted(known), "</s>", "<unk>"]
        self.order, self.min_count = order, min_count
        self.raw: list[Counter[tuple[str, ...]]] = [Counter() for _ in range(order + 1)]
        before: list[defaultdict[tuple[str, ...], set[str]]] = [defaultdict(set) for _ in range(order + 1)]
        for sentence in sentences:
            tokens = ["<s>", *(w if w in known else "<unk>" for w in sentence.split()), "</s>"]
            for n in range(1, order + 1):
                for i in range(len(tokens) - n + 1):
                    gram = tuple(tokens[i : i + n])
                    if "<unk>" not in gram:
                        self.raw[n][gram] += 1
                        if i:
                            before[n][gram].add(tokens[i - 1])
        self.adjusted: list[dict[tuple[str, ...], int]] = [{}]
        for n in range(1, order + 1):
            use_raw = n == order
            self.adjusted.append(
                {g: c if use_raw or g[0] == "<s>" else len(before[n][g]) for g, c in self.raw[n].items()}
            )
        self.adjusted[1].pop(("<s>",))
        self.discounts = [(0.0,) * 4] + [
            (0.0, *discounts(np.array(list(level.values())))) for level in self.adjusted[1:]
        ]

    def prob(self, word: str, context: tuple[str, ...]) -> float:
        n = len(context) + 1
        total = sum(c for g, c in self.adjusted[n].items() if g[:-1] == context)
        lower = 1 / len(self.predicted) if n == 1 else self.prob(word, context[1:])
        if not total:
            return lower
        listed = {g: c for g, c in self.adjusted[n].items() if g[:-1] == context}
        kept = {g: c for g, c in listed.items() if n == 1 or self.raw[n][g] >= self.min_count[n - 1]}
        share = {g: (c - self.discounts[n][min(c, 3)]) / total for g, c in kept.items()}
        return share.get((*context, word), 0.0) + (1 - sum(share.values())) * lower


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("vocabulary", [None, "abcdefgz"])
@pytest.mark.parametrize("min_count", [None, [1, 1, 2]])
def test_probabilities_equal_the_plain_reference(order, vocabulary, min_count):
    text = random_text(order, 60)
    model = estimate(text, order, vocabulary, min_count)
    minimum = (min_count or [1, 1, 1]) + [(min_count or [1])[-1]] * 2
    reference = ReferenceKneserNey(text, order, list(vocabulary) if vocabulary else None, minimum)
    contexts = {tuple(w) for s in text for w in [["<s>", *s.split()]]}
    checked = 0
    for context in sorted(contexts)[:25]:
        for length in range(order):
            h = context[len(context) - length :] if length <= len(context) else None
            if h is None or any(w not in model.words for w in h):
                continue
            for word in reference.predicted:
                assert model.logprob(word, h) == pytest.approx(math.log10(reference.prob(word, h)), abs=1e-5)
                checked += 1
    assert checked > 100


def predicted(model: NgramModel) -> list[str]:
    return [word for word in model.words if word != "<s>"]


def assert_sums_to_one(model: NgramModel, tolerance: float = 1e-4) -> None:
    contexts = [(), ("<s>",), *[(a,) for a in "abcz"], *[(a, b) for a in "ab<" for b in "acdz"]]
    contexts += [("<s>", "a"), ("<s>", "b"), ("a", "b", "c"), ("<s>", "c", "a"), ("k", "l", "k")]
    for context in contexts:
        assert sum(10 ** model.logprob(w, context) for w in predicted(model)) == pytest.approx(1.0, abs=tolerance)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("min_count", [None, [1, 2, 2, 3]])
def test_probabilities_sum_to_one_for_seen_and_unseen_contexts(order, min_count):
    model = estimate(random_text(1, 200), order, min_count=min_count and min_count[:order])
    assert_sums_to_one(model)
    assert_sums_to_one(estimate(random_text(1, 200), order, "abcdzyx", min_count and min_count[:order]))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.sampled_from("abc"), max_size=4), min_size=1, max_size=8), st.integers(1, 5))
def test_tiny_texts_give_proper_models(sentences, order):
    if not any(sentences):
        with pytest.raises(LanguageModelError, match="no words"):
            estimate(sentences, order)
        return
    model = estimate(sentences, order)
    model.check()
    assert_sums_to_one(model)


def test_discounts_follow_the_counts_of_counts_and_fall_back():
    counts = np.array([1] * 10 + [2] * 4 + [3] * 2 + [4])
    y = 10 / 18
    assert discounts(counts) == pytest.approx((1 - 2 * y * 4 / 10, 2 - 3 * y * 2 / 4, 3 - 4 * y * 1 / 2))
    assert discounts(np.array([1, 1, 2])) == (0.5, 1.0, 1.5)
    assert discounts(np.array([1] * 10 + [2] + [3] * 10 + [4])) == (0.5, 1.0, 1.5)  # the second would be negative


def test_estimate_refuses_what_makes_no_sense():
    for text in ([], ["", " "], ["x y"]):
        with pytest.raises(LanguageModelError, match="no words"):
            estimate(text, 2, vocabulary="ab" if text == ["x y"] else None)
    with pytest.raises(LanguageModelError, match="1 to 5"):
        estimate(["a"], 6)
    with pytest.raises(LanguageModelError, match="not decrease"):
        estimate(["a"], 3, min_count=[1, 3, 2])


def test_min_count_leaves_out_rare_ngrams():
    text = ["a b c", "a b c", "a b d"]
    model = estimate(text, 3, min_count=[1, 1, 2])
    ids = model.word_ids
    assert model.find(np.array([[ids["a"], ids["b"], ids["c"]], [ids["a"], ids["b"], ids["d"]]])).tolist()[1] == -1
    assert model.find(np.array([[ids["a"], ids["b"], ids["c"]]]))[0] >= 0
    assert_sums_to_one(model)


# scoring ---------------------------------------------------------------------------------------------------------


def plain_log_prob(model: NgramModel, history: tuple[str, ...]) -> float:
    """The definition of a back-off model, on a dictionary of its n-grams."""
    table = {}
    for n in range(1, model.order + 1):
        for i, gram in enumerate(model.ngram_words(n)):
            backoff = float(model.backoffs[n - 1][i]) if n < model.order else 0.0
            table[tuple(model.words[w] for w in gram)] = (float(model.log_probs[n - 1][i]), backoff)

    def value(h: tuple[str, ...]) -> float:
        return table[h][0] if h in table else table.get(h[:-1], (0.0, 0.0))[1] + value(h[1:])

    return value(history[-model.order :])


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_vectorised_and_stepwise_scores_equal_the_definition(order):
    model = estimate(random_text(2, 80), order, "abcdefgh")
    sentences = [*random_text(3, 10), "a", "", "zz a b"]
    ids = encode(sentences, model.words).ids
    log_probs = model.token_log_probs(ids)
    at = 0
    for sentence in sentences:
        words = [w if w in model.words else "<unk>" for w in sentence.split()]
        tokens = ["<s>", *words, "</s>"]
        expected = [plain_log_prob(model, tuple(tokens[: i + 1])) for i in range(1, len(tokens))]
        assert np.isnan(log_probs[at])
        assert log_probs[at + 1 : at + len(tokens)] == pytest.approx(expected, abs=1e-6)
        assert model.score(sentence) == pytest.approx(sum(expected), abs=1e-5)
        assert model.score(sentence, end=False) == pytest.approx(sum(expected[:-1]), abs=1e-5)
        at += len(tokens)
    assert model.score("a b", begin=False, end=False) == pytest.approx(
        plain_log_prob(model, ("a",)) + plain_log_prob(model, ("a", "b")), abs=1e-6
    )


def test_states_hold_the_last_words_and_no_more():
    model = estimate(random_text(2, 80), 3)
    state = model.begin()
    assert state == (model.word_ids["<s>"],)
    for word in "abca":
        _, state = model.step(state, word)
    assert state == (model.word_ids["c"], model.word_ids["a"])
    assert estimate(["a b"], 1).begin() == ()


def test_perplexity_leaves_unknown_words_out():
    model = estimate(random_text(4, 100), 2, "abcdef")
    expected = [model.logprob("a", ["<s>"]), model.logprob("b", ["a"]), model.logprob("</s>", ["b"])]
    assert model.perplexity(["a b"]) == pytest.approx(10 ** (-sum(expected) / 3), rel=1e-5)
    other = [model.logprob("b", ["<unk>"]), model.logprob("</s>", ["b"])]
    assert model.perplexity(["zz b"]) == pytest.approx(10 ** (-sum(other) / 2), rel=1e-5)
    assert model.perplexity(encode(["a b"])) == pytest.approx(model.perplexity(["a b"]))
    with pytest.raises(LanguageModelError, match="at least one sentence"):
        model.perplexity([])


# mixing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orders", [(3, 3), (2, 4), (1, 3)])
def test_a_mixture_is_the_direct_mixture_where_listed_and_sums_to_one(orders):
    first = estimate(random_text(5, 150), orders[0])
    second = estimate(random_text(6, 60), orders[1], WORDS)
    third = estimate(random_text(7, 60), 3, WORDS)
    weights = [0.5, 0.3, 0.2]
    mixed = mix([first, second, third], [5, 3, 2])
    mixed.check()
    assert_sums_to_one(mixed)
    for n in range(1, mixed.order + 1):
        for gram in mixed.ngram_words(n)[::7]:
            words = [mixed.words[i] for i in gram]
            if words[-1] == "<s>":
                continue
            each = [10 ** m.logprob(words[-1], words[:-1]) for m in (first, second, third)]
            direct = math.log10(np.dot(weights, each))
            assert mixed.logprob(words[-1], words[:-1]) == pytest.approx(direct, abs=1e-5)
    for k, model in enumerate((first, second, third)):
        for n in range(2, model.order + 1):
            columns = np.array([mixed.word_ids[w] for w in model.words])[model.ngram_words(n)]
            assert (mixed.find(columns) >= 0).all(), (k, n)


def test_models_of_different_words_mix_over_all_of_them():
    first, second = estimate(["a b", "b a"], 2), estimate(["x a", "a y x"], 2)
    mixed = mix([first, second], [1, 1])
    assert set(mixed.words) == {"<unk>", "<s>", "</s>", "a", "b", "x", "y"}
    total = sum(10 ** mixed.logprob(w) for w in predicted(mixed))
    assert total == pytest.approx(1.0, abs=1e-5)
    wider = with_words(first, mixed.words)
    assert wider.logprob("b", ["a"]) == pytest.approx(first.logprob("b", ["a"]))
    assert sum(10 ** wider.logprob(w) for w in predicted(wider)) == pytest.approx(1.0, abs=1e-5)


def test_one_model_is_its_own_mixture_and_bad_weights_are_refused():
    model = estimate(["a b"], 2)
    assert mix([model], [3.0]) is model
    for weights in ([1.0], [0.0, 0.0], [-1.0, 2.0], [math.nan, 1.0]):
        with pytest.raises(LanguageModelError, match="weights"):
            mix([model, model], weights)


def test_tuned_weights_maximise_the_likelihood_with_equal_say_for_each_text():
    models = [estimate(random_text(seed, 200), 2, WORDS) for seed in (8, 9)]
    texts = [random_text(8, 30), random_text(9, 300)]
    weights = tune_weights(models, texts)
    assert sum(weights) == pytest.approx(1.0)

    def likelihood(weight: float) -> float:
        total = 0.0
        for text in texts:
            ids = encode(text, models[0].words).ids
            use = ids != models[0].word_ids["<s>"]
            probs = [10 ** m.token_log_probs(ids)[use] for m in models]
            total += np.log(weight * probs[0] + (1 - weight) * probs[1]).mean()
        return total

    grid = np.linspace(0.01, 0.99, 99)
    best = grid[np.argmax([likelihood(w) for w in grid])]
    assert weights[0] == pytest.approx(best, abs=0.011)
    assert tune_weights(models, [random_text(8, 200)])[0] > 0.9
    with pytest.raises(LanguageModelError, match="no known words"):
        tune_weights(models, [["zz"], []][1:])


# pruning ---------------------------------------------------------------------------------------------------------


def test_pruning_keeps_sums_and_closure_and_beats_random_pruning():
    text = random_text(10, 1500)
    held_out = random_text(10, 1800)[1500:]
    model = estimate(text, 3)
    listed = sum(model.counts[1:])
    for target in (listed // 2, listed // 4):
        pruned = prune(model, max_ngrams=target)
        assert target - 5 <= sum(pruned.counts[1:]) <= target
        pruned.check()
        assert_sums_to_one(pruned)
        assert all((s >= 0).all() for s in pruned.suffixes[1:])
        rng = np.random.default_rng(0)
        share = target / listed
        marks = [rng.random(model.counts[1]) < share**0.5]
        marks.append((rng.random(model.counts[2]) < share**0.5) & marks[0][model.prefixes(3)])
        randomly = keep(model, marks)
        assert sum(randomly.counts[1:]) > 0.8 * target
        assert_sums_to_one(randomly)
        assert pruned.perplexity(held_out) < randomly.perplexity(held_out)
    assert prune(model, max_ngrams=listed).counts == model.counts
    assert sum(prune(model, max_ngrams=0).counts[1:]) == 0


def test_the_value_of_an_ngram_is_the_change_of_relative_entropy_when_it_goes():
    """Against brute force: the sum over all words of p(h) p(w|h) (log p(w|h) - log p'(w|h))."""
    model = estimate(random_text(11, 100), 3, WORDS)
    values = removal_values(model)
    assert model.context_shares is not None
    for n in (2, 3):
        for i in range(0, model.counts[n - 1], 17):
            if n == 2 and model.is_context(2)[i]:
                continue  # goes only after the trigrams that need it
            gram = model.ngram_words(n)[i]
            marks = [np.ones(model.counts[1], bool), np.ones(model.counts[2], bool)]
            marks[n - 2][i] = False
            without = keep(model, marks)
            context = [model.words[w] for w in gram[:-1]]
            change = sum(
                10 ** model.logprob(w, context) * (model.logprob(w, context) - without.logprob(w, context))
                for w in predicted(model)
            ) * math.log(10)
            share = float(model.context_shares[n - 2][model.prefixes(n)[i]])
            assert values[n - 2][i] == pytest.approx(share * change, rel=0.02, abs=2e-8)


def test_pruning_by_threshold_and_refusals():
    model = estimate(random_text(12, 300), 3)
    mild, strong = prune(model, threshold=1e-7), prune(model, threshold=1e-3)
    assert sum(model.counts) >= sum(mild.counts) > sum(strong.counts)
    for bounds in ({}, {"max_ngrams": 5, "threshold": 0.1}, {"max_ngrams": -1}, {"max_bytes": 100}):
        with pytest.raises(LanguageModelError):
            prune(model, **bounds)


def test_backoffs_computed_anew_equal_the_estimated_ones():
    model = estimate(random_text(13, 300), 3)
    anew = with_backoffs(model)
    for old, new in zip(model.backoffs, anew.backoffs, strict=True):
        assert np.allclose(old, new, atol=2e-3)


# vocabulary ------------------------------------------------------------------------------------------------------


def test_vocabulary_is_the_most_frequent_words_by_weighted_relative_frequency():
    large, small = encode(["b b a"] * 50), encode(["c c a"])
    assert select_vocabulary([large, small], 10) == ("a", "b", "c")  # 2/3 each, so by the alphabet
    assert select_vocabulary([large, small], 2, [1.0, 1.5]) == ("c", "a")
    assert select_vocabulary([large, small], 1, [0.1, 1.0]) == ("c",)
    assert select_vocabulary([large], 1) == ("b",)
