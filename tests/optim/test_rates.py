"""What the forward multiplies sums by, omega of a sine: a network steps as the one that has it in its weights."""

import copy

import pytest
import torch
from torch import nn

from tests.networks import generator, relative
from tests.optim.test_metanet_rule import random_rule
from weightedit.network.reading import wiring_of
from weightedit.network.spec import NetworkSpec
from weightedit.network.wiring import Wiring
from weightedit.optim.hand_designed import GeometricAdam
from weightedit.optim.learned_rule import make_rule
from weightedit.optim.optimizer import LearnedOptimizer

X = torch.rand(40, 2, generator=generator(1), dtype=torch.float64) - 0.5
Y = (6 * X).sin().prod(-1, keepdim=True)


RULES = {
    "metanet": random_rule,
    "geometric": lambda: GeometricAdam(0.01),
    "gauge-gmn": lambda: learned("gauge-gmn", seeded()),
    "scalegmn": lambda: learned("scalegmn", seeded()),  # which looks at phases
}


def learned(name, net):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make_rule(name, net).double()


class Siren(nn.Module):
    """Sines of two omegas, the second one a quotient; `twice` reads one layer by both."""

    def __init__(self, twice=False):
        super().__init__()
        self.omegas, self.twice = (5.0, 3.0), twice
        self.a, self.b, self.c = nn.Linear(2, 6), nn.Linear(6, 5), nn.Linear(5, 1)

    def forward(self, x):
        first, second = self.omegas
        a = self.a(x)
        x = torch.sin(a * first)
        x = x + torch.sin(2 * a) if self.twice else x
        return self.c(torch.sin(self.b(x) / (1 / second)))


def seeded(**options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Siren(**options).double()


@pytest.mark.parametrize("make", RULES.values(), ids=RULES)
def test_a_network_and_the_one_with_its_omegas_in_the_weights_stay_one_function(make):
    net, rule = seeded(), make()
    folded = copy.deepcopy(net)
    with torch.no_grad():
        for layer, omega in zip((folded.a, folded.b), net.omegas, strict=True):
            layer.weight *= omega
            layer.bias *= omega
    folded.omegas = (1.0, 1.0)
    start = net(X).detach()
    assert relative(folded(X), start) < 1e-12
    for one in (net, folded):
        optimizer = LearnedOptimizer(one, rule, weight_decay=0.1)
        for _ in range(15):
            optimizer.zero_grad()
            (one(X) - Y).square().mean().backward()
            optimizer.step()
    assert relative(folded(X), net(X)) < 1e-9 and relative(net(X), start) > 0.02
    for layer, other, omega in zip((net.a, net.b), (folded.a, folded.b), net.omegas, strict=True):
        torch.testing.assert_close(omega * layer.weight, other.weight)


@pytest.mark.parametrize(
    ("wiring", "rates"),
    [
        (lambda: wiring_of(seeded()), {"a.weight": 5.0, "a.bias": 5.0, "b.weight": 3.0, "b.bias": 3.0}),
        (lambda: wiring_of(seeded(twice=True)), {"b.weight": 3.0, "b.bias": 3.0}),  # of two, none is the rate
        (
            lambda: Wiring.of(NetworkSpec.siren((2, 4, 1), 7.0)),
            {"layers.0.weight": 7.0, "layers.0.bias": 7.0},
        ),
        (lambda: wiring_of(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))), {}),
    ],
)
def test_rates_are_read(wiring, rates):
    assert wiring().rates == pytest.approx(rates)
