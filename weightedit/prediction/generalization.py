"""Training a predictor of test accuracy: losses, Kendall's tau, and test networks in other parametrizations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from weightedit.data.cnn_zoo import CNNZoo
from weightedit.network.reparametrization import kinds_of, reparametrized
from weightedit.network.symmetry import randomly_moved
from weightedit.prediction.predictor import WeightSpacePredictor
from weightedit.training.examples import Examples
from weightedit.training.loop import TrainOptions, TrainResult, train

LOSSES = {
    "mse": lambda logits, wanted: (logits.sigmoid() - wanted).square().mean(),
    "bce": functional.binary_cross_entropy_with_logits,
}
UNCHANGED = "as trained"


def accuracy_examples(zoo: CNNZoo) -> Examples:
    """Networks and their test accuracies."""
    return Examples(params=zoo.params, wanted=zoo.numbers("test_accuracy").float())


def train_accuracy_predictor(
    predictor: WeightSpacePredictor,
    splits: Mapping[str, CNNZoo],
    folder: str | Path,
    options: TrainOptions,
    *,
    loss: str = "mse",
    augment: bool = False,
    about: Mapping[str, Any] | None = None,
) -> TrainResult:
    """Train `predictor` in place; it ends up with the weights of its best tau on the validation networks.

    Args:
        predictor: of one output, whose sigmoid is the accuracy.
        splits: "train" and "validation".
        folder: of the run, see training.loop.train.
        options: how.
        loss: one of LOSSES.
        augment: act on every training network with a random element of its symmetry group.
        about: what else makes the run what it is, JSON values.
    """
    spec, measure, validation = splits["train"].spec, LOSSES[loss], splits["validation"]

    def outer(model: nn.Module, batch: dict[str, Any], generator: torch.Generator) -> Tensor:
        assert isinstance(model, WeightSpacePredictor)
        params = randomly_moved(spec, batch["params"], generator) if augment else batch["params"]
        return measure(model.predict(spec, params, finite=True)[..., 0], batch["wanted"])

    def validate(model: nn.Module) -> float:
        assert isinstance(model, WeightSpacePredictor)
        return 1 - kendall_tau(predicted(model, validation), validation.numbers("test_accuracy"))

    told = {"loss": loss, "augment": augment, **(about or {})}
    return train(predictor, outer, accuracy_examples(splits["train"]), validate, folder, options, about=told)


@torch.no_grad()
def predicted(predictor: WeightSpacePredictor, zoo: CNNZoo, batch_size: int = 64) -> Tensor:
    """Predicted accuracy of every checkpoint, [N] on the CPU."""
    device, found = next(predictor.parameters()).device, []
    for start in range(0, len(zoo), batch_size):
        params = {name: tensor[start : start + batch_size].to(device) for name, tensor in zoo.params.items()}
        found.append(predictor.predict(zoo.spec, params)[..., 0].sigmoid().cpu())
    return torch.cat(found)


def kendall_tau(one: Tensor, other: Tensor) -> float:
    """Kendall's tau-b, from scipy; 0 where one of them is constant, since it then ranks nothing.

    NaN where one of them holds NaN or infinity: no ranking came out. `train` never keeps such a step.
    """
    from scipy.stats import kendalltau

    if not bool(one.isfinite().all() and other.isfinite().all()):
        return math.nan
    found: Any = kendalltau(one.double().numpy(), other.double().numpy(), variant="b")
    return 0.0 if math.isnan(found.statistic) else float(found.statistic)


def reparametrized_tests(test: CNNZoo) -> dict[str, CNNZoo]:
    """The test networks as they are, and under every kind of other parameters that their activations allow."""
    found = {UNCHANGED: test}
    for number, kind in enumerate(kinds_of(test.spec)):
        generator = torch.Generator().manual_seed(number)
        found[kind] = test.with_params(reparametrized(test.spec, test.params, kind, generator))
    return found


def taus(predictor: WeightSpacePredictor, tests: Mapping[str, CNNZoo]) -> dict[str, float]:
    """Tau on every form of the test networks, all of which have the accuracies of those as trained."""
    wanted = tests[UNCHANGED].numbers("test_accuracy")
    predictor.eval()
    return {kind: kendall_tau(predicted(predictor, zoo), wanted) for kind, zoo in tests.items()}
