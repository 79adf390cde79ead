"""The judges: assertions that a map respects a network's symmetry. They ship, so that users can test their own.

The protocol is symmetry.md section 5: random elements, never the identity, scales log-uniform over [1e-2, 1e2], errors
relative to the size of each tensor by itself, and an output that does depend on its input. `tests/test_testing.py`
holds the judges to account with maps that are wrong.

Every description of a network is judged: chains (NetworkSpec), networks with residual additions and normalizations
(GraphSpec), and whatever a Wiring claims of any other module, permutations of attention heads among it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from weightedit.network.features import DELTA, PARAMETER, ChannelType
from weightedit.network.graph_spec import AnySpec
from weightedit.network.spec import Params, Symmetry, check_finite, check_shapes
from weightedit.network.symmetry import act, random_element
from weightedit.network.wiring import Wiring

_ELEMENTS = 4
_Move = Callable[[Params, ChannelType], Params]  # tensors of a type, under one element of the group


def equivariance_error(
    function: Callable[[Params], Params],
    spec: AnySpec | Wiring,
    params: Mapping[str, Tensor],
    *,
    symmetry: Symmetry = "full",
    kind: ChannelType = DELTA,
    seed: int = 0,
) -> dict[str, float]:
    """Per tensor, the largest of |f(g p) - g f(p)| / |g f(p)| (root mean squares) over several random elements g.

    Args:
        function: parameters in; deltas out (`kind` DELTA: errors are relative to the delta, not hidden behind the
            weights), or parameters out (PARAMETER).
        spec: architecture of `params`; a Wiring (reading.wiring_of) where it is neither a chain nor a graph. Parameters
            outside a wiring stay as they are, and phases of sines are drawn for specs alone.
        params: one network or N stacked ones (then each network gets its own element; of a wiring, its own factors).
        symmetry: part of the group to draw from.
        kind: type of the output.
        seed: of the random elements.
    """
    plain, errors = _values(function(dict(params))), dict.fromkeys(params, 0.0)
    for move, moved in _elements(spec, params, symmetry, seed):
        expected, got = move(plain, kind), _values(function(moved))
        for name in errors:
            size, difference = (
                expected[name].square().mean().sqrt(),
                (got[name] - expected[name]).square().mean().sqrt(),
            )
            errors[name] = max(errors[name], _ratio(float(difference), float(size)))
    return errors


def invariance_error(
    function: Callable[[Params], Tensor],
    spec: AnySpec | Wiring,
    params: Mapping[str, Tensor],
    *,
    symmetry: Symmetry = "full",
    seed: int = 0,
) -> float:
    """The largest of |f(g p) - f(p)| / |f(p)| (root mean squares) over several random elements g."""
    plain, worst = function(dict(params)).detach(), 0.0
    for _, moved in _elements(spec, params, symmetry, seed):
        difference = function(moved).detach() - plain
        worst = max(worst, _ratio(float(difference.square().mean().sqrt()), float(plain.square().mean().sqrt())))
    return worst


def assert_equivariant(
    function: Callable[[Params], Params],
    spec: AnySpec | Wiring,
    params: Mapping[str, Tensor],
    *,
    symmetry: Symmetry = "full",
    kind: ChannelType = DELTA,
    tolerance: float | None = None,
    seed: int = 0,
) -> None:
    """Raise AssertionError unless `function` is equivariant on `params`, tensor by tensor, and depends on them.

    Args: as `equivariance_error`; `tolerance` defaults to 1e-10 in float64 and 1e-4 in float32.
    """
    _assert_depends(lambda p: torch.cat([t.flatten() for t in function(p).values()]), params)
    errors = equivariance_error(function, spec, params, symmetry=symmetry, kind=kind, seed=seed)
    tolerance = _tolerance(params, tolerance)
    failed = {name: error for name, error in errors.items() if not error < tolerance}
    if failed:
        shown = ", ".join(f"{name}: {error:.1e}" for name, error in failed.items())
        raise AssertionError(
            f"not equivariant under symmetry {symmetry!r}, relative errors {shown}; expected below {tolerance:.0e}."
        )


def assert_invariant(
    function: Callable[[Params], Tensor],
    spec: AnySpec | Wiring,
    params: Mapping[str, Tensor],
    *,
    symmetry: Symmetry = "full",
    tolerance: float | None = None,
    seed: int = 0,
) -> None:
    """Raise AssertionError unless `function` is invariant on `params` and depends on them; see `assert_equivariant`."""
    _assert_depends(function, params)
    error, tolerance = (
        invariance_error(function, spec, params, symmetry=symmetry, seed=seed),
        _tolerance(params, tolerance),
    )
    if not error < tolerance:
        raise AssertionError(
            f"not invariant under symmetry {symmetry!r}, relative error {error:.1e}; expected below {tolerance:.0e}."
        )


def _elements(
    spec: AnySpec | Wiring, params: Mapping[str, Tensor], symmetry: Symmetry, seed: int
) -> Iterator[tuple[_Move, Params]]:
    """Random elements that do change `params`, each with the parameters it makes of them."""
    generator, found = torch.Generator().manual_seed(seed), 0
    for _ in range(8 * _ELEMENTS):
        if isinstance(spec, Wiring):
            move = _of_wiring(spec, params, symmetry, generator)
        else:
            move = _of_spec(spec, params, symmetry, generator)
        moved = move(dict(params), PARAMETER)
        if all(torch.equal(moved[name], params[name]) for name in params):
            continue
        yield move, moved
        found += 1
        if found == _ELEMENTS:
            return
    if not found:
        raise AssertionError(
            f"symmetry {symmetry!r} of this network holds no element but the identity; expected a network on which "
            "something can be tested. Make its hidden layers wider."
        )


def _of_spec(spec: AnySpec, params: Mapping[str, Tensor], symmetry: Symmetry, generator: torch.Generator) -> _Move:
    count, dtype = check_shapes(spec.param_shapes(), params), next(iter(params.values())).dtype
    check_finite(params, count)
    element = random_element(spec, generator, symmetry=symmetry, count=count, dtype=dtype)
    return lambda tensors, kind: act(element, spec, tensors, kind)


def _of_wiring(wiring: Wiring, params: Mapping[str, Tensor], symmetry: Symmetry, generator: torch.Generator) -> _Move:
    def arranged(tensors: Mapping[str, Tensor]) -> Params:
        return {wire.name: wire.arranged(tensors[wire.name]) for wire in wiring.wires}

    check_finite(params, None)
    lead, places = wiring.lead(arranged(params)), wiring.permutations(generator)
    scales, flips = [], []
    for neurons in wiring.sets:
        group, shape = neurons.group.restricted(symmetry), (*lead, neurons.size)
        uniform = 2 * torch.rand(2, *shape, generator=generator, dtype=torch.float64) - 1
        scales.append(100 ** uniform[0] if group.scale else torch.ones(shape, dtype=torch.float64))
        flips.append(uniform[1].sign() if group.flip else torch.ones(shape, dtype=torch.float64))

    def move(tensors: Params, kind: ChannelType) -> Params:
        own = wiring.permuted(arranged(tensors), places)
        like = next(iter(own.values()))
        signs = flips if kind.odd else [flip.abs() for flip in flips]
        own = wiring.rescaled(own, [(q**kind.scale * s).to(like) for q, s in zip(scales, signs, strict=True)])
        return {**tensors, **{wire.name: wire.restored(own[wire.name]) for wire in wiring.wires}}

    return move


def _values(params: Mapping[str, Tensor]) -> Params:
    return {name: tensor.detach() for name, tensor in params.items()}


def _tolerance(params: Mapping[str, Tensor], tolerance: float | None) -> float:
    if tolerance is not None:
        return tolerance
    return 1e-10 if next(iter(params.values())).dtype == torch.float64 else 1e-4


def _ratio(difference: float, size: float) -> float:
    if not math.isfinite(difference):
        return math.inf
    return difference / size if size > 0 else (0.0 if difference == 0 else math.inf)


def _assert_depends(function: Callable[[Params], Tensor], params: Mapping[str, Tensor]) -> None:
    """A constant is invariant to anything: the output must move with the input, beyond rounding."""
    generator = torch.Generator().manual_seed(1)
    noise = {name: torch.randn(t.shape, generator=generator, dtype=t.dtype).to(t.device) for name, t in params.items()}
    sizes = {name: float(t.square().mean().sqrt()) or 1.0 for name, t in params.items()}
    other = {name: t + 0.1 * sizes[name] * noise[name] for name, t in params.items()}
    before, after = function(dict(params)).detach(), function(other).detach()
    if not float((after - before).abs().max()) > 1e-6 * float(before.abs().max()):
        raise AssertionError(
            "the function does not depend on its parameters; expected an output that changes with them."
        )
