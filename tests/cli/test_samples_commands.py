"""The commands on sounds and other samples: what they write and say, and one line for what is wrong."""

import wave
from pathlib import Path

import numpy as np
import pytest
import torch

import weightedit as we
from weightedit.cli.main import main
from weightedit.data.inr_files import load_inrs, save_inrs
from weightedit.data.sample_files import load_samples, save_points, save_sound
from weightedit.data.video_files import save_clip
from weightedit.editing.evaluation import sample_errors
from weightedit.editing.refinement import samples_of
from weightedit.editing.sample_fitting import fit_samples
from weightedit.inr.samples import Samples

RATE = 500


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A sound, a ball's distances, a clip of a ball that moves, and an INR of each."""
    folder = tmp_path_factory.mktemp("samples")
    time = torch.arange(RATE) / RATE
    save_sound((0.6 * torch.sin(60 * time) * torch.exp(-2 * time)).unsqueeze(1), RATE, folder / "tone.wav")
    where = 2 * torch.rand(300, 3, generator=torch.Generator().manual_seed(0)) - 1
    save_points(Samples(where, where.norm(dim=1, keepdim=True) - 0.5), folder / "ball.npz")
    along, at = torch.linspace(-1, 1, 10), torch.linspace(-0.5, 0.5, 8).view(8, 1, 1)
    clip = torch.sigmoid(8 * (0.5 - (along.view(1, 10, 1).square() + (along - at).square()).sqrt())).unsqueeze(-1)
    save_clip(clip, folder / "move.webp", {"durations": "40", "loop": "0"})
    for name in ("tone.wav", "ball.npz", "move.webp"):
        words = ["fit", str(folder / name), "-o", str(folder / Path(name).with_suffix(".safetensors"))]
        assert main([*words, "--hidden", "12", "12", "--max-steps", "40", "--target-psnr", "35"]) == 0
    return folder


@pytest.fixture
def place(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in files.iterdir():
        Path(path.name).write_bytes(path.read_bytes())


def run(capsys, words):
    code = main(words.split())
    out, err = capsys.readouterr()
    return code, out, err


def test_fit_is_that_of_the_library_and_says_what_it_does(place, capsys):
    words = "fit tone.wav tone.wav -o out.safetensors --hidden 12 --max-steps 3 --seed 4"
    code, out, err = run(capsys, words)
    assert (code, err) == (
        0,
        "",
    ) and f"fits   2 of {RATE:,} samples of 1 at {RATE} Hz by 1-12-1, first frequency 62.5 (by" in out
    assert "to 50 dB, in at most 3 steps" in out and "missed 50 dB and kept: 2 of 2, index 0 (" in out and "SNR" in out
    samples, found = load_samples(["tone.wav", "tone.wav"])[0], load_inrs("out.safetensors")
    expected = fit_samples(samples, hidden=(12,), max_steps=3, generator=torch.Generator().manual_seed(4)).stack
    assert all(torch.equal(found.params[name], tensor) for name, tensor in expected.params.items())
    assert found.convention == expected.convention and found.provenance["rate"] == str(RATE)
    code, out, _ = run(capsys, f"{words} --drop-missed")
    assert code == 1 and "out.safetensors was not written: no INR is left" in out
    stated = "--convention plain --omega 20 --coordinates xy,-2..2"
    assert run(capsys, f"fit ball.npz -o out.safetensors --hidden 8 --max-steps 1 {stated},-1..1,-1..1")[0] == 0
    found = load_inrs("out.safetensors").convention
    assert found.omega == 20 and not found.bounded and found.ranges[0] == (-2.0, 2.0)


def test_a_sound_is_rendered_at_any_rate_and_anything_on_a_grid(place, capsys):
    inrs = load_inrs("tone.safetensors")
    assert run(capsys, "render tone.safetensors -o same.wav")[1] == f"wrote  same.wav: {RATE} samples at {RATE} Hz\n"
    same, facts = load_samples(["same.wav"])
    assert facts == {"rate": str(RATE)} and float((same.values - inrs.at()).abs().max()) <= 0.5 / 2**15 + 1e-6
    assert (
        f"{2 * RATE:,} samples at {2 * RATE:,} Hz"
        in run(capsys, f"render tone.safetensors -o fine.wav --rate {2 * RATE}")[1]
    )
    with wave.open("fine.wav") as file:
        assert (file.getnframes(), file.getframerate()) == (2 * RATE, 2 * RATE)
    for name, words, shape in (("tone", "--size 9", (9,)), ("ball", "", (7, 7, 7)), ("ball", "--size 2x3", (2, 2, 3))):
        code, out, err = run(capsys, f"render {name}.safetensors -o grid.npz {words}")
        assert (code, err) == (0, "") and f"at {' x '.join(map(str, shape))} places" in out
        found = load_samples(["grid.npz"])[0]
        assert found.count == np.prod(shape)
        torch.testing.assert_close(found.values, load_inrs(f"{name}.safetensors").at(found.coordinates))


def test_a_clip_is_rendered_with_any_number_of_frames_at_any_size(place, capsys):
    inrs, clip = load_inrs("move.safetensors"), load_samples(["move.webp"])[0]
    assert inrs.shape == clip.grid == (8, 10, 10) and float(inrs.psnr) > 30
    assert {name: inrs.provenance[name] for name in ("frames", "durations", "loop")} == load_samples(["move.webp"])[1]
    for suffix in ("gif", "webp", "apng"):
        code, out, err = run(capsys, f"render move.safetensors -o same.{suffix}")
        assert (code, err, out) == (0, "", f"wrote  same.{suffix}: 8 frames of 10 x 10\n")
        same, facts = load_samples([f"same.{suffix}"])
        assert float((same.values - inrs.at().clamp(0, 1)).abs().max()) <= 0.5 / 255 + 1e-5
        assert facts == {"frames": "8", "durations": "40", "loop": "0"}
    code, out, err = run(capsys, "render move.safetensors -o fine.webp --frames 15 --size 12x20")
    assert (code, err) == (0, "") and "15 frames of 12 x 20" in out
    fine, facts = load_samples(["fine.webp"])
    assert fine.grid == (15, 12, 20) and facts["durations"] == "21"
    assert run(capsys, "render move.safetensors -o a.npz --frames 3")[0] == 0
    assert load_samples(["a.npz"])[0].count == 3 * 10 * 10


def test_a_clip_is_edited_checked_and_told_of(place, capsys):
    Path("mine.py").write_text("def negative(values):\n    return 1 - values\n")
    code, out, err = run(capsys, "edit move.safetensors --operation mine.py:negative --steps 4 -o negative.safetensors")
    assert (code, err) == (0, "") and "MSE    against negative of the INRs' own renderings: " in out
    code, out, err = run(capsys, "edit negative.safetensors --target move.webp --steps 4 -o back.safetensors")
    back, clip = load_inrs("back.safetensors"), load_samples(["move.webp"])[0]
    assert (code, err) == (0, "") and back.shape == (8, 10, 10)
    assert float(sample_errors(back, clip)) < float(sample_errors(load_inrs("negative.safetensors"), clip))
    code, out, err = run(capsys, "check move.safetensors --image move.webp")
    assert (code, err) == (0, "") and "dB against 1 set of samples" in out
    assert "of 3 inputs, 1 channel, on a grid of 8 x 10 x 10 by" in run(capsys, "info move.safetensors")[1]
    words = "fit move.webp -o small.safetensors --size 4x6 --channels 3 --hidden 6 --max-steps 1"
    code, out, _ = run(capsys, words)
    assert code == 0 and "192 samples of 3 (8 x 4 x 6) by 3-6-3" in out and "to 30 dB" in out
    assert load_inrs("small.safetensors").shape == (8, 4, 6)


def test_edits_by_a_function_of_values_and_to_samples_are_the_librarys_and_undone(place, capsys):
    Path("mine.py").write_text("def softer(values):\n    return values / 2\n")
    given = load_inrs("tone.safetensors")
    code, out, err = run(capsys, "edit tone.safetensors --operation mine.py:softer --steps 4 -o soft.safetensors")
    assert (
        (code, err) == (0, "") and "MSE    against softer of the INRs' own renderings: " in out and "dB     0: " in out
    )
    soft, expected = load_inrs("soft.safetensors"), we.edit(given, lambda values: values / 2, steps=4)
    assert all(torch.equal(soft.params[name], tensor) for name, tensor in expected.params.items())
    half = samples_of(lambda values: values / 2, given)
    assert float(sample_errors(soft, half)) < 0.1 * float(sample_errors(given, half))
    code, out, err = run(capsys, "edit soft.safetensors --target tone.wav --steps 4 -o back.safetensors")
    assert (code, err) == (0, "") and "MSE    against tone.wav: " in out
    back, sound = load_inrs("back.safetensors"), load_samples(["tone.wav"])[0]
    assert float(sample_errors(back, sound)) < float(sample_errors(soft, sound))
    assert [edit.told for edit in back.history] == ["softer (4 steps)", "tone.wav (4 steps)"]
    assert run(capsys, "edit back.safetensors --undo -o back.safetensors")[0] == 0
    found = load_inrs("back.safetensors")
    assert all(torch.equal(found.params[name], tensor) for name, tensor in soft.params.items())


def test_check_and_info_need_no_picture_and_use_one_that_is_given(place, capsys):
    for name in ("tone", "ball"):
        code, out, err = run(capsys, f"check {name}.safetensors")
        assert (code, err) == (0, "") and out.count(" ok ") == 3 and "reading        unsure  values " in out
    assert "samples     of 3 inputs, 1 channel, on a grid of 7 x 7 x 7 by" in run(capsys, "info ball.safetensors")[1]
    assert "values of any size" in run(capsys, "info tone.safetensors")[1]
    code, out, _ = run(capsys, "check tone.safetensors --image tone.wav")
    assert code == 0 and "dB against 1 set of samples" in out
    inrs = load_inrs("tone.safetensors")
    wrong = we.Convention(omega=inrs.convention.omega, offset=0.0, last="sine", bounded=False)
    save_inrs(we.INRStack(inrs.params, wrong, inrs.height, inrs.width), "wrong.safetensors")
    code, out, _ = run(capsys, "check wrong.safetensors --image tone.wav")
    assert code == 1 and "with --last linear" in out


WRONG = {
    "fit tone.wav --size 3 -o o.safetensors": "got --size with samples; expected it with pictures",
    "fit tone.wav --method adam -o o.safetensors": "got --method with samples",
    "fit tone.wav --seed 100000000000000000000 -o o.safetensors": "--seed 100000000000000000000",
    "fit tone.wav --target-psnr -3 -o o.safetensors": "--target-psnr -3.0: expected a positive number",
    "fit tone.wav digit.png -o o.safetensors": "of one kind: give them apart",
    "fit none.npz -o o.safetensors": "none.npz cannot be read",
    "fit move.webp --limit 3 -o o.safetensors": "got --limit with samples; expected it with pictures",
    "render ball.safetensors -o o.wav": "got 1 INRs of 3 inputs and 1 outputs for o.wav; expected one sound",
    "render tone.safetensors -o o.gif": "got 1 INRs of 1 inputs and 1 outputs for o.gif; expected one clip",
    "render tone.safetensors -o o.npz --frames 3": "got --frames for INRs of 1 inputs; expected 3",
    "render tone.safetensors -o o.wav --frames 3": "got --frames with o.wav; expected it with a .gif or .webp or .apng",
    "render tone.safetensors -o o.wav --size 3": "got --size for o.wav; expected --rate in its place",
    "render tone.safetensors -o o.png": "got INRs of 1 inputs for o.png; expected pictures, of 2: name a .wav, .npz",
    "render square.safetensors -o o.png --frames 3": "got --frames with o.png; expected it with a .gif",
    "render tone.safetensors -o o.npz --rate 3": "got --rate with o.npz; expected it with a .wav",
    "render square.safetensors -o o.png --rate 3": "got --rate with o.png; expected it with a .wav",
    "render bare.safetensors -o o.wav": "got INRs that state no rate for o.wav; expected one: give --rate HZ",
    "edit tone.safetensors --operation blur -o o.safetensors": "for operation 'blur'; expected pictures",
    "edit tone.safetensors -o o.safetensors": "for an editor; expected pictures",
    "edit tone.safetensors --target ball.npz -o o.safetensors": "from 3 inputs to 1 outputs for 1 from 1 to 1",
    "edit tone.safetensors --target tone.wav --mask a.png -o o.safetensors": "got --mask with INRs of samples",
    "edit tone.safetensors --target tone.wav --preview a.png -o o.safetensors": "got --preview for INRs of samples",
    "check tone.safetensors --image ball.npz": "from 3 inputs to 1 outputs for 1 from 1 to 1",
}


@pytest.mark.parametrize("words", WRONG)
def test_one_line_for_what_is_wrong(place, capsys, words):
    inrs = load_inrs("tone.safetensors")
    save_inrs(we.INRStack(inrs.params, inrs.convention, 1, 9), "bare.safetensors")
    save_inrs(we.fit(torch.rand(1, 1, 4, 4), [4], seed=0, max_steps=1), "square.safetensors")
    code, _, err = run(capsys, words)
    assert code == 2 and WRONG[words] in err and err.count("\n") == 1, err
    assert not list(Path().glob("o.*"))
