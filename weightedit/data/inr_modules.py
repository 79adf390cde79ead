"""INRs from networks in memory: named tensors such as a state dict, or a module.

Files are in inr_files.py; which names are understood is written in layer_names.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from weightedit.data.foreign_inrs import canonical_params, check_finite, stacked
from weightedit.data.layer_names import Rename
from weightedit.errors import ParamsError, SpecError
from weightedit.inr.convention import Convention
from weightedit.inr.stack import INRStack
from weightedit.network.ending import Encoding, Ending
from weightedit.network.spec import IDENTITY, Activation, NetworkSpec


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
    """An INR from a module: its layers in the order in which its forward runs them.

    The forward is captured, not run (network/program.py), and must be what the convention says: another activation,
    omega or end is found out. Its output may include the convention's offset, or not.

    Args:
        net: maps coordinates [P, inputs] to [P, outputs], or to these and the coordinates.
        convention: what inputs and outputs mean.
        height, width: of the fitted image in pixels.

    Returns:
        An INRStack of one INR, detached copies of the weights.

    Raises:
        ParamsError: no chain of layers, a layer without bias, or a module that computes something else.
    """
    name = type(net).__name__
    try:
        spec = NetworkSpec.from_module(net)
    except SpecError as error:
        raise ParamsError(f"got a {name} that is no INR: {error}") from None
    params, tensors = spec.params_of(net), {}
    for number, layer in enumerate(spec.layers):
        if layer.bias is None:
            raise ParamsError(
                f"layer {number} of the {name} ({layer.weight}) has no bias: expected one in every layer; give it a "
                "bias of zeros."
            )
        tensors[f"layers.{number}.weight"] = params[layer.weight].detach().clone()
        tensors[f"layers.{number}.bias"] = params[layer.bias].detach().clone()
    _check_functions(name, spec, convention)
    return from_tensors(tensors, convention, height, width)


def _check_functions(name: str, spec: NetworkSpec, convention: Convention) -> None:
    *hidden, last = convention.activations(spec.depth)
    found = [*(layer.activation for layer in spec.layers[:-1])]
    ends = () if last == IDENTITY else (Ending(last.name, last.parameter),)
    offset = (Ending("add", convention.offset),) if convention.offset else ()
    plain = not spec.encodings and all(layer.kernel is None for layer in spec.layers)
    if found == hidden and spec.endings in (ends, ends + offset) and plain:
        return
    raise ParamsError(
        f"got a {name} with {_listed(found)} after its hidden layers, {_listed(spec.endings)} after the last, and "
        f"{_listed(spec.encodings)} before the first; expected {_listed(hidden)}, {_listed(ends)} (with or without "
        f"{_listed(offset)}) and nothing, by {convention}: pass the right omega, activation, last and offset in the "
        "convention, or use from_tensors if this is intended."
    )


def _listed(parts: Sequence[Activation | Ending | Encoding]) -> str:
    if not parts:
        return "nothing"
    names = (f"{part.function} features" if isinstance(part, Encoding) else _named(part) for part in parts)
    return " and ".join(dict.fromkeys(names))


def _named(part: Activation | Ending) -> str:
    return f"{part.name} {part.parameter:g}" if part.parameter else part.name
