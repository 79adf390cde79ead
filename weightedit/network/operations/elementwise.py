"""Sums, products and activations: what acts on every entry by itself, and what puts entries beside each other.

A sum makes its terms carry one factor; a product keeps the factor of one; an activation keeps the part of the group
that it commutes with (symmetry.md section 1).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from weightedit.network.axes import Atoms
from weightedit.network.flow import NOTHING, SCALE, Flow, Value
from weightedit.network.layer import NeuronGroup
from weightedit.network.operations.kinds import Reader, Shape


def pointwise(flow: Flow, given: Sequence[Value], out: Shape) -> Value:
    given = [flow.used(value) for value in given]
    for value in given:
        flow.restrict(value, NOTHING)
    dims = flow.broadcast(given, out)
    first = next((value for value in given if value.set is not None), given[0])
    return flow.result(dims, out, first)


def elementwise(flow: Flow, a: Mapping[str, Any], out: Any) -> Any:
    return pointwise(flow, [value for value in a.values() if isinstance(value, Value)], out)


def activation(group: NeuronGroup) -> Reader:
    def read(flow: Flow, a: Mapping[str, Any], out: Any) -> Any:
        value = flow.used(a["self"])
        flow.restrict(value, group)
        return value

    return read


def sine(flow: Flow, a: Mapping[str, Any], out: Any) -> Any:
    """An activation that sees what its neurons are multiplied by."""
    value = flow.rated(flow.used(a["self"]))
    flow.restrict(value, NeuronGroup(flip=True, shift=True))
    return value


def prelu(flow: Flow, a: Mapping[str, Any], out: Any) -> Any:
    value, slopes = flow.used(a["self"]), flow.used(a["weight"])
    flow.restrict(value, SCALE)
    if slopes.shape[0] > 1:
        flow.axes.unite(slopes.dims[0], value.dims[min(1, len(value.dims) - 1)])
    return value


def same(flow: Flow, a: Mapping[str, Any], out: Any) -> Any:
    value = next(one for one in a.values() if isinstance(one, Value))
    return [value, flow.inert(out[1])] if isinstance(out, list) else value


def cast(flow: Flow, a: Mapping[str, Any], out: Any) -> Any:
    """Another dtype; whole numbers keep no factor."""
    dtype = a.get("dtype")
    whole = isinstance(dtype, torch.dtype) and not (dtype.is_floating_point or dtype.is_complex)
    return elementwise(flow, {"self": a["self"]}, out) if whole else same(flow, a, out)


def add(flow: Flow, a: Mapping[str, Any], out: Any) -> Any:
    left, right = a["self"], a["other"]
    if not (isinstance(left, Value) and isinstance(right, Value)):
        value, number = (left, right) if isinstance(left, Value) else (right, left)
        value = flow.used(value)
        if number != 0:
            flow.restrict(value, NOTHING)
        return value
    dims = flow.broadcast((left, right), out)
    return added(flow, [left, right], dims, out)


def added(flow: Flow, given: list[Value], dims: Sequence[Atoms], out: Shape) -> Value:
    """A result that carries the factor of all of `given`: sums, and values beside each other."""
    if all(value.loose is not None for value in given):
        axis = max((i for i, n in enumerate(given[0].shape) if n > 1), default=None)
        if axis is not None:
            one = given[0]
            assert one.loose is not None
            to = flow.new(one.loose.name, one.dims[axis], one.shape[axis])
            found = flow.along(one, to, one.dims[axis])
            given[0] = replace(flow.used(one) if not found else replace(one, loose=None), set=to if found else None)
    values = [value for value in given if value.loose is None]
    loose = [value for value in given if value.loose is not None]
    joined: int | None = None
    if values and all(value.set is not None for value in values):
        joined = values[0].set
        for value in values[1:]:
            joined = flow.join(joined, value.set) if joined is not None else None  # type: ignore[arg-type]
    if joined is None:
        for value in values:
            flow.restrict(value, NOTHING)
        joined = next((value.set for value in values if value.set is not None), None)
    for value in loose:
        assert value.loose is not None
        to = joined if joined is not None else flow.plain(value.loose.name, dims[-1], out[-1]) if dims else None
        if to is None or not flow.along(value, to, flow.atoms_of(to)):
            flow.used(value)
            if joined is not None:
                flow.restrict_set(joined, NOTHING)
            continue
        joined = to
    return flow.carrying(joined, given, flow.value(dims, out))


def times(value: Value, number: Any) -> Value:
    """What a number makes of a value: the neurons and the factors are the same."""
    known = isinstance(number, int | float) and math.isfinite(number) and number != 0
    return replace(value, times=value.times * abs(number)) if known else value


def product(flow: Flow, a: Mapping[str, Any], out: Any) -> Any:
    left, right = a["self"], a["other"]
    if not isinstance(right, Value):
        return times(left, right)
    if not isinstance(left, Value):
        return times(right, left)
    if left.loose is not None:
        left, right = right, left
    dims = flow.broadcast((left, right), out)
    if right.loose is not None and left.loose is None:
        wide = [i for i, n in enumerate(right.shape) if n > 1]
        if len(wide) == 1:
            name = right.loose.name
            flow.restrict(left, NOTHING)
            to = flow.new(name.removesuffix(".weight"), right.dims[wide[0]], right.shape[wide[0]])
            flow.wire(right, "gain", to, at=(wide, (), ()))
            return flow.value(dims, out, to)
    left, right = flow.used(left), flow.used(right)
    if left.set is not None and right.set is not None:
        if flow.of(left.set) == flow.of(right.set) or flow.group_of(left.set) != NOTHING:
            flow.restrict(right, NOTHING)
        else:
            left, right = right, left
    return flow.result(dims, out, left if left.set is not None else right)


def quotient(flow: Flow, a: Mapping[str, Any], out: Any) -> Any:
    left, right = a["self"], a["other"]
    if a.get("rounding_mode") is not None:
        return pointwise(flow, [one for one in (left, right) if isinstance(one, Value)], out)
    if not isinstance(right, Value):
        return times(left, 1 / right) if isinstance(right, int | float) and right else left
    right = flow.used(right)
    flow.restrict(right, NOTHING)
    if not isinstance(left, Value):
        return right
    left = flow.used(left)
    return flow.result(flow.broadcast((left, right), out), out, left)


def softmax(flow: Flow, a: Mapping[str, Any], out: Any) -> Any:
    value = flow.used(a["self"])
    flow.restrict(value, NOTHING)
    return value
