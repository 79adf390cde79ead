"""Predicting the edited picture from the rendering, for operations that are known by examples only.

A small convolutional network sees the rendering, which operation is wanted and how strongly. It is equivariant to every
symmetry of the INR for free, since renderings are invariant; it knows no image size and no architecture. Its parts:

* a warp, p -> expm(strength G) p in pixels about the center, with one learned generator G per operation: shifts,
  rotations and scalings are its one-parameter groups, and strength 0 is the identity exactly;
* local 3x3 convolutions, modulated per channel by operation and strength (FiLM: Perez et al. 2018);
* a coarse context, means over a grid of tiles, brought back bilinearly;
* tone curves, one set per tile, made from its histogram and read at every pixel's lightness: what local histogram
  equalization needs. They are a bilateral grid (Chen et al. 2007), as HDRnet predicts them (Gharbi et al. 2017).

Made for any number of channels it treats each by itself, beside the picture's lightness: gray and color are one to it.
The prediction is warped + strength * change, so strength 0 leaves the picture as it was.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from weightedit.editing.operations import moved
from weightedit.errors import ParamsError, SpecError, WeightEditError
from weightedit.files.schema import LATER, Seed

_CURVES, _RANKS = 4, 2
"""Tone curves of a tile that are learned, and that are not."""


@dataclass(frozen=True)
class PredictorConfig:
    """What defines a Predictor.

    Attributes:
        operations: their names, in the order of their codes.
        channels: of the images; 0: any number, each by itself beside the lightness.
        width: channels inside.
        blocks: residual blocks of one 3x3 convolution each, after the first convolution.
        patch: the convolutions see patches of patch x patch pixels as channels, so that they look further.
        tiles: the coarse context is a grid of tiles x tiles means; 0 for none.
        curves: points of a tone curve, at least 2, of which a tile has several; needs tiles; 0 for none.
        warp: whether pictures may be moved.
        graded: whether strengths between 0 and 1 were trained; if not, the change at strength 1 is scaled.
        seed: of the initial weights.
        sized: whether tone curves are told how many pixels a tile has, by which they do right at every size.

    Raises:
        SpecError: no operations, or one twice; sizes that are not positive.
    """

    operations: tuple[str, ...] = ("dilate",)
    channels: int = 1
    width: int = 16
    blocks: int = 2
    patch: int = 1
    tiles: int = 0
    curves: int = 0
    warp: bool = False
    graded: bool = True
    seed: Seed = 0
    sized: bool = field(default=False, metadata=LATER)

    def __post_init__(self) -> None:
        if not self.operations or len(set(self.operations)) != len(self.operations):
            raise SpecError(f"got operations {self.operations}; expected at least one, none of them twice.")
        if min(self.width, self.blocks, self.patch) < 1 or min(self.channels, self.tiles) < 0:
            raise SpecError(
                f"got {self}; expected width, blocks and patch of at least 1, channels and tiles of at least 0."
            )
        if (self.curves or self.sized) and (self.curves < 2 or not self.tiles or self.patch > 1):
            raise SpecError(
                f"got curves of {self.curves} points, {self.tiles} tiles and patches of {self.patch}; expected 2 or "
                "more points, tiles, and patches of 1."
            )

    def to_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return asdict(self)


class Predictor(nn.Module):
    """Renderings, operations and strengths in; predicted pictures out."""

    def __init__(self, config: PredictorConfig) -> None:
        super().__init__()
        self.config = config
        width, codes, ends = config.width, len(config.operations), (config.channels or 1) * config.patch**2
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(config.seed)
            sees = ends if config.channels else 2 * ends  # a channel, and the lightness
            self.first = nn.Conv2d(sees, width, 3, padding=1, padding_mode="replicate")
            self.convolutions = nn.ModuleList(
                nn.Conv2d(width, width, 3, padding=1, padding_mode="replicate") for _ in range(config.blocks)
            )
            self.codes = nn.Embedding(codes, 2 * width)
            self.modulation = nn.Linear(4 * width, 2 * width * (1 + config.blocks))
            if config.tiles:
                self.embed, self.gather = nn.Conv2d(ends, width, 1), nn.Conv2d(width, width, 1)
                self.mix = nn.Conv2d(2 * width + (_CURVES + _RANKS if config.curves else 0), width, 1)
            self.tones = ToneCurves(config.curves, config.tiles, config.sized) if config.curves else None
            self.last = nn.Conv2d(width, ends, 1)
        with torch.no_grad():
            self.last.weight.mul_(0.1)
        self.generators = nn.Parameter(torch.zeros(codes, 2, 3)) if config.warp else None

    @torch.no_grad()
    def take_over(self, other: Predictor) -> None:
        """Start from the weights of another, which may see less: one channel without its lightness, no tone curves,
        or curves that know no sizes.

        What is seen besides counts for nothing at first, so that both predict the same of one channel. Raises SpecError
        unless all other sizes agree.
        """
        mine, theirs = self.config, other.config
        less = theirs.channels == mine.channels or (theirs.channels, mine.channels) == (1, 0)
        less = less and theirs.curves in (0, mine.curves) and theirs.sized <= mine.sized
        mine, theirs = (replace(it, channels=0, curves=0, sized=False, seed=0) for it in (mine, theirs))
        if mine != theirs or not less:
            raise SpecError(
                f"got a start of {other.config} for {self.config}; expected one that differs in what it sees."
            )
        own = self.state_dict()
        for name, given in other.state_dict().items():
            own[name].zero_()[tuple(slice(length) for length in given.shape)] = given

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
        channels = self.config.channels or "C"
        if images.dim() != 4 or channels not in (images.shape[1], "C"):
            raise ParamsError(
                f"got renderings of shape {tuple(images.shape)}; expected [N, {channels}, H, W]: take an "
                "editor made for them, or edit by the operation alone, which needs none."
            )
        if not self.config.graded:
            full = self._predict(images, codes, torch.ones_like(strengths))
            return images + strengths.view(-1, 1, 1, 1) * (full - images)
        return self._predict(images, codes, strengths)

    def _predict(self, images: Tensor, codes: Tensor, strengths: Tensor) -> Tensor:
        moves = None if self.generators is None else self.generators[codes] * strengths.view(-1, 1, 1)
        start = images if moves is None else warp(images, moves)
        light = lightness(start)
        context = self._context(start if self.config.channels else light, light) if self.config.tiles else None
        if self.config.channels:
            return start + strengths.view(-1, 1, 1, 1) * self._change(start, context, codes, strengths)
        each = start.shape[1]  # from here on, every channel is a picture of its own
        seen = torch.stack([start, light.expand_as(start)], 2).flatten(0, 1)
        codes, strengths = codes.repeat_interleave(each), strengths.repeat_interleave(each)
        context = None if context is None else context.repeat_interleave(each, 0)
        change = self._change(seen, context, codes, strengths).view_as(start)
        return start + strengths.view(-1, each, 1, 1) * change

    def _change(self, seen: Tensor, context: Tensor | None, codes: Tensor, strengths: Tensor) -> Tensor:
        """What is added to a picture at full strength."""
        code = self.codes(codes)
        modulation = self.modulation(torch.cat([code, strengths.view(-1, 1) * code], 1)).unsqueeze(-1).unsqueeze(-1)
        scales, shifts = modulation.chunk(2, 1)
        pairs = list(zip(scales.chunk(1 + self.config.blocks, 1), shifts.chunk(1 + self.config.blocks, 1), strict=True))
        hidden = self.first(self._folded(seen - 0.5))
        if context is not None:
            hidden = self.mix(torch.cat([hidden, context], 1))
        for convolution, (scale, shift) in zip(self.convolutions, pairs, strict=False):
            hidden = hidden + convolution(functional.silu(torch.addcmul(hidden + shift, hidden, scale)))
        scale, shift = pairs[-1]
        change = self.last(functional.silu(torch.addcmul(hidden + shift, hidden, scale)))
        height, width = seen.shape[-2:]
        return functional.pixel_shuffle(change, self.config.patch)[..., :height, :width]

    def _folded(self, images: Tensor) -> Tensor:
        """Patches as channels, [N, C * patch^2, H / patch, W / patch]; the border is repeated where one is cut."""
        bottom, right = (-size % self.config.patch for size in images.shape[-2:])
        return functional.pixel_unshuffle(
            functional.pad(images, (0, right, 0, bottom), mode="replicate"), self.config.patch
        )

    def _context(self, images: Tensor, light: Tensor) -> Tensor:
        images = self._folded(images - 0.5)
        tiles = functional.adaptive_avg_pool2d(functional.silu(self.embed(4 * images)), self.config.tiles)
        means = functional.interpolate(
            functional.silu(self.gather(tiles)), images.shape[-2:], mode="bilinear", align_corners=False
        )
        return means if self.tones is None else torch.cat([means, self.tones(light)], 1)


class ToneCurves(nn.Module):
    """Per tile of a picture some tone curves, made from its histogram; at every pixel, what they say of its lightness.

    Between tiles and between the points of a curve it is linear. The histogram counts pixels, and the share of a bin's
    8-bit levels that so many pixels would occupy, which is what histogram equalization with a low limit goes by. Two
    more curves are the sums of both from black on: ranks in the tile. A picture that is no multiple of the tiles is
    filled up by its border.

    Args:
        points: of a curve, and bins of the histogram, over [0, 1].
        tiles: along an axis.
        sized: whether the curves are also made from what depends on the size of a tile: the share of its pixels that
            the levels of a bin hold, one pixel a level, and the logarithm of the number of pixels to a level of 8 bits.
    """

    def __init__(self, points: int, tiles: int, sized: bool = False) -> None:
        super().__init__()
        self.points, self.tiles, self.sized = points, tiles, sized
        sizes = (3 * points + 1 if sized else 2 * points, 2 * points, 2 * points, _CURVES * points)
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in zip(sizes, sizes[1:], strict=False))

    def forward(self, light: Tensor) -> Tensor:
        """[N, 1, H, W] -> [N, curves and ranks, H, W]; values beyond [0, 1] count as 0 or 1."""
        given, sizes = light.dtype, light.shape[-2:]
        # Half precision is too coarse to count with, and torch does not read grids in it on CPUs.
        place = light.clamp(0, 1).to(torch.promote_types(given, torch.float32)) * (self.points - 1)
        bottom, right = (-size % self.tiles for size in sizes)
        whole = functional.pad(place, (0, right, 0, bottom), mode="replicate")
        numbers = {"dtype": place.dtype, "device": place.device}
        bins = torch.arange(self.points, **numbers).view(-1, 1, 1)
        shares = functional.adaptive_avg_pool2d((1 - (whole - bins).abs()).clamp(min=0), self.tiles)
        levels = 256 / self.points
        pixels = whole.shape[-2] * whole.shape[-1] / self.tiles**2
        occupied = 1 - torch.exp(-shares * (pixels / levels))
        held = occupied * (levels / pixels)
        seen = [shares * self.points, occupied]
        if self.sized:
            seen += [held * self.points, torch.full_like(shares[:, :1], math.log2(pixels / 256))]
        hidden = torch.cat(seen, 1).to(given)
        for layer in self.layers[:-1]:
            hidden = functional.silu(layer(hidden))
        curves = self.layers[-1](hidden).unflatten(1, (_CURVES, self.points)).to(place.dtype)
        counts = torch.stack([shares, held], 1)
        curves = torch.cat([curves, counts.cumsum(2) - counts / 2], 1)
        ends = zip(sizes, whole.shape[-2:], strict=True)
        down, across = (torch.linspace(1 / n - 1, (2 * size - 1) / n - 1, size, **numbers) for size, n in ends)
        flat = torch.stack(torch.meshgrid(down, across, indexing="ij")[::-1], -1).expand(len(light), -1, -1, -1)
        depth = ((2 * place + 1) / self.points - 1).squeeze(1).unsqueeze(-1)
        where = torch.cat([flat, depth], -1).unsqueeze(1)
        return functional.grid_sample(curves, where, padding_mode="border", align_corners=False).squeeze(2).to(given)


def lightness(images: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, 1, H, W]: the luma of ITU-R BT.601 of three channels, the mean of other numbers of them."""
    if images.shape[1] != 3:
        return images.mean(1, keepdim=True)
    return (images * images.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)


def warp(images: Tensor, generators: Tensor) -> Tensor:
    """Pictures moved by one-parameter groups of affine maps, bilinearly, border pixels repeated.

    Args:
        images: [N, C, H, W].
        generators: [N, 2, 3]; pixel p of the result, (x, y, 1) about the center, shows the source at expm(generator) p.
    """
    # Half precision is too coarse for places, and torch's exponential in it is wrong on CPUs.
    wide = generators.to(torch.promote_types(generators.dtype, torch.float32))
    return moved(images, torch.linalg.matrix_exp(functional.pad(wide, (0, 0, 0, 1)))[:, :2])
