"""Learned rules do no harm: a vanishing gradient gives a vanishing step, as torch's optimizers have it."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.func import grad

from tests.networks import SPECS, generator, random_params, relative
from tests.optim.test_metanet_rule import random_rule
from weightedit.delta import apply_delta
from weightedit.network import symmetry
from weightedit.network.wiring import Wiring
from weightedit.optim import warrant
from weightedit.optim.metanet_passes import Passes
from weightedit.optim.mlp_rule import MLPRule, MLPRuleConfig
from weightedit.optim.optimizer import LearnedOptimizer
from weightedit.optim.rule_module import RuleModule

CHECKPOINT = Path(__file__).parents[2] / "checkpoints" / "general"
RULES = {
    "per-parameter": lambda: MLPRule(MLPRuleConfig.per_parameter(0.01)),
    "small_fc": lambda: MLPRule(MLPRuleConfig.small_fc(0.01)),
    "metanet": lambda: random_rule().float(),
    "general": lambda: RuleModule.from_pretrained(CHECKPOINT),
}
X = torch.randn(64, 6, generator=generator(1))
Y = torch.stack([X.sin().sum(-1), X[:, 0] * X[:, 1], X.amax(-1)], -1)


@pytest.fixture(params=RULES, name="rule")
def _rule(request):
    return RULES[request.param]()


class TwoHeads(nn.Module):
    """A trunk of one layer, and two heads on it."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.trunk, self.first, self.second = nn.Linear(6, 16), nn.Linear(16, 3), nn.Linear(16, 3)

    def forward(self, x):
        x = torch.tanh(self.trunk(x))
        return self.first(x), self.second(x)


def train(net, optimizer, steps, *, factor=1.0, unused=False, mask=None, source=None):
    """Steps on batches of 16; the gradients times `factor`, after `mask` has changed them."""
    source = source or generator(2)
    for _ in range(steps):
        rows = torch.randint(64, (16,), generator=source)
        x, y = (data[rows].to(net.trunk.weight.dtype) for data in (X, Y))
        one, two = net(x)
        loss = (one - y).square().mean() + ((two + y).square().mean() if not unused else 0 * two.sum())
        optimizer.zero_grad()
        loss.backward()
        for p in net.parameters():
            p.grad *= factor
        if mask is not None:
            mask(net)
        optimizer.step()


def assert_equal(module, other):
    for (name, p), q in zip(module.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q), name


@pytest.mark.parametrize("trained", [0, 20])
def test_zero_gradients_change_nothing(rule, trained):
    """From the start, and after training, bit by bit, without weight decay; with it, AdamW's decay and nothing else."""
    net = TwoHeads()
    optimizer = LearnedOptimizer(net, rule)
    train(net, optimizer, trained)
    before = copy.deepcopy(net)
    train(net, optimizer, 5, factor=0.0)
    assert_equal(net, before)
    optimizer.param_groups[0]["weight_decay"] = 0.5
    train(net, optimizer, 1, factor=0.0)
    for p, q in zip(net.parameters(), before.parameters(), strict=True):
        assert torch.equal(p, (1 - 1e-3 * 0.5) * q)


def test_zero_gradients_until_the_moments_underflow(rule):
    """float32's squares of decay .99 are below its smallest number after 10,300 steps; here they come so."""
    net = TwoHeads()
    optimizer = LearnedOptimizer(net, rule)
    train(net, optimizer, 5)
    before = copy.deepcopy(net)
    for tiny in (1e-15, 1e-18, 1e-20, 1e-23):
        for state in optimizer.state.values():
            for key, kept in state.items():
                power = {"momenta": 1, "second": 2, "rows": 2, "columns": 2}.get(key, 0)
                state[key] = (
                    kept / kept.abs().max().clamp(min=1e-30) * tiny * (tiny if power == 2 else 1) if power else kept
                )
        train(net, optimizer, 1, factor=0.0)
    assert_equal(net, before)


@pytest.mark.parametrize("trained", [0, 20])
def test_a_head_that_is_not_used_stays(rule, trained):
    net = TwoHeads()
    optimizer = LearnedOptimizer(net, rule)
    train(net, optimizer, trained)
    before = copy.deepcopy(net)
    train(net, optimizer, 5, unused=True)
    assert_equal(net.second, before.second)
    assert not torch.equal(net.first.weight, before.first.weight)


@pytest.mark.parametrize("trained", [0, 20])
def test_masked_rows_and_pruned_weights_stay(rule, trained):
    """Entries whose gradient is masked, from the start or later, in a tensor whose others learn."""
    net = TwoHeads()
    optimizer = LearnedOptimizer(net, rule)
    train(net, optimizer, trained)
    pruned = torch.rand(net.first.weight.shape, generator=generator(3)) < 0.3
    with torch.no_grad():
        net.first.weight[pruned] = 0
    before = copy.deepcopy(net)

    def mask(net):
        net.trunk.weight.grad[:5] = 0
        net.trunk.bias.grad[:5] = 0
        net.first.weight.grad[pruned] = 0

    train(net, optimizer, 10, mask=mask)
    assert torch.equal(net.trunk.weight[:5], before.trunk.weight[:5])
    assert torch.equal(net.trunk.bias[:5], before.trunk.bias[:5])
    assert not net.first.weight[pruned].any()
    assert (net.trunk.weight[5:] != before.trunk.weight[5:]).all() and net.first.weight[~pruned].all()


@pytest.mark.parametrize("power", [14, 18, 19, 20, 21, 23, 40])
def test_gradients_that_underflow_are_small_or_zero(rule, power):
    """None is refused; a step is at most what the same gradients give in units in which they do not underflow."""
    net, other = TwoHeads(), TwoHeads()
    before = copy.deepcopy(net)
    train(net, LearnedOptimizer(net, rule), 3, factor=10.0**-power)
    train(other, LearnedOptimizer(other, rule), 3)
    if power >= 23:  # squares are zero
        assert_equal(net, before)
    for p, q, start in zip(net.parameters(), other.parameters(), before.parameters(), strict=True):
        assert (p - start).norm() < 2 * (q - start).norm()


def test_a_gradient_below_the_floor_moves_in_proportion_at_most(rule):
    """One step along a gradient that is small beside the tensor's largest; direction and entries' factor move too."""
    net = TwoHeads().double()
    optimizer = LearnedOptimizer(net, rule)
    train(net, optimizer, 20)

    def moved(factor):
        other, again = copy.deepcopy((net, optimizer))
        train(other, again, 1, factor=factor)
        pairs = zip(other.parameters(), net.parameters(), strict=True)
        return torch.stack([(p - q).norm() for p, q in pairs])

    small = 0.1 * warrant.FLOOR
    assert (moved(small) < 0.2 * moved(1.0)).all()
    assert (moved(0.1 * small) < 0.11 * moved(small)).all()
    assert (moved(0.01 * small) < 0.011 * moved(small)).all()


def test_healthy_gradients_give_the_steps_that_they_gave(rule, monkeypatch):
    """Bit by bit: both factors are 1 there."""
    net, other = TwoHeads(), TwoHeads()
    train(net, LearnedOptimizer(net, rule), 25)
    for name in ("metanet_rule", "metanet_step", "mlp_rule"):
        module = f"weightedit.optim.{name}"
        if name != "metanet_rule":
            monkeypatch.setattr(f"{module}.of_entries", torch.ones_like)
        if name != "metanet_step":
            monkeypatch.setattr(f"{module}.of_tensor", lambda square, averaged, peak: (torch.ones_like(peak), peak))
    train(other, LearnedOptimizer(other, rule), 25)
    assert_equal(net, other)


@pytest.mark.parametrize("factor", [0.7, 0.99])
def test_vanishing_gradients_keep_a_network_and_its_copy_alike(factor):
    """The factors are invariants: 40 steps along gradients of which one weight's row, too, is masked."""
    spec, rule = SPECS["relu"], random_rule()
    wiring, source = Wiring.of(spec), generator(3)
    first = random_params(spec)
    element = symmetry.random_element(spec, generator(1))
    pair = [first, symmetry.act(element, spec, first)]
    states = [rule.init(wiring, params) for params in pair]
    x = torch.randn(64, spec.widths[0], generator=source, dtype=torch.float64)

    def loss(params, size):
        return size * spec.forward(params, x).sin().sum()

    with torch.no_grad():
        for t in range(40):
            for i, params in enumerate(pair):
                delta, states[i] = rule.update(wiring, grad(loss)(params, factor ** (2 * t)), states[i], params)
                pair[i] = apply_delta(params, delta)
    assert relative(spec.forward(pair[1], x), spec.forward(pair[0], x)) < 1e-9


def test_the_factors_are_found_without_the_host():
    """Tensors without numbers go through: nothing is read of them."""
    empty = torch.empty(3, device="meta")
    assert all(found.shape == (3,) for found in warrant.of_tensor(empty, empty, empty))
    assert warrant.of_entries(empty).shape == (3,)


@pytest.mark.parametrize("averaging", [True, False])
def test_passes_over_large_tensors_vanish_alike(averaging, monkeypatch):
    """What is compiled for large tensors: masked entries, then no gradient at all."""
    spec, rule = SPECS["relu"], random_rule(averaging=averaging)
    monkeypatch.setattr("weightedit.optim.unitwise._ALONE", 15)
    wiring, params, source = Wiring.of(spec), random_params(spec), generator(2)
    passes = Passes(rule._adam, signed=rule._signed, compiled=False)
    state = other = rule.init(wiring, params)
    with torch.no_grad():
        for size in (1.0, 1.0, 1e-5, 0.0):
            grads = {k: size * torch.randn(p.shape, generator=source, dtype=p.dtype) for k, p in params.items()}
            for slope in grads.values():
                slope[:2] = 0
            plain, state = rule(wiring, grads, state, params)
            passed, other = rule.step(wiring, (grads, other, params), None, passes)
            for k in params:
                torch.testing.assert_close(passed[k], plain[k], rtol=1e-11, atol=1e-13)
                assert not passed[k][:2].any()
                for key in state[k]:
                    torch.testing.assert_close(other[k][key], state[k][key], rtol=1e-11, atol=1e-13)
    assert not any(delta.any() for delta in passed.values())


def test_one_spike_is_forgotten():
    """A gradient far too large slows a tensor for a while, not for good."""
    square, spike = torch.tensor(1.0), torch.tensor(1e12)
    factor, peak = warrant.of_tensor(spike, spike, torch.tensor(0.0))
    assert float(factor) == 1
    factor, peak = warrant.of_tensor(square, square, peak)
    assert float(factor) == pytest.approx(1e-3, rel=1e-2)
    for _ in range(15_000):
        factor, peak = warrant.of_tensor(square, square, peak)
    assert float(factor) == 1
