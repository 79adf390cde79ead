"""Graphs of networks that are no chains: lossless both ways, and each network of a batch as if it were alone."""

import pytest
import torch
from torch_geometric.loader import DataLoader

from tests.networks import CNNS, SPECS, generator, random_params, relative
from tests.residual_networks import RESIDUAL, Small, trained
from weightedit.delta import propose_delta
from weightedit.errors import ParamsError, SpecError, TypeMismatchError
from weightedit.graph.layout import GraphLayout, _layout, graph_from_params
from weightedit.graph.neural_graph import NeuralGraph
from weightedit.graph.ragged import from_pyg, ragged_from_params, to_pyg
from weightedit.metanet.registry import make_metanet
from weightedit.network.features import GRADIENT, PARAMETER
from weightedit.network.graph_spec import GraphSpec
from weightedit.network.link import LINK_KINDS


def network(name, seed=0):
    net, params = trained(RESIDUAL[name], seed)
    return GraphSpec.from_module(net), params


@pytest.mark.parametrize("name", RESIDUAL)
def test_parameters_survive_the_graph_exactly(name):
    spec, params = network(name)
    gradients = {k: torch.randn(p.shape, dtype=p.dtype, generator=generator(3)) for k, p in params.items()}
    graph = graph_from_params([(spec, params)] * 2, [[(GRADIENT, gradients)]] * 2)
    assert graph.nodes.shape == (2 * sum(spec.widths), 2 * spec.channels)
    assert graph.types == (PARAMETER,) * spec.channels + (GRADIENT,) * spec.channels
    for quantity, expected in enumerate((params, gradients)):
        for found in graph.to_params(quantity):
            assert list(found) == list(spec.param_shapes())
            assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_fixed_edges_carry_their_number_and_no_gradient():
    spec, params = network("pre-activation")
    graph = graph_from_params([(spec, params)], [[(GRADIENT, params)]])
    skips = graph.layout.link_kind == LINK_KINDS.index("skip")
    middle = graph.edges[skips][:, 4]
    assert sorted(set(middle.tolist())) == [0.5, 1.0] and int(skips.sum()) == 4 * sum(
        link.kind == "skip" for link in spec.links
    )
    assert not graph.edges[skips][:, [0, 1, 2, 3, 5, 6, 7, 8]].any() and not graph.edges[skips][:, 9:].any()


def test_operations_agree_with_a_dense_incidence():
    (one, params), (two, others) = network("pre-activation"), network("resnet")
    layout = graph_from_params([(one, params), (two, others)]).layout
    n, e = sum(layout.sizes), layout.edge_count
    source, target = (torch.zeros(e, n, dtype=torch.float64) for _ in range(2))
    source[torch.arange(e), layout.edge_index[0]] = 1
    target[torch.arange(e), layout.edge_index[1]] = 1
    nodes, edges = (torch.randn(k, 3, dtype=torch.float64, generator=generator(k)) for k in (n, e))
    pairs = [
        (layout.to_source(nodes), source @ nodes),
        (layout.to_target(nodes), target @ nodes),
        (layout.sum_at_source(edges), source.T @ edges),
        (layout.sum_at_target(edges), target.T @ edges),
        (layout.network_mean(nodes)[1], nodes[layout.sizes[0] :].mean(0)),
        (layout.network_sum(nodes)[1], nodes[layout.sizes[0] :].sum(0)),
        (layout.ends(nodes)[0][1], nodes[layout.sizes[0]].unsqueeze(0)),
        (layout.ends(nodes)[1][0], nodes[layout.sizes[0] - 3 : layout.sizes[0]]),
    ]
    for found, expected in pairs:
        torch.testing.assert_close(found, expected)
    assert torch.equal(layout.constants("permutation", nodes).in_degree, target.sum(0).unsqueeze(1))


def test_padding_is_what_no_parameter_stands_in():
    """Of chains on either layout, and of a network with edges of a fixed weight."""
    (spec, params), chain = network("small"), CNNS["mixed"]
    ones = {name: torch.ones_like(tensor) for name, tensor in params.items()}
    for graph in (
        graph_from_params([(spec, ones), (spec, ones)]),
        NeuralGraph.from_params(chain, {k: torch.ones(shape) for k, shape in chain.param_shapes().items()}),
        graph_from_params([(GraphSpec.of(chain), {k: torch.ones(s) for k, s in chain.param_shapes().items()})]),
    ):
        full = graph.with_features(torch.ones_like(graph.nodes), torch.ones_like(graph.edges), graph.types)
        left, kind = full.without_padding(), graph.layout.link_kind
        free = torch.zeros(len(graph.edges), 1, dtype=torch.bool) if kind is None else (kind == 1).unsqueeze(1)
        assert torch.equal(left.edges, torch.where(free, 0.0, graph.edges))
        assert bool(left.nodes[..., 0].all()) and not left.nodes[..., 1:].any()


def test_sizes_are_taken_link_by_link():
    spec, params = network("small")
    graph = graph_from_params([(spec, params)] * 2)
    means = graph.layout.layer_mean_edges(graph.edges.square().sum(-1, keepdim=True))
    kinds = graph.layout.link_kind
    assert torch.equal(means[kinds == 1], torch.ones(8, 1, dtype=torch.float64))  # the skip edges of both
    torch.testing.assert_close(means[kinds == 2], params["norm.weight"].square().mean().expand(8, 1))
    biases = graph.layout.layer_mean_nodes(graph.nodes)[:, 0]
    torch.testing.assert_close(biases[5:9], params["norm.bias"].mean().expand(4))


def test_levels_are_longest_paths():
    spec, params = network("resnet")
    constants = graph_from_params([(spec, params)]).layout.constants("permutation", params["stem.weight"])
    names = [level.name for level in spec.levels for _ in range(level.width)]
    of = {name: (int(low), int(high)) for name, low, high in zip(names, constants.level, constants.height, strict=True)}
    assert of["inputs"] == (0, 20) and of["head"] == (20, 0)
    assert of["blocks.2.conv1"][0] == of["blocks.2.down.0"][0]  # both read the block's input
    assert of["blocks.2.bn2"][1] == of["blocks.2.down.0"][1] == 6  # both are one link below the sum


@pytest.mark.parametrize("chain", [SPECS["mixed"], CNNS["mixed"]])
def test_a_chain_has_the_same_nodes_and_edges(chain):
    params = random_params(chain)
    dense, graph = NeuralGraph.from_params(chain, params), graph_from_params([(GraphSpec.of(chain), params)])
    assert torch.equal(graph.nodes, dense.nodes) and torch.equal(graph.edges, dense.edges)
    ours, theirs = (g.layout.constants("permutation", dense.nodes) for g in (graph, dense))
    for key, value in vars(theirs).items():
        assert torch.equal(torch.as_tensor(getattr(ours, key)), torch.as_tensor(value)), key


def test_pyg_round_trip_with_a_chain_in_the_batch():
    spec, params = network("small")
    chain = CNNS["relu"]
    chain = GraphSpec.of(chain)
    other = random_params(CNNS["relu"])
    data = to_pyg(spec, params)
    data.validate(raise_on_error=True)
    assert data.x.shape == (sum(spec.widths), 9) and data.link_kind.shape == (data.num_edges,)
    batch = next(iter(DataLoader([data, to_pyg(chain, other)], batch_size=2)))
    graph = from_pyg(batch)
    assert isinstance(graph.layout, GraphLayout) and graph.layout.specs == (spec, chain)
    for found, expected in zip(graph.to_params(), (params, other), strict=True):
        assert all(torch.equal(found[key], expected[key]) for key in expected)
    data.edge_attr = data.edge_attr[1:]
    with pytest.raises(ParamsError, match="expected .* nodes and .* edges as to_pyg made them"):
        from_pyg(data)


def test_one_graph_spec_puts_chains_on_its_layout():
    spec, params = network("small")
    other = random_params(CNNS["relu"])
    graph = ragged_from_params([(CNNS["relu"], other), (spec, params)])
    assert graph.layout.specs == (GraphSpec.of(CNNS["relu"]), spec)
    assert relative(graph.to_params()[0]["layers.1.weight"], other["layers.1.weight"]) == 0


def test_what_is_kept_serves_a_training_wherever_it_was_made():
    spec, params = network("pre-activation")
    _layout.cache_clear()
    metanet = make_metanet("gauge-gmn-b", [spec], node_width=8, edge_width=8, layers=1).double()
    with torch.inference_mode():
        propose_delta(metanet, spec, params)
    sum(t.square().sum() for t in propose_delta(metanet, spec, params).values()).backward()
    assert all(p.grad is not None for p in metanet.parameters())


def test_what_needs_a_chain_is_refused():
    graph = graph_from_params([network("small")])
    layout, nodes, edges = graph.layout, graph.nodes, graph.edges
    calls = [
        lambda: layout.transmit(1, edges, nodes),
        lambda: layout.transmit_back(1, edges, nodes),
        lambda: layout.per_network(lambda spec: nodes),
        lambda: layout.networks(nodes, edges),
        graph.to_features,
    ]
    for call in calls:
        with pytest.raises(SpecError, match=r"networks that are no chains .* take gauge-gmn, ng-gnn or ng"):
            call()


def test_what_cannot_share_a_graph_is_refused():
    spec, params = network("small")
    with pytest.raises(TypeMismatchError, match="graph_from_params: got channels of type"):
        graph_from_params([(spec, params)] * 2, [[(GRADIENT, params)], []])
    with pytest.raises(ParamsError, match="missing tensors: norm.bias"):
        graph_from_params([(spec, {k: p for k, p in params.items() if k != "norm.bias"})])
    with pytest.raises(ParamsError, match="no network; expected at least one pair"):
        graph_from_params([])
    with pytest.raises(ParamsError, match="no network; expected at least one spec for a GraphLayout"):
        GraphLayout([])
    other = GraphSpec.from_module(Small(classes=3))
    layout = GraphLayout([spec, other])
    with pytest.raises(SpecError, match=r"networks with \[1\] inputs and \[2, 3\] outputs in one batch"):
        layout.ends(torch.zeros(sum(layout.sizes), 1))
