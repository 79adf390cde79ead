"""`weightedit edit --undo`: files edited and undone hold what they held, to the bit, and what cannot be says so."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from weightedit.cli.main import main
from weightedit.data.inr_files import load_inrs, save_inrs
from weightedit.inr import history
from weightedit.inr.convention import Convention
from weightedit.inr.siren import initial_params
from weightedit.inr.stack import INRStack


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An own working directory with two INRs."""
    monkeypatch.chdir(tmp_path)
    params = initial_params(2, (2, 6, 5, 1), generator=torch.Generator().manual_seed(2))
    save_inrs(INRStack(params, Convention(), 9, 7, psnr=torch.tensor([40.0, 41.0])), "inrs.safetensors")
    return tmp_path


def run(capsys, words):
    code = main(words.split())
    out, err = capsys.readouterr()
    return code, out, err


def contents(path):
    """All that a safetensors file holds; the order of its header is left to chance by safetensors."""
    with safe_open(path, "pt") as file:
        return file.metadata(), {name: file.get_tensor(name).numpy().tobytes() for name in file.keys()}  # noqa: SIM118


EDIT = "edit inrs.safetensors -o inrs.safetensors --rule kfac --steps 1 --operation"
UNDO = "edit inrs.safetensors -o inrs.safetensors --undo"


def test_chained_edits_are_undone_one_by_one_to_the_bit(place, capsys):
    files, path = [], Path("inrs.safetensors")
    assert "history     no edit, nothing to undo" in run(capsys, "info inrs.safetensors")[1]
    for words in ("invert --widen 2", "blur --operation dilate", "erode --strength 0"):
        files.append(contents(path))
        assert run(capsys, f"{EDIT} {words}")[0] == 0
    out = run(capsys, "info inrs.safetensors")[1]
    for told in (
        "history     1 invert (1 steps, 2 times as wide)",
        " 4 erode (strength 0)",
        "the last 4 of 4 by edit --undo",
    ):
        assert told in out
    assert f"take {sum(edit.size for edit in load_inrs(path).history) / 1e3:,.1f} kB" in out
    for left, told in ((3, "erode"), (2, "dilate"), (1, "blur"), (0, "invert")):
        code, out, err = run(capsys, f"{UNDO} --preview sheet.png")
        assert (code, err) == (0, "") and f"undone {told} (" in out and f"; {left} more can be undone" in out
        if told != "dilate":
            assert contents(path) == files.pop()
    assert Path("sheet.png").stat().st_size and not files
    code, _, err = run(capsys, UNDO)
    assert code == 2 and "got INRs without a history" in err and err.count("\n") == 1


def test_what_is_not_kept_is_said_at_the_edit_in_info_and_at_the_undo(place, capsys, monkeypatch):
    monkeypatch.setattr(history, "BYTES", 1)
    code, out, err = run(capsys, f"{EDIT} invert")
    assert (code, err) == (0, "") and "undo   not kept: the weights before take more than 64 MB; keep the file" in out
    assert "undo        0 of 1, no former weights kept" in run(capsys, "info inrs.safetensors")[1]
    code, _, err = run(capsys, UNDO)
    assert code == 2 and "whose last edit (invert (1 steps)) kept no former weights" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "words", ["--operation blur", "--steps 3", "--strength 0.5", "--widen 2", "--raw", "--target a.png"]
)
def test_an_undo_does_nothing_else(place, capsys, words):
    code, _, err = run(capsys, f"{UNDO} {words}")
    assert code == 2 and f"got --undo with {words.split()[0]}; expected it alone" in err and err.count("\n") == 1
