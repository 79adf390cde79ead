"""What the operations of a module do to neurons, one by one: what module_links.py draws graphs from.

The forward of a copy (stand_in.py) is traced with torch.fx, and every value knows along which axis how many neurons
run. What is known gives a Step of its kind; what is not is "unknown", and it is module_links.py's to refuse it.
Symmetries of any module are reading.py's. Hooks are not run, and what they change is not seen.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import fx, nn
from torch.nn import functional

from weightedit.errors import SpecError
from weightedit.network.stand_in import Tracer, stand_in

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_KNOWN = (nn.Linear, *_CONVOLUTIONS, *_BATCH_NORMS, nn.LayerNorm, nn.GroupNorm, nn.MultiheadAttention)


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
    """The operations of `net` in their order, as far as they are known.

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
    if isinstance(net, _KNOWN) and _Tracer().is_leaf_module(net, ""):  # alone, it is no graph
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
    """A value whose axis `axis` (negative) runs over `size` neurons; None: nothing is known.

    `dims` is its number of axes where that is known; `flat`: the axis runs over neurons, and over positions in each.
    """

    size: int | None = None
    axis: int = -1
    dims: int | None = None
    flat: bool = False


_UNKNOWN = _Value()


class _Reading:
    """The state of one reading: every node's value, and the steps."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self.values: dict[fx.Node, _Value] = {}
        self.steps: list[Step] = []

    def read(self, node: fx.Node) -> None:
        module = self.net.get_submodule(str(node.target)) if node.op == "call_module" else None
        given = [self.values[a] for a in node.all_input_nodes]
        if module is not None:
            reader: Any = _reader_of(module)
        elif node.op in ("call_function", "call_method"):
            reader = (_METHODS if node.op == "call_method" else _FUNCTIONS).get(node.target)  # type: ignore[arg-type]
        else:
            reader = None
        result = reader(node, module, given) if reader is not None and given else None
        self.steps.append(_step(node, module, reader, result))
        self.values[node] = _UNKNOWN if result is None else result


def _is_size(node: fx.Node) -> bool:
    return (node.op == "call_method" and node.target in ("size", "dim")) or (
        node.op == "call_function" and node.target is getattr and node.args[1] in ("shape", "ndim", "device", "dtype")
    )


_Reader = Callable[[fx.Node, Any, list[_Value]], "_Value | None"]


def _layer(node: fx.Node, module: Any, given: list[_Value]) -> _Value | None:
    """A linear map or a convolution."""
    if len(given) != 1 or getattr(module, "groups", 1) != 1:
        return None
    (value,), space, inputs = given, module.weight.dim() - 2, module.weight.shape[1]
    if value.size is not None and value.axis != -1 - space:
        return None
    value = replace(value, flat=False, dims=space + 2) if space else value
    fits = value.size in (None, inputs) or (value.flat and inputs % value.size == 0)
    return _Value(module.weight.shape[0], -1 - space, value.dims) if fits else None


@dataclass(frozen=True)
class _Activation:  # a reader that knows its name
    name: str

    def __call__(self, node: fx.Node, module: Any, given: list[_Value]) -> _Value | None:
        return given[0] if len(given) == 1 else None


def _same(node: fx.Node, module: Any, given: list[_Value]) -> _Value | None:
    return given[0] if len(given) == 1 else None


def _normalization(node: fx.Node, module: Any, given: list[_Value]) -> _Value | None:
    """Over the neurons, of which every one stays what it is."""
    value = given[0]
    if len(given) != 1 or value.size is None or value.flat:
        return None
    if isinstance(module, nn.LayerNorm):
        fits = tuple(module.normalized_shape) == (value.size,) and value.axis == -1
    elif isinstance(module, nn.GroupNorm):
        fits = module.num_groups in (1, value.size) and value.dims is not None and value.axis == 1 - value.dims
    else:
        front = value.axis == -1 if value.dims is None else value.axis == 1 - value.dims
        fits = module.num_features == value.size and front
    return value if fits else None


def _flatten(node: fx.Node, module: Any, given: list[_Value]) -> _Value | None:
    """Flattening from axis 1, of [N, C, ...], or from axis 2, the positions alone."""
    value = given[0]
    if module is not None:
        start, end = module.start_dim, module.end_dim
    else:
        start, end = (node.args[1] if len(node.args) > 1 else 0), (node.args[2] if len(node.args) > 2 else -1)
        start, end = node.kwargs.get("start_dim", start), node.kwargs.get("end_dim", end)
    if value.size is None:
        return value
    if end not in (-1, None if value.dims is None else value.dims - 1):
        return None
    if start == 1 and value.dims is not None and value.axis == 1 - value.dims:
        return _Value(value.size, -1, 2, flat=value.dims > 2 or value.flat)
    if start == 2 and value.dims is not None and value.dims > 2 and value.axis == 1 - value.dims:
        return _Value(value.size, -2, 3)
    return value if start == 1 and value.dims == 2 else None


def _view(node: fx.Node, module: Any, given: list[_Value]) -> _Value | None:
    """x.view(n, -1) of [n, C, ...]: the flattening of everything but the first axis."""
    value, sizes = given[0], node.args[1:]
    if len(sizes) != 2 or sizes[1] != -1 or value.dims is None or value.axis != 1 - value.dims:
        return None
    return _Value(value.size, -1, 2, flat=value.dims > 2)


def _transpose(node: fx.Node, module: Any, given: list[_Value]) -> _Value | None:
    value = given[0]
    a, b = node.args[1:3] if len(node.args) > 2 else (None, None)
    if value.size is None or value.dims is None or not isinstance(a, int) or not isinstance(b, int):
        return None if value.size is not None else value
    a, b = (axis if axis < 0 else axis - value.dims for axis in (a, b))
    axis = {a: b, b: a}.get(value.axis, value.axis)
    return replace(value, axis=axis)


def _mean(node: fx.Node, module: Any, given: list[_Value]) -> _Value | None:
    """A mean over axes that are not the channels."""
    value = given[0]
    axes = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    keep = node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)
    axes = (axes,) if isinstance(axes, int) else axes
    if value.size is None or value.dims is None or value.flat or not isinstance(axes, (tuple, list)):
        return None
    gone = {axis if axis < 0 else axis - value.dims for axis in axes if isinstance(axis, int)}
    if value.axis in gone or -value.dims in gone or len(gone) != len(axes):
        return None
    if keep:
        return value
    later = sum(axis > value.axis for axis in gone)
    return replace(value, axis=value.axis + later, dims=value.dims - len(gone))


def _sum(node: fx.Node, module: Any, given: list[_Value]) -> _Value | None:
    """A residual addition, of values over equally many neurons along the same axis."""
    if len(given) != 2 or len(node.args) != 2 or node.kwargs or given[0].size is None:
        return None
    return given[0] if given[0] == given[1] else None


def _product(node: fx.Node, module: Any, given: list[_Value]) -> _Value | None:
    """A number times a value, or a value divided by a number."""
    factors = [a for a in node.args if isinstance(a, (int, float))]
    divides = node.target is operator.truediv and not isinstance(node.args[0], fx.Node)
    return given[0] if len(given) == 1 and len(factors) == 1 and not divides else None


def _pooling(node: fx.Node, module: Any, given: list[_Value]) -> _Value | None:
    value = given[0]
    known = len(given) == 1 and value.size is not None and value.dims is not None and value.axis == 1 - value.dims
    return value if known else None


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


_KINDS: dict[Any, Literal["weight", "norm", "sum", "factor"]] = {
    _layer: "weight",
    _normalization: "norm",
    _sum: "sum",
    _product: "factor",
}
_MODULES: list[tuple[Any, _Reader]] = [
    ((nn.Linear, *_CONVOLUTIONS), _layer),
    ((*_BATCH_NORMS, nn.LayerNorm, nn.GroupNorm), _normalization),
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
