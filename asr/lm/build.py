"""From texts to a language model file: what ``asr lm build`` does."""

from __future__ import annotations

import csv
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from asr.errors import LanguageModelError, UsageError
from asr.lm.arpa import ArpaSize, read_arpa, write_arpa
from asr.lm.compact import CompactSize, is_compact, load_compact, save_compact
from asr.lm.estimate import estimate
from asr.lm.kenlm import KenlmSize, is_binary, load_binary, save_binary
from asr.lm.mix import mix, tune_weights
from asr.lm.model import NgramModel
from asr.lm.prune import FileSize, prune
from asr.lm.text import SPECIAL, UNK_ID, Corpus, Normalizer, cannot_read, encode, read_lines, select_vocabulary

DEFAULT_ORDER = 3
DEFAULT_VOCABULARY_SIZE = 60_000
_LINES = re.compile(r"(.+):(\d+)-(\d+)")


@dataclass(frozen=True)
class TextFile:
    """A text file, or some of its lines: ``first`` to ``last``, counted from one, both included.

    Plain text has a sentence a line; of a table (.tsv) the column ``text`` is read. Either may be compressed.
    """

    path: Path
    first: int = 1
    last: int | None = None

    @classmethod
    def parse(cls, spec: str | Path) -> TextFile:
        """From ``PATH`` or ``PATH:FIRST-LAST``. Raises :class:`LanguageModelError` for an empty range of lines."""
        match = _LINES.fullmatch(str(spec))
        if not match or Path(spec).exists():
            return cls(Path(spec))
        result = cls(Path(match[1]), int(match[2]), int(match[3]))
        if not 1 <= result.first <= (result.last or 0):
            raise LanguageModelError(f"'{spec}' names no lines: give the first and the last, counted from 1")
        return result

    def sentences(self, normalizer: Normalizer) -> Iterator[str]:
        """Normalised sentences; those without words are left out."""
        lines = read_lines(self.path)
        if ".tsv" in self.path.suffixes:
            table = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
            if "text" not in (table.fieldnames or ()):
                raise LanguageModelError(f"the table {self.path} has no column 'text'")
            lines = (row["text"] or "" for row in table)
        for line in islice(lines, self.first - 1, self.last):
            sentence = normalizer(line)
            if sentence:
                yield sentence


Source = str | Path | Sequence[str | Path]
"""One component of a mixture: a file (see :meth:`TextFile.parse`), or several that are taken together."""


@dataclass(frozen=True)
class DevResult:
    """How a model does on one held-out text: perplexity per token, and share of its words outside the vocabulary."""

    text: str
    perplexity: float
    oov_rate: float


@dataclass(frozen=True)
class BuildReport:
    """What was built. ``weights`` follow the texts; ``counts`` are n-grams per order, before and after pruning."""

    path: Path
    bytes: int
    words: int
    weights: tuple[float, ...]
    full_counts: tuple[int, ...]
    counts: tuple[int, ...]
    dev: tuple[DevResult, ...]
    seconds: float


def build(
    texts: Sequence[Source],
    output: str | Path,
    *,
    order: int = DEFAULT_ORDER,
    vocabulary_size: int = DEFAULT_VOCABULARY_SIZE,
    vocabulary: str | Path | Sequence[str] | None = None,
    min_count: Sequence[int] | None = None,
    prune_ngrams: int | None = None,
    max_bytes: int | None = None,
    dev: Source | None = None,
    weights: Sequence[float] | None = None,
    progress: bool = False,
) -> BuildReport:
    """Estimate a language model and write it to ``output``, in the format that its name says (see :func:`save`).

    texts: one or several; each becomes a model by itself, and these are mixed. A list within the list is one text.
    vocabulary_size: that many words, most frequent over the texts as they are weighted.
    vocabulary: these words instead, or a file with one a line.
    min_count: see :func:`asr.lm.estimate`.
    prune_ngrams, max_bytes: prune by relative entropy to so many n-grams above single words, or to that file size.
    dev: held-out texts; mixing weights are tuned on them (each counts the same), and the result is measured on them.
    weights: mixing weights; not both these and tuned ones: they take precedence. Without either, texts weigh
        by their number of words.
    progress: say on standard error what is being done.

    Raises :class:`LanguageModelError` for texts that cannot be read or are empty, and options that do not fit.
    """
    say = _Progress(progress)
    if not texts:
        raise LanguageModelError("no text given: a language model is estimated from at least one")
    if weights is not None and len(weights) != len(texts):
        raise LanguageModelError(f"{len(texts)} texts need as many weights, not {len(weights)}")
    if prune_ngrams is not None and max_bytes is not None:
        raise LanguageModelError("give the number of n-grams or the size to prune to, not both")
    size_of = file_size(output) if max_bytes is not None else None
    normalizer = Normalizer()
    dev_texts = {str(spec): list(TextFile.parse(spec).sentences(normalizer)) for spec in _files(dev or ())}
    corpora: list[Corpus] = []
    for text in texts:
        say(f"reading {_name(text)}")
        corpora.append(encode(s for spec in _files(text) for s in TextFile.parse(spec).sentences(normalizer)))
        if not corpora[-1].word_count:
            raise LanguageModelError(f"the text {_name(text)} holds no words")
    del normalizer

    shares = list(weights) if weights is not None else [float(c.word_count) for c in corpora]
    if vocabulary is not None:
        words = _given_words(vocabulary)
    else:
        if dev_texts and weights is None and len(corpora) > 1:
            shares = tune_weights([estimate(c, 1) for c in corpora], list(dev_texts.values()))
        words = select_vocabulary(corpora, vocabulary_size, shares)
    models: list[NgramModel] = []
    for text, corpus in zip(texts, corpora, strict=True):
        models.append(estimate(corpus, order, words, min_count, say.about(_name(text))))
    del corpora
    if dev_texts and weights is None and len(models) > 1:
        say("tuning the mixing weights")
        shares = tune_weights(models, list(dev_texts.values()))
    total = sum(shares)
    shares = [share / total for share in shares]
    if len(models) > 1:
        say("mixing")
    model = mix(models, shares)
    del models
    full_counts = model.counts
    if prune_ngrams is not None or max_bytes is not None:
        say("pruning")
        model = prune(model, max_ngrams=prune_ngrams, max_bytes=max_bytes, file_size=size_of)
    say(f"writing {output}")
    size = save(model, output)
    measured = load(output) if dev_texts else model  # as it lies on disk, rounding included
    results = tuple(_measured(measured, name, sentences) for name, sentences in dev_texts.items())
    return BuildReport(Path(output), size, len(words), tuple(shares), full_counts, model.counts, results, say.seconds())


def save(model: NgramModel, path: str | Path, bits: int | None = None) -> int:
    """Write a model as its name says: ``.arpa`` (also compressed: ``.arpa.gz``, ``.arpa.xz``, ``.arpa.bz2``) as ARPA,
    ``.kenlm`` or ``.bin`` as a KenLM binary, everything else as a compact file. ``bits``: of each value of a compact
    file. Returns the bytes written. Raises UsageError for ``bits`` of another file."""
    kind = _kind(path)
    if bits is not None:
        if kind != "compact":
            raise UsageError(f"{path} is no compact file: only its values can have another number of bits")
        return save_compact(model, path, bits)
    if kind == "arpa":
        write_arpa(model, path)
        return Path(path).stat().st_size
    return save_binary(model, path) if kind == "kenlm" else save_compact(model, path)


def file_size(path: str | Path) -> FileSize:
    """How the bytes of the file that :func:`save` writes to ``path`` are counted.

    Raises :class:`LanguageModelError` for compressed ARPA files, whose size is known only when they are written.
    """
    kind = _kind(path)
    if kind == "arpa" and Path(path).suffix != ".arpa":
        raise LanguageModelError(f"the size of a compressed file ({path}) cannot be given: give the number of n-grams")
    sizes: dict[str, FileSize] = {"arpa": ArpaSize(), "kenlm": KenlmSize(), "compact": CompactSize()}
    return sizes[kind]


def load(path: str | Path) -> NgramModel:
    """Read a model, compact, KenLM binary or ARPA, whichever the file holds. Raises :class:`LanguageModelError`."""
    try:
        if is_compact(path):
            return load_compact(path)
        if is_binary(path):
            return load_binary(path)
    except OSError as error:
        raise cannot_read(path, error) from None
    return read_arpa(path)


def _kind(path: str | Path) -> str:
    suffixes = Path(path).suffixes
    if ".arpa" in suffixes:
        return "arpa"
    return "kenlm" if suffixes[-1:] in ([".kenlm"], [".bin"]) else "compact"


class _Progress:
    def __init__(self, enabled: bool) -> None:
        self._enabled, self._start = enabled, time.monotonic()

    def seconds(self) -> float:
        return time.monotonic() - self._start

    def __call__(self, what: str) -> None:
        if self._enabled:
            print(f"[{self.seconds():6.1f} s] {what}", file=sys.stderr, flush=True)

    def about(self, name: str) -> Callable[[str], None]:
        return lambda what: self(f"{name}: {what}")


def _files(source: Source) -> list[str | Path]:
    return [source] if isinstance(source, str | Path) else list(source)


def _name(source: Source) -> str:
    names = [Path(spec).name for spec in _files(source)]
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _given_words(vocabulary: str | Path | Sequence[str]) -> tuple[str, ...]:
    found = read_lines(vocabulary) if isinstance(vocabulary, str | Path) else vocabulary
    words = tuple(word for line in found if (word := line.strip()) and word not in SPECIAL)
    if not words:
        raise LanguageModelError("the vocabulary holds no words")
    return words


def _measured(model: NgramModel, name: str, sentences: Sequence[str]) -> DevResult:
    corpus = encode(sentences, model.words)
    unknown = int(np.count_nonzero(corpus.ids == UNK_ID))
    return DevResult(name, model.perplexity(corpus), unknown / max(1, corpus.word_count))
