"""Chains with convolutions, read by GaugeGMN: invariant to what activations allow. Edits are in test_cnn_editing.py."""

import pytest
import torch

from tests.networks import CNNS, generator, random_params, relative
from weightedit.graph.neural_graph import NeuralGraph
from weightedit.graph.ragged import ragged_from_params
from weightedit.metanet.gauge_gmn.config import GaugeGMNConfig
from weightedit.metanet.gauge_gmn.network import GaugeGMN
from weightedit.metanet.registry import make_metanet
from weightedit.network.features import GRADIENT, PARAMETER
from weightedit.network.spec import SYMMETRIES
from weightedit.testing import assert_invariant, invariance_error


def _reader(spec, **options):
    small = {"node_width": 16, "edge_width": 8, "layers": 2, "probes": 0, "embedding": 6}
    metanet = make_metanet("gauge-gmn-b", [spec], **small, **options)
    with torch.no_grad():
        for parameter in metanet.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator(1)))
    return metanet.double()


@pytest.mark.parametrize("symmetry", SYMMETRIES)
@pytest.mark.parametrize("name", CNNS)
def test_it_is_invariant_to_what_the_activations_allow(name, symmetry):
    spec = CNNS[name]
    metanet, params = _reader(spec, symmetry=symmetry), random_params(spec, count=2)
    assert_invariant(lambda p: metanet.embed(NeuralGraph.from_params(spec, p)), spec, params, symmetry=symmetry)


@pytest.mark.parametrize(("name", "missed"), [("relu", "scale"), ("tanh", "sign"), ("sine", "full")])
def test_what_it_does_not_declare_fails(name, missed):
    spec = CNNS[name]
    metanet, params = _reader(spec, symmetry="permutation"), random_params(spec, count=2)
    path = lambda p: metanet.embed(NeuralGraph.from_params(spec, p))  # noqa: E731
    assert invariance_error(path, spec, params, symmetry=missed) > 1e-3


def test_every_position_of_every_kernel_counts():
    spec, params = CNNS["relu"], random_params(CNNS["relu"])
    metanet = _reader(spec)
    before = metanet.embed(NeuralGraph.from_params(spec, params))
    for position in range(9):
        changed = {name: tensor.clone() for name, tensor in params.items()}
        changed["layers.1.weight"].flatten(2)[1, 2, position] += 0.5
        assert relative(metanet.embed(NeuralGraph.from_params(spec, changed)), before) > 1e-4


def test_layouts_agree_on_mixed_convolutional_networks():
    specs = [CNNS["relu"], CNNS["tanh"], CNNS["relu"]]
    networks = [(spec, random_params(spec, seed=i)) for i, spec in enumerate(specs)]
    metanet = _reader(specs[0])
    together = metanet.embed(ragged_from_params(networks))
    for row, (spec, params) in zip(together, networks, strict=True):
        torch.testing.assert_close(row, metanet.embed(NeuralGraph.from_params(spec, params)), rtol=1e-10, atol=1e-12)


def test_dead_channels_and_zero_networks_are_finite():
    spec, params = CNNS["relu"], random_params(CNNS["relu"], count=2, dtype=torch.float32)
    params["layers.1.weight"][0, 1], params["layers.1.bias"][0, 1] = 0, 0
    params = {
        name: tensor * torch.tensor([1.0, 0.0]).reshape(2, *[1] * (tensor.dim() - 1)) for name, tensor in params.items()
    }
    metanet = _reader(spec).float()
    found = metanet.embed(NeuralGraph.from_params(spec, params))
    found.square().sum().backward()
    assert bool(found.isfinite().all())
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in metanet.parameters())


def test_extra_quantities_take_as_many_channels():
    metanet = GaugeGMN(GaugeGMNConfig(1, 4, probes=0, embedding=3, layers=1, channels=9, extra_types=((-1, True),)))
    assert metanet.types_in[:9] == (PARAMETER,) * 9 and [t.scale for t in metanet.types_in[9:]] == [-1] * 9
    spec = CNNS["relu"]
    params, gradients = (random_params(spec, seed=i, dtype=torch.float32) for i in (0, 1))
    assert metanet.embed(NeuralGraph.from_params(spec, params, [(GRADIENT, gradients)])).shape == (3,)
