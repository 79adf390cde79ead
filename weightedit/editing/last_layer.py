"""The linear last layer of N INRs at its best: least squares of the targets by what that layer reads.

Here: the moments that it follows from, of all pixels or of parts of them, and the solution. What a last layer reads,
and whether it is linear, rendering_problem.py knows.

Formulas, elementary. min over weight and bias of |r|^2 / P + ridge |weight|^2 is a linear system. At its solution the
loss has the gradient with that layer held fixed (variable projection: Golub and Pereyra, 1973).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Moments(NamedTuple):
    """Over pixels: means of the values [N, 1, h] and of the targets [N, 1, C]; the values' covariances with both."""

    mean: Tensor
    wanted: Tensor
    gram: Tensor
    cross: Tensor

    @classmethod
    def of(cls, values: Tensor, targets: Tensor, wanted: Tensor) -> Moments:
        """Those of values [N, P, h] and targets [N, P, C], whose means are `wanted`."""
        mean, across, share = values.mean(1, keepdim=True), values.mT, 1.0 / values.shape[1]
        gram = torch.baddbmm(mean.mT * mean, across, values, beta=-1.0, alpha=share)
        cross = torch.baddbmm(mean.mT * wanted, across, targets, beta=-1.0, alpha=share)
        return cls(mean, wanted, gram, cross)

    def solved(self, ridge: float) -> tuple[Tensor, Tensor]:
        """Weight [N, C, h] and bias [N, C] of least |r|^2 / P + ridge |weight|^2; the bias is free."""
        eye = torch.eye(self.gram.shape[-1], dtype=self.gram.dtype, device=self.gram.device)
        factor = torch.linalg.cholesky_ex(torch.add(self.gram, eye, alpha=ridge))[0]
        weight = torch.cholesky_solve(self.cross, factor).mT
        return weight, torch.baddbmm(self.wanted, self.mean, weight.mT, alpha=-1.0).squeeze(1)


def pooled(moments: list[Moments], shares: list[float]) -> Moments:
    """Those of all pixels, from those of parts, each with its share of them."""
    parts = list(zip(shares, moments, strict=True))
    mean = torch.stack([share * part.mean for share, part in parts]).sum(0)
    wanted = torch.stack([share * part.wanted for share, part in parts]).sum(0)
    away = [((part.mean - mean).mT, part.wanted - wanted) for part in moments]
    grams = [s * (part.gram + a @ a.mT) for (s, part), (a, _) in zip(parts, away, strict=True)]
    crosses = [s * (part.cross + a @ b) for (s, part), (a, b) in zip(parts, away, strict=True)]
    return Moments(mean, wanted, torch.stack(grams).sum(0), torch.stack(crosses).sum(0))
