"""Leveling: matrices U S V^T as nearly U V^T, by products alone, as Muon does.

    X <- a X + (b A + c A^2) X,   A = X X^T,   X = M / |M| at the start,

five rounds with Muon's a, b, c (muon.py). What the rounds multiply a matrix by is a polynomial of A: it is made of
small squares, for all matrices of one smaller side at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from weightedit.optim.gauge import inverse_root
from weightedit.optim.muon import COEFFICIENTS, orthogonal

_ROUNDS = 5
EXACT = 256
"""The longest smaller side of matrices that are leveled in their own precision on every device."""
_SMALL = 64  # sides up to this one are made alike: fewer calls, and next to no work
_SQUARE = 1.5  # sides in this ratio at most: as many products of the matrix cost less than those of its square


def leveled(matrices: Sequence[Tensor]) -> list[Tensor]:
    """U V^T of matrices U S V^T [.., rows, columns], nearly, in units of root mean square 1; zero stays zero.

    Permutations and signs of rows and columns commute with it. All whose smaller sides are alike go through it
    together, and all whose are small, with zeros beside them. On a GPU float32 matrices with both sides above EXACT go
    through it in bfloat16, as Muon does.
    """
    found = list(matrices)
    sides: dict[int, list[int]] = {}
    for i, x in enumerate(matrices):
        less, more = sorted(x.shape[-2:])
        if _is_coarse(x) or (less > _SMALL and more <= _SQUARE * less):
            flat = x.flatten(0, -3) if x.dim() > 2 else x
            flat = orthogonal(flat.bfloat16() if _is_coarse(x) else flat, COEFFICIENTS, _ROUNDS).to(x.dtype)
            found[i] = math.sqrt(more) * flat.view_as(x)
        else:
            sides.setdefault(less if less > _SMALL else 0, []).append(i)
    for places in sides.values():
        flat = [matrices[i].flatten(0, -3) if matrices[i].dim() > 2 else matrices[i].unsqueeze(0) for i in places]
        grams = [torch.bmm(x.mT, x) if _is_tall(x) else torch.bmm(x, x.mT) for x in flat]
        side = max(gram.shape[-1] for gram in grams)
        grams = [functional.pad(x, 2 * (0, side - x.shape[-1])) if x.shape[-1] < side else x for x in grams]
        gram = torch.cat(grams) if len(grams) > 1 else grams[0]
        totals = _polynomial(gram).split_with_sizes([len(x) for x in flat])
        for i, x, total in zip(places, flat, totals, strict=True):
            own = min(x.shape[-2:])
            total, scale = total if own == side else total[:, :own, :own], math.sqrt(max(x.shape[-2:]))
            pair = (x, total) if _is_tall(x) else (total, x)
            product = torch.baddbmm(x, *pair, beta=0, alpha=scale)  # of the first there is nothing in it
            found[i] = product if matrices[i].dim() == 3 else product.view_as(matrices[i])
    return found


def _polynomial(gram: Tensor) -> Tensor:
    """What the rounds multiply a matrix by, from the matrix by its transpose, [n, side, side]."""
    a, b, c = COEFFICIENTS
    size = inverse_root(gram.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True)).unsqueeze(-1)
    gram = gram * size.square()
    rest = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)  # of a factor a I + rest
    total = torch.add(rest, torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device), alpha=a)
    for _ in range(_ROUNDS - 1):  # all of these commute, and only the first product and the last see the matrix
        half = torch.baddbmm(gram, rest, gram, beta=a)
        gram = torch.baddbmm(half, half, rest, beta=a)
        rest = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        total = torch.baddbmm(total, rest, total, beta=a)
    return size * total


def _is_coarse(matrix: Tensor) -> bool:
    return matrix.is_cuda and matrix.dtype == torch.float32 and min(matrix.shape[-2:]) > EXACT


def _is_tall(matrix: Tensor) -> bool:
    return matrix.shape[-2] > matrix.shape[-1]
