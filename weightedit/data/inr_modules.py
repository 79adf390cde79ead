"""INRs from networks in memory: named tensors such as a state dict, or a module.

Files are in inr_files.py; which names are understood is written in layer_names.py.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from weightedit.data.foreign_inrs import canonical_params, check_finite, stacked
from weightedit.data.layer_names import Rename
from weightedit.errors import ParamsError
from weightedit.inr.convention import Convention
from weightedit.inr.siren import raw_outputs
from weightedit.inr.stack import INRStack


def from_tensors(
    tensors: Mapping[str, Tensor], convention: Convention, height: int, width: int, *, rename: Rename | None = None
) -> INRStack:
    """INRs from named tensors, such as a state dict.

    Args:
        tensors: weights [(N,) out, in] and biases [(N,) out], named as net.state_dict() names them, in any order.
        convention: what inputs and outputs mean.
        height, width: of the fitted image in pixels.
        rename: which of them are which layers, see inr_files.load_inrs.

    Returns:
        An INRStack of N INRs, 1 without a leading axis; the tensors are detached, not copied.

    Raises:
        ParamsError: names or shapes that are no network, or values that are NaN or infinite.
    """
    params = stacked(canonical_params(tensors, rename))
    check_finite(params)
    return INRStack(params, convention, height, width)


def from_module(net: nn.Module, convention: Convention, height: int, width: int) -> INRStack:
    """An INR from a module: every submodule with a two-dimensional weight, in the order of registration.

    The module is run on a few coordinates and must agree with the SIREN read from it, so another activation, order or
    omega is found out. Its output may include the convention's offset, or not.

    Args:
        net: maps coordinates [P, inputs] to [P, outputs] (or to a tuple that starts with it).
        convention: what inputs and outputs mean.
        height, width: of the fitted image in pixels.

    Returns:
        An INRStack of one INR, detached copies of the weights.

    Raises:
        ParamsError: no such layers, a layer without bias, or a module that computes something else.
    """
    layers = [part for part in net.modules() if _is_matrix(getattr(part, "weight", None))]
    tensors = {}
    for number, layer in enumerate(layers):
        weight, bias = layer.weight, getattr(layer, "bias", None)
        if not isinstance(weight, Tensor) or not isinstance(bias, Tensor):
            raise ParamsError(
                f"layer {number} of the {type(net).__name__} ({layer}) has no bias: expected one in every layer; give "
                "it a bias of zeros."
            )
        tensors[f"layers.{number}.weight"] = weight.detach().clone()
        tensors[f"layers.{number}.bias"] = bias.detach().clone()
    stack = from_tensors(tensors, convention, height, width)
    _check_module(net, stack)
    return stack


def _is_matrix(weight: object) -> bool:
    return isinstance(weight, Tensor) and weight.dim() == 2


def _check_module(net: nn.Module, stack: INRStack) -> None:
    first = stack.params["layers.0.weight"]
    inputs = first.shape[-1]
    places = torch.linspace(-1.0, 1.0, 8 * inputs, dtype=first.dtype, device=first.device).reshape(8, inputs)
    with torch.no_grad():
        expected = raw_outputs(stack.params, places, stack.convention)[0]
        output = net(places)
    output = output[0] if isinstance(output, tuple) and output else output
    if isinstance(output, Tensor) and output.shape == expected.shape:
        bound = 1e-3 * (1.0 + expected.abs().max())
        if any((output - expected - offset).abs().max() <= bound for offset in (0.0, stack.convention.offset)):
            return
    raise ParamsError(
        f"{type(net).__name__} does not compute what its layers of widths {stack.widths} give under {stack.convention}"
        ": expected these functions after its layers, registered in order; pass the right omega, activation and last "
        "in the convention, or use from_tensors if this is intended."
    )
