"""From images to INRs: thousands of SIRENs fitted at once to a target PSNR.

Here are the options, the checks, initializations and retries; the loop over steps and chunks is fitting_loop.py's, one
step's values and gradients are fitting_kernel.py's. Three methods are offered by name:

* "smooth" (ours): the last, linear layer is solved in closed form at every step and Adam moves the sine layers only,
  its learning rate on a cosine; the first steps see every other row and column, a different quarter of the pixels each,
  and on large pictures most steps see a sixteenth or a quarter.
* "fast" (ours): the same at twice the rate on small pictures: 40 dB in four fifths of the time, but noise between the
  pixels. The INRs that the shipped editors were trained on are its.
* "adam": Kingma and Ba's Adam (2015) on all parameters with a constant learning rate, all pixels at every step: the
  recipe of published INR data sets (DWSNets: learning rate 5e-4, at most 1,000 steps, init "dwsnets").

All stop an INR, and take it out of the work, at the first step at which its rendering reaches the target.
"""

import dataclasses
import logging
import math

import torch
from torch import Tensor

from weightedit.capacity import check_capacity
from weightedit.errors import ParamsError, WeightEditError, check_whole
from weightedit.inr.convention import Convention, Params, convert, widths_of
from weightedit.inr.fitting_kernel import ParameterLayout
from weightedit.inr.fitting_loop import METHODS, SMALL, FitLoop, method_of
from weightedit.inr.siren import INITIALIZATIONS, check_widths, initial_params
from weightedit.inr.stack import INRStack

TARGETS = {("dwsnets", "smooth"): 18.0, ("dwsnets", "fast"): 18.0, ("dwsnets", "adam"): 25.0}
"""Default target in dB of these initializations and methods."""
SIZED_TARGETS = ((SMALL, 40.0), (96 * 96, 35.0), (math.inf, 30.0))
"""Default target in dB of all others, by the pixels of the picture: up to so many, so much."""

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class FitOptions:
    """How to fit.

    Args:
        method: "smooth", "fast" or "adam", see the top of this file.
        init: "siren" or "dwsnets", see `initial_params`.
        target_psnr: in dB, of the rendering against the image, both in [0, 1]; None is 40 up to 40 x 40 pixels, 35 up
            to 96 x 96, 30 beyond, but from "dwsnets" 18, and 25 by adam, as all of 16 MNIST images reach.
        max_steps: per attempt; None is the method's default (200, and 400 beyond 40 x 40 pixels; adam 1,000).
        learning_rate: per step, in units of the parameters; None is the method's default, which for smooth is 4e-3
            with two hidden layers of 32, for fast 8e-3, and less with more or wider ones. Less is smoother.
        retries: how often an INR that missed the target starts again from a fresh initialization; None is once up to
            40 x 40 pixels, and not beyond.
        chunk: INRs worked on at once; None chooses by memory: what fits in cache on a CPU, thousands on a GPU. It does
            not change what is fitted beyond rounding.
        band: pixels of an INR worked on at once; None chooses by memory. It does not change what is fitted beyond
            rounding, nor does a picture's size change the memory that a band takes.

    Raises:
        WeightEditError: an unknown name, or a number out of range.
    """

    method: str = "smooth"
    init: str = "siren"
    target_psnr: float | None = None
    max_steps: int | None = None
    learning_rate: float | None = None
    retries: int | None = None
    chunk: int | None = None
    band: int | None = None

    def __post_init__(self) -> None:
        for name, known in (("method", METHODS), ("init", INITIALIZATIONS)):
            if getattr(self, name) not in known:
                raise WeightEditError(
                    f"{name}={getattr(self, name)!r}: expected one of {', '.join(known)}; choose one."
                )
        for name, least in (("max_steps", 1), ("chunk", 1), ("band", 1), ("retries", 0)):
            value = getattr(self, name)
            if value is not None:
                check_whole(name, value, least)
        for name in ("target_psnr", "learning_rate"):
            value = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
                raise WeightEditError(f"{name}={value!r}: expected a positive number; correct it.")

    def target(self, size: tuple[int, int]) -> float:
        """In dB, for pictures of this size (height, width): target_psnr, or its default."""
        sized = next(target for pixels, target in SIZED_TARGETS if math.prod(size) <= pixels)
        return self.target_psnr or TARGETS.get((self.init, self.method), sized)

    def steps(self, size: tuple[int, int]) -> int:
        """Per attempt, for pictures of this size (height, width): max_steps, or its default."""
        return self.max_steps or method_of(self.method, size).max_steps


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
        images: [N, C, H, W] in [0, 1], floating point, or uint8 in 0..255. float64 images are fitted in float64. Memory
            does not grow with their size, beyond some numbers per pixel, see `FitOptions.band`.
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
    loop = _loop(widths, convention, options, images, progress)
    retries = options.retries if options.retries is not None else int(images.shape[2:].numel() <= SMALL)
    retries = 0 if initial is not None else retries
    start = initial
    if start is None:
        start = _drawn(len(images), loop, options, images, generator)
    _check_initial(start, widths, len(images))
    params, steps, psnr = loop.attempt(images, start)
    for _ in range(retries):
        again = torch.nonzero(~(psnr >= loop.target_psnr)).squeeze(1)
        if not len(again):
            break
        fresh = _drawn(len(again), loop, options, images, generator)
        new_params, new_steps, new_psnr = loop.attempt(images[again], fresh)
        better = new_psnr > psnr[again]
        for name, tensor in params.items():
            tensor[again[better]] = new_params[name][better]
        steps[again[better]], psnr[again[better]] = new_steps[better], new_psnr[better]
    origin = {"init": "given" if initial is not None else options.init, "method": options.method}
    found = _result(images, params, steps, psnr, loop, {**origin, "retries": str(retries)})
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
    return (32, 32) if height * width <= SMALL else (32 * round(math.sqrt(side) / 4),) * 3


def cost_of_fit(
    shape: tuple[int, int, int, int], widths: tuple[int, ...] | None = None, options: FitOptions | None = None
) -> tuple[int, float]:
    """Bytes that `fit` takes on this CPU in float32 beside what PyTorch itself does, and seconds if nothing ends early.

    The seconds are estimated from the time of a small part of one step, and leave retries out.

    Args:
        shape: of the images, (N, C, H, W), N at least 1.
        widths, options: as for `fit`.

    Raises:
        WeightEditError: more than this machine can hold.
    """
    images = torch.rand(1).expand(shape)
    widths = widths or (2, *hidden_widths(*shape[2:]), shape[1])
    loop = _loop(widths, Convention(), options or FitOptions(), images, progress=False)
    return loop.memory(images), loop.seconds(images)


def fit_directly(stack: INRStack, targets: Tensor) -> INRStack:
    """The floor: the same INRs fitted to the targets themselves by gradient descent from their own weights, to 40 dB.

    Args:
        stack: where to start.
        targets: float [N, C, H, W] in [0, 1].
    """
    options = FitOptions(method="fast", target_psnr=40.0)
    return fit(targets, widths=stack.widths, convention=stack.convention, initial=stack.params, options=options).stack


def _drawn(count: int, loop: FitLoop, options: FitOptions, images: Tensor, generator: torch.Generator | None) -> Params:
    """Initial parameters; "siren" with first weights that grow with the root of the picture's side from 64 pixels on.

    Ours: more of the detail is there from the first step; two photographs of 128 x 128 gain 1.5 dB on and 0.5 to 1 dB
    between their pixels in the same time, one of 64 x 64 loses 2.5 dB between them if its first weights grow as much.
    """
    layout = loop.layout
    params = initial_params(count, layout.widths, init=options.init, omega=layout.omega, generator=generator)
    if options.init == "siren" and options.method != "adam":
        params["layers.0.weight"] *= max(1.0, images.shape[2:].numel() / 64**2) ** 0.25
    return params


def _loop(
    widths: tuple[int, ...], convention: Convention, options: FitOptions, images: Tensor, progress: bool
) -> FitLoop:
    """Raises WeightEditError for more than this machine can hold."""
    size = (images.shape[2], images.shape[3])
    method = method_of(options.method, size)
    loop = FitLoop(
        method.stretched(options.steps(size)),
        ParameterLayout(widths, convention.frequency),
        convention,
        target_psnr=options.target(size),
        learning_rate=options.learning_rate or method.learning_rate_of(widths),
        chunk=options.chunk,
        band=options.band,
        progress=progress,
    )
    told = f"{len(images):,} image{'s' * (len(images) != 1)} of {size[0]} x {size[1]}"
    what = f"fitting SIRENs of widths {'-'.join(map(str, widths))} to {told}"
    remedy = "choose narrower ones, smaller images, or fewer at once"
    check_capacity(loop.memory(images), what, remedy, images.device)
    return loop


def _result(
    images: Tensor, params: Params, steps: Tensor, psnr: Tensor, loop: FitLoop, origin: dict[str, str]
) -> FitResult:
    missed = torch.nonzero(~(psnr >= loop.target_psnr)).squeeze(1)
    if len(missed):
        _logger.warning(
            "%d of %d INRs missed %g dB, first at index %d: see FitResult.missed, or take FitResult.kept().",
            len(missed), len(images), loop.target_psnr, int(missed[0]),
        )  # fmt: skip
    provenance = {
        **origin,
        "learning_rate": f"{loop.learning_rate:g}",
        "target_psnr": f"{loop.target_psnr:g}",
        "max_steps": str(loop.method.max_steps),
        "steps": f"{int(steps.min())} to {int(steps.max())}" if len(steps) else "none",
    }
    height, width = images.shape[2:]
    stack = INRStack(params, loop.convention, height, width, psnr=psnr, provenance=provenance)
    return FitResult(stack, steps, psnr, missed)


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
