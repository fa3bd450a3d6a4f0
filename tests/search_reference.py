"""Slow, obvious references for the beam search: sums over all alignments, n-grams in a dictionary, small searches."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asr import lm
from asr.decoding.beam_search import BeamSearch
from asr.decoding.hypothesis import Hypothesis
from asr.decoding.search_config import SearchConfig
from asr.lexicon import Lexicon
from asr.lm.model import NgramModel
from asr.vocabulary import BpeVocabulary, CharacterVocabulary, PhoneVocabulary, Vocabulary

Emissions = NDArray[np.float32]
Spelled = Mapping[str, Sequence[tuple[int, ...]]]
Costs = Mapping[str, Sequence[float]]

EXACT: dict[str, Any] = {"beam": 10_000, "tokens": 100, "threshold": 1e3, "blank_skip": 1.0}
PHONES = ("IY", "M", "T")
WORDS = {"tea": ["T IY"], "tee": ["T IY"], "me": ["M IY"], "meat": ["M IY T"], "team": ["T IY M"], "e": ["IY"],
         "it": ["IY T", "M T"], "timid": ["T IY M IY", "T M"]}  # fmt: skip
COSTS = {"it": (0.0, 1.3), "timid": (0.0, 0.6)}  # nats
TEXTS = ("tea me", "it meat me", "me team e", "e it tee", "meat it", "tea", "timid tea me", "tea me it")
LETTERS = ("<blank>", "e", "m", " ")
LETTER_WORDS = ("me", "em", "e", "mee", "m")
LETTER_TEXTS = ("me em", "mee e me", "e m em", "m e", "me me mee")
PIECES = ("<blank>", "_m", "_e", "e", "_me", "m")
MERGES = (("_m", "e"),)


def lexicon(words: Mapping[str, Sequence[str]] = WORDS) -> Lexicon:
    return Lexicon({word: [tuple(p.split()) for p in phones] for word, phones in words.items()})


def letters() -> CharacterVocabulary:
    return CharacterVocabulary(LETTERS)


def pieces() -> BpeVocabulary:
    return BpeVocabulary(PIECES, MERGES)


def phones() -> PhoneVocabulary:
    return PhoneVocabulary.of(PHONES)


def model(texts: Sequence[str] = TEXTS, order: int = 2, words: Sequence[str] = tuple(WORDS)) -> NgramModel:
    return lm.estimate(texts, order=order, vocabulary=tuple(words))


def small(
    vocabulary: Vocabulary | None = None, language_model: NgramModel | None = None, recombine: bool = False,
    priors: Emissions | None = None, costs: Mapping[str, Sequence[float]] | None = None, **config: Any
) -> BeamSearch:  # fmt: skip
    """A search over the small lexicon of a vocabulary's kind; exact unless ``config`` says otherwise."""
    vocabulary = vocabulary or phones()
    words = (
        lexicon().with_costs(costs or {}) if vocabulary.kind == "phones" else lexicon({w: ["IY"] for w in LETTER_WORDS})
    )
    settings = SearchConfig(**{**EXACT, "lm_weight": 0.9, "word_score": 0.3, **config})
    return BeamSearch(vocabulary, words, language_model, settings, priors, recombine)


def spelled(search: BeamSearch, extra: Mapping[str, Sequence[tuple[int, ...]]] | None = None) -> Spelled:
    """Every word's unit ids, without the space."""
    found: dict[str, Sequence[tuple[int, ...]]] = {}
    for word in search.words:
        if search.vocabulary.kind == "phones":
            found[word] = [tuple(search.vocabulary.index[p] for p in said) for said in search.lexicon[word]]
        else:
            found[word] = [tuple(search.vocabulary.encode(word))]
    return {**found, **(extra or {})}


def random_emissions(seed: int, steps: int, units: int, spread: float = 2.0, levels: int = 0) -> Emissions:
    """Log-probabilities of random logits; of few different ``levels``, so that scores tie, where that is given."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, spread, (steps, units)) if not levels else spread * rng.integers(0, levels, (steps, units))
    return np.float32(logits - np.log(np.exp(logits).sum(1, keepdims=True)))


def said(steps: str, sure: float = 0.97, units: str = "-IMT") -> Emissions:
    """Emissions in which each character names the likely unit of a step: ``-`` blank, I, M, T as the phones."""
    p = np.full((len(steps), len(units)), (1 - sure) / (len(units) - 1), np.float32)
    for step, unit in enumerate(steps):
        p[step, units.index(unit)] = sure
    return np.log(p)


def whole(search: BeamSearch, emissions: Emissions, hot: Any = None, lm_scale: float = 1.0) -> Hypothesis:
    """The search over all of ``emissions`` at once."""
    return search.end(search.step(emissions, search.begin(hot, lm_scale)))


def ctc_sums(emissions: NDArray[Any]) -> dict[tuple[int, ...], float]:
    """For every sequence of units, the log of the summed probability of all alignments (Graves et al. 2006)."""
    sums: dict[tuple[int, ...], float] = {}
    rows = emissions.astype(float).tolist()
    for path in itertools.product(range(emissions.shape[1]), repeat=len(rows)):
        units = tuple(unit for unit, _ in itertools.groupby(path) if unit)
        sums[units] = sums.get(units, 0.0) + math.exp(sum(row[unit] for row, unit in zip(rows, path, strict=True)))
    return {units: math.log(p) for units, p in sums.items()}


def readings(units: tuple[int, ...], words: Spelled, costs: Costs) -> list[tuple[tuple[str, ...], float]]:
    """All ways to read ``units`` as words, with what the pronunciations cost; one that has two ways to be pronounced
    like this stands there twice."""
    found: list[tuple[tuple[str, ...], float]] = [] if units else [((), 0.0)]
    for word, ways in words.items():
        for n, way in enumerate(ways):
            if units[: len(way)] == way:
                cost = costs[word][n] if word in costs else 0.0
                found += [((word, *rest), cost + more) for rest, more in readings(units[len(way) :], words, costs)]
    return found


def acoustic(
    emissions: NDArray[Any], words: Spelled, space: int = -1, costs: Costs | None = None
) -> dict[tuple[str, ...], float]:
    """For every sequence of words: the log of the summed probability of all alignments of all its pronunciations, less
    what these cost."""
    names = {ways[0]: word for word, ways in words.items()}
    sums: dict[tuple[str, ...], float] = {}
    for units, score in ctc_sums(emissions).items():
        if space >= 0:
            runs = [tuple(run) for is_space, run in itertools.groupby(units, lambda u: u == space) if not is_space]
            texts = [(tuple(names[r] for r in runs), 0.0)] if all(r in names for r in runs) else []
        else:
            texts = readings(units, words, costs or {})
        for text, cost in texts:
            sums[text] = float(np.logaddexp(sums.get(text, -math.inf), score - cost))
    return sums


class Dictionary:
    """A back-off n-gram model as two dictionaries, read back from a model's arrays."""

    def __init__(self, language_model: NgramModel) -> None:
        m, self.order = language_model, language_model.order
        self.log_probs: dict[tuple[str, ...], float] = {}
        self.backoffs: dict[tuple[str, ...], float] = {}
        for n in range(1, m.order + 1):
            ngrams = [tuple(m.words[i] for i in row) for row in m.ngram_words(n).tolist()]
            self.log_probs.update(zip(ngrams, m.log_probs[n - 1].tolist(), strict=True))
            if n < m.order:
                self.backoffs.update(zip(ngrams, m.backoffs[n - 1].tolist(), strict=True))
        known = [p for (w, *rest), p in self.log_probs.items() if not rest and w not in ("<s>", "</s>", "<unk>")]
        self.rare = min([*known, self.log_probs[("<unk>",)]])

    def logprob(self, word: str, context: tuple[str, ...], hot: bool = False) -> float:
        """log10 p(word | context). ``hot``: a word that nobody knows costs as much as the rarest one."""
        context = context[len(context) - min(len(context), self.order - 1) :]
        if (*context, word) in self.log_probs and not (hot and not context):
            return self.log_probs[(*context, word)]
        if not context:
            return self.rare if hot else self.log_probs[("<unk>",)]
        return self.backoffs.get(context, 0.0) + self.logprob(word, context[1:], hot)

    def score(self, words: Sequence[str], known: Sequence[str]) -> float:
        """log10 p of a sentence; words that are not ``known`` to the search are unknown hot words."""
        has = {w for (w, *rest) in self.log_probs if not rest}
        context, total = ("<s>",), 0.0
        for word in (*words, "</s>"):
            name = word if word in has else "<unk>"
            total += self.logprob(name, context, hot=word != "</s>" and word not in known)
            context = (*context, name)
        return total


def earned(words: Sequence[str], phrases: Mapping[str, float]) -> float:
    """What hot words add: for every place where a phrase stands, its boost times its words."""
    total = 0.0
    for phrase, boost in phrases.items():
        of = phrase.split()
        total += sum(boost * len(of) for i in range(len(words)) if list(words[i : i + len(of)]) == of)
    return total


def reference(
    search: BeamSearch, emissions: NDArray[Any], language_model: NgramModel | None = None, lm_scale: float = 1.0,
    hot: Mapping[str, float] | None = None, extra: Spelled | None = None
) -> dict[tuple[str, ...], float]:  # fmt: skip
    """The score of every word sequence."""
    config, plain = search.config, Dictionary(language_model) if language_model else None
    space = search.vocabulary.index.get(" ", -1)
    scores = {}
    heard = emissions - search._shift
    costs = {w: [config.pronunciation_weight * cost for cost in search.lexicon.costs(w)] for w in search.words}
    for words, total in acoustic(heard, spelled(search, extra), space, costs).items():
        if plain:
            total += config.lm_weight * lm_scale * plain.score(words, search.words)
        scores[words] = total + config.word_score * len(words) + earned(words, hot or {})
    return scores
