"""The features of the metanetwork rule: what it sees of a tensor in the vertex gauge, and of where the tensor lies.

Odd features change sign with the parameter, even ones do not; none changes with a neuron factor. Formulas are in
metanet_rule.py. Thresholds are relative to the mean over the tensor, never absolute.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from weightedit.network.wiring import Wire, Wiring
from weightedit.optim.gauge import inverse_root, root
from weightedit.optim.muon import COEFFICIENTS
from weightedit.optim.rule import warmth

PLACES = 10
DEPTH = 9  # among the places
WEIGHT = -2  # w^ among the odd features
_ITERATIONS = 5
DAMPING = 1e-8  # of second moments, in units of their mean over the tensor


class Seen(NamedTuple):
    """What is known of one tensor in the gauge, each [.., quantities, rows, columns]; factors have one row or column.

    What is the same for many parameters stands as what features are multiplied by.
    """

    gradient: Tensor
    momenta: Tensor  # not corrected
    corrections: Tensor  # of the momenta, [.., momenta, 1, 1]
    second: Tensor  # corrected and damped
    inverse: Tensor  # of the mean of the second moment
    rows: Tensor  # Adafactor's factor is this by `columns`
    columns: Tensor
    level: Tensor | None  # the averages with all singular values made alike; None where it is not taken
    weight: Tensor | None  # None where its value is not to be looked at

    def part(self, start: int, end: int) -> Seen:
        """Rows start to end."""
        cut = (x if x is None or x.shape[-2] == 1 else x[..., start:end, :] for x in self)
        return Seen(*cut)  # pyright: ignore[reportArgumentType]

    def units(self) -> Units:
        """The same, unit by unit."""
        momenta = zip(self.momenta.unbind(-3), self.corrections.unbind(-3), strict=True)
        return Units(
            [self.gradient.squeeze(-3), *(momentum * correction for momentum, correction in momenta)],
            *(self.second.squeeze(-3), self.inverse.squeeze(-3), (self.rows * self.columns).squeeze(-3)),
            None
            if self.level is None
            else (torch.ones_like(self.level[..., :1, :1], dtype=torch.bool).squeeze(-3), self.level.squeeze(-3)),
            None if self.weight is None else self.weight.squeeze(-3),
        )


class Units(NamedTuple):
    """`Seen` as units (unitwise.py), each [.., rows, columns] or what broadcasts with that."""

    averages: list[Tensor]  # gradient and corrected momenta
    second: Tensor
    inverse: Tensor
    factor: Tensor  # Adafactor's
    level: tuple[Tensor, Tensor] | None  # whether it is taken, and it
    weight: Tensor | None


def look(
    wire: Wire,
    gradient: Tensor,
    weight: Tensor | None,
    moments: Mapping[str, Tensor],
    decays: tuple[Sequence[float], float],
    mix: Tensor | None = None,
) -> Seen:
    """What is known of the tensor of `wire`; gradient and weight in the gauge, shaped as it; decays of both moments.

    `mix` [1 + momenta]: of the gradient and its averages, what `level` is made of; None for no `level`.
    """
    steps, (averaged, fresh) = moments["step"].to(gradient.dtype), decays
    corrections = torch.stack([warmth(decay, steps) for decay in averaged], -1)[..., None, None].reciprocal()
    calm = warmth(fresh, steps)[..., None, None, None]
    second = wire.matrix(moments["second"]).flatten(-2).unsqueeze(-3) / calm
    rows, columns = (moments[key].unsqueeze(-2) / calm.squeeze(-1) for key in ("rows", "columns"))
    flat, momenta = wire.matrix(gradient).flatten(-2), wire.matrix(moments["momenta"]).flatten(-2)
    level = None
    if mix is not None:
        averages = torch.cat([flat.unsqueeze(-3), momenta * corrections], -3)
        level = levelled((averages * mix.to(averages.dtype)[:, None, None]).sum(-3)).unsqueeze(-3)
    return Seen(
        flat.unsqueeze(-3),
        momenta,
        corrections,
        second + DAMPING * rows.mean(-1, keepdim=True).unsqueeze(-1),
        *factors(rows, columns),
        level,
        None if weight is None else wire.matrix(weight).flatten(-2).unsqueeze(-3),
    )


def factors(rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`inverse`, `rows` and `columns` of Seen from the corrected means of squares [.., rows] and [.., columns]."""
    mean = rows.mean(-1, keepdim=True)
    rows, columns = rows + DAMPING * mean, columns + DAMPING * mean
    row = inverse_root(rows) * root(rows.mean(-1, keepdim=True))
    inverse = inverse_root(mean).square()
    return inverse.unsqueeze(-1), row.unsqueeze(-1), inverse_root(columns).unsqueeze(-2)


def features(seen: Seen, adam: int, *, signed: bool) -> tuple[list[Tensor], list[Tensor]]:
    """Odd features and even ones, in groups [.., some, rows, columns].

    Args:
        seen: a tensor, or rows of it.
        adam: place of the momentum that is Adam's among gradient and momenta; its direction also stands where a
            tensor is not levelled.
        signed: whether the even features are joined by the odd ones, which gives up sign equivariance.
    """
    averages = torch.cat([seen.gradient, seen.momenta * seen.corrections], -3)
    factor = seen.rows * seen.columns
    direct = averages * inverse_root(seen.second)
    weight = torch.zeros_like(seen.gradient) if seen.weight is None else seen.weight
    level = direct[..., adam : adam + 1, :, :] if seen.level is None else seen.level
    odd = [direct, averages[..., ::adam, :, :][..., :2, :, :] * factor, weight, level]
    agreement = direct[..., 1:, :, :] * direct[..., :-1, :, :]
    even = [*(squashed(part.square()) for part in odd), squashed(agreement), _logarithm(seen)]
    return odd, [*even, *map(squashed, odd)] if signed else even


def unit_features(units: Units, adam: int, *, signed: bool) -> tuple[list[Tensor], list[Tensor]]:
    """`features` unit by unit: nothing is laid side by side in memory."""
    inverse = inverse_root(units.second)
    direct = [average * inverse for average in units.averages]
    weight = torch.zeros_like(direct[0]) if units.weight is None else units.weight
    level = direct[adam] if units.level is None else torch.where(*units.level, direct[adam])
    odd = [*direct, *(average * units.factor for average in units.averages[::adam][:2]), weight, level]
    agreement = [after * before for after, before in zip(direct[1:], direct, strict=False)]
    even = [*(squashed(unit.square()) for unit in odd), *map(squashed, agreement), _logarithm(units)]
    return odd, [*even, *map(squashed, odd)] if signed else even


def _logarithm(seen: Seen | Units) -> Tensor:
    return (seen.second * seen.inverse + 1e-6).log() / 4


def squashed(x: Tensor) -> Tensor:
    """x / (1 + |x|)."""
    return x / (1 + x.abs())


def levelled(matrix: Tensor) -> Tensor:
    """U V^T of a matrix U S V^T [.., rows, columns], nearly, in units of root mean square 1; zero stays zero.

    By Muon's iteration (muon.py), which permutations and signs of rows and columns commute with.
    """
    a, b, c = COEFFICIENTS
    rows, columns = matrix.shape[-2:]
    gram = matrix.mT @ matrix if rows > columns else matrix @ matrix.mT
    size = inverse_root(gram.diagonal(dim1=-2, dim2=-1).sum(-1))[..., None, None]
    gram = gram * size * size
    unit = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    total = a * unit + b * gram + c * gram @ gram
    factor = total
    for _ in range(_ITERATIONS - 1):  # all of these commute, and only the first product and the last see the matrix
        gram = factor @ gram @ factor
        factor = a * unit + b * gram + c * gram @ gram
        total = factor @ total
    total = math.sqrt(max(rows, columns)) * size * total
    return matrix @ total if rows > columns else total @ matrix


def place(wiring: Wiring, wire: Wire) -> list[float]:
    """What a tensor is and where it lies, PLACES numbers: kind, ends, logarithms of its sizes, how deep, one, kernel.

    The last is the logarithm of how many weight matrices the network has: 0 for two of them, 1/4 for four.
    """
    targets, sources, rest = wire.view
    matrices = sum(other.kind == "weight" for other in wiring.wires)
    last = max(other.target for other in wiring.wires)
    return [
        float(wire.kind == "weight"),
        float(wire.kind == "gain"),
        float(wire.source is not None and not any(other.target == wire.source for other in wiring.wires)),
        float(wire.target == last),
        math.log2(sources * rest) / 10,
        math.log2(targets) / 10,
        wire.target / max(last, 1),
        1.0,
        math.log2(rest) / 4,
        (math.log2(max(matrices, 1)) - 1) / 4,
    ]
