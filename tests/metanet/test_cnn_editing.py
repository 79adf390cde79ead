"""Chains with convolutions, edited: what every editing system must keep when a delta has a channel per kernel position.

Equivariance as declared, stacked and in a batch of other architectures, and no more than declared; nothing in the
padding; a delta of its own for every position; learning, saving, and networks with nothing in some place. What the
systems do as they read such chains is in test_cnns.py.
"""

import json
import math

import pytest
import torch

from tests.metanet.chain_networks import editing, perturbed
from tests.metanet.test_contract import descend
from tests.networks import ACTIVATIONS, CNNS, generator, parts_of_symmetry, random_images, random_params, relative
from weightedit.delta import propose_delta, propose_deltas
from weightedit.errors import SpecError, TypeMismatchError
from weightedit.files.checkpoint import load_checkpoint, save_checkpoint
from weightedit.graph.neural_graph import NeuralGraph
from weightedit.graph.ragged import ragged_from_params
from weightedit.metanet.gauge_gmn.config import GaugeGMNConfig
from weightedit.metanet.registry import build_metanet, describe_metanet, make_metanet
from weightedit.network.features import DELTA, GRADIENT, SQUARED_GRADIENT
from weightedit.network.spec import NetworkSpec
from weightedit.testing import assert_equivariant, equivariance_error

_NODES = {"node_width": 16, "edge_width": 8, "layers": 2}
_PARTS = {"width": 12, "layers": 2}
SYSTEMS = {
    "gauge-gmn": _NODES,
    "gauge-gmn-b": _NODES,
    "scalegmn": _PARTS,
    "scalegmn-b": _PARTS,
    "ng-gnn": _NODES,
    "ng-t": _NODES,
    "monomial": {**_PARTS, "products": True},
    "nfn-np": _PARTS,
    "nfn-hnp": _PARTS,
    "dws": _PARTS,
    "mlp": {"hidden": 24},
}
GAUGE_GMN = ["gauge-gmn", "gauge-gmn-b"]
# The flat MLP reads one architecture, and no ragged batches.
RAGGED = [name for name in SYSTEMS if name != "mlp"]
# Networks that have a symmetry, and for what is not declared one that shows it.
HAVING = {"permutation": "silu", "sign": "tanh", "scale": "relu", "full": "sine"}
ENDS = [(name, symmetry) for name in SYSTEMS for symmetry in HAVING]


def _make(name, spec, *, noise=0.2, dtype=torch.float64, **options):
    return perturbed(make_metanet(name, [spec], **{**SYSTEMS[name], **options}), noise, dtype)


def _wider(spec):
    """One more channel in every hidden layer."""
    widths, last = spec.widths, spec.depth - 1
    layers = []
    for number, layer in enumerate(spec.layers):
        data = {**layer.__dict__, "fan_in": widths[number] + (number > 0), "fan_out": layer.fan_out + (number < last)}
        layers.append(type(layer)(**data))
    return NetworkSpec(tuple(layers))


def _in_a_batch(metanet, spec):
    other = _wider(spec)
    return lambda params: propose_deltas(metanet, [(other, random_params(other, seed=7)), (spec, params)])[1]


@pytest.mark.parametrize(("name", "symmetry"), ENDS)
@torch.no_grad()
def test_declared_symmetries_are_kept_and_no_others(name, symmetry):
    spec = CNNS[HAVING[symmetry]]
    metanet = _make(name, spec)
    if symmetry not in metanet.declared:
        errors = equivariance_error(editing(metanet, spec), spec, random_params(spec, count=2), symmetry=symmetry)
        assert max(errors.values()) > 1e-3, errors
        return
    for each in (spec, CNNS["mixed"]):
        metanet = _make(name, each)
        assert_equivariant(editing(metanet, each), each, random_params(each, count=2), symmetry=symmetry)
    assert_equivariant(_in_a_batch(metanet, each), each, random_params(each, seed=1), symmetry=symmetry)


@pytest.mark.parametrize(
    ("network", "symmetry"), parts_of_symmetry({name: CNNS[name] for name in ("relu", "tanh", "sine")})
)
@pytest.mark.parametrize("name", GAUGE_GMN)
@torch.no_grad()
def test_a_part_of_the_symmetry_is_kept(name, network, symmetry):
    spec = CNNS[network]
    metanet = _make(name, spec, symmetry=symmetry)
    assert symmetry in metanet.declared
    assert_equivariant(editing(metanet, spec), spec, random_params(spec, count=2), symmetry=symmetry)


@pytest.mark.parametrize("name", GAUGE_GMN)
@pytest.mark.parametrize(("network", "missed"), [("relu", "scale"), ("tanh", "sign"), ("sine", "full")])
@torch.no_grad()
def test_a_symmetry_that_is_not_declared_is_not_kept(name, network, missed):
    spec = CNNS[network]
    metanet, params = _make(name, spec, symmetry="permutation"), random_params(spec, count=2)
    errors = equivariance_error(editing(metanet, spec), spec, params, symmetry=missed)
    assert min(errors.values()) > 1e-3, errors


@pytest.mark.parametrize("switch", [{"rank_one": False}, {"edge_skip": False}, {"relative_signs": False}])
@pytest.mark.parametrize("name", GAUGE_GMN)
@torch.no_grad()
def test_every_switch_does_something_and_keeps_the_symmetry(name, switch):
    spec, params = CNNS["mixed"], random_params(CNNS["mixed"])
    on, off = (editing(_make(name, spec, **kept), spec) for kept in ({}, switch))
    assert any(relative(off(params)[key], on(params)[key]) > 1e-3 for key in params)
    assert_equivariant(off, spec, params)


@pytest.mark.parametrize("network", ["relu", "sine", "mixed"])
@pytest.mark.parametrize("name", RAGGED)
@torch.no_grad()
def test_layouts_agree_on_mixed_batches(name, network):
    specs = [CNNS[network], _wider(CNNS[network]), CNNS[network]]
    batch = [(spec, random_params(spec, seed=i)) for i, spec in enumerate(specs)]
    metanet = _make(name, specs[0])
    stack = {key: torch.stack([batch[0][1][key], batch[2][1][key]]) for key in batch[0][1]}
    first, between, last = propose_deltas(metanet, batch)
    alone, stacked = propose_delta(metanet, *batch[1]), propose_delta(metanet, specs[0], stack)
    for key in stack:
        assert relative(between[key], alone[key]) < 1e-10, key
        assert relative(torch.stack([first[key], last[key]]), stacked[key]) < 1e-10, key


@pytest.mark.parametrize("name", SYSTEMS)
def test_nothing_stands_in_the_padding(name):
    """Kernels (3, 5), (1, 3), (3, 1) and none: 15 channels, of which a delta has those that are parameters."""
    spec, params = CNNS["mixed"], random_params(CNNS["mixed"])
    metanet = _make(name, spec)
    assert metanet.types_out == (DELTA,) * 15
    graphs = [NeuralGraph.from_params(spec, params), ragged_from_params([(spec, params)])]
    for graph in graphs[: 1 + (name in RAGGED)]:
        (delta,) = metanet(graph).to_features()
        (kernels,) = NeuralGraph.from_params(spec, {k: torch.ones_like(t) for k, t in params.items()}).to_features()
        for found, own in zip(delta.weights, kernels.weights, strict=True):
            assert torch.equal(found != 0, own == 1)
        assert not any(bool(bias[..., 1:].any()) for bias in delta.biases)


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_position_gets_a_delta_of_its_own(name):
    """No position's delta is made of the others': its gradients in the metanetwork's weights are independent."""
    spec = CNNS["tanh"]
    metanet = _make(name, spec)
    delta = propose_delta(metanet, spec, random_params(spec))["layers.1.weight"][1, 2].flatten()
    weights = list(metanet.parameters())
    rows = [torch.autograd.grad(entry, weights, retain_graph=True, allow_unused=True) for entry in delta]
    rows = [torch.cat([g.flatten() for g in row if g is not None]) for row in rows]
    sizes = torch.linalg.svdvals(torch.stack([row / row.norm() for row in rows]))
    assert len(delta) == 9 and float(sizes[-1]) > 1e-3 * float(sizes[0]), sizes


@pytest.mark.parametrize("name", GAUGE_GMN)
def test_each_part_of_the_head_has_a_row_per_position(name):
    """A position's delta reaches the rows of its own in every term, and no other position's."""
    spec = CNNS["tanh"]
    metanet = _make(name, spec)
    head, delta = metanet.head, propose_delta(metanet, spec, random_params(spec))["layers.1.weight"]
    for position in range(9):
        head.zero_grad()
        delta[1, 2].flatten()[position].backward(retain_graph=True)
        at_target, at_source = head.product.weight.grad.unflatten(0, (2, 9))
        for rows in (head.read_edges.weight.grad, head.rank_mix.grad, head.change_mix.grad, at_target, at_source):
            assert rows.any(1).nonzero().flatten().tolist() == [position]


@pytest.mark.parametrize("network", ["relu", "sine", "mixed"])
@pytest.mark.parametrize("name", GAUGE_GMN)
def test_equivariant_with_gradients_as_further_quantities(name, network):
    spec = CNNS[network]
    metanet = _make(name, spec, extra_types=((-1, True), (-2, False)))
    images = random_images(spec, 3)

    def delta(params):
        leaves = {key: tensor.detach().clone().requires_grad_() for key, tensor in params.items()}
        loss = (spec.forward(leaves, images) - 0.3).square().sum()
        gradients = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
        squared = {key: tensor.square() for key, tensor in gradients.items()}
        return propose_delta(metanet, spec, params, [(GRADIENT, gradients), (SQUARED_GRADIENT, squared)])

    params = {key: tensor / (10 if network != "relu" else 1) for key, tensor in random_params(spec, count=2).items()}
    assert_equivariant(delta, spec, params, tolerance=1e-9)


@pytest.mark.parametrize("name", SYSTEMS)
def test_zero_networks_dead_channels_and_empty_positions(name):
    spec, params = CNNS["relu"], random_params(CNNS["relu"], count=2)
    params["layers.1.weight"][0, 1], params["layers.1.bias"][0, 1] = 0, 0
    params["layers.2.weight"][0, ..., 0, 2] = 0
    for tensor in params.values():
        tensor[1] = 0
    leaves = {key: tensor.requires_grad_() for key, tensor in params.items()}
    metanet = _make(name, spec)
    delta = propose_delta(metanet, spec, leaves)
    sum(tensor.square().sum() for tensor in delta.values()).backward()
    for tensors in (delta.values(), [p.grad for p in metanet.parameters()], [t.grad for t in leaves.values()]):
        assert all(bool(tensor.isfinite().all()) for tensor in tensors if tensor is not None)
    if name in GAUGE_GMN:
        assert bool((delta["layers.2.weight"][0, ..., 0, 2] != 0).any()), "an empty position can be moved"


@pytest.mark.parametrize("name", GAUGE_GMN)
def test_dead_channels_keep_equivariance(name):
    spec, params = CNNS["relu"], random_params(CNNS["relu"])
    params["layers.0.weight"][1], params["layers.0.bias"][1] = 0, 0
    params["layers.2.weight"][:, 3] = 0
    metanet = _make(name, spec)
    assert_equivariant(editing(metanet, spec), spec, params)


@pytest.mark.parametrize("name", GAUGE_GMN)
@pytest.mark.parametrize("network", ["relu", "sine", "silu"])
def test_sizes_at_the_start_are_sound(name, network):
    """Deltas near initial_scale of their layer's weights, in every layer, whatever the padding; all parameters used."""
    spec = NetworkSpec.cnn((3, 16, 16, 16, 10), ACTIVATIONS[network])
    params = random_params(spec, count=2, dtype=torch.float32)
    metanet = make_metanet(name, [spec], node_width=32, edge_width=16, layers=2)
    delta = propose_delta(metanet, spec, params)
    for layer in spec.layers:
        weights = float(params[layer.weight].square().mean().sqrt())
        for key in (layer.weight, layer.bias):
            ratio = float(delta[key].detach().square().mean().sqrt()) / weights
            assert 0.01 / 10 < ratio < 0.01 * 10, (key, ratio)
    sum((tensor * torch.randn(tensor.shape, generator=generator(3))).sum() for tensor in delta.values()).backward()
    assert [key for key, p in metanet.named_parameters() if p.grad is None or not p.grad.any()] == []


_LATER = [pytest.param(name, marks=pytest.mark.slow) for name in SYSTEMS if name != "gauge-gmn-b"]


@pytest.mark.parametrize("name", ["gauge-gmn-b", *_LATER])
def test_it_learns_eight_edits_by_heart(name):
    """To mirror every kernel, which takes weights from position to position and leaves biases as they are."""
    spec = NetworkSpec.cnn((1, 4, 3, 2), ACTIVATIONS["tanh"], kernel=(2, 3))
    params = random_params(spec, count=8, dtype=torch.float32)
    goals = {key: tensor.flip(-1) - tensor if tensor.dim() == 5 else 0 * tensor for key, tensor in params.items()}
    metanet = _make(name, spec, noise=0, dtype=torch.float32, initial_scale=0.3)

    def loss():
        delta = propose_delta(metanet, spec, params)
        return sum((delta[key] - goal).square().mean() for key, goal in goals.items())

    still = float(sum(goal.square().mean() for goal in goals.values()))
    steps, goal = (80, still / 10) if name in GAUGE_GMN else (150, still / 20)
    losses = descend(metanet.parameters(), loss, steps, 1e-2, lambda loss: loss < goal)
    assert losses[-1] < goal, (losses[-1], still)


@pytest.mark.parametrize("name", SYSTEMS)
def test_it_is_saved_and_loaded_exactly(name, tmp_path):
    spec = CNNS["relu"]
    metanet, params = _make(name, spec, dtype=torch.float32), random_params(spec, count=2, dtype=torch.float32)
    kind, config = describe_metanet(metanet)
    save_checkpoint(tmp_path / "editor", metanet.state_dict(), {"name": kind, "config": config}, "card")
    tensors, saved = load_checkpoint(tmp_path / "editor")
    again = build_metanet(saved["name"], json.loads(json.dumps(saved["config"])))
    again.load_state_dict(tensors)
    assert kind == name and again.types_out == metanet.types_out
    before, after = (propose_delta(m, spec, params) for m in (metanet, again))
    assert all(torch.equal(before[key], after[key]) for key in params)


@pytest.mark.parametrize("name", SYSTEMS)
def test_networks_of_another_kernel_are_refused(name):
    metanet, other = _make(name, CNNS["relu"]), NetworkSpec.cnn((1, 5, 4, 3, 4), "relu", kernel=(5, 5))
    clear = SpecError, "kernels of 5 x 5 in .* for kernels of 3 x 3; expected none that is larger"
    error, match = (TypeMismatchError, "; expected") if name == "mlp" else clear
    with pytest.raises(error, match=match):
        propose_delta(metanet, other, random_params(other))


def test_one_that_reads_only_names_who_edits():
    with pytest.raises(SpecError, match="Take another metanetwork for an editor"):
        make_metanet("statistics", [CNNS["relu"]], embedding=0)


@pytest.mark.parametrize("options", [{"probes": 3}, {"probes": 0, "forecast": 3}, {"probes": 3, "embedding": 4}])
def test_probes_and_forecasts_are_refused(options):
    with pytest.raises(SpecError, match="9 channels per quantity with .* expected probes=0 and forecast=0"):
        GaugeGMNConfig(channels=9, **options)


def test_one_channel_has_no_parameters_for_positions():
    """So that editors of networks without convolutions are what they were."""
    spec = NetworkSpec.mlp((2, 5, 3), "relu")
    head = make_metanet("gauge-gmn-b", [spec], probes=0, **_NODES).head
    assert head.rank_mix is None and head.change_mix is None
    assert head.read_edges.weight.shape == (1, 8) and head.product.weight.shape == (2, 16)
    assert math.prod(make_metanet("gauge-gmn-b", [CNNS["relu"]], **_NODES).head.rank_mix.shape) == 9 * 16
