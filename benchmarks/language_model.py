"""Language models beside each other: size, perplexity, word error rate, and what a recurrent one gives in the search.

    OMP_NUM_THREADS=1 python benchmarks/language_model.py --model en --dev dev-*.tsv [--lm a.lm b.lm.xz ...] \\
        [--limit 100] [--second recurrent.lm] [--perplexity-alone]

One table has a row for each file (the model's own first): bytes, words, n-grams, perplexity and share of unknown words
on every table of `--dev`. The next one has word error rates with each in the search, at the model's settings and with
weights of the language model around them. A word that the model's lexicon lacks is said as its grapheme-to-phoneme
model says it. With `--second`, a recurrent model (`asr/lm/recurrent_train.py`): perplexity of known words by it, by the
n-grams and by both, and word error rates with it in the search.
"""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from asr import lm
from asr.decoding.beam_search import BeamSearch
from asr.decoding.scorer import Scorer
from asr.lexicon import build_lexicon
from asr.lm import recurrent
from asr.lm.build import TextFile
from asr.lm.text import UNK_ID, Normalizer, encode
from asr.recognizer import Recognizer
from asr.training import metrics
from asr.training.tune import read_tables, recognise

WEIGHTS = (0.9, 1.0, 1.1)  # times the weight of the language model
SHARES = (0.25, 0.5, 0.75)
MARGINS = (2.0, 4.0, 6.0)


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
    second = recurrent.load(args.second) if args.second else None
    if second:
        words_of_both(lm.load(files[0]), second, texts)
    if args.perplexity_alone:
        return
    tables = list(read_tables(recognizer, [str(path) for path in args.dev], args.limit))
    print("| file | weight | " + " | ".join(texts) + " | mean | search per s |")
    for path in files:
        base = search_with(recognizer, lm.load(path))
        for factor in WEIGHTS:
            config = replace(base.config, lm_weight=base.config.lm_weight * factor)
            search = with_config(base, config)
            print(f"| {path.name} | {config.lm_weight:.2f} | {measured(search, tables)} |", flush=True)
    if second:
        second_in_search(recognizer, tables, second)


def perplexity(model, sentences):
    """Per token, and the share of unknown words."""
    corpus = encode(sentences, model.words)
    unknown = np.count_nonzero(corpus.ids == UNK_ID) / max(1, corpus.word_count)
    return f"{model.perplexity(corpus):.1f} ({100 * unknown:.2f} %)"


def search_with(recognizer, model, config=None, second=None):
    """The search over the words of a language model, said as the lexicon has it; ``second``: a recurrent model."""
    folder = recognizer.folder
    lexicon = folder.load_lexicon()
    words = [word for word in model.words[3:] if any(c.isalpha() for c in word)]
    lexicon = build_lexicon(words, lexicon, lexicon.g2p)
    vocabulary = recognizer.vocabularies[recognizer.head]
    priors = folder.load_log_priors(recognizer.head)
    return BeamSearch(vocabulary, lexicon, model, config or folder.config.search, priors, second=second)


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


def measured(search, tables):
    """Word error rates, their mean, and processor time of the search per second of audio, as cells of a table."""
    began = time.process_time()
    rates = [rate(table, recognise(search, table)) for table in tables]
    took = (time.process_time() - began) / sum(table.seconds for table in tables)
    return " | ".join([*(f"{value:.2f}" for value in [*rates, sum(rates) / len(rates)]), f"{took:.4f}"])


def second_in_search(recognizer, tables, second):
    """Word error rate and time with a recurrent model in the search, by its share and by how near the best a hypothesis
    has to be for its words to be judged."""
    model, config = recognizer.folder.load_language_model(), recognizer.folder.config.search
    print("| share | margin | " + " | ".join(t.name for t in tables) + " | mean | search per s |")
    print(f"| 0.0 | | {measured(search_with(recognizer, model), tables)} |", flush=True)
    asked = search_with(recognizer, model, replace(config, second_share=SHARES[1]), second)
    for share, margin in dict.fromkeys([*((s, MARGINS[1]) for s in SHARES), *((SHARES[1], m) for m in MARGINS)]):
        search = with_config(asked, replace(config, second_share=share, second_margin=margin))
        print(f"| {share} | {margin:g} | {measured(search, tables)} |", flush=True)


def words_of_both(first, second, texts):
    """Perplexity of the words that the n-gram model knows, after those before: by it, by the recurrent model, and by
    the mean of both probabilities."""
    scorer, ids = Scorer(first, first.words), first.word_ids
    print("| table | words | n-grams | recurrent | mean of both |")
    for name, sentences in texts.items():
        by_first, by_second = [], []
        for sentence in sentences:
            words, state, context = sentence.split(), second.begin(), np.array([scorer.begin])
            for word in words:
                log_prob, context = scorer.score(context, np.array([ids.get(word, UNK_ID)]))
                own, state = second.score([word], state)[0], second.advance(word, state)
                if word in ids:
                    by_first.append(log_prob[0])
                    by_second.append(own)
        logs = np.array([by_first, by_second])
        each = [*logs, np.log10((10**logs).mean(axis=0))]
        cells = " | ".join(f"{10 ** -log.mean():.0f}" for log in each)
        print(f"| {name} | {len(by_first)} | {cells} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
