"""Training a classifier of INRs: their labels, variations of training INRs, and accuracies per INR and per image."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from weightedit.errors import WeightEditError
from weightedit.inr.stack import INRStack
from weightedit.network.spec import Params
from weightedit.network.symmetry import randomly_moved
from weightedit.prediction.predictor import WeightSpacePredictor
from weightedit.training.examples import Examples
from weightedit.training.loop import TrainOptions, TrainResult, train


def labels_of(stack: INRStack) -> Tensor:
    """Classes as int64 [N]. Raises WeightEditError where the weight set has none."""
    if stack.label is None:
        raise WeightEditError("got a weight set without labels; expected one made from images with classes.")
    return stack.label.long()


def images_of(stack: INRStack) -> Tensor:
    """Source image of every INR, [N]; each its own where the weight set does not say."""
    return torch.arange(len(stack)) if stack.index is None else stack.index


def first_of_each(images: Tensor, most: int) -> Tensor:
    """Positions of the first `most` INRs of every image, in order."""
    seen: dict[int, int] = {}
    kept = []
    for place, image in enumerate(images.tolist()):
        seen[image] = seen.get(image, 0) + 1
        if seen[image] <= most:
            kept.append(place)
    return torch.tensor(kept)


def class_examples(stack: INRStack) -> Examples:
    """INRs and their classes."""
    return Examples(params=stack.params, labels=labels_of(stack))


def train_classifier(
    predictor: WeightSpacePredictor,
    splits: Mapping[str, INRStack],
    folder: str | Path,
    options: TrainOptions,
    *,
    augment: bool = False,
    noise: float = 0.0,
    smoothing: float = 0.0,
    evaluation_batch: int = 128,
    about: Mapping[str, Any] | None = None,
) -> TrainResult:
    """Train `predictor` in place by cross-entropy; it ends up with the weights of its best validation accuracy.

    Args:
        predictor: as many outputs as there are classes.
        splits: "train" and "validation", with labels.
        folder: of the run, see training.loop.train.
        options: how.
        augment: act on every training INR with a random element of its symmetry group; an invariant metanetwork cannot
            gain by it.
        noise: standard deviation of noise on the training weights, in units of each tensor's root mean square.
        smoothing: of the labels, in [0, 1).
        evaluation_batch: INRs at once in validation.
        about: what else makes the run what it is, JSON values.
    """
    spec, validation = splits["train"].spec, splits["validation"]
    labels = labels_of(validation)

    def loss(model: nn.Module, batch: dict[str, Any], generator: torch.Generator) -> Tensor:
        assert isinstance(model, WeightSpacePredictor)
        params = randomly_moved(spec, batch["params"], generator) if augment else batch["params"]
        params = shaken(params, noise, generator) if noise else params
        return functional.cross_entropy(
            model.predict(spec, params, finite=True), batch["labels"], label_smoothing=smoothing
        )

    def validate(model: nn.Module) -> float:
        assert isinstance(model, WeightSpacePredictor)
        logits = model.predict_stack(validation, batch_size=evaluation_batch)
        return 1 - float((logits.argmax(-1) == labels).double().mean())

    return train(predictor, loss, class_examples(splits["train"]), validate, folder, options, about=about)


def shaken(params: Params, noise: float, generator: torch.Generator) -> Params:
    """Stacked parameters with Gaussian noise, in units of the root mean square of every network's tensor."""

    def shake(tensor: Tensor) -> Tensor:
        size = tensor.square().mean(tuple(range(1, tensor.dim())), keepdim=True).sqrt()
        return noise * size * torch.randn(tensor.shape, generator=generator, device=tensor.device)

    return {name: tensor + shake(tensor) for name, tensor in params.items()}


def accuracies(logits: Tensor, stack: INRStack) -> dict[str, float]:
    """Accuracy per INR, and per image where there are several INRs of one.

    Args:
        logits: [N, classes].
        stack: its labels and source images.
    """
    labels, guesses = labels_of(stack), logits.argmax(-1)
    figures = {"one INR": float((guesses == labels).double().mean())}
    images, place = images_of(stack).unique(return_inverse=True)
    if len(images) == len(stack):
        return figures
    shape = (len(images), logits.shape[-1])
    of_image = torch.zeros(len(images), dtype=torch.long).index_copy(0, place, labels)
    votes = torch.zeros(shape).index_add(0, place, functional.one_hot(guesses, shape[1]).float())
    sums = torch.zeros(shape).index_add(0, place, logits)
    # A tie of votes is decided by the logits.
    votes = votes + 0.5 * sums.softmax(-1)
    for name, scores in (("all INRs of an image, majority", votes), ("all INRs of an image, mean logits", sums)):
        figures[name] = float((scores.argmax(-1) == of_image).double().mean())
    return figures
