"""higher's inner loop with our rules: against torch's optimizers, our functional unroll, and finite differences."""

import copy

import higher
import pytest
import torch
from torch import nn

from tests.modules import CNN
from tests.rules import TinyRule
from weightedit.errors import NonFiniteError, WeightEditError
from weightedit.network.reading import wiring_of
from weightedit.optim.hand_designed import Adam, GeometricAdam
from weightedit.optim.higher_bridge import register_with_higher
from weightedit.optim.optimizer import LearnedOptimizer

STEPS = 10
X = torch.randn(8, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture(scope="module", autouse=True)
def _registered():
    before = dict(higher.optim._opt_mapping)
    register_with_higher()
    register_with_higher()
    yield
    higher.optim._opt_mapping.clear()
    higher.optim._opt_mapping.update(before)


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()


def loss_of(net, x=X):
    return (net(x) - x.sum(1, keepdim=True).sin()).square().mean()


def unrolled(net, optimizer, steps=STEPS, **options):
    """The loss after an inner loop, and the fast parameters there."""
    with higher.innerloop_ctx(net, optimizer, **options) as (fast, inner):
        for _ in range(steps):
            inner.step(loss_of(fast))
        return loss_of(fast), list(fast.parameters())


def train(net, optimizer, steps=STEPS):
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(net).backward()
        optimizer.step()


def difference(function, at, step=1e-6):
    """Central finite differences of a number, for every entry of `at`."""
    found = torch.zeros_like(at)
    for i in range(at.numel()):
        ends = []
        for sign in (1, -1):
            moved = at.detach().clone()
            moved.view(-1)[i] += sign * step
            ends.append(float(function(moved)))
        found.view(-1)[i] = (ends[0] - ends[1]) / (2 * step)
    return found


CASES = {
    "sgd": (torch.optim.SGD, {"lr": 0.1}),
    "momentum": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.1, "weight_decay": 0.01}),
    "nesterov": (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    "adam": (torch.optim.Adam, {"lr": 0.01, "eps": 1e-3, "weight_decay": 0.1}),
    "amsgrad": (torch.optim.Adam, {"lr": 0.1, "amsgrad": True}),
    "adamw": (torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.1}),
    "rmsprop": (torch.optim.RMSprop, {"lr": 0.01, "weight_decay": 0.1}),
    "centered": (torch.optim.RMSprop, {"lr": 0.01, "centered": True, "momentum": 0.5}),
}


@pytest.mark.parametrize("warm", [0, 3])
@pytest.mark.parametrize("case", CASES)
def test_torchs_optimizers_take_torchs_steps(case, warm):
    """Ten of them, from the start and from an optimizer that has run."""
    kind, options = CASES[case]
    net = network()
    optimizer = kind(net.parameters(), **options)
    train(net, optimizer, warm)
    _, fast = unrolled(net, optimizer)
    train(net, optimizer)
    torch.testing.assert_close([p.detach() for p in fast], [p.detach() for p in net.parameters()], rtol=0, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_the_meta_gradient_of_a_learning_rate(case):
    kind, options = CASES[case]
    net = network()
    optimizer = kind(net.parameters(), **options)
    lr = torch.tensor(options["lr"], dtype=torch.float64, requires_grad=True)
    loss, _ = unrolled(net, optimizer, override={"lr": [lr]})
    expected = difference(lambda value: unrolled(net, optimizer, override={"lr": [value]})[0], lr)
    torch.testing.assert_close(torch.autograd.grad(loss, lr)[0], expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("case", CASES)
def test_unused_parameters_give_no_nan(case):
    """A gradient that is exactly zero, under a square root, twice differentiated."""
    kind, options = CASES[case]
    net = network()
    x = X * torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)  # the second column of the first weight is never used
    with higher.innerloop_ctx(net, kind(net.parameters(), **options), copy_initial_weights=False) as (fast, inner):
        for _ in range(3):
            inner.step(loss_of(fast, x))
        grads = torch.autograd.grad(loss_of(fast), list(net.parameters()))
    assert all(grad.isfinite().all() for grad in grads)


def functional(net, rule, weights, steps=STEPS):
    """The same inner loop without higher: our own oracle."""
    wiring = wiring_of(net)
    params = {name: p.detach().clone() for name, p in net.named_parameters()}
    state = rule.init(wiring, params)
    for _ in range(steps):
        inside = {name: p.requires_grad_() if p.is_leaf else p for name, p in params.items()}
        loss = loss_of(lambda x, inside=inside: torch.func.functional_call(net, inside, (x,)))
        grads = dict(zip(inside, torch.autograd.grad(loss, list(inside.values()), create_graph=True), strict=True))
        deltas, state = torch.func.functional_call(rule, weights, (wiring, grads, state, inside), {"loss": loss})
        params = {name: p + deltas[name] for name, p in inside.items()}
    return loss_of(lambda x: torch.func.functional_call(net, params, (x,))), list(params.values())


def test_a_learned_rule_agrees_with_the_functional_unroll_and_with_finite_differences():
    net, rule = network(), TinyRule().double()
    loss, fast = unrolled(net, LearnedOptimizer(net, rule))
    weights = {"weights": rule.weights.detach().clone().requires_grad_()}
    own, params = functional(net, rule, weights)
    torch.testing.assert_close(fast, params, rtol=0, atol=1e-13)
    found = torch.autograd.grad(loss, rule.weights)[0]
    torch.testing.assert_close(found, torch.autograd.grad(own, weights["weights"])[0], rtol=1e-10, atol=1e-14)

    def after(value):
        other = copy.deepcopy(rule)
        other.weights.data.copy_(value)
        return unrolled(net, LearnedOptimizer(net, other))[0]

    torch.testing.assert_close(found, difference(after, rule.weights), rtol=1e-6, atol=1e-9)
    assert (found.abs() > 1e-6).all()


class Tempered(nn.Module):
    """With a parameter that is a number, which no neural graph has."""

    def __init__(self):
        super().__init__()
        self.body, self.temperature = network(), nn.Parameter(torch.tensor(1.0, dtype=torch.float64))

    def forward(self, x):
        return self.body(x) * self.temperature


@pytest.mark.parametrize("given", ["bias", "no bias"])
@pytest.mark.parametrize("rule", [Adam(0.01), GeometricAdam(0.01), TinyRule().double()])
def test_the_inner_loop_takes_the_steps_of_the_optimizer(rule, given):
    """From a state, with decay and groups, a frozen parameter (or not even given), and one outside the graph."""
    net = Tempered()
    frozen = net.body[0].bias if given == "bias" else net.body[0].weight
    frozen.requires_grad_(False)
    first = [p for p in net.body[0].parameters() if given == "bias" or p.requires_grad]
    groups = [
        {"params": first, "lr": 0.5, "weight_decay": 0.1},
        {"params": [*net.body[2].parameters(), net.temperature]},
    ]
    optimizer = LearnedOptimizer(groups, rule, net=net)
    assert [group["outside"] for group in optimizer.param_groups] == [False, False, True]
    for start in (0, 3):
        for _ in range(start):
            optimizer.zero_grad()
            loss = loss_of(net)
            loss.backward()
            optimizer.observe(loss)
            optimizer.step()
        _, fast = unrolled(net, optimizer)
        twin = copy.deepcopy((net, optimizer))
        for _ in range(STEPS):
            twin[1].zero_grad()
            loss = loss_of(twin[0])
            loss.backward()
            twin[1].observe(loss)
            twin[1].step()
        expected = [p.detach() for p in twin[0].parameters()]
        torch.testing.assert_close([p.detach() for p in fast], expected, rtol=0, atol=1e-12)


def test_the_meta_gradient_of_a_learned_optimizers_lr():
    net, rule = network(), TinyRule().double()
    optimizer = LearnedOptimizer(net, rule)
    lr = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    loss, _ = unrolled(net, optimizer, override={"lr": [lr]})
    expected = difference(lambda value: unrolled(net, optimizer, override={"lr": [value]})[0], lr)
    torch.testing.assert_close(torch.autograd.grad(loss, lr)[0], expected, rtol=1e-6, atol=1e-9)


def test_without_higher_gradients_no_graph_is_kept():
    net, rule = network(), TinyRule().double()
    optimizer = LearnedOptimizer(net, rule)
    with higher.innerloop_ctx(net, optimizer, track_higher_grads=False) as (fast, inner):
        for _ in range(2):
            inner.step(loss_of(fast))
        assert all(p.is_leaf for p in fast.parameters())
        assert not any(t.requires_grad for states in inner.state for s in states.values() for t in s.values())


@pytest.mark.parametrize("nonfinite", ["raise", "skip"])
@pytest.mark.parametrize("spoilt", ["body", "temperature"])
def test_a_step_that_is_not_finite_is_refused_as_outside(nonfinite, spoilt, caplog):
    """All of it, on both sides of the graph; the next one goes on from the parameters before."""
    net = Tempered()
    optimizer = LearnedOptimizer(net, Adam(0.01), nonfinite=nonfinite)
    with higher.innerloop_ctx(net, optimizer) as (fast, inner):
        inner.step(loss_of(fast))
        before, state = [p.detach().clone() for p in fast.parameters()], dict(inner.state[0])
        name = {"body": "body.0.weight", "temperature": "temperature"}[spoilt]
        message = f"of {name} at step 2 came out infinite or NaN .its gradient is not finite either"
        bad = loss_of(fast) + torch.inf * dict(fast.named_parameters())[name].sum()
        if nonfinite == "raise":
            with pytest.raises(NonFiniteError, match=message):
                inner.step(bad)
        else:
            inner.step(bad)
            assert optimizer.skipped_steps == 1 and f"of {name} at step 2" in caplog.text
        torch.testing.assert_close([p.detach() for p in fast.parameters()], before, rtol=0, atol=0)
        torch.testing.assert_close(inner.state[0], state, rtol=0, atol=0)
        inner.step(loss_of(fast))
        assert all(p.isfinite().all() for p in fast.parameters())


def test_convolutions_in_float32():
    net = CNN()
    optimizer = LearnedOptimizer(net, TinyRule())
    images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with higher.innerloop_ctx(net, optimizer) as (fast, inner):
        losses = []
        for _ in range(3):
            losses.append(nn.functional.cross_entropy(fast(images), torch.arange(4)))
            inner.step(losses[-1])
        sum(losses).backward()
    assert losses[-1] < losses[0] and optimizer.rule.weights.grad.isfinite().all()


# Refusals.


def test_traps_are_refused_by_name():
    net = network()
    lr = torch.tensor(0.1, requires_grad=True)
    for optimizer, message in (
        (torch.optim.SGD(net.parameters(), 0.1, maximize=True), "SGD with maximize=True"),
        (torch.optim.Adam(net.parameters(), maximize=True), "Adam with maximize=True"),
        (torch.optim.Adam([{"params": net.parameters(), "lr": lr}]), "Adam with a lr that requires a gradient"),
        (
            torch.optim.SGD([{"params": net.parameters(), "rule": TinyRule()}], 0.1),
            "SGD with TinyRule as rule in a parameter group",
        ),
    ):
        with pytest.raises(WeightEditError, match=message):
            unrolled(net, optimizer)
    optimizer = torch.optim.Adam(net.parameters())
    optimizer.param_groups[0]["decoupled_weight_decay"] = True
    with pytest.raises(WeightEditError, match="Adam with decoupled_weight_decay=True"):
        unrolled(net, optimizer)
    with pytest.raises(
        WeightEditError, match="override of learning_rate, which would do nothing; expected amsgrad, betas"
    ):
        unrolled(net, torch.optim.Adam(net.parameters()), override={"learning_rate": [0.1]})
