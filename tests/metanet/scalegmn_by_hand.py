"""The paper's ScaleGMN neuron by neuron, edge by edge, from the weights of a ScaleGMN: slow and obvious.

Kalogeropoulos et al. 2024, section 5, as metanet/scalegmn/layers.py legends it. A neuron is a pair (level, number), an
edge a pair (target, source) of them. Nothing of layouts, node constants or the factors' masks is used.
"""

import math
from dataclasses import dataclass

import torch
from torch.nn import functional

from weightedit.network.features import features_from_params
from weightedit.network.spec import NeuronGroup


@dataclass
class Graph:
    """One network: its neurons' groups and biases, its edges' weights, and the signs that lead out of phases."""

    groups: dict
    biases: dict
    weights: dict
    side: dict


def read_graph(spec, params, symmetry):
    features = features_from_params(spec, params)
    groups = {(level, k): NeuronGroup() for level, width in enumerate(spec.widths) for k in range(width)}
    for level, group in enumerate(spec.neuron_groups(symmetry), start=1):
        groups.update({(level, k): group for k in range(spec.widths[level])})
    channels = features.weights[0].shape[-1]
    biases = {(0, k): torch.zeros(channels, dtype=torch.float64) for k in range(spec.widths[0])}
    weights, side = {}, dict.fromkeys(groups, 1.0)
    for level, layer in enumerate(spec.layers, start=1):
        for i in range(layer.fan_out):
            bias = features.biases[level - 1][i].clone()
            if groups[level, i].shift:
                half_period = math.pi / layer.activation.parameter
                turns = round(float(bias[0]) / half_period)
                bias[0] -= turns * half_period
                side[level, i] = (-1.0) ** turns
            biases[level, i] = bias
            for j in range(layer.fan_in):
                weights[(level, i), (level - 1, j)] = features.weights[level - 1][i, j] * side[level - 1, j]
    return Graph(groups, biases, weights, side)


def perceptron(module, lifted):
    """The rest of an MLP after its first matrix: LayerNorm of the biased, SiLU."""
    return functional.silu(module.norm(module.bias + lifted))


def direction(x, group):
    """x / |x| where a positive factor acts."""
    return x / x.square().sum().sqrt() if group.scale and bool(x.any()) else x


def scale_inv(module, see, x, group, signs, codes=0):
    """MLP(x~) of one vector, `see` the first matrix of the MLP."""
    x = direction(x, group)
    if not group.flip:
        return module.out(perceptron(module.hidden, see @ x + codes))
    if signs == "canonicalization":
        return module.out(perceptron(module.hidden, see @ x.abs() + codes))
    both = perceptron(module.hidden, see @ x + codes) + perceptron(module.hidden, -(see @ x) + codes)
    return module.out(both)


def message(module, graph, receiver, sender, h, edge, codes, signs):
    """ScaleEq([h_i, ReScaleEq(h_j, e)])"""
    product = (module.from_sender.weight @ h[sender]) * (module.from_edge.weight @ edge)
    joined = torch.cat([h[receiver], product])
    keep = torch.cat([module.keep_receiver.weight, module.keep_product.weight], 1)
    see = torch.cat([module.see_receiver.weight, module.see_product.weight], 1)
    known = 0
    if module.see_codes is not None:
        known = module.see_codes[0].weight @ codes[receiver] + module.see_codes[1].weight @ codes[sender]
    return (keep @ joined) * scale_inv(module, see, joined, graph.groups[receiver], signs, known)


def edge_update(module, graph, target, source, h, edge, signs):
    """G e * ScaleInv(h_i, h_j)"""
    forms = []
    for end in (target, source):
        group, x = graph.groups[end], direction(h[end], graph.groups[end])
        if group.flip and signs == "canonicalization":
            x = x.abs()
        elif group.flip:
            lift, hidden = module.symmetrize
            x = perceptron(hidden, lift.weight @ x) + perceptron(hidden, -(lift.weight @ x))
        forms.append(x)
    lifted = module.see_target.weight @ forms[0] + module.see_source.weight @ forms[1]
    return (module.keep.weight @ edge) * module.out(perceptron(module.hidden, lifted))


def layer_by_hand(layer, graph, h, along, against, codes, signs):
    """New node features and edge features, all from the old ones."""
    new = {}
    for i in h:
        zero = torch.zeros_like(h[i])
        joined = [h[i], zero + sum(
            message(layer.message, graph, i, source, h, along[i, source], codes, signs)
            for target, source in graph.weights if target == i
        )]  # fmt: skip
        if layer.message_back is not None:
            joined.append(zero + sum(
                message(layer.message_back, graph, i, target, h, against[target, source], codes, signs)
                for target, source in graph.weights if source == i
            ))  # fmt: skip
        x, update = torch.cat(joined), layer.update
        known = 0 if update.see_codes is None else update.see_codes.weight @ codes[i]
        found = (update.keep.weight @ x) * scale_inv(update, update.see.weight, x, graph.groups[i], signs, known)
        new[i] = h[i] + found if layer.skip else found
    if layer.update_edges is not None:
        along = {pair: edge_update(layer.update_edges, graph, *pair, h, e, signs) for pair, e in along.items()}
    if layer.update_back is not None:
        against = {pair: edge_update(layer.update_back, graph, *pair, h, e, signs) for pair, e in against.items()}
    return new, along, against


def node_code(metanet, spec, neuron):
    (level, number), table = neuron, metanet.node_codes
    if level in (0, spec.depth):
        return (metanet.output_codes if level else metanet.input_codes)[number]
    return level_entry(table, level, spec.depth)


def level_entry(table, level, depth):
    last = len(table.from_input) - 1
    return table.from_input[min(level, last)] + table.from_output[min(depth - level, last)]


@torch.no_grad()
def scalegmn_by_loops(metanet, spec, params):
    """(weight deltas, bias deltas) per layer, or the vector, of one network."""
    config = metanet.config
    graph, width = read_graph(spec, params, config.symmetry), config.width
    codes = {i: node_code(metanet, spec, i) for i in graph.groups} if config.node_codes else None
    h = {}
    for i, bias in graph.biases.items():
        h[i] = metanet.lift_nodes.weight @ bias
        if codes is not None:
            h[i] = h[i] + codes[i] if i[0] in (0, spec.depth) else h[i] * codes[i]
    along, against = {}, {}
    for pair, w in graph.weights.items():
        scaled = any(graph.groups[end].scale for end in pair)
        back = w / w.square().sum() if scaled and bool(w.any()) else w
        along[pair] = metanet.lift_edges.weight @ w
        against[pair] = metanet.lift_back.weight @ back if config.bidirectional else None
        if config.edge_codes:
            code = level_entry(metanet.edge_codes, pair[0][0], spec.depth)
            along[pair] = along[pair] * code[:width]
            against[pair] = against[pair] * code[width:] if config.bidirectional else None
    for layer in metanet.layers:
        h, along, against = layer_by_hand(layer, graph, h, along, against, codes, config.signs)
    return vector(metanet, spec, graph, h) if config.embedding else deltas(metanet, spec, graph, h, along)


def vector(metanet, spec, graph, h):
    ends = [torch.cat([h[level, k] for k in range(spec.widths[level])]) for level in (0, spec.depth)]
    if metanet.of_hidden is None:
        return metanet.readout(ends[1])
    see, signs = metanet.of_hidden.see.weight, metanet.config.signs
    hidden = [i for i in h if 0 < i[0] < spec.depth]
    total = sum(scale_inv(metanet.of_hidden, see, h[i], graph.groups[i], signs) for i in hidden)
    return metanet.readout(torch.cat([total, *ends]))


def deltas(metanet, spec, graph, h, along):
    weights, biases = [], []
    for level, layer in enumerate(spec.layers, start=1):
        of_weights, of_biases = level_entry(metanet.scales, level, spec.depth)
        rows = []
        for i in range(layer.fan_out):
            row = []
            for j in range(layer.fan_in):
                pair = (level, i), (level - 1, j)
                row.append(metanet.read_edges.weight @ along[pair] * of_weights * graph.side[pair[1]])
            rows.append(torch.stack(row))
        weights.append(torch.stack(rows))
        biases.append(torch.stack([metanet.read_nodes.weight @ h[level, i] * of_biases for i in range(layer.fan_out)]))
    return weights, biases
