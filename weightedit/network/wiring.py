"""Which axis of which parameter runs over which neurons, and what those neurons may carry: all that update rules see.

NetworkSpec and GraphSpec describe networks of which metanetworks read and write everything. An optimizee may be any
module: convolutions, normalizations, residual streams, attention, and parts nobody knows. Its wiring says for every
parameter that is read as a matrix, [targets, sources, kernel positions], between which sets of neurons it lies, and
claims symmetry only where that is known. Reading one from a module is reading.py's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

from weightedit.errors import ParamsError, SpecError
from weightedit.network.layer import NeuronGroup
from weightedit.network.spec import NetworkSpec

Kind = Literal["weight", "gain", "bias"]


@dataclass(frozen=True)
class Part:
    """One index of neurons that are numbered by several: heads, or places within a head.

    Attributes:
        order: parts of the same order are permuted together.
        size: how many values it takes.
        permutable: False where nothing is known.
        within: orders of outer parts; every value of those may have a permutation of its own.
    """

    order: int
    size: int
    permutable: bool
    within: tuple[int, ...] = ()


@dataclass(frozen=True)
class NeuronSet:
    """Neurons that may be permuted among each other (`permutable`), each with a factor of `group`.

    Attributes:
        name: where they are computed, for messages.
        size: how many.
        group: the factors that a neuron may carry.
        permutable: False for inputs, outputs, and neurons of which nothing is known.
        order: sets of the same order are permuted together (a normalization's outputs with its inputs).
        parts: outermost first, for neurons that are permuted by parts alone (heads, and places within them); () where
            any permutation is one of theirs.
        rate: what the network multiplies their sums by before an activation that sees it: omega of a sine.
    """

    name: str
    size: int
    group: NeuronGroup = NeuronGroup()
    permutable: bool = False
    order: int = -1
    parts: tuple[Part, ...] = ()
    rate: float = 1.0

    @property
    def indices(self) -> tuple[Part, ...]:
        """`parts`, or the one part that the set is."""
        return self.parts or (Part(self.order, self.size, self.permutable),)

    def __str__(self) -> str:
        found = [word for word in ("scale", "flip", "shift") if getattr(self.group, word)]
        return " + ".join((["permutation"] if self.permutable else []) + found) or "none"


@dataclass(frozen=True)
class Wire:
    """One parameter, read as [targets, sources, rest]; a bias or gain has one source and one position.

    A neuron factor q multiplies a weight by q_target / q_source, and a bias or gain by q_target.

    Attributes:
        name: of the parameter.
        shape: of the parameter, targets first; see `arranged`.
        kind: "weight"; "gain" (the factor of a normalization) or "bias", both one number per target.
        target: index of the set of neurons that axis 0 runs over.
        source: index of the set that axis 1 runs over, kernel positions or pixels within each channel; None for gains
            and biases.
        sources: how many neurons of the source axis 1 holds; 1 for gains and biases.
        stored: the shape that the network has it in, where that is another; () where it is the same.
        axes: the order of the network's axes that gives `shape`, once some are joined, or of size 1 and left out.
    """

    name: str
    shape: tuple[int, ...]
    kind: Kind
    target: int
    source: int | None = None
    sources: int = 1
    stored: tuple[int, ...] = ()
    axes: tuple[int, ...] = ()

    def arranged(self, tensor: Tensor) -> Tensor:
        """A tensor as the network has it, [..., *stored], as [..., *shape], which is what rules see."""
        if not self.stored:
            return tensor
        lead = tensor.dim() - len(self.stored)
        order = (*range(lead), *(lead + axis for axis in self.axes))
        return tensor.permute(order).reshape(*tensor.shape[:lead], *self.shape)

    def restored(self, tensor: Tensor) -> Tensor:
        """The inverse of `arranged`."""
        if not self.stored:
            return tensor
        lead = tensor.dim() - len(self.shape)
        back = sorted(range(len(self.axes)), key=self.axes.__getitem__)
        whole = tensor.reshape(*tensor.shape[:lead], *(self.stored[axis] for axis in self.axes))
        return whole.permute(*range(lead), *(lead + axis for axis in back))

    @property
    def view(self) -> tuple[int, int, int]:
        """(targets, sources, rest): the shape as which rules read the tensor, rest being kernel positions."""
        return self.shape[0], self.sources, math.prod(self.shape[1:]) // self.sources

    def matrix(self, tensor: Tensor) -> Tensor:
        """`tensor` [..., *shape] as [..., targets, sources, rest]."""
        return tensor.reshape(*tensor.shape[: tensor.dim() - len(self.shape)], *self.view)

    def flat(self, tensor: Tensor) -> Tensor:
        """`tensor` [..., *shape] as [..., targets, sources rest], detached: a compiler sees no other shape of it."""
        return self.matrix(tensor).flatten(-2).detach()


@dataclass(frozen=True)
class Wiring:
    """The sets of neurons of a network and its wired parameters, producers of a set before its consumers.

    Attributes:
        sets: of neurons; wires refer to them by index.
        wires: one per parameter, in the order of computation where that is known.
        outside: names of parameters that are no part of the neural graph (embeddings, unknown modules).
        notes: what could not be read, for a person.
        spec: the NetworkSpec or GraphSpec of the same network, for rules that are metanetworks; None where none was
            read (graph_spec.spec_of).
        plans: where optim/stacks.py keeps what it made of the wiring.
    """

    sets: tuple[NeuronSet, ...]
    wires: tuple[Wire, ...]
    outside: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    spec: Any = field(default=None, compare=False)
    plans: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        for wire in self.wires:
            if 0 in wire.shape:
                raise SpecError(
                    f"got {wire.name} of shape {wire.shape} as a wire; expected a parameter with elements: leave it "
                    "out."
                )
            targets, sources, _ = wire.view
            sizes = [targets == self.sets[wire.target].size]
            if wire.source is not None:
                sizes.append(sources == self.sets[wire.source].size)
            if not all(sizes) or math.prod(wire.view) != math.prod(wire.shape):
                raise SpecError(
                    f"got {wire.name} of shape {wire.shape} between sets of "
                    f"{self.sets[wire.target].size} and {sources} neurons; expected axes that run over them."
                )

    @cached_property
    def by_name(self) -> dict[str, Wire]:
        """Wires by the name of their parameter."""
        return {wire.name: wire for wire in self.wires}

    @cached_property
    def rates(self) -> dict[str, float]:
        """The rate of the neurons that a parameter goes to, by its name, where it is not 1.

        Rules that go by the size of what they move take rate * parameter for the parameter, and gradient / rate for its
        gradient: the network is one with rates of 1 and those parameters.
        """
        return {wire.name: rate for wire in self.wires if (rate := self.sets[wire.target].rate) != 1}

    def lead(self, params: Mapping[str, Tensor]) -> tuple[int, ...]:
        """() for the parameters of one network, (N,) for a stack of N. Raises ParamsError on shapes that do not fit."""
        found = set()
        for name, tensor in params.items():
            shape = self.by_name[name].shape if name in self.by_name else None
            axes = tensor.dim() - len(shape or ())
            if shape is None or axes not in (0, 1) or tuple(tensor.shape[axes:]) != shape:
                raise ParamsError(
                    f"got {name} of shape {tuple(tensor.shape)}; expected {shape or 'a parameter of this network'}, "
                    "with one leading axis for a stack of networks or none."
                )
            found.add(tuple(tensor.shape[:axes]))
        if len(found) != 1:
            raise ParamsError(
                f"got parameters with leading axes {sorted(found)}; expected the same for all: one network, or one "
                "stack."
            )
        return found.pop()

    def rescaled(self, params: Mapping[str, Tensor], factors: Sequence[Tensor]) -> dict[str, Tensor]:
        """Parameters under neuron factors q, [n] or [N, n] per set: weights times q_target / q_source, others q_target.

        The network's function stays as it is where each set's group allows its factors; see NeuronSet.
        """
        found = {}
        for name, tensor in params.items():
            wire = self.by_name[name]
            matrix = wire.matrix(tensor) * factors[wire.target][..., :, None, None]
            if wire.source is not None:
                matrix = matrix / factors[wire.source][..., None, :, None]
            found[name] = matrix.reshape(tensor.shape)
        return found

    def permutations(self, generator: torch.Generator) -> list[Tensor]:
        """A random one of the permutations that are claimed: per set, the neuron that each one takes the place of."""
        drawn: dict[int, Tensor] = {}
        return [_permutation(neurons.indices, drawn, generator) for neurons in self.sets]

    def permuted(self, params: Mapping[str, Tensor], places: Sequence[Tensor]) -> dict[str, Tensor]:
        """Parameters [*shape] with the neurons of every set in the order `places`."""
        found = {}
        for name, tensor in params.items():
            wire = self.by_name[name]
            matrix = wire.matrix(tensor)[..., places[wire.target], :, :]
            if wire.source is not None:
                matrix = matrix[..., places[wire.source], :]
            found[name] = matrix.reshape(tensor.shape)
        return found

    def report(self) -> str:
        """One line per parameter: its shape and the symmetry of the neurons it goes to; then what is outside."""
        width = max((len(wire.name) for wire in self.wires), default=0)
        lines = [
            f"{wire.name:{width}}  {'x'.join(map(str, wire.shape)):>14}  {self.sets[wire.target]}"
            for wire in self.wires
        ]
        lines += [f"{name}: outside the neural graph" for name in self.outside]
        return "\n".join([*lines, *self.notes])

    @classmethod
    def of(cls, spec: NetworkSpec) -> Wiring:
        """The wiring of a chain of layers; one object per spec."""
        return _of_chain(spec)


def _permutation(parts: Sequence[Part], drawn: dict[int, Tensor], generator: torch.Generator) -> Tensor:
    """For neurons numbered by `parts`, the neuron that each takes the place of."""
    sizes = [part.size for part in parts]
    grid = torch.meshgrid(*(torch.arange(size) for size in sizes), indexing="ij")
    places = [index.flatten() for index in grid]  # two parts may have one order
    new = {part.order: index for part, index in zip(parts, places, strict=True)}
    whole = torch.zeros(math.prod(sizes), dtype=torch.long)
    for part, place in zip(parts, places, strict=True):
        outer = [other for other in parts if other.order in part.within]
        if part.order not in drawn:
            rows = math.prod(other.size for other in outer)
            orders = [torch.randperm(part.size, generator=generator) for _ in range(rows)]
            drawn[part.order] = torch.stack(orders if part.permutable else [torch.arange(part.size)] * rows)
        row = torch.zeros_like(whole)
        for other in outer:
            row = row * other.size + new[other.order]
        whole = whole * part.size + drawn[part.order][row, place]
    return whole


@lru_cache(maxsize=256)
def _of_chain(spec: NetworkSpec) -> Wiring:
    groups = [NeuronGroup(), *spec.neuron_groups(), NeuronGroup()]
    names = ["inputs", *(layer.weight.removesuffix(".weight") for layer in spec.layers)]
    hidden = range(1, spec.depth)
    rates = [1.0, *(layer.activation.parameter if layer.activation.name == "sine" else 1.0 for layer in spec.layers)]
    sets = [
        NeuronSet(name, size, group, i in hidden, i, rate=rate)
        for i, (name, size, group, rate) in enumerate(zip(names, spec.widths, groups, rates, strict=True))
    ]
    wires = []
    for i, layer in enumerate(spec.layers):
        wires.append(Wire(layer.weight, layer.weight_shape, "weight", i + 1, i, layer.fan_in))
        if layer.bias is not None:
            wires.append(Wire(layer.bias, (layer.fan_out,), "bias", i + 1))
    return Wiring(tuple(sets), tuple(wires), spec=spec)
