"""The paper's ScaleGMN and ScaleGMN-B, from its equations: entries `scalegmn` and `scalegmn-b`.

Kalogeropoulos, Chatzianastasis, Panagakis, "Scale Equivariant Graph MetaNetworks" (2024). Our own design after it, with
another input stage, residual edges and probes, is metanet/gauge_gmn; to repeat the paper, take this one.
The blocks are in layers.py, the published settings in config.PUBLISHED:

    start     h_i = G b_i (*) p of its layer, at inputs and outputs G b_i + p_i; e_ij = G w_ij, or G w_ij (*) p
    layers    messages, update of nodes and edges (layers.py), dropout between them
    deltas    G e_ij and G h_i, times a learned scale per layer
    vectors   MLP([sum over hidden i of ScaleInv(h_i), h of inputs and outputs]), or of outputs alone

Where the published code departs from the paper, this follows the paper:
* Edges against the direction carry 1 / w. The published code has an option `reciprocal`, which it never reads, and
  sends w: not equivariant to positive scales. Where only signs act, w transforms as 1 / w does and is taken, since it
  cannot overflow. A pruned weight of 0 has no reciprocal and sends 0. For a kernel, w the vector of its positions, it
  is w / |w|^2.
* Phases of sine neurons are canonicalized, b into [-pi / (2 omega), pi / (2 omega)] by half periods, which negate what
  goes out; deltas are led back. The published code takes a period of 2 pi without omega: at omega 30 nothing moves.

What the paper does not have, or has otherwise:
* Any depth is read: codes and output scales per layer are the sum of one counted from the inputs and one counted from
  the outputs. The paper's networks have one depth, and one code per layer.
* Each ScaleEq is a single one; the published settings compose two or three.
* Further quantities (gradients, moments) are brought to the type of a weight by the scale gauge (canonicalization.py)
  and divided by their layer's root mean square, invariants (a clock) excepted; those without a sign go where codes go.
* Several architectures share a batch: which forms are canonical is decided neuron by neuron.

As in the paper, and other than in gauge-gmn, weights and biases enter as they are, and edges are multiplied, never
added to: a zero weight stays zero, and edges shrink from layer to layer (about fivefold at the published width).

>>> from weightedit.delta import propose_delta
>>> from weightedit.metanet.registry import make_metanet
>>> from weightedit.network.spec import NetworkSpec
>>> spec = NetworkSpec.siren((2, 8, 8, 1))
>>> params = {name: torch.randn(shape) for name, shape in spec.param_shapes().items()}
>>> metanet = make_metanet("scalegmn-b", [spec], **{**PUBLISHED["mnist-editing", "scalegmn-b"], "width": 8})
>>> propose_delta(metanet, spec, params)["layers.1.weight"].shape
torch.Size([8, 8])
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from weightedit.graph.canonicalization import scale_gauge
from weightedit.graph.neural_graph import Layout, NeuralGraph, NodeConstants
from weightedit.metanet.base import Metanetwork, check_chains, check_ends, declared, frame_of, types_of
from weightedit.metanet.levels import LayerTable, root_of_mean
from weightedit.metanet.scalegmn.config import PUBLISHED as PUBLISHED
from weightedit.metanet.scalegmn.config import ScaleGMNConfig
from weightedit.metanet.scalegmn.layers import Factors, PaperLayer, ScaleEq, State, inverse_norm, matrix
from weightedit.network.features import DELTA


@dataclass(frozen=True)
class _Passed:
    """What the layers leave to an ending."""

    state: State
    constants: NodeConstants
    factors: Factors
    side: Tensor | None  # [..., n, 1], the sign that leads what goes out of a node back out of the canonical phase


class ScaleGMN(Metanetwork):
    """Neural graphs of chains -> deltas, or vectors; equivariant to permutations, signs, positive scales and phases.

    Args:
        config: see ScaleGMNConfig.
    """

    def __init__(self, config: ScaleGMNConfig) -> None:
        super().__init__()
        self.config, self.embedding, self.declared = config, config.embedding, declared(config.symmetry)
        self.types_in = types_of(config.extra_types, config.channels)
        self.types_out = () if config.embedding else (DELTA,) * config.channels
        self.frame = frame_of(config.kernel, config.channels)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(config.seed)
            self._build(config)

    def _build(self, config: ScaleGMNConfig) -> None:
        width, quantities = config.width, 1 + len(config.extra_types)
        odd = config.channels * (quantities - sum(not odd for _, odd in config.extra_types))
        even = config.channels * quantities - odd
        self.lift_nodes, self.lift_edges = matrix(odd, width), matrix(odd, width)
        self.lift_back = matrix(odd, width) if config.bidirectional else None
        self.node_codes = self.edge_codes = self.even_nodes = self.even_edges = None
        if config.node_codes:
            self.node_codes = LayerTable(config.levels, width, spread=math.sqrt(0.5))
            self.input_codes = nn.Parameter(torch.randn(config.inputs, width))
            self.output_codes = nn.Parameter(torch.randn(config.outputs, width))
        if config.edge_codes:
            self.edge_codes = LayerTable(config.levels, (1 + config.bidirectional) * width, spread=math.sqrt(0.5))
        if even:
            self.even_nodes, self.even_edges = matrix(even, width), matrix(even, (1 + config.bidirectional) * width)
        # Nothing reads what a reader's last layer would write on edges, nor what an editor's would write against them.
        updates = [(True, True)] * (config.layers - 1) + [(not config.embedding, False)]
        self.layers = nn.ModuleList(
            PaperLayer(
                width,
                config.layer_norm,
                config.layer_codes,
                config.signs,
                skip=config.skip,
                updates=which,
                bidirectional=config.bidirectional,
            )
            for which in updates
        )
        self.dropout = nn.Dropout(config.dropout)
        if config.embedding:
            self._build_readout(config)
        else:
            self.read_nodes, self.read_edges = matrix(width, 1), matrix(width, config.channels)
            self.scales = LayerTable(config.levels, 2, mean=config.initial_scale)

    def _build_readout(self, config: ScaleGMNConfig) -> None:
        width, known = config.width, config.outputs
        self.of_hidden = None
        if config.readout == "full":
            known += 1 + config.inputs
            self.of_hidden = ScaleEq(width, width, config.layer_norm, codes=False)
            del self.of_hidden.keep  # invariants alone are read
        norm = nn.LayerNorm(width) if config.layer_norm else nn.Identity()
        self.readout = nn.Sequential(
            nn.Linear(known * width, width), norm, nn.SiLU(), nn.Linear(width, config.embedding)
        )

    def transform(self, graph: NeuralGraph) -> NeuralGraph:
        """Raises SpecError if a network is no chain or has other numbers of inputs or outputs than the config."""
        passed, layout = self._through(graph), graph.layout
        scale = self.scales(passed.constants)
        weights = self.read_edges(passed.state.edges) * layout.to_target(scale[:, :1])
        weights = weights if passed.side is None else weights * layout.to_source(passed.side)
        biases = functional.pad(self.read_nodes(passed.state.nodes) * scale[:, 1:], (0, self.config.channels - 1))
        return graph.with_features(biases, weights, self.types_out)

    def read(self, graph: NeuralGraph) -> Tensor:
        """Raises SpecError as `transform` does."""
        passed, layout = self._through(graph), graph.layout
        nodes, constants = passed.state.nodes, passed.constants
        inputs, outputs = layout.ends(nodes)
        seen = [outputs.flatten(-2)]
        if self.of_hidden is not None:
            inner = ((constants.level > 0) & (constants.height > 0)).unsqueeze(-1).to(nodes)
            found = self.of_hidden.invariant(nodes, passed.factors, None)
            seen = [layout.network_sum(found * inner), inputs.flatten(-2), *seen]
        return self.readout(torch.cat(seen, -1))

    def _through(self, graph: NeuralGraph) -> _Passed:
        check_chains(graph, type(self).__name__)
        check_ends(graph, self.config.inputs, self.config.outputs)
        layout, constants = graph.layout, graph.layout.constants(self.config.symmetry, graph.edges)
        factors = self._factors(layout, constants)
        side = None
        if self._any(layout, "shift"):
            graph, side = canonical_phases(graph, constants.shift)
        codes = None if self.node_codes is None else self._node_codes(constants)
        state = self._start(graph, constants, factors, codes)
        shown = codes if self.config.layer_codes else None
        for number, layer in enumerate(self.layers):
            if number:
                back = None if state.back is None else self.dropout(state.back)
                state = State(self.dropout(state.nodes), self.dropout(state.edges), back)
            state = layer(layout, state, factors, shown)
        return _Passed(state, constants, factors, side)

    def _any(self, layout: Layout, factor: str) -> bool:
        """Whether any neuron has the factor "scale", "flip" or "shift"."""
        groups = (group for spec in layout.specs for group in spec.neuron_groups(self.config.symmetry))
        return any(getattr(group, factor) for group in groups)

    def _factors(self, layout: Layout, constants: NodeConstants) -> Factors:
        scale = constants.scale if self._any(layout, "scale") else None
        flip = constants.flip if self._any(layout, "flip") else None
        return Factors(scale, flip, self.config.signs == "canonicalization")

    def _start(self, graph: NeuralGraph, constants: NodeConstants, factors: Factors, codes: Tensor | None) -> State:
        layout, width = graph.layout, self.config.width
        nodes, edges, back, even = self._quantities(graph, constants, factors)
        h, e = self.lift_nodes(nodes), self.lift_edges(edges)
        b = None if self.lift_back is None else self.lift_back(back)
        ends = ((constants.level == 0) | (constants.height == 0)).unsqueeze(-1)
        of_nodes, of_edges = codes, None
        if even is not None and self.even_nodes is not None and self.even_edges is not None:
            more = self.even_nodes(even[0])
            of_nodes = torch.where(ends, 0.0, 1.0) + more if codes is None else codes + more
            of_edges = 1 + self.even_edges(even[1])
        if of_nodes is not None:
            h = torch.where(ends, h + of_nodes, h * of_nodes)
        if self.edge_codes is not None:
            coded = layout.to_target(self.edge_codes(constants))
            of_edges = coded if of_edges is None else of_edges * coded
        if of_edges is not None:
            e, b = e * of_edges[..., :width], None if b is None else b * of_edges[..., width:]
        return State(h, e, b)

    def _quantities(
        self, graph: NeuralGraph, constants: NodeConstants, factors: Factors
    ) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor] | None]:
        """Odd quantities at nodes, along edges and against them, and (nodes, edges) of those without a sign."""
        layout, channels = graph.layout, self.config.channels
        nodes, edges = graph.nodes[..., :channels], graph.edges[..., :channels]
        back = self._against(layout, edges, factors)
        if not self.config.extra_types:
            return nodes, edges, back, None
        gauge = scale_gauge(graph, constants)
        ratio = layout.to_target(gauge) / layout.to_source(gauge)
        found = [[nodes], [edges], [back], [], []]
        for number, (power, odd) in enumerate(self.config.extra_types, start=1):
            part = slice(number * channels, (number + 1) * channels)
            values = graph.nodes[..., part] / gauge**power, graph.edges[..., part] / ratio**power
            at_nodes, on_edges = values
            if power or odd:
                at_nodes = at_nodes / root_of_mean(layout.layer_mean_nodes(at_nodes.square()))
                on_edges = on_edges / root_of_mean(layout.layer_mean_edges(on_edges.square()))
            if odd:
                new = [at_nodes * gauge, on_edges * ratio, on_edges / ratio]
                found[:3] = [[*old, more] for old, more in zip(found, new, strict=False)]
            else:
                found[3:] = [[*found[3], at_nodes], [*found[4], on_edges]]
        joined = [torch.cat(parts, -1) for parts in found if parts]
        return joined[0], joined[1], joined[2], (joined[3], joined[4]) if found[3] else None

    def _against(self, layout: Layout, edges: Tensor, factors: Factors) -> Tensor:
        """w / |w|^2 where a positive factor acts on either end of an edge, w elsewhere."""
        if factors.scale is None or not self.config.bidirectional:
            return edges
        acts = torch.maximum(layout.to_target(factors.scale), layout.to_source(factors.scale))
        # Over the largest position first: the square of a small weight would underflow.
        size = edges.abs().amax(-1, keepdim=True)
        inverse = torch.where(size > 0, 1 / torch.where(size > 0, size, 1.0), 0.0)
        unit = edges * inverse
        dual = unit * inverse_norm(unit.square().sum(-1, keepdim=True), acts).square() * inverse
        return torch.where(acts > 0, dual, edges)

    def _node_codes(self, constants: NodeConstants) -> Tensor:
        """[n, width]: of the hidden layer, or of the input or output neuron."""
        assert self.node_codes is not None
        of_inputs = self.input_codes[constants.position.clamp(max=self.config.inputs - 1)]
        of_outputs = self.output_codes[constants.position.clamp(max=self.config.outputs - 1)]
        is_input, is_output = (constants.level == 0).unsqueeze(-1), (constants.height == 0).unsqueeze(-1)
        return torch.where(is_input, of_inputs, torch.where(is_output, of_outputs, self.node_codes(constants)))


def canonical_phases(graph: NeuralGraph, shift: Tensor) -> tuple[NeuralGraph, Tensor]:
    """Biases of sine neurons in [-pi / (2 omega), pi / (2 omega)], and the signs [..., n, 1] it gave their outputs.

    A half period pi / omega in the bias negates the neuron's output, so its outgoing weights are negated, and with them
    all quantities with a sign. A flip of the neuron flips the result, but for ties.

    Args:
        graph: the first channel of its nodes holds the biases.
        shift: [n, 1], 1.0 at the neurons that have phases.
    """
    layout, levels, counts = graph.layout, [], []
    for level in range(layout.levels):
        bias = layout.at_level(level, graph.nodes[..., :1])
        moved, count = bias, torch.zeros_like(bias)
        for activation, chosen in layout.activations_at(level) if level else ():
            if activation.name != "sine":
                continue
            half_period, mask = math.pi / activation.parameter, layout.at_level(level, shift)
            if chosen is not None:
                mask = mask * torch.zeros_like(mask).index_fill(-2, chosen, 1.0)
            turns = mask * (bias.detach() / half_period).round()
            moved, count = moved - turns * half_period, count + turns
        levels.append(moved)
        counts.append(count)
    side = 1 - 2 * torch.remainder(layout.join_levels(counts), 2)
    nodes = torch.cat([layout.join_levels(levels), graph.nodes[..., 1:]], -1)
    signs = layout.to_source(side)
    edges = (
        graph.edges * signs
        if all(kind.odd for kind in graph.types)
        else torch.cat(
            [
                part * signs if kind.odd else part
                for part, kind in zip(graph.edges.split(1, -1), graph.types, strict=True)
            ],
            -1,
        )
    )
    return replace(graph, nodes=nodes, edges=edges), side
