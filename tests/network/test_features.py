"""Typed features: lossless from and to named parameters, and wrong wiring refused."""

from dataclasses import replace
from itertools import product

import pytest
import torch

from tests.networks import ACTIVATIONS, SPECS, random_params
from weightedit.errors import ParamsError, TypeMismatchError
from weightedit.network.features import (
    DELTA,
    GRADIENT,
    INVARIANT,
    PARAMETER,
    SQUARED_GRADIENT,
    ChannelType,
    WeightSpaceFeatures,
    channels_to_kernel,
    check_types,
    features_from_params,
    kernel_to_channels,
    params_from_features,
)
from weightedit.network.spec import Layer, NetworkSpec


@pytest.mark.parametrize("count", [None, 3])
@pytest.mark.parametrize("name", SPECS)
def test_round_trip_is_exact(name, count):
    spec = SPECS[name]
    params, gradients = random_params(spec, count=count), random_params(spec, count=count, seed=1)
    features = features_from_params(spec, params, [(GRADIENT, gradients)])
    assert features.types == (PARAMETER, GRADIENT)
    stack = () if count is None else (count,)
    for layer, weight, bias in zip(spec.layers, features.weights, features.biases, strict=True):
        assert weight.shape == (*stack, layer.fan_out, layer.fan_in, 2) and bias.shape == (*stack, layer.fan_out, 2)
    for channel, values in enumerate((params, gradients)):
        again = params_from_features(spec, features, channel)
        assert list(again) == list(spec.param_shapes())
        assert all(torch.equal(again[key], values[key]) for key in values)


@pytest.mark.parametrize("box", [(1, 1), (2, 2), (3, 3), (4, 3), (3, 4), (5, 2)])
def test_kernels_of_any_size_stand_about_the_middle_of_the_largest(box):
    """By hand, position by position; where the margin is odd, its larger part is below and to the right."""
    for height, width in product(range(1, box[0] + 1), range(1, box[1] + 1)):
        weight = 1 + torch.arange(4.0 * height * width).view(2, 2, height, width)
        channels = kernel_to_channels(weight, (height, width), box)
        assert channels.shape == (2, 2, box[0] * box[1])
        top, left = (box[0] - height) // 2, (box[1] - width) // 2
        assert 0 <= (box[0] - height - top) - top <= 1 and 0 <= (box[1] - width - left) - left <= 1
        expected = torch.zeros(2, 2, *box)
        for row, column in product(range(height), range(width)):
            expected[..., top + row, left + column] = weight[..., row, column]
        assert torch.equal(channels, expected.flatten(-2))
        assert torch.equal(channels_to_kernel(channels, (height, width), box), weight)
    lone = torch.tensor([[3.0]])
    middle = (box[0] - 1) // 2 * box[1] + (box[1] - 1) // 2
    assert kernel_to_channels(lone, None, box)[0, 0].nonzero().flatten().tolist() == [middle]
    assert torch.equal(channels_to_kernel(kernel_to_channels(lone, None, box), None, box), lone)


def test_even_kernels_survive_the_features():
    relu = ACTIVATIONS["relu"]
    layers = (
        Layer("a.weight", "a.bias", 1, 3, relu, (4, 4)),
        Layer("b.weight", "b.bias", 3, 2, relu, (2, 3)),
        Layer("c.weight", "c.bias", 2, 2),
    )
    spec = NetworkSpec(layers)
    params = random_params(spec, count=2)
    again = params_from_features(spec, features_from_params(spec, params))
    assert all(torch.equal(again[name], tensor) for name, tensor in params.items())


def test_a_missing_bias_is_zero_and_stays_away():
    layers = (Layer("a", None, 2, 3, ACTIVATIONS["relu"]), Layer("b", "c", 3, 1))
    spec = NetworkSpec(layers)
    params = random_params(spec, count=2)
    features = features_from_params(spec, params)
    assert torch.equal(features.biases[0], torch.zeros(2, 3, 1, dtype=torch.float64))
    assert set(params_from_features(spec, features)) == {"a", "b", "c"}


def test_the_types_are_those_of_the_table():
    assert (ChannelType(1, True, affine=True), ChannelType(1, True)) == (PARAMETER, DELTA)
    assert (
        ChannelType(-1, True),
        ChannelType(-2, False),
        ChannelType(0, False),
    ) == (GRADIENT, SQUARED_GRADIENT, INVARIANT)
    assert [str(kind) for kind in (PARAMETER, GRADIENT, INVARIANT)] == ["(+1, odd, affine)", "(-1, odd)", "(+0, even)"]


def test_types_that_do_not_fit_are_refused():
    check_types([DELTA], (DELTA,), "here")
    with pytest.raises(TypeMismatchError, match=r"here: got channels of type \[none\]; expected \[\(\+1, odd\)\]"):
        check_types([], [DELTA], "here")
    with pytest.raises(TypeMismatchError, match=r"\[\(-1, odd\)\]; expected \[\(\+1, odd\)\]"):
        check_types([GRADIENT], [DELTA], "here")
    features = features_from_params(SPECS["relu"], random_params(SPECS["relu"]))
    with pytest.raises(TypeMismatchError, match=r"features with \[1\] channels with 2 types"):
        replace(features, types=(PARAMETER, GRADIENT))
    with pytest.raises(TypeMismatchError, match=r"features with \[1, 2\] channels"):
        WeightSpaceFeatures((torch.zeros(3, 2, 1),), (torch.zeros(3, 2),), (PARAMETER,))


def test_params_and_extra_must_be_stacked_alike():
    spec = SPECS["relu"]
    with pytest.raises(ParamsError, match="params of 3 stacked networks with extra tensors of a single network"):
        features_from_params(spec, random_params(spec, count=3), [(GRADIENT, random_params(spec))])
    with pytest.raises(ParamsError, match="params of 3 stacked networks with extra tensors of 2 stacked"):
        features_from_params(spec, random_params(spec, count=3), [(GRADIENT, random_params(spec, count=2))])
    with pytest.raises(ParamsError, match="missing tensors: layers.0.bias, layers.0.weight"):
        features_from_params(spec, random_params(spec), [(GRADIENT, {})])
