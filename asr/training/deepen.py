"""A deeper model that computes what a trained one does, to be trained on.

    python -m asr.training.deepen MODEL --after 2 4 --out DIR

New recurrent layers are put in behind the ones named (counted from 1, a look-ahead layer there included). Layers are
residual, so one whose cell never takes anything in gives nothing and changes nothing: its candidate gate starts at
zero, its other gates as in a fresh network, and the candidate's gradient is not zero. (The idea of growing a network
without losing what it knows is of Chen et al. 2016, "Net2Net"; the zero start of residual branches of Goyal et al.
2017, "Accurate, large minibatch SGD".)
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from asr.checkpoint import WEIGHTS, ModelFolder, Setting, copy_folder, find_model, read_config, update_config
from asr.errors import UsageError
from asr.model import ModelConfig, RecurrentLayer
from asr.training.tool import run_tool

_STACKS = ("recurrent.", "look_ahead.")


def deepen(model: str | Path, after: Sequence[int], out: Path, seed: int = 1) -> None:
    """Write the model folder ``out``, which must not exist: ``model`` with a new layer behind each of ``after``.

    ``seed``: of the new weights. Search settings, times and confidences stay, since emissions do. Raises UsageError for
    a layer that is not there, an intermediate head, a model that does not stream, is no LSTM or has 8 bits; ModelError
    where ``out`` exists.
    """
    folder = find_model(model)
    shape = folder.config.model
    if not after or len(set(after)) != len(after) or not all(1 <= i <= shape.layers for i in after):
        raise UsageError(f"give layers of the model, each once: it has 1 to {shape.layers}")
    tensors = weights_to_grow(folder, "deepened")
    deeper = _deeper(shape, after)
    places = {i: i + sum(i >= one for one in after) for i in range(shape.layers)}
    weights = {_moved(name, places): tensor for name, tensor in tensors.items()}
    torch.manual_seed(seed)
    for i in sorted(set(range(deeper.layers)) - set(places.values())):
        for name, tensor in _silent(deeper).items():
            weights[f"recurrent.{i}.{name}"] = tensor.to(tensors["recurrent.0.rnn.weight_hh_l0"].dtype)
    copy_folder(folder, out, weights)
    config = read_config(out)
    settings = {name: _deeper_setting(setting, after) for name, setting in config.settings.items()}
    update_config(out, dataclasses.replace(config, model=deeper, settings=settings))


def weights_to_grow(folder: ModelFolder, grown: str) -> dict[str, Tensor]:
    """All tensors of a model by name. Raises UsageError for one that cannot be ``grown``, as the message says."""
    from safetensors.torch import load_file

    shape = folder.config.model
    if shape.cell != "lstm" or shape.bidirectional or shape.intermediate or shape.widest_lookahead:
        raise UsageError(f"{folder.path} cannot be {grown}: that needs an LSTM that streams, with no intermediate head")
    tensors = load_file(folder.path / WEIGHTS)
    if not all(t.is_floating_point() for t in tensors.values()):
        raise UsageError(f"{folder.path} has weights of 8 bits: give the model that it was made from")
    return tensors


def _silent(shape: ModelConfig) -> dict[str, Tensor]:
    """A fresh layer whose candidate gate, the third of four, is zero."""
    tensors = {name: tensor.clone() for name, tensor in RecurrentLayer(shape).state_dict().items()}
    for name, tensor in tensors.items():
        if name.startswith("rnn."):
            tensor.chunk(4)[2].zero_()
    return tensors


def _moved(name: str, places: dict[int, int]) -> str:
    for stack in _STACKS:
        if name.startswith(stack):
            layer, _, rest = name.removeprefix(stack).partition(".")
            return f"{stack}{places[int(layer)]}.{rest}"
    return name


def _lookahead(lookahead: Sequence[int], after: Sequence[int]) -> tuple[int, ...]:
    """With no look-ahead after the new layers."""
    return tuple(n for i, here in enumerate(lookahead, 1) for n in ((here, 0) if i in after else (here,)))


def _deeper(shape: ModelConfig, after: Sequence[int]) -> ModelConfig:
    return dataclasses.replace(shape, layers=shape.layers + len(after), lookahead=_lookahead(shape.lookahead, after))


def _deeper_setting(setting: Setting, after: Sequence[int]) -> Setting:
    return dataclasses.replace(setting, lookahead=_lookahead(setting.lookahead, after))


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", help="model folder or name")
    parser.add_argument("--after", nargs="+", type=int, required=True, metavar="LAYER", help="layers, counted from 1")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(argv)
    return run_tool(lambda: deepen(args.model, args.after, args.out, args.seed))


if __name__ == "__main__":
    sys.exit(main())
