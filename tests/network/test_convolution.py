"""Chains that begin with convolutions: what they compute, their features, their symmetry, their gauge, and refusals."""

import json

import pytest
import torch
from torch import nn

from tests.networks import ACTIVATIONS, CNNS, generator, random_images, random_params
from tests.rounding import assert_agree, condition
from weightedit.errors import ParamsError, SpecError
from weightedit.graph.canonicalization import canonicalize, scale_gauge
from weightedit.graph.neural_graph import NeuralGraph
from weightedit.graph.ragged import from_pyg, to_pyg
from weightedit.network.convolution import convolve
from weightedit.network.features import GRADIENT, PARAMETER, features_from_params, params_from_features
from weightedit.network.spec import Layer, NetworkSpec
from weightedit.network.symmetry import act, act_on_features, random_element
from weightedit.network.wiring import Wiring


def _module(spec, params):
    """The same network from torch's own modules, by another route than spec.forward."""
    parts = []
    for layer in spec.layers:
        if layer.kernel is None:
            if parts:
                parts += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
            part = nn.Linear(layer.fan_in, layer.fan_out)
        else:
            part = nn.Conv2d(layer.fan_in, layer.fan_out, layer.kernel, layer.stride, layer.padding)
        part.weight = nn.Parameter(params[layer.weight])
        part.bias = nn.Parameter(params[layer.bias]) if layer.bias else None
        parts += [part, _Elementwise(layer.activation)]
    return nn.Sequential(*parts)


class _Elementwise(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize("name", CNNS)
def test_forward_equals_torch_modules_for_one_and_for_a_stack(name):
    spec, stack = CNNS[name], random_params(CNNS[name], count=3)
    shared, own = random_images(spec, 4), random_images(spec, 12).unflatten(0, (3, 4))
    of_shared, of_own = spec.forward(stack, shared), spec.forward(stack, own)
    assert of_shared.shape == (3, 4, spec.widths[-1])
    for i in range(3):
        single = {key: tensor[i] for key, tensor in stack.items()}
        net = _module(spec, single)
        assert_agree(spec.forward(single, shared), net(shared), condition(spec))
        assert_agree(of_shared[i], net(shared), condition(spec))
        assert_agree(of_own[i], net(own[i]), condition(spec))


@pytest.mark.parametrize("padding", [0, 1])
def test_a_module_is_read(padding):
    """Convolutions with dropout, pooled and flattened; the spec computes what the module does."""
    net = nn.Sequential(
        nn.Conv2d(1, 5, (3, 2), 2, padding), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(5, 4, 3, bias=False), nn.Tanh(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 3), nn.Softmax(-1),
    ).double()  # fmt: skip
    spec = NetworkSpec.from_module(net)
    assert spec.widths == (1, 5, 4, 6, 3) and spec.layers[0].padding == padding and spec.layers[1].bias is None
    assert [layer.activation.name for layer in spec.layers] == ["relu", "tanh", "gelu", "identity"]
    images = torch.randn(4, 1, 19, 17, dtype=torch.float64, generator=generator())
    found = spec.forward(spec.params_of(net), images)
    assert_agree(found, net.eval()(images))
    small = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten(), nn.Linear(2, 3))
    assert NetworkSpec.from_module(small).layers[0].activation.name == "identity"


def test_the_small_cnn_zoo_has_4970_parameters():
    spec = NetworkSpec.cnn((1, 16, 16, 16, 10), ACTIVATIONS["relu"])
    assert spec.parameter_count == 4970 and spec.kernel == (3, 3) and spec.channels == 9
    assert spec.param_shapes()["layers.1.weight"] == (16, 16, 3, 3)
    assert NetworkSpec.mlp((2, 3, 1), ACTIVATIONS["relu"]).channels == 1


@pytest.mark.parametrize("name", CNNS)
def test_json_round_trip_and_files_without_kernels(name):
    spec = CNNS[name]
    again = NetworkSpec.from_dict(json.loads(json.dumps(spec.to_dict())))
    assert again == spec and hash(again) == hash(spec)
    mlp = NetworkSpec.mlp((2, 3, 1), ACTIVATIONS["relu"])
    old = json.loads(json.dumps(mlp.to_dict()))
    for layer in old["layers"]:
        for key in ("kernel", "stride", "padding"):
            del layer[key]
        layer["kind"] = "linear"
    assert NetworkSpec.from_dict(old) == mlp


@pytest.mark.parametrize("count", [None, 2])
@pytest.mark.parametrize("name", CNNS)
def test_features_round_trip(name, count):
    spec = CNNS[name]
    params, gradients = random_params(spec, count=count), random_params(spec, count=count, seed=1)
    features = features_from_params(spec, params, [(GRADIENT, gradients)])
    positions = spec.channels
    assert features.types == (PARAMETER,) * positions + (GRADIENT,) * positions
    for layer, weight, bias in zip(spec.layers, features.weights, features.biases, strict=True):
        assert weight.shape[-3:] == (layer.fan_out, layer.fan_in, 2 * positions)
        assert not bool(bias[..., 1:positions].any())
    for quantity, values in enumerate((params, gradients)):
        again = params_from_features(spec, features, quantity)
        assert list(again) == list(spec.param_shapes())
        assert all(torch.equal(again[key], values[key]) for key in values)
    graph = NeuralGraph.from_params(spec, params)
    assert all(torch.equal(tensor, params[key]) for key, tensor in graph.to_params().items())
    if count is None:
        (again,) = from_pyg(to_pyg(spec, params)).to_params()
        assert all(torch.equal(again[key], params[key]) for key in params)


def test_smaller_kernels_stand_in_the_middle():
    spec = CNNS["mixed"]
    params = random_params(spec)
    features = features_from_params(spec, params)
    assert spec.kernel == (3, 5)
    small = features.weights[1].unflatten(-1, (3, 5))
    assert torch.equal(small[..., 1:2, 1:4], params["layers.1.weight"])
    assert float(small.abs().sum()) == pytest.approx(float(params["layers.1.weight"].abs().sum()))
    linear = features.weights[-1].unflatten(-1, (3, 5))
    assert torch.equal(linear[..., 1, 2], params["layers.3.weight"]) and int((linear != 0).sum()) == 4 * 3


@pytest.mark.parametrize("name", CNNS)
def test_the_function_is_unchanged(name):
    spec, params, images = CNNS[name], random_params(CNNS[name], count=2), random_images(CNNS[name], 5)
    expected = spec.forward(params, images)
    for seed in range(3):
        element = random_element(spec, generator(seed), count=2)
        moved = act(element, spec, params)
        assert all(not torch.equal(moved[key], params[key]) for key in params if key != "layers.3.bias")
        assert_agree(spec.forward(moved, images), expected, condition(spec))
        back = act(element.inverse(), spec, moved)
        assert_agree(back, params)
        features = act_on_features(element, spec, features_from_params(spec, params))
        again = params_from_features(spec, features)
        assert all(torch.equal(again[key], moved[key]) for key in params)
        assert not any(bool(bias[..., 1:].any()) for bias in features.biases)


@pytest.mark.parametrize("name", ["relu", "mixed"])
def test_the_gauge_sums_the_squares_of_whole_kernels(name):
    """Against a loop over layers: n_i^2 = sum_jk w_ijk^2 n_j^2 + b_i^2; canonical networks compute the same."""
    spec, params = CNNS[name], random_params(CNNS[name])
    graph = NeuralGraph.from_params(spec, params)
    gauge = scale_gauge(graph, graph.layout.constants("full", graph.edges))
    before = torch.ones(spec.widths[0], dtype=torch.float64)
    for level, (layer, group) in enumerate(zip(spec.layers, [*spec.neuron_groups(), None], strict=True), start=1):
        found = graph.layout.at_level(level, gauge)[..., 0]
        weight = params[layer.weight].flatten(2).square().sum(-1) if layer.kernel else params[layer.weight].square()
        square = weight @ before.square() + params[layer.bias].square()
        expected = square.sqrt() if group is not None and group.scale else torch.ones_like(square)
        assert_agree(found, expected)
        before = found
    images = random_images(spec, 3)
    canonical, element = canonicalize(spec, params)
    assert_agree(spec.forward(canonical, images), spec.forward(params, images), condition(spec))
    again, _ = canonicalize(spec, canonical)
    assert_agree(again, canonical)
    assert_agree(act(element.inverse(), spec, canonical), params)


def test_a_dead_channel_takes_its_gauge_from_what_it_feeds():
    spec, params = CNNS["relu"], random_params(CNNS["relu"])
    params["layers.1.weight"][2], params["layers.1.bias"][2] = 0.0, 0.0
    graph = NeuralGraph.from_params(spec, params)
    gauge = scale_gauge(graph, graph.layout.constants("full", graph.edges))
    first, second, third = (graph.layout.at_level(level, gauge)[..., 0] for level in (1, 2, 3))
    outgoing = (params["layers.2.weight"][:, 2].flatten(1).square().sum(-1) / third.square()).sum()
    assert float(second[2]) == pytest.approx(float(outgoing.rsqrt())) and bool((first > 0).all())


def test_the_wiring_reads_kernels():
    spec, params = CNNS["relu"], random_params(CNNS["relu"], count=2)
    wiring = Wiring.of(spec)
    assert wiring.by_name["layers.1.weight"].view == (4, 5, 9) and wiring.lead(params) == (2,)
    factors = [torch.ones(n, dtype=torch.float64) for n in spec.widths]
    factors[2] = torch.linspace(0.5, 4, spec.widths[2], dtype=torch.float64)
    images = random_images(spec, 3)
    assert_agree(spec.forward(wiring.rescaled(params, factors), images), spec.forward(params, images))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Layer("w", None, 1, 2, kernel=(3, 0)), r"kernel \(3, 0\), stride 1 and padding 0; expected"),
        (lambda: Layer("w", None, 1, 2, kernel=(3, 3), padding=-1), "padding -1"),
        (lambda: Layer("w", None, 1, 2, stride=2), "kernel None, stride 2"),
        (
            lambda: NetworkSpec((Layer("a", None, 2, 3), Layer("b", None, 3, 1, kernel=(3, 3)))),
            "the convolution b follows the linear layer a",
        ),
        (lambda: NetworkSpec.from_dict({"layers": [{"kind": "pooling"}]}), "a network spec: layers.0. lacks"),
    ],
)
def test_bad_specs_are_refused(make, message):
    with pytest.raises(SpecError, match=message):
        make()


@pytest.mark.parametrize("shape", [(4, 2, 9, 9), (4, 1, 2, 9), (1, 9, 9), (2, 4, 1, 9, 9)])
def test_images_that_do_not_fit_are_refused(shape):
    spec, params = CNNS["relu"], random_params(CNNS["relu"])
    with pytest.raises(ParamsError, match="layers.0.weight: got images of shape .*; expected"):
        convolve(spec.layers[0], params["layers.0.weight"], None, torch.zeros(shape, dtype=torch.float64))


def test_a_chain_may_end_with_a_convolution():
    layers = (Layer("a", "b", 1, 2, ACTIVATIONS["tanh"], kernel=(3, 3)), Layer("c", None, 2, 3, kernel=(1, 1)))
    spec = NetworkSpec(layers)
    params = random_params(spec)
    assert spec.forward(params, torch.zeros(5, 1, 8, 8, dtype=torch.float64)).shape == (5, 3, 6, 6)
