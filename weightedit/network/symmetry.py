"""The symmetry group of a network's parameters: elements, their action, random elements.

An element carries, per hidden layer, a permutation, positive factors q, signs alpha (flips) and integer counts k of
half-period shifts (sine layers only). The factors act first, then the permutation. With s(M z) = phi(M) s(z) the
network's function is unchanged under W_l -> M_l W_l phi(M_{l-1})^{-1}, b_l -> M_l b_l (symmetry.md section 1). On the
incoming side a neuron's factor is q alpha, on the outgoing side q beta with beta = alpha (-1)^k, since

    sin(omega (alpha z + k pi / omega)) = alpha (-1)^k sin(omega z),

so a shift adds k pi / omega to the raw bias and flips the outgoing column only.
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
from weightedit.network.spec import NetworkSpec, Params, Symmetry


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


def identity_element(spec: NetworkSpec, like: Tensor) -> GroupElement:
    """The element that changes nothing, on the device and in the dtype of `like`."""
    widths = spec.widths[1:-1]
    ones = tuple(like.new_ones(n) for n in widths)
    order = tuple(torch.arange(n, device=like.device) for n in widths)
    return GroupElement(order, ones, ones, tuple(like.new_zeros(n) for n in widths))


def random_element(
    spec: NetworkSpec,
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
        generator: source of randomness (CPU).
        symmetry: part of the group to draw from.
        count: N for a different element per stacked network, None for one element.
        scale_range: q is log-uniform in it.
        dtype: of the factors.
    """
    low, high = map(math.log, scale_range)
    tensors: list[list[Tensor]] = [[], [], [], []]
    for width, group in zip(spec.widths[1:-1], spec.neuron_groups(symmetry), strict=True):
        shape = (width,) if count is None else (count, width)
        uniform = torch.rand(4, *shape, generator=generator, dtype=torch.float64)
        tensors[0].append(uniform[0].argsort(-1))
        tensors[1].append((low + (high - low) * uniform[1]).exp() if group.scale else torch.ones(shape))
        tensors[2].append(1 - 2 * (uniform[2] < 0.5).double() if group.flip else torch.ones(shape))
        tensors[3].append((uniform[3] * 5).floor() - 2 if group.shift else torch.zeros(shape))
    cast = [tuple(tensor.to(dtype) for tensor in part) for part in tensors[1:]]
    return GroupElement(tuple(tensors[0]), *cast)


def act(
    element: GroupElement, spec: NetworkSpec, params: Mapping[str, Tensor], kind: ChannelType = PARAMETER
) -> Params:
    """The transformed parameters: another network that computes the same function.

    Args:
        element: shared by all networks, or one per stacked network.
        spec: of the networks.
        params: one network or N stacked ones.
        kind: PARAMETER, or DELTA, GRADIENT, ... for a quantity of the same names and shapes.

    Raises ParamsError if `params` does not fit `spec`, or the element does not fit it.
    """
    moved = act_on_features(element, spec, replace(features_from_params(spec, params), types=(kind,) * spec.channels))
    for layer, bias in zip(spec.layers, moved.biases, strict=True):
        if layer.bias is None and bool(bias.any()):
            raise ParamsError(f"{layer.weight} has no bias, but a phase shift needs one; expected shift = 0 there.")
    return params_from_features(spec, moved)


def act_on_features(element: GroupElement, spec: NetworkSpec, features: WeightSpaceFeatures) -> WeightSpaceFeatures:
    """The transformed features: every channel moves as its type says."""
    widths = tuple(q.shape[-1] for q in element.scale)
    if widths != spec.widths[1:-1]:
        raise ParamsError(f"a group element of widths {widths} came; expected {spec.widths[1:-1]}, the hidden widths.")
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


def _factor(scale: Tensor, signed: Tensor, kind: ChannelType, inverse: bool = False) -> Tensor:
    factor = scale ** (-kind.scale if inverse else kind.scale)
    return factor * signed.sign() if kind.odd else factor


def _pick(tensor: Tensor, permutation: Tensor, axis: int) -> Tensor:
    """Reorder `tensor` along `axis` (-1 or -2) by a permutation [n] shared by all networks, or [N, n]."""
    permutation = permutation.to(tensor.device)
    if permutation.dim() == 1:
        return tensor.index_select(axis, permutation)
    index = permutation if tensor.dim() == 2 else permutation.unsqueeze(-2 if axis == -1 else -1)
    return tensor.gather(axis, index.expand_as(tensor))
