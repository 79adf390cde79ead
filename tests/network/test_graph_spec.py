"""Modules whose values branch and join, read as graphs: what is drawn computes what the module does, or is refused."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.func import functional_call

from tests.modules import CNN, GPT, ResidualMLP, ResNet, Unreadable, ViT
from tests.networks import CNNS, SPECS
from tests.residual_networks import RESIDUAL, PreActivation, Scan, Small, trained
from weightedit.errors import ParamsError, SpecError
from weightedit.graph.layout import graph_from_params
from weightedit.inr.siren import Siren
from weightedit.network.graph_spec import GraphSpec
from weightedit.network.link import Level, Link
from weightedit.network.spec import NetworkSpec


def computed(spec, params, x):
    """What the graph says, edge by edge: sum the sources times the middle of the kernel, add the bias, activate."""
    graph = graph_from_params([(spec, params)])
    rows, columns = spec.kernel
    weights = graph.edges[:, (rows - 1) // 2 * columns + (columns - 1) // 2]
    values, first = torch.zeros(len(x), sum(spec.widths), dtype=x.dtype), spec.widths[0]
    values[:, :first] = x
    for level in spec.levels[1:]:
        nodes = slice(first, first + level.width)
        total = graph.nodes[nodes, 0].expand(len(x), -1).clone()
        for weight, (source, target) in zip(weights, graph.layout.edge_index.T.tolist(), strict=True):
            if nodes.start <= target < nodes.stop:
                total[:, target - nodes.start] += weight * values[:, source]
        values[:, nodes] = level.activation(total)
        first = nodes.stop
    return values[:, nodes]


class Branches(nn.Module):
    """Sums of all kinds: of two open values, of an activated one with an open one, and of two activated ones."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(3, 3) for _ in range(4))
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        y = self.a(x) + self.b(x)
        z = torch.sin(2.5 * y) + self.c(y)
        z = z.tanh() + nn.functional.leaky_relu(self.d(z), 0.3)
        return self.head(nn.functional.silu(z).relu())


# On one pixel a padded convolution is the middle of its kernel; a BatchNorm that has seen nothing is a gain and a bias.
ONE_PIXEL = {
    "resnet": (lambda: ResNet((3, 4), channels=3), (3, 1, 1)),
    "pre-activation": (lambda: PreActivation(3), (3, 1, 1)),
    "small": (lambda: Small(channels=3), (3, 1, 1)),
    "without a skip": (lambda: Small(False, channels=3), (3, 1, 1)),
    "fixed norm": (lambda: Small(channels=3, affine=False), (3, 1, 1)),
    "residual mlp": (ResidualMLP, (3,)),
    "branches": (Branches, (3,)),
    "cnn": (lambda: CNN((3, 4, 5, 6), size=1), (3, 1, 1)),
}


@pytest.mark.parametrize("name", ONE_PIXEL)
def test_the_graph_computes_what_the_module_does(name):
    make, shape = ONE_PIXEL[name]
    net, params = trained(make)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.eps = 0.0
    x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    expected = functional_call(net.double().eval(), params, (x.view(5, *shape),))
    torch.testing.assert_close(computed(GraphSpec.from_module(net), params, x), expected, rtol=1e-10, atol=1e-12)


def test_where_skips_and_normalizations_are_drawn():
    spec = GraphSpec.from_module(Small())
    assert [level.name for level in spec.levels] == ["inputs", "first", "norm", "second", "head"]
    assert [level.activation.name for level in spec.levels[1:]] == ["identity", "relu", "relu", "identity"]
    links = [(link.source, link.target, link.kind, link.parameter) for link in spec.links]
    assert links == [
        (0, 1, "weight", "first.weight"),
        (1, 2, "batch_norm", "norm.weight"),
        (2, 3, "weight", "second.weight"),
        (2, 3, "skip", None),
        (3, 4, "weight", "head.weight"),
    ]
    assert spec.levels[2].bias == "norm.bias" and spec.link_kinds == 6 and spec.parameter_count == 206
    kinds = [[link.kind for link in GraphSpec.from_module(RESIDUAL[name]()).links][1] for name in RESIDUAL]
    assert kinds == ["batch_norm", "group_norm", "batch_norm", "batch_norm", "batch_norm", "layer_norm"]


def test_factors_stand_on_the_edges_of_a_relay():
    spec = GraphSpec.from_module(PreActivation())
    assert sorted(link.value for link in spec.links if link.kind == "skip" and link.value != 1.0) == [0.5, 0.5, 0.5]


def test_positions_of_a_flattened_channel_are_channels():
    spec = GraphSpec.from_module(Scan())
    assert spec.kernel == (1, 3) and spec.channels == 5 and spec.positions(spec.links[-1]) == 5


@pytest.mark.parametrize("name", RESIDUAL)
def test_json_and_parameters(name):
    net = RESIDUAL[name]()
    spec = GraphSpec.from_module(net)
    assert GraphSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert hash(spec) == hash(replace(spec))
    params = spec.params_of(net)
    assert {k: tuple(p.shape) for k, p in net.named_parameters()} == spec.param_shapes()
    assert all(params[k] is p for k, p in net.named_parameters())
    assert spec.parameter_count == sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("chain", [*SPECS.values(), *CNNS.values()])
def test_a_chain_is_a_graph(chain):
    spec = GraphSpec.of(chain)
    assert spec.widths == chain.widths and spec.channels == chain.channels and spec.link_kinds == 1
    assert spec.param_shapes() == chain.param_shapes()


def test_a_module_that_is_a_chain_reads_the_same_either_way():
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 6, bias=False), nn.GELU(), nn.Linear(6, 2)
    )
    assert GraphSpec.from_module(net) == GraphSpec.of(NetworkSpec.from_module(net))
    assert GraphSpec.from_module(net := Siren((2, 5, 4, 1))) == GraphSpec.of(NetworkSpec.from_module(net))


class Bare(nn.Module):
    """A parameter that no layer holds."""

    def __init__(self):
        super().__init__()
        self.first, self.scale = nn.Linear(3, 3), nn.Parameter(torch.ones(3))

    def forward(self, x):
        return self.first(x) * self.scale


class Two(nn.Module):
    """Two inputs."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3)

    def forward(self, x, y):
        return self.first(x) + y


class Sum(nn.Module):
    """The input goes into a sum."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3)

    def forward(self, x):
        return self.first(x) + x


class Twice(Sum):
    def forward(self, x):
        return self.first(self.first(x).relu())


class Dead(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(4, 3)

    def forward(self, x):
        x = self.first(x)
        self.second(x)
        return x


class Idle(Dead):
    def forward(self, x):
        return self.second(self.first(x))


class Unlike(Dead):
    def forward(self, x):
        return self.first(x) + self.second(x) + self.third(x)


class Pair(Dead):
    def forward(self, x):
        return self.first(x), self.second(x)


class Passing(Sum):
    def forward(self, x):
        return x


class Turned(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.table, self.bias = nn.Linear(3, 3), nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(2))

    def forward(self, x):
        return torch.addmm(self.bias, self.first(x).tanh(), self.table)


REFUSED = {
    "ViT holds 'cat'": ViT,
    r"GPT holds tokens \(Embedding\) of the input, before any layer": GPT,
    "got a Unreadable .* it stops in Unreadable, which decides by the values .* read a submodule": Unreadable,
    "got a Sequential .* whose examples are not told apart": lambda: nn.Sequential(nn.Linear(2, 3), nn.LSTM(3, 3)),
    r"Sequential holds 1 \(GroupNorm\).*one group or one per channel": lambda: nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4)
    ),
    r"Sequential holds 1 \(Conv2d\).*no groups": lambda: nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, groups=2)
    ),
    r"Sequential holds 0 \(Conv3d\)": lambda: nn.Sequential(nn.Conv3d(1, 4, 3)),
    r"Sequential holds 0 \(BatchNorm1d\) of the input": lambda: nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)),
    r"Sequential holds 1 \(ELU\)": lambda: nn.Sequential(nn.Linear(3, 3), nn.ELU()),
    "Bare holds 'mul'": Bare,
    "got a Two whose inputs its first layer does not tell; .* pass inputs=": Two,
    "Sum holds 'add' in Sum of the input and another value": Sum,
    "Twice holds first.weight, which is used twice": Twice,
    "Dead holds parameters that no layer uses: second.bias, second.weight, third.bias, third.weight": Dead,
    "Idle holds parameters that no layer uses: third.bias, third.weight": Idle,
    r"got a Unlike .* it stops in third \(Linear\), which raised RuntimeError": Unlike,
    "Turned holds 'addmm' in Turned, whose weight table is stored as .in, out.": Turned,
    "Pair holds an output that is not one value": Pair,
    "Passing holds an output that is not one value": Passing,
    r"Sequential holds 'linear' in 0 \(ParametrizedLinear\), whose weight is computed": lambda: nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Linear(2, 3))
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_drawn_is_refused_by_name(message):
    with pytest.raises(SpecError, match=message):
        GraphSpec.from_module(REFUSED[message]())


def test_a_second_input_is_refused():
    with pytest.raises(SpecError, match="Two holds a second input"):
        GraphSpec.from_module(Two(), (torch.ones(2, 3), torch.ones(2, 3)))


def test_links_and_levels_are_checked():
    levels = (Level("inputs", 2), Level("a", 3), Level("b", 3))
    first, second = Link(0, 1, "weight", "a.weight", (3, 2)), Link(1, 2, "weight", "b.weight", (3, 3))
    GraphSpec(levels, (first, second))
    with pytest.raises(SpecError, match="link kind 'jump' is unknown; expected one of weight, skip"):
        Link(0, 1, "jump")
    for wrong in ((2, 1, "skip"), (0, 1), (0, 1, "weight", "a", (3,)), (0, 1, "batch_norm", "a", (3, 3))):
        with pytest.raises(SpecError, match="; expected a link to a later level"):
            Link(*wrong)
    with pytest.raises(SpecError, match="1 levels; expected inputs, outputs and a link"):
        GraphSpec(levels[:1], ())
    for wrong in (Link(0, 1, "skip"), Link(0, 3, "weight", "c", (3, 2)), Link(0, 1, "weight", "c", (4, 2))):
        with pytest.raises(SpecError, match="between levels of widths .* expected a parameter whose first axis"):
            GraphSpec(levels, (first, second, wrong))
    with pytest.raises(SpecError, match=r"read the levels \[0\] and reach \[1\]; expected every level"):
        GraphSpec(levels, (first,))
    with pytest.raises(SpecError, match="expected each of them once"):
        GraphSpec(levels, (first, replace(second, parameter="a.weight")))
    with pytest.raises(SpecError, match="a graph spec lacks links; expected the keys levels, links"):
        GraphSpec.from_dict({"levels": []})


def test_parameters_are_checked():
    net, params = trained(Small)
    spec = GraphSpec.from_module(net)
    with pytest.raises(ParamsError, match=r"missing tensors: first.bias; unexpected tensors: other"):
        spec.check_params({("other" if k == "first.bias" else k): p for k, p in params.items()})
    with pytest.raises(ParamsError, match="stacked networks with a GraphSpec; expected one network"):
        spec.check_params({k: torch.stack([p, p]) for k, p in params.items()})
    with pytest.raises(ParamsError, match="norm.weight holds NaN or infinite values"):
        spec.check_params(params | {"norm.weight": torch.full((4,), torch.nan)})
    with pytest.raises(ParamsError, match="missing tensors"):
        spec.params_of(nn.Linear(2, 2))
