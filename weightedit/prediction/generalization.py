"""Training a predictor of test accuracy: losses, Kendall's tau, and test networks in other parametrizations.

The networks are of one zoo or of several, which may differ in activation, widths, depth and kernel. A batch then mixes
networks of all, and each zoo's part of it is read as one stack: the predictions are those of a ragged batch to
rounding, and the training is that of one zoo with more calls. On a CPU, a step with 8 networks of each of 4 zoos takes
0.75 to 1.0 of a ragged one's time (gauge-gmn-b and ng-gnn, small and by default).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from weightedit.data.cnn_zoo import CNNZoo
from weightedit.errors import SpecError, TypeMismatchError
from weightedit.metanet.registry import describe_metanet
from weightedit.network.reparametrization import kinds_of, reparametrized
from weightedit.network.symmetry import randomly_moved
from weightedit.prediction.predictor import WeightSpacePredictor
from weightedit.training.examples import EndToEnd, Examples
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
    splits: Mapping[str, Sequence[CNNZoo]],
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
        splits: "train" and "validation", the same zoos in both.
        folder: of the run, see training.loop.train.
        options: how.
        loss: one of LOSSES.
        augment: act on every training network with a random element of its symmetry group.
        about: what else makes the run what it is, JSON values.
    """
    specs, measure, validation = [zoo.spec for zoo in splits["train"]], LOSSES[loss], splits["validation"]

    def outer(model: nn.Module, batch: dict[int, dict[str, Any]], generator: torch.Generator) -> Tensor:
        assert isinstance(model, WeightSpacePredictor)
        logits = []
        for number, part in batch.items():
            spec, params = specs[number], part["params"]
            params = randomly_moved(spec, params, generator) if augment else params
            logits.append(model.predict(spec, params, finite=True)[..., 0])
        return measure(torch.cat(logits), torch.cat([part["wanted"] for part in batch.values()]))

    def validate(model: nn.Module) -> float:
        assert isinstance(model, WeightSpacePredictor)
        return 1 - kendall_tau(predicted(model, validation), measured(validation))

    told = {"loss": loss, "augment": augment, **(about or {})}
    examples = EndToEnd([accuracy_examples(zoo) for zoo in splits["train"]])
    return train(predictor, outer, examples, validate, folder, options, about=told)


@torch.no_grad()
def check_reads(predictor: WeightSpacePredictor, zoos: Iterable[CNNZoo]) -> None:
    """Raises SpecError unless the predictor's metanetwork reads networks of each of these zoos."""
    for zoo in zoos:
        try:
            predictor.predict(zoo.spec, zoo[:1].params)
        except (SpecError, TypeMismatchError) as error:
            raise SpecError(
                f"got {describe_metanet(predictor.metanet)[0]} for zoos of several architectures, of which it does not "
                f"read widths {zoo.spec.widths} with kernels {zoo.spec.kernel}; expected a metanetwork for all: "
                "gauge-gmn, scalegmn, ng-gnn and ng-t read any widths, depths and kernels."
            ) from error


@torch.no_grad()
def predicted(predictor: WeightSpacePredictor, zoos: Iterable[CNNZoo], batch_size: int = 64) -> Tensor:
    """Predicted accuracy of every checkpoint, zoo by zoo, [N] on the CPU."""
    device, found = next(predictor.parameters()).device, []
    for zoo in zoos:
        for start in range(0, len(zoo), batch_size):
            params = {name: tensor[start : start + batch_size].to(device) for name, tensor in zoo.params.items()}
            found.append(predictor.predict(zoo.spec, params)[..., 0].sigmoid().cpu())
    return torch.cat(found)


def measured(zoos: Iterable[CNNZoo]) -> Tensor:
    """Test accuracy of every checkpoint, zoo by zoo, float64 [N]."""
    return torch.cat([zoo.numbers("test_accuracy") for zoo in zoos])


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


def taus(predictor: WeightSpacePredictor, *tests: Mapping[str, CNNZoo]) -> dict[str, float]:
    """Tau of one ranking of the test networks of all these zoos, by the form in which they come.

    Args:
        predictor: of accuracies.
        tests: `reparametrized_tests` of each zoo; a form that one does not have leaves its networks as trained.
    """
    predictor.eval()
    kinds = dict.fromkeys(kind for forms in tests for kind in forms)
    zoos = {kind: [forms.get(kind, forms[UNCHANGED]) for forms in tests] for kind in kinds}
    return {kind: kendall_tau(predicted(predictor, every), measured(every)) for kind, every in zoos.items()}
