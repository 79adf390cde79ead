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
from weightedit.optim.pieces import Cut, joined
from weightedit.optim.stacks import Stack
from weightedit.optim.unitwise import FROM, dense, pooled
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
        compiling = torch.compiler.is_compiling()
        self._unitwise = compiling and seen.second.numel() >= FROM and layers.sizes is None
        count, most = seen.second.numel(), piece(seen.second.device)
        whole = compiling or torch.is_grad_enabled() or count <= most
        self._cut = Cut((seen.second.shape[-3], *seen.matrix), None if whole else count / most)
        self._pieces = list(zip(seen.pieces(self._cut), self._cut.of(layers.first_bias), strict=True))
        self._kept: list[Any] = []
        if keep or (whole and (compiling or torch.is_grad_enabled())):
            self._kept = list(self._walk())

    def _made(self, seen: Seen, bias: Tensor) -> tuple[Tensor, Any, Any]:
        """What a step is multiplied by, odd features and first hidden layer: [.., tensors, features, parameters].

        To a compiler a number per row and column, and lists of units [.., tensors, rows, columns].
        """
        adam, signed = self._how
        if self._unitwise:
            scale = seen.frames[0].select(-4, 0) * seen.frames[1].select(-4, 0)
            odd, even = unit_features(seen.units(scale), adam, signed=signed)
            return scale, odd, hidden_units(even, self._layers.first, bias)
        odd, even = features(seen, framed := seen.framed(), adam, signed=signed)
        return framed[0], odd, dense(self._layers.first, bias, even).relu_()

    def _walk(self) -> Iterator[tuple[Tensor, Any, Any]]:
        if self._kept:
            yield from self._kept
            return
        for seen, bias in self._pieces:
            yield self._made(seen, bias)

    @property
    def hidden(self) -> Tensor:
        """The first hidden layer, [.., tensors, hidden, parameters], of what goes in one piece."""
        ((_, _, hidden),) = self._walk()
        return hidden

    def received(self, stack: Stack) -> tuple[Tensor, Tensor | None]:
        """What neurons receive of the hidden layer: `given`."""
        if not self._unitwise and len(self._pieces) == len(stack) == 1:
            return given(self.hidden.squeeze(-3), stack)
        by_row: list[Tensor] = []
        by_column: list[Tensor] = []
        for _, _, hidden in self._walk():
            grids = hidden if self._unitwise else hidden.unflatten(-1, (-1, stack.columns))
            of_rows, of_columns = pooled(grids) if self._unitwise else (grids.mean(-1), grids.sum(-2))
            by_row.append(of_rows)
            by_column.append(of_columns)
        of_columns = [sum(parts[1:], parts[0]) for parts in self._cut.of_tensors(by_column)]
        of_rows, of_columns = self._cut.joined(by_row), joined(of_columns, -3)
        of_columns = of_sources(of_columns, stack.sources).transpose(-3, -2).flatten(-2)
        return stack.unpadded(of_rows.transpose(-3, -2)), of_columns

    def moved(self, ends: Sequence[Tensor], average: Average | None) -> tuple[Tensor, Tensor | None]:
        """The delta, [.., tensors, 1, parameters], and how far z is then ahead of x; without averaging the step alone.

        Args:
            ends: of the second layer's bias, per row [.., hidden, tensors, rows, 1] and per column; or one for all.
            average: before the step.
        """
        found: list[tuple[Tensor, ...]] = []
        cut, layers = self._cut, self._layers
        rows, *columns = ends
        parts = zip(cut.of(rows, -2), *map(cut.of, columns), strict=True)
        last = zip(cut.of(layers.last), cut.of(layers.base), strict=True)
        iterates = [None] * len(cut)
        if average is not None:
            iterates = list(zip(cut.of(average.ahead, -1, cut.columns), cut.of(average.fresh), strict=True))
        beside = zip(parts, last, iterates, strict=True)
        for scale, odd, hidden in self._walk():  # alone in its loop, which would else hold on to a piece that is done
            part, (weight, base), iterate = next(beside)
            bias = part[0] if len(part) == 1 else part[0] + part[1]
            own = layers._replace(last=weight, base=base)
            if self._unitwise:
                step, moving = direct(odd, hidden, own, bias.unbind(-4))
                step, moving = (x.flatten(-2).unsqueeze(-2) for x in (step * scale, moving))
            else:
                second = dense(own.second, _by_tensor(bias), hidden).relu_()
                del bias, hidden  # of which a piece has little room
                moving, factors = of_entries(odd.narrow(-2, 0, 1)), dense(own.last, own.base, second)
                del second
                if own.sizes is not None:
                    factors[..., WEIGHT, :].mul_(own.sizes[..., 1, :])
                step = factors.mul_(odd).sum(-2, keepdim=True).mul_(moving)
                del odd, factors
                step = (step if own.sizes is None else step.mul_(own.sizes.narrow(-2, 0, 1))).mul_(scale)
            if average is None or iterate is None:
                found.append((step,))
            else:
                found.append(averaged(step, iterate[0], iterate[1] * moving, average.slack))
        delta, *after = map(cut.joined, zip(*found, strict=True))
        return delta, after[0] if after else None


def given(hidden: Tensor, stack: Stack) -> tuple[Tensor, Tensor | None]:
    """What neurons receive of a hidden layer, [.., hidden, all parameters of a stack]: two lines, [.., hidden, n].

    Means by row, and sums by source, which are None where there are no sources.
    """
    lead, one = hidden.shape[:-1], len(stack) == 1
    axes = (stack.sources, stack.rest) if stack.rest > 1 else (stack.sources,)
    grid = hidden.reshape(*lead, *(() if one else (len(stack),)), stack.rows, *axes)
    rows = grid.squeeze(-1) if stack.columns == 1 else grid.mean(tuple(range(-len(axes), 0)))
    rows = rows if one else stack.unpadded(rows)
    if stack.wires[0].source is None:
        return rows, None
    columns = grid.sum((-3, -1)) if stack.rest > 1 else grid.sum(-2)
    return rows, columns if one else columns.flatten(-2)


def _by_tensor(ends: Tensor) -> Tensor:
    """[.., hidden, tensors, rows, columns] as [.., tensors, hidden, parameters]."""
    if ends.shape[-3] > 1:
        return ends.transpose(-4, -3).flatten(-2)
    return ends.reshape(*ends.shape[:-4], 1, ends.shape[-4], -1)


def of_sources(columns: Tensor, sources: int) -> Tensor:
    """Sums over the positions of every source, [.., columns] -> [.., sources]."""
    return columns if columns.shape[-1] == sources else columns.unflatten(-1, (sources, -1)).sum(-1)
