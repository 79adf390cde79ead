"""Refinement: steps of an update rule towards an image or towards samples, after an edit or instead of one.

The operation is usually known when an INR is edited, so its target can be made from the INR's own rendering,
target = operation(rendering), and any function from images to images will do: no editor need have been trained for it.
Here: the loop over a stack, the interface of rules, and rules made of any UpdateRule. Rules that use curvature, learned
ones among them, are curvature.py's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from weightedit.delta import apply_delta
from weightedit.editing.curvature import KFAC, RIDGE, SHIPPED_RULE, LearnedKFAC
from weightedit.editing.descent import Standing, choose_networks, descend
from weightedit.editing.evaluation import check_pictures, check_samples, check_targets
from weightedit.editing.operations import Operation, named_error, operation
from weightedit.editing.rendering_problem import Layer, RenderingProblem
from weightedit.errors import ParamsError, WeightEditError, check_whole
from weightedit.files.location import shipped
from weightedit.inr.convention import Convention, convert, network_of
from weightedit.inr.samples import Samples, to_plain
from weightedit.inr.siren import places
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
        ParamsError: INRs of samples, see `samples_of`.
    """
    check_pictures(stack, f"operation {operation(choice).name!r}")
    with torch.no_grad():
        return operation(choice).at(stack.precise().render().clamp(0.0, 1.0), strength)


@torch.no_grad()
def samples_of(
    function: Callable[[Tensor], Tensor],
    stack: INRStack,
    coordinates: Tensor | None = None,
    *,
    strength: float | Tensor = 1.0,
) -> Samples:
    """The target that a function of values asks for, at places: from the values there (at strength 0) to it (at 1).

    Args:
        function: from values [N, P, C], any real numbers, to the same; it gets a copy.
        stack: N INRs of any number of inputs.
        coordinates: [P, inputs] or [N, P, inputs]; None is the grid of `INRStack.shape`.
        strength: at least 0, or one per INR; beyond 1 the change is exaggerated.

    Raises:
        WeightEditError: strengths out of range, or a function that raises, or returns something else; ParamsError:
            coordinates that are no samples' of these INRs.
    """
    stack = stack.precise()
    first = stack.params["layers.0.weight"]
    where = places(stack.shape, stack.convention, dtype=first.dtype, device=first.device)
    where = where if coordinates is None else coordinates.to(first)
    samples = Samples(where, stack.at(where))
    amount = torch.as_tensor(strength).to(first)
    if amount.dim() > 1 or (amount.dim() == 1 and amount.numel() != len(stack)):
        raise WeightEditError(
            f"got strengths of shape {tuple(amount.shape)} for {len(stack)} INRs; expected one, or one each."
        )
    if not bool((amount.isfinite() & (amount >= 0)).all()):
        raise WeightEditError(f"got strength {strength}; expected finite numbers of at least 0: 1 is the function.")
    name = getattr(function, "__name__", type(function).__name__)
    try:
        changed = function(samples.values.clone())
    except (Exception, SystemExit) as error:
        raise WeightEditError(
            f"function {name!r} raised {named_error(error)}; expected one of values [N, P, C] to the same: correct it."
        ) from error
    shape = tuple(samples.values.shape)
    if not isinstance(changed, Tensor) or tuple(changed.shape) != shape or changed.is_complex():
        got = f"{changed.dtype} {tuple(changed.shape)}" if isinstance(changed, Tensor) else type(changed).__name__
        raise WeightEditError(f"function {name!r} returned {got} for values {shape}; expected real ones of that shape.")
    changed = changed.to(first)
    if not bool(changed.isfinite().all()):
        raise WeightEditError(f"function {name!r} returned NaN or infinite values; expected finite ones: correct it.")
    return Samples(where, samples.values.lerp(changed, amount.expand(len(stack)).view(-1, 1, 1)))


def mixed_in(wanted: Tensor | Samples, stack: INRStack, *, strength: float | Tensor = 1.0) -> Tensor | Samples:
    """The target between what INRs are (at strength 0) and given pictures or samples (at 1), such as another INR's.

    Args:
        wanted: floating point [N, C, H, W] in [0, 1] at the fitted size; or samples of N INRs.
        stack: N INRs.
        strength: at least 0, or one per INR; beyond 1 the difference is exaggerated, and cut off in pictures.

    Raises:
        ParamsError: pictures or samples that do not fit. WeightEditError: strengths out of range.
    """
    if isinstance(wanted, Samples):
        check_samples(stack, wanted)
        return samples_of(lambda values: wanted.values.to(values), stack, wanted.coordinates, strength=strength)
    check_targets(stack, wanted)
    size = stack.height, stack.width
    if wanted.shape[2:] != size:
        raise ParamsError(
            f"got pictures of {tuple(wanted.shape[2:])} to be mixed with renderings of {size}; expected one size: "
            "resize them."
        )
    return target_of(lambda images: wanted.to(images), stack, strength=strength)


@torch.no_grad()
def refine(
    stack: INRStack,
    targets: Tensor | Samples,
    steps: int,
    *,
    rule: RefinementRule | None = None,
    chunk: int | None = None,
    progress: bool = False,
) -> INRStack:
    """INRs after `steps` steps towards `targets`; PSNR, which no longer holds, is dropped.

    Args:
        stack: where to start: INRs, or INRs that an editor has edited.
        targets: [N, C, H, W] in [0, 1], see `target_of`; or samples of N INRs, of any real values.
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
    if isinstance(targets, Samples):
        check_samples(stack, targets)
    else:
        check_targets(stack, targets)
    values = targets.values if isinstance(targets, Samples) else targets
    weight = stack.params["layers.0.weight"]
    size = chunk or max(
        1, min(CHUNK, CHUNK_PIXELS // max(1, values.shape[1:].numel())) if weight.device.type == "cpu" else 2048
    )
    chosen, parts = rule or shipped_rule(weight.device), []
    with tqdm(total=len(stack), desc="refining", unit="INR", disable=not progress) as bar:
        for rows in torch.arange(len(stack), device=weight.device).split(size):
            before = {name: tensor[rows] for name, tensor in stack.params.items()}
            parts.append(take_steps(chosen, stack.convention, before, targets[rows.to(values.device)], steps))
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


def take_steps(
    rule: RefinementRule, convention: Convention, params: Params, targets: Tensor | Samples, steps: int
) -> Params:
    """`rule` on stacked INRs, in float32 at least; those whose error did not fall stay as they were.

    The error is that of the weights which are returned, rounded to the type of `params`.
    """
    home, wide = params["layers.0.weight"], torch.promote_types(params["layers.0.weight"].dtype, torch.float32)
    if isinstance(targets, Samples):
        problem, scale = _sample_problem(convention, targets, home.device, wide)
    else:
        problem, scale = RenderingProblem(convention.plain, targets.to(home.device, wide)), None

    def to_problem(networks: Params) -> Params:
        found = {name: tensor.to(wide) for name, tensor in networks.items()}
        return _rescaled(convert(found, convention, convention.plain), None if scale is None else 1 / scale)

    given = to_problem(params)
    after = convert(_rescaled(rule.refine(problem, given, steps), scale), convention.plain, convention)
    after = {name: tensor.to(home.dtype) for name, tensor in after.items()}
    with torch.no_grad():
        errors = [problem.losses(problem.layers(networks)) for networks in (to_problem(after), given)]
    return choose_networks(errors[0] <= errors[1], after, params)  # false for NaN


def _rescaled(params: Params, factor: Tensor | None) -> Params:
    """The outputs times a factor [N], behind a linear last layer; None leaves them."""
    last = f"layers.{len(params) // 2 - 1}."
    return {n: t * beside(factor, t) if factor is not None and n.startswith(last) else t for n, t in params.items()}


def _sample_problem(
    convention: Convention, samples: Samples, device: torch.device, dtype: torch.dtype
) -> tuple[RenderingProblem, Tensor]:
    """The problem on a scale [N] of each INR's own, on which its values span 1, and that scale.

    What a rule has learned, and the ridge of the last layer, are for values as wide as those of pictures are. Behind a
    function that is not linear there is one scale, the function's.
    """
    raw = convention.to_raw(samples.values.to(device, dtype))
    scale = Samples(samples.coordinates, raw).span() if convention.last == "linear" else torch.ones_like(raw[:, 0, 0])
    coordinates = to_plain(samples.coordinates.to(device, dtype), convention)
    own = replace(convention.plain, low=0.0, high=1.0, offset=0.0)
    return RenderingProblem.of_samples(own, coordinates, raw / beside(scale, raw)), scale
