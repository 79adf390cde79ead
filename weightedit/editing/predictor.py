"""Predicting the edited picture from the rendering, for operations that are known by examples only.

A small convolutional network sees the rendering, which operation is wanted and how strongly. It is equivariant to every
symmetry of the INR for free, since renderings are invariant; it knows no image size and no architecture. Three parts:

* a warp, p -> expm(strength G) p in pixels about the center, with one learned generator G per operation: shifts,
  rotations and scalings are its one-parameter groups, and strength 0 is the identity exactly;
* local 3x3 convolutions, modulated per channel by operation and strength (FiLM: Perez et al. 2018);
* a coarse context, means over a grid of tiles, brought back bilinearly: what local histogram equalization needs.

The prediction is warped + strength * change, so strength 0 leaves the picture as it was.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from weightedit.editing.operations import moved
from weightedit.errors import ParamsError, SpecError, WeightEditError
from weightedit.files.schema import Seed


@dataclass(frozen=True)
class PredictorConfig:
    """What defines a Predictor.

    Attributes:
        operations: their names, in the order of their codes.
        channels: of the images.
        width: channels inside.
        blocks: residual blocks of one 3x3 convolution each, after the first convolution.
        patch: the convolutions see patches of patch x patch pixels as channels, so that they look further.
        tiles: the coarse context is a grid of tiles x tiles means; 0 for none.
        warp: whether pictures may be moved.
        graded: whether strengths between 0 and 1 were trained; if not, the change at strength 1 is scaled.
        seed: of the initial weights.

    Raises:
        SpecError: no operations, or one twice; sizes that are not positive.
    """

    operations: tuple[str, ...] = ("dilate",)
    channels: int = 1
    width: int = 16
    blocks: int = 2
    patch: int = 1
    tiles: int = 0
    warp: bool = False
    graded: bool = True
    seed: Seed = 0

    def __post_init__(self) -> None:
        if not self.operations or len(set(self.operations)) != len(self.operations):
            raise SpecError(f"got operations {self.operations}; expected at least one, none of them twice.")
        if min(self.channels, self.width, self.blocks, self.patch) < 1 or self.tiles < 0:
            raise SpecError(
                f"got {self}; expected channels, width, blocks and patch of at least 1, tiles of at least 0."
            )

    def to_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return asdict(self)


class Predictor(nn.Module):
    """Renderings, operations and strengths in; predicted pictures out."""

    def __init__(self, config: PredictorConfig) -> None:
        super().__init__()
        self.config = config
        width, codes, ends = config.width, len(config.operations), config.channels * config.patch**2
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(config.seed)
            self.first = nn.Conv2d(ends, width, 3, padding=1, padding_mode="replicate")
            self.convolutions = nn.ModuleList(
                nn.Conv2d(width, width, 3, padding=1, padding_mode="replicate") for _ in range(config.blocks)
            )
            self.codes = nn.Embedding(codes, 2 * width)
            self.modulation = nn.Linear(4 * width, 2 * width * (1 + config.blocks))
            if config.tiles:
                self.embed, self.gather = nn.Conv2d(ends, width, 1), nn.Conv2d(width, width, 1)
                self.mix = nn.Conv2d(2 * width, width, 1)
            self.last = nn.Conv2d(width, ends, 1)
        with torch.no_grad():
            self.last.weight.mul_(0.1)
        self.generators = nn.Parameter(torch.zeros(codes, 2, 3)) if config.warp else None

    def code(self, name: str) -> int:
        """The number of an operation; raises WeightEditError if it was not trained on it."""
        if name not in self.config.operations:
            known = ", ".join(self.config.operations)
            raise WeightEditError(f"got operation {name!r}; this editor knows {known}: choose one of them.")
        return self.config.operations.index(name)

    def forward(self, images: Tensor, codes: Tensor, strengths: Tensor) -> Tensor:
        """Predicted pictures.

        Args:
            images: [N, C, H, W] renderings; values may leave [0, 1].
            codes: long [N], see `code`.
            strengths: [N], 1 is the operation itself.

        Returns [N, C, H, W], not cut off at 0 and 1. Raises ParamsError on another number of channels.
        """
        if images.dim() != 4 or images.shape[1] != self.config.channels:
            raise ParamsError(
                f"got renderings of shape {tuple(images.shape)}; expected [N, {self.config.channels}, H, W]: take an "
                "editor made for them, or edit by the operation alone, which needs none."
            )
        if not self.config.graded:
            full = self._predict(images, codes, torch.ones_like(strengths))
            return images + strengths.view(-1, 1, 1, 1) * (full - images)
        return self._predict(images, codes, strengths)

    def _predict(self, images: Tensor, codes: Tensor, strengths: Tensor) -> Tensor:
        amount = strengths.view(-1, 1)
        code = self.codes(codes)
        modulation = self.modulation(torch.cat([code, amount * code], 1)).unsqueeze(-1).unsqueeze(-1)
        scales, shifts = modulation.chunk(2, 1)
        pairs = list(zip(scales.chunk(1 + self.config.blocks, 1), shifts.chunk(1 + self.config.blocks, 1), strict=True))
        start = images if self.generators is None else warp(images, self.generators[codes] * amount.unsqueeze(-1))
        seen = self._folded(start - 0.5)
        hidden = self.first(seen)
        if self.config.tiles:
            hidden = self.mix(torch.cat([hidden, self._context(seen)], 1))
        for convolution, (scale, shift) in zip(self.convolutions, pairs, strict=False):
            hidden = hidden + convolution(functional.silu(torch.addcmul(hidden + shift, hidden, scale)))
        scale, shift = pairs[-1]
        change = self.last(functional.silu(torch.addcmul(hidden + shift, hidden, scale)))
        height, width = images.shape[-2:]
        change = functional.pixel_shuffle(change, self.config.patch)[..., :height, :width]
        return start + amount.view(-1, 1, 1, 1) * change

    def _folded(self, images: Tensor) -> Tensor:
        """Patches as channels, [N, C * patch^2, H / patch, W / patch]; the border is repeated where one is cut."""
        bottom, right = (-size % self.config.patch for size in images.shape[-2:])
        return functional.pixel_unshuffle(
            functional.pad(images, (0, right, 0, bottom), mode="replicate"), self.config.patch
        )

    def _context(self, images: Tensor) -> Tensor:
        tiles = functional.adaptive_avg_pool2d(functional.silu(self.embed(4 * images)), self.config.tiles)
        return functional.interpolate(
            functional.silu(self.gather(tiles)), images.shape[-2:], mode="bilinear", align_corners=False
        )


def warp(images: Tensor, generators: Tensor) -> Tensor:
    """Pictures moved by one-parameter groups of affine maps, bilinearly, border pixels repeated.

    Args:
        images: [N, C, H, W].
        generators: [N, 2, 3]; pixel p of the result, (x, y, 1) about the center, shows the source at expm(generator) p.
    """
    # Half precision is too coarse for places, and torch's exponential in it is wrong on CPUs.
    wide = generators.to(torch.promote_types(generators.dtype, torch.float32))
    return moved(images, torch.linalg.matrix_exp(functional.pad(wide, (0, 0, 0, 1)))[:, :2])
