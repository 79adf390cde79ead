"""From the images of a data set to weight sets: which image is in which split, and the INRs fitted to them.

Fitting itself is inr/fitting.py's; tasks/fit_inrs.py writes what is made here to disk, shard by shard, and
tasks/train_editor.py may use it as it comes: a GPU fits in seconds what takes minutes to write and read.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from weightedit.data.images import ImageSet, is_undivided, load_images
from weightedit.data.photographs import PHOTOGRAPHS, photographs
from weightedit.data.weight_sets import WeightSet, split_by_image
from weightedit.errors import WeightEditError
from weightedit.inr.convention import Convention
from weightedit.inr.fitting import FitOptions, fit, hidden_widths


@dataclass(frozen=True)
class ImageSource:
    """Images of a data set and how they are divided into train, validation and test.

    Attributes:
        images: a hub name, or a local folder with train and test splits, or with none, of which a fifth is then the
            test split; or "photographs", for 400 crops each, or as many as the limits say, of those that dependencies
            ship (data/photographs.py), of 64 x 64 pixels.
        train_split: name of the split divided into train and validation.
        test_split: name of the test split; "" for none.
        validation: images kept for validation, at most half of the training split.
        limit: use the first so many images of each split; 0 for all.
        test_limit: of the test split, where it should differ; 0 for as many as `limit` says.
        labels: classes to use, of these images; none for all.
        size: resize the images to size x size; 0 keeps theirs.
        seed: of the division, and of what is drawn for these images.

    Raises:
        WeightEditError: a limit or a size below 0.
    """

    images: str = "ylecun/mnist"
    train_split: str = "train"
    test_split: str = "test"
    validation: int = 5000
    limit: int = 0
    test_limit: int = 0
    labels: tuple[int, ...] = ()
    size: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.limit, self.test_limit, self.size) < 0:
            raise WeightEditError(f"got {self}; expected limits and a size of at least 0, 0 being all: correct them.")

    def read(self) -> tuple[ImageSet, Tensor]:
        """Images of all splits, test indices following the training split's, and int64 [N]: 0 train, 1 validation,
        2 test."""
        train = self._split(self.train_split, self.limit)
        count, train = len(train), train.of_labels(self.labels)
        undivided = bool(self.test_split) and self.images != PHOTOGRAPHS and is_undivided(self.images)
        held = min(self.test_limit or len(train), max(1, len(train) // 5)) if undivided else 0
        left = len(train) - held
        if not 0 <= self.validation <= left // 2:
            raise WeightEditError(
                f"validation {self.validation} of {left} images; expected at most half of them: lower it."
            )
        counts = (left - self.validation, self.validation, held)
        split = split_by_image(train.index, counts=counts, seed=self.seed)
        if held or not self.test_split:
            return train, split
        test = self._split(self.test_split, self.test_limit or self.limit).of_labels(self.labels)
        images = ImageSet(
            torch.cat([train.images, test.images]),
            torch.cat([train.labels, test.labels]),
            torch.cat([train.index, test.index + count]),
        )
        return images, torch.cat([split, torch.full((len(test),), 2)])

    def _split(self, name: str, limit: int) -> ImageSet:
        if self.images == PHOTOGRAPHS:
            return photographs(name, limit or 400, size=self.size or 64, seed=self.seed)
        size = (self.size, self.size) if self.size else None
        return load_images(self.images, name, limit=limit or None, size=size)


def fit_set(
    images: ImageSet,
    split: Tensor,
    *,
    hidden: tuple[int, ...] | None = (32, 32),
    repeats: int = 1,
    options: FitOptions | None = None,
    generator: torch.Generator | None = None,
    least_psnr: float | None = None,
    device: torch.device | str = "cpu",
) -> WeightSet:
    """One SIREN or several per image, each from its own initialization; those that missed the target are left out.

    Args:
        images: N of them.
        split: int64 [N], of each image.
        hidden: hidden widths; None chooses by the images' size, see inr.fitting.hidden_widths.
        repeats: INRs per image, which follow one another.
        options: None is those of the shipped editors' sets, FitOptions(method="fast").
        generator: where initializations come from; None is PyTorch's global CPU generator.
        least_psnr: in dB, what those that missed the target must reach to be kept all the same; None keeps none.
        device: where to fit, and where weights and images then are.
    """
    rows = torch.arange(len(images)).repeat_interleave(repeats)
    pictures = images.images.to(device)[rows.to(device)]
    channels, *size = images.images.shape[1:]
    widths = (2, *(hidden or hidden_widths(*size)), channels)
    result = fit(
        pictures,
        widths=widths,
        convention=Convention(),
        options=options or FitOptions(method="fast"),
        generator=generator,
    )
    facts = {"label": images.labels[rows], "index": images.index[rows], "split": split[rows]}
    keep = torch.ones(len(rows), dtype=torch.bool, device=pictures.device)
    keep[result.missed] = False if least_psnr is None else result.psnr[result.missed] >= least_psnr
    stack = replace(result.stack, **{name: value.to(device) for name, value in facts.items()})
    return WeightSet(stack, pictures)[keep]
