"""NetworkSpec: what it holds, what it refuses, the parameter checks, JSON, and the functions it evaluates."""

import json
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.networks import ACTIVATIONS, SPECS, WIDTHS, random_params
from weightedit.errors import ParamsError, SpecError
from weightedit.network.ending import Encoding, Ending
from weightedit.network.spec import IDENTITY, Activation, Layer, NetworkSpec, NeuronGroup

LAYER = Layer("a", None, 2, 3)
TORCH = {
    "identity": lambda z: z,
    "relu": functional.relu,
    "leaky_relu": lambda z: functional.leaky_relu(z, 0.1),
    "tanh": torch.tanh,
    "sine": lambda z: torch.sin(30 * z),
    "gelu": functional.gelu,
    "silu": functional.silu,
    "sigmoid": torch.sigmoid,
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_and_slopes_are_what_torch_says(name):
    activation = ACTIVATIONS[name]
    z = torch.linspace(-3, 3, 51, dtype=torch.float64).requires_grad_()
    value = activation(z)
    torch.testing.assert_close(value, TORCH[name](z), rtol=0, atol=1e-15)
    (slope,) = torch.autograd.grad(value.sum(), z)
    divisor = activation.parameter if name == "sine" else 1.0
    inside = z.detach().abs() > 1e-9
    torch.testing.assert_close(activation.slope(z)[inside], (slope / divisor)[inside], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("identity", NeuronGroup(scale=True, flip=True)),
        ("relu", NeuronGroup(scale=True)),
        ("leaky_relu", NeuronGroup(scale=True)),
        ("tanh", NeuronGroup(flip=True)),
        ("sine", NeuronGroup(flip=True, shift=True)),
        ("gelu", NeuronGroup()),
        ("silu", NeuronGroup()),
        ("sigmoid", NeuronGroup()),
    ],
)
def test_groups_are_those_of_the_table(name, group):
    assert ACTIVATIONS[name].group == group
    assert SPECS[name].neuron_groups() == (group, group)
    assert group.restricted("permutation") == NeuronGroup()
    assert group.restricted("scale") == NeuronGroup(scale=group.scale)
    assert group.restricted("sign") == NeuronGroup(flip=group.flip)


def test_a_sine_without_a_bias_has_no_shift():
    layers = (Layer("a", None, 2, 3, ACTIVATIONS["sine"]), Layer("b", None, 3, 1))
    assert NetworkSpec(layers).neuron_groups() == (NeuronGroup(flip=True),)


def test_widths_names_and_counts():
    spec = NetworkSpec.siren(WIDTHS)
    assert spec.widths == WIDTHS and spec.depth == 3
    assert spec.param_shapes() == {
        "layers.0.weight": (5, 2),
        "layers.0.bias": (5,),
        "layers.1.weight": (4, 5),
        "layers.1.bias": (4,),
        "layers.2.weight": (3, 4),
        "layers.2.bias": (3,),
    }
    assert spec.parameter_count == sum(tensor.numel() for tensor in random_params(spec).values())
    assert [layer.activation for layer in spec.layers] == [Activation("sine", 30.0)] * 2 + [IDENTITY]
    assert NetworkSpec.from_params(random_params(spec)) == spec
    assert NetworkSpec.from_params(random_params(spec, count=4), omega=5.0) == NetworkSpec.siren(WIDTHS, 5.0)


@pytest.mark.parametrize("name", SPECS)
def test_json_round_trip(name):
    spec = SPECS[name]
    again = NetworkSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert again == spec and hash(again) == hash(spec)


@pytest.mark.parametrize("name", SPECS)
def test_forward_equals_torch_modules_for_one_and_for_a_stack(name):
    spec = SPECS[name]
    stack = random_params(spec, count=3)
    points = torch.rand(7, spec.widths[0], dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for i, outputs in enumerate(spec.forward(stack, points)):
        single = {key: tensor[i] for key, tensor in stack.items()}
        value = points
        for layer in spec.layers:
            value = functional.linear(value, single[layer.weight], single[layer.bias])
            value = TORCH[layer.activation.name](value)
        torch.testing.assert_close(outputs, value, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(spec.forward(single, points), value, rtol=1e-12, atol=1e-12)


def test_params_of_gives_the_tensors_themselves():
    net = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1))
    params = NetworkSpec.from_module(net).params_of(net)
    assert params["0.weight"] is net[0].weight and params["2.bias"] is net[2].bias
    with pytest.raises(ParamsError, match="missing tensors: layers.0.bias"):
        NetworkSpec.siren((2, 4, 1)).params_of(net)


def test_stacks_are_counted():
    spec = SPECS["relu"]
    assert spec.check_params(random_params(spec)) is None
    assert spec.check_params(random_params(spec, count=1)) == 1
    assert spec.check_params(random_params(spec, count=6)) == 6


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Activation("softplus"), "activation 'softplus' is unknown; expected one of identity, relu"),
        (lambda: Activation("sine"), "omega = 0.0; expected a positive number"),
        (lambda: Activation("sine", math.nan), "omega = nan"),
        (lambda: Activation("relu", 2.0), "takes no parameter, but 2.0; leave it out"),
        (lambda: NetworkSpec(()), "without layers"),
        (lambda: NetworkSpec((Layer("a", None, 2, 3), Layer("b", None, 4, 1))), "b reads 4 inputs, but a has 3"),
        (
            lambda: NetworkSpec((Layer("a", None, 2, 3, Activation("relu")),)),
            "ends in relu; .* put .* into endings",
        ),
        (lambda: Ending("exp"), "got the ending 'exp'; expected one of relu"),
        (lambda: Ending("sine"), "omega = 0.0; expected a positive"),
        (lambda: Encoding("tan", ((1.0,),), (0.0,)), "encoding by 'tan' .* expected one of identity, sin, cos"),
        (lambda: Encoding("sin", ((1.0,), (1.0, 2.0)), (0.0,) * 2), r"rows of \[1, 2\] coefficients"),
        (lambda: NetworkSpec((LAYER,), (Encoding("sin", ((1.0,),), (0.0,)),)), "1 features .* a layer that reads 2"),
        (lambda: NetworkSpec.mlp((2, 3, 1), [IDENTITY] * 2), "with 2 activations"),
        (lambda: NetworkSpec.mlp((2,), []), "at least two positive widths"),
        (lambda: NetworkSpec.mlp((2, 3, 1), "swish"), "'swish' is unknown"),
        (lambda: NetworkSpec.mlp((2, 0, 1), Activation("relu")), "at least two positive widths"),
        (lambda: SPECS["relu"].neuron_groups("mirror"), "symmetry 'mirror' is unknown; expected one of full"),
        (lambda: NetworkSpec.from_dict({}), "a network spec lacks layers"),
        (lambda: NetworkSpec.from_dict({"layers": "relu"}), "a network spec: layers is 'relu'; expected a list"),
        (lambda: NetworkSpec.from_dict({"layers": [{"weight": "w"}]}), r"layers\[0\] lacks bias, fan_in, fan_out"),
    ],
)
def test_bad_specs_are_refused(make, message):
    with pytest.raises(SpecError, match=message):
        make()


def _without(name):
    return lambda params: params.pop(name)


def _replaced(name, change):
    return lambda params: params.update({name: change(params[name])})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_without("layers.1.bias"), "missing tensors: layers.1.bias; unexpected tensors: none"),
        (lambda params: params.update(extra=torch.zeros(1)), "unexpected tensors: extra"),
        (_replaced("layers.1.weight", lambda t: t.mT), r"layers.1.weight has shape \(3, 5, 4\); expected \(3, 4, 5\)"),
        (_replaced("layers.2.bias", lambda t: t[0]), r"layers.2.bias has shape \(3,\); expected \(3, 3\). Stack"),
        (
            _replaced("layers.0.bias", lambda t: t.index_fill(0, torch.tensor([1]), torch.nan)),
            "layers.0.bias of network 1 holds NaN or infinite values",
        ),
        (_replaced("layers.0.weight", lambda t: t / 0), "layers.0.weight of network 0 holds NaN"),
    ],
)
def test_bad_params_are_refused(spoil, message):
    spec = SPECS["relu"]
    params = random_params(spec, count=3)
    spoil(params)
    with pytest.raises(ParamsError, match=message):
        spec.check_params(params)


def test_finite_params_are_taken_though_their_sum_is_not():
    params = random_params(SPECS["relu"])
    params["layers.1.weight"].fill_(torch.finfo(params["layers.1.weight"].dtype).max)
    assert not bool(params["layers.1.weight"].sum().isfinite())
    SPECS["relu"].check_params(params)


def test_infinite_params_that_cancel_are_refused():
    params = random_params(SPECS["relu"])
    params["layers.1.bias"][:2] = torch.tensor([torch.inf, -torch.inf])
    with pytest.raises(ParamsError, match="layers.1.bias holds NaN or infinite"):
        SPECS["relu"].check_params(params)


def test_a_single_network_with_nan_is_refused_without_a_number():
    params = random_params(SPECS["relu"])
    params["layers.1.bias"][2] = torch.inf
    with pytest.raises(ParamsError, match="layers.1.bias holds NaN or infinite"):
        SPECS["relu"].check_params(params)


def test_params_that_are_no_siren_are_refused():
    with pytest.raises(ParamsError, match="tensors named 0.bias, 0.weight; expected layers.0.weight"):
        NetworkSpec.from_params({"0.weight": torch.zeros(3, 2), "0.bias": torch.zeros(3)})
    with pytest.raises(ParamsError, match=r"weights of shape \[\(3,\)\]"):
        NetworkSpec.from_params({"layers.0.weight": torch.zeros(3), "layers.0.bias": torch.zeros(3)})
    with pytest.raises(ParamsError, match="tensors named none"):
        NetworkSpec.from_params({})


def test_activations_may_come_by_name():
    relu, tanh = Activation("relu"), Activation("tanh")
    assert NetworkSpec.mlp((2, 3, 4, 1), "relu") == NetworkSpec.mlp((2, 3, 4, 1), relu)
    assert NetworkSpec.mlp((2, 3, 4, 1), ("relu", "tanh")) == NetworkSpec.mlp((2, 3, 4, 1), (relu, tanh))
    assert NetworkSpec.cnn((1, 4, 2), "relu") == NetworkSpec.cnn((1, 4, 2), relu)
