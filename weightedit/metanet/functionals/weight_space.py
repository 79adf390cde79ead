"""Linear maps between weight-space features of a chain, with one matrix on channels per independent term.

The tensors of a chain of L layers are its parts w1 ... wL and b1 ... bL. Each has an axis per neuron level that is
permuted; neurons that keep their place (inputs and outputs, unless `permuted_ends`) are folded into the channels. A
linear map from part A to part B that commutes with every permutation is a sum over subsets T of their common axes: pool
A over its axes outside T, multiply by a matrix on channels, broadcast over the axes of B outside T (Zhou et al. 2023,
"Permutation Equivariant Neural Functionals", equations 2 and 3, appendices B and C; Navon et al. 2023, "Equivariant
Architectures for Learning in Deep Weight Spaces"). Where a neuron also carries a factor, fewer terms are left (Tran et
al. 2024, "Monomial Matrix Group Equivariant Neural Functional Networks"): an axis with a factor is never pooled nor
broadcast, and with a positive factor both parts must carry it with the same exponent, +1 where the axis is the target
of the layer and -1 where it is the source. Taken axis by axis, the rule also serves mixed activations.

Nonlinear functions, normalization and the endings are in chains.py and in the files of the systems.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from weightedit.errors import SpecError
from weightedit.network.spec import NeuronGroup

Pooling = Literal["mean", "max"]
FREE = NeuronGroup()
Groups = tuple[NeuronGroup, ...]


@dataclass(frozen=True)
class Part:
    """One parameter tensor of the chain: its name, its layer (1 ... L), the levels of its axes (target first), and the
    number of fixed neurons, or pairs of them, that are folded into its channels."""

    name: str
    layer: int
    levels: tuple[int, ...]
    folded: int

    def exponent(self, level: int) -> int:
        """How a positive factor of `level` acts: +1 on the target side of the layer, -1 on its source side."""
        return 1 if level == self.layer else -1


@dataclass(frozen=True)
class Term:
    """From part `source` to part `target`, keeping the axes of the levels `kept`."""

    target: int
    source: int
    kept: tuple[int, ...]


@dataclass(frozen=True)
class WeightSpace:
    """The tensors of all networks of one depth, one number of inputs and one of outputs; hidden widths are free.

    Attributes:
        depth: number of layers L.
        inputs: input neurons.
        outputs: output neurons.
        permuted_ends: whether input and output neurons are permuted as hidden ones are, or keep their place.
    """

    depth: int
    inputs: int
    outputs: int
    permuted_ends: bool = False

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """w1 ... wL, b1 ... bL."""
        sizes = {0: self.inputs, self.depth: self.outputs}
        fixed = {} if self.permuted_ends else sizes
        found = []
        for kind in "wb":
            for layer in range(1, self.depth + 1):
                levels = (layer, layer - 1) if kind == "w" else (layer,)
                folded = math.prod(fixed[level] for level in levels if level in fixed)
                kept = tuple(level for level in levels if level not in fixed)
                found.append(Part(f"{kind}{layer}", layer, kept, folded))
        return tuple(found)

    def fold(self, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> list[Tensor]:
        """Weights [..., out, in, C] and biases [..., out, C] -> parts [..., *axes, folded * C]."""
        folded = [*weights, *biases]
        if self.permuted_ends:
            return folded
        if self.depth == 1:
            return [weights[0].flatten(-3), biases[0].flatten(-2)]
        folded[0] = weights[0].flatten(-2)
        folded[self.depth - 1] = weights[-1].transpose(-3, -2).flatten(-2)
        folded[-1] = biases[-1].flatten(-2)
        return folded

    def unfold(self, parts: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """The inverse of `fold`."""
        found, last = list(parts), self.depth - 1
        if not self.permuted_ends:
            found[-1] = found[-1].unflatten(-1, (self.outputs, -1))
            if self.depth == 1:
                found[0] = found[0].unflatten(-1, (self.outputs, self.inputs, -1))
            else:
                found[0] = found[0].unflatten(-1, (self.inputs, -1))
                found[last] = found[last].unflatten(-1, (self.outputs, -1)).transpose(-3, -2)
        return found[: self.depth], found[self.depth :]

    def groups_of(self, part: Part, groups: Groups) -> Groups:
        """The neuron groups of a part's axes; `groups` are those of the hidden layers."""
        return tuple(groups[level - 1] if 0 < level < self.depth else FREE for level in part.levels)

    def terms(self, groups: Groups) -> list[Term]:
        """All independent terms of an equivariant linear map; `groups` has one entry per hidden layer."""
        found = []
        for target, after in enumerate(self.parts):
            for source, before in enumerate(self.parts):
                common = [level for level in after.levels if level in before.levels]
                for size in range(len(common), -1, -1):
                    found += [Term(target, source, kept) for kept in combinations(common, size)]
        return [term for term in found if self._allowed(term, groups)]

    def _allowed(self, term: Term, groups: Groups) -> bool:
        target, source = self.parts[term.target], self.parts[term.source]
        for part in (target, source):
            for level, group in zip(part.levels, self.groups_of(part, groups), strict=True):
                if level not in term.kept and (group.scale or group.flip):
                    return False
                if level in term.kept and group.scale and target.exponent(level) != source.exponent(level):
                    return False
        return True


def pool(x: Tensor, levels: Sequence[int], kept: Sequence[int], pooling: Pooling = "mean") -> Tensor:
    """[..., *levels, C] -> [..., *kept, C]."""
    dims = [place - len(levels) - 1 for place, level in enumerate(levels) if level not in kept]
    if not dims:
        return x
    return x.mean(dims) if pooling == "mean" else x.amax(dims)


class EquivariantLinear(nn.Module):
    """Parts -> parts, by every term that the groups allow; affine on parts whose axes carry no factor.

    Each call says which groups hold, so one layer serves networks of several kinds; parameters exist for the terms that
    any of `kinds` allows.

    Args:
        space: the chains it treats.
        width_in: channels before.
        width_out: channels after.
        kinds: the groups of the hidden layers, of every kind of network it will meet.
        pooling: over the axes that a term does not keep.
    """

    def __init__(
        self,
        space: WeightSpace,
        width_in: int,
        width_out: int,
        *,
        kinds: Sequence[Groups],
        pooling: Pooling = "mean",
    ) -> None:
        super().__init__()
        self.space = space
        self.pooling: Pooling = pooling
        plans = {groups: space.terms(groups) for groups in kinds}
        terms = list(dict.fromkeys(term for plan in plans.values() for term in plan))
        columns = [0] * len(space.parts)
        for term in terms:
            columns[term.target] += space.parts[term.source].folded * width_in
        self.matrices = nn.ParameterDict()
        for term in terms:
            rows = space.parts[term.target].folded * width_out
            matrix = torch.randn(rows, space.parts[term.source].folded * width_in)
            self.matrices[self._key(term)] = nn.Parameter(matrix / math.sqrt(columns[term.target]))
        self.offsets = nn.ParameterDict()
        for part in space.parts:
            if any(self._affine(part, groups) for groups in kinds):
                self.offsets[part.name] = nn.Parameter(0.3 * torch.randn(part.folded * width_out))
        self._plans = {groups: self._by_kept_axes(plan) for groups, plan in plans.items()}

    @staticmethod
    def _by_kept_axes(terms: Sequence[Term]) -> list[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
        """(axes kept, sources, targets), few axes first: targets that read the same pooled sources share a product."""
        sources: dict[tuple[tuple[int, ...], int], list[int]] = {}
        for term in terms:
            sources.setdefault((term.kept, term.target), []).append(term.source)
        targets: dict[tuple[tuple[int, ...], tuple[int, ...]], list[int]] = {}
        for (kept, target), read in sources.items():
            targets.setdefault((kept, tuple(read)), []).append(target)
        return sorted(
            ((kept, read, tuple(to)) for (kept, read), to in targets.items()), key=lambda group: len(group[0])
        )

    def _affine(self, part: Part, groups: Groups) -> bool:
        return not any(group.scale or group.flip for group in self.space.groups_of(part, groups))

    def _key(self, term: Term) -> str:
        names = self.space.parts[term.target].name, self.space.parts[term.source].name
        return f"{names[0]}_from_{names[1]}_at_{'_'.join(map(str, term.kept)) or 'none'}"

    def matrix(self, target: str, source: str, *kept: int) -> Tensor:
        """The matrix [folded * width_out, folded * width_in] of one term, e.g. ("w2", "b1", 1).

        Raises SpecError if there is no such term.
        """
        names = [part.name for part in self.space.parts]
        if target in names and source in names:
            key = self._key(Term(names.index(target), names.index(source), kept))
            if key in self.matrices:
                return self.matrices[key]
        raise SpecError(
            f"got the term from {source} to {target} that keeps the axes {kept}; expected one of "
            f"{', '.join(self.matrices)}."
        )

    def forward(self, parts: Sequence[Tensor], groups: Groups) -> list[Tensor]:
        """Parts [..., *axes, folded * width_in] -> [..., *axes, folded * width_out]."""
        known = self.space.parts
        totals = [self.offsets[part.name] if self._affine(part, groups) else None for part in known]
        pooled: dict[tuple[int, tuple[int, ...]], Tensor] = {}
        # Few axes first: what is broadcast is summed before it grows.
        for kept, sources, targets in self._plans[groups]:
            found = torch.cat([self._pooled(parts, source, kept, pooled) for source in sources], -1)
            matrices = [[self.matrices[self._key(Term(to, source, kept))] for source in sources] for to in targets]
            rows = [torch.cat(row, 1) if len(row) > 1 else row[0] for row in matrices]
            products = functional.linear(found, torch.cat(rows) if len(rows) > 1 else rows[0])
            for to, product in zip(targets, products.split([len(row) for row in rows], -1), strict=True):
                for place, level in reversed(list(enumerate(known[to].levels))):
                    if level not in kept:
                        product = product.unsqueeze(place - len(known[to].levels) - 1)
                total = totals[to]
                totals[to] = product if total is None else total + product
        return cast("list[Tensor]", totals)

    def _pooled(
        self,
        parts: Sequence[Tensor],
        source: int,
        kept: tuple[int, ...],
        memory: dict[tuple[int, tuple[int, ...]], Tensor],
    ) -> Tensor:
        """`pool` of a part, axis by axis and each but once: pooled over two axes is pooled over one, and again."""
        levels = self.space.parts[source].levels
        if len(kept) == len(levels):
            return parts[source]
        if (source, kept) not in memory:
            more = next(tuple(x for x in levels if x in kept or x == level) for level in levels if level not in kept)
            memory[source, kept] = pool(self._pooled(parts, source, more, memory), more, kept, self.pooling)
        return memory[source, kept]
