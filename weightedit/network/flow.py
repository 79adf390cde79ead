"""How neurons flow through a program: values with axes, sets of neurons with factors, wires of parameters.

Every value knows which atoms its axes are made of (axes.py), and which set of neurons its factor belongs to: under a
claimed symmetry the value's entries are multiplied by that set's factors, and by nothing where it has no set. Here is
the state of one reading and the few things that operations do to it (contract, add, multiply, bind, restrict, freeze);
operations/ says which operation does what. A parameter is `loose` until something says what its factor is; used in
any other way, it carries none.

The file is long because sets, factors and loose parameters change together, as operations are read.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from weightedit.network.axes import Atoms, Axes
from weightedit.network.layer import NeuronGroup
from weightedit.network.wiring import Kind, NeuronSet, Part, Wire, Wiring

FREE = NeuronGroup(scale=True, flip=True, shift=True)  # of a linear map's outputs, until something reads them
NOTHING = NeuronGroup()
SCALE, FLIP = NeuronGroup(scale=True), NeuronGroup(flip=True)
LINEAR = NeuronGroup(scale=True, flip=True)


@dataclass(frozen=True)
class Loose:
    """A parameter as it is, but for the order of its axes, axes of size 1, and slices.

    Attributes:
        name: of the parameter.
        axes: for every axis of the value, the axis of the parameter that it is; None for one of size 1, or repeated.
    """

    name: str
    axes: tuple[int | None, ...]


@dataclass(frozen=True)
class Value:
    """A tensor of the program.

    Attributes:
        shape: of the tensor.
        dims: the atoms of every axis.
        set: whose factors it carries; None: none.
        loose: the parameter that it is.
        normed: (direction, length) of a weight whose rows are normalized.
        times: what the neurons of `set` were multiplied by since.
    """

    shape: tuple[int, ...]
    dims: tuple[Atoms, ...]
    set: int | None = None
    loose: Loose | None = None
    normed: tuple[Value, Value] | None = field(default=None, compare=False)
    times: float = 1.0


@dataclass
class _Neurons:
    name: str
    atoms: Atoms
    size: int
    group: NeuronGroup
    rates: set[float] = field(default_factory=set)


class Flow:
    """The state of one reading."""

    def __init__(self) -> None:
        self.axes = Axes()
        self.params: dict[str, Value] = {}
        self.values: list[Value] = []  # all there were, for what depends on what
        self.wires: dict[str, tuple[Kind, int, int | None, tuple[tuple[int, ...], ...]]] = {}
        self.computed: set[str] = set()  # parameters that something else than a layer reads
        self._sets: list[_Neurons] = []
        self._joined: list[int] = []
        self._plain: dict[Atoms, int] = {}

    # Values.

    def value(self, dims: Iterable[Atoms], shape: Sequence[int], set: int | None = None) -> Value:
        """A value, whose factor is that of `set`."""
        found = Value(tuple(shape), tuple(dims), set)
        self.values.append(found)
        return found

    def inert(self, shape: Sequence[int]) -> Value:
        """A value of which nothing may be permuted."""
        return self.value([self.axes.new(n, frozen=True) for n in shape], shape)

    def uniform(self, shape: Sequence[int]) -> Value:
        """A value with one number everywhere, which every permutation leaves as it is."""
        return self.value([self.axes.new(n) for n in shape], shape)

    def parameter(self, name: str, shape: Sequence[int]) -> Value:
        """A parameter, as the program gets it."""
        dims = tuple(self.axes.new(n) for n in shape)
        found = Value(tuple(shape), dims, loose=Loose(name, tuple(range(len(dims)))))
        self.params[name] = found
        return found

    def used(self, value: Value) -> Value:
        """`value`, which is read otherwise than as a layer reads a parameter: it carries no factor."""
        if value.normed is not None:
            for part in value.normed:
                self.used(part)
        if value.loose is not None:
            self.computed.add(value.loose.name)
        return replace(value, loose=None, normed=None)

    def fix(self, value: Value) -> None:
        """Nothing may be done to the neurons of `value`."""
        self.used(value)
        self.restrict(value, NOTHING)
        for atoms in value.dims:
            self.axes.freeze(atoms)

    def broadcast(self, given: Iterable[Value], shape: Sequence[int]) -> list[Atoms]:
        """The axes of an elementwise result; those that meet are united."""
        dims: list[Atoms] = [() for _ in shape]
        for value in given:
            skip = len(shape) - len(value.shape)
            for i, atoms in enumerate(value.dims):
                if value.shape[i] == 1:
                    continue
                if dims[skip + i]:
                    self.axes.unite(dims[skip + i], atoms)
                else:
                    dims[skip + i] = atoms
        return dims

    def result(self, dims: Iterable[Atoms], shape: Sequence[int], of: Value) -> Value:
        """A result whose factor is that of `of`, where its neurons are still there."""
        return self.carrying(of.set, [of], self.value(dims, shape))

    # Sets.

    def new(self, name: str, atoms: Atoms, size: int, group: NeuronGroup = FREE) -> int:
        """A set of neurons along an axis."""
        self._sets.append(_Neurons(name, atoms, size, group))
        self._joined.append(len(self._joined))
        return len(self._sets) - 1

    def of(self, i: int) -> int:
        """The set that `i` has become."""
        while self._joined[i] != i:
            i = self._joined[i]
        return i

    def plain(self, name: str, atoms: Atoms, size: int) -> int:
        """The set of an axis whose neurons carry no factor."""
        key = self.axes.leaves(atoms)
        if not key or key not in self._plain:
            self._plain[key] = self.new(name, atoms, size, NOTHING)
        return self._plain[key]

    def restrict_set(self, i: int, group: NeuronGroup) -> None:
        """Keep of the factors of set `i` what `group` allows."""
        one = self._sets[self.of(i)]
        have = one.group
        one.group = NeuronGroup(have.scale and group.scale, have.flip and group.flip, have.shift and group.shift)

    def restrict(self, value: Value, group: NeuronGroup) -> None:
        """The same for the set of `value`."""
        if value.set is not None:
            self.restrict_set(value.set, group)

    def rated(self, value: Value) -> Value:
        """`value` before an activation that sees its size: what it was multiplied by is its neurons' rate."""
        if value.set is not None:
            self._sets[self.of(value.set)].rates.add(value.times)
        return replace(value, times=1.0)

    def group_of(self, i: int) -> NeuronGroup:
        """What the neurons of set `i` may carry."""
        return self._sets[self.of(i)].group

    def atoms_of(self, i: int) -> Atoms:
        """What set `i` runs over."""
        return self._sets[self.of(i)].atoms

    def lies(self, value: Value, dims: Iterable[int]) -> bool:
        """Whether the set of `value` runs along these axes, in their order, and along no other."""
        if value.set is None:
            return False
        one = self._sets[self.of(value.set)]
        return one.size > 1 and self.axes.leaves(one.atoms) == self.axes.leaves(_along(value, dims))

    def touches(self, value: Value, dims: Iterable[int]) -> bool:
        """Whether the factors of `value` vary along one of these axes."""
        if value.set is None:
            return False
        one = self._sets[self.of(value.set)]
        along = {*self.axes.leaves(_along(value, dims))}
        return one.size == 1 or bool(along & {*self.axes.leaves(one.atoms)})

    def inside(self, value: Value, dims: Iterable[int]) -> bool:
        """Whether the factors of `value` vary along these axes, and along no other."""
        if value.set is None or self.size_of(value.set) == 1:
            return False
        return {*self.axes.leaves(self.atoms_of(value.set))} <= {*self.axes.leaves(_along(value, dims))}

    def carrying(self, i: int | None, given: Sequence[Value], result: Value) -> Value:
        """`result` with the factors of set `i`, which `given` carry, if it still has its neurons."""
        if i is None:
            return result
        one = self._sets[self.of(i)]
        there = {atom for atoms in result.dims for atom in self.axes.leaves(atoms)}
        alone = one.size > 1 or all(value.shape == result.shape for value in given)
        if alone and {*self.axes.leaves(one.atoms)} <= there:
            return replace(result, set=i)
        self.restrict_set(i, NOTHING)
        return result

    def join(self, a: int, b: int) -> int | None:
        """One set for both, whose neurons carry the same factors; None where they are not the same neurons."""
        a, b = sorted((self.of(a), self.of(b)))
        one, other = self._sets[a], self._sets[b]
        if a == b:
            self.restrict_set(a, NeuronGroup(True, True, False))
            return a
        if one.size != other.size or self.axes.leaves(one.atoms) != self.axes.leaves(other.atoms):
            self.restrict_set(a, NOTHING)
            self.restrict_set(b, NOTHING)
            return None
        self.restrict_set(a, replace(other.group, shift=False))
        self._joined[b] = a
        return a

    def pair(self, one: Value, other: Value) -> None:
        """Let two values, which are multiplied and summed along their neurons, carry the same signs, which cancel.

        Positive factors would cancel where one carries the inverses of the other's, which no set says.
        """
        joined = None if one.set is None or other.set is None else self.join(one.set, other.set)
        for value in (one, other):
            self.restrict(value, NOTHING if joined is None else FLIP)

    # Parameters.

    def wire(
        self, value: Value, kind: Kind, target: int, source: int | None = None, *, at: Sequence[Sequence[int]]
    ) -> None:
        """Say what a parameter is: `at` are the value's axes of targets, of sources, and of positions."""
        ends = [target, *([] if source is None else [source])]
        if value.loose is None or value.loose.name in self.wires:  # computed, tied, or used twice
            if value.loose is not None:
                _, *old, _ = self.wires[value.loose.name]
                ends += [i for i in old if i is not None]
            self.used(value)
            for i in ends:
                self.restrict_set(i, NOTHING)
            return
        axes = value.loose.axes
        if math.prod(value.shape) != math.prod(self.params[value.loose.name].shape):  # a piece, or repeated
            self.used(value)
            for i in ends:
                self.restrict_set(i, NOTHING)
            return
        self.wires[value.loose.name] = (
            kind,
            target,
            source,
            tuple(tuple(a for d in dims if (a := axes[d]) is not None) for dims in at),
        )

    def along(self, value: Value, to: int, dim_atoms: Atoms, kind: Kind = "bias") -> bool:
        """Let a loose parameter carry the factor of set `to` along the one of its axes that runs over `dim_atoms`.

        Its other axes (positions) carry none. False where there is no such axis.
        """
        if value.loose is None:
            return False
        own = self.params[value.loose.name]
        key = self.axes.leaves(dim_atoms)
        found = [
            d
            for d, a in enumerate(value.loose.axes)
            if a is not None and own.shape[a] > 1 and self.axes.leaves(own.dims[a]) == key
        ]
        if len(found) != 1 or value.loose.name in self.wires or not key:
            return False
        target = value.loose.axes[found[0]]
        others = [a for a in range(len(own.dims)) if a != target and own.shape[a] > 1]
        for a in others:
            self.axes.freeze(own.dims[a])
        source = None
        if others:
            size = math.prod(own.shape[a] for a in others)
            atoms = tuple(atom for a in others for atom in own.dims[a])
            source, kind = self.plain(f"positions of {value.loose.name}", atoms, size), "weight"
        self.wires[value.loose.name] = (kind, to, source, ((target,), tuple(others), ()))  # type: ignore[arg-type]
        return True

    def source(self, value: Value, dims: Sequence[int], name: str) -> int:
        """The set that a layer reads along some axes; its factors vary along no other."""
        axis, size = self.axes.leaves(_along(value, dims)), math.prod(value.shape[d] for d in dims)
        if value.set is not None:
            i = self.of(value.set)
            one, own = self._sets[i], self.axes.leaves(self._sets[i].atoms)
            if one.size > 1 and axis[: len(own)] == own:
                self.axes.freeze(axis[len(own) :])  # of a flattened image: positions within channels
                return i
            if one.size == size == 1 and value.shape[-1] == 1:
                return i
            self.restrict(value, NOTHING)
        return self.plain(f"inputs of {name}", axis, size)

    def size_of(self, i: int) -> int:
        """How many neurons set `i` has."""
        return self._sets[self.of(i)].size

    # The result.

    def finish(self, names: dict[str, tuple[int, ...]], targets: dict[str, int] | None = None) -> Wiring:
        """The wiring: a wire for every parameter with axes and elements.

        Args:
            names: of the parameters, and their shapes, in their order.
            targets: for those that no layer reads, the axis of targets, where it is not the first.
        """
        for name in self.computed & self.wires.keys():
            _, target, source, _ = self.wires[name]
            self.restrict_set(target, NOTHING)
            if source is not None:
                self.restrict_set(source, NOTHING)
        for name, shape in names.items():
            if name not in self.wires and shape and 0 not in shape:
                self._alone(name, shape, (targets or {}).get(name, 0))
        known = {name: wire for name, wire in self.wires.items() if 0 not in names[name]}
        kept = sorted({self.of(i) for _, *ends, _ in known.values() for i in ends if i is not None})
        place = {i: n for n, i in enumerate(kept)}
        within = self._within(kept)
        orders: dict[int, int] = {}
        sets = tuple(self._neurons(i, within, orders) for i in kept)
        wires = []
        for name, (kind, target, source, at) in known.items():
            shape = names[name]
            target = place[self.of(target)]
            source = None if source is None else place[self.of(source)]
            wires.append(_wire(name, shape, kind, (target, source), at, sets))
        outside = tuple(name for name in names if name not in known)
        return Wiring(sets, tuple(wires), outside)

    def _alone(self, name: str, shape: tuple[int, ...], first: int) -> None:
        """The wire of a parameter that no layer reads: without factors."""
        dims = self.params[name].dims if name in self.params else self.inert(shape).dims
        if name not in self.computed:  # nothing reads it at all
            for atoms in dims:
                self.axes.freeze(atoms)
        order = [first, *(a for a in range(len(shape)) if a != first)]
        target = self.new(name, dims[first], shape[first], NOTHING)
        if len(shape) == 1:
            kind: Kind = "gain" if name.rpartition(".")[2] == "weight" else "bias"
            self.wires[name] = (kind, target, None, ((0,), (), ()))
            return
        for a in order[2:]:
            self.axes.freeze(dims[a])
        source = self.new(name, dims[order[1]], shape[order[1]], NOTHING)
        self.wires[name] = ("weight", target, source, ((first,), (order[1],), tuple(order[2:])))

    def _neurons(self, i: int, within: dict[int, frozenset[int]], orders: dict[int, int]) -> NeuronSet:
        one = self._sets[i]
        group = replace(one.group, shift=one.group.shift and not one.group.scale)  # only a sine leaves it without
        leaves = self.axes.leaves(one.atoms)
        for atom in leaves:
            orders.setdefault(atom, len(orders))
        parts = tuple(
            Part(
                orders[atom],
                self.axes.size((atom,)),
                not self.axes.is_frozen((atom,)),
                tuple(sorted(orders[outer] for outer in within.get(atom, ()))),
            )
            for atom in leaves
        )
        rate = one.rates.copy().pop() if len(one.rates) == 1 else 1.0
        if len(parts) == 1:
            return NeuronSet(one.name, one.size, group, parts[0].permutable, parts[0].order, rate=rate)
        if not parts:
            return NeuronSet(one.name, one.size, group, False, orders.setdefault(-1 - i, len(orders)), rate=rate)
        free = any(part.permutable for part in parts)
        return NeuronSet(one.name, one.size, group, free, orders.setdefault(-1 - i, len(orders)), parts, rate)

    def _within(self, kept: list[int]) -> dict[int, frozenset[int]]:
        """For every atom, those on which its permutation may depend: they stand wherever it stands."""
        found: dict[int, frozenset[int]] = {}

        def meet(atoms: Atoms) -> None:
            once = {atom for atom in atoms if atoms.count(atom) == 1}
            for atom in set(atoms):
                beside = frozenset(once - {atom}) if atom in once else frozenset()
                found[atom] = found[atom] & beside if atom in found else beside

        for value in {value.dims: value for value in self.values}.values():
            meet(tuple(atom for atoms in value.dims for atom in self.axes.leaves(atoms)))
        for name, (_, _, _, at) in self.wires.items():
            for axes in at if name in self.params else ():
                meet(tuple(atom for a in axes for atom in self.axes.leaves(self.params[name].dims[a])))
        for i in kept:
            leaves = self.axes.leaves(self._sets[i].atoms)
            for n, atom in enumerate(leaves):  # on outer ones only
                found[atom] = found.get(atom, frozenset()) & frozenset(leaves[:n])
        frozen = {atom for atom in found if self.axes.is_frozen((atom,))}
        return {atom: beside - frozen for atom, beside in found.items() if atom not in frozen}


def _along(value: Value, dims: Iterable[int]) -> Atoms:
    return tuple(atom for dim in dims for atom in value.dims[dim])


def _wire(
    name: str,
    shape: tuple[int, ...],
    kind: Kind,
    ends: tuple[int, int | None],
    at: tuple[tuple[int, ...], ...],
    sets: tuple[NeuronSet, ...],
) -> Wire:
    target, source = ends
    targets, sources, rest = at
    seen = {*targets, *sources, *rest}
    axes = (*targets, *sources, *rest, *(a for a in range(len(shape)) if a not in seen))
    plain = axes == tuple(range(len(shape))) and len(targets) == 1 and (source is None or len(sources) <= 1)
    if plain and (kind == "weight" or len(shape) == 1):
        return Wire(name, shape, kind, target, source, 1 if source is None else sets[source].size)
    size = math.prod(shape[a] for a in targets)
    if source is None:
        return Wire(name, (size,), kind, target, stored=shape, axes=axes)
    inner = math.prod(shape[a] for a in sources)
    view = (size, inner, *(shape[a] for a in axes[len(targets) + len(sources) :] if shape[a] > 1))
    return Wire(name, view, kind, target, source, sets[source].size, stored=shape, axes=axes)
