"""Biases whose gradient is rounding alone stay where they are, and so copies of their network stay copies."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.modules import seeded
from tests.networks import generator, relative
from tests.optim.test_metanet_rule import random_rule
from weightedit.network.reading import wiring_of
from weightedit.optim.learned_rule import make_rule
from weightedit.optim.mlp_rule import MLPRule, MLPRuleConfig
from weightedit.optim.optimizer import LearnedOptimizer
from weightedit.optim.rounding import ROUNDING, is_rounding, rounding_biases

X = torch.randn(48, 6, generator=generator(1), dtype=torch.float64)
Y = torch.randint(3, (48,), generator=generator(2))
WITHOUT_EFFECT = ("0.bias", "3.bias")
RULES = {
    "metanet": lambda net: random_rule(),
    "gauge-gmn": lambda net: make_rule("gauge-gmn", net).double(),
}


@pytest.fixture(params=RULES, name="make")
def _make(request):
    return RULES[request.param]


def normalized(width=7):
    """Two layers with biases that a BatchNorm takes away again; it has next to no epsilon."""
    layers = [nn.Linear(6, width), nn.BatchNorm1d(width, eps=1e-300), nn.ReLU()]
    layers += [nn.Linear(width, width), nn.BatchNorm1d(width, eps=1e-300), nn.ReLU(), nn.Linear(width, 3)]
    return nn.Sequential(*layers)


def train(net, rule, steps=15, x=X):
    optimizer, x = LearnedOptimizer(net, rule), x.to(next(net.parameters()).dtype)
    for _ in range(steps):
        optimizer.zero_grad()
        functional.cross_entropy(net(x), Y).backward()
        optimizer.step()


def test_rescaled_and_permuted_copies_stay_one_function(make):
    """Their rounding is another, and no rule sees it."""
    net = seeded(normalized).double()
    rule, other, wiring, source = make(net), copy.deepcopy(net), wiring_of(net), generator(3)
    params = {name: p.detach() for name, p in net.named_parameters()}
    drawn = [torch.randn(neurons.size, generator=source).double().exp() for neurons in wiring.sets]
    factors = [q if one.group.scale else torch.ones_like(q) for q, one in zip(drawn, wiring.sets, strict=True)]
    changed = wiring.permuted(wiring.rescaled(params, factors), wiring.permutations(source))
    with torch.no_grad():
        for name, p in other.named_parameters():
            p.copy_(changed[name])
    start = net(X).detach()
    assert relative(other(X), start) < 1e-12
    train(net, rule)
    train(other, rule)
    assert relative(other(X), net(X)) < 1e-9 and relative(net(X), start) > 0.02


def test_in_evaluation_mode_a_bias_has_its_effect_and_copies_carry_their_statistics(make):
    net = seeded(lambda: nn.Sequential(*list(normalized())[-4:-1], nn.Linear(7, 3))).double()
    rule, other, factors = make(net), copy.deepcopy(net), torch.randn(7, generator=generator(4)).double().exp()
    x = torch.randn(48, 7, generator=generator(5), dtype=torch.float64)
    with torch.no_grad():
        for tensor in (other[0].weight, other[0].bias, other[1].running_mean, other[1].running_var):
            power = 2 if tensor is other[1].running_var else 1
            tensor.mul_(factors.pow(power).view(-1, *[1] * (tensor.dim() - 1)))
    before = net[0].bias.detach().clone()
    for one in (net.eval(), other.eval()):
        train(one, rule, 10, x)
    assert relative(other(x), net(x)) < 1e-9 and not torch.equal(net[0].bias, before)


PER_PARAMETER = {"mlp": lambda net: MLPRule(), "small_fc": lambda net: MLPRule(MLPRuleConfig.small_fc())}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("make", [*RULES.values(), *PER_PARAMETER.values()], ids=[*RULES, *PER_PARAMETER])
def test_a_bias_before_a_normalization_stays_bit_by_bit_and_no_other_does(make, dtype):
    net = seeded(normalized).to(dtype)
    before = copy.deepcopy(net)
    train(net, make(net).to(dtype), 5)
    for (name, p), q in zip(net.named_parameters(), before.parameters(), strict=True):
        assert torch.equal(p, q) == (name in WITHOUT_EFFECT), name


class Attention(nn.Module):
    """One head; the bias of its keys moves every score of a query alike."""

    def __init__(self):
        super().__init__()
        self.queries, self.keys, self.values, self.last = (nn.Linear(3, 3) for _ in range(4))

    def forward(self, x):
        x = x.unflatten(-1, (2, 3))
        return self.last(functional.scaled_dot_product_attention(self.queries(x), self.keys(x), self.values(x)).mean(1))


def test_a_bias_of_keys_stays():
    net = seeded(Attention).double()
    before = copy.deepcopy(net)
    train(net, random_rule(), 5)
    for (name, p), q in zip(net.named_parameters(), before.named_parameters(), strict=True):
        assert torch.equal(p, q[1]) == (name == "keys.bias"), name


def test_a_gradient_that_passes_through_zero_is_none():
    """What counts is the average; of a bias to which no weights lead, nothing is known."""
    bound = ROUNDING * torch.finfo(torch.float64).eps
    healthy, rounding, one = (torch.tensor(x).double() for x in (0.99, 0.99 * bound**2, 1.0))
    assert not is_rounding(healthy, one) and is_rounding(rounding, one) and not is_rounding(rounding, 0 * one)
    wiring = wiring_of(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.Linear(2, 1)))
    squares = {wire.name: torch.ones(wire.shape).double() for wire in wiring.wires}
    squares["0.bias"][0], squares["1.bias"][0] = rounding, 0.0
    found = rounding_biases(wiring, squares)
    assert found["0.bias"].tolist() == [True, False] and "1.bias" not in found and not found["2.bias"].any()
