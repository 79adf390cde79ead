"""The program that a module's forward runs: the one thing that specs and wirings are read from.

The forward of a copy (stand_in.py) runs on tensors without data and is captured as ATen operations with
torch.fx.experimental.proxy_tensor.make_fx; torch.export would refuse forwards that assign attributes. So nothing of the
module changes, no parameter is copied or read, and what the forward draws at random or decides by its data is not seen:
the latter is an Unreadable forward. Hooks of the user do not run, and what they change is not seen either.
What the operations do to neurons is following.py's, which layers and levels they are drawing.py's.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.distributions import Distribution
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from weightedit.errors import SpecError
from weightedit.network.examples import BATCH, Inputs, as_inputs, guesses, pictures
from weightedit.network.stand_in import copied, random_states_kept


class Unreadable(Exception):
    """A forward that cannot be captured. Its text names the part."""


@dataclass(frozen=True)
class Program:
    """A captured forward.

    Attributes:
        net: whose forward it is; constants are read from its buffers.
        graph: of ATen operations; node.meta holds each one's result without data ("val") and its module ("module").
        names: of the placeholders that are parameters.
        buffers: names of those that are buffers.
        returned: how many outputs the forward returns; the rest it leaves in attributes, where a loss may read them.
    """

    net: nn.Module
    graph: fx.GraphModule
    names: dict[fx.Node, str]
    buffers: dict[fx.Node, str]
    returned: int

    @property
    def nodes(self) -> list[fx.Node]:
        """All operations, in their order."""
        return list(self.graph.graph.nodes)

    @property
    def outputs(self) -> list[fx.Node]:
        """What the forward returns, then what it leaves in attributes."""
        return list(self.nodes[-1].args[0])  # type: ignore[arg-type]


@dataclass(frozen=True)
class Call:
    """An operation: its name without overload, its arguments by name, those that it writes to, and its tags."""

    name: str
    given: dict[str, Any]
    written: tuple[str, ...]
    tags: frozenset[torch.Tag]


def called(node: fx.Node) -> Call | None:
    """What operation a node is; None for what has no schema (operator.getitem, functions of autograd)."""
    schema = getattr(node.target, "_schema", None) if node.op == "call_function" else None
    if schema is None:
        return None
    given = {argument.name: argument.default_value for argument in schema.arguments}
    given |= dict(zip(given, node.args, strict=False)) | dict(node.kwargs)
    written = (a.name for a in schema.arguments if a.alias_info and a.alias_info.is_write)
    return Call(schema.name.removeprefix("aten::"), given, tuple(written), frozenset(node.target.tags))  # type: ignore[union-attr]


def unwrapped(net: nn.Module) -> nn.Module:
    """The user's module inside DistributedDataParallel, DataParallel and torch.compile, whose names have no prefix."""
    while True:
        if isinstance(net, nn.parallel.DistributedDataParallel | nn.DataParallel):
            net = net.module
        elif isinstance(inner := getattr(net, "_orig_mod", None), nn.Module):
            net = inner
        else:
            return net


def check_made(net: nn.Module) -> None:
    """Raise SpecError where parameters of `net` have no shape yet."""
    lazy = next((name for name, p in net.named_parameters() if is_lazy(p)), None)
    if lazy is not None:
        raise SpecError(
            f"got {lazy} without a shape, as a lazy layer has it; expected parameters that are made: call the network "
            "on one batch first."
        )


def programs(net: nn.Module, inputs: Any = None) -> Iterator[Program]:
    """The program of `net` on inputs as given, or on each of the first set of guesses of which one runs.

    Raises Unreadable where there is none, with a text that is empty where no inputs are known.
    """
    fault, batch, takes = "", BATCH if inputs is None else None, cache(taker)
    for tried in guesses(net) if inputs is None else [[as_inputs(inputs)]]:
        found = False
        for one in tried:
            if fault and one[0] and not takes(net)(*one[0]):  # which costs less than another capture
                continue
            try:
                program = captured(net, one, batch)
            except Unreadable as error:
                fault = fault or f"{error}"
                continue
            found = True
            yield program
        if found:
            return
    if inputs is None:
        for x in filter(takes(net), pictures(net)):
            with suppress(Unreadable):
                yield captured(net, ((x,), {}), batch)
                return
    raise Unreadable(fault)


def taker(net: nn.Module) -> Callable[[Tensor], bool]:
    """Whether `net` takes one input of a shape, for many shapes: a copy runs on the meta device, which costs little."""
    try:
        with random_states_kept():
            twin = copied(net)
    except SpecError:
        return lambda x: False
    _prepare(twin, [])
    state = {name: t.detach().to("meta") for name, t in (*twin.named_parameters(), *twin.named_buffers())}
    for module in twin.modules():
        for key, value in vars(module).items():
            if isinstance(value, Tensor):
                vars(module)[key] = value.detach().to("meta")

    def takes(x: Tensor) -> bool:
        with random_states_kept(), torch.no_grad(), torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                found = torch.func.functional_call(twin, state, (x.to("meta"),))
            except Exception:  # whatever a foreign forward raises
                return False
        return all(out.shape[:1] == x.shape[:1] for out in _tensors(found))

    return takes


def captured(net: nn.Module, inputs: Inputs, batch: int | None = None) -> Program:
    """The program that `net` runs on inputs of these shapes.

    Raises Unreadable, also where `batch` is how many examples went in and another number comes out.
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
        leaves, tree = pytree.tree_flatten((tuple(inputs[0]), dict(inputs[1])))
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

        capture, fault = make_fx(forward, tracing_mode="fake", pre_dispatch=True, _allow_non_fake_inputs=True), None
        for attempt in range(2):
            try:
                with _quietly():
                    graph = capture(list(params.values()), list(buffers.values()), tensors)
                break
            except Exception as error:  # whatever a foreign forward raises
                where = inside[-1] if inside else type(net).__name__
                fault = fault or Unreadable(f"{where}{_why(error)}")
                inside.clear()
                if attempt or not _is_torchs(error) or not _settled(twin):
                    raise fault from error
    places = [node for node in graph.graph.nodes if node.op == "placeholder"]
    names = dict(zip(places, (named[id(p)] for p in params.values()), strict=False))
    if fault is not None and any(not node.users and params[names[node]].dim() > 1 for node in names):
        raise fault  # in training there is more of it
    program = Program(net, graph, names, dict(zip(places[len(names) :], buffers, strict=False)), returned)
    if not program.outputs:
        raise Unreadable(f"{type(net).__name__}, which returns no tensors")
    results = [node.meta.get("val") for node in program.outputs[:returned]]
    if batch is not None and any(isinstance(one, Tensor) and one.shape[:1] != (batch,) for one in results):
        raise Unreadable(f"{type(net).__name__}, whose examples are not told apart")
    for node in program.nodes:
        seen = node.meta.get("val")
        if isinstance(seen, Tensor) and not all(type(n) is int for n in seen.shape):
            raise Unreadable(f"{node.meta.get('module')}, which decides shapes by the values of tensors")
    return program


def _why(error: Exception) -> str:
    """What a user can do something about: errors of torch's own machinery say nothing to them."""
    if _is_torchs(error):
        return ", which decides by the values of tensors"
    if "dynamo-optimized" in f"{error}":
        return ", which calls a function that torch.compile made (compile the module instead)"
    line = next((line.strip() for line in f"{error}".splitlines() if line.strip()), "")
    return f", which raised {type(error).__name__}: {line.rstrip('.')}"


def _is_torchs(error: Exception) -> bool:
    """Whether torch's own machinery stopped, which only a decision by values makes it do."""
    return type(error).__module__.startswith("torch")


def _settled(twin: nn.Module) -> bool:
    """Leave out what is drawn in training, layers dropped at random among it; whether there is any.

    Statistics are those of a batch still: by those that were kept a scale would seem to matter.
    """
    drawn = [module for module in twin.modules() if module.training and not hasattr(module, "running_mean")]
    for module in drawn:
        module.training = False
    return bool(drawn)


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
        module.register_forward_pre_hook(lambda *_, label=label: (_sign(inside), inside.append(label))[1])
        module.register_forward_hook(lambda *_: (_sign(inside), inside.pop())[0])


def _sign(inside: list[str]) -> None:
    """Note on the operations that were captured last which module ran them."""
    from torch.fx.experimental.proxy_tensor import get_proxy_mode

    mode = get_proxy_mode()
    for node in reversed(mode.tracer.graph.nodes) if mode is not None else ():
        if "module" in node.meta:
            return
        node.meta["module"] = inside[-1] if inside else ""


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


def storage(node: fx.Node) -> int:
    """The memory that a node's result lies in."""
    return node.meta["val"].untyped_storage()._cdata
