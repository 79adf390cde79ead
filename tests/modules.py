"""Networks of the kinds that people train, small: what wirings are read from and optimizers are tried on."""

import torch
from torch import nn
from torch.nn import functional


def seeded(make):
    """make(), its random weights the same in every test, and no other test's numbers moved by them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make()


class Block(nn.Module):
    """ResNet's basic block."""

    def __init__(self, before, after, stride, norm=nn.BatchNorm2d):
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = norm(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = norm(after)
        self.down = (
            nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), norm(after)) if stride > 1 else nn.Identity()
        )

    def forward(self, x):
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        return functional.relu(y + self.down(x))


class ResNet(nn.Module):
    """ResNet-18 for small images: widths (64, 128, 256, 512) make it the 11 M parameter one."""

    def __init__(self, widths=(4, 6, 8, 10), classes=5, channels=3, norm=nn.BatchNorm2d):
        super().__init__()
        self.stem = nn.Conv2d(channels, widths[0], 3, 1, 1, bias=False)
        self.bn = norm(widths[0])
        blocks, before = [], widths[0]
        for i, width in enumerate(widths):
            blocks += [Block(before, width, 1 + (i > 0), norm), Block(width, width, 1, norm)]
            before = width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(before, classes)

    def forward(self, x):
        x = self.blocks(functional.relu(self.bn(self.stem(x))))
        return self.head(functional.adaptive_avg_pool2d(x, 1).flatten(1))


class CNN(nn.Module):
    """Three convolutions, and a linear layer that reads every pixel of every channel."""

    def __init__(self, channels=(1, 4, 5, 6), size=8, classes=5):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in zip(channels, channels[1:], strict=False))
        for _ in self.convs:
            size = (size + 1) // 2
        self.head = nn.Linear(channels[-1] * size * size, classes)

    def forward(self, x):
        for conv in self.convs:
            x = conv(x).relu()
        return self.head(x.view(x.size(0), -1))


class Attention(nn.Module):
    """Causal or full self-attention from plain linear layers."""

    def __init__(self, width, heads, causal):
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        n, t, e = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, self.heads, e // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(y.transpose(1, 2).reshape(n, t, e))


class TransformerBlock(nn.Module):
    """Pre-norm, GELU."""

    def __init__(self, width, heads, causal):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, causal)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class ViT(nn.Module):
    """A vision transformer with a class token."""

    def __init__(self, width=8, depth=2, heads=2, size=8, patch=4, classes=5, channels=3):
        super().__init__()
        self.patch = nn.Conv2d(channels, width, patch, patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.zeros(1, (size // patch) ** 2 + 1, width))
        self.blocks = nn.Sequential(*[TransformerBlock(width, heads, False) for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        return self.head(self.norm(self.blocks(x))[:, 0])


class GPT(nn.Module):
    """A small language model whose output layer is its embedding."""

    def __init__(self, vocabulary=11, width=8, depth=2, heads=2, context=6):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*[TransformerBlock(width, heads, True) for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, tokens):
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        return self.head(self.norm(self.blocks(x)))


class ResidualMLP(nn.Module):
    """Linear layers with a residual stream, BatchNorm and two activations."""

    def __init__(self, inputs=3, width=6, classes=4):
        super().__init__()
        self.first, self.norm = nn.Linear(inputs, width), nn.BatchNorm1d(width)
        self.up, self.down, self.last = nn.Linear(width, 5), nn.Linear(5, width), nn.Linear(width, classes)

    def forward(self, x):
        x = self.norm(self.first(x)).tanh()
        return self.last(x + self.down(self.up(x).relu()))


class Unreadable(nn.Module):
    """Control flow on data: it cannot be traced."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)

    def forward(self, x):
        return self.last(self.norm(self.first(x)).relu() if x.sum() > 0 else self.first(x))
