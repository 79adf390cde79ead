"""DWS: its layers against their blocks in loops over neurons, with means and with maxima; sizes."""

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
from tests.metanet.chains_by_hand import block_by_hand, dws, entries
from tests.networks import CNNS, SPECS, random_params
from weightedit.delta import propose_delta
from weightedit.errors import SpecError
from weightedit.metanet.functionals.dws import DWS, DWSConfig
from weightedit.metanet.functionals.weight_space import FREE, EquivariantLinear, WeightSpace
from weightedit.network.spec import NetworkSpec
from weightedit.testing import assert_equivariant, assert_invariant

SMALL = {"outputs": 3, "width": 8, "layers": 2}


@pytest.mark.parametrize("pooling", ["mean", "max"])
@pytest.mark.parametrize("widths", [(2, 5, 4, 3), (2, 4, 1), (2, 3)])
def test_layers_agree_with_their_blocks(widths, pooling):
    space = WeightSpace(len(widths) - 1, widths[0], widths[-1])
    groups = (FREE,) * (space.depth - 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layer = EquivariantLinear(space, 2, 3, kinds=[groups], pooling=pooling).double()
    parts = [x[0] for x in space.fold(*random_parts(widths, 2))]
    for target, fast in zip(space.parts, layer(parts, groups), strict=True):
        blocks = [
            block_by_hand(layer, target, source, entries(source, x), widths, pooling)
            for source, x in zip(space.parts, parts, strict=True)
        ]
        for neurons, got in entries(target, fast).items():
            expected = layer.offsets[target.name] + sum(block[neurons] for block in blocks)
            torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


def test_whole_networks_agree_with_their_blocks():
    make = lambda embedding: perturbed(DWS(DWSConfig(**SMALL, embedding=embedding)))  # noqa: E731
    assert_as_by_hand(make, dws, SPECS["silu"])


def test_with_maxima_it_keeps_permutations_and_nothing_else():
    spec, metanet = SPECS["sine"], perturbed(DWS(DWSConfig(**SMALL, pooling="max")))
    batched = editing_in_a_batch(metanet, spec, wider(spec))
    assert_equivariant(editing(metanet, spec), spec, random_params(spec, count=2), symmetry="permutation")
    assert_equivariant(batched, spec, random_params(spec, seed=1), symmetry="permutation")
    reader = perturbed(DWS(DWSConfig(**SMALL, pooling="max", embedding=5)))
    assert_invariant(reading(reader, spec), spec, random_params(spec, count=2), symmetry="permutation")
    assert_invariant(reading_in_a_batch(reader, spec, wider(spec)), spec, random_params(spec), symmetry="permutation")
    for symmetry, name in (("sign", "tanh"), ("scale", "relu"), ("full", "sine")):
        spec, params = SPECS[name], random_params(SPECS[name])
        with pytest.raises(AssertionError, match="not equivariant"):
            assert_equivariant(editing(metanet, spec), spec, params, symmetry=symmetry)
        with pytest.raises(AssertionError, match="not invariant"):
            assert_invariant(reading(reader, spec), spec, params, symmetry=symmetry)


def test_kernels_as_channels():
    metanet = perturbed(DWS(DWSConfig(**SMALL, channels=4)))
    assert max(errors_with_channels(metanet, SPECS["silu"], 4, "permutation")) < 1e-10
    spec = CNNS["mixed"]
    options = {"inputs": spec.widths[0], "outputs": 4, "depth": spec.depth, "channels": spec.channels, "width": 4}
    reader = perturbed(DWS(DWSConfig(**options, embedding=5)))
    assert_invariant(reading(reader, spec), spec, random_params(spec, count=2), symmetry="permutation")


@pytest.mark.parametrize("pooling", ["mean", "max"])
@pytest.mark.parametrize("size", [1e-2, 1.0, 1e2])
def test_sizes_at_the_start(pooling, size):
    spec = NetworkSpec.siren((2, 32, 32, 1))
    params = {k: size * t for k, t in random_params(spec, count=3, dtype=torch.float32).items()}
    for key, delta in propose_delta(DWS(DWSConfig(pooling=pooling)), spec, params).items():
        ratio = float((delta.square().mean() / params[key].square().mean()).sqrt())
        assert 3e-4 < ratio < 0.1, (key, ratio)
    vectors = reading(DWS(DWSConfig(pooling=pooling, embedding=16)), spec)(params)
    assert vectors.shape == (3, 16) and 0.05 < float(vectors.std()) < 5


def test_config_round_trip_and_refusals():
    config = DWSConfig(pooling="max", depth=4, seed=2)
    assert DWSConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    for spoil, message in (
        ({"pooling": "sum"}, "pooling 'sum' is unknown; expected one of mean, max"),
        ({"depth": 0}, "expected a positive depth"),
    ):
        with pytest.raises(SpecError, match=message):
            DWSConfig.from_dict({**config.to_dict(), **spoil})
    spec = NetworkSpec.siren((2, 4, 3))
    with pytest.raises(SpecError, match="2 layers, 2 inputs and 3 outputs; expected 3 layers"):
        propose_delta(DWS(DWSConfig(**SMALL)), spec, random_params(spec, dtype=torch.float32))
