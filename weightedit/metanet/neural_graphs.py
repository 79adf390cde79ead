"""NG-GNN and NG-T: the message-passing and the transformer metanetwork of Neural Graphs, equivariant to permutations.

After Kofinas et al. 2024, "Graph Neural Networks for Learning Equivariant Representations of Neural Networks"; layers
are in neural_graph_layers.py, inputs and read-outs in neural_graph_ends.py. Where the published code departs from the
paper, this follows the paper:

* NG-GNN's published bias deltas are read at wrong nodes (the slice starts at the inputs); here each is read at its own.
* NG-T's published attention runs over all pairs of neurons, its mask switched off; here it runs over the real pairs:
  both directions of every edge, and every neuron with itself. A pair without an edge carries nothing and is not made.
* Its logits are divided by the root of the whole attention width there, by that of one head's here, as in attention.
* PNA's typical degree there counts one direction of edges only; here it is an entry of the config.

What this library's graph, a chain of layers, cannot express: residual additions (edges that skip layers, with a weight
of 1 in the paper) and normalisation layers (nodes and edges of their own in the paper). Networks that have them are
refused when their spec is read (tracing.py), so no metanetwork sees one. The paper's random Fourier features of
parameters are not part of this.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from weightedit.errors import SpecError
from weightedit.features import DELTA, PARAMETER, ChannelType
from weightedit.graph import NeuralGraph
from weightedit.metanet.base import Metanetwork
from weightedit.metanet.neural_graph_ends import DeltaEnding, InputStage, Lifted, Pooling
from weightedit.metanet.neural_graph_layers import Pairs, PNALayer, RelationalLayer
from weightedit.spec import Symmetry

SCALERS = ("identity", "amplification", "attenuation")
Config = TypeVar("Config", bound="NeuralGraphsConfig")


@dataclass(frozen=True)
class NeuralGraphsConfig:
    """What the configs of NG-GNN and NG-T have in common.

    Attributes:
        inputs: input neurons of the networks it treats (their identity matters, so their number is fixed).
        outputs: output neurons of the networks it treats, likewise.
        node_width: channels of the nodes.
        edge_width: channels of the pairs.
        layers: message-passing or attention layers.
        probes: learned inputs at which activations are read, 0 for none; 4, 16 and 64 in the paper.
        levels: how many levels, from either end, have node codes and output scales of their own.
        initial_scale: size of a delta relative to the weights of its layer, at the start.
        embedding: 0 to edit; else the width of the vector that is read off every network.
        channels: of each quantity: the kernel positions of networks with convolutions (NetworkSpec.channels), else 1.
        extra_types: quantities after the parameters, as (scale, odd) pairs: ((-1, True),) for gradients.
        seed: of the initial weights.
    """

    inputs: int = 2
    outputs: int = 1
    node_width: int = 64
    edge_width: int = 32
    layers: int = 4
    probes: int = 0
    levels: int = 8
    initial_scale: float = 0.01
    embedding: int = 0
    channels: int = 1
    extra_types: tuple[tuple[int, bool], ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        sizes = (self.inputs, self.outputs, self.node_width, self.edge_width, self.layers, self.levels, self.channels)
        if min(sizes) < 1 or min(self.probes, self.embedding) < 0:
            raise SpecError(f"{self} came; expected positive sizes, and probes and embedding of at least 0.")
        if self.probes and self.channels > 1:
            raise SpecError(
                f"{self.probes} probes came with {self.channels} channels per quantity; expected probes=0: probes are "
                "for networks without convolutions."
            )

    def to_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls: type[Config], data: Mapping[str, object]) -> Config:
        """The config that `to_dict` wrote; raises SpecError on unknown or missing entries."""
        expected = {field.name for field in fields(cls)}
        if set(data) != expected:
            raise SpecError(f"entries {sorted(data)} came; expected {sorted(expected)}.")
        entries: dict[str, Any] = dict(data)
        entries["extra_types"] = tuple((int(k), bool(odd)) for k, odd in entries["extra_types"])
        if "scalers" in entries:
            entries["scalers"] = tuple(entries["scalers"])
        return cls(**entries)


@dataclass(frozen=True)
class NGGNNConfig(NeuralGraphsConfig):
    """Everything that defines an NGGNN; see NeuralGraphsConfig.

    Attributes:
        reverse_edges: also send messages from targets to sources.
        scalers: of the aggregates: "identity", "amplification", "attenuation"; the published ones by default.
        typical_degree: number of received messages at which all scalers are 1; a node's mean in the training set.
    """

    reverse_edges: bool = True
    scalers: tuple[str, ...] = ("identity", "amplification")
    typical_degree: float = 32.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.scalers or not set(self.scalers) <= set(SCALERS) or self.typical_degree <= 0:
            raise SpecError(
                f"scalers {self.scalers} with a typical degree of {self.typical_degree} came; expected some of "
                f"{', '.join(SCALERS)}, and a positive degree."
            )


@dataclass(frozen=True)
class NGTConfig(NeuralGraphsConfig):
    """Everything that defines an NGT; see NeuralGraphsConfig. Reverse edges are always there.

    Attributes:
        heads: of the attention, which is twice as wide as the nodes.
    """

    heads: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.heads < 1 or 2 * self.node_width % self.heads:
            raise SpecError(
                f"{self.heads} heads came for an attention of width {2 * self.node_width}; expected a number that "
                "divides it."
            )


class NeuralGraphs(Metanetwork):
    """What NG-GNN and NG-T share: input stage, a stack of layers, an ending. Abstract: use one of the two.

    Args:
        config: see NeuralGraphsConfig.
        layer: makes a layer; its argument says whether the layer updates pairs.
        reverse: whether there are reverse edges.
        loops: whether every neuron is a pair with itself.
    """

    declared: tuple[Symmetry, ...] = ("permutation",)

    def __init__(
        self, config: NeuralGraphsConfig, layer: Callable[[bool], nn.Module], *, reverse: bool, loops: bool
    ) -> None:
        super().__init__()
        self.config, self.embedding = config, config.embedding
        quantities = (PARAMETER, *(ChannelType(scale, odd) for scale, odd in config.extra_types))
        self.types_in = tuple(kind for kind in quantities for _ in range(config.channels))
        self.types_out = () if config.embedding else (DELTA,) * config.channels
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(config.seed)
            self.input = InputStage(config, reverse=reverse, loops=loops)
            # Nothing reads the pairs after the last layer of one that reads.
            updated = [True] * (config.layers - 1) + [not config.embedding]
            self.layers = nn.ModuleList(layer(update) for update in updated)
            self.ending = Pooling(config) if config.embedding else DeltaEnding(config)

    def transform(self, graph: NeuralGraph) -> NeuralGraph:
        """Raises SpecError if a network has other numbers of inputs or outputs than the config."""
        weights, biases = self.ending(*self._features(graph))
        return graph.with_features(biases, weights, self.types_out)

    def read(self, graph: NeuralGraph) -> Tensor:
        """Raises SpecError as `transform` does."""
        return self.ending(*self._features(graph))

    def _features(self, graph: NeuralGraph) -> tuple[Lifted, Tensor, Pairs]:
        lifted = self.input(graph)
        nodes, pairs = lifted.nodes, lifted.pairs
        for layer in self.layers:
            nodes, pairs = layer(nodes, pairs)
        return lifted, nodes, pairs


class NGGNN(NeuralGraphs):
    """NG-GNN: PNA aggregation of FiLM-modulated messages, with edge updates; see PNALayer.

    Args:
        config: see NGGNNConfig.
    """

    def __init__(self, config: NGGNNConfig) -> None:
        def layer(update: bool) -> PNALayer:
            scaling = config.scalers, config.typical_degree
            return PNALayer(config.node_width, config.edge_width, *scaling, edges=update)

        super().__init__(config, layer, reverse=config.reverse_edges, loops=False)


class NGT(NeuralGraphs):
    """NG-T: a relational transformer over both directions of every edge and every neuron itself; see RelationalLayer.

    Args:
        config: see NGTConfig.
    """

    def __init__(self, config: NGTConfig) -> None:
        def layer(update: bool) -> RelationalLayer:
            return RelationalLayer(config.node_width, config.edge_width, config.heads, edges=update)

        super().__init__(config, layer, reverse=True, loops=True)
