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

from weightedit.optim.metanet_features import Seen, Units, unit_features
from weightedit.optim.stacks import Stack
from weightedit.optim.unitwise import affine, compiled_for_all_shapes, line, numbers, pieces, steady
from weightedit.optim.warrant import of_entries

_PIECE = 2**16  # parameters of a line: what is read and written of it fits the cache, and calls cost little beside it


class Gathered(NamedTuple):
    """A stack's value as it is, [.., tensors, 1, parameters]; gradient and moments in the gauge, after the step.

    `averages`: gradient and momenta; `mixed`: what is to be leveled, as matrices; `squares`: means of the squared
    gradient, lines by row and by column.
    """

    averages: Tensor
    weight: Tensor
    second: Tensor
    mixed: Tensor | None
    squares: tuple[Tensor, Tensor]


class Average(NamedTuple):
    """How far z is ahead of x, [.., tensors, 1, parameters]; what the newest z counts in x, per tensor; 1 - beta."""

    ahead: Tensor
    fresh: Tensor
    slack: Tensor


class Large(NamedTuple):
    """A tensor as it stands, [rows, columns], and the small ones that make what is seen of it."""

    averages: Tensor
    weight: Tensor
    level: Tensor  # leveled averages, if `numbers` say so: one compiled function for both
    second: Tensor
    scales: tuple[Tensor, Tensor]  # [rows, 1] and [1, columns], whose product is its scale
    factors: tuple[Tensor, Tensor]  # and Adafactor's factor
    numbers: Tensor  # factor of the squares and what is added; Seen's inverse; whether it is leveled; corrections

    def part(self, start: int, end: int) -> Part:
        """Rows start to end."""
        scale, factor = (rows[start:end] * columns for rows, columns in (self.scales, self.factors))
        own = ("averages", "weight", "level", "second")
        cut = {key: line(getattr(self, key)[..., start:end, :]) for key in own}
        return Part(**cut, scale=line(scale), factor=line(factor), numbers=self.numbers)


class Part(NamedTuple):
    """Rows of a Large as lines, [1, parameters]."""

    averages: Tensor
    weight: Tensor
    level: Tensor
    second: Tensor
    scale: Tensor
    factor: Tensor
    numbers: Tensor

    def units(self) -> Units:
        """As the features take it."""
        calm, damping, inverse, leveled, *corrections = self.numbers.unbind()
        return Units(
            [average * by for average, by in zip(self.averages.unbind(), corrections, strict=True)],
            *(self.second * calm + damping, inverse, self.factor),
            *((leveled > 0, self.level), self.weight / self.scale),
        )


class Layers(NamedTuple):
    """The rule's network as a stack of tensors meets it."""

    first: Tensor  # [1, hidden, even]
    first_bias: Tensor  # [.., tensors, hidden, 1]
    second: Tensor  # [1, hidden, hidden]
    last: Tensor  # [.., tensors, odd, hidden]: factors of the odd features, the step size among them
    base: Tensor  # [.., tensors, odd, 1]
    sizes: Tensor | None = (
        None  # what `last` and `base` lack of it, [.., tensors, 2, parameters]: of all, of the weight
    )


def hidden_units(even: Sequence[Tensor], weight: Tensor, bias: Tensor) -> list[Tensor]:
    """The first hidden layer from the even features, unit by unit."""
    return [unit.relu() for unit in affine(weight, numbers(bias.squeeze(-1)), even)]


def direct(
    odd: Sequence[Tensor], hidden: Sequence[Tensor], layers: Layers, ends: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """The step in the gauge from odd features and first hidden layer, unit by unit, and what part of it is warranted.

    `ends`: of the second layer.
    """
    second = [unit.relu() for unit in affine(layers.second, ends, hidden)]
    factors = affine(layers.last, numbers(layers.base.squeeze(-1)), second)
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

        self.hidden, self._gather = _compiled(hidden, compiled), _compiled(_gather, compiled)
        self.move, self.move_on = _compiled(move, compiled), _compiled(move_on, compiled)

    def gathered(
        self,
        joined: Sequence[Tensor],
        scales: tuple[Tensor, Tensor],
        rates: tuple[Tensor, float],
        mix: Tensor | None,
    ) -> Gathered:
        """What is gathered of a tensor. All are stacks of one.

        Args:
            joined: gradient, value, momenta and squares.
            scales: as in Seen.
            rates: what a new gradient counts in each momentum, [momenta], and its square.
            mix: what gradient and momenta count in what is to be leveled, [1, 1 + momenta].
        """
        matrix = scales[0].shape[-2], scales[1].shape[-1]
        gradient, _, momenta, second = (_alone(tensor).unflatten(-1, matrix).squeeze(0) for tensor in joined)
        momenta = momenta.reshape(-1, *matrix)
        counts = rates[0].new_zeros(1 + len(rates[0])) if mix is None else _alone(mix)
        fresh, counts = steady(rates[0], counts)
        row, column = (_alone(scale) for scale in scales)
        after, second, mixed = self._gather(gradient, (momenta, second), (row, column), (fresh, rates[1]), counts)
        # Not in the compiled function, which would be compiled once more for long rows: another sum for these.
        square = after[0].square()
        squares = square.mean(-1), square.mean(-2)
        mixed = None if mix is None else mixed[None]
        return Gathered(after.flatten(-2)[None], joined[1], second.reshape(1, 1, -1), mixed, squares)

    def look(self, seen: Seen, layers: Layers) -> LargeLook:
        """A tensor, a stack of one, as the rule's network looks at it."""
        return LargeLook(self, seen, layers)


class LargeLook:
    """metanet_step.Look of one large tensor."""

    def __init__(self, passes: Passes, seen: Seen, layers: Layers) -> None:
        self._passes = passes
        scales, factors = ((rows.squeeze(0), columns.squeeze(0)) for rows, columns in zip(*seen.frames, strict=True))
        calm, damping, inverse, _, _, *corrections = seen.numbers.flatten().detach().unbind()
        level = seen.second if seen.level is None else seen.level
        leveled = torch.full_like(calm, float(seen.level is not None))
        (known,) = steady(torch.stack([calm, damping, inverse, leveled, *corrections]))
        own = (seen.averages, seen.weight, level, seen.second)
        averages, weight, level, second = (_alone(x).unflatten(-1, seen.matrix) for x in own)
        weight, level, second = weight.squeeze(0), level.squeeze(0), second.squeeze(0)
        self._large = Large(averages, weight, level, second, scales, factors, known)
        self._layers = Layers(*steady(*map(_alone, layers[:5])))

    def received(self, stack: Stack) -> tuple[Tensor, Tensor | None]:
        """See metanet_step.given."""
        by_row, by_column, (weight, bias, *_) = [], [], self._layers
        for start, end in _pieces(self._large):
            hidden = self._passes.hidden(self._large.part(start, end), weight, bias)
            hidden = hidden.unflatten(-1, (end - start, -1)).squeeze(1)
            by_row.append(hidden.mean(-1))
            by_column.append(hidden.sum(-2))
        of_columns = torch.stack(by_column).sum(0)
        return torch.cat(by_row, -1), of_columns.unflatten(-1, (stack.sources, -1)).sum(-1)

    def moved(self, ends: Sequence[Tensor], average: Average | None) -> tuple[Tensor, Tensor | None]:
        """The delta, [rows, columns], and how far z is then ahead of x; without averaging the step alone.

        Args:
            ends: of the second layer's bias, per row [1, hidden, rows, 1] and per column, or the same for all.
            average: before the step.
        """
        large, (targets, columns) = self._large, self._large.weight.shape
        row, *column = (end.squeeze(-3).detach() for end in ends)
        row, recent = row.expand(-1, targets, -1), None
        ahead = None if average is None else average.ahead.detach().view(targets, columns)
        if average is not None:
            (recent,) = steady(torch.stack([average.fresh.squeeze(), average.slack]))
        delta, after = torch.empty_like(large.weight), None if ahead is None else torch.empty_like(ahead)
        for start, end in _pieces(large):
            own = row[:, start:end]
            lines = line(own + column[0] if column else own.expand(-1, -1, columns))
            given, shape = (large.part(start, end), self._layers, lines), delta[start:end].shape
            if ahead is None or after is None or recent is None:
                delta[start:end] = self._passes.move(*given).view(shape)
            else:
                moved = self._passes.move_on(*given, line(ahead[start:end]), recent)
                delta[start:end], after[start:end] = (tensor.view(shape) for tensor in moved)
        return delta, after


def _alone(stack: Tensor) -> Tensor:
    """The one tensor of a stack, detached: a compiler sees no other shape of it."""
    return stack.squeeze(0).detach()


def _pieces(large: Large) -> list[tuple[int, int]]:
    return pieces(large.weight, _PIECE)


def averaged(step: Tensor, ahead: Tensor, fresh: Tensor, slack: Tensor) -> tuple[Tensor, Tensor]:
    """The delta of the parameters y, and how far z is then ahead of x (MetanetRule); `fresh`: the weight of z in x."""
    moved = ahead + step
    taken = fresh * moved
    after = moved - taken
    return torch.addcmul(taken, after - ahead, slack), after


def _gather(
    gradient: Tensor,
    before: tuple[Tensor, Tensor],
    scale: tuple[Tensor, Tensor],
    fresh: tuple[Tensor, float],
    mix: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient and momenta in the gauge, squares, what may be leveled.

    Args:
        gradient: as it came, [rows, columns].
        before: momenta and squares of the step before.
        scale: as in Large.
        fresh: what the new gradient counts in each momentum, [momenta], and its square.
        mix: what gradient and momenta count in what is to be leveled, [1 + momenta].
    """
    gradient, rates = gradient * (scale[0] * scale[1]), numbers(fresh[0])
    momenta = [old + rate * (gradient - old) for old, rate in zip(before[0].unbind(), rates, strict=True)]
    second = before[1] + fresh[1] * (gradient.square() - before[1])
    mixed = affine(mix[None], [torch.zeros_like(gradient)], [gradient, *momenta])[0]
    return torch.stack([gradient, *momenta]), second, mixed


def _compiled(function: Callable[..., Any], compiled: bool) -> Callable[..., Any]:
    return compiled_for_all_shapes(function) if compiled else function
