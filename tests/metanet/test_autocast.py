"""Under bf16 autocast the phases of a SIREN, tens of radians, are still computed in float32."""

import torch

from weightedit.editing.one_shot import OneShotEditor
from weightedit.inr.siren import initial_params, render_images
from weightedit.metanet.gauge_gmn.config import GaugeGMNConfig
from weightedit.metanet.gauge_gmn.network import GaugeGMN


def test_bf16_changes_the_delta_by_percents_and_the_rendering_by_nothing() -> None:
    config = GaugeGMNConfig(layers=1, node_width=16, edge_width=8, probes=9, forecast=16, refit=True)
    editor = OneShotEditor(GaugeGMN(config), "dilate")
    params = initial_params(4, (2, 16, 16, 1), generator=torch.Generator().manual_seed(0))
    expected, picture = editor.edit_params(params), render_images(params, editor.convention, 9, 9)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        edited = editor.edit_params(params)
        assert torch.equal(render_images(params, editor.convention, 9, 9), picture)
        render_images(edited, editor.convention, 9, 9).square().mean().backward()
    for name, tensor in expected.items():
        assert edited[name].dtype == torch.float32
        change = (tensor - params[name]).norm()
        assert 0 < float((edited[name] - tensor).norm()) < 0.03 * float(change), name
    assert all(bool(torch.isfinite(p.grad).all()) for p in editor.parameters() if p.grad is not None)
