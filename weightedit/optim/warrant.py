"""What a gradient warrants: factors in [0, 1] of a learned rule's step, so that it vanishes where the gradient does.

Much of what a learned direction is made of has no size of its own: leveled matrices, features over their root mean
squares, the weights themselves. It would go on at full size where gradients have ended. So steps are multiplied by

    of a tensor   min(1, rms(g) / (FLOOR rms(largest averaged gradient so far)))    the largest fades by FADING a step
    of an entry   min(1, |g| / (QUIET sqrt(v)))

with g the gradient of this step and v its averaged square, in the units in which the rule keeps them (ours). Both are 1
to the bit while gradients are healthy, keep signs and scales as the rule's features do, and are tensors: nothing is
read on the host. The first makes a step proportional to a gradient that is small beside the tensor's own largest,
whatever its units; the second leaves entries where they are at steps that bring them no gradient (masked rows, pruned
weights, dead neurons), as torch.optim.SparseAdam does.
"""

from __future__ import annotations

import torch
from torch import Tensor

from weightedit.optim.gauge import inverse_root, root

FLOOR = 1e-3
"""Of a tensor's largest averaged gradient: what a gradient below it moves is proportional to it."""
QUIET = 1e-6
"""Of the root of an entry's averaged square: what is rounding's, or none."""
FADING = 0.999
"""Of the largest square per step: a gradient a thousand times too large is forgotten in some 14,000 steps."""


def of_tensor(square: Tensor, averaged: Tensor, peak: Tensor) -> tuple[Tensor, Tensor]:
    """The factor of a whole tensor, and the new peak; all of shape [..].

    Args:
        square: mean of the squared gradient over the tensor, at this step.
        averaged: mean of the averaged squares, corrected for their start at zero.
        peak: the largest of these so far, faded; 0 before the first step.
    """
    peak = torch.maximum(FADING * peak, averaged)
    return (root(square) * inverse_root(peak) / FLOOR).clamp(max=1), peak


def of_entries(gradient: Tensor) -> Tensor:
    """The factor of every entry, from its gradient over the root of its averaged square."""
    return gradient.abs().div_(QUIET).clamp(max=1)
