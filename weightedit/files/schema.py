"""What the values in a file must be: a description in Python's own types, and one function that holds values to it.

A description is a type: int, float, str, bool, None, Literal, a union, list, tuple, dict with str keys, a TypedDict, or
a dataclass, whose fields are described by their own annotations; `Any` is whatever JSON holds. The descriptions stand
where their files are read (a card beside its reader, a config is its dataclass). Not here: reading files (reading.py).

Ours rather than pydantic's, which would be one more dependency: it would read these annotations likewise, but admits
values that are nearly right, of any size, unless told otherwise at every field.
"""

from __future__ import annotations

import math
import types
from collections.abc import Collection, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from typing import (
    Annotated,
    Any,
    Literal,
    NotRequired,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from weightedit.errors import FileFormatError, WeightEditError
from weightedit.files.reading import shortened

Described = TypeVar("Described")


@dataclass(frozen=True)
class Within:
    """In Annotated: the range of a number, or of the length of a str, list, tuple or dict; both ends are inside."""

    low: float
    high: float


SIZE = Within(-(2**20), 2**20)
"""Of an int that says nothing else: sizes of networks are below a million."""
LENGTH = Within(0, 2**14)
"""Of a str, list, tuple or dict that says nothing else."""
COMPLETE = Within(0, 2**14)
"""Of a dataclass that must state every field, also those with defaults, but for those that are LATER."""
LATER = {"later": True}
"""Metadata of a dataclass's field that files older than the field do not have: it takes its default."""

Count = Annotated[int, Within(0, 2**62)]
Seed = Annotated[int, Within(-(2**63), 2**63 - 1)]
Width = Annotated[int, Within(1, SIZE.high)]
Widths = Annotated[list[Width], Within(2, 1000)]
Facts = Annotated[dict[str, Any], Within(0, SIZE.high)]


def conform(
    kind: type[Described] | Any, value: object, where: str, error: type[WeightEditError] = FileFormatError
) -> Described:
    """`value` as its description wants it: lists become tuples, objects become dataclasses where it names such.

    Args:
        kind: the description.
        value: plain data, as JSON gives them.
        where: what the value is, for the message, as in "/a/card.json".
        error: what is raised.

    Raises:
        FileFormatError, or `error`: naming the innermost value that is of another type, out of its range, missing or
            unknown; and whatever a dataclass raises for values that do not go together, which are ours too.
    """
    try:
        return _conformed(kind, value, "", None)
    except _Misfit as misfit:
        raise error(f"{where}{str(misfit).rstrip('.')}: correct it, or write it again.") from None


def conform_fields(
    kind: type[Described], value: Mapping[str, object], later: Collection[str], error: type[WeightEditError]
) -> Described:
    """The dataclass `kind` from all of its fields, of which only `later` ones may be missing; raises `error`.

    Args:
        kind: a dataclass.
        value: plain data, as JSON gives them.
        later: fields that older files do not have.
        error: what is raised.
    """
    expected = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    if not isinstance(value, Mapping) or not expected - set(later) <= set(value) <= expected:
        came = sorted(map(str, value)) if isinstance(value, Mapping) else value
        raise error(f"got entries {shortened(came)}; expected {sorted(expected)}.")
    return conform(kind, value, kind.__name__, error)


class _Misfit(Exception):
    """What the value is and what was expected; the caller says where."""


def _misfit(path: str, value: object, expected: str) -> _Misfit:
    return _Misfit(f"{': ' + path if path else ''} is {shortened(value)}; expected {expected}")


def _conformed(kind: Any, value: Any, path: str, within: Within | None) -> Any:
    """`value` as `kind`; `path` leads to it, `within` is its range where that was said."""
    origin = get_origin(kind)
    if kind is Any or kind is object:
        return value
    if origin is Annotated:
        return _conformed(get_args(kind)[0], value, path, get_args(kind)[1])
    if origin in (Union, types.UnionType):
        return _of_union(kind, value, path, within)
    if origin is Literal:
        for choice in get_args(kind):
            if type(value) is type(choice) and value == choice:
                return value
        raise _misfit(path, value, " or ".join(map(repr, get_args(kind))))
    if kind is None or kind is type(None) or kind is bool:
        if type(value) is not (bool if kind is bool else type(None)):
            raise _misfit(path, value, "true or false" if kind is bool else "null")
        return value
    if kind in (int, float):
        return _number(kind, value, path, within)
    if kind is str or origin in (list, tuple):
        return _sequence(kind, value, path, within or LENGTH)
    return _mapping(kind, value, path, within or LENGTH)


def _of_union(kind: Any, value: Any, path: str, within: Within | None) -> Any:
    misfits = []
    for choice in get_args(kind):
        try:
            return _conformed(choice, value, path, within)
        except _Misfit as misfit:
            misfits.append(str(misfit))
    raise _Misfit(misfits[0])


def _number(kind: type, value: Any, path: str, within: Within | None) -> int | float:
    low, high = (within.low, within.high) if within else (SIZE.low, SIZE.high) if kind is int else (-1e300, 1e300)
    right = type(value) is int or (kind is float and type(value) is float and math.isfinite(value))
    if not right or not low <= value <= high:
        what = "a whole number" if kind is int else "a finite number"
        raise _misfit(path, value, f"{what} from {low:,} to {high:,}" if kind is int else f"{what} below {high:g}")
    return kind(value)


def _sequence(kind: Any, value: Any, path: str, within: Within) -> Any:
    """A str, list or tuple."""
    origin, parts = get_origin(kind) or kind, get_args(kind)
    what = "string" if origin is str else "list"
    if not isinstance(value, str if origin is str else (list, tuple)):
        raise _misfit(path, value, f"a {what}")
    fixed = origin is tuple and parts[-1] is not Ellipsis
    low, high = (len(parts), len(parts)) if fixed else (within.low, within.high)
    if not low <= len(value) <= high:
        raise _misfit(path, value, f"a {what} of length {low:,} to {high:,}, not {len(value)}")
    if origin is str:
        return value
    kinds = parts if fixed else parts[:1] * len(value)
    return origin(_conformed(kinds[n], item, f"{path}[{n}]", None) for n, item in enumerate(value))


def _mapping(kind: Any, value: Any, path: str, within: Within) -> Any:
    """A dict, TypedDict or dataclass."""
    if is_dataclass(kind) and type(value) is kind:
        return value
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise _misfit(path, value, "an object")
    if len(value) > within.high:
        raise _misfit(path, value, f"an object of at most {within.high:,} entries")
    if get_origin(kind) is dict:
        keys, values = get_args(kind)
        return {
            _conformed(keys, key, f"{path} key", None): _conformed(values, item, _under(path, key), None)
            for key, item in value.items()
        }
    hints, optional = _hints(kind)
    if within is COMPLETE and is_dataclass(kind):
        optional = frozenset(field.name for field in fields(kind) if field.metadata == LATER)
    missing, unknown = sorted(hints.keys() - optional - value.keys()), sorted(value.keys() - hints.keys())
    if missing or unknown:
        fault = f"lacks {', '.join(missing)}" if missing else f"has the unknown key {shortened(unknown[0])}"
        raise _Misfit(f"{': ' + path if path else ''} {fault}; expected the keys {', '.join(sorted(hints))}")
    held = {key: _conformed(hints[key], item, _under(path, key), None) for key, item in value.items()}
    if not is_dataclass(kind):
        return held
    try:
        return kind(**held)  # type: ignore[operator]
    except WeightEditError as error:
        raise _Misfit(f"{': ' + path if path else ''} does not hold together: {error}") from error


def _under(path: str, key: str) -> str:
    key = key if key.isidentifier() and len(key) < 80 else f"[{shortened(key)}]"
    return f"{path}.{key}" if path else key


@cache
def _hints(kind: Any) -> tuple[dict[str, Any], frozenset[str]]:
    """Descriptions of the fields or keys of `kind`, and those that may be missing."""
    hints = get_type_hints(kind, include_extras=True)
    if is_typeddict(kind):
        optional = frozenset(key for key, hint in hints.items() if get_origin(hint) is NotRequired)
        return {key: get_args(hint)[0] if key in optional else hint for key, hint in hints.items()}, optional
    assert is_dataclass(kind), kind
    given = {field.name: field for field in fields(kind) if field.init}
    defaulted = {name for name, f in given.items() if f.default is not MISSING or f.default_factory is not MISSING}
    return {name: hints[name] for name in given}, frozenset(defaulted)
