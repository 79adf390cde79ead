"""Verbs of `import weightedit as we` that need nothing but their nouns: fit pictures, edit INRs, read a network.

Here: calls with few arguments, in units that a person has. Not here: what they are made of (inr/fitting.py,
editing/refinement.py), and reading files (loading.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from weightedit.editing.descent import choose_networks
from weightedit.editing.evaluation import check_pictures
from weightedit.editing.operations import Operation
from weightedit.editing.operations import operation as operation_of
from weightedit.editing.refinement import RefinementRule, mixed_in, refine, samples_of, target_of
from weightedit.editing.sample_fitting import fit_samples
from weightedit.errors import ParamsError, WeightEditError, check_seed, check_whole
from weightedit.inr.fitting import FitOptions
from weightedit.inr.fitting import fit as fit_all
from weightedit.inr.samples import Samples
from weightedit.inr.stack import INRStack
from weightedit.inr.widening import widen as widened
from weightedit.network.graph_spec import AnySpec, spec_of

Wanted = str | Operation | Callable[[Tensor], Tensor] | Tensor | Samples
"""What an edit may be told to aim at."""


def fit(
    images: Tensor | Samples,
    hidden: Sequence[int] | None = None,
    *,
    seed: int | None = None,
    progress: bool = False,
    **options: Any,
) -> INRStack:
    """One SIREN per picture, sound or other set of samples, each from an initialization of its own.

    Args:
        images: [N, C, H, W], floats in [0, 1] or bytes; or Samples, values at coordinates.
        hidden: widths of the hidden layers; None chooses by the pictures' size, see `inr.fitting.hidden_widths`.
        seed: of the initializations; None draws from torch's own generator.
        progress: show a tqdm bar.
        options: fields of FitOptions: target_psnr (by size 40, 35 or 30 dB), max_steps, init, method, ... Of Samples
            target_psnr (50 dB, of their range over the error), max_steps (200) and convention.

    Returns:
        N INRs in the order of the images, also those that missed the target (which is logged): see `psnr`.
        `weightedit.inr.fitting.fit`, and `weightedit.editing.sample_fitting.fit_samples`, also say how many steps each
        took. Samples take no part in [0, 1]: `inrs.at(coordinates)` gives values as they are.

    Raises:
        WeightEditError: an option out of range; ParamsError: images of another shape or range.
    """
    of_samples = isinstance(images, Samples)
    known = ["target_psnr", "max_steps", "convention"] if of_samples else [entry.name for entry in fields(FitOptions)]
    if unknown := sorted(set(options) - set(known)):
        raise WeightEditError(f"got {', '.join(unknown)}; expected some of {', '.join(known)}.")
    if hidden is not None and not isinstance(hidden, Sequence):
        raise WeightEditError(f"got hidden={hidden!r}; expected the widths of the hidden layers: [32, 32], or None.")
    if seed is not None:
        check_seed(seed)
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    if of_samples:
        widths = None if hidden is None else tuple(hidden)
        return fit_samples(images, hidden=widths, generator=generator, progress=progress, **options).stack
    # Images of other dimensions are refused there.
    known_shape = isinstance(images, Tensor) and images.dim() == 4
    widths = (2, *hidden, images.shape[1]) if hidden is not None and known_shape else None
    return fit_all(images, widths=widths, options=FitOptions(**options), generator=generator, progress=progress).stack


def edit(
    inrs: INRStack,
    operation: Wanted,
    *,
    at: Tensor | None = None,
    strength: float | Tensor = 1.0,
    steps: int = 10,
    widen: int = 1,
    rule: RefinementRule | None = None,
    progress: bool = False,
) -> INRStack:
    """INRs after learned steps towards what an operation makes of their renderings; no editor is needed.

    Args:
        inrs: N of them, of any convention, width and depth.
        operation: a name, an Operation, any function from images [N, C, H, W] in [0, 1] to the same, or the pictures
            [N, C, H, W] that are wanted. Of INRs of samples: a function from values [N, P, C] to the same, or Samples.
        at: coordinates [P, inputs] or [N, P, inputs] of the values that a function is given; None is the INRs' own
            grid (`INRStack.shape`). With them, it is a function of values for pictures too.
        strength: 0 leaves the INRs as they are bit for bit (unless they are widened), 1 is the operation, beyond 1 the
            change is exaggerated; or one per INR. Towards pictures or samples, how much of them is mixed in.
        steps: at least 0; ten take milliseconds per small INR.
        widen: hidden widths of the edited INRs, as a multiple of the given ones'.
        rule: that takes the steps; None is the shipped "refine-rule".
        progress: show a tqdm bar.

    Raises:
        WeightEditError: an unknown operation, a number out of range, or a rule that is none; ParamsError: what is no
            stack of INRs, or pictures that do not fit.
    """
    _check_inrs(inrs)
    if rule is not None and not hasattr(rule, "refine"):
        raise WeightEditError(f"got rule {rule!r}; expected None, we.KFAC(), or a rule that we.load reads.")
    check_whole("steps", steps, 0)
    check_whole("widen", widen, 1)
    try:
        amounts = torch.as_tensor(strength, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError):
        raise WeightEditError(f"got strength={strength!r}; expected a number of at least 0, or one per INR.") from None
    told = _told(operation, steps, widen, amounts)
    target = _target(operation, inrs, at, strength, amounts)
    start = widened(inrs, widen)
    if steps == 0 or not bool(amounts.any()):
        return replace(start, psnr=None).recorded(inrs, told)
    edited = refine(start, target, steps, rule=rule, progress=progress)
    moved = amounts.expand(len(inrs)).to(inrs.params["layers.0.weight"].device) > 0
    return edited.with_params(choose_networks(moved, edited.params, start.params)).recorded(inrs, told)


def undo(inrs: INRStack) -> INRStack:
    """INRs as they were before their last edit, to the bit; again and again, back to the first that is kept.

    `edit` and editors keep the former weights of the last 8 edits, at most 64 MB of them, in the stack and in its file.

    Args:
        inrs: N of them, edited here or read from a file.

    Raises:
        WeightEditError: no edit in the history, or one whose former weights are not kept. ParamsError: no INRs.
    """
    _check_inrs(inrs)
    return inrs.undone()


def read(net: nn.Module, inputs: Any = None) -> AnySpec:
    """What a network is, hence its symmetry; metanetworks and `propose_delta` take it.

    Args:
        net: any module; its forward is captured without data, and nothing of it changes.
        inputs: one batch that its forward takes (a tensor, a tuple, or keywords), of which only shapes matter; None:
            guessed from the first layer.

    Returns:
        A NetworkSpec of a chain of layers, with what stands before and after them, or a GraphSpec of a network with
        residual additions or normalizations.

    Raises:
        SpecError: what cannot be read, by the name of the submodule.
    """
    return spec_of(net, inputs)


def _check_inrs(inrs: object) -> None:
    if not isinstance(inrs, INRStack):
        raise ParamsError(f"got a {type(inrs).__name__}; expected INRs: we.fit(pictures), or we.load(a file of them).")


def _target(
    wanted: Wanted, inrs: INRStack, at: Tensor | None, strength: float | Tensor, amounts: Tensor
) -> Tensor | Samples:
    """What the INRs are to render, or their values at places."""
    if isinstance(wanted, (Tensor, Samples)):
        kind = "pictures" if isinstance(wanted, Tensor) else "samples"
        if isinstance(wanted, Tensor):
            check_pictures(inrs, kind)
        if at is not None:
            raise WeightEditError(f"got at with {kind}; expected it with a function of values: leave it out.")
        return wanted if bool((amounts == 1).all()) else mixed_in(wanted, inrs, strength=strength)
    if callable(wanted) and not isinstance(wanted, Operation) and (at is not None or not inrs.of_pictures):
        return samples_of(wanted, inrs, at, strength=strength)
    if at is not None:
        raise WeightEditError("got at with an operation of pictures; expected a function of values: leave it out.")
    return target_of(wanted, inrs, strength=strength)


def _told(operation: Wanted, steps: int, widen: int, at: Tensor) -> str:
    """An edit in words, for the history."""
    name = "samples" if isinstance(operation, Samples) else "pictures"
    name = name if isinstance(operation, (Tensor, Samples)) else operation_of(operation).name
    words = [f"{steps} steps"]
    words += [f"strength {float(at):g}" if at.dim() == 0 else "strengths"] if bool((at != 1).any()) else []
    words += [f"{widen} times as wide"] if widen != 1 else []
    return f"{name} ({', '.join(words)})"
