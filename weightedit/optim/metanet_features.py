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

from weightedit.optim.gauge import inverse_root, root
from weightedit.optim.muon import COEFFICIENTS
from weightedit.optim.rule import warmth
from weightedit.wiring import Wire, Wiring

PLACES = 10
DEPTH = 9  # among the places
WEIGHT = -2  # w^ among the odd features
_ITERATIONS = 5
_DAMPING = 1e-8  # of second moments, in units of their mean over the tensor


class Seen(NamedTuple):
    """What is known of one tensor in the gauge, each [.., quantities, rows, columns]; factors have one row or column.

    All moments are uncorrected but `second`, `rows` and `columns`, which are damped besides.
    """

    gradient: Tensor
    momenta: Tensor
    corrections: Tensor  # what the momenta are divided by, [.., momenta, 1, 1]
    second: Tensor
    mean: Tensor  # of the second moment
    rows: Tensor
    columns: Tensor
    size: Tensor  # root of the mean row: Adafactor's factor is size / sqrt(row column)
    level: Tensor | None  # the averages with all singular values made alike; None where it is not taken
    weight: Tensor | None  # None where its value is not to be looked at

    def part(self, start: int, end: int) -> Seen:
        """Rows start to end."""
        cut = (x if x is None or x.shape[-2] == 1 else x[..., start:end, :] for x in self)
        return Seen(*cut)  # pyright: ignore[reportArgumentType]


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
    corrections = torch.stack([warmth(decay, steps) for decay in averaged], -1)[..., None, None]
    calm = warmth(fresh, steps)[..., None, None, None]
    second = wire.matrix(moments["second"]).flatten(-2).unsqueeze(-3) / calm
    mean = second.mean((-2, -1), keepdim=True)
    rows = moments["rows"].unsqueeze(-1).unsqueeze(-3) / calm + _DAMPING * mean
    columns = moments["columns"].unsqueeze(-2).unsqueeze(-3) / calm + _DAMPING * mean
    flat, momenta = wire.matrix(gradient).flatten(-2), wire.matrix(moments["momenta"]).flatten(-2)
    level = None
    if mix is not None:
        averages = torch.cat([flat.unsqueeze(-3), momenta / corrections], -3)
        level = levelled((averages * mix.to(averages.dtype)[:, None, None]).sum(-3)).unsqueeze(-3)
    return Seen(
        flat.unsqueeze(-3),
        momenta,
        corrections,
        second + _DAMPING * mean,
        mean,
        rows,
        columns,
        root(rows.mean(-2, keepdim=True)),
        level,
        None if weight is None else wire.matrix(weight).flatten(-2).unsqueeze(-3),
    )


def features(seen: Seen, adam: int, *, signed: bool) -> tuple[list[Tensor], list[Tensor]]:
    """Odd features and even ones, in groups [.., some, rows, columns].

    Args:
        seen: a tensor, or rows of it.
        adam: place of the momentum that is Adam's among gradient and momenta; its direction also stands where a
            tensor is not levelled.
        signed: whether the even features are joined by the odd ones, which gives up sign equivariance.
    """
    averages = torch.cat([seen.gradient, seen.momenta / seen.corrections], -3)
    factor = inverse_root(seen.rows) * inverse_root(seen.columns) * seen.size
    direct = averages * inverse_root(seen.second)
    weight = torch.zeros_like(seen.gradient) if seen.weight is None else seen.weight
    level = direct[..., adam : adam + 1, :, :] if seen.level is None else seen.level
    odd = [direct, averages[..., ::adam, :, :][..., :2, :, :] * factor, weight, level]
    agreement = direct[..., 1:, :, :] * direct[..., :-1, :, :]
    size = seen.second * inverse_root(seen.mean).square()
    even = [*(squashed(part.square()) for part in odd), squashed(agreement), (size + 1e-6).log() / 4]
    return odd, [*even, *map(squashed, odd)] if signed else even


def squashed(x: Tensor) -> Tensor:
    """x / (1 + |x|)."""
    return x / (1 + x.abs())


def levelled(matrix: Tensor) -> Tensor:
    """U V^T of a matrix U S V^T [.., rows, columns], nearly, in units of root mean square 1; zero stays zero.

    By Muon's iteration (muon.py), which permutations and signs of rows and columns commute with.
    """
    a, b, c = COEFFICIENTS
    rows, columns = matrix.shape[-2:]
    x = matrix.mT if rows > columns else matrix
    x = x * inverse_root(x.square().sum((-2, -1), keepdim=True))
    gram = x @ x.mT
    unit = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    total = a * unit + b * gram + c * gram @ gram
    factor = total
    for _ in range(_ITERATIONS - 1):  # all of these commute, and only the last product is as large as the matrix
        gram = factor @ gram @ factor
        factor = a * unit + b * gram + c * gram @ gram
        total = factor @ total
    x = total @ x
    return math.sqrt(max(rows, columns)) * (x.mT if rows > columns else x)


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
