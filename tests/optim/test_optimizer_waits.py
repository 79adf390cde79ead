"""Nothing waits for the device: steps of learned rules of every kind, and inner steps of meta-training."""

import pytest
import torch

from tests.device_waits import device_waits
from tests.metatrain.problems import digits
from tests.networks import generator
from weightedit.metanet.registry import METANETS
from weightedit.metatrain.image_optimizees import ClassifierOptimizee, conv_net
from weightedit.metatrain.unroll import Unroll, start
from weightedit.optim.hand_designed import SGD, GeometricAdam
from weightedit.optim.learned_rule import make_rule
from weightedit.optim.metanet_rule import MetanetRule, MetanetRuleConfig
from weightedit.optim.mlp_rule import MLPRule, MLPRuleConfig
from weightedit.optim.optimizer import LearnedOptimizer

RULES = {
    "lean": MetanetRule,
    "lean, coherence": lambda: MetanetRule(MetanetRuleConfig(coherence=True)),
    "lean, loss": lambda: MetanetRule(MetanetRuleConfig(loss=True, leveling=3)),
    "per-parameter": MLPRule,
    "small-fc": lambda: MLPRule(MLPRuleConfig.small_fc()),
}
BY_HAND = {"sgd": lambda: SGD(0.1), "geometric-adam": GeometricAdam}  # others: test_capturable.py
METANETWORKS = {name: lambda name=name: make_rule(name, net()) for name in METANETS if name != "statistics"}


def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return conv_net(1, 10, widths=(3, 4), strides=(2, 1))


@pytest.mark.parametrize(
    "make", [*{**RULES, **BY_HAND, **METANETWORKS}.values()], ids=[*RULES, *BY_HAND, *METANETWORKS]
)
def test_a_step_of_a_convolutional_network(make):
    """After two steps, since what is made once is made, and the state is there."""
    module = net()
    optimizer = LearnedOptimizer(module, make(), lr=torch.tensor(0.5), nonfinite="skip", capturable=True)
    for _ in range(3):
        optimizer.zero_grad()
        module(torch.rand(4, 1, 8, 8, generator=generator())).square().mean().backward()
        with device_waits() as found:
            optimizer.step()
    assert not found, "\n".join(found)


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("name", [*RULES, "gauge-gmn"])
def test_an_inner_step_of_meta_training(name, stacked):
    optimizee = ClassifierOptimizee(digits(torch.float32), hidden=(5,), batch_size=8)
    rule = RULES[name]() if name in RULES else make_rule(name, optimizee.wiring.spec)
    state, unrolled = start(rule, optimizee, generator(), 2), Unroll(rule, optimizee)
    weights = {name: p.detach().expand(2, *p.shape) for name, p in rule.named_parameters()} if stacked else None
    with torch.no_grad():
        state, _ = unrolled(state, 1, weights)
        with device_waits() as found:
            unrolled(state, 1, weights)
    assert not found, "\n".join(found)
