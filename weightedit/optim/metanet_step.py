"""The metanetwork rule's way over a stack of tensors (stacks.py): gathering moments, what neurons receive, the steps.

Formulas are metanet_rule.py's. Features and the first hidden layer are made twice, for what neurons receive and for the
steps, where they are too much to be kept; then a stack goes through in pieces, so that memory is bounded by the piece,
unless gradients are asked for. A compiler gets them unit by unit (unitwise.py). One large tensor at a time, compiled
once for all shapes, is metanet_passes.py's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from weightedit.optim.metanet_features import Seen, features, unit_features
from weightedit.optim.metanet_passes import Average, Layers, averaged, direct, hidden_units
from weightedit.optim.unitwise import FROM, dense, pooled, some
from weightedit.optim.warrant import of_entries

PIECES = {"cpu": 2**16}
"""Parameters at once, over all networks of a stack: on a CPU, what its caches hold."""
_PIECE = 2**21  # on what has no such caches, and for which every call takes long


def piece(device: torch.device) -> int:
    """How many parameters go through at once."""
    return PIECES.get(device.type, _PIECE)


class Look:
    """A stack as the rule's network looks at it.

    Args:
        seen: of the stack.
        layers: biases and last layers of every tensor.
        how: place of Adam's momentum, and whether the even features are joined by the odd ones.
        keep: whether features and hidden layer may be kept between `received` and `moved`.
    """

    def __init__(self, seen: Seen, layers: Layers, how: tuple[int, bool], *, keep: bool) -> None:
        self._seen, self._layers, self._how = seen, layers, how
        tensors, rows = seen.gradient.shape[-3:-1]
        compiling = torch.compiler.is_compiling()
        self._unitwise = compiling and seen.gradient.numel() >= FROM
        count, most = seen.gradient.numel(), piece(seen.gradient.device)
        whole = compiling or torch.is_grad_enabled() or count <= most
        self._pieces = [(slice(None), slice(None))] if whole else _pieces(count // tensors, tensors, rows, most)
        self._kept = None
        if whole and (keep or compiling or torch.is_grad_enabled()):
            self._kept = self._made(seen, layers.first_bias)

    def _made(self, seen: Seen, bias: Tensor) -> tuple[Any, Any]:
        """Odd features and first hidden layer, [.., tensors, features, parameters], or as lists of units."""
        adam, signed = self._how
        if self._unitwise:
            odd, even = unit_features(seen.units(), adam, signed=signed)
            return odd, hidden_units(even, self._layers.first, bias)
        odd, even = features(seen, adam, signed=signed)
        return odd.flatten(-2), dense(self._layers.first, bias.unsqueeze(-1), even.flatten(-2)).relu_()

    def _walk(self) -> Iterator[tuple[tuple[slice, slice], Seen, Any, Any]]:
        for tensors, rows in self._pieces:
            seen = self._seen if len(self._pieces) == 1 else self._seen.part(tensors, rows)
            yield (tensors, rows), seen, *(self._kept or self._made(seen, some(self._layers.first_bias, -2, tensors)))

    def received(self, sources: int) -> tuple[Tensor, Tensor]:
        """Means of the hidden layer: over all but rows, [.., tensors, hidden, rows], and all but sources."""
        total = self._seen.gradient.shape[-2]
        by_row: list[list[Tensor]] = []
        by_source: list[Tensor] = []
        for (_, rows), seen, _, hidden in self._walk():
            shape = (seen.gradient.shape[-2], sources, seen.gradient.shape[-1] // sources)
            if self._unitwise:
                of_rows, of_sources = pooled(hidden, shape)
            else:
                grid = hidden.unflatten(-1, shape)
                of_rows, of_sources = grid.mean((-2, -1)), grid.mean(-1).sum(-2) / total
            if rows.start:  # more of the tensors that came before
                by_row[-1].append(of_rows)
                by_source[-1] = by_source[-1] + of_sources
            else:
                by_row.append([of_rows])
                by_source.append(of_sources)
        return _joined([_joined(parts, -1) for parts in by_row], -3), _joined(by_source, -3)

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
            own = layers._replace(last=some(layers.last, -3, tensors), base=some(layers.base, -2, tensors))
            if self._unitwise:
                step, moving = direct(odd, hidden, own, bias.unbind(-3))
            else:
                second = dense(own.second, bias.flatten(-2), hidden).relu_()
                moving = of_entries(odd[..., 0, :])
                step = (odd * dense(own.last, own.base.unsqueeze(-1), second)).sum(-2) * moving
                step, moving = (x.unflatten(-1, seen.gradient.shape[-2:]) for x in (step, moving))
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


def _joined(parts: Sequence[Tensor], axis: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), axis)
