"""An edit is kept where it is no worse than none: INR by INR, against what the operation makes of its own rendering.

An editor has learned its operation from examples, and off their domain it may do harm: digits were all that it saw, and
a photograph comes. What it should have come to is known wherever the operation is, at the price of two renderings and
of the operation on a picture. The choice reads renderings alone, so it is as equivariant as the editor. Steps towards a
known target need no guard of their own: refinement.py takes back what raises an INR's error.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from weightedit.editing.descent import choose_networks
from weightedit.editing.evaluation import check_targets, errors_against
from weightedit.editing.operations import OPERATIONS, Operation
from weightedit.editing.refinement import target_of
from weightedit.inr.stack import INRStack
from weightedit.inr.widening import widen

_NAMED = 8


@dataclass(frozen=True)
class Guarded:
    """What became of N edited INRs.

    Attributes:
        stack: each edited, or as it was.
        before: mean squared error [N] against the target, of the INRs as they were.
        after: of the edit as it came, the ones that were not kept included.
    """

    stack: INRStack
    before: Tensor
    after: Tensor

    @property
    def left(self) -> Tensor:
        """Which INRs [N] are as they were, because the edit would have raised their error."""
        return ~(self.after <= self.before)  # true for NaN

    @property
    def reached(self) -> Tensor:
        """Mean squared error [N] of `stack`."""
        return torch.where(self.left, self.before, self.after)

    def told(self) -> str:
        """How many were left and which, with their errors; "" where all were edited."""
        numbers = self.left.nonzero().flatten().tolist()
        if not numbers:
            return ""
        shown = [f"{i} ({self.before[i]:.2e}, would be {self.after[i]:.2e})" for i in numbers[:_NAMED]]
        shown += [f"and {len(numbers) - _NAMED} more"] if len(numbers) > _NAMED else []
        return f"{len(numbers)} of {len(self.before)} INRs, which the edit makes worse: {', '.join(shown)}"


@torch.no_grad()
def guard(before: INRStack, after: INRStack, targets: Tensor) -> Guarded:
    """Of every INR, its edit, or (if that is further from its target) itself.

    Args:
        before: N INRs.
        after: the same, edited; their hidden layers may be a multiple as wide.
        targets: [N, C, H, W] in [0, 1], see `known_target`.

    Raises ParamsError on targets that do not fit.
    """
    check_targets(before, targets)
    return judged(before, after, targets)


def judged(before: INRStack, after: INRStack, targets: Tensor) -> Guarded:
    """As `guard`, of targets that are known to fit: waits for no device."""
    # Of a wider edit, what is kept instead is as wide.
    start = widen(before, after.widths[1] // before.widths[1]) if len(after.widths) > 2 else before
    errors = errors_against(start, targets), errors_against(after, targets)
    kept = choose_networks(errors[1] <= errors[0], after.params, start.params)  # false for NaN
    return Guarded(after.with_params(kept), *errors)


def known_target(choice: str | Operation, stack: INRStack, strength: float | Tensor = 1.0) -> Tensor | None:
    """What the operation itself makes of the renderings; None where it is unknown, or not for these.

    Args:
        choice: the operation, or its name.
        stack: N INRs.
        strength: as in refinement.target_of.

    Returns:
        Float [N, C, H, W] in [0, 1], at the fitted size.
    """
    known = OPERATIONS.get(choice) if isinstance(choice, str) else choice
    if known is None or stack.widths[0] != 2 or (known.channels and stack.widths[-1] not in known.channels):
        return None
    return target_of(known, stack, strength=strength)
