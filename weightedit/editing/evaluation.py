"""How good edited INRs are: their renderings against target images.

Nothing about fitting: the floor that a direct fit of the target reaches is inr/fitting.py's (fit_directly).
"""

from __future__ import annotations

import torch
from torch import Tensor

from weightedit.errors import ParamsError
from weightedit.files.reading import shortened
from weightedit.inr.samples import Samples
from weightedit.inr.stack import INRStack

_BATCH = 256


@torch.no_grad()
def mean_squared_errors(stack: INRStack, targets: Tensor) -> Tensor:
    """The mean squared error of every INR's rendering, over pixels and channels; the rendering is not clamped.

    Args:
        stack: N INRs of any convention.
        targets: float [N, C, H, W] in [0, 1]; the INRs are rendered at this height and width.

    Returns:
        [N], on the scale of images in [0, 1], in float32 at least and on the device of the INRs' weights.

    Raises:
        ParamsError: targets that are not floating point in [0, 1], or not one per INR with the INRs' channels.
    """
    check_targets(stack, targets)
    return errors_against(stack, targets)


@torch.no_grad()
def errors_against(stack: INRStack, targets: Tensor) -> Tensor:
    """As `mean_squared_errors`, of targets that are known to fit: reads nothing that a device would be waited for."""
    height, width = targets.shape[2:]
    stack = stack.precise()
    weight = stack.params["layers.0.weight"]
    errors = weight.new_zeros(len(stack))
    for start in range(0, len(stack), _BATCH):
        rows = slice(start, start + _BATCH)
        difference = stack[rows].render(height, width) - targets[rows].to(weight)
        errors[rows] = difference.square().mean((1, 2, 3))
    return errors


@torch.no_grad()
def sample_errors(stack: INRStack, samples: Samples) -> Tensor:
    """The mean squared error [N] of every INR, over its samples and channels, in units of the values squared.

    Raises:
        ParamsError: samples that do not fit the INRs.
    """
    check_samples(stack, samples)
    stack = stack.precise()
    weight = stack.params["layers.0.weight"]
    rows = torch.arange(len(stack), device=weight.device).split(_BATCH)
    parts = [samples[row.to(samples.values.device)] for row in rows]
    errors = [
        (stack[row].at(part.coordinates) - part.values.to(weight)).square().mean((1, 2))
        for row, part in zip(rows, parts, strict=True)
    ]
    return torch.cat([weight.new_zeros(0), *errors])


def check_samples(stack: INRStack, samples: Samples) -> None:
    """Raise ParamsError unless `samples` are of as many INRs as the stack's, of their inputs and outputs."""
    ends, found = (stack.widths[0], stack.widths[-1]), (samples.inputs, samples.values.shape[-1])
    if len(samples) != len(stack) or ends != found:
        raise ParamsError(
            f"samples of {len(samples)} INRs from {found[0]} inputs to {found[1]} outputs for {len(stack)} from "
            f"{ends[0]} to {ends[1]}; expected the samples of these INRs: choose them."
        )


def check_pictures(stack: INRStack, what: str) -> None:
    """Raise ParamsError unless the INRs are pictures, which `what` is for."""
    if not stack.of_pictures:
        bounds = "in [0, 1]" if stack.convention.bounded else "of any size"
        raise ParamsError(
            f"got INRs of {stack.widths[0]} inputs with values {bounds} for {what}; expected pictures, of 2 inputs and "
            "values in [0, 1]: give a function of values, or samples (we.Samples)."
        )


def check_targets(stack: INRStack, targets: Tensor) -> None:
    """Raise ParamsError unless `targets` are images of the stack's INRs: float [N, C, H, W] in [0, 1]."""
    count, channels = len(stack), stack.widths[-1]
    if not isinstance(targets, Tensor):
        raise ParamsError(
            f"got {shortened(targets)} as targets; expected images as a tensor [{count}, {channels}, height, width]: "
            "of an operation, target_of(operation, stack) makes them."
        )
    if targets.dim() != 4 or tuple(targets.shape[:2]) != (count, channels):
        raise ParamsError(
            f"targets of shape {tuple(targets.shape)}: expected ({count}, {channels}, height, width), one image per "
            "INR; choose the images of these INRs."
        )
    if not targets.is_floating_point() or (
        targets.numel() and not bool(((targets >= 0) & (targets <= 1)).all())  # also false for NaN
    ):
        raise ParamsError(
            f"targets of {targets.dtype} that are not all in [0, 1]: expected floating point in [0, 1]; divide bytes "
            "by 255."
        )
