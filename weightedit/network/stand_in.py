"""A stand-in for a module: what is traced in its place, so that reading a network changes nothing of it.

A forward may do anything: count its calls, keep a hidden state, draw random numbers, move running statistics. So it
runs on a copy, which shares the parameters and nothing else, without hooks (so that what a hook changes is not seen,
nor what that does to a symmetry); and random states are put back.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from weightedit.errors import SpecError


@contextmanager
def stand_in(net: nn.Module) -> Iterator[nn.Module]:
    """A copy of `net` with its parameters (the same objects), and with buffers, submodules and attributes of its own.

    Inside the context, what writes to a parameter raises SpecError; at its end parameters have the data and torch,
    NumPy and Python the random states that they had. An attribute that cannot be copied is shared.
    """
    kept = [(parameter, parameter.data) for parameter in net.parameters()]
    with random_states_kept():
        twin = copied(net)
        try:
            with _Unwritten(kept):
                yield twin
        finally:
            for parameter, data in kept:
                if _address(parameter) != _address(data):
                    parameter.data = data


class Tracer(fx.Tracer):
    """torch.fx's, but it calls no hooks."""

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """As torch's, with the module's forward alone."""
        return super().call_module(m, m.forward, args, kwargs)


def copied(net: nn.Module) -> nn.Module:
    shared = {id(parameter): parameter for parameter in net.parameters()}
    with _Detached():
        try:
            return copy.deepcopy(net, dict(shared))
        except Exception:  # of an attribute, whatever it is: a lock, a file, a generator
            attributes = (value for module in net.modules() for value in vars(module).values())
            shared |= {id(value): value for value in attributes if not _may_becopied(value, shared)}
        try:
            return copy.deepcopy(net, dict(shared))
        except Exception as error:
            raise SpecError(
                f"{type(net).__name__} cannot be copied ({type(error).__name__}: {error}), and is not read; expected a "
                "module that copy.deepcopy copies: mend its __deepcopy__, or pass the wiring."
            ) from None


def _may_becopied(value: Any, shared: dict[int, Any]) -> bool:
    """Whether it can, or must, as a module's dictionary of submodules."""
    if isinstance(value, Tensor):  # which may be large, and are copied once, later
        return True
    try:
        copy.deepcopy(value, dict(shared))
    except Exception:
        return isinstance(value, dict) and any(isinstance(part, nn.Module) for part in value.values())
    return True


class _Detached(TorchFunctionMode):
    """Copies tensors that autograd knows, as a forward may have left them, which torch refuses to copy."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            tensor, memo = args
            return memo.setdefault(id(tensor), tensor.detach().clone())
        return func(*args, **(kwargs or {}))


class _Unwritten(TorchDispatchMode):
    """Refuses every operation that writes to the tensors `kept`."""

    def __init__(self, kept: list[tuple[nn.Parameter, Tensor]]) -> None:
        super().__init__()
        self.kept = {_address(data) for _, data in kept} - {0}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for i, argument in enumerate(func._schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            given = args[i] if i < len(args) else kwargs.get(argument.name)
            if any(isinstance(one, Tensor) and _address(one) in self.kept for one in tree_leaves(given)):
                raise SpecError(
                    f"got a forward that writes to a parameter ({func}); expected one that only reads them: write to "
                    "buffers instead."
                )
        return func(*args, **kwargs)


def _address(tensor: Tensor) -> int:
    """Where a tensor's numbers lie; 0 where it has none yet, or none of its own."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError, ValueError):
        return 0


@contextmanager
def random_states_kept() -> Iterator[None]:
    python, array, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(array)
        torch.set_rng_state(cpu)
        if devices is not None:
            torch.cuda.set_rng_state_all(devices)
