"""The vertex gauge of a whole network at once: gauge.py's formulas over lines of neurons, instead of set by set.

Sets go by level, which is one more than the highest level that they read from; within one, weights of one stack are
one product. What this finds is gauge.neuron_scales and gauge.growth, to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from weightedit.graph.neural_graph import product
from weightedit.network.layer import Symmetry
from weightedit.network.wiring import Wire
from weightedit.optim.gauge import first_alive, reciprocal
from weightedit.optim.lists import products
from weightedit.optim.stacks import Plan


class Gauge:
    """What is known of a plan's network before its weights are.

    Args:
        plan: of all tensors that count.
        symmetry: as in gauge.neuron_scales.
    """

    def __init__(self, plan: Plan, symmetry: Symmetry) -> None:
        self._plan, sets = plan, plan.wiring.sets
        heights = [0] * len(sets)
        for i in range(len(sets)):
            heights[i] = max((1 + heights[_source(w)] for w in plan.wires if _counts(w) and w.target == i), default=0)
        levels = [[i for i in range(len(sets)) if heights[i] == height] for height in range(max(heights) + 1)]
        starts, count = {}, 0
        for i in (i for level in levels for i in level):
            starts[i], count = count, count + sets[i].size
        free = [neurons.group.restricted(symmetry).scale for neurons in sets]
        self._levels = [_Level(plan, level, starts, free) for level in levels]
        self._order = torch.cat([plan.range(starts[i], neurons.size) for i, neurons in enumerate(sets)])
        read = {wire.source for wire in plan.wiring.wires}
        reached = {wire.target for wire in plan.wiring.wires if wire.source is not None}
        ends = [i for i in sorted(reached - read) if not sets[i].group.scale]
        self._ends = torch.tensor(ends, device=plan.device) if ends else None
        self._reached = max(1, len(reached))

    def scales(self, joined: Sequence[Tensor]) -> Tensor:
        """gauge.neuron_scales of the values of every stack [.., tensors, 1, parameters], [.., neurons]."""
        squares, rows = [], []
        for stack, square in zip(self._plan.stacks, products(joined, joined), strict=True):
            if stack.wires[0].source is None:
                rows.append(stack.unpadded(square.squeeze(-2)))
            shape = (*square.shape[:-2], stack.rows, stack.sources)
            squares.append(square.reshape(shape) if stack.rest == 1 else square.reshape(*shape, stack.rest).sum(-1))
        lead = squares[0].shape[:-3]
        given = torch.cat([*rows, squares[0].new_zeros(*lead, 1)], -1)
        found: list[Tensor] = []
        for level in self._levels:
            found.append(level.forwards(squares, given, found))
        for i, level in reversed(list(enumerate(self._levels))):
            found[i] = level.backwards(squares, given, found, i)
        return torch.cat(found, -1).index_select(-1, self._order).sqrt()

    def growth(self, scales: Tensor) -> Tensor:
        """gauge.growth from the scales."""
        if self._ends is None:
            return scales.new_zeros(scales.shape[:-1])
        logarithms = self._plan.neurons_of_set.mean(scales.log())
        return logarithms.index_select(-1, self._ends).mean(-1) / self._reached


class _Products:
    """Squared weights of some tensors of a stack, times one number per source; or per target, backwards.

    Args:
        stack: among the plan's.
        chosen: which of its tensors.
        neurons: per chosen tensor, places in the line of neurons of what it is multiplied by.
        backwards: whether these are targets.
    """

    def __init__(self, plan: Plan, stack: int, chosen: list[int], neurons: list[Tensor], *, backwards: bool) -> None:
        whole = len(chosen) == len(plan.stacks[stack])
        self._stack, self._backwards = stack, backwards
        self._chosen = None if whole else torch.tensor(chosen, device=plan.device)
        self._neurons = torch.stack(neurons).unsqueeze(-2 if backwards else -1)

    def of(self, squares: Sequence[Tensor], line: Tensor) -> Tensor:
        """A line of targets (backwards, of sources), one tensor after another."""
        square = squares[self._stack]
        square = square if self._chosen is None else square.index_select(-3, self._chosen)
        numbers = line[..., self._neurons]
        return (product(numbers, square) if self._backwards else product(square, numbers)).flatten(-3)


class _Level:
    """The sets of one level, what leads to them and from them.

    Args:
        plan: of the network.
        sets: of this level.
        starts: where every set's neurons begin in the line of all levels.
        free: which sets carry factors.
    """

    def __init__(self, plan: Plan, sets: list[int], starts: dict[int, int], free: list[bool]) -> None:
        sizes = [plan.wiring.sets[i].size for i in sets]
        rows, total = {}, 0  # of which one more, a zero, follows
        for stack in plan.stacks:
            for wire in stack.wires if stack.wires[0].source is None else ():
                rows[wire.name], total = total, total + wire.view[0]
        gains = [(wire.target, rows[wire.name]) for wire in plan.wires if wire.kind == "gain" and wire.name in rows]
        biases = [(wire.target, rows[wire.name]) for wire in plan.wires if wire.kind == "bias" and wire.name in rows]
        self._incoming, at, end = [], list(gains), total + 1
        self._outgoing, leaving, out = [], [], 0
        for s, stack in enumerate(plan.stacks):
            to = [k for k, w in enumerate(stack.wires) if _counts(w) and w.target in sets]
            if to:
                sources = [plan.range(starts[_source(stack.wires[k])], stack.sources) for k in to]
                self._incoming.append(_Products(plan, s, to, sources, backwards=False))
            for k in to:
                at.append((stack.wires[k].target, end))
                end += stack.rows
            off = [k for k, w in enumerate(stack.wires) if _counts(w) and w.source in sets]
            if off:
                targets = [plan.range(starts[stack.wires[k].target], stack.rows) for k in off]
                self._outgoing.append(_Products(plan, s, off, targets, backwards=True))
            for k in off:
                leaving.append((_source(stack.wires[k]), out))
                out += stack.sources
        self._size, led = sum(sizes), {i for i, _ in at}
        self._arriving = plan.arriving(at, end, sets, zero=total) if led & set(sets) else None
        self._alone = _mask(plan, sizes, [i not in led for i in sets])
        self._shared = _mask(plan, sizes, [not free[i] for i in sets])
        self._means, self._set_of_neuron = plan.runs(sizes), plan.repeated(sizes)
        looked = [free[i] and i in led for i in sets]
        self._looked = _mask(plan, sizes, looked)
        self._leaving = plan.arriving(leaving, out, sets, zero=out) if leaving else None
        has_biases = bool({i for i, _ in biases} & set(sets))
        self._biases = plan.arriving(biases, total, sets, zero=total) if has_biases else None

    def forwards(self, squares: Sequence[Tensor], rows: Tensor, before: Sequence[Tensor]) -> Tensor:
        """Squared scales from the gains in `rows` and from the levels before, [.., neurons of the level].

        `rows`: squared biases and gains, then a zero.
        """
        if self._arriving is None:
            return rows.new_ones(*rows.shape[:-1], self._size)
        line = torch.cat(list(before), -1) if self._incoming else rows
        found = self._arriving.of(torch.cat([rows, *(product.of(squares, line) for product in self._incoming)], -1))
        if self._alone is not None:
            found = found.masked_fill(self._alone, 1.0)
        if self._shared is None:
            return found
        mean = self._means.mean(found)
        mean = mean.masked_fill(mean <= 0, 1.0).index_select(-1, self._set_of_neuron)
        return torch.where(self._shared, mean, found)

    def backwards(self, squares: Sequence[Tensor], rows: Tensor, found: Sequence[Tensor], level: int) -> Tensor:
        """The same, where it is zero from what the neurons feed or from their biases; levels above are done."""
        own = found[level]
        if self._looked is None:
            return own
        candidates = [own]
        if self._leaving is not None:
            line = torch.cat(list(found), -1).reciprocal()
            dual = torch.cat([*(product.of(squares, line) for product in self._outgoing), rows[..., -1:]], -1)
            candidates.append(reciprocal(self._leaving.of(dual)))
        if self._biases is not None:
            candidates += self._biases.gathered(rows).unbind(-2)
        return torch.where(self._looked, first_alive(*candidates), own)


def _counts(wire: Wire) -> bool:
    """Whether a tensor is a weight from an earlier set to a later one: see gauge._weights."""
    return wire.source is not None and wire.source < wire.target and wire.kind != "bias"


def _source(wire: Wire) -> int:
    assert wire.source is not None
    return wire.source


def _mask(plan: Plan, sizes: Sequence[int], which: Sequence[bool]) -> Tensor | None:
    """[neurons], true in the sets that are chosen; None where there are none."""
    chosen = [torch.full((size,), one, device=plan.device) for size, one in zip(sizes, which, strict=True)]
    return torch.cat(chosen) if any(which) else None
