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
from weightedit.optim.rule import warmth
from weightedit.wiring import Wire, Wiring

PLACES = 8
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
) -> Seen:
    """What is known of the tensor of `wire`; gradient and weight in the gauge, shaped as it; decays of both moments."""
    steps, (momenta, fresh) = moments["step"].to(gradient.dtype), decays
    corrections = torch.stack([warmth(decay, steps) for decay in momenta], -1)[..., None, None]
    calm = warmth(fresh, steps)[..., None, None, None]
    second = wire.matrix(moments["second"]).flatten(-2).unsqueeze(-3) / calm
    mean = second.mean((-2, -1), keepdim=True)
    rows = moments["rows"].unsqueeze(-1).unsqueeze(-3) / calm + _DAMPING * mean
    columns = moments["columns"].unsqueeze(-2).unsqueeze(-3) / calm + _DAMPING * mean
    return Seen(
        wire.matrix(gradient).flatten(-2).unsqueeze(-3),
        wire.matrix(moments["momenta"]).flatten(-2),
        corrections,
        second + _DAMPING * mean,
        mean,
        rows,
        columns,
        root(rows.mean(-2, keepdim=True)),
        None if weight is None else wire.matrix(weight).flatten(-2).unsqueeze(-3),
    )


def features(seen: Seen, adam: int, *, signed: bool) -> tuple[Tensor, Tensor]:
    """Odd features [.., K, parameters] and even ones [.., E, parameters].

    Args:
        seen: a tensor, or rows of it.
        adam: place of the momentum that is Adam's among gradient and momenta.
        signed: whether the even features are joined by the odd ones, which gives up sign equivariance.
    """
    averages = torch.cat([seen.gradient, seen.momenta / seen.corrections], -3)
    factor = inverse_root(seen.rows) * inverse_root(seen.columns) * seen.size
    direct = averages * inverse_root(seen.second)
    weight = torch.zeros_like(seen.gradient) if seen.weight is None else seen.weight
    odd = torch.cat([direct, averages[..., ::adam, :, :][..., :2, :, :] * factor, weight], -3).flatten(-2)
    square = odd.square()
    agreement = (direct[..., 1:, :, :] * direct[..., :-1, :, :]).flatten(-2)
    size = (seen.second * inverse_root(seen.mean).square()).flatten(-2)
    even = [square / (1 + square), agreement / (1 + agreement.abs()), (size + 1e-6).log() / 4]
    return odd, torch.cat([*even, odd / (1 + odd.abs())] if signed else even, -2)


def place(wiring: Wiring, wire: Wire) -> list[float]:
    """What a tensor is and where it lies, PLACES numbers: kind, ends, logarithms of its sizes, depth, one."""
    targets, sources, rest = wire.view
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
    ]
