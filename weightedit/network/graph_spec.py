"""What a network is whose values branch and join: levels of neurons and the links between them, as plain data.

`NetworkSpec` (spec.py) describes a chain of layers; a `GraphSpec` also holds residual additions and normalizations, as
Kofinas et al. 2024 draw them (link.py), and a chain is one of its cases. Reading one from an nn.Module is
drawing.py's. What a link does not show is not seen: strides, paddings, running statistics of a BatchNorm, and what is
done to the inputs before the first level and to the outputs after the last, none of which has parameters.

The symmetry follows from the links (ours; Godfrey et al. 2022 for the factors of activations). Levels that anything but
a weight joins are permuted together. A skip also ties the factors of a neuron and its counterpart, so all branches that
are added share them. A normalization ends them: its gain takes the factors of the neurons it computes, and of those it
reads it leaves what link.READ_BY says. Inputs, outputs, and what is tied to them, carry none.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from weightedit.errors import ParamsError, SpecError
from weightedit.files.schema import conform
from weightedit.network.chain import chain_of
from weightedit.network.drawing import Drawing, drawn, first_program
from weightedit.network.layer import NeuronGroup, Symmetry
from weightedit.network.link import LINK_KINDS, READ_BY, Level, Link
from weightedit.network.program import Program, unwrapped
from weightedit.network.reading import wiring_of_program
from weightedit.network.spec import NetworkSpec, Params, check_finite, check_shapes


@dataclass(frozen=True)
class GraphSpec:
    """Levels of neurons, inputs first and outputs last, and the links between them.

    >>> from torch import nn
    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 9, 2))
    >>> spec = GraphSpec.from_module(net)
    >>> spec.widths, spec.channels, [link.kind for link in spec.links]
    ((1, 4, 4, 2), 9, ['weight', 'batch_norm', 'weight'])
    """

    levels: tuple[Level, ...]
    links: tuple[Link, ...]

    def __post_init__(self) -> None:
        if len(self.levels) < 2:
            raise SpecError(f"got {len(self.levels)} levels; expected inputs, outputs and a link at least.")
        for link in self.links:
            if link.target >= len(self.levels) or not self._fits(link):
                raise SpecError(
                    f"got {link} between levels of widths {self.widths}; expected a parameter whose first axis is the "
                    "target's width and whose second is the source's, or a link between levels of one width."
                )
        read, received = ({getattr(link, end) for link in self.links} for end in ("source", "target"))
        places = range(len(self.levels))
        if read != set(places[:-1]) or received != set(places[1:]):
            raise SpecError(
                f"got links that read the levels {sorted(read)} and reach {sorted(received)}; expected every level "
                "but the last to be read, and every one but the first to be reached."
            )
        names = [level.bias for level in self.levels] + [link.parameter for link in self.links]
        named = [name for name in names if name is not None]
        if len(set(named)) < len(named) or self.levels[0].bias is not None:
            raise SpecError(f"got parameters {named}; expected each of them once, and no bias of the inputs.")

    def _fits(self, link: Link) -> bool:
        source, target = self.levels[link.source].width, self.levels[link.target].width
        if link.kind != "weight":
            return source == target == (link.shape[0] if link.shape else target)
        inputs = link.shape[1]
        return link.shape[0] == target and (inputs == source or (len(link.shape) == 2 and inputs % source == 0))

    @classmethod
    def from_module(cls, net: nn.Module, inputs: Any = None) -> GraphSpec:
        """Read `net`: convolutions, linear layers, normalizations and residual additions, as drawing.py says.

        Factors that the wiring of `net` denies, which sees more than links (pooling by maximum), are none here either.

        Args:
            net: any module; its forward is captured (program.py), and nothing of it changes.
            inputs: one batch that its forward takes, of which only shapes matter. None: they are guessed.

        Raises SpecError that names the submodule or operation which cannot be treated.
        """
        program = first_program(net, inputs)
        return cls._of_drawing(drawn(program), program)

    @classmethod
    def _of_drawing(cls, drawing: Drawing, program: Program) -> GraphSpec:
        spec, wiring = cls(tuple(drawing.levels), tuple(drawing.links)), wiring_of_program(program)
        levels = list(spec.levels)
        for number, group in enumerate(spec.neuron_groups(), start=1):
            into = [link.parameter for link in spec.links if link.target == number]
            wires = [wiring.by_name[name] for name in (levels[number].bias, *into) if name in wiring.by_name]
            for allowed in (wiring.sets[wire.target].group for wire in wires):
                if group & replace(allowed, shift=True) != group:
                    levels[number] = replace(levels[number], passed=allowed)
        return cls(tuple(levels), spec.links)

    @classmethod
    def of(cls, spec: NetworkSpec) -> GraphSpec:
        """The same chain as a graph, so that it can share a batch with others."""
        layers = spec.layers
        levels = [Level(layer.weight.removesuffix(".weight"), layer.fan_out, layer.bias) for layer in layers]
        levels = [Level(x.name, x.width, x.bias, y.activation) for x, y in zip(levels, layers, strict=True)]
        links = [Link(i, i + 1, "weight", layer.weight, layer.weight_shape) for i, layer in enumerate(layers)]
        return cls((Level("inputs", spec.widths[0]), *levels), tuple(links))

    @property
    def widths(self) -> tuple[int, ...]:
        """Neurons per level, inputs first and outputs last."""
        return tuple(level.width for level in self.levels)

    @property
    def kernel(self) -> tuple[int, int]:
        """(height, width) in which every kernel fits; (1, 1) where there is no convolution."""
        kernels = [link.kernel or (1, 1) for link in self.links]
        return max(height for height, _ in kernels), max(width for _, width in kernels)

    def positions(self, link: Link) -> int:
        """Of every source neuron, how many positions a linear layer reads: pixels of a flattened channel, or 1."""
        return link.shape[1] // self.levels[link.source].width if len(link.shape) == 2 else 1

    @property
    def channels(self) -> int:
        """Channels that the parameters take as features: the positions of `kernel`, or of a flattened channel."""
        return max(math.prod(self.kernel), *(self.positions(link) for link in self.links))

    @property
    def link_kinds(self) -> int:
        """How many entries of link.LINK_KINDS cover this network's links: 1 for a chain, else all."""
        return 1 if all(link.kind == "weight" for link in self.links) else len(LINK_KINDS)

    @cached_property
    def factors(self) -> tuple[int, ...]:
        """Per level, the first one whose neurons carry the same factors: skips tie them."""
        return self._tied(("skip",))

    @cached_property
    def orders(self) -> tuple[int, ...]:
        """Per level, the first one that is permuted together with it: all links but weights tie them."""
        return self._tied(LINK_KINDS[1:])

    def _tied(self, kinds: Sequence[str]) -> tuple[int, ...]:
        first = list(range(len(self.levels)))
        for link in self.links:
            if link.kind in kinds:
                low, high = sorted((first[link.source], first[link.target]))
                first = [low if own == high else own for own in first]
        return tuple(first)

    @property
    def permutable(self) -> tuple[bool, ...]:
        """Per hidden level, whether its neurons may be permuted: not with inputs or outputs."""
        fixed = {self.orders[0], self.orders[-1]}
        return tuple(own not in fixed for own in self.orders[1:-1])

    def neuron_groups(self, symmetry: Symmetry = "full") -> tuple[NeuronGroup, ...]:
        """Per hidden level, the factors inside `symmetry` that a neuron may carry, equal ones where levels are tied.

        A shift needs a sine, a bias, and a flip; and no skip may read the neuron, which would see it.
        """
        own = [level.activation.group & level.passed for level in self.levels]
        seen = {link.source for link in self.links if link.kind == "skip"}
        for link in self.links:
            if link.kind in READ_BY:
                own[link.source] &= READ_BY[link.kind]
                own[link.target] = own[link.target] if link.parameter else NeuronGroup()
        ties, found = self.factors, []
        for number, tie in enumerate(ties[1:-1], start=1):
            groups = [group for group, other in zip(own, ties, strict=True) if other == tie]
            scale = all(group.scale for group in groups) and tie not in (ties[0], ties[-1])
            flip = all(group.flip for group in groups) and tie not in (ties[0], ties[-1])
            shift = flip and own[number].shift and self.levels[number].bias is not None and number not in seen
            found.append(NeuronGroup(scale, flip, shift).restricted(symmetry))
        return tuple(found)

    def param_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of the network's parameters, level by level, what enters a level before its bias."""
        shapes: dict[str, tuple[int, ...]] = {}
        for number, level in enumerate(self.levels):
            into = (link for link in self.links if link.target == number)
            shapes |= {link.parameter: link.shape for link in into if link.parameter is not None}
            shapes |= {} if level.bias is None else {level.bias: (level.width,)}
        return shapes

    @property
    def parameter_count(self) -> int:
        """Number of parameters of the network."""
        return sum(math.prod(shape) for shape in self.param_shapes().values())

    def check_shapes(self, params: Mapping[str, Tensor]) -> None:
        """Raises ParamsError on missing or unexpected names, on shapes that do not fit, and for a stack of networks."""
        if check_shapes(self.param_shapes(), params) is not None:
            raise ParamsError(
                "got stacked networks with a GraphSpec; expected one network, without a leading axis. Pass them as "
                "pairs of spec and params, which share a ragged batch."
            )

    def check_params(self, params: Mapping[str, Tensor]) -> None:
        """`check_shapes`, and every value is finite (ParamsError names the tensor)."""
        self.check_shapes(params)
        check_finite(params, None)

    def params_of(self, net: nn.Module) -> Params:
        """The parameters of `net` that this spec describes (the tensors themselves, not copies).

        Raises ParamsError if `net` is another network.
        """
        params: Params = dict(unwrapped(net).named_parameters())
        self.check_shapes(params)
        return params

    def to_dict(self) -> dict[str, object]:
        """Plain data for JSON; `from_dict` gives the same spec back."""
        return {"levels": [asdict(level) for level in self.levels], "links": [asdict(link) for link in self.links]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> GraphSpec:
        """The spec that `to_dict` wrote. Raises SpecError if `data` is not of that form."""
        return conform(cls, data, "a graph spec", SpecError)


AnySpec = NetworkSpec | GraphSpec


def spec_of(net: nn.Module, inputs: Any = None) -> AnySpec:
    """What `net` is: a NetworkSpec where it is a chain of layers, else a GraphSpec.

    Raises SpecError that names the submodule or operation which cannot be treated.
    """
    program = first_program(net, inputs)
    drawing = drawn(program)
    try:
        return NetworkSpec(*chain_of(drawing))
    except SpecError:
        return GraphSpec._of_drawing(drawing, program)


def specs_of(networks: nn.Module | AnySpec | Sequence[nn.Module | AnySpec]) -> list[AnySpec]:
    """The specs of one network or of several, each of them a module or a spec already; see `spec_of`."""
    several = networks if isinstance(networks, Sequence) else [networks]
    return [spec_of(network) if isinstance(network, nn.Module) else network for network in several]
