"""A model whose weights are the mean of several models' (Wortsman et al. 2022, "Model soups").

    python -m asr.training.average MODEL MODEL... --weights 0.35 0.65 --out DIR

Where one model was trained on from another, what lies between the two is often better than both: the later one has
gone far in a few directions and noisily in many. Everything but the weights is the last model's; tune and calibrate the
result anew.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from asr.checkpoint import WEIGHTS, copy_folder, find_model
from asr.errors import UsageError
from asr.training.tool import run_tool


def average(models: Sequence[str | Path], weights: Sequence[float], out: Path) -> None:
    """Write the model folder ``out``, which must not exist. ``weights`` are divided by their sum.

    Raises UsageError for models of different shape or units and of 8 bits, and for weights that do not fit them;
    ModelError where ``out`` exists.
    """
    from safetensors.torch import load_file

    if len(models) < 2 or len(weights) != len(models) or min(weights) < 0 or sum(weights) <= 0:
        raise UsageError("give at least two models, and a weight for each: none negative, not all zero")
    folders = [find_model(model) for model in models]
    last = folders[-1]
    loaded = [load_file(folder.path / WEIGHTS) for folder in folders]
    for folder, tensors in zip(folders, loaded, strict=True):
        if not all(t.is_floating_point() for t in tensors.values()):
            raise UsageError(f"{folder.path} has weights of 8 bits: give the model that it was made from")
        same = {k: t.shape for k, t in tensors.items()} == {k: t.shape for k, t in loaded[-1].items()}
        if not same or folder.config.model.lookahead != last.config.model.lookahead:
            raise UsageError(f"{folder.path} is of another shape than {last.path}: only like models have a mean")
        for head, units in last.load_vocabularies().items():
            if folder.load_vocabularies()[head].to_dict() != units.to_dict():
                raise UsageError(f"{folder.path} has other units than {last.path}: only like models have a mean")
    shares = [weight / sum(weights) for weight in weights]
    mean: dict[str, Tensor] = {}
    for name, tensor in loaded[-1].items():
        total = sum((t[name].double() * share for t, share in zip(loaded, shares, strict=True)), tensor.double() * 0)
        mean[name] = total.to(tensor.dtype)
    copy_folder(last, out, mean)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL", help="model folders or names; files are the last one's")
    parser.add_argument("--weights", nargs="+", type=float, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    return run_tool(lambda: average(args.models, args.weights, args.out))


if __name__ == "__main__":
    sys.exit(main())
