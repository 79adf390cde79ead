"""What the numbers that come out of an INR mean, and how its coordinates are laid out.

The same picture is stored differently by every code that fits INRs: the first input may be the column or the row, the
image may live in [0, 1] or [-1, 1], a constant may be added to the output, the sine may have another frequency. A
`Convention` says all of it, and `convert` rewrites the weights from one convention into another without changing the
picture. Rendering lives in siren.py, files in data/inr_files.py.

The conversions are ours and exact up to rounding: exchanging two inputs exchanges two columns of the first layer, an
affine change of the output is an affine change of the last layer, and sin(a z) = sin(b (a z / b)) moves the frequency
into the weights of a sine layer.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Annotated, Any

from torch import Tensor

from weightedit.errors import ParamsError, WeightEditError
from weightedit.files.schema import COMPLETE, conform
from weightedit.network.spec import Params

COORDINATE_ORDERS = ("xy", "ij")

_NAME = re.compile(r"layers\.(0|[1-9][0-9]*)\.(weight|bias)")


@dataclasses.dataclass(frozen=True)
class Convention:
    """How an INR's inputs and outputs are to be read.

    Args:
        omega: frequency of every sine layer, sin(omega * (W x + b)); positive.
        coordinates: "xy" = the first input is the column, "ij" = the first input is the row. Either way each axis
            is linspace(-1, 1, size).
        low, high: the image range the INR was fitted in; low < high.
        offset: constant added to the raw output o, so that (o + offset - low) / (high - low) is the image in [0, 1].

    Raises:
        WeightEditError: an unknown coordinate order, or numbers outside the ranges above.
    """

    omega: float = 30.0
    coordinates: str = "xy"
    low: float = 0.0
    high: float = 1.0
    offset: float = 0.5

    def __post_init__(self) -> None:
        for name in ("omega", "low", "high", "offset"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise WeightEditError(f"convention {name}={value!r}: expected a finite number; correct it.")
            object.__setattr__(self, name, float(value))
        if self.coordinates not in COORDINATE_ORDERS:
            raise WeightEditError(
                f"convention coordinates={self.coordinates!r}: expected one of {', '.join(COORDINATE_ORDERS)}; "
                'use "xy" if the first input is the column, "ij" if it is the row.'
            )
        if self.omega <= 0:
            raise WeightEditError(f"convention omega={self.omega}: expected a positive frequency; 30.0 is usual.")
        if self.low >= self.high:
            raise WeightEditError(
                f"convention low={self.low}, high={self.high}: expected low < high; "
                "give the range of the images the INR was fitted to, such as 0 and 1."
            )

    @property
    def span(self) -> float:
        """Width of the image range, high - low."""
        return self.high - self.low

    def to_value(self, raw: Tensor) -> Tensor:
        """Image value in [0, 1] (not clamped) of the raw output `raw`, any shape."""
        return (raw + (self.offset - self.low)) / self.span

    def to_raw(self, value: Tensor) -> Tensor:
        """Raw output that renders the image value `value` in [0, 1]; the inverse of `to_value`, any shape."""
        return value * self.span + (self.low - self.offset)

    def to_dict(self) -> dict[str, float | str]:
        """The convention as plain numbers and strings, for JSON and file headers."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Convention":
        """The convention that `to_dict` wrote; strict: every key must be there, and no other.

        Raises:
            WeightEditError: missing or unknown keys, or values that are out of range.
        """
        return conform(StatedConvention, values, "convention", WeightEditError)


StatedConvention = Annotated[Convention, COMPLETE]
"""A convention in a file: it states every field, since a convention is never guessed."""

DWSNETS = Convention()
"""MNIST and Fashion-MNIST INRs of DWSNets, and protocol P1: column first, image in [0, 1], 0.5 added to the output."""

NFN = Convention(coordinates="ij", low=-1.0, high=1.0, offset=0.0)
"""INRs of NFN: row first, image in [-1, 1], nothing added to the output."""


def widths_of(params: Params) -> tuple[int, ...]:
    """Widths (inputs, hidden..., outputs) of one network or a stack, read from names and shapes.

    Args:
        params: `layers.{i}.weight` [(N,) out, in] and `layers.{i}.bias` [(N,) out], i = 0, 1, ... without a gap.

    Raises:
        ParamsError: other names, a gap, a missing weight or bias, or shapes that do not fit one another.
    """
    if not isinstance(params, dict):
        raise ParamsError(f"params of type {type(params).__name__}: expected a dict of tensors; pass one.")
    names = [f"layers.{i}.{kind}" for i in range(len(params) // 2) for kind in ("weight", "bias")]
    if not names or set(names) != set(params):
        strange = [name for name in params if not _NAME.fullmatch(str(name))]
        remedy = f"without {strange[0]!r}; rename them." if strange else "without a gap; add what is missing."
        raise ParamsError(
            f"parameters named {sorted(map(str, params))}: expected layers.i.weight and layers.i.bias for i = 0, 1, "
            f"... {remedy}"
        )
    first = params["layers.0.weight"]
    lead = tuple(first.shape[:-2]) if first.dim() in (2, 3) else None
    widths = [first.shape[-1] if first.dim() else 0]
    for i in range(len(names) // 2):
        weight, bias = params[f"layers.{i}.weight"], params[f"layers.{i}.bias"]
        out = weight.shape[-2] if weight.dim() >= 2 else 0
        if lead is None or weight.shape != (*lead, out, widths[-1]) or bias.shape != (*lead, out):
            raise ParamsError(
                f"layer {i} has weight {tuple(weight.shape)} and bias {tuple(bias.shape)}: expected (out, "
                f"{widths[-1]}) and (out,), with one common leading axis when networks are stacked; "
                "check the transposition and the stacking."
            )
        widths.append(out)
    return tuple(widths)


def convert(params: Params, source: Convention, target: Convention) -> Params:
    """The same pictures under another convention: an exact reparametrisation.

    Args:
        params: canonical names, stacked or not, fitted under `source`.
        source, target: the conventions before and after.

    Returns:
        New parameters of the same shapes; what need not change is passed through unchanged.

    Raises:
        ParamsError: `params` is no canonical network, or the coordinate order changes and it has not two inputs.
    """
    widths = widths_of(params)
    result = dict(params)
    if source.coordinates != target.coordinates:
        if widths[0] != 2:
            raise ParamsError(
                f"a network of {widths[0]} inputs: expected 2 where the coordinate order changes from "
                f"{source.coordinates} to {target.coordinates}; convert between equal orders."
            )
        result["layers.0.weight"] = result["layers.0.weight"].flip(-1)
    last = len(widths) - 2
    if source.omega != target.omega:
        ratio = source.omega / target.omega
        for i in range(last):
            for name in (f"layers.{i}.weight", f"layers.{i}.bias"):
                result[name] = result[name] * ratio
    if (source.low, source.high, source.offset) != (target.low, target.high, target.offset):
        ratio = target.span / source.span
        weight, bias = f"layers.{last}.weight", f"layers.{last}.bias"
        result[weight] = result[weight] * ratio
        result[bias] = target.to_raw(source.to_value(result[bias]))
    return result
