"""Neural graphs and layouts: lossless, both layouts do what a loop over edges does, fused products match plain ones."""

import math

import pytest
import torch

from tests.networks import SPECS, generator, random_params
from tests.rounding import assert_agree
from weightedit.errors import ParamsError, SpecError
from weightedit.graph.neural_graph import DenseLayout, Layout, NeuralGraph
from weightedit.graph.ragged import RaggedLayout, ragged_graph
from weightedit.network.features import DELTA, GRADIENT, PARAMETER
from weightedit.network.layer import ACTIVATION_NAMES
from weightedit.network.spec import SYMMETRIES, NetworkSpec

SPEC = SPECS["mixed"]
NODES, EDGES = sum(SPEC.widths), sum(layer.fan_in * layer.fan_out for layer in SPEC.layers)
PRODUCTS = ("products", "add_ends", "collect_at_target", "collect", "sums")


def _random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed))


def _edges(spec):
    """(source, target, layer) of every edge in the stated order: by layer, target-major."""
    starts = [sum(spec.widths[:level]) for level in range(len(spec.widths))]
    return [
        (starts[level] + j, starts[level + 1] + i, level)
        for level, layer in enumerate(spec.layers)
        for i in range(layer.fan_out)
        for j in range(layer.fan_in)
    ]


def _level_of_node(spec):
    return [level for level, width in enumerate(spec.widths) for _ in range(width)]


def _largest(values, places):
    found = torch.full((NODES, values.shape[1]), -math.inf, dtype=values.dtype)
    for value, place in zip(values, places, strict=True):
        found[place] = torch.maximum(found[place], value)
    return found


def _mean_over(values, places):
    return torch.stack([values[[i for i, p in enumerate(places) if p == place]].mean(0) for place in places])


@pytest.mark.parametrize("count", [None, 3])
@pytest.mark.parametrize("name", SPECS)
def test_params_and_features_come_back_exactly(name, count):
    spec = SPECS[name]
    params, gradients = random_params(spec, count=count), random_params(spec, count=count, seed=1)
    graph = NeuralGraph.from_params(spec, params, [(GRADIENT, gradients)])
    assert graph.types == (PARAMETER, GRADIENT)
    for channel, values in enumerate((params, gradients)):
        again = graph.to_params(channel)
        assert all(torch.equal(again[key], values[key]) for key in values)
    (features,) = graph.to_features()
    twice = NeuralGraph.from_features(spec, features)
    assert torch.equal(twice.nodes, graph.nodes) and torch.equal(twice.edges, graph.edges)


def test_nodes_and_edges_stand_where_the_docstring_says():
    params = random_params(SPEC)
    graph = NeuralGraph.from_params(SPEC, params)
    starts = [sum(SPEC.widths[:level]) for level in range(len(SPEC.widths))]
    for (source, target, level), value in zip(_edges(SPEC), graph.edges[:, 0], strict=True):
        assert value == params[f"layers.{level}.weight"][target - starts[level + 1], source - starts[level]]
    assert torch.equal(graph.nodes[:2, 0], torch.zeros(2, dtype=torch.float64))
    assert torch.equal(graph.nodes[2:, 0], torch.cat([params[f"layers.{i}.bias"] for i in range(SPEC.depth)]))


def test_unstack_and_with_features():
    stack = random_params(SPEC, count=3)
    graphs = NeuralGraph.from_params(SPEC, stack).unstack()
    for i, graph in enumerate(graphs):
        assert all(torch.equal(value, stack[key][i]) for key, value in graph.to_params().items())
    other = graphs[0].with_features(graphs[1].nodes, graphs[1].edges, (DELTA,))
    assert other.types == (DELTA,) and other.layout is graphs[0].layout
    with pytest.raises(ParamsError, match="unstack for a graph that is not a stack"):
        graphs[0].unstack()


@pytest.fixture(params=["dense", "stacked", "ragged"])
def views(request):
    """A layout and what lifts one network's tensor to it, and its results back to that network (the second of two)."""
    if request.param == "dense":
        return DenseLayout(SPEC), lambda x: x, lambda x: x
    if request.param == "stacked":
        return DenseLayout(SPEC), lambda x: torch.stack([2 * x, x]), lambda x: x[1]
    layout = RaggedLayout([SPECS["relu"], SPEC, SPECS["sine"]])
    before = {NODES: sum(SPECS["relu"].widths), EDGES: 42}
    after = {NODES: sum(SPECS["sine"].widths), EDGES: 42}

    def lift(x):
        return torch.cat([_random(before[len(x)], x.shape[1], seed=3), x, _random(after[len(x)], x.shape[1], seed=4)])

    def back(x):
        length = len(x) - sum(before[NODES] if len(x) < 100 else before[EDGES] for _ in range(2))
        start = before[length]
        return x[start : start + length]

    return layout, lift, back


def test_every_operation_is_the_loop_over_edges(views):
    layout, lift, back = views
    assert NODES == 27 and EDGES == 14 + 35 + 30 + 24 + 12
    pairs = _edges(SPEC)
    source, target = [s for s, _, _ in pairs], [t for _, t, _ in pairs]
    a, b, e = _random(NODES, 3, seed=5), _random(NODES, 3, seed=6), _random(EDGES, 3, seed=7)
    at_source, at_target = torch.zeros(NODES, 3).double(), torch.zeros(NODES, 3).double()
    for k, (s, t, _) in enumerate(pairs):
        at_source[s] += e[k]
        at_target[t] += e[k]
    expected = {
        "to_source": (a[source], (a,)),
        "to_target": (a[target], (a,)),
        "sum_at_source": (at_source, (e,)),
        "sum_at_target": (at_target, (e,)),
        "max_at_source": (_largest(e, source), (e,)),
        "max_at_target": (_largest(e, target), (e,)),
        "add_ends": (e + a[target] + b[source], (e, a, b)),
        "outer": ((a[target] * b[source]).sum(1, keepdim=True), (a, b)),
        "layer_mean_edges": (_mean_over(e, [level for _, _, level in pairs]), (e,)),
        "layer_mean_nodes": (_mean_over(a, _level_of_node(SPEC)), (a,)),
    }
    for name, (value, arguments) in expected.items():
        got = back(getattr(layout, name)(*map(lift, arguments)))
        if name.startswith("max"):  # exact, and -inf where no edge arrives
            assert torch.equal(got, value), name
        else:
            assert_agree(got, value, name=name)
    mix = _random(4, 3, seed=8)
    got = back(layout.outer(lift(a), lift(b), mix))
    assert_agree(got, (a[target] * b[source]) @ mix.T)
    for count in (1, 2):
        got = layout.products([lift(a), lift(b)][:count], [lift(b), lift(a)][:count])
        assert len(got) == count
        for one, (x, y) in zip(got, ((a, b), (b, a)), strict=False):
            assert_agree(back(one), x[target] * y[source])
    weighted = torch.zeros_like(at_target), torch.zeros_like(at_source)
    for k, (s, t, _) in enumerate(pairs):
        weighted[0][t] += e[k] * a[s]
        weighted[1][s] += e[k] * b[t]
    assert_agree(back(layout.collect_at_target(lift(e), lift(a))), weighted[0])
    for got, end in zip(layout.collect(lift(e), lift(a), lift(b)), weighted, strict=True):
        assert_agree(back(got), end)
    for got, end in zip(layout.sums(lift(e)), (at_target, at_source), strict=True):
        assert_agree(back(got), end)


@pytest.mark.parametrize("name", ["max_at_target", "max_at_source"])
def test_the_gradient_of_a_maximum_is_shared_among_ties_on_both_layouts(name):
    spec = SPECS["tanh"]
    edges = torch.randint(-1, 2, (42, 3), generator=generator(1)).double()
    weights, gradients = _random(14, 3, seed=2), []
    for layout in (DenseLayout(spec), RaggedLayout([spec])):
        leaf = edges.clone().requires_grad_()
        found = getattr(layout, name)(leaf)
        there = found.isfinite()
        gradients.append(torch.autograd.grad((found[there] * weights[there]).sum(), leaf)[0])
    assert int(there[:, 0].sum()) == 14 - spec.widths[0 if name == "max_at_target" else -1]
    assert_agree(gradients[0], gradients[1])
    assert_agree(gradients[0].sum(0), (weights * there).sum(0))


def test_means_and_ends_of_networks():
    nodes, specs = _random(3, NODES, 4, seed=5), [SPECS["relu"], SPEC, SPECS["sine"]]
    among = torch.tensor([0.0 < level < SPEC.depth for level in _level_of_node(SPEC)]).double().unsqueeze(1)
    dense, rows = DenseLayout(SPEC), among.squeeze(1).bool()
    assert_agree(dense.network_mean(nodes), nodes.mean(1))
    assert_agree(dense.network_sum(nodes), nodes.sum(1))
    assert_agree(dense.network_mean(nodes, among), nodes[:, rows].mean(1))
    assert not dense.network_mean(nodes, 0 * among).any()
    assert torch.equal(dense.network_mean(nodes[1]), dense.network_mean(nodes)[1])
    assert torch.equal(dense.ends(nodes)[0], nodes[:, :2]) and torch.equal(dense.ends(nodes)[1], nodes[:, -3:])
    ragged, few = RaggedLayout(specs), sum(SPECS["relu"].widths)
    flat = torch.cat([nodes[0, :few], nodes[1], nodes[2, :few]])
    chosen = torch.cat([among.new_zeros(few, 1), among, among.new_ones(few, 1)])
    means, some = ragged.network_mean(flat), ragged.network_mean(flat, chosen)
    assert_agree(means, torch.stack([nodes[0, :few].mean(0), nodes[1].mean(0), nodes[2, :few].mean(0)]))
    assert_agree(some, torch.stack([0 * means[0], nodes[1, rows].mean(0), means[2]]))
    assert torch.equal(ragged.ends(flat)[0], torch.stack([nodes[0, :2], nodes[1, :2], nodes[2, :2]]))
    assert torch.equal(ragged.ends(flat)[1][1], nodes[1, -3:])
    odd = RaggedLayout([SPEC, NetworkSpec.siren((1, 4, 3))])
    with pytest.raises(SpecError, match=r"networks with \[1, 2\] inputs and \[3\] outputs in one batch"):
        odd.ends(_random(NODES + 8, 1))


def test_levels_join_again_and_transmit_multiplies(views):
    layout, lift, back = views
    nodes, edges = lift(_random(NODES, 3)), lift(_random(EDGES, 1, seed=1))
    parts = layout.by_level(nodes)
    assert all(torch.equal(part, layout.at_level(level, nodes)) for level, part in enumerate(parts))
    assert torch.equal(layout.join_levels(parts), nodes)
    weighted = layout.collect_at_target(edges.expand(*edges.shape[:-1], 3).contiguous(), nodes)
    for level in range(1, layout.levels):
        got = layout.transmit(level, edges, parts[level - 1])
        assert_agree(got, layout.at_level(level, weighted))


@pytest.mark.parametrize("symmetry", SYMMETRIES)
def test_node_constants_agree(views, symmetry):
    layout, _, back = views
    like = torch.zeros(1, dtype=torch.float64)
    constants = layout.constants(symmetry, like)
    assert layout.constants(symmetry, like) is constants
    groups = [None, *SPEC.neuron_groups(symmetry), None]
    for name in ("scale", "flip", "shift"):
        expected = [
            float(bool(g and getattr(g, name))) for g, w in zip(groups, SPEC.widths, strict=True) for _ in range(w)
        ]
        got = getattr(constants, name)
        got = got if isinstance(layout, DenseLayout) else back(got)
        assert got[:, 0].tolist() == expected and got.dtype == torch.float64
    level = _level_of_node(SPEC)
    widths = SPEC.widths
    expected = {
        "level": level,
        "height": [SPEC.depth - x for x in level],
        "position": [i for width in widths for i in range(width)],
        "in_degree": [0 if x == 0 else widths[x - 1] for x in level],
        "out_degree": [0 if x == SPEC.depth else widths[x + 1] for x in level],
        "activation": [0 if x == 0 else 1 + ACTIVATION_NAMES.index(SPEC.layers[x - 1].activation.name) for x in level],
    }
    for name, values in expected.items():
        got = getattr(constants, name)
        got = got if isinstance(layout, DenseLayout) else back(got)
        assert got.flatten().tolist() == values, name


@pytest.mark.parametrize("name", ["mixed", "cnn"])
def test_a_layout_serves_both_precisions_and_all_symmetries(name):
    """In any order: what it keeps for one is not handed out for another."""
    spec = SPECS[name] if name in SPECS else NetworkSpec.cnn((1, 4, 3, 5), SPECS["relu"].layers[0].activation)
    for dtypes in ((torch.float32, torch.float64), (torch.float64, torch.float32)):
        layout = DenseLayout(spec)
        for dtype in (*dtypes, *dtypes):
            like = torch.zeros(1, dtype=dtype)
            positions = layout.kernel_positions(like)
            assert positions.dtype == dtype and torch.equal(positions, DenseLayout(spec).kernel_positions(like))
            for symmetry in SYMMETRIES:
                found, expected = (each.constants(symmetry, like) for each in (layout, DenseLayout(spec)))
                for field in ("scale", "flip", "shift", "in_degree", "out_degree"):
                    value = getattr(found, field)
                    assert value.dtype == dtype and torch.equal(value, getattr(expected, field)), field
                assert torch.equal(found.activation, expected.activation) and not found.level.is_floating_point()


def _arguments(name, stack=()):
    edges, ends = _random(*stack, EDGES, 2), [_random(*stack, NODES, 2, seed=seed) for seed in range(1, 5)]
    if name == "products":
        return ends
    return [edges, *ends[: {"add_ends": 2, "collect": 2, "collect_at_target": 1}.get(name, 0)]]


def _called(kind, name, layout, *tensors):
    """An operation of `layout` as the class `kind` has it; results side by side."""
    found = getattr(kind, name)(layout, *((tensors[:2], tensors[2:]) if name == "products" else tensors))
    return found if isinstance(found, torch.Tensor) else torch.cat(tuple(found), -1)


@pytest.mark.parametrize("stack", [(), (2,)])
@pytest.mark.parametrize("name", PRODUCTS)
def test_products_by_blocks_agree_with_the_plain_definitions(name, stack):
    layout, results = DenseLayout(SPEC), []
    for kind in (DenseLayout, Layout):
        leaves = [tensor.clone().requires_grad_() for tensor in _arguments(name, stack)]
        value = _called(kind, name, layout, *leaves)
        gradients = torch.autograd.grad((value * _random(*value.shape, seed=8)).sum(), leaves)
        results.append([value.detach(), *gradients])
    assert_agree(*results)


@pytest.mark.parametrize("name", [*PRODUCTS, "sum_at_target", "sum_at_source"])
def test_products_have_two_derivatives(name):
    layout = DenseLayout(SPECS["tanh"])
    leaves = [tensor[: 42 if len(tensor) == EDGES else 14].clone().requires_grad_() for tensor in _arguments(name)]
    assert torch.autograd.gradgradcheck(lambda *given: _called(DenseLayout, name, layout, *given), leaves)


def test_constants_made_in_inference_serve_a_training(views):
    layout, lift, _ = views
    with torch.inference_mode():
        layout.constants("full", torch.zeros(1, dtype=torch.float64))
        layout.kernel_positions(torch.zeros(1, dtype=torch.float64))
    nodes = lift(_random(NODES, 1)).requires_grad_()
    (nodes * layout.constants("full", torch.zeros(1, dtype=torch.float64)).in_degree).sum().backward()
    edges = lift(_random(EDGES, 1)).requires_grad_()
    (edges * layout.kernel_positions(torch.zeros(1, dtype=torch.float64))).sum().backward()
    assert bool(nodes.grad.any()) and bool(edges.grad.any())


def test_a_ragged_graph_holds_its_networks():
    networks = [(SPECS[name], random_params(SPECS[name], seed=i)) for i, name in enumerate(("relu", "mixed", "sine"))]
    graph = ragged_graph([NeuralGraph.from_params(*network) for network in networks])
    for found, (_, params) in zip(graph.to_params(), networks, strict=True):
        assert all(torch.equal(found[key], params[key]) for key in params)
