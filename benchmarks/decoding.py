"""What each part of decoding gives: word error rate and time of one set of emissions under many searches.

    OMP_NUM_THREADS=1 python benchmarks/decoding.py --tables dev-clean.tsv dev-commonvoice.tsv [--model en] \\
        [--limit 60] [--seed 1] [--tune 15] [--repeat 3] [--only NAME ...] [--alternatives 5 10] [--out table.json]

A table is a manifest (`asr eval --help`). `--limit N` takes N utterances of each at random (`--seed`). The network runs
once; every search then hears the same emissions, an utterance as one segment, 32 utterances at a time (flashlight's
decoder: one after another, since it has no other way). The phone head uses the weights of the model's configuration,
and each line changes one thing. The character head needs weights of its own: a coordinate search finds them on
`--tune N` other utterances of each table, for each of its lines apart; so it does for lines that say "tuned", which 0
leaves out.

Prints the share of reference words that the lexicon lacks, then per search the word error rate of each table and their
mean, and the real-time factor: processor seconds of the search alone, on one core, per second of audio, the least of
`--repeat` runs. Other load on the machine slows that down, too (caches, memory): for figures to publish, take a quiet
machine and `--repeat 3`.

`--alternatives 5 10` prints instead the word error rate of the best text among the 1, 5 and 10 likeliest (the
reference says which one that is), with the arcs that recombination leaves behind and without them.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from asr import lm
from asr.decoding.beam_search import BeamSearch
from asr.decoding.greedy import GreedySearch
from asr.decoding.hypothesis import Emissions
from asr.decoding.prefix_search import PrefixSearch
from asr.decoding.search_config import SearchConfig
from asr.errors import AsrError
from asr.lexicon import Lexicon
from asr.lm.model import NgramModel
from asr.recognizer import Recognizer
from asr.training import metrics
from asr.training.evaluate import emissions_of, load_utterances
from asr.training.manifest import Utterance, read_corpora
from asr.training.tune import Trial, tune
from asr.vocabulary import CharacterVocabulary, Vocabulary

TOGETHER = 32
BEAMS = (20, 50, 100, 300, 600)
TUNED = {"lm_weight": 0.6, "word_score": 1.0, "prior_weight": 0.3}  # first steps of the coordinate search
SCALES = (1.0, 0.5)
TUNING_BEAM = 30
LETTERS = SearchConfig(beam=100, tokens=20, threshold=15.0, lm_weight=1.2, word_score=0.5, blank_skip=0.999)


@dataclass(frozen=True)
class Table:
    """Utterances as every search hears them. ``emissions``: per utterance and head, (steps, units)."""

    name: str
    emissions: tuple[dict[str, Emissions], ...]
    references: tuple[tuple[str, ...], ...]
    seconds: float


@dataclass(frozen=True)
class Line:
    """One search: its ``head``, how it is made with a configuration, and that configuration. ``tuned``: the weights
    that a coordinate search may move first."""

    name: str
    head: str
    make: Callable[[SearchConfig], Any]
    config: SearchConfig
    tuned: tuple[str, ...] = ()
    lm_scale: float = 1.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="en")
    parser.add_argument("--tables", nargs="+", required=True)
    parser.add_argument("--limit", type=int, help="utterances of each table")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tune", type=int, default=15, help="other utterances of each table for the letters' weights")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--only", nargs="+", help="lines whose name contains one of these")
    parser.add_argument("--alternatives", nargs="+", type=int, help="measure the best of so many texts, nothing else")
    parser.add_argument("--out", type=Path, help="a file for the figures as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    recognizer = Recognizer.load(args.model)
    tables, held_out = [], []
    for name, utterances in read_corpora(args.tables).items():
        measured, other = draw(utterances, args.limit, 0 if args.alternatives else args.tune, random.Random(args.seed))
        tables.append(heard(recognizer, name, measured))
        held_out.append(heard(recognizer, name, other))
    lexicon = recognizer.folder.load_lexicon(with_g2p=False)
    for table in tables:
        words = [w for reference in table.references for w in reference]
        missing = sum(w not in lexicon for w in words)
        print(f"{table.name}: {len(table.references)} utterances, {table.seconds:.0f} s, {len(words)} words, "
              f"{missing} not in the lexicon ({100 * missing / max(1, len(words)):.2f} %)")  # fmt: skip
    if args.alternatives:
        return best_of(recognizer, tables, sorted({1, *args.alternatives}))
    print(header([t.name for t in tables]), flush=True)
    figures = []
    with tempfile.TemporaryDirectory() as temporary:
        for line in lines(recognizer, lexicon, Path(temporary)):
            if args.only and not any(part in line.name for part in args.only):
                continue
            if line.name.endswith("tuned") and not args.tune:
                continue
            config = tuned(line, held_out) if line.tuned and args.tune else line.config
            trial = measure(line, config, tables, args.repeat)
            print(row(line, trial, [t.name for t in tables]), flush=True)
            figures.append({"search": line.name, "word_error_rate": trial.rates, "real_time_factor": trial.speed,
                            "config": dataclasses.asdict(config)})  # fmt: skip
    if args.out:
        args.out.write_text(json.dumps({"tables": [t.name for t in tables], "lines": figures}, indent=1) + "\n")
    return 0


def draw(
    utterances: Sequence[Utterance], limit: int | None, tune: int, rng: random.Random
) -> tuple[list[Utterance], list[Utterance]]:
    """Utterances to measure on and, where some remain, others to tune on; each in the table's order."""
    order = rng.sample(range(len(utterances)), len(utterances))
    count = len(order) if limit is None else min(limit, len(order))
    other = order[count : count + tune] or order[:tune]
    return [utterances[i] for i in sorted(order[:count])], [utterances[i] for i in sorted(other)]


def heard(recognizer: Recognizer, name: str, utterances: Sequence[Utterance]) -> Table:
    """The emissions of all heads."""
    audio = load_utterances(utterances)
    emissions: list[dict[str, Emissions]] = [{}] * len(audio)
    for i, heads in emissions_of(recognizer, audio):
        emissions[i] = heads
    references = tuple(tuple(u.text.split()) for u in utterances)
    return Table(name, tuple(emissions), references, sum(map(len, audio)) / recognizer.sample_rate)


def lines(recognizer: Recognizer, lexicon: Lexicon, temporary: Path) -> Iterator[Line]:
    """All searches that the model's heads allow, from the simplest to its own."""
    folder, vocabularies = recognizer.folder, recognizer.vocabularies
    model = folder.load_language_model()
    letters = [n for n, v in vocabularies.items() if isinstance(v, CharacterVocabulary)]
    for head in letters:
        yield from letter_lines(head, vocabularies[head], lexicon, model, folder.load_log_priors(head))
    if recognizer.head in letters or not isinstance(recognizer.search, BeamSearch):
        return
    head, config, priors = recognizer.head, recognizer.search.config, folder.load_log_priors(recognizer.head)

    def search(recombine: bool = True) -> Cached:
        return Cached(lambda c: BeamSearch(vocabularies[head], lexicon, model, c, priors, recombine=recombine), priors)

    make = search()
    yield Line(f"{head}: no language model", head, make, config, lm_scale=0.0)
    alone = replace(config, word_score=-5.0)  # what keeps short words away where no language model does
    yield Line(f"{head}: no language model, tuned", head, make, alone, ("word_score", "prior_weight"), lm_scale=0.0)
    yield Line(f"{head}: no priors", head, make, replace(config, prior_weight=0.0))
    yield Line(f"{head}: no priors, tuned", head, make, replace(config, prior_weight=0.0), ("lm_weight", "word_score"))
    yield Line(f"{head}: no recombination", head, search(recombine=False), config)
    for beam in BEAMS:
        if beam != config.beam:
            yield Line(f"{head}: beam {beam}", head, make, replace(config, beam=beam))
    yield Line(f"{head}: flashlight", head, lambda c: flashlight(recognizer, lexicon, temporary, c), config)
    yield Line(f"{head}: default", head, make, config)


def letter_lines(
    head: str, units: Vocabulary, lexicon: Lexicon, model: NgramModel | None, priors: Emissions | None
) -> Iterator[Line]:
    """The searches over characters."""
    weights = tuple(n for n in TUNED if n != "prior_weight" or priors is not None)
    words = spellable(lexicon, units)
    yield Line(f"{head}: greedy", head, lambda c: GreedySearch(units), LETTERS)
    free = Cached(lambda c: PrefixSearch(units, None, c, priors), priors)
    yield Line(f"{head}: open vocabulary, no LM", head, free, replace(LETTERS, word_score=0.0))
    fused = Cached(lambda c: PrefixSearch(units, model, c, priors), priors)
    yield Line(f"{head}: open vocabulary", head, fused, LETTERS, weights)
    bound = Cached(lambda c: BeamSearch(units, words, model, c, priors), priors)
    yield Line(f"{head}: lexicon", head, bound, LETTERS, weights)


class Cached:
    """Makes searches that differ in their settings only: words, tree and language model are put in order once."""

    def __init__(self, make: Callable[[SearchConfig], Any], log_priors: Emissions | None = None) -> None:
        self._make, self._priors = make, log_priors
        self._first: Any = None

    def __call__(self, config: SearchConfig) -> Any:
        self._first = self._first or self._make(config)
        search = copy.copy(self._first)
        search.config = config
        search._shift = config.prior_weight * (0.0 if self._priors is None else self._priors.astype(np.float64))
        search._tokens = min(config.tokens, len(search.vocabulary) - 1)
        return search


def spellable(lexicon: Lexicon, vocabulary: Vocabulary) -> Lexicon:
    """The words that the letters can spell."""
    return lexicon.restrict(word for word in lexicon if all(c in vocabulary.index for c in word))


def flashlight(recognizer: Recognizer, lexicon: Lexicon, temporary: Path, config: SearchConfig) -> Any:
    """flashlight-text's decoder with the same settings; its language model as a KenLM file."""
    sys.path.insert(0, str(Path(__file__).parent))
    from flashlight_search import LexiconSearch

    folder, path = recognizer.folder, None
    if folder.language_model:
        path = temporary / "words.kenlm"
        lm.save(lm.load(folder.language_model), path)
    units = recognizer.vocabularies[recognizer.head]
    return LexiconSearch(units, lexicon, path, config, folder.load_log_priors(recognizer.head))


def tuned(line: Line, tables: Sequence[Table]) -> SearchConfig:
    """The weights that give a line the fewest errors on ``tables``, with a narrow beam; every trial goes to stderr."""
    names = [t.name for t in tables]

    def shown(config: SearchConfig) -> Trial:
        trial = measure(line, config, tables)
        print(f"tuning {row(line, trial, names)}", file=sys.stderr, flush=True)
        return trial

    steps = {name: TUNED[name] for name in line.tuned}
    best = tune(shown, replace(line.config, beam=TUNING_BEAM), steps, SCALES).config
    return replace(best, beam=line.config.beam)


def measure(line: Line, config: SearchConfig, tables: Sequence[Table], repeat: int = 1) -> Trial:
    """Word error rate of each table and the real-time factor, the least of ``repeat`` runs."""
    search, took, rates = line.make(config), [], []
    for turn in range(repeat):
        began = time.process_time()
        found = [recognise(search, [e[line.head] for e in table.emissions], line.lm_scale) for table in tables]
        took.append(time.process_time() - began)
        if not turn:
            rates = [word_error_rate(t.references, words) for t, words in zip(tables, found, strict=True)]
    return Trial(config, tuple(rates), min(took) / max(1e-9, sum(table.seconds for table in tables)))


def recognise(search: Any, emissions: Sequence[Emissions], lm_scale: float) -> list[list[str]]:
    """The words of every utterance, of which many are searched together where the search can."""
    found: list[list[str]] = [[]] * len(emissions)
    order = sorted(range(len(emissions)), key=lambda i: len(emissions[i]))
    for first in range(0, len(order), TOGETHER):
        batch = order[first : first + TOGETHER]
        if hasattr(search, "step_many"):
            states = [search.begin(None, lm_scale) for _ in batch]
            search.step_many([(emissions[i], state) for i, state in zip(batch, states, strict=True)])
        else:
            states = [search.step(emissions[i], search.begin()) for i in batch]
        for i, state in zip(batch, states, strict=True):
            found[i] = search.end(state).text.split()
    return found


def best_of(recognizer: Recognizer, tables: Sequence[Table], counts: Sequence[int]) -> int:
    """Print the word error rate of each table if of so many texts the best one could be chosen."""
    search = recognizer.search
    for table in tables:
        for name, remember in (("final hypotheses alone", False), ("with arcs", True)):
            states = [search.begin(remember=remember) for _ in table.emissions]
            for i in range(0, len(states), TOGETHER):
                piece = zip(table.emissions[i : i + TOGETHER], states[i : i + TOGETHER], strict=True)
                search.step_many([(e[recognizer.head], s) for e, s in piece])
            found = [[h.text.split() for h in search.alternatives(s, counts[-1])] for s in states]
            errors = [
                [metrics.edit_distance(r, w) for w in texts] for r, texts in zip(table.references, found, strict=True)
            ]
            words = sum(map(len, table.references))
            rates = [f"{n}: {100 * sum(min(e[:n]) for e in errors) / words:.1f}" for n in counts]
            print(f"{table.name:<18} {name:<24} {'  '.join(rates)}", flush=True)
    return 0


def word_error_rate(references: Sequence[Sequence[str]], found: Sequence[Sequence[str]]) -> float:
    """Errors per reference word."""
    errors = sum(metrics.edit_distance(r, w) for r, w in zip(references, found, strict=True))
    return errors / max(1, sum(map(len, references)))


def header(names: Sequence[str]) -> str:
    """Rates are in per cent; ``rtf``: seconds of search per second of audio."""
    return " ".join([f"{'search':<36}", *(f"{n:>{max(7, len(n))}}" for n in names), "   mean    rtf  weights"])


def row(line: Line, trial: Trial, names: Sequence[str]) -> str:
    """One line of the table; of the weights those of the language model, of priors, and per word."""
    c = trial.config
    rates = [f"{100 * rate:>{max(7, len(n))}.2f}" for rate, n in zip(trial.rates, names, strict=True)]
    weights = f"{c.lm_weight * line.lm_scale:g} {c.prior_weight:g} {c.word_score:g}"
    return " ".join([f"{line.name:<36}", *rates, f"{100 * trial.mean:>7.2f} {trial.speed:>6.4f}  {weights}"])


if __name__ == "__main__":
    try:
        sys.exit(main())
    except AsrError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
