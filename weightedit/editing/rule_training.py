"""Meta-training a refinement rule: K-FAC whose numbers a small network chooses, through all of its steps.

An inner problem is one INR and some steps towards operation(its own rendering). The outer loss is the logarithm of the
mean squared error against operation(source image) after the last step. Fits are SIRENs fresh from their initialization
on their way to the source image itself. Every batch comes from one set of INRs at one output width.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from weightedit.data.weight_sets import WeightSet
from weightedit.editing.curvature import LearnedKFAC
from weightedit.editing.evaluation import mean_squared_errors
from weightedit.editing.operations import operation
from weightedit.editing.refinement import RefinementRule, refine, target_of
from weightedit.editing.rendering_problem import RenderingProblem
from weightedit.errors import WeightEditError
from weightedit.inr.siren import initial_params, render_images
from weightedit.inr.stack import INRStack
from weightedit.inr.widening import widen, widened
from weightedit.training.examples import Examples
from weightedit.training.loop import TrainOptions, TrainResult, train


@dataclass(frozen=True)
class RuleProblems:
    """What a rule is trained on.

    Attributes:
        operations: dealt out among the INRs in turn.
        widen: output widths, as multiples of the given ones; one that is named twice is drawn twice as often.
        longest: most steps of an inner problem.
        fits: fits are drawn so often as this many weight sets at one width.
        longest_fit: most steps of a fit.
    """

    operations: tuple[str, ...] = ("dilate",)
    widen: tuple[int, ...] = (1,)
    longest: int = 12
    fits: int = 0
    longest_fit: int = 24


class Fits:
    """SIRENs as they are initialized, and the images that they are to become; the indices of a batch fix both."""

    def __init__(self, like: INRStack, images: Tensor) -> None:
        self.like, self.images = like[:0], images

    def to(self, device: torch.device | str) -> Fits:
        """The same on `device`; initial weights are drawn on the CPU, so that they are the same everywhere."""
        return Fits(self.like, self.images.to(device))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: Tensor) -> dict[str, Any]:
        generator, omega = torch.Generator().manual_seed(int(rows.sum())), self.like.convention.frequency
        params = initial_params(len(rows), self.like.widths, omega=omega, generator=generator)
        params = {name: tensor.to(self.images.device) for name, tensor in params.items()}
        return {"params": params, "known": self.images[rows], "wanted": self.images[rows], "fit": torch.tensor(True)}


class Mixture:
    """Several sets of problems, each at one width, every batch from one of them: which one, its first index says."""

    def __init__(self, parts: Sequence[tuple[Examples | Fits, int]], omega: float) -> None:
        self.parts, self.omega = parts, omega
        self.longest = max(len(part) for part, _ in parts)

    def to(self, device: torch.device | str) -> Mixture:
        """The same on `device`."""
        moved = {id(part): part.to(device) for part, _ in self.parts}  # one that is drawn at several widths, once
        return Mixture([(moved[id(part)], factor) for part, factor in self.parts], self.omega)

    def __len__(self) -> int:
        return self.longest * len(self.parts)

    def __getitem__(self, rows: Tensor) -> dict[str, Any]:
        part, factor = self.parts[int(rows[0]) % len(self.parts)]
        batch = part[rows.div(len(self.parts), rounding_mode="floor") % len(part)]
        return {**batch, "params": widened(batch["params"], factor, self.omega)}


def rule_examples(weights: WeightSet, names: tuple[str, ...]) -> Examples:
    """INRs, the targets that are made of their renderings, and those of their source images."""
    turn, floats = torch.arange(len(weights)) % len(names), weights.floats()
    known, wanted = torch.empty_like(floats), torch.empty_like(floats)
    for which, name in enumerate(names):
        rows = (turn == which).nonzero().squeeze(1)
        wanted[rows] = operation(name)(floats[rows])
        for part in rows.split(1000):
            known[part] = target_of(name, weights.stack[part])
    return Examples(params=weights.stack.params, known=known, wanted=wanted)


def train_rule(
    rule: LearnedKFAC,
    sets: Sequence[Mapping[str, WeightSet]],
    problems: RuleProblems,
    folder: str | Path,
    options: TrainOptions,
    *,
    about: Mapping[str, Any] | None = None,
) -> TrainResult:
    """Train `rule` in place; it ends up holding the weights of its best validation step.

    Args:
        rule: to train.
        sets: weight sets of one convention, each with a "train" and a "validation" split.
        problems: what is drawn of them.
        folder: of the run, see training.loop.train.
        options: how.
        about: where the INRs come from, JSON values.

    Raises WeightEditError on no sets, sets of several conventions, or `capture`: every batch takes other steps.
    """
    conventions = {part["train"].stack.convention for part in sets}
    if len(conventions) != 1 or options.capture:
        raise WeightEditError(
            f"got weight sets of {len(conventions)} conventions, capture {options.capture}; expected sets of one, and "
            "no capture, since every batch takes another number of steps: convert them, leave it out."
        )
    (convention,) = conventions
    different = list({id(part["train"]): part for part in sets}.values())
    made = {id(part["train"]): rule_examples(part["train"], problems.operations) for part in different}
    mixture: list[tuple[Examples | Fits, int]] = [(made[id(part["train"])], n) for part in sets for n in problems.widen]
    mixture += [(Fits(part["train"].stack, part["train"].floats()), 1) for part in sets for _ in range(problems.fits)]
    few = [(p["validation"], rule_examples(p["validation"], problems.operations)) for p in different]

    def loss(module: nn.Module, batch: dict[str, Any], generator: torch.Generator) -> Tensor:
        assert isinstance(module, LearnedKFAC)
        most = problems.longest_fit if "fit" in batch else problems.longest
        steps = int(torch.randint(1, most + 1, (), generator=generator, device=generator.device))
        found = module.refine(RenderingProblem(convention, batch["known"]), batch["params"], steps)
        rendered = render_images(found, convention, *batch["wanted"].shape[-2:])
        return (rendered - batch["wanted"]).square().mean().log()

    def validate(module: nn.Module) -> float:
        assert isinstance(module, LearnedKFAC)
        budgets, logs = sorted({1, problems.longest // 2, problems.longest} - {0}), []
        for weights, examples in few:
            for factor in dict.fromkeys(problems.widen):
                errors = rule_errors(weights.stack, examples, module, budgets, factor=factor)
                logs += [math.log(error) for error in errors.values()]
            if problems.fits:
                fits = Fits(weights.stack, weights.floats())
                errors = [fit_error(fits, module, steps) for steps in (12, problems.longest_fit)]
                logs += [math.log(error) for error in errors] * problems.fits
        return sum(logs) / len(logs)

    return train(rule, loss, Mixture(mixture, convention.frequency), validate, folder, options, about=about)


def rule_errors(
    stack: INRStack, examples: Examples, rule: RefinementRule, budgets: Iterable[int], *, factor: int = 1
) -> dict[int, float]:
    """Mean squared errors against the targets of the source images, by number of steps.

    Args:
        stack: INRs.
        examples: `rule_examples` of them.
        rule: on the device where its weights are.
        budgets: numbers of steps.
        factor: output widths, as a multiple of the given ones.
    """
    on, targets = device_of(rule), examples[torch.arange(len(examples))]
    given, known = widen(stack, factor).to(on), targets["known"].to(on)
    found = {steps: refine(given, known, steps, rule=rule).to("cpu") for steps in budgets}
    return {steps: float(mean_squared_errors(edited, targets["wanted"]).mean()) for steps, edited in found.items()}


def fit_error(fits: Fits, rule: LearnedKFAC, steps: int) -> float:
    """Mean squared error of fits of all of them."""
    batch, like = fits[torch.arange(len(fits))], fits.like
    stack = INRStack(batch["params"], like.convention, like.height, like.width).to(device_of(rule))
    fitted = refine(stack, batch["known"].to(device_of(rule)), steps, rule=rule)
    return float(mean_squared_errors(fitted.to("cpu"), fits.images).mean())


def device_of(rule: RefinementRule) -> torch.device:
    """Where its weights are; the CPU for a rule that has none."""
    return rule.first.weight.device if isinstance(rule, LearnedKFAC) else torch.device("cpu")
