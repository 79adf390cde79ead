"""The loop behind fitting.py: which pixels a step sees, Adam on thousands of networks, stopping, chunks and bands.

A chunk is a block of images worked on together; an INR that reaches the target leaves it at once, so that easy images
do not pay for hard ones. Images too large for that are worked on in bands of pixels: what a step needs, the normal
equations of the last layer and the gradient, is summed over them, so that memory is bounded by the band and not by the
picture. One step's arithmetic is fitting_kernel.py's; options, checks and retries are fitting.py's.
The file is long because one state, rows of all images, goes through stages, chunks and bands.
"""

import dataclasses
import math
import time
from collections.abc import Sequence

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


TWICE_FORWARD = 1.3
"""Factor on the time of a step whose bands are computed forwards twice, once for the last layer."""

SMALL = 1600
"""Pixels of a picture up to which it counts as small: 40 x 40."""

_MEMORY = {"cpu": (10_000_000, 64_000_000)}
_OTHER = (8_000_000_000, 8_000_000_000)
"""Bytes that a chunk's bands and those of one INR should take: what stays in a CPU's cache; some GB elsewhere."""


def _working_memory(device: torch.device) -> tuple[int, int]:
    return _MEMORY.get(device.type, _OTHER)


@dataclasses.dataclass(frozen=True)
class Method:
    """How one named method goes about its steps.

    Args:
        solves_last: whether the last layer is solved at every step, so that Adam must leave it alone.
        learning_rate: default, per step, in units of the parameters.
        max_steps: default.
        betas, epsilon: Adam's.
        first_layer: learning rate of the first layer relative to that of the others.
        horizon: steps over which a cosine takes the learning rate down to `floor` of itself; None keeps it constant.
        coarse: (stride, steps) of the first steps, which see every stride-th row and column, in turn.
        stretches: horizon and coarse are meant for max_steps, and grow with the steps allowed; they always shrink.
        scaled: the default learning rate is that of two hidden layers of 32, and others' follows from it.
    """

    solves_last: bool
    learning_rate: float
    max_steps: int
    betas: tuple[float, float]
    epsilon: float
    first_layer: float = 1.0
    horizon: int | None = None
    floor: float = 0.1
    coarse: tuple[tuple[int, int], ...] = ()
    stretches: bool = False
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

    def stretched(self, steps: int) -> "Method":
        """The method when `steps` are allowed in place of max_steps."""
        factor = steps / self.max_steps if self.stretches else min(1.0, steps / self.max_steps)
        horizon = self.horizon and max(1, round(self.horizon * factor)) if self.stretches else self.horizon
        coarse = tuple((stride, int(count * factor)) for stride, count in self.coarse)
        return dataclasses.replace(self, max_steps=steps, horizon=horizon, coarse=coarse)

    def rate(self, step: int) -> float:
        """Factor on the learning rate at `step` = 0, 1, ..."""
        if self.horizon is None:
            return 1.0
        cosine = 0.5 * (1.0 + math.cos(math.pi * min(1.0, step / self.horizon)))
        return self.floor + (1.0 - self.floor) * cosine


_SMOOTH = Method(
    solves_last=True,
    learning_rate=4e-3,
    max_steps=200,
    betas=(0.7, 0.98),
    epsilon=1e-12,
    horizon=70,
    coarse=((2, 12),),
    scaled=True,
)
_FAST = dataclasses.replace(_SMOOTH, learning_rate=8e-3, first_layer=0.4, coarse=((2, 20),))
_LARGE = dataclasses.replace(
    _SMOOTH, learning_rate=5e-3, max_steps=400, horizon=400, coarse=((4, 240), (2, 100)), stretches=True
)
_ADAM = Method(solves_last=False, learning_rate=5e-4, max_steps=1000, betas=(0.9, 0.999), epsilon=1e-8)
METHODS: dict[str, tuple[Method, Method]] = {
    "smooth": (_SMOOTH, _LARGE),
    "fast": (_FAST, _LARGE),
    "adam": (_ADAM, _ADAM),
}
"""Name -> method on small pictures, and on larger ones than SMALL.

The numbers of "fast" were tuned on 96 MNIST images for the time to 40 dB, those of "smooth" on 32 MNIST and 12 CIFAR-10
images for what is between the pixels at 1.3 times that time, those on large pictures on two photographs of 128 x 128.
The numbers of "adam" are DWSNets'.
"""


def method_of(name: str, size: tuple[int, int]) -> Method:
    """The method of that name for pictures of this size, (height, width)."""
    small, large = METHODS[name]
    return small if math.prod(size) <= SMALL else large


@dataclasses.dataclass(frozen=True)
class Stage:
    """Steps that see equally many pixels.

    Args:
        grids: taken in turn, each as the bands it is worked on in.
        steps: how many.
        share: of the pixels.
    """

    grids: tuple[tuple[PixelGrid, ...], ...]
    steps: int
    share: float


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

    @classmethod
    def at(cls, index: Tensor, theta: Tensor, raw: Tensor) -> "_Active":
        """Before the first step, from theta [n, K] to raw images [n, C, H, W]."""
        gradient, first, second = (torch.zeros_like(theta) for _ in range(3))
        rate = torch.ones_like(theta[:, 0])
        return cls(
            index, raw, theta, gradient, first, second, rate=rate, least=rate, stale=rate == 0, best=theta.clone()
        )

    def anew(self) -> None:
        """Forget the least errors, as they were on other pixels."""
        self.least = torch.full_like(self.least, math.inf)
        self.stale = torch.zeros_like(self.stale)

    def guard(self, error: Tensor, *, strictly: bool) -> None:
        """Note who is at its best; those far above it, or above it for the second time, return to it.

        They go on at a lower rate and without moments. NaN is far above.

        Args:
            error: [n], at theta.
            strictly: whether errors were all on the same pixels; else only those far above return.
        """
        better = error < self.least
        self.least = torch.where(better, error, self.least)
        self.best[better] = self.theta[better]
        lost = ~(error <= WORSE * self.least)  # also true for NaN
        if strictly:
            lost |= ~better & self.stale
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
        learning_rate: of this run.
        chunk: INRs at once, None to choose by memory.
        band: pixels of an INR at once, None to choose by memory.
        progress: show a bar.
    """

    method: Method
    layout: ParameterLayout
    convention: Convention
    target_psnr: float
    learning_rate: float
    chunk: int | None = None
    band: int | None = None
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

    def memory(self, images: Tensor) -> int:
        """Bytes that `attempt` takes, near enough: parameters twice, and a chunk's with Adam's, a band and targets."""
        numbers, pixels, count = parameter_count(self.layout.widths), images.shape[2:].numel(), len(images)
        chunk = min(count, self._chunk(images))
        own = 4 * numbers + 3 * images.shape[1] * pixels + self._pixel_numbers * min(pixels, self._band(images))
        return images.element_size() * (2 * count * numbers + chunk * own)

    @torch.no_grad()
    def seconds(self, images: Tensor) -> float:
        """What an attempt takes if nothing ends early, by the time that one band of the first chunk takes now."""
        few = images[: self._chunk(images)]
        start = few.new_zeros(len(few), parameter_count(self.layout.widths))
        active = _Active.at(torch.arange(len(few), device=few.device), start, self.convention.to_raw(few))
        kernel, stages = Kernel(self.layout, few.dtype, few.device), self._stages(few)
        bands = stages[-1].grids[0]
        for _ in range(2):  # the first one also takes the memory
            started = time.perf_counter()
            self._evaluate(kernel, active, bands[:1])
            taken = time.perf_counter() - started
        passes = sum(stage.steps * stage.share for stage in stages) * images.shape[2:].numel() / bands[0].pixels
        again = TWICE_FORWARD if len(bands) > 1 and self.method.solves_last else 1.0
        return len(images) / len(few) * passes * taken * again

    @property
    def _pixel_numbers(self) -> int:
        """Numbers kept per pixel of a band: activations and slopes of all layers, and one layer's gradient."""
        return 2 * sum(self.layout.widths[1:]) + max(self.layout.widths)

    def _chunk(self, images: Tensor) -> int:
        """INRs at once: a few MB of working memory on a CPU, some GB on a GPU; four if their bands allow it."""
        if self.chunk is not None:
            return self.chunk
        each = self._pixel_numbers * images.shape[2:].numel() * images.element_size()
        few, most = _working_memory(images.device)
        return max(1, min(4, most // each), few // each)

    def _band(self, images: Tensor) -> int:
        """Pixels of an INR at once."""
        return self.band or max(1, _working_memory(images.device)[1] // (self._pixel_numbers * images.element_size()))

    def _psnr(self, theta: Tensor, images: Tensor) -> Tensor:
        """In dB; what is met but for rounding counts as that far off: 138 dB in float32, and never infinite."""
        rendered = render_images(self.layout.unpack(theta), self.convention, *images.shape[2:])
        least = torch.finfo(images.dtype).eps ** 2
        return -10.0 * torch.log10((rendered - images).square().mean((1, 2, 3)).clamp(min=least))

    def _stages(self, images: Tensor) -> list["Stage"]:
        """What the steps see, coarse to fine; coarse stages of too few pixels are left out."""
        size, order, band = (images.shape[2], images.shape[3]), self.convention.coordinates, self._band(images)
        least, stages, left = COARSE_EXCESS * (self.layout.widths[-2] + 1), [], self.method.max_steps
        for stride, steps in self.method.coarse:
            if (size[0] // stride) * (size[1] // stride) < least or not steps:
                continue
            offsets = [(row, column) for row in range(stride) for column in range(stride)]
            grids = [PixelGrid.build(size, order, images, stride=stride, offset=offset) for offset in offsets]
            stages.append(Stage(tuple(grid.bands(band) for grid in grids), steps, 1.0 / stride**2))
            left -= steps
        full = PixelGrid.build(size, order, images).bands(band)
        return [*stages, Stage((full,), left, 1.0)]

    def _fit_chunk(
        self, kernel: Kernel, images: Tensor, theta: Tensor, steps: Tensor, block: Tensor, bar: tqdm
    ) -> None:
        """Fit the images of `block`; writes their rows of theta and steps."""
        active = _Active.at(block, theta[block], self.convention.to_raw(images[block]))
        limit = self.convention.span**2 * 10.0 ** (-(self.target_psnr + MARGIN_DB) / 10.0) * images[0].numel()
        step = 0
        for stage in self._stages(images):
            active.anew()
            for turn in range(stage.steps):
                error = self._evaluate(kernel, active, stage.grids[turn % len(stage.grids)])
                done = error <= limit * stage.share
                last = turn == stage.steps - 1
                if turn % CHECK_EVERY == 0 or last:
                    share = float(error.max()) / stage.share / images[0].numel() / self.convention.span**2
                    reached = -10.0 * math.log10(max(share, 1e-30)) if share < math.inf else 0.0
                    bar.set_postfix_str(f"step {step} of {self.method.max_steps}, {reached:.1f} dB")
                    active.guard(error, strictly=stage.share == 1.0)
                if stage.share < 1.0:
                    if bool(done.all()):
                        break
                else:
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
                step += 1

    def _evaluate(self, kernel: Kernel, active: "_Active", bands: Sequence[PixelGrid]) -> Tensor:
        """Solve the last layer, where the method does, and write the gradient; the sum of squared errors [n].

        Of the bands the last is the one in memory when the last layer is solved: it is not computed a second time.
        """
        theta, targets, current = active.theta, [active.targets(band) for band in bands], None
        if self.method.solves_last:
            for band, wanted in zip(bands, targets, strict=True):
                current = band
                kernel.forward(theta, band, slopes=band is bands[-1])
                kernel.collect(wanted, anew=band is bands[0])
            kernel.solve_last(theta, RIDGE)
        active.gradient.zero_()
        error = torch.zeros_like(theta[:, 0])
        for band, wanted in zip(reversed(bands), reversed(targets), strict=True):
            if band is not current:
                kernel.forward(theta, band)
            residual = kernel.apply_last(theta, wanted)
            error += torch.linalg.vector_norm(residual, dim=(1, 2)).square_()
            if not self.method.solves_last:
                kernel.last_gradient(band, residual, active.gradient)
            kernel.backward(theta, band, residual, active.gradient)
        return error

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
