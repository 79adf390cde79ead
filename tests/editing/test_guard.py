"""An editor is never worse than doing nothing: on its domain and off it, INR by INR, and it says where it would be."""

import logging

import pytest
import torch

from weightedit.cli.demo import digit_images
from weightedit.editing.editor import Editor
from weightedit.editing.evaluation import mean_squared_errors
from weightedit.editing.guard import guard, known_target
from weightedit.editing.one_shot import EditorOptions, OneShotEditor
from weightedit.editing.operations import Operation
from weightedit.editing.refinement import refine, target_of
from weightedit.errors import ParamsError, SpecError
from weightedit.inr.convention import Convention
from weightedit.inr.fitting import FitOptions, fit
from weightedit.inr.siren import initial_params
from weightedit.inr.stack import INRStack
from weightedit.inr.widening import widen
from weightedit.metanet.gauge_gmn.config import GaugeGMNConfig
from weightedit.metanet.gauge_gmn.network import GaugeGMN

SHIPPED = {"mnist-dilate": 1, "mnist-dilate-predictive": 1, "mnist-multi": 1, "cifar-contrast": 3, "varied-multi": 1}
SHIPPED |= {"cifar-contrast-one": 3}


@pytest.fixture(scope="module")
def stack() -> INRStack:
    """Fits of a digit, and of what no editor was trained on: nothing but gray, nothing but white, stripes, noise."""
    images = torch.zeros(5, 1, 20, 20)
    images[0] = digit_images(1)[0][0, :, 4:24, 4:24]
    images[1], images[2] = 0.4, 1.0
    images[3] = 0.5 + 0.5 * (torch.arange(20) / 5).sin()
    images[4] = torch.rand(1, 20, 20, generator=torch.Generator().manual_seed(0))
    return fit(
        images, widths=(2, 16, 16, 1), options=FitOptions(max_steps=40), generator=torch.Generator().manual_seed(0)
    ).stack


def colored(stack: INRStack, channels: int) -> INRStack:
    """The same pictures with so many channels."""
    last = f"layers.{len(stack.widths) - 2}."
    params = {k: torch.cat([p] * channels, 1) if k.startswith(last) else p for k, p in stack.params.items()}
    return INRStack(params, stack.convention, stack.height, stack.width)


def untrained(**options) -> OneShotEditor:
    config = GaugeGMNConfig(node_width=6, edge_width=4, layers=1, probes=3, levels=3, initial_scale=0.3)
    return OneShotEditor(GaugeGMN(config), "dilate", options=EditorOptions(**options)).eval()


@pytest.mark.parametrize("name", SHIPPED)
def test_no_shipped_editor_makes_an_inr_worse(stack, name, caplog):
    editor, given, harmful = Editor.from_pretrained(name), colored(stack, SHIPPED[name]), 0
    for operation in editor.operations:
        caplog.clear()
        wanted = target_of(operation, given)
        raw, edited = editor.unguarded(given, operation), editor(given, operation)
        nothing, without, errors = (mean_squared_errors(inrs, wanted) for inrs in (given, raw, edited))
        worse = without > nothing
        assert bool((errors <= nothing).all()), operation
        harmful += int(worse.sum())
        part = guard(given, raw, wanted).part
        assert torch.equal(part == 1, ~worse)
        for key, tensor in edited.params.items():
            assert torch.equal(tensor[part == 0], given.params[key][part == 0])
            assert torch.equal(tensor[~worse], raw.params[key][~worse])
        assert bool(caplog.messages) == bool(worse.any())
        for message in caplog.messages:
            assert (
                f"edited in part: {int(worse.sum())} of 5 INRs" in message and f"edit(inrs, '{operation}')" in message
            )
            assert all((f" {i} (" in message) == bool(worse[i]) for i in range(5))
    assert harmful


def test_what_is_solid_stays_so(stack):
    """Dilation changes nothing of it, and draws blotches as the editor comes."""
    flat, editor = stack[1:3], Editor.from_pretrained("mnist-dilate")
    raw, edited = editor.unguarded(flat).render(), editor(flat).render()
    assert torch.equal(edited, flat.render())
    assert float((raw - edited).abs().amax((1, 2, 3)).min()) > 0.05


@pytest.mark.parametrize("factor", [1, 2])
def test_what_is_left_is_as_wide_as_the_rest(stack, factor):
    editor = untrained(widen=factor)
    edited, wanted = editor(stack), target_of("dilate", stack)
    start = widen(stack, factor)
    left = guard(stack, editor.unguarded(stack), wanted).part == 0
    assert left.any() and edited.widths == start.widths
    for name, tensor in edited.params.items():
        assert torch.equal(tensor[left], start.params[name][left])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["mnist-dilate", "mnist-multi"])
def test_editors_of_any_precision_are_guarded(stack, name, dtype):
    given = stack[[0, 3]]
    given = given.with_params({key: tensor.to(dtype) for key, tensor in given.params.items()})
    editor = Editor.from_pretrained(name).to(dtype)
    edited, wanted = editor(given, editor.operations[0]), target_of(editor.operations[0], given)
    assert {tensor.dtype for tensor in edited.params.values()} == {dtype} and wanted.dtype.itemsize >= 4
    assert bool((mean_squared_errors(edited, wanted) <= mean_squared_errors(given, wanted)).all())


def test_strengths_are_judged_by_what_they_aim_at(stack):
    editor, strength = Editor.from_pretrained("mnist-multi"), torch.tensor([0.0, 0.2, 0.4, 0.6, 1.0])
    edited, wanted = editor(stack, "invert", strength=strength), target_of("invert", stack, strength=strength)
    assert bool((mean_squared_errors(edited, wanted) <= mean_squared_errors(stack, wanted)).all())


def test_steps_after_an_edit_start_from_the_better_of_the_two(stack):
    editor, wanted = untrained(), target_of("dilate", stack)
    raw = editor.unguarded(stack)
    worse = mean_squared_errors(raw, wanted) > mean_squared_errors(stack, wanted)
    start = {k: torch.where(worse.view(-1, *[1] * (p.dim() - 1)), stack.params[k], p) for k, p in raw.params.items()}
    stepped, expected = editor.unguarded(stack, steps=2), refine(stack.with_params(start), wanted, 2)
    for name, tensor in stepped.params.items():
        torch.testing.assert_close(tensor, expected.params[name], rtol=1e-4, atol=1e-5)
    assert worse.any() and bool((mean_squared_errors(stepped, wanted) <= mean_squared_errors(stack, wanted)).all())


def test_what_goes_too_far_goes_as_far_as_helps(stack):
    """Turned round, the last layer inverts the picture; a multiple of that change goes past it, and past its start."""
    change = {name: tensor * (-2.0 if name.startswith("layers.2") else 0.0) for name, tensor in stack.params.items()}
    times = torch.tensor([1.0, 3.0, 6.0, 12.0, 30.0])
    after = stack.with_params(
        {
            name: tensor + times.view(-1, *[1] * (tensor.dim() - 1)) * change[name]
            for name, tensor in stack.params.items()
        }
    )
    found = guard(stack, after, stack.render().mul(-1).add(1).clamp(0, 1))
    assert found.part.tolist() == [1.0, 0.5, 0.25, 0.125, 0.0]
    half = stack.with_params({name: tensor + 1.5 * change[name] for name, tensor in stack.params.items()})
    torch.testing.assert_close(found.stack.render()[1:4], half.render()[1:4], rtol=1e-4, atol=1e-5)
    assert torch.equal(found.stack.render()[4], stack.render()[4])
    assert found.told().startswith("4 of 5 INRs, which the whole edit makes worse: 1 (")
    assert f"{found.reached[1]:.2e} by 0.5 of it)" in found.told()


def test_an_edit_that_is_not_finite_is_left_out(stack):
    wanted, after = target_of("invert", stack), refine(stack, target_of("invert", stack), 2)
    after.params["layers.1.bias"][2, 3] = torch.nan
    found = guard(stack, after, wanted)
    assert found.part.tolist() == [1, 1, 0, 1, 1]
    assert torch.equal(found.reached, mean_squared_errors(found.stack, wanted))
    assert found.told() == f"1 of 5 INRs, which the whole edit makes worse: 2 ({found.before[2]:.2e}, would be nan)"
    assert guard(stack, stack, wanted).told() == ""


def test_of_many_the_first_few_are_named(stack):
    several = stack[[1] * 11]
    worse = several.with_params({name: 1000 * tensor for name, tensor in several.params.items()})
    told = guard(several, worse, target_of("dilate", several)).told()
    assert told.startswith("11 of 11 INRs") and told.endswith("and 3 more") and told.count("would be") == 8


def test_what_is_unknown_is_not_judged(stack, caplog):
    editor = untrained()
    editor.operation = "my-own"
    with caplog.at_level(logging.WARNING):
        edited = editor(stack)
    raw = editor.unguarded(stack)
    assert all(torch.equal(edited.params[name], tensor) for name, tensor in raw.params.items()) and not caplog.messages
    assert known_target("my-own", stack) is None and known_target("contrast-nfn", stack) is None
    sound = INRStack(initial_params(2, (1, 4, 1)), Convention(), 1, 9)
    assert known_target("invert", sound) is None
    own = Operation("flip", "mirrored", lambda images: images.flip(-1))
    torch.testing.assert_close(known_target(own, stack), stack.render().clamp(0, 1).flip(-1))


@pytest.mark.parametrize(("name", "other"), [("mnist-dilate", "cifar-contrast"), ("cifar-contrast", "mnist-multi")])
def test_other_channels_are_told_a_way_out(stack, name, other):
    channels = SHIPPED[other]
    with pytest.raises(SpecError, match=f"got INRs of {channels} channels; .* was made for .* take one for.*{other}"):
        Editor.from_pretrained(name)(colored(stack, channels), Editor.from_pretrained(name).operations[0])
    with pytest.raises(
        SpecError, match="for 2 \\(varied-multi\\), or the operation alone \\(weightedit edit --operation NAME\\)"
    ):
        Editor.from_pretrained(name)(colored(stack, 2), Editor.from_pretrained(name).operations[0])


def test_targets_that_do_not_fit_are_refused(stack):
    with pytest.raises(ParamsError, match="one image per INR"):
        guard(stack, stack, torch.zeros(1, 1, 20, 20))
