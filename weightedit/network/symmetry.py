"""The symmetry group of a network's parameters: elements, their action, random elements.

An element carries, per hidden layer, a permutation, positive factors q, signs alpha (flips) and integer counts k of
half-period shifts (sine layers only). The factors act first, then the permutation. With s(M z) = phi(M) s(z) the
network's function is unchanged under W_l -> M_l W_l phi(M_{l-1})^{-1}, b_l -> M_l b_l (symmetry.md section 1). On the
incoming side a neuron's factor is q alpha, on the outgoing side q beta with beta = alpha (-1)^k, since

    sin(omega (alpha z + k pi / omega)) = alpha (-1)^k sin(omega z),

so a shift adds k pi / omega to the raw bias and flips the outgoing column only.

In a network that is no chain every level between inputs and outputs counts as a hidden layer, levels that are tied have
equal permutations or factors (graph_spec.py), and a gain has the factor of its target alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from weightedit.errors import ParamsError
from weightedit.network.features import (
    PARAMETER,
    ChannelType,
    WeightSpaceFeatures,
    features_from_params,
    params_from_features,
)
from weightedit.network.graph_spec import AnySpec, GraphSpec
from weightedit.network.spec import NetworkSpec, Params, Symmetry, check_shapes


@dataclass(frozen=True)
class GroupElement:
    """One group element per network: every tuple has one tensor per hidden layer, shape [n] or [N, n].

    Attributes:
        permutation: long; new neuron i is old neuron permutation[i].
        scale: q > 0.
        flip: alpha, -1 or +1.
        shift: k, an integer number of half periods.
    """

    permutation: tuple[Tensor, ...]
    scale: tuple[Tensor, ...]
    flip: tuple[Tensor, ...]
    shift: tuple[Tensor, ...]

    @property
    def incoming(self) -> tuple[Tensor, ...]:
        """q alpha per hidden neuron: the factor of rows, biases and their deltas."""
        return tuple(q * alpha for q, alpha in zip(self.scale, self.flip, strict=True))

    @property
    def outgoing(self) -> tuple[Tensor, ...]:
        """q beta per hidden neuron: the factor of activations; columns are divided by it."""
        parity = (1 - 2 * (k % 2) for k in self.shift)
        return tuple(factor * p for factor, p in zip(self.incoming, parity, strict=True))

    def inverse(self) -> GroupElement:
        """The element that undoes this one."""
        back = tuple(p.argsort(-1) for p in self.permutation)
        ordered = [
            tuple(_pick(tensor, p, -1) for tensor, p in zip(tensors, self.permutation, strict=True))
            for tensors in (tuple(1 / q for q in self.scale), self.flip, self.shift)
        ]
        return GroupElement(back, ordered[0], ordered[1], tuple(-a * k for a, k in zip(*ordered[1:], strict=True)))


def identity_element(spec: AnySpec, like: Tensor) -> GroupElement:
    """The element that changes nothing, on the device and in the dtype of `like`."""
    widths = spec.widths[1:-1]
    ones = tuple(like.new_ones(n) for n in widths)
    order = tuple(torch.arange(n, device=like.device) for n in widths)
    return GroupElement(order, ones, ones, tuple(like.new_zeros(n) for n in widths))


def random_element(
    spec: AnySpec,
    generator: torch.Generator,
    *,
    symmetry: Symmetry = "full",
    count: int | None = None,
    scale_range: tuple[float, float] = (1e-2, 1e2),
    dtype: torch.dtype = torch.float64,
) -> GroupElement:
    """A random element of the group that `symmetry` leaves of the spec's own.

    Args:
        spec: of the networks to act on.
        generator: source of randomness; the element is on its device, and drawing it does not wait for that device.
        symmetry: part of the group to draw from.
        count: N for a different element per stacked network, None for one element.
        scale_range: q is log-uniform in it.
        dtype: of the factors.
    """
    low, high = map(math.log, scale_range)
    on = generator.device
    tensors: list[list[Tensor]] = [[], [], [], []]
    for width, group in zip(spec.widths[1:-1], spec.neuron_groups(symmetry), strict=True):
        shape = (width,) if count is None else (count, width)
        uniform = torch.rand(4, *shape, generator=generator, dtype=torch.float64, device=on)
        tensors[0].append(uniform[0].argsort(-1))
        tensors[1].append((low + (high - low) * uniform[1]).exp() if group.scale else torch.ones(shape, device=on))
        tensors[2].append(1 - 2 * (uniform[2] < 0.5).double() if group.flip else torch.ones(shape, device=on))
        tensors[3].append((uniform[3] * 5).floor() - 2 if group.shift else torch.zeros(shape, device=on))
    if isinstance(spec, GraphSpec):
        _tie(spec, tensors)
    cast = [tuple(tensor.to(dtype) for tensor in part) for part in tensors[1:]]
    return GroupElement(tuple(tensors[0]), *cast)


def _tie(spec: GraphSpec, tensors: list[list[Tensor]]) -> None:
    """Give every level the permutation, scales and flips of the first one that it is tied to."""
    for i, moves in enumerate(spec.permutable):
        tensors[0][i] = tensors[0][spec.orders[i + 1] - 1] if moves else tensors[0][i].sort().values
        if tie := spec.factors[i + 1]:  # else tied to the inputs, and without factors
            for part in tensors[1:3]:
                part[i] = part[tie - 1]


def act(element: GroupElement, spec: AnySpec, params: Mapping[str, Tensor], kind: ChannelType = PARAMETER) -> Params:
    """The transformed parameters: another network that computes the same function.

    Args:
        element: shared by all networks, or one per stacked network.
        spec: of the networks.
        params: one network or N stacked ones.
        kind: PARAMETER, or DELTA, GRADIENT, ... for a quantity of the same names and shapes.

    Raises ParamsError if `params` does not fit `spec`, or the element does not fit it.
    """
    if isinstance(spec, GraphSpec):
        return _act_on_links(element, spec, params, kind)
    moved = act_on_features(element, spec, replace(features_from_params(spec, params), types=(kind,) * spec.channels))
    for layer, bias in zip(spec.layers, moved.biases, strict=True):
        if layer.bias is None and bool(bias.any()):
            raise ParamsError(f"{layer.weight} has no bias, but a phase shift needs one; expected shift = 0 there.")
    return params_from_features(spec, moved)


def randomly_moved(spec: AnySpec, params: Mapping[str, Tensor], generator: torch.Generator) -> Params:
    """N stacked networks, each acted on by a random element of its own: augmentation by the symmetry group."""
    first = next(iter(params.values()))
    return act(random_element(spec, generator, count=len(first), dtype=first.dtype), spec, params)


def act_on_features(element: GroupElement, spec: NetworkSpec, features: WeightSpaceFeatures) -> WeightSpaceFeatures:
    """The transformed features: every channel moves as its type says."""
    _check_element(element, spec)
    # A raw bias, which takes the shift itself, stands in the first of a quantity's channels.
    kinds = [k if c % spec.channels == 0 else replace(k, affine=False) for c, k in enumerate(features.types)]
    moved = [_act_on_channel(element, spec, features, c, kind) for c, kind in enumerate(kinds)]
    weights, biases = (
        [torch.stack(layer, -1) for layer in zip(*part, strict=True)] for part in zip(*moved, strict=True)
    )
    return WeightSpaceFeatures(tuple(weights), tuple(biases), features.types)


def _act_on_channel(
    element: GroupElement, spec: NetworkSpec, features: WeightSpaceFeatures, channel: int, kind: ChannelType
) -> tuple[list[Tensor], list[Tensor]]:
    weights, biases = [], []
    for level, layer in enumerate(spec.layers):
        weight, bias = features.weights[level][..., channel], features.biases[level][..., channel]
        if level > 0:
            column = _factor(element.scale[level - 1], element.outgoing[level - 1], kind, inverse=True)
            weight = _pick(weight * column.to(weight.device).unsqueeze(-2), element.permutation[level - 1], -1)
        if level < spec.depth - 1:
            row = _factor(element.scale[level], element.incoming[level], kind).to(weight.device)
            weight = _pick(weight * row.unsqueeze(-1), element.permutation[level], -2)
            bias = bias * row
            if kind.affine and layer.activation.name == "sine":
                bias = bias + element.shift[level].to(bias.device) * (math.pi / layer.activation.parameter)
            bias = _pick(bias, element.permutation[level], -1)
        weights.append(weight)
        biases.append(bias)
    return weights, biases


def _check_element(element: GroupElement, spec: AnySpec) -> None:
    widths = tuple(q.shape[-1] for q in element.scale)
    if widths != spec.widths[1:-1]:
        raise ParamsError(f"got a group element of widths {widths}; expected {spec.widths[1:-1]}, the hidden widths.")


def _act_on_links(element: GroupElement, spec: GraphSpec, params: Mapping[str, Tensor], kind: ChannelType) -> Params:
    check_shapes(spec.param_shapes(), params)
    _check_element(element, spec)

    def moved(name: str, shape: tuple[int, ...], target: int, source: int | None = None) -> Tensor:
        """A tensor as [..., targets, sources, positions] times its factors, reordered."""
        sources = 1 if source is None else spec.widths[source]
        tensor = params[name]
        lead = tensor.shape[: tensor.dim() - len(shape)]
        matrix = tensor.reshape(*lead, shape[0], sources, -1)
        for level, signed, axis in ((target, element.incoming, -3), (source, element.outgoing, -2)):
            if level is None or not 0 < level < len(spec.levels) - 1:
                continue
            factor = _factor(element.scale[level - 1], signed[level - 1], kind, inverse=axis == -2).to(matrix)
            matrix = matrix * factor.unflatten(-1, (-1, 1, 1) if axis == -3 else (1, -1, 1))
            activation = spec.levels[level].activation
            if kind.affine and name == spec.levels[level].bias and activation.name == "sine":
                shift = element.shift[level - 1].to(matrix) * (math.pi / activation.parameter)
                matrix = matrix + shift.unflatten(-1, (-1, 1, 1))
            matrix = _pick(matrix, element.permutation[level - 1], axis)
        return matrix.reshape(*matrix.shape[:-3], *shape)

    found: Params = {}
    for link in spec.links:
        if link.parameter is not None:
            source = link.source if link.kind == "weight" else None
            found[link.parameter] = moved(link.parameter, link.shape, link.target, source)
    for number, level in enumerate(spec.levels):
        if level.bias is not None:
            found[level.bias] = moved(level.bias, (level.width,), number)
    return {name: found[name] for name in params}


def _factor(scale: Tensor, signed: Tensor, kind: ChannelType, inverse: bool = False) -> Tensor:
    factor = scale ** (-kind.scale if inverse else kind.scale)
    return factor * signed.sign() if kind.odd else factor


def _pick(tensor: Tensor, permutation: Tensor, axis: int) -> Tensor:
    """Reorder `tensor` along `axis` (negative) by a permutation [n] shared by all networks, or [N, n]."""
    permutation = permutation.to(tensor.device)
    if permutation.dim() == 1:
        return tensor.index_select(axis, permutation)
    axes = tensor.dim() + axis - 1
    index = permutation.reshape(len(permutation), *[1] * axes, -1, *[1] * (-axis - 1))
    return tensor.take_along_dim(index, axis)
