"""Follows a captured program through a Flow: what every operation of a forward does to neurons.

What is captured, and how, is program.py's; what an operation does to neurons is said in operations/.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from weightedit.network.flow import Flow, Value
from weightedit.network.operations.table import apply
from weightedit.network.program import Call, Program, called, storage


def follow(flow: Flow, program: Program) -> None:
    """Run `program` through `flow`: parameters, operations, outputs."""
    _Follower(flow, program).run()


class _Follower:
    """Goes through a captured forward, node by node."""

    def __init__(self, flow: Flow, program: Program) -> None:
        self.flow = flow
        self.program = program
        self.values: dict[fx.Node, Any] = {}
        self.stored: dict[int, list[fx.Node]] = {}  # by the storage that they lie in
        self.held = program.names.keys() | program.buffers.keys()

    def run(self) -> None:
        for node in self.program.nodes:
            seen = node.meta.get("val")
            if node.op == "placeholder":
                self.values[node] = self._input(node)
            elif node.op == "get_attr":
                constant = getattr(self.program.graph, str(node.target), None)
                self.values[node] = self.flow.inert(constant.shape) if isinstance(constant, Tensor) else None
            elif node.op == "output":
                for value in pytree.tree_leaves(fx.map_arg(node.args, lambda n: self.values[n])):
                    if isinstance(value, Value):
                        self.flow.fix(value)
            else:
                self.values[node] = self._call(node)
            if isinstance(seen, Tensor):
                self.stored.setdefault(storage(node), []).append(node)

    def _input(self, node: fx.Node) -> Value:
        seen = node.meta["val"]
        if node in self.program.names and seen.is_floating_point():
            return self.flow.parameter(self.program.names[node], seen.shape)
        return self.flow.inert(seen.shape)

    def _call(self, node: fx.Node) -> Any:
        if node.target is operator.getitem:
            whole: Any = self.values[node.args[0]]  # type: ignore[index]
            return whole[node.args[1]] if whole is not None else None
        get: Callable[[Any], Any] = lambda argument: fx.map_arg(argument, lambda n: self.values[n])  # noqa: E731
        out = _shapes(node.meta.get("val"))
        call = called(node)
        if call is None:
            return self._unknown(get((node.args, node.kwargs)), out)
        arguments = {name: get(argument) for name, argument in call.given.items()}
        if not call.written:
            return apply(self.flow, call.name, arguments, out, pointwise=torch.Tag.pointwise in call.tags)
        return self._write(call, arguments, out)

    def _write(self, call: Call, arguments: Mapping[str, Any], out: Any) -> Any:
        """An operation that writes to its input: what lies in the same memory has changed with it."""
        target = call.given[call.written[0]]
        if not isinstance(target, fx.Node):
            return self._unknown(arguments, out)
        peers = self.stored.get(storage(target), [target])
        same = all(_place(peer.meta["val"]) == _place(target.meta["val"]) for peer in peers)
        if same and len(call.written) == 1 and call.name.endswith("_") and not self.held & set(peers):
            pointwise = torch.Tag.pointwise in call.tags
            found = apply(self.flow, call.name.removesuffix("_"), arguments, out, pointwise=pointwise)
            self.values.update(dict.fromkeys(peers, found))
            return found
        return self._unknown([arguments, [self.values[peer] for peer in peers]], out)

    def _unknown(self, given: Any, out: Any) -> Any:
        values = [value for value in pytree.tree_leaves(given) if isinstance(value, Value)]
        return apply(self.flow, "", {"given": values}, out)


def _shapes(seen: Any) -> Any:
    if isinstance(seen, Tensor):
        return tuple(seen.shape)
    if isinstance(seen, (list, tuple)) and any(isinstance(one, Tensor) for one in seen):
        return [tuple(one.shape) if isinstance(one, Tensor) else None for one in seen]
    return None


def _place(tensor: Tensor) -> tuple[Any, ...]:
    return tuple(tensor.shape), tensor.stride(), tensor.storage_offset()
