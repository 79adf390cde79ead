"""Fixing phase and gauge: one representative per orbit, each with the group element that leads back.

Signs and phases: a sine neuron's bias is brought into [0, pi / (2 omega)] by half-period shifts and a flip (note that
omega multiplies the bias: the period in b is 2 pi / omega, 0.209 at omega = 30); the bias of any other neuron with a
sign is made non-negative. Positive scales: every neuron's gauge n_i is made 1 (`scale_gauge`). The permutation is left
alone. Undo with `act(element.inverse(), spec, params)`.

The scale gauge is smooth and costs next to nothing, so ScaleGMN uses it inside; the sign and
phase representatives jump where a bias crosses zero, so ScaleGMN handles these two by equivariant layers instead.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from weightedit.graph.neural_graph import NeuralGraph, NodeConstants
from weightedit.network.features import PARAMETER
from weightedit.network.spec import NetworkSpec, Params, Symmetry
from weightedit.network.symmetry import GroupElement, act, identity_element


def canonicalize(
    spec: NetworkSpec, params: Mapping[str, Tensor], *, symmetry: Symmetry = "full"
) -> tuple[Params, GroupElement]:
    """The canonical parameters and the element that made them: params_canonical = act(element, spec, params).

    Args:
        spec: of the networks.
        params: one network or N stacked ones.
        symmetry: which part of the group to fix ("permutation" fixes nothing).

    Raises ParamsError if `params` does not fit `spec`.
    """
    spec.check_params(params)
    start = identity_element(spec, params[spec.layers[0].weight])
    graph = NeuralGraph.from_params(spec, params)
    gauge = scale_gauge(graph, graph.layout.constants(symmetry, graph.edges))
    scales, flips, shifts = [], [], []
    for level, group in enumerate(spec.neuron_groups(symmetry), start=1):
        layer = spec.layers[level - 1]
        bias = graph.layout.at_level(level, graph.nodes)[..., 0]
        scales.append(1 / graph.layout.at_level(level, gauge)[..., 0])
        count = torch.zeros_like(bias)
        if group.shift:
            half_period = math.pi / layer.activation.parameter
            # Ties, and what rounding errors make of them, stay, and a second look catches what the subtraction rounded
            # past them, so that fixing twice is fixing once.
            for _ in range(2):
                count = count + ((bias - count * half_period) / half_period - 0.5 - 1e-5).ceil()
            bias = bias - count * half_period
        flip = torch.where(bias < 0, -1.0, 1.0).to(bias) if group.flip else torch.ones_like(bias)
        flips.append(flip)
        shifts.append(-flip * count)
    orders = tuple(p.expand(flip.shape) for p, flip in zip(start.permutation, flips, strict=True))
    element = GroupElement(orders, tuple(scales), tuple(flips), tuple(shifts))
    return act(element, spec, params), element


def scale_gauge(graph: NeuralGraph, constants: NodeConstants) -> Tensor:
    """A positive number n_i per node that transforms as q_i: [..., n, 1]; 1 where a node has no scale factor.

    n_i^2 = sum_j w_ij^2 n_j^2 + b_i^2 (symmetry.md section 3), so w n_j / n_i and g n_i / n_j are invariant. A neuron
    with nothing coming in takes n_i^-2 = sum_k w_ki^2 / n_k^2 from its outgoing side; no epsilon is added to a norm,
    which would break exactness. One that is not anchored (see `anchored_gauge`) takes 1.

    Args:
        graph: its first channels, of type PARAMETER, hold the parameters; a kernel's squares are summed.
        constants: of the graph's layout; `scale` is 1.0 where the node has a positive factor.
    """
    return anchored_gauge(graph, constants)[0]


def anchored_gauge(graph: NeuralGraph, constants: NodeConstants) -> tuple[Tensor, Tensor]:
    """`scale_gauge`, and 1.0 for every node that is anchored, 0.0 for the others; both [..., n, 1].

    Anchored is a node without a scale factor, one with a bias, and one that a weight joins to an anchored node. Any
    other can be rescaled without its parameters showing by how much, as a neuron whose weights are all zero: nothing
    equivariant can be said of its weights, and whatever changes them has to leave them as they are. Chains of dead
    neurons are followed as far as the network is deep, which itself does not depend on scales.
    """
    layout, biases = graph.layout, graph.nodes[..., :1]
    if not constants.scaled:
        return torch.ones_like(biases), torch.ones_like(biases)
    squares = graph.edges[..., : graph.types.count(PARAMETER)].square().sum(-1, keepdim=True)
    levels = [torch.ones_like(layout.at_level(0, biases))]
    for level in range(1, layout.levels):
        free = layout.at_level(level, constants.scale) == 0
        square = layout.transmit(level, squares, levels[-1].square()) + layout.at_level(level, biases).square()
        levels.append(torch.where(free, torch.ones_like(square), _root(square)))
    gauge = layout.join_levels(levels)
    for _ in range(layout.levels):
        known = gauge > 0
        square = torch.where(known, gauge, 1.0).square()
        above = layout.sum_at_source(squares * layout.to_target(known / square))
        below = layout.sum_at_target(squares * layout.to_source(known * square))
        found = torch.where(above > 0, 1 / torch.where(above > 0, above, 1.0).sqrt(), _root(below))
        gauge = torch.where(known, gauge, found)
    known = gauge > 0
    return torch.where(known, gauge, 1.0), known.to(gauge)


def _root(square: Tensor) -> Tensor:
    """The root, with a gradient of zero at zero."""
    return torch.where(square > 0, torch.where(square > 0, square, 1.0).sqrt(), 0.0)
