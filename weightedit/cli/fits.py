"""What `weightedit fit` says: what it will take, what was asked and reached, and the way to more.

Sentences alone; the command is main.py's, fitting inr/fitting.py's.
"""

from __future__ import annotations

import math

import torch

from weightedit.inr.fitting import FitOptions, FitResult, cost_of_fit
from weightedit.inr.stack import INRStack

_NAMED = 20  # images that missed, by name
_WIDER, _MORE = 1.5, 5.0  # times the width, and dB, that are offered


def announced(shape: tuple[int, ...], widths: tuple[int, ...], options: FitOptions) -> str:
    """What will be done, to which target, and what it takes.

    Args:
        shape: of the images, (N, C, H, W).
        widths: of the networks.
        options: as they are passed to `fit`.
    """
    count, channels, height, width = shape
    needed, seconds = cost_of_fit((count, channels, height, width), widths, options)
    return (
        f"fits   {'-'.join(map(str, widths))} to {_asked(options, (height, width))}, in at most "
        f"{options.steps((height, width))} steps, about {max(1, math.ceil(needed / 1e6)):,} MB and at most about "
        f"{max(1, math.ceil(seconds)):,} s"
    )


def outcome(result: FitResult, names: dict[int, str], options: FitOptions, *, dropped: bool) -> list[str]:
    """Lines on what was reached; of what missed the target, which images, what becomes of them, and what to pass.

    Args:
        result: of `fit`.
        names: what to call an image beside its number.
        options: that `fit` was given.
        dropped: whether images that missed are left out.
    """
    psnr, missed, size = result.psnr, result.missed.tolist(), (result.stack.height, result.stack.width)
    target = options.target(size)
    reached = f"{psnr.min():.2f} dB"
    if len(psnr) > 1:
        reached = f"{psnr.min():.2f} to {psnr.max():.2f} dB, mean {psnr.mean():.2f}"
    if not missed:
        return [f"PSNR   {reached}; for more give --target-psnr {target + _MORE:g}"]
    shown = [f"{index}{names.get(index, '')} ({psnr[index]:.1f} dB)" for index in missed[:_NAMED]]
    shown += [f"and {len(missed) - _NAMED} more"] if len(missed) > _NAMED else []
    fate = "left out" if dropped else "kept"
    hidden = " ".join(str(math.ceil(_WIDER * width / 8) * 8) for width in result.stack.widths[1:-1])
    return [
        f"PSNR   {reached}",
        f"missed {target:g} dB and {fate}: {len(missed)} of {len(psnr)}, index {', '.join(shown)}",
        f"       for more give --max-steps {2 * options.steps(size)}, or wider networks by --hidden {hidden}",
    ]


def left_for(stack: INRStack, result: FitResult, dropped: bool) -> INRStack:
    """The INRs to write: all, or, where that was asked for, those that reached the target."""
    keep = torch.ones(len(stack), dtype=torch.bool)
    keep[result.missed] = not dropped
    return stack[keep]


def _asked(options: FitOptions, size: tuple[int, int]) -> str:
    own = "" if options.target_psnr else f", the default at {size[0]} x {size[1]}"
    return f"{options.target(size):g} dB{own}"
