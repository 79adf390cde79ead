"""What takes a convention takes every one: files, fits, refinement, wider INRs, modules, and their refusals."""

import dataclasses

import pytest
import torch
from torch import nn

from weightedit.data.inr_files import load_inrs, save_inrs
from weightedit.data.inr_modules import from_module
from weightedit.editing.one_shot import OneShotEditor
from weightedit.editing.refinement import refine, target_of
from weightedit.errors import FileFormatError, ParamsError, WeightEditError
from weightedit.inr.convention import SIREN_PYTORCH, Convention, coin_convention, convert
from weightedit.inr.fitting import FitOptions, fit
from weightedit.inr.siren import initial_params
from weightedit.inr.stack import INRStack
from weightedit.inr.widening import widen
from weightedit.metanet.gauge_gmn.config import GaugeGMNConfig
from weightedit.metanet.gauge_gmn.network import GaugeGMN

SIZE = (9, 6)
SOLVABLE = {
    "siren-pytorch": SIREN_PYTORCH,
    "coin": coin_convention(*SIZE),
    "pixels, three frequencies": Convention((20.0, 30.0, 5.0), ranges=((0.0, 5.0), (8.0, 0.0))),
}
OTHERS = {
    "sine at the end": Convention((30.0, 30.0, 1.0), low=-1.0, offset=0.0, last="sine"),
    "sigmoid at the end": Convention((30.0, 1.0), "ij", offset=0.0, last="sigmoid"),
    "relu": Convention(activation="relu"),
}


def stack_under(convention: Convention, count: int = 2) -> INRStack:
    """Ordinary SIRENs, converted as far as they can be."""
    params = initial_params(count, (2, 8, 7, 3), generator=torch.Generator().manual_seed(2))
    params = {name: tensor.double() for name, tensor in params.items()}
    plain = dataclasses.replace(convention.plain, activation="sine", last="linear")
    near = dataclasses.replace(convention, activation="sine", last="linear")
    return INRStack(convert(params, plain, near), convention, *SIZE)


@pytest.mark.parametrize("convention", [*SOLVABLE.values(), *OTHERS.values()], ids=[*SOLVABLE, *OTHERS])
def test_files_keep_every_convention(tmp_path, convention):
    stack = stack_under(convention)
    save_inrs(stack, tmp_path / "inrs.safetensors")
    loaded = load_inrs(tmp_path / "inrs.safetensors")
    assert loaded.convention == convention and torch.equal(loaded.render(), stack.render())
    assert loaded.render().std() > 1e-3 and loaded.spec == stack.spec


def test_a_header_with_a_wrong_word_is_refused(tmp_path):
    import safetensors.torch

    stack = stack_under(OTHERS["sine at the end"])
    save_inrs(stack, tmp_path / "inrs.safetensors")
    with safetensors.safe_open(tmp_path / "inrs.safetensors", "pt") as file:
        header, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for change, message in (({"last": "cosine"}, "last='cosine'"), ({"ranges": "[[0, 0]]"}, "header.*ranges|ranges=")):
        safetensors.torch.save_file(tensors, tmp_path / "bad.safetensors", {**header, **change})
        with pytest.raises(FileFormatError, match=message):
            load_inrs(tmp_path / "bad.safetensors")


@pytest.mark.parametrize("convention", SOLVABLE.values(), ids=SOLVABLE)
def test_a_fit_and_a_refinement_are_those_of_the_plain_convention(convention):
    images = torch.nn.functional.interpolate(
        torch.rand(2, 3, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(4)), SIZE, mode="bicubic"
    ).clamp(0, 1)
    options, found = FitOptions(target_psnr=30.0), []
    for chosen in (convention.plain, convention):
        generator = torch.Generator().manual_seed(5)
        result = fit(images, widths=(2, 16, 3), convention=chosen, options=options, generator=generator)
        edited = refine(result.stack, target_of("invert", result.stack), 2)
        assert result.stack.convention == edited.convention == chosen
        found.append((result.stack.render(), edited.render()))
    assert (found[0][1] - found[0][0]).abs().max() > 0.1
    for plain, other in zip(*found, strict=True):
        torch.testing.assert_close(other, plain, rtol=0, atol=1e-7)
    again = fit(images, widths=(2, 16, 3), convention=convention, options=options, initial=result.stack.params)
    assert (again.psnr > result.psnr - 0.1).all()


@pytest.mark.parametrize("convention", SOLVABLE.values(), ids=SOLVABLE)
def test_editors_and_wider_inrs_take_it(convention):
    stack = stack_under(convention)
    editor = OneShotEditor(GaugeGMN(GaugeGMNConfig(outputs=3, node_width=4, edge_width=2, layers=1)), "invert").double()
    plain = dataclasses.replace(
        stack, params=convert(stack.params, convention, convention.plain), convention=convention.plain
    )
    for change in (editor, lambda given: widen(given, 2)):
        torch.testing.assert_close(change(stack).render(), change(plain).render(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", OTHERS)
def test_what_only_sirens_with_a_linear_end_can_do_is_refused(name):
    stack = stack_under(OTHERS[name])
    with pytest.raises(WeightEditError, match="expected sine and linear"):
        fit(torch.rand(1, 3, *SIZE), convention=stack.convention)
    with pytest.raises(ParamsError, match="which no change of weights makes of it"):
        OneShotEditor(GaugeGMN(GaugeGMNConfig(outputs=3, node_width=4, edge_width=2, layers=1)), "invert")(stack)


def test_modules_with_other_functions_are_read_and_found_out():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3), nn.Sigmoid())
    relu = Convention(activation="relu", last="sigmoid", offset=0.0)
    stack = from_module(net, relu, *SIZE)
    assert torch.equal(stack.params["layers.1.bias"][0], net[2].bias)
    with pytest.raises(
        ParamsError, match="with relu after .*, sigmoid after the last.* by Convention.*omega, activation, last and"
    ):
        from_module(net, Convention(activation="relu", offset=0.0), *SIZE)
