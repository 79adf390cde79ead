"""Which biases have a gradient that is rounding alone, so that a learned rule takes it for zero.

A bias in front of a normalization, and one of attention's keys, has no effect. Its gradient is a sum that is zero but
for rounding, and in units of its own as healthy as any: rules that divide by its size would move it at full size, in
another direction for every copy of a network. So it is held against the gradients of the weights that lead to its
neuron (ours): with v averaged squares in the gauge (gauge.py), this step's counted, a bias has no gradient where

    v_bias <= (ROUNDING eps)^2 (sum of v over the neuron's weights)

Both sides are of one type, so that copies agree about it; averages, since a gradient that passes through zero is none.
Where a network runs in less precision than its parameters have (autocast), eps is too small for this to be seen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from weightedit.network.wiring import Wiring
from weightedit.optim.stacks import Plan, Stack

ROUNDING = 2.0**12
"""In units of eps: sums over the places of batches of pictures are wrong by up to half of this (float32, measured)."""


def is_rounding(bias: Tensor, weights: Tensor) -> Tensor:
    """Truth values from averaged squares of biases and, per neuron, the sum of those of its weights."""
    return bias <= (ROUNDING * torch.finfo(bias.dtype).eps) ** 2 * weights


def is_vector(stack: Stack) -> bool:
    """Whether these are tensors of one number per neuron, which biases are."""
    return stack.wires[0].source is None and stack.columns == 1


class Reference:
    """What biases of a plan are held against."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._stacks = [stack for stack in plan.stacks if stack.wires[0].source is not None]
        self._wires = [wire for stack in self._stacks for wire in stack.wires]
        lengths = [wire.view[0] for wire in self._wires]
        at = [(wire.target, sum(lengths[:i])) for i, wire in enumerate(self._wires)]
        self._arriving = plan.arriving(at, sum(lengths)) if at else None
        fans = [float(math.prod(wire.view[1:])) for wire in self._wires]
        self._fans = torch.tensor(fans, dtype=plan.dtype, device=plan.device)[plan.repeated(lengths)] if at else None
        biases = [float(wire.kind == "bias") for wire in plan.wires]
        self._is_bias = torch.tensor(biases, dtype=plan.dtype, device=plan.device)

    def of(
        self, before: Sequence[Tensor], now: Mapping[str, Tensor], fresh: float, slower: Tensor
    ) -> list[Tensor] | None:
        """Per stack a line of rows, 0 for what is no bias; None where no weights lead anywhere.

        Args:
            before: averaged squares by row of all tensors, in the plan's order.
            now: this step's, by the first name of every stack of weights, as a line.
            fresh: what they count.
            slower: per tensor, what the gauge of biases is multiplied by.
        """
        plan = self._plan
        if self._arriving is None or self._fans is None:
            return None
        old = torch.cat([row for stack in self._stacks for row in before[stack.of]], -1)
        rows = old.lerp(torch.cat([now[stack.names[0]] for stack in self._stacks], -1), fresh) * self._fans
        neurons = self._arriving.of(rows).index_select(-1, plan.target_of_row)
        own = (slower.square() * self._is_bias).index_select(-1, plan.tensor_of_row)
        return list(plan.lines_of_rows(neurons * own))


def rounding_biases(wiring: Wiring, squares: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same by name: truth values per bias, from averaged squares in the gauge, [.., *shape] each."""
    weights: dict[int, Tensor] = {}
    for name, square in squares.items():
        wire = wiring.by_name[name]
        if wire.source is not None:
            total = wire.matrix(square).sum((-2, -1))
            weights[wire.target] = weights[wire.target] + total if wire.target in weights else total
    found = {}
    for name, square in squares.items():
        wire = wiring.by_name[name]
        if wire.kind == "bias" and len(wire.shape) == 1 and wire.target in weights:
            found[name] = is_rounding(square, weights[wire.target])
    return found
