"""Linear maps, convolutions, embeddings and normalizations: what makes new sets of neurons.

Every product of two tensors is one of axes with letters; where one is a parameter that is summed over, it is a layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from weightedit.network.axes import Atoms
from weightedit.network.flow import FREE, NOTHING, SCALE, Flow, Value
from weightedit.network.layer import NeuronGroup
from weightedit.network.operations.elementwise import add
from weightedit.network.operations.kinds import Shape


def linear_map(
    flow: Flow,
    x: Value,
    weight: Value,
    bias: Any,
    along: tuple[int, ...],
    at: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]],
) -> int:
    """The set that a linear map computes. `along`: the axes of `x` that it reads; `at`: those of the weight."""
    targets, sources, _ = at
    pure = weight.normed[0] if weight.normed else weight
    name = pure.loose.name.removesuffix(".weight") if pure.loose else "a computed weight"
    for i, j in zip(along, sources, strict=True):
        flow.axes.unite(x.dims[i], weight.dims[j])
    source = flow.source(x, along, name)
    atoms = tuple(atom for i in targets for atom in weight.dims[i])
    target = flow.new(name, atoms, math.prod(weight.shape[i] for i in targets))
    if weight.normed:
        direction, length = weight.normed
        flow.restrict_set(source, NOTHING)
        rows = flow.new(name, atoms, flow.size_of(target), NOTHING)
        flow.wire(direction, "weight", rows, source, at=at)
        flow.wire(length, "gain", target, at=([i for i, n in enumerate(length.shape) if n > 1], (), ()))
    else:
        flow.wire(weight, "weight", target, source, at=at)
    _shift(flow, bias, target, atoms)
    return target


def _shift(flow: Flow, bias: Any, target: int, atoms: Atoms, kind: Any = "bias") -> None:
    """What is added to, or multiplied by, every neuron of a set."""
    if not isinstance(bias, Value):
        return
    if bias.shape and bias.shape[-1] > 1:
        flow.axes.unite(atoms, bias.dims[-1])
    flow.wire(bias, kind, target, at=((len(bias.shape) - 1,), (), ()))


def linear(flow: Flow, a: Mapping[str, Any], out: Any) -> Any:
    x, weight = a["input"], a["weight"]
    return _contract(flow, (x, weight), ([*range(len(x.shape))], [-1, len(x.shape) - 1]), out, a.get("bias"))


def _contract(
    flow: Flow,
    given: tuple[Value, Value],
    letters: tuple[list[int], list[int]],
    out: Shape,
    bias: Any = None,
    ends: Any = None,
) -> Any:
    """A product of two tensors whose axes have letters; `ends`: the letters of the result, else the first's and -1."""
    (x, w), (xs, ws) = given, letters
    ends = [*xs[:-1], -1] if ends is None else ends
    added = bias if bias is None or bias.loose is None or sum(n > 1 for n in bias.shape) > 1 else None
    if x.loose is not None or x.normed is not None:
        if w.loose is not None or w.normed is not None:
            w = flow.used(w)
        (x, w), (xs, ws), added = (w, x), (ws, xs), bias
    shared = [letter for letter in ws if letter in xs]
    for letter in shared:
        i, j = xs.index(letter), ws.index(letter)
        if x.shape[i] > 1 and w.shape[j] > 1:
            flow.axes.unite(x.dims[i], w.dims[j])
    summed = [letter for letter in shared if letter not in ends]
    fresh = [letter for letter in ws if letter not in xs]
    dims = []
    for letter in ends:
        atoms = x.dims[xs.index(letter)] if letter in xs else ()
        dims.append(atoms or (w.dims[ws.index(letter)] if letter in ws else ()))
    along = tuple(xs.index(letter) for letter in summed)
    layer = w.loose is not None or w.normed is not None
    whole = all(letter in summed or w.shape[ws.index(letter)] == 1 for letter in shared)
    if layer and summed and whole and x.loose is None and set(fresh) <= set(ends):
        sources = tuple(ws.index(letter) for letter in summed)
        targets = tuple(i for i, letter in enumerate(ws) if letter not in shared)
        if targets:
            target = linear_map(flow, x, w, bias if added is None else None, along, (targets, sources, ()))
            found = flow.value(dims, out, target)
            return found if added is None else add(flow, {"self": found, "other": added}, out)
    keep = None
    x, w = flow.used(x), flow.used(w)
    both = [letter for letter in shared if w.shape[ws.index(letter)] == x.shape[xs.index(letter)]]
    if all(
        flow.inside(value, map(own.index, both)) and flow.touches(value, map(own.index, summed))
        for value, own in ((x, xs), (w, ws))
    ):
        flow.pair(x, w)
        x, w = replace(x, set=None), replace(w, set=None)
    for value, own in ((x, xs), (w, ws)):
        if flow.touches(value, [i for i, letter in enumerate(own) if letter not in ends]):
            flow.restrict(value, NOTHING)
        elif value.set is not None:
            if keep is not None:
                flow.restrict(keep, NOTHING)
            keep = value
    found = flow.value(dims, out) if keep is None else flow.result(dims, out, keep)
    return found if bias is None else add(flow, {"self": found, "other": bias}, out)


def matmul(flow: Flow, a: Mapping[str, Any], out: Any, bias: Any = None) -> Any:
    x, w = (value for value in a.values() if isinstance(value, Value))
    left, right = len(x.shape), len(w.shape)
    batch = max(left, right) - 2
    xs = [-3] if left == 1 else [*range(batch - (left - 2), batch), -1, -3]
    ws = [-3] if right == 1 else [*range(batch - (right - 2), batch), -3, -2]
    ends = [*range(max(batch, 0)), *([-1] if left > 1 else []), *([-2] if right > 1 else [])]
    return _contract(flow, (x, w), (xs, ws), out, bias, ends)


def addmm(flow: Flow, a: Mapping[str, Any], out: Any) -> Any:
    """beta self + alpha mat1 @ mat2, of matrices or batches of them."""
    if a.get("beta", 1) != 1 or a.get("alpha", 1) != 1:
        return None
    keys = ("mat1", "mat2") if "mat1" in a else ("batch1", "batch2")
    return matmul(flow, {"mat1": a[keys[0]], "mat2": a[keys[1]]}, out, a["self"])


def bmm(flow: Flow, a: Mapping[str, Any], out: Any) -> Any:
    return matmul(flow, {"mat1": a["self"], "mat2": a["mat2"]}, out)


def einsum(flow: Flow, a: Mapping[str, Any], out: Any) -> Any:
    equation, tensors = a["equation"].replace(" ", ""), a["tensors"]
    if len(tensors) != 2 or "->" not in equation or "." in equation:
        return None
    given, end = equation.split("->")
    left, right = given.split(",")
    if len(set(left)) < len(left) or len(set(right)) < len(right):
        return None
    return _contract(flow, tuple(tensors), ([*map(ord, left)], [*map(ord, right)]), out, None, [*map(ord, end)])


def convolution(flow: Flow, a: Mapping[str, Any], out: Any) -> Any:
    return _convolved(flow, a, out, transposed=bool(a.get("transposed", False)))


def transposed(flow: Flow, a: Mapping[str, Any], out: Any) -> Any:
    return _convolved(flow, a, out, transposed=True)


def _convolved(flow: Flow, a: Mapping[str, Any], out: Shape, *, transposed: bool) -> Any:
    x, weight, groups = a["input"], a["weight"], a.get("groups", 1)
    space = len(weight.shape) - 2
    channel = len(x.shape) - space - 1
    for atoms in (*x.dims[channel + 1 :], *weight.dims[2:]):
        flow.axes.freeze(atoms)
    rest = tuple(range(2, space + 2))
    if x.loose is not None or (transposed and groups != 1):
        return None
    if groups == 1:
        targets, sources = ((1,), (0,)) if transposed else ((0,), (1,))
        target = linear_map(flow, x, weight, a.get("bias"), (channel,), (targets, sources, rest))
        atoms = weight.dims[targets[0]]
    else:
        group = flow.axes.new(groups)
        flow.axes.unite(x.dims[channel], group + weight.dims[1])
        flow.axes.unite(weight.dims[0], group + flow.axes.new(weight.shape[0] // groups))
        flow.restrict(x, NOTHING)
        name = weight.loose.name.removesuffix(".weight") if weight.loose else "a computed weight"
        source = flow.plain(f"inputs of {name}", weight.dims[1], weight.shape[1])
        atoms = weight.dims[0]
        target = flow.new(name, atoms, weight.shape[0], NOTHING if weight.normed else FREE)
        flow.wire(flow.used(weight) if weight.normed else weight, "weight", target, source, at=((0,), (1,), rest))
        _shift(flow, a.get("bias"), target, atoms)
    fresh = [flow.axes.new(n, frozen=True) for n in out[channel + 1 :]]
    return flow.value([*x.dims[:channel], atoms, *fresh], out, target)


def embedding(flow: Flow, a: Mapping[str, Any], out: Any) -> Any:
    weight, places = a["weight"], a["indices"]
    name = weight.loose.name.removesuffix(".weight") if weight.loose else "a computed embedding"
    flow.axes.freeze(weight.dims[0])
    source = flow.plain(f"inputs of {name}", weight.dims[0], weight.shape[0])
    target = flow.new(name, weight.dims[1], weight.shape[1])
    flow.wire(weight, "weight", target, source, at=((1,), (0,), ()))
    return flow.value([*places.dims, weight.dims[1]], out, target)


def weight_norm(flow: Flow, a: Mapping[str, Any], out: Any) -> Any:
    direction, length, dim = a["v"], a["g"], a.get("dim", 0)
    if dim < 0 or direction.loose is None or length.loose is None:
        return None
    if length.shape[dim] > 1:
        flow.axes.unite(direction.dims[dim], length.dims[dim])
    if dim != 0 or length.shape[0] == 1:
        for part in (direction, length):
            flow.used(part)
        return flow.value(direction.dims, out)
    return replace(flow.value(direction.dims, out), normed=(direction, length))


# Normalizations.


def _normalized(flow: Flow, a: Mapping[str, Any], x: Value, dim: int, keeps: NeuronGroup) -> Value:
    """A new set for what comes out, permuted together with what goes in, of which `keeps` is left."""
    weight, bias = a.get("weight"), a.get("bias")
    flow.restrict(x, keeps if flow.lies(x, (dim,)) else NOTHING)
    pure = next((part for part in (weight, bias) if isinstance(part, Value) and part.loose), None)
    name = pure.loose.name.rpartition(".")[0] if pure is not None and pure.loose else "a normalization"
    target = flow.new(name, x.dims[dim], x.shape[dim], NOTHING if weight is None else FREE)
    _shift(flow, weight, target, x.dims[dim], "gain")
    _shift(flow, bias, target, x.dims[dim])
    return flow.value(x.dims, x.shape, target)


def layer_norm(flow: Flow, a: Mapping[str, Any], out: Any) -> Any:
    x = flow.used(a["input"])
    if len(a["normalized_shape"]) != 1:
        flow.restrict(x, NOTHING)
        for atoms in x.dims[-len(a["normalized_shape"]) :]:
            flow.axes.freeze(atoms)
        for key in ("weight", "bias"):
            if isinstance(a.get(key), Value):
                flow.fix(a[key])
        return flow.value(x.dims, x.shape)
    return _normalized(flow, a, x, len(x.shape) - 1, NOTHING)


def batch_norm(flow: Flow, a: Mapping[str, Any], out: Any) -> Any:
    return _normalized(flow, a, flow.used(a["input"]), 1, SCALE)


def group_norm(flow: Flow, a: Mapping[str, Any], out: Any) -> Any:
    x, groups = flow.used(a["input"]), a["num_groups"]
    each = groups == x.shape[1]
    if groups not in (1, x.shape[1]):
        flow.axes.reshape(x.dims[1], (groups, x.shape[1] // groups))
    return _normalized(flow, a, x, 1, SCALE if each else NOTHING)
