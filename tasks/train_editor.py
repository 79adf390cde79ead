r"""Train an editor of INRs, or the refinement rule that takes steps for one.

    python tasks/fit_inrs.py --out runs/mnist-inrs
    python tasks/train_editor.py one-shot --weights runs/mnist-inrs --operation dilate --out runs/mnist-dilate
    python tasks/train_editor.py predictive --weights runs/mnist-inrs --operations dilate rotate --out runs/predictive
    python tasks/train_editor.py predictive --weights runs/threes --targets ylecun/mnist --nearest 32 \
        --target-labels 8 --operations three-to-eight --out runs/three-to-eight
    python tasks/train_editor.py rule --weights runs/mnist-inrs --operations dilate --out runs/refine

one-shot: a metanetwork changes the weights so that the rendering becomes the edited image (README: protocol P1).
predictive: a small network predicts the edited picture from the rendering; learned steps of the weights lead to it.
Both learn an operation, by its name, or examples of what INRs are to become (--targets), under a name of yours.
rule: those steps, K-FAC whose step sizes, momenta and dampings a small network chooses.

The best step is chosen on validation INRs, the test INRs are measured once. Started again with the same arguments, a
run goes on where it was stopped. Several processes: `torchrun --nproc_per_node 2 tasks/train_editor.py one-shot ...`
(on CPUs with ACCELERATE_USE_CPU=1).

The file is long because it is three commands and their cards.
"""

from __future__ import annotations

import os
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from tqdm import tqdm

from weightedit.cli.main import told_in_one_line
from weightedit.cli.preview import draw_strengths
from weightedit.cli.published import Published
from weightedit.data.inr_fitting import ImageSource, fit_set
from weightedit.data.photographs import PHOTOGRAPHS
from weightedit.data.weight_sets import WeightSet, load_splits, save_weight_set
from weightedit.editing.curvature import KFAC, LearnedKFAC, LearnedKFACConfig
from weightedit.editing.one_shot import EditorOptions, OneShotEditor
from weightedit.editing.pairs import Pairing, first_of
from weightedit.editing.predictive_editor import PredictiveEditor
from weightedit.editing.predictor import Predictor, PredictorConfig
from weightedit.editing.predictor_training import Practice, prediction_errors, train_predictor
from weightedit.editing.rule_training import RuleProblems, rule_errors, rule_examples, train_rule
from weightedit.editing.training import edit_error, floor_error, make_editor, train_editor, train_forecast
from weightedit.inr.fitting import FitOptions
from weightedit.inr.stack import INRStack
from weightedit.metanet.baselines import FlatMLP, FlatMLPConfig
from weightedit.metanet.gauge_gmn.config import GaugeGMNConfig
from weightedit.metanet.registry import describe_metanet
from weightedit.training.loop import TrainOptions
from weightedit.training.plan import derive_seed
from weightedit.training.report import run_facts, table, write_result
from weightedit.training.timing import gigaflop


@dataclass(frozen=True)
class OneShot:
    """Train a metanetwork that edits in one shot.

    The test error is printed beside doing nothing, the flat-MLP control trained by the same code, and the floor: the
    same SIREN fitted to the target directly.

    Attributes:
        weights: folder of a weight set (tasks/fit_inrs.py), or of published weights, one file per INR, whose renderings
            are then edited; not read where `images` are given.
        published: how the latter are read; the weight set made of them is out/weights.
        images: a hub name or a folder of images, with a train and a test split, whose INRs are fitted first, where the
            training runs: seconds on a GPU. Started again, the same INRs are fitted again, on another device to
            rounding; limits are then numbers of images.
        repeats: INRs per training image, where they are fitted here.
        validation: training images kept for validation, where INRs are fitted here.
        out: folder of the run; the finished editor is written to out/editor.
        operation: what to learn (weightedit.editing.operations), or a name of yours where targets are given.
        pairs: what INRs are to become, where no operation makes it.
        train_limit: use the first so many training INRs; 0 for all.
        validation_limit: INRs to choose the best step on; 0 for all.
        test_limit: INRs of the test figure; 0 for all.
        floor_count: test INRs whose target is fitted directly for the floor.
        name: which metanetwork, by its name in weightedit.metanet.registry; "" for the GaugeGMN of --metanet.*, which
            also hold for the names gauge-gmn and gauge-gmn-b, except for the direction.
        metanet: of the GaugeGMN; its switches are the ingredients of the study (study_editors.py). extra_types
            follow from the guides, inputs and outputs from the INRs where a name is given.
        metanet_options: config fields of any metanetwork that is named, as layers=6 width=128; values are JSON.
        editor: what surrounds it: guides made from the known target, a solved last layer, wider INRs.
        augment: act on every training INR with a random element of its symmetry group; an equivariant metanetwork
            cannot gain by it.
        foresight: steps that train the forecast alone before, as a picture of its own, at the same rates; 0 for none.
            Needs a forecast over a grid with a probe for every pixel.
        training: of the metanetwork.
        control_steps: training steps of the flat-MLP control; 0 for none.
        smoke: seconds instead of hours, to see that everything runs.
    """

    weights: str = "runs/mnist-inrs"
    published: tyro.conf.OmitArgPrefixes[Published] = field(default_factory=Published)
    images: str = ""
    repeats: int = 1
    validation: int = 5000
    out: str = "runs/mnist-dilate"
    operation: str = "dilate"
    pairs: tyro.conf.OmitArgPrefixes[Pairing] = field(default_factory=Pairing)
    train_limit: int = 0
    validation_limit: int = 1000
    test_limit: int = 0
    floor_count: int = 256
    name: Annotated[str, tyro.conf.arg(name="metanet")] = ""
    metanet_options: tuple[str, ...] = ()
    metanet: GaugeGMNConfig = field(default_factory=GaugeGMNConfig)
    editor: EditorOptions = field(default_factory=EditorOptions)
    augment: bool = False
    foresight: int = 0
    training: TrainOptions = field(
        default_factory=lambda: TrainOptions.cosine(
            20_000, batch_size=32, warmup_steps=200, ema_decay=0.999, validate_every=500, checkpoint_every=250
        )
    )
    control_steps: int = 4000
    smoke: bool = False

    def run(self) -> dict[str, float]:
        """Train, test, write out/editor and out/result.json; returns the test errors."""
        if self.smoke:
            return replace(
                self,
                **{"validation": 16, "train_limit": 16, "validation_limit": 8, "test_limit": 8, "floor_count": 4},
                metanet=replace(self.metanet, node_width=8, edge_width=8, layers=1, probes=4),
                training=self.training.brief(),
                control_steps=min(4, self.control_steps),
                foresight=0,
                smoke=False,
            ).run()
        splits, out, chosen = self.pairs.of(self.splits()), Path(self.out), self.operation
        test, around = (
            splits["test"],
            {"gauge_gmn": self.metanet, "options": self.metanet_options, "around": self.editor},
        )
        editor = make_editor(chosen, test.stack, name=self.name, **around)
        about: dict[str, Any] = {"weights": self.weights, **self.pairs.facts()}
        if self.images:
            about |= {"images": self.images, "repeats": self.repeats, "validation": self.validation}
        options: dict[str, Any] = {"augment": self.augment, "about": about}
        if self.foresight:
            alone = replace(self.training, steps=self.foresight, capture=False, compile=False)
            train_forecast(editor, splits, out / "forecast", alone, about=about)
            about["foresight"] = self.foresight
        result = train_editor(editor, splits, out / "run", self.training, **options)
        figures = {"edited": edit_error(test, chosen, editor, progress=True), "do nothing": edit_error(test, chosen)}
        if self.control_steps:
            control = OneShotEditor(FlatMLP(FlatMLPConfig(test.stack.widths)), chosen, test.stack.convention)
            steps = {"steps": self.control_steps, "validate_every": min(500, self.control_steps), "max_seconds": 0}
            train_editor(control, splits, out / "control", replace(self.training, **steps), **options)
            figures["flat MLP"] = edit_error(test, chosen, control)
        figures["floor"] = floor_error(test, chosen, self.floor_count)
        if result.main:
            kind, config = describe_metanet(editor.metanet)
            told = {"figures": figures, "counts": {name: len(part) for name, part in splits.items()}, "metanet": kind}
            told |= {key: config.get(key, 0) for key in ("probes", "grid")}
            facts = run_facts(self, editor, result, **told)
            write_result(out, "result", facts)
            ordered = sorted(figures.items(), key=lambda item: -item[1])
            lines = table(
                ["mean squared error, image in [0, 1]", "value"], [(n, f"{100 * e:.3f}e-2") for n, e in ordered]
            )
            print(f"\n{chosen}, {len(test)} test INRs\n{lines}")
            editor.save_pretrained(out / "editor", self.card(facts, lines), training=facts)
            print(f"editor written to {out / 'editor'}")
        return figures

    def splits(self) -> dict[str, WeightSet]:
        """INRs with their images, of the weight set or fitted here; the last on the device of the training."""
        limits = {"train": self.train_limit, "validation": self.validation_limit, "test": self.test_limit}
        if not self.images:
            return load_splits(self.published.weight_set(self.weights, Path(self.out) / "weights", print), **limits)
        images, split = ImageSource(self.images, validation=self.validation, seed=self.training.seed).read()
        gpu = torch.cuda.is_available() and not self.training.cpu
        made = {}
        for number, (name, limit) in enumerate(limits.items()):
            rows = (split == number).nonzero().squeeze(1)[: limit or None]
            # On the CPU, so that another device fits from the same initializations.
            generator = torch.Generator().manual_seed(derive_seed(self.training.seed, "fit", name))
            made[name] = fit_set(
                images[rows],
                split[rows],
                repeats=self.repeats if name == "train" else 1,
                generator=generator,
                device=f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if gpu else "cpu",
            )
        return made

    def card(self, facts: dict[str, Any], lines: str) -> str:
        """The README.md beside an editor's weights."""
        counts, batch = facts["counts"], self.training.batch_size * self.training.accumulate * facts["processes"]
        guides, around = ", ".join(self.editor.guides), self.editor
        told = [f"input weights and {facts['probes']} {'' if facts['grid'] else 'learned '}probes"]
        told = told if facts["probes"] else ["input weights"]
        told += [" on a fixed grid"] if facts["grid"] and facts["probes"] else []
        told += [f", guides made from the operation of the rendering ({guides})"] if guides else []
        told += [", the last layer solved towards the operation of the rendering"] if around.solve_last else []
        told += [" only"] if not around.informed else []
        width = f"{around.widen} times as wide" if around.widen > 1 else "of the same size"
        control = (
            f"; the flat MLP, without equivariance, was trained by the same code\nfor {self.control_steps:,} steps"
        )
        return f"""# weightedit editor: {self.operation}

A metanetwork ({facts["metanet"]}) of {facts["parameters"]:,} parameters that changes the weights of a SIREN so that its
image is edited:
{self.pairs.told(self.operation)}

{lines}

Protocol P1: one SIREN per image from independent random initializations, one shot, {"".join(told)},
output {width}, {"targets given as examples" if self.pairs.targets else "target made from the source image"}.
{counts["train"]:,} training, {counts["validation"]:,} validation (choice of the best step) and {counts["test"]:,} test
INRs. The floor is the same SIREN fitted to the target itself, on {min(self.floor_count, counts["test"])} of the test
INRs{control if self.control_steps else ""}.

{_trained(facts, f"{batch} INRs", self.training.seed)}
"""


@dataclass(frozen=True)
class Predictive:
    """Train a predictor of the edited picture; learned steps of the weights lead to it.

    The predictor learns from pairs (an INR's rendering, the operation of its source image), with strengths drawn from 0
    to 1 if it knows several operations or is told to; the steps are those of a trained refinement rule. With targets
    the pairs are (rendering, target), and the one operation bears a name of yours.

    Attributes:
        weights: folders of weight sets (tasks/fit_inrs.py), of any sizes and channels, or one of published weights, a
            file per INR; not read where `images` are given. Of several, every batch comes from one, and the editor is
            for any number of channels.
        published: how the latter are read; the weight set made of them is out/weights.
        images: hub names, folders of images or "photographs", of each of which INRs are fitted first, up to 100 steps
            and kept from 28 dB on, into out/inrs-1 and so on.
        limit: use the first so many images of each training split; of photographs, which are crops of two, a quarter.
        validation: of them, kept for validation.
        test_limit: INRs of each test split; 0 for all.
        out: folder of the run; the finished editor is written to out/editor.
        operations: what it learns; with several of them, each with every strength.
        pairs: what INRs are to become, where no operation makes it.
        practice: plain, or varied: pictures are flipped, cropped, grayed and so on, and errors are relative.
        often: of varied practice, an operation that half of the pairs are for: one that takes longer to learn.
        start: name or folder of a predictive editor whose predictor is gone on from; empty for a new one.
        graded: draw strengths from 0 to 1 for a single operation too.
        rule: folder of the refinement rule; empty for the shipped one.
        steps: of the rule, in the finished editor.
        train_limit, validation_limit: INRs of these splits; 0 for all.
        predictor: sizes of the predictor; operations, channels and graded follow from the rest.
        training: of the predictor.
        smoke: seconds instead of minutes.
    """

    weights: tuple[str, ...] = ("runs/mnist-inrs",)
    published: tyro.conf.OmitArgPrefixes[Published] = field(default_factory=Published)
    images: tuple[str, ...] = ()
    limit: int = 2000
    validation: int = 100
    out: str = "runs/predictive"
    operations: tuple[str, ...] = ("dilate",)
    pairs: tyro.conf.OmitArgPrefixes[Pairing] = field(default_factory=Pairing)
    graded: bool = False
    practice: Practice = "plain"
    often: str | None = None
    start: str = ""
    rule: str = ""
    steps: int = 4
    train_limit: int = 0
    validation_limit: int = 500
    test_limit: int = 0
    predictor: PredictorConfig = field(default_factory=PredictorConfig)
    training: TrainOptions = field(
        default_factory=lambda: TrainOptions.cosine(
            3000,
            batch_size=32,
            learning_rate=4e-3,
            weight_decay=0.0,
            warmup_steps=50,
            ema_decay=0.995,
            validate_every=250,
            checkpoint_every=250,
        )
    )
    smoke: bool = False

    def run(self) -> dict[str, dict[str, float]]:
        """Train, test every operation and strength, write out/editor and out/result.json; returns the test errors."""
        if self.smoke:
            few = {"train_limit": 8, "validation_limit": 4, "test_limit": 4, "steps": 1, "smoke": False}
            few |= {"limit": 16, "validation": 2}
            return replace(self, training=self.training.brief(2), **few).run()
        sets, out, names = self.sets(), Path(self.out), self.operations
        tests = {name: part["test"] for name, part in sets.items()}
        channels = {part.stack.widths[-1] for part in tests.values()}
        graded = self.graded or len(names) > 1 or self.practice == "varied"
        sizes = replace(self.predictor, operations=names, channels=0 if len(sets) > 1 else channels.pop())
        predictor = Predictor(replace(sizes, graded=graded))
        if self.start:
            predictor.take_over(PredictiveEditor.from_pretrained(self.start).predictor)
        editor = PredictiveEditor(predictor, LearnedKFAC.from_pretrained(self.rule or "refine-rule"), self.steps)
        about = {"images": self.images, "limit": self.limit} if self.images else {"weights": self.weights}
        about |= {**({"start": self.start} if self.start else {}), **self.pairs.facts()}
        parts = list(sets.values())
        how: dict[str, Any] = {"practice": self.practice, "often": self.often, "about": about}
        result = train_predictor(predictor, parts, out / "run", self.training, **how)
        if not result.main:
            return {}
        found = {name: prediction_errors(editor.cpu().eval(), test) for name, test in tests.items()}
        figures = {
            f"{name}: {row}" if len(sets) > 1 else row: columns
            for name, rows in found.items()
            for row, columns in rows.items()
        }
        first = next(iter(tests.values()))
        flops = round(1e9 * gigaflop(lambda: editor.unguarded(first.stack[:1], editor.operations[0])))
        counts = {split: sum(len(part[split]) for part in parts) for split in parts[0]}
        facts = run_facts(self, editor, result, figures=figures, counts=counts, flops=flops)
        write_result(out, "result", facts)
        columns = list(next(iter(figures.values())))
        rows = [
            [
                name,
                *(
                    f"{100 * value:.1f} %" if key in ("better", "kept") else f"{100 * value:.3f}e-2"
                    for key, value in row.items()
                ),
            ]
            for name, row in figures.items()
        ]
        lines = table(["operation, strength", *columns], rows)
        print(f"mean squared error on {counts['test']} test INRs, after {self.steps} steps\n{lines}")
        editor.save_pretrained(out / "editor", self.card(facts, lines), facts)
        shown = min(max(6, len(names)), len(first))
        few = first[torch.arange(shown)]
        examples = None if few.targets is None else first_of(few.targets)
        draw_strengths(editor, few.stack, few.floats(), out / "strengths.png", examples=examples)
        print(f"editor and strengths.png written to {out}")
        return figures

    def sets(self) -> dict[str, dict[str, WeightSet]]:
        """INRs with their images by name: the weight sets, or those of the images, fitted unless they are there."""
        limits = {"train": self.train_limit, "validation": self.validation_limit, "test": self.test_limit}
        if not self.images:
            place = Path(self.out) / "weights"
            folders = {Path(name).name: self.published.weight_set(name, place, print) for name in self.weights}
            return {name: self.pairs.of(load_splits(folder, **limits)) for name, folder in folders.items()}
        made = {}
        for number, source in enumerate(self.images):
            folder = Path(self.out) / f"inrs-{number + 1}"
            if not folder.exists():
                self._fit(source, number, folder)
            made[Path(source).name] = self.pairs.of(load_splits(folder, **limits))
        return made

    def _fit(self, source: str, number: int, folder: Path) -> None:
        chosen = ImageSource(
            source,
            validation=self.validation,
            limit=self.limit // 4 if source == PHOTOGRAPHS else self.limit,
            test_limit=self.test_limit,
            seed=derive_seed(self.training.seed, "images", number),
        )
        images, split = chosen.read()
        generator = torch.Generator().manual_seed(derive_seed(self.training.seed, "fit", number))
        options, parts = FitOptions(max_steps=100, retries=0), []
        for rows in tqdm(torch.arange(len(images)).split(100), desc=f"INRs of {source}"):
            fitted = fit_set(
                images[rows], split[rows], hidden=None, options=options, generator=generator, least_psnr=28.0
            )
            parts.append(fitted)
        stack = INRStack.concatenate([part.stack for part in parts])
        folder.parent.mkdir(parents=True, exist_ok=True)
        save_weight_set(folder, stack, torch.cat([part.images for part in parts]), {"source": asdict(chosen)})

    def card(self, facts: dict[str, Any], lines: str) -> str:
        """The README.md beside an editor's weights."""
        counts, knob = facts["counts"], "Trained with strengths from 0 to 1."
        if not (self.graded or len(self.operations) > 1):
            knob = "Trained at strength 1; below it, the change of the picture is scaled."
        told = "\n".join(f"* {name}: {self.pairs.told(name)}" for name in self.operations)
        pair, against = "an edited source image", "the operation of the source image"
        pair, against = ("a target", "the target") if self.pairs.targets else (pair, against)
        against += ", the nearest of several" if self.pairs.nearest > 1 else ""
        return f"""# weightedit predictive editor: {", ".join(self.operations)}

Predicts the edited picture from an INR's rendering and takes {self.steps} learned steps of the weights towards it:
{facts["parameters"]:,} parameters, {facts["flops"] / 1e6:.0f} MFLOP per INR. The operation itself is never computed; it
was learned from {counts["train"]:,} pairs of an INR and {pair}. {knob}

{told}

Mean squared error, image in [0, 1], against {against}, {counts["test"]:,} test INRs, one SIREN
per image from independent random initializations, output of the same size:

{lines}

{_trained(facts, f"{self.training.batch_size} pairs", self.training.seed)}
The best step was chosen on {counts["validation"]:,} validation INRs.
"""


@dataclass(frozen=True)
class Rule:
    """Meta-train the refinement rule, for the number of steps that an edit can afford.

    By backpropagation through all steps, whose number is drawn for every batch.

    Attributes:
        weights: folders of weight sets (tasks/fit_inrs.py), or of published weights, one file per INR, of any
            architectures; the test figures are of the first. A folder named twice is drawn twice as often.
        published: how published weights are read; the weight sets made of them are out/weights-0, ...
        start: folder of a trained rule to go on from; empty for a new one.
        out: folder of the run; the finished rule is written to out/rule.
        problems: what is drawn of the weight sets.
        train_limit: use the first so many training INRs; 0 for all.
        validation_limit: INRs to choose the best step on.
        test_limit: INRs of the test figures; 0 for all.
        rule: what is trained.
        training: how.
        smoke: seconds instead of minutes, to see that everything runs.
    """

    weights: tuple[str, ...] = ("runs/mnist-inrs",)
    published: tyro.conf.OmitArgPrefixes[Published] = field(default_factory=Published)
    start: str = ""
    out: str = "runs/refine"
    problems: tyro.conf.OmitArgPrefixes[RuleProblems] = field(default_factory=RuleProblems)
    train_limit: int = 0
    validation_limit: int = 128
    test_limit: int = 1000
    rule: LearnedKFACConfig = field(default_factory=LearnedKFACConfig)
    training: TrainOptions = field(
        default_factory=lambda: TrainOptions.cosine(
            600,
            batch_size=16,
            learning_rate=1e-2,
            weight_decay=0.0,
            warmup_steps=20,
            ema_decay=0.98,
            validate_every=50,
            checkpoint_every=50,
        )
    )
    smoke: bool = False

    def run(self) -> dict[str, dict[int, float]]:
        """Train, test at every number of steps, write out/rule and out/result.json; returns the test errors."""
        if self.smoke:
            few = {"train_limit": 8, "validation_limit": 4, "test_limit": 4, "smoke": False}
            return replace(
                self, training=self.training.brief(2, 2), problems=replace(self.problems, longest=2), **few
            ).run()
        limits = {"train": self.train_limit, "validation": self.validation_limit, "test": self.test_limit}
        out, loaded, problems = Path(self.out), {}, self.problems
        for number, folder in enumerate(dict.fromkeys(self.weights)):
            read = self.published.weight_set(folder, out / f"weights-{number}", print)
            loaded[folder] = load_splits(read, **limits)
        rule = LearnedKFAC.from_pretrained(self.start) if self.start else LearnedKFAC(self.rule)
        sets = [loaded[folder] for folder in self.weights]
        about = {"weights": self.weights, "start": self.start, "rule": asdict(self.rule), **asdict(problems)}
        result = train_rule(rule, sets, problems, out / "run", self.training, about=about)
        if not result.main:
            return {}
        test, budgets = sets[0]["test"], range(1, problems.longest + 1)
        examples, contenders = (
            rule_examples(test, problems.operations),
            {"K-FAC, numbers by hand": KFAC(), "learned": rule.cpu()},
        )
        figures = {name: rule_errors(test.stack, examples, by, budgets) for name, by in contenders.items()}
        counts = {name: sum(len(part[name]) for part in loaded.values()) for name in limits}
        told = {"architectures": sorted({part["test"].stack.widths for part in sets}), "tested": len(test)}
        facts = run_facts(self, rule, result, figures=figures, counts=counts, **told)
        write_result(out, "result", facts)
        rows = [[steps, *(f"{100 * found[steps]:.3f}" for found in figures.values())] for steps in budgets]
        lines = table(["steps", *figures], rows)
        print(f"{', '.join(problems.operations)}: mean squared error x 1e-2 on {len(test)} test INRs\n{lines}")
        rule.save_pretrained(out / "rule", self.card(facts, lines), facts)
        print(f"rule written to {out / 'rule'}")
        return figures

    def card(self, facts: dict[str, Any], lines: str) -> str:
        """The README.md beside a rule's weights."""
        problems, widths = self.problems, ", ".join("-".join(map(str, of)) for of in facts["architectures"])
        return f"""# weightedit refinement rule

K-FAC with the last layer in closed form, whose step sizes, momenta and dampings a small network chooses per INR, layer
and step from invariants. It refines a SIREN towards operation(its own rendering). Trained on
{", ".join(problems.operations)} with {facts["counts"]["train"]:,} INRs of {widths},
widened {", ".join(map(str, dict.fromkeys(problems.widen)))} times, with fits from random initializations of up to
{problems.longest_fit} steps {problems.fits} times as often as each, 1 to {problems.longest} inner steps each.

Mean squared error x 1e-2 against operation(source image), {facts["tested"]:,} test INRs of
{Path(self.weights[0]).name}:

{lines}

{_trained(facts, f"{self.training.batch_size} INRs", self.training.seed)}
"""


def _trained(facts: dict[str, Any], batch: str, seed: int) -> str:
    steps, best, minutes = facts["steps"], facts["best_step"], facts["seconds"] / 60
    return f"""Trained for {steps:,} steps of {batch} (best step {best:,}) in {minutes:.0f} minutes on
{facts["hardware"]}, {facts["processes"]} process(es), seed {seed}.
config.json holds the whole configuration."""


Config = OneShot | Predictive | Rule


if __name__ == "__main__":
    sys.exit(told_in_one_line("train_editor", lambda: tyro.cli(Config, description=__doc__).run()))
