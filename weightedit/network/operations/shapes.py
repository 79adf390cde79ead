"""Views, pieces, joins, reductions and pooling: what moves entries about, or sums them up.

A view that cuts an axis leaves the permutations of its parts. Pieces, cut or put beside each other, keep what all of
them can do together, by the largest size that divides theirs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from weightedit.network.flow import NOTHING, Flow, Loose, Value
from weightedit.network.layer import NeuronGroup
from weightedit.network.operations.elementwise import added, product
from weightedit.network.operations.kinds import Reader, Shape


def reshape(flow: Flow, a: Mapping[str, Any], out: Any) -> Any:
    value = a["self"]
    atoms = [atom for axis in value.dims for atom in axis]
    dims = flow.axes.reshape(atoms, out) if 0 not in out else flow.inert(out).dims
    found = flow.result(dims, out, value)
    wide = [i for i, n in enumerate(value.shape) if n > 1]
    if value.loose is not None:
        if [n for n in out if n > 1] != [value.shape[i] for i in wide]:
            flow.used(value)
            return found
        axes = iter(value.loose.axes[i] for i in wide)
        return replace(found, loose=Loose(value.loose.name, tuple(next(axes) if n > 1 else None for n in out)))
    return found


def expand(flow: Flow, a: Mapping[str, Any], out: Any) -> Any:
    value = a["self"]
    skip = len(out) - len(value.shape)
    dims, axes = [], []
    for i, n in enumerate(out):
        kept = i >= skip and value.shape[i - skip] == n
        dims.append(value.dims[i - skip] if kept else flow.axes.new(n))
        axes.append(value.loose.axes[i - skip] if kept and value.loose else None)
    found = flow.result(dims, out, value) if value.set is not None else flow.value(dims, out)
    return replace(found, loose=Loose(value.loose.name, tuple(axes))) if value.loose else found


def _permuted(flow: Flow, value: Value, order: Sequence[int], out: Shape) -> Value:
    found = flow.value([value.dims[i] for i in order], out, value.set)
    if value.set is not None and flow.size_of(value.set) == 1:
        flow.restrict(value, NOTHING)
    if value.loose is not None:
        found = replace(found, loose=Loose(value.loose.name, tuple(value.loose.axes[i] for i in order)))
    return found


def transpose(flow: Flow, a: Mapping[str, Any], out: Any) -> Any:
    value = a["self"]
    order = list(range(len(value.shape)))
    if len(order) > 1:
        first, second = (d % len(order) for d in _two(a))
        order[first], order[second] = order[second], order[first]
    return _permuted(flow, value, order, out)


def _two(a: Mapping[str, Any]) -> tuple[int, int]:
    found = [value for key, value in a.items() if key != "self"]
    return (found[0], found[1]) if len(found) == 2 else (-2, -1)


def permute(flow: Flow, a: Mapping[str, Any], out: Any) -> Any:
    return _permuted(flow, a["self"], [d % len(out) for d in a["dims"]], out)


def pieces(flow: Flow, a: Mapping[str, Any], out: Any) -> Any:
    """Pieces beside each other along an axis: what is permuted within one is permuted within all."""
    value, dim = a["self"], a.get("dim", 0) % len(a["self"].shape)
    shapes = out if isinstance(out, list) else [out]
    unit = math.gcd(value.shape[dim], *(shape[dim] for shape in shapes))
    return [_piece(flow, value, dim, shape, unit) for shape in shapes]


def _piece(flow: Flow, value: Value, dim: int, shape: Shape, unit: int) -> Value:
    """A piece that begins and ends at a multiple of `unit`, within which entries may be permuted."""
    size, each = value.shape[dim], shape[dim]
    if size == each:
        return value
    varies = flow.touches(value, [dim])
    if each and unit > 1 and not flow.axes.is_frozen(value.dims[dim]):
        outer, inner = flow.axes.reshape(value.dims[dim], (size // unit, unit))
        flow.axes.freeze(outer)
        inner = flow.axes.new(each // unit, frozen=True) + inner
    else:
        flow.axes.freeze(value.dims[dim])
        inner = flow.axes.new(each, frozen=True)
    dims = [*value.dims[:dim], inner, *value.dims[dim + 1 :]]
    if varies:
        flow.restrict(value, NOTHING)
    found = flow.value(dims, shape, None if varies else value.set)
    if value.loose is not None:
        axes = value.loose.axes
        found = replace(
            found, loose=Loose(value.loose.name, (*axes[:dim], None if each == 1 else axes[dim], *axes[dim + 1 :]))
        )
    return found


def slice(flow: Flow, a: Mapping[str, Any], out: Any) -> Any:
    value, dim = a["self"], a.get("dim", 0) % len(a["self"].shape)
    start, size, each = a.get("start") or 0, value.shape[dim], out[dim]
    start = min(max(start + size if start < 0 else start, 0), size)
    return _piece(flow, value, dim, out, math.gcd(size, each, start) if a.get("step", 1) == 1 else 1)


def select(flow: Flow, a: Mapping[str, Any], out: Any) -> Any:
    value, dim = a["self"], a.get("dim", 0) % len(a["self"].shape)
    return _dropped(flow, value, dim, out)


def _dropped(flow: Flow, value: Value, dim: int, out: Shape) -> Value:
    """One entry along an axis."""
    one = _piece(flow, value, dim, (*value.shape[:dim], 1, *value.shape[dim + 1 :]), 1)
    return reshape(flow, {"self": one}, out)


def unbind(flow: Flow, a: Mapping[str, Any], out: Any) -> Any:
    value, dim = a["self"], a.get("dim", 0) % len(a["self"].shape)
    return [_dropped(flow, value, dim, shape) for shape in out]


def glu(flow: Flow, a: Mapping[str, Any], out: Any) -> Any:
    left, right = pieces(flow, {"self": flow.used(a["self"]), "dim": a.get("dim", -1)}, [out, out])
    flow.restrict(right, NOTHING)
    return product(flow, {"self": left, "other": right}, out)


def cat(flow: Flow, a: Mapping[str, Any], out: Any) -> Any:
    given = [value for value in a["tensors"] if 0 not in value.shape]
    dim = a.get("dim", 0) % len(out)
    return _beside(flow, given, dim, out)


def stack(flow: Flow, a: Mapping[str, Any], out: Any) -> Any:
    dim = a.get("dim", 0) % len(out)
    shape = (*out[:dim], 1, *out[dim + 1 :])
    return _beside(flow, [reshape(flow, {"self": value}, shape) for value in a["tensors"]], dim, out)


def _beside(flow: Flow, given: list[Value], dim: int, out: Shape) -> Value:
    if len(given) == 1:
        return given[0]
    flat = [replace(v, shape=(*v.shape[:dim], 1, *v.shape[dim + 1 :])) for v in given]
    dims = flow.broadcast(flat, (*out[:dim], 1, *out[dim + 1 :]))
    unit = math.gcd(*(value.shape[dim] for value in given))
    parts = [flow.axes.reshape(value.dims[dim], (value.shape[dim] // unit, unit)) for value in given]
    for i, (value, (outer, inner)) in enumerate(zip(given, parts, strict=True)):
        flow.axes.freeze(outer)
        flow.axes.unite(parts[0][1], inner)
        if flow.touches(value, [dim]):
            flow.restrict(value, NOTHING)
            given[i] = replace(value, set=None)
    dims[dim] = flow.axes.new(out[dim] // unit, frozen=True) + parts[0][1]
    return added(flow, given, dims, out)


def pad(flow: Flow, a: Mapping[str, Any], out: Any) -> Any:
    value = flow.used(a["self"])
    changed = [i for i, (n, m) in enumerate(zip(value.shape, out, strict=True)) if n != m]
    changed += [len(out) - 1 - i // 2 for i, n in enumerate(a["pad"]) if n != 0]
    if a.get("value") or flow.touches(value, changed):
        flow.restrict(value, NOTHING)
    for i in changed:
        flow.axes.freeze(value.dims[i])
    dims = [flow.axes.new(n, frozen=True) if i in changed else value.dims[i] for i, n in enumerate(out)]
    return flow.result(dims, out, value)


def reduction(group: NeuronGroup) -> Reader:
    def read(flow: Flow, a: Mapping[str, Any], out: Any) -> Any:
        value = flow.used(a["self"])
        if "other" in a:
            return None
        n = len(value.shape)
        axes = a.get("dim")
        axes = range(n) if axes is None or axes == [] else [axes] if isinstance(axes, int) else axes
        gone = {d % n for d in axes} if n else set()
        flow.restrict(value, NOTHING if flow.touches(value, gone) else group)
        dims = [atoms for i, atoms in enumerate(value.dims) if i not in gone]
        shape = out[0] if isinstance(out, list) else out
        if len(shape) == n:
            dims = [() if i in gone else atoms for i, atoms in enumerate(value.dims)]
        found = flow.result(dims, shape, value)
        if not isinstance(out, list):
            return found
        for i in gone:  # where the largest stands
            flow.axes.freeze(value.dims[i])
        return [found, flow.value(dims, shape)]

    return read


def pool(name: str, group: NeuronGroup) -> Reader:
    match = re.search(r"([123])d", name)
    space = int(match[1]) if match else 2

    def read(flow: Flow, a: Mapping[str, Any], out: Any) -> Any:
        value = flow.used(a.get("self", a.get("input")))
        shape = out[0] if isinstance(out, list) else out
        channel = len(value.shape) - space
        flow.restrict(value, NOTHING if flow.touches(value, range(channel, len(value.shape))) else group)
        for atoms in value.dims[channel:]:
            flow.axes.freeze(atoms)
        dims = [*value.dims[:channel], *(flow.axes.new(n, frozen=True) for n in shape[channel:])]
        found = flow.result(dims, shape, value)
        return [found, flow.value(dims, shape)] if isinstance(out, list) else found

    return read


def filled(flow: Flow, a: Mapping[str, Any], out: Any) -> Any:
    return flow.uniform(out)


def drawn(flow: Flow, a: Mapping[str, Any], out: Any) -> Any:
    return flow.inert(out)
