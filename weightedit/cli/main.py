"""The command `weightedit`: the only place that prints.

Each command reads its arguments (arguments.py), calls the library, and says what came of it. Whatever is wrong with
the input becomes one line on standard error and the exit code 2; nothing is half written. The library is imported when
a command runs, so that --help answers at once. The file is long because what a command prints stands with the command.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from weightedit.cli.arguments import (
    SHIPPED_EDITOR,
    build_parser,
    check_output,
    check_words,
    chosen,
    in_own_words,
)
from weightedit.cli.conventions import stated_convention, stated_rename
from weightedit.errors import FileFormatError, TypeMismatchError, WeightEditError, check_seed
from weightedit.files.location import shipped

if TYPE_CHECKING:
    from torch import Tensor

    from weightedit.data.images import ImageSet
    from weightedit.editing.editor import Editor
    from weightedit.editing.operations import Operation
    from weightedit.editing.refinement import RefinementRule
    from weightedit.inr.samples import Samples
    from weightedit.inr.stack import INRStack

_TILES, _STEPS = 64, 10
_CHECKED = (64, 64)  # pixels of foreign INRs that no one stated the size of


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. `arguments`: without the program's name, None for sys.argv's."""
    options = build_parser().parse_args(arguments)
    # What the library logs, such as INRs that missed their target, the commands say themselves.
    logging.getLogger("weightedit").addHandler(logging.NullHandler())

    def run() -> int:
        check_words(options)
        return _COMMANDS[options.command](options)

    return told_in_one_line("weightedit", run, lambda message: in_own_words(message, options))


def told_in_one_line(
    program: str, run: Callable[[], object], words: Callable[[str], str] = lambda message: message
) -> int:
    """Run a program; its exit code, with errors about what came told in one line on stderr, not as a traceback.

    Args:
        program: the name that the line begins with.
        run: the program; an int that it returns is the exit code.
        words: how the program puts a message of the library.

    Returns:
        That, or 0; 2 after an error of errors.py or of the file system, 130 after Ctrl-C.
    """
    try:
        returned = run()
        return returned if isinstance(returned, int) else 0
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (WeightEditError, TypeMismatchError, OSError) as error:
        print(f"{program}: {words(' '.join(str(error).split()))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{program}: stopped; nothing was half written", file=sys.stderr)
        return 130


def demo(options: argparse.Namespace) -> int:
    """Fit, edit, draw, and print the table."""
    started, output = time.perf_counter(), check_output(options.output, ".png")
    check_seed(options.seed)
    editor = _load_editor(options.editor)
    from weightedit.cli.demo import run_demo
    from weightedit.cli.preview import draw_demo

    name = options.operation or editor.operations[0]
    found = run_demo(editor, options.count, name, seed=options.seed, progress=_progress())
    if found.left:
        _say(f"left   as they were or edited in part: {found.left}")
    if found.missed:
        _say(f"left out: {found.missed} of {options.count} digits, whose fit missed 40 dB")
    assert found.fitted.psnr is not None
    psnr = found.fitted.psnr
    _say(f"fitted {len(psnr)} digits of scikit-learn, 28 x 28, {psnr.min():.1f} to {psnr.max():.1f} dB")
    _say(f"\nmean squared error against {name} of the image, x 1e-2\n")
    _say(f"{'digit':>5} {'do nothing':>11} {'edited':>8} {'floor':>8}")
    for label, *errors in zip(found.labels.tolist(), *(e.tolist() for e in found.errors.values()), strict=True):
        _say(f"{label:>5} {_hundredths(errors)}")
    _say(f"{'mean':>5} {_hundredths([float(errors.mean()) for errors in found.errors.values()])}\n")
    draw_demo(found, name, output)
    _say(f"drew   {output}")
    _say(f"took   {time.perf_counter() - started:.1f} s")
    return 0


def fit(options: argparse.Namespace) -> int:
    """Images to INRs; 1 when images were left out."""
    output = check_output(options.output, ".safetensors")
    check_seed(options.seed)
    from weightedit.cli import samples

    if samples.are_samples(options.images):
        return _fit_samples(options, output)
    import torch

    from weightedit.cli.fits import announced, left_for, outcome
    from weightedit.inr.fitting import FitOptions, hidden_widths
    from weightedit.inr.fitting import fit as fit_inrs

    fields = ("method", "init", "target_psnr", "max_steps", "learning_rate")
    wanted = FitOptions(**{name: getattr(options, name) for name in fields})
    images, names = _read_images(options)
    count, channels, height, width = shape = tuple(images.images.shape)
    widths = (2, *(options.hidden or hidden_widths(height, width)), channels)
    convention = stated_convention(options, (height, width))
    _say(announced(shape, widths, wanted))
    started, generator = time.perf_counter(), torch.Generator().manual_seed(options.seed)
    result = fit_inrs(
        images.images,
        widths=widths,
        convention=convention,
        options=wanted,
        generator=generator,
        progress=_progress(),
    )
    seconds = time.perf_counter() - started
    _say(f"fitted {_plural(count, 'image')} of {height} x {width} x {channels} in {seconds:.1f} s")
    for line in outcome(result, names, wanted, dropped=options.drop_missed):
        _say(line)
    source = {"seed": str(options.seed), "images": ", ".join(Path(name).name for name in options.images[:3])}
    labels = images.labels if bool((images.labels >= 0).any()) else None
    stack = replace(result.stack, label=labels, index=images.index)
    stack = left_for(replace(stack, provenance={**stack.provenance, **source}), result, options.drop_missed)
    return _write_fitted(stack, count, output)


def _fit_samples(options: argparse.Namespace, output: Path) -> int:
    """Samples to INRs; 1 when some were left out."""
    from weightedit.cli import samples
    from weightedit.cli.fits import left_for

    wanted = samples.read(options)
    _say(samples.announced(*wanted, options))
    started = time.perf_counter()
    result, lines = samples.fitted(*wanted, options, progress=_progress())
    _say(f"fitted {_plural(len(result.psnr), 'INR')} in {time.perf_counter() - started:.1f} s")
    for line in lines:
        _say(line)
    return _write_fitted(left_for(result.stack, result, options.drop_missed), len(result.psnr), output)


def _write_fitted(stack: INRStack, count: int, output: Path) -> int:
    """Write what is left of so many fits; the exit code."""
    from weightedit.data.inr_files import save_inrs

    if not len(stack):
        _say(f"{output} was not written: no INR is left")
        return 1
    save_inrs(stack, output)
    _say(f"wrote  {output}: {_plural(len(stack), 'INR')}")
    return 1 if len(stack) < count else 0


def edit(options: argparse.Namespace) -> int:
    """INRs to edited INRs."""
    output = _check_written(options)
    preview = check_output(options.preview, ".png") if options.preview else None
    import torch

    from weightedit.cli.preview import draw_edit
    from weightedit.cli.stages import SHOWN, Means, aims_of, check_aims, take_stage
    from weightedit.editing.own_operations import named_operation

    check_aims(options)
    alone = options.editor is None and (options.operation is not None or options.target is not None)
    wanted = [named_operation(text) for text in options.operation or []] if alone else []
    given = _load_stack(options, options.size)
    if preview is not None and not (given.of_pictures and given.widths[-1] in (1, 3)):
        kind = f"{given.widths[-1]} channels" if given.of_pictures else "samples"
        raise WeightEditError(f"got --preview for INRs of {kind}; it draws 1 or 3 channels of pictures: drop it.")
    if options.undo:
        return _undo(options, given, output, preview)
    editor = None if alone else _load_editor(options.editor)
    aims: list[tuple[str, str | Operation | Tensor | Samples]] = [(choice.name, choice) for choice in wanted]
    if editor is not None:
        aims = [(name, name) for name in options.operation or editor.operations[:1]]
    if options.target is not None:
        shown = ", ".join(Path(name).name for name in options.target[:3])
        aims = [(shown, aims_of(options.target, given))]
    steps = options.steps if options.steps is not None else editor.steps if editor else _STEPS
    if options.rule and not steps:
        raise WeightEditError("got --rule without steps; expected both or none: add --steps N, or drop --rule.")
    has_own = editor is not None and "rule" not in editor.takes
    rule = _load_rule(options.rule) if options.rule or (steps and not has_own) else None
    means, stack, widen, stage = Means(editor, steps, rule, _progress()), given, options.widen, None
    for name, choice in aims:
        stage = take_stage(stack, choice, name, means, options, widen)
        stack, widen = stage.stack, 1  # the first stage widens
        for line in stage.lines:
            _say(line)
    _write(options, stack, output)
    if preview is not None and stage is not None:
        few = slice(0, SHOWN)
        known, told = stage.targets, ", ".join(name for name, _ in aims)
        known = known[few] if isinstance(known, torch.Tensor) else None
        draw_edit(told, given[few], stack[few], known, preview, strength=options.strength)
        _say(f"drew   {preview} ({min(SHOWN, len(stack))} of {len(stack)})")
    return 0


def _undo(options: argparse.Namespace, given: INRStack, output: Path, preview: Path | None) -> int:
    from weightedit.cli.preview import draw_edit
    from weightedit.cli.stages import SHOWN

    stack, few = given.undone(), slice(0, SHOWN)
    left = sum(edit.before is not None for edit in stack.history)
    _say(f"undone {given.history[-1].told}; {left} more can be undone")
    _write(options, stack, output)
    if preview is not None:
        draw_edit("undo", given[few], stack[few], None, preview)
        _say(f"drew   {preview} ({min(SHOWN, len(stack))} of {len(stack)})")
    return 0


def render(options: argparse.Namespace) -> int:
    """INRs to one picture, to a sound, or to samples."""
    from weightedit.cli.samples import RENDERED

    kinds = (".png", *RENDERED)
    own = Path(options.output).suffix.lower()
    output = check_output(options.output, own if own in kinds else ".png")
    from weightedit.cli import samples
    from weightedit.plots import mosaic

    try:
        stack = _load_stack(options, None)  # ours state their size; then --size is the resolution alone
    except FileFormatError:
        stack = _load_stack(options, options.size)
    indices = chosen(options.index, len(stack), _TILES)
    if own != ".png":
        _say(samples.render(stack[indices], output, options.size, rate=options.rate, frames=options.frames))
        return 0
    samples.check_options(output, rate=options.rate, frames=options.frames)
    if stack.widths[0] != 2:
        raise WeightEditError(
            f"got INRs of {stack.widths[0]} inputs for {output}; expected pictures, of 2: name a "
            f"{', '.join(RENDERED[:-1])} or {RENDERED[-1]}."
        )
    height, width = options.size or (stack.height, stack.width)
    mosaic(stack[indices].render(height, width), output)
    _say(f"drew   {output}: {len(indices)} of {len(stack)} INRs at {height} x {width}")
    return 0


def convert(options: argparse.Namespace) -> int:
    """INRs of other codes to ours, or one of ours back."""
    output = _check_written(options)
    stack = _load_stack(options, options.size)
    _write(options, stack, output)
    return 0


def info(options: argparse.Namespace) -> int:
    """What a path is."""
    from weightedit.cli.description import describe

    for name, value in describe(
        options.inrs, stated_convention(options, options.size), options.size, stated_rename(options)
    ):
        _say(f"{name:<11} {value}")
    return 0


def check(options: argparse.Namespace) -> int:
    """Four questions, four lines; 1 when one of them failed."""
    try:
        stack = _load_stack(options, None)
    except FileFormatError:  # any size will do: what is checked lies between the ends of the axes
        stack = _load_stack(options, options.size or _CHECKED)
    editor = _load_editor(options.editor) if options.editor else None
    from weightedit.cli.checks import check_equivariance, check_identity_edit, check_round_trip
    from weightedit.cli.reading import check_reading

    few = stack[: options.limit]
    _say(f"file   {options.inrs}: {len(few)} of {len(stack)} INRs, {'-'.join(map(str, stack.widths))}")
    results = [check_round_trip(few), check_identity_edit(few), check_equivariance(few, editor)]
    results.append(check_reading(few, _fitted_pictures(options, few)))
    for result in results:
        _say(f"{result.name:<14} {result.word:<7} {result.figure}")
    return 1 if any(result.ok is False for result in results) else 0


def _say(text: str) -> None:
    print(text, flush=True)


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _progress() -> bool:
    return sys.stderr.isatty()


def _hundredths(errors: Sequence[float]) -> str:
    nothing, edited, floor = (f"{100 * error:.3f}" for error in errors)
    return f"{nothing:>11} {edited:>8} {floor:>8}"


def _load_stack(options: argparse.Namespace, size: tuple[int, int] | None) -> INRStack:
    """The INRs of FILE and --convention, fitted at `size`; at least one."""
    from weightedit.data.inr_files import is_own_file, load_inrs

    convention, rename = stated_convention(options, options.size), stated_rename(options)
    if "like" in options and options.like and is_own_file(options.inrs):
        rename = None  # it is about the file of --like, for which _write takes it
    stack = load_inrs(options.inrs, convention, size=size, rename=rename)
    if not len(stack):
        raise WeightEditError(f"{options.inrs} holds no INRs; expected at least one: fit some first.")
    return stack


def _check_written(options: argparse.Namespace) -> Path:
    """Where the INRs go: ending as the file of --like does, if there is one."""
    return check_output(options.output, Path(options.like).suffix if options.like else ".safetensors")


def _write(options: argparse.Namespace, stack: INRStack, output: Path) -> None:
    from weightedit.data.inr_files import save_inrs
    from weightedit.data.like import save_like

    if options.like:
        save_like(stack, output, options.like, rename=stated_rename(options))
    else:
        save_inrs(stack, output)
    _say(f"wrote  {output}: {_plural(len(stack), 'INR')}")


def _fitted_pictures(options: argparse.Namespace, stack: INRStack) -> Tensor | Samples | None:
    """The pictures or samples of --image, as the first INRs of `stack` were fitted to them."""
    if options.image is None:
        return None
    from weightedit.cli.samples import are_samples
    from weightedit.cli.stages import pictures, samples_like

    if are_samples(options.image):
        return samples_like(options.image, stack)
    return pictures(options.image, "image", stack, stack.widths[-1])


def _load_editor(name: str | None) -> Editor:
    from weightedit.editing.editor import Editor

    source = name or SHIPPED_EDITOR
    editor = Editor.from_pretrained(source)
    size = sum(parameter.numel() for parameter in editor.parameters())
    _say(f"editor {source}: {', '.join(editor.operations)}, {editor.summary}, {size:,} parameters")
    return editor


def _load_rule(name: str | None) -> RefinementRule:
    from weightedit.editing.curvature import KFAC, SHIPPED_RULE, LearnedKFAC

    missing = name is None and SHIPPED_RULE not in shipped()
    if name == "kfac" or missing:
        _say(f"rule   K-FAC, numbers set by hand{f': {SHIPPED_RULE} is not in this copy of weightedit' * missing}")
        return KFAC()
    _say(f"rule   {name or SHIPPED_RULE}")
    return LearnedKFAC.from_pretrained(name or SHIPPED_RULE)


def _read_images(options: argparse.Namespace) -> tuple[ImageSet, dict[int, str]]:
    """The images of `fit`, and for picture files " name" by index."""
    import torch

    from weightedit.data.images import PICTURES, ImageSet, check_hub_name, load_images, load_picture

    first = Path(options.images[0])
    picture = first.suffix.lower() in PICTURES or (first.is_file() and first.suffix != ".parquet")
    if not picture:
        if len(options.images) > 1:
            raise WeightEditError(
                f"got {len(options.images)} sources, of which {first} is no picture; expected picture "
                "files, or one data set: run fit once for each."
            )
        if not first.exists():
            check_hub_name(options.images[0])
            _say(f"{first} is no file or folder here: asking the Hugging Face hub for a data set of that name")
        columns = options.columns and (options.columns[0], options.columns[1] if options.columns[1:] else None)
        wanted = {"limit": options.limit, "size": options.size, "channels": options.channels, "columns": columns}
        return load_images(options.images[0], options.split, **wanted), {}
    if options.split is not None:
        raise WeightEditError(f"got --split {options.split} with picture files; expected it with a data set: drop it.")
    names = options.images[: options.limit]
    loaded = [load_picture(name, size=options.size, channels=options.channels) for name in names]
    for name, image in zip(names, loaded, strict=True):
        if image.shape != loaded[0].shape:
            raise WeightEditError(
                f"{name} has (channels, height, width) {tuple(image.shape)}, but {names[0]} {tuple(loaded[0].shape)}; "
                "expected one shape: give --size and --channels to convert them."
            )
    pixels = (torch.stack(loaded) * 255.0).round().to(torch.uint8)
    count = len(pixels)
    known = {index: f" {Path(name).name}" for index, name in enumerate(names)}
    return ImageSet(pixels, torch.full((count,), -1), torch.arange(count)), known


_COMMANDS = {
    "demo": demo,
    "fit": fit,
    "edit": edit,
    "render": render,
    "convert": convert,
    "info": info,
    "check": check,
}
