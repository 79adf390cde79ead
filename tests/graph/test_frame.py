"""Kernels of several sizes in one batch: centers stay centers, and every network gets what it gets alone."""

from itertools import product

import pytest
import torch
from torch_geometric.loader import DataLoader
from torch_geometric.nn.models import GAT

from tests.metanet.chain_networks import perturbed
from tests.networks import CNNS, generator, random_params, relative
from tests.residual_networks import RESIDUAL, Small, trained
from weightedit.delta import propose_delta, propose_deltas
from weightedit.errors import ParamsError, SpecError
from weightedit.graph.frame import Frame, joined, reframed, reframed_nodes
from weightedit.graph.layout import graph_from_params
from weightedit.graph.neural_graph import NeuralGraph
from weightedit.graph.ragged import from_pyg, ragged_from_params, to_pyg
from weightedit.metanet.base import Metanetwork
from weightedit.metanet.pyg_adapter import PyGAdapter, PyGAdapterConfig
from weightedit.metanet.registry import METANETS, make_metanet
from weightedit.network.features import kernel_to_channels
from weightedit.network.graph_spec import GraphSpec
from weightedit.network.spec import NetworkSpec

FRAMES = [Frame(*size, rest) for size in product((1, 2, 3, 5), (1, 3, 4)) for rest in (0, 2)]
SPECS = [
    NetworkSpec.cnn((1, 5, 4, 4), "relu"),
    NetworkSpec.cnn((1, 3, 4), "relu", kernel=(5, 5)),
    NetworkSpec.mlp((1, 6, 5, 4), "relu"),
    NetworkSpec.cnn((1, 3, 4, 4), "tanh", kernel=(2, 4)),
]
MIXED = [(spec, random_params(spec, seed=i)) for i, spec in enumerate(SPECS)]
INDEXED = ("gauge-gmn", "gauge-gmn-b", "scalegmn", "scalegmn-b", "ng-gnn", "ng-t", "pyg")
PER_LAYER = ("monomial", "nfn-np", "nfn-hnp", "dws")
SMALL = {"node_width": 8, "edge_width": 6, "width": 8, "layers": 2}


def entries(frame, quantities=2, seed=0):
    return torch.randn(3, quantities * frame.channels, dtype=torch.float64, generator=generator(seed))


@pytest.mark.parametrize("old", FRAMES, ids=str)
def test_there_and_back_is_exact_and_any_way_leads_to_the_same_place(old):
    x = entries(old)
    for middle in (joined((old, frame)) for frame in FRAMES):
        assert middle.holds(old)
        between = reframed(x, old, middle)
        assert torch.equal(reframed(between, middle, old), x)
        assert torch.equal(reframed_nodes(reframed_nodes(x, old, middle), middle, old), x)
        assert int((between != 0).sum()) == x.numel()
        new = joined((middle, Frame(5, 5, 3)))
        assert torch.equal(reframed(between, middle, new), reframed(x, old, new))


def test_odd_kernels_are_centered_as_those_of_one_network_are():
    """The twin: a network with a kernel of 3 and one of 5 centers the one in the other (features.py)."""
    weight = torch.randn(2, 4, 3, 3, generator=generator())
    own = kernel_to_channels(weight, (3, 3), (3, 3))
    assert torch.equal(reframed(own, Frame(3, 3), Frame(5, 5)), kernel_to_channels(weight, (3, 3), (5, 5)))
    assert torch.equal(reframed(torch.ones(1, 1), Frame(), Frame(5, 3)).view(5, 3).nonzero(), torch.tensor([[2, 1]]))


def make(name, specs, **options):
    if name == "pyg":
        frame = Frame.of(*specs)
        kernel = {"channels": frame.channels, "kernel": (frame.height, frame.width)}
        around = PyGAdapterConfig(1, 4, node_width=8, edge_width=6, width_out=8, **kernel, **options)
        return perturbed(PyGAdapter(GAT(8, 8, num_layers=2, out_channels=8, v2=True, edge_dim=6), around), 0.1)
    known = METANETS[name].config.__dataclass_fields__
    small = {key: value for key, value in SMALL.items() if key in known}
    return perturbed(make_metanet(name, specs, **small, **options), 0.1)


def assert_as_alone(metanet, networks):
    """In one batch by either way, and the parameters all that is moved."""
    together = propose_deltas(metanet, networks)
    frame = Frame.of(*(spec for spec, _ in networks))
    batch = next(iter(DataLoader([to_pyg(*network, frame=frame) for network in networks], batch_size=len(networks))))
    loaded = metanet(from_pyg(batch)).to_params()
    for (spec, params), *found in zip(networks, together, loaded, strict=True):
        alone = propose_delta(metanet, spec, params)
        for delta in found:
            assert list(delta) == list(alone)
            for key in alone:
                assert delta[key].shape == params[key].shape and bool(delta[key].any())
                assert relative(delta[key], alone[key]) < 1e-12


@pytest.mark.parametrize("name", INDEXED)
def test_each_network_of_a_mixed_batch_gets_what_it_gets_alone(name):
    assert_as_alone(make(name, SPECS), MIXED)


@pytest.mark.parametrize("name", ["gauge-gmn-b", "ng-gnn", "ng-t"])
def test_so_does_each_beside_networks_that_are_no_chains(name):
    """Kernels of 5 of a chain, of 3 of a residual network, and a layer that reads 16 positions of a channel."""
    flat = torch.nn.Sequential(
        torch.nn.Conv2d(1, 3, 3), torch.nn.BatchNorm2d(3), torch.nn.Flatten(), torch.nn.Linear(48, 4)
    )
    nets = [trained(lambda: Small(classes=4)), trained(lambda: flat)]
    networks = [*MIXED[:3], *((GraphSpec.from_module(net), params) for net, params in nets)]
    assert_as_alone(make(name, [spec for spec, _ in networks]), networks)


@pytest.mark.parametrize("name", INDEXED)
def test_vectors_of_a_mixed_batch_are_those_of_each_alone(name):
    metanet = make(name, SPECS, embedding=5)
    together = metanet.embed(ragged_from_params(MIXED))
    for row, (spec, params) in zip(together, MIXED, strict=True):
        assert relative(metanet.embed(NeuralGraph.from_params(spec, params)), row) < 1e-12


@pytest.mark.parametrize("name", PER_LAYER)
def test_what_has_parameters_per_layer_mixes_kernels_and_refuses_other_depths_in_a_line(name):
    three, five = NetworkSpec.cnn((1, 5, 4, 4), "relu"), NetworkSpec.cnn((1, 3, 6, 4), "relu", kernel=(5, 5))
    assert_as_alone(make(name, [three, five]), [(three, random_params(three)), (five, random_params(five))])
    with pytest.raises(SpecError, match="has parameters per layer. Only hidden widths are free; gauge-gmn") as caught:
        propose_deltas(make(name, SPECS[:2]), MIXED[:2])
    assert "\n" not in str(caught.value)


def test_a_single_network_stands_in_its_own_frame():
    """So nothing that was trained for one kernel size changes."""
    for spec in (*CNNS.values(), *SPECS):
        metanet = make_metanet("ng-gnn", [spec])
        graph = NeuralGraph.from_params(spec, random_params(spec, dtype=torch.float32))
        assert (
            metanet.frame == graph.layout.frame == Frame(*spec.kernel)
            and graph.in_frame(metanet.frame).layout is graph.layout
        )
    assert Metanetwork.frame is None


def test_padding_is_no_parameter_in_any_frame():
    for name in ("small", "scan", "resnet"):
        net, params = trained(RESIDUAL[name])
        spec = GraphSpec.from_module(net)
        graph = graph_from_params([(spec, {key: torch.ones_like(p) for key, p in params.items()})])
        for frame in (joined((graph.layout.frame, Frame(5, 5))), joined((graph.layout.frame, Frame(4, 7, 9)))):
            wide = graph.in_frame(frame)
            full = wide.with_features(torch.ones_like(wide.nodes), torch.ones_like(wide.edges), wide.types)
            assert float(full.without_padding().edges.sum()) == sum(
                p.numel() for k, p in params.items() if k in weights(spec)
            )


def weights(spec):
    return {link.parameter for link in spec.links}


def test_what_does_not_fit_is_refused():
    three, five = MIXED[:2]
    with pytest.raises(SpecError, match="kernels of 5 x 5 in NGGNN for kernels of 3 x 3; expected none that is l"):
        propose_delta(make("ng-gnn", [three[0]]), *five)
    with pytest.raises(ParamsError, match="kernels of 5 x 5 for a frame of 3 x 3; expected one that holds them"):
        to_pyg(*five, frame=Frame(3, 3))
    with pytest.raises(SpecError, match=r"a kernel of \(3, 3\) with 4 channels; expected .* a channel per position"):
        make("ng-gnn", [three[0]], **{"channels": 4})
    frames = [to_pyg(*three, frame=Frame(5, 5)), to_pyg(*three, frame=Frame(5, 5))]
    frames[1].frame = "[1, 25, 0]"
    with pytest.raises(ParamsError, match="different channel types or frames in one batch; expected the same in"):
        from_pyg(next(iter(DataLoader(frames, batch_size=2))))
    assert str(Frame(3, 3, 7)) == "3 x 3 and 7 further positions"
