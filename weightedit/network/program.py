"""The program that a module's forward runs, and what it does to neurons.

The forward of a copy (stand_in.py) runs on tensors without data and is captured as ATen operations with
torch.fx.experimental.proxy_tensor.make_fx; torch.export would refuse forwards that assign attributes. So nothing of the
module changes, no parameter is copied or read, and what the forward draws at random or decides by its data is not seen:
the latter is an Unreadable forward. Hooks of the user do not run, and what they change is not seen either.
"""

from __future__ import annotations

import logging
import operator
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.distributions import Distribution
from torch.utils import _pytree as pytree

from weightedit.errors import SpecError
from weightedit.network.flow import Flow, Value
from weightedit.network.operations.table import apply
from weightedit.network.stand_in import copied, random_states_kept


class Unreadable(Exception):
    """A forward that cannot be captured. Its text names the part."""


def follow(
    flow: Flow, net: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], *, batch: int | None = None
) -> None:
    """Run `net` on inputs of the shapes of `args` and `kwargs` through `flow`: parameters, operations, outputs.

    Raises Unreadable, also where `batch` is how many examples went in and another number comes out.
    """
    graph, names, given, returned = _captured(net, args, kwargs)
    if batch is not None and any(shape[:1] != (batch,) for shape in list(_outputs(graph))[:returned]):
        raise Unreadable(f"{type(net).__name__}, whose examples are not told apart")
    _Follower(flow, names, given).run(graph)


def taker(net: nn.Module) -> Callable[[Tensor], bool]:
    """Whether `net` takes one input of a shape, for many shapes: a copy runs on the meta device, which costs little."""
    try:
        with random_states_kept():
            twin = copied(net)
    except SpecError:
        return lambda x: False
    _prepare(twin, [])
    state = {name: t.detach().to("meta") for name, t in (*twin.named_parameters(), *twin.named_buffers())}

    def takes(x: Tensor) -> bool:
        with random_states_kept(), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                found = torch.func.functional_call(twin, state, (x.to("meta"),))
            except Exception:  # whatever a foreign forward raises
                return False
        return all(out.shape[:1] == x.shape[:1] for out in _tensors(found))

    return takes


def _captured(
    net: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[fx.GraphModule, list[str], int, int]:
    """The captured forward, the names of its first inputs, which are parameters, and how many buffers follow.

    Last, how many of its outputs the forward returns; the others it leaves in attributes, where a loss may read them.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    named = {id(p): name for name, p in net.named_parameters()}
    inside: list[str] = []
    returned = 0
    with random_states_kept(), warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        try:
            twin = copied(net)
        except SpecError as error:
            raise Unreadable(f"{type(net).__name__}: {error}") from None
        _prepare(twin, inside)
        params = dict(twin.named_parameters())
        buffers = dict(twin.named_buffers())
        leaves, tree = pytree.tree_flatten((tuple(args), dict(kwargs)))
        device = next((p.device for p in params.values()), torch.device("cpu"))
        tensors = [torch.empty_like(leaf, device=device) for leaf in leaves if isinstance(leaf, Tensor)]

        def forward(own: list[Tensor], kept: list[Tensor], data: list[Tensor]) -> list[Tensor]:
            nonlocal returned
            left = iter(data)
            again = [next(left) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            args, kwargs = pytree.tree_unflatten(again, tree)
            state = {**dict(zip(params, own, strict=True)), **dict(zip(buffers, kept, strict=True))}
            found = list(_tensors(torch.func.functional_call(twin, state, args, kwargs)))
            returned = len(found)
            return found + list(_left(twin))

        capture = make_fx(forward, tracing_mode="fake", pre_dispatch=True, _allow_non_fake_inputs=True)
        try:
            with _quietly():
                graph = capture(list(params.values()), list(buffers.values()), tensors)
        except Exception as error:  # whatever a foreign forward raises
            where = inside[-1] if inside else type(net).__name__
            raise Unreadable(f"{where}{_why(error)}") from error
        if not list(_outputs(graph)):
            raise Unreadable(f"{type(net).__name__}, which returns no tensors")
    return graph, [named[id(p)] for p in params.values()], len(buffers), returned


def _why(error: Exception) -> str:
    """What a user can do something about: errors of torch's own machinery say nothing to them."""
    if type(error).__module__.startswith("torch"):
        return ", which decides by the values of tensors"
    if "dynamo-optimized" in f"{error}":
        return ", which calls a function that torch.compile made (compile the module instead)"
    line = next((line.strip() for line in f"{error}".splitlines() if line.strip()), "")
    return f", which raised {type(error).__name__}: {line}"


@contextmanager
def _quietly() -> Iterator[None]:
    """What fails is not logged, since it is only tried; and distributions do not look at the values they get."""
    checked = Distribution._validate_args
    logs = [logging.getLogger(f"torch.{name}") for name in ("_subclasses.fake_tensor", "__trace")]
    before = [log.disabled for log in logs]
    for log in logs:
        log.disabled = True
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(checked)
        for log, disabled in zip(logs, before, strict=True):
            log.disabled = disabled


def _prepare(twin: nn.Module, inside: list[str]) -> None:
    """Take the user's hooks and compiled wrappers off a copy, and note which of its modules is running."""
    for module in list(twin.modules()):
        for key, child in list(module._modules.items()):
            if isinstance(inner := getattr(child, "_orig_mod", None), nn.Module):
                module._modules[key] = inner
    for name, module in twin.named_modules():
        hooks = vars(module)
        for key in [key for key in hooks if key.endswith("_hooks") and isinstance(hooks[key], dict)]:
            hooks[key] = type(hooks[key])(
                (number, hook) for number, hook in hooks[key].items() if type(hook).__module__.startswith("torch.nn.")
            )
        for key in [key for key in hooks if "_hooks_" in key and isinstance(hooks[key], dict)]:
            hooks[key] = type(hooks[key])()
        label = f"{name} ({type(module).__name__})" if name else type(module).__name__
        module.register_forward_pre_hook(lambda *_, label=label: inside.append(label))
        module.register_forward_hook(lambda *_: inside.pop() and None)


def _tensors(output: Any, depth: int = 0) -> Iterator[Tensor]:
    """What a forward returns, but for caches of keys and values; also in dataclasses and distributions."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, nn.Module) or type(output).__name__.endswith("Cache") or depth > 8:
        return  # transformers' DynamicCache and its kin, which a tuple may hold, are no outputs either
    elif isinstance(output, Mapping):
        for key, part in output.items():
            if key != "past_key_values":
                yield from _tensors(part, depth + 1)
    elif isinstance(output, (list, tuple, set)):
        for part in output:
            yield from _tensors(part, depth + 1)
    else:
        yield from _tensors(getattr(output, "__dict__", {}), depth + 1)


def _left(twin: nn.Module) -> Iterator[Tensor]:
    """What a forward computed and left in attributes; not the weights that torch's hooks compute before it."""
    for module in twin.modules():
        computed = {getattr(hook, "name", None) for hook in module._forward_pre_hooks.values()}
        for key, part in vars(module).items():
            if key not in computed and isinstance(part, (Tensor, list, tuple, dict)):
                yield from (tensor for tensor in _tensors(part) if tensor.grad_fn is not None)


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


class _Follower:
    """Goes through a captured forward, node by node."""

    def __init__(self, flow: Flow, names: Sequence[str], buffers: int) -> None:
        self.flow = flow
        self.names = names
        self.buffers = buffers
        self.values: dict[fx.Node, Any] = {}
        self.stored: dict[int, list[fx.Node]] = {}  # by the storage that they lie in
        self.held: set[fx.Node] = set()  # parameters and buffers

    def run(self, graph: fx.GraphModule) -> None:
        inputs = iter(range(len(graph.graph.nodes)))
        for node in graph.graph.nodes:
            seen = node.meta.get("val")
            if node.op == "placeholder":
                self.values[node] = self._input(next(inputs), node)
            elif node.op == "get_attr":
                constant = getattr(graph, str(node.target), None)
                self.values[node] = self.flow.inert(constant.shape) if isinstance(constant, Tensor) else None
            elif node.op == "output":
                for value in pytree.tree_leaves(fx.map_arg(node.args, lambda n: self.values[n])):
                    if isinstance(value, Value):
                        self.flow.fix(value)
            else:
                self.values[node] = self._call(node)
            if isinstance(seen, Tensor):
                self.stored.setdefault(_storage(seen), []).append(node)

    def _input(self, place: int, node: fx.Node) -> Value:
        shape = tuple(node.meta["val"].shape)
        if place < len(self.names) + self.buffers:
            self.held.add(node)
        if place < len(self.names) and node.meta["val"].is_floating_point():
            return self.flow.parameter(self.names[place], shape)
        return self.flow.inert(shape)

    def _call(self, node: fx.Node) -> Any:
        if node.target is operator.getitem:
            whole: Any = self.values[node.args[0]]  # type: ignore[index]
            return whole[node.args[1]] if whole is not None else None
        get: Callable[[Any], Any] = lambda argument: fx.map_arg(argument, lambda n: self.values[n])  # noqa: E731
        out = _shapes(node.meta.get("val"))
        schema = getattr(node.target, "_schema", None)
        if schema is None:
            return self._unknown(get((node.args, node.kwargs)), out)
        given = dict(zip((argument.name for argument in schema.arguments), node.args, strict=False))
        given = {argument.name: argument.default_value for argument in schema.arguments} | given | dict(node.kwargs)
        arguments = {name: get(argument) for name, argument in given.items()}
        name = schema.name.removeprefix("aten::")
        pointwise = torch.Tag.pointwise in node.target.tags  # type: ignore[union-attr]
        written = [
            argument.name for argument in schema.arguments if argument.alias_info and argument.alias_info.is_write
        ]
        if not written:
            return apply(self.flow, name, arguments, out, pointwise=pointwise)
        return self._write(name, given, arguments, [given[key] for key in written], out, pointwise)

    def _write(
        self, name: str, given: Any, arguments: Mapping[str, Any], written: list[Any], out: Any, pointwise: bool
    ) -> Any:
        """An operation that writes to its input: what lies in the same memory has changed with it."""
        target = written[0]
        if not isinstance(target, fx.Node):
            return self._unknown(arguments, out)
        peers = self.stored.get(_storage(target.meta["val"]), [target])
        same = all(_place(peer.meta["val"]) == _place(target.meta["val"]) for peer in peers)
        if same and len(written) == 1 and name.endswith("_") and not self.held & set(peers):
            found = apply(self.flow, name.removesuffix("_"), arguments, out, pointwise=pointwise)
            self.values.update(dict.fromkeys(peers, found))
            return found
        return self._unknown([arguments, [self.values[peer] for peer in peers]], out)

    def _unknown(self, given: Any, out: Any) -> Any:
        values = [value for value in pytree.tree_leaves(given) if isinstance(value, Value)]
        return apply(self.flow, "", {"given": values}, out)


def _outputs(graph: fx.GraphModule) -> Iterator[tuple[int, ...]]:
    output = next(node for node in graph.graph.nodes if node.op == "output")
    for node in output.all_input_nodes:
        if isinstance(seen := node.meta.get("val"), Tensor):
            yield tuple(seen.shape)


def _shapes(seen: Any) -> Any:
    if isinstance(seen, Tensor):
        return tuple(seen.shape)
    if isinstance(seen, (list, tuple)) and any(isinstance(one, Tensor) for one in seen):
        return [tuple(one.shape) if isinstance(one, Tensor) else None for one in seen]
    return None


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _place(tensor: Tensor) -> tuple[Any, ...]:
    return tuple(tensor.shape), tensor.stride(), tensor.storage_offset()
