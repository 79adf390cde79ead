"""Which axis of which parameter runs over which neurons, and what those neurons may carry: all that update rules see.

NetworkSpec and GraphSpec describe networks of which metanetworks read and write everything. An optimizee may be any
module: convolutions, normalisations, residual streams, attention, and parts nobody knows. Its wiring says for every
parameter that is read as a matrix, [targets, sources, kernel positions], between which sets of neurons it lies, and
claims symmetry only where that is known. Reading one from a module is module_wiring.py's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, Literal

from torch import Tensor

from weightedit.errors import ParamsError, SpecError
from weightedit.network.layer import NeuronGroup
from weightedit.network.spec import NetworkSpec

Kind = Literal["weight", "gain", "bias"]


@dataclass(frozen=True)
class NeuronSet:
    """Neurons that may be permuted among each other (`permutable`), each with a factor of `group`.

    Attributes:
        name: where they are computed, for messages.
        size: how many.
        group: the factors that a neuron may carry.
        permutable: False for inputs, outputs, and neurons of which nothing is known.
        order: sets of the same order are permuted together (a normalisation's outputs with its inputs).
    """

    name: str
    size: int
    group: NeuronGroup = NeuronGroup()
    permutable: bool = False
    order: int = -1

    def __str__(self) -> str:
        found = [word for word in ("scale", "flip", "shift") if getattr(self.group, word)]
        return " + ".join((["permutation"] if self.permutable else []) + found) or "none"


@dataclass(frozen=True)
class Wire:
    """One parameter, read as [targets, sources, rest]; a bias or gain has one source and one position.

    A neuron factor q multiplies a weight by q_target / q_source, and a bias or gain by q_target.

    Attributes:
        name: of the parameter.
        shape: of the parameter, targets first.
        kind: "weight"; "gain" (the factor of a normalisation) or "bias", both one number per target.
        target: index of the set of neurons that axis 0 runs over.
        source: index of the set that axis 1 runs over, kernel positions or pixels within each channel; None for gains
            and biases.
        sources: how many neurons of the source axis 1 holds; 1 for gains and biases.
    """

    name: str
    shape: tuple[int, ...]
    kind: Kind
    target: int
    source: int | None = None
    sources: int = 1

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
    """

    sets: tuple[NeuronSet, ...]
    wires: tuple[Wire, ...]
    outside: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    spec: Any = field(default=None, compare=False)

    def __post_init__(self) -> None:
        for wire in self.wires:
            if 0 in wire.shape:
                raise SpecError(
                    f"{wire.name} of shape {wire.shape} came as a wire; expected a parameter with elements: leave it "
                    "out."
                )
            targets, sources, _ = wire.view
            sizes = [targets == self.sets[wire.target].size]
            if wire.source is not None:
                sizes.append(sources == self.sets[wire.source].size)
            if not all(sizes) or math.prod(wire.view) != math.prod(wire.shape):
                raise SpecError(
                    f"{wire.name} of shape {wire.shape} came between sets of "
                    f"{self.sets[wire.target].size} and {sources} neurons; expected axes that run over them."
                )

    @cached_property
    def by_name(self) -> dict[str, Wire]:
        """Wires by the name of their parameter."""
        return {wire.name: wire for wire in self.wires}

    def lead(self, params: Mapping[str, Tensor]) -> tuple[int, ...]:
        """() for the parameters of one network, (N,) for a stack of N. Raises ParamsError on shapes that do not fit."""
        found = set()
        for name, tensor in params.items():
            shape = self.by_name[name].shape if name in self.by_name else None
            axes = tensor.dim() - len(shape or ())
            if shape is None or axes not in (0, 1) or tuple(tensor.shape[axes:]) != shape:
                raise ParamsError(
                    f"{name} of shape {tuple(tensor.shape)} came; expected {shape or 'a parameter of this network'}, "
                    "with one leading axis for a stack of networks or none."
                )
            found.add(tuple(tensor.shape[:axes]))
        if len(found) != 1:
            raise ParamsError(
                f"parameters with leading axes {sorted(found)} came; expected the same for all: one network, or one "
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


@lru_cache(maxsize=256)
def _of_chain(spec: NetworkSpec) -> Wiring:
    groups = [NeuronGroup(), *spec.neuron_groups(), NeuronGroup()]
    names = ["inputs", *(layer.weight.removesuffix(".weight") for layer in spec.layers)]
    hidden = range(1, spec.depth)
    sets = [
        NeuronSet(name, size, group, i in hidden, i)
        for i, (name, size, group) in enumerate(zip(names, spec.widths, groups, strict=True))
    ]
    wires = []
    for i, layer in enumerate(spec.layers):
        wires.append(Wire(layer.weight, layer.weight_shape, "weight", i + 1, i, layer.fan_in))
        if layer.bias is not None:
            wires.append(Wire(layer.bias, (layer.fan_out,), "bias", i + 1))
    return Wiring(tuple(sets), tuple(wires), spec=spec)
