"""The metanetwork rule's passes over one large tensor, as functions of matrices that are compiled once for all shapes.

A network of many large tensors as one graph is more than a compiler comes to an end with, so they go through here one
after another: their moments, what their neurons receive, their steps. Formulas are metanet_features.py's and
metanet_rule.py's, which also does all that is small. One network, no stack; no gradients are taken of these functions.

Features, both layers and the step are one loop over a line of parameters, in which nothing but its results goes through
memory: a compiler makes one loop of them only where all is as long as the line, so what belongs to a row or a column is
laid out over it first, a piece of the tensor at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from weightedit.optim.metanet_features import Units, unit_features
from weightedit.optim.unitwise import affine, compiled_for_all_shapes, line, numbers, pieces
from weightedit.optim.warrant import of_entries

_PIECE = 2**16  # parameters of a line: what is read and written of it fits the cache, and calls cost little beside it


class Moments(NamedTuple):
    """Momenta [momenta, rows, columns], squares [rows, columns], and the means of these over columns and over rows."""

    momenta: Tensor
    second: Tensor
    rows: Tensor
    columns: Tensor


class Large(NamedTuple):
    """A tensor as it stands, [rows, columns], and the small ones that make what is seen of it."""

    gradient: Tensor
    weight: Tensor
    level: Tensor  # levelled averages, if `numbers` say so: one compiled function for both
    momenta: Tensor
    second: Tensor
    scales: tuple[Tensor, Tensor]  # [rows, 1] and [1, columns], whose product is its scale
    factors: tuple[Tensor, Tensor]  # and Adafactor's factor
    numbers: Tensor  # factor of the squares and what is added; Seen's inverse; whether it is levelled; corrections

    def part(self, start: int, end: int) -> Part:
        """Rows start to end."""
        scale, factor = (rows[start:end] * columns for rows, columns in (self.scales, self.factors))
        own = ("gradient", "weight", "level", "second", "momenta")
        cut = {key: line(getattr(self, key)[..., start:end, :]) for key in own}
        return Part(**cut, scale=line(scale), factor=line(factor), numbers=self.numbers)


class Part(NamedTuple):
    """Rows of a Large as lines, [1, parameters]."""

    gradient: Tensor
    weight: Tensor
    level: Tensor
    second: Tensor
    momenta: Tensor
    scale: Tensor
    factor: Tensor
    numbers: Tensor

    def units(self) -> Units:
        """As the features take it."""
        calm, damping, inverse, levelled, *corrections = self.numbers.unbind()
        momenta = zip(self.momenta.unbind(), corrections, strict=True)
        return Units(
            [self.gradient * self.scale, *(momentum * correction for momentum, correction in momenta)],
            *(self.second * calm + damping, inverse, self.factor),
            *((levelled > 0, self.level), self.weight / self.scale),
        )


class Layers(NamedTuple):
    """The rule's network as a tensor meets it; factors of the odd features include the step size."""

    first: Tensor
    first_bias: Tensor
    second: Tensor
    second_bias: Tensor
    last: Tensor
    base: Tensor


def hidden_units(even: Sequence[Tensor], weight: Tensor, bias: Tensor) -> list[Tensor]:
    """The first hidden layer from the even features, unit by unit."""
    return [unit.relu() for unit in affine(weight, numbers(bias), even)]


def direct(
    odd: Sequence[Tensor], hidden: Sequence[Tensor], layers: Layers, ends: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """The step in the gauge from odd features and first hidden layer, unit by unit, and what part of it is warranted.

    `ends`: of the second layer.
    """
    second = [unit.relu() for unit in affine(layers.second, ends, hidden)]
    factors = affine(layers.last, numbers(layers.base), second)
    moving = of_entries(odd[0])
    step = sum((o * factor for o, factor in zip(odd, factors, strict=True)), torch.zeros_like(odd[0]))
    return step * moving, moving


class Passes:
    """The passes, compiled or as they are.

    Args:
        adam: place of Adam's momentum among the gradient and the momenta.
        signed: as in `features`.
        compiled: whether to compile them, each when it is first called.
    """

    def __init__(self, adam: int, *, signed: bool, compiled: bool = True) -> None:
        def first(part: Part, weight: Tensor, bias: Tensor) -> tuple[list[Tensor], list[Tensor]]:
            odd, even = unit_features(part.units(), adam, signed=signed)
            return odd, hidden_units(even, weight, bias)

        def hidden(part: Part, weight: Tensor, bias: Tensor) -> Tensor:
            return torch.stack(first(part, weight, bias)[1])

        def both(part: Part, layers: Layers, ends: Tensor) -> tuple[Tensor, Tensor]:
            step, moving = direct(*first(part, layers.first, layers.first_bias), layers, ends.unbind())
            return step * part.scale, moving

        def move(part: Part, layers: Layers, ends: Tensor) -> Tensor:
            return both(part, layers, ends)[0]

        def move_on(part: Part, layers: Layers, ends: Tensor, ahead: Tensor, recent: Tensor) -> tuple[Tensor, Tensor]:
            (step, moving), (fresh, slack) = both(part, layers, ends), recent.unbind()
            return averaged(step, ahead, fresh * moving, slack)

        self._hidden, self.gather = _compiled(hidden, compiled), _compiled(_gather, compiled)
        self._move, self._move_on = _compiled(move, compiled), _compiled(move_on, compiled)

    def receive(self, large: Large, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Means of the hidden layer over columns, [hidden, rows], and over rows, [hidden, columns]."""
        by_row, by_column = [], []
        for start, end in _pieces(large):
            hidden = self._hidden(large.part(start, end), weight, bias).unflatten(-1, (end - start, -1)).squeeze(1)
            by_row.append(hidden.mean(-1))
            by_column.append(hidden.sum(-2))
        return torch.cat(by_row, -1), torch.stack(by_column).sum(0) / len(large.gradient)

    def move(
        self, large: Large, layers: Layers, ends: tuple[Tensor, Tensor], average: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor | None]:
        """The delta, and how far z is then ahead of x, [rows, columns]; without averaging the step alone.

        Args:
            large: a tensor after `gather`.
            layers: the rule's network.
            ends: the second layer's bias, [hidden, rows, 1] plus [hidden, 1, columns].
            average: how far z is ahead of x, and the last two arguments of `averaged`, [2], before the entries' part.
        """
        ahead, recent = average or (None, None)
        delta, after = torch.empty_like(large.gradient), None if ahead is None else torch.empty_like(ahead)
        for start, end in _pieces(large):
            lines = line(ends[0][:, start:end] + ends[1])
            given, shape = (large.part(start, end), layers, lines), delta[start:end].shape
            if ahead is None or after is None or recent is None:
                delta[start:end] = self._move(*given).view(shape)
            else:
                moved = self._move_on(*given, line(ahead[start:end]), recent)
                delta[start:end], after[start:end] = (tensor.view(shape) for tensor in moved)
        return delta, after


def _pieces(large: Large) -> list[tuple[int, int]]:
    return pieces(large.gradient, _PIECE)


def averaged(step: Tensor, ahead: Tensor, fresh: Tensor, slack: Tensor) -> tuple[Tensor, Tensor]:
    """The delta of the parameters y, and how far z is then ahead of x (MetanetRule); `fresh`: the weight of z in x."""
    moved = ahead + step
    after = (1 - fresh) * moved
    return fresh * moved + slack * (after - ahead), after


def _gather(
    gradient: Tensor, before: Moments, scale: tuple[Tensor, Tensor], fresh: tuple[Tensor, float], mix: Tensor
) -> tuple[Moments, Tensor, Tensor]:
    """Moments of which the gradient is a part, what may be levelled, and the gradient's mean square, in the gauge.

    Args:
        gradient: as it came.
        before: the moments of the step before.
        scale: as in Large.
        fresh: what the new gradient counts in each momentum, [momenta], and its square.
        mix: what gradient and momenta count in what is to be levelled, [1 + momenta].
    """
    gradient, rates = gradient * (scale[0] * scale[1]), numbers(fresh[0])
    momenta = [old + rate * (gradient - old) for old, rate in zip(before.momenta.unbind(), rates, strict=True)]
    square = gradient.square()
    squares = (square, square.mean(-1), square.mean(-2))
    kept = [old + fresh[1] * (new - old) for old, new in zip(before[1:], squares, strict=True)]
    mixed = affine(mix[None], [torch.zeros_like(gradient)], [gradient, *momenta])[0]
    return Moments(torch.stack(momenta), *kept), mixed, squares[1].mean()


def _compiled(function: Callable[..., Any], compiled: bool) -> Callable[..., Any]:
    return compiled_for_all_shapes(function) if compiled else function
