"""What a wiring claims is true, whatever the forward does."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

from tests.network.programs import FORWARDS, Program
from weightedit.network.operations.table import READERS
from weightedit.network.reading import wiring_of


def acted(wiring, params, seed=0):
    """`params` under a random element of everything that the wiring claims."""
    source = torch.Generator().manual_seed(seed)
    wires = [wire for wire in wiring.wires if wire.name in params]
    own = {wire.name: wire.arranged(params[wire.name]) for wire in wires}
    own = wiring.permuted(own, wiring.permutations(source))
    factors = []
    for s in wiring.sets:
        q = torch.ones(s.size, dtype=torch.float64)
        if s.group.scale:
            q = q * (4 * torch.rand(s.size, generator=source, dtype=torch.float64) - 2).exp()
        if s.group.flip:
            q = q * (2.0 * torch.randint(2, (s.size,), generator=source) - 1)
        factors.append(q)
    own = wiring.rescaled(own, factors)
    return dict(params) | {wire.name: wire.restored(own[wire.name]) for wire in wires}


def randomized(net):
    """In float64, every parameter random, norms with next to no epsilon (which breaks invariance)."""
    torch.manual_seed(0)
    for module in net.double().modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.eps = 1e-14
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return net


def hold(net, x, wiring, seeds=3):
    """Every claimed permutation and factor leaves the function as it was."""
    params = {k: p.detach() for k, p in net.named_parameters()}
    buffers = {k: b.clone() for k, b in net.named_buffers()}

    def of(params):
        found = functional_call(net, (params, {k: b.clone() for k, b in buffers.items()}), (x,))
        return found[0] if isinstance(found, tuple) else found

    before = of(params)
    for seed in range(seeds):
        torch.testing.assert_close(of(acted(wiring, params, seed)), before, rtol=1e-9, atol=1e-9)


X = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", FORWARDS)
def test_every_claim_holds(name):
    net = randomized(Program(FORWARDS[name]))
    wiring = wiring_of(net, X)
    assert not wiring.notes and set(wiring.by_name) == {k for k, _ in net.named_parameters()}
    hold(net, X, wiring)


@pytest.mark.parametrize("seed", range(40))
def test_every_claim_holds_of_programs_drawn_at_random(seed):
    source = torch.Generator().manual_seed(seed)
    names = [list(FORWARDS)[i] for i in torch.randint(len(FORWARDS), (4,), generator=source)]
    net = randomized(Program(*(FORWARDS[name] for name in names)))
    hold(net, X, wiring_of(net, X), seeds=2)


@pytest.mark.parametrize(
    ("name", "wrong", "forward"),
    [
        ("gelu", lambda flow, a, out: a["self"], "gelu"),  # keeps the factor
        ("cumsum", lambda flow, a, out: flow.used(a["self"]), "cumulative"),  # keeps the order
        ("softmax", lambda flow, a, out: a["self"], "softmax"),
        ("roll", lambda flow, a, out: flow.used(a["self"]), "rolled"),
    ],
)
def test_a_wrong_entry_of_the_table_is_found_out(name, wrong, forward, monkeypatch):
    """The judge, judged."""
    monkeypatch.setitem(READERS, name, wrong)
    net = randomized(Program(FORWARDS[forward]))
    with pytest.raises(AssertionError, match="Tensor-likes are not close"):
        hold(net, X, wiring_of(net, X))


def test_an_error_in_the_table_is_not_taken_for_an_operation_that_nobody_knows(monkeypatch):
    def broken(flow, a, out):
        return a["nothing"]

    monkeypatch.setitem(READERS, "relu", broken)
    with pytest.raises(KeyError, match="nothing"):
        wiring_of(Program(FORWARDS["relu"]), X.float())


FOUND = {  # what may be done to what `first` computes, and to what `last` reads
    "relu": ("permutation + scale", "permutation + scale"),
    "sine": ("permutation + flip + shift", "permutation + flip + shift"),
    "elu": ("permutation", "permutation"),
    "relu6": ("permutation", "permutation"),
    "log softmax": ("permutation", "permutation"),
    "gate": ("permutation + scale + flip", "permutation + scale + flip"),
    "pairs of rows": ("permutation + flip", "permutation + flip"),
    "gated": ("permutation", "permutation"),
    "root mean square": ("permutation", "permutation + scale + flip"),
    "layer norm": ("permutation", "permutation + scale + flip"),
    "weight norm": ("permutation", "permutation + scale + flip"),
    "mask": ("scale + flip", "scale + flip"),
    "table": ("permutation + scale + flip", "permutation + scale + flip"),
    "matrix times": ("permutation + scale + flip", "permutation + scale + flip"),
    "prelu": ("permutation + scale", "permutation + scale"),
    "depthwise": ("permutation", "permutation + scale + flip"),
    "in place": ("permutation + scale", "permutation + scale"),
    "rolled": ("none", "none"),
    "written": ("none", "none"),
    "ramp": ("none", "none"),
}


@pytest.mark.parametrize("name", FOUND)
def test_what_is_found(name):
    wiring = wiring_of(Program(FORWARDS[name]), X.float())
    ends = wiring.by_name["first.weight"].target, wiring.by_name["last.weight"].source
    assert tuple(str(wiring.sets[i]) for i in ends) == FOUND[name]
