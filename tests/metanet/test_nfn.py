"""NFN: its layers against the equations of Zhou et al. 2023 in loops over neurons; options, sizes."""

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
from tests.metanet.chains_by_hand import hnp_by_hand, nfn, np_by_hand
from tests.networks import CNNS, SPECS, random_params, relative
from weightedit.delta import propose_delta
from weightedit.errors import SpecError
from weightedit.metanet.functionals.nfn import NFN, NFNConfig
from weightedit.metanet.functionals.weight_space import FREE, EquivariantLinear, WeightSpace
from weightedit.network.spec import NetworkSpec
from weightedit.testing import assert_equivariant, assert_invariant

SMALL = {"outputs": 3, "width": 8, "layers": 2}
UNLISTED = [{"variant": "np", "codes": 0}, {"variant": "hnp", "fourier": 4}]  # the contract suite has neither
VARIANTS = [{"variant": "hnp"}, {"variant": "np"}, *UNLISTED]


def _layer(widths, **options):
    space = WeightSpace(len(widths) - 1, widths[0], widths[-1], **options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return EquivariantLinear(space, 2, 3, kinds=[(FREE,) * (space.depth - 1)]).double()


@pytest.mark.parametrize(
    ("widths", "permuted_ends", "by_hand"),
    [((2, 5, 4, 3), True, np_by_hand), ((3, 4, 2), True, np_by_hand), ((2, 5, 4, 3), False, hnp_by_hand)],
)
def test_layers_agree_with_the_equations(widths, permuted_ends, by_hand):
    layer, (weights, biases) = _layer(widths, permuted_ends=permuted_ends), random_parts(widths, 2)
    groups = (FREE,) * (len(widths) - 2)
    got = layer.space.unfold(layer(layer.space.fold(weights, biases), groups))
    for n in range(2):
        expected = by_hand(layer, [w[n] for w in weights], [b[n] for b in biases])
        for fast, slow in zip([x[n] for part in got for x in part], [*expected[0], *expected[1]], strict=True):
            torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("options", VARIANTS)
def test_whole_networks_agree_with_the_equations(options):
    make = lambda embedding: perturbed(NFN(NFNConfig(**SMALL, **options, embedding=embedding)))  # noqa: E731
    assert_as_by_hand(make, nfn, SPECS["silu"])


@pytest.mark.parametrize("widths", [(2, 5, 4, 3), (2, 5, 3), (2, 3), (1, 3, 4, 5, 1)])
@pytest.mark.parametrize("permuted_ends", [False, True])
def test_folding_is_lossless(widths, permuted_ends):
    space = WeightSpace(len(widths) - 1, widths[0], widths[-1], permuted_ends)
    weights, biases = random_parts(widths, 3)
    folded = space.fold(weights, biases)
    assert [x.dim() for x in folded] == [2 + len(part.levels) for part in space.parts]
    again = space.unfold(folded)
    assert all(torch.equal(x, y) for x, y in zip([*weights, *biases], [*again[0], *again[1]], strict=True))


def test_a_term_that_is_not_there_is_refused():
    with pytest.raises(SpecError, match=r"from b1 to w3 that keeps the axes \(1,\); expected one of"):
        _layer((2, 5, 4, 3)).matrix("w3", "b1", 1)


@pytest.mark.parametrize("options", UNLISTED)
@pytest.mark.parametrize("name", ["silu", "sine"])
def test_equivariant_on_the_whole_path(name, options):
    spec, metanet = SPECS[name], perturbed(NFN(NFNConfig(**SMALL, **options)))
    assert metanet.declared == ("permutation",)
    batched = editing_in_a_batch(metanet, spec, wider(spec))
    assert_equivariant(editing(metanet, spec), spec, random_params(spec, count=2), symmetry="permutation")
    assert_equivariant(batched, spec, random_params(spec, seed=1), symmetry="permutation")
    reader = perturbed(NFN(NFNConfig(**SMALL, **options, embedding=5)))
    assert_invariant(reading(reader, spec), spec, random_params(spec, count=2), symmetry="permutation")
    assert_invariant(reading_in_a_batch(reader, spec, wider(spec)), spec, random_params(spec), symmetry="permutation")


@pytest.mark.parametrize(("symmetry", "name"), [("sign", "tanh"), ("scale", "relu"), ("full", "sine")])
@pytest.mark.parametrize("options", UNLISTED)
def test_undeclared_symmetries_fail(symmetry, name, options):
    spec = SPECS[name]
    with pytest.raises(AssertionError, match="not equivariant"):
        assert_equivariant(
            editing(perturbed(NFN(NFNConfig(**SMALL, **options))), spec), spec, random_params(spec), symmetry=symmetry
        )
    with pytest.raises(AssertionError, match="not invariant"):
        reader = perturbed(NFN(NFNConfig(**SMALL, **options, embedding=5)))
        assert_invariant(reading(reader, spec), spec, random_params(spec), symmetry=symmetry)


@pytest.mark.parametrize("variant", ["hnp", "np"])
def test_kernels_as_channels(variant):
    metanet = perturbed(NFN(NFNConfig(**SMALL, channels=4, variant=variant)))
    assert max(errors_with_channels(metanet, SPECS["silu"], 4, "permutation")) < 1e-10
    spec = CNNS["mixed"]
    options = {"inputs": spec.widths[0], "outputs": 4, "depth": spec.depth, "channels": spec.channels, "width": 4}
    reader = perturbed(NFN(NFNConfig(**options, variant=variant, embedding=5)))
    assert_invariant(reading(reader, spec), spec, random_params(spec, count=2), symmetry="permutation")


def test_np_without_codes_permutes_the_ends_too_and_codes_or_hnp_tell_them_apart():
    spec = SPECS["silu"]
    params = random_params(spec)
    swapped = {**params, "layers.0.weight": params["layers.0.weight"].flip(-1)}
    for options, same in (
        ({"variant": "np", "codes": 0}, True),
        ({"variant": "np"}, False),
        ({"variant": "hnp"}, False),
    ):
        metanet = perturbed(NFN(NFNConfig(**SMALL, **options)))
        plain, moved = (propose_delta(metanet, spec, p)["layers.0.weight"] for p in (params, swapped))
        assert (relative(moved.flip(-1), plain) < 1e-10) == same


@pytest.mark.parametrize("options", VARIANTS)
@pytest.mark.parametrize("size", [1e-2, 1.0, 1e2])
def test_sizes_at_the_start(options, size):
    spec = NetworkSpec.siren((2, 32, 32, 1))
    params = {k: size * t for k, t in random_params(spec, count=3, dtype=torch.float32).items()}
    metanet = NFN(NFNConfig(**options))
    for key, delta in propose_delta(metanet, spec, params).items():
        ratio = float((delta.square().mean() / params[key].square().mean()).sqrt())
        assert 3e-4 < ratio < 0.1, (key, ratio)
    vectors = reading(NFN(NFNConfig(**options, embedding=16)), spec)(params)
    assert vectors.shape == (3, 16) and 0.05 < float(vectors.std()) < 5


@pytest.mark.parametrize("options", UNLISTED)
@pytest.mark.parametrize("embedding", [0, 5])
def test_every_parameter_learns(options, embedding):
    spec, metanet = SPECS["silu"], perturbed(NFN(NFNConfig(**SMALL, **options, embedding=embedding)))
    call = (
        reading(metanet, spec)
        if embedding
        else lambda p: torch.cat([t.flatten() for t in editing(metanet, spec)(p).values()])
    )
    call(random_params(spec, count=3)).square().sum().backward()
    assert [key for key, p in metanet.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_config_round_trip_and_refusals():
    config = NFNConfig(variant="np", codes=3, depth=4, seed=2)
    assert NFNConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    for spoil, message in (
        ({"variant": "pt"}, "variant 'pt' is unknown; expected one of hnp, np"),
        ({"depth": 0}, "expected a positive depth"),
        ({"width": 0}, "expected positive sizes"),
    ):
        with pytest.raises(SpecError, match=message):
            NFNConfig.from_dict({**config.to_dict(), **spoil})
    with pytest.raises(SpecError, match="entries .*; expected"):
        NFNConfig.from_dict({"inputs": 2})
