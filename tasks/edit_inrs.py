"""Train an editor: a metanetwork that changes an INR's weights so that its image becomes the edited image.

    python tasks/edit_inrs.py --weights runs/mnist-inrs --operation dilate --out runs/mnist-dilate

The loss is the mean squared error of the rendering of theta' = theta + delta against operation(source image), protocol
P1 of the README. The best step is chosen on the validation INRs; at the end the test figure is printed beside doing
nothing, the flat-MLP control trained by the same code, and the floor: the same SIREN fitted to the target directly.
Started again with the same arguments, a run goes on where it was stopped. Several processes:
`torchrun --nproc_per_node 2 tasks/edit_inrs.py ...` (on CPUs with ACCELERATE_USE_CPU=1).
"""

from __future__ import annotations

import json
import os
import platform
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from torch import Tensor, nn

from weightedit.cli.main import told_in_one_line
from weightedit.data.inr_fitting import ImageSource, fit_set
from weightedit.data.weight_set_cards import SPLITS
from weightedit.data.weight_sets import WeightSet, load_weight_set
from weightedit.editing.editor import Editor, EditorOptions
from weightedit.editing.evaluation import mean_squared_errors
from weightedit.editing.guidance import check_guides
from weightedit.editing.operations import operation
from weightedit.inr.convention import network_of
from weightedit.inr.fitting import fit_directly
from weightedit.inr.siren import render_images
from weightedit.inr.stack import INRStack
from weightedit.inr.widening import widen
from weightedit.metanet.baselines import FlatMLP, FlatMLPConfig
from weightedit.metanet.registry import config_options, describe_metanet, entry, make_metanet
from weightedit.metanet.scalegmn.network import ScaleGMN, ScaleGMNConfig
from weightedit.network.spec import Params
from weightedit.network.symmetry import act, random_element
from weightedit.training.loop import TrainOptions, TrainResult, train
from weightedit.training.plan import derive_seed


@dataclass(frozen=True)
class Config:
    """One experiment.

    Attributes:
        weights: folder of a weight set (tasks/fit_inrs.py); not read where `images` are given.
        images: a hub name or a folder of images, with a train and a test split, whose INRs are fitted first, where the
            training runs: seconds on a GPU. Started again, the same INRs are fitted again, on another device to
            rounding; limits are then numbers of images.
        repeats: INRs per training image, where they are fitted here.
        validation: training images kept for validation, where INRs are fitted here.
        out: folder of the run; the finished editor is written to out/editor.
        operation: what to learn (weightedit.editing.operations).
        train_limit: use the first so many training INRs; 0 for all.
        validation_limit: INRs to choose the best step on; 0 for all.
        test_limit: INRs of the test figure; 0 for all.
        floor_count: test INRs whose target is fitted directly for the floor.
        name: which metanetwork, by its name in weightedit.metanet.registry; "" for the ScaleGMN of --metanet.*, which
            also hold for the names scalegmn and scalegmn-b, except for the direction.
        metanet: of the ScaleGMN; its switches are the ingredients of the study (edit_study.py). extra_types follow from
            the guides, inputs and outputs from the INRs where a name is given.
        metanet_options: config fields of any metanetwork that is named, as layers=6 width=128; values are JSON.
        editor: what surrounds it: guides made from the known target, a solved last layer, wider INRs.
        augment: act on every training INR with a random element of its symmetry group; an equivariant metanetwork
            cannot gain by it.
        training: of the ScaleGMN.
        control_steps: training steps of the flat-MLP control; 0 for none.
        frontier: do not train; measure error against time of the shipped editor, the shipped rule and their rivals
            instead (edit_frontier.py has more options).
        smoke: seconds instead of hours, to see that everything runs.
    """

    weights: str = "runs/mnist-inrs"
    images: str = ""
    repeats: int = 1
    validation: int = 5000
    out: str = "runs/mnist-dilate"
    operation: str = "dilate"
    train_limit: int = 0
    validation_limit: int = 1000
    test_limit: int = 0
    floor_count: int = 256
    name: Annotated[str, tyro.conf.arg(name="metanet")] = ""
    metanet_options: tuple[str, ...] = ()
    metanet: ScaleGMNConfig = field(default_factory=ScaleGMNConfig)
    editor: EditorOptions = field(default_factory=EditorOptions)
    augment: bool = False
    training: TrainOptions = field(
        default_factory=lambda: TrainOptions(
            steps=20_000,
            batch_size=32,
            learning_rate=1e-3,
            weight_decay=1e-2,
            betas=(0.9, 0.98),
            warmup_steps=200,
            schedule="cosine",
            clip_norm=1.0,
            ema_decay=0.999,
            validate_every=500,
            checkpoint_every=250,
        )
    )
    control_steps: int = 4000
    frontier: bool = False
    smoke: bool = False


class Examples:
    """INRs and their targets, in memory; what `train` draws its batches from."""

    def __init__(self, params: Params, targets: Tensor) -> None:
        self.params, self.targets = params, targets

    def to(self, device: torch.device) -> Examples:
        """The same examples on `device`."""
        return Examples({name: tensor.to(device) for name, tensor in self.params.items()}, self.targets.to(device))

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, rows: Tensor) -> dict[str, Any]:
        return {"params": {name: tensor[rows] for name, tensor in self.params.items()}, "targets": self.targets[rows]}


def edit_loss(editor: nn.Module, batch: dict[str, Any]) -> Tensor:
    """Mean squared error of the edited INRs' renderings, over images and pixels."""
    assert isinstance(editor, Editor)
    height, width = batch["targets"].shape[-2:]
    edited = editor(batch["params"], size=(height, width), finite=True)  # `train` refuses a loss that is not
    return (render_images(edited, editor.convention, height, width) - batch["targets"]).square().mean()


def augmented_loss(editor: nn.Module, batch: dict[str, Any], generator: torch.Generator) -> Tensor:
    """`edit_loss` after a random element of the symmetry group has acted on every INR."""
    assert isinstance(editor, Editor)
    params = batch["params"]
    spec, count = network_of(params, editor.convention), len(batch["targets"])
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    element = random_element(spec, torch.Generator().manual_seed(seed), count=count, dtype=torch.float32)
    return edit_loss(editor, {**batch, "params": act(element, spec, params)})


def run_training(
    editor: Editor, splits: dict[str, WeightSet], config: Config, options: TrainOptions, out: Path
) -> TrainResult:
    """Train `editor` in place; it ends up holding the weights of its best validation step."""
    targets = {name: operation(config.operation)(splits[name].floats()) for name in ("train", "validation")}

    def validate(model: nn.Module) -> float:
        assert isinstance(model, Editor)
        return float(mean_squared_errors(model.edit(splits["validation"].stack), targets["validation"]).mean())

    spec = splits["train"].stack.spec
    spec.check_params(splits["train"].stack.params)  # once here: no step reads a value
    examples = Examples(splits["train"].stack.params, targets["train"])
    loss = augmented_loss if config.augment else edit_loss
    about: dict[str, Any] = {"weights": config.weights, "operation": config.operation, "augment": config.augment}
    about |= {"editor": asdict(config.editor)}
    if config.images:
        about |= {"images": config.images, "repeats": config.repeats, "validation": config.validation}
    about |= dict(zip(("metanet", "config"), describe_metanet(editor.metanet), strict=True))
    return train(editor, loss, examples, validate, out, options, about=about)


def main(config: Config) -> dict[str, float]:
    """Train, evaluate on the test split, write out/editor and out/result.json; returns the figures."""
    if config.smoke:
        config = _smoke(config)
    splits = fitted_splits(config) if config.images else read_splits(config)
    stack, out = splits["test"].stack, Path(config.out)
    editor = build_editor(config, stack)
    result = run_training(editor, splits, config, config.training, out / "run")
    figures = {
        "edited": test_error(editor, splits["test"], config),
        "do nothing": test_error(None, splits["test"], config),
    }
    if config.control_steps:
        control = Editor(FlatMLP(FlatMLPConfig(stack.widths)), config.operation, stack.convention)
        options = replace(
            config.training, steps=config.control_steps, validate_every=min(500, config.control_steps), max_seconds=0
        )
        run_training(control, splits, config, options, out / "control")
        figures["flat MLP"] = test_error(control, splits["test"], config)
    figures["floor"] = floor_error(splits["test"], config)
    if result.main:
        report(config, editor, figures, result, splits, out)
    return figures


def read_splits(config: Config) -> dict[str, WeightSet]:
    """The splits of the weight set in config.weights, as far as the limits go."""
    limits = zip(SPLITS, (config.train_limit, config.validation_limit, config.test_limit), strict=True)
    return {name: load_weight_set(config.weights, name, limit or None) for name, limit in limits}


def fitted_splits(config: Config) -> dict[str, WeightSet]:
    """The splits of config.images as tasks/fit_inrs.py has them, their INRs fitted on the device of the training."""
    source = ImageSource(config.images, validation=config.validation, seed=config.training.seed)
    images, split = source.read()
    device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if _on_gpu(config) else "cpu"
    limits = zip(SPLITS, (config.train_limit, config.validation_limit, config.test_limit), strict=True)
    made = {}
    for number, (name, limit) in enumerate(limits):
        rows = (split == number).nonzero().squeeze(1)[: limit or None]
        # On the CPU, so that another device fits from the same initialisations.
        generator = torch.Generator().manual_seed(derive_seed(config.training.seed, "fit", name))
        repeats = config.repeats if name == "train" else 1
        made[name] = fit_set(images[rows], split[rows], repeats=repeats, generator=generator, device=device)
    return made


def _on_gpu(config: Config) -> bool:
    return torch.cuda.is_available() and not config.training.cpu


def build_editor(config: Config, stack: INRStack) -> Editor:
    """The editor that `config` describes, untrained, for INRs like those of `stack`."""
    extra = tuple((kind.scale, kind.odd) for kind in check_guides(config.editor.guides))
    metanet = replace(config.metanet, extra_types=extra)
    if not config.name:
        return Editor(ScaleGMN(metanet), config.operation, stack.convention, config.editor)
    options: dict[str, Any] = {"seed": metanet.seed} | ({"extra_types": extra} if extra else {})
    if entry(config.name).kind is ScaleGMN:
        options = {k: v for k, v in asdict(metanet).items() if k not in ("inputs", "outputs", "bidirectional")}
    specs = [widen(stack[:1], config.editor.widen).spec]
    made = make_metanet(config.name, specs, **{**options, **config_options(config.metanet_options)})
    return Editor(made, config.operation, stack.convention, config.editor)


def _smoke(config: Config) -> Config:
    tiny = replace(config.metanet, node_width=8, edge_width=8, layers=1, probes=4)
    short = replace(config.training, steps=4, batch_size=4, warmup_steps=1, validate_every=2, checkpoint_every=2)
    return replace(
        config,
        validation=16,
        train_limit=16,
        validation_limit=8,
        test_limit=8,
        floor_count=4,
        metanet=tiny,
        training=short,
        control_steps=4,
    )


def test_error(editor: Editor | None, test: WeightSet, config: Config) -> float:
    """Mean squared error over the test INRs; None edits nothing."""
    stack = test.stack if editor is None else editor.edit(test.stack, progress=True)
    return float(mean_squared_errors(stack, operation(config.operation)(test.floats())).mean())


def floor_error(test: WeightSet, config: Config) -> float:
    """What the same SIRENs reach when fitted to the target itself, on the first `floor_count` test INRs."""
    few = slice(config.floor_count)
    targets, stack = operation(config.operation)(test.floats()[few]), test.stack[few]
    return float(mean_squared_errors(fit_directly(stack, targets), targets).mean())


def report(
    config: Config,
    editor: Editor,
    figures: dict[str, float],
    result: TrainResult,
    splits: dict[str, WeightSet],
    out: Path,
) -> None:
    """Print the table; write result.json and the editor with its card."""
    counts = {name: len(part.stack) for name, part in splits.items()}
    parameters = sum(p.numel() for p in editor.parameters())
    facts: dict[str, Any] = {
        "figures": figures,
        "config": asdict(config),
        "counts": counts,
        "steps": result.steps,
        "best_step": result.best_step,
        "best_validation": result.best_validation,
        "seconds": result.seconds,
        "parameters": parameters,
        "metanet": describe_metanet(editor.metanet)[0],
        "probes": describe_metanet(editor.metanet)[1].get("probes", 0),
        "grid": describe_metanet(editor.metanet)[1].get("grid", False),
        "hardware": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
        + (f", {torch.cuda.get_device_name()}" if _on_gpu(config) else ""),
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "finished": result.finished,
    }
    (out / "result.json").write_text(json.dumps(facts, indent=2, default=str))
    lines = [f"| {name} | {value * 100:.3f}e-2 |" for name, value in sorted(figures.items(), key=lambda item: -item[1])]
    print(f"\n{config.operation}, {counts['test']} test INRs, mean squared error\n" + "\n".join(lines))
    editor.save_pretrained(
        out / "editor", model_card(config, facts, lines), training=json.loads(json.dumps(facts, default=str))
    )
    print(f"editor written to {out / 'editor'}")


def model_card(config: Config, facts: dict[str, Any], lines: list[str]) -> str:
    """The README.md beside an editor's weights."""
    counts, training = facts["counts"], config.training
    control = "; the flat MLP is the control without equivariance,\ntrained by the same code for "
    control = f"{control}{config.control_steps:,} steps" if config.control_steps else ""
    known = [f"guides made from the operation of the rendering ({', '.join(config.editor.guides)})"]
    known = known if config.editor.guides else []
    known += ["the last layer solved towards the operation of the rendering"] if config.editor.solve_last else []
    probes = facts["probes"]
    kind = "probes on a fixed grid" if facts["grid"] else "learned probes"
    told = f"input weights and {probes} {kind}" if probes else "input weights"
    told += "" if known else " only"
    told = ", ".join(
        [
            told,
            *known,
            f"output {config.editor.widen} times as wide" if config.editor.widen > 1 else "output of the same size",
        ]
    )
    minutes, batch = facts["seconds"] / 60, training.batch_size * training.accumulate * facts["processes"]
    return f"""# weightedit editor: {config.operation}

A metanetwork ({facts["metanet"]}) of {facts["parameters"]:,} parameters that changes the weights of a SIREN so that its
image is edited:
{operation(config.operation).description}

| test mean squared error, image in [0, 1] | value |
|---|---|
{chr(10).join(lines)}

Protocol P1: one SIREN per image from independent random initialisations, one shot, {told}, target made from the source
image.
{counts["train"]:,} training, {counts["validation"]:,} validation (choice of the best step) and {counts["test"]:,} test
INRs. The floor is the same SIREN fitted to the target itself, on {min(config.floor_count, counts["test"])} of the test
INRs{control}.

Trained for {facts["steps"]:,} steps of {batch} INRs (best step {facts["best_step"]:,}) in {minutes:.0f} minutes on
{facts["hardware"]}, {facts["processes"]} process(es), seed {training.seed}.
config.json holds the whole configuration.
"""


if __name__ == "__main__":
    config = tyro.cli(Config, description=__doc__)
    if config.frontier:
        import edit_frontier

        wanted = edit_frontier.Config(config.weights, config.out, config.operation, smoke=config.smoke)
        sys.exit(told_in_one_line("edit_inrs", lambda: edit_frontier.main(wanted)))
    sys.exit(told_in_one_line("edit_inrs", lambda: main(config)))
