"""Samples, values at places: what an INR stores where there is no grid of pixels. Sounds, distances, videos.

Here: what samples are, and how large a network and which frequencies they ask for. Fits are
editing/sample_fitting.py's, files data/sample_files.py's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from weightedit.errors import ParamsError
from weightedit.inr.convention import SAMPLES, Convention
from weightedit.inr.fitting import hidden_widths

INPUTS = (1, 2, 3)
_OMEGA, _SECOND = 30.0, 8000
_LONGEST = 2**20  # that a file may state as a width


@dataclass(frozen=True)
class Samples:
    """Values at places, of one INR or of N.

    Args:
        coordinates: floating point [P, inputs], the same for all, or [N, P, inputs]; 1 to 3 inputs, in the ranges of
            the INR's convention, which are [-1, 1] unless it says otherwise. A sound has 1 input, a distance function 2
            or 3, a video 3.
        values: floating point [P, C] of one INR, or [N, P, C], which is how they are kept; any real numbers.
        grid: places along each axis of an array, where they are its places in its order: (frames, height, width) of a
            video; () for any places.

    Raises:
        ParamsError: other types or shapes, no samples, or numbers that are NaN or infinite.
    """

    coordinates: Tensor
    values: Tensor
    grid: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name, tensor in (("coordinates", self.coordinates), ("values", self.values)):
            if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
                got = f"a tensor of {tensor.dtype}" if isinstance(tensor, Tensor) else f"a {type(tensor).__name__}"
                raise ParamsError(f"{name} came as {got}; expected a floating-point tensor: convert it.")
        places, found = tuple(self.coordinates.shape), tuple(self.values.shape)
        single = len(found) == 2
        fits = len(found) in (2, 3) and len(places) in ((2,) if single else (2, 3)) and 0 not in (*places, *found[-2:])
        if (
            not fits
            or places[-2] != found[-2]
            or places[-1] not in INPUTS
            or (len(places) == 3 and places[0] != found[0])
        ):
            raise ParamsError(
                f"coordinates {places} and values {found}; expected (samples, inputs) and (samples, channels), or "
                "(count, samples, inputs) and (count, samples, channels), of at least one sample and 1 to 3 inputs: add"
                " the axis that is missing."
            )
        for name, tensor in (("coordinates", self.coordinates), ("values", self.values)):
            if not bool(tensor.isfinite().all()):
                raise ParamsError(
                    f"{name} with NaN or infinite numbers; expected finite ones: leave these samples out."
                )
        if self.grid and (len(self.grid) != places[-1] or math.prod(self.grid) != places[-2]):
            raise ParamsError(
                f"grid {self.grid} for {places[-2]} samples of {places[-1]} inputs; expected one number of places for "
                "each input, whose product is the number of samples: correct it, or leave it out."
            )
        object.__setattr__(self, "values", self.values.unsqueeze(0) if single else self.values)

    def __len__(self) -> int:
        """INRs, N."""
        return len(self.values)

    @property
    def count(self) -> int:
        """Samples of each INR, P."""
        return self.values.shape[1]

    @property
    def inputs(self) -> int:
        """Axes of the coordinates."""
        return self.coordinates.shape[-1]

    def __getitem__(self, rows: slice | Tensor) -> Samples:
        """Those of the chosen INRs."""
        where = self.coordinates if self.coordinates.dim() == 2 else self.coordinates[rows]
        return Samples(where, self.values[rows], self.grid)

    def only(self, picked: Tensor) -> Samples:
        """Some samples of every INR: those numbered `picked`."""
        return Samples(self.coordinates[..., picked, :], self.values[:, picked])

    def span(self) -> Tensor:
        """Largest value less the smallest, [N]; 1 where all values are one."""
        low, high = self.values.flatten(1).aminmax(dim=1)
        return torch.where(high > low, high - low, torch.ones_like(low))

    def shape(self) -> tuple[int, int]:
        """(height, width) of the grid of about as many places that an INR of these is rendered on by default."""
        if len(self.grid) > 1:
            return self.grid[-2], self.grid[-1]
        if self.inputs == 1:
            rows = -(-self.count // _LONGEST)
            return rows, -(-self.count // rows)
        side = max(1, round(self.count ** (1 / self.inputs)))
        return side, side

    def widths(self) -> tuple[int, ...]:
        """(inputs, hidden, ..., C): hidden widths by the number of samples, as a picture of as many pixels has."""
        return (self.inputs, *hidden_widths(1, self.count), self.values.shape[-1])

    def convention(self) -> Convention:
        """That of a fit: a frequency of 30, but in the first layer one by the number of samples along an axis.

        It is half of that up to 30, and an eighth of it where that is more: 10 for 8,000 samples of a volume, 1,000 for
        a second of sound at 8 kHz; beyond 8,000 samples along an axis it grows with their root. Sitzmann et al. (2020)
        take 30, and 3,000 for sounds. The eighth is chosen by the worst of a chord, drums, and vowels with a hiss
        (tasks/compare_sounds.py): half of it fails on the vowels by some initializations (an SNR of 11 dB, where
        the eighth has 24), three times as much is wrong between the samples. The root is chosen on melodies of 5 and 25
        seconds.
        """
        along = self.count ** (1 / self.inputs)
        first = round(max(min(_OMEGA, along / 2), along / 8 * min(1.0, math.sqrt(_SECOND / along))), 1)
        return replace(SAMPLES, omega=(first, _OMEGA))

    def check_range(self, convention: Convention) -> None:
        """Raise ParamsError unless the coordinates are within the convention's ranges, to rounding."""
        low, high = (self.coordinates.flatten(0, -2).amin(0), self.coordinates.flatten(0, -2).amax(0))
        ends = torch.tensor(convention.ranges_of(self.inputs), dtype=low.dtype, device=low.device)
        slack = 4 * torch.finfo(low.dtype).eps * ends.abs().amax()
        if bool(((low < ends.amin(1) - slack) | (high > ends.amax(1) + slack)).any()):
            told = " and ".join(f"{a:g} to {b:g}" for a, b in zip(low.tolist(), high.tolist(), strict=True))
            wanted = " and ".join(f"{a:g} to {b:g}" for a, b in ends.tolist())
            raise ParamsError(
                f"coordinates from {told}; expected them within the convention's ranges, {wanted}: rescale them, or "
                "state their ranges in the convention."
            )


def to_plain(coordinates: Tensor, convention: Convention) -> Tensor:
    """Coordinates in the convention's ranges as those in [-1, 1], [..., inputs]."""
    if not convention.ranges:
        return coordinates
    first, last = torch.tensor(convention.ranges_of(coordinates.shape[-1])).to(coordinates).unbind(1)
    return 2 * (coordinates - first) / (last - first) - 1
