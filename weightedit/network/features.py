"""Parameters and their companions as typed features: one tensor per layer, and how every channel transforms.

A channel type (k, parity) says what symmetry.md section 2 says: with a neuron factor q > 0 on both ends of an edge
j -> i, an edge channel is multiplied by (q_i / q_j)^k and a node channel by q_i^k; a sign acts when the type is odd and
not when it is even. For the half-period shift of a sine layer (symmetry.md section 4) the incoming and the outgoing
side of a neuron carry signs of their own, alpha and beta: odd edges take alpha_i beta_j, odd node channels alpha_i.
Raw parameters are odd of scale +1, and their biases also take the shift itself; a delta does not.

In a chain with convolutions an edge carries a whole kernel: every quantity takes K channels of one type, the positions
of the largest kernel row by row. Smaller kernels, and the weights of linear layers, are padded with zeros about their
center (by one more below and to the right where that is odd); biases stand in the first of the K channels. Without
convolutions K is 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from weightedit.errors import ParamsError, TypeMismatchError
from weightedit.network.spec import Layer, NetworkSpec, Params


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
DIRECTION = ChannelType(0, True)  # a gradient over the root of a mean square
SQUARED_GRADIENT = ChannelType(-2, False)
INVARIANT = ChannelType(0, False)


def check_types(given: Sequence[ChannelType], expected: Sequence[ChannelType], where: str) -> None:
    """Raise TypeMismatchError, with both sides printed, unless `given` equals `expected`."""
    if tuple(given) != tuple(expected):
        left, right = (", ".join(map(str, side)) or "none" for side in (given, expected))
        raise TypeMismatchError(
            f"{where}: got channels of type [{left}]; expected [{right}]. Pass features of these types in this order."
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
                f"got features with {sorted(channels)} channels with {len(self.types)} types; expected one type each."
            )


def features_from_params(
    spec: NetworkSpec, params: Mapping[str, Tensor], extra: Sequence[tuple[ChannelType, Params]] = ()
) -> WeightSpaceFeatures:
    """Typed features of `params` (the first K channels, type PARAMETER) and of further quantities named and shaped so.

    Args:
        spec: of the networks.
        params: one network or N stacked ones.
        extra: pairs of type and named tensors (gradients, moments, ...), K channels each.

    Raises ParamsError on names or shapes that do not fit, or when `extra` is not stacked as `params` is.
    """
    channels = [(PARAMETER, params), *extra]
    count, *others = [spec.check_shapes(values) for _, values in channels]
    for other in others:
        if other != count:
            raise ParamsError(
                f"got params of {_networks(count)} with extra tensors of {_networks(other)}; expected the same number "
                "of networks in both. Stack the extra tensors as the parameters are."
            )

    def biases(layer: Layer, weight: Tensor) -> Tensor:
        if layer.bias is None:
            return weight.new_zeros(*weight.shape[:-2], weight.shape[-1])
        found = [values[layer.bias].unsqueeze(-1) for _, values in channels]
        if spec.channels > 1:
            found = [functional.pad(bias, (0, spec.channels - 1)) for bias in found]
        return torch.cat(found, -1) if len(found) > 1 else found[0]

    def weight(layer: Layer) -> Tensor:
        found = [kernel_to_channels(values[layer.weight], layer.kernel, spec.kernel) for _, values in channels]
        return torch.cat(found, -1) if len(found) > 1 else found[0]

    weights = tuple(map(weight, spec.layers))
    types = tuple(kind for kind, _ in channels for _ in range(spec.channels))
    return WeightSpaceFeatures(weights, tuple(map(biases, spec.layers, weights)), types)


def _networks(count: int | None) -> str:
    return "a single network" if count is None else f"{count} stacked networks"


def params_from_features(spec: NetworkSpec, features: WeightSpaceFeatures, quantity: int = 0) -> Params:
    """One quantity as named tensors; the inverse of `features_from_params`. Layers without bias drop theirs.

    Args:
        spec: of the networks.
        features: K channels per quantity.
        quantity: 0 for the parameters, then the `extra` ones in order.
    """
    params: Params = {}
    first = quantity * spec.channels
    for layer, weight, bias in zip(spec.layers, features.weights, features.biases, strict=True):
        positions = weight[..., first : first + spec.channels]
        params[layer.weight] = channels_to_kernel(positions, layer.kernel, spec.kernel)
        if layer.bias is not None:
            params[layer.bias] = bias[..., first]
    return params


def _margins(kernel: tuple[int, int] | None, box: tuple[int, int]) -> tuple[int, int, int, int]:
    """Free (top, bottom, left, right) of a kernel, centered in the box of the largest kernel."""
    (height, width), (rows, columns) = kernel or (1, 1), box
    top, left = (rows - height) // 2, (columns - width) // 2
    return top, rows - height - top, left, columns - width - left


def kernel_to_channels(weight: Tensor, kernel: tuple[int, int] | None, box: tuple[int, int]) -> Tensor:
    """A weight as K channels, the positions of the largest kernel: [..., out, in] or [..., out, in, h, w] -> [..., K].

    Args:
        weight: with the axes of its kernel where it has one.
        kernel: (height, width), None for a weight without one.
        box: (height, width) of the largest kernel.
    """
    if kernel is None and box == (1, 1):
        return weight.unsqueeze(-1)
    top, bottom, left, right = _margins(kernel, box)
    weight = weight if kernel is not None else weight.unsqueeze(-1).unsqueeze(-1)
    return functional.pad(weight, (left, right, top, bottom)).flatten(-2)


def channels_to_kernel(positions: Tensor, kernel: tuple[int, int] | None, box: tuple[int, int]) -> Tensor:
    """The inverse of `kernel_to_channels`; what stands in the padding is dropped."""
    if kernel is None and box == (1, 1):
        return positions.squeeze(-1)
    top, bottom, left, right = _margins(kernel, box)
    weight = positions.unflatten(-1, box)[..., top : box[0] - bottom, left : box[1] - right]
    return weight if kernel is not None else weight.squeeze(-1).squeeze(-1)
