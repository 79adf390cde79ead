"""Small pictures cropped from the photographs that dependencies ship, so that nothing is downloaded.

They are scikit-learn's china.jpg and flower.jpg, and matplotlib's grace_hopper.jpg. Training and test crops share no
pixel: the former come from the left halves of the first two, the latter from their right halves and the third.
"""

from __future__ import annotations

from importlib import resources

import torch
from torch import Tensor
from torch.nn import functional

from weightedit.data.images import ImageSet, load_picture
from weightedit.errors import WeightEditError, check_whole

PHOTOGRAPHS = "photographs"
"""Their name where a data set is asked for."""
SPLITS = ("train", "test")
_FILES = (
    ("sklearn.datasets", "images/china.jpg"),
    ("sklearn.datasets", "images/flower.jpg"),
    ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
)
_LARGEST, _PLAIN = 5.0, 0.05


def photographs(split: str, count: int, *, size: int = 64, seed: int = 0) -> ImageSet:
    """Crops of `size` x `size` pixels at random places, each made smaller by a random factor from 1 to 5.

    Plain pieces of a sky or a wall, of a standard deviation below 0.05, are drawn again.

    Args:
        split: "train" or "test".
        count: at least 1.
        size: 1 to 85, of which five times fit into a photograph's half.
        seed: of places and factors.

    Returns:
        uint8 [count, 3, size, size]; labels tell the photograph, 0 to 2.

    Raises:
        WeightEditError: another split, or a count or size out of range.
    """
    check_whole("count", count, 1)
    if split not in SPLITS or not 1 <= size <= 85:
        raise WeightEditError(f"got split={split!r}, size={size}; expected train or test, and a size of 1 to 85.")
    parts, generator = _parts(split), torch.Generator().manual_seed(seed)
    crops, labels = [], []
    while len(crops) < count:
        which, factor, down, across = torch.rand(4, generator=generator).tolist()
        part = parts[int(which * len(parts))]
        side = min(round(size * _LARGEST**factor), *part.shape[1:])
        top, left = (int(at * (n - side + 1)) for at, n in zip((down, across), part.shape[1:], strict=True))
        crop = part[:, top : top + side, left : left + side].unsqueeze(0)
        small = functional.interpolate(crop, (size, size), mode="bicubic", antialias=True, align_corners=False)
        if float(small.mean(1).std()) >= _PLAIN:
            crops.append(small)
            labels.append(int(which * len(parts)))
    images = (255 * torch.cat(crops)).round().clamp(0, 255).to(torch.uint8)
    return ImageSet(images, torch.tensor(labels), torch.arange(count))


def _parts(split: str) -> list[Tensor]:
    """What may be seen of every photograph, float32 [3, H, W]."""
    whole = [_photograph(package, path) for package, path in _FILES]
    half = [picture.shape[2] // 2 for picture in whole]
    if split == "train":
        return [picture[:, :, :n] for picture, n in zip(whole[:2], half, strict=False)]
    return [picture[:, :, n:] for picture, n in zip(whole[:2], half, strict=False)] + whole[2:]


def _photograph(package: str, path: str) -> Tensor:
    with resources.as_file(resources.files(package).joinpath(path)) as place:
        return load_picture(place, channels=3)
