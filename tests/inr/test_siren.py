"""SIRENs: the batched rendering equals the module, initializations follow their rule, grids are laid out as stated."""

import math

import pytest
import torch
from torch.func import functional_call, vmap

from tests.allocation import most_allocated
from tests.networks import relative
from tests.rounding import rounding
from weightedit.errors import ParamsError, WeightEditError
from weightedit.inr import siren
from weightedit.inr.convention import DWSNETS, NFN
from weightedit.inr.siren import Siren, coordinate_grid, initial_params, render, render_images
from weightedit.inr.stack import INRStack


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("widths", [(2, 5, 1), (2, 6, 4, 3), (3, 4, 5, 6, 2)])
def test_render_equals_the_module(widths):
    params = {name: t.double() for name, t in initial_params(3, widths, omega=20.0, generator=_generator()).items()}
    module = Siren(widths, omega=20.0).double()
    points = torch.rand(11, widths[0], generator=_generator(1), dtype=torch.float64) * 2 - 1
    slow = vmap(lambda p: functional_call(module, p, (points,)))(params)
    torch.testing.assert_close(render(params, points, omega=20.0), slow, rtol=0, atol=1e-13)
    single = {name: tensor[2] for name, tensor in params.items()}
    torch.testing.assert_close(render(single, points, omega=20.0), slow[2], rtol=0, atol=1e-13)
    own = torch.stack((points, points.flip(0), -points))
    torch.testing.assert_close(render(params, own, omega=20.0)[1], slow[1].flip(0), rtol=0, atol=1e-13)


def test_render_is_differentiable():
    params = {
        name: t.double().requires_grad_() for name, t in initial_params(2, (2, 3, 1), generator=_generator()).items()
    }
    points = coordinate_grid(3, 2, dtype=torch.float64)
    names = list(params)

    def function(*tensors):
        return render(dict(zip(names, tensors, strict=True)), points, omega=5.0)

    assert torch.autograd.gradcheck(function, tuple(params.values()))


@pytest.mark.parametrize("most", [1, 50, 400, 10_000])
@pytest.mark.parametrize("own_points", [False, True])
def test_chunks_of_networks_and_points_change_no_number(monkeypatch, most, own_points):
    params = {name: t.double() for name, t in initial_params(5, (2, 7, 6, 3), generator=_generator()).items()}
    points = torch.rand((5, 13, 2) if own_points else (13, 2), generator=_generator(1), dtype=torch.float64)
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in params.items()}
    whole, whole_leaves = render(params, points, omega=30.0), render(leaves, points, omega=30.0)
    expected = torch.autograd.grad(whole_leaves.sin().sum(), list(leaves.values()))
    allowed = rounding(30.0**2)
    monkeypatch.setattr(siren, "_CHUNK_CPU", most)
    with torch.no_grad():
        assert relative(render(params, points, omega=30.0), whole) < allowed
    found = render(leaves, points, omega=30.0)
    assert relative(found.detach(), whole) < allowed
    for got, wanted in zip(torch.autograd.grad(found.sin().sum(), list(leaves.values())), expected, strict=True):
        assert relative(got, wanted) < allowed
    if not own_points:
        with torch.no_grad():
            assert relative(vmap(lambda p: render(p, points, omega=30.0))(params), whole) < allowed


@pytest.mark.parametrize(("count", "size"), [(40, 28), (1, 180)])
def test_memory_of_a_rendering_is_bounded_by_its_result(monkeypatch, count, size):
    """In chunks of 10,000 numbers; all at once, a layer's activations take 32 times the result."""
    stack = INRStack(initial_params(count, (2, 32, 32, 1), generator=_generator()), DWSNETS, size, size)
    monkeypatch.setattr(siren, "_CHUNK_CPU", 10_000)
    with torch.no_grad():
        most = most_allocated(stack.render)
    result, grid, chunks = count * size * size * 4, 6 * size * size * 4, 8 * 10_000 * 4  # some copies of each
    assert most < 4 * result + grid + chunks


def test_module_has_canonical_names_and_a_reproducible_start():
    one, same = (Siren((2, 8, 1), generator=_generator(4)) for _ in range(2))
    assert list(dict(one.named_parameters())) == [
        "layers.0.weight",
        "layers.0.bias",
        "layers.1.weight",
        "layers.1.bias",
    ]
    start = initial_params(1, (2, 8, 1), generator=_generator(4))
    for name, tensor in one.named_parameters():
        assert torch.equal(tensor, same.get_parameter(name)) and torch.equal(tensor, start[name][0])
    assert one.omega == 30.0 and "omega=30.0" in repr(one)


@pytest.mark.parametrize(
    ("init", "bounds"),
    [
        ("siren", [1 / 2, math.sqrt(6 / 32) / 30, math.sqrt(6 / 32) / 30]),
        ("dwsnets", [math.sqrt(6 / 2) / 30, math.sqrt(6 / 32) / 30, math.sqrt(6 / 32) / 30]),
    ],
)
def test_initializations_follow_their_rule(init, bounds):
    params = initial_params(400, (2, 32, 32, 1), init=init, omega=30.0, generator=_generator())
    for layer, bound in enumerate(bounds):
        weight, bias = params[f"layers.{layer}.weight"], params[f"layers.{layer}.bias"]
        assert weight.abs().max() <= bound and weight.abs().max() > 0.99 * bound
        assert abs(float(weight.std()) / (bound / math.sqrt(3)) - 1) < 0.02
        expected = 0.0 if init == "dwsnets" else 1 / math.sqrt(2 if layer == 0 else 32)
        assert bias.abs().max() <= expected and bias.abs().max() >= 0.97 * expected
    assert not torch.equal(params["layers.1.weight"][0], params["layers.1.weight"][1])


def test_grid_layout():
    xy, ij = coordinate_grid(3, 5, "xy"), coordinate_grid(3, 5, "ij")
    assert xy.shape == (15, 2) and torch.equal(xy.flip(-1), ij)
    assert torch.equal(ij.reshape(3, 5, 2)[:, 0, 0], torch.linspace(-1, 1, 3))
    assert torch.equal(xy.reshape(3, 5, 2)[0, :, 0], torch.linspace(-1, 1, 5))


@pytest.mark.parametrize("convention", [DWSNETS, NFN])
def test_images_are_laid_out_as_rows_and_columns(convention):
    params = initial_params(2, (2, 6, 3), generator=_generator())
    images = render_images(params, convention, 4, 7)
    assert images.shape == (2, 3, 4, 7)
    row, column = -1 + 2 * 3 / 3, -1 + 2 * 2 / 6
    point = torch.tensor([[column, row] if convention.coordinates == "xy" else [row, column]])
    expected = convention.to_value(render(params, point, omega=30.0))[:, 0]
    torch.testing.assert_close(images[:, :, 3, 2], expected, rtol=0, atol=1e-5)
    single = {name: tensor[0] for name, tensor in params.items()}
    torch.testing.assert_close(render_images(single, convention, 4, 7), images[:1], rtol=0, atol=1e-5)


def test_bad_input_is_refused():
    params = initial_params(2, (2, 6, 3), generator=_generator())
    with pytest.raises(WeightEditError, match="initialization 'kaiming'"):
        initial_params(1, (2, 3, 1), init="kaiming")
    for widths in ((2, 1), (2, 0, 1), (2, 3.5, 1)):
        with pytest.raises(WeightEditError, match="at least one hidden layer"):
            initial_params(1, widths)
    with pytest.raises(WeightEditError, match="coordinate order 'yx'"):
        coordinate_grid(2, 2, "yx")
    with pytest.raises(WeightEditError, match="image size 0 x 2"):
        coordinate_grid(0, 2)
    with pytest.raises(ParamsError, match="coordinates"):
        render(params, torch.zeros(5, 3), omega=30.0)
    with pytest.raises(ParamsError, match="coordinates"):
        render(params, torch.zeros(3, 5, 2), omega=30.0)
    with pytest.raises(ParamsError, match="a network of 3 inputs"):
        render_images(initial_params(1, (3, 4, 1)), DWSNETS, 4, 4)
