"""GaugeGMN against its MessagePassing twin: the same numbers from the same weights, on both layouts."""

import pytest
import torch
from torch_geometric.data import Batch

from tests.message_passing_twin import GaugeGMNTwin, read_structure
from tests.networks import ACTIVATIONS, generator, random_params
from weightedit.graph.neural_graph import NeuralGraph
from weightedit.graph.ragged import from_pyg, to_pyg
from weightedit.metanet.gauge_gmn.config import GaugeGMNConfig
from weightedit.metanet.gauge_gmn.network import GaugeGMN
from weightedit.network.features import GRADIENT, SQUARED_GRADIENT
from weightedit.network.spec import SYMMETRIES, NetworkSpec

NETWORKS = [
    NetworkSpec.siren((2, 6, 5, 1)),
    NetworkSpec.mlp((2, 4, 3, 5, 1), [ACTIVATIONS[name] for name in ("relu", "tanh", "silu")]),
    NetworkSpec.mlp((2, 3, 7, 1), [ACTIVATIONS["identity"], ACTIVATIONS["sine"]]),
]


def _metanet(seed=0, **options):
    metanet = GaugeGMN(GaugeGMNConfig(node_width=6, edge_width=5, layers=2, levels=3, **options)).double()
    source = generator(seed)
    with torch.no_grad():
        for parameter in metanet.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=source, dtype=torch.float64))
    return metanet


def _agree(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10 * float(expected.detach().abs().max()))


@pytest.mark.parametrize("symmetry", SYMMETRIES)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("probes", "forecast"), [(0, 0), (4, 0), (4, 5)])
def test_a_mixed_batch(symmetry, bidirectional, probes, forecast):
    metanet = _metanet(symmetry=symmetry, bidirectional=bidirectional, probes=probes, forecast=forecast)
    batch = Batch.from_data_list([to_pyg(spec, random_params(spec, seed=i)) for i, spec in enumerate(NETWORKS)])
    graph = metanet(from_pyg(batch))
    weights, biases = GaugeGMNTwin(metanet)(batch, read_structure(batch, symmetry))
    _agree(weights, graph.edges)
    _agree(biases, graph.nodes)


def test_a_stack_on_the_dense_layout_and_its_gradients():
    metanet, spec = _metanet(probes=3, forecast=4), NETWORKS[0]
    stack = random_params(spec, count=3)
    singles = [{name: tensor[i] for name, tensor in stack.items()} for i in range(3)]
    batch = Batch.from_data_list([to_pyg(spec, params) for params in singles])
    graph, twin = metanet(NeuralGraph.from_params(spec, stack)), GaugeGMNTwin(metanet)
    weights, biases = twin(batch, read_structure(batch, "full"))
    _agree(weights.view_as(graph.edges), graph.edges)
    _agree(biases.view_as(graph.nodes), graph.nodes)
    shared = [metanet.lift_edges.weight, metanet.probes, metanet.codes.from_input, metanet.edge_updates[0].gate.weight]
    dense = torch.autograd.grad((graph.edges.square().sum() + graph.nodes.square().sum()), shared)
    slow = torch.autograd.grad(weights.square().sum() + biases.square().sum(), shared)
    for one, other in zip(dense, slow, strict=True):
        _agree(one, other)


def test_extra_channels_odd_and_even():
    metanet, spec = _metanet(probes=2, extra_types=((-1, True), (-2, False))), NETWORKS[1]
    params, gradients = random_params(spec), random_params(spec, seed=1)
    squared = {name: tensor.square() for name, tensor in random_params(spec, seed=2).items()}
    graph = NeuralGraph.from_params(spec, params, [(GRADIENT, gradients), (SQUARED_GRADIENT, squared)])
    expected = metanet(graph)
    data = to_pyg(spec, params)
    data.x, data.edge_attr = graph.nodes, graph.edges
    weights, biases = GaugeGMNTwin(metanet)(data, read_structure(data, "full"))
    _agree(weights, expected.edges)
    _agree(biases, expected.nodes)
