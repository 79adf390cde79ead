"""Gradients and moments beside the parameters: every metanetwork that edits takes them, as the types that they are."""

import json

import pytest
import torch
from torch_geometric.nn.models import GAT

from tests.metanet.chain_networks import perturbed
from tests.networks import CNNS, SPECS, generator, random_params, relative
from weightedit.delta import propose_delta
from weightedit.errors import SpecError
from weightedit.metanet.pyg_adapter import PyGAdapter, PyGAdapterConfig
from weightedit.metanet.registry import METANETS, build_metanet, describe_metanet, make_metanet
from weightedit.network.features import DELTA, GRADIENT, ChannelType
from weightedit.network.symmetry import act, random_element

DIRECTION = ChannelType(0, True)
KINDS = (GRADIENT, DIRECTION)
TYPES = tuple((kind.scale, kind.odd) for kind in KINDS)
SMALL = {"node_width": 8, "edge_width": 6, "width": 8, "hidden": 12, "layers": 1, "probes": 0}
EDITORS = [name for name in METANETS if name != "statistics"]
NETWORKS = {"mlp": SPECS["relu"], "cnn": CNNS["relu"]}


def make(name, spec, types=TYPES):
    """A small one with random weights; "pyg" is a GAT in the adapter."""
    if name == "pyg":
        ends = {"inputs": spec.widths[0], "outputs": spec.widths[-1], "channels": spec.channels}
        config = PyGAdapterConfig(**ends, node_width=8, edge_width=6, width_out=8, extra_types=types)
        model = GAT(8, 8, num_layers=2, out_channels=8, v2=True, edge_dim=6)
        return perturbed(PyGAdapter(model, config), 0.2, torch.float64)
    known = METANETS[name].config.__dataclass_fields__
    options = {key: value for key, value in SMALL.items() if key in known}
    return perturbed(make_metanet(name, [spec], extra_types=types, **options), 0.2, torch.float64)


def quantities(spec, seed=0, **options):
    """Parameters, and a quantity of their shapes for every kind, large and small."""
    extra = [
        (kind, {k: 100.0 ** (i - 1) * t for k, t in random_params(spec, seed=seed + i + 1, **options).items()})
        for i, kind in enumerate(KINDS)
    ]
    return random_params(spec, seed=seed, **options), extra


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", [*EDITORS, "pyg"])
def test_every_quantity_is_seen_and_none_by_its_size_alone(name, network):
    spec = NETWORKS[network]
    metanet, (params, extra) = make(name, spec), quantities(spec)
    before = propose_delta(metanet, spec, params, extra)
    assert {k: t.shape for k, t in before.items()} == {k: t.shape for k, t in params.items()}
    for place, (kind, values) in enumerate(extra):
        other = {k: t * torch.linspace(-1, 1, t.numel()).double().view(t.shape) for k, t in values.items()}
        after = propose_delta(metanet, spec, params, [*extra[:place], (kind, other), *extra[place + 1 :]])
        assert all(relative(after[k], before[k]) > 1e-4 for k in before if "weight" in k), (kind, name)
    zero = [(kind, {k: torch.zeros_like(t) for k, t in values.items()}) for kind, values in extra]
    assert all(t.isfinite().all() for t in propose_delta(metanet, spec, params, zero).values())


@pytest.mark.parametrize("network", ["relu", "tanh", "identity", "silu"])
@pytest.mark.parametrize("name", EDITORS)
def test_the_delta_moves_as_a_delta_where_every_quantity_moves_as_its_type_says(name, network):
    spec, source = SPECS[network], generator(4)
    metanet, (params, extra) = make(name, spec), quantities(spec)
    before = propose_delta(metanet, spec, params, extra)
    for symmetry in metanet.declared:
        if symmetry == "full" and network == "silu":
            continue
        element = random_element(spec, source, symmetry=symmetry)
        moved = [(kind, act(element, spec, values, kind)) for kind, values in extra]
        after = propose_delta(metanet, spec, act(element, spec, params), moved)
        expected = act(element, spec, before, DELTA)
        assert max(relative(after[k], expected[k]) for k in after) < 1e-10, symmetry


@pytest.mark.parametrize("name", EDITORS)
def test_a_stack_equals_its_networks_in_vmap_over_networks_and_weights(name):
    spec = SPECS["relu"]
    metanet, (params, extra) = make(name, spec), quantities(spec, count=2)
    weights = dict(metanet.named_parameters())
    both = {key: torch.stack([value, 1.1 * value]).detach() for key, value in weights.items()}

    def propose(own, params, *values):
        class Bound:
            types_in, types_out, embedding = metanet.types_in, metanet.types_out, 0

            def __call__(self, graph):
                return torch.func.functional_call(metanet, own, (graph,))

        return propose_delta(Bound(), spec, params, list(zip(KINDS, values, strict=True)), finite=True)

    found = torch.func.vmap(propose)(both, params, *(values for _, values in extra))
    for i in range(2):
        one = [{k: t[i] for k, t in values.items()} for values in (params, *(v for _, v in extra))]
        expected = propose({key: value[i] for key, value in both.items()}, *one)
        assert max(relative(found[k][i], expected[k]) for k in found) < 1e-11


@pytest.mark.parametrize("name", EDITORS)
def test_a_config_comes_back_from_json(name):
    metanet = make(name, SPECS["relu"])
    kind, config = describe_metanet(metanet)
    again = build_metanet(kind, json.loads(json.dumps(config)))
    assert again.types_in == metanet.types_in
    again.load_state_dict(metanet.state_dict())


def test_monomial_takes_no_even_quantity():
    with pytest.raises(SpecError, match="expected odd ones, which a factor brings to the type of parameters"):
        make("monomial", SPECS["relu"], ((-2, False),))
