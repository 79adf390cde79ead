"""The command line as a user meets it: what it writes, what it says, and one line for everything that is wrong."""

import ast
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import weightedit
from weightedit.cli import arguments
from weightedit.cli.arguments import build_parser, in_own_words
from weightedit.cli.conventions import NAMED
from weightedit.cli.demo import digit_images
from weightedit.cli.main import main
from weightedit.data.foreign_inrs import suggestion
from weightedit.data.inr_files import load_inrs, save_inrs
from weightedit.data.weight_sets import save_weight_set
from weightedit.door import edit as edit_inrs
from weightedit.editing.curvature import KFAC, LearnedKFAC
from weightedit.editing.evaluation import mean_squared_errors
from weightedit.editing.guard import guard
from weightedit.editing.one_shot import OneShotEditor
from weightedit.editing.predictive_editor import PredictiveEditor
from weightedit.editing.predictor import Predictor, PredictorConfig
from weightedit.editing.refinement import refine, target_of
from weightedit.files.checkpoint import load_checkpoint
from weightedit.files.location import shipped
from weightedit.inr.convention import DWSNETS, NFN, SIREN_PYTORCH, Convention
from weightedit.inr.fitting import FitOptions
from weightedit.inr.siren import initial_params
from weightedit.inr.stack import INRStack
from weightedit.metanet.baselines import FlatMLP, FlatMLPConfig
from weightedit.metanet.gauge_gmn.config import GaugeGMNConfig
from weightedit.metanet.gauge_gmn.network import GaugeGMN

WIDTHS = (2, 6, 5, 1)
FIGURES = {"edited": 0.03, "do nothing": 0.09, "floor": 1e-4}


@pytest.fixture(scope="session")
def editor(tmp_path_factory):
    config = GaugeGMNConfig(node_width=4, edge_width=2, layers=1, probes=2, levels=3)
    folder = tmp_path_factory.mktemp("editors") / "tiny"
    return str(OneShotEditor(GaugeGMN(config), "dilate").save_pretrained(folder, "# tiny\n", {"figures": FIGURES}))


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An own working directory with three INRs, three pictures and a foreign INR."""
    monkeypatch.chdir(tmp_path)
    save_inrs(make_stack(), "in.safetensors")
    for number, image in enumerate(digit_images(3)[0]):
        Image.fromarray((image[0] * 255).round().byte().numpy()).save(f"digit{number}.png")
    tensors = make_stack(1).params
    torch.save({name.replace("layers", "seq"): tensor[0] for name, tensor in tensors.items()}, "net7.pth")
    return tmp_path


def make_stack(count=3, **fields):
    return INRStack(
        initial_params(count, WIDTHS, generator=torch.Generator().manual_seed(2)), Convention(), 9, 7, **fields
    )


def run(capsys, *words):
    code = main([str(word) for word in words])
    out, err = capsys.readouterr()
    return code, out, err


def told(stack):
    return ", then ".join(edit.told for edit in stack.history)


def size_of(path):
    with Image.open(path) as image:
        return image.size


def test_demo(place, editor, capsys):
    code, out, err = run(capsys, "demo", "--editor", editor, "--count", 2, "-o", "sheet.png")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert f"editor {editor}: dilate, gauge-gmn" in lines[0]
    assert next(line for line in lines if "do nothing" in line).split() == ["digit", "do", "nothing", "edited", "floor"]
    rows = [line.split() for line in lines if len(line.split()) == 4 and line.split()[0] in ("0", "1", "mean")]
    values = np.array([row[1:] for row in rows], dtype=float)
    np.testing.assert_allclose(values[2], values[:2].mean(0), atol=1e-3)
    assert lines[-2] == "drew   sheet.png" and lines[-1].startswith("took")
    assert size_of("sheet.png")[1] > 400


def test_fit_pictures(place, capsys):
    code, out, err = run(capsys, "fit", *sorted(place.glob("digit*.png")), "-o", "out.safetensors", "--seed", 5)
    assert (code, err) == (0, "") and "fitted 3 images of 28 x 28 x 1" in out and "3 INRs" in out
    stack = load_inrs("out.safetensors")
    assert stack.widths == (2, 32, 32, 1) and stack.label is None and stack.index.tolist() == [0, 1, 2]
    assert float(stack.psnr.min()) >= 40
    assert stack.provenance["seed"] == "5" and stack.provenance["images"] == "digit0.png, digit1.png, digit2.png"


def test_a_solid_picture_is_met_exactly_and_said_so(place, capsys):
    Image.new("L", (12, 10), 0).save("black.png")
    for pictures in (["black.png"], ["black.png", "digit0.png"]):
        code, out, err = run(capsys, "fit", *pictures, "--size", "10x12", "--max-steps", 30, "-o", "out.safetensors")
        assert (code, err) == (0, "") and "PSNR" in out
        code, told, err = run(capsys, "info", "out.safetensors")
        assert (code, err) == (0, "") and not re.search(r"\b(inf|nan)\b", out + told)


def test_an_edit_that_changes_nothing_of_a_solid_picture_is_exact(place, capsys):
    zeros = {name: torch.zeros_like(tensor) for name, tensor in make_stack(2).params.items()}
    save_inrs(replace(make_stack(2), params=zeros, psnr=torch.full((2,), math.inf)), "in.safetensors")
    words = ("--operation", "dilate", "--steps", 1, "-o", "out.safetensors")
    code, out, err = run(capsys, "edit", "in.safetensors", *words)
    assert (code, err) == (0, "") and "dB     0: exact before and after, 1: exact before and after" in out
    assert re.search(r"^PSNR +exact$", run(capsys, "info", "in.safetensors")[1], re.MULTILINE)


def test_a_seed_beyond_64_bits_is_refused(place, capsys):
    for words in (("fit", "digit0.png", "-o", "out.safetensors"), ("demo", "-o", "out.png")):
        code, out, err = run(capsys, *words, "--seed", 10**20)
        assert code == 2 and out == "" and f"got --seed {10**20}; expected a whole number of at most 18 digits" in err


def test_fit_says_what_was_asked_and_what_missed(place, capsys):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 48), dtype=np.uint8)).save("noise.png")
    words = ["fit", "digit0.png", "noise.png", "-o", "out.safetensors", "--size", 48, "--hidden", 32, 32]
    words += ["--target-psnr", 25, "--max-steps", 40]
    code, out, _ = run(capsys, *words)
    assert code == 0 and "missed 25 dB and kept: 1 of 2, index 1 noise.png (" in out
    assert "for more give --max-steps 80, or wider networks by --hidden 48 48" in out
    assert len(load_inrs("out.safetensors")) == 2
    code, out, _ = run(capsys, *words, "--drop-missed")
    assert code == 1 and "missed 25 dB and left out: 1 of 2" in out
    assert load_inrs("out.safetensors").index.tolist() == [0]
    method = ("--method", "adam", "--learning-rate", 1e-3, "--max-steps", 5)
    code, out, _ = run(capsys, "fit", "noise.png", "-o", "none.safetensors", *method, "--drop-missed")
    assert "fits   2-64-64-64-1 to 35 dB, the default at 48 x 48, in at most 5 steps, about " in out
    assert code == 1 and "none.safetensors was not written" in out and not (place / "none.safetensors").exists()
    code, out, _ = run(capsys, "fit", "noise.png", "-o", "one.safetensors", *method)
    assert code == 0 and "missed 35 dB and kept: 1 of 1" in out and len(load_inrs("one.safetensors")) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("size", "channels"), [(28, 3), (64, 1), (128, 3)])
def test_a_photograph_of_any_size_is_written_and_what_it_reached_said(size, channels, place, capsys):
    from sklearn.datasets import load_sample_image

    Image.fromarray(load_sample_image("china.jpg")).save("photo.png")
    words = ("--size", size, "--channels", channels, "-o", "out.safetensors")
    code, out, err = run(capsys, "fit", "photo.png", *words)
    psnr, target = load_inrs("out.safetensors").psnr.item(), FitOptions().target((size, size))
    assert (code, err) == (0, "") and psnr > 30 and f"PSNR   {psnr:.2f} dB" in out
    assert ("missed" in out) == (psnr < target) and "for more give --" in out


def test_fit_a_data_set(place, capsys):
    (place / "set").mkdir()
    for number in range(3):
        (place / f"digit{number}.png").rename(place / "set" / f"{number}.png")
    words = ("--limit", 2, "--size", 14, "--channels", 3, "--hidden", 16, "--target-psnr", 20)
    code, out, _ = run(capsys, "fit", "set", "-o", "out.safetensors", *words)
    assert code == 0 and "fitted 2 images of 14 x 14 x 3" in out
    stack = load_inrs("out.safetensors")
    assert stack.widths == (2, 16, 3) and (stack.height, stack.width) == (14, 14)


def test_edit(place, editor, capsys):
    words = ("edit", "in.safetensors", "--editor", editor, "-o", "out.safetensors", "--preview", "sheet.png")
    code, out, err = run(capsys, *words)
    assert (code, err) == (0, "") and "edited 3 INRs" in out and "MSE    against dilate" in out
    expected = OneShotEditor.from_pretrained(editor)(make_stack())
    found = load_inrs("out.safetensors")
    assert all(torch.equal(found.params[name], expected.params[name]) for name in found.params)
    assert told(found) == "dilate (tiny)"
    assert size_of("sheet.png")[0] > 400


def test_an_edit_is_judged_inr_by_inr_before_it_is_written(place, editor, capsys):
    given = make_stack(9)
    save_inrs(given, "in.safetensors")
    wanted, raw = target_of("dilate", given), OneShotEditor.from_pretrained(editor).unguarded(given)
    before, after = (mean_squared_errors(inrs, wanted) for inrs in (given, raw))
    guarded = guard(given, raw, wanted)
    left = (after > before).tolist()
    assert 0 < sum(left) < 9
    words = ("edit", "in.safetensors", "--editor", editor, "-o", "out.safetensors")
    lines = run(capsys, *words)[1].splitlines()
    told = next(line for line in lines if line.startswith("left   as they were or edited in part"))
    assert f"{sum(left)} of 9 INRs" in told and "--operation dilate without --editor" in told and "--raw" in told
    assert lines.index(told) < next(i for i, line in enumerate(lines) if line.startswith("wrote"))
    by_inr = next(line for line in lines if line.startswith("dB ")).removeprefix("dB").split("; ")
    found = load_inrs("out.safetensors")
    for i in range(9):
        for name, tensor in found.params.items():
            assert torch.equal(tensor[i], guarded.stack.params[name][i])
        if i < 8:
            was, came = (-10 * float(errors[i].log10()) for errors in (before, guarded.reached))
            assert by_inr[0].split(", ")[i].strip() == f"{i}: {was:.1f} to {came:.1f}"
    worst = int(guarded.reached.argmax())
    assert by_inr[1].startswith(f"the worst {worst}: ")
    lines = run(capsys, *words, "--raw")[1].splitlines()
    assert not any(line.startswith("left") for line in lines)
    assert all(torch.equal(tensor, raw.params[name]) for name, tensor in load_inrs("out.safetensors").params.items())


def test_edit_in_place_keeps_the_rest(place, editor, capsys):
    save_inrs(make_stack(label=torch.tensor([4, 5, 6]), psnr=torch.full((3,), 40.0)), "in.safetensors")
    assert run(capsys, "edit", "in.safetensors", "--editor", editor, "--raw", "-o", "in.safetensors")[0] == 0
    found = load_inrs("in.safetensors")
    assert found.label.tolist() == [4, 5, 6] and found.psnr is None
    assert not torch.equal(found.params["layers.1.weight"], make_stack().params["layers.1.weight"])


def test_an_operation_that_is_not_ours_is_previewed_without_a_target(place, capsys):
    own = OneShotEditor(FlatMLP(FlatMLPConfig(WIDTHS, hidden=4)), "my-own").save_pretrained(place / "own", "")
    words = ("edit", "in.safetensors", "--editor", own, "-o", "out.safetensors", "--preview", "sheet.png")
    code, out, _ = run(capsys, *words)
    assert code == 0 and "MSE" not in out and size_of("sheet.png")[0] > 300


def test_render(place, capsys):
    code, out, _ = run(capsys, "render", "in.safetensors", "-o", "all.png")
    assert code == 0 and "3 of 3 INRs at 9 x 7" in out and size_of("all.png") == (2 * 7 + 4, 2 * 9 + 4)
    assert run(capsys, "render", "in.safetensors", "-o", "one.png", "--index", 1, "--size", "40x30")[0] == 0
    with Image.open("one.png") as image:
        pixels = torch.from_numpy(np.array(image)).float() / 255
    expected = make_stack()[1].render(40, 30)[0, 0].clamp(0, 1)
    assert float((pixels - expected).abs().max()) <= 0.5 / 255 + 1e-6


STATED = {"dwsnets": DWSNETS, "nfn": NFN, "siren-pytorch": SIREN_PYTORCH}


@pytest.mark.parametrize(("convention", "stated"), STATED.items())
def test_foreign_files_everywhere(place, editor, capsys, convention, stated):
    words = ("--convention", convention, "--size", 9)
    assert run(capsys, "render", "net7.pth", "-o", "a.png", *words)[0] == 0 and size_of("a.png") == (9, 9)
    assert run(capsys, "edit", "net7.pth", "-o", "a.safetensors", "--editor", editor, *words)[0] == 0
    assert load_inrs("a.safetensors").convention == stated
    code, out, _ = run(capsys, "info", "net7.pth", *words)
    assert code == 0 and ("row first" in out) == (stated.coordinates == "ij")
    code, out, _ = run(capsys, "check", "net7.pth", "--editor", editor, *words)
    assert code == 0 and out.count(" ok ") == 3


def test_info_of_inrs(place, capsys):
    stack = make_stack(
        label=torch.tensor([1, 1, 2]),
        split=torch.tensor([0, 0, 2]),
        psnr=torch.tensor([40.0, 41.0, 43.5]),
        provenance={"init": "siren"},
    )
    save_inrs(stack, "full.safetensors")
    _, out, _ = run(capsys, "info", "full.safetensors")
    for words in (
        "count       3",
        "2-6-5-1 (59 parameters each)",
        "9 x 7 pixels, 1 channel",
        "omega 30, column first (xy), image in [0, 1], 0.5 added",
        "40.00 to 43.50 dB, median 41.00",
        "train 2, validation 0, test 1",
        "2 classes",
        "init siren",
        "layer 1     6 -> 5, sine(omega 30): permutation of 5 neurons, sign flip, half-period shift",
        "layer 2     5 -> 1, linear output",
    ):
        assert words in out


@pytest.mark.parametrize("name", sorted(shipped()))
def test_info_of_everything_that_is_shipped(name, capsys):
    code, out, err = run(capsys, "info", name)
    config = load_checkpoint(name)[1]
    assert (code, err) == (0, "") and f"kind        {config['kind']}" in out and "parameters" in out
    assert set(config) - {"kind", "training"} <= {line.split()[0] for line in out.splitlines()}


def test_info_of_an_editor_and_a_weight_set(place, editor, capsys):
    _, out, _ = run(capsys, "info", editor)
    for words in ("operation   dilate", "gauge-gmn", "node_width 4", "do nothing 9.000e-02", "edited 3.000e-02"):
        assert words in out
    OneShotEditor(FlatMLP(FlatMLPConfig(WIDTHS, hidden=4)), "erode").save_pretrained("bare", "")
    assert "not recorded" in run(capsys, "info", "bare")[1]
    LearnedKFAC().save_pretrained("rule", "")
    assert "580 parameters" in run(capsys, "info", "rule")[1]
    stack = make_stack(index=torch.arange(3), split=torch.tensor([0, 1, 2]), psnr=torch.tensor([40.2, 40.4, 42.1]))
    save_weight_set("set", stack, torch.zeros(3, 1, 9, 7, dtype=torch.uint8))
    _, out, _ = run(capsys, "info", "set")
    assert "weight set" in out and "3 (train 1, validation 1, test 1)" in out and "40 to 43 dB" in out


def test_check(place, editor, capsys):
    code, out, _ = run(capsys, "check", "in.safetensors")
    lines = out.splitlines()
    questions = ["round trip", "identity edit", "equivariance", "reading"]
    assert code == 0 and [line.split("  ")[0] for line in lines[1:]] == questions
    mlp = OneShotEditor(FlatMLP(FlatMLPConfig(WIDTHS, hidden=4)), "erode").save_pretrained("mlp", "")
    code, out, _ = run(capsys, "check", "in.safetensors", "--editor", mlp, "--limit", 2)
    assert code == 1 and "2 of 3 INRs" in out and out.count(" ok ") == 2 and out.count("FAILED") == 1


def test_help_is_written_for_newcomers_and_answers_at_once():
    code = "import sys; from weightedit.cli.main import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    code += "print([m for m in ('torch', 'numpy') if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "one network is one image" in shown and shown.splitlines()[-1] == "[]"


def test_the_package_runs_as_a_module():
    words = [sys.executable, "-m", "weightedit", "--version"]
    assert (
        subprocess.run(words, capture_output=True, text=True, check=True).stdout
        == f"weightedit {weightedit.__version__}\n"
    )


def test_the_version_is_told(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0 and capsys.readouterr().out == f"weightedit {weightedit.__version__}\n"


@pytest.mark.parametrize("command", ["demo", "fit", "edit", "render", "info", "check"])
def test_every_command_has_help_with_an_example(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    out = capsys.readouterr().out
    assert stopped.value.code == 0 and f"example:\n  weightedit {command}" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["render", "x", "-o", "y.png", "--size", "28x"], "is no size"),
        (["demo", "--count", "0"], "at least 1"),
        (["fly"], "invalid choice"),
    ],
)
def test_words_that_cannot_be_read_are_refused_by_the_parser(words, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2 and message in capsys.readouterr().err


def _nan(place):
    import safetensors.torch
    from safetensors import safe_open

    with safe_open("in.safetensors", "pt") as file:
        header, tensors = file.metadata(), {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    tensors["layers.1.weight"][1, 0, 0] = torch.nan
    safetensors.torch.save_file(tensors, "in.safetensors", header)


class _Code:
    def __reduce__(self):
        return (open, ("executed", "w"))


def _truncate(place):
    whole = (place / "in.safetensors").read_bytes()
    (place / "in.safetensors").write_bytes(whole[: len(whole) // 2])


BAD = {
    "missing file": (None, "info none.safetensors", "there is no file or folder"),
    "missing picture": (None, "fit none.png -o out.safetensors", "there is no picture file"),
    "truncated": (_truncate, "check in.safetensors", "expected a complete safetensors file"),
    "pickle with code": (lambda p: torch.save(_Code(), "net7.pth"), "info net7.pth", "nothing was executed"),
    "unreadable image": (
        lambda p: (p / "digit0.png").write_bytes(b"\x89PNG no"),
        "fit digit0.png -o out.safetensors",
        "not a readable picture",
    ),
    "pictures of two sizes": (
        lambda p: Image.new("L", (5, 6)).save(p / "small.png"),
        "fit digit0.png small.png -o out.safetensors",
        "give --size and --channels",
    ),
    "split of pictures": (None, "fit digit0.png --split test -o out.safetensors", "--split test"),
    "two sets": (lambda p: (p / "a").mkdir(), "fit a digit0.png -o out.safetensors", "2 sources"),
    "impossible target": (None, "fit digit0.png --target-psnr -3 -o out.safetensors", "--target-psnr -3.0: expected"),
    "missing editor": (None, "edit in.safetensors --editor none -o out.safetensors", "a shipped one (cifar-contrast, "),
    "no editor in the folder": (
        lambda p: (p / "empty").mkdir(),
        "edit in.safetensors --editor empty -o out.safetensors",
        "cannot be read",
    ),
    "unknown operation": (
        lambda p: OneShotEditor(FlatMLP(FlatMLPConfig((2, 32, 32, 1), hidden=4)), "embolden").save_pretrained(
            p / "odd", ""
        ),
        "demo --editor odd -o out.png",
        "got an editor of 'embolden', which is known by examples alone; expected an operation, to measure by",
    ),
    "NaN weights": (_nan, "edit in.safetensors -o out.safetensors", "INR 1 has NaN"),
    "wrong size": (None, "info in.safetensors --size 28", "states the size (9, 7), but (28, 28)"),
    "wrong convention": (None, "check in.safetensors --convention nfn", "was given; expected the same"),
    "no convention": (None, "render net7.pth -o out.png", "pass --convention dwsnets, and --size 28x32"),
    "index out of range": (None, "render in.safetensors -o out.png --index 0 3", "expected 0 to 2"),
    "output without folder": (None, "render in.safetensors -o none/out.png", "existing, writable folder"),
    "output is a folder": (lambda p: (p / "out.png").mkdir(), "render in.safetensors -o out.png", "is a folder"),
    "output of another kind": (None, "render in.safetensors -o out.jpg", "written as .png"),
    "empty stack": (
        lambda p: save_inrs(make_stack(1)[:0], "in.safetensors"),
        "render in.safetensors -o out.png",
        "holds no INRs",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_one_line_for_everything_that_is_wrong(place, capsys, kind):
    prepare, words, message = BAD[kind]
    if prepare is not None:
        prepare(place)
    before = sorted(place.rglob("*"))
    code, _, err = run(capsys, *words.split())
    assert code == 2 and err.startswith("weightedit: ") and err.count("\n") == 1, err
    assert message in err
    assert sorted(place.rglob("*")) == before, "something was written"


@pytest.mark.parametrize(
    "words",
    [
        "fit digit0.png -o none/o.safetensors",
        "demo -o none/o.png",
        "edit in.safetensors -o o.safetensors --preview none/p.png",
    ],
)
def test_outputs_are_checked_before_the_work(place, capsys, monkeypatch, words):
    def work(*given, **named):
        raise AssertionError("the work has begun")

    monkeypatch.setattr("weightedit.cli.main._load_editor", work)
    monkeypatch.setattr("weightedit.cli.main._read_images", work)
    code, _, err = run(capsys, *words.split())
    assert code == 2 and "cannot be written" in err


def test_an_output_is_replaced_only_by_a_whole_one(place, editor, capsys, monkeypatch):
    (place / "out.safetensors").write_bytes(b"precious")

    def full(self, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    code, _, err = run(capsys, "edit", "in.safetensors", "--editor", editor, "-o", "out.safetensors")
    assert code == 2 and "No space left" in err and err.count("\n") == 1
    assert (place / "out.safetensors").read_bytes() == b"precious"
    assert not list(place.glob(".*"))


def test_a_reader_that_goes_away_is_no_error(place):
    code = "import sys; from weightedit.cli.main import main; sys.exit(main(['info', 'in.safetensors']))"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


def test_a_copy_without_checkpoints_steps_by_hand_and_says_so(place, capsys, monkeypatch):
    monkeypatch.setattr("weightedit.cli.main.shipped", dict)
    out = run(capsys, "edit", "in.safetensors", "--operation", "erode", "--steps", 2, "-o", "out.safetensors")[1]
    assert "rule   K-FAC, numbers set by hand: refine-rule is not in this copy of weightedit" in out
    expected = refine(make_stack(), target_of("erode", make_stack()), 2, rule=KFAC())
    found = load_inrs("out.safetensors").params
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.params.items())


STEPS = ("--steps", 3, "--rule", "kfac", "-o", "out.safetensors")


def test_edits_follow_each_other_and_the_file_remembers_all(place, editor, capsys):
    words = ("--operation", "blur", "--operation", "invert", "--widen", 2, "--preview", "sheet.png", *STEPS)
    code, out, err = run(capsys, "edit", "in.safetensors", *words)
    assert (code, err) == (0, "") and "MSE    against blur" in out and "MSE    against invert" in out
    blurred = edit_inrs(make_stack(), "blur", steps=3, widen=2, rule=KFAC())
    expected = refine(blurred, target_of("invert", blurred), 3, rule=KFAC())
    found = load_inrs("out.safetensors")
    assert all(torch.equal(found.params[name], tensor) for name, tensor in expected.params.items())
    history = "blur (3 steps, 2 times as wide), then invert (3 steps)"
    assert told(found) == history and size_of("sheet.png")[0] > 400
    words = ("--editor", editor, "--operation", "dilate", "--operation", "dilate", "--raw", "-o", "again.safetensors")
    assert run(capsys, "edit", "out.safetensors", *words)[0] == 0
    found, judge = load_inrs("again.safetensors"), OneShotEditor.from_pretrained(editor)
    assert told(found) == f"{history}, then dilate (tiny), then dilate (tiny)"
    expected = judge.unguarded(judge.unguarded(load_inrs("out.safetensors")))
    assert all(torch.equal(found.params[name], tensor) for name, tensor in expected.params.items())


def test_pictures_are_stepped_to(place, capsys):
    aims = [Image.fromarray(np.full((9, 7), level, dtype=np.uint8)) for level in (51, 102, 204)]
    for level, picture in enumerate(aims):
        picture.save(f"aim{level}.png")
    for names, levels in ((["aim1.png"], [0.4] * 3), (["aim0.png", "aim1.png", "aim2.png"], [0.2, 0.4, 0.8])):
        code, out, err = run(capsys, "edit", "in.safetensors", "--target", *names, *STEPS, "--preview", "sheet.png")
        assert (code, err) == (0, "") and f"MSE    against {', '.join(names)}: " in out
        found = load_inrs("out.safetensors")
        flat = torch.tensor(levels).view(3, 1, 1, 1).expand(3, 1, 9, 7)
        expected = refine(make_stack(), flat, 3, rule=KFAC()).params
        assert all(torch.equal(found.params[name], tensor) for name, tensor in expected.items())
        assert told(found) == f"{', '.join(names)} (3 steps)"


def test_two_inrs_are_mixed(place, capsys):
    """Halfway between what the INRs render and what another one does, which may be wider."""
    other = INRStack(initial_params(1, (2, 9, 9, 1), generator=torch.Generator().manual_seed(4)), Convention(), 5, 4)
    save_inrs(other, "other.safetensors")
    code, _, err = run(capsys, "edit", "in.safetensors", "--target", "other.safetensors", "--strength", 0.5, *STEPS)
    assert (code, err) == (0, "")
    stack, found = make_stack(), load_inrs("out.safetensors")
    wanted = stack.render().clamp(0, 1).lerp(other.render(9, 7).clamp(0, 1), 0.5)
    expected = refine(stack, wanted, 3, rule=KFAC())
    torch.testing.assert_close(found.render(), expected.render(), rtol=0, atol=1e-4)
    assert told(found) == "other.safetensors (3 steps, strength 0.5)"


def test_outside_the_mask_an_inr_stays(place, capsys):
    inside = torch.zeros(9, 7)
    inside[:, :3] = 1
    Image.fromarray((255 * inside).byte().numpy()).save("mask.png")
    words = ("--operation", "invert", "--mask", "mask.png", "--steps", 20, "-o", "out.safetensors")
    assert run(capsys, "edit", "in.safetensors", *words)[0] == 0
    stack, found = make_stack(), load_inrs("out.safetensors")
    wanted = torch.where(inside.bool(), target_of("invert", stack), target_of("identity", stack))
    expected = refine(stack, wanted, 20)
    for name, tensor in expected.params.items():
        torch.testing.assert_close(found.params[name], tensor, rtol=1e-4, atol=1e-5)
    assert told(found) == "invert (20 steps, inside mask.png)"


def test_refine_needs_no_editor(place, capsys):
    save_inrs(make_stack(), "in.safetensors")
    code, out, err = run(
        capsys, "edit", "in.safetensors", "--operation", "erode", "--rule", "kfac", "-o", "out.safetensors"
    )
    assert (code, err) == (0, "") and "rule   K-FAC" in out
    expected = refine(make_stack(), target_of("erode", make_stack()), 10, rule=KFAC())
    found = load_inrs("out.safetensors")
    assert all(torch.equal(found.params[name], tensor) for name, tensor in expected.params.items())
    assert told(found) == "erode (10 steps)"


def test_a_function_of_ones_own_is_an_operation(place, capsys):
    save_inrs(make_stack(), "in.safetensors")
    Path("mine.py").write_text("def flip(images):\n    return images.flip(-1)\n")
    words = ("--operation", "mine.py:flip", "--refine", 3, "--rule", "kfac", "--preview", "sheet.png")
    code, out, err = run(capsys, "edit", "in.safetensors", *words, "-o", "out.safetensors")
    assert (code, err) == (0, "") and "MSE    against flip" in out and Path("sheet.png").stat().st_size


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("f = lambda images: 1 / 0", "operation '<lambda>' raised ZeroDivisionError (division by zero)"),
        ("def f(images):\n    return f(images)", "raised RecursionError"),
        ("def f():\n    pass", "raised TypeError (f() takes 0 positional arguments but 1 was given)"),
        ("f = lambda images: images.repeat(2, 1, 1, 1)", "returned torch.float32 (6, 1, 9, 7)"),
        ("import sys\nf = lambda images: sys.exit(0)", "raised SystemExit (0)"),
        ("import sys\nsys.exit(0)", "mine.py could not be run: SystemExit (0)"),
        ("def g():\n    g()\ng()", "mine.py could not be run: RecursionError"),
        ("import nowhere", "mine.py could not be run: ModuleNotFoundError"),
    ],
)
def test_what_a_function_of_ones_own_does_wrong_is_one_line(place, capsys, body, message):
    Path("mine.py").write_text(body)
    words = ("--operation", "mine.py:f", "--rule", "kfac", "--preview", "sheet.png", "-o", "out.safetensors")
    before = sorted(place.rglob("*"))
    code, _, err = run(capsys, "edit", "in.safetensors", *words)
    assert code == 2 and message in err and err.count("\n") == 1, err
    assert sorted(place.rglob("*")) == before, "something was written"


def test_a_function_of_ones_own_is_called_once(place, capsys):
    Path("mine.py").write_text(
        "calls = []\ndef f(images):\n    calls.append(1)\n    return images / (2 - len(calls))\n"
    )
    words = ("--operation", "mine.py:f", "--rule", "kfac", "--preview", "sheet.png", "-o", "out.safetensors")
    assert run(capsys, "edit", "in.safetensors", *words)[0] == 0 and Path("sheet.png").stat().st_size


@pytest.mark.parametrize(
    "words",
    [
        ("demo", "--editor", ""),
        ("demo", "--operation", ""),
        ("edit", "in.safetensors", "-o", "out.safetensors", "--editor", " "),
        ("edit", "in.safetensors", "-o", "out.safetensors", "--operation", ""),
        ("edit", "in.safetensors", "-o", "out.safetensors", "--operation", "dilate", "--rule", ""),
        ("edit", "in.safetensors", "-o", "out.safetensors", "--operation", "dilate", "--preview", ""),
        ("fit", "digit0.png", "", "-o", "out.safetensors"),
        ("info", ""),
    ],
)
def test_empty_words_are_refused(place, capsys, words):
    before = sorted(place.rglob("*"))
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "") and "got an empty" in err and "expected a value" in err and err.count("\n") == 1
    assert sorted(place.rglob("*")) == before, "something was written"


@pytest.mark.parametrize(
    ("words", "what"),
    [
        ("fit digit0.png --hidden 1000000 1000000 -o out.safetensors", "2-1000000-1000000-1 to 1 image of 28 x 28"),
        ("fit digit0.png --size 1000000 -o out.safetensors", "one picture of 1000000 x 1000000"),
        ("edit in.safetensors --operation invert --widen 1000000 -o out.safetensors", "3 INRs 1000000 times as wide"),
        ("edit net7.pth --convention dwsnets --size 1000000 --operation invert -o out.safetensors", "1 picture of"),
        ("render in.safetensors --size 1000000 -o out.png", "3 pictures of 1000000 x 1000000"),
        ("check net7.pth --convention dwsnets --size 1000000", "1 picture of 1000000 x 1000000"),
    ],
)
def test_what_no_machine_can_hold_is_refused_before_it_is_tried(place, capsys, words, what):
    before = sorted(place.rglob("*"))
    code, _, err = run(capsys, *words.split())
    assert code == 2 and err.count("\n") == 1 and what in err and "GB of this machine: choose" in err, err
    assert sorted(place.rglob("*")) == before, "something was written"


def test_strength_goes_from_nothing_to_beyond(place, capsys):
    save_inrs(make_stack(), "in.safetensors")
    before, means = make_stack().render().mean(), []
    for strength in (0, 0.5, 1, 2):
        words = ("--operation", "invert", "--strength", strength, "--rule", "kfac", "--preview", "sheet.png")
        assert run(capsys, "edit", "in.safetensors", *words, "-o", "out.safetensors")[0] == 0
        means.append(float((load_inrs("out.safetensors").render().mean() - before).abs()))
        if strength == 0:
            found = load_inrs("out.safetensors").params
            assert all(torch.equal(found[name], tensor) for name, tensor in make_stack().params.items())
    assert means == sorted(means) and means[0] == 0.0


def test_edit_then_refine_with_a_learned_rule(place, editor, capsys):
    save_inrs(make_stack(), "in.safetensors")
    rule = LearnedKFAC().save_pretrained("rule", "# card")
    words = ("--editor", editor, "--refine", 2, "--rule", rule, "-o", "out.safetensors")
    code, out, err = run(capsys, "edit", "in.safetensors", *words)
    assert (code, err) == (0, "") and f"rule   {rule}" in out
    expected = OneShotEditor.from_pretrained(editor)(make_stack(), steps=2, rule=LearnedKFAC())
    found = load_inrs("out.safetensors")
    for name, tensor in expected.params.items():
        torch.testing.assert_close(found.params[name], tensor, rtol=1e-4, atol=1e-5)
    assert told(found) == "dilate (tiny, 2 steps)"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--operation erode --editor mnist-dilate", "this editor knows dilate"),
        ("--widen 2 --editor mnist-dilate", "got --widen 2 for an editor of kind 'editor'; expected only rule, steps"),
        ("--operation nothing", "there is no operation 'nothing'"),
        ("--operation dilate --operation nothing", "there is no operation 'nothing'"),
        ("--target digit0.png --operation erode", "got --target with --operation; expected steps alone there"),
        ("--target digit0.png --editor mnist-dilate", "got --target with --editor"),
        ("--target digit0.png --strength -1", "got strength -1.0; expected finite numbers of at least 0"),
        ("--target two.safetensors", "got 2 INRs from 2 inputs to 1 outputs with --target for 3 from 2 to 1"),
        ("--target digit0.png digit1.png", "got 2 pictures with --target for 3 INRs; expected one for all, or one"),
        ("--target none.png", "there is no picture file 'none.png'"),
        ("--mask digit0.png", "got --mask without what to do there; expected --operation or --target"),
        ("--mask digit0.png --editor mnist-dilate --operation dilate", "got --mask with --editor"),
        ("--operation absent.py:f", "absent.py could not be run"),
        ("--operation empty.py:f", "empty.py has no function 'f'"),
        ("--operation dilate --steps -1", "got --steps -1"),
        ("--operation dilate --strength -1", "strength -1.0"),
        ("--strength 0.5 --editor mnist-dilate", "got --strength 0.5 for an editor of kind 'editor'"),
        ("--operation dilate --rule none", "the name of a shipped one"),
        ("--editor mnist-dilate --rule kfac", "--rule without steps"),
    ],
)
def test_wrong_words_of_refinement(place, capsys, words, message):
    save_inrs(make_stack(), "in.safetensors")
    save_inrs(make_stack()[:2], "two.safetensors")
    Path("empty.py").write_text("")
    code, _, err = run(capsys, "edit", "in.safetensors", *words.split(), "-o", "out.safetensors")
    assert code == 2 and message in err and err.count("\n") == 1
    assert not Path("out.safetensors").exists()


@pytest.fixture(scope="module")
def predictive(tmp_path_factory):
    """A folder with a small predictive editor of two operations, untrained."""
    torch.manual_seed(0)
    built = PredictiveEditor(Predictor(PredictorConfig(("dilate", "invert"), width=4)), LearnedKFAC(), 2)
    figures = {"dilate 1": {"do nothing": 0.1, "predicted picture": 0.1, "edited": 0.05}}
    return str(built.save_pretrained(tmp_path_factory.mktemp("editors") / "two", "# two\n", {"figures": figures}))


def test_an_editor_by_examples_is_judged_by_nothing(place, tmp_path, capsys):
    built = PredictiveEditor(Predictor(PredictorConfig(("mine",), width=4)), LearnedKFAC(), 2)
    save_inrs(make_stack(), "in.safetensors")
    words = ("--editor", str(built.save_pretrained(tmp_path / "one", "# one\n")), "-o", "out.safetensors")
    code, out, err = run(capsys, "edit", "in.safetensors", *words, "--preview", "sheet.png")
    assert (code, err) == (0, "") and "judged by nothing, since mine is known by examples alone" in out
    assert "MSE" not in out and Path("sheet.png").stat().st_size


def test_a_predictive_editor_everywhere(place, predictive, capsys):
    save_inrs(make_stack(), "in.safetensors")
    words = ("--editor", predictive, "--operation", "invert", "--strength", 0.5, "--widen", 2, "--refine", 3)
    code, out, err = run(capsys, "edit", "in.safetensors", *words, "-o", "out.safetensors", "--preview", "sheet.png")
    assert (code, err) == (0, "") and "dilate, invert, predictive, 2 steps" in out and Path("sheet.png").stat().st_size
    found = load_inrs("out.safetensors")
    expected = PredictiveEditor.from_pretrained(predictive)(make_stack(), "invert", strength=0.5, steps=3, widen=2)
    assert all(torch.equal(found.params[name], tensor) for name, tensor in expected.params.items())
    assert told(found) == "invert (two, 3 steps, strength 0.5, 2 times as wide)"
    code, out, err = run(capsys, "check", "in.safetensors", "--editor", predictive, "--limit", 2)
    assert (code, err) == (0, "") and "predictive, 2 steps, dilate" in out
    code, out, err = run(capsys, "info", predictive)
    assert (code, err) == (0, "") and "dilate, invert" in out and "5.000e-02" in out
    code, out, err = run(capsys, "demo", "--editor", predictive, "--operation", "invert", "--count", 2)
    assert (code, err) == (0, "") and "against invert of the image" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "got no operation; this editor knows dilate, invert"),
        ("--operation erode", "this editor knows dilate, invert"),
        ("--operation dilate --strength 2", "expected 0 (nothing) to 1"),
        ("--operation dilate --rule kfac", "got --rule <KFAC> for an editor of kind 'predictive editor'"),
        ("--operation dilate --refine -1", "got --steps -1"),
    ],
)
def test_wrong_words_with_a_predictive_editor(place, predictive, capsys, words, message):
    save_inrs(make_stack(), "in.safetensors")
    given = ("--editor", predictive, *words.split())
    code, _, err = run(capsys, "edit", "in.safetensors", *given, "-o", "out.safetensors")
    assert code == 2 and message in err and err.count("\n") == 1
    assert not Path("out.safetensors").exists()


def test_widen_without_an_editor(place, capsys):
    save_inrs(make_stack(), "in.safetensors")
    words = ("--operation", "invert", "--widen", 3, "--rule", "kfac", "--preview", "sheet.png")
    assert run(capsys, "edit", "in.safetensors", *words, "-o", "out.safetensors")[0] == 0
    given, wide = make_stack().widths, load_inrs("out.safetensors").widths
    assert wide == (given[0], *(3 * n for n in given[1:-1]), given[-1])


def test_preview_is_refused_before_the_work(place, editor, capsys):
    save_inrs(INRStack(initial_params(2, (2, 6, 2)), Convention(), 8, 8), "two.safetensors")
    words = ("--operation", "invert", "--preview", "sheet.png", "-o", "out.safetensors")
    code, _, err = run(capsys, "edit", "two.safetensors", *words)
    assert code == 2 and "draws 1 or 3" in err and not Path("out.safetensors").exists()


def test_advice_names_options_and_no_keywords_of_python() -> None:
    """Whatever the library tells one to pass, the command line has: so a new message cannot forget it."""
    parser = build_parser()
    commands = next(action.choices for action in parser._actions if isinstance(action.choices, dict)).values()
    known = {action.dest for command in commands for action in command._actions}
    advice, package = set(), Path(arguments.__file__).parents[1]
    for path in (path for folder in ("data", "inr", "editing", "files") for path in (package / folder).glob("*.py")):
        for text in (node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)):
            advice |= set(re.findall(r"\bpass (\w+)=", text)) if isinstance(text, str) else set()
    advice -= {"overwrite"}  # no command writes weight sets
    assert {"size", "columns", "convention"} <= advice
    assert {arguments.OPTIONS.get(name, name) for name in advice} <= known


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("pass size=(height, width), or", "pass --size 28x32 (height x width), or"),
        ("pass size=(28, 32) and channels=1.", "pass --size 28x32 and --channels 1."),
        ("pass columns=(image, label), or", "pass --columns image label, or"),
        ("target_psnr=-3.0: expected", "--target-psnr -3.0: expected"),
        ("pass widths=(2, 8, 1).", "pass --hidden 2 8 1."),
        ("has momentum=nan: expected", "has momentum=nan: expected"),
        ("pass overwrite=True.", "pass overwrite=True. (overwrite: in Python alone.)"),
    ],
)
def test_keywords_become_options(message, words) -> None:
    options = build_parser().parse_args(["fit", "a.png", "-o", "b.safetensors"])
    assert in_own_words(message, options) == words


def test_conventions_that_have_a_name_are_said_by_it() -> None:
    options = build_parser().parse_args(["info", "net.pth"])
    for family in STATED:
        assert f"pass --convention {family}" in in_own_words(suggestion(family), options)
    assert "pass --convention coin" in in_own_words(suggestion("coin"), options)
    assert "siren-pytorch, with --last sigmoid where one ends it" in in_own_words(suggestion("siren-pytorch"), options)
    assert "pass --convention plain, and what differs from it by --omega" in in_own_words(
        suggestion("unknown"), options
    )
    assert set(STATED) < set(NAMED)
