"""Weights written back under the user's own names: what was read comes back bit for bit, all else stays as it was."""

import dataclasses

import pytest
import safetensors
import safetensors.torch
import torch

from tests.data.test_layer_names import NAMES, named, network
from weightedit.cli.main import main
from weightedit.data.inr_files import load_inrs, save_inrs
from weightedit.data.like import save_like
from weightedit.errors import FileFormatError, ParamsError
from weightedit.inr.convention import NFN, SIREN_PYTORCH

SIZE = (6, 6)


def equal(one, other) -> bool:
    """Of nested contents, also in their order."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other) and one.dtype == other.dtype
    if isinstance(one, dict):
        return list(one) == list(other) and all(equal(one[key], other[key]) for key in one)
    return one == other


@pytest.mark.parametrize("code", NAMES)
def test_what_was_read_is_written_back(tmp_path, code):
    content = {"model": named(NAMES[code]), "optimizer": {"state": {0: {"step": torch.tensor(3)}}}, "epoch": 7}
    torch.save(content, tmp_path / "a.pth")
    stack = load_inrs(tmp_path / "a.pth", SIREN_PYTORCH, size=SIZE)
    save_like(stack, tmp_path / "b.pth", tmp_path / "a.pth")
    assert equal(torch.load(tmp_path / "b.pth", weights_only=True), content)
    edited = stack.with_params({name: tensor + 1 for name, tensor in stack.params.items()})
    save_like(edited, tmp_path / "b.pth", tmp_path / "a.pth")
    written = torch.load(tmp_path / "b.pth", weights_only=True)
    for name, tensor in content["model"].items():
        assert torch.equal(written["model"][name], tensor + 1)
    assert written["epoch"] == 7 and list(written["model"]) == list(content["model"])


def test_other_files_types_and_labels(tmp_path):
    params = network()
    half = {name: tensor.half() for name, tensor in named(NAMES["COIN"]).items()}
    safetensors.torch.save_file(half, tmp_path / "a.safetensors", {"by": "me"})
    stack = load_inrs(tmp_path / "a.safetensors", NFN, size=SIZE)
    save_like(stack, tmp_path / "b.safetensors", tmp_path / "a.safetensors")
    with safetensors.safe_open(tmp_path / "b.safetensors", "pt") as file:
        assert file.metadata() == {"by": "me"}
    written = safetensors.torch.load_file(tmp_path / "b.safetensors")
    assert set(written) == set(half) and all(equal(written[name], half[name]) for name in half)
    both = {name: torch.stack([tensor, 2 * tensor]) for name, tensor in named(NAMES["COIN"], params).items()}
    safetensors.torch.save_file(both, tmp_path / "c.safetensors")
    save_like(
        load_inrs(tmp_path / "c.safetensors", NFN, size=SIZE), tmp_path / "d.safetensors", tmp_path / "c.safetensors"
    )
    written = safetensors.torch.load_file(tmp_path / "d.safetensors")
    assert all(torch.equal(written[name], both[name]) for name in both)
    fashion = {**{name.replace("layers", "seq"): tensor for name, tensor in params.items()}, "label": 4}
    torch.save(fashion, tmp_path / "e.pth")
    save_like(load_inrs(tmp_path / "e.pth", NFN, size=SIZE), tmp_path / "f.pth", tmp_path / "e.pth")
    assert equal(torch.load(tmp_path / "f.pth", weights_only=True), fashion)


def test_what_does_not_fit_is_refused(tmp_path):
    torch.save(named(NAMES["COIN"]), tmp_path / "a.pth")
    torch.save([1], tmp_path / "list.pth")
    torch.save(named(NAMES["Sequential"][:3], network(0, (2, 16, 16, 3))), tmp_path / "short.pth")
    torch.save(named(NAMES["COIN"], network(0, (2, 8, 8, 8, 3))), tmp_path / "narrow.pth")
    stack = load_inrs(tmp_path / "a.pth", NFN, size=SIZE)
    for like, path, message in (
        ("a.pth", "b.ckpt", "expected the same ending"),
        ("list.pth", "b.pth", "holds a list; expected a state dict"),
        ("short.pth", "b.pth", "has 3 layers, the INRs 4"),
        ("narrow.pth", "b.pth", "has the shape .*do not widen it"),
        ("none.pth", "b.pth", "cannot be read"),
        ("a.pth", "none/b.pth", "could not be written"),
    ):
        with pytest.raises(FileFormatError, match=message):
            save_like(stack, tmp_path / path, tmp_path / like)
    broken = dataclasses.replace(stack, params={**stack.params, "layers.0.bias": stack.params["layers.0.bias"] / 0})
    with pytest.raises(ParamsError, match="NaN or infinite"):
        save_like(broken, tmp_path / "b.pth", tmp_path / "a.pth")
    assert not (tmp_path / "b.pth").exists()


def test_from_a_users_file_and_back_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    content = {"state_dict": named([f"module.{stem}" for stem in NAMES["siren-pytorch"]]), "epoch": 2}
    torch.save(content, "net.pth")
    words = ["--convention", "siren-pytorch", "--size", "6"]
    assert main(["convert", "net.pth", "-o", "in.safetensors", *words]) == 0
    assert main(["convert", "in.safetensors", "-o", "back.pth", "--like", "net.pth"]) == 0
    assert equal(torch.load("back.pth", weights_only=True), content)
    renamed = [f"{NAMES['siren-pytorch'][layer]}={layer}" for layer in range(len(NAMES["siren-pytorch"]))]
    renamed = ["--rename", *(f"state_dict.module.{word}" for word in renamed)]  # is about net.pth, not about our file
    assert main(["convert", "in.safetensors", "-o", "back.pth", "--like", "net.pth", *renamed]) == 0
    assert equal(torch.load("back.pth", weights_only=True), content)
    assert main(["edit", "net.pth", "--operation", "invert", "-o", "out.pth", "--like", "net.pth", *words]) == 0
    assert main(["edit", "in.safetensors", "--operation", "invert", "-o", "out.safetensors"]) == 0
    edited = load_inrs("out.pth", SIREN_PYTORCH, size=SIZE)
    assert torch.equal(edited.render(), load_inrs("out.safetensors").render())
    assert (edited.render() - load_inrs("in.safetensors").render()).abs().max() > 0.1
    save_inrs(load_inrs(["in.safetensors", "in.safetensors"]), "two.safetensors")
    assert main(["convert", "two.safetensors", "-o", "x.pth", "--like", "net.pth"]) == 2
    assert "one INR for one" in capsys.readouterr().err
