"""Other people's INRs on the command line: convention stated, found wrong with figures, layers named."""

import dataclasses

import pytest
import torch
from PIL import Image

from tests.data.test_layer_names import NAMES, named
from weightedit.cli.arguments import build_parser
from weightedit.cli.conventions import stated_convention
from weightedit.cli.demo import digit_images
from weightedit.cli.main import main
from weightedit.cli.reading import check_reading
from weightedit.data.inr_files import load_inrs
from weightedit.inr.convention import DWSNETS, NFN, SIREN_PYTORCH, Convention, coin_convention, convert
from weightedit.inr.fitting import FitOptions, fit
from weightedit.inr.stack import INRStack

SIZE = (28, 28)


@pytest.fixture(scope="module")
def fitted() -> INRStack:
    """Two digits, fitted."""
    images = digit_images(2)[0]
    generator = torch.Generator().manual_seed(0)
    return fit(images, widths=(2, 24, 24, 1), options=FitOptions(target_psnr=32.0), generator=generator).stack


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, image in enumerate(digit_images(2)[0]):
        Image.fromarray((image[0] * 255).round().byte().numpy()).save(f"digit{number}.png")
    return tmp_path


def save_as(stack: INRStack, convention: Convention, names: list[str], path: str = "net.pth") -> None:
    """The first INR as another code has it."""
    params = {name: tensor[0] for name, tensor in convert(stack.params, stack.convention, convention).items()}
    torch.save({"model": named(names, params), "epoch": 3}, path)


def sine_at_the_end(stack: INRStack, omega: float) -> INRStack:
    """The same pictures from INRs whose last layer ends in a sine: 0.5 + 0.5 sin(...) of what the linear one gives."""
    linear = Convention(low=-1.0, high=1.0, offset=0.0)
    params = convert(stack.params, stack.convention, linear)
    for kind in ("weight", "bias"):  # sin(x) is near x for the digits' values once they are small
        params[f"layers.2.{kind}"] = params[f"layers.2.{kind}"] / omega
    return INRStack(params, dataclasses.replace(linear, omega=(30.0, 30.0, omega), last="sine"), *SIZE)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--convention plain", Convention(offset=0.0)),
        ("--convention siren", NFN),
        ("--convention siren-pytorch --last sigmoid", dataclasses.replace(SIREN_PYTORCH, last="sigmoid")),
        ("--convention coin", coin_convention(9, 7)),
        ("--convention dwsnets --omega 30 1", dataclasses.replace(DWSNETS, omega=(30.0, 1.0))),
        ("--convention nfn --values 0 1 --offset 0.5 --coordinates xy", DWSNETS),
        (
            "--convention dwsnets --coordinates ij,0..1,-1..2.5",
            Convention(coordinates="ij", ranges=((0, 1), (-1, 2.5))),
        ),
        ("--convention dwsnets --activation relu", Convention(activation="relu")),
    ],
)
def test_every_convention_can_be_stated(words, expected):
    options = build_parser().parse_args(["check", "net.pth", *words.split()])
    assert stated_convention(options, (9, 7)) == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--last sine --size 9", "--last without --convention; expected the convention that it changes"),
        ("--convention coin", "--convention coin without a size"),
        ("--convention plain --coordinates ij,0-1", "expected xy or ij, and ranges such as 0..1"),
        ("--convention plain --coordinates yx", "convention --coordinates 'yx'"),
        ("--convention plain --last cosine", "convention --last 'cosine'"),
        ("--convention plain --rename last_layer", "--rename last_layer; expected NAME=NUMBER"),
        ("--convention plain --rename last=2", "--rename last, but the tensors are named"),
    ],
)
def test_wrong_words_are_one_line(place, fitted, capsys, words, message):
    save_as(fitted, NFN, ["net.0", "net.1", "last_layer"])
    assert main(["check", "net.pth", *words.split()]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


CODES = {
    "siren": ("--convention siren", NFN, ["net.net.0.0", "net.net.1.0", "net.net.2.0"], "--convention plain"),
    "siren-pytorch": ("--convention siren-pytorch", SIREN_PYTORCH, ["layers.0", "layers.1", "last_layer"], "siren"),
    "coin": (
        "--convention coin",
        coin_convention(*SIZE),
        ["net.0.linear", "net.1.linear", "last_layer.linear"],
        "--convention dwsnets",
    ),
}


@pytest.mark.parametrize("code", CODES)
def test_a_picture_decides_and_names_the_convention(place, fitted, capsys, code):
    right, convention, names, wrong = CODES[code]
    save_as(fitted, convention, names)
    wrong = wrong if wrong.startswith("--") else f"--convention {wrong}"
    words = ["check", "net.pth", "--size", "28", "--image", "digit0.png"]
    assert main([*words, *right.split()]) == 0
    assert "reading        ok" in capsys.readouterr().out
    assert main([*words, *wrong.split()]) == 1
    told = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("reading"))
    assert "FAILED" in told and " dB with --" in told
    changes = told.partition(" dB with ")[2].split()  # the remedy is true
    assert main([*words, *wrong.split(), *changes]) == 0


def test_a_sine_at_the_end_is_not_passed_as_linear(place, fitted, capsys):
    for omega, alone in ((30.0, "FAILED"), (1.0, "unsure")):
        stack = sine_at_the_end(fitted, omega)
        images = stack.render().clamp(0, 1)
        linear = dataclasses.replace(stack, convention=dataclasses.replace(stack.convention, omega=30.0, last="linear"))
        assert check_reading(linear).word == alone
        assert check_reading(stack, images).word == "ok" and check_reading(stack).word == "unsure"
    save_as(
        sine_at_the_end(fitted, 30.0), dataclasses.replace(NFN, coordinates="xy", last="sine"), NAMES["Sequential"][:3]
    )
    assert main(["check", "net.pth", "--convention", "nfn"]) == 1
    assert "almost solid, as where a function after the last layer" in capsys.readouterr().out
    assert main(["check", "net.pth", "--convention", "nfn", "--coordinates", "xy", "--last", "sine"]) == 0


def test_what_cannot_be_a_picture_is_said(fitted):
    for change, fault in (
        ({"omega": 90.0}, "as rough as noise"),
        ({"offset": 2.5}, "mostly out of range"),
        ({"omega": 1.0}, "almost solid"),
    ):
        found = check_reading(dataclasses.replace(fitted, convention=dataclasses.replace(DWSNETS, **change)))
        assert found.ok is False and fault in found.figure
    assert check_reading(fitted).ok is None
    hopeless = check_reading(fitted, torch.rand(1, 1, *SIZE, generator=torch.Generator().manual_seed(0)))
    assert hopeless.ok is False and "none fits better" in hopeless.figure


@pytest.mark.parametrize("widths", [(1, 16, 16, 1), (3, 16, 16, 1), (2, 16, 16, 5)])
def test_sounds_and_volumes_are_checked_without_a_size(place, capsys, widths):
    from weightedit.inr.siren import initial_params

    params = initial_params(1, widths, generator=torch.Generator().manual_seed(0))
    torch.save(named(["net.0", "net.1", "last_layer"], {name: tensor[0] for name, tensor in params.items()}), "net.pth")
    code = main(["check", "net.pth", "--convention", "siren-pytorch"])
    told = capsys.readouterr().out
    assert told.count(" ok ") == 3 and (code == 0 if widths[0] != 2 else "reading" in told)
    assert main(["check", "net.pth", "--convention", "siren", "--image", "digit0.png"]) == 2
    assert "expected at most one for each, of INRs from 2 inputs to 1 or 3" in capsys.readouterr().err


@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu"])
def test_other_activations_are_checked_and_rendered(place, capsys, activation):
    from weightedit.inr.siren import initial_params

    params = {name: tensor[0] for name, tensor in initial_params(1, (2, 16, 16, 3)).items()}
    torch.save(named(["0", "2", "4"], params), "net.pth")
    words = ["--convention", "plain", "--activation", activation, "--last", "sigmoid"]
    main(["check", "net.pth", *words])
    assert capsys.readouterr().out.count(" ok ") == 3
    assert main(["render", "net.pth", "-o", "a.png", "--size", "16", *words]) == 0
    assert main(["info", "net.pth", "--size", "16", *words]) == 0
    assert f"{activation} between the layers, sigmoid at the end" in capsys.readouterr().out


def test_renamed_layers_and_a_fit_under_a_convention(place, fitted, capsys):
    save_as(fitted, SIREN_PYTORCH, ["enter", "one", "leave"])
    words = ["--convention", "siren-pytorch", "--size", "28"]
    assert (
        main(["render", "net.pth", "-o", "a.png", *words, "--rename", "model.enter=0", "model.one=1", "*leave=2"]) == 0
    )
    fit_words = [
        "--size",
        "12",
        "--hidden",
        "24",
        "24",
        "--target-psnr",
        "25",
        "--convention",
        "coin",
        "--omega",
        "30",
        "5",
    ]
    assert main(["fit", "digit0.png", "-o", "a.safetensors", *fit_words]) == 0
    assert load_inrs("a.safetensors").convention == dataclasses.replace(coin_convention(12, 12), omega=(30.0, 5.0))
    assert main(["check", "a.safetensors", "--image", "digit0.png"]) == 0
