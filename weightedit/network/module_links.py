"""Reading the levels and links of a module whose values branch and join: the counterpart of tracing.py.

What an operation does to neurons is module_steps.py's to say; here it becomes part of a graph. A residual addition
becomes skip edges into the operand that was computed last, where nothing else reads that one and no activation is on
it, as Kofinas et al. 2024 draw it; else into neurons of its own, with skip edges from both. An activation goes on the
level before it under the same condition, and else on neurons of its own. What cannot be drawn is refused by name.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace
from typing import Any

from torch import fx, nn

from weightedit.errors import SpecError
from weightedit.network.layer import Activation
from weightedit.network.link import Level, Link
from weightedit.network.module_steps import Step, steps_of

_SUPPORTED = (
    "one input, one output, and between them Linear, Conv1d and Conv2d (no groups), BatchNorm, LayerNorm over the "
    "channels, GroupNorm with one group or one per channel, additions of equally many channels, products with a "
    "number, pooling, flattening, dropout, ReLU, LeakyReLU, Tanh, sin, GELU, SiLU and Sigmoid"
)


def links_of(net: nn.Module) -> tuple[tuple[Level, ...], tuple[Link, ...]]:
    """The levels of `net`, inputs first and outputs last, and the links between them, in the order of computation.

    Raises SpecError naming the submodule or operation that cannot be treated, levels that do not reach the output, and
    parameters that are used twice or not at all.
    """
    steps = steps_of(net)
    drawing = _Drawing(net, {step.node for step in steps if step.kind == "size"})
    for step in steps:
        drawing.draw(step)
    return drawing.finish()


@dataclass(frozen=True)
class _Place:
    """A value: the level whose neurons it runs over, and whether it is that level's only one, before any activation."""

    level: int
    open: bool


class _Drawing:
    """The state of one reading: the graph so far, and where every value stands in it."""

    def __init__(self, net: nn.Module, aside: set[fx.Node]) -> None:
        self.net = net
        self.aside = aside  # sizes and constants: nodes of the trace that run over no neurons
        self.names = {id(parameter): name for name, parameter in net.named_parameters()}
        self.levels: list[Level] = []
        self.links: list[Link] = []
        self.places: dict[fx.Node, _Place] = {}
        self.inputs: list[fx.Node] = []  # the input, and what leaves it as it is
        self.used: list[str] = []
        self.output: int | None = None

    def draw(self, step: Step) -> None:
        node = step.node
        given = [argument for argument in node.all_input_nodes if argument not in self.aside]
        if step.kind == "input":
            if self.inputs:
                raise self.refusal(f"a second input {node.name!r}")
            self.inputs.append(node)
        elif step.kind == "output":
            place = self.places.get(node.args[0])  # type: ignore[arg-type]
            if place is None:
                raise self.refusal("an output that is not one value after a layer")
            self.output = place.level
        elif not given:
            self.aside.add(node)
        elif any(argument in self.inputs for argument in given):
            self.draw_first(step, given)
        elif step.kind != "size":
            if step.kind == "unknown" or any(argument not in self.places for argument in given):
                raise self.refusal(_name(step))
            self.draw_operation(step, [self.places[argument] for argument in given])

    def draw_first(self, step: Step, given: list[fx.Node]) -> None:
        """An operation on the input: a layer makes the first level, anything else must leave it as it is."""
        if len(given) != 1:
            raise self.refusal(f"{_name(step)} of the input and another value")
        if step.kind in ("same", "size"):
            self.inputs += [step.node] if step.kind == "same" else []
            return
        if step.kind != "weight":
            raise self.refusal(f"{_name(step)} of the input, before any layer")
        module: Any = step.module
        inputs = module.weight.shape[1]
        if not self.levels:
            self.levels.append(Level("inputs", inputs))
        elif self.levels[0].width != inputs:
            raise self.refusal(f"{_name(step)}, which reads {inputs} inputs where others read {self.levels[0].width}")
        self.draw_operation(step, [_Place(0, False)])

    def draw_operation(self, step: Step, given: list[_Place]) -> None:
        place = given[0]
        match step.kind:
            case "weight" | "norm":
                level = self.layer(step, place.level)
            case "activation":
                level = place.level if place.open else self.relay(_name(step), place.level)
                self.levels[level] = replace(self.levels[level], activation=_activation(step))
            case "sum":
                level = self.sum(_name(step), *given)
            case "factor":
                level = self.relay(_name(step), place.level, value=_factor(step.node))
            case _:
                level = place.level
        alone = sum(user not in self.aside for user in step.node.users) == 1
        closes = step.kind == "activation" or (step.kind == "same" and not place.open)
        self.places[step.node] = _Place(level, alone and not closes)

    def layer(self, step: Step, source: int) -> int:
        """A linear map, a convolution or a normalization: a level of its own and the link into it."""
        module: Any = step.module
        name, width = str(step.node.target), self.levels[source].width
        kind = _norm_kind(module) if step.kind == "norm" else "weight"
        weight = self.parameter(name, "weight", module.weight)
        bias = self.parameter(name, "bias", module.bias)
        if step.kind == "weight":
            width = module.weight.shape[0]
        if module.weight is not None and module.weight.dim() > 4:
            raise self.refusal(_name(step))
        shape = () if module.weight is None else tuple(module.weight.shape)
        self.levels.append(Level(name, width, bias))
        self.links.append(Link(source, len(self.levels) - 1, kind, weight, shape))
        return len(self.levels) - 1

    def parameter(self, module: str, key: str, tensor: object) -> str | None:
        if tensor is None:
            return None
        name = self.names.get(id(tensor))
        if name is None or name in self.used:
            raise self.refusal(f"{module}.{key}, which is " + ("computed" if name is None else "used twice"))
        self.used.append(name)
        return name

    def relay(self, name: str, *sources: int, value: float = 1.0) -> int:
        """Neurons that add up their counterparts in other levels."""
        self.levels.append(Level(name, self.levels[sources[0]].width))
        target = len(self.levels) - 1
        self.links += [Link(source, target, "skip", value=value) for source in sources]
        return target

    def sum(self, name: str, first: _Place, second: _Place) -> int:
        low, high = sorted((first, second), key=lambda place: place.level)
        if low.level == high.level or not high.open:
            return self.relay(name, low.level, high.level)
        self.links.append(Link(low.level, high.level, "skip"))
        return high.level

    def refusal(self, what: str) -> SpecError:
        return SpecError(
            f"{type(self.net).__name__} holds {what}, which cannot be treated; expected {_SUPPORTED}. Replace that "
            "part, or read a submodule without it."
        )

    def finish(self) -> tuple[tuple[Level, ...], tuple[Link, ...]]:
        if self.output is None:
            raise self.refusal("no layer")
        reached = {self.output}
        for link in sorted(self.links, key=lambda link: -link.target):
            if link.target in reached:
                reached.add(link.source)
        if unread := [level.name for i, level in enumerate(self.levels) if i not in reached]:
            raise self.refusal(f"{', '.join(unread)}, from which nothing leads to the output")
        if outside := sorted(set(self.names.values()) - set(self.used)):
            raise self.refusal(f"parameters that no layer of the graph uses: {', '.join(outside)}")
        return tuple(self.levels), tuple(self.links)


def _name(step: Step) -> str:
    if step.module is not None:
        return f"{step.node.target} ({type(step.module).__name__})"
    return f"{step.node.name!r} ({step.node.target})"


def _norm_kind(module: Any) -> str:
    if isinstance(module, nn.LayerNorm):
        return "layer_norm"
    if isinstance(module, nn.GroupNorm):  # as many groups as channels: every channel of an image by itself
        return "group_norm" if module.num_groups == 1 else "instance_norm"
    return "batch_norm"


def _activation(step: Step) -> Activation:
    """A sine's factor omega is on the edges of the product before it."""
    if step.activation == "sine":
        return Activation("sine", 1.0)
    if step.activation != "leaky_relu":
        return Activation(step.activation)
    arguments = (*step.node.args[1:], step.node.kwargs.get("negative_slope", 0.01))
    slope: Any = arguments[0] if step.module is None else step.module.negative_slope
    return Activation("leaky_relu", float(slope))


def _factor(node: fx.Node) -> float:
    number = next(float(argument) for argument in node.args if isinstance(argument, (int, float)))
    return 1 / number if node.target is operator.truediv else number
