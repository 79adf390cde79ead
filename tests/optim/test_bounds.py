"""What bounds the steps of fresh rules: a rise over the first ones, and room beside the first scales of neurons."""

from pathlib import Path

import pytest
import torch
from torch import nn

from tests.networks import SPECS, generator, random_params
from tests.optim.test_metanet_rule import random_rule
from weightedit.errors import WeightEditError
from weightedit.network.wiring import Wiring
from weightedit.optim.learned_rule import LearnedRuleConfig, make_rule
from weightedit.optim.metanet_rule import MetanetRule
from weightedit.optim.metanet_rule_config import MetanetRuleConfig
from weightedit.optim.optimizer import LearnedOptimizer
from weightedit.optim.rule_module import RuleModule

SHIPPED = Path(__file__).parents[2] / "checkpoints"
CONFIGS = (MetanetRuleConfig, LearnedRuleConfig)
RULES = {
    "metanet": lambda **bounds: random_rule(**bounds),
    "gauge-gmn": lambda **bounds: make_rule("gauge-gmn", SPECS["relu"], LearnedRuleConfig(**bounds)).double(),
}


@pytest.fixture(params=RULES, name="make")
def _make(request):
    return RULES[request.param]


def gradients(params, seed=2):
    source = generator(seed)
    return {k: torch.randn(p.shape, generator=source, dtype=p.dtype) for k, p in params.items()}


def test_steps_rise_over_the_first_ones_alone(make):
    """Without an average, which has steps of before in it."""
    wiring, params = Wiring.of(SPECS["relu"]), random_params(SPECS["relu"])
    plain, rising = (make(averaging=False, warm=warm) for warm in (0, 4))
    rising.load_state_dict(plain.state_dict())
    states = [rule.init(wiring, params) for rule in (plain, rising)]
    with torch.no_grad():
        for part in (0.25, 0.5, 0.75, 1.0, 1.0):
            (whole, states[0]), (some, states[1]) = (
                rule.update(wiring, gradients(params), state, params)
                for rule, state in zip((plain, rising), states, strict=True)
            )
            torch.testing.assert_close(some, {k: part * delta for k, delta in whole.items()})


def test_a_neuron_counts_as_no_larger_than_room_says(make):
    """Whatever its weights have become; what it was first is kept, and read of no later step."""
    wiring, params, rule = Wiring.of(SPECS["relu"]), random_params(SPECS["relu"]), make(room=3.0)
    state = rule.init(wiring, params)
    with torch.no_grad():
        _, state = rule.update(wiring, gradients(params), state, params)
        first = {k: kept["origin"] for k, kept in state.items()}
        torch.testing.assert_close(first, {k: kept["reach"] for k, kept in state.items()})
        _, state = rule.update(wiring, gradients(params), state, {k: 100 * p for k, p in params.items()})
    for k, kept in state.items():
        torch.testing.assert_close(kept["origin"], first[k], rtol=0, atol=0)
        torch.testing.assert_close(kept["reach"], 3 * first[k])


@pytest.mark.parametrize("name", ["small-classifier", "graph-rule"])
def test_rules_of_before_step_as_they_did(name, tmp_path):
    """Their configs say nothing of bounds, and they have none, also once they are saved anew."""
    rule = RuleModule.from_pretrained(SHIPPED / name)
    assert (rule.config.room, rule.config.warm) == (None, 0)
    rule.save_pretrained(tmp_path / "again", "A card.")
    assert RuleModule.from_pretrained(tmp_path / "again").config == rule.config


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("bounds", [{"room": 0.5}, {"room": float("nan")}, {"warm": -1}])
def test_bounds_that_cannot_be_meant(config, bounds):
    with pytest.raises(WeightEditError, match="expected a room of at least 1 or None, and a whole number of warm"):
        config(**bounds)


def test_a_fresh_rule_moves_trained_weights_little_at_first():
    """A hundredth of their size, and a half, at most."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    before = [p.detach().clone() for p in net.parameters() if p.dim() > 1]
    net(torch.randn(32, 6, generator=generator(1))).square().mean().backward()
    LearnedOptimizer(net, MetanetRule()).step()
    for p, old in zip((p for p in net.parameters() if p.dim() > 1), before, strict=True):
        assert 0 < (p.detach() - old).norm() < 0.015 * old.norm()
