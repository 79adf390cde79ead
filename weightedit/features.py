"""Parameters and their companions as typed features: one tensor per layer, and how every channel transforms.

A channel type (k, parity) says what symmetry.md section 2 says: with a neuron factor q > 0 on both ends of an edge
j -> i, an edge channel is multiplied by (q_i / q_j)^k and a node channel by q_i^k; a sign acts when the type is odd and
not when it is even. For the half-period shift of a sine layer (symmetry.md section 4) the incoming and the outgoing
side of a neuron carry signs of their own, alpha and beta: odd edges take alpha_i beta_j, odd node channels alpha_i.
Raw parameters are odd of scale +1, and their biases also take the shift itself; a delta does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from weightedit.errors import ParamsError, TypeMismatchError
from weightedit.spec import NetworkSpec, Params


@dataclass(frozen=True)
class ChannelType:
    """How one channel transforms: `scale` is the exponent k, `odd` whether signs act, `affine` whether shifts add."""

    scale: int
    odd: bool
    affine: bool = False

    def __str__(self) -> str:
        return f"({self.scale:+d}, {'odd' if self.odd else 'even'}{', affine' if self.affine else ''})"


PARAMETER = ChannelType(+1, True, affine=True)
DELTA = ChannelType(+1, True)
GRADIENT = ChannelType(-1, True)
SQUARED_GRADIENT = ChannelType(-2, False)
INVARIANT = ChannelType(0, False)


def check_types(given: Sequence[ChannelType], expected: Sequence[ChannelType], where: str) -> None:
    """Raise TypeMismatchError, with both sides printed, unless `given` equals `expected`."""
    if tuple(given) != tuple(expected):
        left, right = (", ".join(map(str, side)) or "none" for side in (given, expected))
        raise TypeMismatchError(
            f"{where}: channels of type [{left}] came; expected [{right}]. Pass features of these types in this order."
        )


@dataclass(frozen=True)
class WeightSpaceFeatures:
    """Features on the weights and biases of N networks of one architecture (the axis N is absent for one network).

    Attributes:
        weights: per layer [N, out, in, C].
        biases: per layer [N, out, C]; zeros where a layer has no bias.
        types: the type of each of the C channels.
    """

    weights: tuple[Tensor, ...]
    biases: tuple[Tensor, ...]
    types: tuple[ChannelType, ...]

    def __post_init__(self) -> None:
        channels = {tensor.shape[-1] for tensor in (*self.weights, *self.biases)}
        if channels != {len(self.types)}:
            raise TypeMismatchError(
                f"features with {sorted(channels)} channels came with {len(self.types)} types; expected one type each."
            )


def features_from_params(
    spec: NetworkSpec, params: Mapping[str, Tensor], extra: Sequence[tuple[ChannelType, Params]] = ()
) -> WeightSpaceFeatures:
    """Typed features of `params` (channel 0, type PARAMETER) and of further quantities of the same names and shapes.

    Args:
        spec: of the networks.
        params: one network or N stacked ones.
        extra: pairs of type and named tensors (gradients, moments, ...), one channel each.

    Raises ParamsError on names or shapes that do not fit, or when `extra` is not stacked as `params` is.
    """
    channels = [(PARAMETER, params), *extra]
    count, *others = [spec.check_shapes(values) for _, values in channels]
    for other in others:
        if other != count:
            raise ParamsError(
                f"params of {_networks(count)} came with extra tensors of {_networks(other)}; expected the same number "
                "of networks in both. Stack the extra tensors as the parameters are."
            )

    def gather(name: str | None, like: Tensor) -> Tensor:
        if name is None:
            return like.new_zeros(*like.shape[:-1], len(channels))
        return torch.stack([values[name] for _, values in channels], -1)

    weights = tuple(gather(layer.weight, params[layer.weight]) for layer in spec.layers)
    biases = tuple(gather(layer.bias, params[layer.weight]) for layer in spec.layers)
    return WeightSpaceFeatures(weights, biases, tuple(kind for kind, _ in channels))


def _networks(count: int | None) -> str:
    return "a single network" if count is None else f"{count} stacked networks"


def params_from_features(spec: NetworkSpec, features: WeightSpaceFeatures, channel: int = 0) -> Params:
    """One channel as named tensors; the inverse of `features_from_params`. Layers without bias drop theirs."""
    params: Params = {}
    for layer, weight, bias in zip(spec.layers, features.weights, features.biases, strict=True):
        params[layer.weight] = weight[..., channel]
        if layer.bias is not None:
            params[layer.bias] = bias[..., channel]
    return params
