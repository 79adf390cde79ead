"""Edits that are known by examples alone: a 3 to an 8, a style, whatever no function of a picture computes.

Here: reading what INRs are to become (pictures, one for each, or a heap of which each takes its nearest; or what a
function of the user's own makes), and errors against it. An INR may have several targets, of which any will do: the
nearest to what was made counts, so that an editor settles for one of them where their mean would be a blur. Trainings
are training.py's and predictor_training.py's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from weightedit.data.images import is_undivided, load_images
from weightedit.data.weight_sets import WeightSet
from weightedit.editing.evaluation import mean_squared_errors
from weightedit.editing.operations import OPERATIONS, Operation, operation
from weightedit.editing.own_operations import is_own, named_operation
from weightedit.errors import WeightEditError, check_whole
from weightedit.inr.stack import INRStack

_CHUNK = 200


@dataclass(frozen=True)
class Pairing:
    """Where the pictures are that INRs are to become.

    Attributes:
        targets: a hub name, or a folder, with the splits that the source images have: one picture for each of them,
            in their order (as of the same file names); or FILE.py:FUNCTION, a function of your own that makes
            them, from images [N, C, H, W] in [0, 1] to the same; "" for none, where a known operation makes them.
        nearest: 0 where targets are in order; else they are a heap, and each INR takes the so many that are nearest to
            its source image when both are blurred, of the same split.
        target_labels: classes of the targets in the heap; none for all.
        description: what becomes of a picture, in words, for the card.
    """

    targets: str = ""
    nearest: int = 0
    target_labels: tuple[int, ...] = ()
    description: str = ""

    def __post_init__(self) -> None:
        check_whole("nearest", self.nearest, 0)
        if self.nearest and is_own(self.targets):
            raise WeightEditError(
                f"got nearest={self.nearest} with targets={self.targets}, a function; expected a heap of pictures to "
                "choose from: leave nearest out, since the function makes one target for each INR."
            )
        if self.target_labels and not self.nearest:
            raise WeightEditError(
                f"got target_labels={self.target_labels} without nearest; expected all targets, in order: choose "
                "classes where each INR takes its nearest=K of them."
            )

    def of(self, splits: Mapping[str, WeightSet]) -> dict[str, WeightSet]:
        """The splits "train", "validation" and "test" with their targets.

        Raises:
            WeightEditError: targets that are fewer than the source images, or than `nearest`, or of another size; a
                function that cannot be read, or that does not give images.
        """
        if not self.targets:
            return dict(splits)
        if is_own(self.targets):
            made = named_operation(self.targets)
            return {name: made_by(part, made) for name, part in splits.items()}
        if not self.nearest and is_undivided(self.targets):
            pictures = load_images(self.targets).images
            return {name: in_order(part, pictures) for name, part in splits.items()}
        train, test = (load_images(self.targets, name) for name in ("train", "test"))
        if not self.nearest:
            found = {name: (train.images, 0) for name in splits} | {"test": (test.images, len(train))}
            return {name: in_order(part, *found[name]) for name, part in splits.items()}
        train, test = (part.of_labels(self.target_labels).images for part in (train, test))
        heaps = {"train": train, "validation": train, "test": test}
        return {name: nearest_of(part, heaps[name], self.nearest) for name, part in splits.items()}

    def facts(self) -> dict[str, Any]:
        """What decides the targets, JSON values; {} where nothing is chosen."""
        return {name: value for name, value in asdict(self).items() if value and name != "description"}

    def told(self, name: str) -> str:
        """What edit `name` does, in words."""
        return operation(name).description if name in OPERATIONS else self.description or "known by examples alone"


def made_by(weights: WeightSet, function: Operation) -> WeightSet:
    """The set with one target for each INR: the function of its source image, in bytes."""
    found = [function(part.float() / 255.0) for part in weights.images.split(_CHUNK)]
    return replace(weights, targets=(255.0 * torch.cat(found)).round().byte().unsqueeze(1))


def in_order(weights: WeightSet, pictures: Tensor, first: int = 0) -> WeightSet:
    """The set with one target for each INR: the picture at its source image's number.

    Args:
        weights: with `index`.
        pictures: uint8 [M, C, H, W], of the source images numbered from `first` on.
        first: where the test images begin, whose numbers follow the training images'.

    Raises WeightEditError on INRs of other numbers: the targets are not those of the source images.
    """
    index, last = weights.stack.index, first + len(pictures) - 1
    if index is None or not bool(((index >= first) & (index <= last)).all()):
        found = "no numbers" if index is None else f"numbers {int(index.min())} to {int(index.max())}"
        raise WeightEditError(
            f"got targets for source images {first} to {last}, of INRs with {found}; expected one target for each "
            "image that was there to fit, in their order: add the missing ones, or let each INR take its nearest=K."
        )
    return replace(weights, targets=pictures[index - first].unsqueeze(1))


def nearest_of(weights: WeightSet, heap: Tensor, count: int) -> WeightSet:
    """The set with, for each INR, the `count` pictures of a heap that are nearest to its source image, nearest first.

    Distances are between blurred pictures, so that strokes that run beside each other are near.

    Args:
        weights: N INRs.
        heap: uint8 [M, C, H, W] of the same size.
        count: at most M.

    Raises WeightEditError on fewer pictures, or of another size.
    """
    if len(heap) < count or heap.shape[1:] != weights.images.shape[1:]:
        raise WeightEditError(
            f"got {len(heap)} targets of {tuple(heap.shape[1:])} for source images of "
            f"{tuple(weights.images.shape[1:])}, {count} for each; expected as many, of the same shape: "
            "add some, or resize them."
        )
    blurred = _blurred(heap)
    squares = blurred.square().sum(1)
    found = [
        (squares - 2 * _blurred(part) @ blurred.T).topk(count, largest=False).indices
        for part in weights.images.split(_CHUNK)
    ]
    return replace(weights, targets=heap[torch.cat(found)])


def _blurred(images: Tensor) -> Tensor:
    """[N, C * H * W]: what is left of bytes after four passes of a 3 x 3 binomial filter."""
    blurred = images.float() / 255.0
    for _ in range(4):
        blurred = operation("blur")(blurred)
    return blurred.flatten(1)


def check_name(name: str, weights: WeightSet) -> None:
    """Raise WeightEditError where targets are given for an operation that is known, or none for one that is not."""
    if weights.targets is not None and name in OPERATIONS:
        raise WeightEditError(
            f"got targets for {name!r}, a known operation, which edits would be judged by; expected a name of your "
            "own: choose another."
        )
    if weights.targets is None:
        operation(name)


def wanted_of(weights: WeightSet, name: str) -> Tensor:
    """What INRs are to become: the operation of their source images, float [N, C, H, W]; or bytes [N, K, C, H, W]."""
    check_name(name, weights)
    return operation(name)(weights.floats()) if weights.targets is None else weights.targets


def error_to_nearest(pictures: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared error [N], of pictures [N, C, H, W] in [0, 1] to the nearest of what is wanted.

    Args:
        pictures: as made.
        wanted: float [N, C, H, W], or bytes [N, K, C, H, W], see `wanted_of`.
    """
    if wanted.dim() == 4:
        return (pictures - wanted).square().mean((1, 2, 3))
    return (pictures.unsqueeze(1) - wanted.to(pictures) / 255.0).square().mean((2, 3, 4)).amin(1)


def errors_to_nearest(stack: INRStack, wanted: Tensor) -> Tensor:
    """The same of the renderings of N INRs, which are not cut off at 0 and 1."""
    if wanted.dim() == 4:
        return mean_squared_errors(stack, wanted)
    size = wanted.shape[-2:]
    parts = torch.arange(len(stack)).split(_CHUNK)
    found = [error_to_nearest(stack[rows].precise().render(*size), wanted[rows]) for rows in parts]
    return torch.cat(found)


def first_of(wanted: Tensor) -> Tensor:
    """Of several targets the first, which is the nearest to the source image: float [N, C, H, W]."""
    return wanted if wanted.dim() == 4 else wanted[:, 0].float() / 255.0
