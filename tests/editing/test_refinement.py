"""Gradients, factors and steps against autograd and dense linear algebra; what refinement promises; wrong input."""

import math

import pytest
import torch
from torch.func import jacrev, vmap

from tests.allocation import most_allocated
from tests.rounding import assert_agree, rounding
from tests.rules import Recorder
from weightedit.editing import rendering_problem
from weightedit.editing.curvature import (
    KFAC,
    RIDGE,
    LearnedKFAC,
    LearnedKFACConfig,
    LevenbergMarquardt,
    Steering,
    _exact_step,
    kfac_step,
)
from weightedit.editing.evaluation import mean_squared_errors
from weightedit.editing.refinement import GradientSteps, refine, target_of
from weightedit.editing.rendering_problem import Layer, RenderingProblem
from weightedit.errors import FileFormatError, ParamsError, WeightEditError
from weightedit.inr.convention import Convention
from weightedit.inr.siren import coordinate_grid, initial_params, raw_outputs, render_images
from weightedit.inr.stack import INRStack
from weightedit.network.symmetry import act, random_element
from weightedit.optim.hand_designed import Adam

SIZE = (7, 6)
CASES = {
    "gray": (Convention(), (2, 9, 8, 1)),
    "color, deep, other convention": (Convention(20.0, "ij", -1.0, 1.0, 0.0), (2, 8, 7, 6, 3)),
    "one hidden layer": (Convention(), (2, 10, 1)),
    "sine at the end": (Convention(3.0, offset=0.0, low=-1.0, last="sine"), (2, 8, 7, 3)),
    "relu": (Convention(1.0, activation="relu"), (2, 9, 8, 7, 1)),
    "tanh, sigmoid at the end": (Convention(1.0, "ij", offset=0.0, activation="tanh", last="sigmoid"), (2, 8, 7, 3)),
    "gelu, tanh at the end": (Convention(1.0, low=-1.0, offset=0.0, activation="gelu", last="tanh"), (2, 9, 1)),
    "silu": (Convention(1.0, activation="silu"), (2, 8, 7, 1)),
    "sigmoid, sigmoid at the end": (Convention(1.0, offset=0.0, activation="sigmoid", last="sigmoid"), (2, 9, 8, 1)),
}
LINEAR = [name for name, (convention, _) in CASES.items() if convention.last == "linear"]
RULES = {
    "adam": GradientSteps(Adam(4e-3)),
    "adam, last layer solved": GradientSteps(Adam(4e-3, (0.7, 0.98)), solve_last=True),
    "kfac": KFAC(),
    "learned": LearnedKFAC(),
    "lm": LevenbergMarquardt(),
}


def _networks(case, count=3, dtype=torch.float64):
    convention, widths = CASES[case]
    generator = torch.Generator().manual_seed(1)
    params = initial_params(count, widths, omega=convention.omega, generator=generator)
    params = {name: tensor.to(dtype) for name, tensor in params.items()}
    targets = torch.rand(count, widths[-1], *SIZE, generator=generator, dtype=dtype)
    return INRStack(params, convention, *SIZE), targets


def _raw_residual(stack, targets):
    """[N, P, C], from the plain renderer."""
    grid = RenderingProblem(stack.convention, targets).grid[:, :2]
    torch.testing.assert_close(grid.float(), coordinate_grid(*SIZE, stack.convention.coordinates))
    return raw_outputs(stack.params, grid, stack.convention) - stack.convention.to_raw(targets).flatten(2).mT


def _scale(convention, i, count):
    """What the parameters of layer i of so many are multiplied with before its function."""
    return convention.omega if convention.activations(count)[i].name == "sine" else 1.0


@pytest.mark.parametrize("case", CASES)
def test_a_pass_is_what_autograd_says(case):
    stack, targets = _networks(case)
    problem = RenderingProblem(stack.convention, targets)
    layers = problem.layers(stack.params)
    found = problem.evaluate(layers)
    sines = stack.convention.omega ** (len(layers) - 1)
    assert_agree(found.residual, _raw_residual(stack, targets), sines)
    leaves = [tensor.clone().requires_grad_() for layer in layers for tensor in layer]
    again = problem.evaluate([type(layers[0])(*pair) for pair in zip(leaves[::2], leaves[1::2], strict=True)])
    (again.residual.square().sum() / (2 * problem.grid.shape[0])).backward()
    for i in range(len(layers)):
        gradient = problem.gradient(found, i)
        assert_agree(gradient[..., :-1], leaves[2 * i].grad, sines)
        assert_agree(gradient[..., -1], leaves[2 * i + 1].grad, sines)
    assert_agree(problem.params(layers), stack.params)


@pytest.mark.parametrize("case", CASES)
def test_factors_are_those_of_the_exact_jacobian(case):
    """J_l a_l^T is the derivative of an output by V_l; the factors are second moments of the two, over the pixels."""
    stack, targets = _networks(case, count=2)
    problem = RenderingProblem(stack.convention, targets)
    grid, layers = problem.grid[:, :2], problem.layers(stack.params)
    derivative = vmap(jacrev(lambda params: raw_outputs(params, grid, stack.convention)))(stack.params)
    found = problem.evaluate(layers)
    assert len(found.jacobians) == len(layers) - (case in LINEAR) == len(problem.curved(layers))
    sines = stack.convention.omega ** len(found.jacobians)
    for i in range(len(found.jacobians)):
        bias = derivative[f"layers.{i}.bias"] / _scale(stack.convention, i, len(layers))  # [N, P, C, out], by the phase
        assert_agree(found.jacobians[i], bias.movedim(2, 1), sines)
        outer, inner = problem.factors(found, i)
        expected = torch.einsum("npco,npcq->noq", bias, bias) / len(grid)
        assert_agree(outer, expected, sines)
        read = problem.grid[None, :, :2].expand(2, -1, -1) if i == 0 else found.inputs[i - 1]
        values = torch.cat([read, torch.ones(2, len(grid), 1)], -1)
        assert_agree(inner.expand(2, -1, -1), values.mT @ values / len(grid), sines)


@pytest.mark.parametrize("case", LINEAR)
def test_the_last_layer_is_at_its_optimum(case):
    stack, targets = _networks(case)
    problem = RenderingProblem(stack.convention, targets)
    layers = problem.solve_last(problem.layers(stack.params), RIDGE)
    found = problem.evaluate(layers)
    gradient = problem.gradient(found, len(layers) - 1)
    gradient[..., :-1] += RIDGE * layers[-1].weight
    summed = layers[-1].weight.abs().sum(-1).max() + layers[-1].bias.abs().max() + 1  # of what is at most 1
    assert gradient.abs().max() < rounding(float(summed))


@pytest.mark.parametrize("rows", [1, 3, 5])
@pytest.mark.parametrize("case", CASES)
def test_bands_of_rows_change_no_number(monkeypatch, case, rows):
    """Sums over bands against one pass, and what autograd makes of them; the last band is smaller."""
    stack, targets = _networks(case)
    problem = RenderingProblem(stack.convention, targets)
    layers = problem.layers(stack.params)

    def sums():
        leaves = [Layer(*(tensor.clone().requires_grad_() for tensor in layer)) for layer in layers]
        found = problem.summarize(leaves, ridge=RIDGE, factors=True)
        tensors = [found.loss, *found.gradients, *found.last, *(x for pair in found.factors for x in pair)]
        tensors += [tensor for layer in problem.solve_last(leaves, RIDGE) for tensor in layer]
        wanted = [tensor for layer in leaves[:-1] for tensor in layer]
        gradients = torch.autograd.grad(sum(t.sin().sum() for t in tensors if t.requires_grad), wanted)
        return [tensor.detach() for tensor in tensors], list(gradients)

    whole, of_whole = sums()
    widest = max(layer.weight.shape[1] for layer in layers)
    monkeypatch.setattr(rendering_problem, "_BAND_CPU", rows * SIZE[1] * widest * len(stack))
    assert [len(band.axes[0]) for band in problem.bands(layers)] == [rows] * (SIZE[0] // rows) + [SIZE[0] % rows] * (
        SIZE[0] % rows > 0
    )
    found, of_found = sums()
    allowed = stack.convention.omega ** (len(layers) - 1) / RIDGE  # sines, and a system of that condition
    assert_agree(found, whole, allowed)
    assert_agree(of_found, of_whole, allowed)


@pytest.mark.parametrize("rows", [3, 7])
@pytest.mark.parametrize("case", CASES)
def test_curvature_of_a_large_picture_is_that_of_some_rows_and_columns(monkeypatch, case, rows):
    """Losses and gradients are those of all pixels, in bands or not; with fewer pixels than neurons ask for, all is."""
    stack, targets = _networks(case)
    problem, picked = RenderingProblem(stack.convention, targets), torch.zeros(SIZE, dtype=torch.bool)
    layers = problem.layers(stack.params)
    whole, all_factors = problem.evaluate(layers, ridge=RIDGE), problem.summarize(layers, ridge=RIDGE, factors=True)
    monkeypatch.setattr(rendering_problem, "SEEN", 10)
    assert problem.thinned(layers) is problem
    monkeypatch.setattr(rendering_problem, "SEEN_BY_NEURON", 1)
    widest = max(layer.weight.shape[1] for layer in layers)
    monkeypatch.setattr(rendering_problem, "_BAND_CPU", rows * SIZE[1] * widest * len(stack))
    picked[1::2, 1::2] = True
    found, picked = problem.summarize(layers, ridge=RIDGE, factors=True), picked.flatten()
    sines = stack.convention.omega ** (len(layers) - 1) / RIDGE
    assert_agree(
        [found.loss, *found.gradients, *found.last], [all_factors.loss, *all_factors.gradients, *whole.last], sines
    )
    for i, (outer, inner) in enumerate(found.factors):
        jacobian = whole.jacobians[i][:, :, picked].flatten(1, 2)
        read = problem.grid[None, picked] if i == 0 else whole.inputs[i - 1][:, picked]
        read = read if i == 0 else torch.cat([read, torch.ones_like(read[..., :1])], -1)
        assert_agree([outer, inner], [f.mT @ f / int(picked.sum()) for f in (jacobian, read)], sines)


def test_memory_of_a_step_is_bounded_by_the_picture(monkeypatch):
    """In bands of 10,000 numbers; all at once, a pass keeps six times 32 numbers for every pixel."""
    stack = INRStack(initial_params(1, (2, 32, 32, 1), generator=torch.Generator().manual_seed(0)), Convention(), 9, 9)
    targets = torch.rand(1, 1, 150, 140, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(rendering_problem, "_BAND_CPU", 10_000)
    most = most_allocated(lambda: refine(stack, targets, 2))
    assert most < 12 * targets.nbytes + 20 * 4 * 10_000


@pytest.mark.parametrize("case", CASES)
def test_levenberg_marquardt_takes_the_dense_step(case):
    """One step against (J^T J + lambda I)^-1 J^T r with J from autograd; sine layers count omega times."""
    stack, targets = _networks(case, count=2)
    rule, convention = LevenbergMarquardt(damping=0.5), stack.convention
    problem = RenderingProblem(convention, targets)
    grid = problem.grid[:, :2]
    derivative = vmap(jacrev(lambda params: raw_outputs(params, grid, convention)))(stack.params)
    names = list(stack.params)
    scale = [_scale(convention, int(name.split(".")[1]), len(names) // 2) for name in names]
    columns = [derivative[name].flatten(3).flatten(1, 2) / s for name, s in zip(names, scale, strict=True)]
    jacobian, residual = torch.cat(columns, -1), _raw_residual(stack, targets).flatten(1)
    damping = 0.5 * (jacobian @ jacobian.mT).diagonal(dim1=1, dim2=2).mean(1)
    eye = torch.eye(jacobian.shape[-1], dtype=jacobian.dtype)
    normal = jacobian.mT @ jacobian + damping[:, None, None] * eye
    step = torch.linalg.solve(normal, jacobian.mT @ residual.unsqueeze(-1)).squeeze(-1)
    parts = step.split([tensor[0].numel() for tensor in stack.params.values()], 1)
    moved = {k: p - (d / s).view(p.shape) for (k, p), d, s in zip(stack.params.items(), parts, scale, strict=True)}
    expected = problem.params(problem.solve_last(problem.layers(moved), RIDGE))
    for name, tensor in rule.refine(problem, stack.params, 1).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-6, atol=1e-9)


def test_levenberg_marquardt_takes_back_what_does_not_lower_the_loss():
    """Six steps against each network by itself, with the damping kept by hand; some steps are taken back."""
    stack, targets = _networks("gray")
    rule = LevenbergMarquardt(damping=1e-4, shrink=0.1, grow=4.0)
    found = rule.refine(RenderingProblem(stack.convention, targets), stack.params, 6)
    verdicts = []
    for i in range(len(stack)):
        problem, one = RenderingProblem(stack.convention, targets[i : i + 1]), stack[i].params
        layers, damping, verdict = problem.layers(one), rule.damping, ""
        for _ in range(6):
            before = problem.evaluate(layers)
            tried = _exact_step(problem, layers, before, torch.full((1,), damping, dtype=torch.float64))
            better = bool(problem.evaluate(tried).loss() < before.loss())
            layers, damping = (tried, damping * rule.shrink) if better else (layers, damping * rule.grow)
            verdict += "+" if better else "-"
        verdicts.append(verdict)
        for name, tensor in problem.params(problem.solve_last(layers, RIDGE)).items():
            torch.testing.assert_close(found[name][i : i + 1], tensor, rtol=1e-6, atol=1e-9)
    assert any("-+" in verdict for verdict in verdicts) and any("++" in verdict for verdict in verdicts)


@pytest.mark.parametrize("case", CASES)
def test_a_kfac_step_is_the_dense_formula(case):
    """With numbers of their own for every network, layer and factor, and with momenta."""
    stack, targets = _networks(case)
    problem, source = RenderingProblem(stack.convention, targets), torch.Generator().manual_seed(2)
    layers = problem.layers(stack.params)
    found, depth = problem.evaluate(layers, ridge=RIDGE), len(problem.curved(layers))
    steering = Steering(*(0.1 + torch.rand(4, 3, depth, generator=source, dtype=torch.float64)))
    momenta = [torch.randn(problem.gradient(found, i).shape, generator=source).double() for i in range(depth)]
    summary = problem.summarize(layers, ridge=RIDGE, factors=True)
    new, moved = kfac_step(layers, summary, steering, momenta)

    def damped(matrix, damping):
        return torch.linalg.inv(
            matrix + damping * matrix.diagonal().mean() * torch.eye(len(matrix), dtype=matrix.dtype)
        )

    for i in range(depth):
        outer, inner = problem.factors(found, i)
        for n in range(len(stack)):
            rate, momentum, damping_in, damping_out = (number[n, i] for number in steering)
            read = inner.expand(len(stack), -1, -1)[n]
            step = damped(outer[n], damping_out) @ problem.gradient(found, i)[n] @ damped(read, damping_in)
            step = momentum * momenta[i][n] + step
            torch.testing.assert_close(moved[i][n], step, rtol=1e-8, atol=1e-10)
            change = torch.cat([layers[i].weight[n] - new[i].weight[n], (layers[i].bias - new[i].bias)[n, :, None]], 1)
            torch.testing.assert_close(change, rate * step, rtol=1e-8, atol=1e-10)
    assert len(new) == len(layers) and (new[-1] is summary.last) == (case in LINEAR)
    assert_agree(tuple(summary.last), tuple(found.last))


@pytest.mark.parametrize("solve_last", [False, True])
def test_gradient_steps_are_torchs(solve_last):
    """Adam on the images' mean squared error, against torch.optim on the plain renderer."""
    stack, targets = _networks("color, deep, other convention")
    found = refine(stack, targets, 4, rule=GradientSteps(Adam(1e-3), solve_last))
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in stack.params.items()}
    last = [name for name in leaves if name.startswith("layers.3.")]
    optimizer = torch.optim.Adam([p for k, p in leaves.items() if not (solve_last and k in last)], lr=1e-3)
    problem = RenderingProblem(stack.convention, targets)

    def solved() -> None:
        with torch.no_grad():
            best = problem.params(problem.solve_last(problem.layers(leaves), RIDGE))
            for name in last:
                leaves[name].copy_(best[name])

    for _ in range(4):
        if solve_last:
            solved()
        optimizer.zero_grad()
        errors = (render_images(leaves, stack.convention, *SIZE) - targets).square().mean((1, 2, 3))
        errors.sum().backward()
        optimizer.step()
    if solve_last:
        solved()
    for name, tensor in found.params.items():
        torch.testing.assert_close(tensor, leaves[name].detach(), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_a_rule_is_told_the_loss_that_its_gradients_are_of(case):
    """The images' mean squared error, on the scale of the images, at every step."""
    stack, targets = _networks(case)
    rule = Recorder()
    refine(stack, targets, 4, rule=GradientSteps(rule))
    assert [loss.shape for loss in rule.losses] == [(len(stack),)] * 4
    at = torch.stack(rule.losses)
    torch.testing.assert_close(at[0], mean_squared_errors(stack, targets).to(at), rtol=1e-9, atol=0)
    assert bool((at[1:] <= at[:-1]).all()) and bool((at[-1] < at[0]).all())
    after = {name: tensor - rule.grads[0][name] for name, tensor in stack.params.items()}
    found = mean_squared_errors(stack.with_params(after), targets).to(at)
    kept = found < at[0]
    torch.testing.assert_close(at[1], torch.where(kept, found, at[0]), rtol=1e-9, atol=0)


@pytest.mark.parametrize("case", ["gray", "relu", "tanh, sigmoid at the end"])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_every_rule_lowers_the_error_and_treats_networks_one_by_one(rule, case):
    # What rounding makes of a kink goes on through the steps.
    stack, targets = _networks(case, count=5, dtype=torch.float64 if case == "relu" else torch.float32)
    errors = [float(mean_squared_errors(refine(stack, targets, steps, rule=rule), targets).mean()) for steps in (0, 8)]
    before = float(mean_squared_errors(stack, targets).mean())
    assert errors[1] < (0.5 if case == "gray" else 0.95) * before and errors[1] < errors[0] <= before * (1 + 1e-6)
    whole, chunked = (refine(stack, targets, 3, rule=rule, chunk=chunk).params for chunk in (5, 2))
    for name in whole:
        torch.testing.assert_close(whole[name], chunked[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("rule", [KFAC(), LearnedKFAC(), LevenbergMarquardt()], ids=["kfac", "learned", "lm"])
@pytest.mark.parametrize("case", CASES)
def test_curvature_rules_are_equivariant(case, rule):
    """Permuted, sign-flipped and phase-shifted INRs are refined to the same, permuted, flipped and shifted."""
    stack, targets = _networks(case)
    spec = stack.spec
    symmetry = "sign" if case == "relu" else "full"  # damping sees the scales of neurons, which ReLU leaves open
    source = torch.Generator().manual_seed(3)
    element = random_element(spec, generator=source, count=3, dtype=torch.float64, symmetry=symmetry)
    rule = rule.double() if isinstance(rule, LearnedKFAC) else rule
    if isinstance(rule, LearnedKFAC):
        torch.nn.init.normal_(rule.last.weight, std=0.1, generator=torch.Generator().manual_seed(4))
    problem = RenderingProblem(stack.convention, targets)
    expected = act(element, spec, rule.refine(problem, stack.params, 3))
    found = rule.refine(problem, act(element, spec, stack.params), 3)
    for name, tensor in found.items():
        assert (tensor - expected[name]).abs().max() < 1e-9 * expected[name].abs().max(), name


def test_learned_rule_begins_as_kfac_and_comes_back_from_disk(tmp_path):
    stack, targets = _networks("gray")
    config = LearnedKFACConfig(width=5, rate=0.2, momentum=0.4, damping=0.05)
    problem, rule = RenderingProblem(stack.convention, targets), LearnedKFAC(config).double()
    expected = KFAC(0.2, 0.4, 0.05).refine(problem, stack.params, 4)
    assert_agree(rule.refine(problem, stack.params, 4), expected, 1 / RIDGE)
    rule = LearnedKFAC(config)
    torch.nn.init.normal_(rule.last.weight)
    back = LearnedKFAC.from_pretrained(rule.save_pretrained(tmp_path / "rule", "# card"))
    assert back.config == config
    for name, tensor in rule.state_dict().items():
        assert torch.equal(tensor, back.state_dict()[name])


@pytest.mark.parametrize("horizon", [1, 16])
def test_the_learned_rule_sees_what_it_says(horizon):
    """Losses and their changes, a clock that stops at two horizons, and the layer's place and widths, by hand.

    Its first map is made a tenth of the identity, so that what it sees can be read off its hidden units.
    """
    steps, widths = 4, (2, 9, 16, 1)
    params = initial_params(3, widths, generator=torch.Generator().manual_seed(1))
    stack = INRStack(
        {name: tensor.double() for name, tensor in params.items()}, CASES["color, deep, other convention"][0], *SIZE
    )
    targets = torch.rand(3, 1, *SIZE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    rule, seen = LearnedKFAC(LearnedKFACConfig(13, horizon, rate=0.2)).double(), []
    with torch.no_grad():
        rule.first.weight.copy_(torch.eye(13) / 10)
        rule.first.bias.zero_()
    rule.last.register_forward_pre_hook(lambda _, given: seen.append(10 * given[0].atanh()))
    refine(stack, targets, steps, rule=rule)
    along = [refine(stack, targets, k, rule=KFAC(rate=0.2)) for k in range(steps)]
    logs = torch.stack([mean_squared_errors(each, targets) for each in along]).double().log()
    for k in range(steps):
        loss = [logs[k] / 5 + 1, logs[k] - logs[max(k - 1, 0)], (logs[k] - logs[0]) / 3]
        left = steps - k
        clock = [min(k / horizon, 2), min(left / horizon, 2), 1 / left, 1 / (k + 1), float(k == 0), float(k == 1)]
        for i, (inputs, outputs) in enumerate(zip(widths, widths[1:-1], strict=False)):
            place = [float(i == 0), float(i == 1), math.log2(outputs / 32) / 2, math.log2(inputs / 32) / 2]
            rest = torch.tensor([*clock, *place], dtype=torch.float64).expand(3, -1)
            expected = torch.cat([torch.stack(loss, 1), rest], 1)
            torch.testing.assert_close(seen[k][:, i], expected, rtol=1e-5, atol=1e-5)


def test_the_learned_rule_steers_every_number_by_itself():
    stack, targets = _networks("gray")
    problem, rule, says = RenderingProblem(stack.convention, targets), LearnedKFAC().double(), (0.3, -0.4, 0.5, -0.6)
    with torch.no_grad():
        rule.last.bias.copy_(torch.tensor(says, dtype=torch.float64))
    start, layers, momenta = rule.config, problem.layers(stack.params), []
    steering = Steering(
        start.rate * math.exp(says[0]),
        1 / (1 + math.exp(-says[1]) * (1 - start.momentum) / start.momentum),
        start.damping * math.exp(says[2]),
        start.damping * math.exp(says[3]),
    )
    for _ in range(3):
        layers, momenta = kfac_step(layers, problem.summarize(layers, ridge=RIDGE, factors=True), steering, momenta)
    for name, tensor in problem.params(problem.solve_last(layers, RIDGE)).items():
        torch.testing.assert_close(rule.refine(problem, stack.params, 3)[name], tensor, rtol=1e-6, atol=1e-9)


def test_the_shipped_learned_rule_is_the_default(monkeypatch, caplog):
    stack, targets = _networks("gray", dtype=torch.float32)
    expected = refine(stack, targets, 2, rule=LearnedKFAC.from_pretrained("refine-rule"))
    for name, tensor in refine(stack, targets, 2).params.items():
        assert torch.equal(tensor, expected.params[name])
    monkeypatch.setattr("weightedit.editing.refinement.shipped", dict)
    expected = refine(stack, targets, 2, rule=KFAC())
    for name, tensor in refine(stack, targets, 2).params.items():
        assert torch.equal(tensor, expected.params[name])
    assert caplog.messages == [
        "this copy of weightedit has no refine-rule: K-FAC with numbers set by hand takes the steps"
    ]


def test_learned_rule_refines_float64_too():
    stack, targets = _networks("gray")
    found = refine(stack, targets, 3, rule=LearnedKFAC())
    expected = refine(stack, targets, 3, rule=KFAC())
    for name, tensor in found.params.items():
        assert tensor.dtype == torch.float64
        torch.testing.assert_close(tensor, expected.params[name], rtol=1e-4, atol=1e-6)


def test_gradients_reach_the_learned_rule_through_all_steps():
    stack, targets = _networks("gray", dtype=torch.float64)
    rule = LearnedKFAC().double()
    torch.nn.init.normal_(rule.last.weight, std=0.05, generator=torch.Generator().manual_seed(0))
    problem = RenderingProblem(stack.convention, targets)
    bias = rule.last.bias

    def loss():
        return (
            render_images(rule.refine(problem, stack.params, 3), stack.convention, *SIZE).sub(targets).square().mean()
        )

    loss().backward()
    exact = bias.grad.clone()
    for i in range(4):
        with torch.no_grad():
            bias[i] += 1e-5
            above = loss()
            bias[i] -= 2e-5
            below = loss()
            bias[i] += 1e-5
        assert float((above - below) / 2e-5) == pytest.approx(float(exact[i]), rel=1e-4, abs=1e-9)


def test_any_function_of_images_is_a_target():
    stack, _ = _networks("gray", dtype=torch.float32)

    def mirrored(images):
        return images.flip(-1)

    assert torch.equal(target_of(mirrored, stack), stack.render().clamp(0, 1).flip(-1))


@pytest.mark.parametrize("given", ["a", None, [1.0], torch.ones_like])
def test_what_is_no_picture_is_refused_as_a_target(given):
    stack, _ = _networks("gray", dtype=torch.float32)
    for use in (lambda: refine(stack, given, 1), lambda: mean_squared_errors(stack, given)):
        with pytest.raises(ParamsError, match=r"as targets; expected .* \[3, 1, height, width\]: .*target_of"):
            use()


def test_strength_of_a_target():
    stack, _ = _networks("gray", dtype=torch.float32)
    picture, wanted = stack.render().clamp(0, 1), target_of("invert", stack)
    assert torch.equal(target_of("invert", stack, strength=0.0), picture)
    torch.testing.assert_close(target_of("invert", stack, strength=0.25), 0.75 * picture + 0.25 * wanted)
    torch.testing.assert_close(target_of("invert", stack, strength=3.0), (3 * wanted - 2 * picture).clamp(0, 1))


def test_levenberg_marquardt_refuses_pictures_whose_matrix_does_not_fit(monkeypatch):
    stack, targets = _networks("gray", dtype=torch.float32)
    monkeypatch.setattr("weightedit.capacity.memory_of_machine", lambda: 3 * 42**2 * 4 - 1)
    with pytest.raises(WeightEditError, match="Levenberg-Marquardt on 3 pictures of 42 pixels.*choose KFAC"):
        refine(stack, targets, 1, rule=LevenbergMarquardt())


def test_what_diverges_stays_as_it_was():
    stack, targets = _networks("gray", dtype=torch.float32)

    class Explodes:
        def refine(self, problem, params, steps):
            return {k: torch.cat([p[:1], p[1:] / 0]) for k, p in params.items()}

    found = refine(stack, targets, 1, rule=Explodes())
    assert all(torch.equal(tensor, stack.params[name]) for name, tensor in found.params.items())


@pytest.mark.parametrize("fault", [torch.nan, torch.inf])
def test_one_number_that_is_not_finite_takes_back_its_network_alone(fault):
    """Wherever it stands: the other networks keep their step, and this one keeps none of it."""
    stack, targets = _networks("gray", dtype=torch.float32)
    better = refine(stack, targets, 3, rule=KFAC()).params
    for spoiled in stack.params:

        class Spoils:
            def refine(self, problem, params, steps, spoiled=spoiled):
                after = {name: tensor.clone() for name, tensor in better.items()}
                after[spoiled][1].flatten()[-1] = fault
                return after

        for name, tensor in refine(stack, targets, 1, rule=Spoils()).params.items():
            assert torch.equal(tensor[1], stack.params[name][1])
            assert torch.equal(tensor[::2], better[name][::2])


def test_a_rule_that_raises_the_error_of_some_networks_changes_the_others_alone():
    stack, targets = _networks("gray", dtype=torch.float32)
    better = refine(stack, targets, 3, rule=KFAC()).params

    class Gambles:
        def refine(self, problem, params, steps):
            return {name: torch.cat([tensor[:2], 2 * params[name][2:]]) for name, tensor in better.items()}

    found = refine(stack, targets, 1, rule=Gambles()).params
    for name, tensor in found.items():
        assert torch.equal(tensor[:2], better[name][:2]) and torch.equal(tensor[2:], stack.params[name][2:])


class Untouched:
    """A rule that must not be asked."""

    def refine(self, problem, params, steps):
        raise AssertionError("steps were taken")


def test_wrong_input(tmp_path):
    stack, targets = _networks("gray", dtype=torch.float32)
    with pytest.raises(WeightEditError, match="got steps=-1"):
        refine(stack, targets, -1)
    for wrong, message in (
        (targets[:2], "one image per INR"),
        (targets[0], "one image per INR"),
        (targets / 0, "not all in"),
        (targets + 0.1, "not all in"),
        ((255 * targets).to(torch.uint8), "divide bytes by 255"),
    ):
        with pytest.raises(ParamsError, match=message):
            refine(stack, wrong, 1, rule=Untouched())
    for strength in (-1.0, float("nan"), float("inf")):
        with pytest.raises(WeightEditError, match="expected finite numbers"):
            target_of("invert", stack, strength=strength)
    with pytest.raises(ParamsError, match="one SIREN"):
        RenderingProblem(stack.convention, targets).layers({k: p[:1] for k, p in stack.params.items()})
    for make in (lambda: KFAC(rate=0.0), lambda: LearnedKFACConfig(momentum=1.0)):
        with pytest.raises(WeightEditError, match="rate > 0"):
            make()
    with pytest.raises(WeightEditError, match="horizon of at least 1"):
        LearnedKFACConfig(width=0)
    from weightedit.files.checkpoint import save_checkpoint

    save_checkpoint(tmp_path / "other", {"x": torch.zeros(1)}, {"kind": "editor", "rule": {}}, "# card")
    with pytest.raises(FileFormatError, match="of kind 'editor'; expected one of kind refinement rule"):
        LearnedKFAC.from_pretrained(tmp_path / "other")


@pytest.mark.parametrize("rule", [KFAC(), LearnedKFAC()])
def test_a_flat_target_at_the_raw_zero_is_reached(rule):
    stack = INRStack(initial_params(3, (2, 8, 8, 1), generator=torch.Generator().manual_seed(0)), Convention(), 9, 8)
    flat = torch.full((3, 1, 9, 8), 0.5)
    assert float((refine(stack, flat, 5, rule=rule).render() - flat).abs().max()) < 1e-4


def test_no_inr_is_refined_to_no_inr():
    stack = INRStack(initial_params(3, (2, 4, 1)), Convention(), 5, 5)[:0]
    assert len(refine(stack, torch.zeros(0, 1, 5, 5), steps=2)) == 0
