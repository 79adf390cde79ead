"""What a network shows at its probes, read for an embedding: its outputs there, on which no symmetry acts.

Messages carry to the readout what each neuron does at the probes; the outputs there are what the network is for, and go
past the messages as they are. On a grid they are a picture, and convolutions read it: with a probe for every pixel that
is a classifier of renderings, to which weights add little, and a figure of it should say so.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class Shown(nn.Module):
    """Outputs at the probes -> one vector per network, by a hidden layer.

    Args:
        outputs: output neurons of a network.
        probes: where they are read.
        width: of the hidden layer.
        embedding: of the vector.
    """

    def __init__(self, outputs: int, probes: int, width: int, embedding: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(outputs * probes, width)
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, embedding)

    def forward(self, outputs: Tensor) -> Tensor:
        """[..., outputs, probes] -> [..., embedding]."""
        return self.out(functional.silu(self.norm(self.hidden(outputs.flatten(-2)))))


class GridShown(nn.Module):
    """The same for probes on a regular grid: 3x3 convolutions, halving the grid once, and the means of their channels
    in each ninth of the picture.

    Args:
        outputs: output neurons of a network, the channels of its picture.
        side: of the grid, in probes.
        width: channels of the convolutions.
        embedding: of the vector.
    """

    def __init__(self, outputs: int, side: int, width: int, embedding: int) -> None:
        super().__init__()
        self.outputs, self.side = outputs, side
        self.first = nn.Conv2d(outputs, width, 3, padding=1)
        self.inner = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.norm = nn.GroupNorm(1, width)
        self.out = nn.Linear(9 * width, embedding)

    def forward(self, outputs: Tensor) -> Tensor:
        """[..., outputs, side * side] -> [..., embedding]."""
        picture = self.first(outputs.reshape(-1, self.outputs, self.side, self.side))
        picture = functional.avg_pool2d(functional.silu(picture), 2, ceil_mode=True)
        for convolution in self.inner:
            picture = picture + convolution(functional.silu(picture))
        ninths = functional.adaptive_avg_pool2d(functional.silu(self.norm(picture)), 3)
        return self.out(ninths.flatten(-3)).reshape(*outputs.shape[:-2], -1)
