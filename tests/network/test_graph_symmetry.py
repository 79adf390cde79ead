"""The group of a network that is no chain: its elements leave the function as it was, and none is missing."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

from tests.networks import CNNS, SPECS, generator, random_params, relative
from tests.residual_networks import RESIDUAL, Small, each_channel, trained
from weightedit.errors import ParamsError
from weightedit.network.features import DELTA, PARAMETER
from weightedit.network.graph_spec import GraphSpec
from weightedit.network.reading import wiring_of
from weightedit.network.spec import SYMMETRIES
from weightedit.network.symmetry import act, random_element


class Pooled(nn.Module):
    """A pooling by maximum, which a tanh's flips do not survive, inside a residual branch."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = torch.tanh(self.first(x))
        x = x + nn.functional.max_pool2d(torch.tanh(self.second(x)), 3, stride=1, padding=1)
        return self.head(x.mean((2, 3)))


class Waves(nn.Module):
    """Sines with a skip around the second: the first may not be shifted, which the sum would see; the second may."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 2)

    def forward(self, x):
        x = torch.sin(self.norm(self.first(x)))
        return self.head(self.third(torch.sin(self.second(x))) + x)


class Inputs(nn.Module):
    """Branches that end in the outputs, and one between levels as wide as they are."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(3, 3) for _ in range(3))

    def forward(self, x):
        x = self.first(x).relu()
        return self.third(x) + self.second(x).relu()


NETWORKS = {
    **RESIDUAL,
    "each channel": lambda: Small(norm=each_channel),
    "fixed norm": lambda: Small(affine=False),
    "pooled": Pooled,
    "waves": Waves,
    "to the outputs": Inputs,
}
SHAPES = {"residual mlp": (3,), "scan": (2, 5), "waves": (3,), "to the outputs": (3,)}


def network(name):
    """The module, its spec, parameters and inputs, in float64, its normalizations with next to no epsilon."""
    net, params = trained(NETWORKS[name])
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.GroupNorm):
            module.eps = 1e-14
    x = torch.randn(6, *SHAPES.get(name, (1, 8, 8)), dtype=torch.float64, generator=generator(5))
    return net.double(), GraphSpec.from_module(net), params, x


@pytest.mark.parametrize("name", NETWORKS)
def test_elements_leave_the_function_as_it_was(name):
    net, spec, params, x = network(name)
    before = functional_call(net, params, (x,)).detach()
    for seed in range(3):
        moved = act(random_element(spec, generator(seed)), spec, params)
        assert not all(torch.equal(moved[key], params[key]) for key in params)
        assert relative(functional_call(net, moved, (x,)), before) < 1e-9


@pytest.mark.parametrize("name", NETWORKS)
def test_the_group_is_what_the_wiring_says(name):
    """Which is read by other means, set by set."""
    net, spec, *_ = network(name)
    wiring, groups = wiring_of(net), spec.neuron_groups()
    for link in spec.links:
        if link.parameter is None or not 0 < link.target < len(spec.levels) - 1:
            continue
        found, known = groups[link.target - 1], wiring.sets[wiring.by_name[link.parameter].target]
        assert (found.scale, found.flip) == (known.group.scale, known.group.flip), link.parameter
        assert spec.permutable[link.target - 1] == known.permutable, link.parameter


def test_one_factor_too_many_is_seen():
    """Any neuron whose group says no would change the function: groups are not too small."""
    net, spec, params, x = network("scan")
    before = functional_call(net, params, (x,)).detach()
    for level, group in enumerate(spec.neuron_groups(), start=1):
        element = random_element(spec, generator(), symmetry="permutation")
        scale = [torch.ones_like(q) for q in element.scale]
        for tied in [i for i, tie in enumerate(spec.factors[1:-1]) if tie == spec.factors[level]]:
            scale[tied][0] = 2.0
        moved = act(type(element)(element.permutation, tuple(scale), *(element.flip, element.shift)), spec, params)
        assert not group.scale and relative(functional_call(net, moved, (x,)), before) > 1e-4


def test_what_is_added_is_tied_and_what_ends_in_the_outputs_is_fixed():
    assert GraphSpec.from_module(Small()).factors == (0, 1, 2, 2, 4)
    assert GraphSpec.from_module(Small()).orders == (0, 1, 1, 1, 4)
    assert GraphSpec.from_module(Small()).permutable == (True,) * 3
    spec = GraphSpec.from_module(Inputs())
    names = [level.name for level in spec.levels]
    assert spec.permutable == tuple(name == "first" for name in names[1:-1])
    assert [str(group.scale) for group in spec.neuron_groups()] == [str(name == "first") for name in names[1:-1]]


def test_only_what_no_skip_reads_is_shifted():
    spec = GraphSpec.from_module(Waves())
    shifted = {level.name for level, group in zip(spec.levels[1:], spec.neuron_groups(), strict=False) if group.shift}
    assert shifted == {"second"}


def test_pooling_by_maximum_denies_flips():
    spec = GraphSpec.from_module(Pooled())
    assert not any(group.flip for group in spec.neuron_groups())
    assert GraphSpec.from_dict(spec.to_dict()) == spec


@pytest.mark.parametrize("symmetry", SYMMETRIES)
@pytest.mark.parametrize("chain", [SPECS["mixed"], CNNS["mixed"], CNNS["sine"]])
def test_a_chain_has_the_same_elements_as_a_graph(chain, symmetry):
    spec, params = GraphSpec.of(chain), random_params(chain)
    assert spec.neuron_groups(symmetry) == chain.neuron_groups(symmetry)
    elements = [random_element(each, generator(2), symmetry=symmetry) for each in (chain, spec)]
    for kind in (PARAMETER, DELTA):
        expected, found = (act(e, s, params, kind) for e, s in zip(elements, (chain, spec), strict=True))
        for key in params:
            torch.testing.assert_close(found[key], expected[key], rtol=1e-14, atol=0)


@pytest.mark.parametrize("name", ["pre-activation", "scan", "residual mlp"])
def test_an_element_is_undone_and_stacks_have_one_each(name):
    _, spec, params, _ = network(name)
    stack = {key: torch.stack([p, 2 * p]) for key, p in params.items()}
    element = random_element(spec, generator(1), count=2)
    moved = act(element, spec, stack)
    back = act(element.inverse(), spec, moved)
    assert max(relative(back[key], stack[key]) for key in stack) < 1e-13
    for i in range(2):
        parts = (
            tuple(x[i] for x in part) for part in (element.permutation, element.scale, element.flip, element.shift)
        )
        own = act(type(element)(*parts), spec, {key: p[i] for key, p in stack.items()})
        assert all(torch.equal(moved[key][i], own[key]) for key in own)


def test_what_does_not_fit_is_refused():
    _, spec, *_ = network("scan")
    element, other = random_element(spec, generator()), SPECS["mixed"]
    with pytest.raises(ParamsError, match=r"a group element of widths \(4, 4, 4\); expected \(7, 5, 6, 4\), the hid"):
        act(element, GraphSpec.of(other), random_params(other))
    with pytest.raises(ParamsError, match="missing tensors"):
        act(element, spec, {})
