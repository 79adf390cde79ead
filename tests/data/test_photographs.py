"""Crops of photographs that dependencies ship: training and test share no pixel, and a seed fixes them."""

import pytest
import torch

from weightedit.data import photographs as module
from weightedit.data.inr_fitting import ImageSource
from weightedit.data.photographs import PHOTOGRAPHS, photographs
from weightedit.errors import WeightEditError


def test_training_and_test_share_no_pixel(monkeypatch):
    """Left halves are dark, right halves bright, and the third photograph is red alone."""

    def painted(package, path):
        noise = 0.4 * torch.rand(3, 100, 201, generator=torch.Generator().manual_seed(0))
        noise[:, :, 100:] += 0.6
        return noise * torch.tensor([1.0, 0, 0]).view(3, 1, 1) if package == "matplotlib" else noise

    monkeypatch.setattr(module, "_photograph", painted)
    monkeypatch.setattr(module, "_PLAIN", 0.0)
    for split, dark, labels in (("train", True, {0, 1}), ("test", False, {0, 1, 2})):
        found = photographs(split, 40, size=20)
        assert set(found.labels.tolist()) == labels
        seen = found.images[:, 0].float().mean((1, 2)) < 128
        assert bool((seen == dark)[found.labels < 2].all())
        assert bool((found.images[found.labels == 2, 1:] == 0).all())


def test_a_seed_fixes_them_and_none_is_plain():
    found, again, other = (photographs("test", 12, size=32, seed=seed).images for seed in (1, 1, 2))
    assert found.shape == (12, 3, 32, 32) and torch.equal(found, again) and not torch.equal(found, other)
    assert float((found / 255.0).mean(1).std((1, 2)).min()) > 0.045  # 0.05 before bytes
    images, split = ImageSource(PHOTOGRAPHS, limit=5, validation=1, test_limit=3, size=16).read()
    assert images.images.shape == (8, 3, 16, 16) and split.bincount().tolist() == [4, 1, 3]


def test_wrong_input():
    for words in (("validation", 3, 64), ("train", 3, 86)):
        with pytest.raises(WeightEditError, match="expected train or test, and a size of 1 to 85"):
            photographs(*words[:2], size=words[2])
    with pytest.raises(WeightEditError, match="count=0"):
        photographs("train", 0)
