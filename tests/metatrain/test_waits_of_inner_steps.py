"""An inner step of meta-training waits for nothing on the host, so that a GPU is kept busy by hundreds of particles."""

import pytest
import torch

from tests.device_waits import device_waits
from tests.metatrain.test_training_optimizee import TASKS
from tests.metatrain.test_unroll import PROBLEMS
from tests.networks import generator
from weightedit.metatrain.estimators import PES, Horizons
from weightedit.metatrain.training_optimizee import TrainingOptimizee
from weightedit.metatrain.unroll import Unroll, start
from weightedit.optim.metanet_rule import MetanetRule
from weightedit.optim.mlp_rule import MLPRule

MADE = {name: lambda problem=problem: problem for name, problem in PROBLEMS.items()}
MADE |= {name: lambda make=make: TrainingOptimizee(make()) for name, make in TASKS.items()}


@pytest.mark.parametrize("make_rule", [MetanetRule, MLPRule])
@pytest.mark.parametrize("name", MADE)
def test_inner_steps_wait_for_nothing(name, make_rule):
    """Of antithetic pairs, each with weights of its own; the first step makes what is made once."""
    problem, rule = MADE[name](), make_rule()
    unroll, state = Unroll(rule, problem), start(rule, problem, generator(0), 2).paired()
    weights = {key: tensor.detach().expand(4, *tensor.shape) for key, tensor in rule.named_parameters()}
    with torch.no_grad():
        state, _ = unroll(state, 1, weights)
        with device_waits() as found:
            unroll(state, 2, weights)
    assert not found, "\n".join(found)


def test_between_truncations_only_ends_of_runs_are_read():
    """An outer step asks whether runs have ended, and names its noise: once each, however many steps it takes."""
    rule = MetanetRule()
    weights = {key: tensor.detach() for key, tensor in rule.named_parameters()}
    waits = []
    for steps in (1, 4):
        estimator = PES(Unroll(rule, PROBLEMS["mlp"]), Horizons(99, 99), steps, particles=2, random_phase=False)
        _, state, _ = estimator.gradient(weights, estimator.init(generator(0)))
        with device_waits() as found:
            estimator.gradient(weights, state)
        waits.append(found)
    assert waits[0] == waits[1]
    assert all("estimators.py" in line for line in waits[0]), "\n".join(waits[0])
