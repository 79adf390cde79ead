"""NG-GNN and NG-T as the papers write them, neuron by neuron and pair by pair: slow, obvious, from the same weights.

Kofinas et al. 2024, section 3 and appendix; PNA: Corso et al. 2020, eq. 5 to 7; relational attention: Diao & Loynd
2023, eq. 4 to 9. Indices are (receiver, sender). Everything is a dict over neurons (level, position) or pairs of them.
"""

import math

import torch
from torch.nn import functional

from weightedit.network.layer import ACTIVATION_NAMES
from weightedit.network.link import LINK_KINDS


class Network:
    """One network as neurons, weights (i, j): i receives from j in the network, and biases."""

    def __init__(self, spec, params):
        self.spec = spec
        self.neurons = [(level, k) for level, width in enumerate(spec.widths) for k in range(width)]
        self.inner = [neuron for neuron in self.neurons if neuron[0] > 0]
        self.weight, self.bias = {}, {}
        for level, layer in enumerate(spec.layers, start=1):
            for i in range(layer.fan_out):
                self.bias[level, i] = params[layer.bias][i]
                for j in range(layer.fan_in):
                    self.weight[(level, i), (level - 1, j)] = params[layer.weight][i, j]

    def size(self, values):
        """Root mean square, 1 for zeros."""
        square = sum(value**2 for value in values) / max(len(values), 1)
        return square.sqrt() if bool(square > 0) else torch.ones((), dtype=torch.float64)

    def weight_size(self, level):
        return self.size([w for (i, _), w in self.weight.items() if i[0] == level])

    def bias_size(self, level):
        return self.size([b for i, b in self.bias.items() if i[0] == level] or [torch.zeros((), dtype=torch.float64)])

    def activation(self, level):
        return self.spec.layers[level - 1].activation

    def activations(self, point):
        """Every neuron's activation at one input."""
        found = {(0, k): point[k] for k in range(self.spec.widths[0])}
        for i in self.inner:
            z = self.bias[i] + sum(self.weight[i, j] * found[j] for j in self.neurons if j[0] == i[0] - 1)
            found[i] = self.activation(i[0])(z)
        return found


def _entry(table, level, height):
    last = len(table.from_input) - 1
    return table.from_input[min(level, last)] + table.from_output[min(height, last)]


def waves(features, value):
    """[root 2 cos(2 pi f x) for every frequency f, then root 2 sin(2 pi f x)], or x itself without frequencies."""
    if features is None:
        return value.reshape(1)
    phases = [2 * math.pi * f * value for f in features.frequencies[:, 0]]
    return math.sqrt(2) * torch.stack([*(phase.cos() for phase in phases), *(phase.sin() for phase in phases)])


def lift(stage, network, *, loops):
    """Node features v[i] and pair features e[i, j]."""
    spec, v, e = network.spec, {}, {}
    probed = [network.activations(point) for point in stage.probes] if stage.probes is not None else []
    for i in network.neurons:
        level, position = i
        bias, bias_size = network.bias.get(i, torch.zeros(()).double()), network.bias_size(level)
        entries = [*waves(stage.waves_of_nodes, bias / bias_size), network.weight_size(level).log(), bias_size.log()]
        if probed:
            seen = [at[k] for at in probed for k in network.neurons if k[0] == level]
            entries += [at[i] / network.size(seen) for at in probed] + [network.size(seen).log()]
        code = _entry(stage.codes, level, spec.depth - level)
        if level == 0:
            code = code + stage.input_codes[position]
        if level == spec.depth:
            code = code + stage.output_codes[position]
        kind = 0 if level == 0 else 1 + ACTIVATION_NAMES.index(network.activation(level).name)
        v[i] = stage.lift_nodes(torch.stack(entries)) + code + stage.activations.weight[kind]
    for (i, j), weight in network.weight.items():
        scaled = waves(stage.waves_of_pairs, weight / network.weight_size(i[0]))
        e[i, j] = stage.lift_forward(scaled)
        if stage.lift_backward is not None:
            e[j, i] = stage.lift_backward(scaled) + stage.lift_forward.bias
    if loops:
        nothing = waves(stage.waves_of_pairs, torch.zeros((), dtype=torch.float64))
        e.update({(i, i): stage.lift_forward(nothing) for i in network.neurons})
    return v, e


def pna_layer(layer, v, e):
    """NG-GNN: m_ij = scale(e_ij) * m([v_i, v_j]) + shift(e_ij); PNA of them; e_ij = phi_e([v_i, e_ij, v_j])."""
    new = {}
    for i in v:
        messages = []
        for pair in e:
            receiver, j, *_ = pair
            if receiver == i:
                scale, shift = layer.film(e[pair]).chunk(2)
                messages.append(scale * (layer.message_receiver(v[i]) + layer.message_sender(v[j])) + shift)
        d = len(messages)
        if d:
            m = torch.stack(messages)
            std = ((m**2).mean(0) - m.mean(0) ** 2 + 1e-5).sqrt()
            aggregates = torch.cat([m.mean(0), m.min(0).values, m.max(0).values, std])
        else:
            aggregates = torch.zeros(4 * len(v[i]), dtype=torch.float64)
        ratio = math.log(d + 1) / math.log(layer.typical_degree + 1)
        factor = {"identity": 1.0, "amplification": ratio, "attenuation": 1 / ratio if d else 0.0}
        received = torch.cat([factor[name] * aggregates for name in layer.scalers])
        new[i] = functional.silu(layer.norm(layer.update(torch.cat([v[i], received]))))
    if layer.edge_pairs is None:
        return new, e
    pairs = {}
    for pair in e:
        i, j, *_ = pair
        seen = layer.edge_pairs(e[pair]) + layer.edge_receiver(new[i]) + layer.edge_sender(new[j])
        pairs[pair] = layer.edge_out(functional.silu(seen))
    return new, pairs


def attention(module, v, e):
    """Relational attention over the pairs in e, as a masked softmax over all neurons, head by head."""
    heads, neurons, result = module.heads, list(v), {}
    for i in neurons:
        q, _, _ = module.from_nodes(v[i]).chunk(3)
        outputs = []
        for head in range(heads):
            logits, values = [], []
            for j in neurons:
                _, k, value = module.from_nodes(v[j]).chunk(3)
                part = slice(head * len(q) // heads, (head + 1) * len(q) // heads)
                if (i, j) in e:
                    to_q, to_k, scale, shift = module.from_pairs(e[i, j]).chunk(4)
                    query, key = (q + to_q)[part], (k + to_k)[part]
                    logits.append((query * key).sum() / math.sqrt(len(query)))
                    values.append((scale * value + shift)[part])
                else:
                    logits.append(torch.tensor(-math.inf, dtype=torch.float64))
                    values.append(torch.full_like(value[part], 7.0))
            outputs.append(torch.softmax(torch.stack(logits), 0) @ torch.stack(values))
        result[i] = torch.cat(outputs)
    return result


def relational_layer(layer, v, e):
    """NG-T: attention and MLP with residuals and LayerNorms; e_ij from [e_ij, e_ji], v_i, v_j."""
    attended, new = attention(layer.attention, v, e), {}
    for i in v:
        x = layer.norms[0](v[i] + layer.out(attended[i]))
        new[i] = layer.norms[1](x + layer.mlp(x))
    if layer.edge_both is None:
        return new, e
    pairs = {}
    for i, j in e:
        seen = layer.edge_both(torch.cat([e[i, j], e[j, i]])) + layer.edge_receiver(new[i]) + layer.edge_sender(new[j])
        x = layer.edge_norms[0](e[i, j] + layer.edge_out(functional.gelu(seen)))
        pairs[i, j] = layer.edge_norms[1](x + layer.edge_mlp(x))
    return new, pairs


def features(metanet, spec, params, layer, *, loops):
    """The last node and pair features, and the network."""
    network = Network(spec, params)
    v, e = lift(metanet.input, network, loops=loops)
    for one in metanet.layers:
        v, e = layer(one, v, e)
    return network, v, e


def deltas(metanet, network, v, e):
    """Deltas by name: every weight off its own pair, every bias off its own neuron."""
    spec, ending = network.spec, metanet.ending
    found = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in spec.param_shapes().items()}
    for level, layer in enumerate(spec.layers, start=1):
        scale = _entry(ending.scales, level, spec.depth - level) * network.weight_size(level)
        for i in range(layer.fan_out):
            found[layer.bias][i] = scale[1] * ending.read_nodes(v[level, i])[0]
            for j in range(layer.fan_in):
                found[layer.weight][i, j] = scale[0] * ending.read_edges(e[(level, i), (level - 1, j)])[0]
    return found


def pooled(metanet, network, v):
    """The vector that is read off the network."""
    outputs = [v[i] for i in network.neurons if i[0] == network.spec.depth]
    everywhere = torch.stack(list(v.values())).mean(0)
    return metanet.ending.out(torch.cat([everywhere, *outputs]))


class LinkedNetwork:
    """One network that is no chain: neurons, and edges (i, j, link), of which two may join the same neurons.

    Kofinas et al. 2024: a residual addition is edges of weight 1 between neurons and their counterparts; a
    normalization is neurons of its own, its gains on edges from their counterparts, its biases on them.

    Args:
        levels: width, name of the bias or None, and name of the activation, each reading from the one before at most.
        links: source and target level, kind, and name of the parameter or None for a number 1.
        params: one network.
    """

    def __init__(self, levels, links, params):
        self.levels, self.links = levels, links
        self.neurons = [(level, k) for level, (width, _, _) in enumerate(levels) for k in range(width)]
        zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
        self.bias = {(level, k): params[levels[level][1]][k] if levels[level][1] else zero for level, k in self.neurons}
        self.edges, self.place = {}, {}
        for number, (source, target, kind, name) in enumerate(links):
            for i in range(levels[target][0]):
                for j in range(levels[source][0]):
                    if kind == "weight" or i == j:
                        place = (i, j) if kind == "weight" else (i,)
                        self.edges[(target, i), (source, j), number] = params[name][place] if name else one
                        self.place[(target, i), (source, j), number] = name, place

    @staticmethod
    def size(values):
        """Root mean square, 1 for zeros."""
        square = sum(value**2 for value in values) / len(values)
        return square.sqrt() if bool(square > 0) else torch.ones((), dtype=torch.float64)

    def edge_size(self, pair):
        return self.size([value for other, value in self.edges.items() if other[2] == pair[2]])

    def node_size(self, neuron):
        """The mean of the sizes of its incoming edges; 1 at the inputs."""
        sizes = [self.edge_size(pair) for pair in self.edges if pair[0] == neuron]
        return sum(sizes) / len(sizes) if sizes else torch.ones((), dtype=torch.float64)

    def bias_size(self, level):
        return self.size([value for neuron, value in self.bias.items() if neuron[0] == level])


def lift_links(stage, network):
    """Node features v[i] and pair features e[i, j, link] and e[j, i, link], with an embedding of the link's kind."""
    v, e, last = {}, {}, len(network.levels) - 1
    for i in network.neurons:
        level, position = i
        size = network.bias_size(level)
        entries = [network.bias[i] / size, network.node_size(i).log(), size.log()]
        code = _entry(stage.codes, level, last - level)
        code = code + (stage.input_codes[position] if level == 0 else 0)
        code = code + (stage.output_codes[position] if level == last else 0)
        kind = 1 + ACTIVATION_NAMES.index(network.levels[level][2]) if level else 0
        v[i] = stage.lift_nodes(torch.stack(entries)) + code + stage.activations.weight[kind]
    for pair, value in network.edges.items():
        i, j, number = pair
        scaled = (value / network.edge_size(pair)).reshape(1)
        kind = stage.links.weight[LINK_KINDS.index(network.links[number][2])]
        e[pair] = stage.lift_forward(scaled) + kind
        e[j, i, number] = stage.lift_backward(scaled) + stage.lift_forward.bias + kind
    return v, e


def linked_deltas(metanet, network, v, e):
    """Deltas by name: of weights and gains off their own pairs, of biases off their own neurons, of a 1 none."""
    ending, last, found = metanet.ending, len(network.levels) - 1, {}
    scales = {level: _entry(ending.scales, level, last - level) for level in range(last + 1)}
    for pair, (name, place) in network.place.items():
        if name is not None:
            value = ending.read_edges(e[pair])[0] * scales[pair[0][0]][0] * network.edge_size(pair)
            found.setdefault(name, {})[place] = value
    for neuron in network.neurons:
        if (name := network.levels[neuron[0]][1]) is not None:
            value = ending.read_nodes(v[neuron])[0] * scales[neuron[0]][1] * network.node_size(neuron)
            found.setdefault(name, {})[neuron[1:]] = value
    return found


def linked_vector(metanet, network, v):
    """The vector that is read off a network that is no chain."""
    last = len(network.levels) - 1
    outputs = [v[i] for i in network.neurons if i[0] == last]
    return metanet.ending.out(torch.cat([torch.stack(list(v.values())).mean(0), *outputs]))
