"""Refinement: steps of an update rule towards an image, after an edit or instead of one.

The operation is usually known when an INR is edited, so its target can be made from the INR's own rendering,
target = operation(rendering), and any function from images to images will do: no editor need have been trained for it.
Here: the loop over a stack, the interface of rules, and rules made of any UpdateRule. Rules that use curvature, learned
ones among them, are curvature.py's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from weightedit.delta import apply_delta
from weightedit.editing.curvature import KFAC, RIDGE, SHIPPED_RULE, LearnedKFAC
from weightedit.editing.descent import Standing, choose_networks, descend
from weightedit.editing.evaluation import check_targets
from weightedit.editing.operations import Operation, operation
from weightedit.editing.rendering_problem import Layer, RenderingProblem
from weightedit.errors import check_whole
from weightedit.files.location import shipped
from weightedit.inr.convention import Convention, convert, network_of
from weightedit.inr.stack import INRStack
from weightedit.network.spec import Params
from weightedit.network.wiring import Wiring
from weightedit.optim.rule import RuleState, UpdateRule, beside

_logger = logging.getLogger(__name__)
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
        wiring = Wiring.of(network_of(params, problem.convention))
        last = f"layers.{len(params) // 2 - 1}."

        def step(here: Standing, losses: list[Tensor], care: Tensor) -> tuple[list[Layer], RuleState]:
            at, named = problem.params(here.layers), problem.gradients(here.found)
            if self.solve_last:
                named = {k: torch.zeros_like(g) if k.startswith(last) else g for k, g in named.items()}
            delta, state = self.rule.update(wiring, named, here.state, at, loss=losses[-1])
            return problem.layers(apply_delta(at, {k: d / beside(care, d) for k, d in delta.items()})), state

        state = self.rule.init(wiring, params)
        return descend(problem, params, steps, step, state, ridge=RIDGE if self.solve_last else None)


def target_of(
    choice: str | Operation | Callable[[Tensor], Tensor], stack: INRStack, *, strength: float | Tensor = 1.0
) -> Tensor:
    """The target that is known at edit time: from the rendering (at strength 0) to the operation of it (at 1).

    Args:
        choice: the operation, its name, or any function from images [N, C, H, W] in [0, 1] to the same.
        stack: N INRs.
        strength: a number, or one per INR, see Operation.at; beyond 1 the change is exaggerated and cut off.

    Returns:
        Floating point of at least 32 bits [N, C, H, W] in [0, 1] at the fitted size, without gradients.

    Raises:
        WeightEditError: an unknown operation, or strengths that Operation.at refuses.
    """
    with torch.no_grad():
        return operation(choice).at(stack.precise().render().clamp(0.0, 1.0), strength)


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
        rule: how; None is the shipped LearnedKFAC, SHIPPED_RULE, or KFAC in a copy without checkpoints.
        chunk: INRs at once; None chooses: few on a CPU, whose cache they share, thousands elsewhere.
        progress: show a tqdm bar.

    Returns:
        A stack of the same convention. No INR's mean squared error is above what it was: a rule takes back steps that
        raise it, and an INR that gains nothing stays as it was.

    Raises:
        WeightEditError: steps or chunk that are no whole number of at least 0, or 1.
        ParamsError: targets that do not fit the stack, or that are not floating point in [0, 1].
    """
    check_whole("steps", steps, 0)
    if chunk is not None:
        check_whole("chunk", chunk, 1)
    check_targets(stack, targets)
    weight = stack.params["layers.0.weight"]
    size = chunk or max(
        1, min(CHUNK, CHUNK_PIXELS // max(1, targets.shape[1:].numel())) if weight.device.type == "cpu" else 2048
    )
    chosen, parts = rule or shipped_rule(weight.device), []
    with tqdm(total=len(stack), desc="refining", unit="INR", disable=not progress) as bar:
        for rows in torch.arange(len(stack), device=weight.device).split(size):
            before = {name: tensor[rows] for name, tensor in stack.params.items()}
            parts.append(take_steps(chosen, stack.convention, before, targets[rows], steps))
            bar.update(len(rows))
    return stack.with_params({name: torch.cat([part[name] for part in parts]) for name in stack.params})


def shipped_rule(device: torch.device) -> RefinementRule:
    """The rule that takes steps unless another is given: the shipped one or, said in the log, KFAC where none ships."""
    if SHIPPED_RULE not in shipped():
        _logger.warning(
            "this copy of weightedit has no %s: K-FAC with numbers set by hand takes the steps", SHIPPED_RULE
        )
        return KFAC()
    return LearnedKFAC.from_pretrained(SHIPPED_RULE).to(device)


def take_steps(rule: RefinementRule, convention: Convention, params: Params, targets: Tensor, steps: int) -> Params:
    """`rule` on stacked INRs, in float32 at least; those whose error did not fall stay as they were.

    The error is that of the weights which are returned, rounded to the type of `params`.
    """
    home, wide = params["layers.0.weight"], torch.promote_types(params["layers.0.weight"].dtype, torch.float32)
    problem = RenderingProblem(convention.plain, targets.to(home.device, wide))
    given = convert({name: tensor.to(wide) for name, tensor in params.items()}, convention, convention.plain)
    after = convert(rule.refine(problem, given, steps), convention.plain, convention)
    after = {name: tensor.to(home.dtype) for name, tensor in after.items()}
    with torch.no_grad():
        found = convert({name: tensor.to(wide) for name, tensor in after.items()}, convention, convention.plain)
        errors = [problem.losses(problem.layers(networks)) for networks in (found, given)]
    return choose_networks(errors[0] <= errors[1], after, params)  # false for NaN
