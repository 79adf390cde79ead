"""Values and gradients of many SIREN fits at once, written out by hand: no autograd, few passes over memory.

Here is what one step of fitting.py computes for n networks on one pixel grid, as a whole or band by band. All networks
live in one tensor theta [n, K], `ParameterLayout` says where each layer lies in it; the sine layers are stored
multiplied by omega, so that a layer is sin(V y + c) and no pass over the pixels is spent on the frequency. Which
pixels, which steps, and when to stop is fitting_loop.py's.

Formulas, ours, elementary. Legend: y activations, V, c weight and bias of a sine layer times omega, A, b the last
linear layer, t target, r = y A^T + b - t.
* First layer: its phase is p + q with p a function of the row and q of the column, so sin(p + q) = sin p cos q +
  cos p sin q and cos(p + q) = cos p cos q - sin p sin q need sines on H + W places, not on H * W.
* Last layer: min over A, b of mean |r|^2 + ridge |A|^2 is a linear system of the size of the last hidden layer; b is
  eliminated by centering. At that minimum the gradient with respect to everything else is that of mean |r|^2 with A
  and b held fixed (the envelope theorem), which makes it cost no more than plain backpropagation.
"""

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from weightedit.inr.convention import Params


class Buffers:
    """Named working memory that is taken again at every step; allocation would cost as much as arithmetic."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype, self._device = dtype, device
        self._memory: dict[str, Tensor] = {}

    def take(self, name: str, *shape: int) -> Tensor:
        """The memory called `name` as a contiguous tensor of `shape`, with whatever it held before."""
        size = math.prod(shape)
        memory = self._memory.get(name)
        if memory is None or memory.numel() < size:
            memory = self._memory[name] = torch.empty(size, dtype=self._dtype, device=self._device)
        return memory[:size].view(shape)


@dataclasses.dataclass(frozen=True, eq=False)
class PixelGrid:
    """The pixels of one step, or a band of them: where some rows and some columns of the image cross.

    Args:
        rows [R], columns [C]: coordinates on each axis.
        row_input: which network input is the row, 0 or 1.
        basis: [3, R * C], the two network inputs and the constant 1 at each pixel.
        share: 2 / number of pixels in the whole image, so that a grid's gradient is its share of the whole image's.
        picked: the rows and the columns, as slices of the image's.
    """

    rows: Tensor
    columns: Tensor
    row_input: int
    basis: Tensor
    share: float
    picked: tuple[slice, slice]

    @classmethod
    def build(
        cls, size: tuple[int, int], order: str, like: Tensor, *, stride: int = 1, offset: tuple[int, int] = (0, 0)
    ) -> "PixelGrid":
        """Every `stride`-th row and column from `offset` on, of an image of `size` (height, width) on [-1, 1].

        Its type and device are those of `like`.
        """
        picked = tuple(slice(first, length, stride) for length, first in zip(size, offset, strict=True))
        rows, columns = (
            torch.linspace(-1.0, 1.0, length, dtype=like.dtype, device=like.device)[part].contiguous()
            for length, part in zip(size, picked, strict=True)
        )
        row_map, column_map = rows.repeat_interleave(len(columns)), columns.repeat(len(rows))
        inputs = (column_map, row_map) if order == "xy" else (row_map, column_map)
        basis = torch.stack((*inputs, torch.ones_like(row_map)))
        return cls(rows, columns, 1 if order == "xy" else 0, basis, 2.0 / math.prod(size), (picked[0], picked[1]))

    @property
    def pixels(self) -> int:
        """How many."""
        return len(self.rows) * len(self.columns)

    def bands(self, most: int) -> tuple["PixelGrid", ...]:
        """The grid in bands of whole rows, in order, of `most` pixels at most, or of one row where that has more."""
        height, length = max(1, most // len(self.columns)), len(self.columns)
        if height >= len(self.rows):
            return (self,)
        stride, parts = self.picked[0].step, []
        for start in range(0, len(self.rows), height):
            rows = self.rows[start : start + height]
            first = self.picked[0].start + start * stride
            picked = slice(first, first + stride * len(rows), stride), self.picked[1]
            basis = self.basis[:, start * length : (start + len(rows)) * length]
            parts.append(dataclasses.replace(self, rows=rows, basis=basis, picked=picked))
        return tuple(parts)

    def targets(self, raw: Tensor) -> Tensor:
        """Of raw images [n, C, H, W]: [n, C + 1, pixels], the channels at this grid's pixels and a row of ones."""
        count, channels = raw.shape[:2]
        picked = raw[:, :, self.picked[0], self.picked[1]].reshape(count, channels, -1)
        return torch.cat((picked, torch.ones_like(picked[:, :1])), 1)


@dataclasses.dataclass(frozen=True)
class ParameterLayout:
    """Where each layer of a SIREN of these widths lies in a row of theta, and the change of scale by omega."""

    widths: tuple[int, ...]
    omega: float

    @property
    def first_size(self) -> int:
        """Numbers in the first layer."""
        return self.widths[1] * (self.widths[0] + 1)

    @property
    def sine_size(self) -> int:
        """Numbers in the sine layers, the first part of a row."""
        pairs = zip(self.widths[:-2], self.widths[1:-1], strict=True)
        return sum(fan_out * (fan_in + 1) for fan_in, fan_out in pairs)

    def views(self, theta: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Weight [n, out, in] and bias [n, out] of each layer, as views of theta [n, K]."""
        layers, start = [], 0
        for fan_in, fan_out in zip(self.widths[:-1], self.widths[1:], strict=True):
            stop = start + fan_out * fan_in
            weight = theta[:, start:stop].unflatten(1, (fan_out, fan_in))
            layers.append((weight, theta[:, stop : stop + fan_out]))
            start = stop + fan_out
        return layers

    def pack(self, params: Params, like: Tensor) -> Tensor:
        """theta [N, K] of stacked parameters."""
        parts = []
        for i in range(len(self.widths) - 1):
            scale = self.omega if i < len(self.widths) - 2 else 1.0
            parts += [params[f"layers.{i}.{kind}"].flatten(1).to(like) * scale for kind in ("weight", "bias")]
        return torch.cat(parts, 1)

    def unpack(self, theta: Tensor) -> Params:
        """Stacked parameters of theta [N, K]; the inverse of `pack`."""
        params: Params = {}
        for i, layer in enumerate(self.views(theta)):
            scale = self.omega if i < len(self.widths) - 2 else 1.0
            for kind, tensor in zip(("weight", "bias"), layer, strict=True):
                params[f"layers.{i}.{kind}"] = (tensor / scale).contiguous()
        return params


class Kernel:
    """One step's arithmetic, on one grid or on the bands of one.

    Per band `forward` and `collect`, then once `solve_last`, where the last layer is solved; then per band `forward`
    (the band of the last one need not be done again), `apply_last`, `last_gradient` where the last layer is trained,
    and `backward`, which adds to the gradient and overwrites what forward kept. All tensors returned live in buffers
    that the next call takes again.
    """

    def __init__(self, layout: ParameterLayout, dtype: torch.dtype, device: torch.device) -> None:
        self.layout = layout
        self._buffers = Buffers(dtype, device)
        self._activations: list[Tensor] = []
        self._cosines: list[Tensor] = []
        self._factors: tuple[Tensor, Tensor, Tensor, Tensor] = ()  # type: ignore[assignment]
        self._collected = 0

    def forward(self, theta: Tensor, grid: PixelGrid, *, slopes: bool = True) -> Tensor:
        """Activations of the last sine layer [n, pixels, hidden] of the networks theta [n, K].

        Args:
            theta: the networks.
            grid: the pixels.
            slopes: whether `backward` will follow on this grid.
        """
        layers, count, take = self.layout.views(theta), len(theta), self._buffers.take
        values = self._first_layer(*layers[0], grid)
        self._activations, self._cosines = [values], []
        for i, (weight, bias) in enumerate(layers[1:-1], start=1):
            shape = (count, values.shape[1], weight.shape[1])
            phase = torch.bmm(values, weight.mT, out=take(f"phase{i}", *shape)).add_(bias.unsqueeze(1))
            values = torch.sin(phase, out=take(f"activation{i}", *shape))
            self._activations.append(values)
            if slopes:
                self._cosines.append(phase.cos_())
        return values

    def _first_layer(self, weight: Tensor, bias: Tensor, grid: PixelGrid) -> Tensor:
        (count, width, _), take = weight.shape, self._buffers.take
        height, length, row_input = len(grid.rows), len(grid.columns), grid.row_input
        row_weight, column_weight = weight[:, None, :, row_input], weight[:, None, :, 1 - row_input]
        p = torch.mul(row_weight, grid.rows[:, None], out=take("row", count, height, width))
        q = torch.mul(column_weight, grid.columns[:, None], out=take("column", count, length, width))
        q.add_(bias[:, None])
        row_sine = torch.sin(p, out=take("row_sine", *p.shape)).unsqueeze(2)
        column_sine = torch.sin(q, out=take("column_sine", *q.shape)).unsqueeze(1)
        row_cosine, column_cosine = p.cos_().unsqueeze(2), q.cos_().unsqueeze(1)
        self._factors = (row_sine, row_cosine, column_sine, column_cosine)
        values = take("activation0", count, height, length, width)
        torch.mul(row_sine, column_cosine, out=values).addcmul_(row_cosine, column_sine)
        return values.view(count, height * length, width)

    def collect(self, targets: Tensor, *, anew: bool) -> None:
        """Add the last forward's pixels to the sums that `solve_last` needs; `anew` begins them.

        Args:
            targets: [n, outputs + 1, pixels], as `PixelGrid.targets` makes them.
            anew: whether these are the first pixels of a step.
        """
        values, take, kept = self._activations[-1], self._buffers.take, 0.0 if anew else 1.0
        count, pixels, width = values.shape
        take("cross", count, targets.shape[1], width).baddbmm_(targets, values, beta=kept)
        take("gram", count, width, width).baddbmm_(values.mT, values, beta=kept)
        sums = take("sums", count, targets.shape[1], 1)
        sums.copy_(targets.sum(2, keepdim=True)) if anew else sums.add_(targets.sum(2, keepdim=True))
        self._collected = pixels if anew else self._collected + pixels

    def solve_last(self, theta: Tensor, ridge: float) -> None:
        """Write the last layer that is best on all pixels collected into theta.

        Args:
            theta: [n, K], the networks of the last `forward`; its last layer is overwritten.
            ridge: penalty on the squared weights, in units of the mean squared error; the bias is free.
        """
        weight, bias = self.layout.views(theta)[-1]
        (count, outputs, width), take, pixels = weight.shape, self._buffers.take, self._collected
        sums, gram = take("cross", count, outputs + 1, width), take("gram", count, width, width)
        cross, total = sums[:, :-1], sums[:, -1:]
        mean = take("sums", count, outputs + 1, 1)[:, :-1] / pixels
        gram.baddbmm_(total.mT, total, alpha=-1.0 / pixels)
        gram.diagonal(dim1=1, dim2=2).add_(ridge * pixels)
        factor = torch.linalg.cholesky_ex(gram)[0]
        weight.copy_(torch.cholesky_solve((cross - mean * total).mT, factor).mT)
        bias.copy_((mean - torch.bmm(weight, total.mT).div_(pixels)).squeeze(2))

    def apply_last(self, theta: Tensor, targets: Tensor) -> Tensor:
        """Residuals r [n, pixels, outputs] with the last layer as it stands in theta; targets as in `collect`."""
        values = self._activations[-1]
        weight, bias = self.layout.views(theta)[-1]
        residual = self._buffers.take("residual", *values.shape[:2], weight.shape[1])
        return torch.bmm(values, weight.mT, out=residual).add_(bias.unsqueeze(1)).sub_(targets[:, :-1].mT)

    def last_gradient(self, grid: PixelGrid, residual: Tensor, gradient: Tensor) -> None:
        """Add the last layer's gradient to `gradient` [n, K], of the loss in `backward`; call before `backward`."""
        weight, bias = self.layout.views(gradient)[-1]
        scale = grid.share / residual.shape[2]
        weight.add_(torch.bmm(residual.mT, self._activations[-1]), alpha=scale)
        bias.add_(residual.sum(1), alpha=scale)

    def backward(self, theta: Tensor, grid: PixelGrid, residual: Tensor, gradient: Tensor) -> None:
        """Add the sine layers' gradient to `gradient` [n, K].

        The loss is the sum of r^2 over the grid, divided by the number of pixels of the whole image and of outputs. On
        a coarse grid the gradient is thus a part of the whole one, not an estimate of it: Adam's second moment, built
        on coarse steps, then lets the first full steps be larger (42 instead of 87 steps to 40 dB on MNIST).

        Args:
            theta: [n, K], with the last layer that gave `residual`.
            residual: [n, pixels, outputs]; overwritten.
            gradient: [n, K]; the part of the last layer is left alone.
        """
        take, (count, pixels, outputs) = self._buffers.take, residual.shape
        layers, gradients = self.layout.views(theta), self.layout.views(gradient)
        residual.mul_(grid.share / outputs)
        ones = grid.basis[2:].expand(count, 1, pixels)
        upstream = torch.bmm(residual, layers[-1][0], out=take("upstream", *self._activations[-1].shape))
        for i in range(len(layers) - 2, 0, -1):
            delta = self._cosines[i - 1].mul_(upstream)
            before, weight = self._activations[i - 1], layers[i][0]
            gradients[i][0].add_(torch.bmm(delta.mT, before, out=take("product", *weight.shape)))
            gradients[i][1].add_(torch.bmm(ones, delta).squeeze(1))
            upstream = torch.bmm(delta, weight, out=take("upstream", *before.shape))
        delta = upstream.mul_(self._first_cosine(upstream.shape))
        products = torch.bmm(grid.basis.expand(count, 3, pixels), delta)
        gradients[0][0].add_(products[:, :2].mT)
        gradients[0][1].add_(products[:, 2])

    def _first_cosine(self, shape: Sequence[int]) -> Tensor:
        row_sine, row_cosine, column_sine, column_cosine = self._factors
        # The first activations were last needed for the second layer's gradient: their memory is free now.
        values = self._activations[0].view(shape[0], row_sine.shape[1], column_sine.shape[2], shape[2])
        torch.mul(row_cosine, column_cosine, out=values).addcmul_(row_sine, column_sine, value=-1.0)
        return values.view(shape)
