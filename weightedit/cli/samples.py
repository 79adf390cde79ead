"""The commands on INRs of samples, sounds and clips above all: what `fit` and `render` do and say of them.

Reading and writing the files is data/sample_files.py's, fitting editing/sample_fitting.py's; main.py prints.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import Generator

from weightedit.cli.conventions import stated_convention
from weightedit.data.sample_files import POINTS, RATE, SOUND, load_samples, save_points, save_sound
from weightedit.data.video_files import is_clip, save_clip
from weightedit.editing.evaluation import sample_errors
from weightedit.editing.sample_fitting import MOST, TARGET, fit_samples
from weightedit.errors import WeightEditError
from weightedit.inr.convention import Convention
from weightedit.inr.fitting import FitResult
from weightedit.inr.samples import Samples
from weightedit.inr.siren import places
from weightedit.inr.stack import FRAMES, INRStack

SHOWN = (".gif", ".webp", ".apng")
"""What clips are rendered to; a .png is a picture."""
RENDERED = (SOUND, POINTS, *SHOWN)
CLIP_TARGET = 30.0
"""Default target of clips in dB: 50 takes many times as long."""
_PICTURES_ONLY = ("split", "limit", "size", "columns", "channels", "learning_rate")
_CLIPS_TOO = ("size", "channels")


def are_samples(names: Sequence[str]) -> bool:
    """Whether files of these names are sounds, clips or other samples, by the first one."""
    return Path(names[0]).suffix.lower() in (SOUND, POINTS) or is_clip(names[0])


def read(options: argparse.Namespace) -> tuple[Samples, dict[str, str], Convention]:
    """The samples to fit, what their file says of rate or time, and the convention of their INRs.

    Raises:
        WeightEditError: options that are for pictures alone.
    """
    clips = is_clip(options.images[0])
    refused = [name for name in _PICTURES_ONLY if not (clips and name in _CLIPS_TOO)]
    given = [f"--{name.replace('_', '-')}" for name in refused if getattr(options, name) is not None]
    given += [
        f"--{name}" for name, usual in (("method", "smooth"), ("init", "siren")) if getattr(options, name) != usual
    ]
    if given:
        raise WeightEditError(f"got {given[0]} with samples; expected it with pictures: leave it out.")
    samples, facts = load_samples(options.images, size=options.size, channels=options.channels)
    usual, stated = samples.convention(), stated_convention(options, None)
    if stated is None:
        return samples, facts, usual
    return samples, facts, replace(stated, bounded=False, omega=stated.omega if options.omega else usual.omega)


def target(samples: Samples, options: argparse.Namespace) -> float:
    """In dB: what is asked for, or what is usual for clips and for other samples."""
    usual = CLIP_TARGET if samples.grid else TARGET
    return options.target_psnr if options.target_psnr is not None else usual


def announced(samples: Samples, facts: dict[str, str], convention: Convention, options: argparse.Namespace) -> str:
    """What will be fitted, to which target."""
    hidden = options.hidden or samples.widths()[1:-1]
    widths = "-".join(map(str, (samples.inputs, *hidden, samples.values.shape[-1])))
    what = f"{samples.count:,} samples of {samples.values.shape[-1]}"
    what += f" at {int(facts[RATE]):,} Hz" if RATE in facts else ""
    what += f" ({' x '.join(map(str, samples.grid))})" if samples.grid else ""
    source = "as stated" if options.omega else "by their number, see --omega"
    return (
        f"fits   {len(samples)} of {what} by {widths}, first frequency {convention.omegas(1)[0]:g} ({source}), to "
        f"{target(samples, options):g} dB, in at most {options.max_steps or MOST} steps"
    )


def fitted(
    samples: Samples, facts: dict[str, str], convention: Convention, options: argparse.Namespace, *, progress: bool
) -> tuple[FitResult, list[str]]:
    """The fit that the options ask for, and what it reached, in lines."""
    goal = target(samples, options)
    found = fit_samples(
        samples,
        hidden=options.hidden and tuple(options.hidden),
        convention=convention,
        target_psnr=goal,
        max_steps=options.max_steps or MOST,
        generator=Generator().manual_seed(options.seed),
        progress=progress,
    )
    source = {"seed": str(options.seed), "samples": ", ".join(Path(name).name for name in options.images[:3])}
    stack = replace(found.stack, provenance={**found.stack.provenance, **source, **facts})
    power = samples.values.square().mean((1, 2))
    snr = 10 * (power / sample_errors(stack, samples).clamp(min=1e-30)).clamp(min=1e-30).log10()
    lines = [f"PSNR   {told(found.psnr)} dB of the values' range; SNR {told(snr)} dB; after {told(found.steps)} steps"]
    if missed := found.missed.tolist():
        shown = ", ".join(f"{i} ({found.psnr[i]:.1f} dB)" for i in missed[:20])
        fate = "left out" if options.drop_missed else "kept"
        lines.append(f"missed {goal:g} dB and {fate}: {len(missed)} of {len(samples)}, index {shown}")
        lines.append(
            f"       for more give --max-steps {2 * (options.max_steps or MOST)}, or wider networks by --hidden"
        )
    return replace(found, stack=stack), lines


def told(values) -> str:
    """One number, or from the least to the largest."""
    low, high = float(values.min()), float(values.max())
    digits = ".0f" if not values.is_floating_point() else ".2f"
    return f"{low:{digits}}" if low == high else f"{low:{digits}} to {high:{digits}}"


def check_options(path: Path, *, rate: int | None, frames: int | None) -> None:
    """Raise WeightEditError on an option of `render` that is for files of another kind."""
    suffix = path.suffix.lower()
    for name, value, kinds in (("rate", rate, (SOUND,)), ("frames", frames, (*SHOWN, POINTS))):
        if value and suffix not in kinds:
            raise WeightEditError(f"got --{name} with {path}; expected it with a {' or '.join(kinds)}: leave it out.")


def render(
    stack: INRStack, path: Path, size: tuple[int, int] | None, *, rate: int | None = None, frames: int | None = None
) -> str:
    """Write INRs as a sound, a clip, or samples on a grid; returns a line to say.

    Args:
        stack: the INRs chosen.
        path: of the .wav, .npz, .gif, .webp or .apng.
        size: per axis, of an .npz; height and width of a clip; None is the INRs' own.
        rate: in Hz, of a .wav; None is that of the sound that was fitted.
        frames: of INRs of 3 inputs; None is as many as were fitted, or with an .npz and a size as many as its height.

    Raises:
        WeightEditError: INRs that are no single sound or clip, or no rate.
    """
    suffix = path.suffix.lower()
    check_options(path, rate=rate, frames=frames)
    if frames and stack.widths[0] != 3:
        raise WeightEditError(f"got --frames for INRs of {stack.widths[0]} inputs; expected 3, a clip's: leave it out.")
    if suffix == POINTS:
        return _render_points(stack, path, size, frames)
    wanted, channels = (1, None) if suffix == SOUND else (3, (1, 3))
    if stack.widths[0] != wanted or len(stack) != 1 or (channels and stack.widths[-1] not in channels):
        raise WeightEditError(
            f"got {len(stack)} INRs of {stack.widths[0]} inputs and {stack.widths[-1]} outputs for {path}; expected "
            f"one {'sound, of 1 input' if suffix == SOUND else 'clip, of 3 inputs and 1 or 3 outputs'}: choose it by "
            f"--index, or name a {POINTS}."
        )
    return _render_sound(stack, path, size, rate) if suffix == SOUND else _render_clip(stack, path, size, frames)


def _render_points(stack: INRStack, path: Path, size: tuple[int, int] | None, frames: int | None) -> str:
    shape = stack.shape if size is None else (size[0], *size)[-stack.widths[0] :]
    shape = shape if size is None or stack.widths[0] > 1 else size[:1]
    shape = (frames, *shape[1:]) if frames else shape
    where = places(shape, stack.convention)
    save_points(Samples(where, stack.precise().at(where).detach()), path)
    return f"wrote  {path}: {len(stack)} INRs at {' x '.join(map(str, shape))} places"


def _render_sound(stack: INRStack, path: Path, size: tuple[int, int] | None, rate: int | None) -> str:
    if size is not None:
        raise WeightEditError(f"got --size for {path}; expected --rate in its place, or a {POINTS}: change one.")
    own = stack.provenance.get(RATE, "")
    known = int(own) if own.isdecimal() and int(own) else None
    chosen = rate or known
    if chosen is None:
        raise WeightEditError(f"got INRs that state no rate for {path}; expected one: give --rate HZ.")
    (count,) = stack.shape
    count = count if known is None else max(1, round(count * chosen / known))
    where = places((count,), stack.convention)
    save_sound(stack.precise().at(where)[0].detach(), chosen, path)
    return f"wrote  {path}: {count:,} samples at {chosen:,} Hz"


def _render_clip(stack: INRStack, path: Path, size: tuple[int, int] | None, frames: int | None) -> str:
    own, *both = stack.shape
    shape = (frames or own, *(size or both))
    values = stack.precise().at(places(shape, stack.convention))[0].detach()
    save_clip(values.view(*shape, -1), path, {FRAMES: str(own), **stack.provenance})
    return f"wrote  {path}: {shape[0]} frames of {shape[1]} x {shape[2]}"
