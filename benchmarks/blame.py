"""What a model's word errors are owed to: the network, the language models, the search, or words that it does not know.

    OMP_NUM_THREADS=1 python benchmarks/blame.py --data dev.tsv ... [--model en] [--limit 100]

Every stretch of wrong words is put right by itself: the text that was recognised, with the reference's words there, is
judged as the search judges (all CTC paths of the words' pronunciations, without the share of the priors; the models of
language at the weights of the search), and compared with what was recognised. The stretch is owed to

- *unknown words*, where the reference has words that the lexicon lacks;
- *the search*, where the right words are better in sum: it has lost them on its way;
- *the network*, where they sound less likely and read as likely or likelier;
- *the language models*, where they read less likely and sound as likely or likelier;
- *both*, where both are against them.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from asr.decoding.beam_search import BeamSearch
from asr.decoding.confidence import speller
from asr.decoding.hypothesis import Emissions
from asr.errors import UsageError
from asr.recognizer import Recognizer
from asr.training import metrics
from asr.training.tune import SearchFactory, read_tables, recognise
from asr.vocabulary import BLANK, PhoneVocabulary

KINDS = ("unknown words", "the search", "the network", "the language models", "both")
Words = tuple[str, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="en")
    parser.add_argument("--data", nargs="+", type=Path, required=True)
    parser.add_argument("--limit", type=int, help="utterances of each table")
    args = parser.parse_args()
    torch.set_num_threads(1)
    recognizer = Recognizer.load(args.model)
    parts = SearchFactory(recognizer)
    search = parts(recognizer.folder.config.search)
    judge = Judge(parts, search)
    print(f"| table | WER % | {' | '.join(f'owed to {kind}' for kind in KINDS)} |")
    print("|---|---|" + "---|" * len(KINDS))
    for table in read_tables(recognizer, [str(path) for path in args.data], args.limit):
        errors: Counter[str] = Counter()
        heard = recognise(search, table)
        for segments, reference, words in zip(table.segments, table.references, heard, strict=True):
            for stretch in stretches(reference, words):
                errors[judge.owed(np.concatenate(segments), tuple(words), stretch)] += stretch.errors
        total = sum(map(len, table.references))
        cells = " | ".join(f"{100 * errors[kind] / total:.1f}" for kind in KINDS)
        print(f"| {table.name} | {100 * sum(errors.values()) / total:.1f} | {cells} |", flush=True)


@dataclass(frozen=True)
class Stretch:
    """Neighbouring errors: ``right`` in the place of the recognised words from ``first`` to before ``last``."""

    first: int
    last: int
    right: Words
    errors: int


def stretches(reference: Sequence[str], heard: Sequence[str]) -> Iterator[Stretch]:
    """The stretches of wrong words of a minimal alignment, in order."""
    place, first, right, errors = 0, 0, [], 0
    for wanted, said in [*metrics.align(list(reference), list(heard)), ("", "")]:
        if wanted == said:
            if errors:
                yield Stretch(first, place, tuple(right), errors)
            place += 1
            first, right, errors = place, [], 0
        else:
            place += said is not None
            right += [wanted] if wanted is not None else []
            errors += 1


class Judge:
    """What a recogniser's parts say of a text."""

    def __init__(self, parts: SearchFactory, search: BeamSearch) -> None:
        self.config = search.config
        self.lexicon, self.spell = search.lexicon, speller(search)
        if parts.language_model is None or not isinstance(parts.vocabulary, PhoneVocabulary):
            raise UsageError("the model has no phones or no language model: there is nothing to weigh")
        self.ngrams, self.recurrent, self.spelling = parts.language_model, parts.second, parts.vocabulary
        self.shift = 0.0 if parts.log_priors is None else self.config.prior_weight * parts.log_priors

    def owed(self, emissions: Emissions, heard: Words, stretch: Stretch) -> str:
        """Which of :data:`KINDS`. ``emissions``: (steps, units) of the utterance."""
        if any(word not in self.lexicon for word in stretch.right):
            return "unknown words"
        right = (*heard[: stretch.first], *stretch.right, *heard[stretch.last :])
        sound = self.sound(emissions, right) - self.sound(emissions, heard)
        text = self.text(right) - self.text(heard)
        if sound + text > 0:
            return "the search"
        if text >= 0:
            return "the network"
        return "the language models" if sound >= 0 else "both"

    def sound(self, emissions: Emissions, words: Words) -> float:
        """Nats of all paths of a text through (steps, units) emissions, by any pronunciation."""
        weight = self.config.pronunciation_weight
        costs = [[weight * cost for cost in self.lexicon.costs(word)] for word in words]
        return all_paths(emissions - self.shift, [self.spell(word) for word in words], costs)

    def text(self, words: Words) -> float:
        """Nats that the language models and the score of words add."""
        config, logs = self.config, []
        state = self.ngrams.begin()
        for word in words:
            log, state = self.ngrams.step(state, word)
            logs.append(log)
        if self.recurrent and config.second_share:
            sums = self.recurrent.score([" ".join(words[: k + 1]) for k in range(len(words))])
            seconds = np.diff(sums, prepend=0.0)
            share = config.second_share
            logs = [float(np.log10((1 - share) * 10**a + share * 10**b)) for a, b in zip(logs, seconds, strict=True)]
        return config.lm_weight * sum(logs) + config.word_score * len(words)


def all_paths(
    emissions: NDArray[np.floating[Any]],
    spelled: Sequence[Sequence[Sequence[int]]],
    costs: Sequence[Sequence[float]] | None = None,
) -> float:
    """The log-probability of all CTC paths of some words, each by any of its spellings; -inf where none fits.

    ``emissions``: (steps, units); ``spelled``: of each word, the unit ids of its spellings; ``costs``: of each
    spelling, nats that are taken off; nothing where they are left away.
    """
    unit, before = [BLANK], [[0]]  # states: the blank at the start, then a unit and the blank behind it, and so on
    fee = [0.0]  # of coming into a state from another
    ends = [0]  # states in which the words so far can be over
    for number, variants in enumerate(spelled):
        done: list[int] = []
        for variant, units in enumerate(variants):
            into, cost = ends, costs[number][variant] if costs else 0.0
            for one in units:
                here = len(unit)
                before.append([here, *(s for s in into if unit[s] != one)])
                unit.append(one)
                before.append([here + 1, here])
                unit.append(BLANK)
                fee += [cost, 0.0]
                into, cost = [here, here + 1], 0.0
            done += into
        ends = done
    most = max(map(len, before))
    ways = np.array([[*states, *[len(unit)] * (most - len(states))] for states in before])
    fees = np.where(ways == np.arange(len(unit))[:, None], 0.0, np.array(fee)[:, None])
    score = np.full(len(unit) + 1, -np.inf)
    score[0] = emissions[0, BLANK]
    for s in range(1, len(unit)):
        if 0 in before[s]:
            score[s] = emissions[0, unit[s]] - fee[s]
    heard = emissions[:, unit]
    for t in range(1, len(emissions)):
        score[:-1] = np.logaddexp.reduce(score[ways] - fees, axis=1) + heard[t]
    return float(np.logaddexp.reduce(score[ends]))


if __name__ == "__main__":
    main()
