"""The judges judged: maps that respect the symmetry pass, maps that break it in the ways codes do fail."""

from functools import cache

import pytest
import torch
from torch.func import functional_call, grad

from tests.networks import CNNS, SPECS, random_params
from tests.residual_networks import RESIDUAL, Small, trained
from weightedit.network.features import DELTA, GRADIENT, PARAMETER
from weightedit.network.graph_spec import GraphSpec
from weightedit.network.reading import wiring_of
from weightedit.network.spec import NetworkSpec
from weightedit.testing import assert_equivariant, assert_invariant, equivariance_error, invariance_error

RELU, TANH, SINE, SILU = (SPECS[name] for name in ("relu", "tanh", "sine", "silu"))
POINTS = torch.linspace(-1, 1, 10, dtype=torch.float64).reshape(5, 2)


def _each(change):
    return lambda params: {name: change(tensor) for name, tensor in params.items()}


def _gradient(spec, params):
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in params.items()}
    loss = spec.forward(leaves, POINTS).square().sum()
    return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


def _hebbian(spec):
    """A delta of weight type: every weight and bias times an invariant of its own target neuron."""

    def delta(params):
        slopes = _gradient(spec, params)
        found = {}
        for layer in spec.layers:
            share = (params[layer.bias] * slopes[layer.bias]).tanh()
            found[layer.weight], found[layer.bias] = (
                params[layer.weight] * share.unsqueeze(-1),
                (params[layer.bias] * share),
            )
        return found

    return delta


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "tanh", "identity", "gelu"])
def test_equivariant_maps_pass(name):
    spec = SPECS[name]
    params = random_params(spec)
    assert_equivariant(_hebbian(spec), spec, params)
    assert_equivariant(_each(lambda t: 0.1 * t), spec, params)
    assert_equivariant(lambda p: _gradient(spec, p), spec, params, kind=GRADIENT)
    assert_invariant(lambda p: spec.forward(p, POINTS), spec, params)


@pytest.mark.filterwarnings("error")
def test_what_needs_gradients_is_judged_without_a_warning():
    factor = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    assert_equivariant(_each(lambda t: factor * t), RELU, random_params(RELU))
    assert_invariant(lambda p: factor * RELU.forward(p, POINTS), RELU, random_params(RELU))


def test_parameters_out_pass_as_parameters_and_not_as_deltas():
    params = random_params(SINE)
    assert_equivariant(_each(lambda t: t.clone()), SINE, params, kind=PARAMETER)
    with pytest.raises(AssertionError, match="not equivariant under symmetry 'full'.*layers.0.bias"):
        assert_equivariant(_each(lambda t: t.clone()), SINE, params, kind=DELTA)


def _elementwise(nonlinear):
    return _each(lambda t: 0.1 * t + 0.1 * nonlinear(t))


def _swapped_biases(params):
    """Layer deltas read off by an offset that is wrong by one neuron."""
    delta = {name: 0.1 * tensor for name, tensor in params.items()}
    biases = [name for name in delta if name.endswith("bias")]
    joined = torch.cat([delta[name] for name in biases]).roll(1)
    parts = joined.split([len(delta[name]) for name in biases])
    return {**delta, **dict(zip(biases, parts, strict=True))}


def _by_position(params):
    """A delta that knows which neuron is which."""
    return {
        name: tensor * torch.arange(1.0, len(tensor) + 1).view(-1, *[1] * (tensor.dim() - 1))
        for name, tensor in params.items()
    }


@pytest.mark.parametrize(
    ("function", "spec", "symmetry"),
    [
        (_elementwise(torch.abs), TANH, "sign"),
        (_elementwise(torch.relu), TANH, "sign"),
        (_elementwise(torch.relu), SINE, "full"),
        (_elementwise(torch.square), RELU, "scale"),
        (_elementwise(torch.tanh), RELU, "scale"),
        (_elementwise(torch.sign), RELU, "full"),
        (_by_position, SILU, "permutation"),
        (_swapped_biases, SILU, "full"),
        (lambda p: _gradient(RELU, p), RELU, "scale"),
        (lambda p: {**p, "layers.1.bias": p["layers.1.bias"] + 1}, TANH, "sign"),
        (_each(lambda t: t.clone()), SINE, "full"),
    ],
)
def test_broken_maps_fail(function, spec, symmetry):
    with pytest.raises(AssertionError, match=f"not equivariant under symmetry '{symmetry}'"):
        assert_equivariant(function, spec, random_params(spec), symmetry=symmetry)


def test_the_symmetry_that_is_asked_for_is_the_one_that_is_tested():
    assert_equivariant(_elementwise(torch.abs), TANH, random_params(TANH), symmetry="permutation")
    assert_equivariant(_elementwise(torch.square), RELU, random_params(RELU), symmetry="sign")


def test_one_large_tensor_does_not_hide_the_others():
    def delta(params):
        return {**{k: t.abs() for k, t in params.items()}, "layers.2.bias": 1e15 * params["layers.2.bias"]}

    errors = equivariance_error(delta, TANH, random_params(TANH))
    assert errors["layers.2.bias"] == 0 and min(errors["layers.0.weight"], errors["layers.1.bias"]) > 0.1
    with pytest.raises(AssertionError, match="layers.0.weight: .*layers.1.bias") as caught:
        assert_equivariant(delta, TANH, random_params(TANH))
    assert "layers.2" not in str(caught.value).replace("layers.2.weight", "")


def test_a_constant_fails():
    params = random_params(RELU)
    constant = {name: torch.zeros_like(tensor) for name, tensor in params.items()}
    with pytest.raises(AssertionError, match="does not depend on its parameters"):
        assert_equivariant(lambda p: constant, RELU, params)
    with pytest.raises(AssertionError, match="does not depend on its parameters"):
        assert_invariant(lambda p: torch.ones(3), RELU, params)


def test_infinite_and_missing_values_fail():
    """Also where they come only for some elements of the group."""
    params = random_params(RELU)
    limit = 2 * float(params["layers.0.weight"].abs().max())

    def overflows(p):
        bad = float(p["layers.0.weight"].abs().max()) > limit
        return {name: tensor * (torch.nan if bad else 1.0) for name, tensor in p.items()}

    with pytest.raises(AssertionError, match="not equivariant"):
        assert_equivariant(overflows, RELU, params)
    with pytest.raises(AssertionError, match="not invariant"):
        assert_invariant(lambda p: RELU.forward(overflows(p), POINTS), RELU, params)
    with pytest.raises(AssertionError):
        assert_equivariant(_each(lambda t: t * torch.nan), RELU, params)


@pytest.mark.parametrize(
    ("function", "symmetry"),
    [
        (lambda p: p["layers.1.weight"].abs().sum().view(1), "scale"),
        (lambda p: p["layers.0.weight"][0], "permutation"),
        (lambda p: TANH.forward(p, POINTS), "full"),
    ],
)
def test_what_is_not_invariant_fails(function, symmetry):
    with pytest.raises(AssertionError, match=f"not invariant under symmetry '{symmetry}'"):
        assert_invariant(function, RELU, random_params(RELU), symmetry=symmetry)
    assert invariance_error(function, RELU, random_params(RELU), symmetry=symmetry) > 1e-3


def test_tolerances_follow_the_dtype():
    params = random_params(RELU)
    slightly = _each(lambda t: t + 1e-7 * t.square())
    with pytest.raises(AssertionError, match="expected below 1e-10"):
        assert_equivariant(slightly, RELU, params, symmetry="scale")
    assert_equivariant(slightly, RELU, params, symmetry="scale", tolerance=1e-2)
    assert_equivariant(slightly, RELU, {k: t.float() for k, t in params.items()}, symmetry="scale")


def test_stacks_are_judged_with_an_element_each():
    """A map that mixes the networks of a stack is not equivariant."""
    mean = _each(lambda t: t + t.mean(0))
    with pytest.raises(AssertionError, match="not equivariant"):
        assert_equivariant(mean, SILU, random_params(SILU, count=3))


def test_a_network_without_any_symmetry_but_the_identity_cannot_be_judged():
    spec = NetworkSpec.mlp((1, 1, 1), SILU.layers[0].activation)
    with pytest.raises(AssertionError, match="no element but the identity"):
        assert_equivariant(_each(torch.abs), spec, random_params(spec))
    wider = NetworkSpec.mlp((1, 2, 1), SILU.layers[0].activation)
    for seed in range(20):
        with pytest.raises(AssertionError, match="not equivariant"):
            assert_equivariant(_by_position, wider, random_params(wider), seed=seed)


def test_dependence_is_seen_where_parameters_are_zero():
    params = {name: torch.zeros_like(tensor) for name, tensor in random_params(SILU).items()}
    params["layers.0.weight"] = random_params(SILU)["layers.0.weight"]
    assert_equivariant(lambda p: {name: 0 * p[name] + p["layers.2.bias"].sum() for name in p}, SILU, params)


def _drawn(name):
    net, params = trained(RESIDUAL[name])
    return GraphSpec.from_module(net), params


KINDS = {
    **{name: lambda name=name: (SPECS[name], random_params(SPECS[name])) for name in ("relu", "tanh", "sine")},
    **{f"cnn {name}": lambda name=name: (CNNS[name], random_params(CNNS[name])) for name in ("relu", "tanh", "mixed")},
    **{name: lambda name=name: _drawn(name) for name in RESIDUAL},
}
BROKEN = {"permutation": _by_position, "sign": _elementwise(torch.abs), "scale": _elementwise(torch.square)}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_network_is_judged_and_what_breaks_a_factor_it_has_is_caught(kind):
    spec, params = KINDS[kind]()
    groups = spec.neuron_groups()
    has = {"permutation": True, "sign": any(g.flip for g in groups), "scale": any(g.scale for g in groups)}
    assert_equivariant(_each(lambda t: t.clone()), spec, params, kind=PARAMETER)
    for symmetry, broken in BROKEN.items():
        if has[symmetry]:
            with pytest.raises(AssertionError, match=f"not equivariant under symmetry '{symmetry}'"):
                assert_equivariant(broken, spec, params, symmetry=symmetry)


def test_what_a_skip_ties_may_be_mixed_neuron_by_neuron_and_no_other_way():
    """The bias of the stream in the delta of the branch: right where they are added, and only in the right order."""
    (spec, params), (straight, _) = _drawn("small"), trained(lambda: Small(False))
    mixed = lambda p, change=lambda t: t: {**p, "second.bias": p["second.bias"] + change(p["norm.bias"])}  # noqa: E731
    assert_equivariant(mixed, spec, params)
    for symmetry in ("permutation", "scale"):
        with pytest.raises(AssertionError, match="second.bias"):
            assert_equivariant(lambda p: mixed(p, lambda t: t.roll(1)), spec, params, symmetry=symmetry)
        with pytest.raises(AssertionError, match="second.bias"):
            assert_equivariant(mixed, GraphSpec.from_module(straight), params, symmetry=symmetry)


def test_stacks_of_networks_that_are_no_chains_are_judged_with_an_element_each():
    spec, params = _drawn("residual mlp")
    stack = {name: torch.stack([p, 2 * p, p - 1]) for name, p in params.items()}
    assert_equivariant(_each(lambda t: 0.1 * t), spec, stack)
    with pytest.raises(AssertionError, match="not equivariant"):
        assert_equivariant(_each(lambda t: t + t.mean(0)), spec, stack)


class Attention(torch.nn.Module):
    """Two heads between an embedding and a head, with a residual stream: only a wiring describes it."""

    def __init__(self):
        super().__init__()
        self.first, self.qkv, self.out, self.last = (
            torch.nn.Linear(*size) for size in ((3, 8), (8, 24), (8, 8), (8, 2))
        )
        self.position = torch.nn.Parameter(torch.randn(5, 8))

    def forward(self, x):
        x = self.first(x) + self.position
        q, k, v = self.qkv(x).view(-1, 5, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return self.last((x + self.out(y.transpose(1, 2).reshape(-1, 5, 8))).relu())


@cache
def _attention():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net, x = Attention().double(), torch.randn(4, 5, 3, dtype=torch.float64)
    params = {name: p.detach() for name, p in net.named_parameters()}
    return wiring_of(net, x), params, lambda p: functional_call(net, p, (x,))


def test_whatever_a_wiring_claims_is_judged_attention_included():
    wiring, params, run = _attention()

    def slopes(p):
        return grad(lambda p: run(p).square().mean())(p)

    assert_invariant(run, wiring, params)
    assert_equivariant(slopes, wiring, params, kind=GRADIENT)
    stack = {name: torch.stack([p, p + 1]) for name, p in params.items()}
    assert_equivariant(_each(lambda t: t / 3), wiring, stack)
    with pytest.raises(AssertionError, match="not equivariant under symmetry 'scale'"):
        assert_equivariant(_each(lambda t: t.square()), wiring, params, symmetry="scale")
    with pytest.raises(AssertionError, match="not equivariant under symmetry 'scale'"):
        assert_equivariant(slopes, wiring, params, symmetry="scale")  # a gradient is no delta


def _head_by_head(params):
    """The first head is told from the second."""
    heads = params["qkv.weight"].view(3, 2, 4, 8) * torch.tensor([1.0, 2.0], dtype=torch.float64).view(2, 1, 1)
    return {**params, "qkv.weight": heads.view(24, 8)}


def _queries_alone(params):
    """Places within the queries of a head move without those of its keys."""
    queries, others = params["qkv.weight"].split([8, 16])
    return {**params, "qkv.weight": torch.cat([queries.view(2, 4, 8).roll(1, 1).reshape(8, 8), others])}


def _stream_alone(params):
    """What attention adds to the stream stands at other neurons than the stream's."""
    return {**params, "out.bias": params["out.bias"] + params["first.bias"].roll(1)}


@pytest.mark.parametrize("broken", [_head_by_head, _queries_alone, _stream_alone, _by_position])
def test_what_breaks_heads_or_the_stream_around_them_is_caught(broken):
    wiring, params, _ = _attention()
    assert_equivariant(lambda p: {**p, "out.bias": p["out.bias"] + p["first.bias"]}, wiring, params)
    with pytest.raises(AssertionError, match="not equivariant under symmetry 'permutation'"):
        assert_equivariant(broken, wiring, params, symmetry="permutation")
