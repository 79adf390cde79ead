"""The scales move as their types say, also where weights are zero, and the derivative of a root is finite."""

import math

import pytest
import torch
from torch.func import vmap

from tests.networks import ACTIVATIONS, generator, random_params
from weightedit.network.spec import NetworkSpec
from weightedit.network.symmetry import act, random_element
from weightedit.network.wiring import NeuronSet, Wire, Wiring
from weightedit.optim.gauge import inverse_root, neuron_scales, parameter_scales, root

SPEC = NetworkSpec.mlp((2, 7, 5, 6, 3), [ACTIVATIONS[name] for name in ("relu", "leaky_relu", "identity")])
WIRING = Wiring.of(SPEC)
TIGHT = {"rtol": 1e-12, "atol": 0.0}


def _with_zeros():
    """Neurons without incoming weights, without outgoing ones, and without either, in a stack of two networks."""
    params = random_params(SPEC, count=2)
    params["layers.0.weight"][0, 1] = 0
    params["layers.1.weight"][0, :, 1] = 0
    params["layers.0.weight"][:, 2] = 0
    params["layers.1.weight"][1, 3] = 0
    params["layers.2.weight"][:, :, 3] = 0
    return params


@pytest.mark.parametrize("params", [random_params(SPEC), random_params(SPEC, count=2), _with_zeros()])
def test_scales_are_of_type_plus_one(params):
    element = random_element(SPEC, generator(1), scale_range=(1e-2, 1e2))
    moved = act(element, SPEC, params)
    before, after = neuron_scales(WIRING, params), neuron_scales(WIRING, moved)
    for u, v, q, p in zip(before[1:-1], after[1:-1], element.scale, element.permutation, strict=True):
        torch.testing.assert_close(v, (u * q)[..., p], **TIGHT)
    for u, v in ((before[0], after[0]), (before[-1], after[-1])):
        torch.testing.assert_close(v, u, **TIGHT)
    # A direction of sign(w) times its scale moves as w does.
    for name, scale in parameter_scales(WIRING, moved).items():
        unmoved = {k: params[k].sign() * s for k, s in parameter_scales(WIRING, params).items()}
        expected = act(element, SPEC, unmoved)
        torch.testing.assert_close(moved[name].sign() * scale, expected[name], **TIGHT)


def test_the_formula_by_hand():
    spec = NetworkSpec.mlp((2, 2, 1), ACTIVATIONS["relu"])
    params = {
        "layers.0.weight": torch.tensor([[3.0, 4.0], [0.0, 0.0]]),
        "layers.0.bias": torch.zeros(2),
        "layers.1.weight": torch.tensor([[2.0, 0.5]]),
        "layers.1.bias": torch.zeros(1),
    }
    inputs, hidden, outputs = neuron_scales(Wiring.of(spec), params)
    assert inputs.tolist() == [1, 1] and outputs.tolist() == [10]
    assert hidden.tolist() == [5, 10 / 0.5]
    scales = parameter_scales(Wiring.of(spec), params)
    torch.testing.assert_close(scales["layers.1.weight"], torch.tensor([[10 / 5, 10 / 20]]) / math.sqrt(2))
    assert scales["layers.0.bias"].tolist() == [5, 20]


@pytest.mark.parametrize("symmetry", ["permutation", "sign"])
def test_one_scale_per_layer_is_the_root_mean_square(symmetry):
    params = random_params(SPEC)
    for name, scale in parameter_scales(WIRING, params, symmetry).items():
        if name.endswith("weight"):
            torch.testing.assert_close(scale, params[name].square().mean().sqrt().expand_as(scale))
    zeros = {name: torch.zeros_like(p) for name, p in params.items()}
    assert all(bool((u == 1).all()) for u in neuron_scales(WIRING, zeros, symmetry))


def test_a_stack_is_its_networks_and_vmap():
    params = _with_zeros()
    together = parameter_scales(WIRING, params)
    mapped = vmap(lambda p: parameter_scales(WIRING, p))(params)
    for i in range(2):
        alone = parameter_scales(WIRING, {name: p[i] for name, p in params.items()})
        for name in params:
            torch.testing.assert_close(together[name][i], alone[name], **TIGHT)
            torch.testing.assert_close(mapped[name][i], alone[name], **TIGHT)
            assert torch.broadcast_shapes(alone[name].shape, params[name].shape[1:]) == params[name].shape[1:]


def test_kernels_normalizations_residuals_and_flattened_images():
    """Convolution -> normalization -> residual block -> linear layer that reads four pixels per channel."""
    relu = ACTIVATIONS["relu"].group
    sets = [
        NeuronSet("inputs", 3),
        NeuronSet("stem", 4, relu, True),
        NeuronSet("norm", 4, relu, True),
        NeuronSet("inner", 5, relu, True),
        NeuronSet("outputs", 2),
    ]
    wires = (
        Wire("stem", (4, 3, 3, 3), "weight", 1, 0, 3),
        Wire("gain", (4,), "gain", 2),
        Wire("shift", (4,), "bias", 2),
        Wire("down", (5, 4, 3, 3), "weight", 3, 2, 4),
        Wire("up", (4, 5, 1, 1), "weight", 2, 3, 5),  # back into the stream: tells u nothing
        Wire("head", (2, 16), "weight", 4, 2, 4),
    )
    wiring, source = Wiring(tuple(sets), wires), generator(2)
    params = {w.name: torch.randn(w.shape, generator=source, dtype=torch.float64) for w in wires}
    factors = [torch.ones(n.size, dtype=torch.float64) for n in sets]
    for i in (1, 2, 3):
        factors[i] = (torch.rand(sets[i].size, generator=source, dtype=torch.float64) * 6 - 3).exp()

    def rescaled(tensors):
        found = {}
        for wire in wires:
            before = torch.ones(1) if wire.source is None else factors[wire.source]
            matrix = wire.matrix(tensors[wire.name]) * factors[wire.target][:, None, None] / before[:, None]
            found[wire.name] = matrix.reshape(wire.shape)
        return found

    moved = rescaled(params)
    before, after = parameter_scales(wiring, params), parameter_scales(wiring, moved)
    assert before["down"].shape == (5, 4, 1, 1) and before["head"].shape == (2, 16)
    expected = rescaled({name: scale.expand_as(params[name]) for name, scale in before.items()})
    for name in params:
        torch.testing.assert_close(after[name].expand_as(params[name]), expected[name], **TIGHT)
    u = neuron_scales(wiring, params)
    torch.testing.assert_close(u[1], params["stem"].square().sum((1, 2, 3)).sqrt())
    torch.testing.assert_close(u[2], params["gain"].abs())


def test_a_set_that_nothing_leads_to_has_scale_one():
    part = {"layers.2.weight": random_params(SPEC, count=2)["layers.2.weight"]}
    scales = neuron_scales(WIRING, part)
    assert [tuple(u.shape) for u in scales] == [(2, n) for n in SPEC.widths]
    assert bool((scales[2] == 1).all())


def test_roots_have_a_derivative_at_zero():
    square = torch.tensor([0.0, 4.0], dtype=torch.float64, requires_grad=True)
    for function, value, slope in ((root, 2.0, 0.25), (inverse_root, 0.5, -0.0625)):
        found = function(square)
        (derivative,) = torch.autograd.grad(found.sum(), square)
        assert found.tolist() == [0, value] and derivative.tolist() == [0, slope]


def test_gradients_through_the_scales_are_finite_at_zeros():
    leaves = {name: p.requires_grad_() for name, p in _with_zeros().items()}
    total = sum(scale.sum() for scale in parameter_scales(WIRING, leaves).values())
    weights = [leaf for name, leaf in leaves.items() if name.endswith("weight")]
    assert all(bool(g.isfinite().all()) for g in torch.autograd.grad(total, weights))
