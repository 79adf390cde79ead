"""Every checkpoint in the repository loads, is small, and reproduces the figure that its config states.

The figure here is the one on the demo's digits, which need no download: the figures on MNIST are on the card, with the
command that makes them.
"""

import copy
import json
import math
import statistics
from pathlib import Path

import pytest
import torch

from weightedit.cli.arguments import SHIPPED_EDITOR
from weightedit.cli.demo import digit_images, run_demo
from weightedit.data.photographs import photographs
from weightedit.editing.curvature import KFAC, LearnedKFAC
from weightedit.editing.editor import Editor
from weightedit.editing.evaluation import mean_squared_errors
from weightedit.editing.one_shot import OneShotEditor
from weightedit.editing.operations import operation
from weightedit.editing.predictive_editor import PredictiveEditor
from weightedit.editing.predictor import lightness
from weightedit.editing.refinement import refine, target_of
from weightedit.files.checkpoint import load_checkpoint
from weightedit.inr.fitting import FitOptions, fit
from weightedit.metatrain.image_optimizees import conv_net
from weightedit.metatrain.problems import images_of, optimizee
from weightedit.metatrain.unroll import Unroll, start
from weightedit.network.graph_spec import spec_of
from weightedit.network.symmetry import act, random_element
from weightedit.optim.hand_designed import Adam
from weightedit.optim.learned_rule import LearnedRule
from weightedit.optim.optimizer import LearnedOptimizer
from weightedit.optim.rule import UpdateRule
from weightedit.optim.rule_module import RuleModule

CHECKPOINTS = Path(__file__).parent.parent / "checkpoints"
FOLDERS = sorted(path.parent for path in CHECKPOINTS.glob("*/config.json"))
FAST = FitOptions(method="fast")
"""Of the fits that the figures are on."""


def of_kind(kind: str) -> list[Path]:
    return [folder for folder in FOLDERS if load_checkpoint(folder)[1]["kind"] == kind]


KNOWN = [folder for folder in of_kind(PredictiveEditor.kind) if folder.name != "mnist-three-to-eight"]
"""Predictive editors of operations that are known otherwise than by examples."""

GRAY = [folder for folder in of_kind(OneShotEditor.kind) if Editor.from_pretrained(folder).channels == 1]
"""One-shot editors that edit the demo's digits."""


def test_there_are_checkpoints() -> None:
    editors = {"mnist-dilate", "mnist-dilate-predictive", "mnist-multi", "mnist-three-to-eight", "cifar-contrast"}
    editors |= {"varied-multi", "cifar-contrast-one"}
    assert editors | {"refine-rule", "small-classifier", "graph-rule", "general"} <= {folder.name for folder in FOLDERS}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_is_small_and_names_no_machine(folder: Path) -> None:
    assert all(path.stat().st_size <= 5 * 2**20 for path in folder.iterdir())
    assert "/work/" not in (folder / "config.json").read_text() + (folder / "README.md").read_text()
    assert "weights_sha256" in json.loads((folder / "config.json").read_text())  # and loading it compares
    config = load_checkpoint(folder)[1]["training"]["config"]
    weights = config.get("weights", config.get("images"))
    assert not any(Path(place).is_absolute() for place in ([weights] if isinstance(weights, str) else weights))


@pytest.mark.parametrize("folder", GRAY, ids=lambda folder: folder.name)
def test_editor_reproduces_its_figure(folder: Path) -> None:
    stated = load_checkpoint(folder)[1]["training"]["digits"]
    found = run_demo(OneShotEditor.from_pretrained(folder), int(stated["count"]), seed=int(stated["seed"]))
    for row in ("do nothing", "edited", "floor"):
        # The fits, and hence the figures, depend on rounding.
        assert float(found.errors[row].mean()) == pytest.approx(stated[row], rel=0.05), row
    assert stated["edited"] < stated["do nothing"]


def test_the_editor_of_colors_by_one_delta_reproduces_its_figure() -> None:
    """On crops of photographs, which it was not trained on."""
    folder = CHECKPOINTS / "cifar-contrast-one"
    stated = load_checkpoint(folder)[1]["training"]["photographs"]
    images = photographs("test", stated["count"], size=32, seed=stated["seed"]).floats()
    options, generator = FitOptions(method="fast", target_psnr=33.0), torch.Generator().manual_seed(stated["seed"])
    stack = fit(images, options=options, generator=generator).stack
    pair = stack, OneShotEditor.from_pretrained(folder).unguarded(stack)
    errors = [mean_squared_errors(inrs, operation("contrast")(images)) for inrs in pair]
    for row, error in zip(("do nothing", "edited"), errors, strict=True):
        assert float(error.mean()) == pytest.approx(stated[row], rel=0.05), row
    assert stated["edited"] < 0.5 * stated["do nothing"]


def test_the_editor_by_examples_makes_eights_of_threes() -> None:
    """Of digits that it never saw, as the nearest ones by pixels read them; and what it does to them is on its card."""
    folder = CHECKPOINTS / "mnist-three-to-eight"
    stated, editor = load_checkpoint(folder)[1]["training"]["digits"], PredictiveEditor.from_pretrained(folder)
    images, labels = digit_images(1797)
    threes = (labels == 3).nonzero().flatten()[: stated["count"]]
    generator = torch.Generator().manual_seed(stated["seed"])
    stack = fit(images[threes], options=FAST, generator=generator).stack
    before, after = stack.render(), editor(stack).render()
    images[threes] = 9.0  # far from all
    read = [labels[torch.cdist(one.flatten(1), images.flatten(1)).argmin(1)] for one in (before, after)]
    assert float((read[0] == 3).float().mean()) > 0.9 and float((read[0] == 8).float().mean()) < 0.1
    assert float((read[1] == 8).float().mean()) > stated["read as 8"] - 0.1 > 0.5
    assert float((after - before).square().mean()) == pytest.approx(stated["changed"], rel=0.05)


@pytest.mark.parametrize("folder", KNOWN, ids=lambda folder: folder.name)
def test_predictive_editor_reproduces_its_figures(folder: Path) -> None:
    digits, editor = load_checkpoint(folder)[1]["training"]["digits"], PredictiveEditor.from_pretrained(folder)
    images = digit_images(digits["count"])[0].expand(-1, editor.channels or 1, -1, -1)
    stack = fit(images, options=FAST, generator=torch.Generator().manual_seed(digits["seed"])).stack
    assert digits["edited"]
    for name, stated in digits["edited"].items():
        wanted = operation(name)(images)
        error = float(mean_squared_errors(editor.unguarded(stack, name), wanted).mean())
        assert error == pytest.approx(stated, rel=0.05), name
        assert error < 0.75 * float(mean_squared_errors(stack, wanted).mean()), name


@pytest.mark.parametrize(
    "folder", of_kind(OneShotEditor.kind) + of_kind(PredictiveEditor.kind), ids=lambda folder: folder.name
)
def test_editors_of_any_precision_edit_alike(folder: Path) -> None:
    """In half precision they once rendered black, without a word; weights come in float32, or as the editor's."""
    editor = Editor.from_pretrained(folder)
    channels = editor.channels or 1
    stack = fit(digit_images(1)[0].expand(-1, channels, -1, -1), generator=torch.Generator().manual_seed(0)).stack
    for name in editor.operations:
        expected = editor.unguarded(stack, name).render()
        change = float((expected - stack.render()).square().mean())
        for dtype in (torch.float64, torch.bfloat16, torch.float16):
            other = copy.deepcopy(editor).to(dtype)
            for given in (stack, stack.with_params({k: tensor.to(dtype) for k, tensor in stack.params.items()})):
                edited = other.unguarded(given, name)
                found = edited.with_params({k: tensor.float() for k, tensor in edited.params.items()}).render()
                # Rounding the weights themselves costs more than editing with rounded numbers.
                allowed = max(0.06 * change, 20 * float(torch.finfo(dtype).eps) ** 2)
                assert float((found - expected).square().mean()) < allowed, (name, dtype)


def test_the_contrast_editor_works_on_colors() -> None:
    editor = PredictiveEditor.from_pretrained(CHECKPOINTS / "cifar-contrast")
    source = torch.Generator().manual_seed(0)
    coarse = torch.rand(4, 3, 5, 5, generator=source) * 0.4 + 0.3
    images = torch.nn.functional.interpolate(coarse, (32, 32), mode="bicubic").clamp(0, 1)
    stack = fit(images, generator=source).stack
    wanted = operation("contrast")(images)
    before, after = (mean_squared_errors(inrs, wanted).mean() for inrs in (stack, editor.unguarded(stack)))
    assert after < 0.7 * before


@pytest.mark.parametrize("channels", [1, 3])
def test_the_varied_editor_betters_unseen_photographs(channels: int) -> None:
    """Every one of a handful, by every operation, as the edit comes; of four hidden layers, too."""
    editor, crops = Editor.from_pretrained(SHIPPED_EDITOR), photographs("test", 5, size=32, seed=9).floats()
    images = crops if channels == 3 else lightness(crops)
    for hidden, some in (((32, 32), images[:3]), ((24, 24, 24, 24), images[3:])):
        stack = fit(some, widths=(2, *hidden, channels), generator=torch.Generator().manual_seed(0)).stack
        for name in editor.operations:
            known = target_of(name, stack)
            before, after = (mean_squared_errors(inrs, known) for inrs in (stack, editor.unguarded(stack, name)))
            assert bool((after < before).all()), (name, hidden)


@pytest.mark.parametrize("folder", of_kind("refinement rule"), ids=lambda folder: folder.name)
def test_rule_reproduces_its_figure_and_beats_the_one_set_by_hand(folder: Path) -> None:
    stated = load_checkpoint(folder)[1]["training"]["digits"]
    images = digit_images(stated["count"])[0]
    stack = fit(images, options=FAST, generator=torch.Generator().manual_seed(stated["seed"])).stack
    known, wanted = target_of("dilate", stack), operation("dilate")(images)
    errors = [
        float(mean_squared_errors(refine(stack, known, stated["steps"], rule=rule), wanted).mean())
        for rule in (LearnedKFAC.from_pretrained(folder), KFAC())
    ]
    assert errors[0] == pytest.approx(stated["refined"], rel=0.05)
    assert errors[0] < 0.8 * errors[1]


def digit_losses(rule: UpdateRule, steps: int = 200) -> float:
    """Mean loss along runs of four networks on digits, in nats, of the batches that they are trained on.

    1,400 images are learned by heart within a hundred steps, so that unseen ones judge overfitting, not optimization.
    """
    seen, unseen = images_of("digits-mlp", "nowhere"), images_of("digits-mlp", "nowhere", split="test")
    problem = optimizee("digits-mlp", seen, unseen)
    state = start(rule, problem, torch.Generator().manual_seed(0), 4)
    with torch.no_grad():
        _, losses = Unroll(rule, problem)(state, steps)
    return float(losses.mean())


@pytest.mark.parametrize("folder", of_kind("metanet-rule") + of_kind("mlp-rule"), ids=lambda folder: folder.name)
def test_update_rule_reproduces_its_figure(folder: Path) -> None:
    """On digits, which it never saw, and quicker than Adam at rates that are usual."""
    found = digit_losses(RuleModule.from_pretrained(folder))
    assert found == pytest.approx(load_checkpoint(folder)[1]["training"]["digits"], rel=0.02)
    assert found < 0.7 * min(digit_losses(Adam(rate)) for rate in (1e-3, 1e-2))


def cnn_losses(net: torch.nn.Module, rule: UpdateRule, steps: int = 40) -> list[float]:
    """Losses before every step on the same 128 digits as images."""
    data, found = images_of("digits-mlp", "nowhere"), []
    x, y = data.images[:128].to(next(net.parameters()).dtype), data.labels[:128]
    optimizer = LearnedOptimizer(net, rule)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    return found


@pytest.mark.parametrize("folder", of_kind("learned-rule"), ids=lambda folder: folder.name)
def test_rule_of_a_metanetwork_reproduces_its_figure_and_keeps_a_rescaled_copy_the_same_function(folder: Path) -> None:
    """In float64 on a CNN of other widths than it was meta-trained on; the metanetwork is worth its steps."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = conv_net(1, 10, widths=(8, 12)).double()
    rescaled, without, spec = copy.deepcopy(net), copy.deepcopy(net), spec_of(net)
    element = random_element(spec, torch.Generator().manual_seed(3), scale_range=(math.exp(-3), math.exp(3)))
    rescaled.load_state_dict(act(element, spec, {name: p.detach() for name, p in net.named_parameters()}))
    rule, base = (RuleModule.from_pretrained(folder).double() for _ in range(2))
    assert isinstance(base, LearnedRule)
    losses = cnn_losses(net, rule)
    assert statistics.fmean(losses) == pytest.approx(load_checkpoint(folder)[1]["training"]["digits"], rel=1e-3)
    assert cnn_losses(rescaled, rule) == pytest.approx(losses, rel=1e-9)
    assert all(not torch.allclose(p, rescaled.get_parameter(name)) for name, p in net.named_parameters() if p.dim() > 1)
    with torch.no_grad():
        base.log_share.fill_(-math.inf)
    assert statistics.fmean(losses[-10:]) < 0.9 * statistics.fmean(cnn_losses(without, base)[-10:])
