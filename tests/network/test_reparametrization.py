"""Reparametrized networks compute what they computed, by what their kind says and nothing else."""

import pytest
import torch

from tests.networks import CNNS, SPECS, generator, random_images, random_params, relative
from weightedit.errors import SpecError
from weightedit.network.reparametrization import KINDS, kinds_of, reparametrized

ALLOWED = {
    "relu": KINDS[:3],
    "tanh": ("permuted", "sign-flipped"),
    "sine": ("permuted", "sign-flipped"),
    "silu": ("permuted",),
    "mixed": ("permuted",),
}


def _inputs(spec):
    if spec.layers[0].kernel is not None:
        return random_images(spec, 6)
    return 2 * torch.rand(9, spec.widths[0], dtype=torch.float64, generator=generator(9)) - 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name, kinds in ALLOWED.items() for kind in kinds])
def test_the_function_is_unchanged(name, kind, dtype):
    for spec in (CNNS[name], SPECS[name]):
        params, inputs = random_params(spec, count=4, dtype=dtype), _inputs(spec).to(dtype)
        moved = reparametrized(spec, params, kind, generator(1))
        # omega = 30 multiplies the rounding in the pre-activations of sine layers.
        tolerance = (1e-10 if dtype == torch.float64 else 2e-5) * (10 if name in ("sine", "mixed") else 1)
        assert relative(spec.forward(moved, inputs), spec.forward(params, inputs)) < tolerance
        assert all(tensor.dtype == dtype for tensor in moved.values())
        first = spec.layers[0].weight
        assert not torch.equal(moved[first], params[first])
        alike = reparametrized(spec, params, kind, generator(1))
        assert all(torch.equal(alike[key], moved[key]) for key in moved)


def test_each_kind_moves_one_factor():
    spec, params = CNNS["relu"], random_params(CNNS["relu"], count=50)
    first = params["layers.0.weight"]
    for kind, low, high in ((KINDS[1], 1, 1000), (KINDS[2], 2.4e-3, 404)):
        ratio = reparametrized(spec, params, kind, generator())["layers.0.weight"] / first
        assert float(ratio.std(-1).max()) < 1e-9 * high and low <= float(ratio.min()) and float(ratio.max()) <= high
        middle = ratio.flatten().median()
        assert (300 < middle < 700) if kind == KINDS[1] else (0.3 < middle < 3)
        assert not torch.equal(ratio[0], ratio[1])
    permuted = reparametrized(spec, params, "permuted", generator())["layers.0.weight"]
    torch.testing.assert_close(permuted.flatten(1).sort(1)[0], first.flatten(1).sort(1)[0])
    tanh = reparametrized(CNNS["tanh"], params, "sign-flipped", generator())["layers.0.weight"]
    assert torch.equal(tanh.abs(), first.abs()) and 0.3 < float((tanh != first).double().mean()) < 0.7


@pytest.mark.parametrize("name", ALLOWED)
def test_kinds_are_those_that_the_activations_allow(name):
    assert kinds_of(CNNS[name]) == ALLOWED[name]
    for kind in ("shuffled", *set(KINDS) - set(ALLOWED[name])):
        with pytest.raises(SpecError, match=f"'{kind.replace('^', '.')}'; expected one of permuted"):
            reparametrized(CNNS[name], random_params(CNNS[name], count=2), kind, generator())
