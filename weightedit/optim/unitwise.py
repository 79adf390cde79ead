"""Dense layers written unit by unit: what a compiler turns into one loop over parameters.

A unit is a tensor [.., rows, columns], one number per parameter. For small networks over many parameters that is half
the time of matrix products, whose inputs and outputs would go through memory, for a longer compilation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FROM = 65536
"""Parameters of a tensor from which on the longer compilation pays."""


def affine(weight: Tensor, bias: Sequence[Tensor], units: Sequence[Tensor]) -> list[Tensor]:
    """weight [.., out, in] of `units`, plus one `bias` per output that broadcasts with a unit."""
    return [
        sum((weight[..., j, c, None, None] * unit for c, unit in enumerate(units)), start)
        for j, start in enumerate(bias)
    ]


def numbers(vector: Tensor) -> list[Tensor]:
    """A vector [.., n] as n biases, the same for every parameter of a tensor."""
    return [part[..., None, None] for part in vector.unbind(-1)]


def split(groups: Sequence[Tensor]) -> list[Tensor]:
    """Groups [.., some, rows, columns] as units."""
    return [unit for group in groups for unit in group.unbind(-3)]


def pooled(units: Sequence[Tensor], shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Means of every unit over its row, [.., units, rows], and over the others of its source, [.., units, sources]."""
    by_row = torch.stack([unit.mean(-1) for unit in units], -2)
    by_column = torch.stack([unit.mean(-2) for unit in units], -2)
    return by_row, by_column.unflatten(-1, shape[1:]).mean(-1)
