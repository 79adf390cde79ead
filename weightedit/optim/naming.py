"""Names for what a torch optimizer is given: a module, tensors, (name, tensor) pairs, or dictionaries of these.

An update rule knows parameters by their names in a wiring. Here: finding the names, wires for tensors that came alone,
and the refusal of tensors that are pieces of a parameter. What an optimizer does with them is optimizer.py's.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from weightedit.errors import ParamsError, WeightEditError
from weightedit.network.wiring import NeuronSet, Wire, Wiring


def paired(
    params: Any, names: Mapping[int, str], taken: Iterable[str], *, generate: bool = True
) -> list[tuple[str, Tensor]]:
    """(name, tensor) for everything in `params`.

    Args:
        params: one tensor, or an iterable of tensors and (name, tensor) pairs; not a set, whose order is not fixed.
        names: id of a tensor -> its name in the network; they come before the names in pairs.
        taken: names that other tensors of the optimizer have.
        generate: call tensors without a name parameter.N, instead of refusing them.

    Raises TypeError on anything else, ParamsError where a name is missing or would stand for two tensors, and for a
    complex tensor.
    """
    if isinstance(params, set | str):
        raise TypeError(f"got a {type(params).__name__} of parameters; expected a list, whose order stays: pass one.")
    found: dict[str, Tensor] = {}
    used = set(taken)
    for item in [params] if isinstance(params, Tensor) else params:
        given, tensor = (item[0], item[-1]) if isinstance(item, tuple) and item else (None, item)
        if not isinstance(tensor, Tensor):
            raise TypeError(f"got a {type(tensor).__name__} as a parameter; expected tensors or (name, tensor) pairs.")
        name = names.get(id(tensor), given)
        if name is None and not generate:
            raise ParamsError(
                f"got a parameter of shape {tuple(tensor.shape)} without a name; expected (name, tensor) pairs, so "
                "that it can be found in the wiring: pass pairs, or net=, the network that it belongs to."
            )
        name = name or f"parameter.{len(used)}"
        if name in used:
            raise ParamsError(f"got two parameters called {name!r}; expected one of each name: pass each tensor once.")
        if tensor.is_complex():
            raise ParamsError(f"{name} is complex; expected real numbers: give such parameters to another optimizer.")
        refuse_shard(name, tensor)
        used.add(name)
        found[name] = tensor
    return list(found.items())


def arranged(saved: list[dict[str, Any]], own: list[list[str]]) -> list[dict[str, Any]]:
    """Saved parameter groups in the order of an optimizer's own, if both name the same parameters; else as they are.

    Args:
        saved: of a state dict. Names are their `param_names`, or what stands as `params` where
            torch.distributed.checkpoint made them.
        own: the names in the optimizer's groups.

    Raises ParamsError where the same parameters are grouped in another way: a group's lr would belong to no group.
    """
    names = [_saved_names(group) for group in saved]
    if sorted(chain.from_iterable(names)) != sorted(chain.from_iterable(own)):
        return saved
    left, found = list(zip(names, saved, strict=True)), []
    for mine in own:
        place = next((i for i, (theirs, _) in enumerate(left) if sorted(theirs) == sorted(mine)), None)
        if place is None:
            raise ParamsError(
                f"got a state in which no group holds {', '.join(mine)} and nothing else; expected the same "
                "parameters in a group, since lr and weight_decay are a group's: make the optimizer with the groups "
                "that the saved one had; where an earlier version grouped them, go on with "
                "a fresh state."
            )
        theirs, group = left.pop(place)
        keys = dict(zip(theirs, group["params"], strict=True))
        found.append({**group, "params": [keys[name] for name in mine], "param_names": mine})
    return found + [group for _, group in left]


def refuse_strangers(saved: Any) -> None:
    """Raise ParamsError for what is no state dict of an optimizer, and where what it keeps is of no parameter in it.

    Keys are whole numbers; JSON and formats whose names are strings make others of them, and torch leaves out such a
    state without a word.
    """
    if not isinstance(saved, Mapping) or not {"state", "param_groups"} <= saved.keys():
        found = ", ".join(map(str, saved)) if isinstance(saved, Mapping) else f"a {type(saved).__name__}"
        raise ParamsError(
            f"got {found or 'nothing'} as the state of an optimizer; expected a dictionary of state and param_groups: "
            "load what state_dict() gave."
        )
    held = {key for group in saved["param_groups"] for key in group["params"]}
    if saved["state"] and held.isdisjoint(saved["state"]):
        came, expected = (", ".join(map(repr, keys)) for keys in (saved["state"], held))
        raise ParamsError(
            f"got a state for {came}; expected keys that stand as params in its groups, {expected}: keep them as "
            "state_dict() gave them."
        )


def _saved_names(group: Mapping[str, Any]) -> list[str]:
    keys, names = list(group["params"]), list(group.get("param_names", ()))
    if keys and all(isinstance(key, str) for key in keys):
        return keys
    return names if len(names) == len(keys) else []


def with_isolated(wiring: Wiring, tensors: Iterable[tuple[str, Tensor]]) -> Wiring:
    """`wiring` and a wire for each of `tensors` between sets of neurons of its own: no symmetry is claimed of them.

    A tensor with one axis becomes a bias, one with more a weight [targets, sources, kernel positions]; one without
    axes or elements gets no wire.
    """
    sets, wires = list(wiring.sets), list(wiring.wires)
    for name, tensor in tensors:
        if tensor.dim() == 0 or tensor.numel() == 0:
            continue
        ends = [NeuronSet(name, size, order=len(sets) + i) for i, size in enumerate(tensor.shape[:2])]
        target, source = len(sets), len(sets) + 1 if len(ends) == 2 else None
        kind = "bias" if source is None else "weight"
        wires.append(Wire(name, tuple(tensor.shape), kind, target, source, ends[-1].size if source else 1))
        sets += ends
    return Wiring(tuple(sets), tuple(wires), wiring.outside, wiring.notes)


def with_axis(tensor: Tensor) -> Tensor:
    """A number as a vector of one: wires have targets."""
    return tensor if tensor.dim() else tensor.reshape(1)


def refuse_shard(name: str, tensor: Tensor, wire: Wire | None = None) -> None:
    """Raise WeightEditError for a piece of a parameter (FSDP, tensor parallelism, ZeRO 3); for one resized."""
    shape = () if wire is None else wire.stored or wire.shape
    expected = "the whole parameter" if wire is None else f"the whole parameter, {'x'.join(map(str, shape))}"
    plain = type(tensor) in (nn.Parameter, Tensor)
    axes = tensor.dim() - len(shape)
    if plain and (wire is None or (axes in (0, 1) and tensor.shape[axes:] == shape)):
        return
    if plain and (tensor.dim() > 1 or tensor.numel() > math.prod(shape)):
        raise WeightEditError(
            f"got {name} of shape {tuple(tensor.shape)}; expected {tuple(shape)}, as it was when the network was read: "
            "after parameters are replaced or resized, make the optimizer anew."
        )
    if plain or _is_distributed(tensor) or hasattr(tensor, "_is_flat_param"):
        raise WeightEditError(
            f"got {name} as a {type(tensor).__name__} of shape {tuple(tensor.shape)}, a shard; expected {expected}, "
            "since an update rule reads the network as a graph: train with DDP instead of FSDP."
        )


def refuse_part(rule: str) -> None:
    """Raise WeightEditError inside a ZeroRedundancyOptimizer of several processes, for a rule that reads all gradients.

    Every process steps a part of the parameters there, and has the others' gradients as zero. Such an optimizer says
    nothing to the one that it makes, so it is looked for among the callers.
    """
    module = sys.modules.get("torch.distributed.optim.zero_redundancy_optimizer")
    frame = sys._getframe(1) if module is not None else None
    while module is not None and frame is not None:
        caller = frame.f_locals.get("self")
        count = getattr(caller, "world_size", 1) if isinstance(caller, module.ZeroRedundancyOptimizer) else 1
        if count > 1:
            raise WeightEditError(
                f"got {rule} in a ZeroRedundancyOptimizer of {count} processes, each with a part of the "
                "parameters; expected all of them, since it reads the gradients of the whole network: use "
                "LearnedOptimizer(net, rule) itself, with DDP."
            )
        frame = frame.f_back


def _is_distributed(tensor: Tensor) -> bool:
    if not torch.distributed.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)
