"""Heads: what turns the last streams into a delta, or into one vector per network.

The delta head adds, per weight, a product term w * (...), a linear read-out of the edge channels, a rank-one term
sum_c x_ic y_jc and a reading term sum_p d_ip a_jp: a_jp is the activation of the source at probe p, d_ip a predicted
change of the target's pre-activation there, so the term has the form of a gradient, sum_p dz_i(p) a_j(p). Bias deltas
are read off the incoming streams of the nodes themselves (never by offset). The output is of unit size in the gauge;
one learned scale per layer, counted from the input and from the output, brings it to a small fraction of the layer's
weights at the start. In a chain with convolutions all of this holds for every position of a kernel by itself, from the
one pair of end nodes that a whole kernel has: each term has matrices or factors of its own per position, which no
neuron's factor tells apart, so any mixing of positions is equivariant.

The invariant readout is after that of Kalogeropoulos et al. 2024: hidden nodes are averaged (there summed), input and
output nodes, which no permutation moves, are read one by one. Signed streams enter by products of two of their
channels, never by absolute values, so that the relative signs of a neuron's channels are seen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from weightedit.graph.neural_graph import DenseLayout, Layout, NeuralGraph, NodeConstants, product
from weightedit.graph.probing import probe
from weightedit.metanet.gauge_gmn.layers import OddLinear, OddPair, Streams, paired, unit_rms
from weightedit.metanet.levels import LayerTable
from weightedit.network.features import PARAMETER


@dataclass(frozen=True)
class Readings:
    """At every node and reading, [..., n, P]: activations, slopes, the forecast change of pre-activations, and (at the
    output nodes) the activations wished for."""

    activations: Tensor
    slopes: Tensor
    forecast: Tensor
    wished: Tensor


class LastLayerRefit(nn.Module):
    """Refit the last linear layer in closed form, after the other deltas, to the outputs wished for at the probes.

    With a_j(p) the activations of the last hidden level under the proposed delta and r(p) what is still missing at
    probe p, it adds the ridge solution of sum_p (sum_j dw_j a_j(p) + db - r(p))^2 + lambda P |dw, db|^2, the learned
    lambda in units of the mean square of a. Orthogonal changes of the a_j leave it equivariant; they are taken in the
    scale gauge. Solved in float64, differentiable, 33 unknowns for a SIREN of width 32.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log_ridge = nn.Parameter(torch.tensor(0.0))

    def forward(
        self, graph: NeuralGraph, delta: NeuralGraph, inputs: Tensor, wished: Tensor, gauge: Tensor
    ) -> NeuralGraph:
        """`delta` with the refit added.

        Args:
            graph: the parameters.
            delta: the proposed delta, not in the gauge.
            inputs: [P, in] probes.
            wished: [..., n, P] outputs wished for, at the output nodes.
            gauge: [..., n, 1].
        """
        moved = graph.with_features(
            graph.nodes[..., :1] + delta.nodes, graph.edges[..., :1] + delta.edges, (PARAMETER,)
        )
        values = probe(moved, inputs).values
        missing, values = wished - values, values / gauge
        parts = zip(
            graph.layout.networks(torch.cat([values, missing], -1), delta.edges),
            graph.layout.networks(torch.cat([delta.nodes, gauge], -1), delta.edges),
            strict=True,
        )
        new = [self._refit(layout, both, edges, nodes) for (layout, both, edges), (_, nodes, _) in parts]
        nodes, edges = graph.layout.join_networks([n for n, _ in new], [e for _, e in new])
        return delta.with_features(nodes, edges, delta.types)

    def _refit(self, layout: DenseLayout, both: Tensor, edges: Tensor, nodes: Tensor) -> tuple[Tensor, Tensor]:
        depth = layout.spec.depth
        values, missing = both.chunk(2, -1)
        hidden, gap = layout.at_level(depth - 1, values), layout.at_level(depth, missing)
        ridge = self.log_ridge.double().clamp(min=math.log(1e-4)).exp() * _square_of(hidden.double())
        found = ridge_solution(hidden, gap, ridge)
        biases, gauge = nodes.split(1, -1)
        weights, bias = found.split([hidden.shape[-2], 1], -1)
        last = (weights / layout.at_level(depth - 1, gauge).mT).flatten(-2).unsqueeze(-1)
        return _added_last(biases, bias), _added_last(edges, last)


def _added_last(values: Tensor, more: Tensor) -> Tensor:
    """`values` [..., n, C] with `more` [..., m, C] added to the last of them."""
    head, last = values.split([values.shape[-2] - more.shape[-2], more.shape[-2]], -2)
    return torch.cat([head, last + more], -2)


class SolvedReading(nn.Module):
    """The reading term, solved: in every layer the delta that brings the changes d_ip about at the probes.

    With a_jp the activations of the sources it is the ridge solution of sum_p (sum_j dw_ij a_jp + db_i - d_ip)^2 +
    lambda P |dw, db|^2, where the plain term sum_p d_ip a_jp is only its gradient at zero: K-FAC's factor for the
    activations (Martens & Grosse 2015). One learned lambda per level, in units of the mean square of a. In the gauge,
    where orthogonal changes of the a_j leave it equivariant. Solved in float64, differentiable.
    """

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.log_ridge = LayerTable(levels, 1, mean=math.log(1e-2))

    def forward(
        self, layout: Layout, constants: NodeConstants, change: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor]:
        """`change` and `values` [..., n, P] -> deltas of weights [..., e, 1] and biases [..., n, 1]."""
        ridge = self.log_ridge(constants).clamp(min=math.log(1e-4)).exp().expand(*change.shape[:-1], 1)
        nodes, reads = torch.cat([change, values, ridge], -1), change.shape[-1]
        no_edges = change.new_zeros(*change.shape[:-2], layout.edge_count, 1)
        parts = [self._solve(dense, at, reads) for dense, at, _ in layout.networks(nodes, no_edges)]
        at_nodes, at_edges = layout.join_networks([n for n, _ in parts], [e for _, e in parts])
        return at_edges, at_nodes

    @staticmethod
    def _solve(layout: DenseLayout, nodes: Tensor, reads: int) -> tuple[Tensor, Tensor]:
        change, values, ridge = nodes.split([reads, reads, 1], -1)
        (start, *ridges), changes = layout.by_level(ridge), layout.by_level(change)[1:]
        biases, weights = [torch.zeros_like(start)], []
        for below, wished, own in zip(layout.by_level(values), changes, ridges, strict=False):
            found = ridge_solution(below, wished, own[..., :1, :] * _square_of(below))
            weight, bias = found.split([below.shape[-2], 1], -1)
            weights.append(weight.flatten(-2).unsqueeze(-1))
            biases.append(bias)
        return torch.cat(biases, -2), torch.cat(weights, -2)


def _square_of(values: Tensor) -> Tensor:
    """The mean square of `values` [..., in, P], [..., 1, 1]; 1 where nothing arrives, as in a network of zeros: there
    any ridge leaves weights at zero, and none has no solution."""
    square = values.square().mean((-2, -1), keepdim=True)
    return square.masked_fill(square <= 0, 1.0)


def ridge_solution(values: Tensor, wished: Tensor, ridge: Tensor) -> Tensor:
    """[..., out, in + 1]: weights, then a bias, least in sum_p (w a_p + b - d_p)^2 + ridge P |w, b|^2.

    Args:
        values: a, [..., in, P].
        wished: d, [..., out, P].
        ridge: positive, [..., 1, 1].
    """
    design = functional.pad(values, (0, 0, 0, 1), value=1.0).double()
    gram, points = product(design, design.mT), values.shape[-1]
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    # Symmetric and positive: a factorization whose error code nobody waits for, unlike that of linalg.solve.
    factor, _ = torch.linalg.cholesky_ex(gram + ridge * points * eye)
    half = torch.linalg.solve_triangular(factor, product(design, wished.double().mT), upper=False)
    return torch.linalg.solve_triangular(factor.mT, half, upper=True).mT.to(wished)


class InvariantReadout(nn.Module):
    """Streams -> one vector per network, [..., embedding] (ragged: [networks, embedding]); invariant to all factors.

    Args:
        node_width: channels of each node stream.
        ends: number of input and output nodes together.
        embedding: channels of the vector.
        relative_signs: see products of two odd channels; else of their absolute values.
    """

    def __init__(self, node_width: int, ends: int, embedding: int, relative_signs: bool = True) -> None:
        super().__init__()
        self.relative_signs = relative_signs
        self.pair = OddPair(node_width, 2 * node_width, "pair")
        self.norm = nn.LayerNorm(3 * node_width)
        self.hidden = nn.Linear(3 * node_width, 2 * node_width)
        self.at_ends = nn.Linear(2 * node_width, node_width)
        self.out = nn.Linear((2 + ends) * node_width, embedding)

    def forward(self, state: Streams) -> Tensor:
        constants = state.constants
        pairs = self.pair(unit_rms(state.odd), constants.free)
        seen = [state.invariant, *paired(pairs if self.relative_signs else pairs.abs())]
        nodes = functional.silu(self.hidden(self.norm(torch.cat(seen, -1))))
        inner = ((constants.level > 0) & (constants.height > 0)).unsqueeze(-1).to(nodes)
        ends = [self.at_ends(end).flatten(-2) for end in state.layout.ends(nodes)]
        return self.out(torch.cat([state.layout.network_mean(nodes, inner), *ends], -1))


@dataclass(frozen=True)
class HeadSizes:
    """Sizes of a DeltaHead: channels of the streams and edges, readings per node, levels with output scales of their
    own, and positions of a kernel (1 without convolutions)."""

    node_width: int
    edge_width: int
    readings: int
    levels: int
    positions: int = 1


class DeltaHead(nn.Module):
    """Streams -> (weight delta [..., e, K], bias delta [..., n, 1]) in the gauge, times the learned layer scales.

    Args:
        sizes: K is their `positions`.
        initial_scale: of the learned layer scales.
        rank_one: keep the rank-one term.
        solved: add the reading term solved, see SolvedReading.
    """

    def __init__(self, sizes: HeadSizes, initial_scale: float, rank_one: bool = True, solved: bool = False) -> None:
        super().__init__()
        self.rank_one, self.positions = rank_one, sizes.positions
        node_width, readings = sizes.node_width, sizes.readings
        self.change = OddPair(node_width, readings, "change")
        # Networks with kernels have no probes, hence no forecast.
        self.gate_forecast = nn.Linear(node_width, 1) if sizes.positions == 1 else None
        self.rank = OddPair(node_width, node_width, "rank")
        self.gate_incoming = nn.Linear(node_width, node_width)
        self.gate_outgoing = nn.Linear(node_width, node_width)
        self.read_edges = nn.Linear(sizes.edge_width, sizes.positions, bias=False)
        self.read_bias = OddLinear(node_width, 1)
        self.product = nn.Linear(node_width, 2 * sizes.positions)
        self.scales = LayerTable(sizes.levels, 2, mean=initial_scale)
        self.rank_mix = self.change_mix = None
        if sizes.positions > 1:
            # What a constant image has: every position of a kernel sees the same activation.
            self.change_mix = nn.Parameter(torch.ones(sizes.positions, readings))
            self.rank_mix = nn.Parameter(torch.randn(sizes.positions, node_width)) if rank_one else None
        self.solved = SolvedReading(sizes.levels) if solved else None
        self.gate_solved = nn.Linear(node_width, 1) if solved else None

    def forward(self, state: Streams, raw: Tensor, readings: Readings) -> tuple[Tensor, Tensor]:
        """`raw` [..., e, K]: the normalized weights."""
        free, layout, z = state.constants.free, state.layout, state.invariant
        gated = unit_rms(state.odd) * torch.stack([self.gate_incoming(z), self.gate_outgoing(z)])
        before, after = self.change(gated, free)
        change = before + readings.slopes * after
        if self.gate_forecast is not None:
            change = change + readings.forecast * self.gate_forecast(z)
        x, y = self.rank(gated, free)
        # The scale of a layer is that of its target level.
        (of_weights, of_biases), k = self.scales(state.constants).split(1, -1), self.positions
        above, below = self.product(z).chunk(2, -1)
        target = torch.cat([above, of_weights.expand(*z.shape[:-1], 1)], -1)
        (at_target, scale), at_source = layout.to_target(target).split([k, 1], -1), layout.to_source(below)
        weights = raw * (at_target + at_source) + self.read_edges(state.edges)
        if self.rank_one:
            weights = weights + layout.outer(x, y, self.rank_mix) / math.sqrt(x.shape[-1])
        weights = weights + layout.outer(change, readings.activations, self.change_mix) / math.sqrt(change.shape[-1])
        biases = self.read_bias(x, free) + change.sum(-1, keepdim=True) / math.sqrt(change.shape[-1])
        if self.solved is not None and self.gate_solved is not None:
            wished = change * self.gate_solved(z)
            at_edges, at_nodes = self.solved(layout, state.constants, wished, readings.activations)
            weights, biases = weights + at_edges, biases + at_nodes
        return weights * scale, biases * of_biases
