"""Neural graphs of mixed architectures, and the way to PyTorch Geometric and back.

`RaggedLayout` serves chains of different widths, depths, kernels and activations in one batch, by PyG's edge_index;
with a network that is no chain among them, all go onto a GraphLayout (layout.py). `to_pyg` and `from_pyg` are lossless;
a Data object carries its spec as JSON, so that a batch from a PyG DataLoader knows its architectures. Nodes are ordered
network by network, level by level; edges network by network, layer by layer, target-major, as in neural_graph.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from weightedit.errors import ParamsError
from weightedit.graph.frame import Frame, joined
from weightedit.graph.indexed import IndexedLayout
from weightedit.graph.layout import GraphLayout, graph_from_params
from weightedit.graph.neural_graph import DenseLayout, NeuralGraph
from weightedit.network.features import ChannelType, check_types
from weightedit.network.graph_spec import AnySpec, GraphSpec
from weightedit.network.spec import Activation, NetworkSpec, Params

if TYPE_CHECKING:
    from torch_geometric.data import Data


@lru_cache(maxsize=256)
def _edge_index(spec: NetworkSpec) -> Tensor:
    """[2, e]: source and target node of every edge of one network."""
    layout = DenseLayout(spec)
    numbers = torch.arange(sum(spec.widths)).unsqueeze(-1)
    return torch.cat([layout.to_source(numbers), layout.to_target(numbers)], 1).T.contiguous()


class RaggedLayout(IndexedLayout):
    """Several networks, one after the other; node tensors are [n, C], edge tensors [e, C], without a network axis.

    Args:
        specs: architecture of every network, in order.
        device: where the index tensors live.
    """

    def __init__(self, specs: Sequence[NetworkSpec], device: torch.device | str = "cpu") -> None:
        super().__init__(specs, device)
        edges = [_edge_index(spec) + offset for spec, offset in zip(self.specs, self.offsets, strict=True)]
        self._ends = torch.cat(edges, 1)
        self.edge_index = self._ends.to(device)

    @property
    def layer_of_edge(self) -> Tensor:
        return self.layer_of_node[self.target]

    @property
    def layer_count(self) -> int:
        return len(self.specs) * self.levels

    def transmit(self, level: int, edges: Tensor, values: Tensor) -> Tensor:
        chosen = self.edges_into_level[level]
        sources = self.place_in_level[self.source[chosen]]
        messages = edges.index_select(0, chosen) * values.index_select(0, sources)
        return self._scatter(messages, self.place_in_level[self.target[chosen]], len(self.nodes_of_level[level]))

    def transmit_back(self, level: int, edges: Tensor, values: Tensor) -> Tensor:
        chosen = self.edges_into_level[level]
        targets = self.place_in_level[self.target[chosen]]
        messages = edges.index_select(0, chosen) * values.index_select(0, targets)
        return self._scatter(messages, self.place_in_level[self.source[chosen]], len(self.nodes_of_level[level - 1]))

    def _activation(self, network: int, level: int) -> Activation | None:
        spec = self.specs[network]
        return spec.layers[level - 1].activation if 0 < level <= spec.depth else None

    def per_network(self, of_network: Callable[[NetworkSpec], Tensor]) -> Tensor:
        made = {spec: of_network(spec) for spec in set(self.specs)}
        return torch.cat([made[spec] for spec in self.specs])

    def features(self, nodes: Tensor, edges: Tensor) -> tuple[tuple[tuple[Tensor, ...], tuple[Tensor, ...]], ...]:
        return tuple(layout.features(node, edge)[0] for layout, node, edge in self.networks(nodes, edges))

    def networks(self, nodes: Tensor, edges: Tensor) -> list[tuple[DenseLayout, Tensor, Tensor]]:
        edge_sizes = [_edge_index(spec).shape[1] for spec in self.specs]
        layouts = [DenseLayout(spec).in_frame(self.frame) for spec in self.specs]
        return list(zip(layouts, nodes.split(self.sizes), edges.split(edge_sizes), strict=True))


def ragged_graph(graphs: Sequence[NeuralGraph]) -> NeuralGraph:
    """One ragged graph of single (not stacked) dense graphs, which may differ in architecture but not in quantities.

    Kernels of different sizes are centered in a frame that holds all of them.

    Raises ParamsError for stacked graphs (unstack them) and TypeMismatchError for different channel types.
    """
    if not graphs:
        raise ParamsError("got no network; expected at least one graph for a ragged batch.")
    for graph in graphs:
        if not isinstance(graph.layout, DenseLayout) or graph.nodes.dim() != 2:
            raise ParamsError(
                f"got a graph with nodes {tuple(graph.nodes.shape)}; expected single dense networks, nodes (n, C). "
                "Call unstack() on a stack first."
            )
    frame = joined(graph.layout.frame for graph in graphs)
    graphs = [graph.in_frame(frame) for graph in graphs]
    for graph in graphs:
        check_types(graph.types, graphs[0].types, "ragged_graph")
    layout = RaggedLayout([graph.layout.specs[0] for graph in graphs], graphs[0].nodes.device).in_frame(frame)
    nodes, edges = torch.cat([graph.nodes for graph in graphs]), torch.cat([graph.edges for graph in graphs])
    return NeuralGraph(nodes, edges, layout, graphs[0].types)


def ragged_from_params(networks: Sequence[tuple[AnySpec, Mapping[str, Tensor]]]) -> NeuralGraph:
    """One ragged graph of single networks given as (spec, params) pairs.

    On a RaggedLayout where all of them are chains; one GraphSpec among them puts all on a GraphLayout.
    """
    chains = [(spec, params) for spec, params in networks if isinstance(spec, NetworkSpec)]
    if len(chains) == len(networks):
        return ragged_graph([NeuralGraph.from_params(spec, params) for spec, params in chains])
    return graph_from_params([(_as_graph(spec), params) for spec, params in networks])


def _as_graph(spec: AnySpec) -> GraphSpec:
    return spec if isinstance(spec, GraphSpec) else GraphSpec.of(spec)


def to_pyg(spec: AnySpec, params: Params, *, frame: Frame | None = None) -> Data:
    """One network as a torch_geometric Data: x [n, K] biases, edge_attr [e, K] weights, edge_index [2, e], spec (JSON).

    A network that is no chain also has link_kind [e], the place of every edge's kind in link.LINK_KINDS.

    Args:
        spec: of the network.
        params: of one network.
        frame: where its kernels stand; None for one in which they fit. Networks with kernels of different sizes, or
            with and without any, share a batch in one frame: Frame.of(spec, other).

    Raises ParamsError if `params` does not fit `spec` or is stacked (one Data holds one network).
    """
    from torch_geometric.data import Data

    if spec.check_shapes(params) is not None:
        raise ParamsError("got stacked networks; expected one network per Data. Call to_pyg for each of them.")
    graph = ragged_from_params([(spec, params)])
    frame = frame or graph.layout.frame
    if not frame.holds(graph.layout.frame):
        raise ParamsError(
            f"got kernels of {graph.layout.frame} for a frame of {frame}; expected one that holds them: Frame.of all "
            "specs of the batch."
        )
    graph = graph.in_frame(frame)
    layout = graph.layout
    assert isinstance(layout, IndexedLayout)
    kinds = {} if layout.link_kind is None else {"link_kind": layout.link_kind}
    return Data(
        x=graph.nodes,
        edge_attr=graph.edges,
        edge_index=layout.edge_index,
        **kinds,
        spec=json.dumps(spec.to_dict()),
        types=json.dumps([[kind.scale, kind.odd, kind.affine] for kind in graph.types]),
        frame=json.dumps(list(astuple(frame))),
    )


def from_pyg(data: Data) -> NeuralGraph:
    """The ragged graph of a Data from `to_pyg`, or of a Batch of them (a PyG DataLoader's); the inverse of `to_pyg`.

    Raises ParamsError if the spec is missing or the graph was changed (edges dropped, added or reordered).
    """
    specs, types, frames = (getattr(data, key, None) for key in ("spec", "types", "frame"))
    if specs is None or types is None:
        raise ParamsError("got a Data without `spec` and `types`; expected one made by weightedit.to_pyg.")
    if isinstance(specs, str):
        specs, types, frames = [specs], [types], None if frames is None else [frames]
    x, values, index = data.x, data.edge_attr, data.edge_index
    if x is None or values is None or index is None:
        raise ParamsError("got a Data without x, edge_attr or edge_index; expected one made by weightedit.to_pyg.")
    layout = _layout([_parsed(text) for text in specs], x.device)
    if frames is not None:  # which older ones do not have
        layout = layout.in_frame(Frame(*json.loads(frames[0])))
    nodes, edges = sum(layout.sizes), layout.edge_index.shape[1]
    if (len(x), len(values)) != (nodes, edges) or not torch.equal(index, layout.edge_index):
        raise ParamsError(
            f"got a graph of {len(x)} nodes, {len(values)} edges, edge_index {tuple(index.shape)}; expected "
            f"{nodes} nodes and {edges} edges as to_pyg made them. Do not drop, add or reorder nodes or edges (a zero "
            "weight stays an edge)."
        )
    if len(set(types)) != 1 or len(set(frames or [None])) != 1:
        raise ParamsError(
            "got networks with different channel types or frames in one batch; expected the same in all: "
            "to_pyg(..., frame=Frame.of(spec, other))."
        )
    return NeuralGraph(x, values, layout, tuple(ChannelType(*kind) for kind in json.loads(types[0])))


@lru_cache(maxsize=1024)
def _parsed(text: str) -> AnySpec:
    data = json.loads(text)
    return GraphSpec.from_dict(data) if "links" in data else NetworkSpec.from_dict(data)


def _layout(specs: Sequence[AnySpec], device: torch.device) -> RaggedLayout | GraphLayout:
    chains = [spec for spec in specs if isinstance(spec, NetworkSpec)]
    if len(chains) == len(specs):
        return RaggedLayout(chains, device)
    return GraphLayout([_as_graph(spec) for spec in specs], device)
