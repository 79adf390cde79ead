"""One layer of a network, in the words a spec is made of: its names, its activation, and the neuron group that allows.

The table of allowed neuron factors follows symmetry.md section 1 (Godfrey et al. 2022, "On the Symmetries of Deep
Learning Models and their Internal Representations"; the half-period shift of sine layers is derived in symmetry.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from weightedit.errors import SpecError

Symmetry = Literal["full", "permutation", "sign", "scale"]
SYMMETRIES: tuple[Symmetry, ...] = ("full", "permutation", "sign", "scale")


@dataclass(frozen=True)
class NeuronGroup:
    """The factors a hidden neuron may carry besides permutation: `scale` q > 0, `flip` +-1, half-period `shift`."""

    scale: bool = False
    flip: bool = False
    shift: bool = False

    def restricted(self, symmetry: Symmetry) -> NeuronGroup:
        """The part of this group inside `symmetry` ("full" keeps all of it, "permutation" none)."""
        if symmetry not in SYMMETRIES:
            raise SpecError(f"symmetry {symmetry!r} is unknown; expected one of {', '.join(SYMMETRIES)}.")
        if symmetry == "full":
            return self
        return NeuronGroup(scale=self.scale and symmetry == "scale", flip=self.flip and symmetry == "sign")

    def __and__(self, other: NeuronGroup) -> NeuronGroup:
        """The factors that are in both."""
        return NeuronGroup(self.scale and other.scale, self.flip and other.flip, self.shift and other.shift)


_GROUPS = {
    "identity": NeuronGroup(scale=True, flip=True),
    "relu": NeuronGroup(scale=True),
    "leaky_relu": NeuronGroup(scale=True),
    "tanh": NeuronGroup(flip=True),
    "sine": NeuronGroup(flip=True, shift=True),
    "gelu": NeuronGroup(),
    "silu": NeuronGroup(),
    "sigmoid": NeuronGroup(),
}
# In a fixed order, which embeddings of activations rely on: new ones go last.
ACTIVATION_NAMES = tuple(_GROUPS)
_PARAMETER_NAMES = {"sine": "omega", "leaky_relu": "negative slope"}


@dataclass(frozen=True)
class Activation:
    """An elementwise activation. `parameter` is omega for "sine" (sin(omega z)), the slope for "leaky_relu", else 0."""

    name: str
    parameter: float = 0.0

    def __post_init__(self) -> None:
        if self.name not in _GROUPS:
            raise SpecError(f"activation {self.name!r} is unknown; expected one of {', '.join(_GROUPS)}.")
        if self.name == "sine" and not (math.isfinite(self.parameter) and self.parameter > 0):
            raise SpecError(f"got sine with omega = {self.parameter}; expected a positive number (30 for most INRs).")
        if self.name not in _PARAMETER_NAMES and self.parameter:
            raise SpecError(f"got activation {self.name!r} takes no parameter, but {self.parameter}; leave it out.")

    @property
    def group(self) -> NeuronGroup:
        """The neuron factors that this activation allows."""
        return _GROUPS[self.name]

    def __call__(self, z: Tensor) -> Tensor:
        """Activations of pre-activations `z`, any shape."""
        match self.name:
            case "identity":
                return z
            case "relu":
                return z.relu()
            case "leaky_relu":
                return functional.leaky_relu(z, self.parameter)
            case "tanh":
                return z.tanh()
            case "sine":
                return (self.parameter * z).sin()
            case "gelu":
                return functional.gelu(z)
            case "silu":
                return functional.silu(z)
            case _:
                return z.sigmoid()

    def slope(self, z: Tensor) -> Tensor:
        """Derivative at `z` (for sine divided by omega, that is cos(omega z)).

        It transforms as an activation over a pre-activation, which makes it the natural factor between a quantity of
        a neuron's incoming side and one of its outgoing side (symmetry.md section 4).
        """
        match self.name:
            case "identity":
                return torch.ones_like(z)
            case "relu":
                return (z > 0).to(z.dtype)
            case "leaky_relu":
                return torch.ones_like(z).where(z > 0, self.parameter)
            case "tanh":
                return 1 - z.tanh().square()
            case "sine":
                return (self.parameter * z).cos()
            case "gelu":
                density = torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi)
                return torch.special.ndtr(z) + z * density
            case "silu":
                gate = z.sigmoid()
                return gate * (1 + z * (1 - gate))
            case _:
                gate = z.sigmoid()
                return gate * (1 - gate)


IDENTITY = Activation("identity")


@dataclass(frozen=True)
class Layer:
    """A weight matrix, named `weight`, its bias (None: it has none) and the activation that follows.

    A convolution has a `kernel` (height, width), its stride and its zero padding, the same in both directions; its
    neurons are channels and its weight is (fan_out, fan_in, height, width). Without a kernel it is (fan_out, fan_in).
    """

    weight: str
    bias: str | None
    fan_in: int
    fan_out: int
    activation: Activation = IDENTITY
    kernel: tuple[int, int] | None = None
    stride: int = 1
    padding: int = 0

    def __post_init__(self) -> None:
        plain = self.kernel is None and (self.stride, self.padding) == (1, 0)
        conv = self.kernel is not None and len(self.kernel) == 2 and min(*self.kernel, self.stride) >= 1
        if not plain and not (conv and self.padding >= 0):
            raise SpecError(
                f"got {self.weight} with kernel {self.kernel}, stride {self.stride} and padding {self.padding}; "
                "expected (height, width) and a stride of at least 1, padding of at least 0, or none of them."
            )

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the weight of one network, as torch has it."""
        return (self.fan_out, self.fan_in, *(self.kernel or ()))
