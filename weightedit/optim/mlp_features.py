"""The features of the per-parameter rules: what mlp_rule.py's networks see of a tensor, one entry at a time.

Those of Metz et al., "Practical tradeoffs between memory, compute, and performance in learned optimizers" (2022), and a
lean selection of them. Where the paper has second moments, here stand their roots, which do not underflow; where it
adds an epsilon to them, here stands a small part of their mean over the tensor. Clocks are not among them, and the
division by root mean squares over the tensor is left to the network's first layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from weightedit.optim.gauge import root
from weightedit.optim.unitwise import line

_DAMPING = 1e-8  # of second moments before their inverse root, in units of their mean over the tensor


class Seen(NamedTuple):
    """What is known of one tensor, each [.., quantities, rows, columns]; factors have one row or one column."""

    gradient: Tensor
    parameter: Tensor
    momenta: Tensor
    second: Tensor
    damping: Tensor  # of the second moment
    rows: Tensor  # inverse roots of mean squares over the columns, damped
    columns: Tensor  # and over the rows
    size: Tensor  # root of the mean square over a row: Adafactor's factor is size by row by column

    def part(self, start: int, end: int) -> Seen:
        """Rows start to end."""
        return Seen(*(x[..., start:end, :] if x.shape[-2] > 1 else x for x in self))

    def lines(self) -> Seen:
        """All rows as one, over which factors are laid out (unitwise.py)."""
        rows, columns = map(line, self.spread(self.rows, self.columns))
        own = {key: line(getattr(self, key)) for key in ("gradient", "parameter", "momenta", "second")}
        return self._replace(**own, rows=rows, columns=columns)

    def spread(self, *factors: Tensor) -> list[Tensor]:
        """Row and column factors over all columns and rows."""
        return [factor.expand(*factor.shape[:-2], *self.gradient.shape[-2:]) for factor in factors]


def seen(
    gradient: Tensor, parameter: Tensor, moments: Mapping[str, Tensor], mean: Tensor, averages: Sequence[Tensor] = ()
) -> Seen:
    """What is known of matrices [.., rows, columns], with moments as MLPRule keeps them, of matrices.

    `mean`: of the second moment, [.., 1, 1]; `averages`: of its rows and columns, [.., factors, 1, 1], if some are not
    there.
    """
    gradient, parameter, second, mean = (x.unsqueeze(-3) for x in (gradient, parameter, moments["second"], mean))
    rows, columns = moments["rows"].unsqueeze(-1), moments["columns"].unsqueeze(-2)
    averages = averages or [square.mean((-2, -1), keepdim=True) for square in (rows, columns)]
    return Seen(
        *(gradient, parameter, moments["momenta"], second, _damping(mean)),
        *((rows + _damping(averages[0])).rsqrt(), (columns + _damping(averages[1])).rsqrt(), root(averages[0])),
    )


def _damping(mean: Tensor) -> Tensor:
    """What makes second moments invertible: a small part of their mean over the tensor, or 1 if that underflows."""
    return _DAMPING * mean + (_DAMPING * mean < torch.finfo(mean.dtype).tiny).to(mean.dtype)


def full_features(seen: Seen) -> list[Tensor]:
    """4 + 2 momenta + 6 factors of them, [.., several, rows, columns] each; m / sqrt(v) is fourth."""
    damped = seen.second + seen.damping
    inverse, factor = damped.rsqrt(), seen.rows * seen.size * seen.columns
    return [
        *(seen.gradient, seen.parameter, seen.momenta, seen.momenta * inverse),
        *(damped * inverse, inverse, seen.gradient * factor, seen.momenta * factor),
        *seen.spread(seen.rows.reciprocal(), seen.columns.reciprocal(), seen.rows, seen.columns),
    ]


def lean_features(seen: Seen) -> list[Tensor]:
    """2 + 2 momenta + 4 factors of them, in the order of the full ones."""
    inverse, factor = (seen.second + seen.damping).rsqrt(), seen.rows * seen.size * seen.columns
    return [
        *(seen.gradient, seen.parameter, seen.momenta, seen.momenta * inverse),
        *(seen.gradient * factor, seen.momenta[..., :1, :, :] * factor),
        *seen.spread(seen.rows, seen.columns),
    ]
