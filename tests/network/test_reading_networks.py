"""What a wiring claims is true: every claimed permutation and factor leaves the module's function as it was."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.modules import CNN, GPT, ResidualMLP, ResNet, Unreadable, ViT
from tests.network.test_read_wirings import hold, randomized
from weightedit.errors import SpecError
from weightedit.network.reading import wiring_of
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


class Penalized(nn.Module):
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
    "penalized": (lambda: Penalized(), torch.randn(7, 3, dtype=torch.float64)),
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
    "ViT": {
        "patch.weight": "permutation", "blocks.0.up.weight": "permutation", "token": "permutation",
        "blocks.1.norm1.weight": "permutation + scale + flip", "head.weight": "none",
    },
    "GPT": {"blocks.0.up.weight": "permutation", "blocks.0.attention.qkv.weight": "permutation"},
    "functional": {
        "kernel": "permutation + scale", "shift": "permutation + scale", "weights.0": "permutation + flip",
        "weights.1": "permutation + flip", "last.weight": "none", "last.bias": "none",
    },
    "penalized": {"first.weight": "permutation", "middle": "permutation", "last.weight": "none"},
    "bare convolution": {"weight": "none", "bias": "none"},
    "unreadable": {"first.weight": "none", "last.bias": "none"},
}  # fmt: skip


@pytest.mark.parametrize("name", NETS)
def test_every_claim_holds(name):
    """Read with inputs, and without."""
    make, x = NETS[name]
    net = randomized(make())
    for inputs in (x, None):
        hold(net, x, wiring_of(net, inputs), seeds=2)


@pytest.mark.parametrize("name", EXPECTED)
def test_what_is_found(name):
    make, x = NETS[name]
    net = make().double()
    wiring = wiring_of(net, x)
    assert {k: str(wiring.sets[wiring.by_name[k].target]) for k in EXPECTED[name]} == EXPECTED[name]
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


def test_what_cannot_be_followed_is_noted():
    wiring = wiring_of(Unreadable(), torch.zeros(7, 3))
    assert "stops in Unreadable, which decides by the values of tensors" in wiring.notes[0]
    assert {str(s) for s in wiring.sets} == {"none"}


class DroppedLayers(nn.Module):
    """A residual network that skips layers at random in training, as audio models do."""

    def __init__(self, drop=0.5, extra=False):
        super().__init__()
        self.enter, self.norm, self.leave = nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 6)) for _ in range(2))
        self.extra = nn.Linear(5, 1) if extra else None
        self.drop = drop

    def forward(self, x):
        x = self.norm(self.enter(x))
        for layer in self.layers:
            if self.drop and self.training and torch.rand([]) < self.drop:
                continue
            inner = layer[:2](x)
            x = x + layer[2](inner)
        more = (self.extra(inner),) if self.training and self.extra is not None else ()
        return (self.leave(x), *more)


def test_layers_that_are_dropped_at_random_are_read_as_layers():
    """With the statistics of a batch: by others, scales before a BatchNorm would matter."""
    found, plain = (wiring_of(DroppedLayers(drop), torch.zeros(7, 3)) for drop in (0.5, 0.0))
    assert found == plain and not found.notes
    assert str(found.sets[found.by_name["enter.weight"].target]) == "permutation + scale"


def test_what_only_training_computes_is_not_left_out():
    """The neurons before the other head have it to go to, and may not be permuted without it."""
    wiring = wiring_of(DroppedLayers(extra=True), torch.zeros(7, 3))
    assert "which decides by the values of tensors" in wiring.notes[0]


@pytest.mark.parametrize(("layer", "shape"), [(nn.Conv1d, (10,)), (nn.Conv2d, (11, 11))])
def test_the_size_of_a_picture_is_found(layer, shape):
    """Of which the last layer reads every pixel."""
    size = 4 * (shape[0] - 2) ** len(shape)
    parts = layer(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(size, 2)

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = nn.ModuleList(parts)

        def forward(self, x):
            for part in self.parts:
                x = part(x)
            return x

    for net in (Own(), nn.Sequential(*parts)):
        wiring = wiring_of(net)
        assert [str(s) for s in wiring.sets] == ["none", "permutation + scale", "none"]


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
    assert [(s.size, str(s)) for s in wiring.sets] == [(3, "permutation + scale + flip"), (2, "none")]
    with pytest.raises(SpecError, match="w of shape .0, 2. as a wire; expected a parameter with elements"):
        Wiring((NeuronSet("a", 0), NeuronSet("b", 2)), (Wire("w", (0, 2), "weight", 0, 1, 2),))


def test_tied_layers_are_fixed():
    net = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 1))
    net[2].weight = net[0].weight
    wiring = wiring_of(net)
    assert {str(wiring.sets[w.target]) for w in wiring.wires} == {"none"}
