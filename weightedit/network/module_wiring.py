"""Reading the wiring of any module: which parameters are matrices between sets of neurons, and what those may carry.

The forward of a copy (stand_in.py) is traced with torch.fx, and every value carries the set of neurons that its channel
axis runs over. What is known passes the set on, restricts its group, or joins two sets (a residual addition); what is
not known fixes it: no permutation, no factor. A module that cannot be traced is read layer by layer instead, without
symmetry. So a wiring claims only what the forward shows (hooks are not run, and what they change is not seen); its
notes and `Wiring.outside` say what is missing.

A normalisation makes a new set, permuted together with the one it reads. Rows before a BatchNorm may be rescaled with
nothing to compensate them, up to its epsilon. The file is long because the state of a reading and its readers, one per
kind of operation, in three tables, are one thing. `steps_of` gives what was read operation by operation, from which
module_links.py draws graphs.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from weightedit.errors import SpecError
from weightedit.network.layer import Activation, NeuronGroup
from weightedit.network.stand_in import Tracer, stand_in
from weightedit.network.wiring import Kind, NeuronSet, Wire, Wiring

_FREE = NeuronGroup(scale=True, flip=True, shift=True)  # of a linear map's outputs, until something reads them
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_KNOWN = (nn.Linear, *_CONVOLUTIONS, *_BATCH_NORMS, nn.LayerNorm, nn.GroupNorm, nn.MultiheadAttention)


def wiring_of(net: nn.Module) -> Wiring:
    """The wiring of `net`.

    Linear, Conv1d to Conv3d, BatchNorm, LayerNorm, GroupNorm and MultiheadAttention have wires; convolutions in groups
    and attention without symmetry; so has a net that is one such layer. linear and conv1d to conv3d of
    torch.nn.functional are read where weight and bias are parameters of the net. All other parameters (embeddings,
    recurrent layers, bare ones) are outside, and those without elements. Nothing of `net` changes.
    """
    try:
        with stand_in(net) as twin:
            return _traced_or_not(twin).finish()
    except SpecError as error:  # it cannot be copied
        return Wiring((), (), tuple(name for name, _ in net.named_parameters()), (f"{error}",))


def _traced_or_not(net: nn.Module) -> _Reading:
    try:
        return _read(net)
    except Exception as error:  # whatever a foreign forward raises under tracing
        reading = _Reading(net)
        reading.notes.append(
            f"{type(net).__name__} cannot be traced ({type(error).__name__}: {error}): its layers are read one by one, "
            "without symmetry."
        )
        reading.isolate("", net)
        return reading


@dataclass(frozen=True)
class Step:
    """What one operation of a traced forward does to values that run over neurons.

    Attributes:
        node: of the trace.
        kind: "weight" is a linear map or convolution, "factor" a product with a number; "same" leaves every neuron
            where it is (pooling, flattening, dropout), "size" gives no values, of "unknown" nothing is known.
        module: that does it, None for a function or method.
        activation: name of the activation.
    """

    node: fx.Node
    kind: Literal["input", "weight", "norm", "activation", "sum", "factor", "same", "size", "unknown", "output"]
    module: nn.Module | None = None
    activation: str = ""


def steps_of(net: nn.Module) -> list[Step]:
    """The operations of `net` in their order, as far as `wiring_of` knows them.

    Raises SpecError where the forward cannot be traced.
    """
    try:
        with stand_in(net) as twin:
            return _read(twin).steps
    except Exception as error:  # whatever a foreign forward raises under tracing
        raise SpecError(
            f"{type(net).__name__} cannot be traced ({type(error).__name__}: {error}); expected a forward without "
            "data-dependent control flow. Read a submodule that has none."
        ) from None


def _read(net: nn.Module) -> _Reading:
    reading = _Reading(net)
    if isinstance(net, _KNOWN) and _Tracer().is_leaf_module(net, ""):  # alone, it stands between inputs and outputs
        reading.isolate("", net)
        return reading
    for node in _Tracer().trace(net).nodes:
        reading.read(node)
    return reading


class _Tracer(Tracer):
    """Looks into everything but the modules that have a reader, and torch's own."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not isinstance(m, (nn.Sequential, nn.ModuleList)) and super().is_leaf_module(m, module_qualified_name)


@dataclass(frozen=True)
class _Value:
    """A value whose axis `axis` (negative) runs over a set of neurons; set None: nothing is known.

    `dims` is its number of axes where that is known; `flat`: the axis runs over neurons, and over positions in each.
    """

    set: int | None = None
    axis: int = -1
    dims: int | None = None
    flat: bool = False


_UNKNOWN = _Value()


class _Reading:
    """The state of one reading: sets (joined ones point to their representative), wires, and every node's value."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self.names = {id(parameter): name for name, parameter in net.named_parameters()}
        self.embeddings = {id(part.weight) for part in net.modules() if isinstance(part, nn.Embedding)}
        self.sets: list[NeuronSet] = []
        self.joined: list[int] = []
        self.order: list[int] = []  # sets of one order are permuted together; joined as the sets are
        self.wires: dict[str, Wire] = {}
        self.computed: set[str] = set()  # parameters that something else than a layer reads as well
        self.notes: list[str] = []
        self.values: dict[fx.Node, _Value] = {}
        self.steps: list[Step] = []

    # Sets.

    def new(self, name: str, size: int, group: NeuronGroup = _FREE, like: int | None = None, known: bool = True) -> int:
        self.sets.append(NeuronSet(name, size, group if known else NeuronGroup(), known))
        self.joined.append(len(self.joined))
        self.order.append(len(self.order) if like is None else self.order[like])
        return len(self.sets) - 1

    def of(self, i: int) -> int:
        while self.joined[i] != i:
            i = self.joined[i]
        return i

    def restrict(self, i: int, group: NeuronGroup) -> None:
        i = self.of(i)
        have = self.sets[i].group
        self.sets[i] = replace(
            self.sets[i],
            group=NeuronGroup(have.scale and group.scale, have.flip and group.flip, have.shift and group.shift),
        )

    def fix(self, value: _Value) -> None:
        """Nothing may be done to these neurons, nor a permutation to those that are permuted with them."""
        if value.set is not None:
            i = self.of(value.set)
            self.restrict(i, NeuronGroup())
            self.fix_order(self.order[i])

    def fix_order(self, order: int) -> None:
        for i, own in enumerate(self.order):
            if own == order:
                self.sets[i] = replace(self.sets[i], permutable=False)

    def join(self, a: int, b: int) -> int:
        a, b = sorted((self.of(a), self.of(b)))
        if a != b:
            self.restrict(a, replace(self.sets[b].group, shift=False))
            self.joined[b] = a
            if not (self.sets[a].permutable and self.sets[b].permutable):
                self.fix_order(self.order[a])
                self.fix_order(self.order[b])
            kept, dropped = self.order[a], self.order[b]
            self.order = [kept if own == dropped else own for own in self.order]
        return a

    # Wires.

    def wire(self, parameter: Tensor, kind: Kind, target: int, source: int | None = None, sources: int = 1) -> None:
        name = self.names.get(id(parameter))
        if name is None or name in self.wires or id(parameter) in self.embeddings:
            old = self.wires.get(name or "")  # computed, used twice or tied: its neurons are fixed wherever it stands
            for i in (target, source, *((old.target, old.source) if old else ())):
                self.fix(_Value(i))
            return
        self.wires[name] = Wire(name, tuple(parameter.shape), kind, target, source, sources)

    def parameter(self, node: object) -> nn.Parameter | None:
        """The parameter that a node of the trace is."""
        if not isinstance(node, fx.Node) or node.op != "get_attr":
            return None
        owner, _, key = str(node.target).rpartition(".")
        found = getattr(self.net.get_submodule(owner), key)
        return found if id(found) in self.names else None

    def matrix(self, name: str, module: Any, source: int, *, known: bool = True) -> int:
        """The wires of a linear map or convolution that reads `source`; the set that it computes."""
        target = self.new(name, module.weight.shape[0], known=known)
        self.wire(module.weight, "weight", target, source, self.sets[source].size)
        if module.bias is not None:
            self.wire(module.bias, "bias", target)
        return target

    def alone(self, name: str, module: nn.Module) -> None:
        """The wires of one known module between neurons of which nothing is known."""
        if isinstance(module, nn.MultiheadAttention):
            for key, parameter in module.named_parameters(recurse=False):
                if parameter.dim() == 2:
                    ends = [self.new(f"{name}.{key}", size, known=False) for size in parameter.shape]
                    self.wire(parameter, "weight", ends[0], ends[1], parameter.shape[1])
                    if key == "in_proj_weight" and module.in_proj_bias is not None:
                        self.wire(module.in_proj_bias, "bias", ends[0])
            return
        weight: Any = module.weight
        if isinstance(module, (nn.Linear, *_CONVOLUTIONS)):
            self.matrix(name, module, self.new(f"inputs of {name}", weight.shape[1], known=False), known=False)
        elif weight is not None and weight.dim() == 1:  # a normalisation
            self.scale_and_shift(module, self.new(name, len(weight), known=False))

    def scale_and_shift(self, module: Any, target: int) -> None:
        self.wire(module.weight, "gain", target)
        if module.bias is not None:
            self.wire(module.bias, "bias", target)

    def isolate(self, prefix: str, module: nn.Module) -> None:
        """Everything known inside `module`, layer by layer."""
        for name, part in module.named_modules(prefix=prefix):
            if isinstance(part, _KNOWN) and all(id(p) in self.names for p in part.parameters()):
                self.alone(name, part)

    # Nodes.

    def read(self, node: fx.Node) -> None:
        module = self.net.get_submodule(str(node.target)) if node.op == "call_module" else None
        given = [self.values[a] for a in node.all_input_nodes]
        if module is not None:
            reader: Any = _reader_of(module)
        elif node.op in ("call_function", "call_method"):
            reader = (_METHODS if node.op == "call_method" else _FUNCTIONS).get(node.target)  # type: ignore[arg-type]
        else:
            reader = None
        result = reader(self, node, module, given) if reader is not None and given else None
        self.steps.append(_step(node, module, reader, result))
        if (result is None or reader is not _function) and not _is_size(node):
            found = map(self.parameter, node.all_input_nodes)
            self.computed.update(self.names[id(parameter)] for parameter in found if parameter is not None)
        if result is None:
            if not _is_size(node):
                for value in given:
                    self.fix(value)
            if module is not None:
                self.isolate(str(node.target), module)
            result = _UNKNOWN
        self.values[node] = result

    def source(self, value: _Value, name: str, size: int) -> int | None:
        """The set that a layer of `size` inputs reads; None where they are not the whole channel axis."""
        if value.set is None:
            return self.new(f"inputs of {name}", size, known=False)
        i = self.of(value.set)
        count = self.sets[i].size
        return i if (size == count or (value.flat and size % count == 0)) else None

    def finish(self) -> Wiring:
        for wire in (self.wires[name] for name in self.computed if name in self.wires):
            self.fix(_Value(wire.target))
            self.fix(_Value(wire.source))
        kept = [i for i in range(len(self.sets)) if self.of(i) == i and self.sets[i].size]
        place = {i: n for n, i in enumerate(kept)}
        sets = []
        for i in kept:
            group = self.sets[i].group  # only a sine leaves the shift without the scale
            group = replace(group, shift=group.shift and not group.scale)
            sets.append(replace(self.sets[i], order=self.order[i], group=group))
        wires = tuple(
            replace(
                wire,
                target=place[self.of(wire.target)],
                source=None if wire.source is None else place[self.of(wire.source)],
            )
            for wire in self.wires.values()
            if 0 not in wire.shape
        )
        wired = {wire.name for wire in wires}
        outside = tuple(name for name in self.names.values() if name not in wired)
        return Wiring(tuple(sets), wires, outside, tuple(self.notes))


def _is_size(node: fx.Node) -> bool:
    return (node.op == "call_method" and node.target in ("size", "dim")) or (
        node.op == "call_function" and node.target is getattr and node.args[1] in ("shape", "ndim", "device", "dtype")
    )


_Reader = Callable[[_Reading, fx.Node, Any, list[_Value]], "_Value | None"]


def _layer(reading: _Reading, node: fx.Node, module: Any, given: list[_Value]) -> _Value | None:
    """A linear map or a convolution."""
    if len(given) != 1 or getattr(module, "groups", 1) != 1:
        return None
    return _mapped(reading, str(node.target), module, given[0])


class _Map(NamedTuple):
    """The parameters of a linear map or a convolution that is no module."""

    weight: nn.Parameter
    bias: nn.Parameter | None


def _function(reading: _Reading, node: fx.Node, module: Any, given: list[_Value]) -> _Value | None:
    """The same as a function, of parameters of the network."""
    names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
    found = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    x, weight, bias = found.get("input"), reading.parameter(found.get("weight")), reading.parameter(found.get("bias"))
    if not isinstance(x, fx.Node) or reading.parameter(x) is not None or found.get("groups", 1) != 1:
        return None
    if weight is None or weight.dim() < 2 or (bias is None and found.get("bias") is not None):
        return None
    return _mapped(reading, reading.names[id(weight)].removesuffix(".weight"), _Map(weight, bias), reading.values[x])


def _mapped(reading: _Reading, name: str, layer: Any, value: _Value) -> _Value | None:
    space = layer.weight.dim() - 2
    if value.set is not None and value.axis != -1 - space:
        return None
    value = replace(value, flat=False, dims=space + 2) if space else value
    source = reading.source(value, name, layer.weight.shape[1])
    return None if source is None else _Value(reading.matrix(name, layer, source), -1 - space, value.dims)


@dataclass(frozen=True)
class _Activation:  # a reader that knows its name
    name: str

    def __call__(self, reading: _Reading, node: fx.Node, module: Any, given: list[_Value]) -> _Value | None:
        if len(given) != 1:
            return None
        if given[0].set is not None:
            reading.restrict(given[0].set, Activation(self.name, 1.0 if self.name == "sine" else 0.0).group)
        return given[0]


def _same(reading: _Reading, node: fx.Node, module: Any, given: list[_Value]) -> _Value | None:
    return given[0] if len(given) == 1 else None


def _normalisation(reading: _Reading, node: fx.Node, module: Any, given: list[_Value]) -> _Value | None:
    """A new set in the order of the one that is read. What may be done to the latter: see the file's docstring."""
    value, name = given[0], str(node.target)
    if len(given) != 1 or value.set is None or value.flat:
        return None
    i = reading.of(value.set)
    size = reading.sets[i].size
    if isinstance(module, nn.LayerNorm):
        fits, keeps = tuple(module.normalized_shape) == (size,) and value.axis == -1, NeuronGroup()
    elif isinstance(module, nn.GroupNorm):
        each = module.num_groups == module.num_channels
        fits = module.num_groups in (1, size) and value.dims is not None and value.axis == 1 - value.dims
        keeps = NeuronGroup(scale=each)
    else:
        front = value.axis == -1 if value.dims is None else value.axis == 1 - value.dims
        fits, keeps = module.num_features == size and front, NeuronGroup(scale=True)
    if not fits:
        return None
    reading.restrict(i, keeps)
    after = reading.new(name, size, _FREE if module.weight is not None else NeuronGroup(), like=i)
    reading.sets[after] = replace(reading.sets[after], permutable=reading.sets[i].permutable)
    if module.weight is not None:
        reading.scale_and_shift(module, after)
    return replace(value, set=after)


def _flatten(reading: _Reading, node: fx.Node, module: Any, given: list[_Value]) -> _Value | None:
    """Flattening from axis 1, of [N, C, ...], or from axis 2, the positions alone."""
    value = given[0]
    if module is not None:
        start, end = module.start_dim, module.end_dim
    else:
        start, end = (node.args[1] if len(node.args) > 1 else 0), (node.args[2] if len(node.args) > 2 else -1)
        start, end = node.kwargs.get("start_dim", start), node.kwargs.get("end_dim", end)
    if value.set is None:
        return value
    if end not in (-1, None if value.dims is None else value.dims - 1):
        return None
    if start == 1 and value.dims is not None and value.axis == 1 - value.dims:
        return _Value(value.set, -1, 2, flat=value.dims > 2 or value.flat)
    if start == 2 and value.dims is not None and value.dims > 2 and value.axis == 1 - value.dims:
        return _Value(value.set, -2, 3)
    return value if start == 1 and value.dims == 2 else None


def _view(reading: _Reading, node: fx.Node, module: Any, given: list[_Value]) -> _Value | None:
    """x.view(n, -1) of [n, C, ...]: the flattening of everything but the first axis."""
    value, sizes = given[0], node.args[1:]
    if len(sizes) != 2 or sizes[1] != -1 or value.dims is None or value.axis != 1 - value.dims:
        return None
    return _Value(value.set, -1, 2, flat=value.dims > 2)


def _transpose(reading: _Reading, node: fx.Node, module: Any, given: list[_Value]) -> _Value | None:
    value = given[0]
    a, b = node.args[1:3] if len(node.args) > 2 else (None, None)
    if value.set is None or value.dims is None or not isinstance(a, int) or not isinstance(b, int):
        return None if value.set is not None else value
    a, b = (axis if axis < 0 else axis - value.dims for axis in (a, b))
    axis = {a: b, b: a}.get(value.axis, value.axis)
    return replace(value, axis=axis)


def _mean(reading: _Reading, node: fx.Node, module: Any, given: list[_Value]) -> _Value | None:
    """A mean over axes that are not the channels."""
    value = given[0]
    axes = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    keep = node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)
    axes = (axes,) if isinstance(axes, int) else axes
    if value.set is None or value.dims is None or value.flat or not isinstance(axes, (tuple, list)):
        return None
    gone = {axis if axis < 0 else axis - value.dims for axis in axes if isinstance(axis, int)}
    if value.axis in gone or -value.dims in gone or len(gone) != len(axes):
        return None
    if keep:
        return value
    later = sum(axis > value.axis for axis in gone)
    return replace(value, axis=value.axis + later, dims=value.dims - len(gone))


def _sum(reading: _Reading, node: fx.Node, module: Any, given: list[_Value]) -> _Value | None:
    """A residual addition, of values over equally many neurons along the same axis."""
    if len(given) != 2 or len(node.args) != 2 or node.kwargs:
        return None
    a, b = given
    if a.set is None or b.set is None or (a.axis, a.flat) != (b.axis, b.flat) or a.dims != b.dims:
        return None
    i, j = reading.of(a.set), reading.of(b.set)
    if reading.sets[i].size != reading.sets[j].size:
        return None
    return replace(a, set=reading.join(i, j))


def _product(reading: _Reading, node: fx.Node, module: Any, given: list[_Value]) -> _Value | None:
    """A number times a value, or a value divided by a number."""
    factors = [a for a in node.args if isinstance(a, (int, float))]
    divides = node.target is operator.truediv and not isinstance(node.args[0], fx.Node)
    return given[0] if len(given) == 1 and len(factors) == 1 and not divides else None


def _pooling(reading: _Reading, node: fx.Node, module: Any, given: list[_Value]) -> _Value | None:
    value = given[0]
    if len(given) != 1 or value.set is None or value.dims is None or value.axis != 1 - value.dims:
        return None
    if isinstance(module, (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool2d)) or (
        module is None and node.target in (functional.max_pool2d, torch.max_pool2d)
    ):
        reading.restrict(value.set, NeuronGroup(scale=True))
    return value


def _step(node: fx.Node, module: nn.Module | None, reader: Any, result: _Value | None) -> Step:
    if result is not None:
        name = reader.name if isinstance(reader, _Activation) else ""
        return Step(node, "activation" if name else _KINDS.get(reader, "same"), module, name)
    if node.op in ("placeholder", "output"):
        return Step(node, "input" if node.op == "placeholder" else "output")
    return Step(node, "size" if _is_size(node) else "unknown", module)


def _reader_of(module: nn.Module) -> _Reader | None:
    for kinds, reader in _MODULES:
        if isinstance(module, kinds):
            return reader
    return None


_KINDS: dict[Any, Literal["weight", "norm", "sum", "factor", "unknown"]] = {
    _layer: "weight",
    _function: "unknown",  # for graphs, which are drawn from modules
    _normalisation: "norm",
    _sum: "sum",
    _product: "factor",
}
_MODULES: list[tuple[Any, _Reader]] = [
    ((nn.Linear, *_CONVOLUTIONS), _layer),
    ((*_BATCH_NORMS, nn.LayerNorm, nn.GroupNorm), _normalisation),
    (nn.ReLU, _Activation("relu")),
    (nn.LeakyReLU, _Activation("leaky_relu")),
    (nn.Tanh, _Activation("tanh")),
    (nn.GELU, _Activation("gelu")),
    (nn.SiLU, _Activation("silu")),
    (nn.Sigmoid, _Activation("sigmoid")),
    ((nn.Identity, nn.Dropout), _same),
    (nn.Flatten, _flatten),
    ((nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d), _pooling),
]
_FUNCTIONS: dict[Any, _Reader] = {
    functional.linear: _function,
    functional.conv1d: _function,
    functional.conv2d: _function,
    functional.conv3d: _function,
    torch.relu: _Activation("relu"),
    functional.relu: _Activation("relu"),
    functional.leaky_relu: _Activation("leaky_relu"),
    torch.tanh: _Activation("tanh"),
    functional.tanh: _Activation("tanh"),
    torch.sin: _Activation("sine"),
    functional.gelu: _Activation("gelu"),
    functional.silu: _Activation("silu"),
    torch.sigmoid: _Activation("sigmoid"),
    functional.sigmoid: _Activation("sigmoid"),
    functional.dropout: _same,
    torch.flatten: _flatten,
    functional.max_pool2d: _pooling,
    functional.avg_pool2d: _pooling,
    functional.adaptive_avg_pool2d: _pooling,
    torch.mean: _mean,
    operator.add: _sum,
    operator.iadd: _sum,
    torch.add: _sum,
    operator.mul: _product,
    torch.mul: _product,
    operator.truediv: _product,
}
_METHODS: dict[Any, _Reader] = {
    "relu": _Activation("relu"),
    "tanh": _Activation("tanh"),
    "sin": _Activation("sine"),
    "sigmoid": _Activation("sigmoid"),
    "flatten": _flatten,
    "view": _view,
    "reshape": _view,
    "transpose": _transpose,
    "mean": _mean,
    "contiguous": _same,
    "add": _sum,
    "mul": _product,
}
