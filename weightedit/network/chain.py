"""Which chain of layers a drawing is: what a NetworkSpec states, or the part that it cannot state."""

from __future__ import annotations

from typing import Any

from weightedit.errors import SpecError
from weightedit.network.drawing import Drawing, Made
from weightedit.network.ending import Encoding, Ending
from weightedit.network.layer import IDENTITY, Layer

_SUPPORTED = (
    "Linear layers chained with ReLU, LeakyReLU, Tanh, sin(omega z), GELU, SiLU, Sigmoid, Identity or Dropout, "
    "Fourier features of the inputs before the first layer, and after the last one such activations, a softmax, and "
    "numbers that are added or multiplied; before them Conv2d layers (no groups or dilation, one stride and zero "
    "padding for both directions) and AdaptiveAvgPool2d(1), Flatten"
)


def chain_of(drawing: Drawing) -> tuple[tuple[Layer, ...], tuple[Encoding, ...], tuple[Ending, ...]]:
    """The layers of a drawing, what stands before the first and what after the last.

    Raises SpecError that names the part which makes it no chain.
    """
    if drawing.turned:
        raise _refusal(drawing, f"{drawing.turned} of the input")
    layers: list[Layer] = []
    for number, link in enumerate(drawing.links):
        level, made = drawing.levels[link.target], drawing.made.get(link.target)
        if (link.source, link.target, link.kind) != (number, number + 1, "weight") or made is None:
            what = made.label if made is not None else level.name
            raise _refusal(drawing, f"{what}, where values branch, join, or are scaled or normalized")
        assert link.parameter is not None
        _check_between(drawing, layers, made, link.shape[1])
        convolution = _convolution(drawing, made) if made.call.name.startswith("conv") else {}
        width = drawing.levels[number].width
        layers.append(Layer(link.parameter, level.bias, width, level.width, level.activation, **convolution))
    _check_end(drawing, layers)
    return tuple(layers), drawing.encodings, tuple(drawing.endings)


def _check_between(drawing: Drawing, layers: list[Layer], made: Made, inputs: int) -> None:
    """A linear layer may read each channel's average, or the one pixel that is left of it."""
    pooled = bool(layers) and layers[-1].kernel is not None and not made.call.name.startswith("conv")
    if made.between and not (pooled and made.averaged and len(made.between) == 1):
        raise _refusal(drawing, made.between[0])
    if pooled and (len(made.shape) != 2 or inputs != layers[-1].fan_out):
        raise _refusal(drawing, f"{made.label}, which reads more than each channel's average")
    if layers and inputs != layers[-1].fan_out:
        raise _refusal(drawing, f"{made.label}, which reads several positions of a neuron")
    if not pooled and made.call.name.startswith("conv") and layers and layers[-1].kernel is None:
        raise _refusal(drawing, f"{made.label}, a convolution after a linear layer")


def _convolution(drawing: Drawing, made: Made) -> dict[str, Any]:
    given, kernel = made.call.given, tuple(made.call.given["weight"].meta["val"].shape[2:])
    same = tuple((n - 1) / 2 for n in kernel)
    padding = {"valid": {0.0}, "same": {*same}}.get(f"{given['padding']}") or {*given["padding"]}
    stride = {*given["stride"]}
    if len(kernel) != 2 or len(stride) > 1 or len(padding) > 1 or {*given["dilation"]} != {1} or max(padding) % 1:
        raise _refusal(drawing, made.label)
    return {"kernel": kernel, "stride": stride.pop(), "padding": int(padding.pop())}


def _check_end(drawing: Drawing, layers: list[Layer]) -> None:
    (place, shape), first = drawing.output, drawing.made[1].shape
    lead = first[:-1] if layers[0].kernel is None else first[:1]
    for label in (*drawing.late, *place.between):
        raise _refusal(drawing, label)
    if place.level != len(layers) or layers[-1].activation != IDENTITY:
        raise _refusal(drawing, f"{drawing.levels[-1].name}, which is read before the end")
    if layers[-1].kernel is None and shape != (*lead, layers[-1].fan_out):
        raise _refusal(drawing, f"outputs of shape {shape}, where layers give {(*lead, layers[-1].fan_out)}")


def _refusal(drawing: Drawing, what: str) -> SpecError:
    return SpecError(
        f"{type(drawing.net).__name__} holds {what}, which cannot be treated; expected {_SUPPORTED}. Replace that "
        "part, or read a submodule that is such a chain. GraphSpec.from_module reads residual additions and "
        "normalizations."
    )
