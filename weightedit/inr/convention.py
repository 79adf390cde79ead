"""What the numbers that come out of an INR mean, how its coordinates are laid out, and what lies between its layers.

The same picture is stored differently by every code that fits INRs: the first input may be the column or the row, the
axes may have any range, the image may live in [0, 1] or [-1, 1], a constant may be added to the output, every sine may
have another frequency, the last layer may be linear or end in a sine or a sigmoid. A `Convention` says all of it, and
`convert` rewrites the weights from one convention into another without changing the picture. Rendering lives in
siren.py, files in data/inr_files.py.

The conversions are ours and exact up to rounding: exchanging two inputs exchanges two columns of the first layer, an
affine change of an input is an affine change of the first layer and one of the output of a linear last layer, and
sin(a z) = sin(b (a z / b)) moves the frequency into the weights of a sine layer.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Annotated, Any

from torch import Tensor

from weightedit.errors import ParamsError, WeightEditError
from weightedit.files.schema import COMPLETE, LATER, conform
from weightedit.network.layer import IDENTITY, Activation
from weightedit.network.spec import NetworkSpec, Params

COORDINATE_ORDERS = ("xy", "ij")
HIDDEN = ("sine", "relu", "tanh", "gelu", "silu", "sigmoid")
LAST = ("linear", "sine", "sigmoid", "tanh")

_NAME = re.compile(r"layers\.(0|[1-9][0-9]*)\.(weight|bias)")
_RANGE = (-1.0, 1.0)
_ANEW = "render it and fit the pictures anew"


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise WeightEditError(f"convention {name}={value!r}: expected a finite number; correct it.")
    return float(value)


def _frequencies(value: object) -> float | tuple[float, ...]:
    """One frequency where all are the same, else as few as say it."""
    found = [_number("omega", omega) for omega in (value if isinstance(value, (tuple, list)) else (value,))]
    if not found or min(found) <= 0:
        raise WeightEditError(f"convention omega={value}: expected a positive frequency; 30.0 is usual.")
    while len(found) > 1 and found[-1] == found[-2]:
        found.pop()
    return tuple(found) if len(found) > 1 else found[0]


def _ranges(value: Any) -> tuple[tuple[float, float], ...]:
    """No ranges where all are [-1, 1]."""
    pairs = value if isinstance(value, (tuple, list)) else (value,)
    if not all(isinstance(pair, (tuple, list)) and len(pair) == 2 for pair in pairs):
        raise WeightEditError(f"convention ranges={value!r}: expected a (first, last) for every input, or none.")
    found = tuple((_number("ranges", first), _number("ranges", last)) for first, last in pairs)
    if any(first == last for first, last in found):
        raise WeightEditError(f"convention ranges={value}: expected two different ends for every input; correct them.")
    return () if all(pair == _RANGE for pair in found) else found


def _listed(value: object) -> object:
    return [_listed(item) for item in value] if isinstance(value, tuple) else value


@dataclasses.dataclass(frozen=True)
class Convention:
    """How an INR's inputs and outputs are to be read, and which functions follow its layers.

    Args:
        omega: frequency of every sine layer, sin(omega * (W x + b)); positive. A tuple gives the layers one each, in
            order, and its last number is that of all further ones: (30, 1) is siren-pytorch's.
        coordinates: "ij" = the inputs are the axes of the image in their order, the row first; "xy" = in reverse, the
            column first.
        low, high: the image range the INR was fitted in; low < high.
        offset: constant added to the raw output o, so that (o + offset - low) / (high - low) is the image in [0, 1].
        ranges: of every input, in the inputs' order, the coordinate of the first and of the last place of its axis,
            which is linspace between them; () is (-1, 1) for all.
        activation: one of HIDDEN, after every layer but the last.
        last: one of LAST, after the last layer.
        bounded: whether values are those of an image, in [0, 1]; else they are any real numbers, as of a sound or a
            distance, and nothing cuts them off.

    Raises:
        WeightEditError: an unknown word, or numbers outside the ranges above.
    """

    omega: float | tuple[float, ...] = 30.0
    coordinates: str = "xy"
    low: float = 0.0
    high: float = 1.0
    offset: float = 0.5
    ranges: tuple[tuple[float, float], ...] = dataclasses.field(default=(), metadata=LATER)
    activation: str = dataclasses.field(default="sine", metadata=LATER)
    last: str = dataclasses.field(default="linear", metadata=LATER)
    bounded: bool = dataclasses.field(default=True, metadata=LATER)

    def __post_init__(self) -> None:
        for name in ("low", "high", "offset"):
            object.__setattr__(self, name, _number(name, getattr(self, name)))
        object.__setattr__(self, "omega", _frequencies(self.omega))
        object.__setattr__(self, "ranges", _ranges(self.ranges))
        if self.coordinates not in COORDINATE_ORDERS:
            raise WeightEditError(
                f"convention coordinates={self.coordinates!r}: expected one of {', '.join(COORDINATE_ORDERS)}; "
                'use "xy" if the first input is the column, "ij" if it is the row.'
            )
        for name, known in (("activation", HIDDEN), ("last", LAST)):
            if getattr(self, name) not in known:
                raise WeightEditError(
                    f"convention {name}={getattr(self, name)!r}: expected one of {', '.join(known)}; choose the one "
                    "that the INR was fitted with."
                )
        if not isinstance(self.bounded, bool):
            raise WeightEditError(f"convention bounded={self.bounded!r}: expected True for images, False for the rest.")
        if self.low >= self.high:
            raise WeightEditError(
                f"convention low={self.low}, high={self.high}: expected low < high; "
                "give the range of the images the INR was fitted to, such as 0 and 1."
            )

    def omegas(self, count: int) -> tuple[float, ...]:
        """Frequencies of the first `count` sine layers."""
        omega = self.omega if isinstance(self.omega, tuple) else (self.omega,)
        return tuple(omega[min(i, len(omega) - 1)] for i in range(count))

    def activations(self, count: int) -> tuple[Activation, ...]:
        """What follows each of `count` layers; the last one's included, which a NetworkSpec leaves out."""
        names = [self.activation] * (count - 1) + [self.last]
        pairs = zip(names, self.omegas(count), strict=True)
        return tuple(
            IDENTITY if name == "linear" else Activation(name, omega if name == "sine" else 0.0)
            for name, omega in pairs
        )

    def spec(self, widths: tuple[int, ...]) -> NetworkSpec:
        """The network of these widths, inputs first, from which its symmetry follows."""
        return NetworkSpec.mlp(widths, self.activations(len(widths) - 1)[:-1])

    def ranges_of(self, inputs: int) -> tuple[tuple[float, float], ...]:
        """First and last coordinate of each of `inputs` inputs, in their order; ParamsError if others are stated."""
        if self.ranges and len(self.ranges) != inputs:
            raise ParamsError(
                f"got a network of {inputs} inputs under a convention with {len(self.ranges)} ranges of coordinates; "
                "expected one for each input: state them all, in the inputs' order."
            )
        return self.ranges or (_RANGE,) * inputs

    @property
    def frequency(self) -> float:
        """The one frequency of all sine layers; raises WeightEditError where they differ."""
        if isinstance(self.omega, tuple):
            raise WeightEditError(
                f"got a convention with the frequencies {self.omega}; expected one for all layers: convert the "
                "weights to convention.plain first."
            )
        return self.omega

    @property
    def plain(self) -> "Convention":
        """The convention nearest to this with one frequency for all layers and coordinates in [-1, 1]."""
        omega = 30.0 if isinstance(self.omega, tuple) else self.omega
        return dataclasses.replace(self, omega=omega, ranges=())

    def check_plain_siren(self) -> None:
        """Raise WeightEditError unless all layers are sines of one frequency, the last one is linear, and the
        coordinates are in [-1, 1]; `convert` to `plain` mends all but the functions."""
        if (self.activation, self.last) != ("sine", "linear"):
            raise WeightEditError(
                f"got an INR with {self.activation} after its hidden layers and {self.last} after its last; expected "
                f"sine and linear, which no change of weights makes of them: {_ANEW}."
            )
        self.check_plain()

    def check_plain(self) -> None:
        """Raise WeightEditError unless all sine layers have one frequency, and the coordinates are in [-1, 1]."""
        if self != self.plain:
            raise WeightEditError(
                f"got an INR of {self}; expected one frequency, and coordinates in [-1, 1]: convert it to "
                "convention.plain."
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

    def to_dict(self) -> dict[str, Any]:
        """The convention as plain data, for JSON and file headers; of the LATER fields, those that say something."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        defaults = {field.name: field.default for field in dataclasses.fields(self) if field.metadata == LATER}
        return {
            name: _listed(value) for name, value in values.items() if name not in defaults or value != defaults[name]
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Convention":
        """The convention that `to_dict` wrote; strict: every key but LATER ones must be there, and no other.

        Raises:
            WeightEditError: missing or unknown keys, or values that are out of range.
        """
        return conform(StatedConvention, values, "convention", WeightEditError)


StatedConvention = Annotated[Convention, COMPLETE]
"""A convention in a file: it states every field, since a convention is never guessed."""

DWSNETS = Convention()
"""MNIST and Fashion-MNIST INRs of DWSNets, and protocol P1: column first, image in [0, 1], 0.5 added to the output."""

NFN = Convention(coordinates="ij", low=-1.0, high=1.0, offset=0.0)
"""INRs of NFN and of SIREN's authors: row first, image in [-1, 1], nothing added to the output."""

SIREN_PYTORCH = Convention(omega=(30.0, 1.0), coordinates="ij", offset=0.0)
"""INRs of the package siren-pytorch by its defaults: omega 30 in the first layer, 1 in all others; row first."""


SAMPLES = Convention(offset=0.0, bounded=False)
"""INRs of samples: coordinates in [-1, 1], values as they are."""


def coin_convention(height: int, width: int) -> Convention:
    """INRs of COIN for pictures of this size: row first, and both axes divided by height - 1, so that the last column
    of a picture that is not square is at 2 (width - 1) / (height - 1) - 1."""
    last = 2.0 * (width - 1) / max(height - 1, 1) - 1.0
    return Convention(coordinates="ij", offset=0.0, ranges=(_RANGE, (-1.0, last)))


def network_of(params: Mapping[str, Tensor], convention: Convention) -> NetworkSpec:
    """The network whose canonical names and shapes (with or without a leading network axis) `params` has.

    Raises:
        ParamsError: other names, or shapes that do not fit one another.
    """
    return convention.spec(NetworkSpec.from_params(params).widths)


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
    """The same pictures under another convention: an exact reparametrization.

    Args:
        params: canonical names, stacked or not, fitted under `source`.
        source, target: the conventions before and after.

    Returns:
        New parameters of the same shapes; what need not change is passed through unchanged.

    Raises:
        ParamsError: `params` is no canonical network, or no weights are the same picture under `target`: the functions
            between the layers differ, or those after the last layer do, or its output would have to be rescaled
            behind a function that is not linear.
    """
    widths, result = widths_of(params), dict(params)
    _check_functions(source, target)
    _move_coordinates(result, widths[0], source, target)
    count = len(widths) - 1
    pairs = zip(source.omegas(count), target.omegas(count), source.activations(count), strict=True)
    for i, (old, new, activation) in enumerate(pairs):
        if old != new and activation.name == "sine":
            ratio = old / new
            for name in (f"layers.{i}.weight", f"layers.{i}.bias"):
                result[name] = result[name] * ratio
    if (source.low, source.high, source.offset) != (target.low, target.high, target.offset):
        ratio = target.span / source.span
        weight, bias = f"layers.{count - 1}.weight", f"layers.{count - 1}.bias"
        result[weight] = result[weight] * ratio
        result[bias] = target.to_raw(source.to_value(result[bias]))
    return result


def _check_functions(source: Convention, target: Convention) -> None:
    for what, mine, other in (
        ("its hidden layers", source.activation, target.activation),
        ("its last layer", source.last, target.last),
    ):
        if mine != other:
            raise ParamsError(
                f"got an INR with {mine} after {what}; expected {other}, which no change of weights makes of it: use "
                f"what was made for {mine}, or {_ANEW}."
            )
    before, after = ((c.low, c.high, c.offset) for c in (source, target))
    if source.last != "linear" and before != after:
        raise ParamsError(
            f"got an INR whose last layer ends in a {source.last} with (low, high, offset) {before} where {after} is "
            "expected; no change of weights rescales what comes after it: keep its range and offset."
        )


def _move_coordinates(params: Params, inputs: int, source: Convention, target: Convention) -> None:
    """The first layer of `params` from coordinates of `source` to those of `target`, in place of what was there."""
    before, after = source.ranges_of(inputs), target.ranges_of(inputs)
    weight, bias = params["layers.0.weight"], params["layers.0.bias"]
    if source.coordinates != target.coordinates:
        weight, before = weight.flip(-1), before[::-1]
    if before != after:
        ratios = [(b[1] - b[0]) / (a[1] - a[0]) for b, a in zip(before, after, strict=True)]
        shifts = [b[0] - ratio * a[0] for b, a, ratio in zip(before, after, ratios, strict=True)]
        bias = bias + (weight * weight.new_tensor(shifts)).sum(-1)
        weight = weight * weight.new_tensor(ratios)
    params["layers.0.weight"], params["layers.0.bias"] = weight, bias
