"""What every metanetwork on graphs shares: a learned vector per level, and a root that is safe at zero."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from weightedit.graph.neural_graph import NodeConstants


class LayerTable(nn.Module):
    """A learned vector per level: one counted from the inputs plus one counted from the outputs.

    Any depth is accepted: levels further away than `levels` share the last entry.
    """

    def __init__(self, levels: int, width: int, *, mean: float = 0.0, spread: float = 0.0) -> None:
        super().__init__()
        self.from_input = nn.Parameter(mean / 2 + spread * torch.randn(levels, width))
        self.from_output = nn.Parameter(mean / 2 + spread * torch.randn(levels, width))

    def forward(self, constants: NodeConstants) -> Tensor:
        """[n, width]"""
        last = self.from_input.shape[0] - 1
        return self.from_input[constants.level.clamp(max=last)] + self.from_output[constants.height.clamp(max=last)]


def root_of_mean(square: Tensor) -> Tensor:
    """The root of a mean square; 1 where that is zero, so that nothing is divided by zero and gradients are finite."""
    dead = square <= 0
    return square.masked_fill(dead, 1.0).sqrt().masked_fill(dead, 1.0)
