"""Where the positions of a kernel stand among the channels of an edge, so that kernels of several sizes share a batch.

Kofinas et al. 2024 pad every kernel to the largest one, centered, and take its positions as channels. A weight without
a kernel is one position, its center. The features of one network have a frame of their own (features.py). A batch, and
a metanetwork that was made for several networks, has a frame in which all of theirs fit. Between frames a center stays
a center, so it does not matter how often a kernel is moved.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from weightedit.network.graph_spec import AnySpec


@dataclass(frozen=True)
class Frame:
    """The channels of one quantity: positions of a kernel of (height, width), row by row, then `rest` others.

    Others are there where a linear layer reads more positions of a flattened channel than a kernel has.
    """

    height: int = 1
    width: int = 1
    rest: int = 0

    @classmethod
    def of(cls, *specs: AnySpec) -> Frame:
        """The smallest that holds the frames of all these networks, at least one."""
        return joined(cls(*spec.kernel, spec.channels - spec.kernel[0] * spec.kernel[1]) for spec in specs)

    @property
    def channels(self) -> int:
        """How many."""
        return self.height * self.width + self.rest

    def holds(self, other: Frame) -> bool:
        """Whether all of the other's channels have a place here."""
        return joined((self, other)) == self

    def __str__(self) -> str:
        rest = f" and {self.rest} further positions" if self.rest else ""
        return f"{self.height} x {self.width}{rest}"


def joined(frames: Iterable[Frame]) -> Frame:
    """The smallest frame that holds all of these."""
    sizes = zip(*((frame.height, frame.width, frame.rest) for frame in frames), strict=True)
    return Frame(*map(max, sizes))


def reframed(edges: Tensor, old: Frame, new: Frame) -> Tensor:
    """Features of edges in another frame: [..., Q old.channels] -> [..., Q new.channels], zeros where nothing was.

    From a frame to one that holds it and back nothing changes.
    """
    if old == new:
        return edges
    quantities = edges.unflatten(-1, (-1, old.channels))
    kernel = quantities[..., : old.height * old.width].unflatten(-1, (old.height, old.width))
    margins = (*_margins(old.width, new.width), *_margins(old.height, new.height))
    kernel = functional.pad(kernel, margins).flatten(-2)
    rest = functional.pad(quantities[..., old.height * old.width :], (0, new.rest - old.rest))
    return torch.cat([kernel, rest], -1).flatten(-2)


def reframed_nodes(nodes: Tensor, old: Frame, new: Frame) -> Tensor:
    """The same for features of nodes, of which the first channel of a quantity is all that there is."""
    if old == new:
        return nodes
    return functional.pad(nodes.unflatten(-1, (-1, old.channels)), (0, new.channels - old.channels)).flatten(-2)


def _margins(old: int, new: int) -> tuple[int, int]:
    """Places before and after, negative where they are cut off."""
    before = (new - 1) // 2 - (old - 1) // 2
    return before, new - old - before
