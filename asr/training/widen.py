"""A wider model that computes about what a trained one does, to be trained on.

    python -m asr.training.widen MODEL --hidden 560 --out DIR

Some of the hidden units are there twice: both copies hear the same and share what the one said to the units after it,
in random parts, so that their gradients differ and they part (Chen et al. 2016, "Net2Net"). Not quite the same
function, since a layer norm's mean and variance count the doubled units twice.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from asr.checkpoint import copy_folder, find_model, read_config, update_config
from asr.errors import UsageError
from asr.training.deepen import weights_to_grow
from asr.training.tool import run_tool

_GIVE_HIDDEN = ("front_end.project.", "front_end.norm.", "recurrent.", "look_ahead.", "norm.")
_TAKE_HIDDEN = ("recurrent.", "look_ahead.", "heads.")
_SPREAD = 0.5  # of the parts of a doubled unit's weights, in standard deviations of the weights


def widen(model: str | Path, hidden: int, out: Path, seed: int = 1) -> None:
    """Write the model folder ``out``, which must not exist: ``model`` with ``hidden`` units in place of its own.

    ``seed``: of the choice of units and the parts. Search settings, times and confidences stay; they are about right.
    Raises UsageError for fewer units than there are or more than twice as many, or a model that is no streaming LSTM or
    has 8 bits; ModelError where ``out`` exists.
    """
    folder = find_model(model)
    shape = folder.config.model
    if not shape.hidden < hidden <= 2 * shape.hidden:
        raise UsageError(f"the model has {shape.hidden} hidden units: give more, and at most {2 * shape.hidden}")
    tensors = weights_to_grow(folder, "widened")
    generator = torch.Generator().manual_seed(seed)
    doubled = torch.randperm(shape.hidden, generator=generator)[: hidden - shape.hidden]
    weights = {n: _wider(n, t.float(), shape.hidden, doubled, generator).to(t.dtype) for n, t in tensors.items()}
    copy_folder(folder, out, weights)
    config = read_config(out)
    update_config(out, dataclasses.replace(config, model=dataclasses.replace(shape, hidden=hidden)))


def _wider(name: str, tensor: Tensor, size: int, doubled: Tensor, generator: torch.Generator) -> Tensor:
    """Rows of doubled units are there twice, what was one column becomes two that sum to it."""
    if name.startswith(_GIVE_HIDDEN):
        rows = tensor.unflatten(0, (-1, size))
        tensor = torch.cat([rows, rows[:, doubled]], dim=1).flatten(0, 1)
    if tensor.dim() < 2 or not name.startswith(_TAKE_HIDDEN):
        return tensor
    columns = tensor.unflatten(1, (-1, size))
    shared = columns[..., doubled]
    apart = torch.randn(shared.shape, generator=generator) * (_SPREAD * tensor.std())
    columns = torch.cat([columns, shared / 2 - apart], dim=2)
    columns[..., doubled] = shared / 2 + apart
    return columns.flatten(1, 2)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", help="model folder or name")
    parser.add_argument("--hidden", type=int, required=True, metavar="N", help="hidden units of the wider network")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(argv)
    return run_tool(lambda: widen(args.model, args.hidden, args.out, args.seed))


if __name__ == "__main__":
    sys.exit(main())
