"""Small networks that are no chains: residual additions in the places where people put them, and normalizations."""

import torch
from torch import nn
from torch.nn import functional

from tests.modules import ResidualMLP, ResNet
from tests.networks import generator


class PreActivation(nn.Module):
    """A residual stream that normalizations and activations read; its blocks end in a factor."""

    def __init__(self, channels=1, width=4, classes=3, norm=nn.BatchNorm2d):
        super().__init__()
        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        self.norms = nn.ModuleList(norm(width) for _ in range(2))
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(3))
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=False):
            x = x + 0.5 * conv(norm(x).relu())
        x = x.relu() + torch.tanh(self.convs[2](x)) / 2
        return self.head(functional.leaky_relu(x, 0.2).mean((2, 3)))


class Small(nn.Module):
    """One convolution, a normalization, and another convolution with or without a skip around it."""

    def __init__(self, skip=True, norm=nn.BatchNorm2d, channels=1, width=4, classes=2, affine=True):
        super().__init__()
        self.first = nn.Conv2d(channels, width, 3, padding=1)
        self.norm = norm(width) if affine else norm(width, affine=False)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.head = nn.Linear(width, classes)
        self.skip = skip

    def forward(self, x):
        x = self.norm(self.first(x)).relu()
        y = self.second(x)
        y = (y + x if self.skip else y).relu()
        return self.head(functional.adaptive_avg_pool2d(y, 1).flatten(1))


class Scan(nn.Module):
    """Convolutions along a line, LayerNorm over the channels of every place, and a flattening."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv1d(2, 4, 3, padding=1), nn.LayerNorm(4)
        self.second, self.head = nn.Conv1d(4, 4, 1), nn.Linear(4 * 5, 3)

    def forward(self, x):
        x = self.first(x)
        x = x + self.second(self.norm(x.transpose(1, 2)).transpose(1, 2).sin())
        return self.head(x.flatten(1))


def one_group(width, affine=True):
    return nn.GroupNorm(1, width, affine=affine)


def each_channel(width, affine=True):
    return nn.GroupNorm(width, width, affine=affine)


RESIDUAL = {
    "resnet": lambda: ResNet((3, 4), channels=1, classes=3),
    "resnet with group norm": lambda: ResNet((3, 4), channels=1, classes=3, norm=one_group),
    "pre-activation": PreActivation,
    "residual mlp": ResidualMLP,
    "small": Small,
    "scan": Scan,
}


def trained(make, seed=0, dtype=torch.float64):
    """The module, and its parameters with random noise of the size of trained ones on them."""
    torch.manual_seed(seed)
    net, source = make(), generator(seed)
    params = {name: p.detach().double() for name, p in net.named_parameters()}
    noise = {name: torch.randn(p.shape, generator=source, dtype=torch.float64) for name, p in params.items()}
    return net, {name: (p + 0.3 * noise[name]).to(dtype) for name, p in params.items()}
