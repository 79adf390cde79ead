"""Neural graphs of networks that are no chains: residual additions, normalizations, branches; by edge indices.

Nodes are ordered level by level, edges link by link, target-major inside a weight, one per neuron inside any other
link. Gains and the fixed numbers of skip edges are diagonal 1 x 1 kernels: they stand where those do, in the middle of
the K channels of a kernel (features.py); a linear layer that reads several positions of a channel has these in the
first channels. Levels are counted along the longest path, from the inputs and from the outputs.

Only what works on any graph is here: probing and what else goes from layer to layer needs a chain. The scale gauge of
such networks is in linked_gauge.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import NoReturn

import torch
from torch import Tensor
from torch.nn import functional

from weightedit.errors import ParamsError, SpecError
from weightedit.graph.frame import Frame, reframed, reframed_nodes
from weightedit.graph.indexed import IndexedLayout, kept
from weightedit.graph.neural_graph import DenseLayout, NeuralGraph, group_table, places_of_level
from weightedit.network.features import PARAMETER, ChannelType, channels_to_kernel, check_types, kernel_to_channels
from weightedit.network.graph_spec import GraphSpec
from weightedit.network.link import LINK_KINDS, READ_BY, Link
from weightedit.network.spec import Activation, NetworkSpec, Params, Symmetry


@lru_cache(maxsize=256)
def _link_edges(spec: GraphSpec) -> Tensor:
    """[4, e]: source node, target node, link and kind of every edge of one network."""
    firsts = torch.tensor([0, *spec.widths]).cumsum(0).tolist()
    found = []
    for number, link in enumerate(spec.links):
        sources = firsts[link.source] + torch.arange(spec.widths[link.source])
        targets = firsts[link.target] + torch.arange(spec.widths[link.target])
        if link.kind == "weight":
            sources, targets = sources.repeat(len(targets)), targets.repeat_interleave(len(sources))
        numbers = torch.tensor([[number], [LINK_KINDS.index(link.kind)]]).expand(2, len(sources))
        found.append(torch.cat([torch.stack([sources, targets]), numbers]))
    return torch.cat(found, 1)


@lru_cache(maxsize=256)
def _places(spec: GraphSpec) -> Tensor:
    """[n, 4]: level, height, position and activation of every node of one network."""
    levels, heights = [0] * len(spec.levels), [0] * len(spec.levels)
    for link in sorted(spec.links, key=lambda link: link.target):
        levels[link.target] = max(levels[link.target], levels[link.source] + 1)
    for link in sorted(spec.links, key=lambda link: -link.source):
        heights[link.source] = max(heights[link.source], heights[link.target] + 1)
    places = zip(spec.levels, levels, heights, strict=True)
    return torch.cat([places_of_level(at.width, low, high, at.activation if low else None) for at, low, high in places])


class GraphLayout(IndexedLayout):
    """Networks described by GraphSpecs, one after the other; node tensors are [n, C], edge tensors [e, C].

    Args:
        specs: of every network, in order, at least one (else ParamsError).
        device: where the index tensors live.
    """

    specs: tuple[GraphSpec, ...]  # type: ignore[assignment]

    def __init__(self, specs: Sequence[GraphSpec], device: torch.device | str = "cpu") -> None:
        super().__init__(specs, device)
        edges, links = [], 0
        for spec, offset in zip(self.specs, self.offsets, strict=True):
            edges.append(_link_edges(spec) + torch.tensor([[offset], [offset], [links], [0]]))
            links += len(spec.links)
        joined = torch.cat(edges, 1)
        self._link_kinds = 1 + int(joined[3].max())
        self._ends, self._edges = joined[:2], joined.to(device)
        self.edge_index = self._edges[:2]

    @property
    def levels(self) -> int:
        return max(len(spec.levels) for spec in self.specs)

    @property
    def edge_count(self) -> int:
        return self.edge_index.shape[1]

    @property
    def link_kinds(self) -> int:
        return self._link_kinds

    @property
    def link_kind(self) -> Tensor | None:
        return self._edges[3]

    @property
    def layer_of_edge(self) -> Tensor:
        return self._edges[2]

    @property
    def layer_count(self) -> int:
        return max(len(self.specs) * self.levels, sum(len(spec.links) for spec in self.specs))

    @kept
    def leader(self) -> Tensor:
        """[n], for every node the first one that carries the same factors; itself where no skip ties it."""
        found = []
        for spec, offset in zip(self.specs, self.offsets, strict=True):
            firsts = torch.tensor([0, *spec.widths]).cumsum(0).tolist()
            for tie, width in zip(spec.factors, spec.widths, strict=True):
                found.append(offset + firsts[tie] + torch.arange(width))
        return torch.cat(found).to(self.network.device)

    @kept
    def scales_with_source(self) -> Tensor:
        """[e, 1], False where the edge is of a normalization: a gain has the scale of its target alone."""
        kinds = [LINK_KINDS.index(kind) for kind in READ_BY]
        return ~torch.isin(self._edges[3], torch.tensor(kinds, device=self._edges.device)).unsqueeze(-1)

    def gauge_at_source(self, gauge: Tensor) -> Tensor:
        return torch.where(self.scales_with_source, self.to_source(gauge), 1.0)

    def _activation(self, network: int, level: int) -> Activation | None:
        levels = self.specs[network].levels
        return levels[level].activation if level < len(levels) else None

    def node_tables(self, symmetry: Symmetry) -> tuple[Tensor, Tensor]:
        tables = zip(*((group_table(spec, symmetry), _places(spec)) for spec in self.specs), strict=True)
        groups, places = map(torch.cat, tables)
        return groups, places

    def position_table(self) -> Tensor:
        found = []
        for spec in self.specs:
            ones = {name: torch.ones(shape) for name, shape in spec.param_shapes().items()}
            table = torch.cat([_link_channels(spec, link, ones, torch.ones(()), False) for link in spec.links])
            found.append(reframed(table, Frame.of(spec), self.frame))
        return torch.cat(found)

    def params(self, graph: NeuralGraph, quantity: int) -> list[Params]:
        frame = self.frame
        part = slice(quantity * frame.channels, (quantity + 1) * frame.channels)
        edge_sizes = [_link_edges(spec).shape[1] for spec in self.specs]
        nodes, edges = graph.nodes[:, part].split(self.sizes), graph.edges[:, part].split(edge_sizes)
        found = []
        for spec, at_nodes, on_edges in zip(self.specs, nodes, edges, strict=True):
            own = Frame.of(spec)
            found.append(_params(spec, reframed_nodes(at_nodes, frame, own), reframed(on_edges, frame, own)))
        return found

    def _chains_only(self) -> NoReturn:
        raise SpecError(
            "got networks that are no chains for what goes level by level; expected chains of layers (NetworkSpec): "
            "take gauge-gmn, ng-gnn or ng-t, without probes, for networks with residual additions or normalizations."
        )

    def transmit(self, level: int, edges: Tensor, values: Tensor) -> Tensor:
        self._chains_only()

    def transmit_back(self, level: int, edges: Tensor, values: Tensor) -> Tensor:
        self._chains_only()

    def per_network(self, of_network: Callable[[NetworkSpec], Tensor]) -> Tensor:
        self._chains_only()

    def features(self, nodes: Tensor, edges: Tensor) -> tuple[tuple[tuple[Tensor, ...], tuple[Tensor, ...]], ...]:
        self._chains_only()

    def networks(self, nodes: Tensor, edges: Tensor) -> list[tuple[DenseLayout, Tensor, Tensor]]:
        self._chains_only()


def graph_from_params(
    networks: Sequence[tuple[GraphSpec, Mapping[str, Tensor]]],
    extra: Sequence[Sequence[tuple[ChannelType, Params]]] = (),
) -> NeuralGraph:
    """One graph of single networks given as (spec, params) pairs: nodes [n, C] and edges [e, C], C = K quantities.

    Args:
        networks: at least one; K are the channels of a frame that holds all of their kernels.
        extra: per network, further quantities (gradients, moments), named and shaped as the parameters; none by
            default. On edges of a fixed number they are 0.

    Raises ParamsError on no network, names or shapes that do not fit, TypeMismatchError for different channels in one
    batch.
    """
    if not networks:
        raise ParamsError("got no network; expected at least one pair of spec and parameters.")
    found = [_features(*pair, more) for pair, more in zip(networks, extra or [()] * len(networks), strict=True)]
    for _, _, types in found:
        check_types(types, found[0][2], "graph_from_params")
    layout = _layout(tuple(spec for spec, _ in networks), found[0][0].device)
    frame, own = layout.frame, [Frame.of(spec) for spec in layout.specs]
    nodes = torch.cat([reframed_nodes(each[0], at, frame) for each, at in zip(found, own, strict=True)])
    edges = torch.cat([reframed(each[1], at, frame) for each, at in zip(found, own, strict=True)])
    return NeuralGraph(nodes, edges, layout, tuple(kind for kind in found[0][2] for _ in range(frame.channels)))


@lru_cache(maxsize=64)
def _layout(specs: tuple[GraphSpec, ...], device: torch.device) -> GraphLayout:
    """Made once, so that its indices and constants are too."""
    with torch.inference_mode(False):  # what is kept must serve a training, too
        return GraphLayout(specs, device)


def _features(
    spec: GraphSpec, params: Mapping[str, Tensor], extra: Sequence[tuple[ChannelType, Params]]
) -> tuple[Tensor, Tensor, tuple[ChannelType, ...]]:
    """Nodes and edges in the network's own frame, and the types of its quantities."""
    quantities = [(PARAMETER, params), *extra]
    for _, values in quantities:
        spec.check_shapes(values)
    like = next(iter(params.values()))
    nodes, edges = [], []
    for number, (_, values) in enumerate(quantities):
        biases = [like.new_zeros(at.width) if at.bias is None else values[at.bias] for at in spec.levels]
        nodes.append(functional.pad(torch.cat(biases).unsqueeze(-1), (0, spec.channels - 1)))
        edges.append(torch.cat([_link_channels(spec, link, values, like, not number) for link in spec.links]))
    return torch.cat(nodes, -1), torch.cat(edges, -1), tuple(kind for kind, _ in quantities)


def _link_channels(
    spec: GraphSpec, link: Link, values: Mapping[str, Tensor], like: Tensor, of_parameters: bool
) -> Tensor:
    """[edges of the link, K]"""
    if link.parameter is None:
        weight = like.new_full((spec.widths[link.source],), link.value if of_parameters else 0.0)
    else:
        weight = values[link.parameter]
    positions = spec.positions(link)
    if positions > 1:
        found = weight.reshape(-1, positions)
    else:
        # Every edge by itself: [edges], or [edges, height, width].
        found = kernel_to_channels(weight.reshape(-1, *(link.kernel or ())), link.kernel, spec.kernel)
    return functional.pad(found, (0, spec.channels - found.shape[-1]))


def _params(spec: GraphSpec, nodes: Tensor, edges: Tensor) -> Params:
    """One quantity of one network by name; what stands on fixed edges and in the padding is dropped."""
    params: Params = {}
    widths = spec.widths
    sizes = [widths[link.source] * (widths[link.target] if link.kind == "weight" else 1) for link in spec.links]
    for link, values in zip(spec.links, edges.split(sizes), strict=True):
        if link.parameter is None:
            continue
        if (positions := spec.positions(link)) > 1:
            found = values[:, :positions]
        else:
            found = channels_to_kernel(values[:, : math.prod(spec.kernel)], link.kernel, spec.kernel)
        params[link.parameter] = found.reshape(link.shape)
    for level, values in zip(spec.levels, nodes.split(list(widths)), strict=True):
        if level.bias is not None:
            params[level.bias] = values[:, 0]
    return {name: params[name] for name in spec.param_shapes()}
