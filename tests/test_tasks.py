"""Every task runs with --smoke, end to end, on images made here; fitting resumes and does not depend on its workers."""

import io
import json
import os
import runpy
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import forget_accelerator
from tests.processes import start
from weightedit.data.cnn_zoo import load_zoo
from weightedit.data.weight_sets import load_weight_set
from weightedit.editing.curvature import KFAC, LearnedKFAC
from weightedit.editing.evaluation import mean_squared_errors
from weightedit.editing.one_shot import OneShotEditor
from weightedit.editing.predictive_editor import PredictiveEditor
from weightedit.editing.predictor import Predictor, PredictorConfig
from weightedit.editing.refinement import GradientSteps, refine, target_of
from weightedit.inr.convention import DWSNETS, NFN, convert
from weightedit.inr.fitting import FitOptions, fit
from weightedit.metanet.registry import METANETS, describe_metanet
from weightedit.network.reparametrization import reparametrized
from weightedit.optim.hand_designed import Adam
from weightedit.optim.metanet_rule import MetanetRule
from weightedit.optim.rule_module import RuleModule
from weightedit.prediction import WeightSpacePredictor
from weightedit.training.state import read_log

ROOT = Path(__file__).parent.parent


def run_task(name: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """`python tasks/NAME.py ARGUMENTS`, in this process, which has torch loaded: most of a short run's time.

    `name` may hold the subcommand: "train_editor one-shot".
    """
    task, *kind = name.split()
    command, words = [str(ROOT / "tasks" / f"{task}.py"), *kind, *arguments], sys.argv
    out, errors = io.StringIO(), io.StringIO()
    sys.argv, code = command, 0
    try:
        with redirect_stdout(out), redirect_stderr(errors):
            runpy.run_path(command[0], run_name="__main__")
    except SystemExit as ended:
        code = ended.code
    finally:
        sys.argv = words
        forget_accelerator()
    assert not check or code == 0, errors.getvalue()
    return subprocess.CompletedProcess(command, code, out.getvalue(), errors.getvalue())


def launch(*command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """`python COMMAND` as a process of its own: for tasks that start others, or measure their memory."""
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, *command]
    return subprocess.run(words, capture_output=True, text=True, check=check, cwd=ROOT, env=environment)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of gray pictures, two classes, train and test: smooth blobs of 28 x 28 pixels."""
    folder, generator = tmp_path_factory.mktemp("pictures"), torch.Generator().manual_seed(0)
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 28), torch.linspace(-1, 1, 28), indexing="ij")
    for split, count in (("train", 48), ("test", 24)):
        for number in range(count):
            x, y, size = (torch.rand(3, generator=generator) - 0.5).tolist()
            blob = torch.exp(-((rows - x) ** 2 + (columns - y) ** 2) / (0.1 + 0.1 * abs(size)))
            place = folder / split / str(number % 2)
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray((255 * blob).byte().numpy().astype(np.uint8)).save(place / f"{number:03d}.png")
    return folder


@pytest.fixture(scope="session")
def weights(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fitted") / "inrs"
    run_task("fit_inrs", "--smoke", "--images", str(pictures), "--out", str(out))
    return out


def test_fit_inrs(weights: Path) -> None:
    sets = {split: load_weight_set(weights, split) for split in ("train", "validation", "test")}
    assert [len(part) for part in sets.values()] == [32, 16, 24]
    indices = [set(part.stack.index.tolist()) for part in sets.values()]
    assert not indices[0] & indices[1] and not indices[0] & indices[2] and not indices[1] & indices[2]
    for part in sets.values():
        error = (part.stack.render() - part.floats()).square().mean((1, 2, 3))
        assert float(error.max()) < 1e-4, "the pictures and the INRs of a row belong together, at 40 dB"


@pytest.mark.slow
def test_fit_inrs_does_not_depend_on_workers(pictures: Path, weights: Path, tmp_path: Path) -> None:
    common = ["--images", str(pictures), "--limit", "48", "--validation", "16", "--shard", "32"]
    launch("tasks/fit_inrs.py", *common, "--out", str(tmp_path / "two"), "--workers", "2")
    for split in ("train", "test"):
        one, two = load_weight_set(weights, split).stack.params, load_weight_set(tmp_path / "two", split).stack.params
        assert all(torch.allclose(one[name], two[name], atol=1e-4) for name in one)


def test_train_an_editor(weights: Path, tmp_path: Path) -> None:
    result = run_task("train_editor one-shot", "--smoke", "--weights", str(weights), "--out", str(tmp_path / "run"))
    for row in ("edited", "do nothing", "flat MLP", "floor"):
        assert f"| {row} |" in result.stdout
    editor = OneShotEditor.from_pretrained(tmp_path / "run" / "editor")
    assert editor.operation == "dilate"
    again = run_task("train_editor one-shot", "--smoke", "--weights", str(weights), "--out", str(tmp_path / "run"))
    assert again.stdout.splitlines()[-6:] == result.stdout.splitlines()[-6:], "a finished run ends as it ended"


# Of names that share a class, the last; metanet/test_contract.py asks all of them whether they learn.
KINDS = list({entry.kind: name for name, entry in METANETS.items()}.values())


@pytest.mark.parametrize("name", [name for name in KINDS if name != "statistics"])
def test_train_an_editor_with_every_metanetwork(name: str, weights: Path, tmp_path: Path) -> None:
    words = ("--smoke", "--weights", str(weights), "--out", str(tmp_path), "--metanet", name)
    run_task("train_editor one-shot", *words, "--metanet-options", "layers=1", "--control-steps", "0")
    assert OneShotEditor.from_pretrained(tmp_path / "editor").summary == name


@pytest.mark.parametrize("name", KINDS)
def test_train_a_classifier_with_every_metanetwork(name: str, weights: Path, tmp_path: Path) -> None:
    words = ("--smoke", "--weights", str(weights), "--out", str(tmp_path / "run"), "--metanet", name, "--augment")
    found = run_task("train_predictor classes", *words, "--noise", "0.01", "--metanet-options", "layers=1")
    assert "| one INR |" in found.stdout and (tmp_path / "run" / "curve.png").stat().st_size > 5000
    predictor = WeightSpacePredictor.from_pretrained(tmp_path / "run" / "predictor")
    card = (tmp_path / "run" / "predictor" / "README.md").read_text()
    probes = describe_metanet(predictor.metanet)[1].get("probes", 0)
    told = f"at {probes} probes (learned; the image has 784 pixels)." if probes else "its weights alone"
    assert told in card and "| 4 |" in card.split("validation accuracy |")[1], "what it reads, and its curve"
    test = load_weight_set(weights, "test").stack
    assert predictor.predict_stack(test).shape == (24, predictor.outputs)


def test_a_classifier_that_sees_every_pixel_says_so(weights: Path, tmp_path: Path) -> None:
    words = ("--smoke", "--weights", str(weights), "--out", str(tmp_path), "--metanet", "gauge-gmn", "--dropout", "0.2")
    options = ("layers=1", "node_width=4", "edge_width=2", "probes=784", "grid=true", "shown=4")
    found = run_task("train_predictor classes", *words, "--metanet-options", *options)
    assert "at 784 probes (on a fixed grid; the image has 784 pixels): a classifier of renderings" in found.stdout


def test_train_a_classifier_with_several_inrs_of_an_image(pictures: Path, tmp_path: Path) -> None:
    fitted = ("--smoke", "--images", str(pictures), "--out", str(tmp_path / "inrs"), "--repeats", "3")
    run_task("fit_inrs", *fitted)
    words = ("--smoke", "--weights", str(tmp_path / "inrs"), "--out", str(tmp_path / "run"), "--per-image", "2")
    first = run_task("train_predictor classes", *words, "--metanet", "mlp")
    for row in ("one INR", "all INRs of an image, majority", "all INRs of an image, mean logits"):
        assert f"| {row} |" in first.stdout
    assert json.loads((tmp_path / "run" / "result.json").read_text())["counts"]["train"] < 16
    again = run_task("train_predictor classes", *words, "--metanet", "mlp")
    assert again.stdout == first.stdout, "a finished run ends as it ended"


LAYERS = {"dwsnets": ("seq.0", "seq.1", "seq.2"), "nfn": ("net.0.linear", "net.1.linear", "net.2")}


def as_published(weights: Path, folder: Path, layout: str) -> tuple[str, ...]:
    """The INRs of a weight set as one file each, in the layout of a published set; the options that read them."""
    splits: dict[str, list[str]] = {}
    for split, begin in (("train", 0), ("validation", 45_000), ("test", 50_000)):
        stack = load_weight_set(weights, split).stack
        target = {"dwsnets": DWSNETS, "nfn": NFN}[layout]
        params, first = convert(stack.params, stack.convention, target), int(stack.index.min()) * (split == "test")
        for row, (label, index) in enumerate(zip(stack.label.tolist(), stack.index.tolist(), strict=True)):
            half = "testing" if split == "test" else "training"
            name = f"randinit_smaller_{label}s/net{begin + row}.pth"
            if layout == "dwsnets":
                name = f"mnist_png_{half}_{label}_{index - first}/checkpoints/model_final.pth"
                splits.setdefault(split[:5].replace("valid", "val"), []).append(f"/home/them/{name}")
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            renamed = {f"layers.{n}": own for n, own in enumerate(LAYERS[layout])}
            torch.save({renamed[key[:8]] + key[8:]: tensor[row] for key, tensor in params.items()}, folder / name)
    if splits:
        (folder / "mnist_splits.json").write_text(json.dumps(splits))
    return ("--convention", layout, "--size", "28")


@pytest.mark.parametrize("layout", LAYERS)
def test_a_folder_of_published_weights_is_trained_on_in_one_command(layout: str, weights: Path, tmp_path: Path) -> None:
    words = ("--smoke", "--weights", str(tmp_path / "inrs"), *as_published(weights, tmp_path / "inrs", layout))
    classes = (*words, "--out", str(tmp_path / "classes"), "--metanet", "mlp")
    found = run_task("train_predictor classes", *classes)
    assert "72 INRs of 72 images" in found.stdout and "| one INR |" in found.stdout
    made = {split: load_weight_set(tmp_path / "classes" / "weights", split) for split in ("train", "test")}
    for split, part in made.items():
        original = load_weight_set(weights, split)
        assert sorted(part.stack.label.tolist()) == sorted(original.stack.label.tolist())
        error = (part.floats() - part.stack.render()).square().mean()
        assert float(error) < 1e-4, "pictures and INRs of a row belong together, under the convention of the folder"
    train, test = (set(part.stack.index.tolist()) for part in made.values())
    assert not train & test, "both halves of DWSNets count from 0"
    again = run_task("train_predictor classes", *classes)
    assert found.stdout.endswith(again.stdout), "read once; a finished run ends as it ended"
    if layout == "nfn":
        rule = run_task("train_editor rule", *words, "--out", str(tmp_path / "rule"))
        assert "rule written to" in rule.stdout and len(load_weight_set(tmp_path / "rule" / "weights-0", "test"))
    if layout == "dwsnets":
        editor = run_task("train_editor one-shot", *words, "--out", str(tmp_path / "edit"), "--control-steps", "0")
        assert "| edited |" in editor.stdout
        predictive = run_task("train_editor predictive", *words, "--out", str(tmp_path / "predictive"))
        assert "dilate" in predictive.stdout


def test_metanetworks_that_a_task_cannot_take_are_refused(weights: Path, tmp_path: Path) -> None:
    words = ("--smoke", "--weights", str(weights), "--out", str(tmp_path), "--metanet")
    for task, more, message in (
        ("train_editor one-shot", ("statistics",), "an editor needs one that edits"),
        ("train_predictor classes", ("mlp", "--metanet-options", "heads=2"), "mlp has no option heads"),
    ):
        refused = run_task(task, *words, *more, check=False)
        assert refused.returncode == 2 and message in refused.stderr.splitlines()[-1]


def test_wrong_input_is_refused(weights: Path, pictures: Path, tmp_path: Path) -> None:
    missing = run_task("train_editor one-shot", "--smoke", "--weights", str(tmp_path / "nothing"), check=False)
    assert missing.returncode != 0 and "nothing" in missing.stderr
    unknown = run_task(
        "train_editor one-shot", "--smoke", "--weights", str(weights), "--operation", "embolden", check=False
    )
    assert unknown.returncode != 0 and "embolden" in unknown.stderr
    greedy = ["--images", str(pictures), "--validation", "47", "--out", str(tmp_path / "greedy")]
    refused = run_task("fit_inrs", *greedy, check=False)
    assert refused.returncode != 0 and "validation 47" in refused.stderr


@pytest.mark.parametrize(
    ("task", "flag"),
    [("fit_inrs", "--images"), ("train_editor one-shot", "--weights"), ("train_predictor classes", "--weights")],
)
def test_wrong_input_is_told_in_one_line(task: str, flag: str, tmp_path: Path) -> None:
    ended = run_task(task, flag, str(tmp_path / "absent"), "--out", str(tmp_path / "out"), check=False)
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    assert "absent" in ended.stderr.splitlines()[-1]


def test_train_refinement_then_frontier(weights: Path, tmp_path: Path) -> None:
    words = ("--smoke", "--weights", str(weights), str(weights), "--widen", "1", "2", "--out", str(tmp_path / "refine"))
    result = run_task("train_editor rule", *words)
    assert "| steps | K-FAC, numbers by hand | learned |" in result.stdout
    assert LearnedKFAC.from_pretrained(tmp_path / "refine" / "rule").config.width == 32
    found = run_task("compare_editors", "--smoke", "--weights", str(weights), "--out", str(tmp_path / "plot"))
    for name in ("Adam", "K-FAC", "Levenberg-Marquardt", "one-shot editor", "learned steps"):
        assert f"| {name} |" in found.stdout
    assert (tmp_path / "plot" / "frontier.png").stat().st_size > 10_000


def test_train_an_editor_of_varied_pictures_from_images_then_compare_it(pictures: Path, tmp_path: Path) -> None:
    rule, sources = LearnedKFAC().save_pretrained(tmp_path / "rule", ""), (str(pictures), "photographs")
    words = ("--smoke", "--images", *sources, "--rule", str(rule), "--out", str(tmp_path / "run"))
    words += ("--operations", "contrast", "--practice", "varied", "--predictor.tiles", "2", "--predictor.curves", "4")
    result = run_task("train_editor predictive", *words)
    assert f"| {pictures.name}: contrast 0.5 |" in result.stdout and "| photographs: contrast 1 |" in result.stdout
    assert load_weight_set(tmp_path / "run" / "inrs-2", "test").stack.widths == (2, 64, 64, 64, 3)
    assert run_task("train_editor predictive", *words).stdout == result.stdout
    words = ("--editors", str(tmp_path / "run" / "editor"), "--images", *sources, "--hidden", "8", "8")
    found = run_task("try_editors pictures", "--smoke", *words, "--out", str(tmp_path / "pictures"))
    assert all(found.stdout.count(f"| {kind} |") == 1 for kind in ("photographs 28 color", "photographs 28 gray"))
    assert (tmp_path / "pictures" / "pictures.png").stat().st_size > 10_000
    rows = json.loads((tmp_path / "pictures" / "pictures.json").read_text())
    assert rows[0]["kind"] == f"{pictures.name} 28 gray" and {row["editor"] for row in rows} == {"editor"}


@pytest.mark.parametrize(
    "words",
    [
        "--smoke --kinds dots",
        pytest.param("--kinds dots lines --count 1 --steps 1 10 --most 50", marks=pytest.mark.slow),
    ],
)
def test_no_error_rises(words: str, tmp_path: Path) -> None:
    """Every rule and, in the slow part, every operation; the whole protocol's table is on tasks/README.md."""
    run_task("try_promises", *words.split(), "--out", str(tmp_path))
    found = json.loads((tmp_path / "promises.json").read_text())
    assert all(row["rose"] == 0 and row["errors"] and row["after"] < row["before"] for row in found.values())
    assert len(found) == (3 if "--smoke" in words else 6)
    refused = run_task("try_promises", "--kinds", "cats", "--out", str(tmp_path), check=False)
    assert refused.returncode == 2 and "got ['cats']; expected kinds dots" in refused.stderr.splitlines()[-1]
    refused = run_task("try_promises", "--steps", "101", "--out", str(tmp_path), check=False)
    assert refused.returncode == 2 and "expected numbers from 1 to 100" in refused.stderr.splitlines()[-1]


@pytest.mark.parametrize("rule", [KFAC(), GradientSteps(Adam(4e-3)), KFAC(rate=3.0, damping=1e-3)], ids=str)
def test_one_run_has_what_every_number_of_steps_gives(rule) -> None:
    images = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)).round()
    stack = fit(images, widths=(2, 12, 12, 1), options=FitOptions(target_psnr=25)).stack
    targets = target_of("dilate", stack)
    found = runpy.run_path(str(ROOT / "tasks" / "try_promises.py"))["errors_of_run"](stack, targets, rule, 6)
    for steps, errors in enumerate(found):
        anew = mean_squared_errors(refine(stack, targets, steps, rule=rule), targets)
        torch.testing.assert_close(errors, anew, rtol=1e-4, atol=1e-8)
    assert found[-1].mean() < found[1].mean()


def test_train_predictive_editor_then_evaluate(weights: Path, tmp_path: Path) -> None:
    rule = LearnedKFAC().save_pretrained(tmp_path / "rule", "")
    words = ("--smoke", "--weights", str(weights), "--rule", str(rule), "--out", str(tmp_path / "run"))
    result = run_task("train_editor predictive", *words, "--operations", "dilate", "rotate", "--predictor.warp")
    assert "| dilate 0.5 |" in result.stdout and "| rotate 1 |" in result.stdout
    editor = tmp_path / "run" / "editor"
    assert PredictiveEditor.from_pretrained(editor).operations == ("dilate", "rotate")
    assert (tmp_path / "run" / "strengths.png").stat().st_size > 10_000
    again = run_task("train_editor predictive", *words, "--operations", "dilate", "rotate", "--predictor.warp")
    assert again.stdout == result.stdout
    words = ("--editor", str(editor), "--weights", str(weights), "--out", str(tmp_path / "transfer"))
    found = run_task("try_editors transfer", "--smoke", *words, "--factors", "2", "--steps", "0", "2")
    assert found.stdout.count("| 2-32-32-1 | 28 x 28 | 2-64-64-1 |") == 2
    refused = run_task("try_editors transfer", *words, "--operation", "embolden", check=False)
    assert refused.returncode == 2 and "this editor knows dilate, rotate" in refused.stderr.splitlines()[-1]


def test_train_editors_by_examples(weights: Path, pictures: Path, tmp_path: Path) -> None:
    words = ("--smoke", "--weights", str(weights), "--targets", str(pictures), "--description", "becomes another")
    given = (*words, "--nearest", "3", "--target-labels", "1", "--operations", "mine", "--out", str(tmp_path / "one"))
    result = run_task("train_editor predictive", *given)
    assert "| mine 1 |" in result.stdout and (tmp_path / "one" / "strengths.png").stat().st_size > 10_000
    assert "* mine: becomes another" in (tmp_path / "one" / "editor" / "README.md").read_text()
    assert PredictiveEditor.from_pretrained(tmp_path / "one" / "editor").operations == ("mine",)
    given = (*words, "--operation", "mine", "--out", str(tmp_path / "two"), "--control-steps", "0")
    run_task("train_editor one-shot", *given)  # targets in order
    assert "becomes another" in (tmp_path / "two" / "editor" / "README.md").read_text()


def test_train_an_editor_of_a_function_of_ones_own(weights: Path, tmp_path: Path) -> None:
    own = tmp_path / "mine.py"
    own.write_text("def faded(x):\n    return 0.5 * x\n")
    words = ("--smoke", "--weights", str(weights), "--operations", "faded", "--out", str(tmp_path / "out"))
    result = run_task("train_editor predictive", *words, "--targets", f"{own}:faded")
    assert "| faded 1 |" in result.stdout
    assert PredictiveEditor.from_pretrained(tmp_path / "out" / "editor").operations == ("faded",)
    refused = run_task("train_editor predictive", *words, "--targets", f"{own}:bleached", check=False)
    assert refused.returncode == 2 and "has no function 'bleached'" in refused.stderr.splitlines()[-1]


def test_content_is_read_by_a_classifier(weights: Path, pictures: Path, tmp_path: Path) -> None:
    built = PredictiveEditor(Predictor(PredictorConfig(("mine",), width=4)), LearnedKFAC(), 1)
    editor = str(built.save_pretrained(tmp_path / "editor", "# one\n"))
    words = ("--editor", editor, "--weights", str(weights), "--images", str(pictures), "--wanted", "1")
    found = run_task("try_content", "--smoke", *words, "--steps", "0", "2", "--out", str(tmp_path / "out"))
    for row in ("INRs as they were", "edited, 0 steps", "edited, 2 steps", "test pictures of that class"):
        assert f"| {row} |" in found.stdout
    figures = json.loads((tmp_path / "out" / "content.json").read_text())
    errors = {name: row["from the source"] for name, row in figures.items() if isinstance(row, dict)}
    assert errors["INRs as they were"] == 0 < errors["nearest training pictures in their place"]
    assert errors["nearest training pictures in their place"] < errors["test pictures of that class"]
    assert (tmp_path / "out" / "content.png").stat().st_size > 5000


def test_the_study_resumes(weights: Path, tmp_path: Path) -> None:
    rows = ("base: permutation + sign + phase, 16 probes", "output 2 times as wide")
    words = ("--smoke", "--weights", str(weights), "--out", str(tmp_path / "study"), "--only", *rows)
    first = run_task("study_editors", *words)
    assert all(f"| {row} |" in first.stdout for row in rows)
    again = run_task("study_editors", *words)
    assert again.stdout == first.stdout and "it/s" not in again.stderr
    refused = run_task("study_editors", "--smoke", "--weights", str(weights), "--only", "magic", check=False)
    assert refused.returncode == 2 and "magic" in refused.stderr.splitlines()[-1]


def test_meta_train_goes_on(tmp_path: Path) -> None:
    """A rule is meta-trained and loads; stopped and taken up, it ends bit for bit as at once."""
    out = tmp_path / "meta"
    run_task("meta_train", "--smoke", "--out", str(out))
    assert (out / "curve.png").stat().st_size > 5000
    trained, untrained = RuleModule.from_pretrained(out / "rule").state_dict(), MetanetRule().state_dict()
    assert set(trained) == set(untrained) and any(not torch.equal(trained[name], untrained[name]) for name in trained)
    parts = ["meta_train", "--smoke", "--out", str(tmp_path / "parts"), "--training.max-seconds"]
    assert "stopped after outer step 1, before" in run_task(*parts, "1e-9").stdout
    run_task(*parts, "0")
    resumed = RuleModule.from_pretrained(tmp_path / "parts/rule").state_dict()
    assert all(torch.equal(trained[name], resumed[name]) for name in trained)
    logs = [read_log(folder / "run") for folder in (out, tmp_path / "parts")]
    numbers = [[(r["loss"], r["grad_norm"], r.get("validation")) for r in log] for log in logs]
    assert len(numbers[0]) == 4 and numbers[0] == numbers[1]
    single = ["--rule", "per-parameter", "--estimator", "backprop", "--reparametrize", "tensor", "--vary", "hidden"]
    run_task("meta_train", "--smoke", *single, "--out", str(tmp_path / "single"))
    wrong = run_task("meta_train", "--smoke", "--estimator", "guess", "--out", str(tmp_path / "no"), check=False)
    assert wrong.returncode != 0 and "guess" in wrong.stderr


def test_compare_optimizers(tmp_path: Path) -> None:
    """A learned rule beside tuned ones, from rescaled networks too; what is measured once stays."""
    rule = str(ROOT / "checkpoints/small-classifier")
    untimed = ("compare_optimizers", "--smoke", "--timed-steps", "0", "--out", str(tmp_path / "compared"))
    words = (*untimed, "--cosine", "--rescale", "3")
    run_task(*words, "--rules", "sgd")
    runs = json.loads((tmp_path / "compared/runs.json").read_text())
    runs["runs"] = {
        key: value if "tuning" in key else {**value, "accuracy": [0.5, 0.5]} for key, value in runs["runs"].items()
    }
    (tmp_path / "compared/runs.json").write_text(json.dumps(runs))
    compared = run_task(*words, "--rules", "sgd", rule)
    for row in ("adam", "sgd", rule):
        assert f"| {row} |" in compared.stdout
    # Adam and SGD, standard and rescaled: what was measured before is not measured again.
    assert compared.stdout.count("50.00 +- ") == 4
    wrong = run_task(*untimed, check=False)
    assert wrong.returncode != 0 and "another folder" in wrong.stderr
    wrong = run_task("compare_optimizers", "--problem", "imagenet", check=False)
    assert wrong.returncode != 0 and "imagenet" in wrong.stderr


@pytest.mark.slow
def test_costs(tmp_path: Path) -> None:
    """Of optimizer steps and of inner runs, both as multiples of what they are held against; of rules compared."""
    compared = run_task("compare_optimizers", "--smoke", "--rules", "sgd", "--out", str(tmp_path / "c"))
    assert "| ms per step | times fused Adam's |" in compared.stdout
    words = ("--smoke", "--rules", "per-parameter", "lean", "--out", str(tmp_path / "a"))
    steps = run_task("benchmark optimizers", *words)
    assert "| 2.4k | fused AdamW |" in steps.stdout and "| 2.4k | lean |" in steps.stdout
    runs = run_task("benchmark meta-training", "--smoke", "--out", str(tmp_path / "b"))
    assert "| one pair at a time, eager |" in runs.stdout
    layouts = launch("tasks/benchmark.py", "speed", "--smoke")
    assert "| dense |" in layouts.stdout and "| twin |" in layouts.stdout
    for words in (("--rules", "guess"), ("--rounds", "0")):
        wrong = run_task("benchmark meta-training", *words, check=False)
        assert wrong.returncode == 2 and " ".join(words[1:]) in wrong.stderr.splitlines()[-1]


def test_make_cnn_zoo_then_predict_accuracy(pictures: Path, tmp_path: Path) -> None:
    zoo, out = str(tmp_path / "zoo"), str(tmp_path / "tau")
    made = run_task("make_cnn_zoo", "--smoke", "--images", str(pictures), "--out", zoo)
    assert "48 checkpoints of 24 networks, 0 were not finite" in made.stdout and len(load_zoo(zoo, "train")) == 28
    words = ("--smoke", "--zoo", zoo, "--metanet", "statistics", "gauge-gmn", "--options", "gauge-gmn.layers=1")
    result = run_task("train_predictor accuracy", *words, "--out", out)
    for word in ("| gauge-gmn |", "| statistics |", "| rescaled 1 to 1000 |", "6 test networks"):
        assert word in result.stdout
    predictor = WeightSpacePredictor.from_pretrained(f"{out}/gauge-gmn-seed0/predictor")
    test = load_zoo(zoo, "test").last()
    moved = reparametrized(test.spec, test.params, "rescaled 1 to 1000", torch.Generator().manual_seed(0))
    before, after = (predictor.predict(test.spec, params).detach() for params in (test.params, moved))
    assert torch.allclose(before, after, rtol=1e-3, atol=1e-4) and float(before.std()) > 1e-5
    wrong = run_task("train_predictor accuracy", *words, "--options", "nobody.layers=2", check=False)
    assert wrong.returncode == 2 and "nobody" in wrong.stderr.splitlines()[-1]


@pytest.mark.slow
def test_generalization_of_tanh_networks_with_augmentation_and_resuming(pictures: Path, tmp_path: Path) -> None:
    zoo = str(tmp_path / "zoo")
    run_task("make_cnn_zoo", "--smoke", "--images", str(pictures), "--activation", "tanh", "--out", zoo)
    words = (
        "--smoke",
        "--zoo",
        zoo,
        "--metanet",
        "mlp",
        "--augment",
        "--seeds",
        "0",
        "1",
        "--out",
        str(tmp_path / "t"),
    )
    result = run_task("train_predictor accuracy", *words)
    assert "| sign-flipped |" in result.stdout and "rescaled" not in result.stdout and "±" in result.stdout
    assert run_task("train_predictor accuracy", *words).stdout == result.stdout, "a finished run ends as it ended"
    other = str(tmp_path / "other")
    run_task(
        "make_cnn_zoo", "--smoke", "--images", str(pictures), "--filters", "3", "4", "--kernel", "5", "--out", other
    )
    both = ("--smoke", "--zoo", zoo, other, "--out", str(tmp_path / "both"), "--metanet")
    mixed = run_task("train_predictor accuracy", *both, "ng-gnn").stdout
    assert "12 test networks" in mixed and f"| ng-gnn on {other} |" in mixed
    wrong = run_task("train_predictor accuracy", *both, "ng-gnn", "mlp", check=False)
    assert wrong.returncode == 2 and "got mlp for zoos of several architectures" in wrong.stderr.splitlines()[-1]
    for task, flag, value in (
        ("train_predictor accuracy", "--loss", "huber"),
        ("train_predictor accuracy", "--metanet", "oracle"),
        ("make_cnn_zoo", "--activation", "selu"),
        ("make_cnn_zoo", "--out", zoo),
    ):
        wrong = run_task(task, *(words if task.startswith("train") else ()), flag, value, check=False)
        assert wrong.returncode == 2 and value in wrong.stderr.splitlines()[-1]


@pytest.mark.slow
def test_compare_metanets(pictures: Path, weights: Path, tmp_path: Path) -> None:
    zoo = str(tmp_path / "zoo")
    run_task("make_cnn_zoo", "--smoke", "--images", str(pictures), "--out", zoo)
    data = ("--smoke", "--weights", str(weights), "--zoo", zoo, "--out", str(tmp_path / "metanets"))
    words = (*data, "--metanet", "mlp", "mlp,hidden=8", "statistics", "--options", "mlp.hidden=16")
    first = launch("tasks/compare_metanets.py", *words)
    rows = {line.split(" | ")[0].strip("| "): line.split(" | ") for line in first.stdout.splitlines() if " | " in line}
    assert {len(row) for row in rows.values()} == {12} and {"mlp", "statistics"} < set(rows)
    assert rows["statistics"][6] == "-" and float(rows["mlp"][6]) > 0, "statistics edit nothing"
    found = json.loads((tmp_path / "metanets/metanets.json").read_text())
    cost = found["costs"]["classes"]["mlp"]
    variant = found["costs"]["edits"]["mlp,hidden=8"]
    assert variant["parameters"] < found["costs"]["edits"]["mlp"]["parameters"], "a variant is a system of its own"
    assert cost["processor"] > 0 and cost["gigaflop"] > 0 and found["results"]["edits"]["mlp"][0]["steps"] == 4
    assert set(found["results"]["generalization"]["statistics"][0]) > {"tau as trained", "tau rescaled e^-6 to e^6"}
    again = run_task("compare_metanets", *words)
    assert again.stdout == first.stdout, "what is measured once stays, times of steps as well"
    other = run_task("compare_metanets", *words, "--operation", "erode", check=False)
    assert other.returncode == 2 and "'operation': 'dilate'" in other.stderr.splitlines()[-1]
    unknown = run_task("compare_metanets", *data, "--metanet", "gnn", check=False)
    assert unknown.returncode == 2 and "systems ['gnn']" in unknown.stderr.splitlines()[-1]


def test_compare_fits(pictures: Path, tmp_path: Path) -> None:
    out = ["--out", str(tmp_path / "fits")]
    rule = ["--update-rules", str(ROOT / "checkpoints/small-classifier")]
    result = run_task("compare_fits steps", "--smoke", "--images", str(pictures), "--split", "train", *rule, *out)
    for row in ("Adam", "K-FAC", "learned", "small-classifier"):
        assert f"| {row} |" in result.stdout
    few = run_task(
        "compare_fits steps", "--images", str(pictures), "--split", "train", "--count", "100", *out, check=False
    )
    assert few.returncode != 0 and "lower count" in few.stderr


def test_compare_sounds(tmp_path: Path) -> None:
    first = run_task("compare_sounds", "--smoke", "--out", str(tmp_path))
    assert all(f"| {name} | 50 | " in first.stdout for name in ("chord", "drums", "vowels"))
    assert run_task("compare_sounds", "--smoke", "--out", str(tmp_path)).stdout == first.stdout


@pytest.mark.slow
def test_two_processes_meta_train_together(tmp_path: Path) -> None:
    """Each with inner runs of its own; stopped after an outer step and taken up, they end as they would have."""
    for name, limits in (("whole", [0]), ("parts", [1e-9, 0])):
        for limit in limits:
            words = ("--smoke", "--out", tmp_path / name, "--training.max-seconds", limit)
            start("tasks/meta_train.py", *words, processes=2).succeed()
    runs = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("whole", "parts")]
    assert json.loads((tmp_path / "whole/run/run.json").read_text())["processes"] == 2
    assert runs[0]["finished"] and runs[1]["finished"] and runs[0]["best_validation"] == runs[1]["best_validation"]
