"""Attention and recurrent cells (ours: symmetry.md does not list them).

Heads may be permuted, and within a head query and key together, and value with what reads it; query and key may also
change signs together. Hidden units of a cell are permuted together in every gate, in the rows and in the columns of its
weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from weightedit.network.axes import Atoms
from weightedit.network.flow import NOTHING, Flow, Value
from weightedit.network.operations.kinds import Reader
from weightedit.network.operations.layers import linear_map


def attention(flow: Flow, a: Mapping[str, Any], out: Any) -> Any:
    """Heads, and the width of a head within query and key, and within value, stay permutable; values keep factors."""
    query, key, value = (flow.used(a[name]) for name in ("query", "key", "value"))
    n = len(query.shape)
    if not (n == len(key.shape) == len(value.shape)) or n < 3:
        return None
    for i in range(n - 2):
        if query.shape[i] != key.shape[i] and key.shape[i] > 1:  # groups of queries share a key
            groups, _ = flow.axes.reshape(query.dims[i], (key.shape[i], query.shape[i] // key.shape[i]))
            flow.axes.unite(key.dims[i], groups)
        elif key.shape[i] > 1:
            flow.axes.unite(query.dims[i], key.dims[i])
        if value.shape[i] > 1 and key.shape[i] > 1:
            flow.axes.unite(key.dims[i], value.dims[i])
    flow.axes.unite(query.dims[-1], key.dims[-1])
    flow.axes.unite(key.dims[-2], value.dims[-2])
    for one in (query, key):
        if flow.touches(one, [n - 2]):
            flow.restrict(one, NOTHING)
        if a.get("is_causal"):
            flow.axes.freeze(one.dims[-2])
    flow.pair(query, key)
    mask = a.get("attn_mask")
    if isinstance(mask, Value):
        mask = flow.used(mask)
        flow.restrict(mask, NOTHING)
        scores = (*query.dims[:-1], key.dims[-2])
        flow.broadcast((Value((*query.shape[:-1], key.shape[-2]), scores), mask), (*query.shape[:-1], key.shape[-2]))
    if flow.touches(value, [n - 2]):
        flow.restrict(value, NOTHING)
    return flow.result([*query.dims[:-1], value.dims[-1]], out, value)


def recurrent(gates: int) -> Reader:
    """Hidden units are permuted together in every gate, in the rows and columns of the weights."""

    def read(flow: Flow, a: Mapping[str, Any], out: Any) -> Any:
        x = a["input"]
        if "batch_sizes" in a or "data" in a or x.loose is not None:
            return None
        directions = 2 if a["bidirectional"] else 1
        each = 4 if a["has_biases"] else 2
        weights, cells = list(a["params"]), directions * a["num_layers"]
        if len(weights) != each * cells:  # projections
            return None
        states = a["hx"] if isinstance(a.get("hx"), (list, tuple)) else [a.get("hx")]
        for atoms in x.dims[:-1]:  # time has an order
            flow.axes.freeze(atoms)
        below, hidden = x, ()
        for cell in range(cells):
            own = weights[each * cell : each * (cell + 1)]
            hidden = _cell(flow, below, own, gates)
            if directions == 2:
                flow.axes.freeze(hidden)
            for state in states:
                if isinstance(state, Value):
                    flow.restrict(flow.used(state), NOTHING)
                    flow.axes.unite(state.dims[-1], hidden)
            if cell % directions == directions - 1:
                width = directions * own[1].shape[1]
                atoms = hidden if directions == 1 else flow.axes.new(width, frozen=True)
                shape = (*x.shape[:-1], width)
                below = flow.value([*x.dims[:-1], atoms], shape, flow.plain("hidden units", atoms, width))
        last = [flow.value([*flow.inert(shape[:-1]).dims, hidden], shape) for shape in out[1:]]
        if cells > directions:
            _tie(flow, weights, each, cells, hidden)
        return [below, *last]

    return read


def _tie(flow: Flow, weights: list[Value], each: int, cells: int, hidden: Atoms) -> None:
    """The last states of several layers are one tensor: its neurons are permuted together."""
    for cell in range(cells):
        flow.axes.unite(weights[each * cell + 1].dims[1], hidden)


def _cell(flow: Flow, x: Value, weights: Sequence[Value], gates: int) -> Atoms:
    read, recur, *biases = weights
    size = recur.shape[1]
    hidden = recur.dims[1]
    for weight in weights:
        flow.axes.unite(weight.dims[0], flow.axes.new(gates, frozen=True) + hidden)
    target = linear_map(flow, x, read, biases[0] if biases else None, (len(x.shape) - 1,), ((0,), (1,), ()))
    flow.restrict_set(target, NOTHING)
    source = flow.plain("hidden units", hidden, size)
    flow.wire(recur, "weight", target, source, at=((0,), (1,), ()))
    for bias in biases[1:]:
        flow.wire(bias, "bias", target, at=((0,), (), ()))
    return hidden
