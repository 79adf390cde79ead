"""SIRENs: networks that map a coordinate to a value through sin(omega * (W x + b)), one or thousands at once.

Here are the module, the named initializations, coordinate grids and the rendering of a whole stack by batched
products. What the output means as an image is convention.py's; fitting is in fitting.py.

Source of the network and its initialization: Sitzmann et al., "Implicit Neural Representations with Periodic
Activation Functions" (2020), section 3.2 and the authors' published code.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from weightedit.capacity import check_capacity
from weightedit.errors import ParamsError, WeightEditError
from weightedit.inr.convention import COORDINATE_ORDERS, Convention, Params, widths_of
from weightedit.network.layer import IDENTITY

_CHUNK_CPU, _CHUNK = 2**20, 2**28
"""Activations of one layer at once, in numbers: what a CPU's cache holds, about a GB elsewhere."""


def _siren_bounds(layer: int, fan_in: int, omega: float) -> tuple[float, float]:
    weight = 1.0 / fan_in if layer == 0 else math.sqrt(6.0 / fan_in) / omega
    return weight, 1.0 / math.sqrt(fan_in)


def _dwsnets_bounds(layer: int, fan_in: int, omega: float) -> tuple[float, float]:
    return math.sqrt(6.0 / fan_in) / omega, 0.0


INITIALIZATIONS: dict[str, Callable[[int, int, float], tuple[float, float]]] = {
    "siren": _siren_bounds,
    "dwsnets": _dwsnets_bounds,
}
"""Name -> (layer, fan_in, omega) -> bounds of the uniform draws of weight and bias; see `initial_params`."""


def check_widths(widths: Sequence[int]) -> tuple[int, ...]:
    """`widths` as a tuple of ints, inputs first; at least one hidden layer.

    Raises:
        WeightEditError: fewer than three numbers, or one that is not a positive integer.
    """
    result = tuple(widths)
    if len(result) < 3 or not all(isinstance(width, int) and width > 0 for width in result):
        raise WeightEditError(
            f"widths {result}: expected positive integers (inputs, hidden, ..., outputs) with at least one hidden "
            "layer; (2, 32, 32, 1) is the usual SIREN for gray images."
        )
    return result


def parameter_count(widths: Sequence[int]) -> int:
    """Numbers in one network of these widths."""
    return sum(fan_out * (fan_in + 1) for fan_in, fan_out in zip(widths[:-1], widths[1:], strict=True))


def initial_params(
    count: int,
    widths: Sequence[int],
    *,
    init: str = "siren",
    omega: float = 30.0,
    generator: torch.Generator | None = None,
) -> Params:
    """Parameters of `count` independently initialized SIRENs.

    Every weight and bias is uniform on [-bound, bound]; with n the layer's number of inputs the bounds are

    * "siren", the standard: weights 1/n in the first layer and sqrt(6/n)/omega in all others, the last linear one
      included (the authors' code does so; the paper leaves it open); biases 1/sqrt(n), PyTorch's default for Linear,
      which their code leaves in place. The INRs of NFN start like this.
    * "dwsnets": sqrt(6/n)/omega in all layers, the first too, and zero biases (the INRs of Navon et al., "Equivariant
      Architectures for Learning in Deep Weight Spaces", 2023). It fits far more slowly.

    Args:
        count: how many, N >= 0.
        widths: (inputs, hidden, ..., outputs), e.g. (2, 32, 32, 1).
        init: "siren" or "dwsnets".
        omega: frequency of the sine layers.
        generator: where the numbers come from, and on which device; None is PyTorch's global CPU generator.

    Returns:
        `layers.{i}.weight` [N, out, in] and `layers.{i}.bias` [N, out], float32, on the generator's device.

    Raises:
        WeightEditError: unknown `init`, widths as in `check_widths`, or more of them than this machine can hold.
    """
    widths = check_widths(widths)
    if init not in INITIALIZATIONS:
        raise WeightEditError(f"initialization {init!r}: expected one of {', '.join(INITIALIZATIONS)}; choose one.")
    device = generator.device if generator is not None else torch.device("cpu")
    what = f"{count:,} SIREN{'s' * (count != 1)} of widths {'-'.join(map(str, widths))}"
    check_capacity(4 * count * parameter_count(widths), what, "choose fewer or narrower ones", device)
    params: Params = {}
    for i, (fan_in, fan_out) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
        bounds = INITIALIZATIONS[init](i, fan_in, omega)
        shapes = ((count, fan_out, fan_in), (count, fan_out))
        for kind, bound, shape in zip(("weight", "bias"), bounds, shapes, strict=True):
            uniform = torch.rand(shape, generator=generator, device=device)
            params[f"layers.{i}.{kind}"] = (2.0 * uniform - 1.0) * bound
    return params


class Siren(nn.Module):
    """One SIREN as an ordinary module; its named parameters are the canonical `layers.{i}.weight` and `.bias`.

    Args:
        widths: (inputs, hidden, ..., outputs).
        omega: frequency of every sine layer, kept as the attribute `omega`.
        init: "siren" or "dwsnets", see `initial_params`.
        generator: as in `initial_params`; None is PyTorch's global generator, as for nn.Linear.

    Raises:
        WeightEditError: as `initial_params`.
    """

    def __init__(
        self,
        widths: Sequence[int] = (2, 32, 32, 1),
        omega: float = 30.0,
        *,
        init: str = "siren",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.omega = float(omega)
        start = initial_params(1, widths, init=init, omega=self.omega, generator=generator)
        pairs = zip(widths[:-1], widths[1:], strict=True)
        self.layers = nn.ModuleList(nn.utils.skip_init(nn.Linear, a, b) for a, b in pairs)
        self.load_state_dict({name: tensor[0] for name, tensor in start.items()})

    def forward(self, coordinates: Tensor) -> Tensor:
        """Raw output [..., outputs] at `coordinates` [..., inputs]."""
        values = coordinates
        for layer in self.layers[:-1]:
            values = torch.sin(self.omega * layer(values))
        return self.layers[-1](values)

    def extra_repr(self) -> str:
        return f"omega={self.omega}"


def coordinate_grid(
    height: int,
    width: int,
    order: str = "xy",
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Coordinates of all pixels, row by row, each axis linspace(-1, 1, size).

    Args:
        height, width: image size in pixels, at least 1 each.
        order: "xy" = (column, row) at each pixel, "ij" = (row, column).

    Returns:
        [height * width, 2]; pixel (r, c) is at r * width + c.

    Raises:
        WeightEditError: unknown order, or a size below 1.
    """
    if order not in COORDINATE_ORDERS:
        raise WeightEditError(f"coordinate order {order!r}: expected one of {', '.join(COORDINATE_ORDERS)}.")
    return places((height, width), Convention(coordinates=order), dtype=dtype, device=device)


def places(
    shape: Sequence[int],
    convention: Convention,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Coordinates of all places of an array of one to three axes, in the array's order, as an INR reads them.

    Args:
        shape: of the array: (samples,) of a sound, (height, width) of an image, (frames, height, width) of a video.
        convention: its coordinate order and ranges; each axis is linspace over its range.

    Returns:
        [places, axes].

    Raises:
        WeightEditError: an axis below 1.
        ParamsError: ranges for another number of axes.
    """
    if min(shape) < 1:
        raise WeightEditError(f"image size {' x '.join(map(str, shape))}: expected at least 1 x 1; give pixels.")
    reverse = convention.coordinates == "xy"
    ranges = convention.ranges_of(len(shape))
    pairs = zip(shape, reversed(ranges) if reverse else ranges, strict=True)
    axes = [torch.linspace(first, last, size, dtype=dtype, device=device) for size, (first, last) in pairs]
    maps = torch.meshgrid(*axes, indexing="ij")
    return torch.stack(maps[::-1] if reverse else maps, -1).flatten(0, -2)


def render(params: Params, coordinates: Tensor, *, omega: float) -> Tensor:
    """Raw outputs of SIRENs with one frequency and a linear last layer; arguments and result as `raw_outputs`."""
    return raw_outputs(params, coordinates, Convention(omega=omega))


def raw_outputs(params: Params, coordinates: Tensor, convention: Convention) -> Tensor:
    """Raw outputs of one INR or a stack; differentiable in the parameters and the coordinates.

    Networks and points are taken in chunks, so that memory beyond the result is bounded; autograd, where it is asked
    to, keeps the activations of all of them.

    Args:
        params: canonical names; `layers.{i}.weight` [(N,) out, in] and `layers.{i}.bias` [(N,) out].
        coordinates: [P, inputs], the same for all networks, or [N, P, inputs], each its own.
        convention: what lies between the layers and after the last; its ranges and offset are not applied here.

    Returns:
        [N, P, outputs], or [P, outputs] for parameters without a leading axis.

    Raises:
        ParamsError: parameters that are no canonical network, or coordinates that do not fit it.
    """
    widths = widths_of(params)
    if params["layers.0.weight"].dim() == 2:
        stacked = {name: tensor.unsqueeze(0) for name, tensor in params.items()}
        return raw_outputs(stacked, coordinates, convention).squeeze(0)
    count, last = params["layers.0.weight"].shape[0], len(widths) - 2
    if (
        coordinates.dim() not in (2, 3)
        or coordinates.shape[-1] != widths[0]
        or coordinates.shape[:-2]
        not in (
            (),
            (count,),
        )
    ):
        raise ParamsError(
            f"coordinates {tuple(coordinates.shape)}: expected (points, {widths[0]}) or ({count}, points, {widths[0]}) "
            "for these networks; see coordinate_grid."
        )
    # Scaling the few parameters is cheaper than scaling the many pre-activations.
    layers = []
    for i, activation in enumerate(convention.activations(last + 1)):
        weight, bias = params[f"layers.{i}.weight"], params[f"layers.{i}.bias"]
        sine = activation.name == "sine"
        if sine:
            weight, bias = activation.parameter * weight, activation.parameter * bias
        layers.append(_Layer(weight, bias, torch.sin if sine else activation))
    values = coordinates.expand(count, *coordinates.shape[-2:])
    with torch.autocast(values.device.type, enabled=False):  # phases of tens of radians need float32
        return _in_chunks(layers, values, max(widths))


class _Layer(NamedTuple):
    """Weight [N, out, in] and bias [N, out], times omega before a sine, and what follows."""

    weight: Tensor
    bias: Tensor
    function: Callable[[Tensor], Tensor]


def _in_chunks(layers: list[_Layer], values: Tensor, widest: int) -> Tensor:
    """`_outputs`, so many networks and points at a time that a layer's activations stay below a limit."""
    (count, points), most = values.shape[:2], _CHUNK_CPU if values.device.type == "cpu" else _CHUNK
    networks = max(1, most // (points * widest or 1))
    length = max(1, most // (networks * widest))
    rows = [slice(i, i + networks) for i in range(0, max(count, 1), networks)]
    places = [slice(i, i + length) for i in range(0, max(points, 1), length)]

    if len(rows) == len(places) == 1:
        return _outputs(layers, values)

    def part(row: slice, place: slice) -> Tensor:
        return _outputs([_Layer(w[row], b[row], function) for w, b, function in layers], values[row, place])

    if torch.is_grad_enabled():
        return torch.cat([torch.cat([part(row, place) for place in places], 1) for row in rows])
    # Written where they belong: parts that wait between temporaries would split the heap into pieces of no use.
    found = part(rows[0], places[0])
    result = found.new_empty(count, points, found.shape[2])
    for row in rows:
        for place in places:
            result[row, place] = part(row, place)
    return result


def _outputs(layers: list[_Layer], values: Tensor) -> Tensor:
    """What the layers make of coordinates [N, P, inputs]."""
    for weight, bias, function in layers:
        values = torch.baddbmm(bias.unsqueeze(1), values, weight.mT)
        values = values if function is IDENTITY else function(values)
    return values


def render_images(params: Params, convention: Convention, height: int, width: int) -> Tensor:
    """The images of a stack of INRs, on the [0, 1] scale, not clamped; differentiable in the parameters.

    Args:
        params: stacked, `layers.{i}.weight` [N, out, in] and so on, with two inputs.
        convention: what inputs and outputs mean.
        height, width: of the image in pixels; may differ from the size that was fitted.

    Returns:
        [N, outputs, height, width]; one INR without the leading axis gives [1, outputs, height, width].

    Raises:
        ParamsError: parameters that are no canonical network of two inputs.
        WeightEditError: pictures that this machine cannot hold.
    """
    widths = widths_of(params)
    first = params["layers.0.weight"]
    count = len(first) if first.dim() == 3 else 1
    needed = height * width * (2 + count * widths[-1]) * first.element_size()
    what = f"{count:,} picture{'s' * (count != 1)} of {height} x {width}"
    check_capacity(needed, what, "choose a smaller size or fewer INRs", first.device)
    if widths[0] != 2:
        raise ParamsError(f"a network of {widths[0]} inputs: expected 2 to render an image; use raw_outputs instead.")
    raw = raw_outputs(params, places((height, width), convention, dtype=first.dtype, device=first.device), convention)
    return convention.to_value(raw).mT.reshape(-1, widths[-1], height, width)
