"""The paper's ScaleGMN against its equations in loops over neurons; options, published sizes, what it cannot do."""

import json

import pytest
import torch

from tests.metanet.chain_networks import editing, editing_in_a_batch, perturbed, reading, wider
from tests.metanet.scalegmn_by_hand import scalegmn_by_loops
from tests.networks import CNNS, SPECS, generator, parts_of_symmetry, random_params, relative
from weightedit.delta import propose_delta
from weightedit.errors import SpecError
from weightedit.graph.canonicalization import canonicalize
from weightedit.graph.neural_graph import NeuralGraph
from weightedit.metanet.registry import make_metanet
from weightedit.metanet.scalegmn.config import PUBLISHED, ScaleGMNConfig
from weightedit.metanet.scalegmn.network import ScaleGMN, canonical_phases
from weightedit.network.features import GRADIENT, SQUARED_GRADIENT
from weightedit.network.spec import NetworkSpec
from weightedit.testing import assert_equivariant, assert_invariant, equivariance_error

# Every option away from its default at least once, both directions, both endings.
OPTIONS = [
    {},
    {"bidirectional": False, "signs": "canonicalization", "edge_codes": True},
    {"signs": "canonicalization", "layer_codes": True, "skip": False},
    {"edge_codes": True, "layer_codes": True, "layer_norm": False},
    {"node_codes": False, "symmetry": "sign"},
]
READERS = [
    {"embedding": 5},
    {"embedding": 5, "bidirectional": False, "readout": "outputs", "signs": "canonicalization"},
]


def _metanet(spec, noise=0.2, **options):
    known = {"inputs": spec.widths[0], "outputs": spec.widths[-1], "channels": spec.channels}
    return perturbed(ScaleGMN(ScaleGMNConfig(**{**known, "width": 6, "layers": 2, "levels": 3, **options})), noise)


@pytest.mark.parametrize("name", ["relu", "tanh", "sine", "silu", "identity", "mixed"])
@pytest.mark.parametrize("options", OPTIONS)
def test_deltas_agree_with_the_equations(options, name):
    spec, params = SPECS[name], random_params(SPECS[name])
    _assert_deltas_by_hand(_metanet(spec, **options), spec, params)


@pytest.mark.parametrize("options", OPTIONS[:2])
def test_deltas_of_convolutions_agree_with_the_equations(options):
    """The kernels of one layer fill all positions, those of the others some."""
    _assert_deltas_by_hand(_metanet(CNNS["mixed"], **options), CNNS["mixed"], random_params(CNNS["mixed"]))


def _assert_deltas_by_hand(metanet, spec, params):
    (found,) = metanet(NeuralGraph.from_params(spec, params)).to_features()
    (padding,) = NeuralGraph.from_params(spec, {k: torch.ones_like(t) for k, t in params.items()}).to_features()
    weights, biases = scalegmn_by_loops(metanet, spec, params)
    for got, expected, kept in zip(found.weights, weights, padding.weights, strict=True):
        assert relative(got, expected * kept) < 1e-10
    for got, expected in zip(found.biases, biases, strict=True):
        assert relative(got[..., :1], expected) < 1e-10


@pytest.mark.parametrize("name", ["relu", "sine", "mixed"])
@pytest.mark.parametrize("options", READERS)
def test_vectors_agree_with_the_equations(options, name):
    spec, params = SPECS[name], random_params(SPECS[name])
    metanet = _metanet(spec, **options)
    assert relative(reading(metanet, spec)(params), scalegmn_by_loops(metanet, spec, params)) < 1e-10


@pytest.mark.parametrize(
    ("name", "symmetry"),
    parts_of_symmetry({name: SPECS[name] for name in ("relu", "tanh", "sine", "identity", "mixed")}),
)
@pytest.mark.parametrize("options", OPTIONS[1:4])
@torch.no_grad()
def test_every_option_keeps_every_part_of_the_symmetry(options, name, symmetry):
    spec = SPECS[name]
    metanet = _metanet(spec, **options, symmetry=symmetry)
    assert symmetry in metanet.declared
    assert_equivariant(editing(metanet, spec), spec, random_params(spec, count=2), symmetry=symmetry)
    batched = editing_in_a_batch(metanet, spec, SPECS["relu"] if name == "mixed" else wider(spec))
    assert_equivariant(batched, spec, random_params(spec, seed=1), symmetry=symmetry)
    reader = _metanet(spec, **options, symmetry=symmetry, embedding=5)
    assert_invariant(reading(reader, spec), spec, random_params(spec, count=2), symmetry=symmetry)


@pytest.mark.parametrize(
    ("declared", "name", "tested"),
    [("permutation", "tanh", "sign"), ("permutation", "relu", "scale"), ("sign", "sine", "full")],
)
def test_a_symmetry_that_is_not_declared_is_not_kept(declared, name, tested):
    spec = SPECS[name]
    metanet = _metanet(spec, symmetry=declared)
    errors = equivariance_error(editing(metanet, spec), spec, random_params(spec), symmetry=tested)
    assert min(errors.values()) > 1e-3, errors


def test_backward_edges_without_the_reciprocal_break_positive_scales(monkeypatch):
    """What the published code does."""
    spec = SPECS["relu"]
    metanet = _metanet(spec)
    assert_equivariant(editing(metanet, spec), spec, random_params(spec), symmetry="scale")
    monkeypatch.setattr(ScaleGMN, "_against", lambda self, layout, edges, factors: edges)
    errors = equivariance_error(editing(metanet, spec), spec, random_params(spec), symmetry="scale")
    assert min(errors.values()) > 1e-3, errors


@pytest.mark.parametrize("name", ["relu", "identity", "sine", "mixed"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_equivariant_with_gradients_as_further_quantities(name, bidirectional):
    """A loss of the network's outputs gives gradients; squares of them have no sign."""
    spec = SPECS[name]
    metanet = _metanet(spec, extra_types=((-1, True), (-2, False)), bidirectional=bidirectional)
    inputs = torch.randn(8, spec.widths[0], dtype=torch.float64, generator=generator(5))

    def delta(params):
        leaves = {key: tensor.detach().requires_grad_() for key, tensor in params.items()}
        loss = spec.forward(leaves, inputs).square().sum()
        gradients = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
        squared = {key: tensor.square() for key, tensor in gradients.items()}
        return propose_delta(metanet, spec, params, [(GRADIENT, gradients), (SQUARED_GRADIENT, squared)])

    assert_equivariant(delta, spec, random_params(spec))


def test_further_quantities_are_seen_at_any_size():
    spec = SPECS["relu"]
    metanet = _metanet(spec, extra_types=((-1, True), (-2, False)))
    params, gradients = random_params(spec), random_params(spec, seed=1)
    squared = {key: tensor.square() for key, tensor in random_params(spec, seed=2).items()}

    def delta(first, second):
        return propose_delta(metanet, spec, params, [(GRADIENT, first), (SQUARED_GRADIENT, second)])

    plain = delta(gradients, squared)
    other, more = random_params(spec, seed=3), {key: tensor.exp() for key, tensor in squared.items()}
    for found in (delta(other, squared), delta(gradients, more)):
        assert all(relative(found[key], plain[key]) > 1e-3 for key in params)
    smaller = delta({k: 1e-6 * t for k, t in gradients.items()}, {k: 1e-12 * t for k, t in squared.items()})
    assert all(relative(smaller[key], plain[key]) < 1e-10 for key in params)


def test_phases_are_those_of_canonicalization():
    """Half periods with omega in them; the other module also flips signs, so up to these."""
    spec = SPECS["sine"]
    params = random_params(spec, count=3)
    canonical, _ = canonicalize(spec, params)
    graph = NeuralGraph.from_params(spec, params)
    moved, side = canonical_phases(graph, graph.layout.constants("full", graph.edges).shift)
    found = moved.to_params()
    assert bool((side == -1).any()) and bool((side == 1).any())
    for layer in spec.layers:
        for key in (layer.weight, layer.bias):
            torch.testing.assert_close(found[key].abs(), canonical[key].abs(), rtol=1e-9, atol=1e-12)
    half_period = torch.pi / spec.layers[0].activation.parameter
    assert float(found["layers.0.bias"].abs().max()) <= half_period / 2 * (1 + 1e-12)
    inputs = torch.randn(5, 2, dtype=torch.float64, generator=generator(4))
    torch.testing.assert_close(spec.forward(found, inputs), spec.forward(params, inputs), rtol=1e-9, atol=1e-9)


def test_a_zero_weight_stays_zero_and_sends_nothing_back():
    """The paper's edges are multiplied only; gauge-gmn, which is ours, adds to them."""
    spec, params = SPECS["relu"], random_params(SPECS["relu"])
    params["layers.1.weight"][2, 1] = 0
    delta = propose_delta(_metanet(spec), spec, params)["layers.1.weight"]
    assert float(delta[2, 1].detach()) == 0 and float(delta.detach().abs().min(1).values.max()) > 0


@pytest.mark.parametrize(("experiment", "name"), PUBLISHED)
def test_the_published_settings_are_built(experiment, name):
    networks = {"generalization": CNNS["relu"], "classes": SPECS["sine"], "editing": NetworkSpec.siren((2, 32, 32, 1))}
    metanet = make_metanet(name, [networks[experiment.rpartition("-")[2]]], **PUBLISHED[experiment, name])
    assert bool(metanet.embedding) == (not experiment.endswith("editing"))
    assert (metanet.config.width, metanet.dropout.p) == (
        64 if experiment.startswith("cifar10") else 128, PUBLISHED[experiment, name].get("dropout", 0.0)
    )  # fmt: skip


def test_the_published_editor_has_about_as_many_weights_as_published():
    """4.8 million, of which it is said to the second digit; the paper's networks end otherwise."""
    key = "mnist-editing", "scalegmn-b"
    metanet = make_metanet(key[1], [NetworkSpec.siren((2, 32, 32, 1))], **PUBLISHED[key])
    assert abs(sum(p.numel() for p in metanet.parameters()) / 4.8e6 - 1) < 0.03


def test_one_way_has_less_than_two_thirds_of_the_weights():
    spec = SPECS["relu"]
    one, both = (sum(p.numel() for p in _metanet(spec, bidirectional=way).parameters()) for way in (False, True))
    assert 3 * one < 2 * both


def test_dropout_acts_in_training_alone():
    spec, params = SPECS["sine"], random_params(SPECS["sine"])
    metanet, plain = _metanet(spec, dropout=0.5), editing(_metanet(spec), spec)(params)
    torch.manual_seed(0)
    assert all(relative(delta, plain[key]) > 1e-3 for key, delta in editing(metanet, spec)(params).items())
    metanet.eval()
    assert all(torch.equal(delta, plain[key]) for key, delta in editing(metanet, spec)(params).items())


def test_config_round_trip_and_refusals():
    config = ScaleGMNConfig(extra_types=((-1, True),), symmetry="sign", bidirectional=False, seed=3)
    assert ScaleGMNConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    for spoil, message in (
        ({"symmetry": "mirror"}, "symmetry 'mirror' is unknown"),
        ({"signs": "both"}, "signs 'both' is unknown; expected one of canonicalization, symmetrization"),
        ({"readout": "last"}, "readout 'last' is unknown; expected one of full, outputs"),
        ({"layers": 0}, "expected positive sizes"),
        ({"dropout": 1.0}, r"a dropout in \[0, 1\)"),
        ({"node_codes": False, "layer_codes": True}, "layer_codes without node_codes"),
    ):
        with pytest.raises(SpecError, match=message):
            ScaleGMNConfig(**spoil)
