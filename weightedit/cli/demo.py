"""The demo: real handwritten digits that need no download, fitted, edited, and compared with what was wanted.

Here: the digits, and the run from images to errors. Not here: drawing (plots.py), printing and finding the editor
(main.py, arguments.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from weightedit.editing.editor import Editor
from weightedit.editing.evaluation import mean_squared_errors
from weightedit.editing.guard import guard, known_target
from weightedit.editing.operations import OPERATIONS, operation
from weightedit.errors import WeightEditError, check_seed
from weightedit.inr.fitting import FitOptions, fit, fit_directly
from weightedit.inr.stack import INRStack

_SIZE, _INNER = 28, 20
_BLACK, _WHITE = 0.45, 0.80


@dataclass(frozen=True)
class Demo:
    """What a run of the demo found, for N digits.

    Attributes:
        labels: int64 [N], the digits.
        images: float32 [N, 1, 28, 28] in [0, 1], what the INRs were fitted to.
        fitted: the INRs, with their PSNR.
        edited: the same after the editor.
        targets: the editor's operation on `images`.
        errors: mean squared error per digit against `targets`, [N] each: "do nothing", "edited", "floor".
        missed: how many digits were left out because their fit missed the target PSNR.
        left: which INRs the whole edit made worse, in a line, and were not wholly edited; "" if none.
    """

    labels: Tensor
    images: Tensor
    fitted: INRStack
    edited: INRStack
    targets: Tensor
    errors: dict[str, Tensor]
    missed: int
    left: str


def digit_images(count: int) -> tuple[Tensor, Tensor]:
    """Handwritten digits of scikit-learn (Optical Recognition of Handwritten Digits, UCI), brought near to MNIST's.

    They are 8 x 8 pixels of 17 gray values. Each is enlarged to 20 x 20 (bicubic), its contrast raised until the
    enlarged strokes are about as thin and as sharp as MNIST's (values up to 0.45 become black, from 0.8 white, linear
    between), set into 28 x 28 with its center of mass in the middle as MNIST's are, and rounded to 8 bits.

    Args:
        count: how many, 1 to 1797.

    Returns:
        Float32 [count, 1, 28, 28] in [0, 1], and the labels, int64 [count].

    Raises:
        WeightEditError: a count out of range.
    """
    from sklearn.datasets import load_digits

    source = load_digits()
    small = torch.from_numpy(source.images).float().unsqueeze(1) / 16.0  # type: ignore[attr-defined]
    labels = torch.from_numpy(source.target).long()  # type: ignore[attr-defined]
    if not 1 <= count <= len(small):
        raise WeightEditError(f"{count} digits were asked for; expected 1 to {len(small)}: choose a count in between.")
    large = functional.interpolate(small[:count], size=(_INNER, _INNER), mode="bicubic", align_corners=False)
    sharp = ((large - _BLACK) / (_WHITE - _BLACK)).clamp(0.0, 1.0)
    edge = (_SIZE - _INNER) // 2
    padded = functional.pad(sharp, (edge,) * 4)
    centered = torch.stack([_centered(image, edge) for image in padded])
    return (centered * 255.0).round() / 255.0, labels[:count]


def _centered(image: Tensor, most: int) -> Tensor:
    """The image [1, H, W] moved by whole pixels, `most` at most, so that its center of mass is in the middle."""
    shifts = []
    for axis in (1, 2):
        mass = image.sum(3 - axis).squeeze(0)
        where = (mass * torch.arange(len(mass))).sum() / mass.sum()
        shifts.append(max(-most, min(most, round((len(mass) - 1) / 2 - float(where)))))
    return image.roll(shifts, (1, 2))


def run_demo(
    editor: Editor,
    count: int,
    name: str | None = None,
    *,
    seed: int = 0,
    progress: bool = False,
) -> Demo:
    """Fit, edit and measure.

    Args:
        editor: for one-channel INRs; its operation is looked up by name for the targets.
        count: how many digits.
        name: which of the editor's operations; None is its first.
        seed: of the initializations.
        progress: show tqdm bars.

    Raises:
        WeightEditError: a count or seed out of range, an operation that is not known, or no digit that reached 40 dB.
    """
    check_seed(seed)
    name = editor.operations[0] if name is None else name
    if name not in editor.operations:
        known = ", ".join(editor.operations)
        raise WeightEditError(f"got operation {name!r}; this editor knows {known}: choose one of them.")
    if name not in OPERATIONS:
        raise WeightEditError(
            f"got an editor of {name!r}, which is known by examples alone; expected an operation, to measure by: take "
            "another editor, or edit INRs of your own with a preview."
        )
    wanted = operation(name)
    images, labels = digit_images(count)
    # As the shipped editors' training sets were.
    options, generator = FitOptions(method="fast"), torch.Generator().manual_seed(seed)
    result = fit(images, convention=editor.native_convention, options=options, generator=generator, progress=progress)
    target = options.target((images.shape[2], images.shape[3]))
    reached = result.psnr >= target
    if not bool(reached.any()):
        raise WeightEditError(
            f"none of {count} digits was fitted to {target:g} dB; expected nearly all: try another seed."
        )
    images, labels, fitted = images[reached], labels[reached], result.kept()
    targets = wanted(images)
    known = known_target(wanted, fitted)
    assert known is not None  # operations by name are for digits
    found = guard(fitted, editor.unguarded(fitted, name, progress=progress), known)
    edited = found.stack
    errors = {
        "do nothing": mean_squared_errors(fitted, targets),
        "edited": mean_squared_errors(edited, targets),
        "floor": mean_squared_errors(fit_directly(fitted, targets), targets),
    }
    return Demo(labels, images, fitted, edited, targets, errors, count - len(images), found.told())
