"""GaugeGMN: a message-passing metanetwork that is equivariant to permutations, signs, phases and positive scales.

The entries `gauge-gmn` and `gauge-gmn-b`: our own design after ScaleGMN, no reproduction of it; that paper's network is
in metanet/scalegmn/ (`scalegmn`, `scalegmn-b`). It is named for the gauge, a scale per neuron that is divided out.

After Kalogeropoulos, Chatzianastasis, Panagakis, "Scale Equivariant Graph MetaNetworks" (2024). How a group is
respected is in layers.py; here are the input stage (gauge, normalization, probes, node codes), the stack of layers, and
the way back out of the gauge. With an embedding it ends in an invariant vector per network instead. What differs from
the paper (G: a learned matrix without bias, inv: an invariant network, *: by channel), there -> here, and why:

    scales       h / |h| inside every inv -> a gauge divided out once: exact for any scale, bounded in every layer
    signs        |h| by channel, or f(h) + f(-h), in inv -> products h_a h_b: relative signs of channels are kept
    ScaleEq      G h * inv(h) -> h + inv * u / |u| with u = G [h, m]: a residual, so that depth keeps the signal
    messages     ScaleEq of ReScaleEq = G h_j * G' e_ij, summed -> e_ij * G h_j over the root of their number, and
                 means of invariants: no network of its own for messages, which would run on every edge
    edges        G e * inv(h_i, h_j) -> e * (1 + B v) + x_i * y_j * C v, v invariant of e x_i y_j, h_i and h_j: a skip,
                 and a term that moves a zero weight
    ScaleGMN-B   backward edges of 1 / w, which overflow (the published network has an option `reciprocal` that it
                 never uses: it sends w h_i, not equivariant to positive scales) -> w k_i with k_i = x_i / n_i
    sine         signs only -> half-period shifts too, hence a stream for each side of a neuron, and slopes as a bridge
    inputs       w and b as they are -> over their layer's root mean square, its logarithm beside: any size is read
    codes        h * p_V, e * p_E (h + p_V at both ends), one p per layer -> added to the invariant stream, none on
                 edges, counted from both ends: any depth is read
    probes       none -> activations and slopes at learned inputs or on a grid, and a forecast, are further features;
                 an embedding may read the outputs there besides (shown.py)
    deltas       last e and h of width 1 -> heads.py, of terms that are zero for no weight
    vector       an MLP of the sum over hidden neurons, and both ends -> linear in their mean: any width is read

ScaleEq, ReScaleEq and the edge update are cases of the layers here, with weights zero that are ours alone, which
tests/metanet/test_gauge_gmn_blocks.py holds against loops; the whole is tested against a twin of our equations only.

In a chain with convolutions an edge is a whole kernel: its positions are channels of one type, and so are those of its
delta. Any function of them that is one of the layers' here keeps the symmetry, since a channel's factor acts on all
positions alike; the gauge sums their squares. Probes, which are inputs of networks without convolutions, and what is
made of them (forecast, refit) are left out there.

In a network that is no chain (GraphSpec) the gauge is one number for all neurons that residual additions tie together,
and the gain of a normalization scales with its target alone (linked_gauge.py); invariants of an edge tell its kind, and
edges of a fixed number, which tie their ends, take part as others do but get no delta. Without probes, too.

>>> from weightedit.delta import propose_delta
>>> from weightedit.metanet.registry import make_metanet
>>> from weightedit.network.spec import NetworkSpec
>>> spec = NetworkSpec.cnn((1, 4, 3, 2), "relu")
>>> params = {name: torch.randn(shape) for name, shape in spec.param_shapes().items()}
>>> propose_delta(make_metanet("gauge-gmn-b", [spec], layers=1), spec, params)["layers.1.weight"].shape
torch.Size([3, 4, 3, 3])

What it is made by is config.py's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from weightedit.graph.canonicalization import anchored_gauge
from weightedit.graph.neural_graph import Layout, NeuralGraph, NodeConstants
from weightedit.graph.probing import backpropagate, bias_reading, probe
from weightedit.metanet.base import (
    Metanetwork,
    check_ends,
    check_links,
    declared,
    frame_of,
    link_numbers,
)
from weightedit.metanet.gauge_gmn.config import GaugeGMNConfig
from weightedit.metanet.gauge_gmn.forecast import Forecast, GridForecast
from weightedit.metanet.gauge_gmn.heads import DeltaHead, HeadSizes, InvariantReadout, LastLayerRefit, Readings
from weightedit.metanet.gauge_gmn.layers import (
    EdgeUpdate,
    NodeUpdate,
    Streams,
    UnevenPair,
    bridges,
    unit_rms,
)
from weightedit.metanet.gauge_gmn.shown import GridShown, Shown
from weightedit.metanet.levels import LayerTable, root_of_mean
from weightedit.network.features import DELTA, PARAMETER, ChannelType


@dataclass(frozen=True)
class _Passed:
    """What the layers leave to an ending: the last streams, and what leads back out of the gauge."""

    state: Streams
    normalized: Tensor  # [..., e, C], the odd channels in the gauge over `size`, the parameters first
    readings: Readings
    gauge: Tensor  # [..., n, 1]
    back: Tensor  # [..., n, 1], the gauge; 0 where a node is not anchored: its weights stay as they are
    ratio: Tensor  # [..., e, 1], gauge of target over source; 0 likewise; [1] where nothing has a scale factor
    size: Tensor  # [..., e, C], root mean squares of the layer's odd channels in the gauge
    at_nodes: Tensor  # [..., n, C], those of the layer that enters a node


class GaugeGMN(Metanetwork):
    """Neural graphs of parameters (and extra typed channels) -> neural graphs of deltas, or vectors.

    A delta has one channel, or as many as a kernel has positions; that of a bias stands in the first.

    Args:
        config: see GaugeGMNConfig.
    """

    odd: Tensor
    even: Tensor
    powers: Tensor
    probes: Tensor | None

    def __init__(self, config: GaugeGMNConfig) -> None:
        super().__init__()
        self.config, self.embedding = config, config.embedding
        self.declared = declared(config.symmetry) if not config.neuron_codes else ()
        kinds = PARAMETER, *(ChannelType(scale, odd) for scale, odd in config.extra_types)
        self.types_in = tuple(kind for kind in kinds for _ in range(config.channels))
        self.types_out = (DELTA,) * config.channels
        self.frame = frame_of(config.kernel, config.channels)
        # On the device from the start: an index made from a list in every forward would be copied there each time.
        odd = torch.tensor([kind.odd for kind in self.types_in])
        self.register_buffer("odd", odd.nonzero().squeeze(1), persistent=False)
        self.register_buffer("even", (~odd).nonzero().squeeze(1), persistent=False)
        self.register_buffer("powers", torch.tensor([kind.scale for kind in self.types_in]), persistent=False)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(config.seed)
            self._build(config)

    def _build(self, config: GaugeGMNConfig) -> None:
        node, edge, read = config.node_width, config.edge_width, config.probes + 1
        odd, even = len(self.odd), len(self.even)
        kinds = config.link_kinds if config.link_kinds > 1 else 0
        if config.grid:
            axis = torch.linspace(-1, 1, math.isqrt(config.probes))
            self.register_buffer("probes", torch.cartesian_prod(axis, axis).flip(-1), persistent=False)
        elif config.probes:
            engine = torch.quasirandom.SobolEngine(config.inputs, scramble=True, seed=config.seed)
            self.probes = nn.Parameter(2 * engine.draw(config.probes) - 1)
        else:
            self.register_parameter("probes", None)
        self.codes = LayerTable(config.levels, node, spread=0.5)
        self.input_codes = nn.Parameter(torch.randn(max(1, config.inputs), node))
        self.output_codes = nn.Parameter(torch.randn(max(1, config.outputs), node))
        if config.neuron_codes:
            self.neuron_codes = nn.Embedding(config.neuron_codes * config.levels, node)
        self.forecast = Forecast(read, config.forecast) if config.forecast and not config.grid else None
        if config.grid and config.forecast:
            self.forecast = GridForecast(config.outputs, math.isqrt(config.probes), config.forecast, config.dilations)
        seen = 2 * read if config.forecast else read
        self.lift_edges = nn.Linear(odd, edge, bias=False)
        self.lift_slopes = nn.Linear(read, node, bias=False)
        self.lift = UnevenPair((seen + odd, seen), (node, node), "lift")
        self.lift_invariant = nn.Linear(odd + 1 + even, node)
        kept = config.relative_signs
        switches = (config.rank_one, config.edge_skip, kept, config.bidirectional)
        self.encode = NodeUpdate(node, node, 0, 0, kept)
        self.edge_updates = nn.ModuleList(
            EdgeUpdate(node, edge, kinds + (0 if i else even), *switches) for i in range(config.layers)
        )
        self.node_updates = nn.ModuleList(
            NodeUpdate(node, node, edge, config.bidirectional * edge, kept) for _ in range(config.layers)
        )
        self.dropout = nn.Dropout(config.dropout)
        self.refit = LastLayerRefit() if config.refit else None
        if config.embedding:
            self.readout = InvariantReadout(node, config.inputs + config.outputs, config.embedding, kept)
            self.shown = self._shown(config) if config.shown else None
            return
        sizes = HeadSizes(node, edge, read, config.levels, config.channels)
        self.head = DeltaHead(sizes, config.initial_scale, config.rank_one, config.solved)

    @staticmethod
    def _shown(config: GaugeGMNConfig) -> Shown | GridShown:
        if config.grid:
            return GridShown(config.outputs, math.isqrt(config.probes), config.shown, config.embedding)
        return Shown(config.outputs, config.probes, config.shown, config.embedding)

    def transform(self, graph: NeuralGraph) -> NeuralGraph:
        """Raises SpecError if a network has other numbers of inputs or outputs than the config."""
        passed = self._through(graph)
        raw, size = self._whole_kernels(graph.layout, passed)
        weights, biases = self.head(passed.state, raw, passed.readings)
        if self.config.channels == 1:
            biases = biases * passed.back * passed.at_nodes[..., :1]
        else:
            biases = biases * passed.back * self._at_nodes(graph.layout, size, passed.state.constants)
            biases = functional.pad(biases, (0, self.config.channels - 1))
        delta = graph.with_features(biases, weights * passed.ratio * size, self.types_out)
        if self.refit is None or self.probes is None:
            return delta
        return self.refit(graph, delta, self.probes, passed.readings.wished[..., 1:], passed.gauge)

    def read(self, graph: NeuralGraph) -> Tensor:
        """Raises SpecError if a network has other numbers of inputs or outputs than the config."""
        passed = self._through(graph)
        found = self.readout(passed.state)
        if self.shown is None:
            return found
        return found + self.shown(graph.layout.ends(passed.readings.activations[..., 1:])[1])

    def _through(self, graph: NeuralGraph) -> _Passed:
        check_links(graph, self.config.link_kinds)
        check_ends(graph, self.config.inputs, self.config.outputs)
        layout = graph.layout
        constants = layout.constants(self.config.symmetry, graph.edges)
        gauge, anchored = anchored_gauge(graph, constants)
        ratio = both = gauge.new_ones(1)
        if constants.scaled:
            ratio = layout.to_target(gauge) / layout.gauge_at_source(gauge)
            both = layout.to_target(anchored) * layout.gauge_at_source(anchored)
        edges, nodes = graph.edges / ratio**self.powers * both, graph.nodes / gauge**self.powers * anchored
        odd, even = self._parities(edges)
        size = root_of_mean(layout.layer_mean_edges(odd.square()))
        at_nodes = self._at_nodes(layout, size, constants)
        state, slopes, readings = self._streams(graph, nodes, odd / size, at_nodes, constants, gauge)
        first, *rest = bridges([self.encode, *self.node_updates], slopes, constants.unshifted)
        state = self.encode(state, unit_rms(state.odd), first)
        normalized = state.edges
        state = replace(state, edges=self.lift_edges(state.edges))
        if not torch.is_grad_enabled() and len(self.odd) > self.config.channels:
            # Of these only the parameters are read again, and further quantities need not be held until then. No
            # even channels are a view of all that there are.
            kept = (x[..., : self.config.channels].clone() for x in (normalized, size, at_nodes))
            normalized, size, at_nodes = kept
            even = even.clone()
            del edges, odd
        told = self._told(layout, even)
        layers = zip(told, self.edge_updates, self.node_updates, rest, strict=True)
        for even, edge_update, node_update, bridge in layers:
            units = unit_rms(state.odd)
            state, odd_messages, even_messages = edge_update(state, units, even)
            state = self._dropped(node_update(state, units, bridge, odd_messages, even_messages))
        return _Passed(state, normalized, readings, gauge, gauge * anchored, ratio * both, size, at_nodes)

    def _told(self, layout: Layout, even: Tensor) -> list[Tensor | None]:
        """Per layer, what has no sign of edges: their even channels at first, and always of which kind they are."""
        if self.config.link_kinds == 1:
            return [even, *[None] * (self.config.layers - 1)]
        kinds = functional.one_hot(link_numbers(layout, even), self.config.link_kinds).to(even)
        kinds = kinds.expand(*even.shape[:-1], -1)
        return [torch.cat([even, kinds], -1), *[kinds] * (self.config.layers - 1)]

    def _dropped(self, state: Streams) -> Streams:
        """Channels dropped in training: a factor of a neuron multiplies what is left."""
        if not self.training or not self.dropout.p:
            return state
        return replace(state, odd=self.dropout(state.odd), invariant=self.dropout(state.invariant))

    def _whole_kernels(self, layout: Layout, passed: _Passed) -> tuple[Tensor, Tensor]:
        """The weights over the root mean square of their layer, [..., e, K], and that, [..., e, 1].

        The streams take every position of a kernel over a root mean square of its own, 1 for one that is all zero or
        padding. Deltas are in units of the layer's, so that a position that is zero can be moved by as much.
        """
        k = self.config.channels
        edges, sizes = passed.normalized[..., :k], passed.size[..., :k]
        if k == 1:
            return edges, sizes
        square = layout.layer_mean_edges((edges * sizes).square().sum(-1, keepdim=True))
        # Edges of a fixed number have no position of their own, and no delta.
        size = root_of_mean(square / layout.kernel_positions(edges).sum(-1, keepdim=True).clamp(min=1))
        return edges * sizes / size, size

    def _streams(
        self,
        graph: NeuralGraph,
        nodes: Tensor,
        edges: Tensor,
        at_nodes: Tensor,
        constants: NodeConstants,
        gauge: Tensor,
    ) -> tuple[Streams, Tensor, Readings]:
        """The input stage: everything invariant to scale, normalized, with its sign type; and the readings.

        Between streams and readings the slopes, [..., n, node_width], for the bridges of all layers.
        """
        layout, reading = graph.layout, bias_reading(graph)
        values, slopes = reading.values, reading.slopes
        if self.probes is not None:
            probed = probe(graph, self.probes)
            values, slopes = torch.cat([values, probed.values], -1), torch.cat([slopes, probed.slopes], -1)
        values = values / gauge
        seen_in, seen_out, forecast, wished = [values * slopes], [values], torch.zeros_like(values), values
        if self.forecast is not None:
            change = self.forecast(values, constants)
            forecast, below = backpropagate(graph.with_features(nodes, edges, graph.types), slopes, change)
            wished = values + change
            seen_in.append(forecast)
            seen_out.append(below)
        odd, even = self._parities(nodes)
        # The raw bias of a sine neuron is no linear representation of the shift; its reading is.
        odd = odd * functional.pad(constants.unshifted, (0, odd.shape[-1] - 1), value=1.0)
        bias_size = root_of_mean(layout.layer_mean_nodes(odd.square()))
        invariants = [at_nodes.log(), bias_size[..., :1].log(), even]
        lifted = torch.cat([*seen_in, odd / bias_size], -1), torch.cat(seen_out, -1)
        state = Streams(
            layout=layout,
            constants=constants,
            odd=self.lift(lifted, constants.free),
            invariant=self.lift_invariant(torch.cat(invariants, -1)) + self._node_codes(constants),
            edges=edges,
        )
        return state, self.lift_slopes(slopes), Readings(values, slopes, forecast, wished)

    def _parities(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Odd and even channels."""
        if not len(self.even):
            return features, features[..., :0]
        return features.index_select(-1, self.odd), features.index_select(-1, self.even)

    def _node_codes(self, constants: NodeConstants) -> Tensor:
        """[n, node_width]: one code per level, and one per input and output neuron."""
        is_input, is_output = (constants.level == 0).unsqueeze(-1), (constants.height == 0).unsqueeze(-1)
        position_in = constants.position.clamp(max=len(self.input_codes) - 1)
        position_out = constants.position.clamp(max=len(self.output_codes) - 1)
        ends = is_input * self.input_codes[position_in] + is_output * self.output_codes[position_out]
        if self.config.neuron_codes:
            place = constants.level.clamp(max=self.config.levels - 1) * self.config.neuron_codes
            place = place + constants.position.clamp(max=self.config.neuron_codes - 1)
            ends = ends + self.neuron_codes(place)
        return self.codes(constants) + ends

    @staticmethod
    def _at_nodes(layout: Layout, size: Tensor, constants: NodeConstants) -> Tensor:
        """The size of the layer that enters a node, [..., n, C]; 1 at the inputs."""
        mean = layout.sum_at_target(size) / constants.in_count
        return mean.masked_fill(constants.in_degree <= 0, 1.0)
