"""Which of the tensors in a file are the layers of its network, and in which order, whatever they are called.

Names are ordered by number, names without a common number by the shapes that must fit one another; the order in which
a file holds them is never used, and what can be read in more than one way is asked for. Reading files is
foreign_inrs.py's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor

from weightedit.errors import ParamsError
from weightedit.files.reading import shortened

Rename = Mapping[str, int | None]
"""Name of a layer (what stands before .weight and .bias, * matches anything) -> its number from 0; None: no layer."""

REMEDY = (
    "say which layer is which with --rename NAME=NUMBER, counted from 0, and what is no layer with --rename NAME=- "
    "(in Python, rename: a dict from such names to numbers, or None)"
)
_KINDS = (".weight", ".bias")
_MOST_GROUPS, _MOST_ORDERS = 8, 1000
_MOST_ENTRIES, _DEEPEST = 100_000, 10

Token = str | int


def entries(content: Mapping[Any, Any]) -> dict[str, tuple[MutableMapping[Any, Any], object]]:
    """The entries of a state dict, by full name, each as the mapping that holds it and its key there.

    Args:
        content: what a file holds: a state dict, or one somewhere below, as under "model" or "state_dict", beside what
            is no network. Names of nested mappings are joined by dots.

    Raises:
        ParamsError: more than 100,000 entries, or nested more than ten deep.
    """
    prefix = ""
    while not any(isinstance(value, Tensor) and _split(f".{key}")[1] for key, value in content.items()):
        parts = {key: value for key, value in content.items() if isinstance(value, Mapping) and _holds_layers(value)}
        if len(parts) != 1:
            content = parts or content
            break
        [(key, content)] = parts.items()
        prefix += f"{key}."
    return {prefix + name: (holder, key) for name, holder, key in _flat(content)}


def _holds_layers(content: Mapping[Any, Any]) -> bool:
    return any(isinstance(holder[key], Tensor) and _split(f".{name}")[1] for name, holder, key in _flat(content))


def _flat(content: Any) -> list[tuple[str, Any, Any]]:
    """Full name, holder and key of everything that is no mapping."""
    found: list[tuple[str, Any, Any]] = []
    left = [("", content, 0)]
    while left:
        prefix, holder, depth = left.pop()
        for key, value in holder.items():
            if isinstance(value, Mapping):
                left.append((f"{prefix}{key}.", value, depth + 1))
            else:
                found.append((f"{prefix}{key}", holder, key))
        if len(found) + len(left) > _MOST_ENTRIES or depth > _DEEPEST:
            raise ParamsError(
                f"got more than {_MOST_ENTRIES:,} entries, or more than {_DEEPEST} nested mappings; expected a state "
                "dict: save net.state_dict()."
            )
    return found


def layer_stems(tensors: Mapping[str, object], rename: Rename | None = None) -> list[str]:
    """The layers' names, without .weight and .bias, in the order in which the network applies them.

    Args:
        tensors: full names to tensors.
        rename: what the caller knows about some of them.

    Returns:
        One name per layer; `tensors` has both name.weight and name.bias.

    Raises:
        ParamsError: a tensor that is neither weight nor bias of a layer, a layer without one of them, names that fit
            no order or more than one, or a `rename` of what is not there.
    """
    stems: dict[str, str] = {}  # alias -> the name in the file
    rename = rename or {}
    for name in _kept(tensors, rename):
        stem, kind = _split(name)
        if not kind or not stem:
            raise ParamsError(
                f"a tensor named {shortened(name)}: expected the weight and bias of layers, such as seq.0.weight, "
                f"net.0.linear.bias or last_layer.weight; if it is no part of the network, {REMEDY}."
            )
        alias = _alias(stem, rename)
        if stems.setdefault(alias, stem) != stem:
            raise ParamsError(
                f"{shortened(stem)} and {shortened(stems[alias])} are both layer {alias.split('.')[-1]} by --rename; "
                "expected one number for each: correct it."
            )
    if not stems:
        raise ParamsError("got no layers; expected the weight and bias of at least one: save net.state_dict().")
    for stem in stems.values():
        for kind in _KINDS:
            if stem + kind not in tensors:
                raise ParamsError(
                    f"{shortened(stem)} has no {kind[1:]} among the tensors {shortened(sorted(map(str, tensors)))}: "
                    f"expected a weight and a bias per layer; add what is missing (zeros for a bias that the network "
                    f"does without), or if it is no layer, {REMEDY}."
                )
    return [
        stems[alias] for alias in _ordered(list(stems), {alias: tensors[s + ".weight"] for alias, s in stems.items()})
    ]


def _kept(tensors: Mapping[str, object], rename: Rename) -> list[str]:
    """The names that are not renamed to nothing; raises ParamsError on a rename of nothing."""
    names = list(map(str, tensors))
    for pattern, number in rename.items():
        if not any(_matches(name, pattern) for name in names):
            raise ParamsError(
                f"got --rename {pattern}, but the tensors are named {shortened(sorted(names))}; expected one of these "
                "names, without .weight and .bias: correct it."
            )
        if number is not None and (isinstance(number, bool) or number < 0):
            raise ParamsError(f"got --rename {pattern}={number}; expected the number of a layer from 0: correct it.")
    return [name for name in names if all(n is not None or not _matches(name, p) for p, n in rename.items())]


def _split(name: str) -> tuple[str, str]:
    """The name of the layer and the kind of the tensor, "" if it is none."""
    for kind in _KINDS:
        if name.endswith(kind):
            return name[: -len(kind)], kind
    return name, ""


def _matches(name: str, pattern: str) -> bool:
    return any(fnmatchcase(text, pattern) for text in (name, _split(name)[0]))


def _alias(stem: str, rename: Rename) -> str:
    numbers = [number for pattern, number in rename.items() if number is not None and _matches(stem, pattern)]
    return f"layers.{numbers[0]}" if numbers else stem


def _ordered(stems: list[str], weights: Mapping[str, object]) -> list[str]:
    """Groups of numbered names, each in the order of its numbers, put in the only order whose widths fit."""
    tokens = {stem: _tokens(stem) for stem in stems}
    shared = _shared(list(tokens.values()))
    groups: dict[tuple[Token, ...], list[tuple[tuple[int, ...], str]]] = {}
    for stem, found in tokens.items():
        rest = found[shared:]
        first = next((i for i, token in enumerate(rest) if isinstance(token, int)), len(rest))
        numbers = tuple(token for token in rest if isinstance(token, int))
        groups.setdefault(tuple(rest[:first]), []).append((numbers, stem))
    if len(groups) == 1:
        return _by_number(sorted(*groups.values()))
    # An INR of one output and one input fits itself at both ends: then the words decide.
    chains = [_by_number(sorted(groups[key])) for key in sorted(groups, key=_role)]
    ends = [sum(_role(key) == role for key in groups) for role in (-1, 1)]
    shapes = {stem: w.shape for stem, w in weights.items() if isinstance(w, Tensor) and w.dim() in (2, 3)}
    several = sum(len(chain) > 1 for chain in chains) > 1
    orders = [] if several or len(chains) > _MOST_GROUPS or len(shapes) < len(stems) else _fitting(chains, shapes)
    if len(orders) > 1:
        first, last = (chains[0] if ends[0] == 1 else []), (chains[-1] if ends[1] == 1 else [])
        said = [order for order in orders if order[: len(first)] == first and order[len(order) - len(last) :] == last]
        orders = said if first or last else orders
    if len(orders) != 1:
        fault = "more than one network, or one in parts" if several else "no order in which their widths fit"
        fault = "more than one order in which their widths fit" if len(orders) > 1 else fault
        raise ParamsError(f"layers named {shortened(sorted(stems))} have {fault}: expected one network; {REMEDY}.")
    return orders[0]


def _role(key: tuple[Token, ...]) -> int:
    """-1 for a name that says it is the first, 1 for the last, else 0."""
    words = set(re.split("[^a-z]+", ".".join(map(str, key)).lower()))
    return -1 if words & {"first", "input"} else 1 if words & {"last", "final", "output"} else 0


def _tokens(stem: str) -> list[Token]:
    """The parts between dots, with the number at the end of each by itself: fc1.linear -> fc, 1, linear."""
    found: list[Token] = []
    for part in stem.split("."):
        text, digits = re.fullmatch(r"(.*?)([0-9]{0,9})", part).groups()  # type: ignore[union-attr]
        found += [text] if text or not digits else []
        found += [int(digits)] if digits else []
    return found


def _shared(tokens: list[list[Token]]) -> int:
    """How many parts all names begin with."""
    same = 0
    while all(len(found) > same and found[same] == tokens[0][same] for found in tokens) and len(tokens) > 1:
        same += 1
    return same


def _by_number(group: list[tuple[tuple[int, ...], str]]) -> list[str]:
    """The names of one group in order, unless their numbers leave it open or have a hole."""
    names, numbers = [name for _, name in group], [number for number, _ in group]
    if len(group) == 1:
        return names
    varying = next((i for i, place in enumerate(zip(*numbers, strict=False)) if len(set(place)) > 1), None)
    leading = [] if varying is None else sorted({number[varying] for number in numbers})
    steps = {after - before for before, after in zip(leading, leading[1:], strict=False)}
    # Modules between the layers take numbers, too: 0, 2, 4 are every second one of a Sequential.
    regular = bool(leading) and leading[0] in (0, 1) and len(steps) <= 1 and max(steps, default=1) <= 3
    if len(set(numbers)) < len(numbers) or not regular:
        raise ParamsError(
            f"layers named {shortened(names)}: expected one network whose numbers are 0, 1, 2, ... or 0, 2, 4, ..., "
            f"each once and without a gap; add what is missing, or {REMEDY}."
        )
    return names


def _fitting(chains: list[list[str]], shapes: Mapping[str, tuple[int, ...]]) -> list[list[str]]:
    """Orders of the chains in which each reads what the one before it writes; not all where there are very many."""
    found: list[list[str]] = []

    def extend(so_far: list[list[str]], left: list[list[str]]) -> None:
        if not left and len(found) < _MOST_ORDERS:
            found.append([name for chain in so_far for name in chain])
        for chain in left if len(found) < _MOST_ORDERS else []:
            if not so_far or shapes[so_far[-1][-1]][-2] == shapes[chain[0]][-1]:
                extend([*so_far, chain], [other for other in left if other is not chain])

    extend([], chains)
    return found
