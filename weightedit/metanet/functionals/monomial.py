"""Monomial-NFN: layers equivariant to permutations with positive scales or sign flips, after Tran et al. 2024.

Linear layers, in the paper's letters (matrices on channels; W^1 is (hidden, input q), W^L is (output, hidden)):

    both            middle W' = P W, b' = S b;  first W'_jk = sum_q P_kq W_jq + Q_k b_j, b'_j = sum_q R_q W_jq + S b_j;
                    last W'_jk = sum_p P_jp W_pk, b'_j = sum_p S_jp b_p + t_j
    sign flips add  b'^{L-1}_j += sum_p R_p W^L_pj and W'^L_jk += Q_j b^{L-1}_k; with L = 2 the first layer's row, its
                    bias and the outgoing column mix fully, being one hidden neuron's

They are the terms that weight_space.py derives from each hidden layer's group, so networks of mixed activations get, at
each layer, what its activation allows: signs (sine, tanh), scales (ReLU), both (identity), and where neither is allowed
(GELU, SiLU, sigmoid) every permutation-equivariant term, which are those of NFN-HNP.

Between layers, on tensors that carry a sign: tanh, which is odd; a positive factor, or nothing: ReLU, which is
positively homogeneous; both: x |x| / |x|_2, over channels. Invariant layers: |x| for signs, x / |x|_2 with a learned
weight and bias for scales, |x|_2 over the folded channels (input and output neurons among them, ours; in the published
code every entry has a norm of its own, also after |x|); then the mean over hidden neurons, and an MLP.

The limit of the paper's layers: a middle weight is only ever mapped by itself, so the signs of its entries relative to
each other (those of a loop of four weights, say, which no flip changes) reach nothing, and embeddings of two sign
networks that differ in them alone are equal. `products` lifts it, for signs and scales alike, by products of
the weights of adjacent layers along all paths from the inputs, u^l = W^l u^{l-1} + b^l, and to the outputs,
v^{l-1} = W^lT v^l, per channel: b'^l += A u^l and W'^l_jk += (B u^l)_j (C v^{l-1})_k, ours. (Learning 16 edits of small
SIRENs by heart, as the contract suite does, 400 steps take the error from 0.20 to 0.042 without and 0.008 with them.)

Gradients and moments (`extra_types`, odd ones) become channels of delta type first: one of exponent k is multiplied by
s^(1 - k), s = n_i / n_j the gauge of its two ends, ours. Layers then mix all channels as they do those of parameters.

Ours too: inputs are normalized per tensor in the scale gauge (chains.py), as are each layer's features, by scalars that
no group changes; and the editing ending, a last linear layer, is of delta type, so that editing is equivariant on the
whole path, which the published editor is not. The half-period shift of sine layers is not respected.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn import functional

from weightedit.errors import SpecError
from weightedit.graph.canonicalization import scale_gauge
from weightedit.graph.neural_graph import NeuralGraph
from weightedit.metanet.functionals.chains import (
    ChainConfig,
    ChainMetanet,
    LayerSizes,
    Quantity,
    Reader,
    joined,
    quantities,
    size_of,
    unit_quantity,
)
from weightedit.metanet.functionals.weight_space import EquivariantLinear, Groups, WeightSpace, pool
from weightedit.network.spec import SYMMETRIES, Activation, NetworkSpec, NeuronGroup, Symmetry


@dataclass(frozen=True)
class MonomialConfig(ChainConfig):
    """Everything that defines a Monomial; see ChainConfig for the fields they all have.

    Attributes:
        activations: one name per hidden layer, or several joined by "|": parameters exist for what these allow, and any
            network whose hidden layers allow the same is treated (tanh as sine).
        symmetry: "full" is what each activation allows, but for half-period shifts; "permutation", "sign" or "scale"
            keep only that part of it.
        products: add the product terms.
    """

    activations: tuple[str, ...] = ("sine", "sine")
    symmetry: Symmetry = "full"
    products: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.symmetry not in SYMMETRIES:
            raise SpecError(f"symmetry {self.symmetry!r} is unknown; expected one of {', '.join(SYMMETRIES)}.")
        if not all(odd for _, odd in self.extra_types):
            raise SpecError(
                f"got quantities of types {self.extra_types}; expected odd ones, which a factor brings to the type of "
                "parameters: leave out squares and invariants, or take gauge-gmn."
            )
        self.kinds()

    def kinds(self) -> list[Groups]:
        """The groups of the hidden layers, of every kind of network that `activations` describes."""
        choices = [
            dict.fromkeys(_factors(_activation(name).group, self.symmetry) for name in names.split("|"))
            for names in self.activations
        ]
        return list(product(*choices))

    @classmethod
    def activations_of(cls, specs: Sequence[NetworkSpec]) -> tuple[str, ...]:
        """The field `activations` for these networks; those deeper than the first are refused when they come."""
        layers = zip(*(spec.layers[:-1] for spec in specs), strict=False)
        return tuple("|".join(dict.fromkeys(layer.activation.name for layer in level)) for level in layers)


def _activation(name: str) -> Activation:
    return Activation(name, 1.0 if name == "sine" else 0.0)


def _factors(group: NeuronGroup, symmetry: Symmetry) -> NeuronGroup:
    group = group.restricted(symmetry)
    return NeuronGroup(scale=group.scale, flip=group.flip)


def _raised(quantity: Quantity, gauge: Sequence[Tensor], scale: int) -> Quantity:
    """A quantity of this exponent as one of delta type; `gauge` [..., n, 1] per level."""
    if scale == 1:
        return quantity
    ends = zip(*quantity, gauge[1:], gauge[:-1], strict=True)
    raised = [(w * (n.unsqueeze(-2) / m.unsqueeze(-3)) ** (1 - scale), b * n ** (1 - scale)) for w, b, n, m in ends]
    return [w for w, _ in raised], [b for _, b in raised]


class PathProducts(nn.Module):
    """The product terms (see the file's legend): parts -> further terms of parts, in the same channels.

    u and v are divided by their root mean squares in the gauge, so that their sizes stay near one.
    """

    def __init__(self, space: WeightSpace, width_in: int, width_out: int) -> None:
        super().__init__()
        self.space = space
        self.inputs = nn.Parameter(torch.randn(space.inputs, width_in))
        self.outputs = nn.Parameter(torch.randn(space.outputs, width_in))
        shape = (space.depth, width_out, width_in)
        self.to_bias, self.to_target, self.to_source = (
            nn.Parameter(torch.randn(shape) / width_in**0.5) for _ in range(3)
        )

    def paths(self, parts: Sequence[Tensor], gauge: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """u of levels 1 ... L and v of levels 0 ... L - 1, each [..., n, width_in]; `gauge` [..., n, 1] per level."""
        weights, biases = self.space.unfold(parts)
        up: list[Tensor] = [self.inputs]
        down: list[Tensor] = [self.outputs]
        for weight, bias, scale in zip(weights, biases, gauge[1:], strict=True):
            found = (weight * up[-1].unsqueeze(-3)).sum(-2) + bias
            up.append(found / size_of(found, 1, scale))
        for weight, scale in zip(reversed(weights), reversed(gauge[:-1]), strict=True):
            found = (weight * down[-1].unsqueeze(-2)).sum(-3)
            down.append(found / size_of(found, 1, 1 / scale))
        return up[1:], down[:0:-1]

    def forward(self, parts: Sequence[Tensor], gauge: Sequence[Tensor]) -> list[Tensor]:
        """Folded parts -> folded terms."""
        up, down = self.paths(parts, gauge)
        weights, biases = [], []
        for layer, (u, v) in enumerate(zip(up, down, strict=True)):
            target = functional.linear(u, self.to_target[layer])
            weights.append(target.unsqueeze(-2) * functional.linear(v, self.to_source[layer]).unsqueeze(-3))
            biases.append(functional.linear(u, self.to_bias[layer]))
        return self.space.fold(weights, biases)


class Invariant(nn.Module):
    """Folded parts -> parts that no sign and no scale changes: |x|, or x / |x|_2 with a learned weight and bias."""

    def __init__(self, space: WeightSpace, width: int, kinds: Sequence[Groups]) -> None:
        super().__init__()
        self.space = space
        scaled = {part.name for part in space.parts for k in kinds if any(g.scale for g in space.groups_of(part, k))}
        sizes = {part.name: part.folded * width for part in space.parts if part.name in scaled}
        self.weight = nn.ParameterDict({name: nn.Parameter(torch.ones(size)) for name, size in sizes.items()})
        self.bias = nn.ParameterDict({name: nn.Parameter(torch.zeros(size)) for name, size in sizes.items()})

    def forward(self, parts: Sequence[Tensor], groups: Groups) -> list[Tensor]:
        """Shapes as they are."""
        found = []
        for part, x in zip(self.space.parts, parts, strict=True):
            of_part = self.space.groups_of(part, groups)
            if any(group.flip for group in of_part):
                x = x.abs()
            if any(group.scale for group in of_part):
                x = x / length(x) * self.weight[part.name] + self.bias[part.name]
            found.append(x)
        return found


def length(x: Tensor) -> Tensor:
    """|x|_2 over the last axis, kept; 1 for a zero vector."""
    square = x.square().sum(-1, keepdim=True)
    return torch.where(square > 0, torch.where(square > 0, square, 1.0).sqrt(), 1.0)


def bend(x: Tensor, groups: Groups) -> Tensor:
    """The nonlinear function that commutes with the factors of a part's axes."""
    flip, scale = any(group.flip for group in groups), any(group.scale for group in groups)
    if flip and scale:
        return x * x.abs() / length(x) * x.shape[-1] ** 0.5
    return x.tanh() if flip else x.relu()


class Monomial(ChainMetanet):
    """Neural graphs of chains -> deltas, or vectors; equivariant to permutations and to signs or scales.

    Args:
        config: see MonomialConfig.
    """

    def __init__(self, config: MonomialConfig) -> None:
        super().__init__(config, WeightSpace(len(config.activations) + 1, config.inputs, config.outputs))
        self.config, self.kinds = config, config.kinds()
        kept: tuple[Symmetry, ...] = ("sign", "scale") if config.symmetry == "full" else (config.symmetry,)
        self.declared = tuple(dict.fromkeys(("permutation", *kept)))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(config.seed)
            last = [] if config.embedding else [config.channels]
            widths = [config.quantities * config.channels, *[config.width] * config.layers, *last]
            pairs = list(zip(widths, widths[1:], strict=False))
            self.linears = nn.ModuleList(EquivariantLinear(self.space, a, b, kinds=self.kinds) for a, b in pairs)
            self.products = nn.ModuleList(PathProducts(self.space, a, b) for a, b in pairs if config.products)
            if config.embedding:
                self.invariant = Invariant(self.space, config.width, self.kinds)
                self.reader = Reader(self.space, config.width, config.embedding, config.quantities)
            else:
                self.sizes = LayerSizes(self.space, config.initial_scale)

    def edit(self, graph: NeuralGraph) -> NeuralGraph:
        """The delta of a dense graph."""
        parts, sizes, _ = self.features(graph)
        return self.delta_graph(graph, self.sizes(parts, sizes))

    def summarize(self, graph: NeuralGraph) -> Tensor:
        """The invariant layer, means over hidden neurons, then an MLP."""
        parts, sizes, groups = self.features(graph)
        found = [self.dropout(x) for x in self.invariant(parts, groups)]
        pooled = [pool(x, part.levels, ()) for x, part in zip(found, self.space.parts, strict=True)]
        return self.reader(pooled, sizes)

    def features(self, graph: NeuralGraph) -> tuple[list[Tensor], list[Tensor], Groups]:
        """Folded parts after the last linear layer, the sizes of all quantities, and the groups of the hidden layers.

        Raises SpecError if the hidden layers allow something else than the config's activations.
        """
        groups, gauge = self._groups(graph.layout.specs[0]), self._gauge(graph)
        scaled, axes = any(group.scale for group in groups), [len(part.levels) for part in self.space.parts]
        factors = self._factors(gauge) if scaled else [None] * len(axes)

        def sizes_of(parts: Sequence[Tensor]) -> list[Tensor]:
            return [size_of(x, n, factor) for x, n, factor in zip(parts, axes, factors, strict=True)]

        units, sizes = [], []
        for number, quantity in enumerate(quantities(graph, self.config.quantities)):
            raised = _raised(quantity, gauge, graph.types[number * self.config.channels].scale)
            unit, size = unit_quantity(self.space, raised, factors)
            units.append(unit)
            sizes += size
        parts = self.space.fold(*joined(units))
        of_parts = [self.space.groups_of(part, groups) for part in self.space.parts]
        for number, linear in enumerate(self.linears):
            found = linear(parts, groups)
            if self.config.products:
                more = self.products[number](parts, gauge)
                found = [x + y for x, y in zip(found, more, strict=True)]
            parts = found
            if number < len(self.linears) - 1:
                bent = (bend(x / size, g) for x, size, g in zip(found, sizes_of(found), of_parts, strict=True))
                parts = [self.dropout(x) for x in bent]
        return parts, sizes, groups

    def _groups(self, spec: NetworkSpec) -> Groups:
        groups = tuple(_factors(layer.activation.group, self.config.symmetry) for layer in spec.layers[:-1])
        if groups not in self.kinds:
            names = tuple(layer.activation.name for layer in spec.layers[:-1])
            raise SpecError(
                f"got a network with activations {names}; expected {self.config.activations}, or others that allow "
                "the same factors. Name them in the config's activations (MonomialConfig.activations_of)."
            )
        return groups

    def _gauge(self, graph: NeuralGraph) -> list[Tensor]:
        """Per level, a number [..., n, 1] that scales as its neurons do."""
        layout = graph.layout
        gauge = scale_gauge(graph, layout.constants(self.config.symmetry, graph.edges))
        return [layout.at_level(level, gauge) for level in range(self.space.depth + 1)]

    def _factors(self, gauge: Sequence[Tensor]) -> list[Tensor]:
        """Per part, how the gauge scales it: [..., *axes, 1]."""
        found = []
        for part in self.space.parts:
            factor = torch.ones_like(gauge[0][..., :1, :]).squeeze(-2)
            for place, level in reversed(list(enumerate(part.levels))):
                of_level = gauge[level] if part.exponent(level) > 0 else 1 / gauge[level]
                after = len(part.levels) - place - 1
                factor = of_level[(..., *[None] * after, slice(None))] * factor.unsqueeze(-after - 2)
            found.append(factor)
        return found
