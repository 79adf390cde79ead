"""Canonical parameters: the function unchanged, one for a whole orbit, the same when done again, undone exactly."""

import math

import pytest
import torch

from tests.networks import ACTIVATIONS, SPECS, generator, random_params
from tests.rounding import assert_agree, condition
from weightedit.errors import ParamsError
from weightedit.graph.canonicalization import anchored_gauge, canonicalize, scale_gauge
from weightedit.graph.neural_graph import NeuralGraph
from weightedit.network.spec import SYMMETRIES, NetworkSpec
from weightedit.network.symmetry import act, random_element

CASES = [(name, symmetry) for name in SPECS for symmetry in SYMMETRIES]
POINTS = 2 * torch.rand(13, 2, dtype=torch.float64, generator=generator(9)) - 1


def _without_permutation(element):
    order = tuple(torch.arange(p.shape[-1]).expand(p.shape) for p in element.permutation)
    return type(element)(order, element.scale, element.flip, element.shift)


def _gauge(spec, params, symmetry="full"):
    graph = NeuralGraph.from_params(spec, params)
    constants = graph.layout.constants(symmetry, graph.edges)
    return graph, constants.scale, scale_gauge(graph, constants)


@pytest.mark.parametrize(("name", "symmetry"), CASES)
def test_the_function_is_unchanged(name, symmetry):
    spec, params = SPECS[name], random_params(SPECS[name], count=3)
    canonical, element = canonicalize(spec, params, symmetry=symmetry)
    assert_agree(spec.forward(canonical, POINTS), spec.forward(params, POINTS), condition(spec))
    moved = act(element, spec, params)
    assert all(torch.equal(canonical[key], moved[key]) for key in params)


@pytest.mark.parametrize("widths", [(2, 32, 32, 1), (2, 5, 1)])
def test_a_siren_in_float32_keeps_its_image(widths):
    spec = NetworkSpec.siren(widths)
    params = random_params(spec, count=20, dtype=torch.float32)
    # As trained ones: omega multiplies the weights, too.
    params = {key: tensor / 30 if "0.w" not in key else tensor for key, tensor in params.items()}
    canonical, _ = canonicalize(spec, params)
    points = POINTS.float()
    assert float((spec.forward(canonical, points) - spec.forward(params, points)).abs().max()) < 1e-6


@pytest.mark.parametrize(("name", "symmetry"), CASES)
def test_twice_is_once(name, symmetry):
    spec, params = SPECS[name], random_params(SPECS[name], count=20)
    once, _ = canonicalize(spec, params, symmetry=symmetry)
    twice, element = canonicalize(spec, once, symmetry=symmetry)
    exact = not any(group.scale for group in spec.neuron_groups(symmetry))
    for i, (flip, shift) in enumerate(zip(element.flip, element.shift, strict=True)):
        assert bool((flip == 1).all()) and not bool(shift.any())
        assert_agree(element.scale[i], torch.ones_like(element.scale[i]))
    if exact:
        assert all(torch.equal(once[key], twice[key]) for key in once)
    assert_agree(twice, once)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_twice_is_once_at_the_edges_of_the_period(dtype):
    """Biases at every multiple of a quarter period, and a rounding error to either side of it."""
    spec, half = NetworkSpec.siren((1, 303, 1)), math.pi / 30
    exact = torch.arange(-50, 51, dtype=torch.float64).to(dtype) * (half / 2)
    biases = torch.cat([exact, torch.nextafter(exact, exact + 1), torch.nextafter(exact, exact - 1)])
    params = random_params(spec, dtype=dtype)
    params["layers.0.bias"] = biases
    once, _ = canonicalize(spec, params)
    twice, _ = canonicalize(spec, once)
    assert float(once["layers.0.bias"].min()) >= 0
    assert float(once["layers.0.bias"].max()) <= half / 2 * (1 + 3e-5)
    assert all(torch.equal(once[key], twice[key]) for key in once)


@pytest.mark.parametrize(("name", "symmetry"), CASES)
def test_undone_by_the_inverse(name, symmetry):
    spec, params = SPECS[name], random_params(SPECS[name], count=3)
    canonical, element = canonicalize(spec, params, symmetry=symmetry)
    back = act(element.inverse(), spec, canonical)
    shifted = any(group.shift for group in spec.neuron_groups(symmetry))
    scaled = any(group.scale for group in spec.neuron_groups(symmetry))
    assert_agree(back, params)
    for key in params:
        assert torch.equal(back[key], params[key]) or scaled or (shifted and key.endswith("bias"))


@pytest.mark.parametrize(("name", "symmetry"), CASES)
def test_an_orbit_has_one_representative_up_to_permutation(name, symmetry):
    spec, params = SPECS[name], random_params(SPECS[name])
    expected, _ = canonicalize(spec, params, symmetry=symmetry)
    for seed in range(3):
        element = random_element(spec, generator(seed), symmetry=symmetry)
        same_order, _ = canonicalize(spec, act(_without_permutation(element), spec, params), symmetry=symmetry)
        assert_agree(same_order, expected, condition(spec))
        permuted, _ = canonicalize(spec, act(element, spec, params), symmetry=symmetry)
        for level in range(1, spec.depth):
            rows = [p[f"layers.{level - 1}.bias"].sort()[0] for p in (permuted, expected)]
            assert_agree(*rows, condition(spec))


def test_canonical_means_what_the_docstring_says():
    sine, _ = canonicalize(SPECS["sine"], random_params(SPECS["sine"], count=50))
    tanh, _ = canonicalize(SPECS["tanh"], random_params(SPECS["tanh"], count=50))
    for level in (0, 1):
        bias = sine[f"layers.{level}.bias"]
        assert float(bias.min()) >= 0 and float(bias.max()) <= math.pi / 60 * (1 + 3e-5)
        assert float(tanh[f"layers.{level}.bias"].min()) >= 0
    relu, _ = canonicalize(SPECS["relu"], random_params(SPECS["relu"], count=50))
    size = relu["layers.0.weight"].square().sum(-1) + relu["layers.0.bias"].square()
    assert_agree(size, torch.ones_like(size))


@pytest.mark.parametrize("name", ["relu", "identity", "mixed"])
def test_the_gauge_moves_as_the_scale(name):
    spec, params = SPECS[name], random_params(SPECS[name])
    element = random_element(spec, generator(3))
    _, scaled, before = _gauge(spec, params)
    graph, _, after = _gauge(spec, act(element, spec, params))
    assert bool((before[scaled == 0] == 1).all()) and bool((before > 0).all())
    for level, (order, q) in enumerate(zip(element.permutation, element.scale, strict=True), start=1):
        expected = (graph.layout.at_level(level, before)[:, 0] * q)[order]
        assert_agree(graph.layout.at_level(level, after)[:, 0], expected)


def _spoiled(kind):
    """A ReLU network with neurons that nothing enters, that nothing leaves, or that are entirely zero."""
    params = random_params(SPECS["relu"])
    if kind in ("nothing enters", "all zero"):
        params["layers.0.weight"][1], params["layers.0.bias"][1] = 0, 0
        params["layers.1.weight"][2], params["layers.1.bias"][2] = 0, 0
    if kind in ("nothing leaves", "all zero"):
        params["layers.1.weight"][:, 1] = 0
        params["layers.2.weight"][:, 2] = 0
    if kind == "dead chain":  # a neuron that only a dead neuron feeds
        params["layers.0.weight"][1], params["layers.0.bias"][1] = 0, 0
        params["layers.1.weight"][2] = 0
        params["layers.1.weight"][2, 1], params["layers.1.bias"][2] = 1.5, 0
    if kind == "zero network":
        params = {key: torch.zeros_like(tensor) for key, tensor in params.items()}
    return params


@pytest.mark.parametrize("kind", ["nothing enters", "nothing leaves", "all zero", "dead chain", "zero network"])
def test_dead_neurons_keep_a_finite_equivariant_gauge(kind):
    spec, params = SPECS["relu"], _spoiled(kind)
    canonical, _ = canonicalize(spec, params)
    assert spec.check_params(canonical) is None
    assert_agree(spec.forward(canonical, POINTS), spec.forward(params, POINTS))
    element = _without_permutation(random_element(spec, generator(2)))
    mate, _ = canonicalize(spec, act(element, spec, params))
    assert_agree(mate, canonical)
    twice, _ = canonicalize(spec, canonical)
    assert_agree(twice, canonical)


def test_a_neuron_is_anchored_where_its_scale_shows():
    spec = SPECS["relu"]
    for kind, loose in (("nothing enters", []), ("nothing leaves", []), ("dead chain", []), ("all zero", [3, 9])):
        graph = NeuralGraph.from_params(spec, _spoiled(kind))
        gauge, anchored = anchored_gauge(graph, graph.layout.constants("full", graph.edges))
        assert (anchored[:, 0] == 0).nonzero().flatten().tolist() == loose and bool((gauge[loose] == 1).all())
    params = _spoiled("all zero")
    params["layers.1.weight"][2, 1] = 1.5  # the two see each other, and nothing else
    graph = NeuralGraph.from_params(spec, params)
    _, anchored = anchored_gauge(graph, graph.layout.constants("full", graph.edges))
    assert (anchored[:, 0] == 0).nonzero().flatten().tolist() == [3, 9]
    params["layers.0.bias"][1] = 0.1
    graph = NeuralGraph.from_params(spec, params)
    assert bool((anchored_gauge(graph, graph.layout.constants("full", graph.edges))[1] == 1).all())
    graph = NeuralGraph.from_params(spec, _spoiled("zero network"))
    assert bool((anchored_gauge(graph, graph.layout.constants("sign", graph.edges))[1] == 1).all())


def test_one_dead_network_does_not_change_the_others_of_a_stack():
    spec, stack = SPECS["relu"], random_params(SPECS["relu"], count=3)
    spoiled = {key: tensor.clone() for key, tensor in stack.items()}
    for key, tensor in _spoiled("dead chain").items():
        spoiled[key][1] = tensor
    clean, mixed = canonicalize(spec, stack)[0], canonicalize(spec, spoiled)[0]
    assert all(torch.equal(clean[key][[0, 2]], mixed[key][[0, 2]]) for key in clean)


def test_bad_params_are_refused():
    spec = NetworkSpec.mlp((2, 3, 1), ACTIVATIONS["relu"])
    params = random_params(spec)
    params["layers.0.weight"][0, 0] = math.nan
    with pytest.raises(ParamsError, match="layers.0.weight holds NaN"):
        canonicalize(spec, params)
