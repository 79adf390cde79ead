"""The stages of `weightedit edit`: one operation, or one picture, after another, and what is told of each.

Here: what a stage aims at, the edit, and its judgement. Reading, writing and printing are main.py's.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from weightedit.cli.arguments import SHIPPED_EDITOR
from weightedit.cli.decibels import decibels
from weightedit.cli.samples import are_samples
from weightedit.data.images import load_picture
from weightedit.data.inr_files import is_own_file, load_inrs
from weightedit.data.sample_files import load_samples
from weightedit.door import edit
from weightedit.editing.editor import Editor
from weightedit.editing.evaluation import check_samples, sample_errors
from weightedit.editing.guard import Guarded, guard, known_target
from weightedit.editing.operations import OPERATIONS, Operation
from weightedit.editing.refinement import RefinementRule, mixed_in, samples_of, target_of
from weightedit.errors import WeightEditError
from weightedit.inr.history import BYTES
from weightedit.inr.samples import Samples
from weightedit.inr.stack import INRStack

Aim = str | Operation | Tensor | Samples
"""Of a stage."""
SHOWN = 8
"""INRs that a preview shows, and whose errors are told one by one."""


@dataclass(frozen=True)
class Means:
    """What makes an edit: an editor, or (None) steps alone; steps; and the rule that takes them."""

    editor: Editor | None
    steps: int
    rule: RefinementRule | None
    progress: bool = False


@dataclass(frozen=True)
class Stage:
    """What a stage came to: the INRs, with their history; what was aimed at, and its name; and lines to say."""

    stack: INRStack
    targets: Tensor | Samples | None
    name: str
    lines: list[str]


def pictures(names: Sequence[str], option: str, stack: INRStack, channels: int) -> Tensor:
    """Picture files at the size of the INRs, [M, channels, H, W] in [0, 1].

    Raises WeightEditError on INRs that are no pictures, or on more files than INRs.
    """
    if stack.widths[0] != 2 or stack.widths[-1] not in (1, 3) or len(names) > len(stack):
        raise WeightEditError(
            f"got {len(names)} of --{option} for {len(stack)} INRs from {stack.widths[0]} inputs to {stack.widths[-1]} "
            "outputs; expected at most one for each, of INRs from 2 inputs to 1 or 3: leave the others out."
        )
    size = (stack.height, stack.width)
    return torch.stack([load_picture(name, size=size, channels=channels) for name in names])


def aims_of(names: Sequence[str], stack: INRStack) -> Tensor | Samples:
    """What --target names, one for all INRs or one for each: pictures [N, C, H, W], INRs that show them, or samples."""
    if stack.of_pictures and all(map(is_own_file, names)):
        others = load_inrs(names)
        if len(others) not in (1, len(stack)) or others.widths[0] != 2 or others.widths[-1] != stack.widths[-1]:
            raise WeightEditError(
                f"got {len(others)} INRs from {others.widths[0]} inputs to {others.widths[-1]} outputs with --target "
                f"for {len(stack)} from 2 to {stack.widths[-1]}; expected one for all or for each, of as many outputs."
            )
        return others.render(stack.height, stack.width).clamp(0.0, 1.0).expand(len(stack), -1, -1, -1)
    if stack.of_pictures and not are_samples(names):
        return for_each(names, "target", stack, stack.widths[-1])
    found = samples_like(names, stack)
    if len(found) == 1:
        found = Samples(found.coordinates, found.values.expand(len(stack), -1, -1))
    check_samples(stack, found)
    found.check_range(stack.convention)
    return found


def samples_like(names: Sequence[str], stack: INRStack) -> Samples:
    """Samples in files; clips at the size and with the channels of the INRs."""
    size, channels = (stack.height, stack.width), stack.widths[-1]
    return load_samples(names, size=size, channels=channels if channels in (1, 3) else None)[0]


def for_each(names: Sequence[str], option: str, stack: INRStack, channels: int) -> Tensor:
    """`pictures`, one for all INRs or one for each: [N, channels, H, W]. Raises WeightEditError on another number."""
    found = pictures(names, option, stack, channels)
    if len(found) not in (1, len(stack)):
        raise WeightEditError(
            f"got {len(found)} pictures with --{option} for {len(stack)} INRs; expected one for all, or one for each."
        )
    return found.expand(len(stack), -1, -1, -1)


def check_aims(options: argparse.Namespace) -> None:
    """Raise WeightEditError on options of `edit` that exclude each other."""
    if options.undo:
        _check_undo(options)
    for name, others in (("target", ("operation", "editor")), ("mask", ("editor",))):
        given = [f"--{other}" for other in others if getattr(options, other) is not None]
        if getattr(options, name) is not None and given:
            raise WeightEditError(f"got --{name} with {given[0]}; expected steps alone there: leave {given[0]} out.")
    if options.mask is not None and options.target is None and options.operation is None:
        raise WeightEditError("got --mask without what to do there; expected --operation or --target: add one.")


def _check_undo(options: argparse.Namespace) -> None:
    usual = dict.fromkeys(("editor", "operation", "target", "mask", "steps", "rule"))
    usual |= {"strength": 1.0, "widen": 1, "raw": False}
    if given := [f"--{name}" for name, value in usual.items() if getattr(options, name) != value]:
        raise WeightEditError(f"got --undo with {given[0]}; expected it alone: undo first, then edit.")


def aimed_at(choice: Aim, stack: INRStack, options: argparse.Namespace) -> Tensor | Samples | None:
    """What the INRs are to render, [N, C, H, W]; None where it is not known. Outside the mask, what they render.

    Of INRs of samples, what their values are to be: a user's own function of them, or samples.
    """
    if isinstance(choice, Samples) or not stack.of_pictures:
        if options.mask is not None:
            raise WeightEditError("got --mask with INRs of samples; expected pictures: leave it out.")
        if isinstance(choice, Operation) and choice.name not in OPERATIONS:
            return samples_of(choice.function, stack, strength=options.strength)
        if isinstance(choice, Samples):
            return mixed_in(choice, stack, strength=options.strength)
    if isinstance(choice, Tensor):
        wanted = mixed_in(choice, stack, strength=options.strength)
    else:
        wanted = known_target(choice, stack, options.strength)
    assert not isinstance(wanted, Samples)
    if wanted is None or options.mask is None:
        return wanted
    where = for_each([options.mask], "mask", stack, 1).to(wanted)
    return target_of("identity", stack).lerp(wanted, where)


def take_stage(stack: INRStack, choice: Aim, name: str, means: Means, options: argparse.Namespace, widen: int) -> Stage:
    """One edit.

    Args:
        stack: N INRs.
        choice: an operation, or pictures [N, C, H, W], or samples.
        name: of it, as a person calls it.
        means: of the edit.
        options: of `edit`: strength, raw, mask, editor, operation.
        widen: as of an editor's call.
    """
    started, editor, steps = time.perf_counter(), means.editor, means.steps
    # A user's own function is called once, before the work: what it does wrong costs nothing, and random ones agree.
    targets = aimed_at(choice, stack, options)
    if editor is not None:
        given = {"steps": steps, "widen": widen, "rule": means.rule, "progress": means.progress}
        edited = editor.unguarded(stack, name if options.operation else None, strength=options.strength, **given)
    else:
        steps = steps if options.strength else 0  # then an INR stays as it is, bit for bit
        aim = choice if targets is None else targets
        edited = edit(stack, aim, steps=steps, widen=widen, rule=means.rule, progress=means.progress)
    lines = [f"edited {len(stack):,} INR{'s' * (len(stack) != 1)} in {time.perf_counter() - started:.1f} s"]
    if targets is not None:
        found = _judged(stack, edited, targets)
        errors = found.after
        if editor is not None and not options.raw:  # steps alone see to it themselves
            edited, errors = found.stack, found.reached
            if told := found.told():
                way = f"--operation {name} without --editor takes steps instead, --raw writes the edit as it is"
                lines.append(f"left   as they were or edited in part, the editor being off its domain: {told}; {way}")
        what = name if isinstance(choice, (Tensor, Samples)) else f"{name} of the INRs' own renderings"
        before, after = float(found.before.mean()), float(errors.mean())
        lines.append(f"MSE    against {what}: {before:.2e} before, {after:.2e} after")
        lines.append(f"dB     {by_inr(found.before, errors)}")
    elif editor is not None:
        lines.append(f"judged by nothing, since {name} is known by examples alone: look at the result, as by --preview")
    by = [Path(options.editor or SHIPPED_EDITOR).name] if editor else []
    by += [f"{steps} steps"] if steps else []
    by += [f"strength {options.strength:g}"] if options.strength != 1.0 else []
    by += [f"{widen} times as wide"] if widen != 1 else []
    by += [f"inside {Path(options.mask).name}"] if options.mask else []
    edited = edited.recorded(stack, f"{name} ({', '.join(by or ['no steps'])})")
    if edited.history[-1].before is None:
        lines.append(
            f"undo   not kept: the weights before take more than {BYTES // 2**20} MB; keep the file that was edited"
        )
    return Stage(edited, targets, name, lines)


def _judged(before: INRStack, after: INRStack, targets: Tensor | Samples) -> Guarded:
    """`guard`; of samples, whose steps raise no error, the errors in units of the values' range squared."""
    if not isinstance(targets, Samples):
        return guard(before, after, targets)
    was, came = (sample_errors(stack, targets) / targets.span().square() for stack in (before, after))
    return Guarded(after, was, came, torch.ones_like(came), came)


def by_inr(before: Tensor, after: Tensor) -> str:
    """Errors of INRs before and after, in dB: of each, or of the first few and of the worst."""

    def told(i: int) -> str:
        was, came = (decibels(-10 * float(errors[i].log10())) for errors in (before, after))
        return f"{i}: exact before and after" if was == came == "exact" else f"{i}: {was} to {came}"

    shown = ", ".join(told(i) for i in range(min(len(before), SHOWN)))
    worst = int(after.nan_to_num(math.inf).argmax())
    return shown if len(before) <= SHOWN else f"{shown}, ...; the worst {told(worst)}"
