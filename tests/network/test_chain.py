"""Reading chains from modules: everything that is read gives the module's own function, everything else is refused."""

import json
import math

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


ENDINGS = {
    "softmax": lambda z: functional.softmax(z, dim=-1),
    "log softmax": lambda z: z.log_softmax(1),
    "sigmoid": torch.sigmoid,
    "relu": lambda z: torch.relu(z),
    "relu in place": lambda z: z.relu_(),
    "leaky": lambda z: functional.leaky_relu(z, 0.2),
    "sine": lambda z: torch.sin(3 * z),
    "backwards": lambda z: torch.sin(-3 * z),
    "offset": lambda z: z + 0.5,
    "half": lambda z: 0.5 - z,
    "one less": lambda z: torch.sub(1, z, alpha=3),
    "added": lambda z: torch.add(z, 0.5, alpha=2),
    "added to": lambda z: torch.add(torch.tensor(0.25), z, alpha=2),
    "double": lambda z: 2 * z,
    "third": lambda z: z / 3 - 1,
    "negative": lambda z: -z.tanh(),
    "range": lambda z: 2 * z.sigmoid() - torch.ones(1),
    "in place": lambda z: z.mul_(2).add_(1).sigmoid(),
    "dropped": lambda z: functional.dropout(z.sigmoid(), training=False).to(z.dtype).contiguous(),
    "viewed": lambda z: z.sigmoid().view(-1, 3).log_softmax(-1),
    "with a name": lambda z: {"logits": z.sigmoid()},
}


@pytest.mark.parametrize("name", ENDINGS)
def test_what_follows_the_last_layer_is_part_of_the_function(name):
    """For one network, for a stack, and after JSON."""
    net = Written(lambda self, x: ENDINGS[name](self.b(self.a(x).relu()))).double()
    del net.c
    spec, x = NetworkSpec.from_module(net), torch.linspace(-2, 2, 10, dtype=torch.float64).view(5, 2)
    params, expected = spec.params_of(net), net(x)
    expected = expected["logits"] if isinstance(expected, dict) else expected
    assert spec.endings and NetworkSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    torch.testing.assert_close(spec.forward(params, x), expected, rtol=1e-12, atol=1e-12)
    stacked = {key: torch.stack([p, -p]) for key, p in params.items()}
    torch.testing.assert_close(spec.forward(stacked, x)[0], expected, rtol=1e-12, atol=1e-12)


def test_channels_that_end_a_chain_of_convolutions_are_its_outputs():
    net = nn.Sequential(nn.Conv2d(2, 4, 3, padding="same"), nn.ReLU(), nn.Conv2d(4, 3, 1), nn.Softmax(1)).double()
    spec, x = NetworkSpec.from_module(net), torch.randn(2, 2, 5, 6, dtype=torch.float64)
    torch.testing.assert_close(spec.forward(spec.params_of(net), x), net(x), rtol=1e-12, atol=1e-12)


class Fourier(nn.Module):
    """Features of coordinates with fixed random frequencies, then layers."""

    def __init__(self, features, count=10):
        super().__init__()
        self.register_buffer("B", 3 * torch.randn(5, 2, generator=torch.Generator().manual_seed(3)))
        self.register_buffer("phase", torch.linspace(0, 6, 5))
        self.features, self.mlp = features, nn.Sequential(nn.Linear(count, 7), nn.ReLU(), nn.Linear(7, 3), nn.Sigmoid())

    def forward(self, x):
        return self.mlp(self.features(self, x))


FOURIER = {
    "cos, sin": (lambda n, x: torch.cat([torch.cos(y := 2 * math.pi * x @ n.B.T), torch.sin(y)], -1), 10),
    "sin, cos": (lambda n, x: torch.cat([f(functional.linear(x * 6.28, n.B)) for f in (torch.sin, torch.cos)], 1), 10),
    "phases": (lambda n, x: torch.cos(functional.linear(x, n.B, n.phase)), 5),
    "with the input": (lambda n, x: torch.cat([x, (2 * x).sin(), (2 * x).cos(), (4 * x - 1).sin()], -1), 8),
    "of a product": (lambda n, x: (x @ n.B.t() @ n.B).sin() , 2),
}  # fmt: skip


@pytest.mark.parametrize("name", FOURIER)
def test_fourier_features_are_part_of_the_function(name):
    net = Fourier(*FOURIER[name]).double()
    spec, x = NetworkSpec.from_module(net), torch.linspace(-1, 1, 14, dtype=torch.float64).view(7, 2)
    assert spec.encodings and spec.widths == (FOURIER[name][1], 7, 3)
    assert NetworkSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec and hash(spec)
    torch.testing.assert_close(spec.forward(spec.params_of(net), x), net(x), rtol=1e-12, atol=1e-12)


def test_no_more_comes_out_than_the_coordinates_that_went_in():
    net = Written(lambda self, x: ((x := x.clone().detach().requires_grad_(True)), self.c(self.b(self.a(x)))))
    assert NetworkSpec.from_module(net).widths == (2, 4, 3, 1)


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


def _convolved(*modules):
    return nn.Sequential(nn.Conv2d(2, 2, 3), *modules, nn.Flatten(), nn.Linear(2, 1))


def _chain(*modules):
    return nn.Sequential(nn.Linear(4, 4), *modules, nn.Linear(4, 1))


def _view_written_to(self, x):
    h = self.a(x)
    view = h.view(-1, 4)
    h.relu_()
    return self.c(self.b(view))


WRITTEN = {
    r"c \(Linear\), where values branch": lambda self, x: self.c(self.b(self.a(x)) * self.frequency.neg()),
    "'sin' in Written, where values branch": lambda self, x: self.c(torch.sin(-30.0 * self.b(self.a(x)))),
    r"b \(Linear\), where values branch": lambda self, x: self.c(self.b(x.size(0) * self.a(x))),
    "'add' in Written": lambda self, x: self.c(self.b(self.a(x)) + 1),
    "'mul' in Written of the input": lambda self, x: self.c(self.b(self.a(2 * x))),
    "'relu' in Written, where": lambda self, x: self.c(self.b(torch.relu(2 * self.a(x)))),
    "'gelu' in Written": lambda self, x: self.c(functional.gelu(self.b(self.a(x)), approximate="tanh")),
    "'transpose' in Written of the input": lambda self, x: self.c(self.b(self.a(x.transpose(0, 1)))),
    "a.weight, which is used twice": lambda self, x: self.c(self.b(self.a(x) + self.a(x))),
    "an output that is not one value": lambda self, x: (self.a(x), self.c(self.b(self.a(x)))),
    "parameters that no layer uses: c.bias, c.weight": lambda self, x: self.b(self.a(x).relu()),
    "'softmax' in Written": lambda self, x: self.c(self.b(self.a(x))).softmax(0),
    "'exp' in Written": lambda self, x: self.c(self.b(self.a(x))).exp(),
    "'add' in Written, which cannot": lambda self, x: self.c(self.b(self.a(x))) + torch.rand(()),
    "'mul' in Written, which cannot": lambda self, x: self.c(self.b(self.a(x)) * torch.ones(3)),
    r"outputs of shape \(2, 1, 1\)": lambda self, x: self.c(self.b(self.a(x))).unsqueeze(1),
    "'view' in Written, which cannot": lambda self, x: self.c(self.b(self.a(x))).view(-1),
    "'relu' in Written, which writes to a value that is read again": _view_written_to,
    "got a Written .* it stops in Written, which decides by": lambda self, x: self.a(x) if x.sum() > 0 else self.b(x),
}


@pytest.mark.parametrize("message", WRITTEN)
def test_a_refusal_names_the_operation(message):
    with pytest.raises(SpecError, match=message):
        NetworkSpec.from_module(Written(WRITTEN[message]))


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 1)), r"2 \(Linear\), which reads more than each"),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.Linear(8, 1)), r"holds 1 \(Linear\), which reads along another axis"),
        (nn.Sequential(nn.Conv2d(2, 2, 3, groups=2)), r"holds 0 \(Conv2d\)"),
        (nn.Sequential(nn.Conv2d(2, 2, 3, stride=(1, 2))), r"holds 0 \(Conv2d\)"),
        (nn.Sequential(nn.Conv2d(2, 2, 2, padding="same")), r"holds 0 \(Conv2d\)"),
        (nn.Sequential(nn.Conv2d(2, 2, 3, padding=(0, 1))), r"holds 0 \(Conv2d\)"),
        (nn.Sequential(nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect")), r"holds 0 \(Conv2d\)"),
        (nn.Sequential(nn.Flatten(), nn.Conv2d(2, 2, 3)), r"it stops in 1 \(Conv2d\), which raised RuntimeError"),
        (nn.Sequential(nn.Conv1d(1, 2, 3), nn.ReLU(), nn.Conv1d(2, 2, 3)), r"holds 0 \(Conv1d\)"),
        (nn.Sequential(nn.Conv2d(2, 2, 3), nn.AdaptiveAvgPool2d(2)), r"holds 1 \(AdaptiveAvgPool2d\)"),
        (nn.Sequential(nn.Conv2d(2, 2, 3), nn.AdaptiveAvgPool2d(1)), r"holds 1 \(AdaptiveAvgPool2d\)"),
        (nn.Sequential(nn.Conv2d(2, 2, 3), nn.AdaptiveAvgPool2d(1), nn.ReLU()), r"holds 1 \(AdaptiveAvgPool2d\)"),
        (nn.Sequential(nn.Conv2d(2, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Conv2d(2, 2, 1)), r"1 \(AdaptiveAvgPool2d\)"),
        (_convolved(nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1)), r"holds 1 \(MaxPool2d\)"),
        (_convolved(nn.AdaptiveAvgPool2d(1), nn.ReLU()), r"holds 2 \(ReLU\)"),
        (nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)), r"1 \(BatchNorm1d\), where values"),
        (_chain(nn.LayerNorm(4)), r"1 \(LayerNorm\), where values"),
        (_chain(nn.GELU(approximate="tanh")), r"1 \(GELU\)"),
        (_chain(nn.ELU()), r"1 \(ELU\)"),
        (_chain(nn.ReLU(), nn.Tanh()), r"2 \(Tanh\), where values"),
        (_chain(nn.Softmax(-1)), r"1 \(Softmax\)"),
        (_chain(Residual()), r"1.inner \(Linear\), where values branch, join, or are scaled"),
        (TwoInputs(), "got a TwoInputs whose inputs its first layer does not tell; expected .*: pass inputs="),
        (_tied(), "0.weight, which is used twice"),
        (_shared_bias(), "0.bias, which is used twice"),
        (_with_parameter(), "'mul' in Written"),
        (nn.Sequential(nn.Flatten()), "a Sequential whose inputs its first layer does not tell"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(2, 1)), "whose weight is computed"),
        (nn.Sequential(nn.LazyLinear(3)), "got 0.weight without a shape"),
    ],
)
def test_refusals_name_what_cannot_be_treated(net, message):
    with pytest.raises(SpecError, match=message):
        NetworkSpec.from_module(net)


def test_a_refusal_says_what_to_do():
    with pytest.raises(SpecError, match="Sequential holds .* expected one input.*Replace that part, or read a"):
        NetworkSpec.from_module(_chain(nn.ELU()))
    with pytest.raises(SpecError, match="expected Linear layers chained with .* GraphSpec.from_module reads"):
        NetworkSpec.from_module(_chain(nn.LayerNorm(4)))


def test_inputs_may_be_given_and_wrappers_are_looked_through():
    net = Written(lambda self, x: self.c(self.b(self.a(x))))
    spec = NetworkSpec.from_module(nn.DataParallel(net), torch.zeros(3, 2))
    assert spec == NetworkSpec.from_module(net) and spec.params_of(nn.DataParallel(net))["a.weight"] is net.a.weight
