"""What the metanetworks on per-layer tensors share: cutting graphs into chains, sizes, reading and delta endings.

They act per layer with parameters of each layer's own, so they treat chains of one depth, given inputs and outputs, and
any hidden widths. Ragged graphs are cut into stacks of one architecture each and joined again. Inputs are divided,
per network and parameter tensor, by the root mean square of its entries (in the scale gauge where neurons carry a
positive factor), and deltas multiplied by it: ours, the papers normalize over their data set or not at all. The
logarithms of these sizes are features of the reading ending. Further quantities (gradients, moments: `extra_types`) are
further channels, each divided by a size of its own; invariants (a clock) are left as they are. The linear layers are in
weight_space.py.

Chains with convolutions are read and edited: an entry is a whole kernel, whose positions are channels (features.py),
and channels are mixed by every matrix. Sizes are over all of them, padding included: where a kernel fills one position
of nine, the delta at the start is a third of what it is elsewhere, and the learned scale of the part makes up for it.

>>> from weightedit.delta import propose_delta
>>> from weightedit.metanet.registry import make_metanet
>>> spec = NetworkSpec.cnn((1, 4, 3, 2), "relu")
>>> params = {name: torch.randn(shape) for name, shape in spec.param_shapes().items()}
>>> propose_delta(make_metanet("nfn-hnp", [spec]), spec, params)["layers.1.weight"].shape
torch.Size([3, 4, 3, 3])
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from weightedit.errors import SpecError
from weightedit.files.schema import Seed
from weightedit.graph.neural_graph import DenseLayout, NeuralGraph, dense_layout
from weightedit.metanet.base import Metanetwork, MetanetworkConfig, check_chains, check_dropout, frame_of, types_of
from weightedit.metanet.functionals.weight_space import FREE, EquivariantLinear, Pooling, WeightSpace
from weightedit.network.features import DELTA, INVARIANT
from weightedit.network.spec import NetworkSpec


@dataclass(frozen=True)
class ChainConfig(MetanetworkConfig):
    """What every metanetwork on per-layer tensors needs to know.

    Attributes:
        inputs: input neurons of the networks it treats.
        outputs: output neurons of the networks it treats.
        channels: of each parameter: the kernel positions of networks with convolutions (NetworkSpec.channels), else 1.
        kernel: (height, width) in which the kernels of all networks are centered, so that they may differ in size; None
            for networks that come with `channels` channels by themselves.
        width: channels of the hidden weight-space features.
        layers: equivariant linear layers before the ending.
        embedding: 0 to edit; else the width of the vector per network.
        initial_scale: size of a delta relative to the weights of its layer, at the start.
        extra_types: quantities after the parameters, as (scale, odd) pairs: ((-1, True),) for gradients.
        dropout: share of the hidden features that is dropped in training, in [0, 1).
        seed: of the initial weights.
    """

    later = {"kernel", "extra_types", "dropout"}
    inputs: int = 2
    outputs: int = 1
    channels: int = 1
    kernel: tuple[int, int] | None = None
    width: int = 64
    layers: int = 3
    embedding: int = 0
    initial_scale: float = 0.01
    extra_types: tuple[tuple[int, bool], ...] = ()
    dropout: float = 0.0
    seed: Seed = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "extra_types", tuple((int(k), bool(odd)) for k, odd in self.extra_types))  # from JSON
        check_dropout(self.dropout)
        sizes, ends = (self.channels, self.width, self.layers), (self.inputs, self.outputs)
        if min(sizes) < 1 or min(ends) < self.fewest_ends or self.embedding < 0:
            raise SpecError(f"got {self}; expected positive sizes, and an embedding of at least 0.")

    @property
    def fewest_ends(self) -> int:
        """Inputs and outputs that it takes: 0 stands for any number, where none is told from another."""
        return 1

    @property
    def quantities(self) -> int:
        """The parameters, and what stands beside them."""
        return 1 + len(self.extra_types)


class ChainMetanet(Metanetwork):
    """Abstract: a metanetwork on the tensors of chains of one depth.

    Args:
        config: common part of its config.
        space: the chains it treats.
    """

    def __init__(self, config: ChainConfig, space: WeightSpace) -> None:
        super().__init__()
        self.space, self.embedding, self.dropout = space, config.embedding, nn.Dropout(config.dropout)
        self.types_in = types_of(config.extra_types, config.channels)
        self.types_out = () if config.embedding else (DELTA,) * config.channels
        self.frame = frame_of(config.kernel, config.channels)

    @abstractmethod
    def edit(self, graph: NeuralGraph) -> NeuralGraph:
        """The delta of a dense graph."""

    @abstractmethod
    def summarize(self, graph: NeuralGraph) -> Tensor:
        """The vectors [..., embedding] of a dense graph."""

    def transform(self, graph: NeuralGraph) -> NeuralGraph:
        """Raises SpecError if a network is no chain, or has another depth, or other numbers of inputs or outputs."""
        self._check(graph)
        if isinstance(graph.layout, DenseLayout):
            return self.edit(graph)
        nodes, edges = [graph.nodes] * len(graph.layout.specs), [graph.edges] * len(graph.layout.specs)
        for stack, numbers in _stacks(graph):
            delta = self.edit(stack)
            for place, number in enumerate(numbers):
                nodes[number], edges[number] = delta.nodes[place], delta.edges[place]
        return graph.with_features(*graph.layout.join_networks(nodes, edges), self.types_out)

    def read(self, graph: NeuralGraph) -> Tensor:
        """Raises SpecError if a network is no chain, or has another depth, or other numbers of inputs or outputs."""
        self._check(graph)
        if isinstance(graph.layout, DenseLayout):
            return self.summarize(graph)
        found = [graph.nodes] * len(graph.layout.specs)
        for stack, numbers in _stacks(graph):
            for number, vector in zip(numbers, self.summarize(stack), strict=True):
                found[number] = vector
        return torch.stack(found)

    def _check(self, graph: NeuralGraph) -> None:
        check_chains(graph, type(self).__name__)
        space = self.space
        for spec in graph.layout.specs:
            ends = zip((space.inputs, space.outputs), (spec.widths[0], spec.widths[-1]), strict=True)
            if spec.depth != space.depth or any(known not in (0, end) for known, end in ends):
                raise SpecError(
                    f"got a network with {spec.depth} layers, {spec.widths[0]} inputs and {spec.widths[-1]} outputs; "
                    f"expected {space.depth} layers, {space.inputs} inputs and {space.outputs} outputs: "
                    f"{type(self).__name__} has parameters per layer. Only hidden widths are free; gauge-gmn reads any "
                    "depth."
                )

    def delta_graph(self, graph: NeuralGraph, parts: Sequence[Tensor]) -> NeuralGraph:
        """The graph of folded delta parts."""
        weights, biases = self.space.unfold(parts)
        inputs = graph.nodes[..., : graph.layout.specs[0].widths[0], :1].expand(
            *graph.nodes.shape[:-2], -1, biases[0].shape[-1]
        )
        nodes = torch.cat([torch.zeros_like(inputs), *biases], -2)
        edges = torch.cat([weight.flatten(-3, -2) for weight in weights], -2)
        return graph.with_features(nodes, edges, self.types_out)


def _stacks(graph: NeuralGraph) -> list[tuple[NeuralGraph, list[int]]]:
    """A ragged graph as stacks of one architecture each, with the places of their networks."""
    found: dict[NetworkSpec, list[int]] = {}
    networks = graph.layout.networks(graph.nodes, graph.edges)
    for number, (layout, _, _) in enumerate(networks):
        found.setdefault(layout.spec, []).append(number)
    stacks = []
    for spec, numbers in found.items():
        nodes = torch.stack([networks[number][1] for number in numbers])
        edges = torch.stack([networks[number][2] for number in numbers])
        layout = dense_layout(spec, edges).in_frame(graph.layout.frame)
        stacks.append((NeuralGraph(nodes, edges, layout, graph.types), numbers))
    return stacks


def blocks(graph: NeuralGraph) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Weights [..., out, in, C] and biases [..., out, C] of a dense graph."""
    return graph.layout.features(graph.nodes, graph.edges)[0]


def size_of(x: Tensor, axes: int, like: Tensor | None = None) -> Tensor:
    """The root mean square over the last `axes` + 1 axes, kept as axes of length 1; 1 where it is zero.

    Args:
        x: [..., *axes, C].
        axes: how many axes of neurons.
        like: factors [..., *axes, 1] to divide by first, None for none.
    """
    x = x if like is None else x / like
    square = x.square().mean(tuple(range(-axes - 1, 0)), keepdim=True)
    return torch.where(square > 0, torch.where(square > 0, square, 1.0).sqrt(), 1.0)


Quantity = tuple[list[Tensor], list[Tensor]]
"""Weights [..., out, in, K] and biases [..., out, K] of one quantity."""


def quantities(graph: NeuralGraph, count: int) -> list[Quantity]:
    """The parameters of a dense graph, and the `count` - 1 quantities beside them."""
    weights, biases = blocks(graph)
    parts = zip(*([x.chunk(count, -1) for x in (*weights, *biases)]), strict=True)
    return [(list(part[: len(weights)]), list(part[len(weights) :])) for part in parts]


def joined(parts: Sequence[Quantity]) -> Quantity:
    """All quantities as channels of one."""
    weights, biases = zip(*parts, strict=True)
    return [torch.cat(x, -1) for x in zip(*weights, strict=True)], [torch.cat(x, -1) for x in zip(*biases, strict=True)]


def unit_quantity(
    space: WeightSpace, quantity: Quantity, factors: Sequence[Tensor | None] | None = None
) -> tuple[Quantity, list[Tensor]]:
    """One quantity over its sizes, and these per folded part; `factors` as `like` of `size_of`, per part."""
    parts = space.fold(*quantity)
    likes = factors or [None] * len(parts)
    sizes = [size_of(x, len(part.levels), like) for x, part, like in zip(parts, space.parts, likes, strict=True)]
    return space.unfold([x / size for x, size in zip(parts, sizes, strict=True)]), sizes


def unit_blocks(
    space: WeightSpace, graph: NeuralGraph, count: int = 1
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Weights [..., out, in, C] and biases [..., out, C] of unit size; sizes per folded part.

    Of `count` quantities, all channels side by side, and all sizes one quantity after the other; an invariant has 1.
    """
    found, sizes = [], []
    for number, quantity in enumerate(quantities(graph, count)):
        unit, size = unit_quantity(space, quantity)
        if graph.types[number * len(graph.types) // count] == INVARIANT:
            unit, size = quantity, [torch.ones_like(each) for each in size]
        found.append(unit)
        sizes += size
    return *joined(found), sizes


class FreeStack(nn.Module):
    """Layers for chains whose hidden neurons carry no factor: linear, root mean square 1, ReLU; the last is linear.

    Args:
        space: the chains it treats.
        widths: channels, input first.
        pooling: of the linear layers.
        dropout: share of the hidden features that is dropped in training.
    """

    def __init__(
        self, space: WeightSpace, widths: Sequence[int], *, pooling: Pooling = "mean", dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.space, self.dropout = space, nn.Dropout(dropout)
        self.groups = (FREE,) * (space.depth - 1)
        self.linears = nn.ModuleList(
            EquivariantLinear(space, a, b, kinds=[self.groups], pooling=pooling)
            for a, b in zip(widths, widths[1:], strict=False)
        )

    def forward(self, parts: Sequence[Tensor]) -> list[Tensor]:
        """Folded parts of widths[0] channels -> of widths[-1] channels."""
        found = list(parts)
        for number, linear in enumerate(self.linears):
            if number:
                found = [x.relu() for x in found]
            found = linear([self.dropout(x) for x in found] if number else found, self.groups)
            if number < len(self.linears) - 1:
                found = [x / size_of(x, len(p.levels)) for x, p in zip(found, self.space.parts, strict=True)]
        return found


class LayerSizes(nn.Module):
    """One learned factor per part: the size of its delta relative to its weights."""

    def __init__(self, space: WeightSpace, initial_scale: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((len(space.parts),), initial_scale))

    def forward(self, parts: Sequence[Tensor], sizes: Sequence[Tensor]) -> list[Tensor]:
        """Deltas relative to the sizes -> deltas; both [..., *axes, C]. Sizes of further quantities are not read."""
        own = sizes[: len(parts)]
        return [part * size * scale for part, size, scale in zip(parts, own, self.scale, strict=True)]


class Reader(nn.Module):
    """Invariant summaries of all parts and the logarithms of their sizes -> one vector, by an MLP."""

    def __init__(self, space: WeightSpace, width: int, embedding: int, quantities: int = 1) -> None:
        super().__init__()
        known = sum(part.folded * width + quantities for part in space.parts)
        self.body = nn.Sequential(
            nn.Linear(known, 2 * width),
            nn.LayerNorm(2 * width),
            nn.SiLU(),
            nn.Linear(2 * width, embedding),
        )

    def forward(self, summaries: Sequence[Tensor], sizes: Sequence[Tensor]) -> Tensor:
        """[..., folded * width] and sizes [..., 1, 1] or [..., 1, 1, 1], per quantity and part -> [..., embedding]."""
        lead = summaries[0].shape[:-1]
        logs = [size.log().reshape(*lead, 1) for size in sizes]
        return self.body(torch.cat([*summaries, *logs], -1))
