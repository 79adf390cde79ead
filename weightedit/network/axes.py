"""Axes of tensors as products of smaller ones, and which of them are one: the bookkeeping of a reading.

An axis of a tensor is a tuple of atoms, outermost first: (heads, width of a head) for an axis of both, () for an axis
of size 1. Atoms that meet in an operation are united, and carry one permutation from then on; an atom that a view cuts
up becomes the product of its parts; one that is not known to be permutable is frozen. A permutation of an atom applies
wherever the atom stands, so that claims shrink with every operation and never grow. Which operation does what is in
operations/.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

Atoms = tuple[int, ...]


class Axes:
    """All atoms of one reading."""

    def __init__(self) -> None:
        self._sizes: list[int] = []
        self._frozen: list[bool] = []
        self._parent: list[int] = []
        self._parts: dict[int, Atoms] = {}

    def new(self, size: int, *, frozen: bool = False) -> Atoms:
        """A fresh axis; () where `size` is 1."""
        if size == 1:
            return ()
        self._sizes.append(size)
        self._frozen.append(frozen)
        self._parent.append(len(self._parent))
        return (len(self._parent) - 1,)

    def leaves(self, atoms: Iterable[int]) -> Atoms:
        """`atoms` as representatives that are not cut up further."""
        found: list[int] = []
        for atom in atoms:
            while self._parent[atom] != atom:
                atom = self._parent[atom]
            found += self.leaves(self._parts[atom]) if atom in self._parts else (atom,)
        return tuple(found)

    def size(self, atoms: Iterable[int]) -> int:
        """How many neurons an axis of `atoms` has."""
        return math.prod(self._sizes[atom] for atom in self.leaves(atoms))

    def is_frozen(self, atoms: Iterable[int]) -> bool:
        """Whether no part of the axis may be permuted."""
        return all(self._frozen[atom] for atom in self.leaves(atoms))

    def freeze(self, atoms: Iterable[int]) -> None:
        """Let nothing permute the axis."""
        for atom in self.leaves(atoms):
            self._frozen[atom] = True

    def unite(self, a: Iterable[int], b: Iterable[int]) -> None:
        """Make two axes of one size the same; frozen where their parts do not fit into each other."""
        left, right = list(self.leaves(a)), list(self.leaves(b))
        while left and right:
            one, other = left.pop(0), right.pop(0)
            m, n = self._sizes[one], self._sizes[other]
            if m == n:
                self._unite(one, other)
            elif m % n == 0:
                self._cut(one, n)
                left, right = [*self.leaves((one,)), *left], [other, *right]
            elif n % m == 0:
                self._cut(other, m)
                left, right = [one, *left], [*self.leaves((other,)), *right]
            else:
                self.freeze((one, other, *left, *right))
                return
            left, right = list(self.leaves(left)), list(self.leaves(right))

    def reshape(self, atoms: Iterable[int], shape: Sequence[int]) -> tuple[Atoms, ...]:
        """The axes of a tensor whose entries run over `atoms`, in the order of memory, in another shape."""
        left, found = list(self.leaves(atoms)), []
        for size in shape:
            axis: list[int] = []
            while size > 1:
                one = left.pop(0)
                n = self._sizes[one]
                if size % n == 0:
                    axis.append(one)
                    size //= n
                elif n % size == 0:
                    self._cut(one, size)
                    outer, *inner = self.leaves((one,))
                    axis.append(outer)
                    left, size = [*inner, *left], 1
                else:
                    self.freeze((one, *atoms))
                    return tuple(self.new(n, frozen=True) for n in shape)
            found.append(tuple(axis))
        return tuple(found)

    def _unite(self, a: int, b: int) -> None:
        low, high = sorted((a, b))
        if low != high:
            self._parent[high] = low
            self._frozen[low] |= self._frozen[high]

    def _cut(self, atom: int, outer: int) -> None:
        frozen = self._frozen[atom]
        inner = self._sizes[atom] // outer
        self._parts[atom] = self.new(outer, frozen=frozen) + self.new(inner, frozen=frozen)
