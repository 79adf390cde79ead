"""What a chain does before its first layer and after its last one: part of its function, but not of its symmetry.

Inputs and outputs keep their order and carry no factors, whatever is done to them. Fourier features are those of
Tancik et al. 2020, "Fourier Features Let Networks Learn High Frequency Functions in Low Dimensional Domains".
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from weightedit.errors import SpecError
from weightedit.network.layer import ACTIVATION_NAMES, Activation

ENDINGS = (*ACTIVATION_NAMES[1:], "add", "multiply", "softmax", "log_softmax")
_NUMBERS = ("add", "multiply")
ENCODINGS = ("identity", "sin", "cos")


@dataclass(frozen=True)
class Ending:
    """One operation on the outputs: an activation, a number added or multiplied, or a softmax over the outputs.

    Attributes:
        name: one of ENDINGS.
        parameter: the number; of an activation, as `Activation` has it; else 0.
    """

    name: str
    parameter: float = 0.0

    def __post_init__(self) -> None:
        if self.name not in ENDINGS:
            raise SpecError(f"got the ending {self.name!r}; expected one of {', '.join(ENDINGS)}.")
        if self.name in ACTIVATION_NAMES:
            Activation(self.name, self.parameter)

    def __call__(self, z: Tensor, axis: int = -1) -> Tensor:
        """Of outputs `z`, which run along `axis`; the same shape."""
        match self.name:
            case "add":
                return z + self.parameter
            case "multiply":
                return z * self.parameter
            case "softmax":
                return z.softmax(axis)
            case "log_softmax":
                return z.log_softmax(axis)
            case _:
                return Activation(self.name, self.parameter)(z)


@dataclass(frozen=True)
class Encoding:
    """Some of the features that the first layer reads: `function` of matrix @ x + shift.

    Attributes:
        function: one of ENCODINGS.
        matrix: a row of coefficients per feature, one for every input.
        shift: one number per feature.
    """

    function: str
    matrix: tuple[tuple[float, ...], ...]
    shift: tuple[float, ...]

    def __post_init__(self) -> None:
        rows = {len(row) for row in self.matrix}
        if self.function not in ENCODINGS or len(rows) != 1 or len(self.shift) != len(self.matrix):
            raise SpecError(
                f"got an encoding by {self.function!r} with rows of {sorted(rows)} coefficients and {len(self.shift)} "
                f"shifts; expected one of {', '.join(ENCODINGS)}, rows of one length, and a shift for each."
            )

    def __call__(self, x: Tensor) -> Tensor:
        """[..., inputs] -> [..., features]."""
        z = x @ x.new_tensor(self.matrix).T + x.new_tensor(self.shift)
        return z if self.function == "identity" else z.sin() if self.function == "sin" else z.cos()


def encoded(encodings: tuple[Encoding, ...], x: Tensor) -> Tensor:
    """The features of `x` [..., inputs], side by side: [..., features]; `x` itself where there are no encodings."""
    return torch.cat([encoding(x) for encoding in encodings], -1) if encodings else x
