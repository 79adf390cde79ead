"""What every ATen operation does to axes and factors: one table of readers, by name.

A reader gets the flow, the operation's arguments by name, and the shapes of what it returns; it gives the values that
it returns, or None where it does not know. What no reader knows is fixed: no permutation, no factor for anything that
goes in. An operation whose every input is fixed already gives fixed values, and elementwise ones (torch.Tag.pointwise)
keep the axes and lose the factors, so that the table holds only what keeps more than that.
Formulas: symmetry.md section 1; attention, gated layers, recurrent cells and products of axes are ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from weightedit.network.flow import FLIP, LINEAR, NOTHING, SCALE, Flow, Value
from weightedit.network.operations.attention import (
    attention,
    recurrent,
)
from weightedit.network.operations.elementwise import (
    activation,
    add,
    cast,
    elementwise,
    prelu,
    product,
    quotient,
    same,
    sine,
    softmax,
)
from weightedit.network.operations.kinds import Reader
from weightedit.network.operations.layers import (
    addmm,
    batch_norm,
    bmm,
    convolution,
    einsum,
    embedding,
    group_norm,
    layer_norm,
    linear,
    matmul,
    transposed,
    weight_norm,
)
from weightedit.network.operations.shapes import (
    cat,
    drawn,
    expand,
    filled,
    glu,
    pad,
    permute,
    pieces,
    pool,
    reduction,
    reshape,
    select,
    slice,
    stack,
    transpose,
    unbind,
)


def apply(flow: Flow, name: str, arguments: Mapping[str, Any], out: Any, *, pointwise: bool = False) -> Any:
    """What an operation returns.

    Args:
        flow: the reading.
        name: of the operation, without overload and underscore.
        arguments: by name, Values in place of tensors, also in lists.
        out: shapes of the returned tensors: one, a list, or None where nothing is returned.
        pointwise: whether it is elementwise.
    """
    given = [value for value in _flat(arguments.values()) if isinstance(value, Value)]
    reader = READERS.get(name)
    if out is None:
        return None
    if name not in _MADE and all(_is_inert(flow, value) for value in given):
        return _inert(flow, out)
    found = None
    if reader is not None:
        found = reader(flow, arguments, out)
    elif pointwise and not isinstance(out, list):
        found = elementwise(flow, {f"{i}": value for i, value in enumerate(given)}, out)
    if found is None:
        for value in given:
            flow.fix(value)
        return _inert(flow, out)
    return found


def _flat(values: Iterable[Any]) -> Iterable[Any]:
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from _flat(value)
        else:
            yield value


def _is_inert(flow: Flow, value: Value) -> bool:
    plain = value.loose is None and value.normed is None and value.set is None
    return plain and all(flow.axes.is_frozen(atoms) for atoms in value.dims)


def _inert(flow: Flow, out: Any) -> Any:
    return [None if one is None else flow.inert(one) for one in out] if isinstance(out, list) else flow.inert(out)


def _all(names: str, reader: Reader) -> dict[str, Reader]:
    return dict.fromkeys(names.split(), reader)


_FILLED = "zeros ones full empty zeros_like ones_like full_like empty_like new_zeros new_ones new_full new_empty"
_DRAWN = "rand randn rand_like randn_like randint randperm"
_MADE = {*_FILLED.split(), *_DRAWN.split()}  # of nothing but a shape
READERS: dict[str, Reader] = {
    **_all(_FILLED, filled),
    **_all(_DRAWN, drawn),
    **_all("clone contiguous detach alias type_as lift_fresh_copy lift_fresh positive float", same),
    **_all("dropout feature_dropout native_dropout neg requires_grad _conj resolve_conj", same),
    **_all("to _to_copy", cast),
    **_all("relu leaky_relu", activation(SCALE)),
    **_all("tanh erf atan asin sinh asinh tan atanh softsign hardshrink softshrink", activation(FLIP)),
    "sin": sine,
    "prelu": prelu,
    **_all("where masked_fill clamp clip", elementwise),  # not tagged in every overload
    **_all("add sub", add),
    "mul": product,
    **_all("div true_divide", quotient),
    "linear": linear,
    **_all("matmul mm mv dot", matmul),
    "bmm": bmm,
    **_all("addmm baddbmm", addmm),
    "einsum": einsum,
    **_all("conv1d conv2d conv3d convolution", convolution),
    **_all("conv_transpose1d conv_transpose2d conv_transpose3d", transposed),
    "embedding": embedding,
    "_weight_norm": weight_norm,
    **_all("layer_norm rms_norm", layer_norm),
    **_all("batch_norm instance_norm", batch_norm),
    "group_norm": group_norm,
    **_all("softmax log_softmax _softmax _log_softmax softmin", softmax),
    "scaled_dot_product_attention": attention,
    "lstm": recurrent(4),
    "gru": recurrent(3),
    **_all("rnn_tanh rnn_relu", recurrent(1)),
    **_all("view reshape _unsafe_view flatten unflatten unsqueeze squeeze ravel", reshape),
    **_all("view_as reshape_as _reshape_alias", reshape),
    **_all("expand expand_as broadcast_to", expand),
    **_all("transpose t swapaxes swapdims numpy_T mT adjoint", transpose),
    "permute": permute,
    **_all("split split_with_sizes chunk tensor_split unsafe_chunk unsafe_split", pieces),
    **_all("slice narrow", slice),
    "select": select,
    "unbind": unbind,
    "glu": glu,
    **_all("cat concat concatenate", cat),
    "stack": stack,
    **_all("pad constant_pad_nd", pad),
    **_all("mean sum", reduction(LINEAR)),
    **_all("amax amin max min", reduction(SCALE)),
    **_all("var std norm linalg_vector_norm logsumexp all any prod", reduction(NOTHING)),
}  # fmt: skip
_POOLS = {
    LINEAR: "avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d "
    "upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d "
    "upsample_bicubic2d upsample_trilinear3d",
    SCALE: "max_pool1d max_pool2d max_pool3d max_pool1d_with_indices max_pool2d_with_indices "
    "max_pool3d_with_indices adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d",
}
READERS |= {name: pool(name, group) for group, names in _POOLS.items() for name in names.split()}
