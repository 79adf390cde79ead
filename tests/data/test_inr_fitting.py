"""Images divided into splits, and weight sets fitted to them in memory."""

import numpy as np
import pytest
import torch
from PIL import Image

from weightedit.data.images import ImageSet
from weightedit.data.inr_fitting import ImageSource, fit_set
from weightedit.errors import FileFormatError, WeightEditError
from weightedit.inr.fitting import FitOptions


def _pictures(count: int, seed: int = 0) -> torch.Tensor:
    """Smooth pictures, uint8 [count, 1, 8, 8]."""
    rough = torch.rand(count, 1, 3, 3, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(rough, (8, 8), mode="bilinear", align_corners=True)
    return (255 * smooth).round().to(torch.uint8)


def test_splits_share_no_image_and_test_indices_follow(tmp_path):
    for split, count in (("train", 12), ("test", 4)):
        (tmp_path / split / "0").mkdir(parents=True)
        for number, picture in enumerate(_pictures(count, seed=count)):
            Image.fromarray(np.asarray(picture[0])).save(tmp_path / split / "0" / f"{number:02d}.png")
    images, split = ImageSource(str(tmp_path), validation=3, seed=5).read()
    assert [int((split == number).sum()) for number in (0, 1, 2)] == [9, 3, 4]
    assert sorted(images.index.tolist()) == list(range(16)) and bool((images.index[split == 2] >= 12).all())
    (tmp_path / "train" / "0" / "05.png").rename(tmp_path / "train" / "05.png")
    (tmp_path / "train" / "1").mkdir()
    (tmp_path / "train" / "05.png").rename(tmp_path / "train" / "1" / "05.png")  # the last of train now
    chosen, where = ImageSource(str(tmp_path), validation=3, labels=(0,)).read()
    assert sorted(chosen.index.tolist()) == [*range(11), *range(12, 16)], "numbers are those of the source"
    assert set(chosen.labels.tolist()) == {0} and [int((where == n).sum()) for n in (0, 1, 2)] == [8, 3, 4]
    again = ImageSource(str(tmp_path), validation=3, seed=5).read()[1]
    other = ImageSource(str(tmp_path), validation=3, seed=6).read()[1]
    assert torch.equal(split, again) and not torch.equal(split, other)
    with pytest.raises(WeightEditError, match="validation 7 of 12 images; expected at most half"):
        ImageSource(str(tmp_path), validation=7).read()
    with pytest.raises(WeightEditError, match="expected limits and a size of at least 0"):
        ImageSource(str(tmp_path), limit=-1)
    with pytest.raises(FileFormatError, match="got split=tset"):  # and no fifth of the training images in its place
        ImageSource(str(tmp_path), validation=3, test_split="tset").read()


def test_a_fifth_of_a_folder_of_nothing_but_pictures_is_kept_for_the_test(tmp_path):
    for number, picture in enumerate(_pictures(11)):
        Image.fromarray(np.asarray(picture[0])).save(tmp_path / f"{number:02d}.png")
    images, split = ImageSource(str(tmp_path), validation=3).read()
    assert [int((split == number).sum()) for number in (0, 1, 2)] == [6, 3, 2] and len(images) == 11
    assert int((ImageSource(str(tmp_path), validation=3, test_limit=1).read()[1] == 2).sum()) == 1
    assert not bool((ImageSource(str(tmp_path), validation=3, test_split="").read()[1] == 2).any())
    with pytest.raises(WeightEditError, match="validation 5 of 9 images; expected at most half"):
        ImageSource(str(tmp_path), validation=5).read()


def test_every_image_has_its_inrs_beside_it():
    pictures = _pictures(3)
    images = ImageSet(pictures, torch.tensor([7, 8, 9]), torch.tensor([20, 21, 22]))
    options, seeded = FitOptions(target_psnr=30.0), torch.Generator().manual_seed(0)
    made = fit_set(images, torch.tensor([0, 1, 2]), hidden=(16, 16), repeats=2, options=options, generator=seeded)
    stack = made.stack
    assert len(stack) == 6 and stack.widths == (2, 16, 16, 1)
    assert stack.index.tolist() == [20, 20, 21, 21, 22, 22] and stack.split.tolist() == [0, 0, 1, 1, 2, 2]
    assert torch.equal(made.images, pictures.repeat_interleave(2, 0))
    errors = (stack.render() - made.floats()).square().mean((1, 2, 3))
    assert bool((errors <= 10**-3.0).all())
    first = stack.params["layers.0.weight"]
    assert not torch.equal(first[0], first[1])  # initializations of their own


def test_what_missed_its_target_is_left_out():
    seeded = torch.Generator().manual_seed(0)
    noise = torch.randint(256, (1, 1, 8, 8), dtype=torch.uint8, generator=seeded)  # out of reach of 25 parameters
    solid = torch.tensor([40, 200], dtype=torch.uint8).reshape(2, 1, 1, 1).expand(2, 1, 8, 8)
    pictures = torch.cat([solid, noise])
    images = ImageSet(pictures, torch.zeros(3, dtype=torch.int64), torch.arange(3))
    options, split = FitOptions(target_psnr=18.0), torch.zeros(3, dtype=torch.int64)
    made = fit_set(images, split, hidden=(6,), options=options, generator=seeded)
    assert made.stack.index.tolist() == [0, 1] and torch.equal(made.images, pictures[:2])
    kept = fit_set(images, split, hidden=(6,), options=options, generator=seeded, least_psnr=1.0)
    assert kept.stack.index.tolist() == [0, 1, 2] and float(kept.stack.psnr[2]) < 18
    sized = fit_set(images[:1], split[:1], hidden=None, options=options, generator=seeded)
    assert sized.stack.widths == (2, 32, 32, 1)
