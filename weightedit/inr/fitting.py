"""From images to INRs: thousands of SIRENs fitted at once to a target PSNR.

Here are the options, the checks, initializations and retries; the loop over steps and chunks is fitting_loop.py's, one
step's values and gradients are fitting_kernel.py's. Two methods are offered by name:

* "fast" (ours): the last, linear layer is solved in closed form at every step and Adam moves the sine layers only, its
  learning rate on a cosine; the first steps see every other row and column, a different quarter of the pixels each.
* "adam": Kingma and Ba's Adam (2015) on all parameters with a constant learning rate, all pixels at every step: the
  recipe of published INR data sets (DWSNets: learning rate 5e-4, at most 1,000 steps, init "dwsnets").

Both stop an INR, and take it out of the work, at the first step at which its rendering reaches the target.
"""

import dataclasses
import logging
import math

import torch
from torch import Tensor

from weightedit.capacity import check_capacity
from weightedit.errors import ParamsError, WeightEditError
from weightedit.inr.convention import Convention, Params, convert, widths_of
from weightedit.inr.fitting_kernel import ParameterLayout
from weightedit.inr.fitting_loop import METHODS, FitLoop
from weightedit.inr.siren import INITIALIZATIONS, check_widths, initial_params
from weightedit.inr.stack import INRStack

TARGETS = {("dwsnets", "fast"): 18.0, ("dwsnets", "adam"): 25.0}
"""Default target in dB of these initializations and methods; 40 of all others."""

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class FitOptions:
    """How to fit.

    Args:
        method: "fast" or "adam", see the top of this file.
        init: "siren" or "dwsnets", see `initial_params`.
        target_psnr: in dB, of the rendering against the image, both in [0, 1]; None is what all of 16 MNIST images
            reach: 40, but from "dwsnets" 18 by fast and 25 by adam.
        max_steps: per attempt; None is the method's default (fast 200, adam 1,000).
        learning_rate: per step, in units of the parameters; None is the method's default, which for fast is 8e-3
            with two hidden layers of 32, and less with more or wider ones.
        retries: how often an INR that missed the target starts again from a fresh initialization.
        chunk: INRs worked on at once; None chooses by memory: what fits in cache on a CPU, thousands on a GPU. It does
            not change what is fitted beyond rounding.

    Raises:
        WeightEditError: an unknown name, or a number out of range.
    """

    method: str = "fast"
    init: str = "siren"
    target_psnr: float | None = None
    max_steps: int | None = None
    learning_rate: float | None = None
    retries: int = 1
    chunk: int | None = None

    def __post_init__(self) -> None:
        for name, known in (("method", METHODS), ("init", INITIALIZATIONS)):
            if getattr(self, name) not in known:
                raise WeightEditError(
                    f"{name}={getattr(self, name)!r}: expected one of {', '.join(known)}; choose one."
                )
        for name, least in (("max_steps", 1), ("chunk", 1), ("retries", 0)):
            value = getattr(self, name)
            if value is None and name != "retries":
                continue
            if not isinstance(value, int) or value < least:
                raise WeightEditError(f"{name}={value!r}: expected a whole number of at least {least}; correct it.")
        for name in ("target_psnr", "learning_rate"):
            value = getattr(self, name)
            if value is None:
                continue
            if not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
                raise WeightEditError(f"{name}={value!r}: expected a positive number; correct it.")

    @property
    def target(self) -> float:
        """In dB: target_psnr, or its default."""
        return self.target_psnr or TARGETS.get((self.init, self.method), 40.0)


@dataclasses.dataclass(frozen=True)
class FitResult:
    """What `fit` returns; N INRs in the order of the images.

    Args:
        stack: all of them, also those that missed the target.
        steps: gradient steps behind each INR, int64 [N], of its best attempt.
        psnr: of its rendering, in dB, [N].
        missed: int64 indices of those below the target, in ascending order.
    """

    stack: INRStack
    steps: Tensor
    psnr: Tensor
    missed: Tensor

    def kept(self) -> INRStack:
        """The stack without the INRs that missed the target."""
        keep = torch.ones(len(self.stack), dtype=torch.bool)
        keep[self.missed.cpu()] = False
        return self.stack[keep]


def fit(
    images: Tensor,
    *,
    widths: tuple[int, ...] | None = None,
    convention: Convention | None = None,
    options: FitOptions | None = None,
    initial: Params | None = None,
    generator: torch.Generator | None = None,
    progress: bool = False,
    device: torch.device | str | None = None,
) -> FitResult:
    """Fit one SIREN to each image, all independently.

    Args:
        images: [N, C, H, W] in [0, 1], floating point, or uint8 in 0..255. float64 images are fitted in float64.
        widths: (2, hidden, ..., C); None chooses by size, see `hidden_widths`.
        convention: what inputs and outputs mean; None is Convention(). One of several frequencies, or of other
            coordinates than [-1, 1], is fitted as its `plain` and then converted.
        options: None is FitOptions().
        initial: stacked parameters to start from, N of them, under `convention`; then nothing is drawn and nothing
            retried. None draws an independent initialization for every image.
        generator: where initializations come from; None is PyTorch's global CPU generator.
        progress: show a tqdm bar.
        device: where to work and where the result lies; None is the device of `images`.

    Returns:
        A FitResult; INRs that missed the target are listed in its `missed`, and a warning is logged.

    Raises:
        ParamsError: images or `initial` of a wrong type, shape or range, or widths that do not fit the images.
        WeightEditError: more than this machine can hold, or a convention of other functions than sines and a linear
            last layer.
    """
    meant, options = convention or Convention(), options or FitOptions()
    convention = meant.plain
    convention.check_plain_siren()
    if initial is not None and convention != meant:
        initial = convert(initial, meant, convention)
    images = _checked_images(images, device)
    widths = _checked_widths(widths or (2, *hidden_widths(*images.shape[2:]), images.shape[1]), images.shape[1])
    loop = FitLoop(
        METHODS[options.method],
        ParameterLayout(widths, convention.frequency),
        convention,
        target_psnr=options.target,
        learning_rate=options.learning_rate or METHODS[options.method].learning_rate_of(widths),
        max_steps=options.max_steps or METHODS[options.method].max_steps,
        chunk=options.chunk,
        progress=progress,
    )
    needed, what = (
        loop.least_memory(images),
        f"fitting SIRENs of widths {'-'.join(map(str, widths))} to {_sized(images)}",
    )
    check_capacity(needed, what, "choose narrower ones, smaller images, or fewer at once", images.device)
    start = initial
    if start is None:
        start = initial_params(len(images), widths, init=options.init, omega=convention.frequency, generator=generator)
    _check_initial(start, widths, len(images))
    params, steps, psnr = loop.attempt(images, start)
    for _ in range(options.retries if initial is None else 0):
        again = torch.nonzero(~(psnr >= options.target)).squeeze(1)
        if not len(again):
            break
        fresh = initial_params(len(again), widths, init=options.init, omega=convention.frequency, generator=generator)
        new_params, new_steps, new_psnr = loop.attempt(images[again], fresh)
        better = new_psnr > psnr[again]
        for name, tensor in params.items():
            tensor[again[better]] = new_params[name][better]
        steps[again[better]], psnr[again[better]] = new_steps[better], new_psnr[better]
    found = _result(images, params, steps, psnr, options, loop, warm=initial is not None)
    if convention == meant:
        return found
    stack = found.stack
    stack = dataclasses.replace(stack, params=convert(stack.params, convention, meant), convention=meant)
    return dataclasses.replace(found, stack=stack)


def hidden_widths(height: int, width: int) -> tuple[int, ...]:
    """Hidden widths for pictures of this size in pixels: two layers of 32 up to 40 x 40, beyond it three.

    Their width grows with the root of the picture's side: 64 at 64 x 64, 96 at 128 x 128, 128 at 256 x 256.

    >>> hidden_widths(28, 28), hidden_widths(256, 256)
    ((32, 32), (128, 128, 128))
    """
    side = math.sqrt(height * width)
    return (32, 32) if side <= 40 else (32 * round(math.sqrt(side) / 4),) * 3


def fit_directly(stack: INRStack, targets: Tensor) -> INRStack:
    """The floor: the same INRs fitted to the targets themselves by gradient descent from their own weights, to 40 dB.

    Args:
        stack: where to start.
        targets: float [N, C, H, W] in [0, 1].
    """
    return fit(targets, widths=stack.widths, convention=stack.convention, initial=stack.params).stack


def _result(
    images: Tensor, params: Params, steps: Tensor, psnr: Tensor, options: FitOptions, loop: FitLoop, *, warm: bool
) -> FitResult:
    missed = torch.nonzero(~(psnr >= options.target)).squeeze(1)
    if len(missed):
        _logger.warning(
            "%d of %d INRs missed %g dB, first at index %d: see FitResult.missed, or take FitResult.kept().",
            len(missed), len(images), options.target, int(missed[0]),
        )  # fmt: skip
    provenance = {
        "init": "given" if warm else options.init,
        "method": options.method,
        "learning_rate": f"{loop.learning_rate:g}",
        "target_psnr": f"{options.target:g}",
        "max_steps": str(loop.max_steps),
        "retries": str(0 if warm else options.retries),
        "steps": f"{int(steps.min())} to {int(steps.max())}" if len(steps) else "none",
    }
    height, width = images.shape[2:]
    stack = INRStack(params, loop.convention, height, width, psnr=psnr, provenance=provenance)
    return FitResult(stack, steps, psnr, missed)


def _sized(images: Tensor) -> str:
    count, _, height, width = images.shape
    return f"{count:,} image{'s' * (count != 1)} of {height} x {width}"


def _checked_images(images: Tensor, device: torch.device | str | None) -> Tensor:
    if not isinstance(images, Tensor) or images.dim() != 4 or 0 in images.shape[1:]:
        came = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise ParamsError(f"images {came}: expected a tensor (N, channels, height, width); add the missing axes.")
    images = images.detach().to(device) if device is not None else images.detach()
    if images.dtype == torch.uint8:
        return images.float() / 255.0
    if not images.dtype.is_floating_point:
        raise ParamsError(f"images of type {images.dtype}: expected floating point in [0, 1] or uint8; convert them.")
    images = images if images.dtype == torch.float64 else images.float()
    bad = ~((images >= 0) & (images <= 1)).flatten(1).all(1)
    if bad.any():
        first = int(torch.nonzero(bad)[0])
        raise ParamsError(
            f"image {first} (and {int(bad.sum()) - 1} more) has values that are not finite or outside [0, 1]: expected "
            "images scaled to [0, 1], whatever the convention; rescale or clamp them."
        )
    return images


def _checked_widths(widths: tuple[int, ...], channels: int) -> tuple[int, ...]:
    widths = check_widths(widths)
    if widths[0] != 2 or widths[-1] != channels:
        raise ParamsError(
            f"widths {widths} for images of {channels} channels: expected (2, hidden, ..., {channels}); correct them."
        )
    return widths


def _check_initial(initial: Params, widths: tuple[int, ...], count: int) -> None:
    found, shape = widths_of(initial), initial["layers.0.weight"].shape
    if found != widths or shape != (count, widths[1], 2):
        raise ParamsError(
            f"initial parameters of widths {found}, first weight {tuple(shape)}: expected {count} stacked networks "
            f"of widths {widths}; pass widths=, or one start per image."
        )
    if not all(bool(tensor.isfinite().all()) for tensor in initial.values()):
        raise ParamsError("initial parameters with NaN or infinite values: expected finite ones; leave them out.")
