"""Wider INRs that draw the same picture: room for an edit that the given width cannot hold.

Averaging the renderings of k edited INRs is the same as one SIREN of k-fold width; here the wider network comes first,
with the picture of the given one exactly, and its new neurons are free to be used by whatever edits it.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.nn import functional

from weightedit.capacity import check_capacity
from weightedit.errors import WeightEditError
from weightedit.inr.convention import convert, widths_of
from weightedit.inr.siren import initial_params, parameter_count
from weightedit.inr.stack import INRStack
from weightedit.network.spec import Params


def widen(stack: INRStack, factor: int, *, seed: int = 0) -> INRStack:
    """The same pictures from SIRENs whose hidden layers are `factor` times as wide.

    New neurons are drawn as in a fresh SIREN of the new widths (initialization "siren"), the same ones for every INR.
    They read the coordinates and each other, old neurons read old ones, and the outputs read old ones only
    (block-diagonal), so the function is the same up to the rounding of sums, and what an equivariant map makes of the
    wider INR does not depend on how the old neurons were ordered, signed or shifted.

    Args:
        stack: N INRs.
        factor: at least 1; 1 returns the stack itself.
        seed: of the new neurons.

    Returns:
        N INRs of widths (inputs, factor * hidden, ..., outputs); everything but the weights is kept.

    Raises:
        WeightEditError: a factor below 1, or networks that this machine cannot hold.
    """
    if factor < 1:
        raise WeightEditError(f"got factor {factor}; expected at least 1: 2 doubles the hidden widths.")
    if factor == 1:
        return stack
    plain = stack.convention.plain
    wide = widened(convert(stack.params, stack.convention, plain), factor, plain.frequency, seed=seed)
    widened_stack = replace(stack, params=convert(wide, plain, stack.convention))
    return widened_stack.recorded(stack, f"{factor} times as wide")


def widened(params: Params, factor: int, omega: float, *, seed: int = 0) -> Params:
    """`widen` on the bare parameters of N stacked INRs; differentiable in them."""
    if factor == 1:
        return params
    inputs, *hidden, outputs = widths_of(params)
    widths = (inputs, *(factor * width for width in hidden), outputs)
    first = params["layers.0.weight"]
    check_capacity(
        len(first) * parameter_count(widths) * first.element_size(),
        f"{len(first):,} INRs {factor} times as wide, {'-'.join(map(str, widths))},",
        "choose a smaller factor",
        first.device,
    )
    fresh = initial_params(1, widths, omega=omega, generator=torch.Generator().manual_seed(seed))
    found: Params = {}
    for name, old in params.items():
        new = fresh[name].to(old)[:, old.shape[1] :]  # none in the last layer
        if old.dim() == 3:
            more = new.shape[2] - old.shape[2]
            old = functional.pad(old, (0, more))
            if more:
                new = functional.pad(new[..., -more:], (new.shape[2] - more, 0))
        found[name] = torch.cat([old, new.expand(len(old), *new.shape[1:])], 1)
    return found
