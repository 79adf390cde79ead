"""Numbers in a captured program that neither data nor parameters decide: attributes, buffers, and what is made of them.

They are computed from the module's own buffers, which are read and never written, when a drawing asks for them.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx

from weightedit.network.ending import Ending
from weightedit.network.program import Call, Program, called

_ACTIVATIONS = {"relu", "leaky_relu", "tanh", "sin", "gelu", "silu", "sigmoid"}
_AFFINE = {"mul", "div", "add", "sub", "rsub"}


class Constants:
    """The constants of one program."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.buffers = dict(program.net.named_buffers())
        self.found: dict[fx.Node, Tensor | None] = {}

    def of(self, node: Any) -> Tensor | None:
        """The tensor that `node` always gives; None where it is not a constant."""
        if not isinstance(node, fx.Node):
            return None
        if node not in self.found:
            self.found[node] = self._computed(node)
        return self.found[node]

    def number(self, value: Any) -> float | None:
        """The number that `value` is: Python's own, or a constant of one element."""
        if isinstance(value, (int, float)):
            return float(value)
        found = self.of(value)
        return float(found) if found is not None and found.numel() == 1 and not found.is_complex() else None

    def steps(self, call: Call) -> list[Ending] | None:
        """An activation, or an affine map of every number, as endings in their order; None for anything else."""
        name, given = call.name.removesuffix("_"), call.given
        if name in _ACTIVATIONS:
            parameter = {"sin": 1.0, "leaky_relu": given.get("negative_slope", 0.0)}.get(name, 0.0)
            exact = given.get("approximate", "none") == "none"
            return [Ending("sine" if name == "sin" else name, float(parameter))] if exact else None
        if name == "neg":
            return [Ending("multiply", -1.0)]
        first, second, alpha = self.number(given.get("self")), self.number(given.get("other")), given.get("alpha", 1)
        if name not in _AFFINE or (first is None) == (second is None) or given.get("rounding_mode") is not None:
            return None
        number = second if first is None else first
        assert number is not None
        factor, more = number, 0.0
        if name == "div":
            if first is not None or number == 0:
                return None
            factor = 1 / number
        elif name != "mul":  # self + alpha other; rsub is other - alpha self
            by = {"add": (1, alpha), "sub": (1, -alpha), "rsub": (-alpha, 1)}[name]
            factor, more = by[first is not None], by[first is None] * number
        if not (math.isfinite(factor) and math.isfinite(more)):
            return None
        steps = (("multiply", factor, 1), ("add", more, 0))
        return [Ending(step, float(value)) for step, value, nothing in steps if value != nothing]

    def _computed(self, node: fx.Node) -> Tensor | None:
        if node.op == "placeholder":
            name = self.program.buffers.get(node)
            found = self.buffers[name].detach() if name is not None else None
        elif node.op == "get_attr":
            found = getattr(self.program.graph, str(node.target), None)
        else:
            call = called(node) if node.op == "call_function" else None
            known = call is not None and (not call.written or call.name == "detach_")
            random = call is not None and torch.Tag.nondeterministic_seeded in call.tags
            given = {one: self.of(one) for one in node.all_input_nodes} if known and not random else {}
            if not known or random or any(one is None for one in given.values()):
                return None
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: given[n])
            with torch.no_grad():
                found = node.target(*args, **kwargs)  # type: ignore[operator]
        return found if isinstance(found, Tensor) and not found.is_meta else None
