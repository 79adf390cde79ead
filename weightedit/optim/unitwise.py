"""Dense layers written unit by unit: what a compiler turns into one loop over parameters.

A unit is a tensor [.., rows, columns], one number per parameter. For small networks over many parameters that is half
the time of matrix products, whose inputs and outputs would go through memory, for a longer compilation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

FROM = 65536
"""Parameters of a tensor from which on the longer compilation pays."""

_WHOLE = 2**18  # parameters of a network from which on a compiler does not come to an end with it as one graph
_ALONE = 4096  # parameters of a tensor from which on it is worth calls of its own


def one_graph(tensors: Iterable[Tensor]) -> bool:
    """Whether a network of these parameters is small enough to be compiled as a whole."""
    return sum(tensor.numel() for tensor in tensors) < _WHOLE


def goes_alone(tensor: Tensor, shape: tuple[int, ...]) -> bool:
    """Whether a tensor, a matrix of one network if it has this shape, is worth functions of its own."""
    return tensor.shape == shape and tensor.numel() >= _ALONE and 1 < len(tensor) < tensor.numel()


def compiled_for_all_shapes(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of one tensor's matrices, compiled when first called: as one loop, as far as sums allow that.

    Limits of how much goes into a loop are lifted, so that no intermediate results go through memory.
    """
    fused = {"max_fusion_size": 10**6, "cpp.max_horizontal_fusion_size": 10**6}
    return torch.compile(function, dynamic=True, options={**fused, **contracting()})


def contracting() -> dict[str, Any]:
    """The compiler's option for a x + b in one instruction."""
    from torch._inductor import config

    flag = config.cpp.enable_floating_point_contract_flag
    return {"cpp.enable_floating_point_contract_flag": "fast" if isinstance(flag, str) else True}


def line(matrices: Tensor) -> Tensor:
    """Matrices [.., rows, columns] as [.., 1, parameters]: to a compiler all look alike, parts of something or not."""
    return matrices.reshape(*matrices.shape[:-2], 1, -1).contiguous().detach()


def pieces(matrix: Tensor, size: int) -> list[tuple[int, int]]:
    """First rows, and those after the last, of pieces of about so many parameters."""
    rows, columns = matrix.shape[-2:]
    count = max(1, min(rows, rows * columns // size))
    return [(i * rows // count, (i + 1) * rows // count) for i in range(count)]


def steady(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors whose shape does not depend on the optimizee's: a compiler of functions for all shapes is told so."""
    found = tuple(tensor.detach() for tensor in tensors)
    for tensor in found:
        torch._dynamo.mark_static(tensor)
    return found


def dense(weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    """weight x + bias for x [.., in, n]; weight [out, in] or one per network and tensor; bias [.., out, 1] or n."""
    if x.dim() == 2:
        return torch.addmm(bias, weight, x)
    lead = x.shape[:-2]
    if weight.shape[:-2] != lead:
        weight = weight.expand(*lead, *weight.shape[-2:])
    if len(lead) == 1:
        return torch.baddbmm(bias, weight, x)
    bias = bias.expand(*lead, *bias.shape[-2:])
    return torch.baddbmm(bias.flatten(0, -3), weight.flatten(0, -3), x.flatten(0, -3)).unflatten(0, lead)


def affine(weight: Tensor, bias: Sequence[Tensor], units: Sequence[Tensor]) -> list[Tensor]:
    """weight [.., out, in] of `units`, plus one `bias` per output that broadcasts with a unit."""
    rows = [row.unbind(-3) for row in weight[..., None, None].unbind(-4)]
    totals = list(bias)
    for j, row in enumerate(rows):
        for by, unit in zip(row, units, strict=True):
            totals[j] = torch.addcmul(totals[j], by, unit)
    return totals


def numbers(vector: Tensor) -> list[Tensor]:
    """A vector [.., n] as n biases, the same for every parameter of a tensor."""
    return [part[..., None, None] for part in vector.unbind(-1)]


def split(groups: Sequence[Tensor]) -> list[Tensor]:
    """Groups [.., some, rows, columns] as units."""
    return [unit for group in groups for unit in group.unbind(-3)]


def pooled(units: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Means of every unit over its rows, [.., units, rows], and sums over its columns, [.., units, columns]."""
    return torch.stack([unit.mean(-1) for unit in units], -2), torch.stack([unit.sum(-2) for unit in units], -2)
