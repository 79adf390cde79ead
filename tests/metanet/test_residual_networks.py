"""Networks with residual additions and normalizations: treated equivariantly, as the wiring says, and not blindly.

The judge of which neurons move together is Wiring, which is tested on the modules' own functions; the graph never sees
it.
"""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.metanet.chain_networks import perturbed
from tests.metanet.neural_graphs_by_hand import LinkedNetwork, lift_links, linked_deltas, linked_vector, pna_layer
from tests.network.test_read_wirings import acted
from tests.networks import CNNS, SPECS, generator, random_params, relative
from tests.residual_networks import RESIDUAL, Small, each_channel, one_group, trained
from weightedit.delta import apply_delta, propose_delta, propose_deltas
from weightedit.errors import ParamsError, SpecError, TypeMismatchError
from weightedit.graph import canonicalization, linked_gauge
from weightedit.graph.layout import GraphLayout, graph_from_params
from weightedit.graph.neural_graph import NeuralGraph
from weightedit.graph.ragged import ragged_from_params
from weightedit.metanet.gauge_gmn.layers import OddLinear, OddPair
from weightedit.metanet.neural_graphs.config import NGGNNConfig
from weightedit.metanet.registry import METANETS, build_metanet, describe_metanet, make_metanet
from weightedit.network.features import DELTA, GRADIENT, INVARIANT
from weightedit.network.graph_spec import GraphSpec
from weightedit.network.layer import NeuronGroup
from weightedit.network.link import LINK_KINDS
from weightedit.network.reading import wiring_of
from weightedit.prediction import WeightSpacePredictor
from weightedit.testing import assert_equivariant, assert_invariant, equivariance_error

NAMES = ("ng-gnn", "ng-t")
GRAPHS = (*NAMES, "gauge-gmn-b")
OTHERS = [name for name in METANETS if name not in (*GRAPHS, "gauge-gmn")]
SMALL = {"node_width": 16, "edge_width": 8, "layers": 2}


def reader(name, spec, **options):
    return perturbed(make_metanet(name, [spec], **SMALL, embedding=6, **options), 0.2)


def editor(name, spec, **options):
    return perturbed(make_metanet(name, [spec], **SMALL, **options), 0.2)


def permutations(net):
    """The wiring of `net` with all factors but permutations left out."""
    wiring = wiring_of(net)
    return replace(wiring, sets=tuple(replace(each, group=NeuronGroup()) for each in wiring.sets))


def embedded(metanet, spec, params):
    return metanet.embed(graph_from_params([(spec, params)]))[0].detach()


@pytest.mark.parametrize("network", RESIDUAL)
@pytest.mark.parametrize("name", NAMES)
def test_equivariant_to_what_the_wiring_lets_move(name, network):
    net, params = trained(RESIDUAL[network])
    spec, wiring = GraphSpec.from_module(net), permutations(net)
    edits, reads = editor(name, spec), reader(name, spec)
    delta = {key: tensor.detach() for key, tensor in propose_delta(edits, spec, params).items()}
    vector = embedded(reads, spec, params)
    assert (
        float(vector.std()) > 1e-3 and relative(embedded(reads, spec, trained(RESIDUAL[network], 1)[1]), vector) > 1e-3
    )
    for seed in range(4):
        moved, expected = acted(wiring, params, seed), acted(wiring, delta, seed)
        assert not all(torch.equal(moved[key], params[key]) for key in params)
        found = propose_delta(edits, spec, moved)
        assert max(relative(found[key], expected[key]) for key in expected) < 1e-9
        assert relative(embedded(reads, spec, moved), vector) < 1e-9


@pytest.mark.parametrize("network", RESIDUAL)
@pytest.mark.parametrize("name", ["gauge-gmn", "gauge-gmn-b"])
def test_gauge_gmn_keeps_the_factors_that_links_allow(name, network):
    """With gradients beside the parameters, which scale the other way, and as a reader."""
    net, params = trained(RESIDUAL[network])
    spec = GraphSpec.from_module(net)
    edits, reads = editor(name, spec, extra_types=((1, True), (0, False))), reader(name, spec)

    def edit(p):
        ones = {key: torch.ones_like(tensor) for key, tensor in p.items()}
        return propose_delta(edits, spec, p, [(DELTA, p), (INVARIANT, ones)])

    if not any(group.shift for group in spec.neuron_groups()):  # else a parameter is no delta
        assert_equivariant(edit, spec, params)
    assert_equivariant(lambda p: propose_delta(editor(name, spec), spec, p), spec, params)
    assert_invariant(lambda p: embedded(reads, spec, p), spec, params)


@pytest.mark.parametrize("symmetry", ["scale", "sign", "permutation"])
def test_gauge_gmn_of_a_part_of_the_group_keeps_that_part(symmetry):
    net, params = trained(RESIDUAL["residual mlp"])
    spec = GraphSpec.from_module(net)
    metanet = editor("gauge-gmn-b", spec, symmetry=symmetry)
    for other in ("scale", "sign", "permutation"):
        errors = equivariance_error(lambda p: propose_delta(metanet, spec, p), spec, params, symmetry=other)
        kept = other in metanet.declared
        assert (max(errors.values()) < 1e-10) if kept else (max(errors.values()) > 1e-4)


def test_gauge_gmn_leaves_dead_neurons_of_a_stream_equivariant_and_finite():
    """A stream whose first level says nothing of a neuron: its branch, what reads it, or nobody does."""
    net, params = trained(RESIDUAL["resnet"])
    spec = GraphSpec.from_module(net)
    metanet = editor("gauge-gmn-b", spec)
    for silent in (("bn.weight", "bn.bias"), ("bn.weight", "bn.bias", "blocks.0.bn2.weight", "blocks.0.bn2.bias")):
        dead = {key: p.clone() for key, p in params.items()}
        for key in silent:
            dead[key][1] = 0.0
        assert_equivariant(lambda p: propose_delta(metanet, spec, p), spec, dead)
    nothing = {key: torch.zeros_like(p).requires_grad_() for key, p in params.items()}
    found = propose_delta(metanet, spec, nothing)
    sum(t.square().sum() for t in found.values()).backward()
    assert all(bool(t.isfinite().all()) for t in (*found.values(), *(p.grad for p in nothing.values())))


def _rolled_skips(monkeypatch):
    """The stream's neurons are added to the wrong ones of the branch."""

    def source(layout):
        index = layout.edge_index[0].clone()
        skips = layout.link_kind == LINK_KINDS.index("skip")
        index[skips] = index[skips].roll(1)
        return index

    monkeypatch.setattr(GraphLayout, "source", property(source))


def _gains_that_scale(monkeypatch):
    """A gain is taken for a weight, which also has the scale of what it reads."""
    monkeypatch.setattr(GraphLayout, "gauge_at_source", GraphLayout.to_source)


def _untied(monkeypatch):
    """Every level has a gauge by itself, but for one factor that it takes from its position."""
    own = linked_gauge.linked_gauge

    def gauge(layout, squares, *others):
        found, anchored = own(layout, squares, *others)
        return found.roll(1, 0), anchored

    monkeypatch.setattr(canonicalization, "linked_gauge", gauge)


def _signs_ignored(monkeypatch):
    """Linear maps of odd channels get a bias, as if no sign acted."""
    for kind in (OddLinear, OddPair):

        def biased(self, x, free, own=kind.forward):
            return own(self, x, torch.ones_like(free))

        monkeypatch.setattr(kind, "forward", biased)


BROKEN = [
    (_rolled_skips, "permutation", "residual mlp"),
    (_rolled_skips, "scale", "small"),
    (_gains_that_scale, "scale", "small"),
    (_untied, "scale", "resnet"),
    (_signs_ignored, "sign", "residual mlp"),
]


@pytest.mark.parametrize(("breaks", "symmetry", "network"), BROKEN)
def test_the_judge_catches_a_gauge_gmn_that_is_broken(breaks, symmetry, network, monkeypatch):
    net, params = trained(RESIDUAL[network])
    spec = GraphSpec.from_module(net)
    metanet = editor("gauge-gmn-b", spec)
    assert_equivariant(lambda p: propose_delta(metanet, spec, p), spec, params, symmetry=symmetry)
    breaks(monkeypatch)
    with pytest.raises(AssertionError, match=f"not equivariant under symmetry '{symmetry}'"):
        assert_equivariant(lambda p: propose_delta(metanet, spec, p), spec, params, symmetry=symmetry)


class Residual(nn.Module):
    """Linear layers with a BatchNorm and a residual addition around the second."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 4, bias=False)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.norm(self.first(x)).relu()
        return self.head((self.second(x) + x).tanh())


LEVELS = [
    (2, None, "identity"), (4, "first.bias", "identity"), (4, "norm.bias", "relu"), (4, None, "tanh"),
    (3, "head.bias", "identity"),
]  # fmt: skip
LINKS = [
    (0, 1, "weight", "first.weight"), (1, 2, "batch_norm", "norm.weight"), (2, 3, "weight", "second.weight"),
    (2, 3, "skip", None), (3, 4, "weight", "head.weight"),
]  # fmt: skip


def test_residual_additions_and_normalizations_are_edges_as_the_paper_says():
    net, params = trained(Residual)
    spec, network = GraphSpec.from_module(net), LinkedNetwork(LEVELS, LINKS, params)
    edits, reads = editor("ng-gnn", spec), reader("ng-gnn", spec)
    found = propose_delta(edits, spec, params)
    v, e = lift_links(edits.input, network)
    for layer in edits.layers:
        v, e = pna_layer(layer, v, e)
    expected = linked_deltas(edits, network, v, e)
    assert set(found) == set(expected) == set(params)
    for name, entries in expected.items():
        assert len(entries) == found[name].numel()
        for place, value in entries.items():
            torch.testing.assert_close(found[name][place], value, rtol=1e-9, atol=1e-12)
    v, e = lift_links(reads.input, network)
    for layer in reads.layers:
        v, e = pna_layer(layer, v, e)
    assert relative(embedded(reads, spec, params), linked_vector(reads, network, v)) < 1e-10


NORMS = {"batch": nn.BatchNorm2d, "group": one_group, "each channel": each_channel}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", GRAPHS)
def test_a_permutation_that_breaks_the_stream_is_seen(name, norm):
    """What may move freely without the skip may not with it: the same parameters, permuted the same way."""
    (net, params), (straight, _) = (trained(lambda skip=skip: Small(skip, NORMS[norm])) for skip in (True, False))
    spec, chain = GraphSpec.from_module(net), GraphSpec.from_module(straight)
    assert len(permutations(net).sets) < len(permutations(straight).sets)
    metanet = reader(name, spec)
    for seed in range(3):
        moved = acted(permutations(straight), params, seed)
        assert relative(embedded(metanet, chain, moved), embedded(metanet, chain, params)) < 1e-9
        assert relative(embedded(metanet, spec, moved), embedded(metanet, spec, params)) > 1e-4


@pytest.mark.parametrize("network", RESIDUAL)
@pytest.mark.parametrize("name", GRAPHS)
def test_one_side_of_a_permutation_is_seen(name, network):
    net, params = trained(RESIDUAL[network])
    spec = GraphSpec.from_module(net)
    metanet = reader(name, spec)
    vector = embedded(metanet, spec, params)
    for parameter in [key for key in params if key.endswith("weight") and not key.startswith("head")]:
        rows = params | {parameter: params[parameter].roll(1, 0)}
        assert relative(embedded(metanet, spec, rows), vector) > 1e-7, parameter


@pytest.mark.parametrize("name", GRAPHS)
def test_skips_and_kinds_of_norms_are_seen(name):
    """The same parameters with and without the skip, the norm, its gain, and under every kind of norm."""
    net, params = trained(Small)
    metanet = reader(name, GraphSpec.from_module(net))
    nets = [net, Small(False), Small(norm=one_group), Small(norm=each_channel)]
    vectors = [embedded(metanet, GraphSpec.from_module(each), params) for each in nets]
    fixed = {key: tensor for key, tensor in params.items() if not key.startswith("norm")}
    for each in (Small(affine=False), Small(norm=lambda width: nn.Identity())):
        vectors.append(embedded(metanet, GraphSpec.from_module(each), fixed))
    ones = params | {"norm.weight": torch.ones_like(params["norm.weight"])}
    vectors.append(embedded(metanet, GraphSpec.from_module(net), ones))
    for i, one in enumerate(vectors):
        assert all(relative(other, one) > 1e-3 for other in vectors[:i]), i


@pytest.mark.parametrize("name", GRAPHS)
def test_a_chain_gives_the_same_as_a_graph(name):
    """Three layouts, one result, whether or not kinds of links are told apart."""
    for chain, kinds in ((SPECS["mixed"], 1), (CNNS["mixed"], 1), (CNNS["relu"], 6)):
        params = random_params(chain)
        spec = GraphSpec.of(chain)
        edits, reads = editor(name, chain, probes=0, link_kinds=kinds), reader(name, chain, probes=0, link_kinds=kinds)
        expected, found = (propose_delta(edits, each, params) for each in (chain, spec))
        assert max(relative(found[key], expected[key]) for key in expected) < 1e-11
        vector = reads.embed(NeuralGraph.from_params(chain, params))
        assert relative(embedded(reads, spec, params), vector) < 1e-11
        assert relative(reads.embed(ragged_from_params([(chain, params)]))[0], vector) < 1e-11


@pytest.mark.parametrize("name", GRAPHS)
def test_a_batch_treats_each_as_if_alone(name):
    nets = [trained(lambda: Small(classes=3)), trained(RESIDUAL["resnet"]), trained(RESIDUAL["pre-activation"], 2)]
    networks = [(GraphSpec.from_module(net), params) for net, params in nets]
    chain = replace(CNNS["relu"], layers=(*CNNS["relu"].layers[:-1], replace(CNNS["relu"].layers[-1], fan_out=3)))
    networks.append((chain, random_params(chain)))
    edits, reads = editor(name, networks[0][0]), reader(name, networks[0][0])
    together, vectors = propose_deltas(edits, networks), reads.embed(ragged_from_params(networks))
    for found, vector, (spec, params) in zip(together, vectors, networks, strict=True):
        alone = propose_delta(edits, spec, params)
        assert all(relative(found[key], alone[key]) < 1e-10 for key in alone)
        spec = spec if isinstance(spec, GraphSpec) else GraphSpec.of(spec)
        assert relative(vector, embedded(reads, spec, params)) < 1e-10


@pytest.mark.parametrize("embedding", [0, 6])
@pytest.mark.parametrize("name", GRAPHS)
def test_gradients_reach_everything(name, embedding):
    net, params = trained(RESIDUAL["resnet"])
    spec = GraphSpec.from_module(net)
    metanet = (reader if embedding else editor)(name, spec)
    leaves = {key: tensor.requires_grad_() for key, tensor in params.items()}
    found = metanet.embed(graph_from_params([(spec, leaves)])) if embedding else propose_delta(metanet, spec, leaves)
    tensors = list(found.values()) if isinstance(found, dict) else [found]
    sum((t * torch.randn(t.shape, dtype=t.dtype, generator=generator(3))).sum() for t in tensors).backward()
    assert [key for key, p in metanet.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert all(tensor.grad is not None and bool(tensor.grad.any()) for tensor in leaves.values())


@pytest.mark.parametrize("name", GRAPHS)
def test_deltas_are_applied_to_the_module(name):
    net, params = trained(RESIDUAL["resnet"], dtype=torch.float32)
    spec = GraphSpec.from_module(net)
    delta = propose_delta(make_metanet(name, [spec], **SMALL), spec, spec.params_of(net))
    assert {key: tensor.shape for key, tensor in delta.items()} == {k: p.shape for k, p in net.named_parameters()}
    before = {key: tensor.detach().clone() for key, tensor in net.named_parameters()}
    apply_delta(spec.params_of(net), delta, inplace=True)
    for key, tensor in net.named_parameters():
        torch.testing.assert_close(tensor.detach(), before[key] + delta[key].detach())


def descend(parameters, loss_of, steps, goal):
    """The last loss of Adam, before its last step: the first below the goal."""
    optimizer = torch.optim.Adam(parameters, lr=1e-2)
    for _ in range(steps):
        loss = loss_of()
        if float(loss.detach()) < goal:
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return float(loss.detach())


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_learns_eight_edits_by_heart(name):
    """Eight networks, eight deltas of random numbers, of which nothing else can be learned."""
    networks = [trained(Small, seed, torch.float32) for seed in range(8)]
    spec = GraphSpec.from_module(networks[0][0])
    metanet = make_metanet(name, [spec], node_width=16, edge_width=16, layers=2, initial_scale=0.3)
    graph = graph_from_params([(spec, params) for _, params in networks])
    wanted = 0.3 * torch.randn(8, spec.parameter_count, generator=generator(4))

    def loss():
        deltas = metanet(graph).to_params()
        found = torch.stack([torch.cat([tensor.flatten() for tensor in delta.values()]) for delta in deltas])
        return (found - wanted).square().mean()

    goal = 0.65 * float(wanted.square().mean())
    assert descend(metanet.parameters(), loss, 110, goal) < goal


@pytest.mark.parametrize("name", NAMES)
def test_it_learns_sixteen_classes_by_heart(name):
    networks = [trained(lambda skip=bool(seed % 2): Small(skip), seed, torch.float32) for seed in range(16)]
    given = [(GraphSpec.from_module(net), params) for net, params in networks]
    metanet = make_metanet(name, [spec for spec, _ in given], **SMALL, embedding=16)
    predictor, labels, graph = WeightSpacePredictor(metanet, 16, hidden=32), torch.arange(16), graph_from_params(given)
    goal = math.log(2) / 16  # no one above log 2: every label is the likeliest
    assert descend(predictor.parameters(), lambda: functional.cross_entropy(predictor(graph), labels), 40, goal) < 0.5
    assert torch.equal(predictor.predict_each(given).argmax(-1), labels)


@pytest.mark.parametrize("name", GRAPHS)
def test_a_predictor_is_saved_and_loaded_exactly(name, tmp_path):
    net, params = trained(Small, dtype=torch.float32)
    spec = GraphSpec.from_module(net)
    predictor = WeightSpacePredictor(make_metanet(name, [spec], **SMALL, embedding=6), 4, hidden=8)
    again = WeightSpacePredictor.from_pretrained(predictor.save_pretrained(tmp_path / "predictor", "card"))
    assert torch.equal(again.predict(spec, params), predictor.predict(spec, params))
    assert again.predict(spec, params).shape == (4,)


def test_configs_older_than_kinds_of_links_are_read():
    found, config = describe_metanet(make_metanet("ng-gnn", [CNNS["relu"]]))
    assert config.pop("link_kinds") == 1
    assert build_metanet(found, config).config.link_kinds == 1


def test_further_quantities_come_with_the_parameters():
    net, params = trained(Small)
    spec = GraphSpec.from_module(net)
    metanet = editor("ng-gnn", spec, extra_types=((-1, True),))
    delta = propose_delta(metanet, spec, params, [(GRADIENT, params)])
    assert {key: tensor.shape for key, tensor in delta.items()} == {key: tensor.shape for key, tensor in params.items()}
    with pytest.raises(TypeMismatchError, match="NGGNN: got channels of type"):
        propose_delta(metanet, spec, params)


@pytest.mark.parametrize("name", OTHERS)
def test_the_others_refuse_what_is_no_chain(name):
    with pytest.raises(SpecError, match=f"{name} for a network that is no chain; expected one of gauge-gmn"):
        make_metanet(name, [GraphSpec.from_module(Small())])


ENDS_OF_OTHERS = [(name, width) for name in OTHERS for width in (0, 4)]


@pytest.mark.parametrize(("name", "embedding"), [end for end in ENDS_OF_OTHERS if end != ("statistics", 0)])
def test_the_others_refuse_one_that_comes(name, embedding):
    """To a metanetwork that was made for chains: alone, beside a chain, or a chain that is given as a graph."""
    chain = CNNS["relu"]
    pairs, (net, params) = [(chain, random_params(chain))], trained(lambda: Small(classes=4))
    permuted = [{"symmetry": "permutation"}] if name.startswith(("gauge-gmn", "monomial")) else []
    for options in ({}, *permuted):
        metanet = make_metanet(name, [chain], embedding=embedding, **options).double()
        graph = (GraphSpec.from_module(net), params)
        for networks in ([graph], [*pairs, graph], [(GraphSpec.of(chain), pairs[0][1])]):
            with pytest.raises(SpecError, match="no chains"):
                (metanet.embed if embedding else metanet)(ragged_from_params(networks))


def test_what_does_not_fit_is_refused():
    net, params = trained(Small)
    spec = GraphSpec.from_module(net)
    with pytest.raises(SpecError, match="links of the kind batch_norm for link_kinds 1; expected at most the first"):
        propose_delta(editor("ng-gnn", spec, link_kinds=1), spec, params)
    with pytest.raises(SpecError, match="4 probes with 6 kinds of links; expected probes=0"):
        NGGNNConfig(probes=4, link_kinds=6)
    with pytest.raises(SpecError, match="link_kinds 7; expected at least 1 and at most 6 kinds of links"):
        NGGNNConfig(link_kinds=7)
    with pytest.raises(SpecError, match="links of the kind batch_norm for link_kinds 1"):
        propose_delta(make_metanet("gauge-gmn", [CNNS["relu"]]), spec, params)
    with pytest.raises(SpecError, match="a network with 1 inputs and 3 outputs; expected 1 and 2"):
        other, parameters = trained(lambda: Small(classes=3))
        propose_delta(editor("ng-t", spec), GraphSpec.from_module(other), parameters)
    with pytest.raises(ParamsError, match="holds NaN or infinite"):
        propose_delta(editor("ng-t", spec), spec, params | {"first.bias": torch.full((4,), torch.inf)})
