"""An edit is kept where it is no worse than none: INR by INR, against what the operation makes of its own rendering.

An editor has learned its operation from examples, and off their domain it may do harm: digits were all that it saw, and
a photograph comes. What it should have come to is known wherever the operation is, at the price of two renderings and
of the operation on a picture. Where the whole edit does harm, parts of it are tried, which go the same way less far
(backtracking, as line searches do: Armijo 1966), and nothing is changed where none of them helps. The choice reads
renderings alone, so it is as equivariant as the editor. Steps towards a known target need no guard of their own:
refinement.py takes back what raises an INR's error.
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

PARTS = (0.5, 0.25, 0.125)
"""Of an edit, tried in this order where the whole does harm."""
_NAMED = 8


@dataclass(frozen=True)
class Guarded:
    """What became of N edited INRs.

    Attributes:
        stack: each edited, or edited in part, or as it was.
        before: mean squared error [N] against the target, of the INRs as they were.
        after: of the whole edit, wherever it does harm, too.
        part: how much of the edit was made, [N]: 1, or one of PARTS, or 0.
        reached: mean squared error [N] of `stack`.
    """

    stack: INRStack
    before: Tensor
    after: Tensor
    part: Tensor
    reached: Tensor

    def told(self) -> str:
        """How many were not wholly edited and which, with their errors; "" where all were."""
        numbers = (self.part < 1).nonzero().flatten().tolist()
        if not numbers:
            return ""
        shown = [self._one(i) for i in numbers[:_NAMED]]
        shown += [f"and {len(numbers) - _NAMED} more"] if len(numbers) > _NAMED else []
        return f"{len(numbers)} of {len(self.before)} INRs, which the whole edit makes worse: {', '.join(shown)}"

    def _one(self, i: int) -> str:
        part, reached = float(self.part[i]), f"{self.reached[i]:.2e} by {self.part[i]:g} of it"
        return f"{i} ({self.before[i]:.2e}, would be {self.after[i]:.2e}{f', {reached}' if part else ''})"


@torch.no_grad()
def guard(before: INRStack, after: INRStack, targets: Tensor) -> Guarded:
    """Of every INR, its edit, or (if that is further from its target) the most of it that is nearer, or itself.

    Args:
        before: N INRs.
        after: the same, edited; their hidden layers may be a multiple as wide.
        targets: [N, C, H, W] in [0, 1], see `known_target`.

    Raises ParamsError on targets that do not fit.
    """
    check_targets(before, targets)
    found = judged(before, after, targets)
    params, part, reached = found.stack.params, found.part, found.reached
    for share in PARTS:
        rows = (part == 0).nonzero().flatten()
        if not len(rows):
            break
        tried = {name: tensor[rows].lerp(after.params[name][rows], share) for name, tensor in params.items()}
        errors = errors_against(after[rows].with_params(tried), targets[rows.to(targets.device)])
        better = errors < reached[rows]  # false for NaN
        won = rows[better]
        params = {name: tensor.index_copy(0, won, tried[name][better]) for name, tensor in params.items()}
        part, reached = part.index_fill(0, won, share), reached.index_copy(0, won, errors[better])
    return Guarded(found.stack.with_params(params), found.before, found.after, part, reached)


def judged(before: INRStack, after: INRStack, targets: Tensor) -> Guarded:
    """As `guard`, of targets that are known to fit and without parts of edits: waits for no device."""
    # Of a wider edit, what is kept instead is as wide.
    start = widen(before, after.widths[1] // before.widths[1]) if len(after.widths) > 2 else before
    errors = errors_against(start, targets), errors_against(after, targets)
    whole = errors[1] <= errors[0]  # false for NaN
    stack = after.with_params(choose_networks(whole, after.params, start.params))
    return Guarded(stack, *errors, whole.to(errors[0]), torch.where(whole, errors[1], errors[0]))


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
