"""Equivariant layers on neural graphs: the only file with group algebra inside a metanetwork.

Everything here works in the scale gauge (canonicalization.scale_gauge): a stored node vector x stands for its primal
form n x of type +1 and for its dual form x / n of type -1 at once, and a stored edge value e for e n_i / n_j. So
messages to targets use the primal, messages to sources the dual channel of symmetry.md section 3, and neither a
reciprocal of a weight nor an epsilon in a norm is needed. What is left to respect are permutations, by construction,
and signs. Legend, for neuron i with signs alpha (incoming side) and beta (outgoing side), symmetry.md section 4:

    x  `incoming` node stream   ~ alpha_i     (rows, bias deltas, incoming messages)
    y  `outgoing` node stream   ~ beta_i      (activations, messages from the nodes above)
    z  `invariant` node stream  ~ 1
    e  edges                    ~ alpha_i beta_j
    s  slopes                   ~ alpha_i beta_i: s x ~ beta_i and s y ~ alpha_i, the only bridge between x and y

For groups without a half-period shift alpha = beta. Linear maps of x, y, e have no bias where a sign acts (OddLinear);
nonlinear functions act on invariants only: z, x_a x_b, y_a y_b and e x y, which keep the relative signs of a neuron's
channels. What depends on one end of an edge is computed on the node and broadcast.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from weightedit.graph.neural_graph import Layout, NodeConstants


@dataclass(frozen=True)
class Streams:
    """The state between two layers; shapes [..., n, node_width] and, for edges, [..., e, edge_width]."""

    layout: Layout
    constants: NodeConstants
    slopes: Tensor  # [..., n, S], fixed through the layers
    incoming: Tensor
    outgoing: Tensor
    invariant: Tensor
    edges: Tensor


class OddLinear(nn.Module):
    """A linear map of odd channels whose bias acts only where no sign does."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width_out, width_in) / math.sqrt(width_in))
        self.bias = nn.Parameter(torch.randn(width_out) / math.sqrt(width_in))

    def forward(self, x: Tensor, free: Tensor) -> Tensor:
        """`x` [..., n, in], `free` [n, 1] (1.0 where no sign acts) -> [..., n, out]."""
        return functional.linear(x, self.weight) + free * self.bias


def unit_rms(x: Tensor) -> Tensor:
    """`x` over its root mean square along the last axis. Even in x, and in the gauge the epsilon is harmless."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


class NodeUpdate(nn.Module):
    """Mix a node's streams with each other and with the messages of either direction, 0 channels for none.

    Residual on all three streams; the two odd ones are gated by invariants.
    """

    def __init__(
        self, width: int, slope_width: int, messages_in: int, messages_out: int, relative_signs: bool = True
    ) -> None:
        super().__init__()
        self.width = width
        self.relative_signs = relative_signs
        self.bridge = OddLinear(slope_width, 2 * width)
        self.mix_incoming = OddLinear(2 * width + messages_in, width)
        self.mix_outgoing = OddLinear(2 * width + messages_out, width)
        self.pair_incoming = OddLinear(width, 2 * width)
        self.pair_outgoing = OddLinear(width, 2 * width)
        self.norm = nn.LayerNorm(3 * width + messages_in + messages_out)
        self.hidden = nn.Linear(3 * width + messages_in + messages_out, 2 * width)
        self.out = nn.Linear(2 * width, 3 * width)

    def forward(self, state: Streams, odd: tuple[Tensor, ...], even: tuple[Tensor, ...]) -> Streams:
        """New streams; `odd` and `even` hold the messages: (at targets, at sources), the former alone, or none."""
        free, unshifted = 1 - state.constants.flip, 1 - state.constants.shift
        to_out, to_in = self.bridge(state.slopes, unshifted).chunk(2, -1)
        x, y = unit_rms(state.incoming), unit_rms(state.outgoing)
        from_in, from_out = [x, to_in * y], [y, to_out * x]
        from_in += odd[:1]
        from_out += odd[1:]
        invariants = [state.invariant, *even]
        mixed_in = unit_rms(self.mix_incoming(torch.cat(from_in, -1), free))
        mixed_out = unit_rms(self.mix_outgoing(torch.cat(from_out, -1), free))
        pairs = self.pair_incoming(mixed_in, free), self.pair_outgoing(mixed_out, free)
        invariants += [paired(pair if self.relative_signs else pair.abs()) for pair in pairs]
        found = self.out(functional.silu(self.hidden(self.norm(torch.cat(invariants, -1)))))
        step, gate_in, gate_out = found.split(self.width, -1)
        return replace(
            state,
            incoming=state.incoming + gate_in * mixed_in,
            outgoing=state.outgoing + gate_out * mixed_out,
            invariant=state.invariant + step,
        )


def paired(x: Tensor) -> Tensor:
    """Products of channel c and channel c + C / 2: [..., C] of one sign -> [..., C / 2], invariant."""
    left, right = x.chunk(2, -1)
    return left * right


def damp(values: Tensor, edges: Tensor) -> Tensor:
    """values / sqrt(1 + mean square of the edge's channels), both [..., e, C]; even in the edge.

    Without it v grows with e, hence e with e^2 in every layer: the largest edges went to 1e9 in ten.
    """
    return values * torch.rsqrt(1 + edges.square().mean(-1, keepdim=True)).to(values.dtype)


class EdgeUpdate(nn.Module):
    """Update edges from their two ends, and send messages along them.

    Per edge: v = silu(A (e x_i y_j) / d + a_i + b_j) is invariant, d^2 = 1 + mean(e^2) (see damp);
    e <- e (1 + B v) + x'_i y'_j C v is odd: the product term and the rank-one term of symmetry.md section 3, which lets
    a zero weight become non-zero. Messages are sum_j e y''_j at targets and sum_i e x''_i at sources, over the root of
    their number, and means of v at both.
    """

    def __init__(
        self,
        node_width: int,
        edge_width: int,
        even_width: int = 0,
        rank_one: bool = True,
        edge_skip: bool = True,
        relative_signs: bool = True,
        bidirectional: bool = True,
    ) -> None:
        super().__init__()
        self.edge_width, self.bidirectional = edge_width, bidirectional
        self.rank_one, self.edge_skip, self.relative_signs = rank_one, edge_skip, relative_signs
        self.from_incoming = OddLinear(node_width, (2 + bidirectional) * edge_width)
        self.from_outgoing = OddLinear(node_width, 3 * edge_width)
        self.from_invariant = nn.Linear(node_width, 2 * edge_width)
        self.product = nn.Linear(edge_width, edge_width, bias=False)
        self.gate = nn.Linear(edge_width, edge_width)
        self.rank_gate = nn.Linear(edge_width, edge_width)
        self.even = nn.Linear(even_width, edge_width, bias=False) if even_width else None
        with torch.no_grad():
            self.gate.weight.mul_(0.5)
            self.rank_gate.weight.mul_(0.5)

    def forward(
        self, state: Streams, even: Tensor | None = None
    ) -> tuple[Streams, tuple[Tensor, ...], tuple[Tensor, ...]]:
        """New state, odd messages (at targets, and if bidirectional at sources) and even messages (likewise)."""
        layout, constants, free = state.layout, state.constants, 1 - state.constants.flip
        x = self.from_incoming(unit_rms(state.incoming), free).split(self.edge_width, -1)
        y = self.from_outgoing(unit_rms(state.outgoing), free).chunk(3, -1)
        at_target, at_source = self.from_invariant(state.invariant).chunk(2, -1)
        products = layout.modulate(state.edges, x[0], y[0])
        products = products if self.relative_signs else products.abs()
        v = damp(self.product(products), state.edges)
        v = layout.add_ends(v, at_target, at_source)
        if self.even is not None and even is not None:
            v = v + self.even(even)
        v = functional.silu(v)
        # Not addcmul: its gradient multiplies twice by the scalar 1. In place: fresh edge-sized memory is dear.
        edges = state.edges * self.gate(v)
        if self.edge_skip:
            edges = edges.add_(state.edges)
        if self.rank_one:
            edges = edges.add_(layout.modulate(self.rank_gate(v), x[1], y[1]))
        new = replace(state, edges=edges)
        degree_in, degree_out = constants.in_degree.clamp(min=1), constants.out_degree.clamp(min=1)
        odd_in = layout.collect_at_target(edges, y[2]) * degree_in.rsqrt()
        even_in = layout.sum_at_target(v) / degree_in
        if not self.bidirectional:
            return new, (odd_in,), (even_in,)
        odd_out = layout.collect_at_source(edges, x[2]) * degree_out.rsqrt()
        return new, (odd_in, odd_out), (even_in, layout.sum_at_source(v) / degree_out)
