"""Guides: the gradient against autograd, K-FAC's direction against its step, their types; guided editors."""

import pytest
import torch

from weightedit.cli.checks import check_equivariance
from weightedit.editing.curvature import KFAC
from weightedit.editing.guidance import GUIDES, guides
from weightedit.editing.one_shot import EditorOptions, OneShotEditor
from weightedit.editing.operations import operation
from weightedit.editing.refinement import target_of
from weightedit.editing.rendering_problem import RenderingProblem
from weightedit.errors import SpecError, TypeMismatchError, WeightEditError
from weightedit.inr.convention import NFN, Convention, convert
from weightedit.inr.siren import initial_params, render_images
from weightedit.inr.stack import INRStack
from weightedit.metanet.gauge_gmn.config import GaugeGMNConfig
from weightedit.metanet.gauge_gmn.network import GaugeGMN
from weightedit.testing import assert_equivariant


def make_stack(count=3) -> INRStack:
    params = initial_params(count, (2, 6, 5, 1), generator=torch.Generator().manual_seed(1))
    return INRStack({k: v.double() for k, v in params.items()}, Convention(), 9, 8)


def make_editor(seed=0, **options) -> OneShotEditor:
    wanted = EditorOptions(**options)
    extra = tuple((GUIDES[name].scale, GUIDES[name].odd) for name in wanted.guides)
    config = GaugeGMNConfig(node_width=6, edge_width=4, layers=1, probes=3, levels=3, extra_types=extra, seed=seed)
    return OneShotEditor(GaugeGMN(config), "dilate", options=wanted).eval().double()


def test_the_gradient_is_autograds_and_kfac_steps_to_where_kfac_goes():
    stack = make_stack()
    problem = RenderingProblem(stack.convention, target_of("dilate", stack))
    (_, gradient), (_, step) = guides(("gradient", "kfac"), problem, stack.params)
    params = {name: tensor.clone().requires_grad_() for name, tensor in stack.params.items()}
    missed = render_images(params, stack.convention, 9, 8) - target_of("dilate", stack)
    missed.square().mean((1, 2, 3)).sum().backward()
    for name, tensor in params.items():
        assert tensor.grad is not None
        torch.testing.assert_close(gradient[name], tensor.grad, rtol=1e-9, atol=1e-12)
    after = KFAC().refine(problem, stack.params, 1)
    for name in ("layers.0.weight", "layers.1.bias"):
        torch.testing.assert_close(stack.params[name] + step[name], after[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", sorted(GUIDES))
def test_guides_transform_as_their_types_say(name):
    stack = make_stack()
    problem = RenderingProblem(stack.convention, target_of("dilate", stack))

    def found(params):
        return guides((name,), problem, params)[0][1]

    assert_equivariant(found, stack.spec, stack.params, kind=GUIDES[name])


@pytest.mark.parametrize(
    "options",
    [
        {"guides": ("gradient",)},
        {"guides": ("kfac", "gradient"), "solve_last": True},
        {"solve_last": True},
    ],
)
def test_a_guided_editor_is_equivariant_and_survives_the_disk(options, tmp_path):
    editor, stack = make_editor(**options), make_stack()

    def delta(params):
        with torch.no_grad():
            after = editor.edit_params(params, size=(9, 8))
        return {name: after[name] - params[name] for name in params}

    assert_equivariant(delta, stack.spec, stack.params)
    editor.save_pretrained(tmp_path / "editor", "")
    again = OneShotEditor.from_pretrained(tmp_path / "editor").double()
    one, other = editor.unguarded(stack).params, again.unguarded(stack).params
    assert all(torch.equal(one[name], other[name]) for name in one)
    alone = editor.edit_params({name: tensor[1] for name, tensor in stack.params.items()}, size=(9, 8))
    for name, tensor in alone.items():
        torch.testing.assert_close(tensor, one[name][1], rtol=1e-9, atol=1e-12)
    theirs = convert(stack.params, stack.convention, NFN)
    back = convert(editor.edit_params(theirs, NFN, size=(9, 8)), NFN, stack.convention)
    for name, tensor in back.items():
        torch.testing.assert_close(tensor, one[name], rtol=1e-7, atol=1e-9)


def test_a_solved_last_layer_lowers_the_error_towards_the_known_target():
    stack = make_stack()
    wanted = operation("dilate").on_rendering(stack.render())
    errors = [
        float((make_editor(solve_last=solved)(stack).render() - wanted).square().mean()) for solved in (False, True)
    ]
    assert errors[1] < 0.5 * errors[0]


def test_the_judge_looks_at_the_whole_edit():
    stack = make_stack()
    for options in ({"guides": ("gradient",)}, {"solve_last": True}, {"widen": 2}):
        found = check_equivariance(stack, make_editor(**options))
        assert found.ok, found.figure


def test_a_wider_output():
    stack = make_stack()
    edited = make_editor(widen=3)(stack)
    assert edited.widths == (2, 18, 15, 1)
    assert float((edited.render() - stack.render()).abs().max()) > 0


def test_wrong_options():
    with pytest.raises(SpecError, match="gradient, kfac"):
        EditorOptions(guides=("momentum",))
    with pytest.raises(SpecError, match="at least 1"):
        EditorOptions(widen=0)
    with pytest.raises(TypeMismatchError, match="the editor's metanetwork"):
        OneShotEditor(GaugeGMN(GaugeGMNConfig(layers=1)), "dilate", options=EditorOptions(guides=("gradient",)))
    with pytest.raises(WeightEditError, match="got no size"):
        make_editor(solve_last=True).edit_params(make_stack().params)
