"""Is an INR read as it was fitted? The picture tells; without one, only what cannot be a picture is found out.

A convention that is wrong gives weights without a fault and a wrong picture. With the fitted picture at hand its PSNR
decides, and other conventions are tried on it, to name the one that fits. Without it the rendering is looked at: one
that has almost no contrast, is mostly out of range or is as rough as noise is no picture; one that passes may still be
wrong, and the answer is "unsure".
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from weightedit.cli.checks import Check
from weightedit.editing.evaluation import check_samples, sample_errors
from weightedit.inr.convention import COORDINATE_ORDERS, LAST, Convention
from weightedit.inr.samples import Samples
from weightedit.inr.siren import places, raw_outputs
from weightedit.inr.stack import INRStack

LEAST_PSNR = 20.0  # dB; a fit below is no picture of anything
MARGIN = 3.0  # dB, by which another convention must fit better
# Renderings of fits to 48 images each of MNIST, Fashion-MNIST and CIFAR-10, 2-64-64-C, 35 dB; the medians over them.
CONTRAST = (
    0.05  # standard deviation over the pixels: 0.22 to 0.33 where read right, below 0.04 with a frequency too low
)
INSIDE = 0.5  # share of values in [-0.25, 1.25]: 1, against 0.13 to 0.8 without an offset of 0.5
ROUGHNESS = 0.7  # squared difference of neighbors over twice the variance: 0.12 to 0.22; noise 1, omega doubled 0.99
_LEAST_SIDE = 16  # pixels, from which on these mean something
_POINTS = 2048


def check_reading(stack: INRStack, images: Tensor | Samples | None = None) -> Check:
    """Whether the renderings are what was fitted.

    Args:
        stack: N INRs, also such as are no pictures: then nothing can be told.
        images: [M, C, H, W] in [0, 1], M at most N: the pictures of the first M, at the fitted size; or samples of M.
    """
    if images is not None:
        return _against(stack[: len(images)], images)
    if not stack.of_pictures:
        values = stack.at(_anywhere(stack)).detach()
        if not bool(values.isfinite().all()):
            return Check("reading", False, "values that are not finite; state another convention")
        low, high = values.min(), values.max()
        figure = f"values {low:.3g} to {high:.3g} at random places"
        return Check("reading", None, f"{figure}; only what was fitted tells: --image with the .wav or .npz")
    if min(stack.height, stack.width) < _LEAST_SIDE:
        what = f"{stack.height} x {stack.width} pixels"
        return Check("reading", None, f"nothing about {what} tells; look at what they render")
    faults, figure = _implausible(stack.render().detach().float())
    if faults:
        return Check("reading", False, f"{figure}: {faults}; state another convention, or give --image to find it")
    return Check("reading", None, f"{figure}, as a picture's may be; only --image PICTURE tells for certain")


def _implausible(rendered: Tensor) -> tuple[str, str]:
    """What is wrong with renderings [N, C, H, W] ("" if nothing), and the figures."""
    inside = float(((rendered > -0.25) & (rendered < 1.25)).float().flatten(1).mean(1).median())
    contrast = float(rendered.std((1, 2, 3), correction=0).median())
    spread = rendered.var((2, 3), correction=0).mean(1).clamp(min=1e-12)
    across, down = (rendered.diff(dim=dim).square().mean((1, 2, 3)) for dim in (2, 3))
    rough = float(((across + down) / (4 * spread)).median())
    faults = []
    if contrast < CONTRAST:
        faults.append("almost solid, as where a function after the last layer or a frequency is left out")
    if inside < INSIDE:
        faults.append("mostly out of range, as with a wrong offset or range of values")
    if rough > ROUGHNESS:
        faults.append("as rough as noise, as with a wrong omega")
    figure = f"contrast {contrast:.3f}, {100 * inside:.0f} % of the values in range, roughness {rough:.2f}"
    return " and ".join(faults), figure


def _anywhere(stack: INRStack) -> Tensor:
    """Random places between the ends of the axes, [places, inputs]."""
    ends = torch.tensor(stack.convention.ranges_of(stack.widths[0]))
    return torch.lerp(
        ends[:, 0], ends[:, 1], torch.rand(_POINTS, len(ends), generator=torch.Generator().manual_seed(0))
    )


def _against(stack: INRStack, images: Tensor | Samples) -> Check:
    if isinstance(images, Samples):
        check_samples(stack, images)
    psnr = _psnr(stack, images, stack.convention)
    found = {convention: _psnr(stack, images, convention) for convention in _others(stack.convention)}
    best = max(found, key=lambda convention: found[convention])
    kind, more = ("set", " of samples") if isinstance(images, Samples) else ("picture", "")
    figure = f"{psnr:.1f} dB against {len(images)} {kind}{'s' * (len(images) > 1)}{more}"
    if found[best] > max(psnr + MARGIN, LEAST_PSNR):
        return Check("reading", False, f"{figure}, but {found[best]:.1f} dB with {_difference(best, stack.convention)}")
    if psnr < LEAST_PSNR:
        return Check("reading", False, f"{figure}; of {len(found)} other conventions none fits better than that")
    return Check("reading", True, figure)


def _others(stated: Convention) -> Iterator[Convention]:
    values = ((0.0, 1.0, 0.0), (0.0, 1.0, 0.5), (-1.0, 1.0, 0.0))
    omegas = dict.fromkeys((stated.omega, 30.0, (30.0, 1.0), 1.0))
    for last, order, (low, high, offset), omega in itertools.product(LAST, COORDINATE_ORDERS, values, omegas):
        change = {"last": last, "coordinates": order, "low": low, "high": high, "offset": offset, "omega": omega}
        yield replace(stated, **change)


def _psnr(stack: INRStack, images: Tensor | Samples, convention: Convention) -> float:
    """Of the first INRs' renderings, cut off to [0, 1], on at most so many pixels; of samples, over their range."""
    if isinstance(images, Samples):
        few = images.only(torch.randperm(images.count, generator=torch.Generator().manual_seed(0))[:_POINTS])
        errors = sample_errors(replace(stack, convention=convention), few) / images.span().square()
        return float(-10.0 * errors.mean().clamp(min=1e-12).log10())
    size = images.shape[2:]
    first = stack.params["layers.0.weight"]
    pixels = torch.randperm(size.numel(), generator=torch.Generator().manual_seed(0))[:_POINTS]
    grid = places(size, convention, dtype=first.dtype, device=first.device)[pixels.to(first.device)]
    with torch.no_grad():
        values = convention.to_value(raw_outputs(stack.params, grid, convention)).clamp(0.0, 1.0)
    wanted = images.flatten(2).mT[:, pixels].to(values)
    return float(-10.0 * (values - wanted).square().mean().clamp(min=1e-12).log10())


def _difference(other: Convention, stated: Convention) -> str:
    """In the words of the command line."""
    words = []
    if other.omega != stated.omega:
        omega: Sequence[float] = other.omega if isinstance(other.omega, tuple) else (other.omega,)
        words.append(f"--omega {' '.join(f'{number:g}' for number in omega)}")
    if other.coordinates != stated.coordinates:
        words.append(f"--coordinates {other.coordinates}")
    if (other.low, other.high) != (stated.low, stated.high):
        words.append(f"--values {other.low:g} {other.high:g}")
    words += [f"--offset {other.offset:g}"] if other.offset != stated.offset else []
    words += [f"--last {other.last}"] if other.last != stated.last else []
    return " ".join(words)
