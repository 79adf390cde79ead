"""INR files of other codes: DWSNets and NFN (.pth), Implicit-Zoo (.ckpt), and plain safetensors without our header.

Here: reading one such file without ever executing it, naming its tensors canonically, what the file's path says about
label and source image, and which published convention the names suggest. Not here: which tensor is which layer
(layer_names.py), our own format and the door load_inrs (inr_files.py), networks in memory (inr_modules.py).

Formats, read from the codes that write them: DWSNets saves a state dict `seq.{i}.weight/bias` (its Fashion-MNIST files
also an int `label`) below a folder `mnist_png_{training,testing}_<label>_<index>`; NFN a state dict `net.{i}.linear.*`
with a last layer `net.{i}.*`, as `randinit_smaller_<label>s/net<index>.pth`, its index counting the training images and
then the test images; Implicit-Zoo {"image_idx", "params": {"seq.{i}.*"}} as `ckpts/<label>/<index>_<seed>.ckpt`.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightedit.data.layer_names import Rename, entries, layer_stems
from weightedit.errors import FileFormatError, ParamsError
from weightedit.files.reading import check_declared, refusing, shortened
from weightedit.inr.convention import Convention, Params, widths_of
from weightedit.inr.stack import INRStack

TORCH_SUFFIXES = (".pth", ".pt", ".ckpt")

_FAMILIES = {  # the first whose names are all there, whatever stands before them
    "siren": ("net.net.0.0.weight",),
    "coin": ("net.0.linear.weight", "last_layer.linear.weight"),
    "siren-pytorch": ("0.weight", "last_layer.weight"),
    "dwsnets": ("seq.0.weight",),
    "nfn": ("net.0.linear.weight",),
}
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_SPLITS = {"training": 0, "testing": 2}
_NORMALIZED = (
    "Implicit-Zoo: if so, pass convention=Convention(offset=0.0) (weightedit.inr.convention), normalization=(mean, "
    "std), the values per channel that the images were normalized by"
)
_SUGGESTIONS = {
    "implicit-zoo": _NORMALIZED,
    "dwsnets": "DWSNets: if so, pass convention=DWSNETS (weightedit.inr.convention)",
    "nfn": "NFN: if so, pass convention=NFN (weightedit.inr.convention)",
    "siren": "SIREN's authors: if so, pass convention=NFN (weightedit.inr.convention), which is theirs",
    "coin": "COIN: if so, pass convention=coin_convention(height, width) (weightedit.inr.convention)",
    "siren-pytorch": (
        "siren-pytorch: if so, pass convention=SIREN_PYTORCH (weightedit.inr.convention), with last=sigmoid where one "
        "ends it"
    ),
    "unknown": "no published set: pass convention=Convention(...) (weightedit.inr.convention) as the INRs were fitted",
}


@dataclass(frozen=True)
class ForeignINRs:
    """What one foreign file holds.

    Args:
        params: canonical names, stacked [N, ...]; N is 1 for all but stacked safetensors.
        family: a key of _SUGGESTIONS, after the names in the file.
        facts: what file and path say about each INR, a part of {"label", "index", "split"}.
    """

    params: Params
    family: str
    facts: dict[str, int] = field(default_factory=dict)


def suggestion(family: str) -> str:
    """The end of a sentence "its names are those of ...": a guess, and how to pass the convention if it is right."""
    return _SUGGESTIONS[family]


def canonical_params(tensors: Mapping[str, Tensor], rename: Rename | None = None) -> Params:
    """The tensors under the names layers.{i}.weight / .bias, in the order of layer_names.layer_stems.

    Args:
        tensors: names ending in .weight and .bias; weights [(N,) out, in], biases [(N,) out], one floating-point type.
        rename: which of them are which layers, where their names leave it open.

    Returns:
        Params, detached, stacked or not as they came.

    Raises:
        ParamsError: names that are no network, mixed types, or shapes that do not fit.
    """
    named = {str(name): tensor for name, tensor in tensors.items()}
    params: Params = {}
    for layer, stem in enumerate(layer_stems(named, rename)):
        for kind in ("weight", "bias"):
            params[f"layers.{layer}.{kind}"] = _checked(f"{stem}.{kind}", named[f"{stem}.{kind}"]).detach()
    if len({tensor.dtype for tensor in params.values()}) > 1:
        types = sorted({str(tensor.dtype) for tensor in params.values()})
        raise ParamsError(f"tensors of the types {types}: expected one type; cast them to one.")
    if min(widths_of(params)) < 1:
        raise ParamsError(f"a network of the widths {shortened(widths_of(params))}: expected at least 1; fit it again.")
    return params


def _checked(name: str, tensor: object) -> Tensor:
    if isinstance(tensor, Tensor) and _is_dense(tensor) and tensor.dtype in _DTYPES:
        return tensor
    kind = type(tensor).__name__
    if isinstance(tensor, Tensor):
        kind = f"{tensor.layout} tensor of {tensor.dtype} on {tensor.device}"
    raise ParamsError(
        f"{shortened(name)} is a {kind}: expected a dense floating-point tensor of 16 to 64 bits, with values; convert "
        "it."
    )


def stacked(params: Params) -> Params:
    """One network as a stack of one; a stack as it is."""
    if params["layers.0.weight"].dim() == 3:
        return params
    return {name: tensor.unsqueeze(0) for name, tensor in params.items()}


def check_finite(params: Params) -> None:
    """Refuse a stack with NaN or infinite values.

    Raises:
        ParamsError: naming the first such INR and tensor.
    """
    for name, tensor in params.items():
        bad = ~torch.isfinite(tensor).flatten(1).all(1)
        if bad.any():
            first = int(bad.nonzero()[0])
            raise ParamsError(
                f"{name} of INR {first} has NaN or infinite values ({int(bad.sum())} of {len(bad)} INRs have): "
                "expected finite weights; leave these INRs out, or fit them again."
            )


def read_torch_file(path: Path, rename: Rename | None = None) -> ForeignINRs:
    """One INR from a file that torch.save wrote; only tensors and plain values are read, nothing is executed.

    Raises:
        FileFormatError: a file that is no such file, is truncated, holds more than tensors and numbers, or whose
            tensors are no network.
    """
    with refusing(path, "a complete file written by torch.save: copy it again"):
        content = read_content(path)
        facts = _facts_of_path(path)
        family = None
        if isinstance(content, Mapping) and set(content) == {"image_idx", "params"}:
            family = "implicit-zoo"
            _add_fact(facts, "index", content["image_idx"], path)
            content = content["params"]
        if not isinstance(content, Mapping):
            raise FileFormatError(
                f"{path} holds a {type(content).__name__}; expected a state dict, names to tensors: save "
                "net.state_dict()."
            )
        content = dict(content)
        if "label" in content:
            _add_fact(facts, "label", content.pop("label"), path)
        tensors = {name: holder[key] for name, (holder, key) in entries(content).items()}
        dense = [tensor for tensor in tensors.values() if isinstance(tensor, Tensor) and _is_dense(tensor)]
        check_declared(path, sum(tensor.numel() * tensor.element_size() for tensor in dense))
        return from_names(tensors, path, facts, family, rename)


def from_names(
    tensors: Mapping[str, Tensor], path: Path, facts: dict[str, int], family: str | None, rename: Rename | None
) -> ForeignINRs:
    """Tensors read from `path` as ForeignINRs; the family is read from the names unless it is known.

    Raises:
        FileFormatError: tensors that are no network, naming the file.
    """
    try:
        params = stacked(canonical_params(tensors, rename))
        check_finite(params)
    except ParamsError as error:
        raise FileFormatError(f"{path}: {error}") from error
    return ForeignINRs(params, family or _family(tensors), facts)


def _family(tensors: Mapping[str, Tensor]) -> str:
    def there(end: str) -> bool:
        return any(name == end or name.endswith(f".{end}") for name in tensors)

    return next((family for family, names in _FAMILIES.items() if all(map(there, names))), "unknown")


def join(
    foreign: list[ForeignINRs],
    paths: list[Path],
    convention: Convention,
    size: tuple[int, int],
    normalization: tuple[Sequence[float], Sequence[float]] | None,
) -> INRStack:
    """The INRs of several foreign files as one stack; arguments as those of inr_files.load_inrs, one path per part.

    Raises:
        FileFormatError: architectures that differ, or a normalization of another number of channels.
    """
    first = foreign[0].params
    for part, path in zip(foreign, paths, strict=True):
        shapes = {name: (tuple(tensor.shape[1:]), tensor.dtype) for name, tensor in part.params.items()}
        expected = {name: (tuple(tensor.shape[1:]), tensor.dtype) for name, tensor in first.items()}
        if shapes != expected:
            raise FileFormatError(
                f"{path} holds {shortened(shapes)}, but {paths[0]} {shortened(expected)}; expected one architecture: "
                "load them apart."
            )
    params = {name: torch.cat([part.params[name] for part in foreign]) for name in first}
    if normalization is not None:
        params = _absorb(params, *normalization)
    counts = [len(part.params["layers.0.weight"]) for part in foreign]
    facts: dict[str, Any] = {
        name: torch.tensor(
            [part.facts.get(name, -1) for part, n in zip(foreign, counts, strict=True) for _ in range(n)]
        )
        for name in ("label", "index", "split")
        if any(name in part.facts for part in foreign)
    }
    families = dict.fromkeys(part.family for part in foreign)
    provenance = {"file names": " | ".join(families)}
    return INRStack(params, convention, size[0], size[1], provenance=provenance, **facts)


def _is_dense(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_meta


def read_content(path: Path) -> object:
    """What torch.save wrote; nothing is executed, and no more is unpacked than the file can be believed to hold."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                check_declared(path, sum(entry.file_size for entry in archive.infolist()))
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise FileFormatError(
            f"{path} is no file of plain tensors: it is damaged, or carries pickled objects or code, which is not "
            "loaded (nothing was executed); expected a state dict: let its author save net.state_dict(), or convert it "
            "where you trust it."
        ) from error


def _facts_of_path(path: Path) -> dict[str, int]:
    """Label, index and split as far as the published folder layouts write them into the path."""
    for part in reversed(path.parts[:-1]):
        if match := re.search(r"_(training|testing)_([0-9]{1,18})_([0-9]{1,18})$", part):
            return {"label": int(match[2]), "index": int(match[3]), "split": _SPLITS[match[1]]}
    parent = path.parent.name
    if (match := re.fullmatch(r"net([0-9]{1,18})", path.stem)) and (label := re.search(r"_([0-9]{1,18})s$", parent)):
        return {"label": int(label[1]), "index": int(match[1])}
    if match := re.fullmatch(r"([0-9]{1,18})/([0-9]{1,18})_[0-9]+\.ckpt", f"{parent}/{path.name}"):
        return {"label": int(match[1]), "index": int(match[2])}
    return {}


def _add_fact(facts: dict[str, int], name: str, value: object, path: Path) -> None:
    if isinstance(value, Tensor) and _is_dense(value) and value.numel() == 1:
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) >= 2**62:
        raise FileFormatError(
            f"{path} has the {name} {shortened(value)}; expected a whole number of at most 62 bits: correct the file."
        )
    if facts.get(name, value) != value:
        raise FileFormatError(
            f"{path} has the {name} {value}, but its path says {facts[name]}; expected one answer: correct the path."
        )
    facts[name] = value


def _absorb(params: Params, mean: Sequence[float], std: Sequence[float]) -> Params:
    """The last layer rescaled from an output (value - mean) / std to the value; exact up to rounding."""
    last = max(int(name.split(".")[1]) for name in params)
    weight, bias = params[f"layers.{last}.weight"], params[f"layers.{last}.bias"]
    if len(mean) != bias.shape[-1] or len(std) != bias.shape[-1]:
        raise FileFormatError(
            f"normalization has {len(mean)} means and {len(std)} deviations; expected {bias.shape[-1]}, one per "
            "output: give one per channel."
        )
    scale = bias.new_tensor(list(std))
    changed = {
        f"layers.{last}.weight": weight * scale[:, None],
        f"layers.{last}.bias": bias * scale + bias.new_tensor(list(mean)),
    }
    return {**params, **changed}
