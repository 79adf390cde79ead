"""Hand-written values and gradients agree with autograd; the separable first layer with the plain one."""

import pytest
import torch

from weightedit.inr.convention import Convention
from weightedit.inr.fitting_kernel import Kernel, ParameterLayout, PixelGrid
from weightedit.inr.siren import coordinate_grid, initial_params, render

CASES = [
    # widths, height, width, order, stride, offset, omega
    ((2, 5, 1), 7, 7, "xy", 1, (0, 0), 30.0),
    ((2, 6, 4, 3), 5, 8, "ij", 1, (0, 0), 30.0),
    ((2, 6, 4, 1), 9, 6, "xy", 2, (1, 0), 11.0),
    ((2, 4, 5, 6, 7, 2), 6, 7, "ij", 2, (0, 1), 30.0),
]


def _setup(widths, height, width, order, stride, offset, omega):
    generator = torch.Generator().manual_seed(0)
    params = {name: t.double() for name, t in initial_params(3, widths, omega=omega, generator=generator).items()}
    raw = torch.rand(3, widths[-1], height, width, generator=generator, dtype=torch.float64)
    layout = ParameterLayout(widths, omega)
    grid = PixelGrid.build((height, width), order, raw, stride=stride, offset=offset)
    points = coordinate_grid(height, width, order, dtype=torch.float64).reshape(height, width, 2)
    points = points[offset[0] :: stride, offset[1] :: stride].reshape(-1, 2)
    return params, raw, layout, grid, points


def _relative(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


def test_packing_round_trip():
    params, raw, layout, _, _ = _setup(*CASES[1])
    theta = layout.pack(params, raw)
    assert theta.shape == (3, 6 * 3 + 4 * 7 + 3 * 5) and layout.sine_size == 6 * 3 + 4 * 7 and layout.first_size == 18
    for name, tensor in layout.unpack(theta).items():
        torch.testing.assert_close(tensor, params[name], rtol=1e-15, atol=0)


@pytest.mark.parametrize("case", CASES)
def test_values_equal_plain_rendering(case):
    params, raw, layout, grid, points = _setup(*case)
    theta = layout.pack(params, raw)
    kernel = Kernel(layout, torch.float64, raw.device)
    targets = grid.targets(raw)
    kernel.forward(theta, grid)
    residual = kernel.apply_last(theta, targets)
    expected = render(params, points, omega=case[-1]) - targets[:, :-1].mT
    assert expected.std() > 0.01
    assert _relative(residual, expected) < 1e-13


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("solved", [True, False])
def test_gradients_equal_autograd(case, solved):
    params, raw, layout, grid, points = _setup(*case)
    theta, targets = layout.pack(params, raw), grid.targets(raw)
    gradient = torch.zeros_like(theta)
    kernel = Kernel(layout, torch.float64, raw.device)
    for _ in range(2):  # the second round works in used memory
        kernel.forward(theta, grid)
        if solved:
            kernel.collect(targets, anew=True)
            kernel.solve_last(theta, 1e-4)
        residual = kernel.apply_last(theta, targets)
        gradient.zero_()
        if not solved:
            kernel.last_gradient(grid, residual, gradient)
        kernel.backward(theta, grid, residual, gradient)
    current = {name: tensor.requires_grad_() for name, tensor in layout.unpack(theta).items()}
    error = render(current, points, omega=case[-1]) - targets[:, :-1].mT
    (error.square().sum() / (case[0][-1] * case[1] * case[2])).backward()
    scaled = {name: tensor.grad for name, tensor in current.items()}
    last = len(case[0]) - 2
    for i, layer in enumerate(layout.views(gradient)):
        for kind, found in zip(("weight", "bias"), layer, strict=True):
            if i == last and solved:
                assert not found.any()
                continue
            expected = scaled[f"layers.{i}.{kind}"] / (case[-1] if i < last else 1.0)
            assert _relative(found, expected) < 1e-11, (i, kind)


@pytest.mark.parametrize("case", CASES)
def test_solved_last_layer_is_the_ridge_minimum(case):
    params, raw, layout, grid, points = _setup(*case)
    theta, targets, ridge = layout.pack(params, raw), grid.targets(raw), 1e-3
    kernel = Kernel(layout, torch.float64, raw.device)
    features = kernel.forward(theta, grid).clone()
    kernel.collect(targets, anew=True)
    kernel.solve_last(theta, ridge)
    residual = kernel.apply_last(theta, targets).clone()
    weight, bias = (t.clone().requires_grad_() for t in layout.views(theta)[-1])
    error = features @ weight.mT + bias.unsqueeze(1) - targets[:, :-1].mT
    assert _relative(residual, error.detach()) < 1e-10
    loss = error.square().sum(2).mean(1) + ridge * weight.square().sum((1, 2))
    for gradient in torch.autograd.grad(loss.sum(), (weight, bias)):
        assert gradient.abs().max() < 1e-12


def _sums(kernel, theta, bands, raw):
    """Last layer, errors and gradient over the bands."""
    theta, gradient = theta.clone(), torch.zeros_like(theta)
    for band in bands:
        kernel.forward(theta, band, slopes=False)
        kernel.collect(band.targets(raw), anew=band is bands[0])
    kernel.solve_last(theta, 1e-4)
    residuals = []
    for band in bands:
        kernel.forward(theta, band)
        residuals.append(kernel.apply_last(theta, band.targets(raw)).clone())
        kernel.last_gradient(band, residuals[-1], gradient)
        kernel.backward(theta, band, residuals[-1].clone(), gradient)
    return theta, torch.cat(residuals, 1), gradient


@pytest.mark.parametrize("case", CASES)
def test_bands_add_up_to_the_whole(case):
    params, raw, layout, grid, _ = _setup(*case)
    kernel, theta = Kernel(layout, torch.float64, raw.device), layout.pack(params, raw)
    whole = _sums(kernel, theta, grid.bands(10**9), raw)
    assert len(grid.bands(10**9)) == 1 and len(grid.bands(1)) == len(grid.rows)
    for most in (1, 2 * len(grid.columns)):
        bands = grid.bands(most)
        assert sum(len(band.rows) for band in bands) == len(grid.rows) and len(bands) > 1
        for found, expected in zip(_sums(kernel, theta, bands, raw), whole, strict=True):
            assert _relative(found, expected) < 1e-10


def test_targets_are_those_of_the_chosen_pixels():
    raw = torch.arange(2 * 3 * 5 * 4, dtype=torch.float64).reshape(2, 3, 5, 4)
    grid = PixelGrid.build((5, 4), Convention().coordinates, raw, stride=2, offset=(1, 0))
    targets = grid.targets(raw)
    assert targets.shape == (2, 4, 2 * 2) and torch.equal(targets[:, 3], torch.ones(2, 4, dtype=torch.float64))
    assert torch.equal(targets[1, 2], raw[1, 2, 1::2, ::2].flatten())
