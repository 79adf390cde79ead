"""GaugeGMN: its options and parts of its symmetry, on both layouts; sizes at the start. See also test_contract.py."""

import json
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.metanet.chain_networks import editing, editing_in_a_batch, perturbed, reading, reading_in_a_batch
from tests.networks import ACTIVATIONS, SPECS, generator, random_params, relative
from weightedit.delta import propose_delta
from weightedit.errors import SpecError, TypeMismatchError
from weightedit.files.checkpoint import load_into
from weightedit.graph.neural_graph import NeuralGraph
from weightedit.inr.convention import Convention
from weightedit.inr.siren import coordinate_grid, raw_outputs, render
from weightedit.metanet.gauge_gmn.config import GaugeGMNConfig
from weightedit.metanet.gauge_gmn.heads import ridge_solution
from weightedit.metanet.gauge_gmn.layers import OddPair, unit_rms
from weightedit.metanet.gauge_gmn.network import GaugeGMN
from weightedit.network.features import DELTA, GRADIENT, PARAMETER, SQUARED_GRADIENT
from weightedit.network.spec import NetworkSpec
from weightedit.optim.memory import Alive
from weightedit.testing import assert_equivariant, assert_invariant, equivariance_error

POINTS = 2 * torch.rand(9, 2, dtype=torch.float64, generator=generator(9)) - 1
OTHER = NetworkSpec.siren((2, 6, 3))
SMALL = {"outputs": 3, "node_width": 8, "edge_width": 6, "layers": 3, "levels": 4}


def _metanet(dtype=torch.float64, strength=0.4, **options):
    """A GaugeGMN whose weights are random, not initial: every parameter strongly perturbed."""
    return perturbed(GaugeGMN(GaugeGMNConfig(**{**SMALL, **options})), strength, dtype)


def _as_trained(params):
    """Weights of the size that SIRENs have: omega = 30 multiplies pre-activations, and the rounding in them."""
    return {key: tensor / 10 for key, tensor in params.items()}


@pytest.mark.parametrize(
    ("symmetry", "name"),
    [
        ("permutation", "silu"),
        ("permutation", "relu"),
        ("sign", "tanh"),
        ("sign", "sine"),
        ("scale", "relu"),
        ("scale", "identity"),
    ],
)
def test_a_part_of_the_symmetry_is_kept(symmetry, name):
    spec, metanet = SPECS[name], _metanet(symmetry=symmetry, probes=5, forecast=6)
    batched = editing_in_a_batch(metanet, spec, OTHER)
    assert_equivariant(editing(metanet, spec), spec, random_params(spec, count=2), symmetry=symmetry)
    assert_equivariant(batched, spec, random_params(spec, seed=1), symmetry=symmetry)
    reader = _metanet(symmetry=symmetry, probes=5, embedding=7)
    assert_invariant(reading(reader, spec), spec, random_params(spec, count=2), symmetry=symmetry)
    assert_invariant(reading_in_a_batch(reader, spec, OTHER), spec, random_params(spec, seed=1), symmetry=symmetry)


@pytest.mark.parametrize("probes", [0, 5])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_equivariant_without_a_forecast(bidirectional, probes):
    spec, metanet = SPECS["mixed"], _metanet(bidirectional=bidirectional, probes=probes)
    assert_equivariant(editing(metanet, spec), spec, random_params(spec, count=2))
    assert_equivariant(editing_in_a_batch(metanet, spec, OTHER), spec, random_params(spec, seed=1))


@pytest.mark.parametrize("name", ["relu", "sine", "tanh", "mixed"])
def test_equivariant_with_the_refit_of_the_last_layer(name):
    # Deltas of a SIREN's own size: the refit reads the edited network, where omega = 30 multiplies every rounding.
    spec, metanet = SPECS[name], _metanet(strength=0.2, probes=9, forecast=6, refit=True)
    assert_equivariant(editing(metanet, spec), spec, _as_trained(random_params(spec, count=2)))
    assert_equivariant(editing_in_a_batch(metanet, spec, OTHER), spec, _as_trained(random_params(spec, seed=1)))


@pytest.mark.parametrize("name", ["relu", "sine", "tanh", "mixed"])
def test_equivariant_with_a_convolutional_forecast_and_a_solved_reading(name):
    spec = SPECS[name]
    metanet = _metanet(strength=0.2, probes=16, forecast=4, grid=True, solved=True)
    assert_equivariant(editing(metanet, spec), spec, _as_trained(random_params(spec, count=2)))
    assert_equivariant(editing_in_a_batch(metanet, spec, OTHER), spec, _as_trained(random_params(spec, seed=1)))


@pytest.mark.parametrize("grid", [False, True])
@pytest.mark.parametrize("name", ["relu", "sine", "mixed"])
def test_invariant_with_what_is_shown_at_the_probes(name, grid):
    spec, metanet = SPECS[name], _metanet(probes=16, shown=6, grid=grid, embedding=5)
    assert_invariant(reading(metanet, spec), spec, _as_trained(random_params(spec, count=2)))
    assert_invariant(reading_in_a_batch(metanet, spec, OTHER), spec, _as_trained(random_params(spec, seed=1)))


@pytest.mark.parametrize("grid", [False, True])
def test_what_is_shown_is_the_outputs_at_the_probes_and_adds_to_the_vector(grid):
    spec = NetworkSpec.siren((2, 5, 3))
    config = GaugeGMNConfig(node_width=4, edge_width=2, layers=1, probes=36, shown=3, grid=grid, outputs=3, embedding=4)
    metanet, params, seen = GaugeGMN(config), random_params(spec, count=2, dtype=torch.float32), []
    metanet.shown.register_forward_hook(lambda _, inputs, found: seen.append((inputs[0], found)))
    whole = metanet.embed(NeuralGraph.from_params(spec, params))
    places = coordinate_grid(6, 6) if grid else metanet.probes
    torch.testing.assert_close(seen[0][0], raw_outputs(params, places, Convention()).mT, rtol=0, atol=1e-4)
    metanet.shown = None
    torch.testing.assert_close(whole, metanet.embed(NeuralGraph.from_params(spec, params)) + seen[0][1])


def test_the_grid_is_read_as_a_picture_row_by_row():
    """A forecast whose convolutions pass their center on, and shift by one column, moves the picture by one column."""
    spec = NetworkSpec.siren((2, 5, 1))
    metanet = GaugeGMN(GaugeGMNConfig(node_width=4, edge_width=2, layers=1, probes=36, forecast=1, grid=True))
    seen = []
    metanet.forecast.first.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    params = random_params(spec, count=2, dtype=torch.float32)
    propose_delta(metanet, spec, params)
    expected = render(params, coordinate_grid(6, 6), omega=30.0).reshape(2, 1, 6, 6)
    torch.testing.assert_close(seen[0], expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("dilations", "reach"), [((1, 1), 4), ((2, 4, 1), 9), ((), 2)])
def test_a_forecast_looks_as_far_as_its_convolutions_reach(dilations, reach):
    """A probe's forecast depends on the probes up to one step per convolution away, times its dilation."""
    side, center = 23, 11
    spec = NetworkSpec.siren((2, 3, 1))
    config = GaugeGMNConfig(probes=side**2, forecast=3, grid=True, dilations=dilations)
    graph = NeuralGraph.from_params(spec, random_params(spec, dtype=torch.float32))
    forecast, constants = GaugeGMN(config).forecast, graph.layout.constants("full", graph.edges)
    values = torch.randn(6, side**2 + 1, generator=generator(0)).requires_grad_()
    change = forecast(values, constants)[-1, 1:].reshape(side, side)
    (seen,) = torch.autograd.grad(change[center, center], values)
    where = seen[-1, 1:].reshape(side, side).abs().nonzero() - center
    assert int(where.abs().max()) == reach and not seen[:-1].any()


def test_a_solved_reading_brings_the_wished_changes_about():
    """The ridge solution against the normal equations in loops; without ridge, what a layer can do is done."""
    values, wished = (torch.randn(2, n, 30, dtype=torch.float64, generator=generator(n)) for n in (4, 3))
    ridge = torch.full((2, 1, 1), 0.3, dtype=torch.float64)
    found = ridge_solution(values, wished, ridge)
    for network in range(2):
        design = torch.cat([values[network], torch.ones(1, 30, dtype=torch.float64)])
        for neuron in range(3):
            left = sum(torch.outer(design[:, p], design[:, p]) for p in range(30)) + 0.3 * 30 * torch.eye(5).double()
            right = sum(design[:, p] * wished[network, neuron, p] for p in range(30))
            assert relative(left @ found[network, neuron], right) < 1e-13
    weights, biases = found[..., :-1], found[..., -1:]
    again = ridge_solution(values, weights @ values + biases, ridge * 1e-12)
    assert relative(again, found) < 1e-9


def _gradients(spec, params):
    leaves = {key: tensor.detach().clone().requires_grad_() for key, tensor in params.items()}
    loss = (spec.forward(leaves, POINTS) - 0.3).square().sum()
    return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


@pytest.mark.parametrize("name", ["relu", "identity", "sine", "mixed"])
def test_equivariant_with_gradients_as_further_channels(name):
    spec, metanet = SPECS[name], _metanet(probes=3, extra_types=((-1, True), (-2, False)))

    def delta(params):
        gradients = _gradients(spec, params)
        squared = {key: tensor.square() for key, tensor in gradients.items()}
        return propose_delta(metanet, spec, params, [(GRADIENT, gradients), (SQUARED_GRADIENT, squared)])

    assert_equivariant(delta, spec, random_params(spec, count=2))


def test_a_gradient_taken_for_one_more_weight_breaks_it():
    spec, metanet = SPECS["relu"], _metanet(extra_types=((1, True),))
    as_weight = metanet.types_in[1]

    def delta(params):
        return propose_delta(metanet, spec, params, [(as_weight, _gradients(spec, params))])

    with pytest.raises(AssertionError, match="not equivariant"):
        assert_equivariant(delta, spec, random_params(spec))
    with pytest.raises(TypeMismatchError, match="GaugeGMN: got channels of type"):
        propose_delta(metanet, spec, random_params(spec), [(GRADIENT, random_params(spec))])


@pytest.mark.parametrize(
    ("declared", "name", "tested"),
    [
        ("permutation", "tanh", "sign"),
        ("permutation", "sine", "sign"),
        ("permutation", "relu", "scale"),
        ("permutation", "sine", "full"),
        ("sign", "sine", "full"),
        ("sign", "identity", "scale"),
        ("scale", "identity", "sign"),
    ],
)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_symmetry_that_is_not_declared_is_not_kept(declared, name, tested, bidirectional):
    """The judge being judged, on the real thing: the same path fails for more than was declared, in every tensor."""
    spec, metanet = SPECS[name], _metanet(symmetry=declared, bidirectional=bidirectional, probes=4)
    assert_equivariant(editing(metanet, spec), spec, random_params(spec), symmetry=declared)
    errors = equivariance_error(editing(metanet, spec), spec, random_params(spec), symmetry=tested)
    assert min(errors.values()) > 1e-3, errors


def _rms(tensor):
    return float(tensor.detach().square().mean().sqrt())


@pytest.mark.parametrize("layers", [1, 4, 10])
@pytest.mark.parametrize("name", ["sine", "relu", "silu"])
def test_sizes_at_the_start_are_sound(name, layers):
    """Deltas near initial_scale of their layer's weights; gradients alike in size, none zero, at ten layers too."""
    spec = NetworkSpec.mlp((2, 32, 32, 1), ACTIVATIONS[name])
    params = random_params(spec, count=4, dtype=torch.float32)
    params = _as_trained(params) if name == "sine" else params
    metanet = GaugeGMN(GaugeGMNConfig(layers=layers, node_width=32, edge_width=32, probes=8, forecast=16))
    delta = propose_delta(metanet, spec, params)
    for layer in spec.layers:
        weights = _rms(params[layer.weight])
        for key in (layer.weight, layer.bias):
            assert 0.01 / 10 < _rms(delta[key]) / weights < 0.01 * 10, key
    source = generator(3)
    loss = sum((tensor * torch.randn(tensor.shape, generator=source)).sum() for tensor in delta.values())
    loss.backward()
    sizes = {key: _rms(p.grad) for key, p in metanet.named_parameters() if p.grad is not None}
    unreached = [key for key, p in metanet.named_parameters() if p.grad is None or not p.grad.any()]
    assert unreached == []
    blocks = [
        [
            size
            for key, size in sizes.items()
            if key.startswith(("edge_updates", "node_updates")) and key.split(".")[1] == str(i)
        ]
        for i in range(layers)
    ]
    means = [math.exp(sum(map(math.log, block)) / len(block)) for block in blocks]
    assert max(means) / min(means) < 100
    inner = [size for block in blocks for size in block]
    assert max(inner) / min(inner) < 1e5


def test_quantities_beside_the_parameters_are_not_held_through_the_layers_where_no_gradients_are_wanted():
    """Each takes a number per edge, in the graph, and two per neuron; layers are wide, so that they hold the most."""
    spec, params, held = SPECS["mixed"], random_params(SPECS["mixed"], count=50), []
    for count in (1, 9):
        config = GaugeGMNConfig(2, 3, 4, 64, 1, probes=0, extra_types=((-1, True),) * count)
        metanet, extra = GaugeGMN(config).double(), [(GRADIENT, params)] * count
        expected = propose_delta(metanet, spec, params, extra)
        with torch.no_grad(), Alive() as alive:
            found = propose_delta(metanet, spec, params, extra)
        assert all(torch.equal(found[key], expected[key]) for key in params)
        held.append(alive.most)
    edges, neurons = sum(layer.fan_in * layer.fan_out for layer in spec.layers), sum(spec.widths)
    assert (held[1] - held[0]) / (8 * 50 * 8) < edges + 3 * neurons < 2 * edges


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", ["sine", "relu"])
def test_signals_keep_their_size_through_ten_layers(name, seed):
    spec = NetworkSpec.mlp((2, 32, 32, 1), ACTIVATIONS[name])
    params = random_params(spec, count=8, seed=seed, dtype=torch.float32)
    params = _as_trained(params) if name == "sine" else params
    config = GaugeGMNConfig(layers=10, node_width=64, edge_width=32, probes=8, forecast=16, seed=seed)
    metanet, found = GaugeGMN(config), []
    for update in metanet.node_updates:
        update.register_forward_hook(lambda _, __, state: found.append(state))
    propose_delta(metanet, spec, params)
    for kind, parts in enumerate(zip(*((*state.odd, state.invariant, state.edges) for state in found), strict=True)):
        sizes = [_rms(part) for part in parts]
        assert min(sizes) > 0.1 and max(sizes) < 10, (kind, sizes)
        assert max(float(part.abs().max()) for part in parts) < 300, kind


@pytest.mark.parametrize("epsilon", [1e-6, 1.0])
def test_the_gradient_of_a_unit_rms(epsilon):
    x = torch.randn(2, 4, 3, dtype=torch.float64, generator=generator(0)).requires_grad_()
    with torch.no_grad():
        x[0, 1] = 0
    plain = x / (epsilon + x.square().mean(-1, keepdim=True)).sqrt()
    torch.testing.assert_close(unit_rms(x, epsilon), plain, rtol=1e-14, atol=0)
    # At zero the second derivatives are of the size 1 / epsilon, and their numerical twin needs as small a step.
    x = x if epsilon == 1 else x.detach()[1:].requires_grad_()
    assert torch.autograd.gradgradcheck(partial(unit_rms, epsilon=epsilon), (x,))


@torch.no_grad()
@pytest.mark.parametrize("bidirectional", [True, False])
def test_weights_that_were_kept_as_pairs_of_maps_load(bidirectional):
    """The odd maps of either side were modules of their own, named `_incoming` and `_outgoing`, [out, in]."""
    ours, other = (perturbed(_metanet(bidirectional=bidirectional, seed=seed)) for seed in (0, 1))
    old = {}
    for name, tensor in ours.state_dict().items():
        part = ours.get_submodule(name.rpartition(".")[0]) if "." in name else None
        stem = name.rpartition(".")[0]
        if isinstance(part, OddPair):
            stem = stem.removesuffix(stem.rpartition(".")[2]) + part.formerly
            for side, one in zip(("incoming", "outgoing"), tensor, strict=True):
                old[f"{stem}_{side}.{name.rpartition('.')[2]}"] = one.mT.contiguous() if one.dim() == 2 else one
        else:
            for former, owner in (("lift", "lift"), ("mix", "mix"), ("from", "ends")):
                name = name.replace(f"{owner}.incoming", f"{former}_incoming")
                name = name.replace(f"{owner}.outgoing", f"{former}_outgoing")
            old[name] = tensor
    assert {"encode.mix_incoming.weight", "lift_outgoing.bias", "edge_updates.0.from_incoming.bias"} <= old.keys()
    assert not ours.state_dict().keys() & {name for name in old if "incoming" in name and "gate" not in name}
    load_into(other, old)
    for name, tensor in ours.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name


def test_one_way_costs_less_than_both_ways():
    """In weights, and in products of one training step: what it does not send, it does not compute."""
    spec, weights, products = SPECS["relu"], [], []
    for bidirectional in (False, True):
        metanet = _metanet(bidirectional=bidirectional)
        with FlopCounterMode(display=False) as counter:
            sum(delta.sum() for delta in propose_delta(metanet, spec, random_params(spec)).values()).backward()
        weights.append(sum(p.numel() for p in metanet.parameters()))
        products.append(counter.get_total_flops())
    assert weights[0] < weights[1] and products[0] < products[1]


@pytest.mark.parametrize("name", ["relu", "sine"])
def test_zero_weights_can_become_non_zero(name):
    spec, metanet = SPECS[name], _metanet(probes=2)
    params = random_params(spec)
    params["layers.1.weight"][:] = 0
    params["layers.0.weight"][2] = 0
    delta = propose_delta(metanet, spec, params)
    assert bool((delta["layers.1.weight"].abs() > 0).all())
    assert bool((delta["layers.0.weight"][2].abs() > 0).all())


def test_the_readout_sees_relative_signs():
    """Two hidden neurons with rows (1, 1) and (1, -1) are not two with (1, 1): no single absolute value tells them."""
    spec, metanet = NetworkSpec.mlp((2, 2, 3), ACTIVATIONS["tanh"]), _metanet(embedding=5, probes=0)
    params = random_params(spec)
    params["layers.0.weight"] = torch.ones(2, 2).double()
    other = {**params, "layers.0.weight": torch.tensor([[1.0, 1.0], [1.0, -1.0]]).double()}
    one, two = (metanet.embed(NeuralGraph.from_params(spec, p)) for p in (params, other))
    assert relative(one, two) > 1e-2


@pytest.mark.parametrize("options", [{"probes": 2}, {"probes": 9, "forecast": 6, "refit": True}])
@pytest.mark.parametrize("name", ["relu", "leaky_relu", "identity"])
def test_dead_neurons_keep_equivariance(name, options):
    """Nothing enters one neuron, nothing leaves another, and two have no weights but for the one that joins them."""
    spec, metanet = SPECS[name], _metanet(strength=0.2, **options)
    params = random_params(spec)
    params["layers.0.weight"][1], params["layers.0.bias"][1] = 0, 0
    params["layers.1.weight"][:, 3] = 0
    assert_equivariant(editing(metanet, spec), spec, params)
    params["layers.0.weight"][3], params["layers.0.bias"][3] = 0, 0
    params["layers.1.weight"][2], params["layers.1.bias"][2], params["layers.2.weight"][:, 2] = 0, 0, 0
    for joined in (0.0, 1.5):
        params["layers.1.weight"][2, 3] = joined
        assert_equivariant(editing(metanet, spec), spec, params)
        delta = propose_delta(metanet, spec, params)
        still = (delta["layers.0.weight"][3], delta["layers.1.weight"][:, 3], delta["layers.1.weight"][2])
        still += (delta["layers.1.bias"][2], delta["layers.2.weight"][:, 2])
        assert not any(bool(tensor.any()) for tensor in still)
        assert bool((delta["layers.0.weight"][:3] != 0).all())
        assert_invariant(reading(_metanet(embedding=5, probes=2), spec), spec, params)


def test_depth_beyond_the_levels_and_a_single_layer():
    metanet = _metanet(levels=2, outputs=1)
    deep = NetworkSpec.mlp((2, 3, 4, 5, 4, 3, 1), ACTIVATIONS["tanh"])
    assert_equivariant(editing(metanet, deep), deep, random_params(deep))
    linear = NetworkSpec.mlp((2, 1), [])
    delta = propose_delta(metanet, linear, random_params(linear))
    assert {key: tensor.shape for key, tensor in delta.items()} == linear.param_shapes()


def test_networks_without_biases():
    for name in ("relu", "sine", "tanh"):
        layers = tuple(replace(layer, bias=None) for layer in SPECS[name].layers)
        spec, metanet = NetworkSpec(layers), _metanet(probes=3)
        assert_equivariant(editing(metanet, spec), spec, random_params(spec))


def test_types_are_declared():
    metanet = GaugeGMN(GaugeGMNConfig(**SMALL, extra_types=((-1, True), (-2, False))))
    assert metanet.types_in == (PARAMETER, GRADIENT, SQUARED_GRADIENT) and metanet.types_out == (DELTA,)


@pytest.mark.parametrize("switch", [{"rank_one": False}, {"edge_skip": False}, {"relative_signs": False}])
def test_every_switch_does_something_and_keeps_the_symmetry(switch):
    spec = SPECS["mixed"]
    params = _as_trained(random_params(spec))
    on, off = (editing(_metanet(**kept), spec) for kept in ({}, switch))
    assert any(relative(off(params)[name], on(params)[name]) > 1e-3 for name in params)
    assert_equivariant(off, spec, params)


def test_neuron_codes_give_permutations_up():
    spec = SPECS["sine"]
    params = _as_trained(random_params(spec))
    coded = editing(_metanet(symmetry="permutation", neuron_codes=32), spec)
    assert max(equivariance_error(coded, spec, params, symmetry="permutation").values()) > 1e-2


def test_config_round_trip_and_refusals():
    config = GaugeGMNConfig(**SMALL, extra_types=((-1, True),), symmetry="sign", bidirectional=False, seed=3)
    assert GaugeGMNConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    for spoil, message in (
        ({"symmetry": "mirror"}, "symmetry is 'mirror'; expected 'full' or"),
        ({"layers": 0}, "expected positive sizes"),
        ({"embedding": 4, "forecast": 4}, "embedding 4 with a forecast of 4"),
        ({"probes": -1}, "probes and neuron codes of at least 0"),
        ({"grid": True, "probes": 10, "forecast": 4}, "grid has 10 probes"),
        ({"grid": True, "probes": 16, "embedding": 4}, "and shown of 0; expected 784 or another square"),
        ({"dilations": (2, 0), "grid": True, "probes": 16, "forecast": 4}, "dilations \\(2, 0\\), a forecast of 4"),
        ({"dilations": (2, 4)}, "dilations \\(2, 4\\), a forecast of .* grid=False; expected numbers"),
        ({"shown": 8, "probes": 4}, "shown 8 with 4 probes, an embedding of 0"),
        ({"solved": True, "probes": 0}, "solved without probes"),
        ({"refit": True, "forecast": 0}, "refit without probes or without a forecast"),
    ):
        with pytest.raises(SpecError, match=message):
            GaugeGMNConfig.from_dict({**config.to_dict(), **spoil})
    with pytest.raises(SpecError, match="entries .*; expected"):
        GaugeGMNConfig.from_dict({"inputs": 2})
    older = {name: value for name, value in GaugeGMNConfig().to_dict().items() if name != "rank_one"}
    assert GaugeGMNConfig.from_dict(older) == GaugeGMNConfig()
    with pytest.raises(SpecError, match="entries .*; expected"):
        GaugeGMNConfig.from_dict({**config.to_dict(), "width": 2})


def test_bfloat16_autocast_trains():
    spec, metanet = SPECS["sine"], _metanet(torch.float32, strength=0.0, probes=4, forecast=4)
    params = _as_trained(random_params(spec, count=2, dtype=torch.float32))
    exact = propose_delta(metanet, spec, params)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        delta = propose_delta(metanet, spec, params)
    sum(tensor.float().square().sum() for tensor in delta.values()).backward()
    for key in params:
        assert relative(delta[key].float(), exact[key]) < 0.2, key
    assert all(bool(torch.isfinite(p.grad).all()) for p in metanet.parameters())
