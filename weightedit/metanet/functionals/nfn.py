"""NFN: the permutation-equivariant neural functionals of Zhou et al. 2023, with NP and HNP layers.

HNP ("hidden neuron permutation") layers are all the linear maps that commute with permutations of hidden neurons (their
appendix C; the published code leaves out the last hidden layer's bias in the last weight): for W^i_jk means over all of
every layer, the row and column means of W^i and of the layers next to it that run over neuron j or k, biases likewise,
and the entry itself. NP layers (their equations 2 and 3) also permute input and output neurons; learned codes at both
ends, given as further input channels, break that (the paper's are sinusoidal, or learned and added before every layer).
Sums over neurons are means, as in the published code.

Ours: inputs are normalized per tensor (chains.py), with a quarter of the logarithm of its size as one more channel;
every layer's features are divided by their root mean square per tensor. `fourier` replaces each entry by random Fourier
features, with which the authors lift the scalars of INRs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from weightedit.errors import SpecError
from weightedit.graph.neural_graph import NeuralGraph
from weightedit.metanet.functionals.chains import ChainConfig, ChainMetanet, FreeStack, LayerSizes, Reader, unit_blocks
from weightedit.metanet.functionals.weight_space import WeightSpace, pool
from weightedit.network.spec import Symmetry

VARIANTS = ("hnp", "np")


@dataclass(frozen=True)
class NFNConfig(ChainConfig):
    """Everything that defines an NFN; see ChainConfig for the fields they all have.

    Attributes:
        depth: layers of the networks it treats.
        variant: "hnp" or "np", the kind of its layers.
        codes: channels of the learned codes of input and output neurons ("np" only, which also treats any number of
            them, all with one code, as inputs=0 and outputs=0).
        fourier: random frequencies per entry, 0 for the entries themselves.
        fourier_scale: their standard deviation, for entries of unit size.
    """

    depth: int = 3
    variant: str = "hnp"
    codes: int = 8
    fourier: int = 0
    fourier_scale: float = 3.0

    @property
    def fewest_ends(self) -> int:
        """See ChainConfig."""
        return 0 if self.variant == "np" else 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.variant not in VARIANTS:
            raise SpecError(f"variant {self.variant!r} is unknown; expected one of {', '.join(VARIANTS)}.")
        if self.depth < 1 or min(self.codes, self.fourier) < 0:
            raise SpecError(f"got {self}; expected a positive depth, and codes and fourier of at least 0.")


class NFN(ChainMetanet):
    """Neural graphs of chains -> deltas, or vectors, by NP or HNP layers; equivariant to permutations.

    Args:
        config: see NFNConfig.
    """

    declared: tuple[Symmetry, ...] = ("permutation",)

    def __init__(self, config: NFNConfig) -> None:
        permuted = config.variant == "np"
        super().__init__(config, WeightSpace(config.depth, config.inputs, config.outputs, permuted))
        self.config = config
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(config.seed)
            codes = config.codes if permuted else 0
            self.input_codes = nn.Parameter(torch.randn(max(1, config.inputs), codes)) if codes else None
            self.output_codes = nn.Parameter(torch.randn(max(1, config.outputs), codes)) if codes else None
            self.register_buffer("frequencies", config.fourier_scale * torch.randn(config.fourier))
            entry = 2 * config.fourier if config.fourier else 1
            known = config.quantities * (config.channels * entry + 1) + codes
            last = [] if config.embedding else [config.channels]
            self.stack = FreeStack(self.space, [known, *[config.width] * config.layers, *last], dropout=config.dropout)
            if config.embedding:
                self.reader = Reader(self.space, config.width, config.embedding, config.quantities)
            else:
                self.sizes = LayerSizes(self.space, config.initial_scale)

    def features(self, graph: NeuralGraph) -> tuple[list[Tensor], list[Tensor]]:
        """Folded input parts, and the sizes by which they were divided."""
        weights, biases, sizes = unit_blocks(self.space, graph, self.config.quantities)
        count = len(weights) + len(biases)
        found = []
        for number, x in enumerate([*weights, *biases]):
            axes = 3 if number < len(weights) else 2
            logs = [size.log().div(4).reshape(*x.shape[:-axes], *[1] * axes) for size in sizes[number::count]]
            found.append(torch.cat([self.lift(x), *(log.expand(*x.shape[:-1], 1) for log in logs)], -1))
        weights, biases = self._coded(found[: len(weights)], found[len(weights) :])
        return self.space.fold(weights, biases), sizes

    def lift(self, x: Tensor) -> Tensor:
        """Entries [..., C] as they are, or as Fourier features [..., 2 C fourier]."""
        if not self.config.fourier:
            return x
        phases = 2 * math.pi * x.unsqueeze(-1) * self.get_buffer("frequencies")
        return math.sqrt(2) * torch.cat([phases.cos(), phases.sin()], -1).flatten(-2)

    def _coded(self, weights: list[Tensor], biases: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Weights and biases with the codes of input and output neurons as further channels."""
        if self.input_codes is None or self.output_codes is None:
            return weights, biases
        width = self.input_codes.shape[-1]
        extra = [[x.new_zeros(*x.shape[:-1], width) for x in part] for part in (weights, biases)]
        extra[0][0] = extra[0][0] + self.input_codes
        extra[0][-1] = extra[0][-1] + self.output_codes.unsqueeze(-2)
        extra[1][-1] = extra[1][-1] + self.output_codes
        both = [
            [torch.cat(pair, -1) for pair in zip(part, more, strict=True)]
            for part, more in zip((weights, biases), extra, strict=True)
        ]
        return both[0], both[1]

    def edit(self, graph: NeuralGraph) -> NeuralGraph:
        """The delta of a dense graph."""
        parts, sizes = self.features(graph)
        return self.delta_graph(graph, self.sizes(self.stack(parts), sizes))

    def summarize(self, graph: NeuralGraph) -> Tensor:
        """Means over all neurons that are permuted, then an MLP."""
        parts, sizes = self.features(graph)
        found = [self.dropout(x.relu()) for x in self.stack(parts)]
        pooled = [pool(x, p.levels, ()) for x, p in zip(found, self.space.parts, strict=True)]
        return self.reader(pooled, sizes)
