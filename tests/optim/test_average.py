"""Evaluation at the average of the iterates: eval(), train() and averaged() of an optimizer, under any schedule."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from tests.modules import seeded
from tests.networks import generator, relative
from tests.optim.test_metanet_rule import LEVELING, random_rule
from tests.optim.test_optimizer import Pair
from tests.optim.test_rates import Siren
from tests.rounding import assert_agree
from weightedit.errors import ParamsError, WeightEditError
from weightedit.network.reading import wiring_of
from weightedit.optim.hand_designed import Adam
from weightedit.optim.learned_rule import LearnedRuleConfig, make_rule
from weightedit.optim.metanet_rule import MetanetRule
from weightedit.optim.optimizer import LearnedOptimizer

X = torch.rand(32, 2, generator=generator(1), dtype=torch.float64) - 0.5
Y = (3 * X.sum(-1, keepdim=True)).sin()
RULES = {
    "metanet": lambda **config: random_rule(**config),
    "gauge-gmn": lambda **config: seeded(
        lambda: make_rule("gauge-gmn", network(), LearnedRuleConfig(**config)).double()
    ),
}


@pytest.fixture(params=RULES, name="make")
def _make(request):
    return RULES[request.param]


def network(dtype=torch.float64):
    return seeded(lambda: nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 1))).to(dtype)


def train(net, optimizer, steps=1, *, between=lambda: None):
    for _ in range(steps):
        optimizer.zero_grad()
        x, y = (data.to(next(net.parameters()).dtype) for data in (X, Y))
        (net(x) - y).square().mean().backward()
        optimizer.step()
        between()


def values(net):
    return {name: p.detach().clone() for name, p in net.named_parameters()}


def assert_equal(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def average(net, optimizer):
    with optimizer.averaged():
        return values(net)


@pytest.mark.parametrize(("decay", "tensor"), [(0.0, False), (20.0, True)])
def test_x_is_the_average_that_z_and_x_in_full_give(make, decay, tensor):
    """An iterate counts with its lr, and by all before; at zero nothing moves. Steps are those of a rule without."""
    net, rule, plain = network(), make(), make(averaging=False)
    plain.load_state_dict({k: v for k, v in rule.state_dict().items() if k not in ("lag", "log_recency")})
    optimizer = LearnedOptimizer(net, rule, lr=torch.tensor(1.0).double() if tensor else 1.0, weight_decay=decay)
    wiring, (group,) = optimizer.wiring, optimizer.param_groups
    slack, recency = float(rule.slack().detach()), float(rule.log_recency.detach().exp())
    z = x = y = values(net)
    state, total = plain.init(wiring, y), 0.0
    for lr in (0.1, 1.0, 3.0, 0.0, 0.5, 1e-6, 2.0):
        group["lr"] = group["lr"].fill_(lr) if tensor else lr
        train(net, optimizer)
        grads = {name: p.grad for name, p in net.named_parameters()}
        with torch.no_grad():
            step, state = plain.update(wiring, grads, state, y)
        total, kept = total + lr, 1 - lr * 1e-3 * decay
        if lr:
            fresh = (1 + recency) / (total / lr + recency)
            z = {k: kept * z[k] + lr * step[k] for k in z}
            x = {k: (1 - fresh) * kept * x[k] + fresh * z[k] for k in z}
        y = {k: (1 - slack) * x[k] + slack * z[k] for k in z}
        assert_agree(values(net), y, LEVELING)
        assert_agree(average(net, optimizer), x, LEVELING)
    assert relative(x["0.weight"], y["0.weight"]) > 1e-4


def test_the_first_step_of_a_parameter_is_all_of_its_average(make):
    """Also where it joins late, at an lr far above the mean so far; steps at a constant lr are the rule's own."""
    net = network()
    optimizer = LearnedOptimizer(net, make(), lr=1e-4)
    net[0].requires_grad_(False)
    train(net, optimizer, 3)
    net[0].requires_grad_(True)
    optimizer.param_groups[0]["lr"] = 1.0
    train(net, optimizer)
    at = average(net, optimizer)
    torch.testing.assert_close(at["0.weight"], values(net)["0.weight"])
    assert not torch.equal(at["2.weight"], values(net)["2.weight"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_goes_on_bit_by_bit_whenever_it_is_evaluated(make, dtype):
    """Once, twice, from inside or not; where the average is, is seen."""
    net, other = network(dtype), network(dtype)
    optimizer, plain = LearnedOptimizer(net, make()), LearnedOptimizer(other, make())
    away = []

    def between():
        optimizer.train()
        before = values(net)
        optimizer.eval()
        at = values(net)
        optimizer.eval()
        with optimizer.averaged():
            assert_equal(values(net), at)
        assert_equal(values(net), at)
        away.append(any(not torch.equal(at[k], before[k]) for k in at))
        optimizer.train()
        optimizer.train()
        assert_equal(values(net), before)
        with pytest.raises(KeyError), optimizer.averaged():
            assert_equal(values(net), at)
            raise KeyError
        assert_equal(values(net), before)

    between()
    train(net, optimizer, 5, between=between)
    train(other, plain, 5)
    assert_equal(values(net), values(other))
    assert_equal(optimizer.state_dict()["state"], plain.state_dict()["state"])
    assert away == [False, False] + 4 * [True]  # the first step is all of the average


@pytest.mark.parametrize("way", ["file", "without the point", "pickle", "copy"])
def test_what_is_kept_at_the_average_goes_on_from_there(make, way):
    """As Hugging Face's Trainer saves both after an evaluation; exactly where y came with it."""
    net = network(torch.bfloat16)
    optimizer = LearnedOptimizer(net, make())
    train(net, optimizer, 4)
    before = values(net)
    optimizer.eval()
    if way in ("pickle", "copy"):
        pair = (net, optimizer)
        other, resumed = copy.deepcopy(pair) if way == "copy" else pickle.loads(pickle.dumps(pair))
    else:
        file, other = io.BytesIO(), network(torch.bfloat16)
        torch.save((net.state_dict(), optimizer.state_dict()), file)
        file.seek(0)
        weights, state = torch.load(file, weights_only=True)
        for kept in state["state"].values() if way != "file" else ():
            del kept["training point"]
        other.load_state_dict(weights)
        resumed = LearnedOptimizer(other, make())
        resumed.load_state_dict(state)
    assert_equal(values(other), values(net))
    with pytest.raises(WeightEditError, match="a step after eval"):
        train(other, resumed)
    resumed.train()
    close = {} if way == "without the point" else {"rtol": 0, "atol": 0}
    torch.testing.assert_close(values(other), before, **close)
    if not close:
        return
    optimizer.train()
    for one, own in ((net, optimizer), (other, resumed)):
        train(one, own, 3)
    assert_equal(values(other), values(net))


def test_a_state_of_training_ends_the_evaluation_that_it_is_loaded_in(make):
    net = network()
    optimizer = LearnedOptimizer(net, make())
    train(net, optimizer, 2)
    weights, state = values(net), copy.deepcopy(optimizer.state_dict())
    train(net, optimizer, 3)
    expected = values(net)
    del state["param_groups"][0]["at_average"]  # as saved before there was one
    optimizer.eval()
    net.load_state_dict(weights)
    optimizer.load_state_dict(state)
    train(net, optimizer, 3)
    assert_equal(values(net), expected)


def test_a_point_of_another_shape_is_refused(make):
    net = network()
    optimizer = LearnedOptimizer(net, make())
    train(net, optimizer)
    optimizer.eval()
    state = optimizer.state_dict()
    state["state"][0] = {**state["state"][0], "training point": torch.ones(3)}
    with pytest.raises(ParamsError, match="whose training point has shape"):
        optimizer.load_state_dict(state)


def test_a_step_at_the_average_is_refused_before_the_closure(make):
    net = network()
    optimizer = LearnedOptimizer(net, make())
    optimizer.eval()
    with pytest.raises(WeightEditError, match=r"a step after eval.*; expected .*: call the optimizer's train\(\)"):
        optimizer.step(lambda: pytest.fail("was called"))


def test_rules_that_do_not_average_are_where_they_are():
    net = network()
    optimizer = LearnedOptimizer(net, Adam(1e-2))
    train(net, optimizer, 2)
    before = values(net)
    optimizer.eval()
    assert_equal(values(net), before)
    train(net, optimizer)


def test_what_is_changed_at_the_average_stays_changed(make):
    net = network()
    optimizer = LearnedOptimizer(net, make())
    train(net, optimizer, 5)
    before = values(net)
    optimizer.eval()
    at = values(net)
    with torch.no_grad():
        net[0].weight[0] += 1
    optimizer.train()
    expected = copy.deepcopy(before)
    expected["0.weight"][0] += 1
    assert not torch.equal(at["0.weight"], before["0.weight"])
    torch.testing.assert_close(values(net), expected)
    assert_equal(values(net)["0.weight"][1:], before["0.weight"][1:])


def test_without_a_gradient_the_average_decays_as_the_parameters_do(make):
    net = network()
    optimizer = LearnedOptimizer(net, make(), weight_decay=100.0)
    train(net, optimizer, 5)
    before, at = values(net), average(net, optimizer)
    optimizer.zero_grad(set_to_none=False)
    optimizer.step()
    for name in before:
        torch.testing.assert_close(values(net)[name], 0.9 * before[name])
        torch.testing.assert_close(average(net, optimizer)[name], 0.9 * at[name])


def test_the_averages_of_copies_are_copies(make):
    """Rescaled and permuted, and trained alike under a schedule."""
    net = network()
    other, wiring, source = copy.deepcopy(net), wiring_of(net), generator(3)
    factors = [torch.randn(one.size, generator=source).double().exp() ** one.group.scale for one in wiring.sets]
    net_params = values(net)
    other.load_state_dict(wiring.permuted(wiring.rescaled(net_params, factors), wiring.permutations(source)))
    assert relative(other(X), net(X)) < 1e-12 and not torch.allclose(other[0].weight, net[0].weight)
    optimizers = [LearnedOptimizer(one, make(), weight_decay=1.0) for one in (net, other)]
    for one, optimizer in zip((net, other), optimizers, strict=True):
        train(one, optimizer, 20, between=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20).step)
    at = net(X).detach()
    for optimizer in optimizers:
        optimizer.eval()
    assert relative(other(X), net(X)) < 1e-9 and relative(net(X), at) > 1e-3


def test_the_average_of_a_network_of_sines_is_that_of_the_one_with_omega_in_its_weights(make):
    net, rule = seeded(lambda: Siren().double()), make()
    folded = copy.deepcopy(net)
    with torch.no_grad():
        for layer, omega in zip((folded.a, folded.b), net.omegas, strict=True):
            layer.weight *= omega
            layer.bias *= omega
    folded.omegas = (1.0, 1.0)
    for one in (net, folded):
        optimizer = LearnedOptimizer(one, rule)
        train(one, optimizer, 5, between=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8).step)
        before = one(X).detach()
        optimizer.eval()
    assert relative(folded(X), net(X)) < 1e-9 and relative(folded(X), before) > 1e-3


class Shared(nn.Module):
    """A weight that is used twice and read from the right, and a number."""

    def __init__(self):
        super().__init__()
        self.first, self.table, self.size = (
            nn.Linear(2, 5),
            nn.Parameter(torch.randn(5, 5)),
            nn.Parameter(torch.ones(())),
        )
        self.last = nn.Linear(5, 1)

    def forward(self, x):
        x = torch.tanh(self.first(x)) @ self.table
        return self.size * self.last(torch.tanh(torch.tanh(x) @ self.table))


def test_shared_weights_of_any_layout_go_and_come_and_numbers_outside_stay():
    """Of a linear layer stored the other way the average is the other way, too."""
    net = seeded(lambda: Shared().double())
    optimizer = LearnedOptimizer(net, random_rule(), inputs=X)
    assert optimizer.wiring.by_name["table"].stored
    train(net, optimizer, 6)
    ahead, slack, before = optimizer.state[net.table]["ahead"], float(optimizer.rule.slack().detach()), values(net)
    at = average(net, optimizer)
    torch.testing.assert_close(at["table"], before["table"] - slack * ahead.mT)
    assert_equal(at["size"], before["size"])
    assert_equal(values(net), before)


def test_a_state_that_waits_for_the_first_forward_cannot_be_averaged_yet():
    net, x, y = Pair(), torch.ones(3, 4), torch.ones(3, 3)
    optimizer = LearnedOptimizer(net, MetanetRule())
    for _ in range(2):
        net(x, y).square().sum().backward()
        optimizer.step()
    before, other = values(net), copy.deepcopy(net)
    waiting = LearnedOptimizer(other, MetanetRule())
    waiting.load_state_dict(optimizer.state_dict())
    with pytest.raises(WeightEditError, match="a loaded state of .* before the network's first forward"):
        waiting.eval()
    optimizer.eval()
    other.load_state_dict(net.state_dict())
    again = LearnedOptimizer(other, MetanetRule())
    again.load_state_dict(optimizer.state_dict())
    again.train()
    assert_equal(values(other), before)
