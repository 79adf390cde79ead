"""How a stack of tensors goes in pieces, so that memory is bounded by the piece: the parts, and joining them.

All parts of something are views made in one call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Cut:
    """Some tensors at a time, or some rows of one tensor at a time.

    Args:
        shape: tensors, rows and columns of the stack.
        times: how many pieces' worth of parameters it has; None for one piece.

    Attributes:
        columns: as given.
    """

    def __init__(self, shape: tuple[int, int, int], times: float | None) -> None:
        tensors, rows, self.columns = shape
        self._tensors, self._rows = [tensors], [rows]
        if times is None:
            return
        if times <= tensors:
            some = int(tensors / times)
            self._tensors = [min(some, tensors - i) for i in range(0, tensors, some)]
        else:
            parts = min(rows, round(times / tensors))
            starts = [i * rows // parts for i in range(parts + 1)]
            self._tensors = [1] * tensors
            self._rows = [b - a for a, b in zip(starts, starts[1:], strict=False)]

    def __len__(self) -> int:
        return len(self._tensors) * len(self._rows)

    def of(self, x: Tensor, axis: int | None = None, each: int = 1) -> list[Tensor]:
        """The pieces' parts of [.., tensors, a, b]; an axis that is 1 long is all pieces'.

        Args:
            axis: along which rows lie; None: nothing belongs to a row.
            each: how many numbers of it belong to a row.
        """
        tensors = [x] * len(self._tensors)
        if len(self._tensors) > 1 and x.shape[-3] > 1:
            tensors = x.split(self._tensors, -3)
        if axis is None or len(self._rows) == 1 or x.shape[axis] == 1:
            return [tensor for tensor in tensors for _ in self._rows]
        return [part for tensor in tensors for part in tensor.split([each * n for n in self._rows], axis)]

    def of_tensors(self, parts: Sequence[T]) -> list[Sequence[T]]:
        """What is given piece by piece, as one sequence for every part of the tensors."""
        return [parts[i : i + len(self._rows)] for i in range(0, len(parts), len(self._rows))]

    def joined(self, parts: Sequence[Tensor]) -> Tensor:
        """Results of all pieces, [.., tensors, a, along rows], as one."""
        return joined([joined(rows, -1) for rows in self.of_tensors(parts)], -3)


def joined(parts: Sequence[Tensor], axis: int) -> Tensor:
    """Tensors side by side; a single one as it is."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), axis)
