"""The metanetwork rule's way over a stack of tensors (stacks.py): gathering moments, what neurons receive, the steps.

Formulas are metanet_rule.py's. Features and the first hidden layer are made twice, for what neurons receive and for the
steps, where they are too much to be kept; a stack goes through in pieces, so that memory is bounded by the piece,
unless gradients are asked for. Small stacks go together (metanet_line.py). A compiler gets large ones unit by unit
(unitwise.py). One large tensor at a time, compiled once for all shapes, is metanet_passes.py's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from weightedit.optim.metanet_features import WEIGHT, Seen, features, unit_features
from weightedit.optim.metanet_passes import Average, Layers, averaged, direct, hidden_units
from weightedit.optim.unitwise import FROM, dense, pooled, some
from weightedit.optim.warrant import of_entries

PIECES = {"cpu": 2**16}
"""Parameters at once, over all networks of a stack: on a CPU, what its caches hold."""
_PIECE = 3 * 2**20  # on what has no such caches, and for which every call takes long
_KEPT = 2**18  # parameters of a network that is small enough for its features to be kept


def piece(device: torch.device) -> int:
    """How many parameters go through at once."""
    return PIECES.get(device.type, _PIECE)


def kept(count: int, device: torch.device) -> int:
    """Of how many parameters out of `count` features and first hidden layer may be kept."""
    return count if count <= _KEPT else min(piece(device), 2**21)


def together(sizes: Sequence[int], device: torch.device) -> list[list[int]]:
    """Which stacks of these sizes, in parameters, go as one line: small ones, until there are enough for a piece."""
    most, total = piece(device), 0
    largest = min(most, FROM - 1) if torch.compiler.is_compiling() else most
    found: list[list[int]] = []
    for i in sorted(range(len(sizes)), key=sizes.__getitem__):
        if found and sizes[i] <= largest and total + sizes[i] <= most:
            found[-1].append(i)
            total += sizes[i]
        else:
            found.append([i])
            total = sizes[i]
    return found


class Look:
    """A stack as the rule's network looks at it.

    Args:
        seen: of the stack.
        layers: biases and last layers of every tensor.
        how: place of Adam's momentum, and whether the even features are joined by the odd ones.
        keep: whether features and hidden layer may be kept between `received` and `moved`.
    """

    def __init__(self, seen: Seen, layers: Layers, how: tuple[int, bool], *, keep: bool) -> None:
        self._layers, self._how = layers, how
        tensors, rows = seen.second.shape[-3:-1]
        compiling = torch.compiler.is_compiling()
        self._unitwise = compiling and seen.second.numel() >= FROM and layers.sizes is None
        count, most = seen.second.numel(), piece(seen.second.device)
        whole = compiling or torch.is_grad_enabled() or count <= most
        cut = [(slice(None), slice(None))] if whole else _pieces(count // tensors, tensors, rows, most)
        biases = [some(layers.first_bias, -3, of) for of, _ in cut]
        self._pieces = [(one, seen.part(*one), bias) for one, bias in zip(cut, biases, strict=True)]
        self._kept: list[Any] = []
        if keep or (whole and (compiling or torch.is_grad_enabled())):
            self._kept = list(self._walk())

    def _made(self, seen: Seen, bias: Tensor) -> tuple[Any, Any]:
        """Odd features and first hidden layer, [.., tensors, features, parameters], or as lists of units."""
        adam, signed = self._how
        if self._unitwise:
            odd, even = unit_features(seen.units(), adam, signed=signed)
            return odd, hidden_units(even, self._layers.first, bias)
        odd, even = features(seen, adam, signed=signed)
        return odd.flatten(-2), dense(self._layers.first, bias, even.flatten(-2)).relu_()

    def _walk(self) -> Iterator[tuple[tuple[slice, slice], Seen, Any, Any]]:
        if self._kept:
            yield from self._kept
            return
        for place, seen, bias in self._pieces:
            yield place, seen, *self._made(seen, bias)

    @property
    def hidden(self) -> Tensor:
        """The first hidden layer, [.., tensors, hidden, parameters], of what goes in one piece."""
        ((_, _, _, hidden),) = self._walk()
        return hidden

    def received(self, sources: int) -> tuple[Tensor, Tensor]:
        """Of the hidden layer, means by row, [.., hidden, tensors, rows], and sums of means by source."""
        by_row: list[list[Tensor]] = []
        by_column: list[Tensor] = []
        for (_, rows), seen, _, hidden in self._walk():
            grids = hidden if self._unitwise else hidden.unflatten(-1, seen.second.shape[-2:])
            of_rows, of_columns = pooled(grids) if self._unitwise else (grids.mean(-1), grids.sum(-2))
            if rows.start:  # more of the tensors that came before
                by_row[-1].append(of_rows)
                by_column[-1] = by_column[-1] + of_columns
            else:
                by_row.append([of_rows])
                by_column.append(of_columns)
        of_rows, of_columns = _joined([_joined(parts, -1) for parts in by_row], -3), _joined(by_column, -3)
        return of_rows.movedim(-3, -2), of_sources(of_columns, sources).movedim(-3, -2)

    def moved(self, ends: Sequence[Tensor], average: Average | None) -> tuple[Tensor, Tensor | None]:
        """The delta, [.., tensors, rows, columns], and how far z is then ahead of x; without averaging the step alone.

        Args:
            ends: of the second layer's bias, per row [.., tensors, hidden, rows, 1] and per column; or one for all.
            average: before the step.
        """
        found: list[list[tuple[Tensor, ...]]] = []
        for (tensors, rows), seen, odd, hidden in self._walk():
            parts = [some(some(end, -4, tensors), -2, rows) for end in ends]
            bias, layers = sum(parts[1:], parts[0]), self._layers
            own = layers._replace(last=some(layers.last, -3, tensors), base=some(layers.base, -3, tensors))
            if self._unitwise:
                step, moving = direct(odd, hidden, own, bias.unbind(-3))
            else:
                second = dense(own.second, bias.flatten(-2), hidden).relu_()
                del bias, hidden, parts  # of which a piece has little room
                moving, factors = of_entries(odd[..., 0, :]), dense(own.last, own.base, second)
                del second
                if own.sizes is not None:
                    factors[..., WEIGHT, :].mul_(own.sizes[..., 1, :])
                step = factors.mul_(odd).sum(-2).mul_(moving)
                step = step if own.sizes is None else step.mul_(own.sizes[..., 0, :])
                step, moving = (x.unflatten(-1, seen.second.shape[-2:]) for x in (step, moving))
            step = step * seen.scale
            if average is not None:
                ahead, fresh = some(some(average.ahead, -3, tensors), -2, rows), some(average.fresh, -3, tensors)
                result = averaged(step, ahead, fresh * moving, average.slack)
            else:
                result = (step,)
            if rows.start:
                found[-1].append(result)
            else:
                found.append([result])
        given = [_joined([_joined([p[i] for p in parts], -2) for parts in found], -3) for i in range(len(found[0][0]))]
        return given[0], given[1] if average is not None else None


def _pieces(each: int, tensors: int, rows: int, most: int) -> list[tuple[slice, slice]]:
    """Some tensors of `each` parameters at a time, or rows of one tensor at a time, of about `most` parameters."""
    if each <= most:
        some = most // each
        return [(slice(i, i + some), slice(None)) for i in range(0, tensors, some)]
    parts = min(rows, round(each / most))
    starts = [i * rows // parts for i in range(parts + 1)]
    cut = [slice(a, b) for a, b in zip(starts, starts[1:], strict=False)]
    return [(slice(i, i + 1), part) for i in range(tensors) for part in cut]


def of_sources(columns: Tensor, sources: int) -> Tensor:
    """Means over the positions of every source, [.., columns] -> [.., sources]."""
    return columns if columns.shape[-1] == sources else columns.unflatten(-1, (sources, -1)).mean(-1)


def _joined(parts: Sequence[Tensor], axis: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), axis)
