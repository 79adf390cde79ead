"""Conventions: conversions keep the picture, dictionaries round trip, bad values are refused."""

import itertools

import pytest
import torch

from weightedit.errors import ParamsError, WeightEditError
from weightedit.inr.convention import DWSNETS, NFN, Convention, convert, widths_of
from weightedit.inr.siren import initial_params, render_images

ODD = Convention(omega=17.0, coordinates="ij", low=-0.5, high=3.0, offset=0.25)


def _params(widths=(2, 7, 5, 3), count=4):
    params = initial_params(count, widths, generator=torch.Generator().manual_seed(3))
    return {name: tensor.double() for name, tensor in params.items()}


@pytest.mark.parametrize(("source", "target"), list(itertools.permutations((DWSNETS, NFN, ODD), 2)))
def test_conversion_keeps_the_picture(source, target):
    params = _params()
    before = render_images(params, source, 9, 6)
    after = render_images(convert(params, source, target), target, 9, 6)
    assert before.std() > 0.01
    torch.testing.assert_close(after, before, rtol=0, atol=1e-12)
    back = convert(convert(params, source, target), target, source)
    for name in params:
        torch.testing.assert_close(back[name], params[name], rtol=0, atol=1e-13)


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


def test_coordinate_order_changes_only_with_two_inputs():
    with pytest.raises(ParamsError, match="a network of 3 inputs"):
        convert(_params((3, 4, 1)), DWSNETS, NFN)
