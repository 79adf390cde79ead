"""Any PyTorch Geometric model as a metanetwork: whatever maps node features, an edge_index and edge features to nodes.

Biases and weights over the root mean square of their layer's weights, the logarithm of that, and learned codes (of the
level, counted from both ends, and of every input and output neuron) are lifted to what the model reads; every edge is
there in both directions, with a channel that tells them apart. From the model's nodes, deltas are read at edges from
both ends and their weight, and at nodes; or hidden nodes are averaged, ends read one by one, for a vector per network.
Dense stacks become one graph of as many components (ragged.py), so the model never sees another form. Which network a
node belongs to is handed to a model that takes `batch` (and `batch_size`), as PyTorch Geometric's do that normalize or
attend over a whole graph, so that each network is treated as if alone; only a BatchNorm in training mixes them, as its
purpose is. In networks that are no chains, residual edges and gains are edges like others: their kind is not told.

Symmetry: permutations, as of every message-passing model on this graph; neither signs nor scales, and nothing is
declared of a model that depends on the order of its nodes. An adapter holds a module that no config describes, so it is
not in the registry: save its state_dict, or write a class with a config around it and give that a line there.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from weightedit.errors import ParamsError, SpecError
from weightedit.graph.indexed import IndexedLayout
from weightedit.graph.neural_graph import DenseLayout, NeuralGraph, NodeConstants
from weightedit.graph.ragged import RaggedLayout
from weightedit.metanet.base import Metanetwork, frame_of, types_of
from weightedit.metanet.levels import LayerTable, root_of_mean
from weightedit.network.features import DELTA
from weightedit.network.spec import NetworkSpec, Symmetry


@dataclass(frozen=True)
class PyGAdapterConfig:
    """What surrounds the model.

    Attributes:
        inputs: input neurons of the networks it treats.
        outputs: output neurons of the networks it treats.
        node_width: node channels that the model reads (its in_channels).
        edge_width: edge channels that it reads (its edge_dim).
        width_out: node channels that it returns (its out_channels).
        edge_argument: keyword under which it takes edge features; "" for a model that takes none.
        channels: of each quantity: the kernel positions of networks with convolutions, else 1.
        kernel: (height, width) in which the kernels of all networks are centered, so that they may differ in size; None
            for networks that come with `channels` channels by themselves.
        extra_types: quantities after the parameters, as (scale, odd) pairs: ((-1, True),) for gradients.
        levels: how many levels, from either end, have codes and output scales of their own.
        initial_scale: size of a delta relative to the weights of its layer, at the start.
        embedding: 0 to edit; else the width of the vector per network.
        seed: of the initial weights around the model; the model comes with its own.
    """

    inputs: int = 2
    outputs: int = 1
    node_width: int = 64
    edge_width: int = 16
    width_out: int = 64
    edge_argument: str = "edge_attr"
    channels: int = 1
    kernel: tuple[int, int] | None = None
    extra_types: tuple[tuple[int, bool], ...] = ()
    levels: int = 8
    initial_scale: float = 0.01
    embedding: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        sizes = (self.inputs, self.outputs, self.node_width, self.edge_width, self.width_out, self.channels)
        if min(*sizes, self.levels) < 1 or self.embedding < 0:
            raise SpecError(f"got {self}; expected positive sizes, and an embedding of at least 0.")


class PyGAdapter(Metanetwork):
    """A PyTorch Geometric model between the lifting of parameters and one of the two endings.

    Args:
        model: called as model(x [n, node_width], edge_index [2, 2 e], edge_attr=[2 e, edge_width]) -> [n, width_out],
            with batch=[n] and batch_size= besides where its forward takes them: the network of every node, and their
            number.
        config: see PyGAdapterConfig.

    Raises SpecError for a model in which something pools over a graph that cannot be told which nodes are one.

    >>> from torch_geometric.nn.models import GAT
    >>> from weightedit.delta import propose_delta
    >>> from weightedit.inr.siren import initial_params
    >>> model = GAT(64, 32, num_layers=3, out_channels=64, v2=True, edge_dim=16)
    >>> params = initial_params(5, (2, 32, 32, 1))
    >>> metanet = PyGAdapter(model, PyGAdapterConfig())
    >>> propose_delta(metanet, NetworkSpec.siren((2, 32, 32, 1)), params)["layers.1.weight"].shape
    torch.Size([5, 32, 32])
    """

    declared: tuple[Symmetry, ...] = ("permutation",)

    def __init__(self, model: nn.Module, config: PyGAdapterConfig) -> None:
        super().__init__()
        _check_pooling(model)
        self.model, self.config, self.embedding = model, config, config.embedding
        self._told = [name for name in ("batch", "batch_size") if name in _arguments(model)]
        self.types_in = types_of(config.extra_types, config.channels)
        self.types_out = () if config.embedding else (DELTA,) * config.channels
        self.frame = frame_of(config.kernel, config.channels)
        node, edge, out = config.node_width, config.edge_width, config.width_out
        quantities, entries = 1 + len(config.extra_types), len(self.types_in)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(config.seed)
            self.codes = LayerTable(config.levels, node, spread=0.5)
            self.input_codes = nn.Parameter(0.5 * torch.randn(config.inputs, node))
            self.output_codes = nn.Parameter(0.5 * torch.randn(config.outputs, node))
            self.lift_nodes = nn.Linear(2 * quantities, node)
            self.lift_edges = nn.Linear(entries + 1, edge) if config.edge_argument else None
            if config.embedding:
                self.hidden = nn.Sequential(nn.LayerNorm(out), nn.Linear(out, out), nn.SiLU())
                self.read_out = nn.Linear((1 + config.inputs + config.outputs) * out, config.embedding)
                return
            self.norm = nn.LayerNorm(out)
            self.from_ends = nn.Linear(out, 2 * out)
            self.from_edge = nn.Linear(entries, out, bias=False)
            self.edge_delta = nn.Linear(out, config.channels)
            self.node_delta = nn.Linear(out, 1)
            self.scales = LayerTable(config.levels, 2, mean=config.initial_scale)

    def transform(self, graph: NeuralGraph) -> NeuralGraph:
        """Raises SpecError for networks with other ends, ParamsError for a model that returns other shapes."""
        flat = _ragged(graph)
        layout, constants = flat.layout, flat.layout.constants("permutation", flat.edges)
        size, at_nodes = self._sizes(flat)
        h, scale = self.norm(self._nodes(flat)), self.scales(constants)
        at_target, at_source = self.from_ends(h).chunk(2, -1)
        seen = layout.add_ends(self.from_edge(self._unit(flat.edges, size)), at_target, at_source)
        weights = self.edge_delta(functional.silu(seen)) * size[:, :1] * layout.to_target(scale[:, :1])
        biases = self.node_delta(h) * at_nodes[:, :1] * scale[:, 1:] * (constants.in_degree > 0)
        biases = functional.pad(biases, (0, self.config.channels - 1))
        shapes = [(*x.shape[:-1], self.config.channels) for x in (graph.nodes, graph.edges)]
        return graph.with_features(biases.view(shapes[0]), weights.view(shapes[1]), self.types_out)

    def read(self, graph: NeuralGraph) -> Tensor:
        """Raises as `transform` does."""
        flat = _ragged(graph)
        h = self.hidden(self._nodes(flat))
        constants = flat.layout.constants("permutation", flat.edges)
        inner = ((constants.level > 0) & (constants.height > 0)).unsqueeze(-1).to(h)
        ends = [end.flatten(-2) for end in flat.layout.ends(h)]
        found = self.read_out(torch.cat([flat.layout.network_mean(h, inner), *ends], -1))
        return found if not isinstance(graph.layout, DenseLayout) else found.view(*graph.nodes.shape[:-2], -1)

    def _nodes(self, flat: NeuralGraph) -> Tensor:
        """What the model makes of the nodes, [n, width_out]."""
        ends = (self.config.inputs, self.config.outputs)
        for spec in set(flat.layout.specs):
            if (spec.widths[0], spec.widths[-1]) != ends:
                raise SpecError(
                    f"got a network with {spec.widths[0]} inputs and {spec.widths[-1]} outputs; expected {ends[0]} "
                    f"and {ends[1]}. Hidden widths and depth are free; the two ends are fixed by the config: take one "
                    "made for these."
                )
        layout = flat.layout
        assert isinstance(layout, IndexedLayout)
        constants, (size, at_nodes) = layout.constants("permutation", flat.edges), self._sizes(flat)
        biases = flat.nodes[:, :: self.config.channels]
        x = self.lift_nodes(torch.cat([biases / at_nodes, at_nodes.log()], -1)) + self._codes(constants)
        index = torch.cat([layout.edge_index, layout.edge_index.flip(0)], 1)
        networks = {"batch": layout.network, "batch_size": len(layout.specs)}
        told = {name: networks[name] for name in self._told}
        if self.lift_edges is not None:
            unit = self._unit(flat.edges, size)
            both = [torch.cat([unit, torch.full_like(unit[:, :1], sign)], -1) for sign in (1.0, -1.0)]
            told[self.config.edge_argument] = self.lift_edges(torch.cat(both))
        found = self.model(x, index, **told)
        if not isinstance(found, Tensor) or found.shape != (len(x), self.config.width_out):
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            expected = (len(x), self.config.width_out)
            raise ParamsError(
                f"{type(self.model).__name__} returned {shape}; expected node features {expected}: set width_out to "
                "what it returns."
            )
        return found

    def _sizes(self, flat: NeuralGraph) -> tuple[Tensor, Tensor]:
        """Root mean squares, per quantity, of an edge's layer, [e, Q], and of the layer that enters a node, [n, Q]."""
        layout, constants = flat.layout, flat.layout.constants("permutation", flat.edges)
        square = flat.edges.square().unflatten(-1, (-1, self.config.channels)).mean(-1)
        size = root_of_mean(layout.layer_mean_edges(square))
        at_nodes = layout.sum_at_target(size) / constants.in_degree.clamp(min=1)
        return size, torch.where(constants.in_degree > 0, at_nodes, 1.0)

    def _unit(self, edges: Tensor, size: Tensor) -> Tensor:
        """Edges [e, C] over the sizes of their quantities."""
        return edges / size.repeat_interleave(self.config.channels, -1)

    def _codes(self, constants: NodeConstants) -> Tensor:
        """[n, node_width]: one code per level, and one per input and output neuron."""
        is_input, is_output = (constants.level == 0).unsqueeze(-1), (constants.height == 0).unsqueeze(-1)
        first = self.input_codes[constants.position.clamp(max=self.config.inputs - 1)]
        last = self.output_codes[constants.position.clamp(max=self.config.outputs - 1)]
        return self.codes(constants) + is_input * first + is_output * last


def _arguments(module: nn.Module) -> Collection[str]:
    """Names of what a model's forward takes; those of a torch_geometric.nn.Sequential are not in its signature."""
    module = getattr(module, "_orig_mod", module)  # torch.compile's wrapper takes anything
    stated = getattr(getattr(module, "signature", None), "param_dict", None)
    return inspect.signature(module.forward).parameters if stated is None else stated


def _pools(module: nn.Module) -> bool:
    """Whether it needs `batch` to tell graphs apart: PyTorch Geometric's normalizations over graphs, and GPSConv."""
    of_graphs = ("torch_geometric.nn.norm", "torch_geometric.nn.conv.gps_conv")
    found = type(module).__module__.startswith(of_graphs) and "batch" in _arguments(module)
    return found and getattr(module, "mode", "graph") != "node"


def _check_pooling(model: nn.Module) -> None:
    """Raises SpecError if something that pools lies in a module that is not told the graphs, and so cannot tell it."""
    for outer in model.modules():
        if type(outer).forward is nn.Module.forward or "batch" in _arguments(outer):
            continue
        if inner := [type(module).__name__ for module in outer.modules() if _pools(module)]:
            raise SpecError(
                f"got {inner[0]} that pools over a graph in {type(outer).__name__}, which takes no batch; expected "
                "one that hands batch on: else all networks of a batch would be pooled as one. Give its forward an "
                "argument batch, or take a normalization of single nodes (LayerNorm with mode node)."
            )


@lru_cache(maxsize=16)
def _copies(spec: NetworkSpec, count: int, device: torch.device) -> RaggedLayout:
    return RaggedLayout([spec] * count, device)


def _ragged(graph: NeuralGraph) -> NeuralGraph:
    """The same networks as one ragged graph; a dense stack as that many components."""
    if not isinstance(graph.layout, DenseLayout):
        return graph
    nodes, edges = graph.nodes.flatten(0, -2), graph.edges.flatten(0, -2)
    layout = _copies(graph.layout.spec, len(nodes) // graph.nodes.shape[-2], nodes.device)
    return NeuralGraph(nodes, edges, layout.in_frame(graph.layout.frame), graph.types)
