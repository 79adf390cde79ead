"""The features of the metanetwork rule: what it sees of a tensor in the vertex gauge, and of where the tensor lies.

Odd features change sign with the parameter, even ones do not; none changes with a neuron factor. Formulas are in
metanet_rule.py. Thresholds are relative to the mean over the tensor, never absolute.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from weightedit.network.wiring import Wire, Wiring
from weightedit.optim.gauge import inverse_root
from weightedit.optim.pieces import Cut

PLACES = 10
DEPTH = 9  # among the places
WEIGHT = -2  # w^ among the odd features
LEAST = 1e-6  # of what a logarithm is taken
DAMPING = 1e-8  # of second moments, in units of their mean over the tensor


class Seen(NamedTuple):
    """What is known of a stack of tensors (stacks.py), each [.., tensors, 1, parameters], as it stands.

    What is the same for many parameters is a number per row and one per column, or a number per tensor.
    """

    averages: Tensor  # [.., tensors, 1 + momenta, parameters], in the gauge: gradient and momenta, not corrected
    weight: Tensor  # zero where its value is not to be looked at
    level: Tensor | None  # the averages with all singular values made alike, in the gauge; Adam's direction stands for
    # it where there is none: everywhere (None), or in parameters beyond its own
    second: Tensor  # in the gauge, not corrected
    frames: tuple[Tensor, ...]  # two numbers per row, [.., 2, tensors, rows, 1], and per column, whose products are
    # the scale and Adafactor's factor; or these, [.., 2, tensors, 1, parameters]
    numbers: Tensor  # [.., tensors, 6 + momenta, 1]: factor of the squares, what is added to them, inverse of their
    # mean, one, LEAST, corrections of the averages

    def pieces(self, cut: Cut) -> list[Seen]:
        """Piece by piece."""
        columns = self.frames[-1].shape[-1]
        rows, *beside = self.frames
        levels = [None] * len(cut) if self.level is None else cut.of(self.level, -1, columns)
        parts = zip(
            *(cut.of(self.averages, -1, columns), cut.of(self.weight, -1, columns), levels),
            *(cut.of(self.second, -1, columns), zip(cut.of(rows, -2), *map(cut.of, beside), strict=True)),
            cut.of(self.numbers),
            strict=True,
        )
        return [Seen(*part) for part in parts]

    @property
    def matrix(self) -> tuple[int, int]:
        """Rows and columns of every tensor."""
        return self.frames[0].shape[-2], self.frames[-1].shape[-1]

    def framed(self) -> Sequence[Tensor]:
        """What a step in the gauge is multiplied by, and Adafactor's factor, [.., tensors, 1, parameters]."""
        if len(self.frames) == 1:
            return self.frames[0].unbind(-4)
        product = self.frames[0] * self.frames[1]
        return product.reshape(*product.shape[:-2], 1, -1).unbind(-4)

    def units(self, scale: Tensor) -> Units:
        """The same, unit by unit, [.., tensors, rows, columns] each."""
        calm, damping, inverse, _, _, *corrections = self.numbers.unsqueeze(-1).unbind(-3)
        averages, level = self.averages.unflatten(-1, self.matrix).unbind(-3), None
        weight, second = (x.reshape(*x.shape[:-2], *self.matrix) for x in (self.weight, self.second))
        if self.level is not None:
            level = self.level.reshape(*self.level.shape[:-2], *self.matrix)
            level = torch.ones_like(level[..., :1, :1], dtype=torch.bool), level
        factor = self.frames[0].select(-4, 1) * self.frames[1].select(-4, 1)
        return Units(
            [average * by for average, by in zip(averages, corrections, strict=True)],
            *(second * calm + damping, inverse, factor, level, weight / scale),
        )


class Units(NamedTuple):
    """`Seen` as units (unitwise.py), each [.., rows, columns] or what broadcasts with that."""

    averages: list[Tensor]  # gradient and corrected momenta
    second: Tensor
    inverse: Tensor
    factor: Tensor  # Adafactor's
    level: tuple[Tensor, Tensor] | None  # whether it is taken, and it
    weight: Tensor


def features(seen: Seen, framed: Sequence[Tensor], adam: int, *, signed: bool) -> tuple[Tensor, Tensor]:
    """Odd features and even ones, [.., tensors, features, parameters]; see `as_features`.

    Args:
        seen: of a stack, or a part of it.
        framed: `Seen.framed` of it.
        adam: place of the momentum that is Adam's among gradient and momenta; its direction also stands where a
            tensor is not leveled.
        signed: whether the even features are joined by the odd ones, which gives up sign equivariance.
    """
    count = seen.averages.shape[-2]
    calm, damping, inverse, one, least, corrections = seen.numbers.split_with_sizes([1, 1, 1, 1, 1, count], -2)
    second = torch.addcmul(damping, seen.second, calm)
    averages = seen.averages * corrections
    direct = averages * inverse_root(second)
    factored = (averages.narrow(-2, 0, 2) if adam == 1 else averages[..., : adam + 1 : adam, :]) * framed[1]
    level = [direct.narrow(-2, adam, 1) if seen.level is None else seen.level]
    if (known := level[0].shape[-1]) < direct.shape[-1]:
        level = [torch.cat([*level, direct[..., adam : adam + 1, known:]], -1)]
    odd = torch.cat([direct, factored, seen.weight / framed[0], *level], -2)
    agreement = direct.narrow(-2, 1, count - 1) * direct.narrow(-2, 0, count - 1)
    del averages, direct, factored, level  # what is laid down a second time, of which a piece has little room
    size = torch.addcmul(least, second, inverse).log_()
    even = [torch.addcmul(one, odd, odd).reciprocal_(), squashed(agreement), size]
    return odd, torch.cat([*even, squashed(odd)] if signed else even, -2)


def unit_features(units: Units, adam: int, *, signed: bool) -> tuple[list[Tensor], list[Tensor]]:
    """`features` unit by unit: nothing is laid side by side in memory."""
    inverse = inverse_root(units.second)
    direct = [average * inverse for average in units.averages]
    level = direct[adam] if units.level is None else torch.where(*units.level, direct[adam])
    odd = [*direct, *(average * units.factor for average in units.averages[::adam][:2]), units.weight, level]
    agreement = [after * before for after, before in zip(direct[1:], direct, strict=False)]
    even = [
        *((1 + unit.square()).reciprocal() for unit in odd),
        *map(squashed, agreement),
        (units.second * units.inverse + LEAST).log(),
    ]
    return odd, [*even, *map(squashed, odd)] if signed else even


def as_features(odd: int, momenta: int, *, signed: bool) -> list[float]:
    """What turns the even ones of `features` into the rule's features, together with 1 more for each negative one.

    A rule sees o^2 / (1 + o^2), and a quarter of the logarithm. What it takes less to make is 1 / (1 + o^2), and all of
    the logarithm: the first layer does the rest.
    """
    return [-1.0] * odd + [1.0] * momenta + [0.25] + [1.0] * (odd if signed else 0)


def squashed(x: Tensor) -> Tensor:
    """x / (1 + |x|)."""
    return x / x.abs().add_(1)


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
