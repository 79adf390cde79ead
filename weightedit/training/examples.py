"""What `train` draws its batches from when everything fits in memory: rows of tensors, moved to the device once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from weightedit.errors import WeightEditError

Part = Tensor | Mapping[str, Tensor]


class Examples:
    """Rows of tensors by name; a batch is a dict of the same names.

    Args:
        parts: each a tensor [N, ...] or a dict of such, as stacked parameters are.

    Raises WeightEditError when they differ in N, or there are none.

    >>> examples = Examples(params={"weight": torch.zeros(5, 3, 2)}, labels=torch.arange(5))
    >>> examples[torch.tensor([4, 0])]["labels"]
    tensor([4, 0])
    """

    def __init__(self, **parts: Part) -> None:
        self.parts = parts
        tensors = [t for part in parts.values() for t in (part.values() if isinstance(part, Mapping) else [part])]
        lengths = sorted({len(tensor) for tensor in tensors})
        if len(lengths) != 1:
            raise WeightEditError(
                f"got examples of lengths {lengths}; expected one length: choose the same rows of all."
            )
        self._length = lengths[0]

    def to(self, device: torch.device | str) -> Examples:
        """The same examples on `device`."""
        return Examples(**self._each(lambda tensor: tensor.to(device)))

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, rows: Tensor) -> dict[str, Any]:
        return self._each(lambda tensor: tensor[rows])

    def _each(self, change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        return {
            name: {key: change(tensor) for key, tensor in part.items()} if isinstance(part, Mapping) else change(part)
            for name, part in self.parts.items()
        }


class OneOf:
    """Several sets of examples, which may differ in shapes; every batch is from one, which its first index says.

    >>> sets = OneOf([Examples(images=torch.zeros(3, 1, 2, 2)), Examples(images=torch.zeros(5, 3, 4, 4))])
    >>> len(sets), sets[torch.tensor([7, 2])]["images"].shape
    (10, torch.Size([2, 3, 4, 4]))
    """

    def __init__(self, parts: Sequence[Examples]) -> None:
        self.parts, self.longest = parts, max(len(part) for part in parts)

    def to(self, device: torch.device | str) -> OneOf:
        """The same on `device`."""
        return OneOf([part.to(device) for part in self.parts])

    def __len__(self) -> int:
        return self.longest * len(self.parts)

    def __getitem__(self, rows: Tensor) -> dict[str, Any]:
        part = self.parts[int(rows[0]) % len(self.parts)]
        return part[rows.div(len(self.parts), rounding_mode="floor") % len(part)]


class EndToEnd:
    """Several sets of examples, which may differ in shapes, one after the other; a batch is the rows of each it is of.

    >>> sets = EndToEnd([Examples(images=torch.zeros(3, 1, 2, 2)), Examples(images=torch.zeros(5, 3, 4, 4))])
    >>> {number: part["images"].shape for number, part in sets[torch.tensor([7, 2, 3])].items()}
    {0: torch.Size([1, 1, 2, 2]), 1: torch.Size([2, 3, 4, 4])}
    """

    def __init__(self, parts: Sequence[Examples]) -> None:
        self.parts, self.starts = parts, list(accumulate(map(len, parts), initial=0))

    def to(self, device: torch.device | str) -> EndToEnd:
        """The same on `device`."""
        return EndToEnd([part.to(device) for part in self.parts])

    def __len__(self) -> int:
        return self.starts[-1]

    def __getitem__(self, rows: Tensor) -> dict[int, dict[str, Any]]:
        if len(self.parts) == 1:
            return {0: self.parts[0][rows]}  # without a mask, for which a device would wait
        own = [rows[(rows >= start) & (rows < end)] - start for start, end in pairwise(self.starts)]
        return {number: self.parts[number][mine] for number, mine in enumerate(own) if len(mine)}
