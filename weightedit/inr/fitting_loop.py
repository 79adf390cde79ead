"""The loop behind fitting.py: which pixels a step sees, Adam on thousands of networks, stopping, chunks.

A chunk is a block of images worked on together; an INR that reaches the target leaves it at once, so that easy images
do not pay for hard ones. One step's arithmetic is fitting_kernel.py's; options, checks and retries are fitting.py's.
"""

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor
from tqdm import tqdm

from weightedit.inr.convention import Convention, Params
from weightedit.inr.fitting_kernel import Kernel, ParameterLayout, PixelGrid
from weightedit.inr.siren import parameter_count, render_images

MARGIN_DB = 0.005
"""The loop aims this far above the target, so that rounding does not turn a reached target into a missed one."""

RIDGE = 1e-4
"""Penalty on the solved last layer's squared weights, in units of the mean squared error; keeps them moderate."""

CHECK_EVERY, WORSE, BACK_OFF = 10, 4.0, 0.25
"""Steps between two looks at every INR's error; how many times its least it may be; factor on its rate if above."""

COARSE_EXCESS = 4
"""A coarse grid must have this many times more pixels than the last hidden layer has neurons: fewer are fitted by the
closed-form last layer alone, and the sine layers would learn nothing."""


@dataclasses.dataclass(frozen=True)
class Method:
    """How one named method goes about its steps.

    Args:
        residual: (kernel, theta, grid, targets, gradient) -> residuals; sets the last layer in theta, or its gradient.
        solves_last: whether it sets the last layer itself, so that Adam must leave it alone.
        learning_rate: default, per step, in units of the parameters.
        max_steps: default.
        betas, epsilon: Adam's.
        first_layer: learning rate of the first layer relative to that of the others.
        horizon: steps over which a cosine takes the learning rate down to `floor` of itself; None keeps it constant.
        coarse_steps: this many first steps see a quarter of the pixels, a different quarter each time.
        scaled: the default learning rate is that of two hidden layers of 32, and others' follows from it.
    """

    residual: Callable[[Kernel, Tensor, PixelGrid, Tensor, Tensor], Tensor]
    solves_last: bool
    learning_rate: float
    max_steps: int
    betas: tuple[float, float]
    epsilon: float
    first_layer: float = 1.0
    horizon: int | None = None
    floor: float = 0.1
    coarse_steps: int = 0
    scaled: bool = False

    def learning_rate_of(self, widths: tuple[int, ...]) -> float:
        """The default for networks of these widths.

        Deeper and wider networks take smaller steps, times 2 / depth and sqrt(32 / width) (ours, measured on
        photographs of 64 x 64 between 2-32-32-3 and 2-128-128-128-3: within a dB of the best rate of a grid by 2).
        """
        if not self.scaled:
            return self.learning_rate
        hidden = widths[1:-1]
        return self.learning_rate * min(1.0, 2.0 / len(hidden)) * min(1.0, math.sqrt(32.0 / max(hidden)))

    def rate(self, step: int) -> float:
        """Factor on the learning rate at `step` = 0, 1, ..."""
        if self.horizon is None:
            return 1.0
        cosine = 0.5 * (1.0 + math.cos(math.pi * min(1.0, step / self.horizon)))
        return self.floor + (1.0 - self.floor) * cosine


def _solved_last(kernel: Kernel, theta: Tensor, grid: PixelGrid, targets: Tensor, gradient: Tensor) -> Tensor:
    return kernel.solve_last(theta, targets, RIDGE)


def _trained_last(kernel: Kernel, theta: Tensor, grid: PixelGrid, targets: Tensor, gradient: Tensor) -> Tensor:
    residual = kernel.apply_last(theta, targets)
    kernel.last_gradient(grid, residual, gradient)
    return residual


METHODS: dict[str, Method] = {
    "fast": Method(
        residual=_solved_last,
        solves_last=True,
        learning_rate=8e-3,
        max_steps=200,
        betas=(0.7, 0.98),
        epsilon=1e-12,
        first_layer=0.4,
        horizon=70,
        coarse_steps=20,
        scaled=True,
    ),
    "adam": Method(
        residual=_trained_last,
        solves_last=False,
        learning_rate=5e-4,
        max_steps=1000,
        betas=(0.9, 0.999),
        epsilon=1e-8,
    ),
}
"""Name -> method. The numbers of "fast" were tuned on 96 MNIST images at 40 dB; those of "adam" are DWSNets'."""


@dataclasses.dataclass
class _Active:
    """The INRs of a chunk that are still being fitted; row i of every tensor belongs to image `index[i]`."""

    index: Tensor
    raw: Tensor
    theta: Tensor
    gradient: Tensor
    first_moment: Tensor
    second_moment: Tensor
    rate: Tensor
    least: Tensor
    stale: Tensor
    best: Tensor

    def __post_init__(self) -> None:
        self._targets: dict[PixelGrid, Tensor] = {}
        self.backed_off = False

    def guard(self, error: Tensor) -> None:
        """Note who is at its best; those far above it, or above it for the second time, return to it.

        They go on at a lower rate and without moments. NaN is far above.

        Args:
            error: [n], at theta.
        """
        better = error < self.least
        self.least = torch.where(better, error, self.least)
        self.best[better] = self.theta[better]
        lost = ~(error <= WORSE * self.least) | (~better & self.stale)  # also true for NaN
        self.stale = ~better & ~lost
        if bool(lost.any()):
            self.theta[lost] = self.best[lost]
            for tensor in (self.gradient, self.first_moment, self.second_moment):
                tensor[lost] = 0.0
            self.rate = torch.where(lost, BACK_OFF * self.rate, self.rate)
            self.backed_off = True

    def targets(self, grid: PixelGrid) -> Tensor:
        """What the remaining images hold on `grid`, kept until the next INR leaves."""
        if grid not in self._targets:
            self._targets[grid] = grid.targets(self.raw)
        return self._targets[grid]

    def keep(self, mask: Tensor) -> None:
        """Go on with the rows chosen by `mask` [n]."""
        self._targets.clear()
        for field in dataclasses.fields(self):
            setattr(self, field.name, getattr(self, field.name)[mask])


@dataclasses.dataclass(frozen=True)
class FitLoop:
    """Fits stacks of SIRENs of one layout.

    Args:
        method: how.
        layout: of the networks.
        convention: of inputs and outputs; its omega is the layout's.
        target_psnr: in dB.
        learning_rate, max_steps: of this run.
        chunk: INRs at once, None to choose by memory.
        progress: show a bar.
    """

    method: Method
    layout: ParameterLayout
    convention: Convention
    target_psnr: float
    learning_rate: float
    max_steps: int
    chunk: int | None = None
    progress: bool = False

    def attempt(self, images: Tensor, start: Params) -> tuple[Params, Tensor, Tensor]:
        """Fit images [N, C, H, W] in [0, 1] from `start`: parameters, steps [N], and the rendering's PSNR in dB [N].

        A fit that diverged to infinite or undefined weights comes back as its start, with that one's PSNR.
        """
        origin = self.layout.pack(start, images)
        theta = origin.clone()
        steps = torch.zeros(len(images), dtype=torch.long, device=images.device)
        psnr = torch.zeros(len(images), dtype=images.dtype, device=images.device)
        kernel = Kernel(self.layout, images.dtype, images.device)
        with torch.no_grad(), tqdm(total=len(images), unit="INR", disable=not self.progress, desc="fitting") as bar:
            everything = torch.arange(len(images), device=images.device)
            for block in everything.split(self._chunk(images)) if len(images) else ():
                self._fit_chunk(kernel, images, theta, steps, block, bar)
                finite = theta[block].isfinite().all(1, keepdim=True)
                theta[block] = torch.where(finite, theta[block], origin[block])
                psnr[block] = self._psnr(theta[block], images[block])
        return self.layout.unpack(theta), steps, psnr

    def least_memory(self, images: Tensor) -> int:
        """Bytes that `attempt` needs at least: parameters twice, and a chunk's with what Adam and two passes keep."""
        numbers, count = parameter_count(self.layout.widths), len(images)
        chunk = min(count, self._chunk(images))
        activations = 2 * sum(self.layout.widths[1:]) * images.shape[2:].numel()
        return images.element_size() * (2 * count * numbers + chunk * (4 * numbers + activations))

    def _chunk(self, images: Tensor) -> int:
        """INRs at once: a few MB of working memory on a CPU, some GB on a GPU."""
        if self.chunk is not None:
            return self.chunk
        bytes_each = 2 * sum(self.layout.widths[1:]) * images.shape[2:].numel() * images.element_size()
        return max(4, (10_000_000 if images.device.type == "cpu" else 8_000_000_000) // bytes_each)

    def _psnr(self, theta: Tensor, images: Tensor) -> Tensor:
        rendered = render_images(self.layout.unpack(theta), self.convention, *images.shape[2:])
        return -10.0 * torch.log10((rendered - images).square().mean((1, 2, 3)))

    def _grids(self, images: Tensor) -> tuple[list[PixelGrid], PixelGrid]:
        """The grids of the coarse steps, taken in turn (none on a small image), and the whole one."""
        size, order = (images.shape[2], images.shape[3]), self.convention.coordinates
        full = PixelGrid.build(size, order, images)
        if (size[0] // 2) * (size[1] // 2) < COARSE_EXCESS * (self.layout.widths[-2] + 1):
            return [], full
        offsets = ((0, 0), (0, 1), (1, 0), (1, 1))
        return [PixelGrid.build(size, order, images, stride=2, offset=offset) for offset in offsets], full

    def _fit_chunk(
        self, kernel: Kernel, images: Tensor, theta: Tensor, steps: Tensor, block: Tensor, bar: tqdm
    ) -> None:
        """Fit the images of `block`; writes their rows of theta and steps."""
        start = theta[block]
        zeros, ones = torch.zeros_like(start), torch.ones_like(start[:, 0])
        raw, most = self.convention.to_raw(images[block]), torch.full_like(ones, math.inf)
        moments = zeros.clone(), zeros.clone()
        active = _Active(block, raw, start, zeros, *moments, rate=ones, least=most, stale=most == 0, best=start.clone())
        limit = self.convention.span**2 * 10.0 ** (-(self.target_psnr + MARGIN_DB) / 10.0) * images[0].numel()
        coarse, full = self._grids(images)
        # At least two thirds of the steps see all pixels, the last one among them.
        coarse_steps = min(self.method.coarse_steps, self.max_steps // 3) if coarse else 0
        for step in range(self.max_steps):
            grid = coarse[step % len(coarse)] if step < coarse_steps else full
            last = step == self.max_steps - 1
            targets = active.targets(grid)
            kernel.forward(active.theta, grid)
            residual = self.method.residual(kernel, active.theta, grid, targets, active.gradient)
            error = torch.linalg.vector_norm(residual, dim=(1, 2)).square_() if grid is full else None
            kernel.backward(active.theta, grid, residual, active.gradient)
            if error is not None:
                done = error <= limit
                if last or (step - coarse_steps) % CHECK_EVERY == 0:
                    active.guard(error)
                if last:
                    active.theta = torch.where(done[:, None], active.theta, active.best)
                    done = torch.ones_like(done)
                if bool(done.any()):
                    theta[active.index[done]] = active.theta[done]
                    steps[active.index[done]] = step
                    bar.update(int(done.sum()))
                    active.keep(~done)
                    if not len(active.index):
                        return
            self._adam(active, step)

    def _adam(self, active: "_Active", step: int) -> None:
        """One step of Adam (Kingma and Ba 2015, algorithm 1) on theta, in place; overwrites the gradient.

        Sine layers are stored times omega: their step is omega times larger, their gradient and epsilon smaller.
        """
        beta1, beta2 = self.method.betas
        active.first_moment.lerp_(active.gradient, 1.0 - beta1)
        active.second_moment.mul_(beta2).addcmul_(active.gradient, active.gradient, value=1.0 - beta2)
        root = torch.sqrt(active.second_moment, out=active.gradient)
        debias = math.sqrt(1.0 - beta2 ** (step + 1))
        rate = self.learning_rate * self.method.rate(step) * debias / (1.0 - beta1 ** (step + 1))
        first, sine = self.layout.first_size, self.layout.sine_size
        omega = self.layout.omega
        parts = [(slice(first), omega * self.method.first_layer, omega), (slice(first, sine), omega, omega)]
        if not self.method.solves_last:
            parts.append((slice(sine, None), 1.0, 1.0))
        for part, factor, scale in parts:
            denominator = root[:, part].add_(self.method.epsilon * debias / scale)
            if active.backed_off:
                denominator.div_(active.rate[:, None])
            active.theta[:, part].addcdiv_(active.first_moment[:, part], denominator, value=-rate * factor)
