"""The commands on INRs of samples, sounds above all: what `fit` and `render` do and say of them.

Reading and writing the files is data/sample_files.py's, fitting editing/sample_fitting.py's; main.py prints.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import Generator

from weightedit.cli.conventions import stated_convention
from weightedit.data.sample_files import POINTS, SOUND, load_samples, save_points, save_sound
from weightedit.editing.evaluation import sample_errors
from weightedit.editing.sample_fitting import MOST, TARGET, fit_samples
from weightedit.errors import WeightEditError
from weightedit.inr.convention import Convention
from weightedit.inr.fitting import FitResult
from weightedit.inr.samples import Samples
from weightedit.inr.siren import places
from weightedit.inr.stack import INRStack

_PICTURES_ONLY = ("split", "limit", "size", "columns", "channels", "learning_rate")
_RATE = "rate"


def are_samples(names: Sequence[str]) -> bool:
    """Whether files of these names are sounds or other samples, by the first one."""
    return Path(names[0]).suffix.lower() in (SOUND, POINTS)


def read(options: argparse.Namespace) -> tuple[Samples, int | None, Convention]:
    """The samples to fit, their rate in Hz (of sounds), and the convention of their INRs.

    Raises:
        WeightEditError: options that are for pictures alone.
    """
    given = [f"--{name.replace('_', '-')}" for name in _PICTURES_ONLY if getattr(options, name) is not None]
    given += [
        f"--{name}" for name, usual in (("method", "smooth"), ("init", "siren")) if getattr(options, name) != usual
    ]
    if given:
        raise WeightEditError(f"got {given[0]} with samples; expected it with pictures: leave it out.")
    samples, rate = load_samples(options.images)
    usual, stated = samples.convention(), stated_convention(options, None)
    if stated is None:
        return samples, rate, usual
    return samples, rate, replace(stated, bounded=False, omega=stated.omega if options.omega else usual.omega)


def announced(samples: Samples, rate: int | None, convention: Convention, options: argparse.Namespace) -> str:
    """What will be fitted, to which target."""
    hidden = options.hidden or samples.widths()[1:-1]
    widths = "-".join(map(str, (samples.inputs, *hidden, samples.values.shape[-1])))
    what = f"{samples.count:,} samples of {samples.values.shape[-1]}" + (f" at {rate:,} Hz" if rate else "")
    source = "as stated" if options.omega else "by their number, see --omega"
    return (
        f"fits   {len(samples)} of {what} by {widths}, first frequency {convention.omegas(1)[0]:g} ({source}), to "
        f"{options.target_psnr or TARGET:g} dB, in at most {options.max_steps or MOST} steps"
    )


def fitted(
    samples: Samples, rate: int | None, convention: Convention, options: argparse.Namespace, *, progress: bool
) -> tuple[FitResult, list[str]]:
    """The fit that the options ask for, and what it reached, in lines."""
    target = options.target_psnr if options.target_psnr is not None else TARGET
    found = fit_samples(
        samples,
        hidden=options.hidden and tuple(options.hidden),
        convention=convention,
        target_psnr=target,
        max_steps=options.max_steps or MOST,
        generator=Generator().manual_seed(options.seed),
        progress=progress,
    )
    source = {"seed": str(options.seed), "samples": ", ".join(Path(name).name for name in options.images[:3])}
    source |= {_RATE: str(rate)} if rate else {}
    stack = replace(found.stack, provenance={**found.stack.provenance, **source})
    power = samples.values.square().mean((1, 2))
    snr = 10 * (power / sample_errors(stack, samples).clamp(min=1e-30)).clamp(min=1e-30).log10()
    lines = [f"PSNR   {told(found.psnr)} dB of the values' range; SNR {told(snr)} dB; after {told(found.steps)} steps"]
    if missed := found.missed.tolist():
        shown = ", ".join(f"{i} ({found.psnr[i]:.1f} dB)" for i in missed[:20])
        fate = "left out" if options.drop_missed else "kept"
        lines.append(f"missed {target:g} dB and {fate}: {len(missed)} of {len(samples)}, index {shown}")
        lines.append(
            f"       for more give --max-steps {2 * (options.max_steps or MOST)}, or wider networks by --hidden"
        )
    return replace(found, stack=stack), lines


def told(values) -> str:
    """One number, or from the least to the largest."""
    low, high = float(values.min()), float(values.max())
    digits = ".0f" if not values.is_floating_point() else ".2f"
    return f"{low:{digits}}" if low == high else f"{low:{digits}} to {high:{digits}}"


def render(stack: INRStack, path: Path, size: tuple[int, int] | None, rate: int | None) -> str:
    """Write INRs as a sound, or as samples on a grid; returns a line to say.

    Args:
        stack: the INRs chosen.
        path: of the .wav or .npz.
        size: per axis, of an .npz; None is the INRs' own.
        rate: in Hz, of a .wav; None is that of the sound that was fitted.

    Raises:
        WeightEditError: INRs that are no single sound, or no rate.
    """
    if path.suffix.lower() == POINTS:
        if rate:
            raise WeightEditError(f"got --rate with {path}; expected it with a {SOUND}: leave it out.")
        shape = stack.shape if size is None else replace(stack, height=size[0], width=size[1]).shape
        shape = shape if size is None or stack.widths[0] > 1 else size[:1]
        where = places(shape, stack.convention)
        save_points(Samples(where, stack.precise().at(where).detach()), path)
        return f"wrote  {path}: {len(stack)} INRs at {' x '.join(map(str, shape))} places"
    if stack.widths[0] != 1 or len(stack) != 1 or size is not None:
        raise WeightEditError(
            f"got {len(stack)} INRs of {stack.widths[0]} inputs{' and --size' if size else ''} for {path}; expected "
            f"one sound: choose it by --index, and give --rate in place of --size, or name a {POINTS}."
        )
    own = stack.provenance.get(_RATE, "")
    known = int(own) if own.isdecimal() and int(own) else None
    chosen = rate or known
    if chosen is None:
        raise WeightEditError(f"got INRs that state no rate for {path}; expected one: give --rate HZ.")
    (count,) = stack.shape
    count = count if known is None else max(1, round(count * chosen / known))
    where = places((count,), stack.convention)
    save_sound(stack.precise().at(where)[0].detach(), chosen, path)
    return f"wrote  {path}: {count:,} samples at {chosen:,} Hz"
