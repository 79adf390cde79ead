"""Monomial-NFN: its layers against the paper's formulas in loops over neurons; symmetry; its limit."""

import json

import pytest
import torch

from tests.metanet.chain_networks import (
    assert_as_by_hand,
    editing,
    editing_in_a_batch,
    errors_with_channels,
    perturbed,
    random_parts,
    reading,
    reading_in_a_batch,
    wider,
)
from tests.metanet.chains_by_hand import monomial, scale_by_hand, sign_by_hand
from tests.networks import ACTIVATIONS, CNNS, SPECS, random_params, relative
from weightedit.delta import propose_delta, propose_deltas
from weightedit.errors import SpecError
from weightedit.metanet.functionals.monomial import Invariant, Monomial, MonomialConfig, PathProducts
from weightedit.metanet.functionals.weight_space import FREE, EquivariantLinear, WeightSpace
from weightedit.network.spec import NetworkSpec, NeuronGroup
from weightedit.testing import assert_equivariant, assert_invariant, equivariance_error

SIGN, SCALE, BOTH = NeuronGroup(flip=True), NeuronGroup(scale=True), NeuronGroup(flip=True, scale=True)


def _config(spec, **options):
    names = MonomialConfig.activations_of([spec])
    return MonomialConfig(**{"outputs": 3, "width": 8, "layers": 2, "activations": names, **options})


def _layer(widths, group):
    space = WeightSpace(len(widths) - 1, widths[0], widths[-1])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return EquivariantLinear(space, 2, 3, kinds=[(group,) * (space.depth - 1)]).double()


@pytest.mark.parametrize("widths", [(2, 5, 4, 3), (3, 4, 2), (2, 3, 4, 5, 1)])
@pytest.mark.parametrize(("group", "by_hand"), [(SCALE, scale_by_hand), (SIGN, sign_by_hand)])
def test_layers_agree_with_the_paper(widths, group, by_hand):
    layer, (weights, biases) = _layer(widths, group), random_parts(widths, 2)
    got = layer.space.unfold(layer(layer.space.fold(weights, biases), (group,) * (len(widths) - 2)))
    for n in range(2):
        w, b = ({level + 1: x[n] for level, x in enumerate(part)} for part in (weights, biases))
        new_w, new_b = by_hand(layer, w, b)
        for level in w:
            for (j, k), expected in new_w[level].items():
                torch.testing.assert_close(got[0][level - 1][n, j, k], expected, rtol=1e-10, atol=1e-10)
            for j, expected in new_b[level].items():
                torch.testing.assert_close(got[1][level - 1][n, j], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("name", "kind"), [("relu", "scale"), ("leaky_relu", "scale"), ("tanh", "sign"), ("sine", "sign")]
)
def test_whole_networks_agree_with_the_paper(name, kind):
    make = lambda embedding: perturbed(Monomial(_config(SPECS[name], embedding=embedding)))  # noqa: E731
    assert_as_by_hand(make, lambda *network: monomial(*network, kind), SPECS[name])


@pytest.mark.parametrize(
    ("widths", "group", "count"),
    [
        ((2, 5, 4, 3), SCALE, 8),
        ((2, 5, 4, 3), SIGN, 10),
        ((2, 5, 3), SCALE, 6),
        ((2, 5, 3), SIGN, 10),
        ((2, 5, 4, 3), BOTH, 8),
    ],
)
def test_there_are_no_other_terms(widths, group, count):
    layer = _layer(widths, group)
    assert len(layer.matrices) == count and set(layer.offsets) == {f"b{len(widths) - 1}"}


def test_where_an_activation_allows_no_factor_its_axis_is_pooled_and_broadcast_as_in_hnp():
    kinds = [(SIGN, FREE)]
    matrices = EquivariantLinear(WeightSpace(3, 2, 3), 2, 3, kinds=kinds).matrices
    found = {target: {key for key in matrices if key.startswith(target)} for target in ("w1", "w2", "w3")}
    assert found["w1"] == {"w1_from_w1_at_1", "w1_from_b1_at_1", "w1_from_w2_at_1"}
    assert found["w2"] == {"w2_from_w2_at_2_1", "w2_from_w2_at_1", "w2_from_w1_at_1", "w2_from_b1_at_1"}
    assert found["w3"] == {f"w3_from_{end}" for end in ("w3_at_2", "w3_at_none", "b2_at_2", "b2_at_none", "b3_at_none")}
    free = EquivariantLinear(WeightSpace(3, 2, 3), 2, 3, kinds=[(FREE, FREE)]).matrices
    assert found["w3"] < {key for key in free if key.startswith("w3")} and set(matrices) < set(free)


@pytest.mark.parametrize("name", ["relu", "sine", "identity"])
def test_invariant_layer_by_hand(name):
    space, group = WeightSpace(3, 2, 3), {"relu": SCALE, "sine": SIGN, "identity": BOTH}[name]
    groups, layer = (group, group), Invariant(WeightSpace(3, 2, 3), 2, [(group, group)]).double()
    parts = space.fold(*random_parts((2, 5, 4, 3), 2))
    parts[1][0, 0, 0] = 0
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.arange(parameter.numel()) * 0.1 - 0.3)
    for part, x, got in zip(space.parts, parts, layer(parts, groups), strict=True):
        for fast, vector in zip(got.flatten(0, -2), x.flatten(0, -2), strict=True):
            expected = vector
            if part.name != "b3":
                expected = vector.abs() if group.flip else vector
                if group.scale:
                    norm = float(vector.norm())
                    expected = expected / (norm if norm else 1) * layer.weight[part.name] + layer.bias[part.name]
            torch.testing.assert_close(fast, expected, rtol=1e-10, atol=1e-10)


def test_products_by_hand():
    space, (weights, biases) = WeightSpace(3, 2, 3), random_parts((2, 5, 4, 3), 2, count=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = PathProducts(space, 2, 3).double()
    ones = [torch.ones(1, n, 1, dtype=torch.float64) for n in (2, 5, 4, 3)]
    got = space.unfold(module(space.fold(weights, biases), ones))
    (w1, w2, w3), (b1, b2, b3) = ([x[0] for x in part] for part in (weights, biases))

    def unit(vectors):
        stacked = torch.stack(vectors)
        return stacked / stacked.square().mean().sqrt()

    u, v = [module.inputs], [module.outputs]
    for w, b in ((w1, b1), (w2, b2), (w3, b3)):
        u.append(unit([sum(w[j, k] * u[-1][k] for k in range(w.shape[1])) + b[j] for j in range(w.shape[0])]))
    for w in (w3, w2, w1):
        v.insert(0, unit([sum(w[j, k] * v[0][j] for j in range(w.shape[0])) for k in range(w.shape[1])]))
    for layer in range(3):
        for j in range(len(u[layer + 1])):
            expected = module.to_bias[layer] @ u[layer + 1][j]
            torch.testing.assert_close(got[1][layer][0, j], expected, rtol=1e-10, atol=1e-10)
            for k in range(len(v[layer])):
                expected = (module.to_target[layer] @ u[layer + 1][j]) * (module.to_source[layer] @ v[layer][k])
                torch.testing.assert_close(got[0][layer][0, j, k], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("symmetry", "name", "products"),
    [
        ("permutation", "silu", False),
        ("sign", "sine", False),
        ("scale", "relu", False),
        ("full", "identity", False),
        ("sign", "mixed", False),
        ("sign", "mixed", True),
        ("scale", "mixed", False),
        ("scale", "mixed", True),
    ],
)
def test_equivariant_on_the_whole_path(symmetry, name, products):
    """Edits without products and reads with them; the contract suite has it the other way round, and no mixed chains.

    The published editor built on these layers misses the sign group by a relative error of 1.3.
    """
    spec = SPECS[name]
    metanet = perturbed(Monomial(_config(spec, products=products)))
    batched = editing_in_a_batch(metanet, spec, wider(spec))
    assert_equivariant(editing(metanet, spec), spec, random_params(spec, count=2), symmetry=symmetry)
    assert_equivariant(batched, spec, random_params(spec, seed=1), symmetry=symmetry)
    reader = perturbed(Monomial(_config(spec, products=not products, embedding=5)))
    assert_invariant(reading(reader, spec), spec, random_params(spec, count=2), symmetry=symmetry)
    assert_invariant(reading_in_a_batch(reader, spec, wider(spec)), spec, random_params(spec), symmetry=symmetry)


@pytest.mark.parametrize(
    ("kept", "symmetry", "name"),
    [
        ("full", "full", "sine"),
        ("permutation", "sign", "tanh"),
        ("scale", "sign", "tanh"),
        ("permutation", "scale", "relu"),
        ("sign", "scale", "relu"),
        ("sign", "full", "identity"),
    ],
)
def test_undeclared_symmetries_fail(kept, symmetry, name):
    spec, params = SPECS[name], random_params(SPECS[name])
    metanet = perturbed(Monomial(_config(spec, symmetry=kept)))
    assert symmetry not in metanet.declared
    assert max(equivariance_error(editing(metanet, spec), spec, params, symmetry=symmetry).values()) > 0.1
    with pytest.raises(AssertionError, match="not invariant"):
        reader = perturbed(Monomial(_config(spec, symmetry=kept, embedding=5)))
        assert_invariant(reading(reader, spec), spec, params, symmetry=symmetry)


@pytest.mark.parametrize("kept", ["permutation", "sign", "scale"])
@pytest.mark.parametrize("name", ["relu", "tanh", "identity"])
def test_part_of_the_symmetry(kept, name):
    spec, metanet = SPECS[name], perturbed(Monomial(_config(SPECS[name], symmetry=kept)))
    assert metanet.declared == tuple(dict.fromkeys(("permutation", kept)))
    for symmetry in metanet.declared:
        assert_equivariant(editing(metanet, spec), spec, random_params(spec), symmetry=symmetry)


@pytest.mark.parametrize("name", ["relu", "tanh", "mixed"])
def test_kernels_as_channels(name):
    spec = SPECS[name]
    for products in (False, True):
        metanet = perturbed(Monomial(_config(spec, channels=4, products=products)))
        for symmetry in metanet.declared:
            assert max(errors_with_channels(metanet, spec, 4, symmetry)) < 1e-10


@pytest.mark.parametrize(
    ("symmetry", "name"), [("scale", "relu"), ("sign", "tanh"), ("sign", "sine"), ("scale", "mixed")]
)
def test_convolutional_networks(symmetry, name):
    spec = CNNS[name]
    options = {"inputs": spec.widths[0], "outputs": 4, "channels": spec.channels, "width": 4, "embedding": 5}
    reader = perturbed(Monomial(_config(spec, **options)))
    assert_invariant(reading(reader, spec), spec, random_params(spec, count=2), symmetry=symmetry)


@pytest.mark.parametrize("name", ["tanh", "relu"])
def test_the_limit_and_what_lifts_it(name):
    """A middle weight with another sign is another network, but not to the paper's sign layers; products tell."""
    spec = SPECS[name]
    params = random_params(spec)
    other = {key: tensor.clone() for key, tensor in params.items()}
    other["layers.1.weight"][1, 2] *= -1
    seen = {}
    for products in (False, True):
        reader = perturbed(Monomial(_config(spec, embedding=5, products=products)))
        seen[products] = relative(reading(reader, spec)(other), reading(reader, spec)(params))
    assert (seen[False] < 1e-12) == (name == "tanh") and seen[True] > 1e-3
    if name == "tanh":
        metanet = perturbed(Monomial(_config(spec)))
        deltas = [propose_delta(metanet, spec, p) for p in (params, other)]
        for key in ("layers.0.weight", "layers.0.bias", "layers.1.bias", "layers.2.weight"):
            torch.testing.assert_close(deltas[0][key], deltas[1][key])


def test_a_mixed_zoo_has_parameters_for_both_kinds():
    names = ("relu|tanh", "relu|tanh")
    relu, tanh = SPECS["relu"], NetworkSpec.mlp((2, 3, 6, 3), ACTIVATIONS["tanh"])
    assert MonomialConfig.activations_of([relu, tanh]) == names
    metanet = perturbed(Monomial(_config(relu, activations=names)))
    for spec, symmetry, other in ((relu, "scale", tanh), (tanh, "sign", relu)):
        rest = random_params(other)

        def batched(params, spec=spec, other=other, rest=rest):
            return propose_deltas(metanet, [(other, rest), (spec, params)])[1]

        assert_equivariant(batched, spec, random_params(spec), symmetry=symmetry)


@pytest.mark.parametrize("products", [False, True])
@pytest.mark.parametrize("name", ["sine", "relu", "silu", "identity"])
@pytest.mark.parametrize("size", [1e-2, 1.0, 1e2])
def test_sizes_at_the_start(name, products, size):
    spec = NetworkSpec.mlp((2, 32, 32, 1), ACTIVATIONS[name])
    params = {k: size * t for k, t in random_params(spec, count=3, dtype=torch.float32).items()}
    options = {"outputs": 1, "width": 64, "products": products}
    for key, delta in propose_delta(Monomial(_config(spec, **options)), spec, params).items():
        ratio = float((delta.square().mean() / params[key].square().mean()).sqrt())
        assert 3e-4 < ratio < 0.1, (key, ratio)
    vectors = reading(Monomial(_config(spec, **options, embedding=16)), spec)(params)
    assert vectors.shape == (3, 16) and 0.05 < float(vectors.std()) < 5


@pytest.mark.parametrize("embedding", [0, 5])
@pytest.mark.parametrize("products", [False, True])
@pytest.mark.parametrize("name", ["sine", "relu", "identity", "silu", "mixed"])
def test_every_parameter_learns(name, products, embedding):
    spec = SPECS[name]
    metanet = perturbed(Monomial(_config(spec, products=products, embedding=embedding)))
    delta = editing(metanet, spec)
    call = reading(metanet, spec) if embedding else lambda p: torch.cat([t.flatten() for t in delta(p).values()])
    call(random_params(spec, count=3)).square().sum().backward()
    assert [key for key, p in metanet.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_config_round_trip_and_refusals():
    config = MonomialConfig(activations=("relu|tanh", "silu", "identity"), products=True, symmetry="scale", seed=2)
    assert MonomialConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(SpecError, match="symmetry is 'mirror'; expected 'full'"):
        MonomialConfig.from_dict({**config.to_dict(), "symmetry": "mirror"})
    with pytest.raises(SpecError, match="activation 'cosine' is unknown"):
        MonomialConfig(activations=("cosine",))
    spec = SPECS["relu"]
    with pytest.raises(SpecError, match=r"\('relu', 'relu'\); expected \('sine', 'sine'\)"):
        propose_delta(Monomial(MonomialConfig(outputs=3)), spec, random_params(spec, dtype=torch.float32))
    spec = NetworkSpec.siren((2, 4, 3))
    with pytest.raises(SpecError, match="2 layers, 2 inputs and 3 outputs; expected 3 layers"):
        propose_delta(Monomial(MonomialConfig(outputs=3)), spec, random_params(spec, dtype=torch.float32))


@pytest.mark.parametrize("name", ["sine", "relu"])
def test_two_layers_and_one(name):
    for widths in ((2, 5, 3), (2, 3)):
        spec = NetworkSpec.mlp(widths, [ACTIVATIONS[name]] * (len(widths) - 2))
        metanet = perturbed(Monomial(_config(spec)))
        delta = propose_delta(metanet, spec, random_params(spec))
        assert {key: tensor.shape for key, tensor in delta.items()} == spec.param_shapes()
        if len(widths) > 2:
            symmetry = "sign" if name == "sine" else "scale"
            assert_equivariant(editing(metanet, spec), spec, random_params(spec), symmetry=symmetry)
