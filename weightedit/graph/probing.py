"""Reading a network at inputs: activations and slopes of every neuron, on the neural graph, for either layout.

A probe is an input at which the network's activations are read. Activations transform as the outgoing side of a
neuron (q beta), slopes as outgoing over incoming (beta alpha, no scale): see Activation.slope and symmetry.md section
4. Both are differentiable in the parameters and in the probes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from weightedit.graph.neural_graph import NeuralGraph


@dataclass(frozen=True)
class Reading:
    """What P probes see at every node: `values` [..., n, P] activations, `slopes` [..., n, P] (ones at the inputs)."""

    values: Tensor
    slopes: Tensor


def probe(graph: NeuralGraph, inputs: Tensor) -> Reading:
    """Run every network of `graph` (channel 0: its parameters) at the same inputs; never in bf16, phases need more.

    Args:
        graph: of networks that all have in_features inputs.
        inputs: [P, in_features].
    """
    with torch.autocast(inputs.device.type, enabled=False):
        layout, weights, biases = graph.layout, graph.edges[..., :1], graph.nodes[..., :1]
        start, *own = layout.by_level(biases)
        networks = start.shape[-2] // inputs.shape[-1]
        values = [inputs.T.repeat(networks, 1).to(start).expand(*start.shape[:-1], inputs.shape[0])]
        slopes = [torch.ones_like(values[0])]
        for level, bias in enumerate(own, 1):
            value, slope = activate(graph, level, layout.transmit(level, weights, values[-1]) + bias)
            values.append(value)
            slopes.append(slope)
        return Reading(layout.join_levels(values), layout.join_levels(slopes))


def bias_reading(graph: NeuralGraph) -> Reading:
    """The reading with nothing coming in: activations and slopes at the bias alone, [..., n, 1]; zeros at the inputs.

    For a sine neuron these are sin(omega b) and cos(omega b), which see the bias exactly up to its period.
    """
    layout, biases = graph.layout, graph.nodes[..., :1]
    start, *own = layout.by_level(biases)
    values, slopes = [start], [torch.ones_like(start)]
    for level, bias in enumerate(own, 1):
        value, slope = activate(graph, level, bias)
        values.append(value)
        slopes.append(slope)
    return Reading(layout.join_levels(values), layout.join_levels(slopes))


def backpropagate(graph: NeuralGraph, slopes: Tensor, at_outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Send wished-for changes of the outputs down the network, as a gradient would go: one sweep, no autograd.

    Args:
        graph: channel 0 holds the (normalized) weights.
        slopes: [..., n, P] of a reading.
        at_outputs: [..., n, P], wished-for changes at the output nodes; zero at all others.

    Returns:
        The changes of pre-activations (incoming type) and of activations (outgoing type), both [..., n, P]; every sum
        over the nodes above is divided by the root of their number.
    """
    layout, weights = graph.layout, graph.edges[..., :1]
    roots = layout.constants("full", weights).out_root
    wished, degrees, slopes_of = (layout.by_level(nodes) for nodes in (at_outputs, roots, slopes))
    before, after = [wished[-1]], [torch.zeros_like(wished[-1])]
    for level in range(layout.levels - 1, 0, -1):
        above = layout.transmit_back(level, weights, before[0]) * degrees[level - 1]
        after.insert(0, above)
        before.insert(0, above * slopes_of[level - 1] + wished[level - 1])
    return layout.join_levels(before), layout.join_levels(after)


def activate(graph: NeuralGraph, level: int, z: Tensor) -> tuple[Tensor, Tensor]:
    """Activations and slopes of one level at pre-activations `z` [..., n_level, P]."""
    kinds = graph.layout.activations_at(level)
    if len(kinds) == 1:
        return kinds[0][0](z), kinds[0][0].slope(z)
    value, slope = z, torch.ones_like(z)
    for activation, where in kinds:
        assert where is not None, "several activations on one level come with their positions"
        part = z.index_select(-2, where)
        value = value.index_copy(-2, where, activation(part))
        slope = slope.index_copy(-2, where, activation.slope(part))
    return value, slope
