"""NG-GNN and NG-T: the message-passing and the transformer metanetwork of Neural Graphs, equivariant to permutations.

After Kofinas et al. 2024, "Graph Neural Networks for Learning Equivariant Representations of Neural Networks"; layers
are in layers.py, inputs and read-outs in ends.py. Where this departs from the published code:

* NG-GNN's published bias deltas are read at wrong nodes (the slice starts at the inputs); here each is read at its own.
* NG-T's published attention runs over all pairs of neurons, as in Diao & Loynd's code (a mask is there, switched off);
  here it runs over the real pairs: both directions of every edge, and every neuron with itself, so that its cost is
  linear in the edges. What a pair without an edge would learn to carry is left out.
* Its logits are divided by the root of the whole attention width there, by that of one head's here, as in attention.
* PNA's typical degree there counts one direction of edges only; here it is an entry of the config.
* NG-GNN's last layer there has no norm, no activation and no edge update; here it has all three (the edge update only
  where it edits). Vectors are read there off the output neurons; here the mean of all nodes comes with them.
* Probes enter there through a linear map per level; here through one, after dividing by the level's root mean square.

Networks with residual additions and normalizations are described by a GraphSpec, where the paper's skip edges of weight
1 and its nodes and edges of normalizations are links (link.py); a learned vector per kind of link, which goes onto the
pairs, tells a skip from a weight of 1 and one normalization from another. Without probes: these go level by level. The
published code for CNNs has residual edges, of weight 1 in the middle of the kernel as here, and no nodes of
normalizations; it repeats nodes where a map is flattened, here the positions of a channel are channels of one edge.

The paper lifts parameters by random Fourier features: `fourier` frequencies, 0 by default. Theirs are of standardized
parameters, and of the reverse edges apart; here both directions of an edge share them.

>>> from weightedit.delta import propose_delta
>>> from weightedit.network.graph_spec import GraphSpec
>>> from weightedit.metanet.registry import make_metanet
>>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2))
>>> spec = GraphSpec.from_module(net)
>>> delta = propose_delta(make_metanet("ng-gnn", [spec]), spec, spec.params_of(net))
>>> delta["0.weight"].shape, delta["1.weight"].shape
(torch.Size([4, 1, 3, 3]), torch.Size([4]))
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from weightedit.graph.neural_graph import NeuralGraph
from weightedit.metanet.base import Metanetwork, frame_of
from weightedit.metanet.neural_graphs.config import NeuralGraphsConfig, NGGNNConfig, NGTConfig
from weightedit.metanet.neural_graphs.ends import DeltaEnding, InputStage, Lifted, Pooling
from weightedit.metanet.neural_graphs.layers import Pairs, PNALayer, RelationalLayer
from weightedit.network.features import DELTA, PARAMETER, ChannelType
from weightedit.network.spec import Symmetry


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
        self.frame = frame_of(config.kernel, config.channels)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(config.seed)
            self.input = InputStage(config, reverse=reverse, loops=loops)
            # Nothing reads the pairs after the last layer of one that reads.
            updated = [True] * (config.layers - 1) + [not config.embedding]
            self.dropout = nn.Dropout(config.dropout)
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
            nodes = self.dropout(nodes)
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
