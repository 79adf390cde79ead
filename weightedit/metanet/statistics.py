"""Weight statistics: the control that sees how large the weights are, and not how they are wired.

Mean, variance and the quantiles 0, 1/4, 1/2, 3/4 and 1 of every layer's weights and of its biases, after Unterthiner,
Keysers, Gelly, Bousquet, Tolstikhin, "Predicting Neural Network Accuracy from Weights" (2020), then an MLP.
As everywhere here, inputs have unit size: the statistics are those of a tensor over its root mean square, whose
logarithm comes with them, which is the same information.

Invariant to permutations of neurons, and to any other reordering of the entries of a tensor; neither to signs nor to
scales. It can only read: statistics do not tell which neuron is which, so no delta can be made of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from weightedit.errors import SpecError
from weightedit.files.schema import Seed
from weightedit.graph.neural_graph import NeuralGraph
from weightedit.metanet.base import Metanetwork, MetanetworkConfig, check_chains, check_dropout
from weightedit.metanet.levels import root_of_mean
from weightedit.network.features import PARAMETER
from weightedit.network.spec import NetworkSpec, Params, Symmetry

QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)
_PER_TENSOR = len(QUANTILES) + 3


@dataclass(frozen=True)
class WeightStatisticsConfig(MetanetworkConfig):
    """Everything that defines a WeightStatistics.

    Attributes:
        depth: layers of the networks it reads; widths are free.
        channels: of the parameters: the kernel positions of networks with convolutions, else 1.
        hidden: hidden width of the MLP.
        layers: hidden layers of the MLP.
        embedding: width of the vector per network; it cannot edit.
        dropout: share of the hidden features that is dropped in training, in [0, 1).
        seed: of the initial weights.
    """

    later = {"dropout"}
    depth: int = 3
    channels: int = 1
    hidden: int = 256
    layers: int = 2
    embedding: int = 64
    dropout: float = 0.0
    seed: Seed = 0

    def __post_init__(self) -> None:
        check_dropout(self.dropout)
        if min(self.depth, self.channels, self.hidden, self.layers) < 1 or self.embedding < 0:
            raise SpecError(f"got {self}; expected positive sizes.")
        if not self.embedding:
            raise SpecError(
                "got statistics with embedding 0, to edit; expected embedding > 0: statistics do not tell which "
                "neuron is which. Take another metanetwork for an editor."
            )


class WeightStatistics(Metanetwork):
    """Statistics of every layer -> one vector per network, by an MLP.

    Args:
        config: see WeightStatisticsConfig.
    """

    types_out = ()
    declared: tuple[Symmetry, ...] = ("permutation",)

    def __init__(self, config: WeightStatisticsConfig) -> None:
        super().__init__()
        self.config, self.embedding = config, config.embedding
        self.types_in = (PARAMETER,) * config.channels
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(config.seed)
            sizes = [2 * config.depth * _PER_TENSOR, *[config.hidden] * config.layers]
            self.body = nn.Sequential(*hidden_layers(sizes, config.dropout), nn.Linear(sizes[-1], config.embedding))

    def read(self, graph: NeuralGraph) -> Tensor:
        """Raises SpecError for a network that is no chain, or of another depth."""
        check_chains(graph, type(self).__name__)
        for spec in graph.layout.specs:
            if spec.depth != self.config.depth:
                raise SpecError(
                    f"got a network with {spec.depth} layers; expected {self.config.depth}: statistics are listed "
                    "layer by layer. Widths are free."
                )
        found = graph.to_params()
        if isinstance(found, dict):
            return self.body(statistics_of(graph.layout.specs[0], found))
        pairs = zip(graph.layout.specs, found, strict=True)
        return self.body(torch.stack([statistics_of(spec, params) for spec, params in pairs]))


def hidden_layers(sizes: list[int], dropout: float) -> list[nn.Module]:
    """Linear, LayerNorm, SiLU and dropout between each two sizes, the latter two in one place of the list."""
    pairs = zip(sizes, sizes[1:], strict=False)
    last = [nn.Sequential(nn.SiLU(), nn.Dropout(dropout)) for _ in sizes[1:]]
    return [part for (a, b), end in zip(pairs, last, strict=True) for part in (nn.Linear(a, b), nn.LayerNorm(b), end)]


def statistics_of(spec: NetworkSpec, params: Params) -> Tensor:
    """[..., 2 depth 8]: of weights, then biases, layer by layer; zeros for a bias that a layer does not have.

    Each: mean, variance and QUANTILES of the tensor over its root mean square, and the logarithm of that.
    """
    columns = []
    for layer in spec.layers:
        weight = params[layer.weight].flatten(-len(layer.weight_shape))
        bias = weight.new_zeros(*weight.shape[:-1], 1) if layer.bias is None else params[layer.bias]
        columns += [_statistics(weight), _statistics(bias)]
    return torch.cat(columns, -1)


def _statistics(values: Tensor) -> Tensor:
    """[..., e] -> [..., 8]"""
    size = root_of_mean(values.square().mean(-1, keepdim=True))
    unit = values / size
    mean = unit.mean(-1, keepdim=True)
    variance = (unit - mean).square().mean(-1, keepdim=True)
    ordered = functional.pad(unit.sort(-1).values, (0, 1))  # torch.quantile refuses large tensors
    places = [divmod(quantile * (values.shape[-1] - 1), 1) for quantile in QUANTILES]
    pairs = [(ordered[..., int(low)], ordered[..., int(low) + 1], part) for low, part in places]
    between = torch.stack([one + part * (other - one) for one, other, part in pairs], -1)
    return torch.cat([mean, variance, between, size.log()], -1)
