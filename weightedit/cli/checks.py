"""The three things that users of weight-space methods ask about their own networks, each answered with a figure.

Round trip: nothing is lost between parameters, typed features, neural graph and PyTorch Geometric. Identity edit: no
change in weights is no change in the picture. Equivariance: the metanetwork respects the symmetry of these very
networks, by the protocol of testing.py. Printing is main.py's.

Where exactness ends: a sine layer multiplies an error of what it reads by omega times its weights. Weights as fits
leave them keep that product near 1; larger ones make a network that amplifies the rounding of its own weights, by their
power of the depth. So every check also asks how much one rounding of every weight moves its figure, allows
some of these, and says so; where they would hide a wrong answer the check fails, because it cannot tell.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from weightedit.delta import apply_delta, propose_delta
from weightedit.editing.editor import Editor
from weightedit.graph.canonicalization import canonicalize
from weightedit.graph.neural_graph import NeuralGraph
from weightedit.graph.ragged import from_pyg, to_pyg
from weightedit.inr.convention import convert
from weightedit.inr.siren import raw_outputs
from weightedit.inr.stack import INRStack
from weightedit.metanet.gauge_gmn.config import GaugeGMNConfig
from weightedit.metanet.gauge_gmn.network import GaugeGMN
from weightedit.metanet.registry import describe_metanet
from weightedit.network.features import features_from_params, params_from_features
from weightedit.network.spec import SYMMETRIES, Params
from weightedit.network.symmetry import act
from weightedit.testing import equivariance_error

PICTURE_TOLERANCE = 1e-6
EQUIVARIANCE_TOLERANCE = 1e-10
_PLACES = 1024
ROUNDINGS = 100  # of every weight, that a sound computation may add up to
TELLING = 1e-2  # an error, of pixels or relative, that is never put down to rounding


@dataclass(frozen=True)
class Check:
    """One line of an answer: what was checked, whether it held (None: nothing tells), and the figure behind it."""

    name: str
    ok: bool | None
    figure: str

    @property
    def word(self) -> str:
        """The answer in one word."""
        return {True: "ok", False: "FAILED", None: "unsure"}[self.ok]


def check_round_trip(stack: INRStack) -> Check:
    """Parameters -> features -> graph -> PyG -> parameters, every INR by itself and bit for bit."""
    spec, worst, exact = stack.spec, 0.0, True
    for number in range(len(stack)):
        params = {name: tensor[number] for name, tensor in stack.params.items()}
        features = params_from_features(spec, features_from_params(spec, params))
        graphs = [NeuralGraph.from_params(spec, features).to_params(), from_pyg(to_pyg(spec, features)).to_params()]
        for found in (features, *(graph[0] if isinstance(graph, list) else graph for graph in graphs)):
            exact = exact and all(torch.equal(found[name], params[name]) for name in params)
            worst = max(worst, _distance(found, params))
    figure = f"params -> features -> graph -> PyG -> params, largest difference {worst:.1g}"
    return Check("round trip", exact, figure)


def check_identity_edit(stack: INRStack) -> Check:
    """A delta of zeros leaves every rendering bit-equal; canonicalizing, and undoing it, keeps the picture."""
    nothing = {name: torch.zeros_like(tensor) for name, tensor in stack.params.items()}
    equal = torch.equal(_values(stack.with_params(apply_delta(stack.params, nothing))), _values(stack))
    spec, params = stack.spec, _double(stack.params)
    before = _values(stack.with_params(params))
    unit = 1.0 if stack.convention.bounded else float(before.abs().max()) or 1.0  # of values of any size
    canonical, element = canonicalize(spec, params)
    worst = 0.0
    for other in (canonical, act(element.inverse(), spec, canonical)):
        worst = max(worst, float((_values(stack.with_params(other)) - before).abs().max()) / unit)
    words = "bit-equal" if equal else "changed"
    one = float((_values(stack.with_params(_rounded(params))) - before).abs().max()) / unit
    figure = f"zero delta leaves the rendering {words}; canonicalize and back changes a pixel by at most {worst:.1e}"
    return Check(
        "identity edit", equal and _sound(worst, one, PICTURE_TOLERANCE), figure + _told(one, PICTURE_TOLERANCE)
    )


def check_equivariance(stack: INRStack, editor: Editor | None = None) -> Check:
    """The relative equivariance error of the editor (None: of a fresh gauge-gmn), its worst tensor, in float64."""
    spec, params = stack.spec, _double(stack.params)
    if editor is None:
        config = GaugeGMNConfig(inputs=spec.widths[0], outputs=spec.widths[-1], node_width=16, edge_width=8, layers=2)
        subject, metanet = "a fresh gauge-gmn", GaugeGMN(config)
    elif (metanet := editor.delta_alone) is None:
        return _check_whole(stack.with_params(params), editor)
    else:
        subject = f"the editor ({describe_metanet(metanet)[0]}, {editor.operations[0]})"
        native = editor.native_convention or stack.convention
        params, spec = convert(params, stack.convention, native), native.spec(spec.widths)
    declared = metanet.declared or SYMMETRIES
    symmetry = "full" if "full" in declared else declared[-1]
    dtype = next(metanet.parameters()).dtype

    def delta(params: Params) -> Params:
        return propose_delta(metanet, spec, params)

    try:
        metanet.double()
        errors = equivariance_error(delta, spec, params, symmetry=symmetry)
        one = _moved_by_one_rounding(delta, params)
    finally:
        metanet.to(dtype)
    group = "" if symmetry == "full" else f" under {symmetry} symmetry"
    return _judgement(f"{subject}{group}", errors, one)


def _check_whole(stack: INRStack, editor: Editor) -> Check:
    """The whole edit, of what was there before it: of a widened INR, the given neurons."""
    name, dtype = editor.operations[0], next(editor.parameters()).dtype

    def delta(params: Params) -> Params:
        given = stack.with_params(params)
        after = editor.unguarded(given, name).params
        corner = {key: after[key][tuple(slice(n) for n in p.shape)] for key, p in params.items()}
        return {key: corner[key] - params[key] for key in params}

    try:
        editor.double()
        errors = equivariance_error(delta, stack.spec, stack.params)
        one = _moved_by_one_rounding(delta, stack.params)
    finally:
        editor.to(dtype)
    return _judgement(f"the editor ({editor.summary}, {name})", errors, one)


def _judgement(subject: str, errors: dict[str, float], one: dict[str, float]) -> Check:
    """Of the errors of every tensor, and of how far one rounding of the weights moves it."""
    worst = max(errors, key=lambda tensor: errors[tensor])
    ok = all(_sound(errors[name], one[name], EQUIVARIANCE_TOLERANCE) for name in errors)
    figure = f"{subject}: relative error {errors[worst]:.1e} at worst ({worst}), float64"
    return Check("equivariance", ok, figure + _told(max(one.values()), EQUIVARIANCE_TOLERANCE))


def _sound(error: float, one_rounding: float, tolerance: float) -> bool:
    return error < max(tolerance, min(ROUNDINGS * one_rounding, TELLING))


def _told(one_rounding: float, tolerance: float) -> str:
    if not ROUNDINGS * one_rounding > tolerance:
        return ""
    return (
        f"; exactness ends here: one rounding of its weights alone moves that by {one_rounding:.0e}, since their size "
        "times omega, layer by layer, is far from a fitted SIREN's"
    )


def _rounded(params: Params) -> Params:
    """Every weight one rounding up or down, at random."""
    generator, found = torch.Generator().manual_seed(0), {}
    for name, tensor in params.items():
        sign = 2 * torch.randint(0, 2, tensor.shape, generator=generator).to(tensor) - 1
        found[name] = tensor + tensor * sign * torch.finfo(tensor.dtype).eps
    return found


def _moved_by_one_rounding(function: Callable[[Params], Params], params: Params) -> dict[str, float]:
    """Per tensor, the relative change (root mean squares) of what `function` makes of `_rounded` parameters."""
    with torch.no_grad():
        plain, moved = function(params), function(_rounded(params))
    return {name: float((moved[name] - plain[name]).norm() / plain[name].norm().clamp(min=1e-300)) for name in plain}


def _values(stack: INRStack) -> Tensor:
    """The renderings; of INRs that are no pictures, the values at random places."""
    inputs, first = stack.widths[0], stack.params["layers.0.weight"]
    if inputs == 2:
        return stack.render()
    ends = torch.tensor(stack.convention.ranges_of(inputs), dtype=torch.float64)
    shares = torch.rand(_PLACES, inputs, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    where = torch.lerp(ends[:, 0], ends[:, 1], shares).to(first)
    return stack.convention.to_value(raw_outputs(stack.params, where, stack.convention))


def _double(params: Params) -> Params:
    return {name: tensor.double() for name, tensor in params.items()}


def _distance(found: Params, params: Params) -> float:
    def largest(one: Tensor, other: Tensor) -> float:
        return float((one.double() - other.double()).abs().max())

    return max(largest(found[name], params[name]) for name in params)
