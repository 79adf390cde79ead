"""The group acts as symmetry.md says: the function stays, gradients move dually, elements have inverses."""

import pytest
import torch

from tests.networks import ACTIVATIONS, SPECS, WIDTHS, generator, random_params, relative
from weightedit.errors import ParamsError
from weightedit.network.features import (
    DELTA,
    GRADIENT,
    INVARIANT,
    PARAMETER,
    SQUARED_GRADIENT,
    WeightSpaceFeatures,
    features_from_params,
)
from weightedit.network.spec import SYMMETRIES, Layer, NetworkSpec
from weightedit.network.symmetry import act, act_on_features, identity_element, random_element

CASES = [(name, symmetry) for name in SPECS for symmetry in SYMMETRIES]


def _points(spec, count=11):
    return 2 * torch.rand(count, spec.widths[0], dtype=torch.float64, generator=generator(9)) - 1


def _select(element, i):
    parts = (element.permutation, element.scale, element.flip, element.shift)
    return type(element)(*(tuple(tensor[i] for tensor in part) for part in parts))


@pytest.mark.parametrize(("name", "symmetry"), CASES)
def test_the_function_is_unchanged(name, symmetry):
    spec, params = SPECS[name], random_params(SPECS[name])
    expected = spec.forward(params, _points(spec))
    for seed in range(3):
        element = random_element(spec, generator(seed), symmetry=symmetry)
        moved = act(element, spec, params)
        assert not torch.equal(moved["layers.0.weight"], params["layers.0.weight"])
        assert relative(spec.forward(moved, _points(spec)), expected) < 1e-11


@pytest.mark.parametrize("name", SPECS)
def test_a_random_element_uses_the_whole_group_and_nothing_else(name):
    spec = SPECS[name]
    element = random_element(spec, generator(), count=50)
    for i, group in enumerate(spec.neuron_groups()):
        scale, flip, shift = element.scale[i], element.flip[i], element.shift[i]
        assert bool((element.permutation[i].sort(-1)[0] == torch.arange(scale.shape[-1])).all())
        assert (float(scale.min()), float(scale.max())) == (1, 1) or group.scale
        if group.scale:
            assert 1e-2 <= float(scale.min()) < 2e-2 and 50 < float(scale.max()) <= 1e2
        assert sorted(flip.unique().tolist()) == ([-1, 1] if group.flip else [1])
        assert sorted(shift.unique().tolist()) == ([-2, -1, 0, 1, 2] if group.shift else [0])
    again = random_element(spec, generator(), count=50)
    assert all(torch.equal(a, b) for a, b in zip(element.scale + element.flip, again.scale + again.flip, strict=True))


@pytest.mark.parametrize("kind", [PARAMETER, DELTA, GRADIENT, SQUARED_GRADIENT, INVARIANT])
@pytest.mark.parametrize("count", [None, 3])
@pytest.mark.parametrize("name", SPECS)
def test_the_inverse_undoes(name, count, kind):
    spec, params = SPECS[name], random_params(SPECS[name], count=count)
    element = random_element(spec, generator(1), count=count)
    for first, second in ((element, element.inverse()), (element.inverse(), element)):
        again = act(second, spec, act(first, spec, params, kind), kind)
        for key in params:
            assert relative(again[key], params[key]) < 1e-13, key


@pytest.mark.parametrize("name", SPECS)
def test_the_identity_changes_nothing(name):
    spec, params = SPECS[name], random_params(SPECS[name], count=2)
    same = act(identity_element(spec, params["layers.0.weight"]), spec, params)
    assert all(torch.equal(same[key], params[key]) for key in params)


@pytest.mark.parametrize("name", SPECS)
def test_stacked_networks_get_their_own_element(name):
    spec, stack = SPECS[name], random_params(SPECS[name], count=3)
    own, shared = random_element(spec, generator(2), count=3), random_element(spec, generator(3))
    moved_own, moved_shared = act(own, spec, stack), act(shared, spec, stack)
    for i in range(3):
        single = {key: tensor[i] for key, tensor in stack.items()}
        for moved, element in ((moved_own, _select(own, i)), (moved_shared, shared)):
            alone = act(element, spec, single)
            assert all(torch.equal(moved[key][i], alone[key]) for key in alone)


def test_the_action_is_that_of_the_matrices():
    """W_l -> M_l W_l phi(M_{l-1})^-1 and b_l -> M_l b_l with explicit matrices, for every activation but sine."""
    for name in ("identity", "relu", "tanh", "silu"):
        spec, params = SPECS[name], random_params(SPECS[name])
        element = random_element(spec, generator(4))
        before = torch.eye(WIDTHS[0], dtype=torch.float64)
        moved = act(element, spec, params)
        for level, layer in enumerate(spec.layers):
            matrix = torch.eye(layer.fan_out, dtype=torch.float64)
            if level < spec.depth - 1:
                factor = torch.diag(element.scale[level] * element.flip[level])
                matrix = matrix[element.permutation[level]] @ factor
            expected = matrix @ params[layer.weight] @ before.inverse()
            assert relative(moved[layer.weight], expected) < 1e-13
            assert relative(moved[layer.bias], matrix @ params[layer.bias]) < 1e-13
            before = matrix


def _gradients(spec, params):
    leaves = {key: tensor.clone().requires_grad_() for key, tensor in params.items()}
    points = _points(spec)
    target = torch.randn(len(points), spec.widths[-1], dtype=torch.float64, generator=generator(5))
    loss = (spec.forward(leaves, points) - target).square().mean()
    return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


@pytest.mark.parametrize("name", SPECS)
def test_gradients_move_with_the_dual_action(name):
    spec, params = SPECS[name], random_params(SPECS[name])
    gradients = _gradients(spec, params)
    squared = {key: tensor.square() for key, tensor in gradients.items()}
    for seed in range(3):
        element = random_element(spec, generator(seed))
        found = _gradients(spec, act(element, spec, params))
        expected, expected_squared = (
            act(element, spec, gradients, GRADIENT),
            act(element, spec, squared, SQUARED_GRADIENT),
        )
        for key in params:
            assert relative(found[key], expected[key]) < 1e-9, key
            assert relative(found[key].square(), expected_squared[key]) < 1e-9, key


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "identity"])
def test_relu_networks_balance_weights_and_gradients(name):
    """symmetry.md section 2: at each hidden neuron sum_in W G + b gb = sum_out W G."""
    spec, params = SPECS[name], random_params(SPECS[name])
    gradients = _gradients(spec, params)
    for below, above in zip(spec.layers, spec.layers[1:], strict=False):
        entering = (params[below.weight] * gradients[below.weight]).sum(1) + params[below.bias] * gradients[below.bias]
        leaving = (params[above.weight] * gradients[above.weight]).sum(0)
        assert float(entering.abs().max()) > 1e-3
        torch.testing.assert_close(entering, leaving, rtol=1e-12, atol=1e-14)


def test_weight_times_gradient_is_invariant():
    spec, params = SPECS["relu"], random_params(SPECS["relu"])
    product = {key: params[key] * value for key, value in _gradients(spec, params).items()}
    element = random_element(spec, generator(6))
    moved = act(element, spec, params)
    expected = act(element, spec, product, INVARIANT)
    for key, value in _gradients(spec, moved).items():
        assert relative(moved[key] * value, expected[key]) < 1e-10


def test_channels_move_by_their_own_type():
    spec = SPECS["mixed"]
    params, gradients = random_params(spec, count=2), random_params(spec, count=2, seed=1)
    element = random_element(spec, generator(7), count=2)
    moved = act_on_features(element, spec, features_from_params(spec, params, [(GRADIENT, gradients)]))
    alone = act(element, spec, gradients, GRADIENT)
    assert isinstance(moved, WeightSpaceFeatures) and moved.types == (PARAMETER, GRADIENT)
    for layer, weight, bias in zip(spec.layers, moved.weights, moved.biases, strict=True):
        assert torch.equal(weight[..., 1], alone[layer.weight]) and torch.equal(bias[..., 1], alone[layer.bias])


def test_a_shift_moves_raw_biases_but_not_deltas():
    spec, params = NetworkSpec.siren((1, 1, 1), omega=30.0), random_params(NetworkSpec.siren((1, 1, 1)))
    element = identity_element(spec, params["layers.0.weight"])
    element = type(element)(element.permutation, element.scale, element.flip, (torch.ones(1, dtype=torch.float64),))
    moved, delta = act(element, spec, params), act(element, spec, params, DELTA)
    assert float(moved["layers.0.bias"] - params["layers.0.bias"]) == pytest.approx(torch.pi / 30)
    assert torch.equal(delta["layers.0.bias"], params["layers.0.bias"])
    assert torch.equal(moved["layers.1.weight"], -params["layers.1.weight"])


def test_elements_that_do_not_fit_are_refused():
    params = random_params(SPECS["relu"])
    element = random_element(NetworkSpec.mlp((2, 4, 5, 3), ACTIVATIONS["relu"]), generator())
    with pytest.raises(ParamsError, match=r"widths \(4, 5\); expected \(5, 4\)"):
        act(element, SPECS["relu"], params)
    with pytest.raises(ParamsError, match="missing tensors"):
        act(element, SPECS["relu"], {})
    bare = NetworkSpec((Layer("a", None, 2, 3, ACTIVATIONS["sine"]), Layer("b", None, 3, 1)))
    shifted = random_element(NetworkSpec.siren((2, 3, 1)), generator(1))
    with pytest.raises(ParamsError, match="a has no bias, but a phase shift needs one"):
        act(shifted, bare, random_params(bare))
    own = random_element(bare, generator(1))
    values = [bare.forward(p, _points(bare)) for p in (random_params(bare), act(own, bare, random_params(bare)))]
    assert relative(*values) < 1e-12
