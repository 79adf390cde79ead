"""Inner runs of any modules through higher: against the functional unroll, finite differences, and themselves."""

import copy

import higher
import pytest
import torch
from torch import nn

from tests.metatrain.test_unroll import batches, begun
from tests.networks import generator
from tests.rules import TinyRule
from weightedit.errors import NonFiniteError, WeightEditError
from weightedit.metatrain.higher_unroll import ModuleRun, meta_gradient, unrolled
from weightedit.optim.hand_designed import Adam


@pytest.fixture(scope="module", autouse=True)
def _registered():
    before = dict(higher.optim._opt_mapping)
    yield
    higher.optim._opt_mapping.clear()
    higher.optim._opt_mapping.update(before)


def cross_entropy(net, batch):
    return nn.functional.cross_entropy(net(batch[0]), batch[1])


def normalized():
    """A CNN with BatchNorm, which has buffers, and a scalar outside the neural graph."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(
                nn.Conv2d(1, 3, 3, 2), nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten(), nn.Linear(27, 10)
            )
            self.temperature = nn.Parameter(torch.tensor(1.0))

        def forward(self, images):
            return self.body(images) * self.temperature

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net().double()


def some_runs():
    state, net, *_ = begun(TinyRule().double(), 2)
    return [ModuleRun(made, list(batches(state, 4)), cross_entropy) for made in (net, normalized())]


def test_a_run_is_that_of_the_functional_unroll():
    rule = TinyRule().double()
    state, net, losses, (expected,) = begun(rule, 6)
    run = ModuleRun(net, list(batches(state, 6)), cross_entropy)
    torch.testing.assert_close(unrolled(rule, run), losses, rtol=1e-10, atol=1e-12)
    found, mean = meta_gradient(rule, [run])
    torch.testing.assert_close(found["weights"], expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(mean, losses.mean().detach(), rtol=1e-10, atol=1e-12)


def test_different_architectures_with_buffers_in_one_batch():
    """Their mean; its gradient against central differences; networks, buffers included, stay as they came."""
    rule, runs = TinyRule().double(), some_runs()
    before = [copy.deepcopy(run.net.state_dict()) for run in runs]
    found, mean = meta_gradient(rule, runs)
    alone = [meta_gradient(rule, [run]) for run in runs]
    torch.testing.assert_close(found["weights"], (alone[0][0]["weights"] + alone[1][0]["weights"]) / 2)
    torch.testing.assert_close(mean, (alone[0][1] + alone[1][1]) / 2)
    for run, state in zip(runs, before, strict=True):
        assert all(torch.equal(tensor, run.net.state_dict()[name]) for name, tensor in state.items())
        assert all(parameter.grad is None for parameter in run.net.parameters())
    direction, ends = torch.randn(5, generator=generator(), dtype=torch.float64), []
    for sign in (1, -1):
        moved = copy.deepcopy(rule)
        moved.weights.data += sign * 1e-5 * direction
        ends.append(sum(unrolled(moved, run).mean().detach() for run in runs) / 2)
    slope = (found["weights"] * direction).sum()
    assert slope.abs() > 1e-4
    torch.testing.assert_close(slope, (ends[0] - ends[1]) / 2e-5, rtol=1e-6, atol=1e-9)


def test_a_rule_learns_from_them():
    rule, runs = TinyRule().double(), some_runs()
    optimizer, means = torch.optim.Adam(rule.parameters(), 0.05), []
    for _ in range(4):
        grads, mean = meta_gradient(rule, runs)
        rule.weights.grad = grads["weights"]
        optimizer.step()
        means.append(float(mean))
    assert means == sorted(means, reverse=True)


def test_refusals():
    rule, (run, _) = TinyRule().double(), some_runs()
    with pytest.raises(WeightEditError, match="a rule with weights"):
        unrolled(Adam(), run)
    with pytest.raises(WeightEditError, match="1 batches"):
        unrolled(rule, ModuleRun(run.net, run.batches[:1], cross_entropy))
    with pytest.raises(WeightEditError, match="no runs"):
        meta_gradient(rule, [])
    far = ModuleRun(run.net, run.batches, lambda net, batch: cross_entropy(net, batch) * torch.inf)
    with pytest.raises(NonFiniteError, match="run 1, of a Net: update.* at step 1 came out infinite or NaN"):
        meta_gradient(rule, [run, far])
    last = iter([1.0, torch.inf])
    late = ModuleRun(run.net, run.batches[:2], lambda net, batch: cross_entropy(net, batch) * next(last))
    with pytest.raises(NonFiniteError, match="run 1, of a Net, has a loss"):
        meta_gradient(rule, [run, late])
