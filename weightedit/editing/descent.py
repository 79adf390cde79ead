"""Steps that never raise the error of an INR: one that does is taken back, and tried again with care.

Here: the loop that the rules of curvature.py and refinement.py share, and the choice between networks of two stacks.
Every network of a stack is judged by itself, on its device: the host waits for nothing. The error of an iterate is
what the pass over the pixels finds that its next step needs anyway, so that judging costs nothing but the last one's.

The care of a network, a number of at least 1, is what Levenberg's damping is to his method (Marquardt 1963): it grows
where a step was taken back and shrinks where one was kept. What a step makes of it is the rule's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from weightedit.editing.rendering_problem import Layer, RenderingProblem, Summary
from weightedit.network.spec import Params

GROW, EASE, MOST = 4.0, 0.25, 1e6
"""Factors of the care after a step that was taken back, and after one that was kept; and its limit."""


class Standing(NamedTuple):
    """Where N networks stand, what was found there, and the rule's state before the step from there."""

    layers: list[Layer]
    found: Summary
    state: Any


Step = Callable[[Standing, list[Tensor], Tensor], tuple[list[Layer], Any]]
"""From where networks stand, the mean squared errors [N] there and at all steps before, and their care [N], to new
layers and a new state."""


def descend(
    problem: RenderingProblem, params: Params, steps: int, step: Step, state: Any, *, ridge: float | None = None
) -> Params:
    """`params` after `steps` steps, of which those that raised a network's error were taken back.

    Args:
        problem: of N networks.
        params: stacked.
        steps: at least 0.
        step: of the rule.
        state: of the rule before the first step; lists or dictionaries of tensors [N, ...].
        ridge: solve the last layer in closed form at every step, and find curvature factors; None does neither.
    """
    layers, losses = problem.layers(params), []
    kept: Standing | None = None
    care = torch.ones_like(layers[-1].bias[:, 0])
    for _ in range(steps):
        found = problem.summarize(layers, ridge=ridge, factors=ridge is not None)
        now = Standing([*layers[:-1], found.last], found, state)
        if kept is not None:
            better = found.loss < kept.found.loss  # false for NaN
            now = Standing(*choose_networks(better, now, kept))
            care = torch.where(better, care * EASE, care * GROW).clamp(1.0, MOST)
        kept = now
        losses.append(kept.found.loss / problem.convention.span**2)
        layers, state = step(kept, losses, care)
    layers, loss = (layers, problem.losses(layers)) if ridge is None else problem.solved(layers, ridge)
    return problem.params(layers if kept is None else choose_networks(loss < kept.found.loss, layers, kept.layers))


def choose_networks(mask: Tensor, one: Any, other: Any) -> Any:
    """Network by network, `one` where `mask` [N] is true, else `other`.

    Both are tensors [N, ...], or lists, tuples, named tuples or dictionaries of them, of the same structure. What is
    the same tensor in both stays it.
    """
    masks = [mask]  # by how many axes there are

    def chosen(a: Any, b: Any) -> Any:
        if a is b:
            return a
        if isinstance(a, Tensor):
            while len(masks) < a.dim():
                masks.append(masks[-1].unsqueeze(-1))
            return torch.where(masks[a.dim() - 1], a, b)
        if isinstance(a, dict):
            return {key: chosen(part, b[key]) for key, part in a.items()}
        parts = [chosen(*pair) for pair in zip(a, b, strict=True)]
        return type(a)(*parts) if hasattr(a, "_fields") else type(a)(parts)

    return chosen(one, other)
