"""NFN, DWS and Monomial-NFN neuron by neuron: layers as the papers write them, and whole networks of them.

Slow, obvious, from the same weights. Zhou et al. 2023, equations 2 and 3, appendix C; Navon et al. 2023; Tran et al.
2024. A network's parameters are lists w and b over its layers; an entry w[l][j, k] or b[l][j] is a vector of channels,
w from neuron k to neuron j. What is ours is in the docstrings of chains.py and of the systems: every tensor of every
network is divided by its root mean square, and every hidden layer's features by theirs.
"""

import math
from itertools import combinations, product

import torch


def np_by_hand(layer, weights, biases):
    """Equation 3 with biases, for one network: lists from layer 1 on; entries are vectors of channels."""
    depth = len(weights)
    w, b = {i + 1: x for i, x in enumerate(weights)}, {i + 1: x for i, x in enumerate(biases)}

    def mean(vectors):
        vectors = list(vectors)
        return sum(vectors) / len(vectors)

    def everything(target):
        total = layer.offsets[target]
        for s in w:
            total = total + layer.matrix(target, f"w{s}") @ mean(
                w[s][j, k] for j, k in product(*map(range, w[s].shape[:2]))
            )
            total = total + layer.matrix(target, f"b{s}") @ mean(b[s][j] for j in range(len(b[s])))
        return total

    def touching(target, level, n):
        """What runs over neuron n of `level`: its row and column, and its bias."""
        total = 0
        if level > 0:
            total = total + layer.matrix(target, f"w{level}", level) @ mean(
                w[level][n, k] for k in range(w[level].shape[1])
            )
            total = total + layer.matrix(target, f"b{level}", level) @ b[level][n]
        if level < depth:
            above = w[level + 1]
            total = total + layer.matrix(target, f"w{level + 1}", level) @ mean(
                above[j, n] for j in range(above.shape[0])
            )
        return total

    new_w, new_b = [], []
    for i in w:
        rows, columns = w[i].shape[:2]
        block = [
            [
                everything(f"w{i}") + touching(f"w{i}", i, j) + touching(f"w{i}", i - 1, k)
                + layer.matrix(f"w{i}", f"w{i}", i, i - 1) @ w[i][j, k]
                for k in range(columns)
            ]
            for j in range(rows)
        ]  # fmt: skip
        new_w.append(torch.stack([torch.stack(row) for row in block]))
        new_b.append(torch.stack([everything(f"b{i}") + touching(f"b{i}", i, j) for j in range(rows)]))
    return new_w, new_b


def hnp_by_hand(layer, weights, biases):
    """Three layers 1, 2, 3, whose inputs q and outputs p keep their place: one matrix for each of them, in blocks."""
    (w1, w2, w3), (b1, b2, b3) = weights, biases
    (n1, inputs), (outputs, n2) = w1.shape[:2], w3.shape[:2]
    row = [w1[j].reshape(-1) for j in range(n1)]
    column = [torch.cat([w3[p, i] for p in range(outputs)]) for i in range(n2)]
    out = b3.reshape(-1)
    means = {
        "w1": sum(row) / n1, "w2": sum(w2[i, j] for i in range(n2) for j in range(n1)) / (n1 * n2),
        "w3": sum(column) / n2,
        "b1": sum(b1[j] for j in range(n1)) / n1, "b2": sum(b2[i] for i in range(n2)) / n2, "b3": out,
    }  # fmt: skip
    of_row = [sum(w2[i, j] for j in range(n1)) / n1 for i in range(n2)]
    of_column = [sum(w2[i, j] for i in range(n2)) / n2 for j in range(n1)]

    def everything(target):
        return layer.offsets[target] + sum(layer.matrix(target, name) @ value for name, value in means.items())

    def one(target, j):
        m = layer.matrix
        return m(target, "w1", 1) @ row[j] + m(target, "w2", 1) @ of_column[j] + m(target, "b1", 1) @ b1[j]

    def two(target, i):
        m = layer.matrix
        return m(target, "w2", 2) @ of_row[i] + m(target, "w3", 2) @ column[i] + m(target, "b2", 2) @ b2[i]

    def middle(i, j):
        return everything("w2") + one("w2", j) + two("w2", i) + layer.matrix("w2", "w2", 2, 1) @ w2[i, j]

    new_w1 = torch.stack([(everything("w1") + one("w1", j)).reshape(inputs, -1) for j in range(n1)])
    new_w2 = torch.stack([torch.stack([middle(i, j) for j in range(n1)]) for i in range(n2)])
    new_w3 = torch.stack([(everything("w3") + two("w3", i)).reshape(outputs, -1) for i in range(n2)], 1)
    new_b1 = torch.stack([everything("b1") + one("b1", j) for j in range(n1)])
    new_b2 = torch.stack([everything("b2") + two("b2", i) for i in range(n2)])
    return [new_w1, new_w2, new_w3], [new_b1, new_b2, everything("b3").reshape(outputs, -1)]


POOL = {"mean": lambda vectors: torch.stack(vectors).mean(0), "max": lambda vectors: torch.stack(vectors).amax(0)}


def block_by_hand(layer, target, source, x, counts, pooling):
    """The block from part `source`, a dict of neurons (one per level of the part) to vectors, to part `target`.

    For every set of neurons that the two parts share: pool what agrees on them, multiply, broadcast.
    """
    shared = [level for level in target.levels if level in source.levels]
    result = {}
    for neurons in product(*(range(counts[level]) for level in target.levels)):
        place, total = dict(zip(target.levels, neurons, strict=True)), 0
        for size in range(len(shared) + 1):
            for kept in combinations(shared, size):
                agreeing = [
                    vector
                    for other, vector in x.items()
                    if all(dict(zip(source.levels, other, strict=True))[level] == place[level] for level in kept)
                ]
                total = total + layer.matrix(target.name, source.name, *kept) @ POOL[pooling](agreeing)
        result[neurons] = total
    return result


def entries(part, tensor):
    return {neurons: tensor[neurons] for neurons in product(*map(range, tensor.shape[: len(part.levels)]))}


def letter(layer, target, source, *kept):
    """The matrix of a term cut into [to][from] matrices on channels, one per fixed neuron on either side."""
    matrix, folded = layer.matrix(target, source, *kept), {part.name: part.folded for part in layer.space.parts}
    rows, columns = len(matrix) // folded[target], matrix.shape[1] // folded[source]
    return [part.split(columns, 1) for part in matrix.split(rows, 0)]


def scale_by_hand(layer, w, b):
    """Positive scaling, in the words of the paper; w and b by layer, from 1 on; entries are vectors of channels."""
    last, inputs, outputs = len(w), w[1].shape[1], w[len(w)].shape[0]
    new_w, new_b = {level: {} for level in w}, {level: {} for level in w}
    for level in w:
        rows, columns = w[level].shape[:2]
        for j in range(rows):
            if level == 1 < last:
                p, q = letter(layer, "w1", "w1", 1), letter(layer, "w1", "b1", 1)
                r, s = letter(layer, "b1", "w1", 1), letter(layer, "b1", "b1", 1)
                for k in range(columns):
                    new_w[1][j, k] = sum(p[k][i] @ w[1][j, i] for i in range(inputs)) + q[k][0] @ b[1][j]
                new_b[1][j] = sum(r[0][i] @ w[1][j, i] for i in range(inputs)) + s[0][0] @ b[1][j]
            elif level < last:
                for k in range(columns):
                    new_w[level][j, k] = layer.matrix(f"w{level}", f"w{level}", level, level - 1) @ w[level][j, k]
                new_b[level][j] = layer.matrix(f"b{level}", f"b{level}", level) @ b[level][j]
            else:
                p, s = letter(layer, f"w{level}", f"w{level}", level - 1), letter(layer, f"b{level}", f"b{level}")
                t = layer.offsets[f"b{level}"].chunk(outputs)
                for k in range(columns):
                    new_w[level][j, k] = sum(p[j][i] @ w[level][i, k] for i in range(outputs))
                new_b[level][j] = sum(s[j][i] @ b[level][i] for i in range(outputs)) + t[j]
    return new_w, new_b


def sign_by_hand(layer, w, b):
    """Sign flips: what positive scaling allows, and the terms between the last hidden bias and the last weight."""
    new_w, new_b = scale_by_hand(layer, w, b)
    last, outputs = len(w), w[len(w)].shape[0]
    hidden = w[last].shape[1]
    r = letter(layer, f"b{last - 1}", f"w{last}", last - 1)[0]
    q = letter(layer, f"w{last}", f"b{last - 1}", last - 1)
    for j in range(hidden):
        new_b[last - 1][j] = new_b[last - 1][j] + sum(r[p] @ w[last][p, j] for p in range(outputs))
        for p in range(outputs):
            new_w[last][p, j] = new_w[last][p, j] + q[p][0] @ b[last - 1][j]
    if last == 2:
        inputs, there, back = w[1].shape[1], letter(layer, "w1", "w2", 1), letter(layer, "w2", "w1", 1)
        for j in range(hidden):
            for k in range(inputs):
                new_w[1][j, k] = new_w[1][j, k] + sum(there[k][p] @ w[2][p, j] for p in range(outputs))
            for p in range(outputs):
                new_w[2][p, j] = new_w[2][p, j] + sum(back[p][k] @ w[1][j, k] for k in range(inputs))
    return new_w, new_b


def size(tensor, factors=None):
    """Root mean square of all entries of one tensor, each divided by its factor first."""
    places = list(product(*map(range, tensor.shape[:-1])))
    squares = [(tensor[at] / (1 if factors is None else factors[at])).square().sum() for at in places]
    return (sum(squares) / (len(places) * tensor.shape[-1])).sqrt()


def each(function, *lists):
    """A function of one tensor, or of several that belong together, of all tensors: w, then b."""
    return [function(*tensors) for tensors in zip(*lists, strict=True)]


def mlp(reader, x):
    """Linear, LayerNorm, SiLU, linear."""
    first, norm, _, last = reader.body
    h = first.weight @ x + first.bias
    centered = h - h.mean()
    h = centered / (centered.square().mean() + 1e-5).sqrt() * norm.weight + norm.bias
    return last.weight @ (h * torch.sigmoid(h)) + last.bias


def summary(space, tensors):
    """Per tensor, the mean over hidden neurons of what belongs to them; inputs and outputs one by one, if they keep
    their place."""
    found = []
    for number, tensor in enumerate(tensors):
        layer, ends = number % space.depth + 1, (number < space.depth)
        levels = (layer, layer - 1) if ends else (layer,)
        fixed = [level in (0, space.depth) and not space.permuted_ends for level in levels]
        counts, sums = {}, {}
        for place in product(*map(range, tensor.shape[:-1])):
            key = tuple(neuron for neuron, keeps in zip(place, fixed, strict=True) if keeps)
            sums[key] = sums.get(key, 0) + tensor[place]
            counts[key] = counts.get(key, 0) + 1
        found += [sums[key] / counts[key] for key in sorted(sums)]
    return found


def hidden_stack(stack, tensors, layer_by_hand):
    """Linear layers, each but the last divided by its root mean square, with a ReLU between."""
    depth = stack.space.depth
    for number, linear in enumerate(stack.linears):
        if number:
            tensors = each(lambda x: torch.where(x > 0, x, torch.zeros_like(x)), tensors)
        w, b = layer_by_hand(linear, tensors[:depth], tensors[depth:])
        tensors = [*w, *b]
        if number < len(stack.linears) - 1:
            tensors = each(lambda x: x / size(x), tensors)
    return tensors


def dws_by_hand(layer, w, b):
    """One layer by its blocks, three weights: input and output neurons are part of the channels."""
    space, counts = layer.space, [w[0].shape[1], *(len(x) for x in b)]
    parts = dict(zip(space.parts, space.fold(w, b), strict=True))
    found = []
    for target in space.parts:
        blocks = [
            block_by_hand(layer, target, source, entries(source, x), counts, "mean") for source, x in parts.items()
        ]
        neurons = list(product(*(range(counts[level]) for level in target.levels)))
        values = [layer.offsets[target.name] + sum(block[at] for block in blocks) for at in neurons]
        found.append(torch.stack(values).reshape(*(counts[level] for level in target.levels), -1))
    return space.unfold(found)


def nfn_input(metanet, w, b):
    """Entries over their tensor's size, or their random Fourier features; a quarter of its logarithm; codes."""
    sizes, found = each(size, [*w, *b]), []
    for number, (tensor, own) in enumerate(zip([*w, *b], sizes, strict=True)):
        new = {}
        for place in product(*map(range, tensor.shape[:-1])):
            x = tensor[place] / own
            if metanet.config.fourier:
                waves = 2 * math.pi * x * metanet.frequencies
                x = math.sqrt(2) * torch.cat([waves.cos(), waves.sin()])
            code = torch.zeros(metanet.config.codes if metanet.config.variant == "np" else 0, dtype=x.dtype)
            if len(code) and number == 0:
                code = code + metanet.input_codes[place[1]]
            if len(code) and number in (len(w) - 1, 2 * len(w) - 1):
                code = code + metanet.output_codes[place[0]]
            new[place] = torch.cat([x, own.log().reshape(1) / 4, code])
        found.append(torch.stack(list(new.values())).reshape(*tensor.shape[:-1], -1))
    return found, sizes


def nfn(metanet, w, b):
    """The deltas of w and b, or the vector."""
    tensors, sizes = nfn_input(metanet, w, b)
    tensors = hidden_stack(metanet.stack, tensors, np_by_hand if metanet.config.variant == "np" else hnp_by_hand)
    return ending(metanet, tensors, sizes)


def dws(metanet, w, b):
    """The deltas of w and b, or the vector: nothing but unit entries goes in, and a skip leads to the delta."""
    sizes = each(size, [*w, *b])
    units = each(lambda x, own: x / own, [*w, *b], sizes)
    tensors = hidden_stack(metanet.stack, units, dws_by_hand)
    if not metanet.embedding:
        tensors = each(lambda x, share, unit: x + share * unit, tensors, metanet.skip, units)
    return ending(metanet, tensors, sizes)


def ending(metanet, tensors, sizes):
    """Deltas in units of their tensor, times a learned factor; or an MLP of summaries and of logarithms of sizes."""
    if not metanet.embedding:
        return each(lambda x, own, scale: x * own * scale, tensors, sizes, metanet.sizes.scale)
    tensors = each(lambda x: torch.where(x > 0, x, torch.zeros_like(x)), tensors)
    return mlp(metanet.reader, torch.cat([*summary(metanet.space, tensors), torch.stack(sizes).log()]))


def gauge_by_hand(w, b, scaled):
    """Per level, a number per neuron that scales as it does: n_i^2 = sum_j w_ij^2 n_j^2 + b_i^2; 1 at both ends."""
    found = [[torch.ones((), dtype=torch.float64)] * w[0].shape[1]]
    for number, (weight, bias) in enumerate(zip(w, b, strict=True), start=1):
        squares = [
            sum(weight[i, j].square().sum() * found[-1][j] ** 2 for j in range(weight.shape[1]))
            + bias[i].square().sum()
            for i in range(len(bias))
        ]
        kept = scaled and number < len(w)
        found.append([square.sqrt() if kept else torch.ones_like(square) for square in squares])
    return found


def monomial(metanet, w, b, kind):
    """The deltas of w and b, or the vector, where all hidden neurons carry a sign or all a positive scale."""
    depth, gauge = len(w), gauge_by_hand(w, b, kind == "scale")
    factors = [
        {(i, j): n / m for i, n in enumerate(gauge[level + 1]) for j, m in enumerate(gauge[level])}
        for level in range(depth)
    ]
    factors += [{(i,): n for i, n in enumerate(gauge[level + 1])} for level in range(depth)]
    sizes = each(size, [*w, *b], factors)
    tensors = each(lambda x, own: x / own, [*w, *b], sizes)
    # The last bias belongs to output neurons, which carry nothing.
    signed = [kind == "sign" and number < 2 * depth - 1 for number in range(2 * depth)]
    for number, linear in enumerate(metanet.linears):
        given = ({level + 1: x for level, x in enumerate(part)} for part in (tensors[:depth], tensors[depth:]))
        found = (scale_by_hand if kind == "scale" else sign_by_hand)(linear, *given)
        tensors = [
            torch.stack(list(part[level + 1].values())).reshape(*old.shape[:-1], -1)
            for part, olds in zip(found, (w, b), strict=True)
            for level, old in enumerate(olds)
        ]
        if number < len(metanet.linears) - 1:
            tensors = each(lambda x, f: x / size(x, f), tensors, factors)
            tensors = each(lambda x, odd: x.tanh() if odd else torch.where(x > 0, x, 0 * x), tensors, signed)
    if not metanet.embedding:
        return each(lambda x, own, scale: x * own * scale, tensors, sizes, metanet.sizes.scale)
    seen = []
    for number, (tensor, odd) in enumerate(zip(tensors, signed, strict=True)):
        name = metanet.space.parts[number].name
        if odd:
            tensor = torch.where(tensor < 0, -tensor, tensor)
        elif kind == "scale" and number < 2 * depth - 1:
            tensor = unit_by_hand(tensor, number, depth, metanet.invariant.weight[name], metanet.invariant.bias[name])
        seen.append(tensor)
    return mlp(metanet.reader, torch.cat([*summary(metanet.space, seen), torch.stack(sizes).log()]))


def unit_by_hand(tensor, number, depth, weight, bias):
    """x / |x|_2 weight + bias per hidden neuron (per pair of them): all its inputs, or all its outputs, are one x."""
    found = torch.empty_like(tensor)
    if number == 0:
        for j in range(len(tensor)):
            x = tensor[j].reshape(-1)
            found[j] = (x / (x @ x).sqrt() * weight + bias).reshape(tensor[j].shape)
    elif number == depth - 1:
        for k in range(tensor.shape[1]):
            x = tensor[:, k].reshape(-1)
            found[:, k] = (x / (x @ x).sqrt() * weight + bias).reshape(tensor[:, k].shape)
    else:
        for place in product(*map(range, tensor.shape[:-1])):
            x = tensor[place]
            found[place] = x / (x @ x).sqrt() * weight + bias
    return found
