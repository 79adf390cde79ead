"""Training a one-shot editor: the rendering of theta + delta against the operation of the source image, or an example.

Here: building an editor by name, its loss, its training and its test figures. Not here: the loop (training/loop.py),
and the trainings of predictors (predictor_training.py) and refinement rules (rule_training.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from weightedit.data.weight_sets import WeightSet
from weightedit.editing.guidance import check_guides
from weightedit.editing.one_shot import EditorOptions, OneShotEditor
from weightedit.editing.pairs import error_to_nearest, errors_to_nearest, first_of, wanted_of
from weightedit.errors import SpecError
from weightedit.inr.convention import Params, network_of
from weightedit.inr.fitting import fit_directly
from weightedit.inr.siren import render_images
from weightedit.inr.stack import INRStack
from weightedit.inr.widening import widen
from weightedit.metanet.gauge_gmn.config import GaugeGMNConfig
from weightedit.metanet.gauge_gmn.forecast import GridForecast
from weightedit.metanet.gauge_gmn.network import GaugeGMN
from weightedit.metanet.registry import config_options, describe_metanet, entry, make_metanet
from weightedit.network.symmetry import randomly_moved
from weightedit.training.examples import Examples
from weightedit.training.loop import TrainOptions, TrainResult, train


def make_editor(
    operation: str,
    stack: INRStack,
    *,
    name: str = "",
    gauge_gmn: GaugeGMNConfig | None = None,
    options: Sequence[str] = (),
    around: EditorOptions | None = None,
) -> OneShotEditor:
    """An untrained editor for INRs like those of `stack`.

    Args:
        operation: what it is to learn, by name.
        stack: at least one INR.
        name: of the metanetwork, see metanet.registry; "" for the GaugeGMN of `gauge_gmn`.
        gauge_gmn: of that GaugeGMN; it also holds for the names gauge-gmn and gauge-gmn-b, except for the direction.
        options: config fields of a metanetwork that is named, as layers=6.
        around: what surrounds the metanetwork; it reads one more channel per guide.

    Raises SpecError on an unknown name or option, or a metanetwork that does not edit.
    """
    around, config = around or EditorOptions(), gauge_gmn or GaugeGMNConfig()
    extra = tuple((kind.scale, kind.odd) for kind in check_guides(around.guides))
    config = replace(config, extra_types=extra)
    if not name:
        return OneShotEditor(GaugeGMN(config), operation, stack.convention, around)
    fields: dict[str, Any] = {"seed": config.seed} | ({"extra_types": extra} if extra else {})
    if entry(name).kind is GaugeGMN:
        fields = {k: v for k, v in asdict(config).items() if k not in ("inputs", "outputs", "bidirectional")}
    metanet = make_metanet(name, [widen(stack[:1], around.widen).spec], **{**fields, **config_options(options)})
    return OneShotEditor(metanet, operation, stack.convention, around)


def edit_examples(weights: WeightSet, name: str) -> Examples:
    """INRs and what edit `name` is to make of them, see `wanted_of`; the parameters are checked here, once."""
    weights.stack.spec.check_params(weights.stack.params)
    return Examples(params=weights.stack.params, targets=wanted_of(weights, name))


def edit_loss(editor: nn.Module, batch: dict[str, Any]) -> Tensor:
    """Mean squared error of the edited INRs' renderings, over images and pixels; no value is read."""
    assert isinstance(editor, OneShotEditor)
    height, width = batch["targets"].shape[-2:]
    # `train` refuses a loss that is not finite.
    edited = editor.edit_params(batch["params"], size=(height, width), finite=True)
    return error_to_nearest(render_images(edited, editor.convention, height, width), batch["targets"]).mean()


def augmented_loss(editor: nn.Module, batch: dict[str, Any], generator: torch.Generator) -> Tensor:
    """`edit_loss` after a random element of the symmetry group has acted on every INR."""
    assert isinstance(editor, OneShotEditor)
    spec = network_of(batch["params"], editor.convention)
    return edit_loss(editor, {**batch, "params": randomly_moved(spec, batch["params"], generator)})


def train_forecast(
    editor: OneShotEditor,
    splits: Mapping[str, WeightSet],
    folder: str | Path,
    options: TrainOptions,
    *,
    about: Mapping[str, Any] | None = None,
) -> TrainResult:
    """Train the forecast of the editor's metanetwork alone, in place: the rendering and its change, against the target.

    Ours. Through an edit a forecast learns slowly, since the weights follow only a part of it; as a picture it takes a
    tenth of the time per step. `train_editor` then trains the whole.

    Args:
        editor, splits, folder, options, about: as of `train_editor`.

    Raises SpecError unless there is a forecast over a grid with a probe for every pixel.
    """
    forecast, convention = getattr(editor.metanet, "forecast", None), editor.convention
    validation = splits["validation"]
    size = validation.stack.height, validation.stack.width
    if not isinstance(forecast, GridForecast) or (forecast.side, forecast.side) != size:
        raise SpecError(
            f"got a forecast to train of {forecast} for pictures of {size[0]} x {size[1]}; expected one over a grid "
            "with a probe for every pixel: set grid, forecast and probes, or train the whole alone."
        )
    targets = wanted_of(validation, editor.operation)

    def errors(model: nn.Module, params: Params, wanted: Tensor) -> Tensor:
        assert isinstance(model, GridForecast)
        raw = convention.to_raw(render_images(params, convention, *size))
        return error_to_nearest(convention.to_value(raw + model.change(raw)), wanted)

    def loss(model: nn.Module, batch: dict[str, Any]) -> Tensor:
        return errors(model, batch["params"], batch["targets"]).mean()

    def validate(model: nn.Module) -> float:
        device = next(model.parameters()).device
        parts = ((validation.stack[rows], targets[rows]) for rows in torch.arange(len(validation)).split(256))
        found = [errors(model, part.to(device).params, wanted.to(device)) for part, wanted in parts]
        return float(torch.cat(found).mean())

    examples = edit_examples(splits["train"], editor.operation)
    told = {"operation": editor.operation, "metanet": describe_metanet(editor.metanet), **(about or {})}
    return train(forecast, loss, examples, validate, folder, options, about=told)


def train_editor(
    editor: OneShotEditor,
    splits: Mapping[str, WeightSet],
    folder: str | Path,
    options: TrainOptions,
    *,
    augment: bool = False,
    about: Mapping[str, Any] | None = None,
) -> TrainResult:
    """Train `editor` in place; it ends up holding the weights of its best validation step.

    Args:
        editor: knows what it is trained for.
        splits: "train" and "validation".
        folder: of the run, see training.loop.train.
        options: how.
        augment: act on every training INR with a random element of its symmetry group; an equivariant metanetwork
            cannot gain by it.
        about: where the INRs come from, JSON values.
    """
    validation = splits["validation"]
    targets = wanted_of(validation, editor.operation)

    def validate(model: nn.Module) -> float:
        assert isinstance(model, OneShotEditor)
        return float(errors_to_nearest(model.unguarded(validation.stack), targets).mean())

    kind, config = describe_metanet(editor.metanet)
    told = {"operation": editor.operation, "augment": augment, "editor": asdict(editor.options)}
    told |= {"metanet": kind, "config": config, **(about or {})}
    loss = augmented_loss if augment else edit_loss
    return train(editor, loss, edit_examples(splits["train"], editor.operation), validate, folder, options, about=told)


def edit_error(weights: WeightSet, name: str, editor: OneShotEditor | None = None, *, progress: bool = False) -> float:
    """Mean squared error against what edit `name` is to make of the INRs; without an editor, of doing nothing."""
    stack = weights.stack if editor is None else editor.unguarded(weights.stack, progress=progress)
    return float(errors_to_nearest(stack, wanted_of(weights, name)).mean())


def floor_error(weights: WeightSet, name: str, count: int) -> float:
    """What the first `count` SIRENs reach when they are fitted to the target itself, the first of several."""
    few = weights[torch.arange(len(weights))[:count]]
    targets = first_of(wanted_of(few, name))
    return float(errors_to_nearest(fit_directly(few.stack, targets), targets).mean())
