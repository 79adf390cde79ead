"""The flat MLP: the control without equivariance, which a table needs to show that the symmetry earns its place.

It sees all parameters of one architecture as one vector, over the root mean square of each layer's weights. It knows no
permutation, reads no other widths, and is here to be beaten. The other control, statistics, is in statistics.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from weightedit.errors import SpecError
from weightedit.files.schema import Seed
from weightedit.graph.neural_graph import DenseLayout, NeuralGraph
from weightedit.metanet.base import Metanetwork, MetanetworkConfig, check_chains, check_dropout, types_of
from weightedit.metanet.levels import root_of_mean
from weightedit.metanet.statistics import hidden_layers
from weightedit.network.features import DELTA, INVARIANT


@dataclass(frozen=True)
class FlatMLPConfig(MetanetworkConfig):
    """Everything that defines a FlatMLP.

    Attributes:
        widths: of the networks it treats, all of one architecture, e.g. (2, 32, 32, 1).
        hidden: hidden width of the MLP.
        layers: hidden layers of the MLP.
        initial_scale: size of a delta relative to the weights of its layer, at the start.
        embedding: 0 to edit; else the width of the vector per network.
        channels: of each quantity: the kernel positions of networks with convolutions, else 1.
        extra_types: quantities after the parameters, as (scale, odd) pairs: ((-1, True),) for gradients.
        dropout: share of the hidden features that is dropped in training, in [0, 1).
        seed: of the initial weights.
    """

    later = {"embedding", "channels", "extra_types", "dropout"}
    widths: tuple[int, ...] = (2, 32, 32, 1)
    hidden: int = 512
    layers: int = 2
    initial_scale: float = 0.01
    embedding: int = 0
    channels: int = 1
    extra_types: tuple[tuple[int, bool], ...] = ()
    dropout: float = 0.0
    seed: Seed = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "extra_types", tuple((int(k), bool(odd)) for k, odd in self.extra_types))  # from JSON
        check_dropout(self.dropout)
        if len(self.widths) < 2 or min(*self.widths, self.hidden, self.layers, self.channels) < 1 or self.embedding < 0:
            raise SpecError(f"got {self}; expected positive sizes, and an embedding of at least 0.")


class FlatMLP(Metanetwork):
    """All parameters as one vector -> all deltas, or one vector, by an MLP; equivariant to nothing.

    Args:
        config: see FlatMLPConfig.
    """

    layer: Tensor

    def __init__(self, config: FlatMLPConfig) -> None:
        super().__init__()
        self.config, self.embedding = config, config.embedding
        self.types_in = types_of(config.extra_types, config.channels)
        self.types_out = () if config.embedding else (DELTA,) * config.channels
        edges = sum(a * b for a, b in zip(config.widths, config.widths[1:], strict=False))
        size = edges * config.channels + sum(config.widths[1:])
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(config.seed)
            sizes = [(1 + len(config.extra_types)) * size, *[config.hidden] * config.layers]
            self.body = nn.Sequential(
                *hidden_layers(sizes, config.dropout), nn.Linear(sizes[-1], config.embedding or size)
            )
        if not config.embedding:
            self.scale = nn.Parameter(torch.full((len(config.widths) - 1,), config.initial_scale))
            pairs = list(zip(config.widths, config.widths[1:], strict=False))
            counts = torch.tensor([a * b * config.channels for a, b in pairs] + [b for _, b in pairs])
            layers = torch.arange(len(pairs)).repeat(2).repeat_interleave(counts)
            self.register_buffer("layer", layers, persistent=False)  # of every parameter, weights first

    def transform(self, graph: NeuralGraph) -> NeuralGraph:
        """Raises SpecError for a ragged graph or networks of other widths than the config's."""
        flat, unit = self._flat(graph)
        delta = self.body(flat) * unit * self.scale[self.layer]
        channels, inputs = self.config.channels, self.config.widths[0]
        count = graph.edges.shape[-2] * channels
        edges, biases = delta.split([count, delta.shape[-1] - count], -1)
        nodes = functional.pad(biases.unsqueeze(-1), (0, channels - 1, inputs, 0))
        return graph.with_features(nodes, edges.unflatten(-1, (-1, channels)), self.types_out)

    def read(self, graph: NeuralGraph) -> Tensor:
        """Raises SpecError as `transform` does."""
        return self.body(self._flat(graph)[0])

    def _flat(self, graph: NeuralGraph) -> tuple[Tensor, Tensor]:
        """Weights, then biases, over their units, by quantity; and the units of the parameters: [..., size]."""
        check_chains(graph, type(self).__name__)
        layout, inputs = graph.layout, self.config.widths[0]
        if not isinstance(layout, DenseLayout) or layout.spec.widths != self.config.widths:
            widths = [spec.widths for spec in layout.specs]
            raise SpecError(
                f"got networks of widths {widths}; expected {self.config.widths}: a flat MLP reads no others."
            )
        found, units = [], []
        for number in range(1 + len(self.config.extra_types)):
            first = number * self.config.channels
            edges = graph.edges[..., first : first + self.config.channels]
            biases = graph.nodes[..., inputs:, first]
            sizes = root_of_mean(layout.layer_mean_edges(edges.square().mean(-1, keepdim=True)))
            if graph.types[first] == INVARIANT:
                sizes = torch.ones_like(sizes)
            at_nodes = layout.sum_at_target(sizes) / layout.sum_at_target(torch.ones_like(sizes)).clamp(min=1)
            units.append(torch.cat([sizes.expand_as(edges).flatten(-2), at_nodes[..., inputs:, 0]], -1))
            found.append(torch.cat([edges.flatten(-2), biases], -1) / units[-1])
        return torch.cat(found, -1), units[0]
