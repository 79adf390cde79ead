"""Networks to train, as people write them: what optimizers are timed and compared on. Plain PyTorch, random weights."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional


def mlp(*widths: int, activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """Linear layers of these widths, an activation between; images [n, C, H, W] are flattened first."""
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), activation()]
    return nn.Sequential(*layers[:-1])


class Frozen(nn.Linear):
    """A linear layer that is not trained: its gradient is zero."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight.detach(), None if self.bias is None else self.bias.detach())


def conv_net(channels: int, *widths: int, classes: int = 10) -> nn.Sequential:
    """3 x 3 convolutions with BatchNorm and ReLU, all but the first of stride 2; the mean over pixels is classified."""
    layers: list[nn.Module] = []
    for i, (before, after) in enumerate(pairwise((channels, *widths))):
        layers += [nn.Conv2d(before, after, 3, 1 + (i > 0), 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], classes))


class BasicBlock(nn.Module):
    """ResNet's basic block: [n, before, H, W] -> [n, after, H / stride, W / stride]."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after)
        self.conv2, self.bn2 = nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after)
        self.down: nn.Module = nn.Identity()
        if stride > 1:
            self.down = nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        return functional.relu(y + self.down(x))


def resnet18(classes: int = 10) -> nn.Sequential:
    """ResNet-18 for small images [n, 3, H, W], 11 M parameters."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    before = 64
    for width in (64, 128, 256, 512):
        layers += [BasicBlock(before, width, 1 + (width > 64)), BasicBlock(width, width, 1)]
        before = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))


class TransformerBlock(nn.Module):
    """Attention and an MLP with GELU, each after a LayerNorm, on [n, t, width]."""

    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, t, e = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(n, t, 3, self.heads, e // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.out(y.transpose(1, 2).reshape(n, t, e))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    """A small language model: tokens [n, t], t at most `context` -> logits [n, t, vocabulary]; 10.9 M parameters."""

    def __init__(
        self, vocabulary: int = 256, width: int = 384, depth: int = 6, heads: int = 6, context: int = 256
    ) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*[TransformerBlock(width, heads, causal=True) for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        return self.head(self.norm(self.blocks(x)))


class ViT(nn.Module):
    """A vision transformer on images [n, C, size, size] -> logits [n, classes]: patches, blocks, the mean."""

    def __init__(
        self, channels: int = 3, size: int = 32, patch: int = 4, width: int = 64, depth: int = 3, heads: int = 4,
        classes: int = 10,
    ) -> None:  # fmt: skip
        super().__init__()
        self.patches = nn.Conv2d(channels, width, patch, patch)
        self.positions = nn.Parameter(0.02 * torch.randn((size // patch) ** 2, width))
        self.blocks = nn.Sequential(*[TransformerBlock(width, heads, causal=False) for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.norm(self.blocks(x)).mean(1))


class RowLSTM(nn.Module):
    """An LSTM over the rows of images [n, 1, H, W] -> logits [n, classes], from its last state."""

    def __init__(self, columns: int = 28, width: int = 64, classes: int = 10) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(columns, width, batch_first=True), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x.squeeze(1))[0][:, -1])


class Sine(nn.Module):
    """sin(omega x)."""

    def __init__(self, omega: float = 30.0) -> None:
        super().__init__()
        self.omega = omega

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.omega * x)


def siren(*widths: int, omega: float = 30.0) -> nn.Sequential:
    """A SIREN with its own initialization (Sitzmann et al. 2020), coordinates [n, inputs] -> values [n, outputs]."""
    net = mlp(*widths, activation=lambda: Sine(omega))
    linears = [layer for layer in net if isinstance(layer, nn.Linear)]
    for i, layer in enumerate(linears):
        bound = 1 / layer.in_features if i == 0 else (6 / layer.in_features) ** 0.5 / omega
        nn.init.uniform_(layer.weight, -bound, bound)
    return net


@torch.no_grad()
def rescaled(net: nn.Module, low: float, high: float) -> nn.Module:
    """`net` with its weights, but not its biases and gains, times one factor, log-uniform between two."""
    factor = low * (high / low) ** torch.rand(())
    for parameter in net.parameters():
        if parameter.dim() > 1:
            parameter *= factor
    return net
