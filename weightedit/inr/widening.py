"""Wider INRs that draw the same picture: room for an edit that the given width cannot hold.

Averaging the renderings of k edited INRs is the same as one SIREN of k-fold width; here the wider network comes first,
with the picture of the given one exactly, and its new neurons are free to be used by whatever edits it.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from weightedit.errors import WeightEditError
from weightedit.inr.siren import initial_params
from weightedit.inr.stack import INRStack
from weightedit.spec import Params


def widen(stack: INRStack, factor: int, *, generator: torch.Generator | None = None) -> INRStack:
    """The same pictures from SIRENs whose hidden layers are `factor` times as wide.

    New neurons are drawn as in a fresh SIREN of the new widths (initialisation "siren") and may read old ones; no old
    neuron and no output reads a new one, so the function is the same up to the rounding of sums.

    Args:
        stack: N INRs.
        factor: at least 1; 1 returns the stack itself.
        generator: where the new neurons come from; None is PyTorch's global CPU generator.

    Returns:
        N INRs of widths (inputs, factor * hidden, ..., outputs); everything but the weights is kept.

    Raises:
        WeightEditError: a factor below 1.
    """
    if factor < 1:
        raise WeightEditError(f"factor {factor} came; expected at least 1: 2 doubles the hidden widths.")
    if factor == 1:
        return stack
    inputs, *hidden, outputs = stack.widths
    widths = (inputs, *(factor * width for width in hidden), outputs)
    fresh = initial_params(len(stack), widths, omega=stack.convention.omega, generator=generator)
    params: Params = {}
    for name, old in stack.params.items():
        new = fresh[name].to(old)
        last = name.startswith(f"layers.{len(widths) - 2}.")
        params[name] = _placed(old, new.zero_() if last else new)
    return replace(stack, params=params)


def _placed(old: Tensor, new: Tensor) -> Tensor:
    """`new` [N, out', ...] with `old` [N, out, ...] in its first corner; old rows read nothing new."""
    rows = old.shape[1]
    new[:, :rows] = 0.0
    new[(slice(None), *(slice(size) for size in old.shape[1:]))] = old
    return new
