"""Conventions: conversions keep the picture, dictionaries round trip, bad values are refused."""

import itertools

import pytest
import torch

from weightedit.errors import ParamsError, WeightEditError
from weightedit.inr.convention import (
    DWSNETS,
    NFN,
    SIREN_PYTORCH,
    Convention,
    coin_convention,
    convert,
    network_of,
    widths_of,
)
from weightedit.inr.siren import initial_params, places, raw_outputs, render_images
from weightedit.network.symmetry import act, random_element

ODD = Convention(omega=17.0, coordinates="ij", low=-0.5, high=3.0, offset=0.25)
TURNED = Convention(omega=(20.0, 30.0, 5.0), ranges=((0.0, 27.0), (1.0, -1.0)))


def _params(widths=(2, 7, 5, 3), count=4):
    params = initial_params(count, widths, generator=torch.Generator().manual_seed(3))
    return {name: tensor.double() for name, tensor in params.items()}


@pytest.mark.parametrize(
    ("source", "target"),
    list(itertools.permutations((DWSNETS, NFN, ODD, SIREN_PYTORCH, TURNED, coin_convention(9, 6)), 2)),
)
def test_conversion_keeps_the_picture(source, target):
    params = _params()
    before = render_images(params, source, 9, 6)
    after = render_images(convert(params, source, target), target, 9, 6)
    assert before.std() > 0.01
    torch.testing.assert_close(after, before, rtol=0, atol=1e-10)  # TURNED reads places of up to 27
    back = convert(convert(params, source, target), target, source)
    for name in params:
        torch.testing.assert_close(back[name], params[name], rtol=0, atol=1e-12)


def test_conversion_to_itself_changes_no_bit_and_unstacked_networks_convert():
    params = _params()
    for name, tensor in convert(params, NFN, NFN).items():
        assert torch.equal(tensor, params[name])
    single = {name: tensor[1] for name, tensor in params.items()}
    for name, tensor in convert(single, DWSNETS, NFN).items():
        assert torch.equal(tensor, convert(params, DWSNETS, NFN)[name][1])


def test_values_and_raw_outputs_are_inverse():
    raw = torch.linspace(-2, 2, 9, dtype=torch.float64)
    for convention in (DWSNETS, NFN, ODD):
        torch.testing.assert_close(convention.to_raw(convention.to_value(raw)), raw)
    assert DWSNETS.to_value(torch.tensor(0.0)) == 0.5
    assert NFN.to_value(torch.tensor(-1.0)) == 0.0


def test_dictionary_round_trip_is_strict():
    assert Convention.from_dict(ODD.to_dict()) == ODD
    with pytest.raises(WeightEditError, match="lacks coordinates, high, low, offset; expected the keys"):
        Convention.from_dict({"omega": 30.0})
    with pytest.raises(WeightEditError, match="has the unknown key 'gamma'; expected the keys"):
        Convention.from_dict({**ODD.to_dict(), "gamma": 1.0})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"omega": 0.0}, "positive frequency"),
        ({"omega": float("nan")}, "finite number"),
        ({"low": "0"}, "finite number"),
        ({"coordinates": "yx"}, "expected one of xy, ij"),
        ({"low": 1.0, "high": 0.0}, "low < high"),
        ({"omega": (30.0, 0.0)}, "positive frequency"),
        ({"omega": ()}, "positive frequency"),
        ({"ranges": (0.0, 1.0)}, r"expected a \(first, last\) for every input"),
        ({"ranges": ((0.0, 0.0), (0.0, 1.0))}, "two different ends"),
        ({"ranges": ((0.0, float("inf")),)}, "finite number"),
        ({"activation": "step"}, "activation='step': expected one of sine, relu"),
        ({"last": "softmax"}, "last='softmax': expected one of linear, sine"),
    ],
)
def test_bad_values_are_refused(values, message):
    with pytest.raises(WeightEditError, match=message):
        Convention(**values)


def test_widths_are_read_and_bad_networks_are_refused():
    params = _params()
    assert widths_of(params) == (2, 7, 5, 3)
    assert widths_of({name: tensor[0] for name, tensor in params.items()}) == (2, 7, 5, 3)
    with pytest.raises(ParamsError, match="dict of tensors"):
        widths_of([1])  # type: ignore[arg-type]
    with pytest.raises(ParamsError, match="without a gap"):
        widths_of({name: tensor for name, tensor in params.items() if "layers.1" not in name})
    with pytest.raises(ParamsError, match="without 'seq.0.weight'"):
        widths_of({"seq.0.weight": params["layers.0.weight"], "seq.0.bias": params["layers.0.bias"]})
    with pytest.raises(ParamsError, match="layer 1 has weight"):
        widths_of({**params, "layers.1.weight": params["layers.1.weight"].mT})
    with pytest.raises(ParamsError, match="layer 0 has weight"):
        widths_of({**params, "layers.0.bias": params["layers.0.bias"][0]})


def test_what_no_weights_can_mend_is_refused():
    with pytest.raises(ParamsError, match="sine after its last layer; expected linear"):
        convert(_params(), Convention(last="sine"), DWSNETS)
    with pytest.raises(ParamsError, match="relu after its hidden layers; expected sine"):
        convert(_params(), Convention(activation="relu"), DWSNETS)
    with pytest.raises(ParamsError, match="ends in a sigmoid with .low, high, offset."):
        convert(_params(), Convention(last="sigmoid"), Convention(last="sigmoid", offset=0.0))
    with pytest.raises(ParamsError, match="a network of 3 inputs under a convention with 2 ranges"):
        convert(_params((3, 4, 1)), TURNED, DWSNETS)


def test_three_inputs_change_their_order_and_ranges():
    params, source = _params((3, 7, 2)), Convention(ranges=((0.0, 1.0), (-1.0, 2.0), (0.0, 4.0)))
    before = raw_outputs(params, places((2, 3, 4), source, dtype=torch.float64), source)
    after = raw_outputs(convert(params, source, NFN), places((2, 3, 4), NFN, dtype=torch.float64), NFN)
    torch.testing.assert_close(NFN.to_value(after), source.to_value(before), rtol=0, atol=1e-11)


@pytest.mark.parametrize("last", ["linear", "sine", "sigmoid", "tanh"])
@pytest.mark.parametrize("activation", ["sine", "relu", "tanh", "gelu", "silu", "sigmoid"])
def test_outputs_are_those_of_the_layers_one_by_one(activation, last):
    convention, params = Convention(omega=(30.0, 2.0), activation=activation, last=last), _params()
    functions = {"linear": lambda z: z, "relu": torch.relu, "tanh": torch.tanh, "sigmoid": torch.sigmoid}
    functions |= {"gelu": torch.nn.functional.gelu, "silu": torch.nn.functional.silu}
    coordinates = torch.rand(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for network in range(2):
        values = coordinates
        for i, (name, omega) in enumerate(zip((activation, activation, last), (30.0, 2.0, 2.0), strict=True)):
            values = values @ params[f"layers.{i}.weight"][network].mT + params[f"layers.{i}.bias"][network]
            values = torch.sin(omega * values) if name == "sine" else functions[name](values)
        torch.testing.assert_close(raw_outputs(params, coordinates, convention)[network], values, rtol=0, atol=1e-13)


def test_places_are_the_axes_in_order_and_in_range():
    video = places((2, 3, 4), Convention(coordinates="ij", ranges=((0.0, 1.0), (0.0, 2.0), (0.0, 3.0))))
    expected = torch.cartesian_prod(torch.arange(2.0), torch.arange(3.0), torch.arange(4.0))
    torch.testing.assert_close(video, expected)
    turned = places((2, 3, 4), Convention(ranges=((0.0, 3.0), (0.0, 2.0), (0.0, 1.0))))
    torch.testing.assert_close(turned, expected.flip(-1))
    assert places((5,), Convention()).squeeze(-1).tolist() == [-1.0, -0.5, 0.0, 0.5, 1.0]
    with pytest.raises(ParamsError, match="a network of 1 inputs under a convention with 2 ranges"):
        places((5,), TURNED)


def test_coin_divides_both_axes_by_the_height():
    height, width = 3, 5
    indices = torch.cartesian_prod(torch.arange(height), torch.arange(width)).double()
    expected = 2 * (indices / (height - 1) - 0.5)
    torch.testing.assert_close(places((height, width), coin_convention(height, width), dtype=torch.float64), expected)
    assert coin_convention(4, 4).ranges == ()


def test_frequencies_say_no_more_than_is_needed():
    assert Convention(omega=(30.0, 30.0)) == Convention() and Convention(omega=(30, 1, 1)).omega == (30.0, 1.0)
    assert SIREN_PYTORCH.omegas(4) == (30.0, 1.0, 1.0, 1.0)
    with pytest.raises(WeightEditError, match="expected one for all layers"):
        _ = SIREN_PYTORCH.frequency
    with pytest.raises(
        WeightEditError, match="expected one frequency, and coordinates in .*: convert it to convention.plain"
    ):
        TURNED.check_plain_siren()
    TURNED.plain.check_plain_siren()


@pytest.mark.parametrize("convention", [SIREN_PYTORCH, TURNED, Convention(omega=(9.0, 3.0), last="sine")])
def test_the_symmetry_knows_every_layers_frequency(convention):
    params = _params()
    spec = network_of(params, convention)
    element = random_element(spec, torch.Generator().manual_seed(0), count=4, dtype=torch.float64)
    moved = act(element, spec, params)
    assert max(float((moved[name] - params[name]).abs().max()) for name in params) > 0.1
    before, after = (render_images(p, convention, 4, 4) for p in (params, moved))
    torch.testing.assert_close(after, before, rtol=0, atol=1e-9)


def test_what_is_as_ever_is_written_as_ever():
    assert list(DWSNETS.to_dict()) == ["omega", "coordinates", "low", "high", "offset"]
    assert SIREN_PYTORCH.to_dict()["omega"] == [30.0, 1.0]
    for convention in (TURNED, SIREN_PYTORCH, Convention(activation="relu", last="sigmoid")):
        assert Convention.from_dict(convention.to_dict()) == convention
