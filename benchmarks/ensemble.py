"""Word error rates of several networks together: the mean of their emissions, searched as the first model searches.

    OMP_NUM_THREADS=1 python benchmarks/ensemble.py --models en runs/wide/model --data dev-*.tsv [--limit N]

What is there to learn from them for one of them (`distillation`, `more_teachers` of a training configuration)? Prints
the first model alone, then it and the second, and so on. Emissions are means of log-probabilities, made distributions
again. Utterances are cut into segments as `asr lm tune` cuts them.
"""

import argparse
import dataclasses

import numpy as np
import torch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", required=True, metavar="MODEL")
    parser.add_argument("--data", nargs="+", required=True, metavar="MANIFEST")
    parser.add_argument("--limit", type=int, metavar="N", help="utterances per table")
    args = parser.parse_args()

    from asr.decoding.endpoint import Endpointer
    from asr.recognizer import Recognizer
    from asr.training.evaluate import emissions_of, load_utterances
    from asr.training.manifest import read_corpora
    from asr.training.tune import SearchFactory, Table, cut_segments, measure

    recognizers = [Recognizer.load(model) for model in args.models]
    first = recognizers[0]
    search, endpointer = SearchFactory(first), Endpointer(first.folder.config.endpoint)
    tables, heard = [], []
    for name, utterances in read_corpora(args.data).items():
        audio = load_utterances(utterances[: args.limit])
        references = tuple(tuple(u.text.split()) for u in utterances[: args.limit])
        tables.append(Table(name, (), references, sum(map(len, audio)) / first.sample_rate))
        heard.append([{i: e[first.head] for i, e in emissions_of(r, audio)} for r in recognizers])
    print(f"| models | {' | '.join(table.name for table in tables)} | mean |")
    print("|---|" + "---|" * (len(tables) + 1))
    for count in range(1, len(recognizers) + 1):
        together = []
        for table, of_models in zip(tables, heard, strict=True):
            means = [mean([m[i] for m in of_models[:count]]) for i in range(len(table.references))]
            segments = tuple(tuple(cut_segments(endpointer, emissions)) for emissions in means)
            together.append(dataclasses.replace(table, segments=segments))
        trial = measure(search(first.folder.config.search), together)
        rates = " | ".join(f"{100 * rate:.2f}" for rate in (*trial.rates, trial.mean))
        print(f"| {', '.join(args.models[:count])} | {rates} |", flush=True)


def mean(emissions):
    """(steps, units) log-probabilities of all together."""
    return torch.from_numpy(np.mean(emissions, axis=0)).log_softmax(1).numpy()


if __name__ == "__main__":
    main()
