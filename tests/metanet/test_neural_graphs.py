"""NG-GNN and NG-T: the papers' formulas written out, on both layouts; options, sound at the start."""

import json
import math
from dataclasses import replace

import pytest
import torch

from tests.metanet.chain_networks import editing, editing_in_a_batch, perturbed, reading_in_a_batch
from tests.metanet.neural_graphs_by_hand import Network, deltas, features, lift, pna_layer, pooled, relational_layer
from tests.metanet.neural_graphs_by_hand import attention as attention_by_hand
from tests.networks import ACTIVATIONS, CNNS, SPECS, generator, random_params, relative
from weightedit.delta import propose_delta, propose_deltas
from weightedit.errors import SpecError
from weightedit.graph.neural_graph import NeuralGraph, dense_layout
from weightedit.metanet.neural_graphs.config import NGGNNConfig, NGTConfig
from weightedit.metanet.neural_graphs.layers import degree_scalers
from weightedit.metanet.neural_graphs.network import NGGNN, NGT
from weightedit.metanet.registry import build_metanet, describe_metanet
from weightedit.network.features import DELTA, GRADIENT, PARAMETER
from weightedit.network.spec import NetworkSpec
from weightedit.testing import assert_equivariant

KINDS = {"ng-gnn": (NGGNN, NGGNNConfig), "ng-t": (NGT, NGTConfig)}
SMALL = {"outputs": 3, "node_width": 8, "edge_width": 6, "layers": 3, "levels": 4}
ALL_SCALERS = ("identity", "amplification", "attenuation")
OTHER = NetworkSpec.siren((2, 6, 3))
MIXED = NetworkSpec.mlp((2, 4, 3, 3), [ACTIVATIONS["sine"], ACTIVATIONS["relu"]])


def _metanet(name, dtype=torch.float64, strength=0.3, **options):
    """One whose weights are random, not initial: every parameter strongly perturbed."""
    kind, config = KINDS[name]
    return perturbed(kind(config(**{**SMALL, **options})), strength, dtype)


def _agree(got, expected):
    assert set(got) == set(expected)
    for name in expected:
        assert relative(got[name], expected[name]) < 1e-10, name


@pytest.mark.parametrize("probes", [0, 3])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("scalers", [("identity", "amplification"), ALL_SCALERS])
def test_ng_gnn_is_the_formulas_of_the_paper(scalers, reverse, probes):
    metanet = _metanet("ng-gnn", scalers=scalers, reverse_edges=reverse, probes=probes, typical_degree=5.0)
    params = random_params(MIXED)
    network, v, e = features(metanet, MIXED, params, pna_layer, loops=False)
    _agree(editing(metanet, MIXED)(params), deltas(metanet, network, v, e))
    _agree(editing_in_a_batch(metanet, MIXED, OTHER)(params), deltas(metanet, network, v, e))


@pytest.mark.parametrize("probes", [0, 3])
@pytest.mark.parametrize("heads", [1, 4])
def test_ng_t_is_the_formulas_of_the_paper(heads, probes):
    metanet, params = _metanet("ng-t", heads=heads, probes=probes), random_params(MIXED)
    network, v, e = features(metanet, MIXED, params, relational_layer, loops=True)
    _agree(editing(metanet, MIXED)(params), deltas(metanet, network, v, e))
    _agree(editing_in_a_batch(metanet, MIXED, OTHER)(params), deltas(metanet, network, v, e))


@pytest.mark.parametrize(("name", "layer"), [("ng-gnn", pna_layer), ("ng-t", relational_layer)])
def test_the_vector_that_is_read_is_the_formula(name, layer):
    metanet, params = _metanet(name, embedding=5, probes=2), random_params(MIXED)
    network, v, _ = features(metanet, MIXED, params, layer, loops=name == "ng-t")
    expected = pooled(metanet, network, v)
    assert relative(metanet.embed(NeuralGraph.from_params(MIXED, params)), expected) < 1e-10
    assert relative(reading_in_a_batch(metanet, MIXED, OTHER)(params), expected) < 1e-10


@pytest.mark.parametrize(("name", "layer"), [("ng-gnn", pna_layer), ("ng-t", relational_layer)])
def test_fourier_features_of_parameters_are_the_formula(name, layer):
    metanet, params = _metanet(name, fourier=3, fourier_scale=0.5), random_params(MIXED)
    network, v, e = features(metanet, MIXED, params, layer, loops=name == "ng-t")
    _agree(editing(metanet, MIXED)(params), deltas(metanet, network, v, e))
    assert_equivariant(editing(metanet, MIXED), MIXED, params, symmetry="permutation")
    again = build_metanet(*describe_metanet(metanet)).double()
    again.load_state_dict(metanet.state_dict())
    _agree(editing(again, MIXED)(params), editing(metanet, MIXED)(params))


def test_fourier_features_have_unit_size_and_lift_whole_kernels():
    """Frequencies run over all channels of an entry; without them nothing is there that was not before."""
    metanet = NGGNN(NGGNNConfig(inputs=1, outputs=4, channels=9, fourier=16, node_width=8, edge_width=6))
    assert metanet.input.waves_of_pairs.frequencies.shape == (16, 9)
    assert float(metanet.input.waves_of_pairs(torch.randn(500, 9)).square().mean()) == pytest.approx(1, abs=1e-5)
    assert not any("frequencies" in key for key in NGGNN(NGGNNConfig()).state_dict())
    with pytest.raises(SpecError, match="expected positive sizes and fourier_scale; fourier, probes and"):
        NGGNNConfig(fourier=-1)


def test_attention_is_a_masked_softmax_over_all_neurons():
    """Logits of hundreds stay finite, and pairs without an edge get no weight, whatever their values."""
    metanet, params = _metanet("ng-t"), random_params(MIXED)
    module = metanet.layers[0].attention
    with torch.no_grad():
        module.from_nodes.weight.mul_(20)
    lifted = metanet.input(NeuralGraph.from_params(MIXED, params))
    got = module(lifted.nodes, lifted.pairs)
    expected = attention_by_hand(module, *lift(metanet.input, Network(MIXED, params), loops=True))
    assert relative(got, torch.stack(list(expected.values()))) < 1e-10


def test_degree_scalers_are_one_at_the_typical_degree():
    found = degree_scalers(torch.tensor([[0.0], [4.0], [24.0]]), 4.0)
    assert {name: scaler[:, 0].tolist() for name, scaler in found.items()} == {
        "identity": [1, 1, 1],
        "amplification": [0, 1, 2],
        "attenuation": [0, 1, 0.5],
    }


@pytest.mark.parametrize("probes", [0, 4])
@pytest.mark.parametrize("name", KINDS)
def test_equivariant_with_mixed_activations(name, probes):
    spec, metanet = SPECS["mixed"], _metanet(name, probes=probes)
    batched = editing_in_a_batch(metanet, spec, OTHER)
    assert_equivariant(editing(metanet, spec), spec, random_params(spec, count=2), symmetry="permutation")
    assert_equivariant(batched, spec, random_params(spec, seed=1), symmetry="permutation")


def _rms(tensor):
    return float(tensor.detach().square().mean().sqrt())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 2e-6)])
@pytest.mark.parametrize("name", KINDS)
def test_layouts_agree_in_values_and_gradients(name, dtype, tolerance):
    spec, found = SPECS["relu"], []
    stack = random_params(spec, count=3, dtype=dtype)
    singles = [(spec, {key: tensor[i] for key, tensor in stack.items()}) for i in range(3)]
    for dense in (True, False):
        metanet = _metanet(name, dtype, strength=0.0, probes=6)
        if dense:
            delta = propose_delta(metanet, spec, stack)
        else:
            each = propose_deltas(metanet, singles)
            delta = {key: torch.stack([one[key] for one in each]) for key in stack}
        sum((tensor**3).sum() for tensor in delta.values()).mul(1e6).backward()
        found.append((delta, [p.grad for p in metanet.parameters()]))
    for key in stack:
        assert _rms(found[0][0][key] - found[1][0][key]) / _rms(found[0][0][key]) < tolerance, key
    for one, other in zip(found[0][1], found[1][1], strict=True):
        assert _rms(one - other) <= 100 * tolerance * _rms(one)


@pytest.mark.parametrize("layers", [1, 4, 10])
@pytest.mark.parametrize("name", KINDS)
def test_sizes_at_the_start_are_sound(name, layers):
    """Deltas near initial_scale of their layer's weights, signals of unit size, gradients alike, at ten layers too."""
    spec, found = NetworkSpec.siren((2, 32, 32, 1)), []
    params = {key: t / 10 for key, t in random_params(spec, count=4, dtype=torch.float32).items()}
    kind, config = KINDS[name]
    metanet = kind(config(layers=layers, node_width=32, edge_width=32, probes=8))
    for layer in metanet.layers:
        layer.register_forward_hook(lambda _, __, state: found.append(state))
    delta = propose_delta(metanet, spec, params)
    for layer in spec.layers:
        for key in (layer.weight, layer.bias):
            assert 0.01 / 20 < _rms(delta[key]) / _rms(params[layer.weight]) < 0.01 * 10, key
    layout = dense_layout(spec, torch.zeros(1))
    for nodes, pairs in found:
        hidden = layout.at_level(1, nodes)
        for signal in (nodes, pairs.forward, pairs.backward):
            assert 0.3 < _rms(signal) < 5
        # The neurons of a level do not become one.
        assert _rms(hidden - hidden.mean(-2, keepdim=True)) > 0.05
    source = generator(3)
    sum((tensor * torch.randn(tensor.shape, generator=source)).sum() for tensor in delta.values()).backward()
    assert [key for key, p in metanet.named_parameters() if p.grad is None or not p.grad.any()] == []
    means = [
        math.exp(sum(math.log(_rms(p.grad)) for p in layer.parameters()) / len(list(layer.parameters())))
        for layer in metanet.layers
    ]
    assert max(means) / min(means) < 100


def test_without_reverse_edges_nothing_comes_back():
    params, moved = random_params(MIXED), random_params(MIXED)
    noise = torch.randn(params["layers.2.weight"].shape, generator=generator(5), dtype=torch.float64)
    moved["layers.2.weight"] = noise / _rms(noise) * _rms(params["layers.2.weight"])
    for reverse in (False, True):
        delta = editing(_metanet("ng-gnn", reverse_edges=reverse, scalers=ALL_SCALERS), MIXED)
        change = relative(delta(moved)["layers.0.weight"], delta(params)["layers.0.weight"])
        assert (change > 1e-6) == reverse
    assert _metanet("ng-gnn", reverse_edges=False).input.lift_backward is None


@pytest.mark.parametrize("name", KINDS)
def test_the_activation_is_seen(name):
    params, metanet = random_params(SPECS["tanh"]), _metanet(name)
    found = [propose_delta(metanet, SPECS[kind], params)["layers.1.weight"] for kind in ("tanh", "silu")]
    assert relative(*found) > 1e-3


@pytest.mark.parametrize("name", KINDS)
def test_rescaled_networks_give_rescaled_deltas_where_only_logarithms_tell(name):
    """Inputs are of unit size: without the two logarithms of sizes, a layer's scale would be invisible."""
    spec, metanet = SPECS["silu"], _metanet(name)
    with torch.no_grad():
        metanet.input.lift_nodes.weight[:, 1:] = 0
    params = random_params(spec)
    plain, big = (propose_delta(metanet, spec, {k: s * t for k, t in params.items()}) for s in (1, 1e3))
    _agree(big, {key: 1e3 * tensor for key, tensor in plain.items()})


@pytest.mark.parametrize("name", KINDS)
def test_further_quantities(name):
    spec, params = SPECS["relu"], random_params(SPECS["relu"], count=2)
    metanet = _metanet(name, extra_types=((-1, True),))
    assert metanet.types_in == (PARAMETER, GRADIENT) and metanet.types_out == (DELTA,)

    def delta(p):
        return propose_delta(metanet, spec, p, [(GRADIENT, {key: t**3 for key, t in p.items()})])

    assert_equivariant(delta, spec, params, symmetry="permutation")


@pytest.mark.parametrize("activation", ["relu", "mixed"])
@pytest.mark.parametrize("name", KINDS)
def test_convolutions(name, activation):
    spec = CNNS[activation]
    metanet = _metanet(name, inputs=spec.widths[0], outputs=4, channels=spec.channels, extra_types=((-1, True),))
    assert metanet.types_in == (PARAMETER,) * spec.channels + (GRADIENT,) * spec.channels
    assert metanet.types_out == (DELTA,) * spec.channels

    def graph(params):
        return NeuralGraph.from_params(spec, params, [(GRADIENT, {key: t**3 for key, t in params.items()})])

    params = random_params(spec, count=2)
    delta = metanet(graph(params)).to_params()
    assert {key: t.shape for key, t in delta.items()} == {key: t.shape for key, t in params.items()}
    assert_equivariant(lambda p: metanet(graph(p)).to_params(), spec, params, symmetry="permutation")
    # A kernel is of unit size as a whole.
    weight = params["layers.1.weight"]
    expected = weight.square().sum((-1, -2)).mean((-1, -2)).sqrt()
    first = spec.widths[0] * spec.widths[1]
    assert relative(metanet.input(graph(params)).edge_size[:, first, 0], expected) < 1e-12


@pytest.mark.parametrize("name", KINDS)
def test_depth_beyond_the_levels_a_single_layer_and_no_biases(name):
    metanet = _metanet(name, levels=2, probes=2)
    deep = NetworkSpec.mlp((2, 3, 4, 5, 4, 3, 3), ACTIVATIONS["tanh"])
    assert_equivariant(editing(metanet, deep), deep, random_params(deep), symmetry="permutation")
    linear = NetworkSpec.mlp((2, 3), [])
    delta = propose_delta(metanet, linear, random_params(linear))
    assert {key: tensor.shape for key, tensor in delta.items()} == linear.param_shapes()
    bare = NetworkSpec(tuple(replace(layer, bias=None) for layer in SPECS["relu"].layers))
    assert_equivariant(editing(metanet, bare), bare, random_params(bare), symmetry="permutation")


@pytest.mark.parametrize("name", KINDS)
def test_config_round_trip_and_refusals(name):
    _, kind = KINDS[name]
    config = kind(**SMALL, extra_types=((-1, True),), seed=3, embedding=4)
    assert kind.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    refused = [
        ({"layers": 0}, "expected positive sizes"),
        ({"embedding": -1}, "probes and embedding of at least 0"),
        ({"probes": 4, "channels": 9}, "4 probes with 9 channels per quantity"),
    ]
    if name == "ng-gnn":
        refused += [({"scalers": ["linear"]}, "scalers .*linear.*"), ({"typical_degree": 0.0}, "positive degree")]
    else:
        refused += [({"heads": 3}, "3 heads for an attention of width 16"), ({"heads": 0}, "0 heads")]
    for spoil, message in refused:
        with pytest.raises(SpecError, match=message):
            kind.from_dict({**config.to_dict(), **spoil})
    with pytest.raises(SpecError, match="entries .*; expected"):
        kind.from_dict({"inputs": 2})


@pytest.mark.parametrize("name", KINDS)
def test_bfloat16_autocast_trains(name):
    spec, metanet = SPECS["sine"], _metanet(name, torch.float32, strength=0.0, probes=4)
    params = {key: t / 10 for key, t in random_params(spec, count=2, dtype=torch.float32).items()}
    exact = propose_delta(metanet, spec, params)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        delta = propose_delta(metanet, spec, params)
    sum(tensor.float().square().sum() for tensor in delta.values()).backward()
    for key in params:
        assert relative(delta[key].float(), exact[key]) < 0.2, key
    assert all(bool(torch.isfinite(p.grad).all()) for p in metanet.parameters())
