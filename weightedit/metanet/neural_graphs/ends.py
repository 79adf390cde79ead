"""What goes into Neural Graphs and what is read off them; the layers between are in layers.py.

In (Kofinas et al. 2024): nodes carry biases, a learned code (one per input and output neuron, one per hidden level), an
embedding of their activation function, and what learned probes read at them; pairs carry weights, in one place along
the edge and in another against it, and an embedding of the link's kind where networks are no chains. The paper
standardizes parameters by statistics of the data set; here every layer of every network is divided by its own root mean
square, whose logarithm goes to the nodes, so that nothing is lost and no statistics have to be kept. Probed activations
are normalized likewise, level by level. With `fourier`, biases and weights enter as random Fourier features of these
normalized values, as the paper lifts them.

Out: deltas, an MLP on the pairs along edges and one on nodes, times a learned small scale per layer, in units of the
layer's weights. Biases are read off the nodes they belong to: the published NG-GNN slices node features from the
inputs on, so that its bias deltas stand at wrong neurons. Or a vector per network, of pooled nodes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from weightedit.graph.neural_graph import Layout, NeuralGraph, NodeConstants
from weightedit.graph.probing import probe
from weightedit.metanet.base import check_ends, check_links, link_numbers
from weightedit.metanet.levels import LayerTable
from weightedit.metanet.neural_graphs.config import NeuralGraphsConfig
from weightedit.metanet.neural_graphs.layers import Pairs, two_layers, unit_linear
from weightedit.network.layer import ACTIVATION_NAMES


@dataclass(frozen=True)
class Lifted:
    """A graph as the layers take it.

    Attributes:
        nodes: [..., n, node_width].
        pairs: [..., e or n, edge_width].
        constants: of the nodes.
        edge_size: [..., e, 1], root mean square of the layer's weights.
        node_size: [..., n, 1], the same at the layer's targets; 1 at the inputs.
    """

    nodes: Tensor
    pairs: Pairs
    constants: NodeConstants
    edge_size: Tensor
    node_size: Tensor


class FourierFeatures(nn.Module):
    """Values [..., C] -> sqrt(2) cos and sin of 2 pi B values, [..., 2 K], with random, fixed frequencies B [K, C].

    Tancik et al. 2020, "Fourier Features Let Networks Learn High Frequency Functions in Low Dimensional Domains".
    """

    def __init__(self, entries: int, count: int, scale: float) -> None:
        super().__init__()
        self.register_buffer("frequencies", scale * torch.randn(count, entries))

    def forward(self, values: Tensor) -> Tensor:
        """The root of 2 keeps the mean square at 1; never in bf16, phases need more."""
        with torch.autocast(values.device.type, enabled=False):
            phases = 2 * math.pi * functional.linear(values, self.get_buffer("frequencies"))
        return math.sqrt(2) * torch.cat([phases.cos(), phases.sin()], -1)


class InputStage(nn.Module):
    """A neural graph -> node and pair features of unit size.

    Args:
        config: see NeuralGraphsConfig.
        reverse: whether there are pairs against the edges.
        loops: whether every node is a pair with itself.
    """

    def __init__(self, config: NeuralGraphsConfig, *, reverse: bool, loops: bool) -> None:
        super().__init__()
        self.config, self.reverse, self.loops = config, reverse, loops
        quantities, node = 1 + len(config.extra_types), config.node_width
        entries = config.channels * quantities
        if config.probes:
            engine = torch.quasirandom.SobolEngine(config.inputs, scramble=True, seed=config.seed)
            self.probes = nn.Parameter(2 * engine.draw(config.probes) - 1)
        else:
            self.register_parameter("probes", None)
        probed = config.probes + 1 if config.probes else 0
        self.waves_of_nodes = self.waves_of_pairs = None
        if config.fourier:
            self.waves_of_nodes, self.waves_of_pairs = (
                FourierFeatures(entries, config.fourier, config.fourier_scale) for _ in range(2)
            )
            entries = 2 * config.fourier
        self.lift_nodes = unit_linear(entries + 2 * quantities + probed, node)
        self.lift_forward = unit_linear(entries, config.edge_width)
        self.lift_backward = nn.Linear(entries, config.edge_width, bias=False) if reverse else None
        self.codes = LayerTable(config.levels, node, spread=0.5)
        self.input_codes = nn.Parameter(torch.randn(max(1, config.inputs), node))
        self.output_codes = nn.Parameter(torch.randn(max(1, config.outputs), node))
        self.activations = nn.Embedding(1 + len(ACTIVATION_NAMES), node)
        # Small: what all neurons share would drown what tells them apart, and with it the first steps of training.
        nn.init.normal_(self.activations.weight, std=0.1)
        self.links = nn.Embedding(config.link_kinds, config.edge_width) if config.link_kinds > 1 else None
        if self.links is not None:
            nn.init.normal_(self.links.weight, std=0.5)

    def forward(self, graph: NeuralGraph) -> Lifted:
        """Raises SpecError if a network has other numbers of inputs or outputs, or other links, than the config."""
        self._check(graph)
        layout = graph.layout
        constants = layout.constants("permutation", graph.edges)
        edge_size = self._sizes(layout.layer_mean_edges(graph.edges.square()))
        bias_size = self._sizes(layout.layer_mean_nodes(graph.nodes.square()))
        mean = layout.sum_at_target(edge_size) / constants.in_degree.clamp(min=1)
        node_size = torch.where(constants.in_degree > 0, mean, 1.0)
        biases = graph.nodes / self._spread(bias_size)
        biases = biases if self.waves_of_nodes is None else self.waves_of_nodes(biases)
        seen = [biases, node_size.log(), bias_size.log(), *self._probed(graph)]
        nodes = self.lift_nodes(torch.cat(seen, -1)) + self._codes(constants)
        pairs = self._pairs(layout, graph.edges / self._spread(edge_size), nodes, constants)
        return Lifted(nodes, pairs, constants, edge_size[..., :1], node_size[..., :1])

    def _pairs(self, layout: Layout, edges: Tensor, nodes: Tensor, constants: NodeConstants) -> Pairs:
        """The published third input, forward + backward, is a linear map of these two: left out."""
        bias = self.lift_forward.bias
        # A pair of a neuron with itself has no weight: zeros are lifted.
        of_zeros = bias
        if self.waves_of_pairs is not None:
            of_zeros = self.lift_forward(self.waves_of_pairs(edges.new_zeros(edges.shape[-1])))
            edges = self.waves_of_pairs(edges)
        loops = of_zeros.to(nodes).expand(*nodes.shape[:-1], -1) if self.loops else None
        backward = None if self.lift_backward is None else self.lift_backward(edges) + bias
        forward = self.lift_forward(edges)
        if self.links is not None:
            kinds = self.links(link_numbers(layout, edges))
            forward, backward = forward + kinds, None if backward is None else backward + kinds
        degree = constants.in_degree + constants.out_degree if self.reverse else constants.in_degree
        return Pairs(layout, degree, forward, backward, loops)

    def _sizes(self, square: Tensor) -> Tensor:
        """Mean squares [..., C] -> root mean square per quantity, a kernel counted as a whole; 1 where zero."""
        square = square.unflatten(-1, (-1, self.config.channels)).sum(-1)
        return torch.where(square > 0, torch.where(square > 0, square, 1.0).sqrt(), 1.0)

    def _spread(self, sizes: Tensor) -> Tensor:
        """One size per quantity -> one per channel."""
        return sizes.repeat_interleave(self.config.channels, -1)

    def _probed(self, graph: NeuralGraph) -> list[Tensor]:
        if self.probes is None:
            return []
        values = probe(graph, self.probes).values
        square = graph.layout.layer_mean_nodes(values.square().mean(-1, keepdim=True))
        size = torch.where(square > 0, torch.where(square > 0, square, 1.0).sqrt(), 1.0)
        return [values / size, size.log()]

    def _codes(self, constants: NodeConstants) -> Tensor:
        """[n, node_width]: of the level, of the input or output neuron, and of the activation."""
        is_input, is_output = (constants.level == 0).unsqueeze(-1), (constants.height == 0).unsqueeze(-1)
        ends = is_input * self.input_codes[constants.position.clamp(max=len(self.input_codes) - 1)]
        ends = ends + is_output * self.output_codes[constants.position.clamp(max=len(self.output_codes) - 1)]
        return self.codes(constants) + ends + self.activations(constants.activation)

    def _check(self, graph: NeuralGraph) -> None:
        check_links(graph, self.config.link_kinds)
        check_ends(graph, self.config.inputs, self.config.outputs)


class Pooling(nn.Module):
    """Last features -> a vector per network, linear in the mean of all nodes and in every output node by itself."""

    def __init__(self, config: NeuralGraphsConfig) -> None:
        super().__init__()
        self.out = nn.Linear((1 + config.outputs) * config.node_width, config.embedding)

    def forward(self, lifted: Lifted, nodes: Tensor, pairs: Pairs) -> Tensor:
        """[..., embedding], [networks, embedding] on a ragged layout."""
        _, outputs = pairs.layout.ends(nodes)
        return self.out(torch.cat([pairs.layout.network_mean(nodes), outputs.flatten(-2)], -1))


class DeltaEnding(nn.Module):
    """Last features -> (weight deltas [..., e, channels], bias deltas [..., n, channels])."""

    def __init__(self, config: NeuralGraphsConfig) -> None:
        super().__init__()
        self.read_edges = two_layers(config.edge_width, config.edge_width, config.channels, nn.SiLU)
        self.read_nodes = two_layers(config.node_width, config.node_width, config.channels, nn.SiLU)
        self.scales = LayerTable(config.levels, 2, mean=config.initial_scale)

    def forward(self, lifted: Lifted, nodes: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """In units of the layer's weights times the layer's learned scale, which is kept at its target level."""
        scale = self.scales(lifted.constants)
        weights = self.read_edges(pairs.forward) * pairs.layout.to_target(scale[..., :1]) * lifted.edge_size
        return weights, self.read_nodes(nodes) * scale[..., 1:] * lifted.node_size
