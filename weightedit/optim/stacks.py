"""Tensors of one shape side by side, and lines of all their rows, columns and neurons: a step goes once over a network.

A step that treats one tensor after another is mostly the calling of small operations. Here a network's wiring becomes
a plan, made once: which tensors stand in one stack [.., tensors, rows, columns], and for everything that is one number
per row, column or neuron, where it stands in one line over the whole network. Biases and gains of all lengths make one
stack, padded with zeros. Sums over lines go through indices that were made with the plan, in one order always, so that
two runs agree bit by bit on every device. What is computed with these is each rule's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from weightedit.network.wiring import Wire, Wiring
from weightedit.optim.unitwise import goes_alone

T = TypeVar("T")


class Stack:
    """Tensors that are one in all operations: weights of one shape, or all biases and gains.

    Attributes:
        names, wires: of the tensors, in order.
        rows, columns: of the matrix that each one is; of biases and gains, the longest's rows.
        alone: one large tensor that a compiled rule takes by itself.
        real: [tensors, rows], which rows there are; None for all.
        first: place of the first tensor among those of all stacks.
    """

    def __init__(self, wires: Sequence[Wire], first: int, device: torch.device, *, alone: bool = False) -> None:
        self.wires, self.names = tuple(wires), tuple(wire.name for wire in wires)
        self.rows = max(wire.view[0] for wire in wires)
        self.sources, self.rest = wires[0].view[1:]
        self.columns, self.alone, self.first = self.sources * self.rest, alone, first
        self.lengths = [wire.view[0] for wire in wires]
        self._shape = wires[0].shape
        self._padding = self._places = self._counts = self.real = None
        if min(self.lengths) < self.rows:
            ends, total = _starts(self.lengths), sum(self.lengths)
            rows = [
                torch.cat([_range(start, n, device), torch.full((self.rows - n,), total, device=device)])
                for start, n in zip(ends, self.lengths, strict=True)
            ]
            self._padding, self._zero = torch.stack(rows), torch.zeros(1, device=device)
            self._places = torch.cat([_range(i * self.rows, n, device) for i, n in enumerate(self.lengths)])
            self._counts = torch.tensor(self.lengths, device=device).unsqueeze(-1)
            self.real = _range(0, self.rows, device) < self._counts

    def __len__(self) -> int:
        return len(self.names)

    @property
    def of(self) -> slice:
        """The places of its tensors among those of all stacks."""
        return slice(self.first, self.first + len(self))

    def join(self, tensors: Sequence[Tensor], lead: int) -> Tensor:
        """Tensors [.., *inner, *shape], `lead` axes of networks first, as [.., tensors, *inner, rows, columns]."""
        if self._padding is not None:
            return self._side_by_side(tensors).movedim(-2, lead).unsqueeze(-1)
        first = tensors[0]
        inner = first.shape[lead : first.dim() - len(self._shape)]
        joined = torch.stack(list(tensors), lead) if len(tensors) > 1 else first
        shape = (*first.shape[:lead], len(tensors), *inner, self.rows, self.columns)
        return joined if joined.shape == shape else joined.reshape(shape)

    def parts(self, joined: Tensor, lead: int) -> Sequence[Tensor]:
        """The tensors that make up [.., tensors, *inner, rows, columns]; `join` backwards."""
        if self._padding is not None:
            return self.unpadded(joined.squeeze(-1).movedim(lead, -2)).split_with_sizes(self.lengths, -1)
        shape = (*joined.shape[:-2], *self._shape)
        if len(self) == 1:
            return (joined.reshape(*shape[:lead], *shape[lead + 1 :]),)
        return (joined if joined.shape == shape else joined.reshape(shape)).unbind(lead)

    def lines(self, tensors: Sequence[Tensor], lead: int) -> Tensor:
        """`join`, but as [.., tensors, features, parameters]: one axis for all that is inside, 1 for nothing."""
        first = tensors[0]
        inner = first.shape[lead : first.dim() - len(self._shape)]
        if self._padding is not None:
            line = self._side_by_side(tensors)
            return line.movedim(-2, lead) if inner else line.unsqueeze(-2)
        joined = torch.stack(list(tensors), lead) if len(tensors) > 1 else first
        return joined.reshape(*first.shape[:lead], len(tensors), math.prod(inner), self.rows * self.columns)

    def tensors(self, lines: Tensor, lead: int, *inner: int) -> Sequence[Tensor]:
        """The tensors that make up `lines`, or one line of all; [.., *inner, *shape] each."""
        if self._places is not None:
            if inner:
                lines = lines.reshape(*lines.shape[:lead], len(self), *inner, self.rows).movedim(lead, -2)
            line = lines.flatten(-2 if inner else -3)
            return line.index_select(-1, self._places).split_with_sizes(self.lengths, -1)
        shape = (*lines.shape[:lead], len(self), *inner, *self._shape)
        if len(self) == 1:
            return (lines.reshape(*shape[:lead], *shape[lead + 1 :]),)
        return lines.reshape(shape).unbind(lead)

    def matrices(self, line: Tensor) -> Tensor:
        """[.., tensors, 1, parameters] as [.., tensors, rows, columns]."""
        return line.reshape(*line.shape[:-2], self.rows, self.columns)

    def by_row_and_column(self, line: Tensor) -> tuple[Tensor, Tensor]:
        """Means of [.., tensors, 1, parameters] over columns and over the rows that there are: lines of both."""
        if len(self) == 1:
            matrix = line.reshape(*line.shape[:-3], self.rows, self.columns)
            return matrix.mean(-1), matrix.mean(-2)
        matrices = self.matrices(line)
        return self.unpadded(matrices.mean(-1)), self.column_means(matrices).flatten(-2)

    def means(self, joined: Tensor) -> Tensor:
        """Means over the rows and columns that there are, [.., tensors, rows, columns], zero elsewhere: [.., 1, 1]."""
        if self._counts is None:
            return joined.mean((-2, -1), keepdim=True)
        return joined.sum((-2, -1), keepdim=True) / (self.columns * self._counts.unsqueeze(-1))

    def column_means(self, joined: Tensor) -> Tensor:
        """Means over the rows that there are, [.., tensors, rows, columns] -> [.., tensors, columns]."""
        return joined.mean(-2) if self._counts is None else joined.sum(-2) / self._counts

    def _side_by_side(self, tensors: Sequence[Tensor]) -> Tensor:
        """Tensors [.., rows] of all lengths as [.., tensors, rows]."""
        if tensors[0].dim() > 1:
            return self.padded(torch.cat(list(tensors), -1))
        return torch.cat([*tensors, self._zero])[self._padding]

    def padded(self, line: Tensor, value: float = 0.0) -> Tensor:
        """Numbers per row of every tensor, one tensor after another, [.., line] as [.., tensors, rows]."""
        if self._padding is not None:
            return functional.pad(line, (0, 1), value=value)[..., self._padding]
        return line.unflatten(-1, (len(self), self.rows))

    def pair(self, row: Tensor, column: Tensor, value: float) -> tuple[Tensor, Tensor]:
        """`Plan.pairs` of the stack, from [.., 1, line, 1] and [.., 1, 1, line], which one tensor's are already."""
        if len(self) == 1:
            return row, column
        lead, count = row.shape[:-3], len(self)
        column = column.reshape(*lead, count, 1, self.columns)
        if self._padding is None:
            return row.reshape(*lead, count, self.rows, 1), column
        return functional.pad(row.squeeze(-3), (0, 0, 0, 1), value=value)[..., self._padding, :], column

    def unpadded(self, rows: Tensor) -> Tensor:
        """`padded` backwards."""
        line = rows.flatten(-2)
        return line if self._places is None else line.index_select(-1, self._places)


class Sums:
    """Sums over the numbers of a line that belong to one number of another.

    Args:
        places: in the line, of the first, second, .. number that belongs to each of the others; `missing` for none.
        missing: the length of the line, which is then padded with a zero; or the place of a zero in it.
        pads: whether the line is to be padded.
    """

    def __init__(self, places: Sequence[Tensor], missing: int, *, pads: bool) -> None:
        self._pads, self._only = pads, None if len(places) > 1 or pads else places[0]
        self._index = torch.stack(list(places))
        self._counts = torch.stack([place != missing for place in places]).sum(0).clamp(min=1)

    def gathered(self, line: Tensor) -> Tensor:
        """What is summed, zeros where there is less of it: [.., most, made]."""
        return (functional.pad(line, (0, 1)) if self._pads else line)[..., self._index]

    def of(self, line: Tensor) -> Tensor:
        """[.., line] -> [.., made]."""
        if self._only is not None:
            return line[..., self._only]
        return self.gathered(line).sum(-2)

    def mean(self, line: Tensor) -> Tensor:
        """The same, of means; 0 where nothing belongs to a number."""
        return self.of(line) / self._counts


class Plan:
    """Where everything stands that a step over some tensors of a network needs.

    Lines: `rows` of all tensors, one after another in the order of the stacks; `columns` (sources by positions);
    `neurons`, those of all sets of the wiring in order, and one more, of size 1, for what is none.

    Args:
        wiring: of the network.
        names: of the tensors, all in the wiring.
        alone: those that are stacks of their own.
        like: dtype and device of constants.
    """

    def __init__(
        self, wiring: Wiring, names: Sequence[str], alone: Sequence[str], like: tuple[torch.dtype, torch.device]
    ) -> None:
        (self.dtype, self.device), self.wiring = like, wiring
        groups: dict[tuple[object, ...], list[Wire]] = {}
        for name in names:
            wire = wiring.by_name[name]
            one_axis = wire.source is None and len(wire.shape) == 1
            key = (name,) if name in alone else ("",) if one_axis else ("", wire.view, wire.shape, wire.source is None)
            groups.setdefault(key, []).append(wire)
        self.stacks: list[Stack] = []
        for key, wires in groups.items():
            first = sum(len(stack) for stack in self.stacks)
            self.stacks.append(Stack(wires, first, self.device, alone=key[0] != ""))
        self.wires = [wire for stack in self.stacks for wire in stack.wires]
        self.names = [wire.name for wire in self.wires]
        self.is_weight = torch.tensor([wire.kind == "weight" for wire in self.wires], device=self.device)
        self._rows = [wire.view[0] for wire in self.wires]
        self._columns = [math.prod(wire.view[1:]) for wire in self.wires]
        sizes = [neurons.size for neurons in wiring.sets]
        self._starts, self.neurons = _starts(sizes), sum(sizes)
        self._kept: dict[str, Any] = {}
        self.tensor_of_row, self.tensor_of_column = self.repeated(self._rows), self.repeated(self._columns)
        self.target_of_row = torch.cat([self.range(self._starts[wire.target], wire.view[0]) for wire in self.wires])
        self.source_of_column = torch.cat([self._sources(wire).repeat_interleave(wire.view[2]) for wire in self.wires])
        self.rows_of_tensor, self.neurons_of_set = self.runs(self._rows), self.runs(sizes)
        self.set_of_neuron = self.repeated(sizes)
        at = [(wire.target, start) for wire, start in zip(self.wires, _starts(self._rows), strict=True)]
        self.rows_of_neuron = self.arriving(at, sum(self._rows))
        count = sum(self._rows)
        for wire in self.wires:
            if wire.source is not None:
                at.append((wire.source, count))
                count += wire.view[1]
        self.ends_of_neuron = self.arriving(at, count)

    def split_rows(self, line: Tensor) -> Sequence[Tensor]:
        """A line of rows as one tensor per parameter, by `names`."""
        return line.split_with_sizes(self._rows, -1)

    def split_columns(self, line: Tensor) -> Sequence[Tensor]:
        """A line of columns as one tensor per parameter, by `names`."""
        return line.split_with_sizes(self._columns, -1)

    def per_stack(self, numbers: Tensor, axis: int = -1) -> Sequence[Tensor]:
        """Numbers per tensor along `axis`, cut into the stacks' parts."""
        return numbers.split_with_sizes([len(stack) for stack in self.stacks], axis)

    def rows_per_stack(self, line: Tensor, padding: float = 0.0) -> list[Tensor]:
        """A line [.., rows] as [.., tensors, rows] of every stack."""
        return [stack.padded(part, padding) for stack, part in zip(self.stacks, self.lines_of_rows(line), strict=True)]

    def lines_of_rows(self, line: Tensor, axis: int = -1) -> Sequence[Tensor]:
        """A line of rows as one line per stack."""
        return line.split_with_sizes([sum(self._rows[stack.of]) for stack in self.stacks], axis)

    def lines_of_columns(self, line: Tensor) -> Sequence[Tensor]:
        """A line of columns as one line per stack."""
        return line.split_with_sizes([sum(self._columns[stack.of]) for stack in self.stacks], -1)

    def columns_per_stack(self, line: Tensor) -> list[Tensor]:
        """A line [.., columns] as [.., tensors, columns] of every stack."""
        parts = zip(self.stacks, self.lines_of_columns(line), strict=True)
        return [part.unflatten(-1, (len(stack), -1)) for stack, part in parts]

    def pairs(self, rows: Tensor, columns: Tensor, padding: float = 1.0) -> list[tuple[Tensor, Tensor]]:
        """Lines of rows and columns as [.., tensors, rows, 1] and [.., tensors, 1, columns] of every stack."""
        by_row = self.lines_of_rows(rows.unflatten(-1, (1, -1, 1)), -2)
        by_column = self.lines_of_columns(columns.unflatten(-1, (1, 1, -1)))
        parts = zip(self.stacks, by_row, by_column, strict=True)
        return [stack.pair(row, column, padding) for stack, row, column in parts]

    def constant(self, name: str, made: Callable[[], Any]) -> Tensor:
        """A tensor of numbers that a rule knows of this plan by a name of its own, in the plan's dtype; made once."""
        return self.once(name, lambda: torch.tensor(made(), dtype=self.dtype, device=self.device))

    def once(self, name: str, made: Callable[[], T]) -> T:
        """What `made` makes, made once and kept under a name of the caller's own."""
        if name not in self._kept:
            with torch.inference_mode(False), torch.no_grad():
                self._kept[name] = made()
        return self._kept[name]

    def _sources(self, wire: Wire) -> Tensor:
        source = wire.source
        return self.range(self.neurons, 1) if source is None else self.range(self._starts[source], wire.view[1])

    def range(self, start: int, count: int) -> Tensor:
        """So many places from `start` on."""
        return _range(start, count, self.device)

    def repeated(self, lengths: Sequence[int]) -> Tensor:
        """0 so often, 1 so often, .."""
        return torch.cat([torch.full((n,), i, device=self.device) for i, n in enumerate(lengths)])

    def runs(self, lengths: Sequence[int]) -> Sums:
        """Sums over the first so many numbers of a line, over the next so many, .."""
        most, total = max(lengths), sum(lengths)
        rows = [
            functional.pad(self.range(start, n), (0, most - n), value=total)
            for start, n in zip(_starts(lengths), lengths, strict=True)
        ]
        return Sums(torch.stack(rows, 1).unbind(), total, pads=min(lengths) < most)

    def arriving(
        self, at: Sequence[tuple[int, int]], total: int, sets: Sequence[int] | None = None, *, zero: int | None = None
    ) -> Sums:
        """Per neuron of some sets (None: of all), places in a line of `total` that begin where `at` says, by set.

        `zero`: the place of a zero in the line, if it has one.
        """
        numbers = list(range(len(self.wiring.sets)) if sets is None else sets)
        chosen = [self.wiring.sets[i] for i in numbers]
        by_set = [[start for i, start in at if i == number] for number in numbers]
        most, missing = max(map(len, by_set)), total if zero is None else zero
        places = []
        for k in range(most):
            parts = [
                self.range(starts[k], neurons.size)
                if k < len(starts)
                else torch.full((neurons.size,), missing, device=self.device)
                for starts, neurons in zip(by_set, chosen, strict=True)
            ]
            places.append(torch.cat(parts))
        return Sums(places, missing, pads=zero is None and min(map(len, by_set)) < most)


def plan_of(wiring: Wiring, tensors: Mapping[str, Tensor], like: Tensor, *, alone: bool = False) -> Plan:
    """The plan of a network's tensors, made when first asked for and kept with the wiring.

    Args:
        wiring: of the network, which keeps it.
        tensors: with the names of the parameters; of their numbers nothing is looked at.
        like: of the dtype and on the device of a plan's constants.
        alone: whether large tensors of one network are stacks of their own (unitwise.goes_alone).
    """
    apart = [name for name, tensor in tensors.items() if alone and goes_alone(tensor, wiring.by_name[name].shape)]
    key = (tuple(tensors), tuple(apart), like.device, like.dtype)
    if key not in wiring.plans:
        with torch.inference_mode(False), torch.no_grad():  # what is kept must serve a training, too
            wiring.plans[key] = Plan(wiring, tuple(tensors), apart, (like.dtype, like.device))
    return wiring.plans[key]


def _starts(lengths: Sequence[int]) -> list[int]:
    return [sum(lengths[:i]) for i in range(len(lengths))]


def _range(start: int, count: int, device: torch.device) -> Tensor:
    return torch.arange(start, start + count, device=device)
