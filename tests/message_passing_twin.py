"""GaugeGMN a second time, as plain torch_geometric MessagePassing: slow, obvious, and no line shared with the layers.

The twin takes its weights from a GaugeGMN and computes the same function on a batch of networks, the way graph code is
usually written: the ends of every edge are gathered, and all linear maps that an edge needs are applied per edge.
Message passing runs through `propagate`, from source to target and, in the other direction, from target to source.
Constants of the nodes come from loops over neurons. It reads nothing of neural_graph.py, ragged.py (but the edge
order of `to_pyg`), canonicalization.py or probing.py. Letters as in weightedit/metanet/gauge_gmn/layers.py.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch_geometric.data import Data
from torch_geometric.nn import MessagePassing

from weightedit.metanet.gauge_gmn.layers import OddPair
from weightedit.metanet.gauge_gmn.network import GaugeGMN
from weightedit.network.spec import Activation, NetworkSpec, Symmetry


@dataclass
class Structure:
    """What a batch of networks looks like, from `read_structure`; all masks are [n, 1]."""

    edge_index: Tensor
    scale: Tensor
    flip: Tensor
    shift: Tensor
    level: Tensor
    height: Tensor
    position: Tensor
    layer_of_edge: Tensor
    layer_of_node: Tensor
    activations: dict[Activation, Tensor]  # the nodes that apply each
    depth: int

    def to(self, device: torch.device | str) -> "Structure":
        """The same on another device."""
        moved = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **moved, activations={a: nodes.to(device) for a, nodes in self.activations.items()})


def read_structure(data: Data, symmetry: Symmetry) -> Structure:
    """Everything about the nodes of a batch made by `to_pyg`, neuron by neuron."""
    rows: list[tuple[float, float, float, int, int, int, int]] = []
    activations: dict[Activation, list[int]] = {}
    specs = [data.spec] if isinstance(data.spec, str) else data.spec
    layers = 0
    for text in specs:
        spec = NetworkSpec.from_dict(json.loads(text))
        for level, width in enumerate(spec.widths):
            hidden = 0 < level < spec.depth
            for neuron in range(width):
                group = spec.neuron_groups(symmetry)[level - 1] if hidden else None
                masks = (group.scale, group.flip, group.shift) if group else (False, False, False)
                rows.append((*masks, level, spec.depth - level, 0 if hidden else neuron, layers + level))
                if level > 0:
                    activations.setdefault(spec.layers[level - 1].activation, []).append(len(rows) - 1)
        layers += len(spec.widths)
    table = torch.tensor(rows, dtype=torch.long)
    scale, flip, shift = (table[:, i : i + 1].to(data.x) for i in range(3))
    return Structure(
        data.edge_index,
        scale,
        flip,
        shift,
        *(table[:, i] for i in (3, 4, 5)),
        layer_of_edge=table[data.edge_index[1], 6],
        layer_of_node=table[:, 6],
        activations={activation: torch.tensor(nodes) for activation, nodes in activations.items()},
        depth=int(table[:, 3].max()),
    )


class Summing(MessagePassing):
    """Sums (or means) of `values` [e, C] at the targets, or with flow "target_to_source" at the sources."""

    def __init__(self, flow: str, aggr: str) -> None:
        super().__init__(aggr=aggr, flow=flow)

    def forward(self, edge_index: Tensor, values: Tensor, nodes: int) -> Tensor:
        return self.propagate(edge_index, values=values, size=(nodes, nodes))

    def message(self, values: Tensor) -> Tensor:
        return values


class Messages(MessagePassing):
    """sum over edges of e * L(x at the other end), L applied on every edge, over the root of their number."""

    def __init__(self, weight: Tensor, bias: Tensor, flow: str) -> None:
        super().__init__(aggr="add", flow=flow)
        self.weight, self.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())

    def forward(self, edge_index: Tensor, x: Tensor, free: Tensor, edges: Tensor, degree: Tensor) -> Tensor:
        total = self.propagate(edge_index, x=x, free=free, edges=edges)
        return total / degree.clamp(min=1).sqrt()

    def message(self, x_j: Tensor, free_j: Tensor, edges: Tensor) -> Tensor:
        return edges * (functional.linear(x_j, self.weight) + free_j * self.bias)


class Layer(MessagePassing):
    """One EdgeUpdate and the NodeUpdate after it. The parameters are clones of theirs."""

    def __init__(self, edge_update: nn.Module, node_update: nn.Module, bidirectional: bool) -> None:
        super().__init__(flow="source_to_target")
        width = edge_update.edge_width
        self.bidirectional = bidirectional
        self.end = nn.ParameterDict()
        x, y = one_by_one(edge_update.ends)
        for side, linear in (("x", x), ("y", y)):
            self.end[f"{side}_weight"] = linear.weight.detach()[: 2 * width].clone()
            self.end[f"{side}_bias"] = linear.bias.detach()[: 2 * width].clone()
        third = slice(2 * width, None)
        self.to_target = Messages(y.weight.detach()[third], y.bias.detach()[third], "source_to_target")
        if bidirectional:
            self.to_source = Messages(x.weight.detach()[third], x.bias.detach()[third], "target_to_source")
        self.mean_at_target, self.mean_at_source = (
            Summing(flow, "mean") for flow in ("source_to_target", "target_to_source")
        )
        # Linear(z_i) + Linear(z_j) is one linear map of the two ends, concatenated.
        both, bias = edge_update.from_invariant.weight.detach(), edge_update.from_invariant.bias.detach()
        self.end["z_weight"] = torch.cat([both[:width], both[width:]], 1).clone()
        self.end["z_bias"] = (bias[:width] + bias[width:]).clone()
        self.product, self.gate, self.rank_gate = edge_update.product, edge_update.gate, edge_update.rank_gate
        self.even, self.node = edge_update.even, Node(node_update)

    def forward(self, state: dict[str, Tensor], structure: Structure, degrees: tuple[Tensor, Tensor]) -> dict:
        index, nodes = structure.edge_index, len(state["z"])
        free = 1 - structure.flip
        x, y = _unit(state["x"]), _unit(state["y"])
        edges, v = self.edge_updater(index, x=x, y=y, z=state["z"], free=free, edges=state["e"], even=state["even"])
        odd = [self.to_target(index, y, free, edges, degrees[0])]
        even = [self.mean_at_target(index, v, nodes)]
        if self.bidirectional:
            odd.append(self.to_source(index, x, free, edges, degrees[1]))
            even.append(self.mean_at_source(index, v, nodes))
        return {**self.node(state, structure, tuple(odd), tuple(even)), "e": edges}

    def edge_update(
        self,
        x_i: Tensor,
        y_j: Tensor,
        z_i: Tensor,
        z_j: Tensor,
        free_i: Tensor,
        free_j: Tensor,
        edges: Tensor,
        even: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Everything on one edge: i is its target, j its source."""
        end = self.end
        x, x_rank = (functional.linear(x_i, end["x_weight"]) + free_i * end["x_bias"]).chunk(2, -1)
        y, y_rank = (functional.linear(y_j, end["y_weight"]) + free_j * end["y_bias"]).chunk(2, -1)
        ends = functional.linear(torch.cat([z_i, z_j], -1), end["z_weight"], end["z_bias"])
        v = self.product(edges * x * y) / (1 + edges.square().mean(1, keepdim=True)).sqrt() + ends
        if self.even is not None:
            v = v + self.even(even)
        v = functional.silu(v)
        return edges * (1 + self.gate(v)) + x_rank * y_rank * self.rank_gate(v), v


class Node(nn.Module):
    """A NodeUpdate, written out."""

    def __init__(self, update: nn.Module) -> None:
        super().__init__()
        self.update = update

    def forward(self, state: dict[str, Tensor], structure: Structure, odd: tuple, even: tuple) -> dict[str, Tensor]:
        u, free = self.update, 1 - structure.flip
        bridge = _odd(u.bridge, state["s"], 1 - structure.shift)
        x, y = _unit(state["x"]), _unit(state["y"])
        width = x.shape[1]
        mix, pair = one_by_one(u.mix), one_by_one(u.pair)
        mixed_x = _unit(_odd(mix[0], torch.cat([x, bridge[:, width:] * y, *odd[:1]], 1), free))
        mixed_y = _unit(_odd(mix[1], torch.cat([y, bridge[:, :width] * x, *odd[1:]], 1), free))
        pairs = []
        for linear, mixed in zip(pair, (mixed_x, mixed_y), strict=True):
            both = _odd(linear, mixed, free)
            pairs.append(both[:, :width] * both[:, width:])
        found = u.out(functional.silu(u.hidden(u.norm(torch.cat([state["z"], *even, *pairs], 1)))))
        return {
            **state,
            "x": state["x"] + found[:, width : 2 * width] * mixed_x,
            "y": state["y"] + found[:, 2 * width :] * mixed_y,
            "z": state["z"] + found[:, :width],
        }


class GaugeGMNTwin(nn.Module):
    """The function of `metanet`, from its weights. Layers hold clones of the weights they cut into pieces."""

    def __init__(self, metanet: GaugeGMN) -> None:
        super().__init__()
        assert not metanet.config.refit, "the refit works on whole networks, no messages are passed in it"
        self.metanet = metanet
        self.encode = Node(metanet.encode)
        pairs = zip(metanet.edge_updates, metanet.node_updates, strict=True)
        self.layers = nn.ModuleList(Layer(e, n, metanet.config.bidirectional) for e, n in pairs)
        self.sum_at_target = Summing("source_to_target", "add")
        self.sum_at_source = Summing("target_to_source", "add")

    def forward(self, data: Data, structure: Structure) -> tuple[Tensor, Tensor]:
        """Weight deltas [e, 1] and bias deltas [n, 1] for data.edge_attr [e, C] and data.x [n, C]."""
        m, (source, target) = self.metanet, structure.edge_index
        gauge = self.gauge(data, structure)
        ratio = gauge[target] / gauge[source]
        powers = torch.tensor([kind.scale for kind in m.types_in], device=gauge.device)
        edges, nodes = data.edge_attr / ratio**powers, data.x / gauge**powers
        odd = [c for c, kind in enumerate(m.types_in) if kind.odd]
        even = [c for c, kind in enumerate(m.types_in) if not kind.odd]
        size = _root(_group_mean(edges[:, odd].square(), structure.layer_of_edge))
        raw = edges[:, odd] / size
        readings = self.readings(data, structure, gauge, raw[:, :1])
        state = self.lift(structure, readings, nodes, size, odd, even) | {"e": raw, "even": edges[:, even]}
        state = self.encode(state, structure, (), ())
        state["e"] = m.lift_edges(state["e"])
        sums, ones = (self.sum_at_target, self.sum_at_source), torch.ones_like(raw[:, :1])
        degrees = tuple(sum_at(structure.edge_index, ones, len(nodes)) for sum_at in sums)
        for layer in self.layers:
            state = layer(state, structure, degrees)
        weights, biases = self.head(state, structure, raw[:, :1], readings)
        return weights * ratio * size[:, :1], biases * gauge * self.size_at_nodes(structure, size)[:, :1]

    def gauge(self, data: Data, structure: Structure) -> Tensor:
        """n_i^2 = sum_j w_ij^2 n_j^2 + b_i^2, level by level (no dead neurons here)."""
        gauge = torch.ones_like(data.x[:, :1])
        for level in range(1, structure.depth + 1):
            square = data.x[:, :1].square() + self.sum_at_target(
                structure.edge_index,
                data.edge_attr[:, :1].square() * gauge[structure.edge_index[0]].square(),
                len(gauge),
            )
            here = (structure.level == level).unsqueeze(1) & (structure.scale > 0)
            gauge = torch.where(here, torch.where(here, square, 1.0).sqrt(), gauge)
        return gauge

    def readings(self, data: Data, structure: Structure, gauge: Tensor, weights: Tensor) -> dict[str, Tensor]:
        """All that the probes see."""
        values, slopes = self.activations(data, structure)
        values, forecast = values / gauge, torch.zeros_like(values)
        readings = {"values": values, "slopes": slopes}
        if self.metanet.forecast is not None:
            forecast, readings["below"] = self.send_down(structure, values, slopes, weights)
        return {**readings, "forecast": forecast}

    def send_down(self, structure: Structure, values: Tensor, slopes: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """The forecast at the outputs, sent down as a gradient is, over the root of the number of nodes above."""
        index = structure.edge_index
        wished = (structure.height == 0).unsqueeze(1) * self.metanet.forecast.body(values)
        degree = self.sum_at_source(index, torch.ones_like(weights), len(values)).clamp(min=1)
        before, after = torch.zeros_like(values), torch.zeros_like(values)
        for level in range(structure.depth, -1, -1):
            here = (structure.level == level).unsqueeze(1)
            above = self.sum_at_source(index, weights * before[index[1]], len(values)) / degree.sqrt()
            after = torch.where(here, above, after)
            before = torch.where(here, above * slopes + wished, before)
        return before, after

    def activations(self, data: Data, structure: Structure) -> tuple[Tensor, Tensor]:
        """Activations and slopes [n, 1 + P]: at the bias alone, and of the probes."""
        bias, columns = data.x[:, :1], [data.x[:, :1].expand(-1, 1)]
        probes = self.metanet.probes
        if probes is not None:
            columns.append(torch.zeros(len(bias), len(probes)).to(bias))
        z = torch.cat(columns, 1)
        values, slopes = torch.zeros_like(z), torch.ones_like(z)
        inputs = structure.level == 0
        if probes is not None:
            start = torch.cat([torch.zeros(1, probes.shape[1]).to(probes), probes]).T
            values = torch.where(inputs.unsqueeze(1), start[structure.position.clamp(max=len(start) - 1)], values)
        for level in range(1, structure.depth + 1):
            sent = data.edge_attr[:, :1] * values[structure.edge_index[0]]
            z = self.sum_at_target(structure.edge_index, sent, len(bias))
            z = bias + torch.cat([torch.zeros_like(z[:, :1]), z[:, 1:]], 1)
            for activation, nodes in structure.activations.items():
                here = torch.zeros(len(bias), 1, dtype=torch.bool, device=bias.device)
                here[nodes[structure.level[nodes] == level]] = True
                values = torch.where(here, activation(z), values)
                slopes = torch.where(here, activation.slope(z), slopes)
        return values, slopes

    def lift(self, structure, readings, nodes, size, odd, even) -> dict[str, Tensor]:
        m, free = self.metanet, 1 - structure.flip
        values, slopes = readings["values"], readings["slopes"]
        seen_in, seen_out = [values * slopes], [values]
        if m.forecast is not None:
            seen_in.append(readings["forecast"])
            seen_out.append(readings["below"])
        biases = nodes[:, odd].clone()
        biases[:, 0] = torch.where(structure.shift[:, 0] > 0, 0.0, biases[:, 0])
        bias_size = _root(_group_mean(biases.square(), structure.layer_of_node))
        at_nodes = self.size_at_nodes(structure, size)
        invariants = torch.cat([at_nodes.log(), bias_size[:, :1].log(), nodes[:, even]], 1)
        return {
            "s": m.lift_slopes(slopes),
            "x": _odd(m.lift.incoming, torch.cat([*seen_in, biases / bias_size], 1), free),
            "y": _odd(m.lift.outgoing, torch.cat(seen_out, 1), free),
            "z": m.lift_invariant(invariants) + self.codes(structure),
        }

    def codes(self, structure: Structure) -> Tensor:
        m, position = self.metanet, structure.position
        at_input = m.input_codes[position.clamp(max=len(m.input_codes) - 1)]
        at_output = m.output_codes[position.clamp(max=len(m.output_codes) - 1)]
        is_input, is_output = ((x == 0).unsqueeze(1) for x in (structure.level, structure.height))
        return _entries(m.codes, structure) + is_input * at_input + is_output * at_output

    def size_at_nodes(self, structure: Structure, size: Tensor) -> Tensor:
        """The size of the layer that enters a node; 1 at the inputs."""
        found = torch.ones(len(structure.level), size.shape[1]).to(size)
        return found.index_copy(0, structure.edge_index[1], size)

    def head(
        self, state: dict[str, Tensor], structure: Structure, raw: Tensor, readings: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        head, free, (source, target) = self.metanet.head, 1 - structure.flip, structure.edge_index
        x = _unit(state["x"]) * head.gate_incoming(state["z"])
        y = _unit(state["y"]) * head.gate_outgoing(state["z"])
        before, after = (_odd(*given, free) for given in zip(one_by_one(head.change), (x, y), strict=True))
        change = before + readings["slopes"] * after
        change = change + readings["forecast"] * head.gate_forecast(state["z"])
        change = change / change.shape[1] ** 0.5
        x, y = (_odd(*given, free) for given in zip(one_by_one(head.rank), (x, y), strict=True))
        scale = _entries(head.scales, structure)
        factor = head.product(state["z"])
        rank_one = (x[target] * y[source]).sum(1, keepdim=True) / x.shape[1] ** 0.5
        reading = (change[target] * readings["values"][source]).sum(1, keepdim=True)
        weights = raw * (factor[target, :1] + factor[source, 1:]) + head.read_edges(state["e"]) + rank_one + reading
        biases = _odd(head.read_bias, x, free) + change.sum(1, keepdim=True)
        return weights * scale[target, :1], biases * scale[:, 1:]


class One(NamedTuple):
    """A linear map, [out, in], and its bias."""

    weight: Tensor
    bias: Tensor


def one_by_one(pair: nn.Module) -> Sequence[Any]:
    """The incoming and the outgoing map of an OddPair or UnevenPair."""
    if isinstance(pair, OddPair):
        return [One(weight.mT, bias) for weight, bias in zip(pair.weight, pair.bias, strict=True)]
    return [pair.incoming, pair.outgoing]


def _odd(linear: Any, x: Tensor, free: Tensor) -> Tensor:
    return x @ linear.weight.T + free * linear.bias


def _unit(x: Tensor) -> Tensor:
    return x / (x.square().mean(1, keepdim=True) + 1e-6).sqrt()


def _root(square: Tensor) -> Tensor:
    return torch.where(square > 0, square.clamp(min=torch.finfo(square.dtype).tiny).sqrt(), 1.0)


def _group_mean(values: Tensor, group: Tensor) -> Tensor:
    count = int(group.max()) + 1
    total = torch.zeros(count, values.shape[1]).to(values).index_add(0, group, values)
    number = torch.zeros(count).to(values).index_add(0, group, torch.ones(len(group)).to(values))
    return (total / number.clamp(min=1).unsqueeze(1))[group]


def _entries(table: nn.Module, structure: Structure) -> Tensor:
    last = len(table.from_input) - 1
    return table.from_input[structure.level.clamp(max=last)] + table.from_output[structure.height.clamp(max=last)]
