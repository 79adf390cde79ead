"""Samples in place of pixels: the same steps as on pictures, derivatives of any number of inputs, fits and edits."""

import math
from dataclasses import replace

import pytest
import torch

import weightedit as we
from weightedit.editing import rendering_problem, sample_fitting
from weightedit.editing.curvature import KFAC, LevenbergMarquardt
from weightedit.editing.evaluation import sample_errors
from weightedit.editing.refinement import refine, samples_of
from weightedit.editing.rendering_problem import RenderingProblem
from weightedit.editing.sample_fitting import MOST, TARGET, fit_samples
from weightedit.errors import ParamsError
from weightedit.inr.convention import SAMPLES, Convention, convert
from weightedit.inr.samples import Samples
from weightedit.inr.siren import initial_params, places, raw_outputs
from weightedit.inr.stack import INRStack

GENERATOR = torch.Generator().manual_seed(4)


def fresh(inputs: int, convention: Convention = SAMPLES, outputs: int = 2, count: int = 3) -> INRStack:
    params = initial_params(count, (inputs, 8, 7, outputs), generator=torch.Generator().manual_seed(1))
    params = {name: tensor.double() for name, tensor in params.items()}
    return INRStack(convert(params, replace(SAMPLES, coordinates=convention.coordinates), convention), convention, 5, 6)


def wanted(inputs: int, count: int = 3, places: int = 40, outputs: int = 2) -> Samples:
    """Each network with places of its own, and values far from [0, 1]."""
    where = 2 * torch.rand(count, places, inputs, generator=GENERATOR, dtype=torch.float64) - 1
    return Samples(where, 40 * torch.randn(count, places, outputs, generator=GENERATOR, dtype=torch.float64) + 7)


@pytest.mark.parametrize("order", ["xy", "ij"])
def test_samples_on_the_pixels_are_the_picture(order: str) -> None:
    convention = Convention(coordinates=order)
    stack = replace(fresh(2, replace(SAMPLES, coordinates=order)), convention=convention)
    pictures = torch.rand(3, 2, 5, 6, generator=GENERATOR, dtype=torch.float64)
    values = pictures.flatten(2).mT
    problem = RenderingProblem(convention, pictures)
    same = RenderingProblem.of_samples(convention, problem.grid[:, :-1], values)
    layers = problem.layers(stack.params)
    for one, other in zip(*(p.summarize(layers, ridge=1e-4, factors=True) for p in (problem, same)), strict=True):
        torch.testing.assert_close(one, other)
    assert torch.equal(
        sample_errors(stack, Samples(places((5, 6), convention, dtype=torch.float64), values)),
        (stack.at() - values).square().mean((1, 2)),
    )


@pytest.mark.parametrize("inputs", [1, 2, 3])
def test_gradients_and_factors_for_any_number_of_inputs(inputs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    samples, stack = wanted(inputs), fresh(inputs)
    problem = RenderingProblem.of_samples(SAMPLES, samples.coordinates, samples.values)
    layers = problem.layers(stack.params)
    found = problem.summarize(layers, factors=True)
    params = {name: tensor.clone().requires_grad_() for name, tensor in stack.params.items()}
    raw = raw_outputs(params, samples.coordinates, SAMPLES)
    (raw - samples.values).square().mean((1, 2)).sum().backward()
    for name, gradient in problem.gradients(found).items():
        torch.testing.assert_close(gradient, params[name].grad)
    own = torch.cat([samples.coordinates, torch.ones_like(samples.coordinates[..., :1])], -1)
    torch.testing.assert_close(found.factors[0][1], own.mT @ own / samples.count)
    monkeypatch.setattr(rendering_problem, "SEEN", 1)
    monkeypatch.setattr(rendering_problem, "SEEN_BY_NEURON", 1)
    assert problem.thinned(layers) is problem, "samples have no order"
    monkeypatch.setattr(rendering_problem, "_BAND_CPU", 3 * 8 * 11)  # four bands
    assert [band.places for band in problem.bands(layers)] == [11, 11, 11, 7]
    for one, other in zip(
        problem.summarize(layers, ridge=1e-4, factors=True),
        RenderingProblem.of_samples(SAMPLES, samples.coordinates, samples.values).summarize(
            layers, ridge=1e-4, factors=True
        ),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


CONVENTIONS = {
    "samples": SAMPLES,
    "ranges, frequencies": Convention((20.0, 5.0), offset=0.3, ranges=((0.0, 5.0), (8.0, 0.0)), bounded=False),
    "sine at the end": Convention(offset=0.0, last="sine", bounded=False),
}


@pytest.mark.parametrize("rule", [None, KFAC(), LevenbergMarquardt()], ids=["learned", "kfac", "lm"])
@pytest.mark.parametrize("name", CONVENTIONS)
def test_no_step_raises_an_error_and_most_lower_it(name: str, rule) -> None:
    convention = CONVENTIONS[name]
    near = replace(convention, last="linear")
    stack = replace(fresh(2, near), convention=convention)
    samples = wanted(2)
    if convention.ranges:
        samples = Samples(samples.coordinates * torch.tensor([2.5, 4.0]) + torch.tensor([2.5, 4.0]), samples.values)
    errors = [sample_errors(refine(stack, samples, steps, rule=rule), samples) for steps in (1, 4, 8)]
    before = sample_errors(stack, samples)
    assert all(bool((after <= before).all()) for after in errors) and bool((errors[-1] < before).all())


def test_units_of_the_values_do_not_matter() -> None:
    samples, stack = wanted(2), fresh(2)
    factor = torch.tensor([1.0, 1e-3, 1e4], dtype=torch.float64)
    last = {f"layers.2.{kind}" for kind in ("weight", "bias")}

    def scaled(params: we.network.spec.Params) -> dict[str, torch.Tensor]:
        return {n: t * factor.view(-1, *[1] * (t.dim() - 1)) if n in last else t for n, t in params.items()}

    expected = scaled(refine(stack, samples, 3).params)
    larger = Samples(samples.coordinates, samples.values * factor.view(-1, 1, 1))
    found = refine(replace(stack, params=scaled(stack.params)), larger, 3).params
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor)


def chord(rate: int) -> Samples:
    """A second of three decaying notes, in float32."""
    time = torch.arange(rate) / rate
    notes = [torch.sin(2 * math.pi * note * time) * torch.exp(-2 * time) for note in (55.0, 69.3, 82.4)]
    return Samples(places((rate,), SAMPLES), 0.3 * torch.stack(notes).sum(0).unsqueeze(1))


def test_a_second_of_a_chord_is_fitted() -> None:
    sound = chord(1000)
    found = fit_samples(sound, generator=torch.Generator().manual_seed(0))
    stack, span = found.stack, sound.values.max() - sound.values.min()
    torch.testing.assert_close(found.psnr, 10 * (span.square() / sample_errors(stack, sound)).log10())
    assert float(found.psnr) >= TARGET and not len(found.missed) and int(found.steps) < MOST
    assert stack.widths == (1, 32, 32, 1) and stack.convention.omega == (125.0, 30.0) and stack.shape == (1000,)
    assert torch.equal(stack.psnr, found.psnr)
    soft = we.edit(stack, lambda values: values / 2, steps=5)
    torch.testing.assert_close(soft.at(), stack.at() / 2, atol=0.02, rtol=0)
    assert we.undo(soft).params["layers.0.bias"] is stack.params["layers.0.bias"]


def test_of_many_samples_a_step_sees_some(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each round others, so that all are fitted; what a step sees bounds memory."""
    monkeypatch.setattr(sample_fitting, "SEEN", 300)
    seen = []

    def watched(stack: INRStack, samples: Samples, *words, **options) -> INRStack:
        seen.append(samples.count)
        return refine(stack, samples, *words, **options)

    monkeypatch.setattr(sample_fitting, "refine", watched)
    found = fit_samples(chord(1000), target_psnr=40, generator=torch.Generator().manual_seed(0))
    assert float(found.psnr) >= 40 and set(seen) == {300}


def test_the_frequency_of_the_first_layer_follows_the_number_of_samples() -> None:
    def first(count: int, inputs: int = 1) -> float:
        return Samples(torch.zeros(count, inputs), torch.zeros(count, 1)).convention().omegas(1)[0]

    assert [first(n) for n in (10, 100, 8000, 32_000)] == [5.0, 30.0, 1000.0, 2000.0]
    assert first(8000, 3) == 10.0 and first(10**6, 2) == 125.0


def distance(where: torch.Tensor) -> torch.Tensor:
    """To a circle of radius 1/2."""
    return where.norm(dim=-1, keepdim=True) - 0.5


@pytest.mark.slow
def test_a_clip_of_32_frames_is_fitted() -> None:
    """Three balls that move, a color each, 32 frames of 32 x 32; some fifteen seconds of a core."""
    grid = (32, 32, 32)
    x, y, time = places(grid, SAMPLES).split(1, 1)
    turn = math.pi * time + torch.arange(3) * 2.1
    far = ((x - 0.6 * turn.cos()).square() + (y - 0.6 * turn.sin()).square()).sqrt()
    clip = Samples(places(grid, SAMPLES), torch.sigmoid(40 * (0.3 - far)), grid)
    found = fit_samples(clip, hidden=(64, 64, 64), max_steps=40, generator=torch.Generator().manual_seed(0))
    assert float(found.psnr) > 27 and found.stack.shape == grid


def test_a_grid_has_the_places_of_its_samples() -> None:
    where, values = places((3, 2, 2), SAMPLES), torch.zeros(12, 1)
    assert Samples(where, values, (3, 2, 2)).shape() == (2, 2)
    for grid in ((3, 2), (3, 2, 3)):
        with pytest.raises(ParamsError, match="for 12 samples of 3 inputs; expected one number of places for each"):
            Samples(where, values, grid)


def test_a_distance_function_is_fitted_and_edited() -> None:
    where = 2 * torch.rand(900, 2, generator=GENERATOR) - 1
    inrs = we.fit(Samples(where, distance(where)), [32, 32], seed=0)
    assert inrs.psnr is not None and float(inrs.psnr) >= TARGET and not inrs.of_pictures and inrs.shape == (30, 30)
    other = (where - 0.5).norm(dim=-1, keepdim=True) - 0.3
    union = Samples(where, torch.minimum(distance(where), other))
    joined = we.edit(inrs, union)
    assert float(sample_errors(joined, union)) < 0.05 * float(sample_errors(inrs, union))
    grown = we.edit(inrs, lambda values: values - 0.25, at=where, steps=3)
    torch.testing.assert_close(grown.at(where), inrs.at(where) - 0.25, atol=0.05, rtol=0)
    half = samples_of(lambda values: values - 0.25, inrs, where, strength=0.5)
    torch.testing.assert_close(half.values, inrs.at(where) - 0.125)


def test_a_fit_that_misses_says_so_and_memory_is_bounded() -> None:
    noise = Samples(places((3000,), SAMPLES), torch.randn(2, 3000, 1, generator=GENERATOR))
    found = fit_samples(noise, hidden=(8,), max_steps=3, generator=torch.Generator().manual_seed(0))
    assert found.missed.tolist() == [0, 1] and found.steps.tolist() == [3, 3] and bool((found.psnr < TARGET).all())


def test_what_is_for_pictures_is_refused_and_what_goes_wrong_in_a_function_is_one_line() -> None:
    sound, picture = fresh(1), replace(fresh(2), convention=Convention())
    told = "got INRs of 1 inputs with values of any size for .*; expected pictures"
    for wanted_of in ("invert", we.OPERATIONS["invert"], torch.rand(3, 2, 5, 6)):
        with pytest.raises(we.ParamsError, match=told):
            we.edit(sound, wanted_of)
    with pytest.raises(we.ParamsError, match="got INRs of 2 inputs with values of any size for an editor"):
        we.Editor.from_pretrained("mnist-dilate")(fresh(2, outputs=1))
    where = torch.rand(4, 2, dtype=torch.float64)
    for words, message in (
        ((picture, "invert", where), "got at with an operation of pictures; expected a function of values"),
        ((picture, Samples(where, torch.rand(3, 4, 2)), where), "got at with samples; expected it with a function"),
        ((sound, lambda values: values / 0, None), "returned NaN or infinite values; expected finite ones"),
        ((sound, lambda values: values[0], None), r"returned torch.float64 \(30, 2\) for values \(3, 30, 2\)"),
        ((sound, lambda values: 1 / len(values) / 0, None), r"raised ZeroDivisionError \(.*; expected one of values"),
    ):
        with pytest.raises(we.WeightEditError, match=message):
            we.edit(words[0], words[1], at=words[2])
    for strength, message in (
        (-1.0, "got strength -1.0; expected finite"),
        (torch.ones(2), r"shape \(2,\) for 3 INRs"),
    ):
        with pytest.raises(we.WeightEditError, match=message):
            we.edit(sound, torch.neg, strength=strength)
    with pytest.raises(
        we.ParamsError, match="samples of 3 INRs from 2 inputs to 2 outputs for 3 from 1 to 2; expected"
    ):
        we.edit(sound, wanted(2))
    with pytest.raises(we.WeightEditError, match="target_psnr=-1: expected a positive number"):
        we.fit(wanted(1), target_psnr=-1)
    with pytest.raises(we.WeightEditError, match="got init; expected some of target_psnr, max_steps, convention"):
        we.fit(wanted(1), init="siren")
