"""The neural graph: nodes carry biases, edges carry weights, and a layout says which edge touches which node.

Nodes are ordered by level (inputs first), edges by layer, inside a layer row by row (target-major). A metanetwork
layer is written once, as functions of the last axis and the operations of `Layout`. `DenseLayout` (here) serves N
networks of one architecture by views, broadcasts and sums over contiguous per-layer blocks: no index tensors.
`RaggedLayout` (ragged.py) serves mixed architectures and PyTorch Geometric batches by edge indices. Both give the same
numbers from the same weights. `GraphLayout` (layout.py) is for networks that are no chains, with residual
additions and normalizations. The graph is that of Lim et al. 2023 and Kofinas et al. 2024.

The file is long because `Layout` states every operation once, and its plainest form is read beside it.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate
from typing import Any, Self

import torch
from torch import Tensor

from weightedit.errors import ParamsError
from weightedit.graph.frame import Frame, reframed, reframed_nodes
from weightedit.network.features import (
    PARAMETER,
    ChannelType,
    WeightSpaceFeatures,
    features_from_params,
    kernel_to_channels,
    params_from_features,
)
from weightedit.network.layer import ACTIVATION_NAMES
from weightedit.network.spec import SYMMETRIES, Activation, NetworkSpec, Params, Symmetry


class Layout(ABC):
    """Which edge touches which node. Node tensors are [..., n, C], edge tensors [..., e, C].

    Attributes:
        specs: the architecture of every network in the layout; one for DenseLayout, whatever the number N of networks.
        levels: number of node levels of the deepest network.
        frame: of the channels of every quantity; that of the networks at first (see `in_frame`).
    """

    specs: tuple[NetworkSpec, ...]

    def __init__(self, frame: Frame) -> None:
        self.frame = frame
        self._in_frames = {frame: self}
        # Made at first use, and kept. Plain dictionaries: torch.compile cannot enter the lock of a cached property.
        self._positions: dict[tuple[torch.dtype, torch.device], Tensor] = {}
        self._constants: dict[tuple[Symmetry, torch.dtype, torch.device], NodeConstants] = {}

    @property
    def levels(self) -> int:
        return max(spec.depth for spec in self.specs) + 1

    def in_frame(self, frame: Frame) -> Self:
        """The same layout, for features in another frame."""
        if frame not in self._in_frames:
            other = copy.copy(self)
            other.frame, other._positions = frame, {}
            self._in_frames[frame] = other
        return self._in_frames[frame]

    @abstractmethod
    def to_source(self, nodes: Tensor) -> Tensor:
        """Every edge's source node: [..., n, C] -> [..., e, C]."""

    @abstractmethod
    def to_target(self, nodes: Tensor) -> Tensor:
        """Every edge's target node: [..., n, C] -> [..., e, C]."""

    @abstractmethod
    def sum_at_source(self, edges: Tensor) -> Tensor:
        """Sum over the outgoing edges of every node: [..., e, C] -> [..., n, C]."""

    @abstractmethod
    def sum_at_target(self, edges: Tensor) -> Tensor:
        """Sum over the incoming edges of every node: [..., e, C] -> [..., n, C]."""

    @abstractmethod
    def max_at_source(self, edges: Tensor) -> Tensor:
        """Maximum over the outgoing edges of every node, -inf where there is none: [..., e, C] -> [..., n, C]."""

    @abstractmethod
    def max_at_target(self, edges: Tensor) -> Tensor:
        """Maximum over the incoming edges of every node, -inf where there is none: [..., e, C] -> [..., n, C]."""

    def gauge_at_source(self, gauge: Tensor) -> Tensor:
        """How every edge's weight scales with its source: `to_source`, but 1 where it is a gain, which does not."""
        return self.to_source(gauge)

    def add_ends(self, edges: Tensor, target: Tensor, source: Tensor) -> Tensor:
        """edges[i, j] + target[i] + source[j]: [..., e, C] and twice [..., n, C] -> [..., e, C]."""
        return edges + self.to_target(target) + self.to_source(source)

    def products(self, targets: Sequence[Tensor], sources: Sequence[Tensor]) -> Sequence[Tensor]:
        """target[i] * source[j] of several pairs, each twice [..., n, C] -> [..., e, C]."""
        return [self.to_target(a) * self.to_source(b) for a, b in zip(targets, sources, strict=True)]

    def collect_at_target(self, edges: Tensor, source: Tensor) -> Tensor:
        """sum_j edges[i, j] source[j]: [..., e, C] and [..., n, C] -> [..., n, C]."""
        return self.sum_at_target(edges * self.to_source(source))

    def collect(self, edges: Tensor, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """sum_j edges[i, j] source[j] at targets and sum_i edges[i, j] target[i] at sources, [..., n, C] each."""
        return self.sum_at_target(edges * self.to_source(source)), self.sum_at_source(edges * self.to_target(target))

    def sums(self, edges: Tensor) -> tuple[Tensor, Tensor]:
        """`sum_at_target` and `sum_at_source`."""
        return self.sum_at_target(edges), self.sum_at_source(edges)

    @abstractmethod
    def outer(self, target: Tensor, source: Tensor, mix: Tensor | None = None) -> Tensor:
        """sum_c target[i, c] source[j, c] on every edge j -> i: two [..., n, C] -> [..., e, 1].

        With `mix` [K, C] K such sums, sum_c mix[k, c] target[i, c] source[j, c]: [..., e, K].
        """

    @abstractmethod
    def layer_mean_edges(self, edges: Tensor) -> Tensor:
        """Mean over the edges of one network's layer, on every edge of that layer: [..., e, C] -> [..., e, C]."""

    @abstractmethod
    def layer_mean_nodes(self, nodes: Tensor) -> Tensor:
        """Mean over the nodes of one network's level, on every node of that level: [..., n, C] -> [..., n, C]."""

    @abstractmethod
    def network_mean(self, nodes: Tensor, among: Tensor | None = None) -> Tensor:
        """Mean over the nodes of every network: [..., n, C] -> [..., C], or [networks, C] if ragged.

        `among` [n, 1] or [..., n, 1], 1.0 or 0.0, chooses the nodes; zeros where a network has none of them.
        """

    @abstractmethod
    def network_sum(self, nodes: Tensor) -> Tensor:
        """Sum over the nodes of every network: [..., n, C] -> [..., C], or [networks, C] if ragged."""

    @abstractmethod
    def ends(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """The input and the output nodes of every network, in order: [..., inputs, C] and [..., outputs, C], or
        [networks, inputs, C] and [networks, outputs, C] if ragged; all networks have equally many of either."""

    @abstractmethod
    def at_level(self, level: int, nodes: Tensor) -> Tensor:
        """The nodes of one level (of all networks): [..., n, C] -> [..., n_level, C]."""

    def by_level(self, nodes: Tensor) -> Sequence[Tensor]:
        """`at_level` of every level."""
        return [self.at_level(level, nodes) for level in range(self.levels)]

    @abstractmethod
    def join_levels(self, values: Sequence[Tensor]) -> Tensor:
        """The inverse of `by_level`: `levels` tensors [..., n_level, C] -> [..., n, C]."""

    @abstractmethod
    def transmit(self, level: int, edges: Tensor, values: Tensor) -> Tensor:
        """sum_j w_ij v_j into one level: weights [..., e, 1], values [..., n_(level-1), P] -> [..., n_level, P]."""

    @abstractmethod
    def transmit_back(self, level: int, edges: Tensor, values: Tensor) -> Tensor:
        """sum_i w_ij v_i out of one level: [..., e, 1], values [..., n_level, P] -> [..., n_(level-1), P]."""

    @abstractmethod
    def activations_at(self, level: int) -> list[tuple[Activation, Tensor | None]]:
        """The activations of a level, each with the positions in `at_level` it applies to (None: all)."""

    @abstractmethod
    def per_network(self, of_network: Callable[[NetworkSpec], Tensor]) -> Tensor:
        """Assemble a constant of every node [n, ...] or edge [e, ...] from a function of one network's spec."""

    @abstractmethod
    def features(self, nodes: Tensor, edges: Tensor) -> tuple[tuple[tuple[Tensor, ...], tuple[Tensor, ...]], ...]:
        """Per entry of `specs`, its (weights, biases) blocks, shaped as WeightSpaceFeatures has them."""

    @abstractmethod
    def networks(self, nodes: Tensor, edges: Tensor) -> list[tuple[DenseLayout, Tensor, Tensor]]:
        """The graph cut into parts of one architecture each, in order; `join_networks` puts them together."""

    def params(self, graph: NeuralGraph, quantity: int) -> list[Params]:
        """One quantity of a graph on this layout as named tensors, per entry of `specs`."""
        types, part = (PARAMETER,), slice(quantity * self.frame.channels, (quantity + 1) * self.frame.channels)
        found = []
        for spec, (weights, biases) in zip(self.specs, self.features(graph.nodes, graph.edges), strict=True):
            own = Frame.of(spec)
            features = WeightSpaceFeatures(
                tuple(reframed(weight[..., part], self.frame, own) for weight in weights),
                tuple(reframed_nodes(bias[..., part], self.frame, own) for bias in biases),
                types * own.channels,
            )
            found.append(params_from_features(spec, features))
        return found

    @property
    def link_kind(self) -> Tensor | None:
        """[e], the place of every edge's kind in link.LINK_KINDS; None where all edges carry weights, as in chains."""
        return None

    @property
    def link_kinds(self) -> int:
        """How many entries of link.LINK_KINDS cover the kinds of all edges: 1 for chains."""
        return 1

    @property
    def edge_count(self) -> int:
        """Number of edges, of one network on a dense layout."""
        return sum(layer.fan_in * layer.fan_out for spec in self.specs for layer in spec.layers)

    def node_tables(self, symmetry: Symmetry) -> tuple[Tensor, Tensor]:
        """Of every node: [n, 3] scale, flip and shift inside `symmetry`; [n, 4] level, height, position, activation."""
        return self.per_network(lambda spec: group_table(spec, symmetry)), self.per_network(_place_table)

    def join_networks(self, nodes: Sequence[Tensor], edges: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The inverse of `networks`, for the node and edge tensors of all parts."""
        return torch.cat(tuple(nodes), -2), torch.cat(tuple(edges), -2)

    def position_table(self) -> Tensor:
        """[e, K], see `kernel_positions`."""
        return self.per_network(lambda spec: reframed(_position_table(spec), Frame.of(spec), self.frame))

    def kernel_positions(self, like: Tensor) -> Tensor:
        """[e, K], on the device and in the dtype of `like`: 1.0 where a channel of an edge is a position of its own
        kernel, 0.0 where it is padding; a delta there is nobody's."""
        key = (like.dtype, like.device)
        if key not in self._positions:
            with torch.inference_mode(False):
                self._positions[key] = self.position_table().to(like.device, like.dtype)
        return self._positions[key]

    def constants(self, symmetry: Symmetry, like: Tensor) -> NodeConstants:
        """What a metanetwork needs to know of every node, on the device and in the dtype of `like`."""
        key = (symmetry, like.dtype, like.device)
        cache = self._constants
        if key not in cache:
            with torch.inference_mode(False):  # what is kept must serve a training, too
                cache[key] = self._made_constants(symmetry, like)
        return cache[key]

    def _made_constants(self, symmetry: Symmetry, like: Tensor) -> NodeConstants:
        groups, places = self.node_tables(symmetry)
        outputs, scaled = (places[:, 1] == 0).nonzero().squeeze(1), bool(groups[:, 0].any())
        groups, places = groups.to(like.device, like.dtype), places.to(like.device)
        # Not `like.new_ones`: inside torch.func.vmap that would be one of its own tensors, and kept beyond it.
        ones = torch.ones(self.edge_count, 1, dtype=like.dtype, device=like.device)
        scale, flip, shift = groups.unsqueeze(-1).unbind(1)
        in_degree, out_degree = self.sum_at_target(ones), self.sum_at_source(ones)
        return NodeConstants(
            *(scale, flip, shift),
            *places.unbind(1),
            in_degree=in_degree,
            out_degree=out_degree,
            free=1 - flip,
            unshifted=1 - shift,
            in_count=in_degree.clamp(min=1),
            out_count=out_degree.clamp(min=1),
            in_root=in_degree.clamp(min=1).rsqrt(),
            out_root=out_degree.clamp(min=1).rsqrt(),
            outputs=outputs.to(like.device),
            scaled=scaled,
        )


@dataclass(frozen=True)
class NodeConstants:
    """Constants of the nodes: masks [n, 1] (1.0 where the neuron has that factor), places [n], degrees [n, 1].

    Whatever a forward would have to read from the device is read here, once.
    """

    scale: Tensor
    flip: Tensor
    shift: Tensor
    level: Tensor
    height: Tensor  # levels above, 0 for outputs
    position: Tensor  # index in its level
    activation: Tensor  # what it applies: 0 at the inputs, else 1 + its place in layer.ACTIVATION_NAMES
    in_degree: Tensor
    out_degree: Tensor
    free: Tensor  # 1 - flip
    unshifted: Tensor  # 1 - shift
    in_count: Tensor  # the degrees, at least 1
    out_count: Tensor
    in_root: Tensor  # one over the roots of these
    out_root: Tensor
    outputs: Tensor  # indices of the output nodes
    scaled: bool  # whether any neuron has a scale factor


def group_table(spec: Any, symmetry: Symmetry) -> Tensor:
    """[n, 3]: scale, flip and shift of every node of one network, described by a NetworkSpec or a GraphSpec."""
    rows = [torch.zeros(spec.widths[0], 3)]
    for width, group in zip(spec.widths[1:-1], spec.neuron_groups(symmetry), strict=True):
        rows.append(torch.tensor([[group.scale, group.flip, group.shift]]).float().expand(width, 3))
    return torch.cat([*rows, torch.zeros(spec.widths[-1], 3)])


def _place_table(spec: NetworkSpec) -> Tensor:
    rows = []
    for level, width in enumerate(spec.widths):
        activation = spec.layers[level - 1].activation if level else None
        rows.append(places_of_level(width, level, spec.depth - level, activation))
    return torch.cat(rows)


def _position_table(spec: NetworkSpec) -> Tensor:
    kernels = ((torch.ones(layer.weight_shape), layer.kernel) for layer in spec.layers)
    return torch.cat([kernel_to_channels(ones, kernel, spec.kernel).flatten(0, 1) for ones, kernel in kernels])


def places_of_level(width: int, level: int, height: int, activation: Activation | None) -> Tensor:
    """[width, 4]: level, height, position and number of the activation (None: of the inputs) of one level's nodes."""
    number = 0 if activation is None else 1 + ACTIVATION_NAMES.index(activation.name)
    same = torch.tensor([[level, height, 0, number]]).repeat(width, 1)
    same[:, 2] = torch.arange(width)
    return same


def product(left: Tensor, right: Tensor) -> Tensor:
    """`left @ right` of matrices or of equally many in two stacks, for which `@` dispatches six operations."""
    return torch.bmm(left, right) if left.dim() == right.dim() == 3 else left @ right


class DenseLayout(Layout):
    """N networks of one architecture; the axis N is the `...` of node and edge tensors, and may be absent."""

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__(Frame.of(spec))
        self.spec = spec
        self.specs = (spec,)
        self._widths = list(spec.widths)
        self._blocks_of = [(layer.fan_out, layer.fan_in) for layer in spec.layers]
        self._sizes = [above * below for above, below in self._blocks_of]
        self._node_slices = _slices(self._widths)
        self._edge_slices = _slices(self._sizes)

    def _blocks(self, edges: Tensor) -> list[Tensor]:
        """Per layer a view [..., out, in, C] of `edges`."""
        parts = zip(edges.split_with_sizes(self._sizes, -2), self._blocks_of, strict=True)
        return [part.unflatten(-2, block) for part, block in parts]

    def by_level(self, nodes: Tensor) -> Sequence[Tensor]:
        return nodes.split_with_sizes(self._widths, -2)

    def to_source(self, nodes: Tensor) -> Tensor:
        sources = [
            level.unsqueeze(-3).expand(*level.shape[:-2], layer.fan_out, *level.shape[-2:]).flatten(-3, -2)
            for level, layer in zip(self.by_level(nodes)[:-1], self.spec.layers, strict=True)
        ]
        return torch.cat(sources, -2)

    def to_target(self, nodes: Tensor) -> Tensor:
        targets = [
            level.unsqueeze(-2).expand(*level.shape[:-1], layer.fan_in, level.shape[-1]).flatten(-3, -2)
            for level, layer in zip(self.by_level(nodes)[1:], self.spec.layers, strict=True)
        ]
        return torch.cat(targets, -2)

    def sum_at_source(self, edges: Tensor) -> Tensor:
        return self._at_sources([block.sum(-3) for block in self._blocks(edges)])

    def sum_at_target(self, edges: Tensor) -> Tensor:
        return self._at_targets([block.sum(-2) for block in self._blocks(edges)])

    def sums(self, edges: Tensor) -> tuple[Tensor, Tensor]:
        blocks = self._blocks(edges)
        return self._at_targets([block.sum(-2) for block in blocks]), self._at_sources([b.sum(-3) for b in blocks])

    def _at_targets(self, sums: Sequence[Tensor]) -> Tensor:
        """Sums at the nodes of every level but the first, [..., n, C]; zeros at the inputs."""
        return torch.cat([self._filled(sums[0], self._widths[0], 0.0), *sums], -2)

    def _at_sources(self, sums: Sequence[Tensor]) -> Tensor:
        """Sums at the nodes of every level but the last; zeros at the outputs."""
        return torch.cat([*sums, self._filled(sums[0], self._widths[-1], 0.0)], -2)

    def max_at_source(self, edges: Tensor) -> Tensor:
        tops = [block.amax(-3) for block in self._blocks(edges)]
        return torch.cat([*tops, self._filled(edges, self._widths[-1], -math.inf)], -2)

    def max_at_target(self, edges: Tensor) -> Tensor:
        tops = [block.amax(-2) for block in self._blocks(edges)]
        return torch.cat([self._filled(edges, self._widths[0], -math.inf), *tops], -2)

    @staticmethod
    def _filled(edges: Tensor, nodes: int, value: float) -> Tensor:
        """What a sum or a maximum over no edges is, at `nodes` nodes."""
        return edges.new_full((*edges.shape[:-2], nodes, edges.shape[-1]), value)

    def _ends(self, target: Tensor, source: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Per layer views [..., out, 1, C] of its targets and [..., 1, in, C] of its sources."""
        above = target.unsqueeze(-2).split_with_sizes(self._widths, -3)[1:]
        return list(zip(above, source.unsqueeze(-3).split_with_sizes(self._widths, -2)[:-1], strict=True))

    def products(self, targets: Sequence[Tensor], sources: Sequence[Tensor]) -> Sequence[Tensor]:
        if len(targets) == 1:
            return (torch.cat([(a * b).flatten(-3, -2) for a, b in self._ends(targets[0], sources[0])], -2),)
        pairs = self._ends(torch.stack(tuple(targets)), torch.stack(tuple(sources)))
        return torch.cat([(a * b).flatten(-3, -2) for a, b in pairs], -2).unbind()

    def add_ends(self, edges: Tensor, target: Tensor, source: Tensor) -> Tensor:
        return edges + torch.cat([(a + b).flatten(-3, -2) for a, b in self._ends(target, source)], -2)

    def collect_at_target(self, edges: Tensor, source: Tensor) -> Tensor:
        sources = source.unsqueeze(-3).split_with_sizes(self._widths, -2)[:-1]
        return self._at_targets([(a * b).sum(-2) for a, b in zip(self._blocks(edges), sources, strict=True)])

    def collect(self, edges: Tensor, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        parts = list(zip(self._blocks(edges), self._ends(target, source), strict=True))
        at_targets = self._at_targets([(block * below).sum(-2) for block, (_, below) in parts])
        return at_targets, self._at_sources([(block * above).sum(-3) for block, (above, _) in parts])

    def outer(self, target: Tensor, source: Tensor, mix: Tensor | None = None) -> Tensor:
        pairs = zip(self.by_level(target)[1:], self.by_level(source)[:-1], strict=True)
        if mix is None:
            return torch.cat([product(high, low.mT).flatten(-2) for high, low in pairs], -1).unsqueeze(-1)
        mixed = ((high.unsqueeze(-3) * mix.unsqueeze(-2)) @ low.unsqueeze(-3).mT for high, low in pairs)
        return torch.cat([layer.flatten(-2) for layer in mixed], -1).mT

    def layer_mean_edges(self, edges: Tensor) -> Tensor:
        parts = edges.split_with_sizes(self._sizes, -2)
        return torch.cat([part.mean(-2, keepdim=True).expand_as(part) for part in parts], -2)

    def layer_mean_nodes(self, nodes: Tensor) -> Tensor:
        return torch.cat([level.mean(-2, keepdim=True).expand_as(level) for level in self.by_level(nodes)], -2)

    def network_mean(self, nodes: Tensor, among: Tensor | None = None) -> Tensor:
        if among is None:
            return nodes.mean(-2)
        return (nodes * among).sum(-2) / among.sum(-2).clamp(min=1)

    def network_sum(self, nodes: Tensor) -> Tensor:
        return nodes.sum(-2)

    def ends(self, nodes: Tensor) -> tuple[Tensor, Tensor]:
        return self.at_level(0, nodes), self.at_level(self.spec.depth, nodes)

    def at_level(self, level: int, nodes: Tensor) -> Tensor:
        part = self._node_slices[level]
        return nodes.narrow(-2, part.start, part.stop - part.start)

    def join_levels(self, values: Sequence[Tensor]) -> Tensor:
        return torch.cat(tuple(values), -2)

    def transmit(self, level: int, edges: Tensor, values: Tensor) -> Tensor:
        return product(self._matrix(level, edges), values)

    def transmit_back(self, level: int, edges: Tensor, values: Tensor) -> Tensor:
        return product(self._matrix(level, edges).mT, values)

    def _matrix(self, level: int, edges: Tensor) -> Tensor:
        """The one channel of the edges that lead to a level, [..., out, in]."""
        found = edges.narrow(-2, self._edge_slices[level - 1].start, self._sizes[level - 1])
        return found.reshape(*edges.shape[:-2], *self._blocks_of[level - 1])

    def activations_at(self, level: int) -> list[tuple[Activation, Tensor | None]]:
        return [(self.spec.layers[level - 1].activation, None)]

    def per_network(self, of_network: Callable[[NetworkSpec], Tensor]) -> Tensor:
        return of_network(self.spec)

    def networks(self, nodes: Tensor, edges: Tensor) -> list[tuple[DenseLayout, Tensor, Tensor]]:
        return [(self, nodes, edges)]

    def features(self, nodes: Tensor, edges: Tensor) -> tuple[tuple[tuple[Tensor, ...], tuple[Tensor, ...]], ...]:
        return ((tuple(self._blocks(edges)), tuple(self.by_level(nodes)[1:])),)


_layout_of = lru_cache(maxsize=64)(DenseLayout)


def _prepared_layout(spec: NetworkSpec, like: Tensor) -> DenseLayout:
    layout = _layout_of(spec)
    for symmetry in SYMMETRIES:
        layout.constants(symmetry, like)
    return layout


def dense_layout(spec: NetworkSpec, like: Tensor) -> DenseLayout:
    """The layout of an architecture, made once, with its constants on the device and in the dtype of `like`."""
    if torch.compiler.is_compiling():  # it looks through caches, and would make layout and constants anew
        from weightedit.graph.uncompiled import uncompiled

        return uncompiled(_prepared_layout, spec, like)
    return _prepared_layout(spec, like)


def _slices(sizes: Sequence[int]) -> list[slice]:
    return [slice(end - size, end) for size, end in zip(sizes, accumulate(sizes), strict=True)]


@dataclass(frozen=True)
class NeuralGraph:
    """Features on a neural graph: nodes [..., n, C] (biases; zeros at the inputs), edges [..., e, C] (weights)."""

    nodes: Tensor
    edges: Tensor
    layout: Layout
    types: tuple[ChannelType, ...]

    @classmethod
    def from_features(cls, spec: NetworkSpec, features: WeightSpaceFeatures) -> NeuralGraph:
        """The graph of N stacked networks of one architecture (or of one network, without the axis N)."""
        first = features.weights[0]
        inputs = first.new_zeros(*first.shape[:-3], spec.widths[0], first.shape[-1])
        edges = torch.cat([weight.flatten(-3, -2) for weight in features.weights], -2)
        return cls(torch.cat([inputs, *features.biases], -2), edges, dense_layout(spec, edges), features.types)

    @classmethod
    def from_params(
        cls, spec: NetworkSpec, params: Mapping[str, Tensor], extra: Sequence[tuple[ChannelType, Params]] = ()
    ) -> NeuralGraph:
        """`from_features` of the typed features of `params` and `extra`."""
        return cls.from_features(spec, features_from_params(spec, params, extra))

    def to_features(self) -> list[WeightSpaceFeatures]:
        """One WeightSpaceFeatures per entry of `layout.specs`; the inverse of `from_features`."""
        return [WeightSpaceFeatures(w, b, self.types) for w, b in self.layout.features(self.nodes, self.edges)]

    def to_params(self, quantity: int = 0) -> Params | list[Params]:
        """One quantity as named tensors: for a dense layout one (stacked) dict, for a ragged one a list of dicts."""
        found = self.layout.params(self, quantity)
        return found[0] if isinstance(self.layout, DenseLayout) else found

    def with_features(self, nodes: Tensor, edges: Tensor, types: tuple[ChannelType, ...]) -> NeuralGraph:
        """Other features on the same layout."""
        return replace(self, nodes=nodes, edges=edges, types=types)

    def in_frame(self, frame: Frame) -> NeuralGraph:
        """The same features in another frame; what has no place there is dropped."""
        old = self.layout.frame
        types = tuple(kind for kind in self.types[:: old.channels] for _ in range(frame.channels))
        nodes, edges = reframed_nodes(self.nodes, old, frame), reframed(self.edges, old, frame)
        return NeuralGraph(nodes, edges, self.layout.in_frame(frame), types)

    def without_padding(self) -> NeuralGraph:
        """The same with zeros wherever one quantity's K channels belong to no parameter: beside the positions of a
        smaller kernel, on edges of a fixed weight, and on nodes in all channels but the first."""
        positions = self.layout.kernel_positions(self.edges)
        first = torch.arange(positions.shape[-1], device=self.nodes.device) == 0
        return replace(self, nodes=self.nodes * first, edges=self.edges * positions)

    def unstack(self) -> list[NeuralGraph]:
        """The N networks of a stacked dense graph, one graph each."""
        if not isinstance(self.layout, DenseLayout) or self.nodes.dim() != 3:
            raise ParamsError(
                "got unstack for a graph that is not a stack; expected dense [N, n, C] nodes. Use it as it is."
            )
        return [self.with_features(n, e, self.types) for n, e in zip(self.nodes, self.edges, strict=True)]
