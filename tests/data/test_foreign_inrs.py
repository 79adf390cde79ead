"""INR files of other codes: exact weights, facts from paths, no guessed convention, no executed code, every error."""

import os
import pickle
import re
import zipfile
from collections import OrderedDict

import pytest
import safetensors.torch
import torch

from tests.mutations import shared_lists, shared_mappings
from weightedit.data.foreign_inrs import canonical_params
from weightedit.data.inr_files import load_inrs
from weightedit.errors import FileFormatError, ParamsError
from weightedit.files.reading import FREE
from weightedit.inr.convention import DWSNETS, NFN, Convention
from weightedit.inr.siren import initial_params, render_images

NFN_NAMES = {"layers.0": "net.0.linear", "layers.1": "net.1.linear", "layers.2": "net.2"}
SIZE = (6, 6)


def make_params(seed: int, outputs: int = 1) -> dict[str, torch.Tensor]:
    params = initial_params(1, (2, 8, 8, outputs), generator=torch.Generator().manual_seed(seed))
    return {name: tensor[0] for name, tensor in params.items()}


def as_dwsnets(params) -> dict[str, torch.Tensor]:
    return OrderedDict((name.replace("layers", "seq"), tensor) for name, tensor in params.items())


def as_nfn(params) -> dict[str, torch.Tensor]:
    return OrderedDict((NFN_NAMES[name[:8]] + name[8:], tensor) for name, tensor in params.items())


def save(content, path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)


def assert_params(stack, expected) -> None:
    for name in expected[0]:
        assert torch.equal(stack.params[name], torch.stack([params[name] for params in expected]))


def test_dwsnets_folder(tmp_path):
    facts = [("testing", 7, 10), ("testing", 7, 9), ("training", 3, 9)]
    all_params = [make_params(seed) for seed in range(3)]
    for (split, label, index), params in zip(facts, all_params, strict=True):
        save(as_dwsnets(params), tmp_path / f"mnist_png_{split}_{label}_{index}" / "checkpoints" / "model_final.pth")
    loaded = load_inrs(tmp_path, DWSNETS, size=SIZE)
    assert_params(loaded, [all_params[1], all_params[0], all_params[2]])  # index 9 before 10
    assert loaded.label.tolist() == [7, 7, 3] and loaded.index.tolist() == [9, 10, 9]
    assert loaded.split.tolist() == [2, 2, 0]
    assert (loaded.convention, loaded.height, loaded.width) == (DWSNETS, 6, 6)
    assert loaded.provenance == {"file names": "dwsnets"}


def test_dwsnets_fashion_files_hold_their_label(tmp_path):
    save({**as_dwsnets(make_params(0)), "label": 4}, tmp_path / "a.pth")
    save({**as_dwsnets(make_params(1)), "label": torch.tensor(5)}, tmp_path / "b.pth")
    save(as_dwsnets(make_params(2)), tmp_path / "c.pth")
    loaded = load_inrs(tmp_path, DWSNETS, size=SIZE)
    assert loaded.label.tolist() == [4, 5, -1] and loaded.index is None and loaded.split is None


def test_nfn_folder(tmp_path):
    all_params = [make_params(seed) for seed in range(3)]
    names = ["randinit_smaller_0s/net2.pth", "randinit_smaller_0s/net10.pth", "randinit_smaller_8s/net1.pth"]
    for name, params in zip(names, all_params, strict=True):
        save(as_nfn(params), tmp_path / name)
    loaded = load_inrs(tmp_path, NFN, size=SIZE)
    assert_params(loaded, all_params)
    assert loaded.label.tolist() == [0, 0, 8] and loaded.index.tolist() == [2, 10, 1]
    assert loaded.convention == NFN


def test_implicit_zoo_files_are_denormalized_exactly(tmp_path):
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    params = make_params(0, outputs=3)
    save({"image_idx": 17, "params": as_dwsnets(params)}, tmp_path / "ckpts" / "06" / "000017_0000042.ckpt")
    plain = Convention(offset=0.0)
    loaded = load_inrs(tmp_path, plain, size=SIZE, normalization=(mean, std))
    assert loaded.label.tolist() == [6] and loaded.index.tolist() == [17]
    normalized = render_images({name: tensor[None] for name, tensor in params.items()}, plain, *SIZE)
    expected = normalized * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]
    assert torch.allclose(loaded.render(), expected, atol=1e-6)
    with pytest.raises(FileFormatError, match="has 1 means and 3 deviations; expected 3"):
        load_inrs(tmp_path, plain, size=SIZE, normalization=([0.5], std))


@pytest.mark.parametrize(
    ("content", "suggested"),
    [
        (as_dwsnets(make_params(0)), "those of DWSNets: if so, pass convention=DWSNETS"),
        (as_nfn(make_params(0)), "those of NFN: if so, pass convention=NFN"),
        ({"image_idx": 0, "params": as_dwsnets(make_params(0))}, "those of Implicit-Zoo: if so, pass convention=Conv"),
        (make_params(0), "those of no published set: pass convention="),
    ],
    ids=["dwsnets", "nfn", "implicit-zoo", "unknown"],
)
def test_a_convention_is_never_guessed(tmp_path, content, suggested):
    save(content, tmp_path / "a.pth")
    with pytest.raises(FileFormatError, match=f"states no convention and image size.*{suggested}.*size="):
        load_inrs(tmp_path / "a.pth")
    with pytest.raises(FileFormatError, match="states no image size, and none was given"):
        load_inrs(tmp_path / "a.pth", DWSNETS)
    with pytest.raises(FileFormatError, match="states no convention, and none"):
        load_inrs(tmp_path / "a.pth", size=SIZE)


def test_the_order_of_a_state_dict_does_not_matter(tmp_path):
    params = make_params(0)
    save(OrderedDict(reversed(as_dwsnets(params).items())), tmp_path / "a.pth")
    loaded = load_inrs(tmp_path / "a.pth", DWSNETS, size=SIZE)
    assert_params(loaded, [params])
    assert list(loaded.params) == list(params)


def test_more_than_ten_layers_are_ordered_by_number(tmp_path):
    widths = (2, *range(3, 14), 1)
    params = {name: tensor[0] for name, tensor in initial_params(1, widths).items()}
    save(as_dwsnets(params), tmp_path / "a.pth")
    loaded = load_inrs(tmp_path / "a.pth", DWSNETS, size=SIZE)
    assert loaded.widths == widths and list(loaded.params) == list(params)


def test_foreign_safetensors_single_and_stacked(tmp_path):
    params = [make_params(seed) for seed in range(3)]
    both = {name: torch.stack([params[0][name], params[1][name]]) for name in params[0]}
    safetensors.torch.save_file(as_dwsnets(both), tmp_path / "a.safetensors")
    safetensors.torch.save_file(as_dwsnets(params[2]), tmp_path / "b.safetensors", {"format": "pt"})
    assert_params(load_inrs(tmp_path, DWSNETS, size=SIZE), params)


class Malicious:
    """Unpickling it would make a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("plain_pickle", [False, True])
def test_code_in_a_file_is_not_executed(tmp_path, plain_pickle):
    trace, path = tmp_path / "trace", tmp_path / "a.pth"
    content = {**as_dwsnets(make_params(0)), "label": Malicious(trace)}
    if plain_pickle:
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path)
    with pytest.raises(
        FileFormatError, match=r"carries pickled objects or code, .*nothing was executed.*state_dict\(\)"
    ):
        load_inrs(path, DWSNETS, size=SIZE)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Malicious(trace)))  # the file was dangerous indeed
    assert trace.exists()


def test_a_whole_pickled_module_is_refused(tmp_path):
    torch.save(torch.nn.Linear(2, 1), tmp_path / "a.pth")
    with pytest.raises(FileFormatError, match="carries pickled objects or code"):
        load_inrs(tmp_path / "a.pth", DWSNETS, size=SIZE)


def test_truncated_files_are_refused(tmp_path):
    path = tmp_path / "a.pth"
    torch.save(as_dwsnets(make_params(0)), path)
    whole = path.read_bytes()
    for content in (b"", whole[:100], whole[: len(whole) // 2], b"no file of torch"):
        path.write_bytes(content)
        with pytest.raises(FileFormatError, match="could not be read|is no file of plain tensors"):
            load_inrs(path, DWSNETS, size=SIZE)
    path.write_bytes(whole[:-50])
    with pytest.raises(FileFormatError, match="could not be read .*copy it again"):
        load_inrs(path, DWSNETS, size=SIZE)


CONTENT_FAULTS = {
    "list": ([torch.ones(2)], "holds a list; expected a state dict"),
    "no network": ({"state_dict": {"step": 3}}, "a tensor named 'state_dict.step': expected the weight and bias of"),
    "empty": ({}, "no layers; expected the weight and bias of at least one"),
    "missing": ({k: v for k, v in as_dwsnets(make_params(0)).items() if k != "seq.1.bias"}, "add what is missing"),
    "gap": (
        {f"seq.{i}.{k}": torch.ones(2, 2) for i in (0, 1, 3) for k in ("weight", "bias")},
        "and without a gap; add",
    ),
    "strange": ({**as_dwsnets(make_params(0)), "norm.scale": torch.ones(1)}, "a tensor named 'norm.scale'"),
    "number": ({**as_dwsnets(make_params(0)), "seq.0.bias": 3.0}, "'seq.0.bias' is a float: expected a dense"),
    "integer": ({**as_dwsnets(make_params(0)), "seq.0.bias": torch.ones(8, dtype=torch.int64)}, "dense floating-point"),
    "shape": ({**as_dwsnets(make_params(0)), "seq.1.weight": torch.ones(7, 8)}, "layer 1 has weight"),
    "nan": ({**as_dwsnets(make_params(0)), "seq.1.weight": torch.full((8, 8), torch.nan)}, "of INR 0 has NaN"),
    "types": ({**as_dwsnets(make_params(0)), "seq.0.bias": torch.ones(8).double()}, "expected one type"),
    "label": ({**as_dwsnets(make_params(0)), "label": "seven"}, "has the label 'seven'; expected a whole number"),
    "large label": ({**as_dwsnets(make_params(0)), "label": 2**62}, "expected a whole number of at most 62 bits"),
    "meta": ({**as_dwsnets(make_params(0)), "seq.0.bias": torch.ones(8, device="meta")}, "on meta: expected a dense"),
    "float8": ({**as_dwsnets(make_params(0)), "seq.0.bias": torch.ones(8).to(torch.float8_e5m2)}, "of 16 to 64 bits"),
    "empty layers": ({"seq.0.weight": torch.ones(0, 2), "seq.0.bias": torch.ones(0)}, "a network of the widths (2, 0)"),
    "far layer": ({f"seq.{10**9}.weight": torch.ones(1, 2)}, "'seq.1000000000' has no bias among"),
    "stride 0": (
        {"seq.0.weight": torch.ones(1).expand(10**9)},
        "and declares 4,000,000,000; expected at most 16 times",
    ),
    "shared lists": (
        {"seq.0.weight": shared_lists(), "seq.0.bias": torch.ones(1)},
        "seq.0.weight' is a list: expected a dense",
    ),
    "shared mappings": (shared_mappings(), "expected a state dict: save net.state_dict()"),
}


@pytest.mark.parametrize("fault", CONTENT_FAULTS)
def test_files_that_are_no_network_are_refused(tmp_path, fault):
    content, message = CONTENT_FAULTS[fault]
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(FileFormatError, match=re.escape(str(tmp_path / "a.pth")) + ".*" + re.escape(message)):
        load_inrs(tmp_path / "a.pth", DWSNETS, size=SIZE)


def test_an_archive_that_unpacks_to_far_more_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(FREE + 1))
    with pytest.raises(FileFormatError, match="and declares 67,108,865; expected at most 16 times its size"):
        load_inrs(tmp_path / "a.pth", DWSNETS, size=SIZE)


def test_contradictions_are_refused(tmp_path):
    path = tmp_path / "mnist_png_training_3_9" / "a.pth"
    save({**as_dwsnets(make_params(0)), "label": 4}, path)
    with pytest.raises(FileFormatError, match="has the label 4, but its path says 3"):
        load_inrs(path, DWSNETS, size=SIZE)
    save(as_dwsnets(make_params(0)), tmp_path / "both" / "a.pth")
    save(as_dwsnets(make_params(0, outputs=3)), tmp_path / "both" / "b.pth")
    with pytest.raises(FileFormatError, match=r"b\.pth holds .* but .*a\.pth .* expected one architecture"):
        load_inrs(tmp_path / "both", DWSNETS, size=SIZE)


def test_two_networks_in_one_dict_are_refused():
    two = {f"{net}.{name}": tensor for net in ("model", "ema") for name, tensor in make_params(0).items()}
    with pytest.raises(ParamsError, match="more than one network, or one in parts: expected one network; say which"):
        canonical_params(two)
    both = {f"net.0{more}.{kind}": torch.ones(2, 2) for more in ("", ".linear") for kind in ("weight", "bias")}
    with pytest.raises(ParamsError, match="more than one order in which their widths fit"):
        canonical_params(both)
    numbers = {f"{stem}.{kind}": torch.ones(2, 2) for stem in ("net.0.a", "net.0.b.1") for kind in ("weight", "bias")}
    with pytest.raises(ParamsError, match="more than one order in which their widths fit"):
        canonical_params(numbers)
