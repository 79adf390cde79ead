"""What a wiring claims is true: every claimed permutation and factor leaves the module's function as it was."""

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from tests.modules import CNN, GPT, ResidualMLP, ResNet, Unreadable, ViT
from weightedit.errors import SpecError
from weightedit.network.module_wiring import wiring_of
from weightedit.network.spec import NetworkSpec
from weightedit.network.wiring import NeuronSet, Wire, Wiring

IMAGE = torch.randn(3, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class Functional(nn.Module):
    """Layers as functions of bare parameters, of a list of them, and of those of a layer of one's own."""

    class Own(nn.Linear):
        def forward(self, x):
            return functional.linear(x, self.weight, bias=self.bias)

    def __init__(self):
        super().__init__()
        self.kernel, self.shift = nn.Parameter(torch.zeros(4, 3, 3, 3)), nn.Parameter(torch.zeros(4))
        self.weights = nn.ParameterList([nn.Parameter(torch.zeros(5, 4)), nn.Parameter(torch.zeros(6, 5))])
        self.last = Functional.Own(6, 2)

    def forward(self, x):
        x = functional.conv2d(x, weight=self.kernel, bias=self.shift, stride=2).relu().mean((2, 3))
        for weight in self.weights:
            x = functional.linear(x, weight).tanh()
        return self.last(x)


class Penalised(nn.Module):
    """Parameters that are read as layers and otherwise: nothing may be claimed of them."""

    def __init__(self):
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(3, 4), nn.Parameter(torch.zeros(5, 4)), nn.Linear(5, 2)

    def forward(self, x):
        x = functional.linear(self.first(x).relu(), self.middle).relu()
        return self.last(x) * self.first.weight.sum() + torch.relu(self.middle).mean()


NETS = {
    "ResNet": (lambda: ResNet(), IMAGE),
    "ResNet with GroupNorm": (lambda: ResNet(norm=lambda n: nn.GroupNorm(1, n)), IMAGE),
    "CNN": (lambda: CNN((3, 4, 5, 6)), IMAGE),
    "pooled CNN": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.LeakyReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 2), nn.ReLU(), nn.Flatten(),
            nn.Linear(5 * 4, 6), nn.Tanh(), nn.Dropout(0.0), nn.Linear(6, 2),
        ),
        IMAGE,
    ),
    "residual MLP": (lambda: ResidualMLP(), torch.randn(7, 3, dtype=torch.float64)),
    "ViT": (lambda: ViT(), IMAGE),
    "GPT": (lambda: GPT(), torch.randint(11, (3, 6))),
    "attention module": (
        lambda: nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True),
        torch.randn(2, 5, 8, dtype=torch.float64),
    ),
    "functional": (lambda: Functional(), IMAGE),
    "penalised": (lambda: Penalised(), torch.randn(7, 3, dtype=torch.float64)),
    "bare convolution": (lambda: nn.Conv2d(3, 4, 3), IMAGE),
    "unreadable": (lambda: Unreadable(), torch.randn(7, 3, dtype=torch.float64)),
}  # fmt: skip
EXPECTED = {  # parameter: symmetry of the neurons that it goes to
    "ResNet": {
        "stem.weight": "permutation + scale", "bn.weight": "permutation + scale", "head.weight": "none",
        "blocks.2.conv1.weight": "permutation + scale", "blocks.2.bn2.bias": "permutation + scale",
    },
    "CNN": {"convs.0.weight": "permutation + scale", "convs.2.bias": "permutation + scale", "head.bias": "none"},
    "residual MLP": {
        "first.weight": "permutation + scale", "norm.weight": "permutation + flip",
        "up.weight": "permutation + scale", "down.bias": "permutation + flip",
    },
    "ViT": {"patch.weight": "none", "blocks.0.up.weight": "permutation", "blocks.1.down.weight": "none"},
    "GPT": {"blocks.0.up.weight": "permutation", "blocks.0.attention.qkv.weight": "none"},
    "functional": {
        "kernel": "permutation + scale", "shift": "permutation + scale", "weights.0": "permutation + flip",
        "weights.1": "permutation + flip", "last.weight": "none", "last.bias": "none",
    },
    "penalised": {"first.weight": "none", "first.bias": "none", "middle": "none", "last.weight": "none"},
    "bare convolution": {"weight": "none", "bias": "none"},
    "unreadable": {"first.weight": "none", "last.bias": "none"},
}  # fmt: skip
OUTSIDE = {"ViT": {"token", "position"}, "GPT": {"tokens.weight", "positions.weight"}}


def prepared(name):
    """The network in float64 with every parameter random, norms with next to no epsilon (it breaks invariance)."""
    net, x = NETS[name]
    torch.manual_seed(0)
    net = net().double()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.eps = 1e-14
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return net, x


def acted(wiring, params, seed=0):
    """`params` under a random element of everything that the wiring claims."""
    source = torch.Generator().manual_seed(seed)
    orders = {s.order: torch.randperm(s.size, generator=source) for s in wiring.sets if s.permutable}
    places = [orders[s.order] if s.permutable else torch.arange(s.size) for s in wiring.sets]
    factors = []
    for s in wiring.sets:
        q = torch.ones(s.size, dtype=torch.float64)
        if s.group.scale:
            q = q * (4 * torch.rand(s.size, generator=source, dtype=torch.float64) - 2).exp()
        if s.group.flip:
            q = q * (2.0 * torch.randint(2, (s.size,), generator=source) - 1)
        factors.append(q)
    new = dict(params)
    for wire in wiring.wires:
        matrix = wire.matrix(params[wire.name])[places[wire.target]]
        new[wire.name] = (matrix if wire.source is None else matrix[:, places[wire.source]]).reshape(wire.shape)
    return new | wiring.rescaled({wire.name: new[wire.name] for wire in wiring.wires}, factors)


@pytest.mark.parametrize("name", NETS)
def test_every_claim_holds(name):
    net, x = prepared(name)
    wiring = wiring_of(net)
    params = {k: p.detach() for k, p in net.named_parameters()}
    buffers = {k: b.clone() for k, b in net.named_buffers()}
    before = functional_call(net, (params, buffers), (x,))
    for seed in range(3):
        after = functional_call(net, (acted(wiring, params, seed), {k: b.clone() for k, b in buffers.items()}), (x,))
        torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", EXPECTED)
def test_what_is_found(name):
    net, _ = prepared(name)
    wiring = wiring_of(net)
    assert {k: str(wiring.sets[wiring.by_name[k].target]) for k in EXPECTED[name]} == EXPECTED[name]
    assert set(wiring.outside) == OUTSIDE.get(name, set())
    names = {k for k, _ in net.named_parameters()}
    assert set(wiring.by_name) | set(wiring.outside) == names
    assert all(k in wiring.report() for k in names)


@pytest.mark.parametrize(
    "layer", [nn.Linear(4, 2), nn.Conv2d(4, 6, 3, groups=2), nn.LayerNorm(4), nn.BatchNorm1d(4), nn.Linear(4, 2, False)]
)
def test_a_layer_alone_is_read(layer):
    wiring = wiring_of(layer)
    assert list(wiring.by_name) == [name for name, _ in layer.named_parameters()]
    assert not wiring.outside and not wiring.notes
    assert {(wire.name, wire.shape) for wire in wiring.wires} == {
        (k, tuple(p.shape)) for k, p in layer.named_parameters()
    }


class Computed(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.first, self.w, self.b = nn.Linear(3, 4), nn.Parameter(torch.zeros(4, 4)), nn.Parameter(torch.zeros(4))
        self.own_forward = forward

    def forward(self, x):
        return self.own_forward(self, self.first(x).relu())


@pytest.mark.parametrize(
    "forward",
    [
        lambda net, x: functional.linear(x, net.w.t()),
        lambda net, x: functional.linear(x, net.w, net.b * 2),
        lambda net, x: functional.conv1d(x, net.w.unsqueeze(-1)),
        lambda net, x: functional.linear(net.w, x),
    ],
)
def test_functions_of_what_is_no_parameter_stay_outside(forward):
    wiring = wiring_of(Computed(forward))
    assert {"w", "b"} <= set(wiring.outside) and {str(s) for s in wiring.sets} == {"none"}


def test_what_cannot_be_traced_is_noted():
    assert "cannot be traced" in wiring_of(Unreadable()).notes[0]


def test_an_unknown_module_is_outside():
    wiring = wiring_of(nn.Sequential(nn.Linear(2, 3), nn.LSTM(3, 3)))
    assert {name for name in wiring.outside} == {f"1.{name}" for name, _ in nn.LSTM(3, 3).named_parameters()}
    assert [str(s) for s in wiring.sets] == ["none", "none"]


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.SiLU])
def test_a_chain_is_wired_as_its_spec(activation):
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(4, 5), activation(), nn.Linear(5, 6, bias=False), activation(), nn.Linear(6, 2)
    )
    found, expected = wiring_of(net), Wiring.of(NetworkSpec.from_module(net))
    assert found.wires == expected.wires
    assert [(s.size, s.group, s.permutable) for s in found.sets] == [
        (s.size, s.group, s.permutable) for s in expected.sets
    ]


class Factors(nn.Module):
    """A number before a value, after it, and under it."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        x = 0.5 * self.first(x).relu()
        x = x + self.second(x).relu() * 0.1
        return self.last(x / 3.0) if self.last is not None else 1.0 / x


def test_numbers_on_either_side_of_a_product_keep_the_neurons():
    wiring = wiring_of(Factors())
    assert {str(wiring.sets[wiring.by_name[f"{k}.weight"].target]) for k in ("first", "second")} == {
        "permutation + scale"
    }
    net = Factors()
    net.last = None
    assert {str(s) for s in wiring_of(net).sets} == {"none"}  # a number divided by a value is no product


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_parameters_without_elements_are_outside():
    wiring = wiring_of(nn.Sequential(nn.Linear(4, 0), nn.ReLU(), nn.Linear(0, 3), nn.Linear(3, 2)))
    assert wiring.outside == ("0.weight", "0.bias", "2.weight")
    assert [(s.size, str(s)) for s in wiring.sets] == [(4, "none"), (3, "permutation + scale + flip"), (2, "none")]
    with pytest.raises(SpecError, match="w of shape .0, 2. came as a wire; expected a parameter with elements"):
        Wiring((NeuronSet("a", 0), NeuronSet("b", 2)), (Wire("w", (0, 2), "weight", 0, 1, 2),))


def test_tied_layers_are_fixed():
    net = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 1))
    net[2].weight = net[0].weight
    wiring = wiring_of(net)
    assert {str(wiring.sets[w.target]) for w in wiring.wires} == {"none"}
