"""What an edit means on images: the operations that an editor learns to carry out on weights.

Here: the Operation object, the operations known by name, and the lookup. Not here: rendering (weightedit.inr.siren) and
the editor (weightedit.editing.editor). Everything takes and returns float images [N, C, H, W] in [0, 1].

Protocols. Published targets are made from the 8-bit source image. `dilate` and `erode` only pick values (3x3 max and
min filter, border ignored), so they are bit-equal to OpenCV on bytes and need no rounding. The `contrast` operations
go through OpenCV in bytes: round(255 x), the operation, divide by 255. NFN stores its images in [-1, 1], but its
target too is computed from the 8-bit image before that normalization; map such images to [0, 1] first, and remember
that an error on [-1, 1] is 4 times the mean squared error on [0, 1].
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from weightedit.errors import WeightEditError

if TYPE_CHECKING:
    import numpy as np

_CLAHE_CLIP_LIMIT = 1.0
_CLAHE_TILES = (3, 3)


@dataclass(frozen=True)
class Operation:
    """A function from images to images of the same shape, with the checks at its door.

    Your own operation is `Operation("name", "what it does", function)`; nothing needs to be registered, because
    whatever takes an operation's name also takes the Operation itself or a plain function.

    Args:
        name: one word, or words joined by hyphens.
        description: what it computes, exact enough to repeat it.
        function: float images [N, C, H, W] in [0, 1], a copy that it may overwrite -> the same shape, values in [0, 1].
        channels: the channel counts it accepts; None accepts any.
        differentiable: whether autograd passes through it (the OpenCV operations detach).
        graded: images and strengths [N, 1, 1, 1] -> images, from the image itself at 0 to `function` at 1; None blends
            the two linearly.
    """

    name: str
    description: str
    function: Callable[[Tensor], Tensor]
    channels: tuple[int, ...] | None = None
    differentiable: bool = True
    graded: Callable[[Tensor, Tensor], Tensor] | None = None

    def __call__(self, images: Tensor) -> Tensor:
        """Apply the operation.

        Args:
            images: float [N, C, H, W], values in [0, 1].

        Returns:
            Float [N, C, H, W] in [0, 1], of the dtype and on the device of `images`.

        Raises:
            WeightEditError: not a float tensor of rank 4, a channel count that is not accepted, values outside [0, 1]
                or NaN, or (for an operation of your own) a function that raises, or returns something else.
        """
        self._check(images)
        return images.clone() if images.numel() == 0 else self._applied(self.function, images)

    def on_rendering(self, rendering: Tensor) -> Tensor:
        """Apply the operation to a rendering, whose values may leave [0, 1]: they are clamped first.

        Args:
            rendering: float [N, C, H, W], such as INRStack.render() gives.

        Returns:
            Float [N, C, H, W] in [0, 1]. The gradient is zero where the rendering was outside [0, 1].

        Raises:
            WeightEditError: as for a call; NaN is not clamped away.
        """
        return self(rendering.clamp(0.0, 1.0))

    def at(self, images: Tensor, strength: float | Tensor) -> Tensor:
        """The operation by degrees.

        Args:
            images: as for a call.
            strength: a number of at least 0, or one per image: 0 is the image itself, 1 the operation; beyond 1 the
                change is exaggerated and cut off at 0 and 1.

        Raises:
            WeightEditError: as for a call; strengths that are negative, not finite, or not one per image.
        """
        number = None if isinstance(strength, Tensor) else float(strength)  # of which nothing is read from the device
        amount = strength.to(images) if isinstance(strength, Tensor) else images.new_full((), strength)
        if amount.dim() > 1 or (amount.dim() == 1 and amount.numel() != len(images)):
            raise WeightEditError(
                f"got strengths of shape {tuple(amount.shape)} for {len(images)} images; expected one, or one each."
            )
        fits = 0 <= number < math.inf if number is not None else bool((amount.isfinite() & (amount >= 0)).all())
        if not fits:
            raise WeightEditError(
                f"got strength {strength}; expected finite numbers of at least 0: 1 is the operation."
            )
        if number == 1 or (number is None and bool((amount == 1).all())):
            return self(images)
        self._check(images)
        if images.numel() == 0:
            return images.clone()
        amount = amount.expand(len(images)).view(-1, 1, 1, 1)
        if self.graded is None:
            graded = images.lerp(self(images), amount).clamp(0.0, 1.0)
        else:
            graded = self._applied(self.graded, images, amount)
        return torch.where(amount == 0, images, graded)

    def _applied(self, function: Callable[..., Tensor], images: Tensor, *strengths: Tensor) -> Tensor:
        """What a function, perhaps a user's own, makes of a copy of the images; whatever goes wrong is told."""
        slack = 8 * torch.finfo(images.dtype).eps  # of its last sums
        try:
            edited = function(images.clone(), *strengths)
            if isinstance(edited, Tensor) and edited.shape == images.shape and not edited.is_complex():
                slack = max(slack, 8 * torch.finfo(edited.dtype).eps) if edited.is_floating_point() else slack
                edited = edited.to(images).to_dense()
        except (Exception, SystemExit) as error:
            raise WeightEditError(
                f"operation {self.name!r} raised {named_error(error)}; expected a function from images [N, C, H, W] in "
                "[0, 1] to the same: correct it."
            ) from error
        if not isinstance(edited, Tensor) or edited.shape != images.shape or edited.is_complex():
            got = f"{edited.dtype} {tuple(edited.shape)}" if isinstance(edited, Tensor) else type(edited).__name__
            raise WeightEditError(
                f"operation {self.name!r} returned {got} for images of shape {tuple(images.shape)}; an operation "
                "returns a real tensor of the same shape: correct its function."
            )
        low, high = torch.stack(edited.detach().aminmax()).tolist()
        if not (low >= -slack and high <= 1.0 + slack):  # also true for NaN
            raise WeightEditError(
                f"operation {self.name!r} returned values from {low:.6g} to {high:.6g}; expected images in [0, 1]: "
                "end its function with .clamp(0, 1), and divide bytes by 255."
            )
        return edited.clamp(0.0, 1.0)

    def _check(self, images: Tensor) -> None:
        if not isinstance(images, Tensor) or not images.is_floating_point():
            got = f"a tensor of {images.dtype}" if isinstance(images, Tensor) else type(images).__name__
            raise WeightEditError(
                f"operation {self.name!r} got {got}; it needs float images [N, C, H, W] in [0, 1]: for bytes pass "
                "images.float() / 255."
            )
        if images.dim() != 4:
            raise WeightEditError(
                f"operation {self.name!r} got images of shape {tuple(images.shape)}; it needs [N, C, H, W]: add the "
                "missing axes, images[None] for one image."
            )
        if self.channels is not None and images.shape[1] not in self.channels:
            accepted = " or ".join(str(count) for count in self.channels)
            raise WeightEditError(
                f"operation {self.name!r} got images with {images.shape[1]} channels (shape {tuple(images.shape)}); it "
                f"is defined for {accepted}: convert the images, or choose another operation."
            )
        if images.numel() == 0:
            return
        low, high = torch.stack(images.detach().aminmax()).tolist()
        if not (low >= 0.0 and high <= 1.0):  # also true for NaN
            raise WeightEditError(
                f"operation {self.name!r} got values from {low:.6g} to {high:.6g}; it needs images in [0, 1]: map "
                "images in [-1, 1] by (images + 1) / 2, and give a rendering to on_rendering(), which clamps."
            )


def named_error(error: BaseException) -> str:
    """The name of an error and the beginning of what it says, in brackets; one line."""
    return f"{type(error).__name__} ({textwrap.shorten(str(error), 200, placeholder=' ...')})"


def operation(choice: str | Operation | Callable[[Tensor], Tensor]) -> Operation:
    """The operation of this name, or a function of yours as an Operation.

    Args:
        choice: a key of OPERATIONS, an Operation (returned as it is), or any function from images [N, C, H, W] in
            [0, 1] to images of the same shape.

    Returns:
        The Operation. A plain function is named after its `__name__`.

    Raises:
        WeightEditError: a name that is not known, or something that is neither a name nor callable.

    >>> operation("dilate").name
    'dilate'
    >>> operation(torch.ones_like)(torch.zeros(1, 1, 2, 2)).mean().item()
    1.0
    """
    if isinstance(choice, Operation):
        return choice
    if isinstance(choice, str):
        if choice not in OPERATIONS:
            raise WeightEditError(
                f"there is no operation {choice!r}; the known ones are {', '.join(sorted(OPERATIONS))}: choose one "
                "of them, or pass a function from images [N, C, H, W] in [0, 1] to images of the same shape."
            )
        return OPERATIONS[choice]
    if callable(choice):
        name = getattr(choice, "__name__", type(choice).__name__)
        description = (choice.__doc__ or "").strip() or "a user's function"
        return Operation(name, description.splitlines()[0], choice)
    raise WeightEditError(
        f"an operation was given as {type(choice).__name__}; expected a name ({', '.join(sorted(OPERATIONS))}), an "
        "Operation or a function: pass one of them."
    )


def _identity(images: Tensor) -> Tensor:
    return images.clone()


def _dilate(images: Tensor) -> Tensor:
    return functional.max_pool2d(images, 3, 1, 1)


def _erode(images: Tensor) -> Tensor:
    return -functional.max_pool2d(-images, 3, 1, 1)


def _invert(images: Tensor) -> Tensor:
    return 1.0 - images


def _darken(images: Tensor) -> Tensor:
    return images.square()


def _blur(images: Tensor) -> Tensor:
    channels = images.shape[1]
    line = images.new_tensor([0.25, 0.5, 0.25])
    kernel = torch.outer(line, line).expand(channels, 1, 3, 3)
    padded = functional.pad(images, (1, 1, 1, 1), mode="replicate")
    return functional.conv2d(padded, kernel, groups=channels).clamp(0.0, 1.0)  # rounding may pass 1 by one ulp


def _sharpen(images: Tensor) -> Tensor:
    return (2.0 * images - _blur(images)).clamp(0.0, 1.0)


def _brighten(images: Tensor) -> Tensor:
    return images.sqrt()


def _shift(images: Tensor) -> Tensor:
    return functional.pad(images, (2, 0, 0, 0), mode="replicate")[..., :-2]


def _shift_by(images: Tensor, strength: Tensor) -> Tensor:
    shift = torch.zeros_like(strength).expand(-1, 1, 2, 3).squeeze(1).clone()
    shift[:, 0, 2] = -2.0 * strength.flatten()
    return moved(images, shift + torch.eye(2, 3, dtype=shift.dtype, device=shift.device))


def _rotate(images: Tensor) -> Tensor:
    return _rotate_by(images, images.new_ones(len(images), 1, 1, 1))


def _rotate_by(images: Tensor, strength: Tensor) -> Tensor:
    angle = strength.flatten() * (math.pi / 12)
    cosine, sine, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    rows = [torch.stack(row, -1) for row in ((cosine, -sine, zero), (sine, cosine, zero))]
    return moved(images, torch.stack(rows, 1)).clamp(0.0, 1.0)  # rounding may pass 1 by one ulp


def moved(images: Tensor, matrix: Tensor) -> Tensor:
    """Every pixel (x, y) of the result, about the center, shows the source at matrix (x, y, 1); border repeated.

    Places are found in float32 at least: half precision is too coarse to tell pixels apart.
    """
    if images.dtype.itemsize < 4:
        return moved(images.float(), matrix.float()).to(images.dtype)
    size = images.new_tensor([images.shape[3] / 2, images.shape[2] / 2])
    matrix = torch.cat([matrix[..., :2] * size / size.unsqueeze(1), matrix[..., 2:] / size.unsqueeze(1)], -1)
    places = functional.affine_grid(matrix, list(images.shape), align_corners=False)
    return functional.grid_sample(images, places, padding_mode="border", align_corners=False)


def _power(exponent: float) -> Callable[[Tensor, Tensor], Tensor]:
    """images to the power of exponent^strength: gammas that compose."""
    return lambda images, strength: images ** (exponent**strength)


def _contrast(images: Tensor) -> Tensor:
    return _per_byte_image(images, _equalize_rgb if images.shape[1] == 3 else _equalize)


def _contrast_nfn(images: Tensor) -> Tensor:
    return _per_byte_image(images, _equalize_bgr)


def _per_byte_image(images: Tensor, function: Callable[[np.ndarray], np.ndarray]) -> Tensor:
    """Apply a function of one uint8 [H, W, C] image to every image (C = 1 comes without the channel axis)."""
    import numpy as np

    scaled = (images.detach().to("cpu", torch.float32) * 255.0).round().to(torch.uint8)
    sources = scaled.permute(0, 2, 3, 1).contiguous().numpy()
    if images.shape[1] == 1:
        edited = np.stack([function(source[..., 0])[..., None] for source in sources])
    else:
        edited = np.stack([function(source) for source in sources])
    return torch.from_numpy(edited).permute(0, 3, 1, 2).to(torch.float32).div(255.0).contiguous()


def _equalize(channel: np.ndarray) -> np.ndarray:
    """CLAHE of one uint8 channel [H, W]."""
    import cv2

    return cv2.createCLAHE(clipLimit=_CLAHE_CLIP_LIMIT, tileGridSize=_CLAHE_TILES).apply(channel)


def _equalize_rgb(image: np.ndarray) -> np.ndarray:
    import cv2

    return _equalize_lightness(image, cv2.COLOR_RGB2LAB, cv2.COLOR_LAB2RGB)


def _equalize_bgr(image: np.ndarray) -> np.ndarray:
    import cv2

    return _equalize_lightness(image, cv2.COLOR_BGR2LAB, cv2.COLOR_LAB2BGR)


def _equalize_lightness(image: np.ndarray, to_lab: int, from_lab: int) -> np.ndarray:
    import cv2

    lab = cv2.cvtColor(image, to_lab)
    lab[..., 0] = _equalize(lab[..., 0].copy())
    return cv2.cvtColor(lab, from_lab)


_CLAHE = "CLAHE (OpenCV, clip limit 1.0, 3x3 tiles)"

OPERATIONS: Mapping[str, Operation] = MappingProxyType(
    {
        known.name: known
        for known in (
            Operation("identity", "the image itself: what an editor must be able to learn first", _identity),
            Operation("dilate", "maximum over the 3x3 neighborhood inside the image, bit-equal to cv2.dilate", _dilate),
            Operation("erode", "minimum over the 3x3 neighborhood inside the image, bit-equal to cv2.erode", _erode),
            Operation(
                "contrast",
                f"{_CLAHE} on L of LAB for RGB, on the gray channel itself for a gray image; bytes in between",
                _contrast,
                channels=(1, 3),
                differentiable=False,
            ),
            Operation(
                "contrast-nfn",
                f"{_CLAHE} on L of LAB with the RGB image read as BGR: the published target, for comparison only",
                _contrast_nfn,
                channels=(3,),
                differentiable=False,
            ),
            Operation("invert", "1 - x", _invert),
            Operation("darken", "gamma 2: x squared; by degrees x^(2^s)", _darken, graded=_power(2.0)),
            Operation(
                "brighten", "gamma 1/2: the square root of x; by degrees x^(2^-s)", _brighten, graded=_power(0.5)
            ),
            Operation("sharpen", "x + (x - blur(x)), cut off at 0 and 1", _sharpen),
            Operation(
                "shift",
                "two pixels to the right, the left border repeated; by degrees 2 s pixels, bilinear",
                _shift,
                graded=_shift_by,
            ),
            Operation(
                "rotate",
                "15 degrees counterclockwise, bilinear, border pixels repeated; by degrees 15 s",
                _rotate,
                graded=_rotate_by,
            ),
            Operation("blur", "3x3 binomial filter, (1 2 1)/4 along each axis, border pixels repeated", _blur),
        )
    }
)
