"""Outer gradients against the analytic one, where it is exact, within standard errors, or biased; exact resumption."""

import json
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.metatrain.problems import Bowl, LogRate, digits
from tests.networks import generator
from tests.processes import start
from tests.rules import TinyRule
from weightedit.errors import WeightEditError
from weightedit.metatrain.estimators import ES, PES, ESSingle, Horizons, TruncatedBackprop
from weightedit.metatrain.image_optimizees import ClassifierOptimizee
from weightedit.metatrain.optimizee import Quadratic
from weightedit.metatrain.unroll import InnerState, Unroll
from weightedit.optim.hand_designed import Adam

HORIZON = 24
BOWL = Bowl()
RULE = LogRate(2.3)  # past the best step along the steep axis, far below that along the flat one
WEIGHTS = {"log_rate": RULE.log_rate.detach()}
EXACT = BOWL.gradient(WEIGHTS["log_rate"], HORIZON)


def estimator(kind, truncation=None, **options):
    options = {"horizons": Horizons(HORIZON, HORIZON), "random_phase": False, **options}
    return kind(Unroll(RULE, BOWL), truncation=truncation, **options)


def estimates(kind, truncation, *, runs, seed=0, **options):
    """The mean gradient over the calls of one run, for `runs` runs of many particles."""
    one = estimator(kind, truncation, **options)
    state, found = one.init(generator(seed)), []
    for _ in range(runs * (1 if truncation is None else HORIZON // truncation)):
        grads, state, metrics = one.gradient(WEIGHTS, state)
        assert metrics["dropped"] == 0 and metrics["capped"] == 0
        found.append(grads["log_rate"])
    return torch.stack(found).view(runs, -1).mean(1)


def test_backpropagation_through_the_whole_run_is_exact():
    for truncation in (None, HORIZON):
        got = estimates(TruncatedBackprop, truncation, runs=1, particles=2)
        torch.testing.assert_close(got[0], EXACT, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("kind", "truncation"), [(ES, None), (PES, None), (ESSingle, None), (PES, 4), (ESSingle, 4), (PES, 2)]
)
def test_evolution_agrees_within_three_standard_errors(kind, truncation):
    found = estimates(kind, truncation, runs=12, particles=2000)
    error = found.std() / len(found) ** 0.5
    assert error < 0.08 * EXACT.abs(), "too noisy to show anything"
    assert (found.mean() - EXACT).abs() < 3 * error + 1e-3 * EXACT.abs()


def test_truncation_turns_backpropagation_round_and_es_but_not_pes():
    biased = estimates(TruncatedBackprop, 2, runs=1, particles=1)[0]
    assert EXACT < 0 < biased  # longer steps are better in the long run, worse within every two steps
    truncated = estimates(ES, 2, runs=6, particles=2000)
    assert truncated.mean() > 5 * truncated.std() / len(truncated) ** 0.5
    for kind in (PES, ESSingle):
        found = estimates(kind, 2, runs=12, particles=2000, seed=1)
        assert found.mean() < -5 * found.std() / len(found) ** 0.5


def test_es_single_over_truncations_is_es_over_the_whole_run():
    whole, parts = (estimates(ESSingle, truncation, runs=1, particles=50) for truncation in (None, 4))
    torch.testing.assert_close(parts, whole, rtol=1e-10, atol=0)
    assert not torch.equal(estimates(PES, 4, runs=1, particles=50), parts)


def equal(a, b):
    assert a.keys() == b.keys()
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("kind", [TruncatedBackprop, ES, PES, ESSingle])
@pytest.mark.parametrize("truncation", [None, 3])
def test_a_run_resumes_exactly_and_calls_are_pure(kind, truncation):
    problem = ClassifierOptimizee(digits(), hidden=(4,), batch_size=8)
    one = kind(Unroll(TinyRule(), problem), Horizons(2, 9), truncation=truncation, particles=3)
    weights = dict(one.unroll.rule.named_parameters())
    state = one.init(generator())
    kept = {name: tensor.clone() for name, tensor in state.items()}
    for _ in range(4):
        grads, state, _ = one.gradient(weights, state)
    assert set(grads) == set(weights) and all(grads[name].shape == weights[name].shape for name in grads)
    assert any(bool(grad.any()) for grad in grads.values())
    again = kept
    for _ in range(4):  # from what a checkpoint would hold: copies of the tensors
        found, again, _ = one.gradient(weights, {name: tensor.clone() for name, tensor in again.items()})
    assert equal(found, grads) and equal(again, state)
    other, _, _ = one.gradient(weights, one.init(generator(1)))
    assert not equal(other, one.gradient(weights, kept)[0])


@pytest.mark.parametrize("kind", [TruncatedBackprop, ES, PES, ESSingle])
@pytest.mark.parametrize("truncation", [None, 3])
def test_parts_of_the_particles_are_together_the_whole(kind, truncation):
    problem = Quadratic((2, 3), dtype=torch.float64)
    whole = kind(Unroll(TinyRule().double(), problem), Horizons(2, 9), truncation, particles=6)
    ones = [whole, *(replace(whole, particles=3, part=part, parts=2) for part in range(2))]
    weights = dict(whole.unroll.rule.named_parameters())
    states = [one.init(generator()) for one in ones]
    for _ in range(5):
        found = [one.gradient(weights, state) for one, state in zip(ones, states, strict=True)]
        states = [state for _, state, _ in found]
        expected, first, second = ((grads["weights"], metrics["loss"]) for grads, _, metrics in found)
        mean = [(a + b) / 2 for a, b in zip(first, second, strict=True)]
        torch.testing.assert_close(mean, list(expected), rtol=1e-10, atol=1e-14)
        assert not torch.equal(*(half[0] for half in (first, second)))
    if truncation is not None:
        assert torch.equal(torch.cat([state["horizon"] for state in states[1:]]), states[0]["horizon"])
        assert torch.equal(states[1]["inner/seed"][:3], states[0]["inner/seed"][:3])


def test_two_processes_are_one_with_twice_the_particles(tmp_path):
    """The averaged gradient of every outer step, of PES in truncations and of whole runs in turn; launched."""
    program = "tests/programs/meta_train_quadratic.py"
    given = ((1, 6), (2, 3))
    started = [start(program, particles, tmp_path / str(count), processes=count) for count, particles in given]
    for one in started:
        one.succeed()
    one, two = (json.loads((tmp_path / str(count) / "gradients.json").read_text()) for count in (1, 2))
    assert len(one) == 8 and json.loads((tmp_path / "2/run/run.json").read_text())["processes"] == 2
    torch.testing.assert_close(*(torch.tensor(g, dtype=torch.float64) for g in (two, one)), rtol=1e-6, atol=1e-12)


def test_pairs_share_starts_tasks_and_seeds_and_runs_end_at_different_times():
    problem = ClassifierOptimizee(digits(), hidden=(4,), batch_size=8)
    one = PES(Unroll(TinyRule(), problem), Horizons(4, 30), truncation=2, particles=6)
    weights, state = dict(one.unroll.rule.named_parameters()), one.init(generator())
    resets = []
    for _ in range(12):
        before = state["inner/seed"]
        _, state, _ = one.gradient(weights, state)
        assert torch.equal(*state["inner/seed"].chunk(2)) and torch.equal(*state["inner/step"].chunk(2))
        assert not torch.equal(*state["inner/params/layers.1.weight"].chunk(2))
        begun = state["inner/step"][:6] == 2
        changed = state["inner/seed"][:6] != before[:6]
        assert bool((begun | ~changed).all())
        resets.append(changed)
    counts = torch.stack(resets).sum(1)
    assert counts.sum() > 0 and counts.max() < 6
    assert state["horizon"].min() >= 4 and state["horizon"].max() <= 30


@pytest.mark.parametrize("kind", [TruncatedBackprop, ES, PES, ESSingle])
def test_the_state_after_a_call_is_exactly_what_is_written(kind):
    """Ends of runs, horizons, directions, networks, gradient and metrics; all kinds draw the perturbations of ES."""
    count, unroll = 6, Unroll(TinyRule().double(), Quadratic((2, 3), dtype=torch.float64))
    one, drawing = (a(unroll, Horizons(4, 9), truncation=2, particles=count) for a in (kind, ES))
    (weights,) = unroll.rule.parameters()
    state, ends, directions = one.init(generator()), [], []
    for call in range(15):
        before, lone = state, kind is TruncatedBackprop
        grads, state, metrics = one.gradient({"weights": weights}, before)
        steps, horizon = before["inner/step"][:count], before["horizon"]
        ended, kept = steps >= horizon, before.get("noise")
        both = (ended if lone else ended.repeat(2)).nonzero().squeeze(1)
        assert state["outer_step"] == call + 1
        assert torch.equal(state["inner/step"][:count], torch.where(ended, 0, steps) + 2)
        assert torch.equal((state["inner/seed"] != before["inner/seed"]).nonzero().squeeze(1), both)
        assert torch.equal(torch.where(ended, horizon, state["horizon"]), horizon)
        assert bool(((state["horizon"] >= 4) & (state["horizon"] <= 9))[ended].all())
        ends.append(int(ended.sum()))
        start = InnerState.from_tensors({k.removeprefix("inner/"): v for k, v in before.items() if "inner/" in k})
        if lone:
            stack = weights.expand(count, -1)
        else:
            noise = drawing.gradient({"weights": weights}, before)[1]["noise"]
            direction = {
                ES: noise,
                PES: noise if kept is None else torch.where(ended.unsqueeze(1), noise, kept + noise),
                ESSingle: noise if kept is None else torch.where(ended.unsqueeze(1), noise, kept),
            }[kind]
            assert torch.equal(state["noise"], direction)
            directions.append(direction)
            used = direction if kind is ESSingle else noise
            stack = torch.cat([weights + used, weights - used])
        stack = stack.detach().requires_grad_()
        after, losses = unroll(start, 2, {"weights": stack})
        goes_on = ~(ended if lone else ended.repeat(2))
        moved = after.params["x"] if kind is not ES else after.params["x"][:count].repeat(2, 1, 1)
        torch.testing.assert_close(state["inner/params/x"][goes_on], moved[goes_on], rtol=1e-12, atol=0)
        if ended.any():
            continue
        if lone:
            (each,) = torch.autograd.grad(losses.mean(0).sum(), stack)
        else:
            plus, minus = losses.mean(0).chunk(2)
            each = (plus - minus).unsqueeze(1) / (2 * one.sigma**2) * direction
        torch.testing.assert_close(grads["weights"], each.mean(0).detach(), rtol=1e-9, atol=1e-12)
        losses = losses.detach()
        expected = {
            "loss": losses.mean(),
            "last": losses[-1].mean(),
            "capped": 0,
            "dropped": 0,
            "steps": losses.numel(),
        }
        assert {name: float(value) for name, value in metrics.items()} == pytest.approx(
            {name: float(value) for name, value in expected.items()}, rel=1e-12
        )
    assert 0 in ends and any(0 < number < count for number in ends)


class Diverging(LogRate):
    """Sends the networks whose first entry is positive to infinity."""

    def forward(self, wiring, grads, state, params, *, loss=None):
        deltas, state = super().forward(wiring, grads, state, params)
        factors = {name: torch.where(tensor[..., :1, :1] > 0, torch.inf, 1.0) for name, tensor in params.items()}
        return {name: factors[name] * delta for name, delta in deltas.items()}, state

    update = forward


@pytest.mark.parametrize("kind", [TruncatedBackprop, PES])
def test_runs_that_diverge_are_capped_and_counted(kind):
    problem = Quadratic(dtype=torch.float64, cap=7.0)
    one = kind(Unroll(Diverging(), problem), Horizons(4, 4), particles=40)
    grads, _, metrics = one.gradient(dict(one.unroll.rule.named_parameters()), one.init(generator()))
    assert grads["log_rate"].isfinite()
    assert 0.2 < metrics["capped"] < 0.7 and metrics["last"] > 2
    assert 0.2 < metrics["dropped"] < 0.8 if kind is TruncatedBackprop else metrics["dropped"] == 0


def test_horizons_are_log_uniform():
    found = Horizons(10, 1000).draw(generator(), 20000)
    assert found.min() == 10 and found.max() >= 990
    assert ((found < 100).double().mean() - 0.5).abs() < 0.02


def test_a_gradient_that_is_not_finite_counts_as_zero():
    one = estimator(TruncatedBackprop, particles=4)
    each = torch.tensor([[1.0], [torch.nan], [3.0], [torch.inf]], dtype=torch.float64)
    assert one._averaged(each, WEIGHTS)["log_rate"] == 1.0


def test_every_length_of_a_run_has_its_logarithmic_share():
    found = Horizons(2, 5).draw(generator(), 20000)
    shares = [math.log((length + 1) / length) / math.log(6 / 2) for length in range(2, 6)]
    assert within_five_errors(found - 2, shares)
    assert Horizons(3, 3).draw(generator(), 50).unique().tolist() == [3]


def within_five_errors(drawn, shares):
    """Whether numbers 0, 1, ... were drawn with these probabilities, as far as their counts tell."""
    shares = torch.tensor(shares, dtype=torch.float64)
    found = drawn.bincount(minlength=len(shares)) / len(drawn)
    return len(found) == len(shares) and bool(
        ((found - shares).abs() < 5 * (shares * (1 - shares) / len(drawn)).sqrt()).all()
    )


def test_a_first_run_is_a_random_part_of_one():
    """Any number of its steps, from one to all of them, as likely as any other; later runs are whole."""
    drawn = (
        estimator(ES, 2, horizons=Horizons(2, 5), random_phase=phase, particles=20000).init(generator())["horizon"]
        for phase in (False, True)
    )
    whole, part = drawn
    for length in range(2, 6):
        assert within_five_errors(part[whole == length] - 1, [1 / length] * length)


def test_a_call_without_truncation_is_one_run_of_a_length_drawn_for_all():
    one = estimator(ES, horizons=Horizons(2, 5), particles=3)
    state, lengths = one.init(generator()), []
    for _ in range(30):
        _, state, metrics = one.gradient(WEIGHTS, state)
        lengths.append(int(metrics["steps"]) / 6)
    assert set(lengths) == {2, 3, 4, 5} and set(state) == {"seed", "outer_step"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Horizons(5, 4), "1 <= low <= high"),
        (lambda: estimator(PES, 0), "at least one"),
        (lambda: estimator(PES, part=2, parts=2), "part 2 of 2"),
        (lambda: estimator(PES, 2, sigma=0.0), "positive"),
        (lambda: estimator(TruncatedBackprop, 1), "at least two"),
        (lambda: estimator(TruncatedBackprop, horizons=Horizons(1, 5)), "at least two"),
        (lambda: ES(Unroll(Adam(), BOWL), Horizons(4, 4)), "a rule with weights"),
        (lambda: ES(Unroll(nn.Identity(), BOWL), Horizons(4, 4)), "a rule with weights"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(WeightEditError, match=message):
        make()
