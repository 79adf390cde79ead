"""Fixing phase and gauge: one representative per orbit, each with the group element that leads back.

Signs and phases: a sine neuron's bias is brought into [0, pi / (2 omega)] by half-period shifts and a flip (note that
omega multiplies the bias: the period in b is 2 pi / omega, 0.209 at omega = 30); the bias of any other neuron with a
sign is made non-negative. Positive scales: every neuron's gauge n_i is made 1 (`scale_gauge`). The permutation is left
alone. Undo with `act(element.inverse(), spec, params)`. Neurons that skips tie together are fixed as one.

The scale gauge is smooth and costs next to nothing, so GaugeGMN uses it inside; the sign and
phase representatives jump where a bias crosses zero, so GaugeGMN handles these two by equivariant layers instead.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from weightedit.graph.layout import GraphLayout, graph_from_params
from weightedit.graph.linked_gauge import linked_gauge, root
from weightedit.graph.neural_graph import NeuralGraph, NodeConstants
from weightedit.network.features import PARAMETER
from weightedit.network.graph_spec import AnySpec
from weightedit.network.spec import NetworkSpec, Params, Symmetry
from weightedit.network.symmetry import GroupElement, act, identity_element


def canonicalize(
    spec: AnySpec, params: Mapping[str, Tensor], *, symmetry: Symmetry = "full"
) -> tuple[Params, GroupElement]:
    """The canonical parameters and the element that made them: params_canonical = act(element, spec, params).

    Args:
        spec: of the networks.
        params: one network, or N stacked chains.
        symmetry: which part of the group to fix ("permutation" fixes nothing).

    Raises ParamsError if `params` does not fit `spec`.
    """
    spec.check_params(params)
    chain = isinstance(spec, NetworkSpec)
    graph = NeuralGraph.from_params(spec, params) if chain else graph_from_params([(spec, params)])
    gauge = scale_gauge(graph, graph.layout.constants(symmetry, graph.edges))
    groups, ties = spec.neuron_groups(symmetry), range(1, spec.depth) if chain else spec.factors[1:-1]
    activations = [each.activation for each in (spec.layers if chain else spec.levels[1:])]
    biases, counts, scales, flips = [], [], [], []
    for level, (group, activation) in enumerate(zip(groups, activations, strict=False), start=1):
        bias = graph.layout.at_level(level, graph.nodes)[..., 0]
        scales.append(1 / graph.layout.at_level(level, gauge)[..., 0])
        counts.append(_half_periods(bias, math.pi / activation.parameter) if group.shift else torch.zeros_like(bias))
        biases.append(bias - counts[-1] * (math.pi / activation.parameter) if group.shift else bias)
    for group, tie in zip(groups, ties, strict=True):
        # What is tied flips as one, by the sum of its biases.
        bias = torch.stack([own for own, other in zip(biases, ties, strict=True) if other == tie]).sum(0)
        flips.append(torch.where(bias < 0, -1.0, 1.0).to(bias) if group.flip else torch.ones_like(bias))
    shifts = tuple(-flip * count for flip, count in zip(flips, counts, strict=True))
    start = identity_element(spec, graph.edges)
    orders = tuple(p.expand(flip.shape) for p, flip in zip(start.permutation, flips, strict=True))
    element = GroupElement(orders, tuple(scales), tuple(flips), shifts)
    return act(element, spec, params), element


def _half_periods(bias: Tensor, half_period: float) -> Tensor:
    """How many half periods a bias is above (-1/2, 1/2] of one."""
    count = torch.zeros_like(bias)
    # Ties, and what rounding errors make of them, stay, and a second look catches what the subtraction rounded past
    # them, so that fixing twice is fixing once.
    for _ in range(2):
        count = count + ((bias - count * half_period) / half_period - 0.5 - 1e-5).ceil()
    return count


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
    if isinstance(layout, GraphLayout):
        return linked_gauge(layout, squares, biases, constants.scale)
    levels = [torch.ones_like(layout.at_level(0, biases))]
    for level in range(1, layout.levels):
        free = layout.at_level(level, constants.scale) == 0
        square = layout.transmit(level, squares, levels[-1].square()) + layout.at_level(level, biases).square()
        levels.append(torch.where(free, torch.ones_like(square), root(square)))
    gauge = layout.join_levels(levels)
    for _ in range(layout.levels):
        known = gauge > 0
        square = torch.where(known, gauge, 1.0).square()
        above = layout.sum_at_source(squares * layout.to_target(known / square))
        below = layout.sum_at_target(squares * layout.to_source(known * square))
        found = torch.where(above > 0, 1 / torch.where(above > 0, above, 1.0).sqrt(), root(below))
        gauge = torch.where(known, gauge, found)
    known = gauge > 0
    return torch.where(known, gauge, 1.0), known.to(gauge)
