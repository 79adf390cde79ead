"""The inner problems by name, on images read through data/images.py: what the tasks choose from.

The small classifiers are the protocol of learned_optimizers.md section 1: images at 8 x 8, one hidden layer of 32,
batches of 128, 80 % of the training images. The small CNNs, and the one of full size on images at 14 x 14, are for
training rules on; those of full size on whole images are what such rules are then tried on. Every name has the family
that a rule is trained on: other widths, depths, activations and initial scales around it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from weightedit.data.images import load_images
from weightedit.errors import WeightEditError
from weightedit.metatrain.image_optimizees import (
    ClassifierOptimizee,
    LabeledImages,
    ModuleOptimizee,
    SirenOptimizee,
    conv_net,
)
from weightedit.metatrain.optimizee import Optimizee, TaskFamily
from weightedit.network.spec import Activation

TRAINED = 0.8  # part of the training images that inner steps see
INIT = "zero-biases"
HUB = {"mnist": "ylecun/mnist", "fashion_mnist": "zalando-datasets/fashion_mnist", "cifar10": "uoft-cs/cifar10"}
"""Data sets by the names that their folders have here -> on the hub."""


@dataclass(frozen=True)
class Problem:
    """A named problem.

    Attributes:
        source: a data set of HUB, or its folder below the one that holds all; None: scikit-learn's digits.
        size: images are resized to size x size; None keeps them.
        kind: "mlp" or "cnn", which classify, or "siren", which is fitted to one image per run.
        widths: of the hidden layers, or channels.
        strides: of the convolutions.
        activation: of an MLP.
    """

    source: str | None
    size: int | None
    kind: str
    widths: tuple[int, ...]
    strides: tuple[int, ...] = ()
    activation: str = "relu"


PROBLEMS: dict[str, Problem] = {
    "digits-mlp": Problem(None, None, "mlp", (32,)),
    "mnist-mlp": Problem("mnist", 8, "mlp", (32,)),
    "fashion-mlp": Problem("fashion_mnist", 8, "mlp", (32,)),
    "cifar-mlp": Problem("cifar10", 8, "mlp", (32,)),
    "mnist-mlp-16": Problem("mnist", 16, "mlp", (32,)),
    "fashion-mlp-16": Problem("fashion_mnist", 16, "mlp", (32,)),
    "cifar-mlp-16": Problem("cifar10", 16, "mlp", (32,)),
    "mnist-mlp-full": Problem("mnist", None, "mlp", (32,)),
    "fashion-mlp-full": Problem("fashion_mnist", None, "mlp", (32,)),
    "cifar-mlp-full": Problem("cifar10", None, "mlp", (32,)),
    "fashion-mlp-wide": Problem("fashion_mnist", 8, "mlp", (128,)),
    "fashion-mlp-deep": Problem("fashion_mnist", 8, "mlp", (32, 32)),
    "cifar-mlp-wide": Problem("cifar10", 8, "mlp", (128,)),
    "cifar-mlp-deep": Problem("cifar10", 8, "mlp", (32, 32)),
    "fashion-mlp-gelu": Problem("fashion_mnist", 8, "mlp", (32,), activation="gelu"),
    "cifar-mlp-gelu": Problem("cifar10", 8, "mlp", (32,), activation="gelu"),
    "mnist-cnn": Problem("mnist", None, "cnn", (16, 32, 32), (2, 1, 1)),
    "fashion-cnn": Problem("fashion_mnist", None, "cnn", (16, 32, 32), (2, 1, 1)),
    "fashion-cnn-14": Problem("fashion_mnist", 14, "cnn", (16, 32, 32), (2, 1, 1)),
    "cifar-cnn": Problem("cifar10", None, "cnn", (32, 64, 64), (2, 1, 1)),
    "fashion-cnn-small": Problem("fashion_mnist", 8, "cnn", (8, 16, 16), (2, 1, 1)),
    "cifar-cnn-small": Problem("cifar10", 8, "cnn", (8, 16, 16), (2, 1, 1)),
    "mnist-siren": Problem("mnist", None, "siren", (32, 32)),
    "fashion-siren": Problem("fashion_mnist", None, "siren", (32, 32)),
}


def images_of(name: str, folder: str | Path, *, split: str = "train") -> LabeledImages:
    """The images of problem `name`, at its size.

    Args:
        name: one of PROBLEMS.
        folder: holds the data sets, each a folder that load_images reads; "" takes them from the hub.
        split: "train" or "test".

    Raises:
        WeightEditError: an unknown name, and what load_images raises.
    """
    problem = _problem(name)
    if problem.source is None:
        from sklearn.datasets import load_digits

        pixels, targets = load_digits(return_X_y=True)
        images = torch.as_tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16
        labels = torch.as_tensor(targets)
        part = slice(None, 1400) if split == "train" else slice(1400, None)
        return LabeledImages.of(images[part], labels[part])
    found = load_images(str(Path(folder) / problem.source) if str(folder) else HUB[problem.source], split)
    return LabeledImages.of(found.images, found.labels, size=problem.size)


def optimizee(name: str, data: LabeledImages, held_out: LabeledImages | None = None, **changes: Any) -> Optimizee:
    """Problem `name` on these images.

    Args:
        name: one of PROBLEMS.
        data, held_out: what inner steps train on, and what meta-losses may be taken on (fits: runs that begin with
            `held_out`).
        changes: what differs from the problem as it is named: some of VARIATIONS of its kind.

    Raises WeightEditError on a change that its kind does not know.
    """
    problem = _problem(name)
    _check_changes(name, changes)
    hidden = changes.pop("hidden", problem.widths)
    if problem.kind == "siren":
        return SirenOptimizee(data.images, hidden, held_out=None if held_out is None else held_out.images)
    if problem.kind == "cnn":
        channels = data.images.shape[1]

        def net() -> torch.nn.Module:
            return conv_net(channels, data.classes, widths=hidden, strides=problem.strides, **own)

        own = {key: changes.pop(key) for key in ("activation", "initial_scale") if key in changes}
        return ModuleOptimizee(data, held_out, make=net, **changes)
    activation = Activation(changes.pop("activation", problem.activation))
    return ClassifierOptimizee(data, held_out, hidden=hidden, activation=activation, init_name=INIT, **changes)


VARIATIONS: dict[str, dict[str, Sequence[Any]]] = {
    "mlp": {
        "hidden": ((32,), (16,), (64,), (24, 24)),
        "activation": ("relu", "tanh", "gelu"),
        "initial_scale": (1.0, 0.5, 2.0),
        "batch_size": (128, 32),
    },
    "cnn": {
        "hidden": ((8, 16, 16), (16, 16), (8, 8, 16)),
        "activation": ("relu", "tanh", "gelu"),
        "initial_scale": (1.0, 0.5, 2.0),
        "batch_size": (128, 32),
    },
    "siren": {"hidden": ((32, 32), (16, 16), (48, 48), (24, 24, 24))},
}
"""By kind of problem: what may vary, and the values it takes in a family."""


def family(name: str, data: LabeledImages, held_out: LabeledImages | None, vary: Sequence[str] = ()) -> TaskFamily:
    """What a rule for problem `name` is trained on: the problem itself, and variations in what `vary` names.

    Raises WeightEditError on an unknown variation.
    """
    _check_changes(name, vary)
    choices = VARIATIONS[_problem(name).kind]
    make: Callable[..., Optimizee] = lambda **chosen: optimizee(name, data, held_out, **chosen)  # noqa: E731
    return TaskFamily(make, {key: choices[key] for key in vary} or {"hidden": (_problem(name).widths,)})


def _check_changes(name: str, changes: Iterable[str]) -> None:
    known = VARIATIONS[_problem(name).kind]
    if unknown := sorted(set(changes) - set(known)):
        raise WeightEditError(f"got variations {unknown} of {name}; expected some of {', '.join(known)}: choose.")


def _problem(name: str) -> Problem:
    if name not in PROBLEMS:
        raise WeightEditError(f"got problem {name!r}; expected one of {', '.join(PROBLEMS)}: choose.")
    return PROBLEMS[name]
