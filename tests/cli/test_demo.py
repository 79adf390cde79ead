"""The demo's digits and its run."""

import pytest
import torch

from weightedit.cli.demo import digit_images, fit_directly, run_demo
from weightedit.editing.evaluation import mean_squared_errors
from weightedit.editing.one_shot import OneShotEditor
from weightedit.editing.operations import operation
from weightedit.errors import WeightEditError
from weightedit.metanet.gauge_gmn.config import GaugeGMNConfig
from weightedit.metanet.gauge_gmn.network import GaugeGMN

SMALL = GaugeGMNConfig(node_width=4, edge_width=2, layers=1, probes=2, levels=3)


def test_digits_are_near_to_mnist():
    """MNIST, first 2,000 test images: mean 0.121, deviation 0.297, 7.0 % above 0.95, dilation changes 0.0913."""
    images, labels = digit_images(500)
    assert images.shape == (500, 1, 28, 28) and labels[:10].tolist() == list(range(10))
    assert float(images.min()) >= 0 and float(images.max()) <= 1
    assert torch.equal((images * 255).round() / 255, images)
    assert abs(float(images.mean()) - 0.121) < 0.02 and abs(float(images.std()) - 0.297) < 0.03
    assert abs(float((images > 0.95).float().mean()) - 0.07) < 0.03
    assert abs(float((operation("dilate")(images) - images).square().mean()) - 0.0913) < 0.02
    assert float(images.amax((0, 1))[[0, -1]].max()) == 0, "strokes reach the border"


def test_the_center_of_mass_is_in_the_middle():
    images, _ = digit_images(100)
    mass = images.sum((1, 2, 3))
    rows = (images.sum((1, 3)) * torch.arange(28)).sum(1) / mass
    columns = (images.sum((1, 2)) * torch.arange(28)).sum(1) / mass
    assert float((rows - 13.5).abs().max()) <= 0.51 and float((columns - 13.5).abs().max()) <= 0.51


@pytest.mark.parametrize("count", [0, 1798])
def test_counts_out_of_range_are_refused(count):
    with pytest.raises(WeightEditError, match="expected 1 to 1797"):
        digit_images(count)


def test_the_run_measures_what_it_says():
    found = run_demo(OneShotEditor(GaugeGMN(SMALL), "invert").eval(), 3)
    assert found.labels.tolist() == [0, 1, 2] and found.missed == 0
    assert found.fitted.psnr is not None and float(found.fitted.psnr.min()) >= 40
    assert torch.equal(found.targets, 1 - found.images)
    torch.testing.assert_close(found.errors["do nothing"], mean_squared_errors(found.fitted, found.targets))
    torch.testing.assert_close(found.errors["edited"], mean_squared_errors(found.edited, found.targets))
    assert float(found.errors["floor"].max()) < 1e-3
    again = run_demo(OneShotEditor(GaugeGMN(SMALL), "invert").eval(), 3)
    assert torch.equal(again.errors["edited"], found.errors["edited"])


def test_the_demo_is_guarded_and_says_so():
    """Nothing is nearer to the digits than they are."""
    found = run_demo(OneShotEditor(GaugeGMN(SMALL), "identity").eval(), 2)
    assert found.left.startswith("2 of 2 INRs, which the whole edit makes worse: 0 (")
    assert torch.equal(found.errors["edited"], found.errors["do nothing"])


def test_the_floor_starts_from_the_inrs_themselves():
    found = run_demo(OneShotEditor(GaugeGMN(SMALL), "identity").eval(), 2)
    floor = fit_directly(found.fitted, found.images)
    assert floor.provenance["init"] == "given"
    assert floor.provenance["steps"] != "200 to 200" and float(mean_squared_errors(floor, found.images).max()) < 1e-4


def test_an_operation_that_is_not_known_is_refused():
    with pytest.raises(WeightEditError, match="got an editor of 'embolden', which is known by examples alone"):
        run_demo(OneShotEditor(GaugeGMN(SMALL), "embolden"), 2)
