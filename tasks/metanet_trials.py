"""What compare_metanets.py compares metanetworks on: three tasks, each through the program that does it.

Classes of INRs (classify_inrs.py), an edit of INRs (edit_inrs.py), test accuracy of CNNs (predict_generalization.py).
Here: how a system is built, trained and scored on each. The order of runs, costs and tables are compare_metanets.py's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import classify_inrs
import edit_inrs
import predict_generalization
from torch import Tensor, nn
from torch.nn import functional

from weightedit.data.weight_sets import load_weight_set
from weightedit.editing.operations import operation
from weightedit.training.loop import TrainOptions

SIZES: dict[str, tuple[str, ...]] = {
    "scalegmn": ("node_width=24", "edge_width=8", "layers=2", "probes=16"),
    "scalegmn-b": ("node_width=24", "edge_width=8", "layers=2", "probes=16"),
    "ng-gnn": ("node_width=24", "edge_width=8", "layers=2", "probes=16"),
    "ng-t": ("node_width=24", "edge_width=8", "layers=2", "probes=16"),
    "monomial": ("width=48",),
    "nfn-np": ("width=24",),
    "nfn-hnp": ("width=24",),
    "dws": ("width=24",),
}
"""Config fields of the systems that are compared, where they are not the defaults."""


@dataclass(frozen=True)
class Config:
    """The comparison.

    Attributes:
        weights: folder of a weight set with labels (fit_inrs.py), for classes and edits; "" leaves both out.
        zoo: folder of a zoo of CNNs (make_cnn_zoo.py); "" leaves it out.
        out: folder of runs and tables.
        metanet: names of the registry; empty for all.
        options: fields of their configs over SIZES, as name.field=value.
        operation: the edit.
        seconds: processor time of a training run on one thread.
        rates: learning rates to choose from.
        seeds: runs per system and task.
        batch: networks per training step.
        train_limit, validation_limit, test_limit: INRs of each split.
        rounds: turns of the timing.
        workers: processes that train, each on one thread.
        smoke: seconds, to see that everything runs.
    """

    weights: str = "runs/mnist-inrs"
    zoo: str = "runs/zoo-relu"
    out: str = "runs/metanets"
    metanet: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    operation: str = "dilate"
    seconds: float = 75.0
    rates: tuple[float, ...] = (1e-3, 3e-3)
    seeds: int = 3
    batch: int = 32
    train_limit: int = 20_000
    validation_limit: int = 512
    test_limit: int = 2000
    rounds: int = 7
    workers: int = 1
    smoke: bool = False

    def own_options(self, name: str) -> tuple[str, ...]:
        """Config fields of system `name`, those of `options` last."""
        given = tuple(option.removeprefix(f"{name}.") for option in self.options if option.startswith(f"{name}."))
        return (*SIZES.get(name, ()), *given)


@dataclass(frozen=True)
class Job:
    """One run: a system on a task, `steps` long."""

    task: str
    name: str
    seed: int
    rate: float
    steps: int


def training(config: Config, job: Job) -> TrainOptions:
    """AdamW with a warm-up and a cosine, the same for all; ten validations; on the processor, whose time is counted."""
    return TrainOptions(
        steps=job.steps,
        batch_size=config.batch,
        learning_rate=job.rate,
        weight_decay=1e-2,
        betas=(0.9, 0.98),
        warmup_steps=job.steps // 10,
        schedule="cosine",
        clip_norm=1.0,
        ema_decay=0.99,
        seed=job.seed,
        validate_every=max(1, job.steps // 10),
        checkpoint_every=max(1, job.steps // 2),
        cpu=True,
    )


class Task(Protocol):
    """One of the three: its data, loaded when first asked for, and how a system is built, trained and scored on it."""

    def build(self, job: Job) -> nn.Module:
        """The untrained system."""
        ...

    def loss(self, model: nn.Module, rows: Tensor) -> Tensor:
        """Of training examples `rows`, as in training."""
        ...

    def run(self, job: Job, out: Path) -> dict[str, float]:
        """Train in out/; "validation" (lower is better) and test figures."""
        ...


@dataclass(frozen=True)
class Classes:
    """Classes of INRs."""

    config: Config

    def experiment(self, job: Job, out: str = "") -> classify_inrs.Config:
        """What classify_inrs.py is asked for."""
        return classify_inrs.Config(
            weights=self.config.weights,
            out=out,
            metanet=job.name,
            metanet_options=self.config.own_options(job.name),
            embedding=64,
            train_limit=self.config.train_limit,
            validation_limit=self.config.validation_limit,
            test_limit=self.config.test_limit,
            training=training(self.config, job),
        )

    @cached_property
    def splits(self) -> dict[str, Any]:
        """INRs."""
        return classify_inrs.load_splits(self.experiment(Job("", "", 0, 0, 1)))

    def build(self, job: Job) -> nn.Module:
        """See Task."""
        return classify_inrs.build_predictor(self.experiment(job), self.splits)

    def loss(self, model: Any, rows: Tensor) -> Tensor:
        """See Task."""
        batch = classify_inrs.Examples(self.splits["train"])[rows]
        return functional.cross_entropy(model.predict(self.splits["train"].spec, batch["params"]), batch["labels"])

    def run(self, job: Job, out: Path) -> dict[str, float]:
        """See Task."""
        experiment = self.experiment(job, str(out))
        predictor = classify_inrs.build_predictor(experiment, self.splits)
        result = classify_inrs.run_training(predictor, self.splits, experiment)
        logits = predictor.eval().predict_stack(self.splits["test"], batch_size=experiment.evaluation_batch)
        accuracy = classify_inrs.accuracies(logits, self.splits["test"])["one INR"]
        return {"validation": result.best_validation, "accuracy": accuracy}


@dataclass(frozen=True)
class Edits:
    """An edit of INRs, one shot, from their weights only."""

    config: Config

    def experiment(self, job: Job) -> edit_inrs.Config:
        """What edit_inrs.py is asked for."""
        return edit_inrs.Config(
            weights=self.config.weights,
            operation=self.config.operation,
            name=job.name,
            metanet_options=(*self.config.own_options(job.name), f"seed={job.seed}"),
            training=training(self.config, job),
        )

    @cached_property
    def splits(self) -> dict[str, Any]:
        """INRs with their images."""
        limits = {"train": self.config.train_limit, "validation": self.config.validation_limit}
        limits["test"] = self.config.test_limit
        return {name: load_weight_set(self.config.weights, name, limit or None) for name, limit in limits.items()}

    @cached_property
    def _examples(self) -> edit_inrs.Examples:
        train = self.splits["train"]
        return edit_inrs.Examples(train.stack.params, operation(self.config.operation)(train.floats()))

    def build(self, job: Job) -> nn.Module:
        """See Task."""
        return edit_inrs.build_editor(self.experiment(job), self.splits["test"].stack)

    def loss(self, model: nn.Module, rows: Tensor) -> Tensor:
        """See Task."""
        return edit_inrs.edit_loss(model, self._examples[rows])

    def run(self, job: Job, out: Path) -> dict[str, float]:
        """See Task."""
        experiment, editor = self.experiment(job), self.build(job)
        assert isinstance(editor, edit_inrs.Editor)
        result = edit_inrs.run_training(editor, self.splits, experiment, experiment.training, out / "run")
        error = edit_inrs.test_error(editor.eval(), self.splits["test"], experiment)
        return {"validation": result.best_validation, "error": error}


@dataclass(frozen=True)
class Generalization:
    """Test accuracy of CNNs, ranked from their weights."""

    config: Config

    def experiment(self, job: Job) -> predict_generalization.Config:
        """What predict_generalization.py is asked for."""
        return predict_generalization.Config(
            zoo=self.config.zoo,
            metanet=(job.name,),
            options=tuple(
                f"{job.name}.{option}"
                for option in self.config.own_options(job.name)
                if not option.startswith("probes=")  # the metanetworks probe no convolutions
            ),
            seeds=(job.seed,),
            training=training(self.config, job),
        )

    @cached_property
    def splits(self) -> dict[str, Any]:
        """Zoos."""
        return predict_generalization.load_splits(self.experiment(Job("", "", 0, 0, 1)))

    def build(self, job: Job) -> nn.Module:
        """See Task."""
        spec = self.splits["train"].spec
        return predict_generalization.build_predictor(self.experiment(job), job.name, spec, job.seed)

    def loss(self, model: Any, rows: Tensor) -> Tensor:
        """See Task."""
        batch = predict_generalization.Examples(self.splits["train"])[rows]
        logits = model.predict(self.splits["train"].spec, batch["params"])[..., 0]
        return predict_generalization.LOSSES["mse"](logits, batch["wanted"])

    def run(self, job: Job, out: Path) -> dict[str, float]:
        """See Task."""
        experiment, predictor = self.experiment(job), self.build(job)
        assert isinstance(predictor, predict_generalization.WeightSpacePredictor)
        result = predict_generalization.run_training(predictor, self.splits, experiment, job.name, job.seed, out)
        tests = predict_generalization.reparametrised_tests(self.splits["test"])
        taus = predict_generalization.tested(predictor, result, tests)["tau"]
        return {"validation": result.best_validation, **{f"tau {kind}": tau for kind, tau in taus.items()}}


TASKS: dict[str, Callable[[Config], Task]] = {"classes": Classes, "edits": Edits, "generalization": Generalization}
"""Name -> the task of a comparison."""
