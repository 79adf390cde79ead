"""The same networks under other parameters: what a metanetwork that respects a symmetry must not notice.

Each kind moves one factor of every hidden neuron at random and leaves the rest alone, so that a table tells what a
metanetwork loses by which of them. The function of every network stays as it is. The range 1 to 1,000 is one of the
four of the rescaled zoos of Tran et al. 2024, "Monomial Matrix Group Equivariant Neural Functional Networks".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from weightedit.errors import SpecError
from weightedit.network.spec import NetworkSpec, Params
from weightedit.network.symmetry import GroupElement, act, random_element

KINDS = ("permuted", "rescaled 1 to 1000", "rescaled e^-6 to e^6", "sign-flipped")
_SCALES = KINDS[1:3]


def kinds_of(spec: NetworkSpec) -> tuple[str, ...]:
    """The kinds that every hidden layer of `spec` allows."""
    groups = spec.neuron_groups()
    allowed = {
        "permuted": True,
        **dict.fromkeys(_SCALES, all(group.scale for group in groups)),
        "sign-flipped": all(group.flip for group in groups),
    }
    return tuple(kind for kind in KINDS if allowed[kind])


def reparametrized(spec: NetworkSpec, params: Mapping[str, Tensor], kind: str, generator: torch.Generator) -> Params:
    """Other parameters of the same functions, in the same dtype.

    Args:
        spec: of the networks.
        params: N stacked networks; every one gets factors of its own.
        kind: one of KINDS. "rescaled 1 to 1000" draws them uniformly, "rescaled e^-6 to e^6" their logarithms.
        generator: source of randomness (CPU).

    Raises SpecError on a kind that is unknown or that the activations do not allow.
    """
    if kind not in kinds_of(spec):
        raise SpecError(f"got {kind!r}; expected one of {', '.join(kinds_of(spec))}, which these activations allow.")
    count = spec.check_params(params)
    element = random_element(spec, generator, count=count, scale_range=(math.exp(-6), math.exp(6)))
    moved = act(_only(element, kind, generator), spec, {name: tensor.double() for name, tensor in params.items()})
    return {name: tensor.to(params[name].dtype) for name, tensor in moved.items()}


def _only(element: GroupElement, kind: str, generator: torch.Generator) -> GroupElement:
    """The part of a random element that `kind` names."""
    order = tuple(torch.arange(p.shape[-1]).expand(p.shape) for p in element.permutation)
    ones = tuple(torch.ones_like(q) for q in element.scale)
    zeros = tuple(torch.zeros_like(k) for k in element.shift)
    nothing = GroupElement(order, ones, ones, zeros)
    match kind:
        case "permuted":
            return replace(nothing, permutation=element.permutation)
        case "sign-flipped":
            return replace(nothing, flip=element.flip)
        case "rescaled e^-6 to e^6":
            return replace(nothing, scale=element.scale)
        case _:
            uniform = (torch.rand(q.shape, generator=generator, dtype=torch.float64) for q in ones)
            return replace(nothing, scale=tuple(1 + 999 * u for u in uniform))
