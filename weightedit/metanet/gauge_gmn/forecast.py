"""Forecasts: what an edit should change in a network's outputs, predicted from what its probes read there.

Output neurons carry no symmetry, so any network may act on them; what becomes of a forecast inside the network under
edit is network.py's and heads.py's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from weightedit.graph.neural_graph import NodeConstants


class Forecast(nn.Module):
    """The change of every output at every probe that an edit should bring about, predicted from what the probes see.

    Sent down the network as a gradient would be (probing.backpropagate), it tells each neuron how its own
    pre-activations should change. Output neurons carry no symmetry, so any network may act there.
    """

    def __init__(self, readings: int, width: int) -> None:
        super().__init__()
        sizes = [readings, width, width]
        parts = [
            p for a, b in zip(sizes, sizes[1:], strict=False) for p in (nn.Linear(a, b), nn.LayerNorm(b), nn.SiLU())
        ]
        self.body = nn.Sequential(*parts, nn.Linear(width, readings))

    def forward(self, values: Tensor, constants: NodeConstants) -> Tensor:
        """[..., n, P] activations -> [..., n, P] wished-for changes, zero except at the output nodes."""
        wished = self.body(values.index_select(-2, constants.outputs))
        return torch.zeros_like(values).index_copy(-2, constants.outputs, wished)


class GridForecast(nn.Module):
    """A Forecast for probes on a regular grid: residual 3x3 convolutions over the picture that the outputs show there.

    The first reading, which is of the bias and no probe's, has no place in the picture and a forecast of zero.

    Args:
        outputs: output neurons of a network, the channels of its picture.
        side: of the grid, in probes.
        width: channels between the convolutions.
        dilations: of the inner convolutions, one each: in probes, how far apart what they read is. Wide ones see parts
            of the picture, not only a neighborhood (Yu & Koltun 2016).
    """

    def __init__(self, outputs: int, side: int, width: int, dilations: tuple[int, ...] = (1, 1)) -> None:
        super().__init__()
        self.outputs, self.side = outputs, side
        self.first = nn.Conv2d(outputs, width, 3, padding=1)
        self.inner = nn.ModuleList(nn.Conv2d(width, width, 3, padding=d, dilation=d) for d in dilations)
        self.last = nn.Conv2d(width, outputs, 3, padding=1)

    def forward(self, values: Tensor, constants: NodeConstants) -> Tensor:
        """[..., n, P] activations -> [..., n, P] wished-for changes, zero except at the output nodes."""
        shown = values.index_select(-2, constants.outputs)
        change = self.change(shown[..., 1:].reshape(-1, self.outputs, self.side, self.side))
        change = change.reshape(*shown.shape[:-1], -1)
        change = torch.cat([torch.zeros_like(shown[..., :1]), change], -1)
        return torch.zeros_like(values).index_copy(-2, constants.outputs, change)

    def change(self, pictures: Tensor) -> Tensor:
        """What is wished to be added to raw outputs over the grid, both [N, outputs, side, side]."""
        picture = self.first(pictures)
        for convolution in self.inner:
            picture = picture + convolution(functional.silu(picture))
        return self.last(functional.silu(picture))
