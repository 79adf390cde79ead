"""INRs as people write their classes, from descriptions of them: read to a spec, computed and rendered equal."""

import math
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn import functional

from weightedit.data.inr_modules import from_module
from weightedit.errors import ParamsError
from weightedit.inr.convention import DWSNETS, NFN, SIREN_PYTORCH, Convention
from weightedit.inr.siren import coordinate_grid
from weightedit.network.spec import NetworkSpec

SIDE = 6


class Sine(nn.Module):
    def __init__(self, w0=1.0):
        super().__init__()
        self.w0 = w0

    def forward(self, x):
        return torch.sin(self.w0 * x)


class BareLayer(nn.Module):
    """As siren-pytorch's: parameters of its own, F.linear, an activation, dropout; w0 of the first layer another."""

    def __init__(self, inputs, outputs, w0=1.0, activation=None):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs).uniform_(-0.5, 0.5))
        self.bias = nn.Parameter(torch.empty(outputs).uniform_(-0.5, 0.5))
        self.activation = Sine(w0) if activation is None else activation
        self.dropout = nn.Dropout(0.0)

    def forward(self, x):
        return self.dropout(self.activation(functional.linear(x, self.weight, self.bias)))


class BareNet(nn.Module):
    """Its SirenNet: hidden layers, modulations that nobody passes, a last layer with an activation of its own."""

    def __init__(self, last):
        super().__init__()
        self.layers = nn.ModuleList([BareLayer(2, 8, 30.0), BareLayer(8, 8)])
        self.last_layer = BareLayer(8, 3, activation=last)

    def forward(self, x, mods=None):
        mods = mods if isinstance(mods, tuple) else (mods,) * len(self.layers)
        for layer, mod in zip(self.layers, mods, strict=True):
            x = layer(x)
            if mod is not None:
                x = x * mod
        return self.last_layer(x)


class LinearLayer(nn.Module):
    """As DWSNets': a linear layer inside, and its sine."""

    def __init__(self, inputs, outputs, w0, sine=True):
        super().__init__()
        self.linear, self.activation = nn.Linear(inputs, outputs), Sine(w0) if sine else nn.Identity()

    def forward(self, x):
        return self.activation(self.linear(x))


class OffsetNet(nn.Module):
    """Its INR: a Sequential, whose last layer has no sine, and a half added at the end."""

    def __init__(self):
        super().__init__()
        self.seq = nn.Sequential(LinearLayer(2, 8, 30), LinearLayer(8, 8, 30), nn.Linear(8, 3))

    def forward(self, x):
        return self.seq(x) + 0.5


class BatchLinear(nn.Linear):
    """As SIREN's, after torchmeta: parameters may be passed, with leading axes, and are else found by name."""

    def forward(self, x, params=None):
        params = OrderedDict(self.named_parameters()) if params is None else params
        weight, bias = params["weight"], params.get("bias", None)
        output = x.matmul(weight.permute(*range(weight.dim() - 2), -1, -2))
        output += bias.unsqueeze(-2)
        return output


class Block(nn.Module):
    """Its FCBlock: names net.N.0.weight."""

    def __init__(self):
        super().__init__()
        parts = [nn.Sequential(BatchLinear(2, 8), Sine(30)), nn.Sequential(BatchLinear(8, 8), Sine(30))]
        self.net = nn.Sequential(*parts, nn.Sequential(BatchLinear(8, 3)))

    def forward(self, coords, params=None, **kwargs):
        return self.net(coords)


class Outer(nn.Module):
    """Its model: coordinates in a dictionary, which come back beside the output, for gradients."""

    def __init__(self):
        super().__init__()
        self.net = Block()

    def forward(self, model_input):
        coords = model_input["coords"].clone().detach().requires_grad_(True)
        return {"model_in": coords, "model_out": self.net(coords)}


class FourierNet(nn.Module):
    """A net of Tancik et al. 2020: cosines and sines of random frequencies in a buffer, an MLP, a sigmoid."""

    def __init__(self):
        super().__init__()
        self.register_buffer("B", 4 * torch.randn(2, 6))
        self.mlp = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3), nn.Sigmoid())

    def forward(self, x):
        phase = 2 * math.pi * x @ self.B
        return self.mlp(torch.cat([phase.cos(), phase.sin()], dim=-1))


CLASSES = {
    "siren-pytorch": (lambda: BareNet(nn.Identity()), SIREN_PYTORCH, None),
    "siren-pytorch, sigmoid": (
        lambda: BareNet(nn.Sigmoid()),
        Convention(omega=(30, 1), last="sigmoid", offset=0),
        None,
    ),
    "dwsnets": (OffsetNet, DWSNETS, None),
    "siren": (Block, NFN, None),
    "siren, whole": (Outer, NFN, lambda x: (({"coords": x},), {})),
}


def made(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().double().eval()


def called(net, x, wrap):
    out = net(*wrap(x)[0]) if wrap else net(x)
    return out["model_out"] if isinstance(out, dict) else out


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_is_read_to_a_spec_and_rendered_as_it_renders_itself(name):
    make, convention, wrap = CLASSES[name]
    net, x = made(make), coordinate_grid(SIDE, SIDE, convention.coordinates, dtype=torch.float64)
    spec = NetworkSpec.from_module(net, wrap(x) if wrap else None)
    expected = called(net, x, wrap)
    torch.testing.assert_close(spec.forward(spec.params_of(net), x), expected, rtol=1e-12, atol=1e-12)
    assert spec.widths == (2, 8, 8, 3)
    assert [layer.activation.name for layer in spec.layers] == ["sine", "sine", "identity"]
    if wrap is None:
        offset = convention.offset if name != "dwsnets" else 0.0
        rendered = from_module(net, convention, SIDE, SIDE).render()
        picture = (expected + (offset - convention.low)) / (convention.high - convention.low)
        torch.testing.assert_close(rendered[0], picture.mT.reshape(3, SIDE, SIDE), rtol=1e-12, atol=1e-12)


def test_every_layer_has_an_omega_of_its_own():
    spec = NetworkSpec.from_module(made(CLASSES["siren-pytorch"][0]))
    assert [layer.activation.parameter for layer in spec.layers] == [30.0, 1.0, 0.0]
    assert [layer.weight for layer in spec.layers] == ["layers.0.weight", "layers.1.weight", "last_layer.weight"]


def test_fourier_features_are_read_and_no_convention_has_them():
    net, x = made(FourierNet), coordinate_grid(SIDE, SIDE, dtype=torch.float64)
    spec = NetworkSpec.from_module(net)
    assert [encoding.function for encoding in spec.encodings] == ["cos", "sin"]
    torch.testing.assert_close(spec.forward(spec.params_of(net), x), net(x), rtol=1e-12, atol=1e-12)
    relu = Convention(activation="relu", last="sigmoid", offset=0.0)
    with pytest.raises(ParamsError, match="cos features and sin features before the first; expected relu"):
        from_module(net, relu, SIDE, SIDE)
