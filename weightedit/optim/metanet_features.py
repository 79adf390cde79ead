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
from torch.nn import functional

from weightedit.network.wiring import Wire, Wiring
from weightedit.optim.gauge import inverse_root
from weightedit.optim.muon import COEFFICIENTS, orthogonal
from weightedit.optim.pieces import Cut

PLACES = 10
DEPTH = 9  # among the places
WEIGHT = -2  # w^ among the odd features
_ITERATIONS = 5
_SMALL = 64  # sides up to this one are made alike: fewer calls, and next to no work
EXACT = 256
"""The longest smaller side of matrices that are leveled in their own precision on every device."""
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


def leveled(matrices: Sequence[Tensor]) -> list[Tensor]:
    """U V^T of matrices U S V^T [.., rows, columns], nearly, in units of root mean square 1; zero stays zero.

    By Muon's iteration (muon.py), which permutations and signs of rows and columns commute with. All whose smaller
    sides are alike go through it together, and all whose are small, with zeros beside them. On a GPU float32 matrices
    with both sides above EXACT go through it in bfloat16, as Muon does.
    """
    found = [_coarsely_leveled(x) if _is_coarse(x) else x for x in matrices]
    sides: dict[int, list[int]] = {}
    for i, x in enumerate(matrices):
        if found[i] is x:
            side = min(x.shape[-2:])
            sides.setdefault(side if side > _SMALL else 0, []).append(i)
    for places in sides.values():
        flat = [matrices[i].flatten(0, -3) if matrices[i].dim() > 2 else matrices[i].unsqueeze(0) for i in places]
        grams = [torch.bmm(x.mT, x) if _is_tall(x) else torch.bmm(x, x.mT) for x in flat]
        side = max(gram.shape[-1] for gram in grams)
        grams = [functional.pad(x, 2 * (0, side - x.shape[-1])) if x.shape[-1] < side else x for x in grams]
        totals = _polynomial(torch.cat(grams) if len(grams) > 1 else grams[0]).split_with_sizes([len(x) for x in flat])
        for i, x, total in zip(places, flat, totals, strict=True):
            own = min(x.shape[-2:])
            total, scale = total if own == side else total[:, :own, :own], math.sqrt(max(x.shape[-2:]))
            pair = (x, total) if _is_tall(x) else (total, x)
            product = torch.baddbmm(x, *pair, beta=0, alpha=scale)  # of the first there is nothing in it
            found[i] = product if matrices[i].dim() == 3 else product.view_as(matrices[i])
    return found


def _polynomial(gram: Tensor) -> Tensor:
    """What Muon's iteration multiplies a matrix by, from the matrix by its transpose, [n, side, side]."""
    a, b, c = COEFFICIENTS
    size = inverse_root(gram.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True)).unsqueeze(-1)
    gram = gram * size.square()
    rest = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)  # of a factor a I + rest
    total = torch.add(rest, torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device), alpha=a)
    for _ in range(_ITERATIONS - 1):  # all of these commute, and only the first product and the last see the matrix
        half = torch.baddbmm(gram, rest, gram, beta=a)
        gram = torch.baddbmm(half, half, rest, beta=a)
        rest = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        total = torch.baddbmm(total, rest, total, beta=a)
    return size * total


def _coarsely_leveled(matrix: Tensor) -> Tensor:
    """`leveled` in bfloat16; on the matrix itself, since its square has too few digits there."""
    flat = matrix.flatten(0, -3) if matrix.dim() > 2 else matrix
    found = orthogonal(flat.bfloat16(), COEFFICIENTS, _ITERATIONS).to(matrix.dtype)
    return math.sqrt(max(matrix.shape[-2:])) * found.view_as(matrix)


def _is_coarse(matrix: Tensor) -> bool:
    return matrix.is_cuda and matrix.dtype == torch.float32 and min(matrix.shape[-2:]) > EXACT


def _is_tall(matrix: Tensor) -> bool:
    return matrix.shape[-2] > matrix.shape[-1]


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
