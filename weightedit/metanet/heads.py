"""Heads: what turns the last streams into a delta.

The delta head adds, per weight, a product term w * (...), a linear read-out of the edge channels, a rank-one term
sum_c x_ic y_jc and a reading term sum_p d_ip a_jp: a_jp is the activation of the source at probe p, d_ip a predicted
change of the target's pre-activation there, so the term has the form of a gradient, sum_p dz_i(p) a_j(p). Bias deltas
are read off the incoming streams of the nodes themselves (never by offset). The output is of unit size in the gauge;
one learned scale per layer, counted from the input and from the output, brings it to a small fraction of the layer's
weights at the start.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from weightedit.graph import NodeConstants
from weightedit.metanet.layers import OddLinear, Streams, unit_rms


@dataclass(frozen=True)
class Readings:
    """What the probes see at every node, [..., n, P]: activations, slopes and the forecast change of pre-activations."""

    activations: Tensor
    slopes: Tensor
    forecast: Tensor


class LayerTable(nn.Module):
    """A learned vector per level: one counted from the inputs plus one counted from the outputs.

    Any depth is accepted: levels further away than `levels` share the last entry.
    """

    def __init__(self, levels: int, width: int, *, mean: float = 0.0, spread: float = 0.0) -> None:
        super().__init__()
        self.from_input = nn.Parameter(mean / 2 + spread * torch.randn(levels, width))
        self.from_output = nn.Parameter(mean / 2 + spread * torch.randn(levels, width))

    def forward(self, constants: NodeConstants) -> Tensor:
        """[n, width]"""
        last = self.from_input.shape[0] - 1
        return self.from_input[constants.level.clamp(max=last)] + self.from_output[constants.height.clamp(max=last)]


class DeltaHead(nn.Module):
    """Streams -> (weight delta [..., e, 1], bias delta [..., n, 1]) in the gauge, times the learned layer scales."""

    def __init__(self, node_width: int, edge_width: int, readings: int, levels: int, initial_scale: float) -> None:
        super().__init__()
        self.change_incoming = OddLinear(node_width, readings)
        self.change_outgoing = OddLinear(node_width, readings)
        self.gate_forecast = nn.Linear(node_width, 1)
        self.rank_incoming = OddLinear(node_width, node_width)
        self.rank_outgoing = OddLinear(node_width, node_width)
        self.gate_incoming = nn.Linear(node_width, node_width)
        self.gate_outgoing = nn.Linear(node_width, node_width)
        self.read_edges = nn.Linear(edge_width, 1, bias=False)
        self.read_bias = OddLinear(node_width, 1)
        self.product = nn.Linear(node_width, 2)
        self.scales = LayerTable(levels, 2, mean=initial_scale)

    def forward(self, state: Streams, raw: Tensor, readings: Readings) -> tuple[Tensor, Tensor]:
        """`raw` [..., e, 1]: the normalised weights."""
        free, layout, z = 1 - state.constants.flip, state.layout, state.invariant
        x = unit_rms(state.incoming) * self.gate_incoming(z)
        y = unit_rms(state.outgoing) * self.gate_outgoing(z)
        change = self.change_incoming(x, free) + readings.slopes * self.change_outgoing(y, free)
        change = change + readings.forecast * self.gate_forecast(z)
        x, y = self.rank_incoming(x, free), self.rank_outgoing(y, free)
        # The scale of a layer is that of its target level.
        scale = self.scales(state.constants)
        target = torch.cat([self.product(z)[..., :1], scale[:, :1].expand(*z.shape[:-1], 1)], -1)
        at_target, at_source = layout.to_target(target), layout.to_source(self.product(z)[..., 1:])
        weights = raw * (at_target[..., :1] + at_source) + self.read_edges(state.edges)
        weights = weights + layout.outer(x, y) / math.sqrt(x.shape[-1])
        weights = weights + layout.outer(change, readings.activations) / math.sqrt(change.shape[-1])
        biases = (self.read_bias(x, free) + change.sum(-1, keepdim=True) / math.sqrt(change.shape[-1])) * scale[:, 1:]
        return weights * at_target[..., 1:], biases
