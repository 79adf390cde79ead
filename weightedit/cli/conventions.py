"""What the command line says about INRs of other codes: their convention, and which tensors are which layers.

Nothing heavy is imported until a convention is built, so that --help answers at once.
"""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING, Any

from weightedit.errors import WeightEditError

if TYPE_CHECKING:
    from weightedit.inr.convention import Convention

NAMED = ("plain", "dwsnets", "nfn", "siren", "siren-pytorch", "coin")
_CHANGES = ("omega", "coordinates", "values", "offset", "activation", "last")
_RANGE = re.compile(r"(.+)\.\.(.+)")


def add_convention(parser: argparse.ArgumentParser, summary: str) -> None:
    """The options that state a convention."""
    group = parser.add_argument_group("convention", summary)
    named = "where to start from; plain: omega 30, column first, values in [0, 1], nothing added"
    group.add_argument("--convention", choices=NAMED, help=named)
    omega = "frequency of every sine layer, in order; the last number is that of all further ones (30 1: siren-pytorch)"
    group.add_argument("--omega", type=float, nargs="+", metavar="W", help=omega)
    coordinates = "xy (column first) or ij (row first), each axis from -1 to 1; or with ranges, one for all inputs or "
    coordinates += "one each, in the inputs' order: xy,0..1 or ij,-1..1,-1..1.5"
    group.add_argument("--coordinates", metavar="WORDS", help=coordinates)
    group.add_argument("--values", type=float, nargs=2, metavar=("LOW", "HIGH"), help="range of the fitted images")
    group.add_argument("--offset", type=float, metavar="X", help="constant added to the output")
    activation = "what follows every layer but the last: sine, relu, tanh, gelu, silu or sigmoid"
    group.add_argument("--activation", metavar="NAME", help=activation)
    group.add_argument("--last", metavar="NAME", help="what follows the last layer: linear, sine, sigmoid or tanh")


def add_rename(parser: argparse.ArgumentParser) -> None:
    """The option that says which tensors are which layers."""
    rename = (
        "of a foreign file whose names leave it open: NAME=NUMBER for a layer (without .weight and .bias, * matches "
    )
    rename += "anything), counted from 0, and NAME=- for what is no layer"
    parser.add_argument("--rename", nargs="+", metavar="NAME=NUMBER", help=rename)


def convention_words(value: str) -> str:
    """What --convention is given for a convention of the library: NFN, coin_convention(...), Convention(...)."""
    name = value.partition("(")[0].removesuffix("_convention").lower().replace("_", "-")
    changes = ", ".join(f"--{change}" for change in _CHANGES)
    return name if name in NAMED else f"plain, and what differs from it by {changes}"


def stated_convention(options: argparse.Namespace, size: tuple[int, int] | None) -> Convention | None:
    """The convention that the options state, for images of `size` (height, width); None where they state none.

    Raises:
        WeightEditError: a change without a convention to start from, or one that makes none.
    """
    changes = {name: getattr(options, name) for name in _CHANGES if getattr(options, name) is not None}
    if options.convention is None:
        if changes:
            raise WeightEditError(
                f"got --{next(iter(changes))} without --convention; expected the convention that it changes: add "
                f"--convention plain, or one of {', '.join(NAMED[1:])}."
            )
        return None
    from dataclasses import replace

    start = _start(options.convention, size)
    new: dict[str, Any] = {name: changes[name] for name in ("offset", "activation", "last") if name in changes}
    if "omega" in changes:
        new["omega"] = tuple(changes["omega"])
    if "values" in changes:
        new["low"], new["high"] = changes["values"]
    if "coordinates" in changes:
        new["coordinates"], new["ranges"] = _coordinates(changes["coordinates"])
    return replace(start, **new)


def stated_rename(options: argparse.Namespace) -> dict[str, int | None] | None:
    """The layers that --rename names; raises WeightEditError for words that are no NAME=NUMBER."""
    found: dict[str, int | None] = {}
    for word in options.rename or []:
        name, equals, number = word.rpartition("=")
        if not (name and equals and (number == "-" or (number.isdecimal() and len(number) < 7))):
            raise WeightEditError(
                f"got --rename {word}; expected NAME=NUMBER, such as last_layer=4, or NAME=- for what is no layer: "
                "correct it."
            )
        found[name] = None if number == "-" else int(number)
    return found or None


def _start(name: str, size: tuple[int, int] | None) -> Convention:
    from weightedit.inr.convention import DWSNETS, NFN, SIREN_PYTORCH, Convention, coin_convention

    if name == "coin":
        if size is None:
            raise WeightEditError(
                "got --convention coin without a size; expected the size of the fitted pictures, on which COIN's "
                "coordinates depend: add --size."
            )
        return coin_convention(*size)
    plain = Convention(offset=0.0)
    return {"plain": plain, "dwsnets": DWSNETS, "nfn": NFN, "siren": NFN, "siren-pytorch": SIREN_PYTORCH}[name]


def _coordinates(text: str) -> tuple[str, tuple[tuple[float, float], ...]]:
    """ "ij,0..1,0..2" -> ("ij", ((0, 1), (0, 2)))."""
    order, *ranges = text.split(",")
    found = []
    for word in ranges:
        ends = _RANGE.fullmatch(word)
        try:
            if ends is None:
                raise ValueError
            found.append((float(ends[1]), float(ends[2])))
        except ValueError:
            raise WeightEditError(
                f"got --coordinates {text}; expected xy or ij, and ranges such as 0..1 after commas: correct it."
            ) from None
    return order, tuple(found)
