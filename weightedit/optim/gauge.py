"""The vertex gauge: how large every neuron is by the weights that lead to it, and hence how large a step may be.

With u = 1 at the inputs, and sums over a neuron's incoming weights and kernel positions (ours; learned_optimizers.md
section 3 and symmetry.md section 3, gauge):

    u_i^2 = sum_jk w_ijk^2 u_j^2 + gain_i^2            s_ij = u_i / (u_j sqrt(incoming weights of i))

A neuron factor q multiplies u_i by q_i and s_ij by q_i / q_j, so that s times an invariant is a delta of type (+1, odd
where the invariant is odd). Neurons that carry no factor share one u: between two such sets s is the weights' root mean
square. No epsilon stands anywhere, since one would break the symmetry: zeros are masked. Here is also the square root
that all update rules use, whose derivative at zero is zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from weightedit.network.layer import Symmetry
from weightedit.network.wiring import Wire, Wiring


def root(square: Tensor) -> Tensor:
    """The square root of what is not negative; 0 with derivative 0 at zero, where torch's derivative is infinite."""
    dead = square <= 0
    return square.masked_fill(dead, 1).sqrt().masked_fill(dead, 0)


def inverse_root(square: Tensor) -> Tensor:
    """1 / `root`, and 0 with derivative 0 where the square is zero, or so small that its inverse would overflow."""
    return functional.threshold(square, torch.finfo(square.dtype).tiny, math.inf).rsqrt()


def neuron_scales(wiring: Wiring, params: Mapping[str, Tensor], symmetry: Symmetry = "full") -> list[Tensor]:
    """The scale u of every neuron, positive.

    A neuron whose u is zero takes 1 / d instead, d_j^2 = sum_ik w_ijk^2 / u_i^2 over what it feeds; where that is zero
    too, the size of its bias; and 1 where no parameter touches it. All of these are of type +1, hence exact. In a set
    without factors all neurons take the root mean square of their u, or 1 where that is zero.

    Args:
        wiring: of the network.
        params: one network or N stacked ones; parameters that are left out are taken as zero.
        symmetry: the part of every set's group that u follows; under "permutation" and "sign" no set has factors.

    Returns one tensor per set of `wiring.sets`, [n] or [N, n]; a set into which nothing leads has u = 1.
    """
    incoming, outgoing = _weights(wiring, params)
    free = [neurons.group.restricted(symmetry).scale for neurons in wiring.sets]
    name, like = next(iter(params.items()))
    lead = like.shape[: like.dim() - len(wiring.by_name[name].shape)]
    squares: list[Tensor] = []
    for i, neurons in enumerate(wiring.sets):
        parts = [
            square if wire.source is None else square @ squares[wire.source].unsqueeze(-1)
            for wire, square in incoming[i]
        ]
        total = sum(parts[1:], parts[0]).squeeze(-1) if parts else like.new_ones(*lead, neurons.size)
        squares.append(total if free[i] else _pooled(total))
    for i in reversed(range(len(squares))):
        if free[i] and incoming[i]:
            duals = [squares[wire.target].reciprocal().unsqueeze(-2) @ square for wire, square in outgoing[i]]
            dual = sum(duals[1:], duals[0]).squeeze(-2) if duals else torch.zeros_like(squares[i])
            squares[i] = first_alive(squares[i], reciprocal(dual), *_biases(wiring, params, i))
    return [square.sqrt() for square in squares]


def parameter_scales(wiring: Wiring, params: Mapping[str, Tensor], symmetry: Symmetry = "full") -> dict[str, Tensor]:
    """A scale of type +1 per parameter: what a dimensionless direction is multiplied by to become a delta.

    Args:
        wiring, params, symmetry: as in `neuron_scales`.

    Returns, by the names of `params`, tensors that broadcast with them: u_target / (u_source sqrt(sources rest)) for a
    weight, u_target for biases and gains.
    """
    return spread(wiring, params, neuron_scales(wiring, params, symmetry))


def spread(wiring: Wiring, params: Mapping[str, Tensor], scales: Sequence[Tensor]) -> dict[str, Tensor]:
    """`parameter_scales` from the `neuron_scales`."""
    found = {}
    for name in params:
        wire = wiring.by_name[name]
        if wire.source is None:
            found[name] = scales[wire.target]
            continue
        _, sources, rest = wire.view
        before = scales[wire.source] * math.sqrt(sources * rest)
        found[name] = _spread(wire, scales[wire.target].unsqueeze(-1) / before.unsqueeze(-2))
    return found


def growth(wiring: Wiring, scales: Sequence[Tensor]) -> Tensor:
    """The mean logarithm per layer of how much larger the outputs are than the inputs, by the weights: [] or [N].

    An invariant, since outputs carry no factor: 0 where every layer keeps the size of what it reads, or no outputs are
    known, and 1 more where all weights are e times as large. From the `neuron_scales`.
    """
    read = {wire.source for wire in wiring.wires}
    reached = {wire.target for wire in wiring.wires if wire.source is not None}
    ends = [i for i in sorted(reached - read) if not wiring.sets[i].group.scale]
    found = [scales[i].log().mean(-1) for i in ends] or [scales[0].new_zeros(scales[0].shape[:-1])]
    return torch.stack(found).mean(0) / max(1, len(reached))


def layers_before(wiring: Wiring) -> list[float]:
    """Per set of `wiring`, how many layers with weights lie between the first and the set's own."""
    last = max(wire.target for wire in wiring.wires)
    layers = len({wire.target for wire in wiring.wires if wire.source is not None})
    return [max(0.0, layers * i / max(last, 1) - 1) for i in range(len(wiring.sets))]


_Weights = list[list[tuple[Wire, Tensor]]]


def _weights(wiring: Wiring, params: Mapping[str, Tensor]) -> tuple[_Weights, _Weights]:
    """Per set, the wires that lead to it and those that leave it, with their squares, [..., targets, sources].

    Only wires from an earlier set to a later one, and gains: so that u is found in one pass, and what a residual stream
    is told by its blocks does not count.
    """
    incoming: _Weights = [[] for _ in wiring.sets]
    outgoing: _Weights = [[] for _ in wiring.sets]
    for wire in wiring.wires:
        if wire.name not in params or wire.kind == "bias":
            continue
        square = wire.matrix(params[wire.name]).square().sum(-1)
        if wire.source is None:
            incoming[wire.target].append((wire, square))
        elif wire.source < wire.target:
            incoming[wire.target].append((wire, square))
            outgoing[wire.source].append((wire, square))
    return incoming, outgoing


def _biases(wiring: Wiring, params: Mapping[str, Tensor], i: int) -> list[Tensor]:
    biases = (wire for wire in wiring.wires if wire.kind == "bias" and wire.target == i and wire.name in params)
    return [params[wire.name].square() for wire in biases]


def _pooled(square: Tensor) -> Tensor:
    mean = square.mean(-1, keepdim=True)
    return torch.where(mean > 0, mean, 1).expand_as(square)


def reciprocal(square: Tensor) -> Tensor:
    """1 / `square`, and 0 where it is zero."""
    dead = square <= 0
    return square.masked_fill(dead, 1).reciprocal().masked_fill(dead, 0)


def first_alive(*squares: Tensor) -> Tensor:
    """Elementwise, the first that is not zero; 1 where all are."""
    found = squares[-1]
    for square in squares[-2::-1]:
        found = torch.where(square > 0, square, found)
    return found.masked_fill(found <= 0, 1)


def _spread(wire: Wire, scale: Tensor) -> Tensor:
    """A number per target and source, [..., targets, sources], in a shape that broadcasts with the parameter."""
    lead, (targets, sources, _) = scale.shape[:-2], wire.view
    if wire.shape[1] == sources:
        return scale.reshape(*lead, targets, sources, *[1] * (len(wire.shape) - 2))
    positions = wire.shape[1] // sources  # a flattened image: every channel's scale at each of its positions
    spread = scale.unsqueeze(-1).expand(*scale.shape, positions)
    return spread.reshape(*lead, targets, wire.shape[1], *[1] * (len(wire.shape) - 2))
