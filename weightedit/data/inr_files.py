"""INR files: one format out, several in.

Our format is one safetensors file per stack: tensors layers.{i}.weight [N, out, in] and layers.{i}.bias [N, out], and
where known label, index, split (int64 [N]) and psnr (float [N], dB). Its header states all that is needed to render:
`format`, `version`, `layers` (the widths), `activation`, `omega`, `coordinates`, `low`, `high`, `offset`, `height`,
`width`, `provenance`, and `ranges`, `last` and `bounded` where they are not the usual ones; strings as they are, the
rest as JSON. `history` says what was done to the INRs, and before.{k}.layers.{i}.weight, .bias and before.{k}.psnr
hold what entry k of it found, as far as that is kept: in the file itself, so that copies and moves lose nothing. A file
of another code carries no convention: it must be stated, and is never guessed. The foreign formats themselves are in
foreign_inrs.py, INRs from tensors or a module in inr_modules.py, sets of INRs with their images in weight_sets.py.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import torch
from torch import Tensor
from tqdm import tqdm

from weightedit.data.foreign_inrs import (
    TORCH_SUFFIXES,
    ForeignINRs,
    canonical_params,
    check_finite,
    from_names,
    join,
    read_torch_file,
    suggestion,
)
from weightedit.data.layer_names import Rename
from weightedit.errors import FileFormatError, ParamsError
from weightedit.files.reading import check_pixels, parse_json, refusing, shortened, size_of
from weightedit.files.saving import users_file
from weightedit.files.schema import Width, Widths, conform
from weightedit.inr.convention import Convention, Params, widths_of
from weightedit.inr.history import Edit
from weightedit.inr.stack import PER_INR, INRStack

FORMAT = "weightedit-inrs"
VERSION = 1
SUFFIX = ".safetensors"

_CONVENTION = tuple(entry.name for entry in dataclasses.fields(Convention))
_BEFORE, _PSNR = re.compile(r"before\.(0|[1-9][0-9]{0,5})\.[^.].*"), "psnr"
_PLAIN = ("format", "activation", "coordinates", "last")


class Header(TypedDict):
    """What the metadata of one of our files say, once what is JSON is read."""

    format: str
    version: int
    layers: Widths
    activation: str
    omega: float | list[float]
    coordinates: str
    low: float
    high: float
    offset: float
    ranges: NotRequired[list[tuple[float, float]]]
    last: NotRequired[str]
    bounded: NotRequired[bool]
    height: Width
    width: Width
    provenance: dict[str, str]
    history: NotRequired[list[str]]


def save_inrs(stack: INRStack, path: str | Path) -> None:
    """Write a stack as one safetensors file: whole, or not there (see saving.py).

    Args:
        stack: the INRs; stored in their own floating-point type, from whatever device.
        path: ends in .safetensors; its folder exists; a file of that name is replaced.

    Raises:
        FileFormatError: another ending, or a place that cannot be written.
        ParamsError: weights that are NaN or infinite.
    """
    import safetensors.torch

    path = Path(path)
    if path.suffix != SUFFIX:
        raise FileFormatError(f"{path} ends in {path.suffix!r}; INRs are written as {SUFFIX}: rename it.")
    former = _former(stack.history)
    check_finite(stack.params)
    check_finite({name: tensor for name, tensor in former.items() if tensor.dim() > 1})
    known = {name: getattr(stack, name) for name in PER_INR if getattr(stack, name) is not None}
    tensors = {
        name: tensor.detach().cpu().contiguous().clone() for name, tensor in {**stack.params, **known, **former}.items()
    }
    data = safetensors.torch.save(tensors, _header(stack))
    with users_file(path) as fresh:
        fresh.write_bytes(data)


def load_inrs(
    source: str | Path | Sequence[str | Path],
    convention: Convention | None = None,
    *,
    size: tuple[int, int] | None = None,
    normalization: tuple[Sequence[float], Sequence[float]] | None = None,
    rename: Rename | None = None,
    progress: bool = False,
) -> INRStack:
    """INRs from a file, a list of files in the given order, or a folder (all INR files in it, in natural order).

    Args:
        source: our .safetensors, or foreign .pth, .pt, .ckpt or .safetensors files; not mixed.
        convention: required for foreign files; for ours it may be left out, and is compared if it is given.
        size: (height, width) in pixels of the fitted images; required for foreign files likewise.
        normalization: (mean, std) per channel, where the INRs output (value - mean) / std, as Implicit-Zoo's do: the
            last layer is rescaled so that the output is the value itself, read under `convention`. Foreign files only.
        rename: which tensors are which layers, where their names leave it open: name without .weight and .bias (*
            matches anything) -> number from 0, None for what is no layer. Foreign files only.
        progress: show a tqdm bar.

    Returns:
        One INRStack on the CPU. Foreign files give label, index and split as far as file and path state them, -1
        where only others do.

    Raises:
        FileFormatError: nothing there, unknown, truncated, forged or mixed files, missing or contradicting convention
            or size, files of different architectures.
    """
    paths = inr_paths(source)
    bar = tqdm(paths, desc="reading", unit="file", disable=not progress)
    parts = [_read(path, rename) for path in bar]
    ours = [part for part in parts if isinstance(part, INRStack)]
    foreign = [part for part in parts if isinstance(part, ForeignINRs)]
    if ours and foreign:
        raise FileFormatError(
            f"{source} mixes {len(ours)} files of weightedit with {len(foreign)} others; expected one kind: load them "
            "apart, and join them with INRStack.concatenate."
        )
    if ours:
        try:
            stack = INRStack.concatenate(ours)
        except ParamsError as error:
            raise FileFormatError(f"the {len(paths)} files of {source} (numbered from 0): {error}") from error
        _compare(stack, convention, size, normalization or rename, paths[0])
        return stack
    if convention is None or size is None:
        missing = " and ".join(
            name for name, value in (("convention", convention), ("image size", size)) if value is None
        )
        raise FileFormatError(
            f"{paths[0]} states no {missing}, and none was given; its names are those of "
            f"{suggestion(foreign[0].family)}, and size=(height, width) of the fitted images."
        )
    return join(foreign, paths, convention, size, normalization)


def is_own_file(path: str | Path) -> bool:
    """Whether this is a safetensors file of our format; nothing else in it is looked at."""
    import safetensors

    if Path(path).suffix != SUFFIX or not Path(path).is_file():
        return False
    with (
        refusing(path, "a complete safetensors file: copy or write it again"),
        safetensors.safe_open(path, "pt") as file,
    ):
        return (file.metadata() or {}).get("format") == FORMAT


def _header(stack: INRStack) -> dict[str, str]:
    values: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "layers": list(stack.widths),
        "activation": "sine",
        **stack.convention.to_dict(),
        "height": stack.height,
        "width": stack.width,
        "provenance": stack.provenance,
        **({"history": [edit.told for edit in stack.history]} if stack.history else {}),
    }
    return {name: value if name in _PLAIN else json.dumps(value) for name, value in values.items()}


def _former(history: Sequence[Edit]) -> Params:
    """The tensors that the history keeps, under their names in a file."""
    found: Params = {}
    for number, edit in enumerate(history):
        kept = {**(edit.before or {}), **({} if edit.psnr is None else {_PSNR: edit.psnr})}
        found |= {f"before.{number}.{name}": tensor for name, tensor in kept.items()}
    return found


def _history(told: Sequence[str], tensors: Params) -> tuple[Edit, ...]:
    """The history of these words, with the former weights among `tensors`, which are taken out."""
    kept: dict[int, Params] = {}
    for name in [name for name in tensors if _BEFORE.fullmatch(name)]:
        _, number, own = name.split(".", 2)
        kept.setdefault(int(number), {})[own] = tensors.pop(name)
    if strange := sorted(set(kept) - set(range(len(told)))):
        raise FileFormatError(
            f"there is before.{strange[0]} for a history of {len(told)}; expected former weights of its entries alone, "
            "from 0: the file is damaged or was changed by hand, write it again."
        )
    edits = []
    for number, words in enumerate(told):
        before = kept.get(number)
        psnr = None if before is None else _scores(before.pop(_PSNR, None))
        params = None if before is None else canonical_params(before)
        check_finite(params or {})
        edits.append(Edit(words, params, psnr))
    return tuple(edits)


def _scores(psnr: Tensor | None) -> Tensor | None:
    if psnr is not None and not psnr.is_floating_point():
        raise FileFormatError(f"psnr is of {psnr.dtype}; expected float for psnr, int for the others: correct it.")
    return psnr


def inr_paths(source: str | Path | Sequence[str | Path]) -> list[Path]:
    """The files that `source` means to load_inrs, a folder's in natural order; FileFormatError where there are none."""
    if not isinstance(source, (str, Path)):
        if not source:
            raise FileFormatError("an empty list of files; expected at least one: pass a file, files, or a folder.")
        return [Path(path) for path in source]
    path = Path(source)
    if not path.is_dir():
        return [path]
    known = (SUFFIX, *TORCH_SUFFIXES)
    found = [entry for entry in path.rglob("*") if entry.suffix in known and not entry.name.startswith(".")]
    if not found:
        is_set = (path / "card.json").is_file()
        hint = " (it looks like a weight set, which weightedit.load reads in Python)" if is_set else ""
        raise FileFormatError(
            f"the folder {path} holds no INR files{hint}; expected files ending in {', '.join(known)}: check the path."
        )
    return sorted(found, key=_natural)


def _natural(path: Path) -> list[str | int]:
    """Sort key that puts net2 before net10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"([0-9]+)", path.as_posix())]


def _read(path: Path, rename: Rename | None) -> INRStack | ForeignINRs:
    if not path.exists():
        raise FileFormatError(f"there is no file or folder {str(path)!r}; expected INRs there: check the path.")
    size_of(path)
    if path.suffix in TORCH_SUFFIXES:
        return read_torch_file(path, rename)
    if path.suffix != SUFFIX:
        raise FileFormatError(
            f"{path} ends in {path.suffix!r}; INRs are read from {', '.join((SUFFIX, *TORCH_SUFFIXES))}: rename it if "
            "it is one of these."
        )
    return _read_safetensors(path, rename)


def _read_safetensors(path: Path, rename: Rename | None) -> INRStack | ForeignINRs:
    import safetensors

    with refusing(path, "a complete safetensors file: copy or write it again"):
        with safetensors.safe_open(path, "pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
        if header.get("format") != FORMAT:
            return from_names(tensors, path, {}, None, rename)
        return _stack_of(header, tensors)


def _stack_of(header: dict[str, str], tensors: Params) -> INRStack:
    """The stack that header and tensors of our format describe; the caller adds the file's name to errors."""
    if header.get("version") != str(VERSION):
        raise FileFormatError(
            f"the header has version {shortened(header.get('version'))}; version {VERSION} is read here: "
            "use the weightedit that wrote it."
        )
    values = _parse(header)
    check_pixels(values["height"], values["width"])
    known = {name: tensors.pop(name) for name in PER_INR if name in tensors}
    _scores(known.get(_PSNR))
    for name, tensor in known.items():
        whole = not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)
        if name != _PSNR and not whole:
            raise FileFormatError(
                f"{name} is of {tensor.dtype}; expected float for psnr, int for the others: correct it."
            )
    history = _history(values.get("history", []), tensors)
    widths = list(widths_of(tensors))  # in our format the names are these
    params = canonical_params(tensors)
    convention = Convention.from_dict({name: value for name, value in values.items() if name in _CONVENTION})
    facts: dict[str, Any] = {**known, "provenance": values["provenance"], "history": history}
    stack = INRStack(params, convention, values["height"], values["width"], **facts)
    if widths != values["layers"]:
        raise FileFormatError(
            f"the header has layers {shortened(values['layers'])}, the tensors {shortened(widths)}; expected them to "
            "agree: the file is damaged or was changed by hand, write it again."
        )
    check_finite(stack.params)
    return stack


def _parse(header: dict[str, str]) -> Header:
    """The header with its values as they are meant: some are strings, the others JSON."""
    values: dict[str, Any] = {}
    for name, text in header.items():
        try:
            values[name] = text if name in _PLAIN else parse_json(text)
        except (ValueError, RecursionError) as error:
            raise FileFormatError(
                f"the header has {name} {shortened(text)}; expected JSON: write the file again."
            ) from error
    return conform(Header, values, "the header")


def _compare(
    stack: INRStack,
    convention: Convention | None,
    size: tuple[int, int] | None,
    foreign_only: object,
    path: Path,
) -> None:
    if convention is not None and convention != stack.convention:
        raise FileFormatError(
            f"{path} states {stack.convention}, but {convention} was given; expected the same: leave it out, and use "
            "weightedit.inr.convention.convert to change it."
        )
    if size is not None and tuple(size) != (stack.height, stack.width):
        raise FileFormatError(
            f"{path} states the size {(stack.height, stack.width)}, but {tuple(size)} was given; expected the same: "
            "leave it out, and give stack.render the size you want."
        )
    if foreign_only:
        raise FileFormatError(
            f"{path} is of weightedit, whose outputs are never normalized and whose names are known; expected no "
            "normalization or rename: leave them out."
        )
