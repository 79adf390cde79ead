"""Following what a program does to its inputs alone: Fourier features of them, with constant frequencies.

Features are parts side by side, each a function of matrix @ x + shift, as ending.Encoding states them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from weightedit.network.constants import Constants
from weightedit.network.ending import Encoding
from weightedit.network.program import Call

Part = tuple[str, Tensor, Tensor]
"""(function, matrix [features, inputs], shift [features])."""
_WIDEST = 16  # inputs; a picture has no Fourier features


def identity(width: int) -> tuple[Part, ...]:
    """The inputs as they are; () for more than anyone takes features of."""
    like = torch.float64
    return (("identity", torch.eye(width, dtype=like), torch.zeros(width, dtype=like)),) if width <= _WIDEST else ()


def changed(call: Call, given: Sequence[tuple[Part, ...]], dims: int, constants: Constants) -> tuple[Part, ...] | None:
    """The features after an operation on a value of `dims` axes with the features `given`; None where it is unknown."""
    parts = tuple(part for one in given for part in one)
    if call.name == "cat" and all(given):
        return parts if call.given["dim"] % dims == dims - 1 else None
    if len(given) != 1 or not parts or any(function != "identity" for function, _, _ in parts):
        return None
    if call.name in ("sin", "cos"):
        return tuple((call.name, matrix, shift) for _, matrix, shift in parts)
    if call.name in ("linear", "matmul", "mm"):
        return _mapped(call, parts, constants)
    steps = constants.steps(call)
    if steps is None or any(step.name not in ("multiply", "add") for step in steps):
        return None
    for step in steps:
        by, more = (step.parameter, 0.0) if step.name == "multiply" else (1.0, step.parameter)
        parts = tuple((function, matrix * by, shift * by + more) for function, matrix, shift in parts)
    return parts


def _mapped(call: Call, parts: tuple[Part, ...], constants: Constants) -> tuple[Part, ...] | None:
    """A linear map by constants."""
    transposed = call.name != "linear"
    matrix = constants.of(call.given[{"linear": "weight", "matmul": "other", "mm": "mat2"}[call.name]])
    bias = call.given.get("bias")
    more = torch.zeros(()) if bias is None else constants.of(bias)
    if matrix is None or more is None or matrix.dim() != 2 or len(parts) != 1:
        return None
    by = (matrix.T if transposed else matrix).double().cpu()
    ((_, inner, shift),) = parts
    return (("identity", by @ inner, by @ shift + more.double().cpu()),)


def encodings(parts: tuple[Part, ...]) -> tuple[Encoding, ...]:
    """The same as plain data."""
    return tuple(Encoding(function, tuple(map(tuple, m.tolist())), tuple(s.tolist())) for function, m, s in parts)
