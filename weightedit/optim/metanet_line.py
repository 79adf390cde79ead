"""Small stacks of tensors as one line of parameters: what metanet_step.py does with a stack, for all of them at once.

A network has many small tensors of many shapes, and a stack of a few of them costs as many calls as a large one. What
is one number per row, column or tensor is laid out over their parameters for this, which is no more than small.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from weightedit.optim.metanet_features import Seen
from weightedit.optim.metanet_passes import Average, Layers
from weightedit.optim.metanet_step import Look, of_sources

Ends = tuple[Tensor, ...]


class Line:
    """metanet_step.Look of some stacks.

    Args:
        seen: of each; what is leveled comes first.
        numbers: Seen's of each, then the sizes of Layers, what the newest z counts in x, and the first layer's bias:
            [.., tensors, numbers, 1, 1].
        layers: of all tensors; its first bias and its sizes are found in `numbers`.
        how: as in Look.
        keep: as in Look.
    """

    def __init__(
        self, seen: Sequence[Seen], numbers: Sequence[Tensor], layers: Layers, how: tuple[int, bool], *, keep: bool
    ) -> None:
        self._shapes = [one.second.shape[-3:] for one in seen]
        self._lengths = [shape.numel() for shape in self._shapes]
        laid = _line(x.expand(*x.shape[:-2], *shape[1:]) for x, shape in zip(numbers, self._shapes, strict=True))
        most = seen[0].numbers.shape[-3]
        levels = [one.level for one in seen if one.level is not None]
        whole = Seen(
            _line(one.averages for one in seen),
            *(_flat(one.weight for one in seen), _flat(levels) if levels else None, _flat(one.second for one in seen)),
            *((_flat(one.scale for one in seen),), (_flat(one.factor for one in seen),)),
            laid.narrow(-3, 0, most),
        )
        sizes, self._fresh = laid[..., most : most + 2, 0, :], laid[..., most + 2, :, :]
        own = layers._replace(first_bias=laid[..., most + 3 :, 0, :], sizes=sizes)
        self._look = Look(whole, own, how, keep=keep)

    def received(self, sources: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """Look.received of every stack."""
        hidden = [
            part.unflatten(-1, shape)
            for part, shape in zip(self._look.hidden.squeeze(-3).split(self._lengths, -1), self._shapes, strict=True)
        ]
        return [(part.mean(-1), of_sources(part.sum(-2), n)) for part, n in zip(hidden, sources, strict=True)]

    def moved(self, ends: Sequence[Ends], averages: Sequence[Average | None]) -> list[tuple[Tensor, Tensor | None]]:
        """Look.moved of every stack, from the ends of each, [.., hidden, tensors, rows, columns]."""
        summed = zip((sum(end[1:], end[0]) for end in ends), self._shapes, strict=True)
        whole = [end if end.shape[-3:] == shape else end.expand(*end.shape[:-3], *shape) for end, shape in summed]
        laid = torch.cat([end.flatten(-3) for end in whole], -1)
        ahead = [average.ahead for average in averages if average is not None]
        average = Average(_flat(ahead), self._fresh, averages[0].slack) if averages[0] is not None else None
        delta, after = self._look.moved((laid[..., None, :, None, :],), average)
        given = [None] * len(self._shapes) if after is None else self._parts(after)
        return list(zip(self._parts(delta), given, strict=True))

    def _parts(self, line: Tensor) -> list[Tensor]:
        parts = line.flatten(-3).split(self._lengths, -1)
        return [part.unflatten(-1, shape) for part, shape in zip(parts, self._shapes, strict=True)]


def _line(stacks: Iterable[Tensor]) -> Tensor:
    """[.., tensors, features, rows, columns] each, as [.., 1, features, 1, parameters]."""
    features_first = (
        stack.reshape(*stack.shape[:-4], stack.shape[-3], -1)
        if stack.shape[-4] == 1
        else stack.transpose(-4, -3).flatten(-3)
        for stack in stacks
    )
    return torch.cat(list(features_first), -1)[..., None, :, None, :]


def _flat(stacks: Iterable[Tensor]) -> Tensor:
    """[.., tensors, rows, columns] each, as [.., 1, 1, parameters]."""
    return torch.cat([stack.flatten(-3) for stack in stacks], -1)[..., None, None, :]
