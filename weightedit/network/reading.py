"""Reading the wiring of any module: which axis of which parameter runs over which neurons, and what those may carry.

By the program that its forward runs on inputs of given, remembered or guessed shapes (program.py, examples.py); and
where that cannot be had, every parameter is read alone, without symmetry. A wiring claims only what the program shows,
and its notes say what is missing. Nothing of the module changes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from weightedit.network.examples import Inputs
from weightedit.network.flow import Flow
from weightedit.network.following import follow
from weightedit.network.operations.table import apply
from weightedit.network.program import Program, Unreadable, called, check_made, programs, unwrapped
from weightedit.network.wiring import Wiring

_TABLES = (nn.Embedding, nn.EmbeddingBag, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class Reading:
    """A wiring, and whether inputs would have made more of it."""

    wiring: Wiring
    waits: bool = False


class FirstInputs:
    """Remembers of what shapes the inputs of a module's next forward are, and takes its hook off again.

    Attributes:
        inputs: (args, kwargs) with tensors without data; None before there was a forward.
    """

    def __init__(self, net: nn.Module) -> None:
        self.inputs: Inputs | None = None
        self._handle = net.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, net: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.compiler.is_compiling():  # a forward that is being compiled stays as it is
            return
        self.inputs = shapes_of((args, kwargs))
        self.remove()

    def remove(self) -> None:
        """Take the hook off."""
        self._handle.remove()


def shapes_of(inputs: Any) -> Any:
    """Inputs in any nest, with tensors without data in place of theirs."""
    return pytree.tree_map_only(torch.Tensor, _alike, inputs)


def _alike(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


def wiring_of(net: nn.Module, inputs: Any = None) -> Wiring:
    """The wiring of `net`.

    Args:
        net: any module.
        inputs: one batch that its forward takes, of which only shapes matter: a tensor, a tuple of arguments, or a
            dictionary of keywords. None: they are guessed from the first layer. Tensors on the meta device stand for
            those on the device of the network.
    """
    return read(net, inputs).wiring


def read(net: nn.Module, inputs: Any = None) -> Reading:
    """As `wiring_of`, with what else there is to say."""
    net = unwrapped(net)
    check_made(net)
    shapes = {name: tuple(p.shape) for name, p in net.named_parameters() if p.is_floating_point()}
    rest = tuple(name for name, p in net.named_parameters() if not p.is_floating_point())
    found = _in_turn(net, inputs, shapes) if shapes else Reading(Wiring((), ()))
    wiring = replace(found.wiring, outside=found.wiring.outside + rest)
    return replace(found, wiring=wiring)


def _in_turn(net: nn.Module, inputs: Any, shapes: dict[str, tuple[int, ...]]) -> Reading:
    fault = ""
    try:
        found = []
        for program in programs(net, inputs):
            found.append(wiring_of_program(program))
            if _rank_free(program):
                break
        if all(other == found[0] for other in found[1:]):
            return Reading(found[0])
    except Unreadable as error:
        fault = f"{error}"
    alone = _by_layer(net, shapes)
    if inputs is None:
        note = (
            f"{type(net).__name__} is read layer by layer, without the symmetries that join its layers, since no "
            "inputs are known; pass inputs=, one batch that its forward takes."
        )
    else:
        note = (
            f"{type(net).__name__} is read layer by layer, without the symmetries that join its layers, since its "
            f"forward cannot be followed without data: it stops in {fault}. Mend that part, or go on: every layer is "
            "optimized all the same."
        )
    return Reading(replace(alone, notes=(note,)), waits=inputs is None)


def _rank_free(program: Program) -> bool:
    """Whether every operation acts on the last axis or on each entry, so that sequences show no more than vectors."""
    calls = [called(node) for node in program.nodes if node.op == "call_function"]
    return all(call is not None and (torch.Tag.pointwise in call.tags or call.name in _LAST) for call in calls)


_LAST = ("linear", "dropout", "layer_norm", "clone", "contiguous", "detach")


def wiring_of_program(program: Program) -> Wiring:
    """What the operations of a program do to neurons."""
    flow, net = Flow(), program.net
    follow(flow, program)
    shapes = {name: tuple(p.shape) for name, p in net.named_parameters() if p.is_floating_point()}
    return flow.finish(shapes, _targets(net))


def _targets(net: nn.Module) -> dict[str, int]:
    """The axis of targets of parameters whose first one is that of sources."""
    found = {}
    for name, part in net.named_modules():
        if isinstance(part, _TABLES) or type(part).__name__ == "Conv1D":
            found[f"{name}.weight".removeprefix(".")] = 1
    return found


def _by_layer(net: nn.Module, shapes: dict[str, tuple[int, ...]]) -> Wiring:
    """Every layer between neurons of which nothing is known."""
    flow, names = Flow(), {id(p): name for name, p in net.named_parameters()}
    for part in net.modules():
        kind = next((op for known, op in _ALONE.items() if isinstance(part, known)), None)
        own = {key: p for key, p in part.named_parameters(recurse=False) if key in ("weight", "bias")}
        weight = own.get("weight")
        if kind is None or weight is None or any(id(p) not in names for p in own.values()):
            continue
        if not all(p.is_floating_point() for p in own.values()):
            continue
        if any(names[id(p)] in flow.params for p in own.values()):  # tied
            continue
        given: dict[str, Any] = {key: flow.parameter(names[id(p)], p.shape) for key, p in own.items()}
        outputs, groups = len(weight), getattr(part, "groups", 1)
        inputs = outputs if weight.dim() == 1 else weight.shape[1] * groups
        if kind == "embedding":
            given |= {"indices": flow.inert((2,))}
            flow.fix(apply(flow, kind, given, (2, weight.shape[1])))
            continue
        given |= {"input": flow.inert((2, inputs, *[1] * (weight.dim() - 2)))}
        given |= {"normalized_shape": weight.shape, "num_groups": getattr(part, "num_groups", 1), "groups": groups}
        flow.fix(apply(flow, kind, given, (2, outputs, *[1] * (weight.dim() - 2))))
    return flow.finish(shapes, _targets(net))


_ALONE: dict[Any, str] = {
    nn.Linear: "linear",
    nn.Embedding: "embedding",
    (nn.Conv1d, nn.Conv2d, nn.Conv3d): "convolution",
    (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d): "batch_norm",
    nn.LayerNorm: "layer_norm",
    nn.GroupNorm: "group_norm",
}
