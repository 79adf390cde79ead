"""The three checks: sound networks pass, and each check fails on what it is there to find."""

import pytest
import torch

from weightedit.cli import checks
from weightedit.cli.checks import check_equivariance, check_identity_edit, check_round_trip
from weightedit.editing.one_shot import OneShotEditor
from weightedit.inr.convention import NFN, Convention
from weightedit.inr.siren import initial_params
from weightedit.inr.stack import INRStack
from weightedit.metanet.baselines import FlatMLP, FlatMLPConfig
from weightedit.metanet.gauge_gmn.config import GaugeGMNConfig
from weightedit.metanet.gauge_gmn.network import GaugeGMN

SMALL = {"node_width": 4, "edge_width": 2, "layers": 1, "probes": 2, "levels": 3}


def _stack(widths=(2, 6, 5, 1), convention=None, dtype=torch.float32):
    params = initial_params(2, widths, generator=torch.Generator().manual_seed(0))
    return INRStack({k: v.to(dtype) for k, v in params.items()}, convention or Convention(), 5, 4)


@pytest.mark.parametrize(
    "stack",
    [_stack(), _stack(convention=NFN), _stack((2, 4, 3)), _stack((2, 5, 4, 3, 3)), _stack(dtype=torch.bfloat16)],
    ids=["gray", "NFN", "shallow", "deep RGB", "bfloat16"],
)
def test_sound_networks_pass(stack):
    results = [check_round_trip(stack), check_identity_edit(stack), check_equivariance(stack)]
    assert [result.ok for result in results] == [True] * 3, results
    assert "difference 0" in results[0].figure and "bit-equal" in results[1].figure
    assert "layers." in results[2].figure and "fresh gauge-gmn" in results[2].figure


def _far_from_a_fit(size, depth=12):
    """A SIREN that amplifies the rounding of its own weights, layer by layer."""
    params, generator = _stack((2, *(16,) * depth, 1)).params, torch.Generator().manual_seed(1)
    return INRStack(
        {k: size * torch.randn(p.shape, generator=generator) for k, p in params.items()}, Convention(), 6, 6
    )


def test_where_exactness_ends_is_said_and_is_no_fault():
    for result in (check_identity_edit(_stack()), check_equivariance(_stack())):
        assert "exactness ends" not in result.figure
    for result in (check_identity_edit(_far_from_a_fit(0.1)), check_equivariance(_far_from_a_fit(0.1))):
        assert result.ok and "exactness ends here: one rounding" in result.figure


def test_rounding_excuses_no_editor_without_equivariance():
    mlp = FlatMLP(FlatMLPConfig((2, *(16,) * 12, 1), hidden=8))
    for size in (0.1, 0.3):
        assert not check_equivariance(_far_from_a_fit(size), OneShotEditor(mlp, "dilate")).ok
    chaotic = check_equivariance(_far_from_a_fit(0.3))
    assert not chaotic.ok and "exactness ends here" in chaotic.figure


@pytest.mark.parametrize("symmetry", ["full", "permutation", "sign"])
def test_an_editor_is_judged_under_its_own_symmetry_and_convention(symmetry):
    editor = OneShotEditor(GaugeGMN(GaugeGMNConfig(**SMALL, symmetry=symmetry)), "dilate", NFN)
    result = check_equivariance(_stack(), editor)
    assert result.ok and "gauge-gmn-b, dilate" in result.figure
    assert (symmetry == "full") != (f"under {symmetry} symmetry" in result.figure)
    assert next(editor.parameters()).dtype == torch.float32


def test_an_editor_without_equivariance_fails():
    result = check_equivariance(_stack(), OneShotEditor(FlatMLP(FlatMLPConfig((2, 6, 5, 1), hidden=8)), "dilate"))
    assert not result.ok and "relative error" in result.figure


def test_a_lossy_round_trip_fails(monkeypatch):
    class Lossy:
        def to_params(self):
            return [{name: tensor[0] * (1 + 1e-7) for name, tensor in _stack().params.items()}]

    monkeypatch.setattr(checks, "from_pyg", lambda data: Lossy())
    assert not check_round_trip(_stack()[0]).ok


def test_an_identity_edit_that_changes_something_fails(monkeypatch):
    monkeypatch.setattr(checks, "apply_delta", lambda params, delta: {n: t * (1 + 1e-5) for n, t in params.items()})
    result = check_identity_edit(_stack())
    assert not result.ok and "changed" in result.figure


def test_a_canonical_form_of_another_picture_fails(monkeypatch):
    original = checks.canonicalize

    def wrong(spec, params):
        found, element = original(spec, params)
        return {**found, "layers.0.bias": found["layers.0.bias"] + 1e-3}, element

    monkeypatch.setattr(checks, "canonicalize", wrong)
    assert not check_identity_edit(_stack()).ok
