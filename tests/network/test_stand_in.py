"""Reading a network changes nothing of it: what its forward does, it does to a stand-in."""

import contextlib
import copy
import random
import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations, spectral_norm

from tests.networks import generator
from weightedit.errors import SpecError
from weightedit.network.graph_spec import GraphSpec
from weightedit.network.reading import wiring_of
from weightedit.network.spec import NetworkSpec
from weightedit.network.stand_in import copied
from weightedit.optim.hand_designed import SGD
from weightedit.optim.optimizer import LearnedOptimizer


class Counter:
    """State that is no tensor, and no module."""

    def __init__(self):
        self.calls = 0


class Busy(nn.Module):
    """What forwards do: replace a buffer, count calls, keep a hidden state, draw random numbers, set themselves up."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 3)
        self.register_buffer("running", torch.zeros(5))
        self.register_buffer("ready", torch.tensor(False))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self.shift = nn.Parameter(torch.zeros(5))
        self.calls, self.counter, self.history, self.hidden = 0, Counter(), [], None
        self.lock = threading.Lock()  # cannot be copied

    def forward(self, x):
        self.calls += 1
        self.counter.calls += 1
        self.seen += 1
        with self.lock:
            x = self.first(x)
        if not self.ready:  # ActNorm: at its first batch
            with torch.no_grad():
                self.shift.copy_(-x.mean(0))
            self.ready.fill_(True)
        x = x + self.shift + 0.01 * torch.randn(5) + 0.01 * random.random() + 0.01 * float(np.random.rand())
        self.running = 0.9 * self.running + 0.1 * x.mean(0).detach()
        self.history.append(x)
        self.hidden = x if self.hidden is None else 0.5 * self.hidden.detach() + x
        return self.second(torch.tanh(self.hidden))


class Normed(nn.Module):
    """Weights that are computed, in all of torch's ways."""

    def __init__(self):
        super().__init__()
        self.a = parametrizations.spectral_norm(nn.Linear(4, 5))
        self.b = parametrizations.weight_norm(nn.Linear(5, 5))
        self.c = spectral_norm(nn.Linear(5, 3))  # of a hook

    def forward(self, x):
        return self.c(torch.tanh(self.b(torch.tanh(functional.linear(x, self.a.weight, self.a.bias)))))


class Untraceable(Normed):
    """Read layer by layer."""

    def forward(self, x):
        if x.sum() > 0:
            x = 2 * x
        return super().forward(x)


class Hidden(nn.Module):
    """A forward that has run: it keeps a tensor that autograd knows."""

    def __init__(self):
        super().__init__()
        self.layer, self.kept = nn.Linear(4, 3), None
        self.forward(torch.ones(2, 4))

    def forward(self, x):
        self.kept = self.layer(x)
        return self.kept


NETS = {"busy": Busy, "normed": Normed, "untraceable": Untraceable, "hidden": Hidden}
X = torch.randn(32, 4, generator=generator(1))


def made(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return NETS[name]()


def random_states():
    return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()


def seeded():
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)


def snapshot(net):
    """Everything that a module holds, by name."""
    found = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    for name, module in net.named_modules():
        for key, value in vars(module).items():
            if isinstance(value, int | float | str | list | Counter | type(None)):
                found[f"{name} {key}"] = copy.deepcopy(vars(value) if isinstance(value, Counter) else value)
            elif not isinstance(value, dict):
                found[f"{name} {key}"] = id(value)
    return found


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize(
    "read", [lambda net: LearnedOptimizer(net, SGD()), wiring_of, GraphSpec.from_module, NetworkSpec.from_module]
)
def test_reading_leaves_everything_as_it_is(name, read):
    """Every tensor and attribute, bit by bit, and all random states."""
    net = made(name)
    seeded()
    before, states, ran = snapshot(net), random_states(), []
    net.register_forward_hook(lambda *_: ran.append(1))
    with contextlib.suppress(SpecError):  # specs are for plain chains
        read(net)
    after = snapshot(net)
    assert before.keys() == after.keys()
    for key, value in before.items():
        same = torch.equal(value, after[key]) if isinstance(value, torch.Tensor) else value == after[key]
        assert same, key
    assert random_states() == states and not ran


@pytest.mark.parametrize("name", ["busy", "normed", "untraceable"])
def test_training_is_that_of_torch(name):
    """Five steps beside torch.optim, which never runs a forward: weights, buffers and attributes (1/8 is exact)."""
    net, other = made(name), made(name)
    optimizers = [
        LearnedOptimizer(net, SGD(0.125), outside=SGD(0.125)),
        torch.optim.SGD(other.parameters(), 0.125),
    ]
    for one, optimizer in zip((net, other), optimizers, strict=True):
        seeded()
        for _ in range(5):
            optimizer.zero_grad()
            one(X).square().mean().backward()
            optimizer.step()
    for (key, p), q in zip(net.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(p, q), key
    if name == "busy":
        assert net.calls == net.counter.calls == len(net.history) == int(net.seen) == 5


class Writing(nn.Module):
    """A forward that keeps its weight's norm at 1, by hand."""

    def __init__(self, write):
        super().__init__()
        self.layer, self.write = nn.Linear(4, 3), write

    def forward(self, x):
        with torch.no_grad():
            self.write(self.layer.weight)
        return self.layer(x)


def rebind(weight):
    weight.data = weight / weight.norm()


@pytest.mark.parametrize("write", [lambda w: w.div_(w.norm()), lambda w: w.data.mul_(2), rebind])
def test_parameters_are_not_written_to(write, caplog):
    net = Writing(write)
    before, place = net.layer.weight.detach().clone(), net.layer.weight.data_ptr()
    wiring = wiring_of(net)
    assert torch.equal(net.layer.weight, before) and net.layer.weight.data_ptr() == place
    assert "layer.weight" in wiring.by_name
    if write is not rebind:  # which no operation is
        with pytest.raises(SpecError, match="Writing holds .*(whose weight is computed|which writes to a value)"):
            GraphSpec.from_module(net)
    assert torch.equal(net.layer.weight, before)


def test_a_copy_shares_parameters_and_nothing_else():
    net = made("busy")
    twin = copied(net)
    assert all(p is q for p, q in zip(net.parameters(), twin.parameters(), strict=True))
    assert all(b is not c for b, c in zip(net.buffers(), twin.buffers(), strict=True))
    assert twin.first is not net.first and twin.history is not net.history and twin.counter is not net.counter
    assert twin.lock is net.lock


def test_what_cannot_be_copied_is_outside():
    class Single(nn.Linear):
        def __deepcopy__(self, memo):
            raise RuntimeError("there is one of me")

    net = nn.Sequential(Single(2, 3))
    wiring = wiring_of(net, torch.zeros(1, 2))
    assert set(wiring.by_name) == {"0.weight", "0.bias"} and "copied (RuntimeError: there is" in wiring.notes[0]
    with pytest.raises(SpecError, match="cannot be copied"):
        NetworkSpec.from_module(net)
