"""``asr lm tune``: the weights of the search that give the fewest word errors on held-out tables.

The network runs once over every utterance; then only the search is repeated, with other weights. Coordinate search:
one weight after the other is moved as long as that helps, with steps that become smaller.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TextIO

import numpy as np

from asr.decoding.beam_search import BeamSearch
from asr.decoding.endpoint import Endpointer
from asr.decoding.hypothesis import Emissions
from asr.decoding.search_config import SearchConfig
from asr.errors import ModelError
from asr.recognizer import Recognizer
from asr.training import metrics
from asr.training.evaluate import emissions_of, load_utterances
from asr.training.manifest import read_corpora

STEPS = {"lm_weight": 0.4, "prior_weight": 0.2, "word_score": 0.6, "second_share": 0.2}
"""First step of each weight; the order is that in which they are moved."""
SCALES = (1.0, 0.5, 0.25)
"""What the steps are multiplied with, round by round."""
BEAMS = (0.25, 0.5, 2.0)
THRESHOLDS = (0.6, 0.8, 1.25)
_RANGES = {"lm_weight": (0.0, np.inf), "prior_weight": (0.0, np.inf), "second_share": (0.0, 1.0)}
_TOGETHER = 32  # segments in a step of the search


@dataclass(frozen=True)
class Table:
    """A held-out table as the search hears it. ``segments``: per utterance, (steps, units) emissions of each segment;
    ``references``: per utterance, its words; ``seconds``: of audio."""

    name: str
    segments: tuple[tuple[Emissions, ...], ...]
    references: tuple[tuple[str, ...], ...]
    seconds: float


@dataclass(frozen=True)
class Trial:
    """What a setting gives. ``rates``: word error rate per table; ``speed``: seconds of search per second of audio."""

    config: SearchConfig
    rates: tuple[float, ...]
    speed: float

    @property
    def mean(self) -> float:
        """Mean word error rate: every table has the same say, whatever its size."""
        return sum(self.rates) / len(self.rates)


Measure = Callable[[SearchConfig], Trial]


def main(
    model: str,
    dev: Sequence[str],
    limit: int | None = None,
    out: Path | None = None,
    write: bool = False,
    device: str = "cpu",
    file: TextIO | None = None,
) -> int:
    """Tune a model's search on every table of ``dev``, print all that was tried and the best setting as JSON.

    limit: only the first so many utterances of each table. out: a file for that JSON, too.
    write: put the best setting into the model folder's ``config.json``.

    Raises ModelError for a model without a lexicon, and what reading the model and the tables raises.
    """
    file = file or sys.stdout
    recognizer = Recognizer.load(model, device=device)
    searches = SearchFactory(recognizer)
    tables = list(read_tables(recognizer, dev, limit))
    names = [table.name for table in tables]
    print(header(names), file=file)

    def shown(config: SearchConfig) -> Trial:
        trial = measure(searches(config), tables)
        print(row(trial, names), file=file, flush=True)
        return trial

    best = tune(shown, recognizer.folder.config.search, searches.steps())
    print("what the beam and the threshold cost and give:", file=file)
    for config in neighbours(best.config):
        shown(config)
    text = json.dumps({"search": asdict(best.config)}, indent=1)
    print(f"best: word error rate {100 * best.mean:.2f} %\n{text}", file=file)
    if out:
        out.write_text(text + "\n", encoding="utf-8")
    if write:
        recognizer.folder.update(search=best.config)
    return 0


class SearchFactory:
    """Searches of one recogniser's words with other settings; ``lexicon``, ``language_model``, the recurrent one
    (``second``) and the ``log_priors`` of the ``vocabulary`` are read once."""

    def __init__(self, recognizer: Recognizer) -> None:
        folder = recognizer.folder
        self.vocabulary = recognizer.vocabularies[recognizer.head]
        self.lexicon = folder.load_lexicon(with_g2p=False)
        if not len(self.lexicon):
            raise ModelError(f"{folder.path} has no lexicon: without one there is no search to tune")
        self.language_model, self.second = folder.load_language_model(), folder.load_recurrent()
        self.log_priors = folder.load_log_priors(recognizer.head)

    def __call__(self, config: SearchConfig) -> BeamSearch:
        """The search with these settings."""
        return BeamSearch(
            self.vocabulary, self.lexicon, self.language_model, config, self.log_priors, second=self.second
        )

    def steps(self) -> dict[str, float]:
        """:data:`STEPS` of the weights that the model has a use for."""
        useless = {
            "lm_weight": self.language_model is None,
            "prior_weight": self.log_priors is None,
            "second_share": self.language_model is None or self.second is None,
        }
        return {name: step for name, step in STEPS.items() if not useless.get(name)}


def read_tables(recognizer: Recognizer, dev: Sequence[str], limit: int | None) -> Iterator[Table]:
    """The emissions of every table's utterances, cut into segments; see :func:`cut_segments`."""
    endpointer = Endpointer(recognizer.folder.config.endpoint)
    for name, utterances in read_corpora(dev).items():
        audio = load_utterances(utterances[:limit])
        segments: list[tuple[Emissions, ...]] = [()] * len(audio)
        for i, emissions in emissions_of(recognizer, audio):
            segments[i] = tuple(cut_segments(endpointer, emissions[recognizer.head]))
        references = tuple(tuple(u.text.split()) for u in utterances[:limit])
        yield Table(name, tuple(segments), references, sum(map(len, audio)) / recognizer.sample_rate)


def cut_segments(endpointer: Endpointer, emissions: Emissions) -> Iterator[Emissions]:
    """The segments of a whole utterance; ``emissions``: (steps, units).

    As a stream cuts, but for what depends on words, which are not known yet: every pause counts as one after words,
    none as one after words that look complete, and the word under a cut in speech stays where it is.
    """
    state, pieces = endpointer.begin(), []
    while len(emissions):
        cut, state = endpointer.step(emissions, state)
        pieces.append(emissions[cut.start : cut.stop])
        emissions = emissions[cut.stop :]
        if (cut.closes and cut.when != "final") or not len(emissions):
            segment = np.concatenate(pieces)
            if len(segment):
                yield segment
            state, pieces = endpointer.begin(), []


def measure(search: BeamSearch, tables: Sequence[Table]) -> Trial:
    """Word error rate of each table with a search, and how long it takes."""
    began = time.perf_counter()
    texts = [recognise(search, table) for table in tables]
    took = time.perf_counter() - began
    rates = []
    for table, words in zip(tables, texts, strict=True):
        errors = sum(metrics.edit_distance(r, w) for r, w in zip(table.references, words, strict=True))
        rates.append(errors / max(1, sum(map(len, table.references))))
    return Trial(search.config, tuple(rates), took / max(1e-9, sum(table.seconds for table in tables)))


def recognise(search: BeamSearch, table: Table) -> list[list[str]]:
    """The words of every utterance."""
    pieces = [(i, k) for i, segments in enumerate(table.segments) for k in range(len(segments))]
    pieces.sort(key=lambda piece: len(table.segments[piece[0]][piece[1]]))
    found: dict[tuple[int, int], list[str]] = {}
    for first in range(0, len(pieces), _TOGETHER):
        batch = pieces[first : first + _TOGETHER]
        states = [search.begin() for _ in batch]
        search.step_many([(table.segments[i][k], state) for (i, k), state in zip(batch, states, strict=True)])
        for piece, state in zip(batch, states, strict=True):
            found[piece] = [word.text for word in search.end(state).words]
    return [[w for k in range(len(segments)) for w in found[i, k]] for i, segments in enumerate(table.segments)]


def tune(measure: Measure, start: SearchConfig, steps: dict[str, float], scales: Sequence[float] = SCALES) -> Trial:
    """The best setting that coordinate search finds from ``start``; no setting is measured twice.

    ``steps``: of each weight to move, for the first of the ``scales``.
    """
    tried: dict[SearchConfig, Trial] = {}

    def at(config: SearchConfig) -> Trial:
        if config not in tried:
            tried[config] = measure(config)
        return tried[config]

    best = at(start)
    for scale in scales:
        moved = True
        while moved:
            before = best
            for name, step in steps.items():
                best = _line_search(at, best, name, scale * step)
            moved = best is not before and len(steps) > 1
    return best


def _line_search(at: Measure, best: Trial, name: str, step: float) -> Trial:
    """Move one weight up, or else down, as long as that gives fewer errors."""
    for way in (step, -step):
        first = best
        while (config := _moved(best.config, name, way)) != best.config and (trial := at(config)).mean < best.mean:
            best = trial
        if best is not first:
            break
    return best


def _moved(config: SearchConfig, name: str, step: float) -> SearchConfig:
    value = getattr(config, name) + step
    least, most = _RANGES.get(name, (-np.inf, np.inf))
    return replace(config, **{name: round(min(most, max(least, value)), 4)})


def neighbours(config: SearchConfig) -> Iterator[SearchConfig]:
    """The setting with other beams and thresholds."""
    for factor in BEAMS:
        yield replace(config, beam=max(1, round(config.beam * factor)))
    for factor in THRESHOLDS:
        yield replace(config, threshold=round(config.threshold * factor, 2))


def header(names: Sequence[str]) -> str:
    """The head of the columns of :func:`row`; rates are in per cent."""
    settings = (
        f"{'lm_weight':>9} {'prior_weight':>12} {'word_score':>10} {'second_share':>12} {'beam':>5} {'threshold':>9}"
    )
    return " ".join([settings, *(f"{name:>{_width(name)}}" for name in names), "  mean  search"])


def row(trial: Trial, names: Sequence[str]) -> str:
    """One setting and what it gives on the tables; ``search`` is seconds of search per second of audio."""
    c = trial.config
    settings = f"{c.lm_weight:>9g} {c.prior_weight:>12g} {c.word_score:>10g} {c.second_share:>12g}"
    settings = f"{settings} {c.beam:>5} {c.threshold:>9g}"
    rates = [f"{100 * rate:>{_width(name)}.2f}" for rate, name in zip(trial.rates, names, strict=True)]
    return " ".join([settings, *rates, f"{100 * trial.mean:>6.2f} {trial.speed:>7.4f}"])


def _width(name: str) -> int:
    return max(6, len(name))
