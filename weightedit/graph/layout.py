"""Neural graphs of networks that are no chains: residual additions, normalisations, branches; by edge indices.

Nodes are ordered level by level, edges link by link, target-major inside a weight, one per neuron inside any other
link. Gains and the fixed numbers of skip edges are diagonal 1 x 1 kernels: they stand where those do, in the middle of
the K channels of a kernel (features.py); a linear layer that reads several positions of a channel has these in the
first channels. Levels are counted along the longest path, from the inputs and from the outputs.

Only what works on any graph is here: probing, gauges and layers that go level by level need a chain.
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
from weightedit.graph.indexed import IndexedLayout
from weightedit.graph.neural_graph import DenseLayout, NeuralGraph, places_of_level
from weightedit.network.features import PARAMETER, ChannelType, channels_to_kernel, check_types, kernel_to_channels
from weightedit.network.graph_spec import GraphSpec
from weightedit.network.link import LINK_KINDS, Link
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
        self._edges = joined.to(device)
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

    def node_tables(self, symmetry: Symmetry) -> tuple[Tensor, Tensor]:
        if symmetry != "permutation":
            raise SpecError(
                f"symmetry {symmetry!r} came for networks that are no chains; expected permutation: what their neurons "
                "may carry besides is not derived. Take ng-gnn or ng-t."
            )
        places = torch.cat([_places(spec) for spec in self.specs])
        return torch.zeros(len(places), 3), places

    def position_table(self) -> Tensor:
        found = []
        for spec in self.specs:
            ones = {name: torch.ones(shape) for name, shape in spec.param_shapes().items()}
            found += [_link_channels(spec, link, ones, torch.ones(()), False) for link in spec.links]
        return torch.cat(found)

    def params(self, graph: NeuralGraph, quantity: int) -> list[Params]:
        channels = self.specs[0].channels
        part = slice(quantity * channels, (quantity + 1) * channels)
        edge_sizes = [_link_edges(spec).shape[1] for spec in self.specs]
        nodes, edges = graph.nodes[:, part].split(self.sizes), graph.edges[:, part].split(edge_sizes)
        parts = zip(self.specs, nodes, edges, strict=True)
        return [_params(*part) for part in parts]

    def _chains_only(self) -> NoReturn:
        raise SpecError(
            "networks that are no chains came to what goes level by level; expected chains of layers (NetworkSpec): "
            "take ng-gnn or ng-t, without probes, for networks with residual additions or normalisations."
        )

    def at_level(self, level: int, nodes: Tensor) -> Tensor:
        self._chains_only()

    def join_levels(self, values: Sequence[Tensor]) -> Tensor:
        self._chains_only()

    def transmit(self, level: int, edges: Tensor, values: Tensor) -> Tensor:
        self._chains_only()

    def transmit_back(self, level: int, edges: Tensor, values: Tensor) -> Tensor:
        self._chains_only()

    def activations_at(self, level: int) -> list[tuple[Activation, Tensor | None]]:
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
        networks: at least one; all of them with as many channels K.
        extra: per network, further quantities (gradients, moments), named and shaped as the parameters; none by
            default. On edges of a fixed number they are 0.

    Raises ParamsError on no network, names or shapes that do not fit, TypeMismatchError for different channels in one
    batch.
    """
    if not networks:
        raise ParamsError("no network came; expected at least one pair of spec and parameters.")
    found = [_features(*pair, more) for pair, more in zip(networks, extra or [()] * len(networks), strict=True)]
    for _, _, types in found:
        check_types(types, found[0][2], "graph_from_params")
    layout = _layout(tuple(spec for spec, _ in networks), found[0][0].device)
    nodes, edges = (torch.cat([each[i] for each in found]) for i in (0, 1))  # type: ignore[misc]
    return NeuralGraph(nodes, edges, layout, found[0][2])


@lru_cache(maxsize=64)
def _layout(specs: tuple[GraphSpec, ...], device: torch.device) -> GraphLayout:
    """Made once, so that its indices and constants are too."""
    return GraphLayout(specs, device)


def _features(
    spec: GraphSpec, params: Mapping[str, Tensor], extra: Sequence[tuple[ChannelType, Params]]
) -> tuple[Tensor, Tensor, tuple[ChannelType, ...]]:
    quantities = [(PARAMETER, params), *extra]
    for _, values in quantities:
        spec.check_shapes(values)
    like = next(iter(params.values()))
    nodes, edges = [], []
    for number, (_, values) in enumerate(quantities):
        biases = [like.new_zeros(at.width) if at.bias is None else values[at.bias] for at in spec.levels]
        nodes.append(functional.pad(torch.cat(biases).unsqueeze(-1), (0, spec.channels - 1)))
        edges.append(torch.cat([_link_channels(spec, link, values, like, not number) for link in spec.links]))
    types = tuple(kind for kind, _ in quantities for _ in range(spec.channels))
    return torch.cat(nodes, -1), torch.cat(edges, -1), types


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
