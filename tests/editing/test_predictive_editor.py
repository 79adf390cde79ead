"""Predicted pictures and the editor that steps towards them: symmetry, strengths, architectures, learning, disk."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from weightedit.editing.curvature import LearnedKFAC, LearnedKFACConfig
from weightedit.editing.editor import Editor
from weightedit.editing.evaluation import mean_squared_errors
from weightedit.editing.one_shot import OneShotEditor
from weightedit.editing.operations import OPERATIONS, operation
from weightedit.editing.predictive_editor import PredictiveEditor
from weightedit.editing.predictor import Predictor, PredictorConfig, ToneCurves, warp
from weightedit.editing.refinement import refine, take_steps
from weightedit.errors import FileFormatError, ParamsError, SpecError, WeightEditError
from weightedit.inr.convention import NFN, Convention, convert
from weightedit.inr.fitting import fit
from weightedit.inr.siren import initial_params
from weightedit.inr.stack import INRStack
from weightedit.metanet.gauge_gmn.config import GaugeGMNConfig
from weightedit.metanet.gauge_gmn.network import GaugeGMN
from weightedit.network.symmetry import act, random_element
from weightedit.testing import assert_equivariant

TWO = ("dilate", "rotate")


def make_predictor(**changes) -> Predictor:
    torch.manual_seed(0)
    predictor = Predictor(PredictorConfig(**{"operations": TWO, "width": 6, "tiles": 3, "warp": True, **changes}))
    if predictor.generators is not None:
        torch.nn.init.normal_(predictor.generators, std=0.05)
    return predictor


def make_editor(steps=2, **changes) -> PredictiveEditor:
    return PredictiveEditor(make_predictor(**changes), LearnedKFAC(LearnedKFACConfig()), steps).eval()


def make_stack(widths=(2, 7, 5, 1), count=3, convention=None, dtype=torch.float32, size=(9, 8)) -> INRStack:
    params = initial_params(count, widths, generator=torch.Generator().manual_seed(1))
    return INRStack({k: v.to(dtype) for k, v in params.items()}, convention or Convention(), *size)


def test_strength_zero_changes_nothing_and_small_strengths_little():
    editor, images = make_editor(), torch.rand(3, 1, 9, 8)
    codes = torch.tensor([0, 1, 1])
    torch.testing.assert_close(editor.predictor(images, codes, torch.zeros(3)), images, rtol=0, atol=1e-5)
    stack = fit(functional.interpolate(images, (16, 16))).stack
    for name in TWO:
        same = editor.unguarded(stack, name, strength=0.0)
        assert all(torch.equal(same.params[key], stack.params[key]) for key in stack.params)
        edits = [editor.unguarded(stack, name, strength=strength).render() for strength in (0.01, 1.0)]
        near, far = (float((edited - stack.render()).square().mean()) for edited in edits)
        assert near < 0.1 * far, name
    each = editor.unguarded(stack, "dilate", strength=torch.tensor([0.0, 1.0, 0.0]))
    changed = (each.params["layers.1.weight"] != stack.params["layers.1.weight"]).flatten(1).any(1)
    assert changed.tolist() == [False, True, False]


def test_patches_look_further_at_any_size():
    """The change at a pixel depends on others two patches away, and a picture need be no multiple of a patch."""
    predictor = make_predictor(operations=("dilate",), tiles=0, warp=False, patch=3, blocks=1).double()
    one = torch.rand(1, 1, 10, 8, dtype=torch.float64)
    other = one.clone()
    other[0, 0, 9, 4] += 0.5
    codes, strengths = torch.zeros(1, dtype=torch.long), torch.ones(1, dtype=torch.float64)
    found = (predictor(other, codes, strengths) - predictor(one, codes, strengths)).detach().abs()[0, 0]
    assert found.shape == (10, 8) and bool((found[3:9] > 0).any()) and float(found[:3].max()) == 0


ANY = {"channels": 0, "curves": 5}


def test_gray_and_color_are_one_to_an_editor_for_any_channels():
    predictor, images, codes = make_predictor(**ANY), torch.rand(3, 3, 9, 8), torch.tensor([0, 1, 1])
    strengths = torch.tensor([1.0, 0.3, 0.0])
    gray = predictor(images[:, :1], codes, strengths)
    torch.testing.assert_close(
        predictor(images[:, :1].expand(-1, 3, -1, -1), codes, strengths), gray.expand(3, 3, 9, 8)
    )
    found = predictor(images, codes, strengths)
    torch.testing.assert_close(found[2], images[2])
    assert float((found - images)[:2].detach().abs().amax()) > 1e-3
    mirrored = predictor(images[:, [0, 0, 2]], codes, strengths)
    assert torch.equal(mirrored[:, 0], mirrored[:, 1]), "a channel's place does not matter"
    assert make_editor(**ANY).channels is None
    for channels in (1, 2, 3):
        assert make_editor(**ANY)(make_stack((2, 7, channels)), "dilate").widths[-1] == channels


def test_what_sees_more_starts_from_what_sees_less():
    small, images = make_predictor(), torch.rand(3, 1, 9, 8)
    large, codes, strengths = Predictor(replace(small.config, **ANY, seed=5)), torch.tensor([0, 1, 0]), torch.rand(3)
    large.take_over(small)
    torch.testing.assert_close(large(images, codes, strengths), small(images, codes, strengths))
    colored = torch.cat([images, images.flip(-1)], 1)
    found = large(colored, codes, strengths)
    assert not torch.allclose(found[:, :1], small(images, codes, strengths)), "the context is of the lightness"
    for other in (make_predictor(width=5), make_predictor(channels=3), make_predictor(operations=("dilate", "shift"))):
        with pytest.raises(SpecError, match="expected one that differs in what it sees"):
            large.take_over(other)
    sized = Predictor(replace(large.config, sized=True))
    sized.take_over(large)
    assert torch.equal(sized(colored, codes, strengths), found), "sizes count for nothing at first"
    with pytest.raises(SpecError, match="expected one that differs in what it sees"):
        large.take_over(sized)


def test_curves_that_know_sizes_tell_them_apart():
    """The same shares of the same grays, in tiles of 3 x 3 and of 6 x 6 pixels."""
    light = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64).repeat(9, 3).view(1, 1, 9, 9)
    large = light.repeat_interleave(2, 2).repeat_interleave(2, 3)
    for sized in (False, True):
        tones = ToneCurves(6, 3, sized).double()
        with torch.no_grad():
            tones.layers[0].weight[:, 6:12] = 0  # what levels are occupied, which unsized curves know as well
            one, two = tones(light)[:, :4], tones(large)[:, :4, ::2, ::2]
        assert torch.allclose(one, two) != sized


@pytest.mark.parametrize("size", [(3, 3), (9, 8), (28, 31)])
def test_a_tone_curve_is_read_at_the_lightness(size):
    tones, light = ToneCurves(6, 3).double(), 1.4 * torch.rand(2, 1, *size, dtype=torch.float64) - 0.2
    torch.nn.init.zeros_(tones.layers[-1].weight)
    points = torch.linspace(0, 1, 6, dtype=torch.float64)
    with torch.no_grad():
        tones.layers[-1].bias.copy_(torch.cat([points, 1 - points, points * 0 + 7, points > 0.5]))
        found = tones(light)
    seen = light.clamp(0, 1)[:, 0]
    torch.testing.assert_close(found[:, 0], seen)
    torch.testing.assert_close(found[:, 1], 1 - seen)
    torch.testing.assert_close(found[:, 2], torch.full_like(seen, 7))
    torch.testing.assert_close(found[:, 3], ((seen - 0.4) / 0.2).clamp(0, 1))


def test_ranks_are_shares_of_the_tile_and_of_its_levels_below():
    """In each tile a quarter of the pixels is black, a quarter white, and half of one gray."""
    block = torch.tensor([[0.0, 0.4], [0.4, 1.0]], dtype=torch.float64)
    light = block.repeat_interleave(6, 0).repeat_interleave(6, 1).view(1, 1, 12, 12)
    tones = ToneCurves(6, 1).double()
    with torch.no_grad():
        pixels, levels = tones(light)[0, 4:]
    torch.testing.assert_close(pixels[[0, 0, 11], [0, 11, 11]], torch.tensor([0.125, 0.5, 0.875], dtype=torch.float64))
    few, many = (1 - math.exp(-144 * share * 6 / 256) for share in (0.25, 0.5))
    expected = torch.tensor([few / 2, few + many / 2, few + many + few / 2], dtype=torch.float64) * 256 / 6 / 144
    torch.testing.assert_close(levels[[0, 0, 11], [0, 11, 11]], expected)


def test_a_tone_curve_depends_on_its_tile_alone():
    tones, dark = ToneCurves(6, 3).double(), 0.2 * torch.rand(1, 1, 12, 12, dtype=torch.float64)
    other = dark.clone()
    other[..., 8:, 8:] += 0.5  # the last tile
    with torch.no_grad():
        one, two = tones(dark), tones(other)
    assert torch.equal(one[..., :6, :], two[..., :6, :]) and torch.equal(one[..., :6], two[..., :6])
    assert not torch.equal(one[..., 7, 7], two[..., 7, 7])


def test_it_is_equivariant():
    editor, stack = make_editor().double(), make_stack(dtype=torch.float64)

    def delta(params):
        after = editor.unguarded(stack.with_params(params), "rotate", strength=0.7).params
        return {name: after[name] - params[name] for name in params}

    assert_equivariant(delta, stack.spec, stack.params)


def test_a_wider_output_does_not_depend_on_how_the_neurons_stand():
    editor, stack = make_editor().double(), make_stack(dtype=torch.float64)
    element = random_element(stack.spec, torch.Generator().manual_seed(3), count=len(stack))
    other = stack.with_params(act(element, stack.spec, stack.params))
    one, two = (editor.unguarded(inrs, "rotate", widen=3).render() for inrs in (stack, other))
    assert float((one - stack.render()).abs().max()) > 0.1
    torch.testing.assert_close(one, two, rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_tone_curves_of_any_precision_are_alike(dtype):
    tones, light = ToneCurves(32, 3), torch.rand(2, 1, 28, 28)
    with torch.no_grad():
        expected = tones(light.to(dtype).float())
        found = tones.to(dtype)(light.to(dtype))
    assert found.dtype == dtype
    assert float((found - expected).abs().max()) < 50 * max(torch.finfo(dtype).eps, 1e-7) * float(expected.abs().max())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_stepped_in_float32(dtype):
    editor, stack = make_editor(), make_stack(dtype=dtype)
    edited = editor.unguarded(stack, "dilate")
    assert edited.params["layers.1.weight"].dtype == dtype
    aimed = editor.predict(stack, "dilate").clamp(0, 1)
    assert refine(stack, aimed, 2, rule=editor.rule).params["layers.0.bias"].dtype == dtype
    exact = editor.unguarded(stack.with_params({k: p.float() for k, p in stack.params.items()}), "dilate")
    for name, tensor in exact.params.items():
        assert torch.equal(edited.params[name], tensor.to(dtype)), name


def test_a_predictor_that_saw_full_strength_only_scales_its_change():
    graded, plain = make_predictor(warp=False), make_predictor(warp=False, graded=False)
    plain.load_state_dict(graded.state_dict())
    images, codes = torch.rand(2, 1, 8, 8), torch.tensor([0, 1])
    full = plain(images, codes, torch.ones(2))
    torch.testing.assert_close(full, graded(images, codes, torch.ones(2)))
    torch.testing.assert_close(plain(images, codes, torch.full((2,), 0.3)), images + 0.3 * (full - images))


def test_the_convention_does_not_matter():
    editor, ours = make_editor().double(), make_stack(dtype=torch.float64)
    theirs = INRStack(convert(ours.params, ours.convention, NFN), NFN, 9, 8)
    one, other = editor.unguarded(ours, "dilate").render(), editor.unguarded(theirs, "dilate").render()
    torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize("widths", [(2, 5, 1), (2, 9, 4, 1), (2, 4, 5, 6, 1)])
def test_any_architecture_size_and_output_width(widths):
    editor, stack = make_editor(), make_stack(widths, size=(12, 7))
    edited = editor.unguarded(stack, "rotate", widen=2, batch_size=2)
    assert edited.widths == (2, *(2 * n for n in widths[1:-1]), 1) and edited.psnr is None
    aimed = editor.predict(stack, "rotate")
    by_hand = take_steps(editor.rule, stack.convention, stack.params, aimed, 2)
    found = editor.unguarded(stack, "rotate").params
    for name, tensor in by_hand.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5)


def test_a_call_may_say_how_many_steps():
    editor, stack = make_editor(steps=2), make_stack()
    for steps in (0, 1, 3):
        found, expected = (
            editor.unguarded(stack, "rotate", steps=steps),
            make_editor(steps=steps).unguarded(stack, "rotate"),
        )
        assert all(torch.equal(found.params[name], expected.params[name]) for name in stack.params)


@pytest.mark.parametrize("factor", [1, 2])
def test_what_was_measured_before_the_edit_is_dropped_and_the_rest_kept(factor):
    known = {"label": torch.arange(3), "index": torch.tensor([7, 8, 9]), "provenance": {"init": "siren"}}
    stack = replace(make_stack(), psnr=torch.full((3,), 40.0), **known)
    for edited in (make_editor()(stack, "rotate", widen=factor), refine(stack, stack.render().clamp(0, 1), 1)):
        assert edited.psnr is None and edited.provenance == known["provenance"]
        assert torch.equal(edited.label, known["label"]) and torch.equal(edited.index, known["index"])


def test_a_warp_is_the_exponential_of_its_generator():
    image = functional.interpolate(torch.rand(2, 1, 4, 4), (28, 28), mode="bicubic").clamp(0, 1)
    angle = torch.pi / 12
    turn = torch.tensor([[0.0, -angle, 0.0], [angle, 0.0, 0.0]])
    shift = torch.tensor([[0.0, 0.0, -2.0], [0.0, 0.0, 0.0]])
    for generator, name in ((turn, "rotate"), (shift, "shift")):
        for strength in (1.0, 0.3):
            wanted = operation(name).at(image, strength)
            torch.testing.assert_close(warp(image, strength * generator.expand(2, 2, 3)), wanted, rtol=0, atol=1e-5)
            for dtype in (torch.float16, torch.bfloat16):
                found = warp(image.to(dtype), (strength * generator.expand(2, 2, 3)).to(dtype))
                assert found.dtype == dtype
                # A generator that is off by eps moves places by 14 pixels of it, a picture by as much at most.
                assert float((found - wanted).abs().max()) < 16 * torch.finfo(dtype).eps


def test_it_learns_an_operation_from_examples():
    predictor = Predictor(PredictorConfig(("invert",), width=4, blocks=1))
    images = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    codes, full = torch.zeros(16, dtype=torch.long), torch.ones(16)
    optimizer = torch.optim.Adam(predictor.parameters(), lr=2e-2)
    for _ in range(200):
        loss = functional.mse_loss(predictor(images, codes, full), 1 - images)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 1e-3 < functional.mse_loss(images, 1 - images)
    smooth = functional.interpolate(images, (12, 12), mode="bicubic").clamp(0, 1)
    stack = fit(smooth).stack
    editor = PredictiveEditor(predictor, LearnedKFAC(), 6).eval()
    assert mean_squared_errors(editor.unguarded(stack), 1 - smooth).mean() < 5e-3


def test_to_disk_and_back(tmp_path):
    editor, stack = make_editor(steps=3), make_stack()
    editor.save_pretrained(tmp_path / "editor", "# card\n", {"figures": {}})
    again = Editor.from_pretrained(tmp_path / "editor")
    assert isinstance(again, PredictiveEditor) and again.steps == 3 and again.operations == TWO
    one, other = (e.unguarded(stack, "dilate", strength=0.5).params for e in (editor, again))
    assert all(torch.equal(one[name], other[name]) for name in one)
    make_editor().rule.save_pretrained(tmp_path / "rule", "")
    with pytest.raises(FileFormatError, match="'refinement rule'; expected one of kind predictive editor: name"):
        PredictiveEditor.from_pretrained(tmp_path / "rule")


def test_wrong_input():
    editor, stack = make_editor(), make_stack()
    for words, message in (
        ({}, "got no operation"),
        ({"operation": "embolden"}, "this editor knows dilate, rotate"),
        ({"operation": "dilate", "strength": 1.5}, "expected 0"),
        ({"operation": "dilate", "strength": float("nan")}, "expected 0"),
        ({"operation": "dilate", "strength": torch.ones(2)}, "expected one, or one each"),
        ({"operation": "dilate", "rule": editor.rule}, "expected only strength, widen, steps: leave it out"),
    ):
        with pytest.raises(WeightEditError, match=message):
            editor.unguarded(stack, **words)
    with pytest.raises(WeightEditError, match="at least 0"):
        editor.unguarded(stack, "dilate", steps=-1)
    with pytest.raises(SpecError, match="got INRs of 3 channels; this editor was made for 1"):
        editor(make_stack((2, 5, 3)), "dilate")
    with pytest.raises(ParamsError, match="empty"):
        editor.unguarded(stack[:0], "dilate")
    with pytest.raises(SpecError, match="twice"):
        PredictorConfig(("dilate", "dilate"))
    with pytest.raises(SpecError, match="at least 1"):
        PredictorConfig(width=0)
    for wrong in ({"curves": 1, "tiles": 3}, {"curves": 8}, {"curves": 8, "tiles": 3, "patch": 2}, {"sized": True}):
        with pytest.raises(SpecError, match="expected 2 or more points, tiles, and patches of 1"):
            PredictorConfig(**wrong)
    with pytest.raises(WeightEditError, match="at least 0"):
        make_editor(steps=-1)


@pytest.mark.parametrize("name", sorted(OPERATIONS))
def test_operations_by_degrees(name):
    channels = 3 if name == "contrast-nfn" else 1
    small = torch.rand(3, channels, 6, 6, generator=torch.Generator().manual_seed(2))
    images = functional.interpolate(small, (30, 30), mode="bilinear")
    chosen = operation(name)
    assert torch.equal(chosen.at(images, 0.0), images) and torch.equal(chosen.at(images, 1.0), chosen(images))
    torch.testing.assert_close(chosen.at(images, 0.99999), chosen(images), rtol=0, atol=2e-3)
    steps = [chosen.at(images, s) for s in (0.0, 0.25, 0.5, 0.75, 1.0)]
    if name != "identity":
        far = [float((step - images).square().mean()) for step in steps]
        assert all(a < b for a, b in zip(far, far[1:], strict=False)), far
    mixed = chosen.at(images, torch.tensor([0.0, 0.5, 1.0]))
    for row, step in enumerate((steps[0], steps[2], steps[4])):
        torch.testing.assert_close(mixed[row], step[row], rtol=0, atol=1e-5)
    for wrong in (-1.0, float("inf"), torch.ones(2)):
        with pytest.raises(WeightEditError, match="strength"):
            chosen.at(images, wrong)


def test_inrs_of_other_channels_are_refused_with_a_way_out():
    stack = make_stack((2, 7, 3))
    with pytest.raises(ParamsError, match=r"\(3, 3, 9, 8\); expected \[N, 1, H, W\]: take an editor made for them"):
        make_editor().predictor(stack.render(), torch.zeros(3, dtype=torch.long), torch.ones(3))
    with pytest.raises(SpecError, match="2 inputs and 3 outputs; expected 2 and 1.*: take one made for these"):
        OneShotEditor(GaugeGMN(GaugeGMNConfig(node_width=4, edge_width=4, layers=1)), "dilate").edit_params(
            stack.params
        )
