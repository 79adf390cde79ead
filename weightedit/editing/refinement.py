"""Refinement: steps of an update rule towards an image, after an edit or instead of one.

The operation is usually known when an INR is edited, so its target can be made from the INR's own rendering,
target = operation(rendering), and any function from images to images will do: no editor need have been trained for it.
Here: the loop over a stack, the interface of rules, and rules made of any UpdateRule. Rules that use curvature, learned
ones among them, are curvature.py's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from weightedit.delta import apply_delta
from weightedit.editing.curvature import KFAC, RIDGE
from weightedit.editing.operations import Operation, operation
from weightedit.editing.rendering_problem import RenderingProblem
from weightedit.errors import ParamsError, WeightEditError
from weightedit.inr.convention import Convention, convert, network_of
from weightedit.inr.stack import INRStack
from weightedit.network.spec import Params
from weightedit.network.wiring import Wiring
from weightedit.optim.rule import UpdateRule

CHUNK, CHUNK_PIXELS = 16, 2**21
"""INRs at once on a CPU, whose activations stay in its cache; fewer where their pictures are large."""


class RefinementRule(Protocol):
    """Anything that brings the renderings of N INRs nearer to targets in a number of steps."""

    def refine(self, problem: RenderingProblem, params: Params, steps: int) -> Params:
        """`params` (stacked, under problem.convention) after `steps` steps; nothing is changed in place."""
        ...


@dataclass(frozen=True)
class GradientSteps:
    """Any UpdateRule on the gradient of the mean squared error of the rendering.

    Args:
        rule: such as optim.hand_designed.Adam.
        solve_last: solve the last, linear layer in closed form at every step, instead of leaving it to the rule.
    """

    rule: UpdateRule
    solve_last: bool = False

    def refine(self, problem: RenderingProblem, params: Params, steps: int) -> Params:
        """See RefinementRule.refine."""
        spec, ridge = network_of(params, problem.convention), RIDGE if self.solve_last else None
        wiring = Wiring.of(spec)
        state = self.rule.init(wiring, params)
        for _ in range(steps):
            layers = problem.layers(params)
            found = problem.summarize(layers, ridge=ridge)
            params = problem.params([*layers[:-1], found.last])
            named = problem.gradients(found)
            if self.solve_last:
                last = f"layers.{len(layers) - 1}"
                named = {k: torch.zeros_like(g) if k.startswith(f"{last}.") else g for k, g in named.items()}
            loss = found.loss / problem.convention.span**2
            delta, state = self.rule.update(wiring, named, state, params, loss=loss)
            params = apply_delta(params, delta)
        if not self.solve_last:
            return params
        return problem.params(problem.solve_last(problem.layers(params), RIDGE))


def target_of(
    choice: str | Operation | Callable[[Tensor], Tensor], stack: INRStack, *, strength: float | Tensor = 1.0
) -> Tensor:
    """The target that is known at edit time: from the rendering (at strength 0) to the operation of it (at 1).

    Args:
        choice: the operation, its name, or any function from images [N, C, H, W] in [0, 1] to the same.
        stack: N INRs.
        strength: a number, or one per INR, see Operation.at; beyond 1 the change is exaggerated and cut off.

    Returns:
        Float [N, C, H, W] in [0, 1] at the fitted size, without gradients.

    Raises:
        WeightEditError: an unknown operation, or strengths that Operation.at refuses.
    """
    with torch.no_grad():
        return operation(choice).at(stack.render().clamp(0.0, 1.0), strength)


@torch.no_grad()
def refine(
    stack: INRStack,
    targets: Tensor,
    steps: int,
    *,
    rule: RefinementRule | None = None,
    chunk: int | None = None,
    progress: bool = False,
) -> INRStack:
    """INRs after `steps` steps towards `targets`; PSNR, which no longer holds, is dropped.

    Args:
        stack: where to start: INRs, or INRs that an editor has edited.
        targets: [N, C, H, W] in [0, 1], see `target_of`.
        steps: at least 0. The rules that solve the last layer do so even at 0.
        rule: how; None is KFAC().
        chunk: INRs at once; None chooses: few on a CPU, whose cache they share, thousands elsewhere.
        progress: show a tqdm bar.

    Returns:
        A stack of the same convention; an INR whose steps led to infinite or undefined weights stays as it was.

    Raises:
        WeightEditError: a negative number of steps, a chunk below 1.
        ParamsError: targets that do not fit the stack, or are not finite.
    """
    if steps < 0 or (chunk is not None and chunk < 1):
        raise WeightEditError(
            f"steps {steps}, chunk {chunk} came; expected steps of at least 0, a chunk of at least 1."
        )
    expected = (len(stack), stack.widths[-1])
    if targets.dim() != 4 or tuple(targets.shape[:2]) != expected or not bool(targets.isfinite().all()):
        raise ParamsError(
            f"targets of shape {tuple(targets.shape)} came; expected finite images {expected} x height x width, one "
            "per INR: see target_of."
        )
    weight = stack.params["layers.0.weight"]
    size = chunk or max(
        1, min(CHUNK, CHUNK_PIXELS // max(1, targets.shape[1:].numel())) if weight.device.type == "cpu" else 2048
    )
    chosen, parts = rule or KFAC(), []
    with tqdm(total=len(stack), desc="refining", unit="INR", disable=not progress) as bar:
        for rows in torch.arange(len(stack), device=weight.device).split(size):
            before = {name: tensor[rows] for name, tensor in stack.params.items()}
            parts.append(take_steps(chosen, stack.convention, before, targets[rows], steps))
            bar.update(len(rows))
    return stack.with_params({name: torch.cat([part[name] for part in parts]) for name in stack.params})


def take_steps(rule: RefinementRule, convention: Convention, params: Params, targets: Tensor, steps: int) -> Params:
    """`rule` on stacked INRs, in float32 at least; those whose weights would not be finite stay as they were."""
    dtype = params["layers.0.weight"].dtype
    wide = torch.promote_types(dtype, torch.float32)
    problem = RenderingProblem(convention.plain, targets.to(params["layers.0.weight"].device, wide))
    given = convert({name: tensor.to(wide) for name, tensor in params.items()}, convention, convention.plain)
    after = convert(rule.refine(problem, given, steps), convention.plain, convention)
    return finite_or({name: tensor.to(dtype) for name, tensor in after.items()}, params)


def finite_or(after: Params, before: Params) -> Params:
    """`after`, but `before` for the networks with anything in it that is not finite."""
    return choose_networks(torch.stack([p.flatten(1).isfinite().all(1) for p in after.values()]).all(0), after, before)


def choose_networks(mask: Tensor, one: Params, other: Params) -> Params:
    """Network by network, `one` where `mask` [N] is true, else `other`."""
    return {k: torch.where(mask.view(-1, *[1] * (p.dim() - 1)), p, other[k]) for k, p in one.items()}
