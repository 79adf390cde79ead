"""What a compiled step is told apart by: the wiring, by all that it says; shapes and dtypes; not which object it is."""

import copy

import pytest
import torch
from torch import nn

from weightedit.network.reading import wiring_of
from weightedit.optim.optimizer import LearnedOptimizer
from weightedit.optim.rule_module import RuleModule, name_of


class ByWiring(RuleModule):
    """Steps against the gradient, twice as far where neurons may be scaled."""

    kind, what = "by-wiring", "rule for tests"

    def __init__(self):
        super().__init__()
        self.size = nn.Parameter(torch.tensor(0.1))

    def quantities(self, wire):
        return {}

    def step(self, wiring, at, loss, passes):
        grads, state, _ = at
        far = {name: 1 + wiring.sets[wiring.by_name[name].target].group.scale for name in grads}
        deltas = {name: -far[name] * self.size.to(grad.dtype) * grad for name, grad in grads.items()}
        return deltas, {name: {"step": kept["step"] + 1} for name, kept in state.items()}

    def compiled_passes(self):
        return None


def network(activation=nn.ReLU):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), activation(), nn.Linear(4, 2))


def train(net, rule, *, compile, steps=3):
    optimizer = LearnedOptimizer(net, rule, compile=compile)
    for _ in range(steps):
        for p in net.parameters():
            p.grad = torch.ones_like(p)
        optimizer.step()
    return dict(net.named_parameters())


@pytest.fixture(name="graphs")
def _graphs(monkeypatch):
    """What is compiled, as it is, without a compiler."""
    whole, found = torch.compile, []

    def backend(graph, inputs):
        found.append(graph)
        return graph

    def compiled(function, options):
        looked_at = {key: value for key, value in options.items() if key == "guard_filter_fn"}
        return whole(function, backend=backend, options=looked_at)

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", compiled)
    return found


def test_a_step_is_compiled_once_for_all_that_are_alike(graphs):
    rule = ByWiring()
    for net, count in (
        (network(), 1),
        (network(nn.Tanh), 2),  # the same names and shapes
        (network(), 2),
        (network(nn.Tanh), 2),
        (network().double(), 3),
    ):
        other = copy.deepcopy(net)
        torch.testing.assert_close(train(net, rule, compile=True), train(other, rule, compile=False), rtol=0, atol=0)
        assert len(graphs) == count
    with torch.no_grad():
        rule.size.mul_(2)
    net, other = network(), network()
    torch.testing.assert_close(train(net, rule, compile=True), train(other, rule, compile=False), rtol=0, atol=0)
    assert len(graphs) == 3


def test_wirings_have_one_name_where_they_are_equal():
    wirings = [wiring_of(network(kind)) for kind in (nn.ReLU, nn.ReLU, nn.Tanh)]
    a, b, c = map(name_of, wirings)
    assert a == b != c and wirings[0] == wirings[1] != wirings[2]


def test_a_training_step_that_is_compiled_calls_the_optimizers_as_it_is():
    """Else a compiler looks through every line of it, for minutes; its hooks are called once a step."""
    torch._dynamo.reset()
    x, ends, graphs, hooked = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)), [], [], []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    for compiled in (False, True):
        net = network()
        optimizer = LearnedOptimizer(net, ByWiring())
        if compiled:
            optimizer.register_step_pre_hook(lambda *_: hooked.append("before"))
            optimizer.register_step_post_hook(lambda *_: hooked.append("after"))

        def step(x, net=net, optimizer=optimizer):
            optimizer.zero_grad()
            loss = net(x).square().mean()
            loss.backward()
            optimizer.step()
            return loss

        step = torch.compile(step, backend=backend) if compiled else step
        losses = torch.stack([step(x).detach() for _ in range(4)])
        ends.append((losses, [p.detach() for p in net.parameters()]))
    assert hooked == ["before", "after"] * 4 and losses[-1] < losses[0]
    assert len(graphs) <= 4  # of the forward and the loss, the first time and with gradients there
    torch.testing.assert_close(*ends, rtol=0, atol=0)
