"""What a step of an update rule holds in memory, found before it is taken: the step is run on tensors without numbers.

Also here: how what a step frees stays at hand.

Counted is every tensor that is alive at once, beside the parameters, their gradients, the rule and its state: what a
metanetwork makes per edge. Not counted is what a kernel needs for itself, and what is kept for gradients: of training a
rule, metatrain/memory.py tells.
"""

from __future__ import annotations

import logging
import os
import weakref
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from weightedit.errors import WeightEditError
from weightedit.network.spec import Params
from weightedit.network.wiring import Wiring

_LOG = logging.getLogger(__name__)
_SAID_FROM = 2**30  # bytes from which on a step is worth a line
_KEPT = 2**25 - 2**16  # bytes: nearly the most that glibc adapts to, its own header and alignment left out
_PARAMETERS = 50_000  # from which on a network is worth a look: what a step makes per parameter is below 20 kB


class Alive(TorchDispatchMode):
    """The bytes of the storages that were made inside and are alive, at most."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self.bytes = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = {storage._cdata for storage in _storages((args, tuple(kwargs.values())))} if _aliases(func) else ()
        out = self.called(func, args, kwargs)
        for storage in _storages(out):
            key, size = storage._cdata, storage.nbytes()
            if key not in given and key not in self.alive:  # else a view, or made outside
                self.alive[key] = weakref.ref(storage, lambda _, key=key, size=size: self._freed(key, size))
                self.bytes += size
        self.most = max(self.most, self.bytes)
        return out

    def called(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What an operation gives."""
        return func(*args, **kwargs)

    def _freed(self, key: int, size: int) -> None:
        del self.alive[key]
        self.bytes -= size


class _Shapes(Alive):
    """The same for tensors without numbers: what an operation makes of the same shapes twice is worked out once.

    Most of their kernels are Python, half a millisecond each, and a step is ten thousand operations on few shapes.
    """

    def __init__(self) -> None:
        super().__init__()
        self._known: dict[Any, Any] = {}

    def called(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if _aliases(func):
            return func(*args, **kwargs)
        key = (func, _shape_of(args), tuple(kwargs), _shape_of(tuple(kwargs.values())))
        if key not in self._known:
            out = func(*args, **kwargs)
            made = [out] if isinstance(out, Tensor) else out
            if isinstance(made, tuple | list) and all(isinstance(one, Tensor) and one.is_meta for one in made):
                kinds = [(one.shape, one.stride(), one.dtype) for one in made]
                self._known[key] = isinstance(out, Tensor), kinds
            return out
        single, made = self._known[key]
        found = [torch.empty_strided(shape, stride, dtype=dtype, device="meta") for shape, stride, dtype in made]
        return found[0] if single else tuple(found)


def _shape_of(given: Any) -> Any:
    """What the result of an operation depends on: shapes and dtypes of tensors, the rest as it is."""
    if isinstance(given, Tensor):
        return given.shape, given.stride(), given.dtype, given.is_meta
    return tuple(map(_shape_of, given)) if isinstance(given, tuple | list) else (type(given), given)


@cache
def _aliases(func: Any) -> bool:
    """Whether an operation writes into what it is given, or gives it back."""
    return func._schema.is_mutable or any(one.alias_info is not None for one in func._schema.returns)


def _storages(tree: Any) -> Iterator[torch.UntypedStorage]:
    if isinstance(tree, Tensor):
        yield tree.untyped_storage()
    elif isinstance(tree, tuple | list):
        for one in tree:
            yield from _storages(one)


def memory_of_step(rule: nn.Module, wiring: Wiring, params: Mapping[str, Tensor]) -> int:
    """The most bytes that are alive at once inside `rule.update`, without gradients, for parameters of these shapes.

    Args:
        rule: an UpdateRule with weights; none of its tensors is touched.
        wiring: of the network.
        params: one network or N stacked ones; only shapes and dtypes count.
    """
    own = {name: tensor.to("meta") for name, tensor in (*rule.named_parameters(), *rule.named_buffers())}
    shapes: Params = {name: torch.empty_like(tensor, device="meta") for name, tensor in params.items()}
    with torch.no_grad(), _Shapes() as alive:
        state = {
            name: {key: torch.empty(shape, dtype=dtype, device="meta") for key, (shape, dtype) in kept.items()}
            for name, kept in _kept(rule, wiring, shapes).items()
        }
        before = alive.bytes
        torch.func.functional_call(rule, own, (wiring, shapes, state, shapes))
    return alive.most - before


def tell_memory(rule: nn.Module, name: str, wiring: Wiring, params: Mapping[str, Tensor]) -> None:
    """Say in a line of the log what a step of `rule`, called `name`, will hold, where that is much.

    Raises:
        WeightEditError: it is more than the device has.
    """
    count, device = sum(tensor.numel() for tensor in params.values()), next(iter(params.values())).device
    if count < _PARAMETERS or device.type == "meta":
        return
    try:
        held = memory_of_step(rule, wiring, params)
    except (RuntimeError, NotImplementedError) as error:  # a model of somebody else's that looks at numbers
        _LOG.warning("What a step of %s holds for %d parameters cannot be told beforehand (%s).", name, count, error)
        return
    there = memory_there(device)
    if held > there:
        raise WeightEditError(
            f"got {count:,} parameters for {name}, of which a step would hold {held / 2**30:.1f} GiB; expected at most "
            f"the {there / 2**30:.1f} GiB of {device}: take a narrower metanetwork (node_width, edge_width, layers), "
            "fewer networks at once, or a rule that goes parameter by parameter (lean)."
        )
    if held > _SAID_FROM:
        _LOG.warning("A step of %s holds up to %.1f GiB for %d parameters.", name, held / 2**30, count)


def keep_freed(device: torch.device) -> None:
    """On a CPU, have the C library keep what a step frees; else it gives it back, and the next takes it page by page.

    glibc adapts to the largest block of its own that was freed, up to 32 MiB: smaller ones then come from the heap, of
    which twice as much stays when it is free (mallopt(3), M_MMAP_THRESHOLD). So one is taken and freed, untouched; up
    to 64 MiB stay with the process. With another C library nothing happens.
    """
    if device.type == "cpu":
        torch.empty(_KEPT, dtype=torch.uint8)


def memory_there(device: torch.device) -> int:
    """All bytes of a device's memory."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _kept(rule: Any, wiring: Wiring, params: Params) -> dict[str, dict[str, tuple[torch.Size, torch.dtype]]]:
    state = rule.init(wiring, params)
    return {name: {key: (tensor.shape, tensor.dtype) for key, tensor in kept.items()} for name, kept in state.items()}
