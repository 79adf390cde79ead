"""Mixed architectures: lossless through PyTorch Geometric, and each network of a batch treated as if it were alone."""

import pytest
import torch
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader

from tests.networks import ACTIVATIONS, SPECS, random_params, relative
from weightedit.delta import propose_delta, propose_deltas
from weightedit.errors import ParamsError, TypeMismatchError
from weightedit.graph.neural_graph import NeuralGraph
from weightedit.graph.ragged import RaggedLayout, from_pyg, ragged_from_params, ragged_graph, to_pyg
from weightedit.metanet.gauge_gmn.config import GaugeGMNConfig
from weightedit.metanet.gauge_gmn.network import GaugeGMN
from weightedit.network.features import GRADIENT
from weightedit.network.spec import NetworkSpec

MIXED = [
    NetworkSpec.mlp((2, 3, 1), ACTIVATIONS["relu"]),
    NetworkSpec.siren((2, 6, 5, 4, 1)),
    NetworkSpec.mlp((2, 4, 5, 1), [ACTIVATIONS["tanh"], ACTIVATIONS["silu"]]),
    NetworkSpec.mlp((2, 1), []),
    NetworkSpec.siren((2, 6, 5, 4, 1), omega=7.0),
    NetworkSpec.mlp((2, 8, 3, 1), [ACTIVATIONS["identity"], ACTIVATIONS["leaky_relu"]]),
]


def _networks(dtype=torch.float64):
    return [(spec, random_params(spec, seed=i, dtype=dtype)) for i, spec in enumerate(MIXED)]


@pytest.mark.parametrize("name", SPECS)
def test_pyg_round_trip_is_exact_and_keeps_zero_weights(name):
    spec = SPECS[name]
    params = random_params(spec)
    params["layers.0.weight"][1] = 0
    params["layers.1.weight"][:] = 0
    data = to_pyg(spec, params)
    data.validate(raise_on_error=True)
    assert data.edge_index.shape == (2, sum(layer.fan_in * layer.fan_out for layer in spec.layers))
    assert data.num_nodes == sum(spec.widths) and not data.has_self_loops()
    graph = from_pyg(data)
    assert graph.layout.specs == (spec,)
    (again,) = graph.to_params()
    assert all(torch.equal(again[key], params[key]) for key in params)


def test_edges_of_a_data_carry_the_weights_between_their_ends():
    spec, params = MIXED[1], random_params(MIXED[1])
    data = to_pyg(spec, params)
    dense = torch.zeros(data.num_nodes, data.num_nodes, dtype=torch.float64)
    dense[data.edge_index[1], data.edge_index[0]] = data.edge_attr[:, 0]
    start = 0
    for level, layer in enumerate(spec.layers):
        above = start + layer.fan_in
        assert torch.equal(dense[above : above + layer.fan_out, start:above], params[f"layers.{level}.weight"])
        start = above


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("probes", [0, 4])
def test_a_loader_batch_of_mixed_networks_gives_each_its_own_delta(bidirectional, probes):
    config = GaugeGMNConfig(node_width=8, edge_width=6, layers=2, probes=probes, bidirectional=bidirectional, levels=3)
    metanet, networks = GaugeGMN(config).double(), _networks()
    alone = [propose_delta(metanet, spec, params) for spec, params in networks]
    loader = DataLoader([to_pyg(spec, params) for spec, params in networks], batch_size=4)
    found = [delta for batch in loader for delta in metanet(from_pyg(batch)).to_params()]
    for together in (found, propose_deltas(metanet, networks)):
        assert len(together) == len(alone)
        for delta, expected in zip(together, alone, strict=True):
            assert list(delta) == list(expected)
            for key in expected:
                assert delta[key].shape == expected[key].shape and relative(delta[key], expected[key]) < 1e-11


def test_one_network_in_a_batch_and_repeated_networks():
    metanet, (spec, params) = (
        GaugeGMN(GaugeGMNConfig(node_width=4, edge_width=4, layers=1, probes=2)).double(),
        (
            MIXED[1],
            random_params(MIXED[1]),
        ),
    )
    expected = propose_delta(metanet, spec, params)
    for delta in propose_deltas(metanet, [(spec, params)] * 3):
        assert all(relative(delta[key], expected[key]) < 1e-11 for key in expected)


def test_what_is_not_a_network_is_refused():
    spec, stack = SPECS["relu"], random_params(SPECS["relu"], count=2)
    single = {key: tensor[0] for key, tensor in stack.items()}
    with pytest.raises(ParamsError, match="stacked networks; expected one network per Data"):
        to_pyg(spec, stack)
    with pytest.raises(ParamsError, match="missing tensors"):
        to_pyg(spec, {})
    with pytest.raises(ParamsError, match=r"nodes \(2, 14, 1\); expected single dense networks.*unstack"):
        ragged_from_params([(spec, stack)])
    with pytest.raises(ParamsError, match="no network"):
        RaggedLayout([])
    with pytest.raises(ParamsError, match="no network"):
        ragged_graph([])
    plain = NeuralGraph.from_params(spec, single)
    with_gradient = NeuralGraph.from_params(spec, single, [(GRADIENT, single)])
    with pytest.raises(TypeMismatchError, match="ragged_graph: got channels of type"):
        ragged_graph([plain, with_gradient])


def test_changed_graphs_are_refused():
    spec = SPECS["relu"]
    data = to_pyg(spec, random_params(spec))
    with pytest.raises(ParamsError, match="a Data without `spec` and `types`"):
        from_pyg(Data(x=data.x, edge_index=data.edge_index, edge_attr=data.edge_attr))
    with pytest.raises(ParamsError, match="a Data without x, edge_attr or edge_index"):
        from_pyg(Data(x=data.x, edge_index=data.edge_index, spec=data.spec, types=data.types))
    dropped, swapped, short, extra = (data.clone() for _ in range(4))
    dropped.edge_index, dropped.edge_attr = data.edge_index[:, 1:], data.edge_attr[1:]
    swapped.edge_index = data.edge_index.flip(1)
    short.edge_attr = data.edge_attr[1:]
    extra.x = torch.cat([data.x, data.x[:1]])
    for changed in (dropped, swapped, short, extra):
        with pytest.raises(ParamsError, match="Do not drop, add or reorder"):
            from_pyg(changed)
    other = data.clone()
    other.types = "[[-1, true, false]]"
    (batch,) = DataLoader([data, other], batch_size=2)
    with pytest.raises(ParamsError, match="different channel types or frames"):
        from_pyg(batch)
