"""What people write: layers, wrappers and forwards of every kind are read, and what is claimed of them is true."""

import copy
import dataclasses
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

from tests.modules import ResidualMLP
from tests.network.test_read_wirings import hold, randomized
from weightedit.errors import SpecError
from weightedit.network.reading import FirstInputs, read, wiring_of

SOURCE = torch.Generator().manual_seed(1)


def data(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=SOURCE)


class Made(nn.Module):
    """Modules under their names, and a forward."""

    def __init__(self, forward, **modules):
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self.own_forward = forward

    def forward(self, x, scale=None, *, checked=True):
        if checked:
            assert x.dim() > 1, "a batch"
        x = self.own_forward(self, x)
        return x if scale is None else x * scale


class OwnLinear(nn.Linear):
    def forward(self, x):
        return functional.linear(x, self.weight, bias=self.bias)


class Sine(nn.Module):
    def __init__(self, omega):
        super().__init__()
        self.omega = omega

    def forward(self, x):
        return torch.sin(self.omega * x)


def two(activation, last=lambda y: y, first=nn.Linear, wrap=lambda layer: layer):
    return lambda: Made(lambda n, x: last(n.b(activation(n.a(x)))), a=wrap(first(4, 6)), b=nn.Linear(6, 3))


def heads(*given):
    """Attention of two heads, [N, T, 6] three times -> [N, T, 6]."""
    q, k, v = (one.unflatten(-1, (2, 3)).transpose(1, 2) for one in given)
    return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def attended(n, x):
    return n.b(heads(n.q(x), n.k(x), n.v(x)))


def hidden(last):
    return lambda: Made(last, a=nn.LSTM(4, 6, batch_first=True), b=nn.GRU(6, 5, batch_first=True), c=nn.Linear(5, 2))


def fourier(n, x):
    return n.b(torch.relu(n.a(torch.cat([torch.sin(6.28 * x @ n.basis), torch.cos(6.28 * x @ n.basis)], -1))))


def with_basis():
    net = Made(fourier, a=nn.Linear(8, 6), b=nn.Linear(6, 3))
    net.register_buffer("basis", torch.ones(4, 4))
    return net


PSF, PF, PS, P = (f"permutation{x}" for x in (" + scale + flip", " + flip", " + scale", ""))
SF = "scale + flip"
X, SERIES, IMAGE = data(3, 4), data(3, 5, 4), data(2, 1, 12, 12)
READ = {  # module, input, {parameter: what may be done to the neurons that it goes to}
    "subclass": (two(torch.relu, first=OwnLinear), X, {"a.weight": PS, "b.weight": "none"}),
    "log_softmax": (two(torch.relu, lambda y: y.log_softmax(-1)), X, {"a.weight": PS, "b.bias": "none"}),
    "sigmoid": (two(torch.tanh, torch.sigmoid), X, {"a.weight": PF, "b.weight": "none"}),
    "one less": (two(torch.relu, lambda y: 1 - y), X, {"a.weight": PS}),
    "doubled": (two(torch.relu, lambda y: 2 * y), X, {"a.weight": PS}),
    "ELU": (two(nn.functional.elu), X, {"a.weight": P}),
    "ReLU6": (two(nn.ReLU6()), X, {"a.weight": P}),
    "weight_norm": (
        two(torch.relu, wrap=parametrizations.weight_norm), X,
        {"a.parametrizations.weight.original0": PS, "a.parametrizations.weight.original1": P, "a.bias": PS},
    ),
    "weight_norm of a hook": (two(torch.relu, wrap=weight_norm), X, {"a.weight_g": PS, "a.weight_v": P}),
    "spectral_norm": (two(torch.relu, wrap=parametrizations.spectral_norm), X, {"b.weight": "none"}),
    "spectral_norm of a hook": (two(torch.relu, wrap=spectral_norm), X, {"b.weight": "none"}),
    "view": (
        lambda: Made(
            lambda n, x: n.b(torch.relu(n.a(functional.max_pool2d(torch.relu(n.conv(x)), 2).view(-1, 100)))),
            conv=nn.Conv2d(1, 4, 3), a=nn.Linear(100, 6), b=nn.Linear(6, 3),
        ),
        IMAGE, {"conv.weight": PS, "a.weight": PS},
    ),
    "Dropout2d": (
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Dropout2d(0.0), nn.Flatten(), nn.Linear(400, 3)),
        IMAGE, {"0.weight": PS},
    ),
    "AdaptiveAvgPool1d": (
        lambda: nn.Sequential(nn.Conv1d(5, 4, 2), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 3)),
        SERIES, {"0.weight": PS},
    ),
    "two omegas": (
        lambda: nn.Sequential(nn.Linear(4, 6), Sine(30.0), nn.Linear(6, 5), Sine(7.0), nn.Linear(5, 3)),
        X, {"0.weight": f"{PF} + shift", "2.weight": f"{PF} + shift", "4.weight": "none"},
    ),
    "Fourier features": (with_basis, X, {"a.weight": PS, "b.weight": "none"}),
    "LSTM and GRU": (
        hidden(lambda n, x: n.c(n.b(n.a(x)[0])[0])), SERIES,
        {"a.weight_hh_l0": P, "a.weight_ih_l0": P, "b.weight_ih_l0": P, "b.bias_hh_l0": P, "c.weight": "none"},
    ),
    "last state": (hidden(lambda n, x: n.c(n.b(n.a(x)[0])[1][-1])), SERIES, {"a.weight_hh_l0": P, "b.weight_hh_l0": P}),
    "two layers, both ways": (
        lambda: Made(lambda n, x: n.b(n.a(x)[0]), a=nn.LSTM(4, 6, 2, bidirectional=True), b=nn.Linear(12, 2)),
        SERIES, {"a.weight_hh_l1": "none"},
    ),
    "MultiheadAttention": (
        lambda: Made(lambda n, x: n.b(n.a(x, x, x)[0]), a=nn.MultiheadAttention(4, 2), b=nn.Linear(4, 2)),
        SERIES, {"a.in_proj_weight": P, "a.out_proj.weight": PSF},
    ),
    "query and key change signs together": (
        lambda: Made(attended, q=nn.Linear(4, 6), k=nn.Linear(4, 6), v=nn.Linear(4, 6), b=nn.Linear(6, 2)),
        SERIES, {"q.weight": PF, "k.weight": PF, "v.weight": PSF},
    ),
    "one layer for query, key and value": (
        lambda: Made(
            lambda n, x: n.b(heads(*n.a(x).chunk(3, -1))), a=nn.Linear(4, 18), b=nn.Linear(6, 2),
        ),
        SERIES, {"a.weight": P, "b.weight": "none"},
    ),
    "packed projections of two inputs": (
        lambda: Made(
            lambda n, x: n.b(n.a(x, y := n.c(x), y, need_weights=False)[0]),
            a=nn.MultiheadAttention(4, 2, batch_first=True), b=nn.Linear(4, 2), c=nn.Linear(4, 4),
        ),
        SERIES, {"a.in_proj_weight": P, "a.out_proj.weight": PSF, "c.weight": "none"},
    ),
    "projections of other widths": (
        lambda: Made(
            lambda n, x: n.b(n.a(x, y := n.c(x), y)[0]),
            a=nn.MultiheadAttention(4, 2, kdim=3, vdim=3), b=nn.Linear(4, 2), c=nn.Linear(4, 3),
        ),
        SERIES, {"a.out_proj.weight": PSF, "c.weight": PSF},
    ),
    "features beside each other": (
        lambda: Made(
            lambda n, x: n.c(torch.cat([torch.relu(n.a(x)), n.b(x)], 1)),
            a=nn.Linear(4, 6), b=nn.Linear(4, 9), c=nn.Linear(15, 2),
        ),
        X, {"a.weight": P, "b.weight": P},  # one permutation of every three
    ),
    "features of widths without a common divisor": (
        lambda: Made(
            lambda n, x: n.c(torch.cat([torch.relu(n.a(x)), n.b(x)], 1)),
            a=nn.Linear(4, 6), b=nn.Linear(4, 5), c=nn.Linear(11, 2),
        ),
        X, {"a.weight": "none", "b.weight": "none"},
    ),
    "TransformerEncoderLayer": (
        lambda: nn.TransformerEncoderLayer(4, 2, 7, dropout=0.0, batch_first=True), SERIES,
        {"self_attn.in_proj_weight": P, "linear1.weight": PS, "linear2.weight": "none"},
    ),
    "TransformerEncoder": (
        lambda: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(4, 2, 7, dropout=0.0, norm_first=True, activation="gelu"), 2,
            enable_nested_tensor=False,
        ),
        SERIES, {"layers.1.self_attn.in_proj_weight": P, "layers.1.linear1.weight": P, "layers.1.norm2.bias": SF},
    ),
    "LSTM over a layer's outputs": (
        lambda: Made(
            lambda n, x: n.c(n.b(n.a(x).view(-1, 4, 3))[0].mean(1)),
            a=nn.Linear(4, 12), b=nn.LSTM(3, 5, batch_first=True), c=nn.Linear(5, 2),
        ),
        X, {"b.weight_hh_l0": P, "c.weight": "none"},  # places within a step may be permuted, steps may not
    ),
    "causal attention of latents": (
        lambda: Made(
            lambda n, x: n.b(
                functional.scaled_dot_product_attention(*[n.a(n.latents.weight)[None]] * 3, is_causal=True)
                * torch.arange(1.0, 3.0)[:, None, None]
            ).mean(1) * n.c(x).mean(),
            latents=nn.Embedding(5, 4), a=nn.Linear(4, 6), b=nn.Linear(6, 2), c=nn.Linear(4, 1),
        ),
        X, {"a.weight": P, "b.weight": "none"},
    ),
    "a grid and its transpose": (
        lambda: Made(
            lambda n, x: n.b(torch.relu(n.a(x))) + n.b(torch.relu(n.a(x)).view(-1, 3, 3).mT.reshape(-1, 9)),
            a=nn.Linear(4, 9), b=nn.Linear(9, 2),
        ),
        X, {"a.weight": P},  # one permutation of rows and columns
    ),
    "whole numbers": (two(lambda y: (4 * y).long().to(y.dtype)), X, {"a.weight": P}),
    "U-shape": (
        lambda: Made(
            lambda n, x: n.c(torch.cat([n.up(torch.relu(n.down(y := torch.relu(n.a(x))))), y], 1)),
            a=nn.Conv2d(1, 4, 3, padding=1), down=nn.Conv2d(4, 5, 2, 2), up=nn.ConvTranspose2d(5, 4, 2, 2),
            c=nn.Conv2d(8, 2, 1),
        ),
        IMAGE, {"a.weight": P, "up.weight": P, "down.weight": PS},  # what is put beside each other has one order
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_it_is_read_and_what_is_claimed_is_true(name):
    """With inputs, and by a guess, which may find less."""
    make, x, expected = READ[name]
    net = randomized(make())
    wiring = wiring_of(net, x)
    assert not wiring.notes and not wiring.outside
    assert {key: str(wiring.sets[wiring.by_name[key].target]) for key in expected} == expected
    for one in (wiring, wiring_of(net)):
        hold(net, x, one, seeds=2)


@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        lambda net: torch.compile(net, backend="eager"),
        lambda net: Made(lambda n, x: n.inner(x), inner=torch.compile(net, backend="eager")),
    ],
)
def test_what_is_wrapped_or_compiled_is_read(wrap):
    net = wrap(randomized(ResidualMLP()))
    found, alone = wiring_of(net, data(7, 3)), wiring_of(ResidualMLP(), torch.zeros(7, 3))
    assert [str(s) for s in found.sets] == [str(s) for s in alone.sets] and not found.notes
    assert [
        wire.name.rpartition("inner.")[2].removeprefix("_orig_mod.").removeprefix("module.") for wire in found.wires
    ] == [wire.name for wire in alone.wires]


def test_a_compiled_function_inside_is_told_of():
    net = Made(torch.compile(lambda n, x: n.inner(x), backend="eager"), inner=ResidualMLP())
    (note,) = wiring_of(net, torch.zeros(7, 3)).notes
    assert "stops in Made, which calls a function that torch.compile made (compile the module instead)" in note


def test_shapes_that_data_decide_are_told_of():
    net = Made(lambda n, x: n.a(x.tensor_split(n.places)[1]), a=nn.Linear(4, 3))
    net.register_buffer("places", torch.tensor([1, 2]))
    (note,) = wiring_of(net, torch.zeros(3, 4)).notes
    assert "stops in Made, which decides" in note and "by the values of tensors" in note


def test_an_error_of_the_forward_is_told_of_with_its_place():
    (note,) = wiring_of(Made(lambda n, x: n.a(x), a=nn.Linear(4, 3)), torch.zeros(3, 5)).notes
    assert "stops in a (Linear), which raised RuntimeError: a and b must have same reduction dim" in note


def test_inputs_are_guessed_only_where_all_guesses_agree():
    """A mean over axis 1 is one over the features of vectors, and over the places of a sequence of them."""
    net = Made(lambda n, x: n.a(x).tanh().mean(1, keepdim=True), a=nn.Linear(4, 6))
    found = read(net)
    assert found.waits and str(found.wiring.sets[found.wiring.by_name["a.weight"].target]) == "none"
    assert "pass inputs=, one batch that its forward takes" in found.wiring.notes[0]
    for x in (X, SERIES):
        twin = randomized(Made(net.own_forward, a=nn.Linear(4, 6)))
        hold(twin, x, wiring_of(twin, x))


@pytest.mark.parametrize("inputs", [X, (X,), [X], {"x": X}, {"x": X, "scale": 2.0}, (X.to("meta"), 2.0)])
def test_inputs_come_as_arguments_or_keywords(inputs):
    net = two(torch.relu)().double()
    assert wiring_of(net, inputs) == wiring_of(net, X)


class Pair(nn.Module):
    """Two inputs, of which nobody can know the shapes."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x, y, *, scale=1.0):
        return self.c(torch.relu(self.a(x) + self.b(y)) * scale)


def test_a_forward_is_remembered_once():
    net = Pair()
    first = FirstInputs(net)
    assert read(net).waits and first.inputs is None
    again = pickle.loads(pickle.dumps(net))  # a module that waits is one like any other
    for _ in range(2):
        net(torch.ones(3, 4), torch.ones(3, 3), scale=0.5)
    assert not net._forward_pre_hooks and not net._forward_pre_hooks_with_kwargs
    wiring = wiring_of(net, first.inputs)
    assert not wiring.notes and str(wiring.sets[wiring.by_name["b.weight"].target]) == PS
    copy.deepcopy(again)(torch.ones(3, 4), torch.ones(3, 3))


def test_a_compiled_forward_does_not_trip_over_the_hook():
    torch._dynamo.reset()
    net = Pair()
    FirstInputs(net)
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    out = compiled(torch.ones(3, 4), torch.ones(3, 3))
    assert torch.equal(out, net(torch.ones(3, 4), torch.ones(3, 3)))


@dataclasses.dataclass
class Output:
    hidden: torch.Tensor
    last: float = 0.0


def left(n, x):
    n.own_features = [torch.relu(n.a(x))]
    return n.b(n.own_features[0])


@pytest.mark.parametrize(
    "forward",
    [
        lambda n, x: Output(n.b(torch.relu(n.a(x)))),
        lambda n, x: torch.distributions.Normal(n.b(torch.relu(n.a(x))), 1.0),
        left,
    ],
)
def test_what_a_loss_may_read_is_fixed(forward):
    """Outputs within an object, and what a forward leaves in attributes."""
    wiring = wiring_of(Made(forward, a=nn.Linear(4, 6), b=nn.Linear(6, 3)), torch.zeros(5, 4))
    assert not wiring.notes
    found = {name: str(wiring.sets[wire.target]) for name, wire in wiring.by_name.items()}
    assert found["b.weight"] == "none" and found["a.weight"] == ("none" if forward is left else PS)


def test_a_forward_that_returns_nothing_is_told_of():
    (note,) = wiring_of(Made(lambda n, x: print(end=""), a=nn.Linear(4, 6)), torch.zeros(5, 4)).notes
    assert "stops in Made, which returns no tensors" in note


def test_a_lazy_layer_is_refused():
    with pytest.raises(SpecError, match=r"got 0\.weight without a shape.*call the network on one batch first"):
        wiring_of(nn.Sequential(nn.LazyLinear(3), nn.ReLU()))


@pytest.mark.parametrize("dtype", [torch.long, torch.cfloat])
@pytest.mark.parametrize("inputs", [None, torch.zeros(3, 4)])
def test_parameters_that_are_no_real_numbers_are_outside(dtype, inputs):
    net = Made(lambda n, x: n.b((n.a(x) * n.mask).abs()), a=nn.Linear(4, 6), b=nn.Linear(6, 3))
    net.mask = nn.Parameter(torch.ones(6, dtype=dtype), requires_grad=False)
    wiring = wiring_of(net, inputs)
    assert wiring.outside == ("mask",) and str(wiring.sets[wiring.by_name["a.weight"].target]) == "none"


def test_an_empty_module_has_no_wires():
    assert wiring_of(nn.ReLU()).sets == ()
