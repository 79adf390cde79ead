"""The core path of the library: parameters in, a proposed delta out, and the delta applied.

Editing and optimizing both end here. `propose_delta` builds the typed features and the neural graph, runs a metanetwork
and reads the delta back by name; `apply_delta` adds it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from weightedit.errors import ParamsError
from weightedit.graph.layout import graph_from_params
from weightedit.graph.neural_graph import NeuralGraph
from weightedit.graph.ragged import ragged_from_params
from weightedit.metanet.base import Metanetwork
from weightedit.network.features import DELTA, ChannelType, check_types
from weightedit.network.graph_spec import AnySpec, GraphSpec
from weightedit.network.spec import Params, check_finite, check_shapes


def propose_delta(
    metanet: Metanetwork,
    spec: AnySpec,
    params: Mapping[str, Tensor],
    extra: Sequence[tuple[ChannelType, Params]] = (),
    *,
    finite: bool = False,
) -> Params:
    """The delta that `metanet` proposes for one network, or for N stacked ones.

    Args:
        metanet: with types_out (DELTA,), or as many of them as a kernel has positions.
        spec: architecture of the networks.
        params: names and shapes of `spec`, with or without a leading axis N.
        extra: further typed features (gradients, moments), named and shaped as `params`.
        finite: the values of `params` are known to be finite; then none is read, and nothing waits for the device.

    Returns tensors of the names and shapes of `params`.
    Raises ParamsError on parameters that do not fit or are not finite, TypeMismatchError on wrong channel types,
    SpecError for a metanetwork that reads.
    """
    _check_edits(metanet, "propose_delta")
    count = check_shapes(spec.param_shapes(), params)
    if not finite:
        check_finite(params, count)
    if isinstance(spec, GraphSpec):
        graph = graph_from_params([(spec, params)], [extra]) if count is None else _graphs(spec, count, params, extra)
        deltas = metanet(graph).to_params()
        assert isinstance(deltas, list)
        return deltas[0] if count is None else {name: torch.stack([delta[name] for delta in deltas]) for name in params}
    delta = metanet(NeuralGraph.from_params(spec, params, extra)).to_params()
    assert isinstance(delta, dict)
    return delta


def _graphs(
    spec: GraphSpec, count: int, params: Mapping[str, Tensor], extra: Sequence[tuple[ChannelType, Params]]
) -> NeuralGraph:
    """The networks of a stack one after the other."""

    def one(values: Mapping[str, Tensor], i: int) -> Params:
        return {name: tensor[i] for name, tensor in values.items()}

    networks = [(spec, one(params, i)) for i in range(count)]
    return graph_from_params(networks, [[(kind, one(values, i)) for kind, values in extra] for i in range(count)])


def propose_deltas(metanet: Metanetwork, networks: Sequence[tuple[AnySpec, Mapping[str, Tensor]]]) -> list[Params]:
    """`propose_delta` for networks of different architectures in one ragged batch; one dict each, in order."""
    _check_edits(metanet, "propose_deltas")
    for spec, params in networks:
        spec.check_params(params)
    deltas = metanet(ragged_from_params(networks)).to_params()
    assert isinstance(deltas, list)
    return deltas


def _check_edits(metanet: Metanetwork, where: str) -> None:
    """One that reads has no types to check, and says itself what it is."""
    if not metanet.embedding:
        check_types(metanet.types_out, (DELTA,) * len(metanet.types_out or [0]), where)


def apply_delta(params: Mapping[str, Tensor], delta: Mapping[str, Tensor], *, inplace: bool = False) -> Params:
    """params + delta, by name.

    Args:
        params: any named tensors.
        delta: the same names and shapes.
        inplace: write into the tensors of `params` (under no_grad, storage kept) instead of making new ones.

    Raises ParamsError if names or shapes differ.
    """
    shapes, moves = ({name: tuple(t.shape) for name, t in tensors.items()} for tensors in (params, delta))
    if shapes != moves:
        differing = sorted(name for name in {**shapes, **moves} if shapes.get(name) != moves.get(name))
        listed = ", ".join(
            f"{name} {moves.get(name, 'missing')} for {shapes.get(name, 'none')}" for name in differing[:8]
        )
        raise ParamsError(
            f"got a delta whose tensors are {listed}; expected the names and shapes of the parameters. Use a delta "
            "that propose_delta made for these parameters."
        )
    if not inplace:
        return {name: tensor + delta[name] for name, tensor in params.items()}
    with torch.no_grad():
        for name, tensor in params.items():
            tensor.add_(delta[name].to(tensor))
    return dict(params)
