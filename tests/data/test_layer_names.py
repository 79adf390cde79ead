"""Layers under the names that public code gives them: the right order, or a question with a true remedy."""

import itertools
import random

import pytest
import torch

from weightedit.data.foreign_inrs import canonical_params
from weightedit.data.inr_files import load_inrs
from weightedit.data.inr_modules import from_tensors
from weightedit.data.layer_names import entries, layer_stems
from weightedit.errors import FileFormatError, ParamsError
from weightedit.inr.convention import DWSNETS
from weightedit.inr.siren import initial_params

NUMBERED = ["siren, SingleBVPNet", "siren, notebook", "Sequential", "Sequential with dropout", "numbered from one"]
WIDTHS = (2, 16, 16, 16, 3)
# The layers of four networks of these widths, as the state dicts of public classes name them.
NAMES = {
    "siren, SingleBVPNet": ["net.net.0.0", "net.net.1.0", "net.net.2.0", "net.net.3.0"],
    "siren, notebook": ["net.0.linear", "net.1.linear", "net.2.linear", "net.3"],
    "siren, notebook, sine at the end": ["net.0.linear", "net.1.linear", "net.2.linear", "net.3.linear"],
    "siren-pytorch": ["layers.0", "layers.1", "layers.2", "last_layer"],
    "siren-pytorch, older": ["net.0", "net.1", "net.2", "last_layer"],
    "siren-pytorch, SirenWrapper": ["net.layers.0", "net.layers.1", "net.layers.2", "net.last_layer"],
    "COIN": ["net.0.linear", "net.1.linear", "net.2.linear", "last_layer.linear"],
    "Sequential": ["0", "2", "4", "6"],
    "Sequential with dropout": ["net.0", "net.3", "net.6", "net.9"],
    "numbered from one": ["fc1", "fc2", "fc3", "fc4"],
    "ends by name": ["first", "hidden.0", "hidden.1", "final_linear"],
    "DataParallel, compiled": [f"module._orig_mod.layers.{i}.0" for i in range(4)],
    "a block inside": [f"blocks.0.layers.{i}" for i in range(3)] + ["blocks.0.out"],
    "lists in lists": ["net.0.0", "net.0.2", "net.1.0", "net.1.2"],
}


def network(seed: int = 0, widths=WIDTHS) -> dict[str, torch.Tensor]:
    params = initial_params(1, widths, generator=torch.Generator().manual_seed(seed))
    return {name: tensor[0] for name, tensor in params.items()}


def named(stems: list[str], params=None) -> dict[str, torch.Tensor]:
    """The network under other names, in a shuffled order."""
    params = params or network()
    pairs = [
        (f"{stem}.{kind}", params[f"layers.{i}.{kind}"]) for i, stem in enumerate(stems) for kind in ("weight", "bias")
    ]
    random.Random(1).shuffle(pairs)
    return dict(pairs)


def assert_read(tensors, **options) -> None:
    read, params = canonical_params(tensors, **options), network()
    assert list(read) == list(params) and all(torch.equal(read[name], params[name]) for name in params)


@pytest.mark.parametrize("code", NAMES)
def test_public_names_are_read_in_their_order(code):
    assert layer_stems(named(NAMES[code])) == NAMES[code]
    assert_read(named(NAMES[code]))


@pytest.mark.parametrize("code", NUMBERED)
def test_a_lost_layer_is_never_passed_over(code):
    for lost in NAMES[code][1:-1]:  # of equal shapes: the rest fits together
        tensors = {name: tensor for name, tensor in named(NAMES[code]).items() if not name.startswith(f"{lost}.")}
        with pytest.raises(ParamsError, match="without a gap; add what is missing, or say which layer is which"):
            layer_stems(tensors)


WRAPPERS = {
    "bare": lambda state: state,
    "model": lambda state: {"model": state, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}, "epoch": 3},
    "state_dict": lambda state: {"state_dict": {f"model.{k}": v for k, v in state.items()}, "hyper": {"lr": 1e-4}},
    "twice": lambda state: {"ckpt": {"model_state_dict": state, "step": torch.tensor(4)}, "args": ["--lr"]},
}


@pytest.mark.parametrize(
    ("wrapper", "code"), list(itertools.product(WRAPPERS, ["siren-pytorch", "COIN", "Sequential"]))
)
def test_state_dicts_are_found_below_what_training_saves(tmp_path, wrapper, code):
    torch.save(WRAPPERS[wrapper](named(NAMES[code])), tmp_path / "a.pth")
    stack = load_inrs(tmp_path / "a.pth", DWSNETS, size=(4, 4))
    assert all(torch.equal(stack.params[name][0], tensor) for name, tensor in network().items())


def test_what_is_ambiguous_is_asked_for_and_answered():
    stems = ["enter", "one", "two", "leave"]
    with pytest.raises(ParamsError, match="more than one order in which their widths fit.*--rename NAME=NUMBER"):
        canonical_params(named(stems))
    assert_read(named(stems), rename={"enter": 0, "one": 1, "two": 2, "leave": 3})
    assert_read(named(stems), rename={"one": 1, "two": 2})  # the rest follows from its shapes
    swapped = canonical_params(named(stems), {"enter": 0, "one": 2, "two": 1, "leave": 3})
    assert torch.equal(swapped["layers.1.weight"], network()["layers.2.weight"])
    stack = from_tensors(named(stems), DWSNETS, 4, 4, rename={"one": 1, "two": 2})
    assert stack.widths == WIDTHS


def test_the_remedy_of_every_message_is_true(tmp_path):
    ema = {"model": named(NAMES["COIN"]), "ema": named(NAMES["COIN"], network(1))}
    torch.save(ema, tmp_path / "a.pth")
    with pytest.raises(FileFormatError, match=r"a\.pth: layers named .* more than one network.*--rename NAME=-"):
        load_inrs(tmp_path / "a.pth", DWSNETS, size=(4, 4))
    stack = load_inrs(tmp_path / "a.pth", DWSNETS, size=(4, 4), rename={"ema.*": None})
    assert torch.equal(stack.params["layers.3.bias"][0], network()["layers.3.bias"])
    extra = {**named(NAMES["siren-pytorch"]), "latent": torch.ones(3), "norm.weight": torch.ones(16)}
    with pytest.raises(ParamsError, match="a tensor named 'latent'.*if it is no part of the network, say"):
        canonical_params(extra)
    with pytest.raises(ParamsError, match="'norm' has no bias among"):
        canonical_params(extra, {"latent": None})
    assert_read(extra, rename={"latent": None, "norm": None})
    unfit = {
        **named(["a.0", "a.1", "a.2"], network(0, (2, 16, 16, 5))),
        "b.weight": torch.ones(3, 7),
        "b.bias": torch.ones(3),
    }
    with pytest.raises(ParamsError, match="have no order in which their widths fit"):
        canonical_params(unfit)


def test_words_decide_where_both_ends_fit():
    tensors = named(["net.0", "net.1", "net.2", "last_layer"], network(0, (1, 16, 16, 16, 1)))
    assert layer_stems(tensors) == ["net.0", "net.1", "net.2", "last_layer"]
    with pytest.raises(ParamsError, match="more than one order in which their widths fit"):
        layer_stems({name.replace("last_layer", "other"): tensor for name, tensor in tensors.items()})
    tensors = named(["first", "a", "b", "final_layer"], network(0, (2, 16, 16, 16, 3)))
    with pytest.raises(ParamsError, match="more than one order in which their widths fit"):
        layer_stems(tensors)  # a and b


def test_wrong_renames_are_refused():
    with pytest.raises(ParamsError, match="--rename last, but the tensors are named .*'last_layer.linear.bias'"):
        canonical_params(named(NAMES["COIN"]), {"last": 3})
    with pytest.raises(ParamsError, match="--rename last_layer.linear=-1; expected the number of a layer from 0"):
        canonical_params(named(NAMES["COIN"]), {"last_layer.linear": -1})
    with pytest.raises(ParamsError, match="are both layer 1 by --rename; expected one number for each"):
        canonical_params(named(NAMES["COIN"]), {"net.*": 1})


def test_entries_lead_back_to_where_they_lie():
    state = named(NAMES["COIN"])
    content = {"model": state, "epoch": 1}
    found = entries(content)
    assert set(found) == {f"model.{name}" for name in state}
    holder, key = found["model.last_layer.linear.bias"]
    assert holder is state and holder[key] is state["last_layer.linear.bias"]
