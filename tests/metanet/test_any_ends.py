"""Metanetworks that tell inputs and outputs not apart: they treat any number of them, and permute with them."""

import pytest
import torch

from tests.metanet.chain_networks import perturbed
from tests.networks import generator, relative
from weightedit.delta import propose_delta
from weightedit.errors import SpecError
from weightedit.metanet.registry import make_metanet
from weightedit.metatrain.image_optimizees import conv_net
from weightedit.network.graph_spec import spec_of

NAMES = ("gauge-gmn", "gauge-gmn-b", "ng-gnn", "ng-t", "nfn-np")


def params_of(inputs, outputs):
    net = conv_net(inputs, outputs, widths=(4, 5))
    like = {name: p.detach().double() for name, p in net.named_parameters()}
    return spec_of(net), {name: torch.randn(p.shape, generator=generator(), dtype=p.dtype) for name, p in like.items()}


def small(name, spec, ends):
    widths = {"width": 6} if name == "nfn-np" else {"node_width": 6, "edge_width": 4}
    return perturbed(make_metanet(name, [spec], layers=2, inputs=ends, outputs=ends, **widths), 0.3).double()


@pytest.mark.parametrize("name", NAMES)
def test_any_number_of_ends_is_treated_and_all_are_alike(name):
    metanet = small(name, params_of(1, 10)[0], 0)
    spec, params = params_of(3, 4)
    first, last = [key for key in params if key.endswith("weight")][:: len(spec.layers) - 1]
    at_inputs, at_outputs = torch.tensor([2, 0, 1]), torch.tensor([1, 3, 0, 2])

    def permuted(tensors):
        bias = last.replace("weight", "bias")
        moved = {first: tensors[first][:, at_inputs], last: tensors[last][at_outputs], bias: tensors[bias][at_outputs]}
        return {**tensors, **moved}

    with torch.no_grad():
        delta, other = (propose_delta(metanet, spec, x) for x in (params, permuted(params)))
    for key, expected in permuted(delta).items():
        assert relative(other[key], expected) < 1e-10, key
        assert relative(delta[key], expected) > 1e-3 or key not in (first, last)


@pytest.mark.parametrize("name", NAMES)
def test_ends_that_have_codes_of_their_own_keep_their_number(name):
    spec, params = params_of(3, 4)
    metanet = make_metanet(name, [params_of(1, 10)[0]], layers=1).double()
    with pytest.raises(SpecError, match="3 inputs and 4 outputs; expected"):
        propose_delta(metanet, spec, params)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "gauge-gmn",
            {"embedding": 4},
            "0 inputs and 10 outputs with probes 0 and embedding 4; expected numbers of",
        ),
        ("ng-t", {"inputs": -1}, "-1 inputs and 10 outputs"),
        ("nfn-hnp", {}, "expected positive sizes"),
        ("dws", {}, "expected positive sizes"),
    ],
)
def test_what_needs_their_number_refuses_to_do_without(name, options, message):
    with pytest.raises(SpecError, match=message):
        make_metanet(name, [params_of(1, 10)[0]], **{"inputs": 0, **options})
