"""Weights as integers of 8 bits with a scale for each row of a matrix (each output): half the bytes of fp16.

Rows are symmetric: ``weight[i] = scale[i] * integers[i]``, integers from -127 to 127; the largest absolute value of a
row is 127 steps. (Scales below that, chosen for the least squared error, left no less of it in a trained network.)
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from asr.errors import ModelError

__all__ = ["LARGEST", "SCALE", "dequantise", "quantise", "read_tensors", "write_tensors"]

LARGEST = 127
SCALE = ".scale"  # what the name of a matrix has behind it in a file where its scales are named
_TINY = 1e-30  # in place of the largest value of a row of zeros


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(rows, columns) float to int8 of the same shape and (rows,) float32 scales.

    What :func:`dequantise` gave becomes the same integers again.
    """
    weight = weight.detach().float()
    scales = weight.abs().amax(1).clamp_min(_TINY) / LARGEST
    return (weight / scales[:, None]).round().clamp(-LARGEST, LARGEST).to(torch.int8), scales


def dequantise(integers: Tensor, scales: Tensor) -> Tensor:
    """The float32 matrix that :func:`quantise` stands for."""
    return integers.float() * scales.float()[:, None]


def write_tensors(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a network as a file of 8 bits holds them: matrices as integers, their scales under a name of their
    own (:data:`SCALE`). What is small stays as it is: convolutions, heads, norms, statistics, priors."""
    tensors = dict(weights)
    for name, weight in weights.items():
        if weight.dim() == 2 and weight.is_floating_point() and not name.startswith("heads."):
            tensors[name], tensors[name + SCALE] = quantise(weight)
    return tensors


def read_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`write_tensors`; other tensors pass as they are. Raises ModelError for lost scales."""
    weights = {}
    for name, tensor in tensors.items():
        if tensor.dtype == torch.int8:
            scales = tensors.get(name + SCALE)
            if tensor.dim() != 2 or scales is None or scales.shape != tensor.shape[:1]:
                raise ModelError(f"{name} has 8 bits but no scale for each of its rows")
            weights[name] = dequantise(tensor, scales)
        elif tensors.get(name.removesuffix(SCALE), tensor).dtype != torch.int8:
            weights[name] = tensor
    return weights
