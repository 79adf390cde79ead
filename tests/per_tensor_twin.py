"""The metanetwork rule one tensor after another, for one network: metanet_rule.py's formulas, written plainly."""

import math

import torch

from weightedit.optim.gauge import growth, layers_before, neuron_scales, spread
from weightedit.optim.metanet_features import DAMPING, place
from weightedit.optim.muon import COEFFICIENTS
from weightedit.optim.rounding import ROUNDING


def twin_step(rule, wiring, grads, state, params, loss=None):
    """Deltas and states of one network after a step of `rule`, a MetanetRule; its weights are read, not its code."""
    config, rate = rule.config, {wire.name: wiring.sets[wire.target].rate for wire in wiring.wires}
    params, grads = {k: p * rate[k] for k, p in params.items()}, {k: g / rate[k] for k, g in grads.items()}
    neurons = neuron_scales(wiring, params, config.symmetry)
    grown, before = growth(wiring, neurons).clamp(-5, 5), layers_before(wiring)
    origin = list(neurons)
    for name in grads:
        i = wiring.by_name[name].target
        if config.memory:
            neurons[i] = torch.maximum(neurons[i], config.memory * state[name]["reach"])
        if config.room is not None and state[name]["step"] > 0:
            origin[i] = state[name]["origin"]
    if config.room is not None:
        neurons = [torch.minimum(scale, config.room * own) for scale, own in zip(neurons, origin, strict=True)]
    scales, tensors = spread(wiring, params, neurons), {}
    grads = _telling(rule, wiring, grads, state, scales, [(-grown * depth).exp() for depth in before])
    for name, grad in grads.items():
        wire = wiring.by_name[name]
        scale = scales[name].expand(wire.shape)
        if wire.kind == "bias":
            scale = scale * (-grown * before[wire.target]).exp()
        tensors[name] = _seen(rule, wiring, wire, grad * scale, params[name] / scale, state[name])
        tensors[name] |= {"scale": scale, "wire": wire, "new": tensors[name]["new"] | {"step": state[name]["step"] + 1}}
        if config.memory:
            tensors[name]["new"]["reach"] = neurons[wire.target]
        if config.room is not None:
            tensors[name]["new"]["origin"] = origin[wire.target]
        if config.loss:
            first = state[name]["first loss"] if state[name]["step"] > 0 or loss is None else loss
            tensors[name]["new"]["first loss"] = first
    about = torch.zeros(0, dtype=torch.float64)
    if config.coherence:
        about = _of_network(rule, tensors, state)
    for name in grads:
        wire = wiring.by_name[name]
        facts = _facts(rule, wiring, wire, tensors[name]["new"], grown, loss)
        facts = torch.cat([facts, about])
        hidden = rule.first @ tensors[name]["even"].flatten(1)
        hidden = hidden + (rule.tensor_first @ facts + rule.bias_first).unsqueeze(1)
        tensors[name] |= {"facts": facts, "hidden": hidden.relu().unflatten(1, wire.view)}
    nodes = _mixed(rule, wiring, tensors) if config.mixing else None
    deltas = {}
    for name, known in tensors.items():
        wire, facts = known["wire"], known["facts"]
        second = torch.einsum("ab,b...->a...", rule.second, known["hidden"])
        second = second + (rule.tensor_second @ facts + rule.bias_second)[:, None, None, None]
        if nodes is not None:
            second = second + (rule.to_target @ nodes[wire.target])[:, :, None, None]
        if nodes is not None and wire.source is not None:
            second = second + (rule.to_source @ nodes[wire.source])[:, None, :, None]
        phi = torch.einsum("ab,b...->a...", rule.last, second.relu()).flatten(2)
        size = -(rule.pace[int(wire.kind == "weight")] @ facts + rule.log_step_size).exp() * known["warranted"]
        size = size * min(1.0, float(known["new"]["step"]) / config.warm) if config.warm else size
        size = size * 0.3 ** (1 - known["new"]["coherence"][2]) if config.coherence else size
        f = torch.ones(config.odd, dtype=phi.dtype)
        f[-2] = (rule.decay @ facts).exp()
        step = size * (known["odd"] * f[:, None, None] * (rule.base[:, None, None] + phi)).sum(0)
        moving = (known["odd"][0].abs() / 1e-6).clamp(max=1)
        step, moving = (step * moving).view(wire.shape) * known["scale"], moving.view(wire.shape)
        if config.averaging:
            recency, beta = rule.log_recency.exp(), rule.lag.sigmoid()
            if config.coherence:
                recency = recency * (rule.recency_by @ about).exp()
            fresh = (1 + recency) / (known["new"]["step"] + recency) * known["warranted"] * moving
            ahead = state[name]["ahead"] + step
            known["new"]["ahead"] = (1 - fresh) * ahead
            step = fresh * ahead + (1 - beta) * (known["new"]["ahead"] - state[name]["ahead"])
        deltas[name] = step / rate[name]
    return deltas, {name: known["new"] for name, known in tensors.items()}


def _of_network(rule, tensors, state):
    """What coherence.py says of the network into all tensors' states: (1 - 1 / k)+ and (1 - k)+."""
    decay, logs, counts = min(rule.config.momenta, key=lambda b: abs(b - 0.9)), [], []
    for known in tensors.values():
        t, lately = float(known["new"]["step"]), known["lately"]
        k = torch.ones((), dtype=torch.float64)
        if lately > 0:
            floor = (1 - decay) / (1 + decay) * (1 + decay**t) / (1 - decay**t)
            k = known["averaged"].square().mean() / (floor * max(lately / (1 - decay**t), known["mean"]))
        if t > 1:
            logs.append(k.clamp(min=0.02).log())
            counts.append(known["averaged"].numel())
    new = sum(logs, torch.zeros((), dtype=torch.float64)) / max(1, len(logs))
    steps = max(float(known["new"]["step"]) for known in tensors.values())
    old = [state[name]["coherence"] for name in tensors if state[name]["step"] > 0]
    log = sum(one[0] for one in old) / max(1, len(old))
    log = log + 0.05 / (1 - 0.95**steps) * (new - log)
    slope = sum(a * b for a, b in zip(logs, counts, strict=True)) / max(1, sum(counts))
    slope = (max(one["coherence"][1] for one in state.values()) + slope - 0.15).clamp(min=0)
    opened = max(*(one["coherence"][2] for one in state.values()), (slope / 5).clamp(max=1))
    for known in tensors.values():
        known["new"]["coherence"] = torch.stack([log, slope, opened, known["lately"]])
    return torch.stack([(1 - (-log).exp()).clamp(min=0), (1 - log.exp()).clamp(min=0)])


def _telling(rule, wiring, grads, state, scales, slower):
    """Gradients, those of biases zero where rounding.py says that they are rounding; neuron by neuron."""
    found, kept = dict(grads), rule.config.second
    bound = ROUNDING * torch.finfo(torch.float64).eps
    for name, grad in grads.items():
        wire = wiring.by_name[name]
        weights = [w for w in wiring.wires if w.target == wire.target and w.source is not None and w.name in grads]
        if wire.kind != "bias" or len(wire.shape) > 1 or not weights:
            continue
        told = grad.clone()
        for i in range(len(grad)):
            total = torch.zeros(())
            for w in weights:
                row = w.matrix(grads[w.name] * scales[w.name])[i]
                total = total + kept * state[w.name]["rows"][i] * row.numel() + (1 - kept) * row.square().sum()
            less = slower[wire.target]
            own = kept * state[name]["second"][i] + (1 - kept) * (grad[i] * scales[name][i] * less).square()
            told[i] = torch.where(own <= (bound * less).square() * total, 0, grad[i])
        found[name] = told
    return found


def _seen(rule, wiring, wire, gradient, weight, state):
    """New moments of a tensor in the gauge, its features [features, rows, columns], and what warrant.py says."""
    config, steps = rule.config, state["step"].double() + 1
    if wire.kind == "bias" and wiring.sets[wire.target].group.shift:
        weight = torch.zeros_like(weight)
    gradient, weight = (wire.matrix(tensor).flatten(1) for tensor in (gradient, weight))
    averages, momenta = [gradient], []
    for i, decay in enumerate(config.momenta):
        fresh = rule.fresh[i]  # 1 - decay, as float32 has it
        momenta.append((1 - fresh) * wire.matrix(state["momenta"][i]).flatten(1) + fresh * gradient)
        averages.append(momenta[-1] / (1 - decay**steps))
    kept = {key: config.second * state[key] for key in ("rows", "columns")}
    second = config.second * wire.matrix(state["second"]).flatten(1) + (1 - config.second) * gradient.square()
    rows = kept["rows"] + (1 - config.second) * gradient.square().mean(1)
    columns = kept["columns"] + (1 - config.second) * gradient.square().mean(0)
    calm = 1 - config.second**steps
    mean = rows.mean() / calm
    peak = torch.maximum(0.999 * state["peak"], mean)
    v, r, c = second / calm + DAMPING * mean, rows / calm + DAMPING * mean, columns / calm + DAMPING * mean
    direct = [average / v.sqrt() for average in averages]
    factor = (r.mean() / r[:, None] / c).sqrt()
    adam = 1 + min(range(len(config.momenta)), key=lambda k: abs(config.momenta[k] - 0.9))
    level = direct[adam]
    if wire.kind == "weight" and (config.leveling is None or min(gradient.shape) <= config.leveling):
        mix = rule.mix
        if config.coherence:
            mix = mix + (1 - state["coherence"][0].exp()).clamp(min=0) ** 2 * rule.mix_by
        level = _leveled(sum(share * average for share, average in zip(mix, averages, strict=True)))
    odd = [*direct, averages[0] * factor, averages[adam] * factor, weight, level]
    agreement = [a * b for a, b in zip(direct, direct[1:], strict=False)]
    even = [x / (1 + x.abs()) for x in [*(x.square() for x in odd), *agreement]] + [(v / mean + 1e-6).log() / 4]
    if config.symmetry == "permutation":
        even += [x / (1 + x.abs()) for x in odd]
    shapes = {"momenta": torch.stack(momenta).view(len(momenta), *wire.shape), "second": second.view(wire.shape)}
    return {
        "odd": torch.stack(odd),
        "even": torch.stack(even),
        "averaged": averages[adam],
        "lately": 0.9 * state["coherence"][3] + 0.1 * gradient.square().mean() if config.coherence else None,
        "mean": mean,
        "warranted": (gradient.square().mean().sqrt() / peak.sqrt() / 1e-3).clamp(max=1),
        "new": {**shapes, "rows": rows, "columns": columns, "peak": peak},
    }


def _leveled(matrix):
    x = matrix / matrix.norm()
    a, b, c = COEFFICIENTS
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x * math.sqrt(max(matrix.shape))


def _facts(rule, wiring, wire, new, grown, loss):
    parts = [
        (new["step"] * rule.inverse_times - 1).tanh(),
        torch.tensor(place(wiring, wire), dtype=torch.float64),
        grown.view(1),
    ]
    if rule.config.loss:
        first = new["first loss"]
        now, first = ((x + 1e-10).log().view(1) for x in (first if loss is None else loss, first))
        parts += [now / 5, (now - first) / 3]
    return torch.cat(parts)


def _mixed(rule, wiring, tensors):
    """Per set, [hidden, neurons]."""
    received = [[] for _ in wiring.sets]
    for known in tensors.values():
        wire, hidden = known["wire"], known["hidden"]
        received[wire.target].append(hidden.mean((2, 3)))
        if wire.source is not None:
            received[wire.source].append(hidden.mean((1, 3)))
    zeros = [torch.zeros(rule.config.hidden, neurons.size, dtype=torch.float64) for neurons in wiring.sets]
    own = [sum(parts, zero) / max(1, len(parts)) for parts, zero in zip(received, zeros, strict=True)]
    layers = [neurons.mean(1, keepdim=True) for neurons in own]
    a, b, c = rule.node.split(rule.config.hidden, 1)
    network = sum(layers) / len(layers)
    return [(a @ neurons + b @ layer + c @ network).relu() for neurons, layer in zip(own, layers, strict=True)]
