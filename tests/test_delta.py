"""The core path: every delta lands on its own tensor, is added where it should be, and bad input loses nothing."""

import pytest
import torch

from tests.networks import SPECS, random_params
from weightedit.delta import apply_delta, propose_delta, propose_deltas
from weightedit.errors import ParamsError, TypeMismatchError
from weightedit.graph.neural_graph import NeuralGraph
from weightedit.graph.ragged import ragged_from_params
from weightedit.metanet.base import Metanetwork
from weightedit.network.features import DELTA, GRADIENT, PARAMETER
from weightedit.network.spec import Layer, NetworkSpec
from weightedit.testing import assert_equivariant

SPEC = SPECS["mixed"]


class Numbering(Metanetwork):
    """Writes the number of every node and edge into the delta."""

    types_in, types_out = (PARAMETER,), (DELTA,)

    def transform(self, graph):
        nodes = torch.arange(graph.nodes.shape[-2], dtype=graph.nodes.dtype).unsqueeze(-1).expand_as(graph.nodes)
        edges = torch.arange(graph.edges.shape[-2], dtype=graph.edges.dtype).unsqueeze(-1).expand_as(graph.edges)
        return graph.with_features(nodes, edges, self.types_out)


class Tenth(Metanetwork):
    types_in, types_out = (PARAMETER,), (DELTA,)

    def transform(self, graph):
        return graph.with_features(graph.nodes / 10, graph.edges / 10, self.types_out)


class Wrong(Metanetwork):
    types_in, types_out = (PARAMETER,), (GRADIENT,)

    def transform(self, graph):
        return graph


class Lying(Metanetwork):
    types_in, types_out = (PARAMETER,), (DELTA,)

    def transform(self, graph):
        return graph


def _numbers(spec):
    """What Numbering must give: neurons are counted level by level, inputs first; weights row by row."""
    expected, node, edge = {}, spec.widths[0], 0
    for layer in spec.layers:
        size = layer.fan_in * layer.fan_out
        expected[layer.weight] = torch.arange(edge, edge + size).reshape(layer.fan_out, layer.fan_in)
        if layer.bias is not None:
            expected[layer.bias] = torch.arange(node, node + layer.fan_out)
        node, edge = node + layer.fan_out, edge + size
    return {name: tensor.double() for name, tensor in expected.items()}


NAMED_BACKWARDS = NetworkSpec((Layer("z", "y", 2, 5), Layer("b", None, 5, 3), Layer("a", "c", 3, 4)))


@pytest.mark.parametrize("spec", [SPEC, SPECS["relu"], NAMED_BACKWARDS], ids=["mixed", "relu", "named backwards"])
def test_every_delta_lands_on_its_own_tensor(spec):
    assert len(set(spec.widths)) == len(spec.widths)
    expected = _numbers(spec)
    for params in (random_params(spec), dict(reversed(random_params(spec).items()))):
        delta = propose_delta(Numbering(), spec, params)
        assert set(delta) == set(params)
        assert all(torch.equal(delta[name], expected[name]) for name in params)
    stacked = propose_delta(Numbering(), spec, random_params(spec, count=3))
    for name, tensor in stacked.items():
        assert torch.equal(tensor, expected[name].expand(3, *expected[name].shape))


def test_deltas_of_a_mixed_batch_land_on_their_networks():
    networks = [(spec, random_params(spec)) for spec in (SPECS["relu"], SPEC, NAMED_BACKWARDS)]
    nodes = edges = 0
    for (spec, _), delta in zip(networks, propose_deltas(Numbering(), networks), strict=True):
        for name, expected in _numbers(spec).items():
            start = nodes if expected.dim() == 1 else edges
            assert torch.equal(delta[name], expected + start)
        nodes += sum(spec.widths)
        edges += sum(layer.fan_in * layer.fan_out for layer in spec.layers)


def test_a_per_tensor_proposal_is_equivariant():
    assert_equivariant(lambda p: propose_delta(Tenth(), SPECS["tanh"], p), SPECS["tanh"], random_params(SPECS["tanh"]))
    with pytest.raises(AssertionError, match="layers.1.bias"):
        numbers = Numbering()
        assert_equivariant(
            lambda p: {k: p[k] * t for k, t in propose_delta(numbers, SPECS["tanh"], p).items()},
            SPECS["tanh"],
            random_params(SPECS["tanh"]),
        )


def test_apply_delta_adds():
    params, delta = random_params(SPEC, count=2), random_params(SPEC, count=2, seed=1)
    kept = {name: tensor.clone() for name, tensor in params.items()}
    edited = apply_delta(params, delta)
    assert list(edited) == list(params)
    for name in params:
        assert torch.equal(edited[name], kept[name] + delta[name]) and torch.equal(params[name], kept[name])
        assert edited[name].data_ptr() != params[name].data_ptr()


def test_apply_delta_in_place_keeps_storage_and_leaves():
    net = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    params = NetworkSpec.from_module(net).params_of(net)
    kept = {name: (tensor.data_ptr(), tensor.detach().clone()) for name, tensor in params.items()}
    delta = {name: torch.full_like(tensor, 0.5, dtype=torch.float64) for name, tensor in params.items()}
    edited = apply_delta(params, delta, inplace=True)
    for name, tensor in net.named_parameters():
        address, before = kept[name]
        assert edited[name] is tensor and tensor.data_ptr() == address and tensor.is_leaf and tensor.requires_grad
        assert tensor.dtype == torch.float32 and torch.equal(tensor, before + 0.5)


def test_apply_delta_is_differentiable():
    params, delta = random_params(SPECS["relu"]), random_params(SPECS["relu"], seed=1)
    leaf = delta["layers.0.bias"].requires_grad_()
    apply_delta(params, delta)["layers.0.bias"].square().sum().backward()
    torch.testing.assert_close(leaf.grad, 2 * (params["layers.0.bias"] + leaf.detach()))


def test_a_delta_of_other_names_or_shapes_is_refused_and_changes_nothing():
    params = random_params(SPECS["relu"])
    kept = {name: tensor.clone() for name, tensor in params.items()}
    fitting = {name: torch.ones_like(tensor) for name, tensor in params.items()}
    for spoil, message in (
        (lambda d: d.pop("layers.2.bias"), r"layers.2.bias missing for \(3,\)"),
        (lambda d: d.update(extra=torch.ones(2)), r"extra \(2,\) for none"),
        (lambda d: d.update({"layers.1.weight": torch.ones(5, 4)}), r"layers.1.weight \(5, 4\) for \(4, 5\)"),
        (lambda d: d.update({"layers.0.bias": torch.ones(1)}), r"layers.0.bias \(1,\) for \(5,\)"),
    ):
        delta = dict(fitting)
        spoil(delta)
        for inplace in (False, True):
            with pytest.raises(ParamsError, match=message):
                apply_delta(params, delta, inplace=inplace)
    assert all(torch.equal(params[name], kept[name]) for name in params)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_values_that_are_not_finite_are_refused(value):
    stack = random_params(SPECS["relu"], count=3)
    stack["layers.1.bias"][2, 0] = value
    with pytest.raises(ParamsError, match="layers.1.bias of network 2 holds NaN or infinite"):
        propose_delta(Tenth(), SPECS["relu"], stack)
    single = {name: tensor[2] for name, tensor in stack.items()}
    with pytest.raises(ParamsError, match="layers.1.bias holds NaN or infinite"):
        propose_deltas(Tenth(), [(SPECS["relu"], single)])


def test_wrong_names_and_types_are_refused():
    spec, params = SPECS["relu"], random_params(SPECS["relu"])
    with pytest.raises(ParamsError, match="unexpected tensors: 0.weight"):
        propose_delta(Tenth(), spec, {"0.weight": torch.zeros(5, 2)})
    with pytest.raises(TypeMismatchError, match=r"propose_delta: got channels of type \[\(-1, odd\)\]"):
        propose_delta(Wrong(), spec, params)
    with pytest.raises(TypeMismatchError, match="propose_deltas: got channels of type"):
        propose_deltas(Wrong(), [(spec, params)])
    with pytest.raises(TypeMismatchError, match=r"Tenth: got channels of type .*\(-1, odd\)\]"):
        propose_delta(Tenth(), spec, params, [(GRADIENT, params)])
    with pytest.raises(TypeMismatchError, match=r"Lying output: got channels of type \[\(\+1, odd, affine\)\]"):
        Lying()(NeuralGraph.from_params(spec, params))


def test_both_layouts_read_back_what_they_are():
    assert isinstance(NeuralGraph.from_params(SPEC, random_params(SPEC)).to_params(), dict)
    assert isinstance(ragged_from_params([(SPEC, random_params(SPEC))]).to_params(), list)
