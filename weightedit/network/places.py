"""Where the values of a program stand in a drawing, and what views and transpositions do to that."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from weightedit.network.encoding import Part
from weightedit.network.program import Call


@dataclass(frozen=True)
class Weight:
    """A parameter as it is, or with its two axes exchanged (`turned`)."""

    name: str
    turned: bool = False


class Computed:
    """A value that is made of parameters, and of no data."""


@dataclass(frozen=True)
class Features:
    """What is made of the inputs alone; `parts` is None where they are as they came, but for views and turned axes."""

    parts: tuple[Part, ...] | None = None
    turned: str = ""  # the label of what did it
    label: str = ""  # of what made the parts


@dataclass(frozen=True)
class Place:
    """A value after the first layer.

    Attributes:
        level: whose neurons it runs over.
        axis: of the value that does, and over `positions` within each neuron.
        open: whether this is the level's only value, before any activation.
        gain: what the level is multiplied by.
        between: labels of poolings since the level.
        averaged: whether they are one average over all positions of an image.
    """

    level: int
    axis: int
    open: bool
    positions: int = 1
    gain: float = 1.0
    between: tuple[str, ...] = ()
    averaged: bool = False


def reshaped(seen: Sequence[int], out: Sequence[int], place: Place) -> Place | None:
    """The place of a value of shape `seen` in another shape: each neuron with the positions that follow it, or not."""
    whole = seen[place.axis]
    for axis, n in enumerate(out):
        flat = n == whole * math.prod(seen[place.axis + 1 :]) and axis == len(out) - 1
        if math.prod(out[:axis]) == math.prod(seen[: place.axis]) and (flat or n == whole):
            return replace(place, axis=axis, positions=n * place.positions // whole)
    return None


def order(call: Call, dims: int) -> list[int]:
    """The axes of a transposed or permuted value of `dims` axes, in the order of the result."""
    found = list(range(dims))
    if "dims" in call.given:
        return [axis % dims for axis in call.given["dims"]]
    if call.name == "numpy_T" or dims < 2:
        return found[::-1]
    first, second = [value for key, value in call.given.items() if key != "self"] or (-2, -1)
    found[first], found[second] = found[second], found[first]
    return found
