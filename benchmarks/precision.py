"""Word error rates of the same utterances with the weights read in each precision.

OMP_NUM_THREADS=1 python benchmarks/precision.py --data dev.tsv... [--limit 60] [--model en] [--precisions fp16 int8]
"""

import argparse
from pathlib import Path

import torch

from asr import Recognizer
from asr.training.evaluate import load_utterances
from asr.training.manifest import read_manifest
from asr.training.metrics import edits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="en")
    parser.add_argument("--data", nargs="+", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=60, help="utterances of each table")
    parser.add_argument("--precisions", nargs="+", default=["fp16", "bf16", "int8"])
    args = parser.parse_args()
    torch.set_num_threads(1)
    for precision in args.precisions:
        recognizer = Recognizer.load(args.model, precision=precision)
        rates = []
        for table in args.data:
            utterances = read_manifest(table)
            utterances = utterances[:: max(1, len(utterances) // args.limit)][: args.limit]
            audio = list(load_utterances(utterances))
            heard = recognizer.transcribe_many(audio, sample_rate=16000, batch_size=32, endpointing=False)
            found = [edits(u.text, h.text) for u, h in zip(utterances, heard, strict=True)]
            rates.append(100 * sum(e.errors for e in found) / sum(e.total for e in found))
        print(
            precision, *(f"{table.stem} {rate:.2f} %" for table, rate in zip(args.data, rates, strict=True)), flush=True
        )


if __name__ == "__main__":
    main()
