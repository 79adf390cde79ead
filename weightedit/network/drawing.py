"""Drawing the levels and links of a module from the program that it runs (program.py): what its specs are made of.

A residual addition becomes skip edges into the operand that was computed last, where nothing else reads that one and no
activation is on it, as Kofinas et al. 2024 draw it; else into neurons of its own, with skip edges from both. An
activation goes on the level before it under the same condition, and else on neurons of its own; a factor before a sine
is its omega. What only the outputs go through is an ending, what only the inputs go through an encoding. What cannot be
drawn is refused by name. Whether a drawing is a chain, and which one, is chain.py's to say.

The file is long because one state goes through all operations: levels, links, and where every value stands.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, fx, nn

from weightedit.errors import SpecError
from weightedit.network.constants import Constants
from weightedit.network.encoding import changed, encodings, identity
from weightedit.network.ending import Encoding, Ending
from weightedit.network.layer import Activation
from weightedit.network.link import Level, Link
from weightedit.network.places import Computed, Features, Place, Weight, order, reshaped
from weightedit.network.program import Call, Program, Unreadable, called, check_made, programs, storage, unwrapped

_SUPPORTED = (
    "one input, one output, and between them Linear, Conv1d and Conv2d (no groups), BatchNorm, LayerNorm over the "
    "channels, GroupNorm with one group or one per channel, additions of equally many channels, products with a "
    "number, pooling, flattening, dropout, ReLU, LeakyReLU, Tanh, sin, GELU, SiLU and Sigmoid"
)
_SAME = {"clone", "contiguous", "detach", "alias", "lift_fresh_copy", "dropout", "feature_dropout", "to", "_to_copy"}
_VIEWS = {"view", "reshape", "_unsafe_view", "flatten", "unflatten", "unsqueeze", "squeeze", "ravel", "view_as"}
_TURNS = {"transpose", "t", "swapaxes", "permute", "numpy_T", "mT"}
_POOLS = {f"{kind}_pool{n}d" for kind in ("avg", "max", "adaptive_avg", "adaptive_max") for n in (1, 2, 3)} | {"mean"}
_NORMS = {"batch_norm", "layer_norm", "group_norm", "instance_norm"}
_MAPS = {"linear", "matmul", "mm", "addmm", "conv1d", "conv2d"}


@dataclass(frozen=True)
class Made:
    """How a layer computes a level, besides its link: the operation, its module for messages, the shape that it reads,
    and of its source `between` and `averaged`, as places.Place has them."""

    call: Call
    label: str
    shape: tuple[int, ...]
    between: tuple[str, ...] = ()
    averaged: bool = False


@dataclass
class Drawing:
    """The levels of a module, inputs first and outputs last, and the links between them, in the order of computation.

    Attributes:
        net: the module.
        levels, links: as GraphSpec has them.
        made: per level that a layer computes, how.
        late: labels of activations that stand after a pooling, on the level before it.
        turned: the label of what exchanges axes of the inputs, before the first layer.
        encodings, endings: what is done to the inputs besides, and to the outputs.
        output: where the outputs stand, and their shape.
    """

    net: nn.Module
    levels: list[Level] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    made: dict[int, Made] = field(default_factory=dict)
    late: list[str] = field(default_factory=list)
    turned: str = ""
    encodings: tuple[Encoding, ...] = ()
    endings: list[Ending] = field(default_factory=list)
    output: tuple[Place, tuple[int, ...]] = (Place(0, 0, False), ())


def first_program(net: nn.Module, inputs: Any = None) -> Program:
    """The program that `net` runs on `inputs`, or on the first guess that it takes; raises SpecError without one."""
    net = unwrapped(net)
    check_made(net)
    try:
        return next(programs(net, inputs))
    except Unreadable as error:
        if f"{error}":
            raise SpecError(
                f"got a {type(net).__name__} whose forward cannot be followed without data: it stops in {error}; "
                "expected inputs that it takes, and no control flow that depends on data: mend that part, read a "
                "submodule without it, or pass inputs=, one batch."
            ) from None
        raise SpecError(
            f"got a {type(net).__name__} whose inputs its first layer does not tell; expected a module of one input "
            "and a layer that reads it: pass inputs=, one batch that its forward takes."
        ) from None


def drawn(program: Program) -> Drawing:
    """The levels and links of a program.

    Raises SpecError naming the submodule or operation that cannot be treated, and parameters that are used twice or
    not at all.
    """
    return _Drawer(program).run()


class _Drawer:
    """The state of one drawing: the graph so far, and where every value stands in it."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.drawing = Drawing(program.net)
        self.levels, self.links = self.drawing.levels, self.drawing.links
        self.constants = Constants(program)
        self.values: dict[fx.Node, Any] = {}
        self.used: list[str] = []
        self.input: fx.Node | None = None
        self.outputs = program.outputs[: program.returned]
        self.live = _before(self.outputs)

    def run(self) -> Drawing:
        self.check_writes()
        end = [node for node in self.outputs if not self.is_input(node)]
        if len(end) != 1:
            raise self.refusal("an output that is not one value after a layer")
        self.ending = self.trailing(end[0])
        for node in self.program.nodes:
            if node in self.live:
                self.values[node] = self.value(node)
        if not isinstance(place := self.values[end[0]], Place):
            raise self.refusal("no layer")
        self.drawing.output = (self.settled(place, "outputs"), _shape(end[0]))
        if outside := sorted({name for name, _ in self.program.net.named_parameters()} - set(self.used)):
            raise self.refusal(f"parameters that no layer uses: {', '.join(outside)}")
        return self.drawing

    def is_input(self, node: fx.Node) -> bool:
        while (call := called(node)) is not None and call.name.removesuffix("_") in _SAME:
            node = node.all_input_nodes[0]
        return node.op == "placeholder" and node not in self.program.names and node not in self.program.buffers

    def check_writes(self) -> None:
        """Refuse what writes into memory that something else reads later: the graph would not show it."""
        place = {node: i for i, node in enumerate(self.program.nodes)}
        lying: dict[int, list[fx.Node]] = {}
        for node in self.program.nodes:
            if isinstance(node.meta.get("val"), Tensor):
                lying.setdefault(storage(node), []).append(node)
        for node in self.program.nodes:
            call = called(node)
            for target in (call.given[key] for key in call.written) if call is not None else ():
                peers = [peer for peer in lying[storage(target)] if place[peer] < place[node]]
                later = {user for peer in peers for user in peer.users if place[user] > place[node]}
                if later & self.live:
                    raise self.refusal(f"{self.label(node)}, which writes to a value that is read again")

    def trailing(self, node: fx.Node) -> set[fx.Node]:
        """What only the outputs go through."""
        found: set[fx.Node] = set()
        while (call := called(node)) is not None:
            data = [one for one in node.all_input_nodes if self.constants.of(one) is None]
            known = call.name.removesuffix("_") in _SAME | _VIEWS | {"softmax", "log_softmax"}
            if len(data) != 1 or not (known or self.constants.steps(call) is not None):
                break
            found.add(node)
            node = data[0]
        return found

    # Values.

    def value(self, node: fx.Node) -> Any:
        if node in self.program.names:
            return Weight(self.program.names[node])
        if self.constants.of(node) is not None:
            return None
        if node.op == "placeholder":
            if node in self.program.buffers:
                return Computed()
            if self.input is not None:
                raise self.refusal("a second input")
            self.input = node
            return Features()
        if (call := called(node)) is None:
            raise self.refusal(self.label(node))
        call = replace(call, name=call.name.removesuffix("_"))
        given = [self.values[one] for one in node.all_input_nodes]
        layer = call.name in _MAPS and self.constants.of(_matrix(call)) is None
        if not any(isinstance(one, (Place, Features)) for one in given):
            return self.of_parameters(call, node, given)
        if not layer and any(isinstance(one, Features) for one in given):
            return self.features(call, node, given)
        found = self.layer(call, node) if layer else self.operation(call, node, given)
        if found is None:
            raise self.refusal(self.label(node))
        return found

    def of_parameters(self, call: Call, node: fx.Node, given: list[Any]) -> Any:
        """Of no data: a view of a parameter, or something computed."""
        if len(given) == 1 and isinstance(one := given[0], Weight):
            shape = _shape(node)
            if call.name in _SAME or (call.name in _VIEWS and sum(n > 1 for n in shape) <= 1):
                return one
            if call.name in _TURNS and len(shape) == 2:
                return one if order(call, 2) == [0, 1] else Weight(one.name, not one.turned)
        return Computed()

    def features(self, call: Call, node: fx.Node, given: list[Any]) -> Features:
        """An operation on the inputs alone: Fourier features, or one that leaves them as they are."""
        label = self.label(node)
        if any(isinstance(one, Place) for one in given):
            raise self.refusal(f"{label} of the input and another value")
        first = next(one for one in given if isinstance(one, Features))
        if node.meta["val"].is_floating_point() and (call.name in _SAME or (call.name in _VIEWS and not first.parts)):
            return first
        if call.name in _TURNS and first.parts is None:
            return replace(first, turned=first.turned or label)
        nodes = call.given["tensors"] if call.name == "cat" else node.all_input_nodes
        parts = [(one.parts or identity(_shape(n)[-1])) for n in nodes if isinstance(one := self.values[n], Features)]
        found = changed(call, parts, len(_shape(node)), self.constants)
        if found is None:
            raise self.refusal(f"{label} of the input, before any layer")
        return Features(found, first.turned, label)

    def operation(self, call: Call, node: fx.Node, given: list[Any]) -> Place | None:
        """What is no layer; None where it is not known."""
        places, alone = [one for one in given if isinstance(one, Place)], self.alone(node)
        if call.name in _NORMS:
            return self.norm(call, node)
        if call.name == "add" and any(isinstance(one, Weight) for one in given):
            return self.bias(call, node)
        if len(places) == 2 and call.name == "add" and call.given["alpha"] == 1:
            return self.sum(node, *places)
        if len(places) != 1 or any(isinstance(one, (Weight, Computed)) for one in given):
            return None
        place, source = places[0], node.all_input_nodes[given.index(places[0])]
        if call.name in _SAME:
            found = place if node.meta["val"].is_floating_point() else None
        elif call.name in _VIEWS:
            found = reshaped(_shape(source), _shape(node), place)
        elif call.name in _TURNS:
            found = replace(place, axis=order(call, len(_shape(source))).index(place.axis))
        elif call.name in _POOLS:
            found = self.pool(call, node, place, _shape(source))
        else:
            return self.change(call, node, place)
        return found and replace(found, open=place.open and alone)

    def alone(self, node: fx.Node) -> bool:
        return sum(user in self.live for user in node.users) + (node in self.outputs) == 1

    # Layers.

    def layer(self, call: Call, node: fx.Node) -> Place | None:
        """A linear map or a convolution: a level of its own and the link into it."""
        given, matrix, label = call.given, _matrix(call), self.label(node)
        left: Any = next(given[key] for key in ("input", "mat1", "self") if key in given)
        value: Any = self.values.get(left)
        weight: Any = self.values.get(matrix)
        if isinstance(weight, Computed):
            raise self.refusal(f"{label}, whose weight is computed")
        by_right = call.name in ("matmul", "mm", "addmm")
        shape, seen, space = _shape(matrix), _shape(left), int(call.name[4]) if call.name.startswith("conv") else 0
        scaled = {given.get("groups", 1), given.get("beta", 1), given.get("alpha", 1)} != {1}
        known = isinstance(weight, Weight) and isinstance(value, (Place, Features)) and len(shape) == 2 + space
        if not known or scaled:
            return None
        if weight.turned is not by_right:
            raise self.refusal(f"{label}, whose weight {weight.name} is stored as (in, out)")
        outputs, inputs = shape[:2][::-1] if by_right else shape[:2]
        source = self.source(node, value, inputs, len(seen) - 1 - space)
        name, bias = self.take(weight.name), given.get("bias", given["self"] if call.name == "addmm" else None)
        level = Level(name.removesuffix(".weight"), outputs, self.name_of(bias, node))
        link = Link(source, len(self.levels), "weight", name, (outputs, inputs, *shape[2:]))
        made = Made(call, label, seen)
        if isinstance(value, Place):
            made = replace(made, between=value.between, averaged=value.averaged)
        return self.level(node, level, link, made, len(seen) - 1 - space)

    def source(self, node: fx.Node, value: Place | Features, inputs: int, axis: int) -> int:
        """The level that a layer reads along `axis`."""
        label, drawing = self.label(node), self.drawing
        if isinstance(value, Place):
            if value.axis != axis:
                raise self.refusal(f"{label}, which reads along another axis than that of the neurons")
            return self.settled(value, label).level
        found = encodings(value.parts or ())
        drawing.turned = drawing.turned or value.turned
        if found and all(one.function == "identity" for one in found):
            raise self.refusal(f"{value.label} of the input, before any layer")
        if not self.levels:
            self.levels.append(Level("inputs", inputs))
            drawing.encodings = found
        if self.levels[0].width != inputs or found != drawing.encodings:
            raise self.refusal(f"{label}, which reads {inputs} inputs where others read {self.levels[0].width} others")
        return 0

    def level(self, node: fx.Node, level: Level, link: Link, made: Made, axis: int) -> Place:
        self.levels.append(level)
        self.links.append(link)
        self.drawing.made[link.target] = made
        return Place(link.target, axis, self.alone(node))

    def bias(self, call: Call, node: fx.Node) -> Place | None:
        """A parameter that is added to a layer of its own, as a bias is."""
        given = {type(self.values[one]): one for one in node.all_input_nodes}
        if given.keys() != {Place, Weight} or call.given["alpha"] != 1:
            return None
        place, wide, name = self.values[given[Place]], _shape(given[Weight]), self.values[given[Weight]].name
        level, axis = self.levels[place.level], place.axis - len(_shape(node))
        along = [i - len(wide) for i, n in enumerate(wide) if n > 1] or [axis]
        bare = replace(place, open=True) == Place(place.level, place.axis, True) and level.bias is None
        if not (place.open and bare and place.level in self.drawing.made):
            return None
        if along != [axis] or math.prod(wide) != level.width:
            return None
        self.levels[place.level] = replace(level, bias=self.take(name))
        return replace(place, open=self.alone(node))

    def norm(self, call: Call, node: fx.Node) -> Place | None:
        given, kind, label = call.given, call.name, self.label(node)
        place, seen = self.values[given["input"]], _shape(given["input"])
        if not isinstance(place, Place) or place.positions > 1:
            return None
        width, groups = self.levels[place.level].width, given.get("num_groups", 1)
        front = place.axis == 1 if kind != "layer_norm" else place.axis == len(seen) - 1
        if not front or groups not in (1, width) or given.get("normalized_shape", [width]) != [width]:
            return None
        place = self.settled(place, label)
        weight, bias = (self.name_of(given[key], node) for key in ("weight", "bias"))
        kind = "instance_norm" if groups > 1 else kind
        level = Level((weight or label).removesuffix(".weight"), width, bias)
        link = Link(place.level, len(self.levels), kind, weight, (width,) if weight else ())
        return self.level(node, level, link, Made(call, label, seen, place.between), place.axis)

    def name_of(self, parameter: Any, node: fx.Node) -> str | None:
        """The name of a gain or bias."""
        if parameter is None:
            return None
        if not isinstance(found := self.values.get(parameter), Weight):
            raise self.refusal(f"{self.label(node)}, whose bias or gain is computed")
        return self.take(found.name)

    def take(self, name: str) -> str:
        if name in self.used:
            raise self.refusal(f"{name}, which is used twice")
        self.used.append(name)
        return name

    # What is not a layer.

    def sum(self, node: fx.Node, first: Place, second: Place) -> Place | None:
        left, right = node.all_input_nodes
        label = self.label(node)
        low, high = (self.settled(place, label) for place in (first, second))
        if _shape(left) != _shape(right) or (low.axis, low.positions) != (high.axis, high.positions):
            return None
        low, high = sorted((low, high), key=lambda place: place.level)
        level = high.level
        if low.level == high.level or not high.open or high.between:
            level = self.relay(label, low.level, high.level)
        else:
            self.links.append(Link(low.level, high.level, "skip"))
        return replace(high, level=level, open=self.alone(node))

    def relay(self, name: str, *sources: int, value: float = 1.0) -> int:
        """Neurons that add up their counterparts in other levels."""
        self.levels.append(Level(name, self.levels[sources[0]].width))
        target = len(self.levels) - 1
        self.links += [Link(source, target, "skip", value=value) for source in sources]
        return target

    def settled(self, place: Place, name: str) -> Place:
        """`place` with its gain on the edges of a relay, which nothing else reads."""
        if place.gain == 1:
            return place
        return replace(place, level=self.relay(name, place.level, value=place.gain), gain=1.0, open=True)

    def pool(self, call: Call, node: fx.Node, place: Place, seen: Sequence[int]) -> Place | None:
        """An average or a maximum over positions, which follow the channels."""
        if place.positions > 1:
            return None
        gone, axis = set(range(2, len(seen))), place.axis
        whole = axis == 1 and call.name.startswith("adaptive_avg") and set(_shape(node)[2:]) == {1}
        if call.name == "mean":
            gone = {one % len(seen) for one in call.given.get("dim") or range(len(seen))}
            axis -= 0 if call.given.get("keepdim") else sum(one < place.axis for one in gone)
            whole = place.axis == 1 and gone == set(range(2, len(seen)))
        if place.axis in gone or 0 in gone or (call.name != "mean" and place.axis != 1):
            return None
        if place.axis == 1 and all(n == 1 for n in seen[2:]):  # nothing to average
            return replace(place, axis=axis)
        return replace(
            place, axis=axis, between=(*place.between, self.label(node)), averaged=whole and not place.between
        )

    def change(self, call: Call, node: fx.Node, place: Place) -> Place | None:
        """An activation, a factor, or what only outputs may have."""
        steps = self.constants.steps(call)
        if call.name in ("softmax", "log_softmax"):
            along = call.given["dim"] % len(_shape(node)) == place.axis and place.positions == 1
            steps = [Ending(call.name)] if along and node in self.ending else None
        for step in steps or ():
            if node in self.ending:
                self.end(step)
            elif step.name == "multiply":
                level = place.level if place.open else self.relay(self.label(node), place.level)
                place = replace(place, level=level, gain=place.gain * step.parameter, open=self.alone(node))
            elif step.name == "add":
                return None
            else:
                place = self.activated(place, step, self.label(node))
        return None if steps is None else place

    def end(self, step: Ending) -> None:
        """Put `step` after the outputs, a factor before a sine into its omega."""
        endings = self.drawing.endings
        if step.name == "sine" and endings and endings[-1].name == "multiply" and endings[-1].parameter > 0:
            step = Ending("sine", endings.pop().parameter)
        endings.append(step)

    def activated(self, place: Place, step: Ending, label: str) -> Place:
        """The activation on the level, where nothing else reads that; a positive factor is a sine's omega."""
        omega = place.gain if step.name == "sine" and place.gain > 0 else 1.0
        place = place if omega == place.gain else self.settled(place, label)
        level = place.level if place.open else self.relay(label, place.level)
        self.drawing.late += [label] * (bool(place.between) and level == place.level)
        activation = Activation(step.name, omega if step.name == "sine" else step.parameter)
        self.levels[level] = replace(self.levels[level], activation=activation)
        return replace(place, level=level, gain=1.0, open=False)

    # Messages.

    def label(self, node: fx.Node) -> str:
        module, call = node.meta.get("module", ""), called(node)
        if hasattr(nn, module.rpartition(" (")[2].rstrip(")")):
            return module
        name = call.name.removesuffix("_") if call is not None else getattr(node.target, "__name__", str(node.target))
        return f"{name!r} in {module}"

    def refusal(self, what: str) -> SpecError:
        return SpecError(
            f"{type(self.program.net).__name__} holds {what}, which cannot be treated; expected {_SUPPORTED}. Replace "
            "that part, or read a submodule without it."
        )


def _before(nodes: Sequence[fx.Node]) -> set[fx.Node]:
    """`nodes` and all that they are computed from."""
    found, left = set(nodes), list(nodes)
    while left:
        fresh = set(left.pop().all_input_nodes) - found
        found |= fresh
        left += fresh
    return found


def _shape(node: fx.Node) -> tuple[int, ...]:
    seen = node.meta.get("val")
    return tuple(seen.shape) if isinstance(seen, Tensor) else ()


def _matrix(call: Call) -> Any:
    """A layer's weight, or the right side of a product."""
    return next((call.given[key] for key in ("weight", "mat2", "other") if key in call.given), None)
