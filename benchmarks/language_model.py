"""Language models beside each other: size, perplexity, word error rate, and what a second look at the n-best gives.

    OMP_NUM_THREADS=1 python benchmarks/language_model.py --model en --dev dev-*.tsv [--lm a.lm b.lm.xz ...] \\
        [--limit 100] [--second large.lm] [--perplexity-alone]

One table has a row for each file (the model's own first): bytes, words, n-grams, perplexity and share of unknown words
on every table of `--dev`. The next one has word error rates with each in the search, at the model's settings and with
weights of the language model around them. A word that the model's lexicon lacks is said as its grapheme-to-phoneme
model says it. With `--second` (an n-gram or a recurrent model), the likeliest texts of the first search are judged
again: the rate by how much of the weight goes to the second model, the lowest rate that the texts allow (`oracle`), and
how long the second model takes for a segment.
"""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from asr import lm
from asr.decoding.beam_search import BeamSearch
from asr.errors import LanguageModelError
from asr.lexicon import build_lexicon
from asr.lm import recurrent
from asr.lm.build import TextFile
from asr.lm.text import BOS_ID, UNK_ID, Normalizer, encode
from asr.recognizer import Recognizer
from asr.training import metrics
from asr.training.tune import read_tables, recognise

WEIGHTS = (0.9, 1.0, 1.1)  # times the weight of the language model
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
DEPTHS = (1, 5, 20, 50)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="en")
    parser.add_argument("--dev", nargs="+", required=True, type=Path)
    parser.add_argument("--lm", nargs="*", default=[], type=Path)
    parser.add_argument("--limit", type=int, help="utterances of each table")
    parser.add_argument("--second", type=Path)
    parser.add_argument("--perplexity-alone", action="store_true")
    args = parser.parse_args()
    recognizer = Recognizer.load(args.model, threads=1)
    files = [recognizer.folder.language_model, *args.lm]
    normalizer = Normalizer()
    texts = {path.stem: list(TextFile.parse(path).sentences(normalizer)) for path in args.dev}
    print("| file | bytes | words | n-grams | " + " | ".join(texts) + " |")
    for path in files:
        model = lm.load(path)
        cells = " | ".join(perplexity(model, sentences) for sentences in texts.values())
        ngrams = " + ".join(f"{count:,}" for count in model.counts[1:])
        print(f"| {path.name} | {path.stat().st_size:,} | {len(model.words) - 3:,} | {ngrams} | {cells} |", flush=True)
        del model
    if args.perplexity_alone:
        return
    tables = list(read_tables(recognizer, [str(path) for path in args.dev], args.limit))
    print("| file | weight | " + " | ".join(texts) + " | mean | search per s |")
    for path in files:
        base = search_with(recognizer, lm.load(path))
        for factor in WEIGHTS:
            config = replace(base.config, lm_weight=base.config.lm_weight * factor)
            search = with_config(base, config)
            began = time.process_time()
            rates = [rate(table, recognise(search, table)) for table in tables]
            took = (time.process_time() - began) / sum(table.seconds for table in tables)
            print(f"| {path.name} | {config.lm_weight:.2f} | {cells_of(rates)} | {took:.4f} |", flush=True)
    if args.second:
        second_pass(recognizer, tables, args.second)


def perplexity(model, sentences):
    """Per token, and the share of unknown words."""
    corpus = encode(sentences, model.words)
    unknown = np.count_nonzero(corpus.ids == UNK_ID) / max(1, corpus.word_count)
    return f"{model.perplexity(corpus):.1f} ({100 * unknown:.2f} %)"


def search_with(recognizer, model):
    """The search over the language model's words, said as the lexicon has it."""
    folder = recognizer.folder
    lexicon = folder.load_lexicon()
    words = [word for word in model.words[3:] if any(c.isalpha() for c in word)]
    lexicon = build_lexicon(words, lexicon, lexicon.g2p)
    vocabulary = recognizer.vocabularies[recognizer.head]
    priors = folder.load_log_priors(recognizer.head)
    return BeamSearch(vocabulary, lexicon, model, folder.config.search, priors)


def with_config(search, config):
    """The same search with other weights; the arrays are shared."""
    other = object.__new__(type(search))
    other.__dict__.update(search.__dict__)
    other.config = config
    return other


def rate(table, found):
    """Word error rate in per cent."""
    errors = sum(metrics.edit_distance(list(r), w) for r, w in zip(table.references, found, strict=True))
    return 100 * errors / max(1, sum(map(len, table.references)))


def cells_of(rates):
    """The rates and their mean, as cells of a table."""
    return " | ".join(f"{value:.2f}" for value in [*rates, sum(rates) / len(rates)])


class Ngrams:
    """An n-gram model, asked as a recurrent one is."""

    def __init__(self, model):
        self.model = model

    def score(self, texts, state=None, end=True):
        """log10 probability of each text."""
        corpus = encode(texts, self.model.words)
        logs = np.nan_to_num(self.model.token_log_probs(corpus.ids))
        return np.bincount(np.cumsum(corpus.ids == BOS_ID) - 1, logs, minlength=len(texts))


def second_pass(recognizer, tables, path):
    """The n-best of every segment by two language models."""
    try:
        second = recurrent.load(path)
    except LanguageModelError:
        second = Ngrams(lm.load(path))
    first = Ngrams(recognizer.folder.load_language_model())
    search, weight = recognizer.search, recognizer.search.config.lm_weight
    depth, chosen, took, count = max(DEPTHS), {}, [], 0
    for t, table in enumerate(tables):
        for i, (segments, reference) in enumerate(zip(table.segments, table.references, strict=True)):
            found = [nbest(search, segment, depth) for segment in segments]
            for texts, scores in found:
                known = first.score(texts)
                began = time.process_time()
                other = second.score(texts, end=True)
                took.append(time.process_time() - began)
                for share in SHARES:
                    for n in DEPTHS:
                        order = recurrent.rescore(texts[:n], scores[:n], known[:n], other[:n], weight, share)
                        chosen.setdefault((share, n), {}).setdefault(t, {}).setdefault(i, []).extend(
                            texts[int(np.argmax(order))].split()
                        )
            if len(found) == 1:
                count += 1
                for n in DEPTHS:
                    best = min(found[0][0][:n], key=lambda text: metrics.edit_distance(list(reference), text.split()))
                    chosen.setdefault(("oracle", n), {}).setdefault(t, {})[i] = best.split()
    print("| share of the second model | likeliest texts | " + " | ".join(t.name for t in tables) + " | mean |")
    for (share, n), by_table in chosen.items():
        rates = [some_rate(table, by_table.get(t, {})) for t, table in enumerate(tables)]
        print(f"| {share} | {n} | {cells_of(rates)} |")
    took_ms = 1000 * np.array(took)
    median, most = np.median(took_ms), np.quantile(took_ms, 0.95)
    print(f"second model: median {median:.1f} ms of processor time a segment, 95 % {most:.1f} ms, {depth} texts")
    print(f"oracle: {count} utterances of one segment")


def nbest(search, emissions, depth):
    """The likeliest texts of a segment and their scores."""
    found = search.alternatives(search.step(emissions, search.begin(remember=True)), depth)
    return [h.text for h in found], [h.score for h in found]


def some_rate(table, words):
    """Word error rate over the utterances of ``words`` alone."""
    errors = sum(metrics.edit_distance(list(table.references[i]), w) for i, w in words.items())
    return 100 * errors / max(1, sum(len(table.references[i]) for i in words))


if __name__ == "__main__":
    sys.exit(main())
