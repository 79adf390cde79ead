"""Forwards of every kind around three linear layers, for readers: what may be claimed of each is for a test to find."""

import torch
from torch import nn
from torch.nn import functional


class Program(nn.Module):
    """x [3, 6] -> first -> `forward`s, each [3, 8] -> [3, 8] -> last."""

    def __init__(self, *forwards):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 4)
        self.gain, self.shift, self.number = (nn.Parameter(torch.ones(n)) for n in (8, 8, 1))
        self.matrix, self.table = nn.Parameter(torch.ones(8, 8)), nn.Parameter(torch.ones(1, 3, 8))
        self.heads, self.slopes = nn.Parameter(torch.ones(8, 2, 4)), nn.Parameter(torch.full((8,), 0.3))
        self.cube, self.rows = nn.Parameter(torch.ones(8, 8, 8)), nn.Embedding(5, 8)
        self.norm, self.groups = nn.LayerNorm(8), nn.GroupNorm(2, 8)
        self.norm.eps = self.groups.eps = 0.0
        self.register_buffer("mask", torch.tensor([1.0, 0.0] * 4))
        self.forwards = forwards

    def forward(self, x):
        h = self.first(x)
        for forward in self.forwards:
            h = forward(self, h)
        return self.last(h)


def _write(h, write):
    h = h.clone()
    write(h)
    return h


def _attention(net, h):
    q, k, v = (f(h).view(3, 2, 4).transpose(0, 1) for f in (net.second, net.second, torch.relu))
    return functional.scaled_dot_product_attention(q, k, v).transpose(0, 1).reshape(3, 8)


def _by_hand(net, h):
    q, k = (h @ net.matrix).view(3, 2, 4).transpose(0, 1), net.second(h).view(3, 2, 4).transpose(0, 1)
    scores = (q @ k.transpose(-2, -1) / 2).softmax(-1)
    return (scores @ h.view(3, 2, 4).transpose(0, 1)).transpose(0, 1).reshape(3, 8)


class _Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x**3

    @staticmethod
    def backward(ctx, grad):
        return grad


FORWARDS = {
    "relu": lambda n, h: h.relu(),
    "leaky": lambda n, h: functional.leaky_relu(h, 0.2),
    "elu": lambda n, h: functional.elu(h),
    "relu6": lambda n, h: functional.relu6(h),
    "gelu": lambda n, h: functional.gelu(h),
    "tanh": lambda n, h: h.tanh(),
    "sine": lambda n, h: (3 * h).sin(),
    "softmax": lambda n, h: h.softmax(-1),
    "log softmax": lambda n, h: h.log_softmax(1),
    "absolute": lambda n, h: h.abs(),
    "square": lambda n, h: h * h,
    "power": lambda n, h: h**3,
    "double": lambda n, h: 2 * h,
    "one less": lambda n, h: 1 - h,
    "negative": lambda n, h: -h,
    "third": lambda n, h: h / 3,
    "reciprocal": lambda n, h: 1 / (1 + h.square()),
    "gain": lambda n, h: h * n.gain,
    "shift": lambda n, h: n.shift + h,
    "number": lambda n, h: h * n.number,
    "mask": lambda n, h: h * n.mask,
    "mask added": lambda n, h: h + n.mask,
    "table": lambda n, h: (h + n.table[0, :3]),
    "table of three": lambda n, h: (h + n.table)[0],
    "layer": lambda n, h: n.second(h),
    "residual": lambda n, h: h + n.second(h).relu(),
    "gate": lambda n, h: functional.silu(n.second(h)) * h,
    "gate of two": lambda n, h: n.second(h) * (h @ n.matrix),
    "own sum": lambda n, h: h + h.sum(-1, keepdim=True),
    "centered": lambda n, h: h - h.mean(-1, keepdim=True),
    "length": lambda n, h: h / h.norm(dim=-1, keepdim=True),
    "root mean square": lambda n, h: n.gain * (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True))),
    "layer norm": lambda n, h: n.norm(h),
    "group norm": lambda n, h: n.groups(h),
    "cumulative": lambda n, h: h.cumsum(-1),
    "flipped": lambda n, h: h.flip(-1),
    "rolled": lambda n, h: h.roll(1, -1),
    "rolled rows": lambda n, h: h.roll(1, 0),
    "sorted": lambda n, h: h.sort(-1).values,
    "largest": lambda n, h: h.max(-1, keepdim=True).values + h,
    "argument": lambda n, h: h + h.max(-1, keepdim=True).indices,
    "argument of rows": lambda n, h: h + h.max(0, keepdim=True).indices,
    "index": lambda n, h: h[:, [1, 0, 3, 2, 5, 4, 7, 6]],
    "gathered": lambda n, h: h.gather(1, torch.arange(7, -1, -1).expand(3, 8)),
    "half": lambda n, h: h[:, :4].repeat(1, 2),
    "second half": lambda n, h: torch.cat([h[:, 4:], h[:, :4]], 1),
    "halves": lambda n, h: (h.chunk(2, -1)[0] * h.chunk(2, -1)[1]).repeat(1, 2),
    "odd ones": lambda n, h: h[:, 1::2].repeat_interleave(2, 1),
    "unequal": lambda n, h: torch.cat(h.split([3, 5], 1)[::-1], 1),
    "gated": lambda n, h: functional.glu(torch.cat([h, n.second(h)], 1)),
    "stacked": lambda n, h: torch.stack([h, n.second(h)]).sum(0),
    "stacked last": lambda n, h: torch.stack([h, n.second(h)], -1).amax(-1),
    "rearranged": lambda n, h: h.view(3, 2, 4).transpose(1, 2).reshape(3, 8),
    "within": lambda n, h: h.view(3, 2, 4) .softmax(-1).flatten(1),
    "between": lambda n, h: (h.view(3, 2, 4) - h.view(3, 2, 4).mean(1, keepdim=True)).flatten(1),
    "product": lambda n, h: h @ n.matrix,
    "turned": lambda n, h: h @ n.matrix.T,
    "matrix times": lambda n, h: (n.matrix @ h.T).T,
    "added": lambda n, h: torch.addmm(n.shift, h, n.matrix),
    "added twice": lambda n, h: torch.addmm(n.table[0], h, n.matrix),
    "computed bias": lambda n, h: functional.linear(h, n.matrix, n.shift * 2),
    "computed weight": lambda n, h: functional.linear(h, n.matrix / n.matrix.norm()),
    "scaled weight": lambda n, h: functional.linear(h, n.matrix * 0.5),
    "rows of weights": lambda n, h: functional.linear(h, n.matrix / n.matrix.norm(dim=1, keepdim=True)),
    "weight norm": lambda n, h: functional.linear(h, torch._weight_norm(n.matrix, n.gain[:, None])),
    "pieces of weights": lambda n, h: functional.linear(h, n.matrix[:4]).repeat(1, 2),
    "heads": lambda n, h: torch.einsum("be,ehd->bhd", h, n.heads).reshape(3, 8),
    "joined heads": lambda n, h: torch.einsum("bhd,ehd->be", h.view(3, 2, 4), n.heads),
    "bilinear": lambda n, h: torch.einsum("bi,bi->bi", h, n.second(h)),
    "cube": lambda n, h: functional.bilinear(h, h, n.cube),
    "outer": lambda n, h: (h.unsqueeze(1) * h.unsqueeze(2)).mean(1),
    "gram": lambda n, h: (h.unsqueeze(2) @ h.unsqueeze(1)).sum(1),
    "pairs of rows": lambda n, h: (h @ h.T).softmax(-1) @ h,
    "positive": lambda n, h: torch.where(h > 0, h, 0.0),
    "filled": lambda n, h: h.masked_fill(h < 0, 0.5),
    "clamped": lambda n, h: h.clamp(-1, 1),
    "padded": lambda n, h: functional.pad(h, (1, 0))[:, :8],
    "padded rows": lambda n, h: functional.pad(h, (0, 0, 1, 0))[:3],
    "prelu": lambda n, h: functional.prelu(h, n.slopes),
    "repeated": lambda n, h: h.repeat(1, 2)[:, 8:],
    "triangle": lambda n, h: h.tril(),
    "distances": lambda n, h: h + torch.cdist(h, h).sum(-1, keepdim=True),
    "dropout": lambda n, h: functional.dropout(h, 0.5, training=False),
    "noise": lambda n, h: h + 0 * torch.randn(3, 8, dtype=h.dtype),
    "zeros": lambda n, h: h + torch.zeros_like(h) + torch.ones(8, dtype=h.dtype),
    "ramp": lambda n, h: h + torch.arange(8),
    "rows": lambda n, h: h + n.rows(torch.tensor([0, 3, 1])),
    "penalty": lambda n, h: h * n.first.weight.sum(),
    "rows of first": lambda n, h: h * n.first.weight.norm(dim=1),
    "in place": lambda n, h: _write(h, lambda y: y.relu_()),
    "one in place": lambda n, h: _write(h, lambda y: y.add_(1)),
    "written": lambda n, h: _write(h, lambda y: y[:, 0].zero_()),
    "written half": lambda n, h: _write(h, lambda y: y[:, :4].mul_(2)),
    "written over": lambda n, h: _write(h, lambda y: y.copy_(n.second(h))),
    "written view": lambda n, h: _write(h, lambda y: y.view(3, 2, 4)[:, 0].tanh_()),
    "attention": _attention,
    "attention by hand": _by_hand,
    "own function": lambda n, h: _Cube.apply(h),
    "halves of rotary": lambda n, h: torch.cat([-h[:, 4:], h[:, :4]], 1) * 0.3 + h,
    "convolution": lambda n, h: functional.conv1d(h.unsqueeze(1), n.gain.view(1, 1, 8), padding=4)[:, 0, :8],
    "channels": lambda n, h: functional.conv1d(h.unsqueeze(2), n.cube, padding=4).amax(2),
    "depthwise": lambda n, h: functional.conv1d(h.unsqueeze(2), n.gain.view(8, 1, 1), groups=8)[:, :, 0],
    "grouped": lambda n, h: functional.conv1d(h.unsqueeze(2), n.matrix.view(8, 8, 1)[:, :4], groups=2)[:, :, 0],
    "transposed": lambda n, h: functional.conv_transpose1d(h.unsqueeze(2), n.cube).mean(2),
    "pooled": lambda n, h: functional.avg_pool1d(h.unsqueeze(1), 3, 1, 1)[:, 0],
    "pooled positions": lambda n, h: functional.max_pool1d(h.unsqueeze(2).expand(3, 8, 4), 2).mean(2),
    "softplus": lambda n, h: functional.softplus(h),
    "unused": lambda n, h: (n.second(h), h)[1],
}  # fmt: skip
