"""Steps that read nothing on the host: the same bit by bit, refused on the device, captured where there is a GPU."""

import pytest
import torch

from tests.device_waits import device_waits
from tests.optim.test_optimizer import RULES, assert_same, loss_of, network, train
from weightedit.errors import WeightEditError
from weightedit.optim.hand_designed import Adam
from weightedit.optim.optimizer import LearnedOptimizer


@pytest.fixture(params=RULES, name="rule")
def _rule(request):
    return RULES[request.param]()


def captured(net, rule):
    return LearnedOptimizer(net, rule, lr=torch.tensor(0.5), nonfinite="skip", capturable=True)


def test_nothing_waits(rule):
    net = network()
    optimizer = captured(net, rule)
    train(net, optimizer, 1)  # what is made once is made
    loss_of(net).backward()
    with device_waits() as found:
        optimizer.step()
    assert not found
    plain = LearnedOptimizer(net, rule)
    plain.step()
    with device_waits() as found:
        plain.step()
    assert len(found) == 1 and "_local_scalar_dense" in found[0]  # whether the step is finite


def test_steps_are_the_same(rule):
    net, other = network(), network()
    train(net, LearnedOptimizer(net, rule, lr=0.5), 4)
    train(other, captured(other, rule), 4)
    assert_same(net, other, rtol=0, atol=0)


@pytest.mark.parametrize("before", [0, 2])
def test_a_step_that_is_not_finite_leaves_everything_as_it_was(rule, before):
    net, other = network(), network()
    optimizer, expected = captured(net, rule), captured(other, rule)
    train(other, expected, before + 1)
    train(net, optimizer, before)
    loss_of(net).backward()
    next(net.parameters()).grad[0] = float("nan")
    optimizer.step()
    assert optimizer.skipped_steps == 1
    train(net, optimizer, 1)
    assert_same(net, other, rtol=0, atol=0)
    assert optimizer.skipped_steps == 1


def test_what_must_be_read_is_refused():
    with pytest.raises(WeightEditError, match="capturable=True with nonfinite='raise'.*expected 'skip'"):
        LearnedOptimizer(network(), Adam(), capturable=True)
    net = network()
    with pytest.raises(WeightEditError, match="capturable=True.*a group cannot choose"):
        LearnedOptimizer([{"params": net.parameters(), "capturable": True}], Adam(), net=net)


@pytest.mark.gpu
def test_a_captured_step_is_the_step(rule):
    net, other = network().cuda(), network().cuda()
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        p.grad = torch.ones_like(p)
        q.grad = torch.ones_like(q)
    optimizer, plain = captured(net, rule), captured(other, rule)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        optimizer.step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    for _ in range(3):
        graph.replay()
    for _ in range(4):
        plain.step()
    assert_same(net, other, rtol=1e-5, atol=1e-6)
