"""PyTorch Geometric models as metanetworks: symmetry as declared, layouts, learning, and what is refused."""

import pytest
import torch
from torch_geometric.nn import GINEConv, GPSConv, GraphNorm, InstanceNorm, LayerNorm, PairNorm, Sequential
from torch_geometric.nn.models import GAT, GIN, GraphSAGE

from tests.networks import SPECS, generator, random_params, relative
from weightedit.delta import propose_delta, propose_deltas
from weightedit.errors import ParamsError, SpecError
from weightedit.graph.neural_graph import NeuralGraph
from weightedit.graph.ragged import ragged_from_params
from weightedit.metanet.pyg_adapter import PyGAdapter, PyGAdapterConfig
from weightedit.network.spec import NetworkSpec
from weightedit.prediction import WeightSpacePredictor
from weightedit.testing import assert_equivariant, assert_invariant, equivariance_error


def _mlp(width):
    return torch.nn.Sequential(torch.nn.Linear(width, width), torch.nn.SiLU(), torch.nn.Linear(width, width))


def _gine():
    layers = [part for _ in range(2) for part in ((GINEConv(_mlp(8), edge_dim=4), "x, edges, e -> x"), torch.nn.SiLU())]
    return Sequential("x, edges, e", layers)


MODELS = {
    "gatv2": (lambda: GAT(8, 8, num_layers=2, out_channels=8, v2=True, edge_dim=4), "edge_attr"),
    "gine": (_gine, "e"),
    "sage": (lambda: GraphSAGE(8, 8, num_layers=2, out_channels=8), ""),
}


def _gat(norm, **options):
    return lambda: GAT(8, 8, num_layers=2, out_channels=8, v2=True, edge_dim=4, norm=norm, norm_kwargs=options)


def _sequential(arguments, norm, call):
    return Sequential(arguments, [(GINEConv(_mlp(8), edge_dim=4), "x, edges, e -> x"), (norm, call)])


# What pools over a graph must be told which nodes are one graph: by keyword, at several depths, with a batch_size.
POOLING = {
    "LayerNorm": (_gat("LayerNorm"), "edge_attr"),
    "GraphNorm": (_gat("GraphNorm"), "edge_attr"),
    "PairNorm": (_gat("PairNorm"), "edge_attr"),
    "InstanceNorm": (_gat("InstanceNorm"), "edge_attr"),
    "in a sequence": (lambda: _sequential("x, edges, e, batch", GraphNorm(8), "x, batch -> x"), "e"),
    "attention": (lambda: GPSConv(8, GINEConv(_mlp(8), edge_dim=4), heads=2, norm="LayerNorm"), "edge_attr"),
}
DEAF = {
    "a sequence without batch": lambda: _sequential("x, edges, e", LayerNorm(8), "x -> x"),
    "within a convolution": lambda: GIN(8, 8, num_layers=2, norm="LayerNorm"),
    "attention": lambda: Sequential("x, edges", [(GPSConv(8, None), "x, edges -> x")]),
    "one after the other": lambda: torch.nn.Sequential(torch.nn.Linear(8, 8), InstanceNorm(8), PairNorm()),
}


def _metanet(name="gatv2", models=MODELS, **options):
    sizes = {
        "outputs": 3,
        "node_width": 8,
        "edge_width": 4,
        "width_out": 8,
        "levels": 4,
        "edge_argument": models[name][1],
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        metanet = PyGAdapter(models[name][0](), PyGAdapterConfig(**{**sizes, **options}))
    source = generator(1)
    with torch.no_grad():
        for parameter in metanet.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=source))
    return metanet.double()


@pytest.mark.parametrize("network", ["relu", "mixed"])
@pytest.mark.parametrize("name", MODELS)
def test_permutations_are_kept_and_nothing_else(name, network):
    spec, metanet, reader = SPECS[network], _metanet(name), _metanet(name, embedding=5)
    other = NetworkSpec.siren((2, 6, 3))
    first = (other, random_params(other))
    params = random_params(spec, count=2)
    assert metanet.declared == ("permutation",)
    assert_equivariant(lambda p: propose_delta(metanet, spec, p), spec, params, symmetry="permutation")
    single = {key: tensor[1] for key, tensor in params.items()}
    ragged = lambda p: propose_deltas(metanet, [first, (spec, p)])[1]  # noqa: E731
    assert_equivariant(ragged, spec, single, symmetry="permutation")
    embedded = lambda p: reader.embed(NeuralGraph.from_params(spec, p))  # noqa: E731
    assert_invariant(embedded, spec, params, symmetry="permutation")
    for symmetry, network in (("scale", "relu"), ("sign", "tanh"), ("full", "sine")):
        chosen = SPECS[network]
        errors = equivariance_error(
            lambda p, chosen=chosen: propose_delta(metanet, chosen, p), chosen, random_params(chosen), symmetry=symmetry
        )
        assert max(errors.values()) > 1e-3
    dense = propose_delta(metanet, spec, params)
    assert all(relative(ragged(single)[key], dense[key][1]) < 1e-12 for key in params)
    both = reader.embed(ragged_from_params([first, (spec, single)]))
    assert both.shape == (2, 5) and relative(both[1], embedded(params)[1]) < 1e-12
    assert relative(embedded(single), embedded(params)[1]) < 1e-12


@pytest.mark.parametrize("name", POOLING)
def test_a_model_that_pools_over_a_graph_sees_one_network_at_a_time(name):
    """In a stack and in a ragged batch, every network is treated as if alone."""
    spec, other = SPECS["relu"], NetworkSpec.siren((2, 6, 3))
    params, further = random_params(spec, count=3), random_params(other, seed=5)
    metanet, reader = (_metanet(name, POOLING, embedding=embedding).eval() for embedding in (0, 5))
    together, vectors = propose_delta(metanet, spec, params), reader.embed(NeuralGraph.from_params(spec, params))
    for row in range(3):
        single = {key: tensor[row] for key, tensor in params.items()}
        alone, vector = propose_delta(metanet, spec, single), reader.embed(NeuralGraph.from_params(spec, single))
        ragged = [(other, further), (spec, single)]
        assert all(relative(together[key][row], alone[key]) < 1e-11 for key in alone)
        assert all(relative(propose_deltas(metanet, ragged)[1][key], alone[key]) < 1e-11 for key in alone)
        assert (
            max(relative(vectors[row], vector), relative(reader.embed(ragged_from_params(ragged))[1], vector)) < 1e-11
        )


def test_compiled_models_are_told_the_networks_too():
    compiled = torch.compile(POOLING["LayerNorm"][0](), backend="eager")
    adapter = PyGAdapter(compiled, PyGAdapterConfig(outputs=3, node_width=8, edge_width=4, width_out=8)).double()
    spec, params = SPECS["relu"], random_params(SPECS["relu"], count=2)
    with torch.compiler.set_stance("force_eager"):
        alone = propose_delta(adapter, spec, {key: tensor[0] for key, tensor in params.items()})
        together = propose_delta(adapter, spec, params)
    assert all(relative(together[key][0], alone[key]) < 1e-11 for key in alone)


@pytest.mark.parametrize("name", DEAF)
def test_a_model_that_would_pool_over_the_whole_batch_is_refused(name):
    with pytest.raises(SpecError, match="pools over a graph in .* which takes no batch; expected one that hands"):
        PyGAdapter(DEAF[name](), PyGAdapterConfig(node_width=8, width_out=8, edge_argument=""))
    normalized_by_node = Sequential("x, edges", [(LayerNorm(8, mode="node"), "x -> x")])
    PyGAdapter(normalized_by_node, PyGAdapterConfig(node_width=8, width_out=8, edge_argument=""))


@pytest.mark.parametrize("embedding", [0, 5])
def test_every_parameter_gets_a_gradient_and_zeros_stay_finite(embedding):
    spec, metanet = SPECS["relu"], _metanet(embedding=embedding)
    params = random_params(spec, count=2)
    for tensor in params.values():
        tensor[1] = 0
        tensor.requires_grad_()
    result = metanet.embed(NeuralGraph.from_params(spec, params)) if embedding else propose_delta(metanet, spec, params)
    found = [result] if embedding else list(result.values())
    sum((t * torch.randn(t.shape, dtype=t.dtype, generator=generator(3))).sum() for t in found).backward()
    assert [key for key, p in metanet.named_parameters() if p.grad is None or not p.grad.any()] == []
    tensors = [*found, *(p.grad for p in metanet.parameters()), *(t.grad for t in params.values())]
    assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors if tensor is not None)


def test_it_learns_classes_by_heart():
    spec, labels = NetworkSpec.siren((2, 6, 5, 3)), torch.arange(8)
    stack = {key: tensor / 10 for key, tensor in random_params(spec, count=8).items()}
    predictor = WeightSpacePredictor(_metanet(embedding=8), 8, hidden=16).double()
    optimizer = torch.optim.Adam(predictor.parameters(), lr=1e-2)
    for _ in range(100):
        loss = torch.nn.functional.cross_entropy(predictor.predict(spec, stack), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.equal(predictor.predict(spec, stack).argmax(-1), labels)


def test_what_does_not_fit_is_refused(tmp_path):
    spec, params = SPECS["relu"], random_params(SPECS["relu"])
    with pytest.raises(SpecError, match="2 inputs and 3 outputs; expected 2 and 1.*: take one made for these"):
        propose_delta(_metanet(outputs=1), spec, params)
    with pytest.raises(ParamsError, match=r"GAT returned \(14, 8\); expected node features \(14, 9\)"):
        propose_delta(_metanet(width_out=9), spec, params)
    with pytest.raises(SpecError, match="expected positive sizes"):
        PyGAdapterConfig(levels=0)
    with pytest.raises(SpecError, match="PyGAdapter is not registered"):
        WeightSpacePredictor(_metanet(embedding=3), 2).save_pretrained(tmp_path / "no", "")
