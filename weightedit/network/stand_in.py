"""A stand-in for a module: what is run in its place, so that reading a network changes nothing of it.

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
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from weightedit.errors import SpecError


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
