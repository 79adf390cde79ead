"""Inputs that a module's forward might take, where nobody gave one: shapes alone, from its first layer.

A guess counts only where the forward runs on it, and gives as many examples as came (a view to rows of a fixed length
also takes pictures of another size, and mixes them). Vectors and sequences of vectors are both tried where a linear
layer comes first: what is found must be the same.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
BATCH = 2
"""How many examples a guess has."""
_SIZES = (32, 28, 8, 64, 224, 16, 96, 128, 299)


def as_inputs(inputs: Any) -> Inputs:
    """(args, kwargs) of what a user calls one batch: a tensor, a tuple or list of arguments, or keywords."""
    if isinstance(inputs, tuple) and len(inputs) == 2 and isinstance(inputs[0], tuple) and isinstance(inputs[1], dict):
        return inputs
    if isinstance(inputs, dict) or hasattr(inputs, "keys"):
        return (), dict(inputs)
    return (tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)), {}


def guesses(net: nn.Module) -> Iterator[list[Inputs]]:
    """Sets of inputs to try in turn; the first set of which one runs decides."""
    if hasattr(net, "dummy_inputs") and hasattr(net, "main_input_name"):
        yield from _of_transformers(net)
        return
    if _required(net) == 1:
        yield from ([((x,), {}) for x in xs] for xs in _first(net))


def pictures(net: nn.Module) -> Iterator[Tensor]:
    """Inputs of all small sizes, for a module that begins with a convolution."""
    first = next((part for part in net.modules() if list(part.parameters(recurse=False))), None)
    if isinstance(first, (nn.Conv1d, nn.Conv2d)) and _required(net) == 1:
        like: Any = {"device": first.weight.device, "dtype": first.weight.dtype}
        for side in range(1, 65):
            yield torch.zeros(BATCH, first.in_channels, *[side] * len(first.kernel_size), **like)


def _required(net: nn.Module) -> int:
    try:
        parameters = list(inspect.signature(net.forward).parameters.values())
    except (TypeError, ValueError):
        return 0
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [p for p in parameters if p.default is p.empty and p.kind in kinds]
    variadic = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    return len(needed) or int(bool(variadic or any(p.kind in kinds for p in parameters)))


def _of_transformers(net: Any) -> Iterator[list[Inputs]]:
    """A batch of tokens or pictures, as the config has them."""
    device = next((p.device for p in net.parameters()), None)
    if net.main_input_name == "pixel_values":
        channels = getattr(net.config, "num_channels", 3)
        size = getattr(net.config, "image_size", None)
        for side in (size,) if isinstance(size, int) else _SIZES:
            yield [((), {"pixel_values": torch.zeros(BATCH, channels, side, side, device=device)})]
    given = {k: v[:BATCH].to(device) for k, v in net.dummy_inputs.items() if isinstance(v, Tensor)}
    yield [((), given)]
    yield [((), {"input_ids": torch.zeros(BATCH, 8, dtype=torch.long, device=device)})]


def _first(net: nn.Module) -> Iterator[list[Tensor]]:
    """By what the first layer, or the first parameter, reads; or the next two."""
    holding = ((module, own) for module in net.modules() if (own := list(module.parameters(recurse=False))))
    for module, own in islice(holding, 3):
        like: Any = {"device": own[0].device, "dtype": own[0].dtype}
        if not own[0].is_floating_point():
            continue
        if isinstance(module, nn.Embedding):
            yield [torch.zeros(BATCH, 8, dtype=torch.long, device=own[0].device)]
        elif isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            space = len(module.kernel_size)
            for side in _SIZES if space < 3 else _SIZES[:3]:
                yield [torch.zeros(BATCH, module.in_channels, *[side] * space, **like)]
        elif isinstance(module, (nn.RNNBase, nn.MultiheadAttention)):
            yield [torch.zeros(BATCH, 5, own[0].shape[1], **like)]
        elif isinstance(module, nn.Linear) or own[0].dim() == 2:
            size = module.in_features if isinstance(module, nn.Linear) else own[0].shape[1]
            yield [torch.zeros(BATCH, size, **like), torch.zeros(BATCH, 5, size, **like)]
            yield from ([torch.zeros(BATCH, channels, side, side, **like)] for channels, side in _pictures(size))
        elif own[0].dim() == 1 and len(own[0]) > 1:  # a normalization
            size = len(own[0])
            yield [torch.zeros(BATCH, size, **like), torch.zeros(BATCH, 5, size, **like)]
            yield from ([torch.zeros(BATCH, size, side, side, **like)] for side in _SIZES)
        elif own[0].dim() == 4:
            yield from ([torch.zeros(BATCH, own[0].shape[1], side, side, **like)] for side in _SIZES)
    for first in islice((p for p in net.parameters() if p.is_floating_point()), 1):
        for size in _coordinates(net):
            yield [torch.zeros(BATCH, size, device=first.device, dtype=first.dtype)]


def _coordinates(net: nn.Module) -> Iterator[int]:
    """How many inputs a module may have that begins with features of them: by its matrices of frequencies, or few."""
    yield from dict.fromkeys([n for b in net.buffers() if b.dim() == 2 for n in reversed(b.shape)] + [2, 3, 1])


def _pictures(size: int) -> Iterator[tuple[int, int]]:
    """Shapes of pictures of `size` numbers."""
    for channels in (1, 3):
        side = round((size / channels) ** 0.5)
        if side > 1 and channels * side * side == size:
            yield channels, side
