"""Train a predictor: a metanetwork reads the weights of networks and says something of each.

    python tasks/fit_inrs.py --out runs/mnist-inrs
    python tasks/train_predictor.py classes --weights runs/mnist-inrs --metanet gauge-gmn-b --out runs/mnist-classes
    python tasks/make_cnn_zoo.py --out runs/zoo-relu
    python tasks/train_predictor.py accuracy --zoo runs/zoo-relu --metanet statistics gauge-gmn --out runs/tau-relu

classes: the class of an INR's image, from its weights and what its neurons do at probes (the card says how many).
accuracy: a CNN's test accuracy, from its weights alone; networks are ranked by it. Several zoos are one set.

The best step is chosen on validation data, the test data are measured once. Started again with the same arguments, a
run goes on where it was stopped; several processes: `torchrun --nproc_per_node 2 tasks/train_predictor.py classes ...`.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import tyro

from weightedit.cli.main import told_in_one_line
from weightedit.cli.published import Published
from weightedit.data.cnn_zoo import SPLITS, CNNZoo, load_zoo, split_by_network
from weightedit.data.small_cnn_zoo import load_small_cnn_zoo
from weightedit.data.weight_sets import load_splits
from weightedit.errors import WeightEditError
from weightedit.inr.stack import INRStack
from weightedit.metanet.registry import config_options, describe_metanet, make_metanet
from weightedit.network.spec import NetworkSpec
from weightedit.plots import Band, bands
from weightedit.prediction.classes import accuracies, first_of_each, images_of, labels_of, train_classifier
from weightedit.prediction.generalization import (
    LOSSES,
    check_reads,
    measured,
    predicted,
    reparametrized_tests,
    taus,
    train_accuracy_predictor,
)
from weightedit.prediction.predictor import WeightSpacePredictor
from weightedit.training.loop import TrainOptions
from weightedit.training.report import hardware, run_facts, spread, table, write_result
from weightedit.training.state import read_log


@dataclass(frozen=True)
class Classes:
    """Train a classifier of INRs.

    Cross-entropy on the training INRs. Where the weight set has several INRs of an image (fit_inrs.py --repeats), the
    table also has the accuracy per image, by the majority of its INRs and by the mean of their logits.

    Attributes:
        weights: folder of a weight set with labels (tasks/fit_inrs.py), or of published weights, one file per INR.
        published: how the latter are read; the weight set made of them is out/weights.
        out: folder of the run; the finished predictor is written to out/predictor.
        metanet: name of the registry (weightedit.metanet.registry).
        metanet_options: fields of its config, as layers=6 node_width=128; values are JSON.
        embedding: width of the vector that the metanetwork reads from an INR.
        hidden: width of the hidden layer after it.
        dropout: share of that layer that is dropped in training.
        per_image: train on the first so many INRs of every image; 0 for all. Validation and test take all.
        train_limit: use the first so many training INRs; 0 for all.
        validation_limit: INRs to choose the best step on; 0 for all.
        test_limit: INRs of the test figure; 0 for all.
        augment: act on every training INR with a random element of its symmetry group; an invariant metanetwork cannot
            gain by it.
        noise: standard deviation of noise on the training weights, in units of each tensor's root mean square.
        smoothing: of the labels, in [0, 1).
        evaluation_batch: INRs at once where nothing is trained.
        training: the run; its seed is that of the initial weights, too.
        smoke: seconds instead of hours, to see that everything runs.
    """

    weights: str = "runs/mnist-inrs"
    published: tyro.conf.OmitArgPrefixes[Published] = field(default_factory=Published)
    out: str = "runs/mnist-classes"
    metanet: str = "gauge-gmn-b"
    metanet_options: tuple[str, ...] = ()
    embedding: int = 128
    hidden: int = 128
    dropout: float = 0.0
    per_image: int = 0
    train_limit: int = 0
    validation_limit: int = 0
    test_limit: int = 0
    augment: bool = False
    noise: float = 0.0
    smoothing: float = 0.0
    evaluation_batch: int = 128
    training: TrainOptions = field(
        default_factory=lambda: TrainOptions.cosine(
            20_000, batch_size=64, warmup_steps=500, ema_decay=0.999, validate_every=500, checkpoint_every=250
        )
    )
    smoke: bool = False

    def run(self) -> dict[str, float]:
        """Train, test, write out/predictor, out/curve.png and out/result.json; returns the accuracies."""
        if self.smoke:
            few = {"train_limit": 16, "validation_limit": 8, "test_limit": 8, "evaluation_batch": 4, "smoke": False}
            return replace(self, training=self.training.brief(), embedding=8, hidden=8, **few).run()
        splits, out, seed = self.splits(), Path(self.out), self.training.seed
        predictor = WeightSpacePredictor(
            make_metanet(
                self.metanet,
                [splits["train"].spec],
                **{"embedding": self.embedding, "seed": seed, **config_options(self.metanet_options)},
            ),
            1 + max(int(labels_of(part).max()) for part in splits.values()),
            hidden=self.hidden,
            dropout=self.dropout,
            convention=splits["train"].convention,
            seed=seed,
        )
        how = {"augment": self.augment, "noise": self.noise, "smoothing": self.smoothing}
        beside = ("published", "out", "training", "test_limit", "smoke")
        about = {key: value for key, value in asdict(self).items() if key not in beside}
        more: dict[str, Any] = {"evaluation_batch": self.evaluation_batch, "about": about}
        result = train_classifier(predictor, splits, out / "run", self.training, **how, **more)
        logits = predictor.eval().predict_stack(splits["test"], batch_size=self.evaluation_batch, progress=True)
        figures, counts = accuracies(logits, splits["test"]), {name: len(stack) for name, stack in splits.items()}
        if result.main:
            test = splits["test"]
            read = what_is_read(describe_metanet(predictor.metanet)[1], test.height * test.width)
            facts = run_facts(self, predictor, result, figures=figures, counts=counts, read=read)
            write_result(out, "result", facts)
            draw_curve(out)
            lines = table(["test accuracy", "value"], [(name, f"{100 * v:.2f} %") for name, v in figures.items()])
            print(f"\n{self.metanet}, {counts['test']} test INRs, from {read}\n{lines}")
            predictor.save_pretrained(out / "predictor", self.card(facts, lines), training=facts)
            print(f"predictor written to {out / 'predictor'}")
        return figures

    def splits(self) -> dict[str, INRStack]:
        """The three splits; of training images, only the wanted INRs."""
        limits = {"train": self.train_limit, "validation": self.validation_limit, "test": self.test_limit}
        folder = self.published.weight_set(self.weights, Path(self.out) / "weights", print)
        splits = {name: part.stack for name, part in load_splits(folder, **limits).items()}
        if self.per_image:
            splits["train"] = splits["train"][first_of_each(images_of(splits["train"]), self.per_image)]
        return splits

    def card(self, facts: dict[str, Any], lines: str) -> str:
        """The README.md beside a predictor's weights."""
        counts, training, minutes = facts["counts"], self.training, facts["seconds"] / 60
        batch = training.batch_size * training.accumulate * facts["processes"]
        log = read_log(Path(self.out) / "run")
        curve = table(["step", "training cross-entropy", "validation accuracy"], curve_rows(log))
        changes = "acted on by random elements of their symmetry group" if self.augment else "as they were fitted"
        return f"""# weightedit predictor: classes of INRs

Names the class of a SIREN's image from {facts["read"]}.
Metanetwork `{self.metanet}`, {facts["parameters"]:,} parameters.

{lines}

{counts["train"]:,} training INRs, {changes}, {counts["validation"]:,} validation INRs (choice of the best step) and
{counts["test"]:,} test INRs of {self.weights}.

Trained for {facts["steps"]:,} steps of {batch} INRs (best step {facts["best_step"]:,}, validation accuracy
{100 * (1 - facts["best_validation"]):.2f} %) in {minutes:.0f} minutes on {facts["hardware"]},
{facts["processes"]} process(es), seed {training.seed}. config.json holds the whole configuration.

{curve}
"""


def what_is_read(config: dict[str, Any], pixels: int) -> str:
    """What a metanetwork of this config knows of an INR, in words.

    Args:
        config: of the metanetwork.
        pixels: of a fitted image.
    """
    probes = int(config.get("probes", 0))
    if not probes:
        return "its weights alone; it is never evaluated"
    kind = "on a fixed grid" if config.get("grid") else "learned"
    told = f"its weights and what its neurons do at {probes} probes ({kind}; the image has {pixels} pixels)"
    return told if probes < pixels else f"{told}: a classifier of renderings, to which weights add little"


def curve_rows(log: list[dict[str, Any]], most: int = 12) -> list[tuple[str, str, str]]:
    """At most so many validations of a log, evenly spaced, the last among them, each with the mean loss before it."""
    checked = [n for n, record in enumerate(log) if record.get("validation") is not None]
    kept = sorted({checked[-1 - (k * (len(checked) - 1)) // max(1, most - 1)] for k in range(most)}) if checked else []
    rows, begin = [], 0
    for n in kept:
        losses = [record["loss"] for record in log[begin : n + 1] if record["loss"] is not None]
        loss = f"{statistics.fmean(losses):.3f}" if losses else "-"
        rows.append((f"{log[n]['step']:,}", loss, f"{100 * (1 - log[n]['validation']):.2f} %"))
        begin = n + 1
    return rows


def draw_curve(out: Path) -> None:
    """Training cross-entropy, in a hundred means, and validation error of out/run's log, as out/curve.png."""
    log = read_log(out / "run")
    losses = [record for record in log if record["loss"] is not None]
    size = max(1, len(losses) // 100)
    parts = [losses[i : i + size] for i in range(0, len(losses), size)]
    means = [statistics.fmean(float(record["loss"]) for record in part) for part in parts]
    drawn = [Band("training cross-entropy", [float(part[-1]["step"]) for part in parts], [means])]
    checked = [record for record in log if record.get("validation")]
    if checked:
        errors = [[record["validation"] for record in checked]]
        drawn.append(Band("validation error", [record["step"] for record in checked], errors, own=True))
    bands({"step": drawn}, out / "curve.png", ylabel="error")


@dataclass(frozen=True)
class Accuracy:
    """Predict test accuracy from weights, with any registered metanetwork.

    The score is Kendall's tau-b (scipy.stats.kendalltau) between predicted and measured accuracy on the last
    checkpoints of test networks, also when these networks are permuted, rescaled or sign-flipped, which does not change
    what they compute: what is invariant loses nothing. `--small-cnn-zoo cifar10 --activation tanh` reads the public
    zoo's files instead, and splits its networks in the published shares, but by a draw of our own: published figures
    are of other test networks.

    Of several zoos, one predictor is trained on batches that mix the networks of all, and the best step is chosen by
    the tau of all. The table has the tau of one ranking of all test networks (a change of parameters that a zoo's
    activation does not allow leaves its networks as trained) and the tau within each zoo.

    Attributes:
        zoo: folders of zoos (tasks/make_cnn_zoo.py), which may differ in activation, filters and kernel, of images with
            the same channels and classes; that these are the same images is not checked.
        small_cnn_zoo: folder of the public Small CNN Zoo to read instead; "" for `zoo`.
        activation: which of the public zoo's two halves, or both.
        out: folder of the runs; each predictor is written to out/<metanet>-seed<seed>/predictor.
        metanet: names of the registry, one row of the table each.
        options: fields of their configs, as name.field=value: scalegmn.layers=3. Values are JSON.
        embedding: width of the vector that a metanetwork reads from a network.
        hidden: width of the predictor's hidden layer.
        checkpoints: train on the "last" checkpoint of every network, or on "all"; tests are on the last.
        loss: "mse" of the sigmoid, or "bce".
        augment: act on every training network with a random element of its symmetry group.
        seeds: one run each; the table has their mean and, from two on, standard deviation.
        training: of every run; its seed is overwritten.
        smoke: seconds, to see that everything runs.
    """

    zoo: tuple[str, ...] = ("runs/zoo-relu",)
    small_cnn_zoo: str = ""
    activation: tuple[str, ...] = ("relu",)
    out: str = "runs/tau-relu"
    metanet: tuple[str, ...] = ("statistics", "gauge-gmn")
    options: tuple[str, ...] = ()
    embedding: int = 64
    hidden: int = 128
    checkpoints: str = "all"
    loss: str = "mse"
    augment: bool = False
    seeds: tuple[int, ...] = (0,)
    training: TrainOptions = field(
        default_factory=lambda: TrainOptions.cosine(
            1500,
            batch_size=32,
            warmup_steps=50,
            ema_decay=0.99,
            validate_every=100,
            checkpoint_every=250,
            betas=(0.9, 0.999),
        )
    )
    smoke: bool = False

    def run(self) -> dict[str, list[dict[str, Any]]]:
        """Train and test every metanetwork with every seed; write out/result.json; returns every run's facts."""
        if self.smoke:
            return replace(self, training=self.training.brief(), embedding=8, hidden=8, smoke=False).run()
        if self.loss not in LOSSES or self.checkpoints not in ("last", "all") or not self.seeds:
            raise WeightEditError(
                f"got loss {self.loss!r}, checkpoints {self.checkpoints!r} and seeds {self.seeds}; expected one of "
                f"{', '.join(LOSSES)}, last or all, and a seed: correct them."
            )
        names, splits = self.names(), self.splits()
        specs, wanted = [zoo.spec for zoo in splits["test"]], measured(splits["test"])
        for name in self.metanet if len(names) > 1 else ():
            check_reads(self.predictor(name, specs, 0), splits["test"])
        tests = dict(zip(names, map(reparametrized_tests, splits["test"]), strict=True))
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in self.metanet}
        main = True
        for name in self.metanet:
            for seed in self.seeds:
                predictor, folder = self.predictor(name, specs, seed), Path(self.out) / f"{name}-seed{seed}"
                zoo: Any = names if len(names) > 1 else self.small_cnn_zoo or names[0]
                about = {"zoo": zoo, "metanet": name, "options": list(self.options)}
                about |= {key: getattr(self, key) for key in ("embedding", "hidden", "checkpoints")}
                how: dict[str, Any] = {"loss": self.loss, "augment": self.augment, "about": about}
                training = replace(self.training, seed=seed)
                result = train_accuracy_predictor(predictor, splits, folder / "run", training, **how)
                figures: dict[str, Any] = {"tau": taus(predictor, *tests.values())}
                figures["mse"] = float((predicted(predictor, splits["test"]) - wanted).square().mean())
                if len(names) > 1:
                    figures["tau by zoo"] = {zoo: taus(predictor, forms) for zoo, forms in tests.items()}
                runs[name].append(run_facts(self, predictor, result, **figures))
                main = result.main
                if main:
                    card = self.card(runs[name][-1])
                    predictor.save_pretrained(folder / "predictor", card, training=runs[name][-1])
        if main:
            self.report(runs, {split: sum(map(len, zoos)) for split, zoos in splits.items()})
        return runs

    def names(self) -> list[str]:
        """What the zoos are called. Raises WeightEditError where there is none, or one twice."""
        found = [f"{self.small_cnn_zoo} {half}" for half in self.activation] if self.small_cnn_zoo else [*self.zoo]
        if not found or len(set(found)) < len(found):
            raise WeightEditError(f"got the zoos {found}; expected at least one, and each once: correct them.")
        return found

    def splits(self) -> dict[str, list[CNNZoo]]:
        """Training checkpoints, and the last ones of validation and test networks, of every zoo."""
        if self.small_cnn_zoo:
            steps = (86,) if self.checkpoints == "last" else None
            zoos = [load_small_cnn_zoo(self.small_cnn_zoo, half, steps=steps) for half in self.activation]
            parts = [split_by_network(zoo, (0.1, 0.5)) for zoo in zoos]  # 40, 10 and 50 %: the published split's sizes
        else:
            parts = [{split: load_zoo(folder, split) for split in SPLITS} for folder in self.zoo]
        ends = {(part["train"].spec.widths[0], part["train"].spec.widths[-1]) for part in parts}
        if len(ends) > 1:
            raise WeightEditError(
                f"got zoos of (channels, classes) {sorted(ends)}; expected the same in all: leave some zoos out."
            )
        every = self.checkpoints == "all"
        return {
            split: [part[split] if split == "train" and every else part[split].last() for part in parts]
            for split in SPLITS
        }

    def predictor(self, name: str, spec: NetworkSpec | Sequence[NetworkSpec], seed: int) -> WeightSpacePredictor:
        """An untrained predictor of one number for networks of one spec, or of several."""
        options: dict[str, Any] = {"embedding": self.embedding, "seed": seed}
        for option in self.options:
            owner, _, word = option.partition(".")
            if owner not in self.metanet or word.find("=") < 1:
                raise WeightEditError(
                    f"got the option {option!r}; expected name.field=value of one of {', '.join(self.metanet)}."
                )
            if owner == name:
                options |= config_options((word,))
        return WeightSpacePredictor(make_metanet(name, spec, **options), 1, hidden=self.hidden, seed=seed)

    def report(self, runs: dict[str, list[dict[str, Any]]], counts: dict[str, int]) -> None:
        """Print the table; write result.json."""
        machine = hardware(cpu=self.training.cpu)
        write_result(self.out, "result", {"runs": runs, "config": asdict(self), "counts": counts, "hardware": machine})
        print(f"\nKendall's tau-b on {counts['test']} test networks, {self.training.steps:,} steps of ", end="")
        print(f"{self.training.batch_size}, seeds {list(self.seeds)}, {machine}\n{tau_table(runs)}")

    def card(self, run: dict[str, Any]) -> str:
        """The README.md beside a predictor's weights."""
        zoos = list(run.get("tau by zoo", {}))
        rows = [[kind, *[tau_of([run], kind, zoo) for zoo in ("", *zoos)]] for kind in run["tau"]]
        return f"""# weightedit predictor: test accuracy of small CNNs

Reads the weights of a CNN and predicts its test accuracy, the sigmoid of its one output. {run["parameters"]:,}
parameters.

{table(["test networks", "Kendall's tau-b", *zoos], rows)}

Trained for {run["steps"]:,} steps of {self.training.batch_size} (best step {run["best_step"]:,}), loss
{self.loss}, on {" and ".join(self.names())}. config.json holds the whole configuration.
"""


def tau_of(runs: Sequence[dict[str, Any]], kind: str, zoo: str = "") -> str:
    """Tau on one form of the test networks of all zoos, or of one of several; "-" where that has no such form."""
    found = [run["tau by zoo"][zoo] if zoo else run["tau"] for run in runs]
    return spread([tau[kind] for tau in found if kind in tau], 3)


def tau_table(runs: dict[str, list[dict[str, Any]]]) -> str:
    """The comparison as Markdown, a row per metanetwork, and per zoo of several; "nan" where a run ranks nothing."""
    kinds, rows = list(next(iter(runs.values()))[0]["tau"]), []
    for name, every in runs.items():
        pace = 1000 * statistics.fmean(run["seconds"] / run["steps"] for run in every)
        rows.append([name, f"{every[0]['parameters']:,}", f"{pace:.0f}", *[tau_of(every, kind) for kind in kinds]])
        for zoo in every[0].get("tau by zoo", {}):
            rows.append([f"{name} on {zoo}", "", "", *[tau_of(every, kind, zoo) for kind in kinds]])
    return table(["metanetwork", "parameters", "ms/step", *kinds], rows)


Config = Classes | Accuracy


if __name__ == "__main__":
    sys.exit(told_in_one_line("train_predictor", lambda: tyro.cli(Config, description=__doc__).run()))
