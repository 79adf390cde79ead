"""DWSNets: equivariant layers for deep weight spaces, after Navon et al. 2023.

Every layer has a block per pair of parameter tensors (weights or biases to weights or biases), made of three
operations: pooling over the neurons that only the one has, a matrix on channels, broadcasting over those that only the
other has; input and output neurons are part of the channels. With the mean, which gives the paper's characterization of
all linear layers and is our default, a layer is the same function of its matrices as an HNP layer (nfn.py). The
published code's defaults are the maximum, which `pooling` chooses, and attention in its set layers, which is not
offered (theirs are linear by an option). What else differs here from NFN: no feature but the
normalized entries themselves, a skip from those of the parameters to the delta, and an invariant layer that pools as
the others do.

Ours: inputs are normalized per tensor (chains.py), and every layer's features divided by their root mean square per
tensor, in the place of batch normalization.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from weightedit.errors import SpecError
from weightedit.graph.neural_graph import NeuralGraph
from weightedit.metanet.functionals.chains import ChainConfig, ChainMetanet, FreeStack, LayerSizes, Reader, unit_blocks
from weightedit.metanet.functionals.weight_space import Pooling, WeightSpace, pool
from weightedit.network.spec import Symmetry

POOLINGS = ("mean", "max")


@dataclass(frozen=True)
class DWSConfig(ChainConfig):
    """Everything that defines a DWS; see ChainConfig for the fields they all have.

    Attributes:
        depth: layers of the networks it treats.
        pooling: "mean" or "max".
    """

    depth: int = 3
    pooling: str = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pooling not in POOLINGS:
            raise SpecError(f"pooling {self.pooling!r} is unknown; expected one of {', '.join(POOLINGS)}.")
        if self.depth < 1:
            raise SpecError(f"got {self}; expected a positive depth.")


class DWS(ChainMetanet):
    """Neural graphs of chains -> deltas, or vectors, by DWS layers; equivariant to permutations.

    Args:
        config: see DWSConfig.
    """

    declared: tuple[Symmetry, ...] = ("permutation",)

    def __init__(self, config: DWSConfig) -> None:
        super().__init__(config, WeightSpace(config.depth, config.inputs, config.outputs))
        self.config = config
        self.pooling: Pooling = cast(Pooling, config.pooling)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(config.seed)
            last = [] if config.embedding else [config.channels]
            widths = [config.quantities * config.channels, *[config.width] * config.layers, *last]
            self.stack = FreeStack(self.space, widths, pooling=self.pooling, dropout=config.dropout)
            if config.embedding:
                self.reader = Reader(self.space, config.width, config.embedding, config.quantities)
            else:
                self.skip = nn.Parameter(torch.zeros(len(self.space.parts)))
                self.sizes = LayerSizes(self.space, config.initial_scale)

    def edit(self, graph: NeuralGraph) -> NeuralGraph:
        """The delta of a dense graph."""
        weights, biases, sizes = unit_blocks(self.space, graph, self.config.quantities)
        k, moved = self.config.channels, self.stack(self.space.fold(weights, biases))
        own = self.space.fold([x[..., :k] for x in weights], [x[..., :k] for x in biases])
        found = [x + s * part for x, s, part in zip(moved, self.skip, own, strict=True)]
        return self.delta_graph(graph, self.sizes(found, sizes))

    def summarize(self, graph: NeuralGraph) -> Tensor:
        """The invariant layer: every part pooled over its neurons, then an MLP."""
        weights, biases, sizes = unit_blocks(self.space, graph, self.config.quantities)
        found = [self.dropout(x.relu()) for x in self.stack(self.space.fold(weights, biases))]
        pooled = [pool(x, p.levels, (), self.pooling) for x, p in zip(found, self.space.parts, strict=True)]
        return self.reader(pooled, sizes)
