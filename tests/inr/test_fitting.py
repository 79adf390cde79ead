"""Fitting: targets are reached and truthfully reported, misses are listed, Adam is torch's, bad input is refused."""

import logging
import re

import pytest
import torch

from weightedit.errors import ParamsError, WeightEditError
from weightedit.inr.convention import NFN, Convention
from weightedit.inr.fitting import FitOptions, FitResult, cost_of_fit, fit, hidden_widths
from weightedit.inr.siren import initial_params, render_images


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


def _images(count=6, channels=1, height=16, width=16, dtype=torch.float32):
    """Smooth random blobs in [0, 1]."""
    noise = torch.rand(count, channels, 5, 5, generator=_generator(7), dtype=dtype)
    smooth = torch.nn.functional.interpolate(noise, (height, width), mode="bicubic", align_corners=True)
    return smooth.clamp(0, 1)


def _psnr(result: FitResult, images):
    rendered = render_images(result.stack.params, result.stack.convention, *images.shape[2:])
    return -10 * torch.log10((rendered - images).square().mean((1, 2, 3)).clamp(min=torch.finfo(images.dtype).eps ** 2))


@pytest.mark.parametrize(
    ("widths", "size", "convention"),
    [
        ((2, 32, 32, 1), (28, 28), Convention()),
        ((2, 96, 3), (17, 12), NFN),
        ((2, 20, 20, 20, 1), (15, 22), Convention(omega=20.0, coordinates="ij", low=-2.0, high=5.0, offset=1.0)),
        ((2, 16, 24, 1), (1, 30), Convention()),
        (None, (9, 9), Convention()),
    ],
)
def test_fits_reach_the_target_and_report_the_rendering(widths, size, convention):
    images = _images(5, widths[-1] if widths else 3, *size)
    result = fit(
        images, widths=widths, convention=convention, options=FitOptions(target_psnr=35.0), generator=_generator()
    )
    assert result.missed.tolist() == [] and len(result.kept()) == len(result.stack) == 5
    assert result.psnr.min() >= 35.0
    torch.testing.assert_close(result.psnr, _psnr(result, images), rtol=0, atol=1e-3)
    assert torch.equal(result.stack.psnr, result.psnr) and result.stack.convention == convention
    assert result.stack.widths == (widths or (2, 32, 32, 3)) and (result.stack.height, result.stack.width) == size
    assert result.steps.shape == (5,) and result.steps.max() < 200
    for i in range(len(result.stack.widths) - 1):
        assert result.stack.params[f"layers.{i}.weight"].std() < 1.0


def test_result_does_not_depend_on_chunks_or_rounding_of_others():
    images = _images(7, dtype=torch.float64)
    results = [fit(images, options=FitOptions(chunk=chunk), generator=_generator()) for chunk in (2, 7)]
    for name, tensor in results[0].stack.params.items():
        assert tensor.dtype == torch.float64
        torch.testing.assert_close(tensor, results[1].stack.params[name], rtol=1e-5, atol=1e-7)
    assert torch.equal(results[0].steps, results[1].steps)


@pytest.mark.parametrize("method", ["fast", "adam"])
@pytest.mark.parametrize("size", [(16, 16), (44, 48)])
def test_a_picture_in_bands_is_fitted_as_it_is_in_one_piece(method, size):
    """Also in bands that are not all of one height, and on coarse grids."""
    images = _images(2, 3, *size, dtype=torch.float64)
    fits = []
    for band in (None, 5 * size[1], 1):
        options = FitOptions(method=method, max_steps=9, target_psnr=90.0, band=band, retries=0)
        fits.append(fit(images, widths=(2, 9, 8, 3), options=options, generator=_generator()))
    assert fits[0].psnr.min() > 10
    for found in fits[1:]:
        torch.testing.assert_close(found.psnr, fits[0].psnr, rtol=1e-10, atol=0)
        for name, tensor in fits[0].stack.params.items():
            torch.testing.assert_close(found.stack.params[name], tensor, rtol=1e-8, atol=1e-10)


def test_memory_does_not_grow_with_the_picture():
    """Beyond pixels, targets and their coordinates, a few numbers each; and nothing of that size is taken to say so."""
    options, widths = FitOptions(band=1024, max_steps=1), (2, 128, 128, 128, 3)
    (small, few), (large, many) = (cost_of_fit((1, 3, side, side), widths, options) for side in (64, 512))
    assert 0 < large - small < 40e6 and 5 < many / few < 1000
    assert cost_of_fit((1, 3, 512, 512), widths, FitOptions(band=2**16, max_steps=1))[0] > 2e8


def test_two_runs_are_equal_and_inits_independent():
    images = _images(1).expand(3, 1, 16, 16)
    one, two = (fit(images, generator=_generator()) for _ in range(2))
    for name, tensor in one.stack.params.items():
        assert torch.equal(tensor, two.stack.params[name])
    weights = one.stack.params["layers.0.weight"]
    assert (weights[0] - weights[1]).abs().max() > 0.1


@pytest.mark.parametrize("value", [0.0, 1.0, 0.3])
def test_a_solid_picture_is_met_to_rounding(value):
    result = fit(torch.full((2, 3, 8, 8), value), generator=_generator())
    assert result.missed.tolist() == [] and bool(((result.psnr > 40) & (result.psnr < 140)).all())


def test_bytes_are_read_as_0_to_255():
    images = (_images(2) * 255).round().to(torch.uint8)
    result = fit(images, generator=_generator())
    torch.testing.assert_close(_psnr(result, images.float() / 255), result.psnr, rtol=0, atol=1e-3)


def test_misses_are_listed_logged_and_left_out(caplog):
    images = _images(4)
    images[1], images[2] = torch.rand(1, 16, 16, generator=_generator()), 0.5
    options = FitOptions(target_psnr=45.0, max_steps=60, retries=1)
    with caplog.at_level(logging.WARNING):
        result = fit(images, widths=(2, 12, 12, 1), options=options, generator=_generator())
    below = torch.nonzero(result.psnr < 45.0).squeeze(1)
    assert 1 in result.missed and 2 not in result.missed and torch.equal(result.missed, below)
    assert len(result.stack) == 4 and len(result.kept()) == 4 - len(below)
    assert result.kept().psnr.min() >= 45.0
    assert "missed 45 dB" in caplog.text
    torch.testing.assert_close(result.psnr, _psnr(result, images), rtol=0, atol=1e-3)


def test_a_retry_starts_afresh_and_keeps_the_better():
    images = _images(6)
    options = {"target_psnr": 80.0, "max_steps": 25}
    once = fit(images, options=FitOptions(**options, retries=0), generator=_generator())
    thrice = fit(images, options=FitOptions(**options, retries=2), generator=_generator())
    assert len(once.missed) == 6
    assert bool((thrice.psnr >= once.psnr).all()) and bool((thrice.psnr > once.psnr).any())
    torch.testing.assert_close(thrice.psnr, _psnr(thrice, images), rtol=1e-3, atol=1e-3)


def test_a_diverged_fit_is_missed_and_comes_back_as_its_start():
    start = initial_params(2, (2, 32, 32, 1), generator=_generator())
    options = FitOptions(method="adam", learning_rate=1e36, max_steps=5)
    result = fit(_images(2), initial=start, options=options)
    assert result.missed.tolist() == [0, 1] and bool(result.psnr.isfinite().all())
    for name, tensor in start.items():
        torch.testing.assert_close(result.stack.params[name], tensor)


@pytest.mark.parametrize("max_steps", [1, 2, 20])
def test_a_few_steps_fit_too(max_steps):
    """Of which none, once, saw all pixels: the initial network came back."""
    images = _images(3, height=28, width=28)
    start = initial_params(3, (2, 32, 32, 1), generator=_generator())
    options = FitOptions(max_steps=max_steps, target_psnr=80.0)
    result = fit(images, initial=start, options=options)
    before = -10 * torch.log10((render_images(start, Convention(), 28, 28) - images).square().mean((1, 2, 3)))
    assert bool((result.psnr > before + 1).all()) and result.steps.tolist() == [max_steps - 1] * 3


def test_the_best_iterate_comes_back_and_a_fit_that_diverges_goes_on_slower():
    """At a rate that is far too high, with steps that first raise the error a hundredfold."""
    images = _images(3)
    fits = [
        fit(images, options=FitOptions(method="adam", learning_rate=rate, max_steps=steps, target_psnr=80.0, retries=0),
            generator=_generator())
        for rate, steps in ((5e-4, 1), (0.2, 11), (0.2, 121), (5e-4, 121))
    ]  # fmt: skip
    start, early, late, slow = (float(result.psnr.min()) for result in fits)
    assert start <= early + 1e-3 and late > early + 1 and slow > start


@pytest.mark.parametrize("hidden", [(64, 64, 64), (32, 32, 32, 32)])
def test_deep_networks_are_fitted_at_the_default_rate(hidden):
    images = _images(2, 3, 24, 24)
    options = FitOptions(target_psnr=38.0, retries=0, max_steps=100)
    assert fit(images, widths=(2, *hidden, 3), options=options, generator=_generator()).missed.tolist() == []


def test_defaults_follow_the_initialization_and_the_size():
    sizes = ((28, 28), (40, 40), (64, 64), (96, 96), (97, 96), (256, 256))
    assert [FitOptions().target(size) for size in sizes] == [40, 40, 35, 35, 30, 30]
    assert FitOptions(init="dwsnets").target((28, 28)) == FitOptions(init="dwsnets").target((256, 256)) == 18
    assert FitOptions(init="dwsnets", method="adam").target((28, 28)) == 25
    assert FitOptions(init="dwsnets", target_psnr=9).target((256, 256)) == 9
    result = fit(_images(2, height=28, width=28), options=FitOptions(init="dwsnets"), generator=_generator())
    assert result.missed.tolist() == [] and result.stack.provenance["target_psnr"] == "18"
    assert hidden_widths(28, 28) == (32, 32) and hidden_widths(64, 64) == (64, 64, 64)
    assert fit(_images(1, 3, 41, 41), options=FitOptions(max_steps=1, retries=0)).stack.widths == (2, 64, 64, 64, 3)


def test_warm_start_needs_fewer_steps_and_keeps_the_start():
    images = _images(5)
    cold = fit(images, generator=_generator())
    before = {name: tensor.clone() for name, tensor in cold.stack.params.items()}
    warm = fit(images, initial=cold.stack.params, options=FitOptions(method="adam"))
    assert warm.steps.tolist() == [0] * 5 and warm.stack.provenance["init"] == "given"
    for name, tensor in before.items():
        assert torch.equal(cold.stack.params[name], tensor)
        torch.testing.assert_close(warm.stack.params[name], tensor, rtol=1e-6, atol=1e-8)
    darker = fit(images * 0.9, initial=cold.stack.params)
    assert darker.steps.float().mean() < cold.steps.float().mean()


def test_the_default_is_smoother_between_the_pixels_than_fast():
    """Against bicubic interpolation at four times the size; on 32 MNIST images 28.5 and 23.4 dB."""
    images = _images(4, height=20, width=20)
    expected = torch.nn.functional.interpolate(images, (77, 77), mode="bicubic", align_corners=True)
    errors = []
    for method in ("smooth", "fast"):
        found = fit(images, options=FitOptions(method=method), generator=_generator())
        assert found.missed.tolist() == []
        errors.append(float((found.stack.render(77, 77) - expected).square().mean()))
    assert errors[0] < 0.7 * errors[1]


def test_adam_is_that_of_torch():
    images = _images(3, dtype=torch.float64)
    widths, convention = (2, 8, 6, 1), Convention()
    start = {name: t.double() for name, t in initial_params(3, widths, generator=_generator()).items()}
    options = FitOptions(method="adam", max_steps=11, learning_rate=2e-3, target_psnr=90.0)
    fast = fit(images, widths=widths, options=options, initial=start).stack.params
    slow = {name: tensor.clone().requires_grad_() for name, tensor in start.items()}
    optimizer = torch.optim.Adam(slow.values(), lr=2e-3)
    for _ in range(10):
        optimizer.zero_grad()
        (render_images(slow, convention, 16, 16) - images).square().mean((1, 2, 3)).sum().backward()
        optimizer.step()
    for name, tensor in slow.items():
        torch.testing.assert_close(fast[name], tensor.detach(), rtol=1e-8, atol=1e-9)


def test_published_recipe_runs_and_says_so():
    options = FitOptions(method="adam", init="dwsnets", target_psnr=18.0, learning_rate=2e-3)
    result = fit(_images(2), options=options, generator=_generator())
    assert result.missed.tolist() == [] and result.psnr.min() >= 18.0
    provenance = result.stack.provenance
    assert provenance["init"] == "dwsnets" and provenance["method"] == "adam"
    assert provenance["learning_rate"] == "0.002" and provenance["target_psnr"] == "18"
    assert " to " in provenance["steps"]


def test_progress_goes_to_stderr_only_when_asked(capsys):
    fit(_images(2), generator=_generator())
    assert capsys.readouterr() == ("", "")
    fit(_images(2), generator=_generator(), progress=True)
    shown = capsys.readouterr()
    assert shown.out == "" and "2/2" in shown.err and re.search(r"step 0 of 200, [0-9.]+ dB", shown.err)


def test_no_images_give_an_empty_stack():
    result = fit(torch.zeros(0, 1, 8, 8))
    assert len(result.stack) == 0 and result.missed.tolist() == [] and len(result.kept()) == 0


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(2, 8, 8), "channels, height, width"),
        ([1.0], "images list"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.int64), "floating point in"),
        (torch.full((2, 1, 8, 8), float("nan")), "image 0 \\(and 1 more\\)"),
        (torch.full((2, 1, 8, 8), 255.0), "outside \\[0, 1\\]"),
        (torch.full((2, 1, 8, 8), -0.1), "outside \\[0, 1\\]"),
    ],
)
def test_bad_images_are_refused(images, message):
    with pytest.raises(ParamsError, match=message):
        fit(images)


def test_bad_widths_and_starts_are_refused():
    images = _images(2)
    with pytest.raises(ParamsError, match="images of 1 channels"):
        fit(images, widths=(2, 8, 3))
    with pytest.raises(ParamsError, match="images of 1 channels"):
        fit(images, widths=(3, 8, 1))
    with pytest.raises(WeightEditError, match="at least one hidden"):
        fit(images, widths=(2, 1))
    with pytest.raises(ParamsError, match="expected 2 stacked networks"):
        fit(images, initial=initial_params(3, (2, 32, 32, 1)))
    start = initial_params(2, (2, 32, 32, 1))
    start["layers.1.bias"][0, 0] = float("inf")
    with pytest.raises(ParamsError, match="NaN or infinite"):
        fit(images, initial=start)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "sgd"}, "method='sgd'"),
        ({"init": "kaiming"}, "init='kaiming'"),
        ({"max_steps": 0}, "max_steps=0"),
        ({"chunk": 1.5}, "chunk=1.5"),
        ({"retries": -1}, "retries=-1"),
        ({"band": 0}, "band=0"),
        ({"max_steps": True}, "max_steps=True"),
        ({"target_psnr": True}, "target_psnr=True"),
        ({"target_psnr": float("inf")}, "target_psnr=inf"),
        ({"learning_rate": -1.0}, "learning_rate=-1.0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(WeightEditError, match=message):
        FitOptions(**options)
