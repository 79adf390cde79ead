"""Training the predictor of a predictive editor: from an INR's rendering to the operation of its source image.

With several operations, or `graded`, strengths between 0 and 1 are drawn as well. An operation that is known by
examples alone (pairs.py) is the only one, at full strength. The loop is training/loop.py's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from weightedit.data.weight_sets import WeightSet
from weightedit.editing.operations import operation
from weightedit.editing.pairs import check_name, error_to_nearest, errors_to_nearest, wanted_of
from weightedit.editing.predictive_editor import PredictiveEditor
from weightedit.editing.predictor import Predictor
from weightedit.errors import WeightEditError
from weightedit.training.examples import Examples
from weightedit.training.loop import TrainOptions, TrainResult, train


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
    """operation(source) by degrees, a different operation and strength per image; `sources` are bytes."""
    floats = sources.to(torch.float32) / 255.0
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
    names, count, on = predictor.config.operations, len(batch["renderings"]), generator.device
    codes = torch.randint(len(names), (count,), generator=generator, device=on)
    # A quarter at the full strength, which is used most.
    strengths = (torch.rand(count, generator=generator, device=on) / 0.75).clamp(max=1.0)
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


def train_predictor(
    predictor: Predictor,
    splits: Mapping[str, WeightSet],
    folder: str | Path,
    options: TrainOptions,
    *,
    about: Mapping[str, Any] | None = None,
) -> TrainResult:
    """Train `predictor` in place; it ends up holding the weights of its best validation step.

    Args:
        predictor: its config says which operations, and whether by degrees.
        splits: "train" and "validation".
        folder: of the run, see training.loop.train.
        options: how.
        about: where the INRs come from, JSON values.

    Raises WeightEditError for `capture` with operations that are drawn at every step: they read values; and for
    targets that are given, see pairs.check_name, of more than one operation at full strength.
    """
    names, graded = predictor.config.operations, predictor.config.graded or len(predictor.config.operations) > 1
    for part in splits.values():
        _check(names, part, graded)
    if options.capture and graded:
        raise WeightEditError(
            f"got capture with operations {', '.join(names)} by degrees, which read values at every step; expected one "
            "operation at full strength: leave --training.capture out."
        )
    few = splits["validation"]
    given = renderings(few)

    def validate(module: nn.Module) -> float:
        assert isinstance(module, Predictor)
        errors = []
        for code in range(len(names)):
            for strength in strengths_of(module):
                codes, strengths = torch.full((len(few),), code), torch.full((len(few),), strength)
                wanted = _wanted(few, names, codes, strengths)
                on = module.last.weight.device
                parts = zip(given.split(100), codes.split(100), strengths.split(100), strict=True)
                found = torch.cat([module(*(tensor.to(on) for tensor in part)).cpu() for part in parts])
                errors.append(float(error_to_nearest(found, wanted).mean()))
        return sum(errors) / len(errors)

    examples = prediction_examples(splits["train"], names, graded=graded)
    told = {**predictor.config.to_dict(), **(about or {})}
    return train(predictor, prediction_loss, examples, validate, folder, options, about=told)


def prediction_errors(editor: PredictiveEditor, test: WeightSet) -> dict[str, dict[str, float]]:
    """Per operation and strength: mean squared errors of doing nothing, of the predicted picture, and of the edit."""
    figures: dict[str, dict[str, float]] = {}
    for code, name in enumerate(editor.operations):
        for strength in strengths_of(editor.predictor):
            given = torch.full((len(test),), code), torch.full((len(test),), strength)
            wanted = _wanted(test, editor.operations, *given)
            parts = [test.stack[rows] for rows in torch.arange(len(test)).split(1000)]
            predicted = torch.cat([editor.predict(part, name, strength) for part in parts])
            edited = editor.unguarded(test.stack, name, strength=strength, progress=True)
            figures[f"{name} {strength:g}"] = {
                "do nothing": float(errors_to_nearest(test.stack, wanted).mean()),
                "predicted picture": float(error_to_nearest(predicted, wanted).mean()),
                "edited": float(errors_to_nearest(edited, wanted).mean()),
            }
    return figures
