"""Small stacks of tensors as one line of parameters: what metanet_step.py does with a stack, for all of them at once.

A network has many small tensors of many shapes, and a stack of a few of them costs as many calls as a large one. What
is one number per row, column or tensor is laid out over their parameters for this, which is no more than small.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from weightedit.optim.lists import products, totals
from weightedit.optim.metanet_features import Seen
from weightedit.optim.metanet_passes import Average, Layers
from weightedit.optim.metanet_step import Look, given
from weightedit.optim.stacks import Stack

Ends = tuple[Tensor, ...]


class Line:
    """metanet_step.Look of some stacks.

    Args:
        seen: of each; what is leveled comes first.
        numbers: Seen's of each, then the sizes of Layers, what the newest z counts in x, and the first layer's bias:
            [.., tensors, numbers, 1].
        layers: of all tensors; its first bias and its sizes are found in `numbers`.
        how: as in Look.
        keep: as in Look.
    """

    def __init__(
        self, seen: Sequence[Seen], numbers: Sequence[Tensor], layers: Layers, how: tuple[int, bool], *, keep: bool
    ) -> None:
        shapes = [one.second.shape for one in seen]
        self._matrices = [(one.second.shape[-3], *one.matrix) for one in seen]
        self._lengths = [math.prod(shape) for shape in self._matrices]
        laid = _line(x.expand(*x.shape[:-1], shape[-1]) for x, shape in zip(numbers, shapes, strict=True))
        framed = products(*zip(*(one.frames for one in seen), strict=True))
        most = seen[0].numbers.shape[-2]
        levels = [one.level for one in seen if one.level is not None]
        whole = Seen(
            *(_line(one.averages for one in seen), _line(one.weight for one in seen)),
            *(_line(levels) if levels else None, _line(one.second for one in seen)),
            (torch.cat([x.flatten(-3) for x in framed], -1).unflatten(-1, (1, 1, -1)),),
            laid.narrow(-2, 0, most),
        )
        sizes, self._fresh = laid.narrow(-2, most, 2), laid.narrow(-2, most + 2, 1)
        own = layers._replace(first_bias=laid[..., most + 3 :, :], sizes=sizes)
        self._look = Look(whole, own, how, keep=keep)

    def received(self, stacks: Sequence[Stack]) -> list[tuple[Tensor, Tensor | None]]:
        """Look.received of every stack."""
        parts = self._look.hidden.squeeze(-3).split_with_sizes(self._lengths, -1)
        return [given(part, stack) for part, stack in zip(parts, stacks, strict=True)]

    def moved(self, ends: Sequence[Ends], averages: Sequence[Average | None]) -> list[tuple[Tensor, Tensor | None]]:
        """Look.moved of every stack, from the ends of each: all its parameters as a line."""
        summed = totals(*zip(*ends, strict=True)) if len(ends[0]) > 1 else [end for (end,) in ends]
        given = zip(summed, self._matrices, strict=True)
        whole = [end if end.shape[-3:] == shape else end.expand(*end.shape[:-3], *shape) for end, shape in given]
        laid = torch.cat([end.flatten(-3) for end in whole], -1)
        ahead = [average.ahead for average in averages if average is not None]
        average = Average(_line(ahead), self._fresh, averages[0].slack) if averages[0] is not None else None
        delta, after = self._look.moved((laid.unflatten(-1, (1, 1, -1)),), average)
        given = [None] * len(self._lengths) if after is None else self._parts(after)
        return list(zip(self._parts(delta), given, strict=True))

    def _parts(self, line: Tensor) -> Sequence[Tensor]:
        return line.split_with_sizes(self._lengths, -1)


def _line(stacks: Iterable[Tensor]) -> Tensor:
    """[.., tensors, features, parameters] each, as [.., 1, features, all parameters]."""
    return torch.cat([one for x in stacks for one in (x.split(1, -3) if x.shape[-3] > 1 else [x])], -1)
