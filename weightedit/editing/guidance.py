"""What a known target tells a metanetwork about every weight: directions towards it, as typed features.

The target is operation(the INR's own rendering), so this is fair wherever the operation is known at edit time. Without
gradients: these are inputs of a metanetwork, not steps.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from weightedit.editing.curvature import KFAC, RIDGE, Steering, kfac_step
from weightedit.editing.rendering_problem import Layer, RenderingProblem
from weightedit.errors import SpecError
from weightedit.network.features import DELTA, GRADIENT, ChannelType
from weightedit.network.spec import Params

GUIDES: dict[str, ChannelType] = {"gradient": GRADIENT, "kfac": DELTA}
"""The gradient of the mean squared error by the parameters, which acts dually to the weights; and the step that K-FAC
would take, which acts as a delta does: its last layer is the change to the closed-form one."""


def check_guides(names: Sequence[str]) -> tuple[ChannelType, ...]:
    """The channel types of these guides; raises SpecError on a name that is not one of GUIDES."""
    unknown = [name for name in names if name not in GUIDES]
    if unknown:
        raise SpecError(f"got guides {unknown}; expected names among {', '.join(GUIDES)}: correct them.")
    return tuple(GUIDES[name] for name in names)


@torch.no_grad()
def guides(names: Sequence[str], problem: RenderingProblem, params: Params) -> list[tuple[ChannelType, Params]]:
    """The named guides at `params`, for `propose_delta`.

    Args:
        names: keys of GUIDES.
        problem: with the targets, of the networks' own convention.
        params: N stacked networks.

    Returns one (type, tensors of the names and shapes of `params`) each.
    """
    types, layers, found = check_guides(names), problem.layers(params), []
    for name in names:
        if name == "gradient":
            found.append(problem.gradients(problem.summarize(layers)))
            continue
        start = KFAC()
        steering = Steering(start.rate, start.momentum, start.damping, start.damping)
        new, _ = kfac_step(layers, problem.summarize(layers, ridge=RIDGE, factors=True), steering, [])
        change = [Layer(a.weight - b.weight, a.bias - b.bias) for a, b in zip(new, layers, strict=True)]
        found.append(problem.params(change))
    return list(zip(types, found, strict=True))
