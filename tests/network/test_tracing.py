"""Reading specs from modules: everything that is read gives the module's own function, everything else is refused."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from weightedit.errors import SpecError
from weightedit.inr.siren import Siren
from weightedit.network.spec import Activation, NetworkSpec


class Written(nn.Module):
    """A forward written out: `body(self, x)` with layers a (2 -> 4), b (4 -> 3), c (3 -> 1)."""

    def __init__(self, body):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(2, 4), nn.Linear(4, 3), nn.Linear(3, 1)
        self.body = body
        self.omega = 12.5
        self.register_buffer("frequency", torch.tensor([7.5]))

    def forward(self, x):
        return self.body(self, x)


class Sine(nn.Module):
    def __init__(self, omega, buffer):
        super().__init__()
        if buffer:
            self.register_buffer("omega", torch.tensor(omega))
        else:
            self.omega = omega

    def forward(self, x):
        return torch.sin(self.omega * x)


def _activations(net):
    spec = NetworkSpec.from_module(net)
    return [layer.activation for layer in spec.layers[:-1]]


def _agrees(net, inputs=2):
    """The spec computes the module's function."""
    net = net.double().eval()
    spec = NetworkSpec.from_module(net)
    x = torch.randn(9, inputs, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(spec.forward(spec.params_of(net), x), net(x), rtol=1e-10, atol=1e-12)
    return spec


@pytest.mark.parametrize(
    ("module", "activation"),
    [
        (nn.ReLU(), Activation("relu")),
        (nn.ReLU(inplace=True), Activation("relu")),
        (nn.LeakyReLU(0.2), Activation("leaky_relu", 0.2)),
        (nn.Tanh(), Activation("tanh")),
        (nn.GELU(), Activation("gelu")),
        (nn.SiLU(), Activation("silu")),
        (nn.Sigmoid(), Activation("sigmoid")),
        (nn.Identity(), Activation("identity")),
        (Sine(30.0, buffer=False), Activation("sine", 30.0)),
        (Sine(30.0, buffer=True), Activation("sine", 30.0)),
    ],
)
def test_modules(module, activation):
    net = nn.Sequential(nn.Linear(2, 4), module, nn.Linear(4, 1))
    assert [layer.activation for layer in _agrees(net).layers[:-1]] == [activation]


@pytest.mark.parametrize(
    ("function", "activation"),
    [
        (torch.relu, Activation("relu")),
        (functional.relu, Activation("relu")),
        (lambda z: functional.relu(z, inplace=True), Activation("relu")),
        (lambda z: z.relu(), Activation("relu")),
        (functional.leaky_relu, Activation("leaky_relu", 0.01)),
        (lambda z: functional.leaky_relu(z, 0.3), Activation("leaky_relu", 0.3)),
        (lambda z: functional.leaky_relu(z, negative_slope=0.4), Activation("leaky_relu", 0.4)),
        (torch.tanh, Activation("tanh")),
        (functional.tanh, Activation("tanh")),
        (lambda z: z.tanh(), Activation("tanh")),
        (functional.gelu, Activation("gelu")),
        (functional.silu, Activation("silu")),
        (torch.sigmoid, Activation("sigmoid")),
        (lambda z: z.sigmoid(), Activation("sigmoid")),
        (torch.sin, Activation("sine", 1.0)),
        (lambda z: (z * 30).sin(), Activation("sine", 30.0)),
        (lambda z: torch.sin(torch.mul(z, 5.0)), Activation("sine", 5.0)),
        (lambda z: torch.sin(z.mul(5.0) * 2), Activation("sine", 10.0)),
        (lambda z: functional.dropout(z.relu(), 0.5, training=False), Activation("relu")),
    ],
)
def test_functions_and_methods(function, activation):
    net = Written(lambda self, x: self.c(function(self.b(function(self.a(x))))))
    assert [layer.activation for layer in _agrees(net).layers] == [activation, activation, Activation("identity")]


def test_omega_as_attribute_and_as_buffer():
    def body(self, x):
        x = torch.sin(self.omega * self.a(x))
        return self.c(torch.sin(self.b(x) * self.frequency))

    assert _activations(Written(body)) == [Activation("sine", 12.5), Activation("sine", 7.5)]
    _agrees(Written(body))


def test_mixed_activations_and_names():
    net = nn.ModuleDict({"body": nn.Sequential(nn.Linear(2, 4, bias=False), nn.ReLU(), nn.Linear(4, 3), nn.Tanh())})
    net["head"] = nn.Linear(3, 2)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = net

        def forward(self, x):
            return self.parts["head"](functional.dropout(self.parts["body"](x), training=self.training))

    spec = _agrees(Net())
    assert [layer.weight for layer in spec.layers] == [
        "parts.body.0.weight",
        "parts.body.2.weight",
        "parts.head.weight",
    ]
    assert spec.layers[0].bias is None and spec.widths == (2, 4, 3, 2)


def test_our_siren():
    assert _agrees(Siren((2, 5, 4, 1), omega=20.0)) == NetworkSpec.siren((2, 5, 4, 1), 20.0)


@pytest.mark.parametrize(
    "flatten",
    [
        lambda x: x.flatten(1),
        lambda x: torch.flatten(x, 1),
        lambda x: x.view(-1, 6),
        lambda x: x.reshape(-1, 6),
        lambda x: x.view(x.size(0), -1),
        lambda x: x.reshape(x.shape[0], -1),
    ],
)
def test_flattening_the_input(flatten):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(6, 4), nn.Linear(4, 1)

        def forward(self, x):
            return self.second(self.first(flatten(x)).relu())

    assert NetworkSpec.from_module(Net()).widths == (6, 4, 1)


def test_flatten_and_softmax_modules():
    net = nn.Sequential(nn.Flatten(), nn.Linear(6, 4), nn.Sigmoid(), nn.Linear(4, 3), nn.Softmax(-1))
    assert NetworkSpec.from_module(net).widths == (6, 4, 3)
    net[-1] = nn.LogSoftmax(-1)
    assert NetworkSpec.from_module(net).widths == (6, 4, 3)


@pytest.mark.parametrize(
    "end",
    [
        lambda z: functional.softmax(z, dim=-1),
        lambda z: z.log_softmax(-1),
        torch.sigmoid,
        lambda z: torch.relu(z),
        lambda z: z + 0.5,
        lambda z: 0.5 - z,
        lambda z: torch.add(z, 0.5),
    ],
)
def test_what_follows_the_last_layer_is_left_out(end):
    net = Written(lambda self, x: end(self.c(self.b(self.a(x)).relu())))
    assert [layer.activation.name for layer in NetworkSpec.from_module(net).layers] == ["identity", "relu", "identity"]


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x):
        return x + self.inner(x)


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def forward(self, x, condition):
        return self.layer(x) * condition


def _tied():
    layer = nn.Linear(3, 3)
    return nn.Sequential(layer, nn.ReLU(), layer)


def _shared_bias():
    net = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    net[2].bias = net[0].bias
    return net


def _with_parameter():
    net = Written(lambda self, x: torch.sin(self.scale * self.a(x)))
    net.scale = nn.Parameter(torch.ones(1))
    return net


def _unused():
    return Written(lambda self, x: self.b(self.a(x).relu()))


def _chain(*modules):
    return nn.Sequential(nn.Linear(4, 4), *modules, nn.Linear(4, 1))


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 1)), r"holds 1 \(Flatten\), which cannot be"),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.Linear(8, 1)), r"holds 1 \(Linear\)"),
        (nn.Sequential(nn.Conv2d(2, 2, 3, groups=2)), r"holds 0 \(Conv2d\)"),
        (nn.Sequential(nn.Conv2d(2, 2, 3, stride=(1, 2))), r"holds 0 \(Conv2d\)"),
        (nn.Sequential(nn.Conv2d(2, 2, 3, padding="same")), r"holds 0 \(Conv2d\)"),
        (nn.Sequential(nn.Conv2d(2, 2, 3, padding=(0, 1))), r"holds 0 \(Conv2d\)"),
        (nn.Sequential(nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect")), r"holds 0 \(Conv2d\)"),
        (nn.Sequential(nn.Flatten(), nn.Conv2d(2, 2, 3)), r"holds 1 \(Conv2d\)"),
        (nn.Sequential(nn.Linear(2, 2), nn.Conv2d(2, 2, 3)), r"holds 1 \(Conv2d\)"),
        (nn.Sequential(nn.Conv2d(2, 2, 3), nn.AdaptiveAvgPool2d(2)), r"holds 1 \(AdaptiveAvgPool2d\)"),
        (nn.Sequential(nn.Conv2d(2, 2, 3), nn.AdaptiveAvgPool2d(1)), "a pooling that no Linear layer follows"),
        (nn.Sequential(nn.Conv2d(2, 2, 3), nn.AdaptiveAvgPool2d(1), nn.ReLU()), r"holds 2 \(ReLU\)"),
        (nn.Sequential(nn.Conv2d(2, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Conv2d(2, 2, 1)), r"holds 2 \(Conv2d\)"),
        (nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 1)), r"holds 0 \(AdaptiveAvgPool2d\)"),
        (nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)), r"1 \(BatchNorm1d\)"),
        (_chain(nn.LayerNorm(4)), r"1 \(LayerNorm\)"),
        (_chain(nn.GELU(approximate="tanh")), r"1 \(GELU\)"),
        (_chain(nn.ELU()), r"1 \(ELU\)"),
        (_chain(nn.ReLU(), nn.Tanh()), r"2 \(Tanh\)"),
        (_chain(nn.Flatten()), r"1 \(Flatten\)"),
        (_chain(nn.Softmax(-1)), r"2 \(Linear\)"),
        (_chain(Residual()), r"'.*' \(<built-in function add>\), where values branch|1.inner \(Linear\), where values"),
        (Written(lambda self, x: self.c(self.b(self.a(x)) * self.frequency.neg())), "built-in function mul"),
        (Written(lambda self, x: self.c(torch.sin(-30.0 * self.b(self.a(x))))), "built-in function mul"),
        (Written(lambda self, x: self.c(self.b(x.size(0) * self.a(x)))), "built-in function mul"),
        (Written(lambda self, x: self.c(self.b(2.0 * self.a(x)))), r"b \(Linear\)"),
        (Written(lambda self, x: self.c(self.b(self.a(x)) + 1)), r"c \(Linear\)"),
        (Written(lambda self, x: self.c(self.b(self.a(2 * x)))), "built-in function mul"),
        (Written(lambda self, x: self.c(self.b(torch.relu(2 * self.a(x))))), "relu"),
        (Written(lambda self, x: (self.a(x), self.c(self.b(self.a(x))))), "where values branch|branch"),
        (Written(lambda self, x: self.c(functional.gelu(self.b(self.a(x)), approximate="tanh"))), "gelu"),
        (Written(lambda self, x: self.c(self.b(self.a(x) + self.a(x)))), "where values branch"),
        (TwoInputs(), "a second input 'condition'"),
        (_tied(), "tied parameters among 0.weight, 0.bias, 0.weight"),
        (_shared_bias(), "tied parameters among 0.weight, 0.bias, 2.weight"),
        (_with_parameter(), "'scale', a tensor used outside any Linear layer"),
        (_unused(), "parameters that no layer of the chain uses: c.bias, c.weight"),
        (nn.Sequential(nn.Flatten()), "no Linear layer"),
        (Written(lambda self, x: self.a(x) if x.sum() > 0 else self.b(x)), "cannot be traced .*control flow"),
        (Written(lambda self, x: {"out": self.c(self.b(self.a(x)))}), "an output that is not the last value"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(2, 1)), "cannot be|holds"),
    ],
)
def test_refusals_name_what_cannot_be_treated(net, message):
    with pytest.raises(SpecError, match=message):
        NetworkSpec.from_module(net)


def test_a_refusal_says_what_to_do():
    with pytest.raises(SpecError, match="Linear layers chained with ReLU.*Replace that part, or read a submodule"):
        NetworkSpec.from_module(_chain(nn.ELU()))
