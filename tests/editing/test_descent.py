"""No INR is worse after any number of steps than before: on pictures that steps once destroyed, and by every rule."""

import pytest
import torch

from tests.device_waits import device_waits
from tests.rounding import rounding
from weightedit.editing.curvature import KFAC, LearnedKFAC, LearnedKFACConfig, LevenbergMarquardt
from weightedit.editing.descent import GROW, choose_networks
from weightedit.editing.refinement import GradientSteps, refine, take_steps, target_of
from weightedit.editing.rendering_problem import RenderingProblem
from weightedit.inr.convention import Convention
from weightedit.inr.fitting import FitOptions, fit
from weightedit.inr.siren import initial_params
from weightedit.inr.stack import INRStack
from weightedit.optim.hand_designed import SGD, Adam


def reckless() -> LearnedKFAC:
    """A learned rule that asks for steps which are four to twenty times as long as Newton's."""
    rule = LearnedKFAC(LearnedKFACConfig(width=3, rate=4.0, momentum=0.9, damping=1e-3))
    torch.nn.init.normal_(rule.last.weight, std=0.5, generator=torch.Generator().manual_seed(0))
    return rule


RULES = {
    "kfac": KFAC(),
    "kfac, too long": KFAC(rate=5.0, damping=1e-3),
    "learned": LearnedKFAC(),
    "learned, reckless": reckless(),
    "adam": GradientSteps(Adam(4e-3)),
    "adam, too fast": GradientSteps(Adam(0.1)),
    "adam, last layer solved": GradientSteps(Adam(8e-3, (0.7, 0.98)), solve_last=True),
    "gradient descent": GradientSteps(SGD(1.0)),
    "lm": LevenbergMarquardt(),
}
PICTURES = ("dot", "line", "noise", "flat")


@pytest.fixture(scope="module")
def stack() -> INRStack:
    """Fits of one white pixel in black, a thin line, noise, and nothing but gray."""
    images = torch.zeros(4, 1, 12, 12)
    images[0, 0, 3, 7] = 1
    images[1, 0, 2:10, 5] = 1
    images[2] = torch.rand(1, 12, 12, generator=torch.Generator().manual_seed(0))
    images[3] = 0.5
    return fit(images, widths=(2, 12, 12, 1), options=FitOptions(target_psnr=30), generator=torch.Generator()).stack


def errors_of(stack, targets) -> torch.Tensor:
    """[N], of the weights as they are, in float64."""
    params = {name: tensor.double() for name, tensor in stack.params.items()}
    problem = RenderingProblem(stack.convention, targets.double())
    return problem.losses(problem.layers(params)) / stack.convention.span**2


def at_most(dtype) -> float:
    """Of an error, and of its square: two orders of the sums of sines whose phases are rounded in float32 at least."""
    return 30 * rounding(dtype=torch.promote_types(dtype, torch.float32))


@pytest.mark.parametrize("operation", ["dilate", "erode", "invert", "identity"])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_the_error_never_rises(stack, rule, operation):
    targets = target_of(operation, stack)
    before = errors_of(stack, targets)
    for steps in (0, 1, 2, 5, 13):
        after = errors_of(refine(stack, targets, steps, rule=rule), targets)
        slack = at_most(torch.float32)
        assert bool((after <= before * (1 + slack) + slack**2).all()), (steps, before, after)
    if operation != "identity":
        assert after[:3].mean() < before[:3].mean()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_the_error_of_weights_of_any_precision_never_rises(stack, rule, dtype):
    """Rounding the steps' result may undo them, which counts."""
    rounded = stack.with_params({name: tensor.to(dtype) for name, tensor in stack.params.items()})
    targets = target_of("dilate", stack)
    before, after = (errors_of(s, targets) for s in (rounded, refine(rounded, targets, 4, rule=rule)))
    slack = at_most(dtype)
    assert bool((after <= before * (1 + slack) + slack**2).all()) and after.mean() < before.mean()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_an_inr_of_zeros_hinders_no_other(stack, rule, dtype):
    given = stack.with_params({name: tensor.to(dtype, copy=True) for name, tensor in stack.params.items()})
    for tensor in given.params.values():
        tensor[1] = 0.0
    targets, others = target_of("dilate", stack), [0, 2, 3]
    found, alone = refine(given, targets, 3, rule=rule), refine(given[others], targets[others], 3, rule=rule)
    assert all(bool(tensor.isfinite().all()) for tensor in found.params.values())
    errors = [errors_of(inrs, targets) for inrs in (given, found)]
    assert bool((errors[1] <= errors[0] * (1 + at_most(dtype)) + at_most(dtype) ** 2).all())
    torch.testing.assert_close(
        found.precise()[others].render(), alone.precise().render(), rtol=0, atol=1e-3 + float(torch.finfo(dtype).eps)
    )


@pytest.mark.parametrize("depth", [3, 4])
def test_kfac_by_hand_betters_deep_networks(depth):
    stack = INRStack(initial_params(2, (2, *[16] * depth, 3), generator=torch.Generator()), Convention(), 16, 16)
    targets = torch.rand(2, 3, 16, 16, generator=torch.Generator())
    errors = [errors_of(refine(stack, targets, steps, rule=KFAC()), targets) for steps in (0, 2, 10)]
    assert bool((errors[0] > errors[1]).all()) and bool((errors[1] > errors[2]).all())


def test_a_step_that_is_taken_back_is_tried_again_with_a_part_of_it(stack):
    """Gradient descent by hand, each network by itself: the same gradient, a quarter of the step, until one is kept."""
    targets, rate = target_of("dilate", stack).double(), 3.0
    params = {name: tensor.double() for name, tensor in stack.params.items()}
    problem = RenderingProblem(stack.convention, targets)
    seen, expected = [], dict(params)
    losses = problem.losses(problem.layers(params))
    care = torch.ones_like(losses)
    for _ in range(6):
        gradients = problem.gradients(problem.summarize(problem.layers(expected)))
        step = {k: p - rate * gradients[k] / care.view(-1, *[1] * (p.dim() - 1)) for k, p in expected.items()}
        found = problem.losses(problem.layers(step))
        better = found < losses
        expected, losses = choose_networks(better, [step, found], [expected, losses])
        care = torch.where(better, care / GROW, care * GROW).clamp(min=1)
        seen.append(better)
    assert bool(torch.stack(seen).any()) and not bool(torch.stack(seen).all())
    found = GradientSteps(SGD(rate)).refine(problem, params, 6)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-9, atol=1e-11)


def test_networks_are_chosen_in_whatever_holds_them():
    mask = torch.tensor([True, False])
    one, other = torch.zeros(2, 3), torch.ones(2, 3)
    chosen = choose_networks(mask, {"a": [one, (one[:, 0],)]}, {"a": [other, (other[:, 0],)]})
    assert chosen["a"][0].tolist() == [[0, 0, 0], [1, 1, 1]] and chosen["a"][1][0].tolist() == [0, 1]


def test_steps_wait_for_nothing_on_the_host(stack):
    """A choice between networks reads no number: that would stop a GPU."""
    targets = target_of("dilate", stack)
    for rule in (LearnedKFAC(), KFAC(), GradientSteps(Adam(4e-3))):
        take_steps(rule, stack.convention, stack.params, targets, 3)
        with device_waits() as found:
            take_steps(rule, stack.convention, stack.params, targets, 3)
        assert not found
