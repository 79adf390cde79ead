"""Reading a network's layers from an nn.Module by tracing its forward with torch.fx.

What lives here: one reader per kind of operation, in three tables (modules, functions, methods), so that a new kind of
layer is one more entry. What cannot be read is refused by naming the submodule; nothing is skipped in silence.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from weightedit.errors import SpecError
from weightedit.network.layer import IDENTITY, Activation, Layer
from weightedit.network.stand_in import Tracer, stand_in

_SUPPORTED = (
    "Linear layers chained with ReLU, LeakyReLU, Tanh, sin(omega z), GELU, SiLU, Sigmoid, Identity or Dropout, "
    "an optional Flatten before the first layer and a softmax or constant offset after the last; before them Conv2d "
    "layers (no groups or dilation, one stride and zero padding for both directions) and AdaptiveAvgPool2d(1), Flatten"
)


def trace_layers(net: nn.Module) -> tuple[Layer, ...]:
    """The layers of `net` in the order of computation.

    Raises SpecError naming the submodule or operation that cannot be treated, parameters that no layer uses, and
    parameters used twice.
    """
    try:
        with stand_in(net) as twin:
            graph = Tracer().trace(twin)
    except Exception as error:
        raise SpecError(
            f"{type(net).__name__} cannot be traced ({type(error).__name__}: {error}); expected a forward without "
            f"data-dependent control flow: {_SUPPORTED}. Build the spec by hand with NetworkSpec.mlp otherwise."
        ) from None
    chain = _Chain(twin)
    for node in graph.nodes:
        chain.read(node)
    return chain.finish()


class _Chain:
    """The state of one reading: layers so far, and the node whose value is the running activation."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self.layers: list[Layer] = []
        self.current: fx.Node | None = None
        self.gain = 1.0  # constant factor between the last linear map and its activation
        self.closed = False  # something followed the last layer that only an output may have
        self.flat = False  # inputs were flattened
        self.pooled = False  # the images of the last convolution were averaged

    def read(self, node: fx.Node) -> None:
        if _is_size(node):
            return
        match node.op:
            case "placeholder":
                if self.current is not None:
                    raise self.refusal(f"a second input {node.name!r}")
                self.current = node
            case "get_attr":
                if not isinstance(self.constant(node), float):
                    raise self.refusal(f"{node.target!r}, a tensor used outside any Linear layer")
            case "output":
                if node.args[0] is not self.current:
                    raise self.refusal("an output that is not the last value of the chain")
            case _:
                self.read_operation(node)

    def read_operation(self, node: fx.Node) -> None:
        module = self.net.get_submodule(str(node.target)) if node.op == "call_module" else None
        name = f"{node.target} ({type(module).__name__})" if module is not None else f"{node.name!r} ({node.target})"
        data = [argument for argument in node.all_input_nodes if argument.op != "get_attr" and not _is_size(argument)]
        if data != [self.current] or sum(not _is_size(user) for user in data[0].users) > 1:
            raise self.refusal(f"{name}, where values branch or join (a residual addition, say)")
        reader: Callable[[_Chain, fx.Node, Any], bool] | None
        if module is not None:
            reader = _MODULES.get(type(module))
        else:
            table = _METHODS if node.op == "call_method" else _FUNCTIONS
            reader = table.get(node.target)  # type: ignore[arg-type]
        if reader is None or not reader(self, node, module):
            raise self.refusal(name)
        self.current = node

    def constant(self, value: object) -> object:
        """The number behind `value`: a Python number, or a one-element buffer (not a parameter)."""
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        if isinstance(value, fx.Node) and value.op == "get_attr":
            owner, _, name = str(value.target).rpartition(".")
            tensor = getattr(self.net.get_submodule(owner), name)
            if isinstance(tensor, Tensor) and tensor.numel() == 1 and not isinstance(tensor, nn.Parameter):
                return float(tensor)
        return value

    def refusal(self, what: str) -> SpecError:
        return SpecError(
            f"{type(self.net).__name__} holds {what}, which cannot be treated; expected {_SUPPORTED}. Replace that "
            "part, or read a submodule that is such a chain. GraphSpec.from_module reads residual additions and "
            "normalizations."
        )

    def finish(self) -> tuple[Layer, ...]:
        if not self.layers:
            raise self.refusal("no Linear layer")
        if self.pooled and self.layers[-1].kernel is not None:
            raise self.refusal("a pooling that no Linear layer follows")
        if self.layers[-1].activation != IDENTITY:
            self.layers[-1] = replace(self.layers[-1], activation=IDENTITY)
        used = [name for layer in self.layers for name in (layer.weight, layer.bias) if name is not None]
        named = dict(self.net.named_parameters(remove_duplicate=False))
        read = {id(named.get(name)) for name in used}
        unused = sorted(name for name, parameter in named.items() if id(parameter) not in read)
        if unused:
            raise self.refusal(f"parameters that no layer of the chain uses: {', '.join(unused)}")
        if len(read) != len(used):
            raise self.refusal(f"tied parameters among {', '.join(used)}")
        return tuple(self.layers)


def _is_size(node: fx.Node) -> bool:
    """Whether `node` is the size of a value, or one entry of it, as in x.view(x.size(0), -1): it carries no data."""
    if node.op == "call_method":
        return node.target == "size"
    if node.op != "call_function" or not node.args:
        return False
    of_size = isinstance(node.args[0], fx.Node) and _is_size(node.args[0])
    return (node.target is getattr and node.args[1] == "shape") or (node.target is operator.getitem and of_size)


def _read_linear(chain: _Chain, node: fx.Node, module: nn.Linear) -> bool:
    if chain.closed or chain.gain != 1.0 or (_is_image(chain) and not chain.pooled):
        return False
    bias = f"{node.target}.bias" if module.bias is not None else None
    chain.layers.append(Layer(f"{node.target}.weight", bias, module.in_features, module.out_features))
    return True


def _is_image(chain: _Chain) -> bool:
    return bool(chain.layers) and chain.layers[-1].kernel is not None


def _read_convolution(chain: _Chain, node: fx.Node, module: nn.Conv2d) -> bool:
    plain = module.groups == 1 and module.dilation == (1, 1) and module.padding_mode == "zeros"
    even = module.stride[0] == module.stride[1] and module.padding in ((0, 0), (module.padding[0],) * 2)
    first = not chain.layers and not chain.flat
    if not (plain and even and (first or (_is_image(chain) and not chain.pooled))) or chain.closed or chain.gain != 1.0:
        return False
    names = f"{node.target}.weight", f"{node.target}.bias" if module.bias is not None else None
    height, width = module.kernel_size
    chain.layers.append(
        Layer(
            *names,
            module.in_channels,
            module.out_channels,
            kernel=(height, width),
            stride=module.stride[0],
            padding=int(module.padding[0]),
        )
    )
    return True


def _read_pooling(chain: _Chain, node: fx.Node, module: nn.AdaptiveAvgPool2d) -> bool:
    chain.pooled = _is_image(chain) and not chain.pooled and not chain.closed and module.output_size in (1, (1, 1))
    return chain.pooled


def _activate(chain: _Chain, activation: Activation) -> bool:
    """Put `activation` after the last layer; False where it cannot stand."""
    if activation == IDENTITY:
        return True
    after_pooling = chain.pooled and _is_image(chain)
    if chain.closed or after_pooling or not chain.layers or chain.layers[-1].activation != IDENTITY:
        return False
    if activation.name == "sine":
        activation = Activation("sine", chain.gain)
    elif chain.gain != 1.0:
        return False
    chain.gain = 1.0
    chain.layers[-1] = replace(chain.layers[-1], activation=activation)
    return True


def _activation(name: str) -> Callable[[_Chain, fx.Node, Any], bool]:
    return lambda chain, node, module: _activate(chain, Activation(name, 1.0 if name == "sine" else 0.0))


def _read_leaky_module(chain: _Chain, node: fx.Node, module: nn.LeakyReLU) -> bool:
    return _activate(chain, Activation("leaky_relu", module.negative_slope))


def _read_leaky_function(chain: _Chain, node: fx.Node, module: None) -> bool:
    slope = node.args[1] if len(node.args) > 1 else node.kwargs.get("negative_slope", 0.01)
    return _activate(chain, Activation("leaky_relu", float(slope)))  # type: ignore[arg-type]


def _read_gelu(chain: _Chain, node: fx.Node, module: nn.GELU | None) -> bool:
    approximate = module.approximate if module is not None else node.kwargs.get("approximate", "none")
    return approximate == "none" and _activate(chain, Activation("gelu"))


def _read_flatten(chain: _Chain, node: fx.Node, module: object) -> bool:
    chain.flat = not chain.layers
    return chain.flat or (chain.pooled and _is_image(chain))


def _read_softmax(chain: _Chain, node: fx.Node, module: object) -> bool:
    chain.closed = bool(chain.layers) and chain.gain == 1.0
    return chain.closed


def _read_product(chain: _Chain, node: fx.Node, module: None) -> bool:
    factors = [chain.constant(argument) for argument in node.args if argument is not chain.current]
    if len(factors) != 1 or not isinstance(factors[0], float) or not math.isfinite(factors[0]):
        return False
    chain.gain *= factors[0]
    return bool(chain.layers) and chain.layers[-1].activation == IDENTITY and chain.gain > 0


def _read_offset(chain: _Chain, node: fx.Node, module: None) -> bool:
    terms = [chain.constant(argument) for argument in node.args if argument is not chain.current]
    chain.closed = bool(chain.layers) and chain.gain == 1.0
    return chain.closed and len(terms) == 1 and isinstance(terms[0], float)


_MODULES: dict[type, Callable[[_Chain, fx.Node, Any], bool]] = {
    nn.Linear: _read_linear,
    nn.Conv2d: _read_convolution,
    nn.AdaptiveAvgPool2d: _read_pooling,
    nn.ReLU: _activation("relu"),
    nn.LeakyReLU: _read_leaky_module,
    nn.Tanh: _activation("tanh"),
    nn.GELU: _read_gelu,
    nn.SiLU: _activation("silu"),
    nn.Sigmoid: _activation("sigmoid"),
    nn.Identity: _activation("identity"),
    nn.Dropout: _activation("identity"),
    nn.Flatten: _read_flatten,
    nn.Softmax: _read_softmax,
    nn.LogSoftmax: _read_softmax,
}
_FUNCTIONS: dict[Any, Callable[[_Chain, fx.Node, Any], bool]] = {
    torch.relu: _activation("relu"),
    functional.relu: _activation("relu"),
    functional.leaky_relu: _read_leaky_function,
    torch.tanh: _activation("tanh"),
    functional.tanh: _activation("tanh"),
    torch.sin: _activation("sine"),
    functional.gelu: _read_gelu,
    functional.silu: _activation("silu"),
    torch.sigmoid: _activation("sigmoid"),
    functional.sigmoid: _activation("sigmoid"),
    functional.dropout: _activation("identity"),
    torch.flatten: _read_flatten,
    functional.softmax: _read_softmax,
    functional.log_softmax: _read_softmax,
    operator.mul: _read_product,
    torch.mul: _read_product,
    operator.add: _read_offset,
    operator.sub: _read_offset,
    torch.add: _read_offset,
}
_METHODS: dict[Any, Callable[[_Chain, fx.Node, Any], bool]] = {
    "relu": _activation("relu"),
    "tanh": _activation("tanh"),
    "sin": _activation("sine"),
    "sigmoid": _activation("sigmoid"),
    "flatten": _read_flatten,
    "view": _read_flatten,
    "reshape": _read_flatten,
    "softmax": _read_softmax,
    "log_softmax": _read_softmax,
    "mul": _read_product,
    "add": _read_offset,
}
