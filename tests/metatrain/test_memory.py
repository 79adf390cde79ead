"""What an outer step is said to hold, against what torch's allocator gave out in one."""

import pytest

from tests.allocation import most_allocated
from tests.metatrain.problems import digits
from tests.networks import generator
from tests.rules import TinyRule
from weightedit.metatrain.estimators import ES, PES, Horizons, TruncatedBackprop
from weightedit.metatrain.image_optimizees import ClassifierOptimizee, ModuleOptimizee, conv_net
from weightedit.metatrain.memory import memory_of
from weightedit.metatrain.unroll import Unroll

MLP = ClassifierOptimizee(digits())
PROBLEMS = {"mlp": MLP, "cnn": ModuleOptimizee(digits(), make=lambda: conv_net(1, 10, widths=(8, 16, 16)))}


def given_out(estimator):
    """The most bytes that were in use at once, two calls long, in both of which all runs begin."""
    weights = {name: tensor.detach() for name, tensor in estimator.unroll.rule.named_parameters()}

    def run():
        state = estimator.init(generator())
        for _ in range(2):
            _, state, _ = estimator.gradient(weights, state)

    return most_allocated(run)


@pytest.mark.parametrize("kind", [PES, TruncatedBackprop])
@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("truncation", [5, None])
def test_what_is_said_is_what_is_held(kind, problem, truncation):
    one = kind(Unroll(TinyRule(), PROBLEMS[problem]), Horizons(5, 5), truncation, 6, random_phase=False)
    _, call = memory_of(one, 5, generator())
    held = given_out(one)
    assert held / 1.5 < call < held * 1.5
    assert call > 6 * MLP.batch_size * 64 * 4  # no less than the batches, however it is counted


@pytest.mark.parametrize(("kind", "truncation"), [(ES, 4), (PES, 4), (TruncatedBackprop, 4), (PES, None)])
def test_what_stays_between_calls_is_the_state(kind, truncation):
    one = kind(Unroll(TinyRule(), MLP), Horizons(4, 9), truncation, 5)
    _, state, _ = one.gradient(dict(one.unroll.rule.named_parameters()), one.init(generator()))
    stays, call = memory_of(one, 4, generator())
    assert stays == pytest.approx(sum(tensor.nbytes for tensor in state.values()), abs=100) and call > stays


def test_only_backpropagation_holds_more_over_more_steps():
    options = (Horizons(4, 100), 4, 3)
    backward, forward = (kind(Unroll(TinyRule(), MLP), *options) for kind in (TruncatedBackprop, PES))
    short, long = (memory_of(backward, steps, generator())[1] for steps in (4, 40))
    assert 36 * 3 * MLP.batch_size * 64 * 4 < long - short and long > 5 * short
    assert memory_of(forward, 4, generator()) == memory_of(forward, 40, generator())
