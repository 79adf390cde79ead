"""Training the predictor of a predictive editor: from an INR's rendering to the operation of its source image.

With several operations, or `graded`, strengths between 0 and 1 are drawn as well. An operation that is known by
examples alone (pairs.py) is the only one, at full strength. Two ways to practice: "plain", pairs as they come and the
mean squared error; and "varied", where pairs are changed into those of other INRs, and errors count relative to doing
nothing, by their logarithm: no operation drowns another. The loop is training/loop.py's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from weightedit.data.weight_sets import WeightSet
from weightedit.editing.guard import guard, known_target
from weightedit.editing.operations import operation
from weightedit.editing.pairs import check_name, error_to_nearest, errors_to_nearest, wanted_of
from weightedit.editing.predictive_editor import PredictiveEditor
from weightedit.editing.predictor import Predictor, lightness
from weightedit.errors import WeightEditError
from weightedit.training.examples import Examples, OneOf
from weightedit.training.loop import TrainOptions, TrainResult, train

Practice = Literal["plain", "varied"]
_SMALLEST, _NUMBERS = 28, 2**16
_FLOOR = 1e-5, 0.01
"""Errors, and errors relative to doing nothing, below which a picture teaches little more."""


def strengths_of(predictor: Predictor) -> tuple[float, ...]:
    """The strengths that it is validated and tested at."""
    return (0.5, 1.0) if predictor.config.graded else (1.0,)


def prediction_examples(weights: WeightSet, names: tuple[str, ...], *, graded: bool) -> Examples:
    """Renderings and what is predicted of them: of one operation at full strength its targets, else source images."""
    if graded:
        return Examples(renderings=renderings(weights), sources=weights.images)
    return Examples(renderings=renderings(weights), targets=wanted_of(weights, names[0]))


def renderings(weights: WeightSet) -> Tensor:
    """Of all INRs of a set, [N, C, H, W]."""
    parts = tqdm(torch.arange(len(weights)).split(500), desc="rendering", leave=False)
    return torch.cat([weights.stack[rows].render() for rows in parts])


def targets_of(names: tuple[str, ...], sources: Tensor, codes: Tensor, strengths: Tensor) -> Tensor:
    """operation(source) by degrees, a different operation and strength per image; `sources` are bytes, or floats."""
    floats = sources if sources.is_floating_point() else sources.to(torch.float32) / 255.0
    wanted = torch.empty_like(floats)
    for code, name in enumerate(names):
        rows = (codes == code).nonzero().squeeze(1)
        if len(rows):
            wanted[rows] = operation(name).at(floats[rows], strengths[rows])
    return wanted


def prediction_loss(predictor: nn.Module, batch: dict[str, Any], generator: torch.Generator) -> Tensor:
    """Mean squared error of predicted pictures, to the nearest of several targets; with sources in the batch,
    operations and strengths are drawn."""
    assert isinstance(predictor, Predictor)
    names = predictor.config.operations
    codes, strengths = _drawn(len(names), len(batch["renderings"]), generator)
    if "targets" in batch:
        predicted = predictor(batch["renderings"], codes, torch.ones_like(strengths))
        return error_to_nearest(predicted, batch["targets"]).mean()
    wanted = targets_of(names, batch["sources"], codes, strengths)
    return functional.mse_loss(predictor(batch["renderings"], codes, strengths), wanted)


def _check(names: tuple[str, ...], weights: WeightSet, graded: bool) -> None:
    for name in names:
        check_name(name, weights)
    if weights.targets is not None and graded:
        raise WeightEditError(
            f"got targets for {', '.join(names)} by degrees; expected one operation at full strength: name one, and "
            "leave graded out."
        )


def _wanted(weights: WeightSet, names: tuple[str, ...], codes: Tensor, strengths: Tensor) -> Tensor:
    return targets_of(names, weights.images, codes, strengths) if weights.targets is None else weights.targets


def varied_loss(
    predictor: nn.Module, batch: dict[str, Any], generator: torch.Generator, often: str | None = None
) -> Tensor:
    """Mean logarithm of the error of predicted pictures, relative to doing nothing, on pairs made `varied`.

    Half of them practice the operation `often`, if there is one.
    """
    assert isinstance(predictor, Predictor)
    pairs = torch.stack([batch["renderings"], batch["sources"].to(batch["renderings"]) / 255.0], 1)
    renderings, sources = varied(pairs, generator).unbind(1)
    names = predictor.config.operations
    codes, strengths = _drawn(len(names), len(sources), generator)
    if often is not None:
        half = torch.rand(len(sources), generator=generator, device=generator.device) < 0.5
        codes = torch.where(half, predictor.code(often), codes)
    wanted = targets_of(names, sources, codes, strengths)
    return relative_errors(predictor(renderings, codes, strengths), renderings, wanted).log().mean()


def relative_errors(found: Tensor, given: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared error of every picture [N] relative to that of the given one, both from a small floor on."""
    errors, nothing = ((pictures - wanted).square().mean((1, 2, 3)) for pictures in (found, given))
    floor, share = _FLOOR
    return (errors + share * nothing + floor) / (nothing + floor)


def varied(pairs: Tensor, generator: torch.Generator) -> Tensor:
    """Pairs [N, 2, C, H, W] as other INRs would have them; as many as are quickly done.

    They are flipped and turned, cropped if they are large, and some are grayed, or given another contrast or its
    negative: the first and last layers of an INR are linear, so what comes is the rendering of an INR, too.
    """
    on = generator.device
    chances = torch.rand(7, generator=generator, device=on).tolist()
    pairs = pairs.flip(-1) if chances[0] < 0.5 else pairs
    pairs = pairs.flip(-2) if chances[1] < 0.5 else pairs
    pairs = pairs.transpose(-1, -2) if chances[2] < 0.5 else pairs
    if min(pairs.shape[-2:]) > _SMALLEST:
        side = _SMALLEST + int(chances[3] * (min(pairs.shape[-2:]) - _SMALLEST + 1))
        top, left = (int(at * (n - side + 1)) for at, n in zip(chances[4:6], pairs.shape[-2:], strict=True))
        pairs = pairs[..., top : top + side, left : left + side]
    if chances[6] < 0.4:
        pairs = lightness(pairs.flatten(0, 1)).unflatten(0, (-1, 2))
    pairs = pairs[: max(1, _NUMBERS // pairs[0, 0].numel())]
    low, high, changed = torch.rand(3, len(pairs), 1, 1, 1, 1, generator=generator, device=on)
    return torch.where((changed < 0.5) & ((high - low).abs() > 0.2), low + (high - low) * pairs, pairs)


def _drawn(operations: int, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Codes and strengths; a quarter of these is 1, which is used most."""
    codes = torch.randint(operations, (count,), generator=generator, device=generator.device)
    return codes, (torch.rand(count, generator=generator, device=generator.device) / 0.75).clamp(max=1.0)


def train_predictor(
    predictor: Predictor,
    sets: Sequence[Mapping[str, WeightSet]],
    folder: str | Path,
    options: TrainOptions,
    *,
    practice: Practice = "plain",
    often: str | None = None,
    about: Mapping[str, Any] | None = None,
) -> TrainResult:
    """Train `predictor` in place; it ends up holding the weights of its best validation step.

    Args:
        predictor: its config says which operations, and whether by degrees.
        sets: each with "train" and "validation"; every batch comes from one of them.
        folder: of the run, see training.loop.train.
        options: how.
        practice: see the top of this file; "varied" trains every strength.
        often: of varied practice, an operation that half of the pairs are for: one that takes longer to learn.
        about: where the INRs come from, JSON values.

    Raises WeightEditError for `capture` with operations that are drawn at every step: they read values; and for
    targets that are given, see pairs.check_name, of more than one operation at full strength.
    """
    names, free = predictor.config.operations, practice == "varied"
    graded = predictor.config.graded or len(names) > 1 or free
    for splits in sets:
        for part in splits.values():
            _check(names, part, graded)
    if options.capture and graded:
        raise WeightEditError(
            f"got capture with operations {', '.join(names)} by degrees, which read values at every step; expected one "
            "operation at full strength: leave --training.capture out."
        )
    seen = [(part["validation"], renderings(part["validation"])) for part in sets]

    def validate(module: nn.Module) -> float:
        assert isinstance(module, Predictor)
        errors, on = [], module.last.weight.device
        for few, given in seen:
            for code in range(len(names)):
                for strength in strengths_of(module):
                    codes, strengths = torch.full((len(few),), code), torch.full((len(few),), strength)
                    wanted = _wanted(few, names, codes, strengths)
                    parts = zip(given.split(100), codes.split(100), strengths.split(100), strict=True)
                    found = torch.cat([module(*(tensor.to(on) for tensor in part)).cpu() for part in parts])
                    error = relative_errors(found, given, wanted).log() if free else error_to_nearest(found, wanted)
                    errors.append(float(error.mean()))
        return sum(errors) / len(errors)

    made = [prediction_examples(part["train"], names, graded=graded) for part in sets]
    examples = made[0] if len(made) == 1 else OneOf(made)
    loss = partial(varied_loss, often=often) if free else prediction_loss
    told = {**predictor.config.to_dict(), **({"practice": practice, "often": often} if free else {}), **(about or {})}
    return train(predictor, loss, examples, validate, folder, options, about=told)


def prediction_errors(editor: PredictiveEditor, test: WeightSet) -> dict[str, dict[str, float]]:
    """Per operation and strength: mean squared errors of doing nothing, of the predicted picture, and of the edit.

    And the share of INRs that are better for the edit: against the operation of the source image, and against that of
    their own rendering, by which the guard keeps them.
    """
    figures: dict[str, dict[str, float]] = {}
    for code, name in enumerate(editor.operations):
        for strength in strengths_of(editor.predictor):
            given = torch.full((len(test),), code), torch.full((len(test),), strength)
            wanted = _wanted(test, editor.operations, *given)
            parts = [test.stack[rows] for rows in torch.arange(len(test)).split(1000)]
            predicted = torch.cat([editor.predict(part, name, strength) for part in parts])
            edited = editor.unguarded(test.stack, name, strength=strength, progress=True)
            nothing, errors = (errors_to_nearest(stack, wanted) for stack in (test.stack, edited))
            known = known_target(name, test.stack, strength)
            figures[f"{name} {strength:g}"] = {
                "do nothing": float(nothing.mean()),
                "predicted picture": float(error_to_nearest(predicted, wanted).mean()),
                "edited": float(errors.mean()),
                "better": float((errors < nothing).double().mean()),
            }
            if known is not None:
                whole = guard(test.stack, edited, known).part == 1
                figures[f"{name} {strength:g}"]["kept"] = float(whole.double().mean())
    return figures
